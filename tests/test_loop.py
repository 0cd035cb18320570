"""The loop, driven by scripts: what a run does, what it returns, what it raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

import alloy_trio
from alloy_trio import (
    Message,
    ProviderError,
    RunTimeout,
    ServerToolResult,
    ServerToolUse,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    WireError,
    run,
    tool,
)
from alloy_trio.providers import Request, Response, StopReason
from alloy_trio.providers._base import Terms
from alloy_trio.testing import (
    ScriptedProvider,
    delay,
    error,
    run_with_responses,
    text,
    tool_call,
)

if TYPE_CHECKING:
    from alloy_trio.testing._script import Piece


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@tool
async def fail() -> str:
    """Fail."""
    raise alloy_trio.ToolError("no luck")


async def test_loop_01_text_answer() -> None:
    result = await run_with_responses("hi", [text("hello")])
    assert (result.status, result.turns, result.error) == ("completed", 1, None)
    assert [m.text for m in result.messages] == ["hi", "hello"]
    assert result.text == "hello"


async def test_loop_02_tool_turns() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 2}), text("3")], tools=[add])
    assert result.turns == 2
    assert [m.role for m in result.messages] == ["user", "assistant", "user", "assistant"]
    assert isinstance(result.messages[1].content[0], ToolUse)
    assert isinstance(result.messages[2].content[0], ToolResult)
    replies = [tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 3}), text("6")]
    result = await run_with_responses("go", replies, tools=[add])
    assert (result.turns, result.text) == (3, "6")


async def test_loop_03_two_calls_one_result_message() -> None:
    calls = [tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 4})]
    result = await run_with_responses("go", [calls, text("done")], tools=[add])
    results = result.messages[2].content
    assert [r.text for r in results if isinstance(r, ToolResult)] == ["3", "7"]
    assert len(result.messages) == 4


async def test_loop_04_history() -> None:
    history = [Message.user("a"), Message.assistant("b")]
    result = await run_with_responses("c", [text("d")], messages=history)
    assert [m.text for m in result.messages] == ["a", "b", "c", "d"]
    result = await run_with_responses(None, [text("d")], messages=[Message.user("a")])
    assert [m.text for m in result.messages] == ["a", "d"]


async def test_loop_05_max_turns() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 1})] * 5, tools=[add], max_turns=3)
    assert (result.status, result.turns) == ("max_turns", 3)
    assert isinstance(result.messages[-1].content[0], ToolResult)


async def test_loop_06_provider_failure() -> None:
    with pytest.raises(ProviderError, match="boom") as caught:
        await run_with_responses("go", [error("boom")])
    assert caught.value.result is not None
    assert caught.value.result.status == "error"
    assert caught.value.result.error is caught.value


async def test_loop_07_usage_is_summed() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 1}), text("2")], tools=[add])
    assert result.usage == Usage(input_tokens=20, output_tokens=10)


async def test_loop_08_last_text_in_time() -> None:
    history = [Message.user("a"), Message.assistant("late in the alphabet: z"), Message.user("b")]
    result = await run_with_responses("c", [text("last")], messages=history)
    assert result.text == "last"
    assert result.messages[: len(history)] == tuple(history)


async def test_loop_09_a_provider_needs_only_complete() -> None:
    class Mine:
        async def complete(self, request: Request) -> Response:
            return Response(message=Message.assistant(f"you said {request.messages[-1].text}"))

    result = await run("hi", provider=Mine())
    assert result.text == "you said hi"


async def test_loop_10_cut_text_completes() -> None:
    result = await run_with_responses("go", [text("half a", stop_reason="max_tokens")])
    assert (result.status, result.stop_reason, result.text) == ("completed", "max_tokens", "half a")


async def test_loop_11_cut_inside_a_tool_call() -> None:
    ran = []

    @tool
    async def note() -> str:
        """Note."""
        ran.append(1)
        return "x"

    reply = [text("I will"), tool_call("note"), tool_call("note", stop_reason="max_tokens")]
    with pytest.raises(ProviderError, match="max_output_tokens") as caught:
        await run_with_responses("go", [reply], tools=[note], max_output_tokens=77)
    result = caught.value.result
    assert result is not None
    assert "77" in str(caught.value)
    assert not ran
    answers = result.messages[-1].content
    assert len(answers) == 2
    assert all(isinstance(a, ToolResult) and a.is_error for a in answers)


async def test_loop_12_refusal() -> None:
    with pytest.raises(ProviderError, match="refused") as caught:
        await run_with_responses("go", [text("I will not", stop_reason="refusal")])
    result = caught.value.result
    assert result is not None
    assert result.stop_reason == "refusal"
    assert [m.text for m in result.messages] == ["go"]
    assert result.usage.output_tokens == 5


async def test_loop_13_pause_turn() -> None:
    searching: list[Piece] = [
        ServerToolUse("s1", "web_search", {"query": "x"}),
        text("Searching", stop_reason="pause_turn"),
    ]
    provider = ScriptedProvider([searching, text("found")])
    result = await run("go", provider=provider)
    assert [m.role for m in result.messages] == ["user", "assistant", "assistant"]
    assert result.text == "found"
    assert [m.role for m in provider.requests[1].messages] == ["user", "assistant"]


async def test_loop_14_server_blocks_only() -> None:
    blocks = [
        ServerToolUse("s1", "web_search", {}),
        ServerToolResult("s1", {"type": "web_search_tool_result"}),
    ]
    reply = Response(message=Message("assistant", tuple(blocks)), stop_reason=StopReason.TOOL_USE)
    result = await run_with_responses("go", [reply])
    assert (result.status, len(result.messages)) == ("completed", 2)


async def test_loop_15_unknown_stop_reason_of_a_custom_provider() -> None:
    reply = Response(message=Message.assistant("x"), stop_reason="whatever")
    with pytest.raises(WireError, match="whatever"):
        await run_with_responses("go", [reply])


async def test_loop_15_a_provider_that_returns_nonsense() -> None:
    class Nonsense:
        async def complete(self, request: Request) -> Response:
            return None  # type: ignore[return-value]

    with pytest.raises(WireError, match="no Response") as caught:
        await run("go", provider=Nonsense())
    assert caught.value.result is not None


@pytest.mark.parametrize("word", ["refusal", "max_tokens", "pause_turn"])
async def test_a_stop_reason_may_be_plain_text(word: str) -> None:
    reply = Response(message=Message.assistant(ToolUse("c", "add", {"a": 1, "b": 1})), stop_reason=word)
    assert reply.stop_reason is StopReason(word)


async def test_an_answer_that_is_none_fails_the_same_way_streamed() -> None:
    class Nonsense:
        async def complete(self, request: Request) -> Response:
            return None  # type: ignore[return-value]

    with pytest.raises(WireError, match="no Response"):
        async with alloy_trio.stream("go", provider=Nonsense()) as events:
            async for _ in events:
                pass


async def test_a_message_of_the_wrong_role_is_no_answer() -> None:
    with pytest.raises(WireError, match="assistant's message"):
        await run_with_responses("go", [Response(message=Message.user("me?"))])


async def test_loop_16_server_and_client_calls_mixed() -> None:
    reply: list[Piece] = [ServerToolUse("s1", "web_search", {}), tool_call("add", {"a": 1, "b": 1}, id="c1")]
    result = await run_with_responses("go", [reply, text("2")], tools=[add])
    answers = result.messages[2].content
    assert [a.tool_use_id for a in answers if isinstance(a, ToolResult)] == ["c1"]


async def test_an_empty_answer_completes_and_leaves_no_empty_message() -> None:
    empty = Response(message=Message("assistant", ()))
    result = await run_with_responses("go", [empty])
    assert (result.status, result.text, len(result.messages)) == ("completed", "", 1)


async def test_a_foreign_exception_of_a_provider_leaves_as_it_came() -> None:
    class Broken:
        async def complete(self, request: Request) -> Response:
            raise ZeroDivisionError("mine")

    session = Session()
    with pytest.raises(ZeroDivisionError, match="mine"):
        await run("go", provider=Broken(), session=session)
    assert [m.text for m in session.messages] == ["go"]


async def test_timeout_raises_with_the_result(autojump_clock: object) -> None:
    with pytest.raises(RunTimeout, match="5 seconds") as caught:
        await run_with_responses(
            "go", [tool_call("add", {"a": 1, "b": 1}), [delay(60), text("x")]], tools=[add], timeout=5
        )
    result = caught.value.result
    assert result is not None
    assert (result.status, result.turns, len(result.messages)) == ("timed_out", 1, 3)
    assert isinstance(caught.value, trio.TooSlowError)


async def test_session_is_updated_in_place_at_every_turn() -> None:
    seen: list[int] = []
    session = Session(messages=[Message.user("before"), Message.assistant("yes")], usage=Usage(input_tokens=1))

    @tool
    async def look() -> str:
        """Look."""
        seen.append(len(session.messages))
        return "x"

    replies = [tool_call("look"), tool_call("look"), text("done")]
    result = await run_with_responses("go", replies, tools=[look], session=session)
    assert seen == [3, 5]
    assert session.messages == result.messages
    assert session.usage == Usage(input_tokens=31, output_tokens=15)
    assert session.updated_at > session.created_at


async def test_a_session_is_for_one_run_at_a_time(autojump_clock: object) -> None:
    session = Session()

    async def first() -> None:
        await run("slow", provider=ScriptedProvider([[delay(5), text("x")]]), session=session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.sleep(1)
        assert [m.text for m in session.messages] == ["slow"]
        with pytest.raises(alloy_trio.InvalidOption, match="in another run"):
            await run("hi", provider=ScriptedProvider([text("y")]), session=session)
        with pytest.raises(alloy_trio.InvalidOption, match="in another run"):
            async with alloy_trio.stream("hi", provider=ScriptedProvider([text("y")]), session=session) as events:
                async for _ in events:
                    pass
    assert [m.text for m in session.messages] == ["slow", "x"]
    await run("again", provider=ScriptedProvider([text("z")]), session=session)


def test_run_sync() -> None:
    assert alloy_trio.run_sync("hi", provider=ScriptedProvider([text("hello")])).text == "hello"


# result


async def test_res_01_defaults() -> None:
    result = alloy_trio.Result()
    assert (result.text, result.messages, result.tool_calls, result.turns) == ("", (), (), 0)
    assert (result.usage, result.error, result.request_id, result.metadata) == (Usage(), None, None, {})


async def test_res_02_of_a_finished_run() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 1}), text("2")], tools=[add])
    assert (result.text, result.status, result.turns, len(result.tool_calls)) == ("2", "completed", 2, 1)
    assert len(result.messages) == 4
    assert result.usage.input_tokens == 20


async def test_res_03_tool_call_records(autojump_clock: object) -> None:
    @tool
    async def slow(n: int) -> str:
        """Be slow."""
        await trio.sleep(3 - n)
        return str(n)

    first = [tool_call("slow", {"n": 1}), tool_call("slow", {"n": 2})]
    result = await run_with_responses("go", [first, tool_call("slow", {"n": 0}), text("x")], tools=[slow])
    assert [c.input["n"] for c in result.tool_calls] == [1, 2, 0]
    assert [c.duration for c in result.tool_calls] == pytest.approx([2, 1, 3])
    assert len({c.correlation_id for c in result.tool_calls}) == 1
    for call in result.tool_calls:
        assert (call.name, call.error, call.outcome) == ("slow", None, "ok")
        assert call.start_event_seq is not None
        assert call.end_event_seq is not None
        assert call.end_event_seq > call.start_event_seq > 0


async def test_res_04_stop_reason() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 1}), text("2")], tools=[add])
    assert result.stop_reason == "end_turn"


async def test_res_05_metadata_only_when_there_is_any() -> None:
    assert (await run_with_responses("go", [text("x")])).metadata == {}
    reply = Response(
        message=Message("assistant", "x", provider_state={"response_id": "r1"}),
        metadata={"provider_response": {"citations": [{"url": "u"}]}},
    )
    result = await run_with_responses("go", [reply])
    assert result.metadata["provider_state"] == {"response_id": "r1"}
    assert result.metadata["provider_response"]["citations"] == [{"url": "u"}]


async def test_res_05_metadata_is_that_of_the_last_answer() -> None:
    first = Response(
        message=Message("assistant", (ToolUse("c", "add", {"a": 1, "b": 1}),), provider_state={"response_id": "r1"}),
        metadata={"provider_response": {"citations": [1]}, "raw_stop_reason": "odd"},
    )
    session = Session()
    result = await run_with_responses("go", [first, text("x")], tools=[add], session=session)
    assert result.metadata == {"provider_state": {"response_id": "r1"}}
    assert session.metadata == {"provider_state": {"response_id": "r1"}}


async def test_res_06_a_failed_run_keeps_the_error_itself() -> None:
    failure = alloy_trio.RateLimited("slow down", status=429, retryable=True, retry_after=3)
    with pytest.raises(alloy_trio.RateLimited) as caught:
        await run_with_responses("go", [error(failure)], max_retries=0)
    assert caught.value is failure
    assert caught.value.result is not None
    assert str(caught.value.result.error) == "slow down"


async def test_res_08_run_has_no_request_id() -> None:
    assert (await run_with_responses("go", [text("x")])).request_id is None


async def test_calls_that_never_ran_are_recorded_as_well() -> None:
    reply = [tool_call("add", {"a": 1, "b": 1}), tool_call("add", {"a": 2, "b": 2}, stop_reason="max_tokens")]
    with pytest.raises(ProviderError) as caught:
        await run_with_responses("go", [reply], tools=[add])
    assert caught.value.result is not None
    assert [(c.outcome, c.start_event_seq) for c in caught.value.result.tool_calls] == [("error", None)] * 2


async def test_a_run_in_a_cancelled_scope_asks_nothing() -> None:
    class Instant:
        async def complete(self, request: Request) -> Response:
            raise AssertionError("asked")

    with trio.CancelScope() as scope:
        scope.cancel()
        await run("go", provider=Instant())
    assert scope.cancelled_caught


# until_tool


@tool
async def submit(answer: str) -> str:
    """Submit."""
    if answer == "bad":
        raise alloy_trio.ModelRetry("not that")
    return "accepted"


async def test_unt_01_reminded_until_called() -> None:
    replies = [text("done?"), tool_call("submit", {"answer": "42"}), text("submitted")]
    result = await run_with_responses("go", replies, tools=[submit], until_tool="submit")
    assert (result.status, result.turns) == ("completed", 3)
    assert "submit" in result.messages[2].text
    assert result.messages[2].role == "user"


async def test_unt_02_called_at_first() -> None:
    replies = [tool_call("submit", {"answer": "42"}), text("submitted")]
    result = await run_with_responses("go", replies, tools=[submit], until_tool="submit")
    assert (result.turns, len(result.messages)) == (2, 4)


@pytest.mark.parametrize(
    "call",
    [tool_call("submit", {"answer": "bad"}), tool_call("submt", {"answer": "42"}), tool_call("submit", {})],
    ids=["unt-03-error", "unt-03-unknown", "unt-03-invalid"],
)
async def test_unt_03_what_does_not_count(call: object) -> None:
    replies = [call, text("done?"), tool_call("submit", {"answer": "42"}), text("submitted")]
    result = await run_with_responses("go", replies, tools=[submit], until_tool="submit")  # type: ignore[arg-type]
    assert result.turns == 4


async def test_unt_04_max_turns_wins() -> None:
    result = await run_with_responses("go", [text("no")] * 3, tools=[submit], until_tool="submit", max_turns=3)
    assert (result.status, result.turns) == ("max_turns", 3)


async def test_unt_04_no_reminder_that_nobody_will_read() -> None:
    result = await run_with_responses("go", [text("no")] * 2, tools=[submit], until_tool="submit", max_turns=2)
    assert [m.role for m in result.messages] == ["user", "assistant", "user", "assistant"]


async def test_unt_05_none_has_no_effect() -> None:
    result = await run_with_responses("go", [text("x")], tools=[submit], until_tool=None)
    assert result.turns == 1


async def test_thinking_is_no_text() -> None:
    result = await run_with_responses("go", [[Thinking("hm"), Text("yes")]])
    assert result.text == "yes"
    assert result.messages[-1].thinking == "hm"


async def test_provider_state_reaches_the_provider() -> None:
    provider = ScriptedProvider(["x"])
    await alloy_trio.run("go", provider=provider, provider_state={"response_id": "r1"})
    assert provider.requests[0].provider_state == {"response_id": "r1"}


class Sealing(ScriptedProvider):
    """Seals its reasoning over instructions and tools, as Claude does."""

    terms = Terms(seals_prefix=True)


async def test_other_instructions_tools_or_model_begin_another_epoch() -> None:
    """Reasoning that is sealed over them is not sent behind others."""
    session = Session()

    async def say(words: str, model: str = "m", **options: Any) -> None:
        await alloy_trio.run(words, provider=Sealing([words], model=model), session=session, **options)

    await say("one", system_prompt="Be brief.")
    await say("two", system_prompt="Be brief.")
    assert [message.epoch for message in session.messages] == [0, 0, 0, 0]
    session = Session.from_json(session.to_json())
    await say("three", system_prompt="Be brief.", tools=[add])
    assert [message.epoch for message in session.messages] == [1, 0, 0, 0, 0, 1]
    await say("four", system_prompt="Be long.", tools=[add])
    await say("five", system_prompt="Be long.", tools=[add], model="another")
    assert [message.epoch for message in session.messages if message.role == "assistant"] == [0, 0, 1, 2, 3]


async def test_where_reasoning_is_not_sealed_over_them_only_the_model_counts() -> None:
    session = Session()
    await run_with_responses("one", ["1"], session=session)
    await run_with_responses("two", ["2"], session=session, system_prompt="Be brief.", tools=[add])
    assert {message.epoch for message in session.messages} == {0}
    await alloy_trio.run("three", provider=ScriptedProvider(["3"], model="another"), session=session)
    assert session.messages[-1].epoch == 1
