"""Who is told of what happens in a run, in order, and by which number."""

from __future__ import annotations

import inspect
import logging
import time
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from ._events import Envelope
from ._instruments import is_on, tell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._events import Event

logger = logging.getLogger("alloy_trio")

OnEvent: TypeAlias = "Callable[[Envelope], object]"


class Numbered:
    """
    The events of one read, in order, with what their envelopes have. An envelope is made for whoever wants it.

    Attributes:
        events: The events.
        first: The number of the first one.
    """

    __slots__ = ("_correlation_id", "_time", "_turn", "events", "first")

    def __init__(self, events: tuple[Event, ...], first: int, correlation_id: str, turn: int) -> None:
        self.events: tuple[Event, ...] = events
        self.first: int = first
        self._correlation_id = correlation_id
        self._turn = turn
        self._time = time.time()

    def envelope(self, place: int) -> Envelope:
        """Return the envelope of one of the events."""
        return Envelope(
            seq=self.first + place,
            correlation_id=self._correlation_id,
            turn=self._turn,
            ts=self._time,
            event=self.events[place],
        )

    def envelopes(self) -> list[Envelope]:
        """Return those of all of them."""
        return [self.envelope(place) for place in range(len(self.events))]


class EventBatch(Protocol):
    """The events of one read, as `Numbered` has them, wherever they come from."""

    @property
    def events(self) -> tuple[Event, ...]:
        """The events."""
        ...

    def envelope(self, place: int) -> Envelope:
        """Return the envelope of one of them."""
        ...

    def envelopes(self) -> list[Envelope]:
        """Return those of all of them."""
        ...


class Sink(Protocol):
    """Takes the events of one read, and returns when they have been taken."""

    def __call__(self, batch: EventBatch, /) -> Awaitable[None]:
        """Hand over `batch`."""
        ...


class Emitter:
    """Numbers the events of a run and hands them to whoever listens, in order."""

    def __init__(self, correlation_id: str, on_event: OnEvent | None, sink: Sink | None) -> None:
        self.correlation_id = correlation_id
        self.turn = 0
        self.has_ended: bool = False  # the last events have been emitted
        self._seq = 0
        self._on_event = on_event
        self._sink = sink
        # Two tools that end at once must not overtake each other in an async callback; a channel keeps order by itself.
        self._order = None if on_event is None else trio.StrictFIFOLock()

    @property
    def is_heard(self) -> bool:
        """Whether anybody would hear of an event."""
        return self._on_event is not None or self._sink is not None or is_on()

    def unheard(self, count: int) -> int | None:
        """Number events that nobody would hear, so that they need not be made; None: somebody would."""
        if self.is_heard:
            return None
        first = self._seq + 1
        self._seq += count
        return first

    async def emit(self, *events: Event) -> int:
        """Hand over `events` and return when all listeners have had them; gives the number of the first."""
        first, batch = self.number(*events)
        await self.hand_over(batch)
        return first

    async def hand_over(self, batch: Numbered | None) -> None:
        """
        Hand over numbered events, and return when all listeners have had them.

        An `on_event` that is no async function has had them before anything can cut this.
        """
        if batch is None:
            return
        if self._on_event is not None and self._order is not None:
            try:
                self._order.acquire_nowait()
            except trio.WouldBlock:
                await self._order.acquire()
            try:
                for envelope in batch.envelopes():
                    await self._call_back(self._on_event, envelope)
            finally:
                self._order.release()
        if self._sink is not None:
            await self._sink(batch)

    async def emit_last(self, *events: Event) -> int:
        """Do the same with the last events of a run: a cancel that comes now keeps none of them from a sync `on_event`."""
        first, batch = self.number(*events)
        self.has_ended = True
        if self._on_event is not None and batch is not None:
            for envelope in batch.envelopes():
                await self._call_back(self._on_event, envelope)
        if batch is not None and self._sink is not None:
            await self._sink(batch)
        return first

    def emit_nowait(self, *events: Event) -> int:
        """Tell an `on_event` that is no async function, and nobody else, without waiting: for a run that is being cancelled."""
        first, batch = self.number(*events)
        self.has_ended = True
        if batch is not None and self._on_event is not None and not inspect.iscoroutinefunction(self._on_event):
            for envelope in batch.envelopes():
                answer = self._safely(self._on_event, envelope)
                if inspect.iscoroutine(answer):
                    answer.close()
        return first

    def number(self, *events: Event) -> tuple[int, Numbered | None]:
        """Number events; gives the number of the first, and what is to be handed over, if anybody listens."""
        first = self._seq + 1
        self._seq += len(events)
        if not events or not self.is_heard:
            return first, None
        batch = Numbered(events, first, self.correlation_id, self.turn)
        if is_on():
            for envelope in batch.envelopes():
                tell(envelope)
        return first, batch

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
