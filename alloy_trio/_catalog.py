"""
What is known of models: how much they read and write at once, and what they cost.

The catalog in the package is a snapshot of the data of genai-prices (MIT, Pydantic Services Inc.), which
`_catalog_make.py` writes into `_catalog.json`. A model is found by its provider and its exact name, or by its name
without a date. Nothing else: a wrong price is worse than none, and `gpt-5-mini` is no `gpt-5`. What is not known is None,
never 0.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import attrs
import msgspec

from ._errors import InvalidOption
from ._price import Price

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA: Final = Path(__file__).with_name("_catalog.json")

DEFAULT_CONTEXT_TOKENS: Final = 200_000
"""The window of a model of which nothing is known."""

_YEAR, _MONTH, _DAY = r"20\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"

# Not `-MMDD` and not `-YYMM`: there, one date is another model. mistral-large-2512 costs a quarter of -2411, and
# kimi-k2-0905-preview reads twice as much as -0711-preview.
DATED: Final = re.compile(
    rf"[-@]{_YEAR}{_MONTH}{_DAY}|-{_YEAR}-{_MONTH}-{_DAY}|-preview-{_MONTH}-{_YEAR}|-latest", re.IGNORECASE
)
"""What may follow a model's name without making it another model: a date, as vendors write it, or `-latest`."""

_AT_END: Final = re.compile(rf"(?:{DATED.pattern})\Z", re.IGNORECASE)

# Our names of providers where they differ from those in the data. Servers of one's own (ollama, vllm) are not in the
# data, nor is a name like openai_compat: anybody may serve any model there, at any price.
_IN_DATA: Final[Mapping[str, str]] = MappingProxyType(
    {"openai-chat": "openai", "xai": "x-ai", "gemini": "google", "moonshot": "moonshotai"}
)


def whole_tokens(value: object, name: str) -> int:
    """Return a number of tokens above 0, or raise `InvalidOption`."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise InvalidOption(f"{name}={value!r} should be a whole number of tokens above 0, for instance 200_000")


def _check_tokens(_: ModelInfo, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None:
        whole_tokens(value, attribute.name)


@attrs.frozen(kw_only=True)
class ModelInfo:
    """
    What is known of a model. None: not known.

    Attributes:
        context_tokens: The largest input, in tokens. Not the advertised window where that includes the output.
        max_output_tokens: The longest answer, in tokens, hidden reasoning included.
        price: What its tokens cost. Input in other media than text may cost more than this says.
    """

    context_tokens: int | None = attrs.field(default=None, validator=_check_tokens)
    max_output_tokens: int | None = attrs.field(default=None, validator=_check_tokens)
    price: Price | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Price))
    )


@runtime_checkable
class Catalog(Protocol):
    """
    Knows models. Write one to replace the catalog that comes with the package.

    It may have one thing more: `default_context_tokens`, the window of models that it does not know; without it they get
    200,000.
    """

    def find(self, provider: str, model: str) -> ModelInfo | None:
        """
        Return what is known of a model, or None. It should answer at once, and raise nothing.

        Args:
            provider: The name of a provider, as in `"provider:model"`, in any case.
            model: The model's name as the provider's API takes it.
        """
        ...


def as_catalog(value: object) -> Catalog:
    """Return a catalog as it is, and the one in the package for None. Raises `InvalidOption` for what is none."""
    if value is None:
        return builtin_catalog()
    # A text has a `find` of its own, and so have classes of catalogs.
    if isinstance(value, str | bytes | type) or not isinstance(value, Catalog) or not callable(value.find):
        raise InvalidOption(f"catalog={value!r} is no catalog: it needs a method find(provider, model)")
    return value


def look_up(catalog: Catalog, provider: str, model: str | None) -> ModelInfo | None:
    """Return what a catalog, anybody's, knows of a model. Raises `InvalidOption` where it answers anything else."""
    info = None if model is None else catalog.find(provider, model)
    if not isinstance(info, ModelInfo | None):
        raise InvalidOption(f"catalog={catalog!r:.100} found {info!r:.100}: it has to be a ModelInfo, or None")
    return info


def context_window(catalog: Catalog, provider: str, model: str | None) -> int:
    """Return how many tokens a model reads at most: as the catalog says, else the catalog's default, else 200,000."""
    info = look_up(catalog, provider, model)
    if info is not None and info.context_tokens is not None:
        return info.context_tokens
    return default_window(catalog)


def default_window(catalog: Catalog) -> int:
    """Return the window of models that a catalog does not know."""
    default = getattr(catalog, "default_context_tokens", None)
    return DEFAULT_CONTEXT_TOKENS if default is None else whole_tokens(default, "default_context_tokens")


def undated(model: str) -> str:
    """Return a model's name without the date, or the `-latest`, at its end."""
    return _AT_END.sub("", model, count=1)


class Tier(msgspec.Struct, omit_defaults=True, rename={"start": "from", "input": "in", "output": "out"}):
    """Prices in the data file of prompts of `start` tokens or more: dollars per million tokens, as text."""

    start: int
    input: str
    output: str
    read: str | None = None
    write: str | None = None
    write1h: str | None = None

    def price(self) -> Price:
        """Return the price."""
        return Price(self.input, self.output, self.read, self.write, cache_write_1h=self.write1h)


class Row(msgspec.Struct, omit_defaults=True, rename={"input": "in", "output": "out"}):
    """One model of the data file, under all names that a provider knows it by, in lower case."""

    names: tuple[str, ...]
    window: int | None = None
    longest: int | None = None
    input: str | None = None
    output: str | None = None
    read: str | None = None
    write: str | None = None
    write1h: str | None = None
    tool: str | None = None
    tiers: tuple[Tier, ...] = ()

    def info(self) -> ModelInfo:
        """Return what the row says."""
        price = None
        if self.input is not None and self.output is not None:
            price = Price(
                self.input,
                self.output,
                self.read,
                self.write,
                cache_write_1h=self.write1h,
                server_tool_call=self.tool,
                tiers=((tier.start, tier.price()) for tier in self.tiers),
            )
        return ModelInfo(context_tokens=self.window, max_output_tokens=self.longest, price=price)


class _File(msgspec.Struct):
    source: str
    date: str
    providers: dict[str, msgspec.Raw]


_decode_file: Final = msgspec.json.Decoder(_File).decode
_decode_rows: Final = msgspec.json.Decoder(list[Row]).decode


@attrs.define(eq=False)
class BuiltinCatalog:
    """
    The catalog that comes with the package: a snapshot of genai-prices (https://github.com/pydantic/genai-prices, MIT).

    Its file is read when the first model is looked for, a provider's models when the first of them is.
    """

    _path: Path = DATA
    _models: dict[str, dict[str, Row | ModelInfo]] = attrs.field(factory=dict, init=False, repr=False)

    @functools.cached_property
    def _file(self) -> _File:
        return _decode_file(self._path.read_bytes())

    @property
    def date(self) -> dt.date:
        """The day whose prices these are."""
        return dt.date.fromisoformat(self._file.date)

    @property
    def source(self) -> str:
        """Where the data is from: the package and its version."""
        return self._file.source

    def find(self, provider: str, model: str) -> ModelInfo | None:
        """Return what is known of a model, by its exact name or by its name without a date; None if nothing is."""
        vendor = _IN_DATA.get(provider.lower(), provider.lower())
        models = self._of(vendor)
        name = model.lower()
        if vendor == "google":
            name = name.removeprefix("models/")  # as Google's own list of models writes it
        for each in (name, undated(name)):
            if (known := models.get(each)) is not None:
                if isinstance(known, Row):
                    known = models[each] = known.info()
                return known
        return None

    def models(self, provider: str) -> list[str]:
        """Return the names of a provider's models, sorted; none if it has no prices of its own."""
        return sorted(self._of(_IN_DATA.get(provider.lower(), provider.lower())))

    def _of(self, vendor: str) -> dict[str, Row | ModelInfo]:
        """Return a vendor's models by name; what was looked for before is worked out already."""
        if vendor not in self._models:
            raw = self._file.providers.get(vendor)
            rows = [] if raw is None else _decode_rows(raw)
            self._models[vendor] = {name: row for row in rows for name in row.names}
        return self._models[vendor]


@functools.cache
def builtin_catalog() -> BuiltinCatalog:
    """Return the catalog that comes with the package; always the same one."""
    return BuiltinCatalog()
