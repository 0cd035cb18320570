"""
Messages, events and sessions as JSON and back, without loss.

Blocks are a tagged union: `{"type": "tool_use", …}`, the class name in snake case. A block whose tag is not known here (a
newer version wrote it) is kept whole as an `Opaque` without a provider.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from cattrs import transform_error
from cattrs.errors import BaseValidationError
from cattrs.preconf.msgspec import make_converter
from cattrs.strategies import configure_tagged_union

from ._messages import Block, Opaque, ResultBlock

if TYPE_CHECKING:
    from cattrs.preconf.msgspec import MsgspecJsonConverter

T = TypeVar("T")


def tag(kind: type) -> str:
    """Return the name of a block or event class in JSON: its class name in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def dump(value: Any) -> Any:
    """Turn one of our nouns into JSON data. What has its default value is left out."""
    return _converter().unstructure(value)


def load(data: Any, kind: type[T]) -> T:
    """
    Read what `dump` wrote of a `kind`.

    Raises:
        ValueError: The data does not fit; the message names the places.
    """
    if not isinstance(data, dict):
        raise ValueError(f"this is no {kind.__name__}: expected a JSON object, got {data!r:.100}")  # noqa: TRY004 - bad data
    try:
        return _converter().structure(data, kind)
    except (BaseValidationError, KeyError, TypeError) as error:
        faults = transform_error(error) if isinstance(error, BaseValidationError) else [repr(error)]
        raise ValueError(f"this is no {kind.__name__}: {'; '.join(faults)}") from error


def plain(value: Any) -> Any:
    """Turn one of our nouns into JSON data of nothing but objects, lists, texts and numbers."""
    return msgspec.to_builtins(dump(value))


def dumps(value: Any) -> bytes:
    """Turn one of our nouns into JSON text."""
    return _converter().dumps(value)


def loads(data: bytes | str, kind: type[T], *, key: str) -> T:
    """Read what `dumps` wrote of a `kind`, known by a `key` that is never left out. Raises as `load` does."""
    try:
        parsed = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"this is no {kind.__name__}: {error}") from error
    if isinstance(parsed, dict) and key not in parsed:
        raise ValueError(f"this is no {kind.__name__}: it has no {key}")
    return load(parsed, kind)


@functools.cache
def _converter() -> MsgspecJsonConverter:
    converter = make_converter(omit_if_default=True)
    # The hook of the default class has to be there before the strategy, which would keep the stale one.
    converter.register_structure_hook(Opaque, _load_opaque)
    for union in (ResultBlock, Block):
        configure_tagged_union(union, converter, tag_generator=tag, tag_name="type", default=Opaque)
    return converter


def _load_opaque(data: dict[str, Any], _: type[Opaque]) -> Opaque:
    if data.get("type", "opaque") == "opaque":
        if not isinstance(data["payload"], dict):
            raise TypeError(f"expected an object as payload of an opaque block, got {data['payload']!r:.100}")
        return Opaque(data["provider"], data["payload"])
    return Opaque("", data)
