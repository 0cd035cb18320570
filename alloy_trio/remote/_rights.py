"""Who may come in, and what for."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import attrs

from .._errors import InvalidOption


def _names(names: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(names, str):
        raise InvalidOption(f"agents={names!r:.100} is one text: give a list of names")
    return None if names is None else frozenset(names)


@attrs.frozen(kw_only=True)
class Permissions:
    """
    What the holder of a token may do.

    Attributes:
        agents: The names of the agents that it may reach; None for all.
        read_only: Whether it may only look: read conversations and states, and subscribe.
        topics: Whether it may subscribe to any topic. Else it is to those of the agents that it may reach.
    """

    agents: frozenset[str] | None = attrs.field(default=None, converter=_names)
    read_only: bool = False
    topics: bool = attrs.field(default=attrs.Factory(lambda self: self.agents is None, takes_self=True))

    def allows(self, name: str) -> bool:
        """Whether an agent may be reached."""
        return self.agents is None or name in self.agents


Tokens: TypeAlias = str | Mapping[str, Permissions]


def is_token(token: object) -> bool:
    """Whether a header can carry it as it is. Line ends come from files, and would be a header of their own."""
    return isinstance(token, str) and token.isprintable() and token == token.strip()


def _fault(given: Mapping[Any, Any]) -> str:
    """Return what is wrong with tokens, without showing them."""
    if not given:
        return "no token, no service: give token=, a text that nobody can guess, or several"
    if not all(isinstance(token, str) and len(token) >= _SHORTEST for token in given):
        return f"a token has to be text of {_SHORTEST} characters at least: secrets.token_urlsafe()"
    if not all(map(is_token, given)):
        return "a token is text without line ends, and without spaces around it: strip() what a file has"
    for permissions in given.values():
        if not isinstance(permissions, Permissions):
            return f"a token leads to Permissions(…), not to {permissions!r:.100}"
    return ""


class Doors:
    """
    The tokens of a server. Never in a repr.

    Raises:
        InvalidOption: There is none, or one that guesses itself.
    """

    def __init__(self, tokens: Tokens) -> None:
        given = {tokens: Permissions()} if isinstance(tokens, str) else dict(tokens)
        if fault := _fault(given):
            del given, tokens  # of a traceback that shows variables, this frame is a part
            raise InvalidOption(fault)
        self._known = [(token.encode(), permissions) for token, permissions in given.items()]

    def open(self, authorization: bytes) -> Permissions | None:
        """Return what a header allows, if anything; takes the same time whichever token it is, and if it is none."""
        scheme, _, given = authorization.partition(b" ")
        found = None
        for token, permissions in self._known:
            if hmac.compare_digest(token, given.strip()):
                found = permissions
        return found if scheme.lower() == b"bearer" else None


_SHORTEST = 16
