"""
Supervision as in OTP: children start in order and stop in reverse, and one that ends is started again, or not, as its spec says.

    children      tasks of one nursery, shielded: a cancel from outside reaches the supervisor, which stops them in order
    decider       the one task that decides. All it does comes to it as orders, one after the other: a child has ended, somebody
                  wants one started. So no two decisions ever overlap.
    exit          is it the end of a life that the supervisor ended itself? Then it is done. Else: restart, by the strategy
                  (OTP's: itself; all; itself and those that were started after it), if the spec says so; or forget it.
    intensity     more than `max_restarts` in `within` seconds: stop all in reverse, raise RestartLimitExceeded
    start fails   at the beginning: stop those that are up, raise. At a restart: it counts as another exit, and is tried again.

Differences from OTP, on purpose: a child that is down because somebody terminated it, or because it was done, stays down when its
siblings are restarted. A child that does not end is waited for (`Overdue` tells of it), for a task cannot be killed.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._instruments import is_on, tell
from ._child import Child, Life
from ._events import ChildExited, ChildRestarted, ChildStarted, Overdue
from ._spec import ExitReason, NameTaken, RestartLimitExceeded

if TYPE_CHECKING:
    from ._events import SupervisorEvent
    from ._registry import Registry
    from ._spec import ChildSpec, Strategy

logger = logging.getLogger("alloy_trio.supervision")


class _StartFailed(Exception):
    """A child did not come up; it is down again."""

    def __init__(self, child: Child, error: Exception) -> None:
        super().__init__()
        self.child = child
        self.error = error


@attrs.define(eq=False)
class _Order:
    """Something that the decider is to do, and who waits for it."""

    do: Callable[[], Awaitable[Any]]
    outcome: Any = None
    error: Exception | None = None
    done: trio.Event = attrs.field(factory=trio.Event)
    is_dropped: bool = False  # nobody waits for it any more

    async def carry_out(self) -> None:
        self.error = RuntimeError("the supervisor stopped meanwhile")
        try:
            self.outcome = await self.do()
            self.error = None
        except _StartFailed as failed:
            self.error = failed.error
        except (NameTaken, LookupError, RuntimeError) as refused:
            self.error = refused
        finally:
            self.done.set()


class Decider:
    """
    What a supervisor is, behind its public face.

    Attributes:
        name: The supervisor's.
        strategy: Who is restarted with a child.
        children: By id, in the order of their start.
        failure: Why it gave up, or did not start.
        body: The scope of the code that has opened it.
        ready: Set once the first children are up, or it is over.
        over: Set once all children have ended.
    """

    def __init__(
        self,
        specs: tuple[ChildSpec, ...],
        *,
        strategy: Strategy,
        max_restarts: int,
        within: float,
        name: str,
        registry: Registry | None,
        on_event: Callable[[SupervisorEvent], object] | None,
    ) -> None:
        self.name: str = name
        self.strategy: Strategy = strategy
        self.children: dict[str, Child] = {}
        self.failure: Exception | None = None
        self.body: trio.CancelScope = trio.CancelScope()
        self.ready: trio.Event = trio.Event()
        self.over: trio.Event = trio.Event()
        self._specs = specs
        self._most = max_restarts
        self._within = within
        self._registry = registry
        self._on_event = on_event
        self._restarts: deque[float] = deque()
        # An exit a life, and an order a waiting task.
        self._send, self._receive = trio.open_memory_channel[_Order](math.inf)
        self._work = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    async def ask(self, do: Callable[[], Awaitable[Any]]) -> Any:
        """
        Have something done, between other things, and return what comes of it. A cancel takes it back, unless it has begun.

        Raises:
            RuntimeError: The supervisor has stopped.
            Exception: What went wrong with it.
        """
        await trio.lowlevel.checkpoint()
        if self.over.is_set() or self._work.cancel_called:
            raise RuntimeError(f"{self.name} has stopped: open another one")
        order = _Order(do)
        self._send.send_nowait(order)
        try:
            await order.done.wait()
        finally:
            order.is_dropped = True  # if it has not begun, it never will
        if order.error is not None:
            raise order.error
        return order.outcome

    async def run(self) -> None:
        """Supervise, until cancelled; then stop all children, in reverse. What went wrong is in `_failure`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._supervise)
            try:
                await self.over.wait()
            finally:
                self._work.cancel()
                with trio.CancelScope(shield=True):
                    await self.over.wait()

    async def _supervise(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as self._nursery:
                    await self._work_and_stop()
        finally:
            self.over.set()
            self.ready.set()
            for child in self.children.values():
                child.changed.set()

    async def _work_and_stop(self) -> None:
        try:
            with self._work:
                for spec in self._specs:
                    await self.add(spec)
                self.ready.set()
                async for order in self._receive:
                    if not order.is_dropped:
                        await order.carry_out()
        except _StartFailed as failed:
            failed.error.add_note(f"child {failed.child.spec.id!r} of {self.name} could not be started")
            self.failure = failed.error
        except (RestartLimitExceeded, NameTaken) as error:
            self.failure = error
        self._work.cancel()  # no more orders
        if self.failure is not None:
            self.body.cancel()
        for child in reversed(self.children.values()):
            await self._stop(child)
            self._gone(child)
            self._release(child)
        self._drop_orders()

    def _drop_orders(self) -> None:
        while True:
            try:
                order = self._receive.receive_nowait()
            except trio.WouldBlock:
                return
            order.error = RuntimeError(f"{self.name} has stopped: open another one")
            order.done.set()

    async def add(self, spec: ChildSpec) -> Any:
        """Add a child, and start it. Raises NameTaken, _StartFailed."""
        if spec.id in self.children:
            raise NameTaken(f"{self.name} has a child {spec.id!r}: delete_child(…) it first, or take another id")
        if self._registry is not None:
            self._registry.claim(spec.id, self)
        child = self.children[spec.id] = Child(spec)
        try:
            await self._start(child)
        except _StartFailed as failed:
            self._exited(child, ExitReason("error", failed.error))
            self._gone(child)
            self._forget(child)
            raise
        return child.handle

    async def _start(self, child: Child) -> None:
        """Start a life, and wait until it is up. Raises _StartFailed; then it is down."""
        assert self._nursery is not None
        spec, life = child.spec, Life()
        child.life = life
        child.turn("starting")
        self._nursery.start_soon(child.live, life, self._tell_over, name=f"{self.name}: {spec.id}")
        with trio.move_on_after(spec.start_timeout):
            await life.ready.wait()
        if life.is_up:
            child.handle = life.handle
            child.turn("up")
            if self._registry is not None:
                self._registry.put(spec.id, self, life.handle)
            self._emit(ChildStarted(supervisor=self.name, id=spec.id, restarts=child.restarts))
            return
        error: Exception = RuntimeError(f"child {spec.id!r} returned before it called task_status.started()")
        if not life.over.is_set():
            error = trio.TooSlowError(
                f"child {spec.id!r} was not up within start_timeout={spec.start_timeout:g} seconds"
            )
            await child.stop(partial(self._tell_overdue, child))
        elif life.reason is not None and life.reason.error is not None:
            error = life.reason.error
        child.turn("down")
        raise _StartFailed(child, error)

    def _tell_over(self, child: Child, life: Life) -> None:
        """A life is over: decide what follows, unless it never was up, or is being ended."""
        if life.is_up and not life.is_stopping:
            self._send.send_nowait(_Order(partial(self._end, child, life)))

    async def _end(self, child: Child, life: Life) -> None:
        if child.life is not life or life.is_stopping or life.reason is None:
            return  # it was ended, or replaced, before its turn came
        self._exited(child, life.reason)
        if child.spec.is_restarted_after(life.reason):
            await self._restart(child, life.reason)
            return
        child.turn("down")
        self._gone(child)
        if child.spec.restart == "temporary":
            self._forget(child)

    async def _restart(self, child: Child, reason: ExitReason) -> None:
        child.turn("restarting")
        while True:
            self._count_restart(child, reason)
            group = self._group(child)
            for other in reversed(group):
                if other is not child:
                    await self._stop(other)
                    other.turn("restarting")
            for other in group:
                if other.spec.restart == "temporary":
                    other.turn("down")
                    self._gone(other)
                    self._forget(other)
            again = [other for other in group if not other.is_deleted]
            ids = tuple(other.spec.id for other in again)
            self._emit(ChildRestarted(supervisor=self.name, id=child.spec.id, ids=ids, reason=reason))
            try:
                for other in again:
                    other.restarts += 1
                    await self._start(other)
            except _StartFailed as failed:
                child, reason = failed.child, ExitReason("error", failed.error)
                self._exited(child, reason)
                child.turn("restarting")
            else:
                return

    def _group(self, child: Child) -> list[Child]:
        """Return who is restarted with a child, in order. Who is down for a reason of its own stays down."""
        children = list(self.children.values())
        match self.strategy:
            case "one_for_one":
                children = [child]
            case "rest_for_one":
                children = children[children.index(child) :]
            case "one_for_all":
                pass
        return [each for each in children if each.state != "down"]

    def _count_restart(self, child: Child, reason: ExitReason) -> None:
        now = trio.current_time()
        self._restarts.append(now)
        while self._restarts[0] < now - self._within:
            self._restarts.popleft()
        if len(self._restarts) > self._most:
            raise RestartLimitExceeded(
                f"{self.name} gave up: child {child.spec.id!r} ended ({reason}), and more than {self._most} restarts "
                f"were needed within {self._within:g} seconds"
            ) from reason.error

    async def _stop(self, child: Child) -> None:
        """End a life, if there is one, and wait until it has."""
        life = child.life
        if life is None or child.state == "down":
            return
        was_over = life.over.is_set()
        await child.stop(partial(self._tell_overdue, child))
        if life.is_up and life.reason is not None and child.state != "restarting":
            self._exited(child, life.reason)
        life.is_stopping = life.is_stopping or was_over  # what it has told of its end is no order any more
        child.turn("down")

    async def terminate(self, child_id: str) -> None:
        """Stop a child; its spec stays."""
        child = self.child(child_id)
        await self._stop(child)
        self._gone(child)
        if child.spec.restart == "temporary":
            self._forget(child)

    async def start_again(self, child_id: str) -> Any:
        """Start a child that is down."""
        child = self.child(child_id)
        if child.state != "down":
            raise RuntimeError(f"child {child_id!r} of {self.name} is {child.state}: terminate_child(…) comes first")
        child.restarts += 1
        try:
            await self._start(child)
        except _StartFailed as failed:
            self._exited(child, ExitReason("error", failed.error))
            self._gone(child)
            raise
        return child.handle

    async def delete(self, child_id: str) -> None:
        """Forget a child that is down."""
        child = self.child(child_id)
        if child.state != "down":
            raise RuntimeError(f"child {child_id!r} of {self.name} is {child.state}: terminate_child(…) comes first")
        self._forget(child)

    def child(self, child_id: str) -> Child:
        """Return a child. Raises KeyError, which says what children there are."""
        child = self.children.get(child_id)
        if child is None:
            known = ", ".join(map(repr, self.children)) or "it has none"
            raise KeyError(f"{self.name} has no child {child_id!r}; its children: {known}")
        return child

    def _forget(self, child: Child) -> None:
        del self.children[child.spec.id]
        child.is_deleted = True
        child.changed.set()
        self._release(child)

    def _release(self, child: Child) -> None:
        if self._registry is not None:
            self._registry.release(child.spec.id, self)

    # Who is told

    def _exited(self, child: Child, reason: ExitReason) -> None:
        if self._registry is not None:
            self._registry.take(child.spec.id, self)
        self._emit(ChildExited(supervisor=self.name, id=child.spec.id, reason=reason))
        self._call(child.spec.on_exit, reason)

    def _gone(self, child: Child) -> None:
        life = child.life
        if life is not None and life.reason is not None and not life.is_gone:
            life.is_gone = True
            self._call(child.spec.on_gone, life.reason)

    def _tell_overdue(self, child: Child, seconds: float) -> None:
        logger.warning(
            "child %s of %s has not ended within %g seconds of being cancelled", child.spec.id, self.name, seconds
        )
        self._emit(Overdue(supervisor=self.name, id=child.spec.id, seconds=seconds))

    def _emit(self, event: SupervisorEvent) -> None:
        self._call(self._on_event, event)
        if is_on():
            tell(event)

    @staticmethod
    def _call(listener: Callable[[Any], object] | None, said: object) -> None:
        if listener is None:
            return
        try:
            listener(said)
        except Exception:
            logger.exception("a listener of a supervisor raised")
