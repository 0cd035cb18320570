"""`--connect`: talking to an agent in another process, from the command line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from far import TOKEN, linked

from alloy_trio import Middleware, RunState, ToolUse, open_agent, tool
from alloy_trio.remote import Address, serve_agents
from alloy_trio.repl._cli import main
from alloy_trio.repl._connect import Served, Talk
from alloy_trio.repl._keys import Key, Line
from alloy_trio.testing import ScriptedProvider, delay, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("alloy_trio")
    before = logger.level
    monkeypatch.setenv("ALLOY_TOKEN", "")  # so that what a test sets is taken away behind it
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield
    logger.setLevel(before)


@pytest.fixture
def url() -> Iterator[str]:
    """Serve two agents in a thread, as another process would."""
    started, addresses, ends = threading.Event(), list[Address](), list[Any]()

    async def serve() -> None:
        replies: list[Any] = ["It is \x1b[2J noon.", "And later."]
        async with (
            open_agent(provider=ScriptedProvider(replies)) as clock,
            open_agent(provider=ScriptedProvider([])) as other,
            trio.open_nursery() as nursery,
        ):

            async def up(*, task_status: trio.TaskStatus[Address]) -> None:
                await serve_agents({"clock": clock, "other": other}, "127.0.0.1", 0, TOKEN, task_status=task_status)

            addresses.append(await nursery.start(up))
            ends.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    started.wait()
    yield addresses[0].url
    token, scope = ends[0]
    token.run_sync_soon(scope.cancel)
    thread.join()


def test_a_question(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOY_TOKEN", TOKEN)
    assert main(["--connect", url, "--agent", "clock", "What", "time", "is", "it?"]) == 0
    said = capsys.readouterr()
    assert "noon." in said.out
    assert "1 turn" in said.err
    assert main(["--json", f"--connect={url}", "--agent", "clock", "-p", "And now?"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in (events[0], events[-1])] == ["run_start", "run_end"]


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        ([], TOKEN, "--agent is needed: clock, other"),
        (["--agent", "nobody"], TOKEN, "there is no agent 'nobody': clock, other"),
        (["--agent", "clock"], "", "set ALLOY_TOKEN"),
        (["--agent", "clock"], "a wrong one, and long", "token is wrong"),
        (["--agent", "other"], TOKEN, "the script is at its end"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(
    arguments: list[str], token: str, said: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["ALLOY_TOKEN"] = token
    assert main(["--connect", url, *arguments, "hi"]) in {1, 2}
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error


def test_a_password_that_everybody_sees_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "redis://:secret@host", "--agent", "a", "hi"]) == 2
    said = capsys.readouterr().err
    assert "set $ALLOY_REDIS instead, and say --connect redis://" in said
    assert "secret" not in said


class Person:
    """Types what a script says, when its time has come; notes what is said."""

    def __init__(self, *script: tuple[float, str | Key]) -> None:
        self._script = list(script)
        self.said: list[str] = []
        self.seen: list[str] = []

    async def receive(self) -> Line | Key:
        if not self._script:
            return Key.END
        seconds, typed = self._script[0]
        await trio.sleep(seconds)
        del self._script[0]
        return Line(typed) if isinstance(typed, str) else typed

    async def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        self.said.append(text)

    async def say(self, text: str, *, dim: bool = False) -> None:
        self.said.append(text)

    def view(self) -> Any:
        return self

    async def show(self, envelope: Any) -> None:
        self.seen.append(type(envelope.event).__name__)

    async def close(self) -> None:
        self.seen.append("closed")


class Ask(Middleware):
    async def before_tool_call(self, state: RunState, call: ToolUse) -> Any:
        return await state.approval(call)


@tool
async def act() -> str:
    """Act."""
    return "acted"


@contextlib.asynccontextmanager
async def talk(person: Any, *replies: Any) -> Any:
    options: Any = {"tools": [act], "middleware": [Ask()]}
    async with open_agent(provider=ScriptedProvider(list(replies)), **options) as agent, linked({"x": agent}) as remote:
        assert await Talk(Served(remote.agent("x")), person).hold() == 0
        yield agent


async def test_a_conversation(autojump_clock: object) -> None:
    """A question, one that is steered, one that is cancelled, one that fails; blank lines and a Ctrl-C at the prompt are nothing."""
    script: list[tuple[float, str | Key]] = [
        (1, "hi"),
        (1, " "),
        (1, Key.INTERRUPT),
        (1, "go"),
        (1, "rather so"),
        (20, "slowly"),
        (1, Key.INTERRUPT),
        (5, "more"),
        (60, Key.END),
    ]
    person = Person(*script)
    replies = ["hello", [text("so"), delay(5)], "rather", [text("a"), delay(60)]]
    async with talk(person, *replies) as agent:
        asked = [message.text for message in agent.messages if message.role == "user"]
    assert asked == ["hi", "go", "rather so", "slowly", "more"]
    assert "cancelled" in person.said
    assert any("the script is at its end" in said for said in person.said)
    assert "Steered" in person.seen


async def test_calls_wait_for_a_person(autojump_clock: object) -> None:
    person = Person((1, "go"), (1, "y"), (1, "n not that"), (1, "no"), (9, Key.END))
    calls = [tool_call("act", id=f"c{number}") for number in range(3)]
    async with talk(person, calls, "done") as agent:
        results = agent.messages[2].tool_results
    assert [result.outcome for result in results] == ["ok", "blocked", "blocked"]
    assert [result.text for result in results][1:] == ["Blocked: not that", "Blocked: the user has denied it"]
    assert any("allow it?" in said for said in person.said)
