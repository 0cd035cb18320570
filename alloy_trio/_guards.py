"""
A guard against instructions that come as data: once there is something from outside in a conversation, a person decides.

A model reads everything as text. What a tool has read, from a web page, a mail, somebody else's file, may ask it for something, and
nobody can tell for sure whether it will do that. So the guard does not look for bad words. It looks at where things come from: behind
the first result of a tool that is not `trusted` the model may be speaking for somebody else, and what it asks for is asked of a
person first.

What was from outside stays so: the history says it, and where a compaction takes it out of there, the session's metadata do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs

from ._errors import InvalidOption
from ._gate import BlockCall
from ._messages import ServerToolResult, ServerToolUse
from ._middleware import Middleware
from ._output import AnswerTool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._gate import EditCall
    from ._messages import Message, ToolUse
    from ._middleware import RunState
    from .tools._tool import Tool

MARK: Final = "has_outside_data"  # in the metadata of a session

_TOLD: Final = frozenset({"ok", "error"})  # the other outcomes are in our words
_NOBODY: Final = (
    "this conversation has data from outside in it, and nobody can be asked whether the call is what the user wants"
)


def _names(safe: Any) -> frozenset[str]:
    if isinstance(safe, str) or not isinstance(safe, Iterable):
        raise InvalidOption(f"safe={safe!r:.100} has to be a list of names of tools, even of one")
    names = frozenset(safe)
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise InvalidOption(f"safe has {wrong[0]!r:.100}: give the name of the tool, as text")
    return names


@attrs.frozen(kw_only=True)
class AskAfterData(Middleware):
    """
    Let a person decide on calls, from the first result on that came from outside.

    From outside is what a tool returns that is not `trusted`, and what a tool brings that the provider runs itself, like its web
    search. From there on each call waits for `agent.approve` or `agent.deny`, but for those in `safe`. In a run that is no agent's
    there is nobody to ask: there it is blocked. The calls of one answer are judged together, by what the model had read when it
    asked for them.

    Put it behind other middlewares, so that a person sees the input that will run. It keeps nothing itself: one will do for any
    number of agents.

    It never looks at what is said, and does not hold against everything: see the guide.

    Attributes:
        safe: The names of tools that anybody may have called: they change nothing, and send nothing anywhere. A tool that fetches
            an address of the model's choice does send: the address.
    """

    safe: frozenset[str] = attrs.field(default=frozenset(), converter=_names)

    async def session_start(self, state: RunState) -> None:
        """Look at what the conversation begins with."""
        self._note(state)

    async def before_tool_call(self, state: RunState, call: ToolUse) -> BlockCall | EditCall | None:
        """Wait for a person, if there is something from outside, and the call is none of the safe ones."""
        if call.name in self.safe or isinstance(state.tools.get(call.name), AnswerTool) or not self._note(state):
            return None
        try:
            return await state.approval(call)
        except InvalidOption:
            return BlockCall(_NOBODY)

    async def after_tool_execution(self, state: RunState) -> None:
        """Look at what the tools have returned, before a compaction can take it away."""
        self._note(state)

    async def after_completion(self, state: RunState) -> None:
        """Look at what the provider's own tools have brought."""
        self._note(state)

    def _note(self, state: RunState) -> bool:
        """Return whether there is something from outside in the conversation, or was."""
        kept = state.session.metadata
        if not kept.get(MARK):
            if not has_outside_data(state.messages, state.tools):
                return False
            kept[MARK] = True
        return True


def has_outside_data(messages: Iterable[Message], tools: Mapping[str, Tool]) -> bool:
    """
    Return whether a conversation has something in it that came from outside, by way of a tool.

    Args:
        messages: The conversation.
        tools: The tools by name: what came of one that is not among them is from outside.
    """
    trusted = {name for name, tool in tools.items() if tool.trusted}
    vouched: dict[str, bool] = {}  # by a call's id: whether all calls of an answer that have it are trusted
    for message in messages:
        for block in message.content:
            if isinstance(block, ServerToolUse | ServerToolResult):  # OpenAI has the result in the call
                return True
        if calls := message.tool_uses:
            distrusted = {call.id for call in calls if call.name not in trusted}
            vouched.update((call.id, call.id not in distrusted) for call in calls)
        for result in message.tool_results:
            if result.outcome in _TOLD and not vouched.get(result.tool_use_id):
                return True
    return False
