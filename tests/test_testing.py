"""The scripted provider and the assertions, which all other tests lean on."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from alloy_trio import Message, ProviderError, RateLimited, Result, Text, Thinking, Usage, run, stream, tool
from alloy_trio.events import TextDelta, ThinkingDelta
from alloy_trio.providers import OpenAICompat, Request, Response
from alloy_trio.testing import (
    ScriptedProvider,
    assert_no_orphans,
    assert_tool_called,
    cancel_at_checkpoint,
    cancel_at_every_checkpoint,
    delay,
    error,
    last_text,
    refute_tool_called,
    run_with_responses,
    text,
    tool_call,
    tool_calls,
)

if TYPE_CHECKING:
    from alloy_trio.testing._script import Script


@tool
async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def test_tst_01_in_order_and_then_an_error() -> None:
    provider = ScriptedProvider([text("a"), text("b")])
    assert (await run("go", provider=provider)).text == "a"
    async with stream("go", provider=provider) as events:
        assert "".join([e.text async for e in events if isinstance(e, TextDelta)]) == "b"
    with pytest.raises(ProviderError, match="at its end: 2 replies"):
        await run("go", provider=provider)


async def test_tst_02_streams_one_character_at_a_time_and_fails_where_told(autojump_clock: object) -> None:
    seen = []
    with pytest.raises(RateLimited):
        async with stream(
            "go", provider=ScriptedProvider([[Thinking("hm"), delay(100), error(RateLimited("slow"))]])
        ) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - what came before the failure counts
    assert [e.text for e in seen if isinstance(e, ThinkingDelta)] == ["h", "m"]
    assert trio.current_time() == pytest.approx(100)


async def test_tst_03_default_usage() -> None:
    assert (await run_with_responses("go", [text("x")])).usage == Usage(input_tokens=10, output_tokens=5)
    assert (await run_with_responses("go", [text("x", usage=Usage(1, 2))])).usage == Usage(1, 2)


async def test_tst_04_run_with_responses_takes_options() -> None:
    result = await run_with_responses("go", [tool_call("add", {"a": 1, "b": 2})] * 2, tools=[add], max_turns=1)
    assert (result.status, result.turns) == ("max_turns", 1)


async def test_a_reply_may_be_a_function_or_a_whole_response() -> None:
    def echo(request: Request) -> Response:
        return Response(message=Message.assistant(request.messages[-1].text.upper()))

    assert (await run_with_responses("loud", [echo])).text == "LOUD"
    assert (await run_with_responses("go", ["plain"])).messages[-1].content == (Text("plain"),)
    assert (await run_with_responses("go", [lambda _: [Text("a"), text("b")]])).text == "ab"


async def test_tst_05_assert_and_refute() -> None:
    replies: list[Script] = [[tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 4})], text("x")]
    result = await run_with_responses("go", replies, tools=[add])
    assert assert_tool_called(result, "add").input == {"a": 1, "b": 2}
    assert assert_tool_called(result, "add", {"a": 3}).input == {"a": 3, "b": 4}
    refute_tool_called(result, "sub")
    refute_tool_called(result, "add", {"a": 5})
    with pytest.raises(AssertionError, match="sub was not called; the calls were: add"):
        assert_tool_called(result, "sub")
    with pytest.raises(AssertionError, match="'a': 5"):
        assert_tool_called(result, "add", {"a": 5})
    with pytest.raises(AssertionError, match="was called with"):
        refute_tool_called(result, "add", {"b": 4})


async def test_tst_06_last_text_and_tool_calls() -> None:
    assert last_text(Result()) is None
    assert tool_calls(Result()) == []
    replies = [tool_call("add", {"a": 1, "b": 2}), tool_call("add", {"a": 3, "b": 4}), text("x")]
    result = await run_with_responses("go", replies, tools=[add])
    assert last_text(result) == "x"
    assert [c.input["a"] for c in tool_calls(result)] == [1, 3]


async def test_assert_no_orphans_names_what_is_left(nursery: trio.Nursery) -> None:
    with pytest.raises(AssertionError, match=r"task .*sleep_forever"), assert_no_orphans():
        nursery.start_soon(trio.sleep_forever)
    with pytest.raises(AssertionError, match="process"), assert_no_orphans():
        process = await trio.lowlevel.open_process(["sleep", "60"])
    process.kill()
    await process.wait()
    with assert_no_orphans():
        await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()


linux = pytest.mark.skipif(sys.platform != "linux", reason="file descriptors are seen on Linux only")


@linux
async def test_assert_no_orphans_names_what_was_left_open(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"file descriptor \d+ \(socket:"), assert_no_orphans():
        left = socket.socket()
    left.close()
    with (
        pytest.raises(AssertionError, match=r"file descriptor \d+ \(pipe:.*, file descriptor \d+ \(pipe:"),
        assert_no_orphans(),
    ):
        ends = os.pipe()
    with assert_no_orphans():
        for end in ends:
            os.close(end)
    with pytest.raises(AssertionError, match=r"file descriptor \d+ \(.*/notes\)"), assert_no_orphans():
        notes = (tmp_path / "notes").open("w")
    with assert_no_orphans():
        (tmp_path / "notes").rename(tmp_path / "old")  # open before, and the same by another name
    with pytest.raises(AssertionError, match=r"/new\)"), assert_no_orphans():
        notes.close()
        notes = (tmp_path / "new").open("w")  # another by the same number
    notes.close()


@linux
async def test_assert_no_orphans_looks_past_what_loops_wait_with() -> None:
    with assert_no_orphans():
        poll = select.epoll()
    poll.close()


async def test_assert_no_orphans_blames_nobody_for_what_trio_opens() -> None:
    def another_run() -> None:
        trio.run(trio.sleep, 0)

    with assert_no_orphans():
        await trio.to_thread.run_sync(another_run)
        await trio.run_process([sys.executable, "-c", ""], capture_stdout=True)
        await trio.socket.getaddrinfo("127.0.0.1", 80)


async def test_assert_no_orphans_checks_what_raises_too() -> None:
    error = ValueError("of the body")
    with pytest.raises(AssertionError, match="left behind") as caught, assert_no_orphans():
        left = await trio.lowlevel.open_process(["sleep", "60"])
        raise error
    assert caught.value.__context__ is error
    left.kill()
    await left.wait()


SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@linux
async def test_an_idle_connection_of_the_providers_is_no_orphan(nursery: trio.Nursery) -> None:
    """In a process of its own the server's end is none of ours. A second socket to the same server is one."""
    serve = partial(trio.run_process, [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, check=False)
    process = await nursery.start(serve)
    port = int(await process.stdout.receive_some())
    provider = OpenAICompat("m", base_url=f"http://127.0.0.1:{port}/v1")
    with assert_no_orphans():
        assert (await run("go", provider=provider)).text == "hi"
        before = open_descriptors()
        await run("go", provider=provider)
    assert open_descriptors() == before  # it was used again: the connection is there
    with pytest.raises(AssertionError, match="socket"), assert_no_orphans():
        await run("go", provider=provider)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.aclose()
    nursery.cancel_scope.cancel()


# cancel at every checkpoint


async def steps(count: int) -> str:
    for _ in range(count):
        await trio.lowlevel.checkpoint()
    return "done"


async def test_each_step_is_cancelled_once_and_then_none() -> None:
    results: list[str | None] = []
    calls: list[int] = []

    async def fn() -> str:
        calls.append(0)
        for _ in range(4):
            calls[-1] += 1
            await trio.lowlevel.checkpoint()
        return await steps(1)

    assert await cancel_at_every_checkpoint(fn, check=results.append) == 5
    assert calls == [1, 2, 3, 4, 4, 4]
    assert results == [None, None, None, None, None, "done"]


async def test_a_cancel_that_nothing_feels_any_more_is_not_the_end() -> None:
    """A wait that is over when the cancel comes returns: nobody is cut, and there may be steps behind."""

    async def fn() -> int:
        with trio.CancelScope(shield=True):
            await steps(3)
        count = 0
        while not count:
            count += 1
            await trio.lowlevel.cancel_shielded_checkpoint()
        return count

    results: list[int | None] = []
    assert await cancel_at_every_checkpoint(fn, check=results.append) == 4
    assert results == [1] * 5


async def test_steps_of_tasks_within_count_and_those_of_others_do_not(nursery: trio.Nursery) -> None:
    @nursery.start_soon
    async def _() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    async def fn() -> None:
        async with trio.open_nursery() as inner:
            for _ in range(3):
                inner.start_soon(steps, 2)

    assert await cancel_at_every_checkpoint(lambda: steps(5)) == 5
    # Three tasks with a beginning and two checkpoints each, and the end of the nursery.
    assert await cancel_at_every_checkpoint(fn) == 3 * 3 + 1
    nursery.cancel_scope.cancel()


async def test_what_a_cancel_leaves_running_is_found_with_its_step(nursery: trio.Nursery) -> None:
    tries = 0

    async def fn() -> None:
        nonlocal tries
        tries += 1
        await steps(2)
        done = False
        try:
            await trio.lowlevel.checkpoint()
            done = True
        finally:
            if not done:
                nursery.start_soon(trio.sleep_forever)

    with pytest.raises(AssertionError, match=r"left behind: task .*sleep_forever") as caught:
        await cancel_at_every_checkpoint(fn)
    assert caught.value.__notes__ == ["It was cancelled at step 3; first=3 begins there."]
    assert tries == 3
    nursery.cancel_scope.cancel()


async def test_what_fn_or_check_raises_leaves_as_it_is() -> None:
    error = ExceptionGroup("of fn", [ValueError()])

    async def fn() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async def check(result: object) -> None:
        await trio.lowlevel.checkpoint()
        assert result is None, "so it is not"

    with pytest.raises(ExceptionGroup) as caught:
        await cancel_at_every_checkpoint(fn)
    assert caught.value is error
    with pytest.raises(AssertionError, match="so it is not") as failed:
        await cancel_at_every_checkpoint(lambda: steps(3), check=check)
    assert failed.value.__notes__ == ["It was cancelled at step 4; first=4 begins there."]


async def test_first_and_limit() -> None:
    results: list[str | None] = []
    assert await cancel_at_every_checkpoint(lambda: steps(5), check=results.append, first=4, limit=6) == 5
    assert len(results) == 3
    with pytest.raises(AssertionError, match="more than 5 steps"):
        await cancel_at_every_checkpoint(lambda: steps(5), limit=5)


async def test_one_step_alone() -> None:
    assert await cancel_at_checkpoint(lambda: steps(3), 2) == (True, None)
    assert await cancel_at_checkpoint(lambda: steps(3), 3) == (True, None)
    assert await cancel_at_checkpoint(lambda: steps(3), 4) == (False, "done")


async def test_a_cancel_by_other_means() -> None:
    """A plain function is called at its step, an async one begins there, beside, and is waited for."""
    asked: list[int] = []
    seen: list[int] = []
    count = 0

    async def fn() -> int:
        nonlocal count
        for count in range(3):  # noqa: B007 - the cancel looks at it
            await trio.lowlevel.checkpoint()
        return len(asked)

    async def slowly() -> None:
        seen.append(count)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        asked.append(count)

    assert await cancel_at_checkpoint(fn, 2, cancel=lambda: asked.append(count)) == (True, 1)
    assert asked == [1]
    assert await cancel_at_checkpoint(fn, 1, cancel=slowly) == (True, 1)  # fn was over before the cancel was
    assert asked == [1, 2]
    assert len(seen) == 1
    results: list[int | None] = []
    asked.clear()
    assert await cancel_at_every_checkpoint(fn, cancel=slowly, check=results.append) == 3
    assert len(asked) == 3
    assert len(results) == 4


@pytest.mark.parametrize("waits", [False, True])
async def test_a_cancel_that_raises(waits: bool) -> None:
    error = ValueError("no such request")

    async def later() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    def at_once() -> None:
        raise error

    with pytest.raises(ValueError, match="no such request") as caught:
        await cancel_at_every_checkpoint(lambda: steps(3), cancel=later if waits else at_once)
    assert caught.value is error


async def test_a_cancel_from_outside_ends_all_of_it(autojump_clock: object) -> None:
    async def fn() -> None:
        await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    with trio.move_on_after(1) as scope:
        await cancel_at_every_checkpoint(fn, cancel=trio.sleep_forever)
    assert scope.cancelled_caught
    with trio.CancelScope() as now:
        now.cancel()
        await cancel_at_checkpoint(fn, 1, cancel=trio.sleep_forever)
    assert now.cancelled_caught
