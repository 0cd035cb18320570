"""
What happens during a run, as a closed union of frozen events, and the envelope they travel in.

A provider emits deltas while it reads (`TextDelta`, `ThinkingDelta`, `ToolInputDelta`) and one `BlockEnd` as each block is
complete; the loop emits the rest. Made for `match`; a new kind of event is a new member of `Event`, never a subclass.
"""

from typing import Any, Literal, Self, TypeAlias, get_args

import attrs

from ._messages import Block, Message, Outcome, ResultBlock
from ._result import Status
from ._usage import Usage
from ._util import JSONObject


@attrs.frozen
class TextDelta:
    """A piece of the answer's text, never empty."""

    text: str


@attrs.frozen
class ThinkingDelta:
    """A piece of the model's reasoning, never empty, never part of the answer's text."""

    text: str


@attrs.frozen
class ToolInputDelta:
    """
    A piece of the JSON of a call's arguments, as the model writes it.

    Attributes:
        id: The call's id.
        name: The tool's name.
        json: The piece; only all pieces of a call together are JSON.
    """

    id: str
    name: str
    json: str


@attrs.frozen
class BlockEnd:
    """A block of the answer is complete."""

    block: Block


@attrs.frozen
class RunStart:
    """
    A run begins. Always the first event.

    Attributes:
        session_id: The session's id.
        provider: The provider's name.
        model: The model it asks, if it says.
    """

    session_id: str
    provider: str
    model: str | None


@attrs.frozen
class TurnStart:
    """The model is asked. The envelope has the turn's number."""


@attrs.frozen
class TurnEnd:
    """
    The model has answered. Its tools, if it asked for any, start after this.

    Attributes:
        message: The answer, as it stands in the history.
        stop_reason: Why the model stopped.
        usage: Tokens of the answer.
    """

    message: Message
    stop_reason: str
    usage: Usage


@attrs.frozen
class ToolStart:
    """
    A tool call begins.

    Attributes:
        id: The call's id.
        name: The tool's name.
        input: The input, as it runs: the model's, unless a middleware has edited it.
    """

    id: str
    name: str
    input: JSONObject


@attrs.frozen
class ToolEnd:
    """
    A tool call has ended.

    Attributes:
        id: The call's id.
        name: The tool's name.
        input: Its input.
        outcome: How it ended; `abandoned` means that its thread is still running.
        duration: Seconds since its start.
        error: What the model is told went wrong, or None.
        start_event_seq: Number of the `ToolStart` it belongs to.
        content: What the model gets to see.
        trusted: Whether the program vouches for what the tool returns, as its `trusted` says. False: it is data from outside.
    """

    id: str
    name: str
    input: JSONObject
    outcome: Outcome
    duration: float
    error: str | None
    start_event_seq: int
    content: tuple[ResultBlock, ...] = ()
    trusted: bool = False


@attrs.frozen
class Retry:
    """
    A request to the provider failed before anything of an answer had come, and is made again: to it, or to the next one.

    Attributes:
        provider: Who is asked next.
        model: Its model, if it says.
        attempt: Which attempt at that provider it will be, from 1.
        delay: Seconds until then.
        error: What went wrong, readable.
    """

    provider: str
    model: str | None
    attempt: int
    delay: float
    error: str


@attrs.frozen
class Compacted:
    """
    The conversation was made shorter, so that it fits the model's window.

    Attributes:
        kind: `cleared`: old tool results were replaced by a placeholder, or only reasoning is not sent any more.
            `summarized`: an older part was replaced by a
            summary. `truncated`: it was cut, without one.
        messages_before: How many messages there were.
        messages_after: How many there are.
        tokens_before: How large a request was, estimated.
        tokens_after: How large it is.
    """

    kind: Literal["cleared", "summarized", "truncated"]
    messages_before: int
    messages_after: int
    tokens_before: int
    tokens_after: int


@attrs.frozen
class Steered:
    """
    Something was said to an agent in the middle of a run, and stands in the history from here on.

    Attributes:
        text: What was said.
        interrupted: Whether an answer, or calls, were cut for it.
    """

    text: str
    interrupted: bool = False


@attrs.frozen
class ApprovalRequested:
    """
    A tool call waits for a person: `agent.approve(id)` lets it run, `agent.deny(id, reason)` does not.

    Attributes:
        id: The call's id.
        name: The tool's name.
        input: The input that it would run with.
    """

    id: str
    name: str
    input: JSONObject


@attrs.frozen
class UsageUpdate:
    """
    What the provider has counted of the answer in flight so far, all of it: it replaces earlier ones. Not passed on.

    Attributes:
        usage: The tokens; 0 where it has not said anything yet.
    """

    usage: Usage


@attrs.frozen
class Custom:
    """
    An event of a tool's or a program's own, from `ToolContext.emit`.

    Attributes:
        name: What it is.
        payload: JSON data.
    """

    name: str
    payload: JSONObject


@attrs.frozen
class RunEnd:
    """
    The run is over: the last event.

    Whoever cancels a run from outside has stopped listening; then only an `on_event` that is no async function is told.

    Attributes:
        status: How it ended.
        turns: How many answers of the model it took.
        usage: Tokens of the whole run.
        error: The readable message of what ended it, or None.
    """

    status: Status
    turns: int
    usage: Usage
    error: str | None = None


ContentEvent: TypeAlias = TextDelta | ThinkingDelta | ToolInputDelta | BlockEnd

ProviderEvent: TypeAlias = ContentEvent | UsageUpdate
"""What a provider emits while it streams."""

Event: TypeAlias = (
    ContentEvent
    | RunStart
    | TurnStart
    | TurnEnd
    | ToolStart
    | ToolEnd
    | ApprovalRequested
    | Steered
    | Retry
    | Compacted
    | Custom
    | RunEnd
)
"""Everything that happens in a run."""

EVENT_TYPES: tuple[type[Event], ...] = get_args(Event)


@attrs.frozen(kw_only=True)
class Envelope:
    """
    An event with its place in the run; version 1.

    Attributes:
        v: The envelope's version.
        seq: 1 for the first event of a run, and rising. A number is left out where the hand-over was cut.
        correlation_id: The same for all events of a run: the context's `request_id`, else its `correlation_id`, else a
            random one that starts with the session's id.
        turn: Which answer of the model it belongs to, from 1; 0 before the first.
        ts: Seconds since the epoch (`time.time()`).
        event: The event; it repeats none of the above.
    """

    v: Literal[1] = 1
    seq: int
    correlation_id: str
    turn: int
    ts: float
    event: Event

    def to_dict(self) -> dict[str, Any]:
        """Return the envelope as JSON data: the event's kind under `event`, its fields under `payload`."""
        from ._codec import dump, tag  # noqa: PLC0415 - cattrs is loaded by those who serialize

        head = {
            "v": self.v,
            "seq": self.seq,
            "correlation_id": self.correlation_id,
            "turn": self.turn,
            "ts": self.ts,
        }
        return {**head, "event": tag(type(self.event)), "payload": dump(self.event)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote. A kind of event that is not known here becomes a `Custom` of that name."""
        from ._codec import load, tag  # noqa: PLC0415 - as above

        rest = {key: value for key, value in data.items() if key not in {"event", "payload"}}
        for kind in EVENT_TYPES:
            if tag(kind) == data["event"]:
                return cls(**rest, event=load(data["payload"], kind))
        return cls(**rest, event=Custom(data["event"], data["payload"]))
