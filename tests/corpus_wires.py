"""
Recorded requests, read: what each of them means, and the same conversation in our messages.

A request of any of the three wires becomes a list of `Part`s, without what is a matter of taste: how parts are grouped
into messages, whether text stands alone or in a list, cache marks, item ids, nulls, blank text.
"""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING, Any

import attrs

from alloy_trio import Audio, Document, Image, Message, Opaque, Text, ToolResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alloy_trio.providers import Anthropic, OpenAI, OpenAICompat

Row = dict[str, Any]  # an exchange of the corpus, or other JSON

_ROLES = {"developer": "system", "tool": "user"}
_TASTE = {"cache_control", "status"}
_KNOWN = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "annotations", "prefix"}
_REASONING = ("reasoning_details", "reasoning_content", "reasoning")


@attrs.frozen
class Part:
    """
    One thing that is said in a request.

    Attributes:
        role: `system`, `user` or `assistant`; `request` for what is none of the conversation.
        kind: What it is: `text`, `cited`, `reasoning`, `call`, `result`, `image`, `document`, `audio`; `other` for what
            only the provider understands, and the field's name for what is not of the conversation.
        value: What there is to compare.
        id: The call's id, of calls and results.
    """

    role: str
    kind: str
    value: Any
    id: str = ""


@attrs.frozen
class Said:
    """One message, or a run of items of one side: its role, its JSON, and what it says."""

    role: str
    raw: list[Row]
    parts: list[Part]


def read(wire: str, body: Row) -> list[Said]:
    """Return the conversation of a request."""
    match wire:
        case "anthropic":
            system = {"role": "system", "content": body.get("system") or []}
            return [_message(wire, message) for message in [system, *body["messages"]]]
        case "openai_responses":
            return _items(body)
    return [_message(wire, message) for message in body["messages"]]


def meaning(wire: str, body: Row) -> list[Part]:
    """Return what a request says, in the form in which two of them can be compared."""
    parts = [Part("request", field, body[field]) for field in ("previous_response_id", "container") if body.get(field)]
    parts += [
        Part("request", "tool", (tool.get("description") or "", tool["schema"]), tool["name"]) for tool in offered(body)
    ]
    return parts + joined([part for said in read(wire, body) for part in said.parts])


def offered(body: Row) -> list[Row]:
    """Return the definitions of the tools that the client runs, all of one form."""
    functions = [tool.get("function", tool) for tool in body.get("tools") or []]
    return [
        {**function, "schema": {"properties": {}, **(function.get("input_schema") or function["parameters"])}}
        for function in functions
        if "input_schema" in function or "parameters" in function
    ]


def joined(parts: Sequence[Part]) -> list[Part]:
    """Join the texts of one side that follow each other, as wires and clients do, and leave out blank ones."""
    out: list[Part] = []
    for part in parts:
        if part.kind == "text" and not part.value.strip():
            continue
        last = out[-1] if out else None
        if last is not None and last.kind == part.kind == "text" and last.role == part.role:
            between = "" if part.role == "assistant" else "\n\n"
            out[-1] = attrs.evolve(last, value=last.value + between + part.value)
        else:
            out.append(part)
    return out


def _message(wire: str, raw: Row) -> Said:
    given: str = raw["role"]
    role = _ROLES.get(given, given)
    parts = [_PARTS[wire](role, block) for block in _blocks(raw.get("content"))]
    if given == "tool":
        parts = [Part(role, "result", (False, joined(parts)), raw["tool_call_id"])]
    fields = (_chat_reasoning(raw.get(field)) for field in _REASONING)
    thoughts = [Part(role, "reasoning", thought) for thought in fields if thought]  # some send the same in two fields
    others = [Part(role, "other", {key: raw[key]}) for key in raw if key not in {*_KNOWN, *_REASONING} and raw[key]]
    calls = [_call(role, call["id"], call["function"], call) for call in raw.get("tool_calls") or []]
    return Said(role, [raw], [*thoughts[:1], *parts, *calls, *others])


def _blocks(content: Any) -> list[Row]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _call(role: str, call_id: str, function: Row, whole: Row) -> Part:
    """Return a call with its arguments, and what else came with it."""
    arguments = function.get("arguments", function.get("input"))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    known = {"id", "call_id", "type", "name", "arguments", "input", "function", "index"}
    extras = {key: value for key, value in _clean(whole).items() if key not in known}
    if extras.get("caller") == {"type": "direct"}:  # it says nothing: that is who calls
        del extras["caller"]
    return Part(role, "call", (function["name"], arguments, extras), call_id)


def _clean(block: Row) -> Row:
    return {key: _without_nulls(each) for key, each in block.items() if each is not None and key not in _TASTE}


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nulls(each) for key, each in value.items() if each is not None}
        case list():
            return [_without_nulls(each) for each in value]
    return value


def _anthropic_part(role: str, block: Row) -> Part:
    match block["type"]:
        case "text":
            notes = block.get("citations")
            return Part(role, "cited", (block["text"], notes)) if notes else Part(role, "text", block["text"])
        case "tool_use":
            return _call(role, block["id"], block, block)
        case "tool_result":
            content = [_anthropic_part(role, each) for each in _blocks(block.get("content"))]
            return Part(role, "result", (bool(block.get("is_error")), joined(content)), block["tool_use_id"])
        case "thinking":
            return Part(role, "reasoning", (block["thinking"], block.get("signature")))
        case "image" | "document" as kind:
            return Part(role, kind, _anthropic_source(block["source"]))
    return Part(role, "other", _clean(block))


def _anthropic_source(source: Row) -> str:
    data = source.get("data") or ""
    if source["type"] == "text":
        data = base64.b64encode(data.encode()).decode()
    return source.get("url") or source.get("file_id") or f"data:{source['media_type']};base64,{data}"


def _items(body: Row) -> list[Said]:
    items = body["input"]
    out = [Said("system", [], [Part("system", "text", body.get("instructions") or "")])]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        role = item.get("role") or ("user" if item["type"] == "function_call_output" else "assistant")
        said = Said(_ROLES.get(role, role), [item], [])
        said.parts.extend(_item_parts(said.role, item))
        if said.role == out[-1].role == "assistant":
            out[-1].raw.append(item)
            out[-1].parts.extend(said.parts)
        else:
            out.append(said)
    return out


def _item_parts(role: str, item: Row) -> list[Part]:
    match item.get("type", "message"):
        case "message":
            return [_responses_part(role, part) for part in _blocks(item.get("content"))]
        case "function_call":
            return [_call(role, item["call_id"], item, item)]
        case "function_call_output":
            content = [_responses_part(role, part) for part in _blocks(item["output"])]
            return [Part(role, "result", (False, joined(content)), item["call_id"])]
        case "reasoning":
            seal = item.get("encrypted_content")
            shown = [part["text"] for part in [*(item.get("summary") or ()), *(item.get("content") or ())]]
            return [Part(role, "reasoning", (seal, shown), "" if seal else item.get("id", ""))]
    return [Part(role, "other", _clean(item))]


def _responses_part(role: str, part: Row) -> Part:
    match part["type"]:
        case "text" | "input_text" | "output_text":
            return Part(role, "text", part["text"])
        case "input_image":
            return Part(role, "image", part.get("image_url") or part.get("file_id"))
        case "input_file":
            return Part(role, "document", part.get("file_data") or part.get("file_url") or part.get("file_id"))
    return Part(role, "other", _clean(part))


def _chat_part(role: str, part: Row) -> Part:
    match part["type"]:
        case "text":
            return Part(role, "text", part["text"])
        case "image_url":
            return Part(role, "image", part["image_url"]["url"])
        case "input_audio":
            return Part(role, "audio", (part["input_audio"]["format"], part["input_audio"]["data"]))
        case "file":
            return Part(role, "document", part["file"].get("file_data") or part["file"].get("file_id"))
    return Part(role, "other", _clean(part))


_PARTS = {"anthropic": _anthropic_part, "openai_chat": _chat_part}


def _chat_reasoning(value: Any) -> Any:
    """Return reasoning, which stands in a field as text or as a sealed list; None where it is blank."""
    if isinstance(value, list):
        return [[item.get(key) for key in ("text", "summary", "data", "signature")] for item in value]
    return value.strip() if value else None


def to_messages(wire: str, body: Row, provider: Anthropic | OpenAI | OpenAICompat) -> list[Message]:
    """Return the conversation of a request in our messages; the answers in it as if `provider` had given them."""
    messages = []
    for said in read(wire, body):
        if said.role == "assistant":
            messages.append(provider.decode(_answer(wire, said.raw)).message)
        elif said.role == "user":
            messages.append(Message.user(*to_blocks(said.parts, provider.name)))
    return messages


def system_prompt(wire: str, body: Row) -> str | None:
    """Return what a request is told ahead of the conversation."""
    first = joined([part for said in read(wire, body) for part in said.parts])[:1]
    return first[0].value if first and first[0].role == "system" else None


def _answer(wire: str, raw: list[Row]) -> bytes:
    """Return an answer that says what an earlier one, sent along in a request, has said."""
    match wire:
        case "anthropic":
            answer: Row = {"type": "message", "content": raw[0]["content"], "stop_reason": "end_turn"}
        case "openai_responses":
            answer = {"output": [{"type": "message", **item} for item in raw], "status": "completed"}
        case _:
            answer = {"choices": [{"message": raw[0], "finish_reason": "stop"}]}
    return json.dumps(answer).encode()


def to_blocks(parts: Sequence[Part], provider: str) -> Iterator[Any]:
    """Yield a user's parts as blocks."""
    for part in parts:
        match part.kind:
            case "text":
                yield Text(part.value)
            case "image":
                yield _media(Image, "image/*", part.value)
            case "document":
                yield _media(Document, "application/pdf", part.value)
            case "audio":
                yield Audio(f"audio/{part.value[0]}", part.value[1])
            case "result":
                is_error, content = part.value
                yield ToolResult(part.id, tuple(to_blocks(content, provider)), is_error=is_error)
            case _:
                yield Opaque(provider, part.value)


def _media(kind: type[Image | Document], mime_type: str, source: str) -> Image | Document:
    head, _, data = source.removeprefix("data:").partition(";base64,")
    return kind(head, data=data) if source.startswith("data:") else kind(mime_type, uri=source)
