"""
What goes wrong between machines, besides what a run raises.

    AlloyError
    ├── RedisUnavailable   Redis refuses, is away, or is full, for longer than we are patient
    ├── RequestPoisoned    the request was given up: each worker that had it has died. It is a dead letter
    ├── WorkerError        an error of a class that is not known here: .kind
    └── StoreError
        └── LeaseLost      somebody else has the session now, or may have it
"""

from __future__ import annotations

from .._errors import AlloyError, StoreError


class RedisUnavailable(AlloyError):
    """Redis refuses, is away, or is full, and was so for as long as `patience=` allows. Nothing that was queued is lost by it."""


class RequestPoisoned(AlloyError):
    """The request was given up: `max_tries` workers have begun it, and none has come to its end. It is among `RedisQueue.dead_letters`."""


class WorkerError(AlloyError):
    """
    An error that a worker's run has raised, of a class that is not known here.

    Attributes:
        kind: The name of its class.
    """

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind: str = kind


class LeaseLost(StoreError):
    """A session's lease has run out, or somebody else has it: nothing more may be written by who had it."""


def unknown(words: str, kind: str) -> Exception:
    """Make an error of a class that is not known here."""
    return WorkerError(words, kind=kind)


MORE: dict[str, type[Exception]] = {kind.__name__: kind for kind in (RedisUnavailable, RequestPoisoned, LeaseLost)}
"""Errors of ours that a worker may send."""
