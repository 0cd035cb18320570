"""The edge of the network: what real sockets do to a request, and that nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import gc
import gzip
import json
import logging
import math
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import httpx
import pytest
import trio
import trio.testing

import alloy_trio
from alloy_trio import (
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    InvalidOption,
    Message,
    Overloaded,
    Price,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    Text,
    Usage,
    WireError,
)
from alloy_trio.events import BlockEnd, TextDelta
from alloy_trio.providers import Anthropic, Demo, OpenAI, OpenAICompat, ProviderEvent, Request, UsageUpdate, _http
from alloy_trio.providers._decoder import Decoder
from alloy_trio.providers._openai_compat_reply import ChatDecoder
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from alloy_trio.events import Event
    from alloy_trio.providers import Response

    Handler: TypeAlias = Callable[["Connection"], Awaitable[None]]
    TLS: TypeAlias = trio.SSLStream[trio.SocketStream]

HI = Request(messages=(Message.user("Hi"),))
PROMPTLY = 2.0  # seconds in which a closed socket has to be seen
KEY = "canary-5f3a9c71d2e84b06"


_certificates = functools.cache(ssl.create_default_context)  # reading them takes longer than most of these tests


@pytest.fixture(autouse=True)
def _plain_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "create_default_context", _certificates)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- A server of our own: bytes in, bytes out, and no HTTP that it was not told to speak.


@attrs.frozen
class Sent:
    """A request, as it came over the socket."""

    line: str
    headers: dict[str, str]
    body: Any


class Connection:
    """A client's connection, from the server's side."""

    def __init__(self, stream: trio.SocketStream | TLS, server: Server) -> None:
        self.stream = stream
        self._server = server
        self._read = b""

    async def request(self) -> Sent | None:
        """Wait for the next request; None where the client hangs up instead."""
        while b"\r\n\r\n" not in self._read:
            if not await self._more():
                return None
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        size = int(headers["content-length"])
        while len(self._read) < size:
            await self._more()
        body, self._read = self._read[:size], self._read[size:]
        self._server.requests.append(Sent(line, headers, json.loads(body)))
        return self._server.requests[-1]

    async def _more(self) -> bytes:
        data = bytes(await self.stream.receive_some())
        self._read += data
        return data

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def gone(self) -> None:
        """Say no more, and wait until the client has closed the connection."""
        self._server.quiet.set()
        with contextlib.suppress(trio.BrokenResourceError):
            while await self.stream.receive_some():
                pass
        self._server.hung_up.set()


class Server:
    """What the server has seen."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Sent] = []
        self.connections = 0
        self.quiet = trio.Event()
        self.hung_up = trio.Event()

    async def saw_the_end(self) -> None:
        """Make sure that the client closes its connection promptly."""
        with trio.fail_after(PROMPTLY):
            await self.hung_up.wait()
            await trio.testing.wait_all_tasks_blocked()  # so that the task of the connection is over, too
        self.quiet, self.hung_up = trio.Event(), trio.Event()


@contextlib.asynccontextmanager
async def serving(
    handle: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", seconds: float = 10
) -> AsyncIterator[Server]:
    """Run a server on this machine; nothing under it takes longer than some seconds."""
    server = Server()

    async def accept(stream: trio.SocketStream) -> None:
        server.connections += 1
        with contextlib.suppress(trio.BrokenResourceError):
            given = stream if tls is None else trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            await handle(Connection(given, server))

    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(functools.partial(trio.serve_tcp, accept, 0, host=host))
            address = f"[{host}]" if ":" in host else host
            server.url = f"http{'s' * bool(tls)}://{address}:{listener.socket.getsockname()[1]}/v1"
            yield server
            nursery.cancel_scope.cancel()


def replying(*replies: bytes) -> Handler:
    """Answer the requests of all connections with these, the last one again and again; then wait for the client."""
    left = list(replies)

    async def handle(connection: Connection) -> None:
        while await connection.request():
            await connection.send(left.pop(0) if len(left) > 1 else left[0])
        # the client has hung up

    return handle


def replying_once(reply: bytes) -> Handler:
    """Answer one request of each connection, and close it."""

    async def handle(connection: Connection) -> None:
        if await connection.request():
            await connection.send(reply)

    return handle


def holding(reply: bytes) -> Handler:
    """Answer with these bytes, then neither say nor close anything."""

    async def handle(connection: Connection) -> None:
        if await connection.request():
            await connection.send(reply)
            await connection.gone()

    return handle


# --- What it says.


def http(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def chunks(*pieces: bytes, end: bool = True, kind: str = "text/event-stream") -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(chunk(piece) for piece in pieces) + (b"0\r\n\r\n" if end else b"")


def chunk(piece: bytes) -> bytes:
    return f"{len(piece):x}\r\n".encode() + piece + b"\r\n"


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


def whole(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()


STOP = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"
BOOM = event({"error": {"message": "it broke", "type": "server_error"}})
HELLO = http(whole("Hello"))
STREAM = chunks(delta("Hel"), delta("lo"), STOP, DONE)


# --- Who asks.


def provider(url: str, **options: Any) -> OpenAICompat:
    return OpenAICompat("m", base_url=url, **options)


async def ask(by: OpenAICompat, *, streaming: bool = False, seen: list[str] | None = None) -> Response:
    """Ask once, buffered or streamed; what is streamed goes to `seen`."""

    async def emit(*events: object) -> None:
        if seen is not None:
            seen.extend(event.text for event in events if isinstance(event, TextDelta))

    return await (by.stream(HI, emit) if streaming else by.complete(HI))


both_ways = pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streamed"])


# --- Connections: made, kept, found dead.


@both_ways
async def test_refused_connection(streaming: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ConnectionFailed, match=r"cannot connect to .*base_url") as caught:
        await ask(provider(url), streaming=streaming)
    assert caught.value.retryable
    assert url in str(caught.value)
    assert (caught.value.provider, caught.value.model, caught.value.status) == ("openai_compat", "m", None)
    assert caught.value.nothing_sent


async def test_a_name_that_nobody_knows() -> None:
    with trio.fail_after(5), pytest.raises(ConnectionFailed, match="base_url"):
        await ask(provider("http://nowhere.invalid/v1"))


async def test_one_connection_serves_many_requests() -> None:
    async with serving(replying(HELLO, STREAM, http(b"{}", "429 Too Many Requests"), STREAM, HELLO)) as server:
        by = provider(server.url)
        await ask(by)
        await ask(by, streaming=True)
        with pytest.raises(RateLimited):
            await ask(by)
        await ask(by, streaming=True)
        assert (await ask(provider(server.url))).message.text == "Hello"  # another provider, the same server
    assert len(server.requests) == 5
    assert server.connections == 1


@both_ways
async def test_a_kept_connection_that_was_closed_meanwhile(streaming: bool) -> None:
    """The server promises to keep the connection, and closes it: the next request makes another one."""
    async with serving(replying_once(STREAM if streaming else HELLO)) as server:
        for _ in range(3):
            assert (await ask(provider(server.url), streaming=streaming)).message.text == "Hello"
    assert server.connections == len(server.requests) == 3


@both_ways
async def test_a_kept_connection_that_dies_as_it_is_used(streaming: bool) -> None:
    """It seemed alive until the request was under way: without a byte of an answer, it is asked once more, unseen."""

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM if streaming else HELLO)
        await connection.request()

    async with serving(handle) as server:
        by = provider(server.url)
        await ask(by, streaming=streaming)
        assert (await ask(by, streaming=streaming)).message.text == "Hello"
    assert server.connections == 2
    assert len(server.requests) == 3
    assert server.requests[1] == server.requests[2]


async def test_a_kept_connection_that_breaks_inside_an_answer_is_not_asked_again() -> None:
    answers = [HELLO, http(b'{"choi', content_length="100")]

    async def handle(connection: Connection) -> None:
        while answers:
            await connection.request()
            await connection.send(answers.pop(0))

    async with serving(handle) as server:
        await ask(provider(server.url))
        with pytest.raises(ConnectionFailed):
            await ask(provider(server.url))
    assert len(server.requests) == 2


@both_ways
async def test_closed_at_once_without_a_byte(streaming: bool) -> None:
    """A new connection is not tried twice: that is for the retry policy to decide."""

    async def handle(connection: Connection) -> None:
        await connection.request()

    async with serving(handle) as server:
        with pytest.raises(ConnectionFailed, match="broke") as caught:
            await ask(provider(server.url), streaming=streaming)
    assert caught.value.retryable
    assert not caught.value.nothing_sent
    assert len(server.requests) == 1


async def test_many_at_once_and_all_cancelled() -> None:
    """The pool has no bound, so that no task can be cancelled while it waits there, and leave its place taken."""
    async with serving(holding(b"")) as server:
        by = provider(server.url)
        for _ in range(3):
            with trio.move_on_after(0.05):
                async with trio.open_nursery() as nursery:
                    for _ in range(40):
                        nursery.start_soon(ask, by)
    async with serving(replying(HELLO)) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(ask, provider(server.url))
        assert len(server.requests) == 40


# --- Answers that are none.


@both_ways
async def test_a_web_page_with_200(streaming: bool) -> None:
    page = http(b"\n<!doctype html><title>Welcome</title>", content_type="text/html")
    async with serving(replying(page)) as server:
        with pytest.raises(WireError, match="base_url") as caught:
            await ask(provider(server.url), streaming=streaming)
    assert not caught.value.retryable


@both_ways
@pytest.mark.parametrize("text", ["Ollama is running", "null", "default backend", "error 1020", "OK"])
async def test_a_text_with_200(text: str, streaming: bool) -> None:
    async with serving(replying(http(text.encode(), content_type="text/plain"))) as server:
        with pytest.raises(WireError, match="base_url") as caught:
            await ask(provider(server.url), streaming=streaming)
    assert not caught.value.retryable


async def test_nothing_with_200() -> None:
    async with serving(replying(http())) as server:
        with pytest.raises(WireError, match="empty"):
            await ask(provider(server.url))
        with pytest.raises(WireError, match="ended before") as caught:
            await ask(provider(server.url), streaming=True)
    assert caught.value.retryable


@both_ways
@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        ("401 Unauthorized", AuthenticationError, False),
        ("404 Not Found", BadRequest, False),
        ("429 Too Many Requests", RateLimited, True),
        ("500 Internal Server Error", ProviderError, True),
        ("503 Service Unavailable", Overloaded, True),
    ],
)
async def test_statuses(status: str, kind: type[ProviderError], retryable: bool, streaming: bool) -> None:
    error = json.dumps({"error": {"message": "no, not now"}}).encode()
    async with serving(replying(http(error, status, retry_after="7", x_request_id="req_1"))) as server:
        with pytest.raises(ProviderError, match="no, not now") as caught:
            await ask(provider(server.url), streaming=streaming)
    raised = caught.value
    assert type(raised) is kind
    assert (raised.status, raised.retryable, raised.retry_after) == (int(status[:3]), retryable, 7.0)
    assert (raised.request_id, raised.provider, raised.model) == ("req_1", "openai_compat", "m")


async def test_retry_after_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    async with serving(replying(http(b"", "429 Too Many Requests", Retry_After=date))) as server:
        with pytest.raises(RateLimited) as caught:
            await ask(provider(server.url))
    assert caught.value.retry_after == pytest.approx(100, abs=5)


async def test_a_redirect_is_said_and_not_followed() -> None:
    moved = http(b"", "308 Permanent Redirect", location="https://elsewhere.test/v1/chat/completions")
    async with serving(replying(moved)) as server:
        with pytest.raises(BadRequest, match=r"redirects to https://elsewhere\.test.*base_url") as caught:
            await ask(provider(server.url))
    assert caught.value.status == 308
    assert len(server.requests) == 1


@pytest.mark.parametrize("handle", [replying_once, holding], ids=["broken", "hanging"])
async def test_an_error_page_that_never_ends(
    handle: Callable[[bytes], Handler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status says enough: a refused key is no broken connection, to be tried again."""
    monkeypatch.setattr(_http, "_PATIENCE", 0.05)
    async with serving(handle(http(b"bad key", "401 Unauthorized", content_length="100"))) as server:
        with pytest.raises(AuthenticationError, match="bad key"):
            await ask(provider(server.url))


async def test_an_error_page_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "MAX_ERROR_BODY", 100)

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(http(b"", "500 Internal Server Error", content_length="99999999"))
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await connection.send(b"too much " * 100)
        await connection.gone()

    async with serving(handle) as server:
        with pytest.raises(ProviderError, match="too much") as caught:
            await ask(provider(server.url))
        await server.saw_the_end()
    assert caught.value.status == 500


# --- Answers that break off.


async def test_broken_in_the_middle_of_a_body() -> None:
    async with serving(replying_once(http(b'{"choi', content_length="100"))) as server:
        with pytest.raises(ConnectionFailed, match="broke") as caught:
            await ask(provider(server.url))
    assert caught.value.retryable
    assert caught.value.status is None


@pytest.mark.parametrize(
    "reply",
    [
        chunks(delta("Hel"), delta("lo"), end=False),
        chunks(delta("Hel"), delta("lo"), end=False) + b"40\r\ndata: half",
        http(delta("Hel") + delta("lo"), content_length="9999"),
    ],
    ids=["between-chunks", "inside-a-chunk", "content-length"],
)
async def test_broken_in_the_middle_of_a_stream(reply: bytes) -> None:
    async with serving(replying_once(reply)) as server:
        seen: list[Event] = []
        async with alloy_trio.stream("Hi", provider=provider(server.url)) as events:
            with pytest.raises(ConnectionFailed) as caught:
                async for each in events:
                    seen.append(each)  # noqa: PERF401 - what came before the error counts
    assert "".join(each.text for each in seen if isinstance(each, TextDelta)) == "Hello"
    assert caught.value.retryable
    assert caught.value.result is events.result
    assert events.result.status == "error"
    assert events.result.text == "Hello"
    assert events.result.messages[-1].interrupted


async def test_a_stream_that_just_ends() -> None:
    """The body is whole, the answer is not."""
    async with serving(replying(chunks(delta("Hel")))) as server:
        with pytest.raises(WireError, match="ended before") as caught:
            await ask(provider(server.url), streaming=True)
    assert caught.value.retryable


@pytest.mark.parametrize("last", [STOP, STOP + DONE], ids=["finish-reason", "done"])
@pytest.mark.parametrize("handle", [replying_once, holding], ids=["broken", "left-open"])
async def test_a_complete_answer_whose_body_does_not_end(
    handle: Callable[[bytes], Handler], last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the answer was there; how the server takes its leave does not matter."""
    for decoder in (Decoder, ChatDecoder):
        monkeypatch.setattr(decoder, "patience", 0.05)
    async with serving(handle(chunks(delta("Hel"), delta("lo"), last, end=False))) as server:
        assert (await ask(provider(server.url), streaming=True)).message.text == "Hello"


@pytest.mark.parametrize("last", [STOP, STOP + DONE], ids=["finish-reason", "done"])
async def test_what_keeps_a_complete_answer_alive_is_not_waited_for(
    last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments behind the answer are no more of it: the wait for its end is one wait, however they come."""
    for decoder in (Decoder, ChatDecoder):
        monkeypatch.setattr(decoder, "patience", 0.1)

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(delta("Hello"), last, end=False))
        for _ in range(200):
            await trio.sleep(0.02)
            await connection.send(chunk(b": still here\n\n"))

    async with serving(handle) as server:
        with trio.fail_after(PROMPTLY):
            assert (await ask(provider(server.url), streaming=True)).message.text == "Hello"


async def test_more_of_an_answer_behind_its_finish_reason_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some gateways put one into every chunk: each piece of the answer is worth the whole wait again."""
    monkeypatch.setattr(ChatDecoder, "patience", 0.3)
    piece = event({"choices": [{"index": 0, "delta": {"content": "o"}, "finish_reason": "stop"}]})

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(delta("Hell"), end=False))
        for _ in range(12):
            await connection.send(chunk(piece))
            await trio.sleep(0.05)
        await connection.send(chunk(DONE) + b"0\r\n\r\n")

    async with serving(handle) as server:
        assert (await ask(provider(server.url), streaming=True)).message.text == "Hell" + 12 * "o"


async def test_usage_behind_the_finish_reason_is_waited_for() -> None:
    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(delta("Hello"), STOP, end=False))
        await trio.sleep(0.05)
        await connection.send(chunk(event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})))
        await connection.send(b"0\r\n\r\n")

    async with serving(handle) as server:
        response = await ask(provider(server.url), streaming=True)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 2)


@pytest.mark.parametrize("handle", [replying, holding], ids=["more-to-come", "left-open"])
async def test_a_failure_in_the_same_read_as_deltas(handle: Callable[[bytes], Handler]) -> None:
    """The deltas come first, then the error, and it waits for no more bytes."""
    seen: list[str] = []
    async with serving(handle(chunks(delta("Hel") + delta("lo") + BOOM, end=handle is replying))) as server:
        with pytest.raises(ProviderError, match="it broke") as caught:
            await ask(provider(server.url), streaming=True, seen=seen)
    assert type(caught.value) is ProviderError
    assert "".join(seen) == "Hello"
    gc.collect()  # an async generator that is left half-way would warn here


async def test_a_failure_in_an_answer_names_its_request() -> None:
    reply = chunks(delta("Hel") + BOOM).replace(b"\r\n", b"\r\nx-request-id: req_7\r\n", 1)
    async with serving(replying(reply)) as server:
        with pytest.raises(ProviderError, match="it broke") as caught:
            await ask(provider(server.url), streaming=True)
    assert caught.value.request_id == "req_7"


# --- Time.


@pytest.mark.parametrize(
    ("sent", "streaming"),
    [
        (b"", False),
        (b"HTTP/1.1 200 O", False),
        (http(b'{"choi', content_length="100"), False),
        (chunks(delta("Hel"), end=False), True),
    ],
    ids=["head", "half-a-head", "body", "stream"],
)
async def test_stall_guard(sent: bytes, streaming: bool) -> None:
    async with serving(holding(sent)) as server:
        with pytest.raises(ProviderTimeout, match=r"nothing for 0\.05 seconds \(stall_timeout\)") as caught:
            await ask(provider(server.url, stall_timeout=0.05), streaming=streaming)
        await server.saw_the_end()
    assert caught.value.retryable


async def test_a_slow_consumer_is_no_stall() -> None:
    """Time in `emit` does not count, though more is to come behind it."""
    is_taken = trio.Event()

    async def emit(*_: object) -> None:
        if not is_taken.is_set():
            await trio.sleep(0.15)
            is_taken.set()

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(delta("Hel"), end=False))
        await is_taken.wait()
        await connection.send(chunk(delta("lo") + STOP + DONE) + b"0\r\n\r\n")

    async with serving(handle) as server:
        assert (await provider(server.url, stall_timeout=0.1).stream(HI, emit)).message.text == "Hello"


@both_ways
async def test_blank_lines_keep_an_answer_alive(streaming: bool) -> None:
    """Each is a byte, so that the stall guard starts anew; none is part of the answer."""

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(end=False, kind="application/json"))
        for _ in range(12):
            await connection.send(chunk(b"\r\n"))
            await trio.sleep(0.025)
        await connection.send(chunk(b"\n" + whole("Hello")) + b"0\r\n\r\n")

    async with serving(handle) as server:
        by = provider(server.url, stall_timeout=0.2)  # less than all of them take together
        assert (await ask(by, streaming=streaming)).message.text == "Hello"


async def test_comments_keep_a_stream_alive() -> None:
    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(chunks(delta("Hel"), end=False))
        for _ in range(12):
            await connection.send(chunk(b": still here\n\n"))
            await trio.sleep(0.025)
        await connection.send(chunk(delta("lo") + STOP) + b"0\r\n\r\n")

    async with serving(handle) as server:
        response = await ask(provider(server.url, stall_timeout=0.2), streaming=True)
    assert response.message.text == "Hello"


# --- What an answer is, whatever it is called.


async def test_json_to_a_streaming_request() -> None:
    """It is handed over in one piece."""
    seen: list[str] = []
    async with serving(replying(HELLO)) as server:
        response = await ask(provider(server.url), streaming=True, seen=seen)
    assert response.message.text == "Hello"
    assert seen == ["Hello"]


async def test_an_error_in_json_to_a_streaming_request() -> None:
    body = json.dumps({"error": {"message": "busy", "type": "overloaded_error"}}).encode()
    async with serving(replying(http(body, content_type="text/event-stream"))) as server:
        with pytest.raises(Overloaded, match="busy"):
            await ask(provider(server.url), streaming=True)


async def test_a_stream_to_a_buffered_request() -> None:
    async with serving(replying(STREAM)) as server:
        assert (await ask(provider(server.url))).message.text == "Hello"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/octet-stream", "nonsense"])
async def test_a_stream_of_the_wrong_content_type(kind: str) -> None:
    seen: list[str] = []
    async with serving(replying(chunks(delta("Hel"), delta("lo"), STOP, kind=kind))) as server:
        assert (await ask(provider(server.url), streaming=True, seen=seen)).message.text == "Hello"
    assert seen == ["Hel", "lo"]


@pytest.mark.parametrize(
    "start", [b": hello\n\n", b"event: x\n", b"id: 1\n", b"retry: 10\n\n", b"\xef\xbb\xbf", b"\n\n"]
)
async def test_a_stream_cut_into_single_bytes(start: bytes) -> None:
    whole_stream = start + delta("Hel") + delta("lo") + STOP
    async with serving(replying(chunks(*(bytes([byte]) for byte in whole_stream)))) as server:
        assert (await ask(provider(server.url), streaming=True)).message.text == "Hello"


@both_ways
async def test_a_byte_order_mark(streaming: bool) -> None:
    async with serving(replying(http(b"\xef\xbb\xbf" + whole("Hello")))) as server:
        assert (await ask(provider(server.url), streaming=streaming)).message.text == "Hello"


@both_ways
async def test_gzip_that_nobody_asked_for(streaming: bool) -> None:
    body = gzip.compress(delta("Hel") + delta("lo") + STOP if streaming else whole("Hello"))
    async with serving(replying(http(body, content_encoding="gzip"))) as server:
        assert (await ask(provider(server.url), streaming=streaming)).message.text == "Hello"
    assert server.requests[0].headers["accept-encoding"] == "identity"


# httpx stops in the middle of its own generators here, out of our reach.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_gzip_that_is_none() -> None:
    bad = http(b"no gzip", content_encoding="gzip")
    refused = http(b"no gzip", "429 Too Many Requests", content_encoding="gzip", retry_after="3")
    async with serving(replying(bad, refused)) as server:
        with pytest.raises(WireError, match="does not decompress"):
            await ask(provider(server.url))
        with pytest.raises(RateLimited) as caught:
            await ask(provider(server.url))
    assert caught.value.retry_after == 3.0
    gc.collect()


async def test_a_body_over_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "MAX_BODY", 2000)
    async with serving(replying(http(whole("x" * 1000)), http(whole("x" * 300_000)))) as server:
        assert (await ask(provider(server.url))).message.text == "x" * 1000
        with pytest.raises(WireError, match="larger than 2000 bytes"):
            await ask(provider(server.url))
    gc.collect()


# --- Cancel.


async def cut(server: Server, by: OpenAICompat, *, streaming: bool = False) -> None:
    """Cancel a request once all that the server sends has been sent; then make sure that nothing is left of it."""
    with assert_no_orphans():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(ask, by, streaming=streaming))
            await server.quiet.wait()
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
        await server.saw_the_end()
    gc.collect()


@pytest.mark.parametrize(
    ("sent", "streaming"),
    [
        (b"", False),
        (b"HTTP/1.1 200 OK\r\ncontent-", True),
        (http(b'{"choi', content_length="100"), False),
        (http(b"oh no", "500 Internal Server Error", content_length="100"), False),
        (chunks(delta("Hel"), end=False), True),
        (chunks(delta("Hel"), STOP, end=False), True),
    ],
    ids=["waiting", "in-the-head", "in-the-body", "in-an-error-page", "in-the-stream", "behind-the-answer"],
)
async def test_cancel_closes_the_socket(sent: bytes, streaming: bool) -> None:
    hang = holding(sent)

    async def handle(connection: Connection) -> None:
        await (hang(connection) if len(server.requests) in {0, 1} else replying(HELLO)(connection))

    async with serving(handle) as server:
        by = provider(server.url)
        await cut(server, by, streaming=streaming)
        await cut(server, by, streaming=streaming)
        assert (await ask(by)).message.text == "Hello"


async def test_cancel_while_the_consumer_takes_its_time() -> None:
    async with serving(holding(chunks(delta("Hel"), delta("lo"), end=False))) as server:

        async def emit(*_: object) -> None:
            scope.cancel()
            await trio.sleep_forever()

        with assert_no_orphans():
            with trio.CancelScope() as scope:
                await provider(server.url).stream(HI, emit)
            assert scope.cancelled_caught
            await server.saw_the_end()
    gc.collect()


async def test_an_error_of_the_consumer_closes_the_socket() -> None:
    async with serving(holding(chunks(delta("Hel"), end=False))) as server:

        async def emit(*_: object) -> None:
            raise ZeroDivisionError

        with assert_no_orphans():
            with pytest.raises(ZeroDivisionError):
                await provider(server.url).stream(HI, emit)
            await server.saw_the_end()
    gc.collect()


async def test_cancel_in_the_middle_of_a_large_request() -> None:
    """The server takes its time to read what is sent, as an uplink does."""
    large = Request(messages=(Message.user("x" * 20_000_000),))
    scope = trio.CancelScope()

    async def handle(connection: Connection) -> None:
        await trio.sleep(0.05)
        scope.cancel()
        await connection.gone()

    async with serving(handle) as server:
        with scope:
            await provider(server.url).complete(large)
        assert scope.cancelled_caught
        await server.saw_the_end()
        assert not server.requests
    gc.collect()


async def test_cancel_while_connecting() -> None:
    """A listener that accepts nobody, with a queue that is full: the system leaves whoever comes next waiting."""
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = deaf.getsockname()
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.05)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        else:
            pytest.skip("this system takes connections without an end")
        by = provider(f"http://127.0.0.1:{address[1]}/v1")
        start = trio.current_time()
        with assert_no_orphans(), trio.move_on_after(0.05) as scope:
            await ask(by)
        assert scope.cancelled_caught
        assert trio.current_time() - start < PROMPTLY
    async with serving(replying(HELLO)) as server:
        assert (await ask(provider(server.url))).message.text == "Hello"


async def test_leaving_a_stream_closes_the_socket() -> None:
    async with serving(holding(chunks(delta("Hel"), end=False))) as server:
        with assert_no_orphans():
            async with alloy_trio.stream("Hi", provider=provider(server.url)) as events:
                async for each in events:
                    if isinstance(each, TextDelta):
                        break
            await server.saw_the_end()
    assert events.result.status == "cancelled"
    assert events.result.text == "Hel"


# --- Clients.


def test_several_trio_runs_in_a_row() -> None:
    """Each has a client of its own, which is closed as it ends: no warning, and no socket of the run before."""

    async def main() -> None:
        async with serving(replying(HELLO, STREAM)) as server:
            by = provider(server.url)
            await ask(by)
            await ask(by, streaming=True)
            with trio.move_on_after(0):
                await ask(by)

    async def left_open() -> None:
        async with serving(holding(chunks(delta("Hel"), end=False))) as server:
            with trio.move_on_after(0.05):
                await ask(provider(server.url), streaming=True)

    for _ in range(3):
        trio.run(main)
        trio.run(left_open)
        gc.collect()


async def test_a_client_of_your_own() -> None:
    """It is used as it is, and not closed."""
    hooked: list[str] = []

    async def hook(response: httpx.Response) -> None:
        hooked.append(response.request.headers["x-mine"])
        await response.aread()

    hooks = {"response": [hook]}
    async with (
        serving(replying(HELLO, STREAM)) as server,
        httpx.AsyncClient(headers={"x-mine": "yes"}, event_hooks=hooks) as client,
    ):
        by = provider(server.url, http_client=client)
        assert (await ask(by)).message.text == "Hello"
        assert (await ask(by, streaming=True)).message.text == "Hello"
        assert not client.is_closed
    assert hooked == ["yes", "yes"]
    assert [sent.headers["x-mine"] for sent in server.requests] == ["yes", "yes"]
    assert server.connections == 1


async def test_a_client_of_your_own_that_follows_redirects_in_a_circle() -> None:
    circle = http(b"", "307 Temporary Redirect", location="/v1/chat/completions")
    async with (
        serving(replying(circle)) as server,
        httpx.AsyncClient(follow_redirects=True, max_redirects=3) as client,
    ):
        with pytest.raises(ConnectionFailed, match="redirects") as caught:
            await ask(provider(server.url, http_client=client))
    assert not caught.value.retryable
    assert len(server.requests) == 4


async def test_a_client_of_your_own_with_a_header_that_cannot_be() -> None:
    async with serving(replying(HELLO)) as server, httpx.AsyncClient(headers={"x-mine": "a\nb"}) as client:
        with pytest.raises(InvalidOption, match="http_client"):
            await ask(provider(server.url, http_client=client))


# --- Headers, and keys.


async def test_extra_headers_override_in_any_case() -> None:
    options = {"api_key": KEY, "extra_headers": {"AUTHORIZATION": "Basic eDp5", "Content-type": "x/y", "X-Title": "me"}}
    async with serving(replying(HELLO)) as server:
        await ask(provider(server.url, **options))
    headers = server.requests[0].headers
    assert headers["authorization"] == "Basic eDp5"
    assert headers["content-type"] == "x/y"
    assert headers["x-title"] == "me"
    assert server.requests[0].line == "POST /v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize(
    "headers",
    [
        {"x-title": "Żółw"},
        {"x-a": f"{KEY}\n"},
        {"x-a": f"a\r\nx-b: {KEY}"},
        {"x a": "b"},
        {"": "b"},
        {"x-a": 5},
        {"Content-Length": "3"},
    ],
    ids=["not-ascii", "line-end", "injected", "blank", "nameless", "number", "framing"],
)
def test_extra_headers_that_http_cannot_carry(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidOption, match="extra_headers") as caught:
        provider("http://localhost", extra_headers=headers)
    assert KEY not in str(caught.value)


ECHO_401 = json.dumps({"error": {"message": f"the key Bearer {KEY} is wrong ({KEY})"}}).encode()


IN_HEADER = {"extra_headers": {"Authorization": f"Bearer {KEY}"}}
IN_OWN_HEADER = {"extra_headers": {"x-my-token": KEY}}


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ({"api_key": KEY}, http(ECHO_401, "401 Unauthorized")),
        (IN_HEADER, http(ECHO_401, "401 Unauthorized")),
        (IN_OWN_HEADER, http(ECHO_401, "401 Unauthorized")),
        ({"api_key": KEY}, http(KEY.encode(), "500 Internal Server Error")),
        ({"api_key": KEY}, http(f"<html>{KEY}</html>".encode(), "403 Forbidden")),
        ({"api_key": KEY}, http(f"<html>{KEY}</html>".encode())),
        ({"api_key": KEY}, http(f"{'x' * 180}{KEY * 2}".encode())),  # an excerpt of this ends inside the key
        ({"api_key": KEY}, http(f"{'x' * 1975}{KEY}".encode(), "400 Bad Request")),  # this as well
        ({"api_key": KEY}, http(b"", "307 Temporary Redirect", location=f"https://elsewhere.test/?key={KEY}")),
        ({"api_key": KEY}, chunks(delta("Hi"), event({"error": {"message": f"{KEY}?"}}))),
    ],
    ids=["json", "header", "own-header", "text", "page", "page-200", "cut-200", "cut-400", "redirect", "stream"],
)
async def test_a_key_that_the_server_echoes(
    options: dict[str, Any], reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[object] = []
    async with serving(replying(reply)) as server:
        by = provider(server.url, **options)
        with pytest.raises(ProviderError) as caught:
            await alloy_trio.run("Hi", provider=by, on_event=heard.append, max_retries=0)
    assert KEY in str(server.requests[0].headers)
    error = caught.value
    # What httpcore logs of an answer's head is what the server wrote there.
    log = [record.getMessage() for record in caplog.records if not record.name.startswith("httpcore")]
    everything = f"{error} {error!r} {error.args} {error.result!r} {heard!r} {log}"
    assert KEY not in everything
    assert KEY[:10] not in everything
    assert "…" in str(error)


@pytest.mark.parametrize("make", [Anthropic, OpenAI, OpenAICompat])
def test_a_key_is_in_no_repr(make: type[Anthropic | OpenAI | OpenAICompat]) -> None:
    by = make("m", api_key=KEY, extra_headers={"x-my-token": KEY}, extra_body={"key": KEY})
    assert KEY not in repr(by)
    assert KEY not in repr(by.encode(HI, stream=False))
    assert KEY not in by.origin


async def test_a_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(replying(HELLO)) as server:
        await ask(provider(server.url, api_key=KEY, extra_headers={"x-my-token": KEY}))
    assert "POST" in caplog.text
    assert KEY not in caplog.text


async def test_a_key_in_the_address() -> None:
    async with serving(replying(http(KEY.encode(), "500 Internal Server Error"), b"")) as server:
        by = provider(server.url.replace("//", f"//me:{KEY}@"))
        with pytest.raises(ProviderError, match="HTTP 500: …") as caught:
            await ask(by)
        assert KEY not in str(caught.value)
    with pytest.raises(ConnectionFailed, match="//me:…@") as caught:
        await ask(by)
    assert KEY not in str(caught.value)
    with pytest.raises(InvalidOption, match=r"//me:…@-ü.test/v1.* cannot be used") as wrong:
        await ask(provider(f"https://me:{KEY}@-ü.test/v1"))
    assert KEY not in str(wrong.value)


@pytest.mark.parametrize("make", [Anthropic, OpenAI, OpenAICompat])
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"https://me:{KEY}@host.test/v1", "'https://me:…@host.test/v1'"),
        (f"https://me:{KEY}@a@host.test/v1", "'https://me:…@host.test/v1'"),
        (f"https://{KEY}@host.test", "'https://…@host.test'"),
        ("https://host.test:8080/a@b", "'https://host.test:8080/a@b'"),
    ],
)
def test_a_key_in_the_address_is_in_no_repr(
    make: type[Anthropic | OpenAI | OpenAICompat], url: str, shown: str
) -> None:
    by = make("m", api_key="key-1", base_url=url)
    assert f"base_url={shown}" in repr(by)
    assert by.base_url == url


@pytest.mark.parametrize(
    "url", [f"me:{KEY}@host.test/v1", f"https://me:{KEY}@host.test:port", f"https://me:{KEY}@[::1"]
)
def test_a_key_in_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidOption, match=r"me:….* is no address") as caught:
        provider(url)
    assert KEY not in str(caught.value)


async def test_a_placeholder_is_no_key() -> None:
    """A short one may stand in any text; taking it out would only make the message unreadable."""
    async with serving(replying(http(b"not a model", "404 Not Found"))) as server:
        with pytest.raises(BadRequest, match="not a model"):
            await ask(provider(server.url, api_key="a"))


# --- What it costs.


def test_a_price_is_a_price() -> None:
    """None by default, also for servers of one's own: what is not known is not free."""
    assert provider("http://localhost:11434/v1").price is None
    price = Price("3", "15")
    assert OpenAI(model="m", api_key="k", price=price).price is price
    for wrong in ("3", 0, (3, 15)):
        with pytest.raises(InvalidOption, match=r"price=.* is no price: write Price"):
            Anthropic(model="m", api_key="k", price=wrong)  # type: ignore[arg-type]


NOWHERE = httpx.MockTransport(lambda _: httpx.Response(404))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            {"http_client": httpx.Client(transport=NOWHERE, trust_env=False)},
            "http_client is a Client: it has to be an httpx.AsyncClient",
        ),
        ({"http_client": NOWHERE}, r"a transport goes into one, httpx.AsyncClient\(transport"),
        ({"ssl_context": "ca.pem"}, "ssl_context is a str"),
        *(({"stall_timeout": wrong}, "seconds above 0; math.inf for no limit") for wrong in (None, 0, -1, "1", True)),
    ],
)
def test_what_the_first_request_would_stumble_over_is_refused_at_once(option: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidOption, match=says):
        provider("http://localhost", **option)
    assert provider("http://localhost", stall_timeout=math.inf).stall_timeout == math.inf


def test_the_demo_costs_nothing() -> None:
    assert Demo().price == Price.free()
    assert Demo().terms.enforces_cap
    assert Demo(price=Price("3", "15")).price.output == 15


async def test_usage_reaches_whoever_listens() -> None:
    """As an event like the others, in the order of the stream; an answer in one piece needs none."""
    counted = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    seen: list[ProviderEvent] = []

    async def emit(*events: ProviderEvent) -> None:
        seen.extend(events)

    async with serving(replying(chunks(delta("Hello"), STOP, counted, DONE), HELLO)) as server:
        await provider(server.url).stream(HI, emit)
        assert seen == [TextDelta("Hello"), BlockEnd(Text("Hello")), UsageUpdate(Usage(3, 1))]
        await provider(server.url).stream(HI, emit)
    assert seen[3:] == seen[:2]


@pytest.mark.parametrize(
    ("by", "is_there"),
    [
        (Anthropic("m", api_key="k"), True),
        (Anthropic("m", api_key="k", base_url="https://API.anthropic.com/v1"), True),
        (Anthropic("m", api_key="k", base_url="https://gateway.test"), False),
        (Anthropic("m", api_key="k", base_url="https://api.anthropic.com.gateway.test"), False),
        (OpenAI("m", api_key="k"), True),
        (OpenAI("m", api_key="k", base_url="http://localhost:8000/v1"), False),
        (OpenAI("m", api_key="k", base_url="https://me.openai.azure.com/openai/v1"), False),
        (OpenAICompat.of("groq", "m", api_key="k"), True),
        (OpenAICompat.of("groq", "m", api_key="k", base_url="https://gateway.test/v1"), False),
        (OpenAICompat.of("moonshot", "m", api_key="k", base_url="https://api.moonshot.cn/v1"), False),
        (OpenAICompat("m", base_url="https://api.groq.com/openai/v1"), False),
        (OpenAICompat("m", name="groq", base_url="https://api.groq.com/openai/v1"), True),
    ],
)
def test_whether_it_is_the_vendor_who_answers(by: Anthropic | OpenAI | OpenAICompat, is_there: bool) -> None:
    """At its own address, where its own prices hold."""
    assert by.is_at_vendor is is_there
