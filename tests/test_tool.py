"""Tools as values: what they accept, what they refuse, what becomes of what they return."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import math
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import alloy_trio
from alloy_trio._errors import InvalidOption, ToolError
from alloy_trio._events import Custom
from alloy_trio._messages import Document, Image, Text, Thinking, ToolResult
from alloy_trio.tools._context import ToolContext, _CallCancelled
from alloy_trio.tools._output import ToolOutput, clip, render, scrub
from alloy_trio.tools._tool import Tool, tool

ROOT = Path(__file__).resolve().parents[1]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
    "required": ["city"],
    "additionalProperties": False,
}


def forecast(city: str, days: int = 3) -> str:
    """Forecast the weather."""
    return f"{city}: rain for {days} days"


def raw(**options: Any) -> Tool:
    def run(arguments: dict[str, Any], ctx: ToolContext) -> str:
        return f"{ctx.name} {arguments}"

    return Tool(**{"name": "forecast", "input_schema": SCHEMA, "execute": run, **options})


def refusal(made: Tool, given_input: Any) -> str:
    with pytest.raises(ToolError) as caught:
        made.parse(given_input)
    return str(caught.value)


# Definitions


def test_tool_01_optional_fields_are_unset_unless_given() -> None:
    made = tool(forecast)
    assert (made.name, made.description, made.input_schema) == ("forecast", "Forecast the weather.", SCHEMA)
    assert (made.strict, made.input_examples, made.defer_loading, made.allowed_callers) == (
        None,
        (),
        False,
        (),
    )
    assert (made.timeout, made.cancel_grace, made.max_result_chars, made.native) == (None, None, None, {})
    assert made.concurrent
    assert not made.inline


def test_tool_04_a_decorated_function_and_a_hand_made_tool_have_the_same_definition() -> None:
    decorated = tool(forecast, strict=True)
    made = raw(description="Forecast the weather.", strict=True)
    fields = [field.name for field in attrs.fields(Tool) if not field.name.startswith("_")]
    fields.remove("execute")
    assert {name: getattr(decorated, name) for name in fields} == {name: getattr(made, name) for name in fields}


def test_a_tool_is_equal_to_itself_only_and_shows_its_name() -> None:
    assert raw() != raw()
    made = raw()
    assert {made: 1}[made] == 1
    assert repr(made) == "Tool(name='forecast')"
    assert repr(tool(forecast)) == "Tool(name='forecast')"


def test_the_decorator_takes_options() -> None:
    @tool(
        name="weather",
        description="Look out.",
        timeout=5,
        cancel_grace=math.inf,
        concurrent=False,
        inline=True,
    )
    def anything(city: str) -> str:
        """Not this."""
        return city

    assert (anything.name, anything.description) == ("weather", "Look out.")
    assert (anything.timeout, anything.cancel_grace) == (5, math.inf)
    assert not anything.concurrent
    assert anything.inline
    assert tool(forecast, allowed_callers=["human"]).allowed_callers == ("human",)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": ""}, "tool '': a name is 1 to 64"),
        ({"name": "two words"}, "a name is 1 to 64"),
        ({"name": "x" * 65}, "a name is 1 to 64"),
        ({"name": "x\n"}, "a name is 1 to 64"),
        ({"name": 3}, "a name is 1 to 64"),
        ({"description": None}, "description is text, got None"),
        ({"execute": "run"}, "tool 'forecast': execute is a function of (arguments, context), got 'run'"),
        ({"input_schema": {}}, 'input_schema needs "type": "object" at its root'),
        ({"input_schema": None}, 'input_schema needs "type": "object" at its root'),
        ({"input_schema": {"type": "string"}}, 'input_schema needs "type": "object" at its root'),
        ({"input_schema": {"type": "object", "required": "x"}}, 'no valid JSON Schema: "x" is not of type "array"'),
        ({"input_schema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/no"}}}}, "'/$defs/no' does not exist"),
        ({"input_schema": {"type": "object", "properties": {"a": {"pattern": "("}}}}, "no valid JSON Schema"),
        ({"input_schema": {"type": "object", "x": object()}}, "no valid JSON Schema: Unsupported type"),
        ({"timeout": 0}, "timeout is a positive number of seconds, or None for the run's; got 0"),
        ({"timeout": -1.5}, "timeout is a positive number"),
        ({"timeout": math.nan}, "timeout is a positive number"),
        ({"timeout": "5"}, "timeout is a positive number"),
        ({"cancel_grace": -1}, "cancel_grace is a number of seconds from 0"),
        ({"max_result_chars": 0}, "max_result_chars is a positive number"),
        ({"native": {"openai": "x"}}, "native maps a provider's name to a tool definition"),
        ({"native": None}, "native maps a provider's name to a tool definition"),
        ({"allowed_callers": "human"}, "are lists; write ['human']"),
        ({"input_examples": {"city": "x"}}, "are lists; write [{'city': 'x'}]"),
        ({"input_examples": [{"city": 3}]}, "an input example does not fit: invalid input: 3 is not of type"),
    ],
)  # fmt: skip
def test_tool_02_what_cannot_be_raises_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        raw(**options)
    assert reason in str(caught.value)


def test_tool_02_a_missing_field_or_an_unknown_option_raises() -> None:
    with pytest.raises(TypeError, match="input_schema"):
        Tool(name="x", execute=print)  # type: ignore[call-arg]
    with pytest.raises(InvalidOption, match=r"no option 'colour'; it has name, description, concurrent, .*native$"):
        tool(colour="red")  # type: ignore[call-overload]
    with pytest.raises(InvalidOption, match="no option 'colour', 'smell'; it has"):
        raw().evolve(smell=1, colour="red")


def test_tool_02_a_name_that_no_provider_takes_is_refused_with_advice() -> None:
    with pytest.raises(InvalidOption, match=r"'<lambda>': a name is .* give it such a one by `name=`"):
        tool(functools.partial(lambda: None))


@pytest.mark.parametrize("open_schema", [{}, {"additionalProperties": True}, {"additionalProperties": {}}])
def test_tool_03_strict_needs_a_closed_schema(open_schema: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {}, **open_schema}
    with pytest.raises(InvalidOption, match=r"strict needs `additionalProperties: false`.*providers refuse"):
        raw(input_schema=schema, strict=True)
    assert raw(input_schema=schema, strict=False).strict is False


def test_no_schema_is_ever_fetched() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://schemas.example/a.json"}}}
    with pytest.raises(InvalidOption, match=r"https://schemas.example/a.json is another document, and none is fetched"):
        raw(input_schema=schema)


def test_inline_is_for_sync_functions() -> None:
    async def run(arguments: dict[str, Any], ctx: ToolContext) -> None: ...

    async def decorated() -> None: ...

    with pytest.raises(InvalidOption, match="'forecast': inline is for sync functions"):
        raw(execute=run, inline=True)
    with pytest.raises(InvalidOption, match="'decorated': inline is for sync functions"):
        tool(decorated, inline=True)
    with pytest.raises(InvalidOption, match="inline is for sync functions"):
        tool(decorated).evolve(inline=True)


def test_generators_are_refused() -> None:
    def some() -> Any:
        yield 1

    async def some_async() -> Any:
        yield 1

    for function in (some, some_async):
        with pytest.raises(InvalidOption, match=r"generator: return one value, .* `ctx.emit`"):
            tool(function)
        with pytest.raises(InvalidOption, match="generator"):
            raw(execute=function)


@pytest.mark.parametrize("thing", [3, ToolContext, "forecast"])
def test_a_tool_is_made_of_a_function(thing: Any) -> None:
    with pytest.raises(InvalidOption, match="a tool is made of a function, not of"):
        tool(thing)


def test_a_tool_is_not_decorated_twice() -> None:
    with pytest.raises(InvalidOption, match="'forecast' is one already; change it by `evolve`"):
        tool(tool(forecast))


# Input


def test_a_raw_schema_is_taken_by_the_letter() -> None:
    given_input = {"city": "Oslo"}
    assert raw().parse(given_input) is given_input
    assert refusal(raw(), {"city": "Oslo", "days": "3"}) == (
        'invalid input: "3" is not of type "integer" - at `$.days`'
    )


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, '"city" is a required property - at `$`'),
        ([1], '[1] is not of type "object" - at `$`'),
        (
            {"city": 1, "days": None, "odd": 1},
            (
                '1 is not of type "string" - at `$.city`; null is not of type "integer" - at `$.days`; '
                "Additional properties are not allowed ('odd' was unexpected) - at `$`"
            ),
        ),
    ],
    ids=["exe-11-missing", "exe-11-no-object", "exe-11-all-faults"],
)
def test_every_fault_by_a_raw_schema_is_reported(sent: object, message: str) -> None:
    parts = sorted(refusal(raw(), sent).removeprefix("invalid input: ").split("; "))
    assert parts == sorted(message.split("; "))


def test_a_fault_deep_inside_names_its_path_and_stays_short() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "array", "items": {"type": "integer"}}}}},
    }
    message = refusal(raw(input_schema=schema), {"a": {"b": [1, "x" * 10_000]}})
    assert message.endswith("- at `$.a.b[1]`")
    assert len(message) < 400
    many = refusal(raw(input_schema=schema), {"a": {"b": ["x"] * 1_000}})
    assert len(many) < 1_000


@pytest.mark.parametrize("sent", [{"days": "\ud800"}, {"\ud800": 1}, {1: 2}])
def test_what_json_cannot_say_is_an_error_for_the_model(sent: Any) -> None:
    assert refusal(raw(), sent).encode().startswith(b"invalid input: ")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
        max_leaves=5,
    )
)
def test_any_json_meets_a_raw_schema_or_is_refused_in_words(sent: Any) -> None:
    made = raw(input_schema={"type": "object", "properties": {"a": {"type": "array"}}})
    try:
        parsed = made.parse(sent)
    except ToolError as error:
        str(error).encode()
        return
    assert parsed is sent
    assert isinstance(sent, dict)


# Calling


def test_a_decorated_function_stays_callable() -> None:
    made = tool(forecast)
    assert made("Oslo", days=1) == "Oslo: rain for 1 days"
    assert made.execute(made.parse({"city": "Oslo", "days": "2"}), ToolContext()) == "Oslo: rain for 2 days"


def test_a_hand_made_tool_calls_its_execute() -> None:
    assert raw()({"city": "Oslo"}, ToolContext(name="x")) == "x {'city': 'Oslo'}"


async def test_an_async_function_is_awaited() -> None:
    @tool
    async def double(number: int, ctx: ToolContext[int]) -> int:
        await trio.lowlevel.checkpoint()
        return number * ctx.deps

    assert double.is_async
    assert await double(2, ToolContext(deps=3)) == 6
    result: Any = double.execute(double.parse({"number": 2}), ToolContext(deps=5))
    assert await result == 10
    assert not tool(forecast).is_async
    assert not raw().is_async


# Evolving


def test_evolve_changes_options_and_nothing_else() -> None:
    made = tool(forecast)
    other = made.evolve(name="other", timeout=1)
    assert (other.name, other.timeout, other.description) == ("other", 1, made.description)
    assert (made.name, made.timeout) == ("forecast", None)
    assert other("Oslo") == made("Oslo")
    assert other.parse({"city": "Oslo"}) == {"city": "Oslo", "days": 3}
    with pytest.raises(InvalidOption, match="timeout"):
        made.evolve(timeout=-1)


def test_evolve_of_a_schema_and_of_what_runs() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    other = raw().evolve(input_schema=schema)
    assert other.parse({"n": 1}) == {"n": 1}
    assert "$.n" in refusal(other, {"n": "x"})
    with pytest.raises(InvalidOption, match="'forecast': its input_schema is its signature"):
        tool(forecast).evolve(input_schema=schema)
    both = tool(forecast).evolve(input_schema=schema, execute=lambda arguments, _: arguments)
    assert both(both.parse({"n": 2}), ToolContext()) == {"n": 2}


# The context


async def test_a_context_emits_custom_events() -> None:
    events: list[Custom] = []

    async def take(event: Custom) -> None:
        events.append(event)

    await ToolContext(emit=take).emit("progress", {"done": 1})
    assert events == [Custom("progress", {"done": 1})]


async def test_a_context_emits_from_a_thread() -> None:
    events: list[Custom] = []

    async def take(event: Custom) -> None:
        events.append(event)

    ctx = ToolContext(emit=take)
    await trio.to_thread.run_sync(trio.from_thread.run, ctx.emit, "half", {})
    assert events == [Custom("half", {})]


def test_a_cancelled_call_leaves_through_except_exception() -> None:
    ctx = ToolContext()
    ctx.check_cancelled()
    ctx._cancelled = True

    def stubborn() -> str:
        try:
            ctx.check_cancelled()
        except Exception:  # noqa: BLE001 - what tools do
            return "swallowed"
        return "went on"

    with pytest.raises(_CallCancelled):
        stubborn()


async def test_a_context_of_its_own_for_a_test() -> None:
    ctx = ToolContext(working_directory=Path("/srv"), deps="key-1", context={"token": "key-2"})
    assert ctx.allowed_paths == (Path("/srv"),)
    assert "key-" not in repr(ctx)
    await ctx.emit("unheard", {})


# Output


class Colour(enum.Enum):
    RED = "red"


class Word(str, enum.Enum):  # noqa: UP042 - the old form is what is meant
    YES = "yes"


@attrs.frozen
class Place:
    city: str


@dataclasses.dataclass
class Point:
    x: int


class Shape(msgspec.Struct):
    sides: int


class Model(pydantic.BaseModel):
    when: dt.date


class Opaque:
    def __str__(self) -> str:
        return "opaque"


IMAGE = Image("image/png", data=b"x")
OWN = alloy_trio.Opaque("anthropic", {"type": "search_result"})


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("text", "text"),
        ("", "(no output)"),
        (" \n", "(no output)"),
        (None, "(no output)"),
        (b"bytes", "bytes"),
        (bytearray(b"bytes"), "bytes"),
        (Word.YES, "yes"),
        (Text("a"), (Text("a"),)),
        (IMAGE, (IMAGE,)),
        ([Text("a"), IMAGE], (Text("a"), IMAGE)),
        (OWN, (OWN,)),
        (("see", IMAGE), (Text("see"), IMAGE)),
        (Document("text/plain", data="YQ=="), (Document("text/plain", data="YQ=="),)),
    ],
)
def test_text_and_blocks_are_taken_as_they_are(value: object, content: object) -> None:
    output = render(value)
    assert output.content == content
    assert type(output.content) is type(content)
    assert output.data is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ([], "[]"),
        (["a", "b"], '["a","b"]'),
        (3, "3"),
        (True, "true"),
        (2.5, "2.5"),
        (math.nan, "null"),
        (10**30, "1" + "0" * 30),
        (Colour.RED, '"red"'),
        (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), '"2026-01-02T00:00:00Z"'),
        (decimal.Decimal("1.10"), '"1.10"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Path("a/b"), '"a/b"'),
        (Place("Oslo"), '{"city":"Oslo"}'),
        ([Point(1)], '[{"x":1}]'),
        (Shape(3), '{"sides":3}'),
        (Model(when=dt.date(2026, 1, 2)), '{"when":"2026-01-02"}'),
        ({"m": Model(when=dt.date(2026, 1, 2))}, '{"m":{"when":"2026-01-02"}}'),
        (Opaque(), "opaque"),
        ([IMAGE, 3], '[{"data":"eA==","mime_type":"image/png","uri":null},3]'),
    ],
)
def test_anything_else_is_data_shown_as_json(value: object, text: str) -> None:
    output = render(value)
    assert output.content == text
    assert output.data is value


def test_what_json_cannot_say_is_shown_by_str() -> None:
    circular: list[Any] = []
    circular.append(circular)
    assert render(circular).content == "[[...]]"
    mixed = {"a": Opaque(), "b": {1, 2}}
    assert render(mixed) == ToolOutput(str(mixed), mixed)
    assert render({"a": "\ud800"}).content == "{'a': '\\ud800'}"


def test_output_for_the_model_and_for_the_program() -> None:
    output = ToolOutput("Two found.", {"found": [1, 2]})
    assert render(output) is output
    assert ToolOutput([Text("a"), "b"]).content == (Text("a"), Text("b"))
    assert ToolOutput(IMAGE).content == (IMAGE,)
    assert ToolOutput("").content == "(no output)"


@pytest.mark.parametrize("content", [3, [], [3], [Thinking("x")], ToolResult("a", "b"), {"a": 1}])
def test_content_is_text_or_blocks(content: Any) -> None:
    with pytest.raises(TypeError, match="content is text, or blocks of text and media"):
        ToolOutput(content)


def test_a_coroutine_is_no_result() -> None:
    async def forgotten() -> None: ...

    with pytest.raises(TypeError, match="the tool returned a coroutine: make it `async def`"):
        render(forgotten())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        (Text("\udcff"), "\ufffd"),
        (["\ud800", Text("\udfff")], "\ufffd\ufffd"),
    ],
    ids=["exe-12-bytes", "exe-12-surrogate", "exe-12-pair", "exe-12-block", "exe-12-blocks"],
)
def test_what_is_no_utf_8_is_replaced(value: object, text: str) -> None:
    assert ToolResult("id", render(value).content).text == text


def test_exe_12_error_text_can_be_scrubbed() -> None:
    assert scrub("no file \udcff") == "no file \ufffd"


@given(st.text(st.characters(codec=None)))
def test_scrubbed_text_can_be_sent_and_good_text_is_left_alone(text: str) -> None:
    scrub(text).encode()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert scrub(text) == text


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
        max_leaves=5,
    )
)
def test_whatever_is_returned_the_content_can_be_sent(value: object) -> None:
    content = render(value).content
    assert isinstance(content, str)
    assert content.encode().strip()


# Clipping


@pytest.mark.parametrize("limit", [10, 60, 10**9], ids=["exe-10-exact", "exe-10-room", "exe-10-unlimited"])
def test_short_text_is_not_cut(limit: int) -> None:
    assert clip("x" * 10, limit) == "x" * 10


def test_exe_10_head_and_tail_are_kept_and_a_mark_tells_the_sizes() -> None:
    text = "head" + "." * 1_000 + "tail"
    clipped = clip(text, 100)
    assert len(clipped) == 100
    assert clipped.startswith("head.")
    assert clipped.endswith(".tail")
    assert "\n[... cut from 1008 to 100 characters ...]\n" in clipped


@given(st.text(), st.integers(1, 200))
def test_exe_10_the_limit_holds(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped) == min(len(text), limit)
    assert clipped[:1] == text[:1]


# Import time


def test_importing_the_module_loads_neither_parser() -> None:
    """Docstrings and raw schemas are not everybody's business: what reads them is loaded on first use."""
    code = f"""
import sys, types
for name in ("alloy_trio", "alloy_trio.tools"):  # without what the packages import
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
import alloy_trio.tools._tool
print([name for name in ("docstring_parser", "jsonschema_rs", "pydantic") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
