"""
One exchange over the network, as the wires see it: what comes back, and what can go wrong.

Two make them: `_transport`, over Trio's own sockets, and `_httpx`, through a client of the user's or a proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class ExchangeError(Exception):
    """An exchange has failed. Never leaves this package: `_http` says it in the words of a provider."""


class CannotConnect(ExchangeError):
    """There is no connection: nothing was sent."""


class ConnectTimedOut(CannotConnect):
    """There is none within the time for it."""


class CannotAsk(ExchangeError):
    """The request is none that can be sent: nothing was."""


class Stalled(ExchangeError):
    """No byte came, or went, for as long as it may take."""


class SendStalled(Stalled):
    """It did not go."""


class Broken(ExchangeError):
    """
    The connection broke, or brought what is no HTTP.

    Attributes:
        may_pass: Whether asking again may help.
    """

    may_pass = True


class Undecodable(ExchangeError):
    """
    The body does not decompress.

    Attributes:
        may_pass: Whether it does, as far as it has come.
    """

    may_pass = False


class Reply(Protocol):
    """An answer whose head has come. Close it, whatever happens."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Its fields; names in lower case."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether all of the body has been read."""
        ...

    async def read(self) -> bytes:
        """Return the next bytes of the body, `b""` at its end. Raises `ExchangeError`."""
        ...

    async def aclose(self) -> None:
        """End the exchange: at once, if it is not over."""
        ...
