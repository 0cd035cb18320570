"""A request that a worker has begun: its hold on it, how it is run, and what its end says of the worker."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

import attrs
import trio

from .._requests import AgentRequest
from ._errors import RequestPoisoned

if TYPE_CHECKING:
    from .._agent import Agent
    from .._messages import Message
    from .._result import Result


@attrs.define(eq=False)
class Job:
    """A request that is ours."""

    base: str
    agent: str
    id: str
    fence: int
    body: bytes
    scope: trio.CancelScope
    session_id: str | None = None
    request: AgentRequest | None = None
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Somebody wants it cancelled: the answer is what was done until then."""
        self.is_cancelled = True
        if self.request is None:  # it waits for its turn, or for its session
            self.scope.cancel()
        else:
            self.request.cancel()


async def chat(job: Job, agent: Agent, prompt: str | Message) -> Result:
    """Do what `agent.chat` does, without our deadline, which is put off while the run is under way."""
    core = agent._core  # noqa: SLF001 - a cancel from afar has to reach the request without waiting for its end
    job.request = core.submit(prompt, job.id, context=contextvars.copy_context())
    return await job.request.wait()


def is_deadly(error: BaseException | None) -> bool:
    """Whether it ends a worker by itself: a SystemExit of a tool, and not a cancel of all, or Ctrl-C."""
    if isinstance(error, BaseExceptionGroup):
        return any(is_deadly(each) for each in error.exceptions)
    return error is not None and not isinstance(error, trio.Cancelled | KeyboardInterrupt)


def poisoned(tries: int) -> RequestPoisoned:
    """Return what is said of a request that so many workers have died of."""
    workers = "the one worker that has" if tries == 1 else f"{tries} workers have"
    return RequestPoisoned(
        f"the request was given up: {workers} begun it died before its end; see what it does to them before you submit it again"
    )
