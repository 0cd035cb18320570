"""
Who is told of what happens in the program: the one list of instruments, and the one global of the package.

Here and not in `_telemetry`, which knows what runs have to tell: supervisors tell of their children, and know nothing of runs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._telemetry import Instrument, TelemetryEvent  # passed on only

logger = logging.getLogger("alloy_trio.telemetry")

instruments: list[Instrument] = []
"""Those that are attached, in the order in which they are told."""


def is_on() -> bool:
    """Whether there is anybody to tell. Asked before an event is made, so that none is made for nobody."""
    return bool(instruments)


def tell(event: TelemetryEvent) -> None:
    """Hand `event` to every instrument, in the order they were added. Never raises what an instrument raises, but logs it."""
    for instrument in tuple(instruments):
        try:
            instrument.handle(event)
        except Exception:
            logger.exception("instrument %s raised on %s", type(instrument).__qualname__, type(event).__name__)
