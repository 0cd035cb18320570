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
    AgentBusy,
    AgentClosed,
    AgentCrashed,
    AlloyError,
    Halted,
    InvalidOption,
    StoreError,
)
from ._journal import StoreJournal, open_journal
from ._listening import listen
from ._loop import prepare, run_loop
from ._session import Session
from ._usage import Usage
from ._util import single
from .pubsub._topics import split_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._agent_config import AgentConfig
    from ._config import Config
    from ._requests import AgentRequest
    from ._result import Result, Status
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
        if self.is_alive:
            raise RuntimeError(f"{self.label} is running already: each agent lives once at a time")
        if not self.is_supervised:
            self._check_open()
        self.is_alive, self.down, self.task = True, trio.Event(), trio.lowlevel.current_task()
        self.home = trio.lowlevel.current_trio_token()
        try:
            await self._live(task_status)
        finally:
            self.is_alive, self.task = False, None
            if not self.is_supervised:
                self.close()
            self.down.set()

    async def _live(self, task_status: trio.TaskStatus[Any]) -> None:
        failure: Exception | None = None
        has_begun = False
        try:
            topics = await self._start()
            has_begun = True
            async with trio.open_nursery() as nursery:
                self.is_up, self.started_at = True, trio.current_time()
                if topics:
                    await nursery.start(self._listen, topics)
                task_status.started(self.handle)
                await self._work(nursery)
                nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - raised again below, without the nursery's group
            failure = self._crash = single(error)
        finally:
            self.is_up = self.is_stopping = False
            if has_begun:
                await self._end_life()
        failure = failure or self._broken
        if failure is not None:
            raise failure

    async def _end_life(self) -> None:
        grace = self._run_config.cancel_grace
        with trio.CancelScope(shield=True, deadline=trio.current_time() + grace) as scope:
            try:
                await self._shut_down()
                await self._wait_for_change()  # so that nothing of this life is written behind it
            except Exception:
                logger.exception("the end of %s could not be written", self.label)
        if scope.cancelled_caught:
            logger.warning("the end of %s took longer than cancel_grace=%g, and was cut short", self.label, grace)

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
        self._show()  # what the hooks have made of it
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
        while (request := await self._next()) is not None:
            if request.state != "queued":
                continue  # cancelled meanwhile
            self.current, request.state, request.grace = request, "running", self._run_config.cancel_grace
            request.context.run(nursery.start_soon, self._perform, request)
            try:
                await request.done.wait()
            finally:
                request.hurry()  # where this life is cancelled
                del request  # it is not to be kept until the next one comes

    async def _next(self) -> AgentRequest | None:
        """Wait for the next request, and for a change that is being made; None: this life takes no more of them."""
        request, is_ready = None, False
        with trio.CancelScope() as self._taking:
            if self.is_stopping:
                return None
            request = await self.mailbox.take()
        if request is None:
            return None
        try:
            await self._wait_for_change()
            is_ready = not self.is_stopping and self._broken is None
        finally:
            if not is_ready and request.state == "queued":
                self.mailbox.put_back(request)  # for the next life
        return request if is_ready else None

    @property
    def _broken(self) -> Exception | None:
        """What the store has raised that no store should."""
        return None if self._journal is None else self._journal.broken

    def _crashed(self, error: Exception, why: str = "") -> AgentCrashed:
        crashed = AgentCrashed(f"{self.label} broke down: {why}{type(error).__name__}: {error}")
        crashed.__cause__ = error
        return crashed

    async def _wait_for_change(self) -> None:
        while self.changing is not None:
            await self.changing.wait()

    def finish(self) -> None:
        """Take no more requests out of the mailbox: the life ends with the run under way."""
        self.is_stopping = True
        self._stop_taking()

    def _stop_taking(self) -> None:
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
        self._show()
        try:
            if self.session.messages is not before:
                await self._saved(None, None)
        finally:
            await self._say_goodbye()

    async def _say_goodbye(self) -> None:
        if self.config.on_shutdown is None:
            return
        try:
            answer = self.config.on_shutdown(self.export())
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("on_shutdown of %s raised, as it stopped", self.label)

    # One request

    async def _perform(self, request: AgentRequest) -> None:
        request.before = (self.session.messages, self.session.prefix, dict(self.session.metadata))
        try:
            with request.scope:
                await self._run(request)
        except Exception as error:  # noqa: BLE001 - the answer to who waits: it fails the run, and the agent lives
            request.error = single(error)
        finally:
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
            self.sink_of(request),
            streaming=request.sink is not None,
            controls=request.controls,
            own_ends=False,
        )
        if self._journal is not None:
            self._journal.begin(run)
        for budget in self._own_budgets():
            budget.__enter__()  # for this task, which ends with it
        request.begun.set()
        with part_of(request):
            await run_loop(run)

    def _own_budgets(self) -> list[Budget]:
        base = around() if self.base is None else self.base.run(around)
        return [budget for budget in (*base.budgets, *self._budgets) if budget not in around().budgets]

    def _commit(self, request: AgentRequest) -> None:
        """The run's end is decided: one step, in which nobody else moves."""
        request.state = "committed"
        request.controls.close()  # a run that never got so far as to listen has not done so
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
        result = request.ended(self.session.messages, None if self._crash is None else self._crashed(self._crash))
        error = None if result.status == "halted" else result.error
        try:
            if self._broken is not None:
                raise self._broken  # noqa: TRY301 - it broke in the middle of the run
            unsaved = await self._saved(request, None if self._is_undone(request) else result)
            error = error or unsaved
        except Exception as broken:
            crashed = self._crashed(broken, "its store raised ")
            result, error = attrs.evolve(result, status="error", error=crashed), crashed
            raise
        finally:
            self.current = None
            self.answer(request, result, error)

    async def _saved(self, request: AgentRequest | None, result: Result | None) -> StoreError | None:
        """Write down how a run has ended; if it was undone, or has not begun, put the session in place of what was written."""
        journal, run = self._journal, None if request is None else request.run
        if journal is None:
            return None
        in_time = False
        failure: StoreError | None = None
        scope = trio.CancelScope()
        if request is not None:
            scope = request.writing = trio.CancelScope(shield=True)
            if request.is_cancelled or request.is_hurried:
                request.hurry()
        try:
            with scope:
                if result is None or run is None or run.history.messages is not self.session.messages:
                    await journal.save_session()
                else:
                    await journal.save_end(run, result)
                in_time = True
        except StoreError as error:
            failure = error
        finally:
            self.is_unsaved = not in_time
        if request is not None and scope.cancelled_caught:
            journal.is_dirty = True
            failure = StoreError(f"the end of a run was not written within cancel_grace={request.grace:g} seconds")
        if failure is not None:
            logger.error("session %s is not saved: %s", self.session.id, failure)
        return failure

    async def _listen(self, topics: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await listen(self, topics, task_status=task_status)
        except Exception as error:
            self._crash = error  # so that the request under way is told why it ends
            raise

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
        """Begin the conversation anew, or go on with another one's. Raises AgentClosed, AgentBusy, StoreError, AgentCrashed."""
        self._check_open()
        if not self.is_up:
            raise AgentBusy(f"{self.label} is just being started again, and reads its conversation: reset it then")
        changed = self.changing = trio.Event()
        try:
            messages, prefix = ((), None) if other is None else (other.messages, other.prefix)
            self.session.update(messages, Usage() if other is None else self.session.usage)
            self.session.metadata, self.session.prefix = {}, prefix
            self._show()
            failure: AlloyError | None = await self._saved(None, None)
        except Exception as error:  # noqa: BLE001 - the store's own, and this life ends by it
            self._stop_taking()
            failure = self._crashed(error, "its store raised ")
        finally:
            self.changing = None
            changed.set()
        if failure is not None:
            raise failure
