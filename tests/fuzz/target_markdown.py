"""What a model writes, on a terminal: drawn, in whatever pieces it comes, without a code that the terminal would obey."""

from __future__ import annotations

import re

from fuzz_kit import cut

from alloy_trio.repl._markdown import Blocks, render
from alloy_trio.repl._text import harmless

SEEDS = [
    b"# Head\n\nSome *words*, `code` and a [link](https://a.test).\n\n```python\nx = 1\n```\n\n- one\n  - two\n\n| a | b |\n|--|--|\n| 1 | 2 |\n",
    b"> quoted\n\n1. one\n\n---\n<b>html</b> &#27;[31m &#x9b; \\* \x1b]0;title\x07\n",
]
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_CODE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def check(data: bytes) -> None:
    """Raise AssertionError where there is one, or a piece is lost."""
    blocks, shown = Blocks(), ""
    for piece in cut(data):
        blocks.feed(harmless(piece.decode("utf-8", "replace")))
        shown += blocks.take()
    text = shown + blocks.finish()
    if len(text) < 4000:  # else a block may have been cut, and its fence written twice
        assert text == "".join(harmless(piece.decode("utf-8", "replace")) for piece in cut(data))
    for color in (True, False):
        drawn = render(text, 40, color=color)
        assert not _CODE.search(_STYLE.sub("", drawn)), drawn
