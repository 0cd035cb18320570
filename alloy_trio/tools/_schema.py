"""
A function's signature as JSON Schema, and a model's JSON as its arguments.

When a function is decorated, its parameters become one msgspec Struct, which is never seen from outside: its fields are
called p0, p1, … and renamed in JSON, so that no parameter can clash with what a Struct has of its own. The schema is put
together from the same type hints. What msgspec does not know itself comes in through two hooks: paths, which are strings in
JSON, and pydantic models, known by their `model_json_schema` and `model_validate`.

A schema is what the model is told; parsing is a little kinder, since models write "3" where 3 is asked for. It follows
`msgspec.convert(strict=False)`: a string that spells a number, a boolean (`true`, `false`, `1`, `0`) or `null` is taken for
one where the type asks for that, and a time may be a number of seconds since 1970. Never the other way round: a number is no
`str`, and "yes" no `bool`. Unknown keys are refused at every depth; inside a pydantic model, as the model says.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import attrs
import msgspec
from msgspec.json import schema_components

from .._errors import InvalidOption, ToolError
from .._util import JSONObject

# Keywords whose keys are names instead of keywords, and keywords whose values are data instead of schemas.
_NAMED = frozenset({"properties", "patternProperties", "$defs"})
_DATA = frozenset({"default", "examples", "const", "enum"})
_MAX_FAULTS = 10
_MAX_FAULT_CHARS = 300  # a fault may quote the whole value


@attrs.frozen
class Signature:
    """
    What a decorated function takes.

    Attributes:
        schema: Its JSON Schema: an object, closed, its nested classes under `$defs`.
        description: The docstring without its sections.
        context: The names of the parameters that take the context; the schema has none of them.
    """

    schema: JSONObject
    description: str
    context: tuple[str, ...]
    _fields: Mapping[str, tuple[str, Any, Any]] = attrs.field(repr=False)  # by parameter; for defstruct
    _struct: type[msgspec.Struct] = attrs.field(repr=False)
    _classes: Mapping[str, JSONObject] = attrs.field(repr=False)  # those of `$defs` that msgspec made

    def parse(self, input: JSONObject) -> dict[str, Any]:  # noqa: A002 - the providers' word for it
        """
        Return the keyword arguments that `input` stands for, defaults filled in.

        Raises:
            ToolError: The input does not fit; the message has every parameter at fault with its path.
        """
        try:
            return self._arguments(input)
        except RecursionError as error:
            raise invalid_input(["it is nested too deeply"]) from error

    def _arguments(self, input: JSONObject) -> dict[str, Any]:  # noqa: A002 - as above
        try:
            values = msgspec.structs.astuple(_convert(input, self._struct))
        except (msgspec.ValidationError, ValueError) as error:
            raise invalid_input(self._faults(input) or [str(error)]) from error
        if self._classes and (unknown := list(_unknown_keys(input, self.schema, self._classes))):
            raise invalid_input(unknown)
        return dict(zip(self._fields, values, strict=True))

    def _faults(self, input: Any) -> list[str]:  # noqa: A002 - as above
        """Msgspec stops at the first fault, so each parameter is tried by itself."""
        if not isinstance(input, dict):
            return []
        faults = list(_unknown_keys(input, self.schema, self._classes))
        for name, field in self._fields.items():
            try:
                _convert({name: input[name]} if name in input else {}, _defstruct({name: field}))
            except (msgspec.ValidationError, ValueError) as error:
                faults.append(str(error))
        return faults


def signature(function: Callable[..., Any], context_type: type, namespace: Mapping[str, Any]) -> Signature:
    """
    Work out what `function` takes.

    Args:
        function: A function, a method, a partial or an object with `__call__`.
        context_type: Parameters of this type are kept from the model.
        namespace: Names that annotations may use besides the function's globals: those where it is decorated.

    Raises:
        InvalidOption: A parameter cannot be filled from JSON: it has no type hint, or one that JSON does not know.
    """
    parameters = _parameters(function)
    hints = _hints(function, parameters, {context_type.__name__: context_type}, namespace)
    context = tuple(name for name, hint in hints.items() if _is_context(hint, context_type))
    description, about = _docstring(function)
    fields: dict[str, tuple[str, Any, Any]] = {}
    for name, hint in hints.items():
        if name not in context:
            described = _described(hint, about.get(name))
            fields[name] = (f"p{len(fields)}", described, _default(parameters[name].default))
    schema, classes = _schema(function, {name: field[1] for name, field in fields.items()}, parameters)
    return Signature(schema, description, context, fields, _defstruct(fields), classes)


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the plain function inside a partial, a method, a `staticmethod` or an object with `__call__`."""
    function = _bare(function)
    if hasattr(function, "__func__"):
        return unwrapped(function.__func__)
    plain = inspect.isroutine(function) or inspect.isclass(function) or hasattr(function, "__wrapped__")
    return function if plain else type(function).__call__


def function_name(function: Callable[..., Any]) -> str:
    """Return what a function is called; an object with `__call__` is called as its class is."""
    function = _bare(function)
    return str(getattr(function, "__name__", type(function).__name__))


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def raw_parser(schema: object, name: str) -> Callable[[JSONObject], JSONObject]:
    """
    Return what validates the input of tool `name` by a JSON Schema, from which nothing is fetched, and returns it.

    Raises:
        InvalidOption: It is no schema of an object, or none at all, or it refers to another document.
    """
    import jsonschema_rs  # noqa: PLC0415 - only tools with a schema of their own need it

    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise InvalidOption(f'tool {name!r}: input_schema needs "type": "object" at its root')
    try:
        validator = jsonschema_rs.validator_for(schema, retriever=_never_fetch)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InvalidOption(f"tool {name!r}: input_schema is no valid JSON Schema: {reason}") from error

    def parse(input: JSONObject) -> JSONObject:  # noqa: A002 - as above
        try:
            faults = [f"{e.message} - at `{_path(e.instance_path)}`" for e in validator.iter_errors(input)]
        except ValueError as error:  # not JSON data: a lone surrogate, a key that is no string
            faults = [str(error)]
        if faults:
            raise invalid_input(faults)
        return input

    return parse


def invalid_input(faults: Sequence[str]) -> ToolError:
    """Return the error that tells the model what was wrong with its input."""
    said = [f if len(f) <= _MAX_FAULT_CHARS else f"{f[:100]} … {f[-180:]}" for f in faults[:_MAX_FAULTS]]
    return ToolError(f"invalid input: {'; '.join(said)}".encode("utf-8", "replace").decode())


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that are still open, after refusing those that JSON cannot fill."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (NameError, TypeError, ValueError) as error:  # NameError: Python 3.14 looks the hints up
        reason = f"its signature cannot be read: {error}"
        raise InvalidOption(f"tool {function_name(function)!r}: {reason}") from error
    while isinstance(function, functools.partial):
        # What is bound by keyword stays in the signature, as a default: the model must not see it.
        parameters = {name: value for name, value in parameters.items() if name not in function.keywords}
        function = function.func
    for name, parameter in parameters.items():
        _check(function, name, parameter)
    return parameters


def _check(function: Callable[..., Any], name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
        fault = "has no fixed names or types: write out the parameters, or make a Tool with an input_schema"
        raise _bad(function, str(parameter).split(":")[0], fault)
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise _bad(function, name, "is positional-only, and models name their arguments: remove the `/`")
    if parameter.annotation is parameter.empty:
        fault = f"has no type hint: write for instance `{name}: str`"
        if name in {"self", "cls"}:
            fault = "has no type hint: to make a tool of a method, decorate the bound one, `tool(object.method)`"
        raise _bad(function, name, fault)


def _hints(
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    names: Mapping[str, Any],
    namespace: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the parameters' types. The return type is not looked up: it may be there for type checkers only."""
    annotations = {name: parameter.annotation for name, parameter in parameters.items()}
    # get_type_hints takes whatever has annotations; its stub does not say so.
    bearer: Any = types.SimpleNamespace(__annotations__=annotations)
    scope = getattr(inspect.unwrap(unwrapped(function)), "__globals__", {})
    # The second try is for local classes, and for a ToolContext that was imported for type checkers only.
    for outer, inner in ((scope, {}), ({**names, **scope}, namespace)):
        try:
            return typing.get_type_hints(bearer, outer, dict(inner), include_extras=True)
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            fault = error
    raise InvalidOption(
        f"tool {function_name(function)!r}: a type hint cannot be looked up: {fault}; "
        "define or import the type before the function, and not only under `if TYPE_CHECKING:`"
    ) from fault


def _is_context(hint: Any, context_type: type) -> bool:
    return any(part is context_type or typing.get_origin(part) is context_type for part in _parts(hint))


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type and what it is made of: the members of a union, the metadata of an `Annotated`."""
    yield hint
    if typing.get_origin(hint) in {typing.Union, types.UnionType, Annotated}:
        for part in typing.get_args(hint):
            yield from _parts(part)


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the description of the function, and those of its parameters."""
    import docstring_parser  # noqa: PLC0415 - only the decorator needs it

    bare = _bare(function)
    text = unwrapped(bare).__doc__ or ("" if inspect.isroutine(bare) else bare.__doc__)
    text = inspect.cleandoc(text or "")
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text, {}
    about = {each.arg_name: each.description for each in parsed.params if each.description}
    return (parsed.description or "").strip(), about


def _described(hint: Any, description: str | None) -> Any:
    """Add what the docstring says of a parameter, unless its type says it already."""
    said = any(isinstance(part, msgspec.Meta) and part.description for part in _parts(hint))
    return hint if said or not description else Annotated[hint, msgspec.Meta(description=description)]


def _default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return msgspec.NODEFAULT
    if isinstance(default, list | dict | set | bytearray):
        return msgspec.field(default_factory=functools.partial(copy.deepcopy, default))
    # A factory here too: as a plain default msgspec refuses what it cannot encode.
    return msgspec.field(default_factory=lambda: default)


def _defstruct(fields: Mapping[str, tuple[str, Any, Any]]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        "Arguments",
        list(fields.values()),
        rename={field[0]: name for name, field in fields.items()},
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _convert(value: Any, kind: type[msgspec.Struct]) -> msgspec.Struct:
    return msgspec.convert(value, kind, strict=False, str_keys=True, dec_hook=_decode)


def _schema(
    function: Callable[..., Any], hints: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> tuple[JSONObject, dict[str, Any]]:
    """Return the schema, and those of its `$defs` that msgspec made."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    classes: dict[str, Any] = {}
    hook = functools.partial(_foreign, definitions)
    for name, hint in hints.items():
        try:
            [schema], own = schema_components([hint], ref_template="#/$defs/{name}", schema_hook=hook)
            _define(definitions, own)
        except (TypeError, ValueError) as error:
            raise _unsupported(function, name, error) from error
        properties[name] = _with_default(schema, parameters[name].default)
        classes |= {each: definitions[each] for each in own}
    for definition in classes.values():
        definition.pop("title", None)  # the class's name, which `$defs` has already
        if "properties" in definition:
            definition.setdefault("additionalProperties", False)
    required = [name for name in hints if parameters[name].default is inspect.Parameter.empty]
    root = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return typing.cast("JSONObject", _tidy({**root, "$defs": definitions} if definitions else root)), classes


def _define(definitions: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, definition in new.items():
        if definitions.setdefault(name, definition) != definition:
            raise TypeError(f"there are two classes of the name {name}, which must differ")


def _with_default(schema: JSONObject, default: Any) -> JSONObject:
    if default is not inspect.Parameter.empty:
        # Where JSON cannot say it, that the parameter is not required says enough.
        with contextlib.suppress(TypeError, ValueError):
            return {**schema, "default": msgspec.to_builtins(default, str_keys=True, enc_hook=os.fspath)}
    return schema


def _tidy(node: Any, *, titles: bool = True) -> Any:
    """
    Return a schema without what providers stumble over.

    OpenAI's strict mode refuses a `$ref` with anything beside it (a description), so such a one goes into an `anyOf`.
    Without `titles` they are left out, as pydantic gives one to everything.
    """
    if isinstance(node, list):
        return [_tidy(each, titles=titles) for each in node]
    if not isinstance(node, dict):
        return node
    tidy: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED:
            tidy[key] = {name: _tidy(each, titles=titles) for name, each in value.items()}
        elif key != "title" or titles:
            tidy[key] = value if key in _DATA else _tidy(value, titles=titles)
    if "$ref" in tidy and len(tidy) > 1:
        tidy["anyOf"] = [{"$ref": tidy.pop("$ref")}]
    return tidy


def _foreign(definitions: dict[str, Any], kind: Any) -> JSONObject:
    """Return the schema of a type that msgspec does not know; what it refers to is added to `definitions`."""
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):  # trio.Path is one too
        return {"type": "string"}
    if not hasattr(kind, "model_json_schema"):
        raise NotImplementedError
    own = re.sub(r"\W", "_", kind.__name__)  # a generic one has brackets
    schema = _tidy(kind.model_json_schema(ref_template=f"#/$defs/{own}_{{model}}"), titles=False)
    _define(definitions, {f"{own}_{name}": each for name, each in schema.pop("$defs", {}).items()})
    _define(definitions, {own: schema})
    return {"$ref": f"#/$defs/{own}"}


def _decode(kind: Any, value: Any) -> Any:
    """Make what `_foreign` describes. A ValueError becomes msgspec's, with its path."""
    if not hasattr(kind, "model_validate"):
        if not isinstance(value, str):
            raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
        return kind(value)
    try:
        return kind.model_validate(value)
    except ValueError as error:
        if not callable(errors := getattr(error, "errors", None)):
            raise
        faults = (f"{each['msg']} at `{'.'.join(map(str, each['loc']))}`" for each in errors())
        raise ValueError(f"no valid `{kind.__name__}`: {', '.join(faults)}") from error


def _unknown_keys(value: Any, schema: Any, classes: Mapping[str, Any], path: str = "$") -> Iterator[str]:
    """Find the keys of nested classes that msgspec drops without a word, though the schema forbids them."""
    schema = _meant(value, schema, classes) if isinstance(value, dict | list) else {}
    if schema and isinstance(value, list):
        first = schema.get("prefixItems", [])
        for index, item in enumerate(value):
            each = first[index] if index < len(first) else schema.get("items")
            yield from _unknown_keys(item, each, classes, f"{path}[{index}]")
    elif schema:
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            if key not in known and rest is False:
                yield f"unknown field `{key}` - at `{path}`"
            yield from _unknown_keys(item, known.get(key, rest), classes, f"{path}.{key}")


def _meant(value: Any, schema: Any, classes: Mapping[str, Any]) -> JSONObject:
    """
    Follow references and unions to the schema of an object or array.

    A union has one of each at most, or a tag: msgspec sees to that. What pydantic made is its own business.
    """
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        return _meant(value, classes.get(schema["$ref"].removeprefix("#/$defs/")), classes)
    if "discriminator" in schema and isinstance(value, dict):
        tag = schema["discriminator"]
        return _meant(value, {"$ref": tag["mapping"].get(str(value.get(tag["propertyName"])), "")}, classes)
    kind = "object" if isinstance(value, dict) else "array"
    branches = (_meant(value, each, classes) for each in schema.get("anyOf", ()))
    return next((each for each in branches if each.get("type") == kind), schema)


def _path(keys: Sequence[str | int]) -> str:
    return "$" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def _never_fetch(uri: str) -> Any:
    raise ValueError(f"{uri} is another document, and none is fetched: put what it has under `$defs`")


def _bad(function: Callable[..., Any], parameter: str, fault: str) -> InvalidOption:
    return InvalidOption(f"tool {function_name(function)!r}: parameter {parameter!r} {fault}")


def _unsupported(function: Callable[..., Any], parameter: str, error: Exception) -> InvalidOption:
    advice = "give it a type that JSON knows, or make a Tool with an input_schema"
    if "union" in str(error):
        advice = "use one type: a class with optional fields, or msgspec.Struct classes with `tag=True`"
    reason = str(error).splitlines()[-1]  # msgspec's own advice comes first, if it has any
    return _bad(function, parameter, f"cannot be filled from JSON: {reason}; {advice}")
