"""Requests through Redis: submitted, run by workers, answered once."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import trio
from fleet_agents import Echo
from redis_server import Fleet, needs_redis

from alloy_trio import (
    AgentConfig,
    BlockCall,
    EditCall,
    InvalidOption,
    Message,
    Middleware,
    QueueFull,
    RateLimited,
    RequestCancelled,
    RunState,
    ToolUse,
    UnknownRequest,
    tool,
)
from alloy_trio.fleet import (
    RedisUnavailable,
    RequestPoisoned,
    Worker,
    WorkerError,
)
from alloy_trio.testing import ScriptedProvider, tool_call

pytestmark = needs_redis


async def test_a_request_is_answered(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue:
            result = await queue.chat("echo", "hello", request_id="mine")
            assert (result.text, result.status, result.request_id) == ("1: hello", "completed", "mine")
            assert [message.role for message in result.messages] == ["user", "assistant"]
            assert (await queue.chat("echo", Message.user("there"))).text == "1: there"
            stands = await queue.statistics("echo")
            assert (stands.pending, stands.running, stands.submitted, stands.done) == (0, 0, 2, 2)


async def test_one_that_was_submitted_before_there_was_a_worker(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"n {number}") for number in range(100)]
            assert (await queue.statistics("echo")).pending == 100
            async with fleet.working():
                assert [(await each.result()).text for each in requests] == [f"1: n {number}" for number in range(100)]
            assert all(each.is_done for each in requests)


async def test_what_a_run_raises_arrives(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue:
            with pytest.raises(RateLimited, match="too much") as caught:
                await queue.chat("echo", "fail")
            assert caught.value.retry_after == 7.0
            assert caught.value.result is not None
            assert caught.value.result.messages[0].text == "fail"
            with pytest.raises(WorkerError, match=r"LookupError: .*nothing here") as other:
                await queue.chat("echo", "odd")
            assert other.value.kind == "LookupError"
            assert (await queue.statistics("echo")).failed == 2


async def test_large_requests_and_answers(fleet: Fleet) -> None:
    """They come in portions, and each comes."""
    with trio.fail_after(30):
        async with fleet.queue() as queue:
            requests = [await queue.submit("echo", f"{number} " + "x" * 1_500_000) for number in range(8)]
            async with fleet.working():
                await trio.sleep(0.5)
                for number, request in enumerate(requests):
                    assert (await request.result()).text.startswith(f"1: {number} xxx")


async def test_an_id_is_run_once(fleet: Fleet) -> None:
    """Whoever submits it, and however often: also after its answer."""
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue, fleet.queue() as other:
            async with trio.open_nursery() as nursery:
                for each in (queue, other, queue):
                    nursery.start_soon(partial(each.chat, "echo", "pause", request_id="a"))
            assert (await other.chat("echo", "pause", request_id="a")).text == "1: pause"
            assert (await (await queue.find("echo", "a")).result()).text == "1: pause"
            assert fleet.echo.seen == ["pause"]
            with pytest.raises(InvalidOption, match="was used for another request"):
                await queue.submit("echo", "something else", request_id="a")
            with pytest.raises(UnknownRequest, match="no request 'b'"):
                await queue.find("echo", "b")


async def test_who_finds_a_request_shares_its_answer(fleet: Fleet) -> None:
    """Also with who submits it again, in the same queue."""
    with trio.fail_after(10):
        async with fleet.queue() as queue, fleet.queue() as other:
            await other.submit("echo", "hello", request_id="a")
            found = await queue.find("echo", "a")
            again = await queue.submit("echo", "hello", request_id="a")
            with pytest.raises(InvalidOption, match="was used"):
                await queue.submit("echo", "something else", request_id="a")
            async with fleet.working():
                assert (await found.result()).text == (await again.result()).text == "1: hello"


async def test_of_a_request_that_is_gone_nobody_waits_for_the_answer(fleet: Fleet) -> None:
    """Neither who has found it earlier, nor who asks again."""
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            await queue.submit("echo", "hello", request_id="a")
        async with fleet.queue() as queue:
            found = await queue.find("echo", "a")
            await fleet.redis("DEL", *await fleet.keys())
            with pytest.raises(UnknownRequest, match="no request 'a'"):
                await queue.find("echo", "a")
            for _ in range(2):
                with pytest.raises(UnknownRequest, match="no request 'a'"):
                    await found.result()


async def test_a_queue_that_was_left_says_so(fleet: Fleet) -> None:
    """Nobody waits there for what cannot come; what was submitted is answered, and found by its id."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(RedisUnavailable, match="was left"):
                    await request.result()

            async with fleet.queue() as queue:
                request = await queue.submit("echo", "hello", request_id="a")
                nursery.start_soon(wait)
                await trio.sleep(0.05)
        with pytest.raises(RedisUnavailable, match="was left"):
            await request.result()
        async with fleet.working(), fleet.queue() as queue:
            assert (await (await queue.find("echo", "a")).result()).text == "1: hello"


async def test_a_queue_is_bounded(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.queue(max_pending=2) as queue:
            first = await queue.submit("echo", "one")
            await queue.submit("echo", "two", order="x")
            with pytest.raises(QueueFull, match="max_pending=2"):
                await queue.submit("echo", "three", request_id="3")
            assert await first.cancel()
            await queue.submit("echo", "three", request_id="3")


async def test_requests_of_one_order_run_one_after_the_other(fleet: Fleet) -> None:
    with trio.fail_after(20):
        async with fleet.working(fleet.worker(), fleet.worker()), fleet.queue() as queue:
            prompts = [f"pause {number}" for number in range(8)]
            requests = [await queue.submit("echo", prompt, order="x") for prompt in prompts]
            gone = await queue.submit("echo", "pause gone", order="x")
            last = await queue.submit("echo", "last", order="x")
            assert await gone.cancel()
            assert (await queue.chat("echo", "fast")).text == "1: fast"
            assert len(fleet.echo.seen) < 8
            for request in (*requests, last):
                await request.result()
            fleet.echo.seen.remove("fast")
            assert fleet.echo.seen == [*prompts, "last"]
            assert fleet.echo.most <= 2


async def test_a_cancel_of_who_waits_is_one_of_the_run(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.chat, "echo", "wait")
                await fleet.echo.is_waiting.wait()
                nursery.cancel_scope.cancel()
            assert fleet.echo.running == 0
            stands = await queue.statistics("echo")
            assert (stands.pending, stands.cancelled) == (0, 1)


async def test_a_cancel_around_everything_ends_soon(fleet: Fleet) -> None:
    """Whoever asks still tells Redis, and who runs still answers."""
    with trio.fail_after(10):
        with trio.CancelScope() as scope:
            async with fleet.queue() as queue, trio.open_nursery() as nursery:
                nursery.start_soon(queue.chat, "echo", "wait")
                async with fleet.working():
                    await fleet.echo.is_waiting.wait()
                    began = trio.current_time()
                    scope.cancel()
                    await trio.sleep_forever()
        assert trio.current_time() - began < 2
        async with fleet.queue() as queue:
            stands = await queue.statistics("echo")
            assert (stands.cancelled + stands.pending, stands.running) == (1, 0)


async def test_cancelled_by_whoever_knows_the_id(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue() as queue, fleet.queue() as other:
            running = await queue.submit("echo", "wait", request_id="a")
            await fleet.echo.is_waiting.wait()
            assert await (await other.find("echo", "a")).cancel()
            with pytest.raises(RequestCancelled) as caught:
                await running.result()
            assert caught.value.result is not None
            assert caught.value.result.messages[0].text == "wait"
            done = await queue.submit("echo", "done")
            await done.result()
            assert not await done.cancel()


async def test_one_that_waits_is_cancelled_without_a_worker(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            request = await queue.submit("echo", "hello")
            assert await request.cancel()
            with pytest.raises(RequestCancelled, match="before its turn"):
                await request.result()
            async with fleet.working():
                await queue.chat("echo", "next")
            assert fleet.echo.seen == ["next"]


async def test_another_worker_takes_over_from_one_that_has_died(fleet: Fleet) -> None:
    """One that is cut off from its process says nothing more to Redis: its run ends when its hold may be somebody else's."""
    dying, other = fleet.worker(), fleet.worker(second := Echo())
    with trio.fail_after(20):
        async with fleet.working(dying), fleet.queue() as queue:
            request = await queue.submit("echo", "wait", request_id="a")
            await fleet.echo.is_waiting.wait()
            second.go_on.set()
            dying._link.run = _away  # type: ignore[method-assign]
            dying._link.read_group = _away  # type: ignore[method-assign]
            async with fleet.working(other):
                assert (await request.result()).text == "1: wait"
            assert fleet.echo.running == 0
            assert (await queue.statistics("echo")).repeated == 1


async def _away(*_: Any, **__: Any) -> Any:
    await trio.sleep(0.1)
    raise RedisUnavailable("cut off")


async def test_an_answer_that_comes_too_late_is_refused(fleet: Fleet) -> None:
    """A worker that was paused, and did not notice: its hold is another one's, and so is the answer."""
    slow, other = fleet.worker(visibility=60.0), fleet.worker(second := Echo(), visibility=0.5)
    with trio.fail_after(20):
        async with fleet.working(slow), fleet.queue() as queue:
            request = await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            async with fleet.working(other):
                await second.is_waiting.wait()
                fleet.echo.go_on.set()
                while not slow.statistics().lost:  # noqa: ASYNC110 - another end says so, through Redis
                    await trio.sleep(0.01)
                assert not request.is_done
                second.go_on.set()
                assert (await request.result()).text == "1: wait"
            assert (await queue.statistics("echo")).done == 1


async def test_a_request_that_workers_die_of_is_given_up(fleet: Fleet) -> None:
    with trio.fail_after(30):
        async with fleet.queue() as queue:
            request = await queue.submit("echo", "wait", request_id="bad", order="x")
            behind = await queue.submit("echo", "behind", order="x")
            for _ in range(2):
                dying = fleet.worker(visibility=0.3, max_tries=2)
                async with fleet.working(dying):
                    await fleet.echo.is_waiting.wait()
                    fleet.echo.is_waiting = trio.Event()
                    dying._link.run = _away  # type: ignore[method-assign]
            async with fleet.working(fleet.worker(visibility=0.3, max_tries=2)):
                with pytest.raises(RequestPoisoned, match="2 workers"):
                    await request.result()
                await behind.result()
                (letter,) = await queue.dead_letters("echo")
                assert letter.prompt is not None
                fleet.echo.go_on.set()
                assert (await queue.chat("echo", letter.prompt)).text == "1: wait"
            assert (await queue.statistics("echo")).dead == 1
            assert (letter.request_id, letter.prompt, letter.session_id, letter.tries) == ("bad", "wait", None, 2)
            assert 0 <= time.time() - letter.ts < 30
            assert await queue.dead_letters("nobody") == []


async def test_dead_letters_are_read_whatever_is_in_them(fleet: Fleet) -> None:
    dead = f"{fleet.prefix}:{{echo}}:dead"
    async with fleet.queue() as queue:
        await fleet.redis("XADD", dead, "*", "id", "a", "body", "no JSON", "tries", "1")
        body = '{"prompt": "hi", "session_id": "s"}'
        await fleet.redis("XADD", dead, "*", "id", "b", "body", body, "tries", "3")
        await fleet.redis("XADD", dead, "*", "a", "b")
        await fleet.redis("XADD", dead, "*", "id", "c", "body", body, "tries", "many")
        letters = await queue.dead_letters("echo")
        assert [(each.request_id, each.prompt, each.session_id, each.tries) for each in letters] == [
            ("c", None, None, 0),
            ("b", None, None, 0),
            ("b", "hi", "s", 3),
            ("a", None, None, 1),
        ]
        assert await queue.dead_letters("echo", last=1) == letters[:1]


async def test_a_call_that_would_wait_for_a_person_is_refused(fleet: Fleet) -> None:
    """Nobody could be asked: it would keep its place at the worker for ever."""
    ran = []

    @tool
    def act() -> str:
        """Act."""
        ran.append(1)
        return "done"

    class Ask(Middleware):
        async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
            return await state.approval(call)

    config = AgentConfig(
        provider=ScriptedProvider([tool_call("act", {}), "It was refused."]), tools=[act], middleware=[Ask()]
    )
    with trio.fail_after(10):
        async with fleet.queue() as queue, fleet.working(Worker(fleet.url, {"asker": config}, prefix=fleet.prefix)):
            result = await queue.chat("asker", "act")
    assert result.text == "It was refused."
    assert "nobody is there to approve it" in result.messages[2].tool_results[0].text
    assert not ran


async def test_a_worker_that_is_cancelled_gives_back_what_it_has(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.queue() as queue:
            first = fleet.worker(visibility=60.0, max_tries=1)
            async with fleet.working(first):
                request = await queue.submit("echo", "wait")
                await fleet.echo.is_waiting.wait()
            assert first.statistics().released == 1
            fleet.echo.go_on.set()
            async with fleet.working(fleet.worker(visibility=60.0, max_tries=1)):
                assert (await request.result()).text == "1: wait"


async def test_a_worker_that_is_stopped_finishes_what_it_has(fleet: Fleet) -> None:
    worker = fleet.worker()
    with trio.fail_after(10):
        async with fleet.queue() as queue, trio.open_nursery() as nursery:
            await nursery.start(worker.serve)
            request = await queue.submit("echo", "wait")
            await fleet.echo.is_waiting.wait()
            worker.stop()
            await trio.sleep(0.1)
            later = await queue.submit("echo", "later")
            fleet.echo.go_on.set()
            assert (await request.result()).text == "1: wait"
        assert not later.is_done
        assert worker.statistics().running == 0


async def test_no_more_run_at_once_than_the_worker_may(fleet: Fleet) -> None:
    with trio.fail_after(20):
        async with fleet.working(fleet.worker(concurrency=3)), fleet.queue() as queue:
            requests = [await queue.submit("echo", f"pause {number}") for number in range(12)]
            for request in requests:
                await request.result()
            assert fleet.echo.most == 3


async def test_a_worker_that_was_full_takes_again(fleet: Fleet) -> None:
    """What takes new requests and what takes over old ones both wait for room; neither keeps it from the other."""
    with trio.fail_after(10):
        async with fleet.working(fleet.worker(concurrency=1, visibility=0.3)), fleet.queue() as queue:
            for _ in range(2):
                request = await queue.submit("echo", "wait")
                await trio.sleep(0.5)
                fleet.echo.go_on.set()
                await request.result()
                fleet.echo.go_on = trio.Event()


async def test_a_long_run_stays_with_its_worker(fleet: Fleet) -> None:
    with trio.fail_after(10):
        async with fleet.working(fleet.worker(visibility=0.3), fleet.worker(visibility=0.3)), fleet.queue() as queue:
            request = await queue.submit("echo", "wait")
            await trio.sleep(1.2)
            fleet.echo.go_on.set()
            await request.result()
            assert fleet.echo.seen == ["wait"]


async def test_nothing_stays_but_answers(fleet: Fleet) -> None:
    """And these only for a while."""
    with trio.fail_after(10):
        async with fleet.working(), fleet.queue(keep=1.0) as queue:
            for number in range(5):
                await queue.chat("echo", f"n {number}", order="x")
            keys = [key.partition("}:")[2] for key in await fleet.keys()]
            assert sorted({key.partition(":")[0] for key in keys}) == ["count", "queue", "r", "to"]
            assert await fleet.redis("XLEN", f"{fleet.prefix}:{{echo}}:queue") == 0
            await trio.sleep(1.3)
            keys = [key.partition("}:")[2] for key in await fleet.keys()]
            assert not [key for key in keys if key.startswith("r:")]


@pytest.mark.parametrize(
    "options",
    [
        {"agent": "a b"},
        {"agent": ""},
        {"agent": "{a}"},
        {"prompt": " "},
        {"request_id": ""},
        {"request_id": "a\nb"},
        {"request_id": "\ud800"},
        {"order": ""},
        {"session_id": ""},
        {"session_id": "", "order": "x"},
        {"session_id": 5, "order": "x"},
        {"session_id": "a\nb", "order": "x"},
    ],
    ids=repr,
)
async def test_what_cannot_be_is_refused(options: dict[str, Any], fleet: Fleet) -> None:
    async with fleet.queue() as queue:
        with pytest.raises(InvalidOption):
            await queue.submit(**{"agent": "echo", "prompt": "hello", **options})
        assert await fleet.keys() == []


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"visibility": 0}, {"agents": {}}, {"agents": {"a": 5}}, {"agents": ["a"]}],
    ids=repr,
)
def test_a_worker_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Worker(**{"agents": {"echo": AgentConfig(provider=Echo())}, **options})
