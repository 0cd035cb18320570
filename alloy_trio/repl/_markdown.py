"""
Markdown that is still being written.

CommonMark is read line by line, and a block that is closed never opens again. So of the lines that are whole, everything above
the last block is finished: it is shown once, for good. Only what is below that is drawn again as it grows.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, ClassVar, Final

from ._text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it import MarkdownIt
    from rich.markdown import MarkdownElement
    from rich.text import Text

_LONGEST: Final = 4000  # characters of a block; more would take too long to draw ten times a second

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})[^\n]*")
_STYLE: Final = re.compile(r"(\x1b\[[\d;]*m)")
_NARROWEST: Final = 10
_BLANK: Final = re.compile(r"\n(?:(?:\x1b\[[\d;]*m)*\n){2,}")
_PADDING: Final = re.compile(r"[ \t]+((?:\x1b\[[\d;]*m)*)$", re.MULTILINE)


class Blocks:
    """
    Cuts what is finished off a text that grows.

    Attributes:
        rest: What is not finished.
    """

    def __init__(self) -> None:
        self.rest = ""

    def feed(self, text: str) -> None:
        """Add a piece of text."""
        self.rest += text

    def take(self) -> str:
        """Return what has been finished since, whole blocks or nothing."""
        whole = self.rest[: self.rest.rfind("\n") + 1]
        if not whole:
            return ""
        starts = [token.map[0] for token in _parser().parse(whole) if token.level == 0 and token.map is not None]
        lines = whole.splitlines(keepends=True)
        if starts and (start := max(starts)):
            return self._cut(len("".join(lines[:start])))
        if len(whole) > _LONGEST:
            return self._cut_block(whole)
        return ""

    def finish(self) -> str:
        """Return all that is left."""
        return self._cut(len(self.rest))

    def _cut(self, place: int) -> str:
        done, self.rest = self.rest[:place], self.rest[place:]
        return done

    def _cut_block(self, whole: str) -> str:
        """Cut a block that is too long; of code, both halves stay code."""
        done = self._cut(len(whole))
        if fence := _FENCE.match(done):
            self.rest = f"{fence.group()}\n{self.rest}"
            return f"{done}{fence.group(1)}\n"
        return done


def _parser() -> MarkdownIt:
    global _cached  # noqa: PLW0603 - made once, when the first answer comes
    if _cached is None:
        from markdown_it import MarkdownIt  # noqa: PLC0415 - loaded with the first answer, not before the first prompt

        _cached = MarkdownIt("commonmark").enable("table")
    return _cached


_cached: MarkdownIt | None = None


def render(markdown: str, columns: int, *, color: bool) -> str:
    """Return Markdown, free of control characters, as lines for a terminal."""
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.markdown import Heading, Markdown  # noqa: PLC0415
    from rich.theme import Theme  # noqa: PLC0415

    class LeftHeading(Heading):
        def __rich_console__(self, *_: object) -> Iterator[Text]:
            self.text.justify = "left"
            yield self.text

    class Plain(Markdown):
        elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": LeftHeading}

    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard" if color else None,
        no_color=not color,
        width=max(columns, _NARROWEST),
        legacy_windows=False,
        theme=Theme({"markdown.code": "cyan"}),  # without the black background of rich's own
        _environ={},
    )
    with console.capture() as captured:
        console.print(Plain(markdown, code_theme="ansi_dark", hyperlinks=False), end="")
    return _BLANK.sub("\n\n", _PADDING.sub(r"\1", _styles_only(captured.get()))).strip("\n")


def _styles_only(drawn: str) -> str:
    """Leave no escape code in but styles: Markdown has ways to write a character by its number."""
    return "".join(part if place % 2 else harmless(part) for place, part in enumerate(_STYLE.split(drawn)))
