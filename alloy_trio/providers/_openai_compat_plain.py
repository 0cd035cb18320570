"""
What most servers of the Chat Completions API answer, read straight into types: text and calls, and nothing that is not in here.

Everything else (reasoning, media, citations, an error, a field that nobody has seen before) does not fit these types, and is left to
`_openai_compat_reply`, which reads all of it. So this only has to be right about what it takes, not complete. A field that is
listed with the type None may be there, and empty.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

_Nothing: TypeAlias = Annotated[list[Any], msgspec.Meta(max_length=0)] | None


class PlainFunction(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What a call is for."""

    name: str
    arguments: str


class PlainCall(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A call of a whole answer."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    function: PlainFunction
    type: Literal["function"] = "function"
    index: int | None = None


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    tool_calls: list[PlainCall] | None = None
    refusal: None = None
    annotations: _Nothing = None
    audio: None = None
    function_call: None = None
    reasoning: None = None
    reasoning_content: None = None


class _Choice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    message: _Message
    finish_reason: str
    index: Literal[0] = 0
    logprobs: None = None


class _Group(msgspec.Struct, gc=False):
    usage: None = None


class PlainAnswer(msgspec.Struct, gc=False):
    """A whole answer."""

    id: str
    model: str
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]
    usage: dict[str, Any] | None = None
    error: None = None
    object: Literal["chat.completion"] = "chat.completion"
    x_groq: _Group | None = None
    citations: _Nothing = None
    search_results: _Nothing = None


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    role: str | None = None
    refusal: None = None
    tool_calls: _Nothing = None
    function_call: None = None
    reasoning: None = None
    reasoning_content: None = None


class _DeltaChoice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    delta: _Delta
    index: Literal[0] = 0
    finish_reason: None = None
    logprobs: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: Annotated[list[_DeltaChoice], msgspec.Meta(min_length=1, max_length=1)]
    usage: None = None
    error: None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    x_groq: None = None
    citations: _Nothing = None
    search_results: _Nothing = None


_answer = msgspec.json.Decoder(PlainAnswer)
_chunk = msgspec.json.Decoder(_Chunk)


def plain_answer(body: bytes) -> PlainAnswer | None:
    """Return an answer of text and calls; None for any other."""
    try:
        return _answer.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def plain_text(data: bytes) -> str | None:
    """Return the text of a chunk that has nothing else; None for any other."""
    try:
        return _chunk.decode(data).choices[0].delta.content
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
