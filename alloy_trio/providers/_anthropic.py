"""
Claude, over Anthropic's Messages API: what is sent. `_anthropic_reply` has what comes back.

The API checks a history strictly, and each rule of its own is kept in one place here:

    results before text in a user message; no blank text; no message without blocks            `_content`, `_text`
    no assistant message that ends in reasoning; no reasoning without its signature            `_messages`, `_block`
    a provider-run call needs its result once the user has said something else                 `_broken_calls`

Everything else of an answer goes back as it came, because current models seal their reasoning over what precedes it.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, ClassVar

import attrs

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
from .._util import JSONObject
from . import _anthropic_reply
from ._base import Call, Request, Response, sent_arguments, unsupported
from ._http import HTTPProvider, clean_url
from ._json import as_dict, as_str
from ._json import encode as encode_json
from ._origin import for_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..tools._tool import Tool
    from ._decoder import Decoder

_VERSION = "2023-06-01"

# The first version from which code can call the user's tools, and taken by every current model. None of the headers is
# needed any more at Anthropic itself; they are where the API is hosted by others.
_CODE_EXECUTION = {"type": "code_execution_20260120", "name": "code_execution"}
_CODE_EXECUTION_BETA = "code-execution-2025-08-25"
_TOOL_USE_BETA = "advanced-tool-use-2025-11-20"  # of `input_examples` and `defer_loading`

_CACHE_MARK = {"type": "ephemeral"}
_MARKABLE = {"text", "image", "document", "tool_use", "tool_result"}
_REASONING = {"thinking", "redacted_thinking"}

_PDF = "application/pdf"
_IMAGE_TYPES = {"image/jpeg", "image/png", "image/gif", "image/webp"}
_TEXT_TYPES = {"application/json", "application/xml", "application/yaml", "application/javascript"}


def _tools(tools: Iterable[JSONObject]) -> tuple[JSONObject, ...]:
    return tuple(tools)


def _betas(betas: Iterable[str]) -> tuple[str, ...]:
    return (betas,) if isinstance(betas, str) else tuple(betas)


@attrs.frozen(eq=False)
class Anthropic(HTTPProvider):
    """
    Claude, or any server that speaks Anthropic's Messages API.

    What has no option here is a field of the API's, for instance
    `extra_body={"thinking": {"type": "adaptive", "display": "summarized"}}`.

    Attributes:
        max_output_tokens: The cap on an answer where the request sets none: the API wants one.
        cache: Whether to mark system prompt, tools and conversation for the prompt cache (three of the four marks that
            a request may have).
        code_execution: Whether Claude may run code in Anthropic's sandbox. Its container is kept for the conversation.
        server_tools: Further tools that Anthropic runs, as the API defines them: `{"type": "web_search_20260209",
            "name": "web_search"}`.
        betas: Values for the `anthropic-beta` header; one in `extra_headers` is added to them.
    """

    env_key: ClassVar[str | None] = "ANTHROPIC_API_KEY"

    name: str = attrs.field(default="anthropic", kw_only=True)
    base_url: str = attrs.field(default="https://api.anthropic.com", kw_only=True, converter=clean_url)
    max_output_tokens: int = attrs.field(default=16_000, kw_only=True)
    cache: bool = attrs.field(default=False, kw_only=True)
    code_execution: bool = attrs.field(default=False, kw_only=True)
    server_tools: tuple[JSONObject, ...] = attrs.field(default=(), kw_only=True, converter=_tools, repr=False)
    betas: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_betas)

    def __attrs_post_init__(self) -> None:
        """Take the beta header out of `extra_headers`, which replace ours: it has to be merged instead."""
        super().__attrs_post_init__()
        given = {name: value for name, value in self.extra_headers.items() if name.lower() == "anthropic-beta"}
        if given:
            kept = {name: value for name, value in self.extra_headers.items() if name not in given}
            betas = [beta.strip() for value in given.values() for beta in value.split(",")]
            object.__setattr__(self, "extra_headers", kept)
            object.__setattr__(self, "betas", (*self.betas, *betas))

    def encode(self, request: Request, *, stream: bool) -> Call:
        """Say what to send."""
        body: JSONObject = {
            "model": self.model,
            "max_tokens": request.max_output_tokens or self.max_output_tokens,
        }
        if stream:
            body["stream"] = True
        if request.system_prompt and not request.system_prompt.isspace():
            body["system"] = request.system_prompt
        if tools := self._tools(request.tools):
            body["tools"] = tools
            if request.tool_choice is not None:
                body["tool_choice"] = _tool_choice(request.tool_choice)
        origin = self.origin
        body["messages"] = _messages(for_origin(request.messages, origin), self.name, origin)
        if (container := _container(request.messages, origin)) and any(_runs_code(tool) for tool in tools):
            body["container"] = container
        if self.cache:
            _mark(body)
        path = "/messages" if self.base_url.endswith("/v1") else "/v1/messages"
        return Call(path, self._headers(request.tools), encode_json(body | dict(self.extra_body)))

    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means."""
        return _anthropic_reply.decode(body, self)

    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""
        return _anthropic_reply.AnthropicDecoder(self)

    def _headers(self, tools: Sequence[Tool]) -> dict[str, str]:
        betas = list(self.betas)
        if self.code_execution:
            betas.append(_CODE_EXECUTION_BETA)
        if any(self.name not in tool.native and (tool.input_examples or tool.defer_loading) for tool in tools):
            betas.append(_TOOL_USE_BETA)
        headers = {"anthropic-version": _VERSION}
        if self.api_key is not None:
            headers["x-api-key"] = self.api_key
        if betas:
            headers["anthropic-beta"] = ",".join(dict.fromkeys(beta for beta in betas if beta))
        return headers

    def _tools(self, tools: Sequence[Tool]) -> list[JSONObject]:
        run_by_provider = [dict(tool) for tool in self.server_tools]
        if self.code_execution:
            run_by_provider.insert(0, dict(_CODE_EXECUTION))
        runner = next((str(tool["type"]) for tool in run_by_provider if _runs_code(tool)), _CODE_EXECUTION["type"])
        return [*(self._tool(tool, runner) for tool in tools), *run_by_provider]

    def _tool(self, tool: Tool, runner: str) -> JSONObject:
        if (native := tool.native.get(self.name)) is not None:
            return {"name": tool.name, **native}
        definition: JSONObject = {"name": tool.name, "input_schema": tool.input_schema}
        if tool.description:
            definition["description"] = tool.description
        if tool.strict is not None:
            definition["strict"] = tool.strict
        if tool.input_examples:
            definition["input_examples"] = list(tool.input_examples)
        if tool.defer_loading:
            definition["defer_loading"] = True
        if tool.allowed_callers:
            words = {"human": "direct", "code_execution": runner}
            definition["allowed_callers"] = [words.get(caller, caller) for caller in tool.allowed_callers]
        return definition


def _container(messages: Sequence[Message], origin: str) -> str:
    """Return the container of the conversation, that of the last answer from here that had one; or `""`."""
    states = (as_dict(message.provider_state) for message in reversed(messages) if message.origin == origin)
    return next((as_str(state["container_id"]) for state in states if "container_id" in state), "")


def _runs_code(tool: JSONObject) -> bool:
    return str(tool.get("type")).startswith("code_execution")


def _tool_choice(choice: str) -> JSONObject:
    return {"type": choice} if choice in {"auto", "any", "none"} else {"type": "tool", "name": choice}


def _mark(body: JSONObject) -> None:
    """Put the cache marks: each says that the prompt up to here is to be cached."""
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": _CACHE_MARK}]
    for tool in reversed(body.get("tools", [])):
        if not tool.get("defer_loading"):  # a deferred tool is no part of the prompt
            tool["cache_control"] = _CACHE_MARK
            break
    for block in reversed(body["messages"][-1]["content"] if body["messages"] else []):
        if block["type"] in _MARKABLE:
            block["cache_control"] = _CACHE_MARK
            break


def _messages(messages: Sequence[Message], provider: str, origin: str) -> list[JSONObject]:
    broken = _broken_calls(messages)
    encoded = []
    for message in messages:
        blocks = list(_content(message, provider, ours=message.origin == origin, broken=broken))
        while message.role == "assistant" and blocks and blocks[-1]["type"] in _REASONING:
            blocks.pop()
        if blocks:
            encoded.append({"role": message.role, "content": blocks})
    return encoded


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


def _content(message: Message, provider: str, *, ours: bool, broken: set[str]) -> Iterator[JSONObject]:
    # A user's message answers the calls before it says anything else.
    for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
        match block:
            case ServerToolUse(id=call) | ServerToolResult(tool_use_id=call) if call in broken:
                continue
            case Opaque(payload={"type": "container_upload"}) if message.role == "assistant":
                continue  # given by code execution, and refused back
            case Image() | Document() | Audio() | Video() if message.role == "assistant":
                yield {"type": "text", "text": unsupported(block)}
                continue
        if (encoded := _block(block, provider, ours=ours)) is not None:
            yield encoded


def _block(block: Block, provider: str, *, ours: bool = False) -> JSONObject | None:
    """Return a block as the API has it, or None for one that it would refuse. `ours`: it is from an answer from here."""
    match block:
        case Text():
            return _text(block, cite=ours)
        case Thinking(provider_data={"type": "redacted_thinking"}):
            return dict(block.provider_data or {})
        case Thinking(text=text, signature=str(signature)) if signature:
            return {
                "type": "thinking",
                "thinking": text,
                "signature": signature,
                **(block.provider_data or {}),
            }
        case ToolUse():
            return _call("tool_use", block, sent_arguments(block))
        case ServerToolUse():
            return _call("server_tool_use", block, block.input)
        case ServerToolResult(payload=payload):
            return dict(payload)
        case Opaque(provider=owner, payload=payload) if owner == provider:
            return dict(payload)
        case ToolResult():
            return _result(block, provider)
        case Image() | Document() | Audio() | Video():
            return _media(block)
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


def _media(block: Image | Document | Audio | Video) -> JSONObject:
    """Return an image or a document the API can read, or a text that says what was here."""
    match block:
        case Image() if source := _image_source(block):
            return {"type": "image", "source": source}
        case Document(name=name) if source := _document_source(block):
            return {"type": "document", "source": source} | ({"title": name} if name else {})
    return {"type": "text", "text": unsupported(block)}


def _image_source(image: Image) -> JSONObject | None:
    mime_type, data = _inline(image)
    if data is not None:
        source = {"type": "base64", "media_type": mime_type, "data": data}
        return source if mime_type in _IMAGE_TYPES else None
    return _remote(image.uri) if image.uri else None


def _document_source(document: Document) -> JSONObject | None:
    mime_type, data = _inline(document)
    if data is None:
        source = _remote(document.uri) if document.uri else None
        return None if source and source["type"] == "url" and mime_type != _PDF else source
    if mime_type == _PDF:
        return {"type": "base64", "media_type": _PDF, "data": data}
    if not mime_type.startswith("text/") and mime_type not in _TEXT_TYPES:
        return None
    try:
        text = base64.b64decode("".join(data.split()), validate=True).decode(errors="replace")
    except ValueError:
        return None
    return {"type": "text", "media_type": "text/plain", "data": text}


def _inline(media: Image | Document) -> tuple[str, str | None]:
    """Return the MIME type without parameters, and the base64 data if it is here, if only in a `data:` address."""
    mime_type, data = media.mime_type, media.data
    head, _, tail = (media.uri or "").partition(",")
    if data is None and head.startswith("data:") and head.endswith(";base64"):
        mime_type, data = head.removeprefix("data:").removesuffix(";base64") or mime_type, tail
    mime_type = mime_type.partition(";")[0].strip().lower()
    return ("image/jpeg" if mime_type == "image/jpg" else mime_type), data


def _remote(uri: str) -> JSONObject:
    """Return the source of what lies elsewhere: on the web, or, by its id, among the files uploaded to the API."""
    if uri.startswith(("http:", "https:")):
        return {"type": "url", "url": uri}
    return {"type": "file", "file_id": uri}
