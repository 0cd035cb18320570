"""Middleware and tools: what `before_tool_call` may say of a call, and what becomes of the calls it stops or changes."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from rules import check_history

from alloy_trio import (
    BlockCall,
    EditCall,
    Halted,
    InvalidOption,
    Message,
    Middleware,
    Result,
    Session,
    ToolResult,
    ToolUse,
    run,
    tool,
)
from alloy_trio.events import ToolEnd, ToolStart
from alloy_trio.telemetry import ToolStarted, ToolStopped, add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, text, tool_call
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from alloy_trio import RunState
    from alloy_trio.events import Envelope
    from alloy_trio.telemetry import TelemetryEvent
    from alloy_trio.testing._script import Script

    Verdict = BlockCall | EditCall | None


class Gate(Middleware):
    """Asks a function about each call; writes down what it was asked."""

    def __init__(self, say: Callable[[ToolUse], Any] = lambda _: None) -> None:
        self.say = say
        self.asked: list[ToolUse] = []

    async def before_tool_call(self, state: RunState, call: ToolUse) -> Verdict:
        self.asked.append(call)
        await trio.lowlevel.checkpoint()
        verdict = self.say(call)
        if inspect.isawaitable(verdict):
            verdict = await verdict
        return verdict  # type: ignore[no-any-return] # a test may say anything


class Steps:
    """A tool that notes how it was called, and what was told of it."""

    def __init__(self, **options: Any) -> None:
        self.ran: list[int] = []
        self.told: list[ToolStart | ToolEnd] = []
        self.provider = ScriptedProvider([])
        self.session = Session()
        self.tool = tool(name="step", **options)(self.step)

    async def step(self, n: int, note: str = "") -> str:
        """Step."""
        self.ran.append(n)
        await trio.lowlevel.checkpoint()
        return f"did {n}{note}"

    def listen(self, envelope: Envelope) -> None:
        if isinstance(envelope.event, ToolStart | ToolEnd):
            self.told.append(envelope.event)

    async def go(self, *middleware: object, replies: list[Script] | None = None, **options: Any) -> Result:
        """Run with two calls in one answer, or with other replies."""
        self.provider = ScriptedProvider(replies or [[step(1), step(2)], text("done")])
        result = await run(
            "go",
            provider=self.provider,
            tools=[self.tool],
            middleware=middleware,
            on_event=self.listen,
            session=self.session,
            **options,
        )
        check_history(result.messages, [self.tool])
        return result


def step(n: object, id_: str | None = None, **more: object) -> Any:
    return tool_call("step", {"n": n, **more}, id=id_ or f"c{n}")


def answers(result: Result) -> list[ToolResult]:
    return [block for message in result.messages for block in message.tool_results]


def on(id_: str, verdict: object) -> Callable[[ToolUse], Any]:
    """Say something of one call, and nothing of the others. An exception is raised."""

    def say(call: ToolUse) -> Any:
        if call.id != id_:
            return None
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return say


# Letting


async def test_mw_14_the_hook_sees_each_call_in_order_before_any_starts() -> None:
    steps = Steps()
    ran_before: list[int] = []
    gate = Gate(lambda _: ran_before.append(len(steps.ran)))
    result = await steps.go(gate)
    assert [(call.id, call.name, call.input) for call in gate.asked] == [
        ("c1", "step", {"n": 1}),
        ("c2", "step", {"n": 2}),
    ]
    assert ran_before == [0, 0]
    assert steps.told[0] == ToolStart("c1", "step", {"n": 1})
    assert [a.text for a in answers(result)] == ["did 1", "did 2"]


async def test_mw_03_saying_nothing_lets_every_call_run() -> None:
    result = await Steps().go(Gate(), Middleware(), Gate())
    assert [(a.text, a.outcome) for a in answers(result)] == [("did 1", "ok"), ("did 2", "ok")]


async def test_calls_that_cannot_run_are_not_asked_about() -> None:
    steps, gate = Steps(), Gate(lambda _: BlockCall("never"))
    calls = [tool_call("stpe", id="a"), step("one", "b"), ToolUse("c", "step", invalid_input='{"n": '), step(4, "d")]
    result = await steps.go(gate, replies=[calls, text("x")])
    assert [call.id for call in gate.asked] == ["d"]
    assert [a.outcome for a in answers(result)] == ["error", "error", "error", "blocked"]


async def test_calls_that_were_cut_off_are_not_asked_about() -> None:
    steps, gate = Steps(), Gate()
    with pytest.raises(Exception, match="max_output_tokens"):
        await steps.go(gate, replies=[[step(1), tool_call("step", {"n": 2}, stop_reason="max_tokens")]])
    assert gate.asked == []


async def test_a_sync_hook_of_any_object() -> None:
    class Plain:
        def before_tool_call(self, state: RunState, call: ToolUse) -> Verdict:
            return BlockCall("no") if call.input["n"] == 1 else EditCall({"n": 9})

    steps = Steps()
    result = await steps.go(Plain())
    assert [a.text for a in answers(result)] == ["Blocked: no", "did 9"]


async def test_thinking_it_over_counts_against_no_timeout_of_the_call(autojump_clock: object) -> None:
    async def think(_: ToolUse) -> None:
        await trio.sleep(1000)

    result = await Steps().go(Gate(think), tool_timeout=5)
    assert [(c.outcome, c.duration) for c in result.tool_calls] == [("ok", 0), ("ok", 0)]
    assert trio.current_time() >= 2000


# Blocking


@pytest.mark.parametrize("concurrent", [True, False])
async def test_mw_11_a_blocked_call_does_not_run_and_the_others_do(concurrent: bool) -> None:
    steps = Steps(concurrent=concurrent)
    result = await steps.go(
        Gate(on("c2", BlockCall("ask first"))), replies=[[step(1), step(2), step(3)], text("as you like")]
    )
    assert steps.ran == [1, 3]
    assert [(a.tool_use_id, a.text, a.outcome, a.is_error) for a in answers(result)] == [
        ("c1", "did 1", "ok", False),
        ("c2", "Blocked: ask first", "blocked", True),
        ("c3", "did 3", "ok", False),
    ]
    assert (result.status, result.text) == ("completed", "as you like")
    assert steps.provider.requests[1].messages[-1].tool_results[1].text == "Blocked: ask first"


async def test_mw_11_all_may_be_blocked_and_the_model_goes_on() -> None:
    steps = Steps()
    result = await steps.go(Gate(lambda call: BlockCall(f"not {call.input['n']}")))
    assert steps.ran == []
    assert [a.text for a in answers(result)] == ["Blocked: not 1", "Blocked: not 2"]
    assert (result.status, result.turns) == ("completed", 2)


async def test_mw_11_a_blocked_call_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "alloy_trio"):
        await Steps().go(Gate(on("c1", BlockCall("ask first"))))
    assert "step c1 blocked: ask first" in caplog.text


async def test_exe_15_a_blocked_call_has_both_events_and_a_record() -> None:
    steps = Steps()
    result = await steps.go(Gate(on("c1", BlockCall("ask first"))))
    start, end = [event for event in steps.told if event.id == "c1"]
    record = result.tool_calls[0]
    assert start == ToolStart("c1", "step", {"n": 1})
    assert isinstance(end, ToolEnd)
    assert (end.outcome, end.error, end.duration) == ("blocked", "Blocked: ask first", 0.0)
    assert end.content == answers(result)[0].content
    assert (record.id, record.name, record.input) == ("c1", "step", {"n": 1})
    assert (record.outcome, record.error, record.duration, record.data) == (
        *("blocked", "Blocked: ask first"),
        *(0.0, None),
    )
    assert record.start_event_seq == end.start_event_seq
    assert record.end_event_seq is not None
    assert record.end_event_seq > end.start_event_seq


async def test_exe_15_instruments_are_told_of_a_blocked_and_of_an_edited_call() -> None:
    told: list[TelemetryEvent] = []

    class Keep:
        def handle(self, event: TelemetryEvent) -> None:
            told.append(event)

    def say(call: ToolUse) -> Verdict:
        return BlockCall("no") if call.id == "c1" else EditCall({"n": 9})

    add_instrument(keep := Keep())
    try:
        await Steps().go(Gate(say))
    finally:
        remove_instrument(keep)
    starts = {event.id: event for event in told if isinstance(event, ToolStarted)}
    stops = {event.id: event for event in told if isinstance(event, ToolStopped)}
    assert (starts["c1"].input, starts["c2"].input) == ({"n": 1}, {"n": 9})
    assert (stops["c1"].outcome, stops["c1"].error, stops["c2"].outcome) == ("blocked", "Blocked: no", "ok")


@pytest.mark.parametrize(
    "say",
    [lambda _: BlockCall("not yet"), lambda _: EditCall({"n": "x"})],
    ids=["unt-03-blocked", "unt-03-edited-wrongly"],
)
async def test_what_does_not_count_for_until_tool(say: Callable[[ToolUse], Verdict]) -> None:
    steps, gate = Steps(), Gate()
    gate.say = lambda call: say(call) if len(gate.asked) == 1 else None
    result = await steps.go(gate, replies=[step(1), text("done?"), step(2), text("done")], until_tool="step")
    assert (result.status, result.turns, result.text) == ("completed", 4, "done")
    assert "step" in result.messages[4].text  # the reminder
    assert steps.ran == [2]


@pytest.mark.parametrize("reason", [None, 5, ["no"]])
def test_a_reason_is_text(reason: Any) -> None:
    with pytest.raises(InvalidOption, match="reason as text"):
        BlockCall(reason)


# Editing


async def test_mw_13_an_edited_call_runs_with_the_new_input_and_the_history_keeps_the_models() -> None:
    steps = Steps()
    result = await steps.go(Gate(on("c1", EditCall({"n": 7, "note": "!"}))))
    assert steps.ran == [7, 2]
    assert [a.text for a in answers(result)] == ["did 7!", "did 2"]
    assert [use.input for use in result.messages[1].tool_uses] == [{"n": 1}, {"n": 2}]
    assert [call.input for call in result.tool_calls] == [{"n": 7, "note": "!"}, {"n": 2}]
    assert [event.input for event in steps.told if event.id == "c1"] == [{"n": 7, "note": "!"}] * 2
    assert {message.epoch for message in result.messages} == {0}


async def test_mw_13_the_new_input_is_validated_as_the_models_was() -> None:
    steps = Steps()
    result = await steps.go(Gate(on("c1", EditCall({"n": "seven"}))))
    assert steps.ran == [2]
    first, second = answers(result)
    assert (first.outcome, first.is_error, second.outcome) == ("error", True, "ok")
    assert "$.n" in first.text
    assert result.tool_calls[0].input == {"n": "seven"}
    assert [type(event) for event in steps.told if event.id == "c1"] == [ToolStart, ToolEnd]


@pytest.mark.parametrize(
    "new",
    [{"n": object()}, {1: 2}, {"n": float("nan")}, {"n": 1, "more": {1, 2}}, {}],
    ids=["object", "number-as-name", "nan", "set", "nothing"],
)
async def test_mw_13_an_input_that_is_no_json_is_an_error_for_the_model(new: Any) -> None:
    steps = Steps()
    result = await steps.go(Gate(on("c1", EditCall(new))))
    assert [a.outcome for a in answers(result)] == ["error", "ok"]
    assert steps.ran == [2]


@pytest.mark.parametrize(
    "what",
    [
        ToolUse("c9", "step", {"n": 1}),
        ToolUse("c1", "delete", {"n": 1}),
        None,
        '{"n": 1}',
        [("n", 1)],
    ],
    ids=["mw-13-id", "mw-13-name", "mw-13-none", "mw-13-text", "mw-13-list"],
)
async def test_an_edit_is_of_the_input_alone(what: Any) -> None:
    steps = Steps()

    def say(call: ToolUse) -> Verdict:
        return EditCall(what)

    with pytest.raises(InvalidOption, match="id and name have to stay") as caught:
        await steps.go(Gate(say))
    assert caught.value.result is not None
    assert steps.ran == []
    check_history(caught.value.result.messages, [steps.tool])


async def test_an_input_that_is_changed_in_place_is_a_mistake() -> None:
    """What the model said is in the history; a change has to be returned, and one that is not must not go unnoticed."""
    nested = Tool(name="nested", input_schema={"type": "object"}, execute=lambda i, _: str(i), inline=True)

    def say(call: ToolUse) -> None:
        call.input["list"].append(2)
        call.input["more"] = True

    provider = ScriptedProvider([tool_call("nested", {"list": [1]}), text("x")])
    with pytest.raises(TypeError, match=r"return EditCall\(input\) instead") as caught:
        await run("go", provider=provider, tools=[nested], middleware=[Gate(say)])
    result = caught.value.result  # type: ignore[attr-defined] # the run has put it there
    assert result.messages[1].tool_uses[0].input == {"list": [1]}


async def test_an_input_that_is_changed_in_place_and_returned_is_an_edit() -> None:
    def say(call: ToolUse) -> Verdict:
        call.input["n"] += 10
        return EditCall(call.input)

    steps = Steps()
    result = await steps.go(Gate(say), Gate(say))
    assert steps.ran == [21, 22]
    assert [use.input for use in result.messages[1].tool_uses] == [{"n": 1}, {"n": 2}]


async def test_an_edit_is_what_it_was_when_it_was_made() -> None:
    shared = {"n": 5}
    edit = EditCall(shared)

    def say(call: ToolUse) -> Verdict:
        shared["n"] += 1
        return edit

    steps = Steps()
    result = await steps.go(Gate(say))
    assert steps.ran == [5, 5]
    assert [call.input for call in result.tool_calls] == [{"n": 5}, {"n": 5}]


def test_verdicts_are_values() -> None:
    assert BlockCall("no") == BlockCall("no")
    assert EditCall({"n": 1}) == EditCall({"n": 1})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        BlockCall("no").reason = "yes"  # type: ignore[misc] # frozen


# Chains


async def test_each_sees_what_those_before_it_have_made_of_a_call() -> None:
    def plus(n: int) -> Callable[[ToolUse], Verdict]:
        return lambda call: EditCall({"n": call.input["n"] + n})

    last, steps = Gate(), Steps()
    result = await steps.go(Gate(plus(10)), Gate(), Gate(plus(100)), last)
    assert [call.input["n"] for call in last.asked] == [111, 112]
    assert sorted(steps.ran) == [111, 112]
    assert [(call.id, call.name) for call in last.asked] == [("c1", "step"), ("c2", "step")]
    assert [call.input for call in result.tool_calls] == [{"n": 111}, {"n": 112}]


async def test_the_first_to_block_decides_and_nobody_is_asked_behind_it() -> None:
    first, last, steps = Gate(on("c1", EditCall({"n": 5}))), Gate(), Steps()
    result = await steps.go(first, Gate(on("c1", BlockCall("one"))), Gate(on("c1", BlockCall("two"))), last)
    assert [call.id for call in last.asked] == ["c2"]
    assert [a.text for a in answers(result)] == ["Blocked: one", "did 2"]
    assert result.tool_calls[0].input == {"n": 1}  # what was asked for: nothing ran


# Halting and raising


@pytest.mark.parametrize("which", ["c1", "c2"], ids=["mw-06-first", "mw-06-second"])
async def test_halting_at_any_call_of_a_batch_lets_none_of_it_start(which: str) -> None:
    steps, last = Steps(), Gate()
    result = await steps.go(Gate(on(which, Halted("enough"))), last)
    assert (result.status, str(result.error), result.turns) == ("halted", "enough", 1)
    assert (steps.ran, steps.told, len(steps.provider.requests)) == ([], [], 1)
    assert [call.id for call in last.asked] == (["c1"] if which == "c2" else [])
    assert result.tool_calls == ()


def refuse_all(result: Result, word: str) -> None:
    assert [(a.tool_use_id, a.is_error, a.outcome) for a in answers(result)] == [
        ("c1", True, "error"),
        ("c2", True, "error"),
    ]
    assert all(word in a.text for a in answers(result))
    assert result.tool_calls == ()


@pytest.mark.parametrize(
    ("hook", "raised"),
    [
        ("after_tool_request", Halted("enough")),
        ("before_tool_call", Halted("enough")),
        ("after_tool_request", RuntimeError("a bug")),
        ("before_tool_call", RuntimeError("a bug")),
    ],
    ids=["mw-08-request", "mw-08-second-call", "mw-08-request-raises", "mw-08-second-call-raises"],
)
async def test_every_call_of_the_batch_has_an_error_result(hook: str, raised: Exception) -> None:
    class Stop(Middleware):
        async def after_tool_request(self, state: RunState) -> None:
            if hook == "after_tool_request":
                raise raised

        async def before_tool_call(self, state: RunState, call: ToolUse) -> Verdict:
            if call.id == "c2":
                raise raised
            return None

    steps = Steps()
    if isinstance(raised, Halted):
        result = await steps.go(Stop())
        refuse_all(result, "not run: the run was halted: enough")
    else:
        with pytest.raises(RuntimeError, match="a bug") as caught:
            await steps.go(Stop())
        result = caught.value.result  # type: ignore[attr-defined] # what was raised has the run's
        refuse_all(result, "not run: a bug")
    assert steps.ran == []
    assert steps.session.messages == result.messages
    later = await steps.go(replies=[step(3), text("fine")])
    assert (later.status, steps.ran) == ("completed", [3])


async def test_what_was_blocked_before_a_halt_stays_blocked() -> None:
    def say(call: ToolUse) -> Verdict:
        if call.id == "c2":
            raise Halted("enough")
        return BlockCall("no")

    result = await Steps().go(Gate(say))
    assert [(a.outcome, a.text) for a in answers(result)] == [
        ("blocked", "Blocked: no"),
        ("error", "not run: the run was halted: enough"),
    ]


@pytest.mark.parametrize("verdict", [True, False, "no", BlockCall, ("block", "no"), {"n": 2}], ids=repr)
async def test_a_verdict_is_one_of_three(verdict: object) -> None:
    steps = Steps()
    with pytest.raises(TypeError, match=r"None, BlockCall\(reason\) or EditCall\(input\)") as caught:
        await steps.go(Gate(lambda _: verdict))
    assert "Gate.before_tool_call" in str(caught.value)
    assert steps.ran == []


async def test_a_halt_in_a_tool_is_no_halt() -> None:
    """Only hooks halt: from a tool it is an error like any other, for the model."""

    @tool
    async def stop() -> str:
        """Stop."""
        raise Halted("enough")

    provider = ScriptedProvider([tool_call("stop"), text("noted")])
    result = await run("go", provider=provider, tools=[stop], middleware=[Gate()])
    assert (result.status, result.text) == ("completed", "noted")
    assert answers(result)[0].is_error


# Cancel


async def test_cancelled_while_a_call_is_thought_over(autojump_clock: object) -> None:
    async def say(call: ToolUse) -> Verdict:
        if call.id == "c3":
            await trio.sleep_forever()
        return BlockCall("no") if call.id == "c1" else EditCall({"n": 9})

    steps = Steps()
    with trio.move_on_after(1) as scope, assert_no_orphans():
        await steps.go(Gate(say), replies=[[step(1), step(2), step(3)]])
    assert scope.cancelled_caught
    (last,) = [message for message in steps.session.messages[-1:] if message.role == "user"]
    assert [(a.tool_use_id, a.outcome) for a in last.tool_results] == [
        ("c1", "blocked"),
        ("c2", "cancelled"),
        ("c3", "cancelled"),
    ]
    assert "before it started" in last.tool_results[1].text
    check_history(steps.session.messages, [steps.tool])
    assert steps.ran == []
    assert steps.told == []


async def test_an_approval_may_come_from_another_task(autojump_clock: object) -> None:
    asked, answered = trio.open_memory_channel[ToolUse](0)
    decided, verdicts = trio.open_memory_channel["Verdict"](0)

    class Approval(Middleware):
        async def before_tool_call(self, state: RunState, call: ToolUse) -> Verdict:
            await asked.send(call)
            return await verdicts.receive()

    async def person() -> None:
        async for call in answered:
            await trio.sleep(600)
            await decided.send(None if call.input["n"] == 2 else BlockCall("the person said no"))

    steps = Steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(person)
        result = await steps.go(Approval())
        nursery.cancel_scope.cancel()
    assert [a.text for a in answers(result)] == ["Blocked: the person said no", "did 2"]


async def test_the_conversation_may_change_while_calls_are_thought_over() -> None:
    """What stands before the answer may be made shorter; the answer and its results stay together."""

    class Shorten(Middleware):
        async def before_tool_call(self, state: RunState, call: ToolUse) -> Verdict:
            if call.id == "c2":
                state.messages = (Message.user("GO"), state.messages[-1])
            return None

    steps = Steps()
    result = await steps.go(Shorten())
    assert [message.role for message in result.messages] == ["user", "assistant", "user", "assistant"]
    assert result.messages[0].text == "GO"
    assert steps.ran == [1, 2]
    assert steps.session.messages == result.messages
