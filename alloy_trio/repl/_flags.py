"""What stands on the command line, as plain values: nothing that takes long to load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOOL_NAMES: Final = ("read", "write", "edit", "bash")

# Providers that a key alone chooses, the first one first: name, the key's variable, the model where none is named.
BY_KEY: Final = (
    ("anthropic", "ANTHROPIC_API_KEY", "claude-sonnet-5-5"),
    ("openai", "OPENAI_API_KEY", "gpt-6-astra"),
)
KEYS: Final = " or ".join(key for _, key, _ in BY_KEY)


class Flags(NamedTuple):
    """What stands on the command line, or in the configuration; the options of the command say what it means."""

    words: tuple[str, ...]
    prompt: str | None
    provider: str | None
    model: str | None
    base_url: str | None
    tools: tuple[str, ...]
    system: str | None
    max_turns: int | None
    max_output_tokens: int | None
    max_retries: int | None
    timeout: float | None
    budget: str | None
    directory: Path
    allow: tuple[Path, ...]
    sandbox: bool
    network: bool
    approve: bool | None
    session: str | None
    resume: bool
    json: bool
    no_color: bool
    debug: bool
    again: Callable[[], Flags]  # reads the command line and the configuration once more
