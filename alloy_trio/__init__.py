"""
The agent loop for Trio: send messages to any LLM, run the tools it asks for, loop until done.

    result = await alloy_trio.run("Read pyproject.toml and tell me the version", provider="demo", tools=[read])
"""

# General layout:
#
# Every module is private (`_loop.py`); what is public is exported here and from the namespaces `alloy_trio.events`,
# `.providers`, `.tools`, `.guards`, `.pubsub`, `.reload`, `.sessions`, `.supervision`, `.teams`, `.fleet`, `.telemetry`,
# `.otel` and `.testing`, each name from exactly one of them.
#
# A module imports its own floor or a lower one; tests/test_floors.py holds the table. From the ground up:
#
#   0  nouns           _errors _messages _usage _price _result _util _background
#   1  facts and kit   _codec _far _events _session _instruments _telemetry _gate · _estimate _history _mailbox ·
#                      _budget _reservation (the ledger) · _catalog (and its data; _catalog_make writes that) _overrides · pubsub/ sessions/ supervision/
#   2  languages       providers/_base _decoder _sse _json _classify _origin _request _checks _secret _address _transcript · HTTP: _exchange _http1 ·
#                      tools/_tool _schema _context _output _threads
#   3  wires, edges    providers/_anthropic _anthropic_messages _anthropic_media _openai _openai_messages _openai_compat
#                      _openai_compat_messages (what is sent), _anthropic_reply _anthropic_plain _openai_reply _openai_plain
#                      _openai_items _openai_compat_reply _openai_compat_parts _openai_compat_plain (what comes back): pure; _vendors _demo ·
#                      the network: _http (a provider) over _transport _pool _streams, or over _httpx;
#                      _httpx_transport (the first under the second) ·
#                      providers around providers: _meter _metered _retry ·
#                      tools/_read _write _edit _bash _bash_sandboxed _paths _linkfree _process _spawn _limits _seccomp
#                      _sandbox _invocation _settings _executor
#   4  the turn        _options _checks _config _controls · _emitter _state _story _turns _loop · _middleware _compaction
#                      _shorten _summary _output _guards · providers/_names
#   5  the agent       _public (what is exported here) · _run · _agent (its handle) _agent_config _agent_stream _health _open_agent ·
#                      _desk _requests _listening _living (its life) · _journal
#                      _teams · hot reload: _reload _fresh _rebind _watch
#   6  doors           repl/ remote/ fleet/ testing/ _otel _otel_names __main__
#
# To understand it all, read: _messages, _events, providers/_base, _state, _turns, _loop, _run, tools/_executor; for the
# money _budget, _reservation and providers/_metered; for agents _requests, _desk, _living, and supervision/_decider.

from __future__ import annotations

import typing as _typing

if _typing.TYPE_CHECKING:
    from ._public import *  # noqa: F403 - what a type checker sees; the rest of us get it from `__getattr__`

__all__ = [
    "Agent",
    "AgentBusy",
    "AgentClosed",
    "AgentConfig",
    "AgentCrashed",
    "AgentIdle",
    "AgentOptions",
    "AlloyError",
    "Audio",
    "AuthenticationError",
    "BadRequest",
    "BlockCall",
    "Budget",
    "Compaction",
    "ConnectionFailed",
    "ContextTooLong",
    "Document",
    "EditCall",
    "EventStream",
    "Halted",
    "Health",
    "Image",
    "InvalidOption",
    "Message",
    "Middleware",
    "ModelRetry",
    "Opaque",
    "Overloaded",
    "Pending",
    "Price",
    "ProviderError",
    "ProviderTimeout",
    "QueueFull",
    "RateLimited",
    "RequestCancelled",
    "Result",
    "RunOptions",
    "RunState",
    "RunTimeout",
    "ServerToolResult",
    "ServerToolUse",
    "Session",
    "StoreError",
    "Text",
    "Thinking",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolResult",
    "ToolUse",
    "UnknownPrice",
    "UnknownRequest",
    "Usage",
    "Video",
    "WireError",
    "open_agent",
    "run",
    "run_sync",
    "stream",
    "tool",
]


if not _typing.TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Load everything, at the first use of any of it."""
        if not name.startswith("_"):
            from . import _public  # noqa: PLC0415 - see there

            globals().update({each: getattr(_public, each) for each in __all__})
            if name in globals():  # a name, or a namespace that has been loaded with them
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
