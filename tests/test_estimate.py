"""Sizes of what is sent, and what they are in tokens."""

from __future__ import annotations

import base64
import math
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
    estimator.learn(Size(3000, 0), 1000)
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


def test_media_are_taken_off(estimator: Estimator) -> None:
    estimator.learn(Size(40_000, 1000), 9000)
    assert estimator.bytes_per_token == 5.0


@pytest.mark.parametrize(
    ("size", "prompt_tokens"),
    [
        pytest.param(Size(100_000, 0), 10, id="a script's usage"),
        pytest.param(Size(100_000, 0), 0, id="no report"),
        pytest.param(Size(1000, 0), 2001, id="less than half a byte a token"),
        pytest.param(Size(12_001, 0), 1000, id="more than 12 bytes a token"),
        pytest.param(Size(500, 0), 125, id="too small to tell"),
        pytest.param(Size(4000, 3000), 4000, id="mostly media"),
        pytest.param(Size(4000, 3000), 1000, id="less than the media alone"),
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
        assert 0.5 <= estimator.bytes_per_token <= 12


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
        estimator.learn(Size(4000, 0), 1000)
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
