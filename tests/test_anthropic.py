"""The Messages API: what is sent, what comes back whole or streamed, and that both ways mean the same."""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import alloy_trio
from alloy_trio import (
    Audio,
    ContextTooLong,
    Document,
    Image,
    Message,
    Opaque,
    Overloaded,
    Price,
    ProviderError,
    ServerToolResult,
    ServerToolUse,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    Video,
    WireError,
)
from alloy_trio.events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import Anthropic, Request, Response, StopReason, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Iterable

JSON = dict[str, Any]

HI = Message.user("Hi")


def text(words: str, **fields: Any) -> JSON:
    return {"type": "text", "text": words, **fields}


def base64(kind: str, mime_type: str, data: str) -> JSON:
    return {"type": kind, "source": {"type": "base64", "media_type": mime_type, "data": data}}


CITATION: Any = {"type": "char_location", "cited_text": "red", "document_index": 0, "start_char_index": 4}
SEARCH = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "sky"}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"url": "https://sky.test"}]}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": [2, "ü"]}}
BY_CODE = {**CALL, "caller": {"type": "code_execution_20260120", "tool_id": "srv_1"}}
THOUGHT = {"type": "thinking", "thinking": "Let me think.", "signature": "c2lnbmVk"}
REDACTED = {"type": "redacted_thinking", "data": "b3BhcXVl"}
CACHE = {"type": "ephemeral"}
BETAS = "anthropic-beta"


def provider(**options: Any) -> Anthropic:
    return Anthropic(model="claude-test-1", **{"api_key": "a-key", **options})


def add(**options: Any) -> Tool:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    return Tool(name="add", description="Adds.", input_schema=schema, execute=len, **options)


def sent(*messages: Message, by: Anthropic | None = None, stream: bool = False, **request: Any) -> JSON:
    call = (by or provider()).encode(Request(messages=messages, **request), stream=stream)
    body: JSON = json.loads(call.body)
    return body


def contents(*messages: Message, by: Anthropic | None = None) -> list[list[JSON]]:
    return [message["content"] for message in sent(*messages, by=by)["messages"]]


def headers(by: Anthropic, *tools: Tool) -> dict[str, str]:
    return dict(by.encode(Request(messages=(HI,), tools=tools), stream=False).headers)


def reply(*content: JSON, **fields: Any) -> JSON:
    usage = {"input_tokens": 10, "output_tokens": 5}
    head = {"type": "message", "role": "assistant", "id": "msg_1", "model": "claude-test-1-20260101"}
    return {
        **head,
        "content": list(content),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    } | fields


def decoded(message: JSON, by: Anthropic | None = None) -> Response:
    return (by or provider()).decode(json.dumps(message).encode())


def sse(events: Iterable[JSON]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def deltas(block: JSON) -> tuple[JSON, list[JSON]]:
    """Say how the API streams a block: what it opens with, and its deltas."""
    match block["type"]:
        case "text":
            notes = [{"type": "citations_delta", "citation": note} for note in block.get("citations", [])]
            texts: list[JSON] = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
            return {**block, "text": ""} | ({"citations": []} if notes else {}), notes + texts
        case "thinking":
            thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
            seal = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*thoughts, seal]
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            parts = ["", *pieces(json.dumps(block["input"]))] if block["input"] else [""]
            fragments = [{"type": "input_json_delta", "partial_json": part} for part in parts]
            return {**block, "input": {}}, fragments
        case "compaction":
            return {**block, "content": None}, [{"type": "compaction_delta", "content": block["content"]}]
    return block, []


def as_stream(message: JSON) -> list[JSON]:
    """Return the events in which the API would stream a message."""
    first = {"input_tokens": message["usage"]["input_tokens"], "output_tokens": 1}
    nothing = dict.fromkeys(("stop_reason", "stop_details", "container"))
    head = {**message, **nothing, "content": [], "usage": first}
    events: list[JSON] = [{"type": "message_start", "message": head}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        start, parts = deltas(block)
        events += [{"type": "content_block_start", "index": index, "content_block": start}]
        events += [{"type": "content_block_delta", "index": index, "delta": part} for part in parts]
        events += [{"type": "content_block_stop", "index": index}]
    end = {key: message.get(key) for key in ("stop_reason", "stop_sequence", "stop_details", "container")}
    events += [{"type": "message_delta", "delta": end, "usage": message["usage"]}]
    return [*events, {"type": "message_stop"}]


def streamed(data: bytes, *cuts: int, by: Anthropic | None = None) -> tuple[list[Any], Response]:
    decoder = (by or provider()).decoder()
    places = itertools.pairwise([0, *sorted(cuts), len(data)])
    events = [event for start, end in places for event in decoder.feed(data[start:end])]
    return [*events, *decoder.close()], decoder.finish()


def joined(events: list[Any], kind: Any) -> str:
    found = [event for event in events if isinstance(event, kind)]
    return "".join(event.json if kind is ToolInputDelta else event.text for event in found)


DETAILS = {"type": "refusal", "category": None, "explanation": None}
MCP = {"type": "mcp_tool_use", "id": "mcp_1", "name": "echo", "server_name": "e", "input": {"x": 1}}
ECHO = {"type": "mcp_tool_result", "tool_use_id": "mcp_1", "is_error": False, "content": []}
RAN = {"id": "container_1", "expires_at": "2026-10-01"}
MESSAGES = {
    "ant-01": reply(text("Adding… ✓"), CALL, stop_reason="tool_use"),
    "ant-06": reply(text("Two"), CALL, {**CALL, "id": "toolu_2", "input": {}}, stop_reason="tool_use"),
    "ant-07": reply(THOUGHT, REDACTED, text("So.")),
    "ant-12": reply(stop_reason="refusal", stop_details=DETAILS),
    "ce-02": reply(SEARCH, FOUND, text("Blue.")),
    "ce-05": reply({**SEARCH, "name": "code_execution"}, BY_CODE, stop_reason="tool_use"),
    "ps-02": reply(text("Ran."), container=RAN),
    "ps-03": reply(text("It is "), text("red", citations=[CITATION])),
    "unknown": reply({"type": "compaction", "content": "Earlier…"}, {"type": "novelty", "of": {"a": [1]}}),
    "mcp": reply(MCP, ECHO),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_streamed_and_whole_answers_are_the_same(message: JSON) -> None:
    data = sse(as_stream(message))
    whole = decoded(message)
    for cuts in ((), range(1, len(data)), random.Random(7).sample(range(1, len(data)), 20)):
        events, response = streamed(data, *cuts)
        assert response == whole
        assert tuple(event.block for event in events if isinstance(event, BlockEnd)) == whole.message.content
        assert joined(events, TextDelta) == whole.message.text
        assert joined(events, ThinkingDelta) == (whole.message.thinking or "").strip()
        assert ToolInputDelta("", "", "") not in events


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_an_answer_goes_back_as_it_came(message: JSON) -> None:
    back = contents(HI, decoded(message).message)
    assert back[1:] == ([message["content"]] if message["content"] else [])


@given(st.data())
def test_a_stream_may_be_cut_anywhere(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(list(MESSAGES.values())))
    stream = sse(as_stream(message)).replace(b"\n", data.draw(st.sampled_from([b"\n", b"\r\n"])))
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    assert streamed(stream, *cuts)[1] == decoded(message)


def test_ant_01_text_and_call_decode_to_blocks_in_order() -> None:
    response = decoded(MESSAGES["ant-01"])
    message = response.message
    assert message.content == (Text("Adding… ✓"), ToolUse("toolu_1", "add", {"a": 1, "b": [2, "ü"]}))
    assert (message.provider, message.model) == ("anthropic", "claude-test-1-20260101")
    assert message.origin == provider().origin
    assert response.stop_reason is StopReason.TOOL_USE
    assert (response.usage, response.metadata) == (Usage(10, 5), {})
    assert decoded(reply(text("Hi"))).stop_reason is StopReason.END_TURN


def test_ant_02_a_conversation_is_encoded() -> None:
    call = Message.assistant(ToolUse("c1", "add", {"a": 1}), ToolUse("c2", "add", {"a": 2}))
    results = Message.user("And now?", ToolResult("c1", "1"), ToolResult("c2", "no", is_error=True))
    body = sent(Message.user("Add"), call, results, tools=(add(),), system_prompt="Be brief.")
    assert body["model"] == "claude-test-1"
    assert (body["max_tokens"], body["system"]) == (16_000, "Be brief.")
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["tools"] == [{"name": "add", "description": "Adds.", "input_schema": add().input_schema}]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": [text("1")]},
        {"type": "tool_result", "tool_use_id": "c2", "content": [text("no")], "is_error": True},
        text("And now?"),
    ]
    assert sent(HI, max_output_tokens=7)["max_tokens"] == 7


def test_tool_choice() -> None:
    for choice in ("auto", "any", "none"):
        assert sent(HI, tools=(add(),), tool_choice=choice)["tool_choice"] == {"type": choice}
    assert sent(HI, tools=(add(),), tool_choice="add")["tool_choice"] == {"type": "tool", "name": "add"}
    assert "tool_choice" not in sent(HI, tool_choice="any")


def test_blank_text_empty_messages_and_errors_without_words() -> None:
    assert contents(Message.user(" \n"), Message.assistant(""), Message.user("Hi", " ")) == [[text("Hi")]]
    (result, failure), *_ = contents(Message.user(ToolResult("c", ""), ToolResult("d", "", is_error=True)))
    assert result == {"type": "tool_result", "tool_use_id": "c"}
    assert failure["content"][0]["text"]


URL = {"type": "url", "url": "https://x.test/a"}
READABLE = (
    (Image("image/png", b"png"), base64("image", "image/png", "cG5n")),
    (Image("image/jpg", "cG5n"), base64("image", "image/jpeg", "cG5n")),
    (Image("", uri="data:image/gif;base64,Z2lm"), base64("image", "image/gif", "Z2lm")),
    (Image("image/png", uri="https://x.test/a"), {"type": "image", "source": URL}),
    (Image("image/png", uri="file_1"), {"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
    (Document("application/pdf", data=b"pdf"), base64("document", "application/pdf", "cGRm")),
    (Document("application/pdf", URL["url"], name="A"), {"type": "document", "source": URL, "title": "A"}),
    (
        Document("text/markdown; charset=utf-8", data="# Ü".encode()),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "# Ü"}},
    ),
)
UNREADABLE = (
    (Audio("audio/wav", b"x"), "audio (audio/wav)"),
    (Video("video/mp4", uri="https://x.test/v"), "video (video/mp4)"),
    (Image("image/tiff", b"x"), "image (image/tiff)"),
    (Image("image/png"), "image (image/png)"),
    (Document("text/plain", "https://x.test/t"), "document (text/plain)"),
    (Document("text/plain", data="no base64!"), "document (text/plain)"),
    (Document("application/msword", data=b"x"), "document (application/msword)"),
)
MEDIA = (*READABLE, *((block, text(f"Unsupported {what}")) for block, what in UNREADABLE))


@pytest.mark.parametrize(("block", "encoded"), MEDIA)
def test_ant_03_media(block: Image | Audio | Video | Document, encoded: JSON) -> None:
    assert contents(Message.user(block)) == [[encoded]]
    assert contents(Message.user(ToolResult("c", (block,))))[0][0]["content"] == [encoded]


def test_ant_04_stream_is_asked_for_in_streaming_calls_only() -> None:
    assert sent(HI, stream=True)["stream"] is True
    assert "stream" not in sent(HI)


def test_ant_05_text_and_usage_of_a_stream() -> None:
    message = reply(text("Hello, world"), usage={"input_tokens": 25, "output_tokens": 15})
    events, response = streamed(sse(as_stream(message)))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Hel", "lo,", " wo", "rld"]
    assert response.usage == Usage(input_tokens=25, output_tokens=15)


def test_ant_06_input_fragments_are_joined_without_text_deltas() -> None:
    events, response = streamed(sse(as_stream(reply(CALL, stop_reason="tool_use"))))
    assert joined(events, TextDelta) == ""
    assert json.loads(joined(events, ToolInputDelta)) == response.message.tool_uses[0].input == CALL["input"]
    assert all((e.id, e.name) == ("toolu_1", "add") for e in events if isinstance(e, ToolInputDelta))


def test_ant_07_reasoning_is_kept_verbatim_and_only_where_the_api_takes_it() -> None:
    thought, redacted, _ = decoded(MESSAGES["ant-07"]).message.content
    assert thought == Thinking("Let me think.", "c2lnbmVk")
    assert isinstance(redacted, Thinking)
    assert (redacted.text, redacted.provider_data) == ("", REDACTED)
    unsigned = Message.assistant(Thinking("Hm."), "So.", thought, Thinking("", provider_data=REDACTED))
    assert contents(unsigned) == [[text("So.")]]
    hidden = {"type": "thinking", "thinking": "", "signature": "c2VhbA=="}
    assert contents(decoded(reply(hidden, CALL)).message) == [[hidden, CALL]]


def test_ant_08_thinking_is_asked_for_by_extra_body_alone() -> None:
    assert "thinking" not in sent(HI)
    budget = {"type": "enabled", "budget_tokens": 1024}
    assert sent(HI, by=provider(extra_body={"thinking": budget}))["thinking"] == budget


def test_ant_08_a_budget_for_thinking_is_room_besides_the_answer() -> None:
    by = provider(extra_body={"thinking": {"type": "enabled", "budget_tokens": 32_000}})
    assert sent(HI, by=by)["max_tokens"] == 48_000
    assert sent(HI, by=by, max_output_tokens=40_000)["max_tokens"] == 40_000


def results_of(*more: str) -> Message:
    return Message.user(ToolResult("toolu_1", "3"), *more)


def ours(*blocks: JSON) -> Message:
    return decoded(reply(*blocks, stop_reason="tool_use")).message


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([ours(THOUGHT, CALL), results_of()], "enabled"),
        ([ours(REDACTED, CALL), results_of()], "enabled"),
        ([ours(THOUGHT, CALL), results_of(), ours(CALL), results_of()], "enabled"),
        ([ours(CALL), results_of()], "disabled"),
        ([ours(CALL), results_of("And?")], "disabled"),
        ([ours(CALL), results_of(), ours(THOUGHT, CALL), results_of()], "disabled"),
        ([attrs.evolve(ours(THOUGHT, CALL), origin="another"), results_of()], "disabled"),
        ([ours(THOUGHT, CALL), attrs.evolve(results_of(), epoch=1)], "disabled"),
        ([ours(CALL), results_of(), ours(text("3")), HI], "enabled"),
        ([ours(CALL), results_of(), ours(text("3")), HI, ours(THOUGHT, CALL), results_of()], "enabled"),
        ([ours(text("Let me"), SEARCH)], "disabled"),
        ([ours(THOUGHT, SEARCH)], "enabled"),
    ],
)
def test_ant_08_a_turn_that_has_lost_its_reasoning_goes_on_without(messages: list[Message], kind: str) -> None:
    """With a manual budget, a turn that goes on has to begin with reasoning; adaptive reasoning wants nothing of the kind."""
    manual = provider(extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}})
    assert sent(HI, *messages, by=manual)["thinking"]["type"] == kind
    adaptive = provider(extra_body={"thinking": {"type": "adaptive"}})
    assert sent(HI, *messages, by=adaptive)["thinking"]["type"] == "adaptive"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"type":"error","error":{"type":"overloaded_error","message":"Busy"}}', ["overloaded", "Busy"]),
        (b"upstream gone", ["529", "upstream gone"]),
    ],
    ids=["ant-09-json", "ant-09-text"],
)
async def test_a_refused_stream_is_the_error_it_reports(body: bytes, words: list[str]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(529, content=body))

    async def emit(*events: Any) -> None:
        raise AssertionError(events)

    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(Overloaded) as caught:
            await provider(http_client=client).stream(Request(messages=(HI,)), emit)
    assert caught.value.status == 529
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("after", [0, 1, 5], ids=["ant-10-first", "ant-10-start", "ant-10-partial"])
def test_an_error_event_is_raised_classified(after: int) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    data = sse([*as_stream(MESSAGES["ant-01"])[:after], error])
    decoder = provider().decoder()
    with pytest.raises(Overloaded, match="Overloaded") as caught:
        # What came before it in the same read is handed over first.
        assert len(decoder.feed(data)) == {0: 0, 1: 1, 5: 3}[after]
        decoder.finish()
    assert (caught.value.status, caught.value.retryable) == (None, True)


def test_ant_10_a_stream_without_a_stop_reason_is_a_retryable_error() -> None:
    events = as_stream(MESSAGES["ant-01"])
    assert events[-2]["type"] == "message_delta"
    for cut in ([], events[:4], events[:-2], [*events[:-2], events[-1]]):
        with pytest.raises(WireError) as caught:
            streamed(sse(cut))
        assert caught.value.retryable


def test_a_last_event_without_its_blank_line_counts_and_what_follows_the_end_does_not() -> None:
    data = sse(as_stream(MESSAGES["ant-01"]))
    extra = sse([{"type": "error", "error": {"type": "api_error", "message": "late"}}])
    for stream in (data[:-2], data + b"data: [DONE]\n\n" + extra):
        assert streamed(stream)[1] == decoded(MESSAGES["ant-01"])


STOPS = {
    "stop_sequence": "end_turn",
    "model_context_window_exceeded": "max_tokens",
    "compaction": "pause_turn",
}


@pytest.mark.parametrize(
    ("word", "meaning"),
    [*STOPS.items(), *((word, word) for word in ("end_turn", "max_tokens", "pause_turn", "refusal"))],
)
def test_ant_11_stop_reasons(word: str, meaning: str) -> None:
    message = reply(text("x"), stop_reason=word)
    assert decoded(message).stop_reason == streamed(sse(as_stream(message)))[1].stop_reason == meaning
    assert "raw_stop_reason" not in decoded(message).metadata
    calling = decoded({**message, "content": [CALL]}).stop_reason
    assert calling == ("tool_use" if meaning in {"end_turn", "pause_turn"} else meaning)


def test_an_unknown_stop_reason_ends_the_turn_and_is_kept() -> None:
    response = decoded(reply(text("x"), stop_reason="bored"))
    assert (response.stop_reason, response.metadata) == (StopReason.END_TURN, {"raw_stop_reason": "bored"})
    assert decoded(reply(CALL, stop_reason="bored")).stop_reason is StopReason.TOOL_USE
    assert decoded(reply(CALL, stop_reason=None)).metadata == {}


def test_ant_12_refusal_details() -> None:
    assert decoded(MESSAGES["ant-12"]).metadata == {"refusal": DETAILS}
    assert decoded(reply(stop_reason="refusal", stop_details=None)).metadata == {}


def test_ant_13_use_08_usage_is_cumulative_and_null_says_nothing() -> None:
    start, *_, stop = as_stream(reply(usage={"input_tokens": 2679, "output_tokens": 3}))
    start["message"]["usage"] |= {
        "cache_read_input_tokens": 40,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }
    usage = {
        "input_tokens": 10_682,
        "output_tokens": 99,
        "cache_read_input_tokens": None,
        "cache_creation": {"ephemeral_1h_input_tokens": None},
        "output_tokens_details": {"thinking_tokens": 60},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1, "tool_search_requests": 4},
    }
    first = {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 2679, "output_tokens": 8}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    assert streamed(sse([start, first, last, stop]))[1].usage == Usage(
        input_tokens=10_682,
        output_tokens=99,
        cache_creation_input_tokens=30,
        cache_creation_1h_input_tokens=20,
        cache_read_input_tokens=40,
        reasoning_tokens=60,
        server_tool_calls=2,
    )


def test_work_that_is_billed_apart_is_told_in_the_metadata() -> None:
    """What it was in all is what `billed` returns; an answer's usage stays as it is reported."""
    iterations = [
        {"type": "compaction", "input_tokens": 9, "output_tokens": 3, "cache_read_input_tokens": 50},
        {"type": "message", "input_tokens": 1, "output_tokens": 1},
        {
            "type": "advisor_message",
            "input_tokens": 20,
            "output_tokens": None,
            "cache_creation_input_tokens": 7,
            "cache_creation": {"ephemeral_1h_input_tokens": 6},
        },
    ]
    response = decoded(reply(usage={"input_tokens": 1, "output_tokens": 1, "iterations": iterations}))
    assert response.metadata == {"provider_response": {"iterations": iterations}}
    assert response.usage == Usage(1, 1)
    assert provider().billed(response) == Usage(30, 4, 7, 6, 50)
    alone = decoded(reply(usage={"input_tokens": 1, "output_tokens": 1, "iterations": iterations[1:2]}))
    assert provider().billed(alone) == alone.usage


def test_ant_14_extra_body_merges_last() -> None:
    mine: JSON = {"tools": [{"name": "mine"}], "max_tokens": 5, "top_k": None}
    by = provider(extra_body=mine, code_execution=True)
    body = sent(HI, tools=(add(),), max_output_tokens=9, by=by)
    assert {key: body[key] for key in mine} == mine


def test_ant_15_server_tools_follow_the_generated_ones() -> None:
    search = {"type": "web_search_20260318", "name": "web_search"}
    by = provider(server_tools=[search], code_execution=True)
    names = [tool["name"] for tool in sent(HI, tools=(add(),), by=by)["tools"]]
    assert names == ["add", "code_execution", "web_search"]
    assert sent(HI, by=provider(server_tools=[search]))["tools"] == [search]


def test_ant_16_optional_fields_of_a_tool() -> None:
    plain, full = add(), add(strict=True, input_examples=[{"a": 1}], defer_loading=True)
    definitions = sent(HI, tools=(plain, full))["tools"]
    optional = {"strict": True, "input_examples": [{"a": 1}], "defer_loading": True}
    assert definitions[1] == {**definitions[0], **optional}
    assert BETAS not in headers(provider(), plain, add(strict=True))
    assert headers(provider(), full, full)[BETAS] == "advanced-tool-use-2025-11-20"


@pytest.mark.parametrize("name", ["anthropic-beta", "Anthropic-Beta"])
async def test_ant_17_beta_headers_merge_into_one(name: str) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=reply(text("Hi")))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        extra = {name: "two, three,one", "x-a": "b"}
        by = provider(http_client=client, betas=("one", "two"), code_execution=True, extra_headers=extra)
        await by.complete(Request(messages=(HI,)))
    betas = ["one", "two", "three", "code-execution-2025-08-25"]
    assert seen[0].headers.get_list(BETAS, split_commas=True) == betas
    assert (seen[0].headers["x-api-key"], seen[0].headers["anthropic-version"]) == ("a-key", "2023-06-01")
    assert (str(seen[0].url), seen[0].headers["x-a"]) == ("https://api.anthropic.com/v1/messages", "b")


def test_the_path_follows_the_base_url() -> None:
    request = Request(messages=(HI,))
    assert provider(base_url="https://x.test/anthropic/v1/").encode(request, stream=False).path == "/messages"
    assert provider(base_url="https://x.test/anthropic").encode(request, stream=False).path == "/v1/messages"


def test_ant_18_native_definitions_are_for_this_wire_only() -> None:
    memory = {"type": "memory_20250818", "name": "memory"}
    ours, others = add(native={"anthropic": memory}), add(native={"openai": memory})
    tools = sent(HI, tools=(ours, others))["tools"]
    assert (tools[0], tools[1]["name"]) == (memory, "add")


def test_tool_05_ce_04_allowed_callers_are_translated_and_raw_names_pass() -> None:
    tool = add(allowed_callers=("human", "code_execution", "code_execution_20250825"))
    callers = ["direct", "code_execution_20260120", "code_execution_20250825"]
    assert sent(HI, tools=(tool,))["tools"][0]["allowed_callers"] == callers
    newer = {"type": "code_execution_20260521", "name": "code_execution"}
    definition, _ = sent(HI, tools=(tool,), by=provider(server_tools=[newer]))["tools"]
    assert definition["allowed_callers"] == ["direct", newer["type"], "code_execution_20250825"]


TALK = (Message.user("One"), Message.assistant("Two"), Message.user("Three", Image("image/png", b"x")))


def test_ca_01_without_cache_there_are_no_marks() -> None:
    body = sent(*TALK, tools=(add(),), system_prompt="Be brief.")
    assert body["system"] == "Be brief."
    assert "cache_control" not in json.dumps(body)


def test_ca_02_three_marks() -> None:
    by = provider(cache=True, code_execution=True)
    body = sent(*TALK, tools=(add(),), system_prompt="Be brief.", by=by)
    assert body["system"] == [{"type": "text", "text": "Be brief.", "cache_control": CACHE}]
    assert [tool.get("cache_control") for tool in body["tools"]] == [None, CACHE]
    assert [block.get("cache_control") for block in body["messages"][-1]["content"]] == [None, CACHE]
    assert json.dumps(body).count("cache_control") == 3
    assert json.dumps(sent(*TALK[:1], by=by)["messages"]).count("cache_control") == 1


def test_ca_03_the_last_tool_that_is_not_deferred_is_marked() -> None:
    tools = (add(), add(defer_loading=True))
    marked = sent(*TALK, tools=tools, by=provider(cache=True))["tools"]
    assert [tool.get("cache_control") for tool in marked] == [CACHE, None]
    assert "cache_control" not in sent(*TALK, tools=tools[1:], by=provider(cache=True))["tools"][0]


def test_ca_04_reasoning_is_not_marked() -> None:
    by = provider(cache=True)
    paused = decoded(reply(text("Searching."), THOUGHT, SEARCH, stop_reason="pause_turn")).message
    assert [block.get("cache_control") for block in contents(paused, by=by)[0]] == [CACHE, None, None]
    assert "cache_control" not in json.dumps(contents(decoded(reply(THOUGHT, SEARCH)).message, by=by))
    assert sent(by=by)["messages"] == []


def test_ce_01_code_execution_adds_its_tool_and_header() -> None:
    tool = {"type": "code_execution_20260120", "name": "code_execution"}
    by = provider(code_execution=True)
    assert (sent(*TALK, by=by)["tools"], headers(by)[BETAS]) == ([tool], "code-execution-2025-08-25")
    assert "tools" not in sent(*TALK)
    assert BETAS not in headers(provider())


def test_ce_02_server_tools_decode_and_ask_nothing_of_us() -> None:
    response = decoded(MESSAGES["ce-02"])
    assert response.message.content[:2] == (
        ServerToolUse("srv_1", "web_search", {"query": "sky"}, {"type": "server_tool_use"}),
        ServerToolResult("srv_1", FOUND),
    )
    assert (response.message.tool_uses, response.stop_reason) == ((), StopReason.END_TURN)
    unknown = decoded(MESSAGES["unknown"]).message.content
    assert unknown[1] == Opaque("anthropic", {"type": "novelty", "of": {"a": [1]}})
    assert contents(Message.assistant("Hi", Opaque("openai", {"type": "x"}))) == [[text("Hi")]]


def test_ce_03_provider_run_calls_that_lost_their_result_are_dropped_where_the_api_refuses_them() -> None:
    def kinds(*messages: Message) -> list[list[str]]:
        return [[block["type"] for block in content] for content in contents(*messages)]

    paused = decoded(reply(text("Let me look."), SEARCH, stop_reason="pause_turn")).message
    found = decoded(reply(FOUND, text("Blue."))).message
    other, result = Message.user("Never mind."), Message.user(ToolResult("toolu_1", "3"))
    whole = [["text", "server_tool_use"], ["web_search_tool_result", "text"], ["text"]]
    assert kinds(paused) == [["text", "server_tool_use"]]
    assert kinds(paused, found, other) == whole
    assert kinds(paused, other) == [["text"], ["text"]]
    assert kinds(found) == [["text"]]
    mixed = decoded(reply(SEARCH, CALL, stop_reason="tool_use")).message
    assert kinds(mixed, result) == [["server_tool_use", "tool_use"], ["tool_result"]]
    assert kinds(mixed, result, other) == [["tool_use"], ["tool_result"], ["text"]]
    by_code = decoded(MESSAGES["ce-05"]).message
    assert kinds(by_code, result, other) == [["server_tool_use", "tool_use"], ["tool_result"], ["text"]]


def test_ce_05_the_caller_survives() -> None:
    response = streamed(sse(as_stream(MESSAGES["ce-05"])))[1]
    assert response.message.tool_uses[0].provider_data == {"caller": BY_CODE["caller"]}
    assert contents(response.message)[0][1] == BY_CODE


def test_ps_02_the_container_goes_with_the_conversation() -> None:
    by = provider(code_execution=True)
    answer = decoded(MESSAGES["ps-02"], by).message
    assert answer.provider_state == {"container_id": "container_1"}
    talk = (HI, answer, HI, Message.assistant("Hm"), HI)
    assert sent(*talk, by=by)["container"] == "container_1"
    assert "container" not in sent(HI, by=by)
    assert "container" not in sent(*talk)
    assert "container" not in sent(*talk, by=provider(code_execution=True, api_key="another"))


def test_ps_03_msg_13_citations_stay_on_their_text() -> None:
    response = decoded(MESSAGES["ps-03"])
    assert response.message.content == (Text("It is "), Text("red", (CITATION,)))
    assert response.metadata == {"provider_response": {"citations": [CITATION]}}
    note: Any = {"type": "url_citation"}
    foreign = Message.assistant(Text("red", (note,)))
    assert contents(foreign) == [[text("red")]]


def opened(index: int, block: JSON) -> JSON:
    return {"type": "content_block_start", "index": index, "content_block": block}


def grown(kind: str, **fields: Any) -> JSON:
    where = {"index": fields.pop("index")} if "index" in fields else {}
    return {"type": "content_block_delta", **where, "delta": {"type": kind, **fields}}


def test_arguments_that_are_no_json_are_kept_and_sent_back_as_an_object() -> None:
    cut = grown("input_json_delta", index=0, partial_json='{"a": 1')
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
    events, response = streamed(sse([opened(0, {**CALL, "input": {}}), cut, end, {"type": "message_stop"}]))
    call = ToolUse("toolu_1", "add", {}, '{"a": 1')
    assert (response.message.content, events[-1]) == ((call,), BlockEnd(call))
    assert response.stop_reason is StopReason.MAX_TOKENS
    assert contents(response.message)[0][0]["input"] == {"INVALID_JSON": '{"a": 1'}


def test_servers_that_open_blocks_with_content_or_together_or_not_at_all() -> None:
    events, response = streamed(
        sse(
            [
                opened(0, {"type": "thinking", "thinking": "Hm"}),
                opened(1, text("He")),
                opened(2, CALL),
                {"type": "content_block_stop", "index": 2},
                grown("text_delta", index=1, text="llo"),
                grown("text_delta", index=1, text=""),
                {"type": "content_block_stop", "index": 1},
                {"type": "content_block_stop", "index": 0},
                grown("text_delta", text="!"),
                grown("novel_delta", index=9),
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            ]
        )
    )
    call = ToolUse("toolu_1", "add", {"a": 1, "b": [2, "ü"]})
    assert response.message.content == (Thinking("Hm"), Text("Hello"), call, Text("!"))
    assert (joined(events, TextDelta), joined(events, ThinkingDelta)) == ("Hello!", "Hm")
    assert (response.stop_reason, response.message.model) == (StopReason.TOOL_USE, "claude-test-1")


def test_errors_and_noise_in_a_200() -> None:
    error = {"type": "invalid_request_error", "message": "prompt is too long: 9 > 5"}
    with pytest.raises(ContextTooLong, match="prompt is too long") as caught:
        decoded({"type": "error", "error": error})
    assert caught.value.status is None
    for noise in (b"{}", b"[]", b"<html>", b"", b'{"object": "chat.completion"}'):
        with pytest.raises(ProviderError):
            provider().decode(noise)
    assert decoded({"type": "message", "content": None}).message.content == ()
    assert decoded({"content": "Hi", "usage": None}).message.content == (Text("Hi"),)


def test_a_block_without_a_type_is_not_sent_back() -> None:
    """Also one whose type is no text. It would be refused, and was never right."""
    message = decoded(reply({"id": "a"}, {"type": ["odd"]}, text("So."))).message
    assert len(message.content) == 3
    assert contents(HI, message)[1] == [text("So.")]
    assert len(contents(HI, decoded(reply({"id": "a"})).message)) == 1


def test_a_citation_that_is_none_is_left_out() -> None:
    """A conversation with it could not be kept."""
    message = decoded(reply(text("So.", citations=[None, CITATION]))).message
    assert message.content == (Text("So.", (CITATION,)),)
    assert Session.from_json(Session(messages=[HI, message]).to_json()).messages == (HI, message)


def test_a_block_behind_the_last_word_has_its_end() -> None:
    """Also where the server closes the connection without ending it."""
    stop, late = as_stream(reply(text("So.")))[:-1], as_stream(reply(text("And")))[2:-3]
    events, response = streamed(sse([*stop, *late]))
    assert [event.block for event in events if isinstance(event, BlockEnd)] == list(response.message.content)
    assert response.message.content == (Text("So."), Text("And"))


SURPRISE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.data())
def test_a_surprise_anywhere_in_a_stream_is_no_crash(data: st.DataObject) -> None:
    events = json.loads(json.dumps(as_stream(data.draw(st.sampled_from(list(MESSAGES.values()))))))
    node: Any = data.draw(st.sampled_from(events))
    while isinstance(node, dict) and node:
        key = data.draw(st.sampled_from(list(node)))
        if not isinstance(node[key], dict) or data.draw(st.booleans()):
            node[key] = data.draw(SURPRISE)
            break
        node = node[key]
    try:
        blocks = tuple(event.block for event in streamed(sse(events))[0] if isinstance(event, BlockEnd))
    except ProviderError:
        return
    assert streamed(sse(events))[1].message.content[: len(blocks)] == blocks


@given(st.lists(st.sampled_from(["ask", "think", "search", "call"]), max_size=6))
def test_a_longer_conversation_begins_with_the_bytes_of_the_shorter(turns: list[str]) -> None:
    by, messages, before = provider(code_execution=True), [HI], b""
    answers = {"ask": reply(text("Yes.")), "think": MESSAGES["ant-07"], "search": MESSAGES["ce-02"]}
    for turn in turns:
        messages.append(decoded(answers.get(turn, reply(THOUGHT, CALL)), by).message)
        messages.append(Message.user(ToolResult("toolu_1", "3") if turn == "call" else "Go on."))
        body = by.encode(Request(messages=tuple(messages), tools=(add(),)), stream=True).body
        assert body == by.encode(Request(messages=tuple(messages), tools=(add(),)), stream=True).body
        assert body.startswith(before)
        before = body.removesuffix(b"]}")


def test_an_error_result_is_text_alone() -> None:
    call = Message.assistant(ToolUse("c", "look"))
    answer = Message.user(ToolResult("c", (Text("no"), Image("image/png", b"png")), is_error=True))
    body = json.loads(provider().encode(Request(messages=(HI, call, answer)), stream=False).body)
    texts = [part["text"] for part in body["messages"][-1]["content"][0]["content"]]
    assert texts == ["no", "Unsupported image (image/png)"]


def test_an_assistants_media_are_told_of() -> None:
    message = Message.assistant("look", Image("image/png", b"png"), Opaque("anthropic", {"type": "container_upload"}))
    body = json.loads(provider().encode(Request(messages=(HI, message, HI)), stream=False).body)
    assert [part["text"] for part in body["messages"][1]["content"]] == ["look", "Unsupported image (image/png)"]


def test_usage_is_told_as_soon_as_it_is_known() -> None:
    """The prompt's with the first event, the answer's with the last; what says nothing new gives no event."""
    message = reply(text("Hi"), usage={"input_tokens": 25, "output_tokens": 15, "cache_read_input_tokens": 4})
    start, *rest, _, stop = as_stream(message)
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}
    events, response = streamed(sse([start, *rest, {"type": "message_delta", "usage": {}, "delta": {}}, end, stop]))
    assert events[0] == UsageUpdate(Usage(25, 1))
    assert [event for event in events if isinstance(event, UsageUpdate)] == [events[0], UsageUpdate(Usage(25, 15))]
    assert response.usage == Usage(25, 15)
    start["message"]["usage"] = {}
    assert not isinstance(streamed(sse([start, *rest, end, stop]))[0][0], UsageUpdate)


def cap_of(cap: int | None, extra: JSON) -> Any:
    return sent(HI, by=provider(extra_body=extra, max_output_tokens=300), max_output_tokens=cap)["max_tokens"]


@pytest.mark.parametrize(
    ("cap", "extra", "expected"),
    [
        (100, {}, 100),
        (100, {"max_tokens": 50}, 50),
        (100, {"max_tokens": 500}, 100),
        (500, {}, 500),
        (100, {"max_tokens": "50"}, 100),
        (100, {"max_tokens": None}, 100),
        (100, {"max_tokens": -1}, 100),
        (100, {"max_tokens": True}, 100),
        (None, {}, 300),
        (None, {"max_tokens": 500}, 500),
    ],
    ids=["ant-14-cap", "lower", "higher", "own", "text", "null", "negative", "true", "none", "none and extra"],
)
def test_ant_14_extra_body_may_lower_the_cap(cap: int | None, extra: JSON, expected: int) -> None:
    assert cap_of(cap, extra) == expected


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {}),
        ({"base_url": "https://elsewhere.test"}, {}),
        ({"cache": True}, {"caches": True}),
        ({"extra_body": {"system": [{"type": "text", "text": "a", "cache_control": CACHE}]}}, {"caches": True}),
        ({"server_tools": [{"type": "tool_search_tool_bm25", "cache_control": CACHE}]}, {"caches": True}),
        ({"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 2048}}}, {"thinking_budget": 2048}),
        ({"extra_body": {"thinking": {"type": "adaptive"}}}, {}),
        ({"extra_body": {"thinking": {"type": "enabled", "budget_tokens": "many"}}}, {}),
        ({"code_execution": True}, {"server_tools": True}),
        ({"server_tools": [{"type": "web_search_20260209", "name": "web_search"}]}, {"server_tools": True}),
        ({"server_tools": [{"type": "mcp_toolset"}, {"type": "tool_search_tool_regex_20251119"}]}, {}),
        ({"extra_body": {"tools": [{"type": "web_search_20260209"}]}}, {"server_tools": True}),
        ({"server_tools": [{"type": "web_fetch_20260209", "name": "web_fetch"}]}, {}),
        ({"extra_body": {"tools": [{"name": "mine"}, {"type": "bash_20250124"}]}, "code_execution": True}, {}),
    ],
)
def test_terms(options: JSON, terms: JSON) -> None:
    assert provider(**options).terms == Terms(enforces_cap=True, seals_prefix=True, **terms)


DROP = {"prefix_mismatch_behavior": "drop_block"}
DROP_BETA = "thinking-binding-controls-2026-08-01"


@pytest.mark.parametrize(
    ("model", "thinking", "expected"),
    [
        ("claude-opus-5-5", None, {"type": "adaptive", "block_binding": DROP}),
        ("claude-sonnet-5-5-20260928", {"type": "adaptive", "display": "omitted"}, "added"),
        ("claude-fable-5-1", {"type": "enabled", "budget_tokens": 1024}, "added"),
        ("claude-haiku-6", {"type": "adaptive"}, "added"),
        ("claude-opus-5-5", {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}, "beta"),
        ("claude-sonnet-5-5", {"type": "between_tools"}, "as it is"),
        ("claude-opus-5", {"type": "adaptive"}, "as it is"),
        ("claude-opus-5-20260401", None, None),
        ("claude-mythos-5-1", None, None),
        ("claude-sonnet-4-20250514", None, None),
        ("claude-3-7-sonnet-20250219", None, None),
        ("another-model-5-5", None, None),
    ],
)
def test_reasoning_whose_prefix_has_changed_is_to_be_dropped(model: str, thinking: Any, expected: Any) -> None:
    """Where the model checks that, and takes the field; elsewhere it would be refused."""
    extra = {} if thinking is None else {"thinking": thinking}
    by = Anthropic(model=model, api_key="key", extra_body=extra, betas=(DROP_BETA,) if expected == "beta" else ())
    call = by.encode(Request(messages=(HI,)), stream=False)
    asked = json.loads(call.body).get("thinking")
    match expected:
        case "added":
            assert asked == {**thinking, "block_binding": DROP}
        case "as it is" | "beta":
            assert asked == thinking
        case _:
            assert asked == expected
    assert call.headers.get(BETAS) == (DROP_BETA if asked and "block_binding" in asked else None)
    assert extra == ({} if thinking is None else {"thinking": thinking})
    elsewhere = attrs.evolve(by, base_url="https://gateway.test", betas=())
    call = elsewhere.encode(Request(messages=(HI,)), stream=False)
    assert json.loads(call.body).get("thinking") == thinking
    assert BETAS not in call.headers


def test_dropped_reasoning_is_told_in_the_metadata() -> None:
    dropped = {"type": "thinking_dropped", "path": "messages.1.content.0", "reason": "prefix_binding_mismatch"}
    message = reply(text("Yes."), input_transformations=[dropped])
    assert decoded(message).metadata == {"provider_response": {"input_transformations": [dropped]}}
    assert streamed(sse(as_stream(message)))[1].metadata == decoded(message).metadata
    *events, end, stop = as_stream(reply(text("Yes.")))
    end["input_transformations"] = [dropped]  # said again where another model has taken over
    assert streamed(sse([*events, end, stop]))[1].metadata == decoded(message).metadata
    assert decoded(reply(input_transformations=[])).metadata == {}


def test_stale_answers_go_without_their_reasoning() -> None:
    """What was said before the conversation was changed keeps text, calls and provider-run tools, and the container."""
    by = provider(code_execution=True)
    before = decoded(
        reply(THOUGHT, REDACTED, SEARCH, FOUND, text("red", citations=[CITATION]), BY_CODE, container=RAN), by
    )
    result = Message.user(ToolResult("toolu_1", "3"))
    thinking_alone = decoded(reply(THOUGHT), by).message
    fresh = attrs.evolve(decoded(MESSAGES["ant-07"], by).message, epoch=2)
    history = (HI, before.message, result, thinking_alone, attrs.evolve(HI, epoch=2), fresh, HI)
    body = sent(*history, by=by)
    assert [message["role"] for message in body["messages"]] == [
        "user",
        "assistant",
        "user",
        "user",
        "assistant",
        "user",
    ]
    assert body["messages"][1]["content"] == [SEARCH, FOUND, text("red", citations=[CITATION]), BY_CODE]
    assert body["messages"][4]["content"] == MESSAGES["ant-07"]["content"]
    assert body["container"] == "container_1"
    same = tuple(attrs.evolve(message, epoch=2) for message in history[:3])
    assert sent(*same, by=by)["messages"][1]["content"][:2] == [THOUGHT, REDACTED]


SHAPE = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 150, "description": "In years."},
        "names": {"type": "array", "items": {"$ref": "#/$defs/name"}, "minItems": 2, "maxItems": 3},
        "kind": {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "null"}], "default": None},
        "day": {"type": "string", "format": "date"},
        "odd": {"type": "string", "format": "odd", "title": "Odd"},
    },
    "required": ["age", "names"],
    "$defs": {"name": {"type": "object", "properties": {"a": {"enum": ["x", 1]}}, "required": ["a"]}},
}


def test_the_answers_schema_is_sent_as_the_api_takes_it() -> None:
    """What it refuses is told to the model instead; objects are closed; `effort` and the like stay."""
    body = sent(HI, by=provider(extra_body={"output_config": {"effort": "low"}}), output_schema=SHAPE)
    form = body["output_config"].pop("format")
    assert body["output_config"] == {"effort": "low"}
    assert form["type"] == "json_schema"
    assert form["schema"] == {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "description": 'In years.\n{"minimum":0,"maximum":150}'},
            "names": {
                "type": "array",
                "items": {"$ref": "#/$defs/name"},
                "description": '{"minItems":2,"maxItems":3}',
            },
            "kind": {
                "anyOf": [{"type": "string", "description": '{"pattern":"^a"}'}, {"type": "null"}],
                "default": None,
            },
            "day": {"type": "string", "format": "date"},
            "odd": {"type": "string", "title": "Odd", "description": '{"format":"odd"}'},
        },
        "required": ["age", "names"],
        "$defs": {
            "name": {
                "type": "object",
                "properties": {"a": {"enum": ["x", 1]}},
                "required": ["a"],
                "additionalProperties": False,
            }
        },
        "additionalProperties": False,
    }
    mine = {"format": {"type": "json_schema", "schema": {}}}
    assert sent(HI, by=provider(extra_body={"output_config": mine}), output_schema=SHAPE)["output_config"] == mine
    assert "output_config" not in sent(HI)


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("claude-haiku-4-5-20251001", True),
        ("anthropic.claude-opus-5-5", True),
        ("anthropic/claude-sonnet-4.6", True),
        ("claude-opus-4-1-20250805", False),
        ("claude-sonnet-4-20250514", False),
        ("claude-3-5-haiku-latest", False),
        ("kimi-k3", False),
    ],
)
def test_which_models_hold_to_a_schema(model: str, takes: bool) -> None:
    assert Anthropic(model=model, api_key="key").native_output is takes
    assert Anthropic(model=model, api_key="key").takes_schema(SHAPE) is takes


@pytest.mark.parametrize(
    "part",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": True},
        {},
        {"description": "Anything."},
        {"type": "array", "items": {}},
        {"anyOf": [{"type": "null"}, {"type": "object"}]},
        {"$ref": "#"},
        {"$ref": "#/$defs/tree"},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}]},
        {"type": "array", "items": False},
        {"type": "array", "items": [{"type": "integer"}]},
        {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(24)}},
        {"anyOf": [{"type": ["integer", "null"]}] * 16},
    ],
)
def test_schemas_that_the_api_cannot_express(part: JSON) -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    schema = {"type": "object", "properties": {"part": part}, "$defs": {"tree": tree} if "tree" in str(part) else {}}
    by = Anthropic(model="claude-opus-5-5", api_key="key")
    assert by.native_output
    assert not by.takes_schema(schema)


def test_how_much_of_a_schema_the_api_takes() -> None:
    """24 optional properties and 16 unions, wherever in it they are."""
    optional = {f"p{n}": {"type": "integer"} for n in range(24)}
    unions = [{"type": ["integer", "null"]}, *({"anyOf": [{"type": "null"}, {"type": "string"}]} for _ in range(15))]
    by = Anthropic(model="claude-opus-5-5", api_key="key")
    assert by.takes_schema({"type": "object", "properties": optional})
    names = [f"u{n}" for n in range(16)]
    assert by.takes_schema({"type": "object", "properties": dict(zip(names, unions, strict=True)), "required": names})


def test_ps_02_a_container_that_was_given_back_is_used_again() -> None:
    """`provider_state=` of a run; a newer one of the conversation goes before it."""
    provider = Anthropic(model="m", api_key="k", code_execution=True)
    request = Request(messages=(Message.user("go"),), provider_state={"container_id": "c_1"})
    assert json.loads(provider.encode(request, stream=False).body)["container"] == "c_1"
    answer = Message("assistant", "Well.", origin=provider.origin, provider_state={"container_id": "c_2"})
    later = attrs.evolve(request, messages=(*request.messages, answer, Message.user("and?")))
    assert json.loads(provider.encode(later, stream=False).body)["container"] == "c_2"


async def test_what_is_billed_outside_of_the_usage_is_paid_for() -> None:
    """A compaction on the server's side stands in `iterations` only."""
    usage = {
        "input_tokens": 100,
        "output_tokens": 10,
        "iterations": [
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 50},
            {"type": "message", "input_tokens": 100, "output_tokens": 10},
        ],
    }
    answer = {"type": "message", "content": [{"type": "text", "text": "ok"}], "stop_reason": "end_turn", "usage": usage}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    async with httpx.AsyncClient(transport=transport) as client:
        provider = Anthropic(model="m", api_key="k", http_client=client, price=Price("1000", "1000"))
        result = await alloy_trio.run("Go", provider=provider)
    assert result.usage == Usage(input_tokens=1100, output_tokens=60)
    assert result.cost_cents == 116
