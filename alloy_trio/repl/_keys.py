"""What a person does besides typing lines."""

from __future__ import annotations

import enum


class Key(enum.Enum):
    """A key that is no text."""

    INTERRUPT = "Ctrl-C"
    END = "Ctrl-D"
    UNFOLD = "Ctrl-O"
