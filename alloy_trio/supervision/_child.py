"""One child of a supervisor, and the task it lives in."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import trio

from .._util import single
from ._spec import ExitReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._spec import ChildSpec

logger = logging.getLogger("alloy_trio.supervision")

State: TypeAlias = Literal["starting", "up", "stopping", "restarting", "down"]


@attrs.define(eq=False)
class Life:
    """
    One life of a child: its task, from start to end.

    It is what `start` gets as `task_status`.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    handle: Any = None  # whatever the child says it is
    is_up: bool = False
    is_stopping: bool = False  # by the supervisor
    is_gone: bool = False  # it was told that there will be no other life
    reason: ExitReason | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)  # up, or over
    over: trio.Event = attrs.field(factory=trio.Event)

    def started(self, value: Any = None) -> None:
        """Say that the child is up, and by which handle it is reached: called once."""
        if self.is_up:
            raise RuntimeError("task_status.started() was called twice")
        self.handle, self.is_up = value, True
        self.ready.set()


class Child:
    """
    A place in a supervisor: the spec, and the life of it that is under way, if any.

    Attributes:
        spec: What was asked for.
        state: Where it stands.
        handle: The handle of this life, or else of the last one.
        life: The life under way, or the last one.
        restarts: How often it was started again.
        changed: Set, and replaced by another, whenever `state` changes.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state: State = "down"
        self.handle: Any = None
        self.life: Life | None = None
        self.restarts: int = 0
        self.changed: trio.Event = trio.Event()
        self.is_deleted: bool = False

    def turn(self, state: State) -> None:
        """Note where it stands now."""
        self.state = state
        self.changed.set()
        self.changed = trio.Event()

    async def live(self, life: Life, tell: Callable[[Child, Life], None]) -> None:
        """Be the child's task: call `start`, note how it ended, `tell` the supervisor. Catches outside the child's own scope."""
        error: Exception | None = None
        try:
            with life.scope:
                if self.spec.takes_status:
                    await self.spec.start(*self.spec.args, task_status=life)
                else:
                    life.started()
                    await self.spec.start(*self.spec.args)
        except Exception as raised:  # noqa: BLE001 - it is the reason of the exit, and the supervisor decides
            error = single(raised)
        if life.is_stopping:
            if error is not None:
                logger.error("child %s raised while it was being stopped", self.spec.id, exc_info=error)
            life.reason = ExitReason("shutdown", error)
        elif error is not None:
            life.reason = ExitReason("error", error)
        else:
            life.reason = ExitReason("normal")
        life.over.set()
        life.ready.set()
        tell(self, life)

    async def stop(self, on_overdue: Callable[[float], None]) -> None:
        """End the life under way, by `stop`, then by a cancel, however long it takes."""
        life, spec = self.life, self.spec
        if life is None or life.over.is_set():
            return
        life.is_stopping = True
        self.turn("stopping")
        began = trio.current_time()
        if spec.stop is not None and life.is_up:
            with trio.move_on_after(spec.shutdown):
                await self._ask_to_stop(life)
                await life.over.wait()
        life.scope.cancel()
        with trio.move_on_after(spec.shutdown):
            await life.over.wait()
        if not life.over.is_set():
            on_overdue(trio.current_time() - began)
            await life.over.wait()

    async def _ask_to_stop(self, life: Life) -> None:
        assert self.spec.stop is not None
        try:
            answer = self.spec.stop(life.handle)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("stop= of child %s raised; it is cancelled now", self.spec.id)
            life.scope.cancel()
