"""Keys, addresses, and the options that all of the fleet have in common."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from .._errors import AlloyError, InvalidOption
from .._util import without_surrogates
from ..providers._secret import without_users

PREFIX: Final = "alloy"
URL: Final = "redis://localhost:6379"
UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AlloyError,
    msgspec.DecodeError,
    RecursionError,
)
"""What data of somebody else's may raise when it is read."""
_LONGEST: Final = 1000  # letters of an id
_FOREVER: Final = 1e9  # seconds


class Address(str):
    """Where Redis is. A password in it is in no repr, and so in no traceback that shows variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_users(self))

    __sentry_repr__ = __repr__


def address(url: Any) -> Address:
    """Return an address. Raises InvalidOption."""
    try:
        parts = urlsplit(url)
        is_one = bool(parts.path if parts.scheme == "unix" else parts.hostname) and (parts.port or 1) > 0
        is_one &= parts.scheme in {"redis", "rediss", "unix"}
        is_seen = not {"username", "password"}.isdisjoint(parse_qs(parts.query))
    except (ValueError, TypeError, AttributeError):
        is_one = is_seen = False
    if not is_one or not isinstance(url, str):
        raise InvalidOption("the address of Redis has to be redis://HOST:PORT, rediss://HOST:PORT or unix://PATH")
    if is_seen:  # no repr would hide it there
        raise InvalidOption(
            "put the password before the host of Redis: redis://:PASSWORD@HOST, with / as %2F, and so on"
        )
    return Address(url)


def base_key(prefix: str, agent: Any) -> str:
    """Return what the keys of an agent begin with. Raises InvalidOption."""
    if not isinstance(agent, str) or not re.fullmatch(r"[^{}\s\x00]{1,200}", agent) or not is_utf8(agent):
        raise InvalidOption(f"agent {agent!r:.100} has to be a name of 1 to 200 letters, without spaces and braces")
    return f"{check_prefix(prefix)}:{{{agent}}}"


def check_prefix(prefix: Any) -> str:
    """Return it. Raises InvalidOption."""
    if not isinstance(prefix, str) or not re.fullmatch(r"[\w.:-]{1,100}", prefix, re.ASCII):
        raise InvalidOption(f"prefix={prefix!r:.100} has to be of letters, digits and . : - _")
    return prefix


def check_id(what: str, value: Any) -> str:
    """Return an id. Raises InvalidOption."""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _LONGEST
        or not is_utf8(value)
        or "\n" in value
        or "\0" in value
    ):
        raise InvalidOption(f"{what}={value!r:.100} has to be a text of one line, 1000 letters at most")
    return value


def check_seconds(what: str, value: Any, least: float = 0.0) -> float:
    """Return a number of seconds. Raises InvalidOption."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < _FOREVER:
        raise InvalidOption(f"{what}={value!r:.100} has to be seconds, more than {least:g}")
    return float(value)


def check_count(what: str, value: Any) -> int:
    """Return a number of things. Raises InvalidOption."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOption(f"{what}={value!r:.100} has to be a whole number, 1 at least")
    return value


def is_utf8(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode(data: object) -> bytes:
    """Write JSON."""
    try:
        return msgspec.json.encode(data)
    except UnicodeEncodeError:
        return msgspec.json.encode(without_surrogates(data))
