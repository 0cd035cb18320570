"""
What an agent is asked, from the moment it is until it is answered.

    queued ──► running ──► committed ──► done
       └── cancelled ─────────────────────┘

*Commit* is one synchronous step (history, usage, status): `Controls.settle` of its run. A cancel that comes before it wins;
after it, it has lost, and waits for the end. What follows a commit (writing, publishing, answering) is not cancelled; but once
nobody has the time for it any more (`hurry`), the writing may take `grace` seconds, and no longer.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import attrs
import trio

from ._controls import Controls
from ._emitter import Sink
from ._errors import AgentCrashed, RequestCancelled
from ._messages import Message
from ._result import Result
from ._state import Run

if TYPE_CHECKING:
    from ._desk import Desk


@attrs.define(eq=False, kw_only=True)
class AgentRequest:
    """
    One request, queued or under way.

    Attributes:
        id: Its id, which the result has too.
        asked: What was said.
        context: The context variables of who pays for it, and of whose calls it is a part.
        on_cancelled: Told when it is cancelled while it waits in the queue.
        is_detached: Whether nobody waits for it, so that the result is published.
        is_own_id: Whether the caller has chosen the id.
        sink: Where its events go, if it streams.
        grace: Seconds that its end may take behind a cancel.
        writing: The scope in which its end is written down.
        begun: Set once its run is under way, so that it takes remarks, or there will be none.
    """

    id: str
    asked: Message
    context: contextvars.Context
    on_cancelled: Callable[[AgentRequest], None]
    is_detached: bool = False
    is_own_id: bool = False
    sink: Sink | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    controls: Controls = attrs.field(factory=Controls)
    run: Run | None = None
    before: tuple[Any, Any, Any] = ((), None, None)  # the session's messages, prefix and metadata as its run began
    state: Literal["queued", "running", "committed", "done"] = "queued"
    is_cancelled: bool = False  # a cancel has won
    result: Result | None = None
    error: Exception | None = None
    grace: float = math.inf
    writing: trio.CancelScope | None = None
    is_hurried: bool = False  # its end may not take long any more
    begun: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)

    def cancel(self) -> bool:
        """Cancel it. Returns whether that has won; then `done` is set when nothing of it runs any more."""
        if self.is_cancelled:
            return True
        match self.state:
            case "queued":
                self.is_cancelled = True
                self.on_cancelled(self)
            case "running":
                self.is_cancelled = True
                self.scope.cancel()
            case _:
                return False
        return True

    def abandon(self) -> None:
        """Cancel it; if that comes too late, cut short what follows: what is committed stays, and is told to nobody any more."""
        self.cancel()
        self.scope.cancel()
        self.hurry()

    def hurry(self) -> None:
        """From now on, let the writing of its end take `grace` seconds."""
        self.is_hurried = True
        if self.writing is not None:
            self.writing.deadline = min(self.writing.deadline, trio.current_time() + self.grace)

    async def wait(self) -> Result:
        """
        Wait for the answer; a cancel of who waits is one of the request, and leaves once nothing of it runs.

        Raises what the run did; RequestCancelled, if it was cancelled by somebody else.
        """
        try:
            await self.done.wait()
        finally:
            if not self.done.is_set():
                self.abandon()
                with trio.CancelScope(shield=True):
                    await self.done.wait()
        if self.is_cancelled:
            # By a deadline of the caller's, which the request has as well.
            await trio.lowlevel.checkpoint_if_cancelled()
        return self.outcome()

    def ended(self, messages: tuple[Message, ...], crashed: AgentCrashed | None) -> Result:
        """Return what its run, or the lack of one, comes to: `messages` are the conversation's, `crashed` is why its agent ends."""
        outcome = None if self.run is None else self.run.outcome
        if outcome is None:
            outcome = Result(status="error", messages=messages, error=self.error)
        if not self.is_cancelled:
            return attrs.evolve(outcome, request_id=self.id)
        return attrs.evolve(
            outcome,
            status="cancelled" if crashed is None else "error",
            error=crashed or RequestCancelled("the request was cancelled"),
            messages=messages,
            request_id=self.id,
            metadata={**outcome.metadata, "phase": "running"},
        )

    def outcome(self) -> Result:
        """Return the result, or raise what there is instead. Only once it is done."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def answer(self, result: Result, error: Exception | None) -> None:
        """Let everybody know who waits, and let go of all that the run had: a `Pending` may be kept for long."""
        self.result, self.error, self.state = result, error, "done"
        self.controls.close()
        self.run, self.sink, self.writing = None, None, None
        self.controls, self.context, self.before = Controls(), contextvars.Context(), ((), None, None)
        self.controls.close()
        self.begun.set()
        self.done.set()


class Pending:
    """
    A request that an agent works on by itself, made by `Agent.send_message`. It goes on whether this is kept or not.

    Attributes:
        request_id: Its id: yours, or a random one.
    """

    def __init__(self, request: AgentRequest, desk: Desk) -> None:
        self._request = request
        self._desk = desk
        self.request_id: str = request.id

    async def result(self) -> Result:
        """
        Wait for the result. Being cancelled here only ends the waiting.

        Raises:
            AgentBusy: The caller is a part of a request that this one waits for, and would wait for itself.
            RequestCancelled: The request was cancelled; with `.result`, as whatever is raised here.
            AgentClosed: The agent stopped before its turn came.
            AgentCrashed: The agent broke down.
            AlloyError: What the run raised.
        """
        if not self._request.done.is_set():
            self._desk.refuse_waiting(self._request)
        await self._request.done.wait()
        return self._request.outcome()

    async def cancel(self) -> bool:
        """
        Cancel the request. Returns once nothing of it runs, and whether it was cancelled: False if it was over by then.

        What the run had done is kept as the agent's `on_cancel` says.
        """
        return await self._desk.cancel(self._request)

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self._request.done.is_set()

    def __repr__(self) -> str:
        return f"<Pending: {self.request_id}, {self._request.state}>"
