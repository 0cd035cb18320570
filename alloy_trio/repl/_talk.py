"""
A conversation on a terminal, line by line, and the reading of standard input.

Ctrl-C stops the answer that is under way and nothing else; at the prompt it leaves. An error ends its answer only.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
from functools import partial
from typing import TYPE_CHECKING, TextIO

import trio

from .._background import Background
from .._errors import AlloyError, InvalidOption
from .._run import interruptible
from .._session import Session
from ._show import DIM, Output, Screen, explain, say_cancelled, shortfall, show_run

if TYPE_CHECKING:
    from typing import Unpack

    from .._options import RunOptions

_CHUNK = 1 << 16
_MAX_INPUT = 8 << 20  # bytes of standard input that become a prompt
_PATIENCE = 3.0  # seconds to wait for standard input in silence
_LEAVE = {"/quit", "/exit"}
_HELP = "/quit or Ctrl-D leaves, Ctrl-C stops an answer"


class Input:
    """
    Standard input.

    It is read by its descriptor, in a thread that a cancel leaves behind. A thread left behind inside `sys.stdin` would hold a
    lock that the interpreter wants as it ends.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self.terminal = file is not None and file.isatty()
        self._rest = b""
        self._descriptor: int | None = None
        if os.name == "posix":  # elsewhere, the bytes of a terminal are not UTF-8
            with contextlib.suppress(OSError, AttributeError):
                self._descriptor = None if file is None else file.fileno()

    async def line(self) -> str | None:
        """Return the next line, without its end; None at the end of the input."""
        while b"\n" not in self._rest:
            if not (chunk := await self._read()):
                break
            self._rest += chunk
        line, end, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace") if line or end else None

    async def text(self, err: Output, *, needed: bool) -> str:
        """
        Return all of it. Where nothing comes for some seconds, say so on `err`, and go on without it unless it is `needed`.

        Many a program starts others with an input that it never writes to and never closes.

        Raises:
            InvalidOption: It is too large, or cannot be read.
        """

        async def say_so() -> None:
            await trio.sleep(_PATIENCE if needed else math.inf)
            await err.write("waiting for the end of standard input, which is the prompt\n")

        data = bytearray()
        async with Background(say_so):
            with trio.move_on_after(math.inf if needed else _PATIENCE) as silence:
                chunk = await self._read()
                silence.deadline = math.inf
                while chunk:
                    data += chunk
                    if len(data) > _MAX_INPUT:
                        raise InvalidOption(f"standard input is longer than {_MAX_INPUT:,} bytes: give less of it")
                    chunk = await self._read()
        if silence.cancelled_caught:
            await err.write(f"nothing came on standard input for {_PATIENCE:g} s: going on without it\n")
        return data.decode("utf-8-sig", "replace")

    async def _read(self) -> bytes:
        try:
            return await trio.to_thread.run_sync(self._read_now, abandon_on_cancel=True)
        except OSError as error:
            raise InvalidOption(f"standard input cannot be read: {error.strerror}") from error

    def _read_now(self) -> bytes:
        if self._descriptor is not None:
            return os.read(self._descriptor, _CHUNK)
        return b"" if self._file is None else self._file.readline().encode()


async def converse(stdin: Input, out: Output, err: Output, **options: Unpack[RunOptions]) -> int:
    """Ask for lines and answer them, in one session, until there are no more. Returns the exit status."""
    options["session"] = Session()
    await err.write(err.style(_HELP, DIM) + "\n")
    while True:
        await err.write("> ")
        try:
            line = await interruptible(stdin.line)
        except KeyboardInterrupt:
            await err.end_line()
            return 128 + signal.SIGINT
        if line is None:
            await err.end_line()
            return 0
        err.open_line = False  # the terminal has shown the end of the line
        line = line.strip()
        if line in _LEAVE:
            return 0
        if re.fullmatch(r"/\w+", line):
            await err.write(f"{line} is no command: {_HELP}\n")
        elif line:
            await _answer(line, out, err, options)


async def _answer(line: str, out: Output, err: Output, options: RunOptions) -> None:
    try:
        result = await interruptible(partial(show_run, line, Screen(out, err), **options))
    except KeyboardInterrupt:
        await say_cancelled(err)
    except AlloyError as error:
        await err.write(f"error: {explain(error)}\n")
    else:
        await err.write(f"{said}\n" if (said := shortfall(result)) else "")
