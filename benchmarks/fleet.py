"""
Requests a second through the queue of a fleet: `python -m benchmarks.fleet`. Needs redis-server, and the extra `redis`.

One submitter, a Redis with an append-only file, and 1, 2 and 4 workers, each a process; all on this machine, so that with few
cores they take them from each other. It is wall time, of the best of some rounds. A model that answers at once shows what the
queue itself can do; one that takes 0.2 seconds, 16 requests at once in each worker, shows what workers add: real models take longer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from coredis import Redis

from alloy_trio import AgentConfig, Message
from alloy_trio.fleet import RedisQueue, open_queue
from alloy_trio.providers import Request, Response

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]


class _Model:
    """Answers after a while."""

    name = model = "benchmark"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def complete(self, _: Request) -> Response:
        await trio.sleep(self._seconds)
        return Response(message=Message.assistant("done"))


at_once = AgentConfig(provider=_Model(0.0))
slow = AgentConfig(provider=_Model(0.2))


@contextlib.contextmanager
def _processes(folder: str, workers: int) -> Iterator[str]:
    """Run Redis and workers; yields the URL."""
    url = f"unix://{folder}/redis.sock"
    redis = shutil.which("redis-server")
    if redis is None:
        sys.exit("there is no redis-server here")
    options = ["--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", folder, "--appendonly", "yes"]
    started = [subprocess.Popen([redis, *options, "--logfile", f"{folder}/log"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "alloy_trio", "worker", "--module", "benchmarks.fleet", "--redis", url]
    try:
        started += [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(workers)]
        yield url
    finally:
        for process in started:
            process.kill()
            process.wait()


async def _ask(queue: RedisQueue, agent: str, requests: int) -> float:
    """Return requests a second."""
    limit = trio.CapacityLimiter(256)

    async def ask() -> None:
        async with limit:
            await queue.chat(agent, "Hello")

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(requests):
            nursery.start_soon(ask)
    return requests / (time.perf_counter() - began)


async def _cpu(url: str) -> float:
    """Return the seconds that Redis has worked."""
    async with Redis.from_url(url) as client:
        said = {str(key): str(value) for key, value in (await client.info("cpu")).items()}
    return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


async def _measure(url: str, workers: int, requests: int, rounds: int) -> tuple[float, float, float]:
    async with open_queue(url) as queue:
        await _ask(queue, "at_once", 100)
        await trio.sleep(1.0 + workers)  # until all of them are up
        before = await _cpu(url)
        fast = max([await _ask(queue, "at_once", requests) for _ in range(rounds)])
        redis = (await _cpu(url) - before) / (requests * rounds)
        return fast, max([await _ask(queue, "slow", requests) for _ in range(rounds)]), redis * 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    print("| workers | requests/s, a model that answers at once | one that takes 0.2 s | CPU of Redis, µs/request |")
    print("| ------: | ---------------------------------------: | -------------------: | -----------------------: |")
    for workers in given.workers:
        with tempfile.TemporaryDirectory() as folder, _processes(folder, workers) as url:
            fast, paced, redis = trio.run(_measure, url, workers, given.requests, given.rounds)
        print(f"| {workers:>7} | {fast:>40.0f} | {paced:>20.0f} | {redis:>24.0f} |", flush=True)


if __name__ == "__main__":
    main()
