"""Sizes of what is sent, and what they are in tokens."""

from __future__ import annotations

import base64
import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import (
    Audio,
    Document,
    Image,
    Message,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from alloy_trio._estimate import Estimator, Size, estimator_for, measure, measure_block, measure_json, measure_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from alloy_trio._messages import Block


def tokens(size: Size) -> int:
    return Estimator().tokens(size)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", 0, id="cmp-20 nothing"),
        pytest.param("abc", 0, id="cmp-20 rounded down"),
        pytest.param("abcd", 1, id="cmp-20 four characters a token"),
        pytest.param("a" * 401, 100, id="cmp-20 long"),
        pytest.param("日本語で", 3, id="cmp-20 bytes, not characters"),
        pytest.param("\ud800", 0, id="cmp-20 half a character"),
    ],
)
def test_text(text: str, expected: int) -> None:
    assert tokens(measure_text(text)) == expected
    assert tokens(measure_block(Text(text))) == expected


LONG = "word " * 100


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(ToolUse("a", "write", {"text": LONG}), id="cmp-20 tool input"),
        pytest.param(ToolUse("a", "write", invalid_input=LONG), id="cmp-20 tool input that is no JSON"),
        pytest.param(ToolUse("a", "n", provider_data={"signature": LONG}), id="cmp-20 sealed call"),
        pytest.param(ToolResult("a", LONG), id="cmp-20 result"),
        pytest.param(ToolResult("a", (Opaque("p", {"x": LONG}),)), id="cmp-20 opaque block in a result"),
        pytest.param(Thinking(LONG), id="cmp-20 thinking"),
        pytest.param(Thinking("", LONG), id="cmp-20 sealed thinking"),
        pytest.param(Thinking("", provider_data={"data": LONG}), id="cmp-20 redacted thinking"),
        pytest.param(ServerToolUse("a", "search", {"q": LONG}), id="cmp-20 server tool"),
        pytest.param(ServerToolResult("a", {"content": LONG}), id="cmp-20 result of a server tool"),
        pytest.param(Opaque("p", {"x": LONG}), id="cmp-20 opaque"),
        pytest.param(Text("", annotations=({"cited_text": LONG},)), id="cmp-20 citations"),
        pytest.param(Document("text/plain", data=LONG.encode()), id="cmp-20 text document"),
        pytest.param(Document("text/plain", "data:text/plain;base64," + "QUJD" * 200), id="cmp-20 text in the address"),
    ],
)
def test_what_is_sent_counts(block: Block) -> None:
    assert 100 <= tokens(measure_block(block)) <= 200
    assert measure(Message("assistant", (block,))).text >= measure_block(block).text


def test_cmp_20_thinking_without_text() -> None:
    assert measure_block(Thinking("")) == Size()
    assert measure(Message.assistant(Thinking(""))) == Size()
    assert not measure(Message("user", ()))


def test_arguments_that_a_provider_repeats_count_once() -> None:
    call = ToolUse("a", "n", {"x": LONG}, provider_data={"arguments": '{"x":"' + LONG + '"}'})
    assert measure_block(call).text < 1.2 * len(LONG)


class _Odd:
    def __repr__(self) -> str:
        return "odd " * 20


_RECURSIVE: dict[str, Any] = {}
_RECURSIVE["self"] = _RECURSIVE


@pytest.mark.parametrize("value", [_Odd(), {"a": _Odd()}, _RECURSIVE, {"\ud800": "\udfff"}, 2**70, {1: 2}, math.nan])
def test_cmp_20_no_crash_on_what_is_no_json(value: object) -> None:
    assert measure_json(value).text > 0
    assert measure_block(ToolUse("a", "n", {"value": value})).text > 0


def test_stale_reasoning_is_left_out() -> None:
    message = Message.assistant(Thinking(LONG, "sig"), Text("hello"))
    assert measure(message, reasoning=False) == measure(Message.assistant("hello"))
    assert measure(message) - measure(message, reasoning=False) == measure_block(message.content[0])
    assert measure(Message.assistant(Thinking(LONG)), reasoning=False) == Size()


def _data(size: int) -> bytes:
    return b"\0" * size


@pytest.mark.parametrize("size", [0, 1, 10_000, 3_000_000])
@pytest.mark.parametrize("kind", [Image, Audio, Video, Document], ids=lambda kind: f"cmp-21 {kind.__name__}")
def test_media_count(kind: type[Image | Audio | Video | Document], size: int) -> None:
    mime_type = "application/pdf" if kind is Document else "some/thing"
    inline = measure_block(kind(mime_type, data=_data(size)))
    assert inline.media > 0
    assert inline.text == 0
    uri = f"data:{mime_type};base64,{base64.b64encode(_data(size)).decode()}"
    assert measure_block(kind(mime_type, uri=uri)).media >= inline.media
    assert measure_block(kind(mime_type, uri="https://example.com/x")).media > 0
    assert measure_block(kind(mime_type)).media > 0


def _png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\6\0\0\0"


def _gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def _jpeg(width: int, height: int) -> bytes:
    """Return the beginning of a picture as a camera writes it: a large preview comes first, which has a size of its own."""
    preview = b"\xff\xe1" + struct.pack(">H", 60_002) + b"\xff\xc0\0\x11\x08\0\1\0\1".ljust(60_000, b"\0")
    tables = b"\xff\xff\xff\xc4\0\4\0\0"
    return b"\xff\xd8" + preview + tables + b"\xff\xc2\0\x11\x08" + struct.pack(">HH", height, width) + b"\3" * 12


def _webp(kind: bytes, chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 1000) + b"WEBP" + kind + struct.pack("<I", 900) + chunk


def _webp_lossy(width: int, height: int) -> bytes:
    return _webp(b"VP8 ", b"\x30\1\0\x9d\1\x2a" + struct.pack("<HH", width | 0x4000, height))


def _webp_lossless(width: int, height: int) -> bytes:
    return _webp(b"VP8L", b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14) + b"\0" * 5)


def _webp_extended(width: int, height: int) -> bytes:
    return _webp(b"VP8X", b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 600, 800), (600, 1000, 800), (32, 32, 258), (1, 1, 258), (1568, 1568, 3000), (9000, 9000, 3000)],
)
@pytest.mark.parametrize("image", [_png, _gif, _jpeg, _webp_lossy, _webp_lossless, _webp_extended])
def test_an_image_counts_by_its_pixels(
    image: Callable[[int, int], bytes], width: int, height: int, expected: int
) -> None:
    data = image(width, height) + b"more"
    assert measure_block(Image("image/png", data)).media == expected
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    assert measure_block(Image("image/png", uri=address)).media == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II*\0" * 100,
        _png(1000, 600)[:12],
        _png(0, 600),
        _jpeg(1000, 600)[:60_003],
        b"\xff\xd8\xff\xd9" + b"\0" * 90,
        b"\xff\xd8\xff\xe0" + b"\0" * 90,
        _webp(b"ALPH", b"\1" * 40),
        "not base64 at all: é",
        "AAA",
    ],
)
def test_an_image_of_unknown_size_is_a_large_one(data: bytes | str) -> None:
    assert measure_block(Image("image/png", data)).media == 3000


@given(st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF1234WEBPVP8L", b"GIF89a"]), st.binary(max_size=200), st.text())
def test_any_data_counts(begin: bytes, data: bytes, words: str) -> None:
    for image in (Image("image/png", begin + data), Image("image/png", words), Image("image/png", uri=f"data:{words}")):
        assert 258 <= measure_block(image).media <= 3000
    for pdf in (Document("application/pdf", data=data), Document("application/pdf", f"data:{words}")):
        assert measure_block(pdf).media >= 3000


def _pdf(pages: int, filling: int = 0) -> bytes:
    objects = b"".join(b"%d 0 obj <</Type /Page /Parent 1 0 R>> endobj\n" % number for number in range(pages))
    return b"%PDF-1.7\n1 0 obj <</Type /Pages /Kids []>> endobj\n" + objects + b"\0" * filling


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        pytest.param(_pdf(40), 40, id="more than its length says"),
        pytest.param(_pdf(40).replace(b"/Type /Page ", b"/Type/Page\n"), 40, id="written otherwise"),
        pytest.param(_pdf(0), 1, id="none, but the list of them"),
        pytest.param(_pdf(2, 600_000), 10, id="fewer than its length says"),
        pytest.param(_pdf(5000), 600, id="more than can be sent"),
    ],
)
def test_pages_that_can_be_counted_are_the_least(data: bytes, pages: int) -> None:
    assert measure_block(Document("application/pdf", data=data)).media == pytest.approx(3000 * pages, rel=0.01)
    address = "data:application/pdf;base64," + base64.b64encode(data).decode()
    assert measure_block(Document("application/pdf", address)).media == pytest.approx(3000 * pages, rel=0.01)


@given(st.integers(0, 10**8))
def test_cmp_21_video_is_no_less_than_sound(size: int) -> None:
    data = "A" * min(size, 10**6)
    assert measure_block(Video("video/mp4", data)).media >= measure_block(Audio("audio/mp3", data)).media
    assert measure_block(Video("video/mp4", uri="x")).media >= measure_block(Audio("audio/mp3", uri="x")).media


def test_long_sound_is_more_than_short_sound() -> None:
    assert (
        measure_block(Audio("audio/wav", _data(10**6))).media
        > 2 * measure_block(Audio("audio/wav", _data(10**5))).media
    )


def test_sizes_add_and_subtract() -> None:
    assert Size(3, 4) + Size(10, 20) - Size(1, 2) == Size(12, 22)
    assert tokens(Size(10, 5)) == 7


@pytest.fixture
def estimator() -> Estimator:
    return Estimator()


def test_it_learns_bytes_per_token(estimator: Estimator) -> None:
    assert (estimator.margin, estimator.calibrated) == (1.5, False)
    estimator.learn(Size(9000, 0), 3000)
    assert estimator.bytes_per_token == 3.0
    assert (estimator.margin, estimator.calibrated) == (1.1, True)
    assert estimator.tokens(Size(9000, 7)) == 3007


def test_it_averages_with_the_newest_ahead(estimator: Estimator) -> None:
    for _ in range(20):
        estimator.learn(Size(8000, 0), 2000)
    estimator.learn(Size(8000, 0), 4000)
    assert 2.0 < estimator.bytes_per_token < 4.0
    for _ in range(20):
        estimator.learn(Size(8000, 0), 4000)
    assert estimator.bytes_per_token == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("true", [1.2, 2.0, 2.6, 4.0, 6.1, 8.0])
def test_it_soon_believes_what_is_reported_again(estimator: Estimator, true: float) -> None:
    """Never calibrated, and with the smaller margin, before it is right."""
    for _ in range(4):
        estimator.learn(Size(90_000, 0), int(90_000 / true))
        assert not estimator.calibrated or estimator.bytes_per_token == pytest.approx(true, rel=0.01)
    assert estimator.calibrated


@pytest.mark.parametrize("wrong", [9000, 1200], ids=["too many tokens", "too few"])
def test_one_wrong_report_does_not_decide(estimator: Estimator, wrong: int) -> None:
    """A search, say, whose results were counted: they are no part of what was sent."""
    estimator.learn(Size(9000, 0), wrong)
    assert 2.5 <= estimator.bytes_per_token <= 6.0
    assert estimator.margin == 1.5
    for _ in range(2):
        estimator.learn(Size(9000, 0), 9000 // 4)
    assert estimator.bytes_per_token == pytest.approx(4.0)
    assert estimator.margin == 1.1
    estimator.learn(Size(9000, 0), wrong)
    assert 3.0 <= estimator.bytes_per_token <= 5.1


def test_media_are_taken_off(estimator: Estimator) -> None:
    estimator.learn(Size(40_000, 1000), 9000)
    assert estimator.bytes_per_token == 5.0


@pytest.mark.parametrize(
    ("size", "prompt_tokens"),
    [
        pytest.param(Size(100_000, 0), 10, id="a script's usage"),
        pytest.param(Size(100_000, 0), 0, id="no report"),
        pytest.param(Size(10_000, 0), 10_001, id="less than a byte a token"),
        pytest.param(Size(10_000, 0), 1249, id="more than 8 bytes a token"),
        pytest.param(Size(7999, 0), 2500, id="too small to tell"),
        pytest.param(Size(10_000, 3000), 5500, id="mostly media"),
        pytest.param(Size(10_000, 3000), 1000, id="less than the media alone"),
    ],
)
def test_reports_that_say_nothing_are_ignored(estimator: Estimator, size: Size, prompt_tokens: int) -> None:
    estimator.learn(size, prompt_tokens)
    assert (estimator.bytes_per_token, estimator.calibrated) == (4.0, False)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**5), st.integers(0, 10**7)), max_size=20))
def test_no_report_makes_it_absurd(reports: list[tuple[int, int, int]]) -> None:
    estimator = Estimator()
    for text, media, prompt in reports:
        estimator.learn(Size(text, media), prompt)
        assert 1 <= estimator.bytes_per_token <= 8


async def test_one_estimator_for_a_model_in_a_trio_run() -> None:
    first = estimator_for("anthropic", "m")
    assert estimator_for("anthropic", "m") is first
    assert estimator_for("anthropic", "n") is not first
    assert estimator_for("openai", "m") is not first
    assert estimator_for("openai", None) is estimator_for("openai", None)


def test_another_trio_run_knows_nothing_of_it() -> None:
    async def learn() -> bool:
        estimator = estimator_for("anthropic", "m")
        known = estimator.calibrated
        estimator.learn(Size(40_000, 0), 10_000)
        return known

    assert [trio.run(learn), trio.run(learn)] == [False, False]


_BLOCKS = st.one_of(
    st.builds(Text, st.text()),
    st.builds(Thinking, st.text(), st.none() | st.text()),
    st.builds(ToolUse, st.text(), st.text(), st.dictionaries(st.text(), st.text() | st.integers())),
    st.builds(ToolResult, st.text(), st.text()),
    st.builds(Opaque, st.text(), st.dictionaries(st.text(), st.text())),
)


@given(st.lists(_BLOCKS))
def test_a_message_is_as_large_as_its_blocks_and_a_frame(blocks: list[Block]) -> None:
    whole = measure(Message("assistant", tuple(blocks)))
    parts = sum(map(measure_block, blocks), Size())
    assert parts.text <= whole.text <= parts.text + 24
    assert whole.media == parts.media
