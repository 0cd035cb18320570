"""What a conversation is held on: a terminal that is redrawn, or one that only takes lines; and where it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from .._messages import Message
from .._session import Session

if TYPE_CHECKING:
    from ._keys import Key, Line
    from ._show import View


class Front(Protocol):
    """A terminal with a person at it."""

    async def receive(self) -> Line | Key:
        """Wait for what the person does next: a line, or a key. The end of the input is `Key.END`, once."""
        ...

    async def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        """
        Say what is asked for, from now on; `fill` is what may be edited, where that can be.

        Lines that are begun under this prompt are `about` what it says.
        """
        ...

    async def echo(self, line: str) -> None:
        """Show a line that was typed, where it does not stand there already."""
        ...

    async def say(self, text: str, *, dim: bool = False) -> None:
        """Show lines of ours."""
        ...

    async def copy(self, text: str) -> bool:
        """Put a text on the clipboard, if that can be done."""
        ...

    def view(self) -> View:
        """Return what shows a request."""
        ...

    def show_status(self, text: str) -> None:
        """Show a line about the conversation, where there is a place for it."""
        ...


@attrs.frozen
class Place:
    """
    Where a conversation goes on.

    Attributes:
        name: The name of its session.
        session: What it begins with; None for what is stored.
        ask: What is asked first.
    """

    name: str
    session: Session | None = None
    ask: Message | None = None
