"""
What comes from files, people and models, read: what it ought to be, or an error of ours that says so; never anything else.

Here is what has no file of its own for that. Elsewhere: SSE, HTTP/1, the three wires, JSON, Retry-After, edits, paths, prices.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import attrs
import click
import jsonschema_rs
import msgspec
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alloy_trio import (
    Budget,
    InvalidOption,
    Message,
    Price,
    ProviderError,
    Session,
    StoreError,
    ToolError,
    open_agent,
    run,
)
from alloy_trio._output import Output
from alloy_trio.repl._config_file import Known, read_config
from alloy_trio.sessions import JSONLStore, MemoryStore, Record
from alloy_trio.testing import ScriptedProvider, text, tool_call
from alloy_trio.tools import Tool

EXAMPLES = settings().max_examples  # 100, or more by the profile `deep`
ANY_TEXT = st.text(st.characters(codec=None), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Draw some JSON with a few of its places made anything, left out, or doubled."""
    root: dict[str, Any] = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(1, 3))):
        node: Any = root
        while True:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 4)):
                node = node[key]
                continue
            break
        match draw(st.sampled_from(["other", "other", "none"] if node is root else ["other", "other", "gone", "none"])):
            case "other":
                node[key] = draw(JSON)
            case "gone":
                del node[key]
            case "none":
                node[key] = None
        if not isinstance(root[""], dict | list) or not root[""]:
            break
    return root[""]


# --- Sessions


async def _kept() -> list[Record]:
    """Return the records of a conversation with all that there is in one."""
    store = MemoryStore()

    async def look(_: Any, __: Any) -> str:
        return "found"

    tool = Tool(name="look", input_schema={"type": "object"}, execute=look, _parse=lambda sent: sent)
    script: list[Any] = [[text("So."), tool_call("look", {"at": 1}), tool_call("look")], "Done.", "Again."]
    async with open_agent(
        provider=ScriptedProvider(script), tools=[tool], session_store=store, session_id="s"
    ) as agent:
        await agent.chat("Go")
        await agent.chat("On")
    return list(await store.load("s"))


RECORDS = trio.run(_kept)


@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_records_that_were_changed_are_read_or_refused(data: st.DataObject) -> None:
    """An agent begins with a conversation that it can go on with, or is told by `StoreError` that it cannot be read."""
    whole = [[record.kind, record.data] for record in RECORDS]
    made = data.draw(changed(whole))
    entries = [each for each in made if isinstance(each, list) and len(each) == 2] if isinstance(made, list) else []
    records = [
        Record(seq, str(kind), what if isinstance(what, dict) else {}) for seq, (kind, what) in enumerate(entries, 1)
    ]

    async def main() -> None:
        store = MemoryStore()
        with contextlib.suppress(StoreError):
            await store.append("s", records)
            async with open_agent(provider=ScriptedProvider(["fine"]), session_store=store, session_id="s") as agent:
                before = agent.messages
                with contextlib.suppress(InvalidOption, ProviderError):
                    await agent.chat("and now?")
                assert agent.messages[: len(before)] == before

    trio.run(main)


@settings(max_examples=EXAMPLES // 4)
@given(place=st.integers(0, 5000), size=st.integers(0, 40), new=st.binary(max_size=40))
def test_a_file_that_was_damaged_is_read_or_refused(place: int, size: int, new: bytes) -> None:
    """And one that is read can be written on."""

    async def main(folder: Path) -> None:
        async with JSONLStore(folder) as store:
            await store.append("s", RECORDS)
        (path,) = folder.glob("*.jsonl")  # noqa: ASYNC240 - one name in a folder of its own
        data = path.read_bytes()
        path.write_bytes(data[: place % len(data)] + new + data[place % len(data) + size :])
        with contextlib.suppress(StoreError):
            async with JSONLStore(folder) as store:
                records = list(await store.load("s"))
                more = Record(1 + (records[-1].seq if records else 0), "k", {})
                await store.append("s", [more])
                assert list(await store.load("s")) == [*records, more]

    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder))


@settings(max_examples=2 * EXAMPLES)
@given(data=st.data())
def test_a_session_that_was_changed_is_read_or_refused(data: st.DataObject) -> None:
    """What is read can be written again, without loss."""
    session = Session(id="s", messages=[Message.user("Hi"), *_messages()], metadata={"k": [1]})
    made = data.draw(changed(json.loads(session.to_json())))
    with contextlib.suppress(ValueError):
        again = Session.from_json(json.dumps(made))
        assert Session.from_json(again.to_json()) == again


def _messages() -> list[Message]:
    found = [record.data["message"] for record in RECORDS if record.kind == "message"]
    whole = Session(id="s").to_json()
    return list(Session.from_json(json.dumps({**json.loads(whole), "messages": found})).messages)


# --- Configuration


CONFIG = 'provider = "demo"\nbudget = 2.5\ntools = ["read"]\nverbose = true\n[profile.local]\nprovider = "x"\n'
KNOWN = {
    "provider": Known("provider"),
    "budget": Known("budget"),
    "tools": Known("tools", is_list=True),
    "verbose": Known("verbose", is_flag=True),
}


@given(
    place=st.integers(0, len(CONFIG)),
    size=st.integers(0, 20),
    new=st.binary(max_size=6)
    | st.sampled_from([b"[", b"]\n", b"=", b"[profile]\n", b"1979-05-27", b"inf", b"{a=1}", b'"""']),
    profile=st.sampled_from([None, "local", "other"]),
)
def test_a_configuration_is_read_or_refused(place: int, size: int, new: bytes, profile: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.toml")
        data = CONFIG.encode()
        path.write_bytes(data[:place] + new + data[place + size :])
        with contextlib.suppress(click.UsageError):
            values = read_config(path, profile, KNOWN, needed=True)
            assert set(values) <= set(KNOWN)
            assert all(isinstance(value, str | bool | list) for value in values.values())


@given(st.text(max_size=12) | st.from_regex(r"[+-]?\d{0,3}\.?\d{0,3}([eE][+-]?\d{1,20})?", fullmatch=True))
@example("1e999999")
@example("1e9999999999")
@example("1e-9999999")
@example("sNaN")
def test_an_amount_of_money_is_one_or_refused(amount: str) -> None:
    with contextlib.suppress(InvalidOption):
        for budget in (Budget(amount), Budget(cents=amount)):
            assert budget.limit > 0
            assert budget.left == budget.limit
            assert repr(budget)
    with contextlib.suppress(InvalidOption):
        assert Price(amount, "1").input >= 0


# --- Types


@attrs.frozen
class Point:
    """A place on a map."""

    x: int
    name: str | None = None


class Route(msgspec.Struct):
    """Some places."""

    points: list[Point]
    kind: Literal["road", "rail"] = "road"


leaves: st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]] = st.sampled_from(
    [
        (int, st.integers(-(2**60), 2**60)),
        (str, st.text(max_size=5)),
        (bool, st.booleans()),
        (float, st.floats(allow_nan=False, allow_infinity=False, width=32)),
        (Literal["a", "b"], st.sampled_from(["a", "b"])),
        (Literal[1, 3], st.sampled_from([1, 3])),  # not both at once: msgspec can only from 0.22 on
        (Point, st.builds(Point, st.integers(0, 9), st.none() | st.text(max_size=3))),
        (Route, st.builds(Route, st.lists(st.builds(Point, st.integers(0, 9)), max_size=2))),
        (None, st.none()),
    ]
)
Kind = tuple[Any, st.SearchStrategy[Any]]


def grown(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Any]:
    made: Any = {"list": list, "dict": dict, "tuple": tuple}  # a type checker takes no variables in the brackets
    return st.one_of(
        inner.map(lambda kind: (made["list"][kind[0]], st.lists(kind[1], max_size=3))),
        inner.map(lambda kind: (made["dict"][str, kind[0]], st.dictionaries(st.text(max_size=3), kind[1], max_size=3))),
        inner.map(lambda kind: (kind[0] | None if kind[0] is not None else None, st.none() | kind[1])),
        st.tuples(inner, inner).map(lambda two: (made["tuple"][two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))),
    )


kinds = st.recursive(leaves, grown, max_leaves=5)


@settings(max_examples=2 * EXAMPLES)
@given(kind=kinds, data=st.data())
def test_the_schema_of_a_type_takes_its_values_and_reads_them_back(kind: Kind, data: st.DataObject) -> None:
    """Whatever the type: its schema is one, a value of it fits, and comes out as it went in; other JSON does, or is refused."""
    output = Output.of(kind[0], lambda _: True)
    value = data.draw(kind[1])
    sent = msgspec.to_builtins(attrs.asdict(value) if attrs.has(type(value)) else _plain(value))
    answer = sent if not output._wrapped else {"value": sent}
    validator = jsonschema_rs.validator_for(output.schema)
    assert validator.is_valid(answer), (output.schema, answer)
    assert output.parse_text(json.dumps(answer)) == value
    with contextlib.suppress(ToolError):
        output.parse(data.draw(JSON))  # type: ignore[arg-type] # a model may send what is no object


def _plain(value: Any) -> Any:
    match value:
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case Route():
            return {"points": [attrs.asdict(point) for point in value.points], "kind": value.kind}
        case Point():
            return attrs.asdict(value)
    return value


@given(st.lists(ANY_TEXT | st.sampled_from(["```json\n", "\n```", '{"x": 1}', '{"x": ', "[" * 3000]), max_size=4))
@example(["[" * 100_000])
@example(["\ud83d"])
@example(['{"x": "\ud83d"}'])
def test_what_a_model_answers_is_the_type_or_not(pieces: list[str]) -> None:
    """And a run goes on asking, or fails by an error of the provider's."""
    output = Output.of(Point, lambda _: True)
    with contextlib.suppress(ToolError):
        assert isinstance(output.parse_text("".join(pieces)), Point)

    async def main() -> None:
        provider = ScriptedProvider([[text("".join(pieces))]] * 9, native_output=True)
        with contextlib.suppress(ProviderError):
            result = await run("Where?", provider=provider, output_type=Point, max_turns=5)
            assert result.output is None or isinstance(result.output, Point)

    trio.run(main)
