"""
What each attempt costs: reserved before it is sent, measured while it streams, settled when it is over.

`Metered` wraps a provider, inside retry and fallback, so that an attempt is one HTTP request, and whoever asks (a run, its
compaction, a sub-agent) pays the same way. Nothing else mentions money.

    before     the prompt's estimate with a margin, and the cap on the answer, at the model's price, are reserved in every
               budget around the caller. The cap that was granted is what the provider is told.
    meanwhile  what arrives is counted (`_meter`). Where the count passes what is reserved, and no more is to be had, the
               attempt is cut by its cancel scope: the delta that passed it is the last that is handed over.
    after      settled at what the provider reports. Without a report: at nothing, if it refused before it began to answer; at
               the whole reservation, if it goes on generating without us; else at the prompt's estimate and 1.25 times what
               was received, as far as that was reserved. Usage says then that it is `estimated`.

Only what streams can be counted and cut. So under a budget a provider that may not keep to its cap is asked to stream for a run
that does not, too. How far an answer had come that was to arrive in one piece, nobody knows: it counts as going on without us.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import attrs
import trio

from .._budget import Account, BudgetExhausted, around
from .._errors import UnknownPrice, WireError
from .._estimate import Size, estimator_for, measure
from .._events import ProviderEvent, UsageUpdate
from .._instruments import is_on, tell
from .._messages import Message
from .._price import Price, per_token, prompt_tokens
from .._reservation import Ask, Reservation, reserve
from .._telemetry import RequestStarted, RequestStopped
from .._usage import NO_USAGE, Usage
from .._util import single
from ._base import Emit, Provider, Request, Response, StopReason, Terms, provider_model, provider_name, terms_of
from ._json import encode
from ._meter import Meter

if TYPE_CHECKING:
    from .._catalog import ModelInfo
    from ..tools._tool import Tool

_ASKED = 8192  # tokens of an answer that are asked for under a budget where nobody has set a cap
_LEAST = 1024  # tokens below which an answer is not worth asking for
_ALWAYS: contextlib.AbstractContextManager[object, bool | None] = contextlib.nullcontext()
_AT_THE_CAP = 0.95  # of it: vendors do not all count alike


_definitions: WeakKeyDictionary[Tool, bytes] = WeakKeyDictionary()  # each run needs them, and a tool never changes


class Metered:
    """
    A provider whose every request is paid for.

    Attributes:
        provider: The provider itself.
        name: Its name.
        model: Its model, if it says.
        limit: How long an answer the model can give, in tokens, if that is known.
        price: What the model costs: the provider's own price, else the catalog's; None where it is not known.
    """

    def __init__(self, provider: Provider, info: ModelInfo | None, *, streaming: bool) -> None:
        self.provider = provider
        self.name = provider_name(provider)
        self.model = provider_model(provider)
        own = getattr(provider, "price", None)
        self.price = own if isinstance(own, Price) else None if info is None else info.price
        self.limit = math.inf if info is None or info.max_output_tokens is None else info.max_output_tokens
        self._billed: Callable[[Response], Usage] = getattr(provider, "billed", _reported)
        self._streaming = streaming
        self._continues = bool(getattr(provider, "previous_response_id", None))

    def check(self) -> None:
        """
        See that a budget around the caller can be kept.

        Raises:
            UnknownPrice: There is one, and what this provider costs is not known.
        """
        if not around().budgets:
            return
        if self.price is None:
            raise UnknownPrice(
                f"a budget is set, and the price of {self.name}:{self.model} is not known: give the provider "
                'price=Price("3", "15") (dollars per million tokens), or Price.free()'
            )
        if terms_of(self.provider).server_tools and self.price.server_tool_call is None:
            raise UnknownPrice(
                f"a budget is set, and {self.name} runs tools of its own for a fee that is not known: give the provider "
                "price=Price(…, server_tool_call=…), in dollars a call"
            )

    async def complete(self, request: Request) -> Response:
        """Do what `stream` does, for somebody who does not listen."""
        return await self.stream(request, _ignore)

    async def stream(self, request: Request, emit: Emit) -> Response:
        """
        Ask the provider, whether it streams or not, and pay for it.

        Raises:
            BudgetExhausted: There is no money for it, or it was cut, or its answer stopped at a cap which the budget set.
            UnknownPrice: As `check` does.
            Exception: What the provider raises.
        """
        self.check()
        size = measured(request)
        attempt, request = await self._reserve(request, size)
        response, error, usage = None, None, NO_USAGE
        told = self._tell_start(attempt, request)
        try:
            with attempt.scope or _ALWAYS:
                response = self._check(await self._perform(attempt, request, emit))
        except Exception as caught:  # noqa: BLE001 - raised again, unless it was cut
            error = single(caught)
            # Where it was cut, only its cleaning up has failed.
            if attempt.scope is None or not attempt.scope.cancel_called:
                raise error from error.__cause__
        finally:
            usage = attempt.settle(response, error)
            if told is not None:
                tell(_stopped(told, attempt, response, error, usage))
        if response is None:
            raise BudgetExhausted(heard=attempt.heard)
        if usage.estimated:
            response = attrs.evolve(response, usage=usage)
        elif self._is_measure(request, usage):
            attempt.meter.estimator.learn(size, prompt_tokens(response.usage))
        if attempt.stopped_at_lowered_cap(response):
            raise BudgetExhausted(response=response)
        return response

    def _is_measure(self, request: Request, usage: Usage) -> bool:
        """Whether the prompt that is reported is the one that was sent: not what the provider has found, or kept, besides."""
        return not (usage.server_tool_calls or request.provider_state or self._continues)

    async def _reserve(self, request: Request, size: Size) -> tuple[_Attempt, Request]:
        """Set aside what the request may cost, and return it with the cap that this allows."""
        surroundings, asked = around(), request.max_output_tokens
        limited = bool(surroundings.budgets)
        streams, terms = self._streams(limited=limited)
        estimator = estimator_for(self.name, self.model)
        prompt = estimator.tokens(size)
        if limited and self.price is not None:
            most = math.ceil(prompt * estimator.margin)
            rates = self.price.for_prompt(most)
            asked = asked or int(min(self.limit, _ASKED + terms.thinking_budget))
            ask = Ask(
                fixed=most * per_token(max(rates.input, rates.cached(hour=True)) if terms.caches else rates.input),
                rate=per_token(rates.output),
                wanted=asked,
                least=min(asked, min(asked, _LEAST) + terms.thinking_budget),
            )
            reservation = await reserve(ask)
            request = attrs.evolve(request, max_output_tokens=reservation.tokens)
        else:
            reservation = Reservation(0, Decimal(0), surroundings.account, ())
        meter = Meter(estimator, self.price, terms, prompt, reservation, limited)
        return _Attempt(
            meter, surroundings.account or Account(), asked, reservation.tokens, streams, self._billed
        ), request

    def _streams(self, *, limited: bool) -> tuple[bool, Terms]:
        """Return whether the provider is asked to stream, and the terms on which it answers then."""
        terms = terms_of(self.provider)
        wanted = self._streaming or (limited and not terms.enforces_cap)
        streams = wanted and hasattr(self.provider, "stream")
        return streams, terms if streams or not limited else attrs.evolve(terms, runs_on=True)

    async def _perform(self, attempt: _Attempt, request: Request, emit: Emit) -> Response:
        if attempt.streams:
            listen = attempt.emit(emit if self._streaming else attempt.keep)
            return await self.provider.stream(request, listen)  # type: ignore[attr-defined, no-any-return] # it has one
        return await self.provider.complete(request)

    def _tell_start(self, attempt: _Attempt, request: Request) -> RequestStarted | None:
        if not is_on():
            return None
        told = RequestStarted(
            session_id=attempt.account.session_id,
            correlation_id=attempt.account.correlation_id,
            provider=self.name,
            model=self.model,
            streaming=attempt.streams,
            attempt=request.attempt,
            max_output_tokens=request.max_output_tokens,
            request=request,
        )
        tell(told)
        return told

    def _check(self, response: object) -> Response:
        """Trust no provider of the user's own: what it returns is looked at before anybody uses it."""
        match response:
            case Response(message=Message(role="assistant"), stop_reason=StopReason(), usage=Usage() as usage) if (
                usage.is_possible and isinstance(response.metadata, dict | Mapping)
            ):
                return response
            case Response(usage=Usage() as usage) if not usage.is_possible:
                problem = f"reported {usage}, and tokens are whole numbers from 0"
            case Response(stop_reason=reason) if reason not in set(StopReason):
                problem = f"stopped for {reason!r}, which is none of {', '.join(StopReason)}"
            case _:
                problem = (
                    f"returned {response!r:.200}, which is no Response with an assistant's message, usage and metadata"
                )
        raise WireError(f"provider {self.name} {problem}", provider=self.name, model=self.model)


@attrs.define(eq=False)  # not frozen: one is made for each request
class _Attempt:
    """One request under way."""

    meter: Meter
    account: Account
    asked: int | None  # the cap that was wanted
    granted: int  # the one that could be had
    streams: bool
    billed: Callable[[Response], Usage]  # what an answer costs may be more than its own tokens
    heard: list[ProviderEvent] = attrs.field(factory=list)  # of an answer that streams, and nobody listens
    started: float = attrs.field(factory=trio.current_time)
    scope: trio.CancelScope | None = attrs.field(  # what cuts it; without a budget, nothing does
        init=False,
        default=attrs.Factory(lambda self: trio.CancelScope() if self.meter.limited else None, takes_self=True),
    )

    def emit(self, outer: Emit) -> Emit:
        """Return what the provider is to emit into: it counts, and, under a budget, cuts."""
        if not self.meter.limited:
            return self._counting(outer)

        async def emit(*events: ProviderEvent) -> None:
            passed: list[ProviderEvent] = []
            is_cut = False
            for event in events:
                if isinstance(event, UsageUpdate):  # it counts behind the cut, too: it says what has been generated
                    is_cut = not self.meter.take(event) or is_cut
                elif not is_cut:
                    is_cut = not self.meter.take(event)
                    passed.append(event)
            if passed:
                with self.meter.reservation.blocked():
                    await outer(*passed)
            if is_cut and self.scope is not None:
                self.scope.cancel()
                await trio.lowlevel.checkpoint_if_cancelled()

        return emit

    def _counting(self, outer: Emit) -> Emit:
        count = self.meter.count_all

        async def emit(*events: ProviderEvent) -> None:
            reports = count(events)
            passed = tuple(event for event in events if type(event) is not UsageUpdate) if reports else events
            if passed:
                await outer(*passed)

        return emit

    async def keep(self, *events: ProviderEvent) -> None:
        """Take the events of an answer that is wanted in one piece, in case it does not get that far."""
        self.heard.extend(events)

    def settle(self, response: Response | None, error: Exception | None) -> Usage:
        """Book what the attempt has used, and return it."""
        cost = self.meter.reservation.amount  # if what it was cannot be told
        try:
            usage = self.meter.usage(response, error)
            if response is not None and usage == response.usage:
                usage = self.billed(response)
            cost, known = self.meter.cost(usage)
        finally:
            self.meter.reservation.settle(cost)
        self.account.book(usage, cost, known=known)
        return usage

    def stopped_at_lowered_cap(self, response: Response) -> bool:
        """Whether the answer is cut short, and that by a cap which the budget had lowered."""
        if response.stop_reason is not StopReason.MAX_TOKENS or not self.meter.limited:
            return False
        # One that is far shorter stopped at a lower cap, the user's own in `extra_body`.
        at_the_cap = response.usage.estimated or response.usage.output_tokens >= self.granted * _AT_THE_CAP
        return at_the_cap and self.granted < (self.asked or 0)


def _stopped(
    told: RequestStarted, attempt: _Attempt, response: Response | None, error: Exception | None, usage: Usage
) -> RequestStopped:
    cost, known = attempt.meter.cost(usage)
    cut: Literal["cut", "cancelled"] = (
        "cut" if attempt.scope is not None and attempt.scope.cancelled_caught else "cancelled"
    )
    return RequestStopped(
        session_id=told.session_id,
        correlation_id=told.correlation_id,
        provider=told.provider,
        model=told.model,
        streaming=told.streaming,
        attempt=told.attempt,
        duration=trio.current_time() - attempt.started,
        result="error" if error is not None else cut if response is None else "ok",
        error=error,
        usage=usage,
        cost_cents=cost * 100 if known else None,
        response_model=None if response is None else response.message.model,
        stop_reason=None if response is None else str(response.stop_reason),
        response=response,
    )


def measured(request: Request) -> Size:
    """Return how large a request is."""
    if request._size is not None:  # noqa: SLF001 - its other half
        return request._size  # noqa: SLF001 - as above
    fixed = Size(len(fixed_part(request.system_prompt, request.tools)))
    return sum((measure(message) for message in request.messages), fixed)


def fixed_part(system_prompt: str | None, tools: tuple[Tool, ...]) -> bytes:
    """Return the part of a request that stands before the messages, about as long as any API has it."""
    definitions = b",".join([_definition(tool) for tool in tools])
    return b"%s[%s]" % ((system_prompt or "").encode("utf-8", "surrogatepass"), definitions)


def _definition(tool: Tool) -> bytes:
    if (known := _definitions.get(tool)) is None:
        known = _definitions[tool] = encode([tool.name, tool.description, tool.input_schema])
    return known


def _reported(response: Response) -> Usage:
    return response.usage


async def _ignore(*_: ProviderEvent) -> None:
    """Take events that nobody asked for."""
