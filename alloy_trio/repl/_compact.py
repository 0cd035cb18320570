"""`/compact`: what happens by itself when a conversation gets too long, at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs

from .._compaction import Compaction
from .._errors import Halted, InvalidOption
from .._middleware import Middleware
from .._run import run

if TYPE_CHECKING:
    from .._middleware import RunState
    from .._result import Result
    from .._session import Session
    from ._setup import Setup


class _CompactAndStop(Middleware):
    """Makes the conversation of a run shorter, and ends the run before anything else is asked."""

    async def before_completion(self, state: RunState) -> None:
        """Do it."""
        await Compaction().compact(state)
        raise Halted("that was all")


async def compacted(session: Session, setup: Setup) -> tuple[Session, Result]:
    """
    Return a conversation with a summary in the place of its older half, and the run that made it: paid for and retried as any.

    Raises:
        InvalidOption: There is nothing that could be summarized.
        AlloyError: What a run raises.
    """
    if not session.messages:
        raise InvalidOption("there is nothing to compact")
    made = attrs.evolve(session)
    options = setup.options()
    options["session"], options["middleware"] = made, [_CompactAndStop()]
    with setup.budget or contextlib.nullcontext():
        result = await run("Go on.", **options)
    messages = made.messages[:-1]  # without the question of ours
    if messages == session.messages:
        raise InvalidOption("the conversation is too short to be made shorter")
    made.messages = messages
    return made, result
