"""
Where the file tools may go.

A path from the model is resolved once, in `resolve`: every link in it is followed, and what comes out is compared, by
path components, with the allowed roots, resolved likewise. The outcome has no link in it, and it alone is what a tool
opens or replaces. Files are opened in a way that cannot hang and that refuses whatever is not a regular file.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .._errors import ToolError

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._context import ToolContext

BINARY_PROBE = 8192
"""How many bytes at a file's start are searched for the NUL that makes it binary."""


def resolve(path: str, ctx: ToolContext) -> Path:
    """
    Return the real path behind `path`, which has no link in it and lies in one of `ctx.allowed_paths`.

    A relative path starts at `ctx.working_directory`. The target need not exist; nothing is created.

    Raises:
        ToolError: The path leads out of the allowed directories, or in circles, or is no path at all.
    """
    with explained(f"use the path {path!r}"):
        real = _real_path(ctx.working_directory / path)
    roots = [Path(os.path.realpath(root)) for root in ctx.allowed_paths]
    if not any(real.is_relative_to(root) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none"
        raise ToolError(f"{path} is outside the allowed directories. Use a path inside one of these: {allowed}")
    return real


def _real_path(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path, strict=True))
    except (FileNotFoundError, NotADirectoryError):
        # Without `strict`, realpath gives up at a link loop and leaves the links behind it in the path, so that only a
        # path that resolves to itself is free of links.
        real = os.path.realpath(path)
        if os.path.realpath(real) != real:
            raise
        return Path(real)


@contextmanager
def explained(action: str) -> Generator[None]:
    """Turn what the operating system says against `action` ("read x") into a `ToolError` for the model."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"Cannot {action}: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair, in a path or a text
        raise ToolError(f"Cannot {action}: {error}.") from error


@contextmanager
def open_text(path: Path, name: str) -> Generator[BinaryIO]:
    """
    Open a regular text file for reading, at its start. `path` is what `resolve` gave, `name` what the model calls it.

    Never hangs: a FIFO without a writer is refused like every other thing that is no regular file.

    Raises:
        ToolError: There is no such file, it may not be read, it is no regular file, or it is binary.
    """
    with explained(f"read {name}"):
        # O_NONBLOCK: opening a FIFO would wait for a writer. O_NOFOLLOW: a resolved path has no link.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
            refuse_irregular(os.fstat(descriptor), name)
            if b"\0" in file.read(BINARY_PROBE):
                raise ToolError(f"{name} is a binary file, not text: it has NUL bytes.")
            file.seek(0)
            yield file


def refuse_irregular(status: os.stat_result, name: str) -> None:
    """Raise `ToolError` if `status` is that of a directory, a device, a FIFO, a socket."""
    if stat.S_ISDIR(status.st_mode):
        raise ToolError(f"{name} is a directory, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise ToolError(f"{name} is no regular file, but a device, a FIFO or a socket.")
