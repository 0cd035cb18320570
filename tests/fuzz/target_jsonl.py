"""The file of a session, damaged anyhow: its lines are read, or refused, and what is behind a torn write is told apart."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from alloy_trio import StoreError
from alloy_trio.sessions import Record
from alloy_trio.sessions._lines import read_lines, to_lines
from alloy_trio.sessions._names import header
from alloy_trio.sessions._rows import to_rows

_HEADER = header("s")
SEEDS = [_HEADER + to_lines(to_rows("s", [Record(1, "a", {"k": "ü"}), Record(2, "b", {"of": [1, {}]})]))]
_MEMORY = Path("/dev/shm")  # where there is one: a file for each input
_FOLDER = tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None)


def check(data: bytes) -> None:
    """Raise what is no StoreError, and AssertionError where they are not."""
    path = Path(_FOLDER.name, "s.jsonl")
    path.write_bytes(data)
    with contextlib.suppress(StoreError):
        lines = read_lines(path, _HEADER)
        assert lines.size + lines.torn == len(data)
        os.truncate(path, lines.size)
        again = read_lines(path, _HEADER)
        assert (again.records, again.size, again.torn) == (lines.records, lines.size, 0)
        head = _HEADER if data.startswith(_HEADER) else b""
        path.write_bytes(head + to_lines(to_rows("s", lines.records)))
        assert read_lines(path, _HEADER).records == lines.records
