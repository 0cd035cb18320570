"""
Random programs for a supervisor: one step at a time, against a model of OTP's rules; and all at once, for what holds always.

Each example is a Trio run of its own, in virtual time. A program is a list of steps, so that one which fails is made shorter.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from alloy_trio.supervision import (
    ChildExited,
    ChildRestarted,
    ChildSpec,
    ChildStarted,
    NameTaken,
    Registry,
    RestartLimitExceeded,
    Supervisor,
    SupervisorEvent,
    open_supervisor,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

IDS = ["a", "b", "c", "d", "e"]
EXAMPLES = settings().max_examples  # 100, or more by the profile `deep`
FOR_EVER = 100_000.0
LATE = 3_000.25  # seconds, when all has come to rest
names = st.sampled_from(IDS)
restarts = st.sampled_from(["permanent", "permanent", "transient", "temporary"])
strategies = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])


class Broken(Exception):
    """What children raise."""


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- One step at a time


@attrs.frozen(kw_only=True)
class Plan:
    """A child: how it is restarted, and which of its starts fail, counted from 0."""

    id: str
    restart: str
    fails: frozenset[int]


plans = st.builds(Plan, id=names, restart=restarts, fails=st.frozensets(st.integers(0, 6), max_size=2))
verbs = st.sampled_from(["crash", "crash", "crash", "return", "terminate", "restart", "delete"])
steps = st.one_of(
    *[st.tuples(verbs, names)] * 3,
    st.tuples(st.just("start"), plans),
    st.tuples(st.just("sleep"), st.sampled_from([2.0, 3.0, 5.0, 20.0])),
)


@attrs.define
class Model:
    """What a supervisor ought to do, without time, tasks or waiting: `log` has who began (+), failed to (!), and ended (-)."""

    strategy: str
    most: int
    within: float
    plans: dict[str, Plan] = attrs.field(factory=dict)
    up: set[str] = attrs.field(factory=set)
    begun: dict[str, int] = attrs.field(factory=dict)  # how often a child of this id was started, by anybody
    again: dict[str, int] = attrs.field(factory=dict)
    times: deque[float] = attrs.field(factory=deque)
    log: list[str] = attrs.field(factory=list)
    is_over: bool = False

    def begin(self, name: str) -> bool:
        number = self.begun[name] = self.begun.get(name, -1) + 1
        works = number not in self.plans[name].fails
        self.log.append(f"{'+' if works else '!'}{name}")
        if works:
            self.up.add(name)
        return works

    def end(self, name: str) -> None:
        if name in self.up:
            self.up.remove(name)
            self.log.append(f"-{name}")

    def forget(self, name: str) -> None:
        self.end(name)
        del self.plans[name]
        del self.again[name]

    def leave(self) -> None:
        for name in reversed(self.plans):
            self.end(name)
        self.is_over = True

    def do(self, verb: str, name: str, now: float) -> type[Exception] | None:  # noqa: C901 - a table of what can be done
        """Take a step; return what it raises. A child that is to end by itself is up."""
        if name not in self.plans:
            return LookupError
        plan = self.plans[name]
        match verb:
            case "return" | "crash":
                self.end(name)
                if plan.restart == "permanent" or (plan.restart == "transient" and verb == "crash"):
                    self.restart(name, now)
                elif plan.restart == "temporary":
                    self.forget(name)
            case "terminate":
                self.end(name)
                if plan.restart == "temporary":
                    self.forget(name)
            case "restart":
                if name in self.up:
                    return RuntimeError
                self.again[name] += 1
                return None if self.begin(name) else Broken
            case "delete":
                if name in self.up:
                    return RuntimeError
                self.forget(name)
        return None

    def start(self, plan: Plan) -> type[Exception] | None:
        if plan.id in self.plans:
            return NameTaken
        self.plans[plan.id], self.again[plan.id] = plan, 0
        if self.begin(plan.id):
            return None
        self.forget(plan.id)
        return Broken

    def restart(self, name: str, now: float) -> None:
        """Start a child again that has ended, and whoever goes with it."""
        pending = {name}
        while pending:
            self.times.append(now)
            while self.times[0] < now - self.within:
                self.times.popleft()
            if len(self.times) > self.most:
                self.leave()
                return
            order = list(self.plans)
            first = {"one_for_one": name, "one_for_all": order[0], "rest_for_one": name}[self.strategy]
            last = name if self.strategy == "one_for_one" else order[-1]
            group = [each for each in order[order.index(first) : order.index(last) + 1] if each in self.up | pending]
            for each in reversed(group):
                self.end(each)
            for each in group:
                if self.plans[each].restart == "temporary":
                    self.forget(each)
            pending = {each for each in group if each in self.plans}
            for each in filter(pending.__contains__, group):
                self.again[each] += 1
                if not self.begin(each):
                    name = each
                    break
                pending.discard(each)


@attrs.define
class Stage:
    """The children of the model, as they are."""

    log: list[str] = attrs.field(factory=list)
    begun: dict[str, int] = attrs.field(factory=dict)
    orders: dict[str, tuple[trio.Event, list[Exception | None]]] = attrs.field(factory=dict)

    def spec(self, plan: Plan) -> ChildSpec:
        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            number = self.begun[plan.id] = self.begun.get(plan.id, -1) + 1
            if number in plan.fails:
                self.log.append(f"!{plan.id}")
                raise Broken("does not start")
            self.log.append(f"+{plan.id}")
            order, failure = self.orders[plan.id] = trio.Event(), list[Exception | None]()
            try:
                task_status.started(plan.id.upper())
                await order.wait()
                if failure:
                    raise Broken("crashed")
            finally:
                self.log.append(f"-{plan.id}")

        return ChildSpec(id=plan.id, start=live, restart=plan.restart)  # type: ignore[arg-type] # drawn from the right ones

    async def do(self, supervisor: Supervisor, verb: str, name: str) -> None:
        match verb:
            case "return" | "crash":
                order, failure = self.orders[name]
                failure += [Broken()] if verb == "crash" else []
                order.set()
            case "terminate":
                await supervisor.terminate_child(name)
            case "restart":
                await supervisor.restart_child(name)
            case "delete":
                await supervisor.delete_child(name)


@settings(max_examples=6 * EXAMPLES)
@given(
    first=st.lists(plans.map(lambda plan: attrs.evolve(plan, fails=plan.fails - {0})), unique_by=lambda plan: plan.id),
    program=st.lists(steps, max_size=25),
    strategy=strategies,
    most=st.sampled_from([0, 2, 5, 1000, 1000]),
)
def test_one_step_at_a_time_it_does_what_the_model_does(  # noqa: C901 - three short steps, told where they are used
    first: list[Plan], program: list[tuple[Any, Any]], strategy: Any, most: int
) -> None:
    """The same children, in the same order, up or down, started as often, and the same refusals; ended in reverse."""
    model, stage, registry = Model(strategy, most, 5.0), Stage(), Registry()

    def compare(supervisor: Supervisor) -> None:
        assert stage.log == model.log
        if not model.is_over:
            children = supervisor.which_children()
            assert [each.id for each in children] == list(model.plans)
            assert {each.id for each in children if each.state == "up"} == model.up == set(registry.names())
            assert all(each.state in {"up", "down"} for each in children)
            assert {each.id: each.restarts for each in children} == model.again
            assert {name for name in IDS if name in registry} == set(model.plans)

    async def step(supervisor: Supervisor, verb: str, what: Any) -> None:
        if verb == "sleep":
            await trio.sleep(what)
            return
        if verb in {"return", "crash"} and what not in model.up:
            return
        expected = model.start(what) if verb == "start" else model.do(verb, what, trio.current_time())
        raised: BaseException | None = None
        try:
            if verb == "start":
                assert await supervisor.start_child(stage.spec(what)) == what.id.upper()
            else:
                await stage.do(supervisor, verb, what)
        except (LookupError, RuntimeError, NameTaken, Broken) as error:
            raised = error
        assert raised is None if expected is None else isinstance(raised, expected)
        await trio.testing.wait_all_tasks_blocked()

    async def live() -> None:
        specs = [stage.spec(plan) for plan in first]
        async with open_supervisor(specs, strategy=strategy, max_restarts=most, registry=registry) as supervisor:
            for plan in first:
                model.start(plan)
            compare(supervisor)
            for verb, what in program:
                await step(supervisor, verb, what)
                compare(supervisor)
            model.leave()

    async def main() -> None:
        gave_up = False
        try:
            await live()
        except RestartLimitExceeded:
            gave_up = True
        assert model.is_over
        assert gave_up == (len(model.times) > most)
        assert stage.log == model.log
        assert not any(name in registry for name in IDS)
        event("gave up" if gave_up else "left")

    in_virtual_time(main)


# --- All at once


@attrs.frozen(kw_only=True)
class Life:
    """One life of a child: seconds until it is up, until it ends by itself, and that its end takes."""

    up_after: float
    lasts: float
    ends_in: float
    fails_to_start: bool
    crashes: bool


LAST = Life(up_after=0.0, lasts=math.inf, ends_in=0.0, fails_to_start=False, crashes=False)


@attrs.frozen(kw_only=True)
class Kid:
    """A child, and its lives; those behind the last one last for ever."""

    id: str
    restart: str
    lives: tuple[Life, ...]
    stop: Literal["none", "asked", "deaf", "raises"]
    shutdown: float


seconds = st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0])
kids = st.builds(
    Kid,
    id=names,
    restart=restarts,
    lives=st.lists(
        st.builds(
            Life,
            up_after=st.sampled_from([0.0, 0.0, 0.0, 1.0, 50.0]),
            lasts=st.sampled_from([0.0, 1.0, 2.0, 7.0, 40.0, math.inf]),
            ends_in=seconds,
            fails_to_start=st.sampled_from([False, False, False, True]),
            crashes=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    stop=st.sampled_from(["none", "asked", "deaf", "raises"]),
    shutdown=st.sampled_from([0.0, 2.0, 5.0]),
)
Act = tuple[float, str, Any, float]
acts = st.tuples(
    seconds,
    st.sampled_from(["terminate", "restart", "delete", "wait", "look up"]),
    names,
    st.sampled_from([FOR_EVER, FOR_EVER, 0.0, 0.5]),  # when whoever asks gives up
) | st.tuples(seconds, st.just("start"), kids, st.just(FOR_EVER))


@attrs.define
class World:
    """What is seen of all the children."""

    registry: Registry = attrs.field(factory=Registry)
    living: dict[str, int] = attrs.field(factory=dict)
    lives: dict[str, int] = attrs.field(factory=dict)
    ended: list[tuple[str, bool]] = attrs.field(factory=list)  # and whether by a cancel
    told: list[tuple[float, SupervisorEvent]] = attrs.field(factory=list)
    gone: dict[str, int] = attrs.field(factory=dict)  # at which life
    by_hand: set[str] = attrs.field(factory=set)  # who may be down, since somebody has asked for that

    def spec(self, kid: Kid) -> ChildSpec:
        asked = trio.Event()

        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            nonlocal asked
            number = self.lives[kid.id] = self.lives.get(kid.id, 0) + 1
            life, asked = (*kid.lives, LAST)[min(number, len(kid.lives) + 1) - 1], trio.Event()
            self.living[kid.id] = self.living.get(kid.id, 0) + 1
            assert self.living[kid.id] == 1, "a second copy beside a living one"
            is_cut = True
            try:
                await trio.sleep(life.up_after)
                if life.fails_to_start:
                    raise Broken("does not start")
                task_status.started(kid.id.upper())
                with trio.move_on_after(life.lasts):
                    await asked.wait()
                is_cut = False
                if life.crashes and not asked.is_set():
                    raise Broken("crashed")
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(life.ends_in)
                self.living[kid.id] -= 1
                self.ended.append((kid.id, is_cut or asked.is_set()))

        def stop(handle: str) -> None:
            assert handle == kid.id.upper()
            if kid.stop == "raises":
                raise Broken("deaf")
            if kid.stop == "asked":
                asked.set()

        return ChildSpec(
            id=kid.id,
            start=live,
            restart=kid.restart,  # type: ignore[arg-type] # drawn from the right ones
            shutdown=kid.shutdown,
            stop=None if kid.stop == "none" else stop,
            on_gone=lambda _: self.gone.update({kid.id: self.lives[kid.id]}),
        )

    async def act(self, supervisor: Supervisor, act: Act) -> None:
        wait, verb, what, patience = act
        await trio.sleep(wait)
        with trio.move_on_after(patience):
            try:
                await self._act(supervisor, verb, what)
            except (LookupError, RuntimeError, NameTaken, Broken, trio.TooSlowError):
                return

    async def _act(self, supervisor: Supervisor, verb: str, what: Any) -> None:
        match verb:
            case "start":
                await supervisor.start_child(self.spec(what))
            case "terminate":
                self.by_hand.add(what)
                await supervisor.terminate_child(what)
            case "restart":
                self.by_hand.add(what)
                await supervisor.restart_child(what)
            case "delete":
                await supervisor.delete_child(what)
            case "wait":
                assert await supervisor.wait_child(what) == what.upper()
            case "look up":
                assert await self.registry.wait(what) == what.upper()

    def hear(self, said: SupervisorEvent) -> None:
        self.told.append((trio.current_time(), said))

    def check_at_rest(self, supervisor: Supervisor) -> None:
        """Nothing is under way, and who is down has a reason."""
        for child in supervisor.which_children():
            assert child.state in {"up", "down"}, child
            assert self.living[child.id] == (child.state == "up")
            assert (child.id in self.registry.names()) == (child.state == "up")
            assert child.state == "up" or child.restart != "permanent" or child.id in self.by_hand, child

    def check_events(self, most: int, within: float) -> None:
        """Each child begins and ends in turn, and no restart is one too many."""
        is_up: dict[str, bool] = {}
        ended: dict[str, float] = {}
        times: list[float] = []  # of the ends that a restart followed: it may have had to wait for siblings
        for time, said in self.told:
            match said:
                case ChildStarted(id=name):
                    assert not is_up.get(name), f"{name} has begun twice"
                    is_up[name] = True
                case ChildExited(id=name):
                    is_up[name], ended[name] = False, time
                case ChildRestarted(id=name):
                    times.append(ended[name])
        assert not any(is_up.values())
        assert not times or most
        assert all(another - one > within for one, another in zip(times, times[most:], strict=False))


@settings(max_examples=6 * EXAMPLES)
@given(
    first=st.lists(kids, unique_by=lambda kid: kid.id, max_size=4),
    program=st.lists(acts, max_size=12),
    strategy=strategies,
    most=st.sampled_from([0, 2, 10, 100]),
    leaves=st.sampled_from(["late", "early", "raises", "cancelled"]),
)
def test_all_at_once_it_keeps_its_promises(
    first: list[Kid], program: list[Act], strategy: Any, most: int, leaves: str
) -> None:
    """No second copy, ends in reverse, no hang, nothing left, no name kept, and everybody told of their last end."""
    world, order, before = World(), list[str](), 0

    async def live() -> None:
        nonlocal order, before
        specs = [world.spec(kid) for kid in first]
        async with trio.open_nursery() as nursery:  # outside: who asks may outlive whom they ask
            try:
                async with open_supervisor(
                    specs, strategy=strategy, max_restarts=most, registry=world.registry, on_event=world.hear
                ) as supervisor:
                    for act in program:
                        nursery.start_soon(world.act, supervisor, act)
                    await trio.sleep(2.0 if leaves == "early" else LATE)
                    if leaves != "early":
                        world.check_at_rest(supervisor)
                        order = [child.id for child in supervisor.which_children() if child.state == "up"]
                    before = len(world.ended)
                    if leaves == "raises":
                        raise Broken("the body")  # noqa: TRY301 - the body is what the test is about
            except (RestartLimitExceeded, Broken, trio.TooSlowError) as error:
                note(repr(error))
                event(type(error).__name__)

    async def main() -> None:
        with trio.fail_after(FOR_EVER / 2), trio.move_on_after(LATE + 1 if leaves == "cancelled" else math.inf):
            await live()
        world.check_events(most, 5.0)
        assert set(world.living.values()) <= {0}
        assert not any(name in world.registry for name in IDS)
        assert world.gone == world.lives, "somebody was not told of a last end"
        if order:
            assert [name for name, _ in world.ended[before:]] == order[::-1]

    in_virtual_time(main)
