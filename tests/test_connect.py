"""`--connect`: talking to an agent in another process, from the command line."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from far import TOKEN, linked

from alloy_trio import Middleware, ProviderError, Result, RunState, ToolUse, open_agent, run, tool
from alloy_trio.events import ApprovalRequested
from alloy_trio.fleet import QueueStatistics
from alloy_trio.remote import Address, serve_agents
from alloy_trio.repl._cli import main
from alloy_trio.repl._connect import Asking, Talk
from alloy_trio.repl._keys import Key, Line
from alloy_trio.repl._program import guarded
from alloy_trio.repl._reach import Queued, Served
from alloy_trio.repl._show import Output, shortfall
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

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
        (["--agent", "clock"], "a wrong one, and long", "does not take the token that is in ALLOY_TOKEN"),
        (["--agent", "other"], TOKEN, "the script is at its end"),
        (["--tools", "none"], TOKEN, "--tools does not go with --connect"),
        (["--yolo"], TOKEN, "--yolo does not go with --connect"),
        (["--nothing"], TOKEN, "No such option"),
        (["--prefix", "mine"], TOKEN, "--prefix is for a fleet"),
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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:7777", "--connect takes ws://HOST:PORT"),
        ("127.0.0.1:7777", "--connect takes ws://HOST:PORT"),
        ("ws://user:secret@127.0.0.1:7777", "the server's token goes into ALLOY_TOKEN"),
        ("redis://", "redis:// stands for what is in $ALLOY_REDIS"),
        ("redis:/host", "has to be redis://HOST:PORT"),
        ("ws://127.0.0.1:1", "cannot connect to ws://127.0.0.1:1: Connection refused; is the server there?"),
    ],
)
def test_an_address_that_cannot_be_is_said_in_a_line(
    url: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOY_TOKEN", TOKEN)
    monkeypatch.delenv("ALLOY_REDIS", raising=False)
    assert main(["--connect", url, "--agent", "a", "hi"]) == (1 if "refused" in said else 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_its_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--connect", "redis://", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: python -m alloy_trio --connect URL [OPTIONS] [PROMPT]\n")
    assert "ALLOY_TOKEN" in said
    assert "ALLOY_REDIS" in said


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
        if isinstance(envelope.event, ApprovalRequested):
            self.said.append(f"? {envelope.event.id}")

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
async def served(*replies: Any) -> Any:
    options: Any = {"tools": [act, linger], "middleware": [Ask()]}
    async with open_agent(provider=ScriptedProvider(list(replies)), **options) as agent, linked({"x": agent}) as remote:
        yield agent, Served(remote.agent("x"))


@contextlib.asynccontextmanager
async def talk(person: Any, *replies: Any, status: int = 0) -> Any:
    async with served(*replies) as (agent, far):
        assert await Talk(far, person).hold() == status
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
    asked = [said for said in person.said if said.startswith(("?", "allow"))]
    again = "allow it? y, or n and a reason: "
    assert asked == ["? c0", again, "? c1", again, "? c2", again]


async def test_a_blank_line_about_a_call_is_no_answer(autojump_clock: object) -> None:
    person = Person((1, "go"), (1, " "), (1, "y"), (9, Key.END))
    async with talk(person, [tool_call("act", id="c0")], "done") as agent:
        assert agent.messages[2].tool_results[0].outcome == "ok"
    assert sum("allow it?" in said for said in person.said) == 2


@tool
async def linger() -> str:
    """Take long."""
    await trio.sleep(30)
    return "done"


@pytest.mark.parametrize("calls", [1, 2])
async def test_a_call_that_somebody_else_has_decided_on_is_asked_about_no_more(
    calls: int, autojump_clock: object
) -> None:
    """The next line is about the call that is asked about by then, and steers where there is none."""
    person: Any = Person((1, "go"), (10, "no, rather so"), (60, Key.END))
    asked = [tool_call("linger", id=f"c{number}") for number in range(calls)]
    async with served(asked, "done") as (agent, far), trio.open_nursery() as nursery:

        async def decide() -> None:
            await trio.sleep(5)
            agent.approve("c0")

        nursery.start_soon(decide)
        assert await Talk(far, person).hold() == 0
    assert [result.outcome for result in agent.messages[2].tool_results] == ["ok", "blocked"][:calls]
    assert ("Steered" in person.seen) is (calls == 1)
    assert not any(said.startswith("too late") for said in person.said)


async def test_twice_ctrl_c_at_the_prompt_leaves(autojump_clock: object) -> None:
    person = Person((1, Key.INTERRUPT), (1, "hi"), (9, Key.INTERRUPT), (1, Key.INTERRUPT), (1, "more"))
    async with talk(person, "hello", status=130) as agent:
        assert len(agent.messages) == 2
    assert person.said.count("Ctrl-C once more leaves") == 2


async def test_quit_leaves(autojump_clock: object) -> None:
    async with talk(Person((1, "/quit"), (1, "hi"))) as agent:
        assert not agent.messages


class Terminal:
    """Standard input, with a person at it or not."""

    def __init__(self, *lines: str | None, terminal: bool = True) -> None:
        self._lines = list(lines)
        self.terminal = terminal

    async def line(self) -> str | None:
        await trio.lowlevel.checkpoint()
        return self._lines.pop(0)


@pytest.mark.parametrize(
    ("stdin", "text", "asked"),
    [
        (Terminal(terminal=False), "Blocked: nobody is there to allow it", 0),
        (Terminal(None), "Blocked: nobody is there to allow it", 1),
        (Terminal(" ", "no such thing"), "Blocked: such thing", 2),
        (Terminal("y"), "acted", 1),
    ],
)
async def test_one_prompt_asks_about_a_call_where_somebody_is_there(
    stdin: Any, text: str, asked: int, autojump_clock: object
) -> None:
    """Where nobody is, it does not wait for ever."""
    written, person = io.StringIO(), Person()
    async with served([tool_call("act")], "done") as (agent, far):
        err = Output(written, color=False)
        result = await far.ask("go", Asking(person.view(), far, stdin, err))
        assert result.text == "done"
        assert agent.messages[2].tool_results[0].text == text
    assert written.getvalue().count("allow it?") == asked


class Queue:
    """The queue of a fleet whose worker comes late."""

    def __init__(self, *, running: int) -> None:
        self._running = running

    async def chat(self, agent: str, prompt: str, *, session_id: str) -> Result:
        await trio.sleep(60)
        async with open_agent(provider=ScriptedProvider(["done"])) as one:
            return await one.chat(prompt)

    async def statistics(self, agent: str) -> QueueStatistics:
        await trio.lowlevel.checkpoint()
        return QueueStatistics(
            pending=1, running=self._running, submitted=1, done=0, failed=0, cancelled=0, dead=0, repeated=0
        )


@pytest.mark.parametrize(("running", "notices"), [(0, 1), (1, 0)])
async def test_a_request_that_no_worker_has_is_told_of(running: int, notices: int, autojump_clock: object) -> None:
    """And a remark is no reason to say that it is too late."""
    person = Person((1, "go"), (1, "rather so"), (99, Key.END))
    queue: Any = Queue(running=running)
    assert await Talk(Queued(queue, "x", person.say), cast("Any", person)).hold() == 0
    assert sum("is one up that has an agent 'x'?" in said for said in person.said) == notices
    assert "an agent of a fleet takes no remarks: ask when it has answered" in person.said
    assert person.seen == ["TextDelta", "TurnEnd", "RunEnd", "closed"]


async def test_a_question_that_waits_for_the_connection_says_so(autojump_clock: object) -> None:
    """One that takes long where there is one, does not."""
    person = Person()
    async with (
        open_agent(provider=ScriptedProvider([[delay(20), text("hello")]])) as agent,
        linked({"x": agent}) as remote,
    ):
        far = Served(remote.agent("x"), person.say)
        await far.ask("hi", person.view())
        assert not person.said
        remote._turn(None)
        with trio.move_on_after(10):
            await far.ask("hi", person.view())
    assert person.said == ["the connection is lost: it is tried again; Ctrl-C gives up"]


async def test_what_is_wrong_elsewhere_is_not_said_in_our_options(autojump_clock: object) -> None:
    person: Any = Person((1, "hi"), (9, Key.END))
    async with talk(person, error(ProviderError("base_url is wrong"))):
        pass
    assert "error: base_url is wrong" in person.said
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert guarded(_fail, debug=False, is_ours=False) == 1
        assert guarded(_fail, debug=False) == 1
    assert said.getvalue() == "error: base_url is wrong\nerror: --base-url is wrong\n"


def _fail() -> int:
    raise ProviderError("base_url is wrong")


def test_what_is_not_ours_to_allow_is_not_said_to_be() -> None:
    result = trio.run(_ended_early)
    assert "--max-turns" in str(shortfall(result))
    assert shortfall(result, is_ours=False) == (
        "stopped after 1 turn (set where the agent lives): the work may be unfinished"
    )


async def _ended_early() -> Result:
    return await run("go", provider=ScriptedProvider([[tool_call("act")]]), tools=[act], max_turns=1)
