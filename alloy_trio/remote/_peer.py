"""
One connection, from the server's side.

    reader ──► a task for each request, in a scope of its own ──► writer
       │           what the agent says of it: `ok`, `error`, batches of events
       └──► `cancel`: ends that scope; `ack`: lets a stream go on

A connection that is lost cancels what it waits for: chats, streams, subscriptions. What was sent by `send_message` goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
import trio
from trio_websocket import ConnectionClosed

from .. import _checks
from .._codec import dump
from .._errors import InvalidOption, QueueFull, RequestCancelled
from .._util import JSONObject, new_id, single
from ..pubsub._topics import split_pattern
from . import _data
from ._errors import NotAllowed, ProtocolError, UnknownAgent
from ._link import GOING_AWAY, MALFORMED, until_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._agent import Agent
    from ._house import House
    from ._link import Link
    from ._rights import Permissions

logger = logging.getLogger("alloy_trio.remote")

WINDOW: Final = 8  # batches of a stream that the other end may be behind
_TOPICS: Final = 1000  # patterns of one subscription
_BUFFER: Final = 10_000  # messages that are kept for one that is slow


@attrs.frozen(kw_only=True)
class Limits:
    """
    What connections may take; the attributes are arguments of `serve_agents`. Raises InvalidOption.

    Attributes:
        max_requests: Requests under way.
        max_rate: Messages a second; more of them wait.
        ping_interval: Seconds between two pings.
        ping_timeout: Seconds that the answer to one may take, and a large message before it.
        idle_timeout: Seconds without a request after which the connection is closed.
        max_connections: Connections at once.
        max_message_size: Bytes of a message, in either direction.
    """

    max_requests: int = attrs.field(default=100, validator=_checks.whole_number)
    max_rate: float = attrs.field(default=500.0, validator=_checks.above_0)
    ping_interval: float = attrs.field(default=20.0, validator=_checks.above_0)
    ping_timeout: float = attrs.field(default=20.0, validator=_checks.above_0)
    idle_timeout: float = attrs.field(default=math.inf, validator=_checks.above_0)
    max_connections: int = attrs.field(default=100, validator=_checks.whole_number)
    max_message_size: int = attrs.field(default=64 * 2**20, validator=_checks.whole_number)


class Peer:
    """Whoever has connected."""

    def __init__(self, link: Link, house: House, permissions: Permissions, limits: Limits) -> None:
        self._link = link
        self._house = house
        self._permissions = permissions
        self._limits = limits
        self._scopes: dict[int, trio.CancelScope] = {}
        self._windows: dict[int, trio.Semaphore] = {}
        self._cancelled: dict[int, RequestCancelled] = {}  # what is said of them if they are
        self._is_idle = trio.Event()
        self._tokens = limits.max_rate
        self._counted = trio.current_time()

    async def serve(self) -> None:
        """Answer, until the connection is gone."""
        code, reason = GOING_AWAY, "the server has stopped"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_gone, self._link.write, nursery)
                beat = (self._limits.ping_interval, self._limits.ping_timeout)
                nursery.start_soon(until_gone, self._link.beat, nursery, *beat)
                nursery.start_soon(until_gone, self._until_idle, nursery)
                try:
                    hello = {
                        "agents": self._house.names(self._permissions),
                        "max_message_size": self._link.max_message_size,
                    }
                    await self._link.send({"hello": hello})
                    await self._read(nursery)
                except ProtocolError as error:
                    reason, code = str(error), error.code
                except (ConnectionClosed, trio.BrokenResourceError):
                    pass
                nursery.cancel_scope.cancel()
        finally:
            await self._link.close(code, reason)

    async def _until_idle(self) -> None:
        """Return when nothing has been asked for too long."""
        while True:
            if self._scopes:
                await self._is_idle.wait()
            with trio.move_on_after(self._limits.idle_timeout) as scope:
                await self._is_idle.wait()
            if scope.cancelled_caught and not self._scopes:
                return

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            frame = await self._link.receive()
            await self._throttle()
            match frame:
                case {"cancel": int(number)} if not isinstance(number, bool):
                    if (scope := self._scopes.get(number)) is not None:
                        scope.cancel()
                case {"ack": int(number), **rest} if not isinstance(number, bool):
                    self._acknowledged(number, rest.get("count", 1))
                case {"id": int(number), "do": str()} if number not in self._scopes and not isinstance(number, bool):
                    await self._begin(number, frame, nursery)
                case _:
                    raise ProtocolError(
                        'a frame is {"id", "do", …}, {"cancel"} or {"ack"}, an id a new number', MALFORMED
                    )

    async def _begin(self, number: int, frame: JSONObject, nursery: trio.Nursery) -> None:
        """Begin a request. What is too much is refused here: who does not read the answers, is not listened to meanwhile."""
        if len(self._scopes) < self._limits.max_requests:
            self._scopes[number] = trio.CancelScope()
            nursery.start_soon(self._answer, number, frame)
            return
        full = QueueFull(f"more than {self._limits.max_requests} requests are under way on this connection")
        await self._link.send({"id": number, "error": _data.error_to_json(full)})

    def _acknowledged(self, number: int, count: object) -> None:
        """Let a stream go on by so many parts. Of one that has ended meanwhile, it means nothing."""
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ProtocolError("a count is a number from 1", MALFORMED)
        window = self._windows.get(number)
        for _ in range(0 if window is None else min(count, WINDOW - window.value)):
            assert window is not None
            window.release()

    async def _throttle(self) -> None:
        """Let no more messages in than there may be in a second."""
        now = trio.current_time()
        rate = self._limits.max_rate
        self._tokens = min(rate, self._tokens + (now - self._counted) * rate) - 1
        self._counted = now
        if self._tokens < 0:
            await trio.sleep(-self._tokens / rate)

    async def _answer(self, number: int, frame: JSONObject) -> None:
        reply: JSONObject | None = None
        cancelled = self._cancelled[number] = RequestCancelled("the request was cancelled")
        try:
            with self._scopes[number]:
                reply = await self._done(number, frame)
            await self._reply(number, reply or {"error": _data.error_to_json(cancelled)})
        finally:  # not before its answer is on its way: answers that nobody reads are counted too
            del self._scopes[number], self._cancelled[number]
            self._windows.pop(number, None)
            if not self._scopes:
                self._is_idle.set()
                self._is_idle = trio.Event()

    async def _reply(self, number: int, reply: JSONObject) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            try:
                await self._link.send({"id": number, **reply})
            except ProtocolError as error:  # too large
                # An error goes over, if need be without its result.
                said = reply.get("error") or _data.error_to_json(error)
                said = {name: value for name, value in said.items() if name != "result"}
                try:
                    await self._link.send({"id": number, "error": said})
                except ProtocolError:
                    await self._link.send({"id": number, "error": _data.error_to_json(error)})

    async def _done(self, number: int, frame: JSONObject) -> JSONObject:
        try:
            return {"ok": await self._operation(frame["do"])(self, number, frame)}
        except Exception as caught:  # noqa: BLE001 - it goes to whoever asked
            error = single(caught)
            logger.debug("%s failed: %s", frame["do"], error)
            return {"error": _data.error_to_json(error)}

    def _operation(self, do: str) -> Callable[[Peer, int, JSONObject], Awaitable[Any]]:
        if (operation := self._CHANGES.get(do) or self._LOOKS.get(do)) is None:
            raise InvalidOption(f"there is no {do!r:.50} to do: {', '.join([*self._CHANGES, *self._LOOKS])}")
        if do in self._CHANGES and self._permissions.read_only:
            raise NotAllowed(f"this token may only look: {do} is not for it")
        return operation

    # What can be asked for

    async def _agent(self, frame: JSONObject) -> Agent:
        return await self._house.agent(frame.get("agent"), self._permissions)

    async def _agents(self, _: int, __: JSONObject) -> list[str]:
        await trio.lowlevel.checkpoint()
        return self._house.names(self._permissions)

    async def _chat(self, _: int, frame: JSONObject) -> JSONObject:
        agent, prompt = await self._agent(frame), _data.prompt_from_json(frame.get("prompt"))
        with _deadline(frame):
            return _data.result_to_json(await agent.chat(prompt, request_id=_text(frame, "request_id")))
        raise RequestCancelled("the caller's deadline has passed")

    async def _stream_chat(self, number: int, frame: JSONObject) -> JSONObject:
        agent, prompt = await self._agent(frame), _data.prompt_from_json(frame.get("prompt"))
        events = agent.stream_chat(prompt, request_id=_text(frame, "request_id"))
        try:
            with _deadline(frame):
                async with events:
                    async for batch in events.batches():
                        await self._push(number, {"events": [envelope.to_dict() for envelope in batch]})
                return _data.result_to_json(events.result)
            late = self._cancelled[number] = RequestCancelled("the caller's deadline has passed")
            raise late
        finally:
            with contextlib.suppress(RuntimeError):  # it has none: it never began
                self._cancelled[number].result = events.result

    async def _push(self, number: int, said: JSONObject) -> None:
        """Send a part of a stream, once the other end has taken enough of what came before."""
        window = self._windows.setdefault(number, trio.Semaphore(WINDOW, max_value=WINDOW))
        await window.acquire()
        await self._link.send({"id": number, **said})

    async def _send_message(self, _: int, frame: JSONObject) -> JSONObject:
        agent, prompt = await self._agent(frame), _data.prompt_from_json(frame.get("prompt"))
        name, request_id = frame["agent"], _text(frame, "request_id") or new_id()
        once = _text(frame, "once")
        if not self._house.is_repeated(name, request_id, once):
            try:
                self._house.keep(name, await agent.send_message(prompt, request_id=request_id), once)
            except InvalidOption:
                # The id is in use: by the same message, if it came over an older connection just now?
                if not self._house.is_repeated(name, request_id, once):
                    raise
        return {"request_id": request_id}

    async def _result(self, _: int, frame: JSONObject) -> JSONObject:
        await self._agent(frame)
        pending = self._house.pending(frame["agent"], _needed(frame, "request_id"))
        return _data.result_to_json(await pending.result())

    async def _cancel_request(self, _: int, frame: JSONObject) -> bool:
        agent = await self._agent(frame)
        return await agent.cancel_request(_needed(frame, "request_id"))

    async def _cancel_tool(self, _: int, frame: JSONObject) -> bool:
        return await (await self._agent(frame)).cancel_tool(_needed(frame, "call_id"))

    async def _steer(self, _: int, frame: JSONObject) -> None:
        agent, prompt = await self._agent(frame), _data.prompt_from_json(frame.get("prompt"))
        interrupt: Any = _text(frame, "interrupt")
        await agent.steer(prompt, interrupt=interrupt)

    async def _approve(self, _: int, frame: JSONObject) -> None:
        edited = frame.get("input")
        if not isinstance(edited, dict | None):
            raise InvalidOption(f"input={edited!r:.100} is no JSON object")
        (await self._agent(frame)).approve(_needed(frame, "call_id"), edited)

    async def _deny(self, _: int, frame: JSONObject) -> None:
        reason = _text(frame, "reason")
        given = {} if reason is None else {"reason": reason}
        (await self._agent(frame)).deny(_needed(frame, "call_id"), **given)

    async def _pending_approvals(self, _: int, frame: JSONObject) -> list[JSONObject]:
        return [_data.call_to_json(call) for call in (await self._agent(frame)).pending_approvals()]

    async def _wait_idle(self, _: int, frame: JSONObject) -> None:
        await (await self._agent(frame)).wait_idle()

    async def _reset(self, _: int, frame: JSONObject) -> None:
        await (await self._agent(frame)).reset()

    async def _messages(self, _: int, frame: JSONObject) -> list[JSONObject]:
        return [_data.message_to_json(message) for message in (await self._agent(frame)).messages]

    async def _usage(self, _: int, frame: JSONObject) -> JSONObject:
        usage: JSONObject = dump((await self._agent(frame)).usage)
        return usage

    async def _health(self, _: int, frame: JSONObject) -> JSONObject:
        agent = await self._agent(frame)
        return {**_data.health_to_json(agent.health()), "session_id": agent.session_id}

    async def _export_session(self, _: int, frame: JSONObject) -> str:
        return (await self._agent(frame)).export_session().to_json()

    async def _subscribe(self, number: int, frame: JSONObject) -> None:
        """Push what is published, until it is cancelled."""
        topics = frame.get("topics")
        if self._house.pubsub is None:
            raise InvalidOption("this server has no topics: give it pubsub=")
        if not isinstance(topics, list) or not topics or not all(isinstance(topic, str) for topic in topics):
            raise InvalidOption(f"topics={topics!r:.100} has to be a list of patterns")
        await self._check_topics(topics)
        if len(topics) > _TOPICS:
            raise InvalidOption(f"{len(topics):,} topics are too many for one subscription: {_TOPICS:,} at most")
        given = {name: frame[name] for name in ("buffer", "policy") if name in frame}
        if isinstance(given.get("buffer"), int) and given["buffer"] > _BUFFER:
            raise InvalidOption(
                f"buffer={given['buffer']} is too much to keep for somebody far away: {_BUFFER:,} at most"
            )
        with self._house.pubsub.subscribe(*topics, **given) as subscription:
            await self._push(number, {"subscribed": topics})
            async for message in subscription:
                await self._push(number, {"published": _data.published_to_json(subscription.topic, message)})

    async def _check_topics(self, topics: list[str]) -> None:
        """Raise NotAllowed where topics are others' than those of the agents that may be reached."""
        if self._permissions.topics:
            return
        names = self._house.names(self._permissions)
        sessions = set()
        for name in names:
            with contextlib.suppress(UnknownAgent):  # it has gone since
                sessions.add((await self._house.agent(name, self._permissions)).session_id)
        for topic in topics:
            match split_pattern(topic):
                case ("agent", session, *_) if session in sessions:
                    continue
            raise NotAllowed(
                f"this token may subscribe to the topics of its agents only, agent:<session id>:…: {topic!r:.100}"
            )

    _CHANGES: ClassVar = {
        "chat": _chat,
        "stream_chat": _stream_chat,
        "send_message": _send_message,
        "cancel_request": _cancel_request,
        "cancel_tool": _cancel_tool,
        "steer": _steer,
        "approve": _approve,
        "deny": _deny,
        "reset": _reset,
    }
    _LOOKS: ClassVar = {
        "agents": _agents,
        "messages": _messages,
        "usage": _usage,
        "health": _health,
        "export_session": _export_session,
        "pending_approvals": _pending_approvals,
        "wait_idle": _wait_idle,
        "result": _result,
        "subscribe": _subscribe,
    }


def _deadline(frame: JSONObject) -> trio.CancelScope:
    """Return a scope with the deadline of whoever asks, which comes as seconds: clocks differ."""
    seconds = frame.get("timeout")
    if seconds is None:
        return trio.CancelScope()
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
        raise InvalidOption(f"timeout={seconds!r:.50} is no number of seconds")
    return trio.move_on_after(seconds)


def _text(frame: JSONObject, name: str) -> str | None:
    value = frame.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidOption(f"{name}={value!r:.100} has to be text")
    return value


def _needed(frame: JSONObject, name: str) -> str:
    if (value := _text(frame, name)) is None:
        raise InvalidOption(f"{name} is missing")
    return value
