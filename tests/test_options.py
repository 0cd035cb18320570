"""Options: what they default to, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
import inspect
import math
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

import alloy_trio
from alloy_trio import (
    Compaction,
    InvalidOption,
    Message,
    Middleware,
    RunOptions,
    Session,
    open_agent,
    run,
    run_sync,
    stream,
    tool,
)
from alloy_trio._catalog import ModelInfo, builtin_catalog
from alloy_trio._config import Config, configure
from alloy_trio.events import TextDelta
from alloy_trio.providers import Anthropic, Demo, OpenAI, OpenAICompat, Request, Response
from alloy_trio.supervision import open_supervisor
from alloy_trio.testing import FaultServer, ScriptedProvider, error, text, tool_call

if TYPE_CHECKING:
    from alloy_trio import RunState


@tool
async def one() -> str:
    """Do one thing."""
    return "1"


async def refused(**options: Any) -> str:
    provider = ScriptedProvider([text("x")])
    with pytest.raises(InvalidOption) as caught:
        await run("hi", **{"provider": provider, **options})
    assert provider.requests == []
    assert isinstance(caught.value, TypeError)
    return str(caught.value)


async def test_opt_01_unknown_option() -> None:
    message = await refused(colour="red")
    assert "'colour'" in message
    assert "max_turns" in message
    assert "tool_timeout" in message


def test_opt_01_a_stream_refuses_when_it_is_made() -> None:
    with pytest.raises(InvalidOption, match="colour"):
        stream("hi", provider="demo", colour="red")  # type: ignore[call-overload]


def test_opt_04_defaults() -> None:
    config = configure({"provider": "demo"})
    assert (config.max_turns, config.tool_timeout, config.cancel_grace) == (25, 120, 5)
    assert (config.until_tool, config.max_output_tokens, config.system_prompt) == (None, None, None)
    assert (config.tools, config.context, config.deps) == ({}, {}, None)
    assert (config.max_retries, config.retry_backoff, config.fallback_providers) == (3, 1.0, ())
    assert (config.max_budget_cents, config.on_compaction, config.on_event) == (None, None, None)
    assert (config.code_execution, config.provider_state, config.output_type) == (False, None, None)
    assert (config.middleware, config.compaction) == ((), Compaction())


def test_opt_05_a_name_and_a_value_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("GROQ_API_KEY", "groq-key")
    named = {
        name: configure({"provider": name}).provider
        for name in ("anthropic:a", "openai:b", "ollama:c:8b", "demo", "groq:d")
    }
    assert isinstance(named["anthropic:a"], Anthropic)
    assert named["anthropic:a"].model == "a"
    assert isinstance(named["openai:b"], OpenAI)
    ollama, groq = named["ollama:c:8b"], named["groq:d"]
    assert isinstance(ollama, OpenAICompat)
    assert (ollama.model, ollama.name, ollama.api_key) == ("c:8b", "ollama", None)
    assert isinstance(groq, OpenAICompat)
    assert groq.api_key == "groq-key"
    assert isinstance(named["demo"], Demo)
    given = ScriptedProvider([])
    assert configure({"provider": given}).provider is given


def test_opt_05_fallbacks_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    given = ScriptedProvider([])
    config = configure({"provider": "demo", "fallback_providers": ["anthropic:a", given]})
    first, second = config.fallback_providers
    assert isinstance(first, Anthropic)
    assert first.model == "a"
    assert second is given


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ("nobody:x", "unknown provider 'nobody'"),
        ("claude-sonnet-5-5", 'say "PROVIDER:MODEL"; the providers are demo, anthropic'),
        ("anthropic", "needs a model"),
        ("anthropic:m", "ANTHROPIC_API_KEY"),
        ("openai:m", "OPENAI_API_KEY"),
        ("groq:m", "GROQ_API_KEY"),
        (None, "provider is needed"),
        (object(), "complete"),
        (ScriptedProvider, "give an instance of it"),
    ],
)
async def test_opt_05_what_is_no_provider(provider: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GROQ_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    assert says in await refused(provider=provider)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("max_tokens", "max_output_tokens"),
        ("max_tokens", "context_tokens"),
        ("model", "provider"),
        ("api_key", "provider"),
        ("cache", "cache=True"),
        ("extra_body", "extra_body={"),
        ("previous_response_id", "OpenAI(model="),
        ("price", "Price("),
        ("budget", "max_budget_cents"),
        ("tool_choice", "extra_body"),
        ("temperature", "extra_body"),
        ("reasoning_effort", "extra_body"),
        ("instructions", "say system_prompt"),
    ],
    ids=lambda value: f"opt-06-{value}",
)
async def test_opt_06_a_misplaced_option_says_where_it_belongs(option: str, says: str) -> None:
    assert says in await refused(**{option: 1})


def test_opt_08_no_deadline_by_default() -> None:
    assert configure({"provider": "demo"}).timeout is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_turns": 0}, "max_turns=0"),
        ({"max_turns": 2.5}, "max_turns=2.5"),
        ({"max_turns": True}, "max_turns=True"),
        ({"max_output_tokens": -1}, "max_output_tokens=-1"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"tool_timeout": "soon"}, "tool_timeout='soon'"),
        ({"cancel_grace": -0.1}, "cancel_grace=-0.1"),
        ({"tools": [one, one]}, "two tools are named 'one'"),
        ({"tools": [len]}, "@tool"),
        ({"tools": ["read"]}, "no tool"),
        ({"until_tool": "submit"}, "none of the tools"),
        ({"on_event": "print"}, "on_event"),
        ({"context": [1]}, "mapping"),
        ({"system_prompt": 3}, "system_prompt=3"),
        ({"allowed_paths": "/tmp"}, "list"),
        ({"messages": [Message.user("a")], "session": Session()}, "both"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "Message.user"),
        ({"messages": Message.user("a")}, "list of messages"),
        ({"session": {}}, "Session()"),
        ({"tools": one}, "list of tools"),
        ({"tools": None}, "list of tools"),
        ({"working_directory": 5}, "5 is no path"),
        ({"allowed_paths": [5]}, "5 is no path"),
        ({"allowed_paths": 5}, "list of folders"),
        ({"tool_timeout": None}, "tool_timeout=None"),
        ({"max_turns": None}, "max_turns=None"),
        # money
        ({"max_budget_cents": 0}, "above 0; for no limit leave it out"),
        ({"max_budget_cents": "-5"}, "above 0"),
        ({"max_budget_cents": Decimal(0)}, "above 0"),
        ({"max_budget_cents": 0.5}, '"0.5"'),
        ({"max_budget_cents": "much"}, "no exact amount"),
        ({"max_budget_cents": math.inf}, "no exact amount"),
        ({"max_budget_cents": "NaN"}, "no exact amount"),
        ({"max_budget_cents": True}, "no exact amount"),
        # retry and fallback
        ({"max_retries": -1}, "max_retries=-1 has to be a whole number, 0 or more"),
        ({"max_retries": 1.5}, "max_retries=1.5"),
        ({"max_retries": True}, "max_retries=True"),
        ({"max_retries": None}, "max_retries=None"),
        ({"retry_backoff": -1}, "retry_backoff=-1"),
        ({"retry_backoff": math.nan}, "retry_backoff=nan"),
        ({"retry_backoff": math.inf}, "max_retries=0"),
        ({"fallback_providers": None}, "list of providers"),
        ({"fallback_providers": "demo"}, "list of providers"),
        ({"fallback_providers": ScriptedProvider([])}, "list of providers"),
        ({"fallback_providers": ["nobody:x"]}, "unknown provider 'nobody'"),
        ({"fallback_providers": ["demo", "anthropic"]}, "needs a model"),
        ({"fallback_providers": [object()]}, "complete"),
        ({"fallback_providers": [ScriptedProvider]}, "give an instance of it"),
        # middleware
        ({"middleware": None}, "list of middlewares"),
        ({"middleware": Middleware()}, "list of middlewares, even of one"),
        ({"middleware": "audit"}, "list of middlewares"),
        ({"middleware": [Middleware]}, "give an instance of it, Middleware()"),
        ({"middleware": [Compaction]}, "give an instance of it, Compaction()"),
        ({"middleware": [object()]}, "none of the hooks: session_start"),
        ({"middleware": [Middleware(), 5]}, "middleware has 5"),
        ({"middleware": [print]}, "none of the hooks"),
        ({"middleware": [SimpleNamespace(before_completion="x")]}, "none of the hooks"),
        (
            {"middleware": [SimpleNamespace(on_error=print, before_completion="x")]},
            "whose before_completion is 'x': make it a function",
        ),
        # compaction
        ({"compaction": "summary"}, "has to be Compaction(…), or False"),
        ({"compaction": 0}, "has to be Compaction(…), or False"),
        ({"compaction": Compaction}, "has to be Compaction(…), or False"),
        ({"compaction": Compaction(), "middleware": [Compaction()]}, "leave one of them out"),
        ({"compaction": True, "middleware": [Compaction()]}, "leave one of them out"),
        ({"compaction": False, "middleware": [Compaction()]}, "leave one of them out"),
        ({"compaction": Compaction(), "middleware": iter([Compaction()])}, "leave one of them out"),
        ({"middleware": [Compaction(), Middleware(), Compaction()]}, "more than one Compaction"),
        ({"on_compaction": "print"}, "on_compaction='print' cannot be called"),
        ({"on_compaction": print, "compaction": False}, "nothing would ever call it"),
        # what is known of the model
        ({"context_tokens": 0}, "context_tokens=0 has to be a whole number, 1 or more"),
        ({"context_tokens": -5}, "context_tokens=-5"),
        ({"context_tokens": 2e5}, "context_tokens=200000.0"),
        ({"context_tokens": "200k"}, "context_tokens='200k'"),
        ({"context_tokens": True}, "context_tokens=True"),
        ({"catalog": object()}, "needs a method find(provider, model)"),
        ({"catalog": {"m": 5}}, "needs a method find"),
        ({"catalog": "genai"}, "needs a method find"),
        ({"catalog": type(builtin_catalog())}, "needs a method find"),
        ({"catalog": SimpleNamespace(find=5)}, "needs a method find"),
        ({"catalog": SimpleNamespace(find=lambda *_: None, default_context_tokens=0)}, "default_context_tokens=0"),
        ({"model_metadata_overrides": [("m", 5)]}, "should be a mapping"),
        ({"model_metadata_overrides": {"m": 0}}, "model_metadata_overrides['m']=0"),
        ({"model_metadata_overrides": {"m": {"suffix_patterns": [""]}}}, "has no limit"),
        ({"model_metadata_overrides": {5: 5}}, "name of a model"),
        # what a provider keeps, or runs
        ({"provider_state": "resp_1"}, "provider_state has to be a mapping, and is of type str"),
        ({"code_execution": "yes"}, "code_execution"),
        ({"code_execution": True}, "provider scripted has no sandbox"),
        # together
        ({"output_type": int, "until_tool": "one", "tools": [one]}, "both given"),
        ({"until_tool": "two", "tools": [one]}, "none of the tools: one"),
        ({"tools": [one, one.evolve(description="the same name")]}, "tool.evolve(name=…)"),
    ],
)
async def test_what_cannot_be_right_is_refused(options: dict[str, Any], says: str) -> None:
    assert says in await refused(**options)


def test_on_compaction_is_told_what_it_takes() -> None:
    with pytest.raises(InvalidOption) as caught:
        configure({"provider": "demo", "on_compaction": 5})
    assert "envelope" not in str(caught.value)
    assert "messages" in str(caught.value)


@pytest.mark.parametrize("options", [{"max_retries": -1}, {"middleware": [Middleware]}, {"max_budget_cents": 0}])
def test_every_door_refuses_the_same(options: Any) -> None:
    provider = ScriptedProvider([text("x")])
    with pytest.raises(InvalidOption):
        run_sync("hi", provider=provider, **options)
    with pytest.raises(InvalidOption):
        stream("hi", provider=provider, **options)
    assert provider.requests == []


async def test_a_list_may_be_any_iterable() -> None:
    """Also one that can be looked through only once."""
    log: list[int] = []
    second = ScriptedProvider([tool_call("one"), text("second")])
    once: dict[str, Any] = {
        "tools": iter([one]),
        "middleware": iter([SimpleNamespace(before_completion=lambda state: log.append(state.turns))]),
        "fallback_providers": iter([second]),
        "messages": iter([Message.user("a"), Message.assistant("b")]),
    }
    result = await run("hi", provider=ScriptedProvider([error("down"), error("down")]), **once)
    assert (result.text, log, len(result.messages)) == ("second", [0, 1], 6)


async def test_a_list_may_be_any_iterable_where_a_type_is_wanted_too() -> None:
    """Whether that goes to the model as a schema or as a tool depends on all of the providers."""
    second = ScriptedProvider([tool_call("final_answer", {"value": 5})])
    options: dict[str, Any] = {"fallback_providers": iter([second])}
    result = await run("hi", provider=ScriptedProvider([error("down")]), output_type=int, **options)
    assert result.output == 5


@pytest.mark.parametrize("streaming", [False, True])
async def test_nothing_happens_before_all_options_are_right(streaming: bool) -> None:
    """Neither hooks nor listeners are called for a run that never begins, and a session stays as it was."""
    seen: list[object] = []
    session = Session(messages=[Message.user("a"), Message.assistant("b")])
    before = attrs.evolve(session)
    options: Any = {
        "provider": ScriptedProvider([text("x")]),
        "middleware": [SimpleNamespace(session_start=seen.append, session_end=seen.append)],
        "on_event": seen.append,
        "session": session,
        "max_retries": -1,
    }
    with pytest.raises(InvalidOption) as caught:
        _ = stream("hi", **options) if streaming else await run("hi", **options)
    assert caught.value.result is None
    assert seen == []
    assert session == before


# What is known of the model


class Known:
    """A catalog that knows one model."""

    def __init__(self, window: int | None, default: int | None = None) -> None:
        self.window = window
        self.default_context_tokens = default
        self.asked: list[tuple[str, str]] = []

    def find(self, provider: str, model: str) -> ModelInfo | None:
        self.asked.append((provider, model))
        return ModelInfo(context_tokens=self.window) if model == "mine" else None


def window(provider: Any = None, **options: Any) -> int:
    return configure(
        {"provider": provider or ScriptedProvider([], name="openai", model="gpt-5"), **options}
    ).context_tokens


class Nameless:
    async def complete(self, request: Request) -> Response:
        raise AssertionError("asked")


def test_opt_02_the_window_explicit_overridden_known_or_default() -> None:
    known = builtin_catalog().find("openai", "gpt-5")
    assert known is not None
    overrides = {"gpt-5": 900_000}
    assert window(context_tokens=7_000, model_metadata_overrides=overrides) == 7_000
    assert window(model_metadata_overrides=overrides) == 900_000
    assert window() == known.context_tokens == 272_000
    assert window(context_tokens=None) == 272_000
    assert window(ScriptedProvider([], name="openai", model="gpt-unheard-of")) == 200_000
    assert window(Nameless()) == 200_000
    assert window("demo") == 200_000


@pytest.mark.parametrize(
    ("model", "overrides", "expected"),
    [
        ("gpt-5-2025-08-07", {"gpt-5": 900_000}, 900_000),
        ("gpt-5-mini", {"gpt-5": 900_000}, 272_000),
        ("acme-1", {"acme-1": 640_000}, 640_000),
        ("acme-1-2025-08-07", {"acme-1": 640_000}, 200_000),
        ("acme-1-0807", {"acme-1": {"limit": 640_000, "suffix_patterns": ["", r"-\d{4}"]}}, 640_000),
        ("gpt-5", {"gpt-5": 10}, 10),
        ("gpt-5", {"other": 10}, 272_000),
        ("gpt-5", {}, 272_000),
        ("gpt-5", None, 272_000),
    ],
    ids=[
        "opt-03-dated",
        "cat-06-no-sibling",
        "cat-06-unknown",
        "cat-06-unknown-dated",
        "cat-07-patterns",
        "cat-09-tiny",
        "opt-03-other",
        "cat-08-empty",
        "cat-08-none",
    ],
)
def test_overrides_derive_the_window(model: str, overrides: Any, expected: int) -> None:
    provider = ScriptedProvider([], name="openai", model=model)
    assert window(provider, model_metadata_overrides=overrides) == expected


def test_opt_07_an_own_catalog() -> None:
    mine, other = ScriptedProvider([], name="acme", model="mine"), ScriptedProvider([], name="acme", model="other")
    catalog = Known(5_000, default=9_000)
    assert window(mine, catalog=catalog) == 5_000
    assert catalog.asked == [("acme", "mine")]
    assert window(other, catalog=catalog) == 9_000
    assert window(Nameless(), catalog=catalog) == 9_000
    assert window(other, catalog=Known(5_000)) == 200_000
    assert window(mine, catalog=Known(None, default=9_000)) == 9_000
    assert window(mine, catalog=catalog, model_metadata_overrides={"mine": 3_000}) == 3_000
    assert window(other, catalog=catalog, model_metadata_overrides={"mine": 3_000}) == 9_000
    assert window(mine, catalog=catalog, model_metadata_overrides={"mine": 3_000}, context_tokens=1_000) == 1_000
    assert window(mine, catalog=None) == 200_000


async def test_opt_07_a_run_goes_by_it() -> None:
    """The window that was derived is the one that compaction and hooks know."""
    seen: list[int] = []

    def look(state: RunState) -> None:
        seen.append(state.context_tokens)

    old = [Message.user("start"), *[Message.assistant("a " * 800), Message.user("b " * 800)] * 6]
    provider = ScriptedProvider([text("a summary"), text("done")], name="acme", model="mine")
    looking = SimpleNamespace(before_completion=look)
    result = await run(None, provider=provider, messages=old, catalog=Known(4_000), middleware=[looking])
    assert (seen, result.text) == ([4_000], "done")
    assert len(result.messages) < len(old)


@pytest.mark.parametrize("answer", [5, {"context_tokens": 5}, "mine"])
def test_opt_07_a_catalog_that_answers_nonsense(answer: Any) -> None:
    catalog = SimpleNamespace(find=lambda provider, model: answer)
    with pytest.raises(InvalidOption, match="ModelInfo"):
        configure({"provider": ScriptedProvider([]), "catalog": catalog})


# Where the provider has to play along


def test_code_execution_reaches_a_provider_that_has_it() -> None:
    mine = Anthropic(model="m", api_key="k")
    config = configure({"provider": mine, "code_execution": True})
    assert isinstance(config.provider, Anthropic)
    assert config.provider.code_execution
    assert not mine.code_execution
    assert configure({"provider": mine}).provider is mine
    assert configure({"provider": mine, "code_execution": False}).provider is mine
    second, third = Anthropic(model="n", api_key="k"), ScriptedProvider([])
    config = configure({"provider": mine, "code_execution": True, "fallback_providers": [second, third]})
    assert [getattr(each, "code_execution", None) for each in config.fallback_providers] == [True, None]


@pytest.mark.parametrize(
    "provider",
    [OpenAI(model="m", api_key="k"), OpenAICompat(model="m"), Demo(), Nameless()],
    ids=lambda p: type(p).__name__,
)
def test_code_execution_elsewhere_is_refused(provider: Any) -> None:
    with pytest.raises(InvalidOption, match="no sandbox to run code in"):
        configure({"provider": provider, "code_execution": True})


def test_code_execution_is_a_yes_or_a_no() -> None:
    with pytest.raises(InvalidOption, match="has to be True or False"):
        configure({"provider": Anthropic(model="m", api_key="k"), "code_execution": "yes"})


def test_code_execution_of_a_provider_that_only_looks_like_it() -> None:
    class Mine(Nameless):
        code_execution = False

    with pytest.raises(InvalidOption, match="no sandbox to run code in"):
        configure({"provider": Mine(), "code_execution": True})


async def test_nothing_to_ask() -> None:
    with pytest.raises(InvalidOption, match="nothing to ask"):
        await run(provider="demo")


@pytest.mark.parametrize("prompt", [5, Message.assistant("me?"), ["a"]])
async def test_what_is_no_prompt(prompt: Any) -> None:
    with pytest.raises(InvalidOption, match="text, or a user's message"):
        await run(prompt, provider="demo")


async def test_infinite_limits_are_allowed() -> None:
    provider = ScriptedProvider([text("x")])
    result = await run("hi", provider=provider, tool_timeout=math.inf, cancel_grace=math.inf, timeout=math.inf)
    assert result.text == "x"


async def test_options_reach_the_request() -> None:
    provider = ScriptedProvider([text("x")])
    await run("hi", provider=provider, system_prompt="Be brief.", max_output_tokens=9, tools=iter([one]))
    (request,) = provider.requests
    assert (request.system_prompt, request.max_output_tokens, [t.name for t in request.tools]) == (
        "Be brief.",
        9,
        ["one"],
    )


def test_every_option_is_a_field_and_documented() -> None:
    options = set(RunOptions.__annotations__)
    assert options - {"messages"} == {field.name for field in attrs.fields(Config)}
    documented = inspect.getdoc(RunOptions) or ""  # Python 3.13 takes the indentation away by itself
    for name in options:
        assert f"\n    {name}: " in documented


def test_a_prompt_may_be_a_message() -> None:
    picture = alloy_trio.Image("image/png", b"png")

    class Look:
        async def complete(self, request: Request) -> Response:
            return Response(message=Message.assistant(str(picture in request.messages[-1].content)))

    assert alloy_trio.run_sync(Message.user("what is it?", picture), provider=Look()).text == "True"


def test_who_runs_it_in_asyncio_is_told_what_to_do() -> None:
    """Trio's own words would be "'RunContext' object has no attribute 'runner'"."""

    async def one_run() -> None:
        await run("hi", provider="demo")

    async def one_stream() -> None:
        async with stream("hi", provider="demo"):
            pass

    async def one_agent() -> None:
        async with open_agent(provider="demo"):
            pass

    async def one_supervisor() -> None:
        async with open_supervisor([]):
            pass

    for door in (one_run, one_stream, one_agent, one_supervisor):
        with pytest.raises(RuntimeError, match=r"trio\.run\(main\), or call run_sync"):
            asyncio.run(door())


def test_what_is_made_before_trio_runs_is_entered_within() -> None:
    """So that a function that is not async may hand out a stream; a server of faults may be a fixture."""
    events, server = stream("hi", provider=ScriptedProvider(["hello"])), FaultServer()

    async def main() -> str:
        async with server, events:
            return "".join([event.text async for event in events if isinstance(event, TextDelta)])

    assert trio.run(main) == "hello"


async def test_run_sync_in_a_trio_loop_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"await run\(…\) instead"):
        alloy_trio.run_sync("Hi", provider="demo")
