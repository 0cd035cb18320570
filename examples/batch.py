"""
A thousand prompts, fifty at a time, with a progress bar: answers in order, and a failure is one of them.

    997 of 1000 prompts have an answer:
    144
    ProviderError('13 brings bad luck')
    196
"""

import sys

import trio

import alloy_trio
from alloy_trio import AlloyError, Message, ProviderError, Result
from alloy_trio.providers import Provider, Request, Response


async def batch(prompts: list[str], provider: Provider | str, limit: trio.CapacityLimiter) -> list[Result | AlloyError]:
    """Run each prompt by itself; return what became of them, in order. A cancel cancels all that are under way."""
    ends: dict[int, Result | AlloyError] = {}

    async def ask(index: int, prompt: str) -> None:
        async with limit:
            try:
                ends[index] = await alloy_trio.run(prompt, provider=provider)
            except AlloyError as failure:  # after the retries; anything else is a bug, and ends the batch
                ends[index] = failure
        print(f"\r[{'#' * (40 * len(ends) // len(prompts)):40}] {len(ends)}", end="", file=sys.stderr, flush=True)

    async with trio.open_nursery() as nursery:
        for index, prompt in enumerate(prompts):
            nursery.start_soon(ask, index, prompt)
    print(file=sys.stderr)
    return [ends[index] for index in range(len(prompts))]


class Squares:
    """A model that is good at arithmetic."""

    async def complete(self, request: Request) -> Response:
        """Think for a moment."""
        await trio.sleep(0.02)
        number = int(request.messages[-1].text.split()[2])
        if number % 400 == 13:  # noqa: PLR2004 - as many do
            raise ProviderError(f"{number} brings bad luck")
        return Response(message=Message("assistant", str(number**2)))


async def main(provider: Provider | str) -> None:
    """Ask a thousand times, and show some of it."""
    prompts = [f"What is {number} squared?" for number in range(1000)]
    answers = await batch(prompts, provider, trio.CapacityLimiter(50))
    print(f"{sum(isinstance(answer, Result) for answer in answers)} of {len(prompts)} prompts have an answer:")
    print(*(answer.text if isinstance(answer, Result) else repr(answer) for answer in answers[12:15]), sep="\n")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else Squares())
