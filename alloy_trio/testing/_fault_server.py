"""
A server that fails as it is told: real sockets, on this machine, for what a fake provider cannot show.

    a request ── the next fault of the script, else none
       │      ── the good answer in the API that was asked, whole or streamed, as it was asked for
       │      ── the fault's change of it
       ▼
    sent ─────── as far as the fault lets it, and left as the fault says
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import trio

from .._background import Background
from .._errors import WireError
from ..providers._json import as_dict, decode
from ._answers import Answer, good, wire_of
from ._faults import Fault

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from types import TracebackType

_MOMENT: Final = 0.01  # seconds in which what was sent arrives, before a reset takes away what has not
_HERE: Final = "127.0.0.1"
_NO_LENGTH: Final = b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # a close is a reset


@attrs.frozen
class Asked:
    """
    A request, as it came over the socket.

    Attributes:
        path: Where to.
        headers: Its fields; names in lower case.
        body: Its JSON; the bytes, where it is none.
    """

    path: str
    headers: dict[str, str]
    body: Any


class FaultServer:
    """
    A server on this machine that follows a script of faults, one a request, and answers well when it is at its end.

    It speaks Chat Completions, Anthropic's Messages and OpenAI's Responses: the path of a request says which. It is up in the
    body of its `async with`, and only there. It never checks a key, and never talks to anybody but this machine. A request
    has to have a length: one in chunks is refused (411), and on what is no HTTP it hangs up.

    Args:
        script: The faults, first one first, and maybe without an end; None for a request that is answered well.
        answer: What a good answer says.
        ssl_context: What it speaks TLS with, for 127.0.0.1; None: it speaks none. A fault that ends a connection ends it without
            TLS's goodbye.

    Attributes:
        url: Its address, for `base_url=`.
        requests: What was asked: `path`, `headers` and `body` of each.
        connections: How many there were.
        taken: Bytes that clients took, or the system for them.
    """

    def __init__(
        self,
        script: Iterable[Fault | None] = (),
        *,
        answer: str = "Hello",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.url: str = ""
        self.requests: list[Asked] = []
        self.connections: int = 0
        self.taken: int = 0
        self._script = (fault or Fault() for fault in script)
        self._ahead = next(self._script, None)
        self._answer = answer
        self._tls = ssl_context
        self._busy: set[_Connection] = set()
        self._is_idle = trio.Event()
        self._up = trio.CancelScope()
        self._task = Background(self._listen)

    @property
    def is_done(self) -> bool:
        """Whether the script is at its end."""
        return self._ahead is None

    def _take(self) -> Fault:
        fault, self._ahead = self._ahead or Fault(), next(self._script, None)
        return fault

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._socket = self._bound(0)
        self._port = self._socket.getsockname()[1]
        self.url = f"http{'' if self._tls is None else 's'}://{_HERE}:{self._port}/v1"
        await self._task.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        try:
            await self._task.__aexit__(kind, failure, traceback)
        finally:
            self._socket.close()
        if self._task.error is not None and failure is None:
            raise self._task.error

    async def wait_idle(self) -> None:
        """Wait until all connections are closed, but for those that rest behind a whole answer."""
        while self._busy:
            await self._is_idle.wait()

    def _bound(self, port: int) -> trio.socket.SocketType:
        """Return a socket at the port, which listens unless the script says otherwise: then whoever comes is refused."""
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((_HERE, port))
        if not self._is_refusing:
            bound.listen(100)
        return trio.socket.from_stdlib_socket(bound)

    @property
    def _is_refusing(self) -> bool:
        return self._ahead is not None and self._ahead.end == "refuse"

    async def _listen(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                while (ahead := self._ahead) is not None and ahead.end == "refuse":
                    await trio.sleep(ahead.seconds)
                    self._take()
                    self._rebind()
                with trio.CancelScope() as self._up:
                    while True:
                        accepted, _ = await self._socket.accept()
                        nursery.start_soon(self._serve, _Connection(self, trio.SocketStream(accepted), self._tls))
                self._rebind()

    def _rebind(self) -> None:
        self._socket.close()
        self._socket = self._bound(self._port)

    async def _serve(self, connection: _Connection) -> None:
        self.connections += 1
        self._busy.add(connection)
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while await self._exchange(connection) and not self._is_refusing:
                    self._rest(connection)
        finally:
            connection.socket.close()
            self._rest(connection)
        if self._is_refusing:
            self._up.cancel()

    def _rest(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if not self._busy:
            self._is_idle.set()
            self._is_idle = trio.Event()

    async def _exchange(self, connection: _Connection) -> bool:
        """Answer one request, and return whether another may follow."""
        if not await connection.has_more() or self._is_refusing:
            return False
        self._busy.add(connection)
        fault = self._take()
        if (asked := await connection.request()) is None:
            return False
        self.requests.append(asked)
        wire = wire_of(asked.path)
        answer = fault.change(good(wire, self._answer, streams=as_dict(asked.body).get("stream") is True))
        return await connection.send(answer, fault)


class _Connection:
    """A client's connection, from the server's side."""

    def __init__(self, server: FaultServer, stream: trio.SocketStream, tls: ssl.SSLContext | None) -> None:
        self.socket = stream.socket
        self.stream: trio.abc.Stream = stream
        if tls is not None:
            self.stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        self._server = server
        self._read = b""

    async def has_more(self) -> bool:
        """Wait until something has come."""
        return bool(self._read) or await self._more()

    async def _more(self) -> bool:
        data = await self.stream.receive_some()
        self._read += data
        return bool(data)

    async def request(self) -> Asked | None:
        """Wait for a whole request; None where the client hangs up, or what it says is no request that is read here."""
        while b"\r\n\r\n" not in self._read:
            if not await self._more():
                return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        try:
            _, path, _ = line.split(" ")
            size = int(headers.get("content-length", 0))
        except ValueError:
            return None
        if "transfer-encoding" in headers:
            await self._send(_NO_LENGTH)
            return None
        while len(self._read) < size:
            if not await self._more():
                return None
        body, self._read = self._read[:size], self._read[size:]
        return Asked(path, headers, _read(body))

    async def send(self, answer: Answer, fault: Fault) -> bool:
        """Send what is to be sent, and return whether all of it was."""
        pieces = iter(answer)
        if fault.at is None:
            for piece in pieces:
                await self._send(piece)
            return True
        first, place = b"", answer.place(fault.at)
        while len(first) < place and (piece := next(pieces, b"")):
            first += piece
        await self._send(first[:place])
        rest = first[place:] or next(pieces, b"")
        match fault.end:
            case "stall" if not rest:
                return True
            case "stall":
                await self._wait_until_left()
            case "reset":
                await trio.sleep(_MOMENT)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            case "trickle":
                await self._trickle(itertools.chain((rest,), pieces), fault.seconds)
                return True
        return False

    async def _send(self, data: bytes) -> None:
        await self.stream.send_all(data)
        self._server.taken += len(data)

    async def _trickle(self, pieces: Iterable[bytes], seconds: float) -> None:
        for byte in itertools.chain.from_iterable(pieces):
            await trio.sleep(seconds)
            await self._send(bytes([byte]))

    async def _wait_until_left(self) -> None:
        while await self.stream.receive_some():
            pass


def _read(body: bytes) -> Any:
    try:
        return decode(body)
    except WireError:
        return body
