"""
The exchange by way of httpx: for a client of the user's own, and for a proxy in the environment. Loaded only for these.

httpx is used in the one way that survives cancellation (its pool leaks a slot for each task cancelled while it waits there):
the pool is never contended, because it has no bound.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final, Self, cast
from weakref import WeakSet

import httpx
import trio

from ._exchange import Broken, CannotAsk, CannotConnect, Stalled, Undecodable
from ._pool import CONNECT_TIMEOUT
from ._secret import without_users

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

_READ_AHEAD: Final = 10_000  # pieces of a body: more than one read from a socket can bring


async def post(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], body: bytes, *, stall: float | None
) -> HTTPXReply:
    """
    Send a request, and return the answer once its head has come.

    Args:
        client: Whose it is.
        url: Where to.
        headers: All but those that HTTP itself needs.
        body: The body.
        stall: Seconds in which no byte comes, or goes, after which it has failed; None: never.

    Raises:
        ExchangeError: What has failed.
    """
    seen: list[str] = []

    async def trace(event: str, _: Any) -> None:
        seen.append(event)
        if event == "connection.retry.started":  # a transport of the user's own, told to connect again by itself
            raise httpx.ConnectError(str(sys.exception()))

    with _errors():
        request = client.build_request(
            "POST",
            url,
            content=body,
            headers=dict(headers),
            timeout=httpx.Timeout(CONNECT_TIMEOUT, read=stall, write=stall, pool=None),
            extensions={"trace": trace},
        )
        request.stream = _Upload(body)
        try:
            reply = await _send(client, request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # An idle connection that the server had closed meanwhile: no byte came back, so it is asked once more.
            if not seen or any(event.startswith("connection.connect") for event in seen):
                raise
            reply = await _send(client, request)
    return HTTPXReply(reply, is_ours=client in _clients.get({}).values())


async def _send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """
    Send a request, and follow redirects if the client does; but never to another server.

    httpx would take along all headers but `authorization`, and some vendors have the key in another.
    """
    for _attempt in range(client.max_redirects + 1):
        reply = await client.send(request, stream=True, follow_redirects=False)
        following = reply.next_request
        if not client.follow_redirects or following is None or not _stays(request.url, following.url):
            return reply
        await reply.aclose()
        request = following
    raise httpx.TooManyRedirects("too many redirects", request=request)


def _stays(url: httpx.URL, following: httpx.URL) -> bool:
    """Whether a redirect leads to the same server, or to the same one with TLS."""
    if url.host != following.host:
        return False
    same = (url.scheme, url.port) == (following.scheme, following.port)  # None for the usual port
    return same or (url.scheme, following.scheme, url.port, following.port) == ("http", "https", None, None)


class HTTPXReply:
    """
    An answer that comes through httpx; see `Reply`. Nothing of it is left when it is closed.

    httpx and httpcore nest six async generators. Closing the outermost leaves the others to the garbage collector, which warns
    of each (an error under `-W error`). So a body that is left half-way is read on, in a cancelled scope: the next read from
    the socket raises in the innermost, and that ends them all.
    """

    def __init__(self, reply: httpx.Response, *, is_ours: bool) -> None:
        self.status = reply.status_code
        self.headers: Mapping[str, str] = reply.headers
        self.is_complete = False
        self._reply = reply
        self._is_ours = is_ours
        self._chunks = cast("AsyncGenerator[bytes, None]", reply.aiter_bytes())

    async def read(self) -> bytes:
        """Return the next bytes of the body, `b""` at its end."""
        with _errors():
            data = await anext(self._chunks, b"")
        self.is_complete = not data
        return data

    async def aclose(self) -> None:
        """End the exchange: at once, if it is not over."""
        with trio.CancelScope(shield=True) as scope, contextlib.suppress(httpx.RequestError):
            scope.cancel()
            async with contextlib.aclosing(self._chunks):
                for _step in range(_READ_AHEAD):  # a transport that is no socket may never notice
                    if not await anext(self._chunks, b""):
                        break
        await self._reply.aclose()
        if self._is_ours and (stream := self._reply.extensions.get("network_stream")):
            _kept.get().add(stream.get_extra_info("socket"))


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Say what httpx raises in the words of `_exchange`."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        raise CannotConnect(str(error) or "no answer") from error
    except httpx.TimeoutException as error:
        raise Stalled(str(error)) from error
    except httpx.DecodingError as error:
        raise Undecodable(str(error)) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise CannotAsk(f"base_url cannot be used: {error}") from error
    except httpx.LocalProtocolError as error:
        raise CannotAsk(f"look at the headers of http_client: {error}") from error
    except httpx.RequestError as error:
        failure = Broken(str(error) or type(error).__name__)
        failure.may_pass = isinstance(error, httpx.TransportError)  # unlike redirects in a circle
        raise failure from error


class _Upload(httpx.AsyncByteStream):
    """A request's body: httpx's own is an async generator, which a cancel in mid-upload leaves half-way."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    """An async iterator of one item."""

    def __init__(self, item: bytes) -> None:
        self._left = [item]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


_kept: trio.lowlevel.RunVar[WeakSet[trio.socket.SocketType]] = trio.lowlevel.RunVar("alloy_trio sockets of httpx")
_clients: trio.lowlevel.RunVar[dict[ssl.SSLContext | None, httpx.AsyncClient]] = trio.lowlevel.RunVar(
    "alloy_trio clients of httpx"
)


def shared_client(context: ssl.SSLContext | None) -> httpx.AsyncClient:
    """Return the client of this Trio run that makes TLS with `context`; a system task closes it as the run ends."""
    try:
        clients = _clients.get()
    except LookupError:
        clients = {}
        _clients.set(clients)
        _kept.set(WeakSet())
    if (client := clients.get(context)) is None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        try:
            client = httpx.AsyncClient(limits=limits, verify=True if context is None else context)
        except (
            ImportError,
            ValueError,
            httpx.InvalidURL,
        ) as error:  # SOCKS without its package, an address that is none
            raise CannotAsk(f"the proxy of the environment cannot be used: {without_users(str(error))}") from error
        clients[context] = client
        trio.lowlevel.spawn_system_task(_close_at_the_end, client, name="alloy_trio client of httpx")
    return client


async def _close_at_the_end(client: httpx.AsyncClient) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()


def idle_descriptors() -> set[int]:
    """Return the file descriptors of the shared client's connections that are kept for a next request."""
    return {socket.fileno() for socket in _kept.get(WeakSet())}
