"""Middleware: when each hook is called, what it may do there, and what is left when it stops the run or breaks."""

from __future__ import annotations

import inspect
import logging
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from rules import bodies, check_history

import alloy_trio
from alloy_trio import (
    BlockCall,
    Budget,
    Compaction,
    ContextTooLong,
    EditCall,
    Halted,
    InvalidOption,
    Message,
    Middleware,
    Price,
    ProviderError,
    Result,
    RunTimeout,
    Session,
    Thinking,
    ToolContext,
    ToolResult,
    ToolUse,
    run,
    stream,
    tool,
)
from alloy_trio.events import BlockEnd, Custom, RunEnd, TextDelta, ThinkingDelta, ToolInputDelta, TurnStart
from alloy_trio.providers import Request, Response
from alloy_trio.telemetry import RunFailed, TurnFailed, add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, run_with_responses, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from alloy_trio import RunState
    from alloy_trio.events import Envelope
    from alloy_trio.telemetry import TelemetryEvent
    from alloy_trio.testing._script import Script

    Act = Callable[..., object]

SIGNED = Thinking("deep", signature="sealed")

HOOKS = [
    "session_start",
    "before_completion",
    "after_tool_request",
    "before_tool_call",
    "after_tool_execution",
    "on_context_overflow",
    "after_compaction",
    "after_completion",
    "on_error",
    "session_end",
]


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    await trio.lowlevel.checkpoint()
    return str(a + b)


class Spy(Middleware):
    """Writes down each hook that is called, waits a step in it, and does there what it was told to do."""

    def __init__(self, name: str = "", log: list[str] | None = None, /, **acts: Act) -> None:
        self.name = name
        self.log: list[str] = [] if log is None else log
        self.acts = acts

    async def _at(self, hook: str, *args: Any, detail: str = "") -> Any:
        self.log.append(f"{self.name}{hook}{detail}")
        await trio.lowlevel.checkpoint()
        answer = self.acts[hook](*args) if hook in self.acts else None
        return await answer if inspect.isawaitable(answer) else answer

    async def session_start(self, state: RunState) -> Any:
        return await self._at("session_start", state)

    async def before_completion(self, state: RunState) -> Any:
        return await self._at("before_completion", state)

    async def after_completion(self, state: RunState) -> Any:
        return await self._at("after_completion", state)

    async def after_tool_request(self, state: RunState) -> Any:
        return await self._at("after_tool_request", state)

    async def before_tool_call(self, state: RunState, call: ToolUse) -> Any:
        return await self._at("before_tool_call", state, call, detail=f" {call.id}")

    async def after_tool_execution(self, state: RunState) -> Any:
        return await self._at("after_tool_execution", state)

    async def on_error(self, state: RunState, error: Exception) -> Any:
        return await self._at("on_error", state, error)

    async def on_context_overflow(self, state: RunState, error: Exception) -> Any:
        return await self._at("on_context_overflow", state, error)

    async def after_compaction(self, state: RunState) -> Any:
        return await self._at("after_compaction", state)

    async def session_end(self, state: RunState) -> Any:
        return await self._at("session_end", state)


class Broken(Exception):
    """A bug in a hook."""

    result: Result | None = None


def halt(*_: object) -> None:
    raise Halted("enough")


def fail(*_: object) -> None:
    raise Broken("a bug in a hook")


def shorten(state: RunState, _: Exception) -> Awaitable[None]:
    return state.compacted(state.messages[:1], "truncated")


def ask_on(state: RunState) -> None:
    """Have one thing more to ask, once."""
    if state.turns == 2:
        state.messages = (*state.messages, Message.user("and now?"))


def everything() -> ScriptedProvider:
    """A script in which, with `eventful`, each hook is called."""
    calls = [tool_call("add", {"a": 1, "b": 2}, id="c1"), tool_call("add", {"a": 3, "b": 4}, id="c2")]
    return ScriptedProvider(
        [
            [SIGNED, text("Let me add."), *calls],
            error(ContextTooLong("the prompt is too long")),
            [SIGNED, text("3 and 7")],
            error("gone"),
        ]
    )


def eventful(log: list[str] | None = None, /, **acts: Act) -> Spy:
    """A spy that makes the conversation shorter, goes on once after an answer, and does what it is told besides."""
    usual: dict[str, Act] = {"on_context_overflow": shorten, "after_completion": ask_on}
    return Spy("", log, **usual | acts)


async def perform(*middleware: object, streaming: bool = False, **options: Any) -> Result:
    """Run through `everything`; what is raised, is."""
    options = {"provider": everything(), "tools": [add], "compaction": False, **options}
    if not streaming:
        return await run("go", middleware=middleware, **options)
    async with stream("go", middleware=middleware, **options) as events:
        async for _ in events:
            pass
    return events.result


async def plain(*middleware: object, replies: list[Script] | None = None, **options: Any) -> Result:
    """Run with one tool turn and an answer."""
    script = replies or [[SIGNED, tool_call("add", {"a": 1, "b": 2}, id="c1")], text("3")]
    return await run_with_responses("go", script, tools=[add], middleware=middleware, **options)


# Which hook, and when


async def test_the_order_of_everything() -> None:
    log: list[str] = []
    quiet = (TextDelta, ThinkingDelta, ToolInputDelta, BlockEnd)

    def note(envelope: Envelope) -> None:
        if not isinstance(envelope.event, quiet):
            log.append(type(envelope.event).__name__)

    with pytest.raises(ProviderError, match="gone"):
        await perform(eventful(log), on_event=note)
    assert log == [
        "RunStart",
        "session_start",
        # the model asks for two tools
        "TurnStart",
        "before_completion",
        "TurnEnd",
        "after_tool_request",
        "before_tool_call c1",
        "before_tool_call c2",
        "ToolStart",
        "ToolStart",
        "ToolEnd",
        "ToolEnd",
        "after_tool_execution",
        # the prompt has become too long, and is made shorter; the same turn goes on
        "TurnStart",
        "before_completion",
        "on_context_overflow",
        "Compacted",
        "after_compaction",
        "TurnEnd",
        # the model is done, the hook is not
        "after_completion",
        "TurnStart",
        "before_completion",
        # the provider fails
        "on_error",
        "session_end",
        "RunEnd",
    ]


@pytest.mark.parametrize("streaming", [False, True])
async def test_mw_01_a_plain_run(streaming: bool) -> None:
    spy = Spy()
    result = await perform(spy, streaming=streaming, provider=ScriptedProvider([text("hello")]))
    assert result.text == "hello"
    assert spy.log == ["session_start", "before_completion", "after_completion", "session_end"]


async def test_mw_01_a_hook_sees_the_run_as_it_is() -> None:
    seen: dict[str, tuple[Any, ...]] = {}

    class Look(Middleware):
        def look(self, hook: str, state: RunState) -> None:
            seen[hook] = (
                [m.role for m in state.messages],
                state.turns,
                state.stop_reason,
                state.usage.input_tokens,
                state.cost_cents,
            )
            assert (state.provider, state.model, state.system_prompt) == ("scripted", "scripted", "Be brief.")
            assert (list(state.tools), state.max_output_tokens, state.context_tokens) == (["add"], 77, 5000)
            assert (state.deps, state.context["user"], state.session) == ("D", "u", session)
            assert 0 < state.estimated_tokens < 5000
            assert state.on_compaction is None

        async def before_completion(self, state: RunState) -> None:
            self.look(f"before_completion {state.turns}", state)

        async def after_tool_request(self, state: RunState) -> None:
            self.look("after_tool_request", state)

        async def after_tool_execution(self, state: RunState) -> None:
            self.look("after_tool_execution", state)

        async def after_completion(self, state: RunState) -> None:
            self.look("after_completion", state)

    session = Session()
    await plain(
        Look(),
        session=session,
        system_prompt="Be brief.",
        max_output_tokens=77,
        context_tokens=5000,
        deps="D",
        context={"user": "u"},
    )
    assert seen == {
        "before_completion 0": (["user"], 0, None, 0, 0),
        "after_tool_request": (["user", "assistant"], 1, "tool_use", 10, None),
        "after_tool_execution": (["user", "assistant", "user"], 1, "tool_use", 10, None),
        "before_completion 1": (["user", "assistant", "user"], 1, "tool_use", 10, None),
        "after_completion": (["user", "assistant", "user", "assistant"], 2, "end_turn", 20, None),
    }


async def test_mw_02_tool_hooks_and_the_final_answer_alone() -> None:
    spy = Spy()
    await plain(spy)
    assert spy.log == [
        "session_start",
        "before_completion",
        "after_tool_request",
        "before_tool_call c1",
        "after_tool_execution",
        "before_completion",
        "after_completion",
        "session_end",
    ]


@pytest.mark.parametrize(
    ("replies", "options"),
    [
        ([tool_call("add", {"a": 1, "b": 2})], {"max_turns": 1}),
        ([text("cut", stop_reason="pause_turn")], {"max_turns": 1}),
        ([text("not yet")], {"max_turns": 1, "until_tool": "add"}),
        ([text("never", stop_reason="refusal")], {}),
    ],
    ids=["mw-02-max_turns", "mw-02-pause_turn", "mw-02-until_tool", "mw-02-refusal"],
)
async def test_after_completion_is_for_final_answers(replies: list[Script], options: dict[str, Any]) -> None:
    spy = Spy(on_error=halt)
    await plain(spy, replies=replies, **options)
    assert "after_completion" not in spy.log
    assert spy.log[-1] == "session_end"


@pytest.mark.parametrize(
    "middleware",
    [
        [],
        [Middleware()],
        [Middleware(), Middleware()],
        [SimpleNamespace(before_completion=lambda _: None)],
        iter([Spy()]),
    ],
    ids=["mw-03-none", "mw-03-base", "mw-03-two", "mw-03-one-hook", "mw-03-iterator"],
)
async def test_mw_03_hooks_that_change_nothing(middleware: Any) -> None:
    result = await run_with_responses(
        "go", [tool_call("add", {"a": 1, "b": 2}), text("3")], tools=[add], middleware=middleware
    )
    assert (result.status, result.text, [c.outcome for c in result.tool_calls]) == ("completed", "3", ["ok"])
    assert max(message.epoch for message in result.messages) == 0


async def test_middleware_may_come_from_an_iterator() -> None:
    spy = Spy()
    await run_with_responses("go", [text("x")], middleware=iter([spy]))  # type: ignore[arg-type] # typed as a sequence
    assert spy.log


# What may be a middleware


async def test_mw_03_any_object_with_some_of_the_hooks_async_or_not() -> None:
    log: list[str] = []

    class Plain:
        def before_completion(self, state: RunState) -> None:
            log.append(f"sync {state.turns}")

        async def after_completion(self, state: RunState) -> None:
            await trio.lowlevel.checkpoint()
            log.append(f"async {state.turns}")

        @staticmethod
        def session_end(state: RunState) -> None:
            log.append("static")

    class Callable_:  # noqa: N801 - an object that is called
        def __call__(self, state: RunState) -> None:
            log.append("callable")

    bag = SimpleNamespace(
        session_start=partial(lambda word, _: log.append(word), "partial"),
        before_completion=Callable_(),
        after_completion=None,
        something_else=1,
    )
    await run_with_responses("go", [text("x")], middleware=[Plain(), bag])
    assert log == ["partial", "sync 0", "callable", "async 1", "static"]


async def test_one_object_given_twice_is_called_twice() -> None:
    spy = Spy()
    await run_with_responses("go", [text("x")], middleware=[spy, spy])
    assert spy.log.count("before_completion") == 2


async def test_a_module_may_be_one() -> None:
    import types

    module = types.ModuleType("audit")
    log: list[int] = []
    module.before_completion = lambda state: log.append(state.turns)  # type: ignore[attr-defined]
    await run_with_responses("go", [text("x")], middleware=[module])
    assert log == [0]


@pytest.mark.parametrize(
    "hook", [hook for hook in HOOKS if hook not in {"on_error", "session_end", "before_tool_call"}]
)
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (BlockCall("no"), "only before_tool_call can stop or edit a call"),
        (EditCall({}), "only before_tool_call can stop or edit a call"),
        ("stop", "returns nothing"),
        (False, "returns nothing"),
    ],
    ids=["mw-12-block", "mw-12-edit", "mw-12-text", "mw-12-false"],
)
async def test_mw_12_what_another_hook_returns_is_a_mistake(hook: str, answer: object, says: str) -> None:
    with pytest.raises(TypeError, match=says) as caught:
        await perform(eventful(**{hook: lambda *_: answer}))
    assert f"Spy.{hook}" in str(caught.value)
    assert caught.value.result.status == "error"  # type: ignore[attr-defined] # what was raised has the run's


@pytest.mark.parametrize("hook", ["on_error", "session_end"])
async def test_mw_12_the_last_hooks_as_well(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises((TypeError, ProviderError)) as caught:
        await perform(eventful(**{hook: lambda *_: BlockCall("no")}))
    assert "before_tool_call" in (str(caught.value) if hook == "on_error" else caplog.text)


async def test_mw_12_a_hook_without_a_name_is_named_nevertheless() -> None:
    bag = SimpleNamespace(before_completion=partial(lambda word, _: word, "stop"))
    with pytest.raises(TypeError, match=r"functools\.partial.*returned 'stop'"):
        await run_with_responses("go", [text("x")], middleware=[bag])


# Halting


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "session_end"])
async def test_halting_in_every_hook(hook: str, streaming: bool) -> None:
    """It ends there, nothing is raised, the history is valid, and the conversation can go on."""
    session, spy, provider = Session(), eventful(**{hook: halt}), everything()
    asked = -1
    if hook in {"session_start", "before_completion"}:
        asked = 0
    elif hook in {"after_tool_request", "before_tool_call", "after_tool_execution"}:
        asked = 1
    result = await perform(spy, session=session, streaming=streaming, provider=provider)
    assert (result.status, str(result.error)) == ("halted", "enough")
    assert isinstance(result.error, Halted)
    assert result.error.result == result
    place = next(n for n, each in enumerate(spy.log) if each.startswith(hook))
    assert spy.log[place + 1 :] == ["session_end"]
    assert asked in {-1, len(provider.requests)}
    assert session.messages == result.messages
    assert session.usage == result.usage
    await can_go_on(session)


async def can_go_on(session: Session) -> None:
    """Make sure that every wire takes a conversation, and that another run goes on with it."""
    check_history(session.messages, [add])
    before, later = session.messages, ScriptedProvider([tool_call("add", {"a": 2, "b": 2}, id="later"), text("4")])
    result = await run("again", provider=later, session=session, tools=[add])
    assert (result.status, result.text) == ("completed", "4")
    assert [message.content for message in session.messages[: len(before)]] == [message.content for message in before]
    for request in later.requests:
        check_history(request.messages, [add])


async def test_mw_04_in_before_completion_nobody_is_asked() -> None:
    provider = ScriptedProvider([text("x")])
    result = await run("go", provider=provider, middleware=[Spy(before_completion=halt)])
    assert (result.status, str(result.error), result.text, result.turns) == ("halted", "enough", "", 0)
    assert provider.requests == []
    assert [m.text for m in result.messages] == ["go"]


async def test_mw_05_in_on_error_the_error_becomes_a_halt() -> None:
    seen: list[Exception] = []
    failure = ProviderError("boom")

    def give_up(state: RunState, error: Exception) -> None:
        seen.append(error)
        raise Halted(f"gave up: {error}")

    result = await run_with_responses("go", [error(failure)], middleware=[Spy(on_error=give_up)])
    assert (result.status, str(result.error)) == ("halted", "gave up: boom")
    assert seen == [failure]


async def test_mw_05_a_partial_answer_is_in_the_history_by_then() -> None:
    spy = Spy(on_error=lambda state, _: seen.append(state.messages[-1]))
    seen: list[Message] = []
    with pytest.raises(ProviderError, match="boom") as caught:
        await perform(spy, streaming=True, provider=ScriptedProvider([[text("Half a"), error("boom")]]))
    (partial_,) = seen
    assert (partial_.text, partial_.interrupted) == ("Half a", True)
    assert caught.value.result is not None
    assert caught.value.result.messages[-1] == partial_


@pytest.mark.parametrize(
    ("reply", "options", "raises"),
    [
        (error(Broken("a bug in a provider")), {}, Broken),
        ([delay(9), text("x")], {"timeout": 1}, RunTimeout),
        (text("x"), {"middleware": [Spy(before_completion=fail)]}, Broken),
    ],
    ids=["mw-05-foreign", "mw-05-timeout", "mw-05-hook"],
)
async def test_what_is_no_failure_of_the_provider_is_no_error_for_on_error(
    reply: Script, options: Any, raises: type[Exception], autojump_clock: object
) -> None:
    spy = Spy()
    with pytest.raises(raises):
        await plain(spy, *options.get("middleware", ()), replies=[reply], timeout=options.get("timeout"))
    assert "on_error" not in spy.log
    assert spy.log[-1] == "session_end"


async def test_mw_07_in_after_tool_execution_the_results_are_there() -> None:
    result = await plain(Spy(after_tool_execution=halt))
    assert (result.status, result.turns) == ("halted", 1)
    (answer,) = result.messages[-1].tool_results
    assert answer.text == "3"
    assert [call.outcome for call in result.tool_calls] == ["ok"]


async def test_mw_09_after_a_real_compaction_the_shorter_conversation_is_kept() -> None:
    old = [
        each
        for n in range(12)
        for each in (Message.user(f"question {n} " + "word " * 200), Message.assistant("answer " * 100))
    ]
    session = Session(messages=[*old, Message.user("and now?")])
    provider = ScriptedProvider([text("a summary"), text("never")])
    result = await run(
        None, provider=provider, session=session, context_tokens=4000, middleware=[Spy(after_compaction=halt)]
    )
    assert (result.status, len(provider.requests)) == ("halted", 1)
    assert len(result.messages) < len(old)
    assert session.messages == result.messages
    assert max(m.epoch for m in result.messages) == 1
    await can_go_on(session)


async def test_mw_10_a_halt_stops_the_chain_and_earlier_changes_stay() -> None:
    def note(state: RunState) -> None:
        state.metadata["seen"] = state.turns
        state.messages = (*state.messages, Message.user("by the way"))

    log: list[str] = []
    first, second, third = (
        Spy("1 ", log, before_completion=note),
        Spy("2 ", log, before_completion=halt),
        Spy("3 ", log),
    )
    session = Session()
    result = await run_with_responses("go", [text("x")], middleware=[first, second, third], session=session)
    assert log == [
        *("1 session_start", "2 session_start", "3 session_start"),
        *("1 before_completion", "2 before_completion"),
        *("1 session_end", "2 session_end", "3 session_end"),
    ]
    assert result.metadata == {"seen": 0}
    assert [m.text for m in result.messages] == ["go", "by the way"]
    assert session.messages == result.messages
    await can_go_on(session)


@pytest.mark.parametrize("hook", HOOKS)
async def test_mw_10_in_every_hook(hook: str) -> None:
    def note(state: RunState, *_: object) -> None:
        state.metadata["noted"] = hook

    log: list[str] = []
    spies = [
        eventful(),
        Spy("1 ", log, **{hook: note}),
        Spy("2 ", log, **{hook: halt}),
        Spy("3 ", log),
    ]
    if hook == "session_end":
        with pytest.raises(ProviderError, match="gone") as caught:
            await perform(*spies)
        assert caught.value.result is not None
        result = caught.value.result
    else:
        result = await perform(*spies)
        assert result.status == "halted"
    assert result.metadata["noted"] == hook
    called = [each for each in log if hook in each]
    assert called[-1].startswith("2 ")
    assert not any(each.startswith("3 ") for each in called)


async def test_halting_in_session_end_changes_nothing_any_more() -> None:
    result = await plain(Spy(session_end=halt))
    assert (result.status, result.error, result.text) == ("completed", None, "3")


async def test_a_halt_out_of_a_nursery_of_the_hooks_own() -> None:
    """Trio puts what leaves a nursery into a group; a group of one says nothing more than its member."""

    async def check(*_: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise Halted("enough")

    for hook in ("before_completion", "after_tool_request", "before_tool_call", "session_end"):
        result = await plain(Spy(**{hook: check}))
        assert result.status == ("completed" if hook == "session_end" else "halted")


async def test_several_halts_at_once_are_a_halt() -> None:
    async def check(*_: object) -> None:
        async with trio.open_nursery() as nursery:
            for _each in range(2):

                @nursery.start_soon
                async def _() -> None:
                    raise Halted("enough")

    result = await plain(Spy(before_completion=check))
    assert (result.status, str(result.error)) == ("halted", "enough")


async def test_the_end_of_a_halted_run_is_told() -> None:
    ends: list[RunEnd] = []
    await plain(
        Spy(before_completion=halt), on_event=lambda e: ends.append(e.event) if isinstance(e.event, RunEnd) else None
    )
    assert [(end.status, end.error) for end in ends] == [("halted", "enough")]


# Raising


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "session_end"])
async def test_raising_in_every_hook(hook: str, streaming: bool) -> None:
    """The run fails with that very error, which has what was done until then; the conversation can go on."""
    session, spy = Session(), eventful(**{hook: fail})
    with pytest.raises(Broken, match="a bug in a hook") as caught:
        await perform(spy, session=session, streaming=streaming)
    result = caught.value.result
    assert result is not None
    assert (result.status, result.error) == ("error", caught.value)
    place = next(n for n, each in enumerate(spy.log) if each.startswith(hook))
    assert spy.log[place + 1 :] == ["session_end"]
    assert session.messages == result.messages
    assert session.usage == result.usage
    assert result.turns == {"session_start": 0, "before_completion": 0, "after_completion": 2, "on_error": 2}.get(
        hook, 1
    )
    await can_go_on(session)


async def test_raising_in_session_end_of_a_good_run() -> None:
    session = Session()
    with pytest.raises(Broken) as caught:
        await plain(Spy(session_end=fail), session=session)
    result = caught.value.result
    assert result is not None
    assert (result.status, result.text, result.turns) == ("error", "3", 2)
    await can_go_on(session)


async def test_raising_in_session_end_of_a_failed_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProviderError, match="gone") as caught:
        await perform(eventful(session_end=fail))
    assert caught.value.result is not None
    assert "a bug in a hook" in caplog.text


async def test_raising_in_session_end_of_a_halted_run() -> None:
    with pytest.raises(Broken) as caught:
        await plain(Spy(before_completion=halt, session_end=fail))
    assert caught.value.result is not None
    assert caught.value.result.status == "error"


async def test_an_error_out_of_a_nursery_of_the_hooks_own_comes_alone() -> None:
    async def check(*_: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise Broken("inner") from KeyError("why")

    with pytest.raises(Broken, match="inner") as caught:
        await plain(Spy(before_completion=check))
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.result is not None


@pytest.mark.parametrize("raised", [Broken("disk"), Halted("enough")])
async def test_an_error_beside_the_runs_deadline_comes_alone_as_well(raised: Exception, autojump_clock: object) -> None:
    """A nursery puts both into a group; the deadline's part of it is taken out, and a group of one is left."""

    async def messy(*_: object) -> None:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise raised

        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.sleep_forever()

    if isinstance(raised, Halted):
        result = await plain(Spy(before_completion=messy), timeout=1)
        assert (result.status, result.error) == ("halted", raised)
        return
    with pytest.raises(Broken, match="disk"):
        await plain(Spy(before_completion=messy), timeout=1)


async def test_two_errors_at_once_stay_a_group() -> None:
    async def check(*_: object) -> None:
        raise ExceptionGroup("both", [Broken("one"), Broken("two")])

    with pytest.raises(ExceptionGroup, match="both") as caught:
        await plain(Spy(before_completion=check))
    assert len(caught.value.exceptions) == 2


async def test_an_error_without_room_for_a_result() -> None:
    class Tight(Exception):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            if name == "result":
                raise AttributeError(name)
            super().__setattr__(name, value)

    def tight(*_: object) -> None:
        raise Tight("no room")

    with pytest.raises(Tight):
        await plain(Spy(before_completion=tight))


@pytest.mark.parametrize(
    "failure",
    [Broken("mine"), InvalidOption("mine"), alloy_trio.ToolError("mine")],
    ids=["mw-17-foreign", "mw-17-InvalidOption", "mw-17-ToolError"],
)
async def test_mw_17_telemetry_of_a_hook_that_raises(failure: Exception) -> None:
    told: list[TelemetryEvent] = []

    class Keep:
        def handle(self, event: TelemetryEvent) -> None:
            told.append(event)

    def raise_it(*_: object) -> None:
        raise failure

    add_instrument(keep := Keep())
    try:
        with pytest.raises(type(failure)):
            await plain(Spy(after_tool_request=raise_it))
    finally:
        remove_instrument(keep)
    assert [(type(e), e.error) for e in told if isinstance(e, TurnFailed | RunFailed)] == [
        (TurnFailed, failure),
        (RunFailed, failure),
    ]


async def test_a_run_in_a_hook_that_fails_fails_the_run_around_it() -> None:
    """The error's result is that of the outer run in the end: it is the one that its caller knows of."""

    async def delegate(*_: object) -> None:
        await run_with_responses("sub", [error("sub failed")])

    with pytest.raises(ProviderError, match="sub failed") as caught:
        await plain(Spy(after_completion=delegate))
    assert caught.value.result is not None
    assert caught.value.result.text == "3"


# State


async def test_what_is_added_to_metadata_and_context_is_kept() -> None:
    seen: list[Any] = []

    @tool
    async def look(ctx: ToolContext) -> str:
        """Look."""
        seen.append(ctx.context["tenant"])
        return "x"

    def begin(state: RunState) -> None:
        state.context["tenant"] = "acme"
        state.metadata["plan"] = "gold"

    mine = {"user": "u"}
    session = Session()
    spy = Spy(session_start=begin, session_end=lambda state: state.metadata.update(late=True))
    replies: list[Script] = [tool_call("look"), text("x")]
    result = await run_with_responses("go", replies, tools=[look], middleware=[spy], context=mine, session=session)
    assert seen == ["acme"]
    assert result.metadata == {"plan": "gold", "late": True}
    assert mine == {"user": "u"}
    assert session.metadata == {}


async def test_metadata_of_a_hook_survives_the_answers() -> None:
    reply = Response(message=Message.assistant("x"), metadata={"raw_stop_reason": "odd"})
    spy = Spy(before_completion=lambda state: state.metadata.update(turn=state.turns))
    result = await plain(spy, replies=[tool_call("add", {"a": 1, "b": 1}), reply])
    assert result.metadata == {"turn": 1, "raw_stop_reason": "odd"}


async def test_what_is_appended_is_sent_and_begins_no_epoch() -> None:
    provider = ScriptedProvider([[SIGNED, tool_call("add", {"a": 1, "b": 2})], text("3")])

    def remind(state: RunState) -> None:
        state.messages = (*state.messages, Message.user(f"turn {state.turns}"))

    result = await run("go", provider=provider, tools=[add], middleware=[Spy(before_completion=remind)])
    first, second = provider.requests
    assert [m.text for m in first.messages] == ["go", "turn 0"]
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[-1].text == "turn 1"
    assert {m.epoch for m in result.messages} == {0}
    check_history(second.messages, [add])
    own = [attrs.evolve(message, provider=None) for message in second.messages]  # as if it was the wire's
    thinking = [b for m in bodies(own)["anthropic"]["messages"] for b in m["content"] if b["type"] == "thinking"]
    assert len(thinking) == 1


async def test_what_a_hook_changes_is_in_the_session_at_once() -> None:
    session, seen = Session(), []
    change = assign(lambda state: (*state.messages, Message.user(f"turn {state.turns}")))
    look = Spy(before_completion=lambda state: seen.append(session.messages == state.messages))
    await plain(Spy(before_completion=change), look, session=session)
    assert seen == [True, True]


async def test_any_other_change_begins_an_epoch_and_drops_the_reasoning() -> None:
    provider = ScriptedProvider([[SIGNED, tool_call("add", {"a": 1, "b": 2}, id="c1")], [SIGNED, text("done")]])

    def redact(state: RunState) -> None:
        state.messages = [*state.messages[:-1], Message.user(ToolResult("c1", "[redacted]"))]

    session = Session()
    spy = Spy(after_tool_execution=redact)
    result = await run("go", provider=provider, tools=[add], middleware=[spy], session=session)
    sent = provider.requests[1].messages
    assert sent[-1].tool_results[0].text == "[redacted]"
    assert [m.epoch for m in result.messages] == [0, 0, 1, 1]
    assert "deep" not in str(bodies(sent)["anthropic"])
    assert "deep" in str(bodies(result.messages)["anthropic"])  # that of the answer behind it
    assert session.messages == result.messages
    await can_go_on(session)


def assign(messages: Callable[[RunState], Any]) -> Act:
    """An act that puts other messages in place of those of the run."""

    def act(state: RunState, *_: object) -> None:
        state.messages = messages(state)

    return act


@pytest.mark.parametrize(
    ("hook", "messages", "says"),
    [
        ("before_completion", lambda s: (), "would be empty"),
        ("before_completion", lambda s: (*s.messages, "hi"), "no message"),
        ("before_completion", lambda s: (*s.messages, Message.user(ToolResult("c9", "x"))), "'c9'"),
        ("before_completion", lambda s: "hi", "no message"),
        ("after_tool_execution", lambda s: (*s.messages[:-1], Message.user("no result")), "c1"),
        ("after_tool_execution", lambda s: s.messages[-1:], "c1"),
        ("after_tool_execution", lambda s: (*s.messages, Message.user(ToolResult("c1", "x"))), "a second one"),
        ("after_tool_execution", lambda s: (*s.messages, Message.assistant(ToolResult("c1", "x"))), "exchange them"),
        ("before_completion", lambda s: (*s.messages, Message.user(ToolUse("c9", "add"))), "exchange them"),
        ("after_tool_request", lambda s: (*s.messages, Message.user("wait")), "about to run"),
        ("after_tool_request", lambda s: s.messages[:1], "about to run"),
        (
            "after_tool_request",
            lambda s: (*s.messages, Message.user(ToolResult("c1", "x"), ToolResult("c2", "y"))),
            "about",
        ),
        ("before_tool_call", lambda s: (*s.messages[:-1], Message.assistant("no calls")), "about to run"),
        ("before_tool_call", lambda s: s.messages[:1], "about to run"),
    ],
)
async def test_an_invalid_history_is_refused_and_changes_nothing(hook: str, messages: Any, says: str) -> None:
    session = Session()
    spy = eventful(**{hook: assign(messages)})
    with pytest.raises(InvalidOption, match=says) as caught:
        await perform(spy, session=session)
    assert caught.value.result is not None
    assert session.messages == caught.value.result.messages
    assert session.messages[0].text == "go"
    await can_go_on(session)


async def test_a_hook_may_catch_the_refusal() -> None:
    def try_it(state: RunState) -> None:
        before = state.messages
        with pytest.raises(InvalidOption):
            state.messages = ()
        assert state.messages is before

    assert (await plain(Spy(before_completion=try_it))).text == "3"


async def test_while_calls_wait_the_rest_may_change_and_the_session_stays_valid() -> None:
    session = Session()

    def rewrite(state: RunState) -> None:
        state.messages = (Message.user("GO"), *state.messages[1:])
        check_history(session.messages, [add])
        assert [m.text for m in session.messages] == ["go"]

    result = await plain(Spy(after_tool_request=rewrite), session=session)
    assert [m.text for m in result.messages] == ["GO", "", "", "3"]
    assert [call.outcome for call in result.tool_calls] == ["ok"]
    assert max(m.epoch for m in result.messages) == 1
    await can_go_on(session)


async def test_while_calls_wait_a_compaction_leaves_the_session_valid() -> None:
    session = Session()

    async def shorter(state: RunState) -> None:
        await state.compacted((Message.user("GO"), *state.messages[1:]), "truncated")
        check_history(session.messages, [add])

    result = await plain(Spy(after_tool_request=shorter), session=session)
    assert result.messages[0].text == "GO"
    await can_go_on(session)


async def test_while_calls_wait_a_compaction_keeps_them() -> None:
    spy = Spy(after_tool_request=lambda state: state.compacted(state.messages[:1], "truncated"))
    with pytest.raises(InvalidOption, match="about to run"):
        await plain(spy)


async def test_an_answer_may_be_edited_before_anybody_has_the_result() -> None:
    session = Session()
    spy = Spy(after_completion=assign(lambda state: (*state.messages[:-1], Message.assistant("[redacted]"))))
    result = await plain(spy, replies=[text("a secret")], session=session)
    assert (result.status, result.text, result.turns) == ("completed", "[redacted]", 1)
    assert "secret" not in str(result.messages)
    await can_go_on(session)


async def test_a_word_of_the_assistants_behind_an_answer_does_not_go_on() -> None:
    session = Session()
    spy = Spy(after_completion=assign(lambda state: (*state.messages, Message.assistant("signed, the editor"))))
    result = await plain(spy, replies=[text("x")], session=session)
    assert (result.status, result.text, result.turns) == ("completed", "signed, the editor", 1)
    await can_go_on(session)


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_session_is_valid_at_every_hook(streaming: bool) -> None:
    session, seen = Session(), []

    def look(state: RunState, *_: object) -> None:
        seen.append(len(session.messages))
        check_history(session.messages, [add])
        if state.messages[-1].tool_uses == ():
            check_history(state.messages, [add])

    spies = [eventful(), Spy(**dict.fromkeys(HOOKS, look))]
    with pytest.raises(ProviderError, match="gone"):
        await perform(*spies, session=session, streaming=streaming)
    assert len(seen) == 13


async def test_tools_cannot_be_changed_in_a_run() -> None:
    """They stand before the messages in every request: a change would break what is cached and sealed."""

    def sneak(state: RunState) -> None:
        state.tools["more"] = add  # type: ignore[index] # no mutable mapping

    with pytest.raises(TypeError):
        await plain(Spy(before_completion=sneak))


async def test_an_event_of_a_hooks_own() -> None:
    seen: list[Custom] = []
    spy = Spy(before_completion=lambda state: state.emit("audit", {"turn": state.turns}))
    await plain(spy, on_event=lambda e: seen.append(e.event) if isinstance(e.event, Custom) else None)
    assert seen == [Custom("audit", {"turn": 0}), Custom("audit", {"turn": 1})]


async def test_what_a_hook_asks_the_provider_is_paid_by_the_run() -> None:
    answers: list[str] = []

    async def judge(state: RunState) -> None:
        response = await state.ask(Request(messages=(Message.user("is it good?"),)))
        answers.append(response.message.text)

    result = await run_with_responses("go", [text("done"), text("yes")], middleware=[Spy(after_completion=judge)])
    assert answers == ["yes"]
    assert (result.text, result.turns, result.usage.input_tokens) == ("done", 1, 20)


@pytest.mark.parametrize("nursery", [False, True])
@pytest.mark.parametrize("hook", ["before_completion", "after_tool_request", "after_completion", "session_end"])
async def test_a_hook_that_finds_no_money_ends_the_run_as_the_run_itself_would(hook: str, nursery: bool) -> None:
    async def ask(state: RunState) -> None:
        request = Request(messages=(Message.user("?" * 100_000),))
        if not nursery:
            await state.ask(request)
            return
        async with trio.open_nursery() as inner:
            inner.start_soon(state.ask, request)
            inner.start_soon(state.ask, request)

    session = Session()
    provider = ScriptedProvider([tool_call("add", {"a": 1, "b": 2}), text("3")], price=Price("1000", "1000"))
    with Budget("20"):
        result = await run("go", provider=provider, tools=[add], middleware=[Spy(**{hook: ask})], session=session)
    assert (result.status, result.error) == ("budget_exceeded", None)
    await can_go_on(session)


async def test_an_error_stands_where_on_error_finds_no_money() -> None:
    async def ask(state: RunState, _: Exception) -> None:
        await state.ask(Request(messages=(Message.user("?" * 100_000),)))

    provider = ScriptedProvider([error("gone")], price=Price("1000", "1000"))
    with Budget("20"), pytest.raises(ProviderError, match="gone") as caught:
        await run("go", provider=provider, middleware=[Spy(on_error=ask)])
    assert caught.value.result is not None


async def test_going_on_after_an_answer() -> None:
    def check(state: RunState) -> None:
        if "please" not in state.messages[-1].text:
            state.messages = (*state.messages, Message.user("say please"))

    spy = Spy(after_completion=check)
    result = await plain(spy, replies=[text("do it"), text("please do it")])
    assert (result.status, result.turns, result.text) == ("completed", 2, "please do it")
    assert [m.text for m in result.messages] == ["go", "do it", "say please", "please do it"]
    assert spy.log.count("after_completion") == 2


async def test_going_on_ends_with_the_turns() -> None:
    session = Session()
    spy = Spy(after_completion=assign(lambda state: (*state.messages, Message.user("more"))))
    result = await plain(spy, replies=[text("x")] * 3, max_turns=3, session=session)
    assert (result.status, result.turns) == ("max_turns", 3)
    await can_go_on(session)


async def test_other_changes_after_an_answer_do_not_go_on() -> None:
    spy = Spy(after_completion=assign(lambda state: (Message.user("GO"), *state.messages[1:])))
    result = await plain(spy, replies=[text("x")])
    assert (result.status, [m.text for m in result.messages]) == ("completed", ["GO", "x"])


async def test_a_question_in_the_place_of_an_answer_goes_on_too() -> None:
    def reject(state: RunState) -> None:
        if state.messages[-1].text == "bad":
            state.messages = (*state.messages[:-1], Message.user("try again"))

    result = await plain(Spy(after_completion=reject), replies=[text("bad"), text("good")])
    assert (result.status, [m.text for m in result.messages]) == ("completed", ["go", "try again", "good"])


REDACTED: dict[str, Act] = {
    "nothing": lambda _: None,
    "the same": assign(lambda state: state.messages),
    "the first": assign(lambda state: (Message.user("GO"), *state.messages[1:])),
}


@pytest.mark.parametrize("act", REDACTED.values(), ids=REDACTED)
async def test_an_empty_answer_does_not_go_on_by_itself(act: Act) -> None:
    reply = Response(message=Message("assistant", ()))
    messages = [Message.user("start"), Message.assistant("yes?")]
    result = await plain(Spy(after_completion=act), replies=[reply], messages=messages)
    assert (result.status, result.turns) == ("completed", 1)


REDACTED_RESULT = {
    "the last": assign(lambda state: (*state.messages[:-1], Message.user(ToolResult("c1", "[redacted]"))))
}


@pytest.mark.parametrize("act", [*REDACTED.values(), *REDACTED_RESULT.values()], ids=[*REDACTED, *REDACTED_RESULT])
async def test_an_answer_by_a_tool_does_not_go_on_by_itself(act: Act) -> None:
    """The last message is the tool's result then: a user's, but nobody has said it."""
    replies: list[Script] = [tool_call("final_answer", {"value": 5}, id="c1")]
    result = await plain(Spy(after_completion=act), replies=replies, output_type=int)
    assert (result.status, result.turns, result.output) == ("completed", 1, 5)


async def test_an_answer_by_a_tool_may_be_asked_about_too() -> None:
    def check(state: RunState) -> None:
        if state.turns == 1:
            state.messages = (*state.messages, Message.user("are you sure?"))

    replies: list[Script] = [tool_call("final_answer", {"value": 5}), tool_call("final_answer", {"value": 6})]
    result = await plain(Spy(after_completion=check), replies=replies, output_type=int)
    assert (result.status, result.turns, result.output) == ("completed", 2, 6)


async def test_mw_19_a_hook_makes_the_prompt_shorter_itself() -> None:
    provider = everything()
    with pytest.raises(ProviderError, match="gone") as caught:
        await perform(
            Spy(on_context_overflow=assign(lambda s: s.messages[:1]), after_completion=ask_on), provider=provider
        )
    assert [len(request.messages) for request in provider.requests] == [1, 3, 1, 3]
    assert caught.value.result is not None
    assert caught.value.result.metadata == {"context_overflow": True}


async def test_mw_19_and_where_it_does_not_the_error_stands() -> None:
    provider = everything()
    with pytest.raises(ContextTooLong):
        await perform(Spy(), provider=provider)
    assert len(provider.requests) == 2


async def test_mw_19_it_is_asked_once_more_and_no_more() -> None:
    provider = ScriptedProvider([error(ContextTooLong("long")), error(ContextTooLong("still"))])
    spy = Spy(on_context_overflow=assign(lambda s: (Message.user("shorter"),)))
    with pytest.raises(ContextTooLong, match="still") as caught:
        await run("go", provider=provider, middleware=[spy], compaction=False)
    assert spy.log.count("on_context_overflow") == 1
    assert spy.log[-2:] == ["on_error", "session_end"]
    assert caught.value.result is not None
    assert "context_overflow" not in caught.value.result.metadata


# Chains


async def test_a_chain_is_called_in_order_at_every_hook() -> None:
    log: list[str] = []
    spies = [eventful(), Spy("1 ", log), Spy("2 ", log)]
    with pytest.raises(ProviderError, match="gone"):
        await perform(*spies)
    assert len(log) == 26
    for one, two in zip(log[::2], log[1::2], strict=True):
        assert (one[0], two[0], one[2:]) == ("1", "2", two[2:])
    assert {each[2:].split()[0] for each in log} == set(HOOKS)


async def test_what_one_changes_the_next_one_sees() -> None:
    seen: list[list[str]] = []
    first = Spy(before_completion=assign(lambda state: (*state.messages, Message.user("more"))))
    second = Spy(before_completion=lambda state: seen.append([m.text for m in state.messages]))
    await run_with_responses("go", [text("x")], middleware=[first, second])
    assert seen == [["go", "more"]]


async def test_compaction_comes_before_the_users_unless_it_was_placed() -> None:
    log: list[str] = []

    class Noted(Compaction):
        async def before_completion(self, state: RunState) -> None:
            log.append("compaction")

    await run_with_responses("go", [text("x")], middleware=[Spy("", log)], compaction=Noted())
    assert log[:3] == ["session_start", "compaction", "before_completion"]
    log.clear()
    await run_with_responses("go", [text("x")], middleware=[Spy("", log), Noted()])
    assert log[:3] == ["session_start", "before_completion", "compaction"]


async def test_a_placed_compaction_is_the_only_one() -> None:
    told: list[int] = []

    def callback(messages: tuple[Message, ...], _: RunState) -> None:
        told.append(len(messages))

    for middleware, compactions in (([], 1), ([Compaction(fallback=None)], 0)):
        told.clear()
        old = [Message.user("start"), *[Message.assistant("a " * 800), Message.user("b " * 800)] * 6]
        provider = ScriptedProvider([error("no summary"), text("done")])
        await run(
            None,
            provider=provider,
            messages=old,
            context_tokens=4000,
            on_compaction=callback,
            middleware=middleware,
        )
        assert bool(told) is bool(compactions)


# Callbacks


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_handler_that_raises_is_logged_and_the_run_goes_on(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def raising(_: Envelope) -> None:
        raise Broken("a bug in a handler")

    async def raising_later(_: Envelope) -> None:
        await trio.lowlevel.checkpoint()
        raise Broken("a bug in a handler")

    result = await plain(on_event=raising_later if asynchronous else raising)
    assert (result.status, result.text) == ("completed", "3")
    assert "a bug in a handler" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@pytest.mark.parametrize("failure", [Broken("a bug"), Halted("no")])
async def test_on_compaction_that_raises_is_logged_and_the_run_goes_on(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    async def callback(messages: tuple[Message, ...], state: RunState) -> None:
        seen.append(len(messages))
        raise failure

    old = [Message.user("start"), *[Message.assistant("a " * 800), Message.user("b " * 800)] * 6]
    provider = ScriptedProvider([text("a summary"), text("done")])
    result = await run(None, provider=provider, messages=old, context_tokens=4000, on_compaction=callback)
    assert (result.status, result.text) == ("completed", "done")
    assert seen
    assert len(result.messages) < len(old)
    assert "on_compaction raised" in caplog.text


# Cancel and time


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the Trio loop takes its nth step."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.left = step
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def cancelled_at(step: int, spy: Spy, *, streaming: bool) -> tuple[bool, Session]:
    session = Session()

    def note_end(envelope: Envelope) -> None:
        if isinstance(envelope.event, RunEnd):
            spy.log.append("RunEnd")

    with trio.CancelScope() as scope:
        instrument = CancelAtStep(step, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            with assert_no_orphans():
                await perform(spy, session=session, streaming=streaming, on_event=note_end)
        except ProviderError:  # the script's end: the cancel was too late
            pass
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called, session


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelled_at_every_checkpoint(streaming: bool, autojump_clock: object) -> None:
    """Nothing is left, every wire takes the history, the end is told once, and the conversation can go on."""
    lengths, cut_in = set(), set()
    step, cancelled = 0, True
    while cancelled:
        step += 1
        spy = eventful()
        cancelled, session = await cancelled_at(step, spy, streaming=streaming)
        if not session.messages:
            continue
        lengths.add(len(session.messages))
        assert spy.log[-2:] == ["session_end", "RunEnd"], step
        assert (spy.log.count("session_end"), spy.log.count("RunEnd")) == (1, 1), step
        cut_in.add(spy.log[-3].split()[0] if len(spy.log) > 2 else "")
        await can_go_on(session)
    assert step > 25
    assert lengths == {1, 2, 3}
    assert cut_in >= set(HOOKS) - {"session_end"}


async def sleep_forever(*_: object) -> None:
    await trio.sleep_forever()


async def cancelled_in(
    hook: str, *, streaming: bool = False, after: float = 1, **acts: Act
) -> tuple[Spy, Session, float]:
    """Cancel a run while it sleeps in a hook; return also how long after the cancel it was over."""
    session, spy = Session(), eventful(**{hook: sleep_forever, **acts})
    with trio.move_on_after(after) as scope, assert_no_orphans():
        await perform(spy, session=session, streaming=streaming, cancel_grace=5)
    assert scope.cancelled_caught
    await can_go_on(session)
    return spy, session, trio.current_time() - scope.deadline


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "session_end"])
async def test_cancelled_in_every_hook_session_end_has_its_grace(
    hook: str, streaming: bool, autojump_clock: object
) -> None:
    done: list[float] = []

    async def clean_up(_: RunState) -> None:
        await trio.sleep(4)
        done.append(trio.current_time())

    spy, _, late = await cancelled_in(hook, streaming=streaming, session_end=clean_up)
    assert spy.log[-1] == "session_end"
    assert len(done) == 1
    assert late == pytest.approx(4)


@pytest.mark.parametrize("grace", [0, 5])
async def test_session_end_after_a_cancel_ends_with_the_grace(
    grace: float, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Spy(before_completion=sleep_forever, session_end=sleep_forever), Spy()
    with trio.move_on_after(1) as scope:
        await perform(first, second, cancel_grace=grace)
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline == pytest.approx(grace)
    assert first.log[-1] == "session_end"
    assert second.log == ["session_start"]  # the time is all of theirs, together
    assert "session_end" in caplog.text


@pytest.mark.parametrize("act", [fail, halt], ids=["raises", "halts"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_what_session_end_raises_after_a_cancel_is_logged_and_the_cancel_goes_on(
    streaming: bool, act: Act, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await cancelled_in("before_completion", streaming=streaming, session_end=act)
    assert "session_end" in caplog.text


async def test_a_cancel_while_session_end_works_leaves_it_its_grace(autojump_clock: object) -> None:
    done: list[float] = []

    async def clean_up(_: RunState) -> None:
        await trio.sleep(3)
        done.append(trio.current_time())

    spy = Spy(session_end=clean_up)
    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        await plain(spy, cancel_grace=5)
    assert scope.cancelled_caught
    assert [at - start for at in done] == [pytest.approx(3)]


async def test_a_cancel_while_session_end_works_is_bounded_by_the_grace(autojump_clock: object) -> None:
    with trio.move_on_after(1) as scope:
        await plain(Spy(session_end=sleep_forever), cancel_grace=5)
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline == pytest.approx(5)


@pytest.mark.parametrize("hook", HOOKS)
async def test_the_end_is_told_to_a_sync_listener_wherever_the_cancel_falls(hook: str, autojump_clock: object) -> None:
    ends: list[RunEnd] = []
    with trio.move_on_after(1) as scope:
        await perform(
            eventful(**{hook: sleep_forever}),
            cancel_grace=2,
            on_event=lambda e: ends.append(e.event) if isinstance(e.event, RunEnd) else None,
        )
    assert scope.cancelled_caught
    assert [end.status for end in ends] == ["error" if hook in {"on_error", "session_end"} else "cancelled"]


async def test_what_session_end_changes_after_a_cancel_is_in_the_result(autojump_clock: object) -> None:
    spy = Spy(before_completion=sleep_forever, session_end=lambda state: state.metadata.update(cleaned=True))
    with trio.move_on_after(1):
        async with stream("go", provider=ScriptedProvider([]), middleware=[spy]) as events:
            async for _ in events:
                pass
    assert events.result.status == "cancelled"
    assert events.result.metadata == {"cleaned": True}


async def test_what_session_end_changes_is_in_the_result_when_the_end_is_told() -> None:
    seen: list[Any] = []

    def look(envelope: Envelope) -> None:
        if isinstance(envelope.event, RunEnd):
            seen.append(events.result.metadata)

    spy = Spy(session_end=lambda state: state.metadata.update(cleaned=True))
    async with stream("go", provider=ScriptedProvider([text("x")]), middleware=[spy], on_event=look) as events:
        async for _ in events:
            pass
    assert seen == [{"cleaned": True}]


async def test_a_halted_stream_that_is_left_early_raises_nothing(autojump_clock: object) -> None:
    provider = ScriptedProvider([text("x")])
    async with stream("go", provider=provider, middleware=[Spy(before_completion=halt)]) as events:
        async for event in events:
            if isinstance(event, TurnStart):
                break
        await trio.sleep(1)
    assert (events.result.status, str(events.result.error)) == ("halted", "enough")


async def test_a_stream_that_is_cancelled_in_a_hook(autojump_clock: object) -> None:
    spy = Spy(before_completion=sleep_forever)
    async with stream("go", provider=ScriptedProvider([]), middleware=[spy]) as events:
        with trio.move_on_after(1):
            async for _ in events:
                pass
        events.cancel()
        with pytest.raises(alloy_trio.RequestCancelled):
            async for _ in events:
                pass
    assert spy.log == ["session_start", "before_completion", "session_end"]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in {"on_error", "session_end"}])
async def test_the_runs_deadline_counts_in_hooks_as_well(hook: str, autojump_clock: object) -> None:
    session, spy = Session(), eventful(**{hook: sleep_forever})
    with pytest.raises(RunTimeout, match="7 seconds") as caught:
        await perform(spy, session=session, timeout=7)
    result = caught.value.result
    assert result is not None
    assert result.status == "timed_out"
    assert spy.log[-1] == "session_end"
    assert "on_error" not in spy.log
    assert session.messages == result.messages
    if hook == "before_tool_call":
        assert [call.outcome for call in result.tool_calls] == ["timed_out", "timed_out"]
    await can_go_on(session)


@pytest.mark.parametrize("hook", ["on_error", "session_end"])
async def test_the_last_hooks_are_bounded_too_where_the_run_is(hook: str, autojump_clock: object) -> None:
    start = trio.current_time()
    with pytest.raises(ProviderError, match="gone"), trio.fail_after(60):
        await perform(eventful(**{hook: sleep_forever}), timeout=7, cancel_grace=2)
    assert trio.current_time() - start <= 9


async def test_after_the_deadline_the_last_hooks_have_the_grace(autojump_clock: object) -> None:
    done: list[float] = []

    async def clean_up(_: RunState) -> None:
        await trio.sleep(1)
        done.append(trio.current_time())

    start = trio.current_time()
    with pytest.raises(RunTimeout), trio.fail_after(60):
        await perform(Spy(before_completion=sleep_forever, session_end=clean_up), timeout=7, cancel_grace=2)
    assert [at - start for at in done] == [pytest.approx(8)]
    start = trio.current_time()
    with pytest.raises(RunTimeout), trio.fail_after(60):
        await perform(Spy(before_completion=sleep_forever, session_end=sleep_forever), timeout=7, cancel_grace=2)
    assert trio.current_time() - start == pytest.approx(9)


async def test_a_run_without_a_deadline_waits_for_its_last_hooks(autojump_clock: object) -> None:
    async def clean_up(_: RunState) -> None:
        await trio.sleep(100)

    start = trio.current_time()
    await plain(Spy(session_end=clean_up))
    assert trio.current_time() - start == pytest.approx(100)


async def test_a_hook_that_swallows_the_cancel_does_not_end_it(autojump_clock: object) -> None:
    async def stubborn(_: RunState) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    spy = Spy(before_completion=stubborn)
    provider = ScriptedProvider([text("x")])
    with trio.move_on_after(1) as scope:
        await perform(spy, provider=provider)
    assert scope.cancelled_caught
    assert provider.requests == []


async def test_what_a_hook_raises_while_it_is_cancelled_does_not_hide_the_cancel(autojump_clock: object) -> None:
    """A cleanup that fails is the caller's to see; the session is whole, and session_end was called."""

    async def messy(_: RunState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Broken("disk")

    session, spy = Session(), Spy(before_completion=messy)
    with trio.move_on_after(1), pytest.raises(Broken):
        await perform(spy, session=session)
    assert spy.log[-1] == "session_end"
    await can_go_on(session)


@pytest.mark.parametrize("name", ["before_tool_calls", "before_tool", "after_turn", "on_eror", "sesion_end"])
async def test_a_hook_that_is_misspelled_is_refused(name: str) -> None:
    """It would never be called, and a guard that guards nothing would not be noticed."""

    async def guard(self: object, state: RunState) -> None:
        """Guard."""

    misspelled = type("Guard", (Middleware,), {name: guard})
    with pytest.raises(InvalidOption, match=f"Guard.{name} is no hook"):
        await plain(misspelled())


async def test_other_methods_may_have_any_other_name() -> None:
    class Audit(Middleware):
        def write(self) -> None:
            """Write."""

        async def session_end(self, state: RunState) -> None:
            assert state.outcome is not None
            assert state.outcome.status == "completed"

    assert (await plain(Audit())).status == "completed"
