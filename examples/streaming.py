"""
A run that is seen as it happens: its events are a closed union, made for `match`.

Where there is a pyproject.toml of version 0.1.0, it prints:

    Let me look: read pyproject.toml.
    [read starts]
    [read: ok]
    The version in pyproject.toml is 0.1.0.
    [completed]
"""

import sys

import trio

import alloy_trio
from alloy_trio.events import RunEnd, TextDelta, ToolEnd, ToolStart
from alloy_trio.tools import read


async def main(provider: str) -> None:
    """Print the words as they arrive, and the tools as they start and end. Leaving the body early would cancel the run."""
    question = "Read pyproject.toml and tell me the version"
    async with alloy_trio.stream(question, provider=provider, tools=[read]) as events:
        async for event in events:
            match event:
                case TextDelta(text):
                    print(text, end="", flush=True)
                case ToolStart(name=name):
                    print(f"\n[{name} starts]")
                case ToolEnd(name=name, outcome=outcome):
                    print(f"[{name}: {outcome}]")
                case RunEnd(status):
                    print(f"\n[{status}]")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else "demo")
