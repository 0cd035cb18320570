"""
Everything that goes wrong, split by who is at fault.

    AlloyError                   .result where a run was under way
    ├── ProviderError            the remote end: .provider .model .status .retryable .retry_after .request_id
    │   ├── AuthenticationError  the key is missing, wrong, or not allowed to do this
    │   ├── RateLimited          too many requests, or no quota left (then not retryable)
    │   ├── Overloaded           the provider cannot serve anybody just now
    │   ├── BadRequest           we, or the caller, sent what the provider refuses
    │   │   └── ContextTooLong   the prompt does not fit the model's window
    │   ├── ConnectionFailed     no connection, or one that broke
    │   ├── ProviderTimeout      no byte came for too long
    │   └── WireError            bytes we could not understand
    ├── ToolError                raised by tool authors: an error result for the model, never the end of a run
    │   └── ModelRetry           the same, when the model should call again with other input
    ├── Halted                   raised by a middleware: ends the run with status halted, and never leaves it
    ├── RunTimeout               the run's own deadline passed (also a trio.TooSlowError)
    ├── RequestCancelled         told to others than the one who was cancelled, to whom it is trio.Cancelled
    ├── UnknownRequest           no request of that id is queued or running (also a LookupError)
    ├── AgentBusy                the agent is in a run, and this does not wait; or it would wait for itself
    ├── QueueFull                as many requests are queued as may be
    ├── AgentIdle                there is no run to steer, or nothing that waits for approval
    ├── AgentClosed              the agent has stopped, and will not come back
    ├── AgentCrashed             the agent broke down under the request; its supervisor may have started it again
    ├── StoreError               a session could not be written or read
    ├── UnknownPrice             a budget is to be kept, and what a model costs is not known; nothing was sent
    └── InvalidOption            a call that cannot be right (also a TypeError); nothing was sent

`trio.Cancelled` is none of ours: it is never caught, wrapped or mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ._result import Result


class AlloyError(Exception):
    """
    The root of all errors of this package.

    Attributes:
        result: What the run had done when it failed (history, usage, tool calls), where a run was under way.
    """

    result: Result | None = None


class ProviderError(AlloyError):
    """
    The remote end failed, or refused.

    Attributes:
        provider: The provider's name, as in `Provider.name`.
        model: The model that was asked.
        status: The HTTP status, or None where there was none: an error inside a stream, a refused connection.
        retryable: Whether the same request may succeed later.
        retry_after: Seconds that the provider asks us to wait, or None.
        request_id: The provider's id of the request, to be quoted to its support.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.model = model
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.request_id = request_id


class AuthenticationError(ProviderError):
    """The key is missing, wrong, or not allowed to do this."""


class RateLimited(ProviderError):
    """Too many requests (retryable), or no quota or credit left (not retryable)."""


class Overloaded(ProviderError):
    """The provider cannot serve anybody just now: 529, 503, or its word for it inside a stream."""


class BadRequest(ProviderError):
    """The provider refuses what was sent; the same request will fail again."""


class ContextTooLong(BadRequest):
    """The prompt does not fit the model's window."""


class ConnectionFailed(ProviderError):
    """
    No connection could be made, or it broke before the answer was complete.

    Attributes:
        nothing_sent: Whether there never was a connection, so that the provider cannot have begun to answer.
    """

    nothing_sent: bool = False


class ProviderTimeout(ProviderError):
    """No byte came for longer than the provider's `stall_timeout`."""


class WireError(ProviderError):
    """Bytes, or an answer, that could not be understood."""


class ToolError(AlloyError):
    """
    Raised by a tool to report a failure to the model.

    The text becomes an error result of that call and the run goes on. Raise it for what the model should know
    ("no such city"); any other exception becomes an error result too, and is logged with its traceback.
    """


class ModelRetry(ToolError):
    """Raised by a tool when the model should call it again with other input; the text says what was wrong."""


class Halted(AlloyError):
    """
    Raised by a middleware's hook to end the run: its status is `halted`, its `error` this, and nothing is raised.

    The text is the reason. What the hook, and those before it, changed of the state is kept.
    """


class RunTimeout(AlloyError, trio.TooSlowError):
    """The run's own deadline (`timeout=`) passed. `.result` has what was done until then."""


class RequestCancelled(AlloyError):
    """The request was cancelled by somebody else than the one who waits for it."""


class UnknownRequest(AlloyError, LookupError):
    """No request of that id is queued or running: it is over, or never was."""


class AgentBusy(AlloyError):
    """The agent is in a run, and what was asked for does not wait for its end; or it would be waiting for itself."""


class QueueFull(AlloyError):
    """As many requests are queued as `max_pending` allows."""


class AgentIdle(AlloyError):
    """There is no run that could still take what was said to it."""


class AgentClosed(AlloyError):
    """The agent has stopped, or is stopping, and will not come back."""


class AgentCrashed(AlloyError):
    """
    The agent broke down while it had the request: not what the run raised, but what the agent itself did.

    The cause is `__cause__`. Under a supervisor it is started again; requests that were queued are still served then.
    """


class StoreError(AlloyError):
    """A session could not be written or read: the store is broken, too slow, or in use by somebody else."""


class UnknownPrice(AlloyError):
    """A budget is around a run, and the price of a model, or the fee of a tool it runs, is not known. Nothing was sent."""


class InvalidOption(AlloyError, TypeError):
    """An option, or a combination of options, that cannot be right. Raised before anything is sent."""
