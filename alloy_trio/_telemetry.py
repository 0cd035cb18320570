"""
Telemetry: what a program's instruments are told of its runs, as frozen events.

The events of a run (`alloy_trio.events`) are for whoever runs it; these are for whoever operates the program. An instrument is
attached once and is told of every run, with durations, attempts, causes and tracebacks. Whoever tells asks `is_on` first, so that without an instrument nothing is even made:

    RunStarted ── per turn: TurnStarted ── per attempt: RequestStarted, RequestStopped
                                        ── per call: ToolStarted, ToolStopped
                            TurnStopped or TurnFailed
    RunStopped or RunFailed

What was started is stopped, once, also when it is cancelled, and what it contains before it. Start and stop of a run, of a
request and of a tool call are told in one and the same task, a tool's around its own code: so an instrument may keep context
variables in between. A compaction is part of the turn that it makes room for: the request for its summary, then
`CompactionDone`. Envelopes come as events are emitted; those of a run's end may follow `RunStopped`.
"""

from __future__ import annotations

import inspect
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import attrs

from ._errors import InvalidOption
from ._events import Envelope
from ._instruments import instruments
from ._messages import Outcome, ResultBlock
from ._result import Status
from ._usage import Usage
from ._util import JSONObject
from .supervision._events import SupervisorEvent

if TYPE_CHECKING:
    from .providers._base import Request, Response  # noqa: TC004 - passed on only; it lives above, and nobody resolves the hint


@attrs.frozen(kw_only=True)
class _OfRun:
    """
    What every event of this module says.

    Attributes:
        session_id: The id of the session that the run is a part of.
        correlation_id: The run's, as in its envelopes.
    """

    session_id: str
    correlation_id: str


@attrs.frozen(kw_only=True)
class RunStarted(_OfRun):
    """
    A run begins.

    Attributes:
        provider: The provider's name.
        model: The model it asks, if it says.
        streaming: Whether the run streams.
    """

    provider: str
    model: str | None
    streaming: bool


@attrs.frozen(kw_only=True)
class RunStopped(_OfRun):
    """
    A run has ended in one of the ways that it has: an `AlloyError` (the provider failed, time was up) and a cancel are among them.

    Attributes:
        duration: Seconds since it began.
        status: How it ended.
        turns: How many answers of the model it took.
        provider: The provider's name.
        model: The model it asked, if it says.
        usage: Tokens of the whole run.
        cost_cents: What the run cost; None if that is not known.
        error: What ended it, where something did: with the status `halted` too; None for a cancel.
    """

    duration: float
    status: Status
    turns: int
    provider: str
    model: str | None
    usage: Usage
    cost_cents: Decimal | None = None
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class RunFailed(_OfRun):
    """
    A run was ended by an exception that is no `AlloyError`, out of a hook, the machinery or a provider of one's own.

    Told instead of `RunStopped`.

    Attributes:
        duration: Seconds since it began.
        turns: How many answers of the model it took.
        provider: The provider's name.
        model: The model it asked, if it says.
        usage: Tokens of the whole run.
        error: What was raised, with its traceback.
    """

    duration: float
    turns: int
    provider: str
    model: str | None
    usage: Usage
    error: Exception


@attrs.frozen(kw_only=True)
class TurnStarted(_OfRun):
    """
    A turn begins: the model is asked, and its tools run.

    Attributes:
        turn: Its number, from 1.
    """

    turn: int


@attrs.frozen(kw_only=True)
class TurnStopped(_OfRun):
    """
    A turn is over, its tools included.

    Attributes:
        turn: Its number.
        duration: Seconds since it began.
        status: `running` if the run goes on; for its last turn, how the run ended.
        usage: Tokens of its answer.
        stop_reason: Why the model stopped; None if it did not get that far.
    """

    turn: int
    duration: float
    status: Status | Literal["running"]
    usage: Usage
    stop_reason: str | None = None


@attrs.frozen(kw_only=True)
class TurnFailed(_OfRun):
    """
    A turn was ended by what ends the run as `RunFailed`. Told instead of `TurnStopped`.

    Attributes:
        turn: Its number.
        duration: Seconds since it began.
        error: What was raised, with its traceback.
    """

    turn: int
    duration: float
    error: Exception


@attrs.frozen(kw_only=True)
class RequestStarted(_OfRun):
    """
    A provider is about to be asked, once: a retry is another request.

    Attributes:
        provider: The provider's name.
        model: The model that is asked, if it says.
        streaming: Whether the answer is to be streamed.
        attempt: Which attempt at this provider it is, from 1.
        max_output_tokens: The cap that the provider is told; None leaves it to the provider.
        request: What is asked: the content, for instruments that record it.
    """

    provider: str
    model: str | None
    streaming: bool
    attempt: int
    max_output_tokens: int | None = None
    request: Request | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class RequestStopped(_OfRun):
    """
    A provider has answered, or has not.

    Attributes:
        provider: The provider's name.
        model: The model that was asked, if it says.
        streaming: Whether the answer was to be streamed.
        attempt: Which attempt at this provider it was, from 1.
        duration: Seconds since it began.
        result: `cut` if a budget stopped the answer.
        error: What went wrong, if `result` is `error`.
        usage: Tokens it took, as far as they are known; `estimated` where the provider has not said.
        cost_cents: What it cost; None if that is not known.
        response_model: The model that answered, if the provider says.
        stop_reason: Why the model stopped; None if it did not get that far.
        response: What was answered: the content, for instruments that record it. None unless the answer is complete.
    """

    provider: str
    model: str | None
    streaming: bool
    attempt: int
    duration: float
    result: Literal["ok", "error", "cancelled", "cut"]
    error: Exception | None = None
    usage: Usage = attrs.field(factory=Usage)
    cost_cents: Decimal | None = None
    response_model: str | None = None
    stop_reason: str | None = None
    response: Response | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class ToolStarted(_OfRun):
    """
    A tool call begins.

    Attributes:
        turn: The turn it belongs to.
        id: The call's id.
        name: The tool's name.
        input: The input, as it runs.
        seq: Number of the call's `ToolStart` event.
    """

    turn: int
    id: str
    name: str
    input: JSONObject = attrs.field(repr=False)
    seq: int


@attrs.frozen(kw_only=True)
class ToolStopped(_OfRun):
    """
    A tool call has ended.

    Attributes:
        turn: The turn it belongs to.
        id: The call's id.
        name: The tool's name.
        duration: Seconds since it began.
        outcome: How it ended; `abandoned` means that its thread is still running.
        error: What the model is told went wrong, or None.
        exception: What the tool raised, or the validation of its input, with its traceback; None if nothing was raised.
        seq: Number of the call's `ToolEnd` event; None if that cannot be sent any more.
        start_seq: Number of its `ToolStart` event.
        content: What the model gets to see: the content, for instruments that record it.
        trusted: Whether the program vouches for that, as the tool's `trusted` says.
    """

    turn: int
    id: str
    name: str
    duration: float
    outcome: Outcome
    error: str | None = None
    exception: Exception | None = None
    seq: int | None = None
    start_seq: int
    content: tuple[ResultBlock, ...] = attrs.field(default=(), repr=False)
    trusted: bool = False


@attrs.frozen(kw_only=True)
class CompactionDone(_OfRun):
    """
    The conversation was made shorter.

    Attributes:
        turn: The turn that it makes room for.
        kind: `cleared`, `summarized` or `truncated`, as in the `Compacted` event.
        messages_before: How many messages there were.
        messages_after: How many there are.
        tokens_before: How large a request was, estimated.
        tokens_after: How large it is.
    """

    turn: int
    kind: Literal["cleared", "summarized", "truncated"]
    messages_before: int
    messages_after: int
    tokens_before: int
    tokens_after: int


TelemetryEvent: TypeAlias = (
    Envelope
    | RunStarted
    | RunStopped
    | RunFailed
    | TurnStarted
    | TurnStopped
    | TurnFailed
    | RequestStarted
    | RequestStopped
    | ToolStarted
    | ToolStopped
    | CompactionDone
    | SupervisorEvent
)
"""Everything that an instrument is told: the events of this module, every `Envelope` of every run, and what supervisors tell."""


class Instrument(Protocol):
    """What is told of all runs of the program: anything with this method."""

    def handle(self, event: TelemetryEvent) -> None:
        """
        Take an event, in the task where it happens.

        It must not block, and cannot await: what takes long belongs into a thread or a task of the instrument's own. What it
        raises is logged, and neither the run nor the next instrument notices. Runs in several threads call it in each.
        """
        ...


def add_instrument(instrument: Instrument) -> None:
    """
    Tell `instrument` of everything from now on. One that comes in the middle of a run may be told of stops without starts.

    Raises:
        ValueError: It is attached already.
        InvalidOption: It has no method `handle`, or one that is async.
    """
    handle = getattr(instrument, "handle", None)
    if isinstance(instrument, type) or not callable(handle) or inspect.iscoroutinefunction(handle):
        raise InvalidOption(
            f"{instrument!r:.100} is no instrument: it needs a method handle(event), and not an async one"
        )
    if any(each is instrument for each in instruments):
        raise ValueError(f"{instrument!r:.100} is attached already: remove_instrument(…) first, or add another one")
    instruments.append(instrument)


def remove_instrument(instrument: Instrument) -> None:
    """
    Tell `instrument` nothing from now on, not even of the end of what has begun.

    Raises:
        ValueError: It is not attached.
    """
    for index, each in enumerate(instruments):
        if each is instrument:
            del instruments[index]
            return
    raise ValueError(f"{instrument!r:.100} is not attached: add_instrument(…) comes first, and each goes once")
