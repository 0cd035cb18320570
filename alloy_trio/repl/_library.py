"""
The conversations on disk: a folder for each, under its name, in which a store keeps the log.

A folder of its own, since a store locks its folder: two programs may have two conversations open, and never the same one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import attrs

from .._errors import InvalidOption, StoreError
from .._journal import read_session
from ..sessions._jsonl import JSONLStore
from ..sessions._sqlite import SQLiteStore
from ._places import private_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .._session import Session
    from ..sessions._record import SessionStore


_LONGEST_NAME = 200  # bytes, of the 255 that a folder's name may have


def new_name() -> str:
    """Return a name for a conversation that was not given one: when it began."""
    return f"{dt.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"  # noqa: DTZ005 - as the person's clock has it


def check_name(name: str) -> str:
    """Return a name that a person gave, if it can be one. Raises InvalidOption."""
    name = name.strip()
    if not name.strip(".") or not name.isprintable() or len(quote(name, safe="")) > _LONGEST_NAME:
        raise InvalidOption("a session's name has to be a short line of text, and not of dots only")
    return name


@attrs.frozen
class Library:
    """All conversations in one folder."""

    folder: Path

    def names(self) -> list[str]:
        """Return their names, the one that was used last first."""
        try:
            entries = [entry for entry in os.scandir(self.folder) if entry.is_dir()]
        except OSError:
            return []
        used = [(when, unquote(entry.name)) for entry in entries if (when := _used(entry.path)) is not None]
        return [name for _, name in sorted(used, reverse=True)]

    def last_used(self, name: str) -> dt.datetime | None:
        """Return when a conversation was written last; None if it never was."""
        when = _used(str(self._place(name)))
        return None if when is None else dt.datetime.fromtimestamp(when).astimezone()

    @contextlib.asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[SessionStore]:
        """
        Open the store of a conversation, which need not be there yet. One that stays empty leaves nothing behind.

        Raises:
            StoreError: Somebody else has it open, or the folder cannot be used.
        """
        place = self._place(name)
        try:
            private_folder(self.folder)
            private_folder(place)
        except OSError as error:
            raise StoreError(f"the folder of session {name!r} cannot be made: {error}") from error
        try:
            async with JSONLStore(place) if os.name == "posix" else SQLiteStore(place / "session.db") as store:
                yield store
        except StoreError as error:
            raise StoreError(f"session {name!r}: {error}") from error
        finally:
            if _used(str(place)) is None:
                _forget(place)

    async def read(self, name: str) -> Session:
        """
        Return a conversation as it was written last.

        Raises:
            StoreError: There is none, it cannot be read, or another program has it open.
        """
        if _used(str(self._place(name))) is not None:
            async with self.open(name) as store:
                if (session := await read_session(store, name)) is not None:
                    return session
        raise StoreError(f"there is no session {name!r}: /sessions lists those that are there")

    def _place(self, name: str) -> Path:
        return self.folder / quote(name, safe="")


def _used(place: str) -> float | None:
    """Return when a folder was written last; None if it has no conversation."""
    times: list[os.stat_result] = []
    with contextlib.suppress(OSError):
        times = [entry.stat() for entry in os.scandir(place) if entry.name.endswith((".jsonl", ".db"))]
    return max((each.st_mtime for each in times if each.st_size), default=None)


def _forget(place: Path) -> None:
    with contextlib.suppress(OSError):
        for entry in place.iterdir():
            if entry.name == "store.lock" or entry.suffix in {".jsonl", ".db"}:  # the store's own
                entry.unlink()
        place.rmdir()
