"""From what a tool returns to what the model and the program get."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, TypeGuard

import attrs
import msgspec

from .._messages import Audio, Block, Document, Image, Opaque, Text, Video

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_OUTPUT = "(no output)"

_SHOWN = (Text, Image, Audio, Video, Document, Opaque)  # the blocks that a result may have


def scrub(text: str) -> str:
    """Return the text with what UTF-8 cannot say, lone surrogates, replaced; two halves of a pair are joined."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _content(content: str | Block | Sequence[str | Block]) -> str | tuple[Block, ...]:
    if isinstance(content, str):
        return scrub(str.__str__(content)) if content.strip() else NO_OUTPUT
    blocks: list[Any] = list(content) if isinstance(content, list | tuple) else [content]
    found = tuple(Text(block) if isinstance(block, str) else block for block in blocks)
    if not found or not all(isinstance(block, _SHOWN) for block in found):
        raise TypeError("a tool's content is text, or blocks of text and media; other values go into `data`")
    return tuple(attrs.evolve(b, text=scrub(b.text)) if isinstance(b, Text) else b for b in found)


@attrs.frozen
class ToolOutput:
    """
    What a tool returns when the model and the program are to get different things.

    Attributes:
        content: For the model: text, or blocks of text and media. Blank text becomes `(no output)`, since providers
            refuse an empty result; lone surrogates are replaced.
        data: For the program, in `ToolCall.data`. Never sent.
    """

    content: str | tuple[Block, ...] = attrs.field(converter=_content)
    data: Any = None  # whatever the tool has


def render(value: object) -> ToolOutput:
    """
    Turn what a tool returned into what the model and the program get.

    Text, blocks and `ToolOutput` are taken as they are, bytes as UTF-8. None becomes `(no output)`. Anything else
    is data, which the model sees as JSON, or as `str(value)` where JSON cannot say it.

    Raises:
        TypeError: It is a coroutine: a sync function called an async one without `await`.
    """
    match value:
        case ToolOutput():
            return value
        case None:
            return ToolOutput(NO_OUTPUT)
        case str():
            return ToolOutput(value)
        case bytes() | bytearray():
            return ToolOutput(value.decode("utf-8", "replace"))
    if _are_blocks(value):
        return ToolOutput(value)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("the tool returned a coroutine: make it `async def`, and `await` what it calls")
    return ToolOutput(_json(value), value)


def _are_blocks(value: object) -> TypeGuard[Block | Sequence[str | Block]]:
    if not isinstance(value, list | tuple):
        return isinstance(value, _SHOWN)
    texts = [isinstance(each, str) for each in value]
    return not all(texts) and all(text or isinstance(each, _SHOWN) for text, each in zip(texts, value, strict=True))


def _json(value: object) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=_plain).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return str(value)


def _plain(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError


def clip(text: str, limit: int) -> str:
    """
    Shorten a text to `limit` characters: its head, a mark that tells both sizes, its tail.

    A limit too small for the mark leaves the head alone.
    """
    if len(text) <= limit:
        return text
    mark = f"\n[... cut from {len(text)} to {limit} characters ...]\n"
    rest = limit - len(mark)
    if rest <= 0:
        return text[:limit]
    head = (rest + 1) // 2
    return text[:head] + mark + text[len(text) - (rest - head) :]
