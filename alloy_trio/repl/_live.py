"""
A request on a terminal that is redrawn: what is finished is printed for good, what goes on is drawn again and again.

Folded is what is long: reasoning, the output of tools, large changes. Ctrl-O prints what was folded, and folds nothing from
there on; once more, and it does again.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import trio

from .._events import (
    ApprovalRequested,
    Compacted,
    Envelope,
    Retry,
    RunEnd,
    Steered,
    TextDelta,
    ThinkingDelta,
    ToolEnd,
    ToolInputDelta,
    ToolStart,
    TurnEnd,
    TurnStart,
)
from .._messages import Text
from ._ask import diff, subject
from ._markdown import Blocks
from ._show import brief, compacted_line, retry_line, summary, tool_line
from ._text import BOLD, DIM, GREEN, RED, clip, harmless, one_line

if TYPE_CHECKING:
    from .._events import Event
    from ._terminal import Terminal

_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TURNS_A_SECOND: Final = 10
_THOUGHTS: Final = 3  # lines of reasoning that are shown while it comes
_OUTPUT: Final = 3  # lines of a tool's output that are not folded
_CHANGES: Final = 24  # lines of a change that are not folded
_EVERY: Final = 0.1  # seconds between two looks for blocks that are finished


class LiveView:
    """Shows one request."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._started = self._since = trio.current_time()
        self._looked = 0.0
        self._blocks = Blocks()
        self._is_blank = True  # the answer has had no text yet
        self._has_text_above = False
        self._thoughts = ""
        self._writing = ""
        self._is_waiting = False
        self._running: dict[str, tuple[ToolStart, float]] = {}
        self._changes: dict[str, list[str]] = {}
        self._seen: set[str] = set()  # calls that a person was asked about: what they change has been shown
        self._folded: list[list[str]] = []
        self._drawn: tuple[tuple[str, int], str] = (("", 0), "")
        terminal.draw(self._draw)

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        match envelope.event:
            case TurnStart():
                self._is_blank, self._is_waiting, self._since = True, True, trio.current_time()
            case ThinkingDelta(text=text):
                if not self._thoughts:
                    self._since = trio.current_time()
                self._thoughts += harmless(text)
            case TextDelta(text=text):
                await self._end_thoughts()
                await self._add(text)
            case ToolInputDelta(name=name):
                await self._end_text()
                self._writing, self._is_waiting = one_line(name), True
            case TurnEnd():
                self._is_waiting, self._writing = False, ""
                await self._end_text()
            case event:
                await self._show_rest(event)

    async def _show_rest(self, event: Event) -> None:
        match event:
            case ToolStart(id=call) as start:
                self._running[call] = start, trio.current_time()
                self._changes[call] = diff(start.name, start.input, self._terminal.directory)
            case ToolEnd() as end:
                await self._end_tool(end)
            case ApprovalRequested() as request:
                await self._ask(request)
            case Steered(text=text, interrupted=interrupted):
                await self._end_text()
                how = "taken, what ran was cut" if interrupted else "taken"
                await self._print(self._dim(clip(f"↳ {how}: {one_line(text)}", self._terminal.columns - 1)))
            case Retry() as retry:
                await self._print(self._dim(retry_line(retry)))
            case Compacted() as compacted:
                await self._print(self._dim(compacted_line(compacted)))
            case RunEnd(turns=turns, usage=usage) if turns:
                await self._print(self._dim(summary(turns, usage, trio.current_time() - self._started)))

    async def close(self) -> None:
        """Print what is left, and draw no more. What still ran was cancelled."""
        try:
            await self._end_text()
            for start, since in self._running.values():
                end = ToolEnd(
                    id=start.id,
                    name=start.name,
                    input=start.input,
                    outcome="cancelled",
                    duration=trio.current_time() - since,
                    error=None,
                    start_event_seq=0,
                )
                await self._print(tool_line(end, self._terminal))
        finally:
            self._running.clear()
            self._terminal.draw(None)

    async def unfold(self) -> None:
        """Print what was folded."""
        for lines in self._folded:
            await self._print("\n".join(lines))
        self._folded.clear()

    # The answer

    async def _add(self, text: str) -> None:
        if self._is_blank:  # many models begin with blank lines, which only push the answer down
            text = text.lstrip("\r\n")
            self._is_blank = not text
        self._is_waiting = False
        self._blocks.feed(harmless(text))
        if trio.current_time() >= self._looked + _EVERY:
            self._looked = trio.current_time()
            await self._print_markdown(self._blocks.take())

    async def _end_text(self) -> None:
        await self._end_thoughts()
        await self._print_markdown(self._blocks.finish())
        self._has_text_above = False

    async def _end_thoughts(self) -> None:
        if not self._thoughts.strip():
            self._thoughts = ""
            return
        thoughts, self._thoughts = self._thoughts.strip(), ""
        seconds = trio.current_time() - self._since
        lines = [self._dim(line) for line in thoughts.split("\n")]
        await self._print_folded([self._dim(f"∴ thought for {seconds:.1f} s"), *lines], 1)

    async def _print_markdown(self, text: str) -> None:
        if text.strip():
            gap = "\n" if self._has_text_above else ""
            await self._terminal.print(gap + self._terminal.markdown(text))
            self._has_text_above = True

    # Tools

    async def _end_tool(self, end: ToolEnd) -> None:
        self._running.pop(end.id, None)
        changes = self._changes.pop(end.id, [])
        await self._print(tool_line(end, self._terminal))
        if changes and end.outcome == "ok":
            if end.id not in self._seen:
                await self._print_folded([self._painted(line) for line in changes], _CHANGES)
            return
        output = harmless("\n".join(block.text for block in end.content if isinstance(block, Text))).strip("\n")
        if output and end.outcome in {"ok", "error", "timed_out"}:
            most = self._terminal.columns - 4
            lines = [
                self._dim(f"  │ {line if self._terminal.is_unfolded else clip(line, most)}")
                for line in output.split("\n")
            ]
            await self._print_folded(lines, _OUTPUT)

    async def _ask(self, request: ApprovalRequested) -> None:
        await self._end_text()
        self._seen.add(request.id)
        await self._print(self._terminal.style(f"? {one_line(request.name)}", BOLD))
        lines = subject(request.name, request.input, self._terminal.directory)
        await self._print_folded([self._painted(line) for line in lines], 2 * _CHANGES)

    def _painted(self, line: str) -> str:
        """Color a line of a diff."""
        code = GREEN if line.startswith("+") else RED if line.startswith("-") else DIM if line.startswith("@@") else 0
        text = f"  {harmless(line)}"
        return self._terminal.style(text, code) if code else text

    # How it is shown

    def _dim(self, text: str) -> str:
        return self._terminal.style(text, DIM)

    async def _print(self, text: str) -> None:
        await self._print_markdown(self._blocks.take())
        await self._terminal.print(text)
        self._has_text_above = False

    async def _print_folded(self, lines: list[str], most: int) -> None:
        """Print lines, but for those that are too many."""
        if self._terminal.is_unfolded or len(lines) <= most + (most > 1):
            await self._print("\n".join(lines))
            return
        rest = len(lines) - most
        self._folded.append(lines)
        count = self._dim(f"  … {rest} line{'' if rest == 1 else 's'} more: Ctrl-O")
        await self._print("\n".join([*lines[:most], count]))

    def _draw(self) -> str:
        """Return the lines of what goes on just now."""
        now, terminal = trio.current_time(), self._terminal
        spin = _SPINNER[int(now * _TURNS_A_SECOND) % len(_SPINNER)]
        lines: list[str] = []
        if self._thoughts:
            lines.append(self._dim(f"{spin} thinking {now - self._since:.0f} s"))
            shown = self._thoughts.strip().split("\n")[-terminal.room if terminal.is_unfolded else -_THOUGHTS :]
            lines += [self._dim(clip(f"  {line}", terminal.columns - 1)) for line in shown]
        if self._blocks.rest.strip():
            lines += self._rest().split("\n")
        for start, since in self._running.values():
            seconds = f"  {now - since:.1f} s"
            head = clip(f"{spin} {one_line(start.name)} {brief(start.input)}", terminal.columns - len(seconds) - 1)
            lines.append(head + self._dim(seconds))
        if not lines and self._is_waiting:
            what = f"{self._writing} …" if self._writing else "…"
            lines.append(self._dim(clip(f"{spin} {what}", terminal.columns - 1)))
        return "\n".join(itertools.islice(lines, max(len(lines) - terminal.room, 0), None))

    def _rest(self) -> str:
        """Draw the block that is being written, unless it has not changed."""
        key = self._blocks.rest, self._terminal.columns
        if self._drawn[0] != key:
            self._drawn = key, self._terminal.markdown(self._blocks.rest)
        return self._drawn[1]
