"""What goes wrong between two ends."""

from __future__ import annotations

from .._errors import AlloyError


class ConnectionLost(AlloyError):
    """
    The connection to the other end is gone, or could not be made, and what was asked cannot be asked again by itself.

    Attributes:
        may_have_begun: Whether the request had been sent, so that the agent may have begun it. The agent cancels it.
    """

    def __init__(self, message: str, *, may_have_begun: bool = False) -> None:
        super().__init__(message)
        self.may_have_begun: bool = may_have_begun


class Refused(AlloyError):
    """
    The other end does not let us in, or not do this: a wrong token, another protocol, a limit.

    Attributes:
        status: The HTTP status of the handshake, or the code that closed the connection.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status: int | None = status


class ProtocolError(AlloyError):
    """
    One end has sent what the other cannot understand, or is about to send more than it takes.

    Attributes:
        code: With which a WebSocket is closed for it.
    """

    def __init__(self, message: str, code: int = 1002) -> None:
        super().__init__(message)
        self.code: int = code


class RemoteError(AlloyError):
    """
    An error at the other end of a type that is not known here.

    Attributes:
        kind: The name of its type.
    """

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind: str = kind


class UnknownAgent(AlloyError, LookupError):
    """The other end has no agent of that name, or none that our token may reach."""


class NotAllowed(AlloyError):
    """Our token does not allow this."""
