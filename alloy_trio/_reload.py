"""Hot reload: new source for the tools of agents that go on running. How it is executed stands in `_fresh`."""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import attrs

from ._fresh import ReloadFailed, executed, failure, imported
from ._rebind import module_of, rebound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .tools._tool import Tool


class Reloadable(Protocol):
    """What has tools that can be exchanged: an `Agent`, or something of yours."""

    @property
    def tools(self) -> Mapping[str, Tool]:
        """By name, the tools that its next run will have."""
        ...

    def reload(self, *, tools: Iterable[Tool]) -> object:
        """Take these tools from the next run on; or raise, and keep what it has."""
        ...


@attrs.frozen(eq=False)
class Reloaded:
    """
    Modules that have been swapped for their new source.

    Attributes:
        modules: The fresh modules by name.
        rebound: What the agents' exchanged tools are called now.
        missing: By name, the agents' tools that stayed the old ones, and why: the new source no longer has them, or they
            were made at run time (by a function, of an object's method) and have no name to ask it for.
    """

    modules: Mapping[str, ModuleType]
    rebound: tuple[str, ...] = ()
    missing: Mapping[str, str] = attrs.field(factory=dict)
    _old: Mapping[str, ModuleType] = attrs.field(factory=dict, repr=False, alias="_old")

    def rebind(self, tools: Iterable[Tool]) -> list[Tool]:
        """
        Return `tools` with those of the reloaded modules exchanged for the new ones. The others are the same objects.

        For tools that no agent has, those that are given to `run` for instance.

        Raises:
            ReloadFailed: A function of the new source is no tool any more: a parameter has no type hint, for instance.
        """
        return [tool if isinstance(new, str | None) else new for tool, new in self._pairs(tools)]

    def _pairs(self, tools: Iterable[Tool]) -> list[tuple[Tool, Tool | str | None]]:
        return [(tool, self._rebound(tool)) for tool in tools]

    def _rebound(self, tool: Tool) -> Tool | str | None:
        try:
            return rebound(tool, self._old, self.modules)
        except Exception as error:
            raise failure(module_of(tool), error) from error


def reload_modules(*modules: str | ModuleType, agents: Iterable[Reloadable] = ()) -> Reloaded:
    """
    Execute the present source of modules in fresh module objects, and swap them in if all of it succeeds.

    Calls in flight end on the old code, which nothing here changes. The agents have the new tools from their next run
    on. A tool that the new source does not have stays the old one; one that is new in it is given to nobody. Middleware,
    and all else that refers to the old modules, stays as it is: after `from my_tools import search`, in a module that is
    not named here, that is the old `search`. Modules that use each other are named in one call, in any order.

    It blocks as an import does. To be called in Trio's thread.

    Args:
        *modules: Modules that have been imported, by name. A package is its `__init__` alone.
        agents: Those whose tools are exchanged.

    Raises:
        ReloadFailed: A source cannot be read, compiled or executed (by a `SystemExit`, too), or an agent refuses its new
            tools. Everything is as it was.
        InvalidOption: A module cannot be reloaded: it has not been imported, has no source, or is `__main__`.
    """
    old = imported(modules)
    with contextlib.ExitStack() as undo:
        fresh = executed(old, undo)
        reloaded = _exchange(list(agents), Reloaded(fresh, _old=old), undo)
        undo.pop_all()
    for module in fresh.values():
        linecache.cache.pop(module.__file__ or "", None)  # `checkcache` does not notice an edit of the same second
    return reloaded


def _exchange(agents: list[Reloadable], reloaded: Reloaded, undo: contextlib.ExitStack) -> Reloaded:
    pairs = [reloaded._pairs(agent.tools.values()) for agent in agents]  # noqa: SLF001 - of this file
    for agent, tools in zip(agents, pairs, strict=True):
        if any(new is not tool for tool, new in tools if not isinstance(new, str | None)):
            _give(agent, [tool if isinstance(new, str | None) else new for tool, new in tools])
            undo.callback(agent.reload, tools=[tool for tool, _ in tools])
    flat = [pair for tools in pairs for pair in tools]
    names = [new.name for tool, new in flat if not isinstance(new, str | None) and new is not tool]
    missing = {tool.name: why for tool, why in flat if isinstance(why, str)}
    return attrs.evolve(reloaded, rebound=tuple(dict.fromkeys(names)), missing=missing)


def _give(agent: Reloadable, tools: list[Tool]) -> None:
    try:
        agent.reload(tools=tools)
    except Exception as error:
        raise ReloadFailed(f"nothing is reloaded, for {agent!r} refuses its new tools: {error}") from error
