"""
`python -m alloy_trio worker --module my_agents`: a worker of a fleet.

SIGTERM, or Ctrl-C, lets it finish what it has, and take nothing more; a second one gives back what it has, for other workers.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from ._text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._agent_config import AgentConfig
    from ..fleet._worker import Worker

REDIS: Final = "ALLOY_REDIS"
SEEN: Final = f"everybody on the machine could read the password in it: set ${REDIS} instead"


def _check_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    if url is not None and "@" in url:
        raise click.BadParameter(SEEN)
    return url


@click.command(
    "worker",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""The first SIGTERM or Ctrl-C lets it finish what it has; the second gives that back.

    A password of Redis goes into ${REDIS}, with the rest of the URL.
    """,
)
@click.option(
    "--module", metavar="NAME", required=True, help="The Python module that has the agents: each AgentConfig in it."
)
@click.option(
    "--redis", metavar="URL", callback=_check_url, help=f"Where Redis is; else ${REDIS}, else redis://localhost:6379."
)
@click.option("--prefix", metavar="TEXT", default="alloy", help="What all keys begin with (alloy).")
@click.option(
    "--concurrency", metavar="N", type=click.IntRange(min=1), default=16, help="Requests that run at once (16)."
)
@click.option(
    "--visibility",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, min_open=True),
    default=30.0,
    help="When another worker takes over from one that has died (30).",
)
@click.option(
    "--max-tries",
    metavar="N",
    type=click.IntRange(min=1),
    default=3,
    help="Workers that may die of a request before it is given up (3).",
)
def command(*, module: str, redis: str | None, prefix: str, concurrency: int, visibility: float, max_tries: int) -> int:
    """Run requests of a fleet, as they come through Redis."""
    import trio  # noqa: PLC0415 - for those who run it

    from .._errors import InvalidOption  # noqa: PLC0415 - as above
    from .._util import single  # noqa: PLC0415 - as above
    from ..fleet._errors import RedisUnavailable  # noqa: PLC0415 - as above
    from ..fleet._names import URL, address  # noqa: PLC0415 - as above
    from ..fleet._worker import Worker  # noqa: PLC0415 - as above

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    agents = _agents(module)
    options: dict[str, Any] = {"visibility": visibility, "max_tries": max_tries, "concurrency": concurrency}
    try:
        url = address(redis or os.environ.get(REDIS) or URL)
        trio.run(_work, Worker(url, agents, prefix=prefix, **options), agents)
    except Exception as error:
        match single(error):
            case InvalidOption() as wrong:
                raise click.UsageError(str(wrong)) from None
            case RedisUnavailable() as away:
                raise click.ClickException(str(away)) from None
        raise
    return 0


def _agents(name: str) -> Mapping[str, AgentConfig]:
    """Return the agents of a module."""
    from .._agent_config import AgentConfig  # noqa: PLC0415 - as above

    if "" not in sys.path:  # the command alloy-trio looks where it is called, as python -m does
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise click.UsageError(f"there is no module {name!r}: say it as in an import, without .py") from error
    agents: dict[str, AgentConfig] = {}
    for variable, config in vars(module).items():
        if isinstance(config, AgentConfig):
            agent = config.name or variable
            if agents.setdefault(agent, config) is not config:
                raise click.UsageError(f"{name} has two agents {agent!r}: give one of them another name=")
    if not agents:
        raise click.UsageError(f"{name} has no agent: researcher = AgentConfig(provider=…) makes one")
    return agents


async def _work(worker: Worker, agents: Mapping[str, AgentConfig]) -> None:
    import trio  # noqa: PLC0415 - as above

    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
            await worker.serve(task_status=task_status)
            nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await nursery.start(serve)
            _say(f"worker {worker.name} is up: {', '.join(agents)}")
            async for _ in signals:
                worker.stop()
                running = worker.statistics().running
                _say(f"finishing {running} requests; once more to give them back")
                break
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _say(words: str) -> None:
    click.echo(one_line(words), err=True)
