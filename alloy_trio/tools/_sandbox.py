"""
Commands in a sandbox of bubblewrap's, for Linux.

What a command sees is built anew for each: the whole file system read-only, over it empty directories where secrets and
sockets of others are (`_HIDDEN`, and the user's home), over these what can be written in spite of that, then nothing where
known secrets of the system are, what is to be read in spite of that, last what the user hides. The order of the mounts is
the meaning: later ones lie over earlier ones.

The paths of the mounts are resolved outside, where links count for real, and a command that can write in a directory could
leave a link in it for the mounts of the next command to follow. So nothing below a writable directory is mounted
writable again, and a path that is gone or leads elsewhere than at first fails the command. Nothing of a command runs
after it that could change them meanwhile.

The first process of a sandbox ends after all others in it. bubblewrap says which it is (`--info-fd`) before it lets the
command start, so that nothing in the sandbox can hide it from us; to kill it is to end the sandbox.

bubblewrap itself, and the shell that starts it, run outside. They have no variable of the command's environment: one like
LD_LIBRARY_PATH could make them load what a command has left in the working directory.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
import subprocess
from typing import TYPE_CHECKING

import attrs
import trio

from .._errors import InvalidOption, ToolError
from .._util import Discreet
from ._limits import Limits, is_root
from ._process import Command, attend, end, marked
from ._seccomp import filter_program
from ._spawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
_HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp", "/mnt", "/media")  # noqa: S108 - they are hidden, not used
"""Directories that are empty inside: of people, of sockets (as Docker's), of disks; so is the user's home."""

_SECRETS = (
    *("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/krb5.keytab", "/etc/ssl/private"),
    *("/etc/wireguard", "/etc/NetworkManager/system-connections", "/etc/kubernetes", "/var/lib/kubelet"),
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/sss", "/var/spool", "/var/mail"),
    *("/var/snap", "/var/lib/lxd", "/var/lib/incus"),  # their sockets are as good as being root
)
"""What of the system is empty inside, and so are host keys of SSH: where we are root, all this could be read."""

_PASSED_ON = re.compile("PATH|LANG|LANGUAGE|LC_.*|TZ|TERM|COLORTERM|NO_COLOR|USER|LOGNAME")
_NAMESPACES = (
    *("--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL", "--die-with-parent", "--new-session", "--hostname", "sandbox"),
)
_ENDED_FIRST = ("/bin/sh", "-c", 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")
"""Starts a command that the kernel ends before others where memory runs out."""

KERNEL = ("/proc", "/sys", "/dev")
_PROBE_SECONDS = 20
_COUNT_EVERY = 0.05
_WHAT_TO_DO = (
    "It takes bubblewrap 0.8 or later, and a Linux that lets us make user namespaces: see `sysctl "
    "user.max_user_namespaces kernel.unprivileged_userns_clone`; Ubuntu wants an AppArmor profile for bwrap; a "
    "container wants a seccomp profile that allows it. Nothing is run without the sandbox"
)


@attrs.frozen(kw_only=True)
class Sandbox:
    """
    What commands see and may write: the parameters of `bash_sandboxed`, checked and resolved.

    Attributes:
        program: bubblewrap.
        network: Whether they have the host's network.
        writable: Directories, none of them within another.
        readable: Files and directories.
        hidden: Files and directories.
        home: The user's home, or /tmp where there is none; it can be written.
        empty: Directories that are empty.
        tmp_size: Bytes of each of the directories that live in memory.
    """

    program: str
    network: bool
    writable: tuple[str, ...]
    readable: tuple[str, ...]
    hidden: tuple[str, ...]
    home: str
    empty: tuple[str, ...]
    tmp_size: int
    _led_to: dict[str, str] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    async def run(
        self,
        argv: list[str],
        *,
        cwd: Path,
        env: Mapping[str, str | None],
        limits: Limits,
        seconds: float,
        sink: Callable[[bytes], None],
    ) -> int | None:
        """
        Run a command as `run_command` does, in the sandbox, of which nothing is left after.

        Raises:
            ToolError: Its directories are not what they were, or it had too many processes.
        """
        with self._started(self._mounts(self._working(cwd)), _within(limits, argv), self.environment(env)) as box:
            try:
                with trio.move_on_after(seconds):
                    await box.attend(sink, limits.processes if is_root() else None)
            finally:
                box.learn()
                await end(box.command)
        if box.crowded:
            raise ToolError(
                f"The command was stopped: it had more than {limits.processes} processes at once. Do less at once."
            )
        return box.command.code

    @contextlib.contextmanager
    def _started(self, mounts: list[str], argv: list[str], env: Mapping[str, str]) -> Iterator[_Box]:
        mark, outside = marked({})
        with contextlib.ExitStack() as stack:
            told, tells = _pipe(stack)
            with contextlib.ExitStack() as given:
                given.callback(os.close, tells)
                filters = _readable(given, filter_program())
                variables = _readable(given, _setting(env))
                options = ["--info-fd", str(tells), "--seccomp", str(filters), "--args", str(variables)]
                line = [*_ENDED_FIRST, self.program, *mounts, *options, "--", *argv]
                process = spawn(line, env=outside, cwd="/", pass_fds=(tells, filters, variables))
            stack.callback(process.close)
            box = _Box(Command(process, mark), told)
            stack.callback(box.close)
            yield box

    def probe(self, limits: Limits) -> None:
        """
        Try whether the sandbox can be had here.

        Raises:
            InvalidOption: It cannot; with what to do.
        """
        with contextlib.ExitStack() as given:
            filters = _readable(given, filter_program())
            line = [self.program, *self._mounts(["--chdir", "/"]), "--seccomp", str(filters), "--"]
            try:
                done = subprocess.run(  # noqa: S603 - the program is bubblewrap, the arguments are ours
                    [*line, *_within(limits, ["bash", "-c", "true"])],
                    env=self.environment({}),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=_PROBE_SECONDS,
                    pass_fds=(filters,),
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise InvalidOption(f"bash_sandboxed cannot work here: {error}. {_WHAT_TO_DO}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise InvalidOption(f"bash_sandboxed cannot work here: {said}. {_WHAT_TO_DO}")

    def environment(self, env: Mapping[str, str | None]) -> Discreet[str]:
        """Return what a command gets: a short list of ours, and what the user gives."""
        ours = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        merged = {**ours, "HOME": self.home, **env}
        return Discreet({name: value for name, value in merged.items() if value is not None})

    def _mounts(self, working: list[str]) -> list[str]:
        """Return bubblewrap's arguments; `working` are those for the working directory."""
        size = ("--size", str(self.tmp_size))
        for path in (*self.writable, *self.readable, *self.hidden):
            self._same(path)
        lines: list[Iterable[str]] = [
            (*_NAMESPACES, *([] if self.network else ["--unshare-net"]), "--ro-bind", "/", "/", "--proc", "/proc"),
            ("--remount-ro", "/proc"),  # bubblewrap leaves /proc/sys open where we are root
            ("--dev", "/dev", *size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),  # noqa: S108 - of the sandbox
            *((*size, "--tmpfs", each) for each in self.empty),
            *(("--ro-bind", each, each) for each in _resolver(network=self.network)),
            *(("--bind", each, each) for each in self.writable),
            working,
            *(_cover(each) for each in _system_secrets()),  # also where they lie in what can be written
            *(("--ro-bind", each, each) for each in self.readable),
            *(_cover(each) for each in self.hidden),
            *(("--remount-ro", each) for each in self.empty if each not in {self.home, "/tmp"}),  # noqa: S108
        ]
        return [argument for line in lines for argument in line]

    def _working(self, cwd: Path) -> list[str]:
        given = os.path.abspath(cwd)  # noqa: PTH100 - links stay, `..` goes
        if any(is_in(given, each) for each in self.writable):
            return ["--chdir", given]  # is mounted already; a link in it leads to what can be seen inside
        if not os.path.isdir(given):  # noqa: PTH112
            raise ToolError(f"The working directory {cwd} is missing; the command was not run.")
        real = self._same(given)
        if any(is_in(real, each) for each in KERNEL):
            raise ToolError(
                f"The working directory {cwd} is the kernel's; the command was not run. Work in another one."
            )
        hides = [each for each in self.empty if is_in(each, real)]
        if hides := [*hides, *(each for each in _system_secrets() if is_in(real, each))]:
            raise ToolError(
                f"The working directory {cwd} lies in, or has in it, what the sandbox hides: {', '.join(hides)}; the "
                "command was not run. Work in a directory of the project's own, or name this one in `writable`."
            )
        parent = os.path.realpath(os.path.dirname(given))  # noqa: PTH120
        link = os.path.join(parent, os.path.basename(given))  # noqa: PTH118, PTH119
        shown = any(is_in(parent, each) for each in (*self.writable, *self.readable))
        lost = link != real and not shown and any(is_in(parent, each) for each in self.empty)
        return ["--bind", real, real, *(["--symlink", real, link] if lost else []), "--chdir", real]

    def _same(self, path: str) -> str:
        """Return where a path leads, as long as that is where it led at first."""
        real = os.path.realpath(path)
        if self._led_to.setdefault(path, real) != real or not os.path.exists(real):  # noqa: PTH110
            raise ToolError(
                f"{path} is gone, or leads elsewhere than when the sandbox was made; the command was not run."
            )
        return real


@attrs.define
class _Box:
    """A sandbox in which a command runs; `told` is the descriptor on which bubblewrap tells of its first process."""

    command: Command
    told: int
    number: int = 0
    crowded: bool = False

    async def attend(self, sink: Callable[[bytes], None], most: int | None) -> None:
        """Wait for the command, or until it has more than `most` processes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count, most, nursery.cancel_scope)
            await attend(self.command, sink)
            nursery.cancel_scope.cancel()

    def learn(self) -> None:
        """Take what bubblewrap has told by now."""
        if self.command.first is not None:
            return
        with contextlib.suppress(OSError):  # it has told nothing, or ended; without a descriptor left, marks have to do
            if not self.number and (found := re.search(rb'"child-pid": (\d+)', os.read(self.told, 4096))):
                self.number = int(found[1])
            if self.number:
                self.command.first = os.pidfd_open(self.number)

    async def _count(self, most: int | None, scope: trio.CancelScope) -> None:
        """Count processes for root, whom RLIMIT_NPROC does not hold."""
        await trio.lowlevel.wait_readable(self.told)
        self.learn()
        while most is not None:
            await trio.sleep(_COUNT_EVERY)
            if self._population() > most:
                self.crowded = True
                scope.cancel()

    def _population(self) -> int:
        inside = f"/proc/{self.number}/root/proc"
        try:
            if os.stat(inside).st_dev == os.stat("/proc").st_dev:  # noqa: PTH116 - still being built: that is ours
                return 0
            return sum(name.isdigit() for name in os.listdir(inside))  # noqa: PTH208 - names are all that is needed
        except OSError:
            return 0

    def close(self) -> None:
        """Let the first process go; where we are the container's init, nobody else would collect it."""
        if self.command.first is not None:
            os.close(self.command.first)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.number, os.WNOHANG)


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Return two ends of a pipe; the first does not block, and is closed with `stack`."""
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    stack.callback(os.close, reads)
    return reads, writes


def _readable(stack: contextlib.ExitStack, data: bytes) -> int:
    """Return a descriptor from which data can be read."""
    descriptor = os.memfd_create("alloy_trio")  # a pipe would hold us up where it is full
    stack.callback(os.close, descriptor)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _setting(env: Mapping[str, str]) -> bytes:
    """Return bubblewrap's arguments (`--args`) that set an environment: on its command line everybody could read it."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError("a variable of the environment has no name, or an = in it, or a NUL")
    words = (word for variable in env.items() for word in ("--setenv", *variable))
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _within(limits: Limits, argv: list[str]) -> list[str]:
    counted = attrs.evolve(limits, processes=None) if is_root() else limits
    return counted.around(argv)


def is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _cover(path: str) -> tuple[str, ...]:
    if os.path.isdir(path):  # noqa: PTH112 - strings all along
        return ("--tmpfs", path, "--remount-ro", path)
    return ("--ro-bind", "/dev/null", path)


def places(homes: Iterable[str]) -> tuple[str, ...]:
    """Return the directories that are empty inside, those that have others in them first."""
    found = {os.path.realpath(each) for each in (*_HIDDEN, *homes)}
    return tuple(sorted(each for each in found if os.path.isdir(each)))  # noqa: PTH112 - strings all along


def _system_secrets() -> list[str]:
    return [os.path.realpath(each) for each in (*_SECRETS, *glob.glob("/etc/ssh/*_key")) if os.path.exists(each)]  # noqa: PTH110, PTH207


def _resolver(*, network: bool) -> list[str]:
    """Return where the names of hosts are resolved, if that is in a directory that is hidden."""
    real = os.path.realpath("/etc/resolv.conf")
    return [real] if network and real.startswith("/run/") and os.path.exists(real) else []  # noqa: PTH110


@functools.cache
def probed(sandbox: Sandbox, limits: Limits) -> None:
    """Try a sandbox, once for the same: what `Sandbox.probe` says."""
    sandbox.probe(limits)
