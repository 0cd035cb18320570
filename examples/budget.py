"""
Ten sub-agents under one budget that pays for five; scripted providers play the models.

They run side by side as far as the money allows. The others wait for what the first give back, and who comes too late gets an
ordinary result that says so. The seconds pass in virtual time. It prints:

    ants are fine. after 10 s
    bees are fine. after 10 s
    cats are fine. after 10 s
    dogs are fine. after 10 s
    eels are fine. after 20 s
    frogs: budget_exceeded after 20 s
    goats: budget_exceeded after 20 s
    hares: budget_exceeded after 20 s
    imps: budget_exceeded after 20 s
    jays: budget_exceeded after 20 s
    completed with 6.8 of 7.5 cents: I know of five.
"""

from __future__ import annotations

import trio
import trio.testing

import alloy_trio
from alloy_trio import Budget, Price, Usage, tool
from alloy_trio.testing import ScriptedProvider, delay, text, tool_call

PRICE = Price("3", "15")  # dollars per million tokens
TOPICS = ("ants", "bees", "cats", "dogs", "eels", "frogs", "goats", "hares", "imps", "jays")


@tool
async def research(topic: str) -> str:
    """
    Have a topic looked into.

    Args:
        topic: What it is.
    """
    began = trio.current_time()
    answer = text(f"{topic} are fine.", usage=Usage(input_tokens=10, output_tokens=900))
    model = ScriptedProvider([[delay(10), answer]], price=PRICE)
    result = await alloy_trio.run(f"What about {topic}?", provider=model, max_output_tokens=1000)
    said = result.text or f"{topic}: {result.status}"
    return f"{said} after {trio.current_time() - began:.0f} s"


async def main() -> None:
    """Let one agent ask ten others; whatever is spent inside the `with` is drawn on the budget."""
    calls = [tool_call("research", {"topic": topic}) for topic in TOPICS]
    lead = ScriptedProvider([calls, "I know of five."], price=PRICE)
    with Budget(cents="7.5") as budget:
        result = await alloy_trio.run("Look into animals", provider=lead, tools=[research], max_output_tokens=100)
    for answer in result.messages[2].tool_results:
        print(answer.text)
    print(f"{result.status} with {budget.spent * 100:.1f} of {budget.limit * 100:.1f} cents: {result.text}")


if __name__ == "__main__":
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
