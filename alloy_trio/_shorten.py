"""
Conversations made shorter without asking anybody: pure functions from messages to messages.

What need not change is the same object. No message is left without a block, and no call without its result.
"""

from __future__ import annotations

import bisect
import operator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload

import attrs

from ._estimate import measure_block
from ._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    ResultBlock,
    ServerToolResult,
    ServerToolUse,
    Text,
    ToolResult,
    ToolUse,
    Video,
)
from ._output import is_reminder
from ._summary import LEFT_OUT, clip, summary_in, summary_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._util import JSONObject

PLACEHOLDER = "[This old tool result was removed to save room.]"

_CUT_TEXT = 200  # characters that truncation leaves of an old answer
_LEAST = 400  # bytes that clipping leaves of a block
_LEVELS = (32_000, 8_000, 2_000, _LEAST)  # bytes of a block: the first with which everything fits

Messages: TypeAlias = tuple[Message, ...]


class Surplus(Protocol):
    """Says by how many bytes a conversation is too large; 0 or less if it is not."""

    def __call__(self, messages: Sequence[Message], *, comfortably: bool = False) -> int:
        """Measure `messages`; `comfortably` against what they should take, not what they may."""
        ...


def where_to_cut(messages: Sequence[Message]) -> list[int]:
    """Return where a conversation can be cut in two: behind each of these places no call is answered that was made before it."""
    asked: dict[str, int] = {}
    inside = set[int]()
    for place, message in enumerate(messages):
        for block in message.content:
            match block:
                case ToolUse(id=call) | ServerToolUse(id=call):
                    asked[call] = place
                case ToolResult(tool_use_id=call) | ServerToolResult(tool_use_id=call):
                    inside.update(range(asked.get(call, place - 1) + 1, place + 1))
    return [place for place in range(len(messages)) if place not in inside]


def place_of_request(messages: Sequence[Message]) -> int:
    """Return where the latest message is in which the user asks for something, or -1 if there is none."""
    return max((place for place, message in enumerate(messages) if _is_request(message)), default=-1)


def _is_request(message: Message) -> bool:
    """Whether it is the user who speaks: no tools, no summary, and no loop that wants another answer to the same request."""
    if message.role != "user" or not message.content or message.tool_results or summary_in(message) is not None:
        return False
    return not is_reminder(message.text)


def clear_results(messages: Messages, *, spared: int) -> Messages:
    """Put a placeholder in place of tool results, except the last `spared` ones and those that are no longer than it."""
    results = [result for message in messages for result in message.tool_results]
    old = {id(result) for result in results[: len(results) - max(spared, 0)]}
    return _changed(messages, lambda _, block: _cleared(block) if id(block) in old else block)


def truncate(messages: Messages) -> Messages:
    """Clear all tool results, and cut the text of answers after its first 200 characters."""

    def shorten(message: Message, block: Block) -> Block:
        if isinstance(block, Text) and message.role == "assistant" and len(block.text) > _CUT_TEXT:
            return Text(block.text[:_CUT_TEXT] + "…")
        return _cleared(block)

    return _changed(messages, shorten)


def squeeze(messages: Messages, surplus: Surplus, *, drop: bool) -> Messages:
    """
    Make a conversation fit comfortably, whatever it takes; it may still not.

    First tool results are clipped, the oldest first; then other blocks, the longest first; then, with `drop`, the oldest
    messages go. What the user says in the last message stays as it is, and so does the user's latest request, unless it takes
    more than half of the room: a prompt that cannot be sent is worse.
    """
    messages = _clip_results(messages, surplus(messages, comfortably=True))
    spared = _spared(messages, surplus)
    for longest in _LEVELS:
        if surplus(messages, comfortably=True) <= 0:
            return messages
        messages = _clip_blocks(messages, longest, spared)
    return without_oldest(messages, surplus, keep=1) if drop and surplus(messages, comfortably=True) > 0 else messages


def _changed(messages: Messages, change: Callable[[Message, Block], Block]) -> Messages:
    """Return the messages with each block changed, from the first to the last."""
    changed = []
    for message in messages:
        blocks = [change(message, block) for block in message.content]
        same = all(map(operator.is_, blocks, message.content))
        changed.append(message if same else attrs.evolve(message, content=blocks))
    return tuple(changed)


def _cleared(block: Block) -> Block:
    if not isinstance(block, ToolResult):
        return block
    cleared = attrs.evolve(block, content=PLACEHOLDER)
    return cleared if _weight(cleared) < _weight(block) else block


def _weight(block: Block) -> int:
    """Return the size of a block in bytes, media included."""
    size = measure_block(block)
    return size.text + 4 * size.media


def _weight_of(message: Message) -> int:
    return sum(map(_weight, message.content))


def _clip_results(messages: Messages, surplus: int) -> Messages:
    def shorten(part: ResultBlock) -> ResultBlock:
        nonlocal surplus
        if surplus <= 0:
            return part
        clipped = _clip_to(part, _weight(part) - surplus)
        surplus -= _weight(part) - _weight(clipped)
        return clipped

    return _changed(messages, lambda _, block: _with_parts(block, shorten))


def _with_parts(block: Block, change: Callable[[ResultBlock], ResultBlock]) -> Block:
    """Return a tool result with each part of its content changed; any other block as it is."""
    if not isinstance(block, ToolResult):
        return block
    parts = [change(part) for part in block.content]
    return block if all(map(operator.is_, parts, block.content)) else attrs.evolve(block, content=parts)


def _spared(messages: Messages, surplus: Surplus) -> Messages:
    """Return what is not clipped: the last message, if it is the user's, and the latest request."""
    spared = messages[-1:] if messages[-1].role == "user" else ()
    request = place_of_request(messages)
    if request < 0:
        return spared
    room = sum(map(_weight_of, messages)) - surplus(messages, comfortably=True)
    return (*spared, messages[request]) if 2 * _weight_of(messages[request]) <= room else spared


def _clip_blocks(messages: Messages, longest: int, spared: Messages) -> Messages:
    whole = set(map(id, spared))
    return _changed(messages, lambda message, block: block if id(message) in whole else _clip_to(block, longest))


@overload
def _clip_to(block: ResultBlock, longest: int) -> ResultBlock: ...
@overload
def _clip_to(block: Block, longest: int) -> Block: ...
def _clip_to(block: Block, longest: int) -> Block:
    """Return a block of about that many bytes: itself, if it is no longer, or of a kind that cannot be clipped."""
    longest = max(longest, _LEAST)
    if _weight(block) <= longest:
        return block
    match block:
        case Text(text=text):
            return Text(clip(text, longest))
        case ToolUse(invalid_input=str(raw)):
            return attrs.evolve(block, invalid_input=clip(raw, longest))
        case ToolUse(input=arguments):
            clipped = _clip_strings(arguments, longest)
            return block if clipped == arguments else _with_input(block, clipped)
        case ToolResult():
            return _with_parts(block, lambda part: _clip_to(part, longest))
        case Image() | Audio() | Video() | Document():
            return Text(f"[{type(block).__name__} ({block.mime_type}) was removed to save room.]")
    return block


def _with_input(call: ToolUse, arguments: JSONObject) -> ToolUse:
    """Return a call with other arguments, without what the provider has kept of those it had, letter by letter."""
    kept = {key: value for key, value in (call.provider_data or {}).items() if key != "arguments"}
    return attrs.evolve(call, input=arguments, provider_data=kept or None)


def _clip_strings(value: Any, longest: int) -> Any:
    match value:
        case str():
            return clip(value, longest)
        case dict():
            return {key: _clip_strings(member, longest) for key, member in value.items()}
        case list():
            return [_clip_strings(member, longest) for member in value]
    return value


def without_oldest(messages: Messages, surplus: Surplus, *, keep: int) -> Messages:
    """
    Leave out what follows the first message, and the summary if there is one, until the rest fits comfortably.

    The last `keep` messages and the latest request of the user's stay, whether it fits or not.
    """
    places = [place for place in where_to_cut(messages) if 0 < place <= len(messages) - keep]
    if not places:
        return messages
    start = places[0]
    head = messages[:start]
    if summary_in(messages[start]) is not None:
        head += (messages[places.pop(0)],)
    else:
        head += (summary_message(LEFT_OUT),)
    if not places:
        return messages
    request = place_of_request(messages)

    def rest(place: int) -> Messages:
        asked = messages[request : request + 1] if start <= request < place else ()
        return head + asked + messages[place:]

    fitting = bisect.bisect_left(places, 0, key=lambda place: -surplus(rest(place), comfortably=True))
    found = rest(places[min(fitting, len(places) - 1)])
    return found if surplus(found) < surplus(messages) else messages
