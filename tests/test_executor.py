"""The executor, through runs: order, barriers, time-outs, and what the model is told."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from alloy_trio import (
    BlockCall,
    EditCall,
    Halted,
    Image,
    ProviderError,
    Result,
    ServerToolUse,
    Session,
    Text,
    ToolContext,
    ToolError,
    ToolResult,
    ToolUse,
    run,
    tool,
)
from alloy_trio.events import Event, ToolEnd, ToolStart
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, error, run_with_responses, text, tool_call
from alloy_trio.tools import Tool, ToolOutput
from alloy_trio.tools._executor import Batch
from alloy_trio.tools._settings import ToolSettings


def results(result: Result) -> list[ToolResult]:
    return [b for m in result.messages for b in m.content if isinstance(b, ToolResult)]


async def call(*calls: Any, tools: list[Tool], **options: Any) -> list[ToolResult]:
    return results(await run_with_responses("go", [list(calls), text("end")], tools=tools, **options))


def recorder(**options: Any) -> tuple[Tool, list[str]]:
    log: list[str] = []

    async def step(name: str, seconds: float) -> str:
        """Step."""
        log.append(f"+{name}")
        await trio.sleep(seconds)
        log.append(f"-{name}")
        return name

    return tool(**options)(step), log


async def test_exe_01_good_call_and_unknown_tool() -> None:
    good, _ = recorder()
    first, second = await call(
        tool_call("step", {"name": "a", "seconds": 0}, id="c1"), tool_call("stpe", {}, id="c2"), tools=[good]
    )
    assert (first.tool_use_id, first.text, first.is_error, first.outcome) == ("c1", "a", False, "ok")
    assert (second.tool_use_id, second.is_error, second.outcome) == ("c2", True, "error")
    assert "'stpe'" in second.text
    assert "step" in second.text


async def test_exe_02_a_tool_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    @tool
    async def broken() -> str:
        """Break."""
        raise ValueError("two\nlines")

    with caplog.at_level(logging.ERROR, "alloy_trio"):
        (answer,) = await call(tool_call("broken"), tools=[broken])
    assert answer.text == "ValueError: two lines"
    assert answer.is_error
    assert "Traceback" in caplog.text


async def test_exe_02_a_group_of_one_is_its_member() -> None:
    @tool
    async def grouped() -> str:
        """Break in a nursery."""
        async with trio.open_nursery():
            raise ValueError("inner")

    (answer,) = await call(tool_call("grouped"), tools=[grouped])
    assert answer.text == "ValueError: inner"


async def test_exe_03_a_declared_failure_inside_a_nursery() -> None:
    @tool
    async def picky() -> str:
        """Refuse."""
        async with trio.open_nursery():
            raise ToolError("no such city")

    (answer,) = await call(tool_call("picky"), tools=[picky])
    assert answer.text == "no such city"


async def test_exe_02_a_group_with_a_cancel_in_it_stays_a_cancel(autojump_clock: object) -> None:
    @tool
    async def messy() -> None:
        """Fail in the cleanup."""

        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("disk")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()

    session = Session()
    with trio.move_on_after(1) as scope:
        await run("go", provider=ScriptedProvider([tool_call("messy")]), tools=[messy], session=session)
    assert scope.cancelled_caught
    answer = session.messages[-1].content[0]
    assert isinstance(answer, ToolResult)
    assert (answer.outcome, answer.text) == ("error", "OSError: disk")


async def test_exe_03_a_declared_failure(caplog: pytest.LogCaptureFixture) -> None:
    @tool
    async def picky() -> str:
        """Refuse."""
        raise ToolError("no such city")

    (answer,) = await call(tool_call("picky"), tools=[picky])
    assert (answer.text, answer.is_error) == ("no such city", True)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("concurrent", [True, False])
async def test_exe_04_timeout(concurrent: bool, autojump_clock: object) -> None:
    slow, _ = recorder(concurrent=concurrent)
    first, second = await call(
        tool_call("step", {"name": "a", "seconds": 60}, id="c1"),
        tool_call("step", {"name": "b", "seconds": 1}, id="c2"),
        tools=[slow],
        tool_timeout=5,
    )
    assert (first.tool_use_id, first.outcome, first.is_error) == ("c1", "timed_out", True)
    assert "5 seconds" in first.text
    assert "ask for less" in first.text
    assert (second.tool_use_id, second.text) == ("c2", "b")


async def test_exe_04_the_tools_own_timeout_wins(autojump_clock: object) -> None:
    patient, _ = recorder(timeout=100)
    (answer,) = await call(tool_call("step", {"name": "a", "seconds": 60}), tools=[patient], tool_timeout=5)
    assert answer.outcome == "ok"


async def test_exe_05_context() -> None:
    seen: list[ToolContext[str]] = []

    @tool
    async def look(ctx: ToolContext[str]) -> str:
        """Look."""
        seen.append(ctx)
        return ctx.deps

    (answer,) = await call(
        tool_call("look", id="c1"), tools=[look], working_directory="/tmp", context={"user": "u"}, deps="D"
    )
    (ctx,) = seen
    assert (str(ctx.working_directory), ctx.context["user"], ctx.tool_use_id, ctx.name) == (
        "/tmp",
        "u",
        "c1",
        "look",
    )
    assert [str(path) for path in ctx.allowed_paths] == ["/tmp"]
    assert answer.text == "D"


async def test_exe_05_no_folder_is_no_folder() -> None:
    seen: list[ToolContext] = []

    @tool
    async def look(ctx: ToolContext) -> None:
        """Look."""
        seen.append(ctx)

    await call(tool_call("look"), tools=[look], allowed_paths=[])
    assert seen[0].allowed_paths == ()


async def test_exe_06_concurrent_in_call_order(autojump_clock: object) -> None:
    side_by_side, log = recorder()
    calls = [tool_call("step", {"name": str(n), "seconds": 5 - n}) for n in range(5)]
    answers = await call(*calls, tools=[side_by_side])
    assert [a.text for a in answers] == ["0", "1", "2", "3", "4"]
    # Trio runs the tasks of one step in random order; the model's order of starts holds nevertheless.
    assert log[:5] == ["+0", "+1", "+2", "+3", "+4"]
    assert trio.current_time() == pytest.approx(5)


async def test_exe_07_barriers(autojump_clock: object) -> None:
    together, log = recorder()
    alone_log = log

    @tool(concurrent=False)
    async def alone(name: str) -> str:
        """Be alone."""
        alone_log.append(f"+{name}")
        await trio.sleep(1)
        alone_log.append(f"-{name}")
        return name

    def step(name: str) -> Any:
        return tool_call("step", {"name": name, "seconds": 1})

    calls = [
        step("a"),
        step("b"),
        tool_call("alone", {"name": "X"}),
        step("c"),
        step("d"),
        tool_call("alone", {"name": "Y"}),
    ]
    answers = await call(*calls, tools=[together, alone])
    assert [a.text for a in answers] == ["a", "b", "X", "c", "d", "Y"]
    assert log[:2] == ["+a", "+b"]
    assert sorted(log[2:4]) == ["-a", "-b"]
    assert log[4:8] == ["+X", "-X", "+c", "+d"]
    assert log[-2:] == ["+Y", "-Y"]


async def test_exe_08_sync_tools_side_by_side_in_threads() -> None:
    barrier = threading.Barrier(3, timeout=10)

    @tool
    def meet() -> str:
        """Meet."""
        barrier.wait()
        return threading.current_thread().name

    answers = await call(*[tool_call("meet")] * 3, tools=[meet])
    assert all(a.text.startswith("alloy_trio tool meet") for a in answers)


async def test_exe_08_inline_tools_run_in_the_loop() -> None:
    @tool(inline=True)
    def here() -> str:
        """Tell."""
        return threading.current_thread().name

    (answer,) = await call(tool_call("here"), tools=[here])
    assert answer.text == threading.current_thread().name


async def test_exe_08_threads_of_nested_runs_never_wait_for_each_other() -> None:
    """A sync tool of each of 50 nested levels would deadlock on one shared limiter of 40."""
    depth = 0

    @tool
    def nested(ctx: ToolContext) -> str:
        """Run another agent from a thread."""
        nonlocal depth
        depth += 1
        if depth == 50:
            return "bottom"
        provider = ScriptedProvider([tool_call("nested"), text("up")])
        inner = ctx.from_thread(partial(run, "go", provider=provider, tools=[nested]))
        return inner.text

    with trio.fail_after(20):
        (answer,) = await call(tool_call("nested"), tools=[nested])
    assert answer.text == "up"
    assert depth == 50


async def test_exe_09_structured_data_is_for_the_program() -> None:
    @tool
    async def weather() -> ToolOutput:
        """Forecast."""
        return ToolOutput("sunny", {"celsius": 21})

    @tool
    async def plain() -> str:
        """Say."""
        return "hi"

    result = await run_with_responses(
        "go", [[tool_call("weather"), tool_call("plain")], text("x")], tools=[weather, plain]
    )
    assert [c.data for c in result.tool_calls] == [{"celsius": 21}, None]
    assert [r.text for r in results(result)] == ["sunny", "hi"]


async def test_exe_09_media_results() -> None:
    picture = Image("image/png", b"png")

    @tool
    async def paint() -> list[Any]:
        """Paint."""
        return [Text("here"), picture]

    (answer,) = await call(tool_call("paint"), tools=[paint])
    assert answer.content == (Text("here"), picture)


async def test_exe_10_long_results_keep_head_and_tail() -> None:
    @tool(max_result_chars=200)
    async def talk() -> str:
        """Talk."""
        return "a" * 5000 + "z" * 5000

    (answer,) = await call(tool_call("talk"), tools=[talk])
    assert answer.text.startswith("a")
    assert answer.text.endswith("z")
    assert "10000" in answer.text.replace(",", "")
    assert len(answer.text) < 400


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (ToolUse("c", "step", {"name": "a"}), "seconds"),
        (ToolUse("c", "step", {"name": "a", "seconds": "soon"}), "$.seconds"),
        (ToolUse("c", "step", {"name": "a", "seconds": 1, "extra": 1}), "extra"),
        (ToolUse("c", "step", invalid_input='{"name": "a", "sec'), '{"name": "a", "sec'),
        (ToolUse("c", "step", invalid_input="[1, 2]"), "object"),
    ],
    ids=["exe-11-missing", "exe-11-type", "exe-11-unknown", "exe-11-cut", "exe-11-list"],
)
async def test_exe_11_input_off_the_schema_is_answered_and_never_runs(use: ToolUse, says: str) -> None:
    step, log = recorder()
    (answer,) = await call(use, tools=[step])
    assert answer.is_error
    assert says in answer.text
    assert not log


async def test_exe_11_a_raw_schema_is_checked_as_well() -> None:
    raw = Tool(
        name="raw",
        input_schema={
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 3}},
            "required": ["n"],
        },
        execute=lambda arguments, ctx: str(arguments["n"]),
    )
    bad, good = await call(tool_call("raw", {"n": 1}), tool_call("raw", {"n": 4}), tools=[raw])
    assert bad.is_error
    assert "$.n" in bad.text
    assert good.text == "4"


async def test_exe_11_a_validator_may_raise_anything() -> None:
    @attrs.define
    class Place:
        city: str

        def __attrs_post_init__(self) -> None:
            raise KeyError(self.city)

    @tool
    async def visit(place: Place) -> str:
        """Visit."""
        return place.city

    (answer,) = await call(tool_call("visit", {"place": {"city": "Oslo"}}), tools=[visit])
    assert answer.is_error
    assert "Oslo" in answer.text


async def test_a_tool_cannot_change_the_call_in_the_history() -> None:
    def greedy(arguments: dict[str, Any], ctx: ToolContext) -> str:
        arguments["list"].clear()
        arguments.clear()
        return "eaten"

    raw = Tool(name="raw", input_schema={"type": "object"}, execute=greedy, inline=True)
    result = await run_with_responses("go", [tool_call("raw", {"list": [1]}), text("x")], tools=[raw])
    assert result.messages[1].tool_uses[0].input == {"list": [1]}


async def test_exe_12_bytes_that_are_no_utf_8() -> None:
    @tool
    async def noise() -> bytes:
        """Make noise."""
        return b"caf\xe9"

    @tool
    async def broken() -> str:
        """Break with a lone surrogate."""
        raise ToolError("bad \udce9")

    for answer in await call(tool_call("noise"), tool_call("broken"), tools=[noise, broken]):
        answer.text.encode()


async def test_exe_13_cancelling_the_run_stops_every_tool(autojump_clock: object) -> None:
    slow, log = recorder()
    calls = [tool_call("step", {"name": str(n), "seconds": 60}) for n in range(5)]
    with assert_no_orphans(), trio.move_on_after(1) as scope:
        await run_with_responses("go", [calls], tools=[slow])
    assert scope.cancelled_caught
    assert log == ["+0", "+1", "+2", "+3", "+4"]


async def test_exe_14_calls_of_server_tools_are_never_answered() -> None:
    provider = ScriptedProvider([[ServerToolUse("s1", "web_search", {}), text("found")]])
    result = await run("go", provider=provider)
    assert results(result) == []
    assert result.tool_calls == ()


async def test_exe_16_a_failed_sub_agent_is_an_error_result() -> None:
    @tool
    async def delegate() -> str:
        """Ask another."""
        return (await run_with_responses("sub", [error("sub failed")])).text

    result = await run_with_responses("go", [tool_call("delegate"), text("noted")], tools=[delegate])
    assert result.text == "noted"
    assert "sub failed" in results(result)[0].text


async def test_an_invalid_call_still_has_both_events() -> None:
    seen: list[Any] = []
    await run_with_responses(
        "go", [tool_call("nobody", id="c1"), text("x")], on_event=lambda envelope: seen.append(envelope.event)
    )
    start, end = [e for e in seen if isinstance(e, ToolStart | ToolEnd)]
    assert isinstance(end, ToolEnd)
    assert (start.id, end.id, end.outcome) == ("c1", "c1", "error")


async def test_no_provider_is_asked_again_after_a_crash_of_a_tool_that_is_no_exception() -> None:
    """What is no `Exception` is not the model's business: it ends the program's run as it would end the program."""

    @tool
    async def leave() -> str:
        """Leave."""
        raise SystemExit(3)

    provider = ScriptedProvider([tool_call("leave"), text("never")])
    with pytest.raises((SystemExit, BaseExceptionGroup)):
        await run("go", provider=provider, tools=[leave])
    assert len(provider.requests) == 1


# The gate


class Told:
    """Takes the events of a batch, and numbers them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def unheard(self, _: int) -> None:
        """Hear all of them."""

    def number(self, *events: Event) -> tuple[int, None]:
        self.events += events
        return len(self.events) - len(events) + 1, None

    async def hand_over(self, _: object) -> None:
        await trio.lowlevel.checkpoint()

    async def emit(self, *events: Event) -> int:
        first, _ = self.number(*events)
        await self.hand_over(None)
        return first

    def of(self, id_: str) -> tuple[ToolStart, ToolEnd]:
        start, end = [e for e in self.events if isinstance(e, ToolStart | ToolEnd) and e.id == id_]
        assert isinstance(start, ToolStart)
        assert isinstance(end, ToolEnd)
        return start, end


def batch_of(*calls: ToolUse, tools: list[Tool]) -> tuple[Batch, Told]:
    told = Told()
    settings = ToolSettings(
        tools={each.name: each for each in tools},
        timeout=60,
        cancel_grace=5,
        threads=1,
        working_directory=Path(),
        allowed_paths=(),
        context={},
        deps=None,
        correlation_id="r",
    )
    return Batch(calls, settings, told), told


def use(id_: str, **more: Any) -> ToolUse:
    return ToolUse(id_, "step", {"name": id_, "seconds": 0} | more)


async def judge(call: ToolUse) -> BlockCall | EditCall | None:
    """Block b, edit c to something good and d to something that does not fit."""
    await trio.lowlevel.checkpoint()
    match call.id:
        case "b":
            return BlockCall("no")
        case "c":
            return EditCall({**call.input, "name": "C"})
        case "d":
            return EditCall({"name": 5})
        case _:
            return None


async def test_exe_15_a_batch_behind_a_gate() -> None:
    step, log = recorder()
    calls = [use(each) for each in "abcde"]
    batch, told = batch_of(*calls, tools=[step])
    await batch.admit(judge)
    await batch.run()
    assert [(r.tool_use_id, r.outcome, r.is_error) for r in batch.results()] == [
        ("a", "ok", False),
        ("b", "blocked", True),
        ("c", "ok", False),
        ("d", "error", True),
        ("e", "ok", False),
    ]
    assert [each for each in log if each[0] == "+"] == ["+a", "+C", "+e"]
    # All begin, in the order of the model, and all end.
    assert [e.id for e in told.events[:5] if isinstance(e, ToolStart)] == list("abcde")
    assert {e.id for e in told.events[5:] if isinstance(e, ToolEnd)} == set("abcde")
    assert len(told.events) == 10
    start, end = told.of("b")
    assert (start.input, end.input, end.outcome, end.error, end.duration) == (
        *(calls[1].input, calls[1].input),
        *("blocked", "Blocked: no", 0.0),
    )
    assert end.content == (Text("Blocked: no"),)
    assert [each.input for each in calls] == [{"name": each, "seconds": 0} for each in "abcde"]


async def test_exe_15_records_of_blocked_and_edited_calls() -> None:
    step, _ = recorder()
    batch, told = batch_of(*[use(each) for each in "abcde"], tools=[step])
    await batch.admit(judge)
    await batch.run()
    records = batch.records
    assert [(r.id, r.name, r.outcome) for r in records] == [
        *(("a", "step", "ok"), ("b", "step", "blocked"), ("c", "step", "ok")),
        *(("d", "step", "error"), ("e", "step", "ok")),
    ]
    assert [r.input for r in records] == [
        {"name": "a", "seconds": 0},
        {"name": "b", "seconds": 0},
        {"name": "C", "seconds": 0},
        {"name": 5},
        {"name": "e", "seconds": 0},
    ]
    assert records[1].error == "Blocked: no"
    assert "$.name" in str(records[3].error)
    for number, record in enumerate(records, 1):
        start, end = told.of(record.id)
        assert (start.input, end.input) == (record.input, record.input)
        assert record.start_event_seq == end.start_event_seq == number
        assert record.end_event_seq == told.events.index(end) + 1
    assert batch.succeeded == {"step"}


async def test_a_blocked_call_of_a_barrier_runs_past_nobody(autojump_clock: object) -> None:
    step, log = recorder(concurrent=False)
    batch, told = batch_of(use("a", seconds=1), use("b"), use("c"), tools=[step])
    await batch.admit(judge)
    await batch.run()
    assert log == ["+a", "-a", "+C", "-C"]
    kinds = [(type(e).__name__, e.id) for e in told.events if isinstance(e, ToolStart | ToolEnd)]
    assert kinds == [(kind, each) for each in "abc" for kind in ("ToolStart", "ToolEnd")]


async def test_the_gate_is_asked_in_order_and_only_of_calls_that_can_run() -> None:
    step, _ = recorder()
    asked: list[str] = []

    async def note(call: ToolUse) -> None:
        asked.append(call.id)

    calls = [
        use("z"),
        ToolUse("y", "nobody"),
        ToolUse("x", "step", {}),
        ToolUse("w", "step", invalid_input="["),
        use("a"),
    ]
    batch, _ = batch_of(*calls, tools=[step])
    await batch.admit(note)
    assert asked == ["z", "a"]


async def test_a_gate_that_raises_leaves_a_batch_that_can_be_refused() -> None:
    step, log = recorder()
    batch, told = batch_of(*[use(each) for each in "bxa"], tools=[step])

    async def halting(call: ToolUse) -> BlockCall | EditCall | None:
        if call.id == "x":
            raise Halted("enough")
        return await judge(call)

    with pytest.raises(Halted):
        await batch.admit(halting)
    batch.refuse("not run")
    assert [(r.tool_use_id, r.text, r.outcome) for r in batch.results()] == [
        ("b", "Blocked: no", "blocked"),
        ("x", "not run", "error"),
        ("a", "not run", "error"),
    ]
    assert (log, told.events, batch.cut_ends(), batch.succeeded) == ([], [], [], frozenset())
    assert [(r.start_event_seq, r.end_event_seq, r.duration) for r in batch.records] == [(None, None, 0.0)] * 3


async def test_a_batch_that_is_cut_behind_its_gate() -> None:
    step, _ = recorder()
    batch, _ = batch_of(*[use(each) for each in "abc"], tools=[step])
    await batch.admit(judge)
    batch.cut("timed_out")
    assert [r.outcome for r in batch.results()] == ["timed_out", "blocked", "timed_out"]
    assert [r.input["name"] for r in batch.records] == ["a", "b", "C"]


async def test_an_edited_call_is_parsed_anew_and_not_with_what_was_parsed_before() -> None:
    """Defaults of the first parse do not leak into the second."""
    seen: list[tuple[int, list[int]]] = []

    @tool
    async def collect(n: int, items: list[int] | None = None) -> None:
        """Collect."""
        seen.append((n, [] if items is None else items))

    batch, _ = batch_of(ToolUse("a", "collect", {"n": 1, "items": [1, 2]}), tools=[collect])

    async def fewer(call: ToolUse) -> EditCall:
        return EditCall({"n": "2"})

    await batch.admit(fewer)
    await batch.run()
    assert seen == [(2, [])]
    assert batch.records[0].input == {"n": "2"}


def test_errors_are_ours() -> None:
    assert issubclass(ToolError, Exception)
    assert not issubclass(ToolError, ProviderError)
