"""An agent that is reached over a connection, for tests that were written for one that is not."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing

from alloy_trio import Agent, open_agent
from alloy_trio._background import Background
from alloy_trio.remote import Permissions, Remote, RemoteAgent
from alloy_trio.remote._dial import Options
from alloy_trio.remote._house import Agents, House
from alloy_trio.remote._peer import Limits
from alloy_trio.remote._rights import Doors
from alloy_trio.remote._server import _Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from alloy_trio.pubsub import PubSub

TOKEN = "nobody can guess this"
MEGABYTES = 64 * 2**20
FOREVER = Limits(ping_interval=1e9)


@contextlib.asynccontextmanager
async def linked(
    agents: Agents,
    pubsub: PubSub | None = None,
    *,
    token: str = TOKEN,
    tokens: Mapping[str, Permissions] | None = None,
    limits: Limits = FOREVER,
    reconnect: float = 0.0,
    ping_timeout: float = 1e9,
    streams: list[Any] | None = None,
    house: House | None = None,
) -> AsyncIterator[Remote]:
    """
    Serve agents, and connect to them, over a stream in memory, so that virtual time works as without one.

    `streams` gets the client's ends, for `cut`.
    """
    doors = Doors(tokens or token)
    limits = attrs.evolve(limits, max_message_size=MEGABYTES)
    server = _Server(house or House(agents, pubsub), doors, limits, frozenset())
    send, receive = trio.open_memory_channel[Any](math.inf)

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            async for stream in receive:
                nursery.start_soon(server.handle, stream)

    async def dial(_: Options) -> Any:
        ours, theirs = trio.testing.memory_stream_pair()
        send.send_nowait(theirs)
        if streams is not None:
            streams.append(ours)
        return ours

    options = Options(
        url="ws://here",
        ssl_context=None,
        max_message_size=MEGABYTES,
        ping_interval=1e9,
        ping_timeout=ping_timeout,
        connect_timeout=1e9,
        reconnect=reconnect,
    )
    remote = Remote(options, token, dial)
    async with Background(serve), Background(remote._live):
        await remote._connected()
        yield remote


def cut(streams: list[Any]) -> None:
    """Let the last connection break."""
    streams[-1].send_stream.close()
    streams[-1].receive_stream.close()


class FarAgent:
    """Asks over the connection; what is read is read here, where the agent is."""

    def __init__(self, near: Agent, far: RemoteAgent) -> None:
        self.near = near
        self.far = far
        self.name = near.name  # these two are what one has who can be asked: a check finds no `__getattr__`
        self.chat = far.chat

    def __getattr__(self, name: str) -> Any:
        return getattr(self.far if name in _OVER else self.near, name)


_OVER = {
    "stream_chat",
    "send_message",
    "cancel_request",
    "cancel_tool",
    "steer",
    "wait_idle",
    "reset",
}


@contextlib.asynccontextmanager
async def open_far_agent(*args: Any, **options: Any) -> AsyncIterator[Any]:
    """Do what `open_agent` does, and put a connection in between."""
    async with open_agent(*args, **options) as near, linked({"it": near}, options.get("pubsub")) as remote:
        yield FarAgent(near, remote.agent("it"))
