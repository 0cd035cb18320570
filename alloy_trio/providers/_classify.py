"""
From what a provider says when it fails to one of our errors.

Three things tell what happened, in this order. The vendor's words (its `type`, `code`, `status`) are looked up in `_KINDS`,
where the most telling kind stands first: a `context_length_exceeded` that is also an `invalid_request_error` is about the
context. Then phrases of the message, where a vendor has only a vague word or none. Then the HTTP status; an error inside a
stream has none, but many name one in `code`.

The status decides which kinds come into question. A 401 is about the key, a 402 about money and a 413 about size, whatever
they say. A status that means "later" (408, 409, 429, 5xx) is not overruled by a word that means "never" in general, only by
an empty purse or a prompt that is too long; and on a 429 not by the latter: there, tokens and context are what is counted
by the minute.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import html
import math
import re
from typing import TYPE_CHECKING, Any

import attrs

from .._errors import (
    AuthenticationError,
    BadRequest,
    ConnectionFailed,
    ContextTooLong,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    RateLimited,
    WireError,
)
from ._json import as_dict, as_dicts, as_int, as_str, decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .._util import JSONObject

_LONGEST = 2000  # characters of a vendor's message that are shown
_EXCERPT = 200  # characters of a web page that are shown


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


_NOTHING = _phrases(r"(?!)")


@attrs.frozen(eq=False)
class _Kind:
    """One kind of failure: what it is to us, and how vendors name it, in the spelling of `_word`."""

    error: type[ProviderError]
    retryable: bool
    words: frozenset[str] = attrs.field(converter=_words)
    phrases: re.Pattern[str] = _NOTHING


_QUOTA = _Kind(
    RateLimited,
    retryable=False,
    words="""
        insufficient_quota insufficient_balance insufficient_credits insufficient_funds quota_exceeded exceeded_current_quota
        billing billing_not_active billing_hard_limit_reached billing_limit_exceeded payment_required credits_exhausted
        out_of_credits credit_limit_exceeded spend_limit_exceeded spending_limit_exceeded
        usage_limit_reached usage_limit_exceeded usage_not_included
    """,
    phrases=_phrases(
        r"insufficient (?:\w+ )?(?:quota|balance|credit|fund)",
        r"credit balance|out of credits|(?:all|any|enough|more) (?:available )?credits",
        r"(?:spend|spending|credit|billing|billing hard|api usage|key) (?:limit|cap)",
        r"exceeded your current quota",
    ),
)
_CONTEXT = _Kind(
    ContextTooLong,
    retryable=False,
    words="""
        context_length_exceeded context_window_exceeded model_context_window_exceeded exceed_context_size
        too_many_prompt_tokens prompt_too_long request_too_large
    """,
    # Nothing here may match a complaint about `max_tokens` alone: a cap that the model does not allow is no overflow.
    phrases=_phrases(
        r"(?:prompt|input|conversation)(?: is|'s)? too long|length of all messages is too long|too many (?:input|prompt) tokens",
        r"context[ _](?:length|window)[ _]exceeded|context (?:length|window|size) (?:is only|exceeds)",
        r"exceed(?:s|ed)? (?:the |this |its )?(?:model'?s? )?(?:available )?(?:max |maximum )?context",
        r"(?:max|maximum|model'?s) context length (?:is|of|\()",
        r"maximum prompt length|maximum (?:allowed )?input length|input length should be",
        r"(?:greater|longer) than the (?:maximum )?(?:model'?s )?(?:context|model) length|too large for model with",
        r"token count.{0,40} exceeds? (?:the )?(?:maximum|limit)|exceeded model token limit",
        r"reduce the length of the (?:messages|prompt|input)|tokens \+ .?max_new_tokens",
    ),
)
_AUTH = _Kind(
    AuthenticationError,
    retryable=False,
    words="""
        authentication invalid_authentication unauthenticated unauthorized invalid_api_key api_key_invalid incorrect_api_key
        missing_api_key api_key_expired expired_api_key permission permission_denied iam_permission_denied access_denied
        access_terminated forbidden account_deactivated service_disabled
    """,
    phrases=_phrases(
        r"(?:incorrect|invalid|missing|expired|no) (?:x-)?api[ _-]?key",
        r"api[ _-]?key (?:is )?(?:not valid|invalid|missing|expired)",
    ),
)
_RATE = _Kind(
    RateLimited,
    retryable=True,
    words="""
        rate_limit rate_limited rate_limit_exceeded rate_limit_reached too_many_requests resource_exhausted slow_down
        throttled throttling requests tokens
    """,
    phrases=_phrases(r"rate.?limit|too many requests|slow down|throttl"),
)
_OVERLOADED = _Kind(
    Overloaded,
    retryable=True,
    words="""
        overloaded engine_overloaded server_overloaded server_is_overloaded model_overloaded unavailable service_unavailable
        temporarily_unavailable capacity_exceeded service_tier_capacity_exceeded
    """,
    phrases=_phrases(r"overloaded|(?:at|over) capacity|capacity exceeded|(?:temporarily|service) unavailable|is busy"),
)
_TIMEOUT = _Kind(
    ProviderTimeout,
    retryable=True,
    words="timeout request_timeout gateway_timeout upstream_timeout deadline_exceeded vector_store_timeout",
    phrases=_phrases(r"timed[ -]?out|time-?out\b|deadline exceeded"),
)
_CONNECTION = _Kind(
    ConnectionFailed,
    retryable=True,
    words="connection api_connection connection_closed connection_reset connection_refused network",
    phrases=_phrases(r"connection (?:error|closed|reset|refused)|upstream connect error"),
)
_FAILED = _Kind(
    ProviderError,
    retryable=True,
    words="api server internal internal_server bad_gateway upstream provider",
    phrases=_phrases(r"internal (?:server )?error|bad gateway"),
)
_BAD = _Kind(
    BadRequest,
    retryable=False,
    words="""
        bad_request invalid_request invalid_argument invalid_prompt invalid_value missing_required_parameter
        unsupported_parameter unsupported_value validation unprocessable_entity failed_precondition out_of_range unimplemented
        not_found model_not_found deployment_not_found previous_response_not_found
        content_filter content_policy_violation tool_use_failed
    """,
)
_UNKNOWN = _Kind(ProviderError, retryable=False, words="")

_KINDS = (_QUOTA, _CONTEXT, _AUTH, _RATE, _OVERLOADED, _TIMEOUT, _CONNECTION, _FAILED, _BAD)
_ON_4XX = tuple(kind for kind in _KINDS if kind is not _FAILED)
_ON_LATER = tuple(kind for kind in _KINDS if kind not in {_AUTH, _BAD})
_ON_429 = (_QUOTA, _RATE, _OVERLOADED)
_REFUSALS = (_QUOTA, _CONTEXT, _AUTH)

_CERTAIN = {401: _AUTH, 402: _QUOTA, 413: _CONTEXT}
_BY_STATUS = {
    408: _TIMEOUT,
    409: _FAILED,
    429: _RATE,
    503: _OVERLOADED,
    504: _TIMEOUT,
    522: _TIMEOUT,  # 522 and 524 are Cloudflare's, 529 is Anthropic's
    524: _TIMEOUT,
    529: _OVERLOADED,
}

_ABOUT_THE_KEY = _phrases(r"api[ _-]?key|authenti|authori[sz]|permission|credential|access|forbidden|not allowed")
# A provider that quotes the key it did not like must not bring it into anybody's log.
_KEY = re.compile(r"\b(sk-|xai-|gsk_|pplx-|AIza|Bearer )[\w-]{8,}")


def from_status(status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """
    Return the error that an HTTP answer other than 2xx stands for.

    Args:
        status: The HTTP status.
        body: As much of the body as was read.
        headers: The answer's headers, names in any case.
    """
    found = {name.lower(): value for name, value in headers.items()}
    fault = _Fault.of(body.decode("utf-8-sig", "replace"))
    if status < 400:  # noqa: PLR2004 - a redirect
        place = found.get("location", "another address")
        fault = _Fault(message=f"the server redirects to {place}: set base_url to where the API is")
    error = _make(fault, status, status)
    error.request_id = found.get("request-id") or found.get("x-request-id") or error.request_id
    if (wait := retry_after(found)) is not None:
        error.retry_after = wait
    if found.get("x-should-retry", "").lower() == "false":  # OpenAI and Anthropic know more than the status says
        error.retryable = False
    return error


def from_error(error: Any, *, status: int | None = None) -> ProviderError:
    """
    Return the error that an error object stands for which came inside a stream, or in the body of a 200.

    Args:
        error: The object, or what encloses it, or a string: any JSON, because vendors put any there.
        status: What the error's `.status` is to be. Below 400 it says nothing of what went wrong.
    """
    fault = _Fault.of(error)
    return _make(fault, status, status if status is not None and status >= 400 else fault.code)  # noqa: PLR2004 - errors


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Return how many seconds an answer asks us to wait, never negative; None where it does not, or not intelligibly.

    `retry-after-ms` (OpenAI) wins over `retry-after`, which is seconds or an HTTP date (RFC 9110, section 10.2.3).
    """
    found = {name.lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if (number := _number(found.get(name, ""))) is not None:
            return number / unit
    try:
        date = email.utils.parsedate_to_datetime(found["retry-after"])
        date = date.replace(tzinfo=date.tzinfo or dt.UTC)
        return max(0.0, (date - dt.datetime.now(dt.UTC)).total_seconds())
    except (KeyError, ValueError, OverflowError):
        return None


@attrs.frozen(kw_only=True)
class _Fault:
    """
    What can be read out of an error, whatever its form.

    Attributes:
        label: The vendor's word for it, as it came.
        words: All such words, for the table.
        message: The text, for people.
        code: The HTTP status that the error itself names.
        request_id: The provider's id of the request.
        retry_after: Seconds to wait, where the body says so (Google's `RetryInfo`).
    """

    label: str = ""
    words: frozenset[str] = frozenset()
    message: str = ""
    code: int | None = None
    request_id: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: Any) -> _Fault:
        body = _unwrap(error)
        if isinstance(body, str):
            return cls(message=body[:_LONGEST])
        details = as_dicts(body.get("details"))
        labels = [as_str(body.get(key)) for key in ("type", "code", "status")]
        labels = [label for label in labels if label and label != "error" and not label.isdigit()]
        reasons = [as_str(detail.get("reason")) for detail in details]
        upstream = as_dict(body.get("metadata")).get("raw")  # OpenRouter: what the provider behind it said
        cause = cls.of(upstream) if upstream else cls()
        return cls(
            label=labels[0] if labels else "",
            words=cause.words.union(map(_word, filter(None, labels + reasons))),
            message=": ".join(filter(None, (_message(body, labels), cause.message))),
            code=_error_status(body.get("code")) or _error_status(body.get("status")),
            request_id=as_str(body.get("request_id")) or None,
            retry_after=next(
                filter(None, (_number(as_str(d.get("retryDelay")).removesuffix("s")) for d in details)), None
            ),
        )


def _make(fault: _Fault, status: int | None, hint: int | None) -> ProviderError:
    kind = _kind(fault, hint)
    message = fault.message
    if fault.label:
        message = f"{fault.label}: {message}" if message else fault.label
    elif status is not None and hint == status:
        message = f"HTTP {status}: {message or 'empty body'}"
    elif hint is not None:
        message = f"error {hint}: {message}"
    return kind.error(
        _KEY.sub(r"\1…", message[:_LONGEST]) or "the provider reports an error and does not say which",
        status=status,
        retryable=kind.retryable,
        retry_after=fault.retry_after,
        request_id=fault.request_id,
    )


def _kind(fault: _Fault, status: int | None) -> _Kind:
    if status in _CERTAIN:
        return _CERTAIN[status]
    possible = _possible(status)
    named = next((kind for kind in possible if kind.words & fault.words), None)
    vague = named in {None, _FAILED, _BAD}
    refusal = next((kind for kind in _REFUSALS if kind in possible and kind.phrases.search(fault.message)), None)
    # Google speaks of plan and billing where it means its limits by the minute, and its word for those is sure.
    spent = refusal is _QUOTA and named is _RATE and "resource_exhausted" not in fault.words
    if refusal and (vague or spent):
        return refusal
    if named is not None and (named is not _FAILED or status is None):  # a 503 or 504 tells more than `server_error`
        return named
    if status is not None:
        return _of_status(status, fault.message)
    if fault.words:  # words that nobody here knows: better to fail once than to repeat it
        return _UNKNOWN
    return next((kind for kind in _KINDS if kind.phrases.search(fault.message)), _UNKNOWN)


def _possible(status: int | None) -> tuple[_Kind, ...]:
    match status:
        case None:
            return _KINDS
        case 429:
            return _ON_429
        case 408 | 409:
            return _ON_LATER
    return _ON_LATER if status >= 500 else _ON_4XX  # noqa: PLR2004 - 5xx


def _of_status(status: int, message: str) -> _Kind:
    if status == 403 and (not message or _ABOUT_THE_KEY.search(message)):  # noqa: PLR2004 - Forbidden, for any reason
        return _AUTH
    return _BY_STATUS.get(status) or (_FAILED if status >= 500 else _BAD)  # noqa: PLR2004 - 5xx


def _unwrap(error: Any) -> JSONObject | str:
    """Find the error in its wrappings: arrays, `error` keys, JSON inside of strings. What is no object becomes text."""
    for _ in range(8):
        inner = _inner(error)
        if inner is error:
            break
        error = inner
    return error if isinstance(error, dict) else _excerpt(error)


def _inner(error: Any) -> Any:
    match error:
        case [first, *_]:
            return first
        case str() if error.lstrip().startswith(("{", "[", '"')):
            try:
                return decode(error.encode("utf-8", "replace"))
            except WireError:
                return error
        case {"error": str() as text, **rest} if text:
            if (found := _inner(text)) is not text:
                return {**rest, "error": found}
            return {"message": _excerpt(text), **{key: value for key, value in rest.items() if value}}
        case {"error": [first, *_], **rest}:
            return {**rest, "error": first}
        case {"error": dict() as wrapped, **rest} if wrapped:
            return {**rest, **wrapped}
    return error


def _excerpt(value: Any) -> str:
    """Return text as it is; of a long web page, its title."""
    if not isinstance(value, str):
        return "" if value is None else _dump(value)
    text = value.strip()
    if not text.startswith("<") or len(text) <= _EXCERPT:
        return text
    title = re.search(r"<title[^>]*>\s*(.+?)\s*</title>", text[:_LONGEST], re.IGNORECASE | re.DOTALL)
    return html.unescape(title[1] if title else text)[:_EXCERPT]


def _message(body: JSONObject, labels: Sequence[str]) -> str:
    for key in ("message", "msg", "detail", "error_description"):
        if value := body.get(key):
            return (value if isinstance(value, str) else _dump(value))[:_LONGEST]
    return "" if labels else _dump(body)[:_LONGEST]


def _dump(value: Any) -> str:
    try:
        return encode(value).decode()
    except RecursionError:
        return "an error nested too deeply to be shown"


def _word(label: str) -> str:
    """Spell a vendor's word in one way: `RateLimitError`, `rate-limit` and `RATE_LIMIT` are all `rate_limit`."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", label).lower()
    return re.sub(r"[^a-z0-9]+", "_", snake).strip("_").removesuffix("_error").removesuffix("_exception")


def _error_status(value: Any) -> int | None:
    number = as_int(value)
    return number if 400 <= number < 600 else None  # noqa: PLR2004 - the HTTP errors


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
