"""
A child process that is started by the thread of the event loop.

`trio.lowlevel.open_process` starts children from a worker thread, which Trio ends when it has been idle for ten seconds. Linux
counts that as the death of the parent: a child that asked to die with its parent (PR_SET_PDEATHSIG, `bwrap
--die-with-parent`) dies then, in the middle of its work. The loop's thread lives as long as the run. To start a child from it holds
the loop up for the millisecond that fork and exec take.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Any

import attrs
import trio


@attrs.define(eq=False)
class Spawned:
    """What is needed here of `trio.Process`, by the same names; for Linux. Close it when it has ended."""

    stdout: trio.lowlevel.FdStream
    _popen: subprocess.Popen[bytes]
    _descriptor: int

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None as long as it runs."""
        return self._popen.poll()

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self._popen.poll()

    async def wait(self) -> None:
        """Wait until it has ended."""
        while self.poll() is None:
            await trio.lowlevel.wait_readable(self._descriptor)

    def close(self) -> None:
        """Let its descriptor go."""
        os.close(self._descriptor)


def spawn(argv: list[str], **options: Any) -> Spawned:
    """
    Start a process whose output can be read; its input is empty, its session its own.

    Args:
        argv: Program and arguments.
        **options: For `subprocess.Popen` (Any, as they are its).
    """
    with contextlib.ExitStack() as always, contextlib.ExitStack() as on_failure:
        ours, its = os.pipe()
        always.callback(os.close, its)
        on_failure.callback(os.close, ours)
        popen = subprocess.Popen(  # noqa: S603 - to run commands is what it is for
            argv, stdin=subprocess.DEVNULL, stdout=its, stderr=its, start_new_session=True, **options
        )
        on_failure.callback(popen.wait)
        on_failure.callback(popen.kill)
        spawned = Spawned(trio.lowlevel.FdStream(ours), popen, os.pidfd_open(popen.pid))
        on_failure.pop_all()
        return spawned
