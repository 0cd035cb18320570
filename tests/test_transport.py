"""The transport: TLS, proxies, and connections that are kept, over real sockets."""

from __future__ import annotations

import functools
import os
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing
import trustme
from test_http import (
    HELLO,
    HI,
    STREAM,
    ask,
    both_ways,
    chunks,
    delta,
    http,
    provider,
    replying,
    serving,
)

from alloy_trio import ConnectionFailed, InvalidOption, Message, Overloaded, ProviderError, WireError
from alloy_trio.providers import Request, TrioTransport
from alloy_trio.providers._pool import Origin, Pool
from alloy_trio.providers._streams import TLSStream, connect
from alloy_trio.providers._transport import current_pool, default_context
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from test_http import Connection, Handler
    from trio.testing import MockClock

LARGE = Request(messages=(Message.user("x" * 20_000_000),))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def certified(*names: str) -> ssl.SSLContext:
    """What a server of these names makes TLS with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


HERE = ("127.0.0.1", "::1", "localhost")


@functools.cache
def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


def pool() -> Pool:
    found = current_pool()
    assert found is not None
    return found


def counts() -> tuple[int, int, int]:
    return pool().connecting, len(pool().active), len(pool().idle)


def origin_of(url: str, context: ssl.SSLContext | None = None) -> Origin:
    host, _, port = url.split("/")[2].rpartition(":")
    return Origin(host.strip("[]"), int(port), context)


# --- TLS.


@both_ways
async def test_a_certificate_of_ones_own(streaming: bool) -> None:
    async with serving(replying(STREAM if streaming else HELLO), tls=certified(*HERE)) as server:
        by = provider(server.url, ssl_context=trusting())
        for _ in range(3):
            assert (await ask(by, streaming=streaming)).message.text == "Hello"
        assert counts() == (0, 0, 1)
    assert server.connections == 1


async def test_a_certificate_that_nobody_knows() -> None:
    async with serving(replying(HELLO), tls=certified(*HERE)) as server:
        with assert_no_orphans():
            with pytest.raises(ConnectionFailed, match=r"no TLS: .*certificate verify failed") as caught:
                await ask(provider(server.url))
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert caught.value.nothing_sent
    assert not server.requests


async def test_a_certificate_of_somebody_else() -> None:
    async with serving(replying(HELLO), tls=certified("elsewhere.test")) as server:
        with pytest.raises(ConnectionFailed, match=r"not valid for '127\.0\.0\.1'") as caught:
            await ask(provider(server.url, ssl_context=trusting()))
    assert caught.value.nothing_sent
    assert not server.requests


async def test_verification_off() -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with serving(replying(HELLO), tls=certified("elsewhere.test")) as server:
        assert (await ask(provider(server.url, ssl_context=careless))).message.text == "Hello"


async def test_connections_of_one_context_are_not_used_with_another() -> None:
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with serving(replying(HELLO), tls=certified("elsewhere.test")) as server:
        await ask(provider(server.url, ssl_context=careless))
        with pytest.raises(ConnectionFailed):
            await ask(provider(server.url, ssl_context=trusting()))


async def test_a_server_that_speaks_no_tls() -> None:
    async def handle(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(handle) as server:
        with pytest.raises(ConnectionFailed, match=r"no TLS: .*(WRONG_VERSION|record layer|wrong version)") as caught:
            await ask(provider(server.url.replace("http:", "https:"), ssl_context=trusting()))
    assert caught.value.nothing_sent


@pytest.fixture
def _certificates_from_the_environment() -> Iterator[None]:
    default_context.cache_clear()
    yield
    default_context.cache_clear()


@pytest.mark.usefixtures("_certificates_from_the_environment")
async def test_certificates_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with serving(replying(HELLO), tls=certified(*HERE)) as server:
        assert (await ask(provider(server.url))).message.text == "Hello"


class Corked(trio.abc.HalfCloseableStream):
    """A transport that keeps what is sent until it is told to let go."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.kept = bytearray()
        self.is_corked = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.kept += data
        if not self.is_corked:
            await self.flush()

    async def flush(self) -> None:
        kept, self.kept = self.kept, bytearray()
        await self._stream.send_all(kept)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_many_records_are_few_reads() -> None:
    """A server that streams puts each event in a record of its own; what has arrived is taken at once."""
    pieces = 300

    async def serve(raw: trio.SocketStream) -> None:
        corked = Corked(raw)
        stream = trio.SSLStream(corked, certified(*HERE), server_side=True)
        await stream.do_handshake()
        corked.is_corked = True
        for number in range(pieces):
            await stream.send_all(b"event %03d;" % number)
        await corked.flush()
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            ours = await connect("127.0.0.1", listener.socket.getsockname()[1], trusting(), 5)
            assert isinstance(ours, TLSStream)
            reads = [await ours.receive()]
            while sum(map(len, reads)) < pieces * 10:
                reads.append(await ours.receive())
            assert b"".join(reads) == b"".join(b"event %03d;" % number for number in range(pieces))
            assert len(reads) <= 5
            assert ours.is_quiet()
            ours.close()
            nursery.cancel_scope.cancel()


def cut_off(reply: bytes) -> Handler:
    """Answer with this, and close the socket under TLS, which says no goodbye."""

    async def handle(connection: Connection) -> None:
        assert isinstance(connection.stream, trio.SSLStream)
        await connection.request()
        await connection.send(reply)
        await connection.stream.transport_stream.aclose()

    return handle


@both_ways
@pytest.mark.parametrize("reply", [b"", http(b'{"choi', content_length="100"), chunks(delta("Hel"), end=False)])
async def test_tls_cut_off_in_the_middle(reply: bytes, streaming: bool) -> None:
    async with serving(cut_off(reply), tls=certified(*HERE)) as server:
        with pytest.raises(ConnectionFailed) as caught:
            await ask(provider(server.url, ssl_context=trusting()), streaming=streaming)
    assert not caught.value.nothing_sent


async def test_tls_cut_off_behind_an_answer() -> None:
    """Many servers do that."""
    async with serving(cut_off(HELLO), tls=certified(*HERE)) as server:
        for _ in range(2):
            assert (await ask(provider(server.url, ssl_context=trusting()))).message.text == "Hello"
    assert server.connections == 2


async def test_cancel_in_the_handshake() -> None:
    async def handle(connection: Connection) -> None:
        await connection.gone()

    async with serving(handle) as server:
        by = provider(server.url.replace("http:", "https:"), ssl_context=trusting())
        with assert_no_orphans():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, by)
                await server.quiet.wait()
                await trio.testing.wait_all_tasks_blocked()
                assert counts() == (1, 0, 0)
                nursery.cancel_scope.cancel()
            await server.saw_the_end()
        assert counts() == (0, 0, 0)


async def test_a_handshake_that_takes_too_long(mock_clock: MockClock) -> None:
    async def handle(connection: Connection) -> None:
        await connection.gone()

    async with serving(handle, seconds=100) as server:
        by = provider(server.url.replace("http:", "https:"), ssl_context=trusting())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, by, ConnectionFailed, "no answer within 10 seconds")
            await server.quiet.wait()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(11)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not nursery.child_tasks
        await server.saw_the_end()
        assert counts() == (0, 0, 0)


async def _fails(by: Any, kind: type[ProviderError], words: str, request: Request = HI) -> None:
    with pytest.raises(kind, match=words):
        await by.complete(request)


@pytest.mark.parametrize("context", [None, trusting], ids=["plain", "TLS"])
async def test_ipv6(context: Any) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6, not even a loopback")
    tls = certified(*HERE) if context else None
    async with serving(replying(HELLO), host="::1", tls=tls) as server:
        await ask(provider(server.url, ssl_context=context and context()))
        assert server.requests[0].headers["host"] == server.url.split("/")[2]
        assert server.requests[0].headers["host"].startswith("[::1]:")


# --- Proxies.


async def test_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(replying(HELLO, STREAM)) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        by = provider("http://nowhere.invalid:8000/v1")
        assert (await ask(by)).message.text == "Hello"
        assert (await ask(by, streaming=True)).message.text == "Hello"
        assert current_pool() is None
    assert {sent.line for sent in server.requests} == {"POST http://nowhere.invalid:8000/v1/chat/completions HTTP/1.1"}
    assert server.requests[0].headers["host"] == "nowhere.invalid:8000"
    assert server.connections == 1


async def test_a_proxy_that_is_not_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "http://nowhere.invalid")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with serving(replying(HELLO)) as server:
        assert (await ask(provider(server.url))).message.text == "Hello"


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ConnectionFailed, match="cannot connect") as caught:
        await ask(provider("http://nowhere.invalid/v1"))
    assert caught.value.nothing_sent


WITHOUT_HTTPX = """
import functools, sys, trio

async def main():
    async def serve(stream):
        await stream.receive_some()
        await stream.send_all({reply!r})

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        from alloy_trio.providers import OpenAICompat, Request
        from alloy_trio import Message

        by = OpenAICompat("m", base_url="http://127.0.0.1:%d/v1" % listener.socket.getsockname()[1])
        print((await by.complete(Request(messages=(Message.user("Hi"),)))).message.text)
        nursery.cancel_scope.cancel()

trio.run(main)
print(sorted({{"httpx", "httpcore", "h11", "anyio"}} & sys.modules.keys()))
"""


def test_httpx_is_not_loaded_where_nobody_asks_for_it() -> None:
    code = WITHOUT_HTTPX.format(reply=HELLO)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    said = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60, env=environment)
    assert said.split("\n") == ["Hello", "[]", ""]


async def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    default_context.cache_clear()
    by = provider("https://127.0.0.1:1/v1")
    for asks in (by.statistics, lambda: None):
        with pytest.raises(InvalidOption, match="SSL_CERT_FILE"):
            asks()
            await ask(by)
    async with httpx.AsyncClient(transport=TrioTransport()) as client:
        with pytest.raises(httpx.LocalProtocolError, match="SSL_CERT_FILE"):
            await client.get("https://127.0.0.1:1")
    default_context.cache_clear()


async def test_a_proxy_of_a_kind_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    async with serving(replying(HELLO)) as server:
        with pytest.raises(InvalidOption, match="proxy of the environment"):
            await ask(provider(server.url))


async def test_an_error_page_that_is_compressed_unasked_in_an_unknown_way_still_has_its_status() -> None:
    page = http(b"\x0b\x00", "529 Overloaded", content_encoding="br")
    async with serving(replying(page, http(b"\x0b\x00", content_encoding="br"))) as server:
        with pytest.raises(Overloaded):
            await ask(provider(server.url))
        with pytest.raises(WireError, match="compressed as 'br'"):
            await ask(provider(server.url))
