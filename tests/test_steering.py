"""Saying something to a run, ending one of its calls, and deciding on one: from outside, while it is under way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from rules import check_history

from alloy_trio import (
    AgentIdle,
    BlockCall,
    EditCall,
    InvalidOption,
    Message,
    RequestCancelled,
    RunState,
    RunTimeout,
    Text,
    ToolContext,
    ToolUse,
    UnknownRequest,
    open_agent,
    run,
    tool,
)
from alloy_trio.events import ApprovalRequested, Envelope, Steered, ToolEnd
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, text, tool_call

if TYPE_CHECKING:
    from alloy_trio import Agent
    from alloy_trio.testing._script import Script


@tool
async def wait(seconds: float) -> str:
    """Wait."""
    await trio.sleep(seconds)
    return f"waited {seconds:g}"


@tool
async def remove(path: str) -> str:
    """Remove a file."""
    await trio.sleep(1)
    return f"removed {path}"


class AskFirst:
    """Lets a person decide on what removes."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        return await state.approval(call) if call.name == "remove" else None


def kinds(message: Message) -> list[str]:
    return [type(block).__name__ for block in message.content]


WORK: list[Script] = [
    [text("First"), delay(2), tool_call("wait", {"seconds": 4}, id="a"), tool_call("wait", {"seconds": 6}, id="b")],
    "done",
    "more",
]


@pytest.mark.parametrize(
    ("at", "interrupt", "expected", "ends_at"),
    [
        (1, None, [["Text"], ["Text", "ToolUse", "ToolUse"], ["ToolResult", "ToolResult", "Text"], ["Text"]], 8),
        (1, "stream", [["Text"], ["Text"], ["Text"], ["Text"]], 1),
        (1, "turn", [["Text"], ["Text"], ["Text"], ["Text"]], 1),
        (3, None, [["Text"], ["Text", "ToolUse", "ToolUse"], ["ToolResult", "ToolResult", "Text"], ["Text"]], 8),
        (3, "stream", [["Text"], ["Text", "ToolUse", "ToolUse"], ["ToolResult", "ToolResult", "Text"], ["Text"]], 8),
        (3, "turn", [["Text"], ["Text", "ToolUse", "ToolUse"], ["ToolResult", "ToolResult", "Text"], ["Text"]], 3),
    ],
)
async def test_the_three_grains(
    at: float, interrupt: Any, expected: list[list[str]], ends_at: float, autojump_clock: object
) -> None:
    """At the boundary; cutting the stream, but waiting for tools; cutting tools too. The text stands behind all results."""
    seen: list[Envelope] = []
    async with open_agent(provider=ScriptedProvider(WORK), tools=[wait], on_event=seen.append) as agent:
        async with agent.stream_chat("go") as events, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def speak() -> None:
                await trio.sleep(at)
                await agent.steer("REMARK", interrupt=interrupt)

            async for _ in events:
                pass
        assert events.result.status == "completed"
        assert trio.current_time() == ends_at
        assert [kinds(message) for message in agent.messages] == expected
        check_history(agent.messages, [wait])
        assert agent.messages[2].content[-1] == Text("REMARK")
        is_cut = interrupt == "turn" or (interrupt == "stream" and at == 1)
        assert [e.event for e in seen if isinstance(e.event, Steered)] == [Steered("REMARK", interrupted=is_cut)]
        assert agent.messages[1].interrupted == (at == 1 and interrupt is not None)
        if at == 3 and interrupt == "turn":
            assert [result.outcome for result in agent.messages[2].tool_results] == ["cancelled", "cancelled"]


async def test_several_remarks_join_in_order(autojump_clock: object) -> None:
    provider = ScriptedProvider([[tool_call("wait", {"seconds": 2})], "done"])
    async with open_agent(provider=provider, tools=[wait]) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(1)
        await agent.steer("one")
        await agent.steer(Message.user("two"))
        await pending.result()
    assert [block.text for block in provider.requests[1].messages[-1].content[1:] if isinstance(block, Text)] == [
        "one",
        "two",
    ]


@pytest.mark.parametrize(
    ("script", "options", "status"),
    [
        ([[tool_call("wait", {"seconds": 2})]], {"max_turns": 1}, "max_turns"),
        ([[delay(2), error("down")]], {}, "error"),
        ([[delay(60), text("x")]], {"timeout": 2}, "timed_out"),
        ([[text("half "), delay(60), text("x")]], {}, "cancelled"),
    ],
)
async def test_what_was_taken_is_kept_however_the_run_ends(
    script: list[Script], options: dict[str, Any], status: str, autojump_clock: object
) -> None:
    """It is left for the next run."""
    async with open_agent(provider=ScriptedProvider([*script, "fine"]), tools=[wait], **options) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(1)
        await agent.steer("REMARK")
        if status == "cancelled":
            await pending.cancel()
        await agent.wait_idle()
        assert agent.health().last_status == status
        assert agent.messages[-1].role == "user"
        assert agent.messages[-1].content[-1] == Text("REMARK")
        check_history(agent.messages, [wait])
        assert (await agent.chat("and?")).text == "fine"


async def test_an_idle_agent_says_so() -> None:
    async with open_agent(provider=ScriptedProvider(["a"])) as agent:
        with pytest.raises(AgentIdle, match="chat"):
            await agent.steer("hello?")
        await agent.chat("go")
        with pytest.raises(AgentIdle):
            await agent.steer("hello?")
        with pytest.raises(InvalidOption, match="interrupt"):
            await agent.steer("hello?", interrupt="all")  # type: ignore[arg-type] # that is the point
        with pytest.raises(InvalidOption, match="prompt"):
            await agent.steer(" ")


async def test_a_remark_waits_while_the_provider_pauses(autojump_clock: object) -> None:
    """`pause_turn` has to get its answer back as it is."""
    paused: Script = [text("searching", stop_reason="pause_turn"), delay(2)]
    provider = ScriptedProvider([paused, [tool_call("wait", {"seconds": 1})], "done"])
    async with open_agent(provider=provider, tools=[wait]) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(1)
        await agent.steer("REMARK")
        await pending.result()
    assert provider.requests[1].messages[-1].role == "assistant"
    assert kinds(provider.requests[2].messages[-1]) == ["ToolResult", "Text"]


# One call


async def test_one_call_is_cancelled_and_its_siblings_live_on(autojump_clock: object) -> None:
    provider = ScriptedProvider([WORK[0], "done"])
    async with open_agent(provider=provider, tools=[wait]) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(3)
        with pytest.raises(UnknownRequest, match="those that are: a, b"):
            await agent.cancel_tool("c")
        assert await agent.cancel_tool("a")
        with pytest.raises(UnknownRequest):
            await agent.cancel_tool("a")
        result = await pending.result()
    assert [(call.outcome, call.duration) for call in result.tool_calls] == [("cancelled", 1.0), ("ok", 6.0)]
    assert result.messages[2].tool_results[0].text.startswith("cancelled by the user")
    with pytest.raises(UnknownRequest, match="there are none"):
        await agent.cancel_tool("a")


async def test_of_two_calls_with_one_id_the_open_one_is_cancelled(autojump_clock: object) -> None:
    calls = [tool_call("wait", {"seconds": 1}, id="a"), tool_call("wait", {"seconds": 60}, id="a")]
    async with open_agent(provider=ScriptedProvider([calls, "done"]), tools=[wait]) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(3)
        assert await agent.cancel_tool("a")
        result = await pending.result()
    assert [call.outcome for call in result.tool_calls] == ["ok", "cancelled"]


async def test_a_call_that_returns_all_the_same_is_ok(autojump_clock: object) -> None:
    """Its effects are real: `cancel_tool` says that it has not ended it."""

    @tool
    async def stubborn() -> str:
        """Go on."""
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return "done"

    async with open_agent(
        provider=ScriptedProvider([[tool_call("stubborn", id="a")], "ok"]), tools=[stubborn]
    ) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(1)
        assert not await agent.cancel_tool("a")
        assert trio.current_time() == 5
        assert (await pending.result()).tool_calls[0].outcome == "ok"


async def test_a_thread_that_does_not_end_is_abandoned_and_counted() -> None:
    """In real time: it is waited for `cancel_grace` seconds, then it says so in outcome, event and `health`."""
    release, running = threading.Event(), trio.Event()
    ends: list[str] = []

    @tool(cancel_grace=0.01)
    def deaf(ctx: ToolContext) -> str:
        """Hear nothing."""
        ctx.from_thread(trio.lowlevel.checkpoint)
        trio.from_thread.run_sync(running.set)
        release.wait(10)
        return "too late"

    def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, ToolEnd):
            ends.append(envelope.event.outcome)

    script: list[Script] = [[tool_call("deaf", id="a")], "done"]
    try:
        async with open_agent(provider=ScriptedProvider(script), tools=[deaf], on_event=listen) as agent:
            pending = await agent.send_message("go")
            await running.wait()
            assert await agent.cancel_tool("a")
            assert (await pending.result()).tool_calls[0].outcome == "abandoned"
            assert agent.health().abandoned == 1
    finally:
        release.set()
    assert ends == ["abandoned"]


# A person


ASKING: list[Script] = [
    [tool_call("remove", {"path": "x"}, id="a"), tool_call("wait", {"seconds": 1}, id="b")],
    "done",
]


async def asked(agent: Agent) -> None:
    """Wait until a call waits for a person."""
    await trio.sleep(0.5)
    assert [call.id for call in agent.pending_approvals()] == ["a"]
    assert agent.health().pending_approvals == 1


def asking(**options: Any) -> Any:
    return open_agent(provider=ScriptedProvider(ASKING), tools=[remove, wait], middleware=[AskFirst()], **options)


@pytest.mark.parametrize("decision", ["approve", "edit", "deny"])
async def test_a_person_decides(decision: str, autojump_clock: object) -> None:
    async with asking() as agent:
        pending = await agent.send_message("go")
        await asked(agent)
        if decision == "deny":
            agent.deny("a", "not now")
        elif decision == "edit":
            agent.approve("a", {"path": "y"})
        else:
            agent.approve("a")
        with pytest.raises(UnknownRequest, match="waits for approval"):
            agent.approve("a")
        result = await pending.result()
    said = {"deny": "Blocked: not now", "edit": "removed y", "approve": "removed x"}[decision]
    assert result.messages[2].tool_results[0].text == said
    assert [call.outcome for call in result.tool_calls] == ["blocked" if decision == "deny" else "ok", "ok"]
    assert result.messages[1].tool_uses[0].input == {"path": "x"}  # the history keeps the model's own


async def test_an_input_that_does_not_fit_is_refused_and_the_call_goes_on_waiting(autojump_clock: object) -> None:
    async with asking() as agent:
        pending = await agent.send_message("go")
        await asked(agent)
        with pytest.raises(InvalidOption, match="path"):
            agent.approve("a", {"paths": 3})
        await asked(agent)
        agent.approve("a", {"path": "z"})
        assert (await pending.result()).messages[2].tool_results[0].text == "removed z"


async def test_waiting_for_a_person_counts_against_no_time_out(autojump_clock: object) -> None:
    """An hour, with a run that may take three seconds, and a tool that may take two."""
    async with asking(timeout=3, tool_timeout=2) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(3600)
        agent.approve("a")
        assert (await pending.result()).status == "completed"
        assert trio.current_time() == pytest.approx(3601)


async def test_the_clock_goes_on_once_a_person_has_decided(autojump_clock: object) -> None:
    async with asking(timeout=0.5) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(100)
        agent.approve("a")
        with pytest.raises(RunTimeout):
            await pending.result()
        assert trio.current_time() == pytest.approx(100.5)


async def test_a_person_may_be_given_a_time(autojump_clock: object) -> None:
    async with asking(approval_timeout=10) as agent:
        result = await agent.chat("go")
        assert trio.current_time() == pytest.approx(11)
    assert result.messages[2].tool_results[0].text == "Blocked: nobody approved it within 10 seconds"


async def test_nobody_may_be_there(autojump_clock: object) -> None:
    async with asking(approval_timeout=0) as agent:
        result = await agent.chat("go")
    assert result.messages[2].tool_results[0].text == "Blocked: nobody is there to approve it"


@pytest.mark.parametrize("how", ["cancel", "deadline", "cancel_tool", "turn"])
async def test_what_ends_the_waiting(how: str, autojump_clock: object) -> None:
    async with asking() as agent:
        with assert_no_orphans():
            if how == "deadline":
                with trio.move_on_after(2) as scope:
                    await agent.chat("go")
                assert scope.cancelled_caught
            else:
                pending = await agent.send_message("go")
                await asked(agent)
                match how:
                    case "cancel":
                        await pending.cancel()
                        with pytest.raises(RequestCancelled):
                            await pending.result()
                    case "cancel_tool":
                        assert await agent.cancel_tool("a")
                        await pending.result()
                    case _:
                        await agent.steer("stop that", interrupt="turn")
                        await pending.result()
        outcomes = [result.outcome for result in agent.messages[2].tool_results]
        assert outcomes == ["cancelled", "ok" if how == "cancel_tool" else "cancelled"]
        assert not agent.pending_approvals()
        check_history(agent.messages, [remove, wait])


async def test_a_person_may_answer_at_once(autojump_clock: object) -> None:
    """In the very event that asks."""
    holder: list[Agent] = []

    def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, ApprovalRequested):
            assert (envelope.event.name, envelope.event.input) == ("remove", {"path": "x"})
            holder[0].approve(envelope.event.id)

    async with asking(on_event=listen) as agent:
        holder.append(agent)
        assert (await agent.chat("go")).tool_calls[0].outcome == "ok"


async def test_a_run_without_an_agent_has_nobody_to_ask() -> None:
    with pytest.raises(InvalidOption, match="only an agent"):
        await run("go", provider=ScriptedProvider(ASKING), tools=[remove, wait], middleware=[AskFirst()])


async def test_nothing_waits() -> None:
    async with open_agent(provider=ScriptedProvider([])) as agent:
        assert agent.pending_approvals() == ()
        for decide in (agent.approve, agent.deny):
            with pytest.raises(UnknownRequest, match="idle"):
                decide("a")
