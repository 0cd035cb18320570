"""Where the program keeps things: the folders of the XDG Base Directory Specification, or those that the environment names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_NAME: Final = "alloy_trio"


def config_file() -> Path:
    """Return where the configuration is: `$XDG_CONFIG_HOME/alloy_trio/config.toml`."""
    return _folder("XDG_CONFIG_HOME", ".config") / "config.toml"


def sessions_folder() -> Path:
    """Return where the conversations are: `$XDG_DATA_HOME/alloy_trio/sessions`."""
    return _folder("XDG_DATA_HOME", ".local/share") / "sessions"


def history_file() -> Path:
    """Return where the lines are that were typed: `$XDG_STATE_HOME/alloy_trio/history`."""
    return _folder("XDG_STATE_HOME", ".local/state") / "history"


def private_folder(path: Path) -> Path:
    """Make a folder that nobody else can read, unless it is there. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _folder(variable: str, default: str) -> Path:
    given = Path(os.environ.get(variable, ""))
    return (
        given if given.is_absolute() else Path.home() / default
    ) / _NAME  # the specification: a relative one is ignored
