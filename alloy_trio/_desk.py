"""
The half of an agent that never waits: its requests, who may make one, and who is told of what became of it.

One queue, first in, first out, for all. Whoever waits for an answer (`chat`, a stream) has a place in it as long as they wait;
a request that nobody waits for is refused where `max_pending` wait already. Nobody may wait for an agent as a part of a request
to it, through however many other agents and streams: such a wait could never end.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from typing import TYPE_CHECKING

import attrs
import trio

from ._background import check_home
from ._errors import AgentBusy, AgentClosed, AlloyError, InvalidOption, QueueFull, RequestCancelled
from ._events import Custom, Envelope
from ._mailbox import Mailbox
from ._messages import Message
from ._requests import AgentRequest
from ._result import Result
from ._util import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._agent_config import AgentConfig
    from ._budget import Budget
    from ._emitter import EventBatch, Sink
    from ._result import Status
    from ._session import Session

logger = logging.getLogger("alloy_trio")

_chain: contextvars.ContextVar[tuple[AgentRequest, ...]] = contextvars.ContextVar("alloy_trio requests", default=())


def as_message(prompt: object) -> Message:
    """
    Return the message that a prompt is.

    Raises:
        InvalidOption: It is none.
    """
    match prompt:
        case str() if prompt.strip():
            return Message.user(prompt)
        case Message(role="user", content=content) if content:
            return prompt
    raise InvalidOption(f"the prompt is {prompt!r:.100}: it has to be text that is not blank, or a user's message")


@contextlib.contextmanager
def part_of(request: AgentRequest) -> Iterator[None]:
    """Let the body be a part of a request, whose agent it therefore must not wait for."""
    before = _chain.get()
    _chain.set((*before, request))
    try:
        yield
    finally:
        _chain.set(before)


def part_of_none() -> None:
    """Let what runs in this context from now on be a part of no request."""
    _chain.set(())


class Desk:
    """
    The requests of an agent.

    Attributes:
        config: Its options; `reload` and `set_model` change them.
        session: The conversation of this life; a run under way changes it.
        shown: The same as of the last commit: what readers see.
        requests: Those that are queued or under way, by id, in order.
        current: The one under way.
        mailbox: Those that are queued.
        is_alive: Whether there is a life, from before its start to behind its end.
        is_up: Whether it takes requests out of the mailbox.
        is_stopping: Whether it takes no more of them in this life.
        is_closed: Whether there will be no other life.
        is_supervised: Whether somebody may start another one.
        task: That of the life under way.
        home: The Trio run that it lives in.
        down: Set once a life is over.
        base: The context variables around its start, for requests that are nobody's part.
        changing: Set once a change is made of which no run may see half; None where there is none.
    """

    session: Session
    shown: Session

    def __init__(self, config: AgentConfig, *, is_supervised: bool) -> None:
        self.config = config
        self.requests: dict[str, AgentRequest] = {}
        self.current: AgentRequest | None = None
        self.mailbox: Mailbox[AgentRequest] = Mailbox()
        self.is_alive: bool = False
        self.is_up: bool = False
        self.is_stopping: bool = False
        self.is_closed: bool = False
        self.is_supervised: bool = is_supervised
        self.task: trio.lowlevel.Task | None = None
        self.home: trio.lowlevel.TrioToken | None = None
        self.down: trio.Event = trio.Event()
        self.base: contextvars.Context | None = None
        self.changing: trio.Event | None = None

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"agent {self.config.name or self.session.id}"

    @property
    def waiting(self) -> list[AgentRequest]:
        """The requests that wait behind another one, or for the agent to come back."""
        waiting = [request for request in self.requests.values() if request.state == "queued"]
        return waiting[1:] if self.is_up and self.current is None else waiting

    @property
    def serving(self) -> AgentRequest | None:
        """The request under way, or the one that is about to be."""
        if self.current is not None or not self.is_up:
            return self.current
        return next((request for request in self.requests.values() if request.state == "queued"), None)

    def refuse_own(self, doing: str) -> None:
        """
        Raise AgentBusy if the caller is a part of a request of this agent, and would wait for itself.

        Trio could never end such a wait: the request waits for the caller, and the caller for the request. As a hook of the start
        or the end of this life, for which the next request waits.
        """
        if self.is_own_task():
            raise AgentBusy(f"{doing} here would wait for itself: this is a hook of the same agent's start, or end")
        if any(self.requests.get(request.id) is request for request in _chain.get()):
            raise AgentBusy(f"{doing} here would wait for itself: this is part of a request to the same agent")

    def refuse_waiting(self, asked: AgentRequest) -> None:
        """Raise AgentBusy if the caller is a part of a request that the one asked for has to wait for, or of that itself."""
        chain = _chain.get()
        for request in self.requests.values():
            if any(request is each for each in chain):
                raise AgentBusy(
                    f"result() here would wait for itself: this is part of request {request.id}, which is not over"
                )
            if request is asked:
                return

    def refuse_busy(self, doing: str) -> None:
        """Raise AgentBusy if there is a request, or a change that takes its time."""
        if self.requests or self.changing is not None:
            raise AgentBusy(f"{doing} has to wait for the end of the run: await agent.wait_idle() first")

    def _show(self) -> None:
        """Let readers see the session as it is now."""
        self.shown = attrs.evolve(self.session, metadata=dict(self.session.metadata))

    def export(self) -> Session:
        """Return a copy of the session as of the last commit."""
        return attrs.evolve(self.shown, metadata=dict(self.shown.metadata))

    def is_own_task(self) -> bool:
        """Whether the caller is the task of this life, in a hook for instance."""
        return self.task is not None and trio.lowlevel.current_task() is self.task

    async def cancel(self, request: AgentRequest) -> bool:
        """Cancel a request; return whether that has won, once it is done. Where its end waits for the caller, there is no waiting."""
        won = request.cancel()
        if not won and any(each is request for each in _chain.get()):
            await trio.lowlevel.checkpoint()
        else:
            await request.done.wait()
        return won

    def submit(
        self,
        prompt: object,
        request_id: str | None,
        *,
        context: contextvars.Context | None = None,
        sink: Sink | None = None,
        deadline: float | None = None,
        budget: Budget | None = None,
    ) -> AgentRequest:
        """
        Put a request into the mailbox. Without a `context`, its caller's, nobody waits for it.

        Raises AgentClosed, InvalidOption, and for a request that nobody waits for AgentBusy or QueueFull.
        """
        asked = as_message(prompt)
        self._check_open()
        if request_id is not None and request_id in self.requests:
            raise InvalidOption(f"request id {request_id!r:.100} is in use by a request that is not over: take another")
        if context is None:
            self._check_room()
        request = AgentRequest(
            id=request_id or new_id(),
            asked=asked,
            context=self._detached(budget) if context is None else context,
            on_cancelled=self._cancel_queued,
            is_detached=context is None,
            is_own_id=request_id is not None,
            sink=sink,
        )
        if deadline is not None:
            request.scope.deadline = deadline
        self.requests[request.id] = request
        self.mailbox.put(request)
        return request

    def _check_open(self) -> None:
        if self.is_closed or (self.is_stopping and not self.is_supervised):
            raise AgentClosed(f"{self.label} has stopped: open another one")
        if self.home is not None:
            check_home(self.home, self.label)

    def _check_room(self) -> None:
        if self.is_up and not self.is_stopping and not self.requests:
            return
        most = self.config.max_pending
        if not most:
            raise AgentBusy(
                f"{self.label} is busy, and max_pending=0: wait_idle() first, or chat(…), which waits its turn"
            )
        if len(self.requests) >= most and sum(request.is_detached for request in self.waiting) >= most:
            raise QueueFull(
                f"{most} requests wait for {self.label} already, as max_pending={most} allows: send it later"
            )

    def _detached(self, budget: Budget | None) -> contextvars.Context:
        """Return what a request carries that is nobody's part: what was around the agent when it began, and a budget."""
        context = contextvars.Context() if self.base is None else self.base.copy()
        if budget is not None:
            context.run(budget.__enter__)
        return context

    def _cancel_queued(self, request: AgentRequest) -> None:
        self.mailbox.take_back(request)
        self._answer_unrun(request, "cancelled", RequestCancelled("the request was cancelled before its turn came"))

    def _answer_unrun(self, request: AgentRequest, status: Status, error: AlloyError) -> None:
        result = Result(
            status=status,
            error=error,
            request_id=request.id,
            messages=self.shown.messages,
            metadata={"phase": "queued"},
        )
        self.answer(request, result, error)

    def answer(self, request: AgentRequest, result: Result, error: Exception | None) -> None:
        """Publish a result, and let everybody know who waits for it: the last step of each request."""
        if error is not None and isinstance(error, AlloyError):
            error.result = result
        self.requests.pop(request.id, None)
        if request.is_detached:
            if error is not None and not request.is_cancelled:
                logger.warning("request %s to %s failed: %s", request.id, self.label, error)
            if self.config.pubsub is not None:
                self.config.pubsub.publish(f"agent:{self.session.id}:responses", result)
        request.answer(result, error)

    def sink_of(self, request: AgentRequest) -> Sink | None:
        """Return where the events of a request's run go: to who streams it, and to the agent's topic."""
        pubsub, sink = self.config.pubsub, request.sink
        if pubsub is None:
            return sink
        topic = f"agent:{self.session.id}:events"

        async def publish(batch: EventBatch) -> None:
            pubsub.publish(topic, tuple(batch.envelopes()))
            if sink is not None:
                await sink(batch)

        return publish

    def close(self) -> None:
        """There will be no other life: whatever waits is refused."""
        self.is_closed = True
        for request in list(self.requests.values()):
            if request.state == "queued":
                self.mailbox.take_back(request)
                closed = AgentClosed(f"{self.label} stopped before the turn of request {request.id} came")
                self._answer_unrun(request, "error", closed)

    def tell_refused(self, message: object, refused: AlloyError) -> None:
        """A message that began no run is not lost in silence."""
        logger.warning("%s did not take a message from its topics: %s", self.label, refused)
        event = Custom("message_refused", {"message": str(message)[:200], "reason": str(refused)})
        envelope = Envelope(seq=1, correlation_id=self.session.id, turn=0, ts=time.time(), event=event)
        if self.config.pubsub is not None:
            self.config.pubsub.publish(f"agent:{self.session.id}:events", (envelope,))
