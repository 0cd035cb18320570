"""
A run that is cancelled while its command runs, and the session that stays.

When the cancel scope is left, the command and what it started are gone, every call has an outcome, and the session is a
conversation that any provider accepts. Where there is a pyproject.toml of version 0.1.0, it prints:

    cancelled: True
    user: Run sleep 1000
    assistant: Let me look: bash sleep 1000.
    bash: cancelled
    --
    The version in pyproject.toml is 0.1.0.
"""

import sys

import trio

import alloy_trio
from alloy_trio import Session
from alloy_trio.events import Envelope, ToolStart
from alloy_trio.tools import bash, read


async def main(provider: str) -> None:
    """Cancel a run as soon as its tool starts; then ask something else in the same session."""
    session = Session()

    with trio.CancelScope() as scope:  # a time-out is `trio.move_on_after(5)`, or `timeout=5` for an error

        def cancel_at_tool(envelope: Envelope) -> None:
            if isinstance(envelope.event, ToolStart):
                scope.cancel()

        await alloy_trio.run(
            "Run sleep 1000", provider=provider, tools=[bash], session=session, on_event=cancel_at_tool
        )

    print(f"cancelled: {scope.cancelled_caught}")
    for message in session.messages:
        if message.text:
            print(f"{message.role}: {message.text}")
        for answer in message.tool_results:
            print(f"bash: {answer.outcome}")
    print("--")

    question = "Read pyproject.toml and tell me the version"
    result = await alloy_trio.run(question, provider=provider, tools=[read], session=session)
    print(result.text)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if sys.argv[1:] else "demo")
