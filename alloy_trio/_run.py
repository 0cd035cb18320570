"""The doors to one run: `run`, `run_sync`, and `stream` with its `EventStream`."""

from __future__ import annotations

import signal
import threading
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

import trio

from ._background import Background, check_trio
from ._config import configure
from ._errors import RequestCancelled
from ._loop import begin, question, run_loop
from ._result import OutputT, Result
from ._util import Discreet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Unpack

    from ._config import Config
    from ._emitter import EventBatch, Sink
    from ._events import Envelope, Event
    from ._messages import Message
    from ._options import PlainRunOptions, RunOptions
    from ._state import Run

T = TypeVar("T")
TakenT = TypeVar("TakenT")


@overload
async def run(
    prompt: str | Message | None = None, *, output_type: type[OutputT], **options: Unpack[PlainRunOptions]
) -> Result[OutputT]: ...


@overload
async def run(prompt: str | Message | None = None, **options: Unpack[RunOptions]) -> Result: ...


async def run(prompt: str | Message | None = None, **options: Any) -> Result:
    """
    Send a prompt to a model, run the tools it asks for, loop until it is done.

    When it returns or raises, nothing of the run is running any more; only a sync tool's thread that did not end within
    `cancel_grace` may be left, and its call's outcome says `abandoned`. A cancel of the caller is `trio.Cancelled`,
    untouched; what was done until then is in the `Session` given as `session=`.

    Args:
        prompt: What to say; None goes on with `messages=` or `session=` as they are.
        **options: See `RunOptions`; `provider=` is needed.

    Raises:
        InvalidOption: Something about the options; nothing was sent.
        ProviderError: The provider failed, refused, or was cut inside a tool call. `.result` has what was done.
        RunTimeout: `timeout=` passed. `.result` has what was done.
        UnknownPrice: There is a budget, and what a model costs is not known; nothing was sent.
        RuntimeError: It is not Trio that runs the caller, but asyncio for instance.
    """
    options = Discreet(options)  # of a traceback that shows variables, this frame is a part
    config = configure(options)
    check_trio()
    return await run_loop(begin(config, prompt, streaming=False))


@overload
def run_sync(
    prompt: str | Message | None = None, *, output_type: type[OutputT], **options: Unpack[PlainRunOptions]
) -> Result[OutputT]: ...


@overload
def run_sync(prompt: str | Message | None = None, **options: Unpack[RunOptions]) -> Result: ...


def run_sync(prompt: str | Message | None = None, **options: Any) -> Result:
    """
    Do what `run` does, from a program that is not async: it starts a Trio loop of its own.

    Ctrl-C cancels the run as a whole, lets it clean up, and raises `KeyboardInterrupt` then.

    Raises:
        RuntimeError: Called inside a running Trio loop: there, `await run(…)`.
    """
    options = Discreet(options)
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("run_sync starts a Trio loop of its own, and one runs here already: await run(…) instead")

    async def main() -> Result:
        return await run(prompt, **options)

    return trio.run(interruptible, main)


async def interruptible(main: Callable[[], Awaitable[T]]) -> T:
    """
    Call `main`; on SIGINT cancel it, and raise KeyboardInterrupt once it has cleaned up.

    Left to itself, Python would raise KeyboardInterrupt in whatever line runs, and tear a cleanup in two.
    """
    if threading.current_thread() is not threading.main_thread():
        return await main()  # no signals here
    with trio.open_signal_receiver(signal.SIGINT) as signals, trio.CancelScope() as scope:

        async def watch() -> None:
            async for _ in signals:
                scope.cancel()

        async with Background(watch):
            return await main()
    raise KeyboardInterrupt


@overload
def stream(
    prompt: str | Message | None = None, *, output_type: type[OutputT], **options: Unpack[PlainRunOptions]
) -> EventStream[OutputT]: ...


@overload
def stream(prompt: str | Message | None = None, **options: Unpack[RunOptions]) -> EventStream: ...


def stream(prompt: str | Message | None = None, **options: Any) -> EventStream:
    """
    Do what `run` does, and see it happen.

        async with stream(…) as events:
            async for event in events: …

    Takes and raises what `run` does: a wrong option at once, a failed run out of the `async for`.
    """
    options = Discreet(options)
    return EventStream(_RunSource(configure(options), prompt))


class Source(Protocol):
    """Where the events of a stream come from, and how it ends."""

    def begin(self, sink: Sink) -> None:
        """Make ready to hand events to `sink`; called once, as the stream is entered."""
        ...

    async def drive(self) -> object:
        """Go on to the end. What it raises is not looked at: see `failure`."""
        ...

    def outcome(self) -> Result | None:
        """Return the result, once it is there."""
        ...

    def failure(self) -> Exception | None:
        """Return what is to be raised, once it is over."""
        ...

    def end(self) -> None:
        """The stream has been left."""
        ...


class _RunSource:
    """A run of one's own."""

    def __init__(self, config: Config, prompt: str | Message | None) -> None:
        question(config, prompt)  # raises what is wrong with it now, not when the stream is entered
        self._config = config
        self._prompt = prompt
        self._run: Run | None = None

    def begin(self, sink: Sink) -> None:
        self._run = begin(self._config, self._prompt, sink, streaming=True)

    async def drive(self) -> None:
        assert self._run is not None
        await run_loop(self._run)

    def outcome(self) -> Result | None:
        return self._run.outcome if self._run is not None and self._run.emitter.has_ended else None

    def failure(self) -> Exception | None:
        result = self.outcome()
        return None if result is None or result.status == "halted" else result.error  # why it was halted is no failure

    def end(self) -> None:
        pass


class EventStream(Generic[OutputT]):
    """
    The events of a run, to iterate over once, inside `async with`.

    The run goes on only as fast as its events are taken. Leaving the body early cancels it; leaving returns once nothing of it
    runs any more. An exception of the body leaves as it came; if the run has failed besides, unseen, a note on it says so.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._send, self._receive = trio.open_memory_channel["EventBatch"](0)
        self._task = Background(self._drive)
        self._has_begun = False
        self._ready: deque[tuple[EventBatch, int]] = deque()  # batches, with the places of their events
        self._raised = False

    async def _drive(self) -> None:
        with self._send:
            await self._source.drive()

    def _check_begun(self) -> None:
        if not self._has_begun:
            raise RuntimeError("the run has not started: use it inside `async with stream(…) as events:`")

    @property
    def result(self) -> Result[OutputT]:
        """
        The run's result, once it has ended, however it did. That of a run left early or cancelled has status `cancelled`.

        Raises:
            RuntimeError: The run is not over.
        """
        self._check_begun()
        outcome = self._source.outcome()
        if outcome is None:
            raise RuntimeError("the run is not over: take the result after the `async for`, or after the `async with`")
        return outcome

    def cancel(self) -> None:
        """
        Cancel the run.

        Whoever iterates gets `RequestCancelled`, with `.result`. Leaving the `async with` waits until nothing runs.
        """
        self._task.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._ready and not await self._wait():
            raise StopAsyncIteration
        batch, place = self._ready.popleft()
        return batch.events[place]

    def envelopes(self) -> AsyncIterator[Envelope]:
        """Iterate over the same events in their envelopes, with number, turn and time; instead of over the stream itself."""
        return _Envelopes(self._next_envelope)

    def batches(self) -> AsyncIterator[tuple[Envelope, ...]]:
        """Iterate over the same envelopes, those that came with one read together: for whoever passes them on."""
        return _Envelopes(self._next_batch)

    async def _next_batch(self) -> tuple[Envelope, ...] | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._ready and not await self._wait():
            return None
        batch = tuple(batch.envelope(place) for batch, place in self._ready)
        self._ready.clear()
        return batch

    async def _next_envelope(self) -> Envelope | None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._ready and not await self._wait():
            return None
        batch, place = self._ready.popleft()
        return batch.envelope(place)

    async def _wait(self) -> bool:
        """Wait until there is an event; returns whether there will be one."""
        self._check_begun()
        try:
            batch = await _receive(self._receive)
        except trio.EndOfChannel:
            await self._end()
            return False
        self._ready.extend(zip(repeat(batch), range(len(batch.events)), strict=False))
        return True

    async def _take(self, batch: EventBatch) -> None:
        """Take a batch, and return once the one who iterates has it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:  # somebody who waits has it at once: without a step of the loop for it, which is half of what a delta costs
            self._send.send_nowait(batch)
        except trio.WouldBlock:
            await self._send.send(batch)

    async def _end(self) -> None:
        """The run is over: return if it ended well, raise, once, how it did not."""
        if self.result.status == "cancelled":
            # By a cancel that this task is under as well; or else, to this task, by somebody.
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._raised:
            return
        self._raised = True
        if (failure := self._source.failure()) is not None:
            raise failure
        if self.result.status == "cancelled":
            error = RequestCancelled("the run was cancelled")
            error.result = self.result
            raise error

    async def __aenter__(self) -> Self:
        if self._has_begun:
            raise RuntimeError("a stream runs once: call stream(…) again for another run")
        self._source.begin(self._take)
        self._has_begun = True
        await self._task.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._task.__aexit__(kind, error, traceback)
        finally:
            self._receive.close()
            self._source.end()
        failure = None if self._raised else self._source.failure()
        self._raised = True
        if failure is not None and error is None:
            raise failure
        if failure is not None and isinstance(error, Exception):
            error.add_note(f"The run of this stream had failed as well: {type(failure).__name__}: {failure}")


async def _receive(channel: trio.MemoryReceiveChannel[EventBatch]) -> EventBatch:
    """Receive what waits there already without a step of the loop, as it was sent."""
    try:
        return channel.receive_nowait()
    except trio.WouldBlock:
        return await channel.receive()


class _Envelopes(Generic[TakenT]):
    def __init__(self, take: Callable[[], Awaitable[TakenT | None]]) -> None:
        self._take = take

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TakenT:
        taken = await self._take()
        if taken is None:
            raise StopAsyncIteration
        return taken
