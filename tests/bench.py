"""
What the parts of a run cost, in CPU time: `nox -s bench`, or `python tests/bench.py`.

Each line is the best of several rounds in this process. Figures of two versions compare only on the same, quiet machine.
Wires and sockets are not in here: the provider is a script.
"""

from __future__ import annotations

import gc
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import trio
import trio.testing

import alloy_trio
from alloy_trio import Agent, AgentConfig, Budget, Message, Middleware, Price, RunOptions, RunState, ToolUse, tool
from alloy_trio._history import History
from alloy_trio._instruments import is_on
from alloy_trio.pubsub import PubSub, Subscription
from alloy_trio.telemetry import Instrument, TelemetryEvent, add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, tool_call

_ROUNDS = 5

Job: TypeAlias = Callable[[], Awaitable[object]]


@tool
async def echo(words: str) -> str:
    """Say it again."""
    return words


class _Nothing(Instrument):
    def handle(self, event: TelemetryEvent) -> None:
        pass


class _Looks(Middleware):
    async def before_completion(self, state: RunState) -> None:
        """Do nothing."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> None:
        """Do nothing."""


def _provider(*, chunks: int = 0) -> ScriptedProvider:
    reply = "x" * chunks
    return ScriptedProvider([reply] if chunks else [tool_call("echo", {"words": "x"}), "done"], price=Price("3", "15"))


async def _cpu(job: Job, times: int) -> float:
    """Return microseconds of CPU a time."""
    best = float("inf")
    for _ in range(_ROUNDS):
        gc.collect()
        started = time.process_time()
        for _ in range(times):
            await job()
        best = min(best, (time.process_time() - started) / times)
    return best * 1e6


async def _run(**options: object) -> None:
    given: RunOptions = {"provider": _provider(), "tools": [echo], **options}  # type: ignore[typeddict-item]
    await alloy_trio.run("go", **given)


async def _stream(chunks: int = 1000) -> None:
    async with alloy_trio.stream("go", provider=_provider(chunks=chunks)) as events:
        async for _ in events:
            pass


async def _append(held: int, times: int) -> float:
    """Return microseconds for one message more, with its size, in a history of `held` messages."""
    messages = [Message.user("What is the weather?"), Message.assistant("I do not know. " * 10)] * (held // 2)
    history = History(messages)

    async def more() -> None:
        history.append(messages[0])

    return await _cpu(more, times)


def _catalog() -> float:
    """Return the milliseconds in which a fresh interpreter finds its first model."""
    code = (
        "import time\n"
        "from alloy_trio._catalog import builtin_catalog\n"
        "begin = time.perf_counter()\n"
        "assert builtin_catalog().find('openai', 'gpt-6-astra')\n"
        "print((time.perf_counter() - begin) * 1e3)"
    )
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(_ROUNDS)]
    return min(times)


async def _publish(held: int, reading: str) -> float:
    """Return microseconds for one publish to `held` subscribers, who have `room`, `lag`, or wait in `receive`."""
    pubsub, best, times = PubSub(), float("inf"), max(1, 20_000 // held)

    async def read(subscription: Subscription) -> None:
        async for _ in subscription:
            pass

    async with trio.open_nursery() as nursery:
        for each in range(held):
            buffer = times * _ROUNDS if reading == "room" else 64
            subscription = pubsub.subscribe("agent:7:events", f"other:{each}:*", buffer=buffer)
            if reading == "wait":
                nursery.start_soon(read, subscription)
        for _ in range(64 if reading == "lag" else 0):
            pubsub.publish("agent:7:events", 0)
        for _ in range(_ROUNDS):
            spent = 0.0
            for each in range(times):
                if reading == "wait":
                    await trio.testing.wait_all_tasks_blocked()
                started = time.process_time()
                pubsub.publish("agent:7:events", each)
                spent += time.process_time() - started
            best = min(best, spent / times)
        nursery.cancel_scope.cancel()
    return best * 1e6


async def _chat(times: int) -> tuple[float, float]:
    """Return microseconds of CPU for a run of one turn, and for the same as an agent's `chat`: alternating, best of each."""
    bare, chat = float("inf"), float("inf")
    for _ in range(2 * _ROUNDS):
        provider = ScriptedProvider(["done"] * 2 * times)
        bare = min(bare, await _once(lambda p=provider: alloy_trio.run("go", provider=p), times))  # type: ignore[misc]
        async with alloy_trio.open_agent(provider=provider) as agent:
            spent = 0.0
            for _ in range(times):
                started = time.process_time()
                await agent.chat("go")
                spent += time.process_time() - started
                await agent.reset()  # so that the conversation stays as short as that of the run
            chat = min(chat, spent / times * 1e6)
    return bare, chat


async def _once(job: Job, times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        await job()
    return (time.process_time() - started) / times * 1e6


async def _idle_agents(count: int) -> float:
    """Return the bytes that an idle agent takes: its task, its mailbox, its handle, with an empty history."""
    config = AgentConfig(provider=ScriptedProvider([]))
    async with trio.open_nursery() as nursery:
        await nursery.start(Agent.serve, config)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        agents = [await nursery.start(Agent.serve, config) for _ in range(count)]
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(agents) == count
        nursery.cancel_scope.cancel()
    return taken / count


async def _is_on() -> float:
    async def ask() -> None:
        for _ in range(1000):
            is_on()

    return await _cpu(ask, 100) / 1000


def _instruments() -> Iterable[tuple[str, Instrument]]:
    yield "with an instrument", _Nothing()
    try:
        from opentelemetry.sdk.trace import TracerProvider

        from alloy_trio.otel import OTelInstrument
    except ImportError:
        return
    yield "with OpenTelemetry", OTelInstrument(tracer_provider=TracerProvider())


def _start_to_prompt(times: int = 15) -> float:
    """Return the median, in milliseconds, from the start of `python -m alloy_trio` to its prompt on a terminal."""
    took = []
    with tempfile.TemporaryDirectory() as home:
        where = {f"XDG_{kind}_HOME": home for kind in ("CONFIG", "DATA", "STATE")}
        for _ in range(times):
            ours, theirs = pty.openpty()
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "alloy_trio"],
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                env={**os.environ, **where, "TERM": "xterm", "NO_COLOR": "1"},
            )
            os.close(theirs)
            seen = b""
            while b">" not in re.sub(rb"\x1b\[[?>]?[\d;]*\w", b"", seen):
                seen += os.read(ours, 1 << 16)
            took.append(time.perf_counter() - start)
            process.kill()
            process.wait()
            os.close(ours)
    return 1000 * statistics.median(took)


async def _main() -> None:
    def say(what: str, figure: float, unit: str = "µs") -> None:
        print(f"{what:<50}{figure:>9.2f} {unit}")  # noqa: T201 - a program

    say("a run of two turns and one tool", await _cpu(_run, 200))
    say("  with a middleware", await _cpu(lambda: _run(middleware=[_Looks()]), 200))
    with Budget("1000000"):
        say("  under a budget", await _cpu(_run, 200))
    say("a chunk of a stream", await _cpu(_stream, 1) / 1000)
    with Budget("1000000"):
        say("  under a budget", await _cpu(_stream, 1) / 1000)

    seen: list[object] = []
    await alloy_trio.run("go", provider=_provider(), tools=[echo], on_event=seen.append)
    bare = await _cpu(_run, 200)
    say("the question whether there is an instrument", await _is_on())
    for what, instrument in _instruments():
        add_instrument(instrument)
        say(f"an event told, {what}", (await _cpu(_run, 200) - bare) / len(seen))
        remove_instrument(instrument)

    bare, chat = await _chat(300)
    say("a run of one turn", bare)
    say("  as an agent's chat, that much more", chat - bare)
    say("an idle agent", await _idle_agents(1000) / 1000, "kB")
    for held in (10, 5000):
        say(f"a message appended to {held:,}", await _append(held, 1000))
    for held in (1, 100, 10_000):
        for reading, what in (("room", "who have room"), ("wait", "who wait for it"), ("lag", "who lag")):
            once = await _publish(held, reading)
            say(f"a publish to {held:,} {what}, per subscriber", once / held)
            say("  publishes", 1e6 / once, "a second")
    say("the catalog, when it is asked first", _catalog(), "ms")
    say("from the start of the program to its prompt", _start_to_prompt(), "ms")


if __name__ == "__main__":
    trio.run(_main)
