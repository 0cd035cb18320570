"""HTTP/1.1: any bytes are an answer or `Broken`, however they are cut, and an answer is what h11 takes for the same."""

from __future__ import annotations

from fuzz_kit import cut
from test_http1 import BLANK_END, CHUNKS, EARLY, END, LENGTH, REFUSED, A, answer, is_odd, ours, theirs

SEEDS = [
    answer(LENGTH),
    answer(CHUNKS, body=A + b"3;x=y\r\nabc\r\n" + END),
    answer(CHUNKS, b"Trailer: x-sum", body=A + b"0\r\nx-sum: 1\r\n\r\n"),
    answer(b"Connection: close"),
    answer(b"Connection: keep-alive, x", LENGTH, start=b"HTTP/1.0 200 OK"),
    b"".join(EARLY) + answer(b"Content-Length: 0", body=b"", start=b"HTTP/1.1 204 No Content"),
    answer(LENGTH) + answer(LENGTH),
]


def check(data: bytes) -> None:
    """Raise AssertionError where they are not."""
    mine, pieces = ours([data]), ours(cut(data))
    assert mine[:3] == pieces[:3]
    assert mine == pieces or data.endswith(BLANK_END)  # blank lines behind an answer: as one more piece they are bytes
    ours(cut(data), b"HEAD")
    if not mine.is_complete:
        return
    other = theirs(cut(data))
    if other == REFUSED:
        assert is_odd(data)
        return
    assert mine[:3] == other[:3]
    assert other.is_reusable or not mine.is_reusable or data.endswith(BLANK_END)
