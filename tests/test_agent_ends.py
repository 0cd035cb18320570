"""Agents at their ends: remarks at the edge of a run, stores that break or hang, stops at an awkward moment, what is let go of."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from alloy_trio import (
    Agent,
    AgentBusy,
    AgentClosed,
    AgentConfig,
    AgentCrashed,
    AgentIdle,
    AlloyError,
    Budget,
    Message,
    Pending,
    RequestCancelled,
    RunState,
    Session,
    StoreError,
    UnknownPrice,
    open_agent,
    tool,
)
from alloy_trio.events import Envelope, RunEnd
from alloy_trio.sessions import MemoryStore
from alloy_trio.supervision import open_supervisor
from alloy_trio.testing import ScriptedProvider, delay, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio.sessions import Record


class Moody(MemoryStore):
    """Each write may break, otherwise than a store should, or hang, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.hangs = False

    async def _write(self) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.hangs:
            await trio.sleep_forever()

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        await self._write()
        await super().append(session_id, records)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        await self._write()
        await super().rewrite(session_id, records)


# Remarks


@pytest.mark.parametrize("number", range(20))
async def test_a_remark_to_a_request_that_never_begins_is_not_lost(number: int, autojump_clock: object) -> None:
    """Whoever says something to a request that is cancelled before it begins is told so; or what they said is in the history."""
    async with open_agent(provider=ScriptedProvider(["fine"])) as agent:
        was_taken = False

        async def ask() -> None:
            with trio.move_on_after(0):
                await agent.chat("go")

        async def say() -> None:
            nonlocal was_taken
            with contextlib.suppress(AgentIdle):
                await agent.steer("REMARK")
                was_taken = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(say)
        said = "".join(message.text for message in agent.messages)
        assert ("REMARK" in said) == was_taken


async def test_a_remark_to_a_request_that_is_about_to_begin_is_taken(autojump_clock: object) -> None:
    """Also where it waits for a reset to be written."""
    store, provider = Slow(), ScriptedProvider([[delay(1), text("fine")], "fine"])
    async with open_agent(provider=provider, session_store=store) as agent, trio.open_nursery() as nursery:
        store.seconds = 5.0
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(agent.chat, "go")
        await trio.testing.wait_all_tasks_blocked()
        await agent.steer("REMARK")
        assert trio.current_time() > 4.0
    assert "REMARK" in "".join(message.text for message in agent.messages)


async def test_a_remark_to_a_request_that_is_cancelled_while_it_waits(autojump_clock: object) -> None:
    """Whoever said it is told that there is no run, once that is known."""
    store = Slow()
    async with open_agent(provider=ScriptedProvider([]), session_store=store) as agent, trio.open_nursery() as nursery:
        store.seconds = 5.0
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()
        pending = await agent.send_message("go")
        nursery.start_soon(cancel_after, 1.0, pending)
        with pytest.raises(AgentIdle):
            await agent.steer("REMARK")
        assert trio.current_time() == 1.0


async def cancel_after(seconds: float, pending: Pending) -> None:
    await trio.sleep(seconds)
    await pending.cancel()


async def test_a_remark_to_a_run_that_fails_before_it_begins(autojump_clock: object) -> None:
    """There is no run that could take it, also while the end of that one is written."""
    provider, store = ScriptedProvider([]), Slow()
    answers: list[Exception | None] = []
    async with open_agent(provider=provider, session_store=store, max_budget_cents=1) as agent:
        store.seconds = 5.0

        async def say() -> None:
            try:
                await agent.steer("REMARK")
            except AgentIdle as idle:
                answers.append(idle)
            else:
                answers.append(None)

        async with trio.open_nursery() as nursery:
            pending = await agent.send_message("go")
            nursery.start_soon(say)
            await trio.sleep(1)
            nursery.start_soon(say)
        with pytest.raises(UnknownPrice):
            await pending.result()
    assert all(answers)
    assert len(answers) == 2


class Slow(MemoryStore):
    """Takes its time for a rewrite."""

    seconds = 0.0

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        await trio.sleep(self.seconds)
        await super().rewrite(session_id, records)


# Stores that break


@pytest.mark.parametrize("waits", [False, True])
async def test_a_store_that_breaks_under_a_reset(*, waits: bool, autojump_clock: object) -> None:
    """Who asked for it is told that the agent broke down; it is started again, and a request that waits is served then."""
    store = BreaksLate()
    spec = Agent.child_spec(name="a", session_id="a", provider=ScriptedProvider(["1", "2"]), session_store=store)
    async with open_supervisor([spec]) as supervisor:
        agent: Agent = supervisor["a"]
        await agent.chat("first")
        store.breaks = True
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def reset() -> None:
                with pytest.raises(AgentCrashed) as caught:
                    await agent.reset()
                assert isinstance(caught.value.__cause__, OSError)

            if waits:
                await trio.testing.wait_all_tasks_blocked()
                assert (await agent.chat("second")).text == "2"
        if not waits:
            await trio.testing.wait_all_tasks_blocked()
            assert supervisor.which_children()[0].restarts == 1
            assert (await agent.chat("second")).text == "2"
        assert supervisor.which_children()[0].restarts == 1
        assert [message.text for message in agent.messages] == ["first", "1", "second", "2"]


async def test_a_store_that_breaks_under_a_reset_ends_an_agent_on_its_own(autojump_clock: object) -> None:
    """Nobody starts it again: leaving it raises why, and it takes no requests."""
    store = BreaksLate()
    with pytest.raises(OSError, match="broken"):
        async with open_agent(provider=ScriptedProvider(["1"]), session_store=store) as agent:
            store.breaks = True
            with pytest.raises(AgentCrashed):
                await agent.reset()
            await trio.testing.wait_all_tasks_blocked()
            assert agent.health().status == "closed"
            with pytest.raises(AgentClosed):
                await agent.chat("anybody?")


async def test_a_stop_while_a_reset_breaks(autojump_clock: object) -> None:
    """The stop returns, what waits is refused, and the end says why."""
    store = BreaksLate()
    with pytest.raises(OSError, match="broken"):
        async with open_agent(provider=ScriptedProvider(["1"]), session_store=store) as agent:
            store.breaks = True
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def reset() -> None:
                    with pytest.raises(AgentCrashed):
                        await agent.reset()

                await trio.testing.wait_all_tasks_blocked()

                @nursery.start_soon
                async def ask() -> None:
                    with pytest.raises(AgentClosed):
                        await agent.chat("anybody?")

                await trio.testing.wait_all_tasks_blocked()
                await agent.stop()


class BreaksLate(MemoryStore):
    """Breaks a second into a rewrite."""

    breaks = False

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        if self.breaks:
            self.breaks = False
            await trio.sleep(1)
            raise OSError("broken")
        await super().rewrite(session_id, records)


async def test_a_store_that_breaks_at_the_very_end(autojump_clock: object) -> None:
    """What a session_end hook leaves cannot be written: the agent is down all the same, and says why."""
    store = Moody()

    class Tidy:
        async def session_end(self, state: RunState) -> None:
            state.messages = (Message.user("short"),)
            store.failure = OSError("broken")

    stopped = False
    with pytest.raises(OSError, match="broken"):
        async with open_agent(provider=ScriptedProvider(["1"]), session_store=store, middleware=[Tidy()]) as agent:
            await agent.chat("first")
            with trio.move_on_after(60):
                await agent.stop()
                stopped = True
            assert agent.health().status == "closed"
    assert stopped


# Stores that hang


async def test_a_caller_s_deadline_is_late_by_the_grace_where_the_end_is_not_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The run is over and its end is being written, for ever: who waits for it, with a deadline, is let go."""
    store = Moody()
    async with open_agent(provider=ScriptedProvider(["1"]), session_store=store, cancel_grace=2) as agent:
        store_hangs_at_end(store, agent)
        with trio.move_on_after(10) as scope:
            await agent.chat("go")
        assert scope.cancelled_caught
        assert trio.current_time() == 12
        assert agent.health().unsaved
        store.hangs = False


def store_hangs_at_end(store: Moody, agent: Agent) -> None:
    append = store.append

    async def late(session_id: str, records: Sequence[Record]) -> None:
        store.hangs = records[-1].kind == "run"
        await append(session_id, records)

    store.append = late  # type: ignore[method-assign] # once
    rewrite = store.rewrite

    async def anew(session_id: str, records: Sequence[Record]) -> None:
        store.hangs = records[-1].kind == "run"
        await rewrite(session_id, records)

    store.rewrite = anew  # type: ignore[method-assign] # once


@pytest.mark.parametrize("how", ["stop", "leave", "supervisor"])
async def test_an_agent_ends_where_the_end_of_a_run_is_not_written(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """By a stop, by leaving it, by its supervisor: in bounded time."""
    store = Moody()
    config = AgentConfig(provider=ScriptedProvider(["1"]), session_store=store, cancel_grace=2, name="a")
    with trio.fail_after(100):
        if how == "supervisor":
            async with open_supervisor([Agent.child_spec(config)]) as supervisor:
                store_hangs_at_end(store, supervisor["a"])
                await supervisor["a"].send_message("go")
                await trio.sleep(1)
        else:
            async with open_agent(config) as agent:
                store_hangs_at_end(store, agent)
                await agent.send_message("go")
                await trio.sleep(1)
                if how == "stop":
                    await agent.stop(3)
    assert trio.current_time() < 20


class Failing(MemoryStore):
    """One of its calls hangs, or breaks."""

    def __init__(self, call: int, failure: Exception | None) -> None:
        super().__init__()
        self.call, self.failure = call, failure

    async def _ask(self) -> None:
        self.call -= 1
        if self.call == 0 and self.failure is not None:
            raise self.failure
        if self.call == 0:
            await trio.sleep_forever()

    async def load(self, session_id: str) -> Sequence[Record]:
        await self._ask()
        return await super().load(session_id)

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        await self._ask()
        await super().append(session_id, records)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        await self._ask()
        await super().rewrite(session_id, records)


class Tidy:
    """Has something to write at the end, too."""

    async def session_end(self, state: RunState) -> None:
        state.messages = (Message.user("short"),)


@tool
async def work(n: int) -> str:
    """Work."""
    await trio.sleep(n)
    return "done"


@pytest.mark.parametrize("failure", [None, OSError("broken"), StoreError("not now")])
@pytest.mark.parametrize("act", ["nothing", "stop", "cancel", "reset"])
@pytest.mark.parametrize("supervised", [False, True])
async def test_whichever_call_of_a_store_hangs_or_breaks(
    failure: Exception | None, act: str, autojump_clock: object, *, supervised: bool
) -> None:
    """Everybody is answered, the agent ends, and nothing is left of it."""

    async def ask(agent: Agent, request_id: str) -> None:
        with trio.move_on_after(50), contextlib.suppress(AlloyError):
            await agent.chat("go", request_id=request_id)

    async def do(agent: Agent) -> None:
        await trio.sleep(2.5)
        with trio.move_on_after(50), contextlib.suppress(AlloyError):
            match act:
                case "stop":
                    await agent.stop(1)
                case "cancel":
                    await agent.cancel_request("1")
                case "reset":
                    await agent.wait_idle()
                    await agent.reset()

    async def live(agent: Agent) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, agent, "1")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, agent, "2")
            nursery.start_soon(do, agent)

    for call in range(2, 15):
        calls = [tool_call("work", {"n": n}, id="call_0") for n in (1, 2)]
        config = AgentConfig(
            name="a",
            provider=ScriptedProvider([calls, *["fine"] * 9]),
            tools=[work],
            middleware=[Tidy()],
            session_store=Failing(call, failure),
        )
        with trio.fail_after(200), contextlib.suppress(OSError):
            if supervised:
                async with open_supervisor([Agent.child_spec(config)]) as supervisor:
                    agent: Agent = supervisor["a"]
                    await live(agent)
            else:
                async with open_agent(config) as agent:
                    await live(agent)
        core = agent._core
        assert agent.health().status == "closed"
        assert (core.requests, len(core.mailbox), core.current, core.changing) == ({}, 0, None, None)
        assert not core.is_alive


async def test_a_reset_that_is_cancelled_is_not_saved() -> None:
    """And `health` says so."""
    store = Moody()
    async with open_agent(provider=ScriptedProvider(["1"]), session_store=store) as agent:
        await agent.chat("go")
        store.hangs = True
        with trio.move_on_after(0.01):
            await agent.reset()
        assert agent.health().unsaved
        store.hangs = False
        await agent.reset()
        assert not agent.health().unsaved


# Stops


async def test_a_stop_in_the_middle_of_a_reset_starts_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """What waits behind the reset is refused: no run begins that the stop would wait for."""
    store = Slow()
    provider = ScriptedProvider([[delay(1000), text("1")]])
    async with open_agent(provider=provider, session_store=store) as agent, trio.open_nursery() as nursery:
        store.seconds = 5.0
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()

        @nursery.start_soon
        async def ask() -> None:
            with pytest.raises(AgentClosed):
                await agent.chat("go")

        await trio.testing.wait_all_tasks_blocked()
        await agent.stop(1)
        assert not provider.requests
        assert trio.current_time() == 5.0  # a reset is not left to be written behind it


async def test_a_stop_does_not_wait_for_a_reader_that_reads_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """The run is committed, and its last events are not taken: the stop gives it its time, and cuts them."""
    async with open_agent(provider=ScriptedProvider(["1"])) as agent, trio.open_nursery() as nursery:
        committed, stopped = trio.Event(), trio.Event()

        @nursery.start_soon
        async def read() -> None:
            async with agent.stream_chat("go") as events:
                async for _ in events:
                    await trio.sleep(1)
                    if agent.health().last_status == "completed":
                        break
                committed.set()
                await stopped.wait()

        await committed.wait()
        began = trio.current_time()
        assert agent.health().busy
        with trio.fail_after(100):
            await agent.stop(3)
        assert trio.current_time() == began + 3
        assert agent.health().last_status == "completed"
        stopped.set()


async def test_a_second_stop_waits_as_the_first_does(autojump_clock: trio.testing.MockClock) -> None:
    """Also one that comes while the agent says goodbye: when it returns, nothing of it runs."""
    ended: list[float] = []

    async def goodbye(_: Session) -> None:
        await trio.sleep(2)
        ended.append(trio.current_time())

    async with open_agent(provider=ScriptedProvider([]), on_shutdown=goodbye) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.stop)
        await trio.sleep(1)
        await agent.stop()
        assert ended == [2.0]


async def test_a_hook_of_the_end_may_stop_its_agent(autojump_clock: trio.testing.MockClock) -> None:
    """It is stopping: there is nothing to wait for."""
    agents: list[Agent] = []

    async def goodbye(_: Session) -> None:
        await agents[0].stop()

    async with open_agent(provider=ScriptedProvider([]), on_shutdown=goodbye) as agent:
        agents.append(agent)
    assert trio.current_time() == 0


async def test_a_stop_while_it_starts_again(autojump_clock: trio.testing.MockClock) -> None:
    """The life that is about to begin ends at once; the stop returns when that has."""
    store = SlowToLoad()
    spec = Agent.child_spec(name="a", provider=ScriptedProvider(["1"]), session_store=store, restart="transient")
    async with open_supervisor([spec]) as supervisor:
        agent: Agent = supervisor["a"]
        store.seconds, store.failure = 5.0, OSError("broken")
        with pytest.raises(AgentCrashed):
            await agent.chat("go")
        await trio.sleep(1)
        assert agent.health().status == "down"
        await agent.stop()
        assert trio.current_time() == 5.0
        await trio.testing.wait_all_tasks_blocked()
        assert agent.health().status == "closed"


class SlowToLoad(Moody):
    seconds = 0.0

    async def load(self, session_id: str) -> Sequence[Record]:
        await trio.sleep(self.seconds)
        return await super().load(session_id)


async def test_it_lives_once_also_while_it_starts(autojump_clock: object) -> None:
    """One spec given to two supervisors: the second start fails, whenever it comes."""
    store = SlowToLoad()
    store.seconds = 5.0
    spec = Agent.child_spec(name="a", provider=ScriptedProvider([]), session_store=store)

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def first() -> None:
            async with open_supervisor([spec]):
                await trio.sleep(10)

        await trio.sleep(1)
        with pytest.raises(RuntimeError, match="lives once at a time"):
            async with open_supervisor([spec]):
                pass


# Resets


async def test_a_reset_of_an_agent_that_is_closed() -> None:
    """Its conversation may be another one's by now: the store is not touched."""
    store = MemoryStore()
    async with open_agent(provider=ScriptedProvider(["1"]), session_store=store, session_id="s") as agent:
        await agent.chat("go")
    with pytest.raises(AgentClosed):
        await agent.reset()
    async with open_agent(provider=ScriptedProvider([]), session_store=store, session_id="s") as again:
        assert [message.text for message in again.messages] == ["go", "1"]


async def test_a_reset_while_it_starts_again(autojump_clock: object) -> None:
    """It would be lost on the way: the store is being read."""
    store = SlowToLoad()
    spec = Agent.child_spec(name="a", provider=ScriptedProvider(["1"]), session_store=store)
    async with open_supervisor([spec]) as supervisor:
        agent: Agent = supervisor["a"]
        await agent.chat("go")
        store.seconds, store.failure = 5.0, OSError("broken")
        with pytest.raises(AgentCrashed):
            await agent.chat("go on")
        await trio.sleep(1)
        with pytest.raises(AgentBusy, match="started"):
            await agent.reset()
        await supervisor.wait_child("a")
        await agent.reset()
        assert agent.messages == ()


async def test_what_a_hook_of_the_start_makes_of_the_conversation_is_seen() -> None:
    """At once, not after the first run."""

    class Greet:
        async def session_start(self, state: RunState) -> None:
            state.messages = (Message.user("hello"), Message.assistant("hi"))

    messages = [Message.user("x"), Message.assistant("y")]
    async with open_agent(provider=ScriptedProvider([]), middleware=[Greet()], messages=messages) as agent:
        assert [message.text for message in agent.messages] == ["hello", "hi"]


async def test_wait_idle_waits_for_a_reset_too(autojump_clock: object) -> None:
    """As the advice of `AgentBusy` says."""
    store = Slow()
    async with open_agent(provider=ScriptedProvider([]), session_store=store) as agent, trio.open_nursery() as nursery:
        store.seconds = 5.0
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AgentBusy, match="wait_idle"):
            await agent.reset()
        await agent.wait_idle()
        assert trio.current_time() == 5.0
        await agent.reset()


# Waiting for oneself


async def test_a_tool_that_waits_for_a_message_to_its_own_agent(autojump_clock: object) -> None:
    """That could never end: it is told so at once. To send one, and go on, is fine."""

    @tool
    async def think_later() -> str:
        """Send a message to oneself."""
        pending = await agent.send_message("later")
        with pytest.raises(AgentBusy, match="wait for itself"):
            await pending.result()
        assert (await before.result()).text == "before"  # that is there
        return "sent"

    provider = ScriptedProvider(["before", [tool_call("think_later", {}, id="1")], "now", "later"])
    async with open_agent(provider=provider, tools=[think_later], max_pending=1) as agent:
        before = await agent.send_message("go")
        await agent.wait_idle()
        assert (await agent.chat("go")).tool_calls[0].outcome == "ok"
        await agent.wait_idle()
        assert trio.current_time() == 0
    assert [message.text for message in agent.messages if message.role == "assistant"][-1] == "later"


async def test_a_hook_that_waits_for_its_own_agent(autojump_clock: object) -> None:
    """The start of an agent, or its end, waits for the hook, and what the hook asks for its start, or the next one."""
    told: list[Exception] = []

    async def goodbye(_: Session) -> None:
        for wait in (agent.wait_idle, lambda: agent.chat("goodbye")):
            with pytest.raises(AgentBusy, match="start, or end") as caught:
                await wait()
            told.append(caught.value)

    async with open_agent(provider=ScriptedProvider([]), on_shutdown=goodbye) as agent:
        pass
    assert len(told) == 2
    assert trio.current_time() == 0


async def test_who_is_told_of_the_end_cancels_too_late(autojump_clock: object) -> None:
    """The end of the run waits for `on_event`, which must not wait for the end of the request."""
    won: list[bool] = []

    async def on_event(envelope: Envelope) -> None:
        if isinstance(envelope.event, RunEnd):
            won.append(await pending.cancel())

    async with open_agent(provider=ScriptedProvider(["1"]), on_event=on_event) as agent:
        pending = await agent.send_message("go")
        with trio.fail_after(10):
            assert (await pending.result()).text == "1"
    assert won == [False]


async def test_the_body_of_a_stream_that_waits_its_turn_may_wait_for_who_is_ahead(autojump_clock: object) -> None:
    """That one does not wait for the body."""
    provider = ScriptedProvider([[delay(5), text("1")], "2"])
    async with open_agent(provider=provider) as agent:
        pending = await agent.send_message("first")
        async with agent.stream_chat("second") as events:
            assert (await pending.result()).text == "1"
            async for _ in events:
                pass
        assert events.result.text == "2"


async def test_the_body_of_a_stream_cancels_its_request_too_late(autojump_clock: object) -> None:
    """It is committed, and waits for this very body to take its last events: the cancel has lost, and returns."""
    async with open_agent(provider=ScriptedProvider(["1"])) as agent:
        async with agent.stream_chat("go", request_id="r") as events:
            async for _ in events:
                await trio.sleep(1)
                if agent.health().last_status == "completed":
                    break
            else:
                raise AssertionError("the run was over before its end was taken")
            with trio.fail_after(10):
                assert not await agent.cancel_request("r")
            async for _ in events:
                pass
        assert events.result.status == "completed"


# What is let go of


class Heavy:
    """Something that a caller has."""


async def test_an_idle_agent_keeps_nothing_of_its_last_run_alive(autojump_clock: object) -> None:
    """Nor does a `Pending` that somebody keeps, but for the result."""
    import contextvars

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("heavy")
    async with open_agent(provider=ScriptedProvider(["1", "2"]), max_pending=1) as agent:
        kept: list[weakref.ref[Heavy]] = []

        async def ask() -> None:
            heavy = Heavy()
            kept.append(weakref.ref(heavy))
            variable.set(heavy)
            await agent.chat("go")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
        pending = await agent.send_message("go")
        await pending.result()
        gc.collect()
        assert kept[0]() is None
        assert pending._request.run is None


# Budgets


async def test_a_budget_of_a_caller_does_not_stay_with_the_agent(autojump_clock: object) -> None:
    """What was around one request is around no other."""
    provider = ScriptedProvider(["1", "2"])
    async with open_agent(provider=provider) as agent:
        with Budget(cents=1), pytest.raises(UnknownPrice):
            await agent.chat("go")
        assert (await agent.chat("go")).text == "1"


async def test_two_cancels_at_once_have_both_won(autojump_clock: object) -> None:
    """Both return when nothing runs any more; whoever waits is told."""
    async with open_agent(provider=ScriptedProvider([[delay(100), text("1")]])) as agent:
        pending, won = await agent.send_message("go", request_id="r"), list[bool]()

        async def cancel() -> None:
            won.append(await agent.cancel_request("r"))

        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            nursery.start_soon(cancel)
        assert won == [True, True]
        with pytest.raises(RequestCancelled):
            await pending.result()
        assert agent.health().status == "idle"


async def test_a_store_that_refuses_a_reset(autojump_clock: object) -> None:
    """That is no breakdown: who asked is told, and the agent lives."""
    store = Moody()
    async with open_agent(provider=ScriptedProvider(["1"]), session_store=store) as agent:
        store.failure = StoreError("not now")
        with pytest.raises(StoreError):
            await agent.reset()
        assert agent.health().unsaved
        assert (await agent.chat("go")).text == "1"
        assert not agent.health().unsaved
