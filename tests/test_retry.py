"""Retry and fallback: who is asked again, when, and what nobody may see twice."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any, Literal

import attrs
import httpcore
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import alloy_trio
from alloy_trio import (
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    ContextTooLong,
    Message,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    RunTimeout,
    Session,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Usage,
    WireError,
    run,
    tool,
)
from alloy_trio.events import BlockEnd, Retry, TextDelta, ThinkingDelta, ToolInputDelta
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request, UsageUpdate
from alloy_trio.providers._retry import Fallback, Retrying
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from alloy_trio.events import Event
    from alloy_trio.providers import Emit, ProviderEvent, Response
    from alloy_trio.testing._script import Script

HI = Request(messages=(Message.user("Hi"),))


def busy(words: str = "slow down", **facts: Any) -> Any:
    return error(RateLimited(words, **{"retryable": True, "status": 429, **facts}))


def down(words: str = "it broke") -> Any:
    return error(ProviderError(words))


class Listener:
    """What was handed over, and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, ProviderEvent | Retry]] = []

    async def __call__(self, *events: ProviderEvent | Retry) -> None:
        self.seen.extend((trio.current_time(), event) for event in events)

    @property
    def text(self) -> str:
        return "".join(event.text for _, event in self.seen if isinstance(event, TextDelta))

    @property
    def retries(self) -> list[Retry]:
        return [event for _, event in self.seen if isinstance(event, Retry)]


def retrying(script: Iterable[Script], retries: int = 3, backoff: float = 1.0, drawn: float = 0.5) -> Retrying:
    """Make one that waits 1, 2, 4… seconds, unless told otherwise."""
    return Retrying(ScriptedProvider(script), retries, backoff, random=lambda: drawn)


def asked(by: Retrying | Fallback | ScriptedProvider) -> list[int]:
    """Return how often each provider was asked."""
    match by:
        case ScriptedProvider():
            return [len(by.requests)]
        case Retrying():
            return asked(by.provider)  # type: ignore[arg-type]
    return [number for each in by.providers for number in asked(each)]  # type: ignore[arg-type]


class Raising:
    """A provider that emits some events and fails, again and again."""

    def __init__(self, failure: Exception, *events: ProviderEvent) -> None:
        self.failure = failure
        self.events = events
        self.attempts: list[int] = []

    async def complete(self, request: Request) -> Response:
        raise NotImplementedError

    async def stream(self, request: Request, emit: Emit) -> Response:
        self.attempts.append(request.attempt)
        await emit(*self.events)
        raise self.failure


# --- Again: how often, and after what.


async def test_rty_01_twice_too_busy_and_then_an_answer(autojump_clock: trio.testing.MockClock) -> None:
    by, listener = retrying([busy(), busy("later"), "Hello"]), Listener()
    response = await by.stream(HI, listener)
    assert response.message.text == listener.text == "Hello"
    assert listener.retries == [
        Retry("scripted", "scripted", 2, 1.0, "slow down"),
        Retry("scripted", "scripted", 3, 2.0, "later"),
    ]
    assert [when for when, event in listener.seen if isinstance(event, Retry)] == [0.0, 1.0]
    assert trio.current_time() == 3.0


async def test_each_attempt_is_told_which_one_it_is(autojump_clock: trio.testing.MockClock) -> None:
    by = Raising(Overloaded("busy", retryable=True))
    with pytest.raises(Overloaded):
        await Retrying(by, 2, 1.0).stream(HI, Listener())
    assert by.attempts == [1, 2, 3]
    assert HI.attempt == 1


async def test_complete_does_the_same_unseen(autojump_clock: trio.testing.MockClock) -> None:
    by = retrying([busy(), "Hello"])
    assert (await by.complete(HI)).message.text == "Hello"
    assert (by.name, by.model, asked(by)) == ("scripted", "scripted", [2])


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_rty_04_so_many_retries_and_then_the_last_error(
    retries: int, autojump_clock: trio.testing.MockClock
) -> None:
    by = retrying([busy(str(number)) for number in range(9)], retries)
    with pytest.raises(RateLimited) as caught:
        await by.stream(HI, Listener())
    assert asked(by) == [retries + 1]
    assert str(caught.value) == str(retries)


async def test_rty_04_what_is_not_retryable_uses_up_one_reply(autojump_clock: trio.testing.MockClock) -> None:
    by = retrying([down(), "Hello"])
    with pytest.raises(ProviderError, match="it broke"):
        await by.stream(HI, Listener())
    assert asked(by) == [1]
    assert trio.current_time() == 0.0


@pytest.mark.parametrize(
    "failure", [ValueError("a bug"), OSError("no luck"), trio.TooSlowError(), alloy_trio.AlloyError()]
)
async def test_what_is_no_provider_error_passes(failure: Exception) -> None:
    by, listener = Raising(failure), Listener()
    with pytest.raises(type(failure)) as caught:
        await Fallback([Retrying(by, 3, 0.0), retrying(["Hello"])]).stream(HI, listener)
    assert caught.value is failure
    assert (by.attempts, listener.seen) == ([1], [])


async def test_a_cancel_ends_a_wait(autojump_clock: trio.testing.MockClock) -> None:
    by = retrying([busy()] * 3, backoff=100.0)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(by.stream, HI, Listener())
            await trio.sleep(5)
            scope.cancel()
    assert scope.cancelled_caught
    assert (trio.current_time(), asked(by)) == (5.0, [1])


# --- How long.


async def waits(by: Retrying) -> list[float]:
    """Return the waits until it gives up, each as it was announced and as it was."""
    listener = Listener()
    before = trio.current_time()
    with pytest.raises(ProviderError):
        await by.stream(HI, listener)
    found = [retry.delay for retry in listener.retries]
    assert trio.current_time() - before == pytest.approx(sum(found))
    return found


async def test_rty_05_the_range_doubles(autojump_clock: trio.testing.MockClock) -> None:
    assert await waits(retrying([busy()] * 5, 4, 0.5, drawn=0.0)) == [0.0, 0.0, 0.0, 0.0]
    assert await waits(retrying([busy()] * 5, 4, 0.5, drawn=0.5)) == [0.5, 1.0, 2.0, 4.0]
    assert await waits(retrying([busy()] * 5, 4, 0.5, drawn=1.0)) == [1.0, 2.0, 4.0, 8.0]


async def test_rty_05_two_runs_differ(autojump_clock: trio.testing.MockClock) -> None:
    drawn = [await waits(attrs.evolve(retrying([busy()] * 4), random=random.Random(seed).random)) for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    for found in drawn:
        assert all(0 <= wait <= 2.0 * 2**n for n, wait in enumerate(found))


async def test_rty_05_it_is_drawn_evenly(autojump_clock: trio.testing.MockClock) -> None:
    source = random.Random(7).random
    first = [(await waits(attrs.evolve(retrying([busy()] * 2, 1), random=source)))[0] for _ in range(400)]
    assert 0.9 < sum(first) / 400 < 1.1
    assert min(first) < 0.1
    assert max(first) > 1.9


async def test_a_backoff_beyond_all_numbers(autojump_clock: trio.testing.MockClock) -> None:
    """The doubling ends before it overflows; what is no number any more is given up on."""
    by = retrying([busy()] * 2000, 1500, 1e-30)
    await waits(by)
    assert asked(by) == [1501]
    for drawn in (0.0, 1.0):
        by = retrying([busy()] * 2, 1, 1.7e308, drawn=drawn)
        with pytest.raises(RateLimited):
            await by.stream(HI, Listener())
        assert asked(by) == [1]


@given(
    backoff=st.floats(0.0, 1e6),
    drawn=st.floats(0.0, 1.0, exclude_max=True),
    asks=st.none() | st.floats(0.0, 1e6),
    left=st.floats(1e-3, 1e7),
)
def test_rty_06_rty_11_no_wait_is_too_short_or_too_long(
    backoff: float, drawn: float, asks: float | None, left: float
) -> None:
    """Whatever the numbers: a wait is within its range, as long as it was asked for, and over before the deadline."""

    async def main() -> None:
        by, listener = retrying([busy(retry_after=asks), "Hello"], 1, backoff, drawn), Listener()
        wait = max(drawn * 2 * backoff, asks or 0.0)
        with trio.CancelScope(deadline=trio.current_time() + left) as scope:
            if wait < left:
                await by.stream(HI, listener)
            else:
                with pytest.raises(RateLimited):
                    await by.stream(HI, listener)
        assert not scope.cancelled_caught
        assert [retry.delay for retry in listener.retries] == ([wait] if wait < left else [])
        assert trio.current_time() == (wait if wait < left else 0.0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("left", "retried"), [(0.9, False), (1.0, False), (1.1, True)])
async def test_rty_06_a_wait_that_does_not_fit(
    left: float, retried: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Not even a wait that ends with the deadline is begun: the error, at once."""
    by, listener = retrying([busy(), "Hello"]), Listener()
    with trio.move_on_after(left) as scope:
        if retried:
            await by.stream(HI, listener)
        else:
            with pytest.raises(RateLimited):
                await by.stream(HI, listener)
    assert not scope.cancelled_caught
    assert trio.current_time() == (1.0 if retried else 0.0)
    assert len(listener.retries) == retried


@pytest.mark.parametrize(("asks", "wait"), [(0.2, 1.0), (1.0, 1.0), (7.5, 7.5), (None, 1.0)])
async def test_rty_11_as_long_as_the_provider_asks(
    asks: float | None, wait: float, autojump_clock: trio.testing.MockClock
) -> None:
    assert await waits(retrying([busy(retry_after=asks)] * 2, 1)) == [wait]


@pytest.mark.parametrize("asks", [60.0, 3600.0, math.inf])
async def test_rty_11_asked_to_come_back_too_late(asks: float, autojump_clock: trio.testing.MockClock) -> None:
    by = retrying([busy(retry_after=asks), "Hello"])
    with trio.fail_after(60), pytest.raises(RateLimited):
        await by.stream(HI, Listener())
    assert (asked(by), trio.current_time()) == ([1], 0.0)


async def test_rty_07_one_deadline_for_all_attempts(autojump_clock: trio.testing.MockClock) -> None:
    """What an attempt took is gone: 4 of 5 seconds, and the wait of 2 does not fit any more."""
    by = retrying([busy(), [delay(3), busy("again")], "Hello"])
    with trio.fail_after(5), pytest.raises(RateLimited, match="again"):
        await by.stream(HI, Listener())
    assert (asked(by), trio.current_time()) == ([2], 4.0)


# --- Never behind content.

CONTENT: list[ProviderEvent] = [
    TextDelta("a"),
    ThinkingDelta("a"),
    ToolInputDelta("1", "add", "{"),
    BlockEnd(Thinking("", provider_data={"sealed": "x"})),
]


@pytest.mark.parametrize("event", CONTENT, ids=lambda event: type(event).__name__)
async def test_rty_10_rty_17_one_piece_of_an_answer_and_nobody_is_asked_again(event: ProviderEvent) -> None:
    failure = Overloaded("busy", retryable=True)
    by, listener = Raising(failure, event), Listener()
    chain = Fallback([Retrying(by, 3, 0.0), retrying(["Hello"])])
    with pytest.raises(Overloaded) as caught:
        await chain.stream(HI, listener)
    assert caught.value is failure
    assert by.attempts == [1]
    assert [seen for _, seen in listener.seen] == [event]


async def test_rty_09_a_usage_report_is_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    by, listener = Raising(Overloaded("busy", retryable=True), UsageUpdate(Usage(input_tokens=7))), Listener()
    await Fallback([Retrying(by, 2, 0.0), retrying(["Hello"])]).stream(HI, listener)
    assert by.attempts == [1, 2, 3]
    assert listener.text == "Hello"


async def test_content_counts_though_its_hand_over_failed() -> None:
    """A listener that breaks off half-way may have had it."""

    async def emit(*_: object) -> None:
        raise ConnectionFailed("of the listener's own", retryable=True)

    by = Raising(Overloaded("busy", retryable=True), TextDelta("a"))
    with pytest.raises(ConnectionFailed):
        await Fallback([Retrying(by, 3, 0.0), retrying(["Hello"])]).stream(HI, emit)
    assert by.attempts == [1]


# --- Somebody else.


async def test_rty_15_the_next_one_answers() -> None:
    chain, listener = Fallback([retrying([down()]), ScriptedProvider(["Hello"], name="second", model="m2")]), Listener()
    response = await chain.stream(HI, listener)
    assert response.message.text == listener.text == "Hello"
    assert response.message.provider == "second"
    assert listener.retries == [Retry("second", "m2", 1, 0.0, "it broke")]
    assert (chain.name, chain.model) == ("scripted", "scripted")


async def test_rty_15_the_first_one_answers() -> None:
    chain = Fallback([retrying(["Hello"]), retrying(["Bye"])])
    assert (await chain.complete(HI)).message.text == "Hello"
    assert asked(chain) == [1, 0]


async def test_rty_15_there_is_no_other() -> None:
    failure = ProviderError("it broke")
    with pytest.raises(ProviderError) as caught:
        await Fallback([retrying([error(failure)])]).stream(HI, Listener())
    assert caught.value is failure
    assert not hasattr(failure, "__notes__")


async def test_a_chain_of_nobody_is_none() -> None:
    with pytest.raises(ValueError, match="providers"):
        Fallback([])


async def test_rty_15_retries_come_first(autojump_clock: trio.testing.MockClock) -> None:
    """Each has its own retries, and counts its own attempts."""
    chain, listener = Fallback([retrying([busy()] * 3, 2), retrying([busy(), "Hello"], 2)]), Listener()
    assert (await chain.stream(HI, listener)).message.text == "Hello"
    assert asked(chain) == [3, 2]
    assert [(retry.attempt, retry.delay) for retry in listener.retries] == [(2, 1.0), (3, 2.0), (1, 0.0), (2, 1.0)]
    last = chain.providers[1].provider  # type: ignore[attr-defined]
    assert [request.attempt for request in last.requests] == [1, 2]


@pytest.mark.parametrize(
    "failure",
    [
        AuthenticationError("no key"),
        RateLimited("no credit"),
        Overloaded("busy", retryable=True),
        BadRequest("no such model"),
        ConnectionFailed("gone"),
        ProviderTimeout("silent"),
        WireError("what?"),
        ProviderError("whatever"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_rty_15_another_vendor_may_take_what_this_one_does_not(failure: ProviderError) -> None:
    chain = Fallback([retrying([error(failure)], 0), retrying(["Hello"])])
    assert (await chain.complete(HI)).message.text == "Hello"


async def test_a_prompt_that_is_too_long_goes_to_nobody_else() -> None:
    """The loop makes it shorter. Wherever in the chain it was."""
    chain = Fallback([retrying([error(ContextTooLong("too long"))]), retrying(["Hello"])])
    with pytest.raises(ContextTooLong):
        await chain.complete(HI)
    assert asked(chain) == [1, 0]

    chain = Fallback([retrying([down()]), retrying([error(ContextTooLong("too long"))]), retrying(["Hello"])])
    with pytest.raises(ContextTooLong) as caught:
        await chain.complete(HI)
    assert asked(chain) == [1, 1, 0]
    assert "it broke" in caught.value.__notes__[0]


async def test_rty_16_all_fail() -> None:
    """The last one's error, and in its notes those before it, the latest first."""
    failures = [Overloaded("busy", retryable=True), AuthenticationError("no key"), ProviderError("it broke")]
    names = ["first", "second", "third"]
    chain = Fallback([ScriptedProvider([error(e)], name=n) for n, e in zip(names, failures, strict=True)])
    with pytest.raises(ProviderError) as caught:
        await chain.complete(HI)
    assert caught.value is failures[-1]
    assert caught.value.__notes__ == [
        "before that, provider second (scripted): AuthenticationError: no key",
        "before that, provider first (scripted): Overloaded: busy",
    ]


async def test_rty_16_no_time_for_another(autojump_clock: trio.testing.MockClock) -> None:
    """An attempt that fails as time is up: its error is what is known, and nobody else is asked."""

    class Late(Raising):
        async def stream(self, request: Request, emit: Emit) -> Response:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            return await super().stream(request, emit)

    chain, listener = Fallback([retrying([down()]), Late(ProviderError("late")), retrying(["Hello"])]), Listener()
    with trio.move_on_after(5), pytest.raises(ProviderError, match="late"):
        await chain.stream(HI, listener)
    assert asked(Fallback([chain.providers[0], chain.providers[2]])) == [1, 0]
    assert len(listener.retries) == 1


async def test_rty_16_a_wait_that_does_not_fit_leaves_time_for_another(autojump_clock: trio.testing.MockClock) -> None:
    chain = Fallback([retrying([busy(retry_after=60)]), retrying([[delay(3), text("Hello")]])])
    with trio.fail_after(5):
        assert (await chain.complete(HI)).message.text == "Hello"
    assert trio.current_time() == 3.0


async def test_rty_17_content_and_then_failure() -> None:
    chain, listener = Fallback([retrying([[text("Hel"), busy()]]), retrying(["Hello"])]), Listener()
    with pytest.raises(RateLimited):
        await chain.stream(HI, listener)
    assert (listener.text, asked(chain), listener.retries) == ("Hel", [1, 0], [])


# --- Over HTTP.


def delta(words: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": words}}]})


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def fault(message: str = "it broke", **facts: Any) -> bytes:
    return event({"error": {"message": message, **facts}})


STOP = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n"
ANSWER = delta("Hel") + delta("lo") + STOP
CLAUDE = b"".join(
    event(data)
    for data in (
        {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    )
)


def refusal(status: int, message: str = "no", headers: dict[str, str] | None = None, **facts: Any) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, **facts}}, headers=headers)


def streamed(*pieces: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(pieces))


class Web:
    """Gives these replies, one a request; an exception is raised in its place."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.replies = list(replies)
        self.requests: list[Any] = []
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._handle))

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(json.loads(request.content))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def provider(self, kind: Callable[..., Any] = OpenAICompat, **options: Any) -> Any:
        return kind("m", base_url="http://test", api_key="k", http_client=self.client, **options)

    def retrying(self, kind: Callable[..., Any] = OpenAICompat, retries: int = 3) -> Retrying:
        return Retrying(self.provider(kind), retries, 1.0, random=lambda: 0.5)


AGAIN: dict[str, httpx.Response | Exception] = {
    **{str(status): refusal(status) for status in (408, 409, 429, 500, 502, 503, 504, 529, 500 + 20, 599)},
    "an empty 503": httpx.Response(503),
    "resource exhausted": streamed(fault(status="RESOURCE_EXHAUSTED", code=429)),
    "internal": streamed(fault(status="INTERNAL", code=500)),
    "unavailable": streamed(fault(status="UNAVAILABLE", code=503)),
    "rate limit": streamed(fault(code="rate_limit_exceeded")),
    "overloaded": streamed(fault(type="overloaded_error")),
    "server error": streamed(fault(type="server_error")),
    "refused": httpx.ConnectError("All connection attempts failed"),
    "closed": httpx.RemoteProtocolError("Server disconnected without sending a response."),
    "reset": httpx.ReadError("Connection reset by peer"),
    "slow to connect": httpx.ConnectTimeout("timed out"),
    "silent": httpx.ReadTimeout("timed out"),
    "HTTP/2 unprocessed": httpx.RemoteProtocolError("<ConnectionTerminated error_code:0, last_stream_id:1>"),
    "ended before content": streamed(),
}


@pytest.mark.parametrize("failure", AGAIN.values(), ids=[f"rty-02-{name.replace(' ', '_')}" for name in AGAIN])
async def test_asked_again(failure: httpx.Response | Exception, autojump_clock: trio.testing.MockClock) -> None:
    web, listener = Web(failure, streamed(ANSWER)), Listener()
    response = await web.retrying().stream(HI, listener)
    assert response.message.text == listener.text == "Hello"
    assert len(listener.retries) == 1
    assert web.requests[0] == web.requests[1]


NEVER = {
    **{str(status): refusal(status) for status in (400, 401, 402, 403, 404, 413, 422)},
    "an unknown word": streamed(fault(type="gremlins")),
    "an unknown word in a 200": httpx.Response(200, json={"error": {"type": "gremlins", "message": "no"}}),
    "told so": refusal(503, headers={"x-should-retry": "false"}),
}


@pytest.mark.parametrize("failure", NEVER.values(), ids=[f"rty-02-not_{name.replace(' ', '_')}" for name in NEVER])
async def test_not_asked_again(failure: httpx.Response, autojump_clock: trio.testing.MockClock) -> None:
    web, listener = Web(failure), Listener()
    with pytest.raises(ProviderError):
        await web.retrying().stream(HI, listener)
    assert (len(web.requests), listener.seen) == (1, [])


async def test_rty_03_a_name_that_cannot_be_resolved_just_now(autojump_clock: trio.testing.MockClock) -> None:
    web = Web(httpx.ConnectError("[Errno -3] Temporary failure in name resolution"), streamed(ANSWER))
    assert (await web.retrying().complete(HI)).message.text == "Hello"


@pytest.mark.parametrize(
    "failure",
    [
        refusal(429, "You exceeded your current quota", code="insufficient_quota"),
        refusal(429, "Your credit balance is too low", type="invalid_request_error"),
        refusal(429, "This key has reached its spending limit"),
        streamed(fault("You exceeded your current quota", code="insufficient_quota")),
    ],
    ids=["rty-12-quota", "rty-12-credit", "rty-12-spend_limit", "rty-12-in_a_stream"],
)
async def test_no_money_is_not_a_matter_of_time(
    failure: httpx.Response, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web(failure)
    with pytest.raises(RateLimited):
        await web.retrying().complete(HI)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "2500", "retry-after": "9"}, 2.5), ({"retry-after": "0"}, 1.0)],
    ids=["rty-11-seconds", "rty-11-milliseconds", "rty-11-none"],
)
async def test_the_wait_that_a_header_asks_for(
    headers: dict[str, str], wait: float, autojump_clock: trio.testing.MockClock
) -> None:
    web = Web(refusal(429, headers=headers), streamed(ANSWER))
    await web.retrying().complete(HI)
    assert trio.current_time() == wait


async def test_rty_09_a_stream_that_failed_before_any_content(autojump_clock: trio.testing.MockClock) -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    web, listener = Web(streamed(role, fault(type="server_error")), streamed(role, ANSWER)), Listener()
    await web.retrying().stream(HI, listener)
    assert [each.text for _, each in listener.seen if isinstance(each, TextDelta)] == ["Hel", "lo"]
    assert len(web.requests) == 2


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (delta("Hel"), TextDelta),
        (event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hel"}}]}), ThinkingDelta),
    ],
    ids=["rty-10-text", "rty-10-thinking"],
)
async def test_a_stream_that_failed_behind_one_delta(
    piece: bytes, kind: type[Any], autojump_clock: trio.testing.MockClock
) -> None:
    web, listener = Web(streamed(piece, fault(type="server_error")), streamed(ANSWER)), Listener()
    with pytest.raises(ProviderError):
        await Fallback([web.retrying(), web.retrying()]).stream(HI, listener)
    assert [type(each) for _, each in listener.seen if not isinstance(each, UsageUpdate)] == [kind]
    assert len(web.requests) == 1


@pytest.mark.parametrize("started", [0, 1], ids=["rty-14-first_event", "rty-14-behind_the_start"])
async def test_overloaded_inside_a_stream(started: int, autojump_clock: trio.testing.MockClock) -> None:
    """The status said 200, but nothing of an answer came."""
    start = event({"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}}})
    overloaded = event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    web, listener = Web(streamed(start * started, overloaded), streamed(CLAUDE)), Listener()
    response = await web.retrying(Anthropic).stream(HI, listener)
    assert response.message.text == listener.text == "Hello"
    assert [(retry.provider, retry.attempt) for retry in listener.retries] == [("anthropic", 2)]


# --- A client that was told to try again by itself.


class Wire(httpcore.AsyncNetworkBackend):
    """A network that counts connections and requests, and gives these replies."""

    def __init__(self, *replies: bytes, refuses: bool = False) -> None:
        self.replies = list(replies)
        self.refuses = refuses
        self.connections = 0
        self.sent = b""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        self.connections += 1
        if self.refuses:
            raise httpcore.ConnectError("refused")
        return WireStream(self)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    @property
    def requests(self) -> int:
        return self.sent.count(b"POST ")

    def client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(retries=5, verify=False)
        transport._pool = httpcore.AsyncConnectionPool(retries=5, network_backend=self)
        return httpx.AsyncClient(transport=transport)


class WireStream(httpcore.AsyncNetworkStream):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's word
        await trio.lowlevel.checkpoint()
        return self._wire.replies.pop(0) if self._wire.replies else b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        await trio.lowlevel.checkpoint()
        self._wire.sent += buffer

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> None:
        return None


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b""],
    ids=["rty-13-refused_request", "rty-13-closed_without_a_byte"],
)
async def test_nothing_is_sent_twice(reply: bytes, autojump_clock: trio.testing.MockClock) -> None:
    wire = Wire(*[reply] * 4)
    async with wire.client() as client:
        by = OpenAICompat("m", base_url="http://test", http_client=client)
        with pytest.raises((Overloaded, ConnectionFailed)):
            await by.complete(HI)
        assert (wire.requests, wire.connections) == (1, 1)
        with pytest.raises((Overloaded, ConnectionFailed)):
            await Retrying(by, 2, 1.0).complete(HI)
        assert wire.requests == 4


async def test_rty_13_no_connection_is_tried_twice(autojump_clock: trio.testing.MockClock) -> None:
    """Else the retries of the transport would multiply with ours, unseen, and wait by a clock of their own."""
    wire = Wire(refuses=True)
    async with wire.client() as client:
        by = OpenAICompat("m", base_url="http://test", http_client=client)
        with pytest.raises(ConnectionFailed, match="refused") as caught:
            await by.complete(HI)
    assert caught.value.retryable
    assert (wire.connections, trio.current_time()) == (1, 0.0)


# --- What another one is asked.


def foreign_history(by: Any) -> tuple[Message, ...]:
    """Return a conversation that `by` has had: sealed reasoning, and a call whose id is its own way."""
    call = ToolUse("call:1/é", "add", {"a": 1})
    sealed = Thinking("I should add", provider_data={"type": "reasoning", "id": "rs_1", "encrypted_content": "x"})
    said = attrs.evolve(by.message((sealed, Text("One moment"), call)), provider_state={"response_id": "r1"})
    return Message.user("Add"), said, Message.user(ToolResult("call:1/é", (Text("2"),)))


async def test_rty_18_the_history_is_rewritten_for_who_is_asked() -> None:
    """System prompt and conversation reach the fallback as its own API takes them; the request itself is unchanged."""
    first, second = Web(refusal(401)), Web(streamed(CLAUDE))
    openai = first.provider(OpenAI)
    request = Request(messages=foreign_history(openai), system_prompt="Be brief.")
    listener = Listener()
    await Fallback([Retrying(openai, 0, 1.0), second.retrying(Anthropic)]).stream(request, listener)
    assert listener.text == "Hello"
    body = second.requests[0]
    assert "Be brief." in json.dumps(body["system"])
    said, answered = body["messages"][1:]
    kinds = [block["type"] for block in said["content"]]
    assert kinds == ["text", "text", "tool_use"]
    assert "encrypted" not in json.dumps(body)
    assert said["content"][2]["id"] == answered["content"][0]["tool_use_id"]
    assert set(said["content"][2]["id"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert "encrypted" in json.dumps(first.requests[0])  # to where it came from, it went as it was


# --- Whole runs.


@tool
async def ponder() -> str:
    """Take ten seconds."""
    await trio.sleep(10)
    return "done"


async def go(
    way: Literal["run", "stream"], *script: Script, **options: Any
) -> tuple[alloy_trio.Result | Exception, list[Event], list[int]]:
    """Run to the end in either way. Returns the result, or what was raised; all events; how often each was asked."""
    by = ScriptedProvider(script)
    events: list[Event] = []
    ended: alloy_trio.Result | Exception
    try:
        if way == "run":
            ended = await run("Hi", provider=by, on_event=lambda e: events.append(e.event), **options)
        else:
            async with alloy_trio.stream("Hi", provider=by, **options) as source:
                async for each in source:
                    events.append(each)  # noqa: PERF401 - those before a failure count
            ended = source.result
    except Exception as caught:  # noqa: BLE001 - the tests say what it has to be
        ended = caught
    others = options.get("fallback_providers", ())
    return ended, events, [len(each.requests) for each in (by, *others)]


def words(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


both_ways = pytest.mark.parametrize("way", ["run", "stream"])


@both_ways
async def test_rty_01_a_run(way: Any, autojump_clock: trio.testing.MockClock) -> None:
    result, events, numbers = await go(way, busy(), busy(), "Hello", max_retries=3)
    assert isinstance(result, alloy_trio.Result)
    assert (result.status, result.text, result.turns, numbers) == ("completed", "Hello", 1, [3])
    retries = [event for event in events if isinstance(event, Retry)]
    assert [(retry.provider, retry.attempt, retry.error) for retry in retries] == [
        ("scripted", 2, "slow down"),
        ("scripted", 3, "slow down"),
    ]
    assert all(0 <= retry.delay <= 2 * 2**n for n, retry in enumerate(retries))
    assert trio.current_time() == pytest.approx(sum(retry.delay for retry in retries))
    assert words(events) == ("Hello" if way == "stream" else "")


async def test_rty_04_a_run_retries_three_times_unless_told(autojump_clock: trio.testing.MockClock) -> None:
    for options, number in (({}, 4), ({"max_retries": 0}, 1), ({"max_retries": 1}, 2)):
        failure, _, numbers = await go("run", *[busy()] * 9, **options)
        assert isinstance(failure, RateLimited)
        assert failure.result is not None
        assert (failure.result.status, failure.result.error, numbers) == ("error", failure, [number])


async def test_rty_05_a_run_backs_off_as_told(autojump_clock: trio.testing.MockClock) -> None:
    _, events, _ = await go("run", *[busy()] * 9, max_retries=3, retry_backoff=0.001)
    retries = [event for event in events if isinstance(event, Retry)]
    assert [retry.attempt for retry in retries] == [2, 3, 4]
    assert all(retry.delay <= 0.002 * 2**n for n, retry in enumerate(retries))
    assert trio.current_time() <= 0.014


async def test_rty_06_a_run_that_has_no_time_to_wait(autojump_clock: trio.testing.MockClock) -> None:
    failure, _, numbers = await go("run", busy(retry_after=30), "Hello", timeout=20)
    assert isinstance(failure, RateLimited)
    assert (numbers, trio.current_time()) == ([1], 0.0)


async def test_rty_07_a_slow_tool_eats_into_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    script = [tool_call("ponder"), busy(retry_after=5), "Hello"]
    failure, _, numbers = await go("run", *script, tools=[ponder], timeout=14)
    assert isinstance(failure, RateLimited)
    assert failure.result is not None
    assert [call.outcome for call in failure.result.tool_calls] == ["ok"]
    assert (numbers, trio.current_time()) == ([2], 10.0)
    result, _, numbers = await go("run", *script, tools=[ponder], timeout=16)
    assert isinstance(result, alloy_trio.Result)
    assert (result.text, numbers) == ("Hello", [3])


@both_ways
async def test_rty_08_a_request_takes_no_longer_than_what_is_left(
    way: Any, autojump_clock: trio.testing.MockClock
) -> None:
    script: list[Script] = [tool_call("ponder"), [delay(100), text("Hello")]]
    failure, _, numbers = await go(way, *script, tools=[ponder], timeout=10.25)
    assert isinstance(failure, RunTimeout)
    assert (numbers, trio.current_time()) == ([2], 10.25)


@both_ways
async def test_rty_15_a_run_that_falls_back(way: Any) -> None:
    second = ScriptedProvider(["Hello", "Again"], name="second", model="m2")
    result, events, numbers = await go(way, down(), fallback_providers=[second], max_retries=0)
    assert isinstance(result, alloy_trio.Result)
    assert (result.text, result.messages[-1].provider, numbers) == ("Hello", "second", [1, 1])
    assert [each for each in events if isinstance(each, Retry)] == [Retry("second", "m2", 1, 0.0, "it broke")]
    untouched = ScriptedProvider(["Bye"])
    result, _, numbers = await go(way, "Hello", fallback_providers=[untouched])
    assert isinstance(result, alloy_trio.Result)
    assert (result.text, numbers) == ("Hello", [1, 0])


async def test_rty_15_each_turn_begins_with_the_first(autojump_clock: trio.testing.MockClock) -> None:
    second = ScriptedProvider([tool_call("ponder")])
    result, _, numbers = await go("run", down(), "Hello", fallback_providers=[second], tools=[ponder])
    assert isinstance(result, alloy_trio.Result)
    assert (result.text, result.turns, numbers) == ("Hello", 2, [2, 1])


@both_ways
async def test_rty_16_a_run_where_all_fail(way: Any, autojump_clock: trio.testing.MockClock) -> None:
    others = [ScriptedProvider([down("second")]), ScriptedProvider([busy("third")] * 9)]
    failure, _, numbers = await go(way, *[busy("first")] * 9, fallback_providers=others, max_retries=1)
    assert isinstance(failure, RateLimited)
    assert (str(failure), numbers) == ("third", [2, 1, 2])
    before = [note for note in failure.__notes__ if note.startswith("before that")]
    assert [note.rpartition(": ")[2] for note in before] == ["second", "first"]
    assert failure.result is not None
    assert (failure.result.status, failure.result.error) == ("error", failure)


async def test_rty_16_a_run_without_time_for_a_fallback(autojump_clock: trio.testing.MockClock) -> None:
    """The second fails at the very end of the run's time: the third is not asked."""

    class Late(ScriptedProvider):
        async def stream(self, request: Request, emit: Emit) -> Response:
            return await self.complete(request)

        async def complete(self, request: Request) -> Response:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            raise ProviderError("late")

    third = ScriptedProvider(["Hello"])
    failure, _, numbers = await go("run", down(), fallback_providers=[Late([]), third], timeout=5)
    assert (str(failure), numbers[2]) == ("late", 0)


async def test_rty_17_a_run_cut_behind_content() -> None:
    second = ScriptedProvider(["Hello"])
    session = Session()
    failure, events, numbers = await go("stream", [text("Hel"), busy()], fallback_providers=[second], session=session)
    assert isinstance(failure, RateLimited)
    assert failure.result is not None
    assert (failure.result.text, words(events), numbers) == ("Hel", "Hel", [1, 0])
    assert session.messages[-1].interrupted


async def test_a_fallback_cut_while_it_answers_is_who_said_it() -> None:
    second = ScriptedProvider([[text("Hel"), down("broken")]], name="second", model="m2")
    failure, _, _ = await go("stream", down(), fallback_providers=[second])
    assert isinstance(failure, ProviderError)
    assert failure.result is not None
    said = failure.result.messages[-1]
    assert (said.text, said.provider, said.model) == ("Hel", "second", "m2")


@both_ways
async def test_rty_18_a_run_streams_a_fallback_to_the_same_consumer(way: Any) -> None:
    second = ScriptedProvider(["Hello"])
    history = [Message.user("One"), Message.assistant("Two")]
    options = {"system_prompt": "Be brief.", "messages": history, "fallback_providers": [second]}
    result, events, _ = await go(way, down(), **options)
    assert isinstance(result, alloy_trio.Result)
    (request,) = second.requests
    assert (request.system_prompt, [m.text for m in request.messages]) == ("Be brief.", ["One", "Two", "Hi"])
    assert words(events) == ("Hello" if way == "stream" else "")


async def test_a_long_wait_is_not_waited_where_somebody_else_can_answer(autojump_clock: object) -> None:
    busy = RateLimited("tomorrow", status=429, retryable=True, retry_after=86_400)
    first, second = ScriptedProvider([error(busy)]), ScriptedProvider(["here"])
    result = await run("go", provider=first, fallback_providers=[second])
    assert (result.text, trio.current_time()) == ("here", 0.0)


async def test_an_error_says_how_often_it_was_tried_and_why_no_more(autojump_clock: object) -> None:
    busy = RateLimited("slow down", status=429, retryable=True, retry_after=5)
    with pytest.raises(RateLimited) as caught:
        await run("go", provider=ScriptedProvider([error(busy)] * 9), timeout=12)
    first, second = caught.value.__notes__
    assert first.startswith("not tried again: the next wait of ")
    assert second in {"it was tried 2 times", "it was tried 3 times"}
