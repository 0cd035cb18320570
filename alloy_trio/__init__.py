"""
The agent loop for Trio: send messages to any LLM, run the tools it asks for, loop until done.

    result = await alloy_trio.run("Read pyproject.toml and tell me the version", provider="demo", tools=[read])
"""

# General layout:
#
# Every module is private (`_loop.py`); what is public is exported here and from the namespaces `alloy_trio.events`,
# `.providers`, `.tools`, `.pubsub`, `.reload`, `.sessions`, `.supervision`, `.teams`, `.telemetry`, `.otel` and `.testing`,
# each name from exactly one of them.
#
# A module imports its own floor or a lower one; tests/test_floors.py holds the table. From the ground up:
#
#   0  nouns           _errors _messages _usage _price _result _util _background
#   1  facts and kit   _codec _events _session _instruments _telemetry _gate · _estimate _history _mailbox ·
#                      _budget _reservation (the ledger) · _catalog (and its data; _catalog_make writes that) _overrides · pubsub/ sessions/ supervision/
#   2  languages       providers/_base _decoder _sse _json _classify _origin _request _checks ·
#                      tools/_tool _schema _context _output _threads
#   3  wires, edges    providers/_anthropic _anthropic_media _openai _openai_compat (what is sent), _anthropic_reply
#                      _openai_reply _openai_items _openai_compat_reply (what comes back): pure; _vendors _http _demo ·
#                      providers around providers: _meter _metered _retry ·
#                      tools/_read _write _edit _bash _paths _process _invocation _executor
#   4  the turn        _options _checks _config _controls · _emitter _state _story _turns _loop · _middleware _compaction
#                      _shorten _summary _output · providers/_names
#   5  the agent       _run · _agent (its handle) _agent_config _agent_stream _health _open_agent ·
#                      _desk _requests _living (its life) · _journal
#                      _teams · hot reload: _reload _fresh _rebind _watch
#   6  doors           repl/ testing/ _otel _otel_names __main__
#
# To understand it all, read: _messages, _events, providers/_base, _state, _turns, _loop, _run, tools/_executor; for the
# money _budget, _reservation and providers/_metered; for agents _requests, _desk, _living, and supervision/_decider.

from __future__ import annotations

from ._agent import Agent as Agent
from ._agent_config import AgentConfig as AgentConfig
from ._agent_config import AgentOptions as AgentOptions
from ._budget import Budget as Budget
from ._compaction import Compaction as Compaction
from ._errors import AgentBusy as AgentBusy
from ._errors import AgentClosed as AgentClosed
from ._errors import AgentCrashed as AgentCrashed
from ._errors import AgentIdle as AgentIdle
from ._errors import AlloyError as AlloyError
from ._errors import AuthenticationError as AuthenticationError
from ._errors import BadRequest as BadRequest
from ._errors import ConnectionFailed as ConnectionFailed
from ._errors import ContextTooLong as ContextTooLong
from ._errors import Halted as Halted
from ._errors import InvalidOption as InvalidOption
from ._errors import ModelRetry as ModelRetry
from ._errors import Overloaded as Overloaded
from ._errors import ProviderError as ProviderError
from ._errors import ProviderTimeout as ProviderTimeout
from ._errors import QueueFull as QueueFull
from ._errors import RateLimited as RateLimited
from ._errors import RequestCancelled as RequestCancelled
from ._errors import RunTimeout as RunTimeout
from ._errors import StoreError as StoreError
from ._errors import ToolError as ToolError
from ._errors import UnknownPrice as UnknownPrice
from ._errors import UnknownRequest as UnknownRequest
from ._errors import WireError as WireError
from ._gate import BlockCall as BlockCall
from ._gate import EditCall as EditCall
from ._health import Health as Health
from ._messages import Audio as Audio
from ._messages import Document as Document
from ._messages import Image as Image
from ._messages import Message as Message
from ._messages import Opaque as Opaque
from ._messages import ServerToolResult as ServerToolResult
from ._messages import ServerToolUse as ServerToolUse
from ._messages import Text as Text
from ._messages import Thinking as Thinking
from ._messages import ToolResult as ToolResult
from ._messages import ToolUse as ToolUse
from ._messages import Video as Video
from ._middleware import Middleware as Middleware
from ._middleware import RunState as RunState
from ._open_agent import open_agent as open_agent
from ._options import RunOptions as RunOptions
from ._price import Price as Price
from ._requests import Pending as Pending
from ._result import Result as Result
from ._result import ToolCall as ToolCall
from ._run import EventStream as EventStream
from ._run import run as run
from ._run import run_sync as run_sync
from ._run import stream as stream
from ._session import Session as Session
from ._usage import Usage as Usage
from ._util import export as _export
from .tools._context import ToolContext as ToolContext
from .tools._tool import tool as tool

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

_export(globals(), __all__)
