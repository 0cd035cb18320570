"""
`python -m alloy_trio --connect URL`: talk to an agent that lives in another process.

    ws:// wss://              one that is served (`serve_agents`): its answer streams, a line typed meanwhile steers it, calls are approved
    redis:// rediss:// unix:// one of a fleet's workers: the answer comes when it is done. Without a host, it is that of ALLOY_REDIS

A command of its own: what a run is made of (providers, tools, sessions) is chosen where the agent lives.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import click
import trio

from .._errors import AgentIdle, AlloyError, InvalidOption, UnknownRequest
from .._events import ApprovalRequested, Envelope, Event, RunEnd, TextDelta
from .._util import new_id
from ._fleet import REDIS, SEEN
from ._keys import Key, Line
from ._plain import Input, open_plain
from ._program import guarded, read_prompt, until_signal
from ._show import JSONLines, Output, Screen, explain, shortfall, show_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .._result import Result
    from ..fleet._queue import RedisQueue
    from ..remote._client import Remote
    from ..remote._remote_agent import RemoteAgent
    from ._plain import Plain
    from ._show import View

TOKEN: Final = "ALLOY_TOKEN"  # noqa: S105 - the name of a variable
_OUR_REDIS: Final = "redis://"
_HELP: Final = "Ctrl-C cancels; Ctrl-D leaves"
_ASK: Final = "allow it? y, or n and a reason: "


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option(
    "--connect", "url", metavar="URL", required=True, help="A server, ws://… or wss://…; or a fleet's redis://…"
)
@click.option("--agent", "name", metavar="NAME", help="Whom to talk to; not needed where one is served.")
@click.option("-p", "--prompt", metavar="PROMPT", help="The prompt, instead of the argument.")
@click.option("--json", is_flag=True, help="One JSON event a line on stdout, and nothing else there.")
@click.option("--no-color", is_flag=True, help="No escape codes.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(words: tuple[str, ...], url: str, name: str | None, prompt: str | None, **flags: bool) -> int:
    """Talk to an agent in another process. A server's token comes from the environment, ALLOY_TOKEN."""
    color = not (flags["no_color"] or os.environ.get("NO_COLOR"))
    out, err = (Output(file, color=color) for file in (sys.stdout, sys.stderr))

    async def main() -> int:
        stdin = Input(sys.stdin)
        asked = await read_prompt(words, prompt, stdin, err, needed=flags["json"])
        view = partial(JSONLines, out) if flags["json"] else partial(Screen, out, err, Path())
        async with _reached(url, name) as agent:
            if asked is not None:
                return await _answer(agent, asked, view(), err)
            async with open_plain(stdin, err, view) as front:
                return await Talk(agent, front).hold()

    return guarded(lambda: trio.run(until_signal, main, err), debug=flags["debug"])


async def _answer(agent: Far, prompt: str, view: View, err: Output) -> int:
    result = await agent.ask(prompt, view)
    if said := shortfall(result):
        await err.write(f"{said}\n")
    return 0 if result.status == "completed" else 1


class Far(Protocol):
    """An agent elsewhere."""

    name: str

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask it, show what happens, and return the result. A cancel is one of the request."""
        ...

    async def say(self, text: str, waiting: list[str]) -> None:
        """Say something in the middle of an answer: of the first of the calls that wait for a person, if any does."""
        ...


class Served:
    """One that a server has."""

    def __init__(self, agent: RemoteAgent) -> None:
        self._agent = agent
        self.name = agent.name

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask, and show it as it comes."""
        return await show_events(self._agent.stream_chat(prompt), view)

    async def say(self, text: str, waiting: list[str]) -> None:
        """Decide on the call, or steer."""
        if not waiting:
            await self._agent.steer(text)
            return
        call, (word, _, rest) = waiting.pop(0), text.partition(" ")
        if word.lower() in {"y", "yes"}:
            await self._agent.approve(call)
        else:
            reason = rest if word.lower() in {"n", "no"} else text
            await self._agent.deny(call, *([reason] if reason else []))


class Queued:
    """One of a fleet: the requests of this use are one conversation."""

    def __init__(self, queue: RedisQueue, name: str) -> None:
        self._queue = queue
        self.name = name
        self._session_id = new_id()

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask, and show the answer when it is there."""
        result = await self._queue.chat(self.name, prompt, session_id=self._session_id)
        ids, events = str(result.request_id), list[Event]([TextDelta(result.text)] if result.text else [])
        for number, event in enumerate([*events, RunEnd(result.status, result.turns, result.usage)], 1):
            await view.show(Envelope(seq=number, correlation_id=ids, turn=result.turns, ts=time.time(), event=event))
        await view.close()
        return result

    async def say(self, text: str, waiting: list[str]) -> None:
        """Nobody hears it. Raises AgentIdle."""
        del text, waiting
        await trio.lowlevel.checkpoint()
        raise AgentIdle("an agent of a fleet takes no remarks: ask when it has answered")


@contextlib.asynccontextmanager
async def _reached(url: str, name: str | None) -> AsyncIterator[Far]:
    """Reach an agent. Raises InvalidOption where that cannot be, and what `connect` and `open_queue` do."""
    if urlsplit(url).scheme in {"redis", "rediss", "unix"}:
        try:
            from ..fleet._queue import open_queue  # noqa: PLC0415 - needs the extra
        except ImportError as error:
            raise InvalidOption("a fleet needs the extra `redis`: pip install 'alloy_trio[redis]'") from error
        if name is None:
            raise InvalidOption("--agent is needed: a queue does not know who is there")
        if "@" in url:
            raise InvalidOption(f"{SEEN}, and say --connect {_OUR_REDIS}")
        async with open_queue(os.environ.get(REDIS) or url if url == _OUR_REDIS else url) as queue:
            yield Queued(queue, name)
        return
    try:
        from ..remote._client import connect  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        raise InvalidOption("--connect needs the extra `ws`: pip install 'alloy_trio[ws]'") from error
    token = os.environ.get(TOKEN, "")
    if not token:
        raise InvalidOption(f"--connect needs the server's token in the environment: set {TOKEN}")
    async with connect(url, token) as remote:
        chosen = await _chosen(remote, name)
        yield Served(remote.agent(chosen))


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


class Talk:
    """A conversation, line by line."""

    def __init__(self, agent: Far, front: Plain) -> None:
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
                    await self._ask(text)
        return 0

    async def _ask(self, text: str) -> None:
        view = _Approvals(self._front.view(), self._front)
        with trio.CancelScope() as answering:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, view, answering)
                try:
                    if said := shortfall(await self._agent.ask(text, view)):
                        await self._front.say(said)
                except AlloyError as error:
                    await self._front.say(f"error: {explain(error)}")
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
            if isinstance(typed, Line) and typed.text.strip():
                try:
                    await self._agent.say(typed.text.strip(), view.waiting)
                except (AgentIdle, UnknownRequest) as late:
                    await self._front.say(f"too late: {explain(late)}", dim=True)
