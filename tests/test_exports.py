"""What is public: each name in one place, documented, and where the design puts it."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

import alloy_trio
from alloy_trio.tools import Tool

NAMESPACES = {
    name: importlib.import_module(name)
    for name in (
        "alloy_trio",
        "alloy_trio.events",
        "alloy_trio.fleet",
        "alloy_trio.guards",
        "alloy_trio.otel",
        "alloy_trio.providers",
        "alloy_trio.pubsub",
        "alloy_trio.reload",
        "alloy_trio.remote",
        "alloy_trio.sessions",
        "alloy_trio.supervision",
        "alloy_trio.teams",
        "alloy_trio.telemetry",
        "alloy_trio.testing",
        "alloy_trio.tools",
    )
}

# What the design promises, namespace by namespace; what does not exist yet comes with a later release.
PROMISED = {
    "alloy_trio": """
        run stream run_sync open_agent Agent AgentConfig Pending EventStream Result ToolCall Session Message Text Thinking
        ToolUse ToolResult ServerToolUse ServerToolResult Image Audio Video Document Opaque Usage Budget Price tool
        ToolContext ModelRetry Middleware BlockCall EditCall Compaction
        AlloyError ProviderError AuthenticationError RateLimited Overloaded BadRequest ContextTooLong ConnectionFailed
        ProviderTimeout WireError ToolError Halted RunTimeout RequestCancelled UnknownRequest AgentBusy QueueFull AgentIdle
        AgentClosed AgentCrashed StoreError UnknownPrice InvalidOption
    """,
    "alloy_trio.guards": "AskAfterData has_outside_data",
    "alloy_trio.remote": "serve_agents connect Remote RemoteAgent RemotePending Permissions ConnectionLost Refused",
    "alloy_trio.events": "Envelope Event TextDelta ThinkingDelta ToolStart ToolEnd",
    "alloy_trio.providers": "Provider Request Response StopReason Anthropic OpenAI OpenAICompat Demo Gemini XAI Codex",
    "alloy_trio.fleet": """
        open_queue RedisQueue QueuedRequest QueueStatistics Worker WorkerStatistics RedisStore SessionLease RedisPubSub
        LeaseLost RedisUnavailable RequestPoisoned WorkerError
    """,
    "alloy_trio.pubsub": "PubSub Subscription Lost Lagged",
    "alloy_trio.sessions": "SessionStore Record MemoryStore JSONLStore SQLiteStore",
    "alloy_trio.supervision": """
        open_supervisor Supervisor ChildSpec Registry ExitReason RestartLimitExceeded InvalidChildSpec NameTaken
    """,
    "alloy_trio.tools": "Tool read write edit bash",
    "alloy_trio.telemetry": "Instrument add_instrument remove_instrument",
    "alloy_trio.otel": "OTelInstrument",
    "alloy_trio.teams": "delegate broadcast handoff",
    "alloy_trio.reload": "ReloadFailed Reloadable Reloaded reload_modules watch",
    "alloy_trio.testing": """
        ScriptedProvider text tool_call error delay run_with_responses assert_tool_called refute_tool_called last_text
        tool_calls assert_no_orphans cancel_at_checkpoint cancel_at_every_checkpoint Fault FaultServer
    """,
}

# What this release has to have.
PRESENT = {
    "alloy_trio": """
        run stream run_sync open_agent Agent AgentConfig Pending EventStream Result ToolCall Session Message Text Thinking ToolUse ToolResult ServerToolUse
        ServerToolResult Image Audio Video Document Opaque Usage Budget Price tool ToolContext ModelRetry Middleware BlockCall
        EditCall Compaction RunState
        AlloyError ProviderError AuthenticationError RateLimited Overloaded BadRequest ContextTooLong ConnectionFailed
        ProviderTimeout WireError ToolError Halted RunTimeout RequestCancelled UnknownRequest AgentBusy QueueFull AgentIdle
        AgentClosed AgentCrashed StoreError UnknownPrice InvalidOption
    """,
    "alloy_trio.telemetry": PROMISED["alloy_trio.telemetry"],
    "alloy_trio.otel": PROMISED["alloy_trio.otel"],
    "alloy_trio.teams": PROMISED["alloy_trio.teams"],
    "alloy_trio.reload": PROMISED["alloy_trio.reload"],
    "alloy_trio.guards": PROMISED["alloy_trio.guards"],
    "alloy_trio.remote": PROMISED["alloy_trio.remote"],
    "alloy_trio.events": PROMISED["alloy_trio.events"],
    "alloy_trio.fleet": PROMISED["alloy_trio.fleet"],
    "alloy_trio.providers": "Provider Request Response StopReason Anthropic OpenAI OpenAICompat Demo",
    "alloy_trio.pubsub": PROMISED["alloy_trio.pubsub"],
    "alloy_trio.sessions": PROMISED["alloy_trio.sessions"],
    "alloy_trio.supervision": PROMISED["alloy_trio.supervision"],
    "alloy_trio.tools": PROMISED["alloy_trio.tools"],
    "alloy_trio.testing": PROMISED["alloy_trio.testing"],
}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


each_namespace = pytest.mark.parametrize("name", sorted(NAMESPACES))
EXPORTS = [(home, name, getattr(module, name)) for home, module in NAMESPACES.items() for name in module.__all__]
CLASSES = [thing for _, _, thing in EXPORTS if inspect.isclass(thing)]


@each_namespace
def test_all_is_sorted_and_is_all(name: str) -> None:
    """`__all__` names what the namespace has without an underscore, and nothing else."""
    module = NAMESPACES[name]
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and not isinstance(value, ModuleType) and key != "annotations"
    }
    assert list(module.__all__) == sorted(public)


@each_namespace
def test_a_namespace_stays_small(name: str) -> None:
    """That of the events has one name for each kind in its closed union."""
    most = {"alloy_trio": 60, "alloy_trio.events": 18}
    assert len(NAMESPACES[name].__all__) <= most.get(name, 15)


def test_each_name_has_one_home() -> None:
    """Neither the name nor the thing stands in two namespaces."""
    names = [name for _, name, _ in EXPORTS]
    things = [id(thing) for _, _, thing in EXPORTS]
    assert sorted(names) == sorted(set(names))
    assert len(things) == len(set(things))


def test_there_is_no_other_public_module() -> None:
    """Whatever else can be imported has an underscore on its path."""
    root = Path(alloy_trio.__file__).parent
    found = {
        ".".join(("alloy_trio", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in root.rglob("*.py")
    }
    programs = {"alloy_trio.repl"}  # the command line: it exports nothing
    assert {name for name in found if "._" not in name} == NAMESPACES.keys() | programs


@pytest.mark.parametrize(("home", "name", "thing"), EXPORTS, ids=[f"{home}.{name}" for home, name, _ in EXPORTS])
def test_a_traceback_names_the_public_home(home: str, name: str, thing: Any) -> None:
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert (thing.__module__, thing.__qualname__) == (home, name)


@each_namespace
def test_the_design_s_names_are_where_it_puts_them(name: str) -> None:
    for home, names in PROMISED.items():
        misplaced = set(names.split()) & set(NAMESPACES[name].__all__) if home != name else set()
        assert not misplaced, f"they belong to {home}"
    assert not set(PRESENT[name].split()) - set(NAMESPACES[name].__all__)


def _alias_doc(name: str) -> str | None:
    """Return the string that stands under the definition of a type alias or constant, in whichever module defines it."""
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("alloy_trio.") or not getattr(module, "__file__", None):
            continue
        body = ast.parse(inspect.getsource(module)).body
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and isinstance(after, ast.Expr):
                return str(ast.literal_eval(after.value))
    return None


@pytest.mark.parametrize(("home", "name", "thing"), EXPORTS, ids=[f"{home}.{name}" for home, name, _ in EXPORTS])
def test_a_public_name_is_documented(home: str, name: str, thing: Any) -> None:
    if isinstance(thing, Tool):
        assert thing.description
    elif inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__doc__
    else:
        assert _alias_doc(name), f"{home}.{name} has no string under its definition"


@pytest.mark.parametrize("kind", CLASSES, ids=_full_name)
def test_methods_and_properties_are_documented(kind: type) -> None:
    """Those of the class itself; what it inherits is documented where it comes from."""
    bare = [
        name
        for name, member in vars(kind).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod))
        and not inspect.getdoc(member)
    ]
    assert not bare


@pytest.mark.parametrize("kind", [*filter(attrs.has, CLASSES)], ids=_full_name)
def test_attributes_are_documented(kind: type) -> None:
    """Every public attribute of an attrs class is named in the docstring of the class, or of one that it inherits from."""
    words = set(re.findall(r"\w+", " ".join(base.__doc__ or "" for base in kind.__mro__ if base is not object)))
    fields = {field.name for field in attrs.fields(kind) if not field.name.startswith("_")}
    assert not fields - words


def test_nothing_is_loaded_before_it_is_used() -> None:
    """So that the command line is there at once."""
    heavy = "{'trio', 'httpx', 'cattrs', 'rich', 'alloy_trio._run'} & sys.modules.keys()"
    for module in ("alloy_trio", "alloy_trio.repl._cli"):
        code = f"import sys, {module}; print({heavy} or '', {module}.__name__)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == [module]


def test_a_provider_is_loaded_by_those_who_use_it() -> None:
    heavy = "({'httpx', 'sqlite3', 'opentelemetry', 'httptools', 'rich', 'alloy_trio.providers._anthropic'} - already)"
    code = f"""
        import sys
        already = set(sys.modules)  # a tool that measures coverage may have a database
        import alloy_trio
        alloy_trio.run
        from alloy_trio.providers import Demo
        print({heavy} & sys.modules.keys())
        """
    assert subprocess.check_output([sys.executable, "-c", textwrap.dedent(code)], text=True).strip() == "set()"


def test_coredis_is_loaded_by_those_who_go_to_redis() -> None:
    """It takes half a second, and need not be installed by the rest of us."""
    code = "import sys; import alloy_trio.fleet, alloy_trio.repl._fleet; print('coredis' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_name_that_does_not_exist_is_said() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = alloy_trio.nonsense  # type: ignore[attr-defined]
    assert not hasattr(alloy_trio, "__nonsense__")
    assert set(alloy_trio.__all__) <= set(dir(alloy_trio))
