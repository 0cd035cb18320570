"""What a test wants to know of a run."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..providers._transport import idle_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._result import Result, ToolCall
    from .._util import JSONObject


def last_text(result: Result) -> str | None:
    """Return the text of the last assistant message; None if there is none."""
    answers = [message for message in result.messages if message.role == "assistant"]
    return answers[-1].text if answers else None


def tool_calls(result: Result) -> list[ToolCall]:
    """Return the records of all tool calls, in order over all turns."""
    return list(result.tool_calls)


def assert_tool_called(result: Result, name: str, partial_input: Mapping[str, object] | None = None) -> ToolCall:
    """
    Return the first call of the tool `name` whose input has all of `partial_input`.

    Raises:
        AssertionError: There is none; the message says which calls there were.
    """
    for call in result.tool_calls:
        if call.name == name and _has(call.input, partial_input):
            return call
    wanted = name if partial_input is None else f"{name} with {dict(partial_input)!r}"
    raise AssertionError(f"{wanted} was not called; the calls were: {_calls(result)}")


def refute_tool_called(result: Result, name: str, partial_input: Mapping[str, object] | None = None) -> None:
    """
    Make sure that the tool `name` was not called, or not with all of `partial_input`.

    Raises:
        AssertionError: It was; the message says with what.
    """
    for call in result.tool_calls:
        if call.name == name and _has(call.input, partial_input):
            raise AssertionError(f"{name} was called with {call.input!r}")


def _has(given: JSONObject, partial: Mapping[str, object] | None) -> bool:
    return all(key in given and given[key] == value for key, value in (partial or {}).items())


def _calls(result: Result) -> str:
    return ", ".join(f"{call.name}({call.input!r})" for call in result.tool_calls) or "none"


@contextlib.contextmanager
def assert_no_orphans() -> Iterator[None]:
    """
    Make sure that the body leaves nothing: no Trio task, no tool's thread, no child process, no open socket, pipe or file.

    What was there before does not count. Neither do idle connections of the providers' HTTP client, which lives until the end
    of the Trio run. Child processes and file descriptors are seen on Linux only. Checked also when the body raises, or is
    cancelled: what it raised then is the context of the `AssertionError`.

    Raises:
        AssertionError: Something is left; the message names it.
    """
    before = _things()
    try:
        yield
    finally:
        left = sorted(name for thing, name in _things().items() if thing not in before)
        if left:
            raise AssertionError(f"left behind: {', '.join(left)}")


def _things() -> dict[object, str]:
    """Return what there is now: an identity and a name of each task, tool thread, child process and file descriptor."""
    found: dict[object, str] = {}
    for task in all_tasks():
        if not task.name.startswith(("alloy_trio connections", "alloy_trio client of httpx")):  # ends with the Trio run
            found[task] = f"task {task.name}"
    for thread in threading.enumerate():
        if thread.name.startswith("alloy_trio"):  # Trio renames its threads while they work for somebody
            found[thread] = f"thread {thread.name}"
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            found |= {("process", pid): f"process {pid}" for pid in children.read_text().split()}
    return found | _descriptors()


def _descriptors() -> dict[object, str]:
    """
    Return the open sockets, pipes and files, but for idle connections.

    Trio needs no exception: it opens its wake-up socket before it runs any task, and its threads open nothing. Descriptors of
    anonymous inodes (epoll, eventfd, inotify) do not count: they are how some loop waits, and a loop in a thread of a library may
    close them a moment late. An inode belongs to the identity, since numbers are used again; a name does not, since files are
    renamed.
    """
    found: dict[object, str] = {}
    idle = idle_descriptors()
    if (by_httpx := sys.modules.get("alloy_trio.providers._httpx")) is not None:
        idle |= by_httpx.idle_descriptors()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the one through which the folder is read
            number, status, target = int(entry.name), entry.stat(), str(entry.readlink())
            if number not in idle and not target.startswith("anon_inode:"):
                found["fd", number, status.st_dev, status.st_ino] = f"file descriptor {number} ({target})"
    return found


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    """Yield all tasks of this Trio run, parents first."""
    waiting = [trio.lowlevel.current_root_task()]
    while waiting:
        if (task := waiting.pop()) is not None:
            yield task
            waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
