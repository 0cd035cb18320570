"""What a line is completed to: commands, the names that go behind some of them, and files behind an `@`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from prompt_toolkit.completion import Completer, Completion

from .._catalog import builtin_catalog
from ..providers._base import provider_name
from ..providers._names import names
from ._commands import COMMANDS
from ._setup import TOOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    from ._library import Library
    from ._setup import Setup

_MOST: Final = 200  # files of a folder
_MENTION: Final = re.compile(r'(?:^|\s)@("?)([^\s"]*)$')


class LineCompleter(Completer):
    """Completes the line of a conversation."""

    def __init__(self, setup: Callable[[], Setup], library: Library) -> None:
        self._setup = setup
        self._library = library

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the word before the cursor may become."""
        del complete_event
        before = document.text_before_cursor
        if before.startswith("/") and "\n" not in before:
            name, space, rest = before[1:].partition(" ")
            if space:
                yield from _starting_with(rest, self._arguments(name))
            else:
                for command in COMMANDS.values():
                    if command.name.startswith(name):
                        yield Completion(f"/{command.name}", -len(before), display_meta=command.does)
        elif (mention := _MENTION.search(before)) is not None:
            yield from self._files(mention[2])

    def _arguments(self, command: str) -> Iterable[str]:
        match command:
            case "model":
                vendors = [provider_name(self._setup().provider), "anthropic", "openai"]
                own, *others = ([f"{each}:{model}" for model in builtin_catalog().models(each)] for each in vendors)
                return [*(name.partition(":")[2] for name in own), *(name for each in others for name in each)]
            case "provider":
                return [f"{name}:" for name in names()]
            case "load":
                return filter(str.isprintable, self._library.names())  # others are no names of ours
            case "tools":
                return [*TOOLS, "none"]
            case "export":
                return ["md", "json"]
            case "budget":
                return ["off"]
            case _:
                return []

    def _files(self, typed: str) -> Iterator[Completion]:
        folder, slash, start = typed.rpartition("/")
        try:
            place = (self._setup().directory / (folder + slash or ".")).expanduser()
            entries = sorted(place.iterdir())
        except (OSError, ValueError, RuntimeError):
            return
        shown = [each for each in entries if each.name.startswith(start) and (start or not each.name.startswith("."))]
        for entry in shown[:_MOST]:
            if not entry.name.isprintable() or '"' in entry.name:
                continue
            path = f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
            yield Completion(f'@"{path}"' if " " in path else f"@{path}", -len(typed) - 1, display=entry.name)


def _starting_with(typed: str, candidates: Iterable[str]) -> Iterator[Completion]:
    for each in candidates:
        if each.startswith(typed):
            yield Completion(each, -len(typed))
