"""`python -m alloy_trio worker`."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fleet_agents import Echo
from redis_server import RedisServer, needs_redis, redis_server

from alloy_trio import AgentConfig
from alloy_trio.events import RunStart
from alloy_trio.fleet import RedisPubSub, RedisStore, Worker, open_queue
from alloy_trio.repl._cli import main
from alloy_trio.repl._reach import reached
from alloy_trio.repl._show import JSONLines, Output
from alloy_trio.repl._text import log_handler

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent

LOUD = """
import sys

from fleet_agents import Echo

from alloy_trio import AgentConfig


class Loud(Echo):
    async def _do(self, word):
        print(word, file=sys.stderr, flush=True)
        await super()._do(word)


first = AgentConfig(provider=Echo())
other = AgentConfig(provider=Loud(), name="second")
"""
"""A module with two agents. The second one says when it is asked: what Redis calls running, a worker may not have heard of."""


def start(*options: str, cwd: Path, url: str | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    if url is not None:
        environment["ALLOY_REDIS"] = url
    command = [sys.executable, "-m", "alloy_trio", "worker", *options]
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)


class TestWorker:
    pytestmark = needs_redis

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[RedisServer]:
        with redis_server(tmp_path) as server:
            yield server

    async def test_it_runs_the_agents_of_a_module(self, server: RedisServer, tmp_path: Path) -> None:
        """SIGTERM lets it finish what it has; what comes then is for others."""
        (tmp_path / "mine.py").write_text(LOUD)
        process = start("--module", "mine", "--events", cwd=tmp_path, url=server.url)
        assert process.stderr is not None
        with trio.fail_after(30):
            line = await trio.to_thread.run_sync(process.stderr.readline)
            assert line.endswith("is up: first, second\n")
            async with open_queue(server.url) as queue:
                async with RedisPubSub(server.url) as pubsub:
                    with pubsub.subscribe("agent:*:events") as seen:
                        assert (await queue.chat("first", "hello")).text == "1: hello"
                        assert any(isinstance(envelope.event, RunStart) for envelope in await seen.receive())
                asked = ["--connect", server.url, "--agent", "first", "hello", "there"]
                done = await trio.run_process(
                    [sys.executable, "-m", "alloy_trio", *asked], capture_stdout=True, capture_stderr=True
                )
                assert done.stdout.decode() == "1: hello there\n"
                assert "1 turn" in done.stderr.decode()
                asked[1] = "redis://"
                surroundings = {**os.environ, "ALLOY_REDIS": server.url}
                done = await trio.run_process(
                    [sys.executable, "-m", "alloy_trio", *asked], capture_stdout=True, env=surroundings
                )
                assert done.stdout.decode() == "1: hello there\n"
                request = await queue.submit("second", "slow down")
                assert await trio.to_thread.run_sync(process.stderr.readline) == "slow\n"
                process.send_signal(signal.SIGTERM)
                line = await trio.to_thread.run_sync(process.stderr.readline)
                assert line == "finishing 1 request; once more to give it back\n"
                later = await queue.submit("first", "later")
                assert (await request.result()).text == "1: slow down"
                assert await trio.to_thread.run_sync(process.wait) == 0
                assert not later.is_done
        process.stderr.close()

    def test_the_steps_of_the_docs(
        self, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With a Redis there, the blocks run that need one."""
        page = (HERE.parent / "docs" / "howto" / "fleet.md").read_text(encoding="utf-8")
        blocks = re.findall(
            r"^```python\n(.*?)^```$", page.replace("redis://localhost:6379", server.url), re.MULTILINE | re.DOTALL
        )
        _, module, ask, converse = blocks
        (tmp_path / "my_agents.py").write_text(module, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        process = start("--module", "my_agents", cwd=tmp_path, url=server.url)
        namespace: dict[str, object] = {}
        try:
            for block in (ask, converse):
                exec(block, namespace)
        finally:
            process.terminate()
            _, said = process.communicate(timeout=20)
        assert capsys.readouterr().out.split("\n") == [
            "completed",
            "completed",
            "4 messages",
            "completed agent:ada:responses",
            "['ada']",
            "",
        ]
        assert "is up: helper" in said

    def test_the_benchmark_runs(self) -> None:
        """How fast it is, is no test's business."""
        command = [sys.executable, "-m", "benchmarks.fleet", "--requests", "20", "--rounds", "1", "--workers", "1"]
        printed = subprocess.check_output(command, cwd=HERE.parent, text=True, timeout=60).splitlines()
        assert len(printed) == 3
        assert all(float(cell) > 0 for cell in printed[2].strip("|").split("|"))

    async def test_a_second_signal_gives_back_what_it_has(self, server: RedisServer, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(LOUD)
        process = start("--module", "mine", "--redis", server.url, cwd=tmp_path)
        assert process.stderr is not None
        with trio.fail_after(30):
            await trio.to_thread.run_sync(process.stderr.readline)
            async with open_queue(server.url) as queue:
                await queue.submit("second", "wait")
                assert await trio.to_thread.run_sync(process.stderr.readline) == "wait\n"
                process.send_signal(signal.SIGINT)
                await trio.to_thread.run_sync(process.stderr.readline)
                process.send_signal(signal.SIGINT)
                assert await trio.to_thread.run_sync(process.wait) == 0
                assert await trio.to_thread.run_sync(process.stderr.read) == "gave back 1 request\n"
                stands = await queue.statistics("second")
                assert (stands.running, stands.pending) == (0, 1)
        process.stderr.close()

    async def test_a_conversation_is_kept_as_long_as_it_lasts(self, server: RedisServer) -> None:
        """Nobody else knows its name, also where the terminal hangs up. One prompt is no conversation."""

        async def nothing(text: str) -> None:
            raise AssertionError(text)

        view: Any = JSONLines(Output(io.StringIO(), color=False))
        async with trio.open_nursery() as nursery, RedisStore(server.url) as store:
            await nursery.start(Worker(server.url, {"echo": AgentConfig(provider=Echo())}).serve)
            async with reached(server.url, "echo", None, nothing, talks=False) as far:
                assert (await far.ask("one", view)).text == "1: one"
                assert not await store.sessions()
            async with reached(server.url, "echo", None, nothing, talks=True) as far:
                for asked, answer in (("one", "1: one"), ("two", "2: two")):
                    assert (await far.ask(asked, view)).text == answer
                assert len(await store.sessions()) == 1
            assert not await store.sessions()
            with trio.CancelScope() as hung_up:
                async with reached(server.url, "echo", None, nothing, talks=True) as far:
                    assert (await far.ask("one", view)).text == "1: one"
                    hung_up.cancel()
                    await trio.sleep_forever()
            assert not await store.sessions()
            async with reached(server.url, "echo", "alloy", nothing, talks=False) as far:
                assert (await far.ask("three", view)).text == "1: three"
            nursery.cancel_scope.cancel()

    def test_a_redis_that_is_not_there_is_said(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("alloy_trio.fleet._worker.open_link", lambda url, _: _open_link(url, 0.2))
        assert main(["worker", "--module", "fleet_agents", "--redis", "unix:///nowhere"]) == 1
        said = capsys.readouterr().err
        assert "could not be used for 0.2 seconds" in said
        assert "(its address: --redis, or $ALLOY_REDIS)" in said

    def test_a_signal_ends_the_wait_for_a_redis_that_is_not_there(self, tmp_path: Path) -> None:
        """It says what it waits for, and there is nothing to finish."""
        process = start("--module", "fleet_agents", "--redis", "unix:///nowhere", cwd=tmp_path)
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for Redis\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1] == ""  # else it says at the end of its patience that Redis is away
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "Missing option '--module'"),
        (["--module", "no_such_module"], "there is no module 'no_such_module'"),
        (["--module", "redis_server"], "redis_server has no agent"),
        (["--module", "./twins"], "there is no module './twins'"),
        (["--module", ""], "there is no module ''"),
        (
            ["--module", "broken"],
            "error: broken cannot be imported: ModuleNotFoundError: No module named 'nowhere' (broken.py, line 2)",
        ),
        (
            ["--module", "deep"],
            "error: deep cannot be imported: ModuleNotFoundError: No module named 'nowhere' (broken.py, line 2)",
        ),
        (["--module", "slip"], "error: slip cannot be imported: SyntaxError: '(' was never closed (slip.py, line 1)"),
        (
            ["--module", "wrong"],
            "error: wrong cannot be imported: max_turns=0 has to be a whole number, 1 or more (wrong.py, line 3)",
        ),
        (["--module", "fleet_agents", "--redis", "redis://"], "redis:// stands for what is in $ALLOY_REDIS"),
        (["--module", "fleet_agents", "--redis", "redis:/host"], "has to be redis://HOST:PORT"),
        (["--module", "fleet_agents", "--redis", "redis://[::1"], "has to be redis://HOST:PORT"),
        (["--module", "twins"], "two agents 'echo'"),
        (["--module", "fleet_agents", "--redis", "redis://:secret@host"], "set $ALLOY_REDIS instead"),
        (["--module", "fleet_agents", "--prefix", "a b"], "prefix='a b'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twins.py").write_text(
        "from alloy_trio import AgentConfig\nfrom fleet_agents import Echo\n"
        "one = AgentConfig(provider=Echo(), name='echo')\nother = AgentConfig(provider=Echo(), name='echo')\n"
    )
    (tmp_path / "broken.py").write_text("first = 1\nimport nowhere\n")
    (tmp_path / "deep.py").write_text("import broken\n")
    (tmp_path / "slip.py").write_text("agents = (\n")
    (tmp_path / "wrong.py").write_text(
        "from alloy_trio import AgentConfig\n\nhelper = AgentConfig(provider='demo', max_turns=0)\n"
    )
    monkeypatch.delenv("ALLOY_REDIS", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["worker", *options]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert "secret" not in said


def test_a_traceback_is_for_those_who_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing.py").write_text("raise RuntimeError('\x1b[2J')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    logger = logging.getLogger("alloy_trio")
    before = logger.level
    try:
        assert main(["worker", "--module", "failing", "--debug"]) == 2
    finally:
        logger.setLevel(before)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error: failing cannot be imported: RuntimeError: ␛[2J (failing.py, line 1)\n")
    assert "\x1b" not in said


def test_what_is_logged_is_shown_and_not_obeyed() -> None:
    """The id of a request is its submitter's."""
    record = logging.LogRecord("alloy_trio.fleet", logging.WARNING, "", 0, "request %s is lost", ("\x1b[2J",), None)
    assert log_handler().format(record) == "WARNING alloy_trio.fleet: request ␛[2J is lost"


def _open_link(url: str, patience: float) -> object:
    from alloy_trio.fleet._redis import open_link

    return open_link(url, patience)
