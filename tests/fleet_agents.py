"""Agents for workers: they say what they are told."""

from __future__ import annotations

import trio

from alloy_trio import AgentConfig, Message, RateLimited
from alloy_trio.providers import Request, Response


class Echo:
    """A provider that repeats the last question; the first word of it lets it wait, or fail."""

    name = model = "echo"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.running = 0
        self.most = 0
        self.is_waiting = trio.Event()
        self.go_on = trio.Event()

    async def complete(self, request: Request) -> Response:
        asked = request.messages[-1].text
        self.seen.append(asked)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._do(asked.partition(" ")[0])
        finally:
            self.running -= 1
        turn = sum(message.role == "user" for message in request.messages)
        return Response(message=Message.assistant(f"{turn}: {asked}"))

    async def _do(self, word: str) -> None:
        match word:
            case "wait":
                self.is_waiting.set()
                await self.go_on.wait()
            case "pause":
                await trio.sleep(0.05)
            case "slow":
                await trio.sleep(1.0)
            case "fail":
                raise RateLimited("too much", provider="echo", retryable=False, retry_after=7.0)
            case "odd":
                raise LookupError("nothing here")


agent = AgentConfig(provider=Echo(), name="echo")  # for `python -m alloy_trio worker --module fleet_agents`
