r"""
Writes `_catalog.json` from the genai-prices package. A script: nothing imports it.

    pip install -U genai-prices && python -m alloy_trio._catalog_make [YYYY-MM-DD]

The date is the day whose prices are wanted, today (UTC) if none is given: the same day and the same genai-prices write
the same bytes. One line of the file is one model of one provider:

    names    all names by which the provider knows the model, in lower case
    window   its largest input, in tokens           longest  its longest answer, in tokens
    in, out  dollars per million tokens             read, write, write1h  the same for the cache
    tool     dollars for a call of a server tool    tiers    prices `from` so many tokens of prompt on

What genai-prices says is taken as it is, except for what follows here.

Names. It matches names by rules (begins with, contains, a regular expression), which would take a longer sibling for the
model it resembles. Here the texts in the rules are names, if genai-prices itself resolves them to this model, and what a
rule lets follow is not. Where only dated names are known, the newest stands for the name without a date too.

Windows. `context_window` is the advertised one, which at OpenAI includes the output: `_SPLIT`. `_WINDOWS` fills gaps.

Answers. genai-prices knows no limits of output: `_LONGEST`, from the vendors' pages, where they are known and matter.

Prices. A price has both directions, or it is left out. It is left out, too, where a request costs what `Price` cannot say:
a fee a request, reasoning or citations at a rate of their own, answers in sound or pictures. Rates of input in other media
are dropped, as are those of batches and of priority. Where the price depends on the hour it is that of the dearest, so
that a budget holds at any. A web search's fee stands for every server tool. `openrouter`'s `:free` models, which
genai-prices gives no price at all, are free; no price at all anywhere else is no price.
"""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.metadata
import re
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ._catalog import DATA, Row, Tier, undated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Advertised window -> largest input and longest answer. OpenAI, since GPT-5, adds the two up to the window that it
# advertises, and refuses a longer input ("Input tokens exceed the configured limit of 272000 tokens"). GPT-5.5 has
# 1.05 M by OpenAI's page, which genai-prices rounds.
_SPLIT: Final = {400_000: (272_000, 128_000), 1_050_000: (922_000, 128_000), 1_000_000: (922_000, 128_000)}
_SPLIT_NAMES: Final = re.compile(r"(?:^|[/.])(?:databricks-)?gpt-[56](?!.*-chat)")

# Largest inputs that genai-prices lacks, or gives to a whole family. The -chat models of GPT-5 share a price with the
# others and have a window of their own; of Gemini's Pro models it has none, since its rules cover several at once.
_WINDOWS: Final = (
    (re.compile(r"(?:^|/)gpt-5[^/]*-chat(?:-latest)?$"), 128_000),
    (re.compile(r"^gemini-(?:2\.5-pro|3-pro-preview|3\.1-pro-preview)$"), 1_048_576),
)

# The first that matches counts. From platform.claude.com, developers.openai.com and ai.google.dev, October 2026.
_LONGEST: Final = tuple(
    (re.compile(rf"(?:^|[/.]){pattern}"), longest)
    for pattern, longest in (
        (r"claude-(?:v?[12]\b|3-(?:haiku|opus|sonnet))", 4_096),
        (r"claude-3[-.]5-", 8_192),
        (r"claude-(?:opus-4(?![-.]?\d)|opus-4[-.][01]\b|opus-4-2025|4-opus)", 32_000),
        (r"claude-(?:3[-.]7-sonnet|sonnet-3[-.]7|4-sonnet|sonnet-4|haiku-4|opus-4[-.]5|4[-.]5-|4[-.]6-sonnet)", 64_000),
        (r"claude-(?:opus-4[-.][678]|4[-.][678]-opus)", 128_000),
        (r"claude-(?:(?:haiku|opus|sonnet)-5|5(?:[-.][05])?-(?:haiku|opus|sonnet)|fable-5[-.]1)", 128_000),
        (r"(?:gpt-3\.5-turbo|gpt-35-turbo|gpt-4-turbo|gpt-4-vision|gpt-4-1106|gpt-4-0125|gpt-4o-2024-05-13)", 4_096),
        (r"gpt-4(?:-0314|-0613)?$", 8_192),
        (r"(?:chatgpt-4o-latest|gpt-4o(?:-mini)?(?:-2024-\d\d-\d\d|-search-preview.*)?)$", 16_384),
        (r"gpt-5[^/]*-chat|gpt-5[.-]3$", 16_384),
        (r"gpt-4\.1", 32_768),
        (r"o1-preview", 32_768),
        (r"o1-mini", 65_536),
        (r"(?:o1|o3|o4-mini|codex-mini)(?:-|$)", 100_000),
        (r"gpt-5-pro", 272_000),
        (r"gemini-(?:1\.5|2\.0|pro-1\.5|flash-1\.5)", 8_192),
        (r"gemini-(?:2\.5-pro|2\.5-flash|2\.5-flash-lite|3-flash-preview|3-pro-preview|3\.1-pro-preview)$", 65_536),
    )
)

_RATES: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "read",
    "cache_write_mtok": "write",
    "cache_write_1h_mtok": "write1h",
}
_UNSAYABLE: Final = re.compile(r"requests_kcount|output_(?!mtok)\w+")


class _Limits(NamedTuple):
    window: int | None
    longest: int | None


def build(day: dt.date) -> bytes:
    """Return the data file, with the prices of that day."""
    data: Any = importlib.import_module("genai_prices.data")
    about = {
        "source": f"genai-prices {importlib.metadata.version('genai-prices')}",
        "date": day.isoformat(),
        "license": _license(),
    }
    head = "".join(f"{_json(key)}:{_json(value)},\n" for key, value in about.items())
    providers = {provider.id: _rows(provider, day) for provider in sorted(data.providers, key=lambda each: each.id)}
    blocks = (f"{_json(name)}:[\n" + ",\n".join(map(_json, rows)) + "\n]" for name, rows in providers.items() if rows)
    return ("{" + head + '"providers":{\n' + ",\n".join(blocks) + "\n}}\n").encode()


def _license() -> str:
    """Return the licence of the data: the file of it that genai-prices is installed with."""
    files = importlib.metadata.files("genai-prices") or []
    return next(path.read_text() for path in files if path.name == "LICENSE")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _rows(provider: Any, day: dt.date) -> list[Row]:
    """Return a provider's models, sorted. Names of one model that have limits of their own are a row of their own."""
    named = [(name, model) for model in provider.models for name in sorted(_names(provider, model))]
    rows: dict[tuple[str, _Limits], Row] = {}
    for name, model in named + list(_bare(named)):
        limits = _limits(name, model.context_window)
        row = rows.setdefault((model.id, limits), _row(provider.id, model, limits, day))
        row.names = (*row.names, name)
    known = [row for row in rows.values() if (row.window, row.longest, row.input) != (None, None, None)]
    for row in known:
        row.names = tuple(sorted(set(row.names)))
    return sorted(known, key=lambda row: row.names)


def _names(provider: Any, model: Any) -> set[str]:
    """Return the names of a model: the texts that genai-prices resolves to it, as they are or with `-latest`."""
    texts = {text.lower() for text in (model.id, *_texts(model.match)) if re.search(r"\w\Z", text)}
    return {text for text in texts if (provider.find_model(text) or provider.find_model(f"{text}-latest")) is model}


def _texts(clause: Any) -> Iterator[str]:
    """Yield the texts in a matching rule, except regular expressions: those let dates follow, or forbid a sibling."""
    for kind in ("equals", "starts_with", "ends_with", "contains"):
        if (text := getattr(clause, kind, None)) is not None:
            yield text
    for kind in ("or_", "and_"):
        for each in getattr(clause, kind, ()):
            yield from _texts(each)


def _bare(named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the names without a date that only dated names stand for; each stands for the newest of them."""
    known = dict(named)
    newest: dict[str, tuple[str, str]] = {}
    for name in known:
        bare = undated(name)
        if bare not in known and not name.endswith("-latest"):
            newest[bare] = max(newest.get(bare, ("", "")), (_when(name.removeprefix(bare)), name))
    for bare, (_, name) in newest.items():
        yield bare, known[name]


def _when(suffix: str) -> str:
    """Return a date as it sorts, of any form that a name may end in."""
    month_first = re.fullmatch(r"-preview-(\d\d)-(\d{4})", suffix)
    return month_first[2] + month_first[1] if month_first else re.sub(r"\D", "", suffix)


def _limits(name: str, window: int | None) -> _Limits:
    longest = next((tokens for pattern, tokens in _LONGEST if pattern.search(name)), None)
    if _SPLIT_NAMES.search(name) and window in _SPLIT:
        largest, rest = _SPLIT[window]
        return _Limits(largest, longest or rest)
    return _Limits(next((tokens for pattern, tokens in _WINDOWS if pattern.search(name)), window), longest)


def _row(provider: str, model: Any, limits: _Limits, day: dt.date) -> Row:
    prices = _prices(model, day)
    row = Row((), limits.window, limits.longest)
    if not prices and provider == "openrouter" and model.id.endswith(":free"):
        row.input = row.output = "0"
    if not {"input_mtok", "output_mtok"} <= prices.keys() or any(map(_UNSAYABLE.fullmatch, prices)):
        return row
    for key, value in _at(prices, 0).items():
        setattr(row, key, value)
    if fee := prices.get("web_searches_kcount"):
        row.tool = _text(getattr(fee, "base", fee) / 1000)
    # There, a tier holds for more tokens than its start; in `Price`, from its start on.
    starts = sorted({tier.start for price in prices.values() for tier in getattr(price, "tiers", ())})
    row.tiers = tuple(Tier(start + 1, **_at(prices, start + 1)) for start in starts)
    return row


def _prices(model: Any, day: dt.date) -> dict[str, Any]:
    """Return the prices of a day by their keys; of its half hours, those of the dearest."""
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    times = [midnight + dt.timedelta(minutes=minutes) for minutes in range(0, 24 * 60, 30)]
    prices = [
        {key: value for key, value in vars(model.get_prices(time)).items() if value is not None} for time in times
    ]
    return max(prices, key=lambda each: [getattr(price := each.get(key, 0), "base", price) for key in _RATES])


def _at(prices: dict[str, Any], tokens: int) -> dict[str, str]:
    """Return the rates of a prompt of so many tokens."""
    return {name: _text(_rate(prices[key], tokens)) for key, name in _RATES.items() if key in prices}


def _rate(price: Any, tokens: int) -> Decimal:
    reached = [tier.price for tier in getattr(price, "tiers", ()) if tokens > tier.start]
    return Decimal(reached[-1] if reached else getattr(price, "base", price))


def _text(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


if __name__ == "__main__":
    DATA.write_bytes(build(dt.date.fromisoformat(sys.argv[1]) if sys.argv[1:] else dt.datetime.now(dt.UTC).date()))
