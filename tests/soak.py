"""
Agents that live long, on a server that fails: does anything grow, and is any request lost?

    python tests/soak.py --minutes 60 --agents 500

In rounds of some seconds: agents under one supervisor are asked by `chat`, `stream_chat` and `send_message`, over HTTP from a
server that fails at random, or of a model that asks for tools (async, in threads, processes). Callers give up at random, stores
break so that agents crash and restart, tools are reloaded. Behind each round all is quiet, and what there is of memory, tasks,
threads and file descriptors is written down. At the end it says whether they grew, and accounts for every request.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import logging
import os
import random
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from alloy_trio import (
    Agent,
    AgentBusy,
    AgentCrashed,
    AlloyError,
    Message,
    QueueFull,
    RequestCancelled,
    ToolContext,
    ToolUse,
    tool,
)
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Response, StopReason
from alloy_trio.pubsub import PubSub
from alloy_trio.sessions import MemoryStore
from alloy_trio.supervision import Supervisor, open_supervisor
from alloy_trio.testing import Fault, FaultServer
from alloy_trio.tools import bash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alloy_trio import Result
    from alloy_trio.providers import Provider, Request
    from alloy_trio.sessions import Record

ROUND: Final = 10.0  # seconds of requests between two looks
WARM: Final = 0.2  # of the rounds, in which caches fill
LONGEST: Final = 12  # messages after which an agent begins anew
GROWTH: Final = 1.05  # of the memory that is no leak
MEGABYTE: Final = 2**20

FAULTS: Final = (
    Fault.status("429 Too Many Requests", kind="rate_limit_error", retry_after="0"),
    Fault.status("529 Overloaded", kind="overloaded_error"),
    Fault.status("500 Internal Server Error"),
    Fault.status("400 Bad Request", kind="invalid_request_error"),
    *(Fault.close(place) for place in ("head", "in head", "body", "in event", "end")),
    *(Fault.reset(place) for place in ("head", "body", "event")),
    *(Fault.stall(place) for place in ("head", "event")),
    Fault.error("overloaded_error"),
    Fault.body(b"<html>no</html>"),
    Fault.raw(b"no HTTP at all\r\n\r\n"),
    Fault.half(),
    Fault.miscounted(7),
    Fault.bad_chunk(),
    Fault.gzip(),
)


def moods(chance: random.Random) -> Iterator[Fault | None]:
    """Yield what happens to one request after the other: two of three are answered well."""
    while True:
        yield chance.choice(FAULTS) if chance.random() < 1 / 3 else None


class Fragile(MemoryStore):
    """Breaks for a session when it is told to, as no store should."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks: set[str] = set()

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        if session_id in self.breaks:
            self.breaks.discard(session_id)
            raise RuntimeError("broken")
        await super().append(session_id, records)


@tool
async def rest(seconds: float) -> str:
    """Rest."""
    await trio.sleep(seconds)
    return "rested"


@tool
def work(seconds: float, ctx: ToolContext) -> str:
    """Work in a thread."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ctx.check_cancelled()
        time.sleep(0.005)
    return "worked"


@attrs.frozen
class Doer:
    """A model that asks for tools, and then has done it."""

    chance: random.Random
    name: str = "doer"

    async def complete(self, request: Request) -> Response:
        """Answer."""
        await trio.sleep(self.chance.random() / 50)
        if request.messages[-1].tool_results:
            return Response(message=Message.assistant("done"), stop_reason=StopReason.END_TURN)
        seconds = {"seconds": self.chance.random() / 10}
        kinds: list[tuple[str, dict[str, Any]]] = [("rest", seconds), ("work", seconds)]
        if self.chance.random() < 1 / 20:
            kinds.append(("bash", {"command": "sleep 0.05 & echo here"}))
        calls = [ToolUse(f"c{place}", *self.chance.choice(kinds)) for place in range(self.chance.randint(1, 3))]
        return Response(message=Message.assistant(*calls), stop_reason=StopReason.TOOL_USE)


@attrs.define
class Count:
    """What became of the requests."""

    made: int = 0
    ends: collections.Counter[str] = attrs.field(factory=collections.Counter)
    sent: set[str] = attrs.field(factory=set)  # by `send_message`, in this round
    published: collections.Counter[str] = attrs.field(factory=collections.Counter)
    twice: int = 0
    unpublished: int = 0

    def settle(self) -> None:
        """A round is over: compare what was sent with what was published, and forget both."""
        self.twice += sum(times > 1 for times in self.published.values())
        self.unpublished += len(self.sent - set(self.published))
        self.sent.clear()
        self.published.clear()

    def faults(self) -> list[str]:
        """Say what does not add up."""
        lost = self.made - self.ends.total()
        found = [f"{lost} requests have no end"] if lost else []
        found += [f"{self.twice} results were published more than once"] if self.twice else []
        found += [f"{self.unpublished} results were never published"] if self.unpublished else []
        return found


@attrs.frozen
class Look:
    """What there was in a quiet moment."""

    memory: float  # in megabytes
    tasks: int
    threads: int
    descriptors: int

    @classmethod
    def taken(cls) -> Look:
        """Look."""
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a file of the kernel's
            pages = int(file.read().split()[1])
        return cls(
            memory=pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE,
            tasks=trio.lowlevel.current_statistics().tasks_living,
            threads=threading.active_count(),
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - as above
        )


class Soak:
    """All of it."""

    def __init__(self, server: FaultServer, agents: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store = Fragile()
        self.pubsub = PubSub()
        self.count = Count()
        options: dict[str, Any] = {"base_url": server.url, "api_key": "sk-soak", "stall_timeout": 0.5}
        addresses = {**options, "base_url": server.url.removesuffix("/v1")}
        providers: list[Provider] = [
            OpenAICompat("m", **options),
            OpenAI("m", **options),
            Anthropic("m", **addresses),
            Doer(self.chance),
        ]
        self.specs = [
            Agent.child_spec(
                name=f"agent {number}",
                session_id=f"s{number}",
                provider=providers[number % len(providers)],
                tools=[rest, work, bash],
                session_store=self.store,
                pubsub=self.pubsub,
                max_retries=1,
                retry_backoff=0.01,
                max_pending=2,
                timeout=5.0,
                on_cancel="keep" if number % 2 else "rollback",
            )
            for number in range(agents)
        ]

    async def round(self, supervisor: Supervisor, seconds: float) -> None:
        """Ask for so long, and return when all is answered."""
        with self.pubsub.subscribe("agent:*:responses", buffer=100_000) as responses:
            async with trio.open_nursery() as nursery:
                end = trio.current_time() + seconds
                for spec in self.specs:
                    nursery.start_soon(self._use, supervisor, spec.id, end)
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    result: Result = responses.receive_nowait()
                    self.count.published[str(result.request_id)] += 1
        self.count.settle()

    async def _use(self, supervisor: Supervisor, name: str, end: float) -> None:
        chance = self.chance
        await trio.sleep(chance.random())
        while trio.current_time() < end:
            agent: Agent = supervisor[name]
            if chance.random() < 1 / 50:
                self.store.breaks.add(agent.session_id)
            self.count.made += 1
            self.count.ends[await self._ask(agent)] += 1
            await trio.sleep(chance.random() * 2)
            with contextlib.suppress(AgentBusy):
                if len(agent.messages) > LONGEST:
                    await agent.reset()
                if chance.random() < 1 / 20:
                    agent.reload(tools=[rest.evolve(timeout=chance.random()), work, bash])
        await supervisor[name].wait_idle()

    async def _ask(self, agent: Agent) -> str:
        """Ask something in one of three ways, for a while; return how it ended."""
        patience = self.chance.random() / 2 if self.chance.random() < 1 / 4 else 60.0
        try:
            with trio.move_on_after(patience):
                return await self.chance.choice([self._chat, self._stream, self._send])(agent)
        except AgentCrashed:
            return "crashed"
        except RequestCancelled:
            return "cancelled"
        except (AgentBusy, QueueFull):
            return "refused"
        except (AlloyError, trio.TooSlowError):
            return "failed"
        return "cancelled" if patience < 60 else "hung"

    @staticmethod
    async def _chat(agent: Agent) -> str:
        await agent.chat("go")
        return "answered"

    @staticmethod
    async def _stream(agent: Agent) -> str:
        async with agent.stream_chat("go") as events:
            async for _ in events:
                pass
        return "answered"

    async def _send(self, agent: Agent) -> str:
        pending = await agent.send_message("go")
        self.count.sent.add(pending.request_id)
        if self.chance.random() < 1 / 4:
            await pending.cancel()
        await pending.result()
        return "answered"


def grown(looks: Sequence[Look]) -> list[str]:
    """Say what has grown between the first quiet moments and the last ones."""
    looks = looks[int(len(looks) * WARM) :]
    part = max(1, len(looks) // 4)
    found = []
    for name in ("tasks", "threads", "descriptors"):
        before = max(getattr(look, name) for look in looks[:part])
        after = statistics.median(getattr(look, name) for look in looks[-part:])
        if after > before:
            found.append(f"{name} grew from {before} to {after:g}")
    before, after = (statistics.median(look.memory for look in some) for some in (looks[:part], looks[-part:]))
    if after > before * GROWTH:
        found.append(f"memory grew from {before:.0f} to {after:.0f} MB")
    return found


async def soak(minutes: float, agents: int, seed: int) -> list[str]:
    """Do it, and return what is wrong."""
    chance, looks = random.Random(seed), list[Look]()
    end = trio.current_time() + minutes * 60
    async with FaultServer(moods(chance)) as server:
        soaked = Soak(server, agents, seed)
        async with open_supervisor(soaked.specs, max_restarts=10**9, within=1.0) as supervisor:
            while not looks or trio.current_time() < end:
                await soaked.round(supervisor, min(ROUND, minutes * 60))
                await server.wait_idle()
                await trio.sleep(0.5)
                server.requests.clear()
                looks.append(Look.taken())
                print(f"round {len(looks)}: {looks[-1]}  {dict(soaked.count.ends)}", flush=True)
    print(f"{soaked.count.made} requests of {agents} agents, {server.connections} connections")
    hung = soaked.count.ends["hung"]
    return [*grown(looks), *soaked.count.faults(), *([f"{hung} requests hung"] if hung else [])]


def main() -> int:
    """Soak; return 1 if anything has grown, or was lost."""
    parser = argparse.ArgumentParser(description="agents that live long, on a server that fails")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    logging.getLogger("alloy_trio").setLevel(logging.CRITICAL)
    found = trio.run(soak, asked.minutes, asked.agents, asked.seed)
    print("\n".join(found) or "nothing grew, and every request is accounted for")
    return min(1, len(found))


if __name__ == "__main__":
    sys.exit(main())
