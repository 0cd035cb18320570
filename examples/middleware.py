"""
Three middlewares: one guards, one redacts, one keeps an audit log; a script plays the model.

It prints:

    turn 1: shell {'command': 'ls'}
    turn 1: send {'words': 'the password is [secret]'}
    halted: 4 calls are too many; refused: 1
    shell {'command': 'rm -rf build'}: blocked
    shell {'command': 'ls'}: ok
    send {'words': 'the password is [secret]'}: ok
"""

from __future__ import annotations

import trio

import alloy_trio
from alloy_trio import BlockCall, EditCall, Halted, Middleware, RunState, ToolUse, tool
from alloy_trio.testing import ScriptedProvider, tool_call


class Guard(Middleware):
    """Stops commands that delete, and runs that go on and on."""

    most = 3

    async def after_tool_request(self, state: RunState) -> None:
        """End the run when it has asked for too much: the calls asked for last do not run."""
        asked = sum(len(message.tool_uses) for message in state.messages)
        if asked > self.most:
            raise Halted(f"{asked} calls are too many")

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | None:
        """Refuse `rm`; the model reads why."""
        if call.name == "shell" and "rm" in call.input["command"].split():
            state.metadata["refused"] = state.metadata.get("refused", 0) + 1  # it goes into the result
            return BlockCall("nothing is deleted here; move it to trash/ instead")
        return None


class Redaction(Middleware):
    """Keeps a secret from leaving. The history still has what the model wrote."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> EditCall | None:
        """Edit the input of `send`, and tell whoever listens to the run's events."""
        if call.name != "send" or "hunter2" not in call.input["words"]:
            return None
        await state.emit("redacted", {"call": call.id})
        return EditCall({**call.input, "words": call.input["words"].replace("hunter2", "[secret]")})


class Audit(Middleware):
    """Prints what is about to run, and how it ended. Last in the list: it sees what the others have made of it."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> None:
        """Print a call that nobody has blocked."""
        print(f"turn {state.turns}: {call.name} {call.input}")


@tool
async def shell(command: str) -> str:
    """Run a command (this one only says so)."""
    return f"ran {command}"


@tool
async def send(words: str) -> str:
    """Send a message (this one only says so)."""
    return f"sent: {words}"


async def main() -> None:
    """Let a model ask for three calls, and then for one too many."""
    model = ScriptedProvider(
        [
            [
                tool_call("shell", {"command": "rm -rf build"}),
                tool_call("shell", {"command": "ls"}),
                tool_call("send", {"words": "the password is hunter2"}),
            ],
            tool_call("shell", {"command": "ls trash"}),
        ]
    )
    result = await alloy_trio.run(
        "Tidy up", provider=model, tools=[shell, send], middleware=[Guard(), Redaction(), Audit()]
    )
    print(f"{result.status}: {result.error}; refused: {result.metadata['refused']}")
    for call in result.tool_calls:
        print(f"{call.name} {call.input}: {call.outcome}")


if __name__ == "__main__":
    trio.run(main)
