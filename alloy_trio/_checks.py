"""What can be wrong with the value of an option: converters and validators, each of which says what to do instead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._compaction import Compaction
from ._errors import InvalidOption
from ._messages import Message
from ._price import money
from .providers._names import resolve
from .tools._tool import Tool

if TYPE_CHECKING:
    from decimal import Decimal

    import attrs

    from .providers._base import Provider


def tools_by_name(tools: Any) -> dict[str, Tool]:
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


def whole_number(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOption(f"{field.name}={value!r} has to be a whole number, 1 or more")


def whole_number_or_0(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidOption(f"{field.name}={value!r} has to be a whole number, 0 or more")


def above_0(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InvalidOption(f"{field.name}={value!r:.100} has to be a number above 0 (math.inf for no limit)")


def cents(cents: Any) -> Decimal | None:
    if cents is None:
        return None
    if (amount := money(cents, "max_budget_cents")) <= 0:
        raise InvalidOption(f"max_budget_cents={cents!r} has to be above 0; for no limit leave it out")
    return amount


def fallbacks(providers: Any) -> tuple[Provider, ...]:
    if isinstance(providers, str) or not isinstance(providers, Iterable):
        raise InvalidOption(f"fallback_providers={providers!r:.100} has to be a list of providers, even of one")
    return tuple(resolve(each) for each in providers)


def compaction(compaction: Any) -> Compaction | None:
    if compaction is None or compaction is True:
        return Compaction()
    if compaction is False:
        return None
    if not isinstance(compaction, Compaction):
        raise InvalidOption(f"compaction={compaction!r:.100} has to be Compaction(…), or False for none")
    return compaction


def flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidOption(f"{field.name}={value!r} has to be True or False")


def seconds(value: object, least: float, field: attrs.Attribute[Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
        raise InvalidOption(
            f"{field.name}={value!r} has to be a number of seconds, {least:g} or more (math.inf for no limit)"
        )


def duration(_: object, field: attrs.Attribute[Any], value: object) -> None:
    seconds(value, 0.0, field)


def finite_duration(_: object, field: attrs.Attribute[Any], value: object) -> None:
    seconds(value, 0.0, field)
    if value == math.inf:
        raise InvalidOption(f"{field.name}={value!r} has to be a finite number of seconds; max_retries=0 for no retry")


def callback(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        takes = {"on_event": "one envelope", "on_compaction": "the messages and the RunState"}
        raise InvalidOption(f"{field.name}={value!r} cannot be called: give it a function of {takes[field.name]}")


def mapping(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping):
        # Its type, not what is in it: that may be secret.
        raise InvalidOption(f"{field.name} has to be a mapping, and is of type {type(value).__name__}")


def optional_text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | None):
        raise InvalidOption(f"{field.name}={value!r} has to be text")


def path(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise InvalidOption(f"{path!r} is no path: working_directory and allowed_paths take text or Path")
    return Path(path)


def paths(paths: Any) -> tuple[Path, ...] | None:
    if paths is not None and (isinstance(paths, str | Path) or not isinstance(paths, Iterable)):
        raise InvalidOption(f"allowed_paths={paths!r} has to be a list of folders, even of one")
    return None if paths is None else tuple(map(path, paths))


def messages(messages: Any) -> tuple[Message, ...]:
    if isinstance(messages, Message | str) or not isinstance(messages, Iterable):
        raise InvalidOption(f"messages={messages!r:.100} has to be a list of messages, even of one")
    taken = tuple(messages)
    for message in taken:
        if not isinstance(message, Message):
            raise InvalidOption(
                f"messages has {message!r:.100}, which is no message: say Message.user(…) or Message.assistant(…)"
            )
    return taken
