"""How `bash_sandboxed` is used: as `bash`, with its options, where it can be had and where not. `test_sandbox` tries to get out."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from commands import call, running, why_not

from alloy_trio import InvalidOption, ToolError
from alloy_trio.tools import Tool, bash, bash_sandboxed
from alloy_trio.tools import _sandbox as sandbox_module
from alloy_trio.tools._seccomp import filter_program

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0


WHY_NOT = why_not()
SANDBOX = pytest.mark.skipif(bool(WHY_NOT), reason=f"no sandbox to be had: {WHY_NOT}")


@pytest.fixture(scope="module")
def box() -> Tool:
    return bash_sandboxed()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# --- as `bash`


@SANDBOX
@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("echo hi; exit 42", "hi\nexit code: 42"),
        ("printf hi", "hi\nexit code: 0"),
        ("kill -9 $$", "exit code: 137"),
        ("no-such-command-here 2>/dev/null", "exit code: 127"),
        ("echo 1; echo 2 >&2; echo 3", "1\n2\n3\nexit code: 0"),
        ("cat", "exit code: 0"),
        ("sleep 60 & echo hi", "hi\nexit code: 0"),
    ],
)
async def test_results_are_those_of_bash(tmp_path: Path, box: Tool, command: str, result: str) -> None:
    assert await call(tmp_path, command, box) == await call(tmp_path, command, bash) == result


@SANDBOX
async def test_output_is_cut_as_that_of_bash(tmp_path: Path, box: Tool) -> None:
    result = await call(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x; echo end", box)
    assert "of 3000004 characters left out" in result
    assert len(result) < 30_100
    assert result.endswith("end\nexit code: 0")


@SANDBOX
async def test_time_is_that_of_bash(tmp_path: Path) -> None:
    box = bash_sandboxed(timeout=0.4, max_timeout=0.5)
    with pytest.raises(ToolError, match=r"stopped after 0\.5 seconds") as caught:
        await call(tmp_path, "echo first; sleep 60", box, timeout=60)
    assert str(caught.value).endswith("first\n")
    assert "0.4 if not given, 0.5 at most" in str(box.input_schema)


@SANDBOX
async def test_what_heeds_sigterm_is_left_to_clean_up(tmp_path: Path, box: Tool) -> None:
    """Git removes its lock, for instance, which lies in the working directory."""
    command = "trap 'touch cleaned; exit' TERM; touch ready; while :; do sleep 0.05; done"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, tmp_path, command, box)
        with trio.fail_after(10):
            while not (tmp_path / "ready").exists():  # noqa: ASYNC110 - other processes set no Trio event
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "cleaned").exists()


@SANDBOX
async def test_a_cancel_while_it_is_started(tmp_path: Path, box: Tool) -> None:
    for turns in range(12):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, tmp_path, f"echo {turns}; setsid sleep 60 & sleep 60", box)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await trio.sleep(turns * 0.002)
                scope.cancel()
        assert not running(str(tmp_path))


@SANDBOX
async def test_it_lasts_longer_than_the_thread_that_might_have_started_it(
    tmp_path: Path, box: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trio ends threads that idle for ten seconds, and what was to die with its parent then dies."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.05)
    assert await call(tmp_path, "sleep 0.5; echo alive", box) == "alive\nexit code: 0"


@SANDBOX
def test_it_is_a_tool_like_bash_and_says_where_it_runs(box: Tool) -> None:
    assert (box.name, box.concurrent, box.timeout) == ("bash", bash.concurrent, bash.timeout)
    assert box.input_schema == bash.input_schema
    assert "sandbox" in box.description
    assert "sandbox" not in bash.description


# --- where it works


@pytest.fixture
def in_home() -> Iterator[Path]:
    """A directory in the home of who runs the tests."""
    path = Path("~").expanduser() / f".alloy-trio-work-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no home to work in: {error}")
    yield path
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


@SANDBOX
async def test_the_working_directory_may_lie_in_what_is_hidden(tmp_path: Path, box: Tool, in_home: Path) -> None:
    for place in (tmp_path, in_home):
        assert await call(place, "pwd; echo hi > made", box) == f"{place.resolve()}\nexit code: 0"
        assert (place / "made").read_text() == "hi\n"
    assert await call(in_home, "ls -A ..", box) == f"{in_home.name}\nexit code: 0"


@SANDBOX
async def test_the_working_directory_may_be_a_link(tmp_path: Path, box: Tool) -> None:
    work, link = tmp_path / "work", tmp_path / "link"
    work.mkdir()
    link.symlink_to(work)
    assert await call(link, f"pwd; touch {link}/made; ls {link}", box) == f"{work}\nmade\nexit code: 0"
    assert (work / "made").exists()


@SANDBOX
@pytest.mark.parametrize("place", ["/", "~", "/tmp", "/run", "/proc/self", "/dev"])
async def test_a_working_directory_that_would_open_what_is_hidden_is_refused(box: Tool, place: str) -> None:
    path = Path.home() if place == "~" else Path(place)
    with pytest.raises(ToolError, match=r"hides|kernel's"):
        await call(path, "touch was-here", box)


@SANDBOX
async def test_a_working_directory_that_is_missing(tmp_path: Path, box: Tool) -> None:
    (tmp_path / "file").touch()
    for name in ("gone", "file"):
        with pytest.raises(ToolError, match=f"working directory .*{name} is missing"):
            await call(tmp_path / name, "true", box)


@SANDBOX
@pytest.mark.parametrize(
    "command", ["echo a\0b", "echo " + "x" * 200_000, "echo \ud83d"], ids=["nul", "long", "surrogate"]
)
async def test_what_cannot_be_run_is_an_error_and_leaves_nothing(tmp_path: Path, box: Tool, command: str) -> None:
    before = descriptors()
    with pytest.raises(ToolError, match="Cannot"):
        await call(tmp_path, command, box)
    assert descriptors() == before


@SANDBOX
async def test_it_works_where_many_descriptors_are_open(tmp_path: Path, box: Tool) -> None:
    """As in a program with a thousand connections."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip("so many cannot be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1050)]
    try:
        assert await call(tmp_path, "sleep 60 & echo hi", box) == "hi\nexit code: 0"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in opened:
            os.close(each)


@SANDBOX
async def test_where_no_descriptor_is_left_a_command_ends_all_the_same(
    tmp_path: Path, box: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    pidfd_open = os.pidfd_open

    def one_only(pid: int) -> int:
        opened.append(pid)
        if len(opened) > 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pidfd_open(pid)

    monkeypatch.setattr(os, "pidfd_open", one_only)
    seconds = f"62.{uuid.uuid4().int % 10**12}"
    assert "hi\nexit code: 0" in await call(tmp_path, f"setsid sleep {seconds} & echo hi", box)
    assert len(opened) > 1
    assert not running(seconds)


@SANDBOX
async def test_no_descriptor_is_left_open(tmp_path: Path, box: Tool) -> None:
    await call(tmp_path, "true", box)
    before = descriptors()
    for _ in range(3):
        await call(tmp_path, "true", box)
    assert descriptors() == before


@SANDBOX
async def test_what_is_writable_readable_and_hidden(tmp_path: Path) -> None:
    for name in ("work", "work/sub", "more", "more/inner", "seen", "unseen"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    work, more, seen = tmp_path / "work", tmp_path / "more", tmp_path / "seen"
    box = bash_sandboxed(
        writable=[more, more / "inner"], readable=[seen, work / "sub"], hidden=[work / "file", more / "inner"]
    )
    command = f"cat file; cat sub/file {more}/file {seen}/file {more}/inner/file ../unseen/file; ls {tmp_path}"
    result = await call(work, f"{{ {command}; }} 2>/dev/null", box)
    assert result == "work/submoreseenmore\nseen\nwork\nexit code: 0"
    await call(work, f"for each in . sub {more} {more}/inner {seen}; do echo x > $each/new; done", box)
    made = [each for each in ("work", "work/sub", "more", "more/inner", "seen") if (tmp_path / each / "new").exists()]
    assert made == ["work", "more"]


# --- options


@SANDBOX
async def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN", "x")
    monkeypatch.setenv("LC_ALL", "C")
    box = bash_sandboxed(env={"GIVEN": "y", "API_KEY": "z", "USER": None})
    names = "echo ${PLAIN-unset} ${GIVEN-unset} ${API_KEY-unset} ${USER-unset} ${LC_ALL-unset}; cd; touch here"
    assert await call(tmp_path, names, box) == "unset y z unset C\nexit code: 0"
    assert "z" not in repr(box)
    assert (await call(tmp_path, "echo $GIVEN", box.configure(env={"GIVEN": "2"}))).startswith("2\n")


@SANDBOX
async def test_limits(tmp_path: Path) -> None:
    box = bash_sandboxed(memory=1 << 28, cpu_seconds=1, file_size=10_000, processes=40)
    assert await call(tmp_path, "ulimit -v; ulimit -S -t; ulimit -f", box) == "262144\n1\n10\nexit code: 0"
    assert ROOT or (await call(tmp_path, "ulimit -u", box)).startswith("40\n")
    assert (await call(tmp_path, "while :; do :; done", box)).endswith("exit code: 152")
    assert (await call(tmp_path, "ulimit -v", box.configure(memory=1 << 29))).startswith("524288\n")


@SANDBOX
async def test_limits_of_the_sandbox_count_what_is_in_it_alone(tmp_path: Path) -> None:
    assert await call(tmp_path, "true; true | true; echo hi", bash_sandboxed(processes=8)) == "hi\nexit code: 0"


@SANDBOX
async def test_restricted(tmp_path: Path, box: Tool) -> None:
    assert "restricted" in await call(tmp_path, "cd /", bash_sandboxed().configure(restricted=True))


@SANDBOX
@pytest.mark.parametrize("options", [{"executor": print}, {"inherit_env": "all"}], ids=["executor", "inherit_env"])
def test_configure_does_not_lead_out_of_it(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption, match="bash_sandboxed"):
        bash_sandboxed().configure(**options)  # type: ignore[arg-type]


@SANDBOX
@pytest.mark.parametrize(
    "options",
    [
        {"writable": "/srv"},
        {"writable": ["/"]},
        {"readable": ["/no/such/place"]},
        {"hidden": ["/no/such/place"]},
        {"writable": ["/dev"]},
        {"readable": ["/proc/self"]},
        {"network": "no"},
        {"tmp_size": 0},
        {"memory": 0},
        {"timeout": 0},
    ],
    ids=str,
)
def test_options_that_cannot_be_right_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOption):
        bash_sandboxed(**options)  # type: ignore[arg-type]


@SANDBOX
@pytest.mark.parametrize("is_writable", [False, True])
async def test_secrets_of_the_system_are_hidden_in_what_can_be_written(
    is_writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "shadow").write_text("tweet")
    (tmp_path / "spool" / "work").mkdir(parents=True)
    (tmp_path / "spool" / "mail").write_text("tweet")
    monkeypatch.setattr(sandbox_module, "_SECRETS", (f"{tmp_path}/etc/shadow", f"{tmp_path}/spool"))
    box = bash_sandboxed(writable=[tmp_path / "etc"] if is_writable else [])
    assert "tweet" not in await call(tmp_path / "etc", "cat shadow; touch made", box)
    assert (tmp_path / "etc" / "made").exists()
    with pytest.raises(ToolError, match=r"hides: .*/spool"):
        await call(tmp_path / "spool" / "work", "cat ../mail", box)


# --- where it cannot be had


def test_without_bubblewrap_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidOption, match="install bubblewrap"):
        bash_sandboxed()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `bwrap` that writes down that it was called, and does what the file `does` says."""
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\n. {tmp_path}/does\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_where_namespaces_are_forbidden_it_says_what_to_do(fake: Path) -> None:
    (fake / "does").write_text("echo 'bwrap: No permissions to create a new namespace' >&2; exit 1")
    for _ in range(2):
        with pytest.raises(InvalidOption, match=r"No permissions.*user\.max_user_namespaces.*AppArmor"):
            bash_sandboxed()
    assert (fake / "calls").read_text() == "called\n" * 2


def test_what_works_is_tried_once(fake: Path) -> None:
    (fake / "does").write_text("exit 0")
    for network in (False, False, True):
        bash_sandboxed(network=network)
    assert (fake / "calls").read_text() == "called\n" * 2


async def test_a_command_is_not_run_without_the_sandbox(fake: Path) -> None:
    """Not even where it could be had when it was made."""
    (fake / "does").write_text("exit 0")
    box = bash_sandboxed()
    (fake / "does").write_text("echo 'bwrap: no' >&2; exit 1")
    assert await call(fake, "touch ran", box) == "bwrap: no\nexit code: 1"
    assert not (fake / "ran").exists()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_filters_are_whole_programs(machine: str) -> None:
    """Each jump stays inside, and the last step is a decision."""
    program = filter_program(machine)
    steps = [(program[at], program[at + 2], program[at + 3]) for at in range(0, len(program), 8)]
    assert all(at + 1 + max(jumps) < len(steps) for at, (code, *jumps) in enumerate(steps) if code != 6)
    assert steps[-1][0] == 6


def test_a_machine_whose_calls_are_not_known_is_refused() -> None:
    with pytest.raises(InvalidOption, match="mips"):
        filter_program("mips")
