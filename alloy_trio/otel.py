"""OpenTelemetry: spans and metrics of runs, requests and tool calls. Needs the extra: `pip install "alloy_trio[otel]"`."""

from __future__ import annotations

from ._otel import OTelInstrument as OTelInstrument
from ._util import export as _export

__all__ = ["OTelInstrument"]

_export(globals(), __all__)
