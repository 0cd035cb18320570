"""
A run while it is under way: the history so far, and who is told of what happens.

A turn enters the history whole, or reduced, once, before it is ever sent. What a cut leaves of it:

    cut while                       kept                                         dropped
    streaming                       the text, right-stripped, as one block,      signed thinking, tool calls, server-tool
                                    marked `interrupted`; reasoning that the     blocks, annotations, item ids, opaque blocks
                                    chat wire wants back
    streaming, no text yet          nothing                                      all
    tools running                   the answer verbatim; one result per call     nothing
    between turns                   everything                                   nothing

Each row is a 400 of some provider avoided: a final thinking block, blank text, half a tool call, a call without its result,
a reasoning item without its follower. So the history is valid for every provider at the moment the cut returns.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ._budget import Account, around
from ._config import Config
from ._controls import Controls
from ._emitter import Emitter
from ._errors import InvalidOption
from ._estimate import Size, estimator_for
from ._events import BlockEnd, Compacted, Retry, Steered, TextDelta
from ._history import History
from ._instruments import is_on, tell
from ._messages import Block, Message, Outcome, Text, Thinking, ToolResult
from ._middleware import Hooks, RunState
from ._result import Result, Status, ToolCall
from ._session import Session
from ._telemetry import CompactionDone
from ._usage import NO_USAGE, Usage
from .providers._base import Request, StopReason, terms_of
from .providers._metered import Metered
from .providers._retry import Streaming
from .tools._executor import Batch

if TYPE_CHECKING:
    from ._events import ProviderEvent
    from .providers._base import Response


class Recorder:
    """What has arrived of the answer in flight: enough to keep what can be kept, should it be cut."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[Thinking] = []
        self.has_any: bool = False  # of it
        self.asked: Retry | None = None  # who it is of, if not of the provider that was asked first

    def take(self, events: tuple[ProviderEvent | Retry, ...]) -> None:
        """Note the events of one read."""
        for event in events:
            if type(event) is TextDelta:
                self._text.append(event.text)
                continue
            if isinstance(event, Retry):
                self.asked = event
                continue
            self.has_any = True
            if isinstance(event, BlockEnd) and isinstance(event.block, Thinking) and event.block.is_plain:
                self._reasoning.append(event.block)
        self.has_any = self.has_any or bool(self._text)

    def partial(self, provider: str, model: str | None, origin: str | None) -> Message | None:
        """Return the message that is kept of a cut answer, or None where nothing is."""
        text = "".join(self._text).rstrip()
        if not text:
            return None
        blocks = (*self._reasoning, Text(text))
        return Message("assistant", blocks, provider=provider, model=model, origin=origin, interrupted=True)


@attrs.define(kw_only=True, eq=False)
class Run:
    """One run; only the loop and its hooks change it."""

    config: Config
    session: Session
    history: History
    emitter: Emitter
    metered: tuple[Metered, ...]  # the providers, in the order in which they are asked
    provider: Streaming  # what is asked: a chain of them, with retries
    origin: tuple[str, str | None, str | None]  # name, model and fingerprint of the provider that is asked first
    fixed_size: Size  # of what each request has ahead of the messages
    prefix: str  # a digest of that part, and of the model
    account: Account
    hooks: Hooks
    context: dict[str, Any] = attrs.field(repr=False)  # the user's own values
    streaming: bool
    controls: Controls = attrs.field(factory=Controls)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    turns: int = 0
    stop_reason: str | None = None
    output: Any = None  # the value of `output_type`, once there is one
    misfits: int = 0  # answers that were none of `output_type`
    recorder: Recorder | None = None  # while an answer streams
    batch: Batch | None = None  # while tools run
    calls: list[ToolCall] = attrs.field(factory=list)  # of the batches that are over
    cut_batch: Batch | None = None  # the last one, whose calls have not all been told of
    _ending: tuple[Status, Exception | None] | None = attrs.field(init=False, default=None)
    _outcome: Result | None = attrs.field(init=False, default=None)
    view: RunState = attrs.field(init=False, default=attrs.Factory(RunState, takes_self=True))
    _committed: Usage | None = attrs.field(init=False, default=None)  # of this run, as of the last commit
    _usage_of: Usage | None = attrs.field(init=False, default=None)  # what the sum was made of
    _usage_sum: Usage = attrs.field(init=False, default=NO_USAGE)
    _of_answer: tuple[str, ...] = ()  # keys of the metadata that are the last answer's
    began_from: tuple[Message, ...] = attrs.field(
        init=False, default=attrs.Factory(lambda self: self.session.messages, takes_self=True)
    )
    _usage_before: Usage = attrs.field(
        init=False, default=attrs.Factory(lambda self: self.session.usage, takes_self=True)
    )

    @property
    def size(self) -> Size:
        """How large the next request is."""
        return self.fixed_size + self.history.size

    @property
    def estimated_tokens(self) -> int:
        """The same in tokens."""
        return self.estimate(self.size)

    def estimate(self, size: Size) -> int:
        """Return how many tokens something has, for the model that is asked first."""
        return estimator_for(self.origin[0], self.origin[1]).tokens(size)

    @property
    def cost_cents(self) -> Decimal | None:
        """What the run and its sub-agents have cost so far, in cents, if that is known."""
        return self.account.cost * 100 if self.account.is_known else None

    async def ask(self, request: Request) -> Response:
        """Ask the provider something beside the conversation. What it was told to think with comes on top of the cap."""
        if not isinstance(request, Request):
            raise InvalidOption(f"{request!r:.100} is no Request: say Request(messages=(Message.user(…),))")
        if request.max_output_tokens is not None:
            first = self.metered[0]
            cap = request.max_output_tokens + terms_of(first.provider).thinking_budget
            request = attrs.evolve(request, max_output_tokens=int(min(cap, first.limit)))
        request = attrs.evolve(request, alone=True)

        async def emit(*events: ProviderEvent | Retry) -> None:
            await self.emitter.emit(*(event for event in events if isinstance(event, Retry)))

        return await self.provider.stream(request, emit)

    async def compacted(
        self, messages: tuple[Message, ...], kind: Literal["cleared", "summarized", "truncated"], *, final: bool
    ) -> None:
        """Replace the history by a shorter one, and tell everybody."""
        count, tokens = len(self.history.messages), self.estimated_tokens
        if not self.history.replace(messages):
            return
        self.commit()
        event = Compacted(kind, count, len(messages), tokens, self.estimated_tokens)
        await self.emitter.emit(event)
        if is_on():
            tell(
                CompactionDone(
                    session_id=self.session.id,
                    correlation_id=self.emitter.correlation_id,
                    turn=self.emitter.turn,
                    **attrs.asdict(event),
                )
            )
        if final:
            await self.hooks.fire("after_compaction", self.view)

    def commit(self) -> None:
        """Let the session say what the run has done so far, unless calls wait for their results: then it is no valid history."""
        messages = self.history.messages
        if self.batch is not None or (messages is self.session.messages and self._committed is self.account.usage):
            return
        if self.session.prefix != self.prefix:
            self.session.prefix = self.prefix
        self._committed = self.account.usage
        kept = self.metadata.get("provider_state")
        self.session.update(messages, self.usage_of_session, None if kept is None else {"provider_state": kept})

    @property
    def usage_of_session(self) -> Usage:
        """Tokens of all runs of the session, up to now."""
        if self._usage_of is not self.account.usage:
            self._usage_of, self._usage_sum = self.account.usage, self._usage_before + self.account.usage
        return self._usage_sum

    async def save(self) -> None:
        """Have the run written down, as far as it has got. Raises StoreError if that fails."""
        if self.controls.journal is not None:
            await self.controls.journal.save(self)

    async def save_result(self, result: ToolResult) -> None:
        """Have the result of a call written down that has just ended."""
        assert self.controls.journal is not None
        await self.controls.journal.save_result(self, result)

    def place_of(self, result: ToolResult) -> int:
        """Return which of the calls under way has this very result: some servers give two calls of one answer the same id."""
        assert self.batch is not None
        calls = self.batch._invocations  # noqa: SLF001 - only they know whose it is
        return next(place for place, call in enumerate(calls) if call.outcome is not None and call.result() is result)

    async def listen(self) -> None:
        """Take what was said to the run meanwhile, at a turn's boundary; then have all of it written down."""
        if self.controls.has_remarks and not self._is_paused():
            blocks, interrupted = self.controls.take()
            self._say(blocks)
            self.commit()
            await self.emitter.emit(Steered(Message.user(*blocks).text, interrupted))
        await self.save()

    def _is_paused(self) -> bool:
        """Whether the provider is in the middle of its own tools, and must get its answer back as it is."""
        return self.stop_reason == StopReason.PAUSE_TURN and self.history.messages[-1].role == "assistant"

    def _say(self, blocks: tuple[Block, ...]) -> None:
        """Put a remark behind the results, in the same message, or behind the question: some servers refuse two of the user's."""
        before, messages = self.began_from, self.history.messages
        if messages and messages[-1].role == "user" and not (before and messages[-1] is before[-1]):
            self.history.add_to_last(*blocks)
        else:
            self.history.append(Message.user(*blocks))

    def close(self) -> None:
        """Take no more remarks: the run is about to end. What it has not taken any more is left for the next one."""
        if blocks := self.controls.close():
            self._say(blocks)

    def take_metadata(self, response: Response) -> None:
        """Let the metadata say what is known of the last answer, and of the provider's state as of it."""
        for key in self._of_answer:
            self.metadata.pop(key, None)
        self._of_answer = tuple(response.metadata)
        self.metadata.update(response.metadata)
        if response.message.provider_state:
            self.metadata["provider_state"] = dict(response.message.provider_state)

    def close_batch(self, *, recorded: bool = True) -> None:
        """Put the results of the batch that is over into the history, and its calls among the run's if they are `recorded`."""
        if self.batch is not None:
            self.history.append(Message.user(*self.batch.results()))
            if recorded:
                if self.batch.is_told:
                    self.calls += self.batch.records
                else:
                    self.cut_batch = self.batch
            self.batch = self.controls.batch = None

    def cut(self, outcome: Outcome) -> Batch | None:
        """
        Reduce the turn under way to what can be kept, as the table says. Does nothing between turns.

        Returns the batch that was cut, whose calls have not all been told of.
        """
        batch = self.batch
        if self.recorder is not None:
            partial = self.recorder.partial(*self._asked(self.recorder.asked))
            if partial is not None:
                self.history.append(partial)
            self.recorder = None
        if batch is not None:
            batch.cut(outcome)
            self.close_batch()
        self.commit()
        return batch

    def _asked(self, retry: Retry | None) -> tuple[str, str | None, str | None]:
        """Return name, model and fingerprint of the provider that was asked last."""
        for each in self.metered:
            if retry is not None and (each.name, each.model) == (retry.provider, retry.model):
                return each.name, each.model, getattr(each.provider, "origin", None)
        return self.origin

    def ends_as(self, status: Status, error: Exception | None = None) -> None:
        """How the run ends is known, if not for the last time."""
        self._ending, self._outcome = (status, error), None

    @property
    def outcome(self) -> Result | None:
        """The result, once it is known how the run ends, if only the last events are not taken yet. Made for whoever asks."""
        if self._outcome is None and self._ending is not None:
            self._outcome = self._result(*self._ending)
        return self._outcome

    def _result(self, status: Status, error: Exception | None) -> Result:
        messages = self.history.messages
        last = next((message for message in reversed(messages) if message.role == "assistant"), None)
        return Result(
            text="" if last is None else last.text,
            output=self.output,
            messages=messages,
            usage=self.account.usage,
            cost_cents=self.cost_cents,
            overrun_cents=max((budget.overrun for budget in around().budgets), default=Decimal(0)) * 100,
            tool_calls=(*self.calls, *(() if self.cut_batch is None else self.cut_batch.records)),
            status=status,
            turns=self.turns,
            error=error,
            stop_reason=self.stop_reason,
            metadata=dict(self.metadata),
        )
