"""The conversation on a real terminal: keys go in through tmux, what is looked at is the screen."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("prompt_toolkit", reason="needs the extra repl")
pytest.importorskip("rich", reason="needs the extra repl")
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")

BOUND = 20  # seconds until a test gives up
_sockets = itertools.count()
ROOT = Path(__file__).resolve().parents[1]


class Screen:
    """The program in a window of a tmux server of its own."""

    def __init__(self, home: Path, *arguments: str, columns: int = 80, rows: int = 30, **environment: str) -> None:
        self._socket = str(home / f"tmux{next(_sockets)}")  # that of a server that is about to end cannot be had
        where = {name: str(home / name) for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.endswith("_API_KEY") and name not in {"ALLOY_PROVIDER", "NO_COLOR", "TMUX"}
        }
        stale = {"COLUMNS": "80", "LINES": "24"}  # some shells export them
        self._environment = {**clean, **where, **stale, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **environment}
        command = [
            "sh",
            "-c",
            '"$@"; echo "[status $?]"; sleep 60',
            "sh",
            sys.executable,
            "-m",
            "alloy_trio",
            *arguments,
        ]
        size = ["-x", str(columns), "-y", str(rows)]
        settings = home / "tmux.conf"
        settings.write_text("set -g history-limit 5000\n")
        self._tmux("-f", str(settings), "new-session", "-d", "-s", "s", *size, "-c", str(home), *command)

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=BOUND,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError):
            self._tmux("kill-server")

    def type(self, text: str) -> None:
        """Type a line, and press Enter."""
        self._tmux("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Paste a text as terminals do, in brackets."""
        path = Path(self._socket).with_name("paste")
        path.write_bytes(text.encode())
        self._tmux("load-buffer", str(path))
        self._tmux("paste-buffer", "-p", "-r")

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shown(self, *, styled: bool = False) -> str:
        """Return what is seen now, and what has scrolled up."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-2000", *(["-e"] if styled else []))

    def expect(self, text: str, *, count: int = 1) -> str:
        """Wait until a text is seen, so many times; another process writes it, so looking again and again is all one can do."""
        return self.until(lambda seen: seen.count(text) >= count, f"{text!r}")

    def until(self, holds: Callable[[str], bool], what: str = "that") -> str:
        end = time.monotonic() + BOUND
        while not holds(seen := self.shown()):
            assert time.monotonic() < end, f"no {what} in\n{seen}"
            time.sleep(0.03)
        return seen

    def ready(self) -> str:
        """Wait for the prompt of an idle conversation, which stands above the status line."""

        def is_ready(seen: str) -> bool:
            lines = [line for line in seen.splitlines() if line.strip()]
            return len(lines) > 1 and lines[-2].startswith(">")

        return self.until(is_ready, "prompt")

    def ended(self) -> int:
        """Wait for the program's end, and return its status."""
        seen = self.until(lambda seen: re.search(r"\[status \d+\]", seen) is not None, "end")
        return int(re.findall(r"\[status (\d+)\]", seen)[-1])

    def kill(self) -> None:
        """Kill the program, and nothing else."""
        shell = int(self._tmux("display", "-p", "#{pane_pid}"))
        (child,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert self.ended() == 128 + signal.SIGKILL


class Model:
    """
    A chat server on a loopback port that says what it is told to.

    An answer is a list: a text is a delta, a dict a tool call, an Event something to wait for, None the loss of the connection.
    """

    def __init__(self) -> None:
        self.answers: list[list[Any]] = []
        self.asked: list[dict[str, Any]] = []
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                model.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                parts = model.answers.pop(0) if model.answers else ["nothing more"]
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.send(parts)

            def send(self, parts: list[Any]) -> None:
                reason = "stop"
                for number, part in enumerate(parts):
                    match part:
                        case str():
                            self.chunk({"content": part})
                        case {"name": name, **arguments}:
                            call = {"name": name, "arguments": json.dumps(arguments)}
                            each = {
                                "index": 0,
                                "id": f"call_{len(model.asked)}_{number}",
                                "type": "function",
                                "function": call,
                            }
                            self.chunk({"tool_calls": [each]})
                            reason = "tool_calls"
                        case None:
                            return
                        case event:
                            event.wait(BOUND)
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                self.chunk({}, finish_reason=reason, usage=usage)
                self.wfile.write(b"data: [DONE]\n\n")

            def chunk(self, delta: dict[str, Any], usage: Any = None, finish_reason: str | None = None) -> None:
                choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
                data = {"id": "1", "model": "m", "choices": [choice], **({"usage": usage} if usage else {})}
                self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def arguments(self) -> tuple[str, ...]:
        url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return ("--base-url", url, "--model", "m", "--max-retries", "0")

    def said(self) -> list[str]:
        """Return what the last request had as texts."""
        return [str(message.get("content")) for message in self.asked[-1]["messages"]]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("first line\nsecond line\n")
    return tmp_path


def test_an_answer_streams_as_markdown_and_stays(home: Path, model: Model) -> None:
    go_on = threading.Event()
    model.answers = [["# Title\n\nSome **bold", go_on, "** words.\n\n- one\n- two\n"]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("hello")
        screen.expect("Some **bold")  # not finished, and shown
        assert "steer >" in screen.shown()
        go_on.set()
        screen.expect("1 turn ·", count=2)
        seen = screen.ready()
        for line in ("> hello", "Title", "Some bold words.", " • one", " • two"):
            assert line in seen.splitlines()
        assert seen.count("bold") == 1  # what was drawn while it grew is gone
        assert "15 tokens" in seen
        assert "context 0 %" in seen
        assert "\x1b[1mbold" in screen.shown(styled=True)
        screen.press("C-d")
        assert screen.ended() == 0


def test_a_tool_call_is_a_line_and_its_output_is_folded(home: Path, model: Model) -> None:
    (home / "long.txt").write_text("".join(f"line {number}\n" for number in range(1, 10)))
    model.answers = [[{"name": "read", "file_path": "long.txt"}], ["Read."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("read it")
        screen.expect("Read.")
        seen = screen.ready()
        assert re.search(r"^● read long.txt  0.\d\ds  ok$", seen, re.MULTILINE)
        assert "line 2" in seen
        assert "line 8" not in seen
        assert "… 6 lines more: Ctrl-O" in seen
        screen.press("C-o")
        assert "line 8" in screen.expect("nothing is folded from here on")


def test_a_person_approves_denies_and_edits_commands(home: Path, model: Model) -> None:
    def bash(command: str) -> dict[str, str]:
        return {"name": "bash", "command": command}

    commands = ["touch a", "touch b", "touch c", "touch e"]
    model.answers = [[bash(each)] for each in commands] + [["Done."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("work")
        screen.expect("run bash?")
        assert not (home / "a").exists()
        screen.type("perhaps")  # neither yes nor no: it is asked again
        screen.type("y")
        screen.expect("$ touch b")
        assert (home / "a").exists()
        screen.type("n not that one")
        screen.expect("$ touch c")
        screen.type("e")
        screen.expect("input > touch c")
        screen.press("BSpace", "d", "Enter")
        screen.expect("$ touch e")
        screen.type("a")
        screen.expect("Done.")
        screen.ready()
        model.answers = [[bash("touch f")], ["Again."]]
        screen.type("once more")  # and nothing is asked
        screen.expect("Again.")
    assert sorted(path.name for path in home.iterdir() if len(path.name) == 1) == ["a", "d", "e", "f"]
    results = [each["content"] for each in model.asked[-1]["messages"] if each["role"] == "tool"]
    assert "not that one" in results[1]


def test_a_line_begun_before_the_question_approves_nothing(home: Path, model: Model) -> None:
    go_on = threading.Event()
    model.answers = [["I look.", go_on, {"name": "bash", "command": "touch made"}], ["Well."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("work")
        screen.expect("I look.")
        screen.press("y")
        screen.expect("steer > y")
        go_on.set()
        screen.expect("run bash?")
        screen.press("Enter")
        screen.until(lambda seen: seen.rstrip().splitlines()[-2].rstrip().endswith("edit >"), "question again")
        assert not (home / "made").exists()
        screen.type("n")
        screen.expect("Well.")
        screen.ready()
    assert not (home / "made").exists()
    assert any("y" in text.splitlines() for text in model.said())


def test_an_edit_is_a_diff_in_color(home: Path, model: Model) -> None:
    edit = {"name": "edit", "file_path": "notes.txt", "old_string": "second line", "new_string": "another line"}
    model.answers = [[edit], ["Changed."]]
    with Screen(home, *model.arguments, "--yolo") as screen:
        screen.ready()
        screen.type("change it")
        screen.expect("Changed.")
        seen = screen.shown(styled=True)
        assert re.search(r"\x1b\[31m[^\n]*-second line", seen)
        assert re.search(r"\x1b\[32m[^\n]*\+another line", seen)
    assert (home / "notes.txt").read_text() == "first line\nanother line\n"


def test_ctrl_c_in_the_middle_of_an_answer(home: Path, model: Model) -> None:
    never = threading.Event()
    model.answers = [["It begins ", never, "and never ends"], ["Fine."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("hello")
        screen.expect("It begins")
        screen.press("C-c")
        screen.expect("cancelled")
        screen.ready()
        screen.type("go on")
        screen.expect("Fine.")
        never.set()
        assert model.said() == ["hello", "It begins", "go on"]
        screen.press("C-c")  # at the prompt: one is a question, two leave
        screen.expect("once more leaves")
        screen.press("C-c")
        assert screen.ended() == 130


def test_ctrl_c_in_the_middle_of_a_tool(home: Path, model: Model) -> None:
    model.answers = [[{"name": "bash", "command": "echo $$ > pid; exec sleep 1000"}], ["Fine."]]
    with Screen(home, *model.arguments, "--yolo") as screen:
        screen.ready()
        screen.type("sleep")
        screen.until(lambda _: (home / "pid").exists() and bool((home / "pid").read_text().strip()))
        screen.press("C-c")
        screen.expect("cancelled")
        screen.ready()
        with pytest.raises(ProcessLookupError):
            os.kill(int((home / "pid").read_text()), 0)
        screen.type("go on")
        screen.expect("Fine.")
    assert [message["role"] for message in model.asked[-1]["messages"]] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("interrupts", [False, True])
def test_what_is_typed_while_it_works_steers(interrupts: bool, home: Path, model: Model) -> None:
    gate = home / "gate"
    os.mkfifo(gate)
    model.answers = [[{"name": "bash", "command": "cat gate"}], ["I see."]]
    with Screen(home, *model.arguments, "--yolo") as screen:
        screen.ready()
        screen.type("work")
        screen.expect("bash cat gate")
        screen.type("!no, stop" if interrupts else "and hurry")
        if not interrupts:
            assert len(model.asked) == 1  # the command goes on
            gate.write_text("through the gate")
        screen.expect("I see.")
        seen = screen.ready()
    said = "no, stop" if interrupts else "and hurry"
    assert f": {said}" in seen
    assert any(said in text for text in model.said())
    assert any("through the gate" in text for text in model.said()) is not interrupts


def test_undo_and_retry(home: Path, model: Model) -> None:
    model.answers = [["One."], ["Two."], ["Three."], ["Four."]]
    with Screen(home, *model.arguments) as screen:
        for question, answer in (("first", "One."), ("second", "Two.")):
            screen.ready()
            screen.type(question)
            screen.expect(answer)
        screen.ready()
        screen.type("/undo")
        screen.expect("taken back: second")
        screen.ready()
        screen.type("third")
        screen.expect("Three.")
        assert model.said() == ["first", "One.", "third"]
        screen.ready()
        screen.type("/retry")
        screen.expect("Four.")
        assert model.said() == ["first", "One.", "third"]


def test_a_conversation_goes_on_after_a_kill(home: Path, model: Model) -> None:
    never = threading.Event()
    model.answers = [["One."], [{"name": "bash", "command": "echo once >> log; sleep 1000"}]]
    with Screen(home, *model.arguments, "--yolo") as screen:
        screen.ready()
        screen.type("first")
        screen.expect("One.")
        screen.ready()
        screen.type("second")
        screen.until(lambda _: (home / "log").exists())
        screen.kill()
    never.set()
    model.answers = [["Back."]]
    with Screen(home, *model.arguments, "--resume") as screen:
        screen.ready()
        screen.type("third")
        screen.expect("Back.")
        said = model.said()
    assert said[:2] == ["first", "One."]
    assert said[-1] == "third"
    assert any("restarted" in text for text in said)
    assert (home / "log").read_text() == "once\n"


def test_a_terminal_of_twenty_columns(home: Path, model: Model) -> None:
    go_on = threading.Event()
    words = " ".join(f"word{number}" for number in range(40))
    model.answers = [[words[:100], go_on, words[100:]], ["Wide again."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("hello")
        screen.expect("word9")
        screen.resize(20, 12)
        screen.expect("openai_compat:m · …")  # the program has heard of it: tmux tells it a moment later
        go_on.set()
        screen.expect("word39")
        screen.ready()
        screen.resize(80, 30)
        screen.type("again")
        seen = screen.expect("Wide again.")
    assert "word36 word37 word38\nword39\n" in seen  # as wide as it was then, and drawn once
    assert seen.split().count("word39") == 1
    assert "Traceback" not in seen


def test_pastes(home: Path, model: Model) -> None:
    """Control characters are left out, line breaks stay, and a megabyte is one word on the screen and whole in the message."""
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.paste("two\nlines \x1b[31mred\x07")
        screen.expect("lines [31mred")
        screen.press("Enter")
        screen.expect("nothing more")
        assert model.said()[-1] == "two\nlines [31mred"
        screen.ready()
        large = "0123456789abcde\n" * (1 << 16)
        screen.paste(large)
        screen.expect("[pasted 1: 1,048,576 characters]")
        screen.press("Enter")
        screen.expect("nothing more", count=2)
        assert model.said()[-1] == large
        screen.ready()
        screen.paste("0123456789abcde\n" * 200)
        screen.expect("[pasted 2: 3,200 characters]")
        screen.press("Enter")
        screen.expect("nothing more", count=3)
        screen.press("C-d")
        screen.ended()
    with Screen(home, *model.arguments) as screen:  # the history has the text, not a name that nobody knows any more
        screen.ready()
        screen.press("Up", "Enter")
        screen.expect("nothing more")
    assert model.said()[-1] == "0123456789abcde\n" * 200


def test_completion_and_history(home: Path, model: Model) -> None:
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.press("/", "s", "e", "s")
        screen.expect("the conversations that were kept")
        screen.press("Tab")
        screen.expect("> /sessions")
        screen.press("Enter")
        screen.expect("none yet")
        screen.ready()
        screen.press("l", "o", "o", "k", " ", "@", "n", "o")
        screen.expect("notes.txt")
        screen.press("Tab")
        screen.expect("look @notes.txt")
        screen.press("Enter")
        screen.expect("nothing more")
        assert "first line\nsecond line" in json.dumps(model.asked[-1]).replace("\\n", "\n")
        screen.press("C-d")
        screen.ended()
    with Screen(home, *model.arguments) as screen:  # what was typed is known the next time
        screen.ready()
        screen.press("Up")
        screen.expect("> look @notes.txt")


def test_what_goes_wrong_is_a_line_and_the_prompt_comes_back(home: Path, model: Model) -> None:
    model.answers = [["It begins", None], ["Fine."]]
    with Screen(home, *model.arguments) as screen:
        screen.ready()
        screen.type("hello")
        screen.expect("error: ")
        screen.ready()
        screen.type("/undoo")
        screen.expect("/undoo is no command: is it /undo?")
        screen.type("/load nothing")
        screen.expect("there is no session 'nothing'")
        screen.type("again")
        screen.expect("Fine.")
        seen = screen.shown()
    assert "Traceback" not in seen
    assert "It begins" in " ".join(model.said())  # nothing was lost


def test_the_configuration_is_read_again(home: Path) -> None:
    config = home / "XDG_CONFIG_HOME" / "alloy_trio" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('provider = "demo:one"\n')
    with Screen(home) as screen:
        screen.expect("demo:one")
        config.write_text('provider = "demo:two"\ntools = ["read"]\n')
        screen.type("/reload")
        screen.expect("read again: demo:two, tools read")
        screen.expect("demo:two · 0 turns")
        config.write_text("provider = ")
        screen.type("/reload")
        screen.expect("cannot be read")
        screen.type("/model")
        screen.expect("demo:two", count=3)  # nothing has changed


def test_a_setup_that_cannot_be_is_a_line_and_the_terminal_is_as_it_was(home: Path) -> None:
    with Screen(home, "--provider", "nonsense") as screen:
        assert screen.ended() == 2
        assert "error: unknown provider 'nonsense'" in screen.shown()
