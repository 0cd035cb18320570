"""What a supervisor tells of its children, to its `on_event` and to the program's instruments."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from ._spec import ExitReason


@attrs.frozen(kw_only=True)
class ChildStarted:
    """
    A child is up, for the first time or again.

    Attributes:
        supervisor: The supervisor's name.
        id: The child's.
        restarts: How often it was started again by now.
    """

    supervisor: str
    id: str
    restarts: int = 0


@attrs.frozen(kw_only=True)
class ChildExited:
    """
    A child has ended, or could not be started.

    Attributes:
        supervisor: The supervisor's name.
        id: The child's.
        reason: Why.
    """

    supervisor: str
    id: str
    reason: ExitReason


@attrs.frozen(kw_only=True)
class ChildRestarted:
    """
    A supervisor is about to start children again.

    Attributes:
        supervisor: The supervisor's name.
        id: The child whose end is the cause.
        ids: All who are started again, in order.
        reason: Why it ended.
    """

    supervisor: str
    id: str
    ids: tuple[str, ...]
    reason: ExitReason


@attrs.frozen(kw_only=True)
class Overdue:
    """
    A child has been cancelled, and does not end. Its supervisor waits on: never is there a second copy beside a living one.

    Attributes:
        supervisor: The supervisor's name.
        id: The child's.
        seconds: How long it has been asked to by now.
    """

    supervisor: str
    id: str
    seconds: float


SupervisorEvent: TypeAlias = ChildStarted | ChildExited | ChildRestarted | Overdue
"""What a supervisor tells of."""
