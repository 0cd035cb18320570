"""The Responses API: what is sent, what comes back whole or streamed, and that both ways mean the same."""

from __future__ import annotations

import contextlib
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
    AuthenticationError,
    ContextTooLong,
    Document,
    Image,
    Message,
    Opaque,
    ProviderError,
    RateLimited,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    Video,
    WireError,
)
from alloy_trio.events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import OpenAI, Request, Response, StopReason, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

JSON = dict[str, Any]

HI = Message.user("Hi")
NOTE: Any = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://sky.test", "title": "Sky"}
SYSTEM = {"type": "message", "role": "system", "content": "Be brief."}
SEARCH = {
    "id": "ws_1",
    "type": "web_search_call",
    "status": "completed",
    "action": {"type": "search", "query": "sky"},
}
CUSTOM = {
    "id": "ctc_1",
    "type": "custom_tool_call",
    "call_id": "c1",
    "name": "sql",
    "input": "SELECT 1",
    "status": "completed",
}


def said(text: str, *notes: JSON, item_id: str = "msg_1", **fields: Any) -> JSON:
    part = {"type": "output_text", "text": text, "annotations": list(notes)}
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
        **fields,
    }


def refused(text: str) -> JSON:
    return said("") | {"content": [{"type": "refusal", "refusal": text}]}


def called(arguments: str = '{"city":"Oslo"}', call_id: str = "call_1", name: str = "weather", **fields: Any) -> JSON:
    head = {"id": "fc_1", "type": "function_call", "status": "completed"}
    return {**head, "call_id": call_id, "name": name, "arguments": arguments, **fields}


def thought(*summary: str, sealed: str | None = "c2VhbA", **fields: Any) -> JSON:
    parts = [{"type": "summary_text", "text": text} for text in summary]
    item = {"id": "rs_1", "type": "reasoning", "summary": parts, **fields}
    return item if sealed is None else {**item, "encrypted_content": sealed}


def reply(*items: JSON, **fields: Any) -> JSON:
    usage = {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 12},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 4},
    }
    head = {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-test-2026",
        "status": "completed",
        "error": None,
    }
    return {**head, "output": list(items), "usage": usage, **fields}


def cut(reason: str, *items: JSON) -> JSON:
    return reply(*items, status="incomplete", incomplete_details={"reason": reason})


def pieces(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def deltas(place: int, item: JSON) -> Iterable[JSON]:
    """What a stream says of an item between its beginning and its end."""
    at = {"item_id": item.get("id"), "output_index": place}
    for index, part in enumerate(item.get("content") or []):
        kind = {"output_text": "output_text", "refusal": "refusal", "reasoning_text": "reasoning_text"}[part["type"]]
        for piece in pieces(part.get("text") or part.get("refusal") or ""):
            yield {"type": f"response.{kind}.delta", **at, "content_index": index, "delta": piece}
    for index, part in enumerate(item.get("summary") or []):
        for piece in pieces(part["text"]):
            yield {
                "type": "response.reasoning_summary_text.delta",
                **at,
                "summary_index": index,
                "delta": piece,
            }
    if item["type"] == "function_call":
        for piece in pieces(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}


def events_of(answer: JSON) -> list[JSON]:
    """The events of a stream that ends with this answer."""
    hollow = {"content": [], "summary": [], "arguments": "", "status": "in_progress"}
    events: list[JSON] = [{"type": "response.created", "response": {**answer, "output": [], "status": "in_progress"}}]
    for place, item in enumerate(answer["output"]):
        begun = {**item, **{field: value for field, value in hollow.items() if field in item}}
        events.append({"type": "response.output_item.added", "output_index": place, "item": begun})
        events += deltas(place, item)
        events.append({"type": "response.output_item.done", "output_index": place, "item": item})
    end = "incomplete" if answer["status"] == "incomplete" else "completed"
    return [*events, {"type": f"response.{end}", "response": answer}]


def sse(events: Iterable[JSON]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def provider(**options: Any) -> OpenAI:
    return OpenAI(**{"model": "gpt-test", "api_key": "key", **options})


def decode(answer: Any, **options: Any) -> Response:
    return provider(**options).decode(json.dumps(answer).encode())


def streamed(stream: bytes, cuts: Sequence[int] = (), **options: Any) -> tuple[list[Any], Response]:
    """Feed a stream in the pieces that the cuts make."""
    decoder = provider(**options).decoder()
    places = [0, *cuts, len(stream)]
    events = [event for a, b in itertools.pairwise(places) for event in decoder.feed(stream[a:b])]
    return events, decoder.finish()


def either(answer: JSON, mode: str) -> Response:
    return decode(answer) if mode == "whole" else streamed(sse(events_of(answer)))[1]


def encode(*messages: Message, stream: bool = False, options: JSON | None = None, **request: Any) -> JSON:
    call = provider(**(options or {})).encode(Request(messages=messages or (HI,), **request), stream=stream)
    body: JSON = json.loads(call.body)
    return body


def items(*messages: Message, **options: Any) -> list[JSON]:
    found: list[JSON] = encode(*messages, options=options)["input"]
    return found


def user(*parts: JSON | str) -> JSON:
    content = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"type": "message", "role": "user", "content": content}


def output(text: str, call_id: str = "call_1") -> JSON:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def make_tool(name: str = "weather", **fields: Any) -> Tool:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return Tool(**{"name": name, "description": "A tool.", "input_schema": schema, "execute": str, **fields})


BOTH = pytest.mark.parametrize("mode", ["whole", "streamed"])

RICH = reply(
    thought("Let me ", "look."),
    SEARCH,
    said("The sky is blue.", NOTE, phase="commentary"),
    thought(sealed=None, content=[{"type": "reasoning_text", "text": "So it is."}]),
    called(),
    called('{ "city": "Bergen" }', "call_2"),
    CUSTOM,
    {"id": "cmp_1", "type": "compaction", "encrypted_content": "b3BhcXVl"},
)


# What comes back


@BOTH
def test_oai_01_message(mode: str) -> None:
    response = either(reply(said("Hello")), mode)
    assert response.message.text == "Hello"
    assert response.message.role == "assistant"
    assert (response.message.provider, response.message.model) == ("openai", "gpt-test-2026")
    assert response.message.origin == provider().origin
    assert response.message.provider_state == {"response_id": "resp_1"}
    assert response.stop_reason is StopReason.END_TURN
    assert response.usage == Usage(18, 9, cache_read_input_tokens=12, reasoning_tokens=4)
    assert response.metadata == {}


@BOTH
def test_oai_02_call_beside_text(mode: str) -> None:
    response = either(reply(said("I look."), called()), mode)
    text, call = response.message.content
    assert isinstance(text, Text)
    assert isinstance(call, ToolUse)
    assert (call.id, call.name, call.input) == ("call_1", "weather", {"city": "Oslo"})
    assert response.stop_reason is StopReason.TOOL_USE


@BOTH
@pytest.mark.parametrize("arguments", ["{not json", "[1]", '{"city": "Os'])
def test_oai_05_arguments_that_are_no_object(mode: str, arguments: str) -> None:
    """A call that cannot be read is kept, for an error result, and goes back as one."""
    message = either(reply(called(arguments)), mode).message
    (call,) = message.tool_uses
    assert (call.input, call.invalid_input) == ({}, arguments)
    assert items(HI, message)[1]["arguments"] == json.dumps({"INVALID_JSON": arguments}, separators=(",", ":"))


@pytest.mark.parametrize("arguments", ["", "{}", None])
def test_empty_arguments_are_an_empty_object(arguments: str | None) -> None:
    (call,) = decode(reply(called() | {"arguments": arguments})).message.tool_uses
    assert (call.input, call.invalid_input) == ({}, None)


@BOTH
def test_oai_11_reasoning_is_kept_whole(mode: str) -> None:
    item = thought("Let me ", "think.")
    response = either(reply(item, called()), mode)
    thinking = response.message.content[0]
    assert thinking == Thinking("Let me think.", provider_data=item)
    assert response.message.text == ""


@BOTH
def test_raw_reasoning_is_kept_beside_the_summary(mode: str) -> None:
    item = thought(content=[{"type": "reasoning_text", "text": "Hm."}])
    assert either(reply(item, said("Yes")), mode).message.content[0] == Thinking("", provider_data=item)


def test_oai_13_failed() -> None:
    error = {"code": "rate_limit_exceeded", "message": "Slow down."}
    with pytest.raises(RateLimited, match="Slow down") as caught:
        decode(reply(status="failed", error=error))
    assert caught.value.status is None
    assert caught.value.retryable


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_oai_13_no_reason_given(status: str) -> None:
    with pytest.raises(ProviderError, match=status):
        decode(reply(status=status))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too long", "code": "context_length_exceeded"}},
        [{"error": {"message": "too long", "code": "context_length_exceeded"}}],
        {"code": "context_length_exceeded", "error": "too long"},
    ],
)
def test_error_object_in_a_good_answer(body: Any) -> None:
    with pytest.raises(ContextTooLong, match="too long"):
        decode(body)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"3", b'{"choices": []}', b'{"output": null}'])
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(WireError, match="base_url"):
        provider().decode(body)


@BOTH
def test_oai_14_cut_by_the_cap(mode: str) -> None:
    response = either(cut("max_output_tokens", said("Once upon"), called('{"city":')), mode)
    assert response.stop_reason is StopReason.MAX_TOKENS
    assert response.message.text == "Once upon"
    assert response.message.tool_uses[0].invalid_input == '{"city":'
    assert response.usage.output_tokens == 9
    assert response.message.provider_state == {"response_id": "resp_1"}


@BOTH
def test_oai_14_cut_by_the_content_filter(mode: str) -> None:
    response = either(cut("content_filter", said("Once")), mode)
    assert response.stop_reason is StopReason.REFUSAL
    assert response.metadata == {"refusal": {"reason": "content_filter"}}
    assert response.message.text == "Once"


@BOTH
def test_refusal_is_no_text(mode: str) -> None:
    response = either(reply(refused("I cannot.")), mode)
    assert response.stop_reason is StopReason.REFUSAL
    assert response.metadata == {"refusal": {"type": "refusal", "refusal": "I cannot."}}
    assert response.message.text == ""
    assert items(HI, response.message)[1]["content"] == [{"type": "refusal", "refusal": "I cannot."}]


@pytest.mark.parametrize(
    ("fields", "stop_reason", "word"),
    [
        ({"status": "incomplete"}, StopReason.MAX_TOKENS, None),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "steered"}},
            StopReason.END_TURN,
            "steered",
        ),
        ({"status": "queued"}, StopReason.END_TURN, "queued"),
        ({"status": "splendid"}, StopReason.END_TURN, "splendid"),
        ({"status": None}, StopReason.END_TURN, None),
    ],
)
def test_statuses(fields: JSON, stop_reason: StopReason, word: str | None) -> None:
    response = decode(reply(**fields))
    assert response.stop_reason is stop_reason
    assert response.metadata.get("raw_stop_reason") == word


def test_unknown_status_with_a_call() -> None:
    assert decode(reply(called(), status="splendid")).stop_reason is StopReason.TOOL_USE


@BOTH
def test_ps_03_citations(mode: str) -> None:
    response = either(reply(SEARCH, said("The sky", NOTE)), mode)
    assert response.metadata == {"provider_response": {"citations": [NOTE]}}
    assert response.message.content[1] == Text("The sky", (NOTE,), {"id": "msg_1", "status": "completed"})


@BOTH
@pytest.mark.parametrize(
    ("item", "name", "arguments"),
    [
        (SEARCH, "web_search", SEARCH["action"]),
        ({"type": "code_interpreter_call", "id": "ci", "code": "1+1", "outputs": None}, "code_interpreter", {"code": "1+1"}),
        ({"type": "file_search_call", "id": "fs", "queries": ["sky"]}, "file_search", {"queries": ["sky"]}),
        ({"type": "image_generation_call", "id": "ig", "result": "aW1n"}, "image_generation", {}),
        ({"type": "mcp_call", "id": "mcp", "name": "shorten", "arguments": '{"a":1}'}, "shorten", {"a": 1}),
        ({"type": "tool_search_call", "id": "ts", "execution": "server", "arguments": {"paths": []}}, "tool_search", {"paths": []}),
        ({"type": "x_search_call", "id": "x", "name": "x_user_search", "arguments": '{"query":"a"}'}, "x_user_search", {"query": "a"}),
        ({"type": "custom_tool_call", "id": "x", "name": "x_keyword_search", "input": '{"query":"a"}'}, "x_keyword_search", {"query": "a"}),
        ({"type": "custom_tool_call", "id": "x", "name": "view_x_video", "input": "that one"}, "view_x_video", {"input": "that one"}),
    ],
)  # fmt: skip
def test_calls_that_the_provider_ran(mode: str, item: JSON, name: str, arguments: JSON) -> None:
    response = either(reply(item, said("So.")), mode)
    assert response.message.content[0] == ServerToolUse(item["id"], name, arguments, item)
    assert response.message.tool_uses == ()
    assert response.stop_reason is StopReason.END_TURN
    assert response.usage.server_tool_calls == (0 if item["type"] in {"mcp_call", "tool_search_call"} else 1)
    assert items(HI, response.message)[1] == item


@BOTH
@pytest.mark.parametrize("kind", ["compaction", "mcp_list_tools", "program_output", "local_shell_call", "invented"])
def test_items_without_a_block_of_ours_are_kept(mode: str, kind: str) -> None:
    item = {"type": kind, "id": "it_1", "payload": {"a": None}}
    message = either(reply(item, said("So.")), mode).message
    assert message.content[0] == Opaque("openai", item)
    assert items(HI, message)[1] == item


@BOTH
def test_custom_call(mode: str) -> None:
    """A custom tool's input is free text; call and result go back in their own form."""
    response = either(reply(CUSTOM), mode)
    (call,) = response.message.tool_uses
    assert (call.id, call.name, call.input) == ("c1", "sql", {"input": "SELECT 1"})
    assert response.stop_reason is StopReason.TOOL_USE
    assert items(HI, response.message, Message.user(ToolResult("c1", "1")))[1:] == [
        CUSTOM,
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "1"},
    ]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ({"input_tokens": None, "output_tokens": "7"}, Usage(output_tokens=7)),
        ({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 5}}, Usage(cache_read_input_tokens=5)),
        (
            {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 4}},
            Usage(3, cache_creation_input_tokens=4, cache_read_input_tokens=2),
        ),
        ({"num_server_side_tools_used": 6}, Usage(server_tool_calls=6)),
        (
            {"num_server_side_tools_used": 6, "server_side_tool_usage_details": {"mcp_calls": 2, "x_search_calls": 4}},
            Usage(server_tool_calls=4),
        ),
    ],
)
def test_usage(usage: JSON | None, expected: Usage) -> None:
    assert decode(reply(usage=usage)).usage == expected


@BOTH
def test_of_a_web_search_the_searches_have_a_fee(mode: str) -> None:
    """To open what was found, or to find something in it, has none; a call that does not say which it was counts."""
    actions = [{"type": kind} for kind in ("search", "open_page", "find_in_page", "search")]
    calls = [SEARCH | {"id": f"ws_{place}", "action": action} for place, action in enumerate(actions)]
    silent = {key: value for key, value in SEARCH.items() if key != "action"}
    assert either(reply(*calls, silent), mode).usage.server_tool_calls == 3


def test_a_vendors_surprises_are_no_crash() -> None:
    odd: list[Any] = [
        3,
        {"type": None},
        {"type": "message", "content": "plain"},
        {
            "type": "message",
            "content": [None, {"type": "output_text", "text": None}, {"type": "audio", "data": "YQ=="}],
        },
        {"type": "reasoning", "summary": None, "content": None},
        {"type": "function_call", "id": "fc_9", "name": None, "arguments": {"a": 1}},
    ]
    blocks = decode(reply() | {"output": odd, "model": 3, "id": None, "incomplete_details": []}).message.content
    assert blocks == (
        Opaque("openai", {"type": None}),
        Text("plain"),
        Opaque("openai", {"type": "message", "content": [{"type": "audio", "data": "YQ=="}]}),
        Thinking("", provider_data=odd[4]),
        ToolUse("fc_9", "", {"a": 1}, None, {"id": "fc_9"}),
    )


# Streams


def test_buffered_and_streamed_mean_the_same() -> None:
    events, response = streamed(sse(events_of(RICH)))
    assert response == decode(RICH)
    assert [event.block for event in events if isinstance(event, BlockEnd)] == list(response.message.content)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "The sky is blue."
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == "Let me look.So it is."
    arguments = [event for event in events if isinstance(event, ToolInputDelta)]
    assert {(event.id, event.name) for event in arguments} == {("call_1", "weather"), ("call_2", "weather")}
    assert "".join(event.json for event in arguments if event.id == "call_1") == '{"city":"Oslo"}'
    assert all(getattr(event, "text", "x") and getattr(event, "json", "x") for event in events)


def test_fed_byte_by_byte() -> None:
    stream = sse(events_of(RICH))
    assert streamed(stream, range(1, len(stream))) == streamed(stream)


@given(st.integers(0, 10**9))
def test_fed_in_random_pieces(seed: int) -> None:
    stream = sse(events_of(RICH))
    rng = random.Random(seed)
    assert streamed(stream, sorted(rng.sample(range(1, len(stream)), rng.randrange(30)))) == streamed(stream)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
item_values = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call", "web_search_call", "odd"]),
        "content": st.lists(st.fixed_dictionaries({"type": st.sampled_from(["output_text", "refusal"])}, optional={"text": json_values, "annotations": json_values}), max_size=2) | json_values,
        "summary": json_values,
        "arguments": json_values,
        "input": json_values,
        "call_id": json_values,
        "name": json_values,
        "id": json_values,
    },
)  # fmt: skip


@given(st.lists(item_values, max_size=4), json_values, json_values)
def test_no_answer_is_a_crash(output: list[JSON], usage: Any, state: Any) -> None:
    """Whatever a server says, it is an answer or one of our errors; streamed it is the same, and it can be sent back."""
    answer = reply(usage=usage, incomplete_details=state) | {"output": output}
    response = decode(answer)
    events = [
        {"type": "response.output_item.done", "output_index": place, "item": item} for place, item in enumerate(output)
    ]
    said, other = streamed(sse([*events, {"type": "response.completed", "response": answer}]))
    assert other == response
    assert [event.block for event in said if isinstance(event, BlockEnd)] == list(other.message.content)
    encode(HI, response.message)


@given(st.lists(st.dictionaries(st.sampled_from(["type", "item", "delta", "output_index", "response", "error"]), json_values | st.sampled_from(["response.output_item.added", "response.output_text.delta", "response.completed", "error"])), max_size=5))  # fmt: skip
def test_no_event_is_a_crash(events: list[JSON]) -> None:
    stream = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)
    with contextlib.suppress(ProviderError):
        streamed(stream)


@pytest.mark.parametrize(
    "stream",
    [
        events_of(RICH)[-1:],
        [event for event in events_of(RICH) if event["type"] != "response.output_item.done"],
        [event for event in events_of(RICH) if "delta" not in event["type"]],
        [*events_of(RICH)[:-1], {"type": "response.completed", "response": {**RICH, "output": []}}],
        [{**event, "output_index": None} for event in events_of(RICH)],
        [{**event, "output_index": 0} if "output_index" in event else event for event in events_of(RICH)],
        [event for event in events_of(RICH) if event["type"] != "response.output_item.added"],
        [{"type": "response.invented", "delta": "x"}, *events_of(RICH)],
    ],
    ids=[
        "end-only",
        "no-done",
        "no-deltas",
        "empty-end",
        "no-index",
        "index-stuck",
        "no-added",
        "unknown-event",
    ],
)
def test_streams_with_something_left_out(stream: list[JSON]) -> None:
    events, response = streamed(sse(stream))
    assert response == decode(RICH)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "The sky is blue."
    assert [event.block for event in events if isinstance(event, BlockEnd)] == list(response.message.content)


def test_stream_whose_items_are_never_told_whole() -> None:
    """The pieces are the answer then."""
    answer = reply(thought("Hm."), said("Hello", NOTE), called(), CUSTOM)
    kept = [event for event in events_of(answer)[:-1] if event["type"] != "response.output_item.done"]
    pieces = {"type": "response.custom_tool_call_input.delta", "output_index": 3, "delta": "SELECT 1"}
    _, response = streamed(sse([*kept, pieces, {"type": "response.completed", "response": {**answer, "output": []}}]))
    assert response.message.text == "Hello"
    assert response.message.thinking == "Hm."
    assert [call.input for call in response.message.tool_uses] == [{"city": "Oslo"}, {"input": "SELECT 1"}]


def test_items_that_end_out_of_order_keep_their_places() -> None:
    events = events_of(reply(SEARCH, said("Hello")))
    first_done = next(event for event in events if event["type"] == "response.output_item.done")
    events.remove(first_done)
    events.insert(-1, first_done)
    emitted, response = streamed(sse(events))
    assert response == decode(reply(SEARCH, said("Hello")))
    assert [event.block for event in emitted if isinstance(event, BlockEnd)] == list(response.message.content)


def test_oai_16_tool_only_stream() -> None:
    events, response = streamed(sse(events_of(reply(called()))[-1:]))
    assert [type(event) for event in events] == [BlockEnd, UsageUpdate]
    assert response.message.tool_uses[0].input == {"city": "Oslo"}
    assert response.stop_reason is StopReason.TOOL_USE


def test_end_without_its_last_blank_line() -> None:
    stream = sse(events_of(reply(said("Hello"))))
    assert streamed(stream[:-1])[1].message.text == "Hello"


def test_what_comes_behind_the_end_is_ignored() -> None:
    stream = sse([*events_of(reply(said("Hello"))), {"type": "error", "message": "late"}]) + b"data: [DONE]\n\n"
    assert streamed(stream)[1].message.text == "Hello"


QUOTA = {"code": "insufficient_quota", "message": "You exceeded your current quota."}


@pytest.mark.parametrize("after", [0, 4], ids=["first", "after-deltas"])
@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "sequence_number": 2, **QUOTA},
        {"type": "error", "error": {"type": "insufficient_quota", **QUOTA}},
        {"type": "response.failed", "response": {"status": "failed", "error": QUOTA}},
        {"type": "response.done", "response": {"status": "failed", "error": QUOTA}},
        {"type": "response.failed", "error": QUOTA},
        {"type": "oops", "error": QUOTA},
    ],
    ids=["oai-15-flat", "oai-15-nested", "oai-15-failed", "oai-15-done", "oai-15-bare", "oai-15-untyped"],
)
def test_errors_in_the_stream(event: JSON, after: int) -> None:
    decoder = provider().decoder()
    decoder.feed(sse(events_of(reply(said("Hello, you")))[:after]))
    with pytest.raises(RateLimited, match="quota") as caught:
        decoder.feed(sse([event]))
    assert caught.value.status is None
    assert not caught.value.retryable


@pytest.mark.parametrize("events", [0, 1, 4, -1])
def test_oai_15_stream_without_an_end(events: int) -> None:
    with pytest.raises(WireError, match="ended before") as caught:
        streamed(sse(events_of(reply(said("Hello")))[:events]))
    assert caught.value.retryable


def test_event_names_stand_in_for_types() -> None:
    lines = []
    for event in events_of(reply(said("Hello"))):
        kind = event.pop("type")
        lines.append(f"event: {kind}\ndata: {json.dumps(event)}\n\n")
    assert streamed("".join(lines).encode())[1].message.text == "Hello"


# What is sent


def test_oai_03_request() -> None:
    body = encode(system_prompt="Be brief.", tools=(make_tool(),))
    assert body["model"] == "gpt-test"
    assert body["input"] == [SYSTEM, user("Hi")]
    assert body["tools"] == [
        {
            "type": "function",
            "name": "weather",
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        }
    ]
    assert body.keys() == {"model", "input", "tools", "include", "store"}


def test_oai_03_history_pairs_calls_and_results() -> None:
    call = ToolUse("call_1", "weather", {"city": "Oslo"})
    found = items(HI, Message.assistant("I look.", call), Message.user(ToolResult("call_1", "Rain.")))
    assert found == [
        user("Hi"),
        {"type": "message", "role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        output("Rain."),
    ]


@pytest.mark.parametrize("prompt", [None, "", "  \n"])
def test_oai_03_no_system_prompt(prompt: str | None) -> None:
    assert encode(system_prompt=prompt)["input"] == [user("Hi")]


def test_oai_03_no_fields_of_others() -> None:
    tool = make_tool(
        strict=True,
        input_schema={"type": "object", "properties": {}, "additionalProperties": False},
        input_examples=[{}],
        defer_loading=True,
        allowed_callers=["code_execution"],
    )
    (definition,) = encode(tools=(tool,))["tools"]
    assert definition.keys() == {"type", "name", "description", "parameters", "strict"}
    assert definition["strict"] is True


OPTIONAL = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {}}, None),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, None),
        (OPTIONAL, False),
        ({"type": "object", "properties": {"a": {"type": "object"}}, "required": ["a"]}, False),
        (
            {
                "type": "object",
                "properties": {"a": {"anyOf": [OPTIONAL, {"type": "null"}]}},
                "required": ["a"],
            },
            False,
        ),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, False),
        ({"type": "object"}, False),
    ],
)
def test_oai_03_optional_parameters_stay_optional(schema: JSON, strict: bool | None) -> None:
    """Left out, `strict` counts as true, and makes every parameter required."""
    (definition,) = encode(tools=(make_tool(input_schema=schema),))["tools"]
    assert definition.get("strict") is strict
    assert definition["parameters"] == {"properties": {}, **schema}


def test_oai_04_media() -> None:
    found = items(
        Message.user(
            "Look:",
            Image("image/png", b"png"),
            Image("image/*", uri="https://sky.test/a.png"),
            Image("image/png", uri="file-1"),
            Audio("audio/wav", b"wav"),
            Video("video/mp4", b"mp4"),
            Image("image/tiff", b"tiff"),
            Image("image/png"),
            Document("audio/mpeg", data=b"mp3"),
        )
    )
    assert found == [
        user(
            "Look:",
            {"type": "input_image", "image_url": "data:image/png;base64,cG5n"},
            {"type": "input_image", "image_url": "https://sky.test/a.png"},
            {"type": "input_image", "file_id": "file-1"},
            "Unsupported audio (audio/wav)",
            "Unsupported video (video/mp4)",
            "Unsupported image (image/tiff)",
            "Unsupported image (image/png)",
            "Unsupported document (audio/mpeg)",
        )
    ]


@pytest.mark.parametrize(
    ("document", "part"),
    [
        (Document("application/pdf", data=b"pdf"), {"filename": "document.pdf", "file_data": "data:application/pdf;base64,cGRm"}),
        (Document("text/plain", data=b"a", name="a.log"), {"filename": "a.log", "file_data": "data:text/plain;base64,YQ=="}),
        (Document("text/markdown", data=b"a"), {"filename": "document.md", "file_data": "data:text/markdown;base64,YQ=="}),
        (Document("application/pdf", "data:application/pdf;base64,cGRm"), {"filename": "document.pdf", "file_data": "data:application/pdf;base64,cGRm"}),
        (Document("application/pdf", "https://sky.test/a.pdf"), {"file_url": "https://sky.test/a.pdf"}),
        (Document("application/pdf", "file-1"), {"file_id": "file-1"}),
    ],
)  # fmt: skip
def test_oai_04_documents(document: Document, part: JSON) -> None:
    assert items(Message.user(document)) == [user({"type": "input_file", **part})]


def test_media_in_a_result() -> None:
    result = ToolResult("call_1", (Text("A map:"), Image("image/png", b"png"), Audio("audio/wav", b"wav")))
    (found,) = items(Message.user(result))
    assert found["output"] == [
        {"type": "input_text", "text": "A map:"},
        {"type": "input_image", "image_url": "data:image/png;base64,cG5n"},
        {"type": "input_text", "text": "Unsupported audio (audio/wav)"},
    ]


def test_media_of_an_answer_is_named() -> None:
    found = items(HI, Message.assistant(Image("image/png", b"png")))
    assert found[1]["content"] == "Unsupported image (image/png)"


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.x.ai", "https://api.x.ai/v1/responses"),
        ("https://api.x.ai/", "https://api.x.ai/v1/responses"),
        ("https://api.x.ai/v1", "https://api.x.ai/v1/responses"),
        ("https://me.openai.azure.com/openai/v1/", "https://me.openai.azure.com/openai/v1/responses"),
        ("http://localhost:8080", "http://localhost:8080/v1/responses"),
    ],
)
async def test_oai_06_other_servers(base_url: str, url: str) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=reply(said("Hello")))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        response = await provider(base_url=base_url, http_client=client).complete(Request(messages=(HI,)))
    assert response.message.text == "Hello"
    assert str(seen[0].url) == url
    assert seen[0].headers["authorization"] == "Bearer key"


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (401, {"error": {"type": "invalid_request_error", "message": "Wrong key."}}, AuthenticationError, "invalid_request_error: Wrong key."),
        (500, "out of order", ProviderError, "500.*out of order"),
    ],
    ids=["oai-16-parsed", "oai-16-raw"],
)  # fmt: skip
async def test_other_statuses(status: int, body: JSON | str, error: type[ProviderError], words: str) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=body if isinstance(body, str) else json.dumps(body))

    async def emit(*_: Any) -> None:
        pytest.fail("nothing was to be emitted")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(error, match=words) as caught:
            await provider(http_client=client).stream(Request(messages=(HI,)), emit)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "options",
    [
        {"store": True},
        {"store": False},
        {"include": ("web_search_call.action.sources",)},
        {"parallel_tool_calls": False},
        {"previous_response_id": "resp_0"},
    ],
    ids=["oai-07-store", "oai-07-no-store", "oai-07-include", "oai-07-parallel", "oai-07-previous"],
)
def test_options_are_sent(options: JSON) -> None:
    body = encode(options=options)
    for field, value in options.items():
        sent = body[field][: len(value)] if isinstance(value, tuple) else body[field]
        assert sent == (list(value) if isinstance(value, tuple) else value)


NATIVE = make_tool("sql", native={"openai": {"type": "custom", "name": "sql"}})


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("weather", {"type": "function", "name": "weather"}),
        ("sql", {"type": "custom", "name": "sql"}),
        ("web_search", {"type": "web_search"}),
        ("other", {"type": "function", "name": "other"}),
    ],
)
def test_oai_07_tool_choice(choice: str, sent: Any) -> None:
    body = encode(tools=(make_tool(), NATIVE), tool_choice=choice, options={"web_search": True})
    assert body["tool_choice"] == sent


def test_oai_08_output_cap() -> None:
    assert "max_output_tokens" not in encode()
    assert encode(max_output_tokens=99)["max_output_tokens"] == 99


@pytest.mark.parametrize(
    ("cap", "extra", "expected"),
    [(99, 50, 50), (99, 500, 99), (99, "500", 99), (99, None, 99), (None, 500, 500)],
    ids=["oai-08-lower", "oai-08-higher", "text", "null", "none"],
)
def test_oai_08_extra_body_may_lower_the_cap(cap: int | None, extra: Any, expected: int) -> None:
    by = {"extra_body": {"max_output_tokens": extra}}
    assert encode(max_output_tokens=cap, options=by)["max_output_tokens"] == expected


SEALED = "reasoning.encrypted_content"


@pytest.mark.parametrize(
    ("options", "include", "store"),
    [
        ({}, [SEALED], False),
        ({"include": ("logprobs", "sources")}, ["logprobs", "sources", SEALED], False),
        ({"include": (SEALED, "sources")}, [SEALED, "sources"], False),
        ({"store": False, "previous_response_id": "resp_0"}, [SEALED], False),
        ({"store": True}, None, True),
        ({"store": True, "include": ("sources",)}, ["sources"], True),
        ({"previous_response_id": "resp_0"}, None, None),
        ({"model": "gpt-4o-mini"}, None, False),
        ({"model": "ft:gpt-4.1:me"}, None, False),
        ({"model": "gpt-5-chat-latest"}, None, False),
    ],
)
def test_oai_09_sealed_reasoning(options: JSON, include: list[str] | None, store: bool | None) -> None:
    """Asked for where the server keeps nothing, unless the model has none: then it refuses to be asked."""
    body = encode(options=options)
    assert body.get("include") == include
    assert body.get("store") is store


def answer_of(*sent: JSON, **fields: Any) -> Message:
    return decode(reply(*sent, **fields)).message


@pytest.mark.parametrize("options", [{"store": True}, {"previous_response_id": "resp_0"}])
def test_oai_09_raw_reasoning_is_not_echoed(options: JSON) -> None:
    """Nor are the ids of what followed it: a server that knows them would miss the reasoning."""
    message = attrs.evolve(
        answer_of(thought("Hm."), said("I look.", phase="commentary"), called()), provider_state=None
    )
    assert items(HI, message, **options)[1:] == [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I look."},
        {key: value for key, value in called().items() if key != "id"},
    ]


def test_a_model_that_does_not_reason_gets_no_reasoning() -> None:
    """A conversation that a reasoning model has begun goes on with GPT-4.1; answers without reasoning return as they came."""
    reasoned = answer_of(thought("Hm."), said("I look.", phase="commentary"), called())
    plain = answer_of(SEARCH, said("Found.", item_id="msg_2"))
    sent = items(HI, reasoned, plain, model="gpt-4.1")[1:]
    assert sent == [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I look."},
        {key: value for key, value in called().items() if key != "id"},
        SEARCH,
        said("Found.", item_id="msg_2"),
    ]
    assert items(HI, reasoned)[1]["type"] == "reasoning"


def test_oai_10_a_remembered_id_alone_does_not_chain() -> None:
    body = encode(HI, answer_of(said("Hello")), Message.user("More"))
    assert "previous_response_id" not in body
    assert len(body["input"]) == 3


def test_oai_10_chains_where_the_server_keeps_the_answers() -> None:
    history = (HI, answer_of(said("Hello")), Message.user("More"))
    body = encode(*history, options={"store": True}, system_prompt="Be brief.")
    assert body["previous_response_id"] == "resp_1"
    assert body["input"] == [user("More")]
    assert body["instructions"] == "Be brief."


def test_oai_10_an_explicit_id_is_sent_and_wins() -> None:
    history = (HI, answer_of(said("Hello")), Message.user("More"))
    body = encode(*history, options={"previous_response_id": "resp_0"})
    assert body["previous_response_id"] == "resp_0"
    assert len(body["input"]) == 3


def test_oai_10_an_explicit_id_of_the_history() -> None:
    history = (HI, answer_of(said("Hello")), Message.user("More"))
    body = encode(*history, options={"previous_response_id": "resp_1"})
    assert body["previous_response_id"] == "resp_1"
    assert body["input"] == [user("More")]


def test_oai_10_goes_on_from_what_followed_the_explicit_id() -> None:
    chained: JSON = {"previous_response_id": "resp_0"}
    first = decode(reply(called()), **chained).message
    second = streamed(sse(events_of(reply(said("Rain."), id="resp_2"))), **chained)[1].message
    history = (HI, first, Message.user(ToolResult("call_1", "Rain.")))
    body = encode(*history, options=chained)
    assert (body["previous_response_id"], body["input"]) == ("resp_1", [output("Rain.")])
    body = encode(*history, second, Message.user("More"), options=chained)
    assert (body["previous_response_id"], body["input"]) == ("resp_2", [user("More")])


OTHER = attrs.evolve(answer_of(said("Hello"), id="resp_2"), origin="another")
CUT = attrs.evolve(answer_of(said("Hello"), id="resp_2"), interrupted=True)


@pytest.mark.parametrize(
    "last",
    [OTHER, CUT, answer_of(said("Hello"), id="resp_2", store=False), answer_of(said("Hello"), id=None)],
    ids=["another-origin", "interrupted", "not-kept", "no-id"],
)
def test_oai_10_chains_from_the_last_completed_answer(last: Message) -> None:
    body = encode(HI, answer_of(called()), Message.user(ToolResult("call_1", "1")), last, HI, options={"store": True})
    assert body["previous_response_id"] == "resp_1"
    assert [item.get("role", item["type"]) for item in body["input"]] == [
        "function_call_output",
        "assistant",
        "user",
    ]
    assert body["input"][1] == {"type": "message", "role": "assistant", "content": "Hello"}


def test_oai_10_nothing_kept_means_no_chain_beyond_the_explicit_id() -> None:
    options = {"previous_response_id": "resp_0", "store": False}
    message = decode(reply(thought("Hm."), said("Hello")), **options).message
    body = encode(HI, message, Message.user("More"), options=options)
    assert body["previous_response_id"] == "resp_0"
    assert body["input"] == [user("Hi"), thought("Hm."), said("Hello"), user("More")]


def test_oai_11_a_tool_loop_sends_everything_back() -> None:
    message = answer_of(thought("Hm."), called())
    assert message.text == ""
    found = items(HI, message, Message.user(ToolResult("call_1", "Rain.")))
    assert found == [user("Hi"), thought("Hm."), called(), output("Rain.")]


def test_oai_11_an_answer_goes_back_as_it_came() -> None:
    sent = items(HI, decode(RICH).message)[1:]
    unsealed = RICH["output"][3]
    assert unsealed["content"], "reasoning in plain text goes back too"
    assert sent == RICH["output"]


def test_arguments_go_back_letter_by_letter_unless_they_were_changed() -> None:
    message = answer_of(called('{ "city": "Oslo", "n": 1.0 }'))
    assert items(HI, message)[1]["arguments"] == '{ "city": "Oslo", "n": 1.0 }'
    changed = attrs.evolve(message, content=(attrs.evolve(message.tool_uses[0], input={"city": "Bonn"}),))
    assert items(HI, changed)[1]["arguments"] == '{"city":"Bonn"}'


def test_unsealed_reasoning_stays_here() -> None:
    """The server would look it up and not find it; the ids beside it would tell that it is missing."""
    assert items(HI, answer_of(thought("Hm.", sealed=None), said("Hello"), called()))[1:] == [
        {"type": "message", "role": "assistant", "content": "Hello"},
        {key: value for key, value in called().items() if key != "id"},
    ]


@pytest.mark.parametrize("rest", [[], [said(" ")]], ids=["nothing", "blank"])
def test_reasoning_without_what_it_led_to_stays_here(rest: list[JSON]) -> None:
    assert items(HI, answer_of(said("Hello"), thought("Hm."), *rest), HI) == [
        user("Hi"),
        said("Hello"),
        user("Hi"),
    ]


def test_an_interrupted_answer_is_its_text() -> None:
    message = attrs.evolve(answer_of(thought("Hm."), said("Hel"), SEARCH, called()), interrupted=True)
    assert items(HI, message)[1:] == [{"type": "message", "role": "assistant", "content": "Hel"}]


def test_parts_of_a_message_stay_together_and_messages_apart() -> None:
    two = said("a", NOTE) | {"content": [*said("a", NOTE)["content"], *said("b")["content"]]}
    message = answer_of(two, said("c", item_id="msg_2"))
    assert message.text == "abc"
    assert items(HI, message)[1:] == [two, said("c", item_id="msg_2")]
    assert [item["content"] for item in items(HI, attrs.evolve(message, provider_state=None), store=True)[1:]] == [
        "ab",
        "c",
    ]


def test_a_program_that_waits_gets_its_results() -> None:
    caller = {"type": "program", "caller_id": "prog_1"}
    call = called(caller=caller, namespace="tools")
    assert items(HI, answer_of(call), Message.user(ToolResult("call_1", "1")))[1:] == [
        call,
        {**output("1"), "caller": caller},
    ]


def test_oai_12_search_and_raw_tools_follow_functions() -> None:
    raw = {"type": "code_interpreter", "container": {"type": "auto"}}
    kinds = [
        tool["type"]
        for tool in encode(tools=(make_tool(),), options={"web_search": True, "server_tools": [raw]})["tools"]
    ]
    assert kinds == ["function", "web_search", "code_interpreter"]
    assert encode(options={"server_tools": (raw,)})["tools"] == [raw]


@pytest.mark.parametrize(
    ("web_search", "sent"),
    [
        (False, None),
        (True, [{"type": "web_search"}]),
        ({}, [{"type": "web_search"}]),
        ({"type": "web_search_preview", "search_context_size": "low"}, [{"type": "web_search_preview", "search_context_size": "low"}]),
    ],
)  # fmt: skip
def test_oai_12_web_search(web_search: Any, sent: Any) -> None:
    assert encode(options={"web_search": web_search}).get("tools") == sent


def test_oai_12_extra_body_is_merged_last() -> None:
    body = encode(
        tools=(make_tool(),),
        options={"extra_body": {"tools": [], "store": None, "reasoning": {"effort": "low"}}},
    )
    assert body["tools"] == []
    assert body["store"] is None
    assert body["reasoning"] == {"effort": "low"}


def test_native_definitions_replace_ours_on_this_wire_only() -> None:
    other = make_tool(native={"anthropic": {"type": "bash"}})
    assert [tool["type"] for tool in encode(tools=(NATIVE, other))["tools"]] == ["custom", "function"]


@pytest.mark.parametrize("stream", [True, False])
def test_stream_is_asked_for(stream: bool) -> None:
    assert encode(stream=stream).get("stream") is (True if stream else None)


def test_blank_text_and_empty_messages_are_not_sent() -> None:
    found = items(Message.user(" \n", "Hi", ""), Message.assistant(" "), Message.user("  "), Message.assistant("Yes"))
    assert found == [user("Hi"), {"type": "message", "role": "assistant", "content": "Yes"}]


def test_results_and_text_of_one_message() -> None:
    found = items(HI, answer_of(called()), Message.user("And", ToolResult("call_1", "1"), "now?"))
    assert found[2:] == [output("1"), user("And", "now?")]


def test_opaque_blocks_go_to_their_provider_only() -> None:
    approval = {"type": "mcp_approval_response", "approval_request_id": "r", "approve": True}
    file = {"type": "input_file", "file_id": "file-1"}
    blocks = (
        Opaque("openai", approval),
        Opaque("openai", file),
        Opaque("anthropic", {"type": "x"}),
        Text("Go"),
    )
    assert items(Message.user(*blocks)) == [approval, user(file, "Go")]


def test_what_another_provider_left_is_not_sent() -> None:
    foreign = Message(
        "assistant",
        (
            Thinking("Hm.", "sig"),
            Text("Hello", (NOTE,), {"id": "x"}),
            ServerToolUse("srv_1", "web_search"),
            ServerToolResult("srv_1", {"type": "web_search_tool_result"}),
            ToolUse("bad id!", "weather", {}, None, {"caller": {"type": "x"}}),
        ),
        provider="anthropic",
        origin="elsewhere",
        provider_state={"container_id": "c"},
    )
    found = items(HI, foreign, Message.user(ToolResult("bad id!", "1")))
    assert found[1] == {"type": "message", "role": "assistant", "content": "Hm.Hello"}
    assert found[2].keys() == {"type", "call_id", "name", "arguments"}
    assert found[2]["call_id"] == found[3]["call_id"] != "bad id!"


def test_same_request_same_bytes_and_the_prefix_only_grows() -> None:
    history = (
        HI,
        decode(RICH).message,
        Message.user(ToolResult("call_1", "1"), ToolResult("call_2", "2"), ToolResult("c1", "3")),
    )
    longer = (*history, answer_of(thought("Hm."), said("Done.", item_id="msg_9")), Message.user("Thanks"))

    def body(messages: tuple[Message, ...]) -> bytes:
        request = Request(messages=messages, system_prompt="Be brief.", tools=(make_tool(),))
        return provider().encode(request, stream=True).body

    assert body(history) == body(history)
    short, long = (json.loads(body(messages))["input"] for messages in (history, longer))
    assert [json.dumps(item) for item in long[: len(short)]] == [json.dumps(item) for item in short]


def test_the_key_is_shown_nowhere() -> None:
    call = provider(api_key="sk-secret").encode(Request(messages=(HI,)), stream=False)
    assert call.headers == {"authorization": "Bearer sk-secret"}
    assert "secret" not in repr(call) + repr(provider(api_key="sk-secret")) + call.body.decode()


@pytest.mark.parametrize("chained", [False, True])
async def test_ps_01_state_goes_with_the_conversation(chained: bool) -> None:
    """The last answer's state is on its message and in the result; where the user asked for it, each turn continues there."""
    answers = [reply(called()), reply(said("Rain."), id="resp_2")]
    bodies: list[JSON] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=answers[len(bodies) - 1])

    tool = make_tool(execute=lambda _arguments, _context: "Rain.", inline=True)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        model = provider(http_client=client, store=chained or None)
        result = await alloy_trio.run("Weather?", provider=model, tools=[tool])
    assert result.metadata["provider_state"] == {"response_id": "resp_2"}
    assert [message.provider_state for message in result.messages[1::2]] == [
        {"response_id": "resp_1"},
        {"response_id": "resp_2"},
    ]
    assert bodies[1].get("previous_response_id") == ("resp_1" if chained else None)
    assert len(bodies[1]["input"]) == (1 if chained else 3)


# streams of servers that number their items badly


def wire_events(*events: dict[str, Any]) -> Any:
    decoder = OpenAI(model="m", api_key="k").decoder()
    for event in events:
        decoder.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    return decoder.finish()


def a_call(number: int, arguments: str = "") -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{number}",
        "call_id": f"c{number}",
        "name": "add",
        "arguments": arguments,
    }


def test_an_item_that_is_done_at_another_index_is_the_same_item() -> None:
    done = {"type": "response.output_item.done", "output_index": 1, "item": a_call(1, '{"a": 1}')}
    whole = {"type": "response.completed", "response": {"status": "completed", "output": [a_call(1, '{"a": 1}')]}}
    added = {"type": "response.output_item.added", "output_index": 0, "item": a_call(1)}
    assert [(c.id, c.input) for c in wire_events(added, done, whole).message.tool_uses] == [("c1", {"a": 1})]


def test_items_without_indices_are_told_apart_by_their_ids() -> None:
    kinds = ("response.output_item.added", "response.function_call_arguments.delta", "response.output_item.done")
    events: list[dict[str, Any]] = [{"type": kinds[0], "item": a_call(n)} for n in (1, 2)]
    events += [{"type": kinds[1], "item_id": f"fc_{n}", "delta": f'{{"a": {n}}}'} for n in (2, 1)]
    events += [{"type": kinds[2], "item": a_call(n)} for n in (1, 2)]
    events += [{"type": "response.completed", "response": {"status": "completed", "output": []}}]
    assert [(c.id, c.input) for c in wire_events(*events).message.tool_uses] == [("c1", {"a": 1}), ("c2", {"a": 2})]


def test_items_that_begin_behind_the_first_place_are_not_doubled() -> None:
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.added", "output_index": 2, "item": a_call(1)},
        {"type": "response.completed", "response": {"status": "completed", "output": [a_call(1, "{}")]}},
    ]
    assert [c.id for c in wire_events(*events).message.tool_uses] == ["c1"]


def test_no_tool_choice_without_tools() -> None:
    request = Request(messages=(Message.user("hi"),), tool_choice="any")
    assert "tool_choice" not in json.loads(OpenAI(model="m", api_key="k").encode(request, stream=False).body)


def test_usage_is_told_as_soon_as_it_is_known() -> None:
    """With the end of the stream, and before where a server says it then; after the blocks, and never empty."""
    answer = reply(said("Hello"), SEARCH)
    events = streamed(sse(events_of(answer)))[0]
    update = UsageUpdate(Usage(18, 9, cache_read_input_tokens=12, reasoning_tokens=4, server_tool_calls=1))
    assert [event for event in events if isinstance(event, UsageUpdate)] == [events[-1]] == [update]
    stream = events_of(answer)
    early = {"type": "response.in_progress", "response": {"usage": {"input_tokens": 30, "output_tokens": 0}}}
    stream[1:1] = [{"type": "response.in_progress", "response": {"usage": None}}, early, early]
    events = streamed(sse(stream))[0]
    assert [event for event in events if isinstance(event, UsageUpdate)] == [UsageUpdate(Usage(30)), update]
    assert not any(isinstance(event, UsageUpdate) for event in streamed(sse(events_of(reply(usage=None))))[0])


@pytest.mark.parametrize(
    ("options", "fees"),
    [
        ({}, False),
        ({"base_url": "https://elsewhere.test"}, False),
        ({"web_search": True}, True),
        ({"server_tools": [{"type": "file_search"}]}, True),
        ({"server_tools": [{"type": "mcp"}, {"type": "tool_search"}, {"type": "custom"}]}, False),
        ({"extra_body": {"tools": [{"type": "code_interpreter"}]}}, True),
        ({"extra_body": {"tools": [{"type": "function"}]}, "web_search": {"search_context_size": "low"}}, False),
    ],
)
def test_terms(options: JSON, fees: bool) -> None:
    assert provider(**options).terms == Terms(enforces_cap=True, runs_on=True, server_tools=fees)


CLOSED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (CLOSED, True),
        (CLOSED | {"additionalProperties": False}, True),
        (CLOSED | {"properties": {"a": CLOSED | {"title": "A"}}}, True),
        (CLOSED | {"properties": {"a": {"type": ["array", "null"], "items": CLOSED, "minItems": 1}}}, True),
        (CLOSED | {"properties": {"a": {"anyOf": [CLOSED, {"type": "null"}]}}}, True),
        (CLOSED | {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"enum": [1]}}}, True),
        (CLOSED | {"properties": {"default": {"type": "string"}}, "required": ["default"]}, True),
        (CLOSED | {"required": []}, False),
        (CLOSED | {"properties": {"a": CLOSED | {"required": []}}}, False),
        (CLOSED | {"additionalProperties": True}, False),
        (CLOSED | {"properties": {"a": {"type": "object"}}}, False),
        (CLOSED | {"properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}}}, False),
        (CLOSED | {"properties": {"a": {"oneOf": [{"type": "string"}]}}}, False),
        (CLOSED | {"properties": {"a": {"$ref": "#/$defs/b", "title": "A"}}, "$defs": {"b": {"enum": [1]}}}, False),
        (CLOSED | {"properties": {"a": {}}}, False),
        (CLOSED | {"properties": {"a": {"type": "string", "format": "date-time", "pattern": "^(a|b)$"}}}, True),
        (CLOSED | {"properties": {"a": {"type": "string", "format": "uri"}}}, False),
        (CLOSED | {"properties": {"a": {"type": "string", "pattern": "^(?!x)y"}}}, False),
        ({"anyOf": [CLOSED]}, False),
        ({}, False),
    ],
)
def test_the_answers_schema_is_strict_where_that_says_the_same(schema: JSON, strict: bool) -> None:
    form = encode(output_schema=schema)["text"]["format"]
    assert (form["type"], form["name"], form["strict"]) == ("json_schema", "output", strict)
    if not strict:
        assert form["schema"] == schema
    else:
        assert form["schema"]["additionalProperties"] is False
        assert '"additionalProperties":true' not in json.dumps(form["schema"])


def test_the_answers_schema_beside_what_the_user_says_of_text() -> None:
    by = {"extra_body": {"text": {"verbosity": "low"}}}
    text = encode(output_schema=CLOSED, options=by)["text"]
    assert text["verbosity"] == "low"
    assert text["format"]["schema"] == CLOSED | {"additionalProperties": False}
    mine = {"text": {"format": {"type": "text"}}}
    assert encode(output_schema=CLOSED, options={"extra_body": mine})["text"] == mine["text"]
    assert "text" not in encode()


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        ("gpt-6-astra", True),
        ("gpt-4o", True),
        ("ft:gpt-4.1-mini:me", True),
        ("grok-4.3", True),
        ("gpt-4", False),
        ("gpt-4-turbo", False),
        ("ft:gpt-3.5-turbo:me", False),
        ("o1-mini", False),
    ],
)
def test_which_models_hold_to_a_schema(model: str, takes: bool) -> None:
    assert provider(model=model).native_output is takes
    assert provider(model=model).takes_schema({"type": "object"}) is takes


def test_stale_answers_go_without_reasoning_and_ids() -> None:
    """What was said before the conversation was changed: text and calls; what needs its reasoning stays here."""
    before = decode(reply(thought("Hm"), SEARCH, said("I look.", NOTE, phase="commentary"), called())).message
    result, again = Message.user(ToolResult("call_1", "Rain.")), attrs.evolve(HI, epoch=1)
    fresh = attrs.evolve(decode(reply(thought("So"), said("Wet."))).message, epoch=1)
    assert items(HI, before, result, again, fresh, HI) == [
        user("Hi"),
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I look."},
        {key: value for key, value in called().items() if key != "id"},
        output("Rain."),
        user("Hi"),
        thought("So"),
        said("Wet."),
        user("Hi"),
    ]


def test_oai_10_nothing_continues_from_a_stale_response() -> None:
    """The server has the conversation as it was: it is sent anew, and continued from the first answer after that."""
    stale = decode(reply(said("Old."))).message
    changed = attrs.evolve(Message.user("In short: …"), epoch=1)
    by = {"store": True}
    body = encode(HI, stale, changed, HI, options=by)
    assert "previous_response_id" not in body
    old = {"type": "message", "role": "assistant", "content": "Old."}
    assert body["input"] == [user("Hi"), old, user("In short: …"), user("Hi")]
    fresh = attrs.evolve(decode(reply(said("New."), id="resp_2")).message, epoch=1)
    body = encode(HI, stale, changed, fresh, HI, options=by)
    assert (body["previous_response_id"], body["input"]) == ("resp_2", [user("Hi")])
    stale_child = decode(reply(said("Old.")), previous_response_id="resp_0").message
    body = encode(HI, stale_child, changed, options={"previous_response_id": "resp_0"})
    assert (body["previous_response_id"], len(body["input"])) == ("resp_0", 3)


def test_ps_01_a_state_that_was_given_back_is_where_a_chained_conversation_goes_on() -> None:
    """`provider_state=` of a run: only new messages are sent, and from the first answer on its own state counts."""
    chained = OpenAI(model="m", api_key="k", store=True)
    question = Message.user("And now?")
    request = Request(messages=(question,), provider_state={"response_id": "resp_1"})
    body = json.loads(chained.encode(request, stream=False).body)
    assert (body["previous_response_id"], len(body["input"])) == ("resp_1", 1)
    answer = Message("assistant", "Well.", origin=chained.origin, provider_state={"response_id": "resp_2"})
    later = attrs.evolve(request, messages=(question, answer, Message.user("Then?")))
    assert json.loads(chained.encode(later, stream=False).body)["previous_response_id"] == "resp_2"
    stateless = OpenAI(model="m", api_key="k")
    assert "previous_response_id" not in json.loads(stateless.encode(request, stream=False).body)


async def test_a_question_beside_a_chained_conversation_continues_nothing() -> None:
    """A summary is asked of what it holds, not of all that the server has kept; and it is not kept itself."""
    asked: list[dict[str, Any]] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]}]
        return httpx.Response(200, json={"id": "r2", "status": "completed", "output": output, "usage": {}})

    class Ask(alloy_trio.Middleware):
        async def before_completion(self, state: alloy_trio.RunState) -> None:
            await state.ask(Request(messages=(Message.user("What so far?"),)))

    async with httpx.AsyncClient(transport=httpx.MockTransport(reply)) as client:
        provider = OpenAI(model="m", api_key="k", previous_response_id="r1", http_client=client)
        await alloy_trio.run("Go", provider=provider, middleware=[Ask()])
    assert [body.get("previous_response_id") for body in asked] == [None, "r1"]
    assert [body.get("store") for body in asked] == [False, None]
