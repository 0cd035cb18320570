"""
An agent's request, ended at every checkpoint that it has, by everything that can end it.

Each time: nothing of it is left, the history passes the rules of all wires, the store says what the agent says, and the next
`chat` works without a repair.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from rules import check_history

from alloy_trio import (
    Agent,
    AgentClosed,
    Budget,
    Message,
    Price,
    RequestCancelled,
    RunTimeout,
    Session,
    Text,
    Thinking,
    ToolContext,
    UnknownRequest,
    open_agent,
    tool,
)
from alloy_trio.events import ToolStart
from alloy_trio.sessions import MemoryStore
from alloy_trio.testing import (
    ScriptedProvider,
    assert_no_orphans,
    cancel_at_checkpoint,
    cancel_at_every_checkpoint,
    delay,
    text,
    tool_call,
)
from alloy_trio.tools import Tool, bash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alloy_trio import Result
    from alloy_trio.testing._script import Script

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


@tool
def think(ctx: ToolContext) -> str:
    """Work in a thread, and look up now and then."""
    for _ in range(3):
        ctx.from_thread(trio.lowlevel.checkpoint)
        ctx.check_cancelled()
    return "thought"


IN_VIRTUAL_TIME: list[Script] = [
    [
        SIGNED,
        text("First"),
        tool_call("wait", {"seconds": 1}, id="a"),
        tool_call("wait", {"seconds": 2}, id="b"),
        tool_call("ask", id="c"),
    ],
    [tool_call("wait", {"seconds": 1}, id="d"), tool_call("swallow", id="e")],
    [SIGNED, text("All done.")],
]
IN_REAL_TIME: list[Script] = [
    [
        text("First"),
        tool_call("wait", {"seconds": 0}, id="a"),
        tool_call("think", id="b"),
        tool_call("ask", id="c"),
        tool_call("bash", {"command": "sleep 0 & echo here"}, id="d"),
    ],
    [tool_call("think", id="e"), tool_call("wait", {"seconds": 0}, id="f")],
    "All done.",
]


@attrs.frozen
class Stage:
    """An agent that has a conversation, a sub-agent in a tool, and a store."""

    agent: Agent
    store: MemoryStore
    before: tuple[Message, ...]

    @property
    def tools(self) -> list[Tool]:
        return list(self.agent.tools.values())

    async def check(self, on_cancel: str = "keep") -> None:
        """Look at what there is after the end of a request, and go on."""
        agent, messages = self.agent, self.agent.messages
        check_history(messages, self.tools)
        assert messages[: len(self.before)] == self.before
        if on_cancel == "rollback" and agent.health().last_status == "cancelled":
            assert messages == self.before
        health = agent.health()
        assert (health.status, health.pending_count, health.unsaved, health.abandoned) == ("idle", 0, False, 0)
        async with open_agent(provider="demo", session_store=self.store, session_id="s") as restarted:
            assert restarted.messages == messages
            assert restarted.usage == agent.usage
        calls = sum(bool(message.tool_uses) for message in messages)
        assert (await agent.chat("and now?")).status == "completed"
        assert agent.messages[: len(messages)] == messages
        assert sum(bool(message.tool_uses) for message in agent.messages) == calls
        check_history(agent.messages, self.tools)


@contextlib.asynccontextmanager
async def stage(script: list[Script], **options: Any) -> AsyncIterator[Stage]:
    store = MemoryStore()
    helper_script: list[Script] = [[text("so"), tool_call("wait", {"seconds": 0.5})], "it is so"]
    async with open_agent(provider=ScriptedProvider(helper_script), tools=[wait]) as helper:

        @tool
        async def ask() -> str:
            """Ask another agent."""
            return (await helper.chat("why?")).text

        # What comes behind the script answers whatever is left of it, and the question after it.
        provider = ScriptedProvider(["hello", *script, *["fine"] * 3], price=Price("1000", "1000"))
        given: dict[str, Any] = {"session_store": store, "session_id": "s", **options}
        tools = [wait, swallow, think, ask, bash]
        async with open_agent(provider=provider, tools=tools, retry_backoff=0.0, **given) as agent:
            await agent.chat("hi")
            provider._replies[1:] = [lambda request: _next(script, request)] * 99
            yield Stage(agent, store, agent.messages)


def _next(script: list[Script], request: Any) -> Any:
    """Return the reply for where the conversation stands: what was cut is over."""
    last = request.messages[-1]
    if last.role == "user" and last.text.endswith("go"):
        return script[0]
    answered = {result.tool_use_id for result in last.tool_results}
    if "a" in answered:
        return script[1]
    return script[2] if answered else "fine"


async def chat(agent: Agent) -> None:
    await agent.chat("go")


async def stream(agent: Agent) -> None:
    async with agent.stream_chat("go") as events:
        async for _ in events:
            pass


@pytest.mark.parametrize("on_cancel", ["keep", "rollback"])
@pytest.mark.parametrize("ask", [chat, stream])
async def test_cancelled_at_every_checkpoint(ask: Any, on_cancel: str, autojump_clock: object) -> None:
    """The caller is cancelled: parallel async tools, a sub-agent, a tool that swallows the cancel."""
    lengths = set()
    step, was_reached = 0, True
    while was_reached:
        step += 1
        async with stage(IN_VIRTUAL_TIME, on_cancel=on_cancel) as on:
            was_reached, _ = await cancel_at_checkpoint(lambda on=on: ask(on.agent), step)  # type: ignore[misc]
            lengths.add(len(on.agent.messages))
            await on.check(on_cancel)
    assert step > 30
    assert lengths >= ({3, 5, 7, 8} if on_cancel == "keep" else {2, 8})


async def test_threads_and_processes_are_cancelled_at_every_checkpoint() -> None:
    """The same in real time, with a tool in a thread and a subprocess that has a child of its own."""
    step, was_reached = 0, True
    while was_reached:
        step += 1
        async with stage(IN_REAL_TIME) as on:
            was_reached, _ = await cancel_at_checkpoint(lambda on=on: chat(on.agent), step)  # type: ignore[misc]
            await on.check()
    assert step > 30


async def test_cancelled_by_somebody_else_at_every_checkpoint(autojump_clock: object) -> None:
    """By `cancel_request`: who waits gets RequestCancelled, or the result where the cancel has lost."""
    won = set()
    step, was_reached = 0, True
    while was_reached:
        step += 1
        async with stage(IN_VIRTUAL_TIME) as on:

            async def ask(agent: Agent = on.agent) -> Result | None:
                try:
                    return await agent.chat("go", request_id="it")
                except RequestCancelled as error:
                    return error.result

            async def cancel(agent: Agent = on.agent) -> None:
                with contextlib.suppress(UnknownRequest):  # not asked yet, or over
                    has_won = await agent.cancel_request("it")
                    assert (agent.health().last_status == "cancelled") == has_won
                    won.add(has_won)

            was_reached, result = await cancel_at_checkpoint(ask, step, cancel=cancel)
            assert result is not None
            assert result.status == on.agent.health().last_status
            assert result.messages == on.agent.messages
            await on.check()
    assert True in won


@pytest.mark.parametrize("call", ["a", "b", "c", "d", "e"])
async def test_one_call_is_cancelled_at_every_checkpoint(call: str, autojump_clock: object) -> None:
    """By `cancel_tool`: the run goes on to its end, and so do the siblings."""
    outcomes = set()
    step, was_reached = 0, True
    while was_reached:
        step += 1
        async with stage(IN_VIRTUAL_TIME) as on:

            async def ask(agent: Agent = on.agent) -> Result:
                return await agent.chat("go")

            async def cancel(agent: Agent = on.agent) -> None:
                with contextlib.suppress(UnknownRequest):
                    await agent.cancel_tool(call)

            was_reached, result = await cancel_at_checkpoint(ask, step, cancel=cancel)
            assert result is not None
            assert result.status == "completed"
            assert {each.outcome for each in result.tool_calls if each.id != call} == {"ok"}
            outcomes |= {each.outcome for each in result.tool_calls if each.id == call}
            await on.check()
    assert outcomes == {"ok", "cancelled"}


async def test_a_deadline_passes_at_every_moment(autojump_clock: object) -> None:
    """`timeout=` of the run, and the caller's own `fail_after`, at each half second of a run that takes six."""
    statuses = set()
    for half in range(1, 14):
        for own in (True, False):
            async with stage(IN_VIRTUAL_TIME, timeout=half / 2 if own else None) as on:
                with assert_no_orphans(), contextlib.suppress(RunTimeout, trio.TooSlowError):
                    with trio.fail_after(100 if own else half / 2):
                        await on.agent.chat("go")
                statuses.add(on.agent.health().last_status)
                await on.check()
    assert statuses == {"timed_out", "cancelled", "completed"}


async def test_the_money_ends_at_every_moment(autojump_clock: object) -> None:
    """Each budget, from none to enough, ends the run with a history that is valid; nothing is overspent."""
    statuses = set()
    for cents in range(1, 2000, 60):
        async with stage(IN_VIRTUAL_TIME, max_output_tokens=40) as on:
            with assert_no_orphans(), Budget(cents=cents) as budget:
                result = await on.agent.chat("go")
            assert budget.spent <= budget.limit
            assert budget.reserved == 0
            statuses.add(result.status)
            await on.check()
    assert statuses == {"budget_exceeded", "completed"}


@pytest.mark.parametrize("interrupt", [None, "stream", "turn"])
@pytest.mark.parametrize("ask", [chat, stream])
async def test_steered_at_every_checkpoint(ask: Any, interrupt: Any, autojump_clock: object) -> None:
    """What was said is in the history, and answered, unless `AgentIdle` was raised: it is never lost."""
    taken = []
    step, was_reached = 0, True
    while was_reached:
        step += 1
        async with stage(IN_VIRTUAL_TIME) as on:

            def say(agent: Agent = on.agent) -> None:
                request = agent._core.serving  # `steer` has a checkpoint before this step
                if request is None or not request.controls._is_open:
                    taken.append(False)
                    return
                request.controls.say((Text("REMARK"),), interrupt)
                taken.append(True)

            was_reached, _ = await cancel_at_checkpoint(lambda on=on: ask(on.agent), step, cancel=say)  # type: ignore[misc]
            assert on.agent.health().last_status == "completed"
            said = "".join(message.text for message in on.agent.messages if message.role == "user")
            assert ("REMARK" in said) == (was_reached and taken[-1])
            assert on.agent.messages[-1].role == "assistant"
            await on.check()
    assert set(taken) == {True, False}


async def test_stopped_at_every_checkpoint(autojump_clock: object) -> None:
    """By `agent.stop(0)`: nothing is left, and the store has a conversation that goes on."""

    async def live(store: MemoryStore, holder: list[Agent]) -> None:
        provider = ScriptedProvider(IN_VIRTUAL_TIME[1:])
        async with open_agent(provider=provider, tools=[wait, swallow], session_store=store, session_id="s") as agent:
            holder[:] = [agent]
            with contextlib.suppress(RequestCancelled, AgentClosed):  # closed, where its turn had not come
                await agent.chat("go")
            await agent.stop(0)

    async def stop(holder: list[Agent]) -> None:
        if holder:
            await holder[0].stop(0)

    step, was_reached = 0, True
    while was_reached:
        step += 1
        store, holder = MemoryStore(), list[Agent]()
        try:
            was_reached, _ = await cancel_at_checkpoint(
                lambda s=store, h=holder: live(s, h),  # type: ignore[misc]
                step,
                cancel=lambda h=holder: stop(h),  # type: ignore[misc]
            )
        except Exception as error:
            error.add_note(f"at step {step}")
            raise
        async with open_agent(provider=ScriptedProvider(["fine"]), session_store=store, session_id="s") as again:
            assert (await again.chat("and now?")).text == "fine"
            check_history(again.messages, [wait, swallow])
    assert step > 10


async def test_opening_and_leaving_is_cancelled_at_every_checkpoint(autojump_clock: object) -> None:
    """Also while the store is read, and in the hooks of an agent's ends."""

    class Slow:
        async def session_start(self, _: object) -> None:
            await trio.sleep(1)

        async def session_end(self, _: object) -> None:
            await trio.sleep(1)

    ends: list[Session] = []

    async def live() -> None:
        async with open_agent(
            provider=ScriptedProvider([[delay(1), text("x")]]),
            middleware=[Slow()],
            session_store=MemoryStore(),
            on_shutdown=ends.append,
        ) as agent:
            await agent.send_message("go")
            await agent.wait_idle()

    assert await cancel_at_every_checkpoint(live) > 8
    assert ends


async def test_a_call_that_starts_is_seen_by_id(autojump_clock: object) -> None:
    """The ids that `cancel_tool` takes are those of the events."""
    async with stage(IN_VIRTUAL_TIME) as on, on.agent.stream_chat("go") as events:
        async for event in events:
            if isinstance(event, ToolStart) and event.id == "b":
                assert await on.agent.cancel_tool("b")
        assert [each.outcome for each in events.result.tool_calls] == ["ok", "cancelled", "ok", "ok", "ok"]
