"""
The command line: options in, one run or a conversation, an exit status out.

    0    done
    1    the provider failed, or the work is unfinished (`--max-turns`, `--timeout`)
    2    the command line, or the environment, cannot be right: nothing was sent
    130  Ctrl-C; 143 and 129 for SIGTERM and SIGHUP: what ran has been ended before
    141  nobody reads our output any more

Keys come from the environment only: on a command line, everybody on the machine could read them.

What is imported here is little, so that `--help`, a mistake and the prompt of a conversation are there at once; `_program` has
the rest.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ._config_file import Known, read_config
from ._flags import KEYS, TOOL_NAMES, Flags
from ._places import config_file
from ._text import log_handler, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._screen import Screen

_PROGRAM: Final = "alloy-trio"
_COMPLETE: Final = "_ALLOY_TRIO_COMPLETE"  # the variable by which a shell asks click
_NOT_IN_FILES: Final = {"prompt", "profile", "session", "resume", "json", "debug"}


def _choose_tools(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    if not given:
        return TOOL_NAMES
    names = dict.fromkeys(name.strip() for text in given for name in text.split(","))
    names.pop("", None)
    if list(names) == ["none"]:
        return ()
    for name in names:
        if name not in TOOL_NAMES:
            raise click.BadParameter(f"there is no tool {name!r}: say {', '.join(TOOL_NAMES)}, or none")
    return tuple(names)


def _read_config(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Make what the configuration file says the defaults of the other options, once both file and profile are known."""
    context.meta[f"{__name__}.{parameter.name}"] = value
    path, profile = (context.meta.get(f"{__name__}.{name}", context) for name in ("config", "profile"))
    if context not in {path, profile} and not context.resilient_parsing:  # a shell completes where that is so
        known = {
            option.opts[-1].removeprefix("--"): Known(str(option.name), option.is_flag, option.multiple)
            for option in context.command.params
            if isinstance(option, click.Option) and option.expose_value and option.name not in _NOT_IN_FILES
        }
        context.default_map = read_config(path or config_file(), profile, known, needed=path is not None)
    return value


def _print_completion(context: click.Context, _: click.Parameter, shell: str | None) -> None:
    """Print the script that makes a shell complete the command `alloy-trio`."""
    if shell is None or context.resilient_parsing:
        return
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - for those who ask

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.command, {}, _PROGRAM, _COMPLETE).source())
    context.exit()


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""Without a prompt, on a terminal, a conversation begins. What is piped in is the prompt, or goes below it.

    \b
    Which provider: --provider, else --base-url, else $ALLOY_PROVIDER
    (NAME:MODEL), else {KEYS},
    else a demo that needs no key.
    Keys come from the environment only, never from an option. For a server of
    your own that wants one: --provider openai-chat --base-url URL, and
    OPENAI_API_KEY.

    A NAME that is not known lists those that are.

    worker --module NAME runs the agents of a module for a fleet: worker --help.

    --connect URL talks to an agent in another process: --connect URL --help.
    """,
)
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option("-p", "--prompt", metavar="PROMPT", help="The prompt, instead of the argument.")
@click.option("--provider", metavar="NAME[:MODEL]", help="anthropic, openai, ollama, demo, …")
@click.option("--model", metavar="NAME", help="The model, by the provider's name for it.")
@click.option("--base-url", metavar="URL", help="Where the API is. Alone: any OpenAI-compatible server.")
@click.option(
    "--tools",
    metavar="NAMES",
    multiple=True,
    callback=_choose_tools,
    help="read,write,edit,bash: all by default; none for none.",
)
@click.option("--system", metavar="TEXT", help="Instructions ahead of the conversation.")
@click.option(
    "--max-turns", metavar="N", type=click.IntRange(min=1), help="Answers of the model that a run may take (25)."
)
@click.option("--max-output-tokens", metavar="N", type=click.IntRange(min=1), help="The cap on each answer.")
@click.option(
    "--max-retries", metavar="N", type=click.IntRange(min=0), help="How often a request that failed is made again (3)."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="What a run may take.",
)
@click.option(
    "-C",
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    show_default=False,
    help="Where the tools work.",
)
@click.option(
    "--allow",
    metavar="PATH",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Another folder that read, write, edit and a sandbox may touch.",
)
@click.option(
    "--sandbox",
    is_flag=True,
    help="Run the commands of bash in a sandbox: they write in that directory alone, and have no network. Linux only.",
)
@click.option("--network", is_flag=True, help="Give the sandbox the network.")
@click.option("--budget", metavar="DOLLARS", help="What all requests together may cost.")
@click.option(
    "--approve/--yolo",
    default=None,
    help="Ask before bash, write and edit, or never. In a conversation they ask; with one prompt they do not.",
)
@click.option("--session", metavar="NAME", help="The conversation to go on with, or to begin.")
@click.option("--resume", is_flag=True, help="Go on with the conversation that was used last.")
@click.option(
    "--profile", metavar="NAME", callback=_read_config, is_eager=True, help="A profile of the configuration file."
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_read_config,
    is_eager=True,
    expose_value=False,
    help="The configuration file, instead of alloy_trio/config.toml in $XDG_CONFIG_HOME.",
)
@click.option(
    "--completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    callback=_print_completion,
    is_eager=True,
    expose_value=False,
    help="Print the script by which a shell completes the command alloy-trio.",
)
@click.option("--json", is_flag=True, help="One JSON event a line on stdout, and nothing else there.")
@click.option(
    "--no-color", is_flag=True, help="No escape codes; with a prompt, NO_COLOR in the environment says the same."
)
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
@click.version_option(package_name="alloy_trio", message="%(package)s %(version)s")
@click.pass_context
def _command(context: click.Context, /, **given: Any) -> int:
    """Ask a model, let it use tools, show what happens."""
    return _perform(_flags(given, context.obj))


def _flags(given: dict[str, Any], arguments: Sequence[str]) -> Flags:
    def again() -> Flags:
        """Read it all once more. Raises InvalidOption."""
        try:
            with _command.make_context(_PROGRAM, list(arguments)) as context:
                return _flags(context.params, arguments)
        except click.ClickException as error:
            from .._errors import InvalidOption  # noqa: PLC0415 - a conversation has loaded it long ago

            raise InvalidOption(error.format_message()) from error

    return Flags(**{name: value for name, value in given.items() if name != "profile"}, again=again)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Shows no traceback unless `--debug` is given."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        if given[:1] == ["worker"]:
            from ._fleet import command as worker  # noqa: PLC0415 - for those who run one

            return int(
                worker.main(list(given[1:]), prog_name="python -m alloy_trio worker", standalone_mode=False) or 0
            )
        if any(each == "--connect" or each.startswith("--connect=") for each in given):
            from ._connect import command  # noqa: PLC0415 - for those who talk to an agent elsewhere

            _configure_log(debug="--debug" in given)
            return _elsewhere(command, list(given))
        status: int | None = _command.main(
            given,
            obj=given,
            prog_name=_PROGRAM if _COMPLETE in os.environ else "python -m alloy_trio",
            complete_var=_COMPLETE,
            standalone_mode=False,
            windows_expand_args=False,
        )
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except click.ClickException as error:
        click.echo(f"error: {one_line(error.format_message())}", err=True)
        return error.exit_code
    return status or 0  # None of an option that has printed something, and no more


def _elsewhere(command: click.Command, given: list[str]) -> int:
    """Run `--connect`, which takes fewer options."""
    try:
        return int(command.main(given, prog_name="python -m alloy_trio", standalone_mode=False) or 0)
    except click.NoSuchOption as error:
        if not any(error.option_name in {*option.opts, *option.secondary_opts} for option in _command.params):
            raise
        raise click.UsageError(
            f"{error.option_name} does not go with --connect: what a run is made of is chosen where the agent lives"
        ) from error


def _perform(flags: Flags) -> int:
    """Do what the flags say, and return the exit status. A screen stands before what takes long is loaded."""
    _configure_log(debug=flags.debug)
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):  # a model may say what a terminal of another encoding cannot show
            file.reconfigure(errors="replace", encoding="utf-8" if flags.json else None)
    screen = _screen(flags)
    from ._program import perform  # noqa: PLC0415 - see above

    return perform(flags, screen)


def _screen(flags: Flags) -> Screen | None:
    """Return a screen that is being drawn, if a conversation is wanted, there is a terminal for it, and the extra `repl`."""
    if flags.words or flags.prompt is not None or flags.json or flags.no_color or os.environ.get("TERM") == "dumb":
        return None
    if not all(file is not None and file.isatty() for file in (sys.stdin, sys.stdout, sys.stderr)):
        return None
    try:
        import rich  # noqa: F401, PLC0415 - the extra has both

        from ._screen import Screen  # noqa: PLC0415 - needs the extra
    except ImportError:
        return None
    screen = Screen(color=not os.environ.get("NO_COLOR"))
    screen.start()
    return screen


def _configure_log(*, debug: bool) -> None:
    """Without `--debug`, what goes wrong is told in one line, not logged besides."""
    logging.getLogger("alloy_trio").setLevel(logging.DEBUG if debug else logging.CRITICAL + 1)
    if debug:
        logging.basicConfig(handlers=[log_handler()])
