"""
Random runs over one conversation, ended by whatever can end them: the history is valid, nobody overspends, nothing is left.

Each example is a Trio run of its own, in virtual time. `test_budget_trees` does the same for the money of trees of runs.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scripts import (
    FOR_EVER,
    ORIGINS,
    Broken,
    Ears,
    Hands,
    Purse,
    Reply,
    Watched,
    check_messages,
    in_virtual_time,
    scripts,
)

from alloy_trio import (
    AlloyError,
    BlockCall,
    Budget,
    EditCall,
    Halted,
    Message,
    ProviderError,
    Result,
    RunTimeout,
    Session,
    ToolUse,
    run,
    stream,
)
from alloy_trio.events import Envelope
from alloy_trio.testing import assert_no_orphans, cancel_at_checkpoint

if TYPE_CHECKING:
    from alloy_trio import RunState

EXAMPLES = settings().max_examples  # 100, or more by the profile `deep`
HOOKS = ["before_completion", "after_completion", "after_tool_request", "before_tool_call", "after_tool_execution"]
HOOKS += ["session_start", "session_end", "on_error"]
Deed = Literal["sleep", "raise", "halt", "block", "edit", "append", "change"]


@attrs.frozen(kw_only=True)
class Step:
    """One run."""

    script: list[Reply]
    hooks: dict[str, tuple[Deed, int]]  # what is done, the how manieth time
    streams: bool
    leaves_at: int | None  # event of the stream
    slowness: float
    timeout: float | None
    tool_timeout: float
    cancel: tuple[Literal["after"], float] | tuple[Literal["at step"], int] | None
    cents: int | None
    cap: int | None
    max_turns: int
    system_prompt: str
    helper: list[Reply]
    fallback: list[Reply] | None


hooks = st.dictionaries(
    st.sampled_from(HOOKS),
    st.tuples(st.sampled_from(["sleep", "raise", "halt", "block", "edit", "append", "change"]), st.integers(1, 3)),
    max_size=2,
)
steps = st.builds(
    Step,
    script=scripts,
    hooks=st.just({}) | hooks,
    streams=st.booleans(),
    leaves_at=st.sampled_from([None, None, None, None, None, 1, 7, 20]),
    slowness=st.sampled_from([0.0, 0.0, 0.1]),
    timeout=st.sampled_from([None, None, None, None, None, None, 0.5, 3.0, 12.0]),
    tool_timeout=st.sampled_from([120.0, 120.0, 0.5]),
    cancel=st.one_of(
        *[st.none()] * 5,
        st.tuples(st.just("after"), st.sampled_from([0.0, 0.5, 1.5, 4.0, 11.0])),
        st.tuples(st.just("at step"), st.integers(1, 20) | st.integers(20, 200)),
    ),
    cents=st.sampled_from([None, None, None, None, None, 1, 200, 400]),
    cap=st.sampled_from([40, 40, 100, 20]),
    max_turns=st.sampled_from([2, 25, 25, 25]),
    system_prompt=st.sampled_from(["Be brief.", "Be brief.", "Be kind."]),
    helper=scripts,
    fallback=st.none() | scripts,
)


class Meddler:
    """A middleware that does what it is told."""

    def __init__(self, hooks: dict[str, tuple[Deed, int]]) -> None:
        self.calls: Counter[str] = Counter()
        for name, deed in hooks.items():
            setattr(self, name, functools.partial(self.do, name, deed))

    async def do(self, name: str, deed: tuple[Deed, int], state: RunState, *args: Any) -> Any:
        self.calls[name] += 1
        if self.calls[name] != deed[1]:
            return None
        match deed[0]:
            case "sleep":
                await trio.sleep(1)
            case "raise":
                raise Broken("a hook")
            case "halt":
                raise Halted("enough")
            case "block" if name == "before_tool_call":
                return BlockCall("not that one")
            case "edit" if name == "before_tool_call" and args[0].name == "wait":
                return EditCall({"seconds": 0.5})
            case "append" if state.messages[-1].role == "assistant" and not state.messages[-1].tool_uses:
                state.messages = (*state.messages, Message.user("And?"))
            case "change" if name in {"before_completion", "after_tool_execution", "after_completion"}:
                first, *rest = state.messages
                state.messages = (Message.user("Otherwise."), *rest) if first.text != "Otherwise." else state.messages
        return None


@attrs.define
class World:
    """A conversation, and all who take part in it or watch it."""

    session: Session
    provider: Watched
    outer: Budget
    hands: Hands = attrs.field(factory=Hands)
    ears: Ears = attrs.field(factory=Ears)
    heard: list[Envelope] = attrs.field(factory=list)
    statuses: list[str] = attrs.field(factory=list)
    number: int = 0

    async def take(self, step: Step) -> None:
        self.number += 1
        self.heard.clear()
        self.provider._script[:] = list(step.script)
        before = self.session.messages
        self.hands.asks = lambda: self.ask_helper(step)
        ended: list[Result | Exception] = []
        match step.cancel:
            case ("at step", count):
                await cancel_at_checkpoint(lambda: self.perform(step, ended), count)
            case other:
                with assert_no_orphans(), trio.move_on_after(FOR_EVER if other is None else other[1]):
                    await self.perform(step, ended)
        self.check(step, before, ended[0] if ended else None)

    async def perform(self, step: Step, ended: list[Result | Exception]) -> None:
        options: dict[str, Any] = {
            "provider": self.provider,
            "fallback_providers": [] if step.fallback is None else [Watched(list(step.fallback), name="openai")],
            "tools": self.hands.tools,
            "session": self.session,
            "middleware": [Meddler(step.hooks)] if step.hooks else [],
            "context": {"request_id": f"run {self.number}"},
            "on_event": self.heard.append,
            "max_budget_cents": step.cents,
            "max_output_tokens": step.cap,
            "timeout": step.timeout,
            "tool_timeout": step.tool_timeout,
            "max_turns": step.max_turns,
            "system_prompt": step.system_prompt,
            "compaction": False,
        }
        try:
            ended.append(await (self.watch(step, options) if step.streams else run("Go on.", **options)))
        except (AlloyError, Broken) as error:
            ended.append(error)

    async def watch(self, step: Step, options: dict[str, Any]) -> Result:
        seen = 0
        async with stream("Go on.", **options) as events:
            async for _ in events:
                seen += 1
                await trio.sleep(step.slowness)
                if seen == step.leaves_at:
                    break
        return events.result

    async def ask_helper(self, step: Step) -> str:
        helper = Watched(list(step.helper), name="anthropic")
        options: dict[str, Any] = {"tools": Hands().tools, "compaction": False, "max_output_tokens": step.cap}
        return (await run("Why?", provider=helper, max_turns=3, **options)).text

    def check(self, step: Step, before: tuple[Message, ...], ended: Result | Exception | None) -> None:
        check_messages(self.session.messages, self.hands)
        self.ears.check()
        own = self.ears.heard.get(f"run {self.number}", [])
        seen = [envelope.seq for envelope in self.heard]
        assert seen == sorted(set(seen))
        status = own[-1].event.status if own else None  # type: ignore[union-attr] # `check` has seen that it is a RunEnd
        self.statuses.append(str(status))
        result = ended if isinstance(ended, Result) else getattr(ended, "result", None)
        if isinstance(ended, Result):
            assert ended.status in {"completed", "max_turns", "budget_exceeded", "halted", "cancelled"}
        elif ended is not None:
            assert isinstance(ended, RunTimeout) == (status == "timed_out")
            assert isinstance(ended, RunTimeout | ProviderError | Broken), ended
        if result is not None:
            assert result.status == status
            assert result.messages == self.session.messages
            uses = Counter(call.id for message in result.messages[len(before) :] for call in message.tool_uses)
            assert Counter(call.id for call in result.tool_calls) <= uses
            if status == "completed":
                assert seen == [envelope.seq for envelope in own]
        if not any(deed[0] == "change" for deed in step.hooks.values()):
            assert _said(self.session.messages[: len(before)]) == _said(before)
        begun = Counter(call for call in self.hands.begun)
        calls = Counter(call.id for message in self.session.messages for call in message.tool_uses)
        assert begun <= calls, "a tool has run that nobody asked for, or more than once"


def _said(messages: tuple[Message, ...]) -> list[Message]:
    """Return messages without the epochs that other instructions begin."""
    return [attrs.evolve(message, epoch=0) for message in messages]


@settings(max_examples=4 * EXAMPLES)
@given(
    steps=st.lists(steps, min_size=1, max_size=4),
    name=st.sampled_from(list(ORIGINS)),
    cents=st.sampled_from([60, 60, 100, 1000, 100_000, 100_000]),
)
def test_runs_end_anyhow_and_the_conversation_goes_on(steps: list[Step], name: str, cents: int) -> None:
    world = World(Session(id="s"), Watched([], name=name), Budget(cents=cents))
    purse = Purse(world.outer)

    async def main() -> None:
        with trio.fail_after(FOR_EVER), world.ears.listening(), purse.open(), world.outer:
            for step in steps:
                await world.take(step)
            last = await run("And now?", provider=Watched([], name=name), session=world.session, compaction=False)
            assert last.status in {"completed", "budget_exceeded"}
            check_messages(world.session.messages, world.hands)

    in_virtual_time(main)
    for status in world.statuses:
        event(status)
    purse.check()
    world.provider.check_growth()
    assert Session.from_json(world.session.to_json()).messages == world.session.messages


def test_a_call_is_answered_where_nobody_cuts_it() -> None:
    """The machine does get far: a plain example does all that it could not do."""
    world = World(Session(id="s"), Watched([Reply((ToolUse("", "wait", {"seconds": 1}),))]), Budget(cents=1000))

    async def main() -> None:
        with world.ears.listening(), world.outer:
            ended: list[Result | Exception] = []
            step = Step(
                script=[], hooks={}, streams=True, leaves_at=None, slowness=0.0, timeout=None, tool_timeout=9, cancel=None,
                cents=None, cap=None, max_turns=9, system_prompt="", helper=[], fallback=None,
            )  # fmt: skip
            await world.perform(step, ended)
            world.check(step, (), ended[0])

    in_virtual_time(main)
    assert len(world.session.messages) == 4
    assert world.outer.spent > 0
