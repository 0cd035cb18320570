"""What is worked out once, or only for whoever asks: that it is never worked out of something else in the meantime."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.lowlevel
from test_http import HELLO, ask, provider, replying, serving

from alloy_trio import (
    InvalidOption,
    Message,
    Middleware,
    RunState,
    Session,
    StoreError,
    Text,
    ToolUse,
    open_agent,
    run,
    stream,
    tool,
)
from alloy_trio.events import Envelope, TextDelta
from alloy_trio.providers import Anthropic, Emit, OpenAI, Request, Response
from alloy_trio.sessions import MemoryStore
from alloy_trio.testing import ScriptedProvider, delay, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio.providers import Provider
    from alloy_trio.sessions import Record


class Redacting:
    """A provider around another one: what it is asked, it asks as it is, and once more without the first message."""

    name, model = "redacting", "m"

    def __init__(self, inner: Provider) -> None:
        self.inner = inner

    async def complete(self, request: Request) -> Response:
        await self.inner.complete(request)
        other = (Message.user("(gone)"), *request.messages[1:])
        return await self.inner.complete(attrs.evolve(request, messages=other))


async def test_what_a_provider_in_between_has_changed_is_what_is_sent() -> None:
    """Also where the last messages are the ones that were there before."""
    asked = (Message.user("SECRET"), Message.assistant("Yes?"))
    async with serving(replying(HELLO, HELLO)) as server:
        await run("and now?", provider=Redacting(provider(server.url)), messages=asked)
    first, second = server.requests
    assert "SECRET" in str(first.body)
    assert "SECRET" not in str(second.body)
    assert "and now?" in str(second.body)


async def test_the_session_has_the_tokens_of_what_was_asked_before_a_write_failed() -> None:
    class Asks(Middleware):
        async def before_completion(self, state: RunState) -> None:
            await state.ask(Request(messages=(Message.user("beside"),)))

    class Failing(MemoryStore):
        is_full = False

        async def append(self, session_id: str, records: Sequence[Record]) -> None:
            if self.is_full:
                raise StoreError("disk full")
            await super().append(session_id, records)

        async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
            if self.is_full:
                raise StoreError("disk full")
            await super().rewrite(session_id, records)

    store = Failing()
    async with open_agent(
        provider=ScriptedProvider(["a", "b", "c"]), middleware=[Asks()], session_store=store
    ) as agent:
        await agent.chat("1")
        before = agent.usage.input_tokens
        assert before > 0
        store.is_full = True
        with pytest.raises(StoreError):
            await agent.chat("2")
        assert agent.usage.input_tokens == before + before // 2  # of the one beside it; the other one was not asked
        store.is_full = False


async def test_the_result_of_a_stream_is_that_of_its_own_run(autojump_clock: object) -> None:
    """However late it is looked at, and whoever goes on with the session meanwhile."""
    session = Session()
    scripted = ScriptedProvider([[text("first"), delay(10), text("more")], "second answer"])
    with trio.move_on_after(1):
        async with stream("one", provider=scripted, session=session) as events:
            async for _ in events:
                pass
    await run("two", provider=scripted, session=session)
    assert events.result.status == "cancelled"
    assert [message.text for message in events.result.messages] == ["one", "first"]


class Bursts:
    """Hands over several deltas at a time, sometimes twice in a step."""

    name, model = "bursts", "m"

    async def complete(self, request: Request) -> Response:
        raise NotImplementedError

    async def stream(self, _: Request, emit: Emit) -> Response:
        for number in range(10):
            await trio.sleep(number % 2)
            await emit(*(TextDelta(f"{number}{letter}") for letter in "abcde"))
        return Response(message=Message.assistant("x"))


async def test_two_who_iterate_over_one_stream_miss_nothing_between_them(autojump_clock: object) -> None:
    seen: list[str] = []

    async def take() -> None:
        async for event in events:
            if isinstance(event, TextDelta):
                seen.append(event.text)
            await trio.lowlevel.checkpoint()

    async with stream("one", provider=Bursts()) as events, trio.open_nursery() as nursery:
        nursery.start_soon(take)
        nursery.start_soon(take)
    assert sorted(seen) == [f"{number}{letter}" for number in range(10) for letter in "abcde"]


@pytest.mark.parametrize("beta", ["a\r\nx-evil: 1", "a\n", "é"])
def test_a_beta_that_no_header_may_carry(beta: str) -> None:
    with pytest.raises(InvalidOption, match="betas"):
        Anthropic("m", api_key="k", betas=(f"{beta}b",))


async def test_a_header_of_a_wire_that_cannot_be_sent_is_not() -> None:
    async with serving(replying(HELLO)) as server:
        by = provider(server.url)
        object.__setattr__(by, "api_key", "k\r\nx-evil: 1")
        with pytest.raises(InvalidOption, match="authorization"):
            await ask(by)
    assert not server.requests


async def test_a_user_in_the_address_goes_before_the_key() -> None:
    async with serving(replying(HELLO)) as server:
        url = server.url.replace("//", "//user:pw@")
        await ask(provider(url, api_key="sk-key"))
        await ask(provider(url, api_key="sk-key", extra_headers={"Authorization": "mine"}))
    assert [sent.headers["authorization"] for sent in server.requests] == ["Basic dXNlcjpwdw==", "mine"]


def test_what_a_provider_was_given_is_its_own() -> None:
    body: dict[str, Any] = {"reasoning": {"effort": "low"}}
    headers = {"x-token": "one"}
    by = OpenAI("m", api_key="k", extra_body=body, extra_headers=headers)
    body["reasoning"]["effort"] = headers["x-token"] = "other"
    assert by.extra_body == {"reasoning": {"effort": "low"}}
    assert by.extra_headers == {"x-token": "one"}


async def test_a_middleware_with_slots_may_leave_hooks_empty() -> None:
    @attrs.define
    class Hooked:
        before_completion: Callable[[RunState], None] | None = None
        after_completion: Callable[[RunState], None] | None = None

    seen: list[str] = []

    def note(state: RunState) -> None:
        seen.append(state.messages[-1].text)

    await run("go", provider=ScriptedProvider(["Done."]), middleware=[Hooked(after_completion=note)])
    assert seen == ["Done."]


@pytest.mark.parametrize("heard", [True, False])
async def test_events_have_the_same_numbers_whether_anybody_hears_them(heard: bool) -> None:
    @tool
    async def look() -> str:
        """Look."""
        return "seen"

    events: list[Envelope] = []
    scripted = ScriptedProvider([[text("Let me see."), tool_call("look")], [tool_call("look")], "Done."])
    options: dict[str, Any] = {"on_event": events.append} if heard else {}
    result = await run("go", provider=scripted, tools=[look], **options)
    assert [(call.start_event_seq, call.end_event_seq) for call in result.tool_calls] == [(6, 7), (11, 12)]
    assert [envelope.seq for envelope in events] == list(range(1, len(events) + 1))


async def test_a_provider_and_tools_that_never_wait_leave_time_for_others(autojump_clock: object) -> None:
    @tool(inline=True)
    def again() -> str:
        """Go on."""
        return "go on"

    class Eager:
        name, model = "eager", "m"

        async def complete(self, _: Request) -> Response:
            return Response(message=Message("assistant", (Text("x"), ToolUse("1", "again"))))

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await run("go", provider=Eager(), tools=[again], max_turns=100)
        nursery.cancel_scope.cancel()
    assert turns > 5


def test_ids_differ_in_programs_that_seed_random() -> None:
    """As many do that train models: two of them, with one store, would otherwise write into one session."""
    ids = []
    for _ in range(2):
        random.seed(0)
        ids.append(Session().id)
    assert ids[0] != ids[1]
