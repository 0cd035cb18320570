"""How an agent is, at one moment."""

from __future__ import annotations

from typing import Literal

import attrs

from ._result import Status
from ._usage import Usage


@attrs.frozen(kw_only=True)
class Health:
    """
    How an agent is, at one moment: asked for by `Agent.health`, and answered at once, also in the middle of a run.

    Attributes:
        status: `idle`; `running` a request; `down` while its supervisor starts it again, or before it has begun; `closed`.
        last_status: How the last run ended; None before the first.
        turns: How many answers of the model the last run took.
        message_count: How many messages the conversation had before the run under way.
        usage: Tokens of all runs before that.
        uptime: Seconds since the agent began, or was started again.
        request_id: The id of the request under way.
        pending_count: How many requests wait.
        max_pending: How many of `send_message` may.
        pending_approvals: How many calls wait for a person.
        abandoned: How many threads of its tools were left running, up to now.
        unsaved: Whether the store lacks something, because it could not be written.
    """

    status: Literal["idle", "running", "down", "closed"]
    last_status: Status | None
    turns: int
    message_count: int
    usage: Usage
    uptime: float
    request_id: str | None
    pending_count: int
    max_pending: int
    pending_approvals: int
    abandoned: int
    unsaved: bool

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self.status == "running"
