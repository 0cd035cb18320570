"""
A fleet whose network is cut: `python tests/fleet_cut.py --requests 2000`. Needs root, `ip` of iproute2, and redis-server.

Redis and those who ask are in one network namespace, the workers in another, with a pair of virtual links between them, which is
taken down every few seconds for longer than workers may be silent. Nothing outside of the two namespaces is reached, or changed.
Right is what is right in `fleet_drill`: each request answered once, with its own answer, in order where asked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import trio
from fleet_drill import Drill, Outcome, Plan
from redis_server import RedisServer

HOME, AWAY = "alloy-home", "alloy-away"  # the namespaces
REDIS, WORKERS = "192.0.2.1", "192.0.2.2"  # addresses for documentation, which nobody has
PORT = 6390


@attrs.define(kw_only=True)
class CutPlan(Plan):
    """What is done to the link between the two."""

    cut_every: float = 2.0
    cut_for: float = 3.0  # longer than `visibility`: others take over what was running


class CutDrill(Drill):
    """With workers on the other side of a link."""

    cuts = 0

    def start_worker(self) -> None:
        self.command_prefix = ("ip", "netns", "exec", AWAY)
        super().start_worker()

    async def restart(self) -> None:
        """Cut the link again and again, in place of a restart."""
        plan = self.plan
        assert isinstance(plan, CutPlan)
        while True:
            await trio.sleep(plan.cut_every)
            ip("-n", HOME, "link", "set", "home0", "down")
            self.cuts += 1
            await trio.sleep(plan.cut_for)
            ip("-n", HOME, "link", "set", "home0", "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def connect_namespaces() -> None:
    """Make both, and a link between them."""
    for name in (HOME, AWAY):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", HOME, "link", "add", "home0", "type", "veth", "peer", "name", "away0", "netns", AWAY)
    for name, link, address in ((HOME, "home0", REDIS), (AWAY, "away0", WORKERS)):
        ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")


def remove_namespaces() -> None:
    for name in (HOME, AWAY):
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def drill(plan: CutPlan) -> tuple[Outcome, int]:
    """Do it; in the namespace of Redis."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("--bind", REDIS, "--port", str(PORT), "--protected-mode", "no")
        server = RedisServer(Path(folder), *options, aof=True)
        server.url = f"redis://{REDIS}:{PORT}"
        server.start()
        try:

            async def main() -> tuple[Outcome, int]:
                cut = CutDrill(server, plan)
                return await cut.run(), cut.cuts

            return trio.run(main)
        finally:
            server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        plan = CutPlan(requests=asked.requests, kills=0)
        outcome, cuts = drill(plan)
        print(f"{outcome}\nthe link was cut {cuts} times, for {plan.cut_for:g} s each")
        return 0 if outcome.is_right(plan) else 1
    if os.geteuid() != 0:
        print("needs root: it makes two network namespaces")
        return 2
    remove_namespaces()  # of a use that was cut short
    with contextlib.ExitStack() as stack:
        stack.callback(remove_namespaces)
        connect_namespaces()
        inside = ["ip", "netns", "exec", HOME, sys.executable, __file__, "--inside", "--requests", str(asked.requests)]
        return subprocess.run(inside, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
