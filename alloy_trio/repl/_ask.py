"""Calls that wait for a person: which ones do, and what the person is shown."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..providers._json import decode, encode
from ._text import visible

if TYPE_CHECKING:
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
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    changes = [_cut(line) for line in list(lines)[2:]]  # without the names of the files
    return ["(every occurrence)", *changes] if changes and arguments.get("replace_all") else changes


def _cut(line: str) -> str:
    rest = len(line) - _LONGEST_LINE
    return line if rest <= 0 else f"{line[:_LONGEST_LINE]} … {rest} characters more"


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
            return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        pass
    return ""
