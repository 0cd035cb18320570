"""
A conversation that another provider has written in, made fit for this one.

What a model leaves in its messages besides text (reasoning, seals over it, item ids, tools that the provider ran, the form
of call ids) is understood only where it came from; anywhere else it is a 400, or silently dropped. So each request sends
the history as its target may read it, while the history itself stays as it was.

The same goes for what was said before the conversation was changed: reasoning is sealed over all that precedes it, so that of an
earlier epoch is left out, wherever it came from. Text, calls and their results stay.

Everything here is a pure function of a message, of those before it, and of the conversation's epoch: as long as nobody changes
what was said, a longer conversation is sent with the shorter one as its beginning, which prompt caches and sealed reasoning
rely on.
"""

from __future__ import annotations

import collections
import hashlib
import operator
import re
from typing import TYPE_CHECKING

import attrs

from .._messages import Message, Opaque, ServerToolResult, ServerToolUse, Text, Thinking, ToolResult, ToolUse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .._messages import Block

_PORTABLE_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def fingerprint(provider: str, base_url: str, api_key: str | None) -> str:
    """Return 16 hex characters that tell provider, endpoint and account apart. The key cannot be had back from them."""
    return _digest("\0".join((provider, base_url, api_key or "")))


def current_epoch(messages: Iterable[Message]) -> int:
    """Return the epoch of a conversation, the highest of its messages'. An answer of a lower one is stale."""
    return max((message.epoch for message in messages), default=0)


class Portable:
    """
    A conversation as an origin may read it, message by message.

    Messages that need no change are the same objects: all of that origin, those made by hand, with neither origin nor
    provider, and the user's, unless they answer a call whose id was rewritten. Foreign are those of another origin, and of
    a provider that names none, which is the user's own. Of these, reasoning becomes text; what is sealed, opaque, or about
    tools that the provider ran is left out; and no call has the id of one before it, as those of some servers have. Stale
    ones go without reasoning. Both go without `provider_state`, since no response can continue from them, and not at all if
    nothing remains.

    Args:
        origin: Who is to read it.
        epoch: That of the whole conversation; answers of a lower one are stale.
    """

    def __init__(self, origin: str, epoch: int) -> None:
        self._origin = origin
        self._epoch = epoch
        self._taken: dict[str, int] = {}  # how often an id was taken
        self._ids: dict[
            str, list[str]
        ] = {}  # what the calls of an id are called now, of the last message that has such

    def take(self, message: Message) -> Message | None:
        """Return the next message; None if nothing of it remains."""
        if message.role == "user":
            return _with_content(message, _answers(message, self._ids)) if self._ids else message
        foreign = message.origin != self._origin and (message.origin or message.provider) is not None
        calls = [call.id for call in message.tool_uses]
        renamed = [_unique_id(call, self._taken) for call in calls] if foreign else calls
        if not foreign:
            for call in calls:
                self._taken[call] = self._taken.get(call, 0) + 1
        self._ids = {}
        if renamed != calls or len(set(calls)) < len(calls):
            self._ids = {call: [new for old, new in zip(calls, renamed, strict=True) if old == call] for call in calls}
        stale = message.epoch < self._epoch
        if not foreign and not stale:
            return message
        blocks = [block for block in message.content if not (stale and isinstance(block, Thinking))]
        content = list(_portable(blocks, iter(renamed))) if foreign else blocks
        if not content:
            return None
        own = message if message.provider_state is None else attrs.evolve(message, provider_state=None)
        return _with_content(own, content)


def for_origin(messages: Sequence[Message], origin: str) -> list[Message]:
    """Return a whole conversation as `origin` may read it; see `Portable`."""
    portable = Portable(origin, current_epoch(messages))
    return [taken for message in messages if (taken := portable.take(message)) is not None]


def portable_id(call_id: str) -> str:
    """
    Return a call id that every provider takes, `[a-zA-Z0-9_-]{1,64}`: the id itself if it is one.

    Pure; distinct ids stay distinct, because the original's hash is part of the new one.
    """
    if _PORTABLE_ID.fullmatch(call_id):
        return call_id
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', call_id)[:40]}_{_digest(call_id)}"


def _unique_id(call_id: str, taken: dict[str, int]) -> str:
    """Return a portable id that no call so far has: a function of this one and of the calls before it."""
    new = portable_id(call_id)
    while new in taken:
        taken[call_id] = taken.get(call_id, 0) + 1
        new = portable_id(f"{call_id} {taken[call_id]}")  # with a blank, it is hashed
    taken[new] = taken.get(new, 0) + 1
    return new


def _portable(blocks: Iterable[Block], ids: Iterator[str]) -> Iterable[Block]:
    """Yield what of a foreign message can be read here. `ids`: what its calls are called."""
    for block in blocks:
        match block:
            case Thinking(text=text):
                if text.strip():
                    yield Text(text)
            case ServerToolUse() | ServerToolResult() | Opaque():
                pass
            case ToolUse():
                same = (new := next(ids)) == block.id and block.provider_data is None
                yield block if same else attrs.evolve(block, id=new, provider_data=None)
            case Text() if block.provider_data is not None:
                yield attrs.evolve(block, provider_data=None)
            case _:
                yield block


def _answers(message: Message, ids: Mapping[str, list[str]]) -> list[Block]:
    """Return a user's blocks with the results under the ids that the calls have now: of calls with one id, in their order."""
    seen = collections.Counter[str]()
    blocks: list[Block] = []
    for block in message.content:
        if isinstance(block, ToolResult) and (called := ids.get(block.tool_use_id)):
            new = called[min(seen[block.tool_use_id], len(called) - 1)]
            seen[block.tool_use_id] += 1
            blocks.append(block if new == block.tool_use_id else attrs.evolve(block, tool_use_id=new))
        else:
            blocks.append(block)
    return blocks


def _with_content(message: Message, content: Sequence[Block]) -> Message:
    """Return the message with that content: itself, if none of the blocks is another."""
    same = len(content) == len(message.content) and all(map(operator.is_, content, message.content))
    return message if same else attrs.evolve(message, content=content)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
