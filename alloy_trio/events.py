"""The events of a run, as a closed union made for `match`, and the envelope they travel in."""

from __future__ import annotations

from ._events import ApprovalRequested as ApprovalRequested
from ._events import BlockEnd as BlockEnd
from ._events import Compacted as Compacted
from ._events import Custom as Custom
from ._events import Envelope as Envelope
from ._events import Event as Event
from ._events import Retry as Retry
from ._events import RunEnd as RunEnd
from ._events import RunStart as RunStart
from ._events import Steered as Steered
from ._events import TextDelta as TextDelta
from ._events import ThinkingDelta as ThinkingDelta
from ._events import ToolEnd as ToolEnd
from ._events import ToolInputDelta as ToolInputDelta
from ._events import ToolStart as ToolStart
from ._events import TurnEnd as TurnEnd
from ._events import TurnStart as TurnStart
from ._util import export as _export

__all__ = [
    "ApprovalRequested",
    "BlockEnd",
    "Compacted",
    "Custom",
    "Envelope",
    "Event",
    "Retry",
    "RunEnd",
    "RunStart",
    "Steered",
    "TextDelta",
    "ThinkingDelta",
    "ToolEnd",
    "ToolInputDelta",
    "ToolStart",
    "TurnEnd",
    "TurnStart",
]

_export(globals(), __all__)
