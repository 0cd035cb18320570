"""The `read` tool: a window of a text file, with line numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from .._errors import ToolError
from ._paths import located, open_text
from ._tool import tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._context import ToolContext

MAX_LINE_CHARS = 2_000
MAX_RESULT_CHARS = 200_000
MAX_BYTES = 1 << 30
"""How much of a file one call looks through: some have no end, as one that grows, or a terabyte without a line end."""

_CHUNK = 1 << 20


@tool
def read(file_path: str, ctx: ToolContext, *, offset: int = 1, limit: int = 2000) -> str:
    """
    Read a text file. Each line comes with its number and a tab before it.

    Long lines are cut, and a note at the end says how to go on where the file does.

    Args:
        file_path: Path of the file, absolute or relative to the working directory.
        ctx: Where the call works.
        offset: Number of the first line to read; lines count from 1.
        limit: How many lines to read at most.
    """
    if offset < 1 or limit < 1:
        raise ToolError("offset and limit must be 1 or more: lines count from 1.")
    with located(file_path, ctx, "read") as place, open_text(place) as file:
        return _window(_lines(file, ctx.check_cancelled), offset, limit)


def _window(lines: Iterator[bytes | None], offset: int, limit: int) -> str:
    shown: list[str] = []
    size = number = 0
    for number, raw in enumerate(lines, 1):
        if raw is None:
            shown.append(
                f"\n[Stopped in line {number - 1}, after {MAX_BYTES >> 20} MiB: read goes no further into a file.]"
            )
            break
        if number < offset:
            continue
        if number >= offset + limit or size >= MAX_RESULT_CHARS:
            shown.append(f"\n[The file goes on. To read more, use offset={number}.]")
            break
        shown.append(f"{number:>6}\t{_text(raw, first=number == 1)}")
        size += len(shown[-1]) + 1
    if number == 0:
        return "[The file is empty.]"
    return "\n".join(shown) or f"[The file has {number} lines: offset={offset} is past its end.]"


def _text(raw: bytes, *, first: bool) -> str:
    text = raw.decode("utf-8-sig" if first else "utf-8", "replace").removesuffix("\n").removesuffix("\r")
    if len(text) > MAX_LINE_CHARS:
        return f"{text[:MAX_LINE_CHARS]} [line cut after {MAX_LINE_CHARS} characters]"
    return text


def _lines(file: BinaryIO, checkpoint: Callable[[], None]) -> Iterator[bytes | None]:
    """
    Yield the lines, each cut where `_text` cuts it at the latest; None, as the last, after `MAX_BYTES`.

    Call `checkpoint` about once in a megabyte.
    """
    seen = checked = 0
    part = b"\n"
    while seen < MAX_BYTES:
        starts = part.endswith(b"\n")
        part = file.readline(4 * MAX_LINE_CHARS + 4 if starts else _CHUNK)  # a character is 4 bytes at most
        if not part:
            return
        if starts:
            yield part
        seen += len(part)
        if seen - checked >= _CHUNK:
            checkpoint()
            checked = seen
    yield None
