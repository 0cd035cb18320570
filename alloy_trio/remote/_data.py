"""
What goes over the wire, as JSON and back. Pure. The most of it is what goes far in any way (`_far`).

Messages, events, usage and sessions have the JSON form that they have in session files. Values of a program's own, a typed
output or the data of a tool call, arrive as the JSON that they make; what makes none arrives as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .. import _far
from .._codec import dump, load
from .._far import any_to_json
from .._far import error_to_json as error_to_json
from .._far import message_to_json as message_to_json
from .._far import prompt_from_json as prompt_from_json
from .._far import prompt_to_json as prompt_to_json
from .._far import published_to_json as published_to_json
from .._far import result_to_json as result_to_json
from .._health import Health
from .._messages import ToolUse
from .._usage import Usage
from ._errors import NotAllowed, ProtocolError, RemoteError, UnknownAgent

if TYPE_CHECKING:
    from .._result import Result
    from .._util import JSONObject

_KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (NotAllowed, ProtocolError, UnknownAgent)}


def _unknown(words: str, kind: str) -> Exception:
    return RemoteError(words, kind=kind)


def result_from_json(data: JSONObject) -> Result:
    """Read a result."""
    return _far.result_from_json(data, _unknown)


def error_from_json(data: JSONObject) -> Exception:
    """Read an error: of the same type, if it is one of ours; else a `RemoteError`, which names it."""
    return _far.error_from_json(data, _unknown, _KINDS)


def published_from_json(data: JSONObject) -> object:
    """Read what was received from a topic."""
    return _far.published_from_json(data, _unknown)


def health_to_json(health: Health) -> JSONObject:
    """Return how an agent is."""
    fields = {field.name: getattr(health, field.name) for field in attrs.fields(Health)}
    return {**fields, "usage": dump(health.usage)}


def health_from_json(data: JSONObject) -> Health:
    """Read how an agent is."""
    return Health(**{**data, "usage": load(data["usage"], Usage)})


def call_to_json(call: ToolUse) -> JSONObject:
    """Return a call that waits for a person."""
    return {"id": call.id, "name": call.name, "input": any_to_json(call.input)}


def call_from_json(data: JSONObject) -> ToolUse:
    """Read a call."""
    return ToolUse(data["id"], data["name"], data["input"])
