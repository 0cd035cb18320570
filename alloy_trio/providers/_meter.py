"""
One attempt's cost, while it streams and when it is over: the rules, without I/O. `_metered` applies them.

What arrives is counted as the provider counts it, where it says so while it streams, and by its bytes since then. A provider
that stops at its cap by itself is trusted up to a quarter over it, since bytes are only an estimate. Any other is held to what
is reserved, and each of its deltas counts as a token at least: short words are tokens too. (Not so of the first: gateways cut
up deltas letter by letter.) Hidden reasoning sends nothing that could be counted: only the cap bounds it.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from .._errors import (
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    InvalidOption,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    WireError,
)
from .._estimate import Estimator, Size, measure_block, text_bytes
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta, UsageUpdate
from .._messages import Text, Thinking, ToolUse
from .._price import Price, per_token, prompt_tokens
from .._reservation import Ask, Reservation
from .._usage import NO_USAGE, Usage
from ._base import Terms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._events import ProviderEvent
    from ._base import Response

_SLACK = 1.25  # how far a count by bytes may be off
_BYTES_PER_TOKEN = 4  # of an answer, at most: what prompts have taught says little of it, where nothing else bounds it
_REFUSED = 300  # a status from here on is no answer


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
    _cap: int = attrs.field(init=False, default=attrs.Factory(lambda self: self.reservation.tokens, takes_self=True))
    _reported: Usage = attrs.field(init=False, default=NO_USAGE)
    _bytes: int = attrs.field(init=False, default=0)  # that came since
    _deltas: int = attrs.field(init=False, default=0)  # that came since
    _open: set[str] = attrs.field(init=False, factory=set)  # blocks of which deltas have come, but not the end

    def take(self, event: ProviderEvent) -> bool:
        """Count an event. Whether more may come; if not, the attempt is to be cut behind it."""
        self.count(event)
        if not self.limited or self.price is None:
            return True
        if isinstance(event, UsageUpdate) and prompt_tokens(event.usage):
            self._correct_prompt(self.price, event.usage)
        held, count = self.reservation.tokens, self._output_tokens()
        # What a prompt that was larger than thought has taken from the answer, the provider does not know of.
        if count <= (held * _SLACK if self.terms.enforces_cap and held >= self._cap else held):
            return True
        missing, rate = count - held, self._output_rate(self.price)
        return any(self.reservation.extend(more, more * rate) for more in (max(missing, held // 4), missing))

    def usage(self, response: Response | None, error: Exception | None) -> Usage:
        """Return what the attempt has used: as reported, else as far as one can tell."""
        if response is not None and response.usage != NO_USAGE:
            if response.usage.output_tokens or not (self._bytes or response.message.content):
                return response.usage
            said = self._settled_tokens(response, goes_on=False)  # it has told of the prompt alone
            return attrs.evolve(response.usage, output_tokens=said, estimated=True)
        begun = bool(response or self._bytes or self._reported != NO_USAGE)
        if not begun and _refused(error):
            return NO_USAGE
        goes_on = self.limited and self.terms.runs_on and response is None and _left_alone(error)
        prompt = math.ceil(self.prompt * self.estimator.margin) if goes_on else self.prompt
        known = self._reported if prompt_tokens(self._reported) else Usage(input_tokens=prompt)
        return attrs.evolve(known, output_tokens=self._settled_tokens(response, goes_on=goes_on), estimated=True)

    def cost(self, usage: Usage) -> tuple[Decimal, bool]:
        """Return what that usage costs, in dollars, as far as it is known; and whether that is all of it."""
        if self.price is None:
            return Decimal(0), usage == NO_USAGE
        cost = self.price.cost(usage)
        if cost is None:  # tools of the provider's own, for a fee that nobody has told
            return self.price.cost(attrs.evolve(usage, server_tool_calls=0)) or Decimal(0), False
        return cost, True

    def count_all(self, events: Iterable[ProviderEvent]) -> bool:
        """Count events, of which nearly all are text; returns whether the provider has reported usage among them."""
        reports = False
        texts = size = 0
        for event in events:
            if type(event) is TextDelta:
                texts += 1
                size += text_bytes(event.text)
                continue
            self._count_text(texts, size)
            texts = size = 0
            self.count(event)
            reports = reports or type(event) is UsageUpdate
        self._count_text(texts, size)
        return reports

    def _count_text(self, texts: int, size: int) -> None:
        if texts:
            self._open.add("text")
            self._deltas += texts
            self._bytes += size

    def count(self, event: ProviderEvent) -> None:
        """Count an event."""
        match event:
            case TextDelta(text=piece) | ThinkingDelta(text=piece) | ToolInputDelta(json=piece):
                self._open.add(_block_of(event))
                self._deltas += 1
                self._bytes += text_bytes(piece)
            case BlockEnd(block=Text() | Thinking() | ToolUse() as block):
                if (name := _block_of(block)) in self._open:
                    self._open.remove(name)
                else:  # it came in one piece
                    self._bytes += measure_block(block).text
            case UsageUpdate(usage=usage):
                if usage.output_tokens > self._reported.output_tokens:  # else it says nothing of what came since
                    self._bytes = self._deltas = 0
                self._reported = usage

    def _output_tokens(self) -> int:
        received = self.estimator.tokens(Size(self._bytes))
        if not self.terms.enforces_cap:
            received = max(received, self._deltas, self._bytes // _BYTES_PER_TOKEN)
        return self._reported.output_tokens + received

    def _settled_tokens(self, response: Response | None, *, goes_on: bool) -> int:
        """Return what an answer without a report is settled at: up to the reservation, a quarter more than what came."""
        if response is not None and not (self._bytes or self._reported.output_tokens):  # nobody has listened
            self._bytes = sum(measure_block(block).text for block in response.message.content)
        count = self._output_tokens()
        if goes_on:
            return max(count, self._cap)
        with_slack = math.ceil(count * _SLACK)
        return max(count, min(with_slack, self.reservation.tokens)) if self.limited else with_slack

    def _output_rate(self, price: Price) -> Decimal:
        return per_token(price.for_prompt(self.prompt).output)

    def _correct_prompt(self, price: Price, usage: Usage) -> None:
        """The provider has said how large the prompt is: hold what it costs, in place of an estimate."""
        self.prompt = prompt_tokens(usage)
        exact = price.cost(attrs.evolve(usage, output_tokens=0, server_tool_calls=0)) or Decimal(0)
        wanted = self.reservation.tokens
        self.reservation.correct(Ask(fixed=exact, rate=self._output_rate(price), wanted=wanted, least=0))


def _block_of(piece: object) -> str:
    """Return what tells the blocks of an answer apart while they are under way: calls may come side by side."""
    match piece:
        case TextDelta() | Text():
            return "text"
        case ToolInputDelta(id=call) | ToolUse(id=call):
            return f"call {call}"
    return "thinking"


def _refused(error: Exception | None) -> bool:
    """Whether the provider was not asked at all, or has said no before it began to answer: that is not billed."""
    match error:
        case InvalidOption() | AuthenticationError() | RateLimited() | Overloaded() | BadRequest():
            return True
        case ConnectionFailed(nothing_sent=True):
            return True
    return isinstance(error, ProviderError) and error.status is not None and error.status >= _REFUSED


def _left_alone(error: Exception | None) -> bool:
    """Whether the provider may not know that nobody reads any more: we have hung up, or the connection broke."""
    return not isinstance(error, ProviderError) or isinstance(error, ConnectionFailed | ProviderTimeout | WireError)
