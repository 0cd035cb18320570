"""
A provider without a model: for a first minute without a key, and for examples that run anywhere.

It reads the request with a few patterns, asks for tools as a model would, several at once where several things are named,
and puts what they gave into a sentence. The same request gives the same answer each time.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, ClassVar

import attrs
import trio

from .._events import BlockEnd, TextDelta, ToolInputDelta
from .._messages import Block, Message, Text, ToolResult, ToolUse
from .._price import Price
from .._usage import Usage
from ._base import Request, Response, StopReason, Terms
from ._json import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._util import JSONObject
    from ._base import Emit

_VERBS = "read|open|show|list|run|execute|tell|say|look|what|which|count|compare|summari[sz]e"
_CLAUSES = re.compile(rf"(?:,|;|\bthen\b|\band\b)\s+(?=(?:then\s+)?(?:{_VERBS})\b)", re.IGNORECASE)
_RUN = re.compile(r"\b(?:run|execute)\s+(?:`([^`]+)`|\"([^\"]+)\"|'([^']+)'|(.+))", re.IGNORECASE | re.DOTALL)
_ABOUT_FOLDERS = re.compile(r"\s*(?:please\s+)?(?:list|ls)\b", re.IGNORECASE)
_LIST = re.compile(r"\b(?:list|show|ls)\b(.*)", re.IGNORECASE | re.DOTALL)
_FILE = re.compile(
    r"[\w./~-]*[A-Za-z_~/]\w*\.\w{1,8}|(?:[\w.~-]*/)*(?:Makefile|Dockerfile|LICENSE|README|\.\w+)|(?:~|\.{0,2})/[\w./~-]+"
)
_LONGEST_PATH = 200
_BEFORE, _BEHIND = "`\"'([<", "`\"'.,;:!?)]>"  # what may stand around a path in a sentence
_FILLER = re.compile(
    "the|all|files?|folders?|director(?:y|ies)|in|of|under|me|please|everything|contents?|and|a|here|current|this|that|is|are|"
    "there|what",
    re.IGNORECASE,
)
_WANTED = re.compile(r"\b(?:tell (?:me )?|what(?:'s| is)? |find |give me )(?:the |its |their )?([\w-]+)", re.IGNORECASE)
_NUMBERED = re.compile(r"^ *\d+\t", re.MULTILINE)

_HELP = (
    "I am the demo: a few patterns, not a language model. Ask me to read a file and tell you something that stands in it, "
    "to list a folder, or to run a command. For real answers, choose a provider."
)


@attrs.frozen(kw_only=True)
class Demo:
    """
    Offline and deterministic, and openly not a language model.

    It understands "read FILE and tell me the THING", "list FOLDER", "run COMMAND", and several of them at once; it asks for
    the tools `read` and `bash` where the run has them, and says so where not. Usage is reported as if tokens were words.

    Attributes:
        model: Any name.
        delay: Seconds between the words of a streamed answer.
        price: What it costs: nothing, unless you want to see a budget at work.
    """

    name: ClassVar[str] = "demo"
    terms: ClassVar[Terms] = Terms(enforces_cap=True)

    model: str = "demo"
    delay: float = 0.02
    price: Price = attrs.field(factory=Price.free)

    async def complete(self, request: Request) -> Response:
        """Answer at once."""
        await trio.lowlevel.checkpoint()
        return self._respond(request)

    async def stream(self, request: Request, emit: Emit) -> Response:
        """Answer word by word."""
        response = self._respond(request)
        for block in response.message.content:
            match block:
                case Text(text=text):
                    for word in re.findall(r"\s*\S+\s*$|\s*\S+", text):
                        await trio.sleep(self.delay)
                        await emit(TextDelta(word))
                case ToolUse(id=id_, name=name, input=arguments):
                    await trio.sleep(self.delay)
                    await emit(ToolInputDelta(id_, name, encode(arguments).decode()))
            await emit(BlockEnd(block))
        return response

    def _respond(self, request: Request) -> Response:
        results = _results(request.messages)
        blocks = _answer(request, results) if results else _plan(request)
        calls = any(isinstance(block, ToolUse) for block in blocks)
        return Response(
            message=Message("assistant", blocks, provider=self.name, model=self.model),
            stop_reason=StopReason.TOOL_USE if calls else StopReason.END_TURN,
            usage=Usage(
                input_tokens=sum(_words(message.content) for message in request.messages),
                output_tokens=_words(blocks),
            ),
        )


def _words(blocks: tuple[Block, ...]) -> int:
    """Count the words of blocks: the demo's tokens."""
    count = 0
    for block in blocks:
        match block:
            case Text(text=text) | ToolResult(text=text):
                count += len(text.split())
            case ToolUse(input=arguments):
                count += 1 + len(arguments)
    return count


def _question(messages: tuple[Message, ...]) -> str:
    """Return the last thing that a person said."""
    return next((m.text for m in reversed(messages) if m.role == "user" and m.text.strip()), "")


def _results(messages: tuple[Message, ...]) -> list[tuple[ToolUse, ToolResult]]:
    """Return the calls and results of the last turn, if that is what the conversation ends with."""
    if not messages or messages[-1].role != "user":
        return []
    uses = {use.id: use for message in messages for use in message.tool_uses}
    return [
        (uses[block.tool_use_id], block)
        for block in messages[-1].content
        if isinstance(block, ToolResult) and block.tool_use_id in uses
    ]


def _plan(request: Request) -> tuple[Block, ...]:
    """Turn a request into the calls it asks for, or into a few words about what can be asked."""
    question = _question(request.messages)
    tools = {tool.name for tool in request.tools}
    wanted = list(_wanted_calls(question))
    turn = len(request.messages)
    calls = [
        ToolUse(f"demo_{turn}_{index}", name, arguments)
        for index, (name, arguments) in enumerate(wanted)
        if name in tools
    ]
    if calls:
        return (Text(f"Let me look: {', '.join(_describe(call) for call in calls)}."), *calls)
    if wanted:
        names = " and ".join(sorted({name for name, _ in wanted}))
        return (Text(f"For that I would need the tool {names}, which this run does not have."),)
    return (Text(_HELP),)


def _wanted_calls(question: str) -> Iterator[tuple[str, JSONObject]]:
    for clause in _CLAUSES.split(question):
        words = [word.rstrip(_BEHIND).lstrip(_BEFORE) for word in clause.split()]
        files = [word for word in words if len(word) <= _LONGEST_PATH and _FILE.fullmatch(word)]
        if command := _RUN.search(clause):
            text = next(group for group in command.groups() if group)
            yield "bash", {"command": text.strip().rstrip(" .")}
        elif files and not _ABOUT_FOLDERS.match(clause):
            yield from (("read", {"file_path": path}) for path in dict.fromkeys(files))
        elif listing := _LIST.search(clause):
            named = [word.rstrip(_BEHIND).lstrip(_BEFORE) for word in listing[1].split() if not _FILLER.fullmatch(word)]
            yield from (
                ("bash", {"command": f"ls -1 {shlex.quote(folder)}"}) for folder in list(filter(None, named)) or ["."]
            )


def _describe(call: ToolUse) -> str:
    return " ".join([call.name, *map(str, call.input.values())])


def _answer(request: Request, results: list[tuple[ToolUse, ToolResult]]) -> tuple[Block, ...]:
    """Put what the tools gave into words."""
    wanted = _WANTED.search(_question(request.messages))
    return (Text("\n".join(_say(use, result, wanted and wanted[1]) for use, result in results)),)


def _say(use: ToolUse, result: ToolResult, wanted: str | None) -> str:
    if result.is_error:
        return f"{_describe(use)} did not work: {result.text}"
    text = _NUMBERED.sub("", result.text)
    if use.name != "read":
        return f"{_describe(use)} says:\n{text}"
    path = use.input["file_path"]
    if wanted and (found := _find(text, wanted)):
        return f"The {wanted} in {path} is {found}."
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "nothing")
    return f"{path} has {len(lines)} lines and begins with: {first}"


def _find(text: str, wanted: str) -> str | None:
    """Find what stands behind `wanted` in a file: `version = "1.2"`, `version: 1.2`, `"version": "1.2"`."""
    found = re.search(rf"^\W*{re.escape(wanted)}\W*?[=:]\s*[\"']?([^\"'\n,]+)", text, re.IGNORECASE | re.MULTILINE)
    return found[1].strip() if found else None
