"""Fakes that cost something, for the tests of budgets."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import trio
from rules import check_history

from alloy_trio import Budget, Message, Price, Usage, stream, tool
from alloy_trio.events import TextDelta
from alloy_trio.providers import Request, Response, StopReason, UsageUpdate
from alloy_trio.providers._base import Terms
from alloy_trio.providers._metered import measured
from alloy_trio.testing import ScriptedProvider

if TYPE_CHECKING:
    from alloy_trio import Result
    from alloy_trio.providers import Emit
    from alloy_trio.testing._script import Script

PROMPT = "p" * (4001 - measured(Request(messages=(Message.user("p"),))).text)  # a request of 1,000 tokens by its bytes
TICK = Decimal("0.0001")  # dollars, for a token of an answer
BY_THE_TICK = Price(0, 100)
DEAR = Price("1000", "1000")  # a tenth of a cent for each token, of whatever kind


class Taxi:
    """
    Says one word after the other, each a token and a tick, and heeds no cap unless told to.

    `turns` are the lengths of its answers, the last one again and again. It reports usage at the `end`, after `each` word, or
    `never`.
    """

    name = model = "taxi"

    def __init__(
        self,
        *turns: int,
        seconds: float = 0.0,
        word: str = "word",
        reports: Literal["end", "each", "never"] = "end",
        heeds_cap: bool = False,
        terms: Terms | None = None,
        price: Price | None = BY_THE_TICK,
    ) -> None:
        self.turns = list(turns) or [10**5]
        self.seconds = seconds
        self.word = word
        self.reports = reports
        self.heeds_cap = heeds_cap
        self.terms = terms or Terms()
        self.price = price
        self.requests: list[Request] = []
        self.produced = 0
        self.running = self.most = 0

    @property
    def caps(self) -> list[int | None]:
        return [request.max_output_tokens for request in self.requests]

    async def complete(self, request: Request) -> Response:
        return await self._drive(request, None)

    async def stream(self, request: Request, emit: Emit) -> Response:
        return await self._drive(request, emit)

    async def _drive(self, request: Request, emit: Emit | None) -> Response:
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            length = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
            cap = request.max_output_tokens if self.heeds_cap and request.max_output_tokens else length
            for number in range(min(length, cap)):
                await trio.sleep(self.seconds)
                self.produced += 1
                if emit is not None:
                    await emit(TextDelta(self.word))
                    if self.reports == "each":
                        await emit(UsageUpdate(Usage(0, number + 1)))
            usage = Usage() if self.reports == "never" else Usage(0, min(length, cap))
            why = StopReason.MAX_TOKENS if length > cap else StopReason.END_TURN
            return Response(message=Message.assistant(self.word * min(length, cap)), stop_reason=why, usage=usage)
        finally:
            self.running -= 1


def scripted(
    *replies: Script, price: Price | None = BY_THE_TICK, terms: Terms | None = None, **more: Any
) -> ScriptedProvider:
    provider = ScriptedProvider(replies, **more)
    provider.price = price
    provider.terms = terms or Terms()  # type: ignore[attr-defined] # what a provider may have
    return provider


async def streamed(prompt: str = "go", **options: Any) -> Result:
    async with stream(prompt, **options) as events:
        async for _ in events:
            pass
    return events.result


def standing(budget: Budget) -> tuple[Any, Any]:
    """What a budget has spent, and what it has reserved."""
    return budget.spent, budget.reserved


def cost(price: Price, usage: Usage) -> Decimal:
    known = price.cost(usage)
    assert known is not None
    return known


def check_cut(result: Result) -> None:
    """Assert that a run which had no money left ended as it should: a value, with what had come, and nothing that is invalid."""
    assert (result.status, result.error) == ("budget_exceeded", None)
    check_history(result.messages)


@tool
async def look(what: str = "") -> str:
    """Look."""
    return "seen"


def note(held: list[Decimal], budget: Budget, request: Request) -> str:
    held.append(budget.reserved)
    return "ok"
