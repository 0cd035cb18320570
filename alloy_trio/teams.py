"""Agents that work for each other: an agent as a tool, the same question to several, work handed from one to the next."""

from __future__ import annotations

from ._teams import broadcast as broadcast
from ._teams import delegate as delegate
from ._teams import handoff as handoff
from ._util import export as _export

__all__ = ["broadcast", "delegate", "handoff"]

_export(globals(), __all__)
