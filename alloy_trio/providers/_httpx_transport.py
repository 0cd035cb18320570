"""
Our exchange under a client of httpx: any method, bodies that are streamed, httpx's time-outs and errors. Loaded by who asks for it.

What httpx hands over is checked before anything is sent, as h11 would: a field with a line end in it, or a body of another length
than it says, would be another request.
"""

from __future__ import annotations

import contextlib
import math
import re
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import httpx
import trio

from ._exchange import Broken, CannotAsk, CannotConnect, ConnectTimedOut, SendStalled, Stalled
from ._pool import Origin, Pool
from ._secret import Parts, discreet
from ._transport import TrioReply, default_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_PORTS: Final = {"http": 80, "https": 443}
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET: Final = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_REPEATABLE: Final = {b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"}  # RFC 9110, 9.2.2
_LAST_CHUNK: Final = b"0\r\n\r\n"


class TrioTransport(httpx.AsyncBaseTransport):
    """
    A transport for `httpx.AsyncClient`, over Trio's sockets.

    It is several times as fast with many requests at once, and no task that is cancelled leaves its place in a pool taken.

    It speaks HTTP/1.1, without proxies, and has no bound on connections. One that is idle is kept for some seconds, to be used again;
    a request that finds such a one closed is sent once more, on a new one, if its method may be repeated and its body is no
    stream. A client in use belongs to one Trio run at a time, and may be used in another one afterwards.

    Args:
        verify: What TLS is made with. True: the certificates of `SSL_CERT_FILE`, `SSL_CERT_DIR`, or certifi's; False: any, unverified.
    """

    def __init__(self, *, verify: ssl.SSLContext | bool = True) -> None:
        self._verify = verify
        self._pool: Pool | None = None
        self._run: trio.lowlevel.TrioToken | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request, and return the answer once its head has come.

        Raises:
            httpx.TransportError: What has failed; `LocalProtocolError` where the request is none, and nothing was sent.
        """
        asked = _asked(request)
        with _errors():
            reply = await self._send(asked, self._origin(request.url), request.extensions)
        return httpx.Response(
            reply.status,
            headers=reply.raw_headers,
            stream=_Body(reply),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Close the idle connections. Answers under way go on, and close theirs."""
        if self._pool is not None and self._run is trio.lowlevel.current_trio_token():
            self._pool.close()
        self._pool = self._run = None

    async def _send(self, asked: _Asked, origin: Origin, extensions: Any) -> TrioReply:
        pool, trace = self._pool_here(), extensions.get("trace", _untold)
        waits = {name: math.inf if value is None else value for name, value in extensions.get("timeout", {}).items()}
        await trace("http11.send_request_headers.started", {})  # ahead of it all, since nothing has to be closed yet
        if (idle := pool.take(origin)) is not None:
            reply = asked.reply(pool, idle, waits)
            try:
                return await asked.begin(reply)
            except Broken:
                if not (reply.is_untouched and asked.is_repeatable):
                    raise
        await trace("connection.connect_tcp.started", {})
        reply = asked.reply(pool, await pool.connect(origin, waits.get("connect", math.inf)), waits)
        return await asked.begin(reply)

    def _pool_here(self) -> Pool:
        """Return the pool of this Trio run; that of another one has ended with it."""
        run = trio.lowlevel.current_trio_token()
        if self._pool is None or self._run is not run:
            self._pool, self._run = Pool(), run
        return self._pool

    def _origin(self, url: httpx.URL) -> Origin:
        return Origin(
            url.raw_host.decode("ascii"),
            url.port or _PORTS[url.scheme],
            self._context() if url.scheme == "https" else None,
        )

    def _context(self) -> ssl.SSLContext:
        if self._verify is True:
            self._verify = default_context()
        elif self._verify is False:
            self._verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._verify.check_hostname, self._verify.verify_mode = False, ssl.CERT_NONE
        return self._verify


async def _untold(event: str, info: dict[str, Any]) -> None:
    """Stand in for a trace that nobody keeps."""


class _Asked(NamedTuple):
    """A request, as it is sent."""

    method: bytes
    parts: Parts
    upload: _Upload | None
    keeps: bool

    @property
    def is_repeatable(self) -> bool:
        return self.upload is None and self.method in _REPEATABLE

    def reply(self, pool: Pool, connection: Any, waits: dict[str, float]) -> TrioReply:
        read, write = waits.get("read", math.inf), waits.get("write", math.inf)
        return TrioReply(pool, connection, read, send_stall=write, decodes=False, keeps=self.keeps)

    async def begin(self, reply: TrioReply) -> TrioReply:
        if self.upload is None:
            await reply.begin(self.parts, self.method)
        else:
            async with contextlib.aclosing(self.upload):
                await reply.begin(self.parts, self.method, self.upload)
        return reply


@discreet
def _asked(request: httpx.Request) -> _Asked:
    """
    Put a request into bytes.

    Raises:
        httpx.UnsupportedProtocol: It is for no HTTP.
        httpx.LocalProtocolError: It is none.
    """
    if request.url.scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"{request.url.scheme!r} is neither 'http' nor 'https'")
    method, target, fields = request.method.encode(), request.url.raw_path, request.headers.raw
    if method == b"CONNECT":
        raise httpx.UnsupportedProtocol("this transport makes no tunnels")
    if not (_TOKEN.fullmatch(method) and _TARGET.fullmatch(target)):
        raise httpx.LocalProtocolError(f"{method!r} {target!r} is no line of a request")
    for name, value in fields:
        if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise httpx.LocalProtocolError(f"a field cannot be sent: {name!r}")
    lines = [b"%b: %b\r\n" % field for field in fields]
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join(lines))
    keeps = b"close" not in _words(fields, b"connection")
    length = _length(fields)
    if isinstance(request.stream, httpx.ByteStream):
        return _Asked(method, Parts((head, _framed(b"".join(request.stream), length))), None, keeps)
    assert isinstance(request.stream, httpx.AsyncByteStream), "a client of httpx looks after that"
    return _Asked(method, Parts((head,)), _Upload(request.stream, length), keeps)


def _words(fields: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    """Return the words of a field that is a list of them."""
    return [
        word.strip().lower() for name, value in fields if name.lower() == wanted for word in value.split(b",") if word
    ]


def _length(fields: list[tuple[bytes, bytes]]) -> int | None:
    """Return how long a body is to be; None: it goes in chunks."""
    lengths, codings = _words(fields, b"content-length"), _words(fields, b"transfer-encoding")
    if codings == [b"chunked"] and not lengths:
        return None
    if codings or len(lengths) > 1 or not all(map(bytes.isdigit, lengths)):
        raise httpx.LocalProtocolError(f"nobody knows where a body ends that has {lengths!r} and {codings!r}")
    return int(lengths[0]) if lengths else 0


def _framed(body: bytes, length: int | None) -> bytes:
    if length is None:
        return _chunk(body) + _LAST_CHUNK if body else _LAST_CHUNK
    if len(body) != length:
        raise httpx.LocalProtocolError(f"the body has {len(body)} bytes, and was to have {length}")
    return body


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class _Upload:
    """The body of a request that comes piece by piece, in chunks if it has no length."""

    def __init__(self, stream: httpx.AsyncByteStream, length: int | None) -> None:
        self._pieces = aiter(stream)
        self._length = length
        self._sent = 0
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        while (piece := await anext(self._pieces, None)) is not None:
            self._sent += len(piece)
            if self._length is not None and self._sent > self._length:
                raise httpx.LocalProtocolError(f"the body has more than the {self._length} bytes that it was to have")
            if piece:
                return piece if self._length is not None else _chunk(piece)
        self._is_over = True
        if self._length is None:
            return _LAST_CHUNK
        if self._sent < self._length:
            raise httpx.LocalProtocolError(f"the body has {self._sent} bytes, and was to have {self._length}")
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End what is left half-way: httpx's own streams are async generators."""
        if (aclose := getattr(self._pieces, "aclose", None)) is not None:
            await aclose()


class _Body(httpx.AsyncByteStream):
    """The body of an answer: no async generator, so that one that is left half-way needs nobody to end it."""

    def __init__(self, reply: TrioReply) -> None:
        self._reply = reply
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        data = b""
        try:
            with _errors():
                data = await self._reply.read()
        finally:
            if not data:
                await self.aclose()
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """End the exchange: at once, if it is not over."""
        self._is_over = True
        self._reply.close()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Say what has failed in the words of httpx."""
    try:
        yield
    except ConnectTimedOut as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except CannotAsk as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except CannotConnect as error:
        raise httpx.ConnectError(str(error)) from error
    except SendStalled as error:
        raise httpx.WriteTimeout(str(error)) from error
    except Stalled as error:
        raise httpx.ReadTimeout(str(error)) from error
    except Broken as error:  # the system has said why, or it is our parser that does
        kind = httpx.RemoteProtocolError if error.__cause__ is None else httpx.ReadError
        raise kind(str(error)) from error
