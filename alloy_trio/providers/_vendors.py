"""
Who speaks Chat Completions, where, and how each differs from OpenAI.

Everybody implements the same API a little differently. What a server takes is a flag of `Quirks`, set here for the vendors
that were seen to need it; `OpenAICompat` looks its flags up by the host of `base_url`. Servers on one's own machine have
none: what they accept depends on the model they run. What a server answers is read for all of them alike, by the tables of
words below: gateways pass on the words of others.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import attrs

from .._usage import Usage
from ._base import StopReason
from ._json import as_dict, as_int

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .._util import JSONObject


@attrs.frozen(kw_only=True)
class Quirks:
    """
    How a server of the Chat Completions API differs from the common form.

    To change one flag of a known vendor: `attrs.evolve(provider.quirks, tool_media=True)`.

    Attributes:
        cap_field: The field with the cap on the answer. OpenAI's reasoning models refuse `max_tokens`.
        system_role: The role of the system prompt.
        stream_options: Whether streaming requests may ask for usage by `stream_options`; Mistral refuses that, and
            reports usage unasked.
        merge_user_messages: Make one user message of several in a row, which the server refuses. Only with this flag
            does a later message change how an earlier one was sent.
        assistant_after_tool: Put a short assistant message between tool results and a user message, for servers and
            chat templates that refuse the one after the other.
        content_parts: Send all text as a list of parts. Otherwise text is a string, and a list appears only where a
            message has more than text: servers of text-only models know no lists.
        send_reasoning: Whether reasoning goes back to where it came from, in the field it came in. Tool loops of most
            reasoning models want it; some servers refuse it.
        reasoning_field: The field it goes back in, whatever it came in. None: the one it came in, since the servers
            that take `reasoning` refuse `reasoning_content` (Groq, Cerebras) and the other way round.
        require_reasoning_content: Assistant messages without `reasoning_content` are refused, so those that have no
            reasoning get a blank.
        strict_tools: Whether `strict` may be sent with a tool.
        tool_id_pattern: What a tool call's id has to look like, as a regular expression; others are sent as a hash of
            nine letters and digits. Mistral wants exactly those, OpenAI at most 40 characters.
        tool_result_name: Send the tool's name with its result.
        tool_media: Whether a tool's result may have images. Otherwise the model is told that there was one.
        images: Whether a user's message may have images.
        file_parts: Whether documents can be sent, as parts of type `file`.
        output_schema: Whether the answer can be held to a JSON Schema, for all models and beside tools. Many refuse the one
            with the other (Groq, Cerebras, Gemini before 3), and servers on one's own machine then call no tool any more.
    """

    cap_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system_role: Literal["system", "developer"] = "system"
    stream_options: bool = True
    merge_user_messages: bool = False
    assistant_after_tool: bool = False
    content_parts: bool = False
    send_reasoning: bool = True
    reasoning_field: Literal["reasoning_content", "reasoning"] | None = None
    require_reasoning_content: bool = False
    strict_tools: bool = True
    tool_id_pattern: str | None = None
    tool_result_name: bool = False
    tool_media: bool = False
    images: bool = True
    file_parts: bool = False
    output_schema: bool = False


@attrs.frozen
class Vendor:
    """
    A known server of the Chat Completions API.

    Attributes:
        base_url: Where it is.
        env_key: The environment variable with the key, by the vendor's documentation; None: no key is needed.
        quirks: How it differs.
        hosts: Further domains that are the vendor's. A domain stands for everything below it.
    """

    base_url: str
    env_key: str | None = None
    quirks: Quirks = Quirks()
    hosts: tuple[str, ...] = ()


# Reasoning models behind these refuse a tool loop without the reasoning that led to it.
_REASONING_BACK: Final = Quirks(reasoning_field="reasoning_content", require_reasoning_content=True)

VENDORS: Final[Mapping[str, Vendor]] = MappingProxyType(
    {
        "ollama": Vendor("http://localhost:11434/v1"),
        "llamacpp": Vendor("http://localhost:8080/v1"),
        "vllm": Vendor("http://localhost:8000/v1"),
        "lmstudio": Vendor("http://localhost:1234/v1"),
        "openai-chat": Vendor(  # `openai` is the Responses API; Azure serves both under one address
            "https://api.openai.com/v1",
            "OPENAI_API_KEY",
            Quirks(cap_field="max_completion_tokens", tool_id_pattern=r".{1,40}", file_parts=True, output_schema=True),
            hosts=("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com"),
        ),
        "openrouter": Vendor("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", Quirks(file_parts=True)),
        "groq": Vendor("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
        "together": Vendor(
            "https://api.together.xyz/v1",
            "TOGETHER_API_KEY",
            Quirks(strict_tools=False),
            hosts=("api.together.ai",),
        ),
        "mistral": Vendor(
            "https://api.mistral.ai/v1",
            "MISTRAL_API_KEY",
            Quirks(stream_options=False, tool_id_pattern=r"[a-zA-Z0-9]{9}", output_schema=True),
        ),
        "deepseek": Vendor(
            "https://api.deepseek.com",
            "DEEPSEEK_API_KEY",
            attrs.evolve(_REASONING_BACK, images=False),
            hosts=("deepseek.com",),
        ),
        "xai": Vendor("https://api.x.ai/v1", "XAI_API_KEY", Quirks(output_schema=True)),
        "gemini": Vendor("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
        "moonshot": Vendor(
            "https://api.moonshot.ai/v1",
            "MOONSHOT_API_KEY",
            attrs.evolve(_REASONING_BACK, strict_tools=False),
            hosts=("api.moonshot.cn",),
        ),
        "zai": Vendor(
            "https://api.z.ai/api/paas/v4",
            "ZAI_API_KEY",
            Quirks(reasoning_field="reasoning_content"),
            hosts=("z.ai", "bigmodel.cn"),
        ),
        "fireworks": Vendor("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
        "cerebras": Vendor("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
        "perplexity": Vendor("https://api.perplexity.ai", "PERPLEXITY_API_KEY", Quirks(merge_user_messages=True)),
        "nvidia": Vendor("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", Quirks(strict_tools=False)),
        "sambanova": Vendor("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
        "dashscope": Vendor(
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            "DASHSCOPE_API_KEY",
            hosts=("dashscope.aliyuncs.com",),
        ),
        "minimax": Vendor("https://api.minimax.io/v1", "MINIMAX_API_KEY"),
    }
)
"""The vendors by their short names, as in `"groq:model"`."""


FEE_FIELDS: Final = ("plugins", "web_search_options", "search_parameters")
"""Fields of a request that ask for tools which the server runs, for a fee: OpenRouter, OpenAI and Perplexity, xAI."""


def vendor_at(base_url: str) -> Vendor | None:
    """Return the vendor whose address this is, if it is a known one."""
    host = urlsplit(base_url).hostname or ""
    for vendor in VENDORS.values():
        for domain in (urlsplit(vendor.base_url).hostname, *vendor.hosts):
            if host == domain or host.endswith(f".{domain}"):
                return vendor
    return None


def quirks_for(base_url: str) -> Quirks:
    """Return the quirks of the vendor whose address this is, or none."""
    vendor = vendor_at(base_url)
    return Quirks() if vendor is None else vendor.quirks


STOP_REASONS: Final[Mapping[str, StopReason]] = MappingProxyType(
    {
        "stop": StopReason.END_TURN,
        "end_turn": StopReason.END_TURN,
        "stop_sequence": StopReason.END_TURN,
        "eos": StopReason.END_TURN,  # Together
        "tool_calls": StopReason.TOOL_USE,
        "tool_use": StopReason.TOOL_USE,
        "function_call": StopReason.TOOL_USE,
        "length": StopReason.MAX_TOKENS,
        "max_tokens": StopReason.MAX_TOKENS,
        "max_output_tokens": StopReason.MAX_TOKENS,
        "model_length": StopReason.MAX_TOKENS,  # Mistral
        "model_context_window_exceeded": StopReason.MAX_TOKENS,  # Z.ai
        "content_filter": StopReason.REFUSAL,
        "refusal": StopReason.REFUSAL,
        "sensitive": StopReason.REFUSAL,  # Z.ai
    }
)
"""What a finish reason means; in lower case, as some gateways shout."""

FAILURES: Final = frozenset({"error", "network_error", "insufficient_system_resource"})
"""Finish reasons of an answer that is none: OpenRouter and Mistral, Z.ai, DeepSeek."""

REASONING_FIELDS: Final = ("reasoning_content", "reasoning", "reasoning_text")
"""Where reasoning may be; the first that has some. Servers that fill two of them say the same in both."""

SEALED_FIELDS: Final = ("reasoning_details", "thinking_blocks")
"""Lists of a message that go back as they came: reasoning of OpenRouter, of Claude behind LiteLLM, with their seals."""

CALL_EXTRAS: Final = ("extra_content", "provider_specific_fields")
"""Objects of a call that go back as they came: thought signatures, of Gemini's endpoint and of LiteLLM."""


def grows(item: JSONObject) -> str:
    """Return the field of a sealed item that a stream sends in pieces; `""` if it comes whole."""
    match item.get("type"):
        case "reasoning.text":
            return "text"
        case "reasoning.summary":
            return "summary"
        case "thinking":
            return "thinking"
    return ""


class _Pieces(list[str]):
    """A text in pieces, inside of JSON that grows."""


def grow(known: JSONObject, news: JSONObject, growing: Collection[str]) -> None:
    """Add to an object what a stream says of it: pieces of the `growing` texts, and the latest of everything else."""
    for key, value in news.items():
        if key in growing and isinstance(value, str):
            if not isinstance(known.get(key), _Pieces):
                known[key] = _Pieces()
            known[key].append(value)
        elif value is not None or key not in known:
            known[key] = value


def joined(value: Any) -> Any:
    """Return JSON that grew, of any shape, as it stands in a whole answer."""
    match value:
        case _Pieces():
            return "".join(value)
        case dict():
            return {key: joined(member) for key, member in value.items()}
        case list():
            return [joined(member) for member in value]
    return value


def seal(known: list[JSONObject], items: list[JSONObject]) -> None:
    """Add items to a sealed list; in a stream an item may be more of the one before it."""
    for item in items:
        text = grows(item)
        same = known and all(item.get(key) in (None, known[-1].get(key)) for key in ("type", "index", "id"))
        if not (text and same):
            known.append({})
        grow(known[-1], item, {text})


def made_up_id(*parts: object) -> str:
    """Return an id that follows from `parts`: nine letters and digits, which every server takes."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[number // 36**place % 36] for place in range(9))


_BARE_USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}


def read_usage(usage: JSONObject, server_tools: int = 0) -> Usage:
    """
    Read a usage report; `server_tools` is how many calls of the server's own tools were seen, should it not say.

    Prompt tokens include cached ones. Completion tokens include reasoning, except at xAI and at Gemini's endpoint, which
    count it in the total only.
    """
    prompt, total = as_int(usage.get("prompt_tokens")), as_int(usage.get("total_tokens"))
    if not server_tools and usage.keys() <= _BARE_USAGE:
        return Usage(prompt, max(as_int(usage.get("completion_tokens")), total - prompt if prompt else 0))
    details, prompt_details = (as_dict(usage.get(f"{kind}_tokens_details")) for kind in ("completion", "prompt"))
    read = _first(prompt_details.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cached_tokens"))
    written = _first(
        prompt_details.get("cache_write_tokens"),  # OpenAI, OpenRouter; LiteLLM has the two others
        prompt_details.get("cache_creation_tokens"),
        usage.get("cache_creation_input_tokens"),
    )
    return Usage(
        input_tokens=max(prompt - read - written, 0),
        output_tokens=max(as_int(usage.get("completion_tokens")), total - prompt if prompt else 0),
        cache_creation_input_tokens=written,
        cache_read_input_tokens=read,
        reasoning_tokens=_first(details.get("reasoning_tokens"), usage.get("reasoning_tokens")),
        server_tool_calls=_first(
            as_dict(usage.get("server_tool_use_details")).get("tool_calls_executed"), server_tools
        ),
    )


def _first(*counts: object) -> int:
    """Return the first count that is given."""
    return next((as_int(count) for count in counts if count is not None), 0)
