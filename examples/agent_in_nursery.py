"""
An agent is a conversation that lives in a task of your nursery, and takes one request after the other from any other task.

A script plays the model, in virtual time. It prints:

     0 s  Ann and Bob ask at once
     2 s  Ann is told: The harbour.
     5 s  Bob is told: At nine.
     6 s  Cem has lost patience; the agent is idle
     7 s  Ann is told: You are welcome.
    It remembers 6 messages; of what Cem asked there is nothing.
"""

import trio
import trio.testing

from alloy_trio import Agent, AgentConfig
from alloy_trio.testing import ScriptedProvider, delay, text

SCRIPT = [
    [delay(2), text("The harbour.")],
    [delay(3), text("At nine.")],
    [delay(3600), text("Never heard.")],
    [delay(1), text("You are welcome.")],
]


def say(words: str) -> None:
    """Print some words, and when."""
    print(f"{trio.current_time():2.0f} s  {words}")


async def ask(agent: Agent, name: str, question: str) -> None:
    """Wait for the agent, then for its answer."""
    say(f"{name} is told: {(await agent.chat(question)).text}")


async def main() -> None:
    """Start the agent in a nursery of our own, beside whoever asks it."""
    config = AgentConfig(provider=ScriptedProvider(SCRIPT), on_cancel="rollback")  # or "keep" what was said until then
    async with trio.open_nursery() as nursery:
        agent = await nursery.start(Agent.serve, config)
        say("Ann and Bob ask at once")
        async with trio.open_nursery() as callers:
            callers.start_soon(ask, agent, "Ann", "What is worth seeing?")
            await trio.testing.wait_all_tasks_blocked()  # or the order would be Trio's to choose
            callers.start_soon(ask, agent, "Bob", "When does it open?")
        with trio.move_on_after(1):  # cancels this one request; when the scope is left, nothing of it is running
            await ask(agent, "Cem", "What is the meaning of life?")
        say(f"Cem has lost patience; the agent is {agent.health().status}")
        await ask(agent, "Ann", "Thank you!")
        print(f"It remembers {len(agent.messages)} messages; of what Cem asked there is nothing.")
        await agent.stop()


if __name__ == "__main__":
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
