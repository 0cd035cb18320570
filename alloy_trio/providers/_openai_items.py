"""
The items of a Responses stream while they arrive, and which of them an event is about.

Servers number them badly: no `output_index`, one index for all items, or the next item's in `done` (vLLM); ids that change with
each event (Copilot). So an item is known by its ids, else by its place, else by its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .._events import TextDelta, ThinkingDelta
from .._messages import Block, Text, Thinking
from .._util import JSONObject
from ._json import as_str

if TYPE_CHECKING:
    from ._base import WireEvents


@attrs.define(eq=False)
class GrowingItem:
    """An item while its deltas arrive: pieces in lists, joined once."""

    place: int  # in the output, as the server counts
    raw: JSONObject = attrs.field(factory=dict)
    pieces: dict[tuple[str, int], list[str]] = attrs.field(factory=dict)  # by kind and part
    closed: bool = False

    def begin(self, raw: JSONObject) -> None:
        """Take the item as it begins, with its name and ids."""
        if not self.closed:
            self.raw = raw

    def close(self, raw: JSONObject) -> None:
        """Take the whole item; what comes for it after that has been said."""
        if not self.closed:
            self.raw = raw or self.raw
            self.closed = True

    def grown(self, kind: str) -> list[str]:
        """Return what has come of one kind, by parts."""
        return ["".join(self.pieces[key]) for key in sorted(self.pieces) if key[0] == kind]

    def whole(self) -> JSONObject:
        """Return the item, with what has come in pieces where the server does not repeat it in the item."""
        item = self.raw or {"type": "message"}
        grown: JSONObject = {}
        match item.get("type"):
            case "message":
                grown["content"] = self._parts("output_text", "text") + self._parts("refusal", "refusal")
            case "reasoning":
                grown["summary"] = self._parts("summary_text", "summary")
            case "function_call":
                grown["arguments"] = "".join(self.grown("arguments"))
            case "custom_tool_call":
                grown["input"] = "".join(self.grown("input"))
        return item | {field: value for field, value in grown.items() if value and not item.get(field)}

    def _parts(self, part: str, kind: str) -> list[JSONObject]:
        field = "refusal" if part == "refusal" else "text"
        return [{"type": part, field: text} for text in self.grown(kind)]

    def unsaid(self, blocks: list[Block]) -> WireEvents:
        """Return as deltas what text of the blocks has not come in pieces."""
        texts = "".join(block.text for block in blocks if isinstance(block, Text))
        thoughts = "".join(block.text for block in blocks if isinstance(block, Thinking))
        events: WireEvents = []
        if rest := _behind(texts, "".join(self.grown("text"))):
            events.append(TextDelta(rest))
        if rest := _behind(thoughts, "".join(self.grown("summary"))):
            events.append(ThinkingDelta(rest))
        return events


def _behind(whole: str, said: str) -> str:
    return whole[len(said) :] if whole.startswith(said) else ""


def ids_of(raw: JSONObject) -> set[str]:
    return {as_str(raw.get("id")), as_str(raw.get("call_id"))} - {""}


def same_kind(one: JSONObject, other: JSONObject) -> bool:
    return not (one and other) or one.get("type") == other.get("type")


def match_item(items: list[GrowingItem], raw: JSONObject, place: int) -> GrowingItem | None:
    """Return the item that the end of the stream repeats: by its ids, by its place, or the first of its kind."""
    same = [item for item in items if same_kind(item.raw, raw)]
    by_id = (item for item in same if ids_of(item.raw) & ids_of(raw))
    by_place = (item for item in same if item.place == place)
    return next((item for found in (by_id, by_place, same) for item in found), None)
