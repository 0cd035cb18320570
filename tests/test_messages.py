"""Messages, usage and sessions; and that they go to JSON and back without loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import (
    Audio,
    Document,
    Image,
    InvalidOption,
    Message,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    Video,
)
from alloy_trio.events import BlockEnd, Envelope
from alloy_trio.testing import ScriptedProvider, run_with_responses, text

if TYPE_CHECKING:
    from collections.abc import Callable


def test_msg_01_roles_and_media() -> None:
    picture = Image("image/png", b"png")
    message = Message.user("look", picture, Document("application/pdf", "https://example.org/a.pdf"))
    assert message.role == "user"
    assert message.content[0] == Text("look")
    assert (picture.mime_type, picture.data) == ("image/png", "cG5n")
    assert Image("image/png", "cG5n") == picture
    assert message.content[2].uri == "https://example.org/a.pdf"  # type: ignore[union-attr]
    assert Document("text/plain", data=b"abc").data == "YWJj"
    assert Message.assistant("yes").role == "assistant"
    assert isinstance(Message("user", [Text("a"), "b"]).content, tuple)


def test_msg_01_what_is_no_message() -> None:
    with pytest.raises(InvalidOption, match="system_prompt"):
        Message("system", "Be brief.")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="no block"):
        Message.user({"type": "text", "text": "hi"})  # type: ignore[arg-type]


def test_msg_02_text_ignores_everything_else() -> None:
    message = Message.assistant(
        Thinking("hm"),
        Text("a"),
        ToolUse("1", "t"),
        Text("b"),
        Image("image/png", b""),
        ServerToolUse("2", "s"),
    )
    assert message.text == "ab"


@pytest.mark.parametrize("blocks", [(Image("image/png", b""),), ()], ids=["msg-03-media", "msg-03-empty"])
def test_msg_03_no_text(blocks: tuple[Image, ...]) -> None:
    assert Message("user", blocks).text == ""


def test_msg_04_tool_uses_are_the_clients() -> None:
    call = ToolUse("1", "t")
    assert Message.assistant(ServerToolUse("2", "s"), call).tool_uses == (call,)
    assert Message.assistant(ServerToolUse("2", "s")).tool_uses == ()
    answer = ToolResult("1", "done")
    assert Message.user(answer, "and now?").tool_results == (answer,)


def test_msg_05_error_flag() -> None:
    assert ToolResult("1", "bad", is_error=True).is_error
    assert not ToolResult("1", "good").is_error


def test_msg_06_thinking_joined_by_newlines() -> None:
    assert Message.assistant(Thinking("a"), Text("x"), Thinking("b")).thinking == "a\nb"
    assert Message.assistant("x").thinking is None


async def test_msg_07_messages_of_the_loop_say_where_they_come_from() -> None:
    result = await run_with_responses("go", [text("x")])
    mine, its = result.messages
    assert (mine.provider, mine.model, mine.origin) == (None, None, None)
    assert (its.provider, its.model) == ("scripted", "scripted")
    assert ScriptedProvider([]).name == "scripted"


def test_msg_13_annotations_stay_with_their_text() -> None:
    cited = Text("a", ({"url": "u"},))
    message = Message.assistant(cited, Text("b"))
    assert round_trip(Session(messages=[message])).messages[0].content == (cited, Text("b"))


def test_blocks_are_frozen_and_data_stays_out_of_a_repr() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Text("a").text = "b"  # type: ignore[misc]
    assert "cG5n" not in repr(Image("image/png", b"png"))


@pytest.mark.parametrize(
    ("left", "right", "total"),
    [
        (Usage(1, 2, 3, 4, 5, 6, 7), Usage(10, 20, 30, 40, 50, 60, 70), Usage(11, 22, 33, 44, 55, 66, 77)),
        (Usage(estimated=True), Usage(1), Usage(1, estimated=True)),
    ],
)
def test_usage_adds_and_stays_estimated(left: Usage, right: Usage, total: Usage) -> None:
    assert left + right == right + left == total


# JSON

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=3)
MAYBE_OBJECT = st.none() | OBJECT


def media(kind: Callable[..., Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, st.text(), data=st.none() | st.binary(), uri=st.none() | st.text())


RESULT_BLOCKS = st.one_of(
    st.builds(Text, st.text(), st.lists(OBJECT, max_size=2), MAYBE_OBJECT),
    media(Image),
    media(Audio),
    media(Video),
    media(Document),
    st.builds(Opaque, st.text(), OBJECT),
)
BLOCKS = RESULT_BLOCKS | st.one_of(
    st.builds(Thinking, st.text(), st.none() | st.text(), MAYBE_OBJECT),
    st.builds(ToolUse, st.text(), st.text(), OBJECT, st.none() | st.text(), MAYBE_OBJECT),
    st.builds(
        ToolResult,
        st.text(),
        st.lists(RESULT_BLOCKS, max_size=3) | st.text(),
        st.booleans(),
        st.sampled_from(["ok", "error", "timed_out", "cancelled", "blocked", "abandoned"]),
    ),
    st.builds(ServerToolUse, st.text(), st.text(), OBJECT, MAYBE_OBJECT),
    st.builds(ServerToolResult, st.text(), OBJECT),
)
MESSAGES = st.builds(
    Message,
    st.sampled_from(["user", "assistant"]),
    st.lists(BLOCKS, max_size=4),
    provider=st.none() | st.text(),
    model=st.none() | st.text(),
    origin=st.none() | st.text(),
    provider_state=MAYBE_OBJECT,
    interrupted=st.booleans(),
)
COUNT = st.integers(0, 2**40)
USAGES = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, st.booleans())
SESSIONS = st.builds(
    Session,
    id=st.text(),
    messages=st.lists(MESSAGES, max_size=4),
    usage=USAGES,
    metadata=OBJECT,
)


def round_trip(session: Session) -> Session:
    return Session.from_json(session.to_json())


@given(SESSIONS)
def test_sessions_and_messages_go_to_json_and_back(session: Session) -> None:
    again = round_trip(session)
    assert again == session
    assert [type(b) for m in again.messages for b in m.content] == [
        type(b) for m in session.messages for b in m.content
    ]


@given(BLOCKS)
def test_events_go_to_json_and_back(block: Any) -> None:
    envelope = Envelope(seq=1, correlation_id="c", turn=2, ts=1.5, event=BlockEnd(block))
    assert Envelope.from_dict(json.loads(json.dumps(envelope.to_dict()))) == envelope


@given(OBJECT)
def test_a_block_of_a_newer_version_survives_as_opaque(fields: dict[str, Any]) -> None:
    block = {**fields, "type": "hologram"}
    data = json.dumps({"id": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, block]}]})
    session = Session.from_json(data)
    assert session.messages[0].content == (Text("a"), Opaque("", block))
    assert round_trip(session) == session


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "truncated"),
        ("[]", "expected a JSON object"),
        ("{}", "no id"),
        ('{"id": "s", "messages": [{"role": "user"}]}', "$.messages[0].content"),
        ('{"id": "s", "messages": [{"role": "user", "content": [{"type": "text"}]}]}', "$.messages[0].content[0].text"),
        ('{"id": "s", "usage": {"input_tokens": "many"}}', "$.usage.input_tokens"),
        (
            '{"id": "s", "messages": [{"role": "user", "content": [{"type": "opaque", "provider": "p", "payload": "x"}]}]}',
            "$.messages[0].content[0]",
        ),
    ],
)
def test_what_is_no_session_says_where(data: str, says: str) -> None:
    with pytest.raises(ValueError, match="no Session") as caught:
        Session.from_json(data)
    assert says in str(caught.value)


def test_ses_01_a_new_session() -> None:
    one, two = Session(), Session()
    assert one.id
    assert one.id != two.id
    assert one.created_at == one.updated_at
    assert (one.messages, one.usage, one.metadata) == ((), Usage(), {})
    assert Session(id="mine", metadata={"k": 1}).metadata == {"k": 1}
    assert Session(id="mine").id == "mine"


def test_ses_02_update_keeps_id_created_and_metadata() -> None:
    session = Session(id="s", metadata={"mine": 1})
    created = session.created_at
    session.update([Message.user("a")], Usage(1), {"provider_state": {"x": 1}})
    assert (session.id, session.created_at, session.usage) == ("s", created, Usage(1))
    assert session.metadata == {"mine": 1, "provider_state": {"x": 1}}
    assert session.updated_at > created
