"""Topics that reach other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis_server import Fleet, needs_redis, redis_server

from alloy_trio import AgentConfig, InvalidOption, Result, open_agent
from alloy_trio.events import Envelope
from alloy_trio.fleet import RedisPubSub, RedisUnavailable, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from alloy_trio.pubsub import Subscription

pytestmark = needs_redis


async def received(subscription: Subscription, count: int) -> list[Any]:
    with trio.fail_after(5):
        return [await subscription.receive() for _ in range(count)]


async def test_what_is_published_here_is_heard_there(fleet: Fleet) -> None:
    """Here as it is, there as its JSON; and never twice."""
    thing = {"a": (1, 2)}
    async with fleet.pubsub() as here, fleet.pubsub() as there:
        with here.subscribe("a:*") as near, there.subscribe("a:*") as far, there.subscribe("b") as other:
            assert here.publish("a:1", thing) == 1
            assert await here.apublish("a:2", "second") == 1
            here.publish("c", "nobody listens")
            there.publish("a:3", "back")
            assert (await received(far, 3), far.topic) in (
                (["back", {"a": [1, 2]}, "second"], "a:2"),
                ([{"a": [1, 2]}, "second", "back"], "a:3"),
            )
            got = await received(near, 3)
            assert got[0] is thing
            assert got[1:] == ["second", "back"]
            await trio.sleep(0.1)
            assert near.statistics().buffered == far.statistics().buffered == other.statistics().buffered == 0


async def test_an_agent_s_results_and_events(fleet: Fleet) -> None:
    async with fleet.pubsub() as here, fleet.pubsub() as there:
        with there.subscribe("agent:s:**") as far:
            async with open_agent(provider=fleet.echo, pubsub=here, session_id="s") as agent:
                pending = await agent.send_message("hello")
                result = await pending.result()
            seen: list[Any] = []
            while not seen or not isinstance(seen[-1], Result):
                seen += await received(far, 1)
            assert seen[-1] == result
            assert all(isinstance(each, Envelope) for batch in seen[:-1] for each in batch)


async def test_answers_of_workers(fleet: Fleet) -> None:
    """Once each, also those that have failed."""
    async with fleet.pubsub() as pubsub, fleet.queue() as queue, fleet.working():
        with pubsub.subscribe("agent:*:responses") as answers:
            result = await queue.chat("echo", "hello")
            assert await received(answers, 1) == [result]
            assert answers.topic == "agent:echo:responses"
            await queue.chat("echo", "hello", session_id="s")
            await received(answers, 1)
            assert answers.topic == "agent:s:responses"
            request = await queue.submit("echo", "odd")
            (failed,) = await received(answers, 1)
            assert failed.status == "error"
            await trio.sleep(0.05)
            assert answers.statistics().buffered == 0
            assert request.request_id


async def test_events_of_workers(fleet: Fleet) -> None:
    """Agents that publish to all machines do it with what happens; the answer comes once, when it is stored."""
    async with fleet.pubsub() as pubsub, fleet.pubsub() as there, fleet.queue() as queue:
        config = AgentConfig(provider=fleet.echo, pubsub=pubsub)
        worker = Worker(fleet.url, {"echo": config}, prefix=fleet.prefix)
        async with fleet.working(worker):
            with there.subscribe("agent:s:*") as far, pubsub.subscribe("agent:s:responses") as near:
                result = await queue.chat("echo", "hello", session_id="s")
                seen: list[Any] = []
                while not seen or not isinstance(seen[-1], Result):
                    seen += await received(far, 1)
                assert seen[-1] == result
                assert len(seen) > 1
                assert await received(near, 1) == [result]
                await trio.sleep(0.1)
                assert far.statistics().buffered == near.statistics().buffered == 0


async def test_who_comes_late_receives_what_was_kept(fleet: Fleet) -> None:
    async with fleet.pubsub(keep=3) as here, fleet.pubsub() as there:
        with there.subscribe("a") as early:
            for number in range(5):
                here.publish("a", number)
            await received(early, 5)
        with await there.subscribe_late("a", last=10) as late, await there.subscribe_late("a", last=2) as short:
            here.publish("a", 5)
            assert await received(late, 4) == [2, 3, 4, 5]
            assert await received(short, 3) == [3, 4, 5]
        with await there.subscribe_late("nothing", last=10) as late:
            here.publish("nothing", 1)
            assert await received(late, 1) == [1]


async def test_nothing_is_missed_or_doubled_while_one_catches_up(fleet: Fleet) -> None:
    async with fleet.pubsub(keep=1000) as here, fleet.pubsub() as there:

        async def publish() -> None:
            for number in range(300):
                here.publish("a", number)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(0.02)
            for _ in range(5):
                with await there.subscribe_late("a", last=1000, buffer=1000) as late:
                    await trio.sleep(0.02)
                    got = await received(late, late.statistics().buffered)
                    assert got == list(range(len(got)))
            with await there.subscribe_late("a", last=1000, buffer=1000) as late:
                assert await received(late, 300) == list(range(300))


async def test_what_is_heard_behind_what_was_kept_comes_once(fleet: Fleet) -> None:
    """The channel may be slower than the stream: what it brings then has been received already."""
    held: list[bytes] = []

    class Slow(RedisPubSub):
        def _take(self, data: bytes) -> None:
            held.append(data)

    async def are_held(count: int) -> None:
        while len(held) < count:  # noqa: ASYNC110 - another process sends them
            await trio.sleep(0.01)

    with trio.fail_after(10):
        async with fleet.pubsub(keep=10) as here, Slow(fleet.url, prefix=fleet.prefix) as there:
            here.publish("a", 1)
            await are_held(1)
            with await there.subscribe_late("a", last=10) as late:
                here.publish("a", 2)
                await are_held(2)
                for data in held:
                    RedisPubSub._take(there, data)
                assert await received(late, 2) == [1, 2]
                assert late.statistics().buffered == 0


async def test_what_is_kept_goes_away(fleet: Fleet) -> None:
    async with fleet.pubsub(keep=3, keep_seconds=1.1) as here:
        here.publish("a", 1)
        await trio.sleep(0.2)
        assert len(await fleet.keys()) == 1
        await trio.sleep(1.5)
        assert await fleet.keys() == []


async def test_without_redis_it_is_a_pubsub(tmp_path: Path) -> None:
    """What cannot be sent is dropped and counted; with Redis back, others hear again."""
    with redis_server(tmp_path) as server:
        fleet = Fleet(server.url)
        async with fleet.pubsub(outbox=2, patience=0.3) as here, fleet.pubsub() as there:
            with here.subscribe("a") as near, there.subscribe("a") as far:
                await trio.to_thread.run_sync(server.stop)
                for number in range(5):
                    assert here.publish("a", number) == 1
                assert await received(near, 5) == [0, 1, 2, 3, 4]
                assert here.unsent == 3
                with trio.fail_after(5):
                    while here.unsent < 5:  # noqa: ASYNC110 - the sender gives up
                        await trio.sleep(0.05)
                await trio.to_thread.run_sync(server.start)
                with trio.fail_after(10):
                    while not far.statistics().buffered:
                        here.publish("a", "again")
                        await trio.sleep(0.1)
                assert await received(far, 1) == ["again"]


async def test_what_others_publish_need_not_be_ours(fleet: Fleet) -> None:
    async with fleet.pubsub() as pubsub:
        with pubsub.subscribe("**") as subscription:
            for words in ("nonsense", "a - {", "a - []", 'a - {"topic": "a:", "message": 1}', 'a - {"topic": 1}'):
                await fleet.redis("PUBLISH", f"{fleet.prefix}:topic:x", words)
            await fleet.redis("PUBLISH", f"{fleet.prefix}:topic:x", 'a - {"topic": "x", "message": 5}')
            assert await received(subscription, 1) == [5]


async def test_what_was_published_last_is_still_sent(fleet: Fleet) -> None:
    async with fleet.pubsub() as there:
        with there.subscribe("a") as far:
            async with fleet.pubsub() as here:
                for number in range(20):
                    here.publish("a", number)
            assert await received(far, 20) == list(range(20))


async def test_one_that_is_not_open(fleet: Fleet) -> None:
    pubsub = fleet.pubsub()
    subscription = pubsub.subscribe("a")
    with pytest.raises(RuntimeError, match="not open"):
        pubsub.publish("a", 1)
    with pytest.raises(RuntimeError, match="not open"):
        await pubsub.apublish("a", 1)
    assert subscription.statistics().buffered == 0  # it went to nobody
    async with pubsub:
        with pytest.raises(InvalidOption, match="open already"):
            await pubsub.__aenter__()
        with pytest.raises(InvalidOption, match="last="):
            await pubsub.subscribe_late("a", last=0)
    with pytest.raises(InvalidOption, match="keep="):
        RedisPubSub(keep=-1)


async def test_who_may_not_listen_is_told(fleet: Fleet) -> None:
    """Not left waiting: Redis takes commands of that user, but lets it hear nothing."""
    await fleet.redis("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels")
    url = fleet.url.replace("unix://", "unix://deaf:secret@")
    with trio.fail_after(10), pytest.raises(RedisUnavailable, match="could not be heard"):
        async with RedisPubSub(url, prefix=fleet.prefix, patience=0.5):
            pass


async def test_what_was_kept_need_not_be_ours(fleet: Fleet) -> None:
    async with fleet.pubsub(keep=3) as here:
        here.publish("a", 1)
        while not (found := await fleet.keys()):  # noqa: ASYNC110 - another end has it, through Redis
            await trio.sleep(0.01)
        (kept,) = found
        for words in ('{"topic":"a"}', "nonsense", "[" * 100_000):
            await fleet.redis("XADD", kept, "*", "from", "x", "message", words)
        await fleet.redis("XADD", kept, "*", "message", "{}")
        with await here.subscribe_late("a", last=9) as late:
            here.publish("a", 2)
            assert await received(late, 2) == [1, 2]


async def test_what_nobody_can_read_keeps_nothing_from_coming(fleet: Fleet) -> None:
    """However deep it is."""
    async with fleet.pubsub() as pubsub:
        with pubsub.subscribe("a") as subscription:
            for words in ("[" * 100_000, "7}"):
                await fleet.redis("PUBLISH", f"{fleet.prefix}:topic:a", 'x - {"topic":"a","message":' + words)
            assert await received(subscription, 1) == [7]


async def test_a_connection_that_is_dead_is_noticed(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by those who only listen, when nothing says that it is."""
    monkeypatch.setattr("alloy_trio.fleet._redis.QUIET", 0.5)
    monkeypatch.setattr("alloy_trio.fleet._redis.TIMEOUT", 0.5)
    is_dead = False

    async def relay(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
        dies = not is_dead
        async for data in one:
            if not (dies and is_dead):
                await other.send_all(data)

    async def serve(near: trio.SocketStream) -> None:
        far = await trio.open_unix_socket(fleet.url.removeprefix("unix://"))
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(relay, near, far)
            await relay(far, near)
            nursery.cancel_scope.cancel()

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    with trio.fail_after(20):
        await listener.bind(str(tmp_path / "relay"))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
            async with RedisPubSub(f"unix://{tmp_path}/relay", prefix=fleet.prefix) as deaf, fleet.pubsub() as other:
                with deaf.subscribe("a") as subscription:
                    other.publish("a", 1)
                    assert await received(subscription, 1) == [1]
                    is_dead = True
                    while not subscription.statistics().buffered:
                        other.publish("a", 2)
                        await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


async def test_what_is_under_way_is_waited_for(fleet: Fleet) -> None:
    """As what has not been sent yet is, when it is left."""
    async with fleet.pubsub() as there:
        with there.subscribe("a") as far:
            async with fleet.pubsub() as here:
                here.publish("a", 1)
                await received(far, 1)
                await fleet.redis("CLIENT", "PAUSE", "500", "WRITE")
                here.publish("a", 2)
                await trio.sleep(0.1)
            assert await received(far, 1) == [2]
