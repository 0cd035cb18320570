"""What a run leaves behind."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from ._messages import Message, Outcome
from ._usage import Usage
from ._util import JSONObject

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
        start_event_seq: Number of its `ToolStart` event; None if it never started.
        end_event_seq: Number of its `ToolEnd` event, larger than `start_event_seq`; None if it never started, or if the
            event could not be sent any more.
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
class Result:
    """
    The outcome of a run.

    Attributes:
        text: Text of the last assistant message; `""` if there is none.
        messages: The whole conversation, in the order of time.
        usage: Tokens of all requests of this run.
        tool_calls: One record for each tool call of this run, in call order over all turns.
        status: How the run ended.
        turns: How many answers of the model this run took.
        error: What ended the run, where something did; `str(error)` is the readable message.
        request_id: The id under which an agent was asked; None for a run without one.
        stop_reason: Why the model stopped, the last time it did.
        metadata: `provider_state` and `provider_response` (citations), where there are any.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    usage: Usage = attrs.field(factory=Usage)
    tool_calls: tuple[ToolCall, ...] = ()
    status: Status = "completed"
    turns: int = 0
    error: Exception | None = None
    request_id: str | None = None
    stop_reason: str | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
