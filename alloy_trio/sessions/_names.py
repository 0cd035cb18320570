"""
The name of a session's file, and back.

Every byte of an id but small letters, digits and `-_.~` is written as `%` and two digits. So no id leaves the folder, two ids
never share a file, also where a file system does not tell large letters from small ones, and a name says whose it is. An id
that is too long for a name is cut, with a digest behind `@`, which stands in no other name; its file begins with a line that
has the whole id.
"""

from __future__ import annotations

import hashlib
import string
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX = ".jsonl"

_PLAIN = frozenset((string.ascii_lowercase + string.digits + "-_.~").encode())
_LONGEST = 200  # bytes of a name; most file systems allow 255
_KEPT = 100  # of an id that is longer


class _Header(msgspec.Struct):
    session: str


def file_name(session: str) -> str:
    """Return the name of a session's file."""
    quoted = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in session.encode())
    if len(quoted) > _LONGEST:
        quoted = f"{quoted[:_KEPT]}@{hashlib.sha256(session.encode()).hexdigest()}"
    return quoted + SUFFIX


def header(session: str) -> bytes:
    """Return the line with which the file begins; for most ids there is none."""
    return msgspec.json.encode(_Header(session)) + b"\n" if "@" in file_name(session) else b""


def session_of(path: Path) -> str | None:
    """Return whose file this is; None if it has nothing yet, or is none of ours. Raises `OSError`."""
    has_header = "@" in path.name
    with path.open("rb") as file:
        line = file.readline()
        record = file.readline() if has_header else line
    if not record.endswith(b"\n"):
        return None
    session = unquote(path.name.removesuffix(SUFFIX))
    if has_header:
        try:
            session = msgspec.json.decode(line, type=_Header).session
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    return session if file_name(session) == path.name else None
