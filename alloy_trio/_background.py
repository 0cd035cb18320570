"""
A task beside the body of an `async with`, whose end does not disturb what the body raises.

A plain nursery wraps the body's exception into a group. Here it leaves as it came: on exit the task is cancelled and joined,
then the body's exception goes on, the same object, also when it is a group itself. What the task raised is kept in `error`,
for the owner to raise where it belongs. The task has a scope of its own: cancelling it leaves the body alone.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

import trio

from ._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType


def check_trio() -> None:
    """
    See that Trio runs the caller; what Trio says by itself without that leads nobody to what to do.

    Raises:
        RuntimeError: It does not.
    """
    if not trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "this needs Trio, and no task of Trio's is running here: begin with trio.run(main), or call run_sync(…). "
            "A program of asyncio makes Trio its guest: see 'Use it from an asyncio program' in the documentation"
        )


def check_home(home: trio.lowlevel.TrioToken, who: str) -> None:
    """
    See that the caller is of the Trio run in which somebody lives: elsewhere, Trio itself would break down.

    Raises:
        InvalidOption: It is of another one.
    """
    if trio.lowlevel.current_trio_token() is not home:
        raise InvalidOption(
            f"{who} lives in another Trio run: ask it there, from a thread by trio.from_thread.run(agent.chat, …)"
        )


class Background:
    """
    Runs `fn` while the body runs.

    Attributes:
        error: What `fn` raised, if it did.
    """

    error: Exception | None = None

    def __init__(self, fn: Callable[[], Awaitable[object]]) -> None:
        self._fn = fn
        self._scope = trio.CancelScope()
        self._done = trio.Event()

    async def __aenter__(self) -> Self:
        check_trio()
        self._manager = trio.open_nursery()  # not before: it asks for Trio
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._run)
        return self

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._fn()
        except Exception as error:  # noqa: BLE001 - the owner raises it
            self.error = error
        finally:
            self._done.set()

    def cancel(self) -> None:
        """Cancel the task; leaving the body waits for it."""
        self._scope.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        with trio.CancelScope(shield=True):
            await self._done.wait()
        try:
            await self._manager.__aexit__(None, None, None)
        finally:
            # A cancel from outside arrives here too, as the nursery's, and the body's own exception goes before it. Nothing
            # goes before what ends programs, a KeyboardInterrupt in the task for instance.
            if error is not None and _is_cancel(sys.exception()):
                context = error.__context__
                try:
                    raise error
                finally:
                    error.__context__ = context


def _is_cancel(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
