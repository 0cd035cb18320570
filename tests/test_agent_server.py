"""What Alloy's agent server does, line by line: the ids are those of the list of behaviours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from alloy_trio import (
    Agent,
    AgentBusy,
    AgentClosed,
    AgentConfig,
    Budget,
    Halted,
    InvalidOption,
    Message,
    Price,
    ProviderError,
    QueueFull,
    RequestCancelled,
    RunTimeout,
    Session,
    Text,
    UnknownRequest,
    open_agent,
    run,
    tool,
)
from alloy_trio.events import Custom, Envelope, RunStart, TextDelta
from alloy_trio.pubsub import PubSub, Subscription
from alloy_trio.sessions import MemoryStore
from alloy_trio.supervision import ChildSpec, open_supervisor
from alloy_trio.teams import delegate
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio import Result
    from alloy_trio.sessions import Record
    from alloy_trio.testing._script import Script

LATER: Script = [delay(1), text("later")]


@tool
async def look() -> str:
    """Look."""
    return "nothing"


async def take(responses: Subscription, count: int = 1) -> list[Result]:
    """Receive results; there must be no more of them."""
    results = [await responses.receive() for _ in range(count)]
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.WouldBlock):
        responses.receive_nowait()
    return results


async def test_ag_01_starts_idle_and_is_found_by_its_name() -> None:
    async with open_agent(provider=ScriptedProvider([])) as agent:
        assert (agent.health().status, agent.messages) == ("idle", ())
    spec = Agent.child_spec(name="reader", provider=ScriptedProvider([]))
    async with open_supervisor([spec]) as supervisor:
        assert supervisor["reader"].name == "reader"


async def test_ag_02_chat_returns_the_result_and_history_and_usage_grow() -> None:
    async with open_agent(provider=ScriptedProvider(["a", "b"])) as agent:
        first = await agent.chat("one")
        assert (first.text, first.turns, len(agent.messages), agent.usage.input_tokens) == ("a", 1, 2, 10)
        second = await agent.chat(Message.user("two"))
        assert (second.text, len(agent.messages), agent.usage.input_tokens) == ("b", 4, 20)
        assert second.messages == agent.messages


async def test_ag_03_a_deadline_of_the_caller_or_of_the_run(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, LATER]), timeout=0.5) as agent:
        with assert_no_orphans(), trio.move_on_after(0) as scope:
            await agent.chat("at once")
        assert scope.cancelled_caught
        with pytest.raises(RunTimeout) as caught:
            await agent.chat("soon")
        assert trio.current_time() == pytest.approx(0.5)
        assert caught.value.result is not None
        assert caught.value.result.status == agent.health().last_status == "timed_out"


async def test_ag_04_stream_chat_delivers_deltas_and_the_result() -> None:
    async with open_agent(provider=ScriptedProvider(["abc"])) as agent:
        async with agent.stream_chat("go") as events:
            deltas = [event.text async for event in events if isinstance(event, TextDelta)]
        assert (deltas, events.result.text, len(agent.messages)) == (["a", "b", "c"], "abc", 2)
        assert events.result.request_id


async def test_strm_04_streaming_one_request_does_not_make_the_next_stream() -> None:
    seen: list[bool] = []

    class Note:
        async def before_completion(self, state: Any) -> None:
            seen.append(state._run.streaming)

    async with open_agent(provider=ScriptedProvider(["a", "b"]), middleware=[Note()]) as agent:
        async with agent.stream_chat("one") as events:
            async for _ in events:
                pass
        await agent.chat("two")
    assert seen == [True, False]


async def test_ag_05_send_message_gives_an_id_at_once(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, "b"])) as agent:
        pending = await agent.send_message("one")
        assert pending.request_id
        assert not pending.is_done
        await agent.wait_idle()
        mine = await agent.send_message("two", request_id="mine")
        assert (mine.request_id, (await mine.result()).request_id) == ("mine", "mine")


async def test_ag_06_a_pubsub_is_not_needed() -> None:
    async with open_agent(provider=ScriptedProvider(["a"])) as agent:
        assert (await (await agent.send_message("one")).result()).text == "a"


async def test_ag_07_busy_without_a_queue(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, "b"])) as agent:
        pending = await agent.send_message("one")
        with pytest.raises(AgentBusy, match="max_pending=0"):
            await agent.send_message("two")
        await pending.result()
        assert (await (await agent.send_message("three")).result()).text == "b"


async def test_ag_08_two_wait_in_order_and_the_next_is_refused(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, "b", "c"]), max_pending=2) as agent:
        pending = [await agent.send_message(str(number)) for number in range(3)]
        assert (agent.health().pending_count, agent.health().max_pending) == (2, 2)
        with pytest.raises(QueueFull, match="2 requests wait"):
            await agent.send_message("4")
        assert [(await each.result()).text for each in pending] == ["later", "b", "c"]


async def test_ag_09_the_published_result_has_the_id_and_all_fields() -> None:
    pubsub = PubSub()
    async with open_agent(provider=ScriptedProvider(["a"]), pubsub=pubsub, session_id="s") as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            pending = await agent.send_message("one")
            result = await pending.result()
            assert await take(responses) == [result]
    assert (result.request_id, result.text, result.turns) == (pending.request_id, "a", 1)


async def test_ag_10_chat_and_streams_wait_their_turn(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, "b", "c"])) as agent:
        await agent.send_message("one")
        assert (await agent.chat("two")).text == "b"
        async with agent.stream_chat("three") as events:
            async for _ in events:
                pass
        assert len(agent.messages) == 6


async def test_ag_11_reset_and_set_model_are_refused_while_busy(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER])) as agent:
        pending = await agent.send_message("one")
        with pytest.raises(AgentBusy, match="wait_idle"):
            await agent.reset()
        with pytest.raises(AgentBusy, match="wait_idle"):
            await agent.set_model(ScriptedProvider([]))
        assert (await pending.result()).text == "later"


async def test_ag_12_health_answers_at_once_during_a_run(autojump_clock: trio.testing.MockClock) -> None:
    async with open_agent(provider=ScriptedProvider(["before", LATER])) as agent:
        await agent.chat("zero")
        pending = await agent.send_message("one")
        await trio.testing.wait_all_tasks_blocked()
        health = agent.health()
        assert (health.status, health.busy, health.request_id) == ("running", True, pending.request_id)
        assert (health.message_count, health.last_status) == (2, "completed")
        assert (len(agent.messages), len(agent.export_session().messages)) == (2, 2)
        assert trio.current_time() == 0


async def test_ag_13_a_queued_request_is_cancelled(autojump_clock: object) -> None:
    pubsub = PubSub()
    provider = ScriptedProvider([LATER])
    async with open_agent(provider=provider, pubsub=pubsub, session_id="s", max_pending=1) as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            first, second = await agent.send_message("one"), await agent.send_message("two")
            assert await agent.cancel_request(second.request_id)
            (cancelled,) = await take(responses)
            assert (cancelled.status, cancelled.metadata["phase"]) == ("cancelled", "queued")
            assert isinstance(cancelled.error, RequestCancelled)
            assert (await first.result()).text == "later"
    assert len(provider.requests) == 1


async def test_ag_14_the_running_one_is_cancelled_and_the_next_starts(autojump_clock: object) -> None:
    pubsub = PubSub()
    provider = ScriptedProvider([LATER, "b"])
    async with open_agent(provider=provider, pubsub=pubsub, session_id="s", max_pending=1) as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            first, second = await agent.send_message("one"), await agent.send_message("two")
            await trio.testing.wait_all_tasks_blocked()
            assert await first.cancel()
            with pytest.raises(RequestCancelled):
                await first.result()
            assert (await second.result()).text == "b"
            results = await take(responses, 2)
    assert [result.status for result in results] == ["cancelled", "completed"]
    assert results[0].metadata["phase"] == "running"


async def test_ag_15_an_unknown_id() -> None:
    async with open_agent(provider=ScriptedProvider(["a"])) as agent:
        with pytest.raises(UnknownRequest, match="'nobody'"):
            await agent.cancel_request("nobody")
        pending = await agent.send_message("one")
        await pending.result()
        with pytest.raises(UnknownRequest):  # over, and forgotten
            await agent.cancel_request(pending.request_id)
        assert not await pending.cancel()


class Nonsense:
    """A provider that returns what is no response."""

    name = "nonsense"

    async def complete(self, _: object) -> Any:
        return {"text": "hello"}


@pytest.mark.parametrize("provider", [ScriptedProvider([error("down"), "fine"]), Nonsense()], ids=["fails", "nonsense"])
async def test_ag_16_a_failing_run_is_published_and_the_agent_lives(
    provider: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pubsub = PubSub()
    async with open_agent(provider=provider, pubsub=pubsub, session_id="s") as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            pending = await agent.send_message("one")
            with pytest.raises(Exception, match=r"down|Response"):
                await pending.result()
            (failed,) = await take(responses)
        assert failed.status == "error"
        assert "failed" in caplog.text
        await agent.set_model(ScriptedProvider(["fine"]))
        assert (await agent.chat("two")).text == "fine"


async def test_ag_17_messages_and_chats_share_one_history() -> None:
    async with open_agent(provider=ScriptedProvider(["a", "b"])) as agent:
        await (await agent.send_message("one")).result()
        result = await agent.chat("two")
    assert [message.text for message in result.messages] == ["one", "a", "two", "b"]


async def test_ag_18_reset_empties_the_history_and_keeps_the_rest() -> None:
    async with open_agent(provider=ScriptedProvider(["a", "b"]), system_prompt="Be brief", session_id="s") as agent:
        await agent.chat("one")
        await agent.reset()
        assert (agent.messages, agent.health().status, agent.session_id) == ((), "idle", "s")
        assert agent.usage.input_tokens == 0
        await agent.chat("two")
        assert len(agent.messages) == 2


async def test_ag_18_a_reset_that_takes_its_time_keeps_others_out(autojump_clock: object) -> None:
    """A run that comes meanwhile begins behind it; another change is refused."""

    class Slow(MemoryStore):
        async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
            await trio.sleep(1)
            await super().rewrite(session_id, records)

    store = Slow()
    async with open_agent(provider=ScriptedProvider(["a", "b"]), session_store=store, session_id="s") as agent:
        await agent.chat("one")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.reset)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(AgentBusy):
                await agent.reset()
            assert (await agent.chat("two")).text == "b"
        assert [message.text for message in agent.messages] == ["two", "b"]
        async with open_agent(provider="demo", session_store=store, session_id="s") as again:
            assert again.messages == agent.messages


async def test_ag_19_set_model_keeps_all_but_the_model() -> None:
    first, second = ScriptedProvider(["a"]), ScriptedProvider(["b"], model="other")
    async with open_agent(provider=first, tools=[look], system_prompt="Be brief") as agent:
        await agent.chat("one")
        await agent.set_model(second)
        assert (await agent.chat("two")).text == "b"
        assert (len(agent.messages), agent.usage.input_tokens, list(agent.tools)) == (4, 20, ["look"])
        await agent.set_model("demo")
        assert agent.config.options["provider"] == "demo"
    assert second.requests[0].system_prompt == "Be brief"
    with pytest.raises(InvalidOption):
        await agent.set_model("no such vendor")


async def test_ag_20_set_model_derives_the_window_anew_unless_it_was_given() -> None:
    windows: list[int] = []

    class Note:
        async def before_completion(self, state: Any) -> None:
            windows.append(state.context_tokens)

    overrides: dict[str, Any] = {"small": 1000, "large": 5000}
    variants: list[dict[str, Any]] = [{}, {"context_tokens": 700}]
    for given in variants:
        async with open_agent(
            provider=ScriptedProvider(["a"], model="small"),
            middleware=[Note()],
            model_metadata_overrides=overrides,
            **given,
        ) as agent:
            await agent.chat("one")
            await agent.set_model(ScriptedProvider(["b"], model="large"))
            await agent.chat("two")
    assert windows == [1000, 5000, 700, 700]


async def test_ag_21_health_has_it_all(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider(["a"]), max_pending=3) as agent:
        await trio.sleep(2)
        health = agent.health()
        assert (health.status, health.last_status, health.turns, health.message_count) == ("idle", None, 0, 0)
        assert (health.uptime, health.busy, health.pending_count, health.max_pending) == (2.0, False, 0, 3)
        assert (health.pending_approvals, health.abandoned, health.unsaved) == (0, 0, False)
    assert agent.health().status == "closed"


async def test_ag_22_idle_again_and_the_last_status_stands_apart() -> None:
    async with open_agent(provider=ScriptedProvider(["a", [tool_call("look")]]), tools=[look], max_turns=1) as agent:
        await agent.chat("one")
        assert (agent.health().status, agent.health().last_status) == ("idle", "completed")
        await (await agent.send_message("two")).result()
        assert (agent.health().status, agent.health().last_status) == ("idle", "max_turns")


@pytest.mark.parametrize("is_async", [False, True])
async def test_ag_23_stop_calls_on_shutdown_with_all_messages(*, is_async: bool) -> None:
    got: list[Session] = []

    async def later(session: Session) -> None:
        await trio.lowlevel.checkpoint()
        got.append(session)

    async with open_agent(provider=ScriptedProvider(["a"]), on_shutdown=later if is_async else got.append) as agent:
        await agent.chat("one")
        await agent.stop()
        assert [len(session.messages) for session in got] == [2]
        await agent.stop()
    assert len(got) == 1
    async with open_agent(provider=ScriptedProvider([])) as without:
        await without.stop()


async def test_ag_24_on_shutdown_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Session) -> None:
        raise ValueError("no room")

    async with open_agent(provider=ScriptedProvider([]), on_shutdown=fail):
        pass
    assert "no room" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(("grace", "status"), [(0.5, "cancelled"), (5, "completed")])
async def test_ag_25_stop_during_a_run(grace: float, status: str, autojump_clock: object) -> None:
    """It gets its grace, and is cancelled then."""
    with assert_no_orphans():
        async with open_agent(provider=ScriptedProvider([LATER])) as agent:
            pending = await agent.send_message("one")
            await trio.testing.wait_all_tasks_blocked()
            await agent.stop(grace)
            assert pending.is_done
            assert agent.health().last_status == status


async def test_ag_26_the_parent_s_end_goes_through_on_shutdown(autojump_clock: object) -> None:
    got: list[Session] = []
    async with trio.open_nursery() as nursery:
        config = AgentConfig(provider=ScriptedProvider([LATER]), on_shutdown=got.append)
        agent = await nursery.start(Agent.serve, config)
        await agent.send_message("one")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [len(session.messages) for session in got] == [1]


async def test_ag_27_a_message_on_a_topic_begins_a_run() -> None:
    pubsub = PubSub()
    provider = ScriptedProvider(["a", error("down"), "c"])
    async with open_agent(provider=provider, pubsub=pubsub, session_id="s", subscribe=["jobs:*"]) as agent:
        with pubsub.subscribe("agent:s:responses") as responses:
            assert pubsub.publish("jobs:1", "one") == 1
            assert (await take(responses))[0].text == "a"
            pubsub.publish("jobs:2", Message.user("two"))
            assert (await take(responses))[0].status == "error"
            pubsub.publish("jobs:1", "three")
            assert (await take(responses))[0].text == "c"
        assert len(agent.messages) == 5


async def test_ag_28_during_a_run_it_takes_its_place_or_is_refused_aloud(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    pubsub = PubSub()
    async with open_agent(
        provider=ScriptedProvider([LATER, "b"]), pubsub=pubsub, session_id="s", subscribe=["jobs"], max_pending=1
    ) as agent:
        with pubsub.subscribe("agent:s:responses") as responses, pubsub.subscribe("agent:s:events") as events:
            for message in ("one", "two", "three", 4):
                pubsub.publish("jobs", message)
                await trio.testing.wait_all_tasks_blocked()
            assert [result.text for result in await take(responses, 2)] == ["later", "b"]
            told: list[Envelope] = []
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    told += events.receive_nowait()
        assert len(agent.messages) == 4
    refused = [each.event.payload for each in told if isinstance(each.event, Custom)]
    assert [each["message"] for each in refused] == ["three", "4"]
    assert caplog.text.count("did not take a message") == 2


async def test_ag_29_subscribers_get_their_own_topic_only() -> None:
    pubsub = PubSub()
    async with (
        open_agent(provider=ScriptedProvider(["a"]), pubsub=pubsub, session_id="one", subscribe=["to:one"]) as one,
        open_agent(provider=ScriptedProvider([]), pubsub=pubsub, session_id="two", subscribe=["to:two"]) as two,
    ):
        with pubsub.subscribe("agent:one:responses") as responses:
            pubsub.publish("to:one", "hello")
            await take(responses)
        assert (len(one.messages), len(two.messages)) == (2, 0)


async def test_ses_03_the_id_is_the_context_s_or_a_stable_one() -> None:
    pubsub = PubSub()
    async with open_agent(provider=ScriptedProvider(["a"]), context={"session_id": "mine"}) as agent:
        assert agent.export_session().id == agent.session_id == "mine"
    async with open_agent(provider=ScriptedProvider(["a"]), pubsub=pubsub) as agent:
        with pubsub.subscribe(f"agent:{agent.session_id}:responses") as responses:
            before = agent.export_session().id
            await (await agent.send_message("one")).result()
            await take(responses)
        assert agent.export_session().id == before


async def test_ses_04_the_export_is_what_the_agent_says() -> None:
    async with open_agent(provider=ScriptedProvider(["a"])) as agent:
        await agent.chat("one")
        session = agent.export_session()
        assert (session.messages, session.usage) == (agent.messages, agent.usage)
        assert agent.health().status == "idle"
        assert Session.from_json(session.to_json()) == session
        session.metadata["mine"] = True
        assert "mine" not in agent.export_session().metadata


async def test_res_08_results_have_the_id_of_their_request() -> None:
    provider = ScriptedProvider(["a", "b"])
    assert (await run("hi", provider=provider)).request_id is None
    async with open_agent(provider=provider) as agent:
        assert (await agent.chat("hi", request_id="mine")).request_id == "mine"


@pytest.mark.parametrize(
    ("context", "begins"),
    [({"request_id": "r", "correlation_id": "c"}, "r"), ({"correlation_id": "c"}, "c"), ({}, "s-")],
)
async def test_ev_02_the_correlation_id_of_an_agent_s_run(context: dict[str, str], begins: str) -> None:
    seen: list[Envelope] = []
    async with open_agent(
        provider=ScriptedProvider(["a", "b"]), context=context, session_id="s", on_event=seen.append
    ) as agent:
        await agent.chat("one")
        await agent.chat("two", request_id="mine")
    starts = [each.correlation_id for each in seen if isinstance(each.event, RunStart)]
    assert starts[0].startswith(begins)
    assert starts[1] == (begins if context else "mine")


async def test_mw_15_a_session_start_that_halts_keeps_the_agent_from_starting() -> None:
    class Closed:
        async def session_start(self, _: object) -> None:
            raise Halted("out of hours")

    with pytest.raises(AgentClosed, match="out of hours"):
        async with open_agent(provider=ScriptedProvider([]), middleware=[Closed()]):
            pytest.fail("it has started")


async def test_mw_16_what_session_start_changes_is_what_the_agent_uses() -> None:
    class Set:
        async def session_start(self, state: Any) -> None:
            state.context.update(session_id="given", subscribe=["jobs"], tenant=7)

    tenants: list[int] = []

    class Note:
        async def before_completion(self, state: Any) -> None:
            tenants.append(state.context["tenant"])

    pubsub = PubSub()
    async with open_agent(provider=ScriptedProvider(["a"]), middleware=[Set(), Note()], pubsub=pubsub) as agent:
        assert agent.session_id == "given"
        with pubsub.subscribe("agent:given:responses") as responses:
            pubsub.publish("jobs", "hello")
            await take(responses)
    assert tenants == [7]


@pytest.mark.parametrize("halts", [False, True])
async def test_mw_20_what_session_end_changes_is_what_on_shutdown_gets(*, halts: bool) -> None:
    class Sign:
        async def session_end(self, state: Any) -> None:
            state.messages = [*state.messages, Message.user("(stopped)")]
            if halts:
                raise Halted("never mind")

    got: list[Session] = []
    async with open_agent(provider=ScriptedProvider(["a"]), middleware=[Sign()], on_shutdown=got.append) as agent:
        await agent.chat("one")
    assert [len(session.messages) for session in got] == [2 if halts else 3]


async def test_use_07_a_budget_that_is_spent_stops_the_next_request() -> None:
    """`max_budget_cents` is for all runs of an agent together."""
    provider = ScriptedProvider(["a", "b"], price=Price("1000", "1000"))
    async with open_agent(provider=provider, max_budget_cents=4, max_output_tokens=10) as agent:
        assert (await agent.chat("one")).status == "completed"
        second = await agent.chat("two")
        assert (second.status, second.turns, len(provider.requests)) == ("budget_exceeded", 0, 1)


async def test_use_07_every_budget_around_the_caller_and_around_the_agent_pays() -> None:
    provider = ScriptedProvider(["a", "b", "c"], price=Price("1", "1"))
    with Budget("1") as of_agent:
        async with open_agent(provider=provider) as agent:
            with Budget("1") as of_caller:
                await agent.chat("one")
                spent = of_agent.spent
                assert of_caller.spent == spent > 0
                await (await agent.send_message("two")).result()
                assert (of_caller.spent, of_agent.spent) == (spent, 2 * spent)
            given = Budget("1")
            await (await agent.send_message("three", budget=given)).result()
            assert (given.spent, of_agent.spent) == (spent, 3 * spent)


async def test_exe_16_a_failed_sub_agent_is_an_error_result() -> None:
    async with open_agent(name="sub", provider=ScriptedProvider([error("down")])) as sub:
        lead = ScriptedProvider([[tool_call("ask_sub", {"task": "x"})], "alone, then"])
        result = await run("go", provider=lead, tools=[delegate(sub)])
    assert (result.text, result.tool_calls[0].outcome) == ("alone, then", "error")


# What cannot be


@pytest.mark.parametrize("prompt", ["", " \n", 7, None, Message.assistant("hi"), Message("user", ())])
async def test_a_message_of_the_wrong_type(prompt: Any) -> None:
    """Each door says so, and the agent lives."""
    async with open_agent(provider=ScriptedProvider(["fine"])) as agent:
        with pytest.raises(InvalidOption, match="prompt"):
            await agent.chat(prompt)
        with pytest.raises(InvalidOption, match="prompt"):
            await agent.send_message(prompt)
        with pytest.raises(InvalidOption, match="prompt"):
            agent.stream_chat(prompt)
        assert (await agent.chat("go")).text == "fine"


async def test_a_request_id_that_is_in_use(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER, "b"]), max_pending=1) as agent:
        first = await agent.send_message("one", request_id="mine")
        with pytest.raises(InvalidOption, match="'mine' is in use"):
            await agent.send_message("two", request_id="mine")
        with pytest.raises(InvalidOption, match="'mine' is in use"):
            await agent.chat("two", request_id="mine")
        await first.result()
        assert (await agent.chat("two", request_id="mine")).text == "b"


async def test_a_stopped_agent_says_so() -> None:
    async with open_agent(provider=ScriptedProvider(["a"])) as agent:
        await agent.chat("one")
    for call in (agent.chat, agent.send_message):
        with pytest.raises(AgentClosed, match="stopped"):
            await call("two")
    with pytest.raises(AgentClosed):
        async with agent.stream_chat("two"):
            pass
    assert (len(agent.messages), agent.health().status) == (2, "closed")


async def test_what_waits_is_refused_by_a_stop(autojump_clock: object) -> None:
    async with open_agent(provider=ScriptedProvider([LATER]), max_pending=1) as agent:
        first, second = await agent.send_message("one"), await agent.send_message("two")
        await agent.stop()
        assert (await first.result()).text == "later"
        with pytest.raises(AgentClosed, match="before the turn"):
            await second.result()


async def test_nobody_waits_for_itself(autojump_clock: object) -> None:
    """A tool that calls its own agent, also through another one, and a chat in the body of one's own stream: at once, not never."""
    refused: list[str] = []
    agents: dict[str, Agent] = {}

    @tool
    async def back(way: str) -> str:
        """Call the agent that this is a tool of."""
        agent = agents["a"]
        waits = {"chat": lambda: agent.chat("x"), "idle": agent.wait_idle, "stop": agent.stop}
        if way == "b":
            return (await agents["b"].chat("ask a")).text
        if way == "message":
            return (await agent.send_message("later")).request_id
        try:
            await waits[way]()
        except AgentBusy as busy:
            refused.append(way)
            return str(busy)
        return "it did not"

    ways = ["chat", "idle", "stop", "b", "message"]
    first = ScriptedProvider([[tool_call("back", {"way": way}) for way in ways], "done", "the message"])
    second = ScriptedProvider([[tool_call("back", {"way": "chat"})], "as I said"])
    async with (
        open_agent(name="a", provider=first, tools=[back], max_pending=1) as agents["a"],
        open_agent(name="b", provider=second, tools=[back]) as agents["b"],
    ):
        result = await agents["a"].chat("go")
        assert result.text == "done"
        assert sorted(refused) == ["chat", "chat", "idle", "stop"]
        await agents["a"].wait_idle()
        first._replies.append("a stream")
        async with agents["a"].stream_chat("go on") as events:
            with pytest.raises(AgentBusy, match="wait for itself"):
                await agents["a"].chat("x")
            async for _ in events:
                pass
        assert first.requests[-1].messages[-1].content == (Text("go on"),)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"name": " "}, "name"),
        ({"session_id": 7}, "session_id"),
        ({"max_pending": -1}, "max_pending"),
        ({"max_pending": True}, "max_pending"),
        ({"pubsub": object()}, "pubsub"),
        ({"subscribe": "jobs", "pubsub": PubSub()}, "subscribe"),
        ({"subscribe": ["jobs"]}, "pubsub"),
        ({"on_shutdown": 3}, "on_shutdown"),
        ({"session_store": object()}, "session_store"),
        ({"on_cancel": "undo"}, "on_cancel"),
        ({"approval_timeout": -1}, "approval_timeout"),
        ({"max_tokens": 3}, "context_tokens"),
        ({"max_turnz": 3}, "max_turns"),
        ({"session": Session(id="a"), "session_id": "b"}, "session_id"),
        ({"provider": None}, "provider"),
    ],
)
def test_opt_06_an_option_that_cannot_be(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidOption, match=word):
        Agent.child_spec(**{"provider": ScriptedProvider([]), **options})


@pytest.mark.parametrize("option", ["name", "session_store", "max_pending", "on_cancel"])
async def test_opt_06_an_agent_s_option_given_to_a_run(option: str) -> None:
    with pytest.raises(InvalidOption, match="open_agent"):
        await run("hi", provider="demo", **{option: None})  # type: ignore[call-overload] # that is the point


@pytest.mark.parametrize("failure", [ValueError("mine"), ExceptionGroup("all", [ValueError("mine")])])
async def test_the_body_s_exception_leaves_as_it_came(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught:
        async with open_agent(provider=ScriptedProvider([])):
            raise failure
    assert caught.value is failure


async def test_reload_is_for_the_next_run(autojump_clock: object) -> None:
    """What is wrong changes nothing."""
    provider = ScriptedProvider([[delay(1), tool_call("look")], "a", "b"])
    async with open_agent(provider=provider, tools=[look], system_prompt="Old") as agent:
        pending = await agent.send_message("one")
        await trio.testing.wait_all_tasks_blocked()
        agent.reload(tools=[], system_prompt="New")
        with pytest.raises(InvalidOption):
            agent.reload(tools=["no tool"])  # type: ignore[list-item] # that is the point
        assert (await pending.result()).tool_calls[0].outcome == "ok"
        await agent.chat("two")
    assert [request.system_prompt for request in provider.requests] == ["Old", "Old", "New"]
    assert [len(request.tools) for request in provider.requests] == [1, 1, 0]


async def test_a_config_is_checked_once_and_shared() -> None:
    config = AgentConfig(provider=ScriptedProvider(["a", "b"]), max_pending=2)
    async with open_agent(config, name="one") as one, open_agent(config, name="two", max_pending=0) as two:
        assert (await one.chat("x")).text == "a"
        assert (await two.chat("x")).text == "b"
        assert (one.name, one.health().max_pending) == ("one", 2)
        assert (two.name, two.health().max_pending) == ("two", 0)
        assert one.session_id != two.session_id
    with pytest.raises(InvalidOption, match="AgentConfig"):
        async with open_agent({"provider": "demo"}):  # type: ignore[call-overload] # that is the point
            pass
    with pytest.raises(InvalidOption, match="AgentConfig"):
        await Agent.serve({"provider": "demo"})  # type: ignore[arg-type] # that is the point


async def test_who_asks_from_another_trio_run_is_refused() -> None:
    """Trio would break down, in both runs; a thread reaches the agent where it lives."""
    async with open_agent(name="here", provider=ScriptedProvider(["a", "b"])) as agent:

        def elsewhere() -> None:
            with pytest.raises(InvalidOption, match=r"here.* lives in another Trio run.*from_thread\.run"):
                trio.run(agent.chat, "x")
            with pytest.raises(InvalidOption, match="another Trio run"):
                trio.run(agent.send_message, "x")
            assert trio.from_thread.run(agent.chat, "x").text == "a"

        await trio.to_thread.run_sync(elsewhere)
        assert (await agent.chat("x")).text == "b"


async def test_a_caller_s_deadline_reaches_the_retries(autojump_clock: trio.testing.MockClock) -> None:
    """A wait that would end behind it is not begun: the error comes at once."""
    failure = ProviderError("slow down", retryable=True, retry_after=60)
    async with open_agent(provider=ScriptedProvider([error(failure)])) as agent:
        with trio.fail_after(10), pytest.raises(ProviderError, match="slow down"):
            await agent.chat("go")
        assert trio.current_time() == 0


async def test_what_takes_too_long_at_the_end_is_cut_short(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """`on_shutdown` and `session_end` have `cancel_grace` seconds together."""

    async def for_ever(_: Session) -> None:
        await trio.sleep_forever()

    async with open_agent(provider=ScriptedProvider([]), on_shutdown=for_ever, cancel_grace=3):
        pass
    assert trio.current_time() == 3
    assert "cut short" in caplog.text


async def test_a_request_that_is_cancelled_behind_a_reset_never_runs(autojump_clock: object) -> None:
    """It was at the head of the queue, and waited for the reset to be written."""

    class Slow(MemoryStore):
        async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
            await trio.sleep(1)
            await super().rewrite(session_id, records)

    provider = ScriptedProvider(["a", "b"])
    async with open_agent(provider=provider, session_store=Slow()) as agent, trio.open_nursery() as nursery:
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()
        pending = await agent.send_message("one")
        await trio.testing.wait_all_tasks_blocked()
        assert await pending.cancel()
        assert trio.current_time() == 0
        assert (await agent.chat("two")).text == "a"
    assert len(provider.requests) == 1


async def test_a_request_behind_a_reset_outlives_a_crash(autojump_clock: object) -> None:
    """It was at the head of the queue when a sibling's crash ended the agent, and is first in its next life."""

    class Slow(MemoryStore):
        async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
            await trio.sleep(1)
            await super().rewrite(session_id, records)

    provider = ScriptedProvider(["a", "b", "c"])
    spec = Agent.child_spec(name="x", provider=provider, session_store=Slow(), max_pending=2, shutdown=0)
    crash = ChildSpec(id="sibling", start=lambda: _crash_at(0.5), restart="transient")
    async with open_supervisor([crash, spec], strategy="one_for_all") as supervisor, trio.open_nursery() as nursery:
        agent: Agent = supervisor["x"]
        nursery.start_soon(agent.reset)
        await trio.testing.wait_all_tasks_blocked()
        pending = [await agent.send_message(text) for text in ("one", "two")]
        assert [(await each.result()).text for each in pending] == ["a", "b"]
    assert [request.messages[-1].text for request in provider.requests] == ["one", "two"]


async def _crash_at(seconds: float) -> None:
    if trio.current_time() < seconds:
        await trio.sleep(seconds)
        raise ValueError("crashed")


async def test_messages_that_came_too_fast_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    pubsub = PubSub()
    async with open_agent(provider=ScriptedProvider(["a"] * 99), pubsub=pubsub, subscribe=["jobs"], max_pending=99):
        for number in range(70):
            pubsub.publish("jobs", str(number))
        await trio.testing.wait_all_tasks_blocked()
    assert "has lost 6 messages" in caplog.text


async def test_an_agent_lives_once_at_a_time() -> None:
    spec = Agent.child_spec(name="x", provider=ScriptedProvider([]))
    async with open_supervisor([spec]), trio.open_nursery() as nursery:
        with pytest.raises(RuntimeError, match="running already"):
            await nursery.start(spec.start)
