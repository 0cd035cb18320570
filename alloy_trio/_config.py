"""The options of a run: their names, types, defaults, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict

import attrs

from ._errors import InvalidOption
from ._messages import Message
from ._session import Session
from ._state import OnEvent
from ._util import new_id
from .providers._base import Provider
from .providers._names import resolve
from .tools._tool import Tool


class Options(TypedDict, total=False):
    """What a run takes besides its provider; `RunOptions` says what each is."""

    tools: Iterable[Tool]
    system_prompt: str | None
    messages: Sequence[Message]
    session: Session | None
    max_turns: int
    max_output_tokens: int | None
    timeout: float | None
    tool_timeout: float
    cancel_grace: float
    working_directory: str | Path
    allowed_paths: Sequence[str | Path] | None
    context: Mapping[str, Any]
    deps: Any
    until_tool: str | None
    on_event: OnEvent | None


class RunOptions(Options):
    """
    The options of `run`, `stream` and `run_sync`: all by keyword, all but `provider` with a default.

    Attributes:
        provider: A provider, or its name with a model: `"anthropic:claude-sonnet-5-5"`.
        tools: What the model may ask for, made by `@tool` or `Tool(…)`. None by default.
        system_prompt: Instructions ahead of the conversation.
        messages: A conversation to go on with; not together with `session`.
        session: A conversation to go on with, updated in place at every turn.
        max_turns: How many answers of the model the run may take (25).
        max_output_tokens: The cap on each answer, in tokens; the provider's own by default.
        timeout: Seconds the whole run may take, then `RunTimeout`; none by default.
        tool_timeout: Seconds each tool call may take (120); the model is told.
        cancel_grace: Seconds that a cancelled sync tool's thread is waited for (5); a cancel is late by as much.
        working_directory: Where relative paths of tools begin (".").
        allowed_paths: The folders that file tools may touch; the working directory by default.
        context: Anything of yours, for tools: `ToolContext.context`. `session_id`, `request_id` and `correlation_id` in
            it name the session and the events' correlation id.
        deps: Anything of yours, typed: `ToolContext[D].deps`.
        until_tool: The run goes on, with a reminder, until this tool was called with success.
        on_event: Called with the `Envelope` of each event; may be async. What it raises is logged.
    """

    provider: Required[Provider | str]


_ELSEWHERE = {
    "max_tokens": "say max_output_tokens for the cap on an answer",
    "model": 'it belongs to the provider: provider="anthropic:claude-sonnet-5-5" or Anthropic(model=…)',
    "api_key": "it belongs to the provider: Anthropic(model=…, api_key=…)",
    "tool_choice": "it belongs to a provider's extra_body",
}


def _by_name(tools: Any) -> dict[str, Tool]:
    if isinstance(tools, Tool | str) or not isinstance(tools, Iterable):
        raise InvalidOption(f"tools={tools!r} has to be a list of tools, even of one")
    named: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):
            hint = "decorate it with @tool" if callable(tool) else "make it with @tool or Tool(…)"
            raise InvalidOption(f"tools has {tool!r}, which is no tool: {hint}")
        if tool.name in named:
            raise InvalidOption(f"two tools are named {tool.name!r}: rename one, tool.evolve(name=…)")
        named[tool.name] = tool
    return named


def _whole_number(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOption(f"{field.name}={value!r} has to be a whole number, 1 or more")


def _seconds(value: object, least: float, field: attrs.Attribute[Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
        raise InvalidOption(
            f"{field.name}={value!r} has to be a number of seconds, {least:g} or more (math.inf for no limit)"
        )


def _duration(_: object, field: attrs.Attribute[Any], value: object) -> None:
    _seconds(value, 0.0, field)


def _callback(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise InvalidOption(f"{field.name}={value!r} cannot be called: give it a function of one envelope")


def _mapping(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"{field.name}={value!r} has to be a mapping")


def _optional_text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | None):
        raise InvalidOption(f"{field.name}={value!r} has to be text")


def _path(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise InvalidOption(f"{path!r} is no path: working_directory and allowed_paths take text or Path")
    return Path(path)


def _paths(paths: Any) -> tuple[Path, ...] | None:
    if paths is not None and (isinstance(paths, str | Path) or not isinstance(paths, Iterable)):
        raise InvalidOption(f"allowed_paths={paths!r} has to be a list of folders, even of one")
    return None if paths is None else tuple(map(_path, paths))


def _messages(messages: Any) -> tuple[Message, ...]:
    if isinstance(messages, Message | str) or not isinstance(messages, Iterable):
        raise InvalidOption(f"messages={messages!r:.100} has to be a list of messages, even of one")
    taken = tuple(messages)
    for message in taken:
        if not isinstance(message, Message):
            raise InvalidOption(
                f"messages has {message!r:.100}, which is no message: say Message.user(…) or Message.assistant(…)"
            )
    return taken


@attrs.frozen(kw_only=True)
class Config:
    """The options of one run, checked, with every default filled in; `RunOptions` says what they mean."""

    provider: Provider = attrs.field(converter=resolve)
    tools: Mapping[str, Tool] = attrs.field(default=(), converter=_by_name)
    system_prompt: str | None = attrs.field(default=None, validator=_optional_text)
    session: Session
    max_turns: int = attrs.field(default=25, validator=_whole_number)
    max_output_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_whole_number))
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(_duration))
    tool_timeout: float = attrs.field(default=120.0, validator=_duration)
    cancel_grace: float = attrs.field(default=5.0, validator=_duration)
    working_directory: Path = attrs.field(default=Path(), converter=_path)
    allowed_paths: tuple[Path, ...] | None = attrs.field(default=None, converter=_paths)
    context: Mapping[str, Any] = attrs.field(factory=dict, validator=_mapping)
    deps: Any = None
    until_tool: str | None = attrs.field(default=None, validator=_optional_text)
    on_event: OnEvent | None = attrs.field(default=None, validator=_callback)

    def __attrs_post_init__(self) -> None:
        if self.until_tool is not None and self.until_tool not in self.tools:
            known = ", ".join(self.tools) or "there are none"
            raise InvalidOption(f"until_tool={self.until_tool!r} is none of the tools: {known}")

    @property
    def correlation_id(self) -> str:
        """The context's `request_id`, else its `correlation_id`, else a random one that starts with the session's id."""
        given = self.context.get("request_id") or self.context.get("correlation_id")
        return str(given) if given else new_id(f"{self.session.id}-")


def configure(options: Mapping[str, Any]) -> Config:
    """
    Check the options of a run and fill in the defaults.

    Raises:
        InvalidOption: One is unknown, has an impossible value, or contradicts another; the message says what to do.
    """
    rest = dict(options)
    for name in rest:
        if name not in RunOptions.__annotations__:
            valid = ", ".join(sorted(RunOptions.__annotations__))
            raise InvalidOption(f"unknown option {name!r}: {_ELSEWHERE.get(name, f'the options are {valid}')}")
    if rest.get("provider") is None:
        raise InvalidOption(
            'a provider is needed: provider="anthropic:claude-sonnet-5-5", or "demo" to try without a key'
        )
    given, session = rest.pop("messages", None), rest.pop("session", None)
    messages = _messages(() if given is None else given)
    if not isinstance(session, Session | None):
        raise InvalidOption(f"session={session!r:.100} is no Session: make one by Session(), or Session.from_json(…)")
    if messages and session is not None:
        raise InvalidOption("messages= and session= are both given: a session brings its own messages")
    if session is None:
        context = rest.get("context")
        named = context.get("session_id") if isinstance(context, Mapping) else None
        session = Session(id=str(named) if named else new_id(), messages=messages)
    return Config(**rest, session=session)
