"""Where the file tools may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import ToolContext, ToolError
from alloy_trio.tools import _paths, edit, read, write

pytestmark = pytest.mark.usefixtures("way")


def resolve(path: str, ctx: ToolContext) -> Path:
    return Path(_paths.resolve(path, ctx))


def context(root: Path, *allowed: Path) -> ToolContext:
    return ToolContext(working_directory=root, allowed_paths=allowed or (root,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory `root` with a file and a directory in it, beside an `outside` and a sibling of a like name."""
    for name in ("root/inner", "outside", "root-two"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/file", "root/inner/deep", "outside/secret", "root-two/file"):
        (tmp_path / name).write_text(name)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("path", "real"),
    [
        pytest.param("file", "file", id="pth-01-relative"),
        pytest.param("./file", "file", id="pth-01-dot"),
        pytest.param("inner/../file", "file", id="pth-01-dot-dot"),
        pytest.param("inner//deep", "inner/deep", id="pth-01-double-slash"),
        pytest.param(".", ".", id="pth-03-root-itself"),
        pytest.param("inner/../../root/inner/deep", "inner/deep", id="pth-04-moves-inside"),
        pytest.param("new", "new", id="pth-05-new-file"),
        pytest.param("a/b/new", "a/b/new", id="pth-05-new-directories"),
        pytest.param("a/../new", "new", id="pth-05-through-what-does-not-exist"),
    ],
)
def test_paths_inside_are_resolved(root: Path, path: str, real: str) -> None:
    assert resolve(path, context(root)) == (root / real).resolve()


def test_pth_01_absolute_paths_ignore_the_working_directory(root: Path) -> None:
    assert resolve(str(root / "file"), context(root / "inner", root)) == root.resolve() / "file"


def test_pth_02_without_a_working_directory_it_is_the_process_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert resolve("file", ToolContext()) == root.resolve() / "file"
    with pytest.raises(ToolError):
        resolve("../outside/secret", ToolContext())


def test_pth_03_the_whole_file_system_may_be_allowed(root: Path) -> None:
    assert resolve("../outside/secret", context(root, Path("/"))).name == "secret"


def test_pth_03_each_of_several_roots_is_allowed(root: Path) -> None:
    ctx = context(root, root, root.parent / "outside")
    assert resolve("file", ctx).read_text() == "root/file"
    assert resolve("../outside/secret", ctx).read_text() == "outside/secret"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../root-two/file", id="pth-03-sibling-with-the-same-prefix"),
        pytest.param("../outside/secret", id="pth-04-climbs-out"),
        pytest.param("inner/../../outside/secret", id="pth-04-climbs-out-from-within"),
        pytest.param("missing/../../outside/secret", id="pth-04-climbs-out-through-nothing"),
        pytest.param("/etc/passwd", id="pth-03-absolute"),
        pytest.param("../outside/new", id="pth-05-new-file-outside"),
    ],
)
def test_paths_outside_are_refused(root: Path, path: str) -> None:
    with pytest.raises(ToolError) as caught:
        resolve(path, context(root))
    assert path in str(caught.value)
    assert str(root.resolve()) in str(caught.value)


def test_pth_05_nothing_is_created_outside(root: Path) -> None:
    ctx = context(root)
    for path in ("../outside/new", "../fresh/new"):
        with pytest.raises(ToolError):
            write.execute(write.parse({"file_path": path, "content": "x"}), ctx)
    assert sorted(p.name for p in root.parent.rglob("*")) == sorted(
        ["root", "outside", "root-two", "inner", "file", "deep", "secret", "file"]
    )


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param("../outside", "link/secret", id="pth-06-to-a-directory"),
        pytest.param("../outside", "link/new", id="pth-06-new-file-in-a-directory"),
        pytest.param("../outside/secret", "link", id="pth-06-to-a-file"),
        pytest.param("../outside/nothing", "link", id="pth-06-dangling"),
        pytest.param("../outside/nothing", "link/../file", id="pth-06-dangling-then-back"),
    ],
)
def test_links_to_the_outside_are_refused(root: Path, target: str, path: str) -> None:
    (root / "link").symlink_to(target)
    with pytest.raises(ToolError, match="outside the allowed directories"):
        resolve(path, context(root))


def test_pth_07_what_is_opened_is_the_real_path(root: Path) -> None:
    (root / "link").symlink_to("inner/deep")
    (root / "dangling").symlink_to("inner/new")
    assert resolve("link", context(root)) == root.resolve() / "inner/deep"
    write.execute(write.parse({"file_path": "dangling", "content": "made"}), context(root))
    assert (root / "dangling").is_symlink()
    assert (root / "inner/new").read_text() == "made"


def test_pth_07_a_root_may_be_given_through_a_link(root: Path) -> None:
    door = root.parent / "door"
    door.symlink_to(root)
    for ctx in (context(door), context(root, door), context(door, root)):
        assert resolve("file", ctx) == root.resolve() / "file"
        assert resolve(str(door / "file"), ctx) == root.resolve() / "file"


@pytest.mark.parametrize("path", ["self", "one", "self/below", "missing/../self/x"], ids=lambda path: f"pth-08-{path}")
def test_link_loops_are_errors(root: Path, path: str) -> None:
    (root / "self").symlink_to("self")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    for tool, rest in (
        (read, {}),
        (write, {"content": "x"}),
        (edit, {"old_string": "a", "new_string": "b"}),
    ):
        with pytest.raises(ToolError):
            tool.execute(tool.parse({"file_path": path, **rest}), context(root))


def test_a_loop_does_not_hide_a_link_behind_it(root: Path) -> None:
    (root / "self").symlink_to("self")
    (root / "link").symlink_to("../outside")
    with pytest.raises(ToolError):
        resolve("missing/../self/../link/secret", context(root))


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a\ud800b"], ids=["nul", "long", "surrogate"])
def test_what_is_no_path_is_an_error(root: Path, path: str) -> None:
    with pytest.raises(ToolError, match="Cannot use the path"):
        resolve(path, context(root))


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories and links of every kind, some of which lead out of `root`."""
    base = tmp_path_factory.mktemp("maze")
    for name in ("root/a/b", "outside/a"):
        (base / name).mkdir(parents=True)
    for name, target in {
        "root/in": "a",
        "root/out": "../outside",
        "root/a/up": "..",
        "root/a/out": "../../outside/a",
        "root/dangling": "../outside/new",
        "root/self": "self",
        "root/a/b/abs": str(base / "outside"),
        "outside/back": "../root",
    }.items():
        (base / name).symlink_to(target)
    return base / "root"


NAMES = st.sampled_from(["a", "b", "in", "out", "up", "..", ".", "dangling", "self", "abs", "back", "missing"])


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(NAMES, min_size=1, max_size=7))
def test_no_path_leads_out(maze: Path, parts: list[str]) -> None:
    try:
        real = resolve("/".join(parts), context(maze))
    except ToolError:
        return
    assert real.is_relative_to(maze.resolve())
    assert os.path.realpath(real) == str(real)
