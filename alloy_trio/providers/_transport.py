"""
The exchange over Trio's own sockets: one HTTP/1.1 request, one answer, no object that is not needed.

    exchange ── an idle connection of the origin, the one used last, if nothing has come on it meanwhile; else a new one
       │     ── the head and the parts of the body in one write
       │     ── the answer's head; or the end of the connection: if it was an idle one, and no byte has come, once more on a new one
       ▼
    reply ───── read, read, …; closed behind the answer's end, the connection goes back; before that, its socket is closed

What has ended exactly where it said it would, and allows it, is used again; nothing else. A cancel closes the socket at once, so
that the server sees that nobody reads any more.
"""

from __future__ import annotations

import functools
import math
import os
import ssl
import sys
import zlib
from typing import TYPE_CHECKING, Any, Final

import trio

from ._exchange import Broken, CannotAsk, SendStalled, Stalled, Undecodable
from ._pool import Connection, Origin, Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from ._streams import Part

_PIECE: Final = 1 << 20  # bytes that one piece of a compressed body may become
_ANY_ZLIB: Final = 47  # zlib's word for: gzip or zlib, as the data says
_REFUSED: Final = 300  # a status from here on is no answer
_ENCODING: Final = len("content-encoding")
_COMPRESSED: Final = {b"gzip", b"x-gzip", b"deflate"}

_pool: trio.lowlevel.RunVar[Pool | None] = trio.lowlevel.RunVar("alloy_trio connections")


def current_pool() -> Pool | None:
    """Return the pool of this Trio run, which ends with it; None where the environment has a proxy: that is httpx's business."""
    try:
        return _pool.get()
    except LookupError:
        pool = None if _has_proxy() else Pool()
        _pool.set(pool)
        return pool


def _has_proxy() -> bool:
    names = {name.lower() for name, value in os.environ.items() if value}
    if not names.isdisjoint({"http_proxy", "https_proxy", "all_proxy"}):
        return True
    if sys.platform in {"win32", "darwin"}:
        from urllib.request import getproxies  # noqa: PLC0415 - there they are a setting of the system

        return bool(getproxies())
    return False


def idle_descriptors() -> set[int]:
    """Return the file descriptors of the connections that are kept for a next request."""
    pool = _pool.get(None)
    return set() if pool is None else {each.stream.fileno() for each in pool.idle}


@functools.cache
def default_context() -> ssl.SSLContext:
    """Return what TLS is made with by default: the certificates of `SSL_CERT_FILE`, `SSL_CERT_DIR`, or certifi's."""
    import certifi  # noqa: PLC0415 - loaded by those who use TLS

    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        return ssl.create_default_context(cafile=file or (None if folder else certifi.where()), capath=folder)
    except OSError as error:  # an SSLError is one
        raise CannotAsk(f"the certificates cannot be read (SSL_CERT_FILE, SSL_CERT_DIR): {error}") from error


async def exchange(
    pool: Pool,
    origin: Origin,
    request: Sequence[Part],
    *,
    stall: float = math.inf,
    method: bytes = b"POST",
) -> TrioReply:
    """
    Send a request, and return the answer once its head has come.

    Args:
        pool: The connections.
        origin: Where to.
        request: The bytes of the request, in parts.
        stall: Seconds in which no byte comes, or goes, after which it has failed.
        method: Its method, on which depends where an answer ends.

    Raises:
        CannotConnect: Nothing was sent.
        Stalled: It took too long.
        Broken: The connection broke, or brought no HTTP.
        Undecodable: The answer is compressed in a way that nobody here knows.
    """
    if (idle := pool.take(origin)) is not None:
        reply = TrioReply(pool, idle, stall)
        try:
            await reply.begin(request, method)
        except Broken:
            if not reply.is_untouched:
                raise
        else:
            return reply
    reply = TrioReply(pool, await pool.connect(origin), stall)
    await reply.begin(request, method)
    return reply


class TrioReply:
    """
    An answer that comes on a connection of ours; see `Reply`. Takes the connection over.

    Args:
        pool: Where the connection goes back to.
        connection: Where it comes from.
        stall: Seconds in which no byte comes, or goes, after which it has failed.
        send_stall: The same of the request alone; None: as `stall`.
        decodes: Whether a compressed body is decompressed.
        keeps: Whether the connection may be used again, as far as the request tells.
    """

    __slots__ = (
        "_connection",
        "_decodes",
        "_failure",
        "_has_body",
        "_inflate",
        "_is_open",
        "_is_sent",
        "_keeps",
        "_pool",
        "_send_stall",
        "_stall",
        "is_untouched",
    )

    def __init__(
        self,
        pool: Pool,
        connection: Connection,
        stall: float,
        *,
        send_stall: float | None = None,
        decodes: bool = True,
        keeps: bool = True,
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._stall = stall
        self._send_stall = stall if send_stall is None else send_stall
        self._decodes = decodes
        self._keeps = keeps
        self._inflate: Any = None  # a decompressor of zlib's, whose type has no public name
        self._has_body = False  # that was decompressed
        self._failure: Broken | None = None  # behind what came before it
        self._is_open = True
        self._is_sent = False  # all of the request
        self.is_untouched: bool = True  # no byte of it has come

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._connection.parser.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The fields of the head; names in lower case, several of one name joined by commas."""
        found: dict[str, str] = {}
        for raw, value in self._connection.parser.headers:
            name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
        return found

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The same, as they came."""
        return self._connection.parser.headers

    @property
    def is_complete(self) -> bool:
        """Whether all of the body has been read."""
        parser = self._connection.parser
        return parser.is_complete and not parser.pieces and (self._inflate is None or not self._inflate.unconsumed_tail)

    async def begin(
        self, request: Sequence[Part], method: bytes = b"POST", more: AsyncIterator[bytes] | None = None
    ) -> None:
        """Send the request, and more of it as it comes, and wait for the head. Raises what `exchange` does."""
        done = False
        parser = self._connection.parser
        try:
            parser.begin(method)
            self._is_sent = await self._send(request) and (more is None or await self._send_all(more))
            while not parser.status:
                await self._receive()
            if self._decodes:
                self._inflate = _decompressor(parser.headers, is_needed=parser.status < _REFUSED)
            done = True
        finally:
            if not done:
                self.close()

    async def read(self) -> bytes:
        """Return the next bytes of the body, `b""` at its end. Waits only where nothing has come yet, or much of little."""
        while True:
            if not self._is_open:
                raise Broken("the answer is closed")  # its connection may have another's by now
            if self._inflate is not None and self._inflate.unconsumed_tail:
                await trio.lowlevel.checkpoint()  # a few bytes may become so much that nobody else would have a turn
                return self._decompressed(self._inflate.unconsumed_tail)
            if pieces := self._connection.parser.pieces:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                if self._inflate is None or (data := self._decompressed(data)):
                    return data
            if self._failure is not None:
                raise self._failure
            if self._connection.parser.is_complete:
                return self._end()
            await self._receive()

    async def aclose(self) -> None:
        """End the exchange: at once, if it is not over. No checkpoint."""
        self.close()

    def close(self) -> None:
        """Do the same."""
        if self._is_open:
            self._is_open = False
            parser = self._connection.parser
            reusable = self._keeps and self._is_sent and parser.is_complete and parser.is_reusable
            self._pool.give_back(self._connection, reusable=reusable)

    async def _send_all(self, more: AsyncIterator[bytes]) -> bool:
        async for piece in more:
            if not await self._send((piece,)):
                return False
        return True

    async def _send(self, request: Sequence[Part]) -> bool:
        """Send it, and return whether all of it went. If not, there is something of an answer."""
        try:
            self._went()
            await self._connection.stream.send(request, self._went)
        except Broken:
            if self._connection.is_stalled:
                raise SendStalled(f"no byte went for {self._send_stall:g} seconds") from None
            await self._receive()  # a server may refuse a request before it has read all of it: its answer says why
            return False
        finally:
            self._connection.waits_until = math.inf
        return True

    async def _receive(self) -> None:
        """Take what comes next. What it completes before something fails is handed out first."""
        connection = self._connection
        self._wait(self._stall)
        try:
            data = await connection.stream.receive()
            self.is_untouched = self.is_untouched and not data
            connection.parser.feed(data)
        except Broken as failure:
            if connection.is_stalled:
                raise Stalled(f"no byte came for {self._stall:g} seconds") from None
            if not connection.parser.pieces:
                raise
            self._failure = failure
        finally:
            connection.waits_until = math.inf

    def _went(self) -> None:
        """Some of the request has gone: the next of it may take as long again."""
        self._wait(self._send_stall)

    def _wait(self, seconds: float) -> None:
        if seconds != math.inf:
            self._pool.wait_until(self._connection, trio.current_time() + seconds)

    def _decompressed(self, data: bytes) -> bytes:
        self._has_body = True
        if self._inflate.eof:
            return b""  # else zlib would collect what comes behind its end
        try:
            return bytes(self._inflate.decompress(data, _PIECE))
        except zlib.error as error:
            raise Undecodable(str(error)) from error

    def _end(self) -> bytes:
        if self._inflate is not None and not self._inflate.eof and self._has_body:
            failure = Undecodable("it ends in the middle")
            failure.may_pass = True
            raise failure
        return b""


def _decompressor(headers: list[tuple[bytes, bytes]], *, is_needed: bool) -> Any:
    """Return what decompresses a body; None where it is not compressed, or, if it is not needed, in a way that nobody here knows."""
    for name, value in headers:
        if (
            len(name) == _ENCODING
            and name.lower() == b"content-encoding"
            and (kind := value.strip().lower()) not in {b"", b"identity"}
        ):
            if kind not in _COMPRESSED:
                if not is_needed:  # the status says enough
                    return None
                raise Undecodable(f"it is compressed as {kind.decode('latin-1')!r:.50}, and was asked not to be")
            return zlib.decompressobj(_ANY_ZLIB)
    return None
