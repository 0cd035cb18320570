"""
The turns of a run: ask the model, run the tools it asks for, ask again, until it is done.

Functions without a state of their own: all that changes is the `Run`. Per turn:

    ask ── the prompt was too long ──► `on_context_overflow` makes it shorter ──► ask again, once
     │  ── no money for it, or cut where it ran out ────────────► budget_exceeded, with what came
     │  ── refusal ─────────────────────────────────────────────► raise ProviderError, the refused text stays out
     │  ── cut at the cap inside a tool call ───────────────────► answer each call with an error, raise ProviderError
     │  ── pause_turn (the provider wants to go on) ──► ask again as it is
     │  ── tool calls ──► run them ──► their results ──► ask again
     │  ── done, but `until_tool` was not called, or it does not fit `output_type` ──► say so ──► ask again
     └─ ── done ────────────────────────────────────────────────► completed
    and before each: max_turns reached? ────────────────────────► max_turns
    at every hook of a middleware: `Halted`? ───────────────────► halted
    an answer that was interrupted counts as a turn; what was said joins before the next one is asked for

Retry, fallback and money are the provider's (see `providers/_retry`, `_metered`): the loop asks once, and gets an answer or not.

Invariant: whenever this function awaits, the run can be cut, and what is left is a valid history (see `_state`). So an answer
and the batch of its calls enter the run in one step, and results enter it all at once. `trio.Cancelled` passes through
untouched; a `finally` reduces the turn under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import trio

from ._budget import BudgetExhausted
from ._errors import ContextTooLong, Halted, ProviderError, ToolError
from ._events import BlockEnd, TurnEnd, TurnStart
from ._messages import Message
from ._output import ANSWER_TOOL, MISFIT, MISFITS, REMINDER
from ._state import Recorder, Run
from .providers._base import Request, Response, StopReason, as_events
from .tools._executor import Batch
from .tools._settings import ToolSettings

if TYPE_CHECKING:
    from ._events import ProviderEvent, Retry
    from ._gate import Verdict
    from ._messages import ToolUse
    from ._result import Status
    from ._story import Story

_Answer: TypeAlias = tuple[Response, bool, bool]
_WITHOUT_A_STEP = 8  # turns after which others get their turn, come what may
_THREADS = 40  # at once in one run; Trio's own default for the threads of a whole program


async def take_turns(run: Run, story: Story) -> Status:
    """
    Go on until the model is done, or the turns or the money are used up; return how it ended.

    Raises:
        BudgetExhausted: There is no money left.
        ProviderError: The provider failed, refused, was cut inside a tool call, or its answer did not fit.
        Exception: What a hook raises.
    """
    config, settings = run.config, _tool_settings(run)
    done = config.until_tool is None
    while run.turns < config.max_turns:
        run.emitter.turn = run.turns + 1
        story.turn_begins()
        await _begin_turn(run)
        answer = await _answer(run)
        if answer is None:
            run.cut("cancelled")
            run.turns += 1
            continue
        response, is_whole, capped = answer
        response, batch = _take(response, run, settings, capped=capped)
        story.answered(response)
        await _tell_answer(run, response, is_whole=is_whole)
        if capped:
            run.metadata["budget_exceeded"] = "the answer was cut at the cap that the budget allowed"
            return "budget_exceeded"
        if batch is not None:
            await _run_tools(run, batch)
            done = done or config.until_tool in batch.succeeded
            if _answered_by_tool(run, batch) and await _is_final(run):
                return "completed"
        elif response.stop_reason is not StopReason.PAUSE_TURN:
            remark = _remark(run, done=done)
            if remark is None and await _is_final(run):
                return "completed"
            if remark is not None and run.turns < config.max_turns:
                run.history.append(Message.user(remark))
        run.commit()
    return "max_turns"


async def _begin_turn(run: Run) -> None:
    # A provider and tools that never wait would keep all from running.
    if run.turns % _WITHOUT_A_STEP == _WITHOUT_A_STEP - 1:
        await trio.lowlevel.checkpoint()
    if run.emitter.unheard(1) is None:
        await run.emitter.emit(TurnStart())
    await run.hooks.fire("before_completion", run.view)
    await run.listen()


async def _tell_answer(run: Run, response: Response, *, is_whole: bool) -> None:
    content = response.message.content if is_whole else ()
    if run.emitter.unheard(len(content) + 1) is None:
        late = as_events(content) if run.streaming else [BlockEnd(block) for block in content]
        await run.emitter.emit(*late, TurnEnd(response.message, response.stop_reason, response.usage))


def _remark(run: Run, *, done: bool) -> str | None:
    """Return what is to be said to a final answer that is none yet; None if it is one."""
    wanted = run.config.output_type
    if wanted is None:
        return None if done else REMINDER.format(run.config.until_tool)
    try:  # many models answer in text where they were told to call the tool
        run.output = wanted.parse_message(run.history.messages[-1])
    except ToolError as error:
        _count_misfit(run, error)
        said = f"{str(error)[:1].upper()}{str(error)[1:]}."
        return MISFIT.format(said) if wanted.native else REMINDER.format(run.config.until_tool)
    return None


def _answered_by_tool(run: Run, batch: Batch) -> bool:
    """Whether the calls have given the run's typed answer."""
    if run.config.output_type is None or run.config.output_type.native:
        return False
    for record in batch.records:
        if record.name == ANSWER_TOOL and record.outcome == "ok":
            run.output = record.data
            return True
        if record.name == ANSWER_TOOL and record.outcome == "error":
            _count_misfit(run, record.error)
    return False


def _count_misfit(run: Run, error: object) -> None:
    run.misfits += 1
    if run.misfits > MISFITS:
        raise _stopped(run, f"the model's answer did not fit output_type, {run.misfits} times: {error}")


async def _is_final(run: Run) -> bool:
    """Whether the answer is the last one: a hook may have something to say to it, behind it or in its place."""
    last = run.history.messages[-1]  # a user's already, if the answer is empty, or was a tool's input
    await run.hooks.fire("after_completion", run.view)
    now = run.history.messages[-1]
    is_final = now is last or now.role != "user" or bool(now.tool_results)
    # From here on to the end nothing waits: what was said by now is taken, what comes later is told that the run is over.
    await trio.lowlevel.checkpoint_if_cancelled()
    is_final = is_final and not run.controls.has_remarks
    if not is_final:
        run.output = None
    return is_final


async def _run_tools(run: Run, batch: Batch) -> None:
    run.controls.batch = batch
    run.controls.stop_calls()
    try:
        await run.save()
        await run.hooks.fire("after_tool_request", run.view)
        if run.hooks.has("before_tool_call"):
            await batch.admit(lambda call: _judge(run, call))
    except Exception as error:
        batch.refuse(f"not run: {'the run was halted: ' if isinstance(error, Halted) else ''}{error}")
        run.close_batch(recorded=False)
        raise
    await batch.run()
    run.close_batch()
    run.commit()
    await run.hooks.fire("after_tool_execution", run.view)


async def _judge(run: Run, call: ToolUse) -> Verdict:
    return await run.hooks.judge(run.view, call)


async def _answer(run: Run) -> _Answer | None:
    """Ask the model, and once more where the prompt was too long and a hook has made it shorter. None: it was interrupted."""
    try:
        return await _ask(run)
    except ContextTooLong as error:
        before = run.history.messages
        if run.recorder is None or not run.recorder.has_any:
            run.recorder = None
            await run.hooks.fire("on_context_overflow", run.view, error)
        if run.history.messages is before:
            raise
    answer = await _ask(run)
    run.metadata["context_overflow"] = True
    return answer


async def _ask(run: Run) -> _Answer | None:
    """
    Ask the model once; None if it was interrupted.

    Returns the answer; whether it came in one piece, so that nobody has had its events; and whether the budget has cut it
    short. While the answer streams, the recorder notes what could be kept of it.
    """
    config, emitter, wanted = run.config, run.emitter, run.config.output_type
    messages = run.history.messages
    request = Request(
        messages=messages,
        tools=tuple(config.tools.values()),
        system_prompt=config.system_prompt,
        max_output_tokens=config.max_output_tokens,
        output_schema=wanted.schema if wanted is not None and wanted.native else None,
        provider_state=config.provider_state,
        size=run.size,
        transcripts=(messages, run.history.transcripts),
    )
    recorder = run.recorder = Recorder()

    async def emit(*events: ProviderEvent | Retry) -> None:
        recorder.take(events)
        await emitter.emit(*events)  # type: ignore[arg-type] # the meter has kept the reports of usage

    capped = False
    try:
        response = await run.controls.interruptibly(run.provider.stream(request, emit))
    except BudgetExhausted as exhausted:
        if exhausted.response is None:
            recorder.take(tuple(exhausted.heard))
            raise
        response, capped = exhausted.response, True
    if response is None:
        return None
    return response, not recorder.has_any, capped


def _take(response: Response, run: Run, settings: ToolSettings, *, capped: bool) -> tuple[Response, Batch | None]:
    """Put an answer into the run, in one step with the batch of its calls. Returns both: the answer as it stands there."""
    calls = response.message.tool_uses
    batch = Batch(calls, settings, run.emitter, run.turns + 1) if calls else None
    run.recorder = None
    run.turns += 1
    run.stop_reason = str(response.stop_reason)
    run.take_metadata(response)
    if response.stop_reason is StopReason.REFUSAL:
        reason = response.metadata.get("refusal") or "no reason given"
        raise _stopped(run, f"the model refused to answer: {reason}")
    if response.message.content:
        response = attrs.evolve(response, message=run.history.append(response.message))
    if batch is None:
        return response, None
    run.batch = batch
    if response.stop_reason is StopReason.MAX_TOKENS:
        cap = f"max_output_tokens ({run.config.max_output_tokens or 'the default of the provider'})"
        advice = (
            f"the answer was cut at {'the end of the budget' if capped else cap} inside a tool call: "
            "allow more, or ask for less at once"
        )
        batch.refuse(advice)
        run.close_batch()
        if not capped:
            raise _stopped(run, advice)
    return response, batch


def _stopped(run: Run, message: str) -> ProviderError:
    return ProviderError(message, provider=run.origin[0], model=run.origin[1])


def _tool_settings(run: Run) -> ToolSettings:
    config = run.config
    return ToolSettings(
        tools=config.tools,
        timeout=config.tool_timeout,
        cancel_grace=config.cancel_grace,
        threads=_THREADS,
        working_directory=config.working_directory,
        allowed_paths=(config.working_directory,) if config.allowed_paths is None else config.allowed_paths,
        context=run.context,
        deps=config.deps,
        correlation_id=run.emitter.correlation_id,
        session_id=run.session.id,
        on_result=None if run.controls.journal is None else run.save_result,
    )
