"""
All three wires against a server that somebody else wrote: `@copilotkit/aimock`, which speaks their APIs from fixtures.

What it makes of a request is its own reading of the three APIs, and so are the bytes that it answers with. `nox -s foreign`
installs it and sets `ALLOY_AIMOCK` to its `llmock` program.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing

import alloy_trio
from alloy_trio import (
    AuthenticationError,
    ConnectionFailed,
    ContextTooLong,
    Message,
    Overloaded,
    ProviderError,
    RateLimited,
    Session,
    Thinking,
    WireError,
    tool,
)
from alloy_trio.events import TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from alloy_trio import Result
    from alloy_trio.events import Event

if "ALLOY_AIMOCK" not in os.environ:
    pytest.skip("opt-in: nox -s foreign", allow_module_level=True)

KEY = "canary-5f3a9c71d2e84b06"
PROMPTLY = 2.0  # seconds in which a closed connection has to be seen

WEATHER = {"city": "Oslo", "days": 2}
FAR_AWAY = {"city": 'Kraków "Główny"\n', "days": 3}
LIST = {"items": ["umbrella", "hat"], "weight": {"kg": 1.5}}
STORY = "Once upon a time there was a nursery, and nobody left it before everybody had come home. " * 4
TOLD = {"prompt_tokens": 11, "completion_tokens": 7}


def says(match: dict[str, Any], response: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"match": match, "response": {"usage": TOLD, **response}, **options}


def fails(prompt: str, status: int, kind: str, message: str, **response: Any) -> dict[str, Any]:
    error = {"error": {"type": kind, "message": message}, "status": status, **response}
    return {"match": {"userMessage": prompt}, "response": error}


FIXTURES = [
    says(
        {"userMessage": "pack my bag", "hasToolResult": False},
        {
            "content": "Let me look — both at once.",
            "toolCalls": [
                {"id": "call_oslo", "name": "get_weather", "arguments": WEATHER},
                {"id": "call_far", "name": "get_weather", "arguments": FAR_AWAY},
            ],
        },
        chunkSize=4,
    ),
    says(
        {"toolCallId": "call_far", "toolResultContains": "3 days of sun"},
        {"toolCalls": [{"id": "call_pack", "name": "pack", "arguments": LIST}]},
        chunkSize=3,
    ),
    says({"toolCallId": "call_pack", "toolResultContains": "packed"}, {"content": "Packed: ☂, żółw."}, chunkSize=1),
    says(
        {"userMessage": "riddle", "hasToolResult": False},
        {
            "reasoning": "I need the weather for this.",
            "reasoningSignature": "c2VhbGVk",
            "toolCalls": [{"id": "call_riddle", "name": "get_weather", "arguments": WEATHER}],
        },
        chunkSize=5,
    ),
    says({"toolCallId": "call_riddle"}, {"reasoning": "Sun, then.", "content": "The sun."}, chunkSize=5),
    says({"userMessage": "a story"}, {"content": STORY}, chunkSize=6, latency=15),
    says({"userMessage": "half a story"}, {"content": STORY}, chunkSize=6, latency=5, truncateAfterChunks=20),
    says({"userMessage": "story that stops"}, {"content": STORY}, chunkSize=6, latency=15, disconnectAfterMs=200),
    says({"userMessage": "in short"}, {"content": "Once upon", "finishReason": "length"}),
    says({"userMessage": "hello"}, {"content": "Hello to you 🎩."}, chunkSize=5),
    fails("too often", 429, "rate_limit_error", "Rate limit reached", retryAfter=7),
    fails("break", 500, "server_error", "It broke"),
    fails("too much", 400, "invalid_request_error", "prompt is too long: 300000 tokens > 200000 maximum"),
    fails("too many", 529, "overloaded_error", "Overloaded"),
]
FIXTURES.sort(key=lambda fixture: -len(fixture["match"].get("userMessage", "")))  # the first that matches counts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run aimock on a free port of this machine; gives its address."""
    folder = tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps({"fixtures": FIXTURES}))
    options = ["-p", "0", "-f", "fixtures.json", "--strict", "--validate-on-load"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [os.environ["ALLOY_AIMOCK"], *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "AIMOCK_API_KEYS": KEY},
        )
    try:
        yield trio.run(_started, process, trio.Path(folder / "log"))
    finally:
        process.kill()
        process.wait(10)


async def _started(process: subprocess.Popen[bytes], log: trio.Path) -> str:
    """Wait until the server says where it listens, and answers there."""
    with trio.move_on_after(30):
        while process.poll() is None:
            _, found, rest = (await log.read_text()).partition("listening on ")
            if found and "\n" in rest:
                url = rest.split()[0]
                async with httpx.AsyncClient(trust_env=False) as client:
                    (await client.get(f"{url}/health")).raise_for_status()
                return url
            await trio.sleep(0.05)
    raise RuntimeError(f"aimock did not start: {await log.read_text()}")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- The three wires, buffered and streamed.

PATHS = {"anthropic": "/v1/messages", "openai": "/v1/responses", "compat": "/v1/chat/completions"}

all_wires = pytest.mark.parametrize("wire", list(PATHS))
both_ways = pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streamed"])


def provider(wire: str, url: str, *, api_key: str = KEY, **options: Any) -> Anthropic | OpenAI | OpenAICompat:
    match wire:
        case "anthropic":
            return Anthropic("claude-sonnet-4-5", api_key=api_key, base_url=url, **options)
        case "openai":
            return OpenAI("gpt-5", api_key=api_key, base_url=f"{url}/v1", **options)
    return OpenAICompat("deepseek-reasoner", api_key=api_key, base_url=f"{url}/v1", **options)


@tool
async def get_weather(city: str, days: int = 1) -> str:
    """Forecast the weather.

    Args:
        city: City name.
        days: How many days ahead.
    """
    await trio.lowlevel.checkpoint()
    return f"{days} days of {'rain' if city == 'Oslo' else 'sun'} in {city!r}"


@tool(inline=True)
def pack(items: list[str], weight: dict[str, float]) -> str:
    """Pack a bag."""
    return f"packed {' and '.join(items)}: {weight['kg']} kg"


async def ask(prompt: str | None, *, streaming: bool, **options: Any) -> tuple[Result, list[Event]]:
    """Run once, buffered or streamed, and return the result with the events."""
    seen: list[Event] = []
    options.setdefault("max_retries", 0)  # one request each: what the server says to it is what is tested
    if not streaming:
        options["on_event"] = lambda envelope: seen.append(envelope.event)
        return await alloy_trio.run(prompt, tools=[get_weather, pack], **options), seen
    async with alloy_trio.stream(prompt, tools=[get_weather, pack], **options) as events:
        async for event in events:
            seen.append(event)  # noqa: PERF401 - what came before an error counts
    return events.result, seen


def joined(seen: list[Event], kind: type[TextDelta | ThinkingDelta]) -> str:
    return "".join(event.text for event in seen if isinstance(event, kind))


async def journal(url: str, test_id: str) -> list[dict[str, Any]]:
    """Return what the server has noted of the requests of one test."""
    async with httpx.AsyncClient(trust_env=False, headers={"x-api-key": KEY}) as client:
        reply = await client.get(f"{url}/__aimock/journal", params={"testId": test_id})
    entries: list[dict[str, Any]] = reply.json()
    return entries


class Relay:
    """What goes between client and server, seen from the middle."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.hung_up = trio.Event()  # once the client has closed a connection
        self.sent: list[bytearray] = []  # by the client, for each connection

    def bodies(self) -> list[Any]:
        """Return the JSON of all requests so far."""
        found = []
        for stream in map(bytes, self.sent):
            rest = stream
            while rest:
                head, _, rest = rest.partition(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
                size = int(fields[b"content-length"])
                found.append(json.loads(rest[:size]))
                rest = rest[size:]
        return found


@contextlib.asynccontextmanager
async def relayed(server: str) -> AsyncIterator[Relay]:
    """Put a relay before the server."""
    relay = Relay()

    async def accept(client: trio.SocketStream) -> None:
        relay.connections += 1
        relay.sent.append(bytearray())
        sent = relay.sent[-1]
        port = int(server.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as upstream, trio.open_nursery() as nursery:
            nursery.start_soon(down, upstream, client, nursery.cancel_scope)
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in client:
                    sent += data
                    await upstream.send_all(data)
            relay.hung_up.set()
            nursery.cancel_scope.cancel()

    async def down(upstream: trio.SocketStream, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in upstream:
                await client.send_all(data)
        scope.cancel()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(functools.partial(trio.serve_tcp, accept, 0, host="127.0.0.1"))
            relay.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            yield relay
            nursery.cancel_scope.cancel()


# --- A tool loop.


@all_wires
@both_ways
async def test_tool_loop(wire: str, streaming: bool, server: str) -> None:
    """Two calls at once, then one more that depends on their results, then text."""
    test_id = f"loop-{wire}-{streaming}"
    with assert_no_orphans(), trio.fail_after(20):
        by = provider(wire, server, extra_headers={"x-test-id": test_id})
        result, seen = await ask("Please pack my bag", streaming=streaming, provider=by, system_prompt="Be brief.")
    assert result.status == "completed"
    assert result.text == "Packed: ☂, żółw."
    assert result.turns == 3
    assert [(call.id, call.name, call.input, call.outcome) for call in result.tool_calls] == [
        ("call_oslo", "get_weather", WEATHER, "ok"),
        ("call_far", "get_weather", FAR_AWAY, "ok"),
        ("call_pack", "pack", LIST, "ok"),
    ]
    assert (result.usage.input_tokens, result.usage.output_tokens) == (33, 21)
    assert not result.usage.estimated
    texts = [message.text for message in result.messages if message.role == "assistant"]
    assert texts == ["Let me look — both at once.", "", "Packed: ☂, żółw."]
    if streaming:
        assert joined(seen, TextDelta) == "".join(texts)
        assert len([event for event in seen if isinstance(event, TextDelta)]) > 10
        pieces: dict[str, str] = {}
        for event in seen:
            if isinstance(event, ToolInputDelta):
                pieces[event.id] = pieces.get(event.id, "") + event.json
        inputs = {call: json.loads(text) for call, text in pieces.items()}
        assert inputs == {"call_oslo": WEATHER, "call_far": FAR_AWAY, "call_pack": LIST}
    check_journal(await journal(server, test_id), wire, streaming=streaming)


def check_journal(entries: list[dict[str, Any]], wire: str, *, streaming: bool) -> None:
    """What the server has read out of the three requests: every result beside its call."""
    results = {
        "call_oslo": "2 days of rain in 'Oslo'",
        "call_far": f"3 days of sun in {FAR_AWAY['city']!r}",
        "call_pack": "packed umbrella and hat: 1.5 kg",
    }
    assert [(entry["path"], entry["response"]["status"]) for entry in entries] == [(PATHS[wire], 200)] * 3
    for entry, answered in zip(entries, (0, 2, 3), strict=True):
        body = entry["body"]
        messages = body["messages"]
        assert messages[0] == {"role": "system", "content": "Be brief."}
        assert [message["content"] for message in messages if message["role"] == "user"] == ["Please pack my bag"]
        assert [definition["function"]["name"] for definition in body["tools"]] == ["get_weather", "pack"]
        assert bool(body.get("stream")) is streaming
        expected = list(results.items())[:answered]
        told = [(message["tool_call_id"], message["content"]) for message in messages if message["role"] == "tool"]
        assert told == expected
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        assert [call["id"] for call in calls] == [call_id for call_id, _ in expected]
        inputs = [json.loads(call["function"]["arguments"]) for call in calls]
        assert inputs == [WEATHER, FAR_AWAY, LIST][:answered]


@all_wires
async def test_one_connection_for_all_turns(wire: str, server: str) -> None:
    async with relayed(server) as relay:
        by = provider(wire, relay.url)
        for streaming in (True, False):
            await ask("Please pack my bag", streaming=streaming, provider=by)
        assert relay.connections == 1
        assert len(relay.bodies()) == 6


@all_wires
@both_ways
async def test_many_runs_at_once(wire: str, streaming: bool, server: str) -> None:
    results: list[Result] = []

    async def one() -> None:
        results.append((await ask("Please pack my bag", streaming=streaming, provider=by))[0])

    by = provider(wire, server)
    with assert_no_orphans(), trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(one)
    assert [result.text for result in results] == ["Packed: ☂, żółw."] * 8


@all_wires
@both_ways
async def test_a_conversation_goes_on(wire: str, streaming: bool, server: str) -> None:
    test_id = f"on-{wire}-{streaming}"
    session = Session()
    by = provider(wire, server, extra_headers={"x-test-id": test_id})
    await ask("Please pack my bag", streaming=streaming, provider=by, session=session)
    result, _ = await ask("And now say hello", streaming=streaming, provider=by, session=session)
    assert result.text == "Hello to you 🎩."
    assert session.usage.input_tokens == 44
    last = (await journal(server, test_id))[-1]["body"]["messages"]
    assert [message["content"] for message in last if message["role"] == "user"] == [
        "Please pack my bag",
        "And now say hello",
    ]
    assert len([message for message in last if message["role"] == "tool"]) == 3


# --- Reasoning.


@all_wires
@both_ways
async def test_reasoning_goes_back_as_it_came(wire: str, streaming: bool, server: str) -> None:
    """The server, being strict, refuses a Claude that continues a tool loop without its sealed thinking."""
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if wire == "anthropic" else {}
    async with relayed(server) as relay:
        by = provider(wire, relay.url, extra_body=thinking)
        result, seen = await ask("A riddle, please", streaming=streaming, provider=by)
        bodies = relay.bodies()
    assert result.text == "The sun."
    answers = [message for message in result.messages if message.role == "assistant"]
    assert [message.thinking for message in answers] == ["I need the weather for this.", "Sun, then."]
    if streaming:
        assert joined(seen, ThinkingDelta) == "I need the weather for this.Sun, then."
        assert joined(seen, TextDelta) == "The sun."
    check_reasoning(wire, answers[0], bodies[1])


def check_reasoning(wire: str, answer: Message, body: dict[str, Any]) -> None:
    block = next(block for block in answer.content if isinstance(block, Thinking))
    match wire:
        case "anthropic":
            sealed = {"type": "thinking", "thinking": block.text, "signature": "c2VhbGVk"}
            assert body["messages"][1]["content"][0] == sealed
        case "openai":
            reasoning, call, output = body["input"][1:]
            assert reasoning["type"] == "reasoning"
            assert reasoning["encrypted_content"]
            assert reasoning["summary"] == [{"type": "summary_text", "text": block.text}]
            assert call["type"] == "function_call"
            assert output["call_id"] == call["call_id"] == "call_riddle"
        case "compat":
            assert body["messages"][1]["reasoning_content"] == block.text


# --- How an answer ends.


@all_wires
@both_ways
async def test_cut_at_the_cap(wire: str, streaming: bool, server: str) -> None:
    result, _ = await ask("The story in short", streaming=streaming, provider=provider(wire, server))
    assert (result.status, result.stop_reason, result.text) == ("completed", "max_tokens", "Once upon")


@all_wires
@both_ways
@pytest.mark.parametrize(
    ("prompt", "kind", "status", "retryable", "retry_after"),
    [
        ("too often", RateLimited, 429, True, 7.0),
        ("break", ProviderError, 500, True, None),
        ("too much", ContextTooLong, 400, False, None),
        ("too many", Overloaded, 529, True, None),
    ],
)
async def test_errors(
    *,
    wire: str,
    streaming: bool,
    server: str,
    prompt: str,
    kind: type[ProviderError],
    status: int,
    retryable: bool,
    retry_after: float | None,
) -> None:
    async with relayed(server) as relay:
        by = provider(wire, relay.url)
        with pytest.raises(ProviderError) as caught:
            await ask(prompt, streaming=streaming, provider=by)
        error = caught.value
        assert type(error) is kind
        assert (error.status, error.retryable, error.retry_after) == (status, retryable, retry_after)
        assert (error.provider, error.model) == (by.name, by.model)
        assert error.request_id
        assert error.result is not None
        assert error.result.status == "error"
        assert (await ask("hello", streaming=streaming, provider=by))[0].text == "Hello to you 🎩."
        assert relay.connections == 1


@all_wires
async def test_a_wrong_key(wire: str, server: str) -> None:
    with pytest.raises(AuthenticationError, match="Invalid API key") as caught:
        await ask("hello", streaming=False, provider=provider(wire, server, api_key=f"not-{KEY}"))
    assert caught.value.status == 401
    assert KEY not in str(caught.value)


@all_wires
@both_ways
@pytest.mark.parametrize(
    ("chaos", "kind", "retryable"),
    [
        ("drop", ProviderError, True),
        ("ratelimit", RateLimited, True),
        ("disconnect", ConnectionFailed, True),
        ("malformed", WireError, False),
    ],
)
async def test_chaos(
    *, wire: str, streaming: bool, server: str, chaos: str, kind: type[ProviderError], retryable: bool
) -> None:
    """A 500, a 429, a connection closed without an answer, and an answer that is no JSON."""
    by = provider(wire, server, extra_headers={f"x-aimock-chaos-{chaos}": "1"})
    with assert_no_orphans(), pytest.raises(kind) as caught:
        await ask("hello", streaming=streaming, provider=by)
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert (await ask("hello", streaming=streaming, provider=provider(wire, server)))[0].text == "Hello to you 🎩."


@all_wires
@pytest.mark.parametrize("prompt", ["half a story", "A story that stops"])
async def test_a_stream_that_dies(wire: str, prompt: str, server: str) -> None:
    """The server closes the socket in the middle: an error, which has what came before."""
    seen: list[Event] = []
    with assert_no_orphans(), trio.fail_after(10):
        async with alloy_trio.stream(prompt, provider=provider(wire, server), max_retries=0) as events:
            with pytest.raises(ConnectionFailed) as caught:
                async for event in events:
                    seen.append(event)  # noqa: PERF401 - as above
    text = joined(seen, TextDelta)
    assert len(text) > 12
    assert STORY.startswith(text)
    assert caught.value.retryable
    assert events.result.status == "error"
    assert events.result.messages[-1].interrupted
    assert events.result.text == text.rstrip()
    gc.collect()


# --- Cancel.


@all_wires
async def test_cancel_in_mid_stream(wire: str, server: str) -> None:
    """The connection is closed at once, what was said is kept, and the conversation can go on from it."""
    session = Session()
    async with relayed(server) as relay:
        by = provider(wire, relay.url)
        with assert_no_orphans():
            async with alloy_trio.stream("Tell me a story", provider=by, session=session) as events:
                seen: list[Event] = []
                async for event in events:
                    seen.append(event)
                    if len(joined(seen, TextDelta)) > 30:
                        break
            with trio.fail_after(PROMPTLY):
                await relay.hung_up.wait()
            await trio.testing.wait_all_tasks_blocked()  # so that the relay's tasks are over
        gc.collect()
        assert events.result.status == "cancelled"
        assert STORY.startswith(session.messages[-1].text)
        assert session.messages[-1].interrupted
        result, _ = await ask("Stop. Say hello", streaming=True, provider=by, session=session)
        assert result.text == "Hello to you 🎩."
        assert relay.connections == 2
        sent = json.dumps(relay.bodies()[-1], ensure_ascii=False)
        assert session.messages[1].text in sent


@all_wires
@both_ways
async def test_cancel_while_waiting_for_an_answer(wire: str, streaming: bool, server: str) -> None:
    session = Session()
    async with relayed(server) as relay:
        slow = provider(wire, relay.url, extra_headers={"x-aimock-chaos-latency": "10000"})
        with assert_no_orphans():
            with trio.move_on_after(0.3) as scope:
                await ask("hello", streaming=streaming, provider=slow, session=session)
            assert scope.cancelled_caught
            with trio.fail_after(PROMPTLY):
                await relay.hung_up.wait()
            await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert [message.text for message in session.messages] == ["hello"]
        result, _ = await ask(None, streaming=streaming, provider=provider(wire, relay.url), session=session)
        assert result.text == "Hello to you 🎩."


@all_wires
async def test_stall_guard(wire: str, server: str) -> None:
    slow = provider(wire, server, stall_timeout=0.1, extra_headers={"x-aimock-chaos-latency": "10000"})
    with pytest.raises(alloy_trio.ProviderTimeout, match="stall_timeout"):
        await ask("hello", streaming=True, provider=slow)


def test_several_trio_runs_in_a_row(server: str) -> None:
    async def main() -> None:
        for wire in PATHS:
            result, _ = await ask("Please pack my bag", streaming=True, provider=provider(wire, server))
            assert result.text == "Packed: ☂, żółw."

    for _ in range(3):
        trio.run(main)
        gc.collect()
