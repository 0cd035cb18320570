"""What tokens cost, what a run's usage adds up to, and what is done where nobody has counted."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from taxi import cost, scripted

from alloy_trio import Budget, InvalidOption, Message, Price, RateLimited, Text, ToolUse, Usage, run, stream, tool
from alloy_trio.events import TextDelta
from alloy_trio.providers import Anthropic, OpenAICompat, Request, Response, UsageUpdate
from alloy_trio.testing import ScriptedProvider, error, text, tool_call

if TYPE_CHECKING:
    from alloy_trio.providers import Emit

SONNET = Price("3", "15")
EVERY_FIELD = Usage(1, 2, 4, 3, 5, 1, 7)


@tool
async def look() -> str:
    """Look."""
    return "seen"


# --- The arithmetic.


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "cents"),
    [
        (1_000_000, 1_000_000, "1800"),
        (100_000, 50_000, "105"),
        (1_000, 0, "0.3"),
        (0, 500, "0.75"),
        (1, 0, "0.0003"),
        (0, 0, "0"),
    ],
    ids=["use-01-a-million-each", "use-01-thousands", "use-02-input", "use-02-output", "use-02-one-token", "use-03"],
)
def test_cost_in_cents(input_tokens: int, output_tokens: int, cents: str) -> None:
    """Exact to the last digit: nothing is rounded, and nothing is cut off."""
    cost = SONNET.cost(Usage(input_tokens, output_tokens))
    assert cost is not None
    assert cost * 100 == Decimal(cents)


def test_use_03_pricing_changes_nothing_and_never_adds_up() -> None:
    usage = attrs.evolve(EVERY_FIELD)
    price = Price("3", "15", server_tool_call="0.01")
    assert price.cost(usage) == price.cost(usage)
    assert usage == EVERY_FIELD


def test_use_04_a_sum_adds_every_field() -> None:
    assert Usage(2, 4, 8, 6, 10, 2, 14) == EVERY_FIELD + EVERY_FIELD
    assert (EVERY_FIELD + Usage(estimated=True)).estimated
    assert (Usage(estimated=True) + EVERY_FIELD).estimated
    assert not (EVERY_FIELD + EVERY_FIELD).estimated


@pytest.mark.parametrize(
    ("price", "usage", "dollars"),
    [
        (Price("3", "15", "0.3", "3.75"), Usage(cache_read_input_tokens=1000), "0.0003"),
        (Price("3", "15", "0.3", "3.75"), Usage(cache_creation_input_tokens=1000), "0.00375"),
        (Price("3", "15"), Usage(cache_read_input_tokens=1000, cache_creation_input_tokens=1000), "0.006"),
        (Price("3", "15", "0.3", "3.75", cache_write_1h="6"), Usage(0, 0, 1000, 400), "0.00465"),
        (Price("3", "15", "0.3", "3.75"), Usage(0, 0, 1000, 1000), "0.006"),  # 1.6 times 3.75
        (Price("3", "15"), Usage(0, 0, 1000, 1000), "0.003"),
        (Price("3", "15", cache_write_1h="6"), Usage(0, 0, 1000, 1000), "0.006"),
        (Price("3", "15", server_tool_call="0.01"), Usage(1000, 0, server_tool_calls=2), "0.023"),
        (Price.free(), attrs.evolve(EVERY_FIELD), "0"),
    ],
    ids=["read", "write", "no-own-rates", "both-writes", "hour", "hour-no-rates", "hour-only", "fee", "free"],
)
def test_what_else_is_billed(price: Price, usage: Usage, dollars: str) -> None:
    assert price.cost(usage) == Decimal(dollars)


def test_a_fee_that_is_not_known_makes_the_cost_unknown() -> None:
    assert SONNET.cost(Usage(1000, 0, server_tool_calls=1)) is None


@pytest.mark.parametrize(
    ("prompt", "dollars"),
    [(Usage(199_999), "0.599997"), (Usage(200_000), "1.2"), (Usage(100_000, 0, 50_000, 0, 50_000), "1.2")],
)
def test_a_large_prompt_is_billed_at_its_tier_as_a_whole(prompt: Usage, dollars: str) -> None:
    price = Price("3", "15", tiers=[(400_000, Price("9", "45")), (200_000, Price("6", "22.5"))])
    assert price.cost(prompt) == Decimal(dollars)
    assert price.cost(Usage(400_000, 1_000_000)) == Decimal("48.6")


@given(st.lists(st.builds(Usage, *[st.integers(0, 10**6)] * 3, st.just(0), st.integers(0, 10**6))))
def test_without_tiers_the_cost_of_a_sum_is_the_sum_of_the_costs(usages: list[Usage]) -> None:
    price = Price("1.25", "10", "0.125", "1.5625")
    costs = [cost for usage in usages if (cost := price.cost(usage)) is not None]
    assert price.cost(sum(usages, Usage())) == sum(costs)


@pytest.mark.parametrize(
    "value", [3.0, float("nan"), True, None, "three", "", "NaN", "inf", Decimal("-Infinity"), "-1", [3]]
)
def test_what_is_no_price(value: Any) -> None:
    with pytest.raises(InvalidOption):
        Price(value, "15")
    if value is not None:
        with pytest.raises(InvalidOption):
            Price("3", "15", value)


def test_a_float_is_told_how_to_be_written() -> None:
    with pytest.raises(InvalidOption, match=r'"0\.1"'):
        Price(0.1, "15")  # type: ignore[arg-type]


# --- What a run adds up.


async def test_use_03_a_run_of_no_tokens_costs_nothing() -> None:
    provider = scripted(tool_call("look", usage=Usage(0, 1)), text("done", usage=Usage(0, 2)), price=SONNET)
    assert (await run("go", provider=provider, tools=[look])).cost_cents == Decimal("0.0045")


async def test_use_04_an_unknown_cost_stays_unknown() -> None:
    """Whatever else is known: None, never 0, and never a part of it."""

    @tool
    async def ask_somebody_dear() -> str:
        """Ask."""
        result = await run("?", provider=ScriptedProvider(["who knows"]))
        assert result.cost_cents is None
        return result.text

    provider = scripted(tool_call("ask_somebody_dear"), "done", price=SONNET)
    result = await run("go", provider=provider, tools=[ask_somebody_dear])
    assert (result.status, result.cost_cents) == ("completed", None)


async def test_no_budget_and_no_price_the_run_goes_on_and_its_cost_is_none() -> None:
    result = await run("hi", provider=ScriptedProvider(["hello"]))
    assert (result.status, result.text, result.cost_cents) == ("completed", "hello", None)


async def test_what_is_no_price_is_refused_whichever_provider_has_it() -> None:
    provider: Any = ScriptedProvider(["hello"])
    provider.price = "cheap"
    with pytest.raises(InvalidOption, match="has to be a Price"):
        await run("hi", provider="demo", fallback_providers=[provider])
    assert not provider.requests


@pytest.mark.parametrize("tiers", ["x", [(1, "6")], [("x", Price(1, 1))], [(-5, Price(1, 1))], [Price(1, 1)], {200: 1}])
def test_tiers_that_are_none(tiers: Any) -> None:
    with pytest.raises(InvalidOption, match="tiers has"):
        Price("3", "15", tiers=tiers)


async def test_a_run_that_was_only_refused_has_cost_nothing_whatever_the_price() -> None:
    """Nothing was used, so nothing is unknown."""
    with pytest.raises(RateLimited) as raised:
        await run("hi", provider=ScriptedProvider([error(RateLimited("no", status=429))]))
    assert raised.value.result is not None
    assert (raised.value.result.usage, raised.value.result.cost_cents) == (Usage(), Decimal(0))


class Silent:
    """Answers, and says nothing of tokens; or only while it streams, and then forgets."""

    name = model = "silent"
    price = Price("4", "400")

    def __init__(self, answer: tuple[Any, ...], report: Usage | None = None) -> None:
        self.answer = Response(message=Message("assistant", answer))
        self.report = report

    async def complete(self, request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return self.answer

    async def stream(self, request: Request, emit: Emit) -> Response:
        for block in self.answer.message.content:
            if isinstance(block, Text):
                await emit(TextDelta(block.text))
        if self.report is not None:
            await emit(UsageUpdate(self.report))
        return self.answer


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_use_05_an_answer_without_usage_is_estimated_and_says_so(*, streaming: bool) -> None:
    """The prompt by its size, the answer by 1.25 times its size; in the books, the result and the turn's event alike."""
    provider = Silent((Text("word " * 80),))  # 400 bytes are about 100 tokens
    with Budget("1") as budget:
        if streaming:
            async with stream("p" * 4000, provider=provider) as events:
                async for _ in events:
                    pass
            result = events.result
        else:
            result = await run("p" * 4000, provider=provider)
    assert (result.status, result.estimated) == ("completed", True)
    assert 1000 <= result.usage.input_tokens <= 1010
    assert 125 <= result.usage.output_tokens <= 135
    assert budget.spent * 100 == result.cost_cents == cost(Silent.price, result.usage) * 100
    assert budget.reserved == 0


async def test_use_05_a_call_without_usage_is_estimated_by_its_arguments() -> None:
    provider = Silent((ToolUse("1", "look", {"what": "w" * 400}),))
    result = await run("go", provider=provider, tools=[look], max_turns=1)
    assert result.usage.output_tokens >= 125
    assert result.estimated


async def test_use_05_what_was_reported_on_the_way_is_kept() -> None:
    async with stream("go", provider=Silent((Text("word " * 80),), report=Usage(70, 90))) as events:
        async for _ in events:
            pass
    usage = events.result.usage
    assert (usage.input_tokens, usage.estimated) == (70, True)
    assert 90 <= usage.output_tokens <= 113


async def test_use_06_tokens_of_caches_survive_the_wire_and_the_sum() -> None:
    def answer(read: int, written: int) -> Response:
        usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": read}
        usage |= {"cache_creation_input_tokens": written, "cache_creation": {"ephemeral_1h_input_tokens": 5}}  # type: ignore[dict-item]
        call = {"type": "tool_use", "id": f"t{read}", "name": "look", "input": {}}
        body = {"type": "message", "role": "assistant", "content": [call], "stop_reason": "tool_use", "usage": usage}
        return Anthropic(model="m", api_key="k").decode(json.dumps(body).encode())

    provider = scripted(answer(10, 20), answer(100, 200), price=Price("1", "1", "10", "100", cache_write_1h="1000"))
    result = await run("go", provider=provider, tools=[look], max_turns=2)
    usage = result.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (110, 220)
    assert usage.cache_creation_1h_input_tokens == 10
    assert result.cost_cents == Decimal(2 + 4 + 1100 + 21_000 + 10_000) / 10_000


# --- Usage while it streams.


def fed(*events: dict[str, Any]) -> list[Any]:
    decoder = Anthropic(model="m", api_key="k").decoder()
    return [each for event in events for each in decoder.feed(b"data: " + json.dumps(event).encode() + b"\n\n")]


def test_use_08_a_later_report_replaces_an_earlier_one_and_null_says_nothing() -> None:
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 25, "output_tokens": 1, "cache_read_input_tokens": 7}},
    }
    more = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15, "input_tokens": None}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}}
    reports = [each.usage for each in fed(start, more, last) if isinstance(each, UsageUpdate)]
    assert reports == [Usage(25, output, cache_read_input_tokens=7) for output in (1, 15, 40)]


def test_use_08_on_the_chat_wire_too() -> None:
    decoder = OpenAICompat(model="m").decoder()
    reports = []
    for count in (3, 9):
        usage = {"prompt_tokens": 20, "completion_tokens": count}
        chunk = {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage}
        reports += decoder.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert [each.usage for each in reports if isinstance(each, UsageUpdate)] == [Usage(20, 3), Usage(20, 9)]


class Reporting:
    """Reports as it streams, and is cut there."""

    name = model = "reporting"
    price = SONNET

    def __init__(self, *reports: Usage) -> None:
        self.reports = reports

    async def complete(self, request: Request) -> Response:
        raise NotImplementedError

    async def stream(self, request: Request, emit: Emit) -> Response:
        for report in self.reports:
            await emit(UsageUpdate(report))
        await trio.sleep_forever()
        raise AssertionError


async def test_use_08_a_cut_stream_has_used_what_was_last_reported(autojump_clock: trio.abc.Clock) -> None:
    """And up to a quarter more of output: nobody knows how far it had come."""
    with Budget("1") as budget, trio.move_on_after(5):
        async with stream("go", provider=Reporting(Usage(30, 1), Usage(50, 100), Usage(50, 400))) as events:
            async for _ in events:
                pass
    assert events.result.usage == Usage(50, 500, estimated=True)
    assert budget.spent == SONNET.cost(Usage(50, 500))
