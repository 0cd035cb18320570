"""Supervision as in OTP, for any Trio service: children that start in order, stop in reverse, and are started again."""

from __future__ import annotations

from .._util import export as _export
from ._events import ChildExited as ChildExited
from ._events import ChildRestarted as ChildRestarted
from ._events import ChildStarted as ChildStarted
from ._events import Overdue as Overdue
from ._events import SupervisorEvent as SupervisorEvent
from ._registry import Registry as Registry
from ._spec import ChildSpec as ChildSpec
from ._spec import ExitReason as ExitReason
from ._spec import InvalidChildSpec as InvalidChildSpec
from ._spec import NameTaken as NameTaken
from ._spec import RestartLimitExceeded as RestartLimitExceeded
from ._supervisor import ChildInfo as ChildInfo
from ._supervisor import Supervisor as Supervisor
from ._supervisor import open_supervisor as open_supervisor

__all__ = [
    "ChildExited",
    "ChildInfo",
    "ChildRestarted",
    "ChildSpec",
    "ChildStarted",
    "ExitReason",
    "InvalidChildSpec",
    "NameTaken",
    "Overdue",
    "Registry",
    "RestartLimitExceeded",
    "Supervisor",
    "SupervisorEvent",
    "open_supervisor",
]

_export(globals(), __all__)
