"""
OTP's supervisor, as a table, in virtual time.

Each row names the part of OTP's documentation that it is from: "Principles" is the chapter "Supervisor Behaviour" of OTP Design
Principles, "supervisor(3)" the module's reference.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from alloy_trio import Agent, QueueFull
from alloy_trio.supervision import (
    ChildExited,
    ChildRestarted,
    ChildSpec,
    ChildStarted,
    InvalidChildSpec,
    NameTaken,
    Overdue,
    Registry,
    RestartLimitExceeded,
    Supervisor,
    SupervisorEvent,
    open_supervisor,
)
from alloy_trio.telemetry import add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, cancel_at_every_checkpoint

Fn = Callable[[], Awaitable[object]]


@attrs.define
class Stage:
    """Children that do as they are told: `end["b"]` ends b, by returning or by raising."""

    log: list[str] = attrs.field(factory=list)
    orders: dict[str, trio.Event] = attrs.field(factory=dict)
    failures: dict[str, Exception | None] = attrs.field(factory=dict)
    living: dict[str, int] = attrs.field(factory=dict)

    def spec(self, name: str, *, start: Fn | None = None, stop: Fn | None = None, **options: Any) -> ChildSpec:
        """Make a child: `start` is done before it is up, `stop` as it is cancelled."""

        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            self.living[name] = self.living.get(name, 0) + 1
            assert self.living[name] == 1, "a second copy beside a living one"
            try:
                if start is not None:
                    await start()
                self.orders[name] = trio.Event()
                self.log.append(f"+{name}")
                task_status.started(name.upper())
                await self.orders[name].wait()
                if failure := self.failures.get(name):
                    raise failure
            finally:
                if stop is not None:
                    with trio.CancelScope(shield=True):
                        await stop()
                self.log.append(f"-{name}")
                self.living[name] -= 1

        return ChildSpec(id=name, start=live, **options)

    async def end(self, name: str, failure: Exception | None = None) -> None:
        """Let a child end, and wait until what follows is over."""
        self.log.clear()
        self.failures[name] = failure
        self.orders[name].set()
        await trio.testing.wait_all_tasks_blocked()

    def said(self) -> str:
        return " ".join(self.log)


CRASH = ValueError("crashed")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", "-b +b"),  # Principles, Restart Strategy: only that process is restarted
        ("one_for_all", "-b -c -a +a +b +c"),  # Principles: all others are terminated, then all are restarted
        ("rest_for_one", "-b -c +b +c"),  # Principles: the rest, started after it, are terminated and restarted
    ],
)
async def test_who_is_restarted_with_a_child_that_crashed(strategy: Any, expected: str, autojump_clock: object) -> None:
    """Stopped in reverse of the order of start, started in that order."""
    on = Stage()
    async with open_supervisor([on.spec(name) for name in "abc"], strategy=strategy) as supervisor:
        assert on.said() == "+a +b +c"
        await on.end("b", CRASH)
        assert on.said() == expected
        assert [child.state for child in supervisor.which_children()] == ["up"] * 3
        on.log.clear()
    assert on.said() == "-c -b -a"


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize(
    ("restart", "failure", "is_restarted"),
    [
        ("permanent", None, True),  # supervisor(3), Child specification: always restarted
        ("permanent", CRASH, True),
        ("transient", None, False),  # only if it terminates abnormally
        ("transient", CRASH, True),
        ("temporary", None, False),  # never restarted, even if a sibling's death terminates it
        ("temporary", CRASH, False),
    ],
)
async def test_whether_a_child_is_restarted(
    strategy: Any, restart: Any, failure: Exception | None, autojump_clock: object, *, is_restarted: bool
) -> None:
    on = Stage()
    specs = [on.spec("a"), on.spec("b", restart=restart), on.spec("c")]
    async with open_supervisor(specs, strategy=strategy) as supervisor:
        await on.end("b", failure)
        assert ("+b" in on.log) == is_restarted
        assert ("b" in supervisor) == (restart != "temporary")  # its spec is deleted: supervisor(3)
        if restart != "temporary":
            states = {child.id: child.state for child in supervisor.which_children()}
            assert states == {"a": "up", "b": "up" if is_restarted else "down", "c": "up"}
        if not is_restarted:
            assert on.said() == "-b"  # and nobody else is


async def test_a_temporary_child_stopped_for_a_sibling_is_not_restarted(autojump_clock: object) -> None:
    """supervisor(3), restart type temporary: 'even when the supervisor's restart strategy is rest_for_one or one_for_all'."""
    on = Stage()
    async with open_supervisor([on.spec("a"), on.spec("t", restart="temporary")], strategy="one_for_all") as supervisor:
        await on.end("a", CRASH)
        assert on.said() == "-a -t +a"
        assert "t" not in supervisor


async def test_who_is_down_for_a_reason_of_its_own_stays_down(autojump_clock: object) -> None:
    """A difference from OTP, on purpose: neither the terminated child nor the one that is done is started for a sibling."""
    on = Stage()
    specs = [on.spec("a"), on.spec("done", restart="transient"), on.spec("ended")]
    async with open_supervisor(specs, strategy="one_for_all") as supervisor:
        await on.end("done")
        await supervisor.terminate_child("ended")
        await on.end("a", CRASH)
        assert on.said() == "-a +a"


@pytest.mark.parametrize(("crashes", "within"), [(3, True), (4, False)])
async def test_the_intensity(crashes: int, autojump_clock: object, *, within: bool) -> None:
    """Principles, Maximum Restart Intensity: more than `max_restarts` in `within` seconds, and it terminates its children and itself."""
    on = Stage()

    async def crash() -> None:
        async with open_supervisor([on.spec("a"), on.spec("b")], max_restarts=3, within=5):
            for _ in range(crashes):
                await on.end("a", CRASH)
                await trio.sleep(1)
            await trio.sleep(10)
            await on.end("a", CRASH)  # by now the others are forgotten

    with assert_no_orphans():
        if within:
            await crash()
            return
        with pytest.raises(RestartLimitExceeded, match="more than 3 restarts") as caught:
            await crash()
    assert caught.value.__cause__ is CRASH
    assert on.log[-1] == "-b"


async def test_two_that_crash_at_once_are_restarted_once(autojump_clock: object) -> None:
    """The second had ended already when all were stopped for the first: its exit is an old one by then."""
    on = Stage()
    async with open_supervisor([on.spec(name) for name in "abc"], strategy="one_for_all") as supervisor:
        on.failures["a"] = CRASH
        on.orders["a"].set()
        await on.end("b", CRASH)
        assert [child.restarts for child in supervisor.which_children()] == [1, 1, 1]
        assert [name for name in on.log if name.startswith("+")] == ["+a", "+b", "+c"]


async def test_a_supervisor_that_gives_up_is_a_child_that_crashed(autojump_clock: object) -> None:
    """Principles: 'the supervisor terminates … the next higher level supervisor takes some action'."""
    on = Stage()
    inner = Supervisor.child_spec([on.spec("x")], id="inner", max_restarts=1)
    async with open_supervisor([inner, on.spec("y")], strategy="one_for_all", max_restarts=1) as outer:
        first = outer["inner"]
        await on.end("x", CRASH)
        assert on.said() == "-x +x"
        await on.end("x", CRASH)
        assert on.said() == "-x -y +x +y"
        assert outer["inner"] is not first
        assert outer.render_tree().splitlines() == [
            "supervisor (one_for_all)",
            "├─ inner (one_for_one): up, restarted once",
            "│  └─ x: up",
            "└─ y: up, restarted once",
        ]


async def test_a_child_that_ignores_its_grace(autojump_clock: trio.testing.MockClock) -> None:
    """No task can be killed: an Overdue tells of it, and never is there a second copy beside it."""
    on = Stage()
    events: list[SupervisorEvent] = []

    async def linger() -> None:
        await trio.sleep(60)

    async with open_supervisor(
        [on.spec("a"), on.spec("b", stop=linger, shutdown=2)], strategy="one_for_all", on_event=events.append
    ):
        on.failures["a"] = CRASH
        on.orders["a"].set()
        await trio.sleep(30)
        assert [event for event in events if isinstance(event, Overdue)] == [
            Overdue(supervisor="supervisor", id="b", seconds=2.0)
        ]
        assert on.living == {"a": 0, "b": 1}
        await trio.sleep(40)
        assert on.living == {"a": 1, "b": 1}


@pytest.mark.parametrize(("takes", "ends_at"), [(1, 1), (9, 3), (math.inf, 3)])
async def test_a_child_is_asked_to_stop_and_then_cancelled(
    takes: float, ends_at: float, autojump_clock: object
) -> None:
    """supervisor(3), shutdown: 'waits for an exit signal … within the time; otherwise it is killed'."""
    on = Stage()

    async def ask(handle: str) -> None:
        assert handle == "A"
        await trio.sleep(takes)
        on.orders["a"].set()

    async with open_supervisor([attrs.evolve(on.spec("a"), stop=ask, shutdown=3)]):
        pass
    assert trio.current_time() == ends_at


async def test_a_start_that_fails_stops_those_before_it(autojump_clock: object) -> None:
    """supervisor(3), start_link: 'terminates all already started child processes … returns the error'."""
    on = Stage()

    async def fail() -> None:
        raise CRASH

    with pytest.raises(ValueError, match="crashed") as caught:
        async with open_supervisor([on.spec("a"), on.spec("b", start=fail), on.spec("c")]):
            pytest.fail("it has started")
    assert on.said() == "+a -b -a"
    assert "'b'" in caught.value.__notes__[0]


async def test_a_start_that_takes_too_long(autojump_clock: object) -> None:
    on = Stage()
    with pytest.raises(trio.TooSlowError, match="start_timeout=7"):
        async with open_supervisor([on.spec("a", start=trio.sleep_forever, start_timeout=7)]):
            pass
    assert trio.current_time() == 7
    assert on.living == {"a": 0}


async def test_a_restart_whose_start_fails_counts(autojump_clock: object) -> None:
    """supervisor(3): 'if the start fails the supervisor tries again, until the intensity is reached'."""
    on = Stage()
    starts = 0

    async def third_time() -> None:
        nonlocal starts
        starts += 1
        if starts in {2, 3}:
            raise CRASH

    async with open_supervisor([on.spec("a", start=third_time)], max_restarts=3) as supervisor:
        await on.end("a", CRASH)
        assert starts == 4
        assert supervisor.which_children()[0].restarts == 3
    with pytest.raises(RestartLimitExceeded):
        async with open_supervisor([on.spec("a", start=third_time)], max_restarts=1):
            starts = 1
            await on.end("a", CRASH)
            await trio.sleep_forever()


async def test_dynamic_children(autojump_clock: object) -> None:
    """supervisor(3): start_child, terminate_child, restart_child, delete_child, in each state of a child."""
    on = Stage()
    async with open_supervisor([on.spec("a")]) as supervisor:
        assert await supervisor.start_child(on.spec("b")) == supervisor["b"] == "B"
        with pytest.raises(NameTaken, match="'b'"):  # already_started
            await supervisor.start_child(on.spec("b"))
        with pytest.raises(RuntimeError, match="terminate_child"):  # running
            await supervisor.restart_child("b")
        with pytest.raises(RuntimeError, match="terminate_child"):  # running
            await supervisor.delete_child("b")
        await supervisor.terminate_child("b")
        await supervisor.terminate_child("b")  # ok
        with pytest.raises(NameTaken):  # already_present
            await supervisor.start_child(on.spec("b"))
        with pytest.raises(LookupError, match="restart_child"):
            await supervisor.wait_child("b")
        assert await supervisor.restart_child("b") == "B"
        await supervisor.terminate_child("b")
        await supervisor.delete_child("b")
        for gone in (supervisor.terminate_child, supervisor.restart_child, supervisor.delete_child):
            with pytest.raises(LookupError, match="no child 'b'; its children: 'a'"):  # not_found
                await gone("b")
        assert await supervisor.start_child(on.spec("b")) == "B"
        assert supervisor.count_children() == {"specs": 2, "active": 2, "supervisors": 0, "workers": 2}
    with pytest.raises(RuntimeError, match="has stopped"):
        await supervisor.start_child(on.spec("c"))


async def test_what_nobody_waits_for_any_more_is_not_done(autojump_clock: object) -> None:
    """An order that has not begun is taken back with the cancel of who gave it; one that has begun is carried out."""

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    specs = [ChildSpec(id=name, start=slow) for name in "ab"]
    async with open_supervisor(specs) as supervisor, trio.open_nursery() as nursery:

        async def terminate(name: str) -> None:
            with trio.move_on_after(1):
                await supervisor.terminate_child(name)

        nursery.start_soon(terminate, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(terminate, "b")
        await trio.sleep(20)
        assert [child.state for child in supervisor.which_children()] == ["down", "up"]


async def test_all_specs_are_checked_before_anything_starts() -> None:
    on = Stage()
    for specs, word in (
        ([on.spec("a"), on.spec("a")], "two children"),
        ([on.spec("a"), "b"], "no ChildSpec"),
        ("a", "list"),
    ):
        with pytest.raises(InvalidChildSpec, match=word):
            async with open_supervisor(specs):  # type: ignore[arg-type] # that is the point
                pass
    assert not on.log


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": ""},
        {"id": 3},
        {"start": "no function"},
        {"restart": "sometimes"},
        {"shutdown": -1},
        {"shutdown": "soon"},
        {"start_timeout": None},
        {"stop": 3},
        {"on_exit": 3},
        {"on_exit": trio.sleep},
        {"on_gone": partial(trio.sleep, 1)},
    ],
)
def test_a_spec_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidChildSpec, match=next(iter(wrong))):
        ChildSpec(**{"id": "a", "start": trio.sleep_forever, **wrong})


@pytest.mark.parametrize("wrong", [{"strategy": "all"}, {"max_restarts": -1}, {"within": 0}, {"on_event": trio.sleep}])
async def test_limits_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidChildSpec, match=next(iter(wrong))):
        async with open_supervisor([], **wrong):
            pass
    with pytest.raises(InvalidChildSpec, match=next(iter(wrong))):
        Supervisor.child_spec([], id="x", **wrong)


@pytest.mark.parametrize("failure", [ValueError("mine"), ExceptionGroup("all", [ValueError("mine")])])
async def test_the_body_s_exception_leaves_as_it_came(failure: Exception) -> None:
    on = Stage()
    with pytest.raises(type(failure)) as caught:
        async with open_supervisor([on.spec("a")]):
            raise failure
    assert caught.value is failure
    assert on.said() == "+a -a"


async def test_a_cancel_from_outside_stops_in_reverse_and_gently(autojump_clock: object) -> None:
    on = Stage()

    async def clean_up() -> None:
        await trio.sleep(1)

    with assert_no_orphans(), trio.move_on_after(5):
        async with open_supervisor([on.spec(name, stop=clean_up) for name in "abc"]):
            await trio.sleep_forever()
    assert on.said() == "+a +b +c -c -b -a"
    assert trio.current_time() == 8


async def test_cancelled_at_every_checkpoint(autojump_clock: object) -> None:
    """Starting, restarting, ordering and stopping: nothing is left, nobody is started twice, all that started have ended."""
    stages: list[Stage] = []

    async def live() -> None:
        on = Stage()
        stages.append(on)
        specs = [on.spec(name, start=trio.lowlevel.checkpoint, stop=trio.lowlevel.checkpoint) for name in "ab"]
        async with open_supervisor(specs, strategy="one_for_all") as supervisor:
            await on.end("a", CRASH)
            await supervisor.start_child(on.spec("c"))
            await supervisor.terminate_child("b")

    assert await cancel_at_every_checkpoint(live) > 20
    for on in stages:
        assert set(on.living.values()) <= {0}


async def test_who_is_told_what(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """`on_event`, the program's instruments, and the spec's own listeners; one that raises is logged."""
    on = Stage()
    told: list[object] = []
    exits: list[str] = []
    gone: list[str] = []

    class Instrument:
        def handle(self, event: object) -> None:
            told.append(event)

    def fail(_: object) -> None:
        raise ValueError("no ears")

    instrument = Instrument()
    add_instrument(instrument)
    spec = attrs.evolve(
        on.spec("a", restart="transient"),
        on_exit=lambda reason: exits.append(str(reason)),
        on_gone=lambda reason: gone.append(reason.kind),
    )
    try:
        async with open_supervisor([spec], name="s", on_event=fail):
            await on.end("a", CRASH)
            await on.end("a")
    finally:
        remove_instrument(instrument)
    assert [type(event) for event in told] == [ChildStarted, ChildExited, ChildRestarted, ChildStarted, ChildExited]
    assert exits == ["error: ValueError: crashed", "normal"]
    assert gone == ["normal"]
    assert "no ears" in caplog.text


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_name_against_a_restart(autojump_clock: object, *, comes_back: bool) -> None:
    """Whoever waits for a name while its child restarts gets the new handle, or is told that it will not come back."""
    on = Stage()
    registry = Registry()
    found: list[object] = []
    has_started = False

    async def slowly() -> None:
        nonlocal has_started
        await trio.sleep(1)
        if has_started and not comes_back:
            raise CRASH
        has_started = True

    async def wait(wait_for: Callable[[str], Awaitable[object]]) -> None:
        try:
            found.append(await wait_for("a"))
        except LookupError:
            found.append(None)

    async with trio.open_nursery() as nursery:
        with contextlib.suppress(RestartLimitExceeded):
            async with open_supervisor([on.spec("a", start=slowly)], registry=registry) as supervisor:
                assert registry["a"] == await registry.wait("a") == "A"
                on.failures["a"] = CRASH
                on.orders["a"].set()
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(KeyError, match="nobody is live"):
                    registry["a"]
                nursery.start_soon(wait, registry.wait)
                nursery.start_soon(wait, supervisor.wait_child)
                await trio.sleep(30)
    assert found == (["A", "A"] if comes_back else [None, None])
    assert not registry.names()


async def test_a_registry_has_one_owner_for_each_name() -> None:
    """Two supervisors may share one."""
    on = Stage()
    registry = Registry()
    async with open_supervisor([on.spec("a")], registry=registry, name="one"):
        with pytest.raises(NameTaken, match="'a' is taken"):
            async with open_supervisor([Stage().spec("a")], registry=registry, name="two"):
                pass
        async with open_supervisor([Stage().spec("b")], registry=registry, name="two"):
            assert registry.names() == ("a", "b")
        assert registry.names() == ("a",)
        with pytest.raises(NameTaken, match="not yours"):
            registry.put("a", self := object(), self)
    with pytest.raises(LookupError):
        await registry.wait("nobody")


async def test_a_name_is_kept_for_a_child_that_was_stopped(autojump_clock: object) -> None:
    """From `start_child` to `delete_child`, whether it is up or not."""
    on, registry = Stage(), Registry()
    async with open_supervisor([on.spec("a")], registry=registry) as supervisor:
        await supervisor.terminate_child("a")
        with pytest.raises(NameTaken):
            registry.claim("a", "somebody else")
        await supervisor.delete_child("a")
        registry.claim("a", "somebody else")


async def test_an_agent_s_handle_outlives_restarts(autojump_clock: object) -> None:
    """What is asked while it is down waits for it."""
    provider = ScriptedProvider(["a", "b"])
    async with open_supervisor([Agent.child_spec(name="x", provider=provider)]) as supervisor:
        agent = supervisor["x"]
        assert (await agent.chat("one")).text == "a"
        await agent.stop()  # permanent: it is started again
        assert (await agent.chat("two")).text == "b"
        assert supervisor["x"] is agent
        assert supervisor.which_children()[0].restarts == 1


async def test_an_agent_that_is_down_takes_no_more_than_it_would(autojump_clock: object) -> None:
    """Nothing is under way then, so all that it has been asked waits."""

    async def slowly(*_: object) -> None:
        await trio.sleep(10)

    spec = Agent.child_spec(name="x", provider=ScriptedProvider(["a"]), max_pending=1, on_shutdown=slowly)
    async with open_supervisor([spec]) as supervisor, trio.open_nursery() as nursery:
        agent = supervisor["x"]
        nursery.start_soon(agent.stop)
        await trio.sleep(1)
        await agent.send_message("one")
        with pytest.raises(QueueFull, match="max_pending=1"):
            await agent.send_message("two")


async def test_a_thousand_children_of_which_a_tenth_crashes_every_second(autojump_clock: object) -> None:
    """A restart costs the same however many siblings there are."""
    on = Stage()
    async with open_supervisor([on.spec(str(number)) for number in range(1000)], max_restarts=10_000) as supervisor:
        before = trio.lowlevel.current_statistics().tasks_living
        for second in range(60):
            for number in range(second % 10, 1000, 10):
                on.failures[str(number)] = CRASH
                on.orders[str(number)].set()
            await trio.sleep(1)
        assert supervisor.count_children()["active"] == 1000
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert sum(child.restarts for child in supervisor.which_children()) == 6000
