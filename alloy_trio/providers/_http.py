"""
The network, as one class: a provider that speaks HTTP is a pure wire under this.

    encode(request) -> Call                   the wire says what to send,
    complete, stream                          this file sends it, bounds what comes back, maps what can go wrong,
    decode(body) | decoder().feed(bytes)      and the wire says what it means.

The exchange is our own, over Trio's sockets (`_transport`). Where the user has given an `http_client`, or a proxy stands in the
environment, it goes through httpx (`_httpx`). Either way `trio.Cancelled` closes the socket at once, so that the server stops.
The only time-out of a request is a stall guard on the socket: neither a consumer that takes its time nor a long answer that
keeps coming runs into it. What nobody needs (the end of the body behind a complete answer, the rest of an error page) is not
waited for as long.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, urlsplit

import attrs
import trio

from .._errors import ConnectionFailed, InvalidOption, ProviderError, ProviderTimeout, WireError
from .._messages import Block, Message
from .._price import Price
from ._address import Address, address_of
from ._base import Call, Emit, Request, Response, Terms, as_events
from ._checks import (
    check_client,
    check_headers,
    check_price,
    check_stall,
    check_tls,
    clean_key,
    clean_url,
    is_header,
    own_body,
    own_headers,
    shown_url,
)
from ._classify import from_status
from ._exchange import Broken, CannotAsk, CannotConnect, ExchangeError, Stalled, Undecodable
from ._origin import fingerprint
from ._pool import Origin
from ._secret import Headers, Parts, QuietBytes, discreet, hush, named, of_address, redact
from ._transport import current_pool, default_context, exchange

if TYPE_CHECKING:
    import ssl  # noqa: TC004 - as below

    import httpx  # noqa: TC004 - these hints are never resolved: providers are no JSON

    from .._events import ProviderEvent
    from .._usage import Usage
    from .._util import JSONObject
    from ._decoder import Decoder
    from ._exchange import Reply

logger = logging.getLogger("alloy_trio.http")

MAX_BODY = 64 * 2**20  # bytes of an answer that comes in one piece
MAX_STREAM = (
    512 * 2**20
)  # bytes of one that is streamed: many times what the longest answers take with all that is around them
MAX_ERROR_BODY = 2**20  # bytes of an error page that are looked at

_PATIENCE = 5.0  # seconds for bytes that we can do without, the text of an error
_MOST_HEADS = 16  # that a provider keeps: a wire has few
_NOT_HERE = {404, 405}  # what a wrong path gives

_HEADERS = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": "alloy_trio",
    "content-type": "application/json",
}
_AUTH_HEADERS = {"authorization", "x-api-key", "api-key"}

_TARGET = "/?#[]@!$&'()*+,;=:%-._~"  # what stands in a path and a query as it is
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
            request sets. Copied, as are the headers: to send other ones, make another provider.
        extra_headers: Sent with each request, over our own.
        http_client: Your own `httpx.AsyncClient`, used as it is and never closed. The default is several times as fast.
        ssl_context: What TLS is made with, for certificates of your own; None: the usual ones.
        stall_timeout: Seconds in which no byte comes, after which a request fails with `ProviderTimeout`; `math.inf`: never.
        price: What the model costs; None: as the catalog says, if it knows. `Price.free()` for a server of your own.

    Raises:
        InvalidOption: No key where one is needed, or an option that cannot be right.
    """

    env_key: ClassVar[str | None] = None  # the environment variable with the key; None: works without a key
    vendor_host: ClassVar[str | None] = None  # where the vendor itself serves the API; None: there is no one vendor

    model: str
    name: str = attrs.field(default="http", kw_only=True)
    api_key: str | None = attrs.field(default=None, kw_only=True, converter=clean_key, repr=False)
    base_url: str = attrs.field(default="http://localhost", kw_only=True, converter=clean_url, repr=shown_url)
    extra_body: Mapping[str, Any] = attrs.field(  # JSON, of any shape
        factory=dict, kw_only=True, repr=False, converter=own_body
    )
    extra_headers: Mapping[str, str] = attrs.field(
        factory=dict, kw_only=True, repr=False, converter=own_headers, validator=check_headers
    )
    http_client: httpx.AsyncClient | None = attrs.field(default=None, kw_only=True, repr=False, validator=check_client)
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, kw_only=True, repr=False, validator=check_tls)
    stall_timeout: float = attrs.field(default=600.0, kw_only=True, validator=check_stall)
    price: Price | None = attrs.field(default=None, kw_only=True, validator=check_price)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (init := vars(cls).get("__init__")) is not None:
            setattr(cls, "__init__", discreet(init))  # noqa: B010 - to a type checker it stays what it was

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

    @functools.cached_property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        return Terms()

    @functools.cached_property
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

    @functools.cached_property
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
        reply: Reply | None = None
        reply_id = ""
        outer = sys.exception()
        try:
            try:
                reply = await self._post(call)
                logger.debug("POST %s to provider %s: %d", call.path, self.name, reply.status)
                if 200 <= reply.status < 300:  # noqa: PLR2004 - what HTTP calls success
                    return await self._read(reply, emit)
                raise self._refused(reply, call.path, await _read_error(reply))
            except (ExchangeError, ProviderError) as failure:
                if reply is not None:
                    reply_id = self._redacted(
                        reply.headers.get("request-id") or reply.headers.get("x-request-id") or ""
                    )
                if isinstance(failure, ExchangeError):
                    raise self._failed(failure) from failure.__cause__ or failure
                raise
            finally:
                if reply is not None:
                    await reply.aclose()
        except (ProviderError, InvalidOption) as error:
            hush(error, outer, self._redacted)
            if isinstance(error, ProviderError):
                error.provider, error.model = error.provider or self.name, error.model or self.model
                error.request_id = self._redacted(error.request_id or reply_id) or None
            raise error.with_traceback(None)  # noqa: B904 - the same error

    async def _post(self, call: Call) -> Reply:
        """Send a request, and return the answer once its head has come. Raises `ExchangeError`."""
        address = address_of(self.base_url)
        if self.http_client is None and (pool := current_pool()) is not None:
            parts = Parts((self._head(call, address), *call.parts))
            return await exchange(pool, self._origin(address), parts, stall=self.stall_timeout)
        from . import _httpx  # noqa: PLC0415 - loads httpx

        stall = None if math.isinf(self.stall_timeout) else self.stall_timeout
        client = self.http_client or _httpx.shared_client(self.ssl_context)
        url, headers = address.base + call.path, Headers(self._fields(call, address.authorization))
        return await _httpx.post(client, url, headers, QuietBytes(call.body), stall=stall)

    def _origin(self, address: Address) -> Origin:
        context = (self.ssl_context or default_context()) if address.is_tls else None
        return Origin(address.host, address.port, context)

    @discreet
    def statistics(self) -> dict[str, int]:
        """
        Return how many connections to its server this Trio run has.

        `active` are those that requests have, `waiting` those of them that wait for bytes (none is counted where
        `stall_timeout` is infinite), `idle` those that are kept for some seconds. All of a server's providers share them. Of
        an `http_client` of your own, or a proxy's, nothing is known: zeros.

        Raises:
            InvalidOption: `base_url` leads nowhere, or the certificates cannot be read.
        """
        pool = current_pool() if self.http_client is None else None
        if pool is None:
            return {"active": 0, "waiting": 0, "idle": 0}
        try:
            return pool.statistics(self._origin(address_of(self.base_url)))
        except ExchangeError as failure:
            raise self._failed(failure) from failure.__cause__

    def _fields(self, call: Call, authorization: Mapping[str, str]) -> dict[str, str]:
        headers = {**_HEADERS, **call.headers, **authorization}
        for name, value in self.extra_headers.items():
            headers[name.lower()] = value
        return headers

    @functools.cached_property
    def _heads(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], bytes]:
        """What stands ahead of a request's length, by its path and its own headers."""
        return {}

    def _head(self, call: Call, address: Address) -> bytes:
        key = (call.path, tuple(call.headers.items()))
        if (head := self._heads.get(key)) is None:
            headers = {"host": address.shown, **self._fields(call, address.authorization)}
            for name, value in headers.items():
                if not is_header(name, value):
                    raise CannotAsk(
                        f"look at the headers of the provider: {name!r:.100} cannot be sent with that value"
                    )
            fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            target = quote(address.path + call.path, safe=_TARGET)
            head = f"POST {target} HTTP/1.1\r\n{fields}content-length: ".encode("ascii")
            if len(self._heads) < _MOST_HEADS:
                self._heads[key] = head
        return b"%s%d\r\n\r\n" % (head, sum(map(len, call.parts)))

    def _failed(self, failure: ExchangeError) -> Exception:
        """Say what has failed in the words of a provider."""
        match failure:
            case CannotConnect():
                error = ConnectionFailed(
                    f"cannot connect to {self.base_url}: {failure}; is the server there, and base_url right?",
                    retryable=True,
                )
                error.nothing_sent = True
                return error
            case Stalled():
                said = f"{self.base_url} sent nothing for {self.stall_timeout:g} seconds (stall_timeout)"
                return ProviderTimeout(said, retryable=True)
            case Undecodable():
                said = f"{self.base_url} sent a body that does not decompress: {failure}"
                return WireError(said, retryable=failure.may_pass)
            case CannotAsk():
                return InvalidOption(f"the request cannot be sent: {failure}")
        retryable = not isinstance(failure, Broken) or failure.may_pass
        return ConnectionFailed(f"the connection to {self.base_url} broke: {failure}", retryable=retryable)

    def _refused(self, reply: Reply, path: str, body: bytes) -> ProviderError:
        error = from_status(reply.status, body, reply.headers)
        if reply.status in _NOT_HERE and not body.lstrip().startswith(b"{"):
            path = urlsplit(self.base_url + path).path
            advice = f"is {path} the path of the API? Check base_url: many end in /v1"
            error.args = (f"{error} ({advice})",)
        return error

    def _redacted(self, message: str) -> str:
        """Take out our keys."""
        client = {} if self.http_client is None else self.http_client.headers
        given = (*named(client), *named(self.extra_headers), *named(self.extra_body))
        return redact(message, (self.api_key, *of_address(self.base_url), *given))

    async def _read(self, body: Reply, emit: Emit | None) -> Response:
        """Read an answer as what it is: some servers stream unasked, some answer a streaming request in one piece."""
        head, left = b"", MAX_STREAM
        while not head and (chunk := await body.read()):
            head = chunk.lstrip(_BLANK)  # blank lines ahead of the answer keep the connection alive
            left -= len(chunk)
            if left < 0 and not head:
                raise _too_large()
        streams = (head[:1] != b"{" and _is_stream(head)) if head else emit is not None
        if not streams:
            rest = b"" if body.is_complete else await _read_all(body, MAX_BODY - len(head))
            response = self.decode(head + rest if rest else head)
            if emit is not None:
                await emit(*as_events(response.message.content))
            return response
        return await self._read_stream(head, body, emit or _ignore)

    async def _read_stream(self, chunk: bytes, body: Reply, emit: Emit) -> Response:
        decoder, left, until = self.decoder(), MAX_STREAM, math.inf
        while chunk:
            if events := decoder.feed(chunk):
                await emit(*events)
                decoder.check()  # raises what failed behind them, in the same read
            left -= len(chunk)
            if not decoder.is_complete():
                if left < 0:
                    raise _too_large()
                chunk = await body.read()
                continue
            # Behind their last event some servers break the connection off, some leave it open, some keep it alive: only
            # more of the answer is worth more time.
            patient = trio.current_time() + decoder.patience
            until = patient if events else min(until, patient)
            chunk = b"" if body.is_complete or left < 0 else await _read_if_there(body, until)
        if events := decoder.close():
            await emit(*events)
        return decoder.finish()


async def _ignore(*_: ProviderEvent) -> None:
    """Take events that nobody asked for."""


async def _read_if_there(reply: Reply, until: float) -> bytes:
    """Return the next bytes, b"" also where the connection breaks, or none come until then."""
    with trio.move_on_at(until), contextlib.suppress(ExchangeError):
        return await reply.read()
    return b""


def _is_stream(head: bytes) -> bool:
    """Whether a body that begins so, cut anywhere, is one of server-sent events."""
    return any(start.startswith(head[: len(start)]) for start in _SSE_STARTS)


def _too_large() -> WireError:
    return WireError(
        f"the answer is larger than {MAX_STREAM} bytes, the most that is read of a stream: is base_url right?"
    )


async def _read_all(body: Reply, bound: int) -> bytes:
    """Read what is left, at most `bound` bytes."""
    read = bytearray()
    while chunk := await body.read():
        read += chunk
        if len(read) > bound:
            raise WireError(f"the answer is larger than {MAX_BODY} bytes, the most that is read in one piece")
    return bytes(read)


async def _read_error(body: Reply) -> bytes:
    """Read what can be read of an error page: where it breaks off, or hangs, the status says enough."""
    read = bytearray()
    until = trio.current_time() + _PATIENCE
    while len(read) <= MAX_ERROR_BODY and (chunk := await _read_if_there(body, until)):
        read += chunk
    return bytes(read)
