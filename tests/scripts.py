"""What the fuzzers of runs and of agents share: random replies, tools that behave anyhow, and who watches all of it."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing
from hypothesis import strategies as st
from rules import check_history
from test_transcript import GROWING, written

from alloy_trio import (
    Budget,
    ConnectionFailed,
    Message,
    ModelRetry,
    Overloaded,
    Price,
    ProviderError,
    Text,
    Thinking,
    ToolContext,
    ToolError,
    ToolUse,
    Usage,
    tool,
)
from alloy_trio.events import Envelope, RunEnd, RunStart, ToolEnd, ToolStart, TurnStart
from alloy_trio.providers import Request, Response
from alloy_trio.providers._base import Terms
from alloy_trio.providers._origin import current_epoch
from alloy_trio.telemetry import add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, delay, error
from alloy_trio.testing._script import Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alloy_trio.providers import Emit
    from alloy_trio.tools import Tool

PRICE = Price("1000", "1000")  # a tenth of a cent for a token
FOR_EVER = 1_000_000.0
SECONDS = st.sampled_from([0.0, 0.0, 0.3, 1.0, 5.0])


class Broken(Exception):
    """What tools and hooks raise."""


def in_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- Replies


@attrs.frozen
class Reply:
    """A reply, as a script has it, and how it ends."""

    pieces: tuple[Any, ...]
    stop_reason: str | None = None


INPUTS: list[tuple[str, dict[str, Any]]] = [
    ("wait", {"seconds": 0}),
    ("wait", {"seconds": 1}),
    ("wait", {"seconds": 1}),
    ("wait", {"seconds": 4}),
    ("alone", {"seconds": 1}),
    ("swallow", {}),
    ("inline", {}),
    ("tell", {}),
    ("crash", {}),
    ("refuse", {}),
    ("again", {}),
    ("ask", {}),
    ("wait", {"seconds": "soon"}),
    ("missing", {}),
]
calls = st.builds(
    lambda of, id_: ToolUse(id_, *of),
    st.sampled_from(INPUTS),
    st.sampled_from(["", "", "", "", "call_0"]),
)
texts = st.sampled_from(["Yes.", "So it is. ", " \n", ""]).map(Text)
thoughts = st.sampled_from(
    [Thinking("why", "SEAL"), Thinking("why"), Thinking("so", provider_data={"field": "reasoning"})]
)
failures = st.sampled_from(
    [
        ProviderError("no"),
        Overloaded("down", retryable=True),
        ConnectionFailed("broke", retryable=True),
        Overloaded("wait", retryable=True, retry_after=20),
        Broken("a provider of one's own"),
    ]
).map(error)
pieces = st.one_of(texts, thoughts, calls, calls, calls, calls, SECONDS.map(delay))
bodies = st.lists(pieces, max_size=6)
replies = st.builds(
    lambda body, failure, stop_reason: Reply((*body, *failure), stop_reason),
    bodies,
    st.one_of(*[st.just(())] * 6, failures.map(lambda failure: (failure,))),
    st.sampled_from([None] * 16 + ["max_tokens", "refusal", "pause_turn", "end_turn"]),
)
scripts = st.lists(replies, max_size=5)
ORIGINS = {"": "", **{wire.name: wire.origin for wire in GROWING.values()}}


class Watched(ScriptedProvider):
    """
    Follows a script, answers "fine" behind it, and notes what it was asked and what it has answered.

    With an `origin` it is one of ours as far as that tells: its reasoning is its own.
    """

    def __init__(self, script: list[Reply], *, name: str = "", price: Price | None = PRICE) -> None:
        super().__init__([], name=name or "scripted", usage=Usage(input_tokens=5, output_tokens=5), price=price)
        if name:
            self.origin = ORIGINS[name]
        self.terms = Terms(seals_prefix=True)
        self.asked: list[tuple[Request, bool]] = []
        self.given = Counter[str]()  # ids of calls
        self._script = script
        self._made = itertools.count(1)

    async def _perform(self, request: Request, emit: Emit, *, streaming: bool) -> Response:
        place = len(self.asked)
        self.asked.append((request, False))
        response = await super()._perform(request, emit, streaming=streaming)
        self.asked[place] = (request, True)
        message = attrs.evolve(response.message, origin=getattr(self, "origin", None))
        return attrs.evolve(response, message=message)

    def _next(self, request: Request) -> Any:
        self.requests.append(request)
        reply = self._script.pop(0) if self._script else Reply((Text("fine"),))
        content = [self._with_id(piece) if isinstance(piece, ToolUse) else piece for piece in reply.pieces]
        return [*content, Step(stop_reason=reply.stop_reason)]

    def _with_id(self, call: ToolUse) -> ToolUse:
        is_taken = call.id and not hasattr(self, "origin")  # servers that give an id twice are none of ours
        call = call if is_taken else attrs.evolve(call, id=f"{self.name}_{next(self._made)}")
        self.given[call.id] += 1
        return call

    def check_growth(self, *, goes_back: bool = False) -> None:
        """
        In an epoch, each wire's messages begin with those that were sent before; what is sealed over stays.

        What nobody has answered may yet grow at its end, by what else the user has said. `goes_back`: some of the conversation
        may have been taken back meanwhile, or all of it; then this is another one.
        """
        for wire in GROWING.values():
            before, last, was_answered = b"", None, False
            for request, is_answered in self.asked:
                if request._alone:
                    continue
                is_same = last is not None and current_epoch(last.messages) == current_epoch(request.messages)
                if last is not None and goes_back:
                    known = last.messages if was_answered else last.messages[:-1]
                    is_same = is_same and request.messages[: len(known)] == known
                now = written(wire, _encoded(wire, request.messages))
                if is_same and last is not None:
                    assert now.startswith(before), f"{now!r} does not begin with {before!r}"
                    if any(isinstance(block, Thinking) for each in last.messages for block in each.content):
                        assert (last.system_prompt, last.tools) == (request.system_prompt, request.tools)
                sent = request.messages if is_answered else request.messages[:-1]
                before, last, was_answered = written(wire, _encoded(wire, sent)), request, is_answered


def _encoded(wire: Any, messages: tuple[Message, ...]) -> bytes:
    body: bytes = wire.encode(Request(messages=messages), stream=False).body
    return body


# --- Tools


@attrs.define(slots=False)
class Hands:
    """Tools, and how many of their calls are under way: `asks` is what `ask` does."""

    begun: list[str] = attrs.field(factory=list)
    under_way: int = 0
    is_alone: bool = False
    disturbed: int = 0  # how often somebody ran beside a tool that is to run alone
    asks: Callable[[], Awaitable[str]] | None = None

    @contextlib.contextmanager
    def at_work(self, call: str, *, alone: bool = False) -> Iterator[None]:
        self.begun.append(call)
        self.disturbed += self.is_alone or (alone and self.under_way > 0)
        self.under_way += 1
        self.is_alone = alone
        try:
            yield
        finally:
            self.under_way -= 1
            self.is_alone = False

    @functools.cached_property
    def tools(self) -> list[Tool]:
        @tool
        async def wait(ctx: ToolContext, seconds: float) -> str:
            """Wait."""
            with self.at_work(ctx.tool_use_id):
                await trio.sleep(seconds)
                return f"waited {seconds}"

        @tool(concurrent=False)
        async def alone(ctx: ToolContext, seconds: float) -> str:
            """Wait, and let nobody else run."""
            with self.at_work(ctx.tool_use_id, alone=True):
                await trio.sleep(seconds)
                return ""

        @tool
        async def swallow(ctx: ToolContext) -> str:
            """Do not heed a cancel."""
            with self.at_work(ctx.tool_use_id):
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)
                return "all the same"

        @tool(inline=True)
        def inline(ctx: ToolContext) -> str:
            """Be quick."""
            with self.at_work(ctx.tool_use_id):
                return "\ud83d"

        @tool
        async def tell(ctx: ToolContext) -> str:
            """Tell of it."""
            with self.at_work(ctx.tool_use_id):
                await ctx.emit("told", {"by": ctx.name})
                return "told"

        @tool
        async def crash(ctx: ToolContext) -> str:
            """Crash in a nursery."""
            with self.at_work(ctx.tool_use_id):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep, 1)
                    raise Broken("a tool")

        @tool
        async def refuse(ctx: ToolContext) -> str:
            """Refuse."""
            with self.at_work(ctx.tool_use_id):
                raise ToolError("not today")

        @tool
        async def again(ctx: ToolContext) -> str:
            """Want another call."""
            with self.at_work(ctx.tool_use_id):
                raise ModelRetry("say it otherwise")

        @tool
        async def ask(ctx: ToolContext) -> str:
            """Ask somebody else."""
            with self.at_work(ctx.tool_use_id):
                return "nobody" if self.asks is None else await self.asks()

        return [wait, alone, swallow, inline, tell, crash, refuse, again, ask]


# --- Who watches


@attrs.define
class Ears:
    """Hears the events of all runs, by correlation id: synchronously, so that no number is lost."""

    heard: dict[str, list[Envelope]] = attrs.field(factory=dict)

    def handle(self, event: object) -> None:
        if isinstance(event, Envelope):
            self.heard.setdefault(event.correlation_id, []).append(event)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        add_instrument(self)
        try:
            yield
        finally:
            remove_instrument(self)

    def check(self) -> None:
        """Each run is told of from its start to its end, once each, by numbers without a gap; each call that began ended."""
        for envelopes in self.heard.values():
            events = [envelope.event for envelope in envelopes]
            assert [envelope.seq for envelope in envelopes] == list(range(1, len(envelopes) + 1))
            turns = [envelope.turn for envelope in envelopes]
            assert turns == sorted(turns)
            assert isinstance(events[0], RunStart | RunEnd)
            assert isinstance(events[-1], RunEnd), events[-1]
            assert sum(isinstance(event, RunEnd) for event in events) == 1
            assert sum(isinstance(event, RunStart) for event in events) <= 1
            assert sum(isinstance(event, TurnStart) for event in events) <= max(turns)
            self.check_calls(envelopes)

    @staticmethod
    def check_calls(envelopes: list[Envelope]) -> None:
        """Each call that began has ended, once, by its number, wherever the run was cut."""
        begun: dict[int, str] = {}
        ended: list[int] = []
        for envelope in envelopes:
            match envelope.event:
                case ToolStart(id=id_):
                    begun[envelope.seq] = id_
                case ToolEnd(start_event_seq=number, id=id_):
                    assert begun[number] == id_
                    ended.append(number)
        assert sorted(ended) == list(begun), "a call has begun and not ended, or ended twice"


class Purse(trio.abc.Instrument):
    """Looks into some budgets at every step of every task."""

    def __init__(self, *budgets: Budget) -> None:
        self.budgets = budgets
        self.faults: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.faults += [repr(each) for each in self.budgets if each.spent + each.reserved > each.limit + SLACK]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def check(self) -> None:
        assert not self.faults, self.faults[0]
        for each in self.budgets:
            assert each.reserved == 0
            assert each.overrun <= SLACK


SLACK = PRICE.output / 1_000_000 * 2  # of an answer that was cut: one delta late


def check_messages(messages: tuple[Message, ...], hands: Hands) -> None:
    """The conversation can be sent to anybody, and each tool has run at most once for each call."""
    if messages:
        check_history(messages, hands.tools)
    for message in messages:
        if message.interrupted:  # by the table in DESIGN: plain reasoning, then the text, as one
            *before, last = message.content
            assert isinstance(last, Text)
            assert last.text == last.text.rstrip() != ""
            assert all(isinstance(each, Thinking) and each.is_plain for each in before)
    assert hands.under_way == hands.disturbed == 0
