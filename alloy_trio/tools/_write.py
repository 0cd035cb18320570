"""The `write` tool, and the atomic replacement of a file that `edit` shares with it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ._paths import explained, located
from ._tool import tool

if TYPE_CHECKING:
    from ._context import ToolContext
    from ._paths import Place


@tool(concurrent=False, trusted=True)  # what it says is its own
def write(file_path: str, content: str, ctx: ToolContext) -> str:
    """
    Write a text file: the whole of it is replaced, and missing directories are made.

    Args:
        file_path: Path of the file, absolute or relative to the working directory.
        content: The whole new content of the file.
        ctx: Where the call works.
    """
    with explained(f"write {file_path}"):
        data = content.encode()
    with located(file_path, ctx, "make the directory of", make=True) as place:
        before = replace_file(place, data)
    lines = len(content.splitlines())
    return f"{'Replaced' if before else 'Created'} {file_path} ({lines} lines, {len(data)} bytes)."


def replace_file(place: Place, data: bytes) -> os.stat_result | None:
    """
    Put `data` in the place of a file, at once: whoever opens it finds the old content or the new, whole.

    A file that was there keeps its mode, and its owner and group as far as we may; a new one has the mode that the
    umask gives. Other hard links to it keep the old content. Nothing is synced: it is for whoever reads the file now,
    and for an error half-way. After a power cut many file systems, but not all, still have the old or the new; waiting
    for the disk could hold up a call by seconds that no cancel shortens.

    Returns the status of the file that was there.

    Raises:
        ToolError: It could not be written; what was there is still there, and nothing beside it.
    """
    with explained(f"write {place.path}"):
        before = _writable(place)
        temporary = f".{secrets.token_hex(8)}.tmp"
        # Nobody may open it who may not open the file it is to replace.
        opener = place.opener if before is None else partial(place.opener, mode=0o600)
        try:
            with open(temporary, "xb", opener=opener) as file:
                if before is not None:
                    _take_after(file.fileno(), before)
                file.write(data)
            os.replace(temporary, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
        finally:
            with suppress(OSError):  # it has been renamed, as a rule
                os.unlink(temporary, dir_fd=place.directory)
    return before


def _writable(place: Place) -> os.stat_result | None:
    try:
        status = place.status()
    except FileNotFoundError:
        return None
    # A rename would pay no heed to the file's own mode.
    if not os.access(place.name, os.W_OK, dir_fd=place.directory):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return status


def _take_after(descriptor: int, before: os.stat_result) -> None:
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError:  # we may not, or the file system or a user namespace has no such owner; the group alone, perhaps
        with suppress(OSError):
            os.fchown(descriptor, -1, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o777)  # as a write does: no set-user-id survives it
