"""
Child processes that leave nothing behind.

A command runs as the leader of a session of its own. To end it is to end the session: the shell, its pipelines, what it
put into the background, and what moved to another process group within the session, as `timeout` and job control do.
Only a process that opens a session for itself (`setsid`, a daemon) gets away; to hold that one takes a sandbox.

The session ends with the command, however that ends: on its own, at its deadline, or by a cancel. Output comes
through one pipe, so that both streams are in the order of time, and is read all along: a child never waits for us. A child in
the background may hold that pipe open after the shell has exited, so that the end of the output is not waited for long.
"""

from __future__ import annotations

import codecs
import logging
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger("alloy_trio.tools")

KILL_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL, and as many after it at most."""

DRAIN = 0.3
"""Seconds that are left for output after the command itself has exited."""

_POLL = 0.01
_PROC = "/proc"
_MARK_ROOM = 100


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@attrs.define
class Excerpt:
    """
    The head and the tail of a text that may be endless, in bounded memory.

    Attributes:
        limit: How many characters are kept, the mark in place of what was left out included.
        length: How many characters there were.
    """

    limit: int
    length: int = attrs.field(default=0, init=False)
    _head: str = attrs.field(default="", init=False, repr=False)
    _tail: str = attrs.field(default="", init=False, repr=False)
    _decoder: codecs.IncrementalDecoder = attrs.field(factory=_decoder, init=False, repr=False)

    def feed(self, data: bytes) -> None:
        """Add bytes of UTF-8, cut anywhere; what is no UTF-8 becomes replacement characters."""
        self.feed_text(self._decoder.decode(data))

    def feed_text(self, text: str) -> None:
        """Add text."""
        self.length += len(text)
        room = self.limit // 2 - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:])[-(self.limit - self.limit // 2) :]

    def finish(self) -> str:
        """Return the text; where it was longer than the limit, a mark in the middle says how much is left out."""
        self.feed_text(self._decoder.decode(b"", final=True))
        if self.length <= self.limit:
            return self._head + self._tail
        tail = self._tail[_MARK_ROOM:]
        left_out = self.length - len(self._head) - len(tail)
        return f"{self._head}\n\n[{left_out} of {self.length} characters left out here]\n\n{tail}"


async def run_command(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    seconds: float,
    sink: Callable[[bytes], None],
) -> int | None:
    """
    Run a command, and hand what it writes to `sink` as it comes.

    Whether this returns or raises, nothing of the command's session runs any more; a cancel or the time-out is late by
    twice `KILL_GRACE` at most. What even SIGKILL does not end by then (it hangs in the kernel, or is another user's) is
    logged and left.

    Returns:
        The exit code (128 + the signal's number where a signal ended it, as shells have it), or None if `seconds` were
        not enough.

    Raises:
        OSError: It could not be started.
    """
    process = await trio.lowlevel.open_process(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        with trio.move_on_after(seconds):
            await _attend(process, sink)
        code = process.returncode
    finally:
        await end_session(process)
    return 128 - code if code is not None and code < 0 else code


async def _attend(process: trio.Process, sink: Callable[[bytes], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, process, sink)
        await process.wait()
        nursery.cancel_scope.deadline = trio.current_time() + DRAIN


async def _pump(process: trio.Process, sink: Callable[[bytes], None]) -> None:
    assert process.stdout is not None
    async with process.stdout as stdout:
        async for data in stdout:
            sink(bytes(data))


async def end_session(process: trio.Process) -> None:
    """End all that runs in the session of `process`: politely, then not. Shielded; takes twice `KILL_GRACE` at most."""
    with trio.CancelScope(shield=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with trio.move_on_after(KILL_GRACE):
                await _end(process, number)
                return
        logger.error("the session of process %d still runs %g s after SIGKILL", process.pid, KILL_GRACE)


async def _end(process: trio.Process, number: signal.Signals) -> None:
    """Send a signal to each process group of the session, to later ones as they appear, until nothing is left of it."""
    told: set[int] = set()
    while True:
        exited = process.poll() is not None  # this also collects it: as a zombie it would keep its group
        groups = _groups(process.pid)
        if exited and not groups:
            return
        for group in groups - told:
            _signal(group, number)
        told |= groups
        await trio.sleep(_POLL)  # the kernel tells of the end of children, not of their children


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # it ended meanwhile, or has become another user's
        return False
    return True


def _groups(session: int) -> set[int]:
    """Return the process groups of a session in which something runs; zombies do not. Without /proc: its first group."""
    try:
        with os.scandir(_PROC) as entries:
            pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    except FileNotFoundError:
        return {session} if _signal(session, 0) else set()
    return {group for pid in pids if (group := _group_in(pid, session)) is not None}


def _group_in(pid: int, session: int) -> int | None:
    try:
        if os.getsid(pid) != session:
            return None
        state = Path(_PROC, str(pid), "stat").read_bytes().rpartition(b")")[2].split()[0]
        return os.getpgid(pid) if state not in b"ZX" else None
    except (ProcessLookupError, FileNotFoundError):
        return None
