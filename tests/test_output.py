"""`output_type=`: the final answer as a typed value."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import attrs
import msgspec
import pydantic
import pytest
from rules import check_history
from typing_extensions import TypedDict

import alloy_trio
from alloy_trio import InvalidOption, Middleware, ProviderError, RunState, ToolContext, tool
from alloy_trio.providers import Request, Response
from alloy_trio.testing import ScriptedProvider, text, tool_call


@attrs.frozen
class City:
    name: str
    people: int = 0


@dataclasses.dataclass
class Town:
    name: str
    people: int = 0


class Village(TypedDict):
    name: str
    people: int


class Hamlet(msgspec.Struct):
    name: str
    people: int = 0


class Farm(pydantic.BaseModel):
    name: str
    people: int = 0


@attrs.frozen
class Tree:
    name: str
    under: list[Tree]


def _native(*replies: Any) -> ScriptedProvider:
    return ScriptedProvider(replies, native_output=True)


def _answer(**value: object) -> Any:
    return tool_call("final_answer", dict(value))


KINDS = pytest.mark.parametrize("kind", [City, Town, Hamlet, Farm])


@KINDS
async def test_a_provider_that_knows_schemas_answers_in_text(kind: Any) -> None:
    provider = _native('{"name": "Oslo", "people": 700000}')
    result = await alloy_trio.run("Where?", provider=provider, output_type=kind)
    assert result.output == kind(name="Oslo", people=700000)
    assert (result.status, result.turns) == ("completed", 1)
    [request] = provider.requests
    assert request.output_schema is not None
    assert request.output_schema["properties"].keys() == {"name", "people"}
    assert not request.tools


@KINDS
async def test_any_other_is_given_a_tool_for_it(kind: Any) -> None:
    provider = ScriptedProvider([_answer(name="Oslo", people=700000)])
    result = await alloy_trio.run("Where?", provider=provider, output_type=kind)
    assert result.output == kind(name="Oslo", people=700000)
    assert (result.status, result.turns) == ("completed", 1)
    [request] = provider.requests
    assert request.output_schema is None
    assert [each.name for each in request.tools] == ["final_answer"]
    check_history(result.messages)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (list[City], [City("Oslo"), City("Rome")]),
        (int, 3),
        (Literal["yes", "no"], "yes"),
        (City | None, None),
        (Village, {"name": "Flåm", "people": 350}),
        (dict[str, int], {"Flåm": 350}),
        (Tree, Tree("oak", [Tree("acorn", [])])),
    ],
    ids=str,
)
@pytest.mark.parametrize("native", [True, False], ids=["native", "tool"])
async def test_what_is_no_object_is_wrapped_in_one(kind: Any, value: Any, native: bool) -> None:
    """Providers want an object at the root of a schema."""
    bare = isinstance(value, dict | Tree)
    answer: Any = msgspec.to_builtins(value) if not isinstance(value, Tree) else attrs.asdict(value)
    answer = answer if bare else {"value": answer}
    provider = _native(msgspec.json.encode(answer).decode()) if native else ScriptedProvider([_answer(**answer)])
    result = await alloy_trio.run("go", provider=provider, output_type=kind)
    assert result.output == value
    [request] = provider.requests
    schema = request.output_schema if native else request.tools[0].input_schema
    assert schema is not None
    assert schema["type"] == "object"


async def test_an_answer_that_does_not_fit_goes_back_to_the_model() -> None:
    provider = _native("Oslo!", '{"name": 7}', '```json\n{"name": "Oslo"}\n```')
    result = await alloy_trio.run("Where?", provider=provider, output_type=City)
    assert result.output == City("Oslo")
    assert result.turns == 3
    said = [message.text for message in result.messages if message.role == "user"]
    assert "no JSON" in said[1]
    assert "Expected `str`, got `int` - at `$.name`" in said[2]
    check_history(result.messages)


async def test_an_input_of_the_tool_that_does_not_fit_is_an_error_result() -> None:
    provider = ScriptedProvider([_answer(people=3), "Oslo", _answer(name="Oslo")])
    result = await alloy_trio.run("Where?", provider=provider, output_type=City)
    assert result.output == City("Oslo")
    assert result.turns == 3
    refused = result.messages[2].tool_results[0]
    assert refused.is_error
    assert "the answer does not fit: Object missing required field `name` - at `$`" in refused.text
    assert "final_answer" in result.messages[4].text  # the reminder behind plain text
    check_history(result.messages)


@pytest.mark.parametrize(
    "provider",
    [_native(*["nothing"] * 9), ScriptedProvider([_answer(people=n) for n in range(9)])],
    ids=["native", "tool"],
)
async def test_that_is_bounded(provider: ScriptedProvider) -> None:
    """The first answer, and three more."""
    with pytest.raises(ProviderError, match="did not fit output_type") as caught:
        await alloy_trio.run("Where?", provider=provider, output_type=City)
    assert len(provider.requests) == 4
    assert caught.value.result is not None
    assert caught.value.result.output is None
    check_history(caught.value.result.messages)


@pytest.mark.parametrize("native", [True, False], ids=["native", "tool"])
async def test_tools_come_first(native: bool) -> None:
    @tool
    async def look_up(ctx: ToolContext[Any]) -> str:
        """Look it up."""
        return f"{ctx.name}: Oslo"

    last: Any = '{"name": "Oslo"}' if native else _answer(name="Oslo")
    provider = ScriptedProvider([tool_call("look_up"), last], native_output=native)
    result = await alloy_trio.run("Where?", provider=provider, tools=[look_up], output_type=City)
    assert result.output == City("Oslo")
    assert result.turns == 2


async def test_other_calls_beside_the_answer_run_too() -> None:
    ran = []

    @tool
    async def note(words: str) -> None:
        """Take a note."""
        ran.append(words)

    reply = [tool_call("note", {"words": "x"}), _answer(name="Oslo")]
    result = await alloy_trio.run("Where?", provider=ScriptedProvider([reply]), tools=[note], output_type=City)
    assert (result.output, ran) == (City("Oslo"), ["x"])


async def test_all_providers_of_a_chain_have_to_know_schemas() -> None:
    """The answer has one form, whoever gives it."""
    first, second = _native(_answer(name="Oslo")), ScriptedProvider([])
    result = await alloy_trio.run("Where?", provider=first, fallback_providers=[second], output_type=City)
    assert result.output == City("Oslo")
    assert first.requests[0].output_schema is None


async def test_json_in_text_is_taken_where_the_tool_was_meant() -> None:
    """Many models of local servers answer so, whatever they are told."""
    result = await alloy_trio.run("Where?", provider=ScriptedProvider(['{"name": "Oslo"}']), output_type=City)
    assert (result.output, result.turns) == (City("Oslo"), 1)


async def test_a_tool_that_is_never_called_is_not_waited_for_until_the_turns_are_over() -> None:
    provider = ScriptedProvider(["Oslo"] * 9)
    with pytest.raises(ProviderError, match="did not fit output_type"):
        await alloy_trio.run("Where?", provider=provider, output_type=City)
    assert len(provider.requests) == 4


async def test_commentary_ahead_of_the_answer_is_let_pass() -> None:
    reply = [text("Let me think."), text('{"name": "Oslo"}')]
    assert (await alloy_trio.run("Where?", provider=_native(reply), output_type=City)).output == City("Oslo")


async def test_an_empty_answer_is_none_even_if_the_prompt_would_be_one() -> None:
    empty = Response(message=alloy_trio.Message("assistant", ()))
    provider = _native(empty, '{"name": "Rome"}')
    result = await alloy_trio.run('{"name": "Oslo"}', provider=provider, output_type=City)
    assert result.output == City("Rome")


@attrs.frozen
class Picky:
    name: str

    def __attrs_post_init__(self) -> None:
        raise KeyError(self.name)


async def test_what_the_type_itself_raises_goes_back_to_the_model() -> None:
    with pytest.raises(ProviderError, match="KeyError"):
        await alloy_trio.run("Where?", provider=_native(*['{"name": "Oslo"}'] * 4), output_type=Picky)


async def test_streamed_it_is_the_same() -> None:
    async with alloy_trio.stream("Where?", provider=_native('{"name": "Oslo"}'), output_type=City) as events:
        async for _ in events:
            pass
    assert events.result.output == City("Oslo")


async def test_a_hook_may_ask_for_another_answer() -> None:
    class Critic(Middleware):
        async def after_completion(self, state: RunState) -> None:
            if state.turns == 1:
                state.messages = (*state.messages, alloy_trio.Message.user("Somewhere warmer."))

    provider = _native('{"name": "Oslo"}', '{"name": "Rome"}')
    result = await alloy_trio.run("Where?", provider=provider, output_type=City, middleware=[Critic()])
    assert result.output == City("Rome")


async def test_without_it_there_is_no_output() -> None:
    provider = ScriptedProvider(["Oslo"])
    assert (await alloy_trio.run("Where?", provider=provider)).output is None
    assert provider.requests == [Request(messages=(alloy_trio.Message.user("Where?"),))]


@tool(name="final_answer")
async def _taken() -> None:
    """Be in the way."""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_type": object}, "cannot be an answer"),
        ({"output_type": "City"}, "cannot be an answer"),
        ({"output_type": City, "until_tool": "x"}, "until_tool= and output_type= are both given"),
        ({"output_type": City, "tools": [_taken]}, "two tools are named 'final_answer'"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_before_anything_is_sent(options: Any, said: str) -> None:
    provider = ScriptedProvider([text("x")])
    with pytest.raises(InvalidOption, match=said):
        await alloy_trio.run("go", provider=provider, **options)
    assert not provider.requests


async def test_a_value_that_a_hook_has_sent_back_is_no_output() -> None:
    class Critic(Middleware):
        async def after_completion(self, state: RunState) -> None:
            state.messages = (*state.messages, alloy_trio.Message.user("Wrong, again."))

    provider = _native(*['{"name": "Oslo"}'] * 3)
    result = await alloy_trio.run("Where?", provider=provider, output_type=City, middleware=[Critic()], max_turns=2)
    assert (result.status, result.output) == ("max_turns", None)


async def test_an_answer_that_a_hook_blocks_is_no_misfit() -> None:
    class Gate(Middleware):
        async def before_tool_call(self, state: RunState, call: alloy_trio.ToolUse) -> alloy_trio.BlockCall | None:
            return alloy_trio.BlockCall("not yet") if state.turns < 6 else None

    provider = ScriptedProvider([_answer(name="Oslo")] * 6)
    result = await alloy_trio.run("Where?", provider=provider, output_type=City, middleware=[Gate()])
    assert (result.output, result.turns) == (City("Oslo"), 6)
