"""
`python -m alloy_trio worker --module my_agents`: a worker of a fleet.

SIGTERM, or Ctrl-C, lets it finish what it has, and take nothing more; a second one gives back what it has, for other workers.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ._text import harmless, log_handler, one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import trio

    from .._agent_config import AgentConfig
    from ..fleet._pubsub import RedisPubSub
    from ..fleet._worker import Worker

_AS_IN: Final = "say it as in an import, without .py, from the folder that has it"
REDIS: Final = "ALLOY_REDIS"
OUR_REDIS: Final = "redis://"  # stands for what is in ALLOY_REDIS
SEEN: Final = f"everybody on the machine could read the password in it: set ${REDIS} instead"
_PATIENCE: Final = 2.0  # seconds of silence, before it is said what is waited for


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
@click.option(
    "--keep-sessions",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    help="How long a conversation is kept that nobody goes on with; for ever, without it.",
)
@click.option("--events", is_flag=True, help="Publish what happens in runs, for each RedisPubSub: agent:ID:events.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
def command(*, module: str, redis: str | None, prefix: str, events: bool, debug: bool, **numbers: Any) -> int:
    """Run requests of a fleet, as they come through Redis."""
    import trio  # noqa: PLC0415 - for those who run it

    from .._errors import InvalidOption  # noqa: PLC0415 - as above
    from .._util import single  # noqa: PLC0415 - as above
    from ..fleet._errors import RedisUnavailable  # noqa: PLC0415 - as above
    from ..fleet._names import URL, address  # noqa: PLC0415 - as above
    from ..fleet._pubsub import RedisPubSub  # noqa: PLC0415 - as above
    from ..fleet._worker import Worker  # noqa: PLC0415 - as above

    if debug:
        logging.getLogger("alloy_trio").setLevel(logging.DEBUG)
    logging.basicConfig(handlers=[log_handler()], level=logging.WARNING)
    agents = _agents(module, debug=debug)
    try:
        url = address(redis_url(redis) or URL)
        pubsub = RedisPubSub(url, prefix=prefix) if events else None
        agents = {name: config.but(pubsub=config.pubsub or pubsub) for name, config in agents.items()}
        trio.run(_work, Worker(url, agents, prefix=prefix, **numbers), pubsub, agents)
    except Exception as error:
        match single(error):
            case InvalidOption() as wrong:
                raise click.UsageError(str(wrong)) from None
            case RedisUnavailable() as away:
                raise click.ClickException(f"{away} (its address: --redis, or ${REDIS})") from None
        raise
    return 0


def redis_url(given: str | None) -> str | None:
    """
    Return where Redis is: as an option says it, or else ALLOY_REDIS, for which `redis://` alone stands; None where neither does.

    Raises:
        click.UsageError: ALLOY_REDIS is to say it, and is not set.
    """
    url = os.environ.get(REDIS) if given in {None, OUR_REDIS} else given
    if given is not None and not url:
        raise click.UsageError(f"{OUR_REDIS} stands for what is in ${REDIS}, and that is not set")
    return url or None


def _agents(name: str, *, debug: bool) -> Mapping[str, AgentConfig]:
    """Return the agents of a module."""
    from .._agent_config import AgentConfig  # noqa: PLC0415 - as above

    if "" not in sys.path:  # the command alloy-trio looks where it is called, as python -m does
        sys.path.insert(0, "")
    if not name.strip(".") or name.startswith("."):
        raise click.UsageError(f"there is no module {name!r}: {_AS_IN}")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise click.UsageError(f"there is no module {name!r}: {_AS_IN}") from error
        if debug:
            click.echo(harmless("".join(traceback.format_exception(error))), err=True)
        raise click.UsageError(f"{name} cannot be imported: {_failure(error)}") from error
    agents: dict[str, AgentConfig] = {}
    for variable, config in vars(module).items():
        if isinstance(config, AgentConfig):
            agent = config.name or variable
            if agents.setdefault(agent, config) is not config:
                raise click.UsageError(f"{name} has two agents {agent!r}: give one of them another name=")
    if not agents:
        raise click.UsageError(f"{name} has no agent: researcher = AgentConfig(provider=…) makes one")
    return agents


def _failure(error: Exception) -> str:
    """Say what a module has raised, and the last line at it that its author wrote."""
    words = str(error) if type(error).__module__.startswith("alloy_trio") else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):  # says where itself
        return words
    not_theirs = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(not_theirs) and "site-packages" not in frame.filename:
            return f"{words} ({Path(frame.filename).name}, line {frame.lineno})"
    return words


async def _work(worker: Worker, pubsub: RedisPubSub | None, agents: Mapping[str, AgentConfig]) -> None:
    import trio  # noqa: PLC0415 - as above

    is_up = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        async with pubsub or contextlib.nullcontext():
            await worker.serve(task_status=task_status)
        nursery.cancel_scope.cancel()

    async def say_so() -> None:
        with trio.move_on_after(_PATIENCE):
            await is_up.wait()
        if not is_up.is_set():
            _say("waiting for Redis")

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, worker, is_up, nursery.cancel_scope)
            nursery.start_soon(say_so)
            await nursery.start(serve)
            is_up.set()
            _say(f"worker {worker.name} is up: {', '.join(agents)}")
    if released := worker.statistics().released:
        _say(f"gave back {_requests(released)}")


async def _obey(signals: AsyncIterator[int], worker: Worker, is_up: trio.Event, scope: trio.CancelScope) -> None:
    await anext(signals)
    if sys.stderr.isatty():
        click.echo(err=True)  # behind the terminal's ^C
    if is_up.is_set():  # else there is nothing to finish, and Redis may be away for long
        worker.stop()
        if running := worker.statistics().running:
            _say(f"finishing {_requests(running)}; once more to give {'it' if running == 1 else 'them'} back")
        await anext(signals)
    scope.cancel()


def _requests(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"


def _say(words: str) -> None:
    click.echo(one_line(words), err=True)
