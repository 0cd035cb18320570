"""
A provider of your own: Eliza, the language model of 1966. Here, with three of her rules.

    > I am afraid of deadlocks
    How long have you been afraid of deadlocks?
    > My nursery will not close
    Tell me more about your nursery.
    > 42
    Please go on.
"""

import re

import trio

import alloy_trio
from alloy_trio import Message
from alloy_trio.events import BlockEnd, TextDelta
from alloy_trio.providers import Emit, Request, Response

RULES = {
    r"I am (.+)": "How long have you been {}?",
    r"My (\w+).*": "Tell me more about your {}.",
    r".*": "Please go on.",
}


class Eliza:
    """Anything with an async `complete` is a provider; `stream` is for those that hand over events while they work."""

    async def complete(self, request: Request) -> Response:
        """Answer the last message in one piece."""
        await trio.lowlevel.checkpoint()  # where another would wait for a socket
        heard = request.messages[-1].text
        said = next(say.format(*m.groups()) for rule, say in RULES.items() if (m := re.fullmatch(rule, heard)))
        return Response(message=Message("assistant", said))

    async def stream(self, request: Request, emit: Emit) -> Response:
        """Answer word by word: `emit` returns when a word was taken, which is the backpressure."""
        response = await self.complete(request)
        for word in re.findall(r"\s*\S+", response.message.text):
            await trio.sleep(0.02)
            await emit(TextDelta(word))
        await emit(*map(BlockEnd, response.message.content))
        return response


async def main() -> None:
    """Tell her something; she does not need to know what was said before."""
    for words in ("I am afraid of deadlocks", "My nursery will not close", "42"):
        print(f"> {words}")
        async with alloy_trio.stream(words, provider=Eliza()) as events:
            async for event in events:
                print(event.text if isinstance(event, TextDelta) else "", end="", flush=True)
        print()


if __name__ == "__main__":
    trio.run(main)
