"""
Text for a terminal.

What a model, a tool or a server says is not to be trusted with one: control characters in it are shown, not obeyed. A sequence that
comes in two pieces is none either, since none of its characters gets there.

What a person is asked to approve has to look like what will run: there, what shows nothing is shown as well.
"""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata

BOLD, DIM, RED, GREEN = 1, 2, 31, 32

_LONGEST = 2000  # characters of an error

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # what turns the order of a line around
_TAGS = range(0xE0000, 0xE0080)  # ASCII that nobody sees, and models read

# Control characters become their pictures, as `cat -v` does; a carriage return, which would overwrite the line, goes.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES = {
    **_CONTROLS,
    **dict.fromkeys((*range(0x7F, 0xA0), *_BIDI, *_TAGS), 0xFFFD),
    ord("\r"): None,
}

# Letters and marks, to Unicode, that show nothing; what else shows nothing is not printable.
_BLANKS = (
    range(0x34F, 0x350),
    range(0x115F, 0x1161),
    range(0x17B4, 0x17B6),
    range(0x180B, 0x1810),
    range(0x2800, 0x2801),
    range(0x3164, 0x3165),
    range(0xFE00, 0xFE10),
    range(0xFFA0, 0xFFA1),
    range(0xE0100, 0xE01F0),
)
_BLANK = frozenset(chr(code) for codes in _BLANKS for code in codes)
_RAW = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]")


def harmless(text: str) -> str:
    """Replace what a terminal would take for a command."""
    return text.translate(_PICTURES)


def visible(text: str) -> str:
    """Show everything in a text that a terminal would obey, and what nobody would see: by its number in Unicode."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or (character.isprintable() and character not in _BLANK):
        return character
    code = ord(character)
    return chr(_CONTROLS[code]) if code in _CONTROLS else f"⟨U+{code:04X}⟩"


def marked(text: str) -> str:
    """Do the same for a line that is being edited: a mark for each such character, but for those that its editor shows."""
    return "".join(
        each if ord(each) < 0xA0 or (each.isprintable() and each not in _BLANK) else "\ufffd"  # noqa: PLR2004 - behind C1
        for each in text
    )


def escaped(json: str) -> str:
    """Write characters of JSON that a terminal would obey, or not show, by their numbers: to JSON it is the same."""
    return _RAW.sub(lambda found: _escape(found[0]), json)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


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


class _Harmless(logging.Formatter):
    """What is logged may quote a model, or a tool."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record for a terminal."""
        return harmless(super().format(record))


def log_handler() -> logging.Handler:
    """Return what writes a log to a terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Harmless("%(levelname)s %(name)s: %(message)s"))
    return handler
