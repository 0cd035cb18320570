"""
Random programs for two agents under a supervisor: asked, cancelled, steered, reloaded, stopped and broken down at any moment.

Each example is a Trio run of its own, in virtual time. `test_agent_checkpoints` does each of these things alone, at every checkpoint.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from scripts import (
    FOR_EVER,
    SECONDS,
    Broken,
    Ears,
    Hands,
    Purse,
    Reply,
    Watched,
    check_messages,
    in_virtual_time,
    scripts,
)
from test_swarm import Fragile

from alloy_trio import Agent, AlloyError, Budget, Pending, Result, Text, ToolUse, open_agent
from alloy_trio.pubsub import PubSub
from alloy_trio.supervision import open_supervisor
from alloy_trio.testing import assert_no_orphans, delay, error

if TYPE_CHECKING:
    from alloy_trio import RunState

EXAMPLES = settings().max_examples  # 100, or more by the profile `deep`
AGENTS = ["a", "b"]
VERBS = {
    "chat": 3,
    "stream": 3,
    "send": 4,
    "cancel": 3,
    "cancel tool": 1,
    "steer": 3,
    "decide": 1,
    "reload": 1,
    "set model": 1,
}
VERBS |= {"reset": 1, "stop": 1, "break": 1, "wait": 1}


@attrs.frozen(kw_only=True)
class Step:
    """What somebody does: when, what, to whom, and when they give up."""

    after: float
    verb: str
    agent: str
    patience: float
    interrupt: Literal["stream", "turn"] | None
    leaves_at: int | None


@attrs.frozen(kw_only=True)
class Plan:
    """How an agent is made."""

    script: list[Reply]
    on_cancel: Literal["keep", "rollback"]
    max_pending: int
    timeout: float | None
    cents: int | None
    asks_person: bool
    approval_timeout: float | None


steps = st.builds(
    Step,
    after=SECONDS,
    verb=st.sampled_from([verb for verb, weight in VERBS.items() for _ in range(weight)]),
    agent=st.sampled_from(AGENTS),
    patience=st.sampled_from([FOR_EVER, FOR_EVER, FOR_EVER, 0.0, 0.5, 2.0]),
    interrupt=st.sampled_from([None, "stream", "turn"]),
    leaves_at=st.sampled_from([None, None, 1, 5]),
)


def one_id(script: list[Reply]) -> list[Reply]:
    """Give all calls the same id, as some servers do."""
    return [
        attrs.evolve(
            each, pieces=tuple(attrs.evolve(p, id="call_0") if isinstance(p, ToolUse) else p for p in each.pieces)
        )
        for each in script
    ]


plans = st.builds(
    Plan,
    script=scripts | scripts.map(one_id),
    on_cancel=st.sampled_from(["keep", "keep", "rollback"]),
    max_pending=st.sampled_from([0, 1, 5]),
    timeout=st.sampled_from([None, None, 2.0]),
    cents=st.sampled_from([None, None, None, 300, 2000]),
    asks_person=st.booleans(),
    approval_timeout=st.sampled_from([None, 1.0]),
)


class Doorkeeper:
    """A middleware that lets a person decide on some tools."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> Any:
        return await state.approval(call) if call.name in {"alone", "wait"} else None


@attrs.define
class World:
    """Two agents, their store, and all that was asked of them."""

    plans: dict[str, Plan]
    store: Fragile = attrs.field(factory=Fragile)
    pubsub: PubSub = attrs.field(factory=PubSub)
    ears: Ears = attrs.field(factory=Ears)
    around: Budget = attrs.field(factory=lambda: Budget(cents=1_000_000))
    hands: dict[str, Hands] = attrs.field(init=False)
    providers: dict[str, Watched] = attrs.field(init=False)
    agents: dict[str, Agent] = attrs.field(factory=dict)
    pending: list[Pending] = attrs.field(factory=list)
    published: list[Result] = attrs.field(factory=list)
    ends: Counter[str] = attrs.field(factory=Counter)
    said: Counter[str] = attrs.field(factory=Counter)  # remarks that were taken
    asked: dict[str, str] = attrs.field(factory=dict)  # whom, by request
    ids: int = 0

    def __attrs_post_init__(self) -> None:
        self.hands = {name: Hands() for name in AGENTS}
        self.providers = {name: Watched(list(plan.script)) for name, plan in self.plans.items()}
        for name, provider in self.providers.items():
            provider.name = name
        for name, other in zip(AGENTS, AGENTS[::-1], strict=True):
            self.hands[name].asks = lambda other=other: self.ask(other)

    async def ask(self, name: str) -> str:
        return (await self.agents[name].chat("why?")).text

    def spec(self, name: str) -> Any:
        plan = self.plans[name]
        return Agent.child_spec(
            name=name,
            session_id=name,
            provider=self.providers[name],
            tools=self.hands[name].tools,
            middleware=[Doorkeeper()] if plan.asks_person else [],
            session_store=self.store,
            pubsub=self.pubsub,
            on_cancel=plan.on_cancel,
            max_pending=plan.max_pending,
            timeout=plan.timeout,
            max_budget_cents=plan.cents,
            approval_timeout=plan.approval_timeout,
            max_output_tokens=40,
            tool_timeout=10,
            compaction=False,
        )

    async def take(self, step: Step) -> None:
        await trio.sleep(step.after)
        with trio.move_on_after(step.patience):
            try:
                await self.do(step, self.agents[step.agent])
            except (AlloyError, Broken) as error:
                self.ends[f"{step.verb}: {type(error).__name__}"] += 1
                self.see(getattr(error, "result", None))
            else:
                self.ends[step.verb] += 1

    async def do(self, step: Step, agent: Agent) -> None:  # noqa: C901, PLR0912 - a table of what can be done
        self.ids += 1
        id_ = f"{self.ids}"
        self.asked[id_] = step.agent
        match step.verb:
            case "chat":
                with self.around:
                    self.see(await agent.chat(f"go {id_}.", request_id=id_))
            case "stream":
                await self.watch(step, agent)
            case "send":
                self.pending.append(await agent.send_message(f"go {id_}.", request_id=id_))
            case "cancel":
                for id_ in list(agent._core.requests)[-1:]:
                    await agent.cancel_request(id_)
            case "cancel tool":
                batch = None if agent._core.current is None else agent._core.current.controls.batch
                for call in (() if batch is None else batch.open_calls)[:1]:
                    await agent.cancel_tool(call)
            case "steer":
                await agent.steer("REMARK", interrupt=step.interrupt)
                self.said[step.agent] += 1
            case "decide":
                self.decide(agent, denies=step.interrupt is not None)
            case "reload":
                agent.reload(system_prompt=f"Be {step.interrupt}.", tools=self.hands[step.agent].tools[:-1])
            case "set model":
                await agent.set_model(self.providers[step.agent])
            case "reset":
                await agent.reset()
            case "stop":
                await agent.stop(0.0 if step.interrupt else 3.0)
            case "break":
                self.store.breaks.add(agent.session_id)
            case "wait":
                await agent.wait_idle()

    async def watch(self, step: Step, agent: Agent) -> None:
        seen = 0
        async with agent.stream_chat("go") as events:
            async for _ in events:
                seen += 1
                if seen == step.leaves_at:
                    break
        self.see(events.result)

    @staticmethod
    def decide(agent: Agent, *, denies: bool = False) -> None:
        for call in agent.pending_approvals():
            agent.deny(call.id) if denies else agent.approve(call.id)

    def see(self, result: Result | None) -> None:
        """A result is valid, whatever it is of; nothing is left of a request that was to be undone."""
        if result is not None and result.status == "cancelled":
            name = self.asked.get(result.request_id or "")
            if name is not None and self.plans[name].on_cancel == "rollback":
                assert not any(f"go {result.request_id}." in message.text for message in result.messages)
        if result is not None and result.messages:
            check_messages(result.messages, Hands())

    async def be_a_person(self) -> None:
        """Decide at last what nobody else decides on."""
        while True:
            await trio.sleep(50)
            for agent in self.agents.values():
                self.decide(agent)

    async def listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.pubsub.subscribe("agent:*:responses", buffer=10_000) as subscription:
            task_status.started()
            async for result in subscription:
                self.published.append(result)

    def check_remarks(self, program: list[Step]) -> None:
        """What was said and taken is in the conversation, unless that went back, or a request was cancelled as it was to begin."""
        for name, agent in self.agents.items():
            own = [step for step in program if step.agent == name]
            torn = {step.verb for step in own} & {"reset", "break", "cancel", "stop"}
            if not torn and all(step.patience == FOR_EVER for step in own) and self.plans[name].on_cancel == "keep":
                texts = [message.text for message in agent.messages if message.role == "user"]
                assert "".join(texts).count("REMARK") == self.said[name]

    async def live(self, program: list[Step]) -> None:
        async with open_supervisor([self.spec(name) for name in AGENTS], max_restarts=1000) as supervisor:
            self.agents.update({name: supervisor[name] for name in AGENTS})
            async with trio.open_nursery() as others:
                await others.start(self.listen)
                others.start_soon(self.be_a_person)
                async with trio.open_nursery() as nursery:
                    for step in program:
                        nursery.start_soon(self.take, step)
                self.store.breaks.clear()
                await trio.sleep(1)
                for name in AGENTS:
                    await self.agents[name].wait_idle()
                    await trio.sleep(1)  # one that broke down behind its last request is started again
                    await supervisor.wait_child(name)
                others.cancel_scope.cancel()
            self.check_remarks(program)
            for name, agent in self.agents.items():
                await self.check_at_rest(name, agent)

    async def check_at_rest(self, name: str, agent: Agent) -> None:
        """The agent is idle, its store says what it says, it goes on without a repair, and then, too."""
        check_messages(agent.messages, self.hands[name])
        health = agent.health()
        assert (health.status, health.pending_count, health.abandoned) == ("idle", 0, 0), health
        if not health.unsaved:
            async with open_agent(provider="demo", session_store=self.store, session_id=name) as again:
                assert again.messages == agent.messages
                assert again.usage == agent.usage
        before = agent.messages
        self.providers[name]._script.clear()
        result = await agent.chat("and now?")
        assert result.status in {"completed", "budget_exceeded"}
        said = [attrs.evolve(message, epoch=0) for message in agent.messages[: len(before)]]
        assert said == [attrs.evolve(message, epoch=0) for message in before]
        check_messages(agent.messages, self.hands[name])

    def check(self) -> None:
        """Each request has one end, each tool ran once for a call, and all runs were told of from start to end."""
        self.ears.check()
        assert all(each.is_done for each in self.pending)
        for result in self.published:
            self.see(result)
        ended = Counter(result.request_id for result in self.published)
        assert ended == Counter(each.request_id for each in self.pending)
        for name, hands in self.hands.items():
            assert hands.under_way == 0
            assert Counter(hands.begun) <= self.providers[name].given
        for provider in self.providers.values():
            provider.check_growth(goes_back=True)


CALM = Plan(
    script=[],
    on_cancel="keep",
    max_pending=5,
    timeout=None,
    cents=None,
    asks_person=False,
    approval_timeout=None,
)
SLOW = Reply((delay(1.0), Text("Yes.")))


def at(after: float, verb: str, patience: float = FOR_EVER) -> Step:
    return Step(after=after, verb=verb, agent="a", patience=patience, interrupt=None, leaves_at=None)


@settings(max_examples=3 * EXAMPLES)
@example(  # a remark to a run that fails, or is at its end in this very moment
    first=attrs.evolve(CALM, script=[Reply((delay(1.0), error(Broken("no"))))]),
    second=CALM,
    program=[at(0.0, "chat"), at(0.3, "steer")],
)
@example(
    first=attrs.evolve(CALM, script=[SLOW]),
    second=CALM,
    program=[at(0.0, "chat"), *[at(1.0, "steer")] * 5],
)
@example(  # what is undone leaves nothing
    first=attrs.evolve(CALM, script=[SLOW], on_cancel="rollback"),
    second=CALM,
    program=[at(0.0, "chat"), at(0.3, "cancel")],
)
@example(  # the store breaks under a reset
    first=CALM, second=CALM, program=[at(0.0, "chat"), at(0.3, "break"), at(1.0, "reset"), at(1.0, "chat")]
)
@given(first=plans, second=plans, program=st.lists(steps, min_size=1, max_size=12))
def test_two_agents_live_through_anything(first: Plan, second: Plan, program: list[Step]) -> None:
    world = World({"a": first, "b": second})
    purses: list[Purse] = []

    async def main() -> None:
        with trio.fail_after(FOR_EVER), world.ears.listening(), assert_no_orphans():
            purses.append(Purse(world.around))
            with purses[0].open():
                await world.live(program)

    in_virtual_time(main)
    for end in world.ends:
        event(end)
    purses[0].check()
    world.check()
