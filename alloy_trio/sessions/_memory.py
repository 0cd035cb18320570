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

    # Each method does its work before it lets others run: in the order of the calls, and a cancel finds it done or not begun.

    async def load(self, session_id: str) -> Sequence[Record]:
        """Return the records of a session; none if it is not known. Raises `StoreError`."""
        check_id(session_id)
        await trio.lowlevel.checkpoint_if_cancelled()
        records = [to_record(row) for row in self._sessions.get(session_id, {}).values()]
        await trio.lowlevel.cancel_shielded_checkpoint()
        return records

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        """Add records. Raises `StoreError`."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint_if_cancelled()
        log = self._sessions.get(session_id, {})
        log.update((row.seq, row) for row in to_append(session_id, rows, _last(log), log.get))
        self._put(session_id, log)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """Put records in the place of all earlier ones. Raises `StoreError`."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint_if_cancelled()
        log = self._sessions.get(session_id, {})
        check_rewrite(session_id, rows, _last(log), log.get)
        self._put(session_id, {row.seq: row for row in rows})
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions, sorted."""
        await trio.lowlevel.checkpoint()
        return sorted(self._sessions)

    async def delete(self, session_id: str) -> None:
        """Forget a session. Raises `StoreError` if this is no id."""
        check_id(session_id)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._put(session_id, {})
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _put(self, session_id: str, log: dict[int, Row]) -> None:
        self._sessions[session_id] = log
        if not log:
            del self._sessions[session_id]

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return


def _last(log: dict[int, Row]) -> int:
    return next(reversed(log), 0)
