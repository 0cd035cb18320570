"""
The command line: options in, one run or a conversation, an exit status out.

    0    done
    1    the provider failed, or the work is unfinished (`--max-turns`, `--timeout`)
    2    the command line, or the environment, cannot be right: nothing was sent
    130  Ctrl-C; 143 and 129 for SIGTERM and SIGHUP: what ran has been ended before
    141  nobody reads our output any more

Each failure is one line on stderr that says what to do, without a traceback unless `--debug` is given. Keys come from the
environment only: on a command line, everybody on the machine could read them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import attrs
import click
import trio

from .._background import Background
from .._errors import InvalidOption
from ..providers._base import provider_model, provider_name
from ..providers._names import make, names
from ..providers._openai_compat import OpenAICompat
from ..tools._bash import bash
from ..tools._edit import edit
from ..tools._read import read
from ..tools._tool import Tool
from ..tools._write import write
from ._show import DIM, JSONLines, Output, Screen, explain, one_line, say_cancelled, shortfall, show_run
from ._talk import Input, converse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from .._options import RunOptions
    from ..providers._base import Provider

_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
_SIGPIPE: Final = 13  # signal.SIGPIPE, which Windows lacks

_TOOLS: Final[Mapping[str, Tool]] = {tool.name: tool for tool in (read, write, edit, bash)}

# Providers that a key alone chooses, the first one first: name, the key's variable, the model where none is named.
_BY_KEY: Final = (
    ("anthropic", "ANTHROPIC_API_KEY", "claude-sonnet-5-5"),
    ("openai", "OPENAI_API_KEY", "gpt-6-astra"),
)
_KEYS = " or ".join(key for _, key, _ in _BY_KEY)
_DEMO = (
    f"demo: no language model, no key. For a real one set {_KEYS}, or point --base-url at a local server such as "
    "http://localhost:11434/v1 with --model NAME"
)


@attrs.frozen(kw_only=True)
class Flags:
    """What stands on the command line; the options of `_command` say what it means."""

    words: tuple[str, ...]
    prompt: str | None
    provider: str | None
    model: str | None
    base_url: str | None
    tools: tuple[Tool, ...]
    system: str | None
    max_turns: int | None
    max_output_tokens: int | None
    max_retries: int | None
    timeout: float | None
    directory: Path
    json: bool
    no_color: bool
    debug: bool


def _choose_tools(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[Tool, ...]:
    if not given:
        return tuple(_TOOLS.values())
    names = dict.fromkeys(name.strip() for text in given for name in text.split(","))
    names.pop("", None)
    if list(names) == ["none"]:
        return ()
    for name in names:
        if name not in _TOOLS:
            raise click.BadParameter(f"there is no tool {name!r}: say {', '.join(_TOOLS)}, or none")
    return tuple(_TOOLS[name] for name in names)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""Without a prompt, on a terminal, a conversation begins. What is piped in is the prompt, or goes below it.

    \b
    Which provider: --provider, else --base-url, else $ALLOY_PROVIDER
    (NAME:MODEL), else {_KEYS},
    else a demo that needs no key.
    Keys come from the environment only, never from an option. For a server of
    your own that wants one: --provider openai-chat --base-url URL, and
    OPENAI_API_KEY.

    Providers: {", ".join(names())}.
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
@click.option("--json", is_flag=True, help="One JSON event a line on stdout, and nothing else there.")
@click.option("--no-color", is_flag=True, help="No escape codes; NO_COLOR in the environment says the same.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log.")
@click.version_option(package_name="alloy_trio", message="%(package)s %(version)s")
def _command(**given: Any) -> int:
    """Ask a model, let it use tools, show what happens."""
    return _perform(Flags(**given))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. Shows no traceback unless `--debug` is given."""
    try:
        status: int = _command.main(
            arguments, prog_name="python -m alloy_trio", standalone_mode=False, windows_expand_args=False
        )
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    return status


def _perform(flags: Flags) -> int:
    """Do what the flags say, and return the exit status."""
    _configure_log(debug=flags.debug)
    try:
        provider, notice = _choose_provider(flags, os.environ)
        for file in (sys.stdout, sys.stderr):
            if isinstance(file, io.TextIOWrapper):  # a model may say what a terminal of another encoding cannot show
                file.reconfigure(errors="replace", encoding="utf-8" if flags.json else None)
        color = not (flags.no_color or os.environ.get("NO_COLOR"))
        out, err = (Output(file, color=color) for file in (sys.stdout, sys.stderr))
        return trio.run(_until_signal, partial(_serve, flags, provider, notice, out, err), err)
    except click.ClickException:
        raise
    except BrokenPipeError:
        _drop(sys.stdout)
        _drop(sys.stderr)
        return 128 + _SIGPIPE
    except Exception as error:  # noqa: BLE001 - the edge of the program: what nobody has handled ends here, in one line
        if isinstance(error, OSError):
            _drop(sys.stdout)
        details = "".join(traceback.format_exception(error)) if flags.debug else ""
        return _fail(explain(error), 2 if isinstance(error, InvalidOption) else 1, details)


def _configure_log(*, debug: bool) -> None:
    """Without `--debug`, what goes wrong is told in one line, not logged besides."""
    logging.getLogger("alloy_trio").setLevel(logging.DEBUG if debug else logging.CRITICAL + 1)
    if debug:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")


def _fail(message: str, status: int, details: str = "") -> int:
    with contextlib.suppress(OSError):
        click.echo(f"{details}error: {one_line(message)}", err=True)
    return status


def _drop(file: TextIO | None) -> None:
    """Let the interpreter's last flush of an output that cannot be written, which would complain, go nowhere."""
    with contextlib.suppress(OSError, AttributeError):
        assert file is not None
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


async def _until_signal(main: Callable[[], Awaitable[int]], err: Output) -> int:
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


async def _serve(flags: Flags, provider: Provider, notice: str | None, out: Output, err: Output) -> int:
    stdin = Input(sys.stdin)
    prompt = await _prompt(flags, stdin, err)
    options = _run_options(flags, provider)
    if notice:
        await err.write(err.style(notice, DIM) + "\n")
    if prompt is None:
        return await converse(stdin, out, err, **options)
    result = await show_run(prompt, JSONLines(out) if flags.json else Screen(out, err), **options)
    if said := shortfall(result):
        await err.write(f"{said}\n")
    return 0 if result.status == "completed" else 1


async def _prompt(flags: Flags, stdin: Input, err: Output) -> str | None:
    """Return the prompt; None for a conversation."""
    if flags.words and flags.prompt is not None:
        raise click.UsageError("the prompt is given twice: as an argument and with -p")
    given = " ".join(flags.words) if flags.prompt is None else flags.prompt
    if stdin.terminal and not flags.words and flags.prompt is None:
        if flags.json:
            raise click.UsageError("--json needs a prompt: give one, or pipe it in")
        return None
    piped = "" if stdin.terminal else (await stdin.text(err, needed=not given.strip())).rstrip()
    prompt = "\n\n".join(part for part in (given, piped) if part.strip())
    if not prompt:
        raise click.UsageError("there is nothing to ask: give a prompt, or pipe one in")
    return prompt


def _run_options(flags: Flags, provider: Provider) -> RunOptions:
    options: RunOptions = {
        "provider": provider,
        "tools": flags.tools,
        "system_prompt": flags.system,
        "max_output_tokens": flags.max_output_tokens,
        "timeout": flags.timeout,
        "working_directory": flags.directory,
    }
    if flags.max_turns is not None:
        options["max_turns"] = flags.max_turns
    if flags.max_retries is not None:
        options["max_retries"] = flags.max_retries
    return options


def _choose_provider(flags: Flags, environment: Mapping[str, str]) -> tuple[Provider, str | None]:
    """Return the provider, and the line that tells of it where it was not asked for on the command line."""
    if flags.provider is not None:
        if ":" in flags.provider and flags.model is not None:
            raise click.UsageError("the model is given twice: in --provider and in --model")
        return _make(flags.provider, flags), None
    if flags.base_url is not None:
        if flags.model is None:
            raise click.UsageError("--base-url needs --model NAME, the server's name for the model")
        return OpenAICompat(model=flags.model, base_url=flags.base_url), None
    for named, variable in _configured(environment):
        try:
            provider = _make(named, flags)
        except InvalidOption as error:
            raise InvalidOption(f"{variable} is set, but {error}") from error
        return (
            provider,
            f"{provider_name(provider)}:{provider_model(provider)}, since {variable} is set; --provider chooses another",
        )
    if flags.model is not None:
        raise click.UsageError(f"--model needs --provider NAME or --base-url URL, unless {_KEYS} is set")
    return make("demo"), _DEMO


def _configured(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what the environment chooses, and by which variable."""
    if named := environment.get("ALLOY_PROVIDER"):
        yield named, "ALLOY_PROVIDER"
    for name, variable, _ in _BY_KEY:
        if environment.get(variable):
            yield name, variable


def _make(named: str, flags: Flags) -> Provider:
    """Make the provider of a `NAME` or `NAME:MODEL`. Raises `InvalidOption`."""
    name, _, model = named.partition(":")
    name = name.strip().lower()
    default = next((model for known, _, model in _BY_KEY if known == name), None)
    return make(name, flags.model or model.strip() or default, base_url=flags.base_url)
