"""
The connections of one Trio run: which are idle, which wait for bytes, and for how long they may.

Taking and putting back costs the same however many there are. One system task looks after all of them: it closes what has been idle
for some seconds, and what has waited for a byte longer than it may. So a wait needs no cancel scope of its own. Whoever waited on a
connection that is closed so finds `is_stalled` on it.

There is no bound on connections, so nobody waits for one, and no place can be lost.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ._http1 import ResponseParser
from ._streams import connect

if TYPE_CHECKING:
    import ssl

    from ._streams import ByteStream

CONNECT_TIMEOUT: Final = 10.0  # seconds, TLS included
IDLE: Final = 20.0  # seconds that a connection is kept for a next request


class Origin(NamedTuple):
    """
    Where connections lead to: one may be used for another request to the same.

    Attributes:
        host: A name or an address, without brackets.
        port: The port.
        context: What TLS is made with; None: plain HTTP.
    """

    host: str
    port: int
    context: ssl.SSLContext | None


class Connection:
    """
    One connection, and the answers that come on it.

    Attributes:
        waits_until: When a wait for bytes under way has taken too long.
        is_stalled: Whether one has, and the connection was closed for it.
        idle_since: When it was put back.
    """

    __slots__ = ("idle_since", "is_stalled", "origin", "parser", "stream", "waits_until")

    def __init__(self, stream: ByteStream, origin: Origin) -> None:
        self.stream = stream
        self.origin = origin
        self.parser = ResponseParser()
        self.waits_until = math.inf
        self.is_stalled = False
        self.idle_since = 0.0

    def close(self) -> None:
        """Close it, at once."""
        self.close_stream()
        self.parser.close()

    def close_stream(self) -> None:
        """Close it under somebody who waits for it, and is told so."""
        with contextlib.suppress(OSError):
            self.stream.close()


class Pool:
    """
    Connections, by origin.

    Attributes:
        active: Those that a request has.
        connecting: How many requests wait for one that is being made.
    """

    def __init__(self) -> None:
        self.active: set[Connection] = set()
        self.connecting = 0
        self._idle: dict[Origin, list[Connection]] = {}  # in the order in which they became so
        self._next_look = math.inf
        self._look = trio.Event()
        self._is_closed = False
        trio.lowlevel.spawn_system_task(self._look_after, name="alloy_trio connections")

    @property
    def idle(self) -> list[Connection]:
        """Those that are kept for a next request."""
        return [each for kept in self._idle.values() for each in kept]

    def statistics(self, origin: Origin) -> dict[str, int]:
        """Return how many connections to an origin there are: `active` ones, those of them that wait for bytes, and `idle` ones."""
        active = [each for each in self.active if each.origin == origin]
        waiting = sum(each.waits_until < math.inf for each in active)
        return {"active": len(active), "waiting": waiting, "idle": len(self._idle.get(origin, ()))}

    def take(self, origin: Origin) -> Connection | None:
        """Return the idle connection that was used last, if there is one on which nothing has come meanwhile."""
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.stream.is_quiet():
                self.active.add(connection)
                return connection
            connection.close()
        return None

    async def connect(self, origin: Origin, seconds: float = CONNECT_TIMEOUT) -> Connection:
        """Make another one. Raises `CannotConnect`."""
        self.connecting += 1
        try:
            connection = Connection(await connect(origin.host, origin.port, origin.context, seconds), origin)
        finally:
            self.connecting -= 1
        self.active.add(connection)
        return connection

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """Keep a connection for a next request, or close it."""
        self.active.discard(connection)
        if not reusable or self._is_closed:
            connection.close()
            return
        connection.parser.begin()  # what is kept has nothing of the last answer
        connection.idle_since = trio.current_time()
        self._idle.setdefault(connection.origin, []).append(connection)
        self._look_at(connection.idle_since + IDLE)

    def wait_until(self, connection: Connection, deadline: float) -> None:
        """Note that the wait for bytes that begins now is to end by then."""
        connection.waits_until = deadline
        self._look_at(deadline)

    def close(self) -> None:
        """Close those that are idle, and keep none from now on."""
        self._is_closed = True
        self._close_idle(math.inf)
        self._look.set()

    def _look_at(self, time: float) -> None:
        if time < self._next_look:
            self._next_look = time
            self._look.set()

    async def _look_after(self) -> None:
        try:
            while not self._is_closed:
                with trio.CancelScope(deadline=self._next_look):
                    await self._look.wait()
                self._look = trio.Event()
                if (now := trio.current_time()) >= self._next_look:
                    self._close_idle(now - IDLE)
                    self._close_stalled(now)
                    self._next_look = self._next()
        finally:
            self.close()  # what comes back later, as the run ends, is not kept

    def _next(self) -> float:
        oldest = min((kept[0].idle_since for kept in self._idle.values() if kept), default=math.inf)
        return min(oldest + IDLE, min((each.waits_until for each in self.active), default=math.inf))

    def _close_idle(self, since: float) -> None:
        """Close those that have been idle since then, or longer."""
        for origin, kept in list(self._idle.items()):
            while kept and kept[0].idle_since <= since:
                kept.pop(0).close()
            if not kept:
                del self._idle[origin]

    def _close_stalled(self, now: float) -> None:
        for connection in self.active:
            if connection.waits_until <= now:
                connection.is_stalled, connection.waits_until = True, math.inf
                connection.close_stream()
