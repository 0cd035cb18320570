"""What an agent writes ahead: at each moment enough to go on from, and in the end just what the agent says."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rules import check_history

from alloy_trio import (
    Agent,
    AgentIdle,
    BlockCall,
    Compaction,
    Message,
    ProviderError,
    RequestCancelled,
    RunState,
    StoreError,
    Thinking,
    ToolUse,
    open_agent,
    tool,
)
from alloy_trio.sessions import MemoryStore, Record
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio import Session
    from alloy_trio.testing._script import Script

WORK: list[Script] = [
    [
        Thinking("hm", signature="s"),
        text("Both"),
        tool_call("work", {"n": 1}, id="a"),
        tool_call("work", {"n": 2}, id="b"),
    ],
    [tool_call("work", {"n": 3}, id="c"), tool_call("gone", id="d")],
    "done",
]


@tool
async def work(n: int) -> str:
    """Work."""
    await trio.sleep(n)
    return f"did {n}"


async def read_back(store: MemoryStore) -> Session:
    """Return the conversation as an agent has it that is started again."""
    async with open_agent(provider=ScriptedProvider([]), session_store=store, session_id="s") as agent:
        return agent.export_session()


async def same(agent: Agent, store: MemoryStore) -> None:
    """See that the log says what the agent says."""
    there, here = await read_back(store), agent.export_session()
    assert (there.messages, there.usage, there.prefix) == (here.messages, here.usage, here.prefix)
    assert (there.id, there.metadata, there.created_at) == (here.id, here.metadata, here.created_at)


async def test_each_step_is_written_before_the_next(autojump_clock: object) -> None:
    """The question before it is sent, an answer before its tools start, a result before anybody is told."""
    store = MemoryStore()
    seen: list[list[str]] = []

    @tool
    async def look() -> str:
        """Look into the store."""
        seen.append([record.kind for record in await store.load("s")])
        return "seen"

    async def ask(request: Any) -> None:
        seen.append([record.kind for record in await store.load("s")])

    class Look:
        async def after_tool_execution(self, state: RunState) -> None:
            await ask(state)

    provider = ScriptedProvider([[tool_call("look")], "done"])
    async with open_agent(
        provider=provider, tools=[look], middleware=[Look()], session_store=store, session_id="s"
    ) as agent:
        await agent.chat("go")
    assert seen == [["snapshot", "message"], ["snapshot", "message", "result"]]
    assert [record.kind for record in await store.load("s")] == [
        *("snapshot", "message", "result", "answered", "message", "run")
    ]


async def test_wherever_the_log_ends_an_agent_goes_on(autojump_clock: object) -> None:
    """Each beginning of the log is a valid conversation; a call without a result says so, and no call runs again."""
    store = MemoryStore()
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        await agent.chat("go")
        await same(agent, store)
    records = await store.load("s")
    assert len(records) == 11
    for end in range(1, len(records) + 1):
        cut = MemoryStore()
        await cut.append("s", records[:end])
        ran: list[int] = []

        @tool(name="work")
        async def again(n: int, ran: list[int] = ran) -> str:
            """Work."""
            ran.append(n)
            return ""

        provider = ScriptedProvider(["fine"])
        async with open_agent(provider=provider, tools=[work], session_store=cut, session_id="s") as agent:
            before = agent.messages
            outcomes = {result.tool_use_id: result for message in before for result in message.tool_results}
            written = {r.data["result"]["tool_use_id"] for r in records[:end] if r.kind == "result"}
            assert {id_ for id_, result in outcomes.items() if result.outcome != "cancelled"} == written
            lost = [result for result in outcomes.values() if result.outcome == "cancelled"]
            assert {result.text for result in lost} <= {"cancelled: agent restarted"}
            if before:
                check_history(before, [work])
            assert (await agent.chat("and?")).text == "fine"
            assert agent.messages[: len(before)] == before
            await same(agent, cut)
        assert not ran


class Edit:
    """Takes an earlier message out, once in a while."""

    async def before_completion(self, state: RunState) -> None:
        if len(state.messages) > 4 and state.messages[-1].text.endswith("2"):
            state.messages = [state.messages[0], *state.messages[-1:]]

    async def before_tool_call(self, _: RunState, call: ToolUse) -> BlockCall | None:
        return BlockCall("no") if call.input == {"n": 3} else None


class Broken(MemoryStore):
    """Refuses some of its writes."""

    def __init__(self, refused: set[int]) -> None:
        super().__init__()
        self.writes = 0
        self.refused = refused

    def _count(self) -> None:
        self.writes += 1
        if self.writes in self.refused:
            raise StoreError("not now")

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        self._count()
        await super().append(session_id, records)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        self._count()
        await super().rewrite(session_id, records)


async def take(agent: Agent, step: str, prompt: str) -> None:
    """Take a step, whatever comes of it."""
    with contextlib.suppress(StoreError, RequestCancelled, ProviderError, AgentIdle):
        if step == "reset":
            await agent.reset()
        elif step == "cancel":
            with trio.move_on_after(2):
                await agent.chat(prompt)
        else:
            pending = await agent.send_message(prompt)
            if step == "steer":
                await trio.sleep(1)
                await agent.steer("REMARK")
            await pending.result()


@given(
    steps=st.lists(st.sampled_from(["chat", "tools", "fail", "cancel", "reset", "steer"]), min_size=1, max_size=8),
    refused=st.sets(st.integers(1, 30), max_size=4),
    on_cancel=st.sampled_from(["keep", "rollback"]),
    small=st.booleans(),
)
def test_the_log_says_what_the_agent_says(steps: list[str], refused: set[int], on_cancel: Any, *, small: bool) -> None:
    """After any steps, with compactions, edits and writes that fail: it is so, or `unsaved` says that it is not."""
    replies: dict[str, list[Script]] = {
        "chat": ["words " * 40],
        "tools": [*WORK[:2], "done"],
        "fail": [error("down")],
        "cancel": [[text("half "), tool_call("work", {"n": 9}), delay(1)]],
        "steer": [[tool_call("work", {"n": 5})], "ok"],
        "reset": [],
    }

    async def main() -> None:
        store = Broken(refused)
        # Whatever is left of a script that ended early is not what comes next.
        left: list[Any] = []
        provider = ScriptedProvider([lambda request: left.pop(0) if left else "fine"] * 500)
        async with open_agent(
            provider=provider,
            tools=[work],
            session_store=store,
            session_id="s",
            on_cancel=on_cancel,
            middleware=[Edit()],
            context_tokens=700 if small else 100_000,
            compaction=Compaction(fallback="truncate") if small else True,
        ) as agent:
            for number, step in enumerate(steps):
                left[:] = replies[step]
                await take(agent, step, f"{step} {number}")
                await agent.wait_idle()
                if agent.messages:
                    check_history(agent.messages, [work])
                if not agent.health().unsaved:
                    await same(agent, store)
            left.clear()
            store.refused = set()
            await agent.chat("the end")
            assert not agent.health().unsaved
            await same(agent, store)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_records_that_cannot_be_read(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """The start fails, and says what to do; nothing is changed. A kind that is not known is left out."""
    store = MemoryStore()
    for bad in (Record(1, "message", {"message": {}}), Record(1, "snapshot", {"session": 3})):
        await store.rewrite("s", [])
        await store.append("s", [bad])
        with pytest.raises(StoreError, match="another session_id"):
            async with open_agent(provider="demo", session_store=store, session_id="s"):
                pass
        assert await store.load("s") == [bad]
    await store.rewrite("s", [])
    async with open_agent(provider=ScriptedProvider(["a"]), session_store=store, session_id="s") as agent:
        await agent.chat("go")
        last = (await store.load("s"))[-1].seq
    await store.append("s", [Record(last + 1, "news", {"what": "of a later version"})])
    assert (await read_back(store)).messages == agent.messages
    assert "not known" in caplog.text


async def test_what_is_loaded_is_what_was_given_where_nothing_was_stored() -> None:
    store = MemoryStore()
    given = [Message.user("before"), Message.assistant("yes")]
    async with open_agent(
        provider=ScriptedProvider(["a"]), messages=given, session_store=store, session_id="s"
    ) as agent:
        assert list(agent.messages) == given
        await agent.chat("go")
        await same(agent, store)
    async with open_agent(provider="demo", messages=given, session_store=store, session_id="s") as again:
        assert again.messages == agent.messages
