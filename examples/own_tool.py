"""
A tool of your own: notes that live in memory, behind the same name and parameter as `read`, which the demo knows to ask for.

It prints:

    The budget in trip.txt is 400 euros.
    read party.txt did not work: There is no note party.txt; there are: trip.txt, shopping.txt.
"""

import sys

import trio

import alloy_trio
from alloy_trio import ToolContext, ToolError, tool

NOTES = {"trip.txt": "where: Oslo\nbudget: 400 euros\n", "shopping.txt": "bread, salt\n"}


@tool
async def read(file_path: str, ctx: ToolContext[dict[str, str]]) -> str:
    """
    Read a note.

    Args:
        file_path: The note's name.
        ctx: The notes are its `deps`; the model does not see this parameter.
    """
    if file_path not in ctx.deps:
        raise ToolError(f"There is no note {file_path}; there are: {', '.join(ctx.deps)}.")
    return ctx.deps[file_path]


async def main(provider: str) -> None:
    """Ask for two notes at once; the model is told that one of them is missing."""
    question = "Read trip.txt and party.txt and tell me the budget"
    result = await alloy_trio.run(question, provider=provider, tools=[read], deps=NOTES)
    print(result.text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else "demo")
