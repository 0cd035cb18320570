"""
A program with an agent, to be killed at any moment: it says what was acknowledged, and each call leaves its mark in a file.

For each line that it reads it forks: imports would take longer than all else. The child says who it is, and begins a life of
that name; the parent, which has no threads, and nothing to do with any store, says when it is over.
"""

from __future__ import annotations

import itertools
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from alloy_trio import ToolContext, open_agent, tool
from alloy_trio.events import ToolEnd
from alloy_trio.sessions import JSONLStore, SQLiteStore
from alloy_trio.testing import ScriptedProvider, text, tool_call

if TYPE_CHECKING:
    from alloy_trio.events import Envelope

FOLDER, KIND = sys.argv[1:]
numbers = itertools.count()


def say(*words: object) -> None:
    """Write a line in one piece."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


@tool
async def mark(ctx: ToolContext, place: int) -> str:
    """Leave a mark: the call's id. It takes a moment, in which it can be killed."""
    say("begun", ctx.tool_use_id)
    file = os.open(f"{FOLDER}/marks", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{ctx.tool_use_id}\n".encode())
    os.close(file)
    await trio.sleep(0.005)
    return str(place)


def reply(life: str, request: Any) -> Any:
    """Ask for two calls, and for two more after some of them."""
    number = next(numbers)
    if request.messages[-1].tool_results and number % 3:
        return "done"
    calls = [tool_call("mark", {"place": place}, id=f"c{life}_{number}_{place}") for place in range(2)]
    return [text("I shall"), *calls]


def listen(envelope: Envelope) -> None:
    """Say which results are there: each was written before this event."""
    if isinstance(envelope.event, ToolEnd):
        say("result", envelope.event.id)


async def main(life: str) -> None:
    """Chat until the end comes."""
    store = JSONLStore(f"{FOLDER}/store") if KIND == "jsonl" else SQLiteStore(f"{FOLDER}/store.db")
    provider = ScriptedProvider([partial(reply, life)] * 100_000)
    async with (
        store,
        open_agent(
            provider=provider, tools=[mark], session_store=store, session_id="s", on_event=listen, context_tokens=10**9
        ) as agent,
    ):
        for number in itertools.count():
            await agent.chat(f"question {life} {number}")
            say("answered", f"question {life} {number}")


def begin_lives() -> None:
    """Begin a life for each line."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            say("life", os.getpid())
            trio.run(main, line.strip())
        os.waitpid(child, 0)
        say("over")


if __name__ == "__main__":
    begin_lives()
