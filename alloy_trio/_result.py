"""What a run leaves behind."""

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

import attrs

from ._messages import Message, Outcome
from ._usage import Usage
from ._util import JSONObject

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    OutputT = TypeVarWithDefault("OutputT", default=Any)  # so that a bare `Result` passes a strict type checker
else:
    OutputT = TypeVar("OutputT")

Status: TypeAlias = Literal["completed", "max_turns", "budget_exceeded", "halted", "error", "timed_out", "cancelled"]
"""How a run ended. The last three are those of runs that raised: the exception's `.result` has them."""


@attrs.frozen(kw_only=True)
class ToolCall:
    """
    The record of one tool call of a run.

    Attributes:
        id: The call's id.
        name: The tool's name.
        input: The input that ran, defaults not filled in.
        outcome: How the call ended.
        duration: Seconds from its start to its end; 0.0 where it never started.
        error: What the model was told went wrong, or None.
        data: The structured value that the tool returned, for the program; the model saw only text.
        correlation_id: The run's, as in its events.
        start_event_seq: Number of its `ToolStart` event; None if there was none, since the run ended before its turn came.
        end_event_seq: Number of its `ToolEnd` event, larger than `start_event_seq`; None if there was none, or if it
            could not be sent any more.
    """

    id: str
    name: str
    input: JSONObject
    outcome: Outcome
    duration: float
    error: str | None = None
    data: Any = None  # whatever the tool returned
    correlation_id: str
    start_event_seq: int | None = None
    end_event_seq: int | None = None


@attrs.frozen(kw_only=True)
class Result(Generic[OutputT]):
    """
    The outcome of a run; `Result[City]` that of one with `output_type=City`.

    Attributes:
        text: Text of the last assistant message; `""` if there is none.
        messages: The conversation, in the order of time: all of it, but for what compaction has made shorter.
        output: The typed value, of a run with `output_type=`; None without, or where the run ended before there was one.
        usage: Tokens of all requests of this run, those of failed attempts and of compactions included.
        cost_cents: What the run and its sub-agents cost, in cents; None if the price of a model is not known.
        overrun_cents: By how much the budgets around the run are exceeded, in cents, the worst of them: 0 but for the
            error of an estimate, fees that no cap bounds, and servers that ignore their cap.
        tool_calls: One record for each tool call of this run, in call order over all turns.
        status: How the run ended.
        turns: How many answers of the model this run took.
        error: What ended the run, where something did; `str(error)` is the readable message.
        request_id: The id under which an agent was asked; None for a run without one.
        stop_reason: Why the model stopped, the last time it did.
        metadata: `provider_state` and `provider_response` (citations), where there are any; `context_overflow`, true for a
            run that has recovered from a prompt that was too long; `budget_exceeded`, in words what there was no money for.
    """

    text: str = ""
    output: OutputT | None = None
    messages: tuple[Message, ...] = ()
    usage: Usage = attrs.field(factory=Usage)
    cost_cents: Decimal | None = None
    overrun_cents: Decimal = Decimal(0)
    tool_calls: tuple[ToolCall, ...] = ()
    status: Status = "completed"
    turns: int = 0
    error: Exception | None = None
    request_id: str | None = None
    stop_reason: str | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def estimated(self) -> bool:
        """Whether usage and cost are in part our estimate: a request was cut, or its provider did not report."""
        return self.usage.estimated
