"""
All that `alloy_trio` exports.

Loaded by the first use of any of it, so that `import alloy_trio`, and with that the command line, takes no time by itself.
"""

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

_names = [name for name in globals() if not name.startswith("_") and name != "annotations"]

_export({**globals(), "__name__": "alloy_trio"}, _names)
