"""Compaction: what goes, what stays, what is said of it; alone on a small fake of a run, and in whole runs."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rules import check_history

from alloy_trio import (
    Audio,
    Compaction,
    Document,
    Image,
    InvalidOption,
    Message,
    Opaque,
    ProviderError,
    ServerToolResult,
    ServerToolUse,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    run,
    stream,
    tool,
)
from alloy_trio._estimate import Size, estimator_for, measure
from alloy_trio._history import History, check_pairs
from alloy_trio._shorten import PLACEHOLDER, clear_results, squeeze, truncate, where_to_cut, without_oldest
from alloy_trio._summary import LEFT_OUT, PREFIX, clip, summary_in, summary_message, transcript
from alloy_trio.events import Compacted, TextDelta
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request, Response, StopReason
from alloy_trio.providers._json import encode
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alloy_trio._events import Envelope
    from alloy_trio._messages import Block
    from alloy_trio._middleware import RunState


class FakeRun:
    """As much of a run as a compaction may use."""

    provider = "fake"
    model = "fake"
    turns = 0

    def __init__(
        self,
        messages: Iterable[Message],
        window: int,
        *replies: str | Exception | Response,
        fixed: int = 0,
        on_compaction: Any = None,
        max_output_tokens: int | None = None,
    ) -> None:
        self.history = History(messages)
        self.context_tokens = window
        self.max_output_tokens = max_output_tokens
        self.on_compaction = on_compaction
        self.asked: list[Request] = []
        self.kinds: list[str] = []
        self.fixed = Size(4 * fixed, 0)
        self._replies = list(replies)

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.history.messages

    @property
    def estimated_tokens(self) -> int:
        return estimator_for(self.provider, self.model).tokens(self.fixed + self.history.size)

    async def ask(self, request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return Response(message=Message.assistant(reply)) if isinstance(reply, str) else reply

    async def compacted(self, messages: Iterable[Message], kind: str, *, final: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        if self.history.replace(messages):
            self.kinds.append(kind)

    @property
    def state(self) -> RunState:
        return cast("RunState", self)


def words(tokens: int, word: str = "word") -> str:
    """Return a text of so many tokens, as they are counted here."""
    return (f"{word} " * 4 * tokens)[: 4 * tokens]


def call(name: str, tool_name: str = "read", **arguments: object) -> Message:
    return Message.assistant(Text(f"I call {name}."), ToolUse(name, tool_name, arguments))


def result(name: str, tokens: int) -> Message:
    return Message.user(ToolResult(name, words(tokens, name), is_error=name.endswith("!")))


def talk(turns: int, tokens: int, answer: int = 0) -> list[Message]:
    """Return a conversation: a request, and turns with a call, its result of so many tokens, and maybe an answer."""
    messages = [Message.user("Find out all about it.")]
    for turn in range(turns):
        messages += [call(f"c{turn}"), result(f"c{turn}", tokens)]
        if answer:
            messages += [Message.assistant(words(answer, f"answer{turn}")), Message.user(f"Go on, part {turn + 1}.")]
    return messages


def results_of(messages: Sequence[Message]) -> list[ToolResult]:
    return [each for message in messages for each in message.tool_results]


def summaries(messages: Sequence[Message]) -> list[str]:
    return [text for message in messages if (text := summary_in(message)) is not None]


# What Compaction decides


async def test_cmp_01_within_budget_nothing_happens() -> None:
    fake = FakeRun(talk(5, 100), 2000, on_compaction=lambda *_: pytest.fail("called"))
    before = fake.messages
    await Compaction().before_completion(fake.state)
    assert fake.messages is before
    assert (fake.asked, fake.kinds) == ([], [])


@pytest.mark.parametrize("calibrated", [True, False])
async def test_cmp_02_the_trigger_is_the_window_less_the_reserve(*, calibrated: bool) -> None:
    """An estimate that nothing has calibrated has a tenth on top."""
    estimator_for("fake", "fake").calibrated = calibrated
    limit = 900 if calibrated else 818  # 900 / 1.1
    for total, compacts in ((limit, False), (limit + 1, True)):
        messages = [Message.user("x"), Message.assistant("y" * 800), Message.user("z")]
        fixed = total - FakeRun(messages, 1000).estimated_tokens
        fake = FakeRun(messages, 1000, "Well.", fixed=fixed)
        assert fake.estimated_tokens == total
        await Compaction(reserve_tokens=100).before_completion(fake.state)
        assert bool(fake.kinds) == compacts


@pytest.mark.parametrize(
    ("window", "reserve", "recent"),
    [
        pytest.param(80, 8, 10, id="cmp-12 80 tokens"),
        pytest.param(5, 1, 1, id="cmp-12 5 tokens"),
        pytest.param(1, 1, 1, id="cmp-12 1 token"),
        pytest.param(200_000, 16_000, 20_000, id="cmp-12 200,000 tokens"),
    ],
)
def test_the_defaults_scale_with_the_window(window: int, reserve: int, recent: int) -> None:
    compaction = Compaction()
    assert (compaction.reserved(window), compaction.recent(window)) == (reserve, recent)


def test_cmp_12_other_defaults() -> None:
    compaction = Compaction()
    assert (compaction.fallback, compaction.clear_tool_results, compaction.keep_recent_tool_results) == (
        "truncate",
        True,
        3,
    )


def test_a_reserve_larger_than_the_window_leaves_half() -> None:
    assert Compaction(reserve_tokens=16_000).reserved(8000) == 4000


@pytest.mark.parametrize(
    ("options", "names"),
    [
        pytest.param({"keep_everything": True}, "keep_everything", id="cmp-13 unknown"),
        pytest.param({"clear_tool_results": 1}, "clear_tool_results", id="cmp-13 no bool"),
        pytest.param({"keep_recent_tool_results": -1}, "keep_recent_tool_results", id="cmp-13 negative"),
        pytest.param({"keep_recent_tool_results": 1.5}, "keep_recent_tool_results", id="cmp-13 no number"),
        pytest.param({"summary_prompt": 5}, "summary_prompt", id="cmp-13 no text"),
        pytest.param({"update_prompt": " "}, "update_prompt", id="cmp-13 blank text"),
        pytest.param({"reserve_tokens": 0}, "reserve_tokens", id="cmp-13 no reserve"),
        pytest.param({"keep_recent_tokens": True}, "keep_recent_tokens", id="cmp-13 a bool"),
        pytest.param({"fallback": "summary"}, "fallback", id="cmp-13 fallback"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], names: str) -> None:
    with pytest.raises(TypeError, match=names):
        Compaction(**options)


def test_cmp_13_none_may_be_kept() -> None:
    assert Compaction(keep_recent_tool_results=0).keep_recent_tool_results == 0


async def test_cmp_04_old_results_are_cleared_first() -> None:
    messages = talk(30, 100)
    messages[6] = attrs.evolve(messages[6], content=(ToolResult("c2", words(100), is_error=True, outcome="timed_out"),))
    fake = FakeRun(messages, 3500)
    await Compaction().before_completion(fake.state)
    assert (fake.kinds, fake.asked) == (["cleared"], [])
    assert len(fake.messages) == len(messages)
    cleared = [each for each in results_of(fake.messages) if each.text == PLACEHOLDER]
    assert 20 < len(cleared) < 30
    assert cleared == results_of(fake.messages)[: len(cleared)], "the recent ones stay"
    assert cleared[2] == ToolResult("c2", PLACEHOLDER, is_error=True, outcome="timed_out")
    assert [each.tool_use_id for each in cleared] == [f"c{turn}" for turn in range(len(cleared))]
    assert fake.estimated_tokens <= 0.75 * 3500


@pytest.mark.parametrize("kept", [0, 1, 5])
async def test_cmp_12_the_last_results_are_not_cleared(kept: int) -> None:
    messages = [*talk(10, 300), Message.assistant("So it is."), Message.user("Go on.")]
    fake = FakeRun(messages, 4200)
    await Compaction(keep_recent_tool_results=kept, keep_recent_tokens=1).before_completion(fake.state)
    assert fake.kinds == ["cleared"]
    assert [each.text != PLACEHOLDER for each in results_of(fake.messages)] == [False] * (10 - kept) + [True] * kept


async def test_clearing_can_be_turned_off() -> None:
    fake = FakeRun(talk(30, 100), 3500, "All is well.")
    await Compaction(clear_tool_results=False).before_completion(fake.state)
    assert fake.kinds == ["summarized"]


async def test_cmp_03_first_and_recent_messages_stay() -> None:
    messages = talk(20, 50, answer=100)
    fake = FakeRun(messages, 3500, "It went well.")
    await Compaction(keep_recent_tokens=600).before_completion(fake.state)
    assert fake.messages[0] is messages[0]
    assert fake.messages[1] == attrs.evolve(summary_message("It went well."), epoch=fake.history.epoch)
    recent = fake.messages[2:]
    assert all(new is old for new, old in zip(recent, messages[-len(recent) :], strict=True))
    size = sum((measure(message) for message in recent), Size())
    assert 400 <= size.text / 4 <= 600
    assert fake.estimated_tokens < 0.75 * 3500


async def test_cmp_06_the_request_for_a_summary() -> None:
    messages = talk(20, 50, answer=100)
    messages[1] = attrs.evolve(messages[1], provider_state={"response_id": "r1"})
    fake = FakeRun(messages, 3500, "It went well.")
    await Compaction().before_completion(fake.state)
    [request] = fake.asked
    [message] = request.messages
    assert message.role == "user"
    assert message.provider_state is None
    assert (request.tools, request.system_prompt, request.tool_choice) == ((), None, None)
    assert request.max_output_tokens is not None
    for part in ("Find out", "[call of read]", "c0 c0 c0", "answer0 answer0", "## Next steps", "word by word"):
        assert part in message.text or part == "Find out"
    assert "Find out all about it." not in message.text, "the first message stays"
    assert messages[-1].text not in message.text, "so does the last"
    assert measure(message).text / 4 + request.max_output_tokens < 3500


async def test_cmp_07_a_summary_is_updated_not_stacked() -> None:
    fake = FakeRun(talk(20, 50, answer=100), 3500, "First things.", "First and second things.")
    compaction = Compaction(update_prompt="Mend the summary.")
    await compaction.before_completion(fake.state)
    assert summaries(fake.messages) == ["First things."]
    for message in talk(18, 50, answer=100)[1:]:
        fake.history.append(message)
    await compaction.before_completion(fake.state)
    assert summaries(fake.messages) == ["First and second things."]
    assert summary_in(fake.messages[1]) == "First and second things."
    asked = fake.asked[1].messages[0].text
    assert asked.count("First things.") == 1
    assert asked.count(PREFIX) == 0
    assert "Mend the summary." in asked
    assert "Mend the summary." not in fake.asked[0].messages[0].text


async def test_own_prompts_replace_ours() -> None:
    fake = FakeRun(talk(20, 50, answer=100), 3500, "So be it.")
    await Compaction(summary_prompt="Be {brief}!").before_completion(fake.state)
    asked = fake.asked[0].messages[0].text
    assert "Be {brief}!" in asked
    assert "## Next steps" not in asked


@pytest.mark.parametrize("keep", [1, 20, 130, 140, 1000])
async def test_cmp_08_no_result_without_its_call(keep: int) -> None:
    fake = FakeRun(talk(40, 100), 3500, "Well.")
    await Compaction(keep_recent_tokens=keep, clear_tool_results=False).before_completion(fake.state)
    assert fake.kinds == ["summarized"]
    check_pairs(fake.messages)
    assert not fake.messages[2].tool_results
    assert fake.messages[-1].tool_results


async def test_cmp_09_one_huge_turn_is_split() -> None:
    """One request, then tools only: what is kept begins with an answer, behind the summary."""
    messages = talk(60, 60)
    fake = FakeRun(messages, 3500, "So far so good.")
    await Compaction(clear_tool_results=False).before_completion(fake.state)
    assert [message.role for message in fake.messages[:3]] == ["user", "user", "assistant"]
    assert fake.messages[2:] == tuple(messages[-len(fake.messages) + 2 :])
    check_history(fake.messages)


FAILURES = {
    "cmp-10 an error": ProviderError("no"),
    "cmp-10 nothing": "  \n",
    "cmp-10 refused": Response(message=Message.assistant("I won't."), stop_reason=StopReason.REFUSAL),
    "cmp-10 cut at the cap": Response(message=Message.assistant("It was"), stop_reason=StopReason.MAX_TOKENS),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_truncated_without_a_summary(
    failure: str | Exception | Response, caplog: pytest.LogCaptureFixture
) -> None:
    messages = talk(20, 50, answer=200)
    fake = FakeRun(messages, 4000, failure)
    with caplog.at_level(logging.WARNING, "alloy_trio"):
        await Compaction().before_completion(fake.state)
    assert fake.kinds == ["truncated"]
    assert "summar" in caplog.text
    assert summaries(fake.messages) == []
    assert len(fake.messages) == len(messages)
    assert fake.messages[3].text == messages[3].text[:200] + "…"
    assert fake.messages[2].tool_results[0].text == PLACEHOLDER
    assert fake.messages[-2:] == tuple(messages[-2:])


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_no_fallback_leaves_all_as_it_is(
    failure: str | Exception | Response, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRun(talk(20, 50, answer=100), 3500, failure, on_compaction=lambda *_: pytest.fail("nothing goes"))
    before = fake.messages
    await Compaction(fallback=None).before_completion(fake.state)
    assert fake.messages is before
    assert "summar" in caplog.text


async def test_other_errors_pass_through() -> None:
    class Exhausted(Exception):
        pass

    fake = FakeRun(talk(20, 50, answer=100), 3500, Exhausted())
    before = fake.messages
    with pytest.raises(Exhausted):
        await Compaction().before_completion(fake.state)
    assert fake.messages is before


async def test_an_earlier_summary_survives_truncation() -> None:
    messages = talk(20, 50, answer=200)
    messages.insert(1, summary_message("What was before."))
    fake = FakeRun(messages, 4000, ProviderError("no"))
    await Compaction().before_completion(fake.state)
    assert fake.kinds == ["truncated"]
    assert summaries(fake.messages) == ["What was before."]


async def test_a_summary_that_is_too_long_is_cut() -> None:
    fake = FakeRun(talk(20, 50, answer=100), 3500, words(3000, "summary"))
    await Compaction(clear_tool_results=False).before_completion(fake.state)
    assert fake.kinds == ["summarized"]
    assert "bytes left out" in fake.messages[1].text
    assert fake.estimated_tokens < 0.75 * 3500


async def test_cmp_11_the_callback_sees_what_goes_before_it_goes() -> None:
    seen: list[tuple[Message, ...]] = []

    async def callback(messages: tuple[Message, ...], state: RunState) -> None:
        await trio.lowlevel.checkpoint()
        assert state is cast("Any", fake)
        assert state.messages is before
        seen.append(messages)

    messages = talk(20, 50, answer=100)
    fake = FakeRun(messages, 3500, "Well.", on_compaction=callback)
    before = fake.messages
    await Compaction().before_completion(fake.state)
    kept = len(fake.messages) - 2
    assert seen == [tuple(messages[1:-kept])]


async def test_cmp_11_a_plain_function_sees_what_is_cleared() -> None:
    seen: list[tuple[Message, ...]] = []
    fake = FakeRun(talk(30, 100), 3500, on_compaction=lambda messages, _: seen.append(messages))
    await Compaction().before_completion(fake.state)
    assert len(seen) == 1
    assert seen[0]
    assert PLACEHOLDER not in {each.text for each in results_of(seen[0])}


async def test_cmp_11_one_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def callback(*_: object) -> None:
        raise ZeroDivisionError

    fake = FakeRun(talk(30, 100), 3500, on_compaction=callback)
    await Compaction().before_completion(fake.state)
    assert fake.kinds == ["cleared"]
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text


async def test_cmp_19_clearing_that_is_not_enough_and_a_summary() -> None:
    fake = FakeRun(talk(20, 100, answer=100), 3500, "Well.")
    await Compaction().before_completion(fake.state)
    assert fake.kinds == ["cleared", "summarized"]
    assert "c0 c0 c0" in fake.asked[0].messages[0].text, "the summary is of what was there"


async def test_clearing_has_to_bring_it_well_below_the_limit() -> None:
    """Just below it, the next turns would change the conversation again and again."""
    messages = talk(20, 120, answer=290)
    fake = FakeRun(messages, 10_000, "Well.")
    cleared = FakeRun(clear_results(tuple(messages), spared=3), 10_000).estimated_tokens
    assert 0.8 * 9000 / 1.1 < cleared < 9000 / 1.1 < fake.estimated_tokens
    await Compaction(keep_recent_tokens=1).before_completion(fake.state)
    assert fake.kinds == ["cleared", "summarized"]


async def test_cmp_05_reasoning_of_before_counts_no_more() -> None:
    messages = talk(20, 50, answer=100)
    for place in range(1, len(messages), 4):
        messages[place] = attrs.evolve(messages[place], content=(Thinking(words(30)), *messages[place].content))
    fake = FakeRun(messages, 3500, "Well.")
    await Compaction().before_completion(fake.state)
    assert fake.history.epoch > 0
    reasoned = [message for message in fake.messages if message.thinking]
    assert reasoned
    assert all(message.epoch < fake.history.epoch for message in reasoned)
    assert fake.history.size == sum((measure(message, reasoning=False) for message in fake.messages), Size())
    for provider in (Anthropic("m", api_key="k"), OpenAI("m", api_key="k"), OpenAICompat("m")):
        body = provider.encode(Request(messages=fake.messages), stream=True).body
        assert words(30).encode() not in body


async def test_cmp_05_nor_in_an_answer_that_was_cut() -> None:
    messages = talk(20, 50, answer=200)
    messages[3] = attrs.evolve(messages[3], content=(Thinking("hm", "seal"), *messages[3].content))
    fake = FakeRun(messages, 4000, ProviderError("no"))
    await Compaction().before_completion(fake.state)
    assert fake.messages[3].text.endswith("…")
    assert fake.messages[3].epoch < fake.history.epoch


async def test_a_window_too_small_for_a_summary(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeRun(talk(20, 50, answer=100), 300)
    await Compaction().before_completion(fake.state)
    assert fake.asked == []
    assert "too small" in caplog.text
    assert fake.estimated_tokens <= 270
    check_history(fake.messages)


async def test_one_giant_result_is_clipped_to_fit() -> None:
    messages = [Message.user("Read it."), call("c0"), result("c0", 90_000)]
    fake = FakeRun(messages, 32_000, on_compaction=lambda gone, _: seen.append(gone))
    seen: list[object] = []
    await Compaction().before_completion(fake.state)
    assert fake.kinds == ["truncated"]
    assert fake.asked == []
    assert 20_000 < fake.estimated_tokens <= 28_800
    shown = results_of(fake.messages)[0].text
    assert shown.startswith("c0 c0")
    assert shown.endswith("c0 ")
    assert "bytes left out" in shown
    assert seen == [(messages[2],)]
    check_history(fake.messages)


async def test_several_giant_results_the_oldest_are_clipped_first() -> None:
    calls = Message.assistant(*(ToolUse(f"c{n}", "read") for n in range(3)))
    results = Message.user(*(ToolResult(f"c{n}", words(15_000, f"c{n}")) for n in range(3)))
    fake = FakeRun([Message.user("Read them."), calls, results], 32_000)
    await Compaction().before_completion(fake.state)
    first, second, third = (len(each.text) for each in results_of(fake.messages))
    assert first < 500
    assert second < third == 60_000
    assert fake.estimated_tokens <= 28_800


async def test_a_giant_paste_is_clipped_but_not_the_last() -> None:
    messages = [Message.user("Read:" + words(50_000)), Message.assistant("Done."), Message.user(words(5000, "now"))]
    fake = FakeRun(messages, 32_000)
    await Compaction().before_completion(fake.state)
    assert fake.messages[2].text == messages[2].text
    assert fake.messages[0].text.startswith("Read:word")
    assert fake.estimated_tokens <= 28_800


async def test_a_giant_last_message_stays_whole() -> None:
    messages = [Message.user("Hi."), Message.assistant("Hi."), Message.user(words(50_000))]
    fake = FakeRun(messages, 32_000)
    await Compaction().before_completion(fake.state)
    assert fake.messages[-1] == messages[-1]


@pytest.mark.parametrize("reply", ["Well.", ProviderError("no")], ids=["summarized", "truncated"])
async def test_the_latest_request_stays_in_its_own_words(reply: str | Exception) -> None:
    """It is in the middle by then: behind it is a long tool loop."""
    asked = Message.user(words(500, "LATEST"))
    begin = [*talk(5, 50, answer=100), asked]
    fake = FakeRun([*begin, *talk(200, 20)[1:]], 8000, reply, reply)
    seen: list[tuple[Message, ...]] = []
    fake.on_compaction = lambda gone, _: seen.append(gone)
    compaction = Compaction(clear_tool_results=False)
    await compaction.before_completion(fake.state)
    assert fake.kinds == ["summarized" if reply == "Well." else "truncated"]
    assert summary_in(fake.messages[1]) == ("Well." if reply == "Well." else LEFT_OUT)
    assert fake.messages[2] is asked
    assert fake.messages[3].role == "assistant"
    assert fake.estimated_tokens < 0.75 * 7200
    assert seen
    assert reply != "Well." or asked not in seen[0]
    for message in talk(200, 20)[1:]:
        fake.history.append(message)
    await compaction.before_completion(fake.state)
    assert [message for message in fake.messages if message.text == asked.text] == [asked], "it stays, once"
    fake.history.append(Message.assistant("Done."))
    fake.history.append(Message.user("Something else."))
    for message in talk(200, 20)[1:]:
        fake.history.append(message)
    fake._replies = [reply]
    await compaction.before_completion(fake.state)
    assert [message.text for message in fake.messages[2:3]] == ["Something else."], "now another one is the latest"
    assert asked not in fake.messages


async def test_a_latest_request_of_most_of_the_room_is_clipped() -> None:
    begin = [Message.user("Hi."), Message.assistant("Hi."), Message.user(words(24_000, "LATEST"))]
    fake = FakeRun([*begin, *talk(30, 200)[1:]], 32_000, "Well.")
    await Compaction().before_completion(fake.state)
    assert fake.estimated_tokens < 0.9 * 28_800
    assert any(message.text.startswith("LATEST") and "left out" in message.text for message in fake.messages)


def test_leaving_out_the_oldest_takes_no_room_of_its_own() -> None:
    """Neither the time nor the memory for it grows with the square of the messages."""
    messages = tuple(Message("user" if number % 2 else "assistant", f"{number}") for number in range(1, 4001))
    asked = 0

    def surplus(messages: Sequence[Message], *, comfortably: bool = False) -> int:
        nonlocal asked
        asked += 1
        return len(messages) - 1000

    tracemalloc.start()
    try:
        shorter = without_oldest(messages, surplus, keep=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(shorter), shorter[0], shorter[-1]) == (1000, messages[0], messages[-1])
    assert asked < 20
    assert peak < 5_000_000


async def test_a_giant_input_is_clipped() -> None:
    messages = [Message.user("Write it."), call("c0", "write", path="a", text=[words(90_000)]), result("c0", 1)]
    fake = FakeRun(messages, 32_000)
    await Compaction().before_completion(fake.state)
    assert fake.estimated_tokens <= 28_800
    assert fake.messages[1].tool_uses[0].input["path"] == "a"


@pytest.mark.parametrize("kept", [None, {"id": "fc_1"}])
async def test_a_clipped_input_is_not_kept_letter_by_letter_either(kept: dict[str, Any] | None) -> None:
    given = {"path": "a", "text": words(90_000)}
    raw = encode(given).decode().replace(":", ": ")
    use = ToolUse("c0", "write", given, provider_data={**(kept or {}), "arguments": raw})
    fake = FakeRun([Message.user("Write it."), Message.assistant(use), result("c0", 1)], 32_000)
    await Compaction().before_completion(fake.state)
    assert fake.estimated_tokens <= 28_800
    [clipped] = fake.messages[1].tool_uses
    assert clipped.provider_data == kept
    assert "bytes left out" in clipped.input["text"]
    sent = OpenAI("m", api_key="k").encode(Request(messages=fake.messages), stream=True).body
    assert len(sent) < 4 * 28_800


def test_a_call_in_which_nothing_can_be_clipped_stays_as_it_is() -> None:
    use = ToolUse("c0", "write", {str(number): number for number in range(500)}, provider_data={"arguments": "{…}"})
    messages = (Message.user("Write it."), Message.assistant(use), result("c0", 1))
    assert squeeze(messages, lambda _, comfortably=False: 1000, drop=False)[1] is messages[1]


async def test_images_in_results_go_too() -> None:
    shots = tuple(Image("image/png", "AAAA") for _ in range(20))
    messages = [Message.user("Look."), call("c0"), Message.user(ToolResult("c0", shots))]
    fake = FakeRun(messages, 32_000)
    await Compaction().before_completion(fake.state)
    left = [block for block in results_of(fake.messages)[0].content if isinstance(block, Image)]
    assert 1 <= len(left) < 20
    assert fake.estimated_tokens <= 28_800


async def test_summaries_that_always_fail_end_with_the_oldest_left_out() -> None:
    """Truncation keeps every message, so there is an end to it."""
    fake = FakeRun(talk(400, 10, answer=20), 8000, *[ProviderError("no")] * 9)
    for _ in range(3):
        await Compaction().before_completion(fake.state)
        assert fake.estimated_tokens <= 7200
        assert summaries(fake.messages) == [LEFT_OUT]
        check_history(fake.messages)
        for message in talk(100, 10, answer=20)[1:]:
            fake.history.append(message)


async def test_a_large_system_prompt_does_not_mean_a_summary_each_turn() -> None:
    fake = FakeRun(talk(1, 10), 8000, *["Well."] * 100, fixed=5900)
    for turn in range(60):
        fake.history.append(call(f"d{turn}"))
        fake.history.append(result(f"d{turn}", 80))
        await Compaction().before_completion(fake.state)
        assert fake.estimated_tokens <= 7200
    assert len(fake.asked) < 10


@pytest.mark.parametrize("replies", [["Well."] * 100, [ProviderError("no")] * 100], ids=["summaries", "none"])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.85, 0.88, 0.95])
async def test_a_large_first_message_does_not_mean_a_compaction_each_turn(
    share: float, replies: list[str | Exception]
) -> None:
    """What takes most of the room is clipped once, to less than it may take; the next compaction is turns away."""
    limit = int(32_000 * 0.9 / 1.1)
    fake = FakeRun([Message.user(words(int(share * limit)))], 32_000, *replies)
    epochs = []
    for turn in range(60):
        fake.history.append(call(f"d{turn}"))
        fake.history.append(result(f"d{turn}", 375))
        await Compaction().before_completion(fake.state)
        assert fake.estimated_tokens <= limit
        epochs.append(fake.history.epoch)
    turns = [turn for turn, (before, after) in enumerate(itertools.pairwise(epochs)) if before != after]
    assert len(turns) <= 8
    assert all(next_ - turn >= 4 for turn, next_ in itertools.pairwise(turns))


async def test_nothing_helps_where_the_system_prompt_fills_the_window() -> None:
    fake = FakeRun(talk(2, 10), 8000, fixed=8000)
    for _ in range(3):
        await Compaction().before_completion(fake.state)
    assert fake.asked == []


async def test_forced_it_aims_at_half() -> None:
    """The provider has said that the window is smaller than we believe, or the prompt larger."""
    messages = talk(20, 50, answer=100)
    fake = FakeRun(messages, 1_000_000, "Well.")
    before = fake.estimated_tokens
    await Compaction().on_context_overflow(fake.state, ProviderError("too long"))
    assert fake.estimated_tokens <= before // 2
    assert fake.kinds[-1] == "summarized"
    assert measure(fake.asked[0].messages[0]).text / 4 <= before // 2


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([Message.user(words(1000))], id="cmp-16 one message"),
        pytest.param([Message.user("hi"), call("c0"), result("c0", 3)], id="cmp-16 one short call"),
        pytest.param([Message.user("a"), Message.assistant("b"), Message.user("c")], id="cmp-16 next to nothing"),
    ],
)
async def test_forced_there_may_be_nothing_to_remove(messages: list[Message]) -> None:
    fake = FakeRun(messages, 100_000, on_compaction=lambda *_: pytest.fail("called"))
    before = fake.messages
    await Compaction().on_context_overflow(fake.state, ProviderError("too long"))
    assert fake.messages is before
    assert (fake.kinds, fake.asked) == ([], [])


async def test_the_cap_of_a_summary_is_no_less_than_the_users() -> None:
    """A thinking budget in `extra_body` may need it."""
    fake = FakeRun(talk(200, 50, answer=100), 40_000, "Well.", max_output_tokens=12_000)
    await Compaction().before_completion(fake.state)
    assert fake.asked[0].max_output_tokens == 12_000


async def test_reasoning_alone_may_be_too_much() -> None:
    """Then nothing else has to go: beginning an epoch is enough."""
    messages = talk(3, 50)
    messages[1] = attrs.evolve(messages[1], content=(Thinking(words(5000)), *messages[1].content))
    fake = FakeRun(messages, 4000)
    await Compaction().before_completion(fake.state)
    assert (fake.kinds, fake.asked, fake.history.epoch) == (["cleared"], [], 1)
    assert [message.content for message in fake.messages] == [message.content for message in messages]
    assert fake.estimated_tokens < 500


# What it does it with


def test_cmp_08_where_to_cut() -> None:
    messages = [
        Message.user("a"),
        Message.assistant(ToolUse("1", "x"), ToolUse("2", "x")),
        Message.user(ToolResult("2", "y")),
        Message.user(ToolResult("1", "y")),
        Message.assistant(ServerToolUse("s", "search")),
        Message.assistant(ToolUse("1", "x")),
        Message.user(ToolResult("1", "y")),
        Message.assistant(ServerToolResult("s", {})),
        Message.user("b"),
    ]
    assert where_to_cut(messages) == [0, 1, 4, 8]
    assert where_to_cut(messages[2:]) == [2, 6], "a result that has lost its call begins nothing"


def test_what_a_summary_is_made_from() -> None:
    messages = [
        Message.user("Look.", Image("image/png", "AAAA"), Document("application/pdf", "https://x", name="plan.pdf")),
        Message.assistant(
            Thinking("secret"),
            ToolUse("1", "read", {"path": "a"}),
            ToolUse("2", "read", invalid_input="{broken"),
            ServerToolUse("s", "search", {"q": "b"}),
            ServerToolResult("s", {"found": "c"}),
            Opaque("x", {"hidden": 1}),
        ),
        Message.user(ToolResult("1", ("d", Audio("audio/wav"), Opaque("x", {}))), ToolResult("2", "e", is_error=True)),
        Message.assistant(Thinking("only secrets")),
    ]
    assert transcript(messages, 10_000) == (
        "[user] Look.\n[user] (image image/png)\n[user] (document plan.pdf)\n\n"
        '[call of read] {"path":"a"}\n[call of read] {broken\n[call of search] {"q":"b"}\n[result] {"found":"c"}\n\n'
        "[result of read] d (audio audio/wav) (opaque)\n[error of read] e"
    )


def test_what_is_shown_is_cut_before_it_is_left_out() -> None:
    messages = [Message.assistant(f"{number}: " + words(3000)) for number in range(10)]
    assert all(f"[assistant] {number}: word" in (transcript(messages, 30_000) or "") for number in range(10))
    short = transcript(messages, 700) or ""
    assert short.startswith("(The oldest 6 messages are not shown.)")
    assert "[assistant] 9: word" in short
    asked = transcript([*messages, Message.user(words(100))], 700) or ""
    assert asked.endswith(f"[user] {words(100)}"), "requests are shown longer"


def test_arguments_that_are_no_json_are_clipped() -> None:
    messages = (Message.user("a"), Message.assistant(ToolUse("1", "x", invalid_input=words(900))), result("1", 1))
    clipped = squeeze(messages, lambda messages, comfortably=False: measure(messages[1]).text - 1000, drop=True)
    assert len(clipped[1].tool_uses[0].invalid_input or "") < 1000
    assert len(clipped) == 3


def test_clearing_spares_what_is_short() -> None:
    messages = tuple(talk(3, 5))
    assert clear_results(messages, spared=0) == messages


def test_clearing_takes_images() -> None:
    messages = (Message.user("a"), call("c"), Message.user(ToolResult("c", (Image("image/png", "AA"),)), Text("so")))
    cleared = clear_results(messages, spared=0)
    assert cleared[2].content == (ToolResult("c", PLACEHOLDER), Text("so"))
    assert cleared[:2] == messages[:2]


def test_truncation_leaves_the_user_alone() -> None:
    messages = (Message.user(words(500)), Message.assistant("é" * 201), Message.assistant("é" * 200))
    assert truncate(messages)[0] is messages[0]
    assert truncate(messages)[1].text == "é" * 200 + "…"
    assert truncate(messages)[2] is messages[2]


@given(st.text(), st.integers(0, 400))
def test_clipped_text_has_its_size(words_: str, limit: int) -> None:
    clipped = clip(words_, limit)
    size = len(words_.encode())
    assert len(clipped.encode()) <= max(limit, 40) or clipped == words_
    assert (clipped == words_) == (size <= limit)


_TEXTS = st.sampled_from(["", "short", "é" * 300, "long " * 500])
_CALLS = st.lists(st.tuples(st.sampled_from("abc"), _TEXTS, st.booleans()), max_size=3, unique_by=lambda each: each[0])


def _turn(said: str, calls: list[tuple[str, str, bool]], request: str) -> list[Message]:
    uses: list[Block] = [ToolUse(name, "read", {"x": found if big else ""}) for name, found, big in calls]
    thinking: list[Block] = [Thinking(request, "seal")] if request else []
    messages = [Message.assistant(*thinking, Text(said), *uses)]
    if calls:
        messages.append(
            Message.user(*(ToolResult(name, found) for name, found, _ in calls), *([request] * bool(request)))
        )
    elif request:
        messages.append(Message.user(request))
    return messages


_CONVERSATIONS = st.lists(st.builds(_turn, _TEXTS.filter(bool), _CALLS, _TEXTS), max_size=12).map(
    lambda turns: (Message.user("Begin."), *(message for turn in turns for message in turn), Message.user("End."))
)


@given(_CONVERSATIONS, st.integers(0, 20_000), st.booleans())
def test_squeezed_it_fits_or_has_nothing_left(messages: tuple[Message, ...], limit: int, drop: bool) -> None:
    def surplus(messages: Sequence[Message], *, comfortably: bool = False) -> int:
        size = sum((measure(message, reasoning=False) for message in messages), Size())
        return size.text - (limit * 3 // 4 if comfortably else limit)

    shorter = squeeze(messages, surplus, drop=drop)
    check_pairs(shorter)
    assert shorter[-1] is messages[-1]
    assert (shorter == messages) == (surplus(messages, comfortably=True) <= 0) or surplus(shorter, comfortably=True) > 0
    assert surplus(shorter) <= max(0, surplus(messages))
    if drop and limit > 2000:
        assert surplus(shorter) <= 0


@given(_CONVERSATIONS, st.integers(0, 20_000))
def test_what_is_shown_of_a_conversation_fits(messages: tuple[Message, ...], room: int) -> None:
    shown = transcript(messages, room)
    if shown is not None:
        assert len(shown.encode()) <= room
        assert shown.endswith("[user] End.")
    else:
        assert room < 100


@given(
    _CONVERSATIONS, st.integers(100, 4000), st.integers(1, 2000), st.sampled_from(["Summary.", "", ProviderError("no")])
)
def test_any_conversation_stays_valid(
    messages: tuple[Message, ...], window: int, keep: int, reply: str | Exception
) -> None:
    """First and last message stay, calls keep their results, and it gets no larger."""

    async def main() -> None:
        fake = FakeRun(messages, window, reply)
        before = fake.estimated_tokens
        await Compaction(keep_recent_tokens=keep).before_completion(fake.state)
        check_pairs(fake.messages)
        assert fake.messages[-1].content == messages[-1].content
        assert fake.messages[0].text == "Begin."
        assert len(summaries(fake.messages)) <= 1
        assert fake.estimated_tokens <= before
        if window > 1000:
            assert fake.estimated_tokens <= Compaction()._limit(fake.state)

    trio.run(main)


# In whole runs


@tool
async def read(size: int = 400) -> str:
    """Read something."""
    return words(size, "found")


@attrs.define
class Pages:
    """What is made of it."""

    pages: int


def _is_for_a_summary(request: Request) -> bool:
    return not request.tools and request.messages[-1].text.endswith("words at most.")


class Model:
    """Reads on and on; answers requests for summaries; counts what it is sent as a vendor would."""

    def __init__(self, turns: int, *, bytes_per_token: float | None = None, summary: str = "It goes well.") -> None:
        self.turns = turns
        self.summary = summary
        self.bytes_per_token = bytes_per_token
        self.summaries = 0
        self.provider = ScriptedProvider([self.reply] * (2 * turns + 50))

    def usage(self, request: Request) -> Usage:
        if self.bytes_per_token is None:
            return Usage(input_tokens=10, output_tokens=5)
        return Usage(input_tokens=int(max(body_sizes(request)) / self.bytes_per_token), output_tokens=5)

    def reply(self, request: Request) -> Any:
        usage = self.usage(request)
        if _is_for_a_summary(request):
            self.summaries += 1
            return text(self.summary, usage=usage)
        self.turns -= 1
        if self.turns <= 0:
            return text("That is all.", usage=usage)
        return tool_call("read", {"size": 30 + 97 * self.turns % 600}, usage=usage)


_WIRES = (Anthropic("m", api_key="k"), OpenAI("m", api_key="k"), OpenAICompat("m"))


def body_sizes(request: Request) -> list[int]:
    """Return how many bytes each of the wires would send."""
    return [len(wire.encode(request, stream=True).body) for wire in _WIRES]


def compactions(seen: Sequence[Envelope]) -> list[Compacted]:
    return [envelope.event for envelope in seen if isinstance(envelope.event, Compacted)]


async def test_cmp_01_a_run_within_its_window() -> None:
    model = Model(5)
    seen: list[Envelope] = []
    outcome = await run("Go.", provider=model.provider, tools=[read], context_tokens=32_000, on_event=seen.append)
    assert compactions(seen) == []
    assert model.summaries == 0
    assert outcome.metadata == {}


async def test_cmp_18_the_summary_is_paid_for() -> None:
    model = Model(40)
    outcome = await run(
        "Go.",
        provider=model.provider,
        tools=[read],
        max_turns=60,
        context_tokens=6000,
        compaction=Compaction(clear_tool_results=False),
    )
    assert model.summaries > 0
    assert outcome.turns == 40
    assert outcome.usage.input_tokens == 10 * (40 + model.summaries)


async def test_cmp_19_both_are_told_of_in_the_same_turn() -> None:
    seen: list[Envelope] = []
    messages = talk(20, 100, answer=150)
    provider = ScriptedProvider(["Well.", "Done."])
    await run(None, messages=messages, provider=provider, context_tokens=3500, on_event=seen.append)
    cleared, summarized = (envelope for envelope in seen if isinstance(envelope.event, Compacted))
    assert cleared.turn == summarized.turn == 1
    first, second = compactions(seen)
    assert (first.kind, second.kind) == ("cleared", "summarized")
    assert first.messages_before == first.messages_after == second.messages_before == len(messages)
    assert second.messages_after < len(messages)
    assert first.tokens_before > first.tokens_after == second.tokens_before > second.tokens_after


async def test_cmp_14_off() -> None:
    messages = talk(20, 100, answer=150)
    provider = ScriptedProvider(["Done."])
    outcome = await run(None, messages=messages, provider=provider, context_tokens=3500, compaction=False)
    assert outcome.messages[:-1] == tuple(messages)


async def test_cmp_14_placed_twice() -> None:
    with pytest.raises(InvalidOption, match=r"[Cc]ompaction"):
        await run("x", provider=ScriptedProvider(["y"]), compaction=Compaction(), middleware=[Compaction()])


class Watch:
    """Notes what hooks see."""

    def __init__(self) -> None:
        self.before: list[int] = []
        self.compacted = 0

    async def before_completion(self, state: RunState) -> None:
        self.before.append(len(state.messages))

    async def after_compaction(self, state: RunState) -> None:
        self.compacted += 1


async def test_cmp_14_it_comes_before_other_middleware_by_default() -> None:
    messages = talk(20, 100, answer=150)
    first, second = Watch(), Watch()
    options: dict[str, Any] = {"messages": messages, "context_tokens": 3500}
    await run(None, provider=ScriptedProvider(["Well.", "Done."]), middleware=[first], **options)
    placed = [second, Compaction()]
    await run(None, provider=ScriptedProvider(["Well.", "Done."]), middleware=placed, **options)
    assert first.before[0] < len(messages) == second.before[0]


async def test_mw_18_no_hook_within_budget() -> None:
    watch = Watch()
    await run("Go.", provider=Model(5).provider, tools=[read], context_tokens=32_000, middleware=[watch])
    assert (watch.compacted, len(watch.before)) == (0, 5)


async def test_mw_09_a_halt_after_compaction_keeps_what_is_compacted() -> None:
    from alloy_trio import Halted

    class Stop:
        async def after_compaction(self, state: RunState) -> None:
            raise Halted("enough")

    provider = ScriptedProvider(["Well.", "never"])
    outcome = await run(
        None,
        messages=talk(20, 100, answer=150),
        provider=provider,
        context_tokens=3500,
        compaction=Compaction(clear_tool_results=False),
        middleware=[Stop()],
    )
    assert outcome.status == "halted"
    assert str(outcome.error) == "enough"
    assert summaries(outcome.messages) == ["Well."]
    assert len(provider.requests) == 1


def too_long() -> Any:
    from alloy_trio import ContextTooLong

    return error(ContextTooLong("the prompt is too long"))


async def test_cmp_15_too_long_a_prompt_is_compacted_and_sent_once_more() -> None:
    messages = talk(10, 100, answer=50)
    provider = ScriptedProvider([too_long(), "Well.", "Done."])
    outcome = await run(None, messages=messages, provider=provider, compaction=Compaction(clear_tool_results=False))
    assert (outcome.status, outcome.text, outcome.turns) == ("completed", "Done.", 1)
    assert summaries(outcome.messages) == ["Well."]
    assert len(provider.requests[2].messages) < len(messages)
    check_history(provider.requests[2].messages)


async def test_res_07_the_result_says_that_it_recovered() -> None:
    provider = ScriptedProvider([too_long(), "Done."])
    outcome = await run(None, messages=talk(10, 400), provider=provider)
    assert outcome.metadata.get("context_overflow") is True
    outcome = await run(None, messages=talk(10, 100), provider=ScriptedProvider(["Done."]))
    assert "context_overflow" not in outcome.metadata


async def test_cmp_15_a_second_time_in_a_turn_ends_the_run() -> None:
    from alloy_trio import ContextTooLong

    provider = ScriptedProvider([too_long(), too_long(), "never"])
    with pytest.raises(ContextTooLong) as caught:
        await run(None, messages=talk(10, 400), provider=provider)
    assert caught.value.result is not None
    assert caught.value.result.status == "error"
    assert len(provider.requests) == 2
    check_history(caught.value.result.messages)


async def test_cmp_15_each_turn_may_recover_once() -> None:
    provider = ScriptedProvider([too_long(), tool_call("read", {"size": 9000}), too_long(), "Well.", "Done."])
    outcome = await run(None, messages=talk(10, 400), provider=provider, tools=[read])
    assert (outcome.status, outcome.turns) == ("completed", 2)
    assert outcome.messages[-1].text == "Done."


async def test_cmp_16_no_second_try_where_nothing_could_go() -> None:
    from alloy_trio import ContextTooLong

    provider = ScriptedProvider([too_long(), "never"])
    with pytest.raises(ContextTooLong) as caught:
        await run(words(1000), provider=provider)
    outcome = caught.value.result
    assert outcome is not None
    assert (outcome.turns, outcome.status) == (0, "error")
    assert "context_overflow" not in outcome.metadata
    assert len(provider.requests) == 1


async def test_cmp_17_other_refusals_force_nothing() -> None:
    from alloy_trio import BadRequest

    provider = ScriptedProvider([error(BadRequest("the prompt is too long, says a text")), "never"])
    with pytest.raises(BadRequest):
        await run(None, messages=talk(10, 100), provider=provider)
    assert len(provider.requests) == 1


async def test_mw_19_a_hook_may_shrink_the_history_itself() -> None:
    class Shrink:
        async def on_context_overflow(self, state: RunState, failure: Exception) -> None:
            state.messages = state.messages[:1]

    provider = ScriptedProvider([too_long(), "Done."])
    outcome = await run(None, messages=talk(10, 100), provider=provider, compaction=False, middleware=[Shrink()])
    assert (outcome.status, len(provider.requests)) == ("completed", 2)
    assert len(provider.requests[1].messages) == 1
    assert outcome.metadata["context_overflow"] is True


async def test_cmp_11_in_a_run() -> None:
    seen = []

    async def callback(messages: tuple[Message, ...], state: RunState) -> None:
        seen.append((len(messages), len(state.messages)))

    messages = talk(20, 100, answer=150)
    await run(
        None,
        messages=messages,
        provider=ScriptedProvider(["Well.", "Done."]),
        context_tokens=3500,
        on_compaction=callback,
    )
    [(gone, there)] = seen
    assert 0 < gone < there == len(messages)


async def test_a_summary_is_no_part_of_the_answer() -> None:
    provider = ScriptedProvider(["Well.", "Done."])
    said = ""
    async with stream(None, messages=talk(20, 100, answer=150), provider=provider, context_tokens=3500) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                said += event.text
    assert said == "Done."
    assert len(provider.requests) == 2


async def test_cancelled_while_it_is_written(autojump_clock: object) -> None:
    """Nothing has gone by then, and nobody was told that it would."""
    messages = talk(20, 100, answer=150)
    session = Session(messages=messages)
    provider = ScriptedProvider([[delay(60), text("Well.")], "never"])
    with trio.move_on_after(5) as scope:
        await run(
            None,
            session=session,
            provider=provider,
            context_tokens=3500,
            on_compaction=lambda *_: pytest.fail("called"),
        )
    assert scope.cancelled_caught
    assert session.messages == tuple(messages)


WINDOW = 32_000

LONG_RUNS = {
    "nothing reported": (None, Compaction(), True),
    "nothing reported, summaries only": (None, Compaction(clear_tool_results=False), True),
    "nothing reported, little is kept": (None, Compaction(keep_recent_tokens=200, keep_recent_tool_results=0), True),
    "nothing reported, summaries fail": (None, Compaction(), False),
    "2 bytes a token": (2.0, Compaction(), True),
    "6 bytes a token": (6.0, Compaction(), True),
}


def check_requests(provider: ScriptedProvider, bytes_per_token: float) -> int:
    """
    Assert that each request fitted and was valid; returns how many followed a compaction.

    As long as a conversation only grows, the last request is the largest: it is weighed for all before it.
    """
    changes = 0
    last: Request | None = None
    for request in provider.requests:
        if _is_for_a_summary(request):
            assert max(body_sizes(request)) / bytes_per_token <= WINDOW
            continue
        check_pairs(request.messages)
        before = () if last is None else last.messages
        if last is not None and request.messages[: len(before)] != before:
            changes += 1
            assert max(body_sizes(last)) / bytes_per_token <= WINDOW
            check_history(request.messages, request.tools)
            assert len(summaries(request.messages)) <= 1
        last = request
    assert last is not None
    assert max(body_sizes(last)) / bytes_per_token <= WINDOW
    return changes


@tool
async def look(size: int = 400) -> str:
    """Look at a file."""
    giant = 40_000 if size % 50 == 0 else size
    return "".join(f"{line}: some text of a file, in a line of its own\n" for line in range(giant // 12))


@pytest.mark.parametrize(("bytes_per_token", "compaction", "summarizes"), LONG_RUNS.values(), ids=LONG_RUNS)
async def test_500_tool_turns_in_one_run(
    bytes_per_token: float | None, compaction: Compaction, *, summarizes: bool
) -> None:
    model = Model(500, bytes_per_token=bytes_per_token, summary=words(300, "progress") if summarizes else "")
    seen: list[Envelope] = []
    outcome = await run(
        "Read the whole of it, and tell me what it says.",
        provider=model.provider,
        tools=[look.evolve(name="read")],
        system_prompt=words(200, "instruction"),
        max_turns=600,
        context_tokens=WINDOW,
        compaction=compaction,
        on_event=seen.append,
    )
    assert (outcome.status, outcome.turns) == ("completed", 500)
    changes = check_requests(model.provider, bytes_per_token or 4.0)
    assert 3 <= changes <= 60
    assert len(compactions(seen)) >= changes
    assert all(event.tokens_after < event.tokens_before for event in compactions(seen))


async def test_500_runs_on_one_session() -> None:
    session = Session()

    def reply(request: Request) -> Any:
        if _is_for_a_summary(request):
            return "It goes well."
        if request.messages[-1].tool_results:
            return text("It says: " + words(30))
        return [Thinking("hm"), tool_call("read", {"size": 200})]

    provider = ScriptedProvider([reply] * 1100)
    for number in range(500):
        outcome = await run(
            f"Read part {number}.", provider=provider, tools=[read], session=session, context_tokens=WINDOW
        )
        assert outcome.status == "completed"
        if number % 100 == 99:
            session = Session.from_json(session.to_json())
    assert check_requests(provider, 4.0) >= 5
    assert max(message.epoch for message in session.messages) >= 5


@pytest.mark.parametrize("summary", ["It goes well.", ""], ids=["summaries", "no summaries"])
@pytest.mark.parametrize("clear", [True, False])
async def test_each_prompt_of_a_session_is_there_until_it_is_done(summary: str, *, clear: bool) -> None:
    session = Session()
    changes = 0
    for number in range(3):
        prompt = f"Request {number}: read all of it, and " + words(100, f"then{number}")
        model = Model(60, summary=summary)
        await run(
            prompt,
            provider=model.provider,
            tools=[read],
            session=session,
            context_tokens=8000,
            max_turns=100,
            compaction=Compaction(clear_tool_results=clear),
        )
        changes += model.summaries
        requests = [request for request in model.provider.requests if not _is_for_a_summary(request)]
        assert len(requests) == 60
        for request in requests:
            assert [message.text for message in request.messages].count(prompt) == 1
    assert clear or changes > 3


@pytest.mark.parametrize("option", ["until_tool", "output_type"])
async def test_a_reminder_of_the_loop_is_no_request(option: str) -> None:
    """It asks for another answer to the request, which has to be there still."""
    prompt = "Read all of it, and " + words(100, "then")
    session = Session(messages=talk(2, 50, answer=50))
    last = tool_call("finish", {}) if option == "until_tool" else text('{"pages": 5}')

    def reply(request: Request) -> Any:
        return "It goes well." if _is_for_a_summary(request) else tool_call("read", {"size": 300})

    provider = ScriptedProvider(["I am done.", *[reply] * 90, last, "So be it."], native_output=True)

    @tool
    async def finish() -> str:
        """Finish."""
        return "finished"

    options: dict[str, Any] = {"until_tool": "finish"} if option == "until_tool" else {"output_type": Pages}
    outcome = await run(
        prompt,
        provider=provider,
        tools=[read, finish],
        session=session,
        context_tokens=8000,
        max_turns=200,
        compaction=Compaction(clear_tool_results=False),
        **options,
    )
    assert outcome.status == "completed"
    requests = [request for request in provider.requests if not _is_for_a_summary(request)]
    assert len(requests) < len(provider.requests), "there were summaries"
    remark = requests[1].messages[-1].text
    assert remark != prompt
    assert remark not in [message.text for message in requests[-1].messages]
    for request in requests:
        assert [message.text for message in request.messages].count(prompt) == 1
