"""
Server-sent events: bytes in, events out, no I/O.

The format (WHATWG HTML, "Server-sent events") is lines, not blocks: an event is the `data:` lines since the last blank
line. So that is how it is parsed. What is kept between two reads is the line that is not complete yet, in pieces that are
joined once, and the fields of the event that is not complete yet: each byte is looked at a fixed number of times, however
the stream is cut, and an event of 8 MB in reads of 256 bytes costs what it costs in one.

Line ends are LF, CRLF or CR. A read with a CR in it is brought to LF first. A CR at the end of a read ends its line at
once, without waiting for an LF that may never come; if the next read begins with that LF, it is dropped.

Everything else follows the standard to the letter, because servers use all of it: keep-alive comments, `event:` lines
without data, a byte order mark, `data:` with and without the space. Four places are ours. `data` stays bytes, which the
JSON decoder wants. An event has a bound. And the standard drops what no blank line has ended, which `feed` does too; but
servers exist that close the connection right behind their last event, and losing that one would turn a finished answer
into an error, so `close` gives it out. And a field called `error` is one.
"""

from __future__ import annotations

from typing import NoReturn

import attrs
import msgspec

from .._errors import WireError

_BOM = b"\xef\xbb\xbf"


@attrs.define  # not frozen: one is made for each token, and freezing doubles what that costs
class SSEEvent:
    """
    One event.

    Attributes:
        event: Its `event:` field; None if there was none.
        data: Its `data:` lines, joined by newlines; never decoded.
        id: The last `id:` of the stream so far, in this event or an earlier one; None if there was none.
    """

    event: str | None
    data: bytes
    id: str | None


class SSEParser:
    """
    Parses one stream of server-sent events.

    Args:
        max_event_size: The most bytes between two blank lines. Images and tool arguments make events of several
            megabytes.
    """

    def __init__(self, max_event_size: int = 64 * 2**20) -> None:
        self._max = max_event_size
        self._tail: list[bytes] = []  # the line that is not complete yet, in pieces
        self._tail_size = 0
        self._event: str | None = None
        self._data: list[bytes] = []
        self._size = 0  # bytes of the complete lines since the last blank one
        self._id: str | None = None
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[SSEEvent]:
        """
        Take the next bytes of the stream, cut anywhere, and return the events that they complete.

        Raises:
            WireError: More than `max_event_size` bytes without a blank line. The stream cannot be read on.
        """
        if self._after_cr or b"\r" in data:
            data = self._unify_line_ends(data)
        lines = data.split(b"\n")
        rest = lines.pop()
        events = self._take(lines) if lines else []
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            if self._size + self._tail_size > self._max:
                self._refuse()
        return events

    def close(self) -> list[SSEEvent]:
        """
        Return the event that the end of the stream has left without its blank line, if there is one.

        Complete lines count, and so does a last `data:` line without its line end if it is whole in itself, `[DONE]` or
        JSON. Half a line, from a connection that broke, is dropped.
        """
        if not _is_whole(b"".join(self._tail)):
            self._tail.clear()
        return self._take([b"", b""] if self._tail else [b""])

    def _unify_line_ends(self, data: bytes) -> bytes:
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, lines: list[bytes]) -> list[SSEEvent]:
        """Take lines whose ends have been seen; what was there of the first one before goes ahead of it."""
        if self._tail:
            lines[0] = b"".join((*self._tail, lines[0]))
            self._tail.clear()
            self._tail_size = 0
        if self._at_start:
            lines[0] = lines[0].removeprefix(_BOM)
            self._at_start = False
        events: list[SSEEvent] = []
        data, size, bound = self._data, self._size, self._max
        for line in lines:
            if not line:
                if data:
                    events.append(SSEEvent(self._event, b"\n".join(data), self._id))
                    data.clear()
                self._event = None
                size = 0
                continue
            size += len(line) + 1
            if size > bound:
                self._refuse()
            if line[:6] == b"data: ":  # these two are nearly all lines, and cheaper than the general case
                data.append(line[6:])
            elif line[:7] == b"event: ":
                self._event = line[7:].decode("utf-8", "replace") or None
            else:
                self._field(line)
        self._size = size
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace") or None
        elif name == b"error":  # llama.cpp, before the autumn of 2025: its errors in a field of their own
            self._event = "error"
            self._data.append(value)
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")

    def _refuse(self) -> NoReturn:
        raise WireError(
            f"the stream has sent more than {self._max} bytes without completing an event: "
            "ask for smaller answers, or check that base_url is an API that streams server-sent events"
        )


def _is_whole(line: bytes) -> bool:
    """Whether a line without its line end can be taken for complete: `data:` before `[DONE]` or JSON."""
    name, _, value = line.partition(b":")
    if name != b"data":
        return False
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return value.strip() == b"[DONE]"
    return True
