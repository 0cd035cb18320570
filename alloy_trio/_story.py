"""What the program's instruments are told of a run and its turns. Without an instrument it is a few empty calls a turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from ._errors import Halted, ProviderError, RunTimeout
from ._instruments import is_on, tell
from ._telemetry import RunFailed, RunStarted, RunStopped, TurnFailed, TurnStarted, TurnStopped
from ._usage import NO_USAGE

if TYPE_CHECKING:
    from ._result import Status
    from ._state import Run
    from .providers._base import Response


_ENDINGS = (ProviderError, RunTimeout, Halted)  # the ways to end that are errors


class Story:
    """
    Tells of one run: that it began, of each of its turns, how it ended.

    A turn lasts from the question to the end of its tools, so it is over when the next one begins, or the run ends.
    """

    def __init__(self, run: Run, *, streaming: bool) -> None:
        self._run = run
        self._began = trio.current_time()
        self._turn_began: float | None = None
        self._turn = 0
        self._usage = NO_USAGE  # of the turn
        self._stop_reason: str | None = None
        if is_on():
            tell(RunStarted(**self._ids(), provider=run.origin[0], model=run.origin[1], streaming=streaming))

    def turn_begins(self) -> None:
        """A turn begins, and with that the one before it is over."""
        self._end_turn("running")
        self._turn_began, self._turn = trio.current_time(), self._run.emitter.turn
        self._usage, self._stop_reason = NO_USAGE, None
        if is_on():
            tell(TurnStarted(**self._ids(), turn=self._turn))

    def answered(self, response: Response) -> None:
        """The model has answered in this turn."""
        self._usage, self._stop_reason = response.usage, str(response.stop_reason)

    def ends(self, status: Status, error: Exception | None) -> None:
        """The run is over. What a hook or the machinery raised is a failure; all else is one of the ways to end."""
        failure = None if error is None or isinstance(error, _ENDINGS) else error
        self._end_turn(status, failure)
        if not is_on():
            return
        run = self._run
        said: dict[str, Any] = {
            **self._ids(),
            "duration": trio.current_time() - self._began,
            "turns": run.turns,
            "provider": run.origin[0],
            "model": run.origin[1],
            "usage": run.account.usage,
        }
        if failure is not None:
            tell(RunFailed(**said, error=failure))
        else:
            tell(RunStopped(**said, status=status, cost_cents=run.cost_cents, error=error))

    def _end_turn(self, status: Any, failure: Exception | None = None) -> None:
        if self._turn_began is None:
            return
        duration, self._turn_began = trio.current_time() - self._turn_began, None
        if not is_on():
            return
        said: dict[str, Any] = {**self._ids(), "turn": self._turn, "duration": duration}
        if failure is not None:
            tell(TurnFailed(**said, error=failure))
        else:
            tell(TurnStopped(**said, status=status, usage=self._usage, stop_reason=self._stop_reason))

    def _ids(self) -> dict[str, str]:
        return {"session_id": self._run.session.id, "correlation_id": self._run.emitter.correlation_id}
