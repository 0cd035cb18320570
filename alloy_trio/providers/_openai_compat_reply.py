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

import os
from typing import TYPE_CHECKING, Any

from .._errors import ProviderError, WireError
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from .._messages import Image, Opaque, Text, Thinking, ToolUse
from . import _vendors
from ._base import Response, StopReason
from ._classify import from_error
from ._decoder import Decoder
from ._json import as_dict, as_dicts, as_int, as_list, as_str, parse_arguments
from ._json import decode as decode_json
from ._json import encode as encode_json
from ._openai_compat_parts import Call, Part, Prose, block_of
from ._openai_compat_plain import PlainAnswer, plain_answer, plain_text

if TYPE_CHECKING:
    from .._usage import Usage
    from .._util import JSONObject
    from ._base import WireEvents
    from ._http import HTTPProvider
    from ._sse import SSEEvent


_PLAIN = {"role", "content"}


class _Reply:
    """An answer while it arrives."""

    def __init__(self, provider: HTTPProvider) -> None:
        self._provider = provider
        self._parts: list[Part] = []  # those that come in pieces, and blocks that came whole
        self._ended = 0  # how many of them
        self._calls: list[Call] = []
        self._is_calling = False  # in a whole answer
        self._by_index: dict[int | None, Call] = {}
        self._by_id: dict[str, Call] = {}
        self._reasoned = False  # in a field of its own, which the sealed lists repeat
        self._refusal: JSONObject = {}
        self._beside: JSONObject = {}  # fields of the message that only its server understands
        self._last_text: Prose | None = None
        self._notes: list[JSONObject] = []  # annotations of all texts
        self._server_tools: dict[int, JSONObject] = {}
        self._id = self._model = self._native_word = ""
        self.word = ""  # the finish reason
        self._usage: JSONObject = {}
        self.counts = False  # whether the last chunk had a usage report

    def take(self, chunk: JSONObject, *, whole: bool = False) -> WireEvents:
        """Take a chunk of a stream, or a whole answer. Raises the error that it reports."""
        choice = _first_choice(chunk)
        _raise_error(chunk, choice, status=200 if whole else None)
        self._id = self._id or as_str(chunk.get("id")) or str(chunk.get("created") or "")
        self._model = self._model or as_str(chunk.get("model"))
        self.counts = False
        for usage in (choice.get("usage"), as_dict(chunk.get("x_groq")).get("usage"), chunk.get("usage")):
            self._usage.update((key, value) for key, value in as_dict(usage).items() if value is not None)
            self.counts = self.counts or bool(usage)
        self._annotate(_sources(chunk)[len(self._notes) :])  # sent again, and longer, with each chunk
        message = None if whole else choice.get("delta")
        if message is None and not self._parts:  # some servers stream the whole answer as one chunk
            message, whole = choice.get("message"), True
        events = self._message(as_dict(message), whole=whole)
        if results := as_dict(choice.get("content_filter_results")):  # Azure
            self._refusal["content_filter_results"] = results
        self._native_word = as_str(choice.get("native_finish_reason")) or self._native_word
        self.word = as_str(choice.get("finish_reason")) or self.word
        return events + self.end() if self.word else events

    def take_plain(self, answer: PlainAnswer) -> bool:
        """Take a whole answer of the usual kind; returns whether it is one."""
        choice, said = answer.choices[0], answer.choices[0].message
        calls = said.tool_calls or []
        if choice.finish_reason in _vendors.FAILURES or len({call.id for call in calls}) < len(calls):
            return False
        self._id, self._model, self.word = answer.id, answer.model, choice.finish_reason
        self._usage = {key: value for key, value in (answer.usage or {}).items() if value is not None}
        self._parts = [Text(said.content)] if said.content else []
        self._parts += [
            ToolUse(call.id, call.function.name, *parse_arguments(call.function.arguments)) for call in calls
        ]
        self._is_calling = bool(calls)
        return True

    def take_text(self, data: bytes) -> WireEvents | None:
        """Take a chunk of a stream that has text and nothing else; returns None for any other."""
        if not (self._id and self._model) or self.word or (text := plain_text(data)) is None:
            return None
        self.counts = False
        last = self._last_text
        if last is None or last.ended or last is not self._parts[-1]:
            return self._text(text)
        last.pieces.append(text)  # more of the same, as nearly all of them are
        return [TextDelta(text)]

    def end(self) -> WireEvents:
        """End what is open."""
        if self._beside:
            self._parts.append(Opaque(self._provider.name, {"type": "message", **_vendors.joined(self._beside)}))
            self._beside = {}
        return self._end(len(self._parts), calls=True)

    def response(self) -> Response:
        """Return the whole answer."""
        stop_reason, metadata = self._stop_reason()
        sources: JSONObject = {"citations": self._notes} if self._notes else {}
        if self._server_tools:
            sources["executed_tools"] = list(self._server_tools.values())
        if sources:
            metadata["provider_response"] = sources
        return Response(
            message=self._provider.message(tuple(map(block_of, self._parts)), self._model or None),
            stop_reason=stop_reason,
            usage=self.usage(),
            metadata=metadata,
        )

    def usage(self) -> Usage:
        """Return what the server has counted so far."""
        return _vendors.read_usage(self._usage, len(self._server_tools))

    def _stop_reason(self) -> tuple[StopReason, JSONObject]:
        metadata: JSONObject = {}
        word, _, _ = self.word.lower().partition(":")  # Gemini's endpoint says "content_filter: SAFETY"
        known = _vendors.STOP_REASONS.get(word)
        if self.word and known is None:
            metadata["raw_stop_reason"] = self.word
        if known is StopReason.REFUSAL or "refusal" in self._refusal:
            metadata["refusal"] = {"finish_reason": self.word, **_vendors.joined(self._refusal)}
            return StopReason.REFUSAL, metadata
        # OpenRouter says "tool_calls" of a call that the cap has cut; the native word is the model's own.
        if StopReason.MAX_TOKENS in {known, _vendors.STOP_REASONS.get(self._native_word.lower())}:
            return StopReason.MAX_TOKENS, metadata
        return StopReason.TOOL_USE if self._calls or self._is_calling else known or StopReason.END_TURN, metadata

    def _message(self, message: JSONObject, *, whole: bool) -> WireEvents:
        if isinstance(text := message.get("content"), str) and message.keys() <= _PLAIN:
            return self._text(text)  # nearly all deltas, and all that follows would find nothing
        content = _content(message.get("content"))
        events = self._reasoning(message, content)
        for part in content:
            events += self._content_part(part)
        self._refuse(message)
        self._annotate(as_dicts(message.get("annotations")))
        for image in as_dicts(message.get("images")):
            events += self._content_part({"type": "image_url", **image})
        if audio := as_dict(message.get("audio")):
            _vendors.grow(self._beside.setdefault("audio", {}), audio, {"data", "transcript"})
        if extra := as_dict(message.get("extra_content")):  # Gemini's signature of an answer without calls
            self._beside["extra_content"] = extra
        for tool in as_dicts(message.get("executed_tools")):  # Groq: each comes again as more of it is known
            self._server_tools.setdefault(as_int(tool.get("index")), {}).update(tool)
        calls = message.get("tool_calls")
        for call in as_dicts([calls] if isinstance(calls, dict) else calls):  # TGI: one, without a list around it
            events += self._call(call, whole=whole)
        if legacy := as_dict(message.get("function_call")):
            events += self._call({"index": 0, "function": legacy}, whole=whole)
        return events

    def _reasoning(self, message: JSONObject, content: list[JSONObject]) -> WireEvents:
        field, text = "", ""
        if not any(part.get("type") == "thinking" for part in content):
            fields = ((field, as_str(message.get(field))) for field in _vendors.REASONING_FIELDS)
            field, text = next(filter(lambda found: found[1], fields), ("", ""))
        self._reasoned = self._reasoned or bool(text)
        sealed = {key: items for key in _vendors.SEALED_FIELDS if (items := as_dicts(message.get(key)))}
        if not self._reasoned:
            text = "".join(as_str(item.get(_vendors.grows(item))) for items in sealed.values() for item in items)
        return self._think(text, {"field": field} if field else {}, sealed)

    def _think(self, text: str, extras: JSONObject, sealed: dict[str, list[JSONObject]]) -> WireEvents:
        if not text and not any(sealed.values()):
            return []
        thinking, events = self._at(Thinking)
        thinking.extras.update(extras)
        for field, items in sealed.items():
            _vendors.seal(thinking.sealed.setdefault(field, []), items)
        if text:
            thinking.pieces.append(text)
            events.append(ThinkingDelta(text))
        return events

    def _content_part(self, part: JSONObject) -> WireEvents:
        match part.get("type"):
            case None | "text" | "output_text":
                return self._text(as_str(part.get("text")))
            case "thinking":  # Mistral: a list of texts, and of references in them
                self._reasoned = True
                chunks = _content(part.get("thinking"))
                others = [chunk for chunk in chunks if "text" not in chunk]
                text = "".join(as_str(chunk.get("text")) for chunk in chunks)
                return self._think(text, {"field": "thinking"}, {"chunks": others} if others else {})
            case "refusal":
                self._refuse(part)
                return []
        return self._open(_image(part) or Opaque(self._provider.name, part))

    def _text(self, piece: str) -> WireEvents:
        if not piece:
            return []
        text, events = self._at(Text)
        if self._last_text is None:
            text.notes += self._notes  # those that came ahead of it
        self._last_text = text
        text.pieces.append(piece)
        return [*events, TextDelta(piece)]

    def _refuse(self, message: JSONObject) -> None:
        if text := as_str(message.get("refusal")):
            _vendors.grow(self._refusal, {"refusal": text}, {"refusal"})

    def _annotate(self, notes: list[JSONObject]) -> None:
        self._notes += notes
        if self._last_text is not None:
            self._last_text.notes += notes

    def _call(self, delta: JSONObject, *, whole: bool) -> WireEvents:
        function = as_dict(delta.get("function")) or as_dict(delta.get("custom")) or delta
        call_id, name = as_str(delta.get("id")), as_str(function.get("name"))
        piece = _arguments(function.get("arguments", function.get("input")))
        index = None if delta.get("index") is None else as_int(delta["index"])
        call, events = None if whole else self._call_of(index, call_id, name, piece), []
        if call is None:
            if not (call_id or name or piece):
                return []
            call = Call((self._id or os.urandom(8), len(self._calls)))
            self._calls.append(call)
            events = self._open(call)
        self._by_index[index] = call
        if call_id and call_id not in self._by_id:  # two calls of one id cannot be told apart
            self._by_id[call_id] = call
            call.id = call.id or call_id
        call.name = call.name or name
        call.extras.update((key, delta[key]) for key in _vendors.CALL_EXTRAS if as_dict(delta.get(key)))
        if delta.get("type") == "custom":
            call.extras["type"] = "custom"
        if piece:
            call.pieces.append(piece)
            if not call.ended and "type" not in call.extras:
                events.append(ToolInputDelta(call.id or call.made_up, call.name, piece))
        return events

    def _call_of(self, index: int | None, call_id: str, name: str, piece: str) -> Call | None:
        """
        Find the call that a delta continues; None: it begins one.

        Seen in the wild: no index; one index for several calls, one after the other; an index that changes while the id
        stays, and an id that changes while the index stays; id and name in each delta, or no id at all.
        """
        if index is None:
            known = self._by_id.get(call_id)
            call = known or (None if call_id and name else next(reversed(self._calls), None))
        else:
            call = self._by_index.get(index) or (None if name else self._by_id.get(call_id))
        return None if call is None or call.begins_anew(call_id, name, piece) else call

    def _at(self, kind: type[Text | Thinking]) -> tuple[Prose, WireEvents]:
        """Return the open text or reasoning at the end of the message, or a new one put there."""
        last = self._parts[-1] if self._parts else None
        if isinstance(last, Prose) and last.kind is kind and not last.ended:
            return last, []
        new = Prose(kind)
        return new, self._open(new)

    def _open(self, part: Part) -> WireEvents:
        self._parts.append(part)
        return self._end(len(self._parts) - 1, calls=False)

    def _end(self, upto: int, *, calls: bool) -> WireEvents:
        """End parts, in their order: those before number `upto`, or before the first call."""
        events: WireEvents = []
        for part in self._parts[self._ended : upto]:
            if isinstance(part, Call) and not calls:
                break
            if isinstance(part, Prose | Call):
                part.ended = True
            events.append(BlockEnd(block_of(part)))
        self._ended += len(events)
        return events


class ChatDecoder(Decoder):
    """Decodes one streamed answer."""

    def __init__(self, provider: HTTPProvider) -> None:
        super().__init__()
        self._reply = _Reply(provider)
        self._done = False

    @property
    def patience(self) -> float:
        """Longer without `[DONE]`: some gateways put a finish reason into every chunk."""
        return super().patience if self._done else 60.0

    def is_complete(self) -> bool:
        return self._done or bool(self._reply.word)

    def _response(self) -> Response:
        return self._reply.response()

    def _event(self, event: SSEEvent) -> WireEvents:
        if event.event is None and not self._done and (events := self._reply.take_text(event.data)) is not None:
            return events
        data = event.data.strip()
        if data == b"[DONE]" and not self._done:
            self._done = True
            return self._reply.end()
        if self._done or not data.startswith(b"{"):  # anything else keeps the connection alive
            return []
        chunk = as_dict(decode_json(data))
        events = self._reply.take({"error": chunk, **chunk} if event.event == "error" else chunk)
        return [*events, *self._report(self._reply.usage())] if self._reply.counts else events


def decode(body: bytes, provider: HTTPProvider) -> Response:
    """Say what a whole answer means. Raises the error that it is, or `WireError` where it is no answer."""
    if (plain := plain_answer(body)) is not None and (reply := _Reply(provider)).take_plain(plain):
        return reply.response()
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


def _raise_error(chunk: JSONObject, choice: JSONObject, status: int | None) -> None:
    report = chunk.get("error") or choice.get("error") or (chunk.get("object") == "error" and chunk)
    if report:
        raise from_error(report, status=status)
    if (word := as_str(choice.get("finish_reason"))) in _vendors.FAILURES:
        raise ProviderError(f"the server broke off its answer: finish_reason {word!r}", status=status, retryable=True)


def _content(content: Any) -> list[JSONObject]:
    """Return content, which may be text, parts, or a mixture, as parts."""
    members = content if isinstance(content, list) else [content]
    return as_dicts([{"type": "text", "text": each} if isinstance(each, str) else each for each in members])


def _image(part: JSONObject) -> Image | None:
    given = part.get("image_url")
    url = as_str(given) or as_str(as_dict(given).get("url"))
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    if data and url.startswith("data:"):
        return Image(kind, data)
    return Image("image/*", uri=url) if url else None


def _arguments(value: Any) -> str:
    """Return a piece of a call's arguments as text; some servers send all of them as an object."""
    return value if isinstance(value, str) else "" if value is None else encode_json(value).decode()


def _sources(chunk: JSONObject) -> list[JSONObject]:
    """Return what the numbers in an answer of Perplexity or xAI refer to, in their order."""
    if found := as_dicts(chunk.get("search_results")):
        return found
    return [each if isinstance(each, dict) else {"url": each} for each in as_list(chunk.get("citations"))]
