"""The `bash` tool: a shell command, bounded in time and in output, that leaves nothing running behind it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import trio

from .._errors import InvalidOption, ToolError
from .._util import Discreet
from ._limits import Limits, is_root
from ._process import Excerpt, run_command
from ._sandbox import Sandbox
from ._tool import Tool, tool

if TYPE_CHECKING:
    from ._context import ToolContext

MAX_OUTPUT_CHARS = 30_000

Executor: TypeAlias = Callable[[str, Path], Awaitable[tuple[int, str]]]
"""Takes a command and its working directory, returns exit code and output, as `subprocess.getstatusoutput` does."""

_SECRET = re.compile(
    "KEY|TOKEN|SECRET|PASS|CRED|PRIVATE|COOKIE|JWT|BEARER|WEBHOOK|DSN|CONNECTION_?STRING"
    "|(^|_)(O?AUTH|PAT|PWD|PSW|PIN)(_|$)(?<!^PWD)",
    re.IGNORECASE,
)
"""Names of variables that have secrets. `PWD` is none, nor has `PATH` or `GIT_AUTHOR_NAME` one of these words."""

_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY")
"""Values that show a secret under any name: a URL with a password, a private key."""


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable of the environment looks like a secret: a guardrail, not a wall."""
    return bool(_SECRET.search(name) or _SECRET_VALUE.search(value))


@attrs.frozen(kw_only=True)
class Shell:
    """How commands are run; the attributes are those of `Bash.configure`."""

    restricted: bool = False
    timeout: float = 120.0
    max_timeout: float = 600.0
    env: Mapping[str, str | None] = attrs.field(factory=Discreet, repr=False)
    inherit_env: Literal["no_secrets", "all"] = "no_secrets"
    executor: Executor | None = None
    limits: Limits = attrs.field(factory=Limits)
    sandbox: Sandbox | None = None

    def __attrs_post_init__(self) -> None:
        if not 0 < self.timeout <= self.max_timeout:
            raise InvalidOption(
                f"bash: timeout ({self.timeout!r}) is a number of seconds above 0, and at most max_timeout "
                f"({self.max_timeout!r}); to allow more, raise that too"
            )
        if self.inherit_env not in {"no_secrets", "all"}:
            raise InvalidOption(f'bash: inherit_env is "no_secrets" or "all", got {self.inherit_env!r}')
        if self.sandbox is not None and (self.executor is not None or self.inherit_env == "all"):
            raise InvalidOption(
                "bash_sandboxed takes no executor, which would run outside, and no inherit_env: use env"
            )
        if self.sandbox is None and self.limits.processes is not None and is_root():
            raise InvalidOption(
                "bash: Linux holds root to no limit of processes; be another user, or use bash_sandboxed"
            )

    async def run(self, command: str, working_directory: Path, seconds: float | None) -> str:
        """
        Run a command, and return its output with `exit code: N` as the last line.

        Raises:
            ToolError: It could not be started, or its time was up.
        """
        seconds = min(self.timeout if seconds is None else seconds, self.max_timeout)
        if not seconds > 0:
            raise ToolError("timeout must be a positive number of seconds.")
        output = Excerpt(MAX_OUTPUT_CHARS)
        if self.executor is None:
            code = await self._in_bash(command, working_directory, seconds, output)
        else:
            code = await _in_executor(self.executor, command, working_directory, seconds, output)
        if code is None:
            raise ToolError(self._too_slow(seconds, output.finish()))
        text = output.finish()
        line_end = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{line_end}exit code: {code}"

    async def _in_bash(self, command: str, cwd: Path, seconds: float, output: Excerpt) -> int | None:
        argv = ["bash", *(["-r"] if self.restricted else []), "-c", "--", command]
        # What led to an error has come through frames of the standard library, with the whole environment in them.
        try:
            if self.sandbox is not None:
                return await self.sandbox.run(
                    argv, cwd=cwd, env=self.env, limits=self.limits, seconds=seconds, sink=output.feed
                )
            argv, env = self.limits.around(argv), self._environment()
            return await run_command(argv, cwd=cwd, env=env, seconds=seconds, sink=output.feed)
        except OSError as error:
            if not await trio.Path(cwd).is_dir():
                raise ToolError(
                    f"The working directory {cwd} is missing; the command was not run."
                ) from error.with_traceback(None)
            raise ToolError(f"Cannot start bash: {error.strerror}.") from error.with_traceback(None)
        except ValueError as error:
            raise ToolError(f"Cannot run this command: {error}.") from error.with_traceback(None)

    def _environment(self) -> Discreet[str]:
        keep_all = self.inherit_env == "all"
        inherited = {name: value for name, value in os.environ.items() if keep_all or not is_secret(name, value)}
        merged = {**inherited, **self.env}
        return Discreet({name: value for name, value in merged.items() if value is not None})

    def _too_slow(self, seconds: float, output: str) -> str:
        more = f" Or give it more time by timeout (at most {self.max_timeout:g})." if seconds < self.max_timeout else ""
        return (
            f"The command was stopped after {seconds:g} seconds, with all that it had started. "
            f"Do less at once, and see that it does not wait for input.{more} "
            + (f"Its output until then:\n{output}" if output else "There was no output until then.")
        )


async def _in_executor(executor: Executor, command: str, cwd: Path, seconds: float, output: Excerpt) -> int | None:
    with trio.move_on_after(seconds):
        code, text = await executor(command, cwd)
        output.feed_text(text)
        return code
    return None


_INSIDE = """

    It runs in a sandbox: only the working directory can be written for good, /tmp and the home directory are empty at
    the start of each command, and much of the machine is not to be seen."""


@attrs.frozen(kw_only=True, eq=False)
class Bash(Tool):
    """
    The tool `bash`. It bounds its commands itself, so its `timeout` as a tool is infinite.

    Attributes:
        shell: How commands are run; change it by `configure`.
    """

    shell: Shell = attrs.field(repr=False)

    def configure(
        self,
        *,
        restricted: bool | None = None,
        timeout: float | None = None,
        max_timeout: float | None = None,
        env: Mapping[str, str | None] | None = None,
        inherit_env: Literal["no_secrets", "all"] | None = None,
        executor: Executor | None = None,
        memory: int | None = None,
        processes: int | None = None,
        cpu_seconds: int | None = None,
        file_size: int | None = None,
    ) -> Bash:
        """
        Return a `bash` that runs its commands in another way. What is left out, or None, stays as it is.

        None of this is a sandbox: a command can do what its user can, and look for secrets in files and other
        processes. `bash_sandboxed` makes one; or give an `executor` that runs the command in another. What
        `bash_sandboxed` has made stays in its sandbox.

        Args:
            restricted: Run `bash -r`, which forbids `cd`, redirections of output and paths in command names. A
                guardrail: a nested `bash -c` escapes it.
            timeout: Seconds for a command where the model asks for no time of its own (120).
            max_timeout: Seconds that the model can get at most (600).
            env: Variables to set; those whose value is None are not passed on.
            inherit_env: What commands get of our own environment: all of it, or (`no_secrets`, the default) without
                variables that look like secrets. By name, in any case: those with KEY, TOKEN, SECRET, PASS, CRED,
                PRIVATE, COOKIE, JWT, BEARER, WEBHOOK, DSN or CONNECTION_STRING in it, or AUTH, OAUTH, PAT, PWD, PSW or
                PIN as a word of it. By value: a URL with a password in it, and a private key.
            executor: Runs the command instead of a local bash: an async function of command and working directory
                that returns exit code and output. Its time and its output are bounded like bash's; it is cancelled
                by Trio, and ends what it started. `restricted`, `env`, `inherit_env` and the limits are not for it.
            memory: Bytes of address space that each process of a command may have (`ulimit -v`).
            processes: How many processes and threads the user may have at once, others than the command's included
                (`ulimit -u`); in a sandbox those in it. Root is held to none.
            cpu_seconds: Seconds of processor time that each process may take (`ulimit -t`).
            file_size: Bytes that a file may have that a command writes (`ulimit -f`).

        Raises:
            InvalidOption: A value that cannot be right.
        """
        env = None if env is None else Discreet(env)
        changes: dict[str, Any] = {
            "restricted": restricted,
            "timeout": timeout,
            "max_timeout": max_timeout,
            "env": env,
            "inherit_env": inherit_env,
            "executor": executor,
        }
        limits = {"memory": memory, "processes": processes, "cpu_seconds": cpu_seconds, "file_size": file_size}
        changes["limits"] = attrs.evolve(self.shell.limits, **_given(limits))
        shell = attrs.evolve(self.shell, **_given(changes))
        return attrs.evolve(self, shell=shell, **execution(shell))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def execution(shell: Shell) -> dict[str, Any]:
    """Return what of the tool follows from how commands are run: its function, and what the model is told of it."""

    async def bash(command: str, ctx: ToolContext, *, timeout: float | None = None) -> str:  # noqa: ASYNC109 - the model's
        return await shell.run(command, ctx.working_directory, timeout)

    bash.__doc__ = f"""
    Run a bash command, and return its output and its exit code.

    Standard output and error come merged, cut in the middle if they are long. There is no input. When the command has
    ended, everything that it started is ended too, in the background as well.{_INSIDE if shell.sandbox else ""}

    Args:
        command: The command, run by bash in the working directory.
        timeout: Seconds until it is stopped: {shell.timeout:g} if not given, {shell.max_timeout:g} at most.
    """
    made = tool(bash)
    return {
        "description": made.description,
        "input_schema": made.input_schema,
        "execute": made.execute,
        "_function": made,
        "_parse": made.parse,
    }


bash: Bash = Bash(name="bash", concurrent=False, timeout=math.inf, shell=Shell(), **execution(Shell()))
