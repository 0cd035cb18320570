"""Small tools without a home of their own. Nothing here knows what an agent is."""

from __future__ import annotations

import hashlib
import inspect
import secrets
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

V = TypeVar("V")

JSONObject: TypeAlias = dict[str, Any]
"""A JSON object. Its values are `Any` on purpose: they are a vendor's or a model's, and checked where they are used."""


def new_id(prefix: str = "") -> str:
    """Return a random, URL-safe id of 22 characters behind `prefix`: another one also where a program seeds `random`."""
    return prefix + secrets.token_urlsafe(16)


def digest(data: bytes) -> str:
    """Return 16 hex characters that stand for `data`, which cannot be had back from them."""
    return hashlib.sha256(data).hexdigest()[:16]


def without_surrogates(value: Any) -> Any:
    """Return JSON data in which U+FFFD stands for each lone half of a surrogate pair, which UTF-8 cannot carry."""
    match value:
        case str():
            # By way of UTF-16, two halves of one character that came apart become that character again.
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {without_surrogates(key): without_surrogates(member) for key, member in value.items()}
        case list() | tuple():
            return [without_surrogates(member) for member in value]
    return value


def single(error: Exception) -> Exception:
    """Return what a group of one says: its member."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def export(namespace: dict[str, Any], names: Sequence[str]) -> None:
    """
    Give each exported class and function the public namespace as its `__module__`.

    So that a traceback says `alloy_trio.RateLimited`, not `alloy_trio._errors.RateLimited`, and that a pickle or a
    reference in the docs outlives a move between private modules.
    """
    for name in names:
        thing = namespace[name]
        if inspect.isclass(thing) or inspect.isfunction(thing):
            thing.__module__ = namespace["__name__"]


class Discreet(dict[str, V]):
    """A mapping whose values are nobody's business: its repr has the names alone, also in a traceback that shows variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{', '.join(map(str, self)) or 'nothing'}>"

    __sentry_repr__ = __repr__  # Sentry looks into a mapping or a sequence itself, unless it has this
