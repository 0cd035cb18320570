"""
What the Responses API answers, whole or streamed.

An answer is a list of *items*: messages, reasoning, calls. A stream tells of each item by its place in that list:

    response.created               the response, still empty
    response.output_item.added     an item begins
    response.*.delta               a piece of one field of it
    response.output_item.done      the item, whole
    response.completed             the response, whole: or `incomplete`, `failed`, or an `error` of its own

The decoder passes the pieces on and takes the items from `done`, or, where a server leaves that out, from the end of the
stream, or from the pieces themselves. `Block`s and `Response` are made of items in one place, so that an answer says the
same whichever way it came.

An item that has no block of ours becomes an `Opaque`; what a block has no field for is its `provider_data`. So everything
can go back as it came, which a model's sealed reasoning depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import WireError
from .._events import BlockEnd, TextDelta, ThinkingDelta, ToolInputDelta
from .._messages import Block, Opaque, ServerToolUse, Text, Thinking, ToolUse
from .._usage import Usage
from ._base import Response, StopReason
from ._classify import from_error
from ._decoder import Decoder
from ._json import as_dict, as_dicts, as_int, as_str, parse_arguments
from ._json import decode as decode_json
from ._json import encode as encode_json
from ._openai_items import GrowingItem, ids_of, match_item, same_kind
from ._openai_plain import PlainText, plain_text

if TYPE_CHECKING:
    from .._util import JSONObject
    from ._base import WireEvents
    from ._http import HTTPProvider
    from ._sse import SSEEvent

CUSTOM_CALL = "custom_tool_call"

# By status, or by the reason of one that is `incomplete`.
_STOP_REASONS = {
    "": StopReason.END_TURN,
    "completed": StopReason.END_TURN,
    "incomplete": StopReason.MAX_TOKENS,  # without a reason, as some servers leave it out
    "max_output_tokens": StopReason.MAX_TOKENS,
    "content_filter": StopReason.REFUSAL,
}

_FAILED = {"failed", "cancelled"}

# Calls that the provider has run when we hear of them. Others (a shell, a patch, a computer) are the client's to run, in a
# protocol of their own.
_SERVER_CALLS = {
    "code_execution_call",
    "code_interpreter_call",
    "file_search_call",
    "image_generation_call",
    "mcp_call",
    "view_image_call",
    "view_x_video_call",
    "web_search_call",
    "x_search_call",
}

# xAI reports the steps of its X search as calls of custom tools, which it has run itself.
_XAI_STEPS = {"x_keyword_search", "x_semantic_search", "x_thread_fetch", "x_user_search", "view_x_video"}

# Those that cost nothing but their tokens.
_FREE_CALLS = {"mcp_call", "tool_search_call", "view_image_call", "view_x_video_call"}

_TEXT = "response.output_text.delta"

# What grows by a delta, and the field that numbers its parts.
_DELTAS = {
    _TEXT: ("text", "content_index"),
    "response.refusal.delta": ("refusal", "content_index"),
    "response.reasoning_summary_text.delta": ("summary", "summary_index"),
    "response.reasoning_text.delta": ("reasoning", "content_index"),
    "response.function_call_arguments.delta": ("arguments", ""),
    "response.custom_tool_call_input.delta": ("input", ""),
}


def decode(body: bytes, provider: HTTPProvider, root: str | None = None) -> Response:
    """
    Say what a whole answer means.

    Args:
        body: The answer.
        provider: Who asked.
        root: The response that the user gave to continue from; it is noted with the new one, which stands behind it.

    Raises:
        ProviderError: The answer is an error, or none at all.
    """
    reply = decode_json(body)
    response = as_dict(reply)
    _raise_failure(response)
    if not isinstance(response.get("output"), list):
        if isinstance(reply, list) and reply:
            _raise_failure(as_dict(reply[0]))
        raise WireError("the answer is no response: it has no output; is base_url a server of the Responses API?")
    content = [block for item in as_dicts(response["output"]) for block in _blocks(item, provider.name)]
    return _response(response, tuple(content), provider, root)


def _raise_failure(response: JSONObject) -> None:
    """Raise the error that a response reports. One that was completed has none, whatever else it says."""
    status, error = as_str(response.get("status")), response.get("error")
    if status not in _FAILED and (not error or status in _STOP_REASONS.keys() - {""}):
        return
    if isinstance(error, str):  # xAI: {"code": …, "error": "what went wrong"}
        error = {"message": error, "code": response.get("code")}
    raise from_error(error or {"message": f"the response ended as {status}, without a reason"})


def _response(response: JSONObject, content: tuple[Block, ...], provider: HTTPProvider, root: str | None) -> Response:
    metadata: JSONObject = {}
    details = as_dict(response.get("incomplete_details"))
    word = as_str(response.get("status"))
    if word == "incomplete":
        word = as_str(details.get("reason")) or word
    if word not in _STOP_REASONS:
        metadata["raw_stop_reason"] = word
    stop_reason = _STOP_REASONS.get(word, StopReason.END_TURN)
    if refusal := _refusal(content):
        stop_reason = StopReason.REFUSAL
    if stop_reason is StopReason.REFUSAL and (refusal := refusal or details):
        metadata["refusal"] = refusal
    if stop_reason is StopReason.END_TURN and any(isinstance(block, ToolUse) for block in content):
        stop_reason = StopReason.TOOL_USE
    if citations := [note for block in content if isinstance(block, Text) for note in block.annotations]:
        metadata["provider_response"] = {"citations": citations}
    return Response(
        message=provider.message(content, as_str(response.get("model")) or None, _state(response, root)),
        stop_reason=stop_reason,
        usage=_usage(as_dict(response.get("usage")), content),
        metadata=metadata,
    )


def _state(response: JSONObject, root: str | None) -> JSONObject | None:
    """Return what is to be known of a response in order to continue from it."""
    if not (response_id := as_str(response.get("id"))):
        return None
    state: JSONObject = {"response_id": response_id}
    if root is not None:
        state["root"] = root
    if response.get("store") is False:  # the server has not kept it: nothing can continue from it
        state["store"] = False
    return state


def _refusal(content: tuple[Block, ...]) -> JSONObject | None:
    """Return the part of the answer in which the model refuses, if there is one."""
    for block in content:
        if isinstance(block, Opaque):
            for part in as_dicts(block.payload.get("content")):
                if part.get("type") == "refusal":
                    return part
    return None


def _usage(usage: JSONObject, content: tuple[Block, ...]) -> Usage:
    """Count the tokens. Those read from the cache, and those written to it, are part of the input as it is reported."""
    details = as_dict(usage.get("input_tokens_details"))
    read, written = as_int(details.get("cached_tokens")), as_int(details.get("cache_write_tokens"))
    ran = as_int(usage.get("num_server_side_tools_used"))  # xAI
    free = as_int(as_dict(usage.get("server_side_tool_usage_details")).get("mcp_calls"))
    return Usage(
        input_tokens=max(0, as_int(usage.get("input_tokens")) - read - written),
        output_tokens=as_int(usage.get("output_tokens")),
        cache_creation_input_tokens=written,
        cache_read_input_tokens=read,
        reasoning_tokens=as_int(as_dict(usage.get("output_tokens_details")).get("reasoning_tokens")),
        server_tool_calls=max(0, ran - free) if ran else sum(map(_costs_a_fee, content)),
    )


def _costs_a_fee(block: Block) -> bool:
    """Whether a call that the provider ran is billed as such: of a web search's actions, only the search is."""
    match isinstance(block, ServerToolUse) and block.provider_data:
        case {"type": "web_search_call", "action": {"type": str(action)}}:
            return action == "search"
        case {"type": kind}:
            return kind not in _FREE_CALLS
    return False


def _blocks(item: JSONObject, provider: str) -> list[Block]:
    """Turn an item into blocks: one for each part of a message, one for anything else."""
    match as_str(item.get("type")):
        case "message":
            return _message(item, provider)
        case "reasoning":
            summary = "".join(as_str(part.get("text")) for part in as_dicts(item.get("summary")))
            return [Thinking(summary, provider_data=item)]
        case "function_call":
            return [_function_call(item)]
        case kind if _ran_there(kind, item):
            name = as_str(item.get("name")) or kind.removesuffix("_call")
            return [ServerToolUse(as_str(item.get("id")) or _call_id(item), name, _server_input(item), item)]
        case "custom_tool_call":
            return [_custom_call(item)]
    return [Opaque(provider, item)] if item else []


def _message(item: JSONObject, provider: str) -> list[Block]:
    rest = _rest(item, "type", "role", "content") or None
    content = item.get("content")
    if isinstance(content, str):
        return [Text(content, (), rest)] if content else []
    blocks: list[Block] = []
    for part in as_dicts(content):
        if part.get("type") not in {"output_text", "text"}:
            # Alone in a message without an id: an id may stand only once in what is sent back.
            blocks.append(Opaque(provider, {**_rest(item, "id"), "content": [part]}))
        elif (text := as_str(part.get("text"))) or part.get("annotations"):
            notes: list[Any] = as_dicts(part.get("annotations"))
            blocks.append(Text(text, notes, rest))
    return blocks


def _function_call(item: JSONObject) -> ToolUse:
    raw = item.get("arguments")
    arguments, invalid = parse_arguments(raw)
    rest = _rest(item, "type", "call_id", "name", "arguments")
    if arguments and isinstance(raw, str) and raw != encode_json(arguments).decode():
        rest["arguments"] = raw  # to be sent back letter by letter
    return ToolUse(_call_id(item), as_str(item.get("name")), arguments, invalid, rest or None)


def _custom_call(item: JSONObject) -> ToolUse:
    """Take a call whose input is free text, not JSON: a tool that answers it has one parameter, `input`."""
    text = {"input": as_str(item.get("input"))}
    rest = _rest(item, "call_id", "name", "input")
    return ToolUse(_call_id(item), as_str(item.get("name")), text, None, rest)


def _call_id(item: JSONObject) -> str:
    return as_str(item.get("call_id")) or as_str(item.get("id"))


def _ran_there(kind: str, item: JSONObject) -> bool:
    match kind:
        case "tool_search_call":
            return item.get("execution") != "client"
        case "custom_tool_call":
            return as_str(item.get("name")) in _XAI_STEPS
    return kind in _SERVER_CALLS


def _server_input(item: JSONObject) -> JSONObject:
    """Return what a call that the provider ran was asked for: each kind has it in a field of its own."""
    if isinstance(action := item.get("action"), dict):
        return action
    arguments, invalid = parse_arguments(item.get("arguments") or item.get("input"))
    if invalid is not None:
        return {"input": invalid}
    return arguments or {key: item[key] for key in ("code", "queries", "revised_prompt") if item.get(key)}


def _rest(item: JSONObject, *known: str) -> JSONObject:
    return {key: value for key, value in item.items() if key not in known and value is not None}


class OpenAIDecoder(Decoder):
    """Decodes one streamed answer. `root` as in `decode`."""

    def __init__(self, provider: HTTPProvider, root: str | None = None) -> None:
        super().__init__()
        self._provider = provider
        self._root = root
        self._items: list[GrowingItem] = []  # in the order of the answer
        self._released = 0  # how many of them have become content
        self._content: list[Block] = []
        self._where: tuple[str, int | None, int] | None = None  # the text of the last event belongs, if it was text
        self._pieces: list[str] = []  # of text there
        self._whole: JSONObject | None = None  # the whole response, with which the stream ends

    def is_complete(self) -> bool:
        return self._whole is not None

    def _response(self) -> Response:
        return _response(self._whole or {}, tuple(self._content), self._provider, self._root)

    def _event(self, event: SSEEvent) -> WireEvents:
        if self._whole is not None:
            return []
        if event.event in {None, _TEXT} and (text := plain_text(event.data)) is not None:
            return self._text(text)
        self._where = None
        return [] if event.data.strip() == b"[DONE]" else self._read(event)

    def _read(self, event: SSEEvent) -> WireEvents:
        data = as_dict(decode_json(event.data))
        kind = as_str(data.get("type")) or event.event or ""
        match kind:
            case "response.output_item.added":
                self._item(data).begin(as_dict(data.get("item")))
            case "response.output_item.done":
                self._item(data).close(as_dict(data.get("item")))
                return self._release()
            case "response.completed" | "response.incomplete" | "response.done":
                status = kind.removeprefix("response.").removesuffix("done")
                return self._end({"status": status} | _rest(as_dict(data.get("response"))))
            case "response.failed" | "response.cancelled":
                _raise_failure({**_rest(data), **_rest(as_dict(data.get("response"))), "status": kind[9:]})
            case "error" | "response.error":
                raise from_error(data.get("error") or _rest(data, "type", "sequence_number"))
            case _ if kind in _DELTAS:
                return self._delta(data, *_DELTAS[kind])
            case _ if error := data.get("error"):
                raise from_error(error)
            case "response.in_progress":
                return self._report(_usage(as_dict(as_dict(data.get("response")).get("usage")), tuple(self._content)))
        return []

    def _item(self, event: JSONObject) -> GrowingItem:
        """
        Return the item that an event is about.

        An item begins with `added`; later events are about the open one of that id, else of that place, else the newest.
        """
        place = None if event.get("output_index") is None else as_int(event["output_index"])
        raw = as_dict(event.get("item"))
        open_items = [item for item in self._items[self._released :] if not item.closed]
        there = next((item for item in reversed(open_items) if item.place == place), None)
        if event.get("type") == "response.output_item.added":
            return there if there is not None and not there.raw else self._begin(place)
        ids = {as_str(event.get("item_id")), *ids_of(raw)} - {""}
        known = next((item for item in open_items if ids & ids_of(item.raw)), None)
        if known is None and there is not None and same_kind(there.raw, raw):
            known = there
        if known is None and place is None and open_items:
            known = open_items[-1]
        return known or self._begin(place)

    def _begin(self, place: int | None) -> GrowingItem:
        if place is None:
            place = max((item.place for item in self._items), default=-1) + 1
        item = GrowingItem(place)
        self._items.append(item)
        self._items[self._released :] = sorted(self._items[self._released :], key=lambda item: item.place)
        return item

    def _text(self, text: PlainText) -> WireEvents:
        """Take a piece of text, as `_delta` would. Where the last one belonged nothing has changed, and it is not looked for."""
        where = (text.item_id, text.output_index, text.content_index)
        if where != self._where:
            item = self._item({"item_id": text.item_id, "output_index": text.output_index})
            self._where, self._pieces = where, item.pieces.setdefault(("text", text.content_index), [])
        self._pieces.append(text.delta)
        return [TextDelta(text.delta)]

    def _delta(self, event: JSONObject, kind: str, part: str) -> WireEvents:
        item = self._item(event)
        if item.closed or not (piece := as_str(event.get("delta"))):
            return []
        item.pieces.setdefault((kind, as_int(event.get(part))), []).append(piece)
        match kind:
            case "text":
                return [TextDelta(piece)]
            case "summary" | "reasoning":
                return [ThinkingDelta(piece)]
            case "arguments" if item.raw:
                return [ToolInputDelta(_call_id(item.raw), as_str(item.raw.get("name")), piece)]
        return []

    def _release(self) -> WireEvents:
        """Hand over what is complete. An item waits for those before it: blocks keep the order of the answer."""
        events: WireEvents = []
        while self._released < len(self._items) and (item := self._items[self._released]).closed:
            events += self._hand_over(item)
            self._released += 1
        return events

    def _hand_over(self, item: GrowingItem) -> WireEvents:
        blocks = _blocks(item.whole(), self._provider.name)
        self._content += blocks
        return [*item.unsaid(blocks), *(BlockEnd(block) for block in blocks)]

    def _end(self, response: JSONObject) -> WireEvents:
        """Take the end of the stream, and from it the items that have not come whole before."""
        _raise_failure(response)
        self._whole = response
        output = as_dicts(response.get("output"))
        strangers = list(self._items)
        for place, raw in enumerate(output):
            item = match_item(strangers, raw, place)
            if item is None:
                item = self._begin(place)
            else:
                strangers.remove(item)
            item.close(raw)
        left = self._items[self._released :]
        events = [event for item in left if item.closed or not output for event in self._hand_over(item)]
        return [*events, *self._report(_usage(as_dict(response.get("usage")), tuple(self._content)))]
