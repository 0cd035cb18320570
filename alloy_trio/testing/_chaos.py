"""
Cancel something everywhere it can be cancelled.

Trio delivers a cancel at a checkpoint, so a piece of code is cut in as many ways as it takes steps: the stretches between two
checkpoints, of its own task and of all that it starts. An instrument counts them, and cancels just before the nth. Trio runs
the tasks that are ready at once in an order of its own, so the nth step is not the same one every time; over all steps of
some runs, that is one more thing that is tried.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from .._background import Background
from ._asserts import all_tasks, assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")


async def cancel_at_every_checkpoint(
    fn: Callable[[], Awaitable[T]],
    *,
    check: Callable[[T | None], object] | None = None,
    cancel: Callable[[], object] | None = None,
    first: int = 1,
    limit: int = 10_000,
) -> int:
    """
    Call `fn` again and again, cancelled at its 1st, 2nd, 3rd … step, until one call comes to its end before; say how many it has.

    Each time nothing of it may be left running: see `assert_no_orphans`. What is raised has a note that says at which step.

    Args:
        fn: What is cancelled; it begins anew each time.
        check: Called after each time, the uncancelled one included, with what `fn` returned, or None where the cancel ended it.
            May be an async function.
        cancel: How to cancel, once; by default the scope around `fn` is. May be an async function, which runs beside `fn`, from
            that step on, and is waited for. A cancel that `fn` is to outlive returns a result.
        first: The step to begin with, to come back to one that failed.
        limit: The last step that is tried.

    Raises:
        AssertionError: Something was left running, or `fn` takes more steps than `limit`.
    """
    for step in range(first, limit + 1):
        try:
            was_reached, result = await cancel_at_checkpoint(fn, step, cancel=cancel)
            if check is not None and inspect.isawaitable(answer := check(result)):
                await answer
        except Exception as error:
            error.add_note(f"It was cancelled at step {step}; first={step} begins there.")
            raise
        if not was_reached:
            return step - 1
    raise AssertionError(f"there are more than {limit} steps: does it ever end? A larger limit= goes on")


async def cancel_at_checkpoint(
    fn: Callable[[], Awaitable[T]], step: int, *, cancel: Callable[[], object] | None = None
) -> tuple[bool, T | None]:
    """
    Call `fn`, cancelled at one step; return whether it came to that step, and its result, or None where the cancel ended it.

    Steps are those of this task and of all tasks that begin meanwhile, counted from 1 at the first checkpoint.

    Args:
        fn: What is cancelled.
        step: At which one.
        cancel: As in `cancel_at_every_checkpoint`.

    Raises:
        AssertionError: Something was left running.
    """
    result: T | None = None
    scope = trio.CancelScope()
    steps = _Steps(step, cancel or scope.cancel)
    try:
        async with Background(steps.finish_cancel) as background:
            with scope, assert_no_orphans(), steps.counted():
                try:
                    result = await fn()
                finally:
                    await steps.cancel_is_over()
    finally:
        steps.close()
    if error := steps.error or background.error:
        raise error
    return steps.left <= 0, result


class _Steps(trio.abc.Instrument):
    """Counts steps down, and cancels at the last one."""

    def __init__(self, left: int, cancel: Callable[[], object]) -> None:
        self.left = left
        self.error: Exception | None = None
        self._cancel = cancel
        self._answer: object = None
        self._wake = trio.Event()
        self._done = trio.Event()
        self._own = trio.lowlevel.current_task()
        self._others: frozenset[trio.lowlevel.Task] = frozenset()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self._others = frozenset(all_tasks()) - {self._own}
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task in self._others:
            return
        self.left -= 1
        if self.left == 0:
            try:
                self._answer = self._cancel()
            except Exception as error:  # noqa: BLE001 - Trio would log it, and drop the instrument
                self.error = error
            if inspect.isawaitable(self._answer):
                self._wake.set()

    async def finish_cancel(self) -> None:
        """Run the part of an async cancel that waits."""
        await self._wake.wait()
        try:
            await cast("Awaitable[object]", self._answer)
        finally:
            self._done.set()

    async def cancel_is_over(self) -> None:
        if self._wake.is_set():
            await self._done.wait()

    def close(self) -> None:
        """Let go of an async cancel that never came to run, since all of this was cancelled meanwhile."""
        if inspect.iscoroutine(self._answer):
            self._answer.close()
