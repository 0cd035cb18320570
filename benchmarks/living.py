"""What lives longer than a run costs: agents, their mailboxes, topics, supervisors. CPU time, as in `inside`, or memory."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio
import trio.testing

import alloy_trio
from alloy_trio import Agent, AgentConfig, Message, Session
from alloy_trio.pubsub import PubSub, Subscription
from alloy_trio.supervision import ChildSpec, Supervisor, open_supervisor
from alloy_trio.testing import ScriptedProvider

from .inside import ROUNDS, cpu
from .yardstick import kept

if TYPE_CHECKING:
    from alloy_trio.providers import Request, Response

    from .place import Figures, Place

    Reading: TypeAlias = Literal["have room", "wait for it", "lag"]

_HELD = (1, 100, 10_000)


def chats(place: Place) -> Figures:
    """Ask once: in a run, and as an agent's chat. Alternating, the best of each."""
    times = place.count(300)

    async def main() -> Figures:
        run, chat = float("inf"), float("inf")
        for _ in range(2 * ROUNDS):
            run, chat = min(run, await _asked(times)), min(chat, await _chatted(times))
        return {"a run of one turn, µs": run * 1e6, "the same as a chat, µs": chat * 1e6}

    return trio.run(main)


def mailboxes(place: Place) -> Figures:
    """Queue messages for an agent that is busy: when few wait already, and when many do."""
    times = place.count(100)

    async def main() -> Figures:
        return {f"a message queued behind {held:,}, µs": await _queue(place.count(held), times) for held in (10, 1000)}

    logging.disable()  # that the agent stops before it has answered all of them
    return trio.run(main)


def conversations(place: Place) -> Figures:
    """Ask an agent once more: in a short conversation, and in a long one."""
    times = place.count(3)  # it grows with each

    async def more(held: int) -> float:
        messages = [Message.user("What is the weather?"), Message.assistant("I do not know. " * 10)] * (held // 2)
        config = AgentConfig(
            provider=ScriptedProvider(["done"] * times * ROUNDS), session=Session(messages=messages), compaction=False
        )
        async with alloy_trio.open_agent(config) as agent:
            return await cpu(lambda: agent.chat("go"), times)

    async def main() -> Figures:
        return {f"a chat after {held:,} messages, µs": await more(held) for held in (10, 1000)}

    return trio.run(main)


def idle_agents(place: Place) -> Figures:
    """Keep a thousand agents that wait: a task, a mailbox, a handle, with an empty history."""
    config = AgentConfig(provider=ScriptedProvider([]))
    many = place.count(1000)

    async def main() -> Figures:
        async with trio.open_nursery() as nursery:
            await nursery.start(Agent.serve, config)
            taken = await kept(many, lambda: nursery.start(Agent.serve, config))
            nursery.cancel_scope.cancel()
        return {"an agent, kB": taken}

    return trio.run(main)


def topics(place: Place) -> Figures:
    """Publish to subscribers who have room for it, who wait for it, and who lag."""

    async def main() -> Figures:
        figures: Figures = {}
        for held in _HELD:
            many = place.count(held)
            readings: tuple[Reading, ...] = ("have room", "wait for it", "lag")
            for reading in readings:
                figures[f"to {held:,} who {reading}, each, µs"] = await _publish(place, many, reading) / many
        return figures

    return trio.run(main)


def supervisors(place: Place) -> Figures:
    """Start a child and stop it; restart one that waits; with few and with many brothers."""

    async def main() -> Figures:
        figures: Figures = {}
        for held in (10, 1000):
            async with open_supervisor([_child(each) for each in range(place.count(held))]) as supervisor:
                figures |= await _supervised(supervisor, place.count(100), f"beside {held:,}")
        return figures

    return trio.run(main)


async def _asked(times: int) -> float:
    provider = ScriptedProvider(["done"] * times)
    started = time.process_time()
    for _ in range(times):
        await alloy_trio.run("go", provider=provider)
    return (time.process_time() - started) / times


async def _chatted(times: int) -> float:
    spent = 0.0
    async with alloy_trio.open_agent(provider=ScriptedProvider(["done"] * times)) as agent:
        for _ in range(times):
            started = time.process_time()
            await agent.chat("go")
            spent += time.process_time() - started
            await agent.reset()  # so that the conversation stays as short as that of the run
    return spent / times


class _Thinks:
    """A model that never comes to an end."""

    async def complete(self, request: Request) -> Response:
        """Wait."""
        del request
        await trio.sleep_forever()
        raise AssertionError


async def _queue(held: int, times: int) -> float:
    """Return the microseconds for one message more, when so many wait."""
    async with alloy_trio.open_agent(provider=_Thinks(), max_pending=held + 2 * ROUNDS * times) as agent:
        for _ in range(held):
            await agent.send_message("go")
        return await cpu(lambda: agent.send_message("go"), times)


async def _publish(place: Place, held: int, reading: Reading) -> float:
    """Return microseconds for one publish."""
    pubsub, best, times = PubSub(), float("inf"), max(1, place.count(20_000) // held)

    async def read(subscription: Subscription) -> None:
        async for _ in subscription:
            pass

    async with trio.open_nursery() as nursery:
        for each in range(held):
            buffer = times * ROUNDS if reading == "have room" else 64
            subscription = pubsub.subscribe("agent:7:events", f"other:{each}:*", buffer=buffer)
            if reading == "wait for it":
                nursery.start_soon(read, subscription)
        for _ in range(64 if reading == "lag" else 0):
            pubsub.publish("agent:7:events", 0)
        for _ in range(ROUNDS):
            spent = 0.0
            for each in range(times):
                if reading == "wait for it":
                    await trio.testing.wait_all_tasks_blocked()
                started = time.process_time()
                pubsub.publish("agent:7:events", each)
                spent += time.process_time() - started
            best = min(best, spent / times)
        nursery.cancel_scope.cancel()
    return best * 1e6


async def _waits(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


def _child(number: int | str) -> ChildSpec:
    return ChildSpec(id=f"child-{number}", start=_waits)


async def _supervised(supervisor: Supervisor, times: int, where: str) -> Figures:
    async def come_and_go() -> None:
        await supervisor.start_child(_child("new"))
        await supervisor.terminate_child("child-new")
        await supervisor.delete_child("child-new")

    async def again() -> None:
        await supervisor.terminate_child("child-0")
        await supervisor.restart_child("child-0")

    return {
        f"a child that comes and goes {where}, µs": await cpu(come_and_go, times),
        f"one stopped and started {where}, µs": await cpu(again, times),
    }
