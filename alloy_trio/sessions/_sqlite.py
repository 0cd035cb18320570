"""
A store in an SQLite database: a row for each record.

Appends that are queued together are one transaction, and whatever of it does not fit its session fails by itself. The numbers
are looked up inside of the transaction, so other processes may use the same file; a session that two of them write is noticed
by its numbers, as everywhere.

`sqlite3` is imported when a store is opened, not before.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .._errors import InvalidOption, StoreError
from ._disk import Unavailable
from ._queue import QueuedStore
from ._rows import Row, check_rewrite, to_append, to_record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from ._disk import Job
    from ._record import Record

_LONGEST_BUSY = 1_000_000  # seconds; SQLite counts milliseconds in 32 bits
_VERSION = 1
_SCHEMA = """
    CREATE TABLE records (
        session TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (session, seq)
    )
"""


class SQLiteStore(QueuedStore):
    """
    Keeps sessions in an SQLite database, in one table: `records(session, seq, kind, data)`.

    Use it inside `async with`; tasks may share it, and other processes may use the same file.

    Args:
        path: The file; made if need be.
        synchronous: "FULL": a write is acknowledged once it is on the disk. "NORMAL": the end of the process loses nothing, but
            that of the machine may lose what came last.
        busy_timeout: How many seconds to wait while another process writes to the file.
        write_timeout: How many seconds a caller waits for the acknowledgement of its write, and leaving the store for what is
            queued. `math.inf` for no bound.

    Raises:
        StoreError: On entering: the file cannot be used, or a newer version has written it.
        InvalidOption: An option cannot be right.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        busy_timeout: float = 5.0,
        write_timeout: float = 10.0,
    ) -> None:
        if path == ":memory:":
            raise InvalidOption("SQLiteStore keeps sessions in a file, not in ':memory:': use MemoryStore for that")
        if synchronous not in {"FULL", "NORMAL"}:
            raise InvalidOption(f'synchronous={synchronous!r:.100} has to be "FULL" or "NORMAL"')
        if not isinstance(busy_timeout, int | float) or not 0 <= busy_timeout <= _LONGEST_BUSY:  # type: ignore[redundant-expr] # callers err
            raise InvalidOption(f"busy_timeout={busy_timeout!r:.100} has to be seconds, from 0 to {_LONGEST_BUSY:,}")
        super().__init__(_Database(Path(path).absolute(), synchronous, busy_timeout), write_timeout)


class _Database:
    """The file, and the connection to it."""

    _connection: sqlite3.Connection

    def __init__(self, path: Path, synchronous: str, busy_timeout: float) -> None:
        self.name = str(path)
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout

    def open(self) -> None:
        import sqlite3  # noqa: PLC0415 - who keeps sessions elsewhere does not need it

        with self._said("it cannot be opened"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # what is said in a session is nobody else's
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(connection)
            except (StoreError, sqlite3.Error):
                connection.close()
                raise
        self._connection = connection

    def close(self) -> None:
        with self._said("it cannot be closed"):
            self._connection.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        self._check_version(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        with _transaction(connection):
            if self._check_version(connection) == 0:
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _check_version(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise StoreError(
                f"{self.name} has schema version {version}, and this alloy_trio knows {_VERSION}: a newer one, or another program, "
                "has written it; update alloy_trio, or give another path"
            )
        return version

    # What the writer calls

    def sessions(self) -> Sequence[str]:
        with self._said("its sessions cannot be read"):
            return [session for (session,) in self._connection.execute("SELECT DISTINCT session FROM records")]

    def load(self, session: str) -> Sequence[Record]:
        with self._said(f"session {session!r} cannot be read"):
            query = "SELECT seq, kind, data FROM records WHERE session = ? ORDER BY seq"
            with closing(self._connection.execute(query, (session,))) as cursor:
                return [self._record(session, Row(seq, kind, _bytes(data))) for seq, kind, data in cursor]

    def append(self, jobs: Sequence[Job]) -> None:
        accepted = []
        with self._said("a write failed"), _transaction(self._connection):
            for job in jobs:
                stored = partial(self._stored, job.session)
                try:
                    rows = to_append(job.session, job.rows, self._last(job.session), stored)
                except StoreError as error:
                    job.fail(error)
                    continue
                self._insert(job.session, rows)
                accepted.append(job)
        for job in accepted:
            job.succeed()

    def rewrite(self, session: str, rows: Sequence[Row]) -> None:
        with self._said("a write failed"), _transaction(self._connection):
            check_rewrite(session, rows, self._last(session), partial(self._stored, session))
            self._connection.execute("DELETE FROM records WHERE session = ?", (session,))
            self._insert(session, rows)

    def delete(self, session: str) -> None:
        with self._said("a write failed"), _transaction(self._connection):
            self._connection.execute("DELETE FROM records WHERE session = ?", (session,))

    # Rows

    def _last(self, session: str) -> int:
        query = "SELECT coalesce(max(seq), 0) FROM records WHERE session = ?"
        last: int = self._connection.execute(query, (session,)).fetchone()[0]
        return last

    def _stored(self, session: str, seq: int) -> Row | None:
        query = "SELECT kind, data FROM records WHERE session = ? AND seq = ?"
        found = self._connection.execute(query, (session, seq)).fetchone()
        return None if found is None else Row(seq, found[0], _bytes(found[1]))

    def _insert(self, session: str, rows: Sequence[Row]) -> None:
        self._connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?)",
            ((session, row.seq, row.kind, row.data.decode()) for row in rows),
        )

    def _record(self, session: str, row: Row) -> Record:
        try:
            return to_record(row)
        except ValueError as error:
            raise StoreError(
                f"{self.name}: record {row.seq} of session {session!r} cannot be read: {error}; mend or delete that row"
            ) from error

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Let errors of the database say where, and what to do."""
        import sqlite3  # noqa: PLC0415 - as above

        try:
            yield
        except sqlite3.Error as error:
            kind = Unavailable if "locked" in str(error) else StoreError
            raise kind(f"{self.name}: {what}: {error}; {self._advice(str(error))}") from error
        except OSError as error:
            raise StoreError(f"{self.name}: {what}: {error.strerror}; give a path that can be written") from error

    def _advice(self, said: str) -> str:
        if "locked" in said:
            return f"another process had it for more than busy_timeout={self._busy_timeout:g} seconds: end that, or wait longer"
        if "full" in said:
            return "make room on the disk, then do it again"
        return "look at the disk and the file; if this is no database of ours, give another path"


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _bytes(data: object) -> bytes:
    return str(data).encode()  # what is no text here is none of our rows, and no JSON object then
