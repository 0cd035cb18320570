"""Records as lines of a file, and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from .._errors import StoreError
from ._record import Record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from ._rows import Row


class _Line(msgspec.Struct):
    seq: int
    kind: str
    data: dict[str, Any]


@attrs.define
class Lines:
    """
    What a file has.

    Attributes:
        records: One for each line.
        size: How many bytes these lines are, with the header.
        torn: How many bytes are behind them, of a line that was not written to its end.
    """

    records: list[Record] = attrs.field(factory=list)
    size: int = 0
    torn: int = 0

    @property
    def last(self) -> int:
        """The number of the last record; 0 without one."""
        return self.records[-1].seq if self.records else 0


def to_lines(rows: Iterable[Row]) -> bytes:
    """Write rows as lines."""
    return b"".join(
        b'{"seq":%d,"kind":%s,"data":%s}\n' % (row.seq, msgspec.json.encode(row.kind), row.data) for row in rows
    )


def read_lines(path: Path, header: bytes) -> Lines:
    """
    Read a file; one that is not there is empty.

    Args:
        path: The file.
        header: Its first line, if it is to have one that is no record.

    Raises:
        StoreError: A line that is not the last one cannot be read, or numbers do not rise.
        OSError: The file cannot be read.
    """
    found = Lines()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return found
    with file:
        for number, line in enumerate(file, 1):
            if number == 1 and line == header:
                found.size += len(line)
                continue
            record = _parse(line)
            if record is None and not file.peek(1):
                found.torn = len(line)
                break
            if record is None:
                raise _broken(path, number, "cannot be read")
            if record.seq <= found.last:
                raise _broken(path, number, f"has number {record.seq}, which does not rise")
            found.records.append(record)
            found.size += len(line)
    return found


def write_file(path: Path, data: bytes, flags: int, *, sync: bool) -> None:
    """Write all of `data`, and wait until it is on the disk if `sync` says so. Raises `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Wait until what was made, renamed or removed in a folder is on the disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _parse(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        parsed = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Record(parsed.seq, parsed.kind, parsed.data)


def _broken(path: Path, number: int, what: str) -> StoreError:
    return StoreError(f"{path}, line {number} {what}: nothing is changed; mend that line, or move the file away")
