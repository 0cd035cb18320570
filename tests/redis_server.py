"""A redis-server of one's own, on a Unix socket in a temporary folder; and agents for workers."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import shutil
import subprocess
import time
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
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
def _rest_of_coredis() -> Iterator[None]:
    """Let what coredis leaves open be collected here, not in the middle of other tests."""
    yield
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
