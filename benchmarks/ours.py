"""The job of the bare client, done with alloy_trio as its users would write it."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

import alloy_trio
from alloy_trio import Message, Session, ToolResult, ToolUse
from alloy_trio.events import TextDelta
from alloy_trio.providers import OpenAICompat

from .bare import PROMPT, SYSTEM
from .place import Place

if TYPE_CHECKING:
    from alloy_trio.tools import Tool


@attrs.define
class Client:
    """Runs and streams; the library keeps the connections."""

    place: Place
    tool: Callable[[int, int], str]

    @functools.cached_property
    def add(self) -> Tool:
        """The tool, made once."""

        @alloy_trio.tool
        async def add(a: int, b: int) -> str:
            """Add two numbers."""
            return self.tool(a, b)

        return add

    async def run(self, model: str) -> None:
        """Ask, run the tools that are asked for, and again, until there is a text."""
        result = await alloy_trio.run(
            PROMPT, provider=_provider(self.place, model), tools=[self.add], system_prompt=SYSTEM, max_turns=10_000
        )
        assert result.status == "completed"

    async def stream(self, model: str, chunk: Callable[[], None]) -> None:
        """Ask, and report each delta of text."""
        async with alloy_trio.stream(PROMPT, provider=_provider(self.place, model)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    chunk()


@functools.cache
def _provider(place: Place, model: str) -> OpenAICompat:
    context = ssl.create_default_context(cafile=place.authority) if place.authority else None
    return OpenAICompat(model, base_url=f"{place.url}/v1", api_key="sk-mock", ssl_context=context)


def conversation(number: int) -> object:
    """Return a conversation of ten messages, in the session that a user would keep; the system prompt is the run's."""
    messages = [Message.user(f"{PROMPT} ({number})")]
    for each in range(3):
        call = ToolUse(id=f"call_{number}_{each}", name="add", input={"a": number, "b": each})
        messages.append(Message.assistant(call))
        messages.append(Message.user(ToolResult(tool_use_id=call.id, content=f"{number} + {each}")))
    messages.append(Message.assistant(f"The sum of {number} is known."))
    messages.append(Message.user(f"And now for {number + 1}?"))
    messages.append(Message.assistant(f"That of {number + 1} too."))
    return Session(messages=messages)
