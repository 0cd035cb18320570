"""Runs under budgets: who pays, who waits, and that nobody waits in vain."""

from __future__ import annotations

import contextlib
import functools
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from rules import check_history
from taxi import BY_THE_TICK, DEAR, PROMPT, TICK, Taxi, check_cut, look, note, scripted, standing, streamed

import alloy_trio
from alloy_trio import (
    Budget,
    Compaction,
    ConnectionFailed,
    InvalidOption,
    Message,
    Middleware,
    Price,
    ProviderTimeout,
    RateLimited,
    RunState,
    RunTimeout,
    Session,
    ToolContext,
    ToolUse,
    UnknownPrice,
    Usage,
    WireError,
    run,
    run_sync,
    stream,
    tool,
)
from alloy_trio.events import Envelope, Retry, TextDelta
from alloy_trio.providers import Anthropic, Request, Response
from alloy_trio.providers._base import Terms
from alloy_trio.testing import delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from alloy_trio import Result
    from alloy_trio.providers import Emit

# --- What is not known.


@pytest.mark.parametrize("where", ["first", "fallback"])
async def test_an_unknown_price_is_refused_before_anything_is_sent(where: str, autojump_clock: object) -> None:
    """Also of a provider that may never be asked."""
    known, unknown = Taxi(1), Taxi(1, price=None)
    first, second = (unknown, known) if where == "first" else (known, unknown)
    for cents, budget in ((None, Budget(1)), (1, contextlib.nullcontext())):
        events: list[Envelope] = []
        with budget, pytest.raises(UnknownPrice, match="taxi:taxi") as raised:
            await run("go", provider=first, fallback_providers=[second], on_event=events.append, max_budget_cents=cents)
        assert raised.value.result is not None
        assert (raised.value.result.status, raised.value.result.turns) == ("error", 0)
    assert known.requests == unknown.requests == []
    assert (await run("go", provider=unknown)).cost_cents is None


async def test_a_fee_that_nobody_knows_is_refused_before_anything_is_sent(autojump_clock: object) -> None:
    server_tools = Terms(server_tools=True)
    provider = Taxi(1, terms=server_tools)
    with Budget(1), pytest.raises(UnknownPrice, match="server_tool_call"):
        await run("go", provider=Taxi(1), fallback_providers=[provider])
    assert provider.requests == []
    with Budget(1):
        priced = Taxi(1, terms=server_tools, price=attrs.evolve(BY_THE_TICK, server_tool_call=1))
        assert (await run("go", provider=priced)).status == "completed"
        assert (await run("go", provider=Taxi(1, terms=server_tools, price=Price.free()))).cost_cents == 0


async def test_a_search_on_the_wire_is_a_fee(autojump_clock: object) -> None:
    asked = Anthropic(
        model="m",
        api_key="k",
        base_url="http://127.0.0.1:9",
        price=DEAR,
        extra_body={"tools": [{"type": "web_search_20250305"}]},
    )
    with Budget(1), pytest.raises(UnknownPrice):
        await run("go", provider=asked)


async def test_a_budget_that_is_set_later_is_kept_too(autojump_clock: object) -> None:
    """A price that is needed only now is asked for now: in a tool's own budget."""
    raised = []

    @tool
    async def thrifty() -> str:
        """Spend little."""
        with Budget(1), pytest.raises(UnknownPrice) as caught:
            await run("sub", provider=Taxi(1, price=None))
        raised.append(caught.value)
        return "ok"

    result = await run("go", provider=scripted(tool_call("thrifty"), "done", price=None), tools=[thrifty])
    assert (result.status, len(raised)) == ("completed", 1)


# --- use-07: a budget that is spent before.


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_use_07_a_budget_that_is_spent_before_the_first_request(
    autojump_clock: object, *, streaming: bool
) -> None:
    ask = streamed if streaming else run
    provider = Taxi(3000)
    with Budget("0.3") as budget:
        assert (await ask("go", provider=provider)).status == "completed"
        result = await ask("go", provider=provider)
        assert budget.left == 0
    check_cut(result)
    assert (result.turns, result.cost_cents, len(provider.requests)) == (0, Decimal(0), 1)
    assert (await ask("go", provider=provider)).status == "completed"


async def test_what_is_free_is_never_stopped(autojump_clock: object) -> None:
    with Budget("0.2") as budget:
        await run("go", provider=scripted(text("hi", usage=Usage(0, 5000))))
        assert budget.overrun > 0
        assert (await run("go", provider=Taxi(9000, price=Price.free()))).status == "completed"


async def test_what_is_free_waits_for_nobody(autojump_clock: object) -> None:
    """Others wait in line for money."""
    with Budget("0.2"):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(functools.partial(streamed, provider=Taxi(1500, seconds=1)))
            await trio.sleep(10)
            with trio.fail_after(0.001):
                assert (await streamed(provider=Taxi(9000, price=Price.free()))).status == "completed"
            nursery.cancel_scope.cancel()


# --- Nested budgets, and who pays.


async def test_nested_budgets_are_all_charged_and_the_tightest_counts(autojump_clock: object) -> None:
    provider = Taxi()
    with Budget(10) as outer, Budget("0.2") as middle, Budget(1) as inner:
        check_cut(await streamed(provider=provider))
    assert provider.caps == [2000]
    assert outer.spent == middle.spent == inner.spent == provider.produced * TICK
    assert outer.reserved == middle.reserved == inner.reserved == 0


async def test_a_runs_own_budget_is_inside_those_around_it(autojump_clock: object) -> None:
    provider = Taxi(heeds_cap=True, terms=Terms(enforces_cap=True))
    with Budget("0.5") as outer:
        await streamed(provider=provider, max_budget_cents=20)
        await streamed(provider=provider, max_budget_cents=200)
        await streamed(provider=provider, max_budget_cents=200)
    assert provider.caps == [2000, 3000]
    assert outer.spent == outer.limit


async def test_the_same_budget_twice_is_charged_once(autojump_clock: object) -> None:
    with Budget(1) as budget, Budget(2), budget, budget:
        await run("go", provider=Taxi(500))
    assert budget.spent == Decimal("0.05")
    await run("go", provider=Taxi(500))
    assert budget.spent == Decimal("0.05")


async def test_a_budget_can_be_entered_again_and_goes_on(autojump_clock: object) -> None:
    budget = Budget("0.2")
    for expected in ("0.05", "0.1", "0.1"):
        with budget:
            await run("go", provider=Taxi(500))
        assert budget.spent >= Decimal(expected) - Decimal("0.05")
    assert budget.spent == Decimal("0.1")  # a third answer of a useful length was not to be had


async def test_leaving_the_body_early_changes_nothing_for_a_run_that_is_under_way(autojump_clock: object) -> None:
    provider, results = Taxi(3000, 3000, seconds=0.01), []

    async def work() -> None:
        results.append(await streamed(provider=provider, max_output_tokens=4000))
        results.append(await streamed(provider=provider, max_output_tokens=4000))

    budget = Budget("0.4")
    async with trio.open_nursery() as nursery:
        with budget:
            nursery.start_soon(work)
            await trio.sleep(1)
        assert budget.reserved == Decimal("0.4")
        outside = await run("go", provider=Taxi(5000))
    assert outside.status == "completed"
    assert [result.status for result in results] == ["completed", "budget_exceeded"]
    assert budget.spent == Decimal("0.3")


async def test_a_budget_that_is_left_in_another_task_is_left_alone(autojump_clock: object) -> None:
    budget = Budget("0.2")

    async def leave() -> None:
        budget.__exit__(None, None, None)

    with budget:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
        await run("go", provider=Taxi(100))
    assert budget.spent == Decimal("0.01")
    budget.__exit__(None, None, None)


async def test_an_exception_leaves_a_budget_as_it_came(autojump_clock: object) -> None:
    problem = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised, Budget(1):
        raise problem
    assert raised.value is problem
    assert (await run("go", provider=Taxi(9000))).status == "completed"


def spender(provider: Taxi, results: list[Result], **options: Any) -> alloy_trio.tools.Tool:
    @tool
    async def spend() -> str:
        """Ask somebody else."""
        results.append(await streamed(provider=provider, **options))
        return results[-1].text

    return spend


async def test_a_sub_agent_in_a_tool_draws_on_every_budget_around_it_and_its_parents_cost_includes_it(
    autojump_clock: object,
) -> None:
    provider, results = Taxi(1500), list[Any]()
    parent = scripted(tool_call("spend", usage=Usage(0, 100)), text("done", usage=Usage(0, 50)))
    with Budget(10) as outer:
        result = await run("go", provider=parent, tools=[spender(provider, results)], max_budget_cents=500)
    assert (result.status, result.cost_cents, result.usage) == ("completed", Decimal("16.5"), Usage(0, 150))
    assert (results[0].cost_cents, outer.spent) == (15, Decimal("0.165"))


async def test_a_sub_agent_of_a_sub_agent_is_included_too(autojump_clock: object) -> None:
    inner = spender(Taxi(1000), [])
    middle, results = scripted(tool_call("spend", usage=Usage(0, 1)), text("done", usage=Usage(0, 2))), list[Any]()

    @tool
    async def ask() -> str:
        """Ask."""
        results.append(await run("go", provider=middle, tools=[inner]))
        return "ok"

    outer = scripted(tool_call("ask", usage=Usage(0, 4)), text("done", usage=Usage(0, 8)))
    result = await run("go", provider=outer, tools=[ask], max_budget_cents=200)
    assert (results[0].cost_cents, result.cost_cents) == (Decimal("10.03"), Decimal("10.15"))


async def test_a_budget_that_trips_inside_a_sub_agent_is_a_value_for_its_parent(autojump_clock: object) -> None:
    """At once, and the parent goes on: it can still say so, as far as its money reaches."""
    provider, results = Taxi(), list[Any]()
    parent = scripted(tool_call("spend", usage=Usage(0, 1)), text("done", usage=Usage(0, 1)))
    start = trio.current_time()
    with Budget("0.5") as outer:
        result = await run(
            "go", provider=parent, tools=[spender(provider, results, max_budget_cents=20)], max_output_tokens=1000
        )
    check_cut(results[0])
    check_history(result.messages)
    assert (result.status, outer.reserved) == ("completed", Decimal(0))
    assert trio.current_time() - start < 1


async def test_a_parent_whose_sub_agent_has_spent_everything_ends_with_a_valid_history(autojump_clock: object) -> None:
    results = list[Any]()
    parent = scripted(tool_call("spend", usage=Usage(0, 1)), "done")
    result = await run("go", provider=parent, tools=[spender(Taxi(), results)], max_budget_cents=100)
    check_cut(results[0])
    check_cut(result)
    assert result.messages[-1].tool_results[0].outcome == "ok"


def test_a_sync_tool_pays_through_its_thread() -> None:
    """In its run's context, and inside a budget of its own."""
    own = Budget(5)

    @tool
    def spend(ctx: ToolContext) -> str:
        """Ask somebody else, from a thread."""
        with own:
            return ctx.from_thread(functools.partial(run, "sub", provider=Taxi(700))).text[:4]

    with Budget(10) as outer:
        result = run_sync(
            "go", provider=scripted(tool_call("spend", usage=Usage(0, 1)), text("ok", usage=Usage(0, 1))), tools=[spend]
        )
    assert (result.status, result.cost_cents) == ("completed", Decimal("7.02"))
    assert (outer.spent, own.spent) == (Decimal("0.0702"), Decimal("0.07"))
    assert outer.reserved == own.reserved == 0


async def test_a_run_in_a_stream_is_not_a_part_of_it_but_pays_into_the_same_budget(autojump_clock: object) -> None:
    """It was not the stream's agent who asked."""
    with Budget(1) as budget:
        async with stream("go", provider=Taxi(100), max_output_tokens=2000) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    await run("inner", provider=Taxi(5), max_output_tokens=10)
    assert events.result.cost_cents == 1
    assert budget.spent == Decimal("0.06")


async def test_runs_side_by_side_pay_each_for_itself(autojump_clock: object) -> None:
    results: dict[int, Result] = {}

    async def work(length: int) -> None:
        results[length] = await streamed(provider=Taxi(length, seconds=0.001), max_output_tokens=3000)

    with Budget(2) as budget:
        async with trio.open_nursery() as nursery:
            for length in (100, 200, 300):
                nursery.start_soon(work, length)
    assert {length: result.cost_cents for length, result in results.items()} == {100: 1, 200: 2, 300: 3}
    assert budget.spent == Decimal("0.06")


async def test_cmp_18_a_summary_is_metered(autojump_clock: object) -> None:
    """In the run's usage, in its cost and in the budget; as an attempt that is reserved like any other."""
    held: list[Decimal] = []
    budget = Budget(100)

    def reply(request: Request) -> Any:
        held.append(budget.reserved)
        if "conversation above" in request.messages[-1].text:
            return text("a summary", usage=Usage(1000, 100))
        return text("done", usage=Usage(500, 10))

    provider = scripted(reply, reply, price=DEAR)
    history = [
        message for n in range(40) for message in (Message.user(f"{n} " * 300), Message.assistant(f"{n} " * 300))
    ]
    with budget:
        result = await run("go", provider=provider, messages=history, context_tokens=6000, compaction=Compaction())
    assert len(provider.requests) == 2
    assert result.usage == Usage(1500, 110)
    assert result.cost_cents == 161 == budget.spent * 100
    assert all(held)
    assert budget.reserved == 0


async def test_cmp_18_no_money_for_the_summary_ends_the_run(autojump_clock: object) -> None:
    provider = scripted("a summary", "done", price=DEAR)
    history = [
        message for n in range(40) for message in (Message.user(f"{n} " * 300), Message.assistant(f"{n} " * 300))
    ]
    result = await run("go", provider=provider, messages=history, context_tokens=6000, max_budget_cents=100)
    check_cut(result)
    assert (provider.requests, len(result.messages)) == ([], 81)


class Asks(Middleware):
    """Asks the provider something beside the conversation, at one of the hooks."""

    def __init__(self, hook: str, *, keeps_going: bool = False) -> None:
        async def ask(state: Any, *_: object) -> None:
            with contextlib.suppress(*[Exception] if keeps_going else []):
                await state.ask(Request(messages=(Message.user("beside"),), max_output_tokens=2000))

        setattr(self, hook, ask)


HOOKS = [
    "session_start",
    "before_completion",
    "after_tool_request",
    "before_tool_call",
    "after_tool_execution",
    "after_completion",
]


@pytest.mark.parametrize("hook", [*HOOKS, "session_end"])
async def test_a_hook_that_has_no_money_for_its_question_ends_the_run(hook: str, autojump_clock: object) -> None:
    """Nobody ever sees the exception that does it."""
    usage = Usage(0, 1900)
    provider = scripted(
        tool_call("look", usage=usage), text("done", usage=usage), text("x", usage=usage), text("y", usage=usage)
    )
    answers = {"session_start": 0, "before_completion": 0, "after_completion": 2, "session_end": 2}.get(hook, 1)
    with Budget((1900 * answers + 1000) * TICK):  # those before it can be had, and then less than a useful one
        result = await run("go", provider=provider, tools=[look], middleware=[Asks(hook)], max_output_tokens=2000)
    check_cut(result)


class TakesItsTime(Middleware):
    async def before_completion(self, state: Any) -> None:
        await trio.sleep(100)


@pytest.mark.parametrize("slow", ["hook", "provider"])
async def test_a_hook_that_can_do_without_its_answer_goes_on(slow: str, autojump_clock: object) -> None:
    """And a deadline that passes later is a deadline again."""
    provider = scripted([delay(100), text("late")])
    hooks = [Asks("before_completion", keeps_going=True), *([TakesItsTime()] if slow == "hook" else [])]
    with pytest.raises(RunTimeout):
        await run("go", provider=provider, middleware=hooks, max_output_tokens=900, max_budget_cents=10, timeout=10)
    assert len(provider.requests) == (slow == "provider")  # the hook has asked for more than there was


# --- Who waits, and who does not.


async def test_a_run_that_has_to_wait_gets_its_turn(autojump_clock: object) -> None:
    slow, fast = Taxi(2000, seconds=0.01), Taxi(100)
    at: list[float] = []

    async def second() -> None:
        await trio.sleep(1)
        assert (await run("go", provider=fast, max_output_tokens=1500)).status == "completed"
        at.append(trio.current_time() - start)

    start = trio.current_time()
    with Budget("0.4"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            assert (await streamed(provider=slow, max_output_tokens=4000)).status == "completed"
    assert at == [pytest.approx(20)]


async def test_a_run_whose_deadline_passes_after_it_had_its_turn_took_too_long(autojump_clock: object) -> None:
    raised = []

    async def second() -> None:
        await trio.sleep(1)
        with pytest.raises(RunTimeout) as caught:
            await streamed(provider=Taxi(1000, seconds=1), max_output_tokens=3000, timeout=60)
        raised.append(caught.value)

    with Budget("0.4"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await streamed(provider=Taxi(500, seconds=0.01), max_output_tokens=4000)
    assert [error.result and error.result.status for error in raised] == ["timed_out"]


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_a_run_whose_deadline_passes_while_it_waits_for_money_had_none(
    autojump_clock: object, *, streaming: bool
) -> None:
    """It is no time-out: nothing was slow but the money."""
    provider, results = Taxi(1), list[Any]()
    ask = streamed if streaming else run

    async def second() -> None:
        await trio.sleep(1)
        results.append((await ask("go", provider=provider, timeout=5), trio.current_time() - start))

    start = trio.current_time()
    with Budget("0.4"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await streamed(provider=Taxi(2000, seconds=0.01), max_output_tokens=4000)
    ((result, at),) = results
    check_cut(result)
    assert (provider.requests, result.cost_cents, at) == ([], 0, pytest.approx(6))


async def test_a_waiting_run_whose_caller_is_cancelled_is_cancelled(autojump_clock: object) -> None:
    session = Session()
    with Budget("0.4") as budget:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(streamed, provider=Taxi(2000, seconds=0.01), max_output_tokens=4000))
            await trio.sleep(1)
            with trio.move_on_after(3) as scope:
                await run("go", provider=Taxi(1), session=session)
            assert scope.cancelled_caught
    assert (session.usage, *standing(budget)) == (Usage(), Decimal("0.2"), 0)
    check_history(session.messages)


async def test_a_stream_that_waits_for_money_can_be_left(autojump_clock: object) -> None:
    with Budget("0.4") as budget:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(streamed, provider=Taxi(2000, seconds=0.01), max_output_tokens=4000))
            await trio.sleep(1)
            async with stream("go", provider=Taxi(1)) as events:
                await trio.sleep(3)
            assert events.result.status == "cancelled"
    assert standing(budget) == (Decimal("0.2"), 0)


# --- Nothing hangs.


@contextlib.asynccontextmanager
async def promptly(seconds: float = 1) -> AsyncIterator[None]:
    with trio.fail_after(seconds):
        yield


async def test_a_stream_whose_body_starts_a_nested_run_under_the_same_budget(autojump_clock: object) -> None:
    """The stream holds all the money, and waits for its body; the body would wait for the money."""
    provider, inner = Taxi(), Taxi(5)
    with Budget("0.2") as budget:
        async with promptly(), stream("go", provider=provider) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    check_cut(await run("inner", provider=inner))
                    break
    assert inner.requests == []
    assert events.result.status == "cancelled"
    assert budget.reserved == 0


async def test_a_stream_in_a_stream_in_a_stream_under_the_same_budget(autojump_clock: object) -> None:
    levels: list[tuple[Any, ...]] = []

    async def inside(level: int) -> None:
        provider, deeper = Taxi(3000), level < 5
        async with stream(f"level {level}", provider=provider) as events:
            async for event in events:
                if isinstance(event, TextDelta) and deeper:
                    deeper = False
                    await inside(level + 1)
        levels.append((level, events.result.status, provider.caps))

    with Budget(1) as budget:
        async with promptly():
            await inside(1)
    assert levels == [(3, "budget_exceeded", []), (2, "budget_exceeded", [1808]), (1, "completed", [8192])]
    assert standing(budget) == (Decimal("0.4809"), 0)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_an_on_event_that_starts_a_nested_run(autojump_clock: object, *, is_async: bool) -> None:
    results = list[Any]()

    async def nested() -> None:
        results.append(await run("inner", provider=Taxi(5)))

    async with trio.open_nursery() as nursery:

        async def listen(envelope: Envelope) -> None:
            if isinstance(envelope.event, TextDelta) and not results:
                await nested()

        def hear(envelope: Envelope) -> None:
            if isinstance(envelope.event, TextDelta) and len(nursery.child_tasks) < 1 and not results:
                nursery.start_soon(nested)

        with Budget("0.2") as budget:
            async with promptly():
                result = await streamed(provider=Taxi(), on_event=listen if is_async else hear)
    check_cut(result)
    check_cut(results[0])
    assert budget.reserved == 0
    assert budget.spent <= budget.limit + TICK


async def test_an_on_event_that_starts_a_nested_run_while_others_wait_in_line(autojump_clock: object) -> None:
    """They wait for the one who listens: what it needs for that is not behind them."""
    results, waited = list[Any](), list[Any]()
    provider = Taxi(100)

    async def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, TextDelta) and not results:
            await trio.sleep(0.1)  # somebody else has come to wait meanwhile
            results.append(await run("inner", provider=Taxi(1000, seconds=0.001), max_output_tokens=1500))

    async def other() -> None:
        await trio.sleep(0.05)
        waited.append(await run("other", provider=Taxi(100), max_output_tokens=3000))

    with Budget("0.4") as budget:
        async with promptly(60), trio.open_nursery() as nursery:
            nursery.start_soon(other)
            result = await streamed(provider=provider, on_event=listen, max_output_tokens=2000)
    assert (result.status, result.cost_cents) == (
        "completed",
        Decimal(11),
    )  # what its listener has asked for is included
    assert (results[0].status, waited[0].status) == ("completed", "completed")
    assert budget.spent == Decimal("0.12")


async def test_a_provider_that_asks_an_agent_itself_while_others_wait_in_line(autojump_clock: object) -> None:
    """A provider may be anything: one that runs an agent holds money while that asks for some."""

    class Delegating(Taxi):
        async def _drive(self, request: Request, emit: Emit | None) -> Response:
            await trio.sleep(0.1)
            inner = await run("inner", provider=Taxi(100), max_output_tokens=1500)
            assert inner.status == "completed"
            return await super()._drive(request, emit)

    async def other() -> None:
        await trio.sleep(0.05)
        assert (await run("other", provider=Taxi(100), max_output_tokens=3000)).status == "completed"

    with Budget("0.4"):
        async with promptly(60), trio.open_nursery() as nursery:
            nursery.start_soon(other)
            result = await run("go", provider=Delegating(100), max_output_tokens=2000)
    assert (result.status, result.cost_cents) == ("completed", Decimal(2))


@pytest.mark.parametrize("taken", [0, 1, 5])
async def test_a_consumer_that_never_takes_events(taken: int, autojump_clock: object) -> None:
    """Its stream holds what it holds; others end for want of money instead of waiting for it."""
    with Budget("0.2") as budget:
        async with promptly(2), stream("go", provider=Taxi()) as events:
            for _ in range(taken):
                await anext(events)
            await trio.sleep(0.5)
            other = await run("other", provider=Taxi(10), max_output_tokens=2000)
    assert other.status == ("budget_exceeded" if taken > 1 else "completed")
    assert budget.reserved == 0


async def test_a_holder_in_backoff_holds_nothing(autojump_clock: object) -> None:
    """What it will ask for again is there for others meanwhile."""
    first = scripted(error(RateLimited("slow", status=429, retryable=True, retry_after=100)), "late")
    with Budget("0.2") as budget:
        async with trio.open_nursery() as nursery:
            done = []

            @nursery.start_soon
            async def _() -> None:
                done.append(await run("go", provider=first, max_output_tokens=2000))

            await trio.sleep(1)
            assert budget.reserved == 0
            async with promptly(0.001):
                assert (await run("other", provider=Taxi(10), max_output_tokens=2000)).status == "completed"
    assert done[0].status == "completed"


async def test_who_waits_for_a_person_holds_nothing(autojump_clock: object) -> None:
    class Approval(Middleware):
        async def before_tool_call(self, state: Any, call: ToolUse) -> None:
            await trio.sleep(10_000)

    first = scripted(tool_call("look", usage=Usage(0, 10)), text("done", usage=Usage(0, 10)))
    with Budget("0.21") as budget:
        async with trio.open_nursery() as nursery:
            done = []

            @nursery.start_soon
            async def _() -> None:
                done.append(
                    await run("go", provider=first, tools=[look], middleware=[Approval()], max_output_tokens=2000)
                )

            await trio.sleep(1)
            assert budget.reserved == 0
            async with promptly(0.001):
                assert (await run("other", provider=Taxi(10), max_output_tokens=2000)).status == "completed"
    assert done[0].status == "completed"


async def test_a_tool_that_takes_its_time_holds_nothing(autojump_clock: object) -> None:
    budget, seen = Budget("0.3"), []

    @tool
    async def slow() -> str:
        """Be slow."""
        seen.append(budget.reserved)
        return "ok"

    with budget:
        await run("go", provider=scripted(tool_call("slow"), "done"), tools=[slow])
    assert seen == [0]


# --- Ten at once.


def ten(
    run_one: Callable[[int], Awaitable[Result]], results: dict[int, Result], order: list[int]
) -> tuple[Any, list[Any]]:
    @tool
    async def delegate(number: int) -> str:
        """Let somebody else do it."""
        await trio.sleep(number / 1000)  # so that they ask in this order
        results[number] = await run_one(number)
        order.append(number)
        return results[number].status

    return delegate, [tool_call("delegate", {"number": number}, usage=Usage()) for number in range(10)]


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_ten_sub_agents_with_a_huge_cap_each(autojump_clock: object, *, streaming: bool) -> None:
    """Each could spend all of it. The first takes what there is, the others wait, and nobody hangs."""
    provider, results, order = (
        Taxi(heeds_cap=True, seconds=0.001, terms=Terms(enforces_cap=True)),
        dict[int, Any](),
        list[int](),
    )
    ask = streamed if streaming else run
    delegate, calls = ten(lambda n: ask(f"job {n}", provider=provider, max_output_tokens=128_000), results, order)
    with Budget(1) as budget:
        result = await run("go", provider=scripted(calls, "done", price=Price.free()), tools=[delegate])
    assert (result.status, provider.caps, budget.overrun, *standing(budget)) == (
        "completed",
        [10_000],
        Decimal(0),
        1,
        0,
    )
    assert len(results) == 10
    for each in results.values():
        check_cut(each)
    check_history(result.messages)
    assert budget.reserved == 0


async def test_ten_sub_agents_run_side_by_side_as_far_as_the_money_allows(autojump_clock: object) -> None:
    """Four at a time have what they may need; as each ends, the next in line begins; the last two go without."""
    provider, results, order = Taxi(1500, seconds=0.01), dict[int, Any](), list[int]()

    delegate, calls = ten(lambda n: streamed(f"job {n}", provider=provider, max_output_tokens=2500), results, order)
    with Budget("1.2") as budget:
        result = await run("go", provider=scripted(calls, "done", price=Price.free()), tools=[delegate])
    assert provider.most >= 4
    assert [request.messages[0].text for request in provider.requests] == [
        f"job {n}" for n in range(len(provider.requests))
    ]
    assert [results[n].status for n in range(10)] == ["completed"] * 8 + ["budget_exceeded"] * 2 or provider.most > 4
    assert budget.spent <= budget.limit
    assert budget.spent / budget.limit >= Decimal("0.9")
    assert result.cost_cents == budget.spent * 100
    for each in (*results.values(), result):
        check_history(each.messages)
    assert budget.reserved == 0


async def test_ten_sub_agents_that_need_little_all_get_it(autojump_clock: object) -> None:
    """Though each asks for more than there is for all of them: first come, first served, and nobody starves."""
    provider, results, order = Taxi(100, seconds=0.01), dict[int, Any](), list[int]()
    delegate, calls = ten(lambda n: streamed(f"job {n}", provider=provider), results, order)
    with Budget(1) as budget:
        await run("go", provider=scripted(calls, "done", price=Price.free()), tools=[delegate])
    assert [request.messages[0].text for request in provider.requests] == [f"job {n}" for n in range(10)]
    assert {each.status for each in results.values()} == {"completed"}
    assert budget.spent == Decimal("0.1")
    assert provider.most > 1


async def test_a_crowd_of_streams_that_ignore_their_caps_costs_no_more_than_the_budget_and_a_delta_each(
    autojump_clock: object,
) -> None:
    provider, results, order = Taxi(seconds=0.01), dict[int, Any](), list[int]()
    delegate, calls = ten(lambda n: streamed(f"job {n}", provider=provider, max_output_tokens=1500), results, order)
    with Budget(1) as budget:
        await run("go", provider=scripted(calls, "done", price=Price.free()), tools=[delegate])
    assert provider.most == 6
    assert provider.produced * TICK <= budget.limit + 10 * TICK
    assert budget.reserved == 0
    for each in results.values():
        check_cut(each)


# --- Retries and fallbacks.


def busy(seconds: float = 1) -> Any:
    return error(RateLimited("slow down", status=429, retryable=True, retry_after=seconds))


async def test_each_attempt_is_reserved_and_settled_on_its_own(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)

    def failing(request: Request) -> Any:
        note(held, budget, request)
        return busy()

    provider = scripted(failing, failing, functools.partial(note, held, budget), price=DEAR, usage=Usage(1000, 10))
    with budget:
        result = await run(PROMPT, provider=provider, max_output_tokens=100)
    assert held == [Decimal("1.6")] * 3
    assert (result.usage, *standing(budget)) == (Usage(1000, 10), Decimal("1.01"), 0)


async def test_nothing_is_held_while_a_retry_waits(autojump_clock: object) -> None:
    budget, held = Budget(100), list[Decimal]()

    def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, Retry):
            held.append(budget.reserved)

    with budget:
        await run("go", provider=scripted(busy(), busy(), "ok"), on_event=listen)
    assert held == [0, 0]


async def test_an_attempt_that_failed_half_way_is_paid_for_and_so_is_the_next(autojump_clock: object) -> None:
    """A timeout before any content is tried again; the first one's prompt was read."""
    timeout = error(ProviderTimeout("silence", retryable=True))
    provider = scripted(timeout, text("ok", usage=Usage(1000, 10)), price=DEAR)
    with Budget(100) as budget:
        result = await run(PROMPT, provider=provider, retry_backoff=0)
    assert result.usage == Usage(2000, 10, estimated=True)
    assert budget.spent == Decimal("2.01") == (result.cost_cents or 0) / 100


async def test_metering_is_inside_retry_and_fallback(autojump_clock: object) -> None:
    """Each provider at its own price, each attempt for itself."""
    first = scripted(busy(), error(ProviderTimeout("silence", retryable=True)), price=DEAR, name="first")
    second = scripted(busy(), text("ok", usage=Usage(10, 20)), price=BY_THE_TICK, name="second")
    with Budget(100) as budget:
        result = await run(PROMPT, provider=first, fallback_providers=[second], max_retries=1)
    assert (result.status, result.messages[-1].provider) == ("completed", "second")
    assert budget.spent == 1 + 20 * TICK
    assert len(first.requests) == len(second.requests) == 2


async def test_a_retry_for_which_there_is_no_money_is_not_made(autojump_clock: object) -> None:
    timeout = error(ProviderTimeout("silence", retryable=True))
    provider = scripted(timeout, "never", price=DEAR)
    with Budget(2):
        result = await run(PROMPT, provider=provider, max_output_tokens=100)
    check_cut(result)
    assert (len(provider.requests), result.usage.input_tokens) == (1, 1000)


async def test_a_cut_is_not_retried_and_falls_back_to_nobody(autojump_clock: object) -> None:
    provider, other = Taxi(), Taxi(1)
    result = await streamed(provider=provider, fallback_providers=[other], max_budget_cents=20)
    check_cut(result)
    assert (len(provider.requests), other.requests) == (1, [])


# --- One Trio run at a time.


def test_a_budget_opened_outside_is_kept_inside() -> None:
    provider = Taxi(800)
    with Budget("0.2") as budget:
        assert run_sync("go", provider=provider, max_output_tokens=1100).status == "completed"
        assert run_sync("go", provider=provider, max_output_tokens=1100).status == "completed"
        assert run_sync("go", provider=provider, max_output_tokens=1100).status == "budget_exceeded"
    assert budget.spent == Decimal("0.16")


def test_a_budget_may_be_used_again_in_a_later_trio_run() -> None:
    budget = Budget(1)

    async def main() -> None:
        with budget:
            await run("go", provider=Taxi(800))

    trio.run(main)
    trio.run(main)
    assert standing(budget) == (Decimal("0.16"), 0)


def test_a_budget_in_two_trio_runs_at_once_is_refused() -> None:
    budget, inside, leave = Budget(1), threading.Event(), threading.Event()

    class Waiting(Taxi):
        async def _drive(self, request: Request, emit: Emit | None) -> Response:
            inside.set()
            await trio.to_thread.run_sync(leave.wait)
            return await super()._drive(request, emit)

    def other() -> None:
        with budget:
            run_sync("go", provider=Waiting(100))

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert inside.wait(10)
        with budget, pytest.raises(InvalidOption, match="another Trio run"):
            run_sync("go", provider=Taxi(1))
    finally:
        leave.set()
        thread.join(10)
    assert standing(budget) == (Decimal("0.01"), 0)
    with budget:
        assert run_sync("go", provider=Taxi(1)).status == "completed"


async def test_a_deadline_around_a_run_under_a_budget_is_the_callers_own(autojump_clock: object) -> None:
    with Budget(1) as budget, pytest.raises(trio.TooSlowError):
        with trio.fail_after(3):
            await streamed(provider=Taxi(seconds=0.01))
    assert standing(budget) == (pytest.approx(Decimal("0.0375"), abs=TICK * 3), 0)


async def test_a_buffered_run_keeps_the_text_that_its_budget_has_cut(autojump_clock: object) -> None:
    """A provider that may ignore its cap is asked to stream under a budget, though nobody listens: else nothing could stop it."""
    provider, seen = Taxi(5000), list[Envelope]()
    result = await run("go", provider=provider, max_budget_cents=20, on_event=seen.append)
    check_cut(result)
    assert result.text == "word" * 2001
    assert result.messages[-1].interrupted
    assert (result.cost_cents, result.overrun_cents) == (Decimal("20.01"), Decimal("0.01"))
    assert not [each for each in seen if isinstance(each.event, TextDelta)]


async def test_why_there_was_no_money_is_said(autojump_clock: object) -> None:
    result = await run("go", provider=Taxi(), max_budget_cents=1)
    assert "1024 tokens" in result.metadata["budget_exceeded"]
    assert "$0.010000 is left" in result.metadata["budget_exceeded"]


async def test_who_waits_for_an_inner_budget_is_in_nobody_s_way(autojump_clock: object) -> None:
    """There is plenty in the outer one: others are asked, and streams go on past their cap, as if nobody waited."""
    ended: dict[str, float] = {}

    async def one(name: str, provider: Taxi, budget: Budget | None, **options: Any) -> None:
        with budget or contextlib.nullcontext():
            assert (await streamed(provider=provider, **options)).status == "completed"
        ended[name] = trio.current_time()

    inner = Budget("0.20")
    with Budget(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "holder", Taxi(1, seconds=100), inner)
            await trio.sleep(1)
            nursery.start_soon(one, "waiter", Taxi(1), inner)
            await trio.sleep(1)
            nursery.start_soon(one, "outside", Taxi(1), None)
            nursery.start_soon(functools.partial(one, max_output_tokens=1100), "past its cap", Taxi(2000), None)
    assert ended == {"holder": 100.0, "waiter": 100.0, "outside": 2.0, "past its cap": 2.0}


@pytest.mark.parametrize("usage", [Usage(-1, 5), Usage(0, -1000), Usage(1.5, 3), Usage(None, 3)], ids=str)  # type: ignore[arg-type]
async def test_usage_that_cannot_be_is_refused_and_nothing_stays_reserved(usage: Usage, autojump_clock: object) -> None:
    with Budget(1) as budget, pytest.raises(WireError, match="whole numbers"):
        await run("go", provider=scripted("x", usage=usage), max_retries=0)
    assert budget.reserved == 0
    assert budget.spent >= 0


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_report_of_the_prompt_alone_does_not_give_the_answer_away(
    streaming: bool, autojump_clock: object
) -> None:
    provider = scripted("word" * 1000, usage=Usage(input_tokens=7))
    result = await (streamed(provider=provider) if streaming else run("go", provider=provider))
    assert result.usage.estimated
    assert result.usage.output_tokens >= 1000
    assert result.cost_cents is not None
    assert result.cost_cents >= 10


async def test_a_provider_that_emits_from_two_tasks_is_blocked_until_both_go_on(autojump_clock: object) -> None:
    class Twofold(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(emit, TextDelta("a"))
                nursery.start_soon(emit, TextDelta("b"))
            return Response(message=Message.assistant("ab"), usage=Usage(0, 2))

    with Budget("0.15"), trio.fail_after(10):
        async with stream("go", provider=Twofold(), max_output_tokens=1024) as events:
            inner = None
            async for event in events:
                if isinstance(event, TextDelta) and inner is None:  # the other one is still to be taken
                    inner = await run("inner", provider=Taxi(1))
        assert inner is not None
        assert inner.status == "budget_exceeded"


async def test_a_wait_that_was_given_up_is_no_reason_for_a_later_timeout(autojump_clock: object) -> None:
    class Impatient(Middleware):
        async def before_completion(self, state: RunState) -> None:
            with trio.move_on_after(1):
                await state.ask(Request(messages=state.messages, max_output_tokens=1400))

    @tool
    async def slow() -> None:
        """Take long."""
        await trio.sleep(60)

    with Budget("0.20"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(run, "go", provider=Taxi(1, seconds=500), max_output_tokens=1200))
            await trio.sleep(0.1)
            with pytest.raises(RunTimeout):
                await run(
                    "go",
                    provider=scripted(tool_call("slow")),
                    tools=[slow],
                    middleware=[Impatient()],
                    max_output_tokens=100,
                    timeout=20,
                )


async def test_a_provider_whose_cleanup_fails_when_it_is_cut_was_cut_all_the_same(autojump_clock: object) -> None:
    class Clumsy(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            try:
                return await super().stream(request, emit)
            finally:
                raise ConnectionFailed("it broke while it was closed", retryable=True)

    result = await streamed(provider=Clumsy(5000), max_budget_cents=20)
    check_cut(result)
    assert result.text == "word" * 2001


async def test_an_error_out_of_a_nursery_of_the_provider_s_own_is_retried_too(autojump_clock: object) -> None:
    class Grouped(Taxi):
        async def _drive(self, request: Request, emit: Emit | None) -> Response:
            if request.attempt < 3:
                raise ExceptionGroup("from a nursery", [RateLimited("slow down", status=429, retryable=True)])
            return await super()._drive(request, emit)

    result = await run("go", provider=Grouped(1))
    assert (result.text, result.usage) == ("word", Usage(0, 1))
