"""What a supervisor is told of a child: frozen data, with OTP's defaults. Checked when it is made, before anything starts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, get_args

import attrs

from .._errors import AlloyError

Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]


class InvalidChildSpec(AlloyError, ValueError):
    """A child specification, or an option of a supervisor, that cannot be right. Nothing was started."""


class NameTaken(AlloyError):
    """The id, or the name in a registry, belongs to somebody already."""


class RestartLimitExceeded(AlloyError):
    """Children were restarted too often in too short a time. They have been stopped; the last error is the cause."""


@attrs.frozen
class ExitReason:
    """
    Why a child has ended.

    Attributes:
        kind: `normal`: it returned. `shutdown`: its supervisor stopped it. `error`: it raised.
        error: What it raised.
    """

    kind: Literal["normal", "shutdown", "error"]
    error: Exception | None = None

    def __str__(self) -> str:
        return self.kind if self.error is None else f"error: {type(self.error).__name__}: {self.error}"


def _refuse(spec: Any, field: attrs.Attribute[Any], value: object, advice: str) -> None:
    name = getattr(spec, "id", None)
    raise InvalidChildSpec(f"child {name!r:.60}: {field.name}={value!r:.100} {advice}")


def _name(spec: Any, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        _refuse(spec, field, value, "has to be a text, and not a blank one")


def _function(spec: Any, field: attrs.Attribute[Any], value: object) -> None:
    if not callable(value):
        _refuse(spec, field, value, "has to be a function")


def _seconds(spec: Any, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        _refuse(spec, field, value, "has to be a number of seconds, 0 or more; math.inf for no limit")


def _restart(spec: Any, field: attrs.Attribute[Any], value: object) -> None:
    if value not in get_args(Restart):
        _refuse(spec, field, value, f"has to be one of {', '.join(get_args(Restart))}")


def _listener(spec: Any, field: attrs.Attribute[Any], value: object) -> None:
    if not is_listener(value):
        _refuse(spec, field, value, f"has to be {_LISTENER}")


_LISTENER: Final = "a plain function, not an async one: it is told while nobody waits"
_optional_function = attrs.validators.optional(_function)


def is_listener(value: object) -> bool:
    """Whether it can be told of something, synchronously; None is nobody."""
    return value is None or (callable(value) and not inspect.iscoroutinefunction(value))


@attrs.frozen(kw_only=True)
class ChildSpec:
    """
    How to start a child, when to start it again, and how to stop it.

    Attributes:
        id: Its name among its siblings.
        start: An async function, which is the child's life. If it has a parameter `task_status`, the child is up when it
            calls `task_status.started(handle)`; else as soon as its task runs.
        args: What `start` is called with.
        restart: `permanent`: always started again. `transient`: after an error only. `temporary`: never.
        shutdown: Seconds that `stop` may take before the child is cancelled, and as many again before an `Overdue` tells of
            it. However long it takes, there is never a second copy beside it.
        start_timeout: Seconds that it may take to be up.
        stop: A function of the handle that asks the child to end; async or not. Without one it is cancelled at once.
        on_exit: Told, synchronously, at each exit.
        on_gone: Told, synchronously, when it has ended and will not be started again by itself.
    """

    id: str = attrs.field(validator=_name)
    start: Callable[..., Any] = attrs.field(validator=_function)
    args: tuple[Any, ...] = attrs.field(default=(), converter=tuple)
    restart: Restart = attrs.field(default="permanent", validator=_restart)
    shutdown: float = attrs.field(default=5.0, validator=_seconds)
    start_timeout: float = attrs.field(default=30.0, validator=_seconds)
    stop: Callable[[Any], object] | None = attrs.field(default=None, validator=_optional_function)
    on_exit: Callable[[ExitReason], object] | None = attrs.field(default=None, validator=_listener)
    on_gone: Callable[[ExitReason], object] | None = attrs.field(default=None, validator=_listener)

    def is_restarted_after(self, reason: ExitReason) -> bool:
        """Whether the child is started again after it has ended like this, by itself."""
        return self.restart == "permanent" or (self.restart == "transient" and reason.kind == "error")

    @property
    def takes_status(self) -> bool:
        """Whether `start` says by itself when the child is up."""
        try:
            return "task_status" in inspect.signature(self.start).parameters
        except (TypeError, ValueError):  # a builtin that does not say
            return False


def check_specs(specs: Any) -> tuple[ChildSpec, ...]:
    """
    Return the children that a supervisor is to begin with.

    Raises:
        InvalidChildSpec: One of them is none, or two have one id.
    """
    if isinstance(specs, str | ChildSpec) or not hasattr(specs, "__iter__"):
        raise InvalidChildSpec(f"children={specs!r:.100} has to be a list of ChildSpec(…), even of one")
    taken: dict[str, ChildSpec] = {}
    for spec in specs:
        if not isinstance(spec, ChildSpec):
            raise InvalidChildSpec(f"{spec!r:.100} is no ChildSpec: say ChildSpec(id=…, start=…)")
        if spec.id in taken:
            raise InvalidChildSpec(f"two children have the id {spec.id!r}: give one of them another")
        taken[spec.id] = spec
    return tuple(taken.values())


def check_limits(strategy: object, max_restarts: object, within: object, on_event: object) -> None:
    """
    See whether a supervisor can be told this.

    Raises:
        InvalidChildSpec: It cannot.
    """
    if strategy not in get_args(Strategy):
        raise InvalidChildSpec(f"strategy={strategy!r:.100} has to be one of {', '.join(get_args(Strategy))}")
    if not isinstance(max_restarts, int) or isinstance(max_restarts, bool) or max_restarts < 0:
        raise InvalidChildSpec(f"max_restarts={max_restarts!r:.100} has to be a whole number, 0 or more")
    if not isinstance(within, int | float) or isinstance(within, bool) or not 0 < within < math.inf:
        raise InvalidChildSpec(f"within={within!r:.100} has to be a number of seconds above 0")
    if not is_listener(on_event):
        raise InvalidChildSpec(f"on_event={on_event!r:.100} has to be {_LISTENER}")
