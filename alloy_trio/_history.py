"""
The messages of a run, how large they are, and how often what was sent before has been changed.

Models seal their reasoning over all that precedes it: change an earlier message, and the seal is broken. So a conversation
has an epoch, counted up by each change that is no growth, and each answer says in which epoch it was given; wires send the
reasoning of the newest one only. The count lives in the messages alone (`max` of their epochs), because they are all that a
session stores.

    append     an answer gets the current epoch. Costs as much as the message is long, however long the conversation.
    replace    growth is appended. Any other change begins an epoch: who is new is marked with it, or, if nobody is, the
               first message. An answer that was edited, and still has its reasoning or the provider's state as of it, keeps
               its own mark: these belong to another epoch.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import attrs

from ._errors import InvalidOption
from ._estimate import Size, measure
from ._messages import Block, Message, Thinking

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class History:
    """
    A conversation that grows.

    Attributes:
        epoch: The highest epoch of its messages.
        rewrites: How often it was changed otherwise than at its end.
        transcripts: What of it wires have serialized, by provider; anew whenever it was changed so.
    """

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.epoch: int = 0
        self.rewrites: int = 0
        self.transcripts: dict[Any, Any] = {}
        self._messages: list[Message] = []
        self._snapshot: tuple[Message, ...] | None = None
        self._said = Size()
        self._thought = Size()  # in this epoch
        for message in messages:
            self._take(message)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages; the same tuple until something changes."""
        if self._snapshot is None:
            self._snapshot = tuple(self._messages)
        return self._snapshot

    @property
    def size(self) -> Size:
        """How large it is as it would be sent: reasoning of earlier epochs does not count."""
        return self._said + self._thought

    def __len__(self) -> int:
        return len(self._messages)

    def keep_transcripts(self, writers: Sequence[object]) -> None:
        """Forget what others than these have serialized."""
        self.transcripts = {key: kept for key, kept in self.transcripts.items() if any(key is each for each in writers)}

    def append(self, message: Message) -> Message:
        """Add a message at the end, and return it as it stands there: an answer with the current epoch."""
        if message.role == "assistant" and message.epoch != self.epoch:
            message = attrs.evolve(message, epoch=self.epoch)
        self._take(message)
        return message

    def replace(self, messages: Iterable[Message]) -> bool:
        """
        Let these be the messages. Returns whether that changed anything.

        Raises:
            InvalidOption: There are none, or a call and its result are not both there, or the assistant would now begin;
                nothing was changed.
        """
        new = tuple(messages)
        check_pairs(new)
        old = self.messages
        _check_beginning(old, new)
        if len(new) >= len(old) and all(map(_same, old, new)):
            for message in new[len(old) :]:
                self.append(message)
            return len(new) > len(old)
        vars(self).update(vars(History(_marked(old, new))), rewrites=self.rewrites + 1)
        return True

    def add_to_last(self, *blocks: Block) -> None:
        """Add blocks to the last message, which nobody has answered yet. No other epoch: nothing is sealed over it."""
        last = self._messages.pop()
        self._said += measure(Message.user(*blocks))
        self._messages.append(attrs.evolve(last, content=(*last.content, *blocks)))
        self._snapshot = None

    def _take(self, message: Message) -> None:
        self._messages.append(message)
        self._snapshot = None
        if message.epoch > self.epoch:
            self.epoch = message.epoch
            self._thought = Size()
        whole = measure(message)
        if message.role == "user" or not _reasons(message):
            self._said += whole
            return
        said = measure(message, reasoning=False)
        self._said += said
        if message.epoch == self.epoch:
            self._thought += whole - said


class Kept:
    """
    The history that a session's last run had: how large its messages are, and what wires have serialized.

    Whoever takes it has it alone. It belongs to this process: a copy, or a pickle, is empty.
    """

    __slots__ = ("_history",)

    def __init__(self) -> None:
        self._history: History | None = None

    def take(self, messages: tuple[Message, ...]) -> History | None:
        """Return it, if these are its messages: the very same ones."""
        history, self._history = self._history, None
        return history if history is not None and history.messages is messages else None

    def put(self, history: History) -> None:
        """Keep it for the next run."""
        self._history = history

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def check_pairs(messages: Sequence[object]) -> None:
    """
    Make sure that a conversation can be sent: each result answers a call of the assistant's message before it, and each call is answered.

    Raises:
        InvalidOption: It is empty, has what is no message, has parted a call from its result, or answers one twice.
    """
    if not messages:
        raise InvalidOption("the history would be empty: keep a message at least")
    calls: set[str] = set()
    unanswered: list[str] = []  # some servers give one id to two calls of an answer: then there are two results
    for message in messages:
        if not isinstance(message, Message):
            raise InvalidOption(f"the history has {message!r:.100}, which is no message: say Message.user(…)")
        if message.tool_results if message.role == "assistant" else message.tool_uses:
            raise InvalidOption("the history has a call of the user's, or a result of the assistant's: exchange them")
        if message.role == "assistant":
            _all_answered(unanswered)
            unanswered = [call.id for call in message.tool_uses]
            calls = set(unanswered)
            continue
        for result in message.tool_results:
            if result.tool_use_id not in calls:
                raise InvalidOption(
                    f"the history has a result of call {result.tool_use_id!r} without the call right before it: "
                    "leave out both, or neither"
                )
            if result.tool_use_id not in unanswered:
                raise InvalidOption(f"the history has call {result.tool_use_id!r} answered: leave out a second one")
            unanswered.remove(result.tool_use_id)
    if isinstance(message, Message) and message.role == "user":
        _all_answered(unanswered)


def _all_answered(unanswered: Sequence[str]) -> None:
    if unanswered:
        raise InvalidOption(
            f"the history has calls without their results ({', '.join(sorted(unanswered))}): leave out both, or neither"
        )


def _check_beginning(old: Sequence[Message], new: Sequence[Message]) -> None:
    """Make sure that the user begins, which some providers insist on: unless the assistant did so before, as it was given."""
    if new[0].role == "assistant" and not (old and old[0].role == "assistant"):
        raise InvalidOption(
            "the history would begin with the assistant's message, which some providers refuse: "
            "keep a message of the user's before it"
        )


def _same(one: Message, other: Message) -> bool:
    return one is other or one == other


def _reasons(message: Message) -> bool:
    return any(isinstance(block, Thinking) for block in message.content)


def _is_bound(message: Message) -> bool:
    """Whether a message has something that holds only behind what it was said behind."""
    return _reasons(message) or message.provider_state is not None


def _marked(old: Sequence[Message], new: Sequence[Message]) -> list[Message]:
    """Return the new messages, with the mark of a new epoch on one of them at least: above all that were there."""
    epoch = 1 + max(message.epoch for message in (*old, *filter(_is_bound, new)))
    known = _Known(old)
    marked = [
        message if message in known or _is_bound(message) else attrs.evolve(message, epoch=epoch) for message in new
    ]
    if all(map(operator.is_, marked, new)):
        marked[0] = attrs.evolve(new[0], epoch=epoch)
    return marked


class _Known:
    """Tells which messages are among some others: by identity, or else by being equal; messages have no hash."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._ids = {id(message) for message in messages}
        self._messages = messages

    def __contains__(self, message: Message) -> bool:
        return id(message) in self._ids or message in self._alike.get(_likeness(message), ())

    @functools.cached_property
    def _alike(self) -> dict[tuple[str, ...], list[Message]]:
        alike: dict[tuple[str, ...], list[Message]] = {}
        for message in self._messages:
            alike.setdefault(_likeness(message), []).append(message)
        return alike


def _likeness(message: Message) -> tuple[str, ...]:
    """Return what equal messages have in common and few others: role, text, and the calls."""
    calls = (call.id for call in message.tool_uses)
    return (message.role, message.text, *calls, *(result.tool_use_id for result in message.tool_results))
