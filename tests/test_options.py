"""Options: what they default to, and what is refused before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest

import alloy_trio
from alloy_trio import InvalidOption, Message, RunOptions, Session, run, stream, tool
from alloy_trio._config import Config, configure
from alloy_trio.providers import Anthropic, Demo, OpenAI, OpenAICompat, Request, Response
from alloy_trio.testing import ScriptedProvider, text


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
        stream("hi", provider="demo", colour="red")  # type: ignore[call-arg]


def test_opt_04_defaults() -> None:
    config = configure({"provider": "demo"})
    assert (config.max_turns, config.tool_timeout, config.cancel_grace) == (25, 120, 5)
    assert (config.until_tool, config.max_output_tokens, config.system_prompt) == (None, None, None)
    assert (config.tools, config.context, config.deps) == ({}, {}, None)


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


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ("nobody:x", "unknown provider 'nobody'"),
        ("anthropic", "needs a model"),
        ("anthropic:m", "ANTHROPIC_API_KEY"),
        ("openai:m", "OPENAI_API_KEY"),
        ("groq:m", "GROQ_API_KEY"),
        (None, "provider is needed"),
        (object(), "complete"),
        (ScriptedProvider, "no provider"),
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
        ("model", "provider"),
        ("api_key", "provider"),
    ],
    ids=["opt-06-max_tokens", "opt-06-model", "opt-06-api_key"],
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
    ],
)
async def test_what_cannot_be_right_is_refused(options: dict[str, Any], says: str) -> None:
    assert says in await refused(**options)


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
    assert RunOptions.__doc__ is not None
    for name in options:
        assert f"        {name}: " in RunOptions.__doc__


def test_a_prompt_may_be_a_message() -> None:
    picture = alloy_trio.Image("image/png", b"png")

    class Look:
        async def complete(self, request: Request) -> Response:
            return Response(message=Message.assistant(str(picture in request.messages[-1].content)))

    assert alloy_trio.run_sync(Message.user("what is it?", picture), provider=Look()).text == "True"
