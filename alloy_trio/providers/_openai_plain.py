"""
The deltas of which a stream of the Responses API mostly consists, read straight into types.

Everything else does not fit these types, and is left to `_openai_reply`, which reads all of it. Fields that are not in here mean
nothing to it either.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class PlainText(msgspec.Struct, gc=False):
    """A piece of text, and where it belongs."""

    type: Literal["response.output_text.delta"]
    delta: Annotated[str, msgspec.Meta(min_length=1)]
    item_id: str = ""
    output_index: _Count | None = None
    content_index: _Count = 0


_text = msgspec.json.Decoder(PlainText)


def plain_text(data: bytes) -> PlainText | None:
    """Return a delta of text; None for any other event."""
    try:
        return _text.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
