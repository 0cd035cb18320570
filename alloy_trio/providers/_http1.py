"""
Answers of HTTP/1.1, one after the other on one connection: bytes in, heads and bodies out, no I/O.

The parsing is httptools', which is llhttp, the parser of Node.js. It is strict where strictness matters: it refuses lengths and
chunk sizes that are no plain numbers, a length beside chunks, two lengths, line ends without CR, folded lines, white space before
a colon. What it lets pass and is refused here: versions other than 1.0 and 1.1, transfer codings other than `chunked` (it would
hand out the coded bytes), 101 (nobody asked for another protocol), statuses below 100, a 1xx with a body, RTSP and ICE (it speaks
these, too), blank lines ahead of an answer, an endless head, trailer or chunk extension. It has no notion of a body that ends with
the connection, nor of bytes behind an answer: that is told from the head, and from its next beginning.

RFC 9112 has the rules: section 6.3 for where a body ends, 9.3 for what may be used again.
"""

from __future__ import annotations

from typing import Final

import httptools

from ._exchange import Broken

MAX_HEAD: Final = 128 * 1024  # bytes of a head, of a trailer, or between two pieces of a body

_EARLY, _SWITCHING, _FINAL = 100, 101, 200
_LENGTH, _CODING = len("content-length"), len("transfer-encoding")
_BODILESS = {204, 304}
_KEEPS, _CLOSES = "1.1", "1.0"  # whether a connection is used again; 1.0 has that only as an extension
_START = b"H"  # of HTTP, not of RTSP or ICE
_NO_BODY = {b"", b"0"}


class ResponseParser:
    """
    The answers that come on one connection.

    Attributes:
        status: That of the answer under way; 0 until its head is there.
        headers: Its fields, as they came.
        pieces: What has come of its body, and nobody has taken yet.
        is_complete: Whether all of it has come.
        is_reusable: Whether another answer may follow, as far as this one tells.
    """

    __slots__ = (
        "_ends_with_connection",
        "_headless",
        "_parser",
        "_quiet",
        "headers",
        "is_complete",
        "is_reusable",
        "on_body",
        "pieces",
        "status",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append  # httptools calls what is called so
        self.begin()
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def begin(self, method: bytes = b"POST") -> None:
        """Expect the answer to another request."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces.clear()
        self.is_complete = self.is_reusable = False
        self._ends_with_connection = False
        self._headless = method == b"HEAD"
        self._quiet = 0

    def feed(self, data: bytes) -> None:
        """
        Take bytes; empty ones are the end of the connection.

        Raises:
            Broken: This is no HTTP/1.1, or not all of the answer. What came of a body before that is in `pieces`.
        """
        if not data:
            self._end()
            return
        if not self.status and not self._quiet and not data.startswith(_START):
            raise Broken(f"the answer is no HTTP/1.1: it begins with {data!r:.50}")
        try:
            assert self._parser is not None, "it is closed"
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.is_reusable = False
            if not self.is_complete:  # else it is what came behind the answer
                cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
                raise cause if isinstance(cause, Broken) else Broken(f"the answer is no HTTP/1.1: {error}") from None
        if self._headless:
            self.pieces.clear()  # some servers send one nevertheless
        if self.pieces:
            self._quiet = 0
        elif not self.is_complete:
            self._quiet += len(data)
            if self._quiet > MAX_HEAD:
                raise Broken(f"the answer has {self._quiet} bytes of head, or of framing, in one place")

    def close(self) -> None:
        """Let go of the parser, which refers to this and is referred to by it."""
        self._parser = None

    def _end(self) -> None:
        self.is_reusable = False
        if self.is_complete:
            return
        if not self._ends_with_connection:
            raise Broken(
                "the server closed it in the middle of an answer"
                if self.status or self._quiet
                else "the server closed it"
            )
        self.is_complete = True

    # What httptools calls

    def on_message_begin(self) -> None:
        if self.is_complete:  # something comes behind the answer: nobody asked for it
            self.is_reusable = False
            raise Broken("bytes behind the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if status < _EARLY or status == _SWITCHING or version not in {_KEEPS, _CLOSES}:
            raise Broken(f"the answer is none of HTTP/1.1: HTTP/{version} {status}")
        has_length = False
        for name, value in self.headers:
            if len(name) == _LENGTH and name.lower() == b"content-length":
                has_length = has_length or status >= _FINAL or value.strip() not in _NO_BODY
            elif len(name) == _CODING and name.lower() == b"transfer-encoding":
                if has_length or value.strip().lower() != b"chunked":
                    raise Broken(f"the answer has the transfer coding {value!r:.50}, and was asked for none")
                has_length = True
        if status < _FINAL:
            if has_length:  # RFC 9110, 15.2: it ends with its head; but the parser would read a body
                raise Broken(f"an early answer, {status}, with a body")
            self.headers.clear()
            return
        self.status = status
        self._ends_with_connection = not has_length and status not in _BODILESS
        self.is_reusable = (
            version == _KEEPS
            and not (self._headless or self._ends_with_connection)
            and self._parser.should_keep_alive()
        )
        self.is_complete = self._headless

    def on_message_complete(self) -> None:
        if self.status:  # else it was an early one: 100, 103
            self.is_complete = True
