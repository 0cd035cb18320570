"""
Ten sub-agents under one budget that pays for five; scripted providers play the models.

They run side by side as far as the money allows. The others wait for what the first give back, and who comes too late gets an
ordinary result that says so; who that is, Trio's scheduler decides. Nobody hands the budget on: it is around the nursery, and
so around its tasks. The seconds pass in virtual time. It prints:

    4 of 10 sub-agents: completed after 10 s
    1 of 10 sub-agents: completed after 20 s
    5 of 10 sub-agents: budget_exceeded after 20 s
    6.8 of 7.5 cents: I know of five.
"""

from collections import Counter

import trio
import trio.testing

import alloy_trio
from alloy_trio import Budget, Price, Result, Usage
from alloy_trio.testing import ScriptedProvider, delay, text

PRICE = Price("3", "15")  # dollars per million tokens
TOPICS = ("ants", "bees", "cats", "dogs", "eels", "frogs", "goats", "hares", "imps", "jays")


async def research(topic: str, found: dict[str, str], ends: list[str]) -> None:
    """Have a topic looked into."""
    answer = text(f"{topic.capitalize()} are fine.", usage=Usage(input_tokens=10, output_tokens=900))
    model = ScriptedProvider([[delay(10), answer]], price=PRICE)
    result = await alloy_trio.run(f"What about {topic}?", provider=model, max_output_tokens=1000)
    ends.append(f"{result.status} after {trio.current_time():.0f} s")
    if result.status == "completed":
        found[topic] = result.text


async def sum_up(found: dict[str, str]) -> Result:
    """Let one more run, with what money is left, make a sentence of what the others have found."""
    model = ScriptedProvider(["I know of five."], price=PRICE)
    return await alloy_trio.run("\n".join(found.values()), provider=model, max_output_tokens=100)


async def main() -> None:
    """Send ten out, and wait for all of them."""
    found: dict[str, str] = {}
    ends: list[str] = []
    with Budget(cents="7.5") as budget:
        async with trio.open_nursery() as nursery:
            for topic in TOPICS:
                nursery.start_soon(research, topic, found, ends)
        result = await sum_up(found)
    for end, count in Counter(ends).items():
        print(f"{count} of {len(TOPICS)} sub-agents: {end}")
    print(f"{budget.spent * 100:.1f} of {budget.limit * 100:.1f} cents: {result.text}")


if __name__ == "__main__":
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
