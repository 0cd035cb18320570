"""How a request is shown on a screen: what is printed for good, what is folded, what is drawn while it goes on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from alloy_trio import Message, Text, Usage
from alloy_trio.events import (
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

pytest.importorskip("prompt_toolkit", reason="needs the extra repl")
pytest.importorskip("rich", reason="needs the extra repl")

from prompt_toolkit.data_structures import Size

from alloy_trio.repl._screen import Screen
from alloy_trio.repl._terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

    from alloy_trio.events import Event


class Paper(Screen):
    """A screen that nobody sees."""

    size = Size(rows=24, columns=80)

    def __init__(self) -> None:
        self.color = True
        self.printed = ""
        self.drawn = ""
        self.drawings: list[str] = []

    def write(self, text: str, done: Callable[[], None]) -> None:
        self.printed += plain(text.replace("\r\n", "\n"))
        done()

    def draw(self, text: str) -> None:
        self.drawn = plain(text)
        self.drawings.append(self.drawn)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


async def shown(directory: Path, *events: Event) -> tuple[Paper, Terminal]:
    """Show a request of these events, a second apart."""
    paper = Paper()
    terminal = Terminal(paper, directory)
    view = terminal.view()
    for seq, event in enumerate(events, 1):
        await view.show(Envelope(seq=seq, correlation_id="c", turn=1, ts=0.0, event=event))
        terminal.draw(view._draw)
        await trio.sleep(1)
    await view.close()
    return paper, terminal


def end(call: str, name: str, outcome: str = "ok", output: str = "", **arguments: str) -> ToolEnd:
    return ToolEnd(
        id=call,
        name=name,
        input=arguments,
        outcome=outcome,  # type: ignore[arg-type] # one of them
        duration=1.0,
        error=output if outcome != "ok" else None,
        start_event_seq=1,
        content=(Text(output),) if output else (),
    )


async def test_reasoning_is_shown_while_it_comes_and_folded_then(tmp_path: Path, autojump_clock: MockClock) -> None:
    thoughts = [ThinkingDelta(f"thought {number}\n") for number in range(6)]
    paper, terminal = await shown(
        tmp_path, TurnStart(), *thoughts, TextDelta("So."), TurnEnd(Message.assistant("So."), "end_turn", Usage())
    )
    assert "thinking 5 s" in paper.drawings[-4]
    assert "thought 5" in paper.drawings[-4]
    assert "thought 1" not in paper.drawings[-4]
    assert paper.printed == "∴ thought for 6.0 s\n  … 6 lines more: Ctrl-O\nSo.\n"
    await terminal._unfold()
    assert "thought 0\nthought 1" in paper.printed
    await terminal._unfold()
    assert paper.printed.endswith("what is long is folded again\n")
    assert paper.drawn == ""


async def test_calls_are_lines_that_live_until_they_end(tmp_path: Path, autojump_clock: MockClock) -> None:
    output = "\n".join(map(str, range(9)))
    paper, _ = await shown(
        tmp_path,
        TurnStart(),
        ToolInputDelta("a", "bash", "{"),
        TurnEnd(Message.assistant("x"), "tool_use", Usage()),
        ToolStart("a", "bash", {"command": "sleep 2"}),
        ToolStart("b", "read", {"file_path": "x"}),
        end("a", "bash", output=output, command="sleep 2"),
        end("b", "read", "error", "no such file", file_path="x"),
    )
    assert "bash …" in paper.drawings[2]
    assert re.search(r"bash sleep 2  1.0 s\n. read x  0.0 s", paper.drawings[5])
    assert paper.printed.splitlines() == [
        "● bash sleep 2  1.00s  ok",
        "  │ 0",
        "  │ 1",
        "  │ 2",
        "  … 6 lines more: Ctrl-O",
        "● read x  1.00s  error: no such file",
        "  │ no such file",
    ]


async def test_what_still_ran_at_the_end_was_cancelled(tmp_path: Path, autojump_clock: MockClock) -> None:
    paper, _ = await shown(tmp_path, ToolStart("a", "bash", {"command": "sleep 1000"}))
    assert paper.printed == "● bash sleep 1000  1.00s  cancelled\n"


@pytest.mark.parametrize("asked", [False, True])
async def test_a_change_is_shown_once(asked: bool, tmp_path: Path, autojump_clock: MockClock) -> None:
    (tmp_path / "x").write_text("one\ntwo\n")
    call = {"file_path": "x", "content": "one\nthree\n"}
    question = [ApprovalRequested("a", "write", call)] if asked else []
    paper, _ = await shown(
        tmp_path, *question, ToolStart("a", "write", call), end("a", "write", output="Wrote x.", **call)
    )
    assert paper.printed.count("-two") == 1
    assert paper.printed.count("+three") == 1
    assert ("? write" in paper.printed) is asked


async def test_what_else_happens_is_a_line(tmp_path: Path, autojump_clock: MockClock) -> None:
    paper, _ = await shown(
        tmp_path,
        Retry("demo", "m", 2, 1.5, "busy"),
        Compacted("summarized", 9, 4, 100, 50),
        Steered("a\nb"),
        Steered("c", interrupted=True),
        RunEnd("completed", 1, Usage(input_tokens=1, output_tokens=2)),
    )
    assert paper.printed.splitlines() == [
        "busy · trying again in 1.5 s (attempt 2)",
        "conversation summarized: 9 messages, now 4",
        "↳ taken: a b",
        "↳ taken, what ran was cut: c",
        "1 turn · 1 in / 2 out tokens · 4.0 s",
    ]


async def test_what_a_model_says_cannot_command_the_terminal(tmp_path: Path, autojump_clock: MockClock) -> None:
    evil = "\x1b]0;title\x07\x1b[2J"
    paper, _ = await shown(
        tmp_path,
        ThinkingDelta(evil),
        TextDelta(f"\n\n{evil}"),
        ToolStart("a", "bash", {"command": evil}),
        ApprovalRequested("a", "bash", {"command": evil}),
        end("a", "bash", output=evil, command=evil),
        Steered(evil),
    )
    assert "\x1b" not in paper.printed + "".join(paper.drawings)
    assert "\x07" not in paper.printed


async def test_what_goes_on_never_takes_more_than_its_room(tmp_path: Path, autojump_clock: MockClock) -> None:
    paper, _ = await shown(tmp_path, TextDelta("```\n" + "x\n" * 500))
    assert max(drawing.count("\n") for drawing in paper.drawings) < 24
    assert paper.printed.count("x") == 500
