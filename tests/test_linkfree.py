"""A directory is opened by a path without links, in every way the same; and all paths lead where a slow model says."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import ToolContext, ToolError
from alloy_trio.tools import Tool, _linkfree, read, write

if TYPE_CHECKING:
    from collections.abc import Callable

needs_openat2 = pytest.mark.skipif(_linkfree._openat2() is None, reason="no openat2 here")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "f").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, target in {"link": "d", "away": "/", "nowhere": "gone", "loop": "loop", "to-file": "f"}.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


def outcome(path: str, *, make: bool) -> str:
    """Open a directory, and say which it is or what went wrong."""
    try:
        directory = _linkfree.open_directory(path, make=make)
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} {error}"
    status = os.fstat(directory)
    os.close(directory)
    same = os.path.samestat(status, Path(path).stat())
    return f"opened, as it says: {same}"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("make", [False, True], ids=["open", "make"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "opened, as it says: True"),
        ("d", "opened, as it says: True"),
        ("d/e", "opened, as it says: True"),
        ("f", "ENOTDIR"),
        ("f/e", "ENOTDIR"),
        ("fifo", "ENOTDIR"),
        ("link", "ELOOP"),
        ("link/e", "ELOOP"),
        ("away", "ELOOP"),
        ("away/etc", "ELOOP"),
        ("nowhere", "ELOOP"),
        ("nowhere/e", "ELOOP"),
        ("loop", "ELOOP"),
        ("loop/e", "ELOOP"),
        ("to-file", "ELOOP"),
        ("x" * 300, "ENAMETOOLONG"),
        ("/".join(["x"] * 2100), "ENAMETOOLONG"),
    ],
    ids=lambda value: value[:12],
)
def test_it_opens_what_has_no_link(tree: Path, path: str, expected: str, make: bool) -> None:
    before = sorted(tree.rglob("*"))
    assert outcome(f"{tree}/{path}".rstrip("/"), make=make).startswith(expected)
    assert sorted(tree.rglob("*")) == before


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("path", ["new", "d/new", "d/new/and/newer"])
def test_what_is_missing_is_made_if_so_asked(tree: Path, path: str) -> None:
    assert outcome(f"{tree}/{path}", make=False).startswith("ENOENT")
    assert not (tree / path).exists()
    assert outcome(f"{tree}/{path}", make=True) == "opened, as it says: True"


@pytest.mark.usefixtures("way")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
@pytest.mark.parametrize(
    "path", ["/proc/self", "/proc/self/root", "/proc/{pid}/root", "/proc/{pid}/cwd", "/proc/{pid}/fd/{fd}"]
)
def test_magic_links_are_links(tree: Path, path: str) -> None:
    directory = os.open(tree, os.O_RDONLY)
    try:
        assert outcome(path.format(pid=os.getpid(), fd=directory), make=False).startswith("ELOOP")
    finally:
        os.close(directory)


@pytest.mark.usefixtures("way")
def test_the_descriptor_is_not_inherited(tree: Path) -> None:
    directory = _linkfree.open_directory(str(tree))
    assert not os.get_inheritable(directory)
    os.close(directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may pass everything")
def test_a_directory_may_be_passed_that_may_not_be_listed(tree: Path, way: str) -> None:
    (tree / "d").chmod(0o111)
    allowed = "EACCES" if way == "walk-by-lists" else "opened, as it says: True"
    passed = outcome(f"{tree}/d/e", make=False)
    (tree / "d").chmod(0o666)
    refused = [outcome(f"{tree}/d/{name}", make=make) for name in ("e", "new") for make in (False, True)]
    (tree / "d").chmod(0o755)
    assert passed.startswith(allowed)
    assert all(text.startswith("EACCES") for text in refused)


@needs_openat2
def test_the_kernels_way_is_taken_where_there_is_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openat2 = _linkfree._openat2()
    assert openat2
    how = (_linkfree._DIRECTORY).to_bytes(8, sys.byteorder) + bytes(8) + (6).to_bytes(8, sys.byteorder)
    if openat2(b"/", how) in {-errno.ENOSYS, -errno.EPERM}:
        pytest.skip("this kernel has no openat2, or does not let it through")
    monkeypatch.setattr(_linkfree, "_walk", None)
    assert outcome(f"{tree}/d/e", make=False) == "opened, as it says: True"


def answering(*answers: int) -> tuple[Callable[[], Callable[[bytes, bytes], int]], list[bytes]]:
    """Return an `openat2` that gives these answers, and then the last of them again, and what it was asked."""
    asked: list[bytes] = []

    def openat2(path: bytes, _: bytes) -> int:
        asked.append(path)
        return answers[min(len(asked), len(answers)) - 1]

    return lambda: openat2, asked


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM], ids=errno.errorcode.get)
def test_a_call_that_is_not_let_through_is_made_up_for(tree: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fake, asked = answering(-code)
    monkeypatch.setattr(_linkfree, "_openat2", fake)
    assert outcome(f"{tree}/d/e", make=False) == "opened, as it says: True"
    assert outcome(f"{tree}/link/e", make=False).startswith("ELOOP")
    assert outcome(f"{tree}/new", make=True) == "opened, as it says: True"
    assert asked == [os.fsencode(f"{tree}/{path}") for path in ("d/e", "link/e", "new")]


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR], ids=errno.errorcode.get)
def test_a_call_is_made_again_but_not_for_ever(tree: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fake, asked = answering(-code, -code, os.open(tree / "d", os.O_RDONLY))
    monkeypatch.setattr(_linkfree, "_openat2", fake)
    assert outcome(f"{tree}/d", make=False) == "opened, as it says: True"
    assert len(asked) == 3
    fake, asked = answering(-code)
    monkeypatch.setattr(_linkfree, "_openat2", fake)
    assert outcome(f"{tree}/d", make=False).startswith(errno.errorcode[code])
    assert len(asked) == 16


@pytest.mark.parametrize(("attribute", "value"), [("platform", "darwin"), ("maxsize", 2**31 - 1)])
def test_the_number_is_used_only_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, attribute: str, value: object
) -> None:
    monkeypatch.setattr(sys, attribute, value)
    assert _linkfree._openat2.__wrapped__() is None


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_without_ctypes_it_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert _linkfree._openat2.__wrapped__() is None


# --- a model


class Link(NamedTuple):
    """A link, and what is written in it."""

    target: str


Node: TypeAlias = "dict[str, Node] | str | Link"
NAMES = ["a", "b"]
PARTS = st.sampled_from([*NAMES, *NAMES, "..", ".", "root", "outside"])
PATHS = st.tuples(st.sampled_from(["", "", "../outside/", "{base}/"]), st.lists(PARTS, min_size=1, max_size=4)).map(
    lambda path: path[0] + "/".join(path[1])
)
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["root", "outside"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
        st.sampled_from(["directory", "file"]) | PATHS.map(Link),
    ),
    min_size=6,
    max_size=14,
)


def find(tree: Node, path: list[str]) -> Node | None:
    """Return what stands at a path, followed letter by letter."""
    for name in path:
        found = tree.get(name) if isinstance(tree, dict) else None
        if found is None:
            return None
        tree = found
    return tree


def where(tree: Node, base: list[str], path: str) -> list[str] | None:
    """Return where a path leads, from `root`; None if it leads in circles. What is missing has no links."""
    here, rest = [*base, "root"], path
    for _ in range(3000):
        if not rest:
            return here
        here = [] if rest.startswith("/") else here
        part, _, rest = rest.lstrip("/").partition("/")
        if part == "..":
            here = here[:-1]
        elif part != ".":
            found = find(tree, [*here, part])
            if isinstance(found, Link):
                rest = f"{found.target}/{rest}".rstrip("/")
            else:
                here = [*here, part]
    return None


def plant(base: Path, entries: list[tuple[str, list[str], str | Link]]) -> Node:
    """Make a tree of directories, files and links on the disk, and return it as the model has it."""
    tops: dict[str, Node] = {"root": {}, "outside": {}}
    for top in tops:
        (base / top).mkdir()
    for top, names, kind in entries:
        folder, path = tops[top], base / top
        for name in names[:-1]:
            if isinstance(folder, dict):
                folder, path = folder.setdefault(name, {}), path / name
        if isinstance(folder, dict) and names[-1] not in folder:
            path.mkdir(parents=True, exist_ok=True)
            path /= names[-1]
            match kind:
                case "directory":
                    path.mkdir()
                    folder[names[-1]] = {}
                case Link(target):
                    folder[names[-1]] = Link(target.format(base=base))
                    path.symlink_to(target.format(base=base))
                case _:
                    folder[names[-1]] = f"{top}, {'/'.join(names)}"
                    path.write_text(f"{top}, {'/'.join(names)}")
    tree: Node = tops
    for name in reversed(base.parts[1:]):
        tree = {name: tree}
    return tree


def told(tool: Tool, path: str, base: Path, **rest: str) -> str:
    try:
        return str(tool.execute(tool.parse({"file_path": path, **rest}), ToolContext(working_directory=base / "root")))
    except ToolError as error:
        return f"refused: {error}"


def files(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.usefixtures("way")
@settings(max_examples=80)
@given(entries=ENTRIES, paths=st.lists(PATHS, min_size=8, max_size=8), path=PATHS)
def test_a_path_leads_where_the_model_says(
    entries: list[tuple[str, list[str], str | Link]], paths: list[str], path: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(os.path.realpath(folder))
        tree = plant(base, entries)
        for each in paths:
            check_read(base, tree, each.format(base=base))
        check_write(base, tree, path.format(base=base))


def check_read(base: Path, tree: Node, path: str) -> None:
    end = where(tree, list(base.parts[1:]), path)
    shown = told(read, path, base)
    if end is None:  # in circles, at least at first
        assert not shown.startswith("     1\toutside")
        return
    here, inside = find(tree, end), end[: len(base.parts)] == [*base.parts[1:], "root"]
    assert shown.startswith(f"     1\t{here}" if inside and isinstance(here, str) else "refused: ")
    assert ("outside the allowed" in shown) is not inside


def check_write(base: Path, tree: Node, path: str) -> None:
    before, end = files(base), where(tree, list(base.parts[1:]), path)
    text, after = told(write, path, base, content="written"), files(base)
    if end is None:
        assert {each for each in after if after[each] != before.get(each)} <= set(files(base / "root"))
        return
    here, inside = find(tree, end), end[: len(base.parts)] == [*base.parts[1:], "root"]
    blocked = any(isinstance(find(tree, end[:number]), str) for number in range(len(end)))
    if inside and not isinstance(here, dict) and not blocked:
        assert text.startswith("Created" if here is None else "Replaced")
        assert after == {**before, Path("/", *end): "written"}
    else:
        assert text.startswith("refused: ")
        assert after == before
