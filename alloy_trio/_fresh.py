"""
New source for modules of a program that goes on running.

`importlib.reload` executes the new source in the old module: what is in flight sees half of each, and a file that fails leaves
the module half made. Here the new source is executed in fresh modules, and only when all have succeeded do they stay in
`sys.modules`; what still runs on the old ones keeps them whole.

The import system does the work. The old modules are taken out of `sys.modules`, a finder in front of all others answers for
their names with what has been compiled, and each name is imported. So modules that import each other get each other's new
version, in whatever order and circle Python can import them; each is found under its name while it executes, as dataclasses,
pickle and type hints need it; and another thread that imports one meanwhile waits for it. All is compiled before anything is
executed, from what the loader reads, and never from a cache, which does not notice an edit within the file system's tick.

What cannot be taken back is what the new source did to the rest of the world, and libraries that it was the first to import:
many of them break when they are imported twice.
"""

from __future__ import annotations

import copy
import importlib
import importlib.abc
import linecache
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ._errors import AlloyError, InvalidOption

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterable, Iterator, Mapping
    from importlib.machinery import ModuleSpec
    from types import CodeType

_MISSING: Any = object()


class ReloadFailed(AlloyError):
    """
    New source could not be taken. Nothing has been swapped: modules, tools and agents are what they were.

    What went wrong is `__cause__`: a `SyntaxError` for instance, or what the module raised when it was executed.

    Attributes:
        module: The module at fault, or None where an agent refused its new tools.
    """

    def __init__(self, message: str, *, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


def failure(name: str, error: BaseException) -> ReloadFailed:
    """Return what says that a module is at fault, and how."""
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return ReloadFailed(f"nothing is reloaded, for {name} fails; mend it and try again: {reason}", module=name)


def imported(modules: Iterable[str | ModuleType]) -> dict[str, ModuleType]:
    """
    Return modules by name, if they can be reloaded.

    Raises:
        InvalidOption: One of them cannot, or there is none.
    """
    names = [module.__name__ if isinstance(module, ModuleType) else module for module in modules]
    if not names:
        raise InvalidOption('no module is named: say which, as in reload_modules("my_tools")')
    return {name: _imported(name) for name in names}


def _imported(name: object) -> ModuleType:
    if name == "__main__":
        raise InvalidOption("__main__ is the running program itself: move its tools into a module, and reload that")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or module is None:
        raise InvalidOption(f"{name!r} has not been imported: import it first, or mend the name")
    spec = getattr(module, "__spec__", None)
    if spec is None:
        raise InvalidOption(f"{name!r} was not made by an import, so there is no source to go back to")
    if spec.name != name:
        raise InvalidOption(f"{name!r} is another name of {spec.name!r}: reload that")
    return module


def executed(old: Mapping[str, ModuleType], undo: contextlib.ExitStack) -> dict[str, ModuleType]:
    """
    Put fresh modules of the same names, made of their present source, into `sys.modules`.

    Args:
        old: The modules by name, as `imported` returns them.
        undo: Is given what takes all of it back, before anything is done.

    Raises:
        ReloadFailed: A source cannot be read, compiled or executed.
        InvalidOption: A module has no source.
    """
    finder = _Finder(old)
    before = _Before(old)
    undo.callback(before.put_back)
    importlib.invalidate_caches()  # so that files are found which were written just now
    sys.meta_path.insert(0, finder)
    try:
        for name in old:
            sys.modules.pop(name, None)
        for name in old:
            _import(name, finder)
    finally:
        sys.meta_path.remove(finder)
    before.keep_names_of_the_packages()
    return {name: sys.modules[name] for name in old}


def _import(name: str, finder: _Finder) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise failure(finder.failed or name, error) from error


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """
    Finds and executes the present source of some modules.

    Attributes:
        failed: The module whose execution failed: of several that import each other, the innermost.
    """

    failed: str | None = None

    def __init__(self, old: Mapping[str, ModuleType]) -> None:
        self._old = old
        self._specs = {name: _fresh_spec(module) for name, module in old.items()}
        self._code = {name: _compiled(name, spec) for name, spec in self._specs.items()}

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002
        spec = self._specs.get(fullname)
        if spec:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        # From here on it has its file's own loader, which the next reload asks for, and whoever reads its resources.
        self._specs[name].loader = module.__loader__ = _spec(self._old[name]).loader
        vars(module).update(_submodules(self._old[name]))
        try:
            exec(self._code[name], vars(module))  # noqa: S102 - that is what an import is
        except (Exception, SystemExit):
            self.failed = self.failed or name
            raise


def _spec(module: ModuleType) -> ModuleSpec:
    assert module.__spec__ is not None  # `imported` has seen to it
    return module.__spec__


def _fresh_spec(module: ModuleType) -> ModuleSpec:
    """Return a copy, so that the fresh module shares nothing with the old one, its list of folders included."""
    spec = copy.copy(_spec(module))
    if spec.submodule_search_locations is not None:
        spec.submodule_search_locations = list(spec.submodule_search_locations)
    return spec


def _compiled(name: str, spec: ModuleSpec) -> CodeType:
    loader: Any = spec.loader
    try:
        if isinstance(loader, importlib.abc.SourceLoader):  # which may have its own way from bytes to code
            path = loader.get_filename(name)
            return loader.source_to_code(loader.get_data(path), path)
        source = loader.get_source(name) if hasattr(loader, "get_source") else None
        if source is not None and spec.origin is not None:  # it is None of a folder without `__init__`
            return importlib.abc.InspectLoader.source_to_code(source, spec.origin)
    except Exception as error:
        raise failure(name, error) from error
    raise InvalidOption(f"{name!r} has no source that could be read: only modules of Python files can be reloaded")


def _submodules(package: ModuleType) -> dict[str, ModuleType]:
    """Return those that stay as they are. To import them again does not make them attributes of the fresh package."""
    names = vars(package)
    found = ((*name.rpartition("."), module) for name, module in tuple(sys.modules.items()))
    return {
        child: module for parent, _, child, module in found if parent == package.__name__ and names.get(child) is module
    }


class _Before:
    """What there was before: modules, the names that packages have for them, and the lines that tracebacks show."""

    def __init__(self, old: Mapping[str, ModuleType]) -> None:
        self._old = old
        self._modules = dict(sys.modules)
        self._lines = set(linecache.cache)
        self._named = {name: vars(package).get(child, _MISSING) for name, package, child in self._packages_of(old)}

    def _packages_of(self, names: Iterable[str]) -> Iterator[tuple[str, ModuleType, str]]:
        """Yield the package as it was, and what a module is called in it."""
        for name in names:
            package, _, child = name.rpartition(".")
            if package in self._modules:
                yield name, self._modules[package], child

    def keep_names_of_the_packages(self) -> None:
        """
        Give packages back what was not a module: after `from .search import search` the name is the function's.

        An import makes the module an attribute of its package, whatever was there.
        """
        for name, package, child in self._packages_of(self._old):
            if self._named[name] is not self._old[name]:
                _set(package, child, self._named[name])

    def put_back(self) -> None:
        new = {name: sys.modules.pop(name) for name in self._new_ones()}
        for name, package, child in self._packages_of(new):
            if vars(package).get(child) is new[name]:
                delattr(package, child)
        sys.modules.update(self._old)
        for name, package, child in self._packages_of(self._old):
            _set(package, child, self._named[name])
        for file in set(linecache.cache) - self._lines:
            linecache.cache.pop(file, None)

    def _new_ones(self) -> list[str]:
        """Return modules that were first imported by the new source, and are from the same folder or package."""
        folders = {Path(_spec(module).origin or "").parent for module in self._old.values()}
        packages = {name.partition(".")[0] for name in self._old}
        return [
            name
            for name, module in tuple(sys.modules.items())
            if name not in self._modules
            and isinstance(getattr(module, "__loader__", None), importlib.abc.SourceLoader)
            and (name.partition(".")[0] in packages or Path(module.__file__ or "").parent in folders)
        ]


def _set(package: ModuleType, name: str, value: object) -> None:
    if value is _MISSING:
        vars(package).pop(name, None)
    else:
        setattr(package, name, value)
