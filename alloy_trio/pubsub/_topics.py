"""
Topics, patterns, and the trie that says who wants what.

A topic is text in segments, `agent:7:events`. A pattern is the same, with `*` for any one segment and, at the end only, `**` for
the rest, however many segments that is, none included. The trie has a branch for each segment of each pattern; a topic is walked
down once, into the branch of its own segment and into that of `*`. So a lookup costs what the patterns that match so far cost,
and nothing for all the others. A branch that nobody stands on any more is cut off.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import attrs

from .._errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Sequence

Path: TypeAlias = "tuple[str, ...]"
T = TypeVar("T")


def split_topic(topic: str) -> list[str]:
    """Return the segments of a topic. Raises `InvalidOption`."""
    segments = _segments("topic", topic)
    if "*" in topic:
        raise InvalidOption(
            f"topic {topic!r}: one publishes on a single topic; `*` belongs into patterns of subscribe()"
        )
    return segments


def split_pattern(pattern: str) -> Path:
    """Return the segments of a pattern. Raises `InvalidOption`."""
    segments = _segments("pattern", pattern)
    if "**" in segments[:-1]:
        raise InvalidOption(f"pattern {pattern!r}: `**` stands for the rest, so it has to be the last segment")
    for segment in segments:
        if "*" in segment and segment not in {"*", "**"}:
            raise InvalidOption(
                f"pattern {pattern!r}: `*` stands for a whole segment, and {segment!r} is more than that"
            )
    return tuple(segments)


def _segments(what: str, text: str) -> list[str]:
    if not isinstance(text, str):
        raise InvalidOption(f"a {what} is text, such as 'agent:7:events', not {text!r:.100}")
    segments = text.split(":")
    if "" in segments:
        raise InvalidOption(
            f"{what} {text!r} has an empty segment: write names with one ':' between, such as 'agent:7:events'"
        )
    return segments


@attrs.define(eq=False)
class _Branch(Generic[T]):
    """Who stands here, at the end of a pattern, or takes the rest from here on; dicts, to keep the order."""

    here: dict[T, None] = attrs.field(factory=dict)
    rest: dict[T, None] = attrs.field(factory=dict)
    children: dict[str, _Branch[T]] = attrs.field(factory=dict)

    def is_bare(self) -> bool:
        return not (self.here or self.rest or self.children)


class Trie(Generic[T]):
    """Finds those whose patterns match a topic."""

    def __init__(self) -> None:
        self._root: _Branch[T] = _Branch()

    def add(self, pattern: Path, who: T) -> None:
        """Let `who` be found by what `pattern` matches."""
        branch = self._root
        path, takes_rest = _ending(pattern)
        for segment in path:
            branch = branch.children.setdefault(segment, _Branch())
        (branch.rest if takes_rest else branch.here)[who] = None

    def discard(self, pattern: Path, who: T) -> None:
        """Take back what was added, and cut off the branches that nobody needs any more."""
        path, takes_rest = _ending(pattern)
        branches = [self._root]
        for segment in path:
            branches.append(branches[-1].children[segment])
        last = branches.pop()
        del (last.rest if takes_rest else last.here)[who]
        for parent, segment in zip(reversed(branches), reversed(path), strict=True):
            if parent.children[segment].is_bare():
                del parent.children[segment]

    def match(self, topic: Sequence[str]) -> list[T]:
        """Return everybody who has a matching pattern, once; a list of its own, whatever happens meanwhile."""
        branches = [self._root]
        found = [self._root.rest]
        for segment in topic:
            branches = [
                child for each in branches for key in (segment, "*") if (child := each.children.get(key)) is not None
            ]
            if not branches:
                break
            found += [each.rest for each in branches]
        found += [each.here for each in branches]
        found = [each for each in found if each]
        return list(found[0] if len(found) == 1 else dict.fromkeys(itertools.chain(*found)))

    def is_bare(self) -> bool:
        """Whether it holds nobody, and no branch either."""
        return self._root.is_bare()


def _ending(pattern: Path) -> tuple[Path, bool]:
    """Return the branches of a pattern, and whether it takes the rest behind them."""
    return (pattern[:-1], True) if pattern[-1] == "**" else (pattern, False)
