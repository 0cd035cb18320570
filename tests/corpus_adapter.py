"""The adapter between the recorded traffic's scorer (its `check.py` says what it wants) and the public API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import trio

from alloy_trio import Message, Text, Thinking, ToolUse
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WIRES: dict[str, type[Anthropic | OpenAI | OpenAICompat]] = {
    "anthropic": Anthropic,
    "openai_responses": OpenAI,
    "openai_chat": OpenAICompat,
}

REQUEST = Request(messages=(Message.user("Hello"),))


class _Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


def provider_for(exchange: dict[str, Any], chunks: list[bytes]) -> Anthropic | OpenAI | OpenAICompat:
    """Make the provider of the exchange's wire, over a network that answers every request with these bytes."""
    recorded = exchange["response"]
    drop = {"content-length", "content-encoding", "transfer-encoding"}
    headers = {name: value for name, value in recorded["headers"].items() if name.lower() not in drop}

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(recorded["status"], headers=headers, stream=_Chunks(chunks))

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return WIRES[exchange["wire"]](model=exchange["model"] or "m", api_key="key", http_client=client)


async def ask(exchange: dict[str, Any], chunks: list[bytes]) -> Response:
    """Ask in the way the exchange was recorded: streamed or buffered."""
    provider = provider_for(exchange, chunks)
    deltas: list[Any] = []

    async def emit(*events: Any) -> None:
        deltas.extend(events)

    if exchange["sse"]:
        return await provider.stream(REQUEST, emit)
    return await provider.complete(REQUEST)


def arguments(call: ToolUse) -> dict[str, Any] | str:
    """Say what a call was asked: text where it was no JSON object, or is none by its nature (a custom tool's)."""
    if (call.provider_data or {}).get("type") == "custom_tool_call":
        return str(call.input["input"])
    return call.input if call.invalid_input is None else call.invalid_input


async def said(exchange: dict[str, Any], chunks: list[bytes]) -> dict[str, Any]:
    """Say what the library made of an exchange, in the scorer's words."""
    response = await ask(exchange, chunks)
    content, usage = response.message.content, response.usage
    return {
        "text": "".join(block.text for block in content if isinstance(block, Text)),
        "thinking_text": "".join(block.text for block in content if isinstance(block, Thinking)),
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": arguments(call)} for call in response.message.tool_uses
        ],
        "usage": {
            "input": usage.input_tokens,
            "output": usage.output_tokens,
            "cache_read": usage.cache_read_input_tokens,
            "cache_write": usage.cache_creation_input_tokens,
            "reasoning": usage.reasoning_tokens,
        },
    }


def parse(exchange: dict[str, Any], chunks: list[bytes]) -> dict[str, Any]:
    """Do what `said` does, in a Trio run of its own: the function that the scorer calls."""
    return trio.run(said, exchange, chunks)
