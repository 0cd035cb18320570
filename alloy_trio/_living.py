"""
The living half of an agent: a task that takes one request after the other out of its mailbox.

    Core        what belongs to the spec and outlives restarts: mailbox, requests, configuration, what was spent
    serve       one life: restore the session, tell of the start, work, shut down
    _perform    one request, as a child task in a scope of its own: run it, commit, write it down, publish, answer

What a run raises fails that run, and the agent lives. Only what escapes this file, or a store that breaks otherwise than by
`StoreError`, ends the life: then the request in flight fails with `AgentCrashed`, and those in the queue wait for the next life.
While a run is under way all readers see the session as it was before it (`shown`).
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from ._budget import Budget, around
from ._desk import Desk, part_of, part_of_none
from ._errors import (
    AgentClosed,
    AgentCrashed,
    AlloyError,
    Halted,
    InvalidOption,
    RequestCancelled,
    StoreError,
)
from ._journal import StoreJournal, open_journal
from ._loop import prepare, run_loop
from ._result import Result
from ._session import Session
from ._usage import Usage
from ._util import single
from .pubsub._subscription import Lost
from .pubsub._topics import split_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._agent_config import AgentConfig
    from ._config import Config
    from ._emitter import EventBatch, Sink
    from ._requests import AgentRequest
    from ._result import Status
    from .tools._tool import Tool

logger = logging.getLogger("alloy_trio")


class Core(Desk):
    """
    An agent, without its public face.

    Attributes:
        handle: Its public face.
        last_status: How the last run ended.
        last_turns: How many answers it took.
        abandoned: How many threads were left running by its tools, up to now.
        is_unsaved: Whether the store lacks something that it ought to have.
        started_at: When this life began, on Trio's clock.
    """

    def __init__(self, handle: object, config: AgentConfig, *, is_supervised: bool) -> None:
        super().__init__(config, is_supervised=is_supervised)
        self.handle = handle
        self.last_status: Status | None = None
        self.last_turns: int = 0
        self.abandoned: int = 0
        self.is_unsaved: bool = False
        self.started_at: float = 0.0
        self._journal: StoreJournal | None = None
        self._taking: trio.CancelScope | None = None
        self._crash: Exception | None = None
        cents = config.options.get("max_budget_cents")
        self._budgets: tuple[Budget, ...] = () if cents is None else (Budget(cents=cents),)
        self._context: dict[str, Any] = dict(config.options.get("context") or {})
        self._run_config = self._configured(None)
        self._first = self._run_config.session
        self._take_session(self._first)

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools of the next run."""
        return self._run_config.tools

    # A life

    async def serve(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Live, until `finish` or a cancel.

        Raises:
            AgentClosed: A session_start hook has halted, or there will be no life any more.
            RuntimeError: It is alive already.
            Exception: What broke it.
        """
        if self.is_up:
            raise RuntimeError(f"{self.label} is running already: each agent lives once at a time")
        if not self.is_supervised:
            self._check_open()
        failure: Exception | None = None
        has_begun = False
        try:
            topics = await self._start()
            has_begun = True
            async with trio.open_nursery() as nursery:
                if topics:
                    await nursery.start(self._listen_safely, topics)
                self.is_up, self.started_at, self.down = True, trio.current_time(), trio.Event()
                task_status.started(self.handle)
                await self._work(nursery)
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - raised again below, without the nursery's group
            failure = self._crash = single(error)
        finally:
            self.is_up = self.is_stopping = False
            grace = self._run_config.cancel_grace
            with trio.CancelScope(shield=True, deadline=trio.current_time() + grace) as scope:
                if has_begun:
                    await self._shut_down()
            if scope.cancelled_caught:
                logger.warning("the end of %s took longer than cancel_grace=%g, and was cut short", self.label, grace)
            if not self.is_supervised:
                self.close()
            self.down.set()
        if failure is not None:
            raise failure

    async def _start(self) -> tuple[str, ...]:
        """Restore the session, and call the first hooks. Returns the topics to listen to."""
        self._crash, self.is_stopping, self.is_closed = None, False, False
        self._context = dict(self.config.options.get("context") or {})
        self.base = contextvars.copy_context()
        self.base.run(part_of_none)
        await self._wait_for_change()  # one of the last life's may still be written
        first = self._first
        is_given = self.config.options.get("session") is not None  # one of the user's goes on as it is
        await self._open(first if is_given else Session(id=first.id, messages=first.messages))
        run = prepare(self._run_config, None, self.session.id, streaming=False)
        try:
            await run.hooks.fire("session_start", run.view)
        except Halted as halted:
            raise AgentClosed(f"{self.label} did not start: {halted}") from halted
        self._context = run.context
        named = run.context.get("session_id")
        if named and str(named) != self.session.id:
            self.session.id = str(named)
            await self._open(self.session)
        self._run_config = self._configured(self.session)
        if self.config.pubsub is not None:
            split_topic(f"agent:{self.session.id}:events")  # raises, now, what is wrong with the id
        return (*self.config.subscribe, *(run.context.get("subscribe") or ()))

    async def _open(self, session: Session) -> None:
        if self.config.session_store is not None:
            self._journal, session = await open_journal(self.config.session_store, session)
        self._take_session(session)
        self._run_config = self._configured(session)

    def _take_session(self, session: Session) -> None:
        self.session = session
        self._show()

    def _show(self) -> None:
        """Let readers see the session as it is now."""
        self.shown: Session = attrs.evolve(self.session, metadata=dict(self.session.metadata))

    def _configured(self, session: Session | None) -> Config:
        options: dict[str, Any] = {"max_budget_cents": None, "context": self._context}
        if session is not None:
            return self.config.of_run(**options, session=session, messages=None)
        config = self.config.of_run(**options)
        wanted = self.config.session_id
        if wanted is not None and config.session.id != wanted:
            if self.config.options.get("session") is not None:
                raise InvalidOption(f"session_id={wanted!r} and session= with another id are both given: leave one out")
            config.session.id = wanted
        return config

    async def _work(self, nursery: trio.Nursery) -> None:
        while not self.is_stopping:
            with trio.CancelScope() as self._taking:
                request = await self.mailbox.take()
            if self._taking.cancelled_caught:
                return
            if self.changing is not None:
                await self._wait_for_change(request)
            if request.state != "queued":
                continue  # cancelled meanwhile
            self.current, request.state = request, "running"
            request.context.run(nursery.start_soon, self._perform, request)
            await request.done.wait()

    async def _wait_for_change(self, request: AgentRequest | None = None) -> None:
        """Wait until a change has been made; if this life ends meanwhile, the request waits for the next one."""
        is_made = False
        try:
            while self.changing is not None:
                await self.changing.wait()
            is_made = True
        finally:
            if not is_made and request is not None and request.state == "queued":
                self.mailbox.put_back(request)

    def finish(self) -> None:
        """Take no more requests out of the mailbox: the life ends with the run under way."""
        self.is_stopping = True
        if self._taking is not None:
            self._taking.cancel()

    async def _shut_down(self) -> None:
        before = self.session.messages
        run = prepare(self._run_config, None, self.session.id, streaming=False)
        try:
            await run.hooks.fire("session_end", run.view)
        except Halted:
            self.session.messages = before
        except Exception:
            logger.exception("a session_end hook of %s raised, as it stopped", self.label)
        if self.session.messages is not before:
            await self._saved(None, None)
        self._show()
        if self.config.on_shutdown is None:
            return
        try:
            answer = self.config.on_shutdown(self.export())
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("on_shutdown of %s raised, as it stopped", self.label)

    def export(self) -> Session:
        """Return a copy of the session as of the last commit."""
        return attrs.evolve(self.shown, metadata=dict(self.shown.metadata))

    # One request

    async def _perform(self, request: AgentRequest) -> None:
        request.before = (self.session.messages, self.session.prefix, dict(self.session.metadata))
        try:
            with request.scope:
                await self._run(request)
        except Exception as error:  # noqa: BLE001 - the answer to who waits: it fails the run, and the agent lives
            request.error = single(error)
        finally:
            with trio.CancelScope(shield=True):
                await self._end(request)

    async def _run(self, request: AgentRequest) -> None:
        config = self._run_config
        given = config.context.get("request_id") or config.context.get("correlation_id")
        ids = str(given or (request.id if request.is_own_id else f"{self.session.id}-{request.id}"))
        request.controls.journal = self._journal
        request.controls.on_settled = partial(self._commit, request)
        request.controls.has_person = True
        request.controls.approval_timeout = self.config.approval_timeout
        run = request.run = prepare(
            config,
            request.asked,
            ids,
            self._sink(request),
            streaming=request.sink is not None,
            controls=request.controls,
            own_ends=False,
        )
        if self._journal is not None:
            self._journal.begin(run)
        for budget in self._own_budgets():
            budget.__enter__()  # for this task, which ends with it
        with part_of(request):
            await run_loop(run)

    def _own_budgets(self) -> list[Budget]:
        base = around() if self.base is None else self.base.run(around)
        return [budget for budget in (*base.budgets, *self._budgets) if budget not in around().budgets]

    def _sink(self, request: AgentRequest) -> Sink | None:
        pubsub, sink = self.config.pubsub, request.sink
        if pubsub is None:
            return sink
        topic = f"agent:{self.session.id}:events"

        async def publish(batch: EventBatch) -> None:
            pubsub.publish(topic, tuple(batch.envelopes()))
            if sink is not None:
                await sink(batch)

        return publish

    def _commit(self, request: AgentRequest) -> None:
        """The run's end is decided: one step, in which nobody else moves."""
        request.state = "committed"
        outcome = None if request.run is None else request.run.outcome
        if outcome is not None and outcome.status == "cancelled":
            request.is_cancelled = True
        if self._is_undone(request):
            self.session.messages, self.session.prefix, self.session.metadata = request.before
        self._show()
        self.last_status = "error" if outcome is None else outcome.status
        if request.is_cancelled:
            self.last_status = "cancelled"
        if outcome is not None:
            self.last_turns = outcome.turns
            self.abandoned += sum(call.outcome == "abandoned" for call in outcome.tool_calls)

    def _is_undone(self, request: AgentRequest) -> bool:
        return request.is_cancelled and self.config.on_cancel == "rollback"

    async def _end(self, request: AgentRequest) -> None:
        """Do what follows a commit, and cannot be cancelled: write down, publish, answer."""
        if request.state == "running":  # it never got as far as to settle
            self._commit(request)
        result = self._result_of(request)
        error = None if result.status == "halted" else result.error
        try:
            if self._journal is not None and self._journal.broken is not None:
                raise self._journal.broken  # noqa: TRY301 - it broke in the middle of the run
            unsaved = await self._saved(request, None if self._is_undone(request) else result)
            error = error or unsaved
        except Exception as broken:
            crashed = AgentCrashed(f"{self.label} broke down: its store raised {type(broken).__name__}: {broken}")
            crashed.__cause__ = broken
            result, error = attrs.evolve(result, status="error", error=crashed), crashed
            raise
        finally:
            self.current = None
            self.answer(request, result, error)

    def _result_of(self, request: AgentRequest) -> Result:
        outcome = None if request.run is None else request.run.outcome
        error = request.error
        if outcome is None:
            outcome = Result(status="error", messages=self.session.messages, error=error)
        if not request.is_cancelled:
            return attrs.evolve(outcome, request_id=request.id)
        said: AlloyError = RequestCancelled("the request was cancelled")
        if self._crash is not None:
            said = AgentCrashed(f"{self.label} broke down: {type(self._crash).__name__}: {self._crash}")
            said.__cause__ = self._crash
        return attrs.evolve(
            outcome,
            status="cancelled" if self._crash is None else "error",
            error=said,
            messages=self.session.messages,
            request_id=request.id,
            metadata={**outcome.metadata, "phase": "running"},
        )

    async def _saved(self, request: AgentRequest | None, result: Result | None) -> StoreError | None:
        """Write down how a run has ended; without a result, put the session in place of what was written."""
        journal, run = self._journal, None if request is None else request.run
        if journal is None:
            return None
        in_time = False
        failure: StoreError | None = None
        grace = self._run_config.cancel_grace if request is not None and request.is_cancelled else float("inf")
        try:
            with trio.move_on_after(grace):
                if result is None or run is None:
                    await journal.save_session()
                else:
                    await journal.save_end(run, result)
                in_time = True
        except StoreError as error:
            failure = error
        if not in_time and failure is None:
            journal.is_dirty = True
            failure = StoreError(f"the end of a cancelled run was not written within cancel_grace={grace:g} seconds")
        self.is_unsaved = failure is not None
        if failure is not None:
            logger.error("session %s is not saved: %s", self.session.id, failure)
        return failure

    # What comes by itself

    async def _listen_safely(self, topics: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._listen(topics, task_status=task_status)
        except Exception as error:
            self._crash = error  # so that the request under way is told why it ends
            raise

    async def _listen(self, topics: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
        assert self.config.pubsub is not None
        with self.config.pubsub.subscribe(*topics) as subscription:
            task_status.started()
            async for message in subscription:
                if isinstance(message, Lost):
                    logger.warning(
                        "%s was too slow for its topics, and has lost %d messages", self.label, message.count
                    )
                    continue
                try:
                    self.submit(message, None)
                except AlloyError as refused:
                    self.tell_refused(message, refused)

    # Changes

    def reconfigure(self, config: AgentConfig) -> None:
        """Let later runs have another configuration. Raises InvalidOption; then nothing has changed."""
        before, self.config = self.config, config
        try:
            self._run_config = self._configured(self.session)
        except InvalidOption:
            self.config = before
            raise

    async def reset(self, other: Session | None = None) -> None:
        """Begin the conversation anew, or go on with another one's. Raises StoreError."""
        changed = self.changing = trio.Event()
        try:
            messages, prefix = ((), None) if other is None else (other.messages, other.prefix)
            self.session.update(messages, Usage() if other is None else self.session.usage)
            self.session.metadata, self.session.prefix = {}, prefix
            self._show()
            if (failure := await self._saved(None, None)) is not None:
                raise failure
        finally:
            self.changing = None
            changed.set()
