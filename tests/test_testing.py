"""The scripted provider and the assertions, which all other tests lean on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from alloy_trio import Message, ProviderError, RateLimited, Result, Text, Thinking, Usage, run, stream, tool
from alloy_trio.events import TextDelta, ThinkingDelta
from alloy_trio.providers import Request, Response
from alloy_trio.testing import (
    ScriptedProvider,
    assert_no_orphans,
    assert_tool_called,
    delay,
    error,
    last_text,
    refute_tool_called,
    run_with_responses,
    text,
    tool_call,
    tool_calls,
)

if TYPE_CHECKING:
    from alloy_trio.testing._script import Script


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def test_tst_01_in_order_and_then_an_error() -> None:
    provider = ScriptedProvider([text("a"), text("b")])
    assert (await run("go", provider=provider)).text == "a"
    async with stream("go", provider=provider) as events:
        assert "".join([e.text async for e in events if isinstance(e, TextDelta)]) == "b"
    with pytest.raises(ProviderError, match="at its end: 2 replies"):
        await run("go", provider=provider)


async def test_tst_02_streams_one_character_at_a_time_and_fails_where_told(autojump_clock: object) -> None:
    seen = []
    with pytest.raises(RateLimited):
        async with stream(
            "go", provider=ScriptedProvider([[Thinking("hm"), delay(100), error(RateLimited("slow"))]])
        ) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - what came before the failure counts
    assert [e.text for e in seen if isinstance(e, ThinkingDelta)] == ["h", "m"]
    assert trio.current_time() == pytest.approx(100)


async def test_tst_03_default_usage() -> None:
    assert (await run_with_responses("go", [text("x")])).usage == Usage(input_tokens=10, output_tokens=5)
    assert (await run_with_responses("go", [text("x", usage=Usage(1, 2))])).usage == Usage(1, 2)


async def test_tst_04_run_with_responses_takes_options() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 2})] * 2, tools=[add], max_turns=1)
    assert (result.status, result.turns) == ("max_turns", 1)


async def test_a_reply_may_be_a_function_or_a_whole_response() -> None:
    def echo(request: Request) -> Response:
        return Response(message=Message.assistant(request.messages[-1].text.upper()))

    assert (await run_with_responses("loud", [echo])).text == "LOUD"
    assert (await run_with_responses("go", ["plain"])).messages[-1].content == (Text("plain"),)
    assert (await run_with_responses("go", [lambda _: [Text("a"), text("b")]])).text == "ab"


async def test_tst_05_assert_and_refute() -> None:
    replies: list[Script] = [[tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 4})], text("x")]
    result = await run_with_responses("go", replies, tools=[add])
    assert assert_tool_called(result, "add").input == {"a": 1, "b": 2}
    assert assert_tool_called(result, "add", {"a": 3}).input == {"a": 3, "b": 4}
    refute_tool_called(result, "sub")
    refute_tool_called(result, "add", {"a": 5})
    with pytest.raises(AssertionError, match="sub was not called; the calls were: add"):
        assert_tool_called(result, "sub")
    with pytest.raises(AssertionError, match="'a': 5"):
        assert_tool_called(result, "add", {"a": 5})
    with pytest.raises(AssertionError, match="was called with"):
        refute_tool_called(result, "add", {"b": 4})


async def test_tst_06_last_text_and_tool_calls() -> None:
    assert last_text(Result()) is None
    assert tool_calls(Result()) == []
    replies = [tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 4}), text("x")]
    result = await run_with_responses("go", replies, tools=[add])
    assert last_text(result) == "x"
    assert [c.input["a"] for c in tool_calls(result)] == [1, 3]


async def test_assert_no_orphans_names_what_is_left(nursery: trio.Nursery) -> None:
    with pytest.raises(AssertionError, match=r"task .*sleep_forever"), assert_no_orphans():
        nursery.start_soon(trio.sleep_forever)
    with pytest.raises(AssertionError, match="process"), assert_no_orphans():
        process = await trio.lowlevel.open_process(["sleep", "60"])
    process.kill()
    await process.wait()
    with assert_no_orphans():
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()
