"""Serving agents to other processes: sockets, handshakes, and who is let in. What is said then is in `_peer`."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
from typing import TYPE_CHECKING, Final

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from .._errors import InvalidOption
from .._util import single
from ._house import Agents, House
from ._link import PROTOCOL, Link
from ._peer import Limits, Peer
from ._rights import Doors, Permissions, Tokens

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection

    from trio_websocket import WebSocketRequest

    from ..pubsub._pubsub import PubSub

logger = logging.getLogger("alloy_trio.remote")

_HANDSHAKE: Final = 10.0  # seconds that a client has for TLS, and again for the rest
_UNAUTHORIZED, _FORBIDDEN, _UPGRADE, _BUSY = 401, 403, 426, 503
_RECEIVE: Final = 65_536
_GOODBYE: Final = 0.5  # seconds that a client has to hang up
_HUNG_UP: Final = (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed)
_TOLD: Final = 2  # times as many connections as may be are told why they are refused; more are not listened to


@attrs.frozen(kw_only=True)
class Address:
    """
    Where agents are served.

    Attributes:
        url: For `connect`.
        port: The port, also where 0 was asked for.
    """

    url: str
    port: int


async def serve_agents(
    agents: Agents,
    host: str,
    port: int,
    token: Tokens,
    *,
    pubsub: PubSub | None = None,
    ssl_context: ssl.SSLContext | None = None,
    insecure: bool = False,
    origins: Collection[str] = (),
    max_connections: int = 100,
    max_message_size: int = 64 * 2**20,
    max_requests: int = 100,
    max_rate: float = 500.0,
    ping_interval: float = 20.0,
    ping_timeout: float = 20.0,
    idle_timeout: float = math.inf,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Serve agents to other processes, until cancelled: `address = await nursery.start(serve_agents, supervisor, "127.0.0.1", 0, token)`.

    Everybody who connects shows a token; each connection and each request is a scope of its own. A connection that is lost
    cancels what it was waiting for (chats and streams); what was sent by `send_message` goes on, and its result is kept.

    Args:
        agents: A supervisor, a registry, or a mapping of names to agents.
        host: The address to listen at.
        port: The port; 0 for any that is free.
        token: A token for everything, or tokens with what each is good for.
        pubsub: Topics to subscribe to; an agent with the same `pubsub=` publishes there.
        ssl_context: Makes it `wss://`.
        insecure: Whether to listen elsewhere than on this machine without TLS: the token is then seen by everybody on the way.
        origins: Web pages that may connect, by their Origin ("https://example.org"). No other page may.
        max_connections: Connections at once; more of them are refused.
        max_message_size: Bytes of a message, in either direction.
        max_requests: Requests under way on one connection.
        max_rate: Messages a second on one connection; more of them wait.
        ping_interval: Seconds between two pings.
        ping_timeout: Seconds that a client has to answer one; a message of the largest size has to be through by then.
        idle_timeout: Seconds without a request under way after which a connection is closed.
        task_status: Told the `Address`.

    Raises:
        InvalidOption: No token, an address that others can reach without TLS, or a number that cannot be right.
        OSError: The port is taken, or the address is not one of this machine.
    """
    try:
        doors = Doors(token)
    finally:
        del token  # of a traceback that shows variables, this frame is a part
    if ssl_context is None and not insecure and not _is_loopback(host):
        raise InvalidOption(
            f"host={host!r} can be reached from other machines: give ssl_context=, or say insecure=True if what lies "
            "in between is trusted with the token and with all that is said"
        )
    limits = Limits(
        max_requests=max_requests,
        max_rate=max_rate,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        idle_timeout=idle_timeout,
        max_connections=max_connections,
        max_message_size=max_message_size,
    )
    server = _Server(House(agents, pubsub), doors, limits, frozenset(origins))
    listeners = await trio.open_tcp_listeners(port, host=host)
    bound = listeners[0].socket.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    task_status.started(Address(url=f"{'ws' if ssl_context is None else 'wss'}://{shown}:{bound}", port=bound))
    if ssl_context is None:
        await trio.serve_listeners(server.handle, listeners)
    else:
        await trio.serve_listeners(server.handle, [trio.SSLListener(each, ssl_context) for each in listeners])


async def _linger(stream: trio.abc.Stream) -> None:
    """Read what the other end still sends: closing over it would take the goodbye back that it has not read yet."""
    with (
        trio.move_on_after(_GOODBYE),
        contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError),
    ):
        while await stream.receive_some(_RECEIVE):
            pass


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _origin(request: WebSocketRequest) -> str:
    """Return the address that a connection is from, if it has one and is still there."""
    with contextlib.suppress(OSError):
        return str(getattr(request.remote, "address", "somewhere"))
    return "somebody who has left"


@attrs.define(eq=False)
class _Server:
    """Lets clients in, or not."""

    house: House
    doors: Doors
    limits: Limits
    origins: frozenset[str]
    _connections: int = 0  # with those that have shown no token yet
    _let_in: int = 0

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection, and leave no socket behind, however it ends."""
        self._connections += 1
        try:
            if self._connections <= _TOLD * self.limits.max_connections:
                await self._serve(stream)
        except Exception as error:
            if not isinstance(single(error), _HUNG_UP):
                logger.exception("a connection broke down; the others go on")
        finally:
            self._connections -= 1
            with trio.CancelScope(shield=True):
                await _linger(stream)
                await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        if isinstance(stream, trio.SSLStream):
            with trio.move_on_after(_HANDSHAKE) as scope:
                await stream.do_handshake()
            if scope.cancelled_caught:
                return
        request: WebSocketRequest | None = None
        try:
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(_HANDSHAKE):
                    request = await wrap_server_stream(
                        nursery, stream, max_message_size=self.limits.max_message_size, receive_buffer_size=_RECEIVE
                    )
                if request is not None:
                    await self._decide(request)
                nursery.cancel_scope.cancel()
        except* UnicodeError as group:
            if request is not None:
                raise
            logger.warning("a connection began with what is no handshake: %s", single(group))  # strangers fill no log

    def _judge(self, request: WebSocketRequest) -> tuple[Permissions | None, int, str]:
        """Return what a client may do; or a status that says why not, with words."""
        headers = {name.lower(): value for name, value in request.headers}
        permissions = self.doors.open(headers.get(b"authorization", b""))
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self.origins:
            return None, _FORBIDDEN, f"pages of {origin:.200} may not connect: origins= says which may"
        if permissions is None:
            return None, _UNAUTHORIZED, "the token is wrong, or there is none: Authorization: Bearer TOKEN"
        if PROTOCOL not in request.proposed_subprotocols:
            return None, _UPGRADE, f"this server speaks {PROTOCOL}: Sec-WebSocket-Protocol: {PROTOCOL}"
        if self._let_in >= self.limits.max_connections:
            return None, _BUSY, f"it would be one more than max_connections={self.limits.max_connections} allows"
        return permissions, 0, ""

    async def _decide(self, request: WebSocketRequest) -> None:
        permissions, status, words = self._judge(request)
        if permissions is None:
            logger.warning("a connection from %s was refused: %s", _origin(request), words)
            await request.reject(status, body=words.encode())
            return
        self._let_in += 1
        try:
            socket: WebSocketConnection = await request.accept(subprotocol=PROTOCOL)
            link = Link(socket, max_message_size=self.limits.max_message_size)
            await Peer(link, self.house, permissions, self.limits).serve()
        finally:
            self._let_in -= 1
