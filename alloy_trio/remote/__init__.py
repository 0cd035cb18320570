"""Agents in other processes: `serve_agents` lets others in, `connect` leads there. Needs the extra `ws`."""

from __future__ import annotations

from .._util import export as _export
from ._client import Remote as Remote
from ._client import connect as connect
from ._errors import ConnectionLost as ConnectionLost
from ._errors import NotAllowed as NotAllowed
from ._errors import ProtocolError as ProtocolError
from ._errors import Refused as Refused
from ._errors import RemoteError as RemoteError
from ._errors import UnknownAgent as UnknownAgent
from ._remote_agent import RemoteAgent as RemoteAgent
from ._remote_agent import RemotePending as RemotePending
from ._remote_subscription import RemoteSubscription as RemoteSubscription
from ._rights import Permissions as Permissions
from ._server import Address as Address
from ._server import serve_agents as serve_agents

__all__ = [
    "Address",
    "ConnectionLost",
    "NotAllowed",
    "Permissions",
    "ProtocolError",
    "Refused",
    "Remote",
    "RemoteAgent",
    "RemoteError",
    "RemotePending",
    "RemoteSubscription",
    "UnknownAgent",
    "connect",
    "serve_agents",
]

_export(globals(), __all__)
