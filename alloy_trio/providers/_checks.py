"""What a user may give a provider that speaks HTTP, checked before anything is sent."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .._errors import InvalidOption
from .._price import Price
from ._json import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import attrs

_FRAMING = {"content-length", "transfer-encoding"}
_SECRET_IN_URL = re.compile(r"^(\w+://)?([^/?#:@]*:)?[^/?#]*@")  # a password; or a key, where there is nothing else
_BEHIND_PATH = re.compile(r"([?#]).+", re.DOTALL)
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110, section 5.6.2


def clean_url(url: str) -> str:
    """Return a base URL without its last slash. Raises `InvalidOption`."""
    if not url.startswith(("http://", "https://")):
        raise InvalidOption(f"base_url={shown_url(url)} is no address: it has to begin with http:// or https://")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise InvalidOption(f"base_url={shown_url(url)} is no address: look at its host and port") from None
    if "?" in url or "#" in url:
        raise InvalidOption(
            f"base_url={shown_url(url)} has something behind its path, which no request would carry: "
            "take it out; for a key there is extra_headers="
        )
    return url.rstrip("/")


def shown_url(url: str) -> str:
    """Return the repr of a base URL, without the password that it may have, and the key behind its path."""
    return repr(_BEHIND_PATH.sub(r"\1…", _SECRET_IN_URL.sub(r"\1\2…@", url)))


def clean_key(key: str | None) -> str | None:
    """Return a key without white space around it, None if nothing is left. Raises `InvalidOption`."""
    if key is None:
        return None
    if not (key := key.strip()).isascii() or not key.isprintable():
        raise InvalidOption("the API key has characters that no HTTP header may carry: copy it again")
    return key or None


def own_body(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy of JSON fields, so that nobody changes them by accident. Raises `InvalidOption` for what is no JSON."""
    try:
        encode(own := copy.deepcopy(dict(fields)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidOption(f"extra_body is no JSON object: {error}") from error
    return own


def own_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return a copy of headers; as above."""
    return dict(headers)


def is_header(name: str, value: str) -> bool:
    """Whether HTTP can carry it: a name, and a value of printable ASCII without white space around it."""
    return bool(_HEADER_NAME.fullmatch(name)) and value.isascii() and value.isprintable() and value == value.strip()


def check_headers(_: object, field: attrs.Attribute[Any], headers: Mapping[str, Any]) -> None:
    """Refuse what HTTP cannot carry, by name: a value may be a secret."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _FRAMING:
            raise InvalidOption(f"{field.name} has {name!r}, which is no name of an HTTP header, or not yours to set")
        if not isinstance(value, str) or not is_header(name, value):
            raise InvalidOption(
                f"{field.name} has a value for {name} that no HTTP header may carry: it takes printable ASCII, "
                "without white space around it"
            )


def check_price(_: object, __: object, price: Any) -> None:
    """Refuse what is no price."""
    if price is not None and not isinstance(price, Price):
        raise InvalidOption(
            f'price={price!r} is no price: write Price("3", "15"), dollars per million tokens of input and of output'
        )


def check_client(_: object, __: object, client: Any) -> None:
    """Refuse what is no async client: httpx's sync one, or a transport alone, would be noticed by the first request."""
    if client is not None and not (hasattr(client, "build_request") and hasattr(client, "aclose")):
        raise InvalidOption(
            f"http_client is a {type(client).__name__}: it has to be an httpx.AsyncClient; "
            "a transport goes into one, httpx.AsyncClient(transport=…)"
        )


def check_tls(_: object, __: object, context: Any) -> None:
    """Refuse what makes no TLS, a path for instance."""
    if context is not None and not hasattr(context, "wrap_bio"):
        raise InvalidOption(f"ssl_context is a {type(context).__name__}: it has to be an ssl.SSLContext")


def check_stall(_: object, __: object, seconds: Any) -> None:
    """Refuse what is no time to wait; None would be `timeout=`'s way to say that there is no limit."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
        raise InvalidOption(
            f"stall_timeout={seconds!r:.100} has to be a number of seconds above 0; math.inf for no limit"
        )
