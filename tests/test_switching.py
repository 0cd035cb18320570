"""
A conversation that changes providers on the way, or is changed itself, as each provider is sent it.

Requests are held against the pairing rules of their wire, and against the types of the vendors' own SDKs where those are
installed (`pip install anthropic openai`).
"""

from __future__ import annotations

import importlib
import itertools
import json
import warnings
from typing import TYPE_CHECKING, Any, Final

import attrs
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.warnings import TypedDictExtraConfigWarning
from rules import check_anthropic, check_chat, check_responses

from alloy_trio import Image, Message, Thinking, ToolResult
from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat, Request, Response
from alloy_trio.tools import Tool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Wire = Anthropic | OpenAI | OpenAICompat

JSON = dict[str, Any]

CITIES = ("Oslo", "Bergen")
QUESTION = Message.user("What is the weather like in Oslo, and in Bergen?")
GO_ON = Message.user("And tomorrow?")

# Each wire twice: another account, another endpoint.
ENDPOINTS: Final[dict[str, Wire]] = {
    "anthropic": Anthropic("claude-opus-5-5", api_key="one"),
    "anthropic-2": Anthropic("claude-opus-5-5", api_key="two"),
    "openai": OpenAI("gpt-6-astra", api_key="one"),
    "openai-2": OpenAI("gpt-6-astra", api_key="one", base_url="https://me.openai.azure.com/openai/v1"),
    "chat": OpenAICompat("kimi-k3", base_url="https://llm.test/v1"),
    "chat-2": OpenAICompat("kimi-k3", base_url="https://openrouter.ai/api/v1", api_key="one"),
}
PAIRS = list(itertools.permutations(ENDPOINTS, 2))
WEATHER = Tool(
    name="weather",
    description="Tells the weather.",
    input_schema={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    execute=str,
    strict=True,
)


# --- What the providers answer: reasoning with its seals, a tool of their own, two calls at once; and then an answer.

MESSAGE: JSON = {
    "id": "msg_A",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "stop_sequence": None,
}
PAGE = {"type": "web_search_result", "title": "Weather", "url": "https://w.test", "page_age": None}
QUOTE = {"type": "web_search_result_location", "cited_text": "rain", "title": "Weather", "url": "https://w.test"}
ANTHROPIC: list[JSON] = [
    MESSAGE
    | {
        "content": [
            {"type": "thinking", "thinking": "Two cities: I search first.", "signature": "SEAL-A1"},
            {"type": "redacted_thinking", "data": "SEAL-A2"},
            {"type": "server_tool_use", "id": "srvtoolu_SEAL-A3", "name": "web_search", "input": {"query": "weather"}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_SEAL-A3",
                "content": [PAGE | {"encrypted_content": "SEAL-A4"}],
            },
            {"type": "text", "text": "There is rain.", "citations": [QUOTE | {"encrypted_index": "SEAL-A5"}]},
            *(
                {"type": "tool_use", "id": f"toolu_{city}", "name": "weather", "input": {"city": city}}
                for city in CITIES
            ),
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 90, "output_tokens": 40},
    },
    MESSAGE
    | {
        "content": [
            {"type": "thinking", "thinking": "Both are known now.", "signature": "SEAL-A6"},
            {"type": "text", "text": "Rain in both."},
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 190, "output_tokens": 20},
    },
]

RESPONSE: JSON = {"object": "response", "model": "gpt-6-astra", "status": "completed", "error": None}
LINK = {"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://w.test", "title": "Weather"}


def said(words: str, item_id: str, *notes: JSON, **fields: Any) -> JSON:
    part = {"type": "output_text", "text": words, "annotations": list(notes)}
    head = {"id": item_id, "type": "message", "role": "assistant", "status": "completed"}
    return {**head, "content": [part], **fields}


def thought(words: str, item_id: str) -> JSON:
    parts = [{"type": "summary_text", "text": words}]
    return {"id": item_id, "type": "reasoning", "summary": parts, "encrypted_content": f"{item_id}-SEAL-O"}


RESPONSES: list[JSON] = [
    RESPONSE
    | {
        "id": "resp_SEAL-O1",
        "output": [
            thought("Two cities: I search first.", "rs_SEAL-O2"),
            said("I search.", "msg_SEAL-O3", phase="commentary"),
            {
                "id": "ws_SEAL-O4",
                "type": "web_search_call",
                "status": "completed",
                "action": {"type": "search", "query": "weather"},
            },
            said("There is rain.", "msg_SEAL-O5", LINK, phase="commentary"),
            thought("I ask for both at once.", "rs_SEAL-O5"),
            *(
                {
                    "id": f"fc_SEAL-O6{city}",
                    "type": "function_call",
                    "call_id": f"call_{city}",
                    "name": "weather",
                    "arguments": f'{{"city":"{city}"}}',
                    "status": "completed",
                }
                for city in CITIES
            ),
        ],
    },
    RESPONSE
    | {
        "id": "resp_SEAL-O7",
        "output": [thought("Both are known now.", "rs_SEAL-O8"), said("Rain in both.", "msg_SEAL-O9")],
    },
]

COMPLETION: JSON = {
    "object": "chat.completion",
    "model": "kimi-k3",
    "usage": {"prompt_tokens": 90, "completion_tokens": 9},
}
CHAT: list[JSON] = [
    COMPLETION
    | {
        "id": "chatcmpl-1",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "There is rain.",
                    "reasoning": "Two cities: I search first.",
                    "reasoning_details": [
                        {"type": "reasoning.text", "text": "Two cities: I search first.", "signature": "SEAL-C1"},
                        {"type": "reasoning.encrypted", "data": "SEAL-C2"},
                    ],
                    "executed_tools": [{"index": 0, "type": "search", "arguments": "{}", "output": "…"}],
                    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://w.test"}}],
                    "tool_calls": [
                        {
                            "id": f"functions.weather:{city}",
                            "type": "function",
                            "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'},
                            "extra_content": {"google": {"thought_signature": "SEAL-C3"}},
                        }
                        for city in CITIES
                    ],
                },
            }
        ],
    },
    COMPLETION
    | {
        "id": "chatcmpl-2",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "Rain in both.",
                    "reasoning_content": "Both are known now.",
                },
            }
        ],
    },
]

ANSWERS = {Anthropic: ANTHROPIC, OpenAI: RESPONSES, OpenAICompat: CHAT}


def answers(by: Wire, turn: str = "") -> list[Response]:
    """Return the provider's two answers: one with calls, one without. Anthropic never gives an id to two calls."""
    bodies = [json.dumps(body).replace("toolu_", f"toolu_{turn}") for body in ANSWERS[type(by)]]
    return [by.decode(body.encode()) for body in bodies]


def results(message: Message) -> Message:
    """Answer the calls: with text and an image, and with an error."""
    first, second = message.tool_uses
    fine = ToolResult(first.id, ("Rain, 9 °C", Image("image/png", b"a map")))  # a string is a Text
    return Message.user(fine, ToolResult(second.id, "The station is down.", is_error=True, outcome="error"))


def visit(by: Wire, opening: Message = QUESTION, turn: str = "") -> list[Message]:
    """Return what is said while the conversation is with one provider: a question, calls, their results, an answer."""
    asks, tells = (answer.message for answer in answers(by, turn))
    return [opening, asks, results(asks), tells]


# --- What is sent.


def sent(by: Wire, messages: Sequence[Message]) -> JSON:
    request = Request(messages=tuple(messages), tools=(WEATHER,), system_prompt="Be brief.", max_output_tokens=500)
    body: JSON = json.loads(by.encode(request, stream=False).body)
    return body


def elements(by: Wire, messages: Sequence[Message]) -> list[str]:
    """Return the messages, or items, of a request, each as it is sent."""
    body = sent(by, messages)
    return [json.dumps(element) for element in body["input" if isinstance(by, OpenAI) else "messages"]]


def check_rules(by: Wire, body: JSON) -> None:
    match by:
        case Anthropic():
            check_anthropic(body["messages"])
        case OpenAI():
            check_responses(body["input"])
        case OpenAICompat():
            check_chat(body["messages"])


def seals(by: Wire) -> str:
    """Return how everything begins that only this wire's servers understand."""
    return {Anthropic: "SEAL-A", OpenAI: "SEAL-O", OpenAICompat: "SEAL-C"}[type(by)]


RESULT = {"type": "tool_result", "tool_use_id": "c"}
USE = {"type": "tool_use", "id": "c"}


@pytest.mark.parametrize(
    ("blocks", "rule"),
    [
        (([USE], [RESULT | {"content": [{"type": "text", "text": " "}]}]), "blank text"),
        (([{"type": "thinking", "thinking": "Hm."}, USE], [RESULT]), "without signature"),
        (([USE], [RESULT], [USE], [RESULT]), "two calls of one id"),
    ],
)
def test_the_rules_of_the_messages_api_can_be_broken(blocks: tuple[list[JSON], ...], rule: str) -> None:
    roles = itertools.cycle(["assistant", "user"])
    said = [{"role": role, "content": content} for role, content in zip(roles, blocks, strict=False)]
    with pytest.raises(AssertionError, match=rule):
        check_anthropic([{"role": "user", "content": "Hi"}, *said])


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_msg_09_10_11_a_conversation_goes_on_elsewhere(here: str, there: str) -> None:
    """What was said and done goes along; seals, item ids and tools that the provider ran stay, reasoning becomes text."""
    begun_by, by = ENDPOINTS[here], ENDPOINTS[there]
    history = [*visit(begun_by), GO_ON]
    assert seals(begun_by) in json.dumps([attrs.asdict(message) for message in history])
    body = sent(by, history)
    check_rules(by, body)
    text = json.dumps(body, ensure_ascii=False)
    assert seals(begun_by) not in text
    said_and_done = ("Two cities", "There is rain.", "Oslo", "Rain, 9 °C", "is down", "Both are known", "And tomorrow?")
    assert [words for words in said_and_done if words not in text] == []
    assert history == [*visit(begun_by), GO_ON]


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_msg_08_and_comes_back(here: str, there: str) -> None:
    """Where it began, its own reasoning returns as it came: what was sent before is sent again, byte by byte."""
    by, between = ENDPOINTS[here], ENDPOINTS[there]
    first = visit(by)
    before = elements(by, [*first, GO_ON])
    assert seals(by) in "".join(before)
    history = [*first, *visit(between, GO_ON), QUESTION]
    check_rules(by, sent(by, history))
    after = elements(by, history)
    assert after[: len(before)] == before
    if type(by) is not type(between):
        assert seals(between) not in "".join(after)
    else:
        assert "".join(after).count(seals(by)) == "".join(before).count(seals(by))


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_calls_that_are_open_are_answered_elsewhere(here: str, there: str) -> None:
    """A provider that falls out in mid-turn is followed by another, which gets the results of calls it has never made."""
    history = visit(ENDPOINTS[here])[:-1]
    body = sent(ENDPOINTS[there], history)
    check_rules(ENDPOINTS[there], body)
    assert "Rain, 9" in json.dumps(body)


def test_ids_that_a_server_gives_again_and_again_are_told_apart_elsewhere() -> None:
    """There, they go back as they were."""
    by = ENDPOINTS["chat"]
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant", "tool_calls": [call]}}
    asks = by.decode(json.dumps(COMPLETION | {"choices": [choice]}).encode()).message
    answer = Message.user(ToolResult("call_0", "Rain"))
    history = [QUESTION, asks, answer, asks, answer]
    for endpoint in ENDPOINTS.values():
        check_rules(endpoint, sent(endpoint, history))
    assert json.dumps(sent(by, history)).count('"call_0"') == 4
    assert json.dumps(sent(ENDPOINTS["anthropic"], history)).count('"call_0"') == 2


# --- A conversation that grows, and one that is changed.

TURNS = st.lists(
    st.tuples(st.sampled_from(list(ENDPOINTS)), st.sampled_from(["talk", "tools", "visit"]), st.booleans()),
    min_size=1,
    max_size=5,
)


SEALED = (
    "SEAL-A1",
    "SEAL-A2",
    "SEAL-A6",
    "-SEAL-O",
    "SEAL-C1",
    "SEAL-C2",
)  # on reasoning; others are on tools and calls


def reasons(message: Message) -> bool:
    return any(isinstance(block, Thinking) and "SEAL" in repr(block) for block in message.content)


def turns_of(name: str, kind: str, turn: str) -> list[Message]:
    asks, tells = (answer.message for answer in answers(ENDPOINTS[name], turn))
    match kind:
        case "talk":
            return [tells, GO_ON]
        case "tools":
            return [asks, results(asks)]
    return [*visit(ENDPOINTS[name], turn=turn)[1:], GO_ON]


@given(TURNS)
def test_what_was_sent_is_the_beginning_of_what_is_sent_next(turns: list[tuple[str, str, bool]]) -> None:
    """On every wire, whoever answers meanwhile; unless the conversation is changed, when all is still as the rules want it."""
    messages, epoch = [QUESTION], 0
    before: dict[str, list[str]] = {name: [] for name in ENDPOINTS}
    for turn, (name, kind, changed) in enumerate(turns):
        epoch += changed
        messages += [attrs.evolve(message, epoch=epoch) for message in turns_of(name, kind, f"{turn}_")]
        for each, by in ENDPOINTS.items():
            check_rules(by, sent(by, messages))
            now = elements(by, messages)
            if not changed:
                assert now[: len(before[each])] == before[each]
            before[each] = now
            fresh = [message for message in messages if (message.epoch, message.origin) == (epoch, by.origin)]
            assert any(seal in "".join(now) for seal in SEALED) == any(map(reasons, fresh))


@pytest.mark.parametrize("name", ["openai", "openai-2"])
def test_a_chained_conversation_sends_what_is_new(name: str) -> None:
    """Put together, the requests of a chain are the conversation, each part of it sent once."""
    by = ENDPOINTS[name]
    assert isinstance(by, OpenAI)
    by = attrs.evolve(by, store=True)
    messages, told, previous = [QUESTION], list[str](), None
    for turn in range(6):
        body = sent(by, messages)
        assert body.get("previous_response_id") == previous
        told += [json.dumps(item) for item in body["input"]]
        answer = RESPONSES[turn % 2] | {"id": f"resp_{turn}"}
        message = by.decode(json.dumps(answer).encode()).message
        messages += [message, results(message) if turn % 2 == 0 else GO_ON]
        previous = f"resp_{turn}"
    theirs = [message for message in messages[:-1] if message.role == "user"]
    calls = [{"type": "function_call_output", "call_id": f"call_{city}"} for city in CITIES]
    kinds = [json.loads(item) | {"output": "", "content": ""} for item in told]
    user = {"type": "message", "role": "user", "output": "", "content": ""}
    outputs = [call | {"output": "", "content": ""} for call in calls]
    assert kinds == [item for message in theirs for item in (outputs if message.tool_results else [user])]


def test_a_chain_goes_on_behind_what_others_have_said() -> None:
    """It continues from the last answer of its own; what another has said since is told as what was said."""
    by, between = OpenAI("gpt-6-astra", api_key="one", store=True), ENDPOINTS["anthropic"]
    first, second = visit(by), visit(between, GO_ON)
    body = sent(by, [*first, *second, QUESTION])
    check_rules(by, body)
    assert body["previous_response_id"] == "resp_SEAL-O7"
    assert [json.dumps(item) for item in body["input"]] == elements(ENDPOINTS["openai"], [*second, QUESTION])[1:]


def test_a_chain_begins_anew_where_the_conversation_was_changed() -> None:
    by = OpenAI("gpt-6-astra", api_key="one", store=True)
    history = [*visit(by), attrs.evolve(Message.user("In short: rain."), epoch=1), GO_ON]
    body = sent(by, history)
    assert "previous_response_id" not in body
    check_rules(by, body)
    assert "SEAL" not in json.dumps(body)
    assert "There is rain." in json.dumps(body)


# --- The vendors' own types.


class Types:
    """The types of the vendors' SDKs, which refuse what they do not know."""

    def __init__(self) -> None:
        try:
            anthropic = importlib.import_module("anthropic.types")
            openai = importlib.import_module("openai.types")
        except ImportError:
            pytest.skip("the vendors' SDKs are not installed: pip install anthropic openai")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TypedDictExtraConfigWarning)  # a few of their types take anything
            self._blocks = self._checker(anthropic.ContentBlockParam)
            self._bodies: dict[type, Callable[[Any], Any]] = {
                Anthropic: self._checker(anthropic.beta.message_create_params.MessageCreateParamsNonStreaming),
                OpenAI: self._checker(openai.responses.response_create_params.ResponseCreateParamsNonStreaming),
                OpenAICompat: self._checker(openai.chat.completion_create_params.CompletionCreateParamsNonStreaming),
            }

    def _checker(self, kind: Any) -> Callable[[Any], Any]:
        adapter = pydantic.TypeAdapter[Any](list[kind], config=pydantic.ConfigDict(extra="forbid"))
        return lambda value: _read(adapter.validate_python([value]))

    def check(self, by: Wire, body: JSON) -> None:
        self._bodies[type(by)](body)
        for message in body["messages"] if isinstance(by, Anthropic) else ():
            for block in message["content"]:  # the whole's type takes answers for blocks, too, with any fields
                self._blocks(block)


def _read(value: Any) -> None:
    """Go through what was validated: lists are looked at when they are read."""
    if isinstance(value, dict):
        value = list(value.values())
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        for member in value:
            _read(member)


@pytest.fixture(scope="module")
def types() -> Types:
    return Types()


@pytest.mark.parametrize("by", ENDPOINTS.values(), ids=ENDPOINTS)
def test_the_types_refuse_what_is_wrong(by: Wire, types: Types) -> None:
    wrong = [sent(by, [QUESTION]) | {"max_output": 3}, sent(by, [QUESTION])]
    wrong[1]["input" if isinstance(by, OpenAI) else "messages"][-1]["content"] = [{"type": "text", "text": "a", "b": 1}]
    for body in wrong:
        with pytest.raises(pydantic.ValidationError):
            types.check(by, body)


@pytest.mark.parametrize(("here", "there"), PAIRS)
def test_requests_are_of_the_vendors_types(here: str, there: str, types: Types) -> None:
    """Elsewhere, and back where it began; but what chat servers add to their own answers, OpenAI's types do not know."""
    begun_by, by = ENDPOINTS[here], ENDPOINTS[there]
    types.check(by, sent(by, [*visit(begun_by), GO_ON]))
    types.check(by, sent(by, visit(begun_by)[:-1]))
    changed = [*visit(by), attrs.evolve(GO_ON, epoch=1), *visit(begun_by)[1:], GO_ON]
    if not isinstance(by, OpenAICompat):
        types.check(by, sent(by, [*visit(by), *visit(begun_by, GO_ON), QUESTION]))
        types.check(by, sent(by, changed))


@pytest.mark.parametrize("name", ["anthropic", "openai", "chat"])
def test_an_output_schema_is_of_the_vendors_types(name: str, types: Types) -> None:
    by = ENDPOINTS[name]
    if isinstance(by, OpenAICompat):
        by = attrs.evolve(by, quirks=attrs.evolve(by.quirks, output_schema=True))
    request = Request(messages=(QUESTION,), output_schema=dict(WEATHER.input_schema))
    body = json.loads(by.encode(request, stream=False).body)
    types.check(by, body)
    assert "json_schema" in json.dumps(body)
