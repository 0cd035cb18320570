"""The file tools against a model, and a neighbour, that want out of the allowed directories."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alloy_trio import ToolContext, ToolError
from alloy_trio.tools import Tool, _linkfree, _paths, edit, read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("way")

needs_proc = pytest.mark.skipif(not Path("/proc/self/root").exists(), reason="there is no /proc")

CALLS: list[tuple[Tool, dict[str, str]]] = [
    (read, {}),
    (write, {"content": "inside, new"}),
    (edit, {"old_string": "inside", "new_string": "inside, new"}),
]
each_tool = pytest.mark.parametrize(("tool", "rest"), CALLS, ids=["read", "write", "edit"])


def call(tool: Tool, path: str, root: Path, *allowed: Path, **rest: str) -> str:
    result = tool.execute(
        tool.parse({"file_path": path, **rest}), ToolContext(working_directory=root, allowed_paths=allowed or (root,))
    )
    assert isinstance(result, str)
    return result


def everything(folder: Path) -> dict[str, object]:
    """Return what is in a folder: the content of files, where links lead, and when a directory was last written to."""
    found: dict[str, object] = {}
    for path in [folder, *folder.rglob("*")]:
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_text() if path.is_file() else path.lstat().st_mtime_ns
    return found


@pytest.fixture(name="root")
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A `root` beside an `outside` with files of the same names; nothing is written outside, not for a moment."""
    for name in ("root/d/e", "outside/d/e"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("f", "d/f", "d/e/f"):
        (tmp_path / "root" / name).write_text("inside")
        (tmp_path / "outside" / name).write_text("outside, secret")
    before = everything(tmp_path / "outside")
    yield tmp_path / "root"
    assert everything(tmp_path / "outside") == before


@contextmanager
def no_leak() -> Iterator[None]:
    """Check that as many descriptors are open afterwards as before."""
    folder = Path("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd")
    before = len(list(folder.iterdir()))
    yield
    assert len(list(folder.iterdir())) == before


# --- what a path may say


@each_tool
@pytest.mark.parametrize(
    "path",
    [
        "{outside}/f",
        "/{outside}/f",
        "../root/../outside/f",
        "d/../../outside/f",
        "missing/../../outside/f",
        "f/../../outside/f",
        "././/../outside//f",
        pytest.param("/proc/self/root{outside}/f", marks=needs_proc),
        pytest.param("/proc/thread-self/root{outside}/f", marks=needs_proc),
        pytest.param("/proc/self/cwd/../../../../../../../..{outside}/f", marks=needs_proc),
        pytest.param("/proc/self/fd/{folder}/f", marks=needs_proc),
        pytest.param("/proc/self/fd/{file}", marks=needs_proc),
        pytest.param("/proc/{process}/fd/{file}", marks=needs_proc),
        "/dev/fd/{file}",
        "/dev/stdin",
        "{parent}/ROOT/f",
        "{parent}/Root/f",
        "{parent}/root /f",
        "{parent}/root2/f",
        "{parent}/roo\u0074\u0301/f",
        "{parent}/\uff52oot/f",
    ],
)
def test_no_path_leads_outside(root: Path, tool: Tool, rest: dict[str, str], path: str) -> None:
    outside = root.parent / "outside"
    folder, file = os.open(outside, os.O_RDONLY), os.open(outside / "f", os.O_RDWR)
    names = {"outside": outside, "parent": root.parent, "folder": folder, "file": file, "process": os.getpid()}
    before = everything(root.parent)
    try:
        with pytest.raises(ToolError, match="outside the allowed directories"):
            call(tool, path.format(**names), root, **rest)
    finally:
        os.close(folder)
        os.close(file)
    assert everything(root.parent) == before


@pytest.mark.parametrize(
    "path", ["\uff0e\uff0e/outside/f", "\u2025/outside/f", "..\u2215outside\u2215f", "..\\outside\\f"]
)
def test_what_looks_like_dots_and_slashes_is_a_name(root: Path, path: str) -> None:
    call(write, path, root, content="x")
    assert (root / path).read_text() == "x"


@each_tool
@pytest.mark.parametrize(
    "target", ["d/f", "./d/../d/f", "{root}/d/f", "../root/d/f", "{other}/f", "hop", "{away}/back/d/f"]
)
def test_links_that_stay_inside_work(root: Path, tool: Tool, rest: dict[str, str], target: str) -> None:
    other, away = root.parent / "other", root.parent / "away"
    other.mkdir()
    away.mkdir()
    (other / "f").write_text("inside")
    (root / "hop").symlink_to(root / "d/e/f")
    (away / "back").symlink_to("../root")
    (root / "link").symlink_to(target.format(root=root, other=other, away=away))
    call(tool, "link", root, root, other, **rest)
    assert (root / "link").is_symlink()
    assert (root / "link").read_text() == ("inside" if tool is read else "inside, new")


@each_tool
@needs_proc
def test_with_everything_allowed_proc_leads_where_its_links_say(root: Path, tool: Tool, rest: dict[str, str]) -> None:
    """A magic link is followed by what it says, as text, and never through the kernel."""
    call(tool, f"/proc/self/root{root}/f", root, Path("/"), **rest)
    with (root / "gone").open("w+") as file:
        (root / "gone").unlink()
        with pytest.raises(ToolError, match="No such file"):
            call(read, f"/proc/self/fd/{file.fileno()}", root, Path("/"))


# --- what comes between the check and the use


def swap(path: Path, target: Path) -> None:
    path.rename(path.with_name("was"))
    path.symlink_to(target)


@each_tool
@pytest.mark.parametrize("place", ["d/e", "d", "."], ids=["parent", "middle", "root"])
@pytest.mark.parametrize("path", ["d/e/f", "d/e/new", "d/e/new/f"])
def test_a_directory_that_becomes_a_link_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, tool: Tool, rest: dict[str, str], place: str, path: str
) -> None:
    def too_late(real: str, *, make: bool = False) -> int:
        swap(root / place, root.parent / "outside" / place)
        return _linkfree.open_directory(real, make=make)

    monkeypatch.setattr(_paths, "open_directory", too_late)
    with no_leak(), pytest.raises(ToolError, match=r"there is a link in it now\. Try again\."):
        call(tool, path, root, **rest)


@each_tool
@pytest.mark.parametrize("seen", [False, True], ids=["before-the-look", "after-the-look"])
@pytest.mark.parametrize("target", ["f", "missing"])
def test_a_file_that_becomes_a_link_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, tool: Tool, rest: dict[str, str], seen: bool, target: str
) -> None:
    look = _paths.Place.status

    def too_late(self: _paths.Place) -> os.stat_result:
        status = look(self) if seen else None
        if not (root / "f").is_symlink():
            swap(root / "f", root.parent / "outside" / target)
        return status or look(self)

    monkeypatch.setattr(_paths.Place, "status", too_late)
    with no_leak():
        if tool is write and seen and target == "f":  # what is replaced is the link
            call(tool, "f", root, **rest)
            assert not (root / "f").is_symlink()
            assert (root / "f").read_text() == "inside, new"
        else:
            with pytest.raises(ToolError):
                call(tool, "f", root, **rest)


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_what_takes_a_files_place_is_looked_at_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(_paths.Place, "status", lambda _: None)
    kind(root / "new")
    with no_leak(), pytest.raises(ToolError, match=r"is no regular file|Is a directory"):
        call(read, "new", root)


def test_a_directory_that_is_moved_out_takes_no_other_with_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open stays what it is: the file that is there is replaced, not one that has come to the old path."""

    def moved(real: str, *, make: bool = False) -> int:
        directory = _linkfree.open_directory(real, make=make)
        swap(root / "d", root.parent / "outside/d")
        return directory

    monkeypatch.setattr(_paths, "open_directory", moved)
    call(write, "d/f", root, content="inside, new")
    assert (root / "was/f").read_text() == "inside, new"


class Neighbour:
    """Swaps `root/d` for a link to outside and back, at chosen ones among the system calls of the file tools."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.calls, self.at, self.linked = 0, frozenset[int](), False
        self.path, self.was, self.outside = root / "d", root / "was", root.parent / "outside/d"
        self.system = {name: getattr(os, name) for name in ("rename", "symlink", "unlink")}
        for name in ("open", "stat", "lstat", "readlink", "mkdir", "access", "replace", "unlink"):
            patch.setattr(os, name, self.before(getattr(os, name)))
        openat2 = _linkfree._openat2()
        patch.setattr(_linkfree, "_openat2", lambda: openat2 and self.before(openat2))

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: object, **kwargs: object) -> Any:
            if self.calls in self.at:
                self.swap()
            self.calls += 1
            return function(*args, **kwargs)

        return called

    def swap(self) -> None:
        self.linked = not self.linked
        if not self.linked:
            self.system["unlink"](self.path)
            self.system["rename"](self.was, self.path)
        else:
            self.system["rename"](self.path, self.was)
            self.system["symlink"](self.outside, self.path)

    def during(self, at: set[int], call: Callable[[], str]) -> str:
        """Make a call, swap as said, and return what the model is told. The directory is itself again afterwards."""
        self.calls, self.at = 0, frozenset(at)
        try:
            return call()
        except ToolError as error:
            return str(error)
        finally:
            self.at = frozenset()
            if self.linked:
                self.swap()


@pytest.mark.parametrize(
    ("tool", "path", "rest"),
    [
        (read, "d/e/f", {}),
        (write, "d/e/f", {"content": "inside, new"}),
        (write, "d/new/f", {"content": "inside, new"}),
        (edit, "d/e/f", {"old_string": "inside", "new_string": "inside, new"}),
    ],
)
def test_no_moment_is_the_right_one(root: Path, tool: Tool, path: str, rest: dict[str, str]) -> None:
    """A directory becomes a link, and itself again, before each of the system calls of a tool, or between them."""
    told: collections.Counter[str] = collections.Counter()
    with pytest.MonkeyPatch.context() as patch, no_leak():
        neighbour = Neighbour(root, patch)
        neighbour.during(set(), lambda: call(tool, path, root, **rest))
        for first, later, start in itertools.product(range(neighbour.calls), (1, 3, 1000), ({0}, set[int]())):
            shutil.rmtree(root / "d/new", ignore_errors=True)
            text = neighbour.during(start ^ {first, first + later}, lambda: call(tool, path, root, **rest))
            assert "secret" not in text
            told["link" if "a link in it now" in text else "outside" if "outside" in text else "other"] += 1
    assert all(told[text] > 10 for text in ("link", "outside", "other")), told


SWAPPING = """
import itertools, os, pathlib, sys
root = pathlib.Path(sys.argv[1])
numbers = itertools.count()
for inner in itertools.cycle(["d/e", "d"]):
    path, was, link = (root / f"{inner}{end}" for end in ("", ".was", ".link"))
    link.symlink_to(root.parent / "outside" / inner)
    path.rename(was)
    try:
        link.rename(path)
        link = path
    except OSError:  # `write` has made the directory
        pass
    link.unlink()
    while was.exists():
        try:
            was.rename(path)
        except OSError:  # `write` again
            path.rename(root / str(next(numbers)))
"""
"""Makes directories by turns themselves and links to the same place outside."""


def test_a_process_that_swaps_directories_gets_nothing_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process, since a thread would wait for us; and what is between check and use takes longer than it does."""

    def later(real: str, *, make: bool = False) -> int:
        late = time.monotonic() + random.uniform(0, 0.0005)
        while time.monotonic() < late:
            pass
        return _linkfree.open_directory(real, make=make)

    monkeypatch.setattr(_paths, "open_directory", later)
    outcomes: collections.Counter[str] = collections.Counter()
    with subprocess.Popen([sys.executable, "-c", SWAPPING, root]) as process:
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            for (tool, rest), path in itertools.product(CALLS, ["d/e/f", "d/e/new/f"]):
                try:
                    text = call(tool, path, root, **rest)
                except ToolError as error:
                    text = str(error)
                assert "secret" not in text
                outcomes["met a link" if "link in it now" in text else "refused" if "annot" in text else "done"] += 1
        assert process.poll() is None
        process.kill()
    assert outcomes["done"]


# --- the root


def test_a_root_that_is_missing_is_made_by_write_alone(root: Path) -> None:
    fresh = root.parent / "fresh"
    with pytest.raises(ToolError, match="No such file"):
        call(read, "f", fresh)
    with pytest.raises(ToolError, match="outside the allowed"):
        call(write, "../other/f", fresh, content="x")
    assert not fresh.exists()
    call(write, "d/f", fresh, content="x")
    assert (fresh / "d/f").read_text() == "x"


def test_a_root_is_looked_up_again_by_every_call(root: Path) -> None:
    """Another directory in its place is the root from then on, and so is what it is linked to: both are the user's."""
    root.rename(root.with_name("was"))
    with pytest.raises(ToolError, match="No such file"):
        call(read, "f", root)
    root.mkdir()
    call(write, "f", root, content="another")
    assert call(read, "f", root) == "     1\tanother"
    assert (root.parent / "was/f").read_text() == "inside"
    link = root.parent / "current"
    link.symlink_to("was")
    assert call(read, "f", link) == "     1\tinside"
    link.unlink()
    link.symlink_to("root")
    assert call(read, "f", link) == "     1\tanother"
    with pytest.raises(ToolError, match="outside the allowed"):
        call(read, str(root.parent / "was/f"), link)


@each_tool
def test_a_root_may_be_a_file(root: Path, tool: Tool, rest: dict[str, str]) -> None:
    call(tool, "f", root, root / "f", **rest)
    with pytest.raises(ToolError, match="outside the allowed"):
        call(tool, "d/f", root, root / "f", **rest)


@each_tool
def test_the_root_of_all_is_a_directory(root: Path, tool: Tool, rest: dict[str, str]) -> None:
    with pytest.raises(ToolError, match="is a directory"):
        call(tool, "/", root, Path("/"), **rest)


# --- descriptors


def test_no_call_leaves_a_descriptor_open(root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "binary").write_bytes(b"\0")
    (root / "loop").symlink_to("loop")
    paths = ["f", "d", ".", "gone", "gone/too", "f/below", "fifo", "binary", "loop", "../outside/f", "d/e/new", "\0"]
    with no_leak():
        for path, (tool, rest) in itertools.product(paths, CALLS):
            with suppress(ToolError):
                call(tool, path, root, **rest)
