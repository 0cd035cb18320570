"""The targets of `nox -s fuzz`, on their seeds and a few mutants of them: so that they hold when somebody runs them for longer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
from fuzz_kit import NAMES, cut
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = settings().max_examples  # 100, or more by the profile `deep`
PIECES = st.binary(min_size=1, max_size=4) | st.sampled_from(
    [
        b"null",
        b"{}",
        b"[]",
        b'"',
        b"\\ud83d",
        b"-1",
        b"1e999",
        b"\n\n",
        b"\r\n",
        b"data: ",
        b"\xff",
        b"{",
        b"}",
        b"9" * 30,
    ]
)


def mutants(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    @st.composite
    def mutant(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(0, 3))):
            place, size = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
            data = data[:place] + draw(PIECES | st.just(b"")) + data[place + size :]
        return data

    return mutant()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_mutants(name: str) -> None:
    target = importlib.import_module(f"target_{name}")
    check: Callable[[bytes], None] = target.check
    for seed in target.SEEDS:
        check(seed)

    @settings(max_examples=EXAMPLES)
    @given(mutants(target.SEEDS))
    def holds(data: bytes) -> None:
        check(data)

    holds()


@given(st.binary(max_size=200))
def test_a_cut_loses_nothing(data: bytes) -> None:
    assert b"".join(cut(data)) == data
    assert cut(data) == cut(data)
