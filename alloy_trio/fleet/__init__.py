"""
A fleet: agents in worker processes on many machines, and those who ask them, with Redis in between.

Needs `alloy_trio[redis]`.
"""

from __future__ import annotations

from .._util import export as _export
from ._errors import LeaseLost as LeaseLost
from ._errors import RedisUnavailable as RedisUnavailable
from ._errors import RequestPoisoned as RequestPoisoned
from ._errors import WorkerError as WorkerError
from ._pubsub import RedisPubSub as RedisPubSub
from ._queue import QueueStatistics as QueueStatistics
from ._queue import RedisQueue as RedisQueue
from ._queue import open_queue as open_queue
from ._request import DeadLetter as DeadLetter
from ._request import QueuedRequest as QueuedRequest
from ._store import RedisStore as RedisStore
from ._store import SessionLease as SessionLease
from ._worker import Worker as Worker
from ._worker import WorkerStatistics as WorkerStatistics

__all__ = [
    "DeadLetter",
    "LeaseLost",
    "QueueStatistics",
    "QueuedRequest",
    "RedisPubSub",
    "RedisQueue",
    "RedisStore",
    "RedisUnavailable",
    "RequestPoisoned",
    "SessionLease",
    "Worker",
    "WorkerError",
    "WorkerStatistics",
    "open_queue",
]

_export(globals(), __all__)
