"""
An agent in a nursery: a person says something in the middle of its work, and decides on a call.

    waits for a person: remove {'path': '/tmp/cache'}
    blocked: Blocked: keep it until tomorrow
    I have kept it.
"""

from __future__ import annotations

import trio

from alloy_trio import Agent, AgentConfig, BlockCall, EditCall, RunState, ToolUse, tool
from alloy_trio.events import ApprovalRequested, Envelope
from alloy_trio.testing import ScriptedProvider, tool_call


@tool
async def search(words: str) -> str:
    """Search for something, for an hour."""
    await trio.sleep(3600)
    return f"no {words}"


@tool
async def remove(path: str) -> str:
    """Remove a file."""
    return f"removed {path}"


class AskFirst:
    """Lets a person decide on what removes files."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        """Ask about `remove`."""
        return await state.approval(call) if call.name == "remove" else None


async def main() -> None:
    """Start the agent in a nursery of our own, and be its person."""
    provider = ScriptedProvider(
        [
            [tool_call("search", {"words": "space on the disk"})],
            [tool_call("remove", {"path": "/tmp/cache"})],  # noqa: S108 - nothing is removed
            "I have kept it.",
        ]
    )
    asked = trio.Event()

    def listen(envelope: Envelope) -> None:
        if isinstance(envelope.event, ApprovalRequested):
            asked.set()

    config = AgentConfig(provider=provider, tools=[search, remove], middleware=[AskFirst()], on_event=listen)
    async with trio.open_nursery() as nursery:
        agent = await nursery.start(Agent.serve, config)
        pending = await agent.send_message("Make room on the disk")
        await trio.sleep(0.05)
        await agent.steer("Do not search, remove the cache", interrupt="turn")
        await asked.wait()
        (call,) = agent.pending_approvals()
        print(f"waits for a person: {call.name} {call.input}")
        agent.deny(call.id, "keep it until tomorrow")
        result = await pending.result()
        print(f"{result.tool_calls[-1].outcome}: {result.tool_calls[-1].error}")
        print(result.text)
        await agent.stop()


trio.run(main)
