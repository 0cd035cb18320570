"""What a person came for: one answer, or a conversation, on whatever terminal there is."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import click

from .._errors import InvalidOption
from .._messages import Message
from ._conversation import Conversation
from ._front import Place
from ._library import Library, check_name, new_name
from ._places import sessions_folder
from ._plain import Input, open_plain
from ._setup import ASKED, Setup, choose_provider
from ._show import Output, Screen, shortfall, show_run
from ._text import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ._flags import Flags
    from ._front import Front
    from ._screen import Screen as Board
    from ._show import View

_HELP = "/help tells of commands and keys; Ctrl-D leaves"
_WITHOUT = "for editing, completion and Markdown: pip install 'alloy_trio[repl]'"


class Sitting:
    """One use of the program."""

    def __init__(
        self, flags: Flags, setup: Setup, stdin: Input, *, out: Output, err: Output, board: Board | None
    ) -> None:
        self._flags = flags
        self._setup = setup
        self._stdin = stdin
        self._out = out
        self._err = err
        self._board = board  # a screen that is drawn already

    async def answer(self, prompt: str, view: Callable[[], View]) -> int:
        """
        Have one question answered, and return the exit status. It asks before nothing, unless told to.

        Raises:
            AlloyError: What a run raises.
            OSError: The output is gone.
        """
        if self._is_kept or self._flags.approve:
            return await self._answer_in_conversation(prompt, view)
        with self._setup.budget or contextlib.nullcontext():
            result = await show_run(prompt, view(), **self._setup.options())
        if said := shortfall(result):
            await self._err.write(f"{said}\n")
        return 0 if result.status == "completed" else 1

    async def _answer_in_conversation(self, prompt: str, view: Callable[[], View]) -> int:
        self._setup.asked = set(ASKED) if self._flags.approve else set()
        async with open_plain(self._stdin, self._err, view) as front:
            conversation = self._conversation(front, once=True)
            return await conversation.hold(Place(self._name(), ask=Message.user(prompt)))

    async def converse(self, notice: str | None) -> int:
        """
        Hold a conversation, and return the exit status.

        Raises:
            InvalidOption: There is no session to resume.
            StoreError: The session cannot be opened.
            OSError: The terminal is gone.
        """
        name = self._name()
        if self._flags.approve is False:
            self._setup.asked = set()
        async with self._front(self._conversation) as conversation:
            if notice:
                await conversation.front.say(one_line(notice), dim=True)
            if self._board is None and self._out.styled and self._err.styled and not self._flags.no_color:
                await conversation.front.say(_WITHOUT, dim=True)
            await conversation.front.say(_HELP, dim=True)
            return await conversation.hold(Place(name))

    @contextlib.asynccontextmanager
    async def _front(self, conversation: Callable[[Front], Conversation]) -> AsyncIterator[Conversation]:
        """Open the screen that there is, or a terminal of lines, and hold a conversation on it."""
        if self._board is not None:
            from ._complete import LineCompleter  # noqa: PLC0415 - needs the extra
            from ._terminal import open_terminal  # noqa: PLC0415 - as above

            async with open_terminal(self._board, self._setup.directory) as terminal:
                made = conversation(terminal)
                terminal.complete_with(LineCompleter(lambda: made.setup, made.library))
                yield made
            return
        view = partial(Screen, self._out, self._err, self._setup.directory)
        async with open_plain(self._stdin, self._err, view) as plain:
            yield conversation(plain)

    def _conversation(self, front: Front, *, once: bool = False) -> Conversation:
        return Conversation(front, self._setup, Library(sessions_folder()), self._read_again, once=once)

    def _read_again(self) -> Setup:
        flags = self._flags.again()
        try:
            return Setup.of(flags, choose_provider(flags)[0])
        except click.UsageError as error:
            raise InvalidOption(error.format_message()) from error

    @property
    def _is_kept(self) -> bool:
        return self._flags.resume or self._flags.session is not None

    def _name(self) -> str:
        if self._flags.session is not None:
            return check_name(self._flags.session)
        if not self._flags.resume:
            return new_name()
        kept = Library(sessions_folder()).names()
        if not kept:
            raise InvalidOption("there is no session to resume: --session NAME begins one")
        return kept[0]
