"""Anthropic's wire."""

from __future__ import annotations

import json

from fuzz_kit import check_wire
from test_anthropic import MESSAGES, as_stream, sse

from alloy_trio.providers import Anthropic

WIRE = Anthropic(model="m", api_key="k")
SEEDS = [
    *(json.dumps(message).encode() for message in MESSAGES.values()),
    *(sse(as_stream(message)) for message in MESSAGES.values()),
    sse([{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]),
]


def check(data: bytes) -> None:
    """Raise what is no error of ours."""
    check_wire(WIRE, data)
