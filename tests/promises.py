"""
What the library promises, and for each promise the test that fails once it is broken.

    python tests/promises.py            breaks every promise, one after the other, in a copy, and sees its test fail
    python tests/promises.py money      those whose name or words have "money" in them
    python tests/promises.py --table    the table of docs/reliability.md

A promise is broken by an edit of one place in the source; `promises.toml` has them. `test_promises.py` sees that the tests and the
places are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import attrs

ROOT = Path(__file__).parent.parent
SECONDS = 120.0  # a broken promise may hang


@attrs.frozen
class Promise:
    """
    One promise.

    Attributes:
        part: What it is about.
        says: The promise, as a sentence.
        test: The test, `file::function`, without the folder and the ending.
        path: The file in which it is kept.
        old: What keeps it there: a piece of the source that occurs once.
        new: What breaks it.
    """

    part: str
    says: str
    test: str
    path: str
    old: str
    new: str


PROMISES: tuple[Promise, ...] = tuple(
    Promise(**row) for row in tomllib.loads((ROOT / "tests" / "promises.toml").read_text("utf-8"))["promise"]
)


def table() -> str:
    """Return all promises as a table for the docs."""
    rows = ["| promise | test |", "| --- | --- |"]
    for part in dict.fromkeys(each.part for each in PROMISES):
        rows.append(f"| **{part}** | |")
        rows += [f"| {each.says} | `{each.test}` |" for each in PROMISES if each.part == part]
    return "\n".join(rows)


def broken(promise: Promise, copy: Path) -> bool:
    """Break a promise in a copy of the repository; return whether its test fails there, or does not end."""
    source = copy / "alloy_trio" / promise.path
    whole = source.read_text("utf-8")
    file, _, function = promise.test.partition("::")
    chosen = f"tests/{file}.py" + (f"::{function}" if function else "")
    source.write_text(whole.replace(promise.old, promise.new), "utf-8")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", chosen],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "ci"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        source.write_text(whole, "utf-8")
    if ended.returncode not in {0, 1}:
        raise RuntimeError(f"{promise.test} could not be run:\n{ended.stdout}{ended.stderr}")
    return ended.returncode == 1


def main() -> int:
    """Break the promises that are asked for; return how many of them no test has missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("words", nargs="*", help="only those that have one of these in their part, words, file or test")
    parser.add_argument("--table", action="store_true", help="print the table of the docs")
    asked = parser.parse_args()
    if asked.table:
        print(table())
        return 0
    chosen = [
        each
        for each in PROMISES
        if not asked.words or any(word in f"{each.part} {each.says} {each.path} {each.test}" for word in asked.words)
    ]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "docs"))
        for each in chosen:
            fails = broken(each, copy)
            unnoticed += not fails
            print(f"{'seen' if fails else 'NOT SEEN'}  {each.says}  {each.test}", flush=True)
    print(f"{len(chosen)} promises broken, {unnoticed} unnoticed")
    return min(unnoticed, 1)


if __name__ == "__main__":
    sys.exit(main())
