"""
A first run, without a key: the demo provider asks for the tool `read`, gets the file, and answers.

Where there is a pyproject.toml of version 0.1.0, it prints:

    The version in pyproject.toml is 0.1.0.
    completed after 2 turns
    read {'file_path': 'pyproject.toml'}: ok
"""

from __future__ import annotations

import trio

import alloy_trio
from alloy_trio.tools import read


async def main() -> None:
    """Ask, and show the answer and how it came about."""
    result = await alloy_trio.run(
        "Read pyproject.toml and tell me the version",
        provider="demo",  # or "anthropic:MODEL", "openai:MODEL", "ollama:MODEL": nothing else changes
        tools=[read],
    )
    print(result.text)
    print(f"{result.status} after {result.turns} turns")
    for call in result.tool_calls:
        print(f"{call.name} {call.input}: {call.outcome}")


if __name__ == "__main__":
    trio.run(main)
