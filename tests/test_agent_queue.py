"""The one queue of an agent: first come, first served, and whoever gives up leaves nothing behind."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import QueueFull, RequestCancelled, open_agent
from alloy_trio.testing import ScriptedProvider, assert_no_orphans, delay, text


async def test_chats_streams_and_messages_share_one_queue(autojump_clock: object) -> None:
    """Whoever came first is served first, by whatever door; one who waits in `chat` takes no place of `max_pending`."""
    provider = ScriptedProvider([[delay(1), text("x")] for _ in range(4)])
    async with open_agent(provider=provider, max_pending=1) as agent, trio.open_nursery() as nursery:
        first = await agent.send_message("1")
        nursery.start_soon(agent.chat, "2")
        await trio.testing.wait_all_tasks_blocked()
        last = await agent.send_message("3")
        with pytest.raises(QueueFull, match="max_pending=1"):
            await agent.send_message("4")
        assert agent.health().pending_count == 2
        async with agent.stream_chat("5") as events:
            async for _ in events:
                pass
        assert first.is_done
        assert last.is_done
    assert [request.messages[-1].text for request in provider.requests] == ["1", "2", "3", "5"]


async def test_whoever_gives_up_waiting_leaves_the_queue(autojump_clock: object) -> None:
    """At once, not when its turn would have come; also ten thousand of them, while one request takes an hour."""
    async with open_agent(provider=ScriptedProvider([[delay(3600), text("at last")]])) as agent:
        long = await agent.send_message("take your time")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10_000):
            with trio.move_on_after(0.1) as scope:
                await agent.chat("quick")
            assert scope.cancelled_caught
            assert agent.health().pending_count == 0
        assert agent._core.mailbox._receive.statistics().current_buffer_used < 20
        assert (await long.result()).text == "at last"


@given(data=st.data())
def test_requests_are_served_in_order_but_for_those_taken_back(data: st.DataObject) -> None:
    """Whichever of twelve requests are cancelled before their turn, in whatever order: the others come in theirs."""
    gone = data.draw(st.lists(st.integers(1, 11), unique=True))

    async def main() -> None:
        provider = ScriptedProvider([[delay(1), text("x")] for _ in range(12)])
        with assert_no_orphans():
            async with open_agent(provider=provider, max_pending=12) as agent:
                pending = [await agent.send_message(str(number)) for number in range(12)]
                await trio.testing.wait_all_tasks_blocked()
                for number in gone:
                    assert await pending[number].cancel()
                    with pytest.raises(RequestCancelled):
                        await pending[number].result()
                await agent.wait_idle()
        served = [request.messages[-1].text for request in provider.requests]
        assert served == [str(number) for number in range(12) if number not in gone]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
