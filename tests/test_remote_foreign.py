"""A client that others wrote (`websockets`), and that knows docs/reference/protocol.md and nothing of ours."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from alloy_trio import Middleware, RunState, ToolUse, open_agent, tool
from alloy_trio.pubsub import PubSub
from alloy_trio.remote import Address, serve_agents
from alloy_trio.testing import ScriptedProvider, delay, text, tool_call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from websockets.sync.client import ClientConnection

TOKEN = "another that nobody guesses"


class Client:
    """As somebody would write it in an afternoon."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self.hello = self.receive()["hello"]

    def send(self, **frame: Any) -> None:
        self._connection.send(json.dumps(frame))

    def receive(self) -> Any:
        return json.loads(self._connection.recv(timeout=10))

    def begin(self, do: str, **given: Any) -> int:
        number = next(self._ids)
        self.send(id=number, do=do, **given)
        return number

    def ask(self, do: str, **given: Any) -> Any:
        number = self.begin(do, **given)
        while True:
            frame = self.receive()
            if frame["id"] != number:
                continue
            if "error" in frame:
                raise LookupError(frame["error"]["type"])
            return frame["ok"]

    def parts(self, number: int) -> Iterator[Any]:
        """Yield the parts of a stream, and its answer at last."""
        while True:
            frame = self.receive()
            assert frame["id"] == number
            yield frame
            if "ok" in frame or "error" in frame:
                return
            self.send(ack=number)


@contextlib.contextmanager
def opened(url: str, token: str = TOKEN) -> Iterator[Client]:
    websockets = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    headers = {"Authorization": f"Bearer {token}"}
    with websockets.connect(url, subprotocols=["alloy.v1"], additional_headers=headers) as connection:
        yield Client(connection)


class Ask(Middleware):
    async def before_tool_call(self, state: RunState, call: ToolUse) -> Any:
        return await state.approval(call)


@tool
async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def visit(url: str) -> None:
    with opened(url) as client:
        assert client.hello == {"agents": ["x"], "max_message_size": 64 * 2**20}
        assert client.ask("agents") == ["x"]

        result = client.ask("chat", agent="x", prompt="hi", request_id="mine")
        assert (result["text"], result["status"], result["request_id"]) == ("hello", "completed", "mine")
        assert [message["role"] for message in result["messages"]] == ["user", "assistant"]
        assert result["messages"][1]["content"] == [{"type": "text", "text": "hello"}]

        *parts, last = client.parts(
            client.begin("stream_chat", agent="x", prompt={"role": "user", "content": [{"type": "text", "text": "go"}]})
        )
        envelopes = [envelope for part in parts for envelope in part["events"]]
        assert [envelope["seq"] for envelope in envelopes] == list(range(1, len(envelopes) + 1))
        said = "".join(each["payload"]["text"] for each in envelopes if each["event"] == "text_delta")
        assert said == last["ok"]["text"] == "one two"

        number = client.begin("stream_chat", agent="x", prompt="slowly")
        for part in client.parts(number):
            if any(envelope["event"] == "text_delta" for envelope in part.get("events", ())):
                client.send(cancel=number)
            final = part
        assert final["error"]["type"] == "RequestCancelled"
        assert final["error"]["result"]["status"] == "cancelled"
        kept = client.ask("messages", agent="x")[-1]
        assert kept["interrupted"]
        assert "begun".startswith(kept["content"][0]["text"])

        subscription = client.begin("subscribe", topics=["agent:s:responses"])
        assert "subscribed" in next(client.parts(subscription))
        client.send(ack=subscription)
        assert client.ask("send_message", agent="x", prompt="add", request_id="sum", once="1") == {"request_id": "sum"}
        assert client.ask("send_message", agent="x", prompt="add", request_id="sum", once="1") == {"request_id": "sum"}
        while not (waiting := client.ask("pending_approvals", agent="x")):
            pass
        assert waiting == [{"id": "c", "name": "add", "input": {"a": 1, "b": 2}}]
        with pytest.raises(LookupError, match="UnknownRequest"):
            client.ask("approve", agent="x", call_id="other")
        assert client.ask("approve", agent="x", call_id="c", input={"a": 2, "b": 2}) is None
        published = next(client.parts(subscription))["published"]
        assert (published["topic"], published["result"]["text"]) == ("agent:s:responses", "four")
        client.send(ack=subscription)
        client.send(cancel=subscription)
        assert next(client.parts(subscription))["error"]["type"] == "RequestCancelled"
        assert client.ask("result", agent="x", request_id="sum")["tool_calls"][0]["data"] == 4

        health = client.ask("health", agent="x")
        assert (health["status"], health["session_id"]) == ("idle", "s")
        assert client.ask("usage", agent="x")["input_tokens"] > 0
        assert json.loads(client.ask("export_session", agent="x"))["id"] == "s"
        with pytest.raises(LookupError, match="AgentIdle"):
            client.ask("steer", agent="x", prompt="left")
        with pytest.raises(LookupError, match="UnknownAgent"):
            client.ask("health", agent="y")
        assert client.ask("wait_idle", agent="x") is None
        assert client.ask("reset", agent="x") is None
        assert client.ask("messages", agent="x") == []


async def test_from_the_documentation_alone() -> None:
    replies: list[Any] = [
        "hello",
        [text("one "), text("two")],
        [text("begun"), delay(60)],
        [tool_call("add", {"a": 1, "b": 2}, id="c")],
        "four",
    ]
    pubsub = PubSub()
    options: Any = {"tools": [add], "middleware": [Ask()], "pubsub": pubsub, "session_id": "s", "max_pending": 2}
    async with open_agent(provider=ScriptedProvider(replies), **options) as agent, trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Address]) -> None:
            await serve_agents({"x": agent}, "127.0.0.1", 0, TOKEN, pubsub=pubsub, task_status=task_status)

        address = await nursery.start(serve)
        with trio.fail_after(60):
            await trio.to_thread.run_sync(visit, address.url)
        nursery.cancel_scope.cancel()
