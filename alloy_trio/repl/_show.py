"""
How a run is shown: as text for people, or as one JSON object a line for programs.

The answer goes to stdout, and nothing else does. What is said about the run (reasoning, tool calls, the summary, errors) goes to
stderr. On one terminal both meet, so whoever writes first ends the line that the other has left open.

"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import trio

from .._errors import AlloyError
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
    ToolStart,
    TurnEnd,
    TurnStart,
)
from .._run import stream
from ..providers._json import encode
from ._ask import subject
from ._text import DIM, GREEN, RED, clip, escaped, harmless, one_line, width

if TYPE_CHECKING:
    from typing import Unpack

    from .._events import Event
    from .._options import RunOptions
    from .._result import Result
    from .._run import EventStream
    from .._usage import Usage
    from .._util import JSONObject


_PIECE = 1000  # characters: at most 4,000 bytes, which a pipe that is writable takes whole
_CLOSE_WITHIN = 0.5  # seconds that the end of a cancelled run may wait for whoever reads our output
_WIDTH = 200  # columns, where there is no terminal to ask


class Output:
    """
    One of the two outputs.

    Attributes:
        terminal: Whether it is one.
        styled: Whether escape codes may be written to it.
        open_line: Whether what was written last has not ended its line.
    """

    def __init__(self, file: TextIO | None, *, color: bool = True) -> None:
        self._file = file
        self.terminal = file is not None and file.isatty()
        self.styled = self.terminal and color and os.environ.get("TERM") != "dumb"
        self.open_line = False
        self._pieces: deque[str] = deque()
        self._descriptor: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._descriptor = None if file is None else file.fileno()

    @property
    def columns(self) -> int:
        """The width of the terminal."""
        try:
            width = os.get_terminal_size(self._descriptor or 0).columns if self.terminal else 0
        except OSError:
            width = 0
        return width or _WIDTH

    def style(self, text: str, code: int) -> str:
        """Put a text into a color, where there are any."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.styled and text else text

    async def write(self, text: str) -> None:
        """
        Write and flush.

        Waits in Trio, not in the system: whoever reads our pipe may be slow, and a Ctrl-C has to get through meanwhile. What
        a cancel has kept back is written before what comes next.

        Raises:
            OSError: Nobody reads any more, or the disk is full.
        """
        self._pieces.extend(text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
        if text:
            self.open_line = not text.endswith("\n")
        while self._pieces and self._file is not None:
            await self._ready()
            self._file.write(self._pieces[0])
            self._file.flush()
            self._pieces.popleft()

    async def _ready(self) -> None:
        if self._descriptor is None:
            return await trio.lowlevel.checkpoint()
        try:
            await trio.lowlevel.wait_writable(self._descriptor)
        except OSError:
            self._descriptor = None  # a plain file, which is always ready, or a system that cannot tell

    async def end_line(self) -> None:
        """End the line, if it is open."""
        if self.open_line:
            await self.write("\n")


class View(Protocol):
    """Shows a run."""

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        ...

    async def close(self) -> None:
        """The run is over, or cut: leave whole lines behind."""
        ...


async def show_run(prompt: str, view: View, **options: Unpack[RunOptions]) -> Result:
    """Run, show what happens, and return the result. Raises what `run` raises, and the `OSError` of an output."""
    return await show_events(stream(prompt, **options), view)


async def show_events(events: EventStream, view: View) -> Result:
    """Show what happens in a run, and return the result. Raises what `show_run` does."""
    try:
        async with events:
            async for envelope in events.envelopes():
                await view.show(envelope)
    finally:
        with trio.move_on_after(_CLOSE_WITHIN, shield=True):
            await view.close()
    return events.result


class JSONLines:
    """Each event as a line of JSON on stdout. On a terminal, what that would obey is written by its number, which is the same JSON."""

    def __init__(self, out: Output) -> None:
        self._out = out

    async def show(self, envelope: Envelope) -> None:
        """Write one line."""
        line = encode(envelope.to_dict()).decode()
        await self._out.write(f"{escaped(line) if self._out.terminal else line}\n")

    async def close(self) -> None:
        """Write what is left of a line."""
        await self._out.write("")


class Screen:
    """The answer as it comes, each tool call in one line as it ends, a summary in the end."""

    def __init__(self, out: Output, err: Output, directory: Path = Path()) -> None:
        self._out = out
        self._err = err
        self._directory = directory
        self._started = trio.current_time()
        self._blank = True  # whether the answer has had no text yet
        self._running: dict[str, ToolStart] = {}
        self._status = False  # whether a passing line, to be wiped, stands on the terminal

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        match envelope.event:
            case TurnStart():
                self._blank = True
                await self._pass("…")
            case TextDelta(text=text):
                await self._wipe()
                await self._err.end_line()
                await self._out.write(self._for_terminal(text) if self._out.terminal else text)
            case ThinkingDelta(text=text) if self._err.terminal:
                await self._think(text)
            case TurnEnd():
                await self._wipe()
                await self._err.end_line()
                await self._out.end_line()
            case ToolStart(id=call) as start:
                self._running[call] = start
                await self._pass_tool()
            case ToolEnd(id=call) as end:
                self._running.pop(call, None)
                await self._say(tool_line(end, self._err))
                await self._pass_tool()
            case event:
                await self._show_rest(event)

    async def _show_rest(self, event: Event) -> None:
        match event:
            case Retry() as retry:
                await self._say(self._err.style(retry_line(retry), DIM))
            case Compacted() as compacted:
                await self._say(self._err.style(compacted_line(compacted), DIM))
            case Steered(text=text, interrupted=interrupted):
                how = "taken, what ran was cut" if interrupted else "taken"
                await self._say(self._err.style(f"{how}: {one_line(text)}", DIM))
            case ApprovalRequested(name=name, input=arguments):
                lines = [f"? {one_line(name)}", *subject(name, arguments, self._directory)]
                await self._say("\n".join(lines))
            case RunEnd(turns=turns, usage=usage) if turns:
                seconds = trio.current_time() - self._started
                await self._say(self._err.style(summary(turns, usage, seconds), DIM))

    async def close(self) -> None:
        """Wipe what was passing and end the open lines."""
        await self._wipe()
        await self._err.end_line()
        await self._out.end_line()

    def _for_terminal(self, text: str) -> str:
        """Many models begin with blank lines, which on a terminal only push the answer down."""
        if self._blank:
            text = text.lstrip("\r\n")
            self._blank = not text
        return harmless(text)

    async def _say(self, line: str) -> None:
        await self._wipe()
        await self._make_room()
        await self._err.write(f"{line}\n")

    async def _make_room(self) -> None:
        """End the open lines, of the answer only where it stands on the same terminal: in a file it goes on."""
        await self._err.end_line()
        if self._out.terminal:
            await self._out.end_line()

    async def _think(self, text: str) -> None:
        if not self._err.open_line or self._status:
            await self._wipe()
            await self._make_room()
            await self._err.write("" if self._err.styled else "(thinking) ")
        await self._err.write(self._err.style(harmless(text), DIM))
        self._err.open_line = not text.endswith("\n")

    async def _pass_tool(self) -> None:
        for start in list(self._running.values())[-1:]:
            await self._pass(f"… {start.name} {brief(start.input)}")

    async def _pass(self, text: str) -> None:
        """Show what goes on just now, in a line that is wiped before the next is written."""
        if self._err.styled:
            await self._wipe()
            await self._make_room()
            await self._err.write(self._err.style(clip(one_line(text), self._err.columns - 1), DIM))
            self._status = True

    async def _wipe(self) -> None:
        if self._status:
            self._status = self._err.open_line = False
            await self._err.write("\r\x1b[K")
            self._err.open_line = False


def brief(arguments: JSONObject) -> str:
    """Say what a call is about: the path or the command, of any other tool all of the input."""
    for key in ("file_path", "command"):
        if isinstance(arguments.get(key), str):
            return one_line(arguments[key])
    return one_line(encode(arguments).decode()) if arguments else ""


class Look(Protocol):
    """How wide a terminal is, and how it shows a text in a style."""

    @property
    def columns(self) -> int:
        """Its width."""
        ...

    def style(self, text: str, code: int) -> str:
        """Put a text into a style, if there are any."""
        ...


def tool_line(end: ToolEnd, err: Look) -> str:
    """Return the line of a call: what was asked, how long it took, how it ended."""
    head, outcome = one_line(f"{end.name} {brief(end.input)}"), end.outcome.replace("_", " ")
    if end.error:
        reason = next((line for line in end.error.splitlines() if line.strip()), "")
        outcome = one_line(reason if reason.startswith(outcome) else f"{outcome}: {reason}")
    seconds = f"  {end.duration:.2f}s  "
    room = err.columns - len(f"● {seconds}")
    outcome = clip(outcome, max(room - width(head), room // 2))
    dot = err.style("●", GREEN if end.outcome == "ok" else RED)
    return f"{dot} {clip(head, room - width(outcome))}{err.style(seconds + outcome, DIM)}"


def compacted_line(compacted: Compacted) -> str:
    """Say that a conversation was made shorter."""
    before, after = compacted.messages_before, compacted.messages_after
    counts = f"{before} messages, now {after}" if before != after else f"{before} messages"
    return f"conversation {compacted.kind}: {counts}"


def retry_line(retry: Retry) -> str:
    """Say what has failed, and what comes next."""
    what = in_options(one_line(retry.error))
    if retry.attempt > 1:
        return f"{what} · trying again in {retry.delay:.1f} s (attempt {retry.attempt})"
    return f"{what} · asking {retry.provider}:{retry.model} instead"


def _count(turns: int) -> str:
    return f"{turns} turn{'' if turns == 1 else 's'}"


def summary(turns: int, usage: Usage, seconds: float) -> str:
    """Return the last line of a run. Input counts whole, cached or not."""
    cached = usage.cache_read_input_tokens
    prompt = usage.input_tokens + usage.cache_creation_input_tokens + cached
    about = "~" if usage.estimated else ""
    return (
        f"{_count(turns)} · {about}{prompt:,} in"
        f"{f' ({cached:,} cached)' if cached else ''} / {about}{usage.output_tokens:,} out tokens · {seconds:.1f} s"
    )


async def say_cancelled(err: Output) -> None:
    """Say that a run was cancelled; on a terminal, over the `^C` that stands at the start of the line."""
    await err.write("\rcancelled\n" if err.terminal else "cancelled\n")


_ELSEWHERE = ("set where the agent lives",) * 3


def shortfall(result: Result, *, is_ours: bool = True) -> str | None:
    """Say what keeps a run that ended well from being done, if something does; naming our options, if the run was `ours`."""
    turns, money, tokens = ("--max-turns", "--budget, /budget", "--max-output-tokens") if is_ours else _ELSEWHERE
    if result.status == "max_turns":
        return f"stopped after {_count(result.turns)} ({turns}): the work may be unfinished"
    if result.status == "budget_exceeded":
        return f"the budget does not allow more ({money}): the work may be unfinished"
    if result.status == "halted":
        return one_line(f"halted: {result.error}")
    if result.stop_reason == "max_tokens":
        return f"the answer was cut at its cap: allow more ({tokens})"
    return None


# What the library calls by the names of its parameters, a command line calls by its options.
_OPTIONS = {", or pass api_key=": "", "base_url=": "--base-url ", "base_url": "--base-url"}


def explain(error: Exception, *, is_ours: bool = True) -> str:
    """Say in one line what went wrong; in the words of our options, if the run was `ours`."""
    text = str(error) if isinstance(error, AlloyError) else f"{type(error).__name__}: {error}"
    return one_line(in_options(text) if is_ours else text)


def in_options(text: str) -> str:
    """Return what the library says in the words of the command line."""
    for name, option in _OPTIONS.items():
        text = text.replace(name, option)
    return text
