"""A provider that follows a script, and the words to write one with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import trio

from .._errors import InvalidOption, ProviderError
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from .._messages import Block, Message, Text, Thinking, ToolUse
from .._run import run
from .._usage import Usage
from ..providers._base import Request, Response, StopReason
from ..providers._json import encode

if TYPE_CHECKING:
    from typing import Unpack

    from .._options import Options
    from .._price import Price
    from .._result import Result
    from .._util import JSONObject
    from ..providers._base import Emit


@attrs.frozen
class Step:
    """A piece of a scripted reply that is no block: a failure, a pause, or how the reply ends."""

    error: Exception | None = None
    seconds: float = 0.0
    block: Block | None = None
    stop_reason: str | None = None
    usage: Usage | None = None


Piece: TypeAlias = Step | Block
Reply: TypeAlias = str | Piece | Response | Sequence[Piece | str]
Script: TypeAlias = Reply | Callable[[Request], Reply]


def text(words: str, *, stop_reason: str | None = None, usage: Usage | None = None) -> Step:
    """Script some text. `stop_reason` and `usage` are those of the whole reply it is in."""
    return Step(block=Text(words), stop_reason=stop_reason, usage=usage)


def tool_call(
    name: str,
    input: JSONObject | None = None,  # noqa: A002 - the word of every provider for it
    *,
    id: str | None = None,  # noqa: A002 - as above
    stop_reason: str | None = None,
    usage: Usage | None = None,
) -> Step:
    """Script a tool call; without an `id` the provider makes one."""
    return Step(block=ToolUse(id or "", name, input or {}), stop_reason=stop_reason, usage=usage)


def error(failure: Exception | str) -> Step:
    """Script a failure at this point; a text becomes a `ProviderError` that cannot be retried."""
    return Step(error=ProviderError(failure) if isinstance(failure, str) else failure)


def delay(seconds: float) -> Step:
    """Script a pause of some seconds at this point: no time at all under an `autojump_clock`."""
    return Step(seconds=seconds)


class ScriptedProvider:
    """
    Gives the scripted replies, one a request, in order; a fake for tests that never touches a network.

    A reply is a text, one piece, a list of pieces (`[text("Let me look"), tool_call("read", {…}), tool_call("list")]`), a whole
    `Response`, or a function of the `Request` that returns one of these. A piece is made by `text`, `tool_call`, `error` or
    `delay`, or is a block. Streamed, text and reasoning come one character at a time.

    Attributes:
        name: `scripted`, or yours.
        model: `scripted`, or yours.
        price: What its tokens cost, None for unknown: runs under a budget need one.
        native_output: Whether it says to heed `Request.output_schema`; the script has to.
        requests: What was asked so far.
    """

    def __init__(
        self,
        replies: Iterable[Script],
        *,
        name: str = "scripted",
        model: str = "scripted",
        usage: Usage = Usage(input_tokens=10, output_tokens=5),  # noqa: B008 - frozen
        price: Price | None = None,
        native_output: bool = False,
    ) -> None:
        self.name = name
        self.model = model
        self.price = price
        self.native_output = native_output
        self.requests: list[Request] = []
        if isinstance(replies, str):
            raise InvalidOption(f"replies={replies!r} has to be a list of replies, even of one")
        self._replies = list(replies)
        self._usage = usage

    async def complete(self, request: Request) -> Response:
        """
        Give the next reply in one piece.

        Raises:
            ProviderError: The script says so, or is at its end.
        """

        async def ignore(*_: Any) -> None:
            return

        return await self._perform(request, ignore, streaming=False)

    async def stream(self, request: Request, emit: Emit) -> Response:
        """Give the next reply piece by piece. Raises as `complete` does."""
        return await self._perform(request, emit, streaming=True)

    async def _perform(self, request: Request, emit: Emit, *, streaming: bool) -> Response:
        await trio.lowlevel.checkpoint()
        reply = self._next(request)
        pieces = reply.message.content if isinstance(reply, Response) else self._pieces(reply)
        blocks: list[Block] = []
        stop_reason, usage = None, self._usage
        for piece in pieces:
            if isinstance(piece, Step):
                if piece.seconds:
                    await trio.sleep(piece.seconds)
                if piece.error is not None:
                    raise piece.error
                stop_reason, usage = piece.stop_reason or stop_reason, piece.usage or usage
            block = piece.block if isinstance(piece, Step) else piece
            if block is not None:
                blocks.append(self._identified(block, len(blocks)))
                if streaming:
                    await _type_out(blocks[-1], emit)
        return reply if isinstance(reply, Response) else self._response(tuple(blocks), stop_reason, usage)

    def _next(self, request: Request) -> Reply:
        index = len(self.requests)
        self.requests.append(request)
        if index >= len(self._replies):
            raise ProviderError(
                f"the script is at its end: {len(self._replies)} replies, and this is request {index + 1}"
            )
        script = self._replies[index]
        return script(request) if callable(script) else script

    @staticmethod
    def _pieces(reply: str | Piece | Sequence[Piece | str]) -> Sequence[Piece]:
        pieces = (reply,) if isinstance(reply, str | Step | Block) else reply
        return [text(piece) if isinstance(piece, str) else piece for piece in pieces]

    def _identified(self, block: Block, index: int) -> Block:
        if isinstance(block, ToolUse) and not block.id:
            return attrs.evolve(block, id=f"call_{len(self.requests)}_{index}")
        return block

    def _response(self, blocks: tuple[Block, ...], stop_reason: str | None, usage: Usage) -> Response:
        calls = any(isinstance(block, ToolUse) for block in blocks)
        derived = StopReason.TOOL_USE if calls else StopReason.END_TURN
        return Response(
            message=Message("assistant", blocks, provider=self.name, model=self.model),
            stop_reason=derived if stop_reason is None else StopReason(stop_reason),
            usage=usage,
        )


async def _type_out(block: Block, emit: Emit) -> None:
    match block:
        case Text(text=words):
            for character in words:
                await emit(TextDelta(character))
        case Thinking(text=words):
            for character in words:
                await emit(ThinkingDelta(character))
        case ToolUse(id=id_, name=name, input=arguments):
            await emit(ToolInputDelta(id_, name, encode(arguments).decode()))
    await emit(BlockEnd(block))


async def run_with_responses(prompt: str | None, responses: Iterable[Script], **options: Unpack[Options]) -> Result:
    """Do what `alloy_trio.run` does, with a `ScriptedProvider` of these responses."""
    return await run(prompt, provider=ScriptedProvider(responses), **options)
