"""
The configuration file: the command line's own options by their names, as TOML, and profiles that change some of them.

    provider = "anthropic:claude-sonnet-5-5"
    budget = "2.50"

    [profile.local]
    provider = "ollama:qwen3"
    tools = ["read"]
"""

from __future__ import annotations

import difflib
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_PROFILES = "profile"


class Known(NamedTuple):
    """An option: click's name for it, and what its value is."""

    name: str
    is_flag: bool = False
    is_list: bool = False


def read_config(path: Path, profile: str | None, known: Mapping[str, Known], *, needed: bool) -> dict[str, Any]:
    """
    Return what a file says, with a profile on top: values by the names that click has for the options.

    Args:
        path: The file.
        profile: The name of one of its profiles; None for what stands above them.
        known: The options that may stand there, as they are written.
        needed: Whether it is an error if there is no file.

    Raises:
        click.UsageError: It cannot be read, is no TOML, or has an option or lacks a profile that it names.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed or profile is not None:
            raise click.UsageError(f"there is no configuration file {path}") from None
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise click.UsageError(f"the configuration file {path} cannot be read: {reason}") from error
    profiles = data.pop(_PROFILES, {})
    if not isinstance(profiles, dict) or not all(isinstance(each, dict) for each in profiles.values()):
        raise click.UsageError(f"{path}: profiles are tables, as in [profile.local]")
    if profile is not None and profile not in profiles:
        raise click.UsageError(f"{path} has no profile {profile!r}{_nearest(profile, profiles)}")
    chosen = data | (profiles[profile] if profile is not None else {})
    for name in {**chosen, **{name: None for each in profiles.values() for name in each}}:
        if name not in known:
            raise click.UsageError(f"{path} has {name!r}, which is no option{_nearest(name, known)}")
    return {known[name].name: _as_typed(path, name, value, known[name]) for name, value in chosen.items()}


def _as_typed(path: Path, name: str, value: Any, known: Known) -> Any:
    """Return a value as click reads it from a command line: an amount of money, say, as text."""
    if known.is_flag:
        if isinstance(value, bool):
            return value
        raise click.UsageError(f"{path}: {name} has to be true or false")
    values = value if known.is_list and isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        raise click.UsageError(
            f"{path}: {name} has to be {'a list of texts' if known.is_list else 'one text, or a number'}"
        )
    texts = [str(each) for each in values]
    return texts if known.is_list else texts[0]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f": is it {near[0]}?" if near else f": there are {', '.join(names) or 'none'}"
