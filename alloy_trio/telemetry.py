"""What a program's instruments are told of its runs: with `add_instrument`, for logs, metrics and traces of your own."""

from __future__ import annotations

from ._telemetry import CompactionDone as CompactionDone
from ._telemetry import Instrument as Instrument
from ._telemetry import RequestStarted as RequestStarted
from ._telemetry import RequestStopped as RequestStopped
from ._telemetry import RunFailed as RunFailed
from ._telemetry import RunStarted as RunStarted
from ._telemetry import RunStopped as RunStopped
from ._telemetry import TelemetryEvent as TelemetryEvent
from ._telemetry import ToolStarted as ToolStarted
from ._telemetry import ToolStopped as ToolStopped
from ._telemetry import TurnFailed as TurnFailed
from ._telemetry import TurnStarted as TurnStarted
from ._telemetry import TurnStopped as TurnStopped
from ._telemetry import add_instrument as add_instrument
from ._telemetry import remove_instrument as remove_instrument
from ._util import export as _export

__all__ = [
    "CompactionDone",
    "Instrument",
    "RequestStarted",
    "RequestStopped",
    "RunFailed",
    "RunStarted",
    "RunStopped",
    "TelemetryEvent",
    "ToolStarted",
    "ToolStopped",
    "TurnFailed",
    "TurnStarted",
    "TurnStopped",
    "add_instrument",
    "remove_instrument",
]

_export(globals(), __all__)
