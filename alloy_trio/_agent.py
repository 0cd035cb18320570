"""An agent: a conversation that lives in a task of its own, and is reached through a handle."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import trio

from ._agent_config import AgentChanges, AgentConfig, AgentOptions, freeze
from ._agent_stream import RequestSource
from ._desk import as_message
from ._errors import AgentIdle, InvalidOption, UnknownRequest
from ._health import Health
from ._living import Core
from ._requests import Pending
from ._run import EventStream
from ._util import Discreet
from .supervision._spec import ChildSpec, Restart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Unpack

    from ._budget import Budget
    from ._emitter import Sink
    from ._messages import Message, ToolUse
    from ._requests import AgentRequest
    from ._result import Result
    from ._session import Session
    from ._usage import Usage
    from .providers._base import Provider
    from .tools._tool import Tool


class Agent:
    """
    A conversation that lives in a task of its own; this is the handle to it, which outlives restarts.

    It takes one request at a time, in the order they were made; each runs in a cancel scope of its own. When the end of a
    request is there, by whatever cause, nothing of it is running any more, but for threads that its outcome calls
    `abandoned`, and the conversation is valid for every provider. Readers (`messages`, `usage`, `health`) answer at once, and
    show what was before the run under way.

    Made by `open_agent`, by `await nursery.start(Agent.serve, config)`, or by a supervisor of `Agent.child_spec(…)`.
    It belongs to one Trio run, and to its thread.
    """

    def __init__(self, config: AgentConfig, *, _is_supervised: bool = False) -> None:
        self._core = Core(self, config, is_supervised=_is_supervised)

    @classmethod
    async def serve(cls, config: AgentConfig, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """
        Live in this task: `agent = await nursery.start(Agent.serve, AgentConfig(…))`. Ends by `agent.stop()`, or a cancel.

        Raises:
            InvalidOption: It is no `AgentConfig`.
            AgentClosed: A `session_start` hook has halted.
            StoreError: The session could not be read.
            Exception: What broke the agent down.
        """
        await cls(freeze(config, {}))._core.serve(task_status=task_status)  # noqa: SLF001 - its own

    @overload
    @classmethod
    def child_spec(
        cls,
        *,
        restart: Restart = "permanent",
        shutdown: float = 5.0,
        start_timeout: float = 30.0,
        **options: Unpack[AgentOptions],
    ) -> ChildSpec: ...

    @overload
    @classmethod
    def child_spec(
        cls,
        config: AgentConfig,
        /,
        *,
        restart: Restart = "permanent",
        shutdown: float = 5.0,
        start_timeout: float = 30.0,
        **options: Unpack[AgentChanges],
    ) -> ChildSpec: ...

    @classmethod  # type: ignore[misc] # it does accept them, as `open_agent` does, where mypy sees it
    def child_spec(
        cls,
        config: AgentConfig | None = None,
        /,
        *,
        restart: Restart = "permanent",
        shutdown: float = 5.0,
        start_timeout: float = 30.0,
        **options: Any,
    ) -> ChildSpec:
        """
        Say how a supervisor is to start an agent; its name, or else the id of its session, is the child's id.

        The handle, what waits in its queue and its `max_budget_cents` outlive restarts; the conversation does where there is a
        `session_store`. Without one each life begins with `messages=`.

        Raises:
            InvalidOption: Something about the options.
            InvalidChildSpec: Something about the rest.
        """
        options = Discreet(options)
        core = cls(freeze(config, options), _is_supervised=True)._core  # noqa: SLF001 - its own
        return ChildSpec(
            id=core.config.name or core.session.id,
            start=core.serve,
            restart=restart,
            shutdown=shutdown,
            start_timeout=start_timeout,
            stop=lambda _: core.finish(),
            on_gone=lambda _: core.close(),
        )

    # Requests

    async def chat(self, prompt: str | Message, *, request_id: str | None = None) -> Result:
        """
        Ask something, wait for its turn, and return the result. Budgets around the caller pay for it, besides the agent's own.

        A cancel of the caller, its deadline included, is one of the request, queued or running: it leaves once nothing of it
        runs. What was done until then is in `messages`, unless `on_cancel="rollback"`. The deadline is that of the moment of the call:
        the request does not learn of one that is moved later.

        Raises:
            AgentBusy: The caller is a part of a request to the same agent, and would wait for itself.
            AgentClosed: The agent has stopped, or stops before the request's turn comes.
            AgentCrashed: The agent broke down.
            RequestCancelled: Somebody else cancelled the request. `.result` has what was done, as with all that is raised.
            StoreError: The answer is there, in `.result`, and could not be written down.
            InvalidOption: The prompt is none, the id is in use, or the agent lives in another Trio run.
            AlloyError: What a run raises: ProviderError, RunTimeout, UnknownPrice.
        """
        request = self._ask(prompt, request_id, None)
        return await request.wait()

    def stream_chat(self, prompt: str | Message, *, request_id: str | None = None) -> EventStream:
        """
        Do what `chat` does, and see it happen: `async with agent.stream_chat("…") as events:`, as with `alloy_trio.stream`.

        Its turn is that of the moment in which it is entered. Leaving the body early cancels the request.
        """
        as_message(prompt)  # raises what is wrong with it now
        return EventStream(RequestSource(lambda sink: self._ask(prompt, request_id, sink)))

    async def send_message(
        self, prompt: str | Message, *, request_id: str | None = None, budget: Budget | None = None
    ) -> Pending:
        """
        Ask something, and go on at once: it starts if the agent is idle, or is queued if `max_pending` allows.

        The result is `await pending.result()`, and is published on `agent:<session id>:responses`, exactly once. Nothing of the
        sender's goes with it: no deadline, and no budget but the one given here.

        Raises:
            AgentBusy: The agent is busy, and `max_pending` is 0.
            QueueFull: As many requests wait as `max_pending` allows.
            AgentClosed: The agent has stopped.
            InvalidOption: The prompt is none, or the id is in use.
        """
        await trio.lowlevel.checkpoint()
        return Pending(self._core.submit(prompt, request_id, budget=budget), self._core)

    async def cancel_request(self, request_id: str) -> bool:
        """
        Cancel a request, queued or running. Returns once nothing of it runs, and whether that has won: False if it was over.

        In the body of its own stream, or in its `on_event`, for which its end may wait, one that comes too late returns at once.

        Raises:
            UnknownRequest: No request of that id is queued or running.
        """
        request = self._core.requests.get(request_id)
        if request is None:
            known = ", ".join(self._core.requests) or "there are none"
            raise UnknownRequest(f"no request {request_id!r:.100} is queued or running; those that are: {known}")
        return await self._core.cancel(request)

    async def wait_idle(self) -> None:
        """
        Wait until no request is under way, and none waits; nor is a `reset` being written.

        Raises:
            AgentBusy: The caller is a part of one of them.
        """
        self._core.refuse_own("wait_idle()")
        await trio.lowlevel.checkpoint()
        core = self._core
        while core.requests or core.changing is not None:
            if core.changing is not None:
                await core.changing.wait()
            else:
                await next(reversed(core.requests.values())).done.wait()

    def _ask(self, prompt: str | Message, request_id: str | None, sink: Sink | None) -> AgentRequest:
        self._core.refuse_own("chat()" if sink is None else "stream_chat()")
        return self._core.submit(
            prompt,
            request_id,
            context=contextvars.copy_context(),
            sink=sink,
            deadline=trio.current_effective_deadline(),
        )

    # The run under way

    async def steer(self, prompt: str | Message, *, interrupt: Literal["stream", "turn"] | None = None) -> None:
        """
        Say something to the run under way. It joins the conversation at the next turn's boundary, behind the results.

        Args:
            prompt: What to say.
            interrupt: `"stream"` cuts an answer that is just being streamed, and waits for tools; `"turn"` cuts these too.
                The run goes on, with what was said.

        Raises:
            AgentIdle: There is no run, or its end is decided: what was said is not lost, `chat` takes it.
            InvalidOption: It is no text, and no user's message.
        """
        if interrupt not in {None, "stream", "turn"}:
            raise InvalidOption(f'interrupt={interrupt!r:.50} has to be None, "stream" or "turn"')
        said = as_message(prompt).content
        await trio.lowlevel.checkpoint()
        request = self._core.serving
        if request is None:
            raise AgentIdle("there is no run to steer: chat(…) begins one")
        if not request.begun.is_set():  # about to be; until it is, it may be cancelled, and take nothing with it
            await request.begun.wait()
        request.controls.say(said, interrupt)

    async def cancel_tool(self, call_id: str) -> bool:
        """
        End one tool call of the run under way: the model is told that the user has cancelled it, and its siblings go on.

        Returns once nothing of it runs, and whether it ended by that.

        Raises:
            UnknownRequest: No such call is under way.
        """
        request = self._core.current
        batch = None if request is None else request.controls.batch
        if batch is None or call_id not in batch.open_calls:
            known = ", ".join(() if batch is None else batch.open_calls) or "there are none"
            raise UnknownRequest(f"no tool call {call_id!r:.100} is under way; those that are: {known}")
        return await batch.stop(call_id, "cancelled by the user")

    def pending_approvals(self) -> tuple[ToolUse, ...]:
        """Return the calls that wait for a person, in order: those for which a hook awaits `state.approval(call)`."""
        request = self._core.current
        return () if request is None else tuple(each.call for each in request.controls.approvals.values())

    def approve(self, call_id: str, input: Mapping[str, Any] | None = None) -> None:  # noqa: A002 - the word for it
        """
        Let a call run that waits, or let it run with another input; the history keeps the model's own.

        Raises:
            UnknownRequest: No such call waits.
            InvalidOption: The input does not fit the tool; the call goes on waiting.
        """
        self._waiting(call_id).controls.approve(call_id, None if input is None else dict(input))

    def deny(self, call_id: str, reason: str = "the user has denied it") -> None:
        """
        Refuse a call that waits; the model is told the reason.

        Raises:
            UnknownRequest: No such call waits.
        """
        self._waiting(call_id).controls.deny(call_id, reason)

    def _waiting(self, call_id: str) -> AgentRequest:
        if self._core.current is None:
            raise UnknownRequest(f"no call {call_id!r:.100} waits for approval: the agent is idle")
        return self._core.current

    # What it is like

    @property
    def name(self) -> str | None:
        """What it is called."""
        return self._core.config.name

    @property
    def session_id(self) -> str:
        """The id of its conversation, and of its topics."""
        return self._core.session.id

    @property
    def config(self) -> AgentConfig:
        """The options of the next run."""
        return self._core.config

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools of the next run, by name."""
        return self._core.tools

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, as it was before the run under way."""
        return self._core.shown.messages

    @property
    def usage(self) -> Usage:
        """Tokens of all runs before the one under way."""
        return self._core.shown.usage

    def health(self) -> Health:
        """Say how the agent is. Answers at once, whatever it does."""
        core = self._core
        status: Literal["idle", "running", "down", "closed"] = "idle" if core.is_up else "down"
        if core.is_closed:
            status = "closed"
        elif core.current is not None:
            status = "running"
        return Health(
            status=status,
            last_status=core.last_status,
            turns=core.last_turns,
            message_count=len(self.messages),
            usage=self.usage,
            uptime=trio.current_time() - core.started_at if core.is_up else 0.0,
            request_id=None if core.current is None else core.current.id,
            pending_count=len(core.waiting),
            max_pending=core.config.max_pending,
            pending_approvals=len(self.pending_approvals()),
            abandoned=core.abandoned,
            unsaved=core.is_unsaved,
        )

    def export_session(self) -> Session:
        """Return a copy of the conversation as it was before the run under way: `to_json()` makes it text."""
        return self._core.export()

    # Changes

    async def reset(self) -> None:
        """
        Begin the conversation anew; options, session id and budget stay.

        Raises:
            AgentBusy: A run is on, a request waits, or the agent is just being started again.
            AgentClosed: The agent has stopped.
            AgentCrashed: The store broke otherwise than by StoreError, and the agent breaks down with it.
            StoreError: The store could not be told; the next run tells it.
        """
        self._core.refuse_busy("reset()")
        await trio.lowlevel.checkpoint()
        self._core.refuse_busy("reset()")
        await self._core.reset()

    async def set_model(self, provider: Provider | str) -> None:
        """
        Go on with another model; conversation, usage, tools and instructions stay.

        `context_tokens` is that of the new one, unless it was given.

        Raises:
            AgentBusy: A run is on, or a request waits.
            InvalidOption: It is no provider.
        """
        self._core.refuse_busy("set_model()")
        await trio.lowlevel.checkpoint()
        self._core.refuse_busy("set_model()")
        self._core.reconfigure(self._core.config.but(provider=provider))

    def reload(
        self,
        *,
        tools: Iterable[Tool] | None = None,
        middleware: Sequence[object] | None = None,
        system_prompt: str | None = None,
    ) -> None:
        """
        Change what the next runs have, and those after a restart; the run under way ends with what it has. What is None stays.

        Raises:
            InvalidOption: Something about them; then nothing has changed.
        """
        given = {"tools": tools, "middleware": middleware, "system_prompt": system_prompt}
        changes = {name: value for name, value in given.items() if value is not None}
        self._core.reconfigure(self._core.config.but(**changes))

    async def stop(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - a grace, not a deadline of the call
        """
        Stop: let the run under way finish within `timeout` seconds, else cancel it. Returns once nothing of the agent runs.

        A life that is just being started ends as soon as it has begun. In a hook of the start or the end itself it returns at once.

        Requests that wait are refused with `AgentClosed`. A permanent child of a supervisor is started again by it, and serves them.

        Raises:
            AgentBusy: The caller is a part of a request to this agent.
        """
        core = self._core
        is_own = core.is_own_task()
        if not is_own:
            core.refuse_own("stop()")
        await trio.lowlevel.checkpoint()
        if not core.is_alive:
            return
        core.finish()
        if is_own:
            return
        with trio.move_on_after(timeout):
            await core.down.wait()
        if core.current is not None:
            core.current.abandon()
        await core.down.wait()

    def __repr__(self) -> str:
        return f"<Agent: {self._core.config.name or self.session_id}, {self.health().status}>"
