"""
A conversation that grows for ever, in a window that does not.

Before each request the prompt is estimated; above `context_tokens - reserve_tokens` the conversation is made shorter. It is cut
in three:

    head      the first message, verbatim: what it is all about
    middle    what may go; never empty, or nothing is done here
    recent    as much of the end as `keep_recent_tokens` allows, verbatim, and at least the last message with what belongs to it

What the user has said last is the one thing that may not be lost: in a long tool loop it moves into the middle, and a summary
might tell it in other words. So the latest request goes with the recent part in its own words, right behind the summary.

A cut never parts a call from its result, so it lies before an answer or before what a user said, and may lie inside one long turn.
What is done to the middle, until it is enough:

    cleared       old tool results become a placeholder, all in one batch. Enough if the prompt is then well below the limit:
                  each change makes caches and sealed reasoning worthless, so the next one should be far away.
    summarized    one summary, by the run's own provider, takes the middle's place, right behind the head. The next compaction
                  finds it there by its prefix and replaces it by a newer one.
    truncated     without a summary (the provider failed, refused, wrote too much): the results are cleared, old answers cut short,
                  and all messages kept. Where even that fills the window, the oldest of them go.

Where the rest alone is still too large (one giant result, one giant paste) it is clipped as well: results first, the oldest
before the newer, then whatever is longest, then the oldest messages go. It is clipped to clearly less than the limit, so that
this does not happen again in the next turn. What the user says in the last message is never clipped (but in a tool loop that
message is results, and these are), and the latest request only if it alone takes more than half of the room.

That a conversation was changed shows in its epoch, which makes the wires leave earlier reasoning out: nothing is stripped here.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ._errors import InvalidOption, ProviderError
from ._estimate import Estimator, Size, estimator_for, measure
from ._history import History
from ._middleware import Middleware
from ._shorten import Messages, clear_results, place_of_request, squeeze, truncate, where_to_cut, without_oldest
from ._summary import SUMMARY_PROMPT, UPDATE_PROMPT, clip, summary_in, summary_message, summary_request
from .providers._base import StopReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from ._messages import Message
    from ._middleware import RunState

    Kind: TypeAlias = Literal["cleared", "summarized", "truncated"]

_MARGIN = 1.1  # on an estimate that no report of the provider has calibrated
_COMFORT = 0.75  # of the limit: what a compaction should get below
_TIGHT = 0.85  # of what the limit leaves for the conversation: what it is clipped to, where nothing else is enough
_SUMMARY = 4000  # tokens of a summary, at most
_CAP = 8192  # tokens that the model may take to write it, its reasoning included

logger = logging.getLogger("alloy_trio.compaction")


def _at_least(least: int) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidOption(f"{field.name}={value!r} has to be a whole number, {least} or more")

    return check


def _flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidOption(f"{field.name}={value!r} has to be True or False")


def _fallback(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value not in ("truncate", None):
        raise InvalidOption(f'{field.name}={value!r} has to be "truncate" or None')


def _prompt(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise InvalidOption(
            f"{field.name}={value!r} has to be text that says what to write, or None for the built-in one"
        )


@attrs.frozen(kw_only=True)
class Compaction(Middleware):
    """
    Keeps a conversation within the model's window. A middleware; on by default.

    Attributes:
        reserve_tokens: How much of the window stays free, for the answer and for what the estimate misses; at most half of
            it. None: a tenth of the window, at most 16,000.
        keep_recent_tokens: How much of the end of the conversation stays as it is, as long as that leaves room. None: an
            eighth of the window, at most 20,000.
        clear_tool_results: Whether to try first if it is enough to clear old tool results.
        keep_recent_tool_results: How many of the last ones are not cleared; 0 for none.
        fallback: What to do where there is no summary: `truncate` old messages, or None to leave all as it is.
        summary_prompt: What to say to the model, below the conversation, in place of the built-in instructions.
        update_prompt: The same where there is a summary already, which stands above the conversation.
    """

    reserve_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(1)))
    keep_recent_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(1)))
    clear_tool_results: bool = attrs.field(default=True, validator=_flag)
    keep_recent_tool_results: int = attrs.field(default=3, validator=_at_least(0))
    fallback: Literal["truncate"] | None = attrs.field(default="truncate", validator=_fallback)
    summary_prompt: str | None = attrs.field(default=None, validator=_prompt)
    update_prompt: str | None = attrs.field(default=None, validator=_prompt)

    def reserved(self, context_tokens: int) -> int:
        """Return how many tokens of a window stay free."""
        wanted = min(context_tokens // 10, 16_000) if self.reserve_tokens is None else self.reserve_tokens
        return max(1, min(wanted, context_tokens // 2))

    def recent(self, context_tokens: int) -> int:
        """Return how many tokens at the end of a conversation stay as they are, in a window of that size."""
        wanted = min(context_tokens // 8, 20_000) if self.keep_recent_tokens is None else self.keep_recent_tokens
        return max(1, wanted)

    async def before_completion(self, state: RunState) -> None:
        """Compact the conversation if the next prompt would be too large."""
        limit = self._limit(state)
        if state.estimated_tokens > limit:
            await self._compact(state, _Room.of(state, limit, int(limit * _COMFORT)))

    async def on_context_overflow(self, state: RunState, error: Exception) -> None:  # noqa: ARG002 - the hook's shape
        """Compact the conversation to half of its size: the window, or the estimate, is not what we believe."""
        await self.compact(state)

    async def compact(self, state: RunState) -> None:
        """Compact the conversation to half of its size now, whatever room there is: for a hook of yours that knows when."""
        limit = min(self._limit(state), state.estimated_tokens // 2)
        await self._compact(state, _Room.of(state, limit, limit))

    def _limit(self, state: RunState) -> int:
        margin = 1.0 if estimator_for(state.provider, state.model).calibrated else _MARGIN
        return int((state.context_tokens - self.reserved(state.context_tokens)) / margin)

    async def _compact(self, state: RunState, room: _Room) -> None:
        messages = state.messages
        if room.total(messages) > room.goal and not await self._reduce(state, room):
            return
        if room.total(state.messages) > room.crowded:
            await self._squeeze(state, attrs.evolve(room, goal=room.tight))
        elif state.messages is messages:
            await self._leave_reasoning_out(state)

    async def _reduce(self, state: RunState, room: _Room) -> bool:
        """Do to the middle what is needed. Returns False where all is to be left as it is."""
        parts = self._cut(state, room)
        middle, cleared = parts.middle, parts.around(parts.middle)
        if self.clear_tool_results:
            spared = self.keep_recent_tool_results - sum(len(message.tool_results) for message in parts.recent)
            cleared = parts.around(clear_results(middle, spared=spared))
        if cleared != state.messages and room.total(cleared) <= room.goal:
            await self._apply(state, middle, (cleared, "cleared"))
        elif room.is_worth_a_summary(parts.going):
            summary = await self._summarize(state, middle, room)
            if summary is not None:
                summarized = parts.around((summary, *parts.request))
                await self._apply(state, parts.going, (cleared, "cleared"), (summarized, "summarized"))
            elif self.fallback is None:
                return False
            else:
                truncated = parts.around(truncate(middle))
                if room.total(truncated) > room.crowded:
                    truncated = without_oldest(truncated, room.surplus, keep=len(parts.recent))
                await self._apply(state, middle, (truncated, "truncated"))
        return True

    async def _apply(self, state: RunState, middle: Messages, *steps: tuple[Messages, Kind]) -> None:
        """Put shorter conversations in the place of this one, step by step; what changes nothing is no step."""
        steps = tuple(step for step in steps if step[0] != state.messages)
        if steps:
            await self._tell(state, middle)
        for number, (messages, kind) in enumerate(steps, 1):
            await state.compacted(messages, kind, final=number == len(steps))

    async def _leave_reasoning_out(self, state: RunState) -> None:
        """Begin an epoch, and change nothing else: reasoning alone is what is too much."""
        first, *rest = state.messages
        await state.compacted((attrs.evolve(first, epoch=first.epoch + 1), *rest), "cleared")

    def _cut(self, state: RunState, room: _Room) -> _Parts:
        messages = state.messages
        places = where_to_cut(messages)
        start = next((place for place in places if place > 0), len(messages))
        request = place_of_request(messages)
        asked = _size(messages[request : request + 1] if request >= start else ())
        sizes = [measure(message, reasoning=False) for message in reversed(messages)]
        behind = [*itertools.accumulate(sizes, initial=Size())][::-1]
        budget = self.recent(state.context_tokens)
        left = room.goal - room.total(messages[:start]) - room.summary

        def fits(place: int) -> bool:
            whole = behind[place] + asked if place > request else behind[place]
            return room.estimator.tokens(behind[place]) <= budget and room.estimator.tokens(whole) <= left

        places = [place for place in places if place >= start]
        end = next(filter(fits, places), places[-1] if places else start)
        kept = messages[request : request + 1] if start <= request < end else ()
        return _Parts(messages[:start], messages[start:end], messages[end:], kept)

    async def _summarize(self, state: RunState, middle: Sequence[Message], room: _Room) -> Message | None:
        """Ask the run's provider for a summary; None where there is none, which is logged."""
        cap = max(min(_CAP, room.limit // 4), min(state.max_output_tokens or 0, room.limit // 2))
        request = summary_request(
            middle,
            (self.summary_prompt or SUMMARY_PROMPT, self.update_prompt or UPDATE_PROMPT),
            room=room.bytes(room.limit - cap),
            allowed=room.summary,
            cap=cap,
        )
        if request is None:
            logger.warning("the window is too small for a summary of the conversation")
            return None
        try:
            response = await state.ask(request)
        except ProviderError as error:
            logger.warning("the conversation could not be summarized: %s", error)
            return None
        text = response.message.text.strip()
        if not text or response.stop_reason in {StopReason.REFUSAL, StopReason.MAX_TOKENS}:
            logger.warning("the conversation was not summarized: the model stopped for %s", response.stop_reason)
            return None
        return summary_message(clip(text, room.bytes(room.summary)))

    async def _squeeze(self, state: RunState, room: _Room) -> None:
        """Make even the first and the recent messages shorter: without that the prompt does not fit."""
        messages = state.messages
        shorter = squeeze(messages, room.surplus, drop=self.fallback is not None)
        if shorter == messages:
            return
        kept = set(map(id, shorter))
        await self._tell(state, [message for message in messages if id(message) not in kept])
        await state.compacted(shorter, "truncated")

    async def _tell(self, state: RunState, messages: Sequence[Message]) -> None:
        """Let the user's callback see what is about to go."""
        if state.on_compaction is None:
            return
        try:
            answer = state.on_compaction(tuple(messages), state)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            logger.exception("on_compaction raised; the compaction goes on")


@attrs.frozen
class _Room:
    """
    How much room there is, in tokens.

    Attributes:
        estimator: Of the run's model.
        fixed: What the system prompt and the tools take.
        limit: What a prompt may take.
        goal: What it should take.
    """

    estimator: Estimator
    fixed: int
    limit: int
    goal: int

    @classmethod
    def of(cls, state: RunState, limit: int, goal: int) -> _Room:
        estimator = estimator_for(state.provider, state.model)
        conversation = estimator.tokens(History(state.messages).size)
        return cls(estimator, state.estimated_tokens - conversation, limit, goal)

    @property
    def summary(self) -> int:
        """How long a summary may be."""
        return min(_SUMMARY, self.limit // 8)

    @property
    def tight(self) -> int:
        """What a prompt is clipped to: less than it may take, or the next turn would have it clipped again."""
        return max(self.goal, self.fixed + int(_TIGHT * (self.limit - self.fixed)))

    @property
    def crowded(self) -> int:
        """Above what it is clipped: where there is room for a few turns, everybody's words stay as they are."""
        return (self.tight + self.limit) // 2

    def total(self, messages: Iterable[Message]) -> int:
        """Return how large the prompt is with these messages, once they are another conversation than before."""
        return self.fixed + self.estimator.tokens(_size(messages))

    def surplus(self, messages: Iterable[Message], *, comfortably: bool = False) -> int:
        """Return by how many bytes a conversation is too large; 0 or less if it is not."""
        return self.bytes(self.total(messages) - (self.goal if comfortably else self.limit))

    def bytes(self, tokens: int) -> int:
        """Return how many bytes of text so many tokens are."""
        return int(tokens * self.estimator.bytes_per_token)

    def is_worth_a_summary(self, messages: Sequence[Message]) -> bool:
        """Whether a summary would be shorter than what it stands for."""
        new = [message for message in messages if summary_in(message) is None]
        return self.estimator.tokens(_size(new)) > self.summary


@attrs.frozen
class _Parts:
    """A conversation cut in three; with the user's latest request, if it is in the middle."""

    head: Messages
    middle: Messages
    recent: Messages
    request: Messages

    @property
    def going(self) -> Messages:
        """What is no more there in its own words, once the middle is summarized."""
        return tuple(message for message in self.middle if not any(message is each for each in self.request))

    def around(self, middle: Messages) -> Messages:
        """Return the whole with another middle."""
        return self.head + middle + self.recent


def _size(messages: Iterable[Message]) -> Size:
    return sum((measure(message, reasoning=False) for message in messages), Size())
