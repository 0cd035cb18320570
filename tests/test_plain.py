"""Answers of the usual kind are read by a short way, which gives what the long one would: here, with streams that no server sends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import ProviderError
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, _anthropic_reply, _openai_compat_reply, _openai_reply

if TYPE_CHECKING:
    from types import ModuleType

Wire = Anthropic | OpenAI | OpenAICompat
JSON = dict[str, Any]

texts = st.sampled_from(["one", "two", " "]) | st.sampled_from(["one", "two", "\ud83d", "\ude00", "", None, 1])
places = st.sampled_from([0, 1]) | st.sampled_from([0, 1, -1, "1", None, 1.0, True])
given_or_not = st.integers(0, 9).map(bool)


@st.composite
def objects(draw: st.DrawFn, /, fixed: JSON, **fields: st.SearchStrategy[Any]) -> JSON:
    """Draw an object with these fields, some of which may be missing."""
    return fixed | {name: draw(field) for name, field in fields.items() if draw(given_or_not)}


claude_blocks = st.sampled_from(
    [
        {"type": "text", "text": ""},
        {"type": "text", "text": "So"},
        {"type": "thinking"},
        {"type": "compaction"},
        {},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    ]
)
claude_deltas = (
    objects({"type": "text_delta"}, text=texts, thinking=texts)
    | objects({"type": "thinking_delta"}, thinking=texts)
    | objects({"type": "input_json_delta"}, partial_json=st.sampled_from(["", "{", "}", None]))
    | objects({}, text=texts, content=texts)
)
claude = st.one_of(
    objects({"type": "content_block_start"}, index=places, content_block=claude_blocks),
    *[objects({}, type=st.just("content_block_delta"), index=places, delta=claude_deltas)] * 4,
    objects({"type": "content_block_stop"}, index=places),
)
ids = st.sampled_from(["one", "one", "one", "two", "", None])
responses = st.one_of(
    *(
        objects(
            {"type": f"response.output_item.{kind}"},
            output_index=places,
            item=objects(
                {"type": "message"}, id=ids, content=st.sampled_from([None, [{"type": "output_text", "text": "word"}]])
            ),
        )
        for kind in ("added", "done")
    ),
    *[
        objects({"type": f"response.{kind}.delta"}, delta=texts, item_id=ids, output_index=places, content_index=places)
        for kind in ("output_text", "output_text", "output_text", "refusal", "function_call_arguments")
    ],
)
odd_chat_deltas = objects(
    {},
    content=texts,
    role=st.just("assistant"),
    reasoning_content=texts,
    refusal=texts,
    tool_calls=st.sampled_from([[], None, [{"index": 0, "id": "a", "function": {"name": "look", "arguments": "{}"}}]]),
)
chat_deltas = objects({}, content=texts) | odd_chat_deltas
choices = objects({}, index=places, delta=chat_deltas, finish_reason=st.sampled_from([None, None, None, "stop", ""]))
chat = objects(
    {"id": "chat_1"},
    model=st.sampled_from(["m", None]),
    choices=st.lists(choices, min_size=1, max_size=1) | st.lists(choices, max_size=2),
    usage=st.sampled_from([None, None, {"prompt_tokens": 1}]),
    citations=st.sampled_from([None, [], [], ["https://w.test"]]),
)

STREAMS: Final[dict[str, tuple[Wire, ModuleType, str, st.SearchStrategy[JSON], list[JSON]]]] = {
    "anthropic": (
        Anthropic("m", api_key="k"),
        _anthropic_reply,
        "plain_delta",
        claude,
        [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}],
    ),
    "openai": (
        OpenAI("m", api_key="k"),
        _openai_reply,
        "plain_text",
        responses,
        [{"type": "response.completed", "response": {"id": "resp_1"}}],
    ),
    "compat": (
        OpenAICompat("m"),
        _openai_compat_reply,
        "plain_text",
        chat,
        [{"choices": [{"delta": {}, "finish_reason": "stop"}]}],
    ),
}


def _read(provider: Wire, stream: list[JSON], *, named: bool) -> list[Any]:
    decoder = provider.decoder()
    read: list[Any] = []
    try:
        for event in stream:
            head = f"event: {event['type']}\n" if named and "type" in event else ""
            read.append(decoder.feed(f"{head}data: {json.dumps(event)}\n\n".encode()))
        read.append(decoder.finish())
    except ProviderError as error:
        read.append((type(error), str(error)))
    return read


@pytest.mark.parametrize("wire", STREAMS)
@settings(max_examples=300)
@given(data=st.data())
def test_the_short_way_gives_what_the_long_one_does(wire: str, data: st.DataObject) -> None:
    """Whatever is missing, of another type, or about a block that is not there."""
    provider, module, name, events, end = STREAMS[wire]
    stream = data.draw(st.lists(events, min_size=4, max_size=16)) + end
    named = data.draw(st.booleans())
    short_way = _read(provider, stream, named=named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lambda _: None)
        assert _read(provider, stream, named=named) == short_way
