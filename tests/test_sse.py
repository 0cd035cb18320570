"""Server-sent events: the WHATWG rules, however the stream is cut."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import WireError
from alloy_trio.providers._sse import SSEEvent, SSEParser

BOM = b"\xef\xbb\xbf"

DOCUMENT = (
    BOM
    + b": keep-alive\n\n"
    + 'event: delta\ndata: {"text":"na\u00efve \U0001f680"}\n\n'.encode()
    + b"data: one\ndata:two\ndata\n\n"
    + b"event: ping\n\n"
    + b"id: 7\nretry: 100\nwhatever: x\ndata: third\n\n"
    + b"id\ndata:  [DONE]\n\n"
)
EVENTS = [
    SSEEvent("delta", '{"text":"na\u00efve \U0001f680"}'.encode(), None),
    SSEEvent(None, b"one\ntwo\n", None),
    SSEEvent(None, b"third", "7"),
    SSEEvent(None, b" [DONE]", ""),
]


def parse(*reads: bytes) -> list[SSEEvent]:
    parser = SSEParser()
    return [event for read in reads for event in parser.feed(read)]


def reference(document: bytes) -> list[SSEEvent]:
    """The standard's algorithm as it stands there, over a whole document, one character a byte."""
    text = document.removeprefix(BOM).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    events, event, data, last_id = [], "", "", None
    *lines, _ = text.split("\n")
    for line in lines:
        if line == "":
            if data != "":
                events.append(SSEEvent(event or None, data.removesuffix("\n").encode("latin-1"), last_id))
            event, data = "", ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data += value + "\n"
            decoded = value.encode("latin-1").decode("utf-8", "replace")
            if field == "event":
                event = decoded
            elif field == "id" and "\0" not in value:
                last_id = decoded
    return events


@pytest.mark.parametrize(
    ("reads", "events"),
    [
        pytest.param([b"data: a\n\n"], [[("a", None)]], id="sse-01-whole"),
        pytest.param([b"data: a", b"\n", b"\n"], [[], [], [("a", None)]], id="sse-01-half"),
        pytest.param(
            [b"data: a\n\ndata: b\n\nda", b"ta: c\n\n"],
            [[("a", None), ("b", None)], [("c", None)]],
            id="sse-01-several",
        ),
        pytest.param([b""], [[]], id="sse-01-empty"),
        pytest.param([b"event: x\ndata: a\n\n"], [[("a", "x")]], id="sse-02-named"),
        pytest.param([b"data: [DONE]\n\n"], [[("[DONE]", None)]], id="sse-02-done"),
        pytest.param([b"event:\ndata: a\n\n"], [[("a", None)]], id="sse-02-empty-name"),
        pytest.param([b"event: x\r\ndata: a\r\n\r\n"], [[("a", "x")]], id="sse-03-crlf"),
        pytest.param([b"event: x\rdata: a\r\r"], [[("a", "x")]], id="sse-03-cr"),
        pytest.param([b"data: a\ndata: b\n\n"], [[("a\nb", None)]], id="sse-04"),
        pytest.param([b"data\n\ndata\ndata\n\ndata:"], [[("", None), ("\n", None)]], id="sse-04-empty-lines"),
        pytest.param([b": hi\ndata: a\n: ho\n\n"], [[("a", None)]], id="sse-05"),
        pytest.param([b": hi\n\n:\n\n"], [[]], id="sse-05-only-comments"),
        pytest.param([b"data:a\n\ndata:  b\n\n"], [[("a", None), (" b", None)]], id="sse-06"),
        pytest.param([b"data: a\n", b"\n"], [[], [("a", None)]], id="sse-07-lf"),
        pytest.param([b"data: a\r\n\r", b"\ndata: b\r\n\r\n"], [[("a", None)], [("b", None)]], id="sse-07-crlf"),
        pytest.param([b"event: ping\n\ndata: a\n\n"], [[("a", None)]], id="event-without-data"),
        pytest.param([BOM + b"data: a\n\n" + BOM + b"data: b\n\n"], [[("a", None)]], id="only-the-first-bom"),
        pytest.param([b"data: a\x0b\xe2\x80\xa8b\n\n"], [[("a\x0b\u2028b", None)]], id="other-line-ends-are-none"),
    ],
)
def test_rules(reads: list[bytes], events: list[list[tuple[str, str | None]]]) -> None:
    parser = SSEParser()
    assert [[(event.data.decode(), event.event) for event in parser.feed(read)] for read in reads] == events


def test_id_is_kept_until_the_next_and_must_not_have_a_null() -> None:
    assert [event.id for event in parse(b"data: a\n\nid: 1\ndata: b\n\nid: 2\0\ndata: c\n\nid\ndata: d\n\n")] == [
        None,
        "1",
        "1",
        "",
    ]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["sse-08-lf", "sse-08-crlf", "sse-08-cr"])
def test_every_split_offset(line_end: bytes) -> None:
    """A cut anywhere, inside a character or a line end too, changes nothing."""
    document = DOCUMENT.replace(b"\n", line_end)
    assert parse(document) == EVENTS
    for cut in range(len(document) + 1):
        assert parse(document[:cut], document[cut:]) == EVENTS


@pytest.mark.parametrize("size", range(1, 9), ids=lambda size: f"sse-09-{size}")
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_any_chunk_size(size: int, line_end: bytes) -> None:
    document = DOCUMENT.replace(b"\n", line_end)
    assert parse(*(document[at : at + size] for at in range(0, len(document), size))) == EVENTS


def test_sse_10_large_event_in_small_reads_is_linear() -> None:
    """Four times the bytes take about four times as long: sixteen times would be quadratic."""

    def seconds(size: int, line: bytes) -> float:
        document = b"data: " + line * (size // len(line)) + b"\n\n"
        reads = [document[at : at + 256] for at in range(0, len(document), 256)]
        parser, start = SSEParser(), time.process_time()
        (event,) = [event for read in reads for event in parser.feed(read)]
        took = time.process_time() - start
        assert len(event.data) > size // 2
        return took

    for line in (b"x", b"0123456789" * 5 + b"\ndata: "):
        small = min(seconds(2 * 2**20, line) for _ in range(3))
        large = min(seconds(8 * 2**20, line) for _ in range(3))
        assert large < 10 * small + 0.05


@given(st.data())
def test_random_documents_in_random_pieces(data: st.DataObject) -> None:
    """Whatever the bytes and the cuts, the events are those of the standard's own algorithm."""
    pieces = st.sampled_from(
        [
            b"data",
            b"event",
            b"id",
            b"retry",
            b":",
            b": ",
            b" ",
            b"x",
            b"\n",
            b"\n\n",
            b"\r",
            b"\r\n",
            b"\0",
            BOM,
            b"\xf0\x9f",
        ]
    )
    document = b"".join(data.draw(st.lists(pieces, max_size=60)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(document)), max_size=8)))
    reads = [document[a:b] for a, b in zip([0, *cuts], [*cuts, len(document)], strict=True)]
    assert parse(*reads) == parse(document) == reference(document)


def test_random_cuts_of_a_long_stream() -> None:
    rng = random.Random(1)
    document = DOCUMENT[len(BOM) :] * 40
    whole = parse(document)
    for _ in range(30):
        cuts = sorted(rng.sample(range(len(document)), 60))
        assert parse(*(document[a:b] for a, b in zip([0, *cuts], [*cuts, len(document)], strict=True))) == whole


@pytest.mark.parametrize(
    "reads",
    [
        [b"data: " + b"x" * 200 + b"\n\n"],
        [b"data: " + b"x" * 60, b"x" * 60],
        [b"data: " + b"x" * 40 + b"\n"] * 3,
        [b": " + b"x" * 120 + b"\n\n"],
        [b"data: a\n\n" * 30 + b"data: " + b"x" * 100 + b"\n"],
        [b"data: 1\n" * 20],
    ],
)
def test_bound(reads: list[bytes]) -> None:
    """More than the bound without a blank line is refused, and the message says the bound and what to do."""
    parser = SSEParser(max_event_size=100)
    with pytest.raises(WireError, match=r"more than 100 bytes.*check that base_url") as caught:
        for read in reads:
            parser.feed(read)
    assert not caught.value.retryable


def test_bound_is_of_one_event_not_of_a_read_or_a_stream() -> None:
    parser = SSEParser(max_event_size=100)
    event = b"data: " + b"x" * 80 + b"\n\n"
    assert len(parser.feed(event * 50)) == 50
    assert sum(len(parser.feed(half)) for half in (event[:50], event[50:]) * 50) == 50


@pytest.mark.parametrize(
    ("stream", "left"),
    [
        (b"data: a\n\n", []),
        (b"event: x\ndata: [DONE]\n", [("x", b"[DONE]")]),
        (b'data: {"a":1}\r\n', [(None, b'{"a":1}')]),
        (b"data: [DONE]", [(None, b"[DONE]")]),
        (
            b'event: message_stop\ndata: {"type":"message_stop"}',
            [("message_stop", b'{"type":"message_stop"}')],
        ),
        (b'data: {"type":"mess', []),
        (b'event: x\ndata: {"a":1}\nid', [("x", b'{"a":1}')]),
        (b"event: message_sto", []),
        (b"event: x\n", []),
        (b": bye\n", []),
        (b"", []),
    ],
)
def test_close(stream: bytes, left: list[tuple[str | None, bytes]]) -> None:
    """Servers that hang up without the last blank line, or line end, do not lose their last event; half a line is lost."""
    for cut in range(len(stream) + 1):
        parser = SSEParser()
        fed = parser.feed(stream[:cut]) + parser.feed(stream[cut:])
        assert len(fed) == stream.count(b"\n\n")
        assert [(event.event, event.data) for event in parser.close()] == left
        assert parser.close() == []
