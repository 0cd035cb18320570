"""
A store of JSON Lines: a file for each session, a line for each record.

    append    one write at the end of the file, and one fsync for all that is queued for it. What fails is cut off again.
    rewrite   a new file beside it, fsync, rename, fsync of the folder: the old log, or the new one, and nothing else.
    read      line by line. A tail that was torn, when a process or the machine died in a write, is cut off: it was not
              acknowledged. Any other line that cannot be read is an error, and nothing is changed: a person has to look.

Of each session that has been used, the store keeps the length of its file and the last number. A file that has another
length than that is read again. No file is kept open, so that a thousand agents do not need a thousand descriptors.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from .._errors import StoreError
from ._disk import attempt
from ._lines import read_lines, sync_folder, to_lines, write_file
from ._lock import FolderLock
from ._names import SUFFIX, file_name, header, session_of
from ._queue import QueuedStore
from ._rows import check_rewrite, to_append, to_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._disk import Job
    from ._lines import Lines
    from ._record import Record
    from ._rows import Row

logger = logging.getLogger("alloy_trio")

_TEMPORARY = ".tmp"


class JSONLStore(QueuedStore):
    """
    Keeps each session as a file of JSON Lines in a folder, to be read by people and by other programs.

    One store at a time has the folder: a lock says so to others, and names the process. Use it inside `async with`; tasks may
    share it. It needs a file system with `flock`, so not Windows.

    Args:
        folder: Where the files are; made if need be. The name of a file is the quoted id of its session.
        fsync: Whether a write is acknowledged only once it is on the disk. Without it, the end of the process loses nothing, but
            that of the machine may lose what came last.
        write_timeout: How many seconds a caller waits for the acknowledgement of its write, and leaving the store for what is
            queued. `math.inf` for no bound.

    Raises:
        StoreError: On entering: somebody has the folder, or it cannot be used.
        InvalidOption: `write_timeout` is no number of seconds.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fsync: bool = True, write_timeout: float = 10.0) -> None:
        super().__init__(_Folder(Path(folder).absolute(), fsync=fsync), write_timeout)


@attrs.define
class _Log:
    """What is known of a session's file."""

    size: int = 0
    last: int = 0


class _Folder:
    """The files, and what is known of them."""

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self.name = str(path)
        self._path = path
        self._fsync = fsync
        self._lock = FolderLock(path)
        self._logs: dict[str, _Log] = {}

    def open(self) -> None:
        try:
            _make(self._path)
            self._lock.acquire()
            for left in self._path.glob(f"*{SUFFIX}{_TEMPORARY}"):
                left.unlink()  # of a rewrite that never came to its end
        except OSError as error:
            self._lock.release()
            raise StoreError(
                f"{self.name} cannot be used as the folder of a store: {error.strerror}; give one that can be written"
            ) from error

    def close(self) -> None:
        self._logs.clear()
        self._lock.release()

    def sessions(self) -> Sequence[str]:
        paths = [path for path in self._path.iterdir() if path.name.endswith(SUFFIX)]
        return [session for path in paths if (session := session_of(path)) is not None]

    def load(self, session: str) -> Sequence[Record]:
        lines = self._read(session)
        self._logs[session] = _Log(lines.size, lines.last)
        return lines.records

    def append(self, jobs: Sequence[Job]) -> None:
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.session, []).append(job)
        for session, group in groups.items():
            attempt(group, self, partial(self._append, session))

    def rewrite(self, session: str, rows: Sequence[Row]) -> None:
        log = self._known(session)
        check_rewrite(session, rows, log.last, self._stored(session))
        path, data = self._file(session), header(session) + to_lines(rows)
        temporary = path.with_name(path.name + _TEMPORARY)
        self._logs.pop(session)  # if anything fails from here on, the file is read again
        try:
            # Synced even where appends are not: a rename that is on the disk before the content is would lose everything.
            write_file(temporary, data, os.O_TRUNC, sync=True)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._sync()
        self._logs[session] = _Log(len(data), rows[-1].seq)

    def delete(self, session: str) -> None:
        self._logs.pop(session, None)
        self._file(session).unlink(missing_ok=True)
        self._sync()

    def _append(self, session: str, jobs: Sequence[Job]) -> None:
        """Do appends to one session. One that does not fit fails by itself; if the disk fails, all of them do."""
        log, stored = self._known(session), self._stored(session)
        new: dict[int, Row] = {}
        last, accepted = log.last, []
        for job in jobs:
            try:
                rows = to_append(session, job.rows, last, lambda seq: new.get(seq) or stored(seq))
            except StoreError as error:
                job.fail(error)
                continue
            new.update((row.seq, row) for row in rows)
            last = rows[-1].seq if rows else last
            accepted.append(job)
        if new or log.size:
            self._write_end(session, log, to_lines(new.values()))
        log.last = last
        for job in accepted:
            job.succeed()

    def _write_end(self, session: str, log: _Log, lines: bytes) -> None:
        path, is_new = self._file(session), log.size == 0
        data = header(session) + lines if is_new else lines
        try:
            write_file(path, data, os.O_APPEND, sync=self._fsync)
            if is_new:
                self._sync()
        except OSError:
            # Not acknowledged, so it must not stay, whole or in part. If even that fails, its length says to read it again.
            with suppress(OSError):
                os.truncate(path, log.size)
            raise
        log.size += len(data)

    def _sync(self) -> None:
        if self._fsync:
            sync_folder(self._path)

    # What is there

    def _file(self, session: str) -> Path:
        return self._path / file_name(session)

    def _known(self, session: str) -> _Log:
        log = self._logs.get(session)
        if log is None or log.size != _size(self._file(session)):
            lines = self._read(session)
            log = self._logs[session] = _Log(lines.size, lines.last)
        return log

    def _stored(self, session: str) -> Callable[[int], Row | None]:
        """Return what looks up a row by its number. It reads the file, when it is called for the first time."""

        @cache
        def rows() -> dict[int, Row]:
            return {row.seq: row for row in to_rows(session, self._read(session).records)}

        return lambda seq: rows().get(seq)

    def _read(self, session: str) -> Lines:
        """Read all there is, and cut off a torn tail."""
        path = self._file(session)
        lines = read_lines(path, header(session))
        if lines.torn:
            logger.warning("%s: the last write was torn; its %d bytes have been cut off", path, lines.torn)
            os.truncate(path, lines.size)
        if not lines.records:  # nothing at all, or a header alone
            path.unlink(missing_ok=True)
            lines.size = 0
        return lines


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
