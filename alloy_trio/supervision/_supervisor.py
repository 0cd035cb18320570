"""What a supervisor shows: `open_supervisor`, and the `Supervisor` that it gives. What it does is in `_decider`."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio

from .._background import Background
from ._child import State
from ._decider import Decider
from ._spec import ChildSpec, InvalidChildSpec, Restart, Strategy, check_limits, check_specs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from ._events import SupervisorEvent
    from ._registry import Registry


@attrs.frozen(kw_only=True)
class ChildInfo:
    """
    A child, as it is at one moment.

    Attributes:
        id: Its id.
        state: `starting`, `up`, `stopping`, `restarting` or `down`.
        handle: The handle that its last life has given.
        restart: As in its spec.
        restarts: How often it was started again.
    """

    id: str
    state: State
    handle: Any
    restart: Restart
    restarts: int


class Supervisor:
    """
    Starts children, and starts them again: what `open_supervisor` gives.

    `supervisor["id"]` is the handle that a child has given last.

    Attributes:
        name: What it is called in events and in `render_tree`.
        strategy: Who is restarted when one child ends.
    """

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
        self.name: str = decider.name
        self.strategy: Strategy = decider.strategy

    @classmethod
    def child_spec(
        cls,
        children: Iterable[ChildSpec],
        *,
        id: str,  # noqa: A002 - as in ChildSpec
        restart: Restart = "permanent",
        shutdown: float = math.inf,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        on_event: Callable[[SupervisorEvent], object] | None = None,
    ) -> ChildSpec:
        """
        Say how a supervisor is to start another one. Its `shutdown` is endless: its children have theirs.

        Raises:
            InvalidChildSpec: Something about it, or about one of its children.
        """
        specs = check_specs(children)
        check_limits(strategy, max_restarts, within, on_event)

        async def supervise(*, task_status: trio.TaskStatus[Supervisor]) -> None:
            limits: dict[str, Any] = {"strategy": strategy, "max_restarts": max_restarts, "within": within}
            async with open_supervisor(specs, name=id, on_event=on_event, **limits) as supervisor:
                task_status.started(supervisor)
                await trio.sleep_forever()

        return ChildSpec(id=id, start=supervise, restart=restart, shutdown=shutdown, start_timeout=math.inf)

    # What there is

    def __getitem__(self, child_id: str) -> Any:
        """Return a child's handle, whatever it is: that of its last life. Raises KeyError for an unknown id."""
        return self._decider.child(child_id).handle

    def __contains__(self, child_id: object) -> bool:
        return child_id in self._decider.children

    async def wait_child(self, child_id: str) -> Any:
        """
        Return a child's handle once it is up: waits while the child is started, or started again.

        Raises:
            LookupError: There is no such child, or it is down and will not come back by itself.
        """
        await trio.lowlevel.checkpoint()
        child = self._decider.child(child_id)
        while child.state != "up":
            if child.is_deleted or child.state == "down" or self._decider.over.is_set():
                raise LookupError(
                    f"child {child_id!r} of {self.name} is down: restart_child({child_id!r}) starts it again"
                )
            await child.changed.wait()
        return child.handle

    def which_children(self) -> tuple[ChildInfo, ...]:
        """Return all children, in the order of their start."""
        return tuple(
            ChildInfo(
                id=child.spec.id,
                state=child.state,
                handle=child.handle,
                restart=child.spec.restart,
                restarts=child.restarts,
            )
            for child in self._decider.children.values()
        )

    def count_children(self) -> dict[Literal["specs", "active", "supervisors", "workers"], int]:
        """Count them: all; those that are up; those that are supervisors, and the others, whether up or not."""
        children = self._decider.children.values()
        supervisors = sum(isinstance(child.handle, Supervisor) for child in children)
        return {
            "specs": len(children),
            "active": sum(child.state == "up" for child in children),
            "supervisors": supervisors,
            "workers": len(children) - supervisors,
        }

    def render_tree(self) -> str:
        """Return the tree of supervisors and children, with their states, as lines of text."""
        return "\n".join([f"{self.name} ({self.strategy})", *self._branches()])

    def _branches(self) -> list[str]:
        lines: list[str] = []
        children = list(self._decider.children.values())
        for child in children:
            joint, bar = ("└─ ", "   ") if child is children[-1] else ("├─ ", "│  ")
            again = f", restarted {child.restarts} times" if child.restarts > 1 else ", restarted once"
            state = f"{child.state}{again if child.restarts else ''}"
            if isinstance(child.handle, Supervisor):
                lines.append(f"{joint}{child.spec.id} ({child.handle.strategy}): {state}")
                lines += [bar + line for line in child.handle._branches()]  # noqa: SLF001 - one of its own kind
            else:
                lines.append(f"{joint}{child.spec.id}: {state}")
        return lines

    # What may be changed

    async def start_child(self, spec: ChildSpec) -> Any:
        """
        Add a child, start it behind the others, and return its handle once it is up.

        Raises:
            NameTaken: There is a child of that id, up or not.
            InvalidChildSpec: It is no ChildSpec.
            RuntimeError: The supervisor has stopped.
            Exception: Why it did not start; then it is not there.
        """
        if not isinstance(spec, ChildSpec):
            raise InvalidChildSpec(f"{spec!r:.100} is no ChildSpec: say ChildSpec(id=…, start=…)")
        return await self._decider.ask(partial(self._decider.add, spec))

    async def terminate_child(self, child_id: str) -> None:
        """
        Stop a child. Its spec stays, so `restart_child` may start it again; that of a temporary one goes. Returns once it is down.

        Raises:
            LookupError: There is no such child.
            RuntimeError: The supervisor has stopped.
        """
        await self._decider.ask(partial(self._decider.terminate, child_id))

    async def restart_child(self, child_id: str) -> Any:
        """
        Start a child again that is down, and return its handle once it is up.

        Raises:
            LookupError: There is no such child.
            RuntimeError: It is not down, or the supervisor has stopped.
            Exception: Why it did not start; then it stays down.
        """
        return await self._decider.ask(partial(self._decider.start_again, child_id))

    async def delete_child(self, child_id: str) -> None:
        """
        Forget a child that is down; its id is free then.

        Raises:
            LookupError: There is no such child.
            RuntimeError: It is not down: `terminate_child` comes first. Or the supervisor has stopped.
        """
        await self._decider.ask(partial(self._decider.delete, child_id))

    def __repr__(self) -> str:
        return f"<Supervisor: {self.name}, {len(self._decider.children)} children>"


@contextlib.asynccontextmanager
async def open_supervisor(
    children: Iterable[ChildSpec] = (),
    *,
    strategy: Strategy = "one_for_one",
    max_restarts: int = 3,
    within: float = 5.0,
    name: str = "supervisor",
    registry: Registry | None = None,
    on_event: Callable[[SupervisorEvent], object] | None = None,
) -> AsyncIterator[Supervisor]:
    """
    Supervise children as long as the body runs; they are up, in order, when it begins.

    Leaving the body stops them, in reverse, and returns when they have ended. The body's exception leaves as it came. Where
    children had to be restarted too often, the body is cancelled, and RestartLimitExceeded leaves.

    Args:
        children: Specs. All are checked before any starts.
        strategy: Who is restarted when one ends: `one_for_one`, `one_for_all`, `rest_for_one`.
        max_restarts: How many restarts there may be …
        within: … in so many seconds.
        name: What it is called in events and in `render_tree`.
        registry: Where its children are found by their ids, from other places too.
        on_event: Told of starts, exits and restarts, synchronously. What it raises is logged.

    Raises:
        InvalidChildSpec: A spec, or an option, that cannot be right. Nothing was started.
        NameTaken: The id of a child has another owner in the registry.
        RestartLimitExceeded: See above; the last error is its cause.
        Exception: What the first start of a child raised; those before it have been stopped.
    """
    check_limits(strategy, max_restarts, within, on_event)
    decider = Decider(
        check_specs(children),
        strategy=strategy,
        max_restarts=max_restarts,
        within=within,
        name=name,
        registry=registry,
        on_event=on_event,
    )
    life = Background(decider.run)
    try:
        async with life:
            await decider.ready.wait()
            if decider.failure is None:
                with decider.body:
                    yield Supervisor(decider)
    except Exception as error:
        if decider.failure is not None:
            error.add_note(f"The supervisor had failed as well: {type(decider.failure).__name__}: {decider.failure}")
        raise
    failure = decider.failure or life.error
    if failure is not None:
        raise failure
