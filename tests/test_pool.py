"""Connections that are kept: which, for how long, and which never; and answers that come before all is asked."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from test_http import HELLO, ask, both_ways, chunks, delta, holding, http, provider, replying, serving
from test_transport import HERE, LARGE, _fails, _no_proxy, certified, counts, origin_of, pool, trusting

from alloy_trio import ConnectionFailed, ProviderTimeout
from alloy_trio.providers._exchange import Broken
from alloy_trio.providers._pool import IDLE
from alloy_trio.providers._transport import exchange

if TYPE_CHECKING:
    import ssl

    from test_http import Connection
    from trio.testing import MockClock

with_and_without_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
__all__ = ["_no_proxy"]  # a fixture for here, too


def both_sides(tls: bool) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    return (certified(*HERE), trusting()) if tls else (None, None)


# --- Kept.


@with_and_without_tls
async def test_the_one_used_last_is_used_first(tls: bool) -> None:
    servers, ours = both_sides(tls)
    async with serving(replying(HELLO), tls=servers) as server:
        origin = origin_of(server.url, ours)
        first, second = await pool().connect(origin), await pool().connect(origin)
        assert counts() == (0, 2, 0)
        for each in (first, second):
            pool().give_back(each, reusable=True)
        assert counts() == (0, 0, 2)
        assert pool().take(origin) is second
        assert pool().take(origin) is first
        assert pool().take(origin) is None
        assert counts() == (0, 2, 0)
        for each in (first, second):
            pool().give_back(each, reusable=False)
        assert counts() == (0, 0, 0)


async def test_idle_connections_are_closed_after_a_while(mock_clock: MockClock) -> None:
    """Each after its own time."""
    async with serving(holding_after(HELLO), seconds=1000) as server:
        first = await pool().connect(origin_of(server.url))
        await ask(provider(server.url))
        assert counts() == (0, 1, 1)
        mock_clock.jump(IDLE - 1)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert counts() == (0, 1, 1)
        pool().give_back(first, reusable=True)
        assert counts() == (0, 0, 2)
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert pool().idle == [first]
        mock_clock.jump(IDLE)
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert counts() == (0, 0, 0)
        assert (await ask(provider(server.url))).message.text == "Hello"
    assert server.connections == 3


def holding_after(reply: bytes) -> Any:
    async def handle(connection: Connection) -> None:
        while await connection.request():
            await connection.send(reply)

    return handle


def test_idle_connections_are_closed_at_the_end_of_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def main() -> None:
            connection = await pool().connect(origin_of(f"http://127.0.0.1:{listener.getsockname()[1]}/"))
            pool().give_back(connection, reusable=True)

        for _ in range(2):
            trio.run(main)
            theirs, _address = listener.accept()
            with theirs:
                theirs.settimeout(5)
                assert theirs.recv(1) == b""


# --- Not used again.


@with_and_without_tls
async def test_a_connection_on_which_something_has_come_is_not_used_again(tls: bool) -> None:
    """A server that says 408 before it closes a connection that it finds idle: that is no answer to the next request."""
    say = trio.Event()

    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(HELLO)
        await say.wait()
        await connection.send(http(b"{}", "408 Request Timeout"))
        await connection.request()

    servers, ours = both_sides(tls)
    async with serving(handle, tls=servers) as server:
        by = provider(server.url, ssl_context=ours)
        await ask(by)
        (kept,) = pool().idle
        assert kept.stream.is_quiet()
        say.set()
        while kept.stream.is_quiet():
            await trio.lowlevel.checkpoint()
        assert (await ask(by)).message.text == "Hello"
    assert server.connections == len(server.requests) == 2


@with_and_without_tls
@pytest.mark.parametrize("behind", [b"junk", HELLO, b"\0", b"HTTP/1.1 200"])
async def test_what_stands_behind_an_answer(behind: bytes, tls: bool) -> None:
    servers, ours = both_sides(tls)
    async with serving(replying(HELLO + behind), tls=servers) as server:
        for _ in range(2):
            assert (await ask(provider(server.url, ssl_context=ours))).message.text == "Hello"
            assert counts() == (0, 0, 0)
    assert server.connections == 2


@pytest.mark.parametrize(
    "reply",
    [
        http(b"", content_length="0", connection="close"),
        HELLO.replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["close", "1.0", "until close"],
)
async def test_what_says_that_it_is_the_last(reply: bytes) -> None:
    async def handle(connection: Connection) -> None:
        await connection.request()
        await connection.send(reply)

    async with serving(handle) as server:
        for _ in range(2):
            answer = await exchange(pool(), origin_of(server.url), [b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"])
            while await answer.read():
                pass
            await answer.aclose()
            assert counts() == (0, 0, 0)
    assert server.connections == 2


async def test_an_answer_that_is_closed_brings_nothing_more() -> None:
    """Its connection may have somebody else's answer by now."""
    async with serving(replying(HELLO)) as server:
        request = [b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"]
        first = await exchange(pool(), origin_of(server.url), request)
        assert await first.read()
        await first.aclose()
        second = await exchange(pool(), origin_of(server.url), request)
        with pytest.raises(Broken, match="closed"):
            await first.read()
        assert await second.read()
        await second.aclose()
        assert counts() == (0, 0, 1)
    assert server.connections == 1


async def test_what_stands_behind_a_compressed_body_is_not_collected() -> None:
    import gzip
    import tracemalloc

    body = gzip.compress(b"hello")
    junk = bytes(65536)

    async def handle(connection: Connection) -> None:
        await connection.request()
        size = len(body) + 200 * len(junk)
        await connection.send(http(body, content_length=str(size), content_encoding="gzip"))
        for _ in range(200):
            await connection.send(junk)

    async with serving(handle) as server:
        tracemalloc.start()
        answer = await exchange(pool(), origin_of(server.url), [b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"])
        assert [await answer.read(), await answer.read()] == [b"hello", b""]
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()
        await answer.aclose()


# --- Time.


@both_ways
@with_and_without_tls
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", chunks(delta("Hel"), end=False)])
async def test_a_stalled_answer(sent: bytes, tls: bool, streaming: bool, mock_clock: MockClock) -> None:
    servers, ours = both_sides(tls)
    async with serving(holding(sent), tls=servers, seconds=1000) as server:
        by = provider(server.url, ssl_context=ours, stall_timeout=30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stalls, by, streaming)
            await server.quiet.wait()
            await trio.testing.wait_all_tasks_blocked(0.005)
            mock_clock.jump(29)
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert counts() == (0, 1, 0)
            mock_clock.jump(2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not nursery.child_tasks
        await server.saw_the_end()
        assert counts() == (0, 0, 0)


async def _stalls(by: Any, streaming: bool) -> None:
    with pytest.raises(ProviderTimeout, match="sent nothing for 30 seconds"):
        await ask(by, streaming=streaming)


@with_and_without_tls
async def test_a_stalled_upload(tls: bool, mock_clock: MockClock) -> None:
    """The server takes the connection, and reads nothing."""
    seen = trio.Event()

    async def handle(connection: Connection) -> None:
        if isinstance(connection.stream, trio.SSLStream):
            await connection.stream.do_handshake()
        seen.set()
        await trio.sleep_forever()

    servers, ours = both_sides(tls)
    async with serving(handle, tls=servers, seconds=1000) as server:
        async with trio.open_nursery() as nursery:
            by = provider(server.url, ssl_context=ours, stall_timeout=30)
            nursery.start_soon(_fails, by, ProviderTimeout, "30 seconds", LARGE)
            await seen.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert counts() == (0, 1, 0)
            mock_clock.jump(31)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not nursery.child_tasks
        assert counts() == (0, 0, 0)


@with_and_without_tls
async def test_a_slow_upload_is_no_stall(tls: bool, mock_clock: MockClock) -> None:
    async def handle(connection: Connection) -> None:
        read = 0
        while read < 20_000_000:
            before = read
            while read < min(before + 2_000_000, 20_000_000):
                read += len(await connection.stream.receive_some())
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(10)
        await connection.send(HELLO)
        await connection.gone()

    servers, ours = both_sides(tls)
    async with serving(handle, tls=servers, seconds=1000) as server:
        by = provider(server.url, ssl_context=ours, stall_timeout=30)
        assert (await by.complete(LARGE)).message.text == "Hello"
        assert trio.current_time() >= 100


@with_and_without_tls
async def test_a_cancelled_upload(tls: bool) -> None:
    seen = trio.Event()

    async def handle(connection: Connection) -> None:
        if isinstance(connection.stream, trio.SSLStream):
            await connection.stream.do_handshake()
        seen.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await connection.gone()

    servers, ours = both_sides(tls)
    async with serving(handle, tls=servers) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider(server.url, ssl_context=ours).complete, LARGE)
            await seen.wait()
            await trio.testing.wait_all_tasks_blocked(0.005)
            nursery.cancel_scope.cancel()
        assert counts() == (0, 0, 0)
        await server.saw_the_end()


# --- Refused before all of it was read.


@with_and_without_tls
@pytest.mark.parametrize("status", ["413 Content Too Large", "401 Unauthorized"])
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_refused_before_the_body_was_read(status: str, how: str, tls: bool) -> None:
    """The system tells of the end of the connection before it hands out what came ahead of that; the answer is still read."""

    async def handle(connection: Connection) -> None:
        stream = connection.stream
        await stream.receive_some()
        await connection.send(http(b'{"error": {"message": "no, thank you"}}', status))
        under = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        if how == "reset":
            await trio.sleep(0.02)
            under.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await under.aclose()

    servers, ours = both_sides(tls)
    async with serving(handle, tls=servers) as server:
        by = provider(server.url, ssl_context=ours)
        for _ in range(3):
            with pytest.raises(Exception, match="no, thank you") as caught:
                await by.complete(LARGE)
            assert getattr(caught.value, "status", None) == int(status[:3])
            assert counts() == (0, 0, 0)


# --- Counts.


async def test_counts_after_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://nowhere.invalid/v1", f"https://127.0.0.1:{port}/v1"):
        with pytest.raises(ConnectionFailed):
            await ask(provider(url))
        assert counts() == (0, 0, 0)


@pytest.mark.parametrize(
    "host", ["a" * 70 + ".test", ".test", "a..test", "-", "%", "[::1%nowhere]", "xn--", "999.1.1.1"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_names_that_cannot_be(scheme: str, host: str) -> None:
    with trio.fail_after(5), pytest.raises(ConnectionFailed, match="base_url") as caught:
        await ask(provider(f"{scheme}://{host}:9/v1"))
    assert caught.value.nothing_sent
    assert counts() == (0, 0, 0)


async def test_connections_are_counted() -> None:
    async with serving(holding(b"")) as server:
        by = provider(server.url)
        assert by.statistics() == {"active": 0, "waiting": 0, "idle": 0}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, by)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert by.statistics() == {"active": 1, "waiting": 1, "idle": 0}
            nursery.cancel_scope.cancel()
        assert by.statistics() == {"active": 0, "waiting": 0, "idle": 0}
    async with serving(replying(HELLO)) as server:
        by = provider(server.url)
        await ask(by)
        assert by.statistics() == {"active": 0, "waiting": 0, "idle": 1}
        assert provider("http://127.0.0.1:1").statistics()["idle"] == 0
