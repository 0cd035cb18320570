"""
Agents that work for each other: three functions, and no framework.

A sub-agent is asked by `chat`, in the context and the cancel scopes of who asks: every budget around the asker pays for it, the
asker's deadline is its own, and a cancel reaches it. Who would wait for itself, through however many agents, gets `AgentBusy`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias, overload, runtime_checkable

import msgspec
import trio

from ._agent import Agent
from ._desk import as_message
from ._errors import AlloyError, InvalidOption, ToolError
from .supervision._registry import Registry
from .supervision._supervisor import Supervisor
from .tools._tool import Tool, tool

if TYPE_CHECKING:
    from ._messages import Message
    from ._result import Result


@runtime_checkable
class Answers(Protocol):
    """Who can be asked: an agent here, or one over a connection."""

    @property
    def name(self) -> str | None:
        """What it is called."""
        ...

    async def chat(self, prompt: str | Message, /) -> Result:
        """Answer."""
        ...


Team: TypeAlias = Mapping[str, Answers] | Supervisor | Registry
"""Agents by name."""

_FAN_OUT = 8


def delegate(agent: Answers | Team, *, name: str | None = None, description: str | None = None) -> Tool:
    """
    Make an agent, or one of several, a tool of another: the model gives it a task, and gets what it answers.

    The sub-agent works as a part of the call: a cancel of the lead, or its deadline, ends it, and budgets around the lead
    pay for it. It keeps its own conversation, from task to task, and takes one at a time. When it fails, or ends before it is
    done (`max_turns`, `budget_exceeded`, `halted`), the lead gets an error result that says so, and goes on.

    The tool has no time-out of its own, whatever the lead's `tool_timeout` is: `delegate(agent).evolve(timeout=60)`
    gives it one.

    Args:
        agent: An agent, here or over a connection; or several by name (a dict, a supervisor, a registry), of which the model chooses.
        name: The tool's: by default `ask_` and the agent's name, or `delegate`.
        description: What the model is told of it: what the agent can do, and when to ask it.

    Raises:
        InvalidOption: It is neither an agent nor several by name, or the name is none for a tool.
    """
    if isinstance(agent, Answers):
        return _delegate_to(agent, name, description)
    if isinstance(agent, Mapping | Supervisor | Registry):
        return _delegate_among(agent, name, description)
    raise InvalidOption(f"{agent!r:.100} is neither an agent nor a mapping of names to agents")


def _delegate_to(agent: Answers, name: str | None, description: str | None) -> Tool:
    label = agent.name or "another agent"

    async def ask(
        task: Annotated[str, msgspec.Meta(description="All that is to be done, and all it takes to know.")],
    ) -> Any:
        return await _answer(agent, label, task)

    return tool(
        ask,
        name=name or (f"ask_{re.sub(r'[^a-zA-Z0-9_-]', '_', agent.name)[:60]}" if agent.name else "delegate"),
        description=description
        or f"Give a task to {label}, who knows nothing of this conversation, and get the answer.",
        timeout=math.inf,
    )


def _delegate_among(team: Team, name: str | None, description: str | None) -> Tool:
    known = ", ".join(_names(team)) or "nobody yet"

    async def ask(
        agent: Annotated[str, msgspec.Meta(description=f"The name of the agent: {known}.")],
        task: Annotated[str, msgspec.Meta(description="All that is to be done, and all it takes to know.")],
    ) -> Any:
        try:
            found = await _find(team, agent)
        except InvalidOption as error:
            raise ToolError(str(error)) from error
        return await _answer(found, agent, task)

    return tool(
        ask,
        name=name or "delegate",
        description=description
        or "Give a task to another agent, who knows nothing of this conversation, and get the answer.",
        timeout=math.inf,
    )


async def _answer(agent: Answers, label: str, task: str) -> Any:
    """Return what the agent answers. Raises ToolError, if it does not get so far."""
    try:
        result = await agent.chat(task)
    except AlloyError as error:
        raise ToolError(f"{label} failed: {type(error).__name__}: {error}") from error
    if result.status == "completed":
        return result.text if result.output is None else result.output
    why = result.error or result.metadata.get(result.status) or f"after {result.turns} turns"
    raise ToolError(
        f"{label} did not get done ({result.status}: {why}). What it said last: {result.text or '(nothing)'}"
    )


def _names(team: Team) -> tuple[str, ...]:
    """Return the names of agents: a supervisor may have other children, and a registry other handles."""
    match team:
        case Supervisor():
            return tuple(child.id for child in team.which_children() if isinstance(child.handle, Agent))
        case Registry():
            return tuple(name for name in team.names() if isinstance(team[name], Agent))
    return tuple(team)


async def _find(team: Team, name: str) -> Answers:
    """Return the agent of that name; waits for one that restarts. Raises InvalidOption, which names those there are."""
    try:
        return _checked(await team.wait(name) if isinstance(team, Registry) else team[name])
    except LookupError as error:
        known = ", ".join(_names(team)) or "none"
        raise InvalidOption(f"there is no agent {name!r:.100}; those there are: {known}") from error


def _checked(agent: object) -> Answers:
    if not isinstance(agent, Answers):
        raise InvalidOption(f"{agent!r:.100} is no agent")
    return agent


def _local(agent: object) -> Agent:
    if not isinstance(agent, Agent):
        raise InvalidOption(f"{agent!r:.100} is no agent of this process: a conversation is handed over within one")
    return agent


async def broadcast(
    agents: Team | Iterable[Answers], prompt: str | Message, *, max_concurrency: float = _FAN_OUT
) -> dict[str, Result | Exception]:
    """
    Ask several agents the same, and wait for all: an entry for each, in order, with its result or what it raised.

    An agent that fails, or is gone, is an entry like others, and stops none of them. A cancel of the caller ends all.

    Args:
        agents: By name, or some agents with different names.
        prompt: What each of them is asked.
        max_concurrency: How many work at the same time (8); `math.inf` for all of them.

    Raises:
        InvalidOption: Two have the same name, one is no agent, or `max_concurrency` is no whole number from 1.
    """
    if max_concurrency != math.inf and (not isinstance(max_concurrency, int) or max_concurrency < 1):
        raise InvalidOption(f"max_concurrency={max_concurrency!r} has to be a whole number from 1, or math.inf")
    named = _named(agents)
    answers: dict[str, Result | Exception | None] = dict.fromkeys(named)
    left = iter(named.items())

    async def work() -> None:
        for name, found in left:
            try:
                agent = found if isinstance(found, Answers) else await _find(found, name)
                answers[name] = await agent.chat(prompt)
            except Exception as error:  # noqa: BLE001 - it is the answer
                answers[name] = error

    await trio.lowlevel.checkpoint()
    async with trio.open_nursery() as nursery:
        for _ in range(int(min(max_concurrency, len(named)))):
            nursery.start_soon(work)
    return {name: answer for name, answer in answers.items() if answer is not None}


def _named(agents: Any) -> dict[str, Answers | Team]:
    """Return agents by name, or where one is looked up when its turn comes."""
    if isinstance(agents, Mapping | Supervisor | Registry):
        return dict.fromkeys(_names(agents), agents)
    if isinstance(agents, str) or not isinstance(agents, Iterable):
        raise InvalidOption(f"{agents!r:.100} has to be a list of agents, or a mapping of names to them")
    named: dict[str, Answers | Team] = {}
    for each in agents:
        name = _checked(each).name or each.session_id  # only an agent here may have no name
        if name in named:
            raise InvalidOption(f"two agents are named {name!r}, and each has to have an entry: give a mapping")
        named[name] = each
    return named


@overload
async def handoff(agents: Agent, prompt: str | Message, *, to: Agent) -> Result: ...


@overload
async def handoff(
    agents: Iterable[Answers | str],
    prompt: str | Message,
    *,
    team: Team | None = None,
    results: list[Result] | None = None,
) -> Result | None: ...


async def handoff(
    agents: Agent | Iterable[Answers | str],
    prompt: str | Message,
    *,
    to: Agent | None = None,
    team: Team | None = None,
    results: list[Result] | None = None,
) -> Result | None:
    """
    Hand work from agent to agent: along a chain of them, or a whole conversation to another one.

    `handoff([researcher, writer], prompt)`: the text that one answers is what the next one is asked. Returns the result of
    the last one; it ends earlier with the first that does not get done (its status is not `completed`), or raises what an
    agent did, with a note on which one. An empty chain gives None.

    `handoff(first, prompt, to=second)`: the second goes on with the conversation of the first, and answers the prompt. From
    then on each has its own; instructions, tools and usage do not go over. The conversation can be handed on, and back.

    Args:
        agents: The chain; or the agent whose conversation it is.
        prompt: What the first of the chain is asked; or how the conversation goes on.
        to: The agent that takes over a conversation: one that has none, or whose own is the beginning of it.
        team: Where the names in a chain are looked up: a mapping, a supervisor, a registry.
        results: A list to which each result of a chain is added as it comes, so that they are there also if a later one raises.

    Raises:
        InvalidOption: A name is not known, or one is no agent (nothing is sent then); an answer had no text to go on with; the
            agent that was to take over has another conversation, which would be lost.
        AgentBusy: The agent that is to take over is in a run.
        AlloyError: What `chat` raises.
    """
    if to is not None:
        if team is not None or results is not None:
            raise InvalidOption(
                "to= hands over one conversation, team= and results= are of a chain: leave one or the other out"
            )
        return await _hand_over(_local(agents), _local(to), prompt)
    if isinstance(agents, str | Mapping) or not isinstance(agents, Iterable):
        raise InvalidOption(f"{agents!r:.100} is no chain: give a list of agents, or of names and team=; or say to=")
    chain = [await _link(each, team) for each in agents]
    return await _pass_on(chain, prompt, [] if results is None else results)


async def _link(each: Answers | str, team: Team | None) -> Answers:
    if not isinstance(each, str):
        return _checked(each)
    if team is None:
        raise InvalidOption(f"{each!r} is a name: say where to look it up, team=")
    return await _find(team, each)


async def _pass_on(chain: list[Answers], prompt: str | Message, results: list[Result]) -> Result | None:
    await trio.lowlevel.checkpoint()
    result = None
    for number, agent in enumerate(chain, 1):
        try:
            result = await agent.chat(prompt)
        except Exception as error:
            error.add_note(f"raised by agent {number} of {len(chain)} in a handoff, {agent!r}")
            raise
        results.append(result)
        if result.status != "completed":
            break
        prompt = result.text
    return result


async def _hand_over(source: Agent, target: Agent, prompt: str | Message) -> Result:
    core = target._core  # noqa: SLF001 - this changes what only agents themselves do
    core.refuse_busy("a handoff to it")
    session = source.export_session()
    own = target.messages
    if session.messages[: len(own)] != own:
        raise InvalidOption(
            f"{target!r} has a conversation of its own, which would be lost: reset() it first, or take another agent"
        )
    as_message(prompt)  # raises what is wrong with it before anything has changed
    await core.reset(session)
    return await target.chat(prompt)
