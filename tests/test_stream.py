"""Streaming: what arrives, in which order, and how a stream ends."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
import trio.testing

import alloy_trio
from alloy_trio import (
    EventStream,
    InvalidOption,
    Message,
    Middleware,
    ProviderError,
    RequestCancelled,
    RunState,
    RunTimeout,
    Session,
    Text,
    Thinking,
    WireError,
    run,
    stream,
    tool,
)
from alloy_trio.events import (
    BlockEnd,
    Envelope,
    Event,
    RunEnd,
    RunStart,
    TextDelta,
    ThinkingDelta,
    ToolEnd,
    ToolStart,
    TurnEnd,
    TurnStart,
)
from alloy_trio.providers import Anthropic, Emit, OpenAI, OpenAICompat, Request, Response
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from alloy_trio.testing._script import Script


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def collect(replies: list[Script], **options: Any) -> tuple[list[Event], alloy_trio.Result]:
    async with stream("go", provider=ScriptedProvider(replies), **options) as events:
        seen = [event async for event in events]
    return seen, events.result


def hang_at(kind: type[Event]) -> Callable[[Envelope], Awaitable[None]]:
    async def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, kind):
            await trio.sleep_forever()

    return listen


def joined(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_strm_01_deltas_one_by_one() -> None:
    events, result = await collect([text("hello")])
    assert [e.text for e in events if isinstance(e, TextDelta)] == list("hello")
    assert joined(events) == result.text == "hello"


async def test_strm_02_stream_equals_run() -> None:
    replies: list[Script] = [[text("let me"), tool_call("add", {"a": 1, "b": 2})], text("3")]
    _, streamed = await collect(replies, tools=[add])
    buffered = await run("go", provider=ScriptedProvider(replies), tools=[add])
    for name in ("status", "turns", "messages", "usage", "text", "stop_reason"):
        assert getattr(streamed, name) == getattr(buffered, name)


async def test_strm_03_text_after_the_tools_streams_in_the_same_run() -> None:
    events, _ = await collect([tool_call("add", {"a": 1, "b": 2}), text("3")], tools=[add])
    kinds = [type(e) for e in events if not isinstance(e, BlockEnd)]
    assert kinds.index(ToolEnd) < kinds.index(TextDelta)
    assert joined(events) == "3"


async def test_strm_04_a_stream_does_not_make_the_next_run_stream() -> None:
    modes: list[str] = []

    class Both:
        async def complete(self, request: Request) -> Response:
            modes.append("complete")
            return Response(message=Message.assistant("x"))

        async def stream(self, request: Request, emit: Emit) -> Response:
            modes.append("stream")
            return Response(message=Message.assistant("x"))

    provider = Both()
    async with stream("go", provider=provider) as events:
        async for _ in events:
            pass
    await run("go", provider=provider)
    assert modes == ["stream", "complete"]


async def test_strm_05_nobody_listens() -> None:
    replies: list[Script] = [[Thinking("hm"), text("yes")]]
    async with stream("go", provider=ScriptedProvider(replies), on_event=None) as events:
        async for _ in events:
            pass
    assert events.result.text == "yes"


async def test_strm_05_on_event_has_to_be_callable() -> None:
    provider = ScriptedProvider([text("x")])
    with pytest.raises(InvalidOption, match="on_event"):
        await run("go", provider=provider, on_event="print")  # type: ignore[call-overload]
    assert provider.requests == []


async def test_strm_06_thinking_is_never_text() -> None:
    events, result = await collect([[Thinking("hm"), text("yes")]])
    assert "".join(e.text for e in events if isinstance(e, ThinkingDelta)) == "hm"
    assert joined(events) == result.text == "yes"


async def test_strm_07_each_delta_once_in_source_order() -> None:
    events, _ = await collect([text("ab")])
    assert [type(e) for e in events] == [RunStart, TurnStart, TextDelta, TextDelta, BlockEnd, TurnEnd, RunEnd]


async def test_strm_08_an_on_event_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def listen(envelope: Envelope) -> None:
        raise ValueError("listener")

    with caplog.at_level(logging.ERROR, "alloy_trio"):
        events, result = await collect([text("fine")], on_event=listen)
    assert result.text == joined(events) == "fine"
    assert "on_event raised" in caplog.text


async def test_on_event_may_be_async_and_sees_envelopes_in_order() -> None:
    seen: list[Envelope] = []

    async def listen(envelope: Envelope) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(envelope)

    calls: list[Script] = [[tool_call("add", {"a": 1, "b": n}) for n in range(5)], text("x")]
    await run("go", provider=ScriptedProvider(calls), tools=[add], on_event=listen)
    assert [e.seq for e in seen] == list(range(1, len(seen) + 1))


async def test_a_provider_without_stream_hands_over_its_answer_at_once() -> None:
    class Buffered:
        async def complete(self, request: Request) -> Response:
            return Response(message=Message.assistant(Thinking("hm"), Text("whole")))

    async with stream("go", provider=Buffered()) as events:
        seen = [event async for event in events]
    assert [e.text for e in seen if isinstance(e, TextDelta)] == ["whole"]
    assert events.result.text == "whole"


async def test_a_batch_arrives_as_one_and_backpressure_holds() -> None:
    handed: list[int] = []

    class Batches:
        async def complete(self, request: Request) -> Response:
            raise AssertionError("never")

        async def stream(self, request: Request, emit: Emit) -> Response:
            for number in range(3):
                await emit(TextDelta("a"), TextDelta("b"))
                handed.append(number)
            return Response(message=Message.assistant("ababab"))

    async with stream("go", provider=Batches()) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                await trio.testing.wait_all_tasks_blocked()
                # The reader waits until the batch is taken, and is one batch ahead at most.
                assert len(handed) <= 1
                break
    assert events.result.status == "cancelled"


async def test_a_failed_run_raises_out_of_the_loop_once() -> None:
    seen = []
    async with stream("go", provider=ScriptedProvider([[text("ab"), error("boom")]])) as events:
        with pytest.raises(ProviderError, match="boom") as caught:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - what came before the failure counts
        assert [event async for event in events] == []
    assert joined(seen) == "ab"
    assert caught.value.result is events.result
    assert events.result.status == "error"
    assert events.result.messages[-1] == Message(
        "assistant", "ab", provider="scripted", model="scripted", interrupted=True
    )


async def test_a_failure_nobody_saw_is_raised_on_leaving() -> None:
    with pytest.raises(ProviderError, match="boom"):
        async with stream("go", provider=ScriptedProvider([error("boom")])) as events:
            async for event in events:
                if isinstance(event, TurnStart):
                    break
            await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("failure", [ValueError("mine"), ExceptionGroup("mine", [KeyError("x")])])
async def test_the_bodys_exception_leaves_as_it_came(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught:
        async with stream("go", provider=ScriptedProvider([text("abc")])) as events:
            async for _ in events:
                raise failure
    assert caught.value is failure
    assert events.result.status == "cancelled"


async def test_the_bodys_exception_goes_before_a_cancel_from_outside(autojump_clock: object) -> None:
    failure = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, trio.move_on_after(1):
        async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]])) as events:
            try:
                async for _ in events:
                    pass
            finally:
                raise failure
    assert caught.value is failure


async def test_an_unseen_failure_becomes_a_note_on_the_bodys_own() -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        async with stream("go", provider=ScriptedProvider([error("boom")])) as events:
            async for event in events:
                if isinstance(event, TurnStart):
                    break
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError("mine")
    assert "boom" in caught.value.__notes__[0]


async def test_leaving_early_cancels_and_joins(autojump_clock: object) -> None:
    with assert_no_orphans():
        async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]])) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
    assert trio.current_time() < 1
    assert events.result.status == "cancelled"


async def test_cancel_tells_others_with_request_cancelled(autojump_clock: object) -> None:
    async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]])) as events:
        with pytest.raises(RequestCancelled) as caught:
            async for event in events:
                if isinstance(event, BlockEnd):
                    events.cancel()
    assert caught.value.result is events.result
    assert events.result.status == "cancelled"
    assert events.result.messages[-1].text == "abc"
    assert events.result.messages[-1].interrupted


async def test_the_body_goes_on_after_a_cancel_of_the_run(autojump_clock: object) -> None:
    async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]])) as events:
        events.cancel()
        await trio.sleep(1)
    assert trio.current_time() == pytest.approx(1)
    assert events.result.status == "cancelled"


async def test_a_consumer_elsewhere_hears_of_a_cancel(autojump_clock: object) -> None:
    """The cancel of the scope around the stream does not reach a task of another nursery: it is told."""
    heard: list[BaseException] = []

    async def consume(events: EventStream) -> None:
        try:
            async for _ in events:
                pass
        except RequestCancelled as error:
            heard.append(error)

    async with trio.open_nursery() as elsewhere:
        with trio.move_on_after(1):
            async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]])) as events:
                elsewhere.start_soon(consume, events)
                await trio.sleep_forever()
    assert len(heard) == 1


@pytest.mark.parametrize("at", [TurnEnd, ToolStart])
async def test_a_call_is_told_to_begin_and_to_end_once_wherever_its_stream_is_left(at: type[Event]) -> None:
    """It is left while the run waits to hand over the start of a call, or its end: a plain `on_event` has had that by then."""
    heard: list[Event] = []

    def listen(envelope: Envelope) -> None:
        heard.append(envelope.event)

    provider = ScriptedProvider([tool_call("add", {"a": 1, "b": 2})])
    async with stream("go", provider=provider, tools=[add], on_event=listen) as events:
        async for event in events:
            if isinstance(event, at):
                await trio.testing.wait_all_tasks_blocked()
                break
    told = [type(event) for event in heard if isinstance(event, ToolStart | ToolEnd | RunEnd)]
    assert told == [ToolStart, ToolEnd, RunEnd]


async def test_misuse_says_what_to_do() -> None:
    events = stream("go", provider=ScriptedProvider([text("a")]))
    with pytest.raises(RuntimeError, match="inside `async with"):
        async for _ in events:
            pass
    async with events:
        async for _ in events:
            pass
    with pytest.raises(RuntimeError, match="call stream"):
        async with events:
            pass


async def test_two_streams_of_one_session_one_after_the_other_lose_nothing() -> None:
    session = Session()
    made = [stream(word, provider=ScriptedProvider([text(word.upper())]), session=session) for word in ("a", "b")]
    for events in made:
        async with events:
            async for _ in events:
                pass
    assert [m.text for m in session.messages] == ["a", "A", "b", "B"]


@pytest.mark.parametrize("calls", [1, 2])
async def test_what_ends_programs_leaves_a_stream_as_itself(calls: int) -> None:
    @tool
    async def interrupt() -> str:
        """Interrupt."""
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
        async with stream(
            "go", provider=ScriptedProvider([[tool_call("interrupt")] * calls]), tools=[interrupt]
        ) as events:
            async for _ in events:
                pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KeyboardInterrupt)


async def test_a_cancel_while_a_failed_run_hands_over_its_end_is_a_cancel(autojump_clock: object) -> None:
    with trio.move_on_after(1) as scope:
        await run(
            "go",
            provider=ScriptedProvider([error("boom")]),
            on_event=hang_at(RunEnd),
        )
    assert scope.cancelled_caught


async def test_a_run_whose_time_is_up_does_not_wait_for_a_listener(autojump_clock: object) -> None:
    with pytest.raises(RunTimeout):
        await run(
            "go",
            provider=ScriptedProvider([[delay(60), text("x")]]),
            timeout=2,
            cancel_grace=3,
            on_event=hang_at(RunEnd),
        )
    assert trio.current_time() == pytest.approx(5)


async def test_a_plain_listener_hears_of_a_cancel(autojump_clock: object) -> None:
    @tool
    async def slow() -> str:
        """Be slow."""
        await trio.sleep(60)
        return "never"

    seen: list[Any] = []
    with trio.move_on_after(1):
        await run(
            "go", provider=ScriptedProvider([tool_call("slow")]), tools=[slow], on_event=lambda e: seen.append(e.event)
        )
    assert [(type(e), getattr(e, "outcome", None)) for e in seen[-2:]] == [(ToolEnd, "cancelled"), (RunEnd, None)]
    assert seen[-1].status == "cancelled"


async def test_a_whole_answer_is_kept_when_the_cancel_comes_while_it_is_told_of(autojump_clock: object) -> None:
    session = Session()
    with trio.move_on_after(1):
        await run(
            "go",
            provider=ScriptedProvider([text("all of it")]),
            session=session,
            on_event=hang_at(BlockEnd),
        )
    assert session.messages[-1].text == "all of it"
    assert session.usage.output_tokens == 5


async def test_a_consumer_that_is_cancelled_never_sees_a_normal_end(autojump_clock: object) -> None:
    ended = False
    session = Session()
    with trio.move_on_after(1) as scope:
        async with stream("go", provider=ScriptedProvider([[text("abc"), delay(60)]]), session=session) as events:
            async for _ in events:
                pass
            ended = True
    assert scope.cancelled_caught
    assert not ended
    assert events.result.status == "cancelled"
    assert session.messages[-1].text == "abc"


async def test_result_before_the_end_says_so() -> None:
    async with stream("go", provider=ScriptedProvider([text("abc")])) as events:
        with pytest.raises(RuntimeError, match="not over"):
            _ = events.result


async def test_envelopes() -> None:
    async with stream("go", provider=ScriptedProvider([text("ab")]), context={"request_id": "r1"}) as events:
        seen = [envelope async for envelope in events.envelopes()]
    assert [e.seq for e in seen] == list(range(1, len(seen) + 1))
    assert {e.correlation_id for e in seen} == {"r1"}
    assert isinstance(seen[-1].event, RunEnd)


# over a wire: the same on all three


def sse(*payloads: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(payload).encode() + b"\n\n" for payload in payloads)


def anthropic_stream(*texts: str, end: bool) -> bytes:
    block = {"type": "text", "text": ""}
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}} for t in texts]
    stop = [
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 1}}}
    return sse(
        start, {"type": "content_block_start", "index": 0, "content_block": block}, *deltas, *(stop if end else [])
    )


def responses_stream(*texts: str, end: bool) -> bytes:
    item = {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "".join(texts)}],
    }
    deltas = [{"type": "response.output_text.delta", "output_index": 0, "delta": t} for t in texts]
    stop = {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": [item]}}
    added = {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}
    return sse(added, *deltas, *([stop] if end else []))


def chat_stream(*texts: str, end: bool) -> bytes:
    deltas = [{"choices": [{"index": 0, "delta": {"content": t}}]} for t in texts]
    return sse(*deltas, *([{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}] if end else []))


WIRES = [(Anthropic, anthropic_stream), (OpenAI, responses_stream), (OpenAICompat, chat_stream)]


@pytest.mark.parametrize(("wire", "body"), WIRES, ids=["anthropic", "openai", "compat"])
async def test_strm_09_a_delta_without_text_gives_no_event(wire: Any, body: Any) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body("a", "", "b", end=True)))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        stream("go", provider=wire(model="m", api_key="key", http_client=client)) as events,
    ):
        assert [e.text async for e in events if isinstance(e, TextDelta)] == ["a", "b"]
    assert events.result.text == "ab"


@pytest.mark.parametrize(("wire", "body"), WIRES, ids=["anthropic", "openai", "compat"])
@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        (["a\ud83d", "\ude00b"], ["a", "😀b"]),
        (["\ud83d", "\ude00", "\ud83d", "\ude01"], ["😀", "😁"]),
        (["\\\\ud83d", "x"], ["\\\\ud83d", "x"]),
        (["é\ud83d\ude00", "x"], ["é😀", "x"]),
    ],
)
async def test_a_character_cut_in_two_arrives_whole(wire: Any, body: Any, pieces: list[str], texts: list[str]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body(*pieces, end=True)))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        stream("go", provider=wire(model="m", api_key="key", http_client=client)) as events,
    ):
        assert [e.text async for e in events if isinstance(e, TextDelta)] == texts
    assert events.result.text == "".join(texts)


@pytest.mark.parametrize(("wire", "body"), WIRES, ids=["anthropic", "openai", "compat"])
async def test_strm_10_a_stream_that_just_ends_is_an_error_with_what_came(wire: Any, body: Any) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body("a", "b", end=False)))
    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(WireError, match="before the answer did") as caught:
            async with stream("go", provider=wire(model="m", api_key="key", http_client=client)) as events:
                async for _ in events:
                    pass
    assert caught.value.retryable
    assert caught.value.result is not None
    assert caught.value.result.messages[-1].text == "ab"
    assert caught.value.result.messages[-1].interrupted


# events


async def envelopes(replies: list[Script], **options: Any) -> list[Envelope]:
    seen: list[Envelope] = []
    await run("go", provider=ScriptedProvider(replies), on_event=seen.append, **options)
    return seen


async def test_ev_01_envelope() -> None:
    seen = await envelopes([tool_call("add", {"a": 1, "b": 2}), text("3")], tools=[add])
    assert {e.v for e in seen} == {1}
    assert [e.seq for e in seen] == list(range(1, len(seen) + 1))
    assert [e.turn for e in seen if isinstance(e.event, TurnStart)] == [1, 2]
    assert seen[0].turn == 0
    assert all(e.ts > 1_700_000_000 for e in seen)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"request_id": "r", "correlation_id": "c"}, "r"),
        ({"correlation_id": "c"}, "c"),
        ({"session_id": "s"}, "s-"),
    ],
    ids=["ev-02-request", "ev-02-correlation", "ev-02-session"],
)
async def test_ev_02_correlation_id(context: dict[str, str], expected: str) -> None:
    ids = {e.correlation_id for e in await envelopes([text("x")], context=context)}
    assert len(ids) == 1
    found = ids.pop()
    assert found.startswith(expected) if expected.endswith("-") else found == expected


async def test_ev_03_tool_events_share_it() -> None:
    seen = await envelopes([tool_call("add", {"a": 1, "b": 2}), text("3")], tools=[add], context={"request_id": "r"})
    tools = [e for e in seen if isinstance(e.event, ToolStart | ToolEnd)]
    assert [e.correlation_id for e in tools] == ["r", "r"]


async def test_ev_04_tool_start_and_end() -> None:
    seen = await envelopes([tool_call("add", {"a": 1, "b": 2}, id="c1"), text("3")], tools=[add])
    start, end = [e for e in seen if isinstance(e.event, ToolStart | ToolEnd)]
    assert start.event == ToolStart("c1", "add", {"a": 1, "b": 2})
    assert isinstance(end.event, ToolEnd)
    assert (end.event.id, end.event.name, end.event.input) == ("c1", "add", {"a": 1, "b": 2})
    assert (end.event.outcome, end.event.error) == ("ok", None)
    assert end.event.content == (Text("3"),)
    assert end.event.duration >= 0
    assert end.event.start_event_seq == start.seq < end.seq


async def test_ev_05_a_timed_out_tools_end(autojump_clock: object) -> None:
    @tool
    async def slow() -> str:
        """Be slow."""
        await trio.sleep(60)
        return "never"

    seen = await envelopes([tool_call("slow"), text("x")], tools=[slow], tool_timeout=2)
    start, end = [e for e in seen if isinstance(e.event, ToolStart | ToolEnd)]
    assert isinstance(end.event, ToolEnd)
    assert end.event.start_event_seq == start.seq
    assert end.event.duration == pytest.approx(2)
    assert end.event.outcome == "timed_out"


async def test_ev_06_custom_events_are_wrapped() -> None:
    @tool
    async def progress(ctx: alloy_trio.ToolContext) -> str:
        """Report."""
        await ctx.emit("progress", {"done": 3})
        return "x"

    seen = await envelopes([tool_call("progress"), text("x")], tools=[progress])
    custom = next(e for e in seen if type(e.event).__name__ == "Custom")
    assert custom.to_dict()["payload"] == {"name": "progress", "payload": {"done": 3}}


async def test_ev_07_envelopes_go_to_json_and_back() -> None:
    seen = await envelopes([[Thinking("hm"), tool_call("add", {"a": 1, "b": 2})], text("3")], tools=[add])
    for envelope in seen:
        data = envelope.to_dict()
        assert not {"v", "seq", "correlation_id", "turn", "ts"} & data["payload"].keys()
        assert Envelope.from_dict(data) == envelope
    unknown = {**seen[0].to_dict(), "event": "hologram", "payload": {"x": 1}}
    assert Envelope.from_dict(unknown).to_dict()["payload"] == {"name": "hologram", "payload": {"x": 1}}


async def test_a_stream_does_not_lose_what_another_run_has_just_put_into_its_session() -> None:
    """One that begins in the moment in which the other ends is refused, as any second run is."""

    async def other(session: Session) -> None:
        await run("one", provider=ScriptedProvider(["1"]), session=session)

    for _ in range(20):
        session = Session()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other, session)
            for _step in range(3):
                await trio.lowlevel.checkpoint()
            try:
                async with stream("two", provider=ScriptedProvider(["2"]), session=session) as events:
                    async for _event in events:
                        pass
            except InvalidOption:
                pass
        said = [message.text for message in session.messages]
        assert said in (["one", "1"], ["one", "1", "two", "2"], ["two", "2", "one", "1"], ["two", "2"])
        assert "1" in said or "one" not in said


async def test_there_is_no_result_before_the_last_hooks_have_ended(autojump_clock: object) -> None:
    class Slow(Middleware):
        async def session_end(self, state: RunState) -> None:
            await trio.sleep(10)
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        async with stream("go", provider=ScriptedProvider(["x"]), middleware=[Slow()]) as events:
            with trio.move_on_after(5):
                async for _ in events:
                    pass
            with pytest.raises(RuntimeError, match="not over"):
                _ = events.result
            async for _ in events:
                pass


async def test_the_end_of_a_turn_has_the_message_as_it_stands_in_the_history() -> None:
    session = Session()
    await run("one", provider=ScriptedProvider(["1"]), session=session)
    async with stream("two", provider=ScriptedProvider(["2"], model="another"), session=session) as events:
        ends = [event async for event in events if isinstance(event, TurnEnd)]
    assert ends[0].message is events.result.messages[-1]
    assert ends[0].message.epoch == 1
