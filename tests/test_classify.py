"""From what providers say when they fail to our errors."""

from __future__ import annotations

import datetime as dt
import email.utils
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import (
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    ContextTooLong,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
)
from alloy_trio.providers._classify import from_error, from_status, retry_after
from alloy_trio.providers._json import encode


def answer(status: int, body: Any = b"", **headers: str) -> ProviderError:
    data = body if isinstance(body, bytes) else encode(body)
    error = from_status(status, data, {name.replace("_", "-"): value for name, value in headers.items()})
    assert error.status == status
    return error


def error(message: str, kind: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code}}


def table(names: str, rows: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, rows.values(), ids=rows.keys())


def what(found: ProviderError) -> tuple[type[ProviderError], bool]:
    return type(found), found.retryable


@table(
    "status, body, kind",
    {
        "err-01-429": (429, error("Rate limit reached", "requests", "rate_limit_exceeded"), RateLimited),
        "err-01-slow-down": (429, error("Slow down", "slow_down"), RateLimited),
        "err-01-slow-down-503": (503, error("Slow down", None, "slow_down"), RateLimited),
        "err-01-529": (529, {"type": "error", "error": {"type": "overloaded_error"}}, Overloaded),
        "err-01-503-server-error": (503, error("The engine is overloaded", "server_error"), Overloaded),
        "err-01-503": (503, error("try later"), Overloaded),
        "err-01-500": (500, error("oops", "server_error"), ProviderError),
        "err-01-504": (504, {"type": "error", "error": {"type": "timeout_error"}}, ProviderTimeout),
        "err-01-504-page": (504, b"<html>Gateway Time-out</html>", ProviderTimeout),
        "rty-02-408": (408, b"", ProviderTimeout),
        "rty-02-409": (409, b"conflict", ProviderError),
        "rty-02-429": (429, b"", RateLimited),
        **{f"rty-02-{status}": (status, b"", ProviderError) for status in (500, 501, 502, 520, 599)},
        "rty-02-502-with-another-word": (502, error("no such thing", "invalid_request_error"), ProviderError),
        "rty-02-524": (524, b"", ProviderTimeout),
        "rty-02-529": (529, b"", Overloaded),
        "rty-02-429-overloaded": (429, error("x", None, "engine_overloaded_error"), Overloaded),
        "rty-02-google-429": (429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], RateLimited),
        "rty-02-google-503": (503, [{"error": {"code": 503, "status": "UNAVAILABLE"}}], Overloaded),
        "rty-02-google-500": (500, [{"error": {"code": 500, "status": "INTERNAL"}}], ProviderError),
    },
)
def test_later(status: int, body: Any, kind: type[ProviderError]) -> None:
    """What may be better later is retryable."""
    assert what(answer(status, body)) == (kind, True)


@table(
    "status, body, kind",
    {
        "rty-02-400": (400, error("temperature: range: 0..1", "invalid_request_error"), BadRequest),
        "rty-02-404": (404, error("no such model", "invalid_request_error", "model_not_found"), BadRequest),
        "rty-02-404-api-error": (404, error("model not found", "api_error"), BadRequest),
        "rty-02-422": (422, {"detail": [{"loc": ["body"], "msg": "Field required"}]}, BadRequest),
        "rty-02-unknown": (418, b"", BadRequest),
        "400-key": (400, {"error": "Incorrect API key provided: xx"}, AuthenticationError),
        "403-permission": (403, error("no", "permission_error"), AuthenticationError),
        "403-message": (403, {"detail": "Not authenticated"}, AuthenticationError),
        "403-empty": (403, b"", AuthenticationError),
        "403-moderation": (403, error("your input was flagged", None, 403), BadRequest),
        "413": (413, error("x", "request_too_large"), ContextTooLong),
        "413-page": (413, b"<html>Request Entity Too Large</html>", ContextTooLong),
        "402": (402, error("x", "unknown_error", "invalid_request_error"), RateLimited),
    },
)
def test_never(status: int, body: Any, kind: type[ProviderError]) -> None:
    """What will fail again is not retryable."""
    assert what(answer(status, body)) == (kind, False)


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"<html>", error("overloaded", "overloaded_error"), error("x", "insufficient_quota")],
)
def test_err_06_401_is_about_the_key(body: Any) -> None:
    assert what(answer(401, body)) == (AuthenticationError, False)


@pytest.mark.parametrize(
    "body",
    [
        error("x", "insufficient_quota", "insufficient_quota"),
        error("You exceeded your current quota, please check your plan and billing details.", "requests"),
        error("x", "exceeded_current_quota_error"),
        error("This request would exceed your organization's monthly spend limit.", "rate_limit_error"),
        error("Your credit balance is too low to access the API."),
        {"code": "Some resource has been exhausted", "error": "Your team has used all available credits."},
        error("x", "usage_limit_reached"),
        error("Insufficient Balance", "unknown_error", "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("status", [429, 402, 400])
def test_rty_12_an_empty_purse_is_not_retried(status: int, body: Any) -> None:
    assert what(answer(status, body)) == (RateLimited, False)
    assert what(from_error(body)) == (RateLimited, False)


def test_rty_12_googles_limits_by_the_minute_are_no_empty_purse() -> None:
    """Its message speaks of quota, plan and billing, and its body says when to come back."""
    found = answer(
        429,
        {
            "error": {
                "code": 429,
                "message": "You exceeded your current quota, please check your plan and billing details.",
                "status": "RESOURCE_EXHAUSTED",
                "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}],
            }
        },
    )
    assert (*what(found), found.retry_after) == (RateLimited, True, 34.5)


def test_a_provider_that_says_not_to_retry_is_believed() -> None:
    assert not answer(429, error("x", "rate_limit_error"), x_should_retry="false").retryable
    assert answer(429, error("x", "rate_limit_error"), x_should_retry="true").retryable


@table(
    "status, body, message",
    {
        "err-02-type": (400, error("bad tool", "api_error", "x"), "api_error: bad tool"),
        "err-02-code": (400, {"code": "invalid-argument", "error": "no model"}, "invalid-argument: no model"),
        "err-02-google": (
            404,
            {"error": {"code": 404, "message": "m", "status": "NOT_FOUND"}},
            "NOT_FOUND: m",
        ),
        "err-02-type-only": (529, {"error": {"type": "overloaded_error"}}, "overloaded_error"),
        "err-02-number": (401, error("Missing header", None, 401), "HTTP 401: Missing header"),
        "err-02-detail": (401, {"detail": "Invalid API Key"}, "HTTP 401: Invalid API Key"),
        "err-02-detail-list": (422, {"detail": [{"msg": "m"}]}, 'HTTP 422: [{"msg":"m"}]'),
        "err-02-message": (500, {"message": "m"}, "HTTP 500: m"),
        "err-02-both": (401, {"error": "Unauthorized", "message": "no token"}, "HTTP 401: no token"),
        "err-02-other-json": (500, {"what": 1}, 'HTTP 500: {"what":1}'),
        "err-02-text": (500, b"upstream fell over", "HTTP 500: upstream fell over"),
        "err-02-html": (502, b"<h1>Bad Gateway</h1>", "HTTP 502: <h1>Bad Gateway</h1>"),
        "err-02-html-title": (
            502,
            b"<html><head><title>\n 502 Bad &amp; Gateway </title></head>" + b"<p>x</p>" * 999,
            "HTTP 502: 502 Bad & Gateway",
        ),
        "err-02-html-long": (502, b"<html>" + b"x" * 999, "HTTP 502: <html>" + "x" * 194),
        "err-02-nothing": (500, b"", "HTTP 500: empty body"),
        "err-02-null": (500, b"null", "HTTP 500: null"),
        "err-02-bytes": (500, b"\xff\xfe", "HTTP 500: \ufffd\ufffd"),
        "err-05-list": (400, [error("m", "t")], "t: m"),
        "err-05-json-string": (400, '{"error":{"message":"m","type":"t"}}', "t: m"),
        "err-05-string": (400, "just text", "HTTP 400: just text"),
        "err-05-string-inside": (400, {"error": '{"error":{"message":"m","type":"t"}}'}, "t: m"),
        "err-05-empty-list": (400, [], "HTTP 400: []"),
        "err-05-null-error": (400, {"error": None}, 'HTTP 400: {"error":null}'),
    },
)
def test_message(status: int, body: Any, message: str) -> None:
    assert str(answer(status, body)) == message


def test_a_vendors_novel_is_cut() -> None:
    assert len(str(answer(400, error("x" * 100_000, "t")))) < 2100
    assert len(str(answer(400, b"x" * 100_000))) < 2100


@pytest.mark.parametrize("depth", [400, 900, 100_000])
@pytest.mark.parametrize("level", [b"[", b'{"error":', b'{"metadata":{"raw":'])
def test_depth_is_no_crash(level: bytes, depth: int) -> None:
    body = level * depth + b"1" + level.count(b"{") * depth * b"}" + level.count(b"[") * depth * b"]"
    assert str(answer(400, body))


def test_what_stands_behind_a_relay_is_told() -> None:
    """OpenRouter keeps the upstream's body in `metadata.raw`: its text is appended, its words count."""
    body = error("Provider returned error", None, 400)
    body["error"]["metadata"] = {"raw": '{"error":{"message":"too big","code":"context_length_exceeded"}}'}
    found = answer(400, body)
    assert str(found) == "HTTP 400: Provider returned error: too big"
    assert isinstance(found, ContextTooLong)
    body["error"]["metadata"] = {"raw": "plain words"}
    assert str(from_error(body["error"])) == "error 400: Provider returned error: plain words"


def test_a_quoted_key_is_cut_out() -> None:
    found = answer(401, error("Incorrect API key provided: sk-proj-0123456789abcdef. See the docs."))
    assert str(found) == "HTTP 401: Incorrect API key provided: sk-\u2026. See the docs."


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect(status: int) -> None:
    found = answer(status, b"<html>Moved</html>", Location="https://elsewhere/v1")
    assert what(found) == (BadRequest, False)
    assert str(found) == (
        f"HTTP {status}: the server redirects to https://elsewhere/v1: set base_url to where the API is"
    )


@table(
    "message",
    {
        "err-03-anthropic": "prompt is too long: 3333404 tokens > 200000 maximum",
        "err-03-anthropic-cap": "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000",
        "err-03-openai": "Your input exceeds the context window of this model.",
        "err-03-chat": "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "err-03-google": "The input token count (1250074) exceeds the maximum number of tokens allowed (1048576).",
        "err-03-token-count": "input token count exceeds maximum",
        "err-03-xai": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "err-03-groq": "Please reduce the length of the messages or completion.",
        "err-03-llama-cpp": "request (2009 tokens) exceeds the available context size (512 tokens)",
        "err-03-lm-studio": "The number of tokens is greater than the context length",
        "err-03-vllm": "The prompt (5000) is longer than the maximum model length of 4096",
        "err-03-mistral": "Prompt contains 65673 tokens, too large for model with 32768 maximum context length",
        "err-03-kimi": "Your request exceeded model token limit: 131072",
        "err-03-minimax": "invalid params, context window exceeds limit",
        "err-03-ollama": "prompt too long; exceeded max context length by 4 tokens",
        "err-03-bedrock": "Input is too long for requested model.",
    },
)
def test_err_03_too_long_in_many_words(message: str) -> None:
    """However it is worded, with any status but 429; err-04: with a 429 the same is a rate limit."""
    for body in (error(message, "invalid_request_error"), error(message), {"detail": message}):
        assert what(answer(400, body)) == (ContextTooLong, False)
        assert what(answer(500, body)) == (ContextTooLong, False)
        assert what(from_error(body)) == (ContextTooLong, False)
        assert what(answer(429, body)) == (RateLimited, True)


@pytest.mark.parametrize(
    "code",
    [
        "context_length_exceeded",
        "ContextWindowExceededError",
        "exceed_context_size_error",
        "request_too_large",
    ],
)
def test_err_03_too_long_in_one_word(code: str) -> None:
    assert what(answer(400, error("x", "invalid_request_error", code))) == (ContextTooLong, False)
    assert what(answer(400, error("x", code))) == (ContextTooLong, False)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens",
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "`max_tokens` must be at most 8192: the maximum for `max_tokens` is less than the `context_window` for this model",
        "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64",
        "Token limit reached",
    ],
)
def test_a_cap_on_the_answer_is_no_overflow(message: str) -> None:
    assert what(answer(400, error(message, "invalid_request_error"))) == (BadRequest, False)


@pytest.mark.parametrize(
    "message",
    [
        "Request too large on tokens per min (TPM): Limit 30000, Requested 40000.",
        "This request would exceed your rate limit of 50,000 input tokens per minute. Please reduce the prompt length",
        "Too many tokens in your context window this minute",
    ],
)
def test_err_04_tokens_on_a_429(message: str) -> None:
    for body in (error(message, "tokens"), error(message, "rate_limit_error"), message.encode()):
        assert what(answer(429, body)) == (RateLimited, True)
    assert what(from_error(error(message, "rate_limit_error"))) == (RateLimited, True)


@table(
    "value, kind, retryable",
    {
        "rty-14": ({"type": "overloaded_error", "message": "Overloaded"}, Overloaded, True),
        "rty-14-whole-event": ({"type": "error", "error": {"type": "overloaded_error"}}, Overloaded, True),
        "err-08-code": ({"code": "server_error", "message": "x"}, ProviderError, True),
        "err-08-rate": ({"code": "rate_limit_exceeded", "message": "tokens"}, RateLimited, True),
        "err-08-502": ({"code": 502, "message": "x"}, ProviderError, True),
        "err-08-529": ({"code": 529, "message": "x"}, Overloaded, True),
        "err-08-429-text": ({"code": "429", "message": "x"}, RateLimited, True),
        "err-08-400": ({"code": 400, "message": "x"}, BadRequest, False),
        "err-08-401": ({"code": 401, "message": "x"}, AuthenticationError, False),
        "err-08-filter": ({"code": "content_filter", "status": 400}, BadRequest, False),
        "err-08-unknown": ({"code": "something_new", "message": "server overloaded"}, ProviderError, False),
        "err-08-small-number": ({"code": 7, "message": "x"}, ProviderError, False),
        "err-08-large-number": ({"code": 10**30, "message": "x"}, ProviderError, False),
        "err-08-odd": ({"code": True, "message": ["x"]}, ProviderError, False),
        "err-08-type": ({"type": "invalid_request_error", "message": "x"}, BadRequest, False),
        "err-08-key": ({"type": "authentication_error", "message": "x"}, AuthenticationError, False),
        "err-08-timeout": ({"type": "timeout_error", "message": "x"}, ProviderTimeout, True),
        "err-08-network": ({"code": "network_error"}, ConnectionFailed, True),
        "rty-02-UNAVAILABLE": ({"status": "UNAVAILABLE"}, Overloaded, True),
        "rty-02-INTERNAL": ({"status": "INTERNAL"}, ProviderError, True),
        "rty-02-RESOURCE_EXHAUSTED": ({"status": "RESOURCE_EXHAUSTED"}, RateLimited, True),
        "err-08-string": ("The server is overloaded", Overloaded, True),
        "err-08-string-rate": ("rate limit exceeded", RateLimited, True),
        "err-08-string-timeout": ("upstream timed out", ProviderTimeout, True),
        "err-08-string-unknown": ("no idea", ProviderError, False),
        "err-08-none": (None, ProviderError, False),
        "err-08-empty": ({}, ProviderError, False),
    },
)
def test_error_object(value: Any, kind: type[ProviderError], retryable: bool) -> None:
    found = from_error(value)
    assert what(found) == (kind, retryable)
    assert found.status is None
    assert str(found)


def test_error_object_tells_what_it_knows() -> None:
    body = {"type": "error", "error": {"type": "api_error", "message": "m"}, "request_id": "req_1"}
    found = from_error(body)
    assert (str(found), found.request_id) == ("api_error: m", "req_1")
    assert str(from_error({"code": 502, "message": "m"})) == "error 502: m"
    assert str(from_error("m")) == "m"


def test_error_object_with_a_status() -> None:
    """The status is told; only an error's status is a hint."""
    found = from_error({"code": "content_filter", "message": "m", "status": 400}, status=200)
    assert (found.status, *what(found)) == (200, BadRequest, False)
    assert what(from_error("m", status=503)) == (Overloaded, True)
    assert str(from_error("m", status=200)) == "m"


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [({"request-id": "a", "x-request-id": "b"}, "a"), ({"X-Request-Id": "b"}, "b"), ({}, "c")],
)
def test_request_id(headers: dict[str, str], request_id: str) -> None:
    body = b'{"type":"error","error":{"type":"api_error","message":"m"},"request_id":"c"}'
    assert from_status(500, body, headers).request_id == request_id


@table(
    "headers, seconds",
    {
        "err-07-seconds": ({"retry-after": "7"}, 7.0),
        "err-07-case": ({"Retry-After": "1.5"}, 1.5),
        "err-07-ms-wins": ({"RETRY-AFTER-MS": "250", "retry-after": "7"}, 0.25),
        "err-07-ms-unreadable": ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        "err-07-negative": ({"retry-after": "-3"}, 0.0),
        "err-07-zero": ({"retry-after": "0"}, 0.0),
        "err-07-past-date": ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        "err-07-noise": ({"retry-after": "soon"}, None),
        "err-07-infinite": ({"retry-after": "inf"}, None),
        "err-07-nan": ({"retry-after": "nan"}, None),
        "err-07-blank": ({"retry-after": ""}, None),
        "err-07-none": ({}, None),
    },
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
    assert from_status(429, b"", headers).retry_after == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0200"])
def test_err_07_date(zone: str) -> None:
    """An HTTP date is the time left until then, a zone that is not told being UTC."""
    offset = dt.timezone(dt.timedelta(hours=2 if zone == "+0200" else 0))
    then = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)).astimezone(offset)
    text = email.utils.format_datetime(then).removesuffix("+0000").removesuffix("+0200") + zone
    seconds = retry_after({"retry-after": text})
    assert seconds is not None
    assert 290 < seconds <= 300


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, \d{2} \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", fullmatch=True))
def test_retry_after_is_never_negative_and_never_raises(text: str) -> None:
    assert (retry_after({"retry-after": text}) or 0.0) >= 0.0


KEYS = [
    "error",
    "message",
    "type",
    "code",
    "status",
    "details",
    "detail",
    "metadata",
    "raw",
    "reason",
    "retryDelay",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=[]))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.binary(max_size=50), st.integers(300, 599))
def test_any_body_is_a_provider_error_that_says_something(value: Any, noise: bytes, status: int) -> None:
    assert str(from_error(value))
    assert str(from_status(status, encode(value), {}))
    assert str(from_status(status, noise, {}))
