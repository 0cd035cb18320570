"""
Claude, over Anthropic's Messages API: what is sent.

`_anthropic_messages` has what messages become there, `_anthropic_reply` what comes back.

Current models seal their reasoning over what precedes it: the system prompt, the tools and all earlier messages. Where that has
changed after all (an image behind an address, say), the newest of them refuse the request, unless they are told to drop such
reasoning instead: `_drop_unbound`.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, ClassVar

import attrs

from .._errors import InvalidOption
from .._util import JSONObject
from . import _anthropic_reply
from ._anthropic_messages import CACHE_MARK, ClaudeTranscript
from ._base import Call, Request, Response, Terms
from ._checks import clean_url, is_header, shown_url
from ._http import HTTPProvider
from ._json import as_dict, as_str
from ._request import cap_output, claude_can_express, claude_schema, has_fees, mentions
from ._transcript import transcript_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


def _tools(tools: Iterable[JSONObject]) -> tuple[JSONObject, ...]:
    return tuple(tools)


def _betas(betas: Iterable[str]) -> tuple[str, ...]:
    found = (betas,) if isinstance(betas, str) else tuple(betas)
    for beta in found:
        if not is_header("anthropic-beta", beta.strip()):
            raise InvalidOption(f"betas has {beta!r:.100}, which no HTTP header may carry: it takes printable ASCII")
    return found


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
        chat = transcript_of(request, self, lambda: ClaudeTranscript(self))
        container = _container(request, self.origin) if self._runs_code(request.tools) else ""
        lost = self._has_budget and chat.has_lost_its_reasoning
        key = (
            *(stream, container, lost, request.system_prompt, request.tools, request.tool_choice),
            *(request.max_output_tokens, request.output_schema),
        )
        fields = chat.fields(key, lambda: self._body(request, chat, stream=stream, container=container, lost=lost))
        path = "/messages" if self.base_url.endswith("/v1") else "/v1/messages"
        if "messages" in self.extra_body:
            return Call(path, chat.headers, fields)
        return Call(path, chat.headers, chat.body("messages", fields, last=chat.marked() if self.cache else None))

    def _body(
        self, request: Request, chat: ClaudeTranscript, *, stream: bool, container: str, lost: bool
    ) -> JSONObject:
        """Return the request without its messages, and put the headers that go with it where the messages are kept."""
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
        if container:
            body["container"] = container
        if self.cache:
            _mark(body)
        body |= self.extra_body
        if lost:
            body["thinking"] = {"type": "disabled"}
        cap_output(body, request.max_output_tokens, "max_tokens")
        if request.output_schema is not None:
            form = {"type": "json_schema", "schema": claude_schema(request.output_schema)}
            body["output_config"] = {"format": form, **as_dict(body.get("output_config"))}
        chat.headers = self._headers(request.tools, binding=self._drop_unbound(body))
        return body

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

    @property
    def _has_budget(self) -> bool:
        """Whether a turn that goes on has to begin with reasoning."""
        return as_dict(self.extra_body.get("thinking")).get("type") == "enabled"

    def _runs_code(self, tools: Sequence[Tool]) -> bool:
        """Whether a tool runs code, in a container that is to be kept."""
        if self.code_execution or any(map(_runs_code, self.server_tools)):
            return True
        return any(_runs_code(tool.native[self.name]) for tool in tools if self.name in tool.native)

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
    """Put the cache marks of what stands ahead of the messages: each says that the prompt up to here is to be cached."""
    if "system" in body:
        body["system"] = [{"type": "text", "text": body["system"], "cache_control": CACHE_MARK}]
    for tool in reversed(body.get("tools", [])):
        if not tool.get("defer_loading"):  # a deferred tool is no part of the prompt
            tool["cache_control"] = CACHE_MARK
            break
