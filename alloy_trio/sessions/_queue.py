"""
One writer for each store: a queue that callers put jobs into, and a task that does them, many at a time, in a thread.

    caller                           writer task                     its thread
    job into the bounded queue ────▶ takes all that is queued ────▶  does them in order; appends that follow one
    waits for the job, and for       ◀──── wakes the callers ──────  another share one fsync, or one transaction
    write_timeout at most

A caller that is cancelled, or waits for too long, leaves its job where it is: it will be done whole, or not at all. So a log is
never torn by a cancel, and later jobs find whatever came of earlier ones. Reads go through the same queue: whoever loads a
session sees all that was queued before, also by an agent that has crashed meanwhile.

The task is shielded from the scopes around the store: agents that are being cancelled still write what they have done. It ends
when the store is left, after the queue has been drained. That wait is bounded, too. A thread that hangs in the operating system
cannot be cancelled: it is left behind, and whatever is open is closed by another thread, once it is free.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Self

import trio

from .._background import Background
from .._errors import InvalidOption, StoreError
from ._disk import Access, Job, fail_all
from ._rows import check_id, to_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ._disk import Disk
    from ._record import Record

_QUEUED = 1024  # jobs that may wait; who comes later waits for room
_BATCH = 256  # jobs that are done together, and acknowledged together


class QueuedStore:
    """The part that stores on disk have in common. Not to be used by itself."""

    def __init__(self, disk: Disk, write_timeout: float) -> None:
        if not isinstance(write_timeout, int | float) or not write_timeout > 0:  # type: ignore[redundant-expr] # callers err
            raise InvalidOption(
                f"write_timeout={write_timeout!r:.100} has to be seconds, more than 0; math.inf for no bound"
            )
        self._disk = disk
        self._timeout = write_timeout
        self._access = Access(disk)
        self._writer: _Writer | None = None
        self._is_entered = False

    async def load(self, session_id: str) -> Sequence[Record]:
        """
        Return the records of a session in the order of `seq`; none if it is not known.

        It waits for all that was queued before, without a bound: put one around it, `trio.fail_after`, if need be.

        Raises:
            StoreError: It cannot be read; or the store is not open.
        """
        check_id(session_id)
        records: Sequence[Record] = await self._do(Job("load", session_id), math.inf)
        return records

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        """
        Add records, all of them or none. When it returns they are acknowledged.

        A caller that is cancelled stops waiting; the write goes on.

        Raises:
            StoreError: It failed, and they are not stored; it took longer than `write_timeout`, and they may still be;
                somebody else writes this session; or the store is not open.
        """
        check_id(session_id)
        await self._do(Job("append", session_id, to_rows(session_id, records)), self._timeout)

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """
        Put records in the place of all earlier ones, at once; without any, do the same as `delete`.

        Raises:
            StoreError: As `append`; then the earlier ones are still there.
        """
        check_id(session_id)
        rows = to_rows(session_id, records)
        await self._do(Job("rewrite" if rows else "delete", session_id, rows), self._timeout)

    async def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions, sorted. Raises `StoreError`."""
        return sorted(await self._do(Job("sessions"), math.inf))

    async def delete(self, session_id: str) -> None:
        """Forget a session; one that is not known is no error. Raises `StoreError` as `append` does."""
        check_id(session_id)
        await self._do(Job("delete", session_id), self._timeout)

    async def _do(self, job: Job, seconds: float) -> Any:
        if self._writer is None:
            raise self._not_open()
        with trio.move_on_after(seconds):
            try:
                await self._writer.put(job)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                raise self._not_open() from None
            await job.done.wait()
        if not job.is_answered:
            raise self._not_acknowledged(job)
        if job.failure is not None:
            # One failure may be that of many callers, and each adds its own traceback.
            raise StoreError(str(job.failure)) from job.failure.__cause__
        return job.answer

    def _not_open(self) -> StoreError:
        kind = type(self).__name__
        return StoreError(f"{self._disk.name}: the store is not open; use it inside `async with {kind}(…) as store:`")

    def _not_acknowledged(self, job: Job) -> StoreError:
        if job.verb in {"load", "sessions"}:
            return StoreError(f"{self._disk.name}: the store was left before it could be read; open it again")
        what = "it may still be written" if job.is_queued else "it is not written, for the queue was full all that time"
        return StoreError(
            f"{self._disk.name}: a write to session {job.session!r} was not acknowledged within {self._timeout:g} seconds: {what}; "
            "look at the disk, or give a longer write_timeout"
        )

    # Opening and leaving

    async def __aenter__(self) -> Self:
        if self._is_entered:
            raise StoreError(f"{self._disk.name}: this store is open already; share it, or make another one elsewhere")
        self._is_entered = True
        is_open = False
        try:
            await trio.to_thread.run_sync(self._access.open)
            is_open = True
        finally:
            self._is_entered = is_open
        self._writer = _Writer(self._disk, self._access)
        await self._writer.background.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        try:
            failure = await self._leave(writer)
        finally:
            self._is_entered = False
            await writer.background.__aexit__(kind, error, traceback)
        if failure is not None and error is None:
            raise failure
        if failure is not None and error is not None:
            error.add_note(str(failure))

    async def _leave(self, writer: _Writer) -> StoreError | None:
        is_done = await writer.finish(self._timeout)
        if not is_done:
            # Its thread still has the disk. It is closed once that thread lets go of it.
            trio.lowlevel.start_thread_soon(self._access.close, lambda _: None)
        else:
            with trio.move_on_after(self._timeout, shield=True):
                try:
                    await trio.to_thread.run_sync(self._access.close, abandon_on_cancel=True)
                except StoreError as failure:
                    return failure
                return None
        return StoreError(
            f"{self._disk.name}: the store was left before all was done, for that took longer than {self._timeout:g} seconds: "
            "the last writes may be missing; look at the disk, or give a longer write_timeout"
        )


class _Writer:
    """The queue, and the task that empties it."""

    def __init__(self, disk: Disk, access: Access) -> None:
        self.background = Background(self._work)
        self._disk = disk
        self._access = access
        self._send, self._receive = trio.open_memory_channel[Job](_QUEUED)
        self._scope = trio.CancelScope(shield=True)
        self._has_ended = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    async def put(self, job: Job) -> None:
        await self._send.send(job)
        job.is_queued = True

    async def finish(self, seconds: float) -> bool:
        """Take nothing more, and wait for the end of what is queued. Returns whether it has come to it."""
        self._send.close()
        with trio.move_on_after(seconds, shield=True):
            await self._has_ended.wait()
            return True
        self._scope.cancel()
        return False

    async def _work(self) -> None:
        try:
            with self._scope:
                async for job in self._receive:
                    await self._do([job, *self._queued(_BATCH - 1)])
        finally:
            for job in self._queued(_QUEUED):
                job.done.set()  # without an answer
            self._receive.close()
            self._has_ended.set()

    def _queued(self, most: int) -> list[Job]:
        jobs: list[Job] = []
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while len(jobs) < most:
                jobs.append(self._receive.receive_nowait())
        return jobs

    async def _do(self, jobs: Sequence[Job]) -> None:
        try:
            await trio.to_thread.run_sync(self._access.do, jobs, abandon_on_cancel=True, limiter=self._limiter)
        except RuntimeError as error:  # the system has no more threads
            fail_all(jobs, self._disk, error)
        finally:
            for job in jobs:
                job.done.set()
