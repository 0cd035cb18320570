"""Agents in other processes: who is let in, what goes over, what is lost with a connection and what is not."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import ssl
import subprocess
import sys
import traceback
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.lowlevel
import trustme
from far import TOKEN, cut, linked
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)

import alloy_trio
from alloy_trio import (
    Agent,
    AgentBusy,
    InvalidOption,
    Message,
    Middleware,
    RateLimited,
    Result,
    RunState,
    ToolUse,
    UnknownRequest,
    open_agent,
    tool,
)
from alloy_trio.events import Envelope, RunEnd, TextDelta
from alloy_trio.pubsub import Lost, PubSub
from alloy_trio.remote import (
    Address,
    ConnectionLost,
    NotAllowed,
    Permissions,
    ProtocolError,
    Refused,
    RemoteAgent,
    RemoteError,
    UnknownAgent,
    connect,
    serve_agents,
)
from alloy_trio.remote._data import error_from_json, error_to_json, result_from_json, result_to_json
from alloy_trio.remote._dial import why_not
from alloy_trio.remote._house import House
from alloy_trio.remote._peer import Limits
from alloy_trio.supervision import Registry, open_supervisor
from alloy_trio.teams import broadcast, delegate, handoff
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from alloy_trio.supervision import Supervisor

LOOKER = "a token that may only look"


@contextlib.asynccontextmanager
async def served(agents: Any, token: Any = TOKEN, **options: Any) -> AsyncIterator[Address]:
    """Serve agents at a port of this machine."""
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Address]) -> None:
            await serve_agents(agents, "127.0.0.1", 0, token, task_status=task_status, **options)

        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


def scripted(*replies: Any, **options: Any) -> Any:
    return open_agent(provider=ScriptedProvider(list(replies)), **options)


@tool
async def wait(seconds: float) -> str:
    """Wait."""
    await trio.sleep(seconds)
    return f"waited {seconds}"


# Over a real socket


async def test_over_a_socket() -> None:
    with assert_no_orphans():
        async with (
            scripted("hello", [text("one"), tool_call("wait", {"seconds": 0})], "two", tools=[wait]) as agent,
            served({"x": agent}) as address,
            connect(address.url, TOKEN) as remote,
        ):
            assert await remote.agents() == ("x",)
            far = remote.agent("x")
            assert (await far.chat("hi")).text == "hello"
            async with far.stream_chat("go") as events:
                said = "".join([event.text async for event in events if isinstance(event, TextDelta)])
            assert said == "onetwo"
            assert events.result.text == "two"
            assert await far.messages() == agent.messages
            assert await far.usage() == agent.usage
            assert (await far.export_session()).messages == agent.messages
            assert attrs.evolve(await far.health(), uptime=0) == attrs.evolve(agent.health(), uptime=0)
            assert await far.session_id() == agent.session_id
            assert "connected" in repr(remote)
            assert TOKEN not in repr(remote)


async def test_tls_both_ways(tmp_path: Any) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server_side, client_side, other = (
        ssl.create_default_context(purpose) for purpose in (ssl.Purpose.CLIENT_AUTH, *[ssl.Purpose.SERVER_AUTH] * 2)
    )
    authority.issue_cert("localhost").configure_cert(server_side)
    authority.configure_trust(client_side)
    stranger.configure_trust(other)
    async with scripted("hello") as agent, served({"x": agent}, ssl_context=server_side) as address:
        url = f"wss://localhost:{address.port}"
        assert address.url.startswith("wss://")
        async with connect(url, TOKEN, ssl_context=client_side) as remote:
            assert (await remote.agent("x").chat("hi")).text == "hello"
        port, at = address.port, "127.0.0.1"
        for bad, context, says in (
            (url, other, "certificate; an authority of your own is trusted by ssl_context="),
            (f"wss://{at}:{port}", client_side, "is it the name that the server's certificate has?"),
            (f"ws://{at}:{port}", None, "does the server say ws://, or wss://?"),
        ):
            with pytest.raises(ConnectionLost) as caught:
                async with connect(bad, TOKEN, ssl_context=context):
                    pass
            assert str(caught.value).startswith(f"cannot connect to {bad}: ")
            assert says in str(caught.value)


async def test_tls_to_a_server_without() -> None:
    async with served({}) as address:
        with pytest.raises(ConnectionLost, match=r"TLS fails \(\w+\); does the server say wss://, or ws://\?"):
            async with connect(address.url.replace("ws:", "wss:"), TOKEN):
                pass


# Who is let in


@pytest.mark.parametrize("token", ["", "short", {}, {"another token that is long": "everything"}, {7: Permissions()}])
async def test_no_token_no_service(token: Any) -> None:
    with pytest.raises(InvalidOption, match="token"):
        await serve_agents({}, "127.0.0.1", 0, token)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_others_are_not_let_near_without_tls(host: str) -> None:
    with pytest.raises(InvalidOption, match="insecure=True"):
        await serve_agents({}, host, 0, TOKEN)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("Authorization", "Bearer wrong wrong wrong wrong")], 401),
        ([("Authorization", f"Basic {TOKEN}")], 401),
        ([("Authorization", f"Bearer {TOKEN}x")], 401),
        ([("Authorization", f"Bearer {TOKEN[:-1]}")], 401),
        ([("Authorization", "Bearer")], 401),
        ([("Authorization", f"Bearer {TOKEN}"), ("Origin", "https://evil.example")], 403),
    ],
)
async def test_who_is_not_let_in(headers: list[tuple[str, str]], status: int) -> None:
    async with served({}) as address:
        with pytest.raises(ConnectionRejected) as caught:
            await raw(address, headers)
        assert caught.value.status_code == status
        assert TOKEN.encode() not in (caught.value.body or b"")


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Take an exception out of the group that nurseries put around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def raw(address: Address, headers: list[tuple[str, str]], protocol: str = "alloy.v1") -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    async with opened(address, encoded, protocol) as connection:
        assert "hello" in json.loads(await connection.get_message())


@contextlib.asynccontextmanager
async def opened(
    address: Address, headers: list[tuple[bytes, bytes]] | None = None, protocol: str = "alloy.v1"
) -> AsyncIterator[WebSocketConnection]:
    """Connect by hand, and leave no socket behind."""
    given = headers if headers is not None else [(b"Authorization", f"Bearer {TOKEN}".encode())]
    stream = await trio.open_tcp_stream("127.0.0.1", address.port)
    try:
        with ungrouped():
            async with trio.open_nursery() as nursery:
                connection = await wrap_client_stream(
                    nursery, stream, "here", "/", subprotocols=[protocol], extra_headers=given
                )
                yield connection
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def test_a_page_that_may_connect() -> None:
    async with served({}, origins=["https://good.example"]) as address:
        await raw(address, [("Authorization", f"Bearer {TOKEN}"), ("Origin", "https://good.example")])


async def test_another_version_of_the_protocol() -> None:
    async with served({}) as address:
        with pytest.raises(ConnectionRejected) as caught:
            await raw(address, [("Authorization", f"Bearer {TOKEN}")], "alloy.v2")
        assert caught.value.status_code == 426


async def test_a_wrong_token_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """At both ends: whoever looks at the log sees where it came from."""
    async with served({}) as address:
        with pytest.raises(Refused, match="token is wrong") as caught:
            async with connect(address.url, "a token of somebody else"):
                pass
    assert caught.value.status == 401
    assert "a connection from 127.0.0.1 was refused: the token is wrong" in caplog.text
    assert "somebody else" not in caplog.text


async def test_too_many_connections() -> None:
    async with served({}, max_connections=1) as address, connect(address.url, TOKEN):
        with pytest.raises(Refused, match="than max_connections=1 allows"):
            async with connect(address.url, TOKEN):
                pass


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"ws://127.0.0.1:{free.getsockname()[1]}"
    for name in ("127.0.0.1", "localhost"):  # which has two addresses
        with pytest.raises(ConnectionLost, match=r": Connection refused; is the server there\?$"):
            async with connect(url.replace("127.0.0.1", name), TOKEN):
                pass


def test_a_name_that_is_not_known_is_said_in_words_of_its_own() -> None:
    """Where its number is positive, as on macOS, another error has the same one."""
    error = socket.gaierror(8, "nodename nor servname provided, or not known")
    assert why_not(error) == "nodename nor servname provided, or not known; is the server there?"


@pytest.mark.parametrize("url", ["", "http://x", "ws://", "x"])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidOption, match="ws://HOST:PORT"):
        async with connect(url, TOKEN):
            pass


@pytest.mark.parametrize(
    "given",
    [
        {"max_requests": 0},
        {"max_rate": 0},
        {"max_rate": math.nan},
        {"max_connections": -1},
        {"max_message_size": 1.5},
        {"ping_interval": 0},
        {"ping_timeout": "soon"},
        {"idle_timeout": True},
        {"connect_timeout": 0},
        {"reconnect": -1},
    ],
)
async def test_a_number_that_cannot_be_right(given: Any) -> None:
    """At either end that has it; and no frame of the error has the token."""
    name = next(iter(given))
    ends: list[Callable[[], Awaitable[object]]] = []
    if name not in {"connect_timeout", "reconnect"}:
        ends.append(lambda: serve_agents({}, "127.0.0.1", 0, TOKEN, **given))
    if name not in {"max_requests", "max_rate", "max_connections", "idle_timeout"}:
        ends.append(lambda: connect("ws://127.0.0.1:9", TOKEN, **given).__aenter__())
    for end in ends:
        with pytest.raises(InvalidOption, match=f"{name}=") as caught:
            await end()
        summary = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert TOKEN not in "".join(summary.format())


async def test_what_a_token_is_good_for(autojump_clock: object) -> None:
    tokens = {TOKEN: Permissions(agents=["a"]), LOOKER: Permissions(read_only=True)}
    pubsub = PubSub()
    async with scripted("hi", pubsub=pubsub) as a, scripted() as b:
        async with linked({"a": a, "b": b}, pubsub, token=TOKEN, tokens=tokens) as remote:
            assert await remote.agents() == ("a",)
            assert (await remote.agent("a").chat("hi")).text == "hi"
            with pytest.raises(UnknownAgent, match=r"those that are: a$"):
                await remote.agent("b").chat("hi")
            with pytest.raises(NotAllowed, match="topics of its agents only"):
                async with remote.subscribe("**"):
                    pass
            async with remote.subscribe(f"agent:{a.session_id}:responses") as messages:
                await remote.agent("a").send_message("x")
                await messages.receive()
        async with linked({"a": a, "b": b}, pubsub, token=LOOKER, tokens=tokens) as remote:
            assert await remote.agents() == ("a", "b")
            assert len(await remote.agent("a").messages()) > 0
            far = remote.agent("a")
            for change in (
                far.chat,
                far.send_message,
                far.steer,
                far.cancel_request,
                far.cancel_tool,
                far.approve,
                far.deny,
            ):
                with pytest.raises(NotAllowed, match="only look"):
                    await change("x")
            with pytest.raises(NotAllowed, match="only look"):
                async with far.stream_chat("x") as events:
                    async for _ in events:
                        pass
            with pytest.raises(NotAllowed, match="only look"):
                await far.reset()
    assert LOOKER not in repr(tokens[LOOKER])


# What goes over


@pytest.mark.parametrize(
    "raised",
    [
        RateLimited("slow down", provider="p", model="m", status=429, retryable=True, retry_after=2.5, request_id="r"),
        AgentBusy("busy"),
        UnknownRequest("who?"),
        alloy_trio.RunTimeout("late"),
    ],
)
def test_errors_arrive_as_what_they_are(raised: alloy_trio.AlloyError) -> None:
    raised.add_note("a note")
    raised.__cause__ = ValueError("why")
    raised.result = Result(text="so far", status="error", error=raised)
    arrived: Any = error_from_json(json.loads(json.dumps(error_to_json(raised))))
    assert type(arrived) is type(raised)
    assert str(arrived) == str(raised)
    assert arrived.__notes__ == ["a note", "Its cause at the other end: ValueError: why"]
    assert arrived.result is not None
    assert (arrived.result.text, arrived.result.error) == ("so far", arrived)
    for name in ("provider", "model", "status", "retryable", "retry_after", "request_id"):
        assert getattr(arrived, name, None) == getattr(raised, name, None)


def test_an_error_of_a_type_that_is_unknown_here() -> None:
    class Odd(Exception):
        pass

    arrived = error_from_json(error_to_json(Odd("so it is")))
    assert isinstance(arrived, RemoteError)
    assert (str(arrived), arrived.kind) == ("Odd: so it is", "Odd")


def test_a_result_arrives_whole() -> None:
    result = Result(
        text="t",
        output={"a": 1},
        messages=(Message.user("q"), Message.assistant("t")),
        usage=alloy_trio.Usage(1, 2),
        cost_cents=Decimal("0.1"),
        tool_calls=(
            alloy_trio.ToolCall(
                id="c", name="n", input={"x": 1}, outcome="ok", duration=0.5, correlation_id="r", data=[1]
            ),
        ),
        turns=2,
        request_id="r",
        stop_reason="end_turn",
        metadata={"k": "v"},
    )
    assert result_from_json(json.loads(json.dumps(result_to_json(result)))) == result


async def test_a_budget_that_ends_a_run_is_said(autojump_clock: object) -> None:
    async with scripted(error(RateLimited("no", status=429)), max_retries=0) as agent, linked({"x": agent}) as remote:
        with pytest.raises(RateLimited) as caught:
            await remote.agent("x").chat("go")
    assert caught.value.result is not None
    assert caught.value.result.messages == (Message.user("go"),)


async def test_budgets_around_the_server_pay_and_those_around_the_caller_do_not(autojump_clock: object) -> None:
    there, here = alloy_trio.Budget("1"), alloy_trio.Budget("1")
    provider = ScriptedProvider(["a"], price=alloy_trio.Price("3", "15"))
    async with open_agent(provider=provider) as agent, contextlib.AsyncExitStack() as stack:
        with there:
            remote = await stack.enter_async_context(linked({"x": agent}))
        with here:
            await remote.agent("x").chat("go")
    assert there.spent > 0 == here.spent


class Ask(Middleware):
    async def before_tool_call(self, state: RunState, call: ToolUse) -> Any:
        return await state.approval(call)


async def test_a_person_far_away_decides(autojump_clock: object) -> None:
    calls = [tool_call("wait", {"seconds": 1}, id="a"), tool_call("wait", {"seconds": 1}, id="b")]
    async with scripted(calls, "done", tools=[wait], middleware=[Ask()]) as agent, linked({"x": agent}) as remote:
        far = remote.agent("x")
        pending = await far.send_message("go")
        await trio.sleep(1)
        assert [(call.id, call.input) for call in await far.pending_approvals()] == [("a", {"seconds": 1})]
        with pytest.raises(InvalidOption, match="seconds"):
            await far.approve("a", {"seconds": "soon"})
        await far.approve("a", {"seconds": 2})
        await trio.sleep(1)
        await far.deny("b", "not you")
        with pytest.raises(UnknownRequest):
            await far.deny("c")
        result = await pending.result()
    assert [(call.input, call.outcome) for call in result.tool_calls] == [
        ({"seconds": 2}, "ok"),
        ({"seconds": 1}, "blocked"),
    ]


async def test_agents_of_a_supervisor_and_of_a_registry(autojump_clock: object) -> None:
    registry = Registry()
    specs = [Agent.child_spec(name=name, provider=ScriptedProvider([name, name])) for name in "ab"]
    async with open_supervisor(specs, registry=registry) as supervisor:
        both: list[Supervisor | Registry] = [supervisor, registry]
        for agents in both:
            async with linked(agents) as remote:
                assert await remote.agents() == ("a", "b")
                assert (await remote.agent("b").chat("hi")).text == "b"
                with pytest.raises(UnknownAgent, match="no agent 'c' for you"):
                    await remote.agent("c").health()


async def test_a_lead_delegates_to_an_agent_far_away(autojump_clock: object) -> None:
    async with scripted("it is so", "so it is") as sub, linked({"x": sub}) as remote:
        far = remote.agent("x")
        async with scripted(tool_call("ask_x", {"task": "why?"}), "done", tools=[delegate(far)]) as lead:
            result = await lead.chat("go")
        assert [(call.name, call.outcome) for call in result.tool_calls] == [("ask_x", "ok")]
        assert "it is so" in result.messages[2].tool_results[0].text
        answers = await broadcast({"far": far}, "really?")
        assert isinstance(answers["far"], Result)
        with pytest.raises(InvalidOption, match="within one"):
            await handoff(far, "go on", to=far)  # type: ignore[call-overload]


# Topics


async def test_topics_from_afar(autojump_clock: object) -> None:
    pubsub = PubSub()
    async with scripted("one", "two", pubsub=pubsub, session_id="s") as agent, linked({"x": agent}, pubsub) as remote:
        async with remote.subscribe("agent:s:**", "own") as messages:
            pending = await remote.agent("x").send_message("go")
            got: list[Any] = []
            while not got or not isinstance(got[-1], Result):
                got.append(await messages.receive())
            assert got[-1].request_id == pending.request_id
            envelopes = [each for batch in got[:-1] for each in batch]
            assert all(isinstance(each, Envelope) for each in envelopes)
            assert isinstance(envelopes[-1].event, RunEnd)
            pubsub.publish("own", {"any": ["thing"]})
            assert await messages.receive() == {"any": ["thing"]}
            pubsub.publish("own", object)
            assert "class 'object'" in await messages.receive()
        assert pubsub.statistics().subscribers == 0


async def test_a_slow_subscriber_far_away_loses_and_is_told(autojump_clock: object) -> None:
    pubsub = PubSub()
    async with linked({}, pubsub) as remote, remote.subscribe("t", buffer=4) as messages:
        await trio.sleep(1)
        for number in range(100):
            pubsub.publish("t", number)
            await trio.sleep(0.1)
        got = []
        with trio.move_on_after(5):
            while True:
                got.append(await messages.receive())
    lost = sum(message.count for message in got if isinstance(message, Lost))
    assert lost > 50
    assert len([message for message in got if not isinstance(message, Lost)]) + lost == 100


@pytest.mark.parametrize(
    ("topics", "options", "match"),
    [
        (["a::b"], {}, "topic|pattern|segment"),
        ([], {}, "topics"),
        (["t"], {"buffer": 0}, "buffer"),
        (["t"], {"policy": "x"}, "policy"),
    ],
)
async def test_a_subscription_that_cannot_be(
    topics: list[str], options: Any, match: str, autojump_clock: object
) -> None:
    async with linked({}, PubSub()) as remote:
        with pytest.raises(InvalidOption, match=match):
            async with remote.subscribe(*topics, **options):
                pass


async def test_a_server_without_topics(autojump_clock: object) -> None:
    async with linked({}) as remote:
        with pytest.raises(InvalidOption, match="no topics"):
            async with remote.subscribe("t"):
                pass


# Backpressure


async def test_a_slow_reader_slows_the_agent_down_and_nobody_else(autojump_clock: object) -> None:
    pieces = [text(f"{number} ") for number in range(200)]
    async with scripted(pieces) as slow, scripted("fast") as fast, linked({"slow": slow, "fast": fast}) as remote:
        async with remote.agent("slow").stream_chat("go") as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
            await trio.sleep(10)
            assert slow.health().status == "running"
            assert (await remote.agent("fast").chat("go")).text == "fast"
        assert slow.health().last_status == "cancelled"


# Connections that are lost


@tool
async def work() -> str:
    """Work for a while."""
    await trio.sleep(5)
    return "worked"


async def test_a_lost_connection_cancels_what_it_owns(autojump_clock: object) -> None:
    """A chat and a stream are cancelled at the other end; who asked learns that they may have begun."""
    streams: list[Any] = []
    async with scripted([tool_call("work")], [text("a"), delay(60)], tools=[work]) as agent:
        for stream in (False, True):
            with assert_no_orphans():
                async with linked({"x": agent}, streams=streams) as remote:
                    far = remote.agent("x")
                    with pytest.raises(ConnectionLost, match="nobody knows how far") as caught, ungrouped():
                        async with trio.open_nursery() as nursery:

                            @nursery.start_soon
                            async def _() -> None:
                                await trio.sleep(1)
                                cut(streams)

                            if stream:
                                async with far.stream_chat("go") as events:
                                    async for _event in events:
                                        pass
                            else:
                                await far.chat("go")
                    assert caught.value.may_have_begun
                await trio.sleep(1)
            assert (agent.health().status, agent.health().last_status) == ("idle", "cancelled")


async def test_what_was_sent_outlives_the_connection(autojump_clock: object) -> None:
    streams: list[Any] = []
    async with scripted([tool_call("work")], "done", tools=[work]) as agent:
        house = House({"x": agent})
        async with linked({}, house=house, streams=streams) as remote:
            await remote.agent("x").send_message("go", request_id="mine")
            cut(streams)
        async with linked({}, house=house) as remote:
            pending = remote.agent("x").pending("mine")
            assert (await pending.result()).text == "done"
            assert not await pending.cancel()
            with pytest.raises(UnknownRequest, match="'yours'"):
                await remote.agent("x").pending("yours").result()


async def test_what_is_safe_to_repeat_is_asked_again(autojump_clock: object) -> None:
    """Readers, waiting for a result, a subscription; a chat that has not begun waits for the connection."""
    streams: list[Any] = []
    pubsub = PubSub()
    async with (
        scripted([tool_call("work")], "done", "hello", tools=[work], pubsub=pubsub) as agent,
        linked({"x": agent}, pubsub, reconnect=60.0, streams=streams) as remote,
    ):
        far = remote.agent("x")
        pending = await far.send_message("go")
        async with remote.subscribe("t") as messages, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                assert (await pending.result()).text == "done"
                assert len(await far.messages()) >= 4

            await trio.sleep(1)
            cut(streams)
            await trio.sleep(0.001)  # until it has noticed: a chat that was sent is not sent again
            assert (await far.chat("hi")).text == "hello"
            assert await messages.receive() == Lost(0)
            pubsub.publish("t", 1)
            assert await messages.receive() == 1
    assert len(streams) == 2


async def test_a_message_is_taken_once_though_it_is_sent_again(autojump_clock: object) -> None:
    """The connection breaks behind the sending, before the answer."""
    streams: list[Any] = []
    provider = ScriptedProvider(["one", "two", "three"])
    async with (
        open_agent(provider=provider, max_pending=9) as agent,
        linked({"x": agent}, reconnect=60.0, streams=streams) as remote,
    ):
        far = remote.agent("x")
        for step in range(1, 12):
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _(step: int = step) -> None:
                    for _step in range(step):
                        await trio.lowlevel.checkpoint()
                    cut(streams)

                pending = await far.send_message(f"{step}")
            with contextlib.suppress(alloy_trio.AlloyError):
                await pending.result()
        asked = [message.text for message in agent.messages if message.role == "user"]
    assert len(asked) == len(set(asked))


async def test_a_server_that_stays_away(autojump_clock: object) -> None:
    streams: list[Any] = []
    house = House({})
    async with linked({}, house=house, streams=streams, reconnect=0.0) as remote:
        cut(streams)
        with pytest.raises(ConnectionLost, match="was lost"):
            await remote.agents()
        with pytest.raises(ConnectionLost):
            await remote.agent("x").chat("go")


async def test_who_iterates_over_topics_is_told_of_a_lost_connection(autojump_clock: object) -> None:
    streams: list[Any] = []
    async with linked({}, PubSub(), streams=streams) as remote, remote.subscribe("t") as messages:
        cut(streams)
        with pytest.raises(ConnectionLost, match="was lost"):
            async for _ in messages:
                pass


async def streamed(agent: RemoteAgent) -> None:
    async with agent.stream_chat("go") as events:
        async for _ in events:
            await trio.sleep(0.1)


PART = {"id": 1, "events": [Envelope(seq=1, correlation_id="r", turn=1, ts=0.0, event=TextDelta("a")).to_dict()]}


@pytest.mark.parametrize(
    "frames",
    [["no JSON"], ["{}"], [b"bytes"], [json.dumps(PART)] * 20],
    ids=["no JSON", "no reply", "bytes", "too far ahead"],
)
async def test_a_server_that_does_not_keep_to_the_protocol(frames: list[Any]) -> None:
    """It is given up, for good, and who asked is told."""

    async def lie(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            connection = await request.accept(subprotocol="alloy.v1")
            await connection.send_message('{"hello": {"agents": ["x"]}}')
            await connection.get_message()
            with contextlib.suppress(ConnectionClosed):
                for frame in frames:
                    await connection.send_message(frame)
                await connection.get_message()
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, lie, 0)
        url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with trio.fail_after(10):
            async with connect(url, TOKEN) as remote:
                with pytest.raises(ConnectionLost) as caught:
                    await streamed(remote.agent("x"))
                assert isinstance(caught.value.__cause__, ProtocolError)
                with pytest.raises(ProtocolError):
                    await remote.agents()
        nursery.cancel_scope.cancel()


async def test_behind_the_end_of_a_connection(autojump_clock: object) -> None:
    async with linked({}) as remote:
        pass
    with pytest.raises(ConnectionLost, match="closed here"):
        await remote.agents()


async def test_a_server_that_stops(autojump_clock: object) -> None:
    async with scripted([text("a"), delay(60)]) as agent:
        async with served({"x": agent}) as address:
            pass
        with pytest.raises(ConnectionLost):
            async with connect(address.url, TOKEN):
                pass


# Bad input


@contextlib.asynccontextmanager
async def raw_connection(agents: Any, **options: Any) -> AsyncIterator[Any]:
    async with served(agents, **options) as address, opened(address) as connection:
        assert "hello" in json.loads(await connection.get_message())
        yield connection


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("no JSON", 1007),
        ("[1]", 1007),
        ("{}", 1007),
        ('{"id": "one", "do": "agents"}', 1007),
        ('{"id": 1}', 1007),
        ('{"ack": 1, "count": "all"}', 1007),
        (b"bytes", 1003),
        ("[" * 100_000, 1007),
        ('{"id": 1, "do": "' + "x" * 2_000_000 + '"}', 1009),
    ],
)
async def test_a_malformed_frame_closes_its_connection_and_nothing_else(frame: Any, code: int) -> None:
    async with (
        scripted("hello") as agent,
        served({"x": agent}, max_message_size=2**20) as address,
        connect(address.url, TOKEN) as remote,
    ):
        async with opened(address) as connection:
            await connection.get_message()
            await connection.send_message(frame)
            with pytest.raises(ConnectionClosed) as caught:
                await connection.get_message()
            assert caught.value.reason is not None
            assert caught.value.reason.code == code
        assert (await remote.agent("x").chat("hi")).text == "hello"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"do": "dance"}, "InvalidOption"),
        ({"do": "chat"}, "UnknownAgent"),
        ({"do": "chat", "agent": ["x"]}, "UnknownAgent"),
        ({"do": "chat", "agent": "x"}, "InvalidOption"),
        ({"do": "chat", "agent": "x", "prompt": {"role": "user"}}, "InvalidOption"),
        ({"do": "chat", "agent": "x", "prompt": " "}, "InvalidOption"),
        ({"do": "chat", "agent": "x", "prompt": "hi", "request_id": 7}, "InvalidOption"),
        ({"do": "chat", "agent": "x", "prompt": "hi", "timeout": "soon"}, "InvalidOption"),
        ({"do": "chat", "agent": "x", "prompt": "hi", "timeout": -1}, "InvalidOption"),
        ({"do": "cancel_request", "agent": "x"}, "InvalidOption"),
        ({"do": "approve", "agent": "x", "call_id": "c", "input": 7}, "InvalidOption"),
        ({"do": "steer", "agent": "x", "prompt": "hi", "interrupt": "now"}, "InvalidOption"),
        ({"do": "steer", "agent": "x", "prompt": "hi"}, "AgentIdle"),
        ({"do": "subscribe", "topics": "t"}, "InvalidOption"),
    ],
)
async def test_a_request_that_cannot_be_is_answered(given: Any, kind: str) -> None:
    async with scripted() as agent, raw_connection({"x": agent}, pubsub=PubSub()) as connection:
        await connection.send_message(json.dumps({"id": 1, **given}))
        reply = json.loads(await connection.get_message())
        assert (reply["id"], reply["error"]["type"]) == (1, kind)
        await connection.send_message('{"id": 2, "do": "agents"}')
        assert json.loads(await connection.get_message()) == {"id": 2, "ok": ["x"]}


async def test_what_is_too_large_is_said_and_nothing_is_lost() -> None:
    async with (
        scripted("hello", "x" * 300_000, "fine") as agent,
        served({"x": agent}, max_message_size=2**18) as address,
        connect(address.url, TOKEN, max_message_size=2**18) as remote,
    ):
        far = remote.agent("x")
        with pytest.raises(ProtocolError, match="max_message_size"):
            await far.chat("x" * 2**18)
        assert (await far.chat("hi")).text == "hello"
        with pytest.raises(ProtocolError, match="max_message_size"):
            await far.chat("long")
        assert len(agent.messages) == 4
        with pytest.raises(ProtocolError):
            await far.messages()
        assert (await far.usage()).output_tokens


async def test_too_many_requests_at_once(autojump_clock: object) -> None:
    async with (
        scripted(*[[delay(1), text("ok")]] * 9) as agent,
        linked({"x": agent}, limits=Limits(max_requests=2, ping_interval=1e9)) as remote,
    ):
        outcomes: list[str] = []

        async def ask() -> None:
            try:
                outcomes.append((await remote.agent("x").chat("go")).text)
            except alloy_trio.QueueFull as full:
                outcomes.append(type(full).__name__)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
    assert sorted(outcomes) == ["QueueFull", "QueueFull", "ok", "ok"]


async def test_too_many_messages_have_to_wait(autojump_clock: object) -> None:
    async with linked({}, limits=Limits(max_rate=10.0, ping_interval=1e9)) as remote:
        began = trio.current_time()
        for _ in range(50):
            await remote.agents()
        assert trio.current_time() - began == pytest.approx(4, abs=0.3)


async def test_an_idle_connection_is_closed_and_comes_back(autojump_clock: object) -> None:
    streams: list[Any] = []
    limits = Limits(idle_timeout=5.0, ping_interval=1e9)
    async with linked({}, limits=limits, reconnect=1000.0, streams=streams) as remote:
        await remote.agents()
        await trio.sleep(4)
        await remote.agents()
        await trio.sleep(4)
        assert len(streams) == 1
        await trio.sleep(30)
        assert await remote.agents() == ()
    assert len(streams) > 1


async def test_a_peer_that_answers_no_ping_is_gone(autojump_clock: object) -> None:
    """The server's side gives up on it, and cancels what it owns."""
    streams: list[Any] = []
    limits = Limits(ping_interval=10.0, ping_timeout=5.0)
    async with scripted([text("a"), delay(600)]) as agent:
        with pytest.raises(ConnectionLost), ungrouped():
            async with linked({"x": agent}, limits=limits, streams=streams) as remote:

                async def deaf(*_: Any) -> bytes:
                    await trio.sleep_forever()
                    raise AssertionError

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(remote.agent("x").chat, "go")
                    await trio.sleep(1)
                    streams[-1].receive_stream.receive_some = deaf
                    await trio.sleep(30)
                    assert agent.health().last_status == "cancelled"
                    cut(streams)


async def test_leaving_a_server_that_has_gone_silent_takes_a_ping(autojump_clock: object) -> None:
    """And does not wait until one is due."""

    async def lost(_: bytes) -> None:
        await trio.lowlevel.checkpoint()

    streams: list[Any] = []
    began = trio.current_time()
    async with scripted([delay(1e6), text("a")]) as agent:
        with pytest.raises(ConnectionLost), ungrouped():
            async with linked({"x": agent}, streams=streams, ping_timeout=5.0) as remote:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(remote.agent("x").chat, "go")
                    await trio.sleep(1)
                    streams[-1].send_stream.send_all = lost
                    nursery.cancel_scope.cancel()
                assert trio.current_time() - began == pytest.approx(7.0)  # a second of doubt, and the ping
                await remote.agents()


def test_without_its_extra_the_import_says_what_to_install() -> None:
    said = "import sys; sys.modules['trio_websocket'] = None; import alloy_trio.remote"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert 'pip install "alloy_trio[ws]"' in done.stderr.splitlines()[-1]
