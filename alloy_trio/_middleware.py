"""
Middleware: code of the user's at named places of a run, and what it may see and change there.

    session_start
      ┌► before_completion ──► the model answers ──► calls? ──► after_tool_request ──► before_tool_call, for each call
      │                                               │                                              │
      └──────────────────────────────────────────────)(──────────────────── after_tool_execution ◄── the tools run
                                                      └► no more calls: after_completion
    session_end

Beside the path: `on_error` when the provider has failed, `on_context_overflow` when the prompt was too long for it,
`after_compaction` when the conversation was made shorter.

Several middlewares form a chain: each hook calls them in the order in which they were given. One that raises `Halted` ends the
run with status `halted`, and those behind it are not called; one that raises anything else fails the run with that. What was
changed until then stays.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from ._budget import BudgetExhausted
from ._errors import Halted, InvalidOption
from ._events import ApprovalRequested, Custom
from ._gate import BlockCall, EditCall
from ._messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from decimal import Decimal

    from ._gate import Verdict
    from ._messages import ToolUse
    from ._result import Result
    from ._session import Session
    from ._state import Run
    from ._usage import Usage
    from .providers._base import Request, Response
    from .tools._tool import Tool


OnCompaction: TypeAlias = "Callable[[tuple[Message, ...], RunState], object]"


class RunState:
    """
    A run while it is under way, as a middleware sees it.

    What is read here is up to date at every hook. What a hook may change: `messages`, `metadata` and `context`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def messages(self) -> tuple[Message, ...]:
        """
        The conversation so far. Assign another to change it.

        It has to be a valid history: the user begins, each call is answered in the next message, results stand only behind
        their calls. What is
        only appended keeps prompt caches and sealed reasoning; any other change makes the provider read everything anew,
        and reasoning so far is not sent any more. Between `after_tool_request` and the end of the tools the answer with
        the calls has to stay the last message: their results will stand behind it.

        Raises, when assigned, `InvalidOption` for what is none; then nothing has changed.
        """
        return self._run.history.messages

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        self._run.history.replace(self._with_calls(tuple(messages)))
        self._run.commit()

    def _with_calls(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return a conversation if it still has, at its end, the calls that are about to run."""
        if self._run.batch is not None and _calls_at_end(messages) != _calls_at_end(self.messages):
            raise InvalidOption("the last message asks for tools that are about to run: it has to stay the last")
        return messages

    @property
    def metadata(self) -> dict[str, Any]:
        """What goes into `Result.metadata`: a hook may add to it. JSON data."""
        return self._run.metadata

    @property
    def context(self) -> dict[str, Any]:
        """The run's own copy of what the user gave as `context=`, which tools see too: a hook may add to it."""
        return self._run.context

    @property
    def deps(self) -> Any:
        """What the user gave as `deps=`, of whatever type it is."""
        return self._run.config.deps

    @property
    def session(self) -> Session:
        """The conversation as it is kept: its id, the usage of all runs, its metadata."""
        return self._run.session

    @property
    def provider(self) -> str:
        """The name of the provider that is asked first."""
        return self._run.origin[0]

    @property
    def model(self) -> str | None:
        """Its model, if it says."""
        return self._run.origin[1]

    @property
    def system_prompt(self) -> str | None:
        """The instructions ahead of the conversation."""
        return self._run.config.system_prompt

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools that the model may ask for, by name."""
        return MappingProxyType(self._run.config.tools)

    @property
    def max_output_tokens(self) -> int | None:
        """The user's cap on an answer, in tokens."""
        return self._run.config.max_output_tokens

    @property
    def turns(self) -> int:
        """How many answers of the model the run has taken."""
        return self._run.turns

    @property
    def stop_reason(self) -> str | None:
        """Why the model stopped, the last time it did."""
        return self._run.stop_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the run so far, those of failed attempts included."""
        return self._run.account.usage

    @property
    def cost_cents(self) -> Decimal | None:
        """What the run and its sub-agents have cost so far, in cents; None if that is not known."""
        return self._run.cost_cents

    @property
    def context_tokens(self) -> int:
        """How large a prompt the model takes, in tokens."""
        return self._run.config.context_tokens

    @property
    def outcome(self) -> Result | None:
        """How the run has ended, for `on_error` and `session_end`; None while it goes on."""
        return self._run.outcome

    @property
    def estimated_tokens(self) -> int:
        """How large the next prompt is, estimated: instructions, tools and conversation, in tokens."""
        return self._run.estimated_tokens

    @property
    def on_compaction(self) -> OnCompaction | None:
        """What the user gave as `on_compaction=`, for whoever makes the conversation shorter."""
        return self._run.config.on_compaction

    async def approval(self, call: ToolUse) -> BlockCall | EditCall | None:
        """
        Wait for a person to decide on a call: `agent.approve` lets it run, maybe with another input, `agent.deny` does not.

        For `before_tool_call`, which may return the verdict as it is. It takes as long as it takes, or the agent's
        `approval_timeout`; neither the run's `timeout` nor the tool's goes on meanwhile. A cancel ends it.

        Raises:
            InvalidOption: The run is no agent's, so there is nobody to ask.
        """
        request = ApprovalRequested(call.id, call.name, call.input)
        return await self._run.controls.ask(call, lambda: self._run.emitter.emit(request))

    async def ask(self, request: Request) -> Response:
        """
        Ask the run's provider something beside the conversation. It is retried, metered and paid for as a part of the run.

        Raises:
            ProviderError: The provider failed or refused.
        """
        return await self._run.ask(request)

    async def compacted(
        self,
        messages: Iterable[Message],
        kind: Literal["cleared", "summarized", "truncated"],
        *,
        final: bool = True,
    ) -> None:
        """
        Put a shorter conversation in place of the one so far, and let everybody know: as `Compaction` does.

        Args:
            messages: The conversation.
            kind: What was done to it.
            final: Whether that was all: only then `after_compaction` is called.

        Raises what an `after_compaction` hook does.
        """
        await self._run.compacted(self._with_calls(tuple(messages)), kind, final=final)

    async def emit(self, name: str, payload: Mapping[str, Any]) -> None:
        """Send a `Custom` event into the run's events, and wait until it has been taken."""
        await self._run.emitter.emit(Custom(name, dict(payload)))


class Middleware:
    """
    The hooks of a run, none of which does anything: derive from it, and define those you need.

    Any object with some of these methods will do as well. A hook that raises `Halted` ends the run; one that raises
    anything else fails it, with what was done so far in the error's `.result`.
    """

    async def session_start(self, state: RunState) -> None:
        """The run begins; nothing was asked yet. For an agent: the agent begins."""

    async def before_completion(self, state: RunState) -> None:
        """The model is about to be asked."""

    async def after_completion(self, state: RunState) -> None:
        """
        The model has given its final answer, which asks for no more tools.

        With a user's message appended to `state.messages`, or put in the answer's place, the run goes on.
        """

    async def after_tool_request(self, state: RunState) -> None:
        """The model has asked for tools. To look at single calls, or to stop one, there is `before_tool_call`."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        """
        Say whether a call may run: None lets it, `BlockCall` refuses it, `EditCall` changes its input.

        Asked for each call of an answer, in order, before any of them starts; not for calls that cannot run (an unknown
        tool, an input that does not fit). It may take its time: no time-out of the call runs yet.
        """

    async def after_tool_execution(self, state: RunState) -> None:
        """The tools have ended, and their results are the last message."""

    async def on_error(self, state: RunState, error: Exception) -> None:
        """The provider has failed, and the run is about to end with that error."""

    async def on_context_overflow(self, state: RunState, error: Exception) -> None:
        """The provider has refused the prompt as too long. If `state.messages` has changed behind this, it is asked once more."""

    async def after_compaction(self, state: RunState) -> None:
        """The conversation was made shorter."""

    async def session_end(self, state: RunState) -> None:
        """
        The run is over, however it ended: the last thing that happens. For an agent: the agent stops.

        A cancel of the run reaches it `cancel_grace` seconds late, and it may end as long behind the run's `timeout`.
        """


_ENDS = frozenset({"session_start", "session_end"})
_CLOSE = 0.85  # how alike two names are, of which one is the other misspelled
_HOOKS = tuple(name for name in vars(Middleware) if not name.startswith("_"))


@attrs.frozen
class Hooks:
    """The hooks of all middlewares of a run, by name, in order."""

    _by_name: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, middlewares: Sequence[object], *, own_ends: bool = True) -> Hooks:
        """Collect what each of them defines; without those of a session's ends where these are an agent's."""
        names = _HOOKS if own_ends else [name for name in _HOOKS if name not in _ENDS]
        found = {name: [hook for each in middlewares if (hook := _hook(each, name))] for name in names}
        return cls({name: hooks for name, hooks in found.items() if hooks})

    def has(self, name: str) -> bool:
        """Whether anybody has that hook."""
        return name in self._by_name

    async def fire(self, name: str, *args: object) -> None:
        """Call a hook of all, in order. Raises what one raises, and TypeError where one returns anything."""
        for hook in self._by_name.get(name, ()):
            answer = await _call(hook, *args)
            if answer is not None:
                advice = "a hook changes the state, and returns nothing"
                if isinstance(answer, BlockCall | EditCall):
                    advice = "only before_tool_call can stop or edit a call"
                raise _wrong(hook, answer, advice)

    async def judge(self, state: RunState, call: ToolUse) -> Verdict:
        """Ask all about a call, in order: each sees what those before it have made of it, and the first to block it decides."""
        edited: EditCall | None = None
        for hook in self._by_name["before_tool_call"]:
            # A copy: what a hook does to the input in place must not change the call in the history.
            seen = attrs.evolve(call, input=copy.deepcopy(call.input))
            verdict = await _call(hook, state, seen)
            match verdict:
                case None if seen != call:
                    raise TypeError(f"{_name(hook)} changed call.input in place: return EditCall(input) instead")
                case None:
                    pass
                case BlockCall():
                    return verdict
                case EditCall():
                    edited, call = verdict, attrs.evolve(call, input=verdict.input)
                case _:
                    raise _wrong(hook, verdict, "it has to be None, BlockCall(reason) or EditCall(input)")
        return edited


async def _call(hook: Callable[..., Any], *args: object) -> Any:
    """Call a hook, async or not. What it raises out of a nursery of its own leaves the group that this has put around it."""
    try:
        answer = hook(*args)
        return await answer if inspect.isawaitable(answer) else answer
    except ExceptionGroup as group:
        failure: Exception = group
        while isinstance(failure, ExceptionGroup) and _says_one_thing(failure):
            failure = failure.exceptions[0]
        if failure is group:
            raise
    raise failure


def _says_one_thing(group: ExceptionGroup[Exception]) -> bool:
    return len(group.exceptions) == 1 or any(group.split(kind)[1] is None for kind in (Halted, BudgetExhausted))


def _wrong(hook: object, answer: object, advice: str) -> TypeError:
    return TypeError(f"{_name(hook)} returned {answer!r:.100}: {advice}")


def _name(hook: object) -> str:
    return f"{getattr(hook, '__qualname__', repr(hook)):.100}"


def _calls_at_end(messages: Sequence[object]) -> Sequence[ToolUse]:
    last = messages[-1] if messages else None
    return last.tool_uses if isinstance(last, Message) else ()


def _hook(middleware: object, name: str) -> Any:
    """Return a hook that does something, or None."""
    found = getattr(middleware, name, None)
    return None if getattr(found, "__func__", found) is getattr(Middleware, name) else found


def checked(middlewares: Any) -> tuple[object, ...]:
    """
    Return the middlewares that a user gave.

    Raises:
        InvalidOption: One of them has none of the hooks, or it is no list.
    """
    if not hasattr(middlewares, "__iter__") or isinstance(middlewares, str):
        raise InvalidOption(f"middleware={middlewares!r:.100} has to be a list of middlewares, even of one")
    taken = tuple(middlewares)
    for each in taken:
        if isinstance(each, type):
            raise InvalidOption(f"middleware has the class {each.__name__}: give an instance of it, {each.__name__}()")
        if not isinstance(each, Middleware) and not any(callable(getattr(each, name, None)) for name in _HOOKS):
            raise InvalidOption(f"middleware has {each!r:.100}, which has none of the hooks: {', '.join(_HOOKS)}")
        for name in _HOOKS:
            if (hook := getattr(each, name, None)) is not None and not callable(hook):
                raise InvalidOption(f"middleware has {each!r:.100}, whose {name} is {hook!r:.100}: make it a function")
        _check_spelling(each)
    return taken


def _check_spelling(middleware: Any) -> None:
    """A hook whose name is misspelled would never be called, and nobody would notice: of a guard, least of all."""
    kind: Any = type(middleware)
    if (found := _misspelled(kind)) is not None:
        name, meant = found
        raise InvalidOption(
            f"{kind.__name__}.{name} is no hook and would never be called: is it {meant}? "
            "Otherwise give it a name that does not look like one"
        )


@functools.cache
def _misspelled(kind: type[Any]) -> tuple[str, str] | None:
    """Return the name of a method that looks like a hook's and is none, and the hook that it looks like."""
    for name in dir(kind):
        if name.startswith("_") or name in _HOOKS or not callable(getattr(kind, name)):
            continue
        near = difflib.get_close_matches(name, _HOOKS, 1, 0.0)
        if name.startswith(("before_", "after_")) or difflib.SequenceMatcher(None, name, near[0]).ratio() >= _CLOSE:
            return name, near[0]
    return None
