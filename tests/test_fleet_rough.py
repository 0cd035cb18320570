"""What comes in between: moments between two steps, and entries of somebody else's in Redis."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from fleet_agents import Echo
from redis_server import Fleet, needs_redis

from alloy_trio.fleet import RequestPoisoned
from alloy_trio.fleet._scripts import BEGIN, RELEASE

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
            await nursery.start(worker.serve)
            after(worker, BEGIN, trio.sleep_forever)
            request = await queue.submit("echo", "hello")
            while not (await queue.statistics("echo")).running:  # noqa: ASYNC110 - another end says so, through Redis
                await trio.sleep(0.01)
            if how == "stop":
                worker.stop()
            else:
                nursery.cancel_scope.cancel()
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=60.0, max_tries=1)):
            request = await queue.find("echo", request.request_id)
            assert (await request.result()).text == "1: hello"


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
