"""
Thousands of requests at once, many of them cancelled, each where it hurts: no answer is swapped, cut or lost, and nothing is left.

Each request has a token, and the answer is made of that token. The server reports how far a request has come, so that a cancel
falls just there: when all of it was read, behind the head, in the middle of the body. Cancels in the connect, the handshake and
the upload come some checkpoints after the beginning.

`ALLOY_TRIO_CHURN=100000` sets the number of requests.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import sys
from typing import TYPE_CHECKING, Any

import attrs
import httpx
import pytest
import trio
import trio.testing
from test_http import DONE, STOP, chunk, delta, event, http, provider, serving, whole
from test_transport import HERE, _no_proxy, certified, counts, pool, trusting

from alloy_trio import Message
from alloy_trio.events import TextDelta
from alloy_trio.providers import Request, TrioTransport
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from test_http import Connection, Handler

    from alloy_trio.providers import OpenAICompat

__all__ = ["_no_proxy"]  # a fixture for here, too

RUNS = int(os.environ.get("ALLOY_TRIO_CHURN", "2400" if "coverage" in sys.modules else "6000"))
AT_ONCE = 100
TOKEN = re.compile(rb"<(\d+)>")
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"


class Left(Exception):
    """A consumer that has seen enough."""


@attrs.define(eq=False)
class Plan:
    """One request: how it is asked, how it is answered, and what befalls it."""

    token: int
    is_streaming: bool
    is_tls: bool
    shape: str  # of the answer
    fate: str
    when: int  # after so many checkpoints, or events
    is_closed: bool  # the server closes the connection behind the answer, and has not said so
    size: int  # of the request
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def pieces(self) -> list[str]:
        return [f"{self.token}/{number} " * (1 + self.token % 7) for number in range(4)]

    def reach(self, phase: str) -> None:
        if self.fate == phase:
            self.scope.cancel()


PHASES = ["read", "head", "body"]
FATES = [*["fine"] * 10, *["early"] * 4, *PHASES, "leave", "cancel in emit"]
SHAPES = ["length", "chunks", "chunks", "chunks", "until close", "hints"]


def plans(count: int, seed: int) -> Iterator[Plan]:
    chance = random.Random(seed)
    for token in range(count):
        yield Plan(
            token,
            is_streaming=chance.random() < 0.6,
            is_tls=chance.random() < 0.2,
            shape=chance.choice(SHAPES),
            fate=chance.choice(FATES),
            when=chance.choice([chance.randrange(4), chance.randrange(60)]),
            is_closed=chance.random() < 0.1,
            size=1_000_000 if chance.random() < 0.02 else 10,
        )


# --- The server.


def answering(known: dict[int, Plan]) -> Handler:
    async def handle(connection: Connection) -> None:
        data = b""
        while (end := data.find(b"\r\n\r\n") + 4) > 3 or (data := await _more(connection, data)):
            if end < 4:
                continue
            found = LENGTH.search(data, 0, end)
            assert found
            size = end + int(found[1])
            while len(data) < size:
                if not (data := await _more(connection, data)):
                    return
            asked, data = data[:size], data[size:]
            token = TOKEN.search(asked)
            assert token
            if await _answer(connection, known[int(token[1])]):
                return

    return handle


async def _more(connection: Connection, data: bytes) -> bytes:
    more = await connection.stream.receive_some()
    return data + more if more else b""


async def _answer(connection: Connection, plan: Plan) -> bool:
    """Answer, and return whether that was the last."""
    plan.reach("read")
    if plan.shape == "length":
        data = http(whole(plan.text))
        await connection.send(data[:-20])
        plan.reach("head")
        await trio.lowlevel.checkpoint()
        plan.reach("body")
        await connection.send(data[-20:])
        return plan.is_closed
    is_last = plan.shape == "until close"
    frame = (lambda piece: piece) if is_last else chunk
    await connection.send((HINTS if plan.shape == "hints" else b"") + HEAD)
    await connection.send(b"\r\n" if is_last else b"transfer-encoding: chunked\r\n\r\n")
    plan.reach("head")
    for piece in plan.pieces:
        await connection.send(frame(delta(piece)))
        if plan.token % 3:
            await trio.lowlevel.checkpoint()
    plan.reach("body")
    await connection.send(frame(STOP) + frame(event({"choices": [], "usage": {"prompt_tokens": 1}})) + frame(DONE))
    await connection.send(b"" if is_last else b"0\r\n\r\n")
    return is_last or plan.is_closed


# --- Who asks.


async def ask(by: OpenAICompat, plan: Plan) -> str:
    """Ask, have happen what has to, and return what became of it."""
    seen: list[str] = []

    async def emit(*events: object) -> None:
        seen.extend(each.text for each in events if isinstance(each, TextDelta))
        if plan.fate == "leave" and len(seen) > plan.when % 4:
            raise Left
        if plan.fate == "cancel in emit":
            plan.scope.cancel()
            await trio.lowlevel.checkpoint()

    request = Request(messages=(Message.user(f"<{plan.token}>" + "x" * plan.size),))
    async with trio.open_nursery() as nursery:
        if plan.fate == "early":
            nursery.start_soon(_cancel_after, plan)
        with plan.scope, contextlib.suppress(Left):
            response = await (by.stream(request, emit) if plan.is_streaming else by.complete(request))
            nursery.cancel_scope.cancel()
            assert response.message.text == plan.text
            assert not plan.is_streaming or "".join(seen) == plan.text
            return "answered"
        nursery.cancel_scope.cancel()
    assert plan.text.startswith("".join(seen))
    assert plan.fate != "fine"
    return "cancelled" if plan.scope.cancelled_caught else "left"


async def _cancel_after(plan: Plan) -> None:
    for _ in range(plan.when):
        await trio.lowlevel.checkpoint()
    plan.scope.cancel()


async def churn(count: int, seed: int, **client: Any) -> dict[str, int]:
    """Ask so often, and return how often what became of it."""
    known: dict[int, Plan] = {}
    became = {"answered": 0, "cancelled": 0, "left": 0}
    given = plans(count, seed)

    async with (
        serving(answering(known), seconds=120) as plain,
        serving(answering(known), seconds=120, tls=certified(*HERE)) as safe,
    ):
        by = {False: provider(plain.url, **client), True: provider(safe.url, **(client or {"ssl_context": trusting()}))}

        async def work() -> None:
            for plan in given:
                plan.is_closed &= not client  # it races with the next request, and over httpx no POST is sent twice
                known[plan.token] = plan
                became[await ask(by[plan.is_tls], plan)] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(work)
        for plan in plans(40, seed):
            plan.fate = "fine"
            plan.is_closed &= not client
            known[plan.token] = plan
            assert await ask(by[plan.is_tls], plan) == "answered"
    return became


async def test_churn() -> None:
    with assert_no_orphans():
        became = await churn(RUNS, 1)
    assert sum(became.values()) == RUNS
    assert min(became.values()) > RUNS / 100  # each of them happens
    assert counts()[:2] == (0, 0)
    assert len(pool().idle) <= AT_ONCE * 2
    pool()._close_idle(math.inf)
    assert counts() == (0, 0, 0)


@pytest.mark.parametrize("is_ours", [False, True], ids=["httpx", "TrioTransport"])
async def test_churn_with_a_client_of_httpx(is_ours: bool) -> None:
    transport = TrioTransport(verify=trusting()) if is_ours else None
    limits = httpx.Limits(max_connections=None)
    with assert_no_orphans():
        async with httpx.AsyncClient(transport=transport, limits=limits, verify=trusting()) as client:
            became = await churn(600, 2, http_client=client)
    assert sum(became.values()) == 600
