"""Stores of sessions: what each of them has to do, and what only some can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from store_contract import StoreContract

from alloy_trio.sessions import JSONLStore, MemoryStore, SQLiteStore

if TYPE_CHECKING:
    from pathlib import Path


class TestMemoryStore(StoreContract):
    """One object for each folder: what is in it lives as long as it does."""

    stores: dict[Path, MemoryStore]

    def make(self, folder: Path) -> MemoryStore:
        if not hasattr(self, "stores"):
            self.stores = {}
        return self.stores.setdefault(folder, MemoryStore())


class TestJSONLStore(StoreContract):
    def make(self, folder: Path) -> JSONLStore:
        return JSONLStore(folder / "new" / "sessions")


class TestJSONLStoreWithoutFsync(StoreContract):
    def make(self, folder: Path) -> JSONLStore:
        return JSONLStore(str(folder), fsync=False)


class TestSQLiteStore(StoreContract):
    def make(self, folder: Path) -> SQLiteStore:
        return SQLiteStore(folder / "new" / "sessions.db")


class TestSQLiteStoreInNormalMode(StoreContract):
    def make(self, folder: Path) -> SQLiteStore:
        return SQLiteStore(str(folder / "sessions.db"), synchronous="NORMAL")
