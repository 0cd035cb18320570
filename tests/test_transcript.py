"""
A conversation that grows, as each wire is sent it: what was serialized before is sent again, and it is what would be written anew.

Conversations are made up: answers of this and of other origins, some interrupted, some of an earlier epoch, each with any mixture
of blocks, but every call with its result in the next message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloy_trio import Document, Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse
from alloy_trio._messages import ServerToolResult, ServerToolUse
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Quirks, Request
from alloy_trio.providers._origin import current_epoch
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from alloy_trio._messages import Block

    Wire = Anthropic | OpenAI | OpenAICompat

BUDGET = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
SERVER = "http://llm.test/v1"
# Those whose next request begins as the last one did, unless the provider has run tools, or the epoch is another.
GROWING: Final[dict[str, Wire]] = {
    "anthropic": Anthropic("claude-opus-4-5", api_key="one"),
    "openai": OpenAI("gpt-6-astra", api_key="one"),
    "openai without reasoning": OpenAI("gpt-4o", api_key="one"),
    "compat": OpenAICompat("m", base_url=SERVER),
    "compat with names": OpenAICompat(
        "m", base_url=SERVER, quirks=Quirks(tool_result_name=True, assistant_after_tool=True)
    ),
}
WIRES: Final[dict[str, Wire]] = {
    **GROWING,
    "anthropic with marks": Anthropic("claude-opus-5-5", api_key="one", cache=True),
    "anthropic with a budget": Anthropic("claude-opus-4-5", api_key="one", extra_body=BUDGET),
    "anthropic that runs code": Anthropic("claude-opus-4-5", api_key="one", code_execution=True),
    "openai behind another answer": OpenAI("gpt-6-astra", api_key="one", store=False, previous_response_id="resp_0"),
    "openai, chained": OpenAI("gpt-6-astra", api_key="one", store=True),
    "compat that merges": OpenAICompat("m", base_url=SERVER, quirks=Quirks(merge_user_messages=True)),
}

SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
TOOL = Tool(name="look", description="Looks.", input_schema=SCHEMA, execute=str)
LATE = Tool(name="late", description="Looks later.", input_schema=SCHEMA, execute=str, defer_loading=True)
CODE = Tool(name="code", input_schema=SCHEMA, execute=str, native={"anthropic": {"type": "code_execution_20260120"}})

# --- What may be said.

texts = st.builds(Text, st.sampled_from(["", " \n", "Hello", "Grüße \ud83d", '"}]']))
asked = texts | st.sampled_from(
    [Image("image/png", data=b"picture"), Document("text/plain", data=b"words"), Document("text/plain", uri="file-1")]
)
CALL_IDS = ["a", "b", "toolu_1", "tool:1"]
reasoning = st.sampled_from(
    [
        Thinking("why", signature="SEAL"),
        Thinking("", provider_data={"type": "redacted_thinking", "data": "SEAL"}),
        Thinking("why", provider_data={"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "SEAL"}),
        Thinking("why", provider_data={"field": "reasoning_content"}),
        Thinking("why"),
    ]
)
calls = st.builds(
    ToolUse,
    st.sampled_from(CALL_IDS),
    st.sampled_from(["look", "late"]),
    st.just({"at": 1}),
    st.sampled_from([None, "{cut"]),
    st.sampled_from([None, {"id": "fc_1"}, {"caller": {"type": "code_execution_20260120", "tool_id": "srv_1"}}]),
)
ran_there = st.sampled_from(
    [
        ServerToolUse("srv_1", "search", {}, {"type": "server_tool_use"}),
        ServerToolUse("srv_2", "search", {}, {"type": "web_search_call", "id": "ws_1"}),
        ServerToolResult("srv_1", {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []}),
    ]
)


def answers(provider: Wire) -> st.SearchStrategy[Message]:
    """Return answers of the provider's, of others', and of a program's."""
    noted = st.just(Text("Cited", ({"type": "note"},), {"id": "msg_1"}))
    known = st.sampled_from([Opaque(provider.name, {"type": "thing"}), Opaque("other", {"type": "container_upload"})])
    block = texts | noted | reasoning | reasoning | calls | calls | ran_there | known | asked
    whose = st.sampled_from([(provider.name, provider.origin)] * 3 + [("other", "0" * 16), (None, None)])
    states = st.sampled_from([None, None, {"container_id": "c_1"}, {"response_id": "resp_1"}])

    def answer(content: list[Block], who: tuple[str | None, str | None], **fields: Any) -> Message:
        return Message("assistant", content, provider=who[0], origin=who[1], **fields)

    return st.builds(
        answer,
        st.lists(block, max_size=5),
        whose,
        provider_state=states,
        interrupted=st.booleans(),
        epoch=st.sampled_from([0, 0, 0, 1, 2]),
    )


@st.composite
def growth(draw: st.DrawFn, messages: list[Message], provider: Wire) -> tuple[list[Message], bool]:
    """Draw the conversation as it is one step later, and whether something was added to its last message."""
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant" and last.tool_uses:
        results = [
            ToolResult(call.id, draw(st.lists(asked, max_size=2)), draw(st.booleans())) for call in last.tool_uses
        ]
        more = draw(st.lists(asked, max_size=1))
        return [*messages, Message("user", (*more, *results) if draw(st.booleans()) else (*results, *more))], False
    if last is not None and last.role == "user" and draw(st.integers(0, 3)) == 0:
        added = draw(st.lists(asked, min_size=1, max_size=2))
        return [*messages[:-1], attrs.evolve(last, content=(*last.content, *added))], True
    if last is not None and draw(st.integers(0, 2)):
        return [*messages, draw(answers(provider))], False
    epoch = current_epoch(messages) + (draw(st.integers(0, 9)) == 0)
    return [*messages, Message("user", draw(st.lists(asked, max_size=3)), epoch=epoch)], False


options: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "system_prompt": st.sampled_from([" ", "Be short.", "Be kind."]),
        "tools": st.sampled_from([(TOOL,), (TOOL, LATE), (CODE,)]),
        "tool_choice": st.sampled_from(["any", "look"]),
        "max_output_tokens": st.sampled_from([100, 3000]),
        "output_schema": st.just(SCHEMA),
        "provider_state": st.just({"container_id": "c_0"}),
    },
)


def written(provider: Wire, body: bytes) -> bytes:
    """Return the messages of a request, without the bracket behind them."""
    field = "input" if isinstance(provider, OpenAI) else "messages"
    return bytes(msgspec.json.decode(body, type=dict[str, msgspec.Raw])[field])[:-1]


def ran_any(messages: list[Message]) -> bool:
    return any(isinstance(block, ServerToolUse | ServerToolResult) for each in messages for block in each.content)


@pytest.mark.parametrize("wire", WIRES)
@given(data=st.data())
def test_a_growing_conversation_is_sent_as_one_that_is_written_anew(wire: str, data: st.DataObject) -> None:
    """Whatever comes, and however few of the steps are sent."""
    provider, transcripts = WIRES[wire], dict[Any, Any]()
    messages: list[Message] = []
    others, stream = data.draw(options), data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 12))):
        messages, _ = data.draw(growth(messages, provider))
        match data.draw(st.sampled_from(["as before", "as before", "as before", "otherwise", "later"])):
            case "otherwise":
                others, stream = data.draw(options), data.draw(st.booleans())
            case "later":
                continue
        request = Request(messages=(said := tuple(messages)), transcripts=(said, transcripts), **others)
        sent = provider.encode(request, stream=stream)
        anew = provider.encode(attrs.evolve(request, transcripts=None), stream=stream)
        assert json.loads(sent.body) == json.loads(anew.body)
        assert sent == anew


@pytest.mark.parametrize("wire", GROWING)
@given(data=st.data())
def test_a_longer_conversation_begins_as_the_shorter_one(wire: str, data: st.DataObject) -> None:
    """To the letter, for prompt caches and sealed reasoning rely on it. Not so behind a change: that is another epoch."""
    provider, transcripts = GROWING[wire], dict[Any, Any]()
    messages: list[Message] = []
    before, epoch = b"", 0
    for _ in range(data.draw(st.integers(1, 12))):
        messages, added = data.draw(growth(messages, provider))
        request = Request(messages=(said := tuple(messages)), transcripts=(said, transcripts))
        now = written(provider, provider.encode(request, stream=False).body)
        is_growth = not added and epoch == current_epoch(messages) and not ran_any(messages)
        assert now.startswith(before) or not is_growth
        before, epoch = now, current_epoch(messages)


@pytest.mark.parametrize("wire", WIRES)
def test_what_was_sent_is_not_written_again(wire: str) -> None:
    """A message of earlier turns is not even looked at."""
    provider, transcripts = WIRES[wire], dict[Any, Any]()
    messages = [Message.user("One"), Message.assistant("Two"), Message.user("Three")]
    provider.encode(Request(messages=(said := tuple(messages)), transcripts=(said, transcripts)), stream=False)
    later = [Message.assistant("Four"), Message.user("Five")]
    sent = (Message.user("?"), Message.user("?"), *messages[2:], *later)
    request = Request(messages=sent, transcripts=(sent, transcripts))
    texts = provider.encode(request, stream=False).body.decode()
    is_kept = wire != "openai, chained"
    assert ("One" in texts and "Two" in texts) is is_kept
    assert "Five" in texts
