"""What is served: agents by name, topics, and the results of requests that nobody waited for. Knows nothing of sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .._agent import Agent
from .._errors import UnknownRequest
from .._requests import Pending
from ..pubsub._pubsub import PubSub
from ..supervision._registry import Registry
from ..supervision._supervisor import Supervisor
from ._errors import UnknownAgent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._rights import Permissions

Agents: TypeAlias = "Registry | Supervisor | Mapping[str, Agent]"

_KEPT = 1000  # results of messages to one agent that are kept for whoever asks later


@attrs.define(eq=False)
class House:
    """
    All that a server has to offer, to whoever may have it.

    Attributes:
        agents: The agents, by name.
        pubsub: The topics; None: those of no agent.
    """

    agents: Agents
    pubsub: PubSub | None = None
    _pending: dict[str, dict[str, tuple[Pending, str | None]]] = attrs.field(factory=dict)  # by agent, then by id

    def names(self, permissions: Permissions) -> list[str]:
        """Return the names of the agents that may be reached."""
        return [name for name in self._names() if permissions.allows(name)]

    def _names(self) -> list[str]:
        if isinstance(self.agents, Supervisor):
            return [child.id for child in self.agents.which_children() if isinstance(child.handle, Agent)]
        return list(self.agents.names() if isinstance(self.agents, Registry) else self.agents)

    async def agent(self, name: object, permissions: Permissions) -> Agent:
        """
        Return an agent, once it is up: waits while its supervisor starts it again.

        Raises:
            UnknownAgent: There is none of that name, or it may not be reached: which of both, is not said.
        """
        found: Any = None
        if isinstance(name, str) and permissions.allows(name):
            try:
                found = await self._find(name)
            except LookupError:
                found = None
        if not isinstance(found, Agent):
            known = ", ".join(self.names(permissions)) or "none"
            raise UnknownAgent(f"there is no agent {name!r:.100} for you here; those that are: {known}")
        return found

    async def _find(self, name: str) -> Any:
        if isinstance(self.agents, Supervisor):
            return self.agents[name]  # an agent's handle outlives restarts
        return await self.agents.wait(name) if isinstance(self.agents, Registry) else self.agents[name]

    def keep(self, name: str, pending: Pending, once: str | None) -> None:
        """Keep a request that nobody waits for; of its agent's that are done, the oldest are given up for it."""
        kept = self._pending.setdefault(name, {})
        kept.pop(pending.request_id, None)
        kept[pending.request_id] = pending, once
        if len(kept) > _KEPT:
            done = [request_id for request_id, (each, _) in kept.items() if each.is_done]
            for request_id in done[: len(kept) - _KEPT]:
                del kept[request_id]

    def is_repeated(self, name: str, request_id: str, once: str | None) -> bool:
        """Whether a message is kept already, and is sent again since the answer to it was lost: by its `once`."""
        return once is not None and self._pending.get(name, {}).get(request_id, (None, None))[1] == once

    def pending(self, name: str, request_id: str) -> Pending:
        """Return a request that was kept. Raises UnknownRequest where there is none."""
        kept = self._pending.get(name, {}).get(request_id)
        if kept is None:
            raise UnknownRequest(
                f"no message {request_id!r:.100} was sent to {name} from outside, or it was over long ago"
            )
        return kept[0]
