"""The file tools."""

from __future__ import annotations

import errno
import os
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import ToolContext, ToolError
from alloy_trio.tools import Tool, edit, read, write

pytestmark = pytest.mark.usefixtures("way")

unless_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


def call(tool: Tool, root: Path, **arguments: object) -> str:
    """Call a file tool as a run would, in the directory `root`."""
    result = tool.execute(tool.parse(arguments), ToolContext(working_directory=root))
    assert isinstance(result, str)
    return result


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# --- read


def test_rd_01_lines_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\n\n  three\n")
    assert call(read, tmp_path, file_path="f") == "     1\tone\n     2\t\n     3\t  three"


@pytest.mark.parametrize(
    ("window", "first", "last", "more"),
    [
        pytest.param({}, 1, 2000, True, id="rd-02-default"),
        pytest.param({"limit": 3}, 1, 3, True, id="rd-02-limit"),
        pytest.param({"offset": 9_000}, 9_000, 10_000, False, id="rd-02-offset"),
        pytest.param({"offset": 5, "limit": 2}, 5, 6, True, id="rd-02-both"),
        pytest.param({"offset": 9_999, "limit": 2}, 9_999, 10_000, False, id="rd-02-exact-end"),
        pytest.param({"limit": 10_000}, 1, 10_000, False, id="rd-02-all"),
    ],
)
def test_windows(tmp_path: Path, window: dict[str, int], first: int, last: int, more: bool) -> None:
    (tmp_path / "f").write_text("".join(f"line {n}\n" for n in range(1, 10_001)))
    body, _, note = call(read, tmp_path, file_path="f", **window).partition("\n\n")
    assert body.split("\n") == [f"{n:>6}\tline {n}" for n in range(first, last + 1)]
    assert (f"offset={last + 1}" in note) is more
    assert bool(note) is more


def test_rd_02_the_rest_is_not_in_memory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(b"%5d %s\n" % (n, b"x" * 1000) for n in range(10_000)))
    tracemalloc.start()
    try:
        text = call(read, tmp_path, file_path="f", offset=9_999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text.startswith("  9999\t 9998 x")
    assert peak < 1_000_000


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["rd-03-none", "rd-03-lf", "rd-03-crlf"])
def test_the_last_line_comes_once(tmp_path: Path, end: str) -> None:
    (tmp_path / "f").write_bytes(b"one\r\ntwo" + end.encode())
    assert call(read, tmp_path, file_path="f") == "     1\tone\n     2\ttwo"


def test_empty_file_and_offset_past_the_end_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("one\ntwo")
    assert call(read, tmp_path, file_path="empty") == "[The file is empty.]"
    assert "2 lines" in call(read, tmp_path, file_path="short", offset=3)


@pytest.mark.parametrize("window", [{"offset": 0}, {"offset": -1}, {"limit": 0}])
def test_lines_count_from_1(tmp_path: Path, window: dict[str, int]) -> None:
    (tmp_path / "f").write_text("one")
    with pytest.raises(ToolError, match="1 or more"):
        call(read, tmp_path, file_path="f", **window)


def test_rd_04_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"Cannot read gone\.txt: No such file"):
        call(read, tmp_path, file_path="gone.txt")


def test_rd_04_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ToolError, match="sub is a directory, not a file"):
        call(read, tmp_path, file_path="sub")


@unless_root
def test_rd_04_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0)
    with pytest.raises(ToolError, match="Permission denied"):
        call(read, tmp_path, file_path="f")


def test_rd_05_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(ToolError) as caught:
        call(read, tmp_path, file_path="f")
    assert "binary" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("before", "binary"), [(8191, True), (8192, False)], ids=["rd-05-last-byte", "rd-05-after-8-kb"]
)
def test_only_the_first_8_kb_tell(tmp_path: Path, before: int, binary: bool) -> None:
    (tmp_path / "f").write_bytes(b"x\n" * (before // 2) + b"x" * (before % 2) + b"\0 end")
    if binary:
        with pytest.raises(ToolError, match="binary"):
            call(read, tmp_path, file_path="f")
    else:
        assert call(read, tmp_path, file_path="f", offset=4097).endswith("\0 end")


def test_rd_06_what_is_no_utf_8_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("caf\u00e9\nna\u00efve\n".encode("latin-1"))
    assert call(read, tmp_path, file_path="f") == "     1\tcaf\ufffd\n     2\tna\ufffdve"


def test_a_bom_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert call(read, tmp_path, file_path="f") == "     1\tone\n     2\t\ufefftwo"


def test_long_lines_are_cut_and_not_kept_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file:
        for _ in range(8):
            file.write("\u20ac" * (1 << 20))
        file.write("\nnext\n")
    tracemalloc.start()
    try:
        first, second = call(read, tmp_path, file_path="f").split("\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first.startswith("     1\t" + "\u20ac" * 2000 + " [line cut")
    assert "\ufffd" not in first
    assert second == "     2\tnext"
    assert peak < 8 << 20


def test_a_line_of_2000_characters_is_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(("\U0001f600" * 2000 + "\r\n").encode())
    assert call(read, tmp_path, file_path="f") == "     1\t" + "\U0001f600" * 2000


def test_the_whole_result_is_bounded_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(("x" * 1999 + "\n") * 2000)
    first = call(read, tmp_path, file_path="f")
    assert len(first) < 210_000
    body, _, note = first.partition("\n\n")
    assert f"offset={body.count(chr(10)) + 2}." in note


def test_a_cancelled_read_leaves_a_huge_line(tmp_path: Path) -> None:
    """The tool asks its context about once in a megabyte."""

    class Left(BaseException):
        pass

    class Cancelled(ToolContext):
        def check_cancelled(self) -> None:
            raise Left

    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "long").write_bytes(b"x" * (3 << 20))
    ctx = Cancelled(working_directory=tmp_path)
    assert read.execute(read.parse({"file_path": "short"}), ctx) == "     1\tx"
    with pytest.raises(Left):
        read.execute(read.parse({"file_path": "long"}), ctx)


# --- no regular file


@pytest.fixture
def irregular(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["fifo", "sub", "/dev/zero"])
@pytest.mark.parametrize(
    ("tool", "rest"),
    [(read, {}), (write, {"content": "x"}), (edit, {"old_string": "a", "new_string": "b"})],
    ids=["read", "write", "edit"],
)
def test_what_is_no_regular_file_is_refused_at_once(
    irregular: Path, tool: Tool, rest: dict[str, str], name: str
) -> None:
    ctx = ToolContext(working_directory=irregular, allowed_paths=(Path("/"),))
    with pytest.raises(ToolError, match=r"is no regular file|[Ii]s a directory"):
        tool.execute(tool.parse({"file_path": name, **rest}), ctx)
    assert names(irregular) == ["fifo", "sub"]
    assert stat.S_ISFIFO((irregular / "fifo").stat().st_mode)


# --- write


def test_wr_01_new_file_with_parents(tmp_path: Path) -> None:
    message = call(write, tmp_path, file_path="a/b/new.txt", content="one\ntwo\n")
    assert (tmp_path / "a/b/new.txt").read_bytes() == b"one\ntwo\n"
    assert message == "Created a/b/new.txt (2 lines, 8 bytes)."
    assert names(tmp_path / "a/b") == ["new.txt"]


def test_wr_01_existing_content_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a much longer old content")
    message = call(write, tmp_path, file_path="f", content="\u00e9")
    assert (tmp_path / "f").read_bytes() == "\u00e9".encode()
    assert message == "Replaced f (1 lines, 2 bytes)."


def test_line_ends_are_written_as_given(tmp_path: Path) -> None:
    call(write, tmp_path, file_path="f", content="a\r\nb\nc\r")
    assert (tmp_path / "f").read_bytes() == b"a\r\nb\nc\r"


def test_wr_02_parent_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ToolError, match="Cannot make the directory of file/new"):
        call(write, tmp_path, file_path="file/new", content="x")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    call(write, tmp_path, file_path="link", content="new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o664], ids=oct)
def test_the_mode_of_a_file_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(mode)
    call(write, tmp_path, file_path="f", content="mid")
    call(edit, tmp_path, file_path="f", old_string="mid", new_string="new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        call(write, tmp_path, file_path="f", content="x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_who_has_the_file_open_sees_the_old_content_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with path.open() as file:
        call(write, tmp_path, file_path="f", content="new content")
        assert file.read() == "old"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("old")

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(ToolError, match="Cannot write f: No space left"):
        call(write, tmp_path, file_path="f", content="new")
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_text() == "old"


@unless_root
def test_a_read_only_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    (tmp_path / "f").chmod(0o444)
    with pytest.raises(ToolError, match="Permission denied"):
        call(write, tmp_path, file_path="f", content="new")
    with pytest.raises(ToolError, match="Permission denied"):
        call(edit, tmp_path, file_path="f", old_string="old", new_string="new")
    assert (tmp_path / "f").read_text() == "old"


def test_half_a_surrogate_pair_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="surrogates"):
        call(write, tmp_path, file_path="a/f", content="\ud83d")
    assert names(tmp_path) == []


# --- edit


def test_ed_01_a_unique_match_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one\ntwo\nthree\n")
    message = call(edit, tmp_path, file_path="f", old_string="two\nthr", new_string="2\n3")
    assert (tmp_path / "f").read_text() == "one\n2\n3ee\n"
    assert message == "Replaced 1 occurrence in f."


def test_ed_01_several_matches_are_refused_with_their_count(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x x x")
    with pytest.raises(ToolError, match=r"3 times in f.*replace_all"):
        call(edit, tmp_path, file_path="f", old_string="x", new_string="y")
    assert (tmp_path / "f").read_text() == "x x x"


def test_ed_01_replace_all_replaces_all(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x x x")
    message = call(edit, tmp_path, file_path="f", old_string="x", new_string="xx", replace_all=True)
    assert (tmp_path / "f").read_text() == "xx xx xx"
    assert "3 occurrences" in message


def test_ed_01_overlapping_matches_are_several(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("aaa")
    with pytest.raises(ToolError, match="2 times"):
        call(edit, tmp_path, file_path="f", old_string="aa", new_string="b")


@pytest.mark.parametrize("everywhere", [False, True], ids=["ed-01-one", "ed-01-all"])
def test_no_match_is_an_error(tmp_path: Path, everywhere: bool) -> None:
    (tmp_path / "f").write_text("here")
    with pytest.raises(ToolError, match="not found in f"):
        call(edit, tmp_path, file_path="f", old_string="there", new_string="x", replace_all=everywhere)
    assert (tmp_path / "f").read_text() == "here"


def test_ed_01_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="Cannot read f: No such file"):
        call(edit, tmp_path, file_path="f", old_string="a", new_string="b")
    assert names(tmp_path) == []


@pytest.mark.parametrize("everywhere", [False, True], ids=["ed-02-one", "ed-02-all"])
@pytest.mark.parametrize(("old", "reason"), [("", "empty"), ("same", "identical")], ids=["empty", "identical"])
def test_strings_that_change_nothing_are_refused(
    tmp_path: Path,
    old: str,
    reason: str,
    everywhere: bool,
) -> None:
    (tmp_path / "f").write_text("same")
    with pytest.raises(ToolError, match=reason):
        call(edit, tmp_path, file_path="f", old_string=old, new_string="same", replace_all=everywhere)
    assert (tmp_path / "f").read_text() == "same"


def test_ed_02_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"text\0text")
    with pytest.raises(ToolError, match="binary"):
        call(edit, tmp_path, file_path="f", old_string="text", new_string="x", replace_all=True)
    assert (tmp_path / "f").read_bytes() == b"text\0text"


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        pytest.param(b"a\r\nb\r\nc\r\n", "a\nb", "x\ny\nz", b"x\r\ny\r\nz\r\nc\r\n", id="ed-03-lf"),
        pytest.param(b"a\r\nb\r\n", "a\r\nb", "x\r\ny", b"x\r\ny\r\n", id="ed-03-crlf"),
        pytest.param(b"a\r\nb\r\n", "b", "x\ny", b"a\r\nx\r\ny\r\n", id="ed-03-new-lines-only"),
        pytest.param(b"a\r\nb\nc\nd", "c\nd", "x\ny", b"a\r\nb\nx\ny", id="ed-03-mixed-lf-part"),
        pytest.param(b"a\r\nb\nc\nd", "a\nb", "x\ny", b"x\r\ny\nc\nd", id="ed-03-mixed-crlf-part"),
        pytest.param(b"a\nb\n", "a\nb", "x\r\ny", b"x\r\ny\n", id="ed-03-lf-file-takes-what-it-is-given"),
        pytest.param(b"\xef\xbb\xbfa\r\nb", "a\nb", "x", b"\xef\xbb\xbfx", id="ed-03-bom"),
    ],
)
def test_line_ends_and_bom_are_kept(tmp_path: Path, before: bytes, old: str, new: str, after: bytes) -> None:
    (tmp_path / "f").write_bytes(before)
    call(edit, tmp_path, file_path="f", old_string=old, new_string=new)
    assert (tmp_path / "f").read_bytes() == after


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"x" * 9000)
        file.truncate((64 << 20) + 1)
    with pytest.raises(ToolError, match="too large"):
        call(edit, tmp_path, file_path="f", old_string="x", new_string="y")


def test_a_new_string_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(ToolError, match="surrogates"):
        call(edit, tmp_path, file_path="f", old_string="old", new_string="\ud83d")
    assert (tmp_path / "f").read_text() == "old"


PLAIN = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"").replace(b"<", b""))


@settings(deadline=None)
@given(before=PLAIN, after=PLAIN)
def test_every_other_byte_of_the_file_survives(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, after: bytes
) -> None:
    """Also bytes that are no UTF-8, and half characters beside the text that is replaced."""
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(before + b"<old>" + after)
    call(edit, path.parent, file_path=path.name, old_string="<old>", new_string="<n\u00e9w>")
    assert path.read_bytes() == before + "<n\u00e9w>".encode() + after
