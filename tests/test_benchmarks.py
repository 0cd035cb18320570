"""The benchmarks run, and compare. No figure is a test's business: how fast a machine is says nothing about the code."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
LAST = ROOT / "benchmarks" / "results" / "0.1.0.json"

TINY = ("--rounds", "1", "--scale", "0.01")


def _benchmarks(*arguments: object) -> str:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _file(where: Path, version: str, **ratios: float) -> Path:
    figures = {
        name: {"a turn, µs": {"ours": ratio * 100, "bare": 100.0, "ratio": ratio}} for name, ratio in ratios.items()
    }
    where.write_text(json.dumps({"version": version, "figures": figures}), encoding="utf-8")
    return where


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_scenario_gives_figures(tmp_path: Path) -> None:
    """And those of the file of the last release are made by the same scenarios."""
    printed = _benchmarks(*TINY, "--json", tmp_path / "new.json")
    made = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    last = json.loads(LAST.read_text(encoding="utf-8"))
    assert {name: sorted(of) for name, of in made["figures"].items()} == {
        name: sorted(of) for name, of in last["figures"].items()
    }
    assert made.keys() == last.keys()
    figures: list[dict[str, float]] = [figure for of in made["figures"].values() for figure in of.values()]
    assert all(figure.keys() == {"ours", "bare", "ratio"} for figure in figures)
    assert all(math.isfinite(number) for figure in figures for number in figure.values())
    assert len(_rows(printed)) == 2 + len(figures)


def test_a_scenario_is_taken_by_its_name() -> None:
    """And only that is compared."""
    printed = _benchmarks(*TINY, "messages", "--compare", LAST)
    rows = _rows(printed)
    assert rows[0] == ["scenario", "figure", "ours", "bare", "ratio"]
    assert {row[0] for row in rows} == {"scenario", "--------", "messages"}
    assert "only in" not in printed


def test_one_that_does_not_exist_is_said() -> None:
    command = [sys.executable, "-m", "benchmarks", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no such scenario: nonsense" in done.stderr


def test_two_files_are_compared_by_their_ratios(tmp_path: Path) -> None:
    old = _file(tmp_path / "old.json", "0.1.0", turns=2.0, stream=1.0, cancel=1.0, gone=1.0)
    new = _file(tmp_path / "new.json", "0.2.0", turns=2.3, stream=1.05, cancel=0.5, fresh=1.0)
    printed = _benchmarks("--new", new, "--compare", old)
    assert _rows(printed) == [
        ["scenario", "figure", "0.1.0", "0.2.0", "new/old"],
        ["--------", "----------", "----:", "----:", "------:"],
        ["turns", "a turn, µs", "2.00", "2.30", "1.15"],
        ["stream", "a turn, µs", "1.00", "1.05", "1.05"],
        ["cancel", "a turn, µs", "1.00", "0.50", "0.50"],
    ]
    assert printed.splitlines()[5:] == [
        "only in the old file: gone · a turn, µs",
        "only in the new file: fresh · a turn, µs",
        "faster (0.50): cancel · a turn, µs",
        "slower (1.15): turns · a turn, µs",
    ]


def test_two_files_that_differ_little_are_the_same(tmp_path: Path) -> None:
    old, new = _file(tmp_path / "old.json", "1", turns=2.0), _file(tmp_path / "new.json", "2", turns=2.19)
    assert _benchmarks("--new", new, "--compare", old).endswith("Nothing has moved by more than 10%.\n")


def test_a_round_is_compared_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow for a round makes both sides slow: the ratio is that of the rounds, not of the medians."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.report import summary

    rounds = [({"x": 2.0}, {"*": 1.0}), ({"x": 40.0}, {"*": 20.0}), ({"x": 6.0}, {"*": 3.0})]
    assert summary(rounds) == {"x": {"ours": 6.0, "bare": 3.0, "ratio": 2.0}}
    rounds = [({"x": 9.0}, {"x": 1.0}), ({"x": 10.0}, {"x": 10.0}), ({"x": 12.0}, {"x": 6.0})]
    assert summary(rounds)["x"] == {"ours": 10.0, "bare": 6.0, "ratio": 2.0}


def test_a_model_is_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.server import Script

    assert Script.of("turns-5-tools-3-delay-50") == Script(turns=5, tools=3, delay=50)
    assert Script.of("stream-500-every-250") == Script(stream=500, every=250)
