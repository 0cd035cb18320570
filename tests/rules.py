"""
The pairing rules of the three wires, as checks of the JSON that would be sent.

Each rule is a 400 of some vendor when broken; sources: the vendors' API references and their error messages.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio import Message
    from alloy_trio.tools import Tool


def bodies(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> dict[str, Any]:
    """Return what each wire would send of a conversation."""
    request = Request(messages=tuple(messages), tools=tuple(tools))
    providers = {
        "anthropic": Anthropic(model="m", api_key="k"),
        "openai": OpenAI(model="m", api_key="k"),
        "compat": OpenAICompat(model="m"),
    }
    return {name: json.loads(provider.encode(request, stream=True).body) for name, provider in providers.items()}


def check_history(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> None:
    """Assert that a conversation can be sent to any of the three."""
    sent = bodies(messages, tools)
    check_anthropic(sent["anthropic"]["messages"])
    check_responses(sent["openai"]["input"])
    check_chat(sent["compat"]["messages"])


def check_anthropic(messages: list[dict[str, Any]]) -> None:
    """
    Messages API: calls are answered in the next message, results first, and each has an id of its own.

    Nothing is blank, also in results; no thinking without signature, or at the end.
    """
    assert messages
    assert messages[0]["role"] == "user"
    open_calls: list[str] = []
    all_calls: list[str] = []
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        assert blocks, "an empty message"
        for block in itertools.chain(blocks, *(block.get("content") or () for block in blocks if is_result(block))):
            assert block["type"] != "text" or block["text"].strip(), "blank text"
            assert block["type"] != "thinking" or block.get("signature"), "thinking without signature"
        results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        assert results == open_calls, f"calls {open_calls} answered by {results}"
        kinds = [block["type"] for block in blocks]
        assert kinds == sorted(kinds, key=lambda kind: kind != "tool_result"), "a text before the results"
        if message["role"] == "assistant":
            assert kinds[-1] not in {"thinking", "redacted_thinking"}, "a final thinking block"
            open_calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
            all_calls += open_calls
        else:
            open_calls = []
    assert not open_calls, f"calls without results: {open_calls}"
    assert len(all_calls) == len(set(all_calls)), f"two calls of one id: {sorted(all_calls)}"


def is_result(block: dict[str, Any]) -> bool:
    return bool(block["type"] == "tool_result")


def check_responses(items: list[dict[str, Any]]) -> None:
    """
    Responses API: each call has its output later, each output its call before; a reasoning item has a follower.

    Between them stands nothing but what else the answer with the call has said.
    """
    open_calls: list[str] = []
    for item, follower in zip(items, [*items[1:], {}], strict=True):
        match item.get("type", "message"):
            case "function_call":
                open_calls.append(item["call_id"])
            case "function_call_output":
                open_calls.remove(item["call_id"])
            case "reasoning":
                kind = str(follower.get("type"))
                assert kind in {"message", "reasoning"} or kind.endswith("_call") or follower.get("role") == "assistant"
            case "message":
                assert not open_calls or item["role"] == "assistant", "a message between a call and its output"
    assert not open_calls, f"calls without outputs: {open_calls}"


def check_chat(messages: list[dict[str, Any]]) -> None:
    """Chat Completions: an assistant's calls are answered by the tool messages right behind it, one each."""
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, f"calls without results: {open_calls}"
        if message["role"] == "assistant":
            open_calls = [call["id"] for call in message.get("tool_calls") or []]
            assert open_calls or message["content"], "an empty assistant message"
    assert not open_calls, f"calls without results: {open_calls}"
