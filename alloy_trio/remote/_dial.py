"""How the other end is reached: an address, and a stream to it, by TCP or TLS."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs
import trio

from .. import _checks
from .._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterator


_UNTRUSTED: Final = {18, 19, 20, 21}  # X509_V_ERR_*: nobody vouches for the certificate whom we know


def check_url(url: str) -> None:
    """Raise InvalidOption where a URL leads nowhere, or has a password, which would be in every message about it."""
    is_url, has_password = False, False
    with contextlib.suppress(ValueError):  # a port of six digits, half an IPv6 address
        parts = urlsplit(url)
        is_url = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
        has_password = parts.username is not None
    if has_password:
        raise InvalidOption("the url has a user or a password in it: the token goes into token=")
    if not is_url:
        raise InvalidOption(f"url={url!r:.200} has to be ws://HOST:PORT, or wss://, as the server says")


@attrs.frozen(kw_only=True)
class Options:
    """What `connect` was given, but for the token; the attributes are its arguments. Raises InvalidOption."""

    url: str
    ssl_context: ssl.SSLContext | None
    max_message_size: int = attrs.field(validator=_checks.whole_number)
    ping_interval: float = attrs.field(validator=_checks.above_0)
    ping_timeout: float = attrs.field(validator=_checks.above_0)
    connect_timeout: float = attrs.field(validator=_checks.above_0)
    reconnect: float = attrs.field(validator=_checks.duration)


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


def why_not(error: Exception) -> str:
    """Say in a line why there is no connection, and what may be wrong."""
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    while isinstance(cause, ExceptionGroup):  # an error for each address of the host
        cause = cause.exceptions[0]
    match cause.__cause__ or cause:
        case ssl.SSLCertVerificationError(verify_code=code, verify_message=words) if code in _UNTRUSTED:
            return (
                f"{words}; an authority of your own is trusted by ssl_context=, or by SSL_CERT_FILE in the environment"
            )
        case ssl.SSLCertVerificationError(verify_message=words):
            return f"{words.removesuffix('.')}: is it the name that the server's certificate has?"
        case ssl.SSLError(reason=reason):
            return f"TLS fails ({reason}); does the server say wss://, or ws://?"
        case trio.BrokenResourceError():
            return f"{cause}; does the server say ws://, or wss://?"
        case socket.gaierror(strerror=str(words)):  # its numbers may look like those below, and mean something else
            return f"{words}; is the server there?"
        case OSError(errno=int(number)):  # Trio's words have the address once more
            return f"{os.strerror(number)}; is the server there?"
        case _:
            return f"{cause}; is the server there?"


class Watched(trio.abc.Stream):
    """A stream whose end is noticed during the handshake: the library reads on, and waits for it all the same."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._scope = trio.CancelScope()

    @contextlib.contextmanager
    def unless_it_ends(self) -> Iterator[Watched]:
        """Do what the body does. Raises BrokenResourceError as soon as the other end hangs up meanwhile."""
        with self._scope:
            yield self
        if self._scope.cancelled_caught:
            raise trio.BrokenResourceError("it hung up without an answer")

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive; `b""` at the end."""
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self._scope.cancel()  # of nothing, once the handshake is over
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close."""
        await self._stream.aclose()
