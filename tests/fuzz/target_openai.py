"""The Responses wire."""

from __future__ import annotations

import json

from fuzz_kit import check_wire
from test_openai import RICH, called, cut, events_of, refused, reply, said, sse

from alloy_trio.providers import OpenAI

WIRE = OpenAI(model="m", api_key="k")
_ANSWERS = [
    RICH,
    reply(said("Hello")),
    reply(refused("I cannot.")),
    cut("max_output_tokens", said("Once upon"), called('{"city":')),
    reply(status="failed", error={"code": "rate_limit_exceeded", "message": "Slow down."}),
]
SEEDS = [
    *(json.dumps(answer).encode() for answer in _ANSWERS),
    *(sse(events_of(answer)) for answer in _ANSWERS[:4]),
    sse([{"type": "response.failed", "response": _ANSWERS[4]}]),
    sse([{"type": "error", "code": "server_error", "message": "Oh."}]),
]


def check(data: bytes) -> None:
    """Raise what is no error of ours."""
    check_wire(WIRE, data)
