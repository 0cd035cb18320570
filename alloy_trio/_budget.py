"""
Money that cannot be overspent: a ledger, which knows nothing of models.

A `Budget` is a limit and two sums: what is *spent*, and what is *reserved* for requests under way. Invariant: whoever asks
before spending never makes `spent + reserved` exceed the limit, in any of the budgets around it:

    reserve     one step, without an await between check and take, in all budgets at once. It takes what is asked for, or
                less, down to a useful least; else it waits.
    settle      once per reservation: it is given back, and what was really spent is booked, in all budgets at once.

Budgets nest by a context variable, and so do runs: what a sub-agent in a tool spends is drawn on every budget around it.

How one waits for money is told in `_reservation`.

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
    from ._reservation import Reservation
    from .providers._base import Response

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
    One Trio run at a time may use a budget. Not around a `yield`: there it would be around whoever iterates.

    Attributes:
        limit: What may be spent, in dollars.
        spent: What has been, estimates included.
        reserved: What requests under way may still cost.

    Raises:
        InvalidOption: The amount is a float, or not above 0; or, as a run begins, another Trio run has the budget in use.
    """

    def __init__(self, dollars: Decimal | str | int | None = None, *, cents: Decimal | str | int | None = None) -> None:
        if (dollars is None) == (cents is None):
            raise InvalidOption('a budget needs one amount: Budget("0.50"), in dollars, or Budget(cents=50)')
        name, amount = ("a budget", dollars) if cents is None else ("cents", cents)
        self.limit: Decimal = money(amount, name) / (1 if cents is None else 100)
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
        waited_until: When it last waited for money in vain.
    """

    session_id: str = ""
    correlation_id: str = ""
    outer: Account | None = None
    usage: Usage = attrs.field(factory=Usage)
    cost: Decimal = _ZERO
    is_known: bool = True
    waited_until: float = -math.inf

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
