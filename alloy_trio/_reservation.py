"""
Setting money aside for a request, and waiting for it.

Who waits is served first come, first served: nobody passes somebody who waits for the same budget, but for what is a part of a
holder (it runs in a listener of its events), since all of them wait for that. One waits only as long as waiting can help, that
is while somebody holds a reservation who will settle it. Nobody holds one while waiting for another, so holders end by
themselves, with two exceptions: one whose listener does not take its events (it may be the one who waits, in the body of a
stream), which counts no more after a moment, and one in the waiter's own chain of calls, which does not count at all. When no
holder is left who counts, or all that holders could give back would not be enough, it is `BudgetExhausted` at once.
"""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs
import trio

from ._budget import Account, Around, Budget, BudgetExhausted, around

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 0.25  # seconds that a listener may take over a batch of events before a waiter stops counting on its run
_ZERO = Decimal(0)


@attrs.frozen(kw_only=True)
class Ask:
    """
    What one request wants to reserve.

    Attributes:
        fixed: Dollars that it costs whatever the answer is.
        rate: Dollars for each token of the answer.
        wanted: Tokens of the answer, at most.
        least: Tokens below which it is not worth asking.
    """

    fixed: Decimal
    rate: Decimal
    wanted: int
    least: int

    def amount(self, tokens: int) -> Decimal:
        """Return what an answer of so many tokens costs."""
        return self.fixed + tokens * self.rate

    def affordable(self, dollars: Decimal) -> int:
        """Return how many tokens, of those wanted, can be had for so much; -1 if not even the fixed part."""
        if self.fixed > dollars and (self.fixed or self.rate):  # what is free can be had with nothing left
            return -1
        if self.amount(self.wanted) <= dollars or not self.rate:
            return self.wanted
        return int((dollars - self.fixed) // self.rate)  # a quotient could be rounded up


@attrs.define(eq=False)
class Reservation:
    """
    Money set aside for one request, until it is settled.

    Attributes:
        tokens: How many tokens of an answer it is for.
        amount: Dollars.
        account: The run that has it.
    """

    tokens: int
    amount: Decimal
    account: Account | None
    _budgets: tuple[Budget, ...]
    _blocked_since: float = math.inf
    _blocks: int = 0

    def correct(self, ask: Ask) -> None:
        """
        Hold what this asks for from now on: what the request costs whatever the answer is has become known.

        Where that is more than is there, it is held for fewer tokens of the answer, down to none.
        """
        before = self.amount
        room = min((budget._free for budget in self._budgets), default=ask.amount(ask.wanted)) + before  # noqa: SLF001 - one ledger
        self.tokens = max(ask.affordable(room), 0)
        self._hold(ask.amount(self.tokens))
        if self.amount < before:
            _stir()

    def extend(self, tokens: int, amount: Decimal) -> bool:
        """Hold that much more, for so many tokens more, if it is there and nobody waits for any. Never waits."""
        if amount and (_is_waited_for(self._budgets) or any(budget._free < amount for budget in self._budgets)):  # noqa: SLF001 - one ledger
            return False
        self.tokens += tokens
        self._hold(self.amount + amount)
        return True

    def settle(self, spent: Decimal) -> None:
        """Give it back, and book what was spent."""
        if not self._budgets:
            return
        self._hold(_ZERO)
        for budget in self._budgets:
            budget.spent += spent
            budget._holders.discard(self)  # noqa: SLF001 - one ledger
        _stir()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Say that the holder waits for somebody else while in the body; one who waits for money looks for that by itself."""
        self._blocked_since = min(self._blocked_since, trio.current_time())
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if not self._blocks:
                self._blocked_since = math.inf

    def counts_until(self) -> float:
        """Return until when one may wait for it to be settled."""
        return self._blocked_since + _PATIENCE

    def _hold(self, amount: Decimal) -> None:
        for budget in self._budgets:
            budget.reserved += amount - self.amount
        self.amount = amount


@attrs.define(eq=False)
class _Waiter:
    ask: Ask
    around: Around
    granted: Reservation | None = None
    wake: trio.Event = attrs.field(factory=trio.Event)

    def affordable(self) -> int:
        return min((self.ask.affordable(budget._free) for budget in self.around.budgets), default=self.ask.wanted)  # noqa: SLF001 - one ledger

    def take(self) -> Reservation | None:
        """Take what can be had in all budgets, in one step; None if it is less than the least."""
        if (tokens := self.affordable()) < self.ask.least:
            return None
        budgets = self.around.budgets
        self.granted = Reservation(tokens, _ZERO, self.around.account, budgets)
        self.granted._hold(self.ask.amount(tokens))  # noqa: SLF001 - its maker
        for budget in budgets:
            budget._holders.add(self.granted)  # noqa: SLF001 - one ledger
        return self.granted

    def reason(self) -> str:
        """Say what the request would have needed, and what there is."""
        least, left = self.ask.amount(self.ask.least), min(budget.left for budget in self.around.budgets)
        return (
            f"the next request may cost ${least:.6f} with an answer of {self.ask.least} tokens, the least that is worth "
            f"asking for, and ${left:.6f} is left; a smaller max_output_tokens needs less"
        )

    def passes(self) -> bool:
        """Whether it need not stand in line: it costs nothing, or is a part of a holder, whom those in line wait for."""
        if not self.ask.amount(self.ask.wanted):
            return True
        own = self._own()
        return any(holder.account in own for budget in self.around.budgets for holder in budget._holders)  # noqa: SLF001 - one ledger

    def lacks(self) -> set[Budget]:
        """Return the budgets that have not even the least: these are what it waits for."""
        return {budget for budget in self.around.budgets if self.ask.affordable(budget._free) < self.ask.least}  # noqa: SLF001 - one ledger

    def worth_waiting_until(self) -> float:
        """Return until when waiting may help, if no holder changes; now or earlier: it does not."""
        own = self._own()
        until = math.inf
        for budget in self.around.budgets:
            if self.ask.affordable(budget._free) >= self.ask.least:  # noqa: SLF001 - one ledger
                continue
            if self.ask.affordable(budget.limit - budget.spent) < self.ask.least:
                return -math.inf
            holders = [holder for holder in budget._holders if holder.account not in own]  # noqa: SLF001 - one ledger
            until = min(until, max((holder.counts_until() for holder in holders), default=-math.inf))
        return until

    def _own(self) -> set[Account]:
        """Return the accounts of the runs that this is a part of."""
        return set() if self.around.account is None else set(self.around.account.chain())


_queue: trio.lowlevel.RunVar[list[_Waiter]] = trio.lowlevel.RunVar("alloy_trio waiting for money")


def _line() -> list[_Waiter]:
    """Return those who wait in this Trio run, in order."""
    try:
        return _queue.get()
    except LookupError:
        line: list[_Waiter] = []
        _queue.set(line)
        return line


def _is_waited_for(budgets: tuple[Budget, ...]) -> bool:
    """Whether anybody waits for any of these budgets who has not had their turn."""
    return any(each.lacks().intersection(budgets) for each in _line() if each.granted is None)


def _stir() -> None:
    """Serve those who wait, in order, and let the others look again whether waiting still helps."""
    claimed: set[Budget] = set()
    for waiter in _line():
        if waiter.granted is not None:
            continue
        is_behind = not claimed.isdisjoint(waiter.around.budgets) and not waiter.passes()
        if is_behind or waiter.take() is None:
            claimed |= waiter.lacks()
        if not is_behind:  # for the others nothing has changed
            waiter.wake.set()


async def reserve(ask: Ask) -> Reservation:
    """
    Set money aside in all budgets around the caller, and return what could be had: `ask.wanted` tokens, or fewer.

    Without a budget it is all that is asked for, at once. What is got has to be settled.

    Raises:
        BudgetExhausted: Not even the least is there, and waiting for others to settle would not help.
        InvalidOption: A budget is in use by another Trio run.
    """
    waiter = _Waiter(ask, around())
    for budget in waiter.around.budgets:
        budget._claim()  # noqa: SLF001 - one ledger
    has_turn = waiter.passes() or not _is_waited_for(waiter.around.budgets)
    if has_turn and (taken := waiter.take()) is not None:
        return taken
    return await _wait(waiter)


async def _wait(waiter: _Waiter) -> Reservation:
    line, account = _line(), waiter.around.account or Account()
    line.append(waiter)
    kept = False
    try:
        while waiter.granted is None:
            if waiter.worth_waiting_until() <= trio.current_time():
                raise BudgetExhausted(waiter.reason())
            waiter.wake = trio.Event()
            with trio.move_on_after(_PATIENCE):
                await waiter.wake.wait()
        kept = True
        return waiter.granted
    finally:
        if not kept:
            account.waited_until = trio.current_time()
        line.remove(waiter)
        if waiter.granted is not None and not kept:  # cancelled in the very moment
            waiter.granted.settle(_ZERO)
        _stir()
