"""
Measure what alloy_trio costs beside a bare client: `python -m benchmarks`.

Each scenario runs in fresh processes, one with alloy_trio and one with the yardstick, in turn, as many rounds as are asked for.
Figures are medians; all but memory and the way to a prompt are CPU time of the client's process. Read the ratios: the rest is
of this machine, today.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .place import SIDES, Place, say
from .report import comparison, load, report, table
from .scenarios import SCENARIOS
from .worker import command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .place import Figures
    from .report import Report

_TIMEOUT = 600  # seconds for one side of one scenario
_TERMINAL = "prompt"  # the scenario that needs a terminal of POSIX


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write and compare, as the arguments say."""
    given = _parser().parse_args(arguments)
    made = load(given.new) if given.new else _report(given)
    if not (given.new and given.compare):
        print(table(made))
    if given.json:
        given.json.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if given.compare:
        print(comparison(_old(given), made))


def _report(given: argparse.Namespace) -> Report:
    return report(_measured(given.names or _possible(), given.rounds, given.scale))


def _old(given: argparse.Namespace) -> Report:
    """Return the file to compare with: of scenarios that were not asked for, nothing is said."""
    old = load(given.compare)
    return old | {
        "figures": {name: of for name, of in old["figures"].items() if name in (given.names or old["figures"])}
    }


def _parser() -> argparse.ArgumentParser:
    scenarios = "\n".join(f"  {name:<20}{scenario.about}" for name, scenario in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"scenarios:\n{scenarios}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a scenario; all, if none is named")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is run (5)")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="multiplies all sizes; less is no measurement"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare the ratios with those of an older file")
    parser.add_argument("--new", type=Path, metavar="FILE", help="run nothing: take the figures of this file")
    return parser


def _possible() -> list[str]:
    """Return the scenarios that this machine can run."""
    return [name for name in SCENARIOS if name != _TERMINAL or os.name == "posix"]


def _measured(names: Sequence[str], rounds: int, scale: float) -> dict[str, list[tuple[Figures, Figures]]]:
    if unknown := set(names) - SCENARIOS.keys():
        raise SystemExit(f"no such scenario: {', '.join(sorted(unknown))}; `python -m benchmarks --help` lists them")
    with contextlib.ExitStack() as stack:
        servers = {"plain": stack.enter_context(_server()), None: ("", "")}
        if any(SCENARIOS[name].server == "tls" for name in names):
            servers["tls"] = stack.enter_context(_server(tls=True))
        measured: dict[str, list[tuple[Figures, Figures]]] = {name: [] for name in names}
        for each in range(max(1, rounds)):
            for name in names:
                say(f"round {each + 1}: {name}")
                url, authority = servers[SCENARIOS[name].server]
                ours, bare = (_run(name, Place(side, url, authority, scale)) for side in SIDES)
                measured[name].append((ours, bare))
        return measured


def _run(name: str, place: Place) -> Figures:
    """Run one side in a process of its own."""
    done = subprocess.run(command(name, place), stdout=subprocess.PIPE, timeout=_TIMEOUT, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


@contextlib.contextmanager
def _server(*, tls: bool = False) -> Iterator[tuple[str, str]]:
    """Run a server; yield its URL and the file of its authority. It ends when its input does."""
    with tempfile.TemporaryDirectory() as folder:
        authority = str(Path(folder) / "authority.pem") if tls else ""
        command = [sys.executable, "-m", "benchmarks.server", *(["--tls", authority] if tls else [])]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"http{'s' if tls else ''}://127.0.0.1:{port}", authority
            process.stdin.close()


if __name__ == "__main__":
    main()
