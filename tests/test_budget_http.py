"""Budgets over HTTP: servers that keep to the cap, servers that do not, and what is read of them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio
from rules import check_history
from taxi import BY_THE_TICK, DEAR, PROMPT, TICK, check_cut, cost, scripted, standing, streamed
from test_http import (
    Connection,
    _plain_sockets,  # noqa: F401 - a fixture, for these tests as well
    chunk,
    chunks,
    delta,
    event,
    http,
    serving,
)

from alloy_trio import Budget, Price, ProviderTimeout, Usage, run, stream, tool
from alloy_trio.events import TextDelta
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat
from alloy_trio.testing import tool_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from test_http import Handler

    from alloy_trio import Result

WORD = "word"  # a token by its bytes, and to these servers
HEAD = chunks(end=False)


def anthropic_delta(text: str) -> bytes:
    return event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})


def anthropic_start(prompt: int) -> bytes:
    message = {
        "type": "message",
        "role": "assistant",
        "content": [],
        "usage": {"input_tokens": prompt, "output_tokens": 1},
    }
    return event({"type": "message_start", "message": message})


def responses_delta(text: str) -> bytes:
    return event(
        {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0, "delta": text}
    )


class Endless:
    """A server that goes on and on, whatever it was told: `at_once` words, and again after a `pause`."""

    def __init__(self, word: bytes, first: bytes = b"", *, pause: float = 0.0, at_once: int = 1) -> None:
        self.word = word
        self.first = first
        self.pause = pause
        self.at_once = at_once
        self.written = 0
        self.running = self.most = 0
        self.was_left = trio.Event()

    async def handle(self, connection: Connection) -> None:
        if not await connection.request():
            return
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await connection.send(HEAD + (chunk(self.first) if self.first else b""))
            while True:
                await trio.sleep(self.pause)
                await connection.send(chunk(self.word * self.at_once))
                self.written += self.at_once
        finally:
            self.running -= 1
            self.was_left.set()


PACES = pytest.mark.parametrize(
    "pace",
    [{}, {"pause": 0.001, "at_once": 10}, {"at_once": 700}],
    ids=["as-fast-as-it-can", "at-its-pace", "in-bursts"],
)


async def handed_over(results: list[Result], **options: Any) -> int:
    """Stream to the end, and return how many deltas came."""
    count = 0
    async with stream("go", **options) as events:
        async for each in events:
            count += isinstance(each, TextDelta)
    results.append(events.result)
    return count


@PACES
async def test_a_server_that_ignores_the_cap_is_read_to_the_budget_and_one_delta(pace: dict[str, Any]) -> None:
    server, results = Endless(delta(WORD), **pace), list[Any]()
    async with serving(server.handle) as there:
        with Budget("0.15") as budget:
            provider = OpenAICompat(model="m", base_url=there.url, price=BY_THE_TICK)
            count = await handed_over(results, provider=provider)
        with trio.fail_after(2):
            await server.was_left.wait()
    check_cut(results[0])
    assert there.requests[0].body["max_tokens"] == 1500
    assert count == 1501
    assert results[0].messages[-1].text == WORD * 1501
    assert results[0].messages[-1].interrupted
    assert standing(budget) == (1501 * TICK, 0)
    assert (results[0].estimated, results[0].overrun_cents) == (True, TICK * 100)


@PACES
async def test_where_the_api_enforces_the_cap_the_meter_is_a_backstop_at_a_quarter_more(pace: dict[str, Any]) -> None:
    server, results = Endless(anthropic_delta(WORD), anthropic_start(1), **pace), list[Any]()
    async with serving(server.handle) as there:
        with Budget("0.15") as budget:
            provider = Anthropic(model="m", api_key="k", base_url=there.url, price=BY_THE_TICK)
            count = await handed_over(results, provider=provider)
        with trio.fail_after(2):
            await server.was_left.wait()
    check_cut(results[0])
    assert there.requests[0].body["max_tokens"] == 1500
    assert 1875 <= count <= 1876
    assert budget.reserved == 0
    assert budget.overrun <= Decimal("0.0376")


async def test_an_api_that_goes_on_alone_is_paid_for_all_that_was_set_aside() -> None:
    """Once it is cut, or left: it writes, and bills, to its cap."""
    server, results = Endless(responses_delta(WORD), pause=0.001, at_once=10), list[Any]()
    async with serving(server.handle) as there:
        provider = OpenAI(model="m", api_key="k", base_url=there.url, price=BY_THE_TICK)
        with Budget("0.15") as cut:
            await handed_over(results, provider=provider)
        with Budget("0.15") as left:
            async with stream("go", provider=provider) as events:
                async for each in events:
                    if isinstance(each, TextDelta):
                        break
    check_cut(results[0])
    assert Decimal("0.15") < cut.spent <= Decimal("0.1876")
    assert standing(left) == (Decimal("0.15"), 0)
    assert events.result.usage.output_tokens == 1500
    assert events.result.estimated


async def test_a_server_that_keeps_to_the_lowered_cap_is_paid_by_its_report() -> None:
    async def capped(connection: Connection) -> None:
        if sent := await connection.request():
            cap = sent.body["max_tokens"]
            usage = {"prompt_tokens": 7, "completion_tokens": cap, "total_tokens": cap + 7}
            stop = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": usage})
            await connection.send(chunks(delta(WORD) * cap, stop, event_done()))

    async with serving(capped) as there:
        with Budget("0.15") as budget:
            provider = OpenAICompat(model="m", base_url=there.url, price=BY_THE_TICK)
            result = await streamed(provider=provider)
    check_cut(result)
    assert (result.stop_reason, result.usage, result.text) == ("max_tokens", Usage(7, 1500), WORD * 1500)
    assert standing(budget) == (Decimal("0.15"), 0)


def event_done() -> bytes:
    return b"data: [DONE]\n\n"


def answer(**usage: int) -> bytes:
    body: dict[str, Any] = {"choices": [{"message": {"content": WORD * 100}, "finish_reason": "stop"}]}
    return http(json.dumps(body | ({"usage": usage} if usage else {})).encode())


def replies(*each: bytes, seen: Callable[[], None] = lambda: None) -> Handler:
    left = list(each)

    async def handle(connection: Connection) -> None:
        while await connection.request():
            seen()
            await connection.send(left.pop(0))

    return handle


async def test_a_refusal_is_free_and_what_waits_holds_nothing() -> None:
    budget, held = Budget(100), list[Decimal]()
    busy = http(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", retry_after="0.01")
    full = http(b'{"error": {"message": "overloaded"}}', "503 Service Unavailable")
    ok = answer(prompt_tokens=900, completion_tokens=100)
    async with serving(replies(busy, full, ok, seen=lambda: held.append(budget.reserved))) as there:
        provider = OpenAICompat(model="m", base_url=there.url, price=DEAR)
        with budget:
            result = await run(
                PROMPT,
                provider=provider,
                max_output_tokens=2000,
                retry_backoff=0.001,
                on_event=lambda envelope: held.append(
                    budget.reserved if type(envelope.event).__name__ == "Retry" else Decimal(-1)
                ),
            )
    assert [amount for amount in held if amount >= 0] == [Decimal("3.5"), 0, Decimal("3.5"), 0, Decimal("3.5")]
    assert (result.usage, result.estimated) == (Usage(900, 100), False)
    assert standing(budget) == (1, 0)


async def test_use_05_an_answer_without_usage_over_http() -> None:
    async with serving(replies(answer())) as there:
        with Budget(100) as budget:
            result = await run(PROMPT, provider=OpenAICompat(model="m", base_url=there.url, price=DEAR))
    assert result.usage == Usage(1000, 125, estimated=True)
    assert standing(budget) == (cost(DEAR, Usage(1000, 125)), 0)


async def test_a_server_that_falls_silent_is_paid_for_what_came() -> None:
    async def stall(connection: Connection) -> None:
        if await connection.request():
            await connection.send(HEAD + chunk(delta(WORD) * 100))
            await connection.gone()

    async with serving(stall) as there:
        with Budget(100) as budget, pytest.raises(ProviderTimeout) as raised:
            provider = OpenAICompat(model="m", base_url=there.url, price=DEAR, stall_timeout=0.1)
            await streamed(PROMPT, provider=provider)
    assert raised.value.result is not None
    assert raised.value.result.usage == Usage(1000, 125, estimated=True)
    check_history(raised.value.result.messages)
    assert standing(budget) == (cost(DEAR, Usage(1000, 125)), 0)


async def test_the_first_report_of_the_wire_corrects_the_input() -> None:
    """Anthropic says at once how large the prompt is: what was set aside for more is free again."""
    budget, held = Budget(100), list[Decimal]()

    async def slow(connection: Connection) -> None:
        if await connection.request():
            await connection.send(HEAD + chunk(anthropic_start(400)))
            while budget.reserved > Decimal("2.5"):  # noqa: ASYNC110 - a sum tells nobody that it has changed
                await trio.sleep(0.001)
            held.append(budget.reserved)
            stop = event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}})
            await connection.send(chunk(anthropic_delta(WORD) + stop + event({"type": "message_stop"})) + b"0\r\n\r\n")

    async with serving(slow) as there:
        provider = Anthropic(model="m", api_key="k", base_url=there.url, price=DEAR)
        with budget:
            result = await streamed(PROMPT, provider=provider, max_output_tokens=2000)
    assert held == [Decimal("2.4")]
    assert (result.usage, *standing(budget)) == (Usage(400, 3), Decimal("0.403"), 0)


async def test_ten_sub_agents_over_http_side_by_side_under_one_budget() -> None:
    """Each server stream would go on for ever; together they are read to the budget and a delta each."""
    server, results = Endless(delta(WORD), pause=0.001, at_once=10), list["Result"]()
    async with serving(server.handle) as there:
        provider = OpenAICompat(model="m", base_url=there.url, price=BY_THE_TICK)

        @tool
        async def delegate(number: int) -> str:
            """Let somebody else do it."""
            results.append(await streamed(f"job {number}", provider=provider, max_output_tokens=1200))
            return results[-1].status

        calls = [tool_call("delegate", {"number": number}) for number in range(10)]
        with Budget("0.6") as budget:
            parent = await run("go", provider=scripted(calls, "done", price=Price.free()), tools=[delegate])
    assert parent.status == "completed"
    assert server.most == 5
    assert len(results) == 10
    for each in results:
        check_cut(each)
    words = sum(len(each.messages[-1].text) // len(WORD) for each in results if each.messages[-1].interrupted)
    assert words * TICK <= budget.limit + 10 * TICK
    assert budget.spent <= budget.limit + 10 * TICK
    assert budget.reserved == 0


# --- Without a socket: exactly what was read.


@attrs.define
class Pieces(httpx.AsyncByteStream):
    """A body of one delta a piece, without an end; counts those that were taken."""

    piece: bytes
    read: int = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await trio.lowlevel.checkpoint()
            self.read += 1
            yield self.piece


@pytest.mark.parametrize(
    ("kind", "piece", "most"),
    [
        (OpenAICompat, delta(WORD), 1501),
        (Anthropic, anthropic_delta(WORD), 1876),
        (OpenAI, responses_delta(WORD), 1876),
    ],
    ids=["compat", "anthropic", "openai"],
)
async def test_not_one_piece_more_is_read_than_it_takes(kind: Any, piece: bytes, most: int) -> None:
    body = Pieces(piece)
    headers = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=body))
    async with httpx.AsyncClient(transport=transport) as client:
        with Budget("0.15") as budget:
            provider = kind(model="m", api_key="k", http_client=client, price=BY_THE_TICK)
            result = await streamed(provider=provider)
    check_cut(result)
    assert body.read == most
    assert budget.reserved == 0
