"""
OpenAI, over its Responses API: what is sent.

`_openai_messages` has what messages become there, `_openai_reply` what comes back.

What is sent is a list of items, and there are two ways to go on from an answer:

    stateless (default)   Every request carries all items, and the server keeps nothing (`store: false`). Reasoning comes
                          sealed (`encrypted_content`) and goes back as it came, in the epoch of the conversation it is from.
    chained               The server keeps each answer; a request names the last one and carries what is new.

Only the first is serialized once, a `ResponsesTranscript`: what is chained is short.

A rule of the API that the code below does not show by itself: a tool that does not say `strict` gets it, and its optional
parameters become required (`_definition`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import attrs

from .._util import JSONObject
from . import _openai_reply
from ._base import Call, Request, Response, Terms
from ._checks import clean_url, shown_url
from ._http import HTTPProvider
from ._json import as_dict, as_list, as_str
from ._json import encode as encode_json
from ._openai_messages import ResponsesTranscript, items_behind
from ._origin import for_origin
from ._request import cap_output, has_fees, openai_format
from ._transcript import transcript_of

if TYPE_CHECKING:
    from .._messages import Message
    from ..tools._tool import Tool
    from ._decoder import Decoder

_SEALED_REASONING = "reasoning.encrypted_content"

# Models that do not reason: asked for sealed reasoning, OpenAI refuses the request.
_NOT_REASONING = ("gpt-3", "gpt-4", "chatgpt-", "gpt-5-chat")

# Models from before there were schemas for answers.
_NO_SCHEMA = re.compile(r"gpt-3|gpt-4(-|$)|gpt-4o-2024-05|chatgpt-|o1-(mini|preview)")

# Tools that cost nothing but their tokens, besides functions.
_NO_FEE = ("mcp", "tool_search", "local_shell", "apply_patch", "computer", "namespace")

_NAMED_TOOLS = {"function", "custom"}  # all others are chosen by their type


@attrs.frozen(eq=False)
class OpenAI(HTTPProvider):
    """
    OpenAI, xAI, Azure, or any server that speaks the Responses API.

    What has no option here is a field of the API's, for instance `extra_body={"reasoning": {"effort": "high"}}`.

    A conversation is stateless unless `store=True` or `previous_response_id=` says otherwise: then a request continues
    from the last answer in its messages that came from here, was not interrupted, is kept by the server and was given
    since the conversation was last changed (compacted, edited), and carries only the messages after that one. As long as
    there is none, it continues from `previous_response_id`, or from what a run's `provider_state=` names, and carries all
    messages, which are the new ones; answers that do not descend from that response are no candidates. The system
    prompt goes as `instructions`, which hold for one answer and are not piled up in the chain. `store=False` together
    with `previous_response_id=` keeps nothing new: every request continues from that response and carries all messages.

    Attributes:
        web_search: Whether the model may search the web; or the tool's own options, as a dict.
        server_tools: Further tools that the provider runs, as the API defines them: `{"type": "code_interpreter",
            "container": {"type": "auto"}}`.
        include: What else is to be in the answer: `web_search_call.action.sources`.
        store: Whether the server keeps the answers. None: only if `previous_response_id` is given.
        previous_response_id: A response that the server has, to continue from.
        parallel_tool_calls: Whether the model may ask for several tools at once; None leaves it to the provider.
    """

    env_key: ClassVar[str | None] = "OPENAI_API_KEY"
    vendor_host: ClassVar[str | None] = "api.openai.com"

    name: str = attrs.field(default="openai", kw_only=True)
    base_url: str = attrs.field(default="https://api.openai.com/v1", kw_only=True, converter=clean_url, repr=shown_url)
    web_search: bool | Mapping[str, Any] = attrs.field(default=False, kw_only=True)  # JSON, of any shape
    server_tools: tuple[JSONObject, ...] = attrs.field(default=(), kw_only=True, converter=tuple, repr=False)
    include: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=tuple)
    store: bool | None = attrs.field(default=None, kw_only=True)
    previous_response_id: str | None = attrs.field(default=None, kw_only=True)
    parallel_tool_calls: bool | None = attrs.field(default=None, kw_only=True)

    def encode(self, request: Request, *, stream: bool) -> Call:
        """Say what to send."""
        if request._alone and (self.store or self.previous_response_id):  # noqa: SLF001 - a question beside the conversation
            stateless = attrs.evolve(self, store=False, previous_response_id=None)
            return stateless.encode(attrs.evolve(request, alone=False, transcripts=None), stream=stream)
        prompt = request.system_prompt if request.system_prompt and not request.system_prompt.isspace() else None
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        path = "/responses" if urlsplit(self.base_url).path else "/v1/responses"
        if self._chained:
            messages = for_origin(request.messages, self.origin)
            previous, known = self._continued(messages, request.provider_state)
            body: JSONObject = {"input": items_behind(messages, known, self.name)}
            return Call(path, headers, encode_json(body | self._body(request, prompt, previous, stream=stream)))
        chat = transcript_of(request, self, lambda: ResponsesTranscript(self, reasons=self._reasons))
        key = (stream, request.tools, request.tool_choice, request.max_output_tokens, request.output_schema)
        fields = chat.fields(key, lambda: self._body(request, None, self.previous_response_id, stream=stream))
        if "input" in self.extra_body:
            return Call(path, headers, fields)
        system = [] if prompt is None else [{"type": "message", "role": "system", "content": prompt}]
        return Call(path, headers, chat.body("input", fields, first=system))

    def _body(self, request: Request, instructions: str | None, previous: str | None, *, stream: bool) -> JSONObject:
        """Return the request without its items."""
        tools = self._tools(request.tools)
        body: JSONObject = {
            "model": self.model,
            "instructions": instructions,
            "tools": tools or None,
            "tool_choice": _tool_choice(request.tool_choice, request.tools, tools) if tools else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_output_tokens": request.max_output_tokens,
            "include": self._include() or None,
            "store": False if self.store is None and not self._chained else self.store,
            "previous_response_id": previous or None,
            "stream": stream or None,
        }
        body = {field: value for field, value in body.items() if value is not None}
        body |= self.extra_body
        cap_output(body, request.max_output_tokens, "max_output_tokens")
        if request.output_schema is not None:
            form = {"type": "json_schema", **openai_format(request.output_schema)}
            body["text"] = {"format": form, **as_dict(body.get("text"))}
        return body

    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means."""
        return _openai_reply.decode(body, self, self.previous_response_id)

    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""
        return _openai_reply.OpenAIDecoder(self, self.previous_response_id)

    @functools.cached_property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        tools = self.extra_body.get("tools", self._tools(()))
        return Terms(enforces_cap=True, runs_on=True, server_tools=has_fees(tools, _NO_FEE))

    @property
    def native_output(self) -> bool:
        """Whether the API holds an answer's text to `Request.output_schema`: for models since GPT-4o."""
        return not _NO_SCHEMA.match(self.model.removeprefix("ft:"))

    @property
    def _reasons(self) -> bool:
        return not self.model.removeprefix("ft:").startswith(_NOT_REASONING)

    @property
    def _chained(self) -> bool:
        return bool(self.store) or (self.previous_response_id is not None and self.store is None)

    def _continued(self, messages: Sequence[Message], earlier: Mapping[str, Any] | None) -> tuple[str | None, int]:
        """Return the response to continue from, and how many of the messages it stands for."""
        for place in range(len(messages), 0, -1):
            if response_id := self._kept(messages[place - 1]):
                return response_id, place
        return self.previous_response_id or as_str(as_dict(earlier).get("response_id")) or None, 0

    def _kept(self, message: Message) -> str | None:
        """Return the id of a message's response, if one can continue from it."""
        state = message.provider_state or {}
        response_id = as_str(state.get("response_id"))
        if message.interrupted or message.origin not in {None, self.origin} or state.get("store") is False:
            return None
        root = self.previous_response_id
        return response_id if root in (None, state.get("root"), response_id) else None

    def _include(self) -> list[str]:
        sealed = [_SEALED_REASONING] if self._reasons and not self._chained else []
        return list(dict.fromkeys([*self.include, *sealed]))

    def _tools(self, tools: Sequence[Tool]) -> list[JSONObject]:
        encoded = [dict(tool.native.get(self.name) or _definition(tool)) for tool in tools]
        if self.web_search is not False:
            options = self.web_search if isinstance(self.web_search, Mapping) else {}
            encoded.append({"type": "web_search", **options})
        return [*encoded, *map(dict, self.server_tools)]


def _definition(tool: Tool) -> JSONObject:
    definition: JSONObject = {"type": "function", "name": tool.name}
    if tool.description:
        definition["description"] = tool.description
    # The API refuses an object schema that does not say which properties it has.
    definition["parameters"] = {"properties": {}, **tool.input_schema}
    if tool.strict is not None:
        definition["strict"] = tool.strict
    elif _is_open(tool.input_schema):
        # Left out, it counts as true here, and the schema is rewritten to fit: optional parameters would be required.
        definition["strict"] = False
    return definition


def _is_open(schema: object) -> bool:
    """Whether a schema leaves anything open that strict mode would close: a property optional, or not named."""
    if isinstance(schema, list):
        return any(map(_is_open, schema))
    if not isinstance(schema, dict):
        return False
    properties = as_dict(schema.get("properties"))
    if properties.keys() - set(map(str, as_list(schema.get("required")))):
        return True
    if schema.get("additionalProperties", False) is not False:
        return True
    if schema.get("type") == "object" and "properties" not in schema:
        return True
    return any(map(_is_open, schema.values()))


def _tool_choice(choice: str | None, tools: Sequence[Tool], encoded: Sequence[JSONObject]) -> str | JSONObject | None:
    """Return the choice in the API's words. A tool is named by its own name, or, where the provider runs it, by its type."""
    match choice:
        case None | "auto" | "none":
            return choice
        case "any":
            return "required"
    names = [tool.name for tool in tools] + [as_str(tool.get("type")) for tool in encoded[len(tools) :]]
    for name, tool in zip(names, encoded, strict=True):
        if name == choice and tool.get("type") in _NAMED_TOOLS:
            return {"type": tool["type"], "name": tool.get("name", choice)}
        if name == choice:
            return {"type": tool.get("type")}
    return {"type": "function", "name": choice}
