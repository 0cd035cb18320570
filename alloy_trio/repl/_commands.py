"""The commands of a conversation: a line that begins with `/`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from urllib.parse import quote

import attrs

from .._budget import Budget
from .._errors import AgentBusy, InvalidOption
from .._shorten import place_of_request
from ..providers._names import names
from ._compact import compacted
from ._export import to_markdown
from ._front import Place
from ._library import check_name
from ._setup import TOOLS
from ._text import harmless, one_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._messages import Message
    from .._session import Session
    from ..tools._tool import Tool
    from ._conversation import Conversation
    from ._setup import Setup

_SHOWN: Final = 20  # sessions
_SHORT: Final = 100  # characters of a message in a list


Run: TypeAlias = "Callable[[Conversation, str], Awaitable[None]]"


@attrs.frozen
class Command:
    """
    One of them.

    Attributes:
        name: What is typed.
        usage: What may stand behind it.
        does: What it does, in a line.
        run: Does it.
    """

    name: str
    usage: str
    does: str
    run: Run


COMMANDS: Final[dict[str, Command]] = {}
_OTHER_NAMES: Final = {"?": "help", "exit": "quit", "q": "quit"}


async def run_command(talk: Conversation, name: str, rest: str) -> None:
    """Do what a command says. Raises AlloyError."""
    command = COMMANDS.get(_OTHER_NAMES.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"is it /{near[0]}?" if near else "/help lists them"
        raise InvalidOption(f"/{name} is no command: {advice}")
    await command.run(talk, rest)


def _command(name: str, usage: str, does: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        COMMANDS[name] = Command(name, usage, does, run)
        return run

    return add


def _refuse_busy(talk: Conversation, name: str) -> None:
    if talk.is_busy:
        raise AgentBusy(f"/{name} has to wait until the answer is there: Ctrl-C, or /cancel, ends it")


# About the program


@_command("help", "", "this list")
async def _help(talk: Conversation, _: str) -> None:
    rows = [(f"/{each.name} {each.usage}".rstrip(), each.does) for each in COMMANDS.values()]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {does}" for left, does in rows]
    await talk.front.say("\n".join([*lines, "", *_KEYS]))


_KEYS: Final = (
    "Enter sends, Esc Enter begins a new line, Tab completes; @path puts a file into the message.",
    "While an answer comes: a line joins at the next boundary, !line at once, Ctrl-C cancels.",
    "Ctrl-O shows what is folded. Ctrl-C at the prompt, twice, or Ctrl-D leaves.",
)


@_command("quit", "", "leave; --resume goes on")
async def _quit(talk: Conversation, _: str) -> None:
    talk.go(None)


@_command("reload", "", "read the configuration file again")
async def _reload(talk: Conversation, _: str) -> None:
    _refuse_busy(talk, "reload")
    old, new = talk.setup, talk.read_setup()
    new.asked, new.budget = old.asked, new.budget if old.budget is None else old.budget
    talk.setup = new
    await talk.front.say(f"read again: {new.model}, tools {', '.join(tool.name for tool in new.tools) or 'none'}")
    _go_on(talk)


# The model, and what it costs


@_command("model", "[NAME]", "which model answers; another one of this provider, or PROVIDER:MODEL")
async def _model(talk: Conversation, rest: str) -> None:
    if rest:
        provider = talk.setup.named(rest)
        await talk.agent.set_model(provider)
        talk.setup.provider = provider
        talk.update_status()
    await talk.front.say(talk.setup.model)


@_command("provider", "[NAME:MODEL]", "which providers there are, or another one")
async def _provider(talk: Conversation, rest: str) -> None:
    if rest:
        vendor = rest.partition(":")[0].strip().lower()
        if vendor not in names():
            raise InvalidOption(f"there is no provider {vendor!r}: there are {', '.join(names())}")
        await _model(talk, rest if ":" in rest else f"{rest}:")
    else:
        await talk.front.say(f"{talk.setup.model}; there are: {', '.join(names())}")


@_command("system", "[TEXT | none]", "the instructions ahead of the conversation, or others")
async def _system(talk: Conversation, rest: str) -> None:
    if rest:
        talk.setup.system = None if rest == "none" else rest
        talk.agent.reload(system_prompt=talk.setup.system or "")
    await talk.front.say(talk.setup.system or "no instructions")


@_command("tools", "[NAMES | none]", "what the model may use")
async def _tools(talk: Conversation, rest: str) -> None:
    if rest:
        wanted = [] if rest == "none" else [name.strip() for name in rest.replace(",", " ").split()]
        there_are = talk.setup.available
        if unknown := [name for name in wanted if name not in there_are]:
            raise InvalidOption(f"there is no tool {unknown[0]!r}: there are {', '.join(there_are)}")
        talk.setup.tools = tuple(there_are[name] for name in dict.fromkeys(wanted))
        talk.agent.reload(tools=talk.setup.tools)
    lines = [f"{tool.name}{_how(tool, talk.setup)}: {one_line(tool.description, _SHORT)}" for tool in talk.setup.tools]
    await talk.front.say("\n".join(lines) or "none")


def _how(tool: Tool, setup: Setup) -> str:
    said = ["asks first"] if tool.name in setup.asked else []
    said += ["in a sandbox"] if tool is not TOOLS[tool.name] else []
    return f" ({', '.join(said)})" if said else ""


@_command("usage", "", "tokens of this conversation")
async def _usage(talk: Conversation, _: str) -> None:
    usage = talk.agent.usage
    await talk.front.say(
        f"in {usage.input_tokens:,} · written to the cache {usage.cache_creation_input_tokens:,}"
        f" · read from it {usage.cache_read_input_tokens:,} · out {usage.output_tokens:,}"
        f" (reasoning {usage.reasoning_tokens:,}){' · partly estimated' if usage.estimated else ''}\n"
        f"context {talk.context_used:,} of {talk.context_tokens:,} tokens"
    )


@_command("cost", "", "what this program has spent since it began")
async def _cost(talk: Conversation, _: str) -> None:
    if talk.cost is None:
        await talk.front.say("not known: no price is known of a model that was asked")
    else:
        await talk.front.say(f"${talk.cost:.4f}")


@_command("budget", "[DOLLARS | off]", "what it may spend from here on")
async def _budget(talk: Conversation, rest: str) -> None:
    if rest:
        _refuse_busy(talk, "budget")
        talk.setup.budget = None if rest == "off" else Budget(rest.removeprefix("$"))
        talk.update_status()
    budget = talk.setup.budget
    said = "no limit" if budget is None else f"${budget.spent:.4f} of ${budget.limit} spent, ${budget.left:.4f} left"
    await talk.front.say(said)


# The request under way


@_command("cancel", "", "end the request under way")
async def _cancel(talk: Conversation, _: str) -> None:
    if not talk.cancel():
        await talk.front.say("there is no request")


@_command("steer", "TEXT", "say something to the request under way; !TEXT at once")
async def _steer(talk: Conversation, rest: str) -> None:
    if not rest or not talk.is_busy:
        raise InvalidOption("there is no request to steer" if rest else "say what: /steer TEXT")
    await talk.steer(rest)


@_command("health", "", "how the agent is")
async def _health(talk: Conversation, _: str) -> None:
    health = attrs.asdict(talk.agent.health(), recurse=False)
    del health["usage"]
    health["uptime"] = f"{health['uptime']:.0f} s"
    await talk.front.say("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in health.items()))


@_command("tree", "", "the supervision tree")
async def _tree(talk: Conversation, _: str) -> None:
    await talk.front.say(talk.supervisor.render_tree())


# The conversation


@_command("history", "", "what was said")
async def _history(talk: Conversation, _: str) -> None:
    lines = []
    for message in talk.agent.messages:
        calls = [f"[{one_line(call.name)}]" for call in message.tool_uses]
        results = [f"[{answer.outcome}]" for answer in message.tool_results]
        said = " ".join(part for part in (one_line(message.text, _SHORT), *calls, *results) if part)
        lines.append(f"{message.role:>9}: {said}")
    await talk.front.say("\n".join(lines) or "nothing yet")


@_command("undo", "", "take back the last question and its answer; files stay as they are")
async def _undo(talk: Conversation, _: str) -> None:
    question = _take_back(talk, "undo", ask=False)
    await talk.front.say(f"taken back: {one_line(question.text, _SHORT)}")


@_command("retry", "", "ask the last question again")
async def _retry(talk: Conversation, _: str) -> None:
    question = _take_back(talk, "retry", ask=True)
    await talk.front.say(f"again: {one_line(question.text, _SHORT)}")


def _take_back(talk: Conversation, name: str, *, ask: bool) -> Message:
    _refuse_busy(talk, name)
    session = talk.agent.export_session()
    place = place_of_request(session.messages)
    if place < 0:
        raise InvalidOption(f"there is nothing to {name}")
    question = session.messages[place]
    _go_on(talk, attrs.evolve(session, messages=session.messages[:place]), question if ask else None)
    return question


@_command("reset", "", "begin anew, with an empty conversation")
async def _reset(talk: Conversation, _: str) -> None:
    await talk.agent.reset()
    talk.context_used = 0
    talk.update_status()
    await talk.front.say("the conversation is empty")


@_command("compact", "", "put a summary in the place of the older half of the conversation")
async def _compact(talk: Conversation, _: str) -> None:
    _refuse_busy(talk, "compact")
    before = talk.agent.export_session()

    async def work() -> None:
        session, result = await compacted(before, talk.setup)
        talk.account(result)
        await talk.front.say(f"{len(before.messages)} messages, now {len(session.messages)}")
        _go_on(talk, session)

    await talk.do(work)


@_command("save", "NAME", "keep the conversation under a name, and go on there")
async def _save(talk: Conversation, rest: str) -> None:
    _refuse_busy(talk, "save")
    name = check_name(rest)
    if name != talk.name and talk.library.last_used(name) is not None:
        raise InvalidOption(f"there is a session {name!r} already: take another name, or /load {name}")
    await talk.front.say(f"saved as {name}")
    _go_on(talk, talk.agent.export_session(), name=name)


@_command("load", "NAME", "go on with a conversation that was kept")
async def _load(talk: Conversation, rest: str) -> None:
    _refuse_busy(talk, "load")
    name = check_name(rest)
    if talk.library.last_used(name) is None:
        near = difflib.get_close_matches(name, talk.library.names(), 1)
        raise InvalidOption(f"there is no session {name!r}: {f'is it {near[0]}?' if near else '/sessions lists them'}")
    await talk.front.say(f"going on with {name}")
    _go_on(talk, name=name)


@_command("sessions", "", "the conversations that were kept")
async def _sessions(talk: Conversation, _: str) -> None:
    kept = talk.library.names()
    lines = []
    for name in kept[:_SHOWN]:
        when = talk.library.last_used(name)
        lines.append(
            f"{'*' if name == talk.name else ' '} {harmless(name)}{'' if when is None else f'  {when:%Y-%m-%d %H:%M}'}"
        )
    if len(kept) > _SHOWN:
        lines.append(f"  … and {len(kept) - _SHOWN} older ones")
    await talk.front.say("\n".join(lines) or "none yet")


@_command("export", "[md | json] [FILE]", "write the conversation into a file")
async def _export(talk: Conversation, rest: str) -> None:
    try:
        kind, path = _where(talk, rest)
    except RuntimeError as error:  # the home of nobody
        raise InvalidOption(f"{rest!r} is no file: {error}") from error
    session = talk.agent.export_session()
    text = session.to_json() if kind == "json" else to_markdown(session)
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidOption(f"{path} is there already: name another file") from None
    except (OSError, ValueError) as error:  # the second: a name that no file can have
        raise InvalidOption(
            f"{one_line(str(path))} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    await talk.front.say(f"written to {path}")


def _where(talk: Conversation, rest: str) -> tuple[Literal["md", "json"], Path]:
    first, _, second = rest.partition(" ")
    name = second.strip() if first in {"md", "json"} else rest
    kind: Literal["md", "json"] = "json" if first == "json" or name.endswith(".json") else "md"
    return kind, talk.setup.directory / Path(name or f"{quote(talk.name, safe=' ')}.{kind}").expanduser()


@_command("copy", "", "put the last answer on the clipboard")
async def _copy(talk: Conversation, _: str) -> None:
    answer = next((each.text for each in reversed(talk.agent.messages) if each.role == "assistant" and each.text), None)
    if answer is None:
        raise InvalidOption("there is no answer yet")
    is_done = await talk.front.copy(harmless(answer))
    await talk.front.say("copied" if is_done else "this terminal has no clipboard for it: /export writes a file")


def _go_on(
    talk: Conversation, session: Session | None = None, ask: Message | None = None, *, name: str | None = None
) -> None:
    talk.go(Place(name or talk.name, session, ask))
