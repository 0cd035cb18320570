"""
One attempt's cost, while it streams and when it is over: the rules, without I/O. `_metered` applies them.

What arrives is counted as the provider counts it, where it says so while it streams, and by its bytes since then. A provider
that stops at its cap by itself is trusted up to a quarter over it, since bytes are only an estimate; any other is held to
what is reserved. Hidden reasoning sends nothing that could be counted: only the cap bounds it.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from .._budget import Reservation
from .._errors import ConnectionFailed, ProviderError, ProviderTimeout, WireError
from .._estimate import Estimator, Size, measure_block, measure_text
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta, UsageUpdate
from .._messages import Text, Thinking, ToolUse
from .._price import Price, per_token, prompt_tokens
from .._usage import Usage
from ._base import Terms

if TYPE_CHECKING:
    from .._events import ProviderEvent
    from ._base import Response

_SLACK = Decimal("1.25")  # how far a count by bytes may be off


@attrs.define
class Meter:
    """
    What one attempt has cost so far.

    Attributes:
        price: The model's, or None.
        terms: The provider's.
        prompt: Tokens of the prompt, estimated.
        reservation: What is held for it.
        limited: Whether there is a budget to be kept.
    """

    estimator: Estimator
    price: Price | None
    terms: Terms
    prompt: int
    reservation: Reservation
    limited: bool
    _reported: Usage = attrs.field(factory=Usage)
    _received: int = 0  # bytes
    _before_report: int = 0  # how many of them the last report includes
    _in_block: int = 0  # how many came as deltas of the block in flight

    def take(self, event: ProviderEvent) -> bool:
        """Count an event. Whether more may come; if not, the attempt is to be cut behind it."""
        self._count(event)
        if not self.limited or self.price is None:
            return True
        if isinstance(event, UsageUpdate) and prompt_tokens(event.usage):
            self._correct_prompt(self.price, event.usage)
        trust = _SLACK if self.terms.enforces_cap else 1
        while self._output_tokens() > self.reservation.tokens * trust:
            more = max(1, self.reservation.tokens // 4)
            if not self.reservation.extend(more, more * self._output_rate(self.price)):
                return False
        return True

    def usage(self, response: Response | None, error: Exception | None) -> Usage:
        """Return what the attempt has used: as reported, else as far as one can tell."""
        if response is not None and response.usage != Usage():
            return response.usage
        begun = bool(response or self._received or self._reported != Usage())
        if not begun and _refused(error):
            return Usage()
        output = math.ceil(self._output_tokens() * _SLACK)
        if self.limited and self.terms.runs_on and response is None and _left_alone(error):
            output = self.reservation.tokens
        known = self._reported if prompt_tokens(self._reported) else Usage(input_tokens=self.prompt)
        return attrs.evolve(known, output_tokens=output, estimated=True)

    def cost(self, usage: Usage) -> tuple[Decimal, bool]:
        """Return what that usage costs, in dollars, as far as it is known; and whether that is all of it."""
        if self.price is None:
            return Decimal(0), usage == Usage()
        cost = self.price.cost(usage)
        if cost is None:  # tools of the provider's own, for a fee that nobody has told
            return self.price.cost(attrs.evolve(usage, server_tool_calls=0)) or Decimal(0), False
        return cost, True

    def _count(self, event: ProviderEvent) -> None:
        match event:
            case TextDelta(text=piece) | ThinkingDelta(text=piece) | ToolInputDelta(json=piece):
                size = measure_text(piece).text
                self._in_block += size
                self._received += size
            case BlockEnd(block=block):
                if isinstance(block, Text | Thinking | ToolUse) and not self._in_block:  # it came in one piece
                    self._received += measure_block(block).text
                self._in_block = 0
            case UsageUpdate(usage=usage):
                self._reported, self._before_report = usage, self._received

    def _output_tokens(self) -> int:
        unreported = Size(self._received - self._before_report, 0)
        return self._reported.output_tokens + self.estimator.tokens(unreported)

    def _output_rate(self, price: Price) -> Decimal:
        return per_token(price.for_prompt(self.prompt).output)

    def _correct_prompt(self, price: Price, usage: Usage) -> None:
        """The provider has said how large the prompt is: hold what it costs, in place of an estimate."""
        self.prompt = prompt_tokens(usage)
        exact = price.cost(attrs.evolve(usage, output_tokens=0, server_tool_calls=0)) or Decimal(0)
        self.reservation.correct(exact + self.reservation.tokens * self._output_rate(price))


def _refused(error: Exception | None) -> bool:
    """Whether the provider has said no before it began to answer: that is not billed."""
    if isinstance(error, ConnectionFailed):
        return error.nothing_sent
    return isinstance(error, ProviderError) and not isinstance(error, ProviderTimeout | WireError)


def _left_alone(error: Exception | None) -> bool:
    """Whether the provider may not know that nobody reads any more: we have hung up, or the connection broke."""
    return not isinstance(error, ProviderError) or isinstance(error, ConnectionFailed | ProviderTimeout | WireError)
