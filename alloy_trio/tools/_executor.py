"""
Running the calls of one answer, in three steps: prepare, execute, finalize.

    prepare    in order: look the tool up, validate the input, ask the gate. What fails here is answered and never runs.
    execute    consecutive concurrent calls side by side in a nursery, each in its own cancel scope; a call whose tool is
               not concurrent is a barrier. Calls start in the order the model made them.
    finalize   one result per call, in that order, whatever happened.

A `Batch` can be finalized at any moment, also from a `finally` after a cancel: each call then has an outcome. A call that
*returned* is `ok`, its effects are real; `timed_out` needs `cancelled_caught` of the call's own scope; what was cut from
outside is `cancelled`. A tool that swallows a cancel does not end it: the executor asks again after each call.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from .._errors import ToolError
from .._events import Custom, ToolEnd, ToolStart
from .._gate import BlockCall, EditCall
from .._messages import Outcome, Text, ToolResult, ToolUse
from .._result import ToolCall
from .._telemetry import ToolStarted, ToolStopped, is_on, tell
from .._util import single
from ._context import ToolContext
from ._output import ToolOutput, clip, render
from ._threads import ThreadResult, call_in_thread
from ._tool import Tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._events import Event
    from .._gate import Gate

_LONGEST_ERROR = 2000  # characters of an exception that the model is shown

logger = logging.getLogger("alloy_trio.tools")


class EmitNumbered(Protocol):
    """Takes events, returns when they have been taken, and gives the sequence number of the first."""

    async def __call__(self, *events: Event) -> int:
        """Hand over `events`."""
        ...


@attrs.frozen(kw_only=True)
class ToolSettings:
    """
    What all calls of a run share.

    Attributes:
        tools: The tools, by name.
        timeout: Seconds a call may take, unless its tool says otherwise.
        cancel_grace: Seconds that a cancelled call's thread is waited for, unless its tool says otherwise.
        limiter: Bounds the threads of this run; never shared, so that nested runs cannot wait for each other.
        working_directory: For `ToolContext`, as are the rest.
        allowed_paths: The folders that file tools may touch.
        context: The user's.
        deps: The user's.
        correlation_id: The run's.
        session_id: The run's session.
    """

    tools: Mapping[str, Tool]
    timeout: float
    cancel_grace: float
    limiter: trio.CapacityLimiter
    working_directory: Path
    allowed_paths: tuple[Path, ...]
    context: Mapping[str, Any]
    deps: Any
    correlation_id: str
    session_id: str = ""


@attrs.define
class _Invocation:
    """One call on its way: `outcome` is None until it has ended. `use` has the input that runs."""

    use: ToolUse
    tool: Tool | None = None
    arguments: Any = None
    outcome: Outcome | None = None
    output: ToolOutput = attrs.field(default=ToolOutput(""))
    started: float | None = None
    duration: float = 0.0
    start_seq: int | None = None
    end_seq: int | None = None
    exception: Exception | None = None

    @property
    def concurrent(self) -> bool:
        return self.tool is None or self.tool.concurrent

    @property
    def error(self) -> str | None:
        return None if self.outcome in {"ok", None} else _text(self.output)

    def start(self) -> None:
        """The tool itself runs from now on."""
        self.started = trio.current_time()

    def end(self, outcome: Outcome, output: ToolOutput | str) -> None:
        """Settle the call, once: what comes later does not count."""
        if self.outcome is None:
            self.outcome = outcome
            self.output = ToolOutput(output) if isinstance(output, str) else output
            if self.started is not None:
                self.duration = trio.current_time() - self.started

    def fail(self, error: Exception) -> None:
        error = single(error)
        self.exception = self.exception or error
        self.end("error", _explain(self.use, error))

    @property
    def settled(self) -> Outcome:
        assert self.outcome is not None, "asked for the results of a batch that is not over"
        return self.outcome

    def result(self) -> ToolResult:
        content = self.output.content
        limit = None if self.tool is None else self.tool.max_result_chars
        if limit is not None:
            blocks = (Text(content),) if isinstance(content, str) else content
            content = tuple(Text(clip(b.text, limit)) if isinstance(b, Text) else b for b in blocks)
        return ToolResult(self.use.id, content, is_error=self.settled != "ok", outcome=self.settled)


class Batch:
    """The calls of one answer. Run it once; its results are there at any time after."""

    def __init__(self, calls: Sequence[ToolUse], settings: ToolSettings, emit: EmitNumbered, turn: int = 1) -> None:
        self._settings = settings
        self._emit = emit
        self._turn = turn
        self._invocations = [self._prepare(use) for use in calls]

    async def admit(self, gate: Gate) -> None:
        """Ask the gate about each call that is to run, in order. Before `run`, and all of them: raises what the gate does."""
        for invocation in self._invocations:
            if invocation.outcome is not None:
                continue
            match await gate(invocation.use):
                case BlockCall(reason):
                    logger.info("tool call %s %s blocked: %s", invocation.use.name, invocation.use.id, reason)
                    invocation.end("blocked", f"Blocked: {reason}")
                case EditCall(edited):
                    invocation.use = attrs.evolve(invocation.use, input=edited)
                    self._parse(invocation)

    async def run(self) -> None:
        """Run all calls. Raises nothing of what a tool raises, except what is no `Exception`."""
        for group in _groups(self._invocations):
            first = await self._emit(*(ToolStart(i.use.id, i.use.name, i.use.input) for i in group))
            for seq, invocation in enumerate(group, first):
                invocation.start_seq = seq
            if len(group) == 1:
                await self._run_one(group[0])
                continue
            async with trio.open_nursery() as nursery:
                for invocation in group:
                    nursery.start_soon(self._run_one, invocation)
                    # Trio runs the tasks of one step in any order: one step each keeps the model's.
                    await trio.lowlevel.checkpoint()

    def refuse(self, reason: str) -> None:
        """Answer every call with an error instead of running it."""
        for invocation in self._invocations:
            invocation.end("error", reason)

    def cut(self, outcome: Outcome) -> None:
        """Settle every call that has not ended: the run is over, by a cancel or by its deadline."""
        words = "cancelled" if outcome == "cancelled" else "stopped: the run's time was up"
        for invocation in self._invocations:
            done = "" if invocation.started is None else " while it ran; its effects may be partial"
            invocation.end(outcome, f"{words}{done}" if done else f"{words} before it started")

    def cut_ends(self) -> list[ToolEnd]:
        """Return the `ToolEnd` events of the calls that were cut before theirs was sent; `number_ends` takes the numbers."""
        return [self._end_event(invocation) for invocation in self._unannounced()]

    def number_ends(self, first: int) -> None:
        """Note the numbers that the events of `cut_ends` got, the first of them."""
        for seq, invocation in enumerate(self._unannounced(), first):
            invocation.end_seq = seq

    def results(self) -> tuple[ToolResult, ...]:
        """One result per call, in call order. Only after `run`, `refuse` or `cut`."""
        return tuple(invocation.result() for invocation in self._invocations)

    @property
    def succeeded(self) -> frozenset[str]:
        """The names of the tools that had a call that ended `ok`."""
        return frozenset(invocation.use.name for invocation in self._invocations if invocation.outcome == "ok")

    def records(self) -> list[ToolCall]:
        """The records of all calls, in call order. When `results` may be asked for."""
        return [
            ToolCall(
                id=i.use.id,
                name=i.use.name,
                input=i.use.input,
                outcome=i.settled,
                duration=i.duration,
                error=i.error,
                data=i.output.data,
                correlation_id=self._settings.correlation_id,
                start_event_seq=i.start_seq,
                end_event_seq=i.end_seq,
            )
            for i in self._invocations
        ]

    def _prepare(self, use: ToolUse) -> _Invocation:
        tool = self._settings.tools.get(use.name)
        invocation = _Invocation(use, tool)
        if tool is None:
            known = ", ".join(sorted(self._settings.tools)) or "none"
            invocation.end("error", f"unknown tool: {use.name!r}; the tools are: {known}")
        elif use.invalid_input is not None:
            invocation.end(
                "error", f"invalid input: expected a JSON object at `$`, got: {clip(use.invalid_input, 500)}"
            )
        else:
            self._parse(invocation)
            return invocation
        _log_refused(invocation)
        return invocation

    @staticmethod
    def _parse(invocation: _Invocation) -> None:
        assert invocation.tool is not None
        try:
            # A copy: what a tool does to its arguments must not change the call in the history.
            invocation.arguments = invocation.tool.parse(copy.deepcopy(invocation.use.input))
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            invocation.fail(error)
            _log_refused(invocation)

    async def _run_one(self, invocation: _Invocation) -> None:
        told = self._tell_start(invocation)
        try:
            await self._execute(invocation)
        finally:
            if told is not None:
                self._tell_stop(told, invocation)

    async def _execute(self, invocation: _Invocation) -> None:
        tool = invocation.tool
        if invocation.outcome is None and tool is not None:
            timeout = self._settings.timeout if tool.timeout is None else tool.timeout
            try:
                with trio.CancelScope(deadline=trio.current_time() + timeout) as scope:
                    await self._call(tool, invocation)
                if scope.cancelled_caught:
                    logger.warning("tool %s timed out after %g s", tool.name, timeout)
                    invocation.end("timed_out", _too_slow(timeout, started=invocation.started is not None))
            # The one place where a tool's exception becomes a value; a cancel that came with it in a group goes on.
            except* Exception as group:  # noqa: BLE001
                invocation.fail(group)
        await trio.lowlevel.checkpoint_if_cancelled()
        invocation.end_seq = await self._emit(self._end_event(invocation))

    async def _call(self, tool: Tool, invocation: _Invocation) -> None:
        ctx = self._context(invocation.use)
        if not tool.is_async and not tool.inline:
            await self._call_in_thread(tool, invocation, ctx)
            return
        invocation.start()
        value = tool.execute(invocation.arguments, ctx)
        if inspect.isawaitable(value):
            value = await value
        invocation.end("ok", render(value))

    async def _call_in_thread(self, tool: Tool, invocation: _Invocation, ctx: ToolContext[Any]) -> None:
        grace = self._settings.cancel_grace if tool.cancel_grace is None else tool.cancel_grace

        def report(ended: ThreadResult) -> None:
            if ended.returned:
                invocation.end("ok", render(ended.value))
            elif ended.error is not None:
                invocation.fail(ended.error)
            elif ended.abandoned:
                logger.error("tool %s did not end within %g s of its cancel and was left running", tool.name, grace)
                invocation.end(
                    "abandoned",
                    f"did not stop within {grace:g} seconds of being asked to, and was left running: "
                    "its effects may still come",
                )

        await call_in_thread(
            lambda: tool.execute(invocation.arguments, ctx),
            ctx,
            started=invocation.start,
            report=report,
            grace=grace,
            limiter=self._settings.limiter,
        )

    def _tell_start(self, invocation: _Invocation) -> ToolStarted | None:
        if not is_on():
            return None
        use, seq = invocation.use, invocation.start_seq
        assert seq is not None
        told = ToolStarted(
            session_id=self._settings.session_id,
            correlation_id=self._settings.correlation_id,
            turn=self._turn,
            id=use.id,
            name=use.name,
            input=use.input,
            seq=seq,
        )
        tell(told)
        return told

    @staticmethod
    def _tell_stop(told: ToolStarted, invocation: _Invocation) -> None:
        # Without an outcome there is a cancel on its way: the batch is settled behind it.
        outcome, duration = invocation.outcome or "cancelled", invocation.duration
        if invocation.outcome is None and invocation.started is not None:
            duration = trio.current_time() - invocation.started
        tell(
            ToolStopped(
                session_id=told.session_id,
                correlation_id=told.correlation_id,
                turn=told.turn,
                id=told.id,
                name=told.name,
                duration=duration,
                outcome=outcome,
                error=invocation.error,
                exception=invocation.exception,
                seq=invocation.end_seq,
                start_seq=told.seq,
                content=() if invocation.outcome is None else invocation.result().content,
            )
        )

    def _context(self, use: ToolUse) -> ToolContext[Any]:
        async def emit(event: Custom) -> None:
            await self._emit(event)

        return ToolContext(
            working_directory=self._settings.working_directory,
            allowed_paths=self._settings.allowed_paths,
            context=self._settings.context,
            deps=self._settings.deps,
            tool_use_id=use.id,
            name=use.name,
            correlation_id=self._settings.correlation_id,
            emit=emit,
        )

    def _unannounced(self) -> list[_Invocation]:
        return [i for i in self._invocations if i.start_seq is not None and i.end_seq is None]

    @staticmethod
    def _end_event(invocation: _Invocation) -> ToolEnd:
        use, start = invocation.use, invocation.start_seq
        assert start is not None
        return ToolEnd(
            use.id,
            use.name,
            use.input,
            invocation.settled,
            invocation.duration,
            invocation.error,
            start_event_seq=start,
            content=invocation.result().content,
        )


def _log_refused(invocation: _Invocation) -> None:
    logger.warning("tool call %s %s refused: %s", invocation.use.name, invocation.use.id, _text(invocation.output))


def _groups(invocations: list[_Invocation]) -> Iterator[list[_Invocation]]:
    """Split at the barriers: runs of concurrent calls, and the others one by one."""
    group: list[_Invocation] = []
    for invocation in invocations:
        if invocation.concurrent:
            group.append(invocation)
            continue
        if group:
            yield group
        yield [invocation]
        group = []
    if group:
        yield group


def _explain(use: ToolUse, error: Exception) -> str:
    """Say on one line what a tool raised; what its author did not mean for the model goes to the log in full."""
    if isinstance(error, ToolError):
        return str(error) or type(error).__name__
    logger.error("tool %s raised", use.name, exc_info=error)
    return clip(" ".join(f"{type(error).__name__}: {error}".split()), _LONGEST_ERROR)


def _too_slow(timeout: float, *, started: bool) -> str:
    if started:
        return f"timed out after {timeout:g} seconds; ask for less at once, or do it another way"
    return f"found no free thread within {timeout:g} seconds: earlier calls hold them all; try again later"


def _text(output: ToolOutput) -> str:
    content = output.content
    return content if isinstance(content, str) else "".join(b.text for b in content if isinstance(b, Text))
