"""
The network, as one class: a provider that speaks HTTP is a pure wire under this.

    encode(request) -> Call                   the wire says what to send,
    complete, stream                          this file sends it, bounds what comes back, maps what can go wrong,
    decode(body) | decoder().feed(bytes)      and the wire says what it means.

httpx is used in the one way that survives cancellation (its pool leaks a slot for each task cancelled while it waits there):
the pool is never contended, because it has no bound. `trio.Cancelled` closes the socket at once, so that the server stops.
The only time-out of a request is a stall guard on the socket: neither a consumer that takes its time nor a long answer that
keeps coming runs into it. What nobody needs (the end of the body behind a complete answer, the rest of an error page) is not
waited for as long.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import math
import os
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import attrs
import trio

from .._errors import ConnectionFailed, InvalidOption, ProviderError, ProviderTimeout, WireError
from .._messages import Block, Message
from .._price import Price
from ._base import Call, Emit, Request, Response, Terms, as_events
from ._checks import check_headers, check_price, clean_key, clean_url, shown_url
from ._classify import from_status
from ._origin import fingerprint

if TYPE_CHECKING:
    import httpx  # noqa: TC004 - the hint of `http_client` is never resolved: providers are no JSON

    from .._events import ProviderEvent
    from .._usage import Usage
    from .._util import JSONObject
    from ._decoder import Decoder

MAX_BODY = 64 * 2**20  # bytes of an answer that comes in one piece
MAX_ERROR_BODY = 2**20  # bytes of an error page that are looked at
CONNECT_TIMEOUT = 10.0  # seconds

_PATIENCE = 5.0  # seconds for bytes that we can do without, the text of an error
_READ_AHEAD = 10_000  # pieces of a body: more than one read from a socket can bring
_SECRET = 4  # characters; a shorter key is a placeholder, and may stand in any text
_TELLING = 8  # characters of a key by which a part of it is known again
_NOT_HERE = {404, 405}  # what a wrong path gives

_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_AUTH_HEADERS = {"authorization", "x-api-key", "api-key"}
_SECRET_HEADER = re.compile("auth|key|token|secret|cookie", re.IGNORECASE)

_BLANK = b" \t\r\n\xef\xbb\xbf"  # white space, and a byte order mark
_SSE_STARTS = (b":", b"data:", b"event:", b"id:", b"retry:")


@attrs.frozen(eq=False)
class HTTPProvider(abc.ABC):
    """
    What all network providers have in common.

    A provider is a value: make it once, use it from any number of tasks. It opens connections as it needs them, keeps
    idle ones for some seconds, and has closed all of them when the Trio run ends; there is nothing to close.

    Attributes:
        model: The model to ask, by the provider's name for it.
        name: The provider's name in messages, events and errors.
        api_key: The key; by default from the environment. Never in a repr, an error, an event or a session.
        base_url: Where the API is, without the wire's own path.
        extra_body: Merged last into each request's JSON: may override any field, but not raise a cap on the answer that the
            request sets.
        extra_headers: Sent with each request, over our own.
        http_client: Your own `httpx.AsyncClient`, used as it is and never closed.
        stall_timeout: Seconds in which no byte comes, after which a request fails with `ProviderTimeout`.
        price: What the model costs; None: as the catalog says, if it knows. `Price.free()` for a server of your own.

    Raises:
        InvalidOption: No key where one is needed, or a key, header, base URL or price that cannot be one.
    """

    env_key: ClassVar[str | None] = None  # the environment variable with the key; None: works without a key
    vendor_host: ClassVar[str | None] = None  # where the vendor itself serves the API; None: there is no one vendor

    model: str
    name: str = attrs.field(default="http", kw_only=True)
    api_key: str | None = attrs.field(default=None, kw_only=True, converter=clean_key, repr=False)
    base_url: str = attrs.field(default="http://localhost", kw_only=True, converter=clean_url, repr=shown_url)
    extra_body: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, repr=False)  # JSON, of any shape
    extra_headers: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, repr=False, validator=check_headers)
    http_client: httpx.AsyncClient | None = attrs.field(default=None, kw_only=True, repr=False)
    stall_timeout: float = attrs.field(default=600.0, kw_only=True)
    price: Price | None = attrs.field(default=None, kw_only=True, validator=check_price)

    def __attrs_post_init__(self) -> None:
        if self.api_key is not None or self.env_key is None:
            return
        key = clean_key(os.environ.get(self.env_key))
        if key is None and not _AUTH_HEADERS & {name.lower() for name in self.extra_headers}:
            raise InvalidOption(f"no API key for {self.name}: set {self.env_key} in the environment, or pass api_key=")
        object.__setattr__(self, "api_key", key)

    @abc.abstractmethod
    def encode(self, request: Request, *, stream: bool) -> Call:
        """Say what to send."""

    @abc.abstractmethod
    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means. Raises `ProviderError` where it is an error, `WireError` where it is noise."""

    @abc.abstractmethod
    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""

    @property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        return Terms()

    @property
    def is_at_vendor(self) -> bool:
        """Whether the API is the vendor's own, at its own prices: not a gateway, nor a server that speaks the same wire."""
        return self.vendor_host is not None and urlsplit(self.base_url).hostname == self.vendor_host

    def billed(self, response: Response) -> Usage:
        """Return what an answer from here is billed for: its usage, and what the vendor reports outside of that."""
        return response.usage

    @property
    def native_output(self) -> bool:
        """Whether the API holds an answer's text to `Request.output_schema`, also where there are tools."""
        return False

    def takes_schema(self, schema: JSONObject) -> bool:  # noqa: ARG002 - for those that take some
        """Whether this very schema can be the `Request.output_schema`."""
        return self.native_output

    @property
    def origin(self) -> str:
        """A fingerprint of provider, endpoint and account: reasoning goes back only to where it came from."""
        return fingerprint(self.name, self.base_url, self.api_key)

    def message(
        self, content: tuple[Block, ...], model: str | None = None, state: Mapping[str, Any] | None = None
    ) -> Message:
        """Make the assistant's message of an answer from here; `state` is what goes along for the next request."""
        return Message(
            "assistant",
            content,
            provider=self.name,
            model=model or self.model,
            origin=self.origin,
            provider_state=state,
        )

    async def complete(self, request: Request) -> Response:
        """Ask the model, and return its whole answer. Raises `ProviderError`."""
        return await self._exchange(self.encode(request, stream=False), None)

    async def stream(self, request: Request, emit: Emit) -> Response:
        """Ask the model, hand over its answer as it comes, one `emit` a read, and return it. Raises `ProviderError`."""
        return await self._exchange(self.encode(request, stream=True), emit)

    async def _exchange(self, call: Call, emit: Emit | None) -> Response:
        reply_id = None
        try:
            with self._network_errors():
                async with self._send(call) as reply, _Body(reply) as body:
                    reply_id = reply.headers.get("request-id") or reply.headers.get("x-request-id")
                    if not reply.is_success:
                        raise self._refused(reply, await _read_error(body))
                    return await self._read(body, emit)
        except ProviderError as error:
            error.args = (self._redacted(str(error)),)
            error.provider, error.model = error.provider or self.name, error.model or self.model
            error.request_id = error.request_id or reply_id
            raise

    def _refused(self, reply: httpx.Response, body: bytes) -> ProviderError:
        error = from_status(reply.status_code, body, reply.headers)
        if reply.status_code in _NOT_HERE and not body.lstrip().startswith(b"{"):
            advice = f"is {reply.request.url.path} the path of the API? Check base_url: many end in /v1"
            error.args = (f"{error} ({advice})",)
        return error

    def _redacted(self, message: str) -> str:
        """Take out our keys: some servers quote the key that they refuse, and an excerpt may have cut it short."""
        given = [
            value.split()[-1] for name, value in self.extra_headers.items() if _SECRET_HEADER.search(name) and value
        ]
        address = urlsplit(self.base_url)
        for secret in (self.api_key, address.password or address.username, *given):
            if secret and len(secret) >= _SECRET:
                message = message.replace(secret, "…")
            if secret and len(secret) >= _TELLING:
                message = re.sub(re.escape(secret[:_TELLING]) + r"[\w.~+/=-]*", "…", message)
        return message

    async def _read(self, body: _Body, emit: Emit | None) -> Response:
        """Read an answer as what it is: some servers stream unasked, some answer a streaming request in one piece."""
        head = b""
        while not head and (chunk := await body.read()):
            head = chunk.lstrip(_BLANK)  # blank lines ahead of the answer keep the connection alive
        streams = _is_stream(head) if head else emit is not None
        if not streams:
            response = self.decode(head + await _read_all(body, MAX_BODY - len(head)))
            if emit is not None:
                await emit(*as_events(response.message.content))
            return response
        return await self._read_stream(head, body, emit or _ignore)

    async def _read_stream(self, chunk: bytes, body: _Body, emit: Emit) -> Response:
        decoder = self.decoder()
        while chunk:
            if events := decoder.feed(chunk):
                await emit(*events)
                decoder.feed(b"")  # raises what failed behind them, in the same read
            # Behind their last event some servers break the connection off, some leave it open.
            chunk = await (body.read_if_there(decoder.patience) if decoder.is_complete() else body.read())
        if events := decoder.close():
            await emit(*events)
        return decoder.finish()

    @contextlib.asynccontextmanager
    async def _send(self, call: Call) -> AsyncIterator[httpx.Response]:
        import httpx  # noqa: PLC0415 - loaded by those who use the network

        client = self.http_client or await _client()
        stall = None if math.isinf(self.stall_timeout) else self.stall_timeout
        seen: list[str] = []

        async def trace(event: str, _: Any) -> None:
            seen.append(event)
            if event == "connection.retry.started":  # a transport of the user's own, told to connect again by itself
                raise httpx.ConnectError(str(sys.exception()))

        headers = httpx.Headers({**_HEADERS, **call.headers})
        headers.update(self.extra_headers)
        request = client.build_request(
            "POST",
            self.base_url + call.path,
            content=call.body,
            headers=headers,
            timeout=httpx.Timeout(CONNECT_TIMEOUT, read=stall, write=stall, pool=None),
            extensions={"trace": trace},
        )
        request.stream = _upload()(call.body)
        try:
            reply = await client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # An idle connection that the server had closed meanwhile: no byte came back, so it is asked once more.
            if not seen or any(event.startswith("connection.connect") for event in seen):
                raise
            reply = await client.send(request, stream=True)
        try:
            yield reply
        finally:
            await reply.aclose()
            if self.http_client is None and (stream := reply.extensions.get("network_stream")):
                _kept.get().add(stream.get_extra_info("socket"))

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        import httpx  # noqa: PLC0415 - as above

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            failure = ConnectionFailed(
                f"cannot connect to {self.base_url}: {str(error) or 'no answer'}; is the server there, and base_url right?",
                retryable=True,
            )
            failure.nothing_sent = True
            raise failure from error
        except httpx.TimeoutException as error:
            raise ProviderTimeout(
                f"{self.base_url} sent nothing for {self.stall_timeout:g} seconds (stall_timeout)",
                retryable=True,
            ) from error
        except httpx.DecodingError as error:
            raise WireError(f"{self.base_url} sent a body that does not decompress: {error}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            shown = shown_url(self.base_url)
            raise InvalidOption(self._redacted(f"base_url={shown} cannot be used: {error}")) from error
        except httpx.LocalProtocolError as error:
            advice = "the request cannot be sent: look at the headers of http_client"
            raise InvalidOption(self._redacted(f"{advice}: {error}")) from error
        except httpx.RequestError as error:
            raise ConnectionFailed(
                f"the connection to {self.base_url} broke: {str(error) or type(error).__name__}",
                # Not retryable are redirects in a circle, followed by a client of the user's own.
                retryable=isinstance(error, httpx.TransportError),
            ) from error


async def _ignore(*_: ProviderEvent) -> None:
    """Take events that nobody asked for."""


@functools.cache
def _upload() -> Callable[[bytes], httpx.AsyncByteStream]:
    """Return the class of a request's body: httpx's is an async generator, which a cancel in mid-upload leaves half-way."""
    import httpx  # noqa: PLC0415 - as above

    class Upload(httpx.AsyncByteStream):
        def __init__(self, body: bytes) -> None:
            self._body = body

        def __aiter__(self) -> AsyncIterator[bytes]:
            return _Once(self._body)

    return Upload


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


class _Body:
    """
    The body of an answer, read piece by piece; nothing of it is left when the context ends.

    httpx and httpcore nest six async generators. Closing the outermost leaves the others to the garbage collector, which warns
    of each (an error under `-W error`). So a body that is left half-way is read on, in a cancelled scope: the next read from
    the socket raises in the innermost, and that ends them all.
    """

    def __init__(self, reply: httpx.Response) -> None:
        import httpx  # noqa: PLC0415 - as above

        self._chunks = cast("AsyncGenerator[bytes, None]", reply.aiter_bytes())
        self._broken = httpx.RequestError

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end."""
        return await anext(self._chunks, b"")

    async def read_if_there(self, patience: float) -> bytes:
        """Return the next bytes, b"" also where the connection breaks, or stays silent for a while."""
        with trio.move_on_after(patience), contextlib.suppress(self._broken):
            return await self.read()
        return b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True) as scope, contextlib.suppress(self._broken):
            scope.cancel()
            async with contextlib.aclosing(self._chunks):
                for _step in range(_READ_AHEAD):  # a transport that is no socket may never notice
                    if not await self.read():
                        break


def _is_stream(head: bytes) -> bool:
    """Whether a body that begins so, cut anywhere, is one of server-sent events."""
    return any(start.startswith(head[: len(start)]) for start in _SSE_STARTS)


async def _read_all(body: _Body, bound: int) -> bytes:
    """Read what is left, at most `bound` bytes."""
    read = bytearray()
    while chunk := await body.read():
        read += chunk
        if len(read) > bound:
            raise WireError(f"the answer is larger than {MAX_BODY} bytes, the most that is read in one piece")
    return bytes(read)


async def _read_error(body: _Body) -> bytes:
    """Read what can be read of an error page: where it breaks off, or hangs, the status says enough."""
    read = bytearray()
    with trio.move_on_after(_PATIENCE):
        while len(read) <= MAX_ERROR_BODY and (chunk := await body.read_if_there(_PATIENCE)):
            read += chunk
    return bytes(read)


_kept: trio.lowlevel.RunVar[WeakSet[trio.socket.SocketType]] = trio.lowlevel.RunVar("alloy_trio connections")
_shared_client: trio.lowlevel.RunVar[httpx.AsyncClient] = trio.lowlevel.RunVar("alloy_trio HTTP client")


async def _client() -> httpx.AsyncClient:
    """Return the HTTP client of this Trio run, which a system task closes as the run ends."""
    import httpx  # noqa: PLC0415 - as above

    try:
        return _shared_client.get()
    except LookupError:
        client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=20))
        _shared_client.set(client)
        _kept.set(WeakSet())
        trio.lowlevel.spawn_system_task(_close_at_the_end, client, name="alloy_trio HTTP client")
        return client


async def _close_at_the_end(client: httpx.AsyncClient) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()


def idle_connections() -> set[int]:
    """Return the file descriptors of the client's connections that have been kept for a next request."""
    return {socket.fileno() for socket in _kept.get(WeakSet())}
