"""A history that several providers wrote, as each of them may read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import (
    Image,
    Message,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
)
from alloy_trio.providers._origin import current_epoch, fingerprint, for_origin, portable_id

if TYPE_CHECKING:
    from alloy_trio._messages import Block

HERE = fingerprint("anthropic", "https://here", "key")
THERE = fingerprint("openai", "https://there", "key")

IDS = st.text(st.characters(exclude_categories=[]), max_size=120) | st.from_regex(r"[\w.:-]{0,100}", fullmatch=True)


def foreign(*content: Block) -> Message:
    return Message("assistant", content, provider="openai", model="m", origin=THERE)


def test_msg_07_fingerprint() -> None:
    """Provider, endpoint and account are told apart, and the key occurs nowhere."""
    key = "sk-secret-0123456789abcdef"
    prints = {
        fingerprint("openai", "https://a", key),
        fingerprint("openai", "https://a", "sk-other"),
        fingerprint("openai", "https://a", None),
        fingerprint("openai", "https://b", key),
        fingerprint("azure", "https://a", key),
    }
    assert len(prints) == 5
    assert all(re.fullmatch(r"[0-9a-f]{16}", one) and one not in key for one in prints)
    assert fingerprint("openai", "https://a", key) == fingerprint("openai", "https://a", key)


def test_msg_08_left_alone() -> None:
    """The user's messages, those of that origin, of any model there, and those without one are the same objects."""
    blocks = (
        Thinking("hm", "seal"),
        ToolUse("call.1", "f", provider_data={"id": "x"}),
        Opaque("anthropic", {}),
    )
    messages = [
        Message.user("hi", Image("image/png", b"x")),
        Message("assistant", blocks, provider="anthropic", model="m", origin=HERE, provider_state={"id": "r"}),
        Message.user(ToolResult("call.1", "done")),
        Message("assistant", blocks, provider="anthropic", model="another", origin=HERE),
        Message.assistant(*blocks),
    ]
    out = for_origin(messages, HERE)
    assert all(one is other for one, other in zip(out, messages, strict=True))


def test_a_foreign_message_with_nothing_of_its_own_is_the_same_object() -> None:
    message = foreign(Text("plain"), ToolUse("call_1", "f", {"a": 1}))
    result = Message.user(ToolResult("call_1", "done"))
    assert [id(one) for one in for_origin([message, result], HERE)] == [id(message), id(result)]


def test_msg_09_reasoning_becomes_text_the_rest_is_dropped() -> None:
    message = foreign(
        Thinking("because", "seal", {"id": "rs_1"}),
        Thinking(" \n"),
        Thinking("", provider_data={"type": "redacted_thinking", "data": "xxx"}),
        ServerToolUse("srv_1", "web_search"),
        ServerToolResult("srv_1", {"type": "web_search_tool_result"}),
        Opaque("openai", {"type": "item"}),
        Text("so"),
    )
    (out,) = for_origin([message], HERE)
    assert out.content == (Text("because"), Text("so"))
    assert (out.role, out.provider, out.model) == ("assistant", "openai", "m")


def test_msg_10_seals_are_stripped_and_empty_messages_disappear() -> None:
    messages = [
        Message.user("hi"),
        foreign(Thinking("", "seal"), Opaque("openai", {})),
        attrs.evolve(
            foreign(
                Text("a", provider_data={"id": "msg_1"}),
                ToolUse("c", "f", {"x": 1}, provider_data={"id": "fc_1"}),
            ),
            provider_state={"response_id": "resp_1"},
        ),
    ]
    first, second = for_origin(messages, HERE)
    assert first is messages[0]
    assert second.content == (Text("a"), ToolUse("c", "f", {"x": 1}))
    assert second.provider_state is None


def test_invalid_input_of_a_foreign_call_stays() -> None:
    (out,) = for_origin([foreign(ToolUse("c d", "f", invalid_input="{"))], HERE)
    assert out.tool_uses[0].invalid_input == "{"


def test_msg_11_call_and_result_are_rewritten_alike() -> None:
    messages = [
        foreign(ToolUse("functions.f:0", "f", {"a": 1}), ToolUse("call_2", "g")),
        Message.user(
            ToolResult("functions.f:0", "one", is_error=True, outcome="error"),
            ToolResult("call_2", "two"),
            "and",
        ),
        Message.user(ToolResult("call_2", "again")),
    ]
    call, results, untouched = for_origin(messages, HERE)
    new = call.tool_uses[0].id
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", new)
    assert new != "functions.f:0"
    assert call.tool_uses == (ToolUse(new, "f", {"a": 1}), ToolUse("call_2", "g"))
    assert results.content == (
        ToolResult(new, "one", is_error=True, outcome="error"),
        ToolResult("call_2", "two"),
        Text("and"),
    )
    assert call.content[1] is messages[0].content[1]
    assert results.content[1] is messages[1].content[1]
    assert untouched is messages[2]


def test_msg_11_the_same_id_from_here_and_from_there() -> None:
    """A result follows the call before it: rewritten behind a foreign one, as it is behind one of this origin."""
    here = Message("assistant", (ToolUse("f:0", "f"),), origin=HERE)
    result = Message.user(ToolResult("f:0", "x"))
    out = for_origin([foreign(ToolUse("f:0", "f")), result, here, result], HERE)
    assert out[0].tool_uses[0].id == portable_id("f:0")
    assert out[1].content == (ToolResult(portable_id("f:0"), "x"),)
    assert out[2] is here
    assert out[3] is result


def test_msg_12_ids_that_come_again_become_ids_of_their_own() -> None:
    """Some servers call the first call of every answer `call_0`; of two such calls at once, the results keep their order."""

    def turn(*calls: str) -> list[Message]:
        return [
            foreign(*(ToolUse(call, "f", {"n": n}) for n, call in enumerate(calls))),
            Message.user(*(ToolResult(call, str(n)) for n, call in enumerate(calls))),
        ]

    here = [Message("assistant", (ToolUse("own", "f"),), origin=HERE), Message.user(ToolResult("own", "0"))]
    messages = [*turn("call_0", "f:0"), *turn("call_0", "call_0", "f:0"), *here, *turn("own"), *turn("call_0")]
    out = for_origin(messages, HERE)
    assert out[0].tool_uses == (ToolUse("call_0", "f", {"n": 0}), ToolUse(portable_id("f:0"), "f", {"n": 1}))
    assert out[4:6] == here
    pairs = list(zip(out[::2], out[1::2], strict=True))
    calls = [(call.id, str(call.input.get("n", 0))) for asks, _ in pairs for call in asks.tool_uses]
    assert calls == [(result.tool_use_id, result.text) for _, tells in pairs for result in tells.tool_results]
    assert len({call_id for call_id, _ in calls}) == 8
    assert all(portable_id(call_id) == call_id for call_id, _ in calls)


def test_msg_09_a_provider_that_names_no_origin_is_another() -> None:
    """Such is one of the user's own; only messages that say neither, made by hand, are left alone."""
    blocks = (Thinking("because", "seal"), ToolUse("f:0", "f"))
    theirs = Message("assistant", blocks, provider="mine", model="m")
    answer = Message.user(ToolResult("f:0", "x"))
    for origin in (HERE, THERE):
        out = for_origin([theirs, answer], origin)
        assert out[0].content == (Text("because"), ToolUse(portable_id("f:0"), "f"))
        assert out[1].content == (ToolResult(portable_id("f:0"), "x"),)
    byhand = attrs.evolve(theirs, provider=None, model=None)
    assert for_origin([byhand], HERE)[0] is byhand


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("call.1", "call:1", id="msg-12-one-bad-character"),
        pytest.param("x" * 99 + "a", "x" * 99 + "b", id="msg-12-100-characters"),
        pytest.param("", " ", id="msg-12-empty"),
        pytest.param("", "_", id="msg-12-empty-and-valid"),
        pytest.param("call_1\n", "call_1", id="msg-12-trailing-newline"),
        pytest.param("\ud800", "\udfff", id="msg-12-lone-surrogates"),
    ],
)
def test_ids_stay_distinct(one: str, other: str) -> None:
    assert portable_id(one) != portable_id(other)
    assert portable_id(one) == portable_id(one)


@given(st.lists(IDS, unique=True, max_size=20))
def test_msg_12_ids(originals: list[str]) -> None:
    """Every id becomes a portable one, distinct originals distinct ones, a portable one itself."""
    rewritten = [portable_id(original) for original in originals]
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", one) and one.isascii() for one in rewritten)
    assert len(set(rewritten)) == len(originals)
    assert [portable_id(one) for one in rewritten] == rewritten


def test_msg_13_annotations_stay() -> None:
    citations: Any = [{"url": "https://x"}]
    (out,) = for_origin([foreign(Text("a", citations, provider_data={"id": "msg_1"}))], HERE)
    assert out.content == (Text("a", citations),)


BLOCKS = st.one_of(
    st.builds(Text, st.text(max_size=3), provider_data=st.none() | st.just({"id": "x"})),
    st.builds(Thinking, st.sampled_from(["", " ", "hm"]), st.none() | st.just("seal")),
    st.builds(ToolUse, st.sampled_from(["a", "a.b", "a:b", ""]), st.just("f")),
    st.builds(ToolResult, st.sampled_from(["a", "a.b", "a:b", ""]), st.just("x")),
    st.builds(Opaque, st.just("openai"), st.just({})),
)
MESSAGES = st.lists(
    st.builds(
        Message,
        st.sampled_from(["user", "assistant"]),
        st.lists(BLOCKS, max_size=3),
        provider=st.sampled_from([None, "mine"]),
        origin=st.sampled_from([None, HERE, THERE]),
        provider_state=st.none() | st.just({"response_id": "r"}),
        epoch=st.integers(0, 2),
    ),
    max_size=8,
)


def test_msg_08_stale_answers_go_without_reasoning_and_state() -> None:
    """In a conversation that was changed, answers from before keep all but reasoning, wherever it came from."""
    kept = (
        Text("so"),
        ToolUse("c", "f", provider_data={"id": "fc"}),
        ServerToolUse("s", "search"),
        Opaque("anthropic", {}),
    )
    thoughts = (Thinking("a", "seal"), Thinking("b"), Thinking("", provider_data={"type": "redacted_thinking"}))
    state = {"response_id": "r"}
    stale = Message("assistant", (*thoughts, *kept), origin=HERE, provider_state=state, epoch=1)
    byhand = attrs.evolve(stale, origin=None, epoch=0, provider_state=None)
    elsewhere = foreign(Thinking("because"), Text("so"))
    alone = attrs.evolve(stale, content=thoughts)
    plain = Message("assistant", kept, origin=HERE)
    fresh = attrs.evolve(stale, epoch=2)
    messages = [Message.user("hi"), stale, byhand, elsewhere, alone, plain, fresh]
    assert current_epoch(messages) == 2
    out = for_origin(messages, HERE)
    assert [message.content for message in out[1:]] == [kept, kept, (Text("so"),), kept, (*thoughts, *kept)]
    assert [message.provider_state for message in out[1:]] == [None, None, None, None, state]
    assert [out[0], out[4], out[5]] == [messages[0], plain, fresh]
    assert out[4] is plain
    assert out[5] is fresh
    again = for_origin([stale, attrs.evolve(Message.user("In short: …"), epoch=2)], HERE)
    assert again[0].content == kept


def test_the_epoch_of_nothing_is_0() -> None:
    assert current_epoch([]) == 0


@given(MESSAGES)
def test_a_longer_conversation_begins_like_the_shorter_one(messages: list[Message]) -> None:
    """What was sent once is sent again the same, in its epoch, and rewriting what is rewritten changes nothing."""
    out = for_origin(messages, HERE)
    for length in range(len(messages)):
        if current_epoch(messages[:length]) == current_epoch(messages):
            shorter = for_origin(messages[:length], HERE)
            assert out[: len(shorter)] == shorter
    again = for_origin(out, HERE)
    assert all(one is other for one, other in zip(again, out, strict=True))
