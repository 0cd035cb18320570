"""Files in what a person types: `@path` puts one into the message, a text as text and an image as an image."""

from __future__ import annotations

import mimetypes
import re
from typing import TYPE_CHECKING, Final

from .._errors import InvalidOption
from .._messages import Document, Image, Message, Text

if TYPE_CHECKING:
    from pathlib import Path

    from .._messages import Block

# At the start or behind white space, so that no mail address is taken for one; a path with spaces stands in quotes.
_MENTION: Final = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_MAX_TEXT: Final = 256 << 10  # bytes: some 60,000 tokens
_MAX_MEDIA: Final = 8 << 20
_TRAILING: Final = ".,;:!?)"


def to_message(text: str, directory: Path) -> Message:
    """
    Return the message that a typed text is, with the files it mentions below it. What is no file stays as it was typed.

    Raises:
        InvalidOption: A file is too large, or cannot be read.
    """
    paths = {path: None for found in _MENTION.finditer(text) if (path := _file(found, directory))}
    files = [_block(path, directory) for path in paths]
    return Message.user(Text(text), *files) if files else Message.user(text)


def _file(found: re.Match[str], directory: Path) -> Path | None:
    quoted, bare = found.groups()
    for name in (quoted,) if quoted else (bare, bare.rstrip(_TRAILING)):
        try:
            path = (directory / name).expanduser()
            if path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # too long for a path, or of a user that is not known
            continue
    return None


def _block(path: Path, directory: Path) -> Block:
    name = str(path.relative_to(directory)) if path.is_relative_to(directory) else str(path)
    kind = mimetypes.guess_type(path.name)[0] or ""
    is_media = kind.startswith("image/") and kind != "image/svg+xml"
    most = _MAX_MEDIA if is_media or kind == "application/pdf" else _MAX_TEXT
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InvalidOption(f"@{name} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise InvalidOption(
            f"@{name} is larger than {most:,} bytes: name it without the @, and let a tool read a part of it"
        )
    if is_media:
        return Image(kind, data)
    if kind == "application/pdf":
        return Document(kind, data=data)
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidOption(f"@{name} is neither a text nor an image: no model could read it") from error
    return Text(f'<file path="{name}">\n{content}\n</file>')
