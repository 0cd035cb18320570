"""What a person has set up: flags, configuration and environment, as the options of runs and agents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from .._budget import Budget
from .._errors import InvalidOption
from ..providers._base import Provider, provider_model, provider_name
from ..providers._names import make, names
from ..providers._openai_compat import OpenAICompat
from ..tools._bash import bash
from ..tools._bash_sandboxed import bash_sandboxed
from ..tools._edit import edit
from ..tools._read import read
from ..tools._tool import Tool
from ..tools._write import write
from ._flags import BY_KEY, KEYS, TOOL_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._options import RunOptions
    from ._flags import Flags

TOOLS: Final[Mapping[str, Tool]] = dict(zip(TOOL_NAMES, (read, write, edit, bash), strict=True))
ASKED: Final = frozenset({"bash", "write", "edit"})  # those that change something

_DEMO: Final = (
    f"demo: no language model, no key. For a real one set {KEYS}, or point --base-url at a local server such as "
    "http://localhost:11434/v1 with --model NAME"
)


@attrs.define(kw_only=True)
class Setup:
    """
    What requests are made with. The commands of a conversation change it.

    Attributes:
        provider: Who is asked.
        available: The tools that there are, by name.
        tools: What the model may use of them.
        system: Instructions ahead of the conversation.
        directory: Where the tools work.
        allow: Folders besides that one that `read`, `write` and `edit` may touch, and a sandbox.
        budget: What all requests together may cost; None for no limit.
        asked: Names of the tools of which each call waits for a person.
        limits: The other options of a run, as far as they were given.
    """

    provider: Provider
    available: Mapping[str, Tool]
    tools: tuple[Tool, ...]
    system: str | None
    directory: Path
    allow: tuple[Path, ...]
    budget: Budget | None
    asked: set[str]
    limits: dict[str, Any]

    @classmethod
    def of(cls, flags: Flags, provider: Provider) -> Setup:
        """Make what the flags say. Raises InvalidOption for a budget that is none, or a sandbox that cannot be had."""
        available = _available(flags)
        limits = {
            "max_turns": flags.max_turns,
            "max_output_tokens": flags.max_output_tokens,
            "max_retries": flags.max_retries,
            "timeout": flags.timeout,
        }
        return cls(
            provider=provider,
            available=available,
            tools=tuple(available[name] for name in flags.tools),
            system=flags.system,
            directory=flags.directory,
            allow=flags.allow,
            budget=None if flags.budget is None else Budget(flags.budget.removeprefix("$")),
            asked=set(ASKED),
            limits={name: value for name, value in limits.items() if value is not None},
        )

    def options(self) -> RunOptions:
        """Return the options of a run."""
        options: RunOptions = {
            "provider": self.provider,
            "tools": self.tools,
            "system_prompt": self.system,
            "working_directory": self.directory,
            **self.limits,  # type: ignore[typeddict-item] # it has but these
        }
        if self.allow:
            options["allowed_paths"] = (self.directory, *self.allow)
        return options

    @property
    def model(self) -> str:
        """Who is asked, in a word."""
        return label(self.provider)

    def named(self, name: str) -> Provider:
        """
        Return the provider that a person names: `PROVIDER:MODEL`, or a model of the provider that there is.

        Raises:
            InvalidOption: There is none, or no key for it.
        """
        vendor, colon, model = name.partition(":")
        if colon and vendor.strip().lower() in names():
            return make_named(name)
        if attrs.has(type(self.provider)) and hasattr(self.provider, "model"):
            changed: Provider = attrs.evolve(self.provider, model=name)  # type: ignore[misc] # it is, see above
            return changed
        return make_named(f"{provider_name(self.provider)}:{model or name}")


def _available(flags: Flags) -> Mapping[str, Tool]:
    if not flags.sandbox:
        if flags.network:
            raise InvalidOption("--network gives the network to a sandbox: say --sandbox as well, or leave it out")
        return TOOLS
    return {**TOOLS, "bash": bash_sandboxed(network=flags.network, writable=flags.allow)}


def label(provider: Provider) -> str:
    """Return what a provider is called, with its model."""
    return f"{provider_name(provider)}:{provider_model(provider)}"


def choose_provider(flags: Flags, environment: Mapping[str, str] = os.environ) -> tuple[Provider, str | None]:
    """
    Return the provider, and the line that tells of it where it was not asked for on the command line.

    Raises:
        click.UsageError: The flags contradict each other.
        InvalidOption: The provider cannot be made of what there is.
    """
    if flags.provider is not None:
        if ":" in flags.provider and flags.model is not None:
            raise click.UsageError("the model is given twice: in --provider and in --model")
        return make_named(flags.provider, flags.model, flags.base_url), None
    if flags.base_url is not None:
        if flags.model is None:
            raise click.UsageError("--base-url needs --model NAME, the server's name for the model")
        return OpenAICompat(model=flags.model, base_url=flags.base_url), None
    for named, variable in _configured(environment):
        try:
            provider = make_named(named, flags.model, flags.base_url)
        except InvalidOption as error:
            raise InvalidOption(f"{variable} is set, but {error}") from error
        return provider, f"{label(provider)}, since {variable} is set; --provider chooses another"
    if flags.model is not None:
        raise click.UsageError(f"--model needs --provider NAME or --base-url URL, unless {KEYS} is set")
    return make("demo"), _DEMO


def make_named(named: str, given_model: str | None = None, base_url: str | None = None) -> Provider:
    """Make the provider of a `NAME` or `NAME:MODEL`. Raises `InvalidOption`."""
    name, _, model = named.partition(":")
    name = name.strip().lower()
    default = next((model for known, _, model in BY_KEY if known == name), None)
    return make(name, given_model or model.strip() or default, base_url=base_url)


def _configured(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what the environment chooses, and by which variable."""
    if named := environment.get("ALLOY_PROVIDER"):
        yield named, "ALLOY_PROVIDER"
    for name, variable, _ in BY_KEY:
        if environment.get(variable):
            yield name, variable
