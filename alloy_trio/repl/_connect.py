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
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import click
import trio

from .._background import Background
from .._errors import AgentIdle, AlloyError, InvalidOption, UnknownRequest
from .._events import ApprovalRequested, Envelope, Event, RunEnd, TextDelta, ToolEnd, ToolStart, TurnEnd
from .._util import new_id
from ._fleet import OUR_REDIS, REDIS, SEEN, redis_url
from ._keys import Key, Line
from ._plain import Input, open_plain
from ._program import guarded, read_prompt, until_signal
from ._show import JSONLines, Output, Screen, explain, shortfall, show_events
from ._text import DIM, harmless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .._result import Result
    from ..fleet._queue import RedisQueue
    from ..remote._client import Remote
    from ..remote._remote_agent import RemoteAgent
    from ._plain import Plain
    from ._show import View

    Say = Callable[[str], Awaitable[None]]

TOKEN: Final = "ALLOY_TOKEN"  # noqa: S105 - the name of a variable
_UNAUTHORIZED: Final = 401
_PATIENCE: Final = 3.0  # seconds of silence, before it is said what may be wrong
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
        async with _reached(url, name, prefix, say, talks=asked is None) as agent:
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


class Far(Protocol):
    """An agent elsewhere."""

    name: str

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask it, show what happens, and return the result. A cancel is one of the request."""
        ...

    async def say(self, text: str, call: str | None) -> None:
        """Say something in the middle of an answer: about a call that waits for a person, if one does."""
        ...


class Served:
    """One that a server has."""

    def __init__(self, agent: RemoteAgent, say: Say | None = None) -> None:
        self._agent = agent
        self._tell = say
        self.name = agent.name

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask, and show it as it comes."""
        async with Background(self._say_why_nothing_comes):
            return await show_events(self._agent.stream_chat(prompt), view)

    async def _say_why_nothing_comes(self) -> None:
        await trio.sleep(_PATIENCE)
        if self._tell is not None and self._agent._remote._link is None:  # noqa: SLF001 - nobody else asks
            await self._tell("the connection is lost: it is tried again; Ctrl-C gives up")

    async def say(self, text: str, call: str | None) -> None:
        """Decide on the call, or steer."""
        if call is None:
            await self._agent.steer(text)
            return
        word, _, rest = text.partition(" ")
        if word.lower() in {"y", "yes"}:
            await self._agent.approve(call)
        else:
            reason = rest if word.lower() in {"n", "no"} else text
            await self._agent.deny(call, *([reason] if reason else []))


class Queued:
    """One of a fleet. With a session, what it is asked is one conversation."""

    def __init__(self, queue: RedisQueue, name: str, say: Say, session_id: str | None = None) -> None:
        self._queue = queue
        self._tell = say
        self.name = name
        self._session_id = session_id

    async def ask(self, prompt: str, view: View) -> Result:
        """Ask, and show the answer when it is there."""
        async with Background(self._say_why_nothing_comes):
            result = await self._queue.chat(self.name, prompt, session_id=self._session_id)
        events: list[Event] = [RunEnd(result.status, result.turns, result.usage)]
        if result.text:
            turn = TurnEnd(result.messages[-1], result.stop_reason or "", result.usage)
            events = [TextDelta(result.text), turn, *events]
        for number, event in enumerate(events, 1):
            envelope = Envelope(
                seq=number, correlation_id=str(result.request_id), turn=result.turns, ts=time.time(), event=event
            )
            await view.show(envelope)
        await view.close()
        return result

    async def _say_why_nothing_comes(self) -> None:
        await trio.sleep(_PATIENCE)
        stands = await self._queue.statistics(self.name)
        if stands.pending and not stands.running:
            await self._tell(
                f"no worker has taken it so far: is one up that has an agent {self.name!r}? Ctrl-C gives up"
            )

    async def say(self, text: str, call: str | None) -> None:
        """Nobody hears it. Raises InvalidOption."""
        del text, call
        await trio.lowlevel.checkpoint()
        raise InvalidOption("an agent of a fleet takes no remarks: ask when it has answered")


@contextlib.asynccontextmanager
async def _reached(url: str, name: str | None, prefix: str | None, say: Say, *, talks: bool) -> AsyncIterator[Far]:
    """Reach an agent, for a conversation or for one prompt. Raises InvalidOption where that cannot be, and what `connect` and `open_queue` do."""
    match url.partition(":")[0].lower():
        case "redis" | "rediss" | "unix":
            reached = _queued(url, name, prefix, say, talks=talks)
        case "ws" | "wss" if prefix is None:
            reached = _served(url, name, say)
        case "ws" | "wss":
            raise InvalidOption("--prefix is for a fleet, --connect redis://…: a server has none")
        case _:
            raise InvalidOption(
                "--connect takes ws://HOST:PORT or wss://HOST:PORT of a server, or redis://HOST of a fleet"
            )
    async with reached as agent:
        yield agent


@contextlib.asynccontextmanager
async def _queued(url: str, name: str | None, prefix: str | None, say: Say, *, talks: bool) -> AsyncIterator[Far]:
    try:
        from ..fleet._names import PREFIX  # noqa: PLC0415 - needs the extra
        from ..fleet._queue import open_queue  # noqa: PLC0415 - as above
        from ..fleet._store import RedisStore  # noqa: PLC0415 - as above
    except ImportError as error:
        raise InvalidOption("a fleet needs the extra `redis`: pip install 'alloy_trio[redis]'") from error
    if name is None:
        raise InvalidOption("--agent is needed: a queue does not know who is there")
    if "@" in url:
        raise InvalidOption(f"{SEEN}, and say --connect {OUR_REDIS}")
    url, prefix = redis_url(url) or url, PREFIX if prefix is None else prefix
    session_id = new_id() if talks else None
    async with open_queue(url, prefix=prefix) as queue:
        yield Queued(queue, name, say, session_id)
    if session_id is not None:  # nobody else knows its name, and Redis would keep it for ever
        with contextlib.suppress(AlloyError):
            async with RedisStore(url, prefix=prefix, patience=1.0) as store:
                await store.delete(session_id)


@contextlib.asynccontextmanager
async def _served(url: str, name: str | None, say: Say) -> AsyncIterator[Far]:
    try:
        from ..remote._client import connect  # noqa: PLC0415 - needs the extra
        from ..remote._errors import Refused  # noqa: PLC0415 - as above
    except ImportError as error:
        raise InvalidOption("--connect needs the extra `ws`: pip install 'alloy_trio[ws]'") from error
    if "@" in url:
        raise InvalidOption(f"a user or a password in the URL is for nobody: the server's token goes into {TOKEN}")
    token = os.environ.get(TOKEN, "")
    if not token:
        raise InvalidOption(f"--connect needs the server's token in the environment: set {TOKEN}")
    try:
        async with connect(url, token) as remote:
            chosen = await _chosen(remote, name)
            yield Served(remote.agent(chosen), say)
    except Refused as error:
        if error.status != _UNAUTHORIZED:
            raise
        raise InvalidOption(f"{url} does not take the token that is in {TOKEN}") from error


async def _chosen(remote: Remote, name: str | None) -> str:
    """Return the name of the agent to talk to. Raises InvalidOption, which names those there are."""
    names = await remote.agents()
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        wanted = "--agent is needed" if name is None else f"there is no agent {name!r}"
        raise InvalidOption(f"{wanted}: {', '.join(names) or 'none is served to this token'}")
    return name


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
