"""Teams: an agent as a tool of another, the same question to several, work and conversations handed on."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from rules import check_history

from alloy_trio import (
    Agent,
    AgentBusy,
    AgentClosed,
    AgentCrashed,
    Budget,
    Halted,
    InvalidOption,
    Message,
    Middleware,
    Price,
    ProviderError,
    Result,
    Text,
    Thinking,
    ToolResult,
    Usage,
    open_agent,
    run,
    tool,
)
from alloy_trio.sessions import MemoryStore
from alloy_trio.supervision import ChildSpec, NameTaken, Registry, open_supervisor
from alloy_trio.teams import broadcast, delegate, handoff
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alloy_trio.testing._script import Script


@asynccontextmanager
async def opened(**scripts: list[Script]) -> AsyncIterator[dict[str, Agent]]:
    """Open agents by name, each with its script."""
    async with AsyncExitStack() as stack:
        agents = {}
        for name, script in scripts.items():
            agents[name] = await stack.enter_async_context(open_agent(name=name, provider=ScriptedProvider(script)))
        yield agents


def tool_results(messages: tuple[Message, ...]) -> list[tuple[str, bool]]:
    """Return what the model was told by tools, and whether it was an error."""
    return [
        ("".join(part.text for part in block.content if isinstance(part, Text)), block.is_error)
        for message in messages
        for block in message.content
        if isinstance(block, ToolResult)
    ]


def asks(agent: Agent) -> list[str]:
    return [message.text for message in agent.messages if message.role == "user"]


def lead(*calls: Any, **options: Any) -> Any:
    return {"provider": ScriptedProvider([list(calls), [text("Done.")]]), **options}


# delegate


async def test_tm_01_the_lead_gets_the_answer_and_each_keeps_its_own_history() -> None:
    async with opened(researcher=[[text("42")], [text("43")]]) as agents:
        ask = delegate(agents["researcher"])
        for answer in ("42", "43"):
            result = await run("go", **lead(tool_call("ask_researcher", {"task": "Find it"}), tools=[ask]))
            assert tool_results(result.messages) == [(answer, False)]
            assert len(result.messages) == 4
        assert asks(agents["researcher"]) == ["Find it", "Find it"]


async def test_tm_01_the_named_one_of_several_is_asked_and_an_unknown_name_is_an_error_that_names_the_known() -> None:
    calls = [tool_call("delegate", {"agent": name, "task": "Do it"}) for name in ("coder", "nobody", "writer")]
    async with opened(writer=[[text("written")]], coder=[[text("coded")]]) as agents:
        ask = delegate(agents)
        result = await run("go", **lead(*calls, tools=[ask]))
        assert tool_results(result.messages) == [
            ("coded", False),
            ("there is no agent 'nobody'; those there are: writer, coder", True),
            ("written", False),
        ]
        assert "writer, coder" in ask.input_schema["properties"]["agent"]["description"]


async def test_an_agent_of_a_supervisor_is_asked_by_name() -> None:
    specs = [Agent.child_spec(name=name, provider=ScriptedProvider([[text(name)]])) for name in ("one", "two")]
    async with open_supervisor(specs) as supervisor:
        call = tool_call("delegate", {"agent": "two", "task": "Say it"})
        result = await run("go", **lead(call, tools=[delegate(supervisor)]))
        assert tool_results(result.messages) == [("two", False)]


async def sleeping(*, task_status: trio.TaskStatus[str]) -> None:
    """Be a child that is no agent."""
    task_status.started("no agent")
    await trio.sleep_forever()


async def test_of_other_children_nobody_is_asked() -> None:
    """Neither of a supervisor nor of a registry."""
    registry = Registry()
    specs = [
        Agent.child_spec(name="one", provider=ScriptedProvider([[text("1")], [text("2")]])),
        ChildSpec(id="db", start=sleeping),
    ]
    async with open_supervisor(specs, registry=registry) as supervisor:
        for team in (supervisor, registry):
            assert list(await broadcast(team, "go")) == ["one"]
            calls = [tool_call("delegate", {"agent": name, "task": "x"}) for name in ("db", "nobody")]
            result = await run("go", **lead(*calls, tools=[delegate(team)]))
            assert tool_results(result.messages) == [
                ("'no agent' is no agent", True),
                ("there is no agent 'nobody'; those there are: one", True),
            ]


class _Halt(Middleware):
    async def before_completion(self, state: Any) -> None:
        raise Halted("not today")


@tool
async def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"provider": ScriptedProvider([error("broken")])}, "sub failed: ProviderError: broken"),
        (
            {"provider": ScriptedProvider([[text("Wait"), tool_call("nothing")]]), "max_turns": 1, "tools": [nothing]},
            "sub did not get done (max_turns: after 1 turns). What it said last: Wait",
        ),
        (
            {"provider": ScriptedProvider([[text("x")]]), "middleware": [_Halt()]},
            "sub did not get done (halted: not today). What it said last: (nothing)",
        ),
        ({"provider": ScriptedProvider([delay(60)]), "timeout": 5}, "sub failed: RunTimeout"),
    ],
    ids=["fails", "max_turns", "halted", "timeout"],
)
async def test_a_sub_agent_that_does_not_get_done_is_an_error_for_the_lead(
    options: Any, said: str, autojump_clock: object
) -> None:
    """Which goes on."""
    async with open_agent(name="sub", **options) as sub:
        result = await run("go", **lead(tool_call("ask_sub", {"task": "x"}), tools=[delegate(sub)]))
        [(told, is_error)] = tool_results(result.messages)
        assert told.startswith(said)
        assert is_error
        assert (result.text, result.status) == ("Done.", "completed")


async def test_an_agent_of_a_registry_that_is_just_restarting_is_waited_for(autojump_clock: object) -> None:
    registry, owner = Registry(), object()
    registry.claim("sub", owner)
    async with opened(sub=[[text("here")], [text("again")]]) as agents, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def come_up() -> None:
            await trio.sleep(3)
            registry.put("sub", owner, agents["sub"])

        call = tool_call("delegate", {"agent": "sub", "task": "x"})
        result = await run("go", **lead(call, tools=[delegate(registry)]))
        assert tool_results(result.messages) == [("here", False)]


async def test_a_sub_agent_that_is_gone_is_an_error_for_the_lead() -> None:
    async with open_agent(name="sub", provider=ScriptedProvider([])) as sub:
        pass
    result = await run("go", **lead(tool_call("ask_sub", {"task": "x"}), tools=[delegate(sub)]))
    assert "sub failed: AgentClosed" in tool_results(result.messages)[0][0]


async def test_an_agent_that_would_wait_for_itself_is_told_so() -> None:
    async with AsyncExitStack() as stack:
        team: dict[str, Agent] = {}
        for name, other in (("one", "two"), ("two", "one")):
            script: list[Script] = [[tool_call("delegate", {"agent": other, "task": "You do it"})], [text("Hm.")]]
            provider = ScriptedProvider(script)
            team[name] = await stack.enter_async_context(
                open_agent(name=name, provider=provider, tools=[delegate(team)])
            )
        with trio.fail_after(5):
            await team["one"].chat("go")
        assert "one failed: AgentBusy" in tool_results(team["two"].messages)[0][0]


@pytest.mark.parametrize(
    ("most", "cents", "said"),
    [(50, 4500, "x"), (5000, 3000, "sub did not get done (budget_exceeded: ")],
)
async def test_budgets_around_the_lead_pay_for_the_sub_agent(most: int, cents: int, said: str) -> None:
    """What it costs is a part of what the lead's run costs; where it would get less than it takes to be useful, the lead is told."""
    dollar_a_token = Price("1000000", "1000000")
    script: list[Script] = [[tool_call("ask_sub", {"task": "x"})], [text("ok")]]
    sub_provider = ScriptedProvider([[text("x")]], price=dollar_a_token)
    async with open_agent(name="sub", provider=sub_provider, max_output_tokens=most) as sub:
        with Budget("1000") as budget:
            provider = ScriptedProvider(script, price=dollar_a_token)
            result = await run("go", provider=provider, tools=[delegate(sub)], max_output_tokens=10)
        told = tool_results(result.messages)[0][0]
        assert told.startswith(said)
        assert ("may cost" in told) == (most == 5000)
        assert result.cost_cents == budget.spent * 100 == cents


async def test_a_cancel_of_the_lead_ends_the_sub_agent_s_run(autojump_clock: object) -> None:
    """Its deadline does, too: there is no time-out in between, however long it works."""
    with assert_no_orphans():
        async with opened(sub=[[delay(1000), text("late")], [delay(1000)]]) as agents:
            ask = delegate(agents["sub"])
            result = await run("go", **lead(tool_call("ask_sub", {"task": "x"}), tools=[ask], tool_timeout=1))
            assert tool_results(result.messages) == [("late", False)]
            with trio.move_on_after(500) as scope:
                await run("go", **lead(tool_call("ask_sub", {"task": "x"}), tools=[ask]))
            assert scope.cancelled_caught
            assert agents["sub"].health().status == "idle"
            assert agents["sub"].health().last_status == "cancelled"


async def test_a_typed_answer_goes_to_the_lead_as_data() -> None:
    script: list[Script] = [[tool_call("final_answer", {"value": [1, 2]})]]
    async with open_agent(name="sub", provider=ScriptedProvider(script), output_type=list[int]) as sub:
        result = await run("go", **lead(tool_call("ask_sub", {"task": "x"}), tools=[delegate(sub)]))
        assert tool_results(result.messages) == [("[1,2]", False)]
        assert result.tool_calls[0].data == [1, 2]


async def test_what_the_tool_is_called() -> None:
    async with open_agent(provider="demo", name="Dr. Müller") as named, open_agent(provider="demo") as nameless:
        assert delegate(named).name == "ask_Dr__M_ller"
        assert [delegate(nameless).name, delegate({}).name] == ["delegate"] * 2
        own = delegate(named, name="doctor", description="Knows it all.")
        assert (own.name, own.description, own.timeout) == ("doctor", "Knows it all.", math.inf)
        assert list(own.input_schema["properties"]) == ["task"]
        assert "Dr. Müller, who knows nothing" in delegate(named).description


@pytest.mark.parametrize("what", [7, "researcher", None, [1]])
async def test_what_is_no_agent_is_refused(what: Any) -> None:
    if what != [1]:
        with pytest.raises(InvalidOption, match="neither an agent nor a mapping"):
            delegate(what)
        with pytest.raises(InvalidOption, match="has to be a list of agents"):
            await broadcast(what, "go")
        with pytest.raises(InvalidOption, match="is no chain"):
            await handoff(what, "go")
    else:
        with pytest.raises(InvalidOption, match="1 is no agent"):
            await broadcast(what, "go")
        with pytest.raises(InvalidOption, match="1 is no agent"):
            await handoff(what, "go")


# broadcast


async def test_tm_02_each_agent_has_its_entry_in_order_a_dead_one_too(autojump_clock: object) -> None:
    async with (
        opened(slow=[[delay(5), text("1")]], broken=[error("no")], last=[[text("3")]]) as agents,
        open_agent(name="dead", provider="demo") as dead,
    ):
        await dead.stop()
        team = {"slow": agents["slow"], "dead": dead, "broken": agents["broken"], "last": agents["last"]}
        for given in (team, team.values()):
            if given is not team:
                for agent in agents.values():
                    agent.reload(middleware=[])
            answers: Any = await broadcast(given, "go")
            assert list(answers) == ["slow", "dead", "broken", "last"]
            assert isinstance(answers["dead"], AgentClosed)
            assert isinstance(answers["broken"], ProviderError)
            if given is team:
                assert (answers["slow"].text, answers["last"].text) == ("1", "3")


class _Bug(Middleware):
    async def before_completion(self, state: Any) -> None:
        raise ValueError("a bug")


async def test_tm_02_a_bug_in_one_is_its_entry() -> None:
    async with open_agent(name="x", provider="demo", middleware=[_Bug()]) as agent:
        answers = await broadcast([agent], "go")
        assert isinstance(answers["x"], ValueError)


async def test_tm_02_no_agents_no_answers() -> None:
    assert await broadcast({}, "go") == await broadcast([], "go") == {}


async def test_a_broadcast_to_a_supervisor_asks_all_its_agents() -> None:
    specs = [Agent.child_spec(name=name, provider=ScriptedProvider([[text(name)]])) for name in ("one", "two")]
    async with open_supervisor(specs) as supervisor:
        answers: Any = await broadcast(supervisor, "go")
        assert {name: answer.text for name, answer in answers.items()} == {"one": "one", "two": "two"}


@pytest.mark.parametrize(("most", "seconds"), [(1, 4), (2, 2), (3, 2), (4, 1), (99, 1), (math.inf, 1)])
async def test_no_more_than_max_concurrency_work_at_a_time(most: float, seconds: float, autojump_clock: object) -> None:
    scripts: dict[str, list[Script]] = {f"a{n}": [[delay(1), text("x")]] for n in range(4)}
    async with opened(**scripts) as agents:
        started = trio.current_time()
        assert list(await broadcast(agents, "go", max_concurrency=most)) == list(agents)
        assert trio.current_time() - started == pytest.approx(seconds)


async def test_by_default_eight_work_at_a_time(autojump_clock: object) -> None:
    scripts: dict[str, list[Script]] = {f"a{n}": [[delay(1), text("x")]] for n in range(9)}
    async with opened(**scripts) as agents:
        started = trio.current_time()
        await broadcast(agents, "go")
        assert trio.current_time() - started == pytest.approx(2)


async def test_a_cancel_ends_all_that_were_asked(autojump_clock: object) -> None:
    with assert_no_orphans():
        async with opened(one=[[delay(9)]], two=[[delay(9)]]) as agents:
            with trio.move_on_after(1) as scope:
                await broadcast(agents, "go")
            assert scope.cancelled_caught
            assert [agent.health().status for agent in agents.values()] == ["idle", "idle"]


@pytest.mark.parametrize("most", [0, -1, 1.5, "2", None])
async def test_a_bound_that_is_none_is_refused(most: Any) -> None:
    with pytest.raises(InvalidOption, match="max_concurrency"):
        await broadcast({}, "go", max_concurrency=most)


async def test_two_agents_of_one_name_need_others() -> None:
    async with open_agent(name="x", provider="demo") as one, open_agent(name="x", provider="demo") as two:
        with pytest.raises(InvalidOption, match="two agents are named 'x'"):
            await broadcast([one, two], "go")
        assert list(await broadcast({"one": one, "two": two}, "go")) == ["one", "two"]


async def test_agents_without_a_name_have_that_of_their_session() -> None:
    async with open_agent(provider="demo", session_id="s1") as agent:
        assert list(await broadcast([agent], "go")) == ["s1"]


# handoff along a chain


async def test_tm_03_the_text_of_one_is_the_input_of_the_next() -> None:
    results: list[Result] = []
    async with opened(one=[[text("from one")]], two=[[text("from two")]], three=[[text("from three")]]) as agents:
        chain: list[Agent | str] = [agents["one"], "two", agents["three"]]
        result = await handoff(chain, "go", team=agents, results=results)
        assert result is not None
        assert result.text == "from three"
        assert [asks(agent) for agent in agents.values()] == [["go"], ["from one"], ["from two"]]
        assert [each.text for each in results] == ["from one", "from two", "from three"]


async def test_tm_03_an_empty_chain_gives_none() -> None:
    assert await handoff([], "go") is None


async def test_tm_03_it_stops_at_the_first_error_and_what_was_done_is_there() -> None:
    results: list[Result] = []
    async with opened(one=[[text("from one")]], two=[error("no")], three=[]) as agents:
        with pytest.raises(ProviderError, match="no") as caught:
            await handoff(agents.values(), "go", results=results)
        assert caught.value.result
        assert caught.value.__notes__ == [f"raised by agent 2 of 3 in a handoff, {agents['two']!r}"]
        assert [each.text for each in results] == ["from one"]
        assert agents["three"].messages == ()


async def test_tm_03_it_stops_at_an_unknown_name_before_anything_is_sent() -> None:
    async with opened(one=[[text("from one")]]) as agents:
        with pytest.raises(InvalidOption, match="there is no agent 'nobody'; those there are: one"):
            await handoff(["one", "nobody"], "go", team=agents)
        with pytest.raises(InvalidOption, match="'one' is a name: say where to look it up, team="):
            await handoff(["one"], "go")
        assert agents["one"].messages == ()


async def test_it_stops_at_an_agent_that_does_not_get_done() -> None:
    script: list[Script] = [[text("Wait"), tool_call("nothing")]]
    async with (
        open_agent(provider=ScriptedProvider(script), max_turns=1, tools=[nothing]) as first,
        open_agent(provider=ScriptedProvider([])) as second,
    ):
        result = await handoff([first, second], "go")
        assert result is not None
        assert (result.status, result.text) == ("max_turns", "Wait")
        assert second.messages == ()


async def test_an_answer_without_text_cannot_be_handed_on() -> None:
    async with opened(one=[[text(" ")]], two=[]) as agents:
        with pytest.raises(InvalidOption, match="the prompt is") as caught:
            await handoff(agents.values(), "go")
        assert "agent 2 of 2" in caught.value.__notes__[0]


# handoff of a conversation


async def test_another_agent_goes_on_with_the_conversation() -> None:
    """With all of it, under its own instructions; what is said from then on is in its own only, until it is handed back."""
    store = MemoryStore()
    triage_provider = ScriptedProvider([[text("Billing knows.")], [text("Back again.")]])
    billing_provider = ScriptedProvider([[text("Refunded.")]])
    async with (
        open_agent(provider=triage_provider, system_prompt="Triage.") as triage,
        open_agent(provider=billing_provider, system_prompt="Billing.", session_store=store, session_id="b") as billing,
    ):
        await triage.chat("My invoice is wrong")
        result = await handoff(triage, "It is the one of May", to=billing)
        assert result.text == "Refunded."
        assert [message.text for message in billing.messages] == [
            "My invoice is wrong",
            "Billing knows.",
            "It is the one of May",
            "Refunded.",
        ]
        assert billing_provider.requests[0].system_prompt == "Billing."
        assert len(triage.messages) == 2
        assert billing.usage == Usage(input_tokens=10, output_tokens=5)

        await handoff(billing, "Thanks", to=triage)
        assert [message.text for message in triage.messages][2:] == [
            "It is the one of May",
            "Refunded.",
            "Thanks",
            "Back again.",
        ]
        assert triage.usage == Usage(input_tokens=20, output_tokens=10)
    async with open_agent(provider="demo", session_store=store, session_id="b") as restored:
        assert [message.text for message in restored.messages][0::2] == ["My invoice is wrong", "It is the one of May"]


async def test_a_conversation_with_tools_and_reasoning_is_valid_for_who_takes_it_over() -> None:
    signed = Thinking("deep", signature="sealed")
    taken = ScriptedProvider([[text("ok")]])
    first = ScriptedProvider([[signed, tool_call("nothing")], [signed, text("Done.")]])
    async with open_agent(provider=first, tools=[nothing]) as one, open_agent(provider=taken, tools=[nothing]) as two:
        await one.chat("go")
        await handoff(one, "go on", to=two)
        check_history(two.messages, [nothing])
        assert len(taken.requests[0].messages) == 5
        assert [one.messages[0].epoch, two.messages[0].epoch] == [0, 0]


async def test_reasoning_that_another_model_has_sealed_is_not_sent_on() -> None:
    """The epoch says so; see `test_switching`."""
    other = ScriptedProvider([[text("ok")]], model="another")
    first: list[Script] = [[Thinking("deep", signature="sealed"), text("1")]]
    async with opened(one=first) as agents, open_agent(provider=other) as two:
        await agents["one"].chat("go")
        await handoff(agents["one"], "go on", to=two)
        assert [agents["one"].messages[0].epoch, two.messages[0].epoch] == [0, 1]


async def test_a_conversation_that_would_be_lost_is_not_replaced() -> None:
    async with opened(one=[[text("1")]], two=[[text("2")], [text("3")]]) as agents:
        await agents["one"].chat("go")
        await agents["two"].chat("something else")
        with pytest.raises(
            InvalidOption, match=r"has a conversation of its own, which would be lost: reset\(\) it first"
        ):
            await handoff(agents["one"], "go on", to=agents["two"])
        assert asks(agents["two"]) == ["something else"]
        await agents["two"].reset()
        await handoff(agents["one"], "go on", to=agents["two"])
        assert asks(agents["two"]) == ["go", "go on"]


async def test_nothing_is_handed_over_to_a_busy_agent_or_with_a_prompt_that_is_none(autojump_clock: object) -> None:
    async with opened(one=[[text("1")]], two=[[delay(5), text("2")]]) as agents:
        await agents["one"].chat("go")
        with pytest.raises(InvalidOption, match="the prompt is"):
            await handoff(agents["one"], " ", to=agents["two"])
        assert agents["two"].messages == ()
        pending = await agents["two"].send_message("work")
        with pytest.raises(AgentBusy, match="a handoff to it has to wait"):
            await handoff(agents["one"], "go on", to=agents["two"])
        assert (await pending.result()).text == "2"


async def test_options_of_the_other_kind_of_handoff_are_refused() -> None:
    async with opened(one=[], two=[]) as agents:
        with pytest.raises(InvalidOption, match="leave one or the other out"):
            await handoff(agents["one"], "go", to=agents["two"], team=agents)  # type: ignore[call-overload]
        with pytest.raises(InvalidOption, match="is no agent"):
            await handoff([agents["one"]], "go", to=agents["two"])  # type: ignore[call-overload]
        with pytest.raises(InvalidOption, match=r"is no chain: .* or say to="):
            await handoff(agents["one"], "go")  # type: ignore[call-overload]


# What holds for all agents under one supervisor


class _Crash(MemoryStore):
    """A store that breaks an agent down, when told to."""

    broken = False

    async def append(self, *args: Any) -> Any:
        if self.broken:
            raise RuntimeError("the store broke")
        return await super().append(*args)


async def test_tm_04_one_agent_dying_leaves_the_others_and_is_restarted() -> None:
    """Differs from the original, where it stays dead. Names are unique, and leaving the supervisor stops all."""
    store = _Crash()
    mortal = Agent.child_spec(
        name="mortal", provider=ScriptedProvider([[text("x")], [text("back")]]), session_store=store
    )
    other = Agent.child_spec(name="other", provider=ScriptedProvider([[text("1")], [text("2")]]))
    async with open_supervisor([mortal, other]) as supervisor:
        store.broken = True
        answers: Any = await broadcast(supervisor, "go")
        assert isinstance(answers["mortal"], AgentCrashed)
        assert answers["other"].text == "1"
        store.broken = False
        with trio.fail_after(5):
            await supervisor.wait_child("mortal")
        answers = await broadcast(supervisor, "again")
        assert [answer.text for answer in answers.values()] == ["back", "2"]
        with pytest.raises(NameTaken):
            await supervisor.start_child(other)
        agents = [supervisor[name] for name in ("mortal", "other")]
    assert [agent.health().status for agent in agents] == ["closed"] * 2
    answers = await broadcast(agents, "go")
    assert [type(answer) for answer in answers.values()] == [AgentClosed] * 2
