"""The door to an agent that lives as long as the body of an `async with`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import attrs
import trio

from ._agent import Agent
from ._agent_config import freeze
from ._background import Background
from ._util import Discreet, single

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from ._agent_config import AgentChanges, AgentConfig, AgentOptions


@overload
def open_agent(**options: Unpack[AgentOptions]) -> AbstractAsyncContextManager[Agent]: ...


@overload
def open_agent(config: AgentConfig, /, **options: Unpack[AgentChanges]) -> AbstractAsyncContextManager[Agent]: ...


def open_agent(config: AgentConfig | None = None, /, **options: Any) -> AbstractAsyncContextManager[Agent]:
    """
    Open an agent that lives as long as the body.

        async with open_agent(provider="demo") as agent:
            result = await agent.chat("Hello")

    Leaving the body cancels what runs, and returns once nothing does; `await agent.stop()`, or `wait_idle()`, before that lets it
    finish. The body's exception leaves as it came; if the agent has broken down besides, a note on it says so.

    Args:
        config: Options that were checked before, for many agents.
        **options: See `AgentOptions`; they go before those of `config`. `provider=` is needed.

    Raises:
        InvalidOption: Something about the options.
        AgentClosed: A `session_start` hook has halted.
        StoreError: The session could not be read.
    """
    options = Discreet(options)
    return _open(Agent(freeze(config, options)))


@contextlib.asynccontextmanager
async def _open(agent: Agent) -> AsyncIterator[Agent]:
    ready = trio.Event()
    life = Background(partial(_live, agent, ready))
    try:
        async with life:
            await ready.wait()
            if agent._core.is_up:  # noqa: SLF001 - the agent's own
                yield agent
    except Exception as error:
        if life.error is not None:
            broken = single(life.error)
            error.add_note(f"The agent had broken down as well: {type(broken).__name__}: {broken}")
        raise
    if life.error is not None:
        raise single(life.error)  # in a group, if leaving the body has cancelled what was about to break down


async def _live(agent: Agent, ready: trio.Event) -> None:
    status = _Started(ready.set)
    try:
        await agent._core.serve(task_status=status)  # noqa: SLF001 - the agent's own
    finally:
        ready.set()


@attrs.frozen
class _Started:
    """Says that the agent is there."""

    _tell: Callable[[], None]

    def started(self, _: object = None) -> None:
        self._tell()
