"""
The loop: ask the model, run the tools it asks for, ask again, until it is done.

A function without a state of its own: options in, result out, all that changes is the `RunState`. Per turn:

    ask ── refusal ─────────────────────────────────────────────► raise ProviderError, the refused text stays out
     │  ── cut at the cap inside a tool call ───────────────────► answer each call with an error, raise ProviderError
     │  ── pause_turn (the provider wants to go on) ──► ask again as it is
     │  ── tool calls ──► run them ──► their results ──► ask again
     │  ── done, but `until_tool` was not called ──► remind ──► ask again
     └─ ── done ────────────────────────────────────────────────► completed
    and before each: max_turns reached? ────────────────────────► max_turns

Invariant: whenever this function awaits, the state can be cut, and what is left is a valid history (see `_state`). So an answer
and the batch of its calls enter the state in one step, and results enter it all at once. `trio.Cancelled` passes through
untouched; a `finally` reduces the turn under way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from ._errors import AlloyError, InvalidOption, ProviderError, RunTimeout, WireError
from ._events import BlockEnd, RunEnd, RunStart, TurnEnd, TurnStart
from ._messages import Message
from ._state import Emitter, Recorder, RunState
from ._usage import Usage
from .providers._base import Request, Response, StopReason, as_events, provider_model, provider_name
from .tools._executor import Batch, ToolSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import Config
    from ._events import ProviderEvent
    from ._result import Result, Status
    from ._state import Sink
    from .providers._base import Provider

_THREADS = 40  # at once in one run; Trio's own default for the threads of a whole program


def begin(config: Config, prompt: object, sink: Sink | None = None) -> RunState:
    """
    Return the state of a run that has not asked anything yet.

    Raises:
        InvalidOption: There is nothing to ask: no prompt, and no messages.
    """
    messages = list(config.session.messages)
    match prompt:
        case None:
            pass
        case str():
            messages.append(Message.user(prompt))
        case Message(role="user"):
            messages.append(prompt)
        case _:
            raise InvalidOption(f"the prompt is {prompt!r:.100}: it has to be text, or a user's message")
    if not messages:
        raise InvalidOption("nothing to ask: give a prompt, or messages= to go on with")
    emitter = Emitter(config.correlation_id, config.on_event, sink)
    return RunState(messages=messages, session=config.session, emitter=emitter, prior_usage=config.session.usage)


async def run_loop(config: Config, state: RunState, *, streaming: bool) -> Result:
    """
    Run to the end, and return the result; `state` has it too, up to date at every moment.

    Raises:
        ProviderError: The provider failed; with `.result`, as all errors of ours.
        RunTimeout: The run's own deadline passed.
        InvalidOption: The session is in another run.
        Exception: What a provider of your own raises.
    """
    session = config.session
    if session._running:  # noqa: SLF001 - the session's half of this guard
        busy = InvalidOption("this session is in another run just now: wait for it, or give this run one of its own")
        state.outcome = state.result("error", busy)
        raise busy
    session._running = True  # noqa: SLF001 - as above
    try:
        return await _run(config, state, streaming=streaming)
    finally:
        session._running = False  # noqa: SLF001 - as above


async def _run(config: Config, state: RunState, *, streaming: bool) -> Result:
    provider = config.provider
    origin = provider_name(provider), provider_model(provider), getattr(provider, "origin", None)
    status: Status | None = None
    error: Exception | None = None
    timeout = math.inf if config.timeout is None else config.timeout
    scope = trio.CancelScope(deadline=trio.current_time() + timeout)
    try:
        with scope:
            await trio.lowlevel.checkpoint()
            state.commit()
            await state.emitter.emit(RunStart(config.session.id, origin[0], origin[1]))
            status = await _turns(config, state, streaming=streaming)
    except Exception as caught:  # noqa: BLE001 - raised again below, with the result
        status, error = "error", caught
    finally:
        batch = state.cut("timed_out" if scope.cancelled_caught else "cancelled", *origin)
        if status is None and not scope.cancelled_caught:  # a cancel from outside, on its way
            _tell_cancelled(state, batch)
    if status is None:
        status, error = "timed_out", RunTimeout(f"the run took longer than its timeout of {timeout:g} seconds")
    state.outcome = state.result(status, error)
    try:
        await _tell_end(config, state, status, error, batch)
    finally:
        state.outcome = state.result(status, error)
        if isinstance(error, AlloyError):
            error.result = state.outcome
    if error is not None:
        raise error
    return state.outcome


def _tell_cancelled(state: RunState, batch: Batch | None) -> None:
    ends = [] if batch is None else batch.cut_ends()
    first = state.emitter.emit_nowait(*ends, RunEnd("cancelled", state.turns, state.usage))
    if batch is not None:
        batch.number_ends(first)
    state.outcome = state.result("cancelled")


async def _tell_end(
    config: Config, state: RunState, status: Status, error: Exception | None, batch: Batch | None
) -> None:
    """Emit the last events. A run whose time is up does not wait for a listener for ever."""
    ends = [] if batch is None else batch.cut_ends()
    end = RunEnd(status, state.turns, state.usage, None if error is None else str(error))
    with trio.move_on_after(config.cancel_grace if status == "timed_out" else math.inf):
        first = await state.emitter.emit(*ends, end)
        if batch is not None:
            batch.number_ends(first)


async def _turns(config: Config, state: RunState, *, streaming: bool) -> Status:
    settings = _tool_settings(config, state)
    done = config.until_tool is None
    while state.turns < config.max_turns:
        response, late = await _ask(config, state, streaming=streaming)
        batch = _take(response, state, settings, config)
        await state.emitter.emit(*late, TurnEnd(response.message, response.stop_reason, response.usage))
        if batch is not None:
            await batch.run()
            done = done or config.until_tool in batch.succeeded
            state.close_batch()
        elif response.stop_reason is not StopReason.PAUSE_TURN:
            if done:
                return "completed"
            if state.turns < config.max_turns:
                state.messages.append(Message.user(_REMINDER.format(config.until_tool)))
        state.commit()
    return "max_turns"


_REMINDER = "You have not finished yet: go on, and call the tool `{}` with your result."


async def _ask(config: Config, state: RunState, *, streaming: bool) -> tuple[Response, Sequence[ProviderEvent]]:
    """
    Ask the model once. Returns the answer, and the events of it that nobody has had yet.

    While the answer streams, the recorder notes what could be kept of it.
    """
    provider, emitter = config.provider, state.emitter
    emitter.turn = state.turns + 1
    await emitter.emit(TurnStart())
    request = Request(
        messages=tuple(state.messages),
        tools=tuple(config.tools.values()),
        system_prompt=config.system_prompt,
        max_output_tokens=config.max_output_tokens,
    )
    stream = getattr(provider, "stream", None) if streaming else None
    if stream is None:
        response = _check(await provider.complete(request), provider)
        content = response.message.content
        return response, as_events(content) if streaming else [BlockEnd(block) for block in content]
    recorder = state.recorder = Recorder()

    async def emit(*events: ProviderEvent) -> None:
        recorder.take(events)
        await emitter.emit(*events)

    return _check(await stream(request, emit), provider), ()


def _check(response: object, provider: Provider) -> Response:
    """Trust no provider of the user's own: what it returns is looked at before it enters the history."""
    name = provider_name(provider)
    match response:
        case Response(message=Message(role="assistant"), stop_reason=StopReason(), usage=Usage(), metadata=Mapping()):
            return response
        case Response(stop_reason=reason) if reason not in set(StopReason):
            problem = f"stopped for {reason!r}, which is none of {', '.join(StopReason)}"
        case _:
            problem = (
                f"returned {response!r:.200}, which is no Response with an assistant's message, usage and metadata"
            )
    raise WireError(f"provider {name} {problem}", provider=name, model=provider_model(provider))


def _take(response: Response, state: RunState, settings: ToolSettings, config: Config) -> Batch | None:
    """Put an answer into the state, in one step with the batch of its calls. Returns the batch that is to run."""
    calls = response.message.tool_uses
    batch = Batch(calls, settings, state.emitter.emit) if calls else None
    state.recorder = None
    state.turns += 1
    state.usage += response.usage
    state.stop_reason = str(response.stop_reason)
    kept = {key: state.metadata[key] for key in ("provider_state",) if key in state.metadata}
    state.metadata = {**kept, **response.metadata}
    if response.message.provider_state:
        state.metadata["provider_state"] = dict(response.message.provider_state)
    if response.stop_reason is StopReason.REFUSAL:
        raise _stopped(config, f"the model refused to answer: {response.metadata.get('refusal') or 'no reason given'}")
    if response.message.content:
        state.messages.append(response.message)
    if batch is None:
        return None
    state.batch = batch
    if response.stop_reason is StopReason.MAX_TOKENS:
        cap = config.max_output_tokens or "the provider's default"
        advice = (
            f"the answer was cut at max_output_tokens ({cap}) inside a tool call: allow more, or ask for less at once"
        )
        batch.refuse(advice)
        state.close_batch()
        raise _stopped(config, advice)
    return batch


def _stopped(config: Config, message: str) -> ProviderError:
    return ProviderError(message, provider=provider_name(config.provider), model=provider_model(config.provider))


def _tool_settings(config: Config, state: RunState) -> ToolSettings:
    return ToolSettings(
        tools=config.tools,
        timeout=config.tool_timeout,
        cancel_grace=config.cancel_grace,
        limiter=trio.CapacityLimiter(_THREADS),
        working_directory=config.working_directory,
        allowed_paths=(config.working_directory,) if config.allowed_paths is None else config.allowed_paths,
        context=config.context,
        deps=config.deps,
        correlation_id=state.emitter.correlation_id,
    )
