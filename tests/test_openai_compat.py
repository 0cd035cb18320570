"""The Chat Completions API: what is sent, what comes back whole or streamed, and that both ways mean the same."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import (
    Audio,
    AuthenticationError,
    BadRequest,
    ContextTooLong,
    Document,
    Image,
    InvalidOption,
    Message,
    Opaque,
    Overloaded,
    ProviderError,
    RateLimited,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    Video,
    WireError,
)
from alloy_trio.events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import OpenAICompat, Quirks, Request, Response, StopReason, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.providers._vendors import VENDORS, quirks_for
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

JSON = dict[str, Any]

HI = Message.user("Hi")
PNG = Image("image/png", b"pixels")
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cGl4ZWxz"}}
USAGE = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def provider(**options: Any) -> OpenAICompat:
    return OpenAICompat(model="model-1", **options)


def at(host: str, **options: Any) -> OpenAICompat:
    return provider(base_url=f"https://{host}/v1", **options)


def quirky(**flags: Any) -> OpenAICompat:
    return provider(quirks=Quirks(**flags))


def add(**options: Any) -> Tool:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    return Tool(name="add", description="Adds.", input_schema=schema, execute=len, **options)


def sent(*messages: Message, by: OpenAICompat | None = None, stream: bool = False, **request: Any) -> JSON:
    call = (by or provider()).encode(Request(messages=messages or (HI,), **request), stream=stream)
    body: JSON = json.loads(call.body)
    return body


def sent_messages(*messages: Message, by: OpenAICompat | None = None) -> list[JSON]:
    out: list[JSON] = sent(*messages, by=by)["messages"]
    return out


def function(name: str, arguments: Any, call_id: str | None = "call_a", **fields: Any) -> JSON:
    head = {} if call_id is None else {"id": call_id}
    return {**head, "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def answer(message: JSON, finish_reason: str | None = "stop", **fields: Any) -> JSON:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "model-1-0613"}
    return {**head, "choices": [choice], "usage": USAGE, **fields}


def decoded(body: Any, by: OpenAICompat | None = None) -> Response:
    return (by or provider()).decode(json.dumps(body).encode())


def chunk(delta: JSON | None = None, finish_reason: str | None = None, **fields: Any) -> JSON:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason, "logprobs": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "model-1-0613"}
    return {**head, "choices": [choice], **fields}


def end(finish_reason: str = "stop", **fields: Any) -> JSON:
    return chunk({}, finish_reason, **fields)


def calls(*deltas: JSON) -> JSON:
    return chunk({"tool_calls": list(deltas)})


def fragment(index: int | None, arguments: Any, call_id: str | None = None, name: str | None = None) -> JSON:
    head = {"index": index, "id": call_id} if index is not None else {"id": call_id}
    named = {"name": name} if name is not None else {}
    return {k: v for k, v in head.items() if v is not None} | {"function": {**named, "arguments": arguments}}


def sse(chunks: Iterable[JSON], *, done: bool = True) -> bytes:
    data = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks)
    return (data + "data: [DONE]\n\n" * done).encode()


def stream(data: bytes, *, size: int | None = None, by: OpenAICompat | None = None) -> tuple[list[Any], Response]:
    decoder = (by or provider()).decoder()
    cuts = range(0, len(data), size or len(data) or 1)
    events = [event for cut in cuts for event in decoder.feed(data[cut : cut + (size or len(data))])]
    return events, decoder.finish()


def streamed(*chunks: JSON, by: OpenAICompat | None = None) -> Response:
    """Return what the chunks amount to; on the way, check that events and cuts tell the same."""
    data = sse(chunks)
    events, response = stream(data, by=by)
    again, same = stream(data, size=1, by=by)
    assert (again, same) == (events, response)
    assert [event.block for event in events if isinstance(event, BlockEnd)] == list(response.message.content)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == response.message.text
    thoughts = "".join(block.text for block in response.message.content if isinstance(block, Thinking))
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == thoughts
    return response


def inputs(response: Response) -> list[tuple[str, str, JSON]]:
    return [(call.id, call.name, call.input) for call in response.message.tool_uses]


def exchange(first: Response, *results: ToolResult, by: OpenAICompat) -> JSON:
    """Return the assistant's message as the next request has it."""
    messages = [HI, first.message, Message("user", results)] if results else [HI, first.message, HI]
    (message,) = [m for m in sent_messages(*messages, by=by) if m["role"] == "assistant"]
    return message


# What is sent


def test_cpt_01_request() -> None:
    """The system message is first, tools are nested under `function`, results have the role tool and the call's id."""
    call = ToolUse("call_1", "add", {"a": 1})
    body = sent(
        HI,
        Message.assistant("Adding.", call),
        Message.user(ToolResult("call_1", "2"), "And now?"),
        system_prompt="Be brief.",
        tools=(add(),),
    )
    assert body["model"] == "model-1"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Adding.", "tool_calls": [function("add", '{"a":1}', "call_1")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "user", "content": "And now?"},
    ]
    parameters = add().input_schema
    assert body["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": parameters}}
    ]
    assert "stream" not in body


def test_cpt_01_null_content() -> None:
    """A message with calls and no text has null content, in both directions."""
    response = decoded(answer({"content": None, "tool_calls": [function("add", '{"a":1}')]}, "tool_calls"))
    assert response.message.content == (ToolUse("call_a", "add", {"a": 1}),)
    assert response.stop_reason is StopReason.TOOL_USE
    assert exchange(response, ToolResult("call_a", "2"), by=provider())["content"] is None


def test_cpt_01_text_and_call() -> None:
    message = {"content": "Adding.", "tool_calls": [function("add", '{"a":1}'), function("add", '{"a":2}', "call_b")]}
    response = decoded(answer(message, "tool_calls"))
    assert response.message.content == (
        Text("Adding."),
        ToolUse("call_a", "add", {"a": 1}),
        ToolUse("call_b", "add", {"a": 2}),
    )
    assert (response.message.provider, response.message.model) == ("openai_compat", "model-1-0613")
    assert response.message.origin == provider().origin
    assert response.usage == Usage(input_tokens=12, output_tokens=5)
    assert response.metadata == {}


def test_cpt_02_address_and_key() -> None:
    by = provider(base_url="https://llm.test/api/", chat_path="/chat?version=2", api_key="a-key")
    call = by.encode(Request(messages=(HI,)), stream=False)
    assert by.base_url + call.path == "https://llm.test/api/chat?version=2"
    assert call.headers == {"authorization": "Bearer a-key"}
    local = provider()
    assert local.base_url == "http://localhost:11434/v1"
    assert local.encode(Request(messages=(HI,)), stream=True).path == "/chat/completions"
    assert local.encode(Request(messages=(HI,)), stream=True).headers == {}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"include_usage": True}),
        ({"include_usage": False}, None),
        ({"extra_body": {"stream_options": False}}, None),
        ({"extra_body": {"stream_options": {"include_usage": False, "x": 1}}}, {"include_usage": False, "x": 1}),
        ({"base_url": "https://api.mistral.ai/v1"}, None),
    ],
    ids=["cpt-06 default", "cpt-06 option", "cpt-06 False", "cpt-06 own value", "mistral refuses it"],
)
def test_cpt_06_stream_options(options: JSON, expected: JSON | None) -> None:
    body = sent(by=provider(**options), stream=True)
    assert body["stream"] is True
    assert body.get("stream_options") == expected
    assert "stream_options" not in sent(by=provider(**options), stream=False)


def test_cpt_12_cap_strict_extra_body() -> None:
    assert not {"max_tokens", "max_completion_tokens"} & sent().keys()
    assert sent(max_output_tokens=100)["max_tokens"] == 100
    tools = sent(tools=(add(strict=True), add(strict=False), add()))["tools"]
    assert [tool["function"].get("strict") for tool in tools] == [True, False, None]
    by = provider(extra_body={"temperature": 0, "model": "other", "seed": None})
    assert sent(by=by) | {"messages": []} == {"model": "other", "messages": [], "temperature": 0, "seed": None}


@pytest.mark.parametrize(
    ("extra", "cap", "expected"),
    [
        ({"max_tokens": 50}, 100, {"max_tokens": 50}),
        ({"max_tokens": 500}, 100, {"max_tokens": 100}),
        ({"max_tokens": None}, 100, {"max_tokens": 100}),
        ({"max_completion_tokens": 500}, 100, {"max_completion_tokens": 100}),
        ({"max_tokens": 500}, None, {"max_tokens": 500}),
        ({"max_tokens": "500"}, 100, {"max_tokens": 100}),
        ({"max_tokens": -1}, 100, {"max_tokens": 100}),
        ({"max_tokens": 500, "max_completion_tokens": 50}, 100, {"max_tokens": 100, "max_completion_tokens": 50}),
        ({"max_tokens": None, "max_completion_tokens": 500}, 100, {"max_tokens": None, "max_completion_tokens": 100}),
    ],
    ids=["lower", "higher", "null", "other field", "no cap", "text", "endless", "both fields", "one of both"],
)
def test_cpt_12_extra_body_may_lower_the_cap(extra: JSON, cap: int | None, expected: JSON) -> None:
    body = sent(by=provider(extra_body=extra), max_output_tokens=cap)
    assert {key: body[key] for key in ("max_tokens", "max_completion_tokens") if key in body} == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("any", "required"),
        ("none", "none"),
        ("add", {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tool_choice(choice: str, expected: Any) -> None:
    by = provider(parallel_tool_calls=False)
    body = sent(by=by, tools=(add(),), tool_choice=choice)
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (expected, False)
    without = sent(by=by, tool_choice=choice)  # servers refuse either without tools
    assert not {"tool_choice", "parallel_tool_calls", "tools"} & without.keys()


def test_native_tool_replaces_the_generated_definition() -> None:
    native = {"type": "web_search"}
    tool = add(native={"groq": native, "openai": {"type": "other"}})
    assert sent(by=provider(name="groq"), tools=(tool,))["tools"] == [native]
    assert sent(tools=(tool,))["tools"][0]["type"] == "function"


def test_cpt_14_media() -> None:
    message = Message.user(
        "Look.",
        PNG,
        Image("image/jpeg", uri="https://pics.test/1.jpg"),
        Audio("audio/mpeg", b"sound"),
        Audio("audio/x-wav", b"sound"),
        Audio("audio/ogg", b"sound"),
        Video("video/mp4", b"film"),
        Document("application/pdf", data=b"paper"),
    )
    assert sent_messages(message)[0]["content"] == [
        {"type": "text", "text": "Look."},
        PNG_PART,
        {"type": "image_url", "image_url": {"url": "https://pics.test/1.jpg"}},
        {"type": "input_audio", "input_audio": {"data": "c291bmQ=", "format": "mp3"}},
        {"type": "input_audio", "input_audio": {"data": "c291bmQ=", "format": "wav"}},
        {"type": "text", "text": "Unsupported audio (audio/ogg)"},
        {"type": "text", "text": "Unsupported video (video/mp4)"},
        {"type": "text", "text": "Unsupported document (application/pdf)"},
    ]


def test_text_is_a_string_where_it_is_all_there_is() -> None:
    message = Message.user("One.", " \n", "Two.", Opaque("elsewhere", {"type": "text", "text": "no"}))
    assert sent_messages(message)[0]["content"] == "One.\n\nTwo."
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    assert sent_messages(message, by=quirky(content_parts=True))[0]["content"] == parts


def test_nothing_blank_is_sent() -> None:
    messages = [HI, Message.assistant(" ", Thinking("Hm.")), Message.user("\n"), Message.user(ToolResult("call_1", ""))]
    assert sent(*messages, system_prompt=" \n")["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "tool", "tool_call_id": "call_1", "content": "(no output)"},
    ]


def test_interrupted_answer_is_plain_text() -> None:
    message = attrs.evolve(Message.assistant("Half an"), interrupted=True, origin=provider().origin)
    assert sent_messages(HI, message)[1] == {"role": "assistant", "content": "Half an"}


def test_a_longer_conversation_has_the_shorter_one_as_its_beginning() -> None:
    first = decoded(answer({"content": "x", "reasoning": "Hm.", "tool_calls": [function("add", "{}")]}, "tool_calls"))
    messages = [HI, Message.user("more"), first.message, Message.user(ToolResult("call_a", "1"), "And?")]
    messages += [decoded(answer({"content": "Done."})).message, Message.user(PNG)]
    whole = sent_messages(*messages)
    for count in range(1, len(messages)):
        shorter = sent_messages(*messages[:count])
        assert whole[: len(shorter)] == shorter


def test_media_in_a_tool_result() -> None:
    messages = Message.assistant(ToolUse("call_1", "shoot")), Message.user(ToolResult("call_1", ("Shot:", PNG)))
    (_, result) = sent_messages(*messages)
    assert result["content"] == "Shot:\n\nUnsupported image (image/png)"
    (_, result) = sent_messages(*messages, by=quirky(tool_media=True))
    assert result["content"] == [{"type": "text", "text": "Shot:"}, PNG_PART]


def test_invalid_arguments_go_back_as_an_object() -> None:
    response = decoded(answer({"tool_calls": [function("add", '{"a": 1')]}, "tool_calls"))
    (call,) = exchange(response, ToolResult("call_a", "no JSON"), by=provider())["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"INVALID_JSON": '{"a": 1'}


def test_a_foreign_conversation_is_made_fit() -> None:
    message = Message(
        "assistant",
        (Thinking("Hm.", "sig"), Text("Yes."), PNG, ToolUse("a b", "add", provider_data={"extra_content": {"x": 1}})),
        origin="elsewhere",
    )
    (sent_message, result) = sent_messages(message, Message.user(ToolResult("a b", "1")))
    assert sent_message["content"] == "Hm.\n\nYes.\n\nUnsupported image (image/png)"
    (call,) = sent_message["tool_calls"]
    assert "extra_content" not in call
    assert call["id"] == result["tool_call_id"] != "a b"


# Quirks and vendors


def test_quirk_cap_field_and_system_role() -> None:
    body = sent(
        by=quirky(cap_field="max_completion_tokens", system_role="developer"), max_output_tokens=9, system_prompt="S"
    )
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert body["messages"][0]["role"] == "developer"


def test_quirk_merge_user_messages() -> None:
    by = quirky(merge_user_messages=True)
    assert sent_messages(HI, Message.user("there"), by=by) == [{"role": "user", "content": "Hi\n\nthere"}]
    merged = [{"type": "text", "text": "Hi"}, PNG_PART]
    assert sent_messages(HI, Message.user(PNG), by=by) == [{"role": "user", "content": merged}]
    assert len(sent_messages(HI, Message.user("there"))) == 2


def test_quirk_assistant_after_tool() -> None:
    messages = Message.assistant(ToolUse("call_1", "add")), Message.user(ToolResult("call_1", "1"), "And?")
    assert [m["role"] for m in sent_messages(*messages)] == ["assistant", "tool", "user"]
    roles = [m["role"] for m in sent_messages(*messages, by=quirky(assistant_after_tool=True))]
    assert roles == ["assistant", "tool", "assistant", "user"]


def test_quirk_tool_result_name_and_strict() -> None:
    messages = Message.assistant(ToolUse("call_1", "add")), Message.user(ToolResult("call_1", "1"))
    assert sent_messages(*messages, by=quirky(tool_result_name=True))[1]["name"] == "add"
    assert "name" not in sent_messages(*messages)[1]
    assert "strict" not in sent(by=quirky(strict_tools=False), tools=(add(strict=True),))["tools"][0]["function"]


def test_quirk_tool_id_pattern() -> None:
    """An id that Mistral would refuse is rewritten, in the call and in its result, to the same one each time."""
    messages = Message.assistant(ToolUse("toolu_1", "add")), Message.user(ToolResult("toolu_1", "1"))
    by = at("api.mistral.ai")
    call, result = sent_messages(*messages, by=by)
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) == 9
    assert result["tool_call_id"].isalnum()
    assert sent_messages(*messages, by=by) == [call, result]
    kept = Message.assistant(ToolUse("a1B2c3D4e", "add")), Message.user(ToolResult("a1B2c3D4e", "1"))
    assert sent_messages(*kept, by=by)[1]["tool_call_id"] == "a1B2c3D4e"


def test_quirk_images_and_file_parts() -> None:
    assert sent_messages(Message.user(PNG), by=quirky(images=False))[0]["content"] == "Unsupported image (image/png)"
    paper = Message.user(Document("application/pdf", data=b"paper", name="a.pdf"))
    (part,) = sent_messages(paper, by=quirky(file_parts=True))[0]["content"]
    assert part == {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,cGFwZXI="}}
    uploaded = Message.user(Document("application/pdf", "file-123"))
    assert sent_messages(uploaded, by=quirky(file_parts=True))[0]["content"] == [
        {"type": "file", "file": {"file_id": "file-123"}}
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_goes_back_in_the_field_it_came_in(field: str) -> None:
    response = decoded(answer({"content": None, field: "Hm.", "tool_calls": [function("add", "{}")]}, "tool_calls"))
    message = exchange(response, ToolResult("call_a", "1"), by=provider())
    assert {key: message[key] for key in ("reasoning_content", "reasoning") if key in message} == {field: "Hm."}
    forced = exchange(response, ToolResult("call_a", "1"), by=quirky(reasoning_field="reasoning_content"))
    assert forced["reasoning_content"] == "Hm."
    silent = exchange(response, ToolResult("call_a", "1"), by=quirky(send_reasoning=False))
    assert not {"reasoning_content", "reasoning"} & silent.keys()


def test_reasoning_that_has_to_be_there_is_there() -> None:
    by = at("api.deepseek.com")
    messages = HI, Message.assistant("Hello."), HI
    assert sent_messages(*messages, by=by)[1]["reasoning_content"] == " "
    assert "reasoning_content" not in sent_messages(*messages)[1]


@pytest.mark.parametrize(
    ("address", "vendor"),
    [
        ("https://api.deepseek.com/beta", "deepseek"),
        ("https://API.mistral.ai/v1", "mistral"),
        ("https://mine.openai.azure.com/openai/v1", "openai-chat"),
        ("https://open.bigmodel.cn/api/paas/v4", "zai"),
        ("https://api.moonshot.cn/v1", "moonshot"),
        ("https://api.together.ai/v1", "together"),
    ],
)
def test_quirks_are_looked_up_by_host(address: str, vendor: str) -> None:
    assert quirks_for(address) == VENDORS[vendor].quirks != Quirks()
    assert provider(base_url=address).quirks == VENDORS[vendor].quirks
    assert provider(base_url=address, quirks=Quirks()).quirks == Quirks()


@pytest.mark.parametrize("address", ["http://localhost:8080/v1", "https://notdeepseek.com", "http://10.0.0.1/v1"])
def test_unknown_hosts_have_no_quirks(address: str) -> None:
    assert quirks_for(address) == Quirks()


@pytest.mark.parametrize("name", VENDORS)
def test_of_a_known_vendor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS[name]
    if vendor.env_key:
        monkeypatch.delenv(vendor.env_key, raising=False)
        with pytest.raises(InvalidOption, match=vendor.env_key):
            OpenAICompat.of(name, "m", api_key=None)
        monkeypatch.setenv(vendor.env_key, " from-env ")
    by = OpenAICompat.of(name, "m", stall_timeout=5.0)
    assert (by.name, by.model, by.base_url, by.quirks, by.stall_timeout) == (
        name,
        "m",
        vendor.base_url,
        vendor.quirks,
        5.0,
    )
    assert by.api_key == ("from-env" if vendor.env_key else None)
    assert OpenAICompat.of(name, "m", api_key="own", base_url="http://proxy.test/v1").api_key == "own"


def test_of_an_unknown_vendor() -> None:
    with pytest.raises(InvalidOption, match="ollama"):
        OpenAICompat.of("nobody", "m")


# What comes back


def test_cpt_03_fragments_are_joined_by_index() -> None:
    response = streamed(
        chunk({"role": "assistant", "content": "Let me "}),
        chunk({"content": "see."}),
        calls(fragment(0, "", "call_a", "add"), fragment(1, "", "call_b", "sub")),
        calls(fragment(0, '{"a":')),
        calls(fragment(1, '{"b":')),
        calls(fragment(0, " 1}")),
        calls(fragment(1, " 2}")),
        chunk({"content": "There."}),
        end("tool_calls"),
    )
    assert response.message.content == (
        Text("Let me see."),
        ToolUse("call_a", "add", {"a": 1}),
        ToolUse("call_b", "sub", {"b": 2}),
        Text("There."),
    )
    assert response.stop_reason is StopReason.TOOL_USE


def test_cpt_03_events() -> None:
    """Deltas come once and are never empty; text ends as the call begins, calls end with the finish reason."""
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "See"}),
        calls(fragment(0, "", "call_a", "add")),
        calls(fragment(0, "{}")),
        end("tool_calls"),
        chunk({"content": ""}, usage=USAGE),
    ]
    assert stream(sse(chunks))[0] == [
        TextDelta("See"),
        BlockEnd(Text("See")),
        ToolInputDelta("call_a", "add", "{}"),
        BlockEnd(ToolUse("call_a", "add")),
        UsageUpdate(Usage(12, 5)),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ({}, None)),
        (None, ({}, None)),
        ({"a": 1}, ({"a": 1}, None)),
        ('{"a": 1', ({}, '{"a": 1')),
        ("[1]", ({}, "[1]")),
    ],
    ids=["cpt-04 empty", "cpt-04 null", "cpt-04 object", "cpt-04 cut", "cpt-04 list"],
)
def test_cpt_04_arguments(arguments: Any, expected: tuple[JSON, str | None]) -> None:
    whole = decoded(answer({"tool_calls": [function("add", arguments)]}, "tool_calls"))
    parts = streamed(calls(fragment(0, arguments, "call_a", "add")), end("tool_calls"))
    for response in (whole, parts):
        (call,) = response.message.tool_uses
        assert (call.input, call.invalid_input) == expected


def test_cpt_05_usage_beside_no_choices() -> None:
    assert streamed(chunk({"content": "Hi"}), end(), {"choices": [], "usage": USAGE}).usage == Usage(12, 5)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stop", StopReason.END_TURN),
        ("tool_calls", StopReason.TOOL_USE),
        ("function_call", StopReason.TOOL_USE),
        ("content_filter", StopReason.REFUSAL),
        ("content_filter: SAFETY", StopReason.REFUSAL),
        ("sensitive", StopReason.REFUSAL),
        ("length", StopReason.MAX_TOKENS),
        ("model_length", StopReason.MAX_TOKENS),
    ],
    ids=["cpt-07", "cpt-07", "cpt-07", "cpt-07", "cpt-07 Gemini", "cpt-07 Z.ai", "cpt-08", "cpt-08 Mistral"],
)
def test_cpt_07_08_stop_reasons(word: str, expected: StopReason) -> None:
    whole = decoded(answer({"content": "Hi"}, word))
    parts = streamed(chunk({"content": "Hi"}), end(word, usage=USAGE))
    assert whole == parts
    assert whole.stop_reason is expected
    refused = {"refusal": {"finish_reason": word}} if expected is StopReason.REFUSAL else {}
    assert whole.metadata == refused


def test_cpt_07_refusals_have_details() -> None:
    """A refusal is no text; what a filter found is told."""
    whole = decoded(answer({"content": None, "refusal": "I will not."}))
    parts = streamed(chunk({"refusal": "I will"}), chunk({"refusal": " not."}), end(usage=USAGE))
    assert whole == parts
    assert (whole.stop_reason, whole.message.content) == (StopReason.REFUSAL, ())
    assert whole.metadata == {"refusal": {"finish_reason": "stop", "refusal": "I will not."}}
    found = {"violence": {"filtered": True}}
    filtered = {"choices": [{"index": 0, "finish_reason": "content_filter", "content_filter_results": found}]}
    assert decoded(filtered).metadata["refusal"]["content_filter_results"] == found
    part = decoded(answer({"content": [{"type": "refusal", "refusal": "No."}]}))
    assert part.metadata["refusal"]["refusal"] == "No."


def test_unknown_stop_reason_is_kept() -> None:
    assert decoded(answer({"content": "Hi"}, "tired")).stop_reason is StopReason.END_TURN
    assert decoded(answer({"content": "Hi"}, "tired")).metadata == {"raw_stop_reason": "tired"}
    call = decoded(answer({"tool_calls": [function("add", "{}")]}, "tired"))
    assert call.stop_reason is StopReason.TOOL_USE


@pytest.mark.parametrize(
    ("word", "native", "expected"),
    [
        ("stop", None, StopReason.TOOL_USE),
        (None, None, StopReason.TOOL_USE),
        ("length", None, StopReason.MAX_TOKENS),
        ("tool_calls", "max_output_tokens", StopReason.MAX_TOKENS),
        ("tool_calls", "tool_use", StopReason.TOOL_USE),
        ("content_filter", None, StopReason.REFUSAL),
    ],
)
def test_stop_reason_of_an_answer_with_calls(word: str | None, native: str | None, expected: StopReason) -> None:
    body = answer({"tool_calls": [function("add", "{}")]}, word)
    body["choices"][0]["native_finish_reason"] = native
    assert decoded(body).stop_reason is expected


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_cpt_09_reasoning(field: str) -> None:
    whole = decoded(answer({"content": "Yes.", field: "Hm, well."}))
    parts = streamed(
        chunk({"content": None, field: ""}),
        chunk({field: "Hm, "}),
        chunk({field: "well.", "content": ""}),
        chunk({"content": "Yes."}),
        end(usage=USAGE),
    )
    assert whole == parts
    assert whole.message.content == (Thinking("Hm, well.", provider_data={"field": field}), Text("Yes."))
    assert whole.message.text == "Yes."
    for nothing in ({field: ""}, {field: None}, {}):
        assert decoded(answer({"content": "Yes.", **nothing})).message.content == (Text("Yes."),)


def test_reasoning_in_two_fields_is_taken_once() -> None:
    both = {
        "reasoning_content": "Hm.",
        "reasoning": "Hm.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
    }
    assert decoded(answer(both)).message.thinking == "Hm."
    assert streamed(chunk(both), end()).message.thinking == "Hm."


def test_sealed_reasoning_goes_back_as_it_came() -> None:
    """OpenRouter's details: streamed pieces are joined to what a whole answer has, and sent back instead of the text."""
    detail = {
        "type": "reasoning.text",
        "text": "Hm, well.",
        "format": "anthropic-claude-v1",
        "index": 0,
        "signature": "s1",
    }
    hidden = {"type": "reasoning.encrypted", "data": "b3A=", "id": "rs_1", "index": 1}
    call = function("add", "{}")
    whole = decoded(
        answer({"reasoning": "Hm, well.", "reasoning_details": [detail, hidden], "tool_calls": [call]}, "tool_calls")
    )
    head = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
    parts = streamed(
        chunk({"reasoning": "Hm, ", "reasoning_details": [{**head, "text": "Hm, "}]}),
        chunk({"reasoning": "well.", "reasoning_details": [{**head, "text": "well."}]}),
        chunk({"reasoning_details": [{**head, "signature": "s1"}]}),
        chunk({"reasoning_details": [hidden]}),
        calls(fragment(0, "{}", "call_a", "add")),
        end("tool_calls", usage=USAGE),
    )
    assert whole == parts
    thinking = whole.message.content[0]
    assert isinstance(thinking, Thinking)
    assert (thinking.text, thinking.signature) == ("Hm, well.", "s1")
    message = exchange(whole, ToolResult("call_a", "1"), by=provider())
    assert message["reasoning_details"] == [detail, hidden]
    assert "reasoning" not in message


def test_details_alone_are_reasoning() -> None:
    details = [
        {"type": "reasoning.summary", "summary": "A", "index": 0},
        {"type": "reasoning.text", "text": "B", "index": 1},
    ]
    assert decoded(answer({"content": "x", "reasoning_details": details})).message.thinking == "AB"
    parts = streamed(chunk({"reasoning_details": details[:1]}), chunk({"reasoning_details": details[1:]}), end())
    assert parts.message.thinking == "AB"


def test_mistral_content_in_parts() -> None:
    """Reasoning stands among the content, and goes back there."""
    thought = {
        "type": "thinking",
        "thinking": [{"type": "text", "text": "Hm."}, {"type": "reference", "reference_ids": [1]}],
    }
    reference = {"type": "reference", "reference_ids": [2]}
    whole = decoded(answer({"content": [thought, {"type": "text", "text": "Yes."}, reference]}))
    parts = streamed(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "H"}]}]}),
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "m."}], "closed": True}]}),
        chunk({"content": [{**thought, "thinking": thought["thinking"][1:]}, {"type": "text", "text": "Ye"}]}),
        chunk({"content": "s."}),
        chunk({"content": [reference]}),
        end(usage=USAGE),
    )
    assert whole == parts
    assert whole.message.text == "Yes."
    assert whole.message.thinking == "Hm."
    assert whole.message.content[-1] == Opaque("openai_compat", reference)
    assert exchange(whole, by=provider())["content"] == [thought, {"type": "text", "text": "Yes."}, reference]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}, RateLimited),
        ({"error": {"message": "busy", "code": 503}}, Overloaded),
        ({"error": {"message": "bad key", "code": "invalid_api_key"}}, AuthenticationError),
        ({"error": "it broke"}, ProviderError),
        ({"object": "error", "message": "no", "type": "invalid_request_error"}, BadRequest),
        ({"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "upstream"}}]}, ProviderError),
        ({"choices": [{"finish_reason": "error", "delta": {"content": ""}}]}, ProviderError),
        ({"choices": [{"finish_reason": "insufficient_system_resource"}]}, ProviderError),
        ({"error": {"message": "m", "code": "context_length_exceeded"}, "choices": []}, ContextTooLong),
    ],
    ids=lambda value: "cpt-10" if isinstance(value, dict) else value.__name__,
)
def test_cpt_10_errors_in_a_200(body: JSON, error: type[ProviderError]) -> None:
    with pytest.raises(error) as in_body:
        decoded(body)
    assert in_body.value.status == 200
    decoder = provider().decoder()
    decoder.feed(sse([chunk({"content": "Hi"})], done=False))
    with pytest.raises(error) as in_stream:
        decoder.feed(sse([body]))
    assert in_stream.value.status is None
    assert in_stream.value.retryable == in_body.value.retryable


def test_cpt_10_error_event() -> None:
    with pytest.raises(Overloaded, match="busy"):
        provider().decoder().feed(b'event: error\ndata: {"message": "busy", "code": 503}\n\n')


@pytest.mark.parametrize("body", [{"choices": []}, {}, [], {"choices": None}, {"choices": "x"}, {"detail": "no"}, [{}]])
def test_cpt_10_no_choices(body: Any) -> None:
    with pytest.raises(WireError, match="no choices"):
        decoded(body)


def test_cpt_10_error_in_a_list() -> None:
    with pytest.raises(RateLimited):
        decoded([{"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}])


def test_cpt_11_end_of_the_stream() -> None:
    """Neither a finish reason nor `[DONE]` is an error; either alone completes."""
    hello = chunk({"content": "Hi"})
    for data in (b"", sse([hello], done=False), b": comment\n\n"):
        with pytest.raises(WireError, match="ended before") as caught:
            stream(data)
        assert caught.value.retryable
    for data in (sse([hello]), sse([hello, end()], done=False), sse([hello, end()])[:-1], sse([hello])[:-2]):
        response = stream(data)[1]
        assert (response.message.text, response.stop_reason) == ("Hi", StopReason.END_TURN)
    events, _ = stream(sse([calls(fragment(0, "{}", "call_a", "add"))]))
    assert events[-1] == BlockEnd(ToolUse("call_a", "add"))


def test_what_comes_after_done_is_ignored() -> None:
    assert stream(sse([chunk({"content": "Hi"})]) + sse([chunk({"content": "!"})]))[1].message.text == "Hi"


@pytest.mark.parametrize("field", ["extra_content", "provider_specific_fields"])
def test_cpt_13_signatures_stay_on_their_call(field: str) -> None:
    seal = {"google": {"thought_signature": "c2ln"}}
    signed, plain = function("add", "{}", "call_a", **{field: seal}), function("add", "{}", "call_b")
    whole = decoded(answer({"tool_calls": [signed, plain]}, "tool_calls"))
    parts = streamed(
        calls({**fragment(0, "{", "call_a", "add"), field: seal}),
        calls({**fragment(0, "}"), field: None}),
        calls(fragment(1, "{}", "call_b", "add")),
        end("tool_calls", usage=USAGE),
    )
    late = streamed(
        calls(fragment(0, "{}", "call_a", "add")),
        calls(fragment(1, "{}", "call_b", "add")),
        calls({"index": 0, field: seal}),
        end("tool_calls", usage=USAGE),
    )
    assert whole == parts == late
    results = ToolResult("call_a", "1"), ToolResult("call_b", "2")
    assert exchange(whole, *results, by=provider())["tool_calls"] == [signed, plain]


def test_signature_of_an_answer_without_calls() -> None:
    seal = {"google": {"thought_signature": "c2ln"}}
    whole = decoded(answer({"content": "Hi", "extra_content": seal}))
    parts = streamed(chunk({"content": "Hi"}), chunk({"extra_content": seal}), end(usage=USAGE))
    assert whole == parts
    assert exchange(whole, by=provider()) == {"role": "assistant", "content": "Hi", "extra_content": seal}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, b'{"error": {"message": "slow down"}}', RateLimited),
        (429, b"<html>slow down</html>", RateLimited),
        (500, b'{"error": {"message": "oh no", "code": 500}}', ProviderError),
        (500, b"", ProviderError),
    ],
    ids=["cpt-15 429 JSON", "cpt-15 429 text", "cpt-15 500 JSON", "cpt-15 500 empty"],
)
async def test_cpt_15_errors_before_the_stream(status: int, body: bytes, error: type[ProviderError]) -> None:
    async def emit(*events: Any) -> None:
        raise AssertionError(events)

    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(error) as caught:
            await provider(http_client=client).stream(Request(messages=(HI,)), emit)
    assert (caught.value.status, caught.value.retryable, caught.value.provider) == (status, True, "openai_compat")


async def test_over_http() -> None:
    """Both ways of asking, over a server that answers as asked."""
    requests: list[tuple[str, str | None]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        requests.append((str(request.url), request.headers.get("authorization")))
        if json.loads(request.content).get("stream"):
            return httpx.Response(200, content=sse([chunk({"content": "Hi"}), end(usage=USAGE)]))
        return httpx.Response(200, json=answer({"content": "Hi"}))

    async def emit(*events: Any) -> None:
        assert events

    async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as client:
        by = provider(base_url="https://llm.test/v1", api_key="a-key", http_client=client)
        assert await by.complete(Request(messages=(HI,))) == await by.stream(Request(messages=(HI,)), emit)
    assert requests == [("https://llm.test/v1/chat/completions", "Bearer a-key")] * 2


def test_ps_03_citations() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://a.test", "start_index": 0, "end_index": 2}}
    whole = decoded(answer({"content": "Hi", "annotations": [note]}))
    before = streamed(
        chunk({"annotations": [note]}), chunk({"content": "H"}), chunk({"content": "i"}), end(usage=USAGE)
    )
    after = streamed(chunk({"content": "Hi"}), chunk({"annotations": [note]}), end(usage=USAGE))
    assert whole == before == after
    assert whole.message.content == (Text("Hi", (note,)),)
    assert whole.metadata == {"provider_response": {"citations": [note]}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"citations": ["https://a.test"]}, [{"url": "https://a.test"}]),
        ({"citations": ["https://a.test"], "search_results": [{"url": "https://a.test", "title": "A"}]}, None),
    ],
)
def test_sources_of_numbered_references(fields: JSON, expected: list[JSON] | None) -> None:
    """Perplexity repeats them in each chunk: they are taken once."""
    expected = expected or fields["search_results"]
    whole = decoded(answer({"content": "So [1]"}, **fields))
    parts = streamed(
        chunk({"content": "So "}, **fields), chunk({"content": "[1]"}, **fields), end(usage=USAGE, **fields)
    )
    assert whole == parts
    assert whole.message.content == (Text("So [1]", expected),)
    assert whole.metadata == {"provider_response": {"citations": expected}}


# What was seen in the wild


def first(response: Response) -> str:
    return response.message.tool_uses[0].id


@pytest.mark.parametrize(
    "deltas",
    [
        [fragment(None, '{"a":1}', "call_a", "add"), fragment(None, '{"a":2}', "call_b", "add")],
        [fragment(None, "", "call_a", "add"), fragment(None, '{"a":1}'), fragment(None, '{"a":2}', "call_b", "add")],
        [fragment(0, '{"a":1}', "call_a", "add"), fragment(0, '{"a":2}', "call_b", "add")],
        [
            fragment(0, '{"a"', "call_a", "add"),
            fragment(0, ":1}"),
            fragment(0, "", "call_b", "add"),
            fragment(0, '{"a":2}'),
        ],
        [fragment(3, {"a": 1}, "call_a", "add"), fragment(7, {"a": 2}, "call_b", "add")],
        [fragment(0, '{"a":', "call_a", "add"), fragment(0, "1}", "call_x"), fragment(1, '{"a":2}', "call_b", "add")],
        [fragment(0, '{"a":', "call_a", "add"), fragment(5, "1}", "call_a"), fragment(1, '{"a":2}', "call_b", "add")],
        [
            fragment(0, '{"a":', "call_a", "add"),
            fragment(0, "1}", "call_a", "add"),
            fragment(1, '{"a":2}', "call_b", "add"),
        ],
        [
            {"index": 0, "id": "call_a"},
            fragment(0, "", None, "add"),
            fragment(0, '{"a":1}'),
            fragment(1, '{"a":2}', "call_b", "add"),
        ],
        [
            {"id": "call_a", "name": "add", "arguments": {"a": 1}},
            {"id": "call_b", "name": "add", "arguments": {"a": 2}},
        ],
    ],
    ids=[
        "no index",
        "no index, in pieces",
        "index used twice",
        "index used twice, in pieces",
        "arguments as objects, odd indices",
        "id changes",
        "index changes",
        "id and name repeated",
        "id ahead of the name",
        "no function object",
    ],
)
def test_which_call_a_delta_belongs_to(deltas: list[JSON]) -> None:
    expected = [("call_a", "add", {"a": 1}), ("call_b", "add", {"a": 2})]
    assert inputs(streamed(*map(calls, deltas), end("tool_calls"))) == expected
    assert inputs(streamed(calls(*deltas), end("stop"))) == expected


@pytest.mark.parametrize("call_id", [None, ""])
def test_calls_without_ids_get_some(call_id: str | None) -> None:
    """The same ones each time, unlike each other, unlike those of another answer, streamed or not."""
    bodies = [function("add", '{"a":1}', call_id), function("add", '{"a":2}', call_id)]
    whole = decoded(answer({"tool_calls": bodies}, "tool_calls"))
    once_each = [calls({"index": 0, **body}) for body in bodies]  # Gemini's endpoint gives both the index 0
    assert whole == streamed(*once_each, end("tool_calls", usage=USAGE))
    one, two = (call.id for call in whole.message.tool_uses)
    assert one != two
    assert first(decoded(answer({"tool_calls": bodies}, id="chatcmpl-2"))) not in {one, two}
    results = exchange(whole, ToolResult(one, "1"), ToolResult(two, "2"), by=provider())
    assert [call["id"] for call in results["tool_calls"]] == [one, two]


def test_two_calls_never_have_one_id() -> None:
    whole = decoded(answer({"tool_calls": [function("add", "{}"), function("sub", "{}")]}, "tool_calls"))
    parts = streamed(
        calls(function("add", "{}", index=0), function("sub", "{}", index=1)), end("tool_calls", usage=USAGE)
    )
    assert whole == parts
    assert first(whole) == "call_a"
    assert len({call.id for call in whole.message.tool_uses}) == 2


def test_legacy_function_call() -> None:
    whole = decoded(
        answer({"content": None, "function_call": {"name": "add", "arguments": '{"a":1}'}}, "function_call")
    )
    parts = streamed(
        chunk({"function_call": {"name": "add", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a":'}}),
        chunk({"function_call": {"arguments": "1}"}}),
        end("function_call", usage=USAGE),
    )
    assert whole == parts
    assert [(call.name, call.input) for call in whole.message.tool_uses] == [("add", {"a": 1})]


def test_custom_tool() -> None:
    call = {"id": "call_a", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    whole = decoded(answer({"tool_calls": [call]}, "tool_calls"))
    more = {"index": 0, "custom": {"input": "CT 1"}}
    parts = streamed(
        calls({**call, "index": 0, "custom": {"name": "sql", "input": "SELE"}}),
        calls(more),
        end("tool_calls", usage=USAGE),
    )
    assert whole == parts
    assert inputs(whole) == [("call_a", "sql", {"input": "SELECT 1"})]
    assert exchange(whole, ToolResult("call_a", "1"), by=provider())["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Usage(12, 5)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 8}, "prompt_cache_hit_tokens": 1}, Usage(4, 5, 0, 0, 8)),
        (USAGE | {"prompt_tokens_details": None, "prompt_cache_hit_tokens": 8}, Usage(4, 5, 0, 0, 8)),
        (USAGE | {"cached_tokens": 8}, Usage(4, 5, 0, 0, 8)),
        (USAGE | {"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 7}}, Usage(3, 5, 7, 0, 2)),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 3}}, Usage(12, 5, reasoning_tokens=3)),
        (USAGE | {"reasoning_tokens": 3}, Usage(12, 5, reasoning_tokens=3)),
        (USAGE | {"total_tokens": 40, "reasoning_tokens": 23}, Usage(12, 28, reasoning_tokens=23)),
        (USAGE | {"server_tool_use_details": {"tool_calls_executed": 2}}, Usage(12, 5, server_tool_calls=2)),
        ({"prompt_tokens": "12", "completion_tokens": None}, Usage(12, 0)),
        (None, Usage()),
    ],
)
def test_usage(usage: JSON | None, expected: Usage) -> None:
    assert decoded(answer({"content": "Hi"}, usage=usage)).usage == expected
    assert streamed(chunk({"content": "Hi"}), end(usage=usage)).usage == expected


def test_usage_in_every_chunk_is_a_running_total() -> None:
    growing = [USAGE | {"completion_tokens": n, "total_tokens": 12 + n} for n in (1, 2, 5)]
    chunks = [chunk({"content": "Hi"}, usage=usage) for usage in growing]
    last = chunk(usage={"completion_tokens": None, "prompt_tokens": 12})
    assert streamed(*chunks, end(), last).usage == Usage(12, 5)
    assert streamed(end(x_groq={"usage": USAGE})).usage == Usage(12, 5)
    in_choice = end()
    in_choice["choices"][0]["usage"] = USAGE
    assert streamed(in_choice).usage == Usage(12, 5)


def test_content_after_the_finish_reason_counts() -> None:
    response = streamed(
        chunk({"content": "Hi"}), end(), chunk({"content": " there"}), calls(fragment(0, "{}", "call_a", "add"))
    )
    assert response.message.text == "Hi there"
    assert inputs(response) == [("call_a", "add", {})]


def test_other_choices_are_left_out() -> None:
    other = {"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}
    response = streamed({"choices": [other]}, chunk({"content": "yes"}), end(), {"choices": [other], "usage": USAGE})
    assert (response.message.text, response.stop_reason) == ("yes", StopReason.END_TURN)
    body = answer({"content": "yes"})
    body["choices"].insert(0, {"index": 1, "message": {"content": "no"}})
    assert decoded(body).message.text == "yes"


def test_a_whole_answer_in_one_chunk() -> None:
    assert streamed(answer({"content": "Hi"})) == decoded(answer({"content": "Hi"}))


def test_keep_alives_between_chunks() -> None:
    noise = b": OPENROUTER PROCESSING\n\ndata: ping\n\ndata:\n\nevent: ping\n\n"
    data = noise + sse([chunk({"role": None, "content": "Hi"})], done=False) + noise + sse([end()])
    assert stream(data, size=7)[1].message.text == "Hi"


def test_images_and_speech_in_an_answer() -> None:
    """OpenRouter's images are images and go back as they came; of speech the server wants back the id."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cGl4ZWxz"}}
    whole = decoded(answer({"content": "See:", "images": [image]}))
    assert whole == streamed(chunk({"content": "See:"}), chunk({"images": [image]}), end(usage=USAGE))
    assert whole.message.content == (Text("See:"), PNG)
    assert exchange(whole, by=provider())["images"] == [image]
    speech = {"id": "audio_1", "data": "c291bmQ=", "transcript": "Hi there", "expires_at": 9}
    spoken = decoded(answer({"content": None, "audio": speech}))
    parts = streamed(
        chunk({"audio": {"id": "audio_1", "transcript": "Hi "}}),
        chunk({"audio": {"transcript": "there", "data": "c291"}}),
        chunk({"audio": {"data": "bmQ=", "expires_at": 9}}),
        end(usage=USAGE),
    )
    assert spoken == parts
    assert spoken.message.content == (Opaque("openai_compat", {"type": "message", "audio": speech}),)
    assert exchange(spoken, by=provider())["audio"] == {"id": "audio_1"}


def test_tools_that_groq_runs() -> None:
    tool = {"index": 0, "type": "search", "arguments": "{}", "output": "found"}
    whole = decoded(answer({"content": "Hi", "executed_tools": [tool]}))
    asked = {key: tool[key] for key in ("index", "type", "arguments")}
    parts = streamed(
        chunk({"executed_tools": [asked]}),
        chunk({"executed_tools": [tool]}),
        chunk({"content": "Hi"}),
        end(usage=USAGE),
    )
    assert whole == parts
    assert whole.metadata == {"provider_response": {"executed_tools": [tool]}}
    assert whole.usage.server_tool_calls == 1


# Properties


words = st.text(alphabet='ab{}"\\ \nü😀', max_size=12)
arguments = st.dictionaries(words, st.one_of(words, st.integers(), st.none()), max_size=2).map(json.dumps)


@st.composite
def messages(draw: st.DrawFn) -> JSON:
    """Draw a message as a server would answer it."""
    names = draw(st.lists(st.sampled_from(["add", "sub"]), max_size=3))
    tool_calls = [function(name, draw(arguments), f"call_{i}") for i, name in enumerate(names)]
    message: JSON = {"content": draw(words | st.none()), "reasoning_content": draw(words)}
    return message | ({"tool_calls": tool_calls} if tool_calls else {})


def as_stream(message: JSON, rng: random.Random) -> list[JSON]:
    """Say how a server might stream a message: fields in order, pieces of any size, calls mixed."""

    def pieces(text: str) -> list[str]:
        cuts = sorted(rng.sample(range(len(text) + 1), k=min(len(text), 3)))
        return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]

    chunks = [chunk({"reasoning_content": piece}) for piece in pieces(message["reasoning_content"])]
    chunks += [chunk({"content": piece}) for piece in pieces(message["content"] or "")]
    heads, tails = [], []
    for index, call in enumerate(message.get("tool_calls", [])):
        heads.append(calls(fragment(index, "", call["id"], call["function"]["name"])))
        tails.append([calls(fragment(index, piece)) for piece in pieces(call["function"]["arguments"])])
    chunks += heads
    while tails:
        tail = rng.choice(tails)
        chunks.append(tail.pop(0))
        tails = [tail for tail in tails if tail]
    return [*chunks, end("stop", usage=USAGE)]


@given(messages(), st.randoms(use_true_random=False))
def test_whole_and_streamed_answers_are_equal(message: JSON, rng: random.Random) -> None:
    whole = decoded(answer(message))
    data = sse(as_stream(message, rng))
    events, response = stream(data, size=rng.randint(1, 40))
    assert response == whole
    assert [event.block for event in events if isinstance(event, BlockEnd)] == list(whole.message.content)
    for call in whole.message.tool_uses:
        pieces = [event.json for event in events if isinstance(event, ToolInputDelta) and event.id == call.id]
        assert json.loads("".join(pieces)) == call.input


@given(messages())
def test_what_was_answered_is_sent_back(message: JSON) -> None:
    response = decoded(answer(message))
    results = [ToolResult(call.id, "1") for call in response.message.tool_uses]
    back = [m for m in sent_messages(response.message, Message("user", results)) if m["role"] == "assistant"]
    again = decoded(answer(back[0])).message if back else None
    blank = not (message["content"] or "").strip()
    kept = [b for b in response.message.content if not (isinstance(b, Text) and blank)]
    assert again is None or list(again.content) == kept


KEYS = """
    id index type function name arguments content text thinking reasoning reasoning_details tool_calls delta message choices
    usage annotations images image_url audio extra_content refusal finish_reason citations created prompt_tokens
    prompt_tokens_details executed_tools function_call custom
"""
scalars = st.none() | st.booleans() | st.integers(-2, 2) | st.just(0.5) | st.text(max_size=3)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    max_leaves=25,
)


@given(json_values, st.sampled_from(["message", "delta"]))
def test_surprises_never_crash(surprise: Any, place: str) -> None:
    """Whatever JSON a server sends: an answer, or an error of ours."""
    for body in (surprise, {"choices": [{place: surprise}]}, {"choices": [surprise]}):
        with contextlib.suppress(ProviderError):
            sent_messages(decoded(body).message)
        with contextlib.suppress(ProviderError):
            sent_messages(stream(sse([body, body]))[1].message)


def test_an_error_of_an_old_llama_cpp_is_an_error() -> None:
    data = b'error: {"code":400,"message":"the request exceeds the available context size"}\n\ndata: [DONE]\n\n'
    with pytest.raises(ContextTooLong):
        stream(data)


def test_empty_data_keeps_the_connection_alive() -> None:
    assert stream(b"event: ping\ndata: \n\n" + sse([chunk({"content": "a"}, "stop")]))[1].message.text == "a"


def test_one_call_without_a_list_around_it_is_a_call() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": "null"}}
    (found,) = stream(sse([chunk({"tool_calls": call}, "tool_calls")]))[1].message.tool_uses
    assert (found.id, found.name, found.input, found.invalid_input) == ("c1", "add", {}, None)


def test_usage_is_told_whenever_it_changes() -> None:
    """Wherever a server puts it, with each chunk or the last; not again if it is the same."""
    first, second = {"prompt_tokens": 12, "completion_tokens": 1}, {"prompt_tokens": 12, "completion_tokens": 3}
    chunks = [
        chunk({"content": "a"}, usage=first),
        chunk({"content": "b"}, usage=first),
        chunk({"content": "c"}, x_groq={"usage": second}),
        chunk({"content": "d"}, usage=None),
        end("stop", usage={"prompt_tokens": 0}),
        chunk(usage={"completion_tokens": 0}),
    ]
    events = [event for event in stream(sse(chunks))[0] if isinstance(event, TextDelta | UsageUpdate)]
    assert events == [
        TextDelta("a"),
        UsageUpdate(Usage(12, 1)),
        TextDelta("b"),
        TextDelta("c"),
        UsageUpdate(Usage(12, 3)),
        TextDelta("d"),
        UsageUpdate(Usage(0, 3)),
    ]
    assert not any(isinstance(event, UsageUpdate) for event in stream(sse([chunk({"content": "a"}), end()]))[0])


@pytest.mark.parametrize(
    ("by", "terms"),
    [
        (provider(), {}),
        (provider(base_url="http://127.0.0.1:8000/v1"), {}),
        (at("unknown.test"), {}),
        (at("api.groq.com"), {"enforces_cap": True}),
        (at("me.openai.azure.com"), {"enforces_cap": True}),
        (at("openrouter.ai", extra_body={"plugins": [{"id": "web"}]}), {"enforces_cap": True, "server_tools": True}),
        (attrs.evolve(at("openrouter.ai"), model="a/b:online"), {"enforces_cap": True, "server_tools": True}),
        (attrs.evolve(provider(), model="gpt-4o-search-preview"), {"server_tools": True}),
        (provider(extra_body={"web_search_options": {}, "plugins": []}), {}),
        (provider(extra_body={"web_search_options": {"search_context_size": "low"}}), {"server_tools": True}),
        (provider(extra_body={"tools": [{"type": "browser_search"}]}), {"server_tools": True}),
        (provider(extra_body={"tools": [{"type": "function"}, {"type": "custom"}]}), {}),
    ],
)
def test_terms(by: OpenAICompat, terms: JSON) -> None:
    """A server of one's own, or one that nobody knows, is not trusted to stop at the cap."""
    assert by.terms == Terms(**terms)


def test_the_answers_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert {name for name, vendor in VENDORS.items() if vendor.quirks.output_schema} == {
        "openai-chat",
        "mistral",
        "xai",
    }
    by = quirky(output_schema=True)
    assert (by.native_output, by.takes_schema(schema)) == (True, True)
    assert sent(by=by, output_schema=schema)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": True, "schema": schema | {"additionalProperties": False}},
    }
    loose = schema | {"required": []}
    assert sent(by=by, output_schema=loose)["response_format"]["json_schema"] == {
        "name": "output",
        "strict": False,
        "schema": loose,
    }
    assert "response_format" not in sent(by=by)
    mine = {"response_format": {"type": "json_object"}}
    assert sent(by=attrs.evolve(by, extra_body=mine), output_schema=schema)["response_format"] == {
        "type": "json_object"
    }
    assert not provider().native_output
    assert "response_format" not in sent(output_schema=schema)


def test_stale_answers_go_without_their_reasoning() -> None:
    """Text, calls and the calls' own seals stay; a placeholder stands where the server wants one."""
    seal = {"google": {"thought_signature": "c2VhbA=="}}
    call = function("add", "{}", "call_a", extra_content=seal)
    sealed = [{"type": "reasoning.encrypted", "data": "b3BhcXVl"}]
    message = {"content": "So.", "reasoning_content": "Hm.", "reasoning_details": sealed, "tool_calls": [call]}
    for by, placeholder in ((provider(), {}), (at("api.deepseek.com"), {"reasoning_content": " "})):
        stale = decoded(answer(message, "tool_calls"), by).message
        fresh = attrs.evolve(decoded(answer({"content": "3", "reasoning_content": "So 3."}), by).message, epoch=1)
        alone = decoded(answer({"content": None, "reasoning_content": "Hm."}), by).message
        history = [HI, stale, Message.user(ToolResult("call_a", "3")), alone, attrs.evolve(HI, epoch=1), fresh, HI]
        first, last = [each for each in sent_messages(*history, by=by) if each["role"] == "assistant"]
        assert first == {"role": "assistant", "content": "So.", "tool_calls": [call], **placeholder}
        assert last == {"role": "assistant", "content": "3", "reasoning_content": "So 3."}


def test_calls_without_ids_get_ids_of_their_own() -> None:
    """Also where the server tells its answers apart by nothing: the calls of two answers have different ids."""
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call, call]}}
    ids = [
        made.id
        for head in ({}, {}, {"id": "chatcmpl-1"}, {"id": "chatcmpl-2"}, {"created": 1})
        for made in provider().decode(json.dumps({**head, "choices": [choice]}).encode()).message.tool_uses
    ]
    assert len(set(ids)) == len(ids) == 10
    assert all(len(made) == 9 and made.isalnum() for made in ids)
