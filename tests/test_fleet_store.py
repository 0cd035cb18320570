"""Sessions in Redis, and leases: a conversation goes on at another worker, and one has it at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio
from redis_server import Fleet, RedisServer, needs_redis, redis_server
from store_contract import StoreContract, numbered

from alloy_trio import InvalidOption, StoreError
from alloy_trio.fleet import LeaseLost, RedisStore

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_redis


class TestRedisStore(StoreContract):
    """One server for all; a folder is a prefix in it."""

    url: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _server(self, shared_redis: RedisServer) -> None:
        type(self).url = shared_redis.url

    def make(self, folder: Path) -> RedisStore:
        return RedisStore(self.url, prefix=f"store{abs(hash(folder))}")


async def test_a_conversation_goes_on_at_another_worker(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            for turn in range(1, 4):
                async with fleet.working():
                    result = await queue.chat("echo", "hello", session_id="s")
                    assert result.text == f"{turn}: hello"
                    assert len(result.messages) == 2 * turn
            async with fleet.working():
                assert (await queue.chat("echo", "hello", session_id="other")).text == "1: hello"


async def test_a_conversation_may_have_an_end(fleet: Fleet) -> None:
    """So many seconds after its last word. A store that keeps it for ever does so from its next word on."""

    async def seconds_left() -> set[int]:
        return {await fleet.redis("TTL", key) for key in await fleet.keys() if ":s:{" in key}

    with trio.fail_after(10):
        async with fleet.queue() as queue:
            async with fleet.working(fleet.worker(keep_sessions=100)):
                await queue.chat("echo", "hello", session_id="s")
            assert seconds_left_of(await seconds_left(), 100)
            async with fleet.store(keep=1000) as store:
                records = await store.load("s")
                await store.rewrite("s", records)
                assert seconds_left_of(await seconds_left(), 1000)
            async with fleet.working():
                assert len((await queue.chat("echo", "hello", session_id="s")).messages) == 4
            assert await seconds_left() == {-1}
    with pytest.raises(InvalidOption, match="keep_sessions"):
        fleet.worker(keep_sessions=0)


def seconds_left_of(found: set[int], most: int) -> bool:
    return bool(found) and all(most - 10 < each <= most for each in found)


async def test_a_session_is_run_by_one_at_a_time(fleet: Fleet) -> None:
    """Also where requests to it come under different orders, past the line of the queue."""
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working(fleet.worker(), fleet.worker()):
            requests = [
                await queue.submit("echo", f"pause {number}", session_id="s", order=f"o{number}") for number in range(6)
            ]
            texts = sorted([(await each.result()).text.partition(":")[0] for each in requests])
            assert texts == ["1", "2", "3", "4", "5", "6"]
            assert fleet.echo.most == 1


async def test_requests_of_a_session_keep_their_order(fleet: Fleet) -> None:
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working(fleet.worker(), fleet.worker()):
            requests = [await queue.submit("echo", f"n {number}", session_id="s") for number in range(8)]
            assert [(await each.result()).text for each in requests] == [f"{n + 1}: n {n}" for n in range(8)]


async def test_a_worker_that_dies_leaves_its_session_to_another(fleet: Fleet) -> None:
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            dying = fleet.worker(visibility=0.5)
            async with fleet.working(dying):
                await queue.chat("echo", "hello", session_id="s")
                request = await queue.submit("echo", "wait", session_id="s")
                await fleet.echo.is_waiting.wait()
                dying._link.run = _away  # type: ignore[method-assign]
            fleet.echo.go_on.set()
            async with fleet.working(fleet.worker(visibility=0.5)):
                assert (await request.result()).messages[0].text == "hello"


async def _away(*_: Any, **__: Any) -> Any:
    raise StoreError("cut off")


async def test_a_lease_keeps_others_from_writing(fleet: Fleet) -> None:
    async with fleet.store() as store, fleet.store() as other:
        with trio.fail_after(10):
            async with store.lease("s") as lease:
                assert lease.session_id == "s"
                await lease.append("s", numbered("a"))
                for another in (store, other):
                    with pytest.raises(StoreError, match="leased"):
                        await another.append("s", numbered("b", first=2))
                assert await other.load("s") == numbered("a")
                await other.append("t", numbered("a"))
            await other.append("s", numbered("b", first=2))
            with pytest.raises(LeaseLost, match="nothing was written"):
                await lease.append("s", numbered("c", first=3))
            assert await store.load("s") == numbered("a", "b")


async def test_one_waits_for_a_lease(fleet: Fleet) -> None:
    has: list[int] = []

    async def have(store: RedisStore, number: int) -> None:
        async with store.lease("s", seconds=5.0):
            has.append(number)
            assert len(has) == 1
            await trio.sleep(0.05)
            has.remove(number)

    async with fleet.store() as store, fleet.store() as other:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(have, store, number)
                    nursery.start_soon(have, other, number)


async def test_a_lease_is_renewed(fleet: Fleet) -> None:
    async with fleet.store() as store, fleet.store() as other:
        with trio.fail_after(10):
            async with store.lease("s", seconds=0.3):
                with trio.move_on_after(1.0) as waited:
                    async with other.lease("s", seconds=0.3):
                        pass
                assert waited.cancelled_caught
            async with other.lease("s"):
                pass


async def test_whoever_loses_a_lease_is_cancelled(fleet: Fleet) -> None:
    """And can write no more, also before it has heard of it."""
    async with fleet.store() as store:
        with trio.fail_after(10):
            with pytest.raises(LeaseLost, match="was cancelled"):
                async with store.lease("s", seconds=0.6) as lease:
                    await lease.append("s", numbered("a"))
                    (key,) = [each for each in await fleet.keys() if ":lease:" in each]
                    await fleet.redis("SET", key, "somebody else")
                    with pytest.raises(LeaseLost):
                        await lease.append("s", numbered("b", first=2))
                    await trio.sleep_forever()
            assert await fleet.redis("GET", key) == b"somebody else"


async def test_a_lease_ends_where_redis_is_away_for_too_long(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        fleet = Fleet(server.url)
        with trio.fail_after(10):
            async with fleet.store(patience=0.1) as store:
                with pytest.raises(LeaseLost):
                    async with store.lease("s", seconds=0.5) as lease:
                        await trio.to_thread.run_sync(server.stop)
                        with pytest.raises(StoreError, match=r"could not be used for 0\.1 seconds"):
                            await lease.append("s", numbered("a"))
                        await trio.sleep_forever()


@pytest.mark.parametrize("error", [KeyError("of the body"), ExceptionGroup("of the body", [KeyError(1)])], ids=str)
async def test_what_the_body_of_a_lease_raises_leaves_as_it_came(error: Exception, fleet: Fleet) -> None:
    async with fleet.store() as store:
        with pytest.raises((KeyError, ExceptionGroup)) as caught:
            async with store.lease("s"):
                raise error
        assert caught.value is error
        assert await fleet.keys() == []


async def test_a_session_whose_lease_is_lost_is_run_again(fleet: Fleet) -> None:
    """By somebody who has it; the run that had it ends."""
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=0.6)):
            request = await queue.submit("echo", "wait", session_id="s")
            await fleet.echo.is_waiting.wait()
            (key,) = [each for each in await fleet.keys() if ":lease:" in each]
            await fleet.redis("SET", key, "somebody else", "PX", "1000")
            while fleet.echo.running:  # noqa: ASYNC110 - it ends by itself
                await trio.sleep(0.02)
            fleet.echo.go_on.set()
            result = await request.result()
            assert result.messages[-1].text.endswith(": wait")
            assert (await queue.statistics("echo")).done == 1


async def test_a_store_that_is_not_open_says_so(fleet: Fleet) -> None:
    store = fleet.store()
    with pytest.raises(StoreError, match="not open"):
        await store.load("s")
    with pytest.raises(StoreError, match="not open"):
        store.lease("s")
    async with store:
        with pytest.raises(StoreError, match="open already"):
            await store.__aenter__()
        with pytest.raises(InvalidOption, match="seconds="):
            store.lease("s", seconds=0)
    with pytest.raises(InvalidOption, match="prefix="):
        RedisStore(prefix="a b")


async def test_who_gives_up_waiting_for_a_lease_leaves_none(fleet: Fleet) -> None:
    """Though Redis may give it to them after all."""
    async with fleet.store() as store, fleet.store() as other:
        with trio.fail_after(10):
            async with store.lease("another"):
                pass
            await fleet.redis("CLIENT", "PAUSE", "500", "WRITE")
            with trio.move_on_after(0.2) as waited:
                async with store.lease("s"):
                    pass
            assert waited.cancelled_caught
            async with other.lease("s"):
                pass


@pytest.mark.parametrize("value", ["", "nonsense", "99", b"\xff", b"1:\xff"])
async def test_records_of_somebody_else_s_are_an_error_of_ours(value: str | bytes, fleet: Fleet) -> None:
    async with fleet.store() as store:
        await store.append("s", numbered("a"))
        (log,) = [key for key in await fleet.keys() if ":log:" in key]
        await fleet.redis("HSET", log, "1", value)
        for write in (store.append, store.rewrite):
            with pytest.raises(StoreError):
                await write("s", numbered("a"))
        with pytest.raises(StoreError, match="cannot be read"):
            await store.load("s")
        await fleet.redis("RENAME", log, log.encode() + b"\xff")
        assert await store.sessions() == ["s\ufffd"]


async def test_a_redis_that_is_away_as_a_run_is_saved_fails_no_run(tmp_path: Path) -> None:
    """The worker waits for it, as long as the request is its own."""
    with redis_server(tmp_path, aof=True) as server, trio.fail_after(20):
        fleet = Fleet(server.url)
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=20.0, patience=0.3)):
            request = await queue.submit("echo", "wait", session_id="s")
            await fleet.echo.is_waiting.wait()
            await trio.to_thread.run_sync(server.stop)
            fleet.echo.go_on.set()
            await trio.sleep(1.0)
            await trio.to_thread.run_sync(server.start)
            assert (await request.result()).text == "1: wait"
            assert (await queue.chat("echo", "again", session_id="s")).text == "2: again"
