"""Recorded traffic: answers are read as the vendors' own SDKs read them, and requests are what the recorded clients sent."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from corpus_adapter import WIRES as PROVIDERS
from corpus_adapter import said
from corpus_habits import UNEXPLAINED
from corpus_requests import ABSENT, CORPUS, WIRES, difference, scorer, table, verdicts

from alloy_trio import ProviderError
from alloy_trio.providers import _anthropic_reply, _openai_compat_reply, _openai_reply

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=ABSENT)

# Of the requests that continue a recorded conversation, how many are equal to ours. Each of the others has a reason that is
# found by rule: what the recorded client did by choice, or a server's own tools and settings. `corpus_requests.py` prints them.
AGREEING = {"anthropic": (116, 133), "openai_responses": (103, 138), "openai_chat": (136, 162)}

Parsed = dict[str, Any]

# The short ways by which an answer of the usual kind is read.
SHORT = (
    (_anthropic_reply, "plain_delta"),
    (_openai_reply, "plain_text"),
    (_openai_compat_reply, "plain_text"),
    (_openai_compat_reply, "plain_answer"),
)


async def _outcome(exchange: dict[str, Any], chunks: list[bytes]) -> Parsed | Exception:
    try:
        return await said(exchange, chunks)
    except Exception as error:  # noqa: BLE001 - whatever it raises is for the scorer to judge
        return error


def _replayed(outcomes: list[Parsed | Exception]) -> Callable[[object, object], Parsed]:
    """Return the plain function that the scorer calls, once for each way of cutting the body."""
    left = iter(outcomes)

    def parse(_: object, __: object) -> Parsed:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return parse


@pytest.mark.parametrize("wire", WIRES)
async def test_every_doubt_free_answer_is_read_as_recorded(wire: str) -> None:
    """However its bytes are cut. One Trio run for a wire: to start one for each answer would cost more than reading it."""
    check = scorer()
    count, failures = 0, []
    for exchange in check.load(wire=wire):
        if exchange["expected"] and not exchange["expected_meta"]["ambiguous"]:
            outcomes = [await _outcome(exchange, chunks) for chunks in check.cuts(exchange)]
            if found := check.judge(exchange, _replayed(outcomes)):
                failures.append(f"{exchange['id']} {exchange['vendor']} {exchange['model']}: {found}")
            count += 1
    assert count > 0
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("wire", WIRES)
async def test_requests_of_a_recorded_conversation_are_those_recorded(wire: str) -> None:
    found = await verdicts(wire)
    report = "\n".join([table(found), *[difference(verdict) for verdict in found if verdict.reason == UNEXPLAINED]])
    least, total = AGREEING[wire]
    assert len(found) == total, report
    assert sum(verdict.agrees for verdict in found) >= least, report
    assert all(verdict.reason != UNEXPLAINED for verdict in found), report


def _read(exchange: dict[str, Any], chunks: list[bytes]) -> list[Any]:
    """Return all that an answer means: its events, by reads, and the response, or why there is none."""
    provider = PROVIDERS[exchange["wire"]](model=exchange["model"] or "m", api_key="key")
    read: list[Any] = []
    try:
        if not exchange["sse"]:
            return [provider.decode(b"".join(chunks))]
        decoder = provider.decoder()
        read += [decoder.feed(chunk) for chunk in chunks]
        read += [decoder.close(), decoder.finish()]
    except ProviderError as error:
        read.append((type(error), str(error)))
    return read


@pytest.mark.parametrize("wire", WIRES)
def test_the_short_way_reads_an_answer_as_the_long_one_does(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same events in the same reads, and the same response. And most of what is streamed takes the short way."""
    check = scorer()
    exchanges = [(each, chunks) for each in check.load(wire=wire) for chunks in check.cuts(each)]
    monkeypatch.setattr("os.urandom", bytes)  # ids of calls that the server gives none, in answers without an id
    taken: list[bool] = []

    def noted(short: Callable[[bytes], object], data: bytes) -> object:
        found = short(data)
        taken.append(found is not None)
        return found

    for module, name in SHORT:
        monkeypatch.setattr(module, name, functools.partial(noted, getattr(module, name)))
    short_way = [_read(*exchange) for exchange in exchanges]
    for module, name in SHORT:
        monkeypatch.setattr(module, name, lambda _: None)
    assert sum(taken) > len(taken) / 2
    assert short_way == [_read(*exchange) for exchange in exchanges]
