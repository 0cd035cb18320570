"""
A web service that streams answers, on Hypercorn and Starlette: `pip install "hypercorn[trio]" starlette`.

Run it, and `curl -N "http://127.0.0.1:8000/ask?q=Hello"`: each word comes as it is made. A client that reads slowly slows its
run down, one that leaves cancels it, and a run that fails breaks off its response. Arguments: PROVIDER HOST:PORT.
"""

import signal
import sys

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import alloy_trio
from alloy_trio.events import TextDelta


class Ask:
    """An ASGI endpoint. A request is one nursery: its run, and a task that waits for the client to leave."""

    def __init__(self, provider: str) -> None:
        self.provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send an answer as it comes."""

        async def leave_with_client() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        question = Request(scope).query_params.get("q", "Hello")
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_with_client)
            async with alloy_trio.stream(question, provider=self.provider) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        await send({"type": "http.response.body", "body": event.text.encode(), "more_body": True})
            await send({"type": "http.response.body"})
            nursery.cancel_scope.cancel()
        print(f"{question}: {events.result.status}", flush=True)


async def main(provider: str, bind: str) -> None:
    """Serve until Ctrl-C, which is waited for here, and so hits nobody's request."""
    app = Starlette(routes=[Route("/ask", Ask(provider))])
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await serve(app, Config.from_mapping(bind=bind), shutdown_trigger=signals.__anext__)  # type: ignore[arg-type]


if __name__ == "__main__":
    trio.run(main, *(sys.argv[1:] or ("demo", "127.0.0.1:8000")))
