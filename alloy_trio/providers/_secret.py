"""
Keys, and how they stay out of what people read: reprs, errors, logs, and tracebacks that show local variables.

A key has to be in memory, and in what is sent. So what carries one is of a type whose repr does not show it, and an error that leaves
a provider brings neither the frames in which one was at hand nor the words of a server that has quoted one.
"""

from __future__ import annotations

import base64
import functools
import re
import sys
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from .._util import Discreet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

P = ParamSpec("P")
T = TypeVar("T")

_SHORTEST = 4  # characters; a shorter key is a placeholder, and may stand in any text
_TELLING = 8  # characters of a key by which a part of it is known again
_NAME = re.compile("auth|key|token|secret|cookie|password|credential", re.IGNORECASE)
_USER = re.compile(
    r"//([^/\s@:]*:)?[^/\s@]*@"
)  # of any address: a name and a password; or a key, where there is nothing else


class Parts(tuple[bytes | bytearray | memoryview, ...]):
    """The bytes of a request, in parts. The head has the key, the body what a conversation is about: no repr shows them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<a request in {len(self)} parts>"

    __sentry_repr__ = __repr__


class Headers(Discreet[str]):
    """Headers that may have a key in them."""


class QuietBytes(bytes):
    """The body of a request."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __sentry_repr__ = __repr__


def of_address(url: str) -> Iterator[str]:
    """Yield what is secret in an address, in all ways in which it is sent."""
    parts = urlsplit(url)
    for secret in filter(None, (parts.password or parts.username,)):
        yield secret
        yield unquote(secret)
        yield basic(url).split()[-1]


def basic(url: str) -> str:
    """Return the value of `authorization` for the user that an address names; nothing if it names none. RFC 7617."""
    parts = urlsplit(url)
    if not (parts.username or parts.password):
        return ""
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(user.encode()).decode()}"


def named(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of those fields that are secret by their name, without a scheme (`Bearer`) ahead of them."""
    for name, value in fields.items():
        if isinstance(value, dict | list):
            for each in value if isinstance(value, list) else [value]:
                yield from named(each) if isinstance(each, dict) else named({name: each})
        elif isinstance(value, str) and value.strip() and _NAME.search(name):
            yield value.split()[-1]


def redact(message: str, secrets: Iterable[str | None]) -> str:
    """Take secrets out of a message: some servers quote the key that they refuse, and an excerpt may have cut it short."""
    for secret in secrets:
        if secret and len(secret) >= _SHORTEST:
            message = message.replace(secret, "…")
        if secret and len(secret) >= _TELLING:
            message = re.sub(re.escape(secret[:_TELLING]) + r"[\w.~+/=-]*", "…", message)
    return message


def without_users(message: str) -> str:
    """Take passwords out of the addresses in a message."""
    return _USER.sub(r"//\1…@", message)


def hush(error: BaseException, outer: BaseException | None, clean: Callable[[str], str] = without_users) -> None:
    """
    Take what is secret out of an error, and out of what it came from: texts, and the frames with their variables.

    Args:
        error: The error. Whoever raises it raises it as `error.with_traceback(None)`.
        outer: What was being handled when all of this began. It is somebody else's, and stays as it is.
        clean: Takes secrets out of a text.
    """
    left: list[BaseException | None] = [error]
    seen = {id(outer), id(None)}
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        each.args = tuple(clean(value) if isinstance(value, str) else value for value in each.args)
        left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def discreet(fn: Callable[P, T]) -> Callable[P, T]:
    """Let no traceback of what `fn` raises show its arguments: one of them is a key."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        outer = sys.exception()
        try:
            return fn(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is raised again
            hush(error, outer)
            failure = error
        del args, kwargs
        raise failure.with_traceback(None)

    return call
