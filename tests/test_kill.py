"""A process that is killed in the middle of a turn, again and again: what was acknowledged is there, and nothing happens twice."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from rules import check_history

from alloy_trio import Session, open_agent
from alloy_trio.sessions import JSONLStore, SQLiteStore
from alloy_trio.testing import ScriptedProvider

PROGRAM = Path(__file__).with_name("killed.py")
LIVES = 50  # of each store


def live_and_die(folder: Path, kind: str, life: int, lines: int) -> list[list[str]]:
    """Run the program until it has said so many lines, kill it, and return all that it has said."""
    command = [sys.executable, str(PROGRAM), str(folder), kind, str(life)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
        assert not process.stderr.read()
    return [line.decode().split(maxsplit=1) for line in said if line.endswith(b"\n")]


async def restored(folder: Path, kind: str) -> Session:
    """Return the conversation as an agent has it that is started again."""
    store = JSONLStore(folder / "store") if kind == "jsonl" else SQLiteStore(folder / "store.db")
    async with store, open_agent(provider=ScriptedProvider([]), session_store=store, session_id="s") as agent:
        return agent.export_session()


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_killed_in_mid_turn(kind: str, tmp_path: Path) -> None:
    """Fifty lives a store, each ended by SIGKILL after a few lines: in a request, between two results, in a write."""
    chance = random.Random(kind)
    acknowledged: set[str] = set()
    questions: list[str] = []
    cut = 0
    for life in range(LIVES):
        for kind_of_line, what in live_and_die(tmp_path, kind, life, chance.randint(1, 12)):
            if kind_of_line == "result":
                acknowledged.add(what.strip())
            else:
                questions.append(what.strip())
        session = trio.run(restored, tmp_path, kind)
        check_history(session.messages)
        asked = [message.text for message in session.messages if message.role == "user"]
        assert all(asked.count(question) == 1 for question in questions), "an answered question is lost, or there twice"
        outcomes = {
            result.tool_use_id: result.outcome for message in session.messages for result in message.tool_results
        }
        assert {outcomes.get(call) for call in acknowledged} <= {"ok"}, "an acknowledged result is lost"
        marks = (tmp_path / "marks").read_text().split()
        assert len(marks) == len(set(marks)), "a call ran twice"
        assert set(marks) <= outcomes.keys(), "a call ran before it was written down"
        cut = sum(outcome == "cancelled" for outcome in outcomes.values())
    assert len(acknowledged) > 50
    assert cut > 0
