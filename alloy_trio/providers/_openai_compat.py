"""
The Chat Completions API, at any address: what is sent. `_openai_compat_reply` has what comes back, `_vendors` who differs.

A message of ours is one message there, but for tool results, which are messages of their own. What an answer had besides
text and calls goes back in the fields it came in, and only to where it came from.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs

from .._errors import InvalidOption
from .._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    Opaque,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from . import _openai_compat_reply, _vendors
from ._base import Call, Request, Response, Terms, sent_arguments, unsupported
from ._checks import clean_url, shown_url
from ._http import HTTPProvider
from ._json import as_dict, as_list, as_str
from ._json import encode as encode_json
from ._origin import for_origin
from ._request import cap_output, has_fees, openai_format
from ._vendors import VENDORS, Quirks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._util import JSONObject
    from ..tools._tool import Tool
    from ._decoder import Decoder

_CAP_FIELDS = ("max_tokens", "max_completion_tokens")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
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


@attrs.frozen(eq=False)
class OpenAICompat(HTTPProvider):
    """
    Any server of the Chat Completions API: Ollama by default, and OpenRouter, Groq, Mistral, DeepSeek, vLLM and others.

    What has no option here is a field of the API's, for instance `extra_body={"temperature": 0}`. No key is needed; one
    that is given is sent. `OpenAICompat.of("groq", model)` fills in what is known of a vendor.

    Attributes:
        chat_path: The path of the API below `base_url`.
        include_usage: Whether a streaming request asks for a usage report, where the server can be asked. Without
            one the tokens are not known. `extra_body={"stream_options": ...}` has the last word, False for none.
        parallel_tool_calls: Whether the model may ask for several tools at once; None leaves it to the server.
        quirks: How the server differs from others; by default looked up by the host of `base_url`.
    """

    name: str = attrs.field(default="openai_compat", kw_only=True)
    base_url: str = attrs.field(default="http://localhost:11434/v1", kw_only=True, converter=clean_url, repr=shown_url)
    chat_path: str = attrs.field(default="/chat/completions", kw_only=True)
    include_usage: bool = attrs.field(default=True, kw_only=True)
    parallel_tool_calls: bool | None = attrs.field(default=None, kw_only=True)
    quirks: Quirks = attrs.field(
        default=attrs.Factory(lambda self: _vendors.quirks_for(self.base_url), takes_self=True), kw_only=True
    )

    @classmethod
    def of(cls, vendor: str, model: str, **options: Any) -> OpenAICompat:
        """
        Make the provider of a known vendor, with its key from the vendor's environment variable.

        Args:
            vendor: One of the names in `"vendor:model"`, for instance `groq`.
            model: The model to ask.
            **options: As for the class: they go first. Any, as each has its own type.

        Raises:
            InvalidOption: The vendor is unknown, or wants a key and there is none.
        """
        if (known := VENDORS.get(vendor)) is None:
            raise InvalidOption(f"unknown vendor {vendor!r}: the vendors are {', '.join(VENDORS)}")
        key = options.pop("api_key", None) or (known.env_key and os.environ.get(known.env_key, "").strip()) or None
        if known.env_key and key is None:
            raise InvalidOption(f"no API key for {vendor}: set {known.env_key} in the environment, or pass api_key=")
        given = {"name": vendor, "base_url": known.base_url, "quirks": known.quirks, **options}
        return cls(model, api_key=key, **given)

    def encode(self, request: Request, *, stream: bool) -> Call:
        """Say what to send."""
        body: JSONObject = {"model": self.model, "messages": self._messages(request)}
        if stream:
            body["stream"] = True
            if self.include_usage and self.quirks.stream_options:
                body["stream_options"] = {"include_usage": True}
        if request.tools:
            body["tools"] = [self._tool(tool) for tool in request.tools]
            if request.tool_choice is not None:
                body["tool_choice"] = _tool_choice(request.tool_choice)
            if self.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = self.parallel_tool_calls
        body |= self.extra_body
        if not stream or body.get("stream_options") is False:
            body.pop("stream_options", None)  # servers refuse it in a buffered call
        cap_output(body, request.max_output_tokens, self.quirks.cap_field, *_CAP_FIELDS)
        if request.output_schema is not None and self.quirks.output_schema:
            form = {"type": "json_schema", "json_schema": openai_format(request.output_schema)}
            body.setdefault("response_format", form)
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        return Call(self.chat_path, headers, encode_json(body))

    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means."""
        return _openai_compat_reply.decode(body, self)

    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""
        return _openai_compat_reply.ChatDecoder(self)

    @property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        vendor = _vendors.vendor_at(self.base_url)
        searches = any(self.extra_body.get(field) for field in _vendors.FEE_FIELDS)
        searches = searches or self.model.endswith(":online") or "-search-" in self.model  # OpenRouter's, OpenAI's
        return Terms(
            enforces_cap=vendor is not None and vendor.env_key is not None,
            server_tools=searches or has_fees(self.extra_body.get("tools"), ()),
        )

    @property
    def is_at_vendor(self) -> bool:
        """Whether this is the vendor of that name, at the address that is known of it."""
        vendor = VENDORS.get(self.name)
        return vendor is not None and urlsplit(self.base_url).hostname == urlsplit(vendor.base_url).hostname

    @property
    def native_output(self) -> bool:
        """Whether the API holds an answer's text to `Request.output_schema`, also where there are tools."""
        return self.quirks.output_schema

    def _tool(self, tool: Tool) -> JSONObject:
        if (native := tool.native.get(self.name)) is not None:
            return native
        described = {"description": tool.description} if tool.description else {}
        function: JSONObject = {"name": tool.name, **described, "parameters": tool.input_schema}
        if tool.strict is not None and self.quirks.strict_tools:
            function["strict"] = tool.strict
        return {"type": "function", "function": function}

    def _messages(self, request: Request) -> list[JSONObject]:
        out: list[JSONObject] = []
        names: dict[str, str] = {}  # of the calls so far, by id
        if request.system_prompt and not request.system_prompt.isspace():
            out.append({"role": self.quirks.system_role, "content": request.system_prompt})
        for message in for_origin(request.messages, self.origin):
            if message.role == "user":
                self._add_user(out, message, names)
            else:
                names.update((call.id, call.name) for call in message.tool_uses)
                out += self._assistant(message)
        return out

    def _add_user(self, out: list[JSONObject], message: Message, names: Mapping[str, str]) -> None:
        """Append a user's message: its tool results first, as messages of their own, then what else it says."""
        out += [self._result(block, names) for block in message.content if isinstance(block, ToolResult)]
        rest = [block for block in message.content if not isinstance(block, ToolResult)]
        parts = [part for block in rest for part in self._parts(block, media=True)]
        if not parts:
            return
        last = out[-1] if out else {}
        if last.get("role") == "tool" and self.quirks.assistant_after_tool:
            out.append({"role": "assistant", "content": _AFTER_TOOL})
        elif last.get("role") == "user" and self.quirks.merge_user_messages:
            parts = [*_as_parts(last["content"]), *parts]
            out.pop()
        out.append({"role": "user", "content": self._content(parts)})

    def _result(self, result: ToolResult, names: Mapping[str, str]) -> JSONObject:
        parts = [part for block in result.content for part in self._parts(block, media=self.quirks.tool_media)]
        out: JSONObject = {"role": "tool", "tool_call_id": self._call_id(result.tool_use_id)}
        if self.quirks.tool_result_name and result.tool_use_id in names:
            out["name"] = names[result.tool_use_id]
        out["content"] = self._content(parts or [_text(_EMPTY)])
        return out

    def _assistant(self, message: Message) -> list[JSONObject]:
        """Return an assistant's message, or nothing if nothing of it can be sent: reasoning alone is no message."""
        own = message.origin == self.origin
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
                case Opaque(provider=self.name, payload={"type": "message"} as beside):
                    fields |= _beside(beside)
                case _:
                    parts += self._parts(block, media=False)
        if not any(part.get("type") != "thinking" for part in parts) and not fields.keys() - _NO_CONTENT:
            return []
        if self.quirks.require_reasoning_content:
            fields.setdefault("reasoning_content", " ")
        content = self._content(parts, "" if own else "\n\n") if parts else None
        return [{"role": "assistant", "content": content, **fields}]

    def _think(self, block: Thinking, parts: list[JSONObject], fields: JSONObject) -> None:
        """Put reasoning where it came from: into a field of the message, sealed lists, or Mistral's parts."""
        data = block.provider_data or {}
        field = self.quirks.reasoning_field or as_str(data.get("field"))
        if not self.quirks.send_reasoning:
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
        extras = {key: value for key, value in (call.provider_data or {}).items() if key in _vendors.CALL_EXTRAS}
        out: JSONObject = {"id": self._call_id(call.id), "type": "function"}
        if (call.provider_data or {}).get("type") == "custom":
            custom = {"name": call.name, "input": as_str(call.input.get("input"))}
            return {**out, "type": "custom", "custom": custom, **extras}
        function = {"name": call.name, "arguments": encode_json(sent_arguments(call)).decode()}
        return {**out, "function": function, **extras}

    def _call_id(self, call_id: str) -> str:
        pattern = self.quirks.tool_id_pattern
        return call_id if pattern is None or re.fullmatch(pattern, call_id) else _vendors.made_up_id(call_id)

    def _parts(self, block: Block, *, media: bool) -> list[JSONObject]:
        """Return a block as parts of a message's content. Media that cannot be sent is told of."""
        match block:
            case Text(text=text):
                return [_text(text)] if text and not text.isspace() else []
            case Image() if media and self.quirks.images and (block.data or block.uri):
                return [_image(block)]
            case Audio(mime_type=kind, data=str(data)) if media and kind.lower() in _AUDIO_FORMATS:
                sound = {"data": data, "format": _AUDIO_FORMATS[kind.lower()]}
                return [{"type": "input_audio", "input_audio": sound}]
            case Document(mime_type=kind, data=str(data)) if media and self.quirks.file_parts:
                file = {"filename": block.name or "document", "file_data": f"data:{kind};base64,{data}"}
                return [{"type": "file", "file": file}]
            case Document(uri=str(uri)) if media and self.quirks.file_parts and ":" not in uri:  # one uploaded before
                return [{"type": "file", "file": {"file_id": uri}}]
            case Image() | Audio() | Video() | Document():
                return [_text(unsupported(block))]
            case Opaque(provider=self.name, payload=payload):
                return [payload]
        return []

    def _content(self, parts: list[JSONObject], between: str = "\n\n") -> str | list[JSONObject]:
        if self.quirks.content_parts or any(part.get("type") != "text" for part in parts):
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


def _tool_choice(choice: str) -> str | JSONObject:
    return _TOOL_CHOICES.get(choice) or {"type": "function", "function": {"name": choice}}
