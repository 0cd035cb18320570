"""
The network, as one class: a provider that speaks HTTP is a pure wire under this.

    encode(request) -> Call                   the wire says what to send,
    complete, stream                          this file sends it, bounds what comes back, maps what can go wrong,
    decode(body) | decoder().feed(bytes)      and the wire says what it means.

httpx is used in the one way that survives cancellation (its pool leaks a slot for each task cancelled while it waits there):
the pool is never contended, because it has no bound. `trio.Cancelled` closes the socket at once, so that the server stops.
The only time-out is a stall guard on the socket: neither a consumer that takes its time nor a long answer that keeps coming
runs into it.
"""

from __future__ import annotations

import abc
import contextlib
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import attrs
import trio

from .._errors import ConnectionFailed, InvalidOption, ProviderError, ProviderTimeout, WireError
from .._messages import Block, Message
from ._base import Call, Emit, Request, Response, as_events
from ._classify import from_status
from ._origin import fingerprint

if TYPE_CHECKING:
    import httpx  # noqa: TC004 - the hint of `http_client` is never resolved: providers are no JSON

    from .._events import ProviderEvent
    from ._decoder import Decoder

MAX_BODY = 64 * 2**20  # bytes of an answer that comes in one piece
MAX_ERROR_BODY = 2**20  # bytes of an error page that are looked at
CONNECT_TIMEOUT = 10.0  # seconds

_SECRET = 8  # characters; a shorter key is a placeholder, and may stand in any text

_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_AUTH_HEADERS = {"authorization", "x-api-key", "api-key"}


def clean_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise InvalidOption(f"base_url={url!r} is no address: it has to begin with http:// or https://")
    return url.rstrip("/")


def _clean_key(key: str | None) -> str | None:
    if key is None:
        return None
    if not (key := key.strip()).isascii() or not key.isprintable():
        raise InvalidOption("the API key has characters that no HTTP header may carry: copy it again")
    return key or None


@attrs.frozen(eq=False)
class HTTPProvider(abc.ABC):
    """
    What all network providers have in common.

    A provider is a value: make it once, use it from any number of tasks. It opens connections as it needs them and keeps
    idle ones until the Trio run ends; there is nothing to close.

    Attributes:
        model: The model to ask, by the provider's name for it.
        name: The provider's name in messages, events and errors.
        api_key: The key; by default from the environment. Never in a repr, an error, an event or a session.
        base_url: Where the API is, without the wire's own path.
        extra_body: Merged last into each request's JSON: may override any field.
        extra_headers: Sent with each request, over our own.
        http_client: Your own `httpx.AsyncClient`, used as it is and never closed.
        stall_timeout: Seconds in which no byte comes, after which a request fails with `ProviderTimeout`.

    Raises:
        InvalidOption: No key where one is needed, or a key or base URL that cannot be one.
    """

    env_key: ClassVar[str | None] = None  # the environment variable with the key; None: works without a key

    model: str
    name: str = attrs.field(default="http", kw_only=True)
    api_key: str | None = attrs.field(default=None, kw_only=True, converter=_clean_key, repr=False)
    base_url: str = attrs.field(default="http://localhost", kw_only=True, converter=clean_url)
    extra_body: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, repr=False)  # JSON, of any shape
    extra_headers: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, repr=False)
    http_client: httpx.AsyncClient | None = attrs.field(default=None, kw_only=True, repr=False)
    stall_timeout: float = attrs.field(default=600.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.api_key is not None or self.env_key is None:
            return
        key = _clean_key(os.environ.get(self.env_key))
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
                async with self._send(call) as reply, _chunks(reply) as chunks:
                    reply_id = reply.headers.get("request-id") or reply.headers.get("x-request-id")
                    if not reply.is_success:
                        body = await _read_all(chunks, MAX_ERROR_BODY, cut=True)
                        raise from_status(reply.status_code, body, reply.headers)
                    return await self._read(chunks, emit)
        except ProviderError as error:
            if self.api_key and len(self.api_key) >= _SECRET:  # some servers quote the key that they refuse
                error.args = (str(error).replace(self.api_key, "…"),)
            error.provider, error.model = error.provider or self.name, error.model or self.model
            error.request_id = error.request_id or reply_id
            raise

    async def _read(self, chunks: AsyncIterator[bytes], emit: Emit | None) -> Response:
        """Read an answer as what it is: some servers stream unasked, some answer a streaming request in one piece."""
        head = b""
        async for chunk in chunks:
            if head := chunk.lstrip():  # blank lines ahead of the answer keep the connection alive
                break
        if head[:1] in b'{["<':
            response = self.decode(head + await _read_all(chunks, MAX_BODY - len(head)))
            if emit is not None:
                await emit(*as_events(response.message.content))
            return response
        decoder = self.decoder()
        emit = emit or _ignore
        if events := decoder.feed(head):
            await emit(*events)
        async for chunk in chunks:
            if events := decoder.feed(chunk):
                await emit(*events)
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

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        import httpx  # noqa: PLC0415 - as above

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise ConnectionFailed(
                f"cannot connect to {self.base_url}: {str(error) or 'no answer'}; is the server there, and base_url right?",
                retryable=True,
            ) from error
        except httpx.TimeoutException as error:
            raise ProviderTimeout(
                f"{self.base_url} sent nothing for {self.stall_timeout:g} seconds (stall_timeout)",
                retryable=True,
            ) from error
        except httpx.DecodingError as error:
            raise WireError(f"{self.base_url} sent a body that does not decompress: {error}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InvalidOption(f"base_url={self.base_url!r} cannot be used: {error}") from error
        except httpx.TransportError as error:
            raise ConnectionFailed(
                f"the connection to {self.base_url} broke: {str(error) or type(error).__name__}", retryable=True
            ) from error


async def _ignore(*_: ProviderEvent) -> None:
    """Take events that nobody asked for."""


def _chunks(reply: httpx.Response) -> contextlib.aclosing[AsyncGenerator[bytes, None]]:
    """Iterate over a body, and close it: an async generator that is left half-way warns, and leaks under `-W error`."""
    return contextlib.aclosing(cast("AsyncGenerator[bytes, None]", reply.aiter_bytes()))


async def _read_all(chunks: AsyncIterator[bytes], bound: int, *, cut: bool = False) -> bytes:
    """Read what is left, at most `bound` bytes: past it, cut or raise."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bound:
            if cut:
                break
            raise WireError(f"the answer is larger than {MAX_BODY} bytes, the most that is read in one piece")
    return bytes(body)


_shared_client: trio.lowlevel.RunVar[httpx.AsyncClient] = trio.lowlevel.RunVar("alloy_trio HTTP client")


async def _client() -> httpx.AsyncClient:
    """Return the HTTP client of this Trio run, which a system task closes as the run ends."""
    import httpx  # noqa: PLC0415 - as above

    try:
        return _shared_client.get()
    except LookupError:
        client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=20))
        _shared_client.set(client)
        trio.lowlevel.spawn_system_task(_close_at_the_end, client, name="alloy_trio HTTP client")
        return client


async def _close_at_the_end(client: httpx.AsyncClient) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await client.aclose()
