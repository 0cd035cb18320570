"""
What a tool is: a name, a schema of its input, and a function that runs.

`@tool` makes one of a function: its signature is the schema. `Tool(...)` makes one of a JSON Schema and a function that
takes the validated object. Both are frozen data, checked when they are made; running them is the executor's business.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack, overload

import attrs

from .._errors import InvalidOption, ToolError
from .._util import JSONObject
from ._context import ToolContext
from ._schema import function_name, raw_parser, signature, unwrapped

_NO_GENERATOR = "it is a generator: return one value, and send what comes before it by `ctx.emit`"


def _several(values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, str | Mapping):
        raise InvalidOption(f"allowed_callers and input_examples are lists; write [{values!r}]")
    return tuple(values)


@attrs.frozen(kw_only=True, eq=False)
class Tool:
    """
    A tool that a model may ask for. `@tool` makes one of a function; this makes one of a JSON Schema.

    Two tools are equal only if they are the same one.

    Attributes:
        name: What the model calls it: letters, digits, `_` and `-`, at most 64.
        description: What the model is told of it.
        input_schema: JSON Schema of its input, an object at its root.
        execute: Called as `execute(arguments, context)`, with what `parse` returned and a `ToolContext`. Async
            functions run in the run's nursery, sync ones in a thread.
        concurrent: Whether it may run beside others; False waits for all calls before it and holds up all after it.
        inline: Whether a sync function is so cheap that it is called in the event loop, without a thread.
        timeout: Seconds for one call; None leaves it to the run's `tool_timeout`.
        cancel_grace: Seconds that a cancelled sync tool's thread is waited for; None leaves it to the run.
        max_result_chars: Longer text is cut in the middle before the model sees it; None lets all of it through.
        strict: Whether the provider is to hold the model to the schema, where it can; None leaves it to the provider.
        input_examples: Examples of good input, for providers that take them.
        defer_loading: Whether the provider is to load the definition only when its tool search finds it.
        allowed_callers: Who may call it, where a provider knows of others than the model.
        trusted: Whether the program vouches for what it returns. False: that is data from outside, whatever it reads like.
        native: By provider's name, the definition that stands for this one on that provider's wire.
    """

    name: str = attrs.field()
    description: str = attrs.field(default="", repr=False)
    input_schema: JSONObject = attrs.field(repr=False)
    execute: Callable[..., object] = attrs.field(repr=False)
    concurrent: bool = attrs.field(default=True, repr=False)
    inline: bool = attrs.field(default=False, repr=False)
    timeout: float | None = attrs.field(default=None, repr=False)
    cancel_grace: float | None = attrs.field(default=None, repr=False)
    max_result_chars: int | None = attrs.field(default=None, repr=False)
    strict: bool | None = attrs.field(default=None, repr=False)
    input_examples: tuple[JSONObject, ...] = attrs.field(default=(), repr=False, converter=_several)
    defer_loading: bool = attrs.field(default=False, repr=False)
    allowed_callers: tuple[str, ...] = attrs.field(default=(), repr=False, converter=_several)
    trusted: bool = attrs.field(default=False, repr=False)
    native: Mapping[str, JSONObject] = attrs.field(factory=dict, repr=False)
    _function: Callable[..., Any] | None = attrs.field(default=None, repr=False, alias="_function")
    _parse: Callable[[JSONObject], Any] = attrs.field(
        default=attrs.Factory(lambda self: raw_parser(self.input_schema, self.name), takes_self=True),
        repr=False,
        alias="_parse",
    )
    # What `evolve` made this of, first of all.
    _root: Tool | None = attrs.field(default=None, repr=False, alias="_root")

    def __attrs_post_init__(self) -> None:
        for fault in _faults(self):
            raise InvalidOption(f"tool {self.name!r}: {fault}")
        for example in self.input_examples:
            try:
                self.parse(example)
            except ToolError as error:
                raise InvalidOption(f"tool {self.name!r}: an input example does not fit: {error}") from error

    @functools.cached_property
    def is_async(self) -> bool:
        """Whether `execute` is an async function."""
        return inspect.iscoroutinefunction(unwrapped(self.execute))

    def parse(self, input: JSONObject) -> Any:  # noqa: A002 - the providers' word for it
        """
        Validate a model's input against the whole schema, and return the arguments for `execute`.

        Any, since only the two know what passes between them: for a decorated function its keyword arguments, with
        defaults filled in; else the input itself. "3" is taken for 3 where a decorated function wants an int, as
        `_schema` explains; a raw schema is taken by the letter.

        Raises:
            ToolError: The input does not fit. The message, made for the model, has the path of every fault found.
        """
        return self._parse(input)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decorated function as it was (Any, as its signature is its own), else `execute`."""
        return (self._function or self.execute)(*args, **kwargs)

    def evolve(self, **changes: Any) -> Self:
        """
        Return the same tool with other options.

        Args:
            **changes: Any attribute of `Tool`. The `input_schema` of a decorated function follows from its signature
                and can only be changed together with `execute`.

        Raises:
            InvalidOption: There is no such option, or it cannot be so.
        """
        valid = [field.name for field in attrs.fields(type(self)) if not field.name.startswith("_")]
        _refuse_unknown(changes, valid)
        changes["_root"] = None if "execute" in changes else self._root or self
        if "execute" in changes:
            changes["_function"] = None
        if "input_schema" in changes:
            if self._function is not None and "execute" not in changes:
                raise InvalidOption(f"tool {self.name!r}: its input_schema is its signature; make a Tool of its own")
            changes["_parse"] = raw_parser(changes["input_schema"], self.name)
        return attrs.evolve(self, **changes)


def _faults(tool: Any) -> Iterator[str]:
    """Say what is wrong with a tool of which nothing has been checked yet."""
    if not isinstance(tool.name, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", tool.name):
        yield "a name is 1 to 64 of the letters a-z and A-Z, digits, `_` and `-`; give it such a one by `name=`"
    if not isinstance(tool.description, str):
        yield f"description is text, got {tool.description!r}"
    if tool.timeout == 0 or not _is_from(0, tool.timeout):
        yield f"timeout is a positive number of seconds, or None for the run's; got {tool.timeout!r}"
    if not _is_from(0, tool.cancel_grace):
        yield f"cancel_grace is a number of seconds from 0, or None for the run's; got {tool.cancel_grace!r}"
    if not _is_from(1, tool.max_result_chars):
        yield f"max_result_chars is a positive number, or None for no limit; got {tool.max_result_chars!r}"
    if not isinstance(tool.trusted, bool):
        yield f"trusted is True or False, got {tool.trusted!r}"
    if tool.strict and tool.input_schema.get("additionalProperties") is not False:
        yield "strict needs `additionalProperties: false` in input_schema: providers refuse an open object"
    if not isinstance(tool.native, Mapping) or not all(isinstance(each, dict) for each in tool.native.values()):
        yield "native maps a provider's name to a tool definition, a JSON object"
    yield from _function_faults(tool)


def _function_faults(tool: Any) -> Iterator[str]:
    if not callable(tool.execute):
        yield f"execute is a function of (arguments, context), got {tool.execute!r}"
    elif _is_generator(tool.execute):
        yield _NO_GENERATOR
    elif tool.inline and tool.is_async:
        yield "inline is for sync functions; an async one runs in the event loop anyway: leave `inline` out"


def _is_from(least: float, value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value >= least)


def _is_generator(function: Callable[..., Any]) -> bool:
    inner = unwrapped(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _refuse_unknown(options: Iterable[str], valid: Sequence[str]) -> None:
    if unknown := sorted(set(options) - set(valid)):
        raise InvalidOption(f"a tool has no option {', '.join(map(repr, unknown))}; it has {', '.join(valid)}")


class _Options(TypedDict, total=False):
    """The options of `@tool`, as in `Tool`."""

    name: str
    description: str
    concurrent: bool
    inline: bool
    timeout: float | None
    cancel_grace: float | None
    max_result_chars: int | None
    strict: bool | None
    input_examples: Iterable[JSONObject]
    defer_loading: bool
    allowed_callers: Iterable[str]
    trusted: bool
    native: Mapping[str, JSONObject]


@overload
def tool(function: Callable[..., Any], /, **options: Unpack[_Options]) -> Tool: ...


@overload
def tool(**options: Unpack[_Options]) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """
    Make a tool of a function: `@tool`, `@tool(timeout=5)`, or `tool(database.query, name="query")`.

    The function's name, docstring and type hints become the tool's name, description and schema; every parameter needs
    a type hint. Google, NumPy and Sphinx docstrings give the parameters' descriptions, unless `msgspec.Meta` does. A
    parameter of type `ToolContext` gets the call's context. What the function returns goes through `render`, and
    `ToolError` tells the model that it failed. The tool can still be called as the function could.

    Args:
        function: An async function, which runs in the run's nursery, or a sync one, which runs in a thread. Methods
            (bound), partials and objects with `__call__` will do as well; generators will not.
        **options: `name`, `description` and the options of `Tool`.

    Raises:
        InvalidOption: An option is unknown or wrong, or a parameter cannot be filled from JSON.
    """
    _refuse_unknown(options, list(_Options.__annotations__))
    frame = inspect.currentframe()
    namespace = frame.f_back.f_locals if frame and frame.f_back else {}  # hints may name what is local there
    del frame  # it refers to itself, and so to all that is local there

    def decorate(function: Callable[..., Any]) -> Tool:
        return _from_function(function, namespace, options)

    return decorate if function is None else decorate(function)


def _from_function(function: object, namespace: Mapping[str, Any], options: Mapping[str, Any]) -> Tool:
    if isinstance(function, Tool):
        raise InvalidOption(f"tool {function.name!r} is one already; change it by `evolve`")
    if not callable(function) or inspect.isclass(function):
        raise InvalidOption(f"a tool is made of a function, not of {function!r}")
    if _is_generator(function):
        raise InvalidOption(f"tool {function_name(function)!r}: {_NO_GENERATOR}")
    takes = signature(function, ToolContext, namespace)
    made: dict[str, Any] = {"name": function_name(function), "description": takes.description, **options}
    execute = _caller(function, takes.context)
    return Tool(**made, input_schema=takes.schema, execute=execute, _function=function, _parse=takes.parse)


def _caller(function: Callable[..., Any], context: tuple[str, ...]) -> Callable[..., object]:
    def call(arguments: Mapping[str, Any], ctx: ToolContext) -> Any:
        return function(**arguments, **dict.fromkeys(context, ctx)) if context else function(**arguments)

    async def call_async(arguments: Mapping[str, Any], ctx: ToolContext) -> Any:
        return await call(arguments, ctx)

    return call_async if inspect.iscoroutinefunction(unwrapped(function)) else call
