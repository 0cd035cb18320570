"""The Chat Completions wire."""

from __future__ import annotations

import json
import random
from typing import Any

from fuzz_kit import check_wire
from test_openai_compat import answer, as_stream, chunk, function, sse

from alloy_trio.providers import OpenAICompat

WIRE = OpenAICompat(model="m")
_MESSAGES: list[dict[str, Any]] = [
    {"reasoning_content": "Hm.", "content": "Hello ✓", "tool_calls": []},
    {
        "reasoning_content": "",
        "content": None,
        "tool_calls": [function("add", '{"a": 1}'), function("sub", "{}", "call_b")],
    },
]
SEEDS = [
    *(json.dumps(answer(message)).encode() for message in _MESSAGES),
    *(sse(as_stream(message, random.Random(1))) for message in _MESSAGES),
    sse(
        [chunk({"content": "a", "refusal": "no", "annotations": [{"type": "url_citation"}], "images": [{}]}, "length")]
    ),
    sse([{"error": {"message": "the context is too long", "code": 400}}]),
    b'error: {"code":400,"message":"no"}\n\ndata: [DONE]\n\n',
]


def check(data: bytes) -> None:
    """Raise what is no error of ours."""
    check_wire(WIRE, data)
