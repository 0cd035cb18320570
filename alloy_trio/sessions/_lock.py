"""A lock on a folder: one store has it, and another one is told who that is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .._errors import StoreError

_NAME = "store.lock"


class FolderLock:
    """
    A lock of the operating system (`flock`) on a file in a folder, which names the process that has it.

    It ends with the process, however that ends; the file stays. It holds against other stores in the same process, too.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `StoreError` if somebody has it, `OSError` if there can be none."""
        try:
            import fcntl  # noqa: PLC0415 - not on Windows
        except ImportError:
            raise StoreError("JSONLStore needs a lock that this system does not have: use SQLiteStore") from None
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()} {_program()}".encode("utf-8", "replace"))
        except BlockingIOError:
            owner = os.read(fd, 1000).decode("utf-8", "replace")
            os.close(fd)
            raise self._taken(owner) from None
        except OSError:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Give it back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _taken(self, owner: str) -> StoreError:
        pid, _, program = owner.partition(" ")
        folder = self._path.parent
        if pid == str(os.getpid()):
            return StoreError(f"{folder} is in use by another store of this process: share that one")
        who = f"process {pid} ({program})" if pid else "another process"
        return StoreError(f"{folder} is in use by {who}: end it, or give this store another folder")


def _program() -> str:
    """Return what runs, without its arguments: there may be keys among them."""
    return f"{Path(sys.executable).name} {sys.argv[0] if sys.argv else ''}".strip()
