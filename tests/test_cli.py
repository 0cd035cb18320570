"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import io
import json
import logging
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from commands import why_not
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import AlloyError, InvalidOption, Result, Usage
from alloy_trio.events import (
    Compacted,
    Envelope,
    Retry,
    RunEnd,
    TextDelta,
    ThinkingDelta,
    ToolEnd,
    ToolStart,
    TurnStart,
)
from alloy_trio.repl._cli import main
from alloy_trio.repl._plain import Input
from alloy_trio.repl._show import Output, Screen, shortfall, summary, tool_line
from alloy_trio.repl._text import clip, harmless, width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.testing import MockClock

    from alloy_trio.events import Event

BOUND = 20  # seconds until a test of a process gives up
CANARY = "sk-canary-0123456789abcdef"
WHY_NOT = why_not()
COMMAND = [sys.executable, "-m", "alloy_trio"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No keys, a plain terminal, an empty standard input, a folder with two files; the log as it was."""
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name in {"ALLOY_PROVIDER", "NO_COLOR"} or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[project]\nversion = "4.5.6"\n')
    Path("notes.txt").write_text("first line\nsecond line\n")
    log = logging.getLogger("alloy_trio")
    level = log.level
    yield
    log.setLevel(level)


class Server:
    """A chat server on a loopback port, which answers each request as it is told to and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.status, self.kind = 200, "text/event-stream"
        self.body: Callable[[Any], bytes] = lambda _: stream_of("Hello ", "world")
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with contextlib.suppress(ValueError):
                    server.asked.append(json.loads(body))
                answer = server.body(self.headers)
                self.send_response(server.status)
                self.send_header("content-type", server.kind)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, status: int, kind: str, body: str) -> None:
        self.status, self.kind, self.body = status, kind, lambda _: body.encode()


def stream_of(*pieces: str, finish: str = "stop") -> bytes:
    """Return a streamed answer of the Chat Completions API."""
    deltas = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]} for text in pieces]
    end = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 1234, "completion_tokens": 56},
    }
    lines = [f"data: {json.dumps(event)}\n\n" for event in (*deltas, end)]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *arguments], **{**pipes, **options})


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- one run


def test_a_prompt_is_answered_on_stdout_and_the_rest_told_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["Read pyproject.toml and tell me the version"]) == 0
    out, err = capsys.readouterr()
    assert out == "Let me look: read pyproject.toml.\nThe version in pyproject.toml is 4.5.6.\n"
    notice, call, last = err.splitlines()
    assert notice.startswith("demo: no language model, no key.")
    for word in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "--base-url", "http://localhost:11434/v1"):
        assert word in notice
    assert re.fullmatch(r"● read pyproject\.toml  \d\.\d\ds  ok", call)
    assert re.fullmatch(r"2 turns · \d+ in / \d+ out tokens · \d+\.\d s", last)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "read notes.txt"],
        ["--prompt=read notes.txt"],
        ["read", "notes.txt"],
        ["--no-color", "read notes.txt"],
    ],
)
def test_ways_to_say_a_prompt(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "notes.txt has 2 lines and begins with: first line" in capsys.readouterr().out


def test_a_failed_tool_call_is_one_line_and_no_failure_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read nowhere.txt"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("● read nowhere.txt  ")
    assert "  error: " in lines[1]


def test_the_program_itself(tmp_path: Path) -> None:
    """As a process, in a pipe: no escape codes, whole lines, nothing logged, status 0."""
    done = subprocess.run(
        [*COMMAND, "-C", str(tmp_path), "read nowhere.txt"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout + done.stderr
    assert done.stdout.endswith(b"\n")
    assert b"Traceback" not in done.stderr


def test_piped_text_is_the_prompt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("read notes.txt\n"))
    assert main([]) == 0
    assert "begins with: first line" in capsys.readouterr().out


def test_piped_text_goes_below_the_prompt(server: Server) -> None:
    done = subprocess.run(
        [*COMMAND, "--base-url", server.url, "--model", "m", "Sum up:"],
        input="one\n\ntwo é\n".encode(),
        capture_output=True,
        timeout=BOUND,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"Hello world\n")
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Sum up:\n\none\n\ntwo é"}]


def test_standard_output_and_input_may_be_closed() -> None:
    shell = f"{sys.executable} -m alloy_trio 'read notes.txt' <&- >&-"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, timeout=BOUND, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"2 turns" in done.stderr


def test_json_is_one_event_a_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "read notes.txt"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["event"], events[-1]["event"]) == ("run_start", "run_end")
    assert {"text_delta", "tool_start", "tool_end", "turn_end"} <= {event["event"] for event in events}
    assert all(Envelope.from_dict(event).to_dict() == event for event in events)
    assert err.startswith("demo: ")
    assert err.count("\n") == 1


def test_an_output_that_cannot_say_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text for people loses what the encoding lacks; JSON is UTF-8, always."""
    Path("notes.txt").write_text("caf\u00e9\n", encoding="utf-8")
    for flags, expected in ([], "begins with: caf?\n"), (["--json"], "caf\u00e9"):
        bytes_out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii"))
        assert main([*flags, "read notes.txt"]) == 0
        assert expected in bytes_out.getvalue().decode()


@pytest.mark.parametrize(
    ("given", "tools"),
    [
        pytest.param([], ["read", "write", "edit", "bash"], id="cli-01-all-four-by-default"),
        pytest.param(["--tools", "read"], ["read"], id="cli-01-that-one"),
        pytest.param(["--tools", "bash, read"], ["bash", "read"], id="several"),
        pytest.param(["--tools", "read", "--tools=edit,read"], ["read", "edit"], id="repeated"),
        pytest.param(["--tools", "none"], [], id="none"),
        pytest.param(["--tools", ""], [], id="empty"),
    ],
)
def test_tools(given: list[str], tools: list[str], server: Server) -> None:
    assert main(["hi", "--base-url", server.url, "--model", "m", *given]) == 0
    assert [tool["function"]["name"] for tool in server.asked[0].get("tools", [])] == tools


def test_options_reach_the_model(server: Server) -> None:
    flags = [
        "--base-url",
        server.url,
        "--model",
        "some/model",
        "--system",
        "Be brief.",
        "--max-output-tokens",
        "77",
    ]
    assert main([*flags, "hi"]) == 0
    (body,) = server.asked
    assert body["model"] == "some/model"
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert 77 in body.values()


@pytest.mark.skipif(bool(WHY_NOT), reason=f"no sandbox to be had: {WHY_NOT}")
def test_commands_in_a_sandbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They write where the tools work and in what is allowed, and nowhere else; nor have they a network, unless it is given."""
    here, more, elsewhere = (tmp_path / name for name in ("here", "more", "elsewhere"))
    for folder in (here, more, elsewhere):
        folder.mkdir()
    writes = f"touch in; touch {more}/in; touch {elsewhere}/in"
    given = ["--provider", "demo", "-C", str(here), "--allow", str(more)]
    assert main([*given, "--sandbox", f"Run {writes}"]) == 0
    assert {path.parent.name for path in tmp_path.glob("*/in")} == {"here", "more"}
    network = str(Path("/proc/self/ns/net").readlink())
    assert main([*given, "--sandbox", "Run readlink /proc/self/ns/net"]) == 0
    assert network not in capsys.readouterr().out
    assert main([*given, "--sandbox", "--network", "Run readlink /proc/self/ns/net"]) == 0
    assert network in capsys.readouterr().out


def test_a_sandbox_that_cannot_be_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no command is run without one."""
    assert main(["--provider", "demo", "--network", "Run touch ran"]) == 2
    assert "say --sandbox as well" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert main(["--provider", "demo", "--sandbox", "Run touch ran"]) == 2
    assert "install it" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_the_directory_is_where_tools_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "notes.txt").write_text("another\n")
    assert main(["-C", "below", "read notes.txt"]) == 0
    assert "begins with: another" in capsys.readouterr().out


def test_too_few_turns_is_said_and_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--max-turns", "1", "read notes.txt"]) == 1
    out, err = capsys.readouterr()
    assert out == "Let me look: read notes.txt.\n"
    assert err.splitlines()[-1] == "stopped after 1 turn (--max-turns): the work may be unfinished"


def test_an_answer_cut_at_its_cap_is_said(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.body = lambda _: stream_of("half an ans", finish="length")
    assert main(["hi", "--base-url", server.url, "--model", "m"]) == 0
    out, err = capsys.readouterr()
    assert out == "half an ans\n"
    assert "--max-output-tokens" in err


# --- which provider


@pytest.mark.parametrize(
    ("environment", "flags", "chosen"),
    [
        ({"ANTHROPIC_API_KEY": CANARY}, [], "anthropic:claude-sonnet-5-5"),
        ({"OPENAI_API_KEY": CANARY}, [], "openai:gpt-6-astra"),
        ({"ANTHROPIC_API_KEY": CANARY, "OPENAI_API_KEY": CANARY}, [], "anthropic:claude-sonnet-5-5"),
        ({"OPENAI_API_KEY": CANARY}, ["--model", "other"], "openai:other"),
        ({"ALLOY_PROVIDER": "ollama:llama:8b", "OPENAI_API_KEY": CANARY}, [], "ollama:llama:8b"),
        ({"ALLOY_PROVIDER": "openai", "OPENAI_API_KEY": CANARY}, ["--model", "x"], "openai:x"),
        ({"OPENAI_API_KEY": CANARY}, ["--provider", "demo"], None),
        ({"ALLOY_PROVIDER": "ollama:x"}, ["--provider", "Demo"], None),
    ],
)
def test_the_environment_chooses_a_provider_and_one_line_says_so(
    environment: dict[str, str],
    flags: list[str],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No request is made here: the network is a closed port by way of the proxy variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    status = main(["hi", "--max-retries", "0", *flags])
    out, err = capsys.readouterr()
    assert CANARY not in out + err
    if chosen is None:
        assert status == 0
        assert "since" not in err
    else:
        assert status == 1
        assert err.startswith(f"{chosen}, since {next(iter(environment))} is set")


# --- what goes wrong: one line, no traceback


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tools", "read,fly", "hi"], "there is no tool 'fly': say read, write, edit, bash"),
        (["--tools", "none,read", "hi"], "there is no tool 'none'"),
        (
            ["--provider", "acme:m", "hi"],
            "unknown provider 'acme': the providers are demo, anthropic, openai",
        ),
        (["--provider", "groq", "hi"], "needs a model"),
        (["--provider", "anthropic", "hi"], "ANTHROPIC_API_KEY"),
        (["--provider", "openai:m", "--model", "m", "hi"], "given twice"),
        (["--base-url", "http://127.0.0.1:1/v1", "hi"], "--model NAME"),
        (["--base-url", "localhost:1", "--model", "m", "hi"], "http://"),
        (["--model", "m", "hi"], "--provider NAME"),
        (["--max-turns", "0", "hi"], "--max-turns"),
        (["--max-turns", "many", "hi"], "--max-turns"),
        (["--timeout", "-1", "hi"], "--timeout"),
        (["--directory", "nowhere", "hi"], "nowhere"),
        (["-p", "one", "two"], "given twice"),
        (["--api-key", CANARY, "hi"], "--api-key"),
        (["-p", ""], "nothing to ask"),
        ([], "nothing to ask"),
        (["--json"], "nothing to ask"),
    ],
)
def test_a_command_line_that_cannot_be_right(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert CANARY not in err


def test_help_tells_of_keys_and_of_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for word in ("ANTHROPIC_API_KEY", "ALLOY_PROVIDER", "conversation", "--tools", "environment only"):
        assert word in out
    assert main(["--version"]) == 0
    assert re.match(r"alloy_trio \d+\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(
            (401, "application/json", f'{{"error": {{"message": "Incorrect API key provided: {CANARY}"}}}}'),
            "Incorrect API key",
            id="401",
        ),
        pytest.param((200, "text/html", "<!doctype html><html>Welcome</html>"), "--base-url", id="html"),
        pytest.param((404, "text/html", "<html><h1>Not\nFound</h1></html>"), "many end in /v1", id="404"),
        pytest.param(
            (400, "application/json", '{"error": {"message": "line one\\nline two \\u001b[31m"}}'),
            "line one line two",
            id="400",
        ),
        pytest.param(
            (200, "text/event-stream", 'data: {"error": {"message": "sorry, no"}}\n\n'),
            "sorry, no",
            id="in-stream",
        ),
    ],
)
def test_what_a_server_refuses_is_one_line(
    answer: tuple[int, str, str],
    says: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.answer(*answer)
    for flags in (["--provider", "openai-chat:m"], ["--provider", "openai-chat:m", "--json"]):
        assert main(["hi", "--base-url", server.url, *flags]) == 1
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        assert "\x1b" not in err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert says in line


def test_a_refused_connection(capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--base-url", f"http://127.0.0.1:{closed_port()}/v1", "--model", "m"]
    assert main(["hi", *there, "--max-retries", "0"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: cannot connect to http://127.0.0.1:")


def test_debug_shows_the_traceback_and_still_no_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server.answer(401, "application/json", f'{{"error": {{"message": "no such key: {CANARY}"}}}}')
    assert main(["hi", "--provider", "openai-chat:m", "--base-url", server.url, "--debug"]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert CANARY not in out + err


def test_a_run_that_takes_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--timeout", "0.5", "run `sleep 60`"]) == 1
    err = capsys.readouterr().err
    assert "  timed out" in err
    assert err.splitlines()[-1].startswith("error: the run took longer than its timeout of 0.5 seconds")


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    with start("--json", "read notes.txt") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(BOUND) == 141
    assert err.startswith(b"demo: ")
    assert err.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full, start("read notes.txt", stdout=full) as process:
        _, err = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(b"error: ")
    assert b"No space left" in err
    assert b"Exception ignored" not in err


# --- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_all_that_runs(number: int, status: int, tmp_path: Path) -> None:
    """The command of the tool, which has said its process id through the FIFO, is gone when the program is."""
    os.mkfifo("fifo")
    fifo = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
    with start("run `echo $$ > fifo; exec sleep 1000`") as process:
        assert select.select([fifo], [], [], BOUND)[0]
        child = int(os.read(fifo, 100))
        process.send_signal(number)
        out, err = process.communicate(timeout=BOUND)
    os.close(fifo)
    assert process.returncode == status
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert out.startswith(b"Let me look: bash")
    assert out.endswith(b"\n")
    assert err.endswith(b"cancelled\n")
    assert b"Traceback" not in err


def test_ctrl_c_in_the_middle_of_a_text() -> None:
    with start("hello") as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 100)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=BOUND)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert err.endswith(b"cancelled\n")


def test_ctrl_c_while_standard_input_is_read() -> None:
    """It has read some and waits for the rest."""
    with start("hi", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(process.stdin.fileno(), b"text" * 1024)
        assert select.select([], [process.stdin], [], BOUND)[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 130


def test_ctrl_c_while_nobody_reads_our_output(server: Server) -> None:
    """The pipe is full: the program waits, and can be stopped."""
    server.body = lambda _: stream_of("word " * 50_000)
    read_end, write_end = os.pipe()
    with start("hi", "--base-url", server.url, "--model", "m", stdout=write_end) as process:
        os.close(write_end)
        deadline = time.monotonic() + BOUND
        while struct.unpack("i", fcntl.ioctl(read_end, termios.FIONREAD, b"\0" * 4))[0] < 60_000:
            assert time.monotonic() < deadline
            with pytest.raises(subprocess.TimeoutExpired):  # it still runs
                process.wait(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=BOUND)
        assert process.returncode == 130
    os.close(read_end)
    assert err.endswith(b"cancelled\n")


# --- a terminal


def plain(seen: str) -> str:
    """Return what stays on a terminal: without colors, and without the lines that were wiped."""
    return re.sub(r"[^\n]*\r\x1b\[K|\x1b\[\d*m", "", seen)


class Terminal:
    """The program on a pseudo-terminal of its own, 80 columns wide; what is typed and what is seen."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        # The new session has to take the terminal, so that its Ctrl-C becomes a signal.
        take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", take, *COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def expect(self, text: str) -> str:
        """Read until `text` is seen, and return what came before it and it, without escape codes."""
        while text not in self.seen:
            assert self._read(), f"no {text!r} in {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return plain(before + text)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], BOUND)[0]:
            return False
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # the other side is closed
            return False
        self.seen += data.decode().replace("\r\n", "\n")
        return bool(data)

    def end(self) -> tuple[int, str]:
        """Read to the end, and return status and what was still seen."""
        while self._read():
            pass
        return self._process.wait(BOUND), self.seen


def test_a_conversation() -> None:
    """It keeps its history, goes on after an error, asks before a command, stops an answer at Ctrl-C and leaves at Ctrl-D."""
    with Terminal("--no-color") as terminal:
        assert "demo: " in terminal.expect("\n> ")
        terminal.type("read notes.txt\n")
        look, call, answer, last, prompt = terminal.expect("\n> ").splitlines()[-5:]
        assert look == "Let me look: read notes.txt."
        assert re.fullmatch(r"● read notes.txt  0.\d\ds  ok", call)
        assert answer == "notes.txt has 2 lines and begins with: first line"
        assert last.startswith("2 turns")
        assert prompt == "> "
        terminal.type("run `sleep 1000`\n")
        assert "$ sleep 1000" in terminal.expect("run bash? ")
        terminal.type("y\n")
        terminal.expect("steer > ")
        terminal.type("\x03")
        assert "cancelled\n" in terminal.expect("\n> ")
        terminal.type("/help\n")
        assert "/quit" in terminal.expect("\n> ")
        terminal.type("\n")
        terminal.expect("> ")
        terminal.type("read notes.txt\n")
        assert "2 lines" in terminal.expect("\n> ")
        terminal.type("\x04")
        assert terminal.end()[0] == 0


@pytest.mark.parametrize(("typed", "status"), [("/quit\n", 0), ("/exit\n", 0), ("\x04", 0), ("\x03", 130)])
def test_ways_to_leave_a_conversation(typed: str, status: int) -> None:
    with Terminal("--provider", "demo", "--no-color") as terminal:
        terminal.expect("> ")
        terminal.type(typed)
        if typed == "\x03":
            terminal.expect("Ctrl-C once more leaves")
            terminal.expect("> ")
            terminal.type(typed)
        left, seen = terminal.end()
    assert left == status
    assert "Traceback" not in seen
    assert "Fatal" not in seen


def test_a_conversation_keeps_its_session_and_survives_an_error(server: Server) -> None:
    with Terminal("--base-url", server.url, "--model", "m", "--max-retries", "0", "--no-color") as terminal:
        terminal.expect("> ")
        terminal.type("one\n")
        assert "Hello world\n" in terminal.expect("\n> ")
        good = server.body
        server.answer(500, "application/json", '{"error": {"message": "out of order"}}')
        terminal.type("two\n")
        assert "\nerror: HTTP 500: out of order\n" in terminal.expect("\n> ")
        server.answer(200, "text/event-stream", "")
        server.body = good
        terminal.type("three\n")
        terminal.expect("Hello world\n")
        terminal.expect("> ")
        terminal.type("/quit\n")
        assert terminal.end()[0] == 0
    said = [message["content"] for message in server.asked[-1]["messages"]]
    assert said[:2] == ["one", "Hello world"]
    assert "three" in said[-1]


@pytest.mark.parametrize("arguments", [[], ["--no-color"]])
def test_escape_codes_only_where_they_are_welcome(arguments: list[str]) -> None:
    with Terminal("read notes.txt", *arguments) as terminal:
        status, seen = terminal.end()
    assert status == 0
    assert ("\x1b" in seen) is (not arguments)
    _, look, call, answer, last = plain(seen).splitlines()
    assert look == "Let me look: read notes.txt."
    assert call.startswith("● read notes.txt  0.")
    assert answer.startswith("notes.txt has 2 lines")
    assert last.startswith("2 turns")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_environment_can_forbid_escape_codes(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet: list[str] = []
    monkeypatch.setattr(sys, "stdout", Paper(sheet, terminal=True))
    monkeypatch.setattr(sys, "stderr", Paper(sheet, terminal=True))
    assert main(["run `true`"]) == 0
    assert "\x1b[" in "".join(sheet)
    sheet.clear()
    monkeypatch.setenv(name, value)
    assert main(["run `true`"]) == 0
    assert "bash true" in "".join(sheet)
    assert "\x1b" not in "".join(sheet)


# --- how events are shown


class Paper(io.StringIO):
    """A file that may call itself a terminal; several can share one sheet, as outputs share a terminal."""

    def __init__(self, sheet: list[str], *, terminal: bool) -> None:
        super().__init__()
        self._sheet, self._terminal = sheet, terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._sheet.append(text)
        return len(text)


async def shown(*events: Event, out_terminal: bool = True, err_terminal: bool = True) -> tuple[str, str]:
    """Return what the events look like on stdout and stderr, the same sheet where both are terminals."""
    out: list[str] = []
    err: list[str] = out if out_terminal and err_terminal else []
    screen = Screen(
        Output(Paper(out, terminal=out_terminal), color=False),
        Output(Paper(err, terminal=err_terminal), color=False),
    )
    for seq, event in enumerate(events, 1):
        await screen.show(Envelope(seq=seq, correlation_id="c", turn=1, ts=0.0, event=event))
    await screen.close()
    return "".join(out), "".join(err)


def ended(name: str = "bash", error: str | None = None, **arguments: object) -> ToolEnd:
    outcome = "error" if error else "ok"
    return ToolEnd("1", name, dict(arguments), outcome, 0.5, error, 1)  # type: ignore[arg-type]


async def test_a_line_never_starts_in_the_middle_of_another() -> None:
    both, _ = await shown(
        TurnStart(),
        ThinkingDelta("hm"),
        ThinkingDelta(", well"),
        TextDelta("Let me"),
        ThinkingDelta("wait"),
        TextDelta("see"),
        ToolStart("1", "bash", {"command": "ls"}),
        ended(command="ls"),
        TextDelta("done"),
    )
    assert both == "(thinking) hm, well\nLet me\n(thinking) wait\nsee\n● bash ls  0.50s  ok\ndone\n"


async def test_what_delays_an_answer_is_told() -> None:
    _, err = await shown(
        Retry("groq", "m", 2, 1.25, "429: slow down"),
        Retry("mistral", "m", 1, 0.0, "503: overloaded"),
        Compacted("summarized", 120, 14, 90_000, 12_000),
        Compacted("cleared", 14, 14, 20_000, 12_000),
        err_terminal=False,
    )
    assert err.splitlines() == [
        "429: slow down · trying again in 1.2 s (attempt 2)",
        "503: overloaded · asking mistral:m instead",
        "conversation summarized: 120 messages, now 14",
        "conversation cleared: 14 messages",
    ]


async def test_stdout_in_a_file_has_the_answer_as_it_was() -> None:
    out, err = await shown(
        TextDelta("a\x1b[31m\r\nb"),
        ThinkingDelta("hm"),
        TextDelta("c"),
        out_terminal=False,
        err_terminal=True,
    )
    assert out == "a\x1b[31m\r\nbc\n"
    assert err == "(thinking) hm\n"


async def test_thinking_is_for_terminals_only() -> None:
    assert await shown(ThinkingDelta("hm"), TextDelta("x"), out_terminal=False, err_terminal=False) == (
        "x\n",
        "",
    )


async def test_what_a_model_says_cannot_command_the_terminal() -> None:
    both, _ = await shown(
        TextDelta("\x1b]0;owned\x07ok\rno\x9b2J\u202eabc"),
        ThinkingDelta("\x1b[2J"),
        ended(command="echo \x1b[31m\nrm -rf", error="\x1b[1mbad\nworse"),
    )
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", both)
    assert "␛]0;owned␇okno" in both
    assert "● bash echo ␛[31m rm -rf  0.50s  error: ␛[1mbad\n" in both


@given(st.text())
def test_harmless_text_has_no_control_characters(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", harmless(text))


@given(st.text(), st.text(), st.integers(40, 200))
def test_a_tool_line_is_one_line_that_fits(command: str, error: str, columns: int) -> None:
    class Narrow(Output):
        columns = property(lambda _: columns)

    line = tool_line(ended(command=command, error=error), Narrow(io.StringIO()))
    assert width(line) <= columns
    assert "\n" not in line


def test_wide_characters_count_twice() -> None:
    assert clip("漢字漢字", 5) == "漢字…"
    assert clip("abcd", 4) == "abcd"
    assert clip("abcde", 4) == "abc…"


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (Usage(1234, 56), "1 turn · 1,234 in / 56 out tokens · 3.2 s"),
        (
            Usage(34, 56, cache_creation_input_tokens=200, cache_read_input_tokens=1000),
            "1 turn · 1,234 in (1,000 cached) / 56 out tokens · 3.2 s",
        ),
        (Usage(10, 5, estimated=True), "1 turn · ~10 in / ~5 out tokens · 3.2 s"),
    ],
)
def test_the_summary(usage: Usage, text: str) -> None:
    assert summary(1, usage, 3.21) == text


async def test_a_run_without_an_answer_has_no_summary() -> None:
    assert await shown(TurnStart(), RunEnd("error", 0, Usage(), "x")) == ("", "")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Result(status="budget_exceeded"), "the budget does not allow more"),
        (Result(status="halted", error=AlloyError("enough\nof it")), "halted: enough of it"),
    ],
)
def test_what_keeps_a_run_from_being_done_is_said(result: Result, said: str) -> None:
    assert said in (shortfall(result) or "")


def test_a_complete_result_falls_short_of_nothing() -> None:
    assert shortfall(Result(status="completed", stop_reason="end_turn")) is None


async def test_lines_of_a_pipe() -> None:
    """Lines are cut where they end, however they arrive; the last one may lack its end."""
    read_end, write_end = os.pipe()
    os.write(write_end, b"one\ntw")
    with open(read_end, encoding="utf-8") as file:  # noqa: ASYNC230, PTH123 - a descriptor has no path, and is open
        stdin = Input(file)
        assert await stdin.line() == "one"
        os.write(write_end, b"o\n\nthree")
        os.close(write_end)
        assert [await stdin.line() for _ in range(4)] == ["two", "", "three", None]


async def test_what_a_cancel_holds_back_is_written_later() -> None:
    out: list[str] = []
    output = Output(Paper(out, terminal=False))
    with trio.CancelScope() as scope:
        scope.cancel()
        await output.write("whole line\n")
    assert out == []
    await output.write("next\n")
    assert "".join(out) == "whole line\nnext\n"


async def test_it_is_said_that_standard_input_is_waited_for(autojump_clock: MockClock) -> None:
    """A pipe that somebody has left open would look like a program that hangs."""
    read_end, write_end = os.pipe()
    err: list[str] = []
    with open(read_end, encoding="utf-8") as file:  # noqa: ASYNC230, PTH123 - as above
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(Input(file).text, Output(Paper(err, terminal=False)), needed=True))
            await trio.sleep(10)
            assert len(err) == 1
            assert "end of standard input" in err[0]
            os.write(write_end, b"text")
            os.close(write_end)


async def test_with_a_prompt_a_silent_standard_input_is_not_waited_for(autojump_clock: MockClock) -> None:
    """Many a program starts others with a pipe that it never writes to and never closes."""
    read_end, write_end = os.pipe()
    err: list[str] = []
    with open(read_end, encoding="utf-8") as file:  # noqa: ASYNC230, PTH123 - as above
        assert await Input(file).text(Output(Paper(err, terminal=False)), needed=False) == ""
    os.close(write_end)
    assert trio.current_time() == pytest.approx(3)
    assert "going on without it" in err[0]


async def test_standard_input_has_a_bound() -> None:
    endless = Input(Paper([], terminal=False))
    endless._read_now = lambda: b"x" * (1 << 20)  # type: ignore[method-assign]
    with pytest.raises(InvalidOption, match="longer than"):
        await endless.text(Output(None), needed=True)


async def test_standard_input_that_cannot_be_read() -> None:
    def read_now() -> bytes:
        raise OSError(5, "Input/output error")

    broken = Input(Paper([], terminal=True))
    broken._read_now = read_now  # type: ignore[method-assign]
    with pytest.raises(InvalidOption, match=r"standard input cannot be read: Input/output error"):
        await broken.line()
