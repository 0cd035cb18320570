"""Hot reload: new source for the tools of agents that go on running."""

from __future__ import annotations

from ._fresh import ReloadFailed as ReloadFailed
from ._reload import Reloadable as Reloadable
from ._reload import Reloaded as Reloaded
from ._reload import reload_modules as reload_modules
from ._util import export as _export
from ._watch import watch as watch

__all__ = ["ReloadFailed", "Reloadable", "Reloaded", "reload_modules", "watch"]

_export(globals(), __all__)
