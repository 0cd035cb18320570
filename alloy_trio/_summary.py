"""
The summary of a conversation: what is asked of the model for it, and the message that it becomes.

The conversation is shown as a text inside one user's message, not as messages: a model that reads calls and results as its own
goes on with them instead. What is long is cut, what does not fit is left out from its beginning, and reasoning is never shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    Opaque,
    ServerToolResult,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from .providers._base import Request
from .providers._json import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "[Summary of the earlier conversation]"
LEFT_OUT = "(The messages before this one did not fit any more, and were left out without a summary.)"

_LONGEST = (8000, 2000, 500, 120)  # bytes of a block: the first of these with which everything fits
_WORDS_PER_TOKEN = 0.6  # room left for languages and names that take more

_STRUCTURE = """\
## Request
The latest request of the user that is not done yet, word by word.
## Progress
What has been done, and what came of it.
## Decisions
What was decided, and why.
## Constraints
What the user wants and does not want, and facts that still matter.
## Next steps
What is left to do, in order."""

_EXACTLY = (
    "Keep names, paths, numbers, identifiers and error messages exactly as they are. "
    "Do not go on with the conversation and do not answer it: write the summary only"
)

SUMMARY_PROMPT = f"""\
The conversation above, between a user and an assistant with tools, has become too long. Write a summary of it that can stand \
in its place: the assistant will go on from it without the original. {_EXACTLY}, under these headings:

{_STRUCTURE}"""

UPDATE_PROMPT = f"""\
Above are a summary of the earlier part of a conversation, between a user and an assistant with tools, and what came after it. \
Write one new summary that can stand in the place of both: the assistant will go on from it without the original. Keep what \
still holds, change what has changed, leave out what is settled. {_EXACTLY}, under these headings:

{_STRUCTURE}"""


def summary_message(text: str) -> Message:
    """Return the message that stands for what was summarized."""
    return Message.user(f"{PREFIX}\n\n{text}")


def summary_in(message: Message) -> str | None:
    """Return the summary that a message is, or None for any other message."""
    text = message.text
    return text.removeprefix(PREFIX).strip() if message.role == "user" and text.startswith(PREFIX) else None


def summary_request(
    messages: Sequence[Message], instructions: tuple[str, str], *, room: int, allowed: int, cap: int
) -> Request | None:
    """
    Return the request for a summary, or None if there is no room for one.

    Args:
        messages: What is to be summarized. If the first is a summary itself, a new one is asked for in its place.
        instructions: What to say to the model: without an earlier summary, and with one.
        room: How long the request may be, in bytes.
        allowed: How long the summary should be, in tokens.
        cap: The most that the model may write, in tokens.
    """
    before = summary_in(messages[0])
    parts = [instructions[before is not None], f"Write {int(allowed * _WORDS_PER_TOKEN)} words at most."]
    if before is not None:
        parts.insert(0, f"<summary>\n{before}\n</summary>")
    shown = "<conversation>\n{}\n</conversation>"
    room -= sum(len(part.encode("utf-8", "replace")) + 2 for part in (*parts, shown))
    conversation = transcript(messages if before is None else messages[1:], room)
    if conversation is None:
        return None
    parts.insert(len(parts) - 2, shown.format(conversation))
    return Request(messages=(Message.user("\n\n".join(parts)),), max_output_tokens=cap)


def transcript(messages: Sequence[Message], room: int) -> str | None:
    """Return a conversation as text of `room` bytes at most: long blocks cut, then the oldest left out; None if none fits."""
    names = {call.id: call.name for message in messages for call in message.tool_uses}
    shown: list[str] = []
    for longest in _LONGEST:
        shown = [text for message in messages if (text := _show(message, names, longest))]
        sizes = [len(text.encode("utf-8", "replace")) + 2 for text in shown]
        if sum(sizes) <= room:
            return "\n\n".join(shown)
    room -= 80  # for the note
    first = len(shown)
    while first > 0 and sizes[first - 1] <= room:
        first -= 1
        room -= sizes[first]
    if first == len(shown):
        return None
    return "\n\n".join((f"(The oldest {first} messages are not shown.)", *shown[first:]))


def clip(text: str, limit: int) -> str:
    """Cut a text to about `limit` bytes: its head, a mark, its tail."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    half = max(limit - 40, 0) // 2  # the mark takes the rest
    head, tail = data[:half].decode("utf-8", "ignore"), data[len(data) - half :].decode("utf-8", "ignore")
    return f"{head}\n[… {len(data) - 2 * half} bytes left out …]\n{tail}"


def _show(message: Message, names: Mapping[str, str], longest: int) -> str:
    shown = [_show_block(block, message.role, names, longest) for block in message.content]
    return "\n".join(text for text in shown if text)


def _show_block(block: Block, role: str, names: Mapping[str, str], longest: int) -> str:
    match block:
        case Text(text=text):
            longest *= 4 if role == "user" else 1  # a request is to be kept word by word
            return f"[{role}] {clip(text, longest)}" if text.strip() else ""
        case ToolUse(name=name, input=arguments, invalid_input=invalid):
            return f"[call of {name}] {clip(invalid or encode(arguments).decode(), longest)}"
        case ToolResult(tool_use_id=call, content=content, is_error=failed):
            said = " ".join(block.text if isinstance(block, Text) else _name(block) for block in content)
            return f"[{'error' if failed else 'result'} of {names.get(call, 'a call')}] {clip(said, longest)}"
        case ServerToolUse(name=name, input=arguments):
            return f"[call of {name}] {clip(encode(arguments).decode(), longest)}"
        case ServerToolResult(payload=payload):
            return f"[result] {clip(encode(payload).decode(), longest)}"
        case Thinking() | Opaque():
            return ""
        case Image() | Audio() | Video() | Document():
            return f"[{role}] {_name(block)}"


def _name(block: Image | Audio | Video | Document | Opaque) -> str:
    kind = type(block).__name__.lower()
    name = block.name if isinstance(block, Document) else None
    return f"({name or kind})" if isinstance(block, Opaque) else f"({kind} {name or block.mime_type})"
