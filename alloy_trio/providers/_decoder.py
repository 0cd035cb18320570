"""
One streamed answer: the part of decoding that is the same on every wire.

Bytes become server-sent events, and a wire says what each of them means. A failure inside the stream does not take with it
what came before it in the same read: those events are handed over first, and it is raised at the next call.

Servers that count in UTF-16 may cut a character outside the basic plane in two, and send half of it at the end of one delta,
the other half at the start of the next. Neither is a character. The first half is held back until the second one comes.
"""

from __future__ import annotations

import abc
import re
from typing import TYPE_CHECKING

from .._errors import ProviderError, WireError
from .._events import UsageUpdate
from .._usage import Usage
from ._sse import SSEEvent, SSEParser

if TYPE_CHECKING:
    from ._base import Response, WireEvents

_FIRST_HALF_AT_END = re.compile(rb'(?<!\\)((?:\\\\)*)(\\ud[89ab][0-9a-f]{2})(?=")', re.IGNORECASE)
_SECOND_HALF_AT_START = re.compile(rb'(?<!\\)"(?=\\ud[c-f][0-9a-f]{2})', re.IGNORECASE)


class Decoder(abc.ABC):
    """
    Turns the bytes of one streamed answer into events, without I/O.

    `feed` takes the bytes as they come, cut anywhere; `close` says that there are no more; `finish` gives the whole answer.
    """

    @property
    def patience(self) -> float:
        """Seconds to wait for more of a stream whose answer is complete: some servers never close it."""
        return 5.0

    def __init__(self) -> None:
        self._parser = SSEParser()
        self._failure: ProviderError | None = None
        self._half = b""  # of a character, as JSON escapes it
        self._counted = Usage()

    def feed(self, data: bytes) -> WireEvents:
        """
        Take some bytes, and return the events that they complete.

        Raises:
            ProviderError: The stream carries an error, or cannot be understood.
        """
        return self._take(self._parser.feed(data))

    def check(self) -> None:
        """Raise what failed behind the events that were handed out last."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> WireEvents:
        """Say that the stream is over, and return the events that only this completes. Raises as `feed` does."""
        return self._take(self._parser.close())

    def finish(self) -> Response:
        """
        Return the whole answer. Once, at the end.

        Raises:
            ProviderError: As `feed` does.
            WireError: The stream ended before the answer did (retryable).
        """
        self.close()
        self.check()
        if not self.is_complete():
            raise WireError("the stream ended before the answer did", retryable=True)
        return self._response()

    def _take(self, received: list[SSEEvent]) -> WireEvents:
        self.check()
        events: WireEvents = []
        try:
            for event in received:
                if not event.data or event.data.isspace():  # an empty `data:` only keeps the connection alive
                    continue
                if b"\\u" in event.data and (b"\\ud" in event.data or b"\\uD" in event.data):
                    self._join_halves(event)
                events += self._event(event)
        except ProviderError as failure:
            if not events:
                raise
            self._failure = failure
        return events

    def _join_halves(self, event: SSEEvent) -> None:
        if self._half:
            event.data, joined = _SECOND_HALF_AT_START.subn(
                b'"' + self._half.replace(b"\\", b"\\\\"), event.data, count=1
            )
            self._half = b"" if joined else self._half
        if (half := _FIRST_HALF_AT_END.search(event.data)) is not None:
            self._half = half[2]
            event.data = event.data[: half.start(2)] + event.data[half.end(2) :]

    def _report(self, usage: Usage) -> WireEvents:
        """Return the event of what the server has counted so far, if that is news."""
        if usage in (Usage(), self._counted):
            return []
        self._counted = usage
        return [UsageUpdate(usage)]

    @abc.abstractmethod
    def _event(self, event: SSEEvent) -> WireEvents:
        """Say what one server-sent event means; those after the answer's end mean nothing."""

    @abc.abstractmethod
    def is_complete(self) -> bool:
        """Whether the answer has come to its end."""

    @abc.abstractmethod
    def _response(self) -> Response:
        """Put the answer together; only called when it is complete."""
