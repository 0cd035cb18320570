"""
What goes wrong between a client and a server, systematically.

Every fault, over every wire, buffered and streamed, alone, with retries and with a fallback. Each case ends in the right answer or in the right error; in time; without having taken more than it
may; and with nothing of it left.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import attrs
import httpx
import pytest
import trio
import trio.testing
from test_http import KEY, PROMPTLY, _plain_sockets  # noqa: F401 - a fixture
from test_transport import HERE, certified, trusting

import alloy_trio
from alloy_trio import (
    AlloyError,
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    RunTimeout,
    WireError,
)
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, _http
from alloy_trio.providers._decoder import Decoder
from alloy_trio.providers._openai_compat_reply import ChatDecoder
from alloy_trio.providers._sse import SSEParser
from alloy_trio.testing import Fault, FaultServer, assert_no_orphans

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from alloy_trio import Result
    from alloy_trio.testing._answers import Place

Policy: TypeAlias = Literal["alone", "retries", "fallback"]

STALL: Final = (
    0.05  # seconds of silence, where that is the fault; elsewhere so many that no busy machine makes them one
)
TIMEOUT: Final = 10.0  # seconds for a run: long enough for all but what has no end
SOON: Final = 0.1  # the same for what only the deadline ends
BODY: Final = 2**17  # bytes of an answer in one piece, or of an event
STREAM: Final = 4 * BODY  # bytes of a stream
BUFFERS: Final = 16 * 2**20  # bytes that the system may take for a client that does not read
MEMORY: Final = 8 * 2**20  # bytes that a client may hold of what has no end


@attrs.frozen
class Fails:
    """
    How a request fails.

    Attributes:
        error: The type, exactly.
        again: Whether it is asked again, where that is allowed.
        begun: Whether a part of the answer was handed over before, so that nobody else is asked either.
        retryable: Whether the error says that it may pass; None: as `again`.
    """

    error: type[AlloyError]
    again: bool = True
    begun: bool = False
    retryable: bool | None = None

    @property
    def after_text(self) -> Fails:
        """The same, behind a part of the answer."""
        return attrs.evolve(self, begun=True)


Expected: TypeAlias = Fails | None  # None: the answer, and no error

BROKEN, STALLED = Fails(ConnectionFailed), Fails(ProviderTimeout)
NONSENSE, CUT = Fails(WireError, again=False), Fails(WireError)
THROTTLED = Fails(RateLimited, retryable=True)
LATE = Fails(RunTimeout, again=False, begun=True)  # nobody is asked once the time is over


@attrs.frozen
class Case:
    """
    A fault, and what is to come of it.

    Attributes:
        fault: The fault; or a function that makes it, given the address of another server.
        buffered: How a request for an answer in one piece ends.
        streamed: How one for a stream ends.
        options: What else the run is told.
    """

    fault: Fault | Callable[[str], Fault]
    buffered: Expected
    streamed: Expected
    options: dict[str, Any] = attrs.field(factory=dict)


def both(fault: Fault | Callable[[str], Fault], expected: Expected, **options: Any) -> Case:
    return Case(fault, expected, expected, options)


def leaving(how: Callable[[Place], Fault], expected: Fails) -> dict[str, Case]:
    """Leave the answer at each of its places: what is all there when it is left is an answer."""
    return {
        **{place: both(how(place), expected) for place in ("head", "in head", "body")},
        **{place: Case(how(place), expected, expected.after_text) for place in ("event", "in event")},
        "end": both(how("end"), None),
    }


def waits(status: str, error: type[ProviderError], *some: str) -> dict[str, Case]:
    """Refuse the request for now, in each way to say until when, or in some of them."""

    def refused(*, again: bool = True, **fields: str) -> Case:
        return both(Fault.status(status, kind="wait", **fields), Fails(error, again=again, retryable=True))

    every = {
        "no retry-after": refused(),
        "retry-after 0": refused(retry_after="0"),
        "retry-after a float": refused(retry_after="0.01"),
        "retry-after in the past": refused(retry_after=email.utils.formatdate(time.time() - 1000, usegmt=True)),
        "retry-after far away": refused(retry_after=email.utils.formatdate(time.time() + 1000, usegmt=True), again=False),
        "retry-after a minute": refused(retry_after="60", again=False),
        "retry-after an age": refused(retry_after="99999999999", again=False),
        "retry-after no float": refused(retry_after="9" * 400),
        "retry-after negative": refused(retry_after="-7"),
        "retry-after junk": refused(retry_after="soon"),
        "retry-after empty": refused(retry_after=""),
        "retry-after nan": refused(retry_after="nan"),
        "retry-after inf": refused(retry_after="inf"),
        "retry-after-ms": refused(retry_after_ms="10", retry_after="60"),
        "retry-after-ms junk": refused(retry_after_ms="soon", retry_after="0.01"),
    }  # fmt: skip
    return {name: every[name] for name in some or every}


def elsewhere(status: str) -> Callable[[str], Fault]:
    return lambda url: Fault.status(status, location=f"{url}/elsewhere")


def named(group: str, cases: dict[str, Case]) -> dict[str, Case]:
    return {f"{group}, {name}": case for name, case in cases.items()}


CASES: Final[dict[str, Case]] = {
    "refused": both(Fault.refuse(0.05), BROKEN, max_retries=14, retry_backoff=0.005),
    **named("closed", leaving(Fault.close, BROKEN)),
    "closed, 3 bytes": both(Fault.close(3), BROKEN),
    **named("reset", leaving(Fault.reset, BROKEN)),
    **named("stalled", leaving(Fault.stall, STALLED)),
    "trickle, head": both(Fault.trickle("head", 0.02), LATE),
    "trickle, in event": both(Fault.trickle("in event", 0.02), LATE),
    # What is no answer
    "no HTTP": both(Fault.raw(bytes(range(256))), BROKEN),
    "another protocol": both(Fault.raw(b"SSH-2.0-OpenSSH_9.9\r\n") & Fault.close("end"), BROKEN),
    "a head and nothing else": Case(Fault.raw(b"HTTP/1.1 200 OK\r\n\r\n") & Fault.close("end"), NONSENSE, CUT),
    "a web page": both(Fault.body(b"<!doctype html><title>Welcome</title>"), NONSENSE),
    "noise": both(Fault.body(bytes(range(256)), "application/octet-stream"), NONSENSE),
    "null": both(Fault.body(b"null", "application/json"), NONSENSE),
    "an empty object": both(Fault.body(b"{}", "application/json"), NONSENSE),
    "half an answer": Case(Fault.half(), CUT, CUT.after_text),
    # What is counted wrong
    "a chunk that is none": Case(Fault.bad_chunk(), BROKEN, BROKEN.after_text),
    "too long a length, closed": Case(Fault.miscounted(100) & Fault.close("end"), BROKEN, None),
    "too long a length, stalled": Case(Fault.miscounted(100), STALLED, None),
    "too short a length": Case(Fault.miscounted(-150), CUT, CUT.after_text),
    # What has no end
    **{f"endless {what}": both(Fault.endless(what), BROKEN) for what in ("head", "field", "early")},
    **{f"endless {what}": both(Fault.endless(what), NONSENSE) for what in ("blank", "comment", "line", "json")},
    "endless event": Case(Fault.endless("event"), NONSENSE, NONSENSE.after_text),
    "endless behind": Case(Fault.endless("behind"), NONSENSE, None),
    **{f"bomb, {what}": both(Fault.endless(what) & Fault.gzip(), NONSENSE) for what in ("blank", "comment", "line", "json")},
    "bomb, event": Case(Fault.endless("event") & Fault.gzip(), NONSENSE, NONSENSE.after_text),
    # What is compressed
    "gzip": both(Fault.gzip(), None),
    "gzip, cut": Case(Fault.gzip() & Fault.close("in event"), BROKEN, BROKEN.after_text),
    "gzip, half": Case(Fault.gzip() & Fault.half(), CUT, CUT.after_text),
    "gzip that is none": both(Fault.status("200 OK", content_encoding="gzip"), NONSENSE),
    # What is refused
    **named("429", waits("429 Too Many Requests", RateLimited)),
    **named("529", waits("529 Overloaded", Overloaded, "no retry-after", "retry-after a float", "retry-after a minute", "retry-after junk")),
    "500": both(Fault.status("500 Internal Server Error"), Fails(ProviderError)),
    "503": both(Fault.status("503 Service Unavailable"), Fails(Overloaded)),
    "503, a page": both(Fault.status("503 Service Unavailable") & Fault.body(b"<html>"), Fails(Overloaded)),
    "401": both(Fault.status("401 Unauthorized", message=f"{KEY} is wrong"), Fails(AuthenticationError, again=False)),
    "404": both(Fault.status("404 Not Found"), Fails(BadRequest, again=False)),
    "401, stalled": both(Fault.status("401 Unauthorized") & Fault.stall("in event"), Fails(AuthenticationError, again=False)),
    "500, reset": both(Fault.status("500 Internal Server Error") & Fault.reset("in event"), Fails(ProviderError)),
    "500, endless": both(Fault.status("500 Internal Server Error") & Fault.endless("json"), Fails(ProviderError)),
    "500, a bomb": both(Fault.status("500 Internal Server Error") & Fault.endless("json") & Fault.gzip(), Fails(ProviderError)),
    **{
        f"{status[:3]} elsewhere": both(elsewhere(status), Fails(BadRequest, again=False))
        for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect")
    },
    # What fails with 200
    **{
        f"error, {kind}": Case(Fault.error(kind, f"no: {KEY}"), failure, failure.after_text)
        for kind, failure in {
            "overloaded_error": Fails(Overloaded),
            "rate_limit_exceeded": Fails(RateLimited),
            "server_error": Fails(ProviderError),
            "invalid_request_error": Fails(BadRequest, again=False),
            "authentication_error": Fails(AuthenticationError, again=False),
        }.items()
    },
}  # fmt: skip

PROVIDERS: Final = {"anthropic": Anthropic, "openai": OpenAI, "openai_compat": OpenAICompat}
FALLBACKS: Final = {"anthropic": OpenAI, "openai": OpenAICompat, "openai_compat": Anthropic}


@pytest.fixture(autouse=True)
def _bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make them small, so that to reach them takes no time."""
    monkeypatch.setattr(_http, "MAX_BODY", BODY)
    monkeypatch.setattr(_http, "MAX_STREAM", STREAM)
    monkeypatch.setattr(_http, "_PATIENCE", STALL)
    monkeypatch.setattr(SSEParser.__init__, "__defaults__", (BODY,))
    for decoder in (Decoder, ChatDecoder):
        monkeypatch.setattr(decoder, "patience", STALL)


async def ask(*, streaming: bool, **options: Any) -> Result | AlloyError:
    """Ask, and return what comes of it."""
    try:
        if not streaming:
            return await alloy_trio.run("Hi", **options)
        async with alloy_trio.stream("Hi", **options) as events:
            async for _ in events:
                pass
    except AlloyError as failure:
        return failure
    return events.result


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Make sure that the body never holds much more than what it may read."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("policy", get_args(Policy))
@pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("fault", CASES)
async def test_fault(fault: str, name: str, streaming: bool, policy: Policy) -> None:
    """The right answer or the right error, in time, within bounds, and nothing is left."""
    await _goes_wrong(fault, name, streaming=streaming, policy=policy)


# What httpx makes of these is out of our reach: early answers are nowhere counted there, and where a body does not decompress,
# it leaves its own generators half-way.
OF_HTTPX: Final = {"endless early": both(CASES["endless early"].fault, LATE)}
LEFT_BY_HTTPX: Final = {"gzip that is none"}


@pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("fault", [fault for fault in CASES if fault not in LEFT_BY_HTTPX])
async def test_fault_with_a_client_of_your_own(fault: str, streaming: bool) -> None:
    """The same over httpx, with no retries: they know nothing of it."""
    await _goes_wrong(fault, "httpx", streaming=streaming, policy="alone")


@pytest.mark.parametrize("streaming", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("fault", CASES)
async def test_fault_over_tls(fault: str, streaming: bool) -> None:
    """The same where each byte is enciphered, and a connection that ends has to say so."""
    await _goes_wrong(fault, "openai_compat", streaming=streaming, policy="alone", tls=True)


@functools.cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server here speaks TLS with, and who trusts it."""
    return certified(*HERE), trusting()


async def _goes_wrong(fault: str, name: str, *, streaming: bool, policy: Policy, tls: bool = False) -> None:
    context, trust = _contexts() if tls else (None, None)
    case = OF_HTTPX.get(fault, CASES[fault]) if name == "httpx" else CASES[fault]
    expected = case.streamed if streaming else case.buffered
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(4 * TIMEOUT))
        stack.enter_context(assert_no_orphans())
        other = await stack.enter_async_context(FaultServer(answer="I am well", ssl_context=context))
        client = await stack.enter_async_context(httpx.AsyncClient()) if name == "httpx" else None
        # httpx inflates all of a read at once: that is 64 MiB, and once.
        if policy == "alone" and fault.startswith(("endless", "bomb") if name != "httpx" else "endless"):
            well = OpenAICompat("m", base_url=other.url, http_client=client, ssl_context=trust)
            await ask(streaming=streaming, provider=well)  # loads what is loaded once
            stack.enter_context(bounded_memory())
        wrong = case.fault if isinstance(case.fault, Fault) else case.fault(other.url)
        script = [wrong] * (2 if policy == "retries" else 1)
        server = await stack.enter_async_context(FaultServer(script, ssl_context=context))
        options: dict[str, Any] = {"timeout": SOON if expected == LATE else TIMEOUT, "max_retries": 0}
        options["provider"] = PROVIDERS.get(name, OpenAICompat)(
            "m",
            api_key=KEY,
            base_url=server.url,
            http_client=client,
            ssl_context=trust,
            stall_timeout=STALL if expected is not None and expected.error is ProviderTimeout else 2 * TIMEOUT,
        )
        if policy == "retries":
            options |= {"max_retries": 2, "retry_backoff": 0.001, **case.options}
        if policy == "fallback":
            options["fallback_providers"] = [FALLBACKS[name]("m", api_key=KEY, base_url=other.url)]
        start = trio.current_time()
        outcome = await ask(streaming=streaming, **options)
        if expected is None or _is_saved(expected, policy):
            assert not isinstance(outcome, AlloyError), f"{outcome!r}"
            assert outcome.text == ("I am well" if policy == "fallback" and expected is not None else "Hello")
        else:
            _fails_as(outcome, expected)
        assert trio.current_time() - start < TIMEOUT
        with trio.fail_after(PROMPTLY):
            await server.wait_idle()
            await other.wait_idle()
        attempts = 3 if policy == "retries" and expected is not None and _is_saved(expected, policy) else 1
        heard = attempts if fault != "refused" else int(attempts > 1)  # only the one that came through
        assert len(server.requests) == heard
        assert server.taken < STREAM + BUFFERS
        assert options["provider"].statistics()["active"] == 0
        assert not any("elsewhere" in request.path for request in other.requests)


def _is_saved(expected: Fails, policy: Policy) -> bool:
    """Whether the run has an answer in the end."""
    return not expected.begun and (policy == "fallback" or (policy == "retries" and expected.again))


def _fails_as(failure: object, expected: Fails) -> None:
    assert isinstance(failure, AlloyError), f"{failure!r}"
    assert type(failure) is expected.error, f"{failure!r}"
    assert KEY not in f"{failure} {failure!r} {failure.args}"
    if isinstance(failure, ProviderError):
        retryable = expected.again if expected.retryable is None else expected.retryable
        assert failure.retryable == retryable, f"{failure!r}"
        assert failure.result is not None
        assert bool(failure.result.text) == expected.begun


async def test_a_bomb_leaves_everybody_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read from the socket may inflate to 64 MiB; others have a turn at each MiB of it."""
    monkeypatch.setattr(_http, "MAX_BODY", 64 * 2**20)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with FaultServer([Fault.endless("json") & Fault.gzip()]) as server, trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        outcome = await ask(
            streaming=False, provider=OpenAICompat("m", base_url=server.url), max_retries=0, timeout=TIMEOUT
        )
        assert isinstance(outcome, WireError)
        assert turns > 50
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("wire", PROVIDERS)
async def test_a_client_that_follows_redirects_takes_no_key_elsewhere(wire: str, status: str) -> None:
    """On the same server it goes where it is sent; another one gets no request, with neither the key nor the conversation."""
    async with FaultServer() as other, httpx.AsyncClient(follow_redirects=True) as client:
        away = Fault.status(status, location=f"{other.url}/elsewhere")
        around = Fault.status("307 Temporary Redirect", location="/v1/messages")
        async with FaultServer([away, around]) as server:
            by = PROVIDERS[wire]("m", api_key=KEY, base_url=server.url, http_client=client)
            with pytest.raises(BadRequest, match=r"redirects to .*elsewhere.* base_url"):
                await alloy_trio.run("Hi", provider=by, max_retries=0)
            assert len(server.requests) == 1
            with contextlib.suppress(ProviderError):  # Claude's answer is none to the others
                await alloy_trio.run("Hi", provider=by, max_retries=0)
            assert [asked.path for asked in server.requests[2:]] == ["/v1/messages"]
            assert server.requests[2].body == server.requests[1].body
        assert not other.connections


@pytest.mark.parametrize("wire", PROVIDERS)
async def test_all_that_may_pass_one_after_the_other(wire: str) -> None:
    """A run outlives any number of them, in any order, and each costs it one attempt."""
    passing = [
        case.fault
        for name, case in CASES.items()
        if isinstance(case.fault, Fault) and case.buffered in (BROKEN, CUT, THROTTLED) and name != "refused"
    ]
    random.Random(7).shuffle(passing)
    async with FaultServer(passing) as server:
        by = PROVIDERS[wire]("m", api_key=KEY, base_url=server.url)
        retries = len(passing)
        result = await alloy_trio.run("Hi", provider=by, timeout=TIMEOUT, max_retries=retries, retry_backoff=1e-30)
        assert result.text == "Hello"
        assert server.is_done
        with trio.fail_after(PROMPTLY):
            await server.wait_idle()
    assert len(passing) > 20


def counted() -> str:
    """Say how many cases there are, for the docs."""
    runs = len(PROVIDERS) * 2 * len(get_args(Policy))
    over_httpx = 2 * (len(CASES) - len(LEFT_BY_HTTPX))
    return f"{len(CASES)} faults, {len(CASES) * runs} cases, {2 * len(CASES)} over TLS, and {over_httpx} over httpx"


async def test_a_server_says_what_it_was_asked() -> None:
    async with FaultServer([None, Fault.body(b"{}")], answer="Yes.") as server:
        by = Anthropic("m", api_key=KEY, base_url=server.url)
        assert (await alloy_trio.run("Really?", provider=by)).text == "Yes."
        assert not server.is_done
    (asked,) = server.requests
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == KEY
    assert asked.body["messages"][0]["content"][0]["text"] == "Really?"
    assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"garbage\r\n\r\n", b""),
        (b"POST /v1 HTTP/1.1\r\ncontent-length: many\r\n\r\n", b""),
        (b"POST /v1 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"HTTP/1.1 411"),
    ],
    ids=["no HTTP", "no number", "chunks"],
)
async def test_a_client_that_asks_in_another_way_does_not_end_a_server(said: bytes, heard: bytes) -> None:
    async with FaultServer() as server:
        with trio.fail_after(10):
            client = await trio.open_tcp_stream("127.0.0.1", int(server.url.split(":")[2].partition("/")[0]))
            async with client:
                await client.send_all(said)
                answer = b"".join([data async for data in client])
            assert answer.startswith(heard)
            assert bool(answer) == bool(heard)
            await server.wait_idle()
        answered = await alloy_trio.run("Hi", provider=OpenAICompat("m", base_url=server.url))
        assert answered.text == "Hello"


async def test_a_refusal_takes_its_time_and_the_address_stays() -> None:
    """In the middle of a script, too: what was kept is closed, and nobody listens until the time is over."""
    async with FaultServer([None, Fault.refuse(0.1)]) as server:
        by = OpenAICompat("m", base_url=server.url)
        assert (await alloy_trio.run("Hi", provider=by)).text == "Hello"
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        with pytest.raises(ConnectionFailed) as caught:
            await alloy_trio.run("Hi", provider=by, max_retries=0)
        assert caught.value.nothing_sent
        assert (await alloy_trio.run("Hi", provider=by, max_retries=30, retry_backoff=0.005)).text == "Hello"
        assert trio.current_time() - start > 0.05
    with pytest.raises(ConnectionFailed):
        await alloy_trio.run("Hi", provider=by, max_retries=0)


@pytest.mark.parametrize("failure", [ZeroDivisionError(), ExceptionGroup("a group", [ZeroDivisionError()])], ids=repr)
async def test_a_failure_in_the_body_leaves_a_server_as_it_came(failure: Exception) -> None:
    with assert_no_orphans(), pytest.raises(type(failure)) as caught:
        async with FaultServer([Fault.stall("head")]) as server:
            with trio.move_on_after(0.05):
                await alloy_trio.run("Hi", provider=OpenAICompat("m", base_url=server.url))
            raise failure
    assert caught.value is failure


def test_the_docs_say_how_many_cases_there_are() -> None:
    text = (Path(__file__).parents[1] / "docs/howto/testing.md").read_text("utf-8")
    assert counted() in " ".join(text.split())
