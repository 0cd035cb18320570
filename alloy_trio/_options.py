"""The options of a run, as a user gives them: their names and types, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Required, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from decimal import Decimal
    from pathlib import Path

    from ._catalog import Catalog
    from ._compaction import Compaction
    from ._emitter import OnEvent
    from ._messages import Message
    from ._middleware import OnCompaction
    from ._session import Session
    from .providers._base import Provider
    from .tools._tool import Tool


class _Plain(TypedDict, total=False):
    """What a run takes besides its provider and the type of its output; `RunOptions` says what each is."""

    tools: Iterable[Tool]
    system_prompt: str | None
    messages: Sequence[Message]
    session: Session | None
    max_turns: int
    context_tokens: int | None
    max_output_tokens: int | None
    max_budget_cents: Decimal | str | int | None
    max_retries: int
    retry_backoff: float
    fallback_providers: Sequence[Provider | str]
    timeout: float | None
    tool_timeout: float
    cancel_grace: float
    working_directory: str | Path
    allowed_paths: Sequence[str | Path] | None
    context: Mapping[str, Any]
    deps: Any
    until_tool: str | None
    middleware: Sequence[object]
    compaction: Compaction | bool
    on_compaction: OnCompaction | None
    on_event: OnEvent | None
    model_metadata_overrides: Mapping[str, Any] | None
    catalog: Catalog | None
    provider_state: Mapping[str, Any] | None
    code_execution: bool


class Options(_Plain, total=False):
    """What a run takes besides its provider."""

    output_type: Any  # whatever JSON can say, generic types and unions among it


class PlainRunOptions(_Plain):
    """What a run takes besides the type of its output, which a type checker has to see by itself."""

    provider: Required[Provider | str]


class RunOptions(Options):
    r"""
    The options of `run`, `stream` and `run_sync`: all by keyword, all but `provider` with a default.

    Attributes:
        provider: A provider, or its name with a model: `"anthropic:claude-sonnet-5-5"`.
        tools: What the model may ask for, made by `@tool` or `Tool(…)`. None by default.
        system_prompt: Instructions ahead of the conversation.
        messages: A conversation to go on with; not together with `session`.
        session: A conversation to go on with, updated in place at every turn.
        max_turns: How many answers of the model the run may take (25).
        context_tokens: How large a prompt may be, in tokens, before the conversation is compacted; by default what the
            catalog says of the model, or 200,000.
        max_output_tokens: The cap on each answer, in tokens; the provider's own by default, or 8,192 under a budget.
        max_budget_cents: What the run and its sub-agents may cost, in cents, exactly: as `Budget(cents=…)` around it.
        max_retries: How often a request is made again when it fails in a way that may pass (3).
        retry_backoff: Seconds that the first wait takes on average; it doubles with each (1.0). `Retry-After` is obeyed.
        fallback_providers: Who is asked when the provider has failed, in this order.
        timeout: Seconds the whole run may take, then `RunTimeout`; none by default.
        tool_timeout: Seconds each tool call may take (120); the model is told.
        cancel_grace: Seconds that a cancelled sync tool's thread is waited for (5); a cancel is late by as much.
        working_directory: Where relative paths of tools begin (".").
        allowed_paths: The folders that file tools may touch; the working directory by default.
        context: Anything of yours, for tools: `ToolContext.context`. `session_id`, `request_id` and `correlation_id` in
            it name the session and the events' correlation id.
        deps: Anything of yours, typed: `ToolContext[D].deps`.
        until_tool: An answer ends the run only once this tool was called with success; before, the model is reminded of it.
        output_type: A class (attrs, dataclass, TypedDict, msgspec, pydantic) that the final answer has to fit:
            `Result.output` is one. An answer that does not fit goes back to the model, a few times.
        middleware: Objects with hooks, see `Middleware`; called in this order.
        compaction: How the conversation is made shorter when it does not fit; False: not at all.
        on_compaction: Called with the messages that are about to go, and the `RunState`; may be async. What it raises is
            logged.
        on_event: Called with the `Envelope` of each event; may be async. What it raises is logged.
        model_metadata_overrides: What the catalog does not know, or knows wrong: `{"acme-1": 640_000}`, or
            `{"acme-1": {"limit": 640_000, "suffix_patterns": ["", r"-\\d{4}"]}}`.
        catalog: What knows models, instead of the catalog in the package.
        provider_state: What an earlier run left in `Result.metadata["provider_state"]`, to go on from where no session or
            messages bring it.
        code_execution: Whether the provider may run code in a sandbox of its own (Anthropic), and its fallbacks where they
            have one.
    """

    provider: Required[Provider | str]


ELSEWHERE = {
    "max_tokens": "say context_tokens for the size of a prompt, or max_output_tokens for the cap on an answer",
    "cache": "it belongs to the provider: Anthropic(model=…, cache=True)",
    "extra_body": "it belongs to the provider: OpenAI(model=…, extra_body={…})",
    "previous_response_id": "it belongs to the provider: OpenAI(model=…, previous_response_id=…)",
    "price": 'it belongs to the provider: OpenAICompat(model=…, price=Price("3", "15"))',
    "budget": 'say `with Budget("0.50"):` around the run, or max_budget_cents=50',
    "model": 'it belongs to the provider: provider="anthropic:claude-sonnet-5-5" or Anthropic(model=…)',
    "api_key": "it belongs to the provider: Anthropic(model=…, api_key=…)",
    **dict.fromkeys(
        (
            *("name", "session_id", "max_pending", "pubsub", "subscribe", "on_shutdown", "session_store", "on_cancel"),
            "approval_timeout",
        ),
        "it belongs to an agent: open_agent(…)",
    ),
    **dict.fromkeys(
        (
            *("temperature", "top_p", "top_k", "stop", "seed", "tool_choice", "service_tier"),
            *("thinking", "reasoning", "reasoning_effort", "verbosity"),
        ),
        "it is a field of the provider's API, by the name that it has there: OpenAI(model=…, extra_body={…})",
    ),
    **dict.fromkeys(("instructions", "system"), "say system_prompt"),
}
"""What to say of an option that is none of ours, but of somebody near by."""
