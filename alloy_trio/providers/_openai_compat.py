"""
The Chat Completions API, at any address: what is sent.

`_openai_compat_messages` has what messages become there, `_openai_compat_reply` what comes back, `_vendors` who differs.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs

from .._errors import InvalidOption
from . import _openai_compat_reply, _vendors
from ._base import Call, Request, Response, Terms
from ._checks import clean_url, shown_url
from ._http import HTTPProvider
from ._openai_compat_messages import ChatTranscript
from ._request import cap_output, has_fees, openai_format
from ._secret import discreet
from ._transcript import transcript_of
from ._vendors import VENDORS, Quirks

if TYPE_CHECKING:
    from .._util import JSONObject
    from ..tools._tool import Tool
    from ._decoder import Decoder

_CAP_FIELDS = ("max_tokens", "max_completion_tokens")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


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
    @discreet
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
        chat = transcript_of(request, self, lambda: ChatTranscript(self))
        key = (stream, request.tools, request.tool_choice, request.max_output_tokens, request.output_schema)
        fields = chat.fields(key, lambda: self._body(request, stream=stream))
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        if "messages" in self.extra_body:
            return Call(self.chat_path, headers, fields)
        system: list[JSONObject] = []
        if request.system_prompt and not request.system_prompt.isspace():
            system = [{"role": self.quirks.system_role, "content": request.system_prompt}]
        return Call(self.chat_path, headers, chat.body("messages", fields, first=system))

    def _body(self, request: Request, *, stream: bool) -> JSONObject:
        """Return the request without its messages."""
        body: JSONObject = {"model": self.model}
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
        return body

    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means."""
        return _openai_compat_reply.decode(body, self)

    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""
        return _openai_compat_reply.ChatDecoder(self)

    @functools.cached_property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        vendor = _vendors.vendor_at(self.base_url)
        searches = any(self.extra_body.get(field) for field in _vendors.FEE_FIELDS)
        searches = searches or self.model.endswith(":online") or "-search-" in self.model  # OpenRouter's, OpenAI's
        return Terms(
            enforces_cap=vendor is not None and vendor.env_key is not None,
            server_tools=searches or has_fees(self.extra_body.get("tools"), ()),
        )

    @functools.cached_property
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


def _tool_choice(choice: str) -> str | JSONObject:
    return _TOOL_CHOICES.get(choice) or {"type": "function", "function": {"name": choice}}
