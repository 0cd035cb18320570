"""A request, as its submitter has it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import msgspec
import trio

from .._errors import AlloyError, RequestCancelled, UnknownRequest
from .._far import error_from_json, prompt_from_json, result_from_json
from .._messages import Message
from ._errors import MORE, RedisUnavailable, WorkerError, unknown
from ._names import UNREADABLE
from ._redis import text

if TYPE_CHECKING:
    from .._result import Result
    from ._queue import RedisQueue

Asked = tuple[bytes, str, str]
"""What is asked: body, digest, and the line that it stands in."""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """
    A request that was given up.

    Attributes:
        request_id: Its id; for one who wants to know what it was, or to submit it again, by another id.
        prompt: What was asked; None if that cannot be read.
        session_id: The conversation that it belongs to.
        tries: How many workers have begun it.
        ts: When it was given up, in seconds since 1970.
    """

    request_id: str
    prompt: str | Message | None
    session_id: str | None
    tries: int
    ts: float


def to_dead_letter(ts: bytes, request_id: bytes, body: bytes, tries: bytes) -> DeadLetter:
    """Read one, whatever is in it."""
    prompt, session_id, count = None, None, 0
    with contextlib.suppress(*UNREADABLE):
        count = int(tries)
        asked = msgspec.json.decode(body)
        prompt, session_id = prompt_from_json(asked["prompt"]), asked["session_id"]
    return DeadLetter(request_id=text(request_id), prompt=prompt, session_id=session_id, tries=count, ts=int(ts) / 1000)


class QueuedRequest:
    """
    A request that some worker answers, made by `RedisQueue.submit`. It goes on whether this is kept or not.

    Attributes:
        agent: Who is asked.
        request_id: Its id: yours, or a random one.
    """

    def __init__(self, queue: RedisQueue, agent: str, request_id: str, asked: Asked | None) -> None:
        self.agent: str = agent
        self.request_id: str = request_id
        self._queue = queue
        self._asked = asked  # None for one that somebody else has submitted
        self._is_sent = False
        self._senders = 0  # tasks that submit it just now
        self._news = trio.Event()
        self._answer: bytes | None = None
        self._trouble: AlloyError | None = None

    async def result(self) -> Result:
        """
        Wait for the result. Being cancelled here only ends the waiting.

        Raises:
            RequestCancelled: The request was cancelled.
            RequestPoisoned: It was given up.
            RedisUnavailable: Redis cannot be reached. The request is not lost by that: ask again.
            UnknownRequest: Its answer is not kept any more.
            AlloyError: What the run raised; `WorkerError` for what is not known here.
        """
        await trio.lowlevel.checkpoint()
        if not self.is_done and self._queue._is_closed:  # noqa: SLF001 - it made this
            raise left()
        while self._answer is None:
            if isinstance(self._trouble, UnknownRequest):  # for good: nothing more is heard of it
                raise self._trouble
            await self._news.wait()
            if not self.is_done and self._trouble is not None:
                raise self._trouble
        answer = _read(self._answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def cancel(self) -> bool:
        """
        Cancel the request. Returns once nothing of it runs, and whether it was cancelled: False if it was over by then.

        Raises:
            RedisUnavailable: Redis cannot be reached.
        """
        await self._queue._cancel(self)  # noqa: SLF001 - it made this
        try:
            await self.result()
        except RequestCancelled:
            return True
        except (RedisUnavailable, UnknownRequest):
            raise
        except Exception:  # noqa: BLE001 - what the run raised: it was over
            return False
        return False

    @property
    def is_done(self) -> bool:
        """Whether there is an answer here."""
        return self._answer is not None

    def _tell(self, answer: bytes | AlloyError) -> None:
        if isinstance(answer, bytes):
            self._answer = answer
        else:
            self._trouble = answer
        self._news.set()
        if self._answer is None:
            self._news = trio.Event()

    def __repr__(self) -> str:
        return f"<QueuedRequest: {self.request_id} to {self.agent}, {'done' if self.is_done else 'open'}>"


def _read(answer: bytes) -> Result | Exception:
    try:
        data = msgspec.json.decode(answer)
        if "error" in data:
            return error_from_json(data["error"], unknown, MORE)
        return result_from_json(data["result"], unknown)
    except UNREADABLE as error:
        return WorkerError(
            f"the answer cannot be read: is the worker of another version? {error!r:.200}", kind=type(error).__name__
        )


def left() -> RedisUnavailable:
    """Return what is said of an answer that comes to a queue that was left."""
    return RedisUnavailable("the queue was left before the answer came here: open another one, and find() it by its id")
