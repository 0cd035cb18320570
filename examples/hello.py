"""
A first run. `python hello.py` asks the demo, which needs no key; `python hello.py anthropic:claude-sonnet-5-5` asks Claude.

Where there is a pyproject.toml of version 0.1.0, it prints:

    The version in pyproject.toml is 0.1.0.
    completed after 2 turns
    read {'file_path': 'pyproject.toml'}: ok
"""

import sys

import trio

import alloy_trio
from alloy_trio.tools import read


async def main(provider: str) -> None:
    """Ask, and show the answer and how it came about."""
    result = await alloy_trio.run("Read pyproject.toml and tell me the version", provider=provider, tools=[read])
    print(result.text)
    print(f"{result.status} after {result.turns} turns")
    for call in result.tool_calls:
        print(f"{call.name} {call.input}: {call.outcome}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else "demo")
