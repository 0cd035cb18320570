"""
Say something in the middle of a run: what it is about is cut, has its outcome in the history, and the run goes on with what was said.

A script plays the model, in virtual time. It prints:

     60 s  the agent is running, and hears: Not in the attic! In the cellar.
     60 s  search 'attic': cancelled
    120 s  search 'cellar': ok
    120 s  It was behind the barrels.
"""

import trio
import trio.testing

from alloy_trio import open_agent, tool
from alloy_trio.events import Envelope, ToolEnd
from alloy_trio.testing import ScriptedProvider, text, tool_call

SCRIPT = [
    tool_call("search", {"place": "attic"}, id="attic"),
    tool_call("search", {"place": "cellar"}, id="cellar"),
    text("It was behind the barrels."),
]


@tool(timeout=7200)
async def search(place: str) -> str:
    """Search a place, however long it takes."""
    await trio.sleep(3600 if place == "attic" else 60)
    return "found"


def say(words: str) -> None:
    """Print some words, and when."""
    print(f"{trio.current_time():3.0f} s  {words}")


def listen(envelope: Envelope) -> None:
    """Say how each search has ended."""
    if isinstance(envelope.event, ToolEnd):
        say(f"search {envelope.event.id!r}: {envelope.event.outcome}")


async def main() -> None:
    """Ask for something, and think of something better after a minute."""
    async with open_agent(provider=ScriptedProvider(SCRIPT), tools=[search], on_event=listen) as agent:
        pending = await agent.send_message("Find my hat")
        await trio.sleep(60)
        say(f"the agent is {agent.health().status}, and hears: Not in the attic! In the cellar.")
        # "turn" cuts tools too, "stream" only the model's words, and without it nothing is cut. An idle agent: `AgentIdle`.
        await agent.steer("Not in the attic! In the cellar.", interrupt="turn")
        say((await pending.result()).text)


if __name__ == "__main__":
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
