"""
A terminal that is redrawn: what is finished scrolls up for good; below it what goes on just now, the prompt, a status line.

Drawn by prompt_toolkit, which is a program of asyncio's and runs in a thread of its own. It is the only one that writes to the
terminal: between two lines of ours it wipes its part, writes, and draws it again. The terminal stays in raw mode all the while,
so a key pressed in the middle of an answer is never echoed into it, and Ctrl-C is a key.
"""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI, merge_formatted_text
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from .._background import Background
from ._front import Key
from ._live import LiveView
from ._markdown import render
from ._places import history_file, private_folder
from ._show import BOLD, DIM, clip, harmless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from prompt_toolkit.completion import Completer
    from prompt_toolkit.formatted_text import AnyFormattedText
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyPressEvent

_FRAME: Final = 1 / 12  # seconds between two drawings of what goes on
_MOST_LINES: Final = 2000  # typed ahead, and not taken yet
_LONG_PASTE: Final = 2000  # characters; a longer one is shown as a placeholder
_ECHO: Final = 12  # lines of what was typed that are shown again
_LONG_CLIP: Final = 100_000  # characters that terminals take for their clipboard
_ROOM: Final = 8  # rows below what goes on: prompt, completions, status line
_STYLE: Final = {"foot": "ansibrightblack", "prompt": "bold"}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Unfold:
    """A key that is the terminal's own matter."""


_UNFOLD: Final = _Unfold()


class Terminal:
    """
    The terminal of this process, used inside `open_terminal`.

    Attributes:
        directory: Where tools work.
        is_unfolded: Whether what is long is shown all the same.
    """

    def __init__(self, *, color: bool, directory: Path) -> None:
        self.color = color
        self.directory = directory
        self.is_unfolded = False
        self._live: Callable[[], str] | None = None  # draws what goes on just now
        self._drawn: AnyFormattedText = ""
        self._height = 0
        self._going = trio.Event()  # something goes on
        self._prompt = "> "
        self._status = ""
        self._view: LiveView | None = None
        self._pasted: dict[str, str] = {}
        self._token = trio.lowlevel.current_trio_token()
        self._keys, self._typed = trio.open_memory_channel[str | Key | _Unfold](_MOST_LINES)
        self._waiting: set[trio.Event] = set()
        self._has_ended = False
        self._session: PromptSession[str] = self._make_session()

    # What a conversation needs

    async def receive(self) -> str | Key:
        """Wait for a line, or a key."""
        while (what := await self._typed.receive()) is _UNFOLD:
            await self._unfold()
        return what  # type: ignore[return-value] # but for that one

    async def prompt(self, text: str, fill: str = "") -> None:
        """Say what is asked for, from now on."""
        await trio.lowlevel.checkpoint()
        self._prompt = text
        if fill:
            self._call(partial(self._fill, fill))
        self._session.app.invalidate()

    async def echo(self, line: str) -> None:
        """Show a line that was typed: it leaves the place where it was."""
        first, *rest = harmless(line[:_LONG_PASTE]).split("\n")
        shown = [f"> {first}", *(f"  {each}" for each in rest[: _ECHO - 1])]
        cut = len(line) > _LONG_PASTE or len(rest) >= _ECHO
        await self.print(self.style("\n".join(shown), BOLD))
        if cut:
            await self.say(f"  … {len(line):,} characters", dim=True)

    async def say(self, text: str, *, dim: bool = False) -> None:
        """Show lines of ours."""
        await self.print(self.style(text, DIM) if dim else text)

    async def show_markdown(self, text: str) -> None:
        """Show a text of the model's."""
        await self.print(self.markdown(harmless(text)))

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
        self._status = text
        self._session.app.invalidate()

    # What a view needs

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        return shutil.get_terminal_size().columns

    @property
    def room(self) -> int:
        """How many lines may be drawn again and again."""
        return max(shutil.get_terminal_size().lines - _ROOM, 1)

    def style(self, text: str, code: int) -> str:
        """Put a text into a style, line by line; a color only where there are any."""
        if not text or (code >= 30 and not self.color):  # noqa: PLR2004 - where the codes of colors begin
            return text
        return "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in text.split("\n"))

    def markdown(self, text: str) -> str:
        """Draw Markdown, as wide as the terminal is now."""
        return render(text, self.columns, color=self.color)

    async def print(self, text: str) -> None:
        """Show lines for good, above what goes on."""
        await self._write(f"{text}\n".replace("\n", "\r\n"))

    async def _unfold(self) -> None:
        self.is_unfolded = not self.is_unfolded
        if self.is_unfolded and self._view is not None:
            await self._view.unfold()
        await self.say(
            "nothing is folded from here on: Ctrl-O" if self.is_unfolded else "what is long is folded again", dim=True
        )

    def draw(self, live: Callable[[], str] | None) -> None:
        """Draw what goes on just now, by a function that is called several times a second; None if nothing does."""
        self._live = live
        if live is not None:
            self._going.set()
        else:
            self._going = trio.Event()
        self._redraw()

    def _redraw(self) -> None:
        text = "" if self._live is None else self._live()
        height = text.count("\n") + bool(text)
        self._drawn = ANSI(f"{text}\n") if text else ""
        if height < self._height:  # else prompt_toolkit would keep the rows, empty, between prompt and status line
            self._call(self._session.app.renderer.erase)
        self._height = height
        self._session.app.invalidate()

    async def _tick(self) -> None:
        while True:
            await self._going.wait()
            self._redraw()
            await trio.sleep(_FRAME)

    # The thread

    async def serve(self) -> None:
        """Draw, until cancelled; returns once the terminal is as it was."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leave_when_cancelled)
            nursery.start_soon(self._tick)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._run)
            nursery.cancel_scope.cancel()

    async def _leave_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._call(self._exit)

    def _exit(self) -> None:
        if self._session.app.is_running:
            self._session.app.exit(result="")

    def _run(self) -> None:
        try:
            with contextlib.suppress(EOFError):
                self._session.prompt(self._message, handle_sigint=False, set_exception_handler=False)
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def _end(self) -> None:
        self._has_ended = True
        self._tell(Key.END)
        for event in self._waiting:
            event.set()

    def _call(self, fn: Callable[[], object]) -> bool:
        """Have something done in the thread that draws. Returns False if it has ended."""
        app = self._session.app
        if self._has_ended or app.loop is None or app.context is None:
            return False
        try:
            app.loop.call_soon_threadsafe(fn, context=app.context.copy())
        except RuntimeError:  # it ends just now
            return False
        return True

    async def _write(self, text: str) -> None:
        done = trio.Event()
        self._waiting.add(done)
        if self._call(partial(self._write_now, text, done)):
            await done.wait()
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
            await trio.lowlevel.checkpoint()
        self._waiting.discard(done)

    def _write_now(self, text: str, done: trio.Event) -> None:
        app = self._session.app
        try:
            app.renderer.erase()
            app.output.write_raw(text)
            app.output.flush()
            app.invalidate()
        finally:
            self._token.run_sync_soon(done.set)

    def _tell(self, what: str | Key | _Unfold) -> None:
        with contextlib.suppress(trio.WouldBlock):  # somebody leans on the keyboard
            self._keys.send_nowait(what)

    def _send(self, what: str | Key | _Unfold) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell, what)

    # The line that is typed: all of this is called by prompt_toolkit, in its thread

    def _make_session(self) -> PromptSession[str]:
        output = create_output(stdout=sys.stdout)
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False  # the prompt stands right below the text, not at the foot of the screen
        session = PromptSession[str](
            multiline=True,
            history=_history(),
            key_bindings=self._bindings(),
            prompt_continuation="  ",
            complete_while_typing=Condition(self._may_complete),
            reserve_space_for_menu=4,
            color_depth=None if self.color else ColorDepth.DEPTH_1_BIT,
            style=Style.from_dict(_STYLE),
            erase_when_done=True,
            output=output,
        )
        # Not the session's own toolbar: that one waits for the terminal to report its cursor.
        foot = Window(FormattedTextControl(self._foot), height=1, style="class:foot", dont_extend_height=True)
        session.app.layout = Layout(HSplit([session.layout.container, foot]), focused_element=session.default_buffer)
        return session

    def complete_with(self, completer: Completer) -> None:
        """Complete what is typed by this."""
        self._session.completer = completer

    def _foot(self) -> str:
        return clip(self._status, self.columns - 1)

    def _may_complete(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") or "@" in text

    def _message(self) -> AnyFormattedText:
        return merge_formatted_text([self._drawn, [("class:prompt", self._prompt)]])

    def _fill(self, text: str) -> None:
        buffer = self._session.default_buffer
        buffer.text = text
        buffer.cursor_position = len(text)

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        is_searching = Condition(lambda: get_app().layout.is_searching)

        @bindings.add("enter", filter=~is_searching)
        def _(_: KeyPressEvent) -> None:
            self._submit()

        @bindings.add("escape", "enter")
        @bindings.add("c-j")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @bindings.add("c-c", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text and self._live is None:
                event.current_buffer.reset()
            else:
                self._send(Key.INTERRUPT)

        @bindings.add("c-d", filter=Condition(lambda: not get_app().current_buffer.text))
        def _(_: KeyPressEvent) -> None:
            self._send(Key.END)

        @bindings.add("c-o")
        def _(_: KeyPressEvent) -> None:
            self._send(_UNFOLD)

        @bindings.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(self._paste(event.data))

        return bindings

    def _submit(self) -> None:
        buffer = self._session.default_buffer
        text = buffer.text
        for placeholder, pasted in self._pasted.items():
            text = text.replace(placeholder, pasted)
        buffer.append_to_history()
        buffer.reset()
        self._send(text)

    def _paste(self, data: str) -> str:
        """Return what a pasted text becomes in the line: itself, without control characters, or a name for it."""
        text = _CONTROL.sub("", data.replace("\r\n", "\n").replace("\r", "\n"))
        if len(text) <= _LONG_PASTE:
            return text
        name = f"[pasted {len(self._pasted) + 1}: {len(text):,} characters]"
        self._pasted[name] = text
        return name


def _history() -> History:
    try:
        private_folder(history_file().parent)
        return FileHistory(str(history_file()))
    except OSError:  # a home that cannot be written: what was typed is known until the end
        return InMemoryHistory()


@contextlib.asynccontextmanager
async def open_terminal(*, color: bool, directory: Path) -> AsyncIterator[Terminal]:
    """Have the terminal, as long as the body runs; behind that it is as it was."""
    terminal = Terminal(color=color, directory=directory)
    life = Background(terminal.serve)
    async with life:
        yield terminal
    if life.error is not None:
        raise life.error
