"""
OpenAI, over its Responses API: what is sent. `_openai_reply` has what comes back.

What is sent is a list of items, and there are two ways to go on from an answer:

    stateless (default)   Every request carries all items, and the server keeps nothing (`store: false`). Reasoning comes
                          sealed (`encrypted_content`) and goes back as it came, in the epoch of the conversation it is from.
    chained               The server keeps each answer; a request names the last one and carries what is new.

Rules of the API that the code below does not show by itself:

    a reasoning item stands right before what it led to, and never last                        `_assistant_items`
    an item that names its id may need the reasoning that once stood before it                 `_assistant_items`
    a tool that does not say `strict` gets it, and its optional parameters become required     `_definition`
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import attrs

from .._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    Opaque,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from .._util import JSONObject
from . import _openai_reply
from ._base import Call, Request, Response, Terms, sent_arguments, unsupported
from ._checks import clean_url, shown_url
from ._http import HTTPProvider
from ._json import as_dict, as_list, as_str, parse_arguments
from ._json import encode as encode_json
from ._openai_reply import CUSTOM_CALL
from ._origin import current_epoch, for_origin
from ._request import cap_output, has_fees, openai_format

if TYPE_CHECKING:
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

_ENDINGS = {  # the API wants a file name, and reads the file by its ending
    "text/plain": "txt",
    "text/markdown": "md",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
}
_IMAGE_TYPES = {"image/png", "image/jpeg", "image/gif", "image/webp"}


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
            return stateless.encode(attrs.evolve(request, alone=False), stream=stream)
        messages = for_origin(request.messages, self.origin)
        previous, known = self._continued(messages, request.provider_state)
        epoch = None if self._chained else current_epoch(request.messages)
        items = _items(messages, known, self.name, verbatim=epoch, reasons=self._reasons)
        tools = self._tools(request.tools)
        prompt = None if _is_blank(request.system_prompt) else request.system_prompt
        if prompt and not self._chained:
            items.insert(0, {"type": "message", "role": "system", "content": prompt})
        body: JSONObject = {
            "model": self.model,
            "instructions": prompt if self._chained else None,
            "input": items,
            "tools": tools or None,
            "tool_choice": _tool_choice(request.tool_choice, request.tools, tools) if tools else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_output_tokens": request.max_output_tokens,
            "include": self._include() or None,
            "store": False if self.store is None and not self._chained else self.store,
            "previous_response_id": previous,
            "stream": stream or None,
        }
        body = {field: value for field, value in body.items() if value is not None}
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        body |= self.extra_body
        cap_output(body, request.max_output_tokens, "max_output_tokens")
        if request.output_schema is not None:
            form = {"type": "json_schema", **openai_format(request.output_schema)}
            body["text"] = {"format": form, **as_dict(body.get("text"))}
        path = "/responses" if urlsplit(self.base_url).path else "/v1/responses"
        return Call(path, headers, encode_json(body))

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
        if self._chained:
            for place in range(len(messages), 0, -1):
                if response_id := self._kept(messages[place - 1]):
                    return response_id, place
        kept = as_str(as_dict(earlier).get("response_id")) if self._chained else ""
        return self.previous_response_id or kept or None, 0

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


def _items(
    messages: Sequence[Message], known: int, provider: str, *, verbatim: int | None, reasons: bool
) -> list[JSONObject]:
    """
    Return the items of the messages behind the first `known` ones, which the server has.

    `verbatim`: the epoch whose answers go back as they came. `reasons`: whether the model does; else it refuses reasoning.
    """
    calls: dict[str, ToolUse] = {}
    items: list[JSONObject] = []
    for place, message in enumerate(messages):
        calls |= {call.id: call for call in message.tool_uses}
        if place < known:
            continue
        if message.role == "user":
            items += _user_items(message, provider, calls)
        else:
            takes = reasons or not any(isinstance(block, Thinking) for block in message.content)
            items += _assistant_items(message, provider, verbatim=takes and message.epoch == verbatim)
    return items


def _user_items(message: Message, provider: str, calls: Mapping[str, ToolUse]) -> Iterator[JSONObject]:
    """Yield what a user's message becomes: each result an item, before all else, and what is said as one message."""
    encoded: list[JSONObject] = []
    for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
        if isinstance(block, ToolResult):
            encoded.append(_output(block, calls.get(block.tool_use_id)))
        elif isinstance(block, Opaque) and block.provider == provider:
            encoded.append(block.payload)
        else:
            encoded += _parts((block,))
    for is_part, group in itertools.groupby(encoded, key=_is_part):
        if is_part:
            yield {"type": "message", "role": "user", "content": list(group)}
        else:
            yield from group


def _is_part(encoded: JSONObject) -> bool:
    return as_str(encoded.get("type")).startswith("input_")


def _output(result: ToolResult, call: ToolUse | None) -> JSONObject:
    data = as_dict(call and call.provider_data)
    text_only = all(isinstance(block, Text) for block in result.content)
    output: JSONObject = {
        "type": f"{CUSTOM_CALL}_output" if data.get("type") == CUSTOM_CALL else "function_call_output",
        "call_id": result.tool_use_id,
        "output": result.text if text_only else _parts(result.content),
    }
    if caller := data.get("caller"):  # a program of the model's that waits for it
        output["caller"] = caller
    return output


def _parts(blocks: Iterable[Block]) -> list[JSONObject]:
    """Return text and media as parts of an input message."""
    parts: list[JSONObject] = []
    for block in blocks:
        match block:
            case Text(text=text) if not _is_blank(text):
                parts.append({"type": "input_text", "text": text})
            case Image() | Document() | Audio() | Video():
                parts.append(_media(block) or {"type": "input_text", "text": unsupported(block)})
    return parts


def _media(block: Image | Document | Audio | Video) -> JSONObject | None:
    """Return media that the API can read, or None."""
    mime_type = block.mime_type.partition(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    uri = f"data:{mime_type};base64,{block.data}" if block.data else block.uri
    match block:
        case Image() if uri and (not block.data or mime_type in _IMAGE_TYPES):
            return {"type": "input_image", **_source(uri, "image_url", "image_url")}
        case Document() if uri and not mime_type.startswith(("audio/", "video/")):
            source = _source(uri, "file_url", "file_data")
            if "file_data" in source:
                ending = _ENDINGS.get(mime_type) or mime_type.rpartition("/")[2]
                source["filename"] = block.name or f"document.{ending}"
            return {"type": "input_file", **source}
    return None


def _source(uri: str, web: str, inline: str) -> JSONObject:
    """Say where a file is: on the web, or in the address itself, or, by its id, among those uploaded to the API."""
    if uri.startswith("data:"):
        return {inline: uri}
    return {web if uri.startswith(("http:", "https:")) else "file_id": uri}


def _assistant_items(message: Message, provider: str, *, verbatim: bool) -> list[JSONObject]:
    """
    Return the items of an answer, of an interrupted one only its text.

    `verbatim`: with ids and reasoning. An answer of which any reasoning cannot go back (it came unsealed) is sent without
    ids as well: the server may know, by the id, that reasoning is missing.
    """
    blocks = message.content
    if message.interrupted:
        blocks = tuple(Text(block.text) for block in blocks if isinstance(block, Text))
    if not all(_is_sealed(block) for block in blocks if isinstance(block, Thinking)):
        verbatim = False
    items: list[JSONObject] = []
    for text_of, group in itertools.groupby(blocks, key=_message_of):
        if text_of is not None:
            items += _message(text_of, group, verbatim=verbatim)
        else:
            found = (_item(block, provider, verbatim=verbatim) for block in group)
            items += [item for item in found if item is not None]
    while items and items[-1].get("type") == "reasoning":
        items.pop()
    return items


def _is_sealed(reasoning: Thinking) -> bool:
    """Whether reasoning can go back: sealed by the server, or, from one that hides nothing, in plain text."""
    item = as_dict(reasoning.provider_data)
    return item.get("type") == "reasoning" and bool(item.get("encrypted_content") or item.get("content"))


def _message_of(block: Block) -> JSONObject | None:
    """Return the message that a block of text is from, as far as it is known; None for what is no text."""
    return as_dict(block.provider_data) if isinstance(block, Text) else None


def _message(data: JSONObject, blocks: Iterable[Block], *, verbatim: bool) -> list[JSONObject]:
    """Return the message that the text is from: with its id as the output it was, else as what was said."""
    texts = [block for block in blocks if isinstance(block, Text) and not _is_blank(block.text)]
    if not texts:
        return []
    head = {"type": "message", "role": "assistant"}
    if verbatim and "id" in data:
        parts = [{"type": "output_text", "text": each.text, "annotations": [*each.annotations]} for each in texts]
        return [{**head, **data, "content": parts}]
    phase = {"phase": data["phase"]} if "phase" in data else {}
    return [{**head, **phase, "content": "".join(each.text for each in texts)}]


def _item(block: Block, provider: str, *, verbatim: bool) -> JSONObject | None:
    """Return the item of a block that is no text, or None for one that this API would refuse."""
    match block:
        case Thinking(provider_data=raw):
            return raw if verbatim else None
        case ToolUse():
            return _call(block, verbatim=verbatim)
        case ServerToolUse(provider_data={"type": str()} as raw):
            return raw if verbatim else None  # without its reasoning, its id is refused
        case Opaque(provider=owner, payload=payload) if owner == provider:
            return payload
        case Image() | Document() | Audio() | Video():
            return {"type": "message", "role": "assistant", "content": unsupported(block)}
    return None


def _call(call: ToolUse, *, verbatim: bool) -> JSONObject:
    kept = dict(as_dict(call.provider_data))
    raw = kept.pop("arguments", None)
    if not verbatim:
        kept.pop("id", None)
    item: JSONObject = {"type": "function_call", "call_id": call.id, "name": call.name, **kept}
    if item["type"] == CUSTOM_CALL:
        return {**item, "input": as_str(call.input.get("input"))}
    arguments = sent_arguments(call)
    if raw is None or parse_arguments(raw) != (arguments, None):
        raw = encode_json(arguments).decode()
    return {**item, "arguments": raw}


def _is_blank(text: str | None) -> bool:
    return not text or text.isspace()
