"""
Anthropic's Messages API: what messages become.

The API checks a history strictly, and each rule of its own is kept in one place here:

    results before text in a user message; no blank text; no message without blocks            `_content`, `_text`
    no assistant message that ends in reasoning; no reasoning without its signature            `_items`, `_block`
    a provider-run call needs its result once the user has said something else                 `_broken_calls`
    with a budget for reasoning, a turn that goes on has to begin with reasoning               `has_lost_its_reasoning`

Everything else of an answer goes back as it came, because current models seal their reasoning over what precedes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from ._anthropic_media import media
from ._base import sent_arguments, unsupported
from ._json import as_dict, as_str
from ._origin import for_origin
from ._transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .._util import JSONObject
    from ._anthropic import Anthropic

CACHE_MARK = {"type": "ephemeral"}
_MARKABLE = {"text", "image", "document", "tool_use", "tool_result"}
_REASONING = {"thinking", "redacted_thinking"}


class _Turn(NamedTuple):
    """A message as it is sent, and with what the answers of its turn begin: None if there are none so far."""

    last: JSONObject
    first: JSONObject | None


class ClaudeTranscript(Transcript):
    """
    A conversation as messages of that API.

    Attributes:
        headers: Those that go with the fields of the last request.
    """

    def __init__(self, provider: Anthropic) -> None:
        self.headers: Mapping[str, str] = {}
        self._name = provider.name
        self._broken: set[str] = set()
        self._ran_there = False  # whether the provider has run tools: only then can any call be broken
        self._turns: tuple[_Turn, ...] = ()  # of the last two messages: the last one may yet be replaced
        super().__init__(provider.origin)

    def update(self, messages: Sequence[Message]) -> None:
        """Take what has come since: or all of it anew, if that says of other calls than before that they are broken."""
        super().update(messages)
        if not self._ran_there:
            return
        broken = _broken_calls(for_origin(messages, self._origin))
        if broken != self._broken:
            self._broken = broken
            self._restart(messages)
            super().update(messages)

    @property
    def has_lost_its_reasoning(self) -> bool:
        """Whether the model is to go on with a turn that no longer begins with its reasoning, as one of another model's does."""
        if not self.open:
            return False
        (last,) = self.open
        if last["role"] == "user" and not any(map(_is_result, last["content"])):
            return False
        first = self._turn_of(last).first
        return first is not None and first["type"] not in _REASONING

    def marked(self) -> list[JSONObject]:
        """Return what is open with a mark that the prompt up to here is to be cached."""
        if not self.open:
            return []
        (last,) = self.open
        content = list(last["content"])
        for place in reversed(range(len(content))):
            if content[place]["type"] in _MARKABLE:
                content[place] = {**content[place], "cache_control": CACHE_MARK}
                break
        return [{**last, "content": content}]

    def _items(self, message: Message, before: list[JSONObject]) -> list[JSONObject]:
        blocks = list(self._content(message))
        while message.role == "assistant" and blocks and blocks[-1]["type"] in _REASONING:
            blocks.pop()
        if not blocks:
            return []
        item: JSONObject = {"role": message.role, "content": blocks}
        previous = self._turn_of(before[-1]) if before else None
        first = previous.first if previous is not None and _goes_on(previous.last) else None
        if first is None and message.role == "assistant":
            first = blocks[0]
        self._turns = (*([] if previous is None else [previous]), _Turn(item, first))
        return [item]

    def _turn_of(self, item: JSONObject) -> _Turn:
        return next(turn for turn in self._turns if turn.last is item)

    def _content(self, message: Message) -> Iterator[JSONObject]:
        # A user's message answers the calls before it says anything else.
        for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
            match block:
                case ServerToolUse(id=call) | ServerToolResult(tool_use_id=call):
                    self._ran_there = True
                    if call in self._broken:
                        continue
                case Opaque(payload={"type": "container_upload"}) if message.role == "assistant":
                    continue  # given by code execution, and refused back
                case Image() | Document() | Audio() | Video() if message.role == "assistant":
                    yield {"type": "text", "text": unsupported(block)}
                    continue
            if (encoded := _block(block, self._name, ours=message.origin == self._origin)) is not None:
                yield encoded


def _goes_on(item: JSONObject) -> bool:
    """Whether a turn goes on behind a message of it."""
    return item["role"] == "assistant" or all(map(_is_result, item["content"]))


def _is_result(block: JSONObject) -> bool:
    return bool(block["type"] == "tool_result")


def _broken_calls(messages: Sequence[Message]) -> set[str]:
    """
    Return the ids of provider-run calls that have lost their other half.

    A call may stand without a result for a while: where the turn was paused, or waits for results of the user's tools,
    its result comes in a later answer. The API refuses it once the user has said anything else: that ends the turn, and
    the result will never come. A result without its call is refused as well. Left alone is a call whose code has called a
    tool of the user's, which names it as its caller.
    """
    uses, results, callers, stale = set[str](), set[str](), set[str](), set[str]()
    turn_ended = False
    for message in reversed(messages):
        if message.role == "user":
            turn_ended = turn_ended or not all(isinstance(block, ToolResult) for block in message.content)
            continue
        here = {block.id for block in message.content if isinstance(block, ServerToolUse)}
        uses |= here
        results |= {block.tool_use_id for block in message.content if isinstance(block, ServerToolResult)}
        callers |= {
            as_str(as_dict(as_dict(call.provider_data).get("caller")).get("tool_id")) for call in message.tool_uses
        }
        if turn_ended:
            stale |= here - results - callers
    return stale | (results - uses)


def _block(block: Block, provider: str, *, ours: bool = False) -> JSONObject | None:
    """Return a block as the API has it, or None for one that it would refuse. `ours`: it is from an answer from here."""
    match block:
        case Text():
            return _text(block, cite=ours)
        case ToolUse():
            return _call("tool_use", block, sent_arguments(block))
        case ToolResult():
            return _result(block, provider)
        case Thinking(provider_data={"type": "redacted_thinking"}):
            return dict(block.provider_data or {})
        case Thinking(text=text, signature=str(signature)) if signature:
            return {
                "type": "thinking",
                "thinking": text,
                "signature": signature,
                **(block.provider_data or {}),
            }
        case ServerToolUse():
            return _call("server_tool_use", block, block.input)
        case ServerToolResult(payload={"type": str()} as payload):  # one that says no type was never right
            return dict(payload)
        case Opaque(provider=owner, payload={"type": str()} as payload) if owner == provider:
            return dict(payload)
        case Image() | Document() | Audio() | Video():
            return media(block)
    return None


def _text(block: Text, *, cite: bool) -> JSONObject | None:
    if not block.text or block.text.isspace():
        return None
    encoded: JSONObject = {"type": "text", "text": block.text, **(block.provider_data or {})}
    if cite and block.annotations:  # another API's annotations are no citations of this one
        encoded["citations"] = list(block.annotations)
    return encoded


def _call(kind: str, call: ToolUse | ServerToolUse, arguments: JSONObject) -> JSONObject:
    return {"type": kind, "id": call.id, "name": call.name, "input": arguments, **(call.provider_data or {})}


def _result(result: ToolResult, provider: str) -> JSONObject:
    content: list[JSONObject] = []
    for block in result.content:
        if result.is_error and isinstance(block, Image | Document | Audio | Video):  # an error is text alone
            content.append({"type": "text", "text": unsupported(block)})
        elif (part := _block(block, provider)) is not None and (part["type"] == "text" or not result.is_error):
            content.append(part)
    if result.is_error and not content:  # an error has to say something
        content = [{"type": "text", "text": "The tool failed without a message."}]
    encoded: JSONObject = {"type": "tool_result", "tool_use_id": result.tool_use_id}
    if content:
        encoded["content"] = content
    if result.is_error:
        encoded["is_error"] = True
    return encoded
