"""
What a server of the Chat Completions API answers, whole or streamed.

A stream is a list of deltas, each a message with pieces in it; so a whole message is read as a stream of one delta, and
both ways say the same. There are no marks for where a block begins or ends. These are the rules:

* A block opens with its first piece, and stands in the message where it opened.
* Text and reasoning end when something else begins. Calls stay open until the finish reason: pieces of several come
  mixed, and what a server attaches to a call may come late. Blocks end in the order in which they opened.
* What comes behind the finish reason counts too: usage as a rule, and more content from some servers.
* Usage is a running total wherever it stands, never a part of a sum.

Which call a delta belongs to is what servers agree on least: see `_Reply._call_of`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from .._errors import ProviderError, WireError
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from .._messages import Block, Image, Opaque, Text, Thinking, ToolUse
from .._usage import Usage
from .._util import JSONObject
from ._base import Response, StopReason
from ._classify import from_error
from ._json import as_dict, as_dicts, as_int, as_list, as_str, parse_arguments
from ._json import decode as decode_json
from ._json import encode as encode_json
from ._sse import SSEEvent, SSEParser

if TYPE_CHECKING:
    from ._base import WireEvents
    from ._http import HTTPProvider

_STOP_REASONS = {
    "stop": StopReason.END_TURN,
    "end_turn": StopReason.END_TURN,
    "stop_sequence": StopReason.END_TURN,
    "eos": StopReason.END_TURN,  # Together
    "tool_calls": StopReason.TOOL_USE,
    "tool_use": StopReason.TOOL_USE,
    "function_call": StopReason.TOOL_USE,
    "length": StopReason.MAX_TOKENS,
    "max_tokens": StopReason.MAX_TOKENS,
    "max_output_tokens": StopReason.MAX_TOKENS,
    "model_length": StopReason.MAX_TOKENS,  # Mistral
    "model_context_window_exceeded": StopReason.MAX_TOKENS,  # Z.ai
    "content_filter": StopReason.REFUSAL,
    "refusal": StopReason.REFUSAL,
    "sensitive": StopReason.REFUSAL,  # Z.ai
}

# Finish reasons of an answer that is none: OpenRouter and Mistral, Z.ai, DeepSeek.
_FAILURES = {"error", "network_error", "insufficient_system_resource"}

# Where reasoning may be; the first that has some. Servers that fill two of them say the same in both.
_REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_text")

# What is attached to a message or a call and has to go back as it came: OpenRouter's reasoning and that of Claude behind
# LiteLLM, with their seals; thought signatures of Gemini's endpoint and of LiteLLM.
SEALED = ("reasoning_details", "thinking_blocks")
CALL_EXTRAS = ("extra_content", "provider_specific_fields")

_GROWING = {"reasoning.text": "text", "reasoning.summary": "summary", "thinking": "thinking"}  # by type of item

_T = TypeVar("_T", bound="_Text | _Thinking")


def made_up_id(*parts: object) -> str:
    """Return an id that follows from `parts`: nine letters and digits, which every server takes."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[number // 36**place % 36] for place in range(9))


@attrs.define
class _Text:
    """Text while it arrives."""

    annotations: list[JSONObject] = attrs.field(factory=list)
    pieces: list[str] = attrs.field(factory=list)
    extras: JSONObject = attrs.field(factory=dict)
    ended: bool = False

    def block(self) -> Text:
        return Text("".join(self.pieces), self.annotations, self.extras or None)


@attrs.define
class _SealedItem:
    """An item of a sealed list while it arrives: the latest of each field, and the one that grows."""

    data: JSONObject
    grows: str | None
    pieces: list[str] = attrs.field(factory=list)

    def takes(self, item: JSONObject) -> bool:
        """Whether `item` is more of this one."""
        same = all(item.get(key) in (None, self.data.get(key)) for key in ("type", "index", "id"))
        return same and self.grows is not None

    def add(self, item: JSONObject) -> None:
        self.pieces.append(as_str(item.get(self.grows or "")))
        self.data.update((key, value) for key, value in item.items() if value is not None or key not in self.data)

    def whole(self) -> JSONObject:
        grown = "".join(self.pieces)
        return {**self.data, self.grows: grown} if self.grows and grown else self.data


@attrs.define
class _Thinking:
    """Reasoning while it arrives."""

    pieces: list[str] = attrs.field(factory=list)
    extras: JSONObject = attrs.field(factory=dict)
    sealed: dict[str, list[_SealedItem]] = attrs.field(factory=dict)
    ended: bool = False

    def seal(self, field: str, items: list[JSONObject]) -> None:
        known = self.sealed.setdefault(field, [])
        for item in items:
            if not known or not known[-1].takes(item):
                known.append(_SealedItem({}, _GROWING.get(as_str(item.get("type")))))
            known[-1].add(item)

    def block(self) -> Thinking:
        sealed = {field: [item.whole() for item in items] for field, items in self.sealed.items()}
        signatures = [as_str(item.get("signature")) for items in sealed.values() for item in items]
        signature = next(filter(None, reversed(signatures)), None)
        return Thinking("".join(self.pieces), signature, {**self.extras, **sealed} or None)


@attrs.define
class _Call:
    """A call while it arrives."""

    made_up: str  # its id, should the server give none
    id: str = ""
    name: str = ""
    pieces: list[str] = attrs.field(factory=list)
    extras: JSONObject = attrs.field(factory=dict)
    ended: bool = False

    def begins_anew(self, id: str, name: str, piece: str) -> bool:  # noqa: A002 - the API's word
        """Whether a delta for this call is in truth the first of another, from a server that uses an index twice."""
        if not name:
            return False  # more of this one, even if the server has changed the id meanwhile
        if name != self.name or (id and self.id and id != self.id):
            return self._is_complete()
        return not id and piece.startswith("{") and self._is_complete()

    def _is_complete(self) -> bool:
        """Whether the arguments are whole; looked at only where the last piece may have been the end."""
        if not self.pieces:
            return True
        return self.pieces[-1].rstrip().endswith("}") and parse_arguments("".join(self.pieces))[1] is None

    def block(self) -> ToolUse:
        text = "".join(self.pieces)
        free = self.extras.get("type") == "custom"  # a tool of OpenAI's whose input is no JSON
        arguments, invalid = ({"input": text}, None) if free else parse_arguments(text)
        return ToolUse(self.id or self.made_up, self.name, arguments, invalid, self.extras or None)


class _Reply:
    """An answer while it arrives."""

    def __init__(self, provider: HTTPProvider) -> None:
        self._provider = provider
        self._blocks: list[_Text | _Thinking | _Call | Block] = []
        self._ended = 0  # how many of them
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._reasoning_text = False  # whether any came outside of `reasoning_details`, which repeat it
        self._audio: dict[str, list[Any]] = {}
        self._refusal: list[str] = []
        self._notes: list[JSONObject] = []  # annotations of all texts
        self._sources: JSONObject = {}
        self._server_tools: dict[int, JSONObject] = {}
        self._id = self._model = self._word = self._native_word = ""
        self._filter: JSONObject = {}
        self._usage: JSONObject = {}

    @property
    def finished(self) -> bool:
        """Whether there was a finish reason."""
        return bool(self._word)

    def take(self, chunk: JSONObject, *, whole: bool = False) -> WireEvents:
        """Take a chunk of a stream, or a whole answer. Raises the error that it is, or reports."""
        choice = _first_choice(chunk)
        if error := _error_in(chunk, choice):
            raise error
        self._id = self._id or as_str(chunk.get("id")) or str(chunk.get("created") or "")
        self._model = self._model or as_str(chunk.get("model"))
        for usage in (choice.get("usage"), as_dict(chunk.get("x_groq")).get("usage"), chunk.get("usage")):
            self._usage.update((key, value) for key, value in as_dict(usage).items() if value is not None)
        self._sources.update((key, chunk[key]) for key in ("citations", "search_results") if as_list(chunk.get(key)))
        message = None if whole else choice.get("delta")
        if message is None and not self._blocks:  # some servers stream the whole answer as one chunk
            message, whole = choice.get("message"), True
        events = self._message(as_dict(message), whole=whole)
        self._filter = as_dict(choice.get("content_filter_results")) or self._filter
        self._native_word = as_str(choice.get("native_finish_reason")) or self._native_word
        self._word = as_str(choice.get("finish_reason")) or self._word
        return events + self.end() if self.finished else events

    def end(self) -> WireEvents:
        """End what is open."""
        if self._audio:
            grown = {
                key: "".join(map(str, values)) if key in {"data", "transcript"} else values[-1]
                for key, values in self._audio.items()
            }
            self._blocks.append(Opaque(self._provider.name, {"type": "audio", "audio": grown}))
            self._audio = {}
        return self._end(len(self._blocks), calls=True)

    def response(self) -> Response:
        """Return the whole answer."""
        stop_reason, metadata = self._stop_reason()
        sources: JSONObject = {"citations": self._notes} if self._notes else {}
        sources = self._sources | sources
        if self._server_tools:
            sources["executed_tools"] = list(self._server_tools.values())
        if sources:
            metadata["provider_response"] = sources
        content = tuple(self._block(block) for block in self._blocks)
        return Response(
            message=self._provider.message(content, self._model or None),
            stop_reason=stop_reason,
            usage=_usage(self._usage, len(self._server_tools)),
            metadata=metadata,
        )

    def _stop_reason(self) -> tuple[StopReason, JSONObject]:
        refusal, metadata = "".join(self._refusal), dict[str, Any]()
        known = _STOP_REASONS.get(self._word.partition(":")[0].lower())  # Gemini: "content_filter: SAFETY"
        if self._word and known is None:
            metadata["raw_stop_reason"] = self._word
        if known is StopReason.REFUSAL or refusal:
            details = {"text": refusal, "finish_reason": self._word, "content_filter_results": self._filter}
            metadata["refusal"] = {key: value for key, value in details.items() if value}
            return StopReason.REFUSAL, metadata
        # OpenRouter says "tool_calls" of a call that the cap has cut; the native word is the model's own.
        native = _STOP_REASONS.get(self._native_word.lower())
        if StopReason.MAX_TOKENS in {known, native}:
            return StopReason.MAX_TOKENS, metadata
        return StopReason.TOOL_USE if self._calls else known or StopReason.END_TURN, metadata

    def _message(self, message: JSONObject, *, whole: bool) -> WireEvents:
        parts = _parts(message.get("content"))
        events = self._reasoning(message, parts)
        for part in parts:
            events += self._part(part)
        self._refusal.append(as_str(message.get("refusal")))
        self._annotate(as_dicts(message.get("annotations")))
        for image in as_dicts(message.get("images")):
            events += self._part({"type": "image_url", **image})
        for key, value in as_dict(message.get("audio")).items():
            self._audio.setdefault(key, []).append(value)
        if extra := as_dict(message.get("extra_content")):  # Gemini's signature of what stands before it
            events += self._extra(extra)
        for tool in as_dicts(message.get("executed_tools")):  # Groq: each comes again as more of it is known
            self._server_tools.setdefault(as_int(tool.get("index")), {}).update(tool)
        for call in as_dicts(message.get("tool_calls")):
            events += self._call(call, whole=whole)
        if legacy := as_dict(message.get("function_call")):
            events += self._call({"index": 0, "function": legacy}, whole=whole)
        return events

    def _reasoning(self, message: JSONObject, parts: list[JSONObject]) -> WireEvents:
        field, text = "", ""
        if not any(part.get("type") == "thinking" for part in parts):
            fields = ((field, as_str(message.get(field))) for field in _REASONING_FIELDS)
            field, text = next(filter(lambda found: found[1], fields), ("", ""))
        self._reasoning_text = self._reasoning_text or bool(text)
        sealed = {key: items for key in SEALED if (items := as_dicts(message.get(key)))}
        if not self._reasoning_text:
            details = sealed.get("reasoning_details", [])
            text = "".join(as_str(item.get("text")) or as_str(item.get("summary")) for item in details)
        return self._think(text, {"field": field} if field else {}, sealed) if text or sealed else []

    def _think(self, text: str, extras: JSONObject, sealed: dict[str, list[JSONObject]]) -> WireEvents:
        thinking, events = self._at(_Thinking())
        thinking.extras.update(extras)
        for field, items in sealed.items():
            thinking.seal(field, items)
        if text:
            thinking.pieces.append(text)
            events.append(ThinkingDelta(text))
        return events

    def _part(self, part: JSONObject) -> WireEvents:
        match part.get("type"):
            case None | "text" | "output_text":
                return self._text(as_str(part.get("text")))
            case "thinking":  # Mistral
                self._reasoning_text = True
                return self._mistral_thinking(_parts(part.get("thinking")))
            case "refusal":
                self._refusal.append(as_str(part.get("refusal")))
                return []
        return self._open(_image(part) or Opaque(self._provider.name, part))

    def _text(self, piece: str) -> WireEvents:
        if not piece:
            return []
        pending = [] if any(isinstance(block, _Text) for block in self._blocks) else [*self._notes]
        text, events = self._at(_Text(pending))
        text.pieces.append(piece)
        return [*events, TextDelta(piece)]

    def _mistral_thinking(self, chunks: list[JSONObject]) -> WireEvents:
        text = "".join(as_str(chunk.get("text")) for chunk in chunks)
        others = [chunk for chunk in chunks if "text" not in chunk]  # references
        if not text and not others:
            return []
        events = self._think(text, {"field": "thinking"}, {})
        if others:
            thinking, _ = self._at(_Thinking())
            thinking.extras.setdefault("chunks", []).extend(others)
        return events

    def _extra(self, extra: JSONObject) -> WireEvents:
        last = self._blocks[-1] if self._blocks else None
        if isinstance(last, _Text) and not last.ended:
            last.extras["extra_content"] = extra
            return []
        return self._think("", {"extra_content": extra}, {})

    def _annotate(self, notes: list[JSONObject]) -> None:
        """Take annotations for the text before them, or the first one to come."""
        self._notes += notes
        for block in reversed(self._blocks):
            if isinstance(block, _Text):
                block.annotations += notes
                break

    def _call(self, delta: JSONObject, *, whole: bool) -> WireEvents:
        function = as_dict(delta.get("function")) or as_dict(delta.get("custom")) or delta
        id, name = as_str(delta.get("id")), as_str(function.get("name"))  # noqa: A001 - the API's word
        piece = _arguments(function.get("arguments", function.get("input")))
        index = delta.get("index")
        call = None if whole else self._call_of(index, id, name, piece)
        events: WireEvents = []
        if call is None:
            if not (id or name or piece):
                return []
            call = _Call(made_up_id(self._id, len(self._calls)))
            self._calls.append(call)
            events = self._open(call)
        self._by_index[index] = call
        if id not in self._by_id:
            call.id = call.id or id
            self._by_id[call.id] = call
        call.name = call.name or name
        extras = {key: delta[key] for key in CALL_EXTRAS if as_dict(delta.get(key))}
        call.extras.update(extras | {"type": "custom"} if delta.get("type") == "custom" else extras)
        if piece:
            call.pieces.append(piece)
            if not call.ended and call.extras.get("type") != "custom":
                events.append(ToolInputDelta(call.id or call.made_up, call.name, piece))
        return events

    def _call_of(self, index: Any, id: str, name: str, piece: str) -> _Call | None:  # noqa: A002 - the API's word
        """
        Find the call that a delta continues; None: it begins one.

        Seen in the wild: no index; one index for several calls, which come one after the other; an index that changes
        while the id stays, and an id that changes while the index stays; id and name in each delta, or no id at all.
        """
        if index is None:
            known = self._by_id.get(id) if id else None
            call = known or (None if id and name else next(reversed(self._calls), None))
        else:
            call = self._by_index.get(index) or (None if name or not id else self._by_id.get(id))
        return None if call is None or call.begins_anew(id, name, piece) else call

    def _at(self, new: _T) -> tuple[_T, WireEvents]:
        """Return the open block of that kind at the end of the message, or `new`, put there."""
        last = self._blocks[-1] if self._blocks else None
        if isinstance(last, type(new)) and not last.ended:
            return last, []
        return new, self._open(new)

    def _open(self, block: _Text | _Thinking | _Call | Block) -> WireEvents:
        self._blocks.append(block)
        return self._end(len(self._blocks) - 1, calls=False)

    def _end(self, upto: int, *, calls: bool) -> WireEvents:
        """End blocks, in their order: those before number `upto`, or before the first call."""
        events: WireEvents = []
        for block in self._blocks[self._ended : upto]:
            if isinstance(block, _Call) and not calls:
                break
            if isinstance(block, _Text | _Thinking | _Call):
                block.ended = True
            events.append(BlockEnd(self._block(block)))
        self._ended += len(events)
        return events

    def _block(self, growing: _Text | _Thinking | _Call | Block) -> Block:
        if not isinstance(growing, _Text | _Thinking | _Call):
            return growing
        block = growing.block()
        if isinstance(block, Text) and not self._notes and self._sources:
            return attrs.evolve(block, annotations=_as_annotations(self._sources))
        return block


class ChatDecoder:
    """Decodes one streamed answer; see `Decoder`."""

    def __init__(self, provider: HTTPProvider) -> None:
        self._parser = SSEParser()
        self._reply = _Reply(provider)
        self._done = False

    def feed(self, data: bytes) -> WireEvents:
        """Take some bytes; see `Decoder.feed`."""
        return self._take(self._parser.feed(data))

    def finish(self) -> Response:
        """Return the whole answer; see `Decoder.finish`."""
        self._take(self._parser.close())
        if not self._done and not self._reply.finished:
            raise WireError("the stream ended before the answer did", retryable=True)
        return self._reply.response()

    def _take(self, received: list[SSEEvent]) -> WireEvents:
        events: WireEvents = []
        for event in received:
            data = event.data.strip()
            if data == b"[DONE]" and not self._done:
                self._done = True
                events += self._reply.end()
            elif data.startswith(b"{") and not self._done:  # anything else keeps the connection alive
                chunk = as_dict(decode_json(data))
                events += self._reply.take({"error": chunk, **chunk} if event.event == "error" else chunk)
        return events


def decode(body: bytes, provider: HTTPProvider) -> Response:
    """Say what a whole answer means. Raises the error that it is, or `WireError` where it is no answer."""
    answer = decode_json(body)
    answer = as_dict(answer[0] if isinstance(answer, list) and answer else answer)
    reply = _Reply(provider)
    reply.take(answer, whole=True)
    if not as_dicts(answer.get("choices")):
        raise WireError("the answer has no choices; is base_url a server of the Chat Completions API?")
    reply.end()
    return reply.response()


def _first_choice(chunk: JSONObject) -> JSONObject:
    """Return the choice that counts; only requests that ask for more than one get others."""
    choices = as_dicts(chunk.get("choices"))
    return next((choice for choice in choices if not as_int(choice.get("index"))), {})


def _error_in(chunk: JSONObject, choice: JSONObject) -> ProviderError | None:
    report = chunk.get("error") or choice.get("error") or (chunk.get("object") == "error" and chunk)
    if report:
        return from_error(report)
    word = as_str(choice.get("finish_reason"))
    if word in _FAILURES:
        return ProviderError(f"the server broke off its answer: finish_reason {word!r}", retryable=True)
    return None


def _parts(content: Any) -> list[JSONObject]:
    """Return content, which may be text, parts, or both mixed, as parts."""
    members = content if isinstance(content, list) else [content]
    return as_dicts([{"type": "text", "text": each} if isinstance(each, str) else each for each in members])


def _image(part: JSONObject) -> Image | None:
    given = part.get("image_url")
    url = as_str(given) or as_str(as_dict(given).get("url"))
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    if url.startswith("data:"):
        return Image(kind, data)
    return Image("image/*", uri=url) if url else None


def _arguments(value: Any) -> str:
    """Return a piece of a call's arguments as text; some servers send all of them as an object."""
    return value if isinstance(value, str) else "" if value is None else encode_json(value).decode()


def _as_annotations(sources: JSONObject) -> list[JSONObject]:
    """Return what an answer with numbered references refers to, in that order."""
    if found := as_dicts(sources.get("search_results")):
        return found
    return [each if isinstance(each, dict) else {"url": each} for each in as_list(sources.get("citations"))]


def _usage(usage: JSONObject, server_tools: int) -> Usage:
    """
    Read a usage report.

    Prompt tokens include cached ones. Completion tokens include reasoning, except at xAI and Gemini's endpoint, which
    count it in the total only.
    """
    prompt, completion = as_int(usage.get("prompt_tokens")), as_int(usage.get("completion_tokens"))
    read, written = _cached(usage)
    details = as_dict(usage.get("completion_tokens_details"))
    reasoning = details.get("reasoning_tokens")
    used = as_dict(usage.get("server_tool_use_details"))
    return Usage(
        input_tokens=max(prompt - read - written, 0),
        output_tokens=max(completion, as_int(usage.get("total_tokens")) - prompt),
        cache_creation_input_tokens=written,
        cache_read_input_tokens=read,
        reasoning_tokens=as_int(usage.get("reasoning_tokens") if reasoning is None else reasoning),
        server_tool_calls=as_int(used.get("tool_calls_executed")) or server_tools,
    )


def _cached(usage: JSONObject) -> tuple[int, int]:
    """Return the tokens read from a cache and those written to one, wherever the vendor reports them."""
    details = as_dict(usage.get("prompt_tokens_details"))
    reads = (details.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens"))
    writes = (details.get("cache_write_tokens"), details.get("cache_creation_tokens"), usage.get("cache_creation_input_tokens"))
    read, written = (next((as_int(n) for n in found if n is not None), 0) for found in (reads, writes))
    return read, written
