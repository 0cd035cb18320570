"""
The loop, from the outside: how a run begins, what can end it, and who is told. `_turns` has what it does in between.

A function without a state of its own: options in, result out, all that changes is the `Run`.

    the turns return a status ──────────────────► completed, max_turns, budget_exceeded
    no money left ──────────────────────────────► budget_exceeded
    a hook raises `Halted` ─────────────────────► halted
    anything else is raised ────────────────────► error, raised again with the result; `on_error` may halt instead
    the run's own deadline passes ──────────────► timed_out, RunTimeout raised; waiting for money: budget_exceeded
    a cancel from outside ──────────────────────► cancelled, `trio.Cancelled` untouched

Whichever it is: first the turn under way is reduced to what can be kept, so that the history is valid; then come the last hooks,
which may change the ending; then the last events. The result is there from the first of these steps on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING

import attrs
import trio

from ._budget import Account, Budget, BudgetExhausted, on_account
from ._emitter import Emitter
from ._errors import Halted, InvalidOption, ProviderError, RunTimeout
from ._events import RunEnd, RunStart
from ._history import History
from ._messages import Message
from ._middleware import Hooks
from ._result import Status
from ._state import Run
from ._story import Story
from ._turns import take_turns
from .providers._base import provider_model, provider_name
from .providers._metered import measure_fixed

if TYPE_CHECKING:
    from ._config import Config
    from ._emitter import Sink
    from ._result import Result
    from .tools._executor import Batch


logger = logging.getLogger("alloy_trio")


def begin(config: Config, prompt: object, sink: Sink | None = None, *, streaming: bool) -> Run:
    """
    Return a run that has not asked anything yet.

    Raises:
        InvalidOption: There is nothing to ask: no prompt, and no messages.
    """
    history = History(config.session.messages)
    match prompt:
        case None:
            pass
        case str():
            history.append(Message.user(prompt))
        case Message(role="user"):
            history.append(prompt)
        case _:
            raise InvalidOption(f"the prompt is {prompt!r:.100}: it has to be text, or a user's message")
    if not history.messages:
        raise InvalidOption("nothing to ask: give a prompt, or messages= to go on with")
    provider, ids = config.provider, config.correlation_id
    metered = config.metered(streaming=streaming)
    return Run(
        config=config,
        session=config.session,
        history=history,
        emitter=Emitter(ids, config.on_event, sink),
        metered=metered,
        provider=config.chain(metered),
        origin=(provider_name(provider), provider_model(provider), getattr(provider, "origin", None)),
        fixed_size=measure_fixed(config.system_prompt, tuple(config.tools.values())),
        account=Account(session_id=config.session.id, correlation_id=ids),
        hooks=Hooks.of(config.hooked),
        context=dict(config.context),
        streaming=streaming,
    )


async def run_loop(run: Run) -> Result:
    """
    Run to the end, and return the result; `run` has it too, up to date at every moment.

    Raises:
        ProviderError: The provider failed; with `.result`, as whatever is raised here.
        RunTimeout: The run's own deadline passed.
        UnknownPrice: A budget is to be kept, and what a model costs is not known.
        InvalidOption: The session is in another run.
        Exception: What a hook, or a provider of your own, raises.
    """
    session = run.session
    if session._running:  # noqa: SLF001 - the session's half of this guard
        busy = InvalidOption("this session is in another run just now: wait for it, or give this run one of its own")
        run.outcome = run.result("error", busy)
        raise busy
    session._running = True  # noqa: SLF001 - as above
    cents = run.config.max_budget_cents
    try:
        with on_account(run.account, None if cents is None else Budget(cents=cents)):
            return await _run(run)
    finally:
        session._running = False  # noqa: SLF001 - as above


@attrs.define
class _End:
    """How a run has ended, as far as its last hooks leave it at that."""

    status: Status
    error: Exception | None = None


async def _run(run: Run) -> Result:
    config, story = run.config, Story(run, streaming=run.streaming)
    end: _End | None = None
    timeout = math.inf if config.timeout is None else config.timeout
    scope = trio.CancelScope(deadline=trio.current_time() + timeout)
    try:
        with scope:
            await trio.lowlevel.checkpoint()
            end = _End(await _start(run, story))
    except BudgetExhausted:
        end = _End("budget_exceeded")
    except Halted as caught:
        end = _End("halted", caught)
    except Exception as caught:  # noqa: BLE001 - raised again below, with the result
        end = _End("error", caught)
    finally:
        batch = run.cut("timed_out" if scope.cancelled_caught else "cancelled")
        if end is None and not scope.cancelled_caught:  # a cancel from outside, on its way
            _tell_cancelled(run, story, batch)
            await _end_session(run)
    if end is None and run.account.waits:
        end = _End("budget_exceeded")
    elif end is None:
        end = _End("timed_out", RunTimeout(f"the run took longer than its timeout of {timeout:g} seconds"))
    return await _finish(run, story, end, batch)


async def _start(run: Run, story: Story) -> Status:
    run.commit()
    for each in run.metered:
        each.check()
    await run.emitter.emit(RunStart(run.session.id, run.origin[0], run.origin[1]))
    await run.hooks.fire("session_start", run.view)
    return await take_turns(run, story)


async def _finish(run: Run, story: Story, end: _End, batch: Batch | None) -> Result:
    """Call the last hooks and tell everybody how the run has ended; return its result, or raise its error."""
    run.outcome = run.result(end.status, end.error)
    try:
        await _last_hooks(run, end)
        run.outcome = run.result(end.status, end.error)
        await _tell_end(run, end, batch)
    finally:
        run.outcome = run.result(end.status, end.error)
        story.ends(end.status, end.error)
        if end.error is not None:
            with contextlib.suppress(AttributeError):  # an exception of somebody's own may have no room for it
                end.error.result = run.outcome  # type: ignore[attr-defined] # AlloyError has it
    if end.error is not None and end.status != "halted":
        raise end.error
    return run.outcome


async def _last_hooks(run: Run, end: _End) -> None:
    """Outside of the run's deadline: an error may be the last thing there was time for."""
    if isinstance(end.error, ProviderError):
        try:
            await run.hooks.fire("on_error", run.view, end.error)
        except Halted as halted:
            end.status, end.error = "halted", halted
        except Exception as caught:  # noqa: BLE001 - raised by `_finish`
            end.error = caught
    try:
        await _end_session(run)
    except Halted:  # there is nothing left to halt
        logger.info("a session_end hook halted a run that was over")
    except Exception as caught:
        if end.error is None:
            end.status, end.error = "error", caught
        else:
            logger.exception("a session_end hook raised, in a run that has ended with an error already")


async def _end_session(run: Run) -> None:
    """Call the last hooks, of a cancelled run too: these have a moment then."""
    if run.hooks.has("session_end"):
        cancelled = trio.current_effective_deadline() == -math.inf
        grace = run.config.cancel_grace if cancelled else math.inf
        with trio.CancelScope(shield=cancelled, deadline=trio.current_time() + grace):
            await run.hooks.fire("session_end", run.view)


def _tell_cancelled(run: Run, story: Story, batch: Batch | None) -> None:
    ends = [] if batch is None else batch.cut_ends()
    first = run.emitter.emit_nowait(*ends, RunEnd("cancelled", run.turns, run.account.usage))
    if batch is not None:
        batch.number_ends(first)
    run.outcome = run.result("cancelled")
    story.ends("cancelled", None)


async def _tell_end(run: Run, end: _End, batch: Batch | None) -> None:
    """Emit the last events. A run whose time is up does not wait for a listener for ever."""
    ends = [] if batch is None else batch.cut_ends()
    last = RunEnd(end.status, run.turns, run.account.usage, None if end.error is None else str(end.error))
    with trio.move_on_after(run.config.cancel_grace if end.status == "timed_out" else math.inf):
        first = await run.emitter.emit(*ends, last)
        if batch is not None:
            batch.number_ends(first)
