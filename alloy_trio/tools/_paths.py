"""
Where the file tools may go.

A path from the model is resolved once, in `resolve`: every link in it is followed, and what comes out is compared, as
text and by path components, with the allowed roots, resolved likewise. The outcome has no link in it. `located` opens
its directory without following any (see `_linkfree`), and from there on a tool works with a `Place`: a name in an open
directory. So no link that is made after the comparison, in whatever part of the path, leads a tool anywhere.

The comparison may be stricter than the file system, where that takes two spellings for one, but never laxer.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import attrs

from .._errors import ToolError
from ._linkfree import open_directory, refuse_link

if TYPE_CHECKING:
    from collections.abc import Generator

    from ._context import ToolContext

BINARY_PROBE = 8192
"""How many bytes at a file's start are searched for the NUL that makes it binary."""


def resolve(path: str, ctx: ToolContext) -> str:
    """
    Return the real path behind `path`, which has no link in it and lies in one of `ctx.allowed_paths`.

    A relative path starts at `ctx.working_directory`. The target need not exist; nothing is created. The roots are
    resolved anew each time: they are the user's, and may be links.

    Raises:
        ToolError: The path leads out of the allowed directories, or in circles, or is no path at all.
    """
    with explained(f"use the path {path!r}"):
        real = _real_path(os.path.join(ctx.working_directory, path))  # noqa: PTH118 - a Path would cost as much again
        roots = [os.path.realpath(root) for root in ctx.allowed_paths]
    if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        allowed = ", ".join(roots) or "none"
        raise ToolError(f"{path} is outside the allowed directories. Use a path inside one of these: {allowed}")
    return real


def _real_path(path: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        # Without `strict`, realpath gives up at a link loop and leaves the links behind it in the path.
        real = os.path.realpath(path)
        if os.path.realpath(real) != real:
            raise
        return real


@contextmanager
def explained(action: str) -> Generator[None]:
    """Turn what the operating system says against `action` ("read x") into a `ToolError` for the model."""
    try:
        yield
    except OSError as error:
        raise ToolError(f"Cannot {action}: {error.strerror or error}.") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair, in a path or a text
        raise ToolError(f"Cannot {action}: {error}.") from error


@attrs.frozen
class Place:
    """
    A name in an open directory: what a path has come to.

    Everything that a tool does there it does by the directory's descriptor, and never through a link.

    Attributes:
        directory: The descriptor.
        name: Of a file in it, whether there is one or not.
        path: What the model calls it.
    """

    directory: int
    name: str
    path: str

    def status(self) -> os.stat_result:
        """
        Return the status of the regular file of this name.

        Raises:
            OSError: There is nothing of this name, or a link, which was not there when the path was resolved.
            ToolError: It is a directory, a device, a FIFO, a socket.
        """
        status = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            refuse_link(self.path)
        return _regular(status, self.path)

    def opener(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Open a file in this directory: the `opener` of `open`. It never waits, as for a FIFO's other end."""
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY, mode, dir_fd=self.directory)


def _regular(status: os.stat_result, path: str) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise ToolError(f"{path} is a directory, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise ToolError(f"{path} is no regular file, but a device, a FIFO or a socket.")
    return status


@contextmanager
def located(path: str, ctx: ToolContext, action: str, *, make: bool = False) -> Generator[Place]:
    """
    Resolve a path and hold its directory open. With `make` that directory is made, if it is missing.

    Raises:
        ToolError: As `resolve`, or `action` ("read") cannot be done because the directory cannot be opened.
    """
    parent, name = os.path.split(resolve(path, ctx))
    with explained(f"{action} {path}"):
        directory = open_directory(parent, make=make)
    try:
        yield Place(directory, name or ".", path)
    finally:
        os.close(directory)


@contextmanager
def open_text(place: Place) -> Generator[BinaryIO]:
    """
    Open a regular text file for reading, at its start.

    Never hangs: a FIFO without a writer is refused like every other thing that is no regular file.

    Raises:
        ToolError: There is no such file, it may not be read, it is no regular file, or it is binary.
    """
    with explained(f"read {place.path}"):
        place.status()  # before it is opened: that alone makes some devices do something
        with open(place.name, "rb", opener=place.opener) as file:
            _regular(os.fstat(file.fileno()), place.path)
            if b"\0" in file.read(BINARY_PROBE):
                raise ToolError(f"{place.path} is a binary file, not text: it has NUL bytes.")
            file.seek(0)
            yield file
