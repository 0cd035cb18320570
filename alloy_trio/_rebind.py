"""
Which tool of a module's new source stands for which tool of its old one.

A tool is known by the name under which the old module has it, whatever made it. One that the module does not have, made of
its function elsewhere (`tool(my_tools.search)`), is known by the function's qualified name. What `evolve` changed of a tool, or
the options that were given where it was made elsewhere, are the user's and are put on the new one again.

Functions of objects that exist already (bound methods, partials, closures made in a function) have no name that the new
source could be asked for: such a tool stays as it is, and the reason is told.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .tools._schema import unwrapped
from .tools._tool import Tool, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    Modules: TypeAlias = Mapping[str, ModuleType]

_FIELDS = frozenset(field.name for field in attrs.fields(Tool) if not field.name.startswith("_"))


def rebound(given: Tool, old: Modules, fresh: Modules) -> Tool | str | None:
    """
    Return the tool of the new source that stands for `given`, or why there is none; None if it is no tool of these modules.

    Raises:
        InvalidOption: The new function is no tool: a parameter without a type hint, for instance.
    """
    root, function, module = given._root or given, _function(given), module_of(given)  # noqa: SLF001 - the trace of `evolve`
    for name, names in _places(given, old):
        for attribute, value in tuple(names.items()):
            if value is root:
                return _from(fresh[name], attribute, given, root)
    if module not in fresh:
        return None
    if not _has_a_name(function):
        return f"{module}: {_qualified_name(function)} was made at run time; make it anew of the new module and reload the agent"
    return _from(fresh[module], _qualified_name(function), given, None)


def _places(given: Tool, old: Modules) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where it may have a name: where it was defined, by whichever source; where the old modules have imported it."""
    if (module := module_of(given)) in old:
        yield module, getattr(inspect.unwrap(unwrapped(_function(given))), "__globals__", {})
    for name in old:
        yield name, vars(old[name])


def module_of(given: Tool) -> str:
    """Return the name of the module that the tool's function is from."""
    return str(getattr(unwrapped(_function(given)), "__module__", None))


def _function(given: Tool) -> Callable[..., Any]:
    return given._function or given.execute  # noqa: SLF001 - what `@tool` decorated is in no public attribute


def _is_raw(given: Tool) -> bool:
    """Say whether it was made of a JSON Schema, and not of the function's signature."""
    return given._function is None  # noqa: SLF001 - as above


def _has_a_name(function: Callable[..., Any]) -> bool:
    """A class may have a bound method under a name of its own, an object may not."""
    bound_to_class = inspect.ismethod(function) and inspect.isclass(function.__self__)
    return (inspect.isfunction(function) or bound_to_class) and "<" not in function.__qualname__


def _qualified_name(function: Callable[..., Any]) -> str:
    return str(getattr(unwrapped(function), "__qualname__", function))


def _from(module: ModuleType, path: str, given: Tool, root: Tool | None) -> Tool | str:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is root is not None:
        return given  # the module only imports it
    if isinstance(found, Tool) and (root or not _is_raw(given)):
        new = found
    elif root or not inspect.isroutine(found):
        return f"{module.__name__} no longer has {path}"
    elif _is_raw(given):
        return given.evolve(execute=found)
    else:
        new = tool(found)
    changes = _changes(given, root or tool(_function(given)))
    return new.evolve(**changes) if changes else new


def _changes(given: Tool, base: Tool) -> dict[str, Any]:
    """Return the options of `given` that `base` does not have."""
    kept = _FIELDS - {"execute"} if _is_raw(given) else _FIELDS - {"execute", "input_schema"}
    values = {name: getattr(given, name) for name in sorted(kept)}
    return {name: value for name, value in values.items() if value != getattr(base, name)}
