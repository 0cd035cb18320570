"""
The way to Redis: two clients, time-outs, patience.

Of coredis this uses scripts, blocking reads of streams, SCAN and publish/subscribe, and no more. It makes a new connection where
one broke; what was under way raises, and is asked again here until it is answered or `patience` seconds have passed. So
whatever is asked has to bear being done twice. An answer that does not come in time may mean a client that is stuck: it is
replaced. Blocking reads have a client of their own, so that they never stand before a command.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from .._background import Background
from .._errors import AlloyError, InvalidOption
from .._util import single
from ..providers._secret import without_users
from ._errors import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from coredis import Redis

    from ._scripts import Script

T = TypeVar("T")
Entries = list[tuple[str, str, str]]
"""What was read of streams: key, entry, and the id in it."""

TIMEOUT: Final = 5.0  # seconds until a client that does not answer is taken for stuck
QUIET: Final = 5.0  # seconds in which nothing is heard, until Redis is asked whether it is still there
_SLOWEST: Final = 1e6  # bytes a second that a network carries at least
_NOT_NOW: Final = (
    "OOM",
    "LOADING",
    "BUSY",
    "MISCONF",
    "READONLY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
)
_WORDS: Final = {
    "OOM": "it is full: give it more maxmemory, or submit less",
    "LOADING": "it is reading its data after a start",
    "READONLY": "it is a replica, to which nothing is written",
    "MISCONF": "it cannot write to its disk",
}

logger = logging.getLogger("alloy_trio.fleet")


class _NotNow(Exception):
    """Redis cannot do it just now."""


class NoGroup(AlloyError):
    """A stream, or its group, is not there (any more)."""


class _Client:
    """One client, replaced when it does not answer. It lives in a task of its own, as coredis has tasks in it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Redis[bytes] | None = None
        self._ready = trio.Event()
        self._stuck = trio.Event()
        self._why: Exception | None = None

    async def keep(self) -> None:
        while True:
            try:
                async with _make(self._url) as client:
                    self._client, self._stuck, self._why = client, trio.Event(), None
                    self._ready.set()
                    await self._stuck.wait()
            except Exception as error:  # noqa: BLE001 - told to who asks
                self._why = single(error)
            finally:
                self._client, self._ready = None, trio.Event()
            await trio.sleep(0.05)

    async def ask(self, what: Callable[[Redis[bytes]], Awaitable[T]], seconds: float) -> T:
        """Ask once. Raises _NotNow, NoGroup, RedisUnavailable."""
        with trio.move_on_after(seconds):
            while self._client is None:
                await self._ready.wait()
            client = self._client
            try:
                with trio.fail_after(seconds):
                    return await what(client)
            except trio.TooSlowError:
                self._give_up(client)
            except Exception as error:
                raise _judge(single(error)) from error
        raise _NotNow(f"it does not answer{'' if self._why is None else f' ({without_users(str(self._why))})'}")

    def _give_up(self, client: Redis[bytes]) -> None:
        if client is self._client:
            self._stuck.set()


def _make(url: str, **more: Any) -> Redis[bytes]:
    import coredis  # noqa: PLC0415 - it takes half a second
    from coredis.retry import NoRetryPolicy  # noqa: PLC0415 - as above

    return coredis.Redis.from_url(
        url, decode_components=True, retry_policy=NoRetryPolicy(), connect_timeout=TIMEOUT, verify_version=False, **more
    )


def _judge(error: Exception) -> Exception:
    """Return what an error of coredis means."""
    from coredis import exceptions as known  # noqa: PLC0415 - as above

    said = str(error)
    word = said.partition(" ")[0].rstrip(":").removeprefix("-")
    match error:
        case known.StreamConsumerGroupError():
            return NoGroup(said)
        case known.AuthenticationError() | known.AuthorizationError():
            return RedisUnavailable(
                f"Redis does not let us in: {said} (user and password stand in its address, redis://USER:PASSWORD@HOST)"
            )
        case known.ConnectionError() | OSError() | trio.BrokenResourceError() | trio.ClosedResourceError():
            return _NotNow(said)
        case known.ResponseError() if "NOGROUP" in said:
            return NoGroup(said)
        case known.ReadOnlyError():
            return _NotNow(_WORDS["READONLY"])
        case known.ResponseError() if word in _NOT_NOW or "used memory > 'maxmemory'" in said:
            return _NotNow(_WORDS.get(word) or (_WORDS["OOM"] if "maxmemory" in said else said))
        case known.RedisError():
            return RedisUnavailable(f"Redis refuses: {said}")
        case ExceptionGroup():  # of several tasks of coredis, as a connection broke
            return _NotNow(said)
    return error


class Link:
    """
    The way to one Redis.

    Attributes:
        patience: Seconds for which what cannot be done now is tried again.
        is_closed: Whether it was left: nothing can be asked any more.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._url = url
        self._commands = _Client(url)
        self._reads = _Client(url)
        self.patience = patience
        self.is_closed = False

    async def keep(self) -> None:
        """Keep the clients alive, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commands.keep)
            nursery.start_soon(self._reads.keep)

    async def run(self, script: Script, base: str, *args: str | int | bytes, patience: float | None = None) -> Any:
        """Run a script. Raises RedisUnavailable, NoGroup."""

        async def ask(client: Redis[bytes]) -> Any:
            from coredis.exceptions import NoScriptError  # noqa: PLC0415 - as above

            try:
                return await client.evalsha(script.sha, [base], list(args))
            except NoScriptError:  # it has been restarted, or is new
                return await client.eval(script.text, [base], list(args))

        size = sum(len(each) for each in args if isinstance(each, bytes))
        return await self._patiently(self._commands, ask, TIMEOUT + size / _SLOWEST, patience)

    async def read_group(self, keys: Sequence[str], group: str, name: str, count: int, block: float) -> Entries:
        """Take entries that nobody has, waiting for `block` seconds."""
        got = await self._patiently(
            self._reads,
            lambda client: client.xreadgroup(
                group, name, dict.fromkeys(keys, ">"), count=count, block=int(block * 1000)
            ),
            block + TIMEOUT,
        )
        return _entries(got)

    async def read(self, since: Mapping[str, str], block: float) -> Entries:
        """Read what comes behind an entry of each stream, waiting for `block` seconds."""
        got = await self._patiently(
            self._reads, lambda client: client.xread(since, count=1000, block=int(block * 1000)), block + TIMEOUT
        )
        return _entries(got)

    async def command(self, what: Callable[[Redis[bytes]], Awaitable[T]]) -> T:
        """Do something else."""
        return await self._patiently(self._commands, what, TIMEOUT)

    async def _patiently(
        self,
        client: _Client,
        what: Callable[[Redis[bytes]], Awaitable[T]],
        seconds: float,
        patience: float | None = None,
    ) -> T:
        patience = self.patience if patience is None else patience
        until, pause = trio.current_time() + patience, 0.05
        while True:
            if self.is_closed:
                raise RedisUnavailable("the way to Redis is closed, as its `async with` was left: open another one")
            try:
                return await client.ask(what, seconds)
            except _NotNow as error:
                if trio.current_time() + pause > until:
                    where = without_users(self._url)
                    raise RedisUnavailable(f"{where} could not be used for {patience:g} seconds: {error}") from error
            await trio.sleep(pause)
            pause = min(2 * pause, 1.0)


async def hear(url: str, pattern: str, take: Callable[[bytes], None], up: trio.Event) -> None:
    """
    Hand over what is published on channels that match, until cancelled; `up` is set once it begins.

    Where the connection breaks, or is dead without saying so, what is published until there is another one is not heard.
    """
    while True:
        try:
            async with (
                _make(url, stream_timeout=TIMEOUT) as client,
                client.pubsub(
                    patterns=[pattern], ignore_subscribe_messages=True, retry_policy=None, max_idle_seconds=QUIET
                ) as heard,
            ):
                up.set()
                async for message in heard:
                    data = message["data"]
                    if isinstance(data, bytes):
                        take(data)
        except Exception as error:  # noqa: BLE001 - coredis may raise anything when a connection breaks
            logger.warning("what is published was not heard for a moment: %s", single(error))
        await trio.sleep(0.2)


def text(data: bytes) -> str:
    """Return text: also of what somebody else has written."""
    return data.decode(errors="replace")


def _entries(got: Any) -> Entries:
    return [
        (key.decode(), entry.identifier.decode(), text(entry.field_values.get(b"id") or b""))
        for key, entries in (got or {}).items()
        for entry in entries
        if entry.field_values is not None
    ]


@contextlib.asynccontextmanager
async def beside(fn: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run `fn` until the body is left: a cancel around both does not end it before, so that the body can still use it."""
    scope = trio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            await fn()

    async with Background(run):
        try:
            yield
        finally:
            scope.cancel()


@contextlib.asynccontextmanager
async def open_link(url: str, patience: float) -> AsyncIterator[Link]:
    """Keep a way to Redis open while the body runs. Raises InvalidOption, RedisUnavailable."""
    try:
        import coredis  # noqa: F401, PLC0415 - only those who have a fleet need it
    except ImportError as error:
        raise InvalidOption("a fleet needs coredis: pip install 'alloy_trio[redis]'") from error
    link = Link(url, patience)
    async with beside(link.keep):
        await _check(link)
        try:
            yield link
        finally:
            link.is_closed = True


async def _check(link: Link) -> None:
    """See whether Redis is there, and does not throw away what it has. Raises InvalidOption, RedisUnavailable."""
    said: Mapping[str, Any] = await link.command(lambda client: client.info("memory"))
    policy = said.get("maxmemory_policy", "noeviction")
    if said.get("maxmemory") and policy != "noeviction":
        raise InvalidOption(
            f"Redis may throw away what is queued when it is full: its maxmemory-policy is {policy}; set it to noeviction"
        )
