"""
A `PubSub` whose topics reach other machines: what is published here is heard there, through Redis.

    publish ─▶ our own subscribers, at once
            └▶ outbox, bounded ─▶ the sender ─▶ PUBLISH: the topic's stream, where any are kept, and its channel
    the listener, on all channels of the prefix ─▶ our own subscribers, but for what is ours

A publish still waits for nobody: what the sender cannot send in time is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

import msgspec
import trio

from .._errors import InvalidOption
from .._far import error_from_json, published_from_json, published_to_json
from .._result import Result
from .._util import new_id
from ..pubsub._pubsub import PubSub
from ..pubsub._topics import split_topic
from ._errors import MORE, RedisUnavailable, unknown
from ._names import PREFIX, UNREADABLE, URL, address, check_count, check_prefix, check_seconds, encode
from ._redis import Link, beside, hear, open_link
from ._scripts import KEPT, PUBLISH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from .._util import JSONObject
    from ..pubsub._subscription import Policy, Subscription

_LAST_WORDS: Final = 2.0  # seconds for what is left in the outbox, when it is left

logger = logging.getLogger("alloy_trio.fleet")


class RedisPubSub(PubSub):
    """
    A `PubSub` for all who have the same Redis and prefix: `async with RedisPubSub("redis://localhost") as pubsub`.

    Here a message is handed over as in every `PubSub`, at once and as it is. Elsewhere it arrives a moment later, at most once,
    and made of JSON: results and events of agents as such, anything else as its JSON. Workers publish each answer once, when it is stored, on
    `agent:<session id>:responses`, or `agent:<name>:responses` where there is no session.

    Each process hears all topics of its prefix. While Redis is away, nothing is heard from others.

    Attributes:
        unsent: Messages that were dropped, as Redis was away or slow for too long.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        prefix: str = PREFIX,
        keep: int = 0,
        keep_seconds: float = 86400.0,
        outbox: int = 1000,
        patience: float = 10.0,
    ) -> None:
        """
        Say where it is.

        Args:
            url: Where Redis is.
            prefix: What all keys and channels begin with.
            keep: How many messages of each topic are kept for those who come later, of what is published here.
            keep_seconds: For how long, after the last one.
            outbox: How many messages may wait to be sent.
            patience: Seconds for which a Redis that is away when it is entered is asked again.

        Raises:
            InvalidOption: Something about the arguments.
        """
        super().__init__()
        self._prefix = check_prefix(prefix) + ":"
        self._url = address(url)
        self._keep = 0 if keep == 0 else check_count("keep", keep)
        self._keep_seconds = check_seconds("keep_seconds", keep_seconds, 1.0)
        self._most = check_count("outbox", outbox)
        self._patience = check_seconds("patience", patience)
        self._name = new_id()
        self._outbox: deque[tuple[str, Any]] = deque()
        self._is_filled = trio.Event()
        self._sending = trio.Lock()
        # Topics, and what is heard of them meanwhile.
        self._catching_up: list[tuple[str, list[tuple[tuple[int, int], Any]]]] = []
        # What came from the stream.
        self._newest: WeakKeyDictionary[Subscription, tuple[int, int]] = WeakKeyDictionary()
        self._link: Link | None = None
        self._opened: contextlib.AsyncExitStack | None = None
        self.unsent: int = 0

    def publish(self, topic: str, message: Any) -> int:
        """
        Hand `message` to all who are subscribed here, without waiting, and let it be sent to the others.

        Returns how many took it here.

        Raises:
            InvalidOption: The topic cannot be one.
            RuntimeError: Called outside of the Trio run that this belongs to, or while it is not open.
        """
        self._open_link()
        taken = super().publish(topic, message)
        self._post(topic, message)
        return taken

    async def apublish(self, topic: str, message: Any) -> int:
        """Do the same with a checkpoint before every 256 subscribers, the first included. Raises as `publish`."""
        self._open_link()
        taken = await super().apublish(topic, message)
        self._post(topic, message)
        return taken

    async def subscribe_late(
        self, topic: str, *, last: int, buffer: int = 64, policy: Policy = "drop_oldest"
    ) -> Subscription:
        """
        Subscribe to a topic, and receive what was kept of it first: its `last` messages, and then all that come, each once.

        Of messages that are published here in the very moment of the call, some may be missed: they are on their way.

        Args:
            topic: The topic; patterns are for `subscribe`.
            last: How many messages at most.
            buffer: As of `subscribe`; make it larger than `last`.
            policy: As of `subscribe`.

        Raises:
            InvalidOption: Something about the arguments.
            RedisUnavailable: Redis cannot be reached.
        """
        split_topic(topic)
        check_count("last", last)
        heard: list[tuple[tuple[int, int], Any]] = []
        catching_up = (topic, heard)
        self._catching_up.append(catching_up)
        try:
            said: list[bytes] = await self._open_link().run(KEPT, self._prefix, topic, last)
        finally:
            self._catching_up = [each for each in self._catching_up if each is not catching_up]
        newest = _number(said[-2].decode()) if said else (0, 0)
        subscription = self.subscribe(topic, buffer=buffer, policy=policy)
        self._newest[subscription] = newest
        for data in said[1::2]:
            with _left_out():
                subscription.put((topic, _message(msgspec.json.decode(data))))
        for number, message in heard:
            if number > newest:
                subscription.put((topic, message))
        return subscription

    def _open_link(self) -> Link:
        if self._link is None:
            raise RuntimeError("this RedisPubSub is not open: async with RedisPubSub(…) as pubsub")
        return self._link

    # To others

    def _post(self, topic: str, message: Any) -> None:
        if len(self._outbox) >= self._most:
            self._outbox.popleft()
            self.unsent += 1
        self._outbox.append((topic, message))
        self._is_filled.set()

    async def _send(self) -> None:
        while True:
            await self._is_filled.wait()
            await self._send_all()
            self._is_filled = trio.Event()

    async def _send_all(self) -> None:
        async with self._sending:  # so that the last words wait for the one that is under way
            while self._outbox:
                await self._send_one(*self._outbox.popleft())

    async def _send_one(self, topic: str, message: Any) -> None:
        try:
            data = encode(published_to_json(topic, message))
            more = self._keep, round(self._keep_seconds)
            await self._open_link().run(PUBLISH, self._prefix, topic, self._name, data, *more)
        except RedisUnavailable as error:
            self.unsent += 1
            logger.warning("what was published on %s was not sent: %s", topic, error)
        except Exception:
            self.unsent += 1
            logger.exception("what was published on %s cannot be sent", topic)

    # From others

    def _hear(self, data: bytes) -> None:
        sender, entry, rest = data.split(b" ", 2)
        if sender.decode() == self._name:
            return
        parsed = msgspec.json.decode(rest)
        topic, message = parsed["topic"], _message(parsed)
        number = None if entry == b"-" else _number(entry.decode())
        for each in self._trie.match(split_topic(topic)):
            if number is None or number > self._newest.get(each, (0, 0)):  # else it came from the stream already
                each.put((topic, message))
        for late, heard in self._catching_up:
            if late == topic and number is not None:
                heard.append((number, message))

    def _take(self, data: bytes) -> None:
        with _left_out():
            self._hear(data)

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise InvalidOption("this RedisPubSub is open already")
        async with contextlib.AsyncExitStack() as stack:
            link = await stack.enter_async_context(open_link(self._url, self._patience))
            up = trio.Event()
            await stack.enter_async_context(beside(partial(hear, self._url, f"{self._prefix}topic:*", self._take, up)))
            with trio.move_on_after(self._patience):
                await up.wait()
            if not up.is_set():
                raise RedisUnavailable(
                    f"what is published could not be heard for {self._patience:g} seconds: see the log"
                )
            self._link = link
            await stack.enter_async_context(beside(self._send))
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        try:
            with trio.move_on_after(_LAST_WORDS, shield=True):
                await self._send_all()
        finally:
            try:
                await opened.__aexit__(kind, error, traceback)
            finally:
                self._link = None


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    try:
        yield
    except UNREADABLE:
        logger.warning("something was published that cannot be read, and is left out")


def _message(parsed: JSONObject) -> Any:
    if "error" in parsed:
        error = error_from_json(parsed["error"], unknown, MORE)
        known = getattr(error, "result", None)
        return known if known is not None else Result(status="error", error=error)
    return published_from_json(parsed, unknown)


def _number(entry: str) -> tuple[int, int]:
    first, _, second = entry.partition("-")
    return int(first), int(second)
