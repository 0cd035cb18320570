"""
One WebSocket connection, from either end: frames of JSON, kept alive by pings.

What is sent goes through a task of its own: a frame that is cut in the middle by the cancel of one request would be the end of
all others. Who sends waits until the frame before has gone; so a peer that reads slowly slows down those who send to it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from trio_websocket import ConnectionClosed

from .._util import without_surrogates
from ._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_websocket import WebSocketConnection

    from .._util import JSONObject

PROTOCOL: Final = "alloy.v1"
"""The WebSocket subprotocol: its number is that of the protocol."""

MALFORMED: Final = 1007
BINARY: Final = 1003
GOING_AWAY: Final = 1001
TOO_LARGE: Final = 1009

_DOUBT: Final = 1.0  # seconds in which most of what is cancelled has ended
_GOODBYE: Final = 0.5  # seconds that a peer has to answer a goodbye


def _encoded(frame: JSONObject) -> bytes:
    """Return a frame as it is sent; half a surrogate pair, which a tool may have read from anywhere, as U+FFFD."""
    try:
        try:
            return msgspec.json.encode(frame)
        except UnicodeEncodeError:
            return msgspec.json.encode(without_surrogates(frame))
    except Exception as error:  # values of somebody's own
        raise ProtocolError(f"this makes no JSON: {error}") from error


async def until_gone(fn: Callable[..., Awaitable[None]], nursery: trio.Nursery, *args: float) -> None:
    """Do what lasts as long as the connection does; when it ends, so does the nursery."""
    await fn(*args)
    nursery.cancel_scope.cancel()


class Link:
    """
    A connection whose handshake is over.

    Args:
        socket: The connection.
        max_message_size: Bytes that a frame of ours may have; the library bounds those of theirs.
    """

    def __init__(self, socket: WebSocketConnection, *, max_message_size: int) -> None:
        self._socket = socket
        self.max_message_size = max_message_size
        self._outbox, self._written = trio.open_memory_channel[str](0)
        self._is_doubted = trio.Event()

    async def send(self, frame: JSONObject) -> None:
        """
        Hand over a frame, and return once it is its turn. A cancel before that sends nothing of it.

        Raises:
            ProtocolError: It is larger than the other end takes, or makes no JSON.
            trio.BrokenResourceError: The connection is gone.
        """
        text = _encoded(frame)
        if len(text) > self.max_message_size:
            raise ProtocolError(
                f"this would be a message of {len(text):,} bytes, and max_message_size is {self.max_message_size:,}: "
                "raise it at both ends, or send less at once"
            )
        await self._outbox.send(text.decode())

    async def write(self) -> None:
        """Send what is handed over, in a task of its own, as long as there is a connection."""
        with self._written:
            async for text in self._written:
                try:
                    await self._socket.send_message(text)
                except ConnectionClosed:
                    return

    async def receive(self) -> JSONObject:
        """
        Wait for the next frame.

        Raises:
            ProtocolError: It is no JSON object.
            ConnectionClosed: The connection is gone.
        """
        text = await self._socket.get_message()
        if isinstance(text, bytes):
            raise ProtocolError("a frame is text, not bytes", BINARY)
        try:
            frame: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolError(f"a frame is JSON: {error}", MALFORMED) from None
        if not isinstance(frame, dict):
            raise ProtocolError("a frame is a JSON object", MALFORMED)
        return frame

    async def beat(self, every: float, within: float) -> None:
        """Ping, now and then, and soon where there is doubt; return when the other end does not answer one in time."""
        while True:
            with trio.move_on_after(every):
                await self._is_doubted.wait()
                await trio.sleep(_DOUBT)
            self._is_doubted = trio.Event()
            try:
                with trio.fail_after(within):
                    await self._socket.ping()
            except (trio.TooSlowError, ConnectionClosed):
                return

    def doubt(self) -> None:
        """Have a ping sent soon: somebody waits for the other end who would rather leave."""
        self._is_doubted.set()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye, and wait a moment for the answer; not in a cancel, which has ended the reader too. Shielded."""
        if trio.current_effective_deadline() == -math.inf:
            self._socket._close_handshake.set()  # noqa: SLF001 - else it waits for what nobody reads
        with trio.move_on_after(_GOODBYE, shield=True):
            await self._socket.aclose(code, reason[:100])
