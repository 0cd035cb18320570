"""
Reading and writing JSON that vendors and models have a hand in.

A vendor's surprise (null for a list, a number as text, a key that is missing) is never a crash: the accessors return an
empty value of the type that was asked for. They say nothing of what is right, only what a caller can go on with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from .._errors import WireError
from .._util import without_surrogates

if TYPE_CHECKING:
    from .._util import JSONObject

_BOM = b"\xef\xbb\xbf"
# Each escape of a JSON text in turn, so that the second of two backslashes does not pass for the start of one. Servers that
# write one delta a token cut a character in two, and send its UTF-16 halves as escapes in two events.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][\da-fA-F]{2})|.)",
    re.DOTALL,
)
_EXCERPT = 200  # characters of an unreadable body that an error shows


def as_dict(value: Any) -> JSONObject:
    """Return an object as it is, and `{}` for anything else. `value` is any JSON."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return an array as it is, and `[]` for anything else. Value and members are any JSON."""
    return value if isinstance(value, list) else []


def as_dicts(value: Any) -> list[JSONObject]:
    """Return the members of an array that are objects. `value` is any JSON."""
    return [member for member in as_list(value) if isinstance(member, dict)]


def as_str(value: Any) -> str:
    """Return a string as it is, and `""` for anything else. `value` is any JSON."""
    return value if isinstance(value, str) else ""


def as_int(value: Any) -> int:
    """Return a count: an integer, an integral float or a string of digits; 0 for anything else. `value` is any JSON."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:  # noqa: PLR2004 - 64 bits
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def decode(data: bytes) -> Any:
    """
    Read JSON text; the result is any JSON. What is no Unicode in it is replaced: bytes, and lone halves of a character.

    Raises:
        WireError: It is no JSON. The message says what came instead. Retryable if it is the beginning of some.
    """
    try:
        return _loads(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(_complaint(data, error), retryable=_is_cut(data, error)) from error


def encode(value: Any) -> bytes:
    """
    Write any JSON data as compact JSON text. Lone surrogates, which UTF-8 cannot carry, are replaced.

    The same value gives the same bytes: keys keep their order.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(without_surrogates(value))


def parse_arguments(raw: Any) -> tuple[JSONObject, str | None]:
    """
    Read the arguments of a tool call, which vendors send as an object, as JSON text, or not at all.

    Args:
        raw: The arguments as they came: any JSON, in most cases text with an object in it.

    Returns:
        The arguments and None; or, where they are no object, `{}` and what came instead.
    """
    if raw is None or isinstance(raw, dict):
        return raw or {}, None
    if not isinstance(raw, str):
        return {}, encode(raw).decode()
    value: Any = raw
    for _ in range(2):  # some servers encode the text once more
        if not value.strip():
            return {}, None
        try:
            value = _loads(_utf8(value))
        except (msgspec.DecodeError, RecursionError):
            break
        if value is None or isinstance(value, dict):
            return value or {}, None
        if not isinstance(value, str):
            break
    return {}, raw


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        mended: str = without_surrogates(text)
        return mended.encode()


def _loads(data: bytes) -> Any:
    data = data.removeprefix(_BOM)
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        mended = _ESCAPE.sub(_no_lone_half, data.decode("utf-8", "replace").encode())
        if mended == data:
            raise
    return msgspec.json.decode(mended)


def _no_lone_half(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["lone"] else escape[0]


def _is_cut(data: bytes, error: Exception) -> bool:
    """Whether data that cannot be read is an object which somebody on the way has cut short."""
    return data.lstrip().startswith(b"{") and "truncated" in str(error)


def _complaint(data: bytes, error: Exception) -> str:
    text = data[: 4 * _EXCERPT].decode("utf-8", "replace").strip()
    if not text:
        return (
            "the answer is empty where JSON was expected: check base_url, or whatever stands between here and the API"
        )
    if text.startswith("<"):
        return f"this looks like a web page, not an API: check base_url (it begins {text[:_EXCERPT]!r})"
    return f"the answer is no JSON ({error}): {text[:_EXCERPT]!r}; check that base_url is the API of this provider"
