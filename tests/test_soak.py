"""`soak.py` does what it says; that nothing grows takes an hour to see: `nox -s soak`."""

from __future__ import annotations

import soak


async def test_every_request_is_accounted_for() -> None:
    found = await soak.soak(minutes=0.04, agents=8, seed=1)
    assert [each for each in found if "grew" not in each] == []


def test_what_does_not_add_up_is_said() -> None:
    count = soak.Count(made=3, sent={"a", "b"})
    count.ends["answered"] = 2
    count.published.update(["a", "a"])
    count.settle()
    assert count.faults() == [
        "1 requests have no end",
        "1 results were published more than once",
        "1 results were never published",
    ]


def test_what_grows_is_said() -> None:
    look = soak.Look(memory=100.0, tasks=10, threads=3, descriptors=9)
    assert soak.grown([look] * 10) == []
    more = soak.Look(memory=120.0, tasks=11, threads=3, descriptors=9)
    assert soak.grown([look] * 8 + [more] * 2) == ["tasks grew from 10 to 11", "memory grew from 100 to 120 MB"]
