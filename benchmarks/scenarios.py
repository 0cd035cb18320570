"""
The table of all scenarios.

A function is named, not held: a worker imports only what its side needs, so that the bare client is measured without us.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

if TYPE_CHECKING:
    from .place import Figures, Place, Side

    Server: TypeAlias = Literal["plain", "tls"]


@attrs.frozen
class Scenario:
    """
    Something to measure.

    Attributes:
        about: What it is, in a few words.
        ours: The function that does it with alloy_trio, as `module:name`; it takes a `Place` and returns figures.
        bare: The yardstick where it is another function; None: `ours` measures either side.
        options: Given to the function besides.
        server: Which server it needs.
    """

    about: str
    ours: str
    bare: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    server: Server | None = None

    def run(self, place: Place) -> Figures:
        """Measure one side of it, in this process."""
        module, _, name = self.function(place.side).partition(":")
        figures: Figures = getattr(importlib.import_module(f"benchmarks.{module}"), name)(place, **self.options)
        return figures

    def function(self, side: Side) -> str:
        """Return which function a side runs."""
        return self.bare if side == "bare" and self.bare else self.ours


def _wire(about: str, name: str, server: Server | None = "plain", **options: object) -> Scenario:
    return Scenario(about, f"wire:{name}", options=options, server=server)


def _inside(about: str, where: str) -> Scenario:
    return Scenario(about, where, bare="yardstick:checkpoint")


SCENARIOS: dict[str, Scenario] = {
    "turns": _wire("one run after the other: five turns, three calls in each", "turns"),
    "agents-200": _wire("200 agents at once, five turns each", "agents", agents=200),
    "agents-1000": _wire("1,000 agents at once", "agents", agents=1000),
    "agents-1000-frozen": _wire("the same after gc.freeze()", "agents", agents=1000, collector="frozen"),
    "agents-1000-seldom": _wire("the same with higher gc thresholds", "agents", agents=1000, collector="seldom"),
    "agents-1000-both": _wire("the same with both", "agents", agents=1000, collector="frozen, seldom"),
    "agents-1000-off": _wire("the same without a gc, as the limit", "agents", agents=1000, collector="off"),
    "stream": _wire("one stream of 50,000 chunks", "streams", streams=1, chunks=50_000),
    "streams": _wire("200 streams at once, 500 chunks each", "streams", streams=200, chunks=500),
    "streams-paced": _wire("200 streams, a chunk each 50 ms", "streams", streams=200, chunks=100, every=50),
    "stream-tls": _wire("TLS, 10,000 chunks, a record each", "streams", "tls", streams=1, chunks=10_000),
    "turns-tls": _wire("TLS, one run after the other", "turns", "tls"),
    "history": _wire("one run of 500 turns", "history"),
    "cancel": _wire("200 streams cancelled at once", "cancel"),
    "idle": _wire("10,000 idle conversations of ten messages", "idle", None),
    "idle-agents": Scenario("1,000 idle agents; a waiting task", "living:idle_agents", bare="yardstick:tasks"),
    "import": Scenario("a fresh process; trio and httpx", "starts:imports"),
    "catalog": Scenario("a fresh process; the file as JSON", "starts:catalog"),
    "prompt": Scenario("the REPL; a process with trio and prompt_toolkit", "starts:prompt"),
    "runs": _inside("a run with a scripted model", "inside:runs"),
    "chunks": _inside("a stream of a scripted model", "inside:chunks"),
    "telemetry": _inside("instruments", "inside:telemetry"),
    "messages": _inside("a history that grows", "inside:messages"),
    "chats": _inside("an agent beside a run", "living:chats"),
    "conversations": _inside("an agent's conversation that grows", "living:conversations"),
    "mailboxes": _inside("messages to a busy agent", "living:mailboxes"),
    "topics": _inside("publishing", "living:topics"),
    "supervisors": _inside("children of a supervisor", "living:supervisors"),
    "remote": _inside("an agent over a connection", "far:remote"),
}
