"""
Good answers of the three wires, whole or streamed: what a `FaultServer` says where nothing goes wrong, and what a fault spoils.

An answer is data until it is sent: a head, and a body in pieces, which may be without an end. So a fault is a function of it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs

from ..providers._json import encode

Wire: TypeAlias = Literal["chat", "messages", "responses"]
Place: TypeAlias = Literal["head", "in head", "body", "event", "in event", "end"] | int

_GZIP: Final = 31  # zlib's word for it
_MEBI: Final = 2**20
_BLOCKS: Final = 32  # that are sent at once
_JSON: Final = "application/json"
_SSE: Final = "text/event-stream"


@attrs.frozen
class Answer:
    """
    What a server is about to say.

    Attributes:
        wire: The API that was asked.
        streams: Whether it was asked to stream.
        pieces: The body: of a stream, its events.
        middle: How many of the pieces come before the one with the second half of the text.
        status: Number and words.
        fields: The head's; names in lower case. Without a length, the body comes in chunks, a piece in each.
        head: What is sent in place of a head; None: a good one.
        is_framed: Whether the pieces are sent as HTTP has it, not as they are.
    """

    wire: Wire
    streams: bool
    pieces: Iterable[bytes]
    middle: int = 0
    status: str = "200 OK"
    fields: Mapping[str, str] = attrs.field(factory=dict)
    head: Iterable[bytes] | None = None
    is_framed: bool = True

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes on the wire."""
        return itertools.chain(self._start(), self._body())

    def place(self, place: Place) -> int:
        """Return how many bytes come before a place."""
        match place:
            case int():
                return place
            case "head":
                return 0
            case "in head":
                return _size(self._start()) // 2
            case "body":
                return _size(self._start())
            case "end":
                return _size(self) - len(_LAST) * self._is_chunked
        before = _size(self._start()) + _size(itertools.islice(self._body(), self.middle))
        here = len(next(itertools.islice(self._body(), self.middle, None)))
        return before + (here // 2 if place == "in event" else 0)

    @property
    def _is_chunked(self) -> bool:
        return self.is_framed and "content-length" not in self.fields

    def _start(self) -> Iterable[bytes]:
        if self.head is not None:
            return self.head
        fields = {"transfer-encoding": "chunked", **self.fields} if self._is_chunked else self.fields
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return (f"HTTP/1.1 {self.status}\r\n{lines}\r\n".encode("latin-1"),)

    def _body(self) -> Iterator[bytes]:
        for piece in self.pieces:
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece
        if self._is_chunked:
            yield _LAST


_LAST: Final = b"0\r\n\r\n"


def _size(pieces: Iterable[bytes]) -> int:
    return sum(map(len, pieces))


def wire_of(path: str) -> Wire:
    """Return which API has this path; what is no other's is that of Chat Completions."""
    path = path.partition("?")[0]
    return "messages" if path.endswith("/messages") else "responses" if path.endswith("/responses") else "chat"


def good(wire: Wire, text: str, *, streams: bool) -> Answer:
    """Return the answer that says `text`; streamed, in two halves."""
    answer = Answer(wire, streams, (), fields={"content-type": _SSE})
    if not streams:
        return whole(answer, _WHOLE[wire](text))
    half = (len(text) + 1) // 2
    before, after = _EVENTS[wire](text)
    deltas = [delta(wire, text[:half]), delta(wire, text[half:])]
    pieces = [*map(event, before), *deltas, *map(event, after), *([b"data: [DONE]\n\n"] if wire == "chat" else [])]
    return attrs.evolve(answer, pieces=pieces, middle=len(before) + 1)


def whole(answer: Answer, value: Any, kind: str = _JSON) -> Answer:
    """Return another answer, in one piece: bytes as they are, anything else as JSON."""
    body = value if isinstance(value, bytes) else encode(value)
    fields = {"content-type": kind, "content-length": str(len(body))}
    return attrs.evolve(answer, pieces=(body,), middle=0, fields=fields)


def event(value: Mapping[str, Any]) -> bytes:
    """Return one event of a stream, JSON, under the name that its `type` gives it."""
    name = f"event: {value['type']}\n".encode() if "type" in value else b""
    return b"%bdata: %b\n\n" % (name, encode(value))


def delta(wire: Wire, text: str) -> bytes:
    """Return the event with a piece of the answer's text."""
    match wire:
        case "chat":
            return event({**_CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        case "messages":
            change = {"type": "text_delta", "text": text}
            return event({"type": "content_block_delta", "index": 0, "delta": change})
        case "responses":
            return event({"type": "response.output_text.delta", "delta": text, **_PLACE})


def error(wire: Wire, kind: str, message: str) -> dict[str, Any]:
    """Return an error as a body has it."""
    fault = {"type": kind, "message": message}
    return {"type": "error", "error": fault} if wire == "messages" else {"error": {**fault, "code": kind}}


def error_event(wire: Wire, kind: str, message: str) -> bytes:
    """Return an error as a stream has it."""
    if wire != "responses":
        return event(error(wire, kind, message))
    response = {"id": "resp_1", "status": "failed", "error": {"code": kind, "message": message}}
    return event({"type": "response.failed", "response": response})


@attrs.frozen
class Endless:
    """
    Pieces that go on and on.

    Attributes:
        first: What comes before them.
        piece: What comes again and again.
        size: The bytes after which it ends all the same.
    """

    first: tuple[bytes, ...]
    piece: bytes
    size: int

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        return itertools.chain(self.first, itertools.repeat(self.piece, self.size // len(self.piece)))


@attrs.frozen
class Gzipped:
    """The same pieces, compressed, each so that it can be read when it has come. Of what is endless many come in one: a bomb."""

    pieces: Iterable[bytes]

    def __iter__(self) -> Iterator[bytes]:
        """Yield them."""
        if isinstance(self.pieces, Endless):
            return _bomb(self.pieces)
        return self._each()

    def _each(self) -> Iterator[bytes]:
        compressor = zlib.compressobj(wbits=_GZIP)
        for piece in self.pieces:
            yield compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH)
        yield compressor.flush()


def _bomb(endless: Endless) -> Iterator[bytes]:
    """Compress one block that refers to nothing before it, and yield that again and again: it costs nothing to make."""
    compressor = zlib.compressobj(wbits=_GZIP)
    yield compressor.compress(b"".join(endless.first)) + compressor.flush(zlib.Z_FULL_FLUSH)
    block = endless.piece * (_MEBI // len(endless.piece) + 1)
    packed = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    yield from itertools.repeat(packed * _BLOCKS, endless.size // (len(block) * _BLOCKS))


# What the three say where nothing goes wrong

_CHUNK: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
_PLACE: Final = {"item_id": "msg_1", "output_index": 0, "content_index": 0}


def _chat(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return {**_CHUNK, "object": "chat.completion", "choices": [choice], "usage": usage}


def _message(text: str, **news: Any) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": text}]}
    return {**message, "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2}, **news}


def _item(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}


def _response(text: str) -> dict[str, Any]:
    usage = {"input_tokens": 3, "output_tokens": 2}
    return {"id": "resp_1", "object": "response", "status": "completed", "output": [_item(text)], "usage": usage}


_Events: TypeAlias = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # before the text, and behind it


def _chat_events(_: str) -> _Events:
    return [], [{**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]


def _message_events(_: str) -> _Events:
    start = {"type": "message_start", "message": _message("", content=[], stop_reason=None)}
    opened = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    return [start, opened], [{"type": "content_block_stop", "index": 0}, stop, {"type": "message_stop"}]


def _response_events(text: str) -> _Events:
    created = {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "output": []}}
    added = {"type": "response.output_item.added", "output_index": 0, "item": {**_item(""), "content": []}}
    done = {"type": "response.output_item.done", "output_index": 0, "item": _item(text)}
    return [created, added], [done, {"type": "response.completed", "response": _response(text)}]


_WHOLE: Final[dict[Wire, Callable[[str], dict[str, Any]]]] = {
    "chat": _chat,
    "messages": _message,
    "responses": _response,
}
_EVENTS: Final[dict[Wire, Callable[[str], _Events]]] = {
    "chat": _chat_events,
    "messages": _message_events,
    "responses": _response_events,
}
