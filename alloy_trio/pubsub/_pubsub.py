"""
Topics: who publishes knows nobody, never waits, and is slowed down by nobody who lags.

    publish(topic, message) ── trie of patterns ── subscription: a bounded buffer and a policy ── receive

A publish runs nobody's code and has no checkpoint: it appends to buffers, in the task that publishes. So the messages of one
publisher are received in order, and a publish is whole, as seen from other tasks.
"""

from __future__ import annotations

from typing import Any, get_args

import attrs
import trio

from .._errors import InvalidOption
from ._subscription import Policy, Subscription
from ._topics import Trie, split_pattern, split_topic

_AT_ONCE = 256  # subscribers that `apublish` hands a message to between two checkpoints


@attrs.frozen(kw_only=True)
class PubSubStatistics:
    """
    How a `PubSub` stands.

    Attributes:
        subscribers: Subscriptions that have not ended.
        patterns: Patterns of all of these.
        buffered: Messages that wait in their buffers; one that waits in two counts twice.
        lost: Messages for which some subscriber had no room, those of ended subscriptions included.
    """

    subscribers: int
    patterns: int
    buffered: int
    lost: int


class PubSub:
    """
    Hands messages to whoever has subscribed to their topic.

    For instance::

        with pubsub.subscribe("agent:*:events", buffer=100) as subscription:
            async for message in subscription: …

    Topics are text in segments: `agent:7:events`. A pattern matches whole ones: `*` any one, `**` at the end the rest, none
    included. A message is any object, the same one for all who receive it; it is not kept for those who come later.

    It belongs to one Trio run, and to its thread. Another run may have it once it has no subscribers.
    """

    def __init__(self) -> None:
        self._trie: Trie[Subscription] = Trie()
        self._subscribers: dict[Subscription, None] = {}
        self._lost_before = 0  # by subscriptions that have ended
        self._run: trio.lowlevel.TrioToken | None = None

    def subscribe(self, *patterns: str, buffer: int = 64, policy: Policy = "drop_oldest") -> Subscription:
        """
        Receive what is published from now on, on topics that match any of `patterns`; each message once.

        Leaving the `with` that it stands in ends the subscription, and so does `close()`. When its buffer is full:

        * `drop_oldest`: the oldest message in it makes room, and `Lost(n)` is received next.
        * `drop_newest`: the new message is not taken, and `Lost(n)` is received next.
        * `disconnect`: nothing is taken any more, and `Lagged(n)` is raised behind what is in it.

        Args:
            *patterns: At least one.
            buffer: How many messages may wait to be received.
            policy: What happens when so many wait.

        Raises:
            InvalidOption: A pattern, buffer or policy that cannot be.
            RuntimeError: Called outside of the Trio run that this belongs to.
        """
        self._claim("subscribe")
        if not patterns:
            raise InvalidOption("subscribe() to what? Give a pattern at least; '**' is for everything")
        paths = dict.fromkeys(split_pattern(each) for each in patterns)
        _check(buffer, policy)
        subscription = Subscription(tuple(":".join(each) for each in paths), buffer, policy, self._leave)
        self._subscribers[subscription] = None
        for path in paths:
            self._trie.add(path, subscription)
        return subscription

    def publish(self, topic: str, message: Any) -> int:
        """
        Hand `message` to all who are subscribed to `topic`, without waiting, and return how many took it.

        For some thousand subscribers and more there is `apublish`, which lets other tasks run in between.

        Raises:
            InvalidOption: The topic cannot be one.
            RuntimeError: Called outside of the Trio run that this belongs to, from a thread for instance.
        """
        self._claim("publish")
        item = (topic, message)
        return sum(each.put(item) for each in self._trie.match(split_topic(topic)))

    async def apublish(self, topic: str, message: Any) -> int:
        """
        Do the same with a checkpoint before every 256 subscribers, the first included.

        Those who subscribe meanwhile do not get it. Cancelled, it has handed the message to some, in whole portions.

        Raises:
            InvalidOption: As `publish`.
            RuntimeError: As `publish`.
        """
        self._claim("apublish")
        segments = split_topic(topic)
        await trio.lowlevel.checkpoint()
        item, taken = (topic, message), 0
        for number, each in enumerate(self._trie.match(segments)):
            if number and not number % _AT_ONCE:
                await trio.lowlevel.checkpoint()
            taken += each.put(item)
        return taken

    def statistics(self) -> PubSubStatistics:
        """Return how it stands."""
        all_of_them = [each.statistics() for each in self._subscribers]
        return PubSubStatistics(
            subscribers=len(all_of_them),
            patterns=sum(len(each.patterns) for each in self._subscribers),
            buffered=sum(each.buffered for each in all_of_them),
            lost=self._lost_before + sum(each.lost for each in all_of_them),
        )

    def _leave(self, subscription: Subscription) -> None:
        if subscription not in self._subscribers:  # it has left before
            return
        del self._subscribers[subscription]
        self._lost_before += subscription.statistics().lost
        for pattern in subscription.patterns:
            self._trie.discard(split_pattern(pattern), subscription)

    def _claim(self, verb: str) -> None:
        """Make sure that this is the Trio run which this belongs to."""
        try:
            run = trio.lowlevel.current_trio_token()
        except RuntimeError:
            raise RuntimeError(
                f"{verb}() was called outside of Trio's thread. From a thread that Trio has started, "
                f"trio.from_thread.run{'' if verb == 'apublish' else '_sync'}(pubsub.{verb}, …) calls it where it belongs"
            ) from None
        if run is not self._run:
            if self._subscribers:
                raise RuntimeError(
                    f"{verb}(): this PubSub has subscribers in another Trio run; make one PubSub for each run"
                )
            self._run = run

    def __repr__(self) -> str:
        return f"<PubSub with {len(self._subscribers)} subscribers>"


def _check(buffer: Any, policy: Any) -> None:
    if not isinstance(buffer, int) or isinstance(buffer, bool) or buffer < 1:
        raise InvalidOption(f"buffer={buffer!r:.100} has to be a number of messages, 1 at least; the default is 64")
    if policy not in get_args(Policy):
        raise InvalidOption(f"policy={policy!r:.100} is none of {', '.join(get_args(Policy))}")
