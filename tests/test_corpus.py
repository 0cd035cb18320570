"""Recorded traffic: answers are read as the vendors' own SDKs read them, and requests are what the recorded clients sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from corpus_adapter import said
from corpus_habits import UNEXPLAINED
from corpus_requests import ABSENT, CORPUS, WIRES, difference, scorer, table, verdicts

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=ABSENT)

# Of the requests that continue a recorded conversation, how many are equal to ours. Each of the others has a reason that is
# found by rule: what the recorded client did by choice, or a server's own tools and settings. `corpus_requests.py` prints them.
AGREEING = {"anthropic": (116, 133), "openai_responses": (103, 138), "openai_chat": (136, 162)}

Parsed = dict[str, Any]


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
