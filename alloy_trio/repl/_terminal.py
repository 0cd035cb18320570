"""A person at a screen, for Trio: what a conversation needs of it, and what the view of a request does."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Final

import trio

from .._background import Background
from ._keys import Key, Line
from ._live import LiveView
from ._markdown import render
from ._text import BOLD, DIM, harmless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prompt_toolkit.completion import Completer

    from ._screen import Screen

_FRAME: Final = 1 / 12  # seconds between two drawings of what goes on
_MOST_LINES: Final = 2000  # typed ahead, and not taken yet
_LONG_ECHO: Final = 2000  # characters of what was typed that are shown again …
_ECHO: Final = 12  # … and lines
_LONG_CLIP: Final = 100_000  # characters that terminals take for their clipboard
_ROOM: Final = 8  # rows below what goes on: prompt, completions, status line


class Terminal:
    """
    A screen with a person at it, used inside `open_terminal`.

    Attributes:
        directory: Where tools work.
        is_unfolded: Whether what is long is shown all the same.
    """

    def __init__(self, screen: Screen, directory: Path) -> None:
        self.directory = directory
        self.is_unfolded = False
        self._screen = screen
        self._live: Callable[[], str] | None = None  # draws what goes on just now
        self._going = trio.Event()  # something goes on
        self._view: LiveView | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._keys, self._typed = trio.open_memory_channel[Line | Key](_MOST_LINES)

    # What a conversation needs

    async def receive(self) -> Line | Key:
        """Wait for a line, or a key."""
        while (what := await self._typed.receive()) is Key.UNFOLD:
            await self._unfold()
        return what

    async def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        """Say what is asked for, from now on."""
        await trio.lowlevel.checkpoint()
        self._screen.prompt(text, fill, about)

    async def echo(self, line: str) -> None:
        """Show a line that was typed: it leaves the place where it was."""
        first, *rest = harmless(line[:_LONG_ECHO]).split("\n")
        shown = [f"> {first}", *(f"  {each}" for each in rest[: _ECHO - 1])]
        cut = len(line) > _LONG_ECHO or len(rest) >= _ECHO
        await self.print(self.style("\n".join(shown), BOLD))
        if cut:
            await self.say(f"  … {len(line):,} characters", dim=True)

    async def say(self, text: str, *, dim: bool = False) -> None:
        """Show lines of ours, in which there may be names that are not."""
        text = harmless(text)
        await self.print(self.style(text, DIM) if dim else text)

    async def copy(self, text: str) -> bool:
        """Put a text on the clipboard, by the escape code for it (OSC 52), which most terminals obey."""
        data = base64.b64encode(text.encode()).decode()
        if len(data) > _LONG_CLIP:
            return False
        await self._write(f"\x1b]52;c;{data}\x07")
        return True

    def view(self) -> LiveView:
        """Return what shows a request."""
        self._view = LiveView(self)
        return self._view

    def show_status(self, text: str) -> None:
        """Show a line at the foot."""
        self._screen.show_status(harmless(text))

    def complete_with(self, completer: Completer) -> None:
        """Complete what is typed by this."""
        self._screen.complete_with(completer)

    # What a view needs

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return self._screen.size.columns

    @property
    def room(self) -> int:
        """How many lines may be drawn again and again."""
        return max(self._screen.size.rows - _ROOM, 1)

    def style(self, text: str, code: int) -> str:
        """Put a text into a style, line by line; a color only where there are any."""
        if not text or (code >= 30 and not self._screen.color):  # noqa: PLR2004 - where the codes of colors begin
            return text
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in text.split("\n"))

    def markdown(self, text: str) -> str:
        """Draw Markdown, as wide as the terminal is now."""
        return render(text, self.columns, color=self._screen.color)

    async def print(self, text: str) -> None:
        """Show lines for good, above what goes on."""
        await self._write(f"{text}\n".replace("\n", "\r\n"))

    def draw(self, live: Callable[[], str] | None) -> None:
        """Draw what goes on just now, by a function that is called several times a second; None if nothing does."""
        self._live = live
        if live is not None:
            self._going.set()
        else:
            self._going = trio.Event()
        self._redraw()

    async def keep_drawing(self) -> None:
        """Draw what goes on, again and again."""
        while True:
            await self._going.wait()
            self._redraw()
            await trio.sleep(_FRAME)

    def _redraw(self) -> None:
        self._screen.draw("" if self._live is None else self._live())

    async def _unfold(self) -> None:
        self.is_unfolded = not self.is_unfolded
        if self.is_unfolded and self._view is not None:
            await self._view.unfold()
        said = "nothing is folded from here on: Ctrl-O" if self.is_unfolded else "what is long is folded again"
        await self.say(said, dim=True)

    async def _write(self, text: str) -> None:
        done = trio.Event()
        self._screen.write(text, lambda: self._soon(done.set))
        await done.wait()

    def take(self, what: Line | Key) -> None:
        """Take what the person does, in whatever thread."""
        self._soon(lambda: self._tell(what))

    def _tell(self, what: Line | Key) -> None:
        with contextlib.suppress(trio.WouldBlock):  # somebody leans on the keyboard
            self._keys.send_nowait(what)

    def _soon(self, fn: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(fn)


@contextlib.asynccontextmanager
async def open_terminal(screen: Screen, directory: Path) -> AsyncIterator[Terminal]:
    """Have the terminal of a screen, as long as the body runs; behind that it is as it was."""
    terminal = Terminal(screen, directory)
    screen.connect(terminal.take)
    life = Background(terminal.keep_drawing)
    try:
        async with life:
            yield terminal
    finally:
        screen.close()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(screen.join)
    if life.error is not None:
        raise life.error
