"""
Sync tools in threads: waited for, then abandoned.

A thread cannot be cancelled. So a cancelled call first asks (its context's `check_cancelled` raises from then on), then waits
for `cancel_grace` seconds, and only then leaves the thread behind. All of it is one scope: shielded as soon as the thread
runs, given its deadline by a watcher that the cancel wakes up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
import trio

from ._context import _CallCancelled

if TYPE_CHECKING:
    from ._context import ToolContext

T = TypeVar("T")


@attrs.frozen
class ThreadResult:
    """
    How a thread ended; all False and None if it never ran.

    Attributes:
        returned: Whether the function returned.
        value: What it returned.
        error: What it raised instead.
        abandoned: Whether it was left running.
    """

    returned: bool = False
    value: Any = None
    error: Exception | None = None
    abandoned: bool = False


async def call_in_thread(
    fn: Callable[[], object],
    ctx: ToolContext[Any],
    *,
    started: Callable[[], None],
    report: Callable[[ThreadResult], None],
    grace: float,
    limiter: trio.CapacityLimiter,
) -> None:
    """
    Run `fn` in a thread. Tells `started` when it begins, and `report` how it ended, also when this is cancelled meanwhile.

    A cancel before there is a thread (while waiting for the limiter) leaves at once. `grace` is in seconds and may be
    `math.inf`. The cancel goes on when this returns; nothing is raised otherwise.
    """
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(_pass_cancel_on, ctx, scope, grace)
        gate = cast("trio.CapacityLimiter", _Gate(limiter, scope, started))
        with scope:
            report(
                await trio.to_thread.run_sync(
                    _capture,
                    fn,
                    abandon_on_cancel=True,
                    limiter=gate,
                    thread_name=f"alloy_trio tool {ctx.name}",
                )
            )
        if scope.cancelled_caught:
            report(ThreadResult(abandoned=True))
        nursery.cancel_scope.cancel()


def _capture(fn: Callable[[], object]) -> ThreadResult:
    try:
        return ThreadResult(returned=True, value=fn())
    except _CallCancelled:
        return ThreadResult()
    except Exception as error:  # noqa: BLE001 - it goes on as a value: an error result for the model
        return ThreadResult(error=error)


async def _pass_cancel_on(ctx: ToolContext[Any], scope: trio.CancelScope, grace: float) -> None:
    try:
        await trio.sleep_forever()
    finally:
        ctx._cancel()  # noqa: SLF001 - the other half of check_cancelled
        scope.deadline = trio.current_time() + grace


@attrs.frozen
class _Gate:
    """A limiter that, once it has let the thread through, shields the scope it is waited for in, and says so."""

    limiter: trio.CapacityLimiter
    scope: trio.CancelScope
    started: Callable[[], None]

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.limiter.acquire_on_behalf_of(borrower)
        self.scope.shield = True
        self.started()

    def release_on_behalf_of(self, borrower: object) -> None:
        self.limiter.release_on_behalf_of(borrower)
