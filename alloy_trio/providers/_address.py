"""Where a base URL leads: taken apart once, for each request to it."""

from __future__ import annotations

import functools
from typing import NamedTuple
from urllib.parse import urlsplit

from ._checks import shown_url
from ._exchange import CannotAsk
from ._secret import Headers, basic


class Address(NamedTuple):
    """
    Where a base URL leads.

    Attributes:
        is_tls: Whether by TLS.
        host: A name or an address, as DNS and sockets have it, without brackets.
        port: The port.
        shown: What stands in the `host` field.
        path: What comes before a wire's own path.
        authorization: The field of that name, if the address has a user in it.
        base: The URL without a user.
    """

    is_tls: bool
    host: str
    port: int
    shown: str
    path: str
    authorization: Headers
    base: str


@functools.lru_cache(maxsize=64)
def address_of(base_url: str) -> Address:
    """
    Take a base URL apart.

    Raises:
        CannotAsk: It leads nowhere.
    """
    url = urlsplit(base_url)
    host = url.hostname or ""
    try:
        name = host if host.isascii() else _encoded(host)
    except UnicodeError as error:
        raise CannotAsk(f"base_url={shown_url(base_url)} cannot be used: {error}") from error
    if not name or not name.isprintable() or " " in name:
        raise CannotAsk(f"base_url={shown_url(base_url)} cannot be used: it has no host")
    is_tls = url.scheme == "https"
    usual = 443 if is_tls else 80
    bracketed = f"[{name}]" if ":" in name else name
    shown = bracketed if url.port in {None, usual} else f"{bracketed}:{url.port}"
    authorization = Headers(authorization=basic(base_url)) if url.username or url.password else Headers()
    base = f"{url.scheme}://{shown}{url.path}"
    return Address(is_tls, name, url.port or usual, shown, url.path, authorization, base)


def _encoded(host: str) -> str:
    """Return a name with other letters than ASCII as DNS has it. Raises `UnicodeError`."""
    import idna  # noqa: PLC0415 - few need it

    return idna.encode(host, uts46=True).decode()
