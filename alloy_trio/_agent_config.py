"""What an agent is configured with: the options of its runs, and its own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ._config import configure
from ._errors import InvalidOption
from ._options import ELSEWHERE, Options, RunOptions
from ._util import Discreet
from .pubsub._pubsub import PubSub

if TYPE_CHECKING:
    from typing import Unpack

    from ._config import Config
    from ._session import Session
    from .providers._base import Provider
    from .sessions._record import SessionStore


class _OwnOptions(TypedDict, total=False):
    """What an agent takes besides what its runs do; `AgentOptions` says what each is."""

    name: str | None
    session_id: str | None
    max_pending: int
    pubsub: PubSub | None
    subscribe: Iterable[str]
    on_shutdown: Callable[[Session], object] | None
    session_store: SessionStore | None
    on_cancel: Literal["keep", "rollback"]
    approval_timeout: float | None


class AgentOptions(RunOptions, _OwnOptions, total=False):
    """
    The options of an agent: those of its runs, as `RunOptions` has them, and these.

    `timeout` is that of each run. `max_budget_cents` is for all runs of the agent together.

    Attributes:
        name: What it is called in messages, in a supervisor and in a registry.
        session_id: The id of its conversation and of its topics: by default `context["session_id"]`, or a random one.
        max_pending: How many requests of `send_message` may wait (0).
        pubsub: Where results and events are published, under `agent:<session id>:responses` and `…:events`.
        subscribe: Topics, or patterns of them: a text or a user's message that is published there begins a run.
        on_shutdown: Called with the session whenever the agent stops; may be async. What it raises is logged.
        session_store: Where the conversation is written ahead, and read from when the agent starts.
        on_cancel: What becomes of a cancelled request: `keep` what is valid of it, or `rollback` to before it.
        approval_timeout: Seconds that a person may take to approve a call, 0 where nobody is there; None for as long as it takes.
    """


class AgentChanges(Options, _OwnOptions, total=False):
    """The same, where an `AgentConfig` has the provider already."""

    provider: Provider | str


_OWN = frozenset(_OwnOptions.__annotations__)


class AgentConfig:
    """
    The options of an agent, checked: make as many agents of one as you like, `open_agent(config, name="…")`.

    Attributes:
        options: The options of the runs, as they were given.
        name: These, and the rest, as `AgentOptions` has them.
    """

    def __init__(self, **options: Unpack[AgentOptions]) -> None:
        given = Discreet[Any](options)  # what a traceback that shows variables shows of it: names
        del options
        own = {name: given.pop(name) for name in _OWN & given.keys()}
        _check_names(given)
        self.options: dict[str, Any] = given
        self.name: str | None = _text("name", own.get("name"))
        self.session_id: str | None = _text("session_id", own.get("session_id"))
        self.max_pending: int = _count(own.get("max_pending", 0))
        self.pubsub: PubSub | None = _pubsub(own.get("pubsub"))
        self.subscribe: tuple[str, ...] = _topics(own.get("subscribe", ()), self.pubsub)
        self.on_shutdown: Callable[[Session], object] | None = _callback(own.get("on_shutdown"))
        self.session_store: SessionStore | None = _store(own.get("session_store"))
        self.on_cancel: Literal["keep", "rollback"] = _on_cancel(own.get("on_cancel", "keep"))
        self.approval_timeout: float | None = _seconds(own.get("approval_timeout"))
        self.of_run()  # raises what is wrong with it

    def but(self, **options: Any) -> AgentConfig:
        """Return the same with some options changed."""
        options = Discreet(options)
        own = {name: getattr(self, name) for name in _OWN}
        return AgentConfig(**{**self.options, **own, **options})

    def of_run(self, **options: Any) -> Config:
        """Return the configuration of a run, with some of its options changed."""
        options = Discreet({**self.options, **options})
        return configure(options)

    def __repr__(self) -> str:
        return f"<AgentConfig: {self.name or 'without a name'}, {self.options.get('provider')!r:.60}>"


def _check_names(options: dict[str, Any]) -> None:
    known = AgentOptions.__annotations__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            advice = ELSEWHERE.get(name) or f"{f'is it {near[0]}? ' if near else ''}The options are {', '.join(known)}"
            raise InvalidOption(f"unknown option {name!r}: {advice}")


def _text(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise InvalidOption(f"{name}={value!r:.100} has to be a text, and not a blank one")


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InvalidOption(f"max_pending={value!r:.100} has to be a whole number, 0 or more")


def _pubsub(value: Any) -> PubSub | None:
    if value is None or isinstance(value, PubSub):
        return value
    raise InvalidOption(f"pubsub={value!r:.100} has to be a PubSub()")


def _topics(value: Any, pubsub: PubSub | None) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidOption(f"subscribe={value!r:.100} has to be a list of topics, even of one")
    topics = tuple(value)
    if topics and pubsub is None:
        raise InvalidOption("subscribe= is given, and pubsub= is not: there is nothing to subscribe to")
    return topics


def _callback(value: Any) -> Callable[[Session], object] | None:
    if value is None or callable(value):
        return value  # type: ignore[no-any-return] # as callable as it gets
    raise InvalidOption(f"on_shutdown={value!r:.100} has to be a function of the session")


def _store(value: Any) -> SessionStore | None:
    if value is None or (
        not isinstance(value, type)
        and all(callable(getattr(value, name, None)) for name in ("load", "append", "rewrite"))
    ):
        return value
    raise InvalidOption(
        f"session_store={value!r:.100} is no store: give a MemoryStore(), or one that is open: async with JSONLStore(…) as store"
    )


def _on_cancel(value: Any) -> Literal["keep", "rollback"]:
    if value in {"keep", "rollback"}:
        return value  # type: ignore[no-any-return] # one of the two
    raise InvalidOption(f'on_cancel={value!r:.100} has to be "keep" or "rollback"')


def _seconds(value: Any) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf):
        return value
    raise InvalidOption(f"approval_timeout={value!r:.100} has to be a number of seconds, or None for no limit")


def freeze(config: AgentConfig | None, options: dict[str, Any]) -> AgentConfig:
    """
    Return one configuration: a given one, options, or a given one with some options changed.

    Raises InvalidOption for what is none.
    """
    if config is None:
        return AgentConfig(**options)
    if not isinstance(config, AgentConfig):
        raise InvalidOption(f"{config!r:.100} is no AgentConfig: make one of the options, AgentConfig(provider=…)")
    return config.but(**options) if options else config
