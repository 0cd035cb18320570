"""
The screen of a conversation: what is finished scrolls up for good; below it what goes on just now, the prompt, a status line.

Drawn by prompt_toolkit, which is a program of asyncio's and runs in a thread of its own. It is the only one that writes to the
terminal: between two lines of ours it wipes its part, writes, and draws it again. The terminal stays in raw mode all the while,
so a key pressed in the middle of an answer is never echoed into it, and Ctrl-C is a key.

It knows neither Trio nor agents, and so can stand before they are loaded: what is typed until then is kept.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI, merge_formatted_text
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.processors import ConditionalProcessor, Processor, Transformation, TransformationInput
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.defaults import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from ._keys import Key, Line
from ._places import history_file, private_folder
from ._text import clip, marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.formatted_text import AnyFormattedText
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyPressEvent

_LONG_PASTE: Final = 2000  # characters; a longer one is shown as a placeholder
_LONG_LINE: Final = 20_000  # characters; a longer one is not kept in the history
_STARTS_WITHIN: Final = 5.0  # seconds
_STYLE: Final = {"foot": "ansibrightblack", "prompt": "bold"}
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """
    The terminal of this process. Its methods may be called from any thread, and return at once.

    Attributes:
        color: Whether there are colors.
    """

    def __init__(self, *, color: bool) -> None:
        self.color = color
        self._drawn: AnyFormattedText = ""
        self._height = 0
        self._prompt = "> "
        self._about = ""  # what the prompt is about, …
        self._seen = ""  # … the one that stands on the screen, …
        self._begun: str | None = None  # … and the one under which the line was begun
        self._status = ""
        self._pasted: dict[str, str] = {}
        self._receive: Callable[[Line | Key], None] | None = None
        self._early: list[Line | Key] = []  # what was done before anybody listened
        self._lock = threading.Lock()
        self._pending: set[Callable[[], None]] = set()
        self._is_ready = threading.Event()
        self._has_ended = False
        self._session = self._make_session()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)

    def start(self) -> None:
        """Draw, from now on until `close`."""
        self._thread.start()

    def connect(self, receive: Callable[[Line | Key], None]) -> None:
        """Pass lines and keys on: those that were early at once, the others from the thread that draws. `Key.END` is the last."""
        with self._lock:
            early, self._early = self._early, []
            self._receive = receive
            for what in early:
                receive(what)

    @property
    def size(self) -> Size:
        """How large the terminal is now, whatever COLUMNS and LINES in the environment say."""
        return self._session.output.get_size()

    def complete_with(self, completer: Completer) -> None:
        """Complete what is typed by this."""
        self._session.completer = completer

    def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        """Say what is asked for, and put a text there to be edited."""
        self._prompt, self._about = text, about
        if fill:
            self._call(partial(self._fill, fill))
        self._session.app.invalidate()

    def show_status(self, text: str) -> None:
        """Show a line at the foot."""
        self._status = text
        self._session.app.invalidate()

    def draw(self, text: str) -> None:
        """Draw what goes on just now, instead of what did."""
        height = text.count("\n") + bool(text)
        self._drawn = ANSI(f"{text}\n") if text else ""
        if height < self._height:  # else prompt_toolkit would keep the rows, empty, between prompt and status line
            self._call(self._session.app.renderer.erase)
        self._height = height
        self._session.app.invalidate()

    def write(self, text: str, done: Callable[[], None]) -> None:
        """Write for good, above what goes on, and call `done` then, from another thread or from this one."""
        with self._lock:
            self._pending.add(done)
        if not self._call(partial(self._write_now, text, done)):
            sys.stdout.write(text.replace("\r\n", "\n"))
            sys.stdout.flush()
            self._settle(done)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._call(self._exit)

    def join(self, seconds: float | None = None) -> None:
        """Wait until that is done."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    # The thread that draws

    def _run(self) -> None:
        try:
            with contextlib.suppress(EOFError):
                self._session.prompt(
                    self._message, pre_run=self._is_ready.set, handle_sigint=False, set_exception_handler=False
                )
        finally:
            self._has_ended = True
            self._is_ready.set()
            self._tell(Key.END)
            for done in list(self._pending):
                self._settle(done)

    def _exit(self) -> None:
        if self._session.app.is_running:
            self._session.app.exit(result="")

    def _call(self, fn: Callable[[], object]) -> bool:
        """Have something done in the thread that draws. Returns False if it has ended."""
        app = self._session.app
        self._is_ready.wait(_STARTS_WITHIN)
        if self._has_ended or app.loop is None or app.context is None:
            return False
        try:
            app.loop.call_soon_threadsafe(fn, context=app.context.copy())
        except RuntimeError:  # it ends just now
            return False
        return True

    def _write_now(self, text: str, done: Callable[[], None]) -> None:
        app = self._session.app
        try:
            app.renderer.erase()
            app.output.write_raw(text)
            app.output.flush()
            app.invalidate()
        finally:
            self._settle(done)

    def _settle(self, done: Callable[[], None]) -> None:
        with self._lock:
            if done not in self._pending:
                return
            self._pending.discard(done)
        done()

    def _tell(self, what: Line | Key) -> None:
        with self._lock:
            if self._receive is None:
                self._early.append(what)
            else:
                self._receive(what)

    # The line that is typed

    def _make_session(self) -> PromptSession[str]:
        output = create_output(stdout=sys.stdout)
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False  # the prompt stands right below the text, not at the foot of the screen
        session = PromptSession[str](
            multiline=True,
            history=_history(),
            key_bindings=self._bindings(),
            input_processors=[ConditionalProcessor(_Marks(), Condition(lambda: bool(self._about)))],
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
        session.default_buffer.on_text_changed += self._on_text
        session.app.layout = Layout(HSplit([session.layout.container, foot]), focused_element=session.default_buffer)
        return session

    def _foot(self) -> str:
        return clip(self._status, self.size.columns - 1)

    def _may_complete(self) -> bool:
        text = self._session.default_buffer.text
        return text.startswith("/") or "@" in text

    def _message(self) -> AnyFormattedText:
        self._seen = self._about
        return merge_formatted_text([self._drawn, [("class:prompt", self._prompt)]])

    def _fill(self, text: str) -> None:
        buffer = self._session.default_buffer
        self._begun = self._about
        buffer.text = text
        buffer.cursor_position = len(text)

    def _on_text(self, buffer: Buffer) -> None:
        if not buffer.text:
            self._begun = None
        elif self._begun is None:
            self._begun = self._seen

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
            if event.current_buffer.text and not self._height:
                event.current_buffer.reset()
            else:
                self._tell(Key.INTERRUPT)

        @bindings.add("c-d", filter=Condition(lambda: not get_app().current_buffer.text))
        def _(_: KeyPressEvent) -> None:
            self._tell(Key.END)

        @bindings.add("c-o")
        def _(_: KeyPressEvent) -> None:
            self._tell(Key.UNFOLD)

        @bindings.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(self._paste(event.data))

        return bindings

    def _submit(self) -> None:
        buffer = self._session.default_buffer
        line = Line(self._whole(buffer.text), self._seen if self._begun is None else self._begun)
        if (
            line.text
            and len(line.text) <= _LONG_LINE
            and line.text != next(iter(buffer.history.get_strings()[-1:]), None)
        ):
            buffer.history.append_string(line.text)
        buffer.reset()
        self._begun = None
        self._tell(line)

    def _whole(self, text: str) -> str:
        for placeholder, pasted in self._pasted.items():
            text = text.replace(placeholder, pasted)
        return text

    def _paste(self, data: str) -> str:
        """Return what a pasted text becomes in the line: itself, without control characters, or a name for it."""
        text = _CONTROL.sub("", data.replace("\r\n", "\n").replace("\r", "\n"))
        if len(text) <= _LONG_PASTE:
            return text
        name = f"[pasted {len(self._pasted) + 1}: {len(text):,} characters]"
        self._pasted[name] = text
        return name


class _Marks(Processor):
    """While a person edits what a call is to run with, shows what the model has put there that nobody would see."""

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        return Transformation([(style, marked(text)) for style, text, *_ in transformation_input.fragments])


def _history() -> History:
    try:
        private_folder(history_file().parent)
        return FileHistory(str(history_file()))
    except OSError:  # a home that cannot be written: what was typed is known until the end
        return InMemoryHistory()
