"""Each example is short, runs by itself, and prints what its docstring says."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import h11
import httpx
import pytest
import trio
import trio.testing

from alloy_trio import Message, ProviderError, Result
from alloy_trio.events import BlockEnd, TextDelta
from alloy_trio.providers import Emit, Request, Response
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / "examples"
MOST_LINES = 59

PRINTS = {
    "agent_in_nursery": ["2 s  Ann is told", "5 s  Bob is told", "6 s  Cem has lost patience", "remembers 6 messages"],
    "batch": ["997 of 1000", "144\nProviderError('13 brings bad luck')\n196"],
    "cancel_and_go_on": ["cancelled: True", "bash: cancelled", "--\nThe version in pyproject.toml is 0.1.0."],
    "custom_provider": ["> 42\nPlease go on."],
    "fan_out": ["4 of 10 sub-agents: completed after 10 s", "5 of 10 sub-agents: budget_exceeded", "of 7.5 cents"],
    "hello": ["The version in pyproject.toml is 0.1.0.", "completed after 2 turns", "ok"],
    "middleware": ["--password [secret]: ok", "rm -rf /: blocked", "rm -rf build: ok"],
    "own_tool": ["The budget in trip.txt is 400 euros.", "There is no note party.txt"],
    "pubsub": ["agent:reporter:responses: It rains, in Bergen.", "agent:editor:responses: IT RAINS!"],
    "steer": ["60 s  search 'attic': cancelled", "120 s  search 'cellar': ok", "behind the barrels"],
    "streaming": ["[read starts]\n[read: ok]\n", "[completed]"],
    "supervised_pair": ["researcher broke down", "Nothing burns here any more.", "restarted once"],
}
SERVES = {"web_service"}  # has tests of its own, below
ASKS_ANY = ["cancel_and_go_on", "hello", "own_tool", "streaming"]  # these take a provider as their argument

each_example = pytest.mark.parametrize("name", sorted(PRINTS))


def _source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def _said(name: str) -> str:
    """Return what the docstring says is printed: its lines that stand further in."""
    docstring = ast.get_docstring(ast.parse(_source(name))) or ""
    return "".join(f"{line[4:]}\n" for line in docstring.splitlines() if line.startswith("    "))


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs an example, in a folder with the file that some of them ask about; no key is known there."""
    shutil.copy(FOLDER.parent / "pyproject.toml", tmp_path)

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
            cwd=tmp_path,
            env=_without_keys(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def _without_keys() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}


def test_the_table_has_all_examples() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTS, *SERVES}


def test_the_readme_has_all_examples() -> None:
    """One line for each."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[(\w+)\]\(\1\.py\) ", readme, re.MULTILINE)) == sorted({*PRINTS, *SERVES})


@pytest.mark.parametrize("name", sorted({*PRINTS, *SERVES}))
def test_an_example_is_short(name: str) -> None:
    assert len(_source(name).splitlines()) <= MOST_LINES


@each_example
def test_an_example_prints_what_it_says(name: str, python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = python(name)
    assert done.returncode == 0, done.stderr
    for fragment in PRINTS[name]:
        assert fragment in done.stdout
    assert done.stdout == _said(name)
    if name != "batch":
        assert not done.stderr


@pytest.mark.parametrize("name", ASKS_ANY)
def test_an_example_asks_the_provider_it_is_given(
    name: str, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    assert python(name, "demo").stdout == _said(name)
    failed = python(name, "nobody:nothing")
    assert failed.returncode == 1
    assert "InvalidOption" in failed.stderr
    assert "nobody" in failed.stderr


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The batch


class Counting:
    """Answers with the prompt, the later prompts sooner; counts how many it answers at a time."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.running = self.most = self.answered = 0

    async def complete(self, request: Request) -> Response:
        words = request.messages[-1].text
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(100 - int(words))
        finally:
            self.running -= 1
        if words == "5" and self.fails is not None:
            raise self.fails
        self.answered += 1
        return Response(message=Message("assistant", words))


async def test_a_batch_keeps_order_and_its_limit(
    autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = Counting()
    prompts = [str(number) for number in range(40)]
    answers = await _module("batch").batch(prompts, provider, trio.CapacityLimiter(7))
    assert [answer.text for answer in answers] == prompts
    assert provider.most == 7
    bar = capsys.readouterr().err
    assert "[####################                    ] 20\r" in bar
    assert bar.endswith("[########################################] 40\n")


async def test_a_failure_in_a_batch_costs_the_others_nothing(autojump_clock: trio.testing.MockClock) -> None:
    provider = Counting(fails=ProviderError("no fives"))
    prompts = [str(number) for number in range(20)]
    answers = await _module("batch").batch(prompts, provider, trio.CapacityLimiter(4))
    assert [index for index, answer in enumerate(answers) if not isinstance(answer, Result)] == [5]
    assert str(answers[5]) == "no fives"
    assert provider.answered == 19


async def test_a_bug_in_a_batch_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    provider = Counting(fails=RuntimeError("a bug"))
    prompts = [str(number) for number in range(20)]
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
        await _module("batch").batch(prompts, provider, trio.CapacityLimiter(4))
    assert provider.running == 0


async def test_a_batch_is_cancelled_as_a_whole(autojump_clock: trio.testing.MockClock) -> None:
    provider = Counting()
    with trio.move_on_after(150) as scope:
        await _module("batch").batch(["1"] * 20, provider, trio.CapacityLimiter(4))
    assert scope.cancelled_caught
    assert (provider.answered, provider.running) == (4, 0)


# The web service


@pytest.fixture
def web_service() -> ModuleType:
    for module in ("hypercorn", "starlette"):
        pytest.importorskip(
            module, reason=f"examples/web_service.py needs {module}: install the dependency group `examples`"
        )
    return _module("web_service")


class Gated:
    """Says a word, and the next one when it is let; what else it says is up to `then`."""

    def __init__(self, then: Callable[[Emit], Awaitable[None]] | None = None) -> None:
        self.gate = trio.Event()
        self.ended = trio.Event()
        self.then = then

    async def complete(self, request: Request) -> Response:
        raise NotImplementedError

    async def stream(self, request: Request, emit: Emit) -> Response:
        message = Message("assistant", f"{request.messages[-1].text}: now, and then")
        try:
            await emit(TextDelta("now, "))
            if self.then is not None:
                await self.then(emit)
            await self.gate.wait()
            await emit(TextDelta("and then"))
        finally:
            self.ended.set()
        await emit(*map(BlockEnd, message.content))
        return Response(message=message)


@asynccontextmanager
async def _served(module: ModuleType, provider: object) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """Serve on a free port of the loopback, and give what connects to it; it listens before anybody does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        bind = f"fd://{os.dup(listener.fileno())}"

    async def connect() -> Client:
        return Client(await trio.open_tcp_stream(host, port))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(module.main, provider, bind)
        with trio.fail_after(30):
            yield connect
        nursery.cancel_scope.cancel()


class Client:
    """Speaks HTTP over a socket, and sees each chunk as it comes; closing it is leaving."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stream.aclose()

    async def get(self, target: str) -> h11.Response:
        request = h11.Request(method="GET", target=target, headers=[("Host", "localhost")])
        await self.stream.send_all(self._http.send(request) or b"")
        self._http.send(h11.EndOfMessage())
        response = await self._event()
        assert isinstance(response, h11.Response)
        return response

    async def chunk(self) -> str | None:
        """Return the next piece of the body, or None at its end."""
        event = await self._event()
        return str(event.data, "utf-8") if isinstance(event, h11.Data) else None

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self.stream.receive_some())
        return event


async def _printed(capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """Wait until the service has printed something; its client may know of the end before."""
    printed = ""
    while printed != expected:
        assert expected.startswith(printed)
        await trio.lowlevel.checkpoint()
        printed += capsys.readouterr().out


async def test_the_web_service_streams(web_service: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The second word is not said before the first has come over the socket."""
    provider = Gated()
    async with _served(web_service, provider) as connect, await connect() as client:
        response = await client.get("/ask?q=When")
        assert response.status_code == 200
        assert (b"content-type", b"text/plain; charset=utf-8") in list(response.headers)
        assert await client.chunk() == "now, "
        provider.gate.set()
        assert [await client.chunk(), await client.chunk()] == ["and then", None]
        await _printed(capsys, "When: completed\n")


async def test_a_client_that_leaves_cancels_its_run(
    web_service: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nobody else's."""
    provider = Gated()
    async with _served(web_service, provider) as connect, await connect() as stays:
        await stays.get("/ask?q=stay")
        assert await stays.chunk() == "now, "
        async with await connect() as leaves:
            await leaves.get("/ask?q=leave")
            assert await leaves.chunk() == "now, "
        await provider.ended.wait()
        await _printed(capsys, "leave: cancelled\n")
        provider.gate.set()
        assert [await stays.chunk(), await stays.chunk()] == ["and then", None]
        await _printed(capsys, "stay: completed\n")


async def test_a_run_that_fails_breaks_off_its_response(web_service: ModuleType) -> None:
    async def fail(_: Emit) -> None:
        raise ProviderError("the model is ill")

    async with _served(web_service, Gated(fail)) as connect, await connect() as client:
        await client.get("/ask?q=How")
        assert await client.chunk() == "now, "
        with pytest.raises(h11.RemoteProtocolError):
            await client.chunk()


async def test_a_client_that_reads_slowly_slows_its_run_down(web_service: ModuleType) -> None:
    said = 0

    async def talk(emit: Emit) -> None:
        nonlocal said
        for _ in range(1000):
            await emit(TextDelta("x" * 100_000))
            said += 1

    async with _served(web_service, Gated(talk)) as connect, await connect() as client:
        await client.get("/ask?q=What")
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert 0 < said < 500


async def test_the_web_service_leaves_nothing(web_service: ModuleType) -> None:
    with assert_no_orphans():
        async with _served(web_service, Gated()) as connect, await connect() as client:
            await client.get("/ask?q=What")
            assert await client.chunk() == "now, "


def test_the_web_service_serves_until_it_is_interrupted(web_service: ModuleType, tmp_path: Path) -> None:
    """As a process of its own."""
    with subprocess.Popen(
        [sys.executable, str(FOLDER / "web_service.py"), "demo", "127.0.0.1:0"],
        cwd=tmp_path,
        env=_without_keys(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", process.stderr.readline())
            assert found is not None
            answer = httpx.get(f"{found[1]}/ask", params={"q": "Hello"}, timeout=30)
            assert answer.text.startswith("I am the demo")
            assert httpx.get(f"{found[1]}/else", timeout=30).status_code == 404
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (printed, process.returncode) == ("Hello: completed\n", 0)
