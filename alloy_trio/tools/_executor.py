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
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._errors import InvalidOption
from .._events import Custom, ToolEnd, ToolStart
from .._gate import BlockCall, EditCall
from .._instruments import is_on, tell
from .._result import ToolCall
from .._telemetry import ToolStarted, ToolStopped
from ._context import ToolContext
from ._invocation import Invocation
from ._output import clip, render
from ._threads import ThreadResult, call_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .._gate import Gate, Verdict
    from .._messages import Outcome, ToolResult, ToolUse
    from .._util import JSONObject
    from ._settings import Emits, ToolSettings
    from ._tool import Tool

logger = logging.getLogger("alloy_trio.tools")


_ATOMS = frozenset({str, int, float, bool, type(None)})


class Batch:
    """The calls of one answer. Run it once; its results are there at any time after."""

    def __init__(self, calls: Sequence[ToolUse], settings: ToolSettings, emitter: Emits, turn: int = 1) -> None:
        self._settings = settings
        self._emitter = emitter
        self._turn = turn
        self._invocations = [self._prepare(use) for use in calls]

    async def admit(self, gate: Gate) -> None:
        """Ask the gate about each call that is to run, in order. Before `run`, and all of them: raises what the gate does."""
        for invocation in self._invocations:
            if invocation.outcome is not None:
                continue
            verdict: Verdict = None
            with trio.CancelScope() as invocation.scope:
                verdict = await gate(invocation.use)
            invocation.scope = None
            if invocation.stopped is not None:
                invocation.end_stopped()
                invocation.over()
                continue
            match verdict:
                case BlockCall(reason):
                    logger.info("tool call %s %s blocked: %s", invocation.use.name, invocation.use.id, reason)
                    invocation.end("blocked", f"Blocked: {reason}")
                case EditCall(edited):
                    invocation.use = attrs.evolve(invocation.use, input=edited)
                    self._parse(invocation)

    async def run(self) -> None:
        """Run all calls. Raises nothing of what a tool raises, except what is no `Exception`."""
        for group in _groups(self._invocations):
            first, starts = self._emitter.unheard(len(group)), None
            if first is None:
                first, starts = self._emitter.number(*(ToolStart(i.use.id, i.use.name, i.use.input) for i in group))
            for seq, invocation in enumerate(group, first):
                invocation.start_seq = seq  # noted before the hand-over, which may be cut half-way
            if starts is not None:
                await self._emitter.hand_over(starts)
            if len(group) == 1:
                await self._run_one(group[0])
                continue
            # Trio runs tasks that start together in any order. So each takes the next call as it begins: that is the model's order.
            waiting = iter(group)
            async with trio.open_nursery() as nursery:
                for _ in group:
                    nursery.start_soon(self._run_next, waiting)

    async def stop(self, use_id: str, reason: str) -> bool:
        """
        End one call, for a reason in words for the model; the others go on. Returns once nothing of it runs.

        Returns whether it ended by that: a tool that returns all the same has done what it was to do.

        Raises:
            LookupError: There is no such call.
        """
        named = [i for i in self._invocations if i.use.id == use_id]  # servers give an id twice: then one that is open
        invocation = next((i for i in named if i.outcome is None), named[0] if named else None)
        if invocation is None:
            raise LookupError(f"no call {use_id!r:.100} is under way; those that are: {', '.join(self.open_calls)}")
        runs = invocation.scope is not None
        stopped = invocation.stop(reason)
        if runs:
            await invocation.wait_over()
        return stopped and invocation.outcome != "ok"

    def stop_all(self, reason: str) -> None:
        """End every call that has not ended, for a reason in words for the model."""
        for invocation in self._invocations:
            invocation.stop(reason)

    @property
    def open_calls(self) -> tuple[str, ...]:
        """The ids of the calls that have not ended."""
        return tuple(i.use.id for i in self._invocations if i.outcome is None)

    def check_input(self, call: ToolUse, edited: JSONObject) -> None:
        """
        See whether a call could run with another input.

        Raises:
            InvalidOption: It could not.
        """
        tool = self._settings.tools[call.name]
        try:
            tool.parse(copy.deepcopy(edited))
        except Exception as error:
            raise InvalidOption(f"{call.name} cannot run with this input: {error}; give another one") from error

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
        self.__dict__.pop("records", None)  # they have the numbers

    def results(self) -> tuple[ToolResult, ...]:
        """One result per call, in call order. Only after `run`, `refuse` or `cut`."""
        return tuple(invocation.result() for invocation in self._invocations)

    @property
    def succeeded(self) -> frozenset[str]:
        """The names of the tools that had a call that ended `ok`."""
        return frozenset(invocation.use.name for invocation in self._invocations if invocation.outcome == "ok")

    @property
    def is_told(self) -> bool:
        """Whether no event of a call that has begun is missing."""
        return not self._unannounced()

    @functools.cached_property
    def records(self) -> list[ToolCall]:
        """The records of all calls, in call order. Only once it is over, and its ends are numbered."""
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

    def _prepare(self, use: ToolUse) -> Invocation:
        tool = self._settings.tools.get(use.name)
        invocation = Invocation(use, tool)
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
        invocation.log_refused()
        return invocation

    @staticmethod
    def _parse(invocation: Invocation) -> None:
        assert invocation.tool is not None
        try:
            # A copy: what a tool does to its arguments must not change the call in the history.
            invocation.arguments = invocation.tool.parse(_copied(invocation.use.input))
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            invocation.fail(error)
            invocation.log_refused()

    async def _run_next(self, waiting: Iterator[Invocation]) -> None:
        await (self._run_one if is_on() else self._execute)(next(waiting))

    async def _run_one(self, invocation: Invocation) -> None:
        if (told := self._tell_start(invocation)) is None:
            await self._execute(invocation)
            return
        try:
            await self._execute(invocation)
        finally:
            self._tell_stop(told, invocation)

    async def _execute(self, invocation: Invocation) -> None:
        tool = invocation.tool
        if invocation.outcome is None and tool is not None:
            timeout = self._settings.timeout if tool.timeout is None else tool.timeout
            now = trio.current_time()
            try:
                with trio.CancelScope(deadline=now + timeout) as scope:
                    invocation.scope = scope
                    await self._call(tool, invocation, now)
                if scope.cancelled_caught and invocation.stopped is not None:
                    invocation.end_stopped()
                elif scope.cancelled_caught:
                    invocation.end_too_late(timeout)
            # The one place where a tool's exception becomes a value; a cancel that came with it in a group goes on.
            except* Exception as group:  # noqa: BLE001
                invocation.fail(group)
            finally:
                invocation.over()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._settings.on_result is not None:
            await self._settings.on_result(invocation.result())
        invocation.end_seq = self._emitter.unheard(1)
        if invocation.end_seq is None:
            invocation.end_seq, end = self._emitter.number(self._end_event(invocation))
            await self._emitter.hand_over(end)

    async def _call(self, tool: Tool, invocation: Invocation, now: float) -> None:
        ctx = self._context(invocation.use)
        if not tool.is_async and not tool.inline:
            await self._call_in_thread(tool, invocation, ctx)
            return
        invocation.started = now
        value = tool.execute(invocation.arguments, ctx)
        if inspect.isawaitable(value):
            value = await value
        invocation.end("ok", render(value))

    async def _call_in_thread(self, tool: Tool, invocation: Invocation, ctx: ToolContext[Any]) -> None:
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

    def _tell_start(self, invocation: Invocation) -> ToolStarted | None:
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
    def _tell_stop(told: ToolStarted, invocation: Invocation) -> None:
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
                trusted=invocation.trusted,
            )
        )

    def _context(self, use: ToolUse) -> ToolContext[Any]:
        async def emit(event: Custom) -> None:
            await self._emitter.emit(event)

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

    def _unannounced(self) -> list[Invocation]:
        return [i for i in self._invocations if i.start_seq is not None and i.end_seq is None]

    @staticmethod
    def _end_event(invocation: Invocation) -> ToolEnd:
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
            trusted=invocation.trusted,
        )


def _copied(arguments: JSONObject) -> JSONObject:
    """Return a deep copy; a shallow one where that is one."""
    is_flat = all(type(value) in _ATOMS for value in arguments.values())
    return dict(arguments) if is_flat else copy.deepcopy(arguments)


def _groups(invocations: list[Invocation]) -> Iterator[list[Invocation]]:
    """Split at the barriers: runs of concurrent calls, and the others one by one."""
    group: list[Invocation] = []
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
