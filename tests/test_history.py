"""The growing history: its size, its epoch, and what may take its place."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import attrs
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alloy_trio import InvalidOption, Message, Session, Text, Thinking, ToolResult, ToolUse, run
from alloy_trio._estimate import Size, measure
from alloy_trio._history import History, check_pairs
from alloy_trio.providers import OpenAICompat
from alloy_trio.providers._base import Terms
from alloy_trio.testing import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import Sequence


def thought(text: str, *, epoch: int = 0) -> Message:
    return Message("assistant", (Thinking("I wonder " * 10, "seal"), Text(text)), epoch=epoch)


def call(name: str, *, epoch: int = 0) -> Message:
    return Message("assistant", (ToolUse(name, "read"),), epoch=epoch)


def answer(*names: str) -> Message:
    return Message.user(*(ToolResult(name, "found") for name in names))


def recomputed(messages: Sequence[Message]) -> Size:
    epoch = max((message.epoch for message in messages), default=0)
    return sum((measure(message, reasoning=message.epoch == epoch) for message in messages), Size())


def test_it_grows() -> None:
    history = History([Message.user("a")])
    added = thought("b")
    assert history.append(added) is added
    assert history.messages == (Message.user("a"), added)
    assert len(history) == 2
    assert history.size == recomputed(history.messages)


def test_the_messages_are_one_tuple_until_they_change() -> None:
    history = History([Message.user("a")])
    first = history.messages
    assert history.messages is first
    assert not history.replace(list(first))
    assert history.messages is first
    history.append(Message.assistant("b"))
    assert history.messages is not first
    assert first == (Message.user("a"),)


def test_an_answer_gets_the_epoch() -> None:
    history = History([attrs.evolve(Message.user("a"), epoch=3)])
    assert history.append(thought("b")).epoch == 3
    assert history.append(Message.user("c")).epoch == 0
    assert history.epoch == 3


def test_nothing_changed() -> None:
    history = History([Message.user("a"), thought("b")])
    assert not history.replace([Message.user("a"), thought("b")])
    assert history.epoch == 0


def test_growth_is_appended() -> None:
    history = History([attrs.evolve(Message.user("a"), epoch=2)])
    assert history.replace([*history.messages, thought("b"), Message.user("c")])
    assert history.epoch == 2
    assert [message.epoch for message in history.messages] == [2, 2, 0]
    assert history.size == recomputed(history.messages)


@pytest.mark.parametrize(
    "new",
    [
        pytest.param([Message.user("a"), Message.user("x"), thought("b"), Message.user("c")], id="inserted"),
        pytest.param([Message.user("A"), thought("b"), Message.user("c")], id="first edited"),
        pytest.param([Message.user("a"), thought("B"), Message.user("c")], id="answer edited"),
        pytest.param([Message.user("a"), thought("b")], id="last removed"),
        pytest.param([Message.user("a"), Message.user("c")], id="middle removed"),
        pytest.param([Message.user("c"), thought("b"), Message.user("a")], id="turned round"),
        pytest.param([Message.user("c")], id="cut to the last"),
    ],
)
def test_any_other_change_begins_an_epoch(new: list[Message]) -> None:
    history = History([Message.user("a"), thought("b"), Message.user("c")])
    assert history.replace(new)
    assert history.epoch == 1
    assert max(message.epoch for message in history.messages) == 1
    assert [attrs.evolve(message, epoch=0) for message in history.messages] == new
    reasoned = [message for message in history.messages if message.thinking]
    assert all(message.epoch == 0 for message in reasoned), "reasoning of before is not sent any more"
    assert history.size == recomputed(history.messages)
    assert history.append(thought("d")).epoch == 1


def test_who_is_new_is_marked_and_who_is_old_is_not() -> None:
    old = [Message.user("a"), Message.assistant("b"), Message.user("c")]
    history = History(old)
    history.replace([old[0], Message.user("new"), Message.assistant("new"), old[2]])
    assert [message.epoch for message in history.messages] == [0, 1, 1, 0]
    history.replace(history.messages[1:])
    assert [message.epoch for message in history.messages] == [2, 1, 0]


def test_an_edited_answer_cannot_be_continued_from() -> None:
    """What the provider keeps is the answer as it was."""
    said = attrs.evolve(Message.assistant("b"), provider_state={"response_id": "r"})
    history = History([Message.user("a"), said])
    history.replace([history.messages[0], attrs.evolve(said, content="…")])
    assert [message.epoch for message in history.messages] == [1, 0]


def test_an_equal_message_is_an_old_one() -> None:
    history = History([Message.user("a"), call("1"), answer("1"), thought("b"), Message.user("c")])
    copies = Session.from_json(Session(messages=history.messages).to_json()).messages
    history.replace([Message.user("new"), *copies[3:]])
    assert [message.epoch for message in history.messages] == [1, 0, 0]


def test_the_epoch_is_above_all_that_comes_in() -> None:
    """Messages of another conversation may claim a later epoch."""
    history = History([Message.user("a"), Message.user("b")])
    history.replace([Message.user("c"), thought("d", epoch=7)])
    assert history.epoch == 8
    assert [message.epoch for message in history.messages] == [8, 7]


def test_the_epoch_survives_json() -> None:
    history = History([Message.user("a"), thought("b"), Message.user("c")])
    history.replace([history.messages[0], history.messages[2]])
    again = History(Session.from_json(Session(messages=history.messages).to_json()).messages)
    assert (again.epoch, again.size, again.messages) == (history.epoch, history.size, history.messages)


@pytest.mark.parametrize(
    ("new", "says"),
    [
        pytest.param([], "would be empty", id="empty"),
        pytest.param(["text"], "no message", id="no message"),
        pytest.param([Message.user("a"), answer("1")], "without the call", id="no call"),
        pytest.param([call("1"), Message.assistant("x"), answer("1")], "without their results", id="not right before"),
        pytest.param([call("1"), answer("2")], "without the call", id="another call"),
        pytest.param([call("1"), Message.user("a"), call("2"), answer("2")], "without their results", id="unanswered"),
        pytest.param([call("1"), Message.user("a")], "without their results", id="unanswered at the end"),
        pytest.param([call("1"), answer("1"), Message.assistant("x"), answer("1")], "without the call", id="twice"),
    ],
)
def test_a_split_history_is_refused(new: list[Message], says: str) -> None:
    before = [Message.user("a"), thought("b")]
    history = History(before)
    with pytest.raises(InvalidOption, match=says):
        history.replace(new)
    assert list(history.messages) == before


@pytest.mark.parametrize(
    "new",
    [
        pytest.param([Message.user("a"), call("1")], id="calls that are about to run"),
        pytest.param([Message.user("a"), call("1"), answer("1"), call("1"), answer("1")], id="an id used again"),
        pytest.param(
            [Message.user("a"), Message.assistant(ToolUse("1", "x"), ToolUse("2", "x")), answer("2"), answer("1")],
            id="results one by one",
        ),
    ],
)
def test_a_valid_history_is_taken(new: list[Message]) -> None:
    history = History([Message.user("z")])
    assert history.replace(new)


@pytest.mark.parametrize("left", [1, 3], ids=["an answer", "a call"])
def test_the_assistant_may_not_begin(left: int) -> None:
    """The first messages were dropped, and no user's is left before its answer: Anthropic refuses that."""
    before = [Message.user("a"), thought("b"), Message.user("c"), call("1"), answer("1")]
    history = History(before)
    with pytest.raises(InvalidOption, match=r"begin with the assistant's message.*keep a message of the user's"):
        history.replace(before[left:])
    assert list(history.messages) == before
    assert history.epoch == 0
    assert history.replace(before[2:])


def test_the_assistant_may_begin_as_it_did_before() -> None:
    """The conversation was given so."""
    history = History([Message.assistant("Hello."), Message.user("a"), thought("b"), Message.user("c")])
    assert history.replace([*history.messages, thought("d")])
    assert history.replace([Message.assistant("Hi."), *history.messages[3:]])
    assert history.replace(history.messages[1:])
    with pytest.raises(InvalidOption, match="begin with the assistant"):
        history.replace(history.messages[1:])


_PLAIN = st.sampled_from(["a", "b", "c"]).map(Message.user)
_ANSWERS = st.sampled_from(["a", "b"]).flatmap(
    lambda text: st.sampled_from([Message.assistant(text), thought(text), thought(text, epoch=2)])
)
_TURNS = st.lists(st.one_of(_PLAIN, _ANSWERS, st.sampled_from(["1", "2"]).map(call)), min_size=1, max_size=8)


def _valid(messages: list[Message]) -> list[Message]:
    """Answer each call."""
    out: list[Message] = []
    for message in messages:
        out.append(message)
        if names := [use.id for use in message.tool_uses]:
            out.append(answer(*names))
    return out


class Histories(RuleBasedStateMachine):
    """Size and epoch of a history are what its messages alone say, whatever was done to it."""

    @initialize(messages=_TURNS)
    def begin(self, messages: list[Message]) -> None:
        self.history = History(_valid(messages))
        self.highest = self.history.epoch

    @rule(message=_PLAIN | _ANSWERS)
    def append(self, message: Message) -> None:
        self.history.append(message)

    @rule(messages=_TURNS)
    def extend(self, messages: list[Message]) -> None:
        before = self.history.messages
        assert self.history.replace([*before, *_valid(messages)])
        assert self.history.epoch == self.highest
        assert self.history.messages[: len(before)] == before

    @rule(messages=_TURNS, kept=st.integers(0, 3))
    def exchange(self, messages: list[Message], kept: int) -> None:
        before = self.history.messages
        new = _valid(messages) + [
            message for message in before[-kept:] if not (message.tool_results or message.tool_uses)
        ]
        if before[0].role == "user" and new[0].role == "assistant":
            new.insert(0, Message.user("first"))
        grows = len(new) >= len(before) and tuple(new[: len(before)]) == before
        changed = self.history.replace(new)
        assert changed == (tuple(new) != before)
        assert self.history.epoch == self.highest if grows else self.history.epoch > self.highest

    @invariant()
    def says_what_its_messages_say(self) -> None:
        messages = self.history.messages
        assert self.history.size == recomputed(messages)
        assert self.history.epoch == max(message.epoch for message in messages)
        assert self.history.epoch >= self.highest
        assert len(self.history) == len(messages)
        self.highest = self.history.epoch


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=50, stateful_step_count=20)


async def test_two_calls_of_one_id_do_not_end_a_conversation() -> None:
    """Some servers number the calls of an answer with one number; what stands there once can be gone on from, and changed."""
    session = Session()
    for prompt, said in [("Be brief.", [ToolUse("call_0", "read"), ToolUse("call_0", "read")]), ("Be kind.", ["Yes."])]:
        provider = ScriptedProvider([said, "Yes."])  # type: ignore[list-item] # a list is invariant
        provider.terms = Terms(seals_prefix=True)  # type: ignore[attr-defined] # then other instructions begin an epoch
        result = await run("Go", provider=provider, session=session, system_prompt=prompt)
        assert result.status == "completed"
    with pytest.raises(InvalidOption, match="answered"):
        check_pairs([*result.messages[:2], Message.user(*result.messages[2].content, *result.messages[2].content)])


@given(_TURNS, _TURNS)
def test_no_old_reasoning_counts_after_a_change(old: list[Message], new: list[Message]) -> None:
    history = History(_valid(old))
    if history.replace([Message.user("first"), *_valid(old), *_valid(new)]):
        assert history.size == sum((measure(message, reasoning=False) for message in history.messages), Size())


async def test_the_next_run_of_a_session_goes_on_with_what_the_last_one_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message is measured twice; unless somebody has put other messages there."""
    measured: list[Message] = []

    def noted(message: Message, *, reasoning: bool = True) -> Size:
        measured.append(message)
        return measure(message, reasoning=reasoning)

    monkeypatch.setattr("alloy_trio._history.measure", noted)
    session = Session()
    provider = ScriptedProvider(["One.", "Two.", "Three."])
    for question in ("first", "second"):
        await run(question, provider=provider, session=session)
    assert [message.text for message in measured] == ["first", "One.", "second", "Two."]
    session.messages = session.messages[:2]
    await run("third", provider=provider, session=session)
    assert [message.text for message in measured[4:]] == ["first", "One.", "third", "Three."]
    assert [message.text for message in provider.requests[-1].messages] == ["first", "One.", "third"]


async def test_what_a_run_knew_stays_in_the_process() -> None:
    """A provider, and with it a key, is among what it knew."""
    session = Session()
    await run("go", provider=ScriptedProvider(["One."]), session=session)
    for other in (pickle.loads(pickle.dumps(session)), copy.deepcopy(session)):
        assert other == session
        assert other._kept.take(other.messages) is None
    assert session._kept.take(session.messages) is not None


async def test_what_another_provider_has_serialized_is_not_kept() -> None:
    """Many programs make a provider for each run."""
    session = Session()

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        for _ in range(3):
            await run("go", provider=OpenAICompat("m", http_client=client), session=session)
        history = session._kept.take(session.messages)
    assert history is not None
    assert len(history.transcripts) == 1
