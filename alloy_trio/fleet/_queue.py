"""
The submitter's end: requests go into Redis, answers come back, whatever becomes of machines in between.

    submit ─▶ SUBMIT ─▶ the agent's queue ─▶ a worker ─▶ FINISH: the answer is kept, and its id told on our own stream
    result ◀─ FETCH ◀─ the listener, which reads that stream, and looks for itself every few seconds

A submitter knows what it has asked, until it is answered. If Redis has forgotten a request (restarted from an older state), it
is submitted again under the same id; if Redis has it, that changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from .._desk import as_message
from .._errors import AlloyError, InvalidOption, QueueFull, RequestCancelled, UnknownRequest
from .._far import error_to_json, prompt_to_json
from .._util import digest, new_id
from ._errors import RedisUnavailable
from ._names import PREFIX, URL, address, base_key, check_count, check_id, check_prefix, check_seconds, encode
from ._redis import Link, beside, open_link
from ._request import Asked, DeadLetter, QueuedRequest, left, to_dead_letter
from ._scripts import CANCEL, DEAD, FETCH, STATISTICS, SUBMIT, TELL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from .._messages import Message
    from .._result import Result

LOOK_EVERY: Final = 5.0  # seconds between looks at all that is not answered, should a word have been missed
_AT_ONCE: Final = 50  # answers fetched at once
_PAUSE: Final = 0.5  # seconds before Redis is asked again that was asked for long enough, or refuses at once
_GRACE: Final = 5.0  # seconds that a cancelled `chat` waits for the worker to end

logger = logging.getLogger("alloy_trio.fleet")


@attrs.frozen(kw_only=True)
class QueueStatistics:
    """
    How the queue of an agent stands.

    Attributes:
        pending: Requests that are not over, those that run included.
        running: Those that a worker has.
        submitted: Requests, so far.
        done: Those that have a result.
        failed: Those whose run has raised.
        cancelled: Those that were cancelled.
        dead: Those that were given up.
        repeated: Runs that were begun again, as a worker had died or lost its hold.
    """

    pending: int
    running: int
    submitted: int
    done: int
    failed: int
    cancelled: int
    dead: int
    repeated: int


class RedisQueue:
    """
    Asks agents that live in workers, on this machine or others; made by `open_queue`.

    A request is run at least once, and answered once: one whose worker has died is run again by another, one whose answer is
    there is not. Its id is the key to that, for as long as answers are kept.
    """

    def __init__(self, link: Link, prefix: str, max_pending: int, keep: float) -> None:
        self._link = link
        self._prefix = prefix
        self._most = max_pending
        self._keep = keep
        self._name = new_id()
        self._open: dict[tuple[str, str], QueuedRequest] = {}  # by base and id
        self._since: dict[str, str] = {}  # our streams, and how far they are read
        self._reading = trio.CancelScope()
        self._looked = -math.inf
        self._is_closed = False

    async def submit(
        self,
        agent: str,
        prompt: str | Message,
        *,
        request_id: str | None = None,
        session_id: str | None = None,
        order: str | None = None,
    ) -> QueuedRequest:
        """
        Ask an agent, and go on once Redis has it.

        Args:
            agent: The name by which workers have it.
            prompt: What to ask.
            request_id: An id of yours: submitting it again, here or elsewhere, asks nothing new, and has the same answer.
            session_id: The conversation to go on with; without one, each request has its own.
            order: Requests of one order are run one after the other, as they were submitted. By default that of the session.

        Raises:
            QueueFull: As many requests are open as `max_pending` allows.
            InvalidOption: Something about the arguments, or the id was used for something else.
            RedisUnavailable: Redis does not take it. It may have it all the same: submit it again with the same id.
        """
        as_message(prompt)
        base = base_key(self._prefix, agent)
        request_id = new_id() if request_id is None else check_id("request_id", request_id)
        line = "" if order is None else "o " + check_id("order", order)
        if session_id is not None:
            check_id("session_id", session_id)
            line = line or f"s {session_id}"
        body = encode({"prompt": prompt_to_json(prompt), "session_id": session_id})
        asked = (body, digest(line.encode() + b"\n" + body), line)
        request = self._open.get((base, request_id)) or QueuedRequest(self, agent, request_id, asked)
        if request._asked not in {None, asked}:  # noqa: SLF001 - ours; None where somebody has looked for it by its id
            raise _used(request_id)
        await self._send(base, request, asked)
        return request

    async def chat(
        self,
        agent: str,
        prompt: str | Message,
        *,
        request_id: str | None = None,
        session_id: str | None = None,
        order: str | None = None,
    ) -> Result:
        """
        Ask an agent, and wait for the result. A cancel of the caller is one of the request, wherever it runs.

        It leaves once nothing of it runs, or after 5 seconds.

        Raises:
            AlloyError: As `submit` and `QueuedRequest.result`.
        """
        request_id = new_id() if request_id is None else request_id
        is_cancelled = True
        try:
            request = await self.submit(agent, prompt, request_id=request_id, session_id=session_id, order=order)
            result = await request.result()
            is_cancelled = False
        except Exception:
            is_cancelled = False
            raise
        finally:
            if is_cancelled:
                with trio.move_on_after(_GRACE, shield=True), contextlib.suppress(AlloyError):
                    await QueuedRequest.cancel(self._known(agent, request_id))
        return result

    async def find(self, agent: str, request_id: str) -> QueuedRequest:
        """
        Return a request that somebody has submitted, here or elsewhere: to wait for its result, or to cancel it.

        Raises:
            UnknownRequest: There is none of that id, or not any more.
            RedisUnavailable: Redis cannot be reached.
        """
        request = self._known(agent, request_id)
        base = base_key(self._prefix, agent)
        self._listen_to(base)
        await self._link.run(TELL, base, request_id, self._name)
        await self._look(base, [request_id])
        if isinstance(request._trouble, UnknownRequest):  # noqa: SLF001 - ours
            raise request._trouble  # noqa: SLF001 - ours
        return request

    async def statistics(self, agent: str) -> QueueStatistics:
        """
        Return how the queue of an agent stands.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        said = await self._link.run(STATISTICS, base_key(self._prefix, agent))
        return QueueStatistics(**dict(zip([each.name for each in attrs.fields(QueueStatistics)], said, strict=True)))

    async def dead_letters(self, agent: str, *, last: int = 100) -> list[DeadLetter]:
        """
        Return the last requests to an agent that were given up, the newest first. A thousand are kept.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        said = await self._link.run(DEAD, base_key(self._prefix, agent), check_count("last", last))
        return [to_dead_letter(*said[at : at + 4]) for at in range(0, len(said), 4)]

    # What submitters have

    def _known(self, agent: str, request_id: str) -> QueuedRequest:
        base = base_key(self._prefix, agent)
        request = self._open.get((base, check_id("request_id", request_id)))
        if request is None:
            request = self._open[base, request_id] = QueuedRequest(self, agent, request_id, None)
            request._is_sent = True  # noqa: SLF001 - ours, as in all that follows
        return request

    async def _send(self, base: str, request: QueuedRequest, asked: Asked) -> None:
        """Submit, for the first time or again. Raises QueueFull, InvalidOption, RedisUnavailable."""
        self._open[base, request.request_id] = request  # before, so that the answer finds it
        self._listen_to(base)
        request._senders += 1  # noqa: SLF001
        try:
            said = await self._submit(base, request.request_id, asked)
            if said not in {"full", "other"}:
                request._is_sent, request._asked = True, asked  # noqa: SLF001
        finally:
            request._senders -= 1  # noqa: SLF001
            if not request._is_sent and not request._senders:  # noqa: SLF001
                self._open.pop((base, request.request_id), None)
        if said == "full":
            raise QueueFull(
                f"{self._most} requests to {request.agent} are open, as max_pending={self._most} allows: submit it later"
            )
        if said == "other":
            raise _used(request.request_id)
        if said not in {"queued", "waiting", "running"}:
            await self._look(base, [request.request_id])

    async def _submit(self, base: str, request_id: str, asked: Asked) -> str:
        body, what, order = asked
        keep = max(1, round(self._keep))
        said = await self._link.run(SUBMIT, base, request_id, body, what, self._name, order, keep, self._most)
        return str(said, "ascii")

    async def _cancel(self, request: QueuedRequest) -> None:
        base = base_key(self._prefix, request.agent)
        if request.is_done:
            return
        answer = encode({"error": error_to_json(RequestCancelled("the request was cancelled before its turn came"))})
        said = await self._link.run(CANCEL, base, request.request_id, answer)
        request._asked = None  # noqa: SLF001 - should Redis forget it, it is not to be submitted again
        if said != b"running":
            await self._look(base, [request.request_id])

    # The listener

    def _listen_to(self, base: str) -> None:
        key = f"{base}:to:{self._name}"
        if key not in self._since:
            self._since[key] = "0-0"
            self._reading.cancel()

    async def listen(self) -> None:
        """Hand out answers, until cancelled."""
        while True:
            try:
                await self._listen_once()
            except RedisUnavailable as error:
                for request in list(self._open.values()):
                    request._tell(error)  # noqa: SLF001
            except Exception:
                logger.exception("an answer could not be handed out; it is tried again")
            else:
                continue
            self._looked = -math.inf
            await trio.sleep(_PAUSE)

    def close(self) -> None:
        """Tell those who still wait that no answer comes here any more."""
        self._is_closed = True
        for request in self._open.values():
            request._tell(left())  # noqa: SLF001

    async def _listen_once(self) -> None:
        entries = []
        with trio.CancelScope() as self._reading:
            if self._since:
                entries = await self._link.read(self._since.copy(), LOOK_EVERY / 2)
            else:
                await trio.sleep(LOOK_EVERY / 2)
        told: dict[str, list[str]] = {}
        for key, entry, request_id in entries:
            self._since[key] = entry
            told.setdefault(key.rpartition(":to:")[0], []).append(request_id)
        if trio.current_time() - self._looked > LOOK_EVERY:
            for base, request_id in self._open:
                told.setdefault(base, []).append(request_id)
            self._looked = trio.current_time()
        for base, ids in told.items():
            await self._look(base, ids)

    async def _look(self, base: str, ids: Iterable[str]) -> None:
        """Fetch answers. Raises RedisUnavailable."""
        wanted = list(dict.fromkeys(ids))
        while wanted:
            some = [each for each in wanted[:_AT_ONCE] if (base, each) in self._open]
            were_sent = {each for each in some if self._open[base, each]._is_sent}  # noqa: SLF001
            said: list[Any] = await self._link.run(FETCH, base, *some)
            found = list(zip(some, said[::3], said[1::3], said[2::3], strict=True))
            wanted[:_AT_ONCE] = [request_id for request_id, state, _, _ in found if state == b"later"]
            for request_id, state, *rest in found:
                await self._found(base, request_id, *rest, is_gone=not state and request_id in were_sent)

    async def _found(self, base: str, request_id: str, answer: bytes, what: bytes, *, is_gone: bool) -> None:
        request = self._open.get((base, request_id))
        if request is None:
            return
        is_ours = request._asked is None or what in {b"", request._asked[1].encode()}  # noqa: SLF001
        if not is_ours and request._is_sent:  # noqa: SLF001
            error = UnknownRequest(f"the answer to {request_id!r:.100} is not kept any more: its id was used again")
            del self._open[base, request_id]
            request._tell(error)  # noqa: SLF001
        elif answer and is_ours:
            del self._open[base, request_id]
            request._tell(answer)  # noqa: SLF001
        elif is_gone and request._asked is not None:  # noqa: SLF001
            logger.warning("Redis has forgotten request %s: it is submitted again", request_id)
            await self._submit(base, request_id, request._asked)  # noqa: SLF001
        elif is_gone:
            del self._open[base, request_id]
            request._tell(UnknownRequest(f"there is no request {request_id!r:.100}, or no more"))  # noqa: SLF001


def _used(request_id: str) -> InvalidOption:
    return InvalidOption(f"request id {request_id!r:.100} was used for another request: take another")


@contextlib.asynccontextmanager
async def open_queue(
    url: str = URL, *, prefix: str = PREFIX, max_pending: int = 10_000, keep: float = 3600.0, patience: float = 10.0
) -> AsyncIterator[RedisQueue]:
    """
    Open the way to agents that live in workers.

        async with open_queue("redis://localhost") as queue:
            result = await queue.chat("researcher", "What is new?")

    Leaving the body cancels nothing: what was submitted is answered, and found again by its id.

    Args:
        url: Where Redis is: `redis://`, `rediss://` or `unix://`.
        prefix: What all keys begin with; workers have the same.
        max_pending: How many requests to an agent may be open.
        keep: Seconds for which an answer is kept, and its id known.
        patience: Seconds after which a Redis that cannot be used is an error; after 5 at least, where it just does not answer.

    Raises:
        InvalidOption: Something about the arguments, coredis is not installed, or Redis may throw away what is queued.
        RedisUnavailable: Redis cannot be reached.
    """
    url = address(url)
    check_prefix(prefix)
    check_count("max_pending", max_pending)
    async with open_link(url, check_seconds("patience", patience)) as link:
        queue = RedisQueue(link, prefix, max_pending, check_seconds("keep", keep))
        try:
            async with beside(queue.listen):
                yield queue
        finally:
            queue.close()
