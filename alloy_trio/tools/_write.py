"""The `write` tool, and the atomic replacement of a file that `edit` shares with it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from ._paths import explained, refuse_irregular, resolve
from ._tool import tool

if TYPE_CHECKING:
    from pathlib import Path

    from ._context import ToolContext


@tool(concurrent=False, trusted=True)  # what it says is its own
def write(file_path: str, content: str, ctx: ToolContext) -> str:
    """
    Write a text file: the whole of it is replaced, and missing directories are made.

    Args:
        file_path: Path of the file, absolute or relative to the working directory.
        content: The whole new content of the file.
        ctx: Where the call works.
    """
    path = resolve(file_path, ctx)
    with explained(f"write {file_path}"):
        data = content.encode()
    with explained(f"make the directory of {file_path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    before = status_of(path, file_path)
    replace_file(path, data, before, file_path)
    lines = len(content.splitlines())
    return f"{'Replaced' if before else 'Created'} {file_path} ({lines} lines, {len(data)} bytes)."


def status_of(path: Path, name: str) -> os.stat_result | None:
    """Return the status of a regular file that may be written, or None if there is nothing at `path`."""
    with explained(f"write {name}"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        refuse_irregular(status, name)
        if not os.access(path, os.W_OK):  # a rename would pay no heed to the file's own mode
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return status


def replace_file(path: Path, data: bytes, before: os.stat_result | None, name: str) -> None:
    """
    Put `data` in the place of `path`, at once: whoever opens it finds the old content or the new, whole.

    A file that was there keeps its mode, and its owner as far as we may; a new one has the mode that the umask gives.
    Other hard links to it keep the old content.

    Raises:
        ToolError: It could not be written; what was there is still there.
    """
    with explained(f"write {name}"):
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                if before is not None:
                    _take_after(file.fileno(), before)
                file.write(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _take_after(descriptor: int, before: os.stat_result) -> None:
    with suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o777)  # as a write does: no set-user-id survives it
