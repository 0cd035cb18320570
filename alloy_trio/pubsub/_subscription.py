"""
The receiving end: a bounded buffer, and what happens when it is full.

    room in the buffer      the message is appended, and one who waits is woken
    full, drop_oldest       the oldest goes, the message is appended
    full, drop_newest       the message goes
    full, disconnect        the message goes, and all that would have come after it

A loss is a number and takes no room. `Lost(n)` goes before what is buffered, so whoever is behind learns of it at once; and since
it is the next thing read after a loss, the buffer is full at that moment: the gap is right there with `drop_oldest`, and `buffer`
messages later with `drop_newest`. `Lagged(n)` comes behind what is buffered, for nothing follows it.

It reads like a memory channel of Trio and is not made of one: a full channel says so by an exception, has nowhere to note a
loss, and takes four times as long for a subscriber that lags. Nothing is taken out of the buffer before the last checkpoint of
`receive`, so a cancel loses nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import attrs
import trio

from .._errors import AlloyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


Policy: TypeAlias = Literal["drop_oldest", "drop_newest", "disconnect"]


@attrs.frozen
class Lost:
    """
    Received in the place of messages for which there was no room.

    It is the next thing received after a loss. With `drop_oldest` they would have come now, with `drop_newest` after as many
    messages as the buffer holds.

    Attributes:
        count: How many they were.
    """

    count: int


class Lagged(AlloyError):
    """
    A subscriber with the policy `disconnect` was too slow: its buffer was full, and what was in it has been read.

    Attributes:
        count: How many messages it did not get.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count: int = count

    def __str__(self) -> str:
        return (
            f"the subscriber was too slow and missed {self.count} messages; subscribe again, with a larger buffer=, "
            "or with policy='drop_oldest' to go on after a loss"
        )


@attrs.frozen(kw_only=True)
class SubscriptionStatistics:
    """
    How a subscription stands.

    Attributes:
        buffered: Messages that wait to be received.
        max_buffered: How many there may be.
        lost: Messages that it did not get, so far.
        tasks_waiting: Tasks that wait in `receive`.
    """

    buffered: int
    max_buffered: int
    lost: int
    tasks_waiting: int


class Subscription(trio.abc.ReceiveChannel[Any]):
    """
    What `PubSub.subscribe` returns: receives messages, as they were published, until it is left or closed.

    Several tasks may receive from it; each message goes to one of them. The type of messages is `Any`: whatever was published.

    Attributes:
        patterns: What it is subscribed to.
        topic: The topic of what was received last; None for a `Lost`, and at first. Ask before the next checkpoint if other
            tasks receive too.
    """

    __slots__ = (  # there may be ten thousand
        "__weakref__",
        "_buffer",
        "_has_ended",
        "_is_closed",
        "_leave",
        "_lost",
        "_policy",
        "_readers",
        "_room",
        "_size",
        "_untold",
        "patterns",
        "topic",
    )

    def __init__(
        self, patterns: tuple[str, ...], size: int, policy: Policy, leave: Callable[[Subscription], None]
    ) -> None:
        self.patterns: tuple[str, ...] = patterns
        self.topic: str | None = None
        self._buffer: deque[tuple[str, Any]] = deque()
        self._size = size
        self._room = size  # 0 once nothing more is taken
        self._policy = policy
        self._leave = leave
        self._has_ended = False  # closed, or `Lagged` has been raised: nothing is counted any more
        self._is_closed = False
        self._lost = 0
        self._untold = 0  # those of the lost that nobody has been told of
        self._readers = trio.lowlevel.ParkingLot()

    def put(self, item: tuple[str, Any]) -> bool:
        """Take a topic and a message, for `PubSub` alone to call; return whether it is among what will be received."""
        if len(self._buffer) < self._room:
            self._buffer.append(item)
            if self._readers:
                self._readers.unpark()
            return True
        return not self._has_ended and self._lose(item)

    def _lose(self, item: tuple[str, Any]) -> bool:
        self._lost += 1
        self._untold += 1
        # There is one thing more to receive, the loss, so one more may wake: the first has not run yet.
        self._readers.unpark()
        if self._policy == "drop_oldest":
            self._buffer.popleft()
            self._buffer.append(item)
            return True
        if self._policy == "disconnect":
            self._room = 0
        return False

    async def receive(self) -> Any:
        """
        Wait for the next message, or for a `Lost` where some were lost. A cancel loses none.

        Raises:
            Lagged: The policy is `disconnect`, and the buffer was full. It is raised again by every further call.
            trio.ClosedResourceError: The subscription has been closed, maybe meanwhile.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._has_news():
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not self._has_news():
            await self._readers.park()
        return self.receive_nowait()

    def receive_nowait(self) -> Any:
        """
        Return what `receive` would, if it is there.

        Raises:
            trio.WouldBlock: Nothing is.
            Lagged: As in `receive`.
            trio.ClosedResourceError: As in `receive`.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("this subscription has been closed, or its `with` has been left")
        if self._untold and self._policy != "disconnect":
            lost, self._untold, self.topic = Lost(self._untold), 0, None
            return lost
        if self._buffer:
            self.topic, message = self._buffer.popleft()
            return message
        if self._untold:
            self._end()
            raise Lagged(self._untold)
        raise trio.WouldBlock

    def _has_news(self) -> bool:
        return bool(self._buffer or self._untold or self._is_closed)

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """End the subscription. Whoever iterates comes to an end; what was buffered is gone. May be called again."""
        self._is_closed = True
        self._buffer.clear()
        self._end()

    def _end(self) -> None:
        self._has_ended = True
        self._room = 0
        self._leave(self)
        self._readers.unpark_all()

    async def aclose(self) -> None:
        """Do the same as `close`, as Trio's resources do."""
        self.close()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> SubscriptionStatistics:
        """Return how it stands."""
        return SubscriptionStatistics(
            buffered=len(self._buffer),
            max_buffered=self._size,
            lost=self._lost,
            tasks_waiting=len(self._readers),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Subscription to {', '.join(self.patterns)}: {len(self._buffer)} of {self._size} buffered, {self._lost} lost>"
