"""
Asking again, and asking somebody else: two providers that wrap providers.

    Fallback([Retrying(first), Retrying(second), …])      one request of the loop, however many attempts it takes

Both act on one thing, a `ProviderError`, and only as long as nothing of an answer has been handed over: an answer is never put
together from two attempts. Usage reports are not part of an answer. What else is raised (a cancel, a budget that is exhausted,
a bug in a provider of the user's own) passes through.

    the error                       same provider again             next provider
    retryable                       after a wait                    when the retries are used up, or the wait does not fit
    not retryable                   no                              at once: it is about this vendor, key, model or account
    ContextTooLong                  no                              no: the loop makes the prompt shorter and asks again

There is no deadline here but the caller's (`trio.current_effective_deadline`). A wait that would end at it is not begun, and
nobody is asked behind it: what was last learned from a provider says more than that time is up. Nor is a wait begun that is
longer than somebody else should be kept waiting who might answer at once: the next provider.

The wait before the n-th retry is drawn evenly from 0 to 2 x backoff x 2^(n-1), and is as long as the provider asks (`retry_after`)
at least. Many that fail together, drawn from so wide a range, do not come back together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import attrs
import trio

from .._errors import ContextTooLong, ProviderError
from .._events import ContentEvent, ProviderEvent, Retry
from ._base import Request, Response, provider_model, provider_name

_DOUBLINGS = 64  # a backoff grows no more after these: by then it is longer than any run


class EmitRetries(Protocol):
    """An `Emit` that takes `Retry` events as well."""

    def __call__(self, *events: ProviderEvent | Retry) -> Awaitable[None]:
        """Hand over `events`."""
        ...


class Streaming(Protocol):
    """A provider that can be wrapped here. It may have `name` and `model`."""

    async def complete(self, request: Request) -> Response:
        """Ask the model, and return its whole answer."""
        ...

    async def stream(self, request: Request, emit: EmitRetries) -> Response:
        """Ask the model, hand over its answer as it comes, and return it."""
        ...


@attrs.frozen
class Retrying:
    """
    Asks a provider again when it fails in a way that may pass.

    Attributes:
        provider: Who is asked. `Request.attempt` tells it how often already.
        max_retries: How many times it is asked again, at most; 0 for never.
        backoff: Seconds that the first wait takes on average; it doubles with each retry.
        longest_wait: Seconds beyond which the error is raised instead: somebody else may answer meanwhile.
        random: A source of numbers from 0 to below 1.
    """

    provider: Streaming
    max_retries: int
    backoff: float
    longest_wait: float = attrs.field(default=math.inf, kw_only=True)
    random: Callable[[], float] = attrs.field(default=random.random, kw_only=True, repr=False)

    @property
    def name(self) -> str:
        """The provider's name."""
        return provider_name(self.provider)

    @property
    def model(self) -> str | None:
        """The model it asks, if it says."""
        return provider_model(self.provider)

    async def complete(self, request: Request) -> Response:
        """Do what `stream` does, and hand over nothing."""
        return await self.stream(request, _ignore)

    async def stream(self, request: Request, emit: EmitRetries) -> Response:
        """
        Ask until there is an answer or no use in asking. Emits one `Retry` ahead of each wait.

        Raises:
            ProviderError: That of the last attempt.
        """
        attempt = 1
        while True:
            watch = _Watch(emit)
            try:
                return await self.provider.stream(request, watch)
            except ProviderError as error:
                now, delay = trio.current_time(), self._delay(error, attempt)
                in_time = now + delay < trio.current_effective_deadline()
                is_over = attempt > self.max_retries or delay > self.longest_wait or not in_time
                if watch.has_content or not error.retryable or is_over:
                    _say_why(error, attempt, delay if attempt <= self.max_retries else None)
                    raise
                attempt += 1
                retry = Retry(self.name, self.model, attempt, delay, str(error))
            await emit(retry)
            await trio.sleep_until(now + delay)
            request = attrs.evolve(request, attempt=attempt)

    def _delay(self, error: ProviderError, attempt: int) -> float:
        bound = 2.0 * self.backoff * 2.0 ** min(attempt - 1, _DOUBLINGS)
        return max(self.random() * bound, error.retry_after or 0.0)


def _say_why(error: ProviderError, attempts: int, delay: float | None) -> None:
    """Note on an error that might have passed why it was not waited for."""
    if error.retryable and delay is not None:
        error.add_note(f"not tried again: the next wait of {delay:.3g} seconds is longer than there is time for")
    if attempts > 1:
        error.add_note(f"it was tried {attempts} times")


@attrs.frozen
class Fallback:
    """
    Asks the next provider when one has failed.

    Attributes:
        providers: Who is asked, in this order; one at least.
    """

    providers: Sequence[Streaming] = attrs.field(validator=attrs.validators.min_len(1))

    @property
    def name(self) -> str:
        """The name of the provider that is asked first."""
        return provider_name(self.providers[0])

    @property
    def model(self) -> str | None:
        """The model that is asked first, if its provider says."""
        return provider_model(self.providers[0])

    async def complete(self, request: Request) -> Response:
        """Do what `stream` does, and hand over nothing."""
        return await self.stream(request, _ignore)

    async def stream(self, request: Request, emit: EmitRetries) -> Response:
        """
        Ask one after the other until there is an answer. Emits one `Retry`, with no delay, ahead of each but the first.

        Raises:
            ProviderError: That of the provider asked last; its notes say why those before it had failed.
        """
        watch = _Watch(emit)
        failed: list[str] = []
        while True:
            provider, rest = self.providers[len(failed)], self.providers[len(failed) + 1 :]
            try:
                return await provider.stream(request, watch)
            except ProviderError as error:
                too_late = trio.current_time() >= trio.current_effective_deadline()
                if watch.has_content or not rest or too_late or isinstance(error, ContextTooLong):
                    for note in reversed(failed):
                        error.add_note(note)
                    raise
                failed.append(f"before that, {_who(provider)}: {type(error).__name__}: {error}")
                step = Retry(provider_name(rest[0]), provider_model(rest[0]), 1, 0.0, str(error))
            await emit(step)


@attrs.define
class _Watch:
    """Hands events on, and notes whether anything of an answer was among them."""

    emit: EmitRetries
    has_content: bool = False

    async def __call__(self, *events: ProviderEvent | Retry) -> None:
        if not self.has_content:  # noted before the hand-over, which may be cut half-way
            self.has_content = any(isinstance(event, ContentEvent) for event in events)
        await self.emit(*events)


def _who(provider: Streaming) -> str:
    model = provider_model(provider)
    return f"provider {provider_name(provider)}" + (f" ({model})" if model else "")


async def _ignore(*_: ProviderEvent | Retry) -> None:
    """Take events that nobody asked for."""
