"""
Claude, over Anthropic's Messages API: what is sent. `_anthropic_reply` has what comes back.

The API checks a history strictly, and each rule of its own is kept in one place here:

    results before text in a user message; no blank text; no message without blocks            `_content`, `_text`
    no assistant message that ends in reasoning; no reasoning without its signature            `_messages`, `_block`
    a provider-run call needs its result once the user has said something else                 `_broken_calls`
    with a budget for reasoning, a turn that goes on has to begin with reasoning               `_has_lost_its_reasoning`

Everything else of an answer goes back as it came, because current models seal their reasoning over what precedes it: the system
prompt, the tools and all earlier messages. Where that has changed after all (an image behind an address, say), the newest of
them refuse the request, unless they are told to drop such reasoning instead: `_drop_unbound`.
"""

from __future__ import annotations

import functools
import itertools
import re
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
from ._anthropic_media import media
from ._base import Call, Request, Response, Terms, sent_arguments, unsupported
from ._checks import clean_url, shown_url
from ._http import HTTPProvider
from ._json import as_dict, as_str
from ._json import encode as encode_json
from ._origin import for_origin
from ._request import cap_output, claude_can_express, claude_schema, has_fees, mentions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .._usage import Usage
    from ..tools._tool import Tool
    from ._decoder import Decoder

_VERSION = "2023-06-01"

# The first version from which code can call the user's tools, and taken by every current model. None of the headers is
# needed any more at Anthropic itself; they are where the API is hosted by others.
_CODE_EXECUTION = {"type": "code_execution_20260120", "name": "code_execution"}
_CODE_EXECUTION_BETA = "code-execution-2025-08-25"
_TOOL_USE_BETA = "advanced-tool-use-2025-11-20"  # of `input_examples` and `defer_loading`

_BINDING_BETA = "thinking-binding-controls-2026-08-01"
_DROP = {"prefix_mismatch_behavior": "drop_block"}

# Tools that cost nothing but their tokens, besides those that are the client's to run.
_NO_FEE = ("mcp_toolset", "tool_search_", "web_fetch_", "bash_", "text_editor_", "computer_", "memory_")

_MODEL = re.compile(r"claude-([a-z]+)-(\d+)(?:[-.](\d{1,2}))?(?!\d)")  # a date may follow

_CACHE_MARK = {"type": "ephemeral"}
_MARKABLE = {"text", "image", "document", "tool_use", "tool_result"}
_REASONING = {"thinking", "redacted_thinking"}


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

    Claude 5.5 and Fable 5.1 refuse reasoning of their own when something before it has changed. They are asked to drop it
    instead; `extra_body={"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}}` has the
    last word.

    Attributes:
        max_output_tokens: The cap on an answer where the request sets none: the API wants one. A `budget_tokens` for
            reasoning is added to it.
        cache: Whether to mark system prompt, tools and conversation for the prompt cache (three of the four marks that
            a request may have).
        code_execution: Whether Claude may run code in Anthropic's sandbox. Its container is kept for the conversation.
        server_tools: Further tools that Anthropic runs, as the API defines them: `{"type": "web_search_20260209",
            "name": "web_search"}`.
        betas: Values for the `anthropic-beta` header; one in `extra_headers` is added to them.
    """

    env_key: ClassVar[str | None] = "ANTHROPIC_API_KEY"
    vendor_host: ClassVar[str | None] = "api.anthropic.com"

    name: str = attrs.field(default="anthropic", kw_only=True)
    base_url: str = attrs.field(default="https://api.anthropic.com", kw_only=True, converter=clean_url, repr=shown_url)
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
            "max_tokens": request.max_output_tokens or self.max_output_tokens + self.terms.thinking_budget,
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
        body["messages"] = messages = _messages(for_origin(request.messages, origin), self.name, origin)
        if (container := _container(request, origin)) and any(_runs_code(tool) for tool in tools):
            body["container"] = container
        if self.cache:
            _mark(body)
        body |= self.extra_body
        if as_dict(body.get("thinking")).get("type") == "enabled" and _has_lost_its_reasoning(messages):
            body["thinking"] = {"type": "disabled"}
        cap_output(body, request.max_output_tokens, "max_tokens")
        if request.output_schema is not None:
            form = {"type": "json_schema", "schema": claude_schema(request.output_schema)}
            body["output_config"] = {"format": form, **as_dict(body.get("output_config"))}
        headers = self._headers(request.tools, binding=self._drop_unbound(body))
        path = "/messages" if self.base_url.endswith("/v1") else "/v1/messages"
        return Call(path, headers, encode_json(body))

    def decode(self, body: bytes) -> Response:
        """Say what a whole answer means."""
        return _anthropic_reply.decode(body, self)

    def decoder(self) -> Decoder:
        """Return a decoder for one streamed answer."""
        return _anthropic_reply.AnthropicDecoder(self)

    @functools.cached_property
    def terms(self) -> Terms:
        """What bounds the cost of a request, besides the price."""
        budget = as_dict(self.extra_body.get("thinking")).get("budget_tokens")
        tools = self.extra_body.get("tools", list(self.server_tools))
        return Terms(
            enforces_cap=True,
            caches=self.cache or mentions([dict(self.extra_body), *self.server_tools], "cache_control"),
            thinking_budget=budget if type(budget) is int else 0,
            seals_prefix=True,
            server_tools=has_fees(tools, _NO_FEE) or (self.code_execution and "tools" not in self.extra_body),
        )

    def billed(self, response: Response) -> Usage:
        """Return what an answer is billed for: server-side compactions and advisors are no part of its usage."""
        return _anthropic_reply.billed(response)

    @property
    def native_output(self) -> bool:
        """Whether the API holds an answer's text to `Request.output_schema`: for Claude from 4.5 on."""
        return _family(self.model)[1] >= (4, 5)

    def takes_schema(self, schema: JSONObject) -> bool:
        """Whether this very schema can be the `Request.output_schema`."""
        return self.native_output and claude_can_express(schema)

    def _drop_unbound(self, body: JSONObject) -> bool:
        """
        Have reasoning whose prefix has changed dropped, where host and model know that; returns whether it is asked for.

        Reasoning adaptively is what those models do by themselves if `thinking` is not sent.
        """
        thinking = body.get("thinking", {"type": "adaptive"})
        checked = self.is_at_vendor and _checks_prefix(as_str(body.get("model")))  # others refuse the field, mostly
        if not checked or as_dict(thinking).get("type") not in {"adaptive", "enabled"}:
            return False
        body["thinking"] = {"block_binding": _DROP, **thinking}
        return True

    def _headers(self, tools: Sequence[Tool], *, binding: bool) -> dict[str, str]:
        betas = list(self.betas)
        if binding:
            betas.append(_BINDING_BETA)
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


def _family(model: str) -> tuple[str, tuple[int, int]]:
    """Return which Claude a model is, as `("opus", (5, 5))`; or `("", (0, 0))`."""
    found = _MODEL.search(model)
    return (found[1], (int(found[2]), int(found[3] or 0))) if found else ("", (0, 0))


def _checks_prefix(model: str) -> bool:
    """Whether a model refuses reasoning whose prefix has changed: docs "Preserved thinking"."""
    family, version = _family(model)
    return version >= ((5, 1) if family == "fable" else (5, 5))


def _container(request: Request, origin: str) -> str:
    """Return the container of the conversation, that of the last answer from here that had one; or `""`."""
    said = [as_dict(message.provider_state) for message in request.messages if message.origin == origin]
    states = reversed([as_dict(request.provider_state), *said])
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


def _has_lost_its_reasoning(messages: Sequence[JSONObject]) -> bool:
    """Whether the model is to go on with a turn that no longer begins with its reasoning, as one of another model's does."""
    if not messages or (messages[-1]["role"] == "user" and not any(map(_is_result, messages[-1]["content"]))):
        return False
    *before, last = messages
    turn = [last, *itertools.takewhile(_is_in_turn, reversed(before))]
    answers = [message for message in turn if message["role"] == "assistant"]
    return bool(answers) and answers[-1]["content"][0]["type"] not in _REASONING


def _is_in_turn(message: JSONObject) -> bool:
    return message["role"] == "assistant" or all(map(_is_result, message["content"]))


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
