"""
Telemetry as OpenTelemetry spans and metrics, after the semantic conventions for generative AI.

    invoke_agent                a run; events on it: a retry, a compaction
      chat MODEL                a request, each attempt one
      execute_tool NAME         a tool call, current while the tool's own code runs
        invoke_agent            a run that the tool starts

A span is current from its start to its stop, which are told in one task: what is traced meanwhile becomes its child. What was
current before is noted and made current again, by `attach`: `detach` logs an error where it is called in another context than
its `attach` was. A stop that is told elsewhere ends its span and leaves that other context alone.

The span that an event belongs to is found by a context variable, which tasks and threads inherit. It is not OpenTelemetry's:
of two instruments, the first to stop makes current what was before both, and the second still has to find its span.
"""

from __future__ import annotations

import importlib.metadata
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, assert_never

import attrs

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, StatusCode
except ImportError as missing:
    raise ImportError('alloy_trio.otel needs the OpenTelemetry API: pip install "alloy_trio[otel]"') from missing

from . import _otel_names as names
from ._errors import ProviderError
from ._events import Envelope, Retry
from ._messages import (
    Audio,
    Document,
    Image,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from ._price import prompt_tokens
from ._telemetry import (
    CompactionDone,
    RequestStarted,
    RequestStopped,
    RunFailed,
    RunStarted,
    RunStopped,
    ToolStarted,
    ToolStopped,
    TurnFailed,
    TurnStarted,
    TurnStopped,
)
from .providers._base import sent_arguments
from .providers._json import encode
from .supervision._events import ChildExited, ChildRestarted, ChildStarted, Overdue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.util.types import AttributeValue

    from ._messages import Block, Message
    from ._telemetry import TelemetryEvent
    from ._usage import Usage
    from ._util import JSONObject
    from .providers._base import Request, Response

Attributes: TypeAlias = "dict[str, AttributeValue | None]"
E = TypeVar("E", RunStopped | RunFailed, RequestStopped, ToolStopped)

_LIBRARY: Final = "alloy_trio"
_RUN: Final = ("run",)
_REQUEST: Final = ("request",)


@attrs.define(eq=False)
class _Run:
    """A run under way, and its spans that are open, by what their stops are known by, in the order they began."""

    correlation_id: str
    open: dict[tuple[str, ...], _Open] = attrs.field(factory=dict)


@attrs.define(eq=False)
class _Open:
    """A span under way, what was current before it, and the span of this instrument that it is in."""

    span: Span
    before: Context
    outer: _Open | None
    run: _Run
    key: tuple[str, ...]


class OTelInstrument:
    """
    Turns what happens in runs into OpenTelemetry spans and metrics: `add_instrument(OTelInstrument())`, while nothing runs.

    A span for each run, each request to a provider and each tool call; the metrics `gen_ai.client.operation.duration` and
    `gen_ai.client.token.usage` for each request. `error.type` is the class of what ended a run or a request, or of what a
    tool raised; for a tool call that went wrong otherwise, its outcome. A cancel is no error, and has `alloy_trio.cancelled`.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        capture_content: bool = False,
    ) -> None:
        """
        Make an instrument; it does nothing until it is attached.

        Args:
            tracer_provider: Where spans go; None: the program's global one.
            meter_provider: Where metrics go; None: the program's global one.
            capture_content: Whether what is said goes into the spans: prompts and answers, the tools' definitions, inputs and
                results, and the messages of errors, which may quote any of these. Inline media go without their bytes.
        """
        version = importlib.metadata.version(_LIBRARY)
        meter = metrics.get_meter(_LIBRARY, version, meter_provider)
        self._tracer = trace.get_tracer(_LIBRARY, version, tracer_provider)
        self._content = capture_content
        self._key = context.create_key(_LIBRARY)
        self._innermost: ContextVar[_Open | None] = ContextVar(self._key, default=None)
        self._durations = meter.create_histogram(
            names.OPERATION_DURATION,
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=names.OPERATION_DURATION_BUCKETS,
        )
        self._tokens = meter.create_histogram(
            names.TOKEN_USAGE,
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=names.TOKEN_USAGE_BUCKETS,
        )

    def handle(self, event: TelemetryEvent) -> None:  # noqa: C901 - one case for each kind of a closed union
        """Take an event, as `Instrument.handle` says."""
        match event:
            case Envelope(event=Retry() as retry):
                self._note(event.correlation_id, names.RETRY, self._of_retry(retry))
            case Envelope() | TurnStarted() | TurnStopped() | TurnFailed():
                pass
            case RequestStarted():
                self._begin_request(event)
            case RequestStopped():
                self._end(event, _REQUEST, self._describe_request)
            case ToolStarted():
                self._begin_tool(event)
            case ToolStopped():
                self._end(event, ("tool", event.id), self._describe_tool)
            case CompactionDone():
                self._note(event.correlation_id, names.COMPACTION, _of_compaction(event))
            case RunStarted():
                self._begin_run(event)
            case RunStopped() | RunFailed():
                self._end(event, _RUN, self._describe_run)
            case ChildStarted() | ChildExited() | ChildRestarted() | Overdue():
                pass  # a child lives longer than a span should
            case _:
                assert_never(event)

    def _current(self, correlation_id: str) -> _Open | None:
        """Return the innermost span of a run that is open here; None if the run began before this was attached."""
        current = self._innermost.get()
        return current if current is not None and current.run.correlation_id == correlation_id else None

    def _begin(self, run: _Run, key: tuple[str, ...], name: str, attributes: Attributes) -> Span:
        before = context.get_current()
        kind = SpanKind.CLIENT if key == _REQUEST else SpanKind.INTERNAL
        span = self._tracer.start_span(name, before, kind, _present(attributes))
        opened = _Open(span, before, self._innermost.get(), run, key)
        run.open[key] = opened
        self._innermost.set(opened)
        context.attach(context.set_value(self._key, opened, trace.set_span_in_context(span, before)))
        return span

    def _end(self, event: E, key: tuple[str, ...], describe: Callable[[Span, E], None]) -> None:
        current = self._current(event.correlation_id)
        opened = current if current is None or current.key == key else current.run.open.get(key)
        if opened is None:
            return
        try:
            describe(opened.span, event)
        finally:
            self._close(opened)

    def _close(self, opened: _Open) -> None:
        inside = opened.run.open.values() if opened.key == _RUN else [opened]
        for each in reversed([*inside]):  # whatever a run has left open ends with it, the innermost first
            each.run.open.pop(each.key, None)
            each.span.end()
            self._innermost.set(each.outer)
            if context.get_value(self._key) == each:
                context.attach(each.before)

    def _note(self, correlation_id: str, name: str, attributes: Attributes) -> None:
        current = self._current(correlation_id)
        if current is not None and _RUN in current.run.open:
            current.run.open[_RUN].span.add_event(name, _present(attributes))

    def _begin_run(self, event: RunStarted) -> None:
        attributes: Attributes = {
            names.OPERATION_NAME: names.INVOKE_AGENT,
            names.PROVIDER_NAME: names.provider(event.provider),
            names.REQUEST_MODEL: event.model,
            names.CONVERSATION_ID: event.session_id,
        }
        self._begin(_Run(event.correlation_id), _RUN, names.INVOKE_AGENT, attributes)

    def _describe_run(self, span: Span, event: RunStopped | RunFailed) -> None:
        span.set_attributes({names.TURNS: event.turns, **_of_usage(event.usage)})
        if isinstance(event, RunFailed):
            self._fail(span, event.error)
            return
        span.set_attribute(names.STATUS, event.status)
        if event.cost_cents is not None:
            span.set_attribute(names.COST_CENTS, float(event.cost_cents))
        if event.status == "cancelled":
            span.set_attribute(names.CANCELLED, value=True)
        elif event.status in {"error", "timed_out"} and event.error is not None:  # a middleware's halt is none
            self._fail(span, event.error)

    def _begin_request(self, event: RequestStarted) -> None:
        current = self._current(event.correlation_id)
        if current is None:
            return
        request = event.request
        attributes: Attributes = {
            names.OPERATION_NAME: names.CHAT,
            names.PROVIDER_NAME: names.provider(event.provider),
            names.REQUEST_MODEL: event.model,
            names.CONVERSATION_ID: event.session_id,
            names.REQUEST_MAX_TOKENS: event.max_output_tokens,
            names.REQUEST_STREAM: event.streaming or None,  # set if, and only if, it streams
            names.OUTPUT_TYPE: "json" if request is not None and request.output_schema is not None else None,
            names.ATTEMPT: event.attempt,
        }
        name = names.CHAT if event.model is None else f"{names.CHAT} {event.model}"
        span = self._begin(current.run, _REQUEST, name, attributes)
        if self._content and request is not None and span.is_recording():
            span.set_attributes(_said_to_model(request))

    def _describe_request(self, span: Span, event: RequestStopped) -> None:
        self._measure(event)
        span.set_attributes({names.RESULT: event.result, **_of_usage(event.usage)})
        if event.response_model is not None:
            span.set_attribute(names.RESPONSE_MODEL, event.response_model)
        if event.stop_reason is not None:
            span.set_attribute(names.RESPONSE_FINISH_REASONS, [names.finish_reason(event.stop_reason)])
        if self._content and event.response is not None and span.is_recording():
            span.set_attribute(names.OUTPUT_MESSAGES, _said_by_model(event.response))
        if event.result == "cancelled":
            span.set_attribute(names.CANCELLED, value=True)
        elif event.error is not None:
            self._fail(span, event.error)

    def _measure(self, event: RequestStopped) -> None:
        """Record the metrics of a request, while its span is current: they refer to it."""
        common = _present(
            {
                names.OPERATION_NAME: names.CHAT,
                names.PROVIDER_NAME: names.provider(event.provider),
                names.REQUEST_MODEL: event.model,
                names.RESPONSE_MODEL: event.response_model,
            }
        )
        failed = {} if event.error is None else {names.ERROR_TYPE: _class_name(event.error)}
        self._durations.record(event.duration, {**common, **failed})
        if event.usage.estimated:  # tokens are reported as the provider counts them, or not at all
            return
        for kind, tokens in (("input", prompt_tokens(event.usage)), ("output", event.usage.output_tokens)):
            if tokens:
                self._tokens.record(tokens, {**common, names.TOKEN_TYPE: kind})

    def _begin_tool(self, event: ToolStarted) -> None:
        current = self._current(event.correlation_id)
        if current is None:
            return
        attributes: Attributes = {
            names.OPERATION_NAME: names.EXECUTE_TOOL,
            names.TOOL_NAME: event.name,
            names.TOOL_TYPE: "function",
            names.TOOL_CALL_ID: event.id,
            names.CONVERSATION_ID: event.session_id,
            names.TURN: event.turn,
        }
        span = self._begin(current.run, ("tool", event.id), f"{names.EXECUTE_TOOL} {event.name}", attributes)
        if self._content and span.is_recording():
            span.set_attribute(names.TOOL_CALL_ARGUMENTS, _json(event.input))

    def _describe_tool(self, span: Span, event: ToolStopped) -> None:
        span.set_attributes({names.OUTCOME: event.outcome, names.TRUSTED: event.trusted})
        if self._content and span.is_recording():
            span.set_attribute(names.TOOL_CALL_RESULT, _json(_result(event.content)))
        if event.outcome == "cancelled":
            span.set_attribute(names.CANCELLED, value=True)
        elif event.exception is not None:
            self._fail(span, event.exception)
        elif event.outcome != "ok":
            span.set_attribute(names.ERROR_TYPE, event.outcome)
            span.set_status(StatusCode.ERROR, event.error if self._content else None)

    def _fail(self, span: Span, error: Exception) -> None:
        """Say what went wrong. Its message is content; where the code was is not."""
        span.set_attribute(names.ERROR_TYPE, _class_name(error))
        if isinstance(error, ProviderError) and error.status is not None:
            span.set_attribute(names.HTTP_STATUS, error.status)
        if not span.is_recording():
            return
        if self._content:
            span.set_status(StatusCode.ERROR, str(error))
            span.record_exception(error)
        else:
            span.set_status(StatusCode.ERROR)
            frames = "".join(traceback.format_tb(error.__traceback__))
            span.record_exception(error, {names.EXCEPTION_MESSAGE: "", names.EXCEPTION_STACKTRACE: frames})

    def _of_retry(self, retry: Retry) -> Attributes:
        return {
            names.PROVIDER_NAME: names.provider(retry.provider),
            names.REQUEST_MODEL: retry.model,
            names.ATTEMPT: retry.attempt,
            f"{names.RETRY}.delay": retry.delay,
            names.EXCEPTION_MESSAGE: retry.error if self._content else None,
        }


def _of_compaction(event: CompactionDone) -> Attributes:
    counts = ("kind", "messages_before", "messages_after", "tokens_before", "tokens_after")
    return {f"{names.COMPACTION}.{name}": getattr(event, name) for name in counts}


def _of_usage(usage: Usage) -> dict[str, AttributeValue]:
    """Return the tokens that are known. Their input includes what was cached, unlike ours."""
    counts = {
        names.USAGE_INPUT_TOKENS: prompt_tokens(usage),
        names.USAGE_OUTPUT_TOKENS: usage.output_tokens,
        names.USAGE_CACHE_CREATION_INPUT_TOKENS: usage.cache_creation_input_tokens,
        names.USAGE_CACHE_READ_INPUT_TOKENS: usage.cache_read_input_tokens,
        names.USAGE_REASONING_OUTPUT_TOKENS: usage.reasoning_tokens,
    }
    known: dict[str, AttributeValue] = {name: count for name, count in counts.items() if count}
    return {**known, names.USAGE_ESTIMATED: True} if usage.estimated else known


def _present(attributes: Attributes) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


def _class_name(error: Exception) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _json(value: object) -> str:
    return encode(value).decode()


def _said_to_model(request: Request) -> dict[str, AttributeValue]:
    said: dict[str, AttributeValue] = {names.INPUT_MESSAGES: _json([_message(each) for each in request.messages])}
    if request.system_prompt is not None:
        said[names.SYSTEM_INSTRUCTIONS] = _json([_part(Text(request.system_prompt))])
    if request.tools:
        definitions = [
            {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            for tool in request.tools
        ]
        said[names.TOOL_DEFINITIONS] = _json(definitions)
    return said


def _said_by_model(response: Response) -> str:
    return _json([{**_message(response.message), "finish_reason": names.finish_reason(response.stop_reason)}])


def _message(message: Message) -> JSONObject:
    return {"role": message.role, "parts": [_part(block) for block in message.content]}


def _result(content: Iterable[Block]) -> Any:
    """Return what a tool gave: text as it is, with media a list of parts."""
    parts = [_part(block) for block in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["content"] for part in parts)
    return parts


def _part(block: Block) -> JSONObject:
    """Return a block as the conventions' JSON Schema of messages has it."""
    match block:
        case Text(text=text):
            return {"type": "text", "content": text}
        case Thinking(text=text):
            return {"type": "reasoning", "content": text}
        case ToolUse(id=id_, name=name):
            return {"type": "tool_call", "id": id_, "name": name, "arguments": sent_arguments(block)}
        case ToolResult(tool_use_id=id_, content=content):
            return {"type": "tool_call_response", "id": id_, "response": _result(content)}
        case ServerToolUse(id=id_, name=name, input=arguments):
            return {
                "type": "server_tool_call",
                "id": id_,
                "name": name,
                "server_tool_call": {"type": name, **arguments},
            }
        case ServerToolResult(tool_use_id=id_, payload=payload):
            result = {"type": "unknown", **payload}
            return {"type": "server_tool_call_response", "id": id_, "server_tool_call_response": result}
        case Image() | Audio() | Video() | Document():
            media = {"modality": type(block).__name__.lower(), "mime_type": block.mime_type}
            if block.uri is not None and not block.uri.startswith("data:"):
                return {"type": "uri", "uri": block.uri, **media}
            return {"type": "blob", "content": "", **media}
        case Opaque(provider=provider, payload=payload):
            return {"type": str(payload.get("type", "opaque")), "provider": provider}
        case _:
            assert_never(block)
