"""
Providers: values that turn a `Request` into a `Response`.

`Anthropic` (Messages API), `OpenAI` (Responses API) and `OpenAICompat` (Chat Completions, at any address) speak HTTP; `Demo` is
offline. Anything with an async `complete(request)` is a `Provider`.
"""

from __future__ import annotations

from .._catalog import Catalog as Catalog
from .._catalog import ModelInfo as ModelInfo
from .._events import ProviderEvent as ProviderEvent
from .._events import UsageUpdate as UsageUpdate
from .._util import export as _export
from ._anthropic import Anthropic as Anthropic
from ._base import Emit as Emit
from ._base import Provider as Provider
from ._base import Request as Request
from ._base import Response as Response
from ._base import StopReason as StopReason
from ._demo import Demo as Demo
from ._openai import OpenAI as OpenAI
from ._openai_compat import OpenAICompat as OpenAICompat
from ._vendors import Quirks as Quirks

__all__ = [
    "Anthropic",
    "Catalog",
    "Demo",
    "Emit",
    "ModelInfo",
    "OpenAI",
    "OpenAICompat",
    "Provider",
    "ProviderEvent",
    "Quirks",
    "Request",
    "Response",
    "StopReason",
    "UsageUpdate",
]

_export(globals(), __all__)
