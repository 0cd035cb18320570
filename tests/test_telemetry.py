"""Instruments: who is told, of what, and that nobody is disturbed by it."""

from __future__ import annotations

import logging
import traceback
from decimal import Decimal
from typing import TYPE_CHECKING, TypeVar, get_args

import attrs
import pytest
import trio

import alloy_trio
from alloy_trio import (
    InvalidOption,
    Message,
    Middleware,
    ProviderError,
    RunTimeout,
    Session,
    ToolError,
    Usage,
    run,
    stream,
    tool,
)
from alloy_trio._instruments import is_on, tell
from alloy_trio.events import Custom, Envelope, ToolEnd, ToolStart
from alloy_trio.supervision import SupervisorEvent
from alloy_trio.telemetry import (
    CompactionDone,
    Instrument,
    RequestStarted,
    RequestStopped,
    RunFailed,
    RunStarted,
    RunStopped,
    TelemetryEvent,
    ToolStarted,
    ToolStopped,
    TurnFailed,
    TurnStarted,
    TurnStopped,
    add_instrument,
    remove_instrument,
)
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator

E = TypeVar("E")
BEGUN = RunStarted(session_id="s", correlation_id="c", provider="p", model=None, streaming=False)


class Log:
    """An instrument that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[TelemetryEvent] = []

    def handle(self, event: TelemetryEvent) -> None:
        self.events.append(event)

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        (event,) = self.all(kind)
        return event

    @property
    def story(self) -> list[str]:
        """The names of the events, envelopes left out."""
        return [type(event).__name__ for event in self.events if not isinstance(event, Envelope)]


@pytest.fixture
def log() -> Iterator[Log]:
    instrument = Log()
    add_instrument(instrument)
    yield instrument
    remove_instrument(instrument)


@tool
async def slow(seconds: float) -> str:
    """Take a while."""
    await trio.sleep(seconds)
    return "done"


@tool
async def broken() -> str:
    """Break."""
    raise ZeroDivisionError("by nothing")


@tool
async def refusing() -> str:
    """Refuse."""
    raise ToolError("no such city")


# Instruments


def test_nobody_is_told_unless_somebody_listens(log: Log) -> None:
    assert is_on()
    remove_instrument(log)
    assert not is_on()
    tell(BEGUN)
    add_instrument(log)
    assert log.events == []


def test_all_are_told_in_the_order_they_came(log: Log) -> None:
    order: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def handle(self, event: TelemetryEvent) -> None:
            assert event is BEGUN
            order.append(self.name)

    first, second = Named("first"), Named("second")
    add_instrument(first)
    add_instrument(second)
    tell(BEGUN)
    remove_instrument(first)
    tell(BEGUN)
    remove_instrument(second)
    assert order == ["first", "second", "second"]
    assert log.events == [BEGUN, BEGUN]


def test_adding_twice_and_removing_a_stranger_are_refused(log: Log) -> None:
    with pytest.raises(ValueError, match="attached already"):
        add_instrument(log)
    with pytest.raises(ValueError, match="is not attached"):
        remove_instrument(Log())
    tell(BEGUN)
    assert log.events == [BEGUN]


class _Equal(Log):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment] # nor is it asked for


def test_an_instrument_is_known_by_identity(log: Log) -> None:
    first, second = _Equal(), _Equal()
    add_instrument(first)
    add_instrument(second)
    remove_instrument(second)
    tell(BEGUN)
    remove_instrument(first)
    assert (first.events, second.events, log.events) == ([BEGUN], [], [BEGUN])


class _Async:
    async def handle(self, event: TelemetryEvent) -> None: ...


@pytest.mark.parametrize("thing", [Log, object(), _Async(), print], ids=["a class", "no handle", "async", "a function"])
def test_what_is_no_instrument_is_refused(thing: Instrument) -> None:
    with pytest.raises(InvalidOption, match="is no instrument"):
        add_instrument(thing)
    assert not is_on()


class _Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def handle(self, event: TelemetryEvent) -> None:
        raise self.error


def test_what_an_instrument_raises_is_logged_and_the_next_is_told(caplog: pytest.LogCaptureFixture) -> None:
    raising, log = _Raising(RuntimeError("no disk")), Log()
    add_instrument(raising)
    add_instrument(log)
    tell(BEGUN)
    remove_instrument(raising)
    remove_instrument(log)
    assert log.events == [BEGUN]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("alloy_trio.telemetry", logging.ERROR)
    assert record.getMessage() == "instrument _Raising raised on RunStarted"
    assert record.exc_info is not None
    assert record.exc_info[1] is raising.error


def test_what_ends_programs_goes_through() -> None:
    raising = _Raising(KeyboardInterrupt())
    add_instrument(raising)
    with pytest.raises(KeyboardInterrupt):
        tell(BEGUN)
    remove_instrument(raising)


async def test_an_instrument_that_raises_does_not_disturb_a_run(caplog: pytest.LogCaptureFixture) -> None:
    raising = _Raising(RuntimeError("no disk"))
    add_instrument(raising)
    try:
        script = [tool_call("slow", {"seconds": 0}), text("done")]
        result = await run("go", provider=ScriptedProvider(script), tools=[slow])
    finally:
        remove_instrument(raising)
    assert (result.status, result.text) == ("completed", "done")
    assert {record.name for record in caplog.records} == {"alloy_trio.telemetry"}


def test_an_instrument_may_leave_while_it_is_told(log: Log) -> None:
    class Once(Log):
        def handle(self, event: TelemetryEvent) -> None:
            super().handle(event)
            remove_instrument(self)

    once, last = Once(), Log()
    add_instrument(once)
    add_instrument(last)
    tell(BEGUN)
    tell(BEGUN)
    remove_instrument(last)
    assert (len(log.events), len(once.events), len(last.events)) == (2, 1, 2)


# Events

OF_CHILDREN = get_args(SupervisorEvent)
KINDS = [kind for kind in get_args(TelemetryEvent) if kind is not Envelope and kind not in OF_CHILDREN]


def test_the_union_is_small_and_has_every_envelope() -> None:
    """Of runs it has twelve; the others are what supervisors tell."""
    assert {Envelope, *OF_CHILDREN} < set(get_args(TelemetryEvent))
    assert len(KINDS) + 1 <= 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_says_of_which_run_it_is(kind: type[attrs.AttrsInstance]) -> None:
    fields = attrs.fields(kind)
    assert [field.name for field in fields][:2] == ["session_id", "correlation_id"]
    assert all(field.kw_only for field in fields)


def test_events_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        BEGUN.provider = "q"  # type: ignore[misc]


# A run


async def test_tel_01_run_start_and_stop(log: Log, autojump_clock: trio.testing.MockClock) -> None:
    session = Session()
    provider = ScriptedProvider(
        [[delay(2.0), tool_call("slow", {"seconds": 3.0})], [delay(4.0), text("done")]], name="acme", model="m-1"
    )
    await run("go", provider=provider, tools=[slow], session=session, context={"request_id": "r-7"})
    begun, ended = log.one(RunStarted), log.one(RunStopped)
    assert begun == RunStarted(
        session_id=session.id, correlation_id="r-7", provider="acme", model="m-1", streaming=False
    )
    assert (ended.session_id, ended.correlation_id) == (session.id, "r-7")
    assert ended.duration == pytest.approx(9.0)
    assert (ended.status, ended.turns, ended.error) == ("completed", 2, None)
    assert (ended.provider, ended.model) == ("acme", "m-1")
    assert ended.usage == Usage(input_tokens=20, output_tokens=10)
    assert ended.cost_cents is None  # nobody knows what acme costs
    assert (log.story[0], log.story[-1]) == ("RunStarted", "RunStopped")


async def test_tel_01_cost_and_streaming(log: Log) -> None:
    provider = ScriptedProvider(["hi"], usage=Usage(input_tokens=1_000_000, output_tokens=500_000))
    provider.price = alloy_trio.Price("3", "15")
    async with stream("go", provider=provider) as events:
        async for _ in events:
            pass
    assert log.one(RunStarted).streaming
    assert log.one(RunStopped).cost_cents == Decimal(1050)


async def test_tel_01_a_provider_s_failure_is_a_way_to_end(log: Log) -> None:
    with pytest.raises(ProviderError) as caught:
        await run("go", provider=ScriptedProvider([error("out of order")]))
    ended = log.one(RunStopped)
    assert (ended.status, ended.turns, ended.error) == ("error", 0, caught.value)
    turn = log.one(TurnStopped)
    assert (turn.turn, turn.status, turn.stop_reason, turn.usage) == (1, "error", None, Usage())


async def test_tel_01_time_is_up(log: Log, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(RunTimeout):
        await run("go", provider=ScriptedProvider([delay(60.0)]), timeout=5.0)
    ended = log.one(RunStopped)
    assert (ended.status, ended.duration) == ("timed_out", 5.0)
    assert isinstance(ended.error, RunTimeout)
    assert log.one(TurnStopped).status == "timed_out"
    assert log.one(RequestStopped).result == "cancelled"


async def test_tel_01_a_cancelled_run_stops_all_it_has_started(
    log: Log, autojump_clock: trio.testing.MockClock
) -> None:
    calls = [tool_call("slow", {"seconds": 60.0}, id="a"), tool_call("slow", {"seconds": 60.0}, id="b")]
    with trio.move_on_after(3.0) as scope:
        await run("go", provider=ScriptedProvider([calls]), tools=[slow])
    assert scope.cancelled_caught
    ended = log.one(RunStopped)
    assert (ended.status, ended.error, ended.duration, ended.turns) == ("cancelled", None, 3.0, 1)
    assert log.one(TurnStopped).status == "cancelled"
    assert {(each.id, each.outcome, each.duration) for each in log.all(ToolStopped)} == {
        ("a", "cancelled", 3.0),
        ("b", "cancelled", 3.0),
    }
    assert log.story[-4:] == ["ToolStopped", "ToolStopped", "TurnStopped", "RunStopped"]


async def test_tel_01_a_cancel_while_the_model_is_asked(log: Log, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(3.0):
        await run("go", provider=ScriptedProvider([delay(60.0)]))
    assert log.story == [
        "RunStarted",
        "TurnStarted",
        "RequestStarted",
        "RequestStopped",
        "TurnStopped",
        "RunStopped",
    ]
    ended = log.one(RequestStopped)
    assert (ended.result, ended.error, ended.response, ended.duration) == ("cancelled", None, None, 3.0)


async def test_tel_02_turns(log: Log, autojump_clock: trio.testing.MockClock) -> None:
    script = [[delay(1.0), tool_call("slow", {"seconds": 2.0})], [delay(4.0), text("done")]]
    await run("go", provider=ScriptedProvider(script), tools=[slow])
    assert [each.turn for each in log.all(TurnStarted)] == [1, 2]
    first, last = log.all(TurnStopped)
    assert (first.turn, first.status, first.stop_reason, first.duration) == (1, "running", "tool_use", 3.0)
    assert (last.turn, last.status, last.stop_reason, last.duration) == (2, "completed", "end_turn", 4.0)
    assert first.usage == last.usage == Usage(input_tokens=10, output_tokens=5)
    assert log.story == [
        "RunStarted",
        "TurnStarted",
        "RequestStarted",
        "RequestStopped",
        "ToolStarted",
        "ToolStopped",
        "TurnStopped",
        "TurnStarted",
        "RequestStarted",
        "RequestStopped",
        "TurnStopped",
        "RunStopped",
    ]


async def test_tel_02_a_turn_without_an_answer_has_no_reason_to_stop(log: Log) -> None:
    with pytest.raises(ProviderError):
        await run("go", provider=ScriptedProvider([tool_call("broken"), error("gone")]), tools=[broken])
    first, last = log.all(TurnStopped)
    assert (first.turn, first.stop_reason) == (1, "tool_use")
    assert (last.turn, last.stop_reason, last.usage) == (2, None, Usage())


async def test_tel_02_the_last_turn_that_is_allowed(log: Log) -> None:
    script = [tool_call("broken"), tool_call("broken")]
    await run("go", provider=ScriptedProvider(script), tools=[broken], max_turns=2)
    assert [(each.turn, each.status) for each in log.all(TurnStopped)] == [(1, "running"), (2, "max_turns")]
    assert log.one(RunStopped).status == "max_turns"


def _raising(hook: str, exception: Exception) -> Middleware:
    async def fail(self: object, *args: object) -> None:
        raise exception

    middleware: Middleware = type("Raising", (Middleware,), {hook: fail})()
    return middleware


@pytest.mark.parametrize(
    "hook", ["before_completion", "after_tool_request", "after_tool_execution", "before_tool_call"]
)
async def test_tel_03_a_raising_hook(hook: str, log: Log) -> None:
    """The turn and the run have failed, in this order; neither has stopped."""
    exception = RuntimeError("a bug in a hook")
    with pytest.raises(RuntimeError, match="a bug in a hook"):
        await run(
            "go",
            provider=ScriptedProvider([tool_call("slow", {"seconds": 0}), text("done")]),
            tools=[slow],
            middleware=[_raising(hook, exception)],
        )
    assert log.story[-2:] == ["TurnFailed", "RunFailed"]
    assert not log.all(TurnStopped)
    assert not log.all(RunStopped)
    turn, ended = log.one(TurnFailed), log.one(RunFailed)
    assert (turn.turn, turn.error, ended.error) == (1, exception, exception)
    assert "in fail" in "".join(traceback.format_tb(ended.error.__traceback__))
    assert ended.turns == (0 if hook == "before_completion" else 1)


async def test_tel_03_a_hook_that_raises_before_the_first_turn(log: Log) -> None:
    with pytest.raises(RuntimeError):
        await run("go", provider=ScriptedProvider([]), middleware=[_raising("session_start", RuntimeError("no"))])
    assert log.story == ["RunStarted", "RunFailed"]


async def test_tel_03_a_provider_with_a_bug(log: Log) -> None:
    bug = ZeroDivisionError("in a provider of one's own")
    with pytest.raises(ZeroDivisionError):
        await run("go", provider=ScriptedProvider([error(bug)]))
    assert log.story[-3:] == ["RequestStopped", "TurnFailed", "RunFailed"]
    assert (log.one(RequestStopped).result, log.one(RequestStopped).error) == ("error", bug)


async def test_tel_03_a_halt_is_a_way_to_end(log: Log) -> None:
    halt = alloy_trio.Halted("enough")
    await run("go", provider=ScriptedProvider(["hi"]), middleware=[_raising("before_completion", halt)])
    assert (log.one(RunStopped).status, log.one(RunStopped).error) == ("halted", halt)
    assert log.one(TurnStopped).status == "halted"


OUTCOMES = {
    "ok": (tool_call("slow", {"seconds": 1.5}), "ok", 1.5, None),
    "raised": (tool_call("broken"), "error", 0.0, "ZeroDivisionError"),
    "tool error": (tool_call("refusing"), "error", 0.0, "ToolError"),
    "timed out": (tool_call("slow", {"seconds": 60.0}), "timed_out", 5.0, None),
    "unknown": (tool_call("nonesuch"), "error", 0.0, None),
}


@pytest.mark.parametrize(("call", "outcome", "duration", "raised"), OUTCOMES.values(), ids=OUTCOMES)
async def test_tel_04_tool_start_and_stop(
    *, call: object, outcome: str, duration: float, raised: str | None, log: Log, autojump_clock: trio.testing.MockClock
) -> None:
    provider = ScriptedProvider([call, text("done")])  # type: ignore[list-item] # a Step
    session = Session()
    result = await run("go", provider=provider, tools=[slow, broken, refusing], tool_timeout=5.0, session=session)
    (record,) = result.tool_calls
    begun, ended = log.one(ToolStarted), log.one(ToolStopped)
    for event in (begun, ended):
        assert (event.id, event.name, event.turn) == (record.id, record.name, 1)
        assert (event.session_id, event.correlation_id) == (session.id, record.correlation_id)
    assert begun.input == record.input
    assert (begun.seq, ended.start_seq, ended.seq) == (
        record.start_event_seq,
        record.start_event_seq,
        record.end_event_seq,
    )
    assert (ended.outcome, ended.duration, ended.error) == (outcome, duration, record.error)
    assert (type(ended.exception).__name__ if ended.exception else None) == raised
    if raised:
        assert "raise " in "".join(traceback.format_exception(ended.exception))


async def test_tel_04_a_call_that_is_blocked(log: Log) -> None:
    class Blocking(Middleware):
        async def before_tool_call(self, *args: object) -> alloy_trio.BlockCall:
            return alloy_trio.BlockCall("not on Sundays")

    script = [tool_call("slow", {"seconds": 0}), text("done")]
    await run("go", provider=ScriptedProvider(script), tools=[slow], middleware=[Blocking()])
    ended = log.one(ToolStopped)
    assert (ended.outcome, ended.exception) == ("blocked", None)
    assert "not on Sundays" in (ended.error or "")


async def test_tel_04_what_the_model_gets_to_see(log: Log) -> None:
    script = [tool_call("slow", {"seconds": 0}), text("done")]
    await run("go", provider=ScriptedProvider(script), tools=[slow])
    assert log.one(ToolStopped).content == (alloy_trio.Text("done"),)


async def test_tel_04_is_told_in_the_task_of_the_call(autojump_clock: trio.testing.MockClock) -> None:
    """Start and stop of one call in one task, of calls side by side in several, around the tool's own code."""
    tasks: dict[str, list[trio.lowlevel.Task]] = {}

    class Tasks:
        def handle(self, event: TelemetryEvent) -> None:
            if isinstance(event, ToolStarted | ToolStopped):
                tasks.setdefault(event.id, []).append(trio.lowlevel.current_task())

    @tool
    async def here(ctx: alloy_trio.ToolContext) -> str:
        """Say where it runs."""
        await trio.sleep(1)
        tasks[ctx.tool_use_id].append(trio.lowlevel.current_task())
        return "here"

    instrument = Tasks()
    add_instrument(instrument)
    try:
        calls = [tool_call("here", id="a"), tool_call("here", id="b")]
        await run("go", provider=ScriptedProvider([calls, text("done")]), tools=[here])
    finally:
        remove_instrument(instrument)
    assert [len(where) for where in tasks.values()] == [3, 3]
    assert [len(set(where)) for where in tasks.values()] == [1, 1]
    assert tasks["a"][0] is not tasks["b"][0]


def _flaky() -> ProviderError:
    return ProviderError("busy", retryable=True)


@pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streaming"])
async def test_tel_05_a_request_for_each_attempt(
    *, streaming: bool, log: Log, autojump_clock: trio.testing.MockClock
) -> None:
    failures = [_flaky(), _flaky()]
    script = [[delay(1.0), error(failures[0])], [delay(2.0), error(failures[1])], [delay(4.0), text("done")]]
    provider = ScriptedProvider(script, name="acme", model="m-1")
    if streaming:
        async with stream("go", provider=provider, max_output_tokens=50) as events:
            async for _ in events:
                pass
    else:
        await run("go", provider=provider, max_output_tokens=50)
    begun, ended = log.all(RequestStarted), log.all(RequestStopped)
    asked: list[RequestStarted | RequestStopped] = [*begun, *ended]
    for each in asked:
        assert (each.provider, each.model, each.streaming) == ("acme", "m-1", streaming)
    assert [each.attempt for each in begun] == [each.attempt for each in ended] == [1, 2, 3]
    assert [each.max_output_tokens for each in begun] == [50] * 3
    assert [each.request.messages for each in begun if each.request] == [(Message.user("go"),)] * 3
    assert [each.duration for each in ended] == pytest.approx([1.0, 2.0, 4.0])
    assert [(each.result, each.error) for each in ended] == [
        ("error", failures[0]),
        ("error", failures[1]),
        ("ok", None),
    ]
    last = ended[-1]
    assert (last.response_model, last.stop_reason, last.usage) == ("m-1", "end_turn", Usage(10, 5))
    assert last.response is not None
    assert last.response.message.text == "done"


async def test_tel_05_each_provider_of_a_fallback_has_its_own_attempts(log: Log) -> None:
    first = ScriptedProvider([error("gone for good")], name="first")
    second = ScriptedProvider(["hi"], name="second")
    await run("go", provider=first, fallback_providers=[second])
    assert [(each.provider, each.attempt, each.result) for each in log.all(RequestStopped)] == [
        ("first", 1, "error"),
        ("second", 1, "ok"),
    ]


async def test_tel_06_compaction(log: Log) -> None:
    """Once the conversation has outgrown the model's window, and it was cut to fit it."""
    messages = [
        message for n in range(40) for message in (Message.user(f"{n} " * 400), Message.assistant(f"{n} " * 400))
    ]
    provider = ScriptedProvider(["short"] * 5)
    await run("go on", provider=provider, messages=messages, context_tokens=20_000)
    done = log.all(CompactionDone)[-1]
    assert log.all(CompactionDone)[0].messages_before == len(messages) + 1
    assert done.messages_after < len(messages)
    assert done.tokens_after < log.all(CompactionDone)[0].tokens_before
    assert done.kind in {"cleared", "summarized", "truncated"}
    assert done.turn == 1


async def test_tel_06_forced_compaction(log: Log) -> None:
    """The provider says that the prompt is too long."""
    messages = [
        message for n in range(10) for message in (Message.user(f"{n} " * 400), Message.assistant("yes " * 400))
    ]
    too_long = alloy_trio.ContextTooLong("prompt is too long")
    provider = ScriptedProvider([error(too_long), "a summary", "done"])
    result = await run("go on", provider=provider, messages=messages)
    assert result.text == "done"
    done = log.all(CompactionDone)
    assert (done[0].messages_before, done[-1].messages_after) == (21, len(result.messages) - 1)
    assert done[-1].messages_after < 21
    story = log.story
    assert story[:2] == ["RunStarted", "TurnStarted"]
    assert story.count("TurnStarted") == 1  # the summary is asked for within the turn
    assert story[-4:] == ["RequestStarted", "RequestStopped", "TurnStopped", "RunStopped"]


async def test_every_envelope_is_told(log: Log) -> None:
    """Also when nobody else listens, and an own event of a tool among them."""

    @tool
    async def chatty(ctx: alloy_trio.ToolContext) -> str:
        """Say something."""
        await ctx.emit("progress", {"percent": 50})
        return "done"

    seen: list[Envelope] = []
    script = [tool_call("chatty"), text("done")]
    await run("go", provider=ScriptedProvider(script), tools=[chatty], on_event=seen.append)
    assert log.all(Envelope) == seen
    assert [each.seq for each in seen] == list(range(1, len(seen) + 1))
    assert Custom("progress", {"percent": 50}) in [each.event for each in seen]
    log.events.clear()
    await run("go", provider=ScriptedProvider(script), tools=[chatty])
    assert [type(each.event) for each in log.all(Envelope)] == [type(each.event) for each in seen]
    kinds = [type(each.event) for each in log.all(Envelope)]
    assert {ToolStart, ToolEnd} <= set(kinds)


async def test_a_run_in_a_tool_is_told_as_a_run_of_its_own(log: Log) -> None:
    @tool
    async def ask() -> str:
        """Ask another agent."""
        return (await run("why?", provider=ScriptedProvider(["because"], name="inner"))).text

    await run("go", provider=ScriptedProvider([tool_call("ask"), text("done")], name="outer"), tools=[ask])
    outer, inner = log.all(RunStarted)
    assert (outer.provider, inner.provider) == ("outer", "inner")
    assert outer.correlation_id != inner.correlation_id
    requests = [(each.provider, each.correlation_id) for each in log.all(RequestStarted)]
    assert requests == [
        ("outer", outer.correlation_id),
        ("inner", inner.correlation_id),
        ("outer", outer.correlation_id),
    ]
    assert [(each.correlation_id, each.turns) for each in log.all(RunStopped)] == [
        (inner.correlation_id, 1),
        (outer.correlation_id, 2),
    ]
