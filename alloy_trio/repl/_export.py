"""A conversation as Markdown, to be read by people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .._messages import Text, Thinking, ToolResult, ToolUse
from ..providers._json import encode

if TYPE_CHECKING:
    from .._messages import Block, Message
    from .._session import Session


def to_markdown(session: Session) -> str:
    """Return a conversation as a document: who said what, which tools were called with what result."""
    parts = [f"# {session.id}", f"*{session.created_at:%Y-%m-%d %H:%M} UTC, {len(session.messages)} messages*"]
    for message in session.messages:
        if heading := _heading(message):
            parts.append(heading)
        parts += [text for block in message.content if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def _heading(message: Message) -> str:
    if message.role == "assistant":
        return f"## {message.model or 'Assistant'}"
    return "" if message.tool_results else "## User"


def _block(block: Block) -> str:
    match block:
        case Text(text=text):
            return text
        case Thinking(text=text):
            return "\n".join(f"> {line}" for line in text.splitlines())
        case ToolUse(name=name, input=arguments):
            return f"**{name}**\n\n{_fenced(encode(arguments).decode(), 'json')}"
        case ToolResult(outcome=outcome, text=text):
            return f"*{outcome}*\n\n{_fenced(text)}"
        case _:
            return f"*[{type(block).__name__}]*"


def _fenced(text: str, language: str = "") -> str:
    """Put a text into a fence that is longer than any in it."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
