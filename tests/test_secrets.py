"""Keys stay where they are: a canary in every place where one can come in, and a look at every place where something goes out."""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import logging
import pickle
import ssl
import traceback
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import httpx
import pytest
import trio
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_http import Connection, chunks, delta, event, http, replying, serving

from alloy_trio import (
    Agent,
    AgentConfig,
    AlloyError,
    InvalidOption,
    Message,
    ToolContext,
    ToolError,
    open_agent,
    run,
    run_sync,
    stream,
    tool,
)
from alloy_trio._config import configure
from alloy_trio.otel import OTelInstrument
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request, TrioTransport
from alloy_trio.providers._names import make, names
from alloy_trio.providers._secret import Headers, Parts, QuietBytes, hush
from alloy_trio.providers._vendors import VENDORS
from alloy_trio.repl._cli import main
from alloy_trio.repl._export import to_markdown
from alloy_trio.sessions import JSONLStore, MemoryStore, SQLiteStore
from alloy_trio.telemetry import add_instrument, remove_instrument
from alloy_trio.testing import ScriptedProvider, text, tool_call
from alloy_trio.tools import Tool, bash, bash_sandboxed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from alloy_trio.sessions import SessionStore
    from alloy_trio.telemetry import TelemetryEvent

    Wire: TypeAlias = type[Anthropic | OpenAI | OpenAICompat]

CANARY = "canary"  # a part of each of these
KEY = "canary-key-5f3a9c71d2e84b06"
IN_HEADER = "canary-header-77b1c02e9a5d4f38"
IN_BODY = "canary-body-e0c9d8b7a6958473"
PASSWORD = "canary-pass-0a1b2c3d4e5f6071"
IN_CLIENT = "canary-client-9d8c7b6a59483726"
IN_PROXY = "canary-proxy-13579bdf02468ace"

ENCODED = base64.b64encode(f"me:{PASSWORD}".encode()).decode()[:20]  # as it is sent

HI = Request(messages=(Message.user("Hi"),))
WIRES: list[Wire] = [Anthropic, OpenAI, OpenAICompat]
SECRETS: dict[str, Any] = {
    "api_key": KEY,
    "extra_headers": {"x-my-token": f"Bearer {IN_HEADER}"},
    "extra_body": {"gateways": [{"auth": {"tokens": ["none", IN_BODY]}}]},
}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy; the log as it was, which the command line silences."""
    log = logging.getLogger("alloy_trio")
    level = log.level
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield
    log.setLevel(level)


# What an error tells, to whoever looks closely.


def chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    """Yield an error, and all that it came from."""
    seen = set() if seen is None else seen
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for each in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        yield from chain(each, seen)


def told(error: BaseException) -> str:
    """Return all that an error, its causes and the variables of their frames show; those of this file are not ours."""
    said: list[str] = []
    for each in chain(error):
        said += [str(each), repr(each), repr(each.args), repr(getattr(each, "__notes__", ())), repr(vars(each))]
        summary = traceback.TracebackException.from_exception(each, capture_locals=True)
        said += [
            f"{frame.filename}:{frame.lineno} {frame.name} {frame.locals}"
            for frame in summary.stack
            if frame.filename != __file__
        ]
    said += told_by_rich(error)
    return "\n".join(said)


def told_by_rich(error: BaseException) -> list[str]:
    """Return what rich shows of the same variables: it looks into containers by itself, whatever their repr says."""
    rich = pytest.importorskip("rich.traceback")
    shown = rich.Traceback.extract(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_length=1000,
        locals_max_string=100_000,
    )
    frames = [frame for stack in shown.stacks for frame in stack.frames if frame.filename != __file__]
    return [f"rich: {frame.name} {name} {node}" for frame in frames for name, node in (frame.locals or {}).items()]


def assert_quiet(shown: str) -> None:
    for secret in (CANARY, ENCODED):
        line = next((line for line in shown.splitlines() if secret in line), "")
        assert not line, line[max(line.index(secret) - 500, 0) : line.index(secret) + 300]


@contextlib.contextmanager
def failing(kind: type[BaseException] = AlloyError) -> Iterator[list[BaseException]]:
    """See that the body fails, and that nobody learns a secret by that."""
    failures: list[BaseException] = []
    with pytest.raises(kind) as caught:
        yield failures
    failures.append(caught.value)
    assert_quiet(told(caught.value))


# Reprs, and what is made of them.


@pytest.mark.parametrize("make_it", WIRES)
def test_a_provider_and_what_holds_it_show_no_secret(make_it: Wire) -> None:
    pretty = pytest.importorskip("rich.pretty")
    by = make_it("m", base_url=f"https://me:{PASSWORD}@host.test/v1", **SECRETS)
    call = by.encode(HI, stream=True)
    config = AgentConfig(provider=by, deps=KEY, context={"key": KEY})
    for each in (by, call, config, config.of_run(), [by], {"provider": by}, config.options):
        assert_quiet(f"{each!r} {each} {pretty.pretty_repr(each, max_string=10_000)}")
    assert_quiet(by.origin)


def test_what_carries_a_request_shows_nothing() -> None:
    pretty = pytest.importorskip("rich.pretty")
    for each in (Parts((KEY.encode(), bytearray(KEY.encode()))), Headers(authorization=KEY), QuietBytes(KEY.encode())):
        assert_quiet(repr(each) + f"{each}" + repr((each,)))
        looked_into = pretty.pretty_repr([each], max_string=10_000)
        assert_quiet(looked_into)
        assert_quiet(getattr(type(each), "__sentry_repr__")(each))  # noqa: B009 - by which Sentry asks for one
    assert "authorization" in repr(Headers(authorization=KEY)) + pretty.pretty_repr(Headers(authorization=KEY))


def test_options_and_contexts_show_no_deps() -> None:
    config = configure({"provider": "demo", "deps": KEY, "context": {"k": KEY}})
    context = ToolContext(deps=KEY, context={"k": KEY})
    shell = bash.configure(env={"DEPLOY": KEY})
    assert_quiet(f"{config!r} {context!r} {shell!r} {shell.shell!r}")


# Providers that cannot be made: the frames in which they are hold what they were to be made of.


@pytest.mark.parametrize("make_it", WIRES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"price": 3},
        {"base_url": f"ftp://me:{PASSWORD}@host.test"},
        {"base_url": f"https://me:{PASSWORD}@host.test:port"},
        {"base_url": f"https://host.test/v1?key={PASSWORD}"},
        {"base_url": f"https://host.test/v1#{PASSWORD}"},
        {"api_key": f"{KEY}\n{KEY}"},
        {"extra_headers": {"x": f"{KEY}\n"}},
        {"extra_body": {"token": IN_BODY, "other": object()}},
        {"extra_body": [IN_BODY]},
        {"extra_headers": {"content-length": KEY}},
    ],
    ids="-".join,
)
def test_a_provider_that_cannot_be_made(make_it: Wire, wrong: dict[str, Any]) -> None:
    with failing(InvalidOption):
        make_it("m", **SECRETS | wrong)


@pytest.mark.parametrize("make_it", WIRES)
def test_a_provider_with_an_option_that_it_has_not(make_it: Wire) -> None:
    with failing(TypeError):
        make_it("m", modle="m", **SECRETS)  # type: ignore[call-arg] # that is the point
    with failing(InvalidOption):
        OpenAICompat.of("groq", "m", price=3, **SECRETS)


@pytest.mark.parametrize("name", [name for name in names() if name != "demo"])
def test_the_key_of_each_vendor_s_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken from there, and neither the provider nor one that cannot be made shows it."""
    known = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
    variable = known.get(name) or VENDORS[name].env_key
    if variable is None:
        pytest.skip("needs no key")
    monkeypatch.setenv(variable, KEY)
    by: Any = make(name, "m")
    assert by.api_key == KEY
    assert_quiet(f"{by!r}")
    with failing(InvalidOption):
        make(name, "m", base_url="nowhere")
    monkeypatch.setenv(variable, f"{KEY}\n{KEY}")
    with failing(InvalidOption):
        make(name, "m")


def test_the_signature_of_a_provider_stays_readable() -> None:
    assert "api_key" in inspect.signature(OpenAI).parameters


# A server that says whatever it has heard.


def echo(status: str, form: str = "json") -> Callable[[Connection], Any]:
    """Answer each request with all of its headers, and its body, as an error message."""

    async def handle(connection: Connection) -> None:
        while (sent := await connection.request()) is not None:
            heard = f"bad: {sent.line} {' '.join(sent.headers.values())} {json.dumps(sent.body)}"
            match form:
                case "json":
                    body = json.dumps({"error": {"message": heard, "type": "whatever"}}).encode()
                case "page":
                    body = f"<html>{heard}".encode()
                case "stream":
                    await connection.send(chunks(delta("Hi"), event({"error": {"message": heard}})))
                    continue
                case _:
                    body = f"data: {heard}\n\n".encode()
            await connection.send(http(body, status, x_request_id=KEY))

    return handle


async def garbage(connection: Connection) -> None:
    """Answer with what is no HTTP, and begins with the key."""
    if (sent := await connection.request()) is not None:
        key = sent.headers.get("x-api-key") or sent.headers["authorization"].split()[-1]
        await connection.send(f"HTP {key}\r\n\r\n".encode())


async def hang(connection: Connection) -> None:
    await connection.request()
    await connection.gone()


async def broken(connection: Connection) -> None:
    await connection.request()
    await connection.send(http(b"{}", "200 OK")[:-1])
    await connection.stream.aclose()


async def no_tls(connection: Connection) -> None:
    await connection.stream.receive_some()
    await connection.send(http(b"", "400 Bad Request"))


PHASES: dict[str, Callable[[Connection], Any]] = {
    "401": echo("401 Unauthorized"),
    "400": echo("400 Bad Request"),
    "500-page": echo("500 Internal Server Error", "page"),
    "200-error": echo("200 OK"),
    "200-page": echo("200 OK", "page"),
    "200-events": echo("200 OK", "events"),
    "stream": echo("200 OK", "stream"),
    "garbage": garbage,
    "hang": hang,
    "broken": broken,
}


@contextlib.asynccontextmanager
async def ways(way: str, *, verify: ssl.SSLContext | bool = True) -> AsyncIterator[dict[str, Any]]:
    """Yield the options that send a request one way or another."""
    match way:
        case "own":
            yield {}
        case "httpx":
            async with httpx.AsyncClient(headers={"x-client-key": IN_CLIENT}, verify=verify) as client:
                yield {"http_client": client}
        case _:
            transport = TrioTransport(verify=verify)
            async with httpx.AsyncClient(headers={"x-client-key": IN_CLIENT}, transport=transport) as client:
                yield {"http_client": client}


# Each wire on our own transport, and one of them on the others.
each_path = pytest.mark.parametrize(
    ("way", "make_it"),
    [*(("own", wire) for wire in WIRES), ("httpx", OpenAI), ("trio-transport", Anthropic)],
    ids=["own-anthropic", "own-openai", "own-compat", "httpx", "trio-transport"],
)


class Watch:
    """Everything that is said of a run: events, telemetry, logs, spans."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.heard: list[object] = []
        self._log = caplog
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._otel = OTelInstrument(tracer_provider=tracers, capture_content=True)

    def handle(self, event: TelemetryEvent) -> None:
        self.heard.append(event)
        for name in ("error", "exception"):
            if isinstance(failure := getattr(event, name, None), BaseException):
                self.heard.append(told(failure))

    def __enter__(self) -> Self:
        self._log.set_level(logging.DEBUG)
        add_instrument(self)
        add_instrument(self._otel)
        return self

    def __exit__(self, *_: object) -> None:
        remove_instrument(self._otel)
        remove_instrument(self)

    def everything(self) -> str:
        # What httpcore logs of an answer's head is what the server wrote there.
        records = [
            f"{record.name} {record.getMessage()} {record.exc_text}"
            for record in self._log.records
            if not record.name.startswith("httpcore")
        ]
        spans = [span.to_json() for span in self._spans.get_finished_spans()]
        assert self.heard
        assert spans
        return "\n".join([*map(repr, self.heard), *records, *(line for span in spans for line in span.splitlines())])


@each_path
@pytest.mark.parametrize("phase", PHASES)
async def test_a_run_that_fails_tells_nobody(
    way: str, make_it: Wire, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its error, with all causes and frames, nor events, telemetry, logs, spans or the session."""
    with Watch(caplog) as watch:
        async with serving(PHASES[phase]) as server, ways(way) as options:
            url = server.url.replace("//", f"//me:{PASSWORD}@")
            by = make_it("m", base_url=url, stall_timeout=0.2, **SECRETS, **options)
            with failing() as failures:
                await run("Hi", provider=by, on_event=watch.heard.append, max_retries=1, retry_backoff=0.001, deps=KEY)
        sent = repr(server.requests)
        assert IN_HEADER in sent
        assert IN_BODY in sent
        assert (IN_CLIENT in sent) == (way != "own")
        assert isinstance(failures[0], AlloyError)
        assert_quiet(repr(failures[0].result) + repr(watch.heard))
        assert_quiet(watch.everything())


async def test_an_agent_that_fails_tells_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with Watch(caplog) as watch:
        async with serving(echo("401 Unauthorized")) as server:
            by = OpenAI("m", base_url=server.url, **SECRETS)
            options: dict[str, Any] = {"deps": KEY, "context": {"key": KEY}, "max_retries": 0}
            many: dict[str, Any] = {"max_turns": "many"}
            async with open_agent(provider=by, on_event=watch.heard.append, **options) as agent:
                with failing():
                    await agent.chat("Hi")
                with failing():
                    async with agent.stream_chat("Hi") as events:
                        watch.heard.extend([each async for each in events])
                assert_quiet(f"{agent!r} {agent.health()!r} {agent.export_session()!r}")
            with failing(InvalidOption):
                open_agent(provider=by, **many, **options)
            config = AgentConfig(provider=by, **options)
            with failing(InvalidOption):
                open_agent(config, **many)
            with failing(InvalidOption):
                Agent.child_spec(provider=by, **many, **options)
            with failing(InvalidOption):
                await run("Hi", provider=by, **many, **options)
            with failing(InvalidOption):
                stream("Hi", provider=by, **many, **options)
        assert_quiet(watch.everything())


def test_a_run_without_a_loop_that_fails_tells_nobody() -> None:
    with failing():
        run_sync("Hi", provider=OpenAI("m", base_url="http://127.0.0.1:1", **SECRETS), max_retries=0, deps=KEY)


@each_path
async def test_no_connection_and_no_tls_tell_nobody(way: str, make_it: Wire, caplog: pytest.LogCaptureFixture) -> None:
    with Watch(caplog) as watch:
        async with serving(no_tls) as server, ways(way) as options:
            url = server.url.replace("http://", f"https://me:{PASSWORD}@")
            with failing():  # TLS to who speaks none
                await run("Hi", provider=make_it("m", base_url=url, **SECRETS, **options), max_retries=0)
            closed = url.replace("https", "http")
        async with ways(way) as options:
            with failing():
                await run("Hi", provider=make_it("m", base_url=closed, **SECRETS, **options), max_retries=0)
        async with serving(replying(b""), tls=_untrusted()) as server, ways(way) as options:
            url = server.url.replace("https://", f"https://me:{PASSWORD}@")
            with failing():
                await run("Hi", provider=make_it("m", base_url=url, **SECRETS, **options), max_retries=0)
        assert_quiet(watch.everything())


def _untrusted() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_request_that_is_cut_shows_nothing_in_our_frames() -> None:
    """What goes through frames that wait is no error of ours, and nobody takes these frames away."""
    async with serving(hang) as server:
        by = OpenAICompat("m", base_url=server.url.replace("//", f"//me:{PASSWORD}@"), **SECRETS)
        cut: list[BaseException] = []

        async def ask() -> None:
            try:
                await by.complete(HI)
            except trio.Cancelled as cancelled:
                cut.append(cancelled)
                raise

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await server.quiet.wait()
            nursery.cancel_scope.cancel()
    ours = [frame.f_code.co_name for frame, _ in traceback.walk_tb(cut[0].__traceback__)]
    assert "exchange" in ours
    assert "begin" in ours
    assert_quiet(told(cut[0]))


async def test_an_error_keeps_what_somebody_else_was_handling() -> None:
    """A run inside of `except` takes nothing away from the error that was caught there."""
    by = OpenAICompat("m", base_url="http://127.0.0.1:1/v1", **SECRETS)
    try:
        _ = SECRETS["mine"]
    except KeyError as mine:
        with pytest.raises(AlloyError) as caught:
            await run("Hi", provider=by, max_retries=0)
        kept = mine.__traceback__
    assert kept is not None
    assert any(isinstance(each, KeyError) for each in chain(caught.value))


def test_hush_goes_through_causes_and_groups() -> None:
    inner = ValueError(KEY, 3)
    group = ExceptionGroup("several", [inner])
    error = RuntimeError("it")
    error.__cause__ = group
    hush(error, None, lambda said: said.replace(KEY, "…"))
    assert inner.args == ("…", 3)


# Proxies.


@pytest.mark.parametrize("scheme", ["http", "nonsense"])
async def test_the_password_of_a_proxy(
    scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo("401 Unauthorized")) as server:
        port = server.url.rpartition(":")[2].removesuffix("/v1")
        for proxy in (f"{scheme}://me:{IN_PROXY}@127.0.0.1:{port}", f"{scheme}://me:{IN_PROXY}@127.0.0.1:none"):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            with Watch(caplog) as watch, failing():
                await run("Hi", provider=OpenAICompat("m", base_url="http://host.test/v1", **SECRETS), max_retries=0)
            assert_quiet(watch.everything())


# Tools.


async def test_what_bash_is_given_and_does_not_print(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where it cannot be started: the standard library has the whole environment in its frames."""
    shell = bash.configure(env={"DEPLOY": KEY})
    calls = [tool_call("bash", {"command": 'test -n "$DEPLOY" && echo there'})]
    with Watch(caplog) as watch:
        for place in (tmp_path, tmp_path / "missing"):
            result = await run(
                "Go", provider=ScriptedProvider([calls, text("Done")]), tools=[shell], working_directory=place
            )
            assert_quiet(repr(result))
        assert "there" in repr(watch.heard)
        assert "missing" in repr(watch.heard)
        assert_quiet(watch.everything())


@pytest.mark.parametrize("is_sandboxed", [False, True])
async def test_a_command_that_is_cut_shows_no_environment(
    is_sandboxed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was given to it, nor what it has inherited."""
    if is_sandboxed:
        shell = _sandboxed(env={"DEPLOY": KEY})
    else:
        monkeypatch.setenv("INHERITED", IN_CLIENT)
        shell = bash.configure(env={"DEPLOY": KEY})
    calls = [tool_call("bash", {"command": "touch ready; sleep 60"})]
    cut: list[BaseException] = []

    async def run_it() -> None:
        try:
            await run("Go", provider=ScriptedProvider([calls]), tools=[shell], working_directory=tmp_path)
        except (trio.Cancelled, BaseExceptionGroup) as error:
            cut.append(error)
            raise

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_it)
            while not (tmp_path / "ready").exists():  # noqa: ASYNC110 - another process makes it
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    ours = [frame.f_code.co_name for each in chain(cut[0]) for frame, _ in traceback.walk_tb(each.__traceback__)]
    assert "_in_bash" in ours
    assert_quiet(told(cut[0]))


@pytest.mark.parametrize("wrong", [{"timeout": -1}, {"memory": 0}, {"max_timeout": 1}])
def test_a_command_s_options_that_cannot_be(wrong: dict[str, Any]) -> None:
    """Nor is the environment shown by an option beside it that is wrong."""
    with failing(InvalidOption):
        bash.configure(env={"DEPLOY": KEY}, **wrong)
    _sandboxed()
    with failing(InvalidOption):
        bash_sandboxed(env={"DEPLOY": KEY}, **wrong)


def _sandboxed(**options: Any) -> Tool:
    try:
        return bash_sandboxed(**options)
    except InvalidOption as error:
        pytest.skip(str(error))


def test_a_context_that_is_no_mapping() -> None:
    """It is somebody's secret all the same."""
    with failing(InvalidOption):
        run_sync("Go", provider="demo", context=KEY)  # type: ignore[call-overload]


async def test_deps_and_context_that_no_tool_tells(caplog: pytest.LogCaptureFixture) -> None:
    @tool
    async def use(ctx: ToolContext[str]) -> str:
        """Use what there is."""
        assert ctx.deps == KEY
        raise ToolError("it does not work")

    with Watch(caplog) as watch:
        provider = ScriptedProvider([[tool_call("use", {})], text("Done")])
        result = await run("Go", provider=provider, tools=[use], deps=KEY, context={"key": KEY})
        assert_quiet(repr(result))
        assert_quiet(watch.everything())


# Sessions.


@contextlib.asynccontextmanager
async def _open(kind: type[MemoryStore | JSONLStore | SQLiteStore], folder: Path) -> AsyncIterator[SessionStore]:
    if kind is MemoryStore:
        yield MemoryStore()
    elif kind is JSONLStore:
        async with JSONLStore(folder / "kept") as store:
            yield store
    else:
        async with SQLiteStore(folder / "kept.db") as store:
            yield store


@pytest.mark.parametrize("kind", [MemoryStore, JSONLStore, SQLiteStore])
@pytest.mark.parametrize("make_it", WIRES)
async def test_a_session_has_no_secret_in_it(
    kind: type[MemoryStore | JSONLStore | SQLiteStore], make_it: Wire, tmp_path: Path
) -> None:
    """Nor have its file, its pickle, its Markdown, and what an agent says of itself."""
    answers = {
        Anthropic: {"content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn"},
        OpenAI: {
            "status": "completed",
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}],
        },
        OpenAICompat: {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]},
    }
    async with serving(replying(http(json.dumps(answers[make_it]).encode()))) as server:
        url = server.url.replace("//", f"//me:{PASSWORD}@")
        by = make_it("m", base_url=url, **SECRETS)
        async with (
            _open(kind, tmp_path) as store,
            open_agent(provider=by, session_store=store, session_id="s", deps=KEY, context={"key": KEY}) as agent,
        ):
            result = await agent.chat("Hi")
            assert result.text == "Hello"
            session = agent.export_session()
            said = [repr(agent), repr(agent.health()), repr(session), session.to_json(), to_markdown(session)]
            records = repr(await store.load("s"))
    assert_quiet("\n".join(said) + records)
    assert CANARY.encode() not in pickle.dumps(session) + pickle.dumps(result)
    kept = _files(tmp_path)
    assert bool(kept) == (kind is not MemoryStore)
    assert CANARY.encode() not in kept


def _files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# The command line.


def test_a_configuration_file_with_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may not have one; that it has is said without saying which."""
    file = tmp_path / "config.toml"
    for line in (f'api-key = "{KEY}"', f"api-key = {KEY}", f'base-url = "ftp://me:{PASSWORD}@host.test"'):
        file.write_text(f"{line}\n")
        for arguments in (["-p", "Hi"], ["-p", "Hi", "--api-key", KEY], ["-p", "Hi", f"--api-key={KEY}"]):
            assert main(["--config", str(file), *arguments]) == 2
            assert_quiet("".join(capsys.readouterr()))
