"""What a model, a tool, a file or a server says never commands the terminal, wherever it is shown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from test_cli import COMMAND, Paper, Server, ended, stream_of
from test_cli import shown as shown_plain

import alloy_trio
from alloy_trio import Message, Text, Usage
from alloy_trio.events import (
    ApprovalRequested,
    Envelope,
    Retry,
    Steered,
    TextDelta,
    ThinkingDelta,
    ToolEnd,
    ToolInputDelta,
    ToolStart,
    TurnEnd,
    TurnStart,
)
from alloy_trio.repl._ask import diff, subject
from alloy_trio.repl._cli import _configure_log
from alloy_trio.repl._plain import Input, Plain
from alloy_trio.repl._program import fail
from alloy_trio.repl._show import JSONLines, Output, explain, retry_line, shortfall, tool_line
from alloy_trio.repl._text import escaped, harmless, marked, one_line, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from alloy_trio.events import Event

EVILS = {
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\safe\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "conceal": "\x1b[8mhidden\x1b[0m",
    "c1": "\x9b2J\x9d52;c;eA==\x9c\x85\x90q\x9c",
    "overwrite": "rm -rf /\r\x08\x08ls",
    "bidi": "\u202e\u2066txt.exe\u2069\u202c",
    "tags": "hi\U000e0072\U000e006d",
    "nul": "\x00\x7f\x0b\x0c",
}
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
UNSEEN = re.compile("[\u00ad\u061c\u115f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ufeff\ufe00-\ufe0f]")
OURS = re.compile(r"\x1b\[(?:1|2|31|32)?m|\x1b\[0m|\r\x1b\[K")  # styles, and the end of a line that was passing

each_evil = pytest.mark.parametrize("evil", EVILS.values(), ids=EVILS)


def assert_obeys_nothing(sheet: str) -> None:
    left = OURS.sub("", sheet).replace("\r\n", "\n")
    assert not OBEYED.search(left), repr(left)


# The cleaners.


@given(st.text())
def test_harmless_text_has_nothing_that_is_obeyed(text: str) -> None:
    clean = harmless(text)
    assert not OBEYED.search(clean)
    assert harmless(clean) == clean
    assert clean.count("\n") == text.count("\n")
    if text.isprintable():
        assert clean == text


@given(st.lists(st.text(max_size=4)))
def test_text_in_pieces_is_as_harmless_as_in_one(pieces: list[str]) -> None:
    """A sequence that is cut between two deltas is never put together."""
    assert "".join(map(harmless, pieces)) == harmless("".join(pieces))


@given(st.text())
def test_one_line_is_one(text: str) -> None:
    line = one_line(text)
    assert "\n" not in line
    assert not OBEYED.search(line)


@given(st.text())
def test_visible_text_has_nothing_that_is_not_seen(text: str) -> None:
    clean = visible(text)
    assert not OBEYED.search(clean)
    assert not UNSEEN.search(clean)
    assert all(each.isprintable() or each in "\n\t" for each in clean)
    assert len(clean) >= len(text)
    assert (clean == text) == (visible(clean) == text)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("rm -rf /tmp/\u200bx", "rm -rf /tmp/⟨U+200B⟩x"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u00a0b", "a⟨U+00A0⟩b"),
        ("a\rb", "a␍b"),
        ("\x1b[8m", "␛[8m"),
        ("\x9b2J", "⟨U+009B⟩2J"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\u3164=1", "⟨U+3164⟩=1"),
        ("größer → 日本語 👍\n\tx", "größer → 日本語 👍\n\tx"),
    ],
)
def test_how_it_is_seen(text: str, seen: str) -> None:
    assert visible(text) == seen


@given(st.text())
def test_what_is_edited_keeps_its_length(text: str) -> None:
    assert len(marked(text)) == len(text)
    assert not UNSEEN.search(marked(text))


@given(st.text())
def test_escaped_json_says_the_same(text: str) -> None:
    said = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(escaped(said)) == json.loads(said)
    assert not OBEYED.search(escaped(said))


# The plain terminal, and `-p`.


def everything(evil: str) -> list[Event]:
    """Return every event that has foreign text in it, with this one."""
    arguments = {"file_path": evil, "old_string": "a", "new_string": evil}
    return [
        TurnStart(),
        ThinkingDelta(evil),
        TextDelta(f"answer {evil}"),
        ToolInputDelta("1", evil, evil),
        TurnEnd(Message.assistant(evil), evil, Usage()),
        ApprovalRequested("1", "bash", {"command": evil}),
        ApprovalRequested("2", "edit", arguments),
        ApprovalRequested("3", evil, {evil: evil}),
        ToolStart("1", evil, {"command": evil}),
        ToolStart("2", "edit", arguments),
        ToolStart("3", "other", {evil: [evil]}),
        ToolEnd("1", evil, {"command": evil}, "ok", 1.0, None, 1, content=(Text(evil * 3),)),
        ToolEnd("2", "edit", arguments, "ok", 1.0, None, 1, content=(Text(evil),)),
        ToolEnd("3", "other", {evil: [evil]}, "error", 1.0, evil, 1, content=(Text(evil),)),
        Retry(evil, evil, 2, 1.0, evil),
        Retry("p", "m", 1, 1.0, evil),
        Steered(evil),
    ]


@each_evil
async def test_nothing_of_a_run_commands_a_plain_terminal(evil: str) -> None:
    for event in everything(evil):
        sheet, _ = await shown_plain(TurnStart(), event)
        assert_obeys_nothing(sheet)
    sheet, _ = await shown_plain(*everything(evil))
    assert_obeys_nothing(sheet)
    assert "answer" in sheet


@each_evil
async def test_a_sequence_that_comes_in_two_deltas(evil: str) -> None:
    for cut in range(1, len(evil)):
        sheet, _ = await shown_plain(TurnStart(), TextDelta(f"x{evil[:cut]}"), TextDelta(evil[cut:]))
        assert_obeys_nothing(sheet)


@each_evil
async def test_a_pipe_gets_what_was_said(evil: str) -> None:
    """What a program reads is the answer, and no picture of it; what a person reads beside it is clean."""
    out, err = await shown_plain(*everything(evil), out_terminal=False)
    assert f"answer {evil}" in out
    assert_obeys_nothing(err)


@each_evil
@pytest.mark.parametrize("terminal", [True, False])
async def test_json_on_a_terminal_is_the_same_json(evil: str, terminal: bool) -> None:
    sheet: list[str] = []
    view = JSONLines(Output(Paper(sheet, terminal=terminal)))
    for seq, event in enumerate(everything(evil), 1):
        envelope = Envelope(seq=seq, correlation_id="c", turn=1, ts=0.0, event=event)
        await view.show(envelope)
        assert Envelope.from_dict(json.loads(sheet.pop())) == envelope
    await view.show(Envelope(seq=1, correlation_id="c", turn=1, ts=0.0, event=TextDelta(evil)))
    if terminal:
        assert_obeys_nothing("".join(sheet))


@each_evil
async def test_a_front_of_lines(evil: str) -> None:
    sheet: list[str] = []
    out = Output(Paper(sheet, terminal=True))
    keyboard = Input(None)
    keyboard.terminal = True
    front = Plain(keyboard, out, lambda: pytest.fail("no request"))
    await front.say(f"written to {evil}")
    await front.say(evil, dim=True)
    await front.prompt("input > ", evil, "1")
    assert_obeys_nothing("".join(sheet))


@each_evil
def test_lines_about_a_run(evil: str) -> None:
    class Look:
        columns = 80

        def style(self, text: str, code: int) -> str:
            del code
            return text

    assert_obeys_nothing(tool_line(ended(command=evil, error=evil), Look()))
    assert_obeys_nothing(retry_line(Retry("p", "m", 2, 1.0, evil)))
    assert_obeys_nothing(explain(alloy_trio.ProviderError(evil)))
    assert_obeys_nothing(explain(RuntimeError(evil)))
    halted = alloy_trio.Result(status="halted", error=alloy_trio.Halted(evil), messages=(), usage=Usage())
    assert_obeys_nothing(shortfall(halted) or "")


@each_evil
def test_the_end_of_the_program(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with `--debug`, which shows a traceback, and with it what an error says."""
    assert fail(evil, 1, f"Traceback\n{evil}\n") == 1
    assert_obeys_nothing(capsys.readouterr().err)


@each_evil
def test_the_log_of_debug(evil: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = logging.getLogger("alloy_trio")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(ours, "level", ours.level)
    _configure_log(debug=True)
    logging.getLogger("alloy_trio.tools").warning("tool call %s refused", evil)
    said = capsys.readouterr().err
    assert "WARNING alloy_trio.tools" in said
    assert_obeys_nothing(said)


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_the_whole_program_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server that says what is hostile, in pieces that cut it."""
    import pty

    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    ours, theirs = pty.openpty()
    with Server() as server:
        server.body = lambda _: stream_of("Hello ", *"".join(EVILS.values()))
        command = [*COMMAND, "--base-url", server.url, "--model", "m", "-p", "Hi"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, timeout=20, check=False)
        os.set_blocking(ours, False)
        seen = os.read(ours, 1 << 16).decode()
        piped = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, piped.returncode) == (0, 0)
    assert "Hello" in seen
    assert_obeys_nothing(seen)
    assert EVILS["clipboard"].encode() in piped.stdout


# What a person is asked to approve.


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("bash", {"command": "ls\u200b -l"}, "$ ls⟨U+200B⟩ -l"),
        ("bash", {"command": "echo safe\x0brm"}, "$ echo safe␋rm"),
        ("bash", {"command": "echo a\rrm -rf /"}, "$ echo a␍rm -rf /"),
        ("bash", {"command": "echo a\u2028b"}, "$ echo a⟨U+2028⟩b"),
        ("edit", {"file_path": "a\n+b", "old_string": "x", "new_string": "y"}, "a␊+b"),
        ("edit", {"file_path": "f", "old_string": "x", "new_string": "y\u2066z"}, "+y⟨U+2066⟩z"),
        ("write", {"file_path": "new", "content": "ok\u00a0\ufeff"}, "+ok⟨U+00A0⟩⟨U+FEFF⟩"),
        ("edit", {"file_path": "f", "old_string": "# a\ncheck()", "new_string": "# a\x0bcheck()"}, "+# a␋check()"),
        ("edit", {"file_path": "f", "old_string": "# a\rcheck()", "new_string": "# a\ncheck()"}, "-# a␍check()"),
        ("edit", {"file_path": "f", "old_string": "a\nb", "new_string": "a\nb\n"}, "+"),
        ("write", {"file_path": "script", "content": "a\nb"}, "+b"),
        ("fetch", {"url": "https://a\u202e.example"}, '{"url":"https://a⟨U+202E⟩.example"}'),
    ],
)
async def test_nothing_is_unseen_in_what_is_approved(
    name: str, arguments: dict[str, Any], line: str, tmp_path: Path
) -> None:
    assert line in subject(name, arguments, tmp_path)
    sheet, _ = await shown_plain(ApprovalRequested("1", name, arguments))
    assert line in sheet.split("\n")


def test_a_change_of_line_ends_is_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"# a\r\ncheck()\n")
    lines = subject("write", {"file_path": "f", "content": "# a\ncheck()\n"}, tmp_path)
    assert lines[2:] == ["-# a␍", "+# a", " check()"]


@given(st.text(), st.text(), st.text())
def test_whatever_is_approved_shows(command: str, old: str, new: str) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("bash", {"command": command}),
        ("edit", {"file_path": command, "old_string": old, "new_string": new}),
        ("other", {"words": command}),
    ]
    for name, arguments in asked:
        for line in subject(name, arguments, Path()):
            assert "\n" not in line
            assert not OBEYED.search(line)
            assert not UNSEEN.search(line)
    assert all("\n" not in line for line in diff("edit", asked[1][1], Path()))
    assert len(subject(*asked[0], Path())) == command.removesuffix("\n").count("\n") + 1


# The screen.


class Sheet:
    """What stands where a screen would be drawn."""

    color = True
    size = SimpleNamespace(rows=24, columns=80)

    def __init__(self) -> None:
        self.everything: list[str] = []

    def write(self, text: str, done: Callable[[], None]) -> None:
        self.everything.append(text)
        done()

    def draw(self, text: str) -> None:
        self.everything.append(text)

    def show_status(self, text: str) -> None:
        self.everything.append(text)

    def prompt(self, text: str, fill: str = "", about: str = "") -> None:
        del fill, about  # what is filled in stands in the editor
        self.everything.append(text)


@pytest.fixture
def drawn() -> None:
    pytest.importorskip("prompt_toolkit", reason="needs the extra repl")
    pytest.importorskip("rich", reason="needs the extra repl")


# Markdown has colors of its own: they are styles as well.
STYLES = re.compile(r"\x1b\[[\d;]*m")


@each_evil
@pytest.mark.usefixtures("drawn")
async def test_nothing_of_a_run_commands_a_screen(evil: str, tmp_path: Path, autojump_clock: MockClock) -> None:
    from alloy_trio.repl._terminal import Terminal

    sheet: Any = Sheet()
    terminal = Terminal(sheet, tmp_path)
    view = terminal.view()
    for seq, event in enumerate([*everything(evil), *(TextDelta(each) for each in evil)], 1):
        await view.show(Envelope(seq=seq, correlation_id="c", turn=1, ts=0.0, event=event))
        terminal.draw(view._draw)
        await trio.sleep(1)
    await view.close()
    await view.unfold()
    await terminal.say(f"written to {evil}")
    await terminal.echo(evil)
    terminal.show_status(evil)
    assert "\x1b[8m" not in "".join(sheet.everything)
    for said in sheet.everything:
        assert not OBEYED.search(STYLES.sub("", said).replace("\r\n", "\n")), repr(said)


@pytest.mark.usefixtures("drawn")
async def test_the_screen_marks_what_is_unseen_in_what_is_approved(tmp_path: Path, autojump_clock: MockClock) -> None:
    from alloy_trio.repl._terminal import Terminal

    sheet: Any = Sheet()
    terminal = Terminal(sheet, tmp_path)
    view = terminal.view()
    request = ApprovalRequested("1", "bash", {"command": "ls \u200b\u202ex"})
    await view.show(Envelope(seq=1, correlation_id="c", turn=1, ts=0.0, event=request))
    assert "$ ls ⟨U+200B⟩⟨U+202E⟩x" in "".join(sheet.everything)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("about", ["1", ""])
def test_the_editor_marks_what_a_model_has_put_there(about: str) -> None:
    """While it is a call's input that is edited; what a person types has letters that need such characters."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import DummyInput
    from prompt_toolkit.output import DummyOutput

    from alloy_trio.repl._screen import Screen

    async def edited() -> tuple[str, str]:
        with create_app_session(input=DummyInput(), output=DummyOutput()):
            screen = Screen(color=False)
            screen._about = about
            buffer = screen._session.default_buffer
            buffer.text = "ls \u200bx"
            controls: list[Any] = list(screen._session.layout.find_all_controls())
            shown, *_ = [each for each in controls if getattr(each, "buffer", None) is buffer]
            return "".join(text for _, text, *_ in shown.create_content(80, 1).get_line(0)), buffer.text

    line, text = asyncio.run(edited())
    assert text == "ls \u200bx"
    assert ("\ufffd" in line) is bool(about)


@pytest.mark.usefixtures("drawn")
def test_what_is_offered_for_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor a session whose name is no plain text."""
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from alloy_trio.providers import Demo
    from alloy_trio.repl._complete import LineCompleter
    from alloy_trio.repl._library import Library

    sessions = tmp_path / "sessions"
    for name in ("good", *(f"x%{ord(evil[0]):02X}" for evil in EVILS.values() if ord(evil[0]) < 0x80)):
        (sessions / name).mkdir(parents=True, exist_ok=True)
        (sessions / name / "s.jsonl").write_text("{}")
    files = tmp_path / "files"
    files.mkdir()
    for name in ("good", "\x1b[2J", "a\u202eb", "c\x9bd", "z\u200bz"):
        (files / name).touch()

    class Where:
        directory = files
        provider = Demo()

    where: Any = Where()
    completer = LineCompleter(lambda: where, Library(sessions))
    for typed in ("/load ", "@"):
        found = list(completer.get_completions(Document(typed), CompleteEvent()))
        assert any("good" in each.text for each in found)
        for each in found:
            assert each.text.isprintable()
            assert each.display_text.isprintable()


@given(st.text(max_size=30))
def test_markdown_draws_nothing_that_is_obeyed(text: str) -> None:
    pytest.importorskip("rich", reason="needs the extra repl")
    from alloy_trio.repl._markdown import render

    assert not OBEYED.search(STYLES.sub("", render(harmless(text), 40, color=True)))
