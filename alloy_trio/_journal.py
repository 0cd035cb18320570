"""
A conversation written ahead, as records of a store, and read back.

    snapshot   the whole session: the first record of each log, and what a rewrite leaves
    message    one more message, with the usage of all runs so far: a question before it is sent, an answer before its tools
               start
    result     the result of one call, as soon as the call has ended, and the call's place among those of its answer
    answered   the user's message made of these results, in call order, and of what was said behind them
    run        a run has ended: how, and the session without its messages

Whoever is restarted reads these, and answers each call that has no result with "cancelled: agent restarted": it may have
done what it was to do, so it never runs again.

Whatever was not acknowledged, or was changed otherwise than at the end (compaction, a middleware, a rollback), makes the
journal *dirty*: the next save puts one snapshot in the place of all earlier records. A store takes writes in order, so what
may still be on its way there is replaced as well.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import attrs

from ._codec import load, plain
from ._errors import StoreError
from ._messages import Block, Message, ToolResult
from ._session import Session
from ._usage import Usage
from .sessions._record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._result import Result
    from ._state import Run
    from .sessions._record import SessionStore

RESTARTED = "cancelled: agent restarted"

logger = logging.getLogger("alloy_trio")


class StoreJournal:
    """
    The log of one session in a store. One run at a time writes it.

    Attributes:
        is_dirty: Whether the store lacks something, or has something that is not so.
        broken: What the store raised that no store should: then the agent is to break down too.
    """

    def __init__(self, store: SessionStore, session: Session, last_seq: int, *, is_dirty: bool) -> None:
        self._store = store
        self._session = session
        self._seq = last_seq
        self._written: tuple[Message, ...] = session.messages
        self._rewrites = 0
        self._results: dict[int, ToolResult] = {}  # of the batch under way, by the places of the calls
        self.is_dirty = is_dirty
        self.broken: Exception | None = None

    def begin(self, run: Run) -> None:
        """A run begins."""
        self._rewrites = 0
        if run.began_from is not self._written:
            self.is_dirty = True

    async def save(self, run: Run) -> None:
        """Write what the run has and the log has not. Raises StoreError."""
        await self._save(run, [])

    async def save_result(self, run: Run, result: ToolResult) -> None:
        """Write a result; what cannot be written now is a matter of the next `save`."""
        if self.is_dirty:
            return
        place = run.place_of(result)
        try:
            await self._append([("result", {"result": plain(result), "place": place})])
        except StoreError:
            logger.exception("a result was not written; it is tried again with all that follows")
        else:
            self._results[place] = result

    async def save_end(self, run: Run, result: Result) -> None:
        """Write what is left of a run, and that it has ended. Raises StoreError."""
        head = plain(attrs.evolve(self._session, messages=()))
        data = {"request_id": result.request_id, "status": result.status, "session": head}
        await self._save(run, [("run", data)])
        self._written = self._session.messages

    async def save_session(self) -> None:
        """Put the session as it is in the place of all that was written. Raises StoreError."""
        await self._rewrite(self._session, [])
        self._written = self._session.messages

    async def _save(self, run: Run, more: list[tuple[str, Any]]) -> None:
        history, written = run.history, self._written
        has_grown = len(history) >= len(written) and (not written or history.messages[len(written) - 1] is written[-1])
        if history.rewrites != self._rewrites or not has_grown:
            self._rewrites, self.is_dirty = history.rewrites, True
        if self.is_dirty:
            session = attrs.evolve(self._session, messages=history.messages, usage=run.usage_of_session)
            await self._rewrite(session, more)
        else:
            new = history.messages[len(written) :]
            records = [self._entry(message, run.usage_of_session) for message in new] + more
            if records:
                await self._append(records)
        self._written = history.messages

    def _entry(self, message: Message, usage: Usage) -> tuple[str, Any]:
        results, self._results = self._results, {}
        if results and results == dict(enumerate(message.tool_results)):
            rest = Message("user", [block for block in message.content if not isinstance(block, ToolResult)])
            return "answered", {"rest": plain(rest), "epoch": message.epoch}
        return "message", {"message": plain(message), "usage": plain(usage)}

    async def _append(self, entries: list[tuple[str, Any]]) -> None:
        acknowledged = False
        records = self._numbered(entries)
        try:
            with self._watching():
                await self._store.append(self._session.id, records)
            acknowledged = True
        finally:
            self.is_dirty = self.is_dirty or not acknowledged

    async def _rewrite(self, session: Session, more: list[tuple[str, Any]]) -> None:
        self.is_dirty = True
        records = self._numbered([("snapshot", {"session": plain(session)}), *more])
        with self._watching():
            await self._store.rewrite(self._session.id, records)
        self.is_dirty = False
        self._results.clear()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            self.broken = error
            raise

    def _numbered(self, entries: list[tuple[str, Any]]) -> list[Record]:
        first = self._seq + 1
        self._seq += len(entries)
        return [Record(seq, kind, data) for seq, (kind, data) in enumerate(entries, first)]


async def open_journal(store: SessionStore, session: Session) -> tuple[StoreJournal, Session]:
    """
    Read a session back, if the store has it; else it is the one given. Returns it with the journal that goes on with it.

    Raises:
        StoreError: The store cannot be read, or has what is no session of ours.
    """
    records = await store.load(session.id)
    if not records:
        return StoreJournal(store, session, 0, is_dirty=True), session
    restored, repaired = _read(session.id, records)
    return StoreJournal(store, restored, records[-1].seq, is_dirty=repaired), restored


async def read_session(store: SessionStore, session_id: str) -> Session | None:
    """
    Return a session as the store has it; None if it does not know it.

    Raises:
        StoreError: The store cannot be read, or has what is no session of ours.
    """
    records = await store.load(session_id)
    return _read(session_id, records)[0] if records else None


async def write_session(store: SessionStore, session: Session) -> None:
    """Put a session in the place of all that the store has of it, while no agent writes it. Raises StoreError."""
    records = await store.load(session.id)
    seq = records[-1].seq if records else 0
    await store.rewrite(session.id, [Record(seq + 1, "snapshot", {"session": plain(session)})])


def _read(session_id: str, records: Sequence[Record]) -> tuple[Session, bool]:
    try:
        return restore(records)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"the store has records of session {session_id!r} that cannot be read: {error}; "
            "move them away, or give another session_id"
        ) from error


def restore(records: Sequence[Record]) -> tuple[Session, bool]:
    """Make a session of its records. Returns it, and whether calls had to be answered that were cut by the end of a process."""
    fold = _Fold()
    for record in records:
        fold.take(record)
    return fold.finish()


class _Fold:
    def __init__(self) -> None:
        self._session: Session | None = None
        self._messages: list[Message] = []
        self._results: dict[int, ToolResult] = {}  # by the places of their calls

    def take(self, record: Record) -> None:
        data = record.data
        match record.kind:
            case "snapshot":
                self._session = load(data["session"], Session)
                self._messages = list(self._session.messages)
                self._results.clear()
            case "message":
                self._messages.append(load(data["message"], Message))
                self._known.usage = load(data["usage"], Usage)
                self._results.clear()
            case "result":
                result = load(data["result"], ToolResult)
                if (place := self._place_of(result, data.get("place"))) is not None:
                    self._results[place] = result
            case "answered":
                rest = load({**data["rest"], "epoch": data["epoch"]}, Message)
                self._answer(*rest.content, epoch=rest.epoch)
            case "run":
                head = load(data["session"], Session)
                for name in ("usage", "metadata", "prefix", "updated_at"):
                    setattr(self._known, name, getattr(head, name))
            case _:
                logger.warning("record %d of a session is of a kind that is not known here: left out", record.seq)

    def finish(self) -> tuple[Session, bool]:
        is_cut = bool(self._open_calls)
        if is_cut:
            self._answer()
        self._known.messages = tuple(self._messages)
        return self._known, is_cut

    @property
    def _known(self) -> Session:
        if self._session is None:
            raise ValueError("they do not begin with a snapshot")
        return self._session

    @property
    def _open_calls(self) -> list[str]:
        last = self._messages[-1] if self._messages else None
        return [] if last is None or last.role == "user" else [call.id for call in last.tool_uses]

    def _place_of(self, result: ToolResult, noted: object) -> int | None:
        """Return which of the open calls it is the result of. Logs of earlier versions do not say: then it is one of its id."""
        places = [place for place, call in enumerate(self._open_calls) if call == result.tool_use_id]
        if noted in places:
            return places[places.index(noted)]
        return next((place for place in places if place not in self._results), None)

    def _answer(self, *rest: Block, epoch: int = 0) -> None:
        """Add the results of the calls of the last answer; a call without one was cut."""
        results = [
            self._results.get(place, ToolResult(call, RESTARTED, is_error=True, outcome="cancelled"))
            for place, call in enumerate(self._open_calls)
        ]
        self._messages.append(attrs.evolve(Message.user(*results, *rest), epoch=epoch))
        self._results.clear()
