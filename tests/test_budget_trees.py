"""
Random trees of runs under random budgets: nothing is overspent, nothing stays reserved, nobody hangs, every history is valid.

Each example is a Trio run of its own, in virtual time. What its providers bill is known to the token, so the books can be
compared with the truth. An answer's deltas are a hundred tokens each.
"""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings, target
from hypothesis import strategies as st
from rules import check_history

from alloy_trio import (
    Budget,
    ConnectionFailed,
    Message,
    Price,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    RunTimeout,
    Session,
    ToolUse,
    Usage,
    run,
    stream,
    tool,
)
from alloy_trio._budget import Account, Around, BudgetExhausted, _around
from alloy_trio._reservation import Ask, reserve
from alloy_trio.events import TextDelta
from alloy_trio.providers import Request, Response, StopReason, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.providers._metered import measured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from alloy_trio.events import Envelope
    from alloy_trio.providers import Emit

PRICE = Price("20", "100")
TOKEN = Decimal("0.0001")
DELTA = 100  # tokens
FOR_EVER = 100_000.0  # seconds: all that could be waited for is long over

Kind = Literal["run", "stream"]
Failure = Literal["refused", "stalled", "broke"]


@attrs.frozen(kw_only=True)
class Turn:
    """One answer of a model: how long it is, how it fails first, and who is asked by the tools it calls."""

    deltas: int
    pause: float
    failure: Failure | None
    agents: tuple[Node, ...]


@attrs.frozen(kw_only=True)
class Node:
    """A run, and what is around it."""

    kind: Kind
    turns: tuple[Turn, ...]
    heeds_cap: bool
    runs_on: bool
    reports: Literal["early", "end", "never"]
    prompt: float  # how large it really is, of what it is thought to be
    budget: int | None  # tokens, of the run's own
    cap: int | None
    timeout: float | None
    cancel_after: float | None
    at_event: int  # after how many deltas of all
    listener: tuple[Node, ...]  # runs that its on_event starts
    waits_for_listener: bool
    body: tuple[Node, ...]  # runs that the stream's body starts
    leaves: bool  # the stream, then
    slowness: float  # of the one who takes the events


SECONDS = st.sampled_from([0.0, 0.01, 0.1, 0.3, 2.0])


def nodes(inner: st.SearchStrategy[Node] | None) -> st.SearchStrategy[Node]:
    """Return trees whose branches are `inner`; most of what could end a run early is rare, so that some get far."""
    few: st.SearchStrategy[Any] = st.just(()) if inner is None else st.just(()) | st.lists(inner, max_size=2).map(tuple)
    several: st.SearchStrategy[Any] = st.just(()) if inner is None else st.lists(inner, max_size=3).map(tuple)
    turn = st.builds(
        Turn,
        deltas=st.integers(0, 40) | st.integers(0, 10),
        pause=SECONDS,
        failure=st.sampled_from([None, None, None, "refused", "stalled", "broke"]),
        agents=several,
    )
    return st.builds(
        Node,
        kind=st.sampled_from(["run", "stream"]),
        turns=st.lists(turn, min_size=1, max_size=3).map(tuple),
        heeds_cap=st.booleans(),
        runs_on=st.booleans(),
        reports=st.sampled_from(["early", "end", "never"]),
        prompt=st.sampled_from([0.5, 1.0, 1.4]),
        budget=st.sampled_from([None, None, None, 600, 2000, 8000]),
        cap=st.sampled_from([None, None, 300, 1500, 4000, 20_000]),
        timeout=st.sampled_from([None, None, None, 0.05, 1.0, 20.0]),
        cancel_after=st.sampled_from([None, None, None, None, 0.0, 0.05, 0.5, 5.0]),
        at_event=st.integers(1, 20),
        listener=few,
        waits_for_listener=st.booleans(),
        body=few,
        leaves=st.booleans(),
        slowness=SECONDS,
    )


TREES = nodes(nodes(nodes(None))).map(lambda root: attrs.evolve(root, timeout=None, cancel_after=None))


@attrs.define
class World:
    """What really happens."""

    budget: Budget
    nursery: trio.Nursery
    billed: Decimal = Decimal(0)
    allowed: Decimal = Decimal(
        0
    )  # beyond the budget: a delta for each stream that ignores its cap, and unreported prompts
    sessions: list[Session] = attrs.field(factory=list)
    statuses: list[str] = attrs.field(factory=list)

    def check(self) -> None:
        """Assert that the ledger has promised no more than there is."""
        assert self.budget.reserved >= 0
        assert self.budget.spent + self.budget.reserved <= self.budget.limit + self.allowed
        assert self.billed <= self.budget.limit + self.allowed


class Model:
    """Bills what it produces, from the prompt on, whether anybody hears it or not."""

    model = "model"
    price = PRICE

    def __init__(self, node: Node, world: World) -> None:
        self.node = node
        self.world = world
        self.terms = Terms(enforces_cap=node.heeds_cap, runs_on=node.runs_on)
        self.name = f"model-{len(world.sessions)}"
        self.answers = 0
        self.failed: set[int] = set()

    async def complete(self, request: Request) -> Response:
        return await self.answer(request, None)

    async def stream(self, request: Request, emit: Emit) -> Response:
        return await self.answer(request, emit)

    async def answer(self, request: Request, emit: Emit | None) -> Response:
        node, world = self.node, self.world
        world.check()
        number = min(self.answers, len(node.turns) - 1)
        turn = node.turns[number]
        failure = None if number in self.failed else turn.failure
        self.failed.add(number)
        await trio.lowlevel.checkpoint()
        if failure == "refused":
            raise RateLimited("slow down", status=429, retryable=True, retry_after=turn.pause)
        guess = measured(request).text // 4
        prompt = int(guess * (node.prompt if node.reports == "early" else min(node.prompt, 1)))
        self.bill(Usage(prompt))
        if emit is not None and node.reports == "early":
            await emit(UsageUpdate(Usage(prompt)))
        if failure == "stalled":
            await trio.sleep(turn.pause)
            raise ProviderTimeout("silence", retryable=True)
        said = await self.speak(request, turn, emit)
        if failure == "broke":
            raise ConnectionFailed("broke", retryable=True)
        self.answers += 1
        calls = [ToolUse(f"c{self.answers}-{i}", "ask", {"turn": number, "agent": i}) for i in range(len(turn.agents))]
        is_cut = said < turn.deltas * DELTA
        return Response(
            message=Message.assistant("word" * said, *([] if is_cut else calls)),
            stop_reason=StopReason.MAX_TOKENS if is_cut else StopReason.TOOL_USE if calls else StopReason.END_TURN,
            usage=Usage() if node.reports == "never" and said else Usage(prompt, said),
        )

    async def speak(self, request: Request, turn: Turn, emit: Emit | None) -> int:
        """Say as much as the turn has, or the cap allows; only what streams dares to ignore its cap."""
        cap = request.max_output_tokens or math.inf
        said = 0
        if not self.node.heeds_cap and emit is not None:
            cap = math.inf
            self.world.allowed += DELTA * TOKEN
        for _ in range(turn.deltas):
            if said + DELTA > cap:
                break
            await trio.sleep(turn.pause)
            said += DELTA
            self.bill(Usage(0, DELTA))
            if emit is not None:
                await emit(TextDelta("word" * DELTA))
        return said

    def bill(self, usage: Usage) -> None:
        cost = PRICE.cost(usage)
        assert cost is not None
        self.world.billed += cost
        self.world.check()


async def perform(node: Node, world: World) -> None:
    """Do what a node says; it may be cancelled at any time."""
    session = Session()
    world.sessions.append(session)

    @tool
    async def ask(turn: int, agent: int) -> str:
        """Ask another agent."""
        await perform(node.turns[turn].agents[agent], world)
        return "asked"

    heard = 0

    async def listen(envelope: Envelope) -> None:
        nonlocal heard
        heard += isinstance(envelope.event, TextDelta)
        if node.listener and heard == node.at_event and isinstance(envelope.event, TextDelta):
            for each in node.listener:
                if node.waits_for_listener:
                    await perform(each, world)
                else:
                    world.nursery.start_soon(perform, each, world)

    options: dict[str, Any] = {
        "provider": Model(node, world),
        "tools": [ask],
        "session": session,
        "max_turns": len(node.turns) + 1,
        "max_output_tokens": node.cap,
        "max_budget_cents": None if node.budget is None else node.budget * TOKEN * 100,
        "timeout": node.timeout,
        "max_retries": 1,
        "tool_timeout": FOR_EVER,
        "on_event": listen if node.listener else None,
    }
    with (
        contextlib.suppress(ProviderError, RunTimeout),
        trio.move_on_after(math.inf if node.cancel_after is None else node.cancel_after),
    ):
        if node.kind == "run":
            result = await run("go", **options)
        else:
            result = await watch(node, world, options)
        world.statuses.append(result.status)
        assert result.error is None
        check_history(result.messages)
    world.check()


async def watch(node: Node, world: World, options: dict[str, Any]) -> Any:
    seen = 0
    async with stream("go", **options) as events:
        async for each in events:
            await trio.sleep(node.slowness)
            seen += isinstance(each, TextDelta)
            if seen == node.at_event and isinstance(each, TextDelta):
                for inner in node.body:
                    await perform(inner, world)
                if node.leaves:
                    break
    return events.result


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@settings(max_examples=150)
@given(tree=TREES, limit=st.integers(1100, 40_000), outer=st.none() | st.integers(1100, 40_000))
def test_a_tree_of_runs_never_overspends_never_hangs_and_leaves_nothing_reserved(
    tree: Node, limit: int, outer: int | None
) -> None:
    around, budget = Budget((outer or 10**9) * TOKEN), Budget(limit * TOKEN)
    worlds = []

    async def main() -> None:
        with around, budget:
            with trio.fail_after(FOR_EVER):
                async with trio.open_nursery() as nursery:
                    worlds.append(World(budget, nursery))
                    await perform(tree, worlds[0])

    in_virtual_time(main)
    (world,) = worlds
    world.check()
    note(f"{world.statuses} {budget}")
    event(f"{min(len(world.sessions), 10)} runs or more")
    target(len(world.statuses))  # those that came to an end of their own
    assert around.reserved == budget.reserved == 0
    assert around.spent == budget.spent
    assert around.spent <= around.limit + world.allowed
    assert world.billed <= budget.spent + world.allowed
    for session in world.sessions:
        if session.messages:
            check_history(session.messages)


# --- The ledger alone.


@attrs.frozen
class Want:
    """Somebody who asks, at a time of their own."""

    wanted: int
    least: int
    fixed: int
    own: int | None  # the limit of a budget of their own, inside the common one
    wait: int  # seconds until the next one comes
    hold: int  # seconds
    spend: float  # of what was had
    correct: int  # what the fixed part really is, at most
    extend: int
    blocked: bool
    cancel_after: float


WANTS = st.builds(
    Want,
    wanted=st.integers(1, 60),
    least=st.integers(1, 60),
    fixed=st.integers(0, 20),
    own=st.none() | st.integers(10, 60),
    wait=st.integers(1, 5),
    hold=st.integers(1, 20),
    spend=st.sampled_from([0.0, 0.3, 1.0]),
    correct=st.integers(0, 20),
    extend=st.integers(0, 20),
    blocked=st.sampled_from([False, False, False, True]),
    cancel_after=st.just(math.inf) | st.integers(0, 10),
)


@attrs.define
class Counter:
    """Where they ask, and who holds what."""

    limit: int
    wants: list[Want]
    common: Budget = attrs.field(init=False, default=attrs.Factory(lambda self: Budget(self.limit), takes_self=True))
    ended: dict[int, tuple[float, bool]] = attrs.field(init=False, factory=dict)  # when the wait, and if it was served

    def check(self, *budgets: Budget) -> None:
        assert self.common.reserved == sum(each.amount for each in self.common._holders)
        for budget in (self.common, *budgets):
            assert budget.reserved >= 0
            assert budget.spent + budget.reserved <= budget.limit
            assert budget.left == budget.limit - budget.spent - budget.reserved

    async def serve(self, number: int, want: Want) -> None:
        budgets = (self.common, *([] if want.own is None else [Budget(want.own)]))
        _around.set(Around(budgets, Account()))
        ask = Ask(fixed=Decimal(want.fixed), rate=Decimal(1), wanted=want.wanted, least=min(want.least, want.wanted))
        mine = None
        with contextlib.suppress(BudgetExhausted), trio.move_on_after(want.cancel_after):
            mine = await reserve(ask)
        self.ended[number] = trio.current_time(), mine is not None
        if mine is None:
            return
        assert ask.least <= mine.tokens <= ask.wanted
        self.check(*budgets)
        with mine.blocked() if want.blocked else contextlib.nullcontext():
            await trio.sleep(want.hold)
        fixed = Decimal(min(want.correct, want.fixed))
        mine.correct(attrs.evolve(ask, fixed=fixed, wanted=mine.tokens, least=0))
        self.check(*budgets)
        before = mine.tokens
        has_more = mine.extend(want.extend, Decimal(want.extend))
        assert mine.tokens == before + want.extend * has_more
        self.check(*budgets)
        mine.settle(mine.amount * Decimal(want.spend))
        self.check(*budgets)

    async def open(self) -> None:
        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as nursery:
                for number, want in enumerate(self.wants):
                    nursery.start_soon(self.serve, number, want)
                    await trio.sleep(want.wait)


@settings(max_examples=300)
@given(counter=st.builds(Counter, limit=st.integers(20, 100), wants=st.lists(WANTS, min_size=2, max_size=12)))
def test_the_ledger_serves_in_order_holds_its_limits_and_ends(counter: Counter) -> None:
    """Who asks later, of the same budget, never has it earlier; unless the first has gone."""
    in_virtual_time(counter.open)
    counter.check()
    assert counter.common.reserved == 0
    assert len(counter.ended) == len(counter.wants)
    for number, (time, was_served) in counter.ended.items():
        for earlier in range(number):
            assert not was_served or counter.ended[earlier][0] <= time, f"{number} had it before {earlier}"


@given(
    dollars=st.decimals(-10, 100, places=6),
    fixed=st.decimals(0, 10, places=6),
    rate=st.decimals(0, 1, places=9),
    wanted=st.integers(1, 10**6),
)
def test_what_is_affordable_is_as_much_as_there_is_and_no_more(
    dollars: Decimal, fixed: Decimal, rate: Decimal, wanted: int
) -> None:
    ask = Ask(fixed=fixed, rate=rate, wanted=wanted, least=1)
    had = ask.affordable(dollars)
    if had < 0:
        assert fixed > dollars
        return
    assert had <= wanted
    assert ask.amount(had) <= dollars or ask.amount(had) == 0
    assert had == wanted or ask.amount(had + 1) > dollars
