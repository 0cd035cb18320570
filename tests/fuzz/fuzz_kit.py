"""What the targets have in common. A target is a module with `check(data)`, which raises what should not be, and `SEEDS`."""

from __future__ import annotations

import random
import re
import zlib
from typing import TYPE_CHECKING, Any

import attrs

from alloy_trio import Message, ProviderError, Session, ToolResult
from alloy_trio.events import BlockEnd, TextDelta, ThinkingDelta
from alloy_trio.providers import Request

if TYPE_CHECKING:
    from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Response

    Wire = Anthropic | OpenAI | OpenAICompat

NAMES = ("sse", "http1", "anthropic", "openai", "compat", "session", "jsonl", "markdown")
HI = Message.user("Hi")
_ID = re.compile(r"\bid='([^']*)'")


def cut(data: bytes) -> list[bytes]:
    """Cut some bytes into pieces: where, follows from the bytes, so that a file alone says all of a failure."""
    chance = random.Random(zlib.crc32(data))
    most = chance.choice((1, 2, 7, 40, 400))
    pieces, place = [], 0
    while place < len(data):
        size = chance.randint(1, most)
        pieces.append(data[place : place + size])
        place += size
    return pieces


def check_wire(provider: Wire, data: bytes) -> None:
    """Whatever bytes come, whole or streamed, it is an answer or one of our errors, and what was answered can be sent back."""
    try:
        response = provider.decode(data)
    except ProviderError:
        pass
    else:
        check_response(provider, response)
    whole, pieces = with_own_ids(read(provider, [data]), data), with_own_ids(read(provider, cut(data)), data)
    assert whole == pieces, f"at once: {whole}; in pieces: {pieces}"


def with_own_ids(read: object, data: bytes) -> str:
    """Return what was read as text, with numbers for the ids that we have made."""
    text = repr(read)
    made = [each for each in dict.fromkeys(_ID.findall(text)) if each.encode() not in data]
    for number, each in enumerate(made):
        text = text.replace(each, f"#{number}")
    return text


def read(provider: Wire, pieces: list[bytes]) -> tuple[list[Any], Any]:
    """Return the events of a stream and its answer, or else why there is none."""
    decoder, events = provider.decoder(), list[Any]()
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.close()
        response = decoder.finish()
    except ProviderError as error:
        return events, (type(error), str(error))
    check_response(provider, response)
    ends = [event.block for event in events if isinstance(event, BlockEnd)]
    assert ends == list(response.message.content), f"the blocks {ends} became {response.message.content}"
    assert all(event.text for event in events if isinstance(event, TextDelta | ThinkingDelta)), "an empty delta"
    return events, response


def check_response(provider: Wire, response: Response) -> None:
    """What was answered can be kept, and sent back, to any of the wires."""
    session = Session(messages=[HI, response.message], metadata=response.metadata)
    again = Session.from_json(session.to_json())
    assert again.messages == session.messages
    assert again.metadata == session.metadata
    results = [ToolResult(call.id, "1") for call in response.message.tool_uses]
    answer = Message.user(*results) if results else HI
    for origin in (response.message.origin, "elsewhere"):
        message = attrs.evolve(response.message, origin=origin)
        provider.encode(Request(messages=(HI, message, answer)), stream=True)
