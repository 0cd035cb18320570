"""
Reload when a file changes.

Folders are watched, not files: an editor that writes a new file and renames it would leave a watch on a file at the old one.
Watchfiles waits in a thread, which looks every 100 ms whether it is still wanted; by default that is every 5 seconds, and a
cancel would take as long.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from ._errors import InvalidOption
from ._fresh import ReloadFailed, imported
from ._reload import Reloaded, reload_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from watchfiles import Change

    from ._reload import Reloadable

    OnReload: TypeAlias = Callable[[Reloaded | ReloadFailed], object]

_logger = logging.getLogger("alloy_trio.reload")

_LOOK_MS = 100


async def watch(
    *modules: str | ModuleType,
    agents: Collection[Reloadable] = (),
    on_reload: OnReload | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Reload modules whenever the file of one of them changes, until cancelled. Needs `pip install "alloy_trio[watch]"`.

    To be started in a nursery: `await nursery.start(partial(watch, "my_tools", agents=[agent]))` returns when changes
    are being noticed. Modules that are watched together are reloaded together, by `reload_modules`; start a `watch`
    for each of those that are independent. A file that fails is logged, and everything stays as it is until the next
    change. Cancelling it takes up to a tenth of a second.

    Args:
        *modules: Modules that have been imported, by name. A package is its `__init__` alone.
        agents: Those whose tools are exchanged; looked at for each reload, so that a list may grow.
        on_reload: Called, after it has been logged, with what `reload_modules` returned or raised.
        task_status: What `nursery.start` gives.

    Raises:
        InvalidOption: A module cannot be reloaded, or has no file that could be watched.
        ImportError: Watchfiles is not installed.
    """
    try:
        from watchfiles import awatch  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise ImportError('alloy_trio.reload.watch needs watchfiles: pip install "alloy_trio[watch]"') from missing
    files = _files(imported(modules))
    changed = awatch(
        *{file.parent for file in files},
        watch_filter=_Only(files),
        recursive=False,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,  # the first time, that says it is watching
    )
    async with contextlib.aclosing(changed):
        started = False
        async for changes in changed:
            if not started:
                task_status.started()
                started = True
            if changes:
                _reload(modules, agents, on_reload)


def _files(modules: dict[str, ModuleType]) -> set[Path]:
    """Return their files, and what symbolic links among these stand for."""
    files = set()
    for name, module in modules.items():
        file = getattr(module, "__file__", None)
        if file is None or not Path(file).is_file():
            raise InvalidOption(f"{name!r} has no file that could be watched: {file!r}")
        files |= {Path(file).absolute(), Path(file).resolve()}
    return files


class _Only:
    """Lets changes of some files through. One that is gone has nothing to reload; it may be about to be replaced."""

    def __init__(self, files: set[Path]) -> None:
        self._files = files

    def __call__(self, change: Change, path: str) -> bool:
        return Path(path) in self._files and change.raw_str() != "deleted"


def _reload(modules: tuple[str | ModuleType, ...], agents: Collection[Reloadable], on_reload: OnReload | None) -> None:
    outcome: Reloaded | ReloadFailed
    try:
        outcome = reload_modules(*modules, agents=agents)
    except ReloadFailed as error:
        _logger.exception("the new source is not taken")
        outcome = error
    else:
        _log(outcome)
    if on_reload is not None:
        try:
            on_reload(outcome)
        except Exception:
            _logger.exception("on_reload raised; the watch goes on")


def _log(reloaded: Reloaded) -> None:
    _logger.info("reloaded %s; tools: %s", ", ".join(reloaded.modules), ", ".join(reloaded.rebound) or "none")
    for name, reason in reloaded.missing.items():
        _logger.warning("tool %s stays the old one: %s", name, reason)
