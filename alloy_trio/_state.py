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
        first, batch = self._number(events)
        if batch:
            if self._on_event is not None:
                async with self._order:
                    for envelope in batch:
                        await self._call_back(self._on_event, envelope)
            if self._sink is not None:
                await self._sink(batch)
        return first

    def emit_nowait(self, *events: Event) -> int:
        """Tell an `on_event` that is no async function, and nobody else, without waiting: for a run that is being cancelled."""
        first, batch = self._number(events)
        if self._on_event is not None and not inspect.iscoroutinefunction(self._on_event):
            for envelope in batch:
                answer = self._safely(self._on_event, envelope)
                if inspect.iscoroutine(answer):
                    answer.close()
        return first

    def _number(self, events: tuple[Event, ...]) -> tuple[int, tuple[Envelope, ...]]:
        first = self._seq + 1
        self._seq += len(events)
        if not (events and (self._on_event or self._sink)):
            return first, ()
        now = time.time()
        return first, tuple(
            Envelope(seq=seq, correlation_id=self.correlation_id, turn=self.turn, ts=now, event=event)
            for seq, event in enumerate(events, first)
        )

    async def _call_back(self, on_event: OnEvent, envelope: Envelope) -> None:
        try:
            answer = on_event(envelope)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("on_event raised; the run goes on")

    @staticmethod
    def _safely(on_event: OnEvent, envelope: Envelope) -> object:
        try:
            return on_event(envelope)
        except Exception:
            logger.exception("on_event raised; the run goes on")
            return None


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
    outcome: Result | None = None  # once it is settled how the run ended, if only the last events are not taken yet

    def commit(self) -> None:
        """Let the session say what the run has done so far. The history is valid whenever this is called."""
        state = {key: self.metadata[key] for key in ("provider_state",) if key in self.metadata}
        self.session.update(self.messages, self.prior_usage + self.usage, state)

    def close_batch(self) -> None:
        """Put the results of the batch that is over into the history."""
        if self.batch is not None:
            self.messages.append(Message.user(*self.batch.results()))
            self.batches.append(self.batch)
            self.batch = None

    def cut(self, outcome: Outcome, provider: str, model: str | None, origin: str | None) -> Batch | None:
        """
        Reduce the turn under way to what can be kept, as the table says. Does nothing between turns.

        Returns the batch that was cut, whose calls have not all been told of.
        """
        batch = self.batch
        if self.recorder is not None:
            partial = self.recorder.partial(provider, model, origin)
            if partial is not None:
                self.messages.append(partial)
            self.recorder = None
        if batch is not None:
            batch.cut(outcome)
            self.close_batch()
        self.commit()
        return batch

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
