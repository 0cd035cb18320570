"""
Open a directory by a path that has no link in it, and fail if it has one by now.

A path that was resolved and compared is only text: until it is opened, a directory in it may be swapped for a link to
anywhere. So nothing here follows a link, in the last part of the path or in any before it, and what has been opened is
what the text says. A link that is found has come after the comparison, and is an error.

Linux (5.6) does this in one call, `openat2` with RESOLVE_NO_SYMLINKS. Elsewhere, and where that call is not let through,
the path is walked: each part is opened in the directory before it, with O_NOFOLLOW. Both say the same, errors included.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_SYS_OPENAT2 = 437  # on all machines named here; on 32 bits the flags would be others
_MACHINES = ("x86_64", "aarch64")
_AT_FDCWD = -100
_RESOLVE = 0x02 | 0x04  # RESOLVE_NO_MAGICLINKS (such as /proc/self/fd/3, which are no links by name) | _NO_SYMLINKS
_ATTEMPTS = 16  # of a call that was interrupted, or that says EAGAIN
_PATH_MAX = 4096  # as for Linux: the walk would go on beyond it, and the two ways would differ

# O_PATH opens directories that may be passed through but not listed. What the system lacks, Windows most, is 0.
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
_DIRECTORY = _SEARCH | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_directory(path: str, *, make: bool = False) -> int:
    """
    Open a directory, for use as `dir_fd`; with `make`, it and those above it are made where they are missing.

    `path` is absolute and normal: no "..", no ".", no double slash. The caller closes the descriptor.

    Raises:
        OSError: There is no such directory, or there is a link in its path (ELOOP); no link has been followed.
    """
    if len(os.fsencode(path)) >= _PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    openat2 = _openat2()
    if openat2 is not None:
        try:
            return _kernel(openat2, path)
        except OSError as error:
            # ENOSYS: an older kernel. EPERM: a seccomp filter that has never heard of it; the walk says if it is more.
            if error.errno not in {errno.ENOSYS, errno.EPERM} and not (make and error.errno == errno.ENOENT):
                raise
    return _walk(path, make=make)


def refuse_link(path: str) -> NoReturn:
    """Raise the error of a link that has come into a path."""
    raise OSError(
        errno.ELOOP, "Its path has changed since it was looked up: there is a link in it now. Try again", path
    )


def _kernel(openat2: Callable[[bytes, bytes], int], path: str) -> int:
    how = struct.pack("=QQQ", _DIRECTORY, 0, _RESOLVE)  # struct open_how: flags, mode, resolve
    for _ in range(_ATTEMPTS):
        number = openat2(os.fsencode(path), how)
        if number >= 0:
            return number
        if number not in {-errno.EAGAIN, -errno.EINTR}:
            break
    if number == -errno.ELOOP:
        refuse_link(path)
    raise OSError(-number, os.strerror(-number), path)


@functools.cache
def _openat2() -> Callable[[bytes, bytes], int] | None:
    """Return the system call, which gives a descriptor or a negative errno; None where its number is not known."""
    if sys.platform != "linux" or sys.maxsize < 1 << 32 or os.uname().machine not in _MACHINES:
        return None
    try:
        import ctypes  # noqa: PLC0415 - only who calls a file tool needs it, and not every Python has it

        syscall = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError, AttributeError):
        return None
    syscall.restype = ctypes.c_long
    syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]

    def call(path: bytes, how: bytes) -> int:
        number: int = syscall(_SYS_OPENAT2, _AT_FDCWD, path, how, len(how))
        return number if number >= 0 else -ctypes.get_errno()

    return call


def _walk(path: str, *, make: bool) -> int:
    directory = os.open("/", _DIRECTORY)
    for name in filter(None, path.split("/")):
        try:
            inner = _enter(directory, name, path, make=make)
        finally:
            os.close(directory)
        directory = inner
    return directory


def _enter(directory: int, name: str, path: str, *, make: bool) -> int:
    try:
        return os.open(name, _DIRECTORY | _NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        # What O_NOFOLLOW says of a link differs: ELOOP, EMLINK, EFTYPE, and ENOTDIR where O_DIRECTORY comes first.
        if stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            refuse_link(path)
        raise OSError(error.errno, error.strerror, path) from error
    with suppress(FileExistsError):  # somebody else was quicker
        os.mkdir(name, dir_fd=directory)
    return _enter(directory, name, path, make=False)
