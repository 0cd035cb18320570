"""What a tool may know of the call it serves, and what it may do as a part of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
import trio

from .._events import Custom

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    D = TypeVarWithDefault("D", default=Any)  # so that a bare `ToolContext` passes a strict type checker
else:
    D = TypeVar("D")

T = TypeVar("T")


class _CallCancelled(BaseException):
    """
    The call was cancelled: raised in a sync tool's thread by `ToolContext.check_cancelled`.

    No Exception, so that a tool's own `except Exception` lets it through. The executor is the only one to catch it.
    """


async def _discard(_: Custom) -> None:
    """Emit nothing: a context that no run made has nobody to tell."""


@attrs.define(kw_only=True, eq=False)
class ToolContext(Generic[D]):
    """
    What a tool may know of the call it serves.

    A tool gets it by declaring a parameter of this type, under any name, which the model does not see. Everything has a
    default, so that a test can call a tool with a context of its own.

    Attributes:
        working_directory: Where relative paths start.
        allowed_paths: The directories that file tools may touch.
        context: What the user gave as `context=`.
        deps: What the user gave as `deps=`; `ToolContext[Database]` gives it its type.
        tool_use_id: The call's id.
        name: The tool's name.
        correlation_id: The run's, as in its events.
    """

    working_directory: Path = attrs.field(factory=Path)
    allowed_paths: tuple[Path, ...] = attrs.Factory(lambda self: (self.working_directory,), takes_self=True)
    context: Mapping[str, Any] = attrs.field(factory=dict, repr=False)  # the user's own values
    deps: D = attrs.field(default=None, repr=False)
    tool_use_id: str = ""
    name: str = ""
    correlation_id: str = ""
    _emit: Callable[[Custom], Awaitable[None]] = attrs.field(default=_discard, repr=False)
    _cancelled: bool = attrs.field(default=False, init=False, repr=False)
    # Of what a thread does in Trio.
    _scopes: set[trio.CancelScope] | None = attrs.field(default=None, init=False, repr=False)

    def check_cancelled(self) -> None:
        """
        Leave the tool, if its call has been cancelled.

        For sync tools: their thread cannot be stopped from outside, so a long one calls this now and then. What it
        raises is no `Exception`; let it through. An async tool is cancelled by Trio and needs no such call.
        """
        if self._cancelled:
            raise _CallCancelled

    async def emit(self, name: str, payload: Mapping[str, Any]) -> None:
        """
        Send a `Custom` event into the run's events, and wait until it has been taken.

        From a sync tool's thread: `ctx.from_thread(ctx.emit, name, payload)`.
        """
        await self._emit(Custom(name, dict(payload)))

    def from_thread(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """
        Call an async function in Trio, from a sync tool's thread, as a part of this call: it is cancelled with it.

        So a sync tool may run another agent: `ctx.from_thread(partial(run, "…", provider=…))`. What is called by
        `trio.from_thread.run` instead is not reached by a cancel of the run, and may outlive it.

        Raises what `fn` raises; once the call has been cancelled, what `check_cancelled` does.
        """
        return trio.from_thread.run(self._inside, fn, *args)

    async def _inside(self, fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        self.check_cancelled()
        with trio.CancelScope() as scope:
            scopes = self._scopes = self._scopes or set()
            scopes.add(scope)
            try:
                return await fn(*args)
            finally:
                scopes.discard(scope)
        raise _CallCancelled

    def _cancel(self) -> None:
        self._cancelled = True
        for scope in self._scopes or ():
            scope.cancel()
