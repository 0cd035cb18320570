"""One call on its way from the model's wish to a result: what is known of it, and how it ended, once."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import trio

from .._errors import ToolError
from .._messages import Outcome, Text, ToolResult, ToolUse
from .._util import single
from ._output import ToolOutput, clip
from ._tool import Tool

_LONGEST_ERROR = 2000  # characters of an exception that the model is shown

logger = logging.getLogger("alloy_trio.tools")


@attrs.define
class Invocation:
    """One call on its way: `outcome` is None until it has ended. `use` has the input that runs."""

    use: ToolUse
    tool: Tool | None = None
    arguments: Any = None
    outcome: Outcome | None = None
    output: ToolOutput = attrs.field(default=ToolOutput(""))
    started: float | None = None
    duration: float = 0.0
    start_seq: int | None = None
    end_seq: int | None = None
    exception: Exception | None = None
    scope: trio.CancelScope | None = None  # while the gate is asked about it, or it runs
    stopped: str | None = None  # why it was ended alone, in words for the model
    _result: ToolResult | None = attrs.field(init=False, default=None)
    has_ended: bool = False  # nothing of it runs any more
    _ended: trio.Event | None = attrs.field(init=False, default=None)  # where somebody waits for that

    @property
    def concurrent(self) -> bool:
        """Whether it may run beside its neighbours."""
        return self.tool is None or self.tool.concurrent

    @property
    def trusted(self) -> bool:
        """Whether the program vouches for what the tool returns."""
        return self.tool is not None and self.tool.trusted

    @property
    def error(self) -> str | None:
        """What the model is told went wrong."""
        return None if self.outcome in {"ok", None} else text_of(self.output)

    def over(self) -> None:
        """Nothing of it runs any more."""
        self.has_ended, self.scope, self.arguments = True, None, None
        if self._ended is not None:
            self._ended.set()

    async def wait_over(self) -> None:
        """Wait until nothing of it runs any more."""
        if not self.has_ended:
            self._ended = self._ended or trio.Event()
            await self._ended.wait()

    def start(self) -> None:
        """The tool itself runs from now on."""
        self.started = trio.current_time()

    def end(self, outcome: Outcome, output: ToolOutput | str) -> None:
        """Settle the call, once: what comes later does not count."""
        if self.outcome is None:
            self.outcome = outcome
            self.output = ToolOutput(output) if isinstance(output, str) else output
            if self.started is not None:
                self.duration = trio.current_time() - self.started

    def stop(self, reason: str) -> bool:
        """End this call alone, for a reason in words for the model. Returns whether it had not ended yet."""
        if self.outcome is not None:
            return False
        self.stopped = self.stopped or reason
        if self.scope is None:
            self.end_stopped()
        else:
            self.scope.cancel()
        return True

    def end_stopped(self) -> None:
        """Settle a call that was ended alone, unless it has ended by itself."""
        started = "before it started" if self.started is None else "while it ran; its effects may be partial"
        self.end("cancelled", f"{self.stopped}, {started}")

    def fail(self, error: Exception) -> None:
        """Settle it as failed."""
        error = single(error)
        self.exception = self.exception or error
        self.end("error", explain(self.use, error))

    @property
    def settled(self) -> Outcome:
        """How it ended. Only once it has."""
        assert self.outcome is not None, "asked for the results of a batch that is not over"
        return self.outcome

    def result(self) -> ToolResult:
        """Return what the model gets to see. Only once it has ended."""
        if self._result is None:
            self._result = self._make_result()
        return self._result

    def _make_result(self) -> ToolResult:
        content = self.output.content
        limit = None if self.tool is None else self.tool.max_result_chars
        if limit is not None:
            blocks = (Text(content),) if isinstance(content, str) else content
            content = tuple(Text(clip(b.text, limit)) if isinstance(b, Text) else b for b in blocks)
        return ToolResult(self.use.id, content, is_error=self.settled != "ok", outcome=self.settled)

    def log_refused(self) -> None:
        """Let the log say that it never ran."""
        logger.warning("tool call %s %s refused: %s", self.use.name, self.use.id, text_of(self.output))

    def end_too_late(self, timeout: float) -> None:
        """Settle a call whose time was up."""
        logger.warning("tool %s timed out after %g s", self.use.name, timeout)
        advice = f"timed out after {timeout:g} seconds; ask for less at once, or do it another way"
        if self.started is None:
            advice = f"found no free thread within {timeout:g} seconds: earlier calls hold them all; try again later"
        self.end("timed_out", advice)


def explain(use: ToolUse, error: Exception) -> str:
    """Say on one line what a tool raised; what its author did not mean for the model goes to the log in full."""
    if isinstance(error, ToolError):
        return str(error) or type(error).__name__
    logger.error("tool %s raised", use.name, exc_info=error)
    return clip(" ".join(f"{type(error).__name__}: {error}".split()), _LONGEST_ERROR)


def text_of(output: ToolOutput) -> str:
    """Return the text of what a tool returned."""
    content = output.content
    return content if isinstance(content, str) else "".join(b.text for b in content if isinstance(b, Text))
