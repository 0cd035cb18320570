"""What comes in between: moments between two steps, and entries of somebody else's in Redis."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from fleet_agents import Echo
from redis_server import Fleet, needs_redis

from alloy_trio import InvalidOption, RequestCancelled, UnknownRequest
from alloy_trio.fleet import QueuedRequest, RedisQueue, RedisUnavailable, RequestPoisoned, Worker, WorkerError
from alloy_trio.fleet._scripts import BEGIN, CLAIM, RELEASE

pytestmark = needs_redis


def after(worker: Any, script: object, wait: Any) -> None:
    """Let `wait` pass before the worker hears what a script of it has said."""
    run = worker._link.run

    async def slow(what: object, *args: Any, **options: Any) -> Any:
        said = await run(what, *args, **options)
        if what is script:
            await wait()
        return said

    worker._link.run = slow


async def begun_unheard(worker: Worker, queue: RedisQueue, nursery: trio.Nursery) -> QueuedRequest:
    """Have a worker begin a request in Redis, and never hear that it may."""
    await nursery.start(worker.serve)
    after(worker, BEGIN, trio.sleep_forever)
    request = await queue.submit("echo", "hello")
    while not (await queue.statistics("echo")).running:  # noqa: ASYNC110 - another end says so, through Redis
        await trio.sleep(0.01)
    return request


async def away(*_: object, **__: object) -> None:
    raise RedisUnavailable("cut off")


async def test_what_is_given_back_is_taken_again_by_the_same_worker(fleet: Fleet) -> None:
    """At once, also where Redis hands it out again before the worker has heard that it is rid of it."""
    worker = fleet.worker(visibility=6.0)
    with trio.fail_after(10):
        async with fleet.queue() as queue, fleet.working(worker):
            after(worker, RELEASE, partial(trio.sleep, 0.1))
            request = await queue.submit("echo", "wait", session_id="s")
            await fleet.echo.is_waiting.wait()
            (key,) = [each for each in await fleet.keys() if ":lease:" in each]
            await fleet.redis("SET", key, "somebody else", "PX", "2100")
            while fleet.echo.running:  # noqa: ASYNC110 - it ends by itself
                await trio.sleep(0.02)
            fleet.echo.go_on.set()
            with trio.fail_after(2):
                await request.result()


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_what_a_worker_has_begun_without_knowing_is_no_try(how: str, fleet: Fleet) -> None:
    """Stopped before it has heard that it may begin, it gives the request back, as nobody has run it."""
    worker = fleet.worker(visibility=60.0, max_tries=1)
    with trio.fail_after(10):
        async with fleet.queue() as queue, trio.open_nursery() as nursery:
            request = await begun_unheard(worker, queue, nursery)
            if how == "stop":
                worker.stop()
            else:
                nursery.cancel_scope.cancel()
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=60.0, max_tries=1)):
            request = await queue.find("echo", request.request_id)
            assert (await request.result()).text == "1: hello"


async def test_a_cancel_of_what_a_worker_has_begun_without_knowing_waits_for_no_other(fleet: Fleet) -> None:
    worker = fleet.worker(visibility=60.0)
    with trio.fail_after(10):
        async with fleet.queue() as queue, trio.open_nursery() as nursery:
            request = await begun_unheard(worker, queue, nursery)
            with trio.move_on_after(0.1):
                await request.cancel()
            worker.stop()
            with pytest.raises(RequestCancelled):
                await request.result()
            assert (await queue.statistics("echo")).pending == 0


async def test_what_a_worker_has_taken_over_and_not_begun_is_still_a_try_of_the_dead_one(fleet: Fleet) -> None:
    """Or a request would outlive its `max_tries` by workers that are stopped in time."""
    dying, stopping = fleet.worker(visibility=0.5), fleet.worker(visibility=0.5)
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            request = await queue.submit("echo", "wait")
            async with fleet.working(dying):
                await fleet.echo.is_waiting.wait()
                dying._link.run = away  # type: ignore[method-assign]
            has_claimed = trio.Event()

            async def claimed() -> None:
                if await fleet.redis("XPENDING", fleet.key("queue"), "workers", "-", "+", "9", stopping.name):
                    has_claimed.set()
                    await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                await nursery.start(stopping.serve)
                after(stopping, CLAIM, claimed)
                await has_claimed.wait()
                stopping.stop()
            async with fleet.working(fleet.worker(max_tries=1)):
                with pytest.raises(RequestPoisoned):
                    await request.result()


async def test_what_comes_as_a_worker_stops_is_for_others_at_once(fleet: Fleet) -> None:
    """Also what its last read was handed, while it still runs something for long."""
    stopping, other = fleet.worker(visibility=60.0), fleet.worker(Echo(), visibility=60.0)
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working(stopping) as nursery:
            await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            after(stopping, BEGIN, trio.sleep_forever)
            requests = [await queue.submit("echo", f"n {number}") for number in range(3)]
            while (await queue.statistics("echo")).running < 2:  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)
            stopping.stop()
            await nursery.start(other.serve)
            for request in requests:
                assert (await request.result()).text
            assert stopping.statistics().running == 1


class Named(Exception):
    """An error of somebody else's, that has an attribute as ours have, but is no JSON."""

    model = object()


class Odd(Echo):
    async def _do(self, word: str) -> None:
        raise Named(word)


async def test_an_error_of_somebody_else_s_ends_no_worker(fleet: Fleet) -> None:
    """Whatever attributes it has."""
    with trio.fail_after(10):
        async with fleet.queue() as queue, fleet.working(fleet.worker(Odd())):
            for _ in range(2):
                with pytest.raises(WorkerError, match="Named: hello"):
                    await queue.chat("echo", "hello")


class Deadly(Echo):
    """A provider, or a tool, that ends the process."""

    async def _do(self, word: str) -> None:
        if word == "exit":
            await trio.sleep(0.05)
            raise SystemExit(3)
        await super()._do(word)


async def test_a_request_that_ends_its_workers_is_given_up(fleet: Fleet) -> None:
    """Though each of them gives back what it has: others are not to end by it for ever."""
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            request = await queue.submit("echo", "exit")
            beside = await queue.submit("echo", "wait")
            for _ in range(2):
                with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
                    async with fleet.working(fleet.worker(Deadly(), max_tries=2)):
                        await trio.sleep_forever()
            async with fleet.working(fleet.worker(max_tries=2)):
                with pytest.raises(RequestPoisoned, match="2 workers"):
                    await request.result()
                fleet.echo.go_on.set()
                assert (await beside.result()).text == "1: wait"


async def test_a_hold_lasts_from_its_beginning(fleet: Fleet) -> None:
    """Not from when the request was handed out, so that no other worker takes it before ours is cancelled."""
    worker = fleet.worker(visibility=3.0)
    with trio.fail_after(10):
        async with fleet.queue() as queue, fleet.working(worker):
            link: Any = worker._link
            run = link.run
            began = 0.0

            async def later(what: object, *args: Any, **options: Any) -> Any:
                nonlocal began
                if what is BEGIN:
                    await trio.sleep(0.5)
                    began = trio.current_time()
                return await run(what, *args, **options)

            link.run = later
            await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            ((_, _, idle, _),) = await fleet.redis("XPENDING", fleet.key("queue"), "workers", "-", "+", "9")
            assert idle / 1000 < trio.current_time() - began + 0.1


async def test_what_somebody_else_has_put_into_redis_stops_no_worker(fleet: Fleet) -> None:
    """Entries that are none, and a request that lacks what every request has: those beside them are run."""
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"n {number}", request_id=f"r{number}") for number in range(4)]
            await fleet.redis("HDEL", fleet.key("r:r0"), "tries")
            await fleet.redis("HDEL", fleet.key("r:r1"), "body")
            for words in (["id", b"\xff\xfe"], ["id", "nothing"], ["id", ""], ["a", "b"], ["a", "b", "id", b"\xff"]):
                await fleet.redis("XADD", fleet.key("queue"), "*", *words)
            async with fleet.working(worker := fleet.worker(visibility=0.3)):
                assert (await requests[0].result()).text == "1: n 0"
                with pytest.raises(WorkerError):
                    await requests[1].result()
                for number in (2, 3):
                    assert (await requests[number].result()).text == f"1: n {number}"
                await fleet.redis("XADD", fleet.key(f"ctl:{worker.name}"), "*", "id", b"\xff")
                (key,) = [each for each in await fleet.keys() if ":to:" in each]
                await fleet.redis("XADD", key, "*", "id", b"\xff")
                assert (await queue.chat("echo", "hello")).text == "1: hello"
                assert await fleet.redis("XLEN", fleet.key("queue")) == 0


async def test_a_line_goes_on_whose_first_is_gone(fleet: Fleet) -> None:
    """Thrown away by Redis, or by hand: who waits for it submits it again, and those behind it are not kept waiting."""
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"n {number}", order="x") for number in range(3)]
            await fleet.redis("DEL", fleet.key(f"r:{requests[0].request_id}"))
            async with fleet.working():
                requests.append(await queue.submit("echo", "n 3", order="x"))
                for number, request in enumerate(requests):
                    assert (await request.result()).text == f"1: n {number}"
            assert not [each for each in await fleet.keys() if ":line:" in each]


async def test_a_line_goes_on_whose_first_nobody_misses(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thrown away in the same way, when its submitter has left: who waits behind it looks now and then."""
    monkeypatch.setattr("alloy_trio.fleet._queue.LOOK_EVERY", 0.5)
    with trio.fail_after(20):
        async with fleet.queue() as left:
            first = await left.submit("echo", "n 0", order="x")
        async with fleet.queue() as queue:
            second = await queue.submit("echo", "n 1", order="x")
            await fleet.redis("DEL", fleet.key(f"r:{first.request_id}"))
            async with fleet.working():
                assert (await second.result()).text == "1: n 1"


async def test_what_redis_has_thrown_away_is_not_open(fleet: Fleet) -> None:
    """Nor counts as such when nobody asks for it any more."""
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"n {number}", order="x") for number in range(3)]
        for request in requests[:2]:
            await fleet.redis("DEL", fleet.key(f"r:{request.request_id}"))
        async with fleet.queue() as queue, fleet.working():
            assert (await queue.chat("echo", "last", order="x")).text == "1: last"
            assert (await queue.statistics("echo")).pending == 0


async def test_a_worker_serves_again(fleet: Fleet) -> None:
    """When it has ended, as a supervisor lets it; not twice at once."""
    worker = fleet.worker()
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    await nursery.start(worker.serve)
                    with pytest.raises(InvalidOption, match="serves already"):
                        await worker.serve()
                    assert (await queue.chat("echo", "hello")).text == "1: hello"
                    worker.stop()


async def test_an_answer_to_what_was_given_up_is_not_counted(fleet: Fleet) -> None:
    """It came too late, though nobody has begun the request after this worker."""
    slow = fleet.worker(visibility=60.0)
    with trio.fail_after(20):
        async with fleet.working(slow), fleet.queue() as queue:
            request = await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            async with fleet.working(fleet.worker(Echo(), visibility=0.3, max_tries=1)):
                with pytest.raises(RequestPoisoned):
                    await request.result()
            fleet.echo.go_on.set()
            while slow.statistics().running:  # noqa: ASYNC110 - it ends by itself
                await trio.sleep(0.01)
            assert (slow.statistics().answered, slow.statistics().lost) == (0, 1)


async def test_one_of_two_who_submit_the_same_gives_up(fleet: Fleet) -> None:
    """The other one's request is answered all the same."""
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue, trio.open_nursery() as nursery:
            await queue.chat("echo", "before")
            texts: list[str] = []

            async def second() -> None:
                request = await queue.submit("echo", "hello", request_id="a")
                texts.append((await request.result()).text)

            with trio.CancelScope() as scope:
                nursery.start_soon(second)
                trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
                await queue.submit("echo", "hello", request_id="a")
            assert scope.cancelled_caught
            while not texts:  # noqa: ASYNC110 - it comes
                await trio.sleep(0.01)
            assert (texts, queue._open) == (["1: hello"], {})


async def test_a_queue_that_was_left_asks_nothing(fleet: Fleet) -> None:
    """And says so at once, not when its patience has ended."""
    async with fleet.queue() as queue:
        request = await queue.submit("echo", "hello")
    with trio.fail_after(1):
        for ask in (
            partial(queue.submit, "echo", "hello"),
            partial(queue.chat, "echo", "hello"),
            partial(queue.find, "echo", "a"),
            partial(queue.statistics, "echo"),
            request.cancel,
        ):
            with pytest.raises(RedisUnavailable, match="was left"):
                await ask()


async def test_an_id_that_somebody_else_has_is_refused_and_theirs_is_answered(fleet: Fleet) -> None:
    """To who has found it here as well, though the same queue was asked for another thing by that id."""
    with trio.fail_after(10):
        async with fleet.queue() as theirs, fleet.queue() as ours:
            await theirs.submit("echo", "hello", request_id="a")
            found = await ours.find("echo", "a")
            for _ in range(2):
                with pytest.raises(InvalidOption, match="used for another"):
                    await ours.submit("echo", "there", request_id="a")
            async with fleet.working():
                assert (await found.result()).text == "1: hello"


@pytest.mark.parametrize(
    "answer", ['{"result": {"text": "x"}}', '{"error": {}}', "nonsense", "[]", "5", "[" * 100_000, b"\xff"]
)
async def test_an_answer_that_cannot_be_read_is_an_error_of_ours(answer: str | bytes, fleet: Fleet) -> None:
    async with fleet.queue() as queue:
        request = await queue.submit("echo", "hello")
        await fleet.redis("HSET", fleet.key(f"r:{request.request_id}"), "state", "done", "answer", answer)
        with trio.fail_after(5):
            found = await queue.find("echo", request.request_id)
            with pytest.raises(WorkerError, match="the answer cannot be read"):
                await found.result()


async def test_what_a_dead_worker_has_left_does_not_wait_one_by_one(fleet: Fleet) -> None:
    """A busy worker goes on taking over whenever it has room, until nothing is left."""
    dying, other = fleet.worker(visibility=2.0), fleet.worker(second := Echo(), visibility=2.0, concurrency=1)
    with trio.fail_after(20):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"wait {number}") for number in range(10)]
            async with fleet.working(dying):
                while fleet.echo.running < 10:  # noqa: ASYNC110 - it takes them
                    await trio.sleep(0.01)
                dying._link.run = away  # type: ignore[method-assign]
            second.go_on.set()
            async with fleet.working(other):
                with trio.fail_after(8):  # one by one it would be 11 seconds
                    for request in requests:
                        await request.result()


async def test_an_id_that_was_used_again_has_no_answer_for_who_used_it_first(fleet: Fleet) -> None:
    """Who was away for longer than answers are kept is told so, not what somebody else has asked."""
    with trio.fail_after(20):
        async with fleet.queue(keep=1.0) as queue:
            request = await queue.submit("echo", "hello", request_id="a")
            await fleet.redis("DEL", fleet.key("r:a"))
            async with fleet.working(), fleet.queue() as other:
                assert (await other.chat("echo", "there", request_id="a")).text == "1: there"
                for _ in range(2):
                    with pytest.raises(UnknownRequest, match="used again"):
                        await request.result()
                with pytest.raises(InvalidOption, match="used for another"):
                    await queue.submit("echo", "hello", request_id="a")
                assert queue._open == {}
