"""
The names that OpenTelemetry gives to what a generative model's client does.

Source: the semantic conventions for generative AI, https://github.com/open-telemetry/semantic-conventions-genai (`docs/gen-ai`:
spans, agent spans, metrics), as of October 2026. Their status is Development and no release has them, and the Python package
that lists them keeps them in a private module: so they stand here, and only here. Names under `alloy_trio.` are our own, for
what the conventions have no word for.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# Operations: the first word of a span's name.
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"

# Attributes of spans and metrics.
CONVERSATION_ID: Final = "gen_ai.conversation.id"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OPERATION_NAME: Final = "gen_ai.operation.name"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
OUTPUT_TYPE: Final = "gen_ai.output.type"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_MODEL: Final = "gen_ai.response.model"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - tokens of a model
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
USAGE_CACHE_CREATION_INPUT_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_REASONING_OUTPUT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

# From the general conventions.
ERROR_TYPE: Final = "error.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"
HTTP_STATUS: Final = "http.response.status_code"

# Our own.
ATTEMPT: Final = "alloy_trio.attempt"
CANCELLED: Final = "alloy_trio.cancelled"
COST_CENTS: Final = "alloy_trio.cost_cents"
OUTCOME: Final = "alloy_trio.outcome"
RESULT: Final = "alloy_trio.result"
TRUSTED: Final = "alloy_trio.tool.trusted"
STATUS: Final = "alloy_trio.status"
TURN: Final = "alloy_trio.turn"
TURNS: Final = "alloy_trio.turns"
USAGE_ESTIMATED: Final = "alloy_trio.usage.estimated"

# Events on the span of a run.
COMPACTION: Final = "alloy_trio.compaction"
RETRY: Final = "alloy_trio.retry"

# Metrics, and the boundaries of their buckets.
OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
OPERATION_DURATION_BUCKETS: Final = tuple(0.01 * 2**n for n in range(14))
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - tokens of a model
TOKEN_USAGE_BUCKETS: Final = tuple(4**n for n in range(14))

_PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gemini": "gcp.gemini",
        "mistral": "mistral_ai",
        "moonshot": "moonshot_ai",
        "openai-chat": "openai",
        "xai": "x_ai",
    }
)

_FINISH_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "end_turn": "stop",
        "max_tokens": "length",
        "refusal": "content_filter",
        "tool_use": "tool_call",
    }
)


def provider(name: str) -> str:
    """Return the conventions' name of a provider that we call `name`."""
    return _PROVIDERS.get(name, name)


def finish_reason(word: str) -> str:
    """Return the conventions' word for why a model stopped, given ours."""
    return _FINISH_REASONS.get(word, str(word))
