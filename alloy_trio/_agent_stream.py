"""The stream of a request to an agent: what `EventStream` reads from."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ._desk import part_of
from ._errors import RequestCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._emitter import Sink
    from ._requests import AgentRequest
    from ._result import Result


class RequestSource:
    """A stream's events from a run of an agent's."""

    def __init__(self, ask: Callable[[Sink], AgentRequest]) -> None:
        self._ask = ask
        self._request: AgentRequest | None = None
        self._inside = contextlib.ExitStack()

    def begin(self, sink: Sink) -> None:
        """Ask the agent."""
        self._request = self._ask(sink)
        # The body must not wait for the agent, whose run waits for it.
        self._inside.enter_context(part_of(self._request))

    async def drive(self) -> None:
        """Wait for the answer."""
        assert self._request is not None
        await self._request.wait()

    def outcome(self) -> Result | None:
        """Return the result, once it is there."""
        request = self._request
        return request.result if request is not None and request.done.is_set() else None

    def failure(self) -> Exception | None:
        """Return what is to be raised, once it is over."""
        error = None if self._request is None else self._request.error
        return None if isinstance(error, RequestCancelled) else error  # the stream raises one of its own

    def end(self) -> None:
        """Let the body be a part of the request no more."""
        self._inside.close()
