"""An agent at the other end: the methods, errors and cancels of a local one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .._codec import load
from .._desk import as_message
from .._errors import RequestCancelled, UnknownRequest
from .._events import Envelope
from .._messages import Message
from .._result import Result
from .._run import EventStream
from .._session import Session
from .._usage import Usage
from .._util import new_id
from . import _data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._emitter import Sink
    from .._events import Event
    from .._health import Health
    from .._messages import ToolUse
    from .._util import JSONObject
    from ._client import Remote


class RemoteAgent:
    """
    The handle of an agent that lives at the other end: what an `Agent` has, over a connection.

    Readers are async here. A cancel of the caller ends the request there, and leaves once nothing of it runs; budgets around the
    caller do not reach over. Errors are of the types that they have there.
    """

    def __init__(self, remote: Remote, name: str) -> None:
        self._remote = remote
        self.name: str = name

    async def _call(self, do: str, *, repeats: bool = False, **given: Any) -> Any:
        return await self._remote._call(do, repeats=repeats, agent=self.name, **given)  # noqa: SLF001 - its other half

    async def chat(self, prompt: str | Message, *, request_id: str | None = None) -> Result:
        """
        Ask something, wait for its turn, and return the result.

        Raises:
            ConnectionLost: The connection was lost meanwhile: the agent has cancelled it by now, or will.
            UnknownAgent: There is none of that name.
            AlloyError: What a local agent raises, of the same types.
        """
        as_message(prompt)
        said = _data.prompt_to_json(prompt)
        return _data.result_from_json(await self._call("chat", prompt=said, request_id=request_id))

    def stream_chat(self, prompt: str | Message, *, request_id: str | None = None) -> EventStream:
        """Do what `chat` does, and see it happen: `async with agent.stream_chat("…") as events:`."""
        as_message(prompt)
        return EventStream(_Source(self, prompt, request_id))

    async def send_message(self, prompt: str | Message, *, request_id: str | None = None) -> RemotePending:
        """
        Ask something, and go on at once. It goes on too if the connection is lost: `pending(request_id)` asks for its result then.

        Raises:
            AgentBusy: The agent is busy, and `max_pending` is 0.
            QueueFull: As many requests wait as it allows.
        """
        as_message(prompt)
        request_id = request_id or new_id()
        said = {"prompt": _data.prompt_to_json(prompt), "request_id": request_id, "once": new_id()}
        await self._call("send_message", repeats=True, **said)
        return RemotePending(self, request_id)

    def pending(self, request_id: str) -> RemotePending:
        """Return a request that was made by `send_message`, from here or from another process."""
        return RemotePending(self, request_id)

    async def cancel_request(self, request_id: str) -> bool:
        """
        Cancel a request, queued or running. Returns once nothing of it runs, and whether that has won.

        Raises:
            UnknownRequest: No request of that id is queued or running.
        """
        return bool(await self._call("cancel_request", request_id=request_id))

    async def cancel_tool(self, call_id: str) -> bool:
        """
        End one tool call of the run under way; returns whether it ended by that.

        Raises:
            UnknownRequest: No such call is under way.
        """
        return bool(await self._call("cancel_tool", call_id=call_id))

    async def steer(self, prompt: str | Message, *, interrupt: Literal["stream", "turn"] | None = None) -> None:
        """
        Say something to the run under way.

        Raises:
            AgentIdle: There is no run that could take it.
        """
        as_message(prompt)
        await self._call("steer", prompt=_data.prompt_to_json(prompt), interrupt=interrupt)

    async def pending_approvals(self) -> tuple[ToolUse, ...]:
        """Return the calls that wait for a person, in order."""
        return tuple(map(_data.call_from_json, await self._call("pending_approvals", repeats=True)))

    async def approve(self, call_id: str, input: Mapping[str, Any] | None = None) -> None:  # noqa: A002 - the word for it
        """
        Let a call run that waits, or let it run with another input.

        Raises:
            UnknownRequest: No such call waits.
            InvalidOption: The input does not fit the tool; the call goes on waiting.
        """
        await self._call("approve", call_id=call_id, input=None if input is None else dict(input))

    async def deny(self, call_id: str, reason: str = "the user has denied it") -> None:
        """
        Refuse a call that waits.

        Raises:
            UnknownRequest: No such call waits.
        """
        await self._call("deny", call_id=call_id, reason=reason)

    async def wait_idle(self) -> None:
        """Wait until no request is under way, and none waits."""
        await self._call("wait_idle", repeats=True)

    async def reset(self) -> None:
        """
        Begin the conversation anew.

        Raises:
            AgentBusy: A run is on, or a request waits.
        """
        await self._call("reset")

    async def messages(self) -> tuple[Message, ...]:
        """Return the conversation, as it was before the run under way."""
        return tuple(load(each, Message) for each in await self._call("messages", repeats=True))

    async def usage(self) -> Usage:
        """Return the tokens of all runs before the one under way."""
        return load(await self._call("usage", repeats=True), Usage)

    async def health(self) -> Health:
        """Say how the agent is."""
        said = await self._call("health", repeats=True)
        return _data.health_from_json({name: value for name, value in said.items() if name != "session_id"})

    async def session_id(self) -> str:
        """Return the id of its conversation, and of its topics."""
        return str((await self._call("health", repeats=True))["session_id"])

    async def export_session(self) -> Session:
        """Return a copy of the conversation as it was before the run under way."""
        return Session.from_json(await self._call("export_session", repeats=True))

    def __repr__(self) -> str:
        return f"<RemoteAgent: {self.name} of {self._remote!r}>"


class RemotePending:
    """
    A request that an agent at the other end works on by itself. It goes on whether this is kept or not.

    Attributes:
        request_id: Its id.
    """

    def __init__(self, agent: RemoteAgent, request_id: str) -> None:
        self._agent = agent
        self.request_id: str = request_id

    async def result(self) -> Result:
        """
        Wait for the result. Being cancelled here only ends the waiting.

        Raises:
            UnknownRequest: The server knows nothing of it: it is over long ago, or the server was started again.
            AlloyError: What the run raised, as with `Pending`.
        """
        said = await self._agent._call("result", repeats=True, request_id=self.request_id)  # noqa: SLF001 - its own
        return _data.result_from_json(said)

    async def cancel(self) -> bool:
        """Cancel the request. Returns once nothing of it runs, and whether it was cancelled: False if it was over by then."""
        try:
            return await self._agent.cancel_request(self.request_id)
        except UnknownRequest:
            return False

    def __repr__(self) -> str:
        return f"<RemotePending: {self.request_id}>"


class _Received:
    """The events of one read, as they came."""

    def __init__(self, envelopes: tuple[Envelope, ...]) -> None:
        self._envelopes = envelopes
        self.events: tuple[Event, ...] = tuple(envelope.event for envelope in envelopes)

    def envelope(self, place: int) -> Envelope:
        return self._envelopes[place]

    def envelopes(self) -> list[Envelope]:
        return list(self._envelopes)


class _Source:
    """A stream's events from the other end."""

    def __init__(self, agent: RemoteAgent, prompt: str | Message, request_id: str | None) -> None:
        self._agent = agent
        self._asked: JSONObject = {"prompt": _data.prompt_to_json(prompt), "request_id": request_id}
        self._sink: Sink | None = None
        self._result: Result | None = None
        self._error: Exception | None = None

    def begin(self, sink: Sink) -> None:
        self._sink = sink

    async def drive(self) -> None:
        try:
            await self._agent._call("stream_chat", take=self._take, ended=self._note, **self._asked)  # noqa: SLF001 - its own
        except Exception as error:  # noqa: BLE001 - the stream raises it
            self._error = error
        finally:
            if self._result is None:  # it was lost with the connection, or never was one
                self._result = Result(status="cancelled" if self._error is None else "error", error=self._error)

    def _note(self, reply: JSONObject) -> None:
        said = reply["ok"] if "ok" in reply else reply["error"].get("result")
        self._result = None if said is None else _data.result_from_json(said)

    async def _take(self, part: JSONObject) -> None:
        assert self._sink is not None
        if not part.get("events"):
            return
        await self._sink(_Received(tuple(Envelope.from_dict(each) for each in part["events"])))

    def outcome(self) -> Result | None:
        return self._result

    def failure(self) -> Exception | None:
        return None if isinstance(self._error, RequestCancelled) else self._error

    def end(self) -> None:
        pass
