"""The parts of a Chat Completions answer while they arrive: pieces in lists, joined once."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import attrs

from .._messages import Block, Text, Thinking, ToolUse
from .._util import JSONObject
from . import _vendors
from ._json import as_str, parse_arguments


@attrs.define
class Prose:
    """Text or reasoning while it arrives."""

    kind: type[Text | Thinking]
    pieces: list[str] = attrs.field(factory=list)
    extras: JSONObject = attrs.field(factory=dict)
    notes: list[Any] = attrs.field(factory=list)  # JSON objects
    sealed: dict[str, list[JSONObject]] = attrs.field(factory=dict)
    ended: bool = False

    def block(self) -> Text | Thinking:
        text = "".join(self.pieces)
        if self.kind is Text:
            return Text(text, tuple(self.notes))
        sealed = _vendors.joined(self.sealed)
        signatures = [as_str(item.get("signature")) for items in sealed.values() for item in items]
        signature = next(filter(None, reversed(signatures)), None)
        return Thinking(text, signature, {**self.extras, **sealed} or None)


@attrs.define
class Call:
    """A call while it arrives."""

    seed: tuple[object, ...]  # of its id, should the server give none
    id: str = ""
    name: str = ""
    pieces: list[str] = attrs.field(factory=list)
    extras: JSONObject = attrs.field(factory=dict)
    ended: bool = False

    @functools.cached_property
    def made_up(self) -> str:
        """Its id, should the server give none."""
        return _vendors.made_up_id(*self.seed)

    def begins_anew(self, call_id: str, name: str, piece: str) -> bool:
        """Whether a delta for this call is in truth the first of another, from a server that uses an index twice."""
        if not name or not self.name:
            return False  # more of this one, even if the server has changed the id meanwhile
        if name != self.name or (call_id and self.id and call_id != self.id):
            return self.is_complete()
        return not call_id and bool(self.pieces) and piece.startswith("{") and self.is_complete()

    def is_complete(self) -> bool:
        """Whether the arguments are whole; looked at closely only where the last piece may have been their end."""
        if not self.pieces:
            return True
        return self.pieces[-1].rstrip().endswith("}") and parse_arguments("".join(self.pieces))[1] is None

    def block(self) -> ToolUse:
        text = "".join(self.pieces)
        free = self.extras.get("type") == "custom"  # a tool of OpenAI's whose input is no JSON
        arguments, invalid = ({"input": text}, None) if free else parse_arguments(text)
        return ToolUse(self.id or self.made_up, self.name, arguments, invalid, self.extras or None)


Part: TypeAlias = Prose | Call | Block


def block_of(part: Part) -> Block:
    return part.block() if isinstance(part, Prose | Call) else part
