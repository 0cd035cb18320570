"""
What the command line asks for, done: one run or a conversation, under the signals that end a program.

Each failure is one line on stderr that says what to do, without a traceback unless `--debug` is given.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

import click
import trio

from .._background import Background
from .._errors import InvalidOption
from .._util import single
from ._plain import Input
from ._setup import Setup, choose_provider
from ._show import JSONLines, Output, Screen, explain, say_cancelled
from ._sitting import Sitting
from ._text import DIM, harmless, one_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._flags import Flags
    from ._screen import Screen as Board

_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_SIGPIPE: Final = 13  # signal.SIGPIPE, which Windows lacks


def perform(flags: Flags, board: Board | None) -> int:
    """Do what the flags say, on a screen if there is one already, and return the exit status."""
    return guarded(partial(_perform, flags, board), debug=flags.debug)


def guarded(main: Callable[[], int], *, debug: bool, is_ours: bool = True) -> int:
    """Call `main`, and return the exit status, its own or that of what it raises: told in a line, as `explain` does."""
    try:
        return main()
    except click.ClickException:
        raise
    except BrokenPipeError:
        _drop(sys.stdout)
        _drop(sys.stderr)
        return 128 + _SIGPIPE
    except Exception as raised:  # noqa: BLE001 - the edge of the program: what nobody has handled ends here, in one line
        error = single(raised)
        if isinstance(error, OSError):
            _drop(sys.stdout)
        details = "".join(traceback.format_exception(error)) if debug else ""
        return fail(explain(error, is_ours=is_ours), 2 if isinstance(error, InvalidOption) else 1, details)


def _perform(flags: Flags, board: Board | None) -> int:
    try:
        provider, notice = choose_provider(flags)
        setup = Setup.of(flags, provider)
        color = not (flags.no_color or os.environ.get("NO_COLOR"))
        out, err = (Output(file, color=color) for file in (sys.stdout, sys.stderr))
        sitting = partial(Sitting, flags, setup, out=out, err=err, board=board)
        return trio.run(until_signal, partial(_serve, flags, sitting, notice, out, err), err)
    finally:
        if board is not None:  # before anything else is said
            board.close()
            board.join()


def fail(message: str, status: int, details: str = "") -> int:
    """Say what went wrong, in a line, and return the status."""
    with contextlib.suppress(OSError):
        click.echo(f"{harmless(details)}error: {one_line(message)}", err=True)
    return status


def _drop(file: TextIO | None) -> None:
    """Let the interpreter's last flush of an output that cannot be written, which would complain, go nowhere."""
    with contextlib.suppress(OSError, AttributeError):
        assert file is not None
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


async def until_signal(main: Callable[[], Awaitable[int]], err: Output) -> int:
    """Call `main`; on a signal that asks us to end, cancel it, and return the status once it has cleaned up."""
    caught: list[int] = []
    with trio.open_signal_receiver(*_SIGNALS) as signals, trio.CancelScope() as scope:

        async def watch() -> None:
            async for number in signals:
                caught.append(number)
                scope.cancel()

        async with Background(watch):
            return await main()
    with contextlib.suppress(OSError), trio.move_on_after(1):
        await say_cancelled(err)
    return 128 + caught[0]


async def _serve(flags: Flags, make: Callable[[Input], Sitting], notice: str | None, out: Output, err: Output) -> int:
    stdin = Input(sys.stdin)
    prompt = await read_prompt(flags.words, flags.prompt, stdin, err, needed=flags.json)
    sitting = make(stdin)
    if prompt is None:
        return await sitting.converse(notice)
    if notice:
        await err.write(err.style(one_line(notice), DIM) + "\n")
    view = partial(JSONLines, out) if flags.json else partial(Screen, out, err, flags.directory)
    return await sitting.answer(prompt, view)


async def read_prompt(
    words: Sequence[str], option: str | None, stdin: Input, err: Output, *, needed: bool
) -> str | None:
    """Return the prompt, of arguments or the option, and of what is piped in; None for a conversation, unless one is `needed`."""
    if words and option is not None:
        raise click.UsageError("the prompt is given twice: as an argument and with -p")
    given = " ".join(words) if option is None else option
    if stdin.terminal and not words and option is None:
        if needed:
            raise click.UsageError("--json needs a prompt: give one, or pipe it in")
        return None
    piped = "" if stdin.terminal else (await stdin.text(err, needed=not given.strip())).rstrip()
    prompt = "\n\n".join(part for part in (given, piped) if part.strip())
    if not prompt:
        raise click.UsageError("there is nothing to ask: give a prompt, or pipe one in")
    return prompt
