"""Agents in other processes, where one end or the network between them behaves badly, and where somebody leaves at a bad moment."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing
from far import TOKEN, linked
from test_remote import PART, raw_connection, scripted, served
from trio_websocket import ConnectionClosed, wrap_server_stream

from alloy_trio import InvalidOption, RateLimited, RequestCancelled, Result, UnknownRequest
from alloy_trio.pubsub import PubSub
from alloy_trio.remote import ConnectionLost, Permissions, ProtocolError, Refused, connect, serve_agents
from alloy_trio.remote._data import error_to_json, result_to_json
from alloy_trio.remote._house import House
from alloy_trio.remote._link import Link
from alloy_trio.remote._peer import Limits, Peer
from alloy_trio.remote._rights import Doors
from alloy_trio.remote._server import _Server
from alloy_trio.testing import assert_no_orphans, delay, error, text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

MARK = "a token that is in no frame of ours"


@contextlib.asynccontextmanager
async def lying(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Serve something else than agents, and give its URL."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await answer(stream)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


# Leaving a subscription


@pytest.mark.parametrize("closes", [False, True])
async def test_leaving_while_messages_wait(closes: bool, autojump_clock: object) -> None:
    """That is no error: it ended as asked."""
    pubsub = PubSub()
    with assert_no_orphans():
        async with linked({}, pubsub) as remote, remote.subscribe("t") as messages:
            for number in range(5):
                pubsub.publish("t", number)
            await trio.sleep(1)
            if closes:
                await messages.aclose()


# What makes no JSON


async def test_what_makes_no_json_is_published_as_text(autojump_clock: object) -> None:
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError

    pubsub = PubSub()
    async with linked({}, pubsub) as remote, remote.subscribe("t") as messages:
        for message in ("half \ud800", Rude(), 1):
            pubsub.publish("t", message)
        assert [await messages.receive() for _ in range(3)] == ["half \ufffd", "<Rude>", 1]


async def test_half_a_surrogate_pair_ends_no_connection(autojump_clock: object) -> None:
    """Tools read anything; before, the connection broke, and every request on it."""
    async with scripted("half \ud800", "b") as agent, linked({"x": agent}) as remote:
        assert (await remote.agent("x").chat("go")).text == "half \ufffd"
        assert (await remote.agent("x").chat("go \ud800")).text == "b"


def test_an_error_whose_words_fail() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert error_to_json(Rude())["message"] == "<Rude>"


# Clients


class Deaf:
    """The socket of a client that asks and asks, and never reads."""

    def __init__(self) -> None:
        self.asked = 0

    async def get_message(self) -> str:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return json.dumps({"id": self.asked, "do": "agents"})

    async def send_message(self, _: str) -> None:
        await trio.sleep_forever()

    async def ping(self) -> None:
        await trio.sleep_forever()

    async def aclose(self, *_: Any) -> None:
        pass

    class _CloseHandshake:
        def set(self) -> None:
            pass

    _close_handshake = _CloseHandshake()


async def test_who_never_reads_is_not_listened_to(autojump_clock: object) -> None:
    """Else answers pile up, each as large as a conversation, until a ping is missed."""
    socket = Deaf()
    link = Link(cast("Any", socket), max_message_size=2**20)
    limits = Limits(max_requests=10, ping_interval=5, ping_timeout=5)
    await Peer(link, House({}), Permissions(), limits).serve()
    assert socket.asked <= 12


@pytest.mark.parametrize("name", ["Host", "Sec-WebSocket-Protocol"])
async def test_a_handshake_of_bytes_that_are_no_text(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is a line in the log, not a traceback: anybody can send one."""
    headers = {"Host": b"x", "Upgrade": b"websocket", "Connection": b"Upgrade", "Sec-WebSocket-Version": b"13"}
    headers |= {"Sec-WebSocket-Key": b"AAAAAAAAAAAAAAAAAAAAAA==", name: b"\xff"}
    lines = [b"GET / HTTP/1.1", *[name.encode() + b": " + value for name, value in headers.items()], b"", b""]
    async with served({}) as address, await trio.open_tcp_stream("127.0.0.1", address.port) as stream:
        with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"\r\n".join(lines))
            while await stream.receive_some():
                pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no handshake" in caplog.text


@pytest.mark.parametrize(
    "frame", [{"id": True, "do": "agents"}, {"cancel": True}, {"ack": True}, {"ack": 1, "count": True}]
)
async def test_a_truth_is_no_number(frame: Any) -> None:
    async with raw_connection({}) as connection:
        await connection.send_message(json.dumps(frame))
        with pytest.raises(ConnectionClosed) as caught:
            await connection.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1007


async def test_a_number_of_any_size_is_an_id() -> None:
    async with raw_connection({}) as connection:
        await connection.send_message(json.dumps({"id": 10**30, "do": "agents"}))
        assert json.loads(await connection.get_message()) == {"id": 10**30, "ok": []}


@pytest.mark.parametrize(("topics", "options"), [(["t"], {"buffer": 10**9}), (["t"] * 1001, {})])
async def test_a_subscription_that_would_take_too_much(topics: Any, options: Any, autojump_clock: object) -> None:
    async with linked({}, PubSub()) as remote:
        with pytest.raises(InvalidOption, match="at most"):
            async with remote.subscribe(*topics, **options):
                pass


async def test_who_hangs_up_in_the_handshake_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def gone() -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    asked = (
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: alloy.v1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    received = trio.testing.MemoryReceiveStream()
    received.put_data(asked.encode())
    server = _Server(House({}), Doors(TOKEN), Limits(max_message_size=2**20, max_connections=10), frozenset())
    with caplog.at_level(logging.INFO, "alloy_trio.remote"), trio.fail_after(10):
        await server.handle(trio.StapledStream(trio.testing.MemorySendStream(gone), received))
    assert caplog.records == []


async def test_a_message_over_two_connections_at_once_is_taken_once(autojump_clock: object) -> None:
    """The old connection is half dead when it is sent again over a new one; both wait for the agent to be up."""
    async with scripted("one", "two") as agent:
        house = House({"x": agent})
        asked = {"agent": "x", "prompt": "go", "request_id": "mine", "once": "o"}
        said: list[Any] = []
        peers = [Peer(cast("Any", None), house, Permissions(), Limits()) for _ in range(2)]

        async def send(peer: Peer) -> None:
            said.append(await peer._send_message(1, asked))

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(send, peer)
        await agent.wait_idle()
        assert said == [{"request_id": "mine"}] * 2
        assert len(agent.messages) == 2


async def test_messages_to_one_agent_drive_out_no_results_of_another(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a token for one agent decides what is left of the others'."""
    monkeypatch.setattr("alloy_trio.remote._house._KEPT", 2)
    async with scripted("kept") as a, scripted(*"1234") as b, linked({"a": a, "b": b}) as remote:
        mine = await remote.agent("a").send_message("go", request_id="mine")
        await mine.result()
        others = []
        for _ in range(4):
            others.append(await remote.agent("b").send_message("go"))
            await others[-1].result()
        assert (await mine.result()).text == "kept"
        with pytest.raises(UnknownRequest, match="long ago"):
            await others[0].result()


# Servers


async def test_a_server_that_says_nothing() -> None:
    """Before, `connect` waited for its greeting for ever."""

    async def answer(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            await request.accept(subprotocol="alloy.v1")
            await trio.sleep_forever()

    async with lying(answer) as url:
        with trio.fail_after(5), pytest.raises(ConnectionLost, match="did not answer within"):
            async with connect(url, TOKEN, connect_timeout=0.2):
                pass


@pytest.mark.parametrize("said", [b"", b"220 mail.example ESMTP\r\n"])
async def test_a_server_that_hangs_up(said: bytes) -> None:
    """It is not waited for until the time is over."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(said)

    async with lying(answer) as url:
        with trio.fail_after(5), pytest.raises(ConnectionLost, match="hung up"):
            async with connect(url, TOKEN, connect_timeout=60):
                pass


async def test_a_server_of_something_else_is_named_as_what_it_may_be() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    async with lying(answer) as url:
        with (
            trio.fail_after(5),
            pytest.raises(Refused, match="status 404, and no reason; is it a server of alloy_trio"),
        ):
            async with connect(url, TOKEN):
                pass


async def test_a_server_that_lets_nobody_stay_is_not_hammered() -> None:
    """The pauses grow, though each connection came about."""
    times: list[float] = []

    async def answer(stream: trio.SocketStream) -> None:
        times.append(trio.current_time())
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            connection = await request.accept(subprotocol="alloy.v1")
            await connection.send_message('{"hello": {"agents": []}}')
            await connection.aclose(1008, "not now")
            nursery.cancel_scope.cancel()

    async with lying(answer) as url, connect(url, TOKEN):
        await trio.sleep(3)
    assert 2 <= len(times) <= 15


async def test_a_server_that_goes_on_behind_the_end() -> None:
    """What comes behind an answer is for nobody, while who asked is still busy with what came before."""

    async def answer(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            connection = await request.accept(subprotocol="alloy.v1")
            await connection.send_message('{"hello": {"agents": []}}')
            await connection.get_message()
            first, second = ({"id": 1, "ok": result_to_json(Result(text=text, status="completed"))} for text in "ab")
            for frame in (PART, first, PART, second):
                await connection.send_message(json.dumps(frame))
            await trio.sleep_forever()

    async with lying(answer) as url, connect(url, TOKEN) as remote:
        with trio.fail_after(5):
            async with remote.agent("x").stream_chat("go") as events:
                async for _ in events:
                    await trio.sleep(0.1)
        assert events.result.text == "a"
        assert "not connected" not in repr(remote)


async def test_a_deadline_that_the_server_keeps_leaves_what_was_done(autojump_clock: object) -> None:
    async with scripted([text("half"), delay(60)]) as agent, linked({"x": agent}) as remote:
        with pytest.raises(RequestCancelled, match="deadline") as caught:
            await remote.agent("x")._call("stream_chat", prompt="go", timeout=5.0)
        assert caught.value.result is not None
        assert caught.value.result.messages[0].text == "go"


# Messages that are too large


async def test_a_message_that_is_too_large_for_the_server_is_not_sent_for_ever() -> None:
    async with (
        scripted("a") as agent,
        served({"x": agent}, max_message_size=2**16) as address,
        connect(address.url, TOKEN) as remote,
    ):
        with trio.fail_after(5), pytest.raises(ProtocolError, match="65,536"):
            await remote.agent("x").send_message("x" * 2**17)
        assert (await remote.agent("x").chat("hi")).text == "a"


async def test_an_answer_that_is_too_large_for_us_is_not_asked_for_again() -> None:
    async with (
        scripted("a" * 2**17) as agent,
        served({"x": agent}) as address,
        connect(address.url, TOKEN, max_message_size=2**16) as remote,
    ):
        await agent.chat("go")
        with trio.fail_after(5), pytest.raises(ProtocolError, match="max_message_size"):
            await remote.agent("x").messages()
        with trio.fail_after(5):
            assert (await remote.agent("x").usage()) == agent.usage


async def test_an_error_that_is_too_large_arrives_without_its_result() -> None:
    """Before, why a run had failed was not said, if its conversation was long."""
    async with (
        scripted("a" * 2**17, error(RateLimited("slow", status=429)), max_retries=0) as agent,
        served({"x": agent}, max_message_size=2**16) as address,
        connect(address.url, TOKEN) as remote,
    ):
        await agent.chat("go")
        with trio.fail_after(5), pytest.raises(RateLimited, match="slow") as caught:
            await remote.agent("x").chat("go on")
        assert caught.value.result is None


# Tokens and addresses


async def test_strangers_take_no_places() -> None:
    """Who has shown no token yet, keeps nobody out who has one."""
    async with served({}, max_connections=1) as address:
        stranger = await trio.open_tcp_stream("127.0.0.1", address.port)
        async with stranger, connect(address.url, TOKEN) as remote:
            assert await remote.agents() == ()


@pytest.mark.parametrize("token", [MARK + "\n", " " + MARK, MARK + "\r\nOrigin: x"])
async def test_a_token_that_no_header_carries(token: str) -> None:
    """As a file gives it: before, the client said that it was closed, and the server that it was wrong."""
    with pytest.raises(InvalidOption, match="without line ends") as caught:
        async with connect("ws://127.0.0.1:1", token):
            pass
    assert_not_shown(caught.value)
    with pytest.raises(InvalidOption, match="without line ends") as caught:
        await serve_agents({}, "127.0.0.1", 0, token)
    assert_not_shown(caught.value)


def assert_not_shown(error: BaseException) -> None:
    """As SECURITY.md says: not in the error, nor in the variables of our frames."""
    assert MARK not in str(error)
    place = error.__traceback__
    while place is not None:
        if "alloy_trio" in place.tb_frame.f_code.co_filename and "/tests/" not in place.tb_frame.f_code.co_filename:
            assert MARK not in repr(place.tb_frame.f_locals), place.tb_frame
        place = place.tb_next


async def test_a_token_is_in_no_frame() -> None:
    with pytest.raises(ConnectionLost) as caught:
        async with connect("ws://127.0.0.1:1", MARK):
            pass
    assert_not_shown(caught.value)
    with pytest.raises(InvalidOption) as refused:
        await serve_agents({}, "192.0.2.1", 0, MARK)
    assert_not_shown(refused.value)


@pytest.mark.parametrize("url", ["ws://x:99999", "ws://[::1", "ws://x:a"])
async def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InvalidOption, match="ws://HOST:PORT"):
        async with connect(url, TOKEN):
            pass


async def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidOption, match="token=") as caught:
        async with connect("ws://me:sesame@127.0.0.1:1", TOKEN):
            pass
    assert "sesame" not in str(caught.value)


async def test_a_name_that_cannot_be_says_so() -> None:
    with pytest.raises(ConnectionLost, match=r"cannot connect to ws://a\.\.b"):
        async with connect("ws://a..b:1", TOKEN):
            pass
