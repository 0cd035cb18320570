"""Money that cannot be overspent: what is reserved, granted, cut and settled, attempt by attempt."""

from __future__ import annotations

import contextlib
import functools
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import attrs
import pytest
import trio
import trio.testing
from rules import check_history
from taxi import BY_THE_TICK, DEAR, PROMPT, TICK, Taxi, check_cut, cost, look, note, scripted, standing, streamed

import alloy_trio
from alloy_trio import (
    BadRequest,
    Budget,
    ConnectionFailed,
    InvalidOption,
    Message,
    Overloaded,
    Price,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    RunTimeout,
    Session,
    Text,
    ToolUse,
    Usage,
    WireError,
    run,
    stream,
    tool,
)
from alloy_trio._budget import Account, BudgetExhausted, on_account
from alloy_trio._reservation import Ask, reserve
from alloy_trio.events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import Anthropic, OpenAI, Request, Response, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.testing import text, tool_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from alloy_trio import Result
    from alloy_trio.events import Envelope, Event
    from alloy_trio.providers import Emit

# --- What a budget is.


@pytest.mark.parametrize(
    ("given", "dollars"),
    [
        ({"dollars": "0.50"}, "0.5"),
        ({"dollars": 2}, "2"),
        ({"dollars": Decimal("1e-9")}, "1e-9"),
        ({"cents": 50}, "0.5"),
        ({"cents": "0.5"}, "0.005"),
        ({"cents": Decimal("0.1")}, "0.001"),
    ],
    ids=str,
)
def test_an_amount(given: dict[str, Any], dollars: str) -> None:
    budget = Budget(**given)
    assert budget.limit == budget.left == Decimal(dollars)
    assert budget.spent == budget.reserved == budget.overrun == 0


NO_AMOUNTS = [
    *(
        "0",
        0,
        "-1",
        -0.5,
        Decimal(-1),
        0.5,
        1.0,
        float("nan"),
        float("inf"),
        "NaN",
        "sNaN",
        "Infinity",
        "-inf",
        "",
        "half",
    ),
    *(True, False, [1], b"1"),
]


@pytest.mark.parametrize("amount", NO_AMOUNTS, ids=repr)
def test_what_is_no_amount(amount: Any) -> None:
    for given in ({"dollars": amount}, {"cents": amount}):
        with pytest.raises(InvalidOption):
            Budget(**given)
    assert Budget(1).limit == 1


def test_a_budget_needs_one_amount_not_two_and_not_none() -> None:
    for given in ({}, {"dollars": 1, "cents": 100}, {"dollars": None, "cents": None}):
        with pytest.raises(InvalidOption, match="one amount"):
            Budget(**given)


def test_a_float_is_told_how_to_be_written() -> None:
    with pytest.raises(InvalidOption, match=r'"0\.5"'):
        Budget(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("cents", [20, "20", Decimal("20.5")])
async def test_max_budget_cents(cents: Any, autojump_clock: object) -> None:
    result = await streamed(provider=Taxi(), max_budget_cents=cents)
    check_cut(result)
    assert result.cost_cents is not None
    assert Decimal(cents) <= result.cost_cents <= Decimal(cents) + TICK * 100


@pytest.mark.parametrize("cents", NO_AMOUNTS, ids=repr)
async def test_max_budget_cents_that_are_none_are_refused_before_anything_is_sent(
    cents: Any, autojump_clock: object
) -> None:
    provider = Taxi(1)
    with pytest.raises(InvalidOption):
        await run("go", provider=provider, max_budget_cents=cents)
    assert provider.requests == []


def test_a_budget_says_what_it_has() -> None:
    assert repr(Budget("0.50")) == "<Budget: $0 of $0.50 spent, $0 reserved>"


# --- The ledger.


def tokens(wanted: int, least: int | None = None, fixed: int = 0) -> Ask:
    return Ask(fixed=Decimal(fixed), rate=Decimal(1), wanted=wanted, least=wanted if least is None else least)


async def test_a_reservation_is_taken_from_all_budgets_and_given_back_to_all(autojump_clock: object) -> None:
    with Budget(100) as outer, Budget(10) as inner:
        held = await reserve(tokens(50, 5, fixed=2))
        assert (held.tokens, held.amount) == (8, Decimal(10))
        assert [each.reserved for each in (outer, inner)] == [10, 10]
        assert [each.left for each in (outer, inner)] == [90, 0]
        held.settle(Decimal(3))
        assert standing(outer) == standing(inner) == (3, 0)
        assert [each.left for each in (outer, inner)] == [97, 7]


async def test_what_is_asked_for_without_a_budget_is_had(autojump_clock: object) -> None:
    held = await reserve(tokens(10**9))
    assert held.tokens == 10**9
    held.settle(Decimal(10**9))


async def test_what_is_free_can_be_had_with_nothing_left(autojump_clock: object) -> None:
    with Budget(1) as budget:
        (await reserve(tokens(1))).settle(Decimal(1))
        held = await reserve(Ask(fixed=Decimal(0), rate=Decimal(0), wanted=99, least=9))
        assert (held.tokens, budget.left) == (99, Decimal(0))


@pytest.mark.parametrize(
    ("dollars", "fixed", "rate", "had"),
    [
        ("1", "0", "0.1", 10),
        ("1", "0.05", "0.1", 9),
        ("0.04", "0.05", "0.1", -1),
        ("-1", "0", "0.1", -1),
        ("9", "0", "0.1", 20),
    ],
)
def test_how_many_tokens_can_be_had_for_so_much(dollars: str, fixed: str, rate: str, had: int) -> None:
    assert Ask(fixed=Decimal(fixed), rate=Decimal(rate), wanted=20, least=1).affordable(Decimal(dollars)) == had


def test_tokens_are_never_rounded_up() -> None:
    """Not even where a quotient has more digits than a Decimal."""
    rate = Decimal("0." + "3" * 33 + "4")
    assert Ask(fixed=Decimal(0), rate=rate, wanted=100, least=1).affordable(Decimal(1)) == 2


async def test_who_waits_is_served_first_come_first_served(autojump_clock: object) -> None:
    """Nobody passes, however little they want."""
    order: list[int] = []

    async def want(number: int, wanted: int) -> None:
        held = await reserve(tokens(wanted))
        order.append(number)
        await trio.sleep(1)
        held.settle(Decimal(0))

    with Budget(10) as budget:
        async with trio.open_nursery() as nursery:
            for number, wanted in enumerate([9, 8, 1, 1, 10, 1]):
                nursery.start_soon(want, number, wanted)
                await trio.testing.wait_all_tasks_blocked()
    assert (order[0], set(order[1:4]), order[4:]) == (0, {1, 2, 3}, [4, 5])  # those in the middle at the same time
    assert budget.reserved == 0


async def test_who_comes_later_does_not_take_what_the_first_in_line_leaves(autojump_clock: object) -> None:
    served = []

    async def want(wanted: int) -> None:
        (await reserve(tokens(wanted))).settle(Decimal(0))
        served.append(wanted)

    with Budget(10):
        held = await reserve(tokens(5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(want, 6)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(want, 5)
            await trio.testing.wait_all_tasks_blocked()
            assert served == []
            held.settle(Decimal(0))
    assert served == [6, 5]


async def test_who_waits_for_another_budget_is_passed(autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        with Budget(1):
            held = await reserve(tokens(1))
            nursery.start_soon(reserve, tokens(1))
            await trio.testing.wait_all_tasks_blocked()
        with Budget(5), trio.fail_after(0):
            (await reserve(tokens(2))).settle(Decimal(0))
        held.settle(Decimal(0))


async def test_who_waits_for_a_budget_of_their_own_holds_nobody_up(autojump_clock: object) -> None:
    """Of the common one they have enough: neither who comes nor who stands behind them waits for them."""
    served = []

    async def want() -> None:
        (await reserve(tokens(10))).settle(Decimal(0))
        served.append("behind them")

    with Budget(20):
        async with trio.open_nursery() as nursery:
            outer = await reserve(tokens(10))
            with Budget(5):
                inner = await reserve(tokens(5))
                nursery.start_soon(reserve, tokens(4))
                await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0):
                (await reserve(tokens(5))).settle(Decimal(0))
            nursery.start_soon(want)
            await trio.testing.wait_all_tasks_blocked()
            outer.settle(Decimal(0))
            await trio.testing.wait_all_tasks_blocked()
            assert served == ["behind them"]
            inner.settle(Decimal(0))


async def test_waiting_is_of_no_use_when_nobody_can_give_anything_back(autojump_clock: object) -> None:
    with Budget(10), trio.fail_after(0):
        (await reserve(tokens(6))).settle(Decimal(6))
        with pytest.raises(BudgetExhausted):
            await reserve(tokens(5))


async def test_waiting_is_of_no_use_when_all_that_comes_back_would_not_be_enough(autojump_clock: object) -> None:
    with Budget(10), trio.fail_after(0):
        (await reserve(tokens(6))).settle(Decimal(6))
        held = await reserve(tokens(4))
        with pytest.raises(BudgetExhausted):
            await reserve(tokens(5))
        held.settle(Decimal(0))


async def test_who_waits_is_told_at_once_when_what_came_back_is_not_enough(autojump_clock: object) -> None:
    with Budget(10):
        held = await reserve(tokens(10))
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _() -> None:
                    with pytest.raises(BudgetExhausted):
                        await reserve(tokens(5))

                await trio.testing.wait_all_tasks_blocked()
                held.settle(Decimal(6))


async def test_a_waiter_that_is_cancelled_leaves_no_trace(autojump_clock: object) -> None:
    with Budget(10) as budget:
        held = await reserve(tokens(10))
        with trio.move_on_after(5) as scope:
            await reserve(tokens(9))
        assert scope.cancelled_caught
        held.settle(Decimal(0))
        assert standing(budget) == (0, 0)
        with trio.fail_after(0):
            (await reserve(tokens(10))).settle(Decimal(0))


async def test_a_waiter_that_is_cancelled_in_the_moment_of_its_turn_gives_it_back(autojump_clock: object) -> None:
    with Budget(10) as budget:
        held = await reserve(tokens(10))
        took = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                took.append(await reserve(tokens(9)))
                took[0].settle(Decimal(0))

            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            held.settle(Decimal(0))
        assert budget.reserved == 0
        with trio.fail_after(0):
            (await reserve(tokens(10))).settle(Decimal(0))


async def test_one_who_goes_lets_the_next_have_their_turn(autojump_clock: object) -> None:
    """The first in line wants all there is; when it is cancelled, the second need not wait for anybody."""
    with Budget(10):
        held = await reserve(tokens(5))
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                first = trio.CancelScope()

                @nursery.start_soon
                async def _() -> None:
                    with first:
                        await reserve(tokens(10))

                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(reserve, tokens(5))
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
        held.settle(Decimal(0))


async def test_a_holder_that_nobody_listens_to_is_waited_for_a_moment_only(autojump_clock: object) -> None:
    with Budget(10):
        held = await reserve(tokens(10))
        with held.blocked(), trio.fail_after(1), pytest.raises(BudgetExhausted):
            await reserve(tokens(5))
        held.settle(Decimal(0))


async def test_a_listener_may_take_its_time_as_long_as_it_is_a_moment(autojump_clock: object) -> None:
    with Budget(10):
        held = await reserve(tokens(10))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                for _ in range(100):
                    with held.blocked():
                        await trio.sleep(0.2)
                await trio.sleep(10)  # nobody has to take anything
                held.settle(Decimal(0))

            await trio.testing.wait_all_tasks_blocked()
            (await reserve(tokens(5))).settle(Decimal(0))


async def test_a_holder_in_ones_own_chain_of_calls_is_not_waited_for(autojump_clock: object) -> None:
    outer, inner = Account(), Account()
    with Budget(10), on_account(outer, None):
        held = await reserve(tokens(10))
        with on_account(inner, None), trio.fail_after(0), pytest.raises(BudgetExhausted):
            await reserve(tokens(5))
        held.settle(Decimal(0))


async def test_who_is_a_part_of_a_holder_passes_those_who_wait_for_it(autojump_clock: object) -> None:
    """Else they would wait for the holder, the holder for its part, and the part for them."""
    outer, inner = Account(), Account()
    with Budget(10):
        async with trio.open_nursery() as nursery:
            with on_account(outer, None):
                held = await reserve(tokens(5))
                await _in_a_context_of_its_own(nursery, reserve, tokens(10))
                with on_account(inner, None), trio.fail_after(0):
                    (await reserve(tokens(5))).settle(Decimal(0))
            held.settle(Decimal(0))


async def _in_a_context_of_its_own(nursery: trio.Nursery, fn: Callable[..., Awaitable[object]], *args: object) -> None:
    """Start a task that is a part of no run, under the same budgets."""
    from alloy_trio import _budget

    async def apart() -> None:
        _budget._around.set(attrs.evolve(_budget._around.get(), account=None))
        await fn(*args)

    nursery.start_soon(apart)
    await trio.testing.wait_all_tasks_blocked()


async def test_more_of_the_fixed_part_leaves_less_of_the_answer(autojump_clock: object) -> None:
    """What has become known is paid for before what is still to come: the limit holds."""
    with Budget(100) as budget:
        held = await reserve(tokens(50, fixed=20))
        held.correct(tokens(50, fixed=5))
        assert (held.tokens, budget.reserved) == (50, Decimal(55))
        held.correct(tokens(50, fixed=40))
        assert (held.tokens, budget.reserved) == (50, Decimal(90))
        held.correct(tokens(50, fixed=70))
        assert (held.tokens, budget.reserved) == (30, Decimal(100))
        held.correct(tokens(30, fixed=120))
        assert (held.tokens, budget.reserved, budget.left) == (0, Decimal(120), Decimal(0))
        held.settle(Decimal(120))
        assert (budget.reserved, budget.overrun) == (Decimal(0), Decimal(20))


async def test_a_holder_can_get_more_unless_others_wait_for_it(autojump_clock: object) -> None:
    with Budget(10) as budget:
        held = await reserve(tokens(4))
        assert held.extend(2, Decimal(2))
        assert (held.tokens, budget.reserved) == (6, Decimal(6))
        assert not held.extend(5, Decimal(5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reserve, tokens(8))
            await trio.testing.wait_all_tasks_blocked()
            assert not held.extend(1, Decimal(1))
            held.settle(Decimal(0))


async def test_who_has_had_their_turn_waits_no_more(autojump_clock: object) -> None:
    """In the step in which somebody is served, a third need not stand back for them."""
    with Budget(20):
        first, second = await reserve(tokens(10)), await reserve(tokens(7))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reserve, tokens(10))
            await trio.testing.wait_all_tasks_blocked()
            first.settle(Decimal(0))
            assert second.extend(1, Decimal(1))
        second.settle(Decimal(0))


# --- One long stream.


@pytest.mark.parametrize("word", ["x", "word", "quite a long piece of text "])
@pytest.mark.parametrize("reports", ["end", "each", "never"])
async def test_one_long_stream_that_ignores_its_cap_costs_no_more_than_the_budget_and_one_delta(
    word: str, reports: Literal["end", "each", "never"], autojump_clock: object
) -> None:
    provider = Taxi(word=word, reports=reports)
    with Budget("0.2") as budget:
        result = await streamed(provider=provider)
    check_cut(result)
    assert provider.produced * TICK <= budget.limit + TICK
    assert budget.reserved == 0
    assert result.messages[-1].interrupted
    assert result.messages[-1].text == (word * provider.produced).rstrip()
    assert result.turns == 0
    assert result.estimated
    assert result.cost_cents == budget.spent * 100
    assert result.overrun_cents == budget.overrun * 100


@pytest.mark.parametrize("reports", ["end", "each", "never"])
async def test_it_costs_all_of_the_budget_too(reports: Literal["end", "each", "never"], autojump_clock: object) -> None:
    """A word of four bytes is what is thought to be a token: the cut is to the word."""
    provider = Taxi(reports=reports)
    result = await streamed(provider=provider, max_budget_cents=20)
    assert provider.produced == 2001
    assert (result.cost_cents, result.overrun_cents) == (Decimal("20.01"), Decimal("0.01"))


async def test_the_cap_that_is_ignored_does_not_matter_while_there_is_money(autojump_clock: object) -> None:
    provider = Taxi(30_000)
    result = await streamed(provider=provider, max_budget_cents=400)
    assert (result.status, result.stop_reason, provider.caps) == ("completed", "end_turn", [8192])
    assert result.cost_cents == 300
    assert not result.estimated


async def test_a_stream_is_cut_in_the_middle_of_a_batch(autojump_clock: object) -> None:
    """What one read brought is handed over up to the delta that was too much."""

    class Burst(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            await emit(*(TextDelta("word") for _ in range(10**4)))
            raise AssertionError

    seen: list[Event] = []
    result = await streamed_into(seen, provider=Burst(), max_budget_cents=20)
    check_cut(result)
    assert sum(isinstance(event, TextDelta) for event in seen) == 2001
    assert result.messages[-1].text == "word" * 2001


async def streamed_into(seen: list[Any], **options: Any) -> Result:
    async with stream("go", **options) as events:
        seen.extend([event async for event in events])
    return events.result


async def test_a_report_behind_the_cut_is_what_it_has_cost(autojump_clock: object) -> None:
    class Burst(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            await emit(*(TextDelta("word") for _ in range(10**4)), UsageUpdate(Usage(0, 7000)))
            raise AssertionError

    result = await streamed(provider=Burst(), max_budget_cents=20)
    check_cut(result)
    assert (result.usage.output_tokens, result.overrun_cents) == (7000, Decimal(50))


@pytest.mark.parametrize(
    "pieces",
    [
        [ThinkingDelta("word")],
        [ToolInputDelta("1", "look", "word")],
        [BlockEnd(Text("word" * 100))],
        [TextDelta("word" * 10), ThinkingDelta("word"), ToolInputDelta("1", "look", "{")],
    ],
    ids=["thinking", "arguments", "in-one-piece", "all"],
)
async def test_everything_that_comes_is_counted(pieces: list[Any], autojump_clock: object) -> None:
    class Mixed(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            for _ in range(10**5):
                await emit(*pieces)
            raise AssertionError

    result = await streamed(provider=Mixed(), max_budget_cents=20)
    check_cut(result)
    assert 2000 <= result.usage.output_tokens <= 2110


async def test_what_came_in_deltas_is_not_counted_again_at_its_end(autojump_clock: object) -> None:
    """Two calls at once, as on the chat wire: all deltas first, then all ends; and text behind reasoning."""

    class Parallel(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            arguments = '{"what": "' + "w" * 2000 + '"}'
            await emit(ThinkingDelta("t" * 2000), TextDelta("t" * 2000))
            for number in "12":
                await emit(ToolInputDelta(number, "look", arguments))
            await emit(BlockEnd(message.content[0]), BlockEnd(message.content[1]))
            await emit(BlockEnd(message.content[2]), BlockEnd(message.content[3]))
            return Response(message=message)

    call = ToolUse("1", "look", {"what": "w" * 2000})
    thinking = alloy_trio.Thinking("t" * 2000, provider_data={"field": "reasoning"})
    message = Message.assistant(thinking, Text("t" * 2000), call, attrs.evolve(call, id="2"))
    result = await streamed(provider=Parallel(price=BY_THE_TICK), max_turns=1)
    assert 2500 <= result.usage.output_tokens <= 2550  # 1.25 times four times 500


async def test_thirty_turns_together_cost_no_more_than_the_budget_and_one_delta(autojump_clock: object) -> None:
    class Loop(Taxi):
        async def _drive(self, request: Request, emit: Emit | None) -> Response:
            response = await super()._drive(request, emit)
            call = ToolUse(f"c{len(self.requests)}", "look", {})
            return attrs.evolve(
                response, message=Message.assistant(*response.message.content, call), stop_reason="tool_use"
            )

    provider = Loop(1500)
    with Budget(1) as budget:
        result = await streamed(provider=provider, tools=[look], max_turns=30)
    check_cut(result)
    assert result.turns == 6
    assert provider.produced * TICK <= budget.limit
    assert provider.caps == [8192, 8192, 7000, 5500, 4000, 2500]  # then 1,000 are left, less than is worth asking for
    assert budget.reserved == 0


# --- The cap: asked, granted, useful.


@pytest.mark.parametrize(
    ("budget", "asked", "terms", "granted"),
    [
        (None, None, Terms(), None),
        (None, 77, Terms(), 77),
        ("1", None, Terms(), 8192),
        ("1", 9999, Terms(), 9999),
        ("1", 128_000, Terms(), 10_000),
        ("0.2", None, Terms(), 2000),
        ("0.1024", None, Terms(), 1024),
        ("0.1023", None, Terms(), "exceeded"),
        ("0.01", 100, Terms(), 100),
        ("0.0099", 100, Terms(), "exceeded"),
        ("1", None, Terms(thinking_budget=500), 8692),
        ("0.1524", None, Terms(thinking_budget=500), 1524),
        ("0.1523", None, Terms(thinking_budget=500), "exceeded"),
        ("1", 4000, Terms(thinking_budget=3500), 4000),
        ("0.39", 4000, Terms(thinking_budget=3500), "exceeded"),
    ],
)
async def test_the_cap_that_is_asked_for_and_the_one_that_is_granted(
    budget: str | None, asked: int | None, terms: Terms, granted: int | str | None, autojump_clock: object
) -> None:
    """Under a budget a request has a cap, even if nobody set one; below a useful least nothing is sent."""
    provider = Taxi(1, terms=terms)
    with contextlib.nullcontext() if budget is None else Budget(budget):
        result = await run("go", provider=provider, max_output_tokens=asked)
    if granted == "exceeded":
        check_cut(result)
        assert (provider.requests, result.turns, result.cost_cents) == ([], 0, Decimal(0))
        assert [message.text for message in result.messages] == ["go"]
    else:
        assert (result.status, provider.caps) == ("completed", [granted])


async def test_the_models_own_limit_is_asked_for_where_it_is_lower(autojump_clock: object) -> None:
    provider = Taxi(1)
    with Budget(1):
        await run(
            "go", provider=provider, model_metadata_overrides={"taxi": {"limit": 9999, "max_output_tokens": 2048}}
        )
    assert provider.caps == [2048]


@pytest.mark.parametrize(
    ("cents", "asked", "status"),
    [(20, None, "budget_exceeded"), (20, 5000, "budget_exceeded"), (20, 2000, "completed"), (20, 1500, "completed")],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_loop_10_a_stop_at_the_cap(
    autojump_clock: object, *, cents: int, asked: int | None, status: str, streaming: bool
) -> None:
    """At the user's own cap it is a stop reason, at one that the budget had lowered it is the budget's end."""
    provider = Taxi(9000, heeds_cap=True, terms=Terms(enforces_cap=True))
    result = await (streamed if streaming else run)(
        "go", provider=provider, max_budget_cents=cents, max_output_tokens=asked
    )
    length = min(asked or 2000, 2000)
    assert (result.status, result.stop_reason, result.turns) == (status, "max_tokens", 1)
    assert result.text == "word" * length
    assert not result.messages[-1].interrupted
    assert (result.usage, result.cost_cents) == (Usage(0, length), length * TICK * 100)
    check_history(result.messages)


async def test_a_stop_below_the_lowered_cap_was_at_the_users_own(autojump_clock: object) -> None:
    """`extra_body` may set a lower one, of which nothing is known here."""
    provider = scripted(text("short", stop_reason="max_tokens", usage=Usage(0, 300)))
    result = await run("go", provider=provider, max_budget_cents=20)
    assert (result.status, result.stop_reason) == ("completed", "max_tokens")


async def test_a_stop_at_the_lowered_cap_without_a_report_is_the_budgets(autojump_clock: object) -> None:
    provider = scripted(text("short", stop_reason="max_tokens", usage=Usage()))
    result = await run("go", provider=provider, max_budget_cents=20)
    assert (result.status, result.text, result.estimated) == ("budget_exceeded", "short", True)


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_loop_10_a_tool_call_inside_an_answer_that_the_budget_has_cut_is_not_run(
    autojump_clock: object, *, streaming: bool
) -> None:
    ran = []

    @tool
    async def act() -> str:
        """Act."""
        ran.append(1)
        return "done"

    reply = [
        text("I shall"),
        tool_call("act", id="1"),
        tool_call("act", id="2", stop_reason="max_tokens", usage=Usage(0, 2000)),
    ]
    ask = streamed if streaming else run
    result = await ask("go", provider=scripted(reply), tools=[act], max_budget_cents=20)
    check_cut(result)
    assert (ran, result.turns, result.stop_reason) == ([], 1, "max_tokens")
    assert [(each.is_error, "budget" in each.text) for each in result.messages[-1].tool_results] == [(True, True)] * 2


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
@pytest.mark.parametrize(("own", "sent"), [(None, 2000), (300, 300), (9000, 2000)])
async def test_the_granted_cap_is_what_is_sent(
    provider: str, own: int | None, sent: int, autojump_clock: object
) -> None:
    """Over whatever `extra_body` says, unless that is lower."""
    import json

    import httpx

    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(400, json={"error": {"message": "no"}})

    cap = {"anthropic": "max_tokens", "openai": "max_output_tokens"}[provider]
    kind: Any = {"anthropic": Anthropic, "openai": OpenAI}[provider]
    extra = {} if own is None else {cap: own}
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        asked = kind(model="m", api_key="k", price=BY_THE_TICK, http_client=client, extra_body=extra)
        with pytest.raises(BadRequest) as raised, Budget("0.2") as budget:
            await run("go", provider=asked)
    assert [body[cap] for body in bodies] == [sent]
    assert standing(budget) == (0, 0)
    assert raised.value.result is not None
    assert (raised.value.result.usage, raised.value.result.cost_cents) == (Usage(), Decimal(0))


# --- A stream cut where the provider enforces the cap.


@pytest.mark.parametrize("reports", ["each", "never"])
async def test_where_the_provider_enforces_the_cap_the_cut_is_a_backstop_at_a_quarter_more(
    reports: Literal["each", "never"], autojump_clock: object
) -> None:
    """Bytes are an estimate, and it stops by itself; one that does not is cut all the same."""
    provider = Taxi(terms=Terms(enforces_cap=True), reports=reports)
    result = await streamed(provider=provider, max_budget_cents=20)
    check_cut(result)
    assert provider.caps == [2000]
    assert provider.produced == 2501
    assert result.overrun_cents == Decimal("5.01")


async def test_what_prompts_have_taught_does_not_make_an_answer_longer(autojump_clock: object) -> None:
    """A prompt may have eight bytes a token, and the answer to it four."""

    class TenAtOnce(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            while self.produced < 10**5:
                self.produced += 10
                await emit(TextDelta("word" * 10))
            raise AssertionError

    prompt, provider = "p" * 20_000, TenAtOnce()
    with Budget("0.2") as budget:
        for _ in range(3):
            teacher = scripted(text("ok", usage=Usage(2600, 1)), name="taxi", model="taxi")
            await run(prompt, provider=teacher, max_output_tokens=1)
        check_cut(await streamed(prompt, provider=provider))
    assert provider.produced * TICK <= budget.limit + 10 * TICK


async def test_a_provider_that_stops_at_its_cap_is_not_cut_because_its_words_are_long(autojump_clock: object) -> None:
    provider = Taxi(1900, word="words", terms=Terms(enforces_cap=True))  # 2,375 by their bytes
    result = await streamed(provider=provider, max_budget_cents=20)
    assert (result.status, result.cost_cents) == ("completed", Decimal(19))


async def test_a_provider_that_stops_at_its_cap_may_send_letter_by_letter(autojump_clock: object) -> None:
    """Its deltas are no measure: gateways cut them up."""
    provider = Taxi(6000, word="w", terms=Terms(enforces_cap=True), reports="never")
    result = await streamed(provider=provider, max_budget_cents=20)
    assert (result.status, result.text) == ("completed", "w" * 6000)


# --- What is held, and when.


async def test_input_is_reserved_with_a_margin_and_corrected_by_the_first_report(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)

    class Reports(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            held.append(budget.reserved)
            await emit(UsageUpdate(Usage(input_tokens=400)))
            held.append(budget.reserved)
            await emit(UsageUpdate(Usage(input_tokens=4000, output_tokens=1)))
            held.append(budget.reserved)
            return Response(message=Message.assistant("ok"), usage=Usage(4000, 1))

    with budget:
        await streamed(PROMPT, provider=Reports(price=DEAR), max_output_tokens=2000)
    assert held == [Decimal("3.5"), Decimal("2.4"), Decimal(6)]  # 1,000 tokens by their bytes, half as much again
    assert standing(budget) == (Decimal("4.001"), 0)


async def test_what_a_report_frees_is_for_those_who_wait(autojump_clock: object) -> None:
    at: list[float] = []

    class Reports(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            await trio.sleep(10)
            await emit(UsageUpdate(Usage(input_tokens=100)))
            await trio.sleep(90)
            return Response(message=Message.assistant("ok"), usage=Usage(100, 1))

    async def later() -> None:
        await trio.sleep(1)
        await run("p", provider=Taxi(0, price=DEAR), max_output_tokens=1000)
        at.append(trio.current_time())

    start = trio.current_time()
    with Budget(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            await streamed(PROMPT, provider=Reports(price=DEAR), max_output_tokens=1000)
    assert [time - start for time in at] == [10]


async def test_a_prompt_larger_than_thought_leaves_less_of_the_answer(autojump_clock: object) -> None:
    """From the first report on nothing goes over the limit, though the provider was told a higher cap."""

    class Reports(Taxi):
        async def stream(self, request: Request, emit: Emit) -> Response:
            await emit(UsageUpdate(Usage(input_tokens=3000)))
            for _ in range(2000):
                self.produced += 1
                await emit(TextDelta("word"))
            raise AssertionError

    for terms in (Terms(), Terms(enforces_cap=True)):
        provider = Reports(price=DEAR, terms=terms)
        with Budget(4) as budget:
            result = await streamed(PROMPT, provider=provider, max_output_tokens=2000)
        check_cut(result)
        assert provider.produced == 1001
        assert result.overrun_cents == Decimal("0.1") == budget.overrun * 100


async def test_after_a_report_the_next_prompt_is_reserved_with_a_smaller_margin(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)
    reply = functools.partial(note, held, budget)
    provider = scripted(reply, reply, price=DEAR, usage=Usage(3000, 1))
    with budget:  # the answer is a tenth of a dollar of what is held
        await run(PROMPT * 3, provider=provider, max_output_tokens=100)
        await run(PROMPT * 3, provider=provider, max_output_tokens=100)
    first, second = (amount - Decimal("0.1") for amount in held)
    assert first == pytest.approx(Decimal("4.5"), rel=Decimal("0.01"))
    assert second == pytest.approx(Decimal("3.3"), rel=Decimal("0.02"))


@pytest.mark.parametrize("usage", [Usage(), Usage(4000, 1, estimated=True)], ids=["ours", "the-providers-own"])
async def test_nothing_is_learned_from_an_estimate(usage: Usage, autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)
    reply = functools.partial(note, held, budget)
    with budget:
        for _ in range(2):
            await run(PROMPT * 4, provider=scripted(reply, price=DEAR, usage=usage), max_output_tokens=100)
    assert held[0] == held[1] > 6


async def test_a_prompt_that_may_be_written_into_a_cache_is_reserved_at_that_price(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)
    price = Price("1000", "1000", "100", "1250", cache_write_1h="2000")
    for terms in (Terms(), Terms(caches=True)):
        with budget:
            provider = scripted(functools.partial(note, held, budget), price=price, terms=terms)
            await run(PROMPT, provider=provider, max_output_tokens=1000)
    assert held == [Decimal("2.5"), Decimal(4)]


async def test_a_large_prompt_is_reserved_at_the_price_of_its_tier(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(100)
    price = attrs.evolve(DEAR, tiers=[(1500, Price("2000", "3000"))])
    with budget:
        provider = scripted(functools.partial(note, held, budget), price=price)
        await run(PROMPT, provider=provider, max_output_tokens=1000)
    assert held == [6]


async def test_tools_instructions_and_media_are_a_part_of_the_prompt(autojump_clock: object) -> None:
    held: list[Decimal] = []
    budget = Budget(1000)
    picture = alloy_trio.Image("image/png", data=b"x")
    with budget:
        for options in ({}, {"system_prompt": "s" * 4000}, {"tools": [look]}, {"messages": [Message.user(picture)]}):
            provider = scripted(functools.partial(note, held, budget), price=DEAR)
            await run("go", provider=provider, max_output_tokens=1, **options)
    plain, instructed, tooled, pictured = held
    assert instructed - plain == Decimal("1.5")
    assert tooled > plain
    assert pictured - plain >= Decimal("4.5")


# --- What an attempt without a report has cost.


def begins(*pieces: Any) -> Any:
    """A provider that does what the pieces say: hands events over, raises, waits."""

    class Begins(Taxi):
        async def complete(self, request: Request) -> Response:
            return await self.stream(request, _nobody)

        async def stream(self, request: Request, emit: Emit) -> Response:
            self.requests.append(request)
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, float):
                    await trio.sleep(piece)
                else:
                    await emit(piece)
            return Response(message=Message.assistant("done"), usage=Usage(1, 1))

    return Begins


async def _nobody(*_: object) -> None:
    pass


def nowhere() -> ConnectionFailed:
    failure = ConnectionFailed("nobody there")
    failure.nothing_sent = True
    return failure


HALF = TextDelta("word" * 100)
NOTHING, INPUT, SOME, ALL = Usage(), Usage(1000, 0), Usage(1000, 125), Usage(1500, 2000)


SETTLED = {
    "rate-limited": ([RateLimited("slow down", status=429)], NOTHING, NOTHING),
    "rate-limited-by-a-provider-of-ones-own": ([RateLimited("slow down")], NOTHING, NOTHING),
    "overloaded": ([Overloaded("full", status=529)], NOTHING, NOTHING),
    "server-error": ([ProviderError("broken", status=500)], NOTHING, NOTHING),
    "bad-request": ([BadRequest("no", status=400)], NOTHING, NOTHING),
    "gateway-timeout": ([ProviderTimeout("gateway", status=504)], NOTHING, NOTHING),
    "nobody-there": ([nowhere()], NOTHING, NOTHING),
    "never-sent": ([InvalidOption("not like this")], NOTHING, NOTHING),
    "broke": ([ConnectionFailed("broke")], INPUT, ALL),
    "silence": ([ProviderTimeout("silence")], INPUT, ALL),
    "noise": ([WireError("noise")], INPUT, ALL),
    "error-at-once": ([ProviderError("in the stream")], INPUT, INPUT),
    "error-in-mid-stream": ([HALF, ProviderError("in the stream")], SOME, SOME),
    "rate-limited-in-mid-stream": ([HALF, RateLimited("in the stream")], SOME, SOME),
    "overloaded-in-mid-stream": ([HALF, Overloaded("in the stream")], SOME, SOME),
    "stalled": ([HALF, ProviderTimeout("stalled")], SOME, ALL),
    "broke-in-mid-stream": ([HALF, ConnectionFailed("broke")], SOME, ALL),
    "ended-early": ([HALF, WireError("ended early")], SOME, ALL),
    "bug": ([HALF, ValueError("a bug")], SOME, ALL),
    "cancelled": ([HALF, 1000.0], SOME, ALL),
    "cancelled-at-once": ([1000.0], INPUT, ALL),
    "input-known": ([UsageUpdate(Usage(700)), 1000.0], Usage(700), Usage(700, 2000)),
    "input-known-before": ([UsageUpdate(Usage(700, 10)), HALF, 1000.0], Usage(700, 138), Usage(700, 2000)),
    "output-known": ([HALF, UsageUpdate(Usage(700, 90)), 1000.0], Usage(700, 113), Usage(700, 2000)),
    "output-not-known": ([HALF, UsageUpdate(Usage(700)), 1000.0], Usage(700, 125), Usage(700, 2000)),
    "cache-known": (
        [UsageUpdate(Usage(700, 10, cache_read_input_tokens=50)), ProviderError("no more", status=200)],
        Usage(700, 13, cache_read_input_tokens=50),
        Usage(700, 13, cache_read_input_tokens=50),
    ),
}


@pytest.mark.parametrize(("pieces", "settled", "runs_on"), SETTLED.values(), ids=SETTLED)
async def test_what_an_attempt_without_a_report_is_settled_at(
    pieces: list[Any], settled: Usage, runs_on: Usage, autojump_clock: object
) -> None:
    """
    Nothing, if it was refused before it began; what came, and a quarter more of the answer; or all that was set aside.

    Whether it ends by an error, a deadline or a cancel.
    """
    for terms, expected in ((Terms(), settled), (Terms(enforces_cap=True), settled), (Terms(runs_on=True), runs_on)):
        provider = begins(*pieces)(price=DEAR, terms=terms)
        session = Session()
        with Budget(100) as budget, contextlib.suppress(alloy_trio.AlloyError, ValueError), trio.move_on_after(50):
            await streamed(PROMPT, provider=provider, max_output_tokens=2000, max_retries=0, session=session)
        assert session.usage == attrs.evolve(expected, estimated=expected != NOTHING)
        assert budget.spent == cost(DEAR, expected)
        assert budget.reserved == 0


@pytest.mark.parametrize("how", ["cancel", "timeout", "left", "stopped"])
@pytest.mark.parametrize("streaming", [False, True], ids=["run", "stream"])
async def test_a_run_that_was_cut_has_used_something_and_says_that_it_is_a_guess(
    autojump_clock: object, *, how: str, streaming: bool
) -> None:
    """Charged to every budget around."""
    session = Session()
    options: dict[str, Any] = {
        "provider": begins(HALF, 1000.0)(price=DEAR),
        "session": session,
        "max_output_tokens": 2000,
    }
    if how == "timeout":
        options["timeout"] = 10
    with Budget(100) as outer, Budget(50) as inner, contextlib.suppress(RunTimeout), trio.move_on_after(20) as scope:
        if not streaming:
            await run(PROMPT, **options)
        elif how in {"left", "stopped"}:
            async with stream(PROMPT, **options) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        break
                if how == "stopped":
                    events.cancel()
        else:
            await streamed(PROMPT, **options)
    assert scope.cancelled_caught == (how == "cancel" or (not streaming and how != "timeout"))
    assert session.usage == attrs.evolve(SOME, estimated=True)
    assert outer.spent == inner.spent == cost(DEAR, SOME)
    assert outer.reserved == inner.reserved == 0


@pytest.mark.parametrize("terms", [Terms(), Terms(enforces_cap=True)], ids=["cannot-stream", "keeps-to-its-cap"])
async def test_of_an_answer_that_was_to_come_in_one_piece_nobody_knows_how_far_it_had_come(
    terms: Terms, autojump_clock: object
) -> None:
    """All that was set aside for it may have been generated."""

    class Whole:
        name = model = "whole"
        price = DEAR

        async def complete(self, request: Request) -> Response:
            await trio.sleep(100)
            raise AssertionError

    provider: Any = Whole() if terms == Terms() else begins(100.0)(price=DEAR, terms=terms)
    session = Session()
    with Budget(100) as budget, trio.move_on_after(10):
        await run(PROMPT, provider=provider, session=session, max_output_tokens=2000)
    assert session.usage == attrs.evolve(ALL, estimated=True)
    assert standing(budget) == (cost(DEAR, ALL), 0)


async def test_a_run_is_cut_too(autojump_clock: object) -> None:
    """Though nobody listens: a provider that may ignore its cap is asked to stream, and none of that is handed over."""
    provider = Taxi()
    seen: list[Envelope] = []
    with Budget("0.2") as budget:
        result = await run("go", provider=provider, on_event=seen.append)
    check_cut(result)
    assert provider.produced == 2001
    assert budget.spent == budget.limit + TICK
    assert {type(envelope.event).__name__ for envelope in seen} == {"RunStart", "TurnStart", "RunEnd"}


async def test_a_run_under_a_budget_tells_what_any_run_tells(autojump_clock: object) -> None:
    told = []
    for budget in (contextlib.nullcontext(), Budget(1)):
        seen: list[Envelope] = []
        with budget:
            provider = scripted(text("hello", usage=Usage(0, 5)), price=BY_THE_TICK)
            result = await run("go", provider=provider, on_event=seen.append)
        told.append((result.messages, result.usage, result.cost_cents, [envelope.event for envelope in seen][1:]))
    assert told[0] == told[1]


async def test_what_is_added_for_safety_never_exceeds_what_was_set_aside(autojump_clock: object) -> None:
    """The cap bounds the answer: a cut shortly before it costs no more than the cap."""
    provider = begins(TextDelta("word" * 1900), 1000.0)(price=BY_THE_TICK)
    with Budget("0.2") as budget, trio.move_on_after(10):
        await streamed(provider=provider)
    assert (budget.spent, budget.overrun) == (Decimal("0.2"), Decimal(0))


async def test_without_a_budget_a_cut_stream_is_estimated_all_the_same(autojump_clock: object) -> None:
    with trio.move_on_after(10):
        async with stream(PROMPT, provider=begins(HALF, 1000.0)(price=DEAR, terms=Terms(runs_on=True))) as events:
            async for _ in events:
                pass
    result = events.result
    assert result.usage == attrs.evolve(SOME, estimated=True)
    assert result.cost_cents == cost(DEAR, SOME) * 100
    assert result.estimated


async def test_a_provider_whose_report_is_above_its_cap_is_booked_as_it_says(autojump_clock: object) -> None:
    with Budget("0.2") as budget:
        result = await run("go", provider=scripted(text("hi", usage=Usage(0, 9000))))
    assert (result.status, result.cost_cents, result.overrun_cents) == ("completed", Decimal(90), Decimal(70))
    assert (budget.spent, budget.overrun, budget.left) == (Decimal("0.9"), Decimal("0.7"), Decimal(0))


async def test_fees_that_no_cap_bounds_are_booked(autojump_clock: object) -> None:
    price = attrs.evolve(BY_THE_TICK, server_tool_call=Decimal("0.01"))
    provider = scripted(
        text("hi", usage=Usage(0, 100, server_tool_calls=30)), price=price, terms=Terms(server_tools=True)
    )
    result = await run("go", provider=provider, max_budget_cents=20)
    assert (result.cost_cents, result.overrun_cents) == (Decimal(31), Decimal(11))
