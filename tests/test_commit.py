"""
The one step in which a run's end is decided: a cancel that comes before it has won, and one that comes later has lost.

What follows it, writing, publishing, answering, nobody cancels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from alloy_trio import Agent, Halted, RequestCancelled, StoreError, open_agent, tool
from alloy_trio.events import RunEnd
from alloy_trio.pubsub import PubSub
from alloy_trio.sessions import MemoryStore
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, tool_call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alloy_trio.sessions import Record


@tool
async def look() -> str:
    """Look."""
    return "nothing there"


class At:
    """Calls something, synchronously, in one of the hooks: no checkpoint lies between that and the end of the run."""

    def __init__(self, hook: str, call: Callable[[], object]) -> None:
        async def fire(_: object) -> None:
            call()
            if hook == "halting":
                raise Halted("enough")

        setattr(self, "before_completion" if hook == "halting" else hook, fire)


@pytest.mark.parametrize(
    ("hook", "script", "options"),
    [
        ("after_completion", ["done"], {}),
        ("after_tool_execution", [[tool_call("look")]], {"max_turns": 1}),
        ("halting", ["never"], {}),
    ],
    ids=["completed", "max_turns", "halted"],
)
async def test_a_cancel_in_the_last_moment_has_won(
    hook: str, script: list[Any], options: dict[str, Any], autojump_clock: object
) -> None:
    """However the run was about to end, the result says `cancelled`, and so does whoever cancelled it."""
    won: list[bool] = []
    ends: list[str] = []
    agent: Agent

    def note(envelope: Any) -> None:
        if isinstance(envelope.event, RunEnd):
            ends.append(envelope.event.status)

    middleware = At(hook, lambda: won.append(agent._core.requests["it"].cancel()))
    async with open_agent(
        provider=ScriptedProvider(script), tools=[look], middleware=[middleware], on_event=note, **options
    ) as agent:
        with pytest.raises(RequestCancelled) as caught:
            await agent.chat("go", request_id="it")
        assert won == [True]
        assert ends == ["cancelled"]
        assert caught.value.result is not None
        assert caught.value.result.status == agent.health().last_status == "cancelled"


async def test_a_cancel_after_the_commit_has_lost(autojump_clock: object) -> None:
    """While the last event is being taken: `cancel_request` waits for the end of it, and says False."""

    async def slow(envelope: Any) -> None:
        if isinstance(envelope.event, RunEnd):
            await trio.sleep(5)

    async with open_agent(provider=ScriptedProvider(["done"]), on_event=slow) as agent:
        pending = await agent.send_message("go")
        await trio.sleep(1)
        assert agent.messages[-1].text == "done"  # committed: readers see it
        assert agent.health().status == "running"
        assert not await agent.cancel_request(pending.request_id)
        assert trio.current_time() == pytest.approx(5)
        assert (await pending.result()).status == "completed"


class SlowStore(MemoryStore):
    """Takes a second for each write."""

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        await trio.sleep(1)
        await super().append(session_id, records)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        await trio.sleep(1)
        await super().rewrite(session_id, records)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
async def test_what_follows_the_commit_is_not_cancelled(seconds: float, autojump_clock: object) -> None:
    """The caller leaves while the question, or the end, is being written: both are in the store when it has left."""
    store = SlowStore()
    async with open_agent(provider=ScriptedProvider(["done"]), session_store=store, session_id="s") as agent:
        with assert_no_orphans(), trio.move_on_after(seconds):
            await agent.chat("go")
        assert not agent.health().unsaved
        async with open_agent(provider="demo", session_store=store, session_id="s") as again:
            assert again.messages == agent.messages
    assert len(again.messages) == (2 if seconds > 1 else 1)


async def test_an_agent_that_is_left_writes_what_it_has_committed(autojump_clock: object) -> None:
    """It is left while the end of a run is being written: that is in the store when it is gone."""
    store = SlowStore()
    with assert_no_orphans():
        async with open_agent(provider=ScriptedProvider(["done"]), session_store=store, session_id="s") as agent:
            await agent.send_message("go")
            await trio.sleep(1.5)
    assert [record.kind for record in await store.load("s")][-1] == "run"


async def test_the_end_of_a_cancelled_run_is_written_within_the_grace(autojump_clock: object) -> None:
    """A store that hangs holds a cancel up for `cancel_grace` seconds, and `unsaved` says that it has not written."""

    class Hanging(SlowStore):
        async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
            await trio.sleep_forever()

    async with open_agent(provider=ScriptedProvider([]), session_store=Hanging(), cancel_grace=3) as agent:
        with trio.move_on_after(1):
            await agent.chat("go")
        assert trio.current_time() == pytest.approx(4)
        assert agent.health().unsaved


async def test_an_answer_that_could_not_be_written_is_there_all_the_same(autojump_clock: object) -> None:
    """`chat` raises StoreError with the result; the agent lives, says `unsaved`, and writes all of it the next time."""

    class Full(MemoryStore):
        is_full = False

        async def append(self, session_id: str, records: Sequence[Record]) -> None:
            if self.is_full and any(record.kind == "run" for record in records):
                raise StoreError("the disk is full")
            await super().append(session_id, records)

    store = Full()
    async with open_agent(provider=ScriptedProvider(["a", "b"]), session_store=store, session_id="s") as agent:
        store.is_full = True
        with pytest.raises(StoreError, match="full") as caught:
            await agent.chat("one")
        assert caught.value.result is not None
        assert caught.value.result.text == "a"
        assert agent.health().unsaved
        store.is_full = False
        assert (await agent.chat("two")).text == "b"
        assert not agent.health().unsaved
        async with open_agent(provider="demo", session_store=store, session_id="s") as again:
            assert [message.text for message in again.messages] == ["one", "a", "two", "b"]


async def test_each_result_is_published_once(autojump_clock: object) -> None:
    """Of requests that nobody waits for: completed, failed, cancelled in the queue and while they ran."""
    pubsub = PubSub()
    provider = ScriptedProvider([[tool_call("look")], "done"])
    async with open_agent(provider=provider, tools=[look], pubsub=pubsub, session_id="s", max_pending=9) as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            pending = [await agent.send_message(str(number)) for number in range(3)]
            await pending[1].cancel()
            await agent.wait_idle()
            got = [await responses.receive() for _ in pending]
            with pytest.raises(trio.WouldBlock):
                responses.receive_nowait()
    by_id = {result.request_id: result for result in got}
    assert len(by_id) == 3
    assert by_id[pending[1].request_id].metadata["phase"] == "queued"
    assert [by_id[each.request_id].status for each in pending] == ["completed", "cancelled", "error"]
