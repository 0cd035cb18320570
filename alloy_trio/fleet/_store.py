"""
Conversations in Redis, for whichever machine goes on with them; and leases, so that one at a time does.

    PREFIX:s:{DIGEST}:log:ID     hash: number of a record → its kind and data
    PREFIX:s:{DIGEST}:head:ID    hash: `last`, the number of the last record, and `version`, another one after each write
    PREFIX:s:{DIGEST}:lease:ID   text: the token of who has the session; gone when the lease has run out

What may be written is decided here, by the rules that all stores have (`sessions/_rows`), from what was read; the script that
writes sees whether it is still so, by the version, and else this is done again. The same script looks at the lease: whoever had
one and has lost it cannot write any more, however late that comes to its ears.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

import trio

from .._background import Background
from .._errors import AlloyError, StoreError
from .._util import digest, new_id
from ..sessions._rows import Row, check_id, check_rewrite, to_append, to_record, to_rows
from ._errors import LeaseLost
from ._names import PREFIX, URL, address, check_prefix, check_seconds
from ._redis import Link, open_link, text
from ._scripts import LEASE, LOAD, PEEK, UNLEASE, WRITE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from coredis import Redis

    from ..sessions._record import Record
    from ._scripts import Script

logger = logging.getLogger("alloy_trio.fleet")


class _Sessions:
    """What a store does, with or without a lease."""

    def __init__(self, prefix: str, keep: int, token: str = "", waits: float | None = None) -> None:
        self._prefix = prefix
        self._keep = keep  # seconds; 0 for ever
        self._token = token
        self._waits = waits  # seconds of patience, if they are not those of the link
        self._link: Link | None = None
        self._turns: dict[str, trio.Lock] = {}  # those that somebody has, or waits for

    async def load(self, session_id: str) -> Sequence[Record]:
        """Return the records of a session; none if it is not known. Raises `StoreError`."""
        check_id(session_id)
        async with self._turn(session_id):
            said: list[bytes] = await self._run(LOAD, session_id)
        with _readable(session_id):
            records = [to_record(_row(int(seq), value)) for seq, value in zip(said[::2], said[1::2], strict=True)]
        return sorted(records, key=lambda record: record.seq)

    async def append(self, session_id: str, records: Sequence[Record]) -> None:
        """Add records. Raises `StoreError`; `LeaseLost`, where this is a lease, and it is lost."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._turn(session_id):
            await self._write(session_id, rows, "append")

    async def rewrite(self, session_id: str, records: Sequence[Record]) -> None:
        """Put records in the place of all earlier ones. Raises as `append`."""
        check_id(session_id)
        rows = to_rows(session_id, records)
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._turn(session_id):
            await self._write(session_id, rows, "rewrite")

    async def sessions(self) -> Sequence[str]:
        """Return the ids of all sessions, sorted. It looks at every key of the database: not for each request."""
        found, cursor = set[bytes](), 0
        start = f"{self._prefix}:s:{{"

        async def scan(client: Redis[bytes], at: int) -> tuple[int, Sequence[bytes]]:
            return await client.scan(at, match=f"{start}*}}:log:*", count=1000)

        while True:
            cursor, keys = await self._try(lambda link, at=cursor: link.command(lambda client: scan(client, at)))
            found.update(keys)
            if not cursor:
                break
        skip = len(start) + len(digest(b"")) + len("}:log:")
        return sorted(text(key[skip:]) for key in found)

    async def delete(self, session_id: str) -> None:
        """Forget a session. Raises as `append`."""
        await self.rewrite(session_id, [])

    async def _write(self, session_id: str, rows: Sequence[Row], verb: str) -> None:
        while True:
            last, version, *values = await self._run(PEEK, session_id, *[row.seq for row in rows])
            stored = {row.seq: value for row, value in zip(rows, values, strict=True) if value}

            def find(seq: int, stored: dict[int, bytes] = stored) -> Row | None:
                return _row(seq, stored[seq]) if seq in stored else None

            with _readable(session_id):
                if verb == "append":
                    rows = to_append(session_id, rows, int(last), find)
                    if not rows:
                        return
                else:
                    check_rewrite(session_id, rows, int(last), find)
            args = [each for row in rows for each in (row.seq, _value(row))]
            said = await self._run(WRITE, session_id, self._token, version, new_id(), verb, self._keep, *args)
            if said == b"ok":
                return
            if said == b"leased":
                raise StoreError(f"session {session_id!r} is leased: another worker has it just now")
            if said == b"lost":
                raise LeaseLost(f"session {session_id!r}: the lease is lost, and nothing was written")

    @contextlib.asynccontextmanager
    async def _turn(self, session_id: str) -> AsyncIterator[None]:
        """Let what is asked of a session be done in the order in which it was asked."""
        lock = self._turns.setdefault(session_id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(session_id, None)

    async def _run(self, script: Script, session_id: str, *args: str | int | bytes) -> Any:
        tag = f"{self._prefix}:s:{{{digest(session_id.encode())}}}:"
        return await self._try(lambda link: link.run(script, tag, session_id, *args, patience=self._waits))

    async def _try(self, what: Any) -> Any:
        if self._link is None:
            raise StoreError("this store is not open: async with RedisStore(…) as store")
        try:
            return await what(self._link)
        except StoreError:
            raise
        except AlloyError as error:
            raise StoreError(str(error)) from error


class SessionLease(_Sessions):
    """
    A session that is ours for a while: a store that writes it only as long as that is so. `RedisStore.lease` makes it.

    Give it to the agent that goes on with the session: `open_agent(…, session_store=lease, session_id=lease.session_id)`.

    Attributes:
        session_id: The session.
    """

    def __init__(self, prefix: str, keep: int, link: Link, session_id: str, waits: float | None) -> None:
        super().__init__(prefix, keep, new_id(), waits)
        self._link = link
        self.session_id: str = session_id

    async def _take(self, seconds: float) -> int:
        """Take the lease, or have it for longer. Returns 0, or for how many milliseconds another one still has it."""
        said: int = await self._run(LEASE, self.session_id, self._token, round(seconds * 1000))
        return said

    async def _give_back(self) -> None:
        await self._run(UNLEASE, self.session_id, self._token)

    @contextlib.asynccontextmanager
    async def _hold(self, seconds: float) -> AsyncIterator[Self]:
        """Wait for the lease, and have it while the body runs. Raises LeaseLost, StoreError."""
        try:
            while True:
                began = trio.current_time()
                wait = await self._take(seconds)
                if not wait:
                    break
                await trio.sleep(min(wait / 1000 + 0.01, 0.5))
            with trio.CancelScope(deadline=began + seconds) as scope:
                async with Background(lambda: self._renew(scope, seconds)):
                    yield self
            if scope.cancelled_caught:
                raise LeaseLost(f"session {self.session_id!r}: the lease was lost, and what had it was cancelled")
        finally:
            with trio.move_on_after(1.0, shield=True), contextlib.suppress(StoreError):
                await self._give_back()

    async def _renew(self, scope: trio.CancelScope, seconds: float) -> None:
        while True:
            await trio.sleep(seconds / 3)
            began = trio.current_time()
            try:
                if await self._take(seconds):
                    scope.cancel()
                    return
            except StoreError as error:  # perhaps the next time; the scope has a deadline
                logger.warning("the lease of session %s was not renewed: %s", self.session_id, error)
            else:
                scope.deadline = began + seconds


class RedisStore(_Sessions):
    """
    Keeps sessions in Redis: `async with RedisStore("redis://localhost") as store`. Any machine may go on with any session.

    They are as durable as Redis is told to make them: `appendfsync always` makes each write outlive a crash of its machine.
    """

    def __init__(
        self, url: str = URL, *, prefix: str = PREFIX, keep: float | None = None, patience: float = 10.0
    ) -> None:
        """
        Say where it is.

        Args:
            url: Where Redis is: `redis://`, `rediss://` or `unix://`.
            prefix: What all keys begin with.
            keep: Seconds for which a session is kept that nobody writes; None for ever.
            patience: Seconds after which a Redis that cannot be used is a `StoreError`.

        Raises:
            InvalidOption: Something about the arguments.
        """
        super().__init__(check_prefix(prefix), to_keep("keep", keep))
        self._url = address(url)
        self._patience = check_seconds("patience", patience)
        self._opened: AbstractAsyncContextManager[Link] | None = None

    @classmethod
    def _over(cls, link: Link, prefix: str, keep: int, waits: float) -> Self:
        """Make one of a way to Redis that is open, and stays so."""
        store = cls(prefix=prefix)
        store._link, store._keep, store._waits = link, keep, waits
        return store

    def lease(self, session_id: str, *, seconds: float = 30.0) -> AbstractAsyncContextManager[SessionLease]:
        """
        Have a session for oneself while the body runs; whoever else wants it waits.

        It is renewed as long as the body runs. When it is lost (Redis was away for too long, or this process was), the body is
        cancelled and `LeaseLost` raised. Until it is given back, nobody else can write the session, and afterwards we cannot.

        Args:
            session_id: The session.
            seconds: How long it lasts if we die.

        Raises:
            LeaseLost: See above.
            StoreError: Redis cannot be reached.
            InvalidOption: Something about the arguments.
        """
        check_id(session_id)
        if self._link is None:
            raise StoreError("this store is not open: async with RedisStore(…) as store")
        lease = SessionLease(self._prefix, self._keep, self._link, session_id, self._waits)
        return lease._hold(check_seconds("seconds", seconds, 0.1))  # noqa: SLF001 - ours

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise StoreError("this store is open already")
        self._opened = open_link(self._url, self._patience)
        is_open = False
        try:
            self._link = await self._opened.__aenter__()
            is_open = True
        finally:
            if not is_open:
                self._opened = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        opened, self._opened, self._link = self._opened, None, None
        assert opened is not None
        await opened.__aexit__(kind, error, traceback)


def to_keep(what: str, seconds: float | None) -> int:
    """Return for how many seconds something is kept, 0 for ever. Raises InvalidOption."""
    return 0 if seconds is None else max(1, round(check_seconds(what, seconds)))


@contextlib.contextmanager
def _readable(session_id: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise StoreError(f"session {session_id!r} cannot be read: {error}; nothing is changed") from error


def _value(row: Row) -> bytes:
    kind = row.kind.encode()
    return b"%d:%s%s" % (len(kind), kind, row.data)


def _row(seq: int, value: bytes) -> Row:
    length, _, rest = value.partition(b":")
    kind = rest[: int(length)]
    return Row(seq, kind.decode(), rest[len(kind) :])
