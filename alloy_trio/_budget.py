"""
Money that cannot be overspent: a ledger, which knows nothing of models.

A `Budget` is a limit and two sums: what is *spent*, and what is *reserved* for requests under way. Invariant: whoever asks
before spending never makes `spent + reserved` exceed the limit, in any of the budgets around it:

    reserve     one step, without an await between check and take, in all budgets at once. It takes what is asked for, or
                less, down to a useful least; else it waits.
    settle      once per reservation: it is given back, and what was really spent is booked, in all budgets at once.

Budgets nest by a context variable, and so do runs: what a sub-agent in a tool spends is drawn on every budget around it.

Who waits is served first come, first served: nobody passes somebody who waits for the same budget, but for what is a part of a
holder (it runs in a listener of its events), since all of them wait for that. One waits only as long as waiting can help, that
is while somebody holds a reservation who will settle it. Nobody holds one while waiting for another, so holders end by
themselves, with two exceptions: one whose listener does not take its events (it may be the one who waits, in the body of a
stream), which counts no more after a moment, and one in the waiter's own chain of calls, which does not count at all. When no
holder is left who counts, or all that holders could give back would not be enough, it is `BudgetExhausted` at once.

What can still go over the limit (the error of an estimate, a fee that no cap bounds) is booked all the same, and is `overrun`.
"""

from __future__ import annotations

import contextlib
import math
from contextvars import ContextVar
from decimal import Decimal
from typing import TYPE_CHECKING, Self

import attrs
import trio

from ._errors import InvalidOption
from ._price import money
from ._usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from ._events import ProviderEvent
    from .providers._base import Response

_PATIENCE = 0.25  # seconds that a listener may take over a batch of events before a waiter stops counting on its run
_ZERO = Decimal(0)


class BudgetExhausted(Exception):
    """
    There is no money for what was to be done. A run turns it into its status; nobody else ever sees it.

    Attributes:
        response: An answer that was cut short by the cap which the budget had set, if it is that.
        heard: What had come of an answer that was cut, as far as nobody was told of it.
    """

    def __init__(
        self,
        reason: str = "the budget was used up in the middle of an answer",
        response: Response | None = None,
        heard: Sequence[ProviderEvent] = (),
    ) -> None:
        super().__init__(reason)
        self.response = response
        self.heard = heard


class Budget:
    """
    A limit on what everything inside `with budget:` may cost, in dollars: runs, their sub-agents, in any number of tasks.

        with Budget("0.50"):  # or Budget(cents=50)
            await run(…)

    Checked before each request, and enforced while it streams. A run that has no money left
    ends with status `budget_exceeded`; nothing is raised. A model whose price is not known raises `UnknownPrice` instead of
    being asked. Budgets nest, and the tightest counts. Leaving the body changes nothing but what later requests are drawn on.
    One Trio run at a time may use a budget.

    Attributes:
        limit: What may be spent, in dollars.
        spent: What has been, estimates included.
        reserved: What requests under way may still cost.
    """

    def __init__(self, dollars: Decimal | str | int | None = None, *, cents: Decimal | str | int | None = None) -> None:
        if (dollars is None) == (cents is None):
            raise InvalidOption('a budget needs one amount: Budget("0.50"), in dollars, or Budget(cents=50)')
        name, amount = ("a budget", dollars) if cents is None else ("cents", cents)
        self.limit = money(amount, name) / (1 if cents is None else 100)
        if self.limit <= 0:
            raise InvalidOption(f"{name}={amount!r} has to be above 0; for no limit leave it out")
        self.spent = _ZERO
        self.reserved = _ZERO
        self._holders: set[Reservation] = set()
        self._trio_run: trio.lowlevel.TrioToken | None = None

    @property
    def left(self) -> Decimal:
        """What is neither spent nor reserved, in dollars; not below 0."""
        return max(self._free, _ZERO)

    @property
    def overrun(self) -> Decimal:
        """By how much the limit was exceeded, in dollars: 0 unless an estimate was too low or a server ignored its cap."""
        return max(self.spent - self.limit, _ZERO)

    @property
    def _free(self) -> Decimal:
        return self.limit - self.spent - self.reserved

    def _claim(self) -> None:
        """Take the budget for this Trio run; another may have had it before."""
        run = trio.lowlevel.current_trio_token()
        if self._trio_run is not run and self._holders:
            raise InvalidOption("this budget is in use by another Trio run, in another thread: give this one its own")
        self._trio_run = run

    def __enter__(self) -> Self:
        around = _around.get()
        _around.set(Around((*around.entered, self), around.account))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        around = _around.get()
        budgets = list(around.entered)
        if self in budgets:  # else it was entered in another task's context
            del budgets[len(budgets) - 1 - budgets[::-1].index(self)]
            _around.set(Around(tuple(budgets), around.account))

    def __repr__(self) -> str:
        return f"<Budget: ${self.spent} of ${self.limit} spent, ${self.reserved} reserved>"


@attrs.define(eq=False, kw_only=True)
class Account:
    """
    What one run has used and what that has cost, its sub-agents' costs included.

    Attributes:
        session_id: The run's session.
        correlation_id: The run's, as in its events.
        outer: The account of the run that this one is a part of.
        usage: Tokens of this run alone.
        cost: Dollars, as far as they are known.
        is_known: Whether all of it is.
        waits: Whether it is waiting for money, or was when it was cancelled.
    """

    session_id: str = ""
    correlation_id: str = ""
    outer: Account | None = None
    usage: Usage = attrs.field(factory=Usage)
    cost: Decimal = _ZERO
    is_known: bool = True
    waits: bool = False

    def book(self, usage: Usage, cost: Decimal, *, known: bool) -> None:
        """Add an attempt; `known`: whether that is all it has cost."""
        self.usage += usage
        for account in self.chain():
            account.cost += cost
            account.is_known = account.is_known and known

    def chain(self) -> Iterator[Account]:
        """Yield this account and those of the runs around it."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.outer


@attrs.frozen
class Around:
    """
    What is around the code that asks: the budgets to draw on, outermost first, and the account of the run.

    `entered` has them as often as they were entered, `budgets` once.
    """

    entered: tuple[Budget, ...] = ()
    account: Account | None = None
    budgets: tuple[Budget, ...] = attrs.field(
        init=False, default=attrs.Factory(lambda self: tuple(dict.fromkeys(self.entered)), takes_self=True)
    )


_around: ContextVar[Around] = ContextVar("alloy_trio budgets", default=Around())  # noqa: B039 - frozen


def around() -> Around:
    """Return what is around the caller."""
    return _around.get()


@contextlib.contextmanager
def on_account(account: Account, budget: Budget | None) -> Iterator[None]:
    """Let the body, and the tasks it starts, be paid by this account and this budget, inside those that are around already."""
    outer = _around.get()
    account.outer = outer.account
    _around.set(Around(outer.entered if budget is None else (*outer.entered, budget), account))
    try:
        yield
    finally:
        _around.set(outer)


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
        self._blocked_since = trio.current_time()
        try:
            yield
        finally:
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
        if self.around.account is not None:
            self.around.account.waits = False
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
    return any(set(each.around.budgets) & set(budgets) for each in _line() if each.granted is None)


def _stir() -> None:
    """Serve those who wait, in order, and let the others look again whether waiting still helps."""
    claimed: set[Budget] = set()
    for waiter in _line():
        budgets = set(waiter.around.budgets)
        if waiter.granted is None and ((claimed & budgets and not waiter.passes()) or waiter.take() is None):
            claimed |= budgets
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
    account.waits = True
    kept = False
    try:
        while waiter.granted is None:
            if waiter.worth_waiting_until() <= trio.current_time():
                account.waits = False
                raise BudgetExhausted(waiter.reason())
            waiter.wake = trio.Event()
            with trio.move_on_after(_PATIENCE):
                await waiter.wake.wait()
        kept = True
        return waiter.granted
    finally:
        line.remove(waiter)
        if waiter.granted is not None and not kept:  # cancelled in the very moment
            waiter.granted.settle(_ZERO)
        _stir()
