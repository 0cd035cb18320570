"""From signatures to schemas, and from JSON to arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, Optional, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from alloy_trio._errors import InvalidOption, ToolError
from alloy_trio.tools._context import ToolContext
from alloy_trio.tools._tool import Tool, tool

if TYPE_CHECKING:
    from collections.abc import Callable


T = TypeVar("T")


@attrs.frozen
class Place:
    """A place."""

    city: str
    country: str = "FR"


@attrs.frozen
class Stay:
    place: Place
    nights: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Options(TypedDict, total=False):
    deep: bool


class Range(NamedTuple):
    first: int
    last: int = 9


class Circle(msgspec.Struct, tag=True):
    radius: float


class Both(msgspec.Struct, tag=True):
    left: Circle | Both
    right: Circle | Both


class Item(pydantic.BaseModel):
    title: str
    count: int = 1


class Order(pydantic.BaseModel):
    """What is wanted."""

    items: list[Item]


class Node(pydantic.BaseModel):
    value: int
    next: Node | None = None


class Box(pydantic.BaseModel, Generic[T]):
    inside: T


class Plain:
    """Nothing that JSON knows."""


def taking(hint: object, default: object = ...) -> Tool:
    """Make a tool of one parameter, `value`, that returns it."""

    def show(value: Any) -> Any:
        return value

    show.__annotations__ = {"value": hint}
    if default is not ...:
        show.__defaults__ = (default,)
    return tool(show)


def refusal(made: Tool, given_input: Any) -> str:
    with pytest.raises(ToolError) as caught:
        made.parse(given_input)
    return str(caught.value)


# Schemas


def test_schema_of_a_signature() -> None:
    @tool
    async def get_weather(city: str, days: int = 3) -> None:
        """Forecast the weather.

        For Europe.

        Args:
            city: City name.
            days: How many days ahead.

        Returns:
            Not shown.
        """

    assert get_weather.name == "get_weather"
    assert get_weather.description == "Forecast the weather.\n\nFor Europe."
    assert get_weather.input_schema == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "City name."},
            "days": {"type": "integer", "description": "How many days ahead.", "default": 3},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_schema_without_parameters() -> None:
    @tool
    def now() -> None: ...

    empty = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert now.input_schema == empty
    assert now.description == ""
    assert now.parse({}) == {}


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (Any, {}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (dt.date, {"type": "string", "format": "date"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (Path, {"type": "string"}),
        (trio.Path, {"type": "string"}),
        (Annotated[int, Meta(ge=1, description="n", title="N")],
         {"type": "integer", "minimum": 1, "description": "n", "title": "N"}),
        (Place, {"$ref": "#/$defs/Place"}),
        (Order, {"$ref": "#/$defs/Order"}),
        (list[Order], {"type": "array", "items": {"$ref": "#/$defs/Order"}}),
    ],
)  # fmt: skip
def test_schema_of_a_type(hint: object, schema: object) -> None:
    assert taking(hint).input_schema["properties"] == {"value": schema}


def test_nested_classes_are_closed_and_untitled() -> None:
    definitions = taking(Stay).input_schema["$defs"]
    assert definitions == {
        "Stay": {
            "type": "object",
            "properties": {"place": {"$ref": "#/$defs/Place"}, "nights": {"type": "integer"}},
            "required": ["place", "nights"],
            "additionalProperties": False,
        },
        "Place": {
            "type": "object",
            "description": "A place.",
            "properties": {"city": {"type": "string"}, "country": {"type": "string", "default": "FR"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }


def test_pydantic_models_keep_their_definitions_apart_and_lose_their_titles() -> None:
    definitions = taking(Order).input_schema["$defs"]
    assert definitions == {
        "Order": {
            "type": "object",
            "description": "What is wanted.",
            "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/Order_Item"}}},
            "required": ["items"],
        },
        "Order_Item": {
            "type": "object",
            "properties": {"title": {"type": "string"}, "count": {"type": "integer", "default": 1}},
            "required": ["title"],
        },
    }


@pytest.mark.parametrize("hint", [Node, Box[Item], list[Node | None]])
def test_every_reference_of_a_pydantic_schema_is_defined(hint: object) -> None:
    schema = taking(hint).input_schema
    references = set(re.findall(r"'\$ref': '#/\$defs/([^']*)'", str(schema)))
    assert references
    assert references <= schema["$defs"].keys()
    assert all(name.isidentifier() for name in schema["$defs"])


def test_a_reference_has_nothing_beside_it() -> None:
    """OpenAI's strict mode refuses a `$ref` with a description."""

    @tool
    def go(place: Place, colour: Colour = Colour.RED) -> None:
        """Go.

        Args:
            place: Where to.
            colour: In what colour.
        """

    assert go.input_schema["properties"] == {
        "place": {"description": "Where to.", "anyOf": [{"$ref": "#/$defs/Place"}]},
        "colour": {"description": "In what colour.", "default": "red", "anyOf": [{"$ref": "#/$defs/Colour"}]},
    }


def test_two_classes_of_one_name_are_told_apart_or_refused() -> None:
    class Place:
        pass

    other = attrs.make_class("Place", {"street": attrs.field(type=str)})

    def go(a: Any, b: Any) -> None: ...

    go.__annotations__ = {"a": globals()["Place"], "b": other}
    with pytest.raises(InvalidOption, match=r"parameter 'b'.*two classes of the name Place"):
        tool(go)


# Descriptions


@pytest.mark.parametrize(
    "doc",
    [
        "Find.\n\nArgs:\n    a: First.\n    b (int): Second.\n",
        "Find.\n\nParameters\n----------\na : str\n    First.\nb : int\n    Second.\n",
        "Find.\n\n:param a: First.\n:param int b: Second.\n",
    ],
    ids=["google", "numpy", "sphinx"],
)
def test_descriptions_from_the_docstring(doc: str) -> None:
    def find(a: str, b: int) -> None: ...

    find.__doc__ = doc
    made = tool(find)
    assert made.description == "Find."
    described = [each["description"] for each in made.input_schema["properties"].values()]
    assert described == ["First.", "Second."]


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[int, Meta(description="From Meta.")],
        Annotated[int, Meta(description="From Meta.")] | None,
        Annotated[int | None, Meta(title="T"), Meta(description="From Meta.")],
    ],
)
def test_meta_wins_over_the_docstring(hint: object) -> None:
    def find(a: Any) -> None: ...

    find.__doc__ = "Find.\n\nArgs:\n    a: From the docstring.\n"
    find.__annotations__ = {"a": hint}
    shown = str(tool(find).input_schema)
    assert "From Meta." in shown
    assert "docstring" not in shown


def test_a_docstring_that_only_looks_like_sections_is_kept() -> None:
    def find(a: str) -> None: ...

    find.__doc__ = "Find: the thing.\n\nArgs:\nnothing of the sort"
    assert tool(find).description == find.__doc__


# Parsing


@pytest.mark.parametrize(
    ("hint", "sent", "value"),
    [
        (int, 3, 3),
        (int, "3", 3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (bool, "true", True),
        (bool, 0, False),
        (int | None, "null", None),
        (str | None, "null", "null"),
        (int | str, "3", "3"),
        (dt.datetime, "2026-01-02T03:04:05Z", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (dt.date, "2026-01-02", dt.date(2026, 1, 2)),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678" * 2 + "12345678" * 2)),
        (Path, "a/b", Path("a/b")),
        (Path | None, None, None),
        (list[Path], ["a"], [Path("a")]),
        (Colour, "red", Colour.RED),
        (Literal[1, 2], 2, 2),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (set[int], [1, 1], {1}),
        (Place, {"city": "Oslo"}, Place("Oslo")),
        (Stay, {"place": {"city": "Oslo"}, "nights": "2"}, Stay(Place("Oslo"), 2)),
        (Point, {"x": 1}, Point(1)),
        (Options, {"deep": True}, {"deep": True}),
        (Range, [1], Range(1)),
        (Order, {"items": [{"title": "x"}]}, Order(items=[Item(title="x")])),
        (list[Item], [{"title": "x", "count": "2"}], [Item(title="x", count=2)]),
        (Item | None, None, None),
        (Circle | Both, {"type": "Circle", "radius": 1}, Circle(1.0)),
        (Any, {"a": [1]}, {"a": [1]}),
    ],
)  # fmt: skip
def test_good_input(hint: object, sent: object, value: object) -> None:
    arguments = taking(hint).parse({"value": sent})
    assert arguments == {"value": value}
    assert type(arguments["value"]) is type(value)


@pytest.mark.parametrize(
    ("hint", "sent", "message"),
    [
        (str, 3, "Expected `str`, got `int` - at `$.value`"),
        (str, None, "Expected `str`, got `null` - at `$.value`"),
        (int, "many", "Expected `int`, got `str` - at `$.value`"),
        (bool, "yes", "Expected `bool`, got `str` - at `$.value`"),
        (Annotated[int, Meta(ge=1)], 0, "Expected `int` >= 1 - at `$.value`"),
        (list[int], [1, "x"], "Expected `int`, got `str` - at `$.value[1]`"),
        (Colour, "pink", "Invalid enum value 'pink' - at `$.value`"),
        (Path, 3, "Expected `str`, got `int` - at `$.value`"),
        (Stay, {"place": {}, "nights": 1}, "Object missing required field `city` - at `$.value.place`"),
        (Place, {"city": "x", "contry": "y"}, "unknown field `contry` - at `$.value`"),
        (list[Place | None], [None, {"city": "x", "a": 1}], "unknown field `a` - at `$.value[1]`"),
        (dict[str, Point], {"k": {"x": 1, "z": 1}}, "unknown field `z` - at `$.value.k`"),
        (tuple[int, Point], [1, {"x": 1, "z": 1}], "unknown field `z` - at `$.value[1]`"),
        (
            Both | Circle,
            {"type": "Both", "left": {"type": "Circle", "radius": 1}, "right": {"type": "Circle", "radius": 1, "a": 1}},
            "unknown field `a` - at `$.value.right`",
        ),
        (Order, {"items": [{}]}, "no valid `Order`: Field required at `items.0.title` - at `$.value`"),
        (list[Item], [{"title": 1}], "no valid `Item`: Input should be a valid string at `title` - at `$.value[0]`"),
    ],
)  # fmt: skip
def test_bad_input_names_the_place_and_what_was_expected(hint: object, sent: object, message: str) -> None:
    assert refusal(taking(hint), {"value": sent}) == f"invalid input: {message}"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "Object missing required field `city`; Object missing required field `place`"),
        ([], "Expected `object`, got `array`"),
        ("{}", "Expected `object`, got `str`"),
        ({"city": "x", "place": {"city": "y"}, "extra": 1}, "unknown field `extra` - at `$`"),
        (
            {"city": 1, "days": "x", "place": {"city": "y", "zip": 1}},
            (
                "unknown field `zip` - at `$.place`; Expected `str`, got `int` - at `$.city`; "
                "Expected `int`, got `str` - at `$.days`"
            ),
        ),
    ],
    ids=["exe-11-missing", "exe-11-no-object", "exe-11-text", "exe-11-unknown", "exe-11-all-faults"],
)
def test_every_fault_is_reported(sent: object, message: str) -> None:
    @tool
    def go(city: str, place: Place, days: int = 1) -> None: ...

    assert refusal(go, sent) == f"invalid input: {message}"


def test_long_values_and_lone_surrogates_do_not_spoil_the_message() -> None:
    message = refusal(taking(Colour), {"value": "x" * 10_000})
    assert len(message) < 400
    assert message.endswith("- at `$.value`")
    refusal(taking(int), {"value": "\ud800"}).encode()
    refusal(taking(int), {"\ud800": 1}).encode()


def test_what_is_nested_too_deeply_is_an_error_for_the_model() -> None:
    deep: dict[str, Any] = {"type": "Circle", "radius": 1}
    for _ in range(5_000):
        deep = {"type": "Both", "left": deep, "right": {"type": "Circle", "radius": 1}}
    assert refusal(taking(Both), {"value": deep}) == "invalid input: it is nested too deeply"


def test_the_keys_of_a_deep_union_are_checked_in_linear_time() -> None:
    deep: dict[str, Any] = {"type": "Circle", "radius": 1, "odd": 1}
    for _ in range(60):
        deep = {"type": "Both", "left": deep, "right": {"type": "Circle", "radius": 1}}
    assert "unknown field `odd`" in refusal(taking(Both), {"value": deep})


# Defaults


@pytest.mark.parametrize("default", [[1], {"a": 1}, {1}])
def test_a_mutable_default_is_copied(default: Any) -> None:
    made = taking(Any, default)
    first, second = made.parse({})["value"], made.parse({})["value"]
    assert first == second == default
    assert first is not second
    assert first is not default


def test_a_default_that_json_cannot_say_is_not_shown() -> None:
    sentinel = Plain()
    made = taking(Any, sentinel)
    assert made.input_schema["properties"] == {"value": {}}
    assert made.input_schema["required"] == []
    assert made.parse({})["value"] is sentinel


@pytest.mark.parametrize(
    ("hint", "default", "shown"),
    [(Path, Path("a"), "a"), (str | None, None, None), (dt.date, dt.date(2026, 1, 2), "2026-01-02")],
)
def test_a_default_is_shown_as_json(hint: object, default: object, shown: object) -> None:
    made = taking(hint, default)
    assert made.input_schema["properties"]["value"]["default"] == shown
    assert made.parse({}) == {"value": default}


# Names


def test_a_parameter_may_have_any_name() -> None:
    @tool
    def odd(*, copy: str, self_: int, from_: int, _hidden: int, match: int, p0: int, __dict__: int) -> None: ...

    sent = {name: index for index, name in enumerate(odd.input_schema["properties"])} | {"copy": "x"}
    assert list(sent) == ["copy", "self_", "from_", "_hidden", "match", "p0", "__dict__"]
    assert odd.parse(sent) == sent


# The context


def test_the_context_parameter_is_found_by_type_and_hidden() -> None:
    @tool
    def first(ctx: ToolContext, city: str) -> object:
        return ctx, city

    @tool
    def typed(city: str, *, context: ToolContext[Place]) -> object:
        return context, city

    @tool
    def optional(city: str, c: Optional[ToolContext[Place]] = None) -> object:  # noqa: UP045 - the old form too
        return c, city

    @tool
    def annotated(city: str, c: Annotated[ToolContext, "noted"]) -> object:
        return c, city

    @tool
    def quoted(city: str, c: ToolContext[Place] | None = None) -> object:
        return c, city

    ctx = ToolContext[Any]()
    for made in (first, typed, optional, annotated, quoted):
        assert list(made.input_schema["properties"]) == ["city"]
        assert made.execute(made.parse({"city": "Oslo"}), ctx) == (ctx, "Oslo")


def test_a_context_imported_for_type_checkers_only_is_found() -> None:
    namespace: dict[str, Any] = {}
    exec("def late(city: 'str', ctx: 'ToolContext[int] | None') -> None: ...", namespace)
    assert list(tool(namespace["late"]).input_schema["properties"]) == ["city"]


def test_a_local_class_is_found_where_the_function_is_decorated() -> None:
    class Local(msgspec.Struct):
        x: int

    @tool
    def bare(value: Local) -> Local:
        return value

    @tool(timeout=1)
    def configured(value: list[Local]) -> list[Local]:
        return value

    assert bare.parse({"value": {"x": 1}}) == {"value": Local(1)}
    assert configured.parse({"value": [{"x": 1}]}) == {"value": [Local(1)]}


# What cannot be


def _refused(source: str, **names: object) -> str:
    namespace = dict(names)
    exec(source, namespace)
    made: Any = namespace["made"]
    with pytest.raises(InvalidOption) as caught:
        tool(made)
    return str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("x", "tool 'made': parameter 'x' has no type hint: write for instance `x: str`"),
        ("self, x: int", "tool 'made': parameter 'self' has no type hint: to make a tool of a method"),
        ("*x: int", "parameter '*x' has no fixed names or types"),
        ("**x: int", "parameter '**x' has no fixed names or types"),
        ("x: int, /", "parameter 'x' is positional-only"),
        (
            "y: int, x: 'Missing'",
            "a type hint cannot be looked up: name 'Missing' is not defined; define or import",
        ),
        ("x: 'no type'", "a type hint cannot be looked up: "),
        ("y: int, x: Plain", "parameter 'x' cannot be filled from JSON: type <class"),
        (
            "x: Place | Point",
            "cannot be filled from JSON: Type unions may not contain more than one dataclass or attrs",
        ),
        (
            "x: Item | Order",
            "use one type: a class with optional fields, or msgspec.Struct classes with `tag=True`",
        ),
        ("x: str | Path", "parameter 'x' cannot be filled from JSON: Type unions"),
    ],
)
def test_a_parameter_that_json_cannot_fill_is_refused_at_once(parameters: str, message: str) -> None:
    names = {"Place": Place, "Point": Point, "Plain": Plain, "Item": Item, "Order": Order, "Path": Path}
    assert message in _refused(f"def made({parameters}): ...", **names)


def test_a_function_without_a_signature_is_refused() -> None:
    with pytest.raises(InvalidOption, match="its signature cannot be read"):
        tool(max)


def test_the_return_type_need_not_exist() -> None:
    namespace: dict[str, Any] = {}
    exec("def made(x: int) -> 'Missing': return x", namespace)
    assert tool(namespace["made"]).parse({"x": 1}) == {"x": 1}


# Callables of all kinds


class Shop:
    """A shop."""

    def __init__(self, stock: int) -> None:
        self.stock = stock

    def left(self, minus: int) -> int:
        """Say what is left."""
        return self.stock - minus

    @staticmethod
    async def price(count: int) -> int:
        return count

    async def __call__(self, count: int) -> int:
        return self.stock * count


def _price(key: str, count: int, unit: int = 2) -> int:
    """Work out the price."""
    return count * unit + len(key)


def test_a_bound_method() -> None:
    made = tool(Shop(5).left)
    assert (made.name, made.description, made.is_async) == ("left", "Say what is left.", False)
    assert made.execute(made.parse({"minus": 2}), ToolContext()) == 3


async def test_a_static_method() -> None:
    made = tool(Shop.__dict__["price"])
    assert made.is_async
    assert await made(count=3) == 3


async def test_an_object_that_can_be_called() -> None:
    made = tool(Shop(5))
    assert (made.name, made.description, made.is_async) == ("Shop", "A shop.", True)
    result: Any = made.execute(made.parse({"count": 2}), ToolContext())
    assert await result == 10


def test_a_partial_shows_nothing_of_what_it_binds() -> None:
    made = tool(functools.partial(_price, key="secret"))
    assert (made.name, made.description) == ("_price", "Work out the price.")
    assert list(made.input_schema["properties"]) == ["count", "unit"]
    assert "secret" not in str(made.input_schema)
    assert "unknown field `key`" in refusal(made, {"count": 1, "key": "other"})
    assert made.execute(made.parse({"count": 2}), ToolContext()) == 10
    assert tool(functools.partial(_price, "k")).parse({"count": 1}) == {"count": 1, "unit": 2}


def test_a_wrapped_function_has_the_signature_of_what_it_wraps() -> None:
    def logged(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> int:
            return function(*args, **kwargs) + 1

        return wrapper

    made = tool(logged(_price))
    assert made.execute(made.parse({"key": "", "count": 2}), ToolContext()) == 5


# Properties

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=8,
)
NAMES = ["city", "place", "order", "shape", "colour", "numbers"]


@tool
def everything(
    *,
    place: Place,
    shape: Circle | Both,
    order: Order | None = None,
    city: str = "",
    colour: Colour | None = None,
    numbers: dict[str, list[tuple[int, Point]]] | None = None,
) -> None:
    """Take everything."""


@given(JSON | st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_json_is_parsed_or_refused_in_words(sent: Any) -> None:
    """Parsing raises nothing but `ToolError`, whose text can be sent."""
    said = "invalid input: "
    with contextlib.suppress(ToolError):
        try:
            assert isinstance(everything.parse(sent)["place"], Place)
        except ToolError as error:
            said = str(error)
            raise
    assert said.encode().startswith(b"invalid input: ")


@given(st.builds(Stay, st.builds(Place, st.text(), st.text()), st.integers(-(2**60), 2**60)))
def test_what_was_made_of_a_value_gives_the_value_back(stay: Stay) -> None:
    assert taking(Stay).parse({"value": msgspec.to_builtins(stay)}) == {"value": stay}
