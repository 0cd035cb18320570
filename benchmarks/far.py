"""What it costs that an agent is in another place: both ends of a connection over loopback, in one process. CPU time, as in `inside`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio

import alloy_trio
from alloy_trio.events import TextDelta
from alloy_trio.remote import Address, connect, serve_agents
from alloy_trio.testing import ScriptedProvider

from .inside import ROUNDS, cpu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from alloy_trio import Agent
    from alloy_trio.remote import RemoteAgent

    from .place import Figures, Place

_TOKEN = "a token of the benchmark"  # noqa: S105 - it opens nothing


def remote(place: Place) -> Figures:
    """Chat with an agent here and over a connection; read its state; take a stream of many events."""
    times, chunks = place.count(200), place.count(2000)

    async def main() -> Figures:
        async with _both(["done"] * times * ROUNDS * 2) as (near, far):

            async def here() -> None:
                await near.chat("go")
                await near.reset()

            async def there() -> None:
                await far.chat("go")
                await near.reset()

            figures = {
                "a chat here, µs": await cpu(here, times),
                "over a connection, both ends, µs": await cpu(there, times),
                "its state, µs": await cpu(far.health, times),
            }
        async with _both(["word " * chunks] * ROUNDS) as (_, far):  # a character an event

            async def streamed() -> None:
                async with far.stream_chat("go") as events:
                    assert sum([isinstance(event, TextDelta) async for event in events]) == 5 * chunks

            figures["an event of a stream, µs"] = await cpu(streamed, 1) / (5 * chunks)
        return figures

    return trio.run(main)


@contextlib.asynccontextmanager
async def _both(replies: Sequence[Any]) -> AsyncIterator[tuple[Agent, RemoteAgent]]:
    """Open an agent, and the way to it over a connection."""
    async with alloy_trio.open_agent(provider=ScriptedProvider(list(replies))) as agent, trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Address]) -> None:
            await serve_agents({"it": agent}, "127.0.0.1", 0, _TOKEN, max_rate=1e9, task_status=task_status)

        address = await nursery.start(serve)
        async with connect(address.url, _TOKEN) as remote:
            yield agent, remote.agent("it")
        nursery.cancel_scope.cancel()
