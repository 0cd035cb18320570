"""
`python -m alloy_trio --connect URL`: talk to an agent that lives in another process.

    ws:// wss://              one that is served (`serve_agents`): its answer streams, a line typed meanwhile steers it, calls are approved
    redis:// rediss:// unix:// one of a fleet's workers: the answer comes when it is done. Without a host, it is that of ALLOY_REDIS

A command of its own: what a run is made of (providers, tools, sessions) is chosen where the agent lives.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from .._errors import AgentIdle, AlloyError, UnknownRequest
from .._events import ApprovalRequested, Envelope, ToolEnd, ToolStart
from ._fleet import OUR_REDIS, REDIS
from ._keys import Key, Line
from ._plain import Input, open_plain
from ._program import guarded, read_prompt, until_signal
from ._reach import TOKEN, reached
from ._show import JSONLines, Output, Screen, explain, shortfall
from ._text import DIM, harmless

if TYPE_CHECKING:
    from ._plain import Plain
    from ._reach import Far
    from ._show import View

_QUIT: Final = {"/quit", "/exit", "/q"}  # what leaves a conversation here, leaves one there
_HELP: Final = "Ctrl-C cancels; Ctrl-D leaves"
_MORE: Final = "Ctrl-C once more leaves"
_ASK: Final = "allow it? y, or n and a reason: "
_NOBODY: Final = "n nobody is there to allow it"


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="--connect URL [OPTIONS]",
    epilog=f"""Without a prompt, on a terminal, a conversation begins. What is piped in is the prompt, or goes below it.

    A server's token comes from the environment, {TOKEN}. So does the address of a Redis with a password: {REDIS}, for which
    --connect {OUR_REDIS} stands.

    What a run is made of (provider, tools, instructions) is chosen where the agent lives.
    """,
)
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option(
    "--connect", "url", metavar="URL", required=True, help="A server, ws://… or wss://…; or a fleet's redis://…"
)
@click.option("--agent", "name", metavar="NAME", help="Whom to talk to; not needed where one is served.")
@click.option("--prefix", metavar="TEXT", help="Of a fleet: what all keys begin with, as its workers say (alloy).")
@click.option("-p", "--prompt", metavar="PROMPT", help="The prompt, instead of the argument.")
@click.option("--json", is_flag=True, help="One JSON event a line on stdout, and nothing else there.")
@click.option("--no-color", is_flag=True, help="No escape codes; NO_COLOR in the environment says the same.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
def command(
    words: tuple[str, ...], url: str, name: str | None, prefix: str | None, prompt: str | None, **flags: bool
) -> int:
    """Talk to an agent in another process."""
    color = not (flags["no_color"] or os.environ.get("NO_COLOR"))
    out, err = (Output(file, color=color) for file in (sys.stdout, sys.stderr))

    async def say(text: str) -> None:
        await err.end_line()
        await err.write(err.style(harmless(text), DIM) + "\n")

    async def main() -> int:
        stdin = Input(sys.stdin)
        asked = await read_prompt(words, prompt, stdin, err, needed=flags["json"])
        view = partial(JSONLines, out) if flags["json"] else partial(Screen, out, err, Path())
        async with reached(url, name, prefix, say, talks=asked is None) as agent:
            if asked is not None:
                return await _answer(agent, asked, Asking(view(), agent, stdin, err), err)
            async with open_plain(stdin, err, view) as front:
                return await Talk(agent, front).hold()

    return guarded(lambda: trio.run(until_signal, main, err), debug=flags["debug"], is_ours=False)


async def _answer(agent: Far, prompt: str, view: View, err: Output) -> int:
    result = await agent.ask(prompt, view)
    if said := shortfall(result, is_ours=False):
        await err.write(f"{said}\n")
    return 0 if result.status == "completed" else 1


class Asking:
    """Shows the run of a single prompt. A call that waits for a person is asked about on the terminal; without one, it is refused."""

    def __init__(self, view: View, agent: Far, stdin: Input, err: Output) -> None:
        self._view = view
        self._agent = agent
        self._stdin = stdin
        self._err = err

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        await self._view.show(envelope)
        if isinstance(envelope.event, ApprovalRequested):
            with contextlib.suppress(AgentIdle, UnknownRequest):  # somebody else has decided
                await self._agent.say(await self._decision(), envelope.event.id)

    async def _decision(self) -> str:
        if not self._stdin.terminal:
            return _NOBODY
        while True:
            await self._err.write(_ASK)
            line = await self._stdin.line()
            if line is None:
                return _NOBODY
            self._err.open_line = False  # the terminal has shown its end
            if line.strip():
                return line.strip()

    async def close(self) -> None:
        """The run is over."""
        await self._view.close()


class _Approvals:
    """Shows a run, and notes which call waits for a person: a run asks about one at a time."""

    def __init__(self, view: View, front: Plain) -> None:
        self._view = view
        self._front = front
        self.asked: str | None = None

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        await self._view.show(envelope)
        match envelope.event:
            case ApprovalRequested(id=call):
                self.asked = call
                await self._front.prompt(_ASK)
            case ToolStart(id=call) | ToolEnd(id=call) if call == self.asked:  # somebody else has decided
                self.asked = None

    async def close(self) -> None:
        """The run is over."""
        await self._view.close()


class Talk:
    """A conversation, line by line."""

    def __init__(self, agent: Far, front: Plain) -> None:
        self._agent = agent
        self._front = front
        self._has_left = False

    async def hold(self) -> int:
        """Talk until the person leaves; return the exit status."""
        await self._front.say(f"{self._agent.name}: {_HELP}", dim=True)
        status = await self._talk()
        await self._front.prompt("")  # ends the line
        return status

    async def _talk(self) -> int:
        is_leaving = False
        while not self._has_left:
            await self._front.prompt("> ")
            typed = await self._front.receive()
            if typed is Key.END or (isinstance(typed, Line) and typed.text.strip() in _QUIT):
                break
            if typed is Key.INTERRUPT and is_leaving:
                return 128 + signal.SIGINT
            is_leaving = typed is Key.INTERRUPT
            if is_leaving:
                await self._front.say(_MORE, dim=True)
            elif isinstance(typed, Line) and typed.text.strip():
                await self._ask(typed.text)
        return 0

    async def _ask(self, text: str) -> None:
        view = _Approvals(self._front.view(), self._front)
        with trio.CancelScope() as answering:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, view, answering)
                try:
                    if said := shortfall(await self._agent.ask(text, view), is_ours=False):
                        await self._front.say(said)
                except AlloyError as error:
                    await self._front.say(f"error: {explain(error, is_ours=False)}")
                nursery.cancel_scope.cancel()
        if answering.cancelled_caught:
            await self._front.say("cancelled", dim=True)

    async def _listen(self, view: _Approvals, answering: trio.CancelScope) -> None:
        """Take what is typed in the middle of an answer."""
        while True:
            typed = await self._front.receive()
            self._has_left = typed is Key.END
            if typed in {Key.INTERRUPT, Key.END}:
                answering.cancel()
                return
            if isinstance(typed, Line):
                await self._remark(typed.text.strip(), view)

    async def _remark(self, text: str, view: _Approvals) -> None:
        call = view.asked
        if not text:
            if call is not None:
                await self._front.prompt(_ASK)
            return
        view.asked = None
        try:
            await self._agent.say(text, call)
        except (AgentIdle, UnknownRequest) as late:
            await self._front.say(f"too late: {explain(late)}", dim=True)
        except AlloyError as error:  # the question fails as well, if the connection is lost
            await self._front.say(explain(error, is_ours=False), dim=True)
