"""
A mock of a chat-completions server: `python -m benchmarks.server` prints its port, and serves until its input ends.

The name of the model is the script of the answer, of parts that `-` joins:

    turns-T     T - 1 answers that call tools, then one with text: where a conversation stands is seen from its assistant messages
    tools-K     so many calls in each of these (1)
    stream-N    N deltas of text; as fast as the socket takes them, and over TLS one record each
    delay-MS    how long it thinks before an answer
    every-MS    the time between two deltas

HTTP is read just as far as clients that behave need it; answers are made once and kept. With `--tls FILE` it speaks TLS, and
FILE is where it leaves the certificate of the authority to trust.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import attrs
import trio

DELTA = "some"  # characters of an answer that streams, each time

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TURN = b'"role":"assistant"'
_PIECES = 100  # events in one write, where nothing is to be waited for


@attrs.frozen
class Script:
    """What the name of a model asks for."""

    turns: int = 1
    tools: int = 1
    stream: int = 0
    delay: int = 0
    every: int = 0

    @classmethod
    @functools.cache
    def of(cls, model: str) -> Script:
        """Read it from the name."""
        words = model.split("-")
        return cls(**{word: int(number) for word, number in zip(words[::2], words[1::2], strict=True)})


@functools.cache
def answer(tools: int) -> bytes:
    """Return a whole answer over HTTP: with so many calls, or else a text."""
    call = {"name": "add", "arguments": '{"a":2,"b":3}'}
    message: dict[str, Any] = {"role": "assistant", "content": None if tools else "The sum is five."}
    if tools:
        message["tool_calls"] = [{"id": f"call_{each}", "type": "function", "function": call} for each in range(tools)]
    body = _json(
        id="chatcmpl-1",
        object="chat.completion",
        created=1,
        model="mock",
        choices=[{"index": 0, "message": message, "finish_reason": "tool_calls" if tools else "stop"}],
        usage=_usage(20),
    )
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@functools.cache
def events(count: int) -> tuple[bytes, ...]:
    """Return a streamed answer over HTTP, in pieces that can be sent one by one: head, deltas, end."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    start = _event(_delta({"role": "assistant", "content": ""}))
    delta = _event(_delta({"content": DELTA}))
    end = _event(_delta({}, "stop")) + _event(_chunk(choices=[], usage=_usage(count))) + _event(b"[DONE]")
    return (head + start, *[delta] * count, end + b"0\r\n\r\n")


def _json(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _chunk(**fields: object) -> bytes:
    return _json(id="chatcmpl-1", object="chat.completion.chunk", created=1, model="mock", **fields)


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _chunk(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def _usage(output: int) -> dict[str, int]:
    return {"prompt_tokens": 100, "completion_tokens": output, "total_tokens": 100 + output}


def _event(data: bytes) -> bytes:
    event = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(event), event)


@attrs.define
class _Client:
    """A connection, from here."""

    stream: trio.abc.Stream
    tls: bool
    unread: bytes = b""

    async def serve(self) -> None:
        async with self.stream:
            try:
                while (body := await self.body()) is not None:
                    await self.reply(body)
            except trio.BrokenResourceError:
                return  # it has gone in the middle of an answer, as a cancelled one does

    async def body(self) -> bytes | None:
        """Wait for a request, and return its body; None once the client has gone."""
        while (end := self.unread.find(b"\r\n\r\n")) < 0:
            if not (more := await self.stream.receive_some()):
                return None
            self.unread += more
        length = _LENGTH.search(self.unread, 0, end)
        assert length is not None, "a request without content-length"
        size = end + 4 + int(length[1])
        parts, missing = [self.unread], size - len(self.unread)
        while missing > 0:
            parts.append(bytes(await self.stream.receive_some()))
            missing -= len(parts[-1])
        whole = b"".join(parts)
        self.unread = whole[size:]
        return whole[end + 4 : size]

    async def reply(self, body: bytes) -> None:
        script = Script.of(json.loads(body)["model"])
        if script.delay:
            await trio.sleep(script.delay / 1000)
        if script.stream:
            await self.pieces(events(script.stream), script.every / 1000)
            return
        calls = body.replace(b": ", b":").count(_TURN) < script.turns - 1
        await self.stream.send_all(answer(script.tools if calls else 0))

    async def pieces(self, pieces: tuple[bytes, ...], every: float) -> None:
        together = 1 if every or self.tls else _PIECES
        for each in range(0, len(pieces), together):
            await self.stream.send_all(b"".join(pieces[each : each + together]))
            if every:
                await trio.sleep(every)


def _context(authority: str) -> ssl.SSLContext:
    import trustme  # noqa: PLC0415 - for this alone

    made = trustme.CA()
    made.cert_pem.write_to_path(authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def _accept(context: ssl.SSLContext | None, socket: trio.SocketStream) -> None:
    stream = socket if context is None else trio.SSLStream(socket, context, server_side=True, https_compatible=True)
    await _Client(stream, tls=context is not None).serve()


async def _serve(context: ssl.SSLContext | None) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
        nursery.start_soon(trio.serve_listeners, functools.partial(_accept, context), listeners)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)  # ends with whoever started this
        nursery.cancel_scope.cancel()


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser(description="a mock of a chat-completions server")
    parser.add_argument("--tls", metavar="FILE", type=Path, help="speak TLS; leave the authority's certificate there")
    given = parser.parse_args()
    trio.run(_serve, _context(str(given.tls)) if given.tls else None)


if __name__ == "__main__":
    main()
