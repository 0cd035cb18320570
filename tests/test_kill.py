"""A process that is killed in the middle of a turn, again and again: what was acknowledged is there, and nothing happens twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from rules import check_history

from alloy_trio import Session, open_agent
from alloy_trio.sessions import JSONLStore, SQLiteStore
from alloy_trio.testing import ScriptedProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).with_name("killed.py")
LIVES = 50  # of each store


class Lives:
    """Lives of an agent in processes of their own, one after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._said = process.stdin, process.stdout

    def _hear(self) -> list[str]:
        line = self._said.readline().decode()
        assert line.endswith("\n"), "the program has ended"
        return line.strip().split(" ", 1)

    def live_and_die(self, name: str, lines: int) -> list[list[str]]:
        """Begin one, kill it when it has said so many lines, and return all that it has said."""
        self._orders.write(f"{name}\n".encode())
        self._orders.flush()
        word, child = self._hear()
        assert word == "life"
        said = [self._hear() for _ in range(lines)]
        assert ["over"] not in said, "it has ended by itself"
        os.kill(int(child), signal.SIGKILL)
        return [*said, *iter(self._hear, ["over"])]


@contextlib.contextmanager
def open_lives(folder: Path, kind: str) -> Iterator[Lives]:
    """Start the program; it must never complain."""
    command = [sys.executable, str(PROGRAM), str(folder), kind]
    complaints = folder / "complaints"
    with (
        complaints.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file) as process,
    ):
        yield Lives(process)
    assert not complaints.read_text()


async def restored(folder: Path, kind: str) -> Session:
    """Return the conversation as an agent has it that is started again."""
    store = JSONLStore(folder / "store") if kind == "jsonl" else SQLiteStore(folder / "store.db")
    async with store, open_agent(provider=ScriptedProvider([]), session_store=store, session_id="s") as agent:
        return agent.export_session()


def answers(session: Session) -> dict[str, str]:
    """Return the last word on each question: it is answered where this is "done"."""
    said: dict[str, str] = {}
    question = ""
    for message in session.messages:
        if message.role == "user" and message.text:
            question = message.text
            assert question not in said, "a question is there twice"
        said[question] = message.text if message.role == "assistant" and not message.tool_uses else ""
    return said


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_killed_in_mid_turn(kind: str, tmp_path: Path) -> None:
    """Fifty lives a store, each ended by SIGKILL after a few lines: in a request, between two results, in a write."""
    chance = random.Random(kind)
    acknowledged: dict[str, set[str]] = {"begun": set(), "result": set(), "answered": set()}
    with open_lives(tmp_path, kind) as lives:
        for life in range(LIVES):
            for word, what in lives.live_and_die(str(life), chance.randint(1, 20)):
                acknowledged[word].add(what)
            session = trio.run(restored, tmp_path, kind)
            check_history(session.messages)
            said = answers(session)
            assert {said.get(question) for question in acknowledged["answered"]} <= {"done"}, "an answer is lost"
            outcomes = {
                result.tool_use_id: result.outcome for message in session.messages for result in message.tool_results
            }
            assert {outcomes.get(call) for call in acknowledged["result"]} <= {"ok"}, "an acknowledged result is lost"
            marks = (tmp_path / "marks").read_text().split()
            assert len(marks) == len(set(marks)), "a call ran twice"
            assert set(marks) <= outcomes.keys(), "a call ran before it was written down"
    assert len(acknowledged["result"]) > LIVES
    assert len(acknowledged["answered"]) > LIVES // 2
    assert "cancelled" in outcomes.values(), "nothing was ever cut"
