"""
The README and the documentation say what is so.

Python blocks run, page by page, top to bottom, in one namespace a page; a `text` block right after one is what it prints. In
`console` blocks, lines that begin with `$ python` are run, and what follows is what they print. A block under the comment
`<!-- not run: WHY -->` is only compiled, and what it imports has to exist.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click
import pytest

from alloy_trio import Agent, AgentOptions, Budget, Compaction, Middleware, Price, RunOptions, RunState, telemetry
from alloy_trio.events import Retry
from alloy_trio.guards import AskAfterData
from alloy_trio.otel import OTelInstrument
from alloy_trio.providers import Anthropic, Demo, OpenAI, OpenAICompat
from alloy_trio.providers._vendors import VENDORS
from alloy_trio.repl._cli import _command
from alloy_trio.repl._connect import command as connect
from alloy_trio.repl._fleet import command as worker
from alloy_trio.supervision import ChildSpec, Supervisor
from alloy_trio.tools import bash, edit, read, write
from alloy_trio.tools._tool import _Options

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

_BLOCK = re.compile(
    r"(?P<skipped><!-- not run: .*? -->\n+)?^(?P<fence>```+)(?P<language>\w+)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@attrs.frozen
class Block:
    """A fenced block of a page, and the text block that follows it with nothing in between."""

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    output: str | None


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    for match, after in itertools.zip_longest(found, found[1:]):
        output = None
        if after and after["language"] == "text" and not text[match.end() : after.start()].strip():
            output = after["code"]
        line = text.count("\n", 0, match.start("code"))
        yield Block(page, line, match["language"], match["code"], not match["skipped"], output)


def _shown(block: Block, command: str) -> str:
    return f"{block.page.name}, line {block.line + 1}: {command}"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

each_page = pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.language in {"python", "console"} for block in _blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the few files that the docs talk about, and make it the current one; no key is known there, and no provider chosen."""
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a page may change it
    for variable in list(os.environ):
        if variable.endswith("_API_KEY") or variable == "ALLOY_PROVIDER":
            monkeypatch.delenv(variable)
    return tmp_path


@each_page
def test_the_python_of_a_page_runs(page: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = {"__name__": "docs"}
    for block in _blocks(page):
        if block.language != "python":
            continue
        tree = ast.increment_lineno(ast.parse(block.code, str(page)), block.line)
        if not block.runs:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, str(page), "exec", dont_inherit=True), namespace)
        printed = capsys.readouterr().out
        if block.output is not None:
            assert printed == block.output, _shown(block, "prints something else")


@each_page
def test_the_commands_of_a_page_run(page: Path, elsewhere: Path) -> None:
    for block in _blocks(page):
        if block.language != "console" or not block.runs:
            continue
        steps = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]
        assert steps, _shown(block, "no line begins with `$ `")
        for step in steps:
            command, _, expected = step.partition("\n")
            name, *arguments = shlex.split(command)
            assert name == "python", _shown(block, command)
            done = _python(*arguments)
            assert (done.stdout, done.returncode) == (expected, 0), _shown(block, command) + done.stderr


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ci_runs_the_test_command_of_the_readme() -> None:
    """To the letter."""
    commands = {
        command
        for block in _blocks(ROOT / "README.md")
        if block.language == "sh"
        for command in block.code.splitlines()
        if command.endswith("nox -s tests")
    }
    assert len(commands) == 1
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert commands <= {line.strip() for line in script.splitlines()}


def test_the_first_command_of_the_readme_shows_what_it_says(elsewhere: Path) -> None:
    """Both outputs, as on a terminal; numbers aside."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    arguments, expected = re.findall(
        r"/bin/python -m (alloy_trio [^\n]*)\n```\n.*?```text\n(.*?)```", readme, re.DOTALL
    )[0]
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    assert _without_numbers(done.stdout) == _without_numbers(expected)


def _without_numbers(text: str) -> str:
    return re.sub(r"[\d.,]*\d", "0", text)


def test_the_table_of_providers_is_complete() -> None:
    """Every name that a `"name:model"` string can have, with the variable that its key is in."""
    page = (ROOT / "docs" / "howto" / "providers.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| `([\w-]+)` +\|.*?\| +(?:`(\w+_API_KEY)`)? *\|$", page, re.MULTILINE))
    own = {"demo": None, "anthropic": Anthropic.env_key, "openai": OpenAI.env_key}
    known = own | {name: vendor.env_key for name, vendor in VENDORS.items()}
    assert {name: key or None for name, key in written.items()} == known


def _fields(*kinds: type[attrs.AttrsInstance]) -> list[str]:
    return [field.name for kind in kinds for field in attrs.fields(kind) if field.init]


def _public(kind: type) -> list[str]:
    """Return the names that a class itself defines."""
    return [name for name in vars(kind) if not name.startswith("_")]


OPTIONS = {
    "providers": [
        *_fields(Anthropic, OpenAI, OpenAICompat, Demo),
        *("model_metadata_overrides", "limit", "suffix_patterns", "catalog", "provider_state", "native_output"),
    ],
    "budgets": [
        *_public(Budget),
        *_fields(Price),
        *("limit", "spent", "reserved", "max_budget_cents", "cost_cents", "overrun_cents", "estimated"),
        *("budget_exceeded", "UnknownPrice", "max_output_tokens"),
    ],
    "retries": ["max_retries", "retry_backoff", "fallback_providers", "timeout", *_fields(Retry)],
    "compaction": [*_fields(Compaction), "context_tokens", "compaction", "on_compaction"],
    "middleware": [*_public(Middleware), *_public(RunState)],
    "guards": [*_fields(AskAfterData), "trusted", "has_outside_data"],
    "structured": ["output_type", "until_tool", "output", "native_output", "final_answer", "max_turns"],
    "telemetry": [*telemetry.__all__, *(name for name in inspect.signature(OTelInstrument).parameters)],
    "tools": inspect.get_annotations(_Options),
    "commandline": [
        name
        for command in (_command, connect, worker)
        for each in command.params
        for name in each.opts
        if isinstance(each, click.Option)
    ],
    "../reference/tools": [name for each in (read, write, edit, bash) for name in each.input_schema["properties"]],
    "agents": [
        *(set(AgentOptions.__annotations__) - set(RunOptions.__annotations__)),
        *(
            set(_public(Agent))
            - {"steer", "cancel_tool", "pending_approvals", "approve", "deny"}
            - {"name", "session_id"}
        ),
        *("unsaved", "abandoned", "Pending", "AgentBusy", "QueueFull", "AgentClosed", "UnknownRequest"),
    ],
    "steering": [
        "steer",
        "interrupt",
        "cancel_tool",
        "pending_approvals",
        "approve",
        "deny",
        "approval_timeout",
        "Steered",
    ],
    "supervision": [
        *(set(_fields(ChildSpec)) - {"args", "on_exit", "on_gone"}),
        *_public(Supervisor),
        *("strategy", "max_restarts", "within", "registry", "on_event"),
    ],
    "cancellation": ["timeout", "tool_timeout", "stall_timeout", "cancel_grace"],
}


@pytest.mark.parametrize("page", OPTIONS)
def test_every_option_is_explained(page: str) -> None:
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8")
    words = set(re.findall(r"(?<![\w-])-*\w[\w-]*", text))
    assert not set(OPTIONS[page]) - words - {"--help", "-h", "--version"}


def test_every_public_name_is_in_the_reference() -> None:
    for name in (
        "alloy_trio",
        "events",
        "providers",
        "tools",
        "telemetry",
        "otel",
        "pubsub",
        "reload",
        "teams",
        "guards",
    ):
        module = importlib.import_module("alloy_trio" if name == "alloy_trio" else f"alloy_trio.{name}")
        pages = [ROOT / "docs" / "reference" / f"{page}.md" for page in (name, "errors")]
        text = "".join(page.read_text(encoding="utf-8") for page in pages)
        assert not set(module.__all__) - set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)", text, re.MULTILINE)), name


def test_every_option_of_a_run_is_in_the_reference() -> None:
    """There it is the docstring."""
    documented = set(re.findall(r"^ +(\w+): ", inspect.getdoc(RunOptions) or "", re.MULTILINE))
    assert set(RunOptions.__annotations__) <= documented


def test_every_extra_is_listed_with_what_it_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` .*\| ([^|]+?) +\|$", text, re.MULTILINE))
    assert rows == {
        extra: ", ".join(re.split(r"[ >=]", requirement)[0] for requirement in requirements)
        for extra, requirements in project["optional-dependencies"].items()
    }


def test_every_page_is_reached_from_the_index() -> None:
    """A page that no table of contents names is not found by readers, nor by the test of the build."""
    listed = {
        (page.parent / f"{entry}.md").resolve()
        for page in PAGES
        for toc in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        for entry in re.findall(r"^(?!:)(\S+)$", toc, re.MULTILINE)
    }
    assert listed == set(PAGES) - {ROOT / "README.md", ROOT / "docs" / "index.md"}


def test_links_between_files_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "newsfragments" / "README.md"]:
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
