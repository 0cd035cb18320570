"""
An agent that lives in another process, as a conversation has it: reached by the address that `--connect` was given.

    Served: one of a server's; its answer streams, and what is typed meanwhile reaches it
    Queued: one of a fleet's; the answer comes when it is done
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final, Protocol

import trio

from .._background import Background
from .._errors import AlloyError, InvalidOption
from .._events import Envelope, Event, RunEnd, TextDelta, TurnEnd
from .._util import new_id
from ._fleet import OUR_REDIS, SEEN, redis_url
from ._show import show_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .._result import Result
    from ..fleet._queue import RedisQueue
    from ..remote._client import Remote
    from ..remote._remote_agent import RemoteAgent
    from ._show import View

    Say = Callable[[str], Awaitable[None]]

TOKEN: Final = "ALLOY_TOKEN"  # noqa: S105 - the name of a variable
_UNAUTHORIZED: Final = 401
_PATIENCE: Final = 3.0  # seconds of silence, before it is said what may be wrong
_LAST: Final = 2.0  # seconds that Redis has to forget a conversation


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
async def reached(url: str, name: str | None, prefix: str | None, say: Say, *, talks: bool) -> AsyncIterator[Far]:
    """Reach an agent, for a conversation or for one prompt. Raises InvalidOption where that cannot be, and what `connect` and `open_queue` do."""
    match url.partition(":")[0].lower():
        case "redis" | "rediss" | "unix":
            way = _queued(url, name, prefix, say, talks=talks)
        case "ws" | "wss" if prefix is None:
            way = _served(url, name, say)
        case "ws" | "wss":
            raise InvalidOption("--prefix is for a fleet, --connect redis://…: a server has none")
        case _:
            raise InvalidOption(
                "--connect takes ws://HOST:PORT or wss://HOST:PORT of a server, or redis://HOST of a fleet"
            )
    async with way as agent:
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
        try:
            yield Queued(queue, name, say, session_id)
        finally:
            if session_id is not None:  # nobody else knows its name, and Redis would keep it for ever
                store = RedisStore._over(queue._link, prefix, 0, _LAST)  # noqa: SLF001 - its own door
                with trio.move_on_after(_LAST, shield=True), contextlib.suppress(AlloyError):
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
