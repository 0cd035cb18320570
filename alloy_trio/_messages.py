"""
What is said in a conversation: messages made of blocks.

A message is frozen and its content is always a tuple of blocks. Blocks mean the same for every provider; what only one
provider understands is kept beside them as `provider_data`, goes back to that provider verbatim and to no other.
A block of a kind that nobody here knows is kept whole as `Opaque`.
"""

# No `from __future__ import annotations` here: the codec needs these hints as objects, since the classes are given the public
# module's name, where a hint kept as text would not be found.

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, TypeAlias, get_args

import attrs

from ._errors import InvalidOption
from ._util import JSONObject

Role: TypeAlias = Literal["user", "assistant"]

Outcome: TypeAlias = Literal["ok", "error", "timed_out", "cancelled", "blocked", "abandoned"]
"""How a tool call ended. `abandoned`: its thread did not end within `cancel_grace` and was left behind."""


def _annotations(annotations: Iterable[JSONObject]) -> tuple[JSONObject, ...]:
    return tuple(annotations)


def _base64(data: bytes | str | None) -> str | None:
    return base64.b64encode(data).decode() if isinstance(data, bytes | bytearray | memoryview) else data


@attrs.frozen(weakref_slot=False)  # there are millions of them
class Text:
    """
    Plain text.

    Attributes:
        text: The text.
        annotations: Citations and the like, as the provider gave them: they belong to this text and stay with it.
        provider_data: What the provider attached to the block and wants back (an item id, a phase, a signature).
    """

    text: str
    annotations: tuple[JSONObject, ...] = attrs.field(default=(), converter=_annotations)
    provider_data: JSONObject | None = None


@attrs.frozen(weakref_slot=False)
class Thinking:
    """
    The model's reasoning, as far as the provider shows it.

    Attributes:
        text: Reasoning, or a summary of it; empty where it is hidden.
        signature: The provider's seal over it, without which it is not accepted back.
        provider_data: The provider's own item where text and signature are not all of it: redacted reasoning, an
            encrypted reasoning item, the name of the field it came in.
    """

    text: str
    signature: str | None = None
    provider_data: JSONObject | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is plain text in a field of its own (Chat Completions): nothing seals it, so a part of it is valid."""
        return self.signature is None and (self.provider_data or {}).keys() == {"field"}


@attrs.frozen(weakref_slot=False)
class ToolUse:
    """
    The model asks for a tool that we run.

    Attributes:
        id: The call's id; its result names it.
        name: The tool's name.
        input: The arguments. Empty where they could not be read, and `invalid_input` has what came instead.
        invalid_input: The raw arguments if they were no JSON object (cut, malformed, a list): the call is then
            answered with an error result and never run.
        provider_data: What the provider attached to the call and wants back.
    """

    id: str
    name: str
    input: JSONObject = attrs.field(factory=dict)
    invalid_input: str | None = None
    provider_data: JSONObject | None = None


@attrs.frozen(weakref_slot=False)
class ServerToolUse:
    """
    The model used a tool that the provider runs itself. Kept, sent back, never answered by us.

    Attributes:
        id: The call's id.
        name: The provider's name for the tool.
        input: What it was asked for.
        provider_data: The rest of the provider's block, sent back verbatim.
    """

    id: str
    name: str
    input: JSONObject = attrs.field(factory=dict)
    provider_data: JSONObject | None = None


@attrs.frozen(weakref_slot=False)
class ServerToolResult:
    """
    What a provider-run tool gave.

    Attributes:
        tool_use_id: The id of its `ServerToolUse`.
        payload: The provider's own block, verbatim.
    """

    tool_use_id: str
    payload: JSONObject


@attrs.frozen(weakref_slot=False)
class Image:
    """
    An image, inline or by address.

    Attributes:
        mime_type: For instance `image/png`.
        data: The bytes as base64 text; given as bytes they are encoded for you.
        uri: Where the provider can fetch it, instead of `data`.
    """

    mime_type: str
    data: str | None = attrs.field(default=None, converter=_base64, repr=False)
    uri: str | None = None


@attrs.frozen(weakref_slot=False)
class Audio:
    """
    Sound, inline or by address.

    Attributes:
        mime_type: For instance `audio/wav`.
        data: The bytes as base64 text; given as bytes they are encoded for you.
        uri: Where the provider can fetch it, instead of `data`.
    """

    mime_type: str
    data: str | None = attrs.field(default=None, converter=_base64, repr=False)
    uri: str | None = None


@attrs.frozen(weakref_slot=False)
class Video:
    """
    Moving pictures, inline or by address.

    Attributes:
        mime_type: For instance `video/mp4`.
        data: The bytes as base64 text; given as bytes they are encoded for you.
        uri: Where the provider can fetch it, instead of `data`.
    """

    mime_type: str
    data: str | None = attrs.field(default=None, converter=_base64, repr=False)
    uri: str | None = None


@attrs.frozen(weakref_slot=False)
class Document:
    """
    A document, inline or by address.

    Attributes:
        mime_type: For instance `application/pdf` or `text/plain`.
        uri: Where the provider can fetch it.
        data: The bytes as base64 text, instead of `uri`; given as bytes they are encoded for you.
        name: A file name or title, where the provider takes one.
    """

    mime_type: str
    uri: str | None = None
    data: str | None = attrs.field(default=None, converter=_base64, repr=False, kw_only=True)
    name: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen(weakref_slot=False)
class Opaque:
    """
    A block of a kind we do not know, or only the provider understands.

    Attributes:
        provider: Which provider's it is; it is sent back to no other.
        payload: The block, verbatim.
    """

    provider: str
    payload: JSONObject


ResultBlock: TypeAlias = Text | Image | Audio | Video | Document | Opaque
"""What the result of a tool call may hold."""


def _blocks(content: Any) -> Any:
    if isinstance(content, str):
        return (Text(content),)
    if type(content) is tuple and _EXACT_BLOCKS.issuperset(map(type, content)):
        return content
    if isinstance(content, BLOCK_TYPES):
        return (content,)
    blocks = tuple(Text(block) if isinstance(block, str) else block for block in content)
    for block in blocks:
        if not isinstance(block, BLOCK_TYPES):
            raise InvalidOption(
                f"{block!r:.100} is no block: content is made of text, Text(…), Image(…), ToolResult(…), …"
            )
    return blocks


def _role(_: object, __: object, role: object) -> None:
    if role not in get_args(Role):
        advice = "; instructions are no message: system_prompt=…" if role == "system" else ""
        raise InvalidOption(f"{role!r} is no role of a message: it is user or assistant{advice}")


@attrs.frozen(weakref_slot=False)
class ToolResult:
    """
    The answer to one `ToolUse`.

    Attributes:
        tool_use_id: The call's id.
        content: Blocks of text and media; a plain string becomes one `Text`.
        is_error: Whether the model is told that the call failed.
        outcome: How the call ended; finer than `is_error`, for the program.
    """

    tool_use_id: str
    content: tuple[ResultBlock, ...] = attrs.field(converter=_blocks)
    is_error: bool = False
    outcome: Outcome = "ok"

    @property
    def text(self) -> str:
        """The text of the content, media left out."""
        return "".join(block.text for block in self.content if isinstance(block, Text))


Block: TypeAlias = (
    Text
    | Thinking
    | ToolUse
    | ToolResult
    | ServerToolUse
    | ServerToolResult
    | Image
    | Audio
    | Video
    | Document
    | Opaque
)

BLOCK_TYPES: tuple[type[Block], ...] = get_args(Block)
_EXACT_BLOCKS = frozenset(BLOCK_TYPES)


@attrs.frozen(weakref_slot=False)
class Message:
    """
    One turn of one side.

    Attributes:
        role: `user` (tool results are the user's) or `assistant`.
        content: The blocks; a plain string becomes one `Text`.
        provider: Name of the provider that wrote it; None for what a person or a program wrote.
        model: The model that wrote it.
        origin: A fingerprint of provider, endpoint and account, never the key itself: reasoning is only sent back to
            where it came from.
        provider_state: What the provider keeps for the conversation as of this message (a response or container id).
        interrupted: Whether the message was cut while it streamed: by a cancel, a deadline or a budget.
        epoch: How often what stands before it in the conversation had been changed (compacted, edited) when it was said.
            Reasoning is sealed over what precedes it, so that of an earlier epoch than the conversation's highest is not
            sent back. Counted by whoever changes the conversation; 0 as long as it has only grown.

    Raises:
        InvalidOption: The role is none of the two, or something in the content is no block.
    """

    role: Role = attrs.field(validator=_role)
    content: tuple[Block, ...] = attrs.field(converter=_blocks)
    provider: str | None = attrs.field(default=None, kw_only=True)
    model: str | None = attrs.field(default=None, kw_only=True)
    origin: str | None = attrs.field(default=None, kw_only=True)
    provider_state: Mapping[str, Any] | None = attrs.field(default=None, kw_only=True)
    interrupted: bool = attrs.field(default=False, kw_only=True)
    epoch: int = attrs.field(default=0, kw_only=True)

    @classmethod
    def user(cls, *content: str | Block) -> Self:
        """Make a user's message of text and blocks."""
        return cls("user", content)

    @classmethod
    def assistant(cls, *content: str | Block) -> Self:
        """Make an assistant's message by hand; it has no provider, model or origin."""
        return cls("assistant", content)

    @property
    def text(self) -> str:
        """The text blocks, joined with nothing between them; `""` if there are none."""
        return "".join(block.text for block in self.content if isinstance(block, Text))

    @property
    def thinking(self) -> str | None:
        """The reasoning blocks, joined by newlines; None if there are none."""
        blocks = [block.text for block in self.content if isinstance(block, Thinking)]
        return "\n".join(blocks) if blocks else None

    @property
    def tool_uses(self) -> tuple[ToolUse, ...]:
        """The calls that we are to run; calls that the provider ran itself are not among them."""
        return tuple(block for block in self.content if isinstance(block, ToolUse))

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The answers to calls, in their order."""
        return tuple(block for block in self.content if isinstance(block, ToolResult))
