"""
A conversation with a person: lines and keys in, requests to an agent under a supervisor out.

The agent writes each step into a store before the next begins. Whatever changes the conversation itself (`/load`, `/undo`,
`/compact`) ends the agent, writes what it is to begin with, and starts another: a *place* says which one that is.
"""

from __future__ import annotations

import contextlib
import re
import signal
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .._agent import Agent
from .._errors import AgentIdle, AlloyError, InvalidOption, StoreError
from .._events import ApprovalRequested, RunStart, Steered, TurnEnd
from .._journal import write_session
from .._util import single
from ..supervision._supervisor import open_supervisor
from ._ask import AskPerson, editable, edited
from ._attach import to_message
from ._commands import run_command
from ._front import Place
from ._keys import Key, Line
from ._show import explain, shortfall
from ._text import clip, one_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._agent_config import AgentOptions
    from .._events import Envelope
    from .._messages import Message, ToolUse
    from .._result import Result
    from .._usage import Usage
    from ..sessions._record import SessionStore
    from ..supervision._spec import ChildSpec
    from ..supervision._supervisor import Supervisor
    from ._front import Front
    from ._library import Library
    from ._setup import Setup

AGENT: Final = "assistant"
IDLE: Final = "> "
_BUSY: Final = "steer > "
_EDIT: Final = "input > "
_COMMAND: Final = re.compile(r"/(\w+|\?)(?:\s+(.*))?", re.DOTALL)
_SHORT: Final = 60  # characters of a line that are repeated
_CLOSE_WITHIN: Final = 0.5  # seconds that the end of a cancelled request may wait for the terminal


class Conversation:
    """
    What a person and an agent have to do with each other.

    Attributes:
        front: The terminal.
        setup: What requests are made with.
        library: Where conversations are kept.
        read_setup: Reads the configuration anew.
        agent: Whom the person talks to.
        supervisor: What keeps it alive.
        name: The name of the session.
        cost: Dollars that this program has spent; None where a price is not known.
        context_used: Tokens of the last request, with its answer.
    """

    front: Front
    agent: Agent
    supervisor: Supervisor

    def __init__(
        self, front: Front, setup: Setup, library: Library, read_setup: Callable[[], Setup], *, once: bool = False
    ) -> None:
        self.front = front
        self.setup = setup
        self.library = library
        self.read_setup = read_setup
        self.name = ""
        self.cost: Decimal | None = Decimal(0)
        self.context_used = 0
        self._once = once
        self._status = 0
        self._next: Place | None = None
        self._listening = trio.CancelScope()
        self._request: trio.CancelScope | None = None
        self._idle = trio.Event()
        self._editing: ToolUse | None = None
        self._unheard: list[str] = []  # what was said to the request under way, and it has not taken
        self._is_leaving = False  # one more Ctrl-C, and it does
        self._is_alone = False  # nobody is there to be asked
        self._nursery: trio.Nursery

    async def hold(self, place: Place) -> int:
        """
        Talk until the person leaves, or, of one question, until it is answered. Returns the exit status.

        Raises:
            StoreError: The first conversation cannot be opened.
            OSError: The terminal is gone.
        """
        opened: Place | None = None
        following: Place | None = place
        while following is not None:
            place = following
            try:
                following = await self._visit(place)
                opened = Place(place.name)
            except StoreError as error:
                if opened is None or opened.name == place.name:
                    raise
                await self.front.say(f"error: {explain(error)}")
                following = opened
        return self._status

    async def _visit(self, place: Place) -> Place | None:
        self.name, self._next, self.context_used = place.name, None, 0
        async with self.library.open(place.name) as store:
            if place.session is not None:
                await write_session(store, attrs.evolve(place.session, id=place.name))
            async with open_supervisor([self._spec(place.name, store)], name="conversation") as supervisor:
                self.supervisor, self.agent = supervisor, supervisor[AGENT]
                try:
                    await self._talk(place.ask)
                except ExceptionGroup as group:
                    raise single(group) from None
        return self._next

    def _spec(self, name: str, store: SessionStore) -> ChildSpec:
        own: AgentOptions = {
            "provider": self.setup.provider,
            "name": AGENT,
            "session_id": name,
            "session_store": store,
            "middleware": [AskPerson(self.setup.asked)],
        }
        options: AgentOptions = {**own, **self.setup.options()}
        return Agent.child_spec(**options)

    async def _talk(self, ask: Message | None) -> None:
        self._listening = trio.CancelScope()
        self.update_status()
        async with trio.open_nursery() as self._nursery:
            with self._listening:
                if ask is not None:
                    await self.begin(ask)
                elif not self._once:
                    await self.front.prompt(IDLE)
                while not self._listening.cancel_called:
                    await self._take(await self.front.receive())
            self._nursery.cancel_scope.cancel()

    def go(self, place: Place | None) -> None:
        """Leave this conversation for another one, or for good."""
        self._next = place
        self._listening.cancel()

    # What the person does

    async def _take(self, what: Line | Key) -> None:
        if isinstance(what, Key):
            await (self._interrupt() if what is Key.INTERRUPT else self._end())
            return
        self._is_leaving = False
        try:
            await self._read(what.text, what.about)
        except AlloyError as error:
            await self.front.say(f"error: {explain(error)}")
            await self._prompt_again()

    async def _read(self, text: str, about: str) -> None:
        call = self._asked
        if self._editing is not None and self._editing.id == about:
            await self._edit(self._editing, text)
        elif (command := _COMMAND.fullmatch(text.strip())) is not None:
            await self.front.echo(text)
            await run_command(self, command[1], (command[2] or "").strip())
            await self._prompt_again()
        elif call is not None and call.id == about:
            await self._decide(call, text)
        elif about:
            await self.front.say(f"not asked any more, so this decides nothing: {clip(one_line(text), _SHORT)}")
            await self._prompt_again()
        elif not text.strip():
            await self._prompt_again()
        elif self.is_busy:
            await self.steer(text)
            if call is not None:
                await self._question(call)
        else:
            await self.front.echo(text)
            await self.begin(to_message(text, self.setup.directory))

    @property
    def _asked(self) -> ToolUse | None:
        return next(iter(self.agent.pending_approvals()), None)

    async def _interrupt(self) -> None:
        if self._request is not None:
            self._request.cancel()
            self._is_leaving = True
        elif self._is_leaving:
            self._status = 128 + signal.SIGINT
            self.go(None)
        else:
            self._is_leaving = True
            await self.front.say("Ctrl-C once more leaves", dim=True)
            await self.front.prompt(IDLE)

    async def _end(self) -> None:
        if not self._once:
            self.go(None)
            return
        self._is_alone = True
        for call in self.agent.pending_approvals():
            self._refuse_alone(call)

    async def _prompt_again(self) -> None:
        if (call := self._asked) is not None:
            await self._question(call)
        else:
            await self.front.prompt(_BUSY if self.is_busy else IDLE)

    # Requests

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._request is not None

    async def begin(self, message: Message) -> None:
        """Ask the agent; the answer is shown as it comes."""
        await self._start(partial(self._answer, message))

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something else that takes long, which can be cancelled as a request can."""
        await self._start(partial(self._do, work))

    async def _start(self, request: Callable[[trio.CancelScope], Awaitable[None]]) -> None:
        self._request, self._idle = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(request, self._request)
        await trio.lowlevel.checkpoint()

    async def _do(self, work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        await self.front.prompt(_BUSY)
        with scope:
            try:
                await work()
            except AlloyError as error:
                await self.front.say(f"error: {explain(error)}")
        if scope.cancelled_caught:
            await self.front.say("cancelled")
        await self._ended(0)

    def cancel(self) -> bool:
        """Cancel the request under way; returns whether there is one."""
        if self._request is None:
            return False
        self._request.cancel()
        return True

    async def steer(self, text: str) -> None:
        """Say something to the request under way: at the next boundary, or, behind `!`, at once."""
        interrupts = text.startswith("!")
        message = to_message(text.removeprefix("!"), self.setup.directory)
        try:
            self._unheard.append(message.text)
            await self.agent.steer(message, interrupt="turn" if interrupts else None)
        except AgentIdle:  # it has just ended: then it is a question
            self._unheard.remove(message.text)
            await self._idle.wait()
            await self.front.echo(text)
            await self.begin(message)

    async def _answer(self, message: Message, scope: trio.CancelScope) -> None:
        view = self.front.view()
        events = self.agent.stream_chat(message)
        status = 1
        await self.front.prompt("" if self._once else _BUSY)
        with scope:
            try:
                try:
                    with self.setup.budget or contextlib.nullcontext():
                        async with events:
                            async for envelope in events.envelopes():
                                await view.show(envelope)
                                await self._note(envelope)
                finally:
                    with trio.move_on_after(_CLOSE_WITHIN, shield=True):
                        await view.close()
                self.account(events.result)
                status = 0 if events.result.status == "completed" else 1
                if said := shortfall(events.result):
                    await self.front.say(said)
            except AlloyError as error:
                self.account(error.result)
                await self.front.say(f"error: {explain(error)}")
        if scope.cancelled_caught:
            status = 128 + signal.SIGINT
            with contextlib.suppress(RuntimeError):  # it had not begun
                self.account(events.result)
            await self.front.say("cancelled")
        await self._ended(status)

    async def _ended(self, status: int) -> None:
        self._request = self._editing = None
        for text in self._unheard:
            await self.front.say(f"↳ goes with the next question: {clip(one_line(text), _SHORT)}", dim=True)
        self._unheard.clear()
        self._idle.set()
        self.update_status()
        if self._once:
            self._status = status
            self.go(None)
        else:
            await self.front.prompt(IDLE)

    def account(self, result: Result | None) -> None:
        """Add what a run has cost."""
        if result is not None and self.cost is not None:
            self.cost = None if result.cost_cents is None else self.cost + Decimal(result.cost_cents) / 100

    async def _note(self, envelope: Envelope) -> None:
        match envelope.event:
            case TurnEnd(usage=usage):
                self.context_used = _tokens(usage)
                self.update_status()
            case RunStart():
                self.update_status()
            case Steered(text=text):
                self._unheard = [each for each in self._unheard if each not in text]
            case ApprovalRequested(id=id_):
                for call in self.agent.pending_approvals():
                    if call.id == id_ and self._is_alone:
                        self._refuse_alone(call)
                if (asked := self._asked) is not None:
                    await self._question(asked)

    # Approval

    async def _question(self, call: ToolUse) -> None:
        await self.front.prompt(f"run {call.name}? y · n [reason] · a = always · e = edit > ", about=call.id)

    async def _decide(self, call: ToolUse, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        match word.lower().rstrip(",.:"):
            case "n" | "no":
                self.agent.deny(call.id, rest.strip() or "the user has denied it")
            case _ if rest.strip():  # a sentence that begins with "a" approves nothing
                await self._question(call)
                return
            case "y" | "yes":
                self.agent.approve(call.id)
            case "a" | "always":
                self.setup.asked.discard(call.name)
                self.agent.approve(call.id)
            case "e" | "edit":
                self._editing = call
                await self.front.prompt(_EDIT, editable(call.name, call.input), call.id)
                return
            case _:
                await self._question(call)
                return
        await self.front.prompt(_BUSY)

    async def _edit(self, call: ToolUse, text: str) -> None:
        self._editing = None
        if not text.strip():
            return await self._question(call)
        try:
            self.agent.approve(call.id, edited(call, text))
        except (ValueError, InvalidOption) as error:
            await self.front.say(f"error: {explain(error)}")
            return await self._question(call)
        return await self.front.prompt(_BUSY)

    def _refuse_alone(self, call: ToolUse) -> None:
        self.agent.deny(call.id, "nobody is there to approve it")

    # The status line

    @property
    def context_tokens(self) -> int:
        """How much fits the model's window."""
        return self.agent.config.of_run().context_tokens

    def update_status(self) -> None:
        """Show how things are."""
        turns = sum(message.role == "assistant" for message in self.agent.messages)
        parts = [
            self.setup.model,
            f"{turns} turn{'' if turns == 1 else 's'}",
            f"{_tokens(self.agent.usage):,} tokens",
            money(self.cost),
        ]
        if self.setup.budget is not None:
            parts.append(f"{money(self.setup.budget.left)} left")
        parts.append(f"context {100 * self.context_used // self.context_tokens} %")
        self.front.show_status(" · ".join(parts))


def _tokens(usage: Usage) -> int:
    prompt = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    return prompt + usage.output_tokens


def money(dollars: Decimal | None) -> str:
    """Return an amount as text."""
    return "cost unknown" if dollars is None else f"${dollars:.4f}"
