"""
What the parts of a run cost, in CPU time, with a provider that is a script: no socket, no JSON.

There is no other client to compare these with. Their yardstick is a checkpoint, the least that Trio does for a task.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, TypeAlias

import trio

import alloy_trio
from alloy_trio import Budget, Message, Middleware, Price, RunOptions, RunState, ToolUse, tool
from alloy_trio._history import History
from alloy_trio._instruments import is_on
from alloy_trio.telemetry import Instrument, TelemetryEvent, add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, tool_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .place import Figures, Place

    Job: TypeAlias = Callable[[], Awaitable[object]]

ROUNDS = 5


async def cpu(job: Job, times: int) -> float:
    """Return microseconds of CPU a time, the best of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        gc.collect()
        started = time.process_time()
        for _ in range(times):
            await job()
        best = min(best, (time.process_time() - started) / times)
    return best * 1e6


@tool
async def echo(words: str) -> str:
    """Say it again."""
    return words


class _Looks(Middleware):
    async def before_completion(self, state: RunState) -> None:
        """Do nothing."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> None:
        """Do nothing."""


class _Nothing(Instrument):
    def handle(self, event: TelemetryEvent) -> None:
        """Do nothing."""


def runs(place: Place) -> Figures:
    """Run two turns and one tool: as it is, with a middleware, under a budget."""
    times = place.count(200)

    async def main() -> Figures:
        figures = {"two turns and a tool, µs": await cpu(_run, times)}
        figures["with a middleware, µs"] = await cpu(lambda: _run(middleware=[_Looks()]), times)
        with Budget("1000000"):
            figures["under a budget, µs"] = await cpu(_run, times)
        return figures

    return trio.run(main)


def chunks(place: Place) -> Figures:
    """Stream a thousand chunks: as they are, and metered."""
    count = place.count(1000, 10)

    async def stream() -> None:
        provider = ScriptedProvider(["x" * count], price=Price("3", "15"))  # a chunk each character
        async with alloy_trio.stream("go", provider=provider) as events:
            async for _ in events:
                pass

    async def main() -> Figures:
        figures = {"a chunk, µs": await cpu(stream, 1) / count}
        with Budget("1000000"):
            figures["under a budget, µs"] = await cpu(stream, 1) / count
        return figures

    return trio.run(main)


def telemetry(place: Place) -> Figures:
    """Tell nobody; tell an instrument that does nothing; tell OpenTelemetry, where it is installed."""
    times = place.count(200)

    async def ask() -> None:
        for _ in range(1000):
            is_on()

    async def main() -> Figures:
        seen: list[object] = []
        await alloy_trio.run("go", provider=_provider(), tools=[echo], on_event=seen.append)
        figures = {"is anybody there, µs": await cpu(ask, place.count(100)) / 1000}
        alone = await cpu(_run, times)
        for what, instrument in _instruments():
            add_instrument(instrument)
            figures[f"an event told to {what}, µs"] = (await cpu(_run, times) - alone) / len(seen)
            remove_instrument(instrument)
        return figures

    return trio.run(main)


def messages(place: Place) -> Figures:
    """Append a message, with its size, to a history that is short, and to one that is long."""

    async def append(held: int) -> float:
        messages = [Message.user("What is the weather?"), Message.assistant("I do not know. " * 10)] * (held // 2)
        history = History(messages)

        async def more() -> None:
            history.append(messages[0])

        return await cpu(more, place.count(1000))

    async def main() -> Figures:
        return {f"appended to {held:,}, µs": await append(held) for held in (10, 5000)}

    return trio.run(main)


def _provider() -> ScriptedProvider:
    return ScriptedProvider([tool_call("echo", {"words": "x"}), "done"], price=Price("3", "15"))


async def _run(**options: object) -> None:
    given: RunOptions = {"provider": _provider(), "tools": [echo], **options}  # type: ignore[typeddict-item]
    await alloy_trio.run("go", **given)


def _instruments() -> Iterable[tuple[str, Instrument]]:
    yield "an instrument", _Nothing()
    try:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - may not be there

        from alloy_trio.otel import OTelInstrument  # noqa: PLC0415 - as above
    except ImportError:
        return
    yield "OpenTelemetry", OTelInstrument(tracer_provider=TracerProvider())
