"""
Providers: values that turn a `Request` into a `Response`.

`Anthropic` (Messages API), `OpenAI` (Responses API) and `OpenAICompat` (Chat Completions, at any address) speak HTTP; `Demo` is
offline. Anything with an async `complete(request)` is a `Provider`. `TrioTransport` puts their network under a client of httpx.
"""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from .._catalog import Catalog as Catalog
from .._catalog import ModelInfo as ModelInfo
from .._events import ProviderEvent as ProviderEvent
from .._events import UsageUpdate as UsageUpdate
from .._util import export as _export
from ._base import Emit as Emit
from ._base import Provider as Provider
from ._base import Request as Request
from ._base import Response as Response
from ._base import StopReason as StopReason

if _typing.TYPE_CHECKING:
    from ._anthropic import Anthropic as Anthropic
    from ._demo import Demo as Demo
    from ._httpx_transport import TrioTransport as TrioTransport
    from ._openai import OpenAI as OpenAI
    from ._openai_compat import OpenAICompat as OpenAICompat
    from ._vendors import Quirks as Quirks

_LATER = {
    "Anthropic": "_anthropic",
    "Demo": "_demo",
    "OpenAI": "_openai",
    "OpenAICompat": "_openai_compat",
    "Quirks": "_vendors",
    "TrioTransport": "_httpx_transport",
}

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
    "TrioTransport",
    "UsageUpdate",
]

_export(globals(), [name for name in __all__ if name in globals()])


if not _typing.TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Load a provider, and with that the network, at its first use."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _importlib.import_module(f".{_LATER[name]}", __name__)
        globals()[name] = getattr(module, name)
        _export(globals(), [name])
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
