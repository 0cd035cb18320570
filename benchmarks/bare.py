"""
The yardstick: what somebody writes by hand who needs no framework. Trio's sockets, h11, the json of the standard library.

It keeps idle connections in a list, and checks nothing: no time-outs, no retries, no schema of a tool's input, no history that
outlives a cancel. So it is no library to use, but what a library's services are measured against.
"""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
import h11
import trio

from .place import Place

SYSTEM = "You are a calculator. Use the tool for each sum."
PROMPT = "Add up all the numbers that you were given."
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


class _Connection:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)

    async def send(self, headers: list[tuple[str, str]], body: bytes) -> None:
        head = h11.Request(
            method="POST", target="/v1/chat/completions", headers=[*headers, ("content-length", str(len(body)))]
        )
        parts = [self.http.send(head), self.http.send(h11.Data(data=body)), self.http.send(h11.EndOfMessage())]
        await self.stream.send_all(b"".join(part for part in parts if part))

    async def data(self) -> bytes | None:
        """Wait for a piece of the body; None at its end."""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(bytes(await self.stream.receive_some(65536)))
            elif isinstance(event, h11.Data):
                return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return None


@attrs.define
class Client:
    """Turns with tools, and streams, over connections that are kept."""

    place: Place
    tool: Callable[[int, int], str]
    _idle: list[_Connection] = attrs.field(factory=list)

    async def run(self, model: str) -> None:
        """Ask, run the tools that are asked for, and again, until there is a text."""
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": PROMPT},
        ]
        while True:
            reply = json.loads(await self._post({"model": model, "messages": messages, "tools": [ADD]}))
            message = reply["choices"][0]["message"]
            messages.append(message)
            if not (calls := message.get("tool_calls")):
                return
            messages += await self._tools(calls)

    async def stream(self, model: str, chunk: Callable[[], None]) -> None:
        """Ask, and report each delta of text."""
        request = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        connection = await self._ask(request)
        rest = b""
        try:
            while (data := await connection.data()) is not None:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    _read(line, chunk)
            self._keep(connection)
        finally:
            if connection.http.our_state is not h11.IDLE:  # cut off
                await trio.aclose_forcefully(connection.stream)

    async def _tools(self, calls: list[Any]) -> list[dict[str, Any]]:
        results = [{"role": "tool", "tool_call_id": call["id"], "content": ""} for call in calls]

        async def execute(index: int) -> None:
            given = json.loads(calls[index]["function"]["arguments"])
            results[index]["content"] = self.tool(given["a"], given["b"])

        async with trio.open_nursery() as nursery:
            for index in range(len(calls)):
                nursery.start_soon(execute, index)
        return results

    async def _post(self, request: dict[str, Any]) -> bytes:
        connection = await self._ask(request)
        parts = []
        while (data := await connection.data()) is not None:
            parts.append(data)
        self._keep(connection)
        return b"".join(parts)

    async def _ask(self, request: dict[str, Any]) -> _Connection:
        connection = self._idle.pop() if self._idle else await self._connect()
        headers = [
            ("host", self.place.host),
            ("authorization", "Bearer sk-mock"),
            ("content-type", "application/json"),
            ("accept", "*/*"),
        ]
        await connection.send(headers, json.dumps(request).encode())
        return connection

    def _keep(self, connection: _Connection) -> None:
        connection.http.start_next_cycle()
        self._idle.append(connection)

    async def _connect(self) -> _Connection:
        where = urlsplit(self.place.url)
        assert where.hostname is not None
        assert where.port is not None
        stream: trio.abc.Stream = await trio.open_tcp_stream(where.hostname, where.port)
        if self.place.authority:
            assert isinstance(stream, trio.SocketStream)
            context = _context(self.place.authority)
            stream = trio.SSLStream(stream, context, server_hostname=where.hostname, https_compatible=True)
        return _Connection(stream)


@functools.cache
def _context(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


def _read(line: bytes, chunk: Callable[[], None]) -> None:
    if line.startswith(b"data: ") and line != b"data: [DONE]":
        choices = json.loads(line[6:])["choices"]
        if choices and choices[0]["delta"].get("content"):
            chunk()


def conversation(number: int) -> object:
    """Return a conversation of ten messages, as it goes over the wire; the system prompt is added there."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"{PROMPT} ({number})"}]
    for each in range(3):
        call = {"name": "add", "arguments": f'{{"a":{number},"b":{each}}}'}
        asked = {"id": f"call_{number}_{each}", "type": "function", "function": call}
        messages.append({"role": "assistant", "content": None, "tool_calls": [asked]})
        messages.append({"role": "tool", "tool_call_id": asked["id"], "content": f"{number} + {each}"})
    messages.append({"role": "assistant", "content": f"The sum of {number} is known."})
    messages.append({"role": "user", "content": f"And now for {number + 1}?"})
    messages.append({"role": "assistant", "content": f"That of {number + 1} too."})
    return messages
