"""
A run while it is under way: the history so far, and who is told of what happens.

A turn enters the history whole, or reduced, once, before it is ever sent. What a cut leaves of it:

    cut while                       kept                                         dropped
    streaming                       the text, right-stripped, as one block,      signed thinking, tool calls, server-tool
                                    marked `interrupted`; reasoning that the     blocks, annotations, item ids, opaque blocks
                                    chat wire wants back
    streaming, no text yet          nothing                                      all
    tools running                   the answer verbatim; one result per call     nothing
    between turns                   everything                                   nothing

Each row is a 400 of some provider avoided: a final thinking block, blank text, half a tool call, a call without its result,
a reasoning item without its follower. So the history is valid for every provider at the moment the cut returns.
"""

from __future__ import annotations

import inspect
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import attrs
import trio

from ._events import BlockEnd, Envelope, TextDelta
from ._messages import Message, Outcome, Text, Thinking
from ._result import Result, Status
from ._session import Session
from ._usage import Usage
from .tools._executor import Batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._events import Event, ProviderEvent

logger = logging.getLogger("alloy_trio")

OnEvent: TypeAlias = "Callable[[Envelope], object]"


class Sink(Protocol):
    """Takes the envelopes of one read, in order, and returns when they have been taken."""

    def __call__(self, batch: tuple[Envelope, ...], /) -> Awaitable[None]:
        """Hand over `batch`."""
        ...


class Emitter:
    """Numbers the events of a run and hands them to whoever listens, in order."""

    def __init__(self, correlation_id: str, on_event: OnEvent | None, sink: Sink | None) -> None:
        self.correlation_id = correlation_id
        self.turn = 0
        self._seq = 0
        self._on_event = on_event
        self._sink = sink
        # Two tools that end at once must not overtake each other in an async callback; a channel keeps order by itself.
        self._order = trio.StrictFIFOLock()

    async def emit(self, *events: Event) -> int:
        """Hand over `events` and return when all listeners have had them; gives the number of the first."""
        first = self._seq + 1
        self._seq += len(events)
        if events and (self._on_event or self._sink):
            now = time.time()
            batch = tuple(
                Envelope(seq=seq, correlation_id=self.correlation_id, turn=self.turn, ts=now, event=event)
                for seq, event in enumerate(events, first)
            )
            if self._on_event is not None:
                async with self._order:
                    await self._call_back(self._on_event, batch)
            if self._sink is not None:
                await self._sink(batch)
        return first

    async def _call_back(self, on_event: OnEvent, batch: tuple[Envelope, ...]) -> None:
        for envelope in batch:
            try:
                answer = on_event(envelope)
                if inspect.isawaitable(answer):
                    await answer
            except Exception:
                logger.exception("on_event raised; the run goes on")


class Recorder:
    """What has arrived of the answer in flight: enough to keep what can be kept, should it be cut."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[Thinking] = []

    def take(self, events: tuple[ProviderEvent, ...]) -> None:
        """Note the events of one read."""
        for event in events:
            if isinstance(event, TextDelta):
                self._text.append(event.text)
            elif isinstance(event, BlockEnd) and isinstance(event.block, Thinking) and event.block.is_plain:
                self._reasoning.append(event.block)

    def partial(self, provider: str, model: str | None, origin: str | None) -> Message | None:
        """Return the message that is kept of a cut answer, or None where nothing is."""
        text = "".join(self._text).rstrip()
        if not text:
            return None
        blocks = (*self._reasoning, Text(text))
        return Message("assistant", blocks, provider=provider, model=model, origin=origin, interrupted=True)


@attrs.define(kw_only=True)
class RunState:
    """The state of one run; only the loop changes it."""

    messages: list[Message]
    session: Session
    emitter: Emitter
    prior_usage: Usage
    usage: Usage = attrs.field(factory=Usage)
    turns: int = 0
    stop_reason: str | None = None
    metadata: dict[str, Any] = attrs.field(factory=dict)
    recorder: Recorder | None = None  # while an answer streams
    batch: Batch | None = None  # while tools run
    batches: list[Batch] = attrs.field(factory=list)  # those that are over
    ended: tuple[Status, Exception | None] | None = None  # once that is settled, and only the last events are not taken

    def commit(self) -> None:
        """Let the session say what the run has done so far. The history is valid whenever this is called."""
        self.session.update(self.messages, self.prior_usage + self.usage, self.metadata)

    def close_batch(self) -> None:
        """Put the results of the batch that is over into the history."""
        if self.batch is not None:
            self.messages.append(Message.user(*self.batch.results()))
            self.batches.append(self.batch)
            self.batch = None

    def cut(self, outcome: Outcome, provider: str, model: str | None, origin: str | None) -> None:
        """Reduce the turn under way to what can be kept, as the table says. Does nothing between turns."""
        if self.recorder is not None:
            partial = self.recorder.partial(provider, model, origin)
            if partial is not None:
                self.messages.append(partial)
            self.recorder = None
        if self.batch is not None:
            self.batch.cut(outcome)
            self.close_batch()
        self.commit()

    async def announce_cut(self) -> None:
        """Emit the `ToolEnd` of calls that a deadline has cut."""
        for batch in self.batches[-1:]:
            await batch.announce()

    def result(self, status: Status, error: Exception | None = None) -> Result:
        """Return what the run has done so far as a result."""
        answers = [message for message in self.messages if message.role == "assistant"]
        return Result(
            text=answers[-1].text if answers else "",
            messages=tuple(self.messages),
            usage=self.usage,
            tool_calls=tuple(record for batch in self.batches for record in batch.records()),
            status=status,
            turns=self.turns,
            error=error,
            stop_reason=self.stop_reason,
            metadata=dict(self.metadata),
        )
