"""What a person does: lines and keys."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Line(NamedTuple):
    """
    A line that was typed.

    Attributes:
        text: What it says.
        about: What the prompt was about under which it was begun; the one that stood there at its end may be another.
    """

    text: str
    about: str = ""


class Key(enum.Enum):
    """A key that is no text."""

    INTERRUPT = "Ctrl-C"
    END = "Ctrl-D"
    UNFOLD = "Ctrl-O"
