"""The other end of `serve_agents`: one connection, made again when it is lost, and what is asked over it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import attrs
import trio

try:
    from trio_websocket import ConnectionClosed, ConnectionRejected, wrap_client_stream
except ImportError as missing:
    raise ImportError('alloy_trio.remote needs trio-websocket: pip install "alloy_trio[ws]"') from missing

from .._background import Background, check_home
from .._errors import InvalidOption
from .._util import JSONObject, single
from ..pubsub._subscription import Lost
from . import _data
from ._dial import Options, Watched, check_url, dial, why_not
from ._errors import ConnectionLost, ProtocolError, Refused
from ._link import PROTOCOL, TOO_LARGE, Link, until_gone
from ._peer import WINDOW
from ._remote_agent import RemoteAgent
from ._remote_subscription import RemoteSubscription
from ._rights import is_token

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable


logger = logging.getLogger("alloy_trio.remote")

_RECEIVE: Final = 65_536
_BACKOFF: Final = 0.1  # seconds that the first wait takes on average
_LONGEST: Final = 5.0
_ACKNOWLEDGED: Final = WINDOW // 2  # parts of a stream at once
_FINAL: Final = {401, 403, 426}  # a refusal that another try does not change


@attrs.define(eq=False)
class _Ask:
    """A request under way."""

    reply: JSONObject | None = None  # None, once it is done: the connection was lost
    lost: Exception | None = None  # why, where that is known
    done: trio.Event = attrs.field(factory=trio.Event)
    parts: Any = None  # where the parts of a stream go: the sending half of a memory channel

    def end(self, reply: JSONObject | None, lost: Exception | None = None) -> None:
        self.reply, self.lost = reply, lost or self.lost
        self.done.set()
        if self.parts is not None:
            self.parts.close()


class Remote:
    """
    A server of agents, as `connect` gives it. Used from any number of tasks of its Trio run.

    What is safe to repeat is asked again by itself when the connection was lost and is back: whatever reads, waits or
    subscribes, and `send_message`, whose request the other end knows by its id.
    """

    def __init__(self, options: Options, token: str, dial: Callable[[Options], Awaitable[trio.abc.Stream]]) -> None:
        self._options = options
        self._token = token
        self._dial = dial
        self._home = trio.lowlevel.current_trio_token()
        self._numbers = itertools.count(1)
        self._asks: dict[int, _Ask] = {}
        self._link: Link | None = None
        self._failure: Exception | None = None
        self._has_changed = trio.Event()

    def agent(self, name: str) -> RemoteAgent:
        """Return the handle of an agent. Whether there is one, its first request tells."""
        return RemoteAgent(self, name)

    async def agents(self) -> tuple[str, ...]:
        """Return the names of the agents that the token may reach."""
        return tuple(await self._call("agents", repeats=True))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, *topics: str, buffer: int = 64, policy: str = "drop_oldest"
    ) -> AsyncIterator[RemoteSubscription]:
        """
        Receive what is published at the other end from now on: batches of envelopes, results, and what programs publish, as JSON.

        For instance::

            async with remote.subscribe("agent:*:responses") as messages:
                async for message in messages: …

        `Lost(n)` comes in the place of what there was no room for at the other end, as with `PubSub.subscribe`; `Lost(0)` where
        the connection was lost in between, and nobody knows what was missed.

        Raises:
            InvalidOption: Topics, buffer or policy cannot be, or the server has no topics.
            NotAllowed: The token is not for these topics.
        """
        send, receive = trio.open_memory_channel[Any](0)
        is_subscribed = trio.Event()

        async def take(part: JSONObject) -> None:
            with contextlib.suppress(trio.BrokenResourceError):  # it has been left, and a cancel is on its way
                if "published" in part:
                    await send.send(_data.published_from_json(part["published"]))
                elif is_subscribed.is_set():
                    await send.send(Lost(0))
                else:
                    is_subscribed.set()

        async def listen() -> None:
            try:
                await self._call(
                    "subscribe", repeats=True, take=take, topics=list(topics), buffer=buffer, policy=policy
                )
            finally:
                send.close()
                is_subscribed.set()

        life = Background(listen)
        async with life:
            await is_subscribed.wait()
            if life.error is None:
                with receive:
                    yield RemoteSubscription(receive, life)
        if life.error is not None:
            raise life.error

    async def _call(
        self,
        do: str,
        *,
        repeats: bool = False,
        take: Callable[[JSONObject], Awaitable[None]] | None = None,
        ended: Callable[[JSONObject], None] | None = None,
        **given: Any,
    ) -> Any:
        """
        Ask for something, and return what comes of it. A cancel of who asks is one of the request: it leaves once it has ended there.

        Args:
            do: What.
            repeats: Whether it is asked again if the connection was lost meanwhile.
            take: Takes the parts of a stream; the next ones wait for it.
            ended: Told the reply, also where who asks was cancelled meanwhile.
            **given: With what.

        Raises:
            ConnectionLost: There is no connection any more, and it does not repeat.
            Refused: The server does not let us in again.
            Exception: What the other end says.
        """
        check_home(self._home, repr(self))
        deadline = trio.current_effective_deadline()
        while True:
            await trio.lowlevel.checkpoint()
            link = await self._connected()
            if deadline != math.inf:
                given["timeout"] = max(0.0, deadline - trio.current_time())
            number = next(self._numbers)
            was_sent, ask = await self._ask(link, number, {"id": number, "do": do, **given}, take, ended)
            if ask.reply is not None:
                break
            if was_sent and repeats and isinstance(ask.lost, ProtocolError):  # it would be so again, without end
                raise ask.lost
            if was_sent and not repeats:
                said = f"the connection to {self._options.url} was lost in the middle of {do}: nobody knows how far it had come"
                raise ConnectionLost(said, may_have_begun=True) from ask.lost
        if "error" in ask.reply:
            raise _data.error_from_json(ask.reply["error"])
        return ask.reply.get("ok")

    async def _ask(
        self,
        link: Link,
        number: int,
        frame: JSONObject,
        take: Callable[[JSONObject], Awaitable[None]] | None,
        ended: Callable[[JSONObject], None] | None,
    ) -> tuple[bool, _Ask]:
        """Return whether it was sent, and what became of it."""
        ask = self._asks[number] = _Ask()
        was_sent = False
        if take is not None:
            ask.parts, parts = trio.open_memory_channel[Any](WINDOW)
        try:
            with contextlib.suppress(trio.BrokenResourceError):
                await link.send(frame)
                was_sent = True
                if take is not None:
                    taken = 0
                    async for part in parts:
                        await take(part)
                        taken = (taken + 1) % _ACKNOWLEDGED
                        if not taken:
                            await link.send({"ack": number, "count": _ACKNOWLEDGED})
                await ask.done.wait()
            return was_sent, ask
        finally:
            if was_sent and not ask.done.is_set():
                link.doubt()
                with trio.CancelScope(shield=True), contextlib.suppress(trio.BrokenResourceError):
                    await link.send({"cancel": number})
                    await ask.done.wait()
            del self._asks[number]
            if ended is not None and ask.reply is not None:
                ended(ask.reply)

    async def _connected(self) -> Link:
        """Return the connection, once there is one."""
        while self._link is None:
            if self._failure is not None:
                raise self._failure
            await self._has_changed.wait()
        return self._link

    def _turn(self, link: Link | None, failure: Exception | None = None) -> None:
        self._link, self._failure = link, failure
        self._has_changed.set()
        self._has_changed = trio.Event()
        if link is None:
            for ask in self._asks.values():
                ask.end(ask.reply, failure)

    # The connection

    async def _live(self) -> None:
        """Be connected, again and again. Returns when there is no use in trying any more; `_failure` says why."""
        failure: Exception = ConnectionLost(f"the connection to {self._options.url} has been closed here")
        try:
            failure = await self._last_failure()
        finally:
            self._turn(None, failure)

    async def _last_failure(self) -> Exception:
        was_up, tries, since = False, 0, trio.current_time()
        while True:
            began = trio.current_time()
            failure = await self._be_connected()
            if failure is None:
                was_up, since = True, trio.current_time()
                tries = 0 if since - began >= _LONGEST else tries  # else it would be made again ten times a second
                failure = ConnectionLost(f"the connection to {self._options.url} was lost")
            is_final = isinstance(failure, ProtocolError) or (isinstance(failure, Refused) and failure.status in _FINAL)
            wait = random.random() * min(_LONGEST, _BACKOFF * 2.0 ** (tries + 1))  # noqa: S311 - no secret
            if is_final or not was_up or trio.current_time() + wait > since + self._options.reconnect:
                return failure
            self._turn(None)
            logger.info("connecting to %s again in %.1f s: %s", self._options.url, wait, failure)
            tries += 1
            await trio.sleep(wait)

    async def _be_connected(self) -> Exception | None:
        """Connect, and return when the connection is gone; or why there was none."""
        options = self._options
        stream: trio.abc.Stream | None = None
        try:
            with trio.fail_after(options.connect_timeout):
                stream = await self._dial(options)
            await self._use(stream)
        except ConnectionRejected as rejected:
            words = (rejected.body or b"").decode("utf-8", "replace").strip()
            words = words or f"status {rejected.status_code}, and no reason; is it a server of alloy_trio?"
            return Refused(f"{options.url} does not let us in: {words}", status=rejected.status_code)
        except ProtocolError as error:
            return error
        except trio.TooSlowError:
            return ConnectionLost(f"{options.url} did not answer within {options.connect_timeout:g} seconds")
        except Exception as error:  # noqa: BLE001 - the network's, TLS's, those of a server that speaks something else
            return ConnectionLost(f"cannot connect to {options.url}: {why_not(error)}")
        finally:
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
        return None

    async def _use(self, stream: trio.abc.Stream) -> None:
        options, url = self._options, urlsplit(self._options.url)
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(options.connect_timeout), Watched(stream).unless_it_ends() as watched:
                    socket = await wrap_client_stream(
                        nursery,
                        cast("trio.SocketStream", watched),  # any stream will do
                        url.netloc,
                        url.path or "/",
                        subprotocols=[PROTOCOL],
                        extra_headers=[(b"Authorization", f"Bearer {self._token}".encode())],
                        max_message_size=options.max_message_size,
                        receive_buffer_size=_RECEIVE,
                    )
                link = Link(socket, max_message_size=options.max_message_size)
                try:
                    nursery.start_soon(until_gone, link.write, nursery)
                    nursery.start_soon(until_gone, link.beat, nursery, options.ping_interval, options.ping_timeout)
                    with trio.fail_after(options.connect_timeout):
                        await self._greeted(link)
                    await self._read(link)
                except ProtocolError as error:
                    self._turn(None, error)
                    raise
                except ConnectionClosed as closed:
                    if self._link is None:
                        raise
                    self._turn(None, self._too_large(closed))
                finally:
                    self._turn(None)
                    await link.close(1000, "")
                nursery.cancel_scope.cancel()
        except* Exception as group:  # noqa: BLE001 - one task is there at first, and its error is what went wrong
            raise single(group) from None

    async def _greeted(self, link: Link) -> None:
        match await link.receive():
            case {"hello": dict(said)}:
                if isinstance(theirs := said.get("max_message_size"), int):
                    link.max_message_size = min(link.max_message_size, theirs)
                self._turn(link)
            case frame:
                raise ProtocolError(f"{self._options.url} begins with what is no greeting: {frame!r:.100}")

    def _too_large(self, closed: ConnectionClosed) -> Exception | None:
        """Return why what was under way is not asked again, if one end has closed the connection over a message."""
        if closed.reason is None or closed.reason.code != TOO_LARGE:
            return None
        return ProtocolError(
            f"the connection to {self._options.url} was closed over a message that was larger than max_message_size: "
            "raise it at both ends, or ask for less at once"
        )

    async def _read(self, link: Link) -> None:
        while True:
            match frame := await link.receive():
                case {"id": int(number)} if number in self._asks:
                    self._take(self._asks[number], frame)
                case {"id": int()}:
                    pass  # of somebody who has left
                case _:
                    raise ProtocolError(f"{self._options.url} has sent what is no reply: {frame!r:.100}")

    @staticmethod
    def _take(ask: _Ask, frame: JSONObject) -> None:
        if ask.done.is_set():
            pass  # it has its answer, and who asked has not woken up yet
        elif "ok" in frame or "error" in frame:
            ask.end(frame)
        elif ask.parts is not None:
            try:
                ask.parts.send_nowait(frame)
            except trio.BrokenResourceError:  # who asked has left, and waits for the end
                pass
            except trio.WouldBlock:
                raise ProtocolError("the server is further ahead with a stream than it may be") from None

    def __repr__(self) -> str:
        state = "connected" if self._link is not None else "not connected"
        return f"<Remote: {self._options.url}, {state}>"


@contextlib.asynccontextmanager
async def connect(
    url: str,
    token: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    max_message_size: int = 64 * 2**20,
    ping_interval: float = 20.0,
    ping_timeout: float = 20.0,
    connect_timeout: float = 10.0,
    reconnect: float = 60.0,
) -> AsyncIterator[Remote]:
    """
    Connect to a server of agents.

    For instance::

        async with connect("ws://127.0.0.1:7777", token) as remote:
            result = await remote.agent("researcher").chat("…")

    A connection that is lost is made again. Leaving the body cancels what is under way over it, but for messages that were sent.

    Args:
        url: What `serve_agents` says, `ws://` or `wss://`.
        token: The token.
        ssl_context: What TLS is made with, for certificates of your own.
        max_message_size: Bytes of a message, in either direction.
        ping_interval: Seconds between two pings.
        ping_timeout: Seconds that the server has to answer one.
        connect_timeout: Seconds that connecting may take.
        reconnect: Seconds for which a lost connection is tried again; 0 for never.

    Raises:
        ConnectionLost: Nobody answers there.
        Refused: The server does not let us in.
        InvalidOption: The URL is none, or has a password in it; the token is none; a number cannot be right.
    """
    try:
        check_url(url)
        options = Options(
            url=url,
            ssl_context=ssl_context,
            max_message_size=max_message_size,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            connect_timeout=connect_timeout,
            reconnect=reconnect,
        )
        if not is_token(token):
            raise InvalidOption(
                "a token is text without line ends, and without spaces around it: strip() what a file has"
            )
        remote = Remote(options, token, dial)
    finally:
        del token  # of a traceback that shows variables, this frame is a part
    async with Background(remote._live):  # noqa: SLF001 - its other half
        await remote._connected()  # noqa: SLF001 - as above
        yield remote
