"""
What can go wrong between a client and a server, as values: a change of the answer, and a place at which its sending goes wrong.

Both are independent of each other and of the API that is asked, so that two faults are one by `&`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import attrs

from ._answers import Answer, Endless, Gzipped, Place, delta, error, error_event, good, whole

Change: TypeAlias = Callable[[Answer], Answer]
End: TypeAlias = Literal["", "close", "reset", "stall", "trickle", "refuse"]
Kind: TypeAlias = Literal["head", "field", "early", "blank", "comment", "line", "event", "json", "behind"]

_LARGE: Final = 10 * 2**30  # bytes of what has no end: it has one, so that no test can run for ever
_BLOCK: Final = b"x" * 2**16


def _as_it_is(answer: Answer) -> Answer:
    return answer


@attrs.frozen
class Fault:
    """
    One thing that goes wrong between a client and a `FaultServer`. Made by its class methods.

    `Fault.endless("json") & Fault.gzip()` is both, in this order; of two that end the sending, the second counts.

    Where something is to happen is said by a number of bytes, or by one of these places: `head`, before any byte; `in head`;
    `body`, right behind the head; `event`, before the event with the second half of the text; `in event`, in the middle of it
    (of an answer that is no stream: of its body); `end`, when all is there but HTTP's mark of the end.

    Attributes:
        change: What is made of the good answer.
        at: Where the sending goes wrong; None: nowhere.
        end: How.
        seconds: Between two bytes of a trickle, or of a refusal.
    """

    change: Change = _as_it_is
    at: Place | None = None
    end: End = ""
    seconds: float = 0.0

    def __and__(self, other: Fault) -> Fault:
        """Return this and the other as one."""
        last = other if other.end else self
        return Fault(lambda answer: other.change(self.change(answer)), last.at, last.end, last.seconds)

    # How it is sent

    @classmethod
    def refuse(cls, seconds: float) -> Fault:
        """Let nobody listen for so long, as if the server were down. Not for one request: for the time."""
        return cls(end="refuse", seconds=seconds)

    @classmethod
    def close(cls, at: Place) -> Fault:
        """Close the connection there."""
        return cls(at=at, end="close")

    @classmethod
    def reset(cls, at: Place) -> Fault:
        """Reset the connection there, as a crash does, or a middlebox."""
        return cls(at=at, end="reset")

    @classmethod
    def stall(cls, at: Place) -> Fault:
        """Say no more from there on, and leave the connection open until the client hangs up."""
        return cls(at=at, end="stall")

    @classmethod
    def trickle(cls, at: Place, seconds: float = 1.0) -> Fault:
        """Send one byte, wait so long, and so on, from there."""
        return cls(at=at, end="trickle", seconds=seconds)

    # What is sent

    @classmethod
    def status(cls, status: str, *, kind: str = "api_error", message: str = "not now", **fields: str) -> Fault:
        """
        Refuse the request, in the API's words.

        Args:
            status: Number and words: "429 Too Many Requests".
            kind: The vendor's word for it.
            message: What it says.
            fields: The head's, with underscores for hyphens: `retry_after="3"`.
        """
        named = {name.replace("_", "-"): value for name, value in fields.items()}

        def change(answer: Answer) -> Answer:
            refusal = whole(answer, error(answer.wire, kind, message))
            return attrs.evolve(refusal, status=status, fields={**refusal.fields, **named})

        return cls(change)

    @classmethod
    def error(cls, kind: str, message: str = "it broke") -> Fault:
        """Report an error of this kind with status 200: in a stream, behind the first half of the text."""

        def change(answer: Answer) -> Answer:
            if not answer.streams:
                return whole(answer, error(answer.wire, kind, message))
            last = error_event(answer.wire, kind, message)
            return attrs.evolve(answer, pieces=(*itertools.islice(answer.pieces, answer.middle), last))

        return cls(change)

    @classmethod
    def body(cls, body: bytes, content_type: str = "text/html") -> Fault:
        """Say this with status 200, whatever was asked: a web page, for instance."""
        return cls(lambda answer: whole(answer, body, content_type))

    @classmethod
    def raw(cls, data: bytes) -> Fault:
        """Send these bytes and nothing else: no HTTP, if they are none."""
        return cls(lambda answer: attrs.evolve(answer, head=(data,), pieces=(), is_framed=False))

    @classmethod
    def half(cls) -> Fault:
        """End in the middle of the answer, in good order: of a stream between two events, of JSON anywhere."""

        def change(answer: Answer) -> Answer:
            if answer.streams:
                return attrs.evolve(answer, pieces=tuple(itertools.islice(answer.pieces, answer.middle)))
            body = b"".join(answer.pieces)
            half = body[: len(body) // 2]
            counted = {"content-length": str(len(half))} if "content-length" in answer.fields else {}
            return attrs.evolve(answer, pieces=(half,), fields={**answer.fields, **counted})

        return cls(change)

    @classmethod
    def miscounted(cls, by: int) -> Fault:
        """Say a Content-Length that is so many bytes more than come, or fewer."""

        def change(answer: Answer) -> Answer:
            size = sum(map(len, answer.pieces)) + by
            return attrs.evolve(answer, fields={**answer.fields, "content-length": str(max(0, size))})

        return cls(change)

    @classmethod
    def bad_chunk(cls) -> Fault:
        """Send a chunk whose size is none, behind the first half of the text."""

        def change(answer: Answer) -> Answer:
            first = b"".join(itertools.islice(answer.pieces, answer.middle))
            pieces = (b"%x\r\n%b\r\n" % (len(first), first) if first else b"", b"zz\r\nnonsense\r\n")
            fields = {"content-type": answer.fields["content-type"], "transfer-encoding": "chunked"}
            return attrs.evolve(answer, pieces=pieces, middle=1, fields=fields, is_framed=False)

        return cls(change)

    @classmethod
    def gzip(cls) -> Fault:
        """Compress the body, which nobody has asked for. What is `endless` becomes a bomb."""

        def change(answer: Answer) -> Answer:
            fields = {**answer.fields, "content-encoding": "gzip"}
            fields.pop("content-length", None)
            return attrs.evolve(answer, pieces=Gzipped(answer.pieces), fields=fields)

        return cls(change)

    @classmethod
    def endless(cls, what: Kind, size: int = _LARGE) -> Fault:
        """
        Send what has no end; after so many bytes it has one.

        Args:
            what: `head`, of fields; `field`, one of them; `early`, answers of 103 ahead of it. Of the body: `blank` lines,
                `comment`s of a stream, one `line` of it, `event`s with more and more text, a string in `json`; and comments
                `behind` a whole answer (of one that is no stream: blank lines).
            size: Bytes of it.
        """
        return cls(lambda answer: _without_end(answer, what, size))


def _without_end(answer: Answer, what: Kind, size: int) -> Answer:
    first, piece = _ENDLESS.get(what, (b"", b""))
    if what in {"head", "field", "early"}:
        return attrs.evolve(answer, head=Endless((first,), piece, size), pieces=(), is_framed=False)
    if what == "behind":
        piece = _ENDLESS["comment" if answer.streams else "blank"][1]
        body = Endless(tuple(answer.pieces), piece, size)
    elif what == "event":
        streamed = good(answer.wire, "on", streams=True)
        begun = tuple(itertools.islice(streamed.pieces, streamed.middle))
        body = Endless(begun, delta(answer.wire, " and on" * 20) * 20, size)
    else:
        body = Endless((first,), piece, size)
    kind = "application/json" if what == "json" else "text/event-stream"
    return attrs.evolve(answer, pieces=body, middle=1, fields={"content-type": kind})


_ENDLESS: Final[dict[Kind, tuple[bytes, bytes]]] = {
    "head": (b"HTTP/1.1 200 OK\r\n", b"x-more: yes\r\n" * 1000),
    "field": (b"HTTP/1.1 200 OK\r\nx-more: ", _BLOCK),
    "early": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
    "blank": (b"\n", b"\n" * 2**16),
    "comment": (b": hello\n\n", b": still here%s\n\n" % (b" and here" * 20) * 100),
    "line": (b"data: ", _BLOCK),
    "json": (b'{"padding": "', _BLOCK),
}
