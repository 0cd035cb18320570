"""A mailbox: a first-in-first-out queue over a memory channel, from which what waits can be taken back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

T = TypeVar("T", bound="Hashable")

_SLACK = 16  # items taken back that may lie about in the channel besides as many as wait


class Mailbox(Generic[T]):
    """
    Items that wait for one reader. The bound is the sender's: whoever puts something in looks at `len` first.

    What is taken back stays in the channel until the reader comes by, or until more of these lie there than items that wait.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](math.inf)
        self._waiting: dict[T, None] = {}
        self._stale = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._waiting))

    def put(self, item: T) -> None:
        """Add an item behind all others."""
        self._waiting[item] = None
        self._send.send_nowait(item)

    def take_back(self, item: T) -> bool:
        """Remove an item. Returns whether it was still waiting."""
        if item not in self._waiting:
            return False
        del self._waiting[item]
        self._stale += 1
        if self._stale > len(self._waiting) + _SLACK:
            self._sweep()
        return True

    def put_back(self, item: T) -> None:
        """Add an item that was taken ahead of all others again."""
        self._waiting = {item: None, **self._waiting}
        self._sweep()

    async def take(self) -> T:
        """Wait for the first item, and remove it. A cancel leaves it where it is."""
        while True:
            item = await self._receive.receive()
            if item in self._waiting:
                del self._waiting[item]
                return item
            self._stale -= 1

    def _sweep(self) -> None:
        """Take all out of the channel, and put those in that wait."""
        for _ in range(self._receive.statistics().current_buffer_used):
            self._receive.receive_nowait()
        for each in self._waiting:
            self._send.send_nowait(each)
        self._stale = 0
