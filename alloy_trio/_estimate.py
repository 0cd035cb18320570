"""
How many tokens something is, before a provider has counted them.

A `Size` is what can be measured exactly and never changes: bytes of text, and for media the tokens of a table. An `Estimator`
turns sizes into tokens. It starts at four bytes a token and learns from each prompt whose tokens the provider reports, so that
code, Chinese or a new tokenizer are counted right after the first answer. Text is linear in its bytes, so sizes add up, and the
size of a conversation is kept by adding that of each message as it comes.

What the media table is made of (the vendors' figures of 2026): a 4K screenshot is 3,069 tokens for Claude 5.5; a page of a PDF is
sent as text and as an image, about 3,000; Gemini counts 32 tokens a second of sound and 263 of video. Of a smaller image, whose
first bytes say its size, Claude counts a token for 750 pixels, and no vendor fewer than Gemini's 258 for an icon (OpenAI: 255).
Seconds are guessed from the length of the data, and pages too, unless more of them can be counted.
"""

from __future__ import annotations

import binascii
import re
import struct
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import attrs
import msgspec
import trio

from ._messages import (
    Audio,
    Document,
    Image,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)

if TYPE_CHECKING:
    from ._messages import Block, Message

_FRAME = 24  # bytes: about six tokens that mark where a message begins and ends
_CALL_FRAME = 64  # bytes: the markup of a call or of a result
_BYTES_PER_TOKEN = 4.0
_PLAUSIBLE = (
    1.0,
    8.0,
)  # bytes a token; what implies other values was not counted by a tokenizer, or not for this prompt
_LEAST_PROMPT = 8000  # bytes; below, what the provider adds of its own (a preamble, markers) weighs too much
_NEAR = 1.5  # times as much, or as little: a report that confirms what is believed
_DOUBTED = 0.5  # the weight of a report that confirms nothing, as long as none has
_NEWEST = 0.3  # the weight of the newest report in the average, later

_IMAGE = 3000
_LEAST_IMAGE = 258
_PIXELS_PER_TOKEN = 750
_JPEG_HEADER = 256 * 1024  # bytes: a preview and a colour profile may stand before the size
_PAGE = 3000
_MOST_PAGES = 100  # guessed
_MOST_COUNTED_PAGES = 600  # what Claude takes in one request
_COUNTED = 6 * 1024 * 1024  # bytes of a document in which pages are counted: that is about 20 ms
_PAGE_OBJECT = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_JPEG_MARK = 0xFF
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

Media: TypeAlias = Image | Audio | Video | Document


@attrs.frozen
class Size:
    """
    How large something is; what it is in tokens depends on the model.

    Attributes:
        text: Bytes of text, as UTF-8.
        media: Tokens of images, sound, video and documents, by a table.
    """

    text: int = 0
    media: int = 0

    def __add__(self, other: Self) -> Size:
        return Size(self.text + other.text, self.media + other.media)

    def __sub__(self, other: Self) -> Size:
        return Size(self.text - other.text, self.media - other.media)

    def __bool__(self) -> bool:
        return self.text > 0 or self.media > 0


_NOTHING = Size()


@attrs.frozen
class _Rate:
    """What data of a kind costs: a token for so many bytes, within limits, and a fixed guess for what lies elsewhere."""

    bytes_per_token: int
    least: int
    most: int
    elsewhere: int

    def tokens(self, data: str | None) -> int:
        if data is None:
            return self.elsewhere
        return min(max(_decoded(data) // self.bytes_per_token, self.least), self.most)


_RATES: dict[type[Media], _Rate] = {
    Image: _Rate(1, _IMAGE, _IMAGE, _IMAGE),
    Audio: _Rate(500, 32, 500_000, 60 * 32),  # 128 kbit a second
    Video: _Rate(400, 263, 1_000_000, 60 * 263),  # 840 kbit a second; never less than sound of the same length
    Document: _Rate(20, _PAGE, _MOST_PAGES * _PAGE, 10 * _PAGE),  # 60 kB a page
}


def measure_text(text: str) -> Size:
    """Return the size of plain text."""
    return Size(text_bytes(text))


def measure_json(value: Any) -> Size:
    """Return the size of JSON data, such as a tool's schema. `value` is any; what is no JSON is measured by its `repr`."""
    return Size(_json(value))


def measure(message: Message, *, reasoning: bool = True) -> Size:
    """
    Return the size of a message; one of which nothing is sent has none.

    `reasoning=False` leaves its reasoning out: that of an earlier epoch is not sent.
    """
    text = media = 0
    for block in message.content:
        if reasoning or not isinstance(block, Thinking):
            of_block = _measured(block)
            text += of_block[0]
            media += of_block[1]
    return Size(text + _FRAME, media) if text or media else _NOTHING


def measure_block(block: Block) -> Size:
    """Return the size of a block, as far as it is sent: text, arguments, results, what a provider wants back, media."""
    return Size(*_measured(block))


def _measured(block: Block) -> tuple[int, int]:
    """Return bytes of text and tokens of media: every block of every answer is measured."""
    match block:
        case Text():
            return _text(block), 0
        case ToolUse() | ServerToolUse():
            return _call(block), 0
        case ToolResult(tool_use_id=call, content=content):
            text, media = _CALL_FRAME + text_bytes(call), 0
            for part in content:
                of_part = _measured(part)
                text, media = text + of_part[0], media + of_part[1]
            return text, media
        case Thinking():
            return _reasoning(block), 0
        case ServerToolResult(payload=payload) | Opaque(payload=payload):
            return _json(payload), 0
        case Image() | Audio() | Video() | Document():
            return _media(block)


def _text(block: Text) -> int:
    size = text_bytes(block.text)
    if block.annotations or block.provider_data:
        size += sum(map(_json, block.annotations)) + _optional(block.provider_data)
    return size


def _call(call: ToolUse | ServerToolUse) -> int:
    """Measure a call. What the provider attached counts where it is the longer part: it may repeat the arguments."""
    invalid = call.invalid_input if isinstance(call, ToolUse) else None
    arguments = _json(call.input) if invalid is None else text_bytes(invalid)
    return _CALL_FRAME + text_bytes(call.id) + text_bytes(call.name) + max(arguments, _optional(call.provider_data))


def _reasoning(block: Thinking) -> int:
    """Measure the text or the seal, whichever is longer: the seal holds the whole text, encrypted, and is read instead."""
    seal = 0 if block.signature is None else text_bytes(block.signature)
    return max(text_bytes(block.text), seal, _optional(block.provider_data))


def _media(block: Media) -> tuple[int, int]:
    data = block.data
    if data is None and (block.uri or "").startswith("data:"):
        data = block.uri
    kind = block.mime_type.lower()
    if (
        isinstance(block, Document)
        and data is not None
        and (kind.startswith("text/") or kind.endswith(("json", "xml")))
    ):
        return _FRAME + _decoded(data), 0
    tokens = _RATES[type(block)].tokens(data)
    if isinstance(block, Image) and data is not None and (pixels := _pixels(data)):
        tokens = max(_LEAST_IMAGE, min(pixels // _PIXELS_PER_TOKEN, _IMAGE))
    elif isinstance(block, Document) and data is not None:
        pages = len(_PAGE_OBJECT.findall(_decode(data, _COUNTED)))  # none where they are compressed
        tokens = max(tokens, _PAGE * min(pages, _MOST_COUNTED_PAGES))
    return 0, tokens


def _decode(data: str, most: int) -> bytes:
    """Return the first bytes of base64 data, or of such a `data:` address; nothing if it is none."""
    start = data.find(",") + 1 if data.startswith("data:") else 0
    try:
        return binascii.a2b_base64(data[start : start + -(-most // 3) * 4])
    except ValueError:
        return b""


def _pixels(data: str) -> int:
    """Return how many pixels an image has, or 0 if that is not in its first bytes."""
    head = _decode(data, 32).ljust(32, b"\0")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", head[16:24])
    elif head.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack("<HH", head[6:10])
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        width, height = _webp_size(head)
    elif head.startswith(b"\xff\xd8\xff"):
        width, height = _jpeg_size(_decode(data, _JPEG_HEADER))
    else:
        return 0
    return int(width * height)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Read the size in the first chunk, of which there are three kinds (RFC 9649, sections 2.5 to 2.7)."""
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack("<HH", head[26:30])
            return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Read the size in the frame header, which is behind any number of other segments (ITU T.81, annex B)."""
    place = 2
    while place + 9 <= len(data) and data[place] == _JPEG_MARK:
        marker = data[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return width, height
        # The mark may be repeated, as filling; what has no length does not come before the frame.
        place += 1 if marker == _JPEG_MARK else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0, 0


def _decoded(base64: str) -> int:
    return len(base64) * 3 // 4


def text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _optional(data: Any) -> int:
    return _json(data) if data else 0


def _json(value: Any) -> int:
    try:
        return len(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return text_bytes(repr(value))


class Estimator:
    """
    Turns sizes into tokens for one model, and learns from what its provider reports.

    Attributes:
        bytes_per_token: What it has learned; 4.0 before.
        calibrated: Whether a report has confirmed it.
    """

    def __init__(self) -> None:
        self.bytes_per_token = _BYTES_PER_TOKEN
        self.calibrated = False

    @property
    def margin(self) -> float:
        """By what to multiply an estimate that must not be too low: 1.5, or 1.1 once it is calibrated."""
        return 1.1 if self.calibrated else 1.5

    def tokens(self, size: Size) -> int:
        """Return about how many tokens it is, rounded down."""
        return int(size.text / self.bytes_per_token) + size.media

    def learn(self, size: Size, prompt_tokens: int) -> None:
        """
        Take what the provider counted for a prompt of that size, cached tokens included.

        Ignored are small prompts, those that media make up much of, and counts that no tokenizer gives: a server that
        counts otherwise, or a script. The first report is believed if it is near what was expected. Of one that is far off
        only half is taken, and the next one has to confirm it: all runs with the model depend on it.
        """
        if size.text < _LEAST_PROMPT or prompt_tokens <= 4 * size.media:
            return
        ratio = size.text / (prompt_tokens - size.media)
        if not _PLAUSIBLE[0] <= ratio <= _PLAUSIBLE[1]:
            return
        is_near = max(ratio, self.bytes_per_token) <= _NEAR * min(ratio, self.bytes_per_token)
        weight = _NEWEST if self.calibrated else 1.0 if is_near else _DOUBTED
        self.bytes_per_token += weight * (ratio - self.bytes_per_token)
        self.calibrated = self.calibrated or is_near


_estimators: trio.lowlevel.RunVar[dict[tuple[str, str | None], Estimator]] = trio.lowlevel.RunVar(
    "alloy_trio.estimators"
)


def estimator_for(provider: str, model: str | None) -> Estimator:
    """Return the estimator of a provider's model: the same one for all runs inside one `trio.run`."""
    try:
        known = _estimators.get()
    except LookupError:
        known = {}
        _estimators.set(known)
    return known.setdefault((provider, model), Estimator())
