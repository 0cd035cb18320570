"""Cancellation: nothing runs on, and the history is valid at once, wherever the cancel falls."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from rules import check_history

from alloy_trio import (
    Message,
    RunTimeout,
    Session,
    Text,
    Thinking,
    ToolContext,
    ToolResult,
    ToolUse,
    run,
    stream,
    tool,
)
from alloy_trio.events import Custom, ToolEnd
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, cancel_at_every_checkpoint, delay, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Callable

    from alloy_trio.testing._script import Piece, Script

SIGNED = Thinking("deep", signature="sealed")


@tool
async def wait(seconds: float) -> str:
    """Wait."""
    await trio.sleep(seconds)
    return f"waited {seconds}"


@tool
async def swallow() -> str:
    """Swallow a cancel."""
    with trio.CancelScope(shield=True):
        await trio.sleep(2)
    return "done anyway"


SCRIPT: list[Script] = [
    [SIGNED, text("First this"), tool_call("wait", {"seconds": 1}), tool_call("wait", {"seconds": 2})],
    [tool_call("wait", {"seconds": 1}), tool_call("swallow")],
    [SIGNED, text("All done.")],
]
TOOLS = [wait, swallow]


async def scenario(session: Session, *, streaming: bool) -> None:
    provider = ScriptedProvider(SCRIPT)
    if not streaming:
        await run("go", provider=provider, tools=TOOLS, session=session)
        return
    async with stream("go", provider=provider, tools=TOOLS, session=session) as events:
        async for _ in events:
            pass


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelled_at_every_checkpoint(streaming: bool, autojump_clock: object) -> None:
    """Parallel tools, three turns: at each step of the loop the tasks are gone and every wire takes the history."""
    sessions: list[Session] = []

    async def go() -> None:
        sessions.append(Session())
        await scenario(sessions[-1], streaming=streaming)

    def check(_: None) -> None:
        if sessions[-1].messages:
            check_history(sessions[-1].messages, TOOLS)

    assert await cancel_at_every_checkpoint(go, check=check) > 13
    lengths = {len(session.messages) for session in sessions} - {0}
    assert lengths == {1, 2, 3, 5, 6} if streaming else lengths == {1, 3, 5, 6}


async def history_after(replies: list[Script], seconds: float, **options: Any) -> tuple[Message, ...]:
    session = Session()
    with trio.move_on_after(seconds) as scope:
        async with stream("go", provider=ScriptedProvider(replies), session=session, **options) as events:
            async for _ in events:
                pass
    assert scope.cancelled_caught
    check_history(session.messages)
    return session.messages


async def test_cut_while_streaming_keeps_the_text(autojump_clock: object) -> None:
    reply: list[Piece] = [SIGNED, text("Half a sen \n"), delay(60), text("tence")]
    history = await history_after([reply], 1)
    assert history[1:] == (Message("assistant", "Half a sen", provider="scripted", model="scripted", interrupted=True),)


async def test_cut_while_streaming_drops_calls_that_never_started(autojump_clock: object) -> None:
    history = await history_after([[text("I will"), tool_call("wait", {"seconds": 1}), delay(60)]], 1, tools=TOOLS)
    assert history[1].content == (Text("I will"),)


async def test_cut_while_streaming_drops_what_the_provider_has_sealed(autojump_clock: object) -> None:
    assert (await history_after([[SIGNED, text("So"), delay(60)]], 1))[1].content == (Text("So"),)


async def test_cut_while_streaming_keeps_the_chat_wires_reasoning(autojump_clock: object) -> None:
    plain = Thinking("hm", provider_data={"field": "reasoning_content"})
    history = await history_after([[plain, text("So"), delay(60)]], 1)
    assert history[1].content == (plain, Text("So"))


@pytest.mark.parametrize("pieces", [[SIGNED], [text(" \n")], []], ids=["thinking", "blank", "nothing"])
async def test_cut_before_any_text_keeps_nothing(pieces: list[Any], autojump_clock: object) -> None:
    assert len(await history_after([[*pieces, delay(60)]], 1)) == 1


async def test_cut_while_tools_run(autojump_clock: object) -> None:
    reply: list[Piece] = [SIGNED, text("Both"), tool_call("wait", {"seconds": 1}), tool_call("wait", {"seconds": 9})]
    history = await history_after([reply], 3, tools=TOOLS)
    assert history[1].content[0] == SIGNED
    assert not history[1].interrupted
    results = [r for r in history[2].content if isinstance(r, ToolResult)]
    assert [(r.outcome, r.is_error) for r in results] == [("ok", False), ("cancelled", True)]
    assert [r.tool_use_id for r in results] == [u.id for u in history[1].content if isinstance(u, ToolUse)]
    assert results[0].text == "waited 1.0"


async def test_a_deadline_of_the_run_says_timed_out(autojump_clock: object) -> None:
    ends: list[ToolEnd] = []
    with pytest.raises(RunTimeout) as caught:
        await run(
            "go",
            provider=ScriptedProvider([tool_call("wait", {"seconds": 9})]),
            tools=TOOLS,
            timeout=3,
            on_event=lambda e: ends.append(e.event) if isinstance(e.event, ToolEnd) else None,
        )
    result = caught.value.result
    assert result is not None
    assert [c.outcome for c in result.tool_calls] == ["timed_out"]
    assert [e.outcome for e in ends] == ["timed_out"]
    assert result.tool_calls[0].end_event_seq is not None
    check_history(result.messages)


async def test_a_tool_that_swallows_a_cancel_does_not_end_it(autojump_clock: object) -> None:
    session = Session()
    with trio.move_on_after(1) as scope:
        await run("go", provider=ScriptedProvider([tool_call("swallow"), text("ok")]), tools=TOOLS, session=session)
    assert scope.cancelled_caught
    result = session.messages[2].content[0]
    assert isinstance(result, ToolResult)
    # It returned: what it did is real.
    assert (result.outcome, result.text) == ("ok", "done anyway")
    assert len(session.messages) == 3


async def test_no_tool_begins_behind_one_that_swallows_a_cancel(autojump_clock: object) -> None:
    began: list[str] = []

    @tool(inline=True)
    def act() -> None:
        """Act."""
        began.append("act")

    calls = [tool_call("swallow"), tool_call("act")]
    first = swallow.evolve(concurrent=False)
    with trio.move_on_after(1):
        await run("go", provider=ScriptedProvider([calls]), tools=[first, act], max_turns=1)
    assert began == []


async def test_a_tool_that_swallows_a_cancel_in_the_last_turn_does_not_end_it_either(autojump_clock: object) -> None:
    with trio.move_on_after(1) as scope:
        await run("go", provider=ScriptedProvider([tool_call("swallow")]), tools=TOOLS, max_turns=1)
    assert scope.cancelled_caught


# threads: real time, synchronised on events


def blocking_tool(body: Callable[[ToolContext], str], **options: Any) -> Any:
    @tool(**options)
    def block(ctx: ToolContext) -> str:
        """Block."""
        return body(ctx)

    return block


async def cancel_when(started: threading.Event, session: Session, block: Any, **options: Any) -> None:
    provider = ScriptedProvider([tool_call("block"), text("never")])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await trio.to_thread.run_sync(started.wait)
            nursery.cancel_scope.cancel()

        await run("go", provider=provider, tools=[block], session=session, **options)


def outcome_of(session: Session) -> ToolResult:
    result = session.messages[2].content[0]
    assert isinstance(result, ToolResult)
    check_history(session.messages)
    return result


async def test_a_cancelled_thread_that_asks_ends_as_cancelled() -> None:
    started, session = threading.Event(), Session()

    def body(ctx: ToolContext) -> str:
        started.set()
        while True:
            ctx.check_cancelled()

    with assert_no_orphans():
        await cancel_when(started, session, blocking_tool(body), cancel_grace=60)
    assert outcome_of(session).outcome == "cancelled"


async def test_a_thread_that_returns_within_the_grace_is_ok() -> None:
    started, session = threading.Event(), Session()

    def body(ctx: ToolContext) -> str:
        started.set()
        try:
            while True:
                ctx.check_cancelled()
        except BaseException:  # noqa: BLE001 - a tool may do what it likes
            return "finished the line"

    with assert_no_orphans():
        await cancel_when(started, session, blocking_tool(body), cancel_grace=60)
    assert (outcome_of(session).outcome, outcome_of(session).text) == ("ok", "finished the line")


async def test_a_thread_that_does_not_end_is_abandoned_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    started, release, session = threading.Event(), threading.Event(), Session()

    def body(_: ToolContext) -> str:
        started.set()
        release.wait()
        return "too late"

    try:
        await cancel_when(started, session, blocking_tool(body, cancel_grace=0), cancel_grace=60)
        result = outcome_of(session)
        assert result.outcome == "abandoned"
        assert result.is_error
        assert "left running" in result.text
        assert "left running" in caplog.text
        with pytest.raises(AssertionError, match="block"), assert_no_orphans_now():
            pass
    finally:
        release.set()


class assert_no_orphans_now:  # noqa: N801 - reads as the function it wraps
    """`assert_no_orphans`, with a thread that was there before it counted as if it came now."""

    def __enter__(self) -> None:
        from alloy_trio.testing import _asserts

        names = [name for name in _asserts._things().values() if name.startswith("thread")]
        if names:
            raise AssertionError(names)

    def __exit__(self, *_: object) -> None:
        return


async def test_a_timed_out_thread_that_asks_is_timed_out_and_the_run_goes_on() -> None:
    def body(ctx: ToolContext) -> str:
        while True:
            ctx.check_cancelled()

    block = blocking_tool(body, timeout=0.05, cancel_grace=60)
    result = await run("go", provider=ScriptedProvider([tool_call("block"), text("ok")]), tools=[block])
    assert [c.outcome for c in result.tool_calls] == ["timed_out"]
    assert result.text == "ok"


async def test_a_thread_that_waits_for_its_event_to_be_taken_is_cancelled() -> None:
    def body(ctx: ToolContext) -> str:
        while True:
            ctx.from_thread(ctx.emit, "tick", {})

    block = blocking_tool(body, cancel_grace=math.inf)
    with assert_no_orphans():
        async with stream("go", provider=ScriptedProvider([tool_call("block")]), tools=[block]) as events:
            async for event in events:
                if isinstance(event, Custom):
                    break
    assert [c.outcome for c in events.result.tool_calls] == ["cancelled"]


async def test_a_run_inside_a_thread_is_cancelled_with_its_call() -> None:
    started, session, ended = threading.Event(), Session(), []

    @tool
    async def inner() -> None:
        """Wait."""
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(1)

    def body(ctx: ToolContext) -> str:
        provider = ScriptedProvider([tool_call("inner")])
        return ctx.from_thread(partial(run, "sub", provider=provider, tools=[inner])).text

    with assert_no_orphans():
        await cancel_when(started, session, blocking_tool(body), cancel_grace=math.inf)
        assert ended == [1]
    assert outcome_of(session).outcome == "cancelled"


async def test_a_call_that_found_no_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import alloy_trio._loop

    monkeypatch.setattr(alloy_trio._turns, "_THREADS", 1)
    release = threading.Event()

    def body(ctx: ToolContext) -> str:
        release.wait()
        return "x"

    block = blocking_tool(body, timeout=0.05, cancel_grace=0.05)
    try:
        replies: list[Script] = [tool_call("block"), tool_call("block"), text("ok")]
        result = await run("go", provider=ScriptedProvider(replies), tools=[block])
    finally:
        release.set()
    assert [c.outcome for c in result.tool_calls] == ["abandoned", "timed_out"]
    assert "no free thread" in str(result.tool_calls[1].error)


async def test_a_cancel_while_waiting_for_a_thread_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import alloy_trio._loop

    monkeypatch.setattr(alloy_trio._turns, "_THREADS", 1)
    started, release, session = threading.Event(), threading.Event(), Session()
    ran = []

    def body(ctx: ToolContext) -> str:
        ran.append(ctx.tool_use_id)
        started.set()
        while not release.is_set():
            ctx.check_cancelled()
        return "x"

    block = blocking_tool(body, cancel_grace=60)
    provider = ScriptedProvider([[tool_call("block", id="a"), tool_call("block", id="b")]])
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await trio.to_thread.run_sync(started.wait)
            nursery.cancel_scope.cancel()

        await run("go", provider=provider, tools=[block], session=session)
    assert len(ran) == 1
    assert [r.outcome for r in session.messages[2].content if isinstance(r, ToolResult)] == [
        "cancelled",
        "cancelled",
    ]
