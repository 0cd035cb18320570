"""What the file tools open, how far they read it, and how they replace it."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from test_paths_attacks import call, each_tool, everything, no_leak, sealed  # noqa: F401 - the last is a fixture

from alloy_trio import ToolContext, ToolError
from alloy_trio.tools import Tool, _paths, _read, edit, read, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")


# --- what is no file to read


@each_tool
def test_a_socket_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool, rest: dict[str, str]) -> None:
    monkeypatch.chdir(root)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with no_leak(), pytest.raises(ToolError, match="is no regular file"):
            call(tool, "socket", root, **rest)
    assert stat.S_ISSOCK((root / "socket").lstat().st_mode)


@needs_root
@each_tool
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK], ids=["character", "block"])
def test_a_device_is_not_even_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool, rest: dict[str, str], kind: int
) -> None:
    try:
        os.mknod(root / "device", 0o666 | kind, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices are made here")
    monkeypatch.setattr(_paths.Place, "opener", None)
    with no_leak(), pytest.raises(ToolError, match="is no regular file"):
        call(tool, "device", root, **rest)


def sparse(path: Path) -> None:
    """Make a file of a terabyte: text, and then a line of NULs without an end."""
    with path.open("wb") as file:
        file.write(b"line\n" * 2000)
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("no file system for a terabyte")


@contextmanager
def memory(most: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


def test_a_terabyte_is_read_no_further_than_need_be(root: Path) -> None:
    sparse(root / "huge")
    with memory(4 << 20):
        assert call(read, "huge", root).endswith("[The file goes on. To read more, use offset=2001.]")


def test_a_line_without_an_end_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read, "MAX_BYTES", 64 << 20)
    sparse(root / "huge")
    for offset, lines in ((2000, 2), (2002, 0)):
        with memory(4 << 20):
            arguments = read.parse({"file_path": "huge", "offset": offset})
            text = read.execute(arguments, ToolContext(working_directory=root))
        assert isinstance(text, str)
        assert text.count("\t") == lines
        assert text.endswith("[Stopped in line 2001, after 64 MiB: read goes no further into a file.]")


def test_a_terabyte_is_not_edited(root: Path) -> None:
    sparse(root / "huge")
    with memory(130 << 20), pytest.raises(ToolError, match="too large"):
        call(edit, "huge", root, old_string="line", new_string="x")
    assert (root / "huge").stat().st_size == 1 << 40


@pytest.mark.parametrize("more", [b"x" * (2 << 20), b"line\n" * (2 << 18)], ids=["in-one-line", "by-lines"])
def test_a_file_that_grows_while_it_is_read_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """It grows by two megabytes whenever one has been read."""
    monkeypatch.setattr(_read, "MAX_BYTES", 8 << 20)
    (root / "log").write_bytes(more)

    class Growing(ToolContext):
        def check_cancelled(self) -> None:
            with (root / "log").open("ab") as file:
                file.write(more)

    text = read.execute(read.parse({"file_path": "log", "offset": 10**9}), Growing(working_directory=root))
    assert isinstance(text, str)
    assert "after 8 MiB" in text
    assert (root / "log").stat().st_size > 15 << 20


# --- writing


def test_a_file_as_long_as_the_disk_allows_leaves_the_old_one(root: Path) -> None:
    """The error comes half-way, from the system itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with no_leak(), pytest.raises(ToolError, match="Cannot write d/f: File too large"):
            call(write, "d/f", root, content="x" * 300_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(root / "d").keys() == {".", "e", "e/f", "f"}
    assert (root / "d/f").read_text() == "inside"


def test_nobody_may_open_the_new_content_who_may_not_open_the_old(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    chown = os.fchown

    def seen(descriptor: int, owner: int, group: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        chown(descriptor, owner, group)

    monkeypatch.setattr(os, "fchown", seen)
    (root / "f").chmod(0o600)
    call(write, "f", root, content="x")
    assert modes == [0o600]


@needs_root
def test_the_owner_is_kept_where_it_may_be(root: Path) -> None:
    os.chown(root / "f", 1234, 4321)
    call(edit, "f", root, old_string="inside", new_string="x")
    assert ((root / "f").stat().st_uid, (root / "f").stat().st_gid) == (1234, 4321)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL], ids=errno.errorcode.get)
def test_where_the_owner_may_not_be_kept_the_group_may(root: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked: list[tuple[int, int]] = []

    def not_ours(_: int, owner: int, group: int) -> None:
        asked.append((owner, group))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fchown", not_ours)
    call(write, "f", root, content="x")
    assert (root / "f").read_text() == "x"
    status = (root / "f").stat()
    assert asked == [(status.st_uid, status.st_gid), (-1, status.st_gid)]


def test_an_old_link_to_the_file_keeps_what_it_has(root: Path) -> None:
    """A hard link from outside, too: what is outside is not written to through it."""
    os.link(root / "f", root / "d/same")
    call(write, "f", root, content="x")
    assert (root / "d/same").read_text() == "inside"
