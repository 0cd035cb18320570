"""Calls that wait for a person: which ones do, and what the person is shown."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..providers._json import decode, encode
from ._text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .._gate import BlockCall, EditCall
    from .._messages import ToolUse
    from .._middleware import RunState
    from .._util import JSONObject

_MAX_FILE: Final = 1 << 20  # bytes of a file that a change is shown against
_LONGEST_LINE: Final = 500


@attrs.frozen
class AskPerson:
    """A middleware that lets calls of some tools wait for a person; of which ones may change at any time."""

    asked: set[str]

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        """Wait, if a person is to be asked."""
        return await state.approval(call) if call.name in self.asked else None


def diff(name: str, arguments: JSONObject, directory: Path) -> list[str]:
    """Return what a call of `edit` or `write` changes, as the lines of a unified diff; of any other, nothing."""
    path = arguments.get("file_path")
    if name == "edit":
        before, after = arguments.get("old_string"), arguments.get("new_string")
    elif name == "write" and isinstance(path, str):
        before, after = _content(directory / path), arguments.get("content")
    else:
        return []
    if not isinstance(before, str) or not isinstance(after, str):
        return []
    lines = list(difflib.unified_diff(_lines(before, after), _lines(after, before), lineterm="", n=2))
    changes = [piece for line in lines[2:] for piece in _pieces(line)]  # without the names of the files
    return ["(every occurrence)", *changes] if changes and arguments.get("replace_all") else changes


def _lines(text: str, other: str) -> list[str]:
    """
    Return the lines of a text that is compared with another.

    Only a line feed ends one. What else Python takes for a line's end stays in it, to be seen: programs differ there, and
    what is a comment for us may be a command for them. An end that one of the two lacks is an empty line of the other.
    """
    if not text:
        return []
    alike = not other or text.endswith("\n") == other.endswith("\n")
    return (text.removesuffix("\n") if alike else text).split("\n")


def _pieces(line: str) -> Iterator[str]:
    """Yield a line of a diff, in several if it is long: so it can be folded, and seen in full."""
    yield line[:_LONGEST_LINE]
    for start in range(_LONGEST_LINE, len(line), _LONGEST_LINE):
        yield f"{line[0]}… {line[start : start + _LONGEST_LINE]}"


def subject(name: str, arguments: JSONObject, directory: Path) -> list[str]:
    """Return the lines that say what a call would do, and nothing that does not show."""
    return [visible(line).replace("\n", "␊") for line in _subject(name, arguments, directory)]


def _subject(name: str, arguments: JSONObject, directory: Path) -> list[str]:
    if name == "bash" and isinstance(arguments.get("command"), str):
        return [
            f"$ {line}" for line in str(arguments["command"]).removesuffix("\n").split("\n")
        ]  # as bash counts lines
    changes = diff(name, arguments, directory)
    return [f"{arguments.get('file_path')}", *changes] if changes else [encode(arguments).decode()]


def editable(name: str, arguments: JSONObject) -> str:
    """Return the input of a call as a person can edit it: a command as it is, else JSON."""
    command = arguments.get("command")
    return command if name == "bash" and isinstance(command, str) else encode(arguments).decode()


def edited(call: ToolUse, text: str) -> dict[str, Any]:
    """Return the input that a person has written. Raises ValueError."""
    if call.name == "bash" and isinstance(call.input.get("command"), str):
        return {**call.input, "command": text}
    data = decode(text.encode())
    if not isinstance(data, dict):
        raise ValueError("the input of a tool is a JSON object: {…}")  # noqa: TRY004 - as what is no JSON
    return data


def _content(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size <= _MAX_FILE:
            return path.read_bytes().decode("utf-8", "replace")  # with the line ends that it has
    except OSError:
        pass
    return ""
