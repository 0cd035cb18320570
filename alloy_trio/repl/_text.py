"""
Text for a terminal.

What a model, a tool or a server says is not to be trusted with one: control characters in it are shown, not obeyed.
"""

from __future__ import annotations

import itertools
import unicodedata

BOLD, DIM, RED, GREEN = 1, 2, 31, 32

_LONGEST = 2000  # characters of an error

# Control characters become their pictures, as `cat -v` does; a carriage return, which would overwrite the line, goes. So do
# the characters that turn the order of a line around.
_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **dict.fromkeys((*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
    ord("\r"): None,
}


def harmless(text: str) -> str:
    """Replace what a terminal would take for a command."""
    return text.translate(_PICTURES)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Make one harmless line of a text."""
    line = harmless(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    """Return how many columns a line takes."""
    return sum(map(_columns, text))


def clip(text: str, columns: int) -> str:
    """Cut a line that would be wider than this on a terminal."""
    widths = list(itertools.accumulate(map(_columns, text)))
    if not widths or widths[-1] <= columns:
        return text
    return f"{text[: sum(width < columns for width in widths)]}…"
