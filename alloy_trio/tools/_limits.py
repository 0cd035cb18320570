"""Limits of a command that the kernel holds: `ulimit` in a shell that then becomes the command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs

from .._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@attrs.frozen(kw_only=True)
class Limits:
    """
    What each process of a command may take (setrlimit(2)); None is no limit.

    They are not set between fork and exec, where Python code is not safe beside threads, but by a shell that the
    command is started through. If that cannot, the command is not run.

    Attributes:
        memory: Bytes of address space of one process.
        processes: Processes and threads of the user at once; in a sandbox those in it alone.
        cpu_seconds: Seconds of processor time of one process.
        file_size: Bytes of a file that is written.
    """

    memory: int | None = None
    processes: int | None = None
    cpu_seconds: int | None = None
    file_size: int | None = None

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self).items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidOption(f"bash: {name} is a whole number from 1, or left out for no limit; got {value!r}")

    def around(self, argv: Sequence[str]) -> list[str]:
        """Return a command that sets the limits and becomes `argv`."""
        if steps := list(self._steps()):
            return ["bash", "-c", " && ".join([*steps, 'exec "$@"']), "bash", *argv]
        return list(argv)

    def _steps(self) -> Iterator[str]:
        if self.memory is not None:
            yield f"ulimit -v {_kib(self.memory)}"
        if self.file_size is not None:
            yield f"ulimit -f {_kib(self.file_size)}"
        if self.cpu_seconds is not None:  # a second between SIGXCPU, which says what it is, and SIGKILL
            yield f"ulimit -S -t {self.cpu_seconds} && ulimit -H -t {self.cpu_seconds + 1}"
        if self.processes is not None:
            yield f"ulimit -u {self.processes}"


def _kib(count: int) -> int:
    return -(-count // 1024)


def is_root() -> bool:
    """Return whether Linux holds us to no limit of processes."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
