"""`bash_sandboxed`: the `bash` tool with each of its commands in a sandbox."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from typing import TYPE_CHECKING

from .._errors import InvalidOption
from .._util import Discreet
from ._bash import Bash, Shell, execution
from ._limits import Limits
from ._sandbox import KERNEL, Sandbox, is_in, places, probed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def _homes() -> list[str]:
    """Return our homes, by the environment and by the system; one that is not ours, as that of `nobody`, is none."""
    import pwd  # noqa: PLC0415 - there is none on Windows

    named = [os.path.expanduser("~")]  # noqa: PTH111 - strings all along
    with contextlib.suppress(KeyError):
        named.append(pwd.getpwuid(os.geteuid()).pw_dir)
    real = [os.path.realpath(each) for each in named]
    return [each for each in real if os.path.isdir(each) and each != "/" and os.stat(each).st_uid == os.geteuid()]  # noqa: PTH112, PTH116


def _resolved(name: str, paths: Iterable[str | Path]) -> tuple[str, ...]:
    if isinstance(paths, str):
        raise InvalidOption(f"bash_sandboxed: {name} is a list of paths; write [{paths!r}]")
    found = sorted({os.path.realpath(os.path.expanduser(path)) for path in paths})  # noqa: PTH111
    for path in found:
        if path == "/" or not os.path.exists(path):  # noqa: PTH110
            raise InvalidOption(f"bash_sandboxed: {name} has {path}, which is not there or is the root; leave it out")
        if name != "hidden" and any(is_in(path, each) for each in KERNEL):
            raise InvalidOption(f"bash_sandboxed: {name} has {path}: of {', '.join(KERNEL)} the sandbox has its own")
    return tuple(found)


def bash_sandboxed(
    *,
    network: bool = False,
    writable: Iterable[str | Path] = (),
    readable: Iterable[str | Path] = (),
    hidden: Iterable[str | Path] = (),
    env: Mapping[str, str | None] | None = None,
    timeout: float = 120.0,
    max_timeout: float = 600.0,
    memory: int | None = None,
    processes: int | None = 512,
    cpu_seconds: int | None = None,
    file_size: int | None = None,
    tmp_size: int = 1 << 30,
) -> Bash:
    """
    Return a `bash` that runs each command in a sandbox of its own, by bubblewrap (`bwrap`); for Linux.

    A command writes in the working directory alone, and in /tmp and an empty home that last as long as it does. It
    reads the system, but nothing else of the user's: /home, /root, /run, /tmp, /mnt, /media are empty, and so are known
    secrets of the system, or they cannot be opened. It has no network, no privileges, no other processes in sight, no environment but PATH, language,
    time zone, terminal and user's name. Nothing of it runs after it has ended, not even a daemon. What it puts into
    the working directory stays there, for you to run or not.

    This is for commands: `read`, `write` and `edit` run outside, and heed `allowed_paths` alone. Relative paths begin at
    the current directory of this call, not at the working directory of a run.

    Args:
        network: Whether commands have the network, all of it: this machine's own services as well.
        writable: More directories that can be written.
        readable: What of the hidden places can be read, as `~/.cargo`; in a writable directory: what of it cannot be
            written, as `.git/hooks`.
        hidden: Directories that are empty, and files that cannot be opened, as a project's `.env`.
        env: Variables to set, or with None to remove.
        timeout: Seconds for a command where the model asks for no time of its own.
        max_timeout: Seconds that the model can get at most.
        memory: Bytes of address space of each process. Programs that reserve much, as node does, need much.
        processes: How many processes at once. Where we are root, whom Linux does not hold to such a limit, they are
            counted, twenty times a second, and the command is stopped.
        cpu_seconds: Seconds of processor time of each process.
        file_size: Bytes of a file that is written.
        tmp_size: Bytes that each of /tmp, /dev/shm and home can have; they are in memory.

    Raises:
        InvalidOption: An option cannot be right, or there can be no sandbox here: there is no `bwrap`, or it must not
            make namespaces. It is tried, once for the same options; there is no falling back to less.
    """
    env = Discreet(env or {})
    program = shutil.which("bwrap")
    if program is None:
        raise InvalidOption(
            "bash_sandboxed needs bubblewrap: install it (`apt-get install bubblewrap`, `dnf install bubblewrap`); "
            "where there is no Linux, give `bash.configure` an executor that has a sandbox of another kind"
        )
    if tmp_size < 1:
        raise InvalidOption(f"bash_sandboxed: tmp_size is a number of bytes from 1, got {tmp_size!r}")
    if not isinstance(network, bool):
        raise InvalidOption(f"bash_sandboxed: network is True or False, got {network!r}")
    roots = _resolved("writable", writable)
    homes = _homes()
    sandbox = Sandbox(
        program=program,
        network=network,
        writable=tuple(each for each in roots if not any(is_in(each, other) for other in roots if other != each)),
        readable=_resolved("readable", readable),
        hidden=_resolved("hidden", hidden),
        home=homes[0] if homes else "/tmp",  # noqa: S108 - of the sandbox
        empty=places(homes),
        tmp_size=tmp_size,
    )
    limits = Limits(memory=memory, processes=processes, cpu_seconds=cpu_seconds, file_size=file_size)
    shell = Shell(timeout=timeout, max_timeout=max_timeout, env=env, sandbox=sandbox, limits=limits)
    probed(sandbox, limits)
    return Bash(name="bash", concurrent=False, timeout=math.inf, shell=shell, **execution(shell))
