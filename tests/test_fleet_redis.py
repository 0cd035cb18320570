"""A Redis that refuses, restarts, forgets, is full, or throws away what it has."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fleet_agents import Echo
from fleet_drill import Plan, drill
from redis_server import Fleet, RedisServer, needs_redis, redis_server

from alloy_trio import AgentConfig, InvalidOption
from alloy_trio.fleet import RedisPubSub, RedisStore, RedisUnavailable, Worker, open_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_redis

AGENTS = {"echo": AgentConfig(provider=Echo())}
SECRET = "sk-very-secret"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path, aof=True) as server:
        yield server


def test_workers_are_killed_and_redis_is_restarted(tmp_path: Path) -> None:
    """Each request is answered, once, by real processes; `tests/fleet_drill.py` does the same for longer."""
    plan = Plan(requests=300, kills=2, kill_every=3.0, limit=60.0)
    outcome = drill(plan, tmp_path)
    assert outcome.is_right(plan), str(outcome)
    assert outcome.restarts == 1


async def test_a_restart_loses_nothing(server: RedisServer) -> None:
    fleet = Fleet(server.url)
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working():
            running = await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            done = await queue.submit("echo", "done", request_id="done")
            await done.result()
            await trio.to_thread.run_sync(server.stop)
            async with trio.open_nursery() as nursery:
                submitted = []

                async def submit() -> None:
                    submitted.append(await queue.submit("echo", "meanwhile"))

                nursery.start_soon(submit)
                await trio.sleep(0.3)
                fleet.echo.go_on.set()
                await trio.sleep(0.2)
                await trio.to_thread.run_sync(server.start)
            assert (await running.result()).text == "1: wait"
            assert (await submitted[0].result()).text == "1: meanwhile"
            assert (await queue.chat("echo", "done", request_id="done")).text == "1: done"
            assert sorted(fleet.echo.seen) == ["done", "meanwhile", "wait"]


async def test_what_redis_forgets_is_submitted_again(tmp_path: Path) -> None:
    """A Redis without a file has nothing when it comes back; those who wait know what they have asked."""
    with redis_server(tmp_path) as server, trio.fail_after(20):
        fleet = Fleet(server.url)
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"n {number}", order="x") for number in range(5)]
            await trio.to_thread.run_sync(lambda: server.stop(kill=True))
            await trio.to_thread.run_sync(server.start)
            async with fleet.working():
                assert [(await each.result()).text for each in requests] == [f"1: n {number}" for number in range(5)]


async def test_a_redis_that_is_away_is_an_error_of_its_own(server: RedisServer) -> None:
    """To who submits, and to who waits: at once after `patience`. What was asked is answered when it is back."""
    fleet = Fleet(server.url)
    with trio.fail_after(30):
        async with fleet.queue(patience=0.5) as queue, fleet.working():
            request = await queue.submit("echo", "wait", request_id="a")
            await fleet.echo.is_waiting.wait()
            await trio.to_thread.run_sync(server.stop)
            with pytest.raises(RedisUnavailable, match=r"for 0\.5 seconds"):
                await queue.submit("echo", "hello")
            with pytest.raises(RedisUnavailable, match=r"for 0\.5 seconds"):
                await request.result()
            await trio.to_thread.run_sync(server.start)
            fleet.echo.go_on.set()
            assert (await (await queue.submit("echo", "wait", request_id="a")).result()).text == "1: wait"


async def test_a_run_ends_when_its_hold_may_be_another_one_s(server: RedisServer) -> None:
    """Without Redis nobody can know: after `visibility` it is cancelled."""
    fleet = Fleet(server.url)
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=0.6)):
            request = await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            await trio.to_thread.run_sync(server.stop)
            fleet.echo.is_waiting = trio.Event()
            while fleet.echo.running:  # noqa: ASYNC110 - it ends by itself
                await trio.sleep(0.05)
            await trio.to_thread.run_sync(server.start)
            await fleet.echo.is_waiting.wait()
            fleet.echo.go_on.set()
            assert (await request.result()).text == "1: wait"


async def test_a_worker_says_once_that_redis_is_away_and_once_that_it_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(server.url)
    with trio.fail_after(30):
        async with fleet.queue() as queue, fleet.working(fleet.worker(visibility=0.6, patience=0.1)):
            await trio.to_thread.run_sync(server.stop)
            await trio.sleep(1.5)
            await trio.to_thread.run_sync(server.start)
            assert (await queue.chat("echo", "hello")).text == "1: hello"
            while "works with Redis again" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                await trio.sleep(0.05)
    said = [record.getMessage() for record in caplog.records if "worker" in record.getMessage()]
    assert ["waits for Redis" in words for words in said] == [True, False], said


async def test_a_full_redis(server: RedisServer) -> None:
    """Nothing new is taken, and nothing is half done; what is there is run, answered and cancelled all the same, which makes room."""
    fleet = Fleet(server.url)
    with trio.fail_after(30):
        async with fleet.queue(patience=0.5) as queue, fleet.working():
            waiting = await queue.submit("echo", "wait", request_id="a")
            await fleet.echo.is_waiting.wait()
            behind = await queue.submit("nobody", "hello")
            later = await queue.submit("echo", "wait", order="o")
            last = await queue.submit("echo", "wait", order="o")
            keys = await fleet.keys()
            await fleet.redis("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(RedisUnavailable, match="it is full"):
                await queue.submit("echo", "hello")
            assert await fleet.keys() == keys
            assert await behind.cancel()
            async with fleet.queue() as other:
                found = await other.find("echo", "a")
                again = await other.submit("echo", "wait", request_id="a")
                fleet.echo.go_on.set()
                assert (await found.result()).text == (await again.result()).text == "1: wait"
            assert (await waiting.result()).text == "1: wait"
            assert (await later.result()).text == "1: wait"
            assert (await last.result()).text == "1: wait"
            with pytest.raises(RedisUnavailable, match="it is full"):
                await queue.submit("echo", "hello")
            await fleet.redis("CONFIG", "SET", "maxmemory", "0")
            assert (await queue.chat("echo", "hello")).text == "1: hello"


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_throws_away_is_refused(policy: str, tmp_path: Path) -> None:
    said = f"policy is {policy}; set it to noeviction"
    with redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", policy) as server:  # noqa: SIM117 - the server is not what raises
        with pytest.raises(InvalidOption, match=said):
            async with open_queue(server.url):
                pass


async def test_a_redis_that_wants_a_password(tmp_path: Path) -> None:
    """It is said at once, without waiting for another answer."""
    with redis_server(tmp_path, "--requirepass", "secret") as server, trio.fail_after(5):  # noqa: SIM117 - as above
        with pytest.raises(RedisUnavailable, match="does not let us in"):
            async with open_queue(server.url):
                pass


@pytest.mark.parametrize(("password", "written"), [("secret", "secret"), ("a/b@c%d#", "a%2Fb%40c%25d%23")])
async def test_a_redis_that_has_its_password(password: str, written: str, tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", password) as server, trio.fail_after(10):
        fleet = Fleet(server.url.replace("unix://", f"unix://:{written}@"))
        async with fleet.working(), fleet.queue() as queue:
            assert (await queue.chat("echo", "hello", session_id="s")).text == "1: hello"


async def test_without_coredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    with pytest.raises(InvalidOption, match=r"pip install 'alloy_trio\[redis\]'"):
        async with open_queue():
            pass


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "redis://",
        "redis:/host",
        "redis://:70",
        "unix://",
        "http://:secret@localhost",
        "redis://:secret@localhost:x",
        "redis://localhost?db=1&password=secret",
        "",
        None,
        5,
    ],
)
async def test_an_address_that_cannot_be(url: Any) -> None:
    async def enter(url: Any) -> None:
        async with open_queue(url):
            pass

    with pytest.raises(InvalidOption, match=r"the address of Redis|before the host of Redis") as caught:
        await enter(url)
    assert "secret" not in str(caught.value)
    for make in (RedisStore, RedisPubSub, lambda url: Worker(url, AGENTS)):
        with pytest.raises(InvalidOption, match="of Redis"):
            make(url)


async def test_a_password_is_in_no_traceback() -> None:
    """Also where tracebacks show variables, as Sentry's do; those of coredis are its own."""
    url = f"redis://:{SECRET}@localhost:1"
    with pytest.raises(RedisUnavailable) as caught:
        async with open_queue(url, patience=0.2):
            pass
    error: BaseException | None = caught.value
    frames = 0
    while error is not None:
        summary = traceback.TracebackException.from_exception(error, capture_locals=True)
        ours = [frame for frame in summary.stack if "/alloy_trio/" in frame.filename]
        frames += len(ours)
        assert SECRET not in str(error)
        assert SECRET not in str([frame.locals for frame in ours])
        error = error.__cause__
    assert frames > 3
    assert SECRET not in f"{vars(RedisStore(url))} {vars(Worker(url, AGENTS))}"


async def test_a_key_that_is_something_else(server: RedisServer) -> None:
    """Whatever else Redis refuses is that error too, and no worker ends by it."""
    fleet = Fleet(server.url)
    with trio.fail_after(20):
        async with fleet.queue() as queue, fleet.working():
            await queue.chat("echo", "hello")
            await fleet.redis("SET", f"{fleet.prefix}:{{echo}}:open", "nonsense")
            with pytest.raises(RedisUnavailable, match=r"Redis refuses: .*wrong kind"):
                await queue.submit("echo", "hello")
            await fleet.redis("DEL", f"{fleet.prefix}:{{echo}}:queue", f"{fleet.prefix}:{{echo}}:open")
            await fleet.redis("SET", f"{fleet.prefix}:{{echo}}:queue", "nonsense")
            await trio.sleep(0.3)
            await fleet.redis("DEL", f"{fleet.prefix}:{{echo}}:queue")
            assert (await queue.chat("echo", "there")).text == "1: there"


async def test_a_redis_that_does_not_answer(server: RedisServer) -> None:
    """A client that is stuck is replaced, and what it was asked is asked again."""
    fleet = Fleet(server.url)
    with trio.fail_after(30):
        async with fleet.queue(patience=20.0) as queue, fleet.working(fleet.worker(visibility=20.0)):
            await fleet.redis("CLIENT", "PAUSE", "6000", "WRITE")
            assert (await queue.chat("echo", "hello")).text == "1: hello"
            assert fleet.echo.seen == ["hello"]
