"""JSON from vendors and models: whatever comes, nothing crashes and nothing is invented."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import WireError
from alloy_trio.providers._json import (
    as_dict,
    as_dicts,
    as_int,
    as_list,
    as_str,
    decode,
    encode,
    parse_arguments,
)

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (3.0, 3),
        ("12", 12),
        (0, 0),
        (True, 0),
        (None, 0),
        (-5, 0),
        (-5.0, 0),
        (2.5, 0),
        (float("nan"), 0),
        (float("inf"), 0),
        ("x", 0),
        ("-3", 0),
        ("", 0),
        ("\u0663", 0),
        ("9" * 5000, 0),
        ([], 0),
        ({}, 0),
    ],
)
def test_as_int(value: Any, number: int) -> None:
    result = as_int(value)
    assert (result, type(result)) == (number, int)


@given(ANYTHING)
def test_accessors_return_the_type_that_was_asked_for(value: Any) -> None:
    assert as_dict(value) == (value if isinstance(value, dict) else {})
    assert as_list(value) == (value if isinstance(value, list) else [])
    assert as_dicts(value) == [member for member in as_list(value) if type(member) is dict]
    assert as_str(value) == (value if isinstance(value, str) else "")
    assert as_int(value) >= 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            b"<!DOCTYPE html><html><title>Login</title></html>",
            "looks like a web page, not an API: check base_url",
        ),
        (b"", "empty.*check base_url"),
        (b" \n\t", "empty"),
        (b"upstream fell over", "no JSON.*'upstream fell over'.*check that base_url"),
        (b"\xff\xfe\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"a": 1e999}', "no JSON"),
    ],
)
def test_decode_says_what_came_instead(body: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says) as caught:
        decode(body)
    assert not caught.value.retryable


@pytest.mark.parametrize("body", [b'{"a": ', b'{"a": [{"b": "c', b' {"a": 1, "b": "\\ud8'])
def test_decode_of_what_somebody_cut_short_may_be_tried_again(body: bytes) -> None:
    """As a stream that ends before its answer may: the API was there, and had begun."""
    with pytest.raises(WireError, match="truncated") as caught:
        decode(body)
    assert caught.value.retryable


@pytest.mark.parametrize("body", [b"x" * 10_000, b"<html>" + b"x" * 10_000, "\u00e9".encode() * 10_000])
def test_decode_shows_at_most_an_excerpt(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        decode(body)
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, null, "x"]}', {"a": [1, None, "x"]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'"caf\xe9!"', "caf\ufffd!"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ude80 end"', "\ufffd end"),
        (rb'"\ud83d\ud83d\ude80"', "\ufffd\U0001f680"),
        (rb'"\\ud83d \ud83d"', "\\ud83d \ufffd"),
        (b'"\xe9' + rb'\ud83d"', "\ufffd\ufffd"),
    ],
    ids=[
        "plain",
        "bom",
        "latin-1",
        "lone-high",
        "lone-low",
        "lone-before-a-pair",
        "escaped-backslash",
        "both",
    ],
)
def test_decode_replaces_what_is_no_unicode(body: bytes, value: Any) -> None:
    assert decode(body) == value


@given(ANYTHING)
def test_encode_and_decode_are_inverse(value: Any) -> None:
    clean = decode(encode(value))
    assert decode(encode(clean)) == clean


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": (1, "x")}, b'{"b":1,"a":[1,"x"]}'),
        (["ok", {"k\ud800": "a\ud800b"}], '["ok",{"k\ufffd":"a\ufffdb"}]'.encode()),
        ("\ud83d\ude80", '"\U0001f680"'.encode()),
    ],
    ids=["order", "exe-12-lone-surrogate", "exe-12-halves-that-meet"],
)
def test_encode(value: Any, text: bytes) -> None:
    assert encode(value) == text


@pytest.mark.parametrize(
    ("raw", "arguments", "invalid"),
    [
        ({"a": 1}, {"a": 1}, None),
        (None, {}, None),
        ("", {}, None),
        (" \n", {}, None),
        ("{}", {}, None),
        (' {"a": [1]} ', {"a": [1]}, None),
        ('"{\\"a\\": 1}"', {"a": 1}, None),
        ('{"a": "\ud800"}', {"a": "\ufffd"}, None),
        (r'{"a": "\ud800"}', {"a": "\ufffd"}, None),
        ('{"a": 1', {}, '{"a": 1'),
        ('{"a": 1}{"b": 2}', {}, '{"a": 1}{"b": 2}'),
        ("[1, 2]", {}, "[1, 2]"),
        ('"text"', {}, '"text"'),
        ("Paris", {}, "Paris"),
        ("[" * 100_000, {}, "[" * 100_000),
        ([1, 2], {}, "[1,2]"),
        (7, {}, "7"),
    ],
)
def test_parse_arguments(raw: Any, arguments: dict[str, Any], invalid: str | None) -> None:
    assert parse_arguments(raw) == (arguments, invalid)


@given(ANYTHING)
def test_arguments_are_an_object_or_kept_as_they_came(raw: Any) -> None:
    arguments, invalid = parse_arguments(raw)
    assert isinstance(arguments, dict)
    assert invalid is None or not arguments
    assert not isinstance(raw, str) or invalid in {None, raw}
