"""Where a scenario is run, and how large."""

from __future__ import annotations

import sys
from typing import Literal, TypeAlias

import attrs

Side: TypeAlias = Literal["ours", "bare"]
Figures: TypeAlias = dict[str, float]  # by name, with the unit behind a comma: "a turn, µs"

ALL = "*"  # the name of a yardstick for all figures of a scenario

SIDES: tuple[Side, ...] = ("ours", "bare")


@attrs.frozen
class Place:
    """
    What a scenario is told.

    Attributes:
        side: Whether to measure alloy_trio or the yardstick.
        url: The server's, without `/v1`; empty where the scenario needs none.
        authority: The file of the certificate to trust, if that is TLS.
        scale: What all counts are multiplied by.
    """

    side: Side
    url: str = ""
    authority: str = ""
    scale: float = 1.0

    @property
    def host(self) -> str:
        """Host and port."""
        return self.url.partition("//")[2]

    def count(self, full: int, least: int = 1) -> int:
        """Return a count in the scale that was asked for."""
        return max(least, round(full * self.scale))


def say(text: str) -> None:
    """Tell the person who waits how far it is, apart from the output."""
    print(text, file=sys.stderr, flush=True)
