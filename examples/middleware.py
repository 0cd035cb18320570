"""
A middleware that steps in before calls run: it keeps a secret from leaving, and lets a person decide on what removes files.

A script plays the model. It prints:

    rm -rf / - allow? no
    rm -rf build - allow? yes
    login --password [secret]: ok
    rm -rf /: blocked
    rm -rf build: ok
"""

import trio

from alloy_trio import BlockCall, EditCall, Middleware, RunState, ToolUse, open_agent, tool
from alloy_trio.events import ApprovalRequested, ToolEnd
from alloy_trio.testing import ScriptedProvider, tool_call

COMMANDS = ("login --password hunter2", "rm -rf /", "rm -rf build")


class Guard(Middleware):
    """Edits some calls, and asks about others; the history keeps what the model wrote."""

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        """Return what becomes of a call; None lets it run as it is."""
        command = call.input["command"]
        if command.startswith("rm "):
            return await state.approval(call)  # may take a day: no time-out counts it
        return EditCall({"command": command.replace("hunter2", "[secret]")})


@tool(concurrent=False)  # one after the other
async def shell(command: str) -> str:
    """Run a command (this one only says so)."""
    return f"ran {command}"


async def main() -> None:
    """Let a model ask for three calls, and a person decide on two of them."""
    model = ScriptedProvider([[tool_call("shell", {"command": command}) for command in COMMANDS], "Done."])
    async with (
        open_agent(provider=model, tools=[shell], middleware=[Guard()]) as agent,
        agent.stream_chat("Tidy up") as events,
    ):
        async for event in events:
            match event:
                case ApprovalRequested(id_, _, {"command": command}):
                    await trio.sleep(0.1)  # a person thinks; to ask one: `await trio.to_thread.run_sync(input)`
                    allowed = command != "rm -rf /"
                    print(f"{command} - allow? {'yes' if allowed else 'no'}")
                    agent.approve(id_) if allowed else agent.deny(id_, "not the whole disk")
                case ToolEnd(input={"command": command}, outcome=outcome):
                    print(f"{command}: {outcome}")


if __name__ == "__main__":
    trio.run(main)
