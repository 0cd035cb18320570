"""
The Responses API: what messages become.

A message is several items there: what is said, each call and each result is one. Rules of the API that the code below does
not show by itself:

    a reasoning item stands right before what it led to, and never last                        `_assistant_items`
    an item that names its id may need the reasoning that once stood before it                 `_assistant_items`
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from .._messages import (
    Audio,
    Block,
    Document,
    Image,
    Message,
    Opaque,
    ServerToolUse,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
    Video,
)
from ._base import sent_arguments, unsupported
from ._json import as_dict, as_str, parse_arguments
from ._json import encode as encode_json
from ._openai_reply import CUSTOM_CALL
from ._transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from .._util import JSONObject
    from ._openai import OpenAI

_ENDINGS = {  # the API wants a file name, and reads the file by its ending
    "text/plain": "txt",
    "text/markdown": "md",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
}
_IMAGE_TYPES = {"image/png", "image/jpeg", "image/gif", "image/webp"}


class ResponsesTranscript(Transcript):
    """
    A conversation as items of that API, those of its newest answers as they came.

    `reasons`: whether the model does; else it refuses reasoning.
    """

    def __init__(self, provider: OpenAI, *, reasons: bool) -> None:
        self._name = provider.name
        self._reasons = reasons
        super().__init__(provider.origin)

    def _restart(self, messages: Sequence[Message]) -> None:
        super()._restart(messages)
        self._calls: dict[str, ToolUse] = {}  # so far, by id

    def _items(self, message: Message, before: list[JSONObject]) -> list[JSONObject]:  # noqa: ARG002 - items are not merged
        self._calls |= {call.id: call for call in message.tool_uses}
        if message.role == "user":
            return list(_user_items(message, self._name, self._calls))
        verbatim = message.epoch == self._epoch
        if not self._reasons and any(isinstance(block, Thinking) for block in message.content):
            verbatim = False
        return _assistant_items(message, self._name, verbatim=verbatim)


def items_behind(messages: Sequence[Message], known: int, provider: str) -> list[JSONObject]:
    """Return the items of the messages behind the first `known` ones, which the server has."""
    calls = {call.id: call for message in messages[:known] for call in message.tool_uses}
    items: list[JSONObject] = []
    for message in messages[known:]:
        calls |= {call.id: call for call in message.tool_uses}
        if message.role == "user":
            items += _user_items(message, provider, calls)
        else:
            items += _assistant_items(message, provider, verbatim=False)
    return items


def _user_items(message: Message, provider: str, calls: Mapping[str, ToolUse]) -> Iterator[JSONObject]:
    """Yield what a user's message becomes: each result an item, before all else, and what is said as one message."""
    encoded: list[JSONObject] = []
    for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
        if isinstance(block, ToolResult):
            encoded.append(_output(block, calls.get(block.tool_use_id)))
        elif isinstance(block, Opaque) and block.provider == provider:
            encoded.append(block.payload)
        else:
            encoded += _parts((block,))
    for is_part, group in itertools.groupby(encoded, key=_is_part):
        if is_part:
            yield {"type": "message", "role": "user", "content": list(group)}
        else:
            yield from group


def _is_part(encoded: JSONObject) -> bool:
    return as_str(encoded.get("type")).startswith("input_")


def _output(result: ToolResult, call: ToolUse | None) -> JSONObject:
    data = as_dict(call and call.provider_data)
    text_only = all(isinstance(block, Text) for block in result.content)
    output: JSONObject = {
        "type": f"{CUSTOM_CALL}_output" if data.get("type") == CUSTOM_CALL else "function_call_output",
        "call_id": result.tool_use_id,
        "output": result.text if text_only else _parts(result.content),
    }
    if caller := data.get("caller"):  # a program of the model's that waits for it
        output["caller"] = caller
    return output


def _parts(blocks: Iterable[Block]) -> list[JSONObject]:
    """Return text and media as parts of an input message."""
    parts: list[JSONObject] = []
    for block in blocks:
        match block:
            case Text(text=text) if not _is_blank(text):
                parts.append({"type": "input_text", "text": text})
            case Image() | Document() | Audio() | Video():
                parts.append(_media(block) or {"type": "input_text", "text": unsupported(block)})
    return parts


def _media(block: Image | Document | Audio | Video) -> JSONObject | None:
    """Return media that the API can read, or None."""
    mime_type = block.mime_type.partition(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    uri = f"data:{mime_type};base64,{block.data}" if block.data else block.uri
    match block:
        case Image() if uri and (not block.data or mime_type in _IMAGE_TYPES):
            return {"type": "input_image", **_source(uri, "image_url", "image_url")}
        case Document() if uri and not mime_type.startswith(("audio/", "video/")):
            source = _source(uri, "file_url", "file_data")
            if "file_data" in source:
                ending = _ENDINGS.get(mime_type) or mime_type.rpartition("/")[2]
                source["filename"] = block.name or f"document.{ending}"
            return {"type": "input_file", **source}
    return None


def _source(uri: str, web: str, inline: str) -> JSONObject:
    """Say where a file is: on the web, or in the address itself, or, by its id, among those uploaded to the API."""
    if uri.startswith("data:"):
        return {inline: uri}
    return {web if uri.startswith(("http:", "https:")) else "file_id": uri}


def _assistant_items(message: Message, provider: str, *, verbatim: bool) -> list[JSONObject]:
    """
    Return the items of an answer, of an interrupted one only its text.

    `verbatim`: with ids and reasoning. An answer of which any reasoning cannot go back (it came unsealed) is sent without
    ids as well: the server may know, by the id, that reasoning is missing.
    """
    blocks = message.content
    if message.interrupted:
        blocks = tuple(Text(block.text) for block in blocks if isinstance(block, Text))
    if not all(_is_sealed(block) for block in blocks if isinstance(block, Thinking)):
        verbatim = False
    items: list[JSONObject] = []
    for text_of, group in itertools.groupby(blocks, key=_message_of):
        if text_of is not None:
            items += _message(text_of, group, verbatim=verbatim)
        else:
            found = (_item(block, provider, verbatim=verbatim) for block in group)
            items += [item for item in found if item is not None]
    while items and items[-1].get("type") == "reasoning":
        items.pop()
    return items


def _is_sealed(reasoning: Thinking) -> bool:
    """Whether reasoning can go back: sealed by the server, or, from one that hides nothing, in plain text."""
    item = as_dict(reasoning.provider_data)
    return item.get("type") == "reasoning" and bool(item.get("encrypted_content") or item.get("content"))


def _message_of(block: Block) -> JSONObject | None:
    """Return the message that a block of text is from, as far as it is known; None for what is no text."""
    return as_dict(block.provider_data) if isinstance(block, Text) else None


def _message(data: JSONObject, blocks: Iterable[Block], *, verbatim: bool) -> list[JSONObject]:
    """Return the message that the text is from: with its id as the output it was, else as what was said."""
    texts = [block for block in blocks if isinstance(block, Text) and not _is_blank(block.text)]
    if not texts:
        return []
    head = {"type": "message", "role": "assistant"}
    if verbatim and "id" in data:
        parts = [{"type": "output_text", "text": each.text, "annotations": [*each.annotations]} for each in texts]
        return [{**head, **data, "content": parts}]
    phase = {"phase": data["phase"]} if "phase" in data else {}
    return [{**head, **phase, "content": "".join(each.text for each in texts)}]


def _item(block: Block, provider: str, *, verbatim: bool) -> JSONObject | None:
    """Return the item of a block that is no text, or None for one that this API would refuse."""
    match block:
        case Thinking(provider_data=raw):
            return raw if verbatim else None
        case ToolUse():
            return _call(block, verbatim=verbatim)
        case ServerToolUse(provider_data={"type": str()} as raw):
            return raw if verbatim else None  # without its reasoning, its id is refused
        case Opaque(provider=owner, payload=payload) if owner == provider:
            return payload
        case Image() | Document() | Audio() | Video():
            return {"type": "message", "role": "assistant", "content": unsupported(block)}
    return None


def _call(call: ToolUse, *, verbatim: bool) -> JSONObject:
    kept = dict(as_dict(call.provider_data))
    raw = kept.pop("arguments", None)
    if not verbatim:
        kept.pop("id", None)
    item: JSONObject = {"type": "function_call", "call_id": call.id, "name": call.name, **kept}
    if item["type"] == CUSTOM_CALL:
        return {**item, "input": as_str(call.input.get("input"))}
    arguments = sent_arguments(call)
    if raw is None or parse_arguments(raw) != (arguments, None):
        raw = encode_json(arguments).decode()
    return {**item, "arguments": raw}


def _is_blank(text: str | None) -> bool:
    return not text or text.isspace()
