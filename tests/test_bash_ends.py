"""How a command of the `bash` tool ends: nothing of it runs on. What is waited for is an event, or a poll with a bound."""

from __future__ import annotations

import errno
import math
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from commands import call, until

from alloy_trio import ToolError
from alloy_trio.tools import _process as process_module
from alloy_trio.tools._process import run_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

LIMIT = 30_000


async def time_out(root: Path, clock: MockClock, ready: Callable[[], bool], command: str) -> str:
    """Let the time of a command pass as soon as it is `ready`; return what the model is told."""
    clock.rate = 1

    async def jump() -> None:
        await until(ready)
        # The command may be ready before the call knows that it has started, and waits for it with a deadline.
        await until(lambda: 5 < trio.lowlevel.current_statistics().seconds_to_next_deadline < math.inf)
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(jump)
        with pytest.raises(ToolError, match="stopped after") as caught:
            await call(root, command)
    return str(caught.value)


def pids(root: Path) -> list[int]:
    path = root / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def runs(pid: int) -> bool:
    """Whether a process still does anything: a zombie that nobody has collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_sh_05_a_time_out_says_so_with_advice_and_the_output(tmp_path: Path, mock_clock: MockClock) -> None:
    command = "echo first; echo second >&2; touch ready; sleep 60"
    message = await time_out(tmp_path, mock_clock, (tmp_path / "ready").exists, command)
    assert "stopped after 120 seconds" in message
    assert "timeout (at most 600)" in message
    assert message.endswith("first\nsecond\n")


async def test_sh_05_the_output_of_a_time_out_is_capped(tmp_path: Path, mock_clock: MockClock) -> None:
    command = "head -c 50000 /dev/zero; touch ready; sleep 60"
    message = await time_out(tmp_path, mock_clock, (tmp_path / "ready").exists, command)
    assert message.count("of 50000 characters left out here") == 1
    assert len(message) < LIMIT + 500


BACKGROUND = {
    "child": "sleep 60 & echo $! >> pids; echo $$ >> pids; wait",
    "foreground": "echo $$ >> pids; sleep 60 & echo $! >> pids; sleep 60",
    "grandchild": "(sleep 60 & echo $! >> pids; echo $BASHPID >> pids; wait) & wait",
    "without-the-pipe": "sleep 60 >/dev/null 2>&1 & echo $! >> pids; echo $$ >> pids; wait",
    "pipeline": "{ echo $BASHPID >> pids; sleep 60; } | { echo $BASHPID >> pids; cat; }",
    "own-process-group": "timeout 60 bash -c 'echo $$ >> pids; echo $PPID >> pids; sleep 60'",
    "job-control": "set -m; sleep 60 & echo $! >> pids; echo $$ >> pids; wait",
    "later": "(echo $BASHPID >> pids; until [ -e go ]; do sleep 0.01; done; touch done) & echo $$ >> pids; wait",
}
ENDS = pytest.mark.parametrize("command", BACKGROUND.values(), ids=[f"sh-06-{name}" for name in BACKGROUND])


@ENDS
async def test_a_time_out_leaves_nothing_running(tmp_path: Path, mock_clock: MockClock, command: str) -> None:
    await time_out(tmp_path, mock_clock, lambda: len(pids(tmp_path)) == 2, command)
    await no_trace(tmp_path)


@ENDS
async def test_a_cancel_leaves_nothing_running(tmp_path: Path, command: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, tmp_path, command)
        await until(lambda: len(pids(tmp_path)) == 2)
        nursery.cancel_scope.cancel()
    await no_trace(tmp_path)


async def no_trace(root: Path) -> None:
    """All that wrote its pid is gone at this very moment, and does not do what it would have done later."""
    assert [runs(pid) for pid in pids(root)] == [False, False]
    (root / "go").touch()
    await trio.sleep(0.03)
    assert not (root / "done").exists()


async def test_sh_06_what_ignores_sigterm_is_killed(tmp_path: Path, mock_clock: MockClock) -> None:
    command = "trap '' TERM; sleep 60 & echo $! >> pids; echo $$ >> pids; while :; do wait; done"
    await time_out(tmp_path, mock_clock, lambda: len(pids(tmp_path)) == 2, command)
    await no_trace(tmp_path)


async def test_sh_06_what_heeds_sigterm_is_left_to_clean_up(tmp_path: Path) -> None:
    command = "trap 'touch cleaned; exit' TERM; touch ready; sleep 60 & wait"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, tmp_path, command)
        await until((tmp_path / "ready").exists)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(
    "said", ["echo cleaning up", "head -c 300000 /dev/zero"], ids=["a-line", "more-than-a-pipe-holds"]
)
async def test_what_cleans_up_may_say_so(tmp_path: Path, said: str) -> None:
    """Bash says by itself that a child of it was terminated."""
    command = f"trap '{said}; echo >&2; touch cleaned; exit' TERM; touch ready; while :; do sleep 0.05; done"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, tmp_path, command)
        await until((tmp_path / "ready").exists)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "cleaned").exists()


async def test_sh_06_a_cancel_while_it_is_started(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await call(tmp_path, "touch started; sleep 60")
    assert scope.cancelled_caught


@pytest.mark.parametrize("background", ["sleep 60", "sleep 60 >/dev/null 2>&1", "exec timeout 60 sleep 60 2>&1"])
async def test_sh_06_a_finished_command_leaves_nothing_running(tmp_path: Path, background: str) -> None:
    """Nor does it wait for a child that holds the pipe."""
    with trio.fail_after(5):
        result = await call(tmp_path, f"({background}) & echo $! $$ > pids; echo hi")
    assert result == "hi\nexit code: 0"
    assert [runs(pid) for pid in pids(tmp_path)] == [False, False]


DAEMONS = {
    "session": "setsid sleep 60 & echo $! >> pids",
    "nested": "setsid setsid sleep 60 & setsid bash -c 'setsid sleep 60 & echo $! $$ >> pids; wait' & echo $! >> pids",
    "orphan": "(setsid bash -c 'echo $$ >> pids; exec sleep 60 >/dev/null 2>&1' &)",
    "deaf": "trap '' TERM; setsid sleep 60 & echo $! >> pids",
}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find what left the session")
@pytest.mark.parametrize("command", DAEMONS.values(), ids=DAEMONS)
async def test_a_child_with_a_session_of_its_own_is_found_by_its_mark(tmp_path: Path, command: str) -> None:
    with trio.fail_after(10):
        result = await call(tmp_path, f"{command}; until [ -s pids ]; do sleep 0.01; done; echo hi")
    assert result == "hi\nexit code: 0"
    assert pids(tmp_path)
    assert not any(map(runs, pids(tmp_path)))


def test_a_list_of_processes_is_taken_again_until_nothing_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 2 exits while we look at 1, and leaves 3, which is the command's."""
    lists = iter([["1", "2"], ["1", "3"], ["1", "3"]])
    monkeypatch.setattr(os, "listdir", lambda _: next(lists))
    monkeypatch.setattr(process_module, "_group_in", lambda pid, *_: {1: None, 2: None, 3: 3}[pid])
    assert list(process_module._groups(9, "mark")) == [3]


async def test_what_drops_its_environment_as_well_gets_away(tmp_path: Path) -> None:
    """As the docs say; `bash_sandboxed` holds it. It does not hold the call up."""
    with trio.fail_after(5):
        result = await call(tmp_path, "env -i setsid sleep 60 & sleep 0.2; echo $! > pids; echo hi")
    assert result == "hi\nexit code: 0"
    (pid,) = pids(tmp_path)
    assert runs(pid)
    os.kill(pid, signal.SIGKILL)


async def test_the_mark_of_a_command_within_a_command_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the outer one ends what the inner one, killed, has left."""
    monkeypatch.setenv("ALLOY_TRIO_COMMAND", "outer")
    first, second = [(await call(tmp_path, "echo $ALLOY_TRIO_COMMAND")).split()[:2] for _ in range(2)]
    assert first[0] == second[0] == "outer"
    assert first[1] != second[1]


async def test_the_group_is_killed_where_there_is_no_proc(
    tmp_path: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_PROC", str(tmp_path / "proc"))
    assert await call(tmp_path, "echo hi") == "hi\nexit code: 0"
    command = "echo $$ $$ > pids; exec sleep 60"
    await time_out(tmp_path, mock_clock, lambda: len(pids(tmp_path)) == 2, command)
    await no_trace(tmp_path)


async def test_the_group_is_killed_where_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has run out of descriptors needs most of all that nothing more is left behind."""

    def none_left(_: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "listdir", none_left)
    await call(tmp_path, "sleep 1000 & echo $! > pid; sleep 1000 & echo $! >> pid")
    assert not any(map(runs, pids(tmp_path)))


async def test_a_cancel_with_output_in_flight_leaves_nothing_running(tmp_path: Path) -> None:
    got = trio.Event()

    def sink(_: bytes) -> None:
        got.set()

    start = partial(run_command, cwd=tmp_path, env=dict(os.environ), seconds=math.inf, sink=sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, ["bash", "-c", "echo $$ $$ > pids; exec yes"])
        await got.wait()
        nursery.cancel_scope.cancel()
    await no_trace(tmp_path)
