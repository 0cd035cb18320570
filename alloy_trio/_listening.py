"""What an agent is asked by itself: a message on one of its topics begins a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._errors import AlloyError
from .pubsub._subscription import Lost

if TYPE_CHECKING:
    import trio

    from ._desk import Desk

logger = logging.getLogger("alloy_trio")


async def listen(desk: Desk, topics: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
    """Make a request of each message on the topics, until cancelled. What cannot be one is told of, and never lost in silence."""
    assert desk.config.pubsub is not None
    with desk.config.pubsub.subscribe(*topics) as subscription:
        task_status.started()
        async for message in subscription:
            if isinstance(message, Lost):
                logger.warning("%s was too slow for its topics, and has lost %d messages", desk.label, message.count)
                continue
            try:
                desk.submit(message, None)
            except AlloyError as refused:
                desk.tell_refused(message, refused)
