"""
The parser of answers, against h11, an implementation that shares no line with it.

h11 reads by regular expressions what httptools reads by a generated automaton. Where both take an answer they have to agree on all
of it; where only ours does, the reason stands here; that ours refuses more is fine.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio.providers._exchange import Broken
from alloy_trio.providers._http1 import MAX_HEAD, ResponseParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OK = b"HTTP/1.1 200 OK\r\n"


class Outcome(NamedTuple):
    """What a parser makes of some bytes, and then the end of the connection."""

    status: int
    body: bytes
    is_complete: bool
    is_reusable: bool


REFUSED = Outcome(0, b"", is_complete=False, is_reusable=False)


def ours(pieces: Iterable[bytes], method: bytes = b"POST") -> Outcome:
    parser = ResponseParser()
    parser.begin(method)
    body = b""
    left = iter(pieces)
    try:
        for piece in left:
            parser.feed(piece)
            body += b"".join(parser.pieces)
            parser.pieces.clear()
            if parser.is_complete:  # what comes later is seen by the pool, before the connection is used again
                return Outcome(parser.status, body, True, parser.is_reusable and not any(left))
        parser.feed(b"")
    except Broken:
        return REFUSED
    return Outcome(parser.status, body, parser.is_complete, parser.is_reusable)


def theirs(pieces: Iterable[bytes], method: str = "POST") -> Outcome:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "test"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, body = 0, b""
    for number, piece in enumerate(given := [*filter(None, pieces), b""]):
        try:
            connection.receive_data(piece)
            for event in _events(connection):
                match event:
                    case h11.Response():
                        status = event.status_code
                    case h11.Data():
                        body += bytes(event.data)
                    case h11.EndOfMessage():
                        trails = connection.trailing_data[0] or any(given[number + 1 :]) or not piece
                        return Outcome(status, body, True, connection.their_state is h11.DONE and not trails)
        except h11.RemoteProtocolError:
            break
    return REFUSED


def _events(connection: h11.Connection) -> Iterator[object]:
    while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        yield event
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks) if start != end]


# --- Answers as they should be.


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """Put a body into chunks, of all sizes, with extensions and trailers."""
    written = b""
    for piece in cut(body, draw(st.lists(st.integers(0, len(body)), max_size=5))):
        size = draw(st.sampled_from(["{:x}", "{:X}", "{:03x}"])).format(len(piece)).encode()
        written += (
            size + draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b";a;b=c"])) + b"\r\n" + piece + b"\r\n"
        )
    return written + b"0\r\n" + draw(st.sampled_from([b"", b"x-sum: 1\r\n", b"A: b\r\nC: d\r\n"])) + b"\r\n"


EARLY = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]
CONNECTION = [
    b"",
    b"Connection: close\r\n",
    b"connection: keep-alive\r\n",
    b"Connection: x, Close \r\n",
    b"Upgrade: y\r\n",
]
FRAMING = ["length", "chunked", "until close"]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    early = b"".join(draw(st.lists(st.sampled_from(EARLY), max_size=2)))
    status = draw(st.sampled_from([200, 200, 201, 204, 304, 400, 429, 500, 599]))
    reason = draw(st.sampled_from([b"", b" ", b" OK", b" Not quite \xe9 right"]))
    head = b"HTTP/1.%d %d" % (draw(st.sampled_from([1, 1, 1, 0])), status) + reason + b"\r\n"
    head += draw(st.sampled_from(CONNECTION)) + draw(
        st.sampled_from([b"", b"x-empty:\r\n", b"X-Odd: \xc3\xa4 ; , \t=\r\n"])
    )
    body = b"" if status in {204, 304} else draw(st.binary(max_size=80))
    match draw(st.sampled_from(FRAMING)):
        case "length":
            fields = b"" if status == 204 else b"Content-Length:%d \r\n" % (99 if status == 304 else len(body))
        case "chunked" if status not in {204, 304}:
            fields, body = b"Transfer-Encoding: Chunked \r\n", draw(chunked(body))
        case _:
            fields = b""
    return early + head + fields + b"\r\n" + body


places = st.lists(st.integers(0, 400), max_size=8)


@settings(max_examples=400)
@given(answers(), places)
def test_an_answer_is_the_same_to_both(data: bytes, where: list[int]) -> None:
    pieces = cut(data, where)
    assert ours(pieces) == theirs(pieces) == ours(cut(data, range(len(data)))) != REFUSED


@settings(max_examples=100)
@given(answers(), places)
def test_an_answer_to_head_has_no_body(data: bytes, where: list[int]) -> None:
    head = data[: data.rindex(b"\r\n\r\n", 0, data.index(b"\r\n\r\n", data.rindex(b"HTTP/1.")) + 4) + 4]
    seen = ours(cut(head, where), b"HEAD")
    assert seen == theirs([head], "HEAD")._replace(is_reusable=False)  # the parser is in the middle of a body then
    assert seen.is_complete
    assert ours([data], b"HEAD").body == b""


@settings(max_examples=100)
@given(answers(), st.data())
def test_an_answer_that_is_cut_short_is_none(data: bytes, more: st.DataObject) -> None:
    short = data[: more.draw(st.integers(0, len(data) - 1))]
    assert ours([short]) == theirs([short])


@settings(max_examples=100)
@given(st.lists(answers(), min_size=2, max_size=4), places)
def test_several_answers_on_one_connection(given: list[bytes], where: list[int]) -> None:
    parser = ResponseParser()
    for data in given:
        parser.begin()
        alone = ours([data])
        body = b""
        for piece in cut(data, where):
            parser.feed(piece)
            body += b"".join(parser.pieces)
            parser.pieces.clear()
        if not parser.is_complete:
            parser.feed(b"")
        assert Outcome(parser.status, body, parser.is_complete, parser.is_reusable) == alone
        if not parser.is_reusable:
            break


# --- Answers as they should not be.

PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0",
        b"a",
        b"\xff",
        b"\r\n ",
        b"\r\n\r\n",
        b"0\r\n\r\n",
    ),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"5\r\nhello\r\n"),
    *(b"Transfer-Encoding: gzip\r\n", b"Connection: keep-alive\r\n", b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/1.1 100 \r\n"),
    *(
        b"Upgrade: x\r\nConnection: upgrade\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 \r\n",
    ),
]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    data = draw(answers())
    for _ in range(draw(st.integers(1, 3))):
        lines = [place + 2 for place in range(len(data)) if data[place : place + 2] == b"\r\n"]
        place = draw(st.integers(0, len(data)) | st.sampled_from([0, *lines]))
        match draw(st.sampled_from(["insert", "delete", "replace", "double"])):
            case "insert":
                data = data[:place] + draw(st.sampled_from(PIECES)) + data[place:]
            case "delete":
                data = data[:place] + data[place + draw(st.integers(1, 9)) :]
            case "replace":
                data = data[:place] + draw(st.binary(min_size=1, max_size=1)) + data[place + 1 :]
            case _:
                data = data[:place] + data[place : place + draw(st.integers(1, 60))] + data[place:]
    return data


# What only ours takes. None is a way to smuggle anything: the text behind a status is never looked at, blank lines shift nothing,
# since the next answer has to begin with HTTP, too, and what a trailer says of the framing comes too late to count.
ODD_REASON = re.compile(rb"HTTP/1\.[01] \d{3} [^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
BLANK_LINES = re.compile(rb"\n[\r\n]+HTTP/1\.")
FRAMING_TRAILER = re.compile(rb"\n0+[^\n]*\n(?:[^\r\n]+\r\n)*(?i:transfer-encoding|content-length):")
BLANK_END = (b"\r", b"\n")


def is_odd(data: bytes) -> bool:
    """Whether this is what only ours takes."""
    return any(odd.search(data) for odd in (ODD_REASON, BLANK_LINES, FRAMING_TRAILER))


@settings(max_examples=1000)
@given(mutants(), places)
def test_what_ours_takes_h11_takes_for_the_same(data: bytes, where: list[int]) -> None:
    pieces = cut(data, where)
    mine, other = ours(pieces), theirs(pieces)
    # Wherever it is cut; but blank lines behind an answer are bytes that nobody asked for where they come by themselves.
    assert mine[:3] == ours([data])[:3]
    assert mine == ours([data]) or data.endswith(BLANK_END)
    if not mine.is_complete:
        return
    if other == REFUSED:
        assert is_odd(data)
        return
    assert mine[:3] == other[:3]
    assert other.is_reusable or not mine.is_reusable or data.endswith(BLANK_END)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.binary(max_size=60).map(OK.__add__), places)
def test_noise(data: bytes, where: list[int]) -> None:
    mine = ours(cut(data, where))
    assert not mine.is_complete or mine[:3] == theirs([data])[:3]


def answer(*fields: bytes, body: bytes = b"hello", start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((start, *fields, b"", b"")) + body


LENGTH, CHUNKS, KEEP = b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: keep-alive"
OLD, EARLY_ONE = b"HTTP/1.0 200 OK", b"HTTP/1.1 100"
A, END = b"1\r\na\r\n", b"0\r\n\r\n"

SMUGGLED = {
    "a length and chunks": answer(LENGTH, CHUNKS, body=A + END),
    "chunks and a length": answer(CHUNKS, LENGTH, body=A + END),
    "two lengths": answer(LENGTH, b"Content-Length: 6"),
    "one length twice": answer(LENGTH, LENGTH),
    "a list of lengths": answer(b"Content-Length: 5, 5"),
    "+5": answer(b"Content-Length: +5"),
    "-1": answer(b"Content-Length: -1"),
    "0x5": answer(b"Content-Length: 0x5"),
    "1_0": answer(b"Content-Length: 1_0"),
    "5 5": answer(b"Content-Length: 5 5"),
    "no length": answer(b"Content-Length:"),
    "a length in other digits": answer("Content-Length: \u0665".encode()),
    "a length beyond 64 bits": answer(b"Content-Length: 18446744073709551621"),
    "a length in a folded line": answer(b"Content-Length:", b" 5"),
    "bare LF": answer(LENGTH).replace(b"\r\n", b"\n"),
    "bare LF in one place": answer(b"x: y\nConnection: close", LENGTH),
    "bare CR": answer(b"x: y\rConnection: close", LENGTH),
    "a folded line": answer(b"x: y", b" z", LENGTH),
    "a folded line first": answer(b" x: y", LENGTH),
    "NUL in a value": answer(b"x: \0", LENGTH),
    "NUL in a name": answer(b"x\0: y", LENGTH),
    "space before the colon": answer(b"Content-Length : 5"),
    "space before the colon of chunks": answer(b"Transfer-Encoding : chunked", body=A + END),
    "no colon": answer(b"x", LENGTH),
    "two codings": answer(b"Transfer-Encoding: gzip, chunked", body=A + END),
    "chunks twice": answer(CHUNKS, CHUNKS, body=A + END),
    "chunks that are not last": answer(b"Transfer-Encoding: chunked, identity", body=A + END),
    "identity": answer(b"Transfer-Encoding: identity"),
    "identity and a length": answer(b"Transfer-Encoding: identity", LENGTH),
    "chunked in quotes": answer(b'Transfer-Encoding: "chunked"', body=A + END),
    "chunked behind a tab of another kind": answer(b"Transfer-Encoding: \x0bchunked", body=A + END),
    "a chunk of +1": answer(CHUNKS, body=b"+1\r\na\r\n" + END),
    "a chunk of 0x1": answer(CHUNKS, body=b"0x1\r\na\r\n" + END),
    "a chunk of 1_0": answer(CHUNKS, body=b"1_0\r\na\r\n" + END),
    "a chunk of nothing": answer(CHUNKS, body=b"\r\na\r\n" + END),
    "a chunk beyond 64 bits": answer(CHUNKS, body=b"10000000000000001\r\na\r\n" + END),
    "a chunk that is shorter": answer(CHUNKS, body=b"2\r\na\r\n" + END),
    "a chunk that is longer": answer(CHUNKS, body=b"1\r\nab\r\n" + END),
    "space behind a chunk's size": answer(CHUNKS, body=b"1 \r\na\r\n" + END),
    "LF behind a chunk's size": answer(CHUNKS, body=b"1\na\r\n" + END),
    "LF behind a chunk": answer(CHUNKS, body=b"1\r\na\n" + END),
    "LF in a chunk's extension": answer(CHUNKS, body=b"1;x=\n0\r\na\r\n" + END),
    "a length in the trailer": answer(CHUNKS, body=A + b"0\r\nContent-Length: 7\r\n\r\n"),
    "a folded trailer": answer(CHUNKS, body=A + b"0\r\nx: y\r\n z\r\n\r\n"),
    "HTTP/0.9": answer(LENGTH, start=b"HTTP/0.9 200 OK"),
    "HTTP/0.9, a body and nothing else": b"hello",
    "HTTP/2.0": answer(LENGTH, start=b"HTTP/2.0 200 OK"),
    "HTTP/11.1": answer(LENGTH, start=b"HTTP/11.1 200 OK"),
    "http": answer(LENGTH, start=b"http/1.1 200 OK"),
    "RTSP": answer(LENGTH, start=b"RTSP/1.1 200 OK"),
    "ICE": answer(LENGTH, start=b"ICE/1.1 200 OK"),
    "a request": answer(LENGTH, start=b"POST / HTTP/1.1"),
    "a blank line first": b"\r\n" + answer(LENGTH),
    "101": answer(b"Upgrade: x", b"Connection: upgrade", start=b"HTTP/1.1 101 Switching"),
    "101 without an upgrade": answer(start=b"HTTP/1.1 101 Switching"),
    "000": answer(start=b"HTTP/1.1 000 Nothing"),
    "099": answer(LENGTH, start=b"HTTP/1.1 099 Less"),
    "2000": answer(LENGTH, start=b"HTTP/1.1 2000 OK"),
    "no status": answer(LENGTH, start=b"HTTP/1.1"),
    "two spaces": answer(LENGTH, start=b"HTTP/1.1  200 OK"),
    "an early answer with a length": answer(LENGTH, start=b"HTTP/1.1 150 Early") + answer(LENGTH),
    "an early answer in chunks": answer(CHUNKS, start=b"HTTP/1.1 150 Early", body=A + END) + answer(LENGTH),
    "100 with a body": answer(LENGTH, start=b"HTTP/1.1 100 Continue") + answer(LENGTH),
    "an early answer and nothing else": answer(start=b"HTTP/1.1 100 Continue", body=b""),
    "an early answer that closes": answer(b"Connection: close", start=b"HTTP/1.1 103 Hints", body=b"") + answer(LENGTH),
    "less than its length": answer(LENGTH, body=b"hell"),
    "chunks without an end": answer(CHUNKS, body=A),
    "chunks without the last line": answer(CHUNKS, body=A + b"0\r\n"),
    "half a head": OK + LENGTH,
    "nothing": b"",
}


@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_what_is_refused(data: bytes) -> None:
    assert ours([data]) == REFUSED
    assert ours(cut(data, range(len(data)))) == REFUSED


TAKEN = {
    "a second answer behind it": (answer(LENGTH) + answer(LENGTH), b"hello", False),
    "bytes behind it": (answer(LENGTH) + b"x", b"hello", False),
    "bytes behind chunks": (answer(CHUNKS, body=A + END) + b"x", b"a", False),
    "NUL behind it": (answer(LENGTH) + b"\0", b"hello", False),
    "a blank line behind it": (answer(LENGTH) + b"\r\n", b"hello", True),
    "chunks in HTTP/1.0": (answer(CHUNKS, KEEP, body=A + END, start=OLD), b"a", False),
    "HTTP/1.0 that would be kept": (answer(LENGTH, KEEP, start=OLD), b"hello", False),
    "HTTP/1.0 and a proxy": (answer(LENGTH, b"Proxy-Connection: keep-alive", start=OLD), b"hello", False),
    "an upgrade that is none": (answer(LENGTH, b"Upgrade: x", b"Connection: upgrade"), b"hello", True),
    "kept and closed": (answer(LENGTH, KEEP, b"Connection: close"), b"hello", False),
    "a trailer with nothing to say": (answer(CHUNKS, body=A + b"0\r\nConnection: close\r\n\r\n"), b"a", True),
    "many zeros": (answer(CHUNKS, body=b"0" * 99 + A + END), b"a", True),
    "204 with a length": (answer(LENGTH, start=b"HTTP/1.1 204 No"), b"", False),
    "204 in chunks": (answer(CHUNKS, start=b"HTTP/1.1 204 No", body=A + END), b"", False),
    "100 of length 0": (answer(b"Content-Length: 0", start=EARLY_ONE, body=b"") + answer(LENGTH), b"hello", True),
}


@pytest.mark.parametrize(("data", "body", "is_reusable"), TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken_and_for_what(data: bytes, body: bytes, is_reusable: bool) -> None:
    mine = ours([data])
    assert (mine.is_complete, mine.body, mine.is_reusable) == (True, body, is_reusable)


ENDLESS = {
    "fields": (OK, b"x: y\r\n"),
    "a name": (OK + b"x", b"x" * 100),
    "a value": (OK + b"x: ", b"y" * 100),
    "a reason": (b"HTTP/1.1 200 ", b"O" * 100),
    "early ones": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early ones with fields": (b"", b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n"),
    "trailer": (answer(CHUNKS, body=A + b"0\r\n"), b"x: y\r\n"),
    "a trailing value": (answer(CHUNKS, body=A + b"0\r\nx: "), b"y" * 100),
    "a chunk's extension": (answer(CHUNKS, body=A + b"1;x="), b"y" * 100),
    "a chunk's extensions": (answer(CHUNKS, body=A + b"1"), b';x="y"' * 10),
    "a chunk's size": (answer(CHUNKS, body=A), b"0" * 100),
}


@pytest.mark.parametrize(("start", "more"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_is_bounded(start: bytes, more: bytes) -> None:
    parser = ResponseParser()
    fed = 0
    with pytest.raises(Broken):
        for piece in itertools.chain([start] if start else [], itertools.repeat(more)):
            parser.feed(piece)
            parser.pieces.clear()
            fed += len(piece)
            assert fed < 2 * MAX_HEAD


def test_a_long_head_is_none_that_is_endless() -> None:
    data = answer(LENGTH, b"x: " + b"y" * (MAX_HEAD - 100))
    assert ours(cut(data, range(0, len(data), 1000))).body == b"hello"


def test_a_body_may_be_as_long_as_it_likes() -> None:
    parser = ResponseParser()
    parser.feed(answer(CHUNKS, body=b""))
    for _ in range(3 * MAX_HEAD // 100):
        parser.feed(b"64\r\n" + b"x" * 100 + b"\r\n")
        parser.pieces.clear()
    parser.feed(END)
    assert parser.is_complete


def test_how_it_is_said() -> None:
    """What somebody reads who has to find out what is wrong with a server."""
    for data, words in (
        (b"SSH-2.0-OpenSSH_9.6\r\n", "begins with b'SSH-2.0"),
        (answer(LENGTH, start=b"HTTP/2.0 200 OK"), "HTTP/2.0 200"),
        (answer(b"Transfer-Encoding: br"), "'br'"),
    ):
        with pytest.raises(Broken, match=words):
            ResponseParser().feed(data)
    for data, words in ((b"", "the server closed it$"), (OK, "in the middle of an answer")):
        parser = ResponseParser()
        with pytest.raises(Broken, match=words):
            for piece in filter(None, (data,)):
                parser.feed(piece)
            parser.feed(b"")
