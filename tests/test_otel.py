"""OpenTelemetry: the spans and metrics of runs, as an SDK exports them."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import alloy_trio
from alloy_trio import (
    Document,
    Image,
    Message,
    Middleware,
    Opaque,
    ProviderError,
    RunTimeout,
    ServerToolResult,
    ServerToolUse,
    Session,
    Thinking,
    ToolError,
    ToolUse,
    Usage,
    run,
    stream,
    tool,
)
from alloy_trio import Text as TextBlock
from alloy_trio._instruments import tell
from alloy_trio.events import Envelope, Retry
from alloy_trio.otel import OTelInstrument
from alloy_trio.providers import Response, StopReason
from alloy_trio.telemetry import (
    CompactionDone,
    RequestStarted,
    RequestStopped,
    RunStarted,
    RunStopped,
    ToolStarted,
    ToolStopped,
    add_instrument,
    remove_instrument,
)
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace import ReadableSpan

SECRET = "xyzzy"


@attrs.frozen
class SDK:
    """Where an instrument's spans and metrics arrive."""

    spans: InMemorySpanExporter
    tracer_provider: TracerProvider
    reader: InMemoryMetricReader
    meter_provider: MeterProvider

    @classmethod
    def new(cls) -> SDK:
        exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(exporter))
        return cls(exporter, tracers, reader, MeterProvider([reader], shutdown_on_exit=False))

    def instrument(self, *, capture_content: bool = False) -> OTelInstrument:
        return OTelInstrument(
            tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, capture_content=capture_content
        )

    def all(self) -> list[ReadableSpan]:
        """All spans that have ended, by their start."""
        return sorted(self.spans.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def tree(self) -> list[Any]:
        """The names of the spans, each with those of its children."""
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in self.all():
            children.setdefault(span.parent.span_id if span.parent else None, []).append(span)

        def branch(parent: int | None) -> list[Any]:
            return [[each.name, *branch(each.get_span_context().span_id)] for each in children.get(parent, [])]  # type: ignore[union-attr] # it has ended

        return branch(None)

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return [
            point
            for scope in scopes
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]

    def everything(self) -> str:
        """All that was exported of the spans, as text."""
        return "\n".join(span.to_json() for span in self.all())


@pytest.fixture
def sdk(caplog: pytest.LogCaptureFixture) -> Iterator[SDK]:
    """An SDK with an instrument attached; nothing that goes wrong in either may be logged."""
    sdk = SDK.new()
    with caplog.at_level(logging.DEBUG):
        instrument = sdk.instrument()
        add_instrument(instrument)
        yield sdk
        remove_instrument(instrument)
        assert not [each for each in caplog.records if each.name.startswith(("opentelemetry", "alloy_trio.telemetry"))]
    sdk.tracer_provider.shutdown()
    sdk.meter_provider.shutdown()


@pytest.fixture
def capturing(sdk: SDK) -> Iterator[SDK]:
    """Another SDK, whose instrument captures content."""
    other = SDK.new()
    instrument = other.instrument(capture_content=True)
    add_instrument(instrument)
    yield other
    remove_instrument(instrument)
    other.tracer_provider.shutdown()
    other.meter_provider.shutdown()


def _said(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


@tool
async def slow(seconds: float) -> str:
    """Take a while."""
    await trio.sleep(seconds)
    return f"slept {seconds}"


@tool
async def broken(word: str) -> str:
    """Break."""
    raise ZeroDivisionError(word)


@tool
async def refusing(word: str) -> str:
    """Refuse."""
    raise ToolError(word)


@tool
async def ask(seconds: float = 0) -> str:
    """Ask another agent."""
    provider = ScriptedProvider(
        [[delay(seconds), tool_call("slow", {"seconds": seconds})], text("because")], model="inner"
    )
    return (await run("why?", provider=provider, tools=[slow])).text


# Nesting


async def test_spans_nest_as_the_work_does(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    """A run, its requests, its parallel tools, and a sub-agent in one of them."""
    calls = [
        tool_call("slow", {"seconds": 5.0}, id="a"),
        tool_call("ask", {"seconds": 1.0}, id="b"),
        tool_call("ask", {"seconds": 2.0}, id="c"),
    ]
    await run("go", provider=ScriptedProvider([calls, text("done")], model="outer"), tools=[slow, ask])
    inner = ["invoke_agent", ["chat inner"], ["execute_tool slow"], ["chat inner"]]
    assert sdk.tree() == [
        [
            "invoke_agent",
            ["chat outer"],
            ["execute_tool slow"],
            ["execute_tool ask", inner],
            ["execute_tool ask", inner],
            ["chat outer"],
        ]
    ]
    assert len({span.context.trace_id for span in sdk.all() if span.context}) == 1
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_runs_one_after_the_other_do_not_nest(sdk: SDK) -> None:
    for _ in range(2):
        await run("go", provider=ScriptedProvider(["hi"]))
    assert sdk.tree() == [["invoke_agent", ["chat scripted"]]] * 2


async def test_runs_side_by_side_do_not_mix(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    """Not even with one correlation id for all of them."""

    async def one(seconds: float) -> None:
        provider = ScriptedProvider(
            [[delay(seconds), tool_call("slow", {"seconds": seconds})], text("done")], model=f"m{seconds:g}"
        )
        await run("go", provider=provider, tools=[slow], context={"request_id": "same"})

    async with trio.open_nursery() as nursery:
        for seconds in (1.0, 2.0, 3.0):
            nursery.start_soon(one, seconds)
    assert sorted(sdk.tree()) == [
        ["invoke_agent", [f"chat m{n}"], ["execute_tool slow"], [f"chat m{n}"]] for n in (1, 2, 3)
    ]


async def test_a_sub_agent_may_have_its_caller_s_correlation_id(sdk: SDK) -> None:
    @tool
    async def pass_on(ctx: alloy_trio.ToolContext) -> str:
        """Ask another agent, with the same context."""
        inner = ScriptedProvider(["because"], model="inner")
        return (await run("why?", provider=inner, context=ctx.context)).text

    script = [tool_call("pass_on"), text("done")]
    await run("go", provider=ScriptedProvider(script), tools=[pass_on], context={"request_id": "same"})
    nested = ["execute_tool pass_on", ["invoke_agent", ["chat inner"]]]
    assert sdk.tree() == [["invoke_agent", ["chat scripted"], nested, ["chat scripted"]]]


async def test_what_a_tool_traces_is_inside_its_span(sdk: SDK) -> None:
    """In a task, inline and in a thread; and what the program traces around the run is outside of it."""
    tracer = sdk.tracer_provider.get_tracer("program")

    @tool
    async def in_task() -> str:
        """Trace in Trio."""
        await trio.lowlevel.checkpoint()
        with tracer.start_as_current_span("task's own"):
            return "ok"

    @tool(inline=True)
    def inline() -> str:
        """Trace in the event loop."""
        with tracer.start_as_current_span("inline's own"):
            return "ok"

    @tool
    def in_thread(ctx: alloy_trio.ToolContext) -> str:
        """Trace in a thread, and come back from it."""

        async def back() -> None:
            with tracer.start_as_current_span("back in Trio"):
                await trio.lowlevel.checkpoint()

        with tracer.start_as_current_span("thread's own"):
            ctx.from_thread(back)
            return "ok"

    script = [tool_call("in_task"), tool_call("inline"), tool_call("in_thread"), text("done")]
    tools = [in_task, inline, in_thread]
    with tracer.start_as_current_span("program") as outside:
        await run("go", provider=ScriptedProvider(script, model="m"), tools=tools)
        assert trace.get_current_span() is outside
    assert sdk.tree() == [
        [
            "program",
            [
                "invoke_agent",
                ["chat m"],
                ["execute_tool in_task", ["task's own"]],
                ["chat m"],
                ["execute_tool inline", ["inline's own"]],
                ["chat m"],
                ["execute_tool in_thread", ["thread's own", ["back in Trio"]]],
                ["chat m"],
            ],
        ]
    ]


async def test_a_stream_and_the_body_that_reads_it(sdk: SDK) -> None:
    """What the body traces is not part of the run: it is another task."""
    tracer = sdk.tracer_provider.get_tracer("program")
    async with stream("go", provider=ScriptedProvider(["hi"])) as events:
        async for _ in events:
            with tracer.start_as_current_span("body"):
                pass
    roots = [name for name, *_ in sdk.tree()]
    assert set(roots) == {"body", "invoke_agent"}
    assert sdk.one("chat scripted").attributes is not None
    assert _said(sdk.one("chat scripted"))["gen_ai.request.stream"] is True


async def test_two_instruments_do_not_disturb_each_other(sdk: SDK, capturing: SDK) -> None:
    await run("go", provider=ScriptedProvider([tool_call("ask"), text("done")]), tools=[ask])
    names = [span.name for span in sdk.all()]
    assert sorted(names) == sorted(span.name for span in capturing.all())
    assert len(names) == 8
    assert trace.get_current_span() is trace.INVALID_SPAN


# How a run ends


async def test_a_cancelled_run(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    """Every span ends, none with an error, all that were cut say so."""
    calls = [tool_call("ask", {"seconds": 60.0}, id="a"), tool_call("slow", {"seconds": 0.0}, id="b")]
    with trio.move_on_after(3.0) as scope:
        await run("go", provider=ScriptedProvider([calls]), tools=[ask, slow])
    assert scope.cancelled_caught
    assert trace.get_current_span() is trace.INVALID_SPAN
    cancelled = {span.name for span in sdk.all() if "alloy_trio.cancelled" in _said(span)}
    assert cancelled == {"invoke_agent", "execute_tool ask", "chat inner"}
    assert len(sdk.named("invoke_agent")) == 2
    assert {span.status.status_code for span in sdk.all()} == {StatusCode.UNSET}
    assert not [span for span in sdk.all() if "error.type" in _said(span)]
    assert _said(sdk.one("execute_tool slow"))["alloy_trio.outcome"] == "ok"
    assert _said(sdk.named("invoke_agent")[0])["alloy_trio.status"] == "cancelled"


async def test_a_run_whose_time_is_up(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(RunTimeout):
        await run("go", provider=ScriptedProvider([tool_call("slow", {"seconds": 60.0})]), tools=[slow], timeout=3.0)
    ended = sdk.one("invoke_agent")
    assert ended.status.status_code is StatusCode.ERROR
    assert _said(ended)["error.type"] == "alloy_trio.RunTimeout"


async def test_a_provider_that_fails(sdk: SDK) -> None:
    failure = alloy_trio.RateLimited(f"you said {SECRET}", status=429)
    with pytest.raises(ProviderError):
        await run("go", provider=ScriptedProvider([error(failure)]))
    for name in ("chat scripted", "invoke_agent"):
        ended = sdk.one(name)
        assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, None)
        assert _said(ended)["error.type"] == "alloy_trio.RateLimited"
        assert _said(ended)["http.response.status_code"] == 429
        (exception,) = ended.events
        assert (exception.name, (exception.attributes or {})["exception.message"]) == ("exception", "")
        assert "in _perform" in str((exception.attributes or {})["exception.stacktrace"])


async def test_a_hook_that_fails(sdk: SDK) -> None:
    class Failing(Middleware):
        async def after_completion(self, *args: object) -> None:
            raise KeyError(SECRET)

    with pytest.raises(KeyError):
        await run("go", provider=ScriptedProvider(["hi"]), middleware=[Failing()])
    ended = sdk.one("invoke_agent")
    assert ended.status.status_code is StatusCode.ERROR
    assert _said(ended)["error.type"] == "KeyError"
    assert SECRET not in sdk.everything()


async def test_a_halted_run_is_no_error(sdk: SDK) -> None:
    class Halting(Middleware):
        async def before_completion(self, *args: object) -> None:
            raise alloy_trio.Halted("enough")

    await run("go", provider=ScriptedProvider([]), middleware=[Halting()])
    ended = sdk.one("invoke_agent")
    assert ended.status.status_code is StatusCode.UNSET
    assert _said(ended)["alloy_trio.status"] == "halted"


@pytest.mark.parametrize(
    ("call", "error_type"),
    [
        (tool_call("broken", {"word": SECRET}), "ZeroDivisionError"),
        (tool_call("refusing", {"word": SECRET}), "alloy_trio.ToolError"),
        (tool_call("slow", {"seconds": 60.0}), "timed_out"),
        (tool_call("slow", {"seconds": SECRET}), "alloy_trio.ToolError"),
        (tool_call(SECRET), "error"),
    ],
    ids=["raised", "tool error", "timed out", "bad input", "unknown"],
)
async def test_a_tool_that_fails(call: Any, error_type: str, sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    await run("go", provider=ScriptedProvider([call, text("sorry")]), tools=[broken, refusing, slow], tool_timeout=5.0)
    (ended,) = [span for span in sdk.all() if span.name.startswith("execute_tool")]
    assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, None)
    assert _said(ended)["error.type"] == error_type
    assert _said(ended)["alloy_trio.outcome"] == ("timed_out" if error_type == "timed_out" else "error")
    assert sdk.one("invoke_agent").status.status_code is StatusCode.UNSET


# What spans say


async def test_attributes_of_a_run_and_its_parts(sdk: SDK) -> None:
    usage = Usage(
        input_tokens=10,
        output_tokens=7,
        cache_creation_input_tokens=20,
        cache_read_input_tokens=300,
        reasoning_tokens=4,
    )
    provider = ScriptedProvider(
        [tool_call("slow", {"seconds": 0}), text("done")], name="mistral", model="m", usage=usage
    )
    provider.price = alloy_trio.Price("1000", "1000")
    session = Session()
    await run("go", provider=provider, tools=[slow], session=session, max_output_tokens=99)
    agent, chat, called = sdk.one("invoke_agent"), sdk.named("chat m")[0], sdk.one("execute_tool slow")
    assert (agent.kind, chat.kind, called.kind) == (SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.INTERNAL)
    assert _said(agent) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "m",
        "gen_ai.conversation.id": session.id,
        "gen_ai.usage.input_tokens": 660,
        "gen_ai.usage.output_tokens": 14,
        "gen_ai.usage.cache_creation.input_tokens": 40,
        "gen_ai.usage.cache_read.input_tokens": 600,
        "gen_ai.usage.reasoning.output_tokens": 8,
        "alloy_trio.status": "completed",
        "alloy_trio.turns": 2,
        "alloy_trio.cost_cents": pytest.approx(67.4),
    }
    assert _said(chat) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mistral_ai",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 99,
        "gen_ai.conversation.id": session.id,
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("tool_call",),
        "gen_ai.usage.input_tokens": 330,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_creation.input_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 300,
        "gen_ai.usage.reasoning.output_tokens": 4,
        "alloy_trio.attempt": 1,
        "alloy_trio.result": "ok",
    }
    assert _said(sdk.named("chat m")[1])["gen_ai.response.finish_reasons"] == ("stop",)
    assert _said(called) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "slow",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_1_0",
        "gen_ai.conversation.id": session.id,
        "alloy_trio.turn": 1,
        "alloy_trio.outcome": "ok",
        "alloy_trio.tool.trusted": False,
    }


async def test_each_attempt_is_a_span_and_each_retry_an_event(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    busy = ProviderError(f"busy, {SECRET}", retryable=True, retry_after=7.0)
    await run("go", provider=ScriptedProvider([error(busy), [delay(1.0), text("done")]]), retry_backoff=0.001)
    first, second = sdk.named("chat scripted")
    assert (_said(first)["alloy_trio.attempt"], _said(second)["alloy_trio.attempt"]) == (1, 2)
    assert (_said(first)["alloy_trio.result"], _said(second)["alloy_trio.result"]) == ("error", "ok")
    agent = sdk.one("invoke_agent")
    assert agent.status.status_code is StatusCode.UNSET
    (retry,) = agent.events
    assert retry.name == "alloy_trio.retry"
    assert retry.attributes == {
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "alloy_trio.attempt": 2,
        "alloy_trio.retry.delay": 7.0,
    }
    assert SECRET not in sdk.everything()


async def test_a_compaction_is_an_event_of_the_run(sdk: SDK) -> None:
    messages = [
        message for n in range(10) for message in (Message.user(f"{n} " * 400), Message.assistant("yes " * 400))
    ]
    too_long = alloy_trio.ContextTooLong("prompt is too long")
    await run("go on", provider=ScriptedProvider([error(too_long), "a summary", "done"]), messages=messages)
    events = [event for event in sdk.one("invoke_agent").events if event.name == "alloy_trio.compaction"]
    said = events[-1].attributes or {}
    assert said["alloy_trio.compaction.kind"] in {"summarized", "truncated"}
    before, after = said["alloy_trio.compaction.messages_before"], said["alloy_trio.compaction.messages_after"]
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert before > after


# Content


def _chatty() -> ScriptedProvider:
    """One that is told the secret, and says it in every way there is."""
    answer = Message(
        "assistant",
        (
            Thinking(SECRET),
            ServerToolUse("s1", "web_search", {"query": SECRET}),
            ServerToolResult("s1", {"type": "web_search_tool_result", "content": SECRET}),
            Opaque("scripted", {"type": "new_thing", "what": SECRET}),
            TextBlock(SECRET),
            ToolUse("t1", "echo", {"word": SECRET}),
        ),
    )
    return ScriptedProvider([Response(message=answer, stop_reason=StopReason.TOOL_USE), text(SECRET)])


@tool
async def echo(word: str) -> list[Any]:
    """Say it again."""
    return [word, Image("image/png", data=b"xyzzy"), Document("text/plain", uri=f"https://example.org/{SECRET}")]


async def _say_it() -> None:
    prompt = Message.user(
        SECRET,
        Image("image/png", uri=f"data:image/png;base64,{SECRET}"),
        Image("image/png", data=SECRET),
        Image("image/png", uri=f"https://example.org/{SECRET}"),
    )
    with pytest.raises(ProviderError):
        provider = ScriptedProvider([error(f"{SECRET} is no word")])
        await run(prompt, provider=provider, system_prompt=SECRET)
    await run(prompt, provider=_chatty(), tools=[echo], system_prompt=SECRET)


async def test_no_content_by_default(sdk: SDK) -> None:
    await _say_it()
    assert len(sdk.all()) == 6
    assert SECRET not in sdk.everything()


async def test_content_when_asked_for(capturing: SDK) -> None:
    await _say_it()
    failed, first, second = capturing.named("chat scripted")
    assert failed.status.description == f"{SECRET} is no word"
    assert (failed.events[0].attributes or {})["exception.message"] == f"{SECRET} is no word"
    asked = json.loads(_said(first)["gen_ai.input.messages"])
    media = {"modality": "image", "mime_type": "image/png"}
    parts = [
        {"type": "text", "content": SECRET},
        {"type": "blob", "content": "", **media},
        {"type": "blob", "content": "", **media},
        {"type": "uri", "uri": f"https://example.org/{SECRET}", **media},
    ]
    assert asked == [{"role": "user", "parts": parts}]
    assert json.loads(_said(first)["gen_ai.system_instructions"]) == [{"type": "text", "content": SECRET}]
    (definition,) = json.loads(_said(first)["gen_ai.tool.definitions"])
    assert (definition["type"], definition["name"], definition["description"]) == ("function", "echo", "Say it again.")
    assert "word" in definition["parameters"]["properties"]
    (answer,) = json.loads(_said(first)["gen_ai.output.messages"])
    assert (answer["role"], answer["finish_reason"]) == ("assistant", "tool_call")
    searched = {"type": "web_search_tool_result", "content": SECRET}
    assert answer["parts"] == [
        {"type": "reasoning", "content": SECRET},
        {
            "type": "server_tool_call",
            "id": "s1",
            "name": "web_search",
            "server_tool_call": {"type": "web_search", "query": SECRET},
        },
        {"type": "server_tool_call_response", "id": "s1", "server_tool_call_response": searched},
        {"type": "new_thing", "provider": "scripted"},
        {"type": "text", "content": SECRET},
        {"type": "tool_call", "id": "t1", "name": "echo", "arguments": {"word": SECRET}},
    ]
    called = capturing.one("execute_tool echo")
    assert json.loads(_said(called)["gen_ai.tool.call.arguments"]) == {"word": SECRET}
    result = [
        {"type": "text", "content": SECRET},
        {"type": "blob", "content": "", **media},
        {"type": "uri", "uri": f"https://example.org/{SECRET}", "modality": "document", "mime_type": "text/plain"},
    ]
    assert json.loads(_said(called)["gen_ai.tool.call.result"]) == result
    answered = json.loads(_said(second)["gen_ai.input.messages"])[-1]
    assert answered == {"role": "user", "parts": [{"type": "tool_call_response", "id": "t1", "response": result}]}


async def test_content_of_a_tool_that_fails(capturing: SDK) -> None:
    calls = [tool_call("broken", {"word": "a"}), tool_call("slow", {})]
    await run("go", provider=ScriptedProvider([calls, text("sorry")]), tools=[broken, slow])
    assert _said(capturing.one("execute_tool broken"))["gen_ai.tool.call.result"] == '"ZeroDivisionError: a"'
    raised, refused = capturing.one("execute_tool broken"), capturing.one("execute_tool slow")
    assert raised.status.description == "a"
    assert "ZeroDivisionError: a" in str((raised.events[0].attributes or {})["exception.stacktrace"])
    assert "seconds" in (refused.status.description or "")
    assert "seconds" in _said(refused)["gen_ai.tool.call.result"]


def test_lone_surrogates_do_not_stop_it(capturing: SDK) -> None:
    """They come out of a model now and then, and UTF-8 cannot carry them."""
    with _told_of_a_run():
        tell(ToolStarted(**IDS, turn=1, id="t", name="echo", input={"word": "\ud800"}, seq=1))
        tell(ToolStopped(**IDS, turn=1, id="t", name="echo", duration=0.0, outcome="ok", start_seq=1))
    assert _said(capturing.one("execute_tool echo"))["gen_ai.tool.call.arguments"] == '{"word":"\ufffd"}'


# Metrics


async def test_metrics(sdk: SDK, autojump_clock: trio.testing.MockClock) -> None:
    usage = Usage(input_tokens=10, output_tokens=5, cache_read_input_tokens=30)
    failure = alloy_trio.Overloaded("later", retryable=True)
    script = [[delay(2.0), error(failure)], [delay(3.0), text("done")]]
    await run("go", provider=ScriptedProvider(script, name="xai", model="m", usage=usage))
    common = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "x_ai", "gen_ai.request.model": "m"}
    failed, answered = sorted(sdk.points("gen_ai.client.operation.duration"), key=lambda point: point.sum)
    assert [failed.sum, answered.sum] == pytest.approx([2.0, 3.0])
    assert failed.attributes == {**common, "error.type": "alloy_trio.Overloaded"}
    assert answered.attributes == {**common, "gen_ai.response.model": "m"}
    assert answered.explicit_bounds == pytest.approx([0.01 * 2**n for n in range(14)])
    tokens = {
        str((point.attributes or {})["gen_ai.token.type"]): point for point in sdk.points("gen_ai.client.token.usage")
    }
    assert {kind: (point.count, point.sum) for kind, point in tokens.items()} == {"input": (1, 40), "output": (1, 5)}
    assert tokens["input"].attributes == {**common, "gen_ai.response.model": "m", "gen_ai.token.type": "input"}
    assert tokens["input"].explicit_bounds == pytest.approx([4**n for n in range(14)])


async def test_tokens_that_are_only_estimated_are_not_measured(sdk: SDK) -> None:
    with _told_of_a_run():
        tell(_asked())
        tell(_answered(usage=Usage(10, 5, estimated=True)))
    assert not sdk.points("gen_ai.client.token.usage")
    assert math.isclose(sdk.points("gen_ai.client.operation.duration")[0].sum, 1.5)
    assert _said(sdk.one("chat m"))["alloy_trio.usage.estimated"] is True


# Odd orders and places, told by hand

IDS: dict[str, Any] = {"session_id": "s", "correlation_id": "c"}
BEGUN = RunStarted(**IDS, provider="p", model="m", streaming=False)
ENDED = RunStopped(**IDS, duration=1.0, status="completed", turns=1, provider="p", model="m", usage=Usage())


def _asked(**changes: Any) -> RequestStarted:
    return RequestStarted(**{**IDS, "provider": "p", "model": "m", "streaming": False, "attempt": 1, **changes})


def _answered(**changes: Any) -> RequestStopped:
    said = {"provider": "p", "model": "m", "streaming": False, "attempt": 1, "duration": 1.5, "result": "ok"}
    return RequestStopped(**{**IDS, **said, **changes})


def _called(id_: str) -> ToolStarted:
    return ToolStarted(**IDS, turn=1, id=id_, name=id_, input={}, seq=1)


def _returned(id_: str) -> ToolStopped:
    return ToolStopped(**IDS, turn=1, id=id_, name=id_, duration=0.0, outcome="ok", start_seq=1)


class _told_of_a_run:  # noqa: N801 - reads as a function
    def __enter__(self) -> None:
        tell(BEGUN)

    def __exit__(self, *args: object) -> None:
        tell(ENDED)


async def test_a_stop_in_another_task_ends_the_span_and_leaves_that_task_alone(sdk: SDK) -> None:
    async def call() -> None:
        tell(_called("t"))

    tell(BEGUN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
    here = context.get_current()
    tell(_returned("t"))
    assert context.get_current() is here
    tell(ENDED)
    assert sdk.tree() == [["invoke_agent", ["execute_tool t"]]]
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_run_that_stops_in_another_task(sdk: SDK) -> None:
    tell(BEGUN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, tell, ENDED)
    assert sdk.tree() == [["invoke_agent"]]


def test_what_a_run_leaves_open_ends_with_it(sdk: SDK) -> None:
    tell(BEGUN)
    tell(_called("t"))
    tell(_asked())
    tell(ENDED)
    assert {span.name for span in sdk.all()} == {"invoke_agent", "execute_tool t", "chat m"}
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_stops_without_starts_are_let_go(sdk: SDK) -> None:
    """The instrument came in the middle of a run."""
    for event in (_answered(), _called("t"), _returned("t"), _asked(), _answered(), ENDED):
        tell(event)
    assert not sdk.all()
    with _told_of_a_run():
        tell(_returned("t"))
        tell(_answered())
        tell(_called("u"))
        tell(_returned("t"))
        tell(_returned("u"))
    assert sdk.tree() == [["invoke_agent", ["execute_tool u"]]]


def test_two_calls_with_one_id(sdk: SDK) -> None:
    with _told_of_a_run():
        for _ in range(2):
            tell(_called("t"))
            tell(_returned("t"))
    assert sdk.tree() == [["invoke_agent", ["execute_tool t"], ["execute_tool t"]]]


def test_events_of_others_are_not_noted(sdk: SDK) -> None:
    retry = Retry("p", "m", 2, 0.0, "busy")
    done = CompactionDone(
        session_id="s",
        correlation_id="another",
        turn=1,
        kind="truncated",
        messages_before=3,
        messages_after=2,
        tokens_before=9,
        tokens_after=8,
    )
    with _told_of_a_run():
        tell(Envelope(seq=1, correlation_id="another", turn=1, ts=0.0, event=retry))
        tell(done)
    tell(attrs.evolve(done, correlation_id="c"))
    assert sdk.one("invoke_agent").events == ()


def test_a_model_that_is_not_known(sdk: SDK) -> None:
    tell(attrs.evolve(BEGUN, model=None))
    tell(_asked(model=None))
    tell(_answered(model=None))
    tell(attrs.evolve(ENDED, model=None))
    assert sdk.tree() == [["invoke_agent", ["chat"]]]
    assert "gen_ai.request.model" not in _said(sdk.one("chat"))


def test_an_answer_that_a_budget_has_cut(sdk: SDK) -> None:
    with _told_of_a_run():
        tell(_asked())
        tell(_answered(result="cut"))
    cut = sdk.one("chat m")
    assert _said(cut)["alloy_trio.result"] == "cut"
    assert cut.status.status_code is StatusCode.UNSET


def test_without_a_provider_of_spans_nothing_is_recorded() -> None:
    """The program's global providers, of which there are none here."""
    instrument = OTelInstrument(capture_content=True)
    add_instrument(instrument)
    try:
        with _told_of_a_run():
            tell(_asked())
            assert not trace.get_current_span().is_recording()
            tell(_answered(result="error", error=ValueError("bad")))
        assert trace.get_current_span() is trace.INVALID_SPAN
    finally:
        remove_instrument(instrument)


def test_without_the_api_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alloy_trio.otel", "alloy_trio._otel"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r'pip install "alloy_trio\[otel\]"'):
        importlib.import_module("alloy_trio.otel")
