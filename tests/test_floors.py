"""
The architecture, as one table, and the rules that the source keeps.

A module imports its own floor or a lower one, and nothing at run time goes round in a circle. Imports under `TYPE_CHECKING` are
exempt, imports inside functions are not. Façades (`alloy_trio.events`, the `__init__` of a package) export what private
modules define; private modules never import from a façade.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "alloy_trio"

FLOORS = {
    # 0: nouns
    "_background": 0,
    "_errors": 0,
    "_messages": 0,
    "_price": 0,
    "_result": 0,
    "_usage": 0,
    "_util": 0,
    # 1: facts and kit
    "_budget": 1,
    "_catalog": 1,
    "_catalog_make": 1,
    "_codec": 1,
    "_estimate": 1,
    "_events": 1,
    "_far": 1,
    "_gate": 1,
    "_history": 1,
    "_instruments": 1,
    "_mailbox": 1,
    "_overrides": 1,
    "_reservation": 1,
    "_session": 1,
    "_telemetry": 1,
    "supervision._child": 1,
    "supervision._decider": 1,
    "supervision._events": 1,
    "supervision._registry": 1,
    "supervision._spec": 1,
    "supervision._supervisor": 1,
    "pubsub._pubsub": 1,
    "pubsub._subscription": 1,
    "pubsub._topics": 1,
    "sessions._disk": 1,
    "sessions._jsonl": 1,
    "sessions._lines": 1,
    "sessions._lock": 1,
    "sessions._memory": 1,
    "sessions._names": 1,
    "sessions._queue": 1,
    "sessions._record": 1,
    "sessions._rows": 1,
    "sessions._sqlite": 1,
    # 2: languages
    "providers._address": 2,
    "providers._base": 2,
    "providers._checks": 2,
    "providers._classify": 2,
    "providers._decoder": 2,
    "providers._json": 2,
    "providers._exchange": 2,
    "providers._http1": 2,
    "providers._origin": 2,
    "providers._request": 2,
    "providers._secret": 2,
    "providers._sse": 2,
    "providers._transcript": 2,
    "tools._context": 2,
    "tools._output": 2,
    "tools._schema": 2,
    "tools._threads": 2,
    "tools._tool": 2,
    # 3: wires and edges
    "providers._anthropic": 3,
    "providers._anthropic_media": 3,
    "providers._anthropic_messages": 3,
    "providers._anthropic_plain": 3,
    "providers._anthropic_reply": 3,
    "providers._demo": 3,
    "providers._http": 3,
    "providers._httpx": 3,
    "providers._httpx_transport": 3,
    "providers._meter": 3,
    "providers._metered": 3,
    "providers._openai": 3,
    "providers._openai_compat": 3,
    "providers._openai_compat_messages": 3,
    "providers._openai_compat_parts": 3,
    "providers._openai_compat_plain": 3,
    "providers._openai_items": 3,
    "providers._openai_messages": 3,
    "providers._openai_compat_reply": 3,
    "providers._openai_plain": 3,
    "providers._openai_reply": 3,
    "providers._pool": 3,
    "providers._retry": 3,
    "providers._streams": 3,
    "providers._transport": 3,
    "providers._vendors": 3,
    "tools._bash": 3,
    "tools._bash_sandboxed": 3,
    "tools._edit": 3,
    "tools._executor": 3,
    "tools._invocation": 3,
    "tools._linkfree": 3,
    "tools._limits": 3,
    "tools._paths": 3,
    "tools._process": 3,
    "tools._read": 3,
    "tools._sandbox": 3,
    "tools._seccomp": 3,
    "tools._settings": 3,
    "tools._spawn": 3,
    "tools._write": 3,
    # 4: the turn
    "_checks": 4,
    "_compaction": 4,
    "_config": 4,
    "_guards": 4,
    "_controls": 4,
    "_emitter": 4,
    "_loop": 4,
    "_middleware": 4,
    "_options": 4,
    "_output": 4,
    "_shorten": 4,
    "_state": 4,
    "_story": 4,
    "_summary": 4,
    "_turns": 4,
    "providers._names": 4,
    # 5: the run, the agent
    "_agent": 5,
    "_agent_config": 5,
    "_agent_stream": 5,
    "_desk": 5,
    "_health": 5,
    "_open_agent": 5,
    "_fresh": 5,
    "_journal": 5,
    "_listening": 5,
    "_living": 5,
    "_rebind": 5,
    "_reload": 5,
    "_requests": 5,
    "_public": 5,
    "_run": 5,
    "_teams": 5,
    "_watch": 5,
    # 6: doors
    "_otel": 6,
    "_otel_names": 6,
    "fleet._errors": 6,
    "fleet._job": 6,
    "fleet._names": 6,
    "fleet._pubsub": 6,
    "fleet._queue": 6,
    "fleet._redis": 6,
    "fleet._request": 6,
    "fleet._scripts": 6,
    "fleet._store": 6,
    "fleet._worker": 6,
    "remote._client": 6,
    "remote._data": 6,
    "remote._dial": 6,
    "remote._errors": 6,
    "remote._house": 6,
    "remote._link": 6,
    "remote._peer": 6,
    "remote._remote_agent": 6,
    "remote._remote_subscription": 6,
    "remote._rights": 6,
    "remote._server": 6,
    "repl._ask": 6,
    "repl._attach": 6,
    "repl._cli": 6,
    "repl._commands": 6,
    "repl._compact": 6,
    "repl._complete": 6,
    "repl._config_file": 6,
    "repl._connect": 6,
    "repl._conversation": 6,
    "repl._export": 6,
    "repl._fleet": 6,
    "repl._flags": 6,
    "repl._front": 6,
    "repl._keys": 6,
    "repl._library": 6,
    "repl._live": 6,
    "repl._markdown": 6,
    "repl._places": 6,
    "repl._plain": 6,
    "repl._program": 6,
    "repl._reach": 6,
    "repl._screen": 6,
    "repl._setup": 6,
    "repl._show": 6,
    "repl._sitting": 6,
    "repl._terminal": 6,
    "repl._text": 6,
    "testing._answers": 6,
    "testing._asserts": 6,
    "testing._chaos": 6,
    "testing._fault_server": 6,
    "testing._faults": 6,
    "testing._script": 6,
    "__main__": 6,
}

FACADES = {
    "",
    "events",
    "fleet",
    "guards",
    "otel",
    "providers",
    "pubsub",
    "reload",
    "remote",
    "repl",
    "sessions",
    "supervision",
    "teams",
    "telemetry",
    "testing",
    "tools",
}  # "" is alloy_trio itself

PURE = re.compile(
    r"providers\._(anthropic|openai|vendors|decoder|sse|json|classify|origin|request|checks|http1|transcript)"
)  # wires: bytes in, events out

ONLY_IN = {
    "httpx": {"providers._httpx", "providers._httpx_transport"},
    "httptools": {"providers._http1"},
    "cattrs": {"_codec"},
    "coredis": {"fleet._redis"},
    "opentelemetry": {"_otel"},
    "watchfiles": {"_watch"},
    "json": set[str](),  # msgspec reads and writes ours
    "asyncio": set[str](),
    "anyio": set[str](),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


SOURCES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _at_run_time(other)
        else:
            yield child
            yield from _at_run_time(child)


def _imported(name: str) -> Iterator[str]:
    """Yield what a module imports at run time, by full name: `alloy_trio._errors.AlloyError`, `httpx`."""
    inside = ["alloy_trio", *name.split(".")] if name else ["alloy_trio"]
    package = inside if SOURCES[name].name == "__init__.py" else inside[:-1]
    for node in _at_run_time(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def _ours(name: str) -> frozenset[str]:
    """Return which of our modules a module imports."""
    found = set()
    for full in _imported(name):
        if full.split(".")[0] == "alloy_trio":
            target = full.removeprefix("alloy_trio").removeprefix(".")
            found.add(target if target in SOURCES else target.rpartition(".")[0])
    return frozenset(found)


def _private(name: str) -> bool:
    return name not in FACADES


def test_every_module_stands_in_the_table() -> None:
    """A new module gets its floor here, a removed one leaves."""
    assert {name for name in SOURCES if _private(name)} == FLOORS.keys()


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_a_module_imports_its_own_floor_or_a_lower_one(name: str) -> None:
    higher = {each: FLOORS[each] for each in _ours(name) - FACADES if FLOORS[each] > FLOORS[name]}
    assert not higher, f"{name} stands on floor {FLOORS[name]}"


def test_nothing_goes_round_in_a_circle() -> None:
    list(graphlib.TopologicalSorter({name: _ours(name) for name in SOURCES}).static_order())  # or raises CycleError


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_a_private_module_imports_no_facade(name: str) -> None:
    """What a façade exports is imported from where it is defined."""
    assert not _ours(name) & FACADES


@pytest.mark.parametrize("name", sorted(FACADES))
def test_a_facade_imports_private_modules_only(name: str) -> None:
    assert not _ours(name) & FACADES
    assert all(full.startswith(("alloy_trio.", "__future__.", "typing", "importlib")) for full in _imported(name))


def test_the_layout_comment_says_what_the_table_says() -> None:
    """The first file that a newcomer opens draws the same staircase; a folder stands for all that is in it."""
    layout = re.findall(r"^#   (\d)  (.*(?:\n#  {9,}.*)*)$", SOURCES[""].read_text("utf-8"), re.MULTILINE)
    for floor, text in layout:
        folders = tuple(f"{folder}." for folder in re.findall(r"(\w+)/(?!_)", text))
        names = {name for name, number in FLOORS.items() if number == int(floor)}
        assert set(re.findall(r"\b_\w+", text)) == {
            name.rpartition(".")[2] for name in names if not name.startswith(folders)
        }
    assert {int(floor) for floor, _ in layout} == set(FLOORS.values())


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    users = {name for name in SOURCES if any(full.split(".")[0] == library for full in _imported(name))}
    assert users <= ONLY_IN[library]


@pytest.mark.parametrize("name", sorted(filter(PURE.match, SOURCES)))
def test_a_wire_never_waits(name: str) -> None:
    """Request to bytes, bytes to events: no I/O, so that any cut of the bytes can be tested."""
    waiting = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
    lines = [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, waiting)]
    assert not lines
    assert "trio" not in set(_imported(name))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nobody_swallows_a_cancel(name: str) -> None:
    """No bare `except`, no `except BaseException`, no `except trio.Cancelled`, alone or in a tuple."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
            caught = {part.rpartition(".")[2] for part in re.findall(r"[\w.]+", ast.unparse(node.type))}
            assert not caught & {"BaseException", "BaseExceptionGroup", "Cancelled"}, f"in line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            assert "BaseException" not in ast.unparse(node), f"in line {node.lineno}"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_file_fits_its_size(name: str) -> None:
    assert SOURCES[name].read_text(encoding="utf-8").count("\n") <= 430


def _function_lengths() -> dict[str, int]:
    return {
        f"{name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }


def test_functions_are_short() -> None:
    """The median has 7 lines at most, nineteen of twenty have 40, none has more than 80."""
    lengths = _function_lengths()
    assert not {where: lines for where, lines in lengths.items() if lines > 80}
    assert statistics.median(lengths.values()) <= 7
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= 40
