"""
`python -m alloy_trio --connect URL`: talk to an agent that lives in another process, and is served there (`serve_agents`).

A command of its own: what a run is made of (providers, tools, sessions) is chosen where the agent lives. In a conversation a line
that is typed in the middle of an answer steers it, Ctrl-C cancels it, and calls that wait for a person are asked about.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import click
import trio

from .._errors import AgentIdle, AlloyError, InvalidOption, RequestCancelled, UnknownRequest
from .._events import ApprovalRequested, Envelope
from ._keys import Key, Line
from ._plain import Input, open_plain
from ._program import guarded, read_prompt, until_signal
from ._show import JSONLines, Output, Screen, explain, shortfall, show_events

if TYPE_CHECKING:
    from ..remote._client import Remote
    from ..remote._remote_agent import RemoteAgent
    from ._plain import Plain
    from ._show import View

TOKEN: Final = "ALLOY_TOKEN"  # noqa: S105 - the name of a variable
_HELP: Final = "a line typed meanwhile steers; Ctrl-C cancels; Ctrl-D leaves"
_ASK: Final = "allow it? y, or n and a reason: "


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option("--connect", "url", metavar="URL", required=True, help="ws://HOST:PORT or wss://, as the server says.")
@click.option("--agent", "name", metavar="NAME", help="Whom to talk to; not needed where there is one.")
@click.option("-p", "--prompt", metavar="PROMPT", help="The prompt, instead of the argument.")
@click.option("--json", is_flag=True, help="One JSON event a line on stdout, and nothing else there.")
@click.option("--no-color", is_flag=True, help="No escape codes.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(words: tuple[str, ...], url: str, name: str | None, prompt: str | None, **flags: bool) -> int:
    """Talk to an agent in another process. Its token comes from the environment, ALLOY_TOKEN."""
    color = not (flags["no_color"] or os.environ.get("NO_COLOR"))
    out, err = (Output(file, color=color) for file in (sys.stdout, sys.stderr))

    async def main() -> int:
        stdin = Input(sys.stdin)
        asked = await read_prompt(words, prompt, stdin, err, needed=flags["json"])
        view = partial(JSONLines, out) if flags["json"] else partial(Screen, out, err, Path())
        return await _Visit(stdin, err, view).make(url, name, asked)

    return guarded(lambda: trio.run(until_signal, main, err), debug=flags["debug"])


@attrs.define
class _Visit:
    """One use of the command."""

    stdin: Input
    err: Output
    view: partial[JSONLines] | partial[Screen]

    async def make(self, url: str, name: str | None, prompt: str | None) -> int:
        """Connect, and return the exit status."""
        try:
            from ..remote._client import connect  # noqa: PLC0415 - needs the extra
        except ImportError as error:
            raise InvalidOption("--connect needs the extra `ws`: pip install 'alloy_trio[ws]'") from error
        token = os.environ.get(TOKEN, "")
        if not token:
            raise InvalidOption(f"--connect needs the server's token in the environment: set {TOKEN}")
        async with connect(url, token) as remote:
            agent = remote.agent(await _chosen(remote, name))
            if prompt is not None:
                return await self._answer(agent, prompt)
            async with open_plain(self.stdin, self.err, self.view) as front:
                return await _Talk(agent, front).hold()

    async def _answer(self, agent: RemoteAgent, prompt: str) -> int:
        view = self.view()
        result = await show_events(agent.stream_chat(prompt), view)
        if said := shortfall(result):
            await self.err.write(f"{said}\n")
        return 0 if result.status == "completed" else 1


async def _chosen(remote: Remote, name: str | None) -> str:
    """Return the name of the agent to talk to. Raises InvalidOption, which names those there are."""
    names = await remote.agents()
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        wanted = "--agent is needed" if name is None else f"there is no agent {name!r}"
        raise InvalidOption(f"{wanted}: {', '.join(names) or 'none is served to this token'}")
    return name


class _Approvals:
    """Shows a run, and notes the calls that wait for a person."""

    def __init__(self, view: View, front: Plain) -> None:
        self._view = view
        self._front = front
        self.waiting: list[str] = []

    async def show(self, envelope: Envelope) -> None:
        """Show one event."""
        await self._view.show(envelope)
        if isinstance(envelope.event, ApprovalRequested):
            self.waiting.append(envelope.event.id)
            await self._front.prompt(_ASK)

    async def close(self) -> None:
        """The run is over."""
        await self._view.close()


class _Talk:
    """A conversation, line by line."""

    def __init__(self, agent: RemoteAgent, front: Plain) -> None:
        self._agent = agent
        self._front = front
        self._has_left = False

    async def hold(self) -> int:
        """Talk until the person leaves; return the exit status."""
        await self._front.say(f"{self._agent.name}: {_HELP}", dim=True)
        while not self._has_left:
            await self._front.prompt("> ")
            match await self._front.receive():
                case Key.END:
                    return 0
                case Line(text=text) if text.strip():
                    try:
                        await self._ask(text)
                    except RequestCancelled:
                        await self._front.say("cancelled", dim=True)
                    except AlloyError as error:
                        await self._front.say(f"error: {explain(error)}")
        return 0

    async def _ask(self, text: str) -> None:
        view = _Approvals(self._front.view(), self._front)
        events = self._agent.stream_chat(text)
        error: Exception | None = None
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def listen() -> None:
                while True:
                    typed = await self._front.receive()
                    if typed in {Key.INTERRUPT, Key.END}:
                        events.cancel()
                    if typed is Key.END:
                        self._has_left = True
                        return
                    if isinstance(typed, Line) and typed.text.strip():
                        await self._say(typed.text.strip(), view)

            try:
                result = await show_events(events, view)
                if said := shortfall(result):
                    await self._front.say(said)
            except AlloyError as raised:
                error = raised
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error

    async def _say(self, text: str, view: _Approvals) -> None:
        """Take a line that was typed in the middle of an answer: for the call that waits, or for the model."""
        try:
            if not view.waiting:
                await self._agent.steer(text)
                return
            call, word = view.waiting.pop(0), text.partition(" ")
            if word[0].lower() in {"y", "yes"}:
                await self._agent.approve(call)
            else:
                reason = word[2] if word[0].lower() in {"n", "no"} else text
                await self._agent.deny(call, *([reason] if reason else []))
        except (AgentIdle, UnknownRequest) as late:
            await self._front.say(f"too late: {explain(late)}", dim=True)
