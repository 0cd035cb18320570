"""
A conversation as one wire has it, serialized once.

Between two requests a conversation only grows. So what was written for the last one is kept, and only what has come since is
written now: the cost of a turn does not depend on how long the conversation is. A request is its fields, what is kept, and the
end of it, which may still change: the next message may have to be merged with it, and Anthropic's marks stand there.

    fields  {"model": …, "tools": […]        made anew where one of them is another object
    done    ,"messages":[…,…,…               only ever grows
    open    ,…]}                             the items of the last message

It lives as long as the conversation only grows: a `History` that is changed otherwise starts a new set of them. The one exception is
its last message, a user's, to which something may be added until it is answered.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ._json import encode
from ._origin import Portable, current_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from .._messages import Message
    from .._util import JSONObject
    from ._base import Request


class _Before(NamedTuple):
    """What there was before the last message."""

    message: Message | None
    done: int  # how much of it
    open: list[JSONObject]
    written: bytes | None


class Transcript(abc.ABC):
    """
    The messages of a conversation in the form of one provider's wire.

    Attributes:
        open: The items of the last message that is there.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._fields_for: tuple[object, ...] | None = None
        self._fields = b""
        self._restart(())

    @abc.abstractmethod
    def _items(self, message: Message, before: list[JSONObject]) -> list[JSONObject]:
        """
        Return what a message becomes.

        `before` are the items of the last message that became any; the last of them may be changed, or taken out.
        """

    def _restart(self, messages: Sequence[Message]) -> None:
        """Forget all that was written; what is to come are these messages."""
        self._epoch = current_epoch(messages)
        self._portable = Portable(self._origin, self._epoch)
        self._count = 0
        self._last: Message | None = None
        self._before = _Before(None, 0, [], None)
        self._done = bytearray()
        self._written: bytes | None = None  # what is open, if that was needed already
        self.open: list[JSONObject] = []

    def update(self, messages: Sequence[Message]) -> None:
        """Take what has come since. The first messages have to be those of the last time."""
        if not self._count or not self._goes_on(messages):
            self._restart(messages)
        for message in messages[self._count :]:
            if message.epoch > self._epoch:
                self._restart(messages)
                self.update(messages)
                return
            self._take(message)

    def body(
        self, field: str, fields: bytes, *, first: Sequence[JSONObject] = (), last: Sequence[JSONObject] | None = None
    ) -> tuple[bytes | bytearray, ...]:
        """
        Return a request's body in parts; one of them is what is kept itself, and grows when more is taken.

        Args:
            field: Where the messages stand.
            fields: The other fields, as a JSON object; there is one at least.
            first: Items ahead of the messages.
            last: What to write in place of `open`.
        """
        start = b'%s,"%s":[' % (fields[:-1], field.encode())
        parts: list[bytes | bytearray] = [start]
        for part in (_inner(first), self._done, self._write_open() if last is None else _inner(last)):
            if part:
                parts += (part,) if len(parts) == 1 else (b",", part)
        return (*parts, b"]}")

    def _write_open(self) -> bytes:
        if self._written is None:
            self._written = _inner(self.open)
        return self._written

    def fields(self, key: tuple[object, ...], make: Callable[[], JSONObject]) -> bytes:
        """Return the other fields, as JSON: those of the last time, if they follow from the same things."""
        if self._fields_for is None or key != self._fields_for:
            self._fields_for, self._fields = key, encode(make())
        return self._fields

    def _goes_on(self, messages: Sequence[Message]) -> bool:
        count = self._count
        if count > len(messages):
            return False
        if messages[count - 1] is self._last:
            return True
        before = self._before
        if self._last is None or self._last.role != "user" or (count > 1 and messages[count - 2] is not before.message):
            return False
        self._count, self._last = count - 1, before.message
        self.open, self._written = before.open, before.written
        del self._done[before.done :]
        return True

    def _take(self, message: Message) -> None:
        self._before = _Before(self._last, len(self._done), self.open, self._written)
        self._count, self._last = self._count + 1, message
        taken = self._portable.take(message)
        before = list(self.open)
        if taken is not None and (items := self._items(taken, before)):
            written = self._write_open() if len(before) == len(self.open) else _inner(before)
            if self._done and written:
                self._done += b","
            self._done += written
            self.open, self._written = items, None


def _inner(items: Sequence[JSONObject]) -> bytes:
    """Write items as what stands between the brackets of an array."""
    return encode(items)[1:-1] if items else b""


AnyTranscript = TypeVar("AnyTranscript", bound=Transcript)


def transcript_of(request: Request, key: Hashable, make: Callable[[], AnyTranscript]) -> AnyTranscript:
    """Return the transcript of a request's conversation for whoever `key` is, up to date with its messages."""
    kept: dict[Any, Any] = {}
    # Where somebody in between has put other messages into the request, nothing is known of these.
    if (known := request._transcripts) is not None and known[0] is request.messages:  # noqa: SLF001 - its other half
        kept = known[1]
    if (found := kept.get(key)) is None:
        found = kept[key] = make()
    transcript: AnyTranscript = found
    transcript.update(request.messages)
    return transcript
