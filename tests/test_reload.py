"""Hot reload: new source is taken whole or not at all, and what runs on the old one keeps it."""

from __future__ import annotations

import importlib
import linecache
import logging
import os
import pickle
import py_compile
import sys
import threading
import traceback
import zipfile
from contextlib import contextmanager
from functools import partial
from textwrap import dedent
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import AlloyError, InvalidOption, Text, ToolResult, open_agent, tool
from alloy_trio.reload import Reloaded, ReloadFailed, reload_modules, watch
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, run_with_responses, text, tool_call
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
    from pathlib import Path


class Project:
    """A folder from which modules are imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, file: str, source: str, *, tick: bool = True) -> None:
        """Write a file, with a time of its own; without `tick` with the time it had, as two edits in one tick have."""
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        time = path.stat().st_mtime if path.exists() else 1e9
        path.write_text(dedent(source), encoding="utf-8")
        os.utime(path, (time + tick, time + tick))

    def module(self, name: str, source: str) -> Any:
        self.write(f"{name.replace('.', '/')}.py", source)
        return self.load(name)

    def load(self, name: str) -> Any:
        importlib.invalidate_caches()
        return importlib.import_module(name)


@contextmanager
def project_in(folder: Path) -> Iterator[Project]:
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield Project(folder)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with project_in(tmp_path) as project:
        yield project


class FakeAgent:
    """Has tools for its next run."""

    def __init__(self, *tools: Tool) -> None:
        self.tools: Mapping[str, Tool] = {each.name: each for each in tools}
        self.reloads = 0

    def reload(self, *, tools: Iterable[Tool] | None = None) -> None:
        self.reloads += 1
        tools = list(tools or ())
        if len({each.name for each in tools}) < len(tools):
            raise InvalidOption("two tools of one name")
        self.tools = {each.name: each for each in tools}


def tools_source(answer: str, *, name: str = "search") -> str:
    return f"""
        from alloy_trio import tool

        @tool(timeout=5)
        async def {name}(word: str) -> str:
            "Search."
            return word + {answer!r}
        """


async def test_the_next_run_has_the_new_code_and_a_call_in_flight_the_old(project: Project) -> None:
    source = """
        import trio
        from alloy_trio import tool

        VERSION = {0}
        reached, go_on = trio.Event(), trio.Event()

        @tool
        async def search() -> int:
            "Search."
            reached.set()
            await go_on.wait()
            return VERSION
        """
    old = project.module("my_tools", source.format(1))
    agent = FakeAgent(old.search)
    answers: list[object] = []

    async def run() -> None:
        result = await run_with_responses("go", [tool_call("search"), text("Done.")], tools=list(agent.tools.values()))
        [block] = result.messages[2].content
        assert isinstance(block, ToolResult)
        answers.append(block.content)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await old.reached.wait()
        project.write("my_tools.py", source.format(2))
        reloaded = reload_modules("my_tools", agents=[agent])
        assert sys.modules["my_tools"] is reloaded.modules["my_tools"] is not old
        old.go_on.set()
    sys.modules["my_tools"].go_on.set()
    await run()
    assert answers == [(Text("1"),), (Text("2"),)]
    assert (old.VERSION, reloaded.rebound, dict(reloaded.missing)) == (1, ("search",), {})


def test_an_edit_within_one_tick_of_the_clock_is_taken(project: Project) -> None:
    """A compiled file in the cache has the time and the size of the new source: it says nothing."""
    project.module("my_tools", "X = 1")
    project.write("my_tools.py", "X = 2", tick=False)
    assert vars(reload_modules("my_tools").modules["my_tools"])["X"] == 2


def test_a_module_object_will_do_as_well_as_its_name(project: Project) -> None:
    old = project.module("my_tools", "X = 1")
    assert list(reload_modules(old).modules) == ["my_tools"]


def test_the_fresh_module_is_found_under_its_name_while_it_executes(project: Project) -> None:
    source = """
        from __future__ import annotations
        import pickle, sys, typing
        from dataclasses import KW_ONLY, dataclass
        import attrs

        ME = sys.modules[__name__]

        @dataclass
        class Point:
            x: int
            _: KW_ONLY
            y: typing.ClassVar[Point | None] = None

        @attrs.define
        class Pair:
            point: Point

        HINTS = typing.get_type_hints(Pair)
        COPY = pickle.loads(pickle.dumps(Point(1)))
        """
    old = project.module("my_tools", source)
    fresh: Any = reload_modules("my_tools").modules["my_tools"]
    assert fresh.ME is fresh
    assert {"point": fresh.Point} == fresh.HINTS
    assert type(fresh.COPY) is fresh.Point is not old.Point
    assert pickle.loads(pickle.dumps(fresh.Point(2))) == fresh.Point(2)


def test_a_fresh_module_says_of_itself_what_the_old_one_said(project: Project) -> None:
    project.write("kit/data.txt", "resource")
    source = """
        import importlib.resources, pkgutil
        TEXT = importlib.resources.files(__name__).joinpath("data.txt").read_text()
        BYTES = pkgutil.get_data(__name__, "data.txt")
        """
    project.write("kit/__init__.py", source)
    old = project.load("kit")
    for _ in range(2):
        fresh: Any = reload_modules("kit").modules["kit"]
        for name in ("__name__", "__file__", "__package__", "__path__", "__loader__", "__cached__", "TEXT", "BYTES"):
            assert getattr(fresh, name) == getattr(old, name)
        assert fresh.__spec__ == old.__spec__
        assert fresh.__spec__ is not old.__spec__
        assert fresh.__spec__.loader is fresh.__loader__
        assert fresh.__path__ is not old.__path__


def test_a_file_written_just_now_is_found(project: Project) -> None:
    """Also if that was within the same tick as the import system's last look at the folder."""
    project.write("my_tools.py", "")
    os.utime(project.folder, (1e9, 1e9))
    project.load("my_tools")
    os.utime(project.folder, (1e9, 1e9))
    project.write("helper.py", "X = 2")
    project.write("my_tools.py", "from helper import X")
    os.utime(project.folder, (1e9, 1e9))
    assert vars(reload_modules("my_tools").modules["my_tools"])["X"] == 2


# Packages


@pytest.fixture
def kit(project: Project) -> ModuleType:
    project.write("kit/__init__.py", "VERSION = 1\nfrom .search import find\nfrom .other import OTHER")
    project.write("kit/search.py", "from . import VERSION\ndef find(): return VERSION")
    project.write("kit/other.py", "OTHER = 1")
    loaded: ModuleType = project.load("kit")
    return loaded


def test_a_submodule_is_swapped_in_its_package_too(project: Project, kit: Any) -> None:
    project.write("kit/search.py", "from .other import OTHER\ndef find(): return -OTHER")
    fresh = reload_modules("kit.search").modules["kit.search"]
    assert sys.modules["kit.search"] is kit.search is fresh
    assert kit.search.find() == -1
    assert kit.find() == 1


@pytest.mark.parametrize("names", [("kit", "kit.search"), ("kit.search", "kit")])
def test_a_package_and_its_module_get_each_other_s_new_version(
    project: Project, kit: Any, names: tuple[str, ...]
) -> None:
    """In any order, as an import would: the package begins, its module needs a name of it, the package goes on."""
    old_search, old_other = kit.search, kit.other
    project.write("kit/__init__.py", "VERSION = 2\nfrom .search import find")
    fresh: Any = reload_modules(*names).modules
    assert fresh["kit"].find() == fresh["kit.search"].find() == 2
    assert fresh["kit"].search is fresh["kit.search"]
    assert fresh["kit"].other is old_other
    assert (kit.search, kit.VERSION, kit.find()) == (old_search, 1, 1)


def test_modules_in_a_circle_get_each_other_s_new_version(project: Project) -> None:
    project.write("one.py", "import two\ndef one(): return two.X")
    project.write("two.py", "import one\nX = 1\ndef two(): return one.one()")
    old = project.load("one")
    project.write("two.py", "import one\nX = 2\ndef two(): return one.one()")
    fresh: Any = reload_modules("two", "one").modules
    assert fresh["two"].two() == fresh["one"].one() == 2
    assert old.one() == 1


def test_a_function_that_hides_its_module_is_not_overwritten(project: Project) -> None:
    """After `from .find import find` the package's name is the function's."""
    project.write("kit/__init__.py", "from .find import find")
    project.write("kit/find.py", "def find(): return 1")
    kit = project.load("kit")
    function = kit.find
    reload_modules("kit.find")
    assert kit.find is function


def test_a_name_that_the_package_had_given_up_stays_away(project: Project, kit: Any) -> None:
    del kit.search
    reload_modules("kit.search")
    assert not hasattr(kit, "search")


def test_a_module_from_a_zip_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = project.folder / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped_tools.py", "X = 1")
    monkeypatch.syspath_prepend(str(archive))
    old = project.load("zipped_tools")
    fresh: Any = reload_modules("zipped_tools").modules["zipped_tools"]
    assert fresh.X == old.X == 1
    assert fresh is not old
    with pytest.raises(InvalidOption, match=r"zipped_tools.*no file"):
        trio.run(watch, "zipped_tools")


def test_a_loader_with_a_way_of_its_own_to_compile_keeps_it(project: Project) -> None:
    """Loaders that rewrite source, to check types at run time for instance, do so to the new source as well."""

    class Doubling(importlib.machinery.SourceFileLoader):
        def source_to_code(self, data: Any, path: Any = "", **options: Any) -> Any:  # type: ignore[override]
            return super().source_to_code(bytes(data).replace(b"1", b"11"), path)

    project.write("my_tools.py", "X = 1")
    spec = importlib.util.spec_from_loader("my_tools", Doubling("my_tools", str(project.folder / "my_tools.py")))
    assert spec
    assert spec.loader
    sys.modules["my_tools"] = old = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(old)
    project.write("my_tools.py", "X = 1 + 1")
    assert vars(reload_modules("my_tools").modules["my_tools"])["X"] == 22


# Tools


def reloaded_tools(project: Project, source: str, *tools: Tool) -> list[Tool]:
    project.write("my_tools.py", source)
    return reload_modules("my_tools").rebind(tools)


def test_tools_of_other_modules_stay_the_same_objects(project: Project) -> None:
    my_tools = project.module("my_tools", tools_source("1"))

    @tool
    async def mine() -> None:
        """Do nothing."""

    assert reloaded_tools(project, tools_source("2"), mine, my_tools.search) == [mine, sys.modules["my_tools"].search]


def test_the_new_source_decides_about_options_but_what_evolve_changed_stays(project: Project) -> None:
    my_tools = project.module("my_tools", tools_source("1"))
    given = my_tools.search.evolve(name="look_up").evolve(max_result_chars=10)
    for answer in ("2", "3"):
        source = tools_source(answer).replace("timeout=5", "timeout=7").replace("word", "words")
        (given,) = reloaded_tools(project, source, given)
        assert (given.name, given.timeout, given.max_result_chars) == ("look_up", 7, 10)
        assert list(given.input_schema["properties"]) == ["words"]


def test_a_tool_made_elsewhere_of_a_function_of_the_module(project: Project) -> None:
    """Known by the function's qualified name; the options are those it was given where it was made."""
    source = """
        def search(n: int): return n + {0}
        class Kit:
            @staticmethod
            def static(n: int): return n + {0}
            @classmethod
            def of_class(cls, n: int): return n + {0}
        """
    my_tools = project.module("my_tools", source.format(1))
    functions = (my_tools.search, my_tools.Kit.static, my_tools.Kit.of_class)
    given = [tool(function, name=f"t{n}", timeout=3) for n, function in enumerate(functions)]
    new = reloaded_tools(project, source.format(2), *given)
    assert [each(n=1) for each in given] == [2] * 3
    assert [(each.name, each.timeout, each(n=1)) for each in new] == [(f"t{n}", 3, 3) for n in range(3)]


def test_a_tool_made_elsewhere_keeps_its_options_when_the_function_becomes_a_tool(project: Project) -> None:
    my_tools = project.module("my_tools", "def search(word: str): return 1")
    (new,) = reloaded_tools(project, tools_source("2"), tool(my_tools.search, name="mine"))
    assert (new.name, new.timeout) == ("mine", 5)


def test_a_tool_with_a_schema_of_its_own(project: Project) -> None:
    source = """
        from alloy_trio.tools import Tool
        def run(arguments, context): return {0}
        raw = Tool(name="raw", description="{0}", input_schema={{"type": "object"}}, execute=run)
        by_lambda = Tool(name="by_lambda", input_schema={{"type": "object"}}, execute=lambda *_: {0})
        """
    my_tools = project.module("my_tools", source.format(1))
    mine = Tool(name="mine", input_schema={"type": "object"}, execute=my_tools.run)
    changed = my_tools.raw.evolve(input_schema={"type": "object", "title": "changed"})
    new = reloaded_tools(project, source.format(2), my_tools.raw, my_tools.by_lambda, mine, changed)
    assert [each.execute({}, None) for each in new] == [2] * 4
    assert [each.description for each in new] == ["2", "", "", "2"]
    assert [each.input_schema.get("title") for each in new] == [None, None, None, "changed"]


def test_a_tool_whose_code_is_the_user_s_own_stays(project: Project) -> None:
    my_tools = project.module("my_tools", tools_source("1"))
    given = my_tools.search.evolve(execute=lambda arguments, context: "mine")
    assert reloaded_tools(project, tools_source("2"), given) == [given]


def test_a_tool_with_a_schema_of_its_own_whose_function_becomes_a_tool_stays_and_is_named(project: Project) -> None:
    """The new one is called in another way."""
    my_tools = project.module("my_tools", "def search(arguments, context): return 1")
    agent = FakeAgent(Tool(name="raw", input_schema={"type": "object"}, execute=my_tools.search))
    project.write("my_tools.py", tools_source("2"))
    assert list(reload_modules("my_tools", agents=[agent]).missing) == ["raw"]
    assert agent.reloads == 0


def test_a_tool_that_a_module_only_imports_is_not_its_own(project: Project) -> None:
    project.module("my_tools", tools_source("1"))
    user = project.module("user", "from my_tools import search")
    changed = user.search.evolve(name="changed")
    agent = FakeAgent(user.search, changed)
    reloaded = reload_modules("user", agents=[agent])
    assert (agent.reloads, reloaded.rebound, dict(reloaded.missing)) == (0, (), {})
    assert reloaded.rebind([user.search, changed]) == [user.search, changed]


def test_a_tool_of_a_factory_is_found_if_the_module_has_a_name_for_it(project: Project) -> None:
    source = """
        from alloy_trio import tool
        def make(name):
            def call(): return {0}
            return tool(call, name=name)
        top = make("top")
        """
    my_tools = project.module("my_tools", source.format(1))
    agent = FakeAgent(my_tools.top, my_tools.make("at_run_time"))
    project.write("my_tools.py", source.format(2))
    reloaded = reload_modules("my_tools", agents=[agent])
    assert [each() for each in agent.tools.values()] == [2, 1]
    assert reloaded.rebound == ("top",)
    assert "make.<locals>.call was made at run time" in reloaded.missing["at_run_time"]


@pytest.mark.parametrize("made", ["Kit().method", "partial(function, 1)", "Kit()"])
def test_a_tool_of_an_object_that_exists_stays_and_is_named(project: Project, made: str) -> None:
    source = """
        from functools import partial
        class Kit:
            def method(self): return 1
            def __call__(self): return 1
        def function(n: int): return n
        """
    my_tools = project.module("my_tools", source)
    agent = FakeAgent(tool(eval(made, vars(my_tools)), name="made"))
    reloaded = reload_modules("my_tools", agents=[agent])
    assert agent.reloads == 0
    assert (reloaded.rebound, list(reloaded.missing)) == ((), ["made"])


def test_a_tool_that_is_gone_stays_the_old_one_until_it_is_back(project: Project) -> None:
    """And one that is new is given to nobody."""
    my_tools = project.module("my_tools", tools_source("1"))
    agent = FakeAgent(my_tools.search)
    project.write("my_tools.py", tools_source("2", name="other"))
    reloaded = reload_modules("my_tools", agents=[agent])
    assert dict(agent.tools) == {"search": my_tools.search}
    assert dict(reloaded.missing) == {"search": "my_tools no longer has search"}
    assert (agent.reloads, reloaded.rebound) == (0, ())

    project.write("my_tools.py", tools_source("3"))
    reloaded = reload_modules("my_tools", agents=[agent])
    assert dict(agent.tools) == {"search": sys.modules["my_tools"].search}
    assert (reloaded.rebound, dict(reloaded.missing)) == (("search",), {})


def test_an_agent_whose_tools_are_from_elsewhere_is_left_alone(project: Project) -> None:
    my_tools = project.module("my_tools", tools_source("1"))
    other = project.module("other", tools_source("1"))
    agents = [FakeAgent(), FakeAgent(other.search), FakeAgent(other.search.evolve(name="other"), my_tools.search)]
    reload_modules("my_tools", agents=iter(agents))
    assert [agent.reloads for agent in agents] == [0, 0, 1]


# Failures


def everything(*agents: FakeAgent) -> Any:
    """Return what can be observed of the modules, their attributes, the cached lines, and agents."""
    modules = dict(sys.modules)
    ours = {
        name: dict(vars(modules[name])) for name in ("kit", "kit.search", "kit.other", "my_tools") if name in modules
    }
    path = (list(sys.meta_path), list(sys.path))
    return modules, ours, path, dict(linecache.cache), [dict(agent.tools) for agent in agents]


BROKEN: dict[str, tuple[str, type[BaseException] | tuple[type[BaseException], ...]]] = {
    "syntax": ("def", SyntaxError),
    "null byte": ("X = '\0'", (ValueError, SyntaxError)),
    "raises": ("X = 1\nraise RuntimeError('at import')", RuntimeError),
    "exits": ("import sys\nsys.exit('no key')", SystemExit),
    "an import": ("import no_such_module_at_all", ImportError),
    "a relative import": ("from . import no_such_name", ImportError),
    "attrs": ("import attrs\n@attrs.define\nclass New:\n    x: int\nraise RuntimeError", RuntimeError),
    "a new sibling": ("from . import new\nraise RuntimeError", RuntimeError),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("names", [("kit.search",), ("kit.other", "kit.search"), ("kit", "kit.search", "kit.other")])
def test_a_file_that_fails_changes_nothing(project: Project, kit: Any, broken: str, names: tuple[str, ...]) -> None:
    source, cause = BROKEN[broken]
    before = everything()
    project.write("kit/search.py", source)
    project.write("kit/new.py", "import sys\nX = sys.modules['kit.search']")
    with pytest.raises(ReloadFailed, match=r"nothing is reloaded, for kit\.search fails; mend it") as caught:
        reload_modules(*names)
    assert isinstance(caught.value, AlloyError)
    assert caught.value.module == "kit.search"
    assert isinstance(caught.value.__cause__, cause)
    assert everything() == before

    project.write("kit/search.py", "find = 2")
    project.write("kit/new.py", "")
    assert vars(reload_modules(*names).modules["kit.search"])["find"] == 2


def test_a_module_beside_it_that_saw_the_failed_source_is_forgotten(project: Project) -> None:
    project.module("my_tools", "X = 1")
    project.write("helper.py", "from my_tools import X")
    project.write("my_tools.py", "X = 2\nimport helper\nraise RuntimeError")
    with pytest.raises(ReloadFailed):
        reload_modules("my_tools")
    assert "helper" not in sys.modules


def test_a_module_of_the_same_package_that_it_was_the_first_to_import_is_forgotten(project: Project, kit: Any) -> None:
    before = everything()
    project.write("kit/deep/__init__.py", "from . import new")
    project.write("kit/deep/new.py", "")
    project.write("kit/search.py", "import kit.deep\nraise RuntimeError")
    with pytest.raises(ReloadFailed):
        reload_modules("kit.search")
    assert everything() == before
    assert not hasattr(kit, "deep")


def test_what_is_compiled_stays_imported(project: Project) -> None:
    """Many extension modules break when they are imported twice; here a compiled file stands for them."""
    project.module("my_tools", "")
    project.write("helper.txt", "X = 1")
    py_compile.compile(str(project.folder / "helper.txt"), cfile=str(project.folder / "helper.pyc"))
    project.write("my_tools.py", "import helper\nraise RuntimeError")
    with pytest.raises(ReloadFailed):
        reload_modules("my_tools")
    assert sys.modules["helper"].X == 1
    with pytest.raises(InvalidOption, match="no source"):
        reload_modules("helper")


def test_the_inner_module_of_two_is_named(project: Project) -> None:
    project.module("one", "X = 1")
    project.module("two", "from one import X")
    project.write("one.py", "1 / 0")
    with pytest.raises(ReloadFailed, match="ZeroDivisionError") as caught:
        reload_modules("two", "one")
    assert caught.value.module == "one"
    assert sys.modules["two"].X == 1


def test_a_file_that_is_gone(project: Project) -> None:
    project.module("my_tools", "")
    (project.folder / "my_tools.py").unlink()
    before = everything()
    with pytest.raises(ReloadFailed, match=r"my_tools fails.*FileNotFoundError"):
        reload_modules("my_tools")
    assert everything() == before


def test_what_ends_the_program_ends_it_and_leaves_the_old_module(project: Project) -> None:
    project.module("my_tools", "")
    before = everything()
    project.write("my_tools.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        reload_modules("my_tools")
    assert everything() == before


def test_a_function_that_is_no_tool_any_more(project: Project) -> None:
    my_tools = project.module("my_tools", "def search(n: int): pass")
    agent = FakeAgent(tool(my_tools.search))
    before = everything(agent)
    project.write("my_tools.py", "def search(n): pass")
    with pytest.raises(ReloadFailed, match=r"my_tools fails.*'n'.*has no type hint") as caught:
        reload_modules("my_tools", agents=[agent])
    assert caught.value.module == "my_tools"
    assert everything(agent) == before


def test_an_agent_that_refuses_its_new_tools(project: Project) -> None:
    """Those before it get their old ones back, and the modules are not swapped."""
    my_tools = project.module("my_tools", tools_source("1"))

    @tool
    async def mine() -> None:
        """Do nothing."""

    agents = [FakeAgent(my_tools.search), FakeAgent(mine, my_tools.search)]
    before = everything(*agents)
    project.write("my_tools.py", tools_source("2").replace("timeout=5", "name='mine'"))
    with pytest.raises(ReloadFailed, match="refuses its new tools: two tools of one name") as caught:
        reload_modules("my_tools", agents=agents)
    assert caught.value.module is None
    assert isinstance(caught.value.__cause__, InvalidOption)
    assert everything(*agents) == before
    assert [agent.reloads for agent in agents] == [2, 1]


VALID = dedent(
    '''
    """Tools — and Ümlauts."""
    from __future__ import annotations
    import attrs
    from . import VERSION
    from .other import OTHER as other

    @attrs.define
    class Found:
        where: list[str] = attrs.field(factory=lambda: [f"{VERSION}" for _ in range(3)])

    if not (found := [Found(["a"]), Found()])[1:]:
        raise RuntimeError("never")

    def find(word: str = "x") -> dict[str, int]:
        return {word: other}

    assert find() == {"x": 1}, "bad"
    '''
).encode()

_garbage = st.one_of(
    st.integers(0, len(VALID)).map(lambda end: VALID[:end]),
    st.integers(0, len(VALID)).map(lambda start: VALID[start:]),
    st.tuples(st.integers(0, len(VALID)), st.binary(max_size=5)).map(
        lambda at: VALID[: at[0]] + at[1] + VALID[at[0] :]
    ),
    st.binary(max_size=30),
)


@given(data=st.data())
def test_whatever_stands_in_the_file_it_is_taken_whole_or_not_at_all(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with project_in(tmp_path_factory.mktemp("kit")) as project:
        project.write("kit/__init__.py", "VERSION = 1\nfrom .search import find")
        project.write("kit/other.py", "OTHER = 1")
        (project.folder / "kit" / "search.py").write_bytes(VALID)
        kit = project.load("kit")
        agent = FakeAgent(tool(kit.find))
        before, old = everything(agent), sys.modules["kit.search"]
        (project.folder / "kit" / "search.py").write_bytes(data.draw(_garbage))
        try:
            reload_modules("kit.search", agents=[agent])
        except ReloadFailed:
            assert everything(agent) == before
        else:
            assert sys.modules["kit.search"] is kit.search is not old
        assert list(vars(old)) == list(before[1]["kit.search"])


async def test_a_real_agent_has_the_new_tool_from_its_next_run_on(project: Project) -> None:
    """Its history is kept; and it refuses two tools of one name."""
    my_tools = project.module("my_tools", tools_source("1"))

    @tool
    async def mine() -> None:
        """Do nothing."""

    provider = ScriptedProvider(
        [[tool_call("search", {"word": "w"})], [text("1")], [tool_call("search", {"word": "w"})], [text("2")]]
    )
    async with open_agent(provider=provider, tools=[mine, my_tools.search]) as agent:
        await agent.chat("Search")
        project.write("my_tools.py", tools_source("2"))
        reload_modules("my_tools", agents=[agent])
        await agent.chat("Search again")
        results = [
            block.content for message in agent.messages for block in message.content if isinstance(block, ToolResult)
        ]
        assert results == [(Text("w1"),), (Text("w2"),)]

        project.write("my_tools.py", tools_source("3").replace("timeout=5", "name='mine'"))
        with pytest.raises(ReloadFailed, match="two tools are named 'mine'"):
            reload_modules("my_tools", agents=[agent])
        assert list(agent.tools) == ["mine", "search"]


# What cannot be reloaded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__main__", "move its tools into a module"),
        ("no_such_module", "has not been imported: import it first, or mend the name"),
        (7, "has not been imported"),
        ("sys", "no source"),
        ("os.path", "another name of '(posix|nt)path'"),
        ("made_by_hand", "not made by an import"),
        ("folder_only", "no source"),
    ],
)
def test_what_has_no_source_is_refused(project: Project, name: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    (project.folder / "folder_only").mkdir()
    project.load("folder_only")
    before = everything()
    with pytest.raises(InvalidOption, match=said):
        reload_modules(name)
    assert everything() == before


def test_no_module_at_all_is_refused() -> None:
    with pytest.raises(InvalidOption, match="say which"):
        reload_modules()


# Tracebacks and threads


def test_a_traceback_shows_the_lines_of_the_new_source(project: Project) -> None:
    """Also when the file's time and size say that it has not changed."""
    old = project.module("my_tools", "def fail(): raise RuntimeError('old')")
    with pytest.raises(RuntimeError) as caught:
        old.fail()
    assert "raise RuntimeError('old')" in "".join(traceback.format_exception(caught.value))
    project.write("my_tools.py", "def fail(): raise RuntimeError('new')", tick=False)
    fresh: Any = reload_modules("my_tools").modules["my_tools"]
    with pytest.raises(RuntimeError) as caught:
        fresh.fail()
    assert "raise RuntimeError('new')" in "".join(traceback.format_exception(caught.value))


def test_another_thread_that_imports_it_meanwhile_waits_for_it(project: Project) -> None:
    """It never sees half of a module."""
    project.module("my_tools", "X = 1")
    source = """
        import hooks
        hooks.reached.set()
        hooks.go_on.wait(10)
        X = 2
        """
    hooks = project.module("hooks", "import threading\nreached, go_on = threading.Event(), threading.Event()")
    project.write("my_tools.py", source)
    seen = []

    def other() -> None:
        hooks.reached.wait(10)
        threading.Timer(0.05, hooks.go_on.set).start()
        namespace: dict[str, Any] = {}
        exec("from my_tools import X", namespace)
        seen.append(namespace["X"])

    thread = threading.Thread(target=other)
    thread.start()
    reload_modules("my_tools")
    thread.join(10)
    assert seen == [2]


# Watching: real files and real time, waited for by `on_reload`


class Watch:
    """What a watch has told, one after the other."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Reloaded | ReloadFailed](100)
        self.told = self._send.send_nowait

    async def next(self) -> Reloaded | ReloadFailed:
        with trio.fail_after(20):
            return await self._receive.receive()


async def noticed(project: Project, nursery: trio.Nursery) -> Callable[[], Awaitable[object]]:
    """Return what changes a file that is beside the others, and returns when a watch of its own has noticed that."""
    project.module("beside", "X = 1")
    watched = Watch()
    await nursery.start(partial(watch, "beside", on_reload=watched.told))

    async def change() -> object:
        project.write("beside.py", "X = 1")
        return await watched.next()

    return change


async def test_a_change_of_the_file_reloads_it(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """A file that fails is logged and tried again at the next change; what is beside it is none of its business."""
    caplog.set_level(logging.INFO, "alloy_trio.reload")
    my_tools = project.module("my_tools", tools_source("1"))
    agents, watched = [FakeAgent(my_tools.search)], Watch()
    with assert_no_orphans():
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(watch, "my_tools", agents=agents, on_reload=watched.told))
            await (await noticed(project, nursery))()
            project.write("my_tools.py", "def")
            assert isinstance(failed := await watched.next(), ReloadFailed)
            assert (failed.module, agents[0].tools) == ("my_tools", {"search": my_tools.search})

            agents.append(FakeAgent(my_tools.search))
            project.write("my_tools.py", tools_source("2"))
            assert isinstance(reloaded := await watched.next(), Reloaded)
            new = sys.modules["my_tools"].search
            assert [agent.tools for agent in agents] == [{"search": new}] * 2
            assert new is not my_tools.search

            project.write("my_tools.py", tools_source("3", name="other"))
            assert isinstance(reloaded := await watched.next(), Reloaded)
            assert list(reloaded.missing) == ["search"]
            started = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started < 2  # and not the 5 seconds that are Watchfiles' default
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("INFO", "reloaded beside; tools: none"),
        ("ERROR", "the new source is not taken"),
        ("INFO", "reloaded my_tools; tools: search"),
        ("INFO", "reloaded my_tools; tools: none"),
        ("WARNING", "tool search stays the old one: my_tools no longer has search"),
    ]
    assert "SyntaxError" in caplog.text


async def test_an_editor_that_replaces_the_file(project: Project) -> None:
    """A new file takes the name: from beside it, and once after the old one was removed. And `on_reload` may raise."""
    project.module("my_tools", "X = 1")
    watched = Watch()

    def on_reload(outcome: Reloaded | ReloadFailed) -> None:
        watched.told(outcome)
        raise RuntimeError

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(watch, "my_tools", on_reload=on_reload))
        change_another = await noticed(project, nursery)
        for number in range(2, 5):
            project.write("draft", f"X = {number}")
            if number == 4:
                (project.folder / "my_tools.py").unlink()
                await change_another()
            (project.folder / "draft").rename(project.folder / "my_tools.py")
            assert isinstance(await watched.next(), Reloaded)
            assert number == sys.modules["my_tools"].X
        nursery.cancel_scope.cancel()


async def test_modules_that_are_watched_together_are_reloaded_together(project: Project) -> None:
    """One imports from the other; this one changes."""
    project.write("elsewhere/one.py", "X = 1")
    (project.folder / "one.py").symlink_to(project.folder / "elsewhere" / "one.py")
    project.load("one")
    project.module("two", "from one import X")
    watched = Watch()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(watch, "two", "one", on_reload=watched.told))
        project.write("elsewhere/one.py", "X = 2")
        assert isinstance(await watched.next(), Reloaded)
        assert sys.modules["two"].X == 2
        nursery.cancel_scope.cancel()


async def test_a_watch_of_what_cannot_be_reloaded_does_not_start() -> None:
    with pytest.raises(InvalidOption, match="import it first"):
        await watch("no_such_module")
    with pytest.raises(InvalidOption, match="'sys' has no file that could be watched"):
        await watch("sys")


async def test_without_watchfiles_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ImportError, match=r'pip install "alloy_trio\[watch\]"'):
        await watch("sys")
