"""What there is no other client for is measured against what Trio itself takes."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from typing import TYPE_CHECKING

import trio

from .place import ALL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .place import Figures, Place


def checkpoint(place: Place) -> Figures:
    """Measure a checkpoint, in µs: the least that Trio does for a task."""
    times = place.count(20_000, 100)

    async def main() -> Figures:
        best = math.inf
        for _ in range(5):
            started = time.process_time()
            for _ in range(times):
                await trio.lowlevel.checkpoint()
            best = min(best, time.process_time() - started)
        return {ALL: best / times * 1e6}

    return trio.run(main)


def tasks(place: Place) -> Figures:
    """Measure what a task takes that waits at a channel, in kB."""
    many = place.count(1000)

    async def wait(*, task_status: trio.TaskStatus[object]) -> None:
        send, receive = trio.open_memory_channel[object](10)
        task_status.started(send)
        await receive.receive()

    async def main() -> Figures:
        async with trio.open_nursery() as nursery:
            await nursery.start(wait)
            taken = await kept(many, lambda: nursery.start(wait))
            nursery.cancel_scope.cancel()
        return {ALL: taken}

    return trio.run(main)


async def kept(many: int, make: Callable[[], Awaitable[object]]) -> float:
    """Return the kB that one of so many takes, as Python counts them."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = [await make() for _ in range(many)]
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken / len(made) / 1000
