"""Fakes and assertions for programs that run agents: no network, no key, and with `autojump_clock` no time."""

from __future__ import annotations

from .._util import export as _export
from ._asserts import assert_no_orphans as assert_no_orphans
from ._asserts import assert_tool_called as assert_tool_called
from ._asserts import last_text as last_text
from ._asserts import refute_tool_called as refute_tool_called
from ._asserts import tool_calls as tool_calls
from ._chaos import cancel_at_checkpoint as cancel_at_checkpoint
from ._chaos import cancel_at_every_checkpoint as cancel_at_every_checkpoint
from ._fault_server import FaultServer as FaultServer
from ._faults import Fault as Fault
from ._script import ScriptedProvider as ScriptedProvider
from ._script import delay as delay
from ._script import error as error
from ._script import run_with_responses as run_with_responses
from ._script import text as text
from ._script import tool_call as tool_call

__all__ = [
    "Fault",
    "FaultServer",
    "ScriptedProvider",
    "assert_no_orphans",
    "assert_tool_called",
    "cancel_at_checkpoint",
    "cancel_at_every_checkpoint",
    "delay",
    "error",
    "last_text",
    "refute_tool_called",
    "run_with_responses",
    "text",
    "tool_call",
    "tool_calls",
]

_export(globals(), __all__)
