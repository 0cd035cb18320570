"""Middlewares that keep a model from doing what somebody else has told it to."""

from __future__ import annotations

from ._guards import AskAfterData as AskAfterData
from ._guards import has_outside_data as has_outside_data
from ._util import export as _export

__all__ = ["AskAfterData", "has_outside_data"]

_export(globals(), __all__)
