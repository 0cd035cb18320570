"""What tokens cost. Money is `Decimal`, in dollars; a price that is not known is None, never 0."""

import decimal
from collections.abc import Iterable
from decimal import Decimal
from typing import Self

import attrs

from ._errors import InvalidOption
from ._usage import Usage

_MILLION = Decimal(1_000_000)
_DIGITS = 28  # of an amount, before or behind the point: beyond what a Decimal counts exactly there is no money
_HOUR = Decimal("1.6")  # what writing a cache for an hour costs, against five minutes: Anthropic's 2 to 1.25


def money(value: object, name: str) -> Decimal:
    """
    Return an exact amount of money.

    Raises:
        InvalidOption: It is a float, which is none, or not a number, or infinite, or so large or small that sums would be.
    """
    if isinstance(value, int | str | Decimal) and not isinstance(value, bool):
        try:
            amount = Decimal(value)
        except decimal.InvalidOperation:
            amount = Decimal("NaN")
        if amount.is_finite() and (not amount or abs(amount.adjusted()) <= _DIGITS):
            return amount or Decimal(0)
    advice = f'write it as text, "{value}"' if isinstance(value, float) else 'write for instance "0.50"'
    raise InvalidOption(f"{name}={value!r} is no exact amount of money: {advice}")


def _rate(value: Decimal | str | int) -> Decimal:
    if (rate := money(value, "price")) < 0:
        raise InvalidOption(f"price={value!r} is below 0")
    return rate


def _optional_rate(value: Decimal | str | int | None) -> Decimal | None:
    return None if value is None else _rate(value)


def _tiers(tiers: Iterable[tuple[int, "Price"]]) -> tuple[tuple[int, "Price"], ...]:
    taken = list(tiers)
    for tier in taken:
        match tier:
            case (int(start), Price()) if start > 0:
                continue
        raise InvalidOption(f'tiers has {tier!r:.100}: each is (tokens, Price), like (200_001, Price("6", "22.5"))')
    return tuple(sorted(taken, key=lambda tier: tier[0]))


@attrs.frozen
class Price:
    """
    The price of a model, in dollars per million tokens.

    `Price("3", "15")`, or with `Decimal`; a float is refused, since it is not the amount it seems to be.

    Attributes:
        input: Of prompt tokens that come from no cache.
        output: Of generated tokens, hidden reasoning included.
        cache_read: Of prompt tokens read from a cache; None: as `input`.
        cache_write: Of prompt tokens written into a cache; None: as `input`.
        cache_write_1h: Of those written for an hour; None: 1.6 times `cache_write`, or as `input` where that is None.
        server_tool_call: Dollars for each call of a tool that the provider runs itself; None: not known.
        tiers: Prices from a prompt size on, `(tokens, Price)`: a larger prompt is billed at that price as a whole.
    """

    input: Decimal = attrs.field(converter=_rate)
    output: Decimal = attrs.field(converter=_rate)
    cache_read: Decimal | None = attrs.field(default=None, converter=_optional_rate)
    cache_write: Decimal | None = attrs.field(default=None, converter=_optional_rate)
    cache_write_1h: Decimal | None = attrs.field(default=None, converter=_optional_rate, kw_only=True)
    server_tool_call: Decimal | None = attrs.field(default=None, converter=_optional_rate, kw_only=True)
    tiers: "tuple[tuple[int, Price], ...]" = attrs.field(default=(), converter=_tiers, kw_only=True)

    @classmethod
    def free(cls) -> Self:
        """Return the price of what costs nothing: a server of one's own."""
        return cls(0, 0, server_tool_call=0)

    def cost(self, usage: Usage) -> Decimal | None:
        """Return what one request of this usage costs, in dollars; None if it used tools of a fee that is not known."""
        rates = self.for_prompt(prompt_tokens(usage))
        short_lived = usage.cache_creation_input_tokens - usage.cache_creation_1h_input_tokens
        cost = (
            usage.input_tokens * rates.input
            + usage.output_tokens * rates.output
            + usage.cache_read_input_tokens * rates.cached(read=True)
            + short_lived * rates.cached()
            + usage.cache_creation_1h_input_tokens * rates.cached(hour=True)
        ) / _MILLION
        if not usage.server_tool_calls:
            return cost
        return None if self.server_tool_call is None else cost + usage.server_tool_calls * self.server_tool_call

    def for_prompt(self, tokens: int) -> "Price":
        """Return the price that holds for a prompt of this size."""
        reached = [price for start, price in self.tiers if tokens >= start]
        return reached[-1] if reached else self

    def cached(self, *, read: bool = False, hour: bool = False) -> Decimal:
        """Return the price of prompt tokens that are written to a cache, for minutes or an hour, or `read` from it."""
        if read:
            return self.input if self.cache_read is None else self.cache_read
        if self.cache_write is None:
            return self.input if not hour or self.cache_write_1h is None else self.cache_write_1h
        if not hour:
            return self.cache_write
        return self.cache_write * _HOUR if self.cache_write_1h is None else self.cache_write_1h


def prompt_tokens(usage: Usage) -> int:
    """Return the size of the prompt, cached or not."""
    return usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


def per_token(rate: Decimal) -> Decimal:
    """Return dollars a token of a rate in dollars a million."""
    return rate / _MILLION
