"""
Structured output: a type that the final answer has to fit.

The type's schema goes to the model in one of two ways. Where every provider of the run can hold a model to a schema, the answer
is text of that JSON. Elsewhere the model is given one more tool, `final_answer`, whose input is the answer, and the run goes on
until it is called. Providers want an object at the root of a schema, so any other type is wrapped in one.

What schema and parser are is the same as for a tool of one parameter: models are forgiven the same small slips.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from ._errors import InvalidOption, ToolError
from ._messages import Message, Text
from ._util import JSONObject, without_surrogates
from .tools._context import ToolContext
from .tools._output import ToolOutput
from .tools._schema import signature
from .tools._tool import Tool

ANSWER_TOOL = "final_answer"
MISFITS = 3  # answers that do not fit, and go back to the model, before the run is given up

REMINDER = "You have not finished yet: go on, and call the tool `{}` with your result."
MISFIT = "{} Answer again, with nothing but JSON that fits the schema."
"""What is said to an answer that is none yet: the name of a tool, or what is wrong, goes into the braces."""

_DESCRIPTION = "Give the final answer. Call this once, when you are done, with the whole answer as its input."
_KEY = "value"  # of what is no object by itself


@attrs.frozen(kw_only=True, eq=False)
class AnswerTool(Tool):
    """The tool by which an answer of a type is given: it does nothing. A tool of the user's may have the same name."""


def is_reminder(text: str) -> bool:
    """Whether that is what we say to an answer that is none yet, and no request of the user's."""
    return text.startswith(REMINDER.partition("{}")[0]) or text.endswith(MISFIT.partition("{}")[2])


@attrs.frozen
class Output:
    """
    A type as the model is told of it, and as its answer is read.

    Attributes:
        schema: Its JSON Schema, an object at the root.
        native: Whether the providers hold the model to the schema; else there is a tool for the answer.
    """

    schema: JSONObject
    native: bool
    _parse: Callable[[JSONObject], dict[str, Any]]
    _wrapped: bool

    @classmethod
    def of(cls, kind: Any, takes: Callable[[JSONObject], bool]) -> Output:
        """
        Read a type.

        Args:
            kind: The type.
            takes: Says of a schema whether all providers of the run hold a model to it.

        Raises:
            InvalidOption: JSON cannot say it.
        """

        def answer(value: Any) -> Any:
            return value

        answer.__annotations__ = {_KEY: kind}
        try:
            read = signature(answer, ToolContext, {})
        except (InvalidOption, NameError, TypeError, AttributeError) as error:
            reason = str(error).partition("cannot be filled from JSON: ")[2].rpartition("; ")[0] or str(error)
            advice = "give a class whose fields JSON can say, or list[…], dict[str, …], Literal[…] of such; of a union, one class"
            raise InvalidOption(f"output_type={kind!r} cannot be an answer: {reason}; {advice}") from error
        root = _root(read.schema)
        schema = read.schema if root is None else root
        return cls(schema, takes(schema), read.parse, root is None)

    def parse(self, answer: JSONObject) -> Any:
        """
        Return the value that an answer stands for.

        Raises:
            ToolError: It does not fit; the message says where.
        """
        try:
            return self._parse(answer if self._wrapped else {_KEY: answer})[_KEY]
        except ToolError as error:
            said = str(error) if self._wrapped else str(error).replace(f"`$.{_KEY}", "`$")
            raise ToolError(said.replace("invalid input", "the answer does not fit")) from error
        except Exception as error:  # of the type's own making: what __post_init__ or a set of lists raises
            raise ToolError(f"the answer does not fit: {type(error).__name__}: {error}") from error

    def parse_message(self, message: Message) -> Any:
        """Return the value that an answer stands for: its text, or, behind commentary, the last block of it. Raises as `parse` does."""
        texts = [block.text for block in message.content if isinstance(block, Text) and block.text.strip()]
        if message.role != "assistant" or not texts:
            raise ToolError("the answer is empty")
        try:
            return self.parse_text("".join(texts))
        except ToolError:
            if len(texts) == 1:
                raise
            return self.parse_text(texts[-1])

    def parse_text(self, text: str) -> Any:
        """Return the value that a text stands for: JSON, in a Markdown fence or not. Raises as `parse` does."""
        text = text.strip()
        if text.startswith("```"):
            text = text.partition("\n")[2].rpartition("```")[0]
        try:
            return self.parse(msgspec.json.decode(without_surrogates(text)))
        except (msgspec.DecodeError, RecursionError) as error:  # the second: nested more deeply than anything is
            raise ToolError(f"the answer is no JSON: {error}") from error

    def tool(self) -> Tool:
        """Return the tool by which the answer is given where no provider knows schemas."""

        async def execute(arguments: Any, _: ToolContext[Any]) -> ToolOutput:
            return ToolOutput("The answer is taken.", arguments[0])

        return AnswerTool(
            name=ANSWER_TOOL,
            description=_DESCRIPTION,
            input_schema=self.schema,
            execute=execute,
            trusted=True,
            _parse=lambda answer: (self.parse(answer),),
        )


def _root(schema: JSONObject) -> JSONObject | None:
    """Return the schema of the one property as a schema of its own, or None if that is no object."""
    definitions = dict(schema.get("$defs", {}))
    own = schema["properties"][_KEY]
    if "$ref" in own:
        reference = own["$ref"]
        name = reference.removeprefix("#/$defs/")
        own = definitions.pop(name)
        if f'"{reference}"' in msgspec.json.encode([own, definitions]).decode():  # it is used inside as well
            definitions[name] = own
    if own.get("type") != "object":
        return None
    return {**own, "$defs": definitions} if definitions else own
