"""
What every `SessionStore` has to do, as tests: for ours, and for one of your own.

    class TestMyStore(StoreContract):
        def make(self, folder: Path) -> MyStore:
            return MyStore(folder / "sessions.db")

`make` is called once more, for the same folder, to see what outlives a store that has been left.
"""

from __future__ import annotations

import itertools
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from alloy_trio import StoreError
from alloy_trio.sessions import Record, SessionStore
from alloy_trio.testing import cancel_at_every_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType


class OpenStore(SessionStore, Protocol):
    """A store that is opened by `async with`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


SECRET = "sk-very-secret"  # in every record that is refused: no message may show it

IDS = [
    *(
        "s",
        "S",
        "%53",
        "%73",
        ".",
        "..",
        "/",
        "../up",
        "a/b",
        "a%2fb",
        "a%2Fb",
        "a\\b",
        "ü",
        "u\u0308",
        "con",
        "a b",
        "a\nb",
    ),
    *("a\0b", "s.jsonl", "s.jsonl.tmp", "store.lock", "*", "?", "'; DROP TABLE records; --", "日本" * 100, "-"),
    *("x" * 500, "x" * 500 + "y", "X" * 500, "s" * 200, "s" * 201, "~" * 90, "@", "1"),
]

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, 2**70, 1.5, 1e300, -0.0, "", "ü 日本 \0 \n \u2028 \x7f", "\ufffd", "🂡", '"\\'),
    *([], {}, [[[]]], {"": {"": None}}, {"a": [1, {"b": [None]}]}, "x" * 100_000),
]

TREE: Any = {}
for _ in range(100_000):
    TREE = {"a": TREE}

REFUSED = [
    *((seq, "k", {"key": SECRET}) for seq in (0, -1, 2**63, True, 1.0, "1", None)),
    *((1, kind, {"key": SECRET}) for kind in (None, 5, "\ud800")),
    *(
        (1, "k", data)
        for data in (
            [SECRET],
            SECRET,
            None,
            {"key": object()},
            {(1, 2): SECRET},
            {"a": SECRET, "b": TREE},
            {"a": {SECRET + "\ud800"}},
        )
    ),
]


def numbered(*values: Any, first: int = 1, kind: str = "message") -> list[Record]:
    return [Record(seq, kind, {"value": value}) for seq, value in enumerate(values, first)]


async def refuses(write: Any, *args: Any, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        await write(*args)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


Step = tuple[str, str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "again", "other", "gap", "rewrite", "delete", "reopen"]),
        st.sampled_from(["a", "B", "long" * 100]),
        st.integers(0, 3),
    ),
    max_size=25,
)


class Model:
    """What a store has to have, after steps that it was told to take."""

    def __init__(self) -> None:
        self.logs: dict[str, list[Record]] = {}
        self.count = 0

    def new(self, session: str, count: int, gap: int = 0) -> list[Record]:
        log = self.logs.get(session, [])
        self.count += count
        values = [f"{SECRET} {number}" for number in range(self.count - count, self.count)]
        return numbered(*values, first=(log[-1].seq if log else 0) + 1 + gap)

    async def step(self, store: SessionStore, step: Step) -> None:
        verb, session, count = step
        log = self.logs.get(session, [])
        match verb:
            case "append":
                records = self.new(session, count)
                await store.append(session, records)
                self.put(session, log + records)
            case "again":
                await store.append(session, log[len(log) - count :])
            case "other" if log:
                await refuses(
                    store.append, session, [Record(log[-1].seq, "message", {"value": SECRET})], says="somebody else"
                )
            case "gap" if count:
                await refuses(store.append, session, self.new(session, 1, gap=count), says="does not go on")
            case "rewrite":
                records = [*log[:1], *self.new(session, 1, gap=count)]
                await store.rewrite(session, records)
                self.put(session, records)
            case "delete":
                await store.delete(session)
                self.put(session, [])

    def put(self, session: str, log: list[Record]) -> None:
        self.logs[session] = log
        if not log:
            del self.logs[session]

    async def compare(self, store: SessionStore) -> None:
        assert await store.sessions() == sorted(self.logs)
        for session, log in self.logs.items():
            assert await store.load(session) == log


class StoreContract:
    """The tests. Give it `make` in a class whose name begins with `Test`."""

    def make(self, folder: Path) -> OpenStore:
        raise NotImplementedError

    async def test_a_session_that_is_not_known_is_empty(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            assert list(await store.load("s")) == []
            await store.delete("s")
            await store.append("s", [])
            assert list(await store.sessions()) == []

    async def test_what_was_appended_is_loaded_in_order(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", "b"))
            await store.append("s", numbered("c", first=3, kind="result"))
            assert await store.load("s") == [*numbered("a", "b"), *numbered("c", first=3, kind="result")]

    async def test_it_outlives_the_store(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", "b"))
        async with self.make(tmp_path) as store:
            assert await store.load("s") == numbered("a", "b")
            await store.append("s", numbered("c", first=3))
            await store.append("s", numbered("c", first=3))
            assert await store.load("s") == numbered("a", "b", "c")

    async def test_any_json_comes_back_as_it_was(self, tmp_path: Path) -> None:
        records = numbered(*VALUES, kind='ü"\n')
        async with self.make(tmp_path) as store:
            await store.append("s", records)
        async with self.make(tmp_path) as store:
            assert await store.load("s") == records
            assert [type(record.data["value"]) for record in await store.load("s")] == [*map(type, VALUES)]

    async def test_what_utf_8_cannot_carry_is_replaced(self, tmp_path: Path) -> None:
        """A model may write half a character; the conversation goes on."""
        async with self.make(tmp_path) as store:
            await store.append("s", [Record(1, "k", {"\ud800": ["a\udfff", "\ud83c\udca1"]})])
            assert await store.load("s") == [Record(1, "k", {"\ufffd": ["a\ufffd", "🂡"]})]

    async def test_nobody_shares_its_data(self, tmp_path: Path) -> None:
        """What is changed after a write, or after a read, is not changed in the store."""
        records = numbered(["a"])
        async with self.make(tmp_path) as store:
            await store.append("s", records)
            records[0].data["value"].append("b")
            (await store.load("s"))[0].data["value"].append("c")
            assert await store.load("s") == numbered(["a"])

    async def test_a_record_of_eight_megabytes(self, tmp_path: Path) -> None:
        records = numbered("x" * 2**23, "y")
        async with self.make(tmp_path) as store:
            await store.append("s", records)
        async with self.make(tmp_path) as store:
            assert await store.load("s") == records

    async def test_ids_are_anything(self, tmp_path: Path) -> None:
        """No two sessions get into each other's way, whatever they are called."""
        async with self.make(tmp_path) as store:
            for session in IDS:
                await store.append(session, numbered(session))
        async with self.make(tmp_path) as store:
            assert await store.sessions() == sorted(IDS)
            for session in IDS:
                await store.append(session, numbered("b", first=2))
                assert await store.load(session) == numbered(session, "b")
            for session in IDS[::2]:
                await store.delete(session)
            assert await store.sessions() == sorted(IDS[1::2])
        assert not list(tmp_path.parent.glob("up*"))

    @pytest.mark.parametrize("session", ["", None, 5, b"s", "\ud800"], ids=repr)
    async def test_what_is_no_id_is_refused(self, session: Any, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await refuses(store.load, session, says="session id")
            await refuses(store.append, session, [], says="session id")
            await refuses(store.rewrite, session, [], says="session id")
            await refuses(store.delete, session, says="session id")

    @pytest.mark.parametrize(("seq", "kind", "data"), REFUSED, ids=range(len(REFUSED)))
    async def test_what_is_no_record_is_refused(self, seq: Any, kind: Any, data: Any, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            for write in (store.append, store.rewrite):
                await refuses(write, "s", [Record(seq, kind, data)], says="session 's'")
            assert await store.sessions() == []

    # Numbers

    async def test_a_write_may_be_repeated(self, tmp_path: Path) -> None:
        """One that was not acknowledged in time may have arrived: equal content is left as it is."""
        async with self.make(tmp_path) as store:
            await store.append("s", [Record(1, "k", {"a": 1, "b": [2]}), *numbered("b", first=2)])
            await store.append("s", [Record(1, "k", {"b": (2,), "a": 1})])
            await store.append("s", numbered("b", "c", first=2))
            await store.append("s", numbered("c", first=3))
            assert [record.seq for record in await store.load("s")] == [1, 2, 3]

    @pytest.mark.parametrize(
        "record",
        [
            Record(2, "message", {"value": SECRET}),
            Record(2, "result", {"value": True}),
            Record(2, "message", {"value": 1}),
            Record(2, "message", {"value": True, "more": None}),
        ],
        ids=["value", "kind", "type", "key"],
    )
    async def test_other_content_is_somebody_else_s(self, record: Record, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", True, "c"))
            await refuses(store.append, "s", [record], says="record 2 is stored already.*somebody else")
            await refuses(store.append, "s", [record, *numbered(SECRET, first=4)], says="somebody else")
            await refuses(store.rewrite, "s", [record, *numbered(SECRET, first=4)], says="somebody else")
            assert await store.load("s") == numbered("a", True, "c")

    async def test_an_append_goes_on_from_the_last_number(self, tmp_path: Path) -> None:
        """After a write that failed, those behind it are refused: a log has no holes."""
        async with self.make(tmp_path) as store:
            await refuses(store.append, "s", numbered(SECRET, first=2), says="does not go on from 0")
            await store.append("s", numbered("a"))
            await refuses(store.append, "s", numbered(SECRET, first=3), says="does not go on from 1")
            await refuses(store.append, "s", [*numbered("b", first=2), *numbered(SECRET, first=4)], says="from 2")
            assert await store.load("s") == numbered("a")

    @pytest.mark.parametrize("seqs", [(1, 1), (2, 1), (1, 2, 2)])
    async def test_numbers_rise_within_a_write(self, seqs: Sequence[int], tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            for write in (store.append, store.rewrite):
                await refuses(write, "s", [Record(seq, "k", {"a": SECRET}) for seq in seqs], says="have to rise")
            assert await store.sessions() == []

    async def test_a_rewrite_replaces_all(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", "b"))
            await store.append("t", numbered("a"))
            await store.rewrite("s", numbered("ab", first=3))
            await store.append("s", numbered("c", first=4))
        async with self.make(tmp_path) as store:
            assert await store.load("s") == numbered("ab", "c", first=3)
            assert await store.load("t") == numbered("a")

    async def test_a_rewrite_may_leave_a_gap_and_keep_records(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", "b"))
            kept = [*numbered("a"), *numbered("c", first=9)]
            await store.rewrite("s", kept)
            await store.rewrite("s", kept)  # as after a time-out
            await store.append("s", numbered("d", first=10))
            assert await store.load("s") == [*kept, *numbered("d", first=10)]

    async def test_numbers_rise_across_rewrites(self, tmp_path: Path) -> None:
        """What was replaced is not written again, and an old rewrite does not undo newer records."""
        async with self.make(tmp_path) as store:
            await store.append("s", numbered("a", "b"))
            await refuses(store.rewrite, "s", numbered(SECRET), says="somebody else")
            await refuses(store.rewrite, "s", numbered("a"), says="somebody else")
            await store.rewrite("s", numbered("c", first=3))
            await store.append("s", numbered("d", first=4))
            await refuses(store.append, "s", numbered("b", first=2), says="somebody else")
            await refuses(store.rewrite, "s", numbered("c", first=3), says="somebody else")
            assert await store.load("s") == numbered("c", "d", first=3)

    async def test_deleted_sessions_begin_anew(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            for forget in (store.delete("s"), store.rewrite("s", [])):
                await store.append("s", numbered("a", "b"))
                await forget
                assert await store.load("s") == []
                assert await store.sessions() == []
                await refuses(store.append, "s", numbered(SECRET, first=3), says="deleted")
                await store.append("s", numbered("new"))
                assert await store.load("s") == numbered("new")
                await store.delete("s")

    # Tasks

    async def test_writes_are_done_in_the_order_of_the_calls(self, tmp_path: Path) -> None:
        """Also by tasks that run at the same moment. A read comes after what was written before."""
        async with self.make(tmp_path) as store:
            for _ in range(5):
                numbers = itertools.count(1)

                async def write(numbers: Iterator[int] = numbers) -> None:
                    seq = next(numbers)
                    await store.append("s", numbered(seq, first=seq))
                    assert len(await store.load("s")) >= seq

                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(write)
                await store.delete("s")

    async def test_many_tasks_write_many_sessions(self, tmp_path: Path) -> None:
        async def write(store: SessionStore, session: str) -> None:
            for seq in range(1, 11):
                await store.append(session, numbered(seq, first=seq))

        async with self.make(tmp_path) as store:
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(write, store, str(number))
            for number in range(30):
                assert await store.load(str(number)) == numbered(*range(1, 11))

    async def test_a_writer_that_does_not_fit_fails_by_itself(self, tmp_path: Path) -> None:
        """Those who write at the same moment are not disturbed."""
        failed = []

        async def write(store: SessionStore, record: Record) -> None:
            try:
                await store.append("s", [record])
            except StoreError as error:
                failed.append(str(error))

        async with self.make(tmp_path) as store:
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(write, store, Record(1, "k", {"value": number % 10}))
                    nursery.start_soon(store.append, str(number), numbered("a"))
            assert len(failed) == 18
            assert len(await store.sessions()) == 21

    async def test_one_who_is_cancelled_already_writes_nothing(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as store:
            with trio.CancelScope() as scope:
                scope.cancel()
                await store.append("s", numbered("a"))
            assert scope.cancelled_caught
            assert await store.load("s") == []

    @pytest.mark.parametrize("verb", ["append", "rewrite", "delete"])
    async def test_cancelled_at_every_checkpoint(self, verb: str, tmp_path: Path) -> None:
        """A cancel leaves the log as it was, or as it was to become, and the next one writes as if nothing had been."""
        before = numbered("a", "b")
        new = numbered("c", "d", first=3)
        after = {"append": before + new, "rewrite": new, "delete": []}[verb]
        args = [] if verb == "delete" else [new]
        seen = set()

        async with self.make(tmp_path) as store:
            await store.append("s", before)

            async def check(_: object) -> None:
                log = list(await store.load("s"))
                assert log in (before, after)
                seen.add(len(log))
                await store.delete("s")
                await store.append("s", before)

            async def write() -> None:
                try:
                    await getattr(store, verb)("s", *args)
                finally:
                    with trio.CancelScope(shield=True):  # the write may go on; then wait for it
                        await store.load("s")

            await cancel_at_every_checkpoint(write, check=check)
            assert len(after) in seen

    async def test_opened_and_left_under_cancels(self, tmp_path: Path) -> None:
        """Wherever a cancel falls, what was acknowledged is there afterwards, and the store can be opened again."""
        acknowledged = 0

        async def use() -> None:
            nonlocal acknowledged
            async with self.make(tmp_path) as store:
                first = len(await store.load("s")) + 1
                for seq in range(first, first + 3):
                    await store.append("s", numbered(seq, first=seq))
                    acknowledged = seq

        async def check(_: object) -> None:
            async with self.make(tmp_path) as store:
                log = await store.load("s")
            assert log == numbered(*range(1, len(log) + 1))
            assert len(log) >= acknowledged

        assert await cancel_at_every_checkpoint(use, check=check) > 3

    # Leaving

    @pytest.mark.parametrize("error", [KeyError("of the body"), ExceptionGroup("of the body", [KeyError(1)])], ids=str)
    async def test_what_the_body_raises_leaves_as_it_came(self, error: Exception, tmp_path: Path) -> None:
        with pytest.raises((KeyError, ExceptionGroup)) as caught:
            async with self.make(tmp_path) as store:
                await store.append("s", numbered("a"))
                raise error
        assert caught.value is error
        async with self.make(tmp_path) as store:
            assert await store.load("s") == numbered("a")

    async def test_a_store_may_be_opened_again(self, tmp_path: Path) -> None:
        store = self.make(tmp_path)
        for seq in range(1, 4):
            async with store:
                await store.append("s", numbered(seq, first=seq))
        async with store:
            assert await store.load("s") == numbered(1, 2, 3)

    # All of it

    def test_any_history_is_that_of_the_model(self) -> None:
        async def history(folder: Path, steps: list[Step]) -> None:
            model, store = Model(), self.make(folder)
            while steps:
                async with store:
                    while steps and (step := steps.pop(0))[0] != "reopen":
                        await model.step(store, step)
                        await model.compare(store)
                async with store:
                    await model.compare(store)

        @settings(max_examples=60)
        @given(steps=STEPS)
        def holds(steps: list[Step]) -> None:
            with tempfile.TemporaryDirectory() as folder:
                trio.run(history, Path(folder), steps)

        holds()
