"""Names: who is reached by one, from wherever."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from ._spec import NameTaken


@attrs.define(eq=False)
class _Entry:
    owner: object
    handle: Any = None  # of whatever type
    is_live: bool = False
    changed: trio.Event = attrs.field(factory=trio.Event)

    def turn(self, *, is_live: bool) -> None:
        self.is_live = is_live
        self.changed.set()
        self.changed = trio.Event()


class Registry:
    """
    Live handles by name.

    A name has one owner at a time, from `claim` to `release`; while a child restarts, its name stays its own, and whoever
    `wait`s for it gets the next handle. `open_supervisor(…, registry=…)` keeps one for its children, by their ids; several
    supervisors may share one.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def claim(self, name: str, owner: object) -> None:
        """
        Make a name one's own.

        Raises:
            NameTaken: It has an owner.
        """
        if name in self._entries:
            raise NameTaken(f"the name {name!r} is taken: take another, or release it first")
        self._entries[name] = _Entry(owner)

    def put(self, name: str, owner: object, handle: Any) -> None:
        """
        Let a name lead to a handle, of whatever type, from now on.

        Raises:
            NameTaken: It is somebody else's.
        """
        entry = self._owned(name, owner)
        entry.handle = handle
        entry.turn(is_live=True)

    def take(self, name: str, owner: object) -> None:
        """
        Let a name lead nowhere for the time being; it stays its owner's.

        Raises:
            NameTaken: It is somebody else's.
        """
        self._owned(name, owner).turn(is_live=False)

    def release(self, name: str, owner: object) -> None:
        """
        Give a name up. Who waits for it is told.

        Raises:
            NameTaken: It is somebody else's.
        """
        entry = self._owned(name, owner)
        del self._entries[name]
        entry.turn(is_live=False)

    def __getitem__(self, name: str) -> Any:
        """Return the live handle of a name. Raises KeyError if there is none just now."""
        entry = self._entries.get(name)
        if entry is None or not entry.is_live:
            raise KeyError(
                f"nobody is live under the name {name!r}; those who are: {', '.join(self.names()) or 'nobody'}"
            )
        return entry.handle

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    async def wait(self, name: str) -> Any:
        """
        Return the handle of a name once it is live: waits while its owner restarts.

        Raises:
            LookupError: Nobody owns the name, or it is given up meanwhile.
        """
        await trio.lowlevel.checkpoint()
        entry = self._entries.get(name)
        while entry is not None and not entry.is_live:
            await entry.changed.wait()
            entry = entry if self._entries.get(name) is entry else None
        if entry is None:
            raise LookupError(f"nobody owns the name {name!r}: it was never claimed, or was given up")
        return entry.handle

    def names(self) -> tuple[str, ...]:
        """Return the names that are live."""
        return tuple(name for name, entry in self._entries.items() if entry.is_live)

    def _owned(self, name: str, owner: object) -> _Entry:
        entry = self._entries.get(name)
        if entry is None or entry.owner is not owner:
            raise NameTaken(f"the name {name!r} is not yours: claim it first")
        return entry
