"""
What a writer's thread does: jobs, one after the other, on whatever keeps the logs.

All of it blocks, and none of it knows Trio, but for the event that the writer's task sets when a job is done.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import attrs
import trio

from .._errors import StoreError
from ._rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._record import Record

Verb: TypeAlias = Literal["load", "append", "rewrite", "sessions", "delete"]


@attrs.define(eq=False)
class Job:
    """Something to do for a caller who waits, unless it has gone. The thread writes `answer` or `failure`, once."""

    verb: Verb
    session: str = ""
    rows: list[Row] = attrs.field(factory=list)
    answer: Any = None
    failure: StoreError | None = None
    is_answered: bool = False
    is_queued: bool = False
    done: trio.Event = attrs.field(factory=trio.Event)

    def succeed(self, answer: object = None) -> None:
        """Say that it is done."""
        self.answer, self.is_answered = answer, True

    def fail(self, failure: StoreError) -> None:
        """Say that it is not; what has been said already stands."""
        if not self.is_answered:
            self.failure, self.is_answered = failure, True


class Disk(Protocol):
    """Where a store keeps its logs: blocking, called by one thread at a time. What it raises fails the jobs in question."""

    name: str

    def open(self) -> None:
        """Be ready. Raises `StoreError`."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...

    def append(self, jobs: Sequence[Job]) -> None:
        """Do these appends, in order and made durable together, and answer each that has succeeded or failed by itself."""
        ...

    def load(self, session: str) -> Sequence[Record]:
        """Return the records of a session."""
        ...

    def rewrite(self, session: str, rows: Sequence[Row]) -> None:
        """Replace the records of a session; there is at least one row."""
        ...

    def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions."""
        ...

    def delete(self, session: str) -> None:
        """Forget a session."""
        ...


class Unavailable(StoreError):
    """Nothing can be written just now, by nobody, and it took a while to find out. Users see the plain `StoreError`."""


class Access:
    """
    A disk, used by one thread at a time and only while it is open.

    A thread that hangs in the operating system may outlive the store that it worked for: nobody opens or closes the disk
    before it has let go of it, and it begins nothing more once the disk has been closed.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._in_use = threading.Lock()
        self._is_open = False

    def open(self) -> None:
        """Open the disk. Raises `StoreError`, also if it is still open."""
        if not self._in_use.acquire(blocking=False):
            raise self._not_free()
        try:
            if self._is_open:
                raise self._not_free()
            self._disk.open()
            self._is_open = True
        except Unavailable as error:
            raise StoreError(str(error)) from error.__cause__
        finally:
            self._in_use.release()

    def close(self) -> None:
        """Wait until nobody uses the disk, and close it. Raises `StoreError`."""
        with self._in_use:
            self._is_open = False
            self._disk.close()

    def do(self, jobs: Sequence[Job]) -> None:
        """Do jobs in order. Appends that follow one another are one group. Answers them all, and raises nothing."""
        with self._in_use:
            for is_append, group in itertools.groupby(jobs, key=lambda job: job.verb == "append"):
                if not self._is_open:
                    return
                if is_append:
                    attempt(list(group), self._disk, self._disk.append)
                else:
                    for job in group:
                        attempt([job], self._disk, self._do_one)

    def _do_one(self, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        match job.verb:
            case "load":
                job.succeed(self._disk.load(job.session))
            case "sessions":
                job.succeed(self._disk.sessions())
            case "rewrite":
                self._disk.rewrite(job.session, job.rows)
                job.succeed()
            case _:
                self._disk.delete(job.session)
                job.succeed()

    def _not_free(self) -> StoreError:
        return StoreError(
            f"{self._disk.name}: this store was left while a write hung, and that is not over: look at the disk, or try again later"
        )


def attempt(jobs: Sequence[Job], disk: Disk, fn: Callable[[Sequence[Job]], None]) -> None:
    """
    Do jobs. If that raises, nothing of those without an answer has been done: each is tried by itself, and may fail.

    So one that is too big for the disk fails, and not all that were to be done with it.
    """
    try:
        fn(jobs)
    except Exception as error:  # noqa: BLE001 - it goes on as a value, to each caller: the store lives
        if len(jobs) == 1 or isinstance(error, Unavailable):
            fail_all(jobs, disk, error)
            return
        for job in jobs:
            if not job.is_answered:
                attempt([job], disk, fn)


def fail_all(jobs: Sequence[Job], disk: Disk, error: Exception) -> None:
    """Say to all jobs without an answer that they failed."""
    for job in jobs:
        job.fail(error if isinstance(error, StoreError) else _to_store_error(disk, job, error))


def _to_store_error(disk: Disk, job: Job, error: Exception) -> StoreError:
    """Say what failed. Of an error that nobody foresaw only the kind: its text might show what is in a record."""
    said = error.strerror if isinstance(error, OSError) else None
    what = f"{job.verb} of session {job.session!r}" if job.session else "reading the list of sessions"
    failure = StoreError(
        f"{disk.name}: {what} failed ({said or type(error).__name__}); look at the disk, then do it again"
    )
    failure.__cause__ = error
    return failure
