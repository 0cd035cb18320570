"""
The deltas of which a stream of the Messages API mostly consists, read straight into types.

Everything else does not fit these types, and is left to `_anthropic_reply`, which reads all of it. Fields that are not in here
mean nothing to it either.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec


class PlainText(msgspec.Struct, gc=False, tag_field="type", tag="text_delta"):
    """A piece of text."""

    text: str


class PlainThinking(msgspec.Struct, gc=False, tag_field="type", tag="thinking_delta"):
    """A piece of reasoning."""

    thinking: str


class PlainInput(msgspec.Struct, gc=False, tag_field="type", tag="input_json_delta"):
    """A piece of a call's arguments."""

    partial_json: str


Plain: TypeAlias = PlainText | PlainThinking | PlainInput


class PlainDelta(msgspec.Struct, gc=False):
    """A piece of the block of that number."""

    type: Literal["content_block_delta"]
    index: Annotated[int, msgspec.Meta(ge=0)]
    delta: Plain


_delta = msgspec.json.Decoder(PlainDelta)


def plain_delta(data: bytes) -> PlainDelta | None:
    """Return a delta of text, reasoning or arguments; None for any other event."""
    try:
        return _delta.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
