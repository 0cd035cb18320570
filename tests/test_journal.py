"""What an agent writes ahead: at each moment enough to go on from, and in the end just what the agent says."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from rules import check_history

from alloy_trio import (
    Agent,
    AgentClosed,
    AgentCrashed,
    AgentIdle,
    BlockCall,
    Budget,
    Compaction,
    Message,
    ProviderError,
    RequestCancelled,
    RunState,
    Session,
    StoreError,
    Thinking,
    ToolContext,
    ToolUse,
    UnknownPrice,
    open_agent,
    tool,
)
from alloy_trio.events import Envelope, ToolEnd
from alloy_trio.providers import Request, Response, StopReason
from alloy_trio.sessions import MemoryStore, Record
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio.testing._script import Script

RESTARTED = "cancelled: agent restarted"
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


class Log(MemoryStore):
    """Says which writes it was asked for, refuses some of them, and keeps each log that it has acknowledged."""

    def __init__(self, refused: set[int] | None = None, failure: Exception | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refused = refused or set()
        self.failure = failure
        self.now: list[Record] = []
        self.states: list[list[Record]] = []

    def _ask(self, what: str, records: Sequence[Record]) -> None:
        self.asked.append(" ".join([what, *(record.kind for record in records)]))
        if len(self.asked) in self.refused:
            raise self.failure or StoreError("not now")

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        self._ask("+", records)
        await super().append(session_id, records)
        # Two that write at once may hear of it in either order; the log has them in that of their numbers.
        self._keep(sorted([*self.now, *records], key=lambda record: record.seq))

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        self._ask("=", records)
        await super().rewrite(session_id, records)
        self._keep([*records])

    def _keep(self, records: list[Record]) -> None:
        self.now = records
        self.states.append(records)

    def written(self) -> list[str]:
        """Return what it was asked to write since this was last called."""
        asked, self.asked = self.asked, []
        return asked


async def read_back(store: MemoryStore) -> Session:
    """Return the conversation as an agent has it that is started again."""
    async with open_agent(provider=ScriptedProvider([]), session_store=store, session_id="s") as agent:
        return agent.export_session()


async def after(records: Sequence[Record]) -> Session:
    """Return the conversation of a log that ends here."""
    store = MemoryStore()
    await store.rewrite("s", records)
    return await read_back(store)


async def same(agent: Agent, store: MemoryStore) -> None:
    """See that the log says what the agent says."""
    there, here = await read_back(store), agent.export_session()
    assert (there.messages, there.usage, there.prefix) == (here.messages, here.usage, here.prefix)
    assert (there.id, there.metadata) == (here.id, here.metadata)
    assert (there.created_at, there.updated_at) == (here.created_at, here.updated_at)


async def test_each_step_is_written_before_the_next(autojump_clock: object) -> None:
    """The question before it is sent, an answer before its tools start, a result before anybody is told."""
    store, seen = Log(), list[str]()

    @tool
    async def look(ctx: ToolContext, seconds: int) -> str:
        """Look into the store."""
        seen.append(f"{ctx.tool_use_id} starts: {kinds()}")
        await trio.sleep(seconds)
        return "seen"

    def kinds() -> str:
        return " ".join(record.kind for record in store.now)

    def ask(_: Request) -> Any:
        seen.append(f"asked: {kinds()}")
        return replies.pop(0)

    def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, ToolEnd):
            seen.append(f"{envelope.event.id} ended: {kinds()}")

    replies: list[Any] = [
        [tool_call("look", {"seconds": 2}, id="a"), tool_call("look", {"seconds": 1}, id="b")],
        "done",
    ]
    async with open_agent(
        provider=ScriptedProvider([ask, ask]), tools=[look], on_event=listen, session_store=store, session_id="s"
    ) as agent:
        await agent.chat("go")
        seen.append(f"returned: {kinds()}")
    assert seen == [
        "asked: snapshot",
        "a starts: snapshot message",
        "b starts: snapshot message",
        "b ended: snapshot message result",
        "a ended: snapshot message result result",
        "asked: snapshot message result result answered",
        "returned: snapshot message result result answered message run",
    ]


async def test_wherever_the_log_ends_an_agent_goes_on(autojump_clock: object) -> None:
    """Each beginning of the log is a valid conversation; a call without a result says so, and no call runs again."""
    store = Log()
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        await agent.chat("go")
        await same(agent, store)
    records = store.now
    assert len(records) == 11
    ran: list[int] = []

    @tool(name="work")
    async def again(n: int) -> str:
        """Work."""
        ran.append(n)
        return ""

    for end in range(1, len(records) + 1):
        cut = MemoryStore()
        await cut.append("s", records[:end])
        provider = ScriptedProvider(["fine"])
        async with open_agent(provider=provider, tools=[again], session_store=cut, session_id="s") as agent:
            before = agent.messages
            outcomes = {result.tool_use_id: result for message in before for result in message.tool_results}
            written = {r.data["result"]["tool_use_id"] for r in records[:end] if r.kind == "result"}
            assert {id_ for id_, result in outcomes.items() if result.outcome != "cancelled"} == written
            lost = [result for result in outcomes.values() if result.outcome == "cancelled"]
            assert {(result.text, result.is_error) for result in lost} <= {(RESTARTED, True)}
            check_history(before, [work])
            assert agent.usage.output_tokens == 5 * sum(message.role == "assistant" for message in before)
            assert (await agent.chat("and?")).text == "fine"
            assert agent.messages[: len(before)] == before
            await same(agent, cut)
    assert not ran


async def test_two_calls_of_one_id_keep_their_results_apart(autojump_clock: object) -> None:
    """Some servers call every call `call_0`. Wherever the log ends, each has its own result, or none."""
    calls = [tool_call("work", {"n": n}, id="call_0") for n in (3, 1, 2)]
    store = Log()
    async with open_agent(
        provider=ScriptedProvider([calls, "done"]), tools=[work], session_store=store, session_id="s"
    ) as agent:
        await agent.chat("go")
        await same(agent, store)
    restored = []
    for records in store.states:
        results = [r.text for message in (await after(records)).messages for r in message.tool_results]
        if results and results not in restored:
            restored.append(results)
    assert restored == [
        [RESTARTED, RESTARTED, RESTARTED],
        [RESTARTED, "did 1", RESTARTED],
        [RESTARTED, "did 1", "did 2"],
        ["did 3", "did 1", "did 2"],
    ]


async def test_a_log_of_an_earlier_version_has_no_places(autojump_clock: object) -> None:
    """Its results are found by their ids."""
    store = Log()
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        await agent.chat("go")
        await same(agent, store)
    old = [Record(r.seq, r.kind, {k: v for k, v in r.data.items() if k != "place"}) for r in store.now]
    assert (await after(old)).messages == agent.messages


async def test_a_run_that_does_not_begin_leaves_nothing(autojump_clock: object) -> None:
    """It was refused before anything was sent: what was asked is neither in the conversation nor in the log."""
    store = Log()
    async with open_agent(provider=ScriptedProvider(["one", "two"]), session_store=store, session_id="s") as agent:
        await agent.chat("first")
        with Budget(cents=1), pytest.raises(UnknownPrice):
            await agent.chat("costly")
        await same(agent, store)
        await agent.chat("second")
        await same(agent, store)
        assert [message.text for message in agent.messages] == ["first", "one", "second", "two"]


async def test_only_what_is_new_is_written(autojump_clock: object) -> None:
    """Growth is appended; what was changed otherwise is written anew, once, with the usage up to then."""
    store, edit = Log(), [False]

    class Edit:
        async def before_completion(self, state: RunState) -> None:
            if edit[0] and len(state.messages) > 3:
                edit[0] = False
                state.messages = [Message.user("edited"), *state.messages[1:]]

    replies: list[Script] = ["a", [tool_call("work", {"n": 1})], [tool_call("work", {"n": 2})], "b", "c", "d"]
    async with open_agent(
        provider=ScriptedProvider(replies), tools=[work], middleware=[Edit()], session_store=store, session_id="s"
    ) as agent:
        await agent.chat("one")
        assert store.written() == ["= snapshot", "+ message run"]
        edit[0] = True
        await agent.chat("two")
        assert store.written() == [
            *(
                "+ message",
                "+ message",
                "+ result",
                "= snapshot",
                "+ message",
                "+ result",
                "+ answered",
                "+ message run",
            )
        ]
        assert agent.messages[0].text == "edited"
        rewritten = next(state for state in store.states if len(state) == 1 and state[0].seq > 1)
        assert (await after(rewritten)).usage.output_tokens == 5 * 2
        await same(agent, store)
        await agent.chat("three")
        assert store.written() == ["+ message", "+ message run"]
        await agent.reset()
        assert store.written() == ["= snapshot"]
        await agent.chat("four")
        assert store.written() == ["+ message", "+ message run"]
        await same(agent, store)


async def test_a_remark_that_joins_a_question_already_written(autojump_clock: object) -> None:
    """The question was written and sent; an interruption before any answer puts a remark behind it, in the same message."""
    store = Log()
    provider = ScriptedProvider([[delay(9)], "fine"])
    async with open_agent(provider=provider, session_store=store, session_id="s") as agent:
        pending = await agent.send_message("question")
        await trio.sleep(1)
        await agent.steer("REMARK", interrupt="turn")
        await pending.result()
        assert [message.text for message in agent.messages] == ["questionREMARK", "fine"]
        assert store.written() == ["= snapshot", "= snapshot", "+ message run"]
        await same(agent, store)


async def test_a_result_that_cannot_be_written(autojump_clock: object) -> None:
    """The run goes on; what follows in its batch waits, and all of it is written before the next request."""
    store = Log({3})
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        assert (await agent.chat("go")).status == "completed"
        assert not agent.health().unsaved
        assert store.written() == [
            *("= snapshot", "+ message", "+ result", "= snapshot", "+ message", "+ result", "+ result"),
            *("+ answered", "+ message run"),
        ]
        await same(agent, store)


@pytest.mark.parametrize("write", range(1, 6))
async def test_a_store_that_breaks(write: int, autojump_clock: object) -> None:
    """What no store should raise breaks the agent down, whichever write it is; what was acknowledged is there for the next."""
    store = Log({write}, RuntimeError("broken"))
    replies: list[Script] = [[tool_call("work", {"n": 1}, id="a")], "done"]
    with pytest.raises(RuntimeError, match="broken"):
        async with open_agent(
            provider=ScriptedProvider(replies), tools=[work], session_store=store, session_id="s"
        ) as agent:
            with pytest.raises(AgentCrashed, match="RuntimeError: broken") as caught:
                await agent.chat("go")
            assert caught.value.result is not None
            assert caught.value.__cause__ is store.failure
            with pytest.raises(AgentClosed):
                await agent.chat("hello?")
    written, store.refused = store.now, set()
    assert len(store.asked) == write
    async with open_agent(
        provider=ScriptedProvider(["fine"]), tools=[work], session_store=store, session_id="s"
    ) as agent:
        results = [result.text for message in agent.messages for result in message.tool_results]
        assert results == {3: [RESTARTED], 4: ["did 1"], 5: ["did 1"]}.get(write, [])
        assert agent.messages == ((await after(written)).messages if written else ())
        await agent.chat("and?")
        await same(agent, store)


async def test_who_leaves_at_once_is_told_the_bare_cause() -> None:
    """The crash and the cancel of the body's end come together, and no group of one comes of it."""
    store = Log({1}, RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        async with open_agent(provider=ScriptedProvider(["a"]), session_store=store) as agent:
            with pytest.raises(AgentCrashed):
                await agent.chat("go")
    store = Log({1}, RuntimeError("broken"))
    with pytest.raises(AgentCrashed) as caught:
        async with open_agent(provider=ScriptedProvider(["a"]), session_store=store) as agent:
            await agent.chat("go")
    assert caught.value.__notes__ == ["The agent had broken down as well: RuntimeError: broken"]


async def test_what_is_changed_from_outside_between_two_runs() -> None:
    """A session of the user's own, in which they have corrected a message that was written."""
    store, mine = Log(), Session(id="s")
    async with open_agent(provider=ScriptedProvider(["a", "b"]), session=mine, session_store=store) as agent:
        await agent.chat("misspeled")
        mine.messages = (Message.user("misspelled"), *mine.messages[1:])
        await agent.chat("go on")
        await same(agent, store)
        assert (await read_back(store)).messages[0].text == "misspelled"


async def test_epochs_metadata_and_the_prefix_outlive_a_restart(autojump_clock: object) -> None:
    """Who goes on with the same model sends earlier reasoning as before, who goes on with another one does not."""
    store = MemoryStore()
    state = {"response": "r1"}
    answer = Message("assistant", Message.user("kept").content, provider_state=state)
    last = Response(message=answer, stop_reason=StopReason.END_TURN)
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        await agent.chat("go")
        other = ScriptedProvider([[Thinking("hm", signature="s"), tool_call("work", {"n": 1})], last], model="other")
        await agent.set_model(other)
        await agent.chat("and on")
        await same(agent, store)
        said = agent.messages
        assert max(message.epoch for message in said) == 1
        assert agent.export_session().metadata == {"provider_state": state}
    for model, epoch in (("other", 1), ("third", 2)):
        provider = ScriptedProvider(["fine"], model=model)
        copied = MemoryStore()
        await copied.rewrite("s", await store.load("s"))
        async with open_agent(provider=provider, tools=[work], session_store=copied, session_id="s") as agent:
            assert agent.messages == said
            await agent.chat("again")
            assert agent.messages[-1].epoch == epoch
            await same(agent, copied)


class Edit:
    """Takes earlier messages out, once in a while."""

    async def before_completion(self, state: RunState) -> None:
        if len(state.messages) > 4 and state.messages[-1].text.endswith("2"):
            state.messages = [state.messages[0], *state.messages[-1:]]

    async def before_tool_call(self, _: RunState, call: ToolUse) -> BlockCall | None:
        return BlockCall("no") if call.input == {"n": 3} else None


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
            if step == "withdraw":
                await trio.sleep(1)
                await pending.cancel()
            elif step in {"steer", "stream", "turn"}:
                await trio.sleep(1)
                interrupt: Any = None if step == "steer" else step
                await agent.steer("REMARK", interrupt=interrupt)
            await pending.result()


REPLIES: dict[str, list[Script]] = {
    "chat": ["words " * 200],
    "tools": [*WORK[:2], "done"],
    "fail": [error("down")],
    "cancel": [[text("half "), tool_call("work", {"n": 9}), delay(1)]],
    "withdraw": [[text("half "), tool_call("work", {"n": 0}), tool_call("work", {"n": 9})]],
    "steer": [[tool_call("work", {"n": 5})], "ok"],
    "stream": [[delay(5), text("never")], "ok"],
    "turn": [[tool_call("work", {"n": 5}), tool_call("work", {"n": 0})], "ok"],
    "reset": [],
}


class Watch:
    """Plays the model and a tool, and notes what the log had as each of them was called."""

    def __init__(self, store: Log) -> None:
        self.store = store
        self.left: list[Any] = []  # to be answered; what is left when a run ends early is not what comes next
        self.asked: list[tuple[list[Record], Request]] = []
        self.started: list[tuple[list[Record], str]] = []

        @tool(name="work")
        async def work(ctx: ToolContext, n: int) -> str:
            """Work."""
            self.started.append((store.now, ctx.tool_use_id))
            await trio.sleep(n)
            return f"did {n} " * 100

        self.work = work

    def reply(self, request: Request) -> Any:
        """Answer."""
        if not request.tools:  # it is to sum up
            return "in short"
        self.asked.append((self.store.now, request))
        return self.left.pop(0) if self.left else "fine"

    async def check(self) -> None:
        """See that the log had all that was sent, each call before it ran, and could be gone on with wherever it ended."""
        for log, request in self.asked:
            assert (await after(log)).messages == request.messages
        for log, call in self.started:
            results = (await after(log)).messages[-1].tool_results
            assert [result.text for result in results if result.tool_use_id == call] == [RESTARTED]
        for log in self.store.states:
            if messages := (await after(log)).messages:
                check_history(messages, [work])
        for seen in (self.asked, self.started, self.store.states):
            seen.clear()


async def live(agent: Agent, store: Log, watch: Watch, steps: Sequence[str]) -> None:
    """Take steps, looking after each; then one more that must go well."""
    for number, step in enumerate(steps):
        watch.left[:] = REPLIES[step]
        await take(agent, step, f"{step} {number}")
        await agent.wait_idle()
        await watch.check()
        if agent.messages:
            check_history(agent.messages, [work])
        if not agent.health().unsaved:
            await same(agent, store)
    watch.left.clear()
    store.refused = set()
    await agent.chat("the end")
    assert not agent.health().unsaved
    await same(agent, store)


@given(
    steps=st.lists(st.sampled_from(sorted(REPLIES)), min_size=1, max_size=8),
    refused=st.sets(st.integers(1, 30), max_size=4),
    on_cancel=st.sampled_from(["keep", "rollback"]),
    small=st.booleans(),
)
def test_the_log_says_what_the_agent_says(steps: list[str], refused: set[int], on_cancel: Any, *, small: bool) -> None:
    """After any steps, with compactions, edits and writes that fail: it is so, or `unsaved` says that it is not."""

    async def main() -> None:
        store = Log(refused)
        watch = Watch(store)
        async with open_agent(
            provider=ScriptedProvider([watch.reply] * 500),
            tools=[watch.work],
            session_store=store,
            session_id="s",
            on_cancel=on_cancel,
            middleware=[Edit()],
            context_tokens=600 if small else 100_000,
            compaction=Compaction(fallback="truncate") if small else True,
        ) as agent:
            await live(agent, store, watch, steps)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_records_that_cannot_be_read(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """The start fails, and says what to do; nothing is changed. A kind that is not known is left out."""
    store = Log()
    async with open_agent(provider=ScriptedProvider(["a"]), session_store=store, session_id="s") as agent:
        await agent.chat("go")
    good = store.now
    for bad in (
        [Record(1, "message", {"message": {}})],
        [Record(1, "snapshot", {"session": 3})],
        [Record(1, "snapshot", {})],
        [*good, Record(9, "result", {"result": None})],
        [*good, Record(9, "answered", {"rest": {"role": "user", "content": []}})],
    ):
        await store.delete("s")
        await store.rewrite("s", bad)
        with pytest.raises(StoreError, match="another session_id"):
            async with open_agent(provider="demo", session_store=store, session_id="s"):
                pass
        assert await store.load("s") == bad
    await store.delete("s")
    await store.rewrite("s", [*good, Record(9, "news", {"what": "of a later version"})])
    assert (await read_back(store)).messages == agent.messages
    assert "not known" in caplog.text


@given(data=st.data())
def test_records_that_are_garbled(data: st.DataObject) -> None:
    """Whatever has become of a log: it is read, or the start fails with `StoreError`."""

    async def main() -> None:
        records = copy.deepcopy(await log_of_work())
        record = data.draw(st.sampled_from(records))
        place: Any = record.data
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                break
            place = place[key]
        if data.draw(st.booleans()):
            del place[key]
        else:
            place[key] = data.draw(st.sampled_from([None, 7, -1.5, "x", [], {}, [None], {"x": 1}, True]))
        with contextlib.suppress(StoreError):
            await after(records)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def log_of_work() -> list[Record]:
    """Return a log that has a record of each kind."""
    store = MemoryStore()
    async with open_agent(provider=ScriptedProvider(WORK), tools=[work], session_store=store, session_id="s") as agent:
        await agent.chat("go")
    return list(await store.load("s"))


async def test_what_is_loaded_is_what_was_given_where_nothing_was_stored() -> None:
    """`messages=` begin a session that the store does not know, and are left out where it does."""
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
