"""
The Chat Completions API: what messages become.

A message of ours is one message there, but for tool results, which are messages of their own. What an answer had besides
text and calls goes back in the fields it came in, and only to where it came from.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .._messages import Audio, Block, Document, Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse, Video
from . import _vendors
from ._base import sent_arguments, unsupported
from ._json import as_dict, as_list, as_str
from ._json import encode as encode_json
from ._transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._util import JSONObject
    from ._openai_compat import OpenAICompat

_AUDIO_FORMATS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
}
_AFTER_TOOL = "I have the results."  # said for the model where a server wants its turn between results and user
_EMPTY = "(no output)"
# A message that has these fields alone is refused as an empty one.
_NO_CONTENT = {*_vendors.REASONING_FIELDS, *_vendors.SEALED_FIELDS, "extra_content"}


class ChatTranscript(Transcript):
    """A conversation as messages of that API."""

    def __init__(self, provider: OpenAICompat) -> None:
        self._quirks = provider.quirks
        self._name = provider.name
        super().__init__(provider.origin)

    def _restart(self, messages: Sequence[Message]) -> None:
        super()._restart(messages)
        self._names: dict[str, str] = {}  # of the calls so far, by id

    def _items(self, message: Message, before: list[JSONObject]) -> list[JSONObject]:
        if message.role == "assistant":
            self._names.update((call.id, call.name) for call in message.tool_uses)
            return self._assistant(message)
        return self._user(message, before)

    def _user(self, message: Message, before: list[JSONObject]) -> list[JSONObject]:
        """Return a user's message: its tool results first, as messages of their own, then what else it says."""
        out: list[JSONObject] = []
        parts: list[JSONObject] = []
        for block in message.content:
            if isinstance(block, ToolResult):
                out.append(self._result(block))
            else:
                parts += self._parts(block, media=True)
        if not parts:
            return out
        last = (out or before or [{}])[-1]
        if last.get("role") == "tool" and self._quirks.assistant_after_tool:
            out.append({"role": "assistant", "content": _AFTER_TOOL})
        elif last.get("role") == "user" and self._quirks.merge_user_messages:
            parts = [*_as_parts(last["content"]), *parts]
            before.pop()
        return [*out, {"role": "user", "content": self._content(parts)}]

    def _result(self, result: ToolResult) -> JSONObject:
        out: JSONObject = {"role": "tool", "tool_call_id": self._call_id(result.tool_use_id)}
        if self._quirks.tool_result_name and result.tool_use_id in self._names:
            out["name"] = self._names[result.tool_use_id]
        match result.content:
            case (Text(text=text),) if text and not text.isspace() and not self._quirks.content_parts:
                out["content"] = text  # nearly all of them
            case blocks:
                parts = [part for block in blocks for part in self._parts(block, media=self._quirks.tool_media)]
                out["content"] = self._content(parts or [_text(_EMPTY)])
        return out

    def _assistant(self, message: Message) -> list[JSONObject]:
        """Return an assistant's message, or nothing if nothing of it can be sent: reasoning alone is no message."""
        own = message.origin == self._origin
        parts: list[JSONObject] = []
        fields: JSONObject = {}
        for block in message.content:
            match block:
                case Thinking():
                    self._think(block, parts, fields)
                case ToolUse():
                    fields.setdefault("tool_calls", []).append(self._call(block))
                case Image() if own:  # as OpenRouter gave it
                    fields.setdefault("images", []).append(_image(block))
                case Opaque(provider=self._name, payload={"type": "message"} as beside):
                    fields |= _beside(beside)
                case _:
                    parts += self._parts(block, media=False)
        if not any(part.get("type") != "thinking" for part in parts) and not fields.keys() - _NO_CONTENT:
            return []
        if self._quirks.require_reasoning_content:
            fields.setdefault("reasoning_content", " ")
        content = self._content(parts, "" if own else "\n\n") if parts else None
        return [{"role": "assistant", "content": content, **fields}]

    def _think(self, block: Thinking, parts: list[JSONObject], fields: JSONObject) -> None:
        """Put reasoning where it came from: into a field of the message, sealed lists, or Mistral's parts."""
        data = block.provider_data or {}
        field = self._quirks.reasoning_field or as_str(data.get("field"))
        if not self._quirks.send_reasoning:
            return
        for sealed in _vendors.SEALED_FIELDS:
            if items := as_list(data.get(sealed)):
                fields[sealed] = [*fields.get(sealed, ()), *items]
        if field == "thinking":
            chunks = [_text(block.text)] if block.text else []
            parts.append({"type": "thinking", "thinking": [*chunks, *as_list(data.get("chunks"))]})
        elif field and block.text and "reasoning_details" not in data:  # they have the text, too
            fields[field] = fields.get(field, "") + block.text

    def _call(self, call: ToolUse) -> JSONObject:
        out: JSONObject = {"id": self._call_id(call.id), "type": "function"}
        if call.provider_data is None:
            arguments = encode_json(sent_arguments(call)).decode()
            return {**out, "function": {"name": call.name, "arguments": arguments}}
        extras = {key: value for key, value in call.provider_data.items() if key in _vendors.CALL_EXTRAS}
        if call.provider_data.get("type") == "custom":
            custom = {"name": call.name, "input": as_str(call.input.get("input"))}
            return {**out, "type": "custom", "custom": custom, **extras}
        function = {"name": call.name, "arguments": encode_json(sent_arguments(call)).decode()}
        return {**out, "function": function, **extras}

    def _call_id(self, call_id: str) -> str:
        pattern = self._quirks.tool_id_pattern
        return call_id if pattern is None or re.fullmatch(pattern, call_id) else _vendors.made_up_id(call_id)

    def _parts(self, block: Block, *, media: bool) -> list[JSONObject]:
        """Return a block as parts of a message's content. Media that cannot be sent is told of."""
        match block:
            case Text(text=text):
                return [_text(text)] if text and not text.isspace() else []
            case Image() if media and self._quirks.images and (block.data or block.uri):
                return [_image(block)]
            case Audio(mime_type=kind, data=str(data)) if media and kind.lower() in _AUDIO_FORMATS:
                sound = {"data": data, "format": _AUDIO_FORMATS[kind.lower()]}
                return [{"type": "input_audio", "input_audio": sound}]
            case Document(mime_type=kind, data=str(data)) if media and self._quirks.file_parts:
                file = {"filename": block.name or "document", "file_data": f"data:{kind};base64,{data}"}
                return [{"type": "file", "file": file}]
            case Document(uri=str(uri)) if media and self._quirks.file_parts and ":" not in uri:  # one uploaded before
                return [{"type": "file", "file": {"file_id": uri}}]
            case Image() | Audio() | Video() | Document():
                return [_text(unsupported(block))]
            case Opaque(provider=self._name, payload=payload):
                return [payload]
        return []

    def _content(self, parts: list[JSONObject], between: str = "\n\n") -> str | list[JSONObject]:
        if self._quirks.content_parts or any(part.get("type") != "text" for part in parts):
            return parts
        return between.join(part["text"] for part in parts)


def _text(text: str) -> JSONObject:
    return {"type": "text", "text": text}


def _as_parts(content: str | list[JSONObject]) -> list[JSONObject]:
    return [_text(content)] if isinstance(content, str) else content


def _image(image: Image) -> JSONObject:
    url = image.uri if image.data is None else f"data:{image.mime_type};base64,{image.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _beside(payload: JSONObject) -> JSONObject:
    """Return the fields of a message that go back: of speech that was answered, the server wants only the id."""
    fields = {key: payload[key] for key in ("extra_content",) if key in payload}
    audio_id = as_str(as_dict(payload.get("audio")).get("id"))
    return fields | ({"audio": {"id": audio_id}} if audio_id else {})
