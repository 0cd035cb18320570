"""
Two agents under a supervisor: one breaks down in the middle of a request, and is there again for the next.

It prints:

    agent researcher broke down: its store raised RuntimeError: the disk is on fire
    Nothing burns here any more.
    A haiku, then.
    supervisor (one_for_one)
    ├─ researcher: up, restarted once
    └─ writer: up
"""

import logging
from collections.abc import Sequence

import trio

from alloy_trio import Agent, AgentCrashed
from alloy_trio.sessions import MemoryStore, Record
from alloy_trio.supervision import open_supervisor
from alloy_trio.testing import ScriptedProvider

logging.getLogger("alloy_trio").addHandler(logging.NullHandler())  # where the traceback of the crash would be


class BurningStore(MemoryStore):
    """Breaks once, as no store should."""

    has_burnt = False

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """Put records in the place of all earlier ones, but not at first."""
        if not self.has_burnt:
            self.has_burnt = True
            raise RuntimeError("the disk is on fire")
        await super().rewrite(session_id, records)


async def main() -> None:
    """Ask both, one of them twice; its handle outlives the crash."""
    researcher = ScriptedProvider(["Nothing burns here any more."])
    children = [
        Agent.child_spec(name="researcher", provider=researcher, session_store=BurningStore()),
        Agent.child_spec(name="writer", provider=ScriptedProvider(["A haiku, then."])),
    ]
    async with open_supervisor(children, strategy="one_for_one") as supervisor:
        try:
            await supervisor["researcher"].chat("What burns?")
        except AgentCrashed as crashed:
            print(crashed)
        print((await supervisor["researcher"].chat("What burns?")).text)
        print((await supervisor["writer"].chat("Write something")).text)
        print(supervisor.render_tree())


if __name__ == "__main__":
    trio.run(main)
