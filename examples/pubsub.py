"""
A newsroom of agents and plain tasks, which know topics and not each other; scripts play the models, in virtual time.

    3 s  agent:reporter:responses: Oslo has won, at home.
    3 s  agent:editor:responses: OSLO HAS WON!
    6 s  agent:reporter:responses: It rains, in Bergen.
    6 s  agent:editor:responses: IT RAINS!
"""

import trio
import trio.testing

from alloy_trio import open_agent
from alloy_trio.providers import Request
from alloy_trio.pubsub import PubSub, Subscription
from alloy_trio.testing import ScriptedProvider, delay, text

REPORTS = [[delay(3), text("Oslo has won, at home.")], [delay(3), text("It rains, in Bergen.")]]


def headline(request: Request) -> str:
    """Play the editor's model: shorter, and louder."""
    return request.messages[-1].text.partition(",")[0].upper() + "!"


async def received(subscription: Subscription) -> str:
    """Print the next answer on a topic of agents, and return its text."""
    result = await subscription.receive()
    print(f"{trio.current_time():.0f} s  {subscription.topic}: {result.text}")
    return str(result.text)


async def desk(pubsub: PubSub, reports: Subscription) -> None:
    """Pass on what the reporter has written."""
    while True:
        pubsub.publish("drafts", await received(reports))


async def main() -> None:
    """Open the newsroom, publish two pieces of news, and wait for two headlines."""
    pubsub = PubSub()
    reporter, editor = ScriptedProvider(REPORTS), ScriptedProvider([headline, headline])
    async with (
        open_agent(session_id="reporter", provider=reporter, pubsub=pubsub, subscribe=["news:*"], max_pending=8),
        open_agent(session_id="editor", provider=editor, pubsub=pubsub, subscribe=["drafts"]),
        pubsub.subscribe("agent:reporter:responses") as reports,
        pubsub.subscribe("agent:editor:responses") as headlines,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(desk, pubsub, reports)
        pubsub.publish("news:sport", "3:1")
        pubsub.publish("news:weather", "1012 hPa")
        for _ in range(2):
            await received(headlines)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
