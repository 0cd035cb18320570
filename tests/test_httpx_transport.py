"""Our exchange under a client of httpx: what httpx promises, over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing
from test_http import HELLO, STREAM, ask, http, provider, replying, serving
from test_transport import HERE, _no_proxy, certified, trusting

from alloy_trio.providers import TrioTransport
from alloy_trio.testing import assert_no_orphans
from alloy_trio.testing._asserts import all_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from test_http import Connection, Handler
    from trio.testing import MockClock

__all__ = ["_no_proxy"]  # a fixture for here, too


class Seen:
    """Requests, byte for byte."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []

    async def __call__(self, connection: Connection) -> None:
        data = b""
        while more := await connection.stream.receive_some():
            data += more
            if _is_whole(data):
                self.requests.append(data)
                data = b""
                await connection.send(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length: "):
            return len(body) == int(line[16:])
        if line == b"transfer-encoding: chunked":
            return body.endswith(b"0\r\n\r\n")
    return bool(end)


def root(server: Any) -> str:
    return str(server.url).removesuffix("/v1")


def client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=TrioTransport(**options), timeout=5)


async def test_a_request_and_its_answer() -> None:
    seen = Seen(http(b'{"a": 1}', "201 Created", X_Odd_Case="\u00e9", Set_Cookie="a=b"))
    async with serving(seen) as server, client() as by:
        answer = await by.put(root(server) + "/p%20q?x=1&y=\u00e4", content=b"body", headers={"X-Mine": "yes"})
        assert (answer.status_code, answer.json()) == (201, {"a": 1})
        assert answer.http_version == "HTTP/1.1"
        assert (b"X-Odd-Case", "\u00e9".encode()) in answer.headers.raw
        assert by.cookies["a"] == "b"
        assert answer.elapsed.total_seconds() > 0
    (asked,) = seen.requests
    head, _, body = asked.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PUT /p%20q?x=1&y=%C3%A4 HTTP/1.1"
    assert {b"X-Mine: yes", b"Content-Length: 4", b"Host: " + root(server)[7:].encode()} <= {*lines}
    assert body == b"body"
    assert server.connections == 1


async def test_one_connection_serves_many() -> None:
    async with serving(Seen(HELLO)) as server, client() as by:
        for _ in range(3):
            await by.get(root(server))
        async with by.stream("GET", root(server)) as answer:
            assert b"".join([piece async for piece in answer.aiter_raw()])
        assert server.connections == 1
        head = await by.head(root(server))
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "73")
        assert (await by.get(root(server))).status_code == 200


async def test_a_compressed_body_is_left_to_httpx() -> None:
    packed = gzip.compress(b"hello")
    async with serving(Seen(http(packed, content_encoding="gzip"))) as server, client() as by:
        assert (await by.get(root(server))).text == "hello"
        async with by.stream("GET", root(server)) as answer:
            assert b"".join([piece async for piece in answer.aiter_raw()]) == packed


async def parts(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        yield piece


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({}, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        ({"content-length": "5"}, b"abcde"),
        ({"transfer-encoding": "Chunked"}, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    ],
)
async def test_a_body_that_comes_in_pieces(headers: dict[str, str], sent: bytes) -> None:
    seen = Seen(HELLO)
    async with serving(seen) as server, client() as by:
        for _ in range(2):
            await by.post(root(server), content=parts(b"abc", b"", b"de"), headers=headers)
    assert [asked.partition(b"\r\n\r\n")[2] for asked in seen.requests] == [sent, sent]
    assert server.connections == 1


async def test_files() -> None:
    seen = Seen(HELLO)
    async with serving(seen) as server, client() as by:
        await by.post(root(server), files={"f": b"x" * 100_000}, data={"a": "b"})
    assert b"x" * 100_000 in seen.requests[0]


@pytest.mark.parametrize("content", [b"abc", [b"abc"], [b"a", b"bcd", b"e", b"fgh"]])
async def test_a_body_of_another_length_than_it_says(content: Any) -> None:
    given: Any = parts(*content) if isinstance(content, list) else content
    async with contextlib.AsyncExitStack() as stack:
        server, by = await stack.enter_async_context(serving(Seen(HELLO))), await stack.enter_async_context(client())
        if isinstance(content, list):
            await stack.enter_async_context(contextlib.aclosing(given))  # httpx leaves it half-way
        with pytest.raises(httpx.LocalProtocolError, match="was to have"):
            await by.post(root(server), content=given, headers={"content-length": "5"})
        assert (await by.get(root(server))).status_code == 200


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"x": "a\r\nb: c"}),
        ("GET", {"x": "a\0"}),
        ("GET", {"x y": "a"}),
        ("GET", {"": "a"}),
        ("GE T", {}),
        ("GET /\r\n", {}),
        ("POST", {"content-length": "+0"}),
        ("POST", {"transfer-encoding": "gzip, chunked"}),
        ("POST", {"transfer-encoding": "chunked", "content-length": "0"}),
    ],
)
async def test_a_request_that_is_none(method: str, headers: dict[str, str]) -> None:
    async with serving(Seen(HELLO)) as server, client() as by:
        with pytest.raises(httpx.LocalProtocolError):
            await by.request(method, root(server), headers=headers)
    assert server.connections == 0


async def test_what_it_does_not_do() -> None:
    async with client() as by:
        for method, url in (("GET", "ftp://nowhere.invalid"), ("CONNECT", "http://nowhere.invalid")):
            with pytest.raises(httpx.UnsupportedProtocol):
                await by.request(method, url)


async def test_a_connection_that_says_it_is_the_last() -> None:
    async with serving(Seen(HELLO)) as server, client() as by:
        for _ in range(2):
            await by.get(root(server), headers={"Connection": "x, Close"})
    assert server.connections == 2


async def test_a_kept_connection_that_dies_as_it_is_used() -> None:
    """What may be repeated is; the rest is for whoever asks."""

    async def handle(connection: Connection) -> None:
        await connection.stream.receive_some()
        await connection.send(HELLO)
        await connection.stream.receive_some()

    async with serving(handle) as server, client() as by:
        for _ in range(3):
            assert (await by.get(root(server))).status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="the server closed it"):
            await by.post(root(server), content=b"x")


def saying(reply: bytes) -> Handler:
    """Answer whatever comes, and close."""

    async def handle(connection: Connection) -> None:
        await connection.stream.receive_some()
        await connection.send(reply)

    return handle


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0\r\n", http(b"abc", content_length="5"), b"HTTP/1.1 200 OK\r\n"])
async def test_what_is_no_answer(reply: bytes) -> None:
    async with serving(saying(reply)) as server, client() as by:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)) as caught:
            await by.get(root(server))
        assert caught.value.request.url == root(server)


async def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with client() as by:
        for address in (url, "http://nowhere.invalid"):
            with pytest.raises(httpx.ConnectError):
                await by.get(address)


@pytest.mark.parametrize(
    ("kind", "where"),
    [(httpx.ConnectTimeout, "connect"), (httpx.ReadTimeout, "read"), (httpx.WriteTimeout, "write")],
)
async def test_time_outs(kind: type[httpx.TimeoutException], where: str, mock_clock: MockClock) -> None:
    """Each is its own; the others would be infinite."""
    seen = trio.Event()

    async def handle(connection: Connection) -> None:
        seen.set()
        await trio.sleep_forever()

    async def wait(by: httpx.AsyncClient, url: str) -> None:
        timeout = httpx.Timeout(None, **{where: 30})
        with pytest.raises(kind):
            await by.post(url, content=b"x" * (20_000_000 if where == "write" else 10), timeout=timeout)

    async with (
        serving(handle, seconds=1000) as server,
        client(verify=trusting()) as by,
        trio.open_nursery() as nursery,
    ):
        url = root(server)
        nursery.start_soon(wait, by, url.replace("http:", "https:") if where == "connect" else url)
        await seen.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(29)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not nursery.child_tasks


async def test_a_cancel_in_the_middle_of_a_body_closes_the_socket() -> None:
    async def handle(connection: Connection) -> None:
        await connection.stream.receive_some()
        await connection.send(http(b"abc", content_length="5"))
        await connection.gone()

    async with serving(handle) as server, client() as by:
        with assert_no_orphans():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(by.get, root(server))
                await server.quiet.wait()
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            await server.saw_the_end()
            async with by.stream("GET", root(server)):
                pass  # left before its body has come
            await server.saw_the_end()


async def test_an_upload_that_fails_closes_the_socket() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"abc"
        raise KeyError("no more")

    async def handle(connection: Connection) -> None:
        await connection.gone()

    async with serving(handle) as server, client() as by:
        with assert_no_orphans():
            with pytest.raises(KeyError):
                await by.post(root(server), content=failing())
            await server.saw_the_end()


async def test_an_upload_that_is_refused() -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x" * 65536

    async def handle(connection: Connection) -> None:
        await connection.stream.receive_some()
        await connection.send(http(b"no", "413 Content Too Large"))

    async with serving(handle) as server, client() as by, contextlib.aclosing(endless()) as body:
        answer = await by.post(root(server), content=body)
        assert (answer.status_code, answer.text) == (413, "no")


async def test_tls() -> None:
    async with serving(Seen(HELLO), tls=certified(*HERE)) as server:
        for verify in (trusting(), False):
            async with client(verify=verify) as by:
                for _ in range(2):
                    assert (await by.get(root(server))).status_code == 200
        async with client() as by:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await by.get(root(server))
    assert server.connections == 3


async def test_closing_leaves_nothing() -> None:
    async with serving(Seen(HELLO)) as server:
        with assert_no_orphans():
            async with client() as by:
                await by.get(root(server))
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert "alloy_trio connections" not in {task.name for task in all_tasks()}


def test_several_runs_in_a_row() -> None:
    transport = TrioTransport()

    async def main() -> None:
        async with serving(Seen(HELLO)) as server:
            by = httpx.AsyncClient(transport=transport)
            for _ in range(2):
                assert (await by.get(root(server))).status_code == 200
            assert server.connections == 1

    for _ in range(3):
        trio.run(main)
    trio.run(transport.aclose)


async def test_under_a_provider() -> None:
    async with serving(replying(HELLO, STREAM)) as server, client() as by:
        mine = provider(server.url, http_client=by)
        assert (await ask(mine)).message.text == "Hello"
        assert (await ask(mine, streaming=True)).message.text == "Hello"
        assert server.connections == 1


async def test_under_a_provider_a_dead_connection_is_seen() -> None:
    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(HELLO)
        await connection.request()

    async with serving(handle) as server, client() as by:
        for _ in range(3):
            assert (await ask(provider(server.url, http_client=by))).message.text == "Hello"
