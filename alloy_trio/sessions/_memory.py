"""A store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import trio

from ._rows import check_id, check_rewrite, to_append, to_record, to_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ._record import Record
    from ._rows import Row


class MemoryStore:
    """
    Keeps sessions in memory: they outlive restarts of agents, not the process. Ready at once; `async with` does nothing.

    It keeps JSON text, so that nobody can change by accident what was written. It fits tests in virtual time.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, dict[int, Row]] = {}

    # Each method waits first and then does its work in one go, so that a cancel finds it done or not begun.

    async def load(self, session_id: str) -> Sequence[Record]:
        """Return the records of a session; none if it is not known. Raises `StoreError`."""
        check_id(session_id)
        await trio.lowlevel.checkpoint()
        return [to_record(row) for row in self._sessions.get(session_id, {}).values()]

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        """Add records. Raises `StoreError`."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint()
        log = self._sessions.setdefault(session_id, {})
        try:
            log.update((row.seq, row) for row in to_append(session_id, rows, _last(log), log.get))
        finally:
            if not log:
                del self._sessions[session_id]

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """Put records in the place of all earlier ones. Raises `StoreError`."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint()
        log = self._sessions.get(session_id, {})
        check_rewrite(session_id, rows, _last(log), log.get)
        self._sessions[session_id] = {row.seq: row for row in rows}
        if not rows:
            del self._sessions[session_id]

    async def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions, sorted."""
        await trio.lowlevel.checkpoint()
        return sorted(self._sessions)

    async def delete(self, session_id: str) -> None:
        """Forget a session. Raises `StoreError` if this is no id."""
        check_id(session_id)
        await trio.lowlevel.checkpoint()
        self._sessions.pop(session_id, None)

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


def _last(log: dict[int, Row]) -> int:
    return next(reversed(log), 0)
