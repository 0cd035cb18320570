"""
The tests of a local agent, once more, with a connection in between: an agent elsewhere does what one here does.

What an agent shows by itself (`messages`, `health`) these tests read where it is; what is asked of it goes over the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import test_agent_checkpoints
import test_agent_queue
import test_agent_server
import test_commit
import test_steering
from far import open_far_agent

if TYPE_CHECKING:
    from types import ModuleType

MODULES = (test_agent_checkpoints, test_agent_server, test_agent_queue, test_commit, test_steering)

LEFT_OUT = {
    "test_ag_16_a_failing_run_is_published_and_the_agent_lives": "its scripts can be played once",
    "test_whoever_gives_up_waiting_leaves_the_queue": "random, and takes long",
    "test_cancelled_at_every_checkpoint": "below, half of it",
    "test_one_call_is_cancelled_at_every_checkpoint": "asserts what each of its steps brings",
    "test_the_money_ends_at_every_moment": "the same",
    "test_stopped_at_every_checkpoint": "the same",
    "test_steered_at_every_checkpoint": "takes long, for what the wire adds",
    "test_threads_and_processes_are_cancelled_at_every_checkpoint": "the same",
    "test_a_deadline_passes_at_every_moment": "the same",
    "test_opening_and_leaving_is_cancelled_at_every_checkpoint": "opens and leaves the agent itself",
    "test_ag_05_send_message_gives_an_id_at_once": "looks at `Pending.is_done`, which nobody knows from afar",
    "test_ag_25_stop_during_a_run": "the same",
    "test_use_07_every_budget_around_the_caller_and_around_the_agent_pays": "budgets do not reach over",
    "test_nobody_waits_for_itself": "nor does the chain of calls",
    "test_chats_streams_and_messages_share_one_queue": "the same",
    "test_a_stopped_agent_says_so": "asks behind the end of the connection",
    "test_one_call_is_cancelled_and_its_siblings_live_on": "the same",
    "test_each_result_is_published_once": "counts on messages that take no step to arrive",
}


@pytest.fixture(autouse=True)
def _far(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "open_agent", open_far_agent)


def _adopt(module: ModuleType) -> None:
    for name, test in vars(module).items():
        if name.startswith("test_") and name not in LEFT_OUT and {"open_agent", "stage"} & {*test.__code__.co_names}:
            globals()[name] = test


for _module in MODULES:
    _adopt(_module)


@pytest.mark.parametrize("ask", [test_agent_checkpoints.chat, test_agent_checkpoints.stream])
async def test_cancelled_at_every_checkpoint(ask: Any, autojump_clock: object) -> None:
    await test_agent_checkpoints.test_cancelled_at_every_checkpoint(ask, "keep", autojump_clock)


def test_what_is_left_out_exists() -> None:
    assert [name for name in LEFT_OUT if not any(hasattr(module, name) for module in MODULES)] == []
