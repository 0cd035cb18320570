"""The conversation behind the terminal: commands, approval, files, sessions, configuration; with a person made of a script."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import Budget, Image, InvalidOption, Message, Price, Session, StoreError, Text
from alloy_trio.providers import Demo, OpenAICompat
from alloy_trio.repl._ask import diff
from alloy_trio.repl._attach import to_message
from alloy_trio.repl._cli import main
from alloy_trio.repl._commands import COMMANDS
from alloy_trio.repl._config_file import Known, read_config
from alloy_trio.repl._conversation import Conversation
from alloy_trio.repl._export import to_markdown
from alloy_trio.repl._front import Place
from alloy_trio.repl._keys import Key, Line
from alloy_trio.repl._library import Library, check_name
from alloy_trio.repl._markdown import Blocks, render
from alloy_trio.repl._setup import ASKED, TOOLS, Setup
from alloy_trio.testing import ScriptedProvider, delay, error, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alloy_trio.events import Envelope

BOUND = 20


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    for name in ("ALLOY_PROVIDER", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("first line\nsecond line\n")
    log = logging.getLogger("alloy_trio")
    level = log.level
    yield
    log.setLevel(level)  # the command line silences it


class Seen:
    """A view that keeps what it is shown."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.kinds: list[str] = []
        self._tell = tell

    async def show(self, envelope: Envelope) -> None:
        self.kinds.append(type(envelope.event).__name__)
        self._tell()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


class Person:
    """
    A front with somebody at it who answers what is asked.

    Each step is what the prompt has to begin with, and what is done then: while the agent is busy, once a tool runs. Behind the
    last one, Ctrl-D.
    """

    def __init__(self, *steps: tuple[str, str | Line | Key]) -> None:
        self.steps = list(steps)
        self.said: list[str] = []
        self.echoed: list[str] = []
        self.filled = ""
        self.status = ""
        self.copied = ""
        self.views: list[Seen] = []
        self._prompt: str | None = None
        self._about = ""
        self._changed = trio.Event()

    async def receive(self) -> Line | Key:
        await trio.lowlevel.checkpoint()
        prompt, what = self.steps[0] if self.steps else ("> ", Key.END)
        while not self._is_asked(prompt):
            await self._changed.wait()
        del self.steps[:1]
        if prompt == "steer >" or not (isinstance(what, Key) or prompt.startswith("steer")):
            self._prompt = None
        return Line(what, self._about) if isinstance(what, str) else what

    def _is_asked(self, prompt: str) -> bool:
        if prompt == "steer" and "ToolStart" not in self.views[-1].kinds:
            return False
        return self._prompt is not None and self._prompt.startswith(prompt)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        self._prompt, self.filled, self._about = text, fill, about
        self._tell()
        await trio.lowlevel.checkpoint()

    async def echo(self, line: str) -> None:
        self.echoed.append(line)
        await trio.lowlevel.checkpoint()

    async def say(self, text: str, *, dim: bool = False) -> None:
        self.said.append(text)
        await trio.lowlevel.checkpoint()

    async def show_markdown(self, text: str) -> None:
        await self.say(text)

    async def copy(self, text: str) -> bool:
        self.copied = text
        await trio.lowlevel.checkpoint()
        return True

    def view(self) -> Seen:
        self.views.append(Seen(self._tell))
        return self.views[-1]

    def show_status(self, text: str) -> None:
        self.status = text


def setup(provider: Any, **changes: Any) -> Setup:
    given: dict[str, Any] = {
        "provider": provider,
        "available": TOOLS,
        "tools": tuple(TOOLS.values()),
        "system": None,
        "directory": Path.cwd(),
        "allow": (),
        "budget": None,
        "asked": set(ASKED),
        "limits": {"max_retries": 0},
    }
    return Setup(**{**given, **changes})


async def talk(
    provider: Any, *steps: tuple[str, str | Line | Key], place: Place | None = None, once: bool = False, **changes: Any
) -> tuple[Person, Conversation, int]:
    person = Person(*steps)
    made = setup(provider, **changes)
    conversation = Conversation(
        person, made, Library(Path.cwd() / "sessions"), lambda: setup(provider, system="new"), once=once
    )
    with trio.fail_after(BOUND):
        status = await conversation.hold(place or Place("here"))
    return person, conversation, status


def idle(*lines: str) -> list[tuple[str, str | Key]]:
    return [("> ", line) for line in lines]


def asked(provider: ScriptedProvider, number: int = -1) -> list[str]:
    return [message.text for message in provider.requests[number].messages]


# --- requests


def content(path: str | Path) -> str | None:
    """Return what a file has; None if there is none."""
    return Path(path).read_text() if Path(path).exists() else None


async def test_questions_are_answered_in_one_session_that_is_kept() -> None:
    provider = ScriptedProvider(["One.", "Two."])
    person, conversation, status = await talk(provider, *idle("first", "second"))
    assert status == 0
    assert asked(provider) == ["first", "One.", "second"]
    assert "2 turns" in person.status
    assert [message.text for message in conversation.agent.messages] == ["first", "One.", "second", "Two."]
    provider = ScriptedProvider(["Three."])
    await talk(provider, *idle("third"))
    assert asked(provider) == ["first", "One.", "second", "Two.", "third"]


async def test_a_path_that_begins_like_a_command_is_a_question() -> None:
    provider = ScriptedProvider(["Yes."])
    await talk(provider, *idle("/usr/bin/python is there?"))
    assert asked(provider) == ["/usr/bin/python is there?"]


@pytest.mark.parametrize(
    ("answers", "outcome", "text"),
    [
        (["y"], "ok", "hi"),
        (["what?", "yes"], "ok", "hi"),
        (["a better way would be to look first", "yes, and mind the tests", "y"], "ok", "hi"),
        (["n because"], "blocked", "because"),
        (["no"], "blocked", "the user has denied it"),
        (["a"], "ok", "hi"),
    ],
)
async def test_a_call_waits_for_a_person(answers: list[str], outcome: str, text: str) -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "echo hi"})], "Done."])
    _, conversation, _ = await talk(provider, ("> ", "go"), *[("run bash?", each) for each in answers])
    (result,) = provider.requests[-1].messages[-1].tool_results
    assert result.outcome == outcome
    assert text in result.text
    assert ("bash" in conversation.setup.asked) is (answers != ["a"])


@pytest.mark.parametrize(("about", "texts"), [("", ["y"]), ("another call", [])])
async def test_a_line_begun_before_the_question_decides_nothing(about: str, texts: list[str]) -> None:
    """It was meant for what was asked for then: it steers, or it decides about a call that waits no more."""
    provider = ScriptedProvider([[tool_call("bash", {"command": "echo hi"})], "Done."])
    person, _, _ = await talk(provider, ("> ", "go"), ("run bash?", Line("y", about)), ("run bash?", "n"))
    message = provider.requests[-1].messages[-1]
    assert [result.outcome for result in message.tool_results] == ["blocked"]
    assert [block.text for block in message.content if isinstance(block, Text)] == texts
    assert any(said.startswith("not asked any more") for said in person.said) is bool(about)


async def test_a_person_edits_a_call() -> None:
    provider = ScriptedProvider(
        [[tool_call("bash", {"command": "echo hi"})], [tool_call("write", {"file_path": "a", "content": "b"})], "Done."]
    )
    person, _, _ = await talk(
        provider,
        ("> ", "go"),
        ("run bash?", "e"),
        ("input > ", ""),  # thought better of it
        ("run bash?", "e"),
        ("input > ", "echo other"),
        ("run write?", "edit"),
        ("input > ", "{"),  # said, and asked again
        ("run write?", "edit"),
        ("input > ", '{"file_path": 1}'),  # does not fit the tool
        ("run write?", "edit"),
        ("input > ", '{"file_path": "c", "content": "d"}'),
    )
    assert "other" in provider.requests[1].messages[-1].tool_results[0].text
    assert content("c") == "d"
    assert content("a") is None
    assert sum(said.startswith("error: ") for said in person.said) == 2


async def test_ctrl_c_cancels_the_request_and_keeps_what_there_is() -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})], "Fine."])
    person, _, status = await talk(provider, ("> ", "go"), ("steer", Key.INTERRUPT), ("> ", "go on"), asked=set())
    assert "cancelled" in person.said
    assert status == 0
    assert provider.requests[-1].messages[-2].tool_results[0].outcome == "cancelled"


async def test_the_ctrl_c_behind_the_one_that_cancelled_leaves() -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})]])
    _, _, status = await talk(
        provider, ("> ", "go"), ("steer", Key.INTERRUPT), ("> ", Key.INTERRUPT), ("> ", "never read"), asked=set()
    )
    assert status == 130
    assert len(provider.requests) == 1


async def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    person, _, status = await talk(
        ScriptedProvider(["One."]), ("> ", Key.INTERRUPT), ("> ", "x"), ("> ", Key.INTERRUPT), ("> ", Key.INTERRUPT)
    )
    assert status == 130
    assert person.said.count("Ctrl-C once more leaves") == 2  # a line between the two begins anew


@pytest.mark.parametrize("line", ["!stop", "/steer !stop"])
async def test_a_line_steers(line: str) -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})], "I stop."])
    person, _, _ = await talk(provider, ("> ", "go"), ("steer", line), asked=set())
    assert asked(provider)[-1] == "stop"
    assert "Steered" in person.views[0].kinds


async def test_what_a_cancelled_request_did_not_hear_is_said() -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})], "Fine."])
    person, _, _ = await talk(
        provider, ("> ", "go"), ("steer", "and hurry"), ("steer", Key.INTERRUPT), ("> ", "go on"), asked=set()
    )
    assert "↳ goes with the next question: and hurry" in person.said
    assert asked(provider)[-2:] == ["and hurry", "go on"]


async def test_the_end_of_the_input_ends_what_runs() -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})]])
    _, _, status = await talk(provider, ("> ", "go"), ("steer", Key.END), asked=set())
    assert status == 0


async def test_an_error_is_a_line() -> None:
    person, _, status = await talk(ScriptedProvider([error("out of order"), "Fine."]), *idle("go", "again"))
    assert "error: out of order" in person.said
    assert status == 0


# --- one question, with a session or with approval


async def test_one_question() -> None:
    provider = ScriptedProvider(["One."])
    _, _, status = await talk(provider, place=Place("here", ask=Message.user("first")), once=True)
    assert status == 0
    provider = ScriptedProvider(["Two."])
    await talk(provider, place=Place("here", ask=Message.user("second")), once=True)
    assert asked(provider) == ["first", "One.", "second"]


async def test_where_nobody_is_there_to_approve_a_call_is_refused() -> None:
    provider = ScriptedProvider([[tool_call("bash", {"command": "touch x"})], "Well."])
    place = Place("here", ask=Message.user("go"))
    _, _, status = await talk(provider, ("", Key.END), place=place, once=True)
    assert status == 0
    assert "nobody is there to approve it" in provider.requests[-1].messages[-1].tool_results[0].text
    assert content("x") is None


# --- commands


async def test_help_has_every_command_and_every_command_helps() -> None:
    person, _, _ = await talk(ScriptedProvider([]), *idle("/help"))
    wanted = (
        "help model provider tools usage cost budget history reset compact save load sessions export tree health cancel steer "
        "reload system copy retry undo quit"
    )
    assert set(wanted.split(" ")) == set(COMMANDS)
    assert all(f"/{name}" in person.said[0] for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/usage", "in 0"),
        ("/cost", "$0.0000"),
        ("/budget", "no limit"),
        ("/budget 0.5", "$0.0000 of $0.5 spent"),
        ("/budget $2", "of $2 spent"),
        ("/budget much", "error: "),
        ("/budget off", "no limit"),
        ("/history", "nothing yet"),
        ("/sessions", "none yet"),
        ("/tree", "assistant: up"),
        ("/health", "status: idle"),
        ("/cancel", "there is no request"),
        ("/steer", "error: say what"),
        ("/steer x", "error: there is no request"),
        ("/system", "no instructions"),
        ("/system Be brief.", "Be brief."),
        ("/system none", "no instructions"),
        ("/tools", "bash (asks first)"),
        ("/tools read", "read: "),
        ("/tools none", "none"),
        ("/tools reed", "error: there is no tool 'reed'"),
        ("/copy", "error: there is no answer"),
        ("/undo", "error: there is nothing to undo"),
        ("/retry", "error: there is nothing to retry"),
        ("/compact", "error: there is nothing to compact"),
        ("/save", "error: a session's name"),
        ("/load", "error: a session's name"),
        ("/load elsewhere", "error: there is no session 'elsewhere'"),
        ("/model", "scripted:"),
        ("/provider", "there are: demo"),
        ("/provider demo", "demo:demo"),
        ("/provider ollama", "error: "),
        ("/provider nosuch", "error: there is no provider 'nosuch'"),
        ("/model demo:other", "demo:other"),
        ("/reload", "read again"),
        ("/undu", "is it /undo?"),
        ("/xyzzy", "/help lists them"),
        ("/?", "/help"),
    ],
)
async def test_commands(line: str, said: str) -> None:
    person, _, status = await talk(ScriptedProvider([]), *idle(line))
    assert status == 0
    assert said in person.said[-1]


async def test_a_tool_in_a_sandbox_is_chosen_by_its_name() -> None:
    boxed = attrs.evolve(TOOLS["bash"], description="Run it somewhere.")
    available = {**TOOLS, "bash": boxed}
    person, _, _ = await talk(ScriptedProvider([]), *idle("/tools bash"), available=available, tools=())
    assert person.said[-1] == "bash (asks first, in a sandbox): Run it somewhere."


async def test_commands_that_change_a_conversation_wait_for_its_request() -> None:
    lines = ["/undo", "/retry", "/compact", "/save x", "/load x", "/budget 1", "/reload", "/reset", "/model demo:x"]
    provider = ScriptedProvider([[tool_call("bash", {"command": "sleep 1000"})], "Fine."])
    steps: list[tuple[str, str | Key]] = [("> ", "go"), *[("steer", line) for line in lines], ("steer", "/cancel")]
    person, conversation, _ = await talk(provider, *steps, asked=set())
    assert sum(said.startswith("error: ") for said in person.said) == len(lines)
    assert len(conversation.agent.messages) == 3
    assert conversation.setup.provider is provider  # nothing is half changed


async def test_undo_and_retry() -> None:
    provider = ScriptedProvider(["One.", "Two.", "Three."])
    _, conversation, _ = await talk(provider, *idle("first", "second", "/undo", "/retry"))
    assert asked(provider) == ["first"]
    assert [message.text for message in conversation.agent.messages] == ["first", "Three."]


async def test_save_load_and_sessions() -> None:
    provider = ScriptedProvider(["One.", "Two.", "Three."])
    person, conversation, _ = await talk(
        provider, *idle("first", "/save kept", "second", "/load here", "third", "/sessions", "/save kept")
    )
    assert asked(provider) == ["first", "One.", "third"]
    assert conversation.name == "here"
    assert [line[:6] for line in person.said[-2].splitlines()] == ["* here", "  kept"]
    assert "there is a session 'kept' already" in person.said[-1]


async def test_a_session_that_cannot_be_read_loses_nothing() -> None:
    await talk(ScriptedProvider(["One."]), *idle("first"), place=Place("broken"))
    log = Path("sessions/broken/broken.jsonl")
    garbled = f"no JSON\n{content(log)}"
    log.write_text(garbled)  # noqa: ASYNC240 - a small file
    person, conversation, _ = await talk(ScriptedProvider(["Fine."]), *idle("hello", "/load broken", "/history"))
    assert any(said.startswith("error: session 'broken'") for said in person.said)
    assert conversation.name == "here"
    assert "hello" in person.said[-1]
    assert content(log) == garbled
    with pytest.raises(StoreError, match="broken"):
        await talk(ScriptedProvider([]), place=Place("broken"))


async def test_a_session_is_for_one_program_at_a_time() -> None:
    library = Library(Path("sessions"))
    async with library.open("here"):
        with pytest.raises(StoreError, match="here"):
            await talk(ScriptedProvider([]))


async def test_an_empty_conversation_leaves_nothing_behind() -> None:
    await talk(ScriptedProvider([]))
    assert os.listdir("sessions") == []  # noqa: PTH208


async def test_reset_and_compact() -> None:
    answers = [f"Answer {number}. " + "word " * 200 for number in range(6)]
    provider = ScriptedProvider([*answers, "A summary.", "Fine."])
    questions = [f"question {number} " + "word " * 200 for number in range(6)]
    person, _, _ = await talk(provider, *idle(*questions, "/compact", "and now?"))
    before, after = (int(word) for word in person.said[-1].replace(",", "").split() if word.isdigit())
    assert before == 12
    assert after < 12
    said = asked(provider)
    assert any("A summary." in each for each in said)
    assert said[-1] == "and now?"
    assert "Go on." not in said
    person, conversation, _ = await talk(ScriptedProvider([]), *idle("/reset"))
    assert conversation.agent.messages == ()


async def test_a_compaction_can_be_cancelled() -> None:
    words = "word " * 200
    provider = ScriptedProvider([*[f"Answer {words}"] * 6, [delay(1000), text("A summary.")], "Fine."])
    steps = [*idle(*[f"question {words}"] * 6, "/compact"), ("steer >", Key.INTERRUPT)]
    person, conversation, _ = await talk(provider, *steps)
    assert "cancelled" in person.said
    assert len(conversation.agent.messages) == 12


async def test_a_budget_ends_what_it_does_not_allow_and_can_be_raised() -> None:
    demo = Demo(price=Price("3", "15"), delay=0)
    person, conversation, _ = await talk(
        demo, *idle("Hello", "/budget 1", "Hello", "/cost"), budget=Budget("0.000001"), limits={"max_output_tokens": 60}
    )
    assert conversation.cost is not None
    assert conversation.cost > Decimal(0)
    assert person.said[-1].startswith("$0.000")
    assert "left" in person.status
    assert any("budget does not allow more" in said for said in person.said)


async def test_a_configuration_that_is_read_again_forgets_no_money() -> None:
    budget = Budget("0.5")
    _, conversation, _ = await talk(ScriptedProvider([]), *idle("/reload"), budget=budget)
    assert conversation.setup.budget is budget
    assert conversation.setup.system == "new"


async def test_a_cost_that_is_not_known_is_said() -> None:
    _, conversation, _ = await talk(ScriptedProvider(["One."]), *idle("hello", "/usage"))
    assert conversation.cost in {None, Decimal(0)}


@pytest.mark.parametrize("rest", ["", "md", "conversation.md", "json", "json c.json", "c.json"])
async def test_export(rest: str) -> None:
    provider = ScriptedProvider([[tool_call("read", {"file_path": "notes.txt"})], "It has two lines."])
    person, _, _ = await talk(provider, *idle("read it", f"/export {rest}", f"/export {rest}"))
    path = Path(person.said[0].removeprefix("written to "))
    assert "is there already" in person.said[1]
    if "json" in rest:
        assert Session.from_json(content(path) or "").messages[0].text == "read it"
    else:
        document = content(path) or ""
        assert "## User\n\nread it" in document
        assert "It has two lines." in document
        assert "second line" in document


@pytest.mark.parametrize("name", ["~nosuchuser/x.md", "a\0b", "x" * 300, "nosuch/folder/x.md"])
async def test_an_export_to_where_no_file_can_be(name: str) -> None:
    person, _, status = await talk(ScriptedProvider(["One."]), *idle("hello", f"/export {name}"))
    assert person.said[-1].startswith("error: ")
    assert status == 0


async def test_the_export_of_a_session_with_a_slash_is_a_file_here() -> None:
    person, _, _ = await talk(ScriptedProvider(["One."]), *idle("hello", "/save a/b", "/export"))
    assert (Path.cwd() / "a%2Fb.md").exists(), person.said


def test_a_fence_in_a_result_does_not_end_the_exported_one() -> None:
    session = Session(messages=(Message.user("x"), Message.assistant(Text("```py\n1\n```"))))
    assert "```py\n1\n```" in to_markdown(session)


async def test_copy_takes_the_last_answer() -> None:
    person, _, _ = await talk(ScriptedProvider(["One.", "Two."]), *idle("a", "b", "/copy"))
    assert person.copied == "Two."


async def test_another_model_keeps_the_provider() -> None:
    provider = OpenAICompat(model="a", base_url="http://localhost:1/v1", api_key="k")
    _, conversation, _ = await talk(provider, *idle("/model b"))
    changed = conversation.setup.provider
    assert isinstance(changed, OpenAICompat)
    assert (changed.model, changed.base_url) == ("b", provider.base_url)


# --- files in a message


def test_a_file_goes_into_the_message(tmp_path: Path) -> None:
    message = to_message("look at @notes.txt, please", tmp_path)
    assert message.content[0] == Text("look at @notes.txt, please")
    assert message.content[1] == Text('<file path="notes.txt">\nfirst line\nsecond line\n\n</file>')


def test_an_image_is_an_image(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"\x89PNG")
    message = to_message('what is @"a b.png"?', tmp_path)
    assert message.content[1] == Image("image/png", b"\x89PNG")  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("typed", ["me@example.org", "@nobody", "@", "@/", "@" + "x" * 5000, "@~nobody/x"])
def test_what_is_no_file_stays_as_it_was_typed(typed: str, tmp_path: Path) -> None:
    assert to_message(typed, tmp_path) == Message.user(typed)


def test_a_file_that_no_model_could_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidOption, match="neither a text nor an image"):
        to_message("@a.bin", tmp_path)
    (tmp_path / "a.txt").write_bytes(b"x" * (1 << 20))
    with pytest.raises(InvalidOption, match="larger than"):
        to_message("@a.txt", tmp_path)


# --- completion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("/und", ["/undo"]),
        ("/load ke", ["kept"]),
        ("/tools ba", ["bash"]),
        ("/export ", ["md", "json"]),
        ("/budget ", ["off"]),
        ("/provider oll", ["ollama:"]),
        ("/model anthropic:claude-sonnet-5-5", ["anthropic:claude-sonnet-5-5"]),
        ("/usage x", []),
        ("look at @no", ["@notes.txt"]),
        ("look at @fol", ["@folder/"]),
        ("@folder/", ['@"folder/a b"', "@folder/c"]),
        ("@nowhere/", []),
        ("me@no", []),
        ("plain", []),
    ],
)
async def test_completion(typed: str, offered: list[str]) -> None:
    completion = pytest.importorskip("prompt_toolkit.completion", reason="needs the extra repl")
    from prompt_toolkit.document import Document

    from alloy_trio.repl._complete import LineCompleter

    folder = Path("folder")
    folder.mkdir()  # noqa: ASYNC240 - a small folder
    for name in ("a b", "c", ".hidden"):
        (folder / name).touch()
    await talk(ScriptedProvider(["One."]), *idle("hello"), place=Place("kept"))
    completer = LineCompleter(lambda: setup(Demo()), Library(Path("sessions")))
    found = list(completer.get_completions(Document(typed), completion.CompleteEvent()))
    texts = [each.text for each in found]
    assert texts[: len(offered)] == offered
    assert bool(texts) is bool(offered)
    for each in found:  # what stands there then begins with what was typed, or replaces the mention
        assert typed[: len(typed) + each.start_position] + each.text


# --- Markdown that is still being written

LINES = [
    "text",
    "#tag",
    "",
    "# head",
    "- item",
    "  more",
    "1. one",
    "```",
    "~~~",
    "> quote",
    "| a |",
    "|---|",
    "    code",
    "---",
    "===",
]


@given(st.lists(st.sampled_from(LINES), max_size=30), st.integers(1, 7))
def test_blocks_are_cut_where_they_end(lines: list[str], step: int) -> None:
    """The pieces are the text, and each has the blocks that the whole has there."""
    from markdown_it import MarkdownIt

    whole = "\n".join(lines)
    blocks = Blocks()
    pieces = []
    for start in range(0, len(whole), step):
        blocks.feed(whole[start : start + step])
        pieces.append(blocks.take())
    pieces.append(blocks.finish())
    assert "".join(pieces) == whole
    parser = MarkdownIt("commonmark").enable("table")

    def kinds(text: str) -> list[tuple[str, str]]:
        return [(token.type, token.content) for token in parser.parse(text)]

    assert [each for piece in pieces for each in kinds(piece)] == kinds(whole)


@pytest.mark.parametrize("text", ["<http://a.example/%1b%5d0;x%1b%5c>", "<http://a/%c2%9b>", "&#x202e;", "&#27;[2J"])
def test_markdown_cannot_command_the_terminal(text: str) -> None:
    drawn = re.sub(r"\x1b\[[\d;]*m", "", render(text, 80, color=True))
    assert not set(drawn) & set("\x1b\x9b\x07\u202e")


def test_a_question_hides_nothing_of_a_change(tmp_path: Path) -> None:
    (tmp_path / "x.sql").write_text("-- keep: audit\nselect 1;\n")
    lines = diff("write", {"file_path": "x.sql", "content": "++ evil\nselect 1;\n" + "y" * 1200 + "z"}, tmp_path)
    assert "--- keep: audit" in lines
    assert "+++ evil" in lines
    assert [line[:3] for line in lines[-3:]] == ["+yy", "+… ", "+… "]
    assert sum(line.count("y") for line in lines) == 1200
    assert lines[-1].endswith("yz")
    edit = {"file_path": "x", "old_string": "a", "new_string": "b", "replace_all": True}
    assert diff("edit", edit, tmp_path)[0] == "(every occurrence)"


@pytest.mark.parametrize("name", [".", "..", "", "a\nb", "x" * 300, "\udc80"])
def test_a_name_that_no_session_can_have(name: str) -> None:
    with pytest.raises(InvalidOption, match="a session's name"):
        check_name(name)


def test_an_empty_folder_is_no_session(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "b.jsonl").write_text("{}")
    assert Library(tmp_path).names() == ["b"]


def test_code_that_is_too_long_is_cut_and_stays_code() -> None:
    blocks = Blocks()
    blocks.feed("```python\n" + "x = 1\n" * 1000)
    first = blocks.take()
    assert first.startswith("```python\n")
    assert first.endswith("x = 1\n```\n")
    blocks.feed("y = 2\n```\n")
    assert blocks.finish().startswith("```python\n")


@given(st.text(max_size=300), st.integers(1, 120), st.booleans())
def test_any_text_can_be_drawn_and_fits(text: str, columns: int, color: bool) -> None:
    drawn = render(text.replace("\x1b", ""), columns, color=color)
    assert "\x1b]" not in drawn


# --- the configuration

KNOWN = {
    "provider": Known("provider"),
    "budget": Known("budget"),
    "max-turns": Known("max_turns"),
    "tools": Known("tools", is_list=True),
    "approve": Known("approve", is_flag=True),
}


def test_a_profile_goes_before_what_stands_above_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('provider = "a"\nmax-turns = 3\n[profile.local]\nprovider = "b"\ntools = ["read"]\n')
    assert read_config(path, None, KNOWN, needed=True) == {"provider": "a", "max_turns": "3"}
    assert read_config(path, "local", KNOWN, needed=True) == {"provider": "b", "max_turns": "3", "tools": ["read"]}
    path.write_text('tools = "read,write"\napprove = false\n')
    assert read_config(path, None, KNOWN, needed=True) == {"tools": ["read,write"], "approve": False}
    assert read_config(tmp_path / "none", None, KNOWN, needed=False) == {}


@pytest.mark.parametrize(
    ("content", "profile", "message"),
    [
        ("provider =", None, "cannot be read"),
        ('provder = "a"', None, "is it provider"),
        ('[profile.local]\nprovder = "a"', None, "is it provider"),
        ("profile = 3", None, "profiles are tables"),
        ("provider = ['a']", None, "provider has to be one text"),
        ("provider = true", None, "provider has to be one text"),
        ("budget = {a = 1}", None, "budget has to be one text, or a number"),
        ("approve = 'no'", None, "approve has to be true or false"),
        ("tools = [true]", None, "tools has to be a list"),
        ("[profile.local]", "lokal", "is it local"),
        (None, "local", "there is no configuration file"),
    ],
)
def test_a_broken_configuration_is_said_in_a_line(
    content: str | None, profile: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(click.UsageError, match=message):
        read_config(path, profile, KNOWN, needed=False)


def config(content: str) -> None:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "alloy_trio" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(content)


def test_the_configuration_is_what_flags_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    config('provider = "demo:a"\ntools = ["none"]\n[profile.reader]\ntools = ["read"]\n')
    assert main(["Read notes.txt"]) == 0
    assert "would need the tool read" in capsys.readouterr().out
    assert main(["--profile", "reader", "Read notes.txt"]) == 0
    assert "2 lines" in capsys.readouterr().out
    assert main(["--tools", "read", "Read notes.txt"]) == 0  # the command line goes before it
    assert "2 lines" in capsys.readouterr().out


@pytest.mark.parametrize("order", [1, -1])
def test_the_profile_of_a_file_that_is_named(order: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text('provider = "demo"\n[profile.none]\ntools = "none"\n')
    flags = [["--config", "c.toml"], ["--profile", "none"]][::order]
    assert main([*flags[0], *flags[1], "Read notes.txt"]) == 0
    assert "would need the tool read" in capsys.readouterr().out
    assert main(["--config", "c.toml", "--profile", "nosuch", "Read notes.txt"]) == 2


def test_a_configuration_with_a_value_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    config("max-turns = 0")
    assert main(["hello"]) == 2
    assert "max-turns" in capsys.readouterr().err


# --- the command line


def test_one_question_goes_on_with_a_session(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--session", "s", "--provider", "demo", "Hello"]) == 0
    assert main(["--resume", "--provider", "demo", "--json", "Hello again"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert events[0]["payload"]["session_id"] == "s"
    assert main(["--session", "x" * 300, "--provider", "demo", "Hello"]) == 2


def test_there_may_be_nothing_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", "--provider", "demo", "Hello"]) == 2
    assert "no session to resume" in capsys.readouterr().err


def test_a_budget_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--budget", "much", "Hello"]) == 2
    assert main(["--budget", "$1", "--provider", "demo", "Hello"]) == 0
    capsys.readouterr()


def test_another_folder_may_be_allowed(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "x.txt").write_text("far away\n")
    assert main(["--provider", "demo", f"Read {other}/x.txt"]) == 0
    assert "outside the allowed" in capsys.readouterr().out
    assert main(["--provider", "demo", "--allow", str(other), f"Read {other}/x.txt"]) == 0
    assert "far away" in capsys.readouterr().out


def test_nothing_is_approved_where_nobody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--provider", "demo", "--approve", "run `touch x`"]) == 0
    assert "nobody is there to approve it" in capsys.readouterr().out
    assert not Path("x").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", shell]) == 0
    assert "_ALLOY_TRIO_COMPLETE" in capsys.readouterr().out


def test_a_shell_may_ask_by_itself() -> None:
    environment = {**os.environ, "_ALLOY_TRIO_COMPLETE": "zsh_source"}
    command = [sys.executable, "-m", "alloy_trio"]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert "#compdef alloy-trio" in script


def test_setup_is_made_of_flags() -> None:
    made = setup(Demo(), allow=(Path("/x"),))
    assert made.options()["allowed_paths"] == (Path.cwd(), Path("/x"))
    assert attrs.evolve(made, allow=()).options().get("allowed_paths") is None
