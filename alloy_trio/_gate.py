"""What may be said of a tool call before it runs. The executor asks; who answers stands on a higher floor."""

import copy
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import attrs

from ._errors import InvalidOption
from ._messages import ToolUse
from ._util import JSONObject


def _reason(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidOption(f"BlockCall({value!r:.100}): give the reason as text, for the model to read")


def _input(value: Any) -> JSONObject:
    if not isinstance(value, dict):
        raise InvalidOption(
            f"EditCall({value!r:.100}): give the new input alone, as a dict; a call's id and name have to stay"
        )
    return copy.deepcopy(value)  # what its maker does to it later is not what ran


@attrs.frozen
class BlockCall:
    """
    Returned by `before_tool_call`: the call does not run, and the model is told so.

    Attributes:
        reason: The model reads "Blocked: reason" as an error result.
    """

    reason: str = attrs.field(validator=_reason)


@attrs.frozen
class EditCall:
    """
    Returned by `before_tool_call`: the call runs with another input, which is validated as the model's was.

    The history keeps the model's own. A call's id and name cannot be changed.

    Attributes:
        input: The arguments to run with.
    """

    input: JSONObject = attrs.field(converter=_input)


Verdict: TypeAlias = BlockCall | EditCall | None
Gate: TypeAlias = Callable[[ToolUse], Awaitable[Verdict]]
