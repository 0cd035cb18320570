"""What a run of the benchmarks leaves: a file of figures, a table of it, and how it differs from another one."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .place import ALL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .place import Figures

    Report: TypeAlias = dict[str, Any]  # as in the file

MOVED = 0.1  # of a ratio; less is noise


class Figure(NamedTuple):
    """A line of the table."""

    scenario: str
    name: str
    ours: float
    bare: float
    ratio: float


def report(measured: Mapping[str, Sequence[tuple[Figures, Figures]]]) -> Report:
    """Return the file of it: `measured` has the figures of both sides for each round of each scenario."""
    return {
        "version": importlib.metadata.version("alloy_trio"),
        "python": platform.python_version(),
        "trio": importlib.metadata.version("trio"),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "figures": {scenario: summary(rounds) for scenario, rounds in measured.items()},
    }


def summary(rounds: Sequence[tuple[Figures, Figures]]) -> dict[str, dict[str, float]]:
    """
    Return the medians of all rounds, by figure.

    The ratio is the median of the rounds' own ratios: what slows the machine down for a while slows both sides of a round.
    """
    figures = {}
    for name in rounds[0][0]:
        pairs = [(ours[name], bare.get(name, bare.get(ALL, 0.0))) for ours, bare in rounds]
        figures[name] = {
            "ours": _short(statistics.median(ours for ours, _ in pairs)),
            "bare": _short(statistics.median(bare for _, bare in pairs)),
            "ratio": _short(statistics.median(ours / bare if bare else 0.0 for ours, bare in pairs)),
        }
    return figures


def lines(made: Report) -> Iterator[Figure]:
    """Yield the lines of a file's table."""
    for scenario, figures in made["figures"].items():
        for name, figure in figures.items():
            yield Figure(scenario, name, figure["ours"], figure["bare"], figure["ratio"])


def load(path: Path) -> Report:
    """Read a file that was written with `--json`."""
    made: Report = json.loads(path.read_text(encoding="utf-8"))
    return made


def table(made: Report) -> str:
    """Return the figures of both sides, and their ratios, as a table of Markdown."""
    rows = [(each.scenario, each.name, *map(_shown, each[2:])) for each in lines(made)]
    return _table(("scenario", "figure", "ours", "bare", "ratio"), rows)


def comparison(old: Report, new: Report) -> str:
    """
    Return how the ratios differ, and which of them have moved by more than a tenth.

    Only ratios are compared: two files may be of two machines, the two sides of a ratio never are.
    """
    before = {(each.scenario, each.name): each.ratio for each in lines(old)}
    after = {(each.scenario, each.name): each.ratio for each in lines(new)}
    rows, moved = [], []
    for key in before.keys() & after.keys():
        change = after[key] / before[key] if before[key] else 1.0
        rows.append((*key, _shown(before[key]), _shown(after[key]), f"{change:.2f}"))
        if abs(change - 1) > MOVED:
            moved.append(f"{'slower' if change > 1 else 'faster'} ({change:.2f}): {' · '.join(key)}")
    order = {key: index for index, key in enumerate(after)}
    rows.sort(key=lambda row: order[row[0], row[1]])
    parts = [_table(("scenario", "figure", str(old["version"]), str(new["version"]), "new/old"), rows)]
    parts += [f"only in the old file: {' · '.join(key)}" for key in before if key not in after]
    parts += [f"only in the new file: {' · '.join(key)}" for key in after if key not in before]
    parts += sorted(moved) or [f"Nothing has moved by more than {MOVED:.0%}."]
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    marks = [
        f"{'-' * (width - 1)}{'-' if column < 2 else ':'}" for column, width in enumerate(widths)
    ]  # figures: right

    def line(row: Sequence[str]) -> str:
        cells = [text.ljust(widths[at]) if at < 2 else text.rjust(widths[at]) for at, text in enumerate(row)]
        return f"| {' | '.join(cells)} |"

    return "\n".join([line(head), line(marks), *map(line, every[1:])])


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.2f}"


def _short(figure: float) -> float:
    """Return it with four digits that count."""
    return float(f"{figure:.4g}")
