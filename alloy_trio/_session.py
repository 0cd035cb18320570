"""A conversation that outlives its runs."""

import datetime as dt
from collections.abc import Iterable
from typing import Any, Self

import attrs

from ._codec import dumps, loads
from ._history import Kept
from ._messages import Message
from ._usage import Usage
from ._util import JSONObject, new_id

_set = object.__setattr__


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _messages(messages: Iterable[Message]) -> tuple[Message, ...]:
    return tuple(messages)


@attrs.define(kw_only=True, on_setattr=attrs.setters.NO_OP)  # five fields a turn
class Session:
    """
    The state of a conversation: give it to `run(session=…)` again and again, store it as JSON in between.

    A run given a session starts from its messages and updates it in place: as it begins, with the prompt, after every turn,
    when its tools have ended too, and as it ends, however it ends: also when the caller is cancelled. At each of these moments the history is valid for every provider.
    One run at a time: a second one is refused with `InvalidOption`.

    Attributes:
        id: A random text, or yours.
        messages: The conversation so far.
        usage: Tokens of all runs.
        metadata: Yours, and what runs leave for the next (`provider_state`). JSON data.
        prefix: A digest of what reasoning is sealed over besides the messages, as of the last run: the model, and for
            Claude instructions and tools. A run with others does not send earlier reasoning.
        created_at: When the session was made; UTC.
        updated_at: When a run last changed it; UTC.
    """

    id: str = attrs.field(factory=new_id)
    messages: tuple[Message, ...] = attrs.field(default=(), converter=_messages, on_setattr=attrs.setters.convert)
    usage: Usage = attrs.field(factory=Usage)
    metadata: JSONObject = attrs.field(factory=dict)
    prefix: str | None = None
    created_at: dt.datetime = attrs.field(factory=_now)
    updated_at: dt.datetime = attrs.field(default=attrs.Factory(lambda self: self.created_at, takes_self=True))

    _kept: Kept = attrs.field(factory=Kept, init=False, eq=False, repr=False)
    _running: bool = attrs.field(default=False, init=False, eq=False, repr=False)  # a run of ours has it

    def update(self, messages: Iterable[Message], usage: Usage, metadata: dict[str, Any] | None = None) -> None:
        """Replace messages and usage, add to the metadata, and set `updated_at` to now."""
        # Not by assignment, which converts what a user gives: runs do this at every turn.
        _set(self, "messages", tuple(messages))
        _set(self, "usage", usage)
        if metadata:
            self.metadata.update(metadata)
        _set(self, "updated_at", _now())

    def to_json(self) -> str:
        """Write the session as JSON text; `from_json` gets it back without loss."""
        return dumps(self).decode()

    @classmethod
    def from_json(cls, data: str | bytes) -> Self:
        """
        Read a session that `to_json` wrote, by this version or another.

        Raises:
            ValueError: The text is not JSON, or not a session.
        """
        return loads(data, cls, key="id")
