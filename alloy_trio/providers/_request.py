"""
What a request says on every wire alike: how long the answer may be, what form it has to have, what it may cost besides tokens.

An API that holds an answer to a JSON Schema takes a part of JSON Schema only, and refuses the rest. OpenAI has a mode without
guarantee for whatever its strict one does not take. Claude has one mode; what it cannot enforce is told in the description,
where the model reads it, and whoever reads the answer validates it anyway.
"""

from __future__ import annotations

import graphlib
from typing import TYPE_CHECKING, Any

from ._json import as_dict, as_dicts, as_list, as_str, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .._util import JSONObject

# Where a schema has schemas: by names, in a list, or one.
_BY_NAME = {"properties", "$defs", "definitions"}
_IN_LIST = {"anyOf", "oneOf", "allOf", "prefixItems"}
_ALONE = {"items", "additionalProperties"}

_SAYS_WHAT = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}

# What OpenAI's strict mode takes: docs "Structured model outputs", supported schemas.
_STRICT = {
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "$ref", "$defs"),
    *("title", "description", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("multipleOf", "minItems", "maxItems", "definitions"),
}

_STRICT_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}

# What Claude's takes: docs "Structured outputs", JSON Schema limitations.
_CLAUDE = {
    *("type", "properties", "required", "items", "anyOf", "allOf", "enum", "const", "$ref", "$defs", "definitions"),
    *("title", "description", "default"),
}
_CLAUDE_FORMATS = {*_STRICT_FORMATS, "uri"}
_CLAUDE_OPTIONAL, _CLAUDE_UNIONS = 24, 16  # the most of them in a request: the same docs, schema complexity limits


def cap_output(body: JSONObject, cap: int | None, *fields: str) -> None:
    """
    Write the cap on the answer into a body that has `extra_body` in it, which may have set a lower one, not a higher.

    Args:
        body: The request.
        cap: The most tokens to generate; None: whatever the body says holds.
        fields: Where the API has it; of several, those that the body sets, or else the first.
    """
    if cap is None:
        return
    given = [field for field in fields if body.get(field) is not None]
    for field in given or fields[:1]:
        wanted = body.get(field)
        lower = isinstance(wanted, int) and not isinstance(wanted, bool) and 0 < wanted < cap  # -1 is "no cap" to some
        body[field] = wanted if lower else cap


def has_fees(tools: object, free: tuple[str, ...]) -> bool:
    """Whether any of the tools, as an API defines them, may cost a fee: all but functions and types that begin as `free`."""
    kinds = (as_str(tool.get("type")) or "function" for tool in as_dicts(tools))
    return any(not kind.startswith(("function", "custom", *free)) for kind in kinds)


def mentions(value: Any, key: str) -> bool:
    """Whether a key stands anywhere in `value`, any JSON."""
    if isinstance(value, dict):
        return key in value or any(mentions(member, key) for member in value.values())
    return any(mentions(member, key) for member in value) if isinstance(value, list | tuple) else False


def strict_schema(schema: JSONObject) -> JSONObject | None:
    """Return a schema as OpenAI's strict mode takes it, every object closed; or None if that would not say the same."""
    closed = _closed(schema)
    return closed if closed.get("type") == "object" and all(map(_is_strict, _walk(closed))) else None


def openai_format(schema: JSONObject) -> JSONObject:
    """Return what OpenAI's APIs want to know of a schema: its name, itself, and whether it is kept strictly."""
    strict = strict_schema(schema)
    return {"name": "output", "strict": strict is not None, "schema": strict or schema}


def claude_schema(schema: JSONObject) -> JSONObject:
    """Return a schema as Claude's API takes it; the rest of it is told in the descriptions."""
    if "$ref" in schema:
        schema = {keyword: value for keyword, value in schema.items() if keyword in {"$ref", "$defs", "definitions"}}
    out = _changed(
        {("anyOf" if keyword == "oneOf" else keyword): value for keyword, value in schema.items()}, claude_schema
    )
    told = {keyword: value for keyword, value in out.items() if not _claude_takes(keyword, value)}
    out = {keyword: value for keyword, value in out.items() if keyword not in told}
    if told:
        out["description"] = "\n".join(filter(None, [as_str(out.get("description")), encode(told).decode()]))
    if "properties" in out:
        out["additionalProperties"] = False
    return out


def claude_can_express(schema: JSONObject) -> bool:
    """Whether Claude's API takes the schema at all: no objects of any keys, values of any type, tuples, recursion; not too much."""
    parts = list(_walk(schema))
    optional = sum(len(as_dict(part.get("properties")).keys() - _required(part)) for part in parts)
    unions = sum("anyOf" in part or "oneOf" in part or isinstance(part.get("type"), list) for part in parts)
    if optional > _CLAUDE_OPTIONAL or unions > _CLAUDE_UNIONS or _is_recursive(schema):
        return False
    return all(
        part.get("additionalProperties", False) is False
        and ("properties" in part or part.get("type") != "object")
        and ("prefixItems" not in part and isinstance(part.get("items", {}), dict))
        and part.keys() & _SAYS_WHAT
        for part in parts
    )


def _claude_takes(keyword: str, value: Any) -> bool:
    match keyword:
        case "minItems":
            return value in {0, 1}
        case "format":
            return value in _CLAUDE_FORMATS
        case "additionalProperties":
            return value is False
    return keyword in _CLAUDE


def _closed(schema: JSONObject) -> JSONObject:
    """Return a schema whose objects say that they have no other properties, unless they say something else of them."""
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | _changed(schema, _closed)


def _is_strict(part: JSONObject) -> bool:
    """Whether a schema, without looking at those in it, is one for OpenAI's strict mode."""
    if "$ref" in part:
        return len(part) == 1
    is_object = "properties" in part or "object" in (part.get("type"), *as_list(part.get("type")))
    return (
        part.keys() <= _STRICT
        and bool(part.keys() & _SAYS_WHAT)
        and as_dict(part.get("properties")).keys() <= _required(part)
        and as_str(part.get("format", "date")) in _STRICT_FORMATS
        and "(?" not in as_str(part.get("pattern"))  # lookarounds are refused
        and (part.get("additionalProperties") is False or not is_object)
    )


def _required(part: JSONObject) -> set[str]:
    return {as_str(name) for name in as_list(part.get("required"))}


def _is_recursive(schema: JSONObject) -> bool:
    definitions = {**as_dict(schema.get("definitions")), **as_dict(schema.get("$defs"))}
    named = {name: _referred(part) for name, part in definitions.items() if isinstance(part, dict)}
    try:
        graphlib.TopologicalSorter(named).prepare()
    except graphlib.CycleError:
        return True
    return "#" in _referred(schema)


def _referred(schema: JSONObject) -> set[str]:
    """Return the names of the definitions that a schema refers to; `#` is the whole."""
    return {as_str(part.get("$ref")).rpartition("/")[2] for part in _walk(schema) if "$ref" in part}


def _walk(schema: JSONObject) -> Iterator[JSONObject]:
    """Yield a schema and all schemas in it."""
    yield schema
    for keyword, value in schema.items():
        for part in _parts(keyword, value):
            yield from _walk(part)


def _parts(keyword: str, value: Any) -> Iterable[JSONObject]:
    if keyword in _BY_NAME:
        return as_dicts(list(as_dict(value).values()))
    return as_dicts(value if keyword in _IN_LIST else [value] if keyword in _ALONE else [])


def _changed(schema: JSONObject, change: Callable[[JSONObject], JSONObject]) -> JSONObject:
    """Return a schema in which the schemas right below it are changed."""

    def new(keyword: str, value: Any) -> Any:
        if keyword in _BY_NAME and isinstance(value, dict):
            return {name: change(part) if isinstance(part, dict) else part for name, part in value.items()}
        if keyword in _IN_LIST and isinstance(value, list):
            return [change(part) if isinstance(part, dict) else part for part in value]
        return change(value) if keyword in _ALONE and isinstance(value, dict) else value

    return {keyword: new(keyword, value) for keyword, value in schema.items()}
