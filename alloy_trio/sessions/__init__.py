"""Stores: conversations as logs of records, written ahead, in memory or on disk. They know nothing of agents."""

from __future__ import annotations

from .._util import export as _export
from ._jsonl import JSONLStore as JSONLStore
from ._memory import MemoryStore as MemoryStore
from ._record import Record as Record
from ._record import SessionStore as SessionStore
from ._sqlite import SQLiteStore as SQLiteStore

__all__ = ["JSONLStore", "MemoryStore", "Record", "SQLiteStore", "SessionStore"]

_export(globals(), __all__)
