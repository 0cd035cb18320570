"""Topics at the other end, from this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .._background import Background


class RemoteSubscription(trio.abc.ReceiveChannel[Any]):
    """
    What `Remote.subscribe` gives: receives what is published at the other end, until it is left.

    Whoever iterates is told of a failure, and never sees a normal end.
    """

    def __init__(self, messages: trio.MemoryReceiveChannel[Any], life: Background) -> None:
        self._messages = messages
        self._life = life

    async def receive(self) -> Any:
        """
        Wait for the next message.

        Raises:
            ConnectionLost: The connection was lost, and did not come back.
            AlloyError: What the server says.
        """
        try:
            return await self._messages.receive()
        except trio.EndOfChannel:
            if self._life.error is None:
                raise
            error, self._life.error = self._life.error, None  # raised once
            raise error from None

    async def aclose(self) -> None:
        """End it, as leaving it does."""
        self._messages.close()
        self._life.cancel()
        await trio.lowlevel.checkpoint()
