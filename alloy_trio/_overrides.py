"""What a user knows better than the catalog: `model_metadata_overrides`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from ._catalog import DATED, Catalog, ModelInfo, default_window, whole_tokens
from ._errors import InvalidOption
from ._price import Price

_KEYS = ("limit", "suffix_patterns", "max_output_tokens", "price")
_EXAMPLE = '900_000, or {"limit": 640_000, "suffix_patterns": ["", r"-\\d{4}"]}'


@attrs.frozen(kw_only=True)
class Override:
    """
    What overrides the catalog for one model.

    Attributes:
        limit: Its window, in tokens.
        max_output_tokens: Its longest answer; None leaves it to the catalog.
        price: Its price; None leaves it to the catalog.
        suffixes: What may follow the name, each for the whole rest. None: a date, if the catalog knows the model.
    """

    limit: int
    max_output_tokens: int | None = None
    price: Price | None = None
    suffixes: tuple[re.Pattern[str], ...] | None = None

    def apply(self, info: ModelInfo | None) -> ModelInfo:
        """Return what the catalog says, with what is overridden."""
        info = info or ModelInfo()
        return ModelInfo(
            context_tokens=self.limit,
            max_output_tokens=self.max_output_tokens or info.max_output_tokens,
            price=self.price or info.price,
        )


def parse_overrides(value: object) -> Mapping[str, Override]:
    """
    Read the option `model_metadata_overrides`; None is no override.

    Keys are names of models, in any case, of any provider. A value is a window in tokens, or a mapping with a `limit`
    and, if wanted, `suffix_patterns`, `max_output_tokens` and `price`. A plain name stands for its dated forms as well if
    the catalog knows it, and for itself alone if not. Patterns replace that: `""` is the name itself, and any other is a
    regular expression for all that follows it. Names that no override covers are left to the catalog.

    Raises:
        InvalidOption: An entry is not as described. The message names it.
    """
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, Mapping):
        raise InvalidOption(f'model_metadata_overrides={value!r} should be a mapping: {{"model": {_EXAMPLE}}}')
    parsed: dict[str, Override] = {}
    for key, given in value.items():
        if not isinstance(key, str) or not key:
            raise InvalidOption(f"model_metadata_overrides: the key {key!r} should be the name of a model")
        if key.lower() in parsed:
            raise InvalidOption(f"model_metadata_overrides: {key!r} is there twice, in different case")
        parsed[key.lower()] = _override(f"model_metadata_overrides[{key!r}]", given)
    return MappingProxyType(parsed)


def _override(where: str, given: object) -> Override:
    if not isinstance(given, Mapping):
        return Override(limit=whole_tokens(given, where))
    if unknown := [key for key in given if key not in _KEYS]:
        raise InvalidOption(f"{where} has an unknown key {unknown[0]!r}: the keys are {', '.join(_KEYS)}")
    if "limit" not in given:
        raise InvalidOption(f"{where} has no limit, the model's window in tokens: write for instance {_EXAMPLE}")
    most, price = given.get("max_output_tokens"), given.get("price")
    if price is not None and not isinstance(price, Price):
        raise InvalidOption(f'{where}["price"]={price!r} should be a Price, for instance Price("3", "15")')
    return Override(
        limit=whole_tokens(given["limit"], f'{where}["limit"]'),
        max_output_tokens=None if most is None else whole_tokens(most, f'{where}["max_output_tokens"]'),
        price=price,
        suffixes=_suffixes(f'{where}["suffix_patterns"]', given.get("suffix_patterns")),
    )


def _suffixes(where: str, patterns: Any) -> tuple[re.Pattern[str], ...] | None:
    if patterns is None:
        return None
    if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise InvalidOption(f'{where}={patterns!r} should be a list of texts, for instance ["", r"-\\d{{4}}"]')
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise InvalidOption(f"{where}: {pattern!r} is no regular expression: {error}") from error
    return tuple(compiled)


@attrs.frozen
class Overridden:
    """
    A catalog with overrides on top of it. Of two that cover a model, the longer name wins.

    Attributes:
        base: The catalog below, asked for all that is not overridden.
        overrides: As `parse_overrides` returns them.
    """

    base: Catalog
    overrides: Mapping[str, Override]

    @property
    def default_context_tokens(self) -> int:
        """The window of models that neither knows: the base's."""
        return default_window(self.base)

    def find(self, provider: str, model: str) -> ModelInfo | None:
        """Return what the base says of a model, with what is overridden."""
        info = self.base.find(provider, model)
        covering = [key for key in self.overrides if self._covers(key, provider, model.lower())]
        return self.overrides[max(covering, key=len)].apply(info) if covering else info

    def _covers(self, key: str, provider: str, name: str) -> bool:
        if not name.startswith(key):
            return False
        rest, suffixes = name[len(key) :], self.overrides[key].suffixes
        if suffixes is not None:
            return any(suffix.fullmatch(rest) for suffix in suffixes)
        return not rest or (DATED.fullmatch(rest) is not None and self.base.find(provider, key) is not None)
