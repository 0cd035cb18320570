"""
A connection to a server: bytes out in one write, bytes in as they come, and an end that is immediate.

Without TLS it is a socket of the standard library and Trio's `wait_readable`: a wake-up, a read, nothing around them. With TLS it
is Trio's `SSLStream`. That one gives a record at a time, and a server that streams puts each event into a record of its own; so
what has arrived besides is drained behind the first, which makes many small records one read.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import trio

from ._exchange import Broken, CannotConnect, ConnectTimedOut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_CHUNK: Final = 1 << 16  # bytes of a read
_PORTION: Final = 1 << 18  # bytes that TLS takes before anybody hears of it
_MOST_PARTS: Final = 64  # of one write; IOV_MAX is 1024 at the least


Part: TypeAlias = bytes | bytearray | memoryview
"""A part of a request. A growing one (a bytearray) must not grow while it is sent."""


class ByteStream(Protocol):
    """What an exchange needs of a connection. All of it raises `Broken`."""

    async def send(self, parts: Sequence[Part], went: Callable[[], None]) -> None:
        """Send all of it, and call `went` whenever a part of it has gone. A cancel is seen, also where nothing waits."""
        ...

    async def receive(self) -> bytes:
        """Wait for bytes; none at the end. A checkpoint."""
        ...

    def is_quiet(self) -> bool:
        """Whether nothing has come, not even the end: only then may it be used again."""
        ...

    def close(self) -> None:
        """Close it, at once."""
        ...

    def fileno(self) -> int:
        """Return its file descriptor."""
        ...


class PlainStream:
    """A TCP connection. Takes the socket over."""

    __slots__ = ("_socket",)

    def __init__(self, given: socket.socket) -> None:
        given.setblocking(False)  # noqa: FBT003 - the standard library's own
        self._socket = given

    async def send(self, parts: Sequence[Part], went: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        sent = self._send(parts) if len(parts) <= _MOST_PARTS else 0
        if sent < sum(map(len, parts)):
            await self._send_rest(_rest(parts, sent), went)

    async def _send_rest(self, left: memoryview, went: Callable[[], None]) -> None:
        """Send what did not fit into the socket at once. It is a copy: the parts may grow while nobody looks."""
        while left:
            went()
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except (OSError, trio.ClosedResourceError) as error:
                raise Broken(_said(error)) from error
            left = left[self._send((left,)) :]

    def _send(self, parts: Sequence[Part]) -> int:
        try:
            if sys.platform == "win32":  # has no sendmsg
                return self._socket.send(b"".join(parts))
            return self._socket.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Broken(_said(error)) from error

    async def receive(self) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(_CHUNK)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError) as error:
                raise Broken(_said(error)) from error

    def is_quiet(self) -> bool:
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()


class TLSStream:
    """A TLS connection over TCP."""

    __slots__ = ("_is_cut", "_socket", "_stream")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._socket = stream.transport_stream.socket
        self._is_cut = False  # it could not send

    async def send(self, parts: Sequence[Part], went: Callable[[], None]) -> None:
        self._is_cut = True
        whole = memoryview(b"".join(parts))
        with _broken():
            for start in range(0, len(whole), _PORTION):
                await self._stream.send_all(whole[start : start + _PORTION])
                went()
        self._is_cut = False

    async def receive(self) -> bytes:
        if self._is_cut:
            return await self._last_words()
        with _broken():
            first = bytes(await self._stream.receive_some(_CHUNK))
        return b"".join((first, *self._drained())) if first else first

    def is_quiet(self) -> bool:
        return not self._stream.pending() and not self._socket.is_readable()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def _drained(self) -> list[bytes]:
        """Return what else has arrived, without waiting."""
        # Trio's own attribute, as below: without it, records come one by one, which is slower, and right.
        inner: Any = getattr(self._stream, "_ssl_object", None)
        drained: list[bytes] = []
        with contextlib.suppress(ssl.SSLError):  # there is no more; and what has failed will again
            while inner is not None and (data := inner.read(_CHUNK)):
                drained.append(data)
        return drained

    async def _last_words(self) -> bytes:
        """Return what came before the server closed it. Trio's stream reads no more once it could not send."""
        incoming: Any = getattr(self._stream, "_incoming", None)
        with _broken():
            while incoming is not None:
                if drained := self._drained():
                    return b"".join(drained)
                if not (data := await self._socket.recv(_CHUNK)):
                    break
                incoming.write(data)
        return b""


def _rest(parts: Sequence[Part], sent: int) -> memoryview:
    """Return a copy of what is left when so many bytes have gone."""
    number = 0
    while sent >= len(parts[number]):
        sent -= len(parts[number])
        number += 1
    return memoryview(b"".join((memoryview(parts[number])[sent:], *parts[number + 1 :])))


async def connect(host: str, port: int, context: ssl.SSLContext | None, seconds: float) -> ByteStream:
    """
    Open a connection, with TLS if there is a context for it, by whichever of the host's addresses answers first.

    Raises:
        CannotConnect: It cannot be had.
        ConnectTimedOut: Not within so many seconds.
    """
    try:
        with trio.fail_after(seconds):
            stream = await trio.open_tcp_stream(host, port)
            if context is not None:
                return await _with_tls(stream, host, context)
    except trio.TooSlowError:
        raise ConnectTimedOut(f"no answer within {seconds:g} seconds") from None
    except (OSError, ValueError) as error:  # the second: a name that cannot be one
        raise CannotConnect(_said(error.__cause__ if isinstance(error.__cause__, OSError) else error)) from error
    return PlainStream(_taken_over(stream))


async def _with_tls(stream: trio.SocketStream, host: str, context: ssl.SSLContext) -> TLSStream:
    done = False
    try:
        wrapped = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        await wrapped.do_handshake()
        done = True
    except trio.BrokenResourceError as error:
        raise CannotConnect(f"no TLS: {_said(error.__cause__ or error)}") from error
    finally:
        if not done:
            stream.socket.close()
    return TLSStream(wrapped)


def _taken_over(stream: trio.SocketStream) -> socket.socket:
    """Return the socket of a stream, which has no use for it any more."""
    family, kind, protocol = stream.socket.family, stream.socket.type, stream.socket.proto
    return socket.socket(family, kind, protocol, fileno=stream.socket.detach())


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise Broken(_said(error.__cause__ or error)) from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
