"""How the other end is reached: an address, and a stream to it, by TCP or TLS."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

import attrs
import trio


@attrs.frozen(kw_only=True)
class Options:
    """What `connect` was given; the attributes are its arguments."""

    url: str
    token: str = attrs.field(repr=False)
    ssl_context: ssl.SSLContext | None
    max_message_size: int
    ping_interval: float
    ping_timeout: float
    connect_timeout: float
    reconnect: float


async def dial(options: Options) -> trio.abc.Stream:
    """Return a stream to the server. Raises OSError, or BrokenResourceError, where there is none."""
    url = urlsplit(options.url)
    host = url.hostname or ""
    plain = await trio.open_tcp_stream(host, url.port or (80 if url.scheme == "ws" else 443))
    if url.scheme == "ws":
        return plain
    context = options.ssl_context or ssl.create_default_context()
    secured = trio.SSLStream(plain, context, server_hostname=host, https_compatible=True)
    is_up = False
    try:
        await secured.do_handshake()
        is_up = True
    finally:
        if not is_up:
            await trio.aclose_forcefully(plain)
    return secured
