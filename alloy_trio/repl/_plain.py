"""
A terminal that only takes lines, or none at all: no escape code is needed for it, and no package.

Lines are read all the while, so that what is typed in the middle of an answer steers it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from typing import TYPE_CHECKING, TextIO

import trio

from .._background import Background
from .._errors import InvalidOption
from .._util import single
from ._keys import Key, Line
from ._text import DIM, harmless, visible

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._show import Output, View

_CHUNK = 1 << 16
_MAX_INPUT = 8 << 20  # bytes of standard input that become a prompt
_PATIENCE = 3.0  # seconds to wait for standard input in silence


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


class Plain:
    """A person at the other end of lines; used inside `open_plain`."""

    def __init__(self, stdin: Input, err: Output, view: Callable[[], View]) -> None:
        self._stdin = stdin
        self._err = err
        self._make_view = view
        self._about = ""
        self._keys, self._typed = trio.open_memory_channel[Line | Key](1)

    async def receive(self) -> Line | Key:
        """Wait for a line, or a signal."""
        try:
            return await self._typed.receive()
        except trio.EndOfChannel:
            return Key.END

    async def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        """Say what is asked for. Nothing can be filled in, so it is shown."""
        self._about = about
        await self._err.end_line()
        if self._stdin.terminal:
            await self._err.write(f"{visible(fill)}\n{text}" if fill else text)

    async def echo(self, line: str) -> None:
        """The terminal has shown it already, with the end of the line."""
        del line
        await trio.lowlevel.checkpoint()

    async def say(self, text: str, *, dim: bool = False) -> None:
        """Show lines of ours, in which there may be names that are not."""
        text = harmless(text)
        await self._err.end_line()
        await self._err.write((self._err.style(text, DIM) if dim else text) + "\n")

    async def copy(self, text: str) -> bool:
        """There is no clipboard."""
        del text
        await trio.lowlevel.checkpoint()
        return False

    def view(self) -> View:
        """Return what shows a request."""
        return self._make_view()

    def show_status(self, text: str) -> None:
        """There is no place for it."""

    async def read_lines(self) -> None:
        """Read lines and signals, until cancelled."""
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_lines)
                async for _ in signals:
                    self._err.open_line = True  # by the terminal's ^C
                    await self._keys.send(Key.INTERRUPT)

    async def _read_lines(self) -> None:
        while (line := await self._stdin.line()) is not None:
            self._err.open_line = False  # the terminal has shown the end of the line
            await self._keys.send(Line(line, self._about))  # where it was begun, nobody can tell
        await self._keys.send(Key.END)


@contextlib.asynccontextmanager
async def open_plain(stdin: Input, err: Output, view: Callable[[], View]) -> AsyncIterator[Plain]:
    """Read lines as long as the body runs."""
    plain = Plain(stdin, err, view)
    life = Background(plain.read_lines)
    async with life:
        yield plain
    if life.error is not None:
        raise single(life.error)
