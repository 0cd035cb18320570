"""
How a run under way is reached from outside: what is said to it, what of it is cut, what it asks of a person, who writes it down.

Only an agent reaches into its run; one without an agent has controls too, which nobody moves.

    say        puts a remark into the inbox. The loop empties it at each turn's boundary, and looks once more in the step in
               which the run would end: until then a remark is taken, from then on `AgentIdle` is raised, so none is lost.
    interrupt  cuts the answer in flight by its own cancel scope, and with "turn" the calls of the batch by theirs. The run
               goes on, with what the table in `_state` keeps of them.
    ask        waits for a person to decide on a call, in that call's scope; the run's own deadline moves on by as long.
    settle     is the one step in which a run's end is decided. A cancel that came before it wins, and later ones have lost.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import attrs
import trio

from ._errors import AgentIdle, InvalidOption, UnknownRequest
from ._gate import BlockCall, EditCall, Verdict
from ._messages import Block, ToolUse
from .tools._executor import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._messages import ToolResult
    from ._state import Run

Interrupt = Literal["stream", "turn"]
AnswerT = TypeVar("AnswerT")
INTERRUPTED = "cancelled: the user had something to say"


class Journal(Protocol):
    """Writes a run down while it is under way; what it returns from is written."""

    async def save(self, run: Run, /) -> None:
        """
        Write what the history has and the journal has not.

        Raises:
            StoreError: It could not be written.
        """
        ...

    async def save_result(self, run: Run, result: ToolResult, /) -> None:
        """Write the result of a call of the batch under way, as far as that is possible: `save` tells of what is not."""
        ...


@attrs.define(eq=False)
class Approval:
    """A call that waits for a person."""

    call: ToolUse
    verdict: Verdict = None
    decided: trio.Event = attrs.field(factory=trio.Event)

    def decide(self, verdict: Verdict) -> None:
        """Let the call go on its way, or not."""
        self.verdict = verdict
        self.decided.set()


@attrs.define(eq=False, kw_only=True)
class Controls:
    """
    What a run's agent holds of it.

    Attributes:
        journal: Where the run is written down.
        on_settled: Told, in the same step, that the run's end is decided.
        has_person: Whether there is anybody who may say something, and can be asked for approval.
        approval_timeout: Seconds that a person may take to decide; None for as long as it takes.
        approvals: The calls that wait, by id.
        batch: The calls under way.
        answering: The scope of the answer in flight.
        deadline: The scope of the run, which has its own deadline.
    """

    journal: Journal | None = None
    on_settled: Callable[[], None] | None = None
    has_person: bool = False
    approval_timeout: float | None = None
    approvals: dict[str, Approval] = attrs.field(factory=dict)
    batch: Batch | None = None
    answering: trio.CancelScope | None = None
    deadline: trio.CancelScope | None = None
    _inbox: list[Block] = attrs.field(factory=list)
    _interrupted: bool = False
    _stops_calls: bool = False  # of this turn, also those that have not begun
    _is_open: bool = True

    def say(self, blocks: tuple[Block, ...], interrupt: Interrupt | None = None) -> None:
        """
        Leave a remark, and cut what it is to interrupt.

        Raises:
            AgentIdle: The run takes none any more.
        """
        if not self._is_open:
            raise AgentIdle("the run is over: chat(…) begins another one")
        self._inbox.extend(blocks)
        if interrupt is None:
            return
        if self.answering is not None:
            self._interrupted = True
            self.answering.cancel()
        if interrupt == "turn":
            self._stops_calls = self._interrupted = True
            self.stop_calls()

    async def interruptibly(self, answer: Awaitable[AnswerT]) -> AnswerT | None:
        """Wait for an answer, and return it; None if it was interrupted. Where nobody can do that, it costs nothing."""
        if not self.has_person:
            return await answer
        try:
            with trio.CancelScope() as self.answering:
                return await answer
            return None
        finally:
            self.answering = None

    def stop_calls(self) -> None:
        """End the calls under way, if they are not to go on."""
        if self._stops_calls and self.batch is not None:
            self.batch.stop_all(INTERRUPTED)

    @property
    def has_remarks(self) -> bool:
        """Whether something was said that the run has not taken yet."""
        return bool(self._inbox)

    def take(self) -> tuple[tuple[Block, ...], bool]:
        """Return what was said, and whether something was cut for it."""
        blocks, interrupted = tuple(self._inbox), self._interrupted
        self._inbox.clear()
        self._interrupted = self._stops_calls = False
        return blocks, interrupted

    def close(self) -> tuple[Block, ...]:
        """Take no more remarks; return those that the run has not taken, for the history."""
        self._is_open = False
        return self.take()[0]

    def settle(self) -> None:
        """The run's end is decided."""
        if self.on_settled is not None:
            self.on_settled()

    async def ask(self, call: ToolUse, tell: Callable[[], Awaitable[object]]) -> Verdict:
        """
        Tell a person of a call, and wait until it is decided.

        Raises:
            InvalidOption: There is nobody to ask.
        """
        if not self.has_person:
            raise InvalidOption("nobody can approve a call of this run: only an agent's calls can wait for a person")
        approval = self.approvals[call.id] = Approval(call)
        try:
            with self._clock_stopped(), trio.move_on_after(_seconds(self.approval_timeout)):
                await tell()
                await approval.decided.wait()
        finally:
            del self.approvals[call.id]
        if not approval.decided.is_set():
            seconds = self.approval_timeout
            return BlockCall(
                f"nobody approved it within {seconds:g} seconds" if seconds else "nobody is there to approve it"
            )
        return approval.verdict

    def approve(self, call_id: str, edited: dict[str, Any] | None) -> None:
        """
        Let a call run that waits, with another input if one is given.

        Raises:
            UnknownRequest: No such call waits.
            InvalidOption: The input does not fit the tool; the call goes on waiting.
        """
        approval = self._waiting(call_id)
        verdict = None if edited is None else EditCall(edited)
        if verdict is not None and self.batch is not None:
            self.batch.check_input(approval.call, verdict.input)
        approval.decide(verdict)

    def deny(self, call_id: str, reason: str) -> None:
        """
        Refuse a call that waits.

        Raises:
            UnknownRequest: No such call waits.
        """
        self._waiting(call_id).decide(BlockCall(reason))

    def _waiting(self, call_id: str) -> Approval:
        approval = self.approvals.get(call_id)
        if approval is None or approval.decided.is_set():
            known = ", ".join(self.approvals) or "none does"
            raise UnknownRequest(f"no call {call_id!r:.100} waits for approval; those that do: {known}")
        return approval

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Let the run's deadline move on by as long as the body takes."""
        scope, began = self.deadline, trio.current_time()
        if scope is None or scope.deadline == math.inf:
            yield
            return
        left, scope.deadline = scope.deadline - began, math.inf
        try:
            yield
        finally:
            scope.deadline = trio.current_time() + left


def _seconds(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout
