"""The `edit` tool: one text for another in a file, the rest kept byte for byte."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .._errors import ToolError
from ._paths import explained, located, open_text
from ._tool import tool
from ._write import replace_file

if TYPE_CHECKING:
    from ._context import ToolContext
    from ._paths import Place

MAX_BYTES = 64 << 20


@tool(concurrent=False, trusted=True)  # what it says is its own
def edit(file_path: str, old_string: str, new_string: str, ctx: ToolContext, *, replace_all: bool = False) -> str:
    """
    Replace a text in a file by another. The old text must occur exactly once, unless replace_all is set.

    Args:
        file_path: Path of the file, absolute or relative to the working directory.
        old_string: The text to replace, exactly as it stands in the file, without line numbers.
        new_string: The text to put in its place.
        ctx: Where the call works.
        replace_all: Replace every occurrence.
    """
    if not old_string:
        raise ToolError("old_string is empty. Give the text to replace, or use write to make a file.")
    if old_string == new_string:
        raise ToolError("old_string and new_string are identical: there is nothing to change.")
    with located(file_path, ctx, "read") as place:
        text = _load(place)
        old, new = _in_line_ends_of(text, old_string, new_string)
        count = text.count(old) if replace_all else _occurrences(text, old)
        _refuse_count(count, file_path, replace_all=replace_all)
        with explained(f"write {file_path}"):
            data = text.replace(old, new).encode("utf-8", "surrogateescape")
        replace_file(place, data)
    return f"Replaced {count} {'occurrence' if count == 1 else 'occurrences'} in {file_path}."


def _load(place: Place) -> str:
    with open_text(place) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ToolError(f"{place.path} is too large to edit: it has more than {MAX_BYTES >> 20} MiB.")
    return data.decode("utf-8", "surrogateescape")  # bytes that are no UTF-8 survive the way there and back


def _in_line_ends_of(text: str, old: str, new: str) -> tuple[str, str]:
    """Give both strings CRLF if all lines of `text` end so, or if `old` is only found that way."""
    all_crlf = "\r\n" in text and text.count("\n") == text.count("\r\n")
    if all_crlf or ("\r\n" in text and old not in text):
        return _crlf(old), _crlf(new)
    return old, new


def _crlf(text: str) -> str:
    return re.sub(r"\r?\n", "\r\n", text)


def _occurrences(text: str, old: str) -> int:
    """Count the occurrences, overlapping ones too: "aa" is twice in "aaa", so which one is meant is unclear."""
    count, at = 0, text.find(old)
    while at >= 0:
        count, at = count + 1, text.find(old, at + 1)
    return count


def _refuse_count(count: int, name: str, *, replace_all: bool) -> None:
    if count == 0:
        raise ToolError(
            f"old_string was not found in {name}, which is unchanged. It must match exactly, white space included, "
            "and without line numbers: read the file again and copy the text from there."
        )
    if count > 1 and not replace_all:
        raise ToolError(
            f"old_string occurs {count} times in {name}, which is unchanged. Add lines from around the one you mean "
            "until it is unique, or set replace_all to replace all of them."
        )
