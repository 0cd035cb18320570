"""What the tests of `bash` and `bash_sandboxed` have in common: calls, and looks at the processes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from alloy_trio import InvalidOption, ToolContext
from alloy_trio.tools import Tool, bash, bash_sandboxed

if TYPE_CHECKING:
    from collections.abc import Callable


async def call(root: Path, command: str, tool: Tool = bash, **arguments: object) -> str:
    """Call the tool as a run would, in the directory `root`."""
    ctx = ToolContext(working_directory=root)
    result = await tool.execute(tool.parse({"command": command, **arguments}), ctx)  # type: ignore[misc]
    assert isinstance(result, str)
    return result


def why_not(**options: Any) -> str:
    """Return why there can be no sandbox here, or nothing."""
    try:
        bash_sandboxed(**options)
    except InvalidOption as error:
        return str(error)
    return ""


def running(word: str, where: str = "cmdline") -> list[int]:
    """Return the processes of this machine that have a word in their command line, or in their `environ`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word.encode() in (entry / where).read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):  # other processes set no Trio event
        if condition():
            return
        await trio.sleep(0.01)
    pytest.fail("it did not come to pass in twenty seconds")
