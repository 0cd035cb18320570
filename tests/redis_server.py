"""A redis-server of one's own, on a Unix socket in a temporary folder; and agents for workers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import secrets
import shutil
import subprocess
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fleet_agents import Echo

from alloy_trio import AgentConfig
from alloy_trio.fleet import RedisPubSub, RedisQueue, RedisStore, Worker, open_queue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

PROGRAM = shutil.which("redis-server")
WHY_NOT = (
    "there is no redis-server here" if PROGRAM is None else "coredis is not installed: pip install 'alloy_trio[redis]'"
)
needs_redis = [
    pytest.mark.skipif(PROGRAM is None or importlib.util.find_spec("coredis") is None, reason=WHY_NOT),
    # coredis leaves its channels open where a connection breaks, or a read is cancelled.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.usefixtures("_rest_of_coredis"),
]


@pytest.fixture
def _rest_of_coredis(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let what coredis leaves open be collected here, not in the middle of other tests."""
    yield
    caplog.get_records("call").clear()  # what it has logged has tracebacks, and these have all that was there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class RedisServer:
    """Runs until stopped; what it has is in its folder, and outlives a restart if it writes an append-only file."""

    def __init__(self, folder: Path, *options: str, aof: bool = False) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self._args = [
            str(PROGRAM),
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--dir",
            str(folder),
            "--save",
            "",
        ]
        self._args += ["--appendonly", "yes" if aof else "no", "--logfile", str(folder / "redis.log"), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._args)
        until = time.monotonic() + 10
        while not self._socket.exists():
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < until, "redis-server does not start"
            time.sleep(0.01)

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(10)
            self._process = None


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, aof: bool = False) -> Iterator[RedisServer]:
    """Have one while the body runs."""
    server = RedisServer(folder, *options, aof=aof)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Fleet:
    """Keys of its own in a server, and workers in this process."""

    def __init__(self, url: str) -> None:
        self.url, self.prefix = url, secrets.token_hex(4)
        self.echo = Echo()

    def worker(self, echo: Echo | None = None, **options: Any) -> Worker:
        config = AgentConfig(provider=echo or self.echo)
        return Worker(self.url, {"echo": config}, prefix=self.prefix, **{"visibility": 1.0, **options})

    @contextlib.asynccontextmanager
    async def working(self, *workers: Worker) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            for worker in workers or (self.worker(),):
                await nursery.start(worker.serve)
            yield nursery
            nursery.cancel_scope.cancel()

    def queue(self, **options: Any) -> contextlib.AbstractAsyncContextManager[RedisQueue]:
        return open_queue(self.url, prefix=self.prefix, **options)

    def store(self, **options: Any) -> RedisStore:
        return RedisStore(self.url, prefix=self.prefix, **options)

    def pubsub(self, **options: Any) -> RedisPubSub:
        return RedisPubSub(self.url, prefix=self.prefix, **options)

    def key(self, rest: str) -> str:
        return f"{self.prefix}:{{echo}}:{rest}"

    async def redis(self, *command: str | bytes) -> Any:
        from coredis import Redis
        from coredis.commands.request import CommandRequest

        async with Redis.from_url(self.url) as client:
            words: list[Any] = list(command[1:])
            return await CommandRequest[Any](
                str(command[0]).encode(),
                *words,
                callback=lambda reply: reply,
                resolver=client.execute_command,
                type_adapter=client.type_adapter,
                execution_parameters={},
            )

    async def keys(self) -> list[str]:
        return sorted(key.decode() for key in await self.redis("KEYS", f"{self.prefix}:*"))


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the tests of a file."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def fleet(shared_redis: RedisServer) -> Fleet:
    """Keys of its own for each test."""
    return Fleet(shared_redis.url)
