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
from ._controls import Controls
from ._emitter import Emitter
from ._errors import Halted, InvalidOption, ProviderError, RunTimeout, UnknownPrice
from ._estimate import Size
from ._events import RunEnd, RunStart
from ._history import History
from ._messages import Message
from ._middleware import Hooks
from ._result import Status
from ._state import Run
from ._story import Story
from ._turns import take_turns
from ._util import digest, single
from .providers._base import provider_model, provider_name, terms_of
from .providers._metered import fixed_part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._config import Config
    from ._emitter import Sink
    from ._events import Event
    from ._result import Result
    from ._session import Session
    from .tools._executor import Batch


logger = logging.getLogger("alloy_trio")


def question(config: Config, prompt: object) -> Message | None:
    """
    Return the message that a prompt is, if there is one.

    Raises:
        InvalidOption: It is none, or there is nothing to ask: no prompt, and no messages.
    """
    match prompt:
        case str() if not prompt.strip():
            raise InvalidOption("the prompt is blank: say something, or leave it out to go on with messages=")
        case str():
            return Message.user(prompt)
        case Message(role="user"):
            return prompt
        case None if config.session.messages:
            return None
        case None:
            raise InvalidOption("nothing to ask: give a prompt, or messages= to go on with")
    raise InvalidOption(f"the prompt is {prompt!r:.100}: it has to be text, or a user's message")


def begin(config: Config, prompt: object, sink: Sink | None = None, *, streaming: bool) -> Run:
    """Return a run that has not asked anything yet. Raises what `question` does."""
    return prepare(config, question(config, prompt), config.correlation_id, sink, streaming=streaming)


def prepare(
    config: Config,
    asked: Message | None,
    ids: str,
    sink: Sink | None = None,
    *,
    streaming: bool,
    controls: Controls | None = None,
    own_ends: bool = True,
) -> Run:
    """
    Return a run that has not asked anything yet.

    `ids` is its correlation id. `own_ends`: whether it fires `session_start` and `session_end`; an agent's runs do not.
    """
    provider = config.provider
    fixed = fixed_part(config.system_prompt, tuple(config.tools.values()))
    prefix = digest(f"{provider_model(provider)}\0".encode() + (fixed if terms_of(provider).seals_prefix else b""))
    providers = (provider, *config.fallback_providers)
    history = _history(config.session, asked, providers, anew=config.session.prefix not in {None, prefix})
    metered = config.metered(streaming=streaming)
    return Run(
        config=config,
        session=config.session,
        history=history,
        emitter=Emitter(ids, config.on_event, sink),
        metered=metered,
        provider=config.chain(metered),
        origin=(provider_name(provider), provider_model(provider), getattr(provider, "origin", None)),
        fixed_size=Size(len(fixed)),
        prefix=prefix,
        account=Account(session_id=config.session.id, correlation_id=ids),
        hooks=Hooks.of(config.hooked, own_ends=own_ends),
        controls=Controls() if controls is None else controls,
        context=dict(config.context),
        streaming=streaming,
    )


def _history(session: Session, asked: Message | None, providers: Sequence[object], *, anew: bool) -> History:
    """Return the conversation with the question; `anew`: in another epoch, since something else stands ahead of it."""
    history = session._kept.take(session.messages) or History(session.messages)  # noqa: SLF001 - one run has it at a time
    history.keep_transcripts(providers)
    history.rewrites = 0
    if anew and any(message.role == "assistant" for message in session.messages):
        first, *rest = session.messages
        history.replace((attrs.evolve(first, epoch=history.epoch + 1), *rest))
    if asked is not None:
        history.append(asked)
    return history


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
    # A stream is made a moment before its task runs: another run may have ended in between.
    if session._running or session.messages is not run.began_from:  # noqa: SLF001 - the session's half of this guard
        busy = InvalidOption("this session is in another run just now: wait for it, or give this run one of its own")
        run.ends_as("error", busy)
        run.emitter.has_ended = True
        raise busy
    session._running = True  # noqa: SLF001 - as above
    cents = run.config.max_budget_cents
    try:
        with on_account(run.account, None if cents is None else Budget(cents=cents)):
            _check_prices(run)
            return await _run(run)
    finally:
        session._running = False  # noqa: SLF001 - as above
        session._kept.put(run.history)  # noqa: SLF001 - the next run goes on with it


def _check_prices(run: Run) -> None:
    try:
        for each in run.metered:
            each.check()
    except UnknownPrice as error:
        run.ends_as("error", error)
        error.result = run.outcome
        run.emitter.has_ended = True
        raise


@attrs.define
class _End:
    """How a run has ended; its last hooks may change that."""

    status: Status
    error: Exception | None = None
    reason: str | None = None  # why there was no money


async def _run(run: Run) -> Result:
    config, story = run.config, Story(run, streaming=run.streaming)
    end: _End | None = None
    timeout = math.inf if config.timeout is None else config.timeout
    scope = run.controls.deadline = trio.CancelScope(deadline=trio.current_time() + timeout)
    try:
        with scope:
            await trio.lowlevel.checkpoint()
            end = _End(await _start(run, story))
    except Exception as caught:  # noqa: BLE001 - raised again below, with the result
        end = _ended_by(single(caught))  # the deadline's part of a group has been taken out by now
    finally:
        batch = run.cut("timed_out" if scope.cancelled_caught else "cancelled")
        run.close()
        if end is None and not scope.cancelled_caught:  # a cancel from outside, on its way
            await _finish(run, story, _End("cancelled"), batch, scope.deadline)
    if end is None and run.account.waited_until >= scope.deadline:
        end = _End("budget_exceeded", reason=f"the timeout of {timeout:g} seconds passed while it waited for money")
    elif end is None:
        end = _End("timed_out", RunTimeout(f"the run took longer than its timeout of {timeout:g} seconds"))
    await _finish(run, story, end, batch, scope.deadline)
    result = run.outcome
    assert result is not None
    if end.error is not None and end.status != "halted":
        raise end.error
    return result


def _ended_by(error: Exception) -> _End:
    match error:
        case BudgetExhausted():
            return _End("budget_exceeded", reason=str(error))
        case Halted():
            return _End("halted", error)
        case _:
            return _End("error", error)


async def _start(run: Run, story: Story) -> Status:
    run.commit()
    await run.emitter.emit(RunStart(run.session.id, run.origin[0], run.origin[1]))
    await run.hooks.fire("session_start", run.view)
    return await take_turns(run, story)


async def _finish(run: Run, story: Story, end: _End, batch: Batch | None, deadline: float) -> None:
    """Call the last hooks, which may change the end, and tell everybody of it."""
    if end.reason is not None:
        run.metadata["budget_exceeded"] = end.reason
    run.ends_as(end.status, end.error)
    try:
        await _settle(run, end, deadline)
        if end.status == "timed_out":
            with trio.move_on_after(run.config.cancel_grace):
                await _tell_end(run, end, batch, run.emitter.emit_last)
        elif end.status != "cancelled":
            await _tell_end(run, end, batch, run.emitter.emit_last)
    finally:
        if not run.emitter.has_ended:
            _tell_end_nowait(run, end, batch)
        run.ends_as(end.status, end.error)
        outcome = run.outcome  # made here: what it is made of goes on to the next run
        story.ends(end.status, end.error)
        if end.error is not None:
            with contextlib.suppress(AttributeError):  # an exception of somebody's own may have no room for it
                end.error.result = outcome  # type: ignore[attr-defined] # AlloyError has it


async def _settle(run: Run, end: _End, deadline: float) -> None:
    """Call the last hooks, which may change the end; then it is decided, in one step: a cancel that came before has won."""
    decided = end.status == "cancelled"
    try:
        try:
            await _call_on_error(run, end, deadline)
        finally:
            await _call_session_end(run, end, deadline)
        if not decided:
            await trio.lowlevel.checkpoint_if_cancelled()
            decided = True
    finally:
        if not decided and end.status not in {"error", "timed_out"}:
            end.status, end.error = "cancelled", None
        run.commit()
        run.ends_as(end.status, end.error)
        run.controls.settle()


async def _call_on_error(run: Run, end: _End, deadline: float) -> None:
    if not isinstance(end.error, ProviderError) or not run.hooks.has("on_error"):
        return
    try:
        with trio.move_on_at(max(deadline, trio.current_time()) + run.config.cancel_grace):
            await run.hooks.fire("on_error", run.view, end.error)
    except BudgetExhausted:
        logger.info("there was no money left for an on_error hook")
    except Halted as halted:
        end.status, end.error = "halted", halted
    except Exception as caught:  # noqa: BLE001 - it is the error from now on
        end.error = caught


async def _call_session_end(run: Run, end: _End, deadline: float) -> None:
    """Call the last hooks: they may end beside the run's deadline, or a cancel from outside, by `cancel_grace` seconds."""
    if not run.hooks.has("session_end"):
        return
    grace = run.config.cancel_grace
    if end.status == "cancelled":  # that is on its way, and goes on as it came
        with trio.CancelScope(shield=True, deadline=trio.current_time() + grace) as shield:
            await _fire_session_end(run, end)
    else:
        shield = trio.CancelScope(shield=True, deadline=max(deadline, trio.current_time()) + grace)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def watch() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    shield.deadline = min(shield.deadline, trio.current_time() + grace)

            with shield:
                await _fire_session_end(run, end)
            nursery.cancel_scope.cancel()
    if shield.cancelled_caught:
        logger.warning("session_end was cut short: it may take cancel_grace=%g seconds behind the end", grace)


async def _fire_session_end(run: Run, end: _End) -> None:
    try:
        await run.hooks.fire("session_end", run.view)
    except BudgetExhausted:
        if end.status == "completed":
            end.status = "budget_exceeded"
    except Halted:  # there is nothing left to halt
        logger.info("a session_end hook halted a run that was over")
    except Exception as caught:
        if end.status in {"error", "timed_out", "cancelled"}:
            logger.exception("a session_end hook raised, in a run that ends as %s already", end.status)
        else:
            end.status, end.error = "error", caught


async def _tell_end(run: Run, end: _End, batch: Batch | None, emit: Callable[..., Awaitable[int]]) -> None:
    first = await emit(*_last_events(run, end, batch))
    if batch is not None:
        batch.number_ends(first)


def _tell_end_nowait(run: Run, end: _End, batch: Batch | None) -> None:
    first = run.emitter.emit_nowait(*_last_events(run, end, batch))
    if batch is not None:
        batch.number_ends(first)


def _last_events(run: Run, end: _End, batch: Batch | None) -> list[Event]:
    error = None if end.error is None else str(end.error)
    ends: list[Event] = [] if batch is None else [*batch.cut_ends()]
    return [*ends, RunEnd(end.status, run.turns, run.account.usage, error)]
