"""Stores on disk: queues, time-outs, full disks, torn files, locks, and processes that are killed."""

# ruff: noqa: ASYNC220, ASYNC240 - files and processes are looked at while nothing else is to run

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from store_contract import SECRET, numbered, refuses

from alloy_trio import InvalidOption, StoreError
from alloy_trio.sessions import JSONLStore, Record, SQLiteStore
from alloy_trio.sessions._disk import Job
from alloy_trio.testing import assert_no_orphans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Make = Callable[..., JSONLStore | SQLiteStore]

MAKERS: dict[str, Make] = {
    "jsonl": lambda folder, **options: JSONLStore(folder / "sessions", **options),
    "sqlite": lambda folder, **options: SQLiteStore(folder / "sessions.db", **options),
}

each_store = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Hanging:
    """A disk that hangs: the thread of a store waits in the middle of its work."""

    def __init__(self, store: JSONLStore | SQLiteStore) -> None:
        self._store = store
        self._go_on = threading.Event()
        self._load = store._disk.load

    async def start(self) -> None:
        """Let the store hang, in a read for somebody who does not wait for it."""
        hangs = threading.Event()

        def load(session: str) -> Sequence[Record]:
            hangs.set()
            self._go_on.wait()
            return self._load(session)

        self._store._disk.load = load  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._store.load, "s")
            await trio.to_thread.run_sync(hangs.wait)
            nursery.cancel_scope.cancel()
        self._store._disk.load = self._load  # type: ignore[method-assign]

    def end(self) -> None:
        self._go_on.set()


@contextlib.asynccontextmanager
async def hanging(store: JSONLStore | SQLiteStore) -> Any:
    hang = Hanging(store)
    await hang.start()
    try:
        yield hang
    finally:
        hang.end()


# The queue


@each_store
async def test_a_store_that_is_not_open_says_so(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    for _ in range(2):
        for use in (partial(store.load, "s"), partial(store.append, "s", numbered("a")), store.sessions):
            with pytest.raises(StoreError, match=r"not open; use it inside `async with .*Store"):
                await use()
        async with store:
            assert await store.load("s") == []


@each_store
async def test_a_store_is_entered_once(make: Make, tmp_path: Path) -> None:
    async with make(tmp_path) as store:
        with pytest.raises(StoreError, match="open already"):
            await store.__aenter__()
        await store.append("s", numbered("a"))


@each_store
@pytest.mark.parametrize("seconds", [0, -1, "10", None, math.nan])
def test_a_write_timeout_is_seconds(make: Make, seconds: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="write_timeout"):
        make(tmp_path, write_timeout=seconds)


async def test_many_callers_share_one_fsync(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def counted(fd: int) -> None:
        synced.append(fd)
        fsync(fd)

    async def write(seq: int, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await store.append("s", numbered(seq, first=seq))

    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered(1))
        async with trio.open_nursery() as nursery, hanging(store):
            monkeypatch.setattr(os, "fsync", counted)
            for seq in range(2, 200):
                await nursery.start(write, seq)
            await trio.testing.wait_all_tasks_blocked()
        assert len(synced) == 1
        assert await store.load("s") == numbered(*range(1, 200))


async def test_many_callers_share_one_transaction(tmp_path: Path) -> None:
    said: list[str] = []
    async with SQLiteStore(tmp_path / "x.db") as store:
        store._disk._connection.set_trace_callback(said.append)  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery, hanging(store) as hang:
            for number in range(200):
                nursery.start_soon(store.append, str(number), numbered("a"))
            await trio.testing.wait_all_tasks_blocked()
            hang.end()
        assert said.count("BEGIN IMMEDIATE") == said.count("COMMIT") == 1
        assert len(await store.sessions()) == 200


@each_store
async def test_the_wait_for_an_acknowledgement_is_bounded(
    make: Make, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The caller is told in time; the write goes on, and may be repeated."""
    async with make(tmp_path, write_timeout=10) as store:
        async with hanging(store), trio.open_nursery() as nursery:
            write = partial(refuses, says="session 's' was not acknowledged within 10 seconds: it may still be written")
            for verb in (store.append, store.rewrite):
                nursery.start_soon(write, verb, "s", numbered(SECRET))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(9.5)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            mock_clock.jump(1)
        assert await store.load("s") == numbered(SECRET)
        await store.append("s", numbered(SECRET))
        assert await store.load("s") == numbered(SECRET)


@each_store
async def test_a_read_has_no_bound_of_its_own(make: Make, tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with make(tmp_path, write_timeout=10) as store:
        await store.append("s", numbered("a"))
        async with hanging(store) as hang, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                assert await store.load("s") == numbered("a")
                assert await store.sessions() == ["s"]

            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1000)
            await trio.testing.wait_all_tasks_blocked()
            hang.end()


@each_store
async def test_a_full_queue_says_that_nothing_is_written(
    make: Make, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    said = []

    async def write(store: Any, number: int) -> None:
        try:
            await store.append(str(number), numbered(SECRET))
        except StoreError as error:
            said.append(str(error))

    async with make(tmp_path) as store:
        async with hanging(store), trio.open_nursery() as nursery:
            for number in range(2000):
                nursery.start_soon(write, store, number)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(10)
        refused = [text for text in said if "it is not written, for the queue was full" in text]
        assert 0 < len(refused) < len(said) == 2000
        assert len(await store.sessions()) == 2000 - len(refused)
        assert SECRET not in "".join(said)


@each_store
async def test_a_cancelled_caller_leaves_its_write(make: Make, tmp_path: Path) -> None:
    async with make(tmp_path) as store:
        async with hanging(store), trio.open_nursery() as nursery:
            nursery.start_soon(store.append, "s", numbered("a"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await store.load("s") == numbered("a")


@each_store
async def test_leaving_drains_the_queue(make: Make, tmp_path: Path) -> None:
    """Also when the scope around the store is cancelled: whoever still waits there for a write gets it."""
    written = []

    async def write(store: Any, number: int) -> None:
        await store.append(str(number), numbered("a"))
        written.append(number)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with make(tmp_path) as store:
                hang = Hanging(store)
                await hang.start()
                for number in range(500):
                    nursery.start_soon(write, store, number)
                await trio.testing.wait_all_tasks_blocked()

                @nursery.start_soon
                async def _() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    with pytest.raises(StoreError, match="not open"):
                        await store.load("s")
                    hang.end()

                scope.cancel()
                await trio.sleep_forever()
    assert len(written) == 500
    async with make(tmp_path) as store:
        assert len(await store.sessions()) == 500


async def use_when_free(store: JSONLStore | SQLiteStore) -> Sequence[str]:
    while True:
        try:
            async with store:
                return await store.sessions()
        except StoreError as error:
            assert "hung" in str(error)  # noqa: PT017 - the reason to try again
            await trio.to_thread.run_sync(os.sched_yield)


async def jump_after(event: trio.Event, clock: trio.testing.MockClock) -> None:
    await event.wait()
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(20)


@each_store
@pytest.mark.parametrize("error", [KeyError("of the body"), None], ids=repr)
async def test_leaving_does_not_wait_for_ever(
    error: Exception | None, make: Make, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """A disk that hangs: callers are told, the body's exception goes on, and the disk is let go of once it can be."""
    store = make(tmp_path, write_timeout=20)
    hang, leaves = Hanging(store), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jump_after, leaves, mock_clock)
        with pytest.raises((KeyError, StoreError)) as caught:
            async with store:
                await hang.start()
                nursery.start_soon(partial(refuses, store.append, "s", numbered(SECRET), says="within 20 seconds"))
                nursery.start_soon(partial(refuses, store.load, "s", says="left before it could be read"))
                await trio.testing.wait_all_tasks_blocked()
                leaves.set()
                if error is not None:
                    raise error
    if error is None:
        assert "left before all was done" in str(caught.value)
    else:
        assert caught.value is error
        assert "left before all was done" in error.__notes__[0]
    with pytest.raises(StoreError, match="hung"):
        await store.__aenter__()
    hang.end()
    assert await use_when_free(store) == []  # nothing was begun any more


@each_store
async def test_nobody_uses_a_disk_that_is_closed_or_opens_one_that_is_not(make: Make, tmp_path: Path) -> None:
    """What a thread does that was left behind, and came back at the worst moment."""
    job = Job("load", "s")
    async with make(tmp_path) as store:
        with pytest.raises(StoreError, match="hung"):
            store._access.open()
        await store.append("s", numbered("a"))
    store._access.do([job])
    assert not job.is_answered
    async with store:
        assert await store.load("s") == numbered("a")


# Full disks


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: what is written comes to an end in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@each_store
async def test_a_write_that_finds_the_disk_full_leaves_nothing(make: Make, tmp_path: Path) -> None:
    big = SECRET * 300_000
    async with make(tmp_path) as store:
        await store.append("s", numbered("a"))
        with full_disk(2_000_000):
            await refuses(store.append, "s", numbered("b", big, first=2), says="look at the disk")
            await refuses(store.append, "new", numbered(big), says="look at the disk")
            await refuses(store.rewrite, "s", numbered(big, first=2), says="look at the disk")
            assert not list(tmp_path.rglob("*.tmp"))
            assert await store.load("s") == numbered("a")
            assert await store.load("new") == []
            await store.append("s", numbered("b", first=2))
            assert await store.sessions() == ["s"]
        await store.append("s", numbered(big, first=3))
    async with make(tmp_path) as store:
        assert await store.load("s") == numbered("a", "b", big)


@each_store
async def test_one_that_is_too_big_for_the_disk_fails_by_itself(make: Make, tmp_path: Path) -> None:
    """Those who write at the same moment, to this session or to others, are not disturbed."""
    big = numbered(SECRET * 300_000, first=2)
    async with make(tmp_path) as store:
        for session in ("s", "t"):
            await store.append(session, numbered("a"))
        async with trio.open_nursery() as nursery:
            with full_disk(2_000_000):
                async with hanging(store):
                    for _ in range(3):
                        nursery.start_soon(partial(refuses, store.append, "s", numbered(SECRET), says="somebody else"))
                        nursery.start_soon(partial(refuses, store.append, "s", big, says="look at the disk"))
                        nursery.start_soon(store.append, "s", numbered("a"))
                        nursery.start_soon(store.append, "t", numbered("b", first=2))
                    await trio.testing.wait_all_tasks_blocked()
                assert await store.load("s") == numbered("a")
        assert await store.load("t") == numbered("a", "b")


class FailingSystem:
    """Calls of the operating system fail, from the nth one on, as often as `times` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, skip: int, times: float = math.inf) -> None:
        self._call = getattr(os, name)
        self._skip, self._times = skip, times
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: Any) -> Any:
        self._skip -= 1
        if self._skip >= 0 or self._times <= 0:
            return self._call(*args)
        self._times -= 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("name", ["open", "write", "fsync", "truncate"])
@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("verb", ["append", "rewrite"])
async def test_a_disk_that_fails_leaves_the_log_whole(
    name: str, skip: int, verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each call fails in turn: the log is as before, or as it was to become, and the store goes on."""
    new = numbered("c", "d", first=3)
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a", "b"))
        with monkeypatch.context() as patch:
            FailingSystem(patch, name, skip)
            if name == "truncate":  # what was written cannot be taken back either
                FailingSystem(patch, "fsync", skip)
            with contextlib.suppress(StoreError):
                await getattr(store, verb)("s", new)
        log = await store.load("s")
        assert log in (numbered("a", "b"), new if verb == "rewrite" else numbered("a", "b", "c", "d"))
        await getattr(store, verb)("s", new)  # repeated: the same write
        await store.append("s", numbered("e", first=5))
        after = await store.load("s")
    assert [record.seq for record in after] == ([3, 4, 5] if verb == "rewrite" else [1, 2, 3, 4, 5])
    async with JSONLStore(tmp_path) as store:
        assert await store.load("s") == after


async def test_an_acknowledged_append_has_been_synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If fsync fails, the caller hears of it and the record is gone; without fsync= nobody asks the disk."""
    for fsync in (True, False):
        async with JSONLStore(tmp_path / str(fsync), fsync=fsync) as store:
            with monkeypatch.context() as patch:
                FailingSystem(patch, "fsync", 0)
                if fsync:
                    await refuses(store.append, "s", numbered(SECRET), says="failed .Input/output error.; look at")
                    assert await store.load("s") == []
                    assert not list((tmp_path / str(fsync)).glob("*.jsonl"))
                else:
                    await store.append("s", numbered("a"))
                # A rename that is on the disk before the content is would lose what was there.
                await refuses(store.rewrite, "s", numbered(SECRET, first=2), says="failed")
            assert await store.load("s") == ([] if fsync else numbered("a"))


async def test_what_is_synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file before the folder that names it; the folder only when something was made, renamed or removed there."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def seen() -> list[str]:
        names = synced.copy()
        synced.clear()
        return names

    monkeypatch.setattr(os, "fsync", noted)
    async with JSONLStore(tmp_path / "one" / "two") as store:
        assert seen() == [tmp_path.name, "one"]
        await store.append("s", numbered("a"))
        assert seen() == ["s.jsonl", "two"]
        await store.append("s", numbered("b", first=2))
        assert seen() == ["s.jsonl"]
        await store.append("s", numbered("b", first=2))
        assert seen() == ["s.jsonl"]  # the first time may not have come to its fsync
        await store.rewrite("s", numbered("c", first=3))
        assert seen() == ["s.jsonl.tmp", "two"]
        await store.delete("s")
        assert seen() == ["two"]


async def test_a_rename_that_may_not_be_on_the_disk_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The caller hears of it, and the store goes on from what is there, be it of the same length."""
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a", "b"))
        with monkeypatch.context() as patch:
            FailingSystem(patch, "fsync", 1)
            await refuses(store.rewrite, "s", numbered("c", "d", first=3), says="failed")
        await store.append("s", numbered("e", first=5))
        assert await store.load("s") == numbered("c", "d", "e", first=3)


async def test_one_broken_file_does_not_disturb_others(tmp_path: Path) -> None:
    """Not even those who write at the same moment."""
    (tmp_path / "broken.jsonl").mkdir()
    async with JSONLStore(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(refuses, store.append, "broken", numbered(SECRET), says="append of.*broken.*fail")
            )
            nursery.start_soon(store.append, "s", numbered("a"))
        assert await store.load("s") == numbered("a")


# Torn files


LONG = "long" * 100


@pytest.mark.parametrize("session", ["s", LONG])
async def test_a_file_torn_at_any_byte_has_what_was_acknowledged(
    session: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lines that are whole are read, the rest is cut off, and the log goes on behind them."""
    records = numbered("ä", {"b": [SECRET]}, "c")
    async with JSONLStore(tmp_path, fsync=False) as store:
        await store.append(session, records)
        (path,) = tmp_path.glob("*.jsonl")
        whole = path.read_bytes()
        ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
        ends = ends[1:] if session == LONG else ends  # a long id stands in the first line
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        caplog.clear()
        async with JSONLStore(tmp_path, fsync=False) as store:
            kept = sum(end <= size for end in ends)
            assert await store.sessions() == ([session] if kept else [])
            if size % 2:
                assert await store.load(session) == records[:kept]
            assert (str(path) in caplog.text) == (size % 2 == 1 and whole[:size][-1:] != b"\n")
            await store.append(session, numbered("next", first=kept + 1))
            assert SECRET not in caplog.text
        assert path.read_bytes().startswith(whole[: ends[kept - 1]] if kept else whole[: -len(whole)])
        async with JSONLStore(tmp_path, fsync=False) as store:
            assert await store.load(session) == records[:kept] + numbered("next", first=kept + 1)
            assert await store.sessions() == [session]


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 4096, b"\0\0\n", b"\xff\n", b"{}\n", b'{"seq":3,"kind":"k","data":[]}\n', b"\n", b'{"seq":3'],
    ids=repr,
)
async def test_a_last_line_that_cannot_be_read_is_cut_off(
    tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.jsonl"
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a", "b"))
        with path.open("ab") as file:
            file.write(tail)
        await store.append("s", numbered("c", first=3))  # the file has another length than it had: it is read again
        assert await store.load("s") == numbered("a", "b", "c")
    assert f"{path}: the last write was torn; its {len(tail)} bytes have been cut off" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"\0\0\n",
            b"\xff\n",
            b"{}\n",
            b"\n",
            b'{"seq":2,"kind":"message","data":{"value":"' + SECRET.encode() + b'"}\n',
        ),
        *(
            b'{"seq":1,"kind":"message","data":{}}\n',
            b'{"seq":"2","kind":"message","data":{}}\n',
            b'{"seq":2,"kind":"message","data":{"a":' + b"[" * 100_000 + b"\n",
        ),
    ],
    ids=lambda line: repr(line[:30]),
)
async def test_a_line_in_the_middle_that_cannot_be_read_is_for_a_person(line: bytes, tmp_path: Path) -> None:
    """It names file and line, and nothing is changed."""
    path = tmp_path / "s.jsonl"
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a", "b", "c"))
        first, _, last = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(broken := first + line + last)
        for use in (
            partial(store.load, "s"),
            partial(store.append, "s", numbered(SECRET, first=4)),
            partial(store.rewrite, "s", numbered(SECRET, first=4)),
        ):
            await refuses(use, says=f"{path}, line 2 .*: nothing is changed; mend that line")
        assert path.read_bytes() == broken
        await store.append("t", numbered("a"))
        path.write_bytes(first)
        assert await store.load("s") == numbered("a")


async def test_a_rewrite_that_was_cut_short_never_was(tmp_path: Path) -> None:
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a"))
    left = tmp_path / "s.jsonl.tmp"
    left.write_bytes(b'{"seq":2,"ki')
    async with JSONLStore(tmp_path) as store:
        assert not left.exists()
        assert await store.sessions() == ["s"]
        assert await store.load("s") == numbered("a")


async def test_other_files_in_the_folder_are_nobody_s_session(tmp_path: Path) -> None:
    for name in ("notes.txt", "Big.jsonl", "a b.jsonl", "x@y.jsonl", "empty.jsonl"):
        (tmp_path / name).write_text("" if name == "empty.jsonl" else "not ours\nat all\n")
    async with JSONLStore(tmp_path) as store:
        assert await store.sessions() == []
        await store.append("Big", numbered("a"))
        await store.append("empty", numbered("a"))
        assert await store.sessions() == ["Big", "empty"]


async def test_a_file_has_one_object_a_line(tmp_path: Path) -> None:
    async with JSONLStore(tmp_path) as store:
        await store.append("a/B", [Record(1, "message", {"text": "one\ntwo"}), Record(2, "run", {})])
    path = tmp_path / "a%2f%42.jsonl"
    assert (
        path.read_text() == '{"seq":1,"kind":"message","data":{"text":"one\\ntwo"}}\n{"seq":2,"kind":"run","data":{}}\n'
    )
    assert path.stat().st_mode & 0o077 == 0


async def test_a_file_that_is_removed_or_edited_is_noticed(tmp_path: Path) -> None:
    async with JSONLStore(tmp_path) as store:
        await store.append("s", numbered("a", "b"))
        (tmp_path / "s.jsonl").unlink()
        await refuses(store.append, "s", numbered(SECRET, first=3), says="does not go on from 0")
        assert await store.load("s") == []


@each_store
async def test_a_record_of_64_megabytes(make: Make, tmp_path: Path) -> None:
    records = numbered("x" * 2**26, "y")
    async with make(tmp_path) as store:
        await store.append("s", records)
        await store.rewrite("s", [*records, *numbered("z", first=3)])
    async with make(tmp_path) as store:
        assert await store.load("s") == [*records, *numbered("z", first=3)]


# Locks, and folders that cannot be used

LOCKER = """
import sys, trio
from alloy_trio.sessions import JSONLStore

async def main():
    async with JSONLStore(sys.argv[1]):
        print("locked", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
"""


async def test_a_folder_in_use_names_the_process_that_has_it(tmp_path: Path) -> None:
    script = tmp_path / "locker.py"
    script.write_text(LOCKER)
    command = [sys.executable, str(script), str(tmp_path), "--api-key=" + SECRET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        await trio.to_thread.run_sync(process.stdout.readline)
        with pytest.raises(StoreError) as caught:
            await JSONLStore(tmp_path).__aenter__()
        process.kill()
    said = str(caught.value)
    python = Path(sys.executable).name
    assert (
        said
        == f"{tmp_path} is in use by process {process.pid} ({python} {script}): end it, or give this store another folder"
    )
    async with JSONLStore(tmp_path) as store:  # the lock has ended with its process
        assert await store.sessions() == []


async def test_two_stores_of_one_process_share_no_folder(tmp_path: Path) -> None:
    (tmp_path / "store.lock").write_text("1234 some program with a longer name" * 10)
    async with JSONLStore(tmp_path):
        with assert_no_orphans(), pytest.raises(StoreError, match="in use by another store of this process"):
            await JSONLStore(tmp_path).__aenter__()
        assert (tmp_path / "store.lock").read_text() == f"{os.getpid()} {Path(sys.executable).name} {sys.argv[0]}"
        (tmp_path / "store.lock").write_text("")  # as in the moment before its owner writes its name
        with pytest.raises(StoreError, match="in use by another process: end it"):
            await JSONLStore(tmp_path).__aenter__()
    async with JSONLStore(tmp_path):
        pass


async def test_a_folder_that_cannot_be_one_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=f"{path} cannot be used as the folder of a store"):
            await JSONLStore(path).__aenter__()


async def test_a_folder_that_could_not_be_opened_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl.tmp").mkdir()
    with assert_no_orphans(), pytest.raises(StoreError, match="cannot be used as the folder of a store"):
        await JSONLStore(tmp_path).__aenter__()
    (tmp_path / "s.jsonl.tmp").rmdir()
    async with JSONLStore(tmp_path) as store:
        assert await store.sessions() == []


async def test_a_system_without_flock_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(StoreError, match="use SQLiteStore"):
        await JSONLStore(tmp_path).__aenter__()


# SQLite


def test_sqlite_is_imported_when_it_is_used(tmp_path: Path) -> None:
    code = """
import sys, trio, alloy_trio.sessions as sessions
store = sessions.SQLiteStore(sys.argv[1])
assert "sqlite3" not in sys.modules
async def main():
    async with store: await store.append("s", [sessions.Record(1, "k", {})])
trio.run(main)
assert "sqlite3" in sys.modules
"""
    # Coverage, where it measures subprocesses too, has a database of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.db")], check=True, env=environment)


def rows(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(query).fetchall()


async def test_the_database_is_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with SQLiteStore(path) as store:
        await store.append("s", [Record(1, "message", {"text": "a"})])
        assert rows(path, "PRAGMA journal_mode") == [("wal",)]
        assert rows(path, "SELECT session, seq, kind, json_extract(data, '$.text') FROM records") == [
            ("s", 1, "message", "a")
        ]
        assert store._disk._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # type: ignore[attr-defined]
    assert rows(path, "PRAGMA user_version") == [(1,)]
    assert path.stat().st_mode & 0o077 == 0
    assert [*tmp_path.iterdir()] == [path]


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    rows(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"has schema version 2, and this alloy_trio knows 1: .*update alloy_trio"):
        await SQLiteStore(path).__aenter__()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database " * 100, None], ids=["file", "folder"])
async def test_what_is_no_database_says_so(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path}: it cannot be opened: .*; "):
        await SQLiteStore(path).__aenter__()


async def test_somebody_else_s_table_is_left_alone(tmp_path: Path) -> None:
    rows(tmp_path / "x.db", "CREATE TABLE records (mine)")
    with pytest.raises(StoreError, match=r"already exists.*give another path"):
        await SQLiteStore(tmp_path / "x.db").__aenter__()


async def test_a_path_below_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"it cannot be opened: .*; give a path that can be written"):
        await SQLiteStore(tmp_path / "file" / "x.db").__aenter__()


async def test_a_database_that_stays_locked_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    tried: list[str] = []
    async with SQLiteStore(path, busy_timeout=0) as store:
        store._disk._connection.set_trace_callback(tried.append)  # type: ignore[attr-defined]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            said: list[StoreError] = []

            async def write(number: int) -> None:
                try:
                    await store.append(str(number), numbered(SECRET))
                except StoreError as error:
                    said.append(error)

            async with trio.open_nursery() as nursery, hanging(store):
                for number in range(10):
                    nursery.start_soon(write, number)
                await trio.testing.wait_all_tasks_blocked()
            assert len({id(error) for error in said}) == 10  # each caller has an exception of its own
            assert {type(error) for error in said} == {StoreError}
            assert "locked; another process had it for more than busy_timeout=0 seconds: end that" in str(said[0])
            assert tried.count("BEGIN IMMEDIATE") == 1  # each would have waited for busy_timeout
            assert await store.load("s") == []  # readers are not locked out
        await store.append("s", numbered("a"))


async def test_a_database_that_is_locked_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked; another process") as caught:
            await SQLiteStore(path, busy_timeout=0).__aenter__()
        assert type(caught.value) is StoreError


async def test_two_processes_may_use_one_database(tmp_path: Path) -> None:
    """A session that both write is noticed by its numbers."""
    async with SQLiteStore(tmp_path / "x.db") as one, SQLiteStore(tmp_path / "x.db") as other:
        await one.append("s", numbered("a"))
        await other.append("t", numbered("a"))
        await refuses(other.append, "s", numbered(SECRET), says="somebody else writes this session")
        assert await other.load("s") == numbered("a")
        assert await one.sessions() == ["s", "t"]


@pytest.mark.parametrize("data", ["{", "[]", b"\xff", 5], ids=repr)
async def test_a_row_that_cannot_be_read_is_named(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with SQLiteStore(path) as store:
        await store.append("s", numbered("a", "b"))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE records SET data = ? WHERE seq = 2", (data,))
        await refuses(store.load, "s", says="record 2 of session 's' cannot be read: .*mend or delete that row")
        await refuses(store.append, "s", numbered(SECRET, first=2), says="somebody else")


@pytest.mark.parametrize(
    "options", [{"synchronous": "OFF"}, {"busy_timeout": -1}, {"busy_timeout": "5"}, {"busy_timeout": 1e9}]
)
def test_options_that_cannot_be_are_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        SQLiteStore(tmp_path / "x.db", **options)


def test_a_database_in_memory_is_another_store() -> None:
    with pytest.raises(InvalidOption, match="use MemoryStore"):
        SQLiteStore(":memory:")


@each_store
async def test_a_store_stays_where_it_is(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may go to another folder meanwhile, before the store is opened or after."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    store = make(Path("here"))
    monkeypatch.chdir(tmp_path / "there")
    async with store:
        monkeypatch.chdir(tmp_path)
        await store.append("s", numbered("a"))
    async with make(tmp_path / "here") as store:
        assert await store.load("s") == numbered("a")
    assert not [*(tmp_path / "there").iterdir()]


# Processes that are killed

KILLED = """
import os, sys, trio
from pathlib import Path
from alloy_trio.sessions import JSONLStore, Record, SQLiteStore

async def write(store, session):
    log = await store.load(session)
    seq = log[-1].seq if log else 0
    while True:
        seq += 1
        pad = "x" * (seq * 7919 % 5000)
        if seq % 8 == 0:
            await store.rewrite(session, [Record(seq, "snapshot", {"seq": seq, "pad": pad})])
        else:
            await store.append(session, [Record(seq, "message", {"seq": seq, "pad": pad})])
        os.write(1, b"%s %d\\n" % (session.encode(), seq))

async def main(kind, folder):
    make = {"jsonl": lambda: JSONLStore(folder / "sessions"), "sqlite": lambda: SQLiteStore(folder / "sessions.db")}
    async with make[kind]() as store, trio.open_nursery() as nursery:
        for session in ("a", "b", "c"):
            nursery.start_soon(write, store, session)

for line in sys.stdin:  # one process imports, and each line makes another one of it
    if (pid := os.fork()) == 0:
        trio.run(main, sys.argv[1], Path(sys.argv[2]))
    os.write(1, b"pid %d\\n" % pid)
    os.waitpid(pid, 0)
    os.write(1, b"dead 0\\n")
"""


@pytest.mark.parametrize("kind", MAKERS)
async def test_a_process_that_is_killed_loses_nothing_acknowledged(kind: str, tmp_path: Path) -> None:
    """Thirty times, at any moment: every acknowledged record is there, in order, once, and at most one more of each writer."""
    acknowledged = {"a": 0, "b": 0, "c": 0}
    chance = random.Random(kind)
    command = [sys.executable, "-c", KILLED, kind, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(30):
            process.stdin.write("go\n")
            left, pid = chance.randrange(1, 80), 0
            for line in process.stdout:
                word, number = line.split()
                match word:
                    case "pid":
                        pid = int(number)
                    case "dead":
                        break
                    case session:
                        acknowledged[session] = int(number)
                        left -= 1
                if left <= 0 < pid:
                    os.kill(pid, signal.SIGKILL)
                    left = sys.maxsize
            async with MAKERS[kind](tmp_path) as store:
                for session, last in acknowledged.items():
                    log = await store.load(session)
                    check_log(log, last)
                    acknowledged[session] = log[-1].seq if log else 0  # the next process goes on from there
        process.stdin.close()
    assert min(acknowledged.values()) > 60


def check_log(log: Sequence[Record], last: int) -> None:
    seqs = [record.seq for record in log]
    assert last <= (seqs[-1] if seqs else 0) <= last + 1
    assert seqs == [*range(seqs[0], seqs[-1] + 1)] if seqs else last == 0
    for record in log:
        assert record.data == {"seq": record.seq, "pad": "x" * (record.seq * 7919 % 5000)}
    assert not log or log[0].seq == 1 or log[0].kind == "snapshot"
