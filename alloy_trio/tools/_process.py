"""
Child processes that leave nothing behind.

A command runs as the leader of a session of its own. To end it is to end the session: the shell, its pipelines, what it
put into the background, and what moved to another process group within the session, as `timeout` and job control do.
What opens a session for itself (`setsid`, a daemon) is found, where there is /proc, by a mark in its environment that the
command was started with. Only what does both, leaves the session and drops its environment, gets away; to hold that one
takes a sandbox, whose first process takes all others with it.

All this ends with the command, however that ends: on its own, at its deadline, or by a cancel. Output comes
through one pipe, so that both streams are in the order of time, and is read all along: a child never waits for us. A child in
the background may hold that pipe open after the shell has exited, so that the end of the output is not waited for long.
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import logging
import os
import select
import signal
import subprocess
import uuid
from typing import TYPE_CHECKING

import attrs
import trio

from .._util import Discreet
from ._spawn import Spawned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger("alloy_trio.tools")

KILL_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL, and as many after it at most."""

DRAIN = 0.3
"""Seconds that are left for output after the command itself has exited."""

_POLLS = (0.001, 0.002, 0.005, 0.01)  # the last again and again
_PROC = "/proc"
_LOOKS = 30
_MARK_ROOM = 100
_MARK = "ALLOY_TRIO_COMMAND"


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


@attrs.define
class Command:
    """
    A command that runs, and all that it has started.

    Attributes:
        process: What was started first.
        mark: What the environment of all that it starts has in it.
        first: Of a sandbox, a descriptor (pidfd) of its first process, with which all in it end; `process` stands
            outside and waits for it.
        code: Its exit code, if it has ended by itself: 128 + the signal's number where a signal ended it.
    """

    process: trio.Process | Spawned
    mark: str
    first: int | None = None
    code: int | None = None


def marked(env: Mapping[str, str]) -> tuple[str, Discreet[str]]:
    """Return a mark for a command, and `env` with it; a command within a command has the marks of both."""
    mark = uuid.uuid4().hex
    return mark, Discreet({**env, _MARK: f"{os.environ.get(_MARK, '')} {mark}".strip()})


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

    Whether this returns or raises, nothing of the command's session runs any more, nor anything else that has its
    mark; a cancel or the time-out is late by twice `KILL_GRACE` at most. What even SIGKILL does not end by then (it
    hangs in the kernel, or is another user's) is logged and left.

    Returns:
        The exit code (128 + the signal's number where a signal ended it, as shells have it), or None if `seconds` were
        not enough.

    Raises:
        OSError: It could not be started.
    """
    mark, env = marked(env)
    process = await trio.lowlevel.open_process(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    command = Command(process, mark)
    try:
        with trio.move_on_after(seconds):
            await attend(command, sink)
    finally:
        await end(command)
    return command.code


async def attend(command: Command, sink: Callable[[bytes], None]) -> None:
    """
    Hand on what a command writes until it has exited, and a little longer.

    Its code is taken here, as it exits: after a cancel it may be that of a program that found its output closed.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, command.process, sink)
        await command.process.wait()
        code = command.process.returncode
        command.code = 128 - code if code is not None and code < 0 else code
        nursery.cancel_scope.deadline = trio.current_time() + DRAIN


async def _pump(process: trio.Process | Spawned, sink: Callable[[bytes], object]) -> None:
    assert process.stdout is not None
    async for data in process.stdout:
        sink(bytes(data))


async def end(command: Command) -> None:
    """
    End all that a command has started: politely, then not. Shielded; takes twice `KILL_GRACE` at most.

    Its output is read until then, and dropped: what cleans up may say so, and a closed pipe would end it at once.
    """
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, command.process, len)
            await _end_by_signals(command)
            nursery.cancel_scope.cancel()
        assert command.process.stdout is not None
        await command.process.stdout.aclose()


async def _end_by_signals(command: Command) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with trio.move_on_after(KILL_GRACE):
            await _end(command, number)
            return
    logger.error("what process %d has started still runs %g s after SIGKILL", command.process.pid, KILL_GRACE)


async def _end(command: Command, number: signal.Signals) -> None:
    """
    Send a signal to each process group of a command, to later ones as they appear, until nothing is left of it.

    SIGTERM is sent once to each, and not to what stands outside of a sandbox, which would take the sandbox with it at
    once. SIGKILL is sent again and again: something that forks all along may be in a group that we have seen before.
    """
    told = {command.process.pid} if command.first is not None and number == signal.SIGTERM else set[int]()
    for pause in itertools.chain(_POLLS, itertools.repeat(_POLLS[-1])):
        exited = command.process.poll() is not None  # this also collects it: as a zombie it would keep its group
        if exited or number == signal.SIGKILL:
            _kill_first(command.first)
        left = not exited or not _has_ended(command.first)
        for group in _groups(command.process.pid, command.mark):  # each is told as soon as it is found
            left = True
            if group not in told:
                _signal(group, number)
            if number == signal.SIGTERM:
                told.add(group)
        if not left:
            return
        await trio.sleep(pause)  # the kernel tells of the end of children, not of their children


def _kill_first(first: int | None) -> None:
    if first is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(first, signal.SIGKILL)


def _has_ended(first: int | None) -> bool:
    """Return whether the first process of a sandbox has ended, which it does after all others in it."""
    if first is None:
        return True
    poll = select.poll()  # `select.select` fails at descriptors from 1024
    poll.register(first, select.POLLIN)
    return bool(poll.poll(0))


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # it ended meanwhile, or has become another user's
        return False
    return True


def _groups(session: int, mark: str) -> Iterator[int]:
    """
    Yield the process groups of a command in which something runs; zombies do not. One may come several times.

    Those of its session, and those of processes with its mark. Without /proc, or a descriptor to read it by: the
    session's first group.

    While we look, one may fork and exit, and its child not be in the list that we had. So we look again at what is new
    until nothing is: a process that then lives was in a list, and has been looked at, unless numbers came round. What
    forks faster than that is bounded here, and found by the next look.
    """
    token, seen = mark.encode(), set[str]()
    try:
        for _ in range(_LOOKS):
            new = set(filter(str.isdigit, os.listdir(_PROC))) - seen  # noqa: PTH208 - names are all that is needed
            if not new:
                return
            yield from (group for each in new if (group := _group_in(int(each), session, token)) is not None)
            seen |= new
    except OSError:
        yield from [session] if _signal(session, 0) else []


def _group_in(pid: int, session: int, token: bytes) -> int | None:
    try:
        if os.getsid(pid) != session:
            return os.getpgid(pid) if token in _read(f"{_PROC}/{pid}/environ") else None
        state = _read(f"{_PROC}/{pid}/stat").rpartition(b")")[2].split()[0]
        return os.getpgid(pid) if state not in b"ZX" else None
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return None


def _read(path: str) -> bytes:
    """Return what a file of /proc has: of all processes, several times, so without what `open` does besides."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)
