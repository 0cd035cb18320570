"""
A thousand agents under one supervisor, a random tenth of which breaks down every virtual second.

One virtual minute by default; `ALLOY_SWARM_MINUTES=10` makes it ten.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import trio

from alloy_trio import Agent, AgentCrashed, Message
from alloy_trio.providers import Response, StopReason
from alloy_trio.sessions import MemoryStore
from alloy_trio.supervision import open_supervisor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alloy_trio.providers import Request
    from alloy_trio.sessions import Record

MINUTES = int(os.environ.get("ALLOY_SWARM_MINUTES", "1"))
AGENTS = 1000


class Fragile(MemoryStore):
    """Breaks for a session when it is told to, as no store should."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks: set[str] = set()

    def _break(self, session_id: str) -> None:
        if session_id in self.breaks:
            self.breaks.discard(session_id)
            raise RuntimeError("broken")

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        self._break(session_id)
        await super().append(session_id, records)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        self._break(session_id)
        await super().rewrite(session_id, records)


class Echo:
    """Answers with what was said."""

    name = "echo"

    async def complete(self, request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(message=Message.assistant(request.messages[-1].text), stop_reason=StopReason.END_TURN)


async def test_a_swarm_lives_on(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """All answer in the end and know what was said before, nobody waits, and neither tasks nor memory have grown."""
    caplog.set_level(logging.CRITICAL, "alloy_trio")
    chance, store, crashed = random.Random(7), Fragile(), 0
    specs = [
        Agent.child_spec(name=f"agent {number}", session_id=str(number), provider=Echo(), session_store=store)
        for number in range(AGENTS)
    ]

    async def break_down(agent: Agent) -> None:
        nonlocal crashed
        store.breaks.add(agent.session_id)
        with pytest.raises(AgentCrashed):
            await agent.chat("break")
        crashed += 1

    async with open_supervisor(specs, max_restarts=10_000) as supervisor:
        agents: list[Agent] = [supervisor[spec.id] for spec in specs]
        for agent in agents:
            await agent.chat(f"I am {agent.name}")
        tasks = trio.lowlevel.current_statistics().tasks_living
        sizes = []
        tracemalloc.start()
        try:
            for second in range(60 * MINUTES):
                async with trio.open_nursery() as nursery:
                    for agent in chance.sample(agents, AGENTS // 10):
                        nursery.start_soon(break_down, agent)
                await trio.sleep(1)
                if second % 10 == 9:
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        for agent in agents:
            assert (await agent.chat("fine")).text == "fine"
            assert [message.text for message in agent.messages] == [*[f"I am {agent.name}"] * 2, *["fine"] * 2]
            health = agent.health()
            assert (health.status, health.pending_count, health.unsaved) == ("idle", 0, False)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert supervisor.count_children()["active"] == AGENTS
        assert sum(child.restarts for child in supervisor.which_children()) == crashed == 6 * AGENTS * MINUTES
    # By then nearly every agent has broken down once, and holds what a restart leaves; later ones replace that.
    assert sizes[-1] < 1.1 * sizes[3], sizes
