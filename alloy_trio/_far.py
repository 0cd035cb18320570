"""
What goes far, to another process or machine, as JSON and back: prompts, results, errors, what is published. Pure.

Messages, events, usage and sessions have the JSON form that they have in session files. Values of a program's own, a typed
output or the data of a tool call, arrive as the JSON that they make; what makes none arrives as text.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from . import _errors
from ._codec import dump, load
from ._errors import AlloyError, InvalidOption
from ._events import Envelope
from ._messages import Message
from ._result import Result, ToolCall
from ._usage import Usage
from ._util import without_surrogates
from .pubsub._subscription import Lost
from .supervision._spec import NameTaken, RestartLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._util import JSONObject

    Unknown = Callable[[str, str], Exception]

KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (*vars(_errors).values(), NameTaken, RestartLimitExceeded)
    if isinstance(kind, type) and issubclass(kind, Exception)
}
_NO_MORE: dict[str, type[Exception]] = {}
_SAID = ("provider", "model", "status", "retryable", "retry_after", "request_id")  # of a ProviderError


def any_to_json(value: object) -> Any:
    """Return a value of somebody's own as JSON data; as text, if it makes none. What comes out, can be sent."""
    try:
        return msgspec.json.decode(msgspec.json.encode(dump(value)))
    except Exception:  # noqa: BLE001 - a class of the user's may raise anything
        return _as_text(value)


def _as_text(value: object) -> str:
    try:
        return str(without_surrogates(str(value)))
    except Exception:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}>"


def message_to_json(message: Message) -> JSONObject:
    """Return a message."""
    return {"role": message.role, **dump(message)}


def prompt_to_json(prompt: str | Message) -> str | JSONObject:
    """Return a prompt: text, or a message."""
    return prompt if isinstance(prompt, str) else message_to_json(prompt)


def prompt_from_json(data: object) -> str | Message:
    """Read a prompt. Raises InvalidOption where it is none."""
    if isinstance(data, str):
        return data
    try:
        return load(data, Message)
    except ValueError as error:
        raise InvalidOption(f"the prompt cannot be read: {error}") from error


# Results


def result_to_json(result: Result) -> JSONObject:
    """Return a result, with its error if it has one."""
    return {
        "text": result.text,
        "output": any_to_json(result.output),
        "messages": [message_to_json(message) for message in result.messages],
        "usage": dump(result.usage),
        "cost_cents": None if result.cost_cents is None else str(result.cost_cents),
        "overrun_cents": str(result.overrun_cents),
        "tool_calls": [_call_to_json(call) for call in result.tool_calls],
        "status": result.status,
        "turns": result.turns,
        "error": None if result.error is None else error_to_json(result.error, with_result=False),
        "request_id": result.request_id,
        "stop_reason": result.stop_reason,
        "metadata": any_to_json(dict(result.metadata)),
    }


def result_from_json(data: JSONObject, unknown: Unknown) -> Result:
    """Read a result; `unknown` makes the error, if it has one that is not ours."""
    cost = data["cost_cents"]
    return Result(
        text=data["text"],
        output=data["output"],
        messages=tuple(load(message, Message) for message in data["messages"]),
        usage=load(data["usage"], Usage),
        cost_cents=None if cost is None else Decimal(cost),
        overrun_cents=Decimal(data["overrun_cents"]),
        tool_calls=tuple(ToolCall(**call) for call in data["tool_calls"]),
        status=data["status"],
        turns=data["turns"],
        error=None if data["error"] is None else error_from_json(data["error"], unknown),
        request_id=data["request_id"],
        stop_reason=data["stop_reason"],
        metadata=data["metadata"],
    )


def _call_to_json(call: ToolCall) -> JSONObject:
    fields = {field.name: getattr(call, field.name) for field in attrs.fields(ToolCall)}
    return {**fields, "input": any_to_json(call.input), "data": any_to_json(call.data)}


# Errors


def error_to_json(error: BaseException, *, with_result: bool = True) -> JSONObject:
    """Return an error: its type, its words, what its handlers need, and the result that it has."""
    said: JSONObject = {"type": type(error).__name__, "message": _as_text(error)}
    said |= {name: any_to_json(getattr(error, name)) for name in _SAID if getattr(error, name, None) is not None}
    if notes := getattr(error, "__notes__", None):
        said["notes"] = [_as_text(note) for note in notes]
    if error.__cause__ is not None:
        said["cause"] = f"{type(error.__cause__).__name__}: {_as_text(error.__cause__)}"
    result = getattr(error, "result", None)
    if with_result and isinstance(result, Result):
        said["result"] = result_to_json(result)
    return said


def error_from_json(data: JSONObject, unknown: Unknown, more: Mapping[str, type[Exception]] = _NO_MORE) -> Exception:
    """
    Read an error: of the same type, if it is one of ours.

    Args:
        data: What `error_to_json` made.
        unknown: Makes an error of words, and of the name of a type that is not known here.
        more: Errors that are ours as well, by name.
    """
    words = data["message"]
    kind = KINDS.get(data["type"]) or more.get(data["type"])
    if kind is None:
        error = unknown(f"{data['type']}: {words}", data["type"])
    elif issubclass(kind, _errors.ProviderError):
        error = kind(words, **{name: data[name] for name in _SAID if name in data})
    else:
        error = kind(words)
    for note in data.get("notes", ()):
        error.add_note(note)
    if "cause" in data:
        error.add_note(f"Its cause at the other end: {data['cause']}")
    if "result" in data and isinstance(error, AlloyError):
        error.result = result_from_json(data["result"], unknown)
        error.result = attrs.evolve(error.result, error=error)
    return error


# What is published


def published_to_json(topic: str | None, message: object) -> JSONObject:
    """Return what was received from a topic: a batch of envelopes, a result, a loss, or anything else as JSON."""
    if isinstance(message, Lost):
        return {"lost": message.count}
    if isinstance(message, Result):
        return {"topic": topic, "result": result_to_json(message)}
    if isinstance(message, tuple) and message and all(isinstance(each, Envelope) for each in message):
        return {"topic": topic, "events": [each.to_dict() for each in message]}
    return {"topic": topic, "message": any_to_json(message)}


def published_from_json(data: JSONObject, unknown: Unknown) -> object:
    """Read what was received from a topic."""
    if "lost" in data:
        return Lost(data["lost"])
    if "result" in data:
        return result_from_json(data["result"], unknown)
    if "events" in data:
        return tuple(Envelope.from_dict(each) for each in data["events"])
    return data["message"]
