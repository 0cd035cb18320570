"""What the calls of a run share, and whom they tell."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from .._messages import ToolResult
from ._tool import Tool

if TYPE_CHECKING:
    from .._events import Event


class Emits(Protocol):
    """Who is told of what happens."""

    def unheard(self, count: int) -> int | None:
        """Number events that nobody would hear, so that they need not be made; None: somebody would."""
        ...

    async def emit(self, *events: Event) -> int:
        """Number events, hand them over, and give the number of the first."""
        ...

    def number(self, *events: Event) -> tuple[int, Any]:
        """Give the sequence number of the first event, and what `hand_over` takes: of whatever kind."""
        ...

    async def hand_over(self, batch: Any) -> None:
        """Hand over what `number` gave, and return when it has been taken."""
        ...


@attrs.frozen(kw_only=True)
class ToolSettings:
    """
    What all calls of a run share.

    Attributes:
        tools: The tools, by name.
        timeout: Seconds a call may take, unless its tool says otherwise.
        cancel_grace: Seconds that a cancelled call's thread is waited for, unless its tool says otherwise.
        threads: How many threads the calls of this run may have at once.
        working_directory: For `ToolContext`, as are the rest.
        allowed_paths: The folders that file tools may touch.
        context: The user's.
        deps: The user's.
        correlation_id: The run's.
        session_id: The run's session.
        on_result: Writes a result down, as soon as its call has ended and before anybody is told.
    """

    tools: Mapping[str, Tool]
    timeout: float
    cancel_grace: float
    threads: int
    working_directory: Path
    allowed_paths: tuple[Path, ...]
    context: Mapping[str, Any] = attrs.field(repr=False)
    deps: Any = attrs.field(repr=False)
    correlation_id: str
    session_id: str = ""
    on_result: Callable[[ToolResult], Awaitable[None]] | None = None

    @functools.cached_property
    def limiter(self) -> trio.CapacityLimiter:
        """Bounds the threads of this run; never shared, so that nested runs cannot wait for each other."""
        return trio.CapacityLimiter(self.threads)
