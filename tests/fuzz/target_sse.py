"""Server-sent events: the events of any bytes are those of the standard's own algorithm, however they are cut."""

from __future__ import annotations

from fuzz_kit import cut
from test_sse import BOM, DOCUMENT, parse, reference

from alloy_trio.providers._sse import SSEParser

SEEDS = [DOCUMENT, DOCUMENT.replace(b"\n", b"\r\n"), DOCUMENT.replace(b"\n", b"\r"), BOM * 2 + b"data\n\ndata: [DONE]"]


def check(data: bytes) -> None:
    """Raise AssertionError where they are not."""
    whole, pieces = parse(data), parse(*cut(data))
    assert whole == pieces
    if b"error" not in data:  # a field of ours
        assert whole == reference(data)
    one, other = SSEParser(), SSEParser()
    one.feed(data)
    for piece in cut(data):
        other.feed(piece)
    assert one.close() == other.close()
