"""
What a provider is: a value that turns a `Request` into a `Response`.

Anything with an async `complete` is one. With an async `stream` as well, it pushes events into `emit` while it reads, and
returns the same `Response` in the end. It never runs a tool, never loops, never changes what it is given.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import attrs

from .._estimate import Size
from .._events import BlockEnd, ContentEvent, ProviderEvent, TextDelta, ThinkingDelta
from .._messages import Audio, Document, Image, Message, Text, Thinking, ToolUse, Video
from .._usage import Usage
from .._util import JSONObject
from ..tools._tool import Tool

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .._messages import Block


class StopReason(enum.StrEnum):
    """
    Why a model stopped, in one vocabulary for all providers.

    A word that a provider invents becomes `END_TURN`, or `TOOL_USE` where there are calls, and stands as it came in
    `Response.metadata["raw_stop_reason"]`.
    """

    END_TURN = "end_turn"
    TOOL_USE = "tool_use"
    MAX_TOKENS = "max_tokens"
    REFUSAL = "refusal"
    PAUSE_TURN = "pause_turn"


@attrs.frozen(kw_only=True)
class Request:
    """
    What is asked of a model.

    Attributes:
        messages: The conversation.
        tools: The tools it may ask for.
        system_prompt: Instructions ahead of the conversation.
        max_output_tokens: The cap on its answer, reasoning included; None leaves it to the provider.
        tool_choice: `auto`, `any`, `none`, or the name of the tool it must call; None leaves it to the provider.
        output_schema: The JSON Schema that the answer's text has to fit, an object; only for a provider whose
            `native_output` is true. None: any text.
        provider_state: What an earlier conversation, of which no message is here, left with the provider; None: nothing.
        attempt: Which attempt at this request it is, from 1: what went before failed and is retried.
        extra: For a provider of your own; ours ignore it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    system_prompt: str | None = None
    max_output_tokens: int | None = None
    tool_choice: str | None = None
    output_schema: JSONObject | None = None
    provider_state: Mapping[str, Any] | None = None
    attempt: int = 1
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    _alone: bool = attrs.field(default=False, repr=False, eq=False)  # beside a conversation: it continues none
    # What of a conversation was serialized before, by whom, and as of which messages: see `_transcript`.
    _transcripts: tuple[tuple[Message, ...], dict[Any, Any]] | None = attrs.field(default=None, repr=False, eq=False)
    # Of the whole conversation, where it is known without a look.
    _size: Size | None = attrs.field(default=None, repr=False, eq=False)


_STOP_REASONS = frozenset(StopReason)


def _stop_reason(word: str) -> Any:
    """Take a plain string for the member it equals; what is none is refused by whoever reads it."""
    return word if type(word) is StopReason or word not in _STOP_REASONS else StopReason(word)


@attrs.frozen(kw_only=True)
class Response:
    """
    What a model answered.

    Attributes:
        message: The answer, with provider, model, origin and `provider_state`.
        stop_reason: Why it stopped.
        usage: The tokens, as the provider reported them; zeros where it did not.
        metadata: What else is known: `raw_stop_reason`, `refusal`, `provider_response` (citations). JSON data.
    """

    message: Message
    stop_reason: StopReason = attrs.field(default=StopReason.END_TURN, converter=_stop_reason)
    usage: Usage = attrs.field(factory=Usage)
    metadata: JSONObject = attrs.field(factory=dict)


class Emit(Protocol):
    """
    Takes the events of one read, in order, and returns when they have been taken.

    Call it once with all that a read from the socket brought: the reader waits meanwhile, which is the backpressure.
    """

    def __call__(self, *events: ProviderEvent) -> Awaitable[None]:
        """Hand over `events`."""
        ...


@runtime_checkable
class Provider(Protocol):
    """
    The least that a provider is.

    It may have more: `name` and `model` (strings, for events, messages and the catalog), `price` (a `Price`),
    `native_output` (whether it heeds `Request.output_schema`), with `takes_schema(schema)` if it does not heed every schema, and `async def stream(request, emit)`, with the same
    contract as `complete` and `emit` an `Emit`. Without `stream`, a streaming run calls `complete` and hands over the
    answer in one piece.
    """

    async def complete(self, request: Request) -> Response:
        """
        Ask the model, and return its whole answer.

        Raises:
            ProviderError: The remote end failed or refused.
        """
        ...


def provider_name(provider: Provider) -> str:
    """Return the provider's name, or its class's in lower case if it has none."""
    return str(getattr(provider, "name", type(provider).__name__.lower()))


def provider_model(provider: Provider) -> str | None:
    """Return the model that the provider asks, if it says."""
    model = getattr(provider, "model", None)
    return None if model is None else str(model)


def takes_schema(provider: Provider, schema: JSONObject) -> bool:
    """Whether the provider says that it holds a model to this schema."""
    return getattr(provider, "native_output", False) is True and getattr(provider, "takes_schema", _any)(schema) is True


def _any(_: JSONObject) -> bool:
    return True


@attrs.frozen(kw_only=True)
class Terms:
    """
    What holds between us and a provider, besides the price. The defaults are those of one that says nothing.

    Attributes:
        enforces_cap: Whether it stops generating at `max_output_tokens` by itself.
        runs_on: Whether it goes on generating, and billing, when we have hung up.
        caches: Whether a prompt may be billed as written into a cache.
        thinking_budget: Tokens that it was told to think with, which an answer needs besides the useful ones.
        seals_prefix: Whether it refuses, or drops, reasoning behind other instructions or tools than those it was sealed with.
        server_tools: Whether it may run tools of its own, for a fee each.
    """

    enforces_cap: bool = False
    runs_on: bool = False
    caches: bool = False
    thinking_budget: int = 0
    seals_prefix: bool = False
    server_tools: bool = False


def terms_of(provider: object) -> Terms:
    """Return a provider's terms: what its `terms` says, if it has one."""
    terms = getattr(provider, "terms", None)
    return terms if isinstance(terms, Terms) else Terms()


def as_events(blocks: tuple[Block, ...]) -> list[ContentEvent]:
    """Return the events of an answer that came in one piece."""
    events: list[ContentEvent] = []
    for block in blocks:
        match block:
            case Text(text=text) if text:
                events.append(TextDelta(text))
            case Thinking(text=text) if text:
                events.append(ThinkingDelta(text))
        events.append(BlockEnd(block))
    return events


def sent_arguments(call: ToolUse) -> JSONObject:
    """Return the arguments of a call as they go back; what could not be read stands under one key, as Anthropic advises."""
    return call.input if call.invalid_input is None else {"INVALID_JSON": call.invalid_input}


def unsupported(block: Image | Audio | Video | Document) -> str:
    """Return the text that stands for media which an API cannot take: the model is told that something was there."""
    return f"Unsupported {type(block).__name__.lower()} ({block.mime_type})"


WireEvents: TypeAlias = list[ProviderEvent]


def _parts(body: bytes | tuple[bytes | bytearray, ...]) -> tuple[bytes | bytearray, ...]:
    return (body,) if isinstance(body, bytes) else body


@attrs.frozen
class Call:
    """
    One HTTP request of a wire, ready to be sent: a POST.

    Attributes:
        path: Appended to the provider's base URL; begins with a slash.
        headers: Without those that HTTP itself needs. Never shown in a repr: they carry the key.
        parts: The body, JSON, in parts; given in one piece, it is one. They hold until the next request of the conversation
            is made.
    """

    path: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    parts: tuple[bytes | bytearray, ...] = attrs.field(repr=False, converter=_parts)

    @property
    def body(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.parts)
