"""
A run that is cancelled while its command runs, and the session that stays.

When the cancel scope is left, the command and what it started are gone, every call has an outcome, and the session is a
conversation that any provider accepts. Where there is a pyproject.toml of version 0.1.0, it prints:

    cancelled: True
    user: Run sleep 1000
    assistant: Let me look: bash sleep 1000.
    call demo_1_0: cancelled
    --
    The version in pyproject.toml is 0.1.0.
"""

from __future__ import annotations

import trio

import alloy_trio
from alloy_trio import Message, Session, ToolResult
from alloy_trio.events import Envelope, ToolStart
from alloy_trio.tools import bash, read


def show(message: Message) -> None:
    """Print a message: its text, or how the calls that it answers have ended."""
    if message.text:
        print(f"{message.role}: {message.text}")
    for block in message.content:
        if isinstance(block, ToolResult):
            print(f"call {block.tool_use_id}: {block.outcome}")


async def main() -> None:
    """Cancel a run as soon as its tool starts; then ask something else in the same session."""
    session = Session()

    with trio.CancelScope() as scope:  # a time-out is `trio.move_on_after(5)`, or `timeout=5` for an error

        def cancel_at_tool(envelope: Envelope) -> None:
            if isinstance(envelope.event, ToolStart):
                scope.cancel()

        await alloy_trio.run(
            "Run sleep 1000",
            provider="demo",
            tools=[bash],
            session=session,
            on_event=cancel_at_tool,
        )
    print(f"cancelled: {scope.cancelled_caught}")
    for message in session.messages:
        show(message)
    print("--")

    result = await alloy_trio.run(
        "Read pyproject.toml and tell me the version",
        provider="demo",
        tools=[read],
        session=session,
    )
    print(result.text)


if __name__ == "__main__":
    trio.run(main)
