"""
What is asked of both clients over a socket.

Each function runs one scenario and returns its figures, in CPU time of this process: the server's is not in it, nor what it
makes the client wait. Memory is the growth of the largest size of the process.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import statistics
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import trio

from .bare import Client as Bare

if TYPE_CHECKING:
    from collections.abc import Callable

    from .place import Figures, Place

    Collector: TypeAlias = Literal["as it is", "frozen", "seldom", "frozen, seldom", "off"]

_SELDOM = 50_000  # new objects between two looks of the collector at the youngest; CPython's own: 700 to 2,000
_PAD = "x" * 1000  # what a tool in a long conversation says besides


class Client(Protocol):
    """What both sides can do."""

    async def run(self, model: str) -> None:
        """Ask, run the tools that are asked for, and again, until there is a text."""

    async def stream(self, model: str, chunk: Callable[[], None]) -> None:
        """Ask, and report each delta of text."""


def turns(place: Place) -> Figures:
    """Run one after the other, of five turns with three calls in each."""
    runs = place.count(200)

    async def main() -> Figures:
        client = await _client(place)
        meter = _Meter()
        for _ in range(runs):
            await client.run("turns-5-tools-3")
        return {"a turn, µs": meter.spent() / runs / 5 * 1e6}

    return trio.run(main)


def agents(place: Place, agents: int, collector: Collector = "as it is") -> Figures:
    """Run all at the same time, five turns each, before which the model thinks for 50 ms."""
    many = place.count(agents, 2)

    async def main() -> Figures:
        client = await _client(place)
        _collect(collector)
        meter = _Meter()
        async with trio.open_nursery() as nursery:
            for _ in range(many):
                nursery.start_soon(client.run, "turns-5-tools-3-delay-50")
        return {"an agent's turn, µs": meter.spent() / many / 5 * 1e6, "an agent, kB": meter.grown() / many}

    return trio.run(main)


def streams(place: Place, streams: int, chunks: int, every: int = 0) -> Figures:
    """Read answers that stream, all at the same time: as fast as they come, or with a time between two chunks."""
    many, long = place.count(streams), place.count(chunks, 5)
    model = f"stream-{long}" + (f"-every-{every}" if every else "")

    async def main() -> Figures:
        client, seen = await _client(place), _Seen()
        await client.stream("stream-5", seen)
        seen.count = 0
        meter = _Meter()
        async with trio.open_nursery() as nursery:
            for _ in range(many):
                nursery.start_soon(client.stream, model, seen)
        spent = meter.spent()
        assert seen.count == many * long, f"{seen.count} chunks have come"
        return {"a chunk, µs": spent / seen.count * 1e6}

    return trio.run(main)


def history(place: Place) -> Figures:
    """Run five hundred turns with a tool that says 1 kB; compare the turns near the beginning with those near the end."""
    total = place.count(500, 25)
    at: list[float] = []

    def tool(a: int, b: int) -> str:
        at.append(time.process_time())
        return f"{a + b}{_PAD}"

    async def main() -> Figures:
        client = await _client(place, tool)
        at.clear()
        await client.run(f"turns-{total}-tools-1")
        took = [(after - before) * 1e6 for before, after in itertools.pairwise(at)]
        return {"turn 10, µs": statistics.median(took[:20]), "turn 490, µs": statistics.median(took[-20:])}

    return trio.run(main)


def cancel(place: Place) -> Figures:
    """Cancel two hundred streams at once, in the middle; measure until all tasks are over."""
    many = place.count(200)

    async def main() -> Figures:
        client, seen, ready = await _client(place), 0, trio.Event()

        async def one() -> None:
            heard = 0

            def chunk() -> None:
                nonlocal heard, seen
                heard += 1
                seen += heard == 2
                if seen == many:
                    ready.set()

            await client.stream("stream-100000-every-250", chunk)

        async with trio.open_nursery() as nursery:
            for _ in range(many):
                nursery.start_soon(one)
            await ready.wait()
            meter = _Meter()
            nursery.cancel_scope.cancel()
        return {"a stream, µs": meter.spent() / many * 1e6}

    return trio.run(main)


def idle(place: Place) -> Figures:
    """Keep ten thousand conversations of ten messages."""
    module = importlib.import_module(f"benchmarks.{place.side}")
    many = place.count(10_000)
    module.conversation(0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [module.conversation(each) for each in range(many)]
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"a conversation, kB": taken / len(kept) / 1000}


class _Meter:
    """CPU time and memory from now on."""

    def __init__(self) -> None:
        gc.collect()
        self._size = _largest()
        self._at = time.process_time()

    def spent(self) -> float:
        return time.process_time() - self._at

    def grown(self) -> float:
        """Return by how many kB the process has grown."""
        return _largest() - self._size


class _Seen:
    """A counter of chunks."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def _client(place: Place, tool: Callable[[int, int], str] | None = None) -> Client:
    """Make the client of the side, and let it run once: what is loaded at first use is not a part of any figure."""
    made: type[Any] = Bare if place.side == "bare" else importlib.import_module("benchmarks.ours").Client
    client: Client = made(place, tool or _add)
    for _ in range(3):
        await client.run("turns-3-tools-2")
    return client


def _add(a: int, b: int) -> str:
    return str(a + b)


def _collect(how: Collector) -> None:
    """Set the garbage collector."""
    if "frozen" in how:
        gc.collect()
        gc.freeze()
    if "seldom" in how:
        gc.set_threshold(_SELDOM, 20, 100)
    if how == "off":
        gc.disable()


def _largest() -> float:
    """Return the largest size of the process so far, in kB; 0 where nobody can say."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 0.0
    largest: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1000 if sys.platform == "darwin" else 1)  # bytes there, kB elsewhere
