"""
A fleet under fire: `python tests/fleet_drill.py --requests 2000`. Prints what came of it, and ends with 1 if it is not right.

Workers in processes of their own, one killed by SIGKILL every second and another started in its place; Redis, with an
append-only file, restarted once. Right is: each request answered, once, with its own answer; those of an order in that order.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import attrs
import trio
from redis_server import RedisServer, redis_server

from alloy_trio import AlloyError, QueueFull
from alloy_trio.fleet import QueueStatistics, RedisQueue, open_queue

HERE = Path(__file__).resolve().parent
AT_ONCE = 200  # requests open at a time


@attrs.define(kw_only=True)
class Plan:
    """What is done to whom."""

    requests: int = 2000
    workers: int = 3
    kill_every: float = 1.0
    kills: int = 1000
    visibility: float = 2.0
    restart_after: float = 0.3  # of the requests
    limit: float = 600.0


@attrs.define
class Outcome:
    """What came of it."""

    statistics: QueueStatistics
    answers: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)
    kills: int = 0
    restarts: int = 0
    seconds: float = 0.0
    trouble: Counter[str] = attrs.field(factory=Counter)

    def is_right(self, plan: Plan) -> bool:
        return len(self.answers) == plan.requests and set(self.answers.values()) == {1} and not self.wrong

    def __str__(self) -> str:
        return (
            f"{len(self.answers)} requests answered, {sum(self.answers.values()) - len(self.answers)} of them more than once, "
            f"{len(self.wrong)} wrong; {self.statistics.repeated} runs repeated; {self.kills} workers killed, "
            f"{self.restarts} restarts of Redis; {self.seconds:.1f} s; errors at submitters: {dict(self.trouble) or 'none'}"
            f"\n{self.statistics}" + "".join(f"\nwrong: {each}" for each in self.wrong[:10])
        )


class Drill:
    """One of them."""

    def __init__(self, server: RedisServer, plan: Plan) -> None:
        self.server, self.plan = server, plan
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.trouble: Counter[str] = Counter()
        self.kills = self.restarts = 0
        self.workers: list[subprocess.Popen[bytes]] = []
        self.lines: dict[str, int] = {}
        self.limit = trio.CapacityLimiter(AT_ONCE)

    command_prefix: tuple[str, ...] = ()  # of a worker's

    def start_worker(self) -> None:
        command = [
            *self.command_prefix,
            sys.executable,
            "-m",
            "alloy_trio",
            "worker",
            "--module",
            "fleet_agents",
            "--redis",
            self.server.url,
        ]
        command += ["--visibility", str(self.plan.visibility), "--concurrency", "8", "--max-tries", "1000"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
        self.workers.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            worker.kill()
            worker.wait(10)

    async def kill(self) -> None:
        while self.kills < self.plan.kills:
            await trio.sleep(self.plan.kill_every)
            worker = self.workers.pop(0)
            worker.kill()
            worker.wait()
            self.kills += 1
            self.start_worker()

    async def restart(self) -> None:
        while len(self.answers) < self.plan.requests * self.plan.restart_after:  # noqa: ASYNC110 - many add to it
            await trio.sleep(0.05)
        await trio.to_thread.run_sync(self.server.stop)
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(self.server.start)
        self.restarts += 1

    async def ask(self, queues: list[RedisQueue], number: int) -> None:
        """Submit one; each third is submitted again by another submitter, under the same id, and each fourth is in a line."""
        prompt, request_id = f"pause {number}", f"r{number}"
        line = f"line {number % 7}" if number % 4 == 0 else None
        async with self.limit:
            for turn in itertools.count():
                try:
                    queue = queues[(number + turn) % len(queues)]
                    submitters = queues if number % 3 == 0 else [queue]
                    asked = [
                        await each.submit("echo", prompt, request_id=request_id, order=line) for each in submitters
                    ]
                    said = {(await each.result()).text for each in asked}
                    break
                except QueueFull:
                    await trio.sleep(0.1)
                except AlloyError as error:  # Redis was away: the same again, under the same id
                    self.trouble[type(error).__name__] += 1
            self.answers[request_id] += 1
            if said != {f"1: {prompt}"}:
                self.wrong.append(f"{request_id}: {said}")

    async def run(self) -> Outcome:
        began = time.monotonic()
        for _ in range(self.plan.workers):
            self.start_worker()
        try:
            with trio.fail_after(self.plan.limit):
                async with open_queue(self.server.url) as one, open_queue(self.server.url) as other:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.kill)
                        nursery.start_soon(self.restart)
                        async with trio.open_nursery() as askers:
                            for number in range(self.plan.requests):
                                askers.start_soon(self.ask, [one, other], number)
                        nursery.cancel_scope.cancel()
                    stands = await one.statistics("echo")
        finally:
            self.end_workers()
        if stands.pending or stands.done != self.plan.requests:
            self.wrong.append(f"Redis counts otherwise: {stands}")
        took = time.monotonic() - began
        return Outcome(stands, self.answers, self.wrong, self.kills, self.restarts, took, self.trouble)


def drill(plan: Plan, folder: Path) -> Outcome:
    """Do it."""
    with redis_server(folder, aof=True) as server:

        async def main() -> Outcome:
            return await Drill(server, plan).run()

        return trio.run(main)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--kill-every", type=float)
    plan = Plan(**{name: value for name, value in vars(parser.parse_args()).items() if value is not None})
    with tempfile.TemporaryDirectory() as folder:
        outcome = drill(plan, Path(folder))
    print(outcome)
    sys.exit(not outcome.is_right(plan))
