"""
What the Messages API answers, whole or streamed.

    message_start          the message without its blocks: model, container, the first usage
    content_block_start    a block: empty as a rule, whole where nothing of it is generated (a server tool's result)
    content_block_delta    a piece of one field of it
    content_block_stop
    message_delta          stop reason, container, usage so far: cumulative, null where there is nothing new to say
    message_stop

The decoder only grows events back into the JSON that the same answer has in one piece; `Block`s and `Response` are made
of that JSON in one place, so that both ways say the same.

An answer is complete with its stop reason: what comes behind it (`message_stop`) adds nothing, and a stream that ends
without one was cut.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from .._errors import WireError
from .._events import BlockEnd, ProviderEvent, TextDelta, ThinkingDelta, ToolInputDelta
from .._messages import (
    Block,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolUse,
)
from .._usage import Usage
from .._util import JSONObject
from ._anthropic_plain import Plain, PlainInput, PlainText, PlainThinking, plain_delta
from ._base import Response, StopReason
from ._classify import from_error
from ._decoder import Decoder
from ._json import as_dict, as_dicts, as_int, as_list, as_str, parse_arguments
from ._json import decode as decode_json

if TYPE_CHECKING:
    from ._base import WireEvents
    from ._http import HTTPProvider
    from ._sse import SSEEvent

_STOP_REASONS = {
    "end_turn": StopReason.END_TURN,
    "stop_sequence": StopReason.END_TURN,
    "tool_use": StopReason.TOOL_USE,
    "max_tokens": StopReason.MAX_TOKENS,
    "model_context_window_exceeded": StopReason.MAX_TOKENS,
    "pause_turn": StopReason.PAUSE_TURN,
    "compaction": StopReason.PAUSE_TURN,  # `pause_after_compaction`: sent back as it is, the turn goes on
    "refusal": StopReason.REFUSAL,
}

_FIELD_OF_DELTA = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_OVERWRITTEN = {"signature", "encrypted_content"}  # a later delta replaces these; text fields grow


def decode(body: bytes, provider: HTTPProvider) -> Response:
    """Say what a whole answer means. Raises the error that it is, or `WireError` where it is no answer."""
    reply = decode_json(body)
    message = as_dict(reply)
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if content is None and message.get("type") == "message":
        content = []
    if not isinstance(content, list):
        if isinstance(reply, list) or message.get("type") == "error" or message.get("error"):
            raise from_error(reply)
        raise WireError(
            "the answer is no message: it has no content; check that base_url is a server of the Messages API"
        )
    return _response(message, tuple(_block(block, provider.name) for block in as_dicts(content)), provider)


def _response(message: JSONObject, content: tuple[Block, ...], provider: HTTPProvider) -> Response:
    word = as_str(message.get("stop_reason"))
    stop_reason = _stop_reason(word, content)
    metadata: JSONObject = {}
    if word and word not in _STOP_REASONS:
        metadata["raw_stop_reason"] = word
    if stop_reason is StopReason.REFUSAL and (details := as_dict(message.get("stop_details"))):
        metadata["refusal"] = details
    if extra := _provider_response(message, content):
        metadata["provider_response"] = extra
    container = as_str(as_dict(message.get("container")).get("id"))
    state = {"container_id": container} if container else None
    return Response(
        message=provider.message(content, as_str(message.get("model")) or None, state),
        stop_reason=stop_reason,
        usage=_usage(as_dict(message.get("usage"))),
        metadata=metadata,
    )


def _stop_reason(word: str, content: tuple[Block, ...]) -> StopReason:
    known = _STOP_REASONS.get(word, StopReason.END_TURN)
    if known in {StopReason.MAX_TOKENS, StopReason.REFUSAL}:
        return known
    return StopReason.TOOL_USE if any(isinstance(block, ToolUse) for block in content) else known


def _provider_response(message: JSONObject, content: tuple[Block, ...]) -> JSONObject:
    extra: JSONObject = {}
    if citations := [note for block in content if isinstance(block, Text) for note in block.annotations]:
        extra["citations"] = citations
    # Compactions and advisors are billed apart: their tokens stand here only, never in the totals of `usage`.
    iterations = as_dicts(as_dict(message.get("usage")).get("iterations"))
    if any(iteration.get("type") != "message" for iteration in iterations):
        extra["iterations"] = iterations
    if dropped := as_dicts(message.get("input_transformations")):  # reasoning whose prefix has changed, mostly
        extra["input_transformations"] = dropped
    return extra


def billed(response: Response) -> Usage:
    """Return an answer's usage with what is billed apart from it, as `_provider_response` has noted it."""
    iterations = as_dicts(as_dict(response.metadata.get("provider_response")).get("iterations"))
    apart = [_usage(iteration) for iteration in iterations if iteration.get("type") != "message"]
    return sum(apart, response.usage)


def _usage(usage: JSONObject) -> Usage:
    return Usage(
        input_tokens=as_int(usage.get("input_tokens")),
        output_tokens=as_int(usage.get("output_tokens")),
        cache_creation_input_tokens=as_int(usage.get("cache_creation_input_tokens")),
        cache_creation_1h_input_tokens=as_int(as_dict(usage.get("cache_creation")).get("ephemeral_1h_input_tokens")),
        cache_read_input_tokens=as_int(usage.get("cache_read_input_tokens")),
        reasoning_tokens=as_int(as_dict(usage.get("output_tokens_details")).get("thinking_tokens")),
        server_tool_calls=as_int(as_dict(usage.get("server_tool_use")).get("web_search_requests")),  # others are free
    )


def _block(raw: JSONObject, provider: str) -> Block:
    """Turn a block of the API into one of ours. What has no field of its own goes along as `provider_data`."""
    match as_str(raw.get("type")):
        case "text":
            notes = as_dicts(raw.get("citations"))
            return Text(as_str(raw.get("text")), notes, _rest(raw, "type", "text", "citations"))
        case "thinking":
            signature = as_str(raw.get("signature")) or None
            return Thinking(as_str(raw.get("thinking")), signature, _rest(raw, "type", "thinking", "signature"))
        case "redacted_thinking":
            return Thinking("", provider_data=raw)
        case "tool_use":
            arguments, invalid = parse_arguments(raw.get("input"))
            rest = _rest(raw, "type", "id", "name", "input")
            return ToolUse(as_str(raw.get("id")), as_str(raw.get("name")), arguments, invalid, rest)
        case kind if kind.endswith("_tool_use"):
            arguments, _ = parse_arguments(raw.get("input"))
            rest = _rest(raw, "id", "name", "input")
            return ServerToolUse(as_str(raw.get("id")), as_str(raw.get("name")), arguments, rest)
        case kind if kind.endswith("_tool_result"):
            return ServerToolResult(as_str(raw.get("tool_use_id")), raw)
        case _:
            return Opaque(provider, raw)


def _rest(raw: JSONObject, *known: str) -> JSONObject | None:
    return {key: value for key, value in raw.items() if key not in known} or None


@attrs.define
class _GrowingBlock:
    """A block while its deltas arrive: pieces in lists, joined once."""

    index: int
    raw: JSONObject
    pieces: dict[str, list[str]] = attrs.field(factory=dict)
    json: list[str] = attrs.field(factory=list)
    closed: bool = False

    def start(self) -> ProviderEvent | None:
        """Return the event of what the block opened with: some servers open it with its first text, or all of it."""
        match self.raw.get("type"):
            case "text" if text := as_str(self.raw.get("text")):
                return TextDelta(text)
            case "thinking" if text := as_str(self.raw.get("thinking")):
                return ThinkingDelta(text)
        return None

    def add(self, delta: JSONObject) -> ProviderEvent | None:
        """Take a delta."""
        match delta:
            case {"type": "input_json_delta"}:
                return self._add_json(as_str(delta.get("partial_json")))
            case {"type": "citations_delta"}:
                self.raw["citations"] = citations = as_list(self.raw.get("citations"))
                citations.append(delta.get("citation"))
                return None
        if field := _FIELD_OF_DELTA.get(as_str(delta.get("type"))):
            return self._set(field, delta.get(field))
        for (
            name,
            value,
        ) in delta.items():  # a compaction's, or one that is not known yet: its fields are the block's
            if name != "type":
                self._set(name, value)
        return None

    def add_plain(self, delta: Plain) -> ProviderEvent | None:
        """Take a delta of the usual kind, as `add` would."""
        match delta:
            case PlainText():
                return self._grow("text", delta.text)
            case PlainThinking():
                return self._grow("thinking", delta.thinking)
            case PlainInput():
                return self._add_json(delta.partial_json)

    def _add_json(self, piece: str) -> ProviderEvent | None:
        if not piece:
            return None
        self.json.append(piece)
        if self.raw.get("type") != "tool_use":
            return None
        return ToolInputDelta(as_str(self.raw.get("id")), as_str(self.raw.get("name")), piece)

    def _set(self, field: str, value: Any) -> ProviderEvent | None:
        if value is None:
            return None
        if not isinstance(value, str) or field in _OVERWRITTEN:
            self.raw[field] = value
            return None
        return self._grow(field, value)

    def _grow(self, field: str, piece: str) -> ProviderEvent | None:
        if (pieces := self.pieces.get(field)) is None:
            pieces = self.pieces[field] = [as_str(self.raw.get(field))]
        pieces.append(piece)
        if not piece or field != self.raw.get("type"):
            return None
        return TextDelta(piece) if field == "text" else ThinkingDelta(piece) if field == "thinking" else None

    def whole(self) -> JSONObject:
        """Return the block as it stands in a whole answer."""
        grown: JSONObject = {field: "".join(pieces) for field, pieces in self.pieces.items()}
        if text := "".join(self.json):
            arguments, invalid = parse_arguments(text)
            grown["input"] = arguments if invalid is None else invalid
        return {**self.raw, **grown}


class AnthropicDecoder(Decoder):
    """Decodes one streamed answer."""

    def __init__(self, provider: HTTPProvider) -> None:
        super().__init__()
        self._provider = provider
        self._message: JSONObject = {}
        self._content: list[Block] = []
        self._open: dict[int, _GrowingBlock] = {}
        self._waiting: deque[_GrowingBlock] = deque()  # all that are open, and what ended behind one of them
        self._done = False

    def is_complete(self) -> bool:
        return as_str(self._message.get("stop_reason")) != ""

    def close(self) -> WireEvents:
        """Say that the stream is over: also of blocks that a server has begun behind its last word, and not ended."""
        events = super().close()
        return [*events, *self._close_all()] if self.is_complete() else events

    def _response(self) -> Response:
        return _response(self._message, tuple(self._content), self._provider)

    def _event(self, event: SSEEvent) -> WireEvents:
        if self._done:
            return []
        if event.event in {None, "content_block_delta"} and (events := self._plain(event.data)) is not None:
            return events
        return [] if event.data.strip() == b"[DONE]" else self._read(event)

    def _read(self, event: SSEEvent) -> WireEvents:
        data = as_dict(decode_json(event.data))
        match as_str(data.get("type")) or event.event:
            case "message_start":
                self._message = {**as_dict(data.get("message")), "stop_reason": None}
                return self._report_usage()
            case "content_block_start":
                return self._start(data)
            case "content_block_delta":
                return self._delta(data)
            case "content_block_stop":
                return self._stop(self._find(_index(data)))
            case "message_delta":
                news = {key: data.get(key) for key in ("usage", "input_transformations")}
                _merge(self._message, {**news, **as_dict(data.get("delta"))})
                return [*(self._close_all() if self.is_complete() else []), *self._report_usage()]
            case "message_stop":
                self._done = True
                return self._close_all()
            case kind if kind == "error" or data.get("error"):
                raise from_error(data)
        return []

    def _report_usage(self) -> WireEvents:
        return self._report(_usage(as_dict(self._message.get("usage"))))

    def _start(self, event: JSONObject) -> WireEvents:
        index = _index(event)
        if index is None:
            index = next(reversed(self._open), -1) + 1
        block = as_dict(event.get("content_block"))
        if block.get("type") == "fallback":  # what follows is another model's, whom a whole answer names as its own
            _merge(self._message, {"model": as_dict(block.get("to")).get("model")})
        events = self._stop(self._find(index))  # the server has not closed its last block of this index
        return [*events, *self._grow(index, block)]

    def _delta(self, event: JSONObject) -> WireEvents:
        delta, block = as_dict(event.get("delta")), self._find(_index(event))
        if block is None:
            kind = as_str(delta.get("type")).removesuffix("_delta")
            if kind not in {"text", "thinking"}:
                return []
            index = _index(event) or 0
            self._grow(index, {"type": kind})  # a server that does not open its blocks
            block = self._open[index]
        piece = block.add(delta)
        return [] if piece is None else [piece]

    def _plain(self, data: bytes) -> WireEvents | None:
        """Take a delta of the usual kind for a block that is open; returns None for anything else."""
        if (found := plain_delta(data)) is None or (block := self._open.get(found.index)) is None:
            return None
        piece = block.add_plain(found.delta)
        return [] if piece is None else [piece]

    def _grow(self, index: int, raw: JSONObject) -> WireEvents:
        block = self._open[index] = _GrowingBlock(index, raw)
        self._waiting.append(block)
        return [] if (first := block.start()) is None else [first]

    def _find(self, index: int | None) -> _GrowingBlock | None:
        """Return the open block of an index, or without one the newest that is open."""
        return self._open.get(next(reversed(self._open), 0) if index is None else index)

    def _stop(self, block: _GrowingBlock | None) -> WireEvents:
        """Close a block. It ends when all that opened before it have: blocks end in the order of the message."""
        if block is not None:
            block.closed = True
            del self._open[block.index]
        events: WireEvents = []
        while self._waiting and self._waiting[0].closed:
            self._content.append(_block(self._waiting.popleft().whole(), self._provider.name))
            events.append(BlockEnd(self._content[-1]))
        return events

    def _close_all(self) -> WireEvents:
        """Close what the server left open, as it does where the output cap cuts a block."""
        return [event for block in list(self._open.values()) for event in self._stop(block)]


def _index(event: JSONObject) -> int | None:
    """Return which block an event is about; None where a server leaves it out."""
    index = event.get("index")
    return None if index is None else as_int(index)


def _merge(known: JSONObject, news: JSONObject) -> None:
    """Write `news` over what is known; a null says nothing."""
    for key, value in news.items():
        if isinstance(value, dict) and isinstance(known.get(key), dict):
            known[key] = {**known[key]}
            _merge(known[key], value)
        elif value is not None:
            known[key] = value
