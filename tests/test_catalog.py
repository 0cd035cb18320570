"""What is known of models, and what users know better."""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.metadata
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alloy_trio import InvalidOption, Usage
from alloy_trio._catalog import (
    DATA,
    DATED,
    BuiltinCatalog,
    Catalog,
    ModelInfo,
    Row,
    as_catalog,
    builtin_catalog,
    context_window,
    undated,
)
from alloy_trio._overrides import Overridden, parse_overrides
from alloy_trio._price import Price
from alloy_trio.providers._vendors import VENDORS

if TYPE_CHECKING:
    from pathlib import Path

CATALOG = builtin_catalog()
FILE = msgspec.json.decode(DATA.read_bytes())
ROWS = {vendor: msgspec.convert(rows, list[Row]) for vendor, rows in FILE["providers"].items()}
LISTED = {(vendor, name) for vendor, rows in ROWS.items() for row in rows for name in row.names}

SMALL = """{"source": "a test", "date": "2026-02-28", "providers": {"acme": [
    {"names": ["rocket"], "window": 1000, "longest": 10, "in": "1", "out": "2"},
    {"names": ["rocket-2025-06-01"], "window": 900, "in": "4", "out": "8"},
    {"names": ["rocket-mini"], "window": 500},
    {"names": ["anvil"], "in": "1", "out": "2", "read": "0.1", "write": "1.25", "write1h": "2", "tool": "0.01",
     "tiers": [{"from": 201, "in": "10", "out": "20", "write": "12.5"}]}
]}}"""


@pytest.fixture
def small(tmp_path: Path) -> BuiltinCatalog:
    path = tmp_path / "catalog.json"
    path.write_text(SMALL)
    return BuiltinCatalog(path)


def info(provider: str, model: str) -> ModelInfo:
    found = CATALOG.find(provider, model)
    assert found is not None, f"{provider}:{model}"
    return found


def price(provider: str, model: str) -> Price:
    found = info(provider, model).price
    assert found is not None, f"{provider}:{model}"
    return found


def window(overrides: object, model: str, base: Catalog = CATALOG, provider: str = "openai") -> int:
    return context_window(Overridden(base, parse_overrides(overrides)), provider, model)


# finding


@pytest.mark.parametrize("provider", ["openai", "OpenAI", "openai-chat"])
@pytest.mark.parametrize("model", ["gpt-5.4", "GPT-5.4"])
def test_cat_01_exact_names_resolve(provider: str, model: str) -> None:
    assert info(provider, model).context_tokens == 922_000


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "no-such-model"),
        ("openai", ""),
        ("no-such-provider", "gpt-5.4"),
        ("ollama", "gpt-oss-20b"),
        ("vllm", "gpt-oss-20b"),
        ("openai_compat", "gpt-5.4"),
        ("anthropic", "gpt-5.4"),
    ],
    ids=lambda value: f"cat-01 {value}",
)
def test_what_is_not_known_is_none_and_has_the_default_window(provider: str, model: str) -> None:
    assert CATALOG.find(provider, model) is None
    assert context_window(CATALOG, provider, model) == 200_000


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-sonnet-5-5"),
        ("openai", "gpt-6-sol"),
        ("openrouter", "anthropic/claude-sonnet-5.5"),
        ("groq", "openai/gpt-oss-120b"),
        ("together", "Qwen/Qwen3.5-9B"),
        ("mistral", "mistral-large-2512"),
        ("deepseek", "deepseek-v4-pro"),
        ("xai", "grok-4.7"),
        ("gemini", "gemini-3.8-flash"),
        ("gemini", "models/gemini-3.8-flash"),
        ("moonshot", "kimi-k3"),
        ("zai", "glm-5.3"),
        ("fireworks", "accounts/fireworks/models/kimi-k3"),
        ("cerebras", "gpt-oss-120b"),
        ("perplexity", "sonar-pro-search"),
        ("minimax", "MiniMax-M3"),
    ],
)
def test_a_vendors_models_are_found_by_our_name_of_it(provider: str, model: str) -> None:
    assert provider in {"anthropic", "openai", *VENDORS}
    assert price(provider, model).output > 0


@pytest.mark.parametrize(
    "suffix",
    ["-20260101", "-2026-03-05", "-preview-09-2026", "-latest", "@20260101", "-LATEST"],
    ids=lambda suffix: f"cat-02 {suffix}",
)
@pytest.mark.parametrize(("provider", "model"), [("anthropic", "claude-sonnet-4-6"), ("openai", "gpt-5.4")])
def test_a_dated_name_is_the_family(provider: str, model: str, suffix: str) -> None:
    assert CATALOG.find(provider, model + suffix) == info(provider, model)


@pytest.mark.parametrize(
    "suffix",
    [
        "-2026",
        "-0305",
        "-2602",
        "-20261301",
        "-2026-02-00",
        "-20260101-20260102",
        "20260101",
        "-v2",
    ],
    ids=lambda suffix: f"cat-02 {suffix}",
)
def test_what_is_no_date_is_another_model(suffix: str) -> None:
    assert CATALOG.find("openai", f"gpt-5.4{suffix}") is None


def test_cat_02_a_date_of_its_own_comes_first(small: BuiltinCatalog) -> None:
    """A dated name that is listed is that one, not its family."""
    windows = {name: context_window(small, "acme", name) for name in ("rocket-2025-06-01", "rocket-2025-07-01")}
    assert windows == {"rocket-2025-06-01": 900, "rocket-2025-07-01": 1000}
    assert price("openai", "gpt-4o-2024-05-13").input == 5
    assert price("openai", "gpt-4o").input == Decimal("2.5")


def test_cat_02_the_newest_of_dated_names_stands_for_the_bare_one() -> None:
    assert info("openrouter", "qwen/qwen3.5-plus") == info("openrouter", "qwen/qwen3.5-plus-20260420")


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-5.4-turbo"),
        ("openai", "gpt-6-sol-mini"),
        ("openai", "gpt-6-sol-pro"),
        ("openai", "gpt-5.4-tts"),
        ("openai", "gpt-5.4.1"),
        ("openai", "gpt-5.9"),
        ("openai", "gpt-5-nano-tts"),
        ("anthropic", "claude-sonnet-5-6"),
        ("anthropic", "claude-opus-4-5-fast"),
        ("anthropic", "claude-haiku-4-5-1"),
        ("gemini", "gemini-3.6-flash-tts"),
        ("gemini", "gemini-2.5-pro-mini"),
        ("deepseek", "deepseek-v4-pro-max"),
        ("openrouter", "openai/gpt-5:online"),
    ],
    ids=lambda value: f"cat-03 {value}",
)
def test_a_longer_sibling_is_unknown(provider: str, model: str) -> None:
    assert CATALOG.find(provider, model) is None


@given(st.sampled_from(sorted(LISTED)), st.text("-.:@0123456789abmnoprt", min_size=1, max_size=12))
@example(("openai", "o3"), "-mini")
@example(("openai", "gpt-5"), "-preview-13-2026")
@example(("google", "gemini-2.5-flash"), "-tts")
def test_cat_03_nothing_but_a_date_may_follow_a_name(listed: tuple[str, str], rest: str) -> None:
    vendor, name = listed
    known = (vendor, name + rest) in LISTED or (vendor, undated(name + rest)) in LISTED
    assert (CATALOG.find(vendor, name + rest) is not None) == known


@pytest.mark.parametrize(
    ("provider", "model", "largest", "longest"),
    [
        ("openai", "gpt-5.4", 922_000, 128_000),
        ("openai", "gpt-5.4-pro", 922_000, 128_000),
        ("openai", "gpt-5.5", 922_000, 128_000),
        ("openai", "gpt-6-astra", 922_000, 128_000),
        ("openrouter", "openai/gpt-6.1-sol", 922_000, 128_000),
        ("openai", "gpt-5", 272_000, 128_000),
        ("openai", "gpt-5-pro", 272_000, 272_000),
        ("openai", "gpt-5.4-mini", 272_000, 128_000),
        ("openrouter", "openai/gpt-5.3-codex", 272_000, 128_000),
        ("openai", "gpt-5.1-chat-latest", 128_000, 16_384),
        ("openai", "gpt-4o", 128_000, 16_384),
        ("openai", "o3", 200_000, 100_000),
        ("anthropic", "claude-sonnet-5-5", 1_000_000, 128_000),
        ("anthropic", "claude-opus-4-1-20250805", 200_000, 32_000),
        ("anthropic", "claude-haiku-4-5", 200_000, 64_000),
        ("anthropic", "claude-3-haiku-20240307", 200_000, 4_096),
        ("gemini", "gemini-2.5-pro", 1_048_576, 65_536),
    ],
    ids=lambda value: f"cat-04 {value}",
)
def test_the_window_is_the_largest_input(provider: str, model: str, largest: int, longest: int) -> None:
    assert (info(provider, model).context_tokens, info(provider, model).max_output_tokens) == (largest, longest)


def test_cat_04_no_window_includes_the_answer_where_the_vendor_adds_them_up() -> None:
    totals = {400_000, 1_050_000}
    newer = [row for rows in ROWS.values() for row in rows if any("gpt-5" in n or "gpt-6" in n for n in row.names)]
    assert newer
    assert not [row.names for row in newer if row.window in totals]


@pytest.mark.parametrize(
    "model", ["claude-instant-1.2", "claude-opus-3", "claude-sonnet-4-9"], ids=lambda model: f"cat-05 {model}"
)
def test_what_the_data_does_not_list_is_none(model: str) -> None:
    assert CATALOG.find("anthropic", model) is None


# prices


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4o", ("2.5", "10", "1.25", None, None)),
        ("openai", "gpt-5", ("1.25", "10", "0.125", None, None)),
        ("openai", "o3", ("2", "8", "0.5", None, None)),
        ("openai", "gpt-6-sol", ("2", "10", "0.2", "2.5", None)),
        ("anthropic", "claude-opus-4-1", ("15", "75", "1.5", "18.75", "30")),
        ("anthropic", "claude-haiku-4-5", ("1", "5", "0.1", "1.25", "2")),
        ("gemini", "gemini-2.5-flash", ("0.3", "2.5", "0.03", None, None)),
    ],
)
def test_well_known_prices(provider: str, model: str, expected: tuple[str | None, ...]) -> None:
    found = price(provider, model)
    rates = (found.input, found.output, found.cache_read, found.cache_write, found.cache_write_1h)
    assert rates == tuple(None if rate is None else Decimal(rate) for rate in expected)


def test_tiers_begin_with_the_first_token_that_costs_more() -> None:
    """OpenAI bills prompts of more than 272 k tokens higher, as a whole; Anthropic did so above 200 k."""
    for provider, model, edge, base, above in [
        ("openai", "gpt-5.4", 272_000, ("2.5", "15"), ("5", "22.5")),
        ("anthropic", "claude-sonnet-4-5", 200_000, ("3", "15"), ("6", "22.5")),
    ]:
        at, beyond = (price(provider, model).for_prompt(tokens) for tokens in (edge, edge + 1))
        assert (at.input, at.output) == tuple(map(Decimal, base))
        assert (beyond.input, beyond.output) == tuple(map(Decimal, above))


def test_a_price_that_depends_on_the_hour_is_the_dearest() -> None:
    assert price("deepseek", "deepseek-v4-pro").input == Decimal("1.32")


def test_a_web_search_has_its_fee() -> None:
    usage = Usage(input_tokens=1_000_000, server_tool_calls=3)
    assert price("anthropic", "claude-sonnet-5-5").cost(usage) == Decimal("2.03")


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("perplexity", "sonar"),  # a fee for each request
        ("perplexity", "sonar-deep-research"),  # reasoning has a rate of its own
        ("openai", "gpt-audio"),  # sound has, in answers
        ("openai", "text-embedding-3-small"),  # no price of output
        ("gemini", "gemma-4-31b-it"),  # no price at all
    ],
)
def test_a_price_that_cannot_be_said_is_none(provider: str, model: str) -> None:
    assert info(provider, model).price is None


def test_only_what_is_free_costs_nothing() -> None:
    free = price("openrouter", "google/gemma-4-31b-it:free")
    assert free.cost(Usage(input_tokens=1000, output_tokens=1000)) == 0
    costless = {
        name for rows in ROWS.values() for row in rows if row.input == "0" or row.output == "0" for name in row.names
    }
    assert all(name.endswith(":free") for name in costless)


# the file


def test_a_row_becomes_what_is_known(small: BuiltinCatalog) -> None:
    assert small.find("acme", "rocket") == ModelInfo(context_tokens=1000, max_output_tokens=10, price=Price(1, 2))
    assert small.find("acme", "rocket-mini") == ModelInfo(context_tokens=500)
    tier = (201, Price(10, 20, cache_write="12.5"))
    expected = Price(1, 2, "0.1", "1.25", cache_write_1h=2, server_tool_call="0.01", tiers=[tier])
    assert small.find("acme", "anvil") == ModelInfo(price=expected)


def test_nothing_is_read_before_a_model_is_looked_for(tmp_path: Path) -> None:
    catalog = BuiltinCatalog(tmp_path / "later.json")
    (tmp_path / "later.json").write_text(SMALL)
    assert catalog.find("acme", "rocket") is not None
    (tmp_path / "later.json").unlink()
    assert catalog.find("acme", "rocket") is catalog.find("acme", "rocket")
    assert (catalog.date, catalog.source) == (dt.date(2026, 2, 28), "a test")


def test_the_builtin_catalog_says_of_when_it_is_and_whose_it_was() -> None:
    assert builtin_catalog() is CATALOG
    assert CATALOG.date >= dt.date(2026, 11, 20)
    assert CATALOG.source.startswith("genai-prices ")
    assert "MIT" in FILE["license"]


def test_every_row_of_the_file_is_sound() -> None:
    """Each name stands for one model of its provider, is in lower case, and all that is known of it makes sense."""
    for rows in ROWS.values():
        names = [name for row in rows for name in row.names]
        assert len(names) == len(set(names))
        assert all(name == name.lower() for name in names)
        assert rows == sorted(rows, key=lambda row: row.names)
        assert all(row.info() != ModelInfo() for row in rows)


def test_nothing_imports_the_script_that_makes_the_file() -> None:
    code = "import sys, alloy_trio, alloy_trio.providers, alloy_trio._catalog, alloy_trio._overrides as o; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "alloy_trio._catalog" in loaded
    assert not {"alloy_trio._catalog_make", "genai_prices", "pydantic"} & set(loaded)


@pytest.fixture(scope="module")
def genai_prices() -> Any:
    """Return the data of the genai-prices that the file was made from."""
    data = pytest.importorskip("genai_prices.data", reason="genai-prices is not installed")
    if CATALOG.source != (there := f"genai-prices {importlib.metadata.version('genai-prices')}"):
        pytest.skip(f"the file is of {CATALOG.source}, and {there} is installed")
    return data


def test_the_file_is_what_the_script_makes(genai_prices: Any) -> None:
    make = importlib.import_module("alloy_trio._catalog_make")
    assert make.build(CATALOG.date) == DATA.read_bytes()


def test_requests_cost_what_genai_prices_says(genai_prices: Any) -> None:
    """All models, below and above each tier; by the hour where prices differ, ours is never less."""
    theirs = importlib.import_module("genai_prices").Usage
    noon = dt.datetime.combine(CATALOG.date, dt.time(12), dt.UTC)
    compared = 0
    for provider in genai_prices.providers:
        for row in ROWS.get(provider.id, ()):
            model, ours = provider.find_model(row.names[0]), row.info().price
            if model is None or ours is None or row.input == "0":
                continue
            hour = (
                50 if row.write1h is not None or row.write is None else 0
            )  # ours assumes a rate for it, theirs does not
            counts = {"cache_read_tokens": 100, "cache_write_tokens": 200, "cache_write_1h_tokens": hour}
            for size in (1_000, *(edge for start, _ in ours.tiers for edge in (start - 1, start))):
                report = theirs(input_tokens=size, output_tokens=700, cache_write_5m_tokens=200 - hour, **counts)
                billed = model.calc_price(report, provider, genai_request_timestamp=noon).total_price
                cost = ours.cost(Usage(size - 300, 700, 200, hour, 100))
                assert cost is not None
                assert cost == billed or (cost > billed and provider.id == "deepseek"), row.names
                compared += 1
    assert compared > 2_000


# overrides


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param("acme", 640_000, id="cat-06 unknown: that name"),
        pytest.param("ACME", 640_000, id="cat-06 unknown: in any case"),
        pytest.param("acme-2026-03-05", 200_000, id="cat-06 unknown: no dated form"),
        pytest.param("acme-latest", 200_000, id="cat-06 unknown: not the latest"),
        pytest.param("gpt-5", 300_000, id="cat-06 known: that name"),
        pytest.param("gpt-5-2025-08-07", 300_000, id="cat-06 known: its dated forms"),
        pytest.param("gpt-5-20270101", 300_000, id="cat-06 known: of any form"),
        pytest.param("gpt-5-mini", 272_000, id="cat-06 known: no sibling"),
        pytest.param("gpt-5-mini-2025-08-07", 272_000, id="cat-06 known: no dated sibling"),
        pytest.param("gpt-5.4", 922_000, id="cat-06 known: no next version"),
    ],
)
def test_a_number_overrides_a_name(model: str, expected: int) -> None:
    assert window({"acme": 640_000, "GPT-5": 300_000}, model) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param("acme", 640_000, id="cat-07 the bare name"),
        pytest.param("acme-2602", 640_000, id="cat-07 a pattern"),
        pytest.param("acme-2602-x", 200_000, id="cat-07 the whole rest"),
        pytest.param("acme-2026-03-05", 200_000, id="cat-07 no date by itself"),
        pytest.param("gpt-5.4-beta", 1_000, id="cat-07 known: its pattern"),
        pytest.param("gpt-5.4-BETA", 1_000, id="cat-07 known: in any case"),
        pytest.param("gpt-5.4", 922_000, id="cat-07 known: the bare name is the catalog's"),
        pytest.param("gpt-5.4-2026-03-05", 922_000, id="cat-07 known: dates are the catalog's"),
    ],
)
def test_patterns_say_what_may_follow_a_name(model: str, expected: int) -> None:
    overrides = {
        "acme": {"limit": 640_000, "suffix_patterns": ["", r"^-\d{4}$"]},
        "gpt-5.4": {"limit": 1_000, "suffix_patterns": ("-Beta",)},
    }
    assert window(overrides, model) == expected


def test_cat_07_the_longer_name_wins() -> None:
    overrides = {"acme": {"limit": 1, "suffix_patterns": [".*"]}, "acme-mini": 2}
    assert {model: window(overrides, model) for model in ("acme-maxi", "acme-mini")} == {"acme-maxi": 1, "acme-mini": 2}


def test_the_rest_of_what_is_known_stays_or_is_overridden_too() -> None:
    mine = Price("1", "2")
    overrides = parse_overrides({"gpt-5": 1_000, "gpt-5.4": {"limit": 2_000, "max_output_tokens": 99, "price": mine}})
    catalog = Overridden(CATALOG, overrides)
    gpt5 = info("openai", "gpt-5")
    assert catalog.find("openai", "gpt-5") == ModelInfo(
        context_tokens=1_000, max_output_tokens=gpt5.max_output_tokens, price=gpt5.price
    )
    assert catalog.find("openai", "gpt-5.4") == ModelInfo(context_tokens=2_000, max_output_tokens=99, price=mine)
    assert catalog.find("openai", "o3") == CATALOG.find("openai", "o3")
    assert catalog.find("openai", "nothing") is None


@pytest.mark.parametrize(
    ("overrides", "named", "advice"),
    [
        pytest.param({"acme": 0}, "['acme']=0", "above 0", id="cat-08 zero"),
        pytest.param({"acme": -5}, "['acme']=-5", "above 0", id="cat-08 negative"),
        pytest.param({"acme": 1.5}, "['acme']=1.5", "whole number", id="cat-08 float"),
        pytest.param({"acme": True}, "['acme']=True", "whole number", id="cat-08 bool"),
        pytest.param({"acme": None}, "['acme']=None", "whole number", id="cat-08 None"),
        pytest.param({"acme": "900_000"}, "['acme']='900_000'", "whole number", id="cat-08 text"),
        pytest.param({"fine": 5, "acme": {}}, "['acme'] has no limit", "window in tokens", id="cat-08 no limit"),
        pytest.param({"acme": {"limit": 0}}, "['acme'][\"limit\"]=0", "above 0", id="cat-08 limit zero"),
        pytest.param({"acme": {"limit": None}}, '["limit"]=None', "above 0", id="cat-08 limit None"),
        pytest.param({7: 5}, "key 7", "name of a model", id="cat-08 key that is no text"),
        pytest.param({"": 5}, "key ''", "name of a model", id="cat-08 empty key"),
        pytest.param({"acme": 5, "Acme": 6}, "'Acme' is there twice", "case", id="cat-08 twice"),
        pytest.param({"acme": {"limit": 5, "max": 6}}, "unknown key 'max'", "limit, suffix_patterns", id="cat-08 key"),
        pytest.param(
            {"acme": {"limit": 5, "suffix_patterns": "-x"}}, "='-x'", "list of texts", id="cat-08 one pattern"
        ),
        pytest.param({"acme": {"limit": 5, "suffix_patterns": []}}, "=[]", "list of texts", id="cat-08 no pattern"),
        pytest.param({"acme": {"limit": 5, "suffix_patterns": [5]}}, "=[5]", "list of texts", id="cat-08 no text"),
        pytest.param(
            {"acme": {"limit": 5, "suffix_patterns": ["("]}}, "'('", "no regular expression", id="cat-08 regex"
        ),
        pytest.param({"acme": {"limit": 5, "max_output_tokens": -1}}, "=-1", "above 0", id="cat-08 output"),
        pytest.param({"acme": {"limit": 5, "price": "3"}}, "[\"price\"]='3'", "Price(", id="cat-08 price"),
        pytest.param(["acme"], "=['acme']", "mapping", id="cat-08 no mapping"),
    ],
)
def test_a_malformed_override_is_named(overrides: object, named: str, advice: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_overrides(overrides)
    assert "model_metadata_overrides" in str(caught.value)
    assert named in str(caught.value)
    assert advice in str(caught.value)


def test_cat_08_none_overrides_nothing() -> None:
    assert parse_overrides(None) == {}
    assert window(None, "gpt-5.4") == 922_000


def test_cat_09_overrides_win_over_the_catalog_even_with_a_tiny_number() -> None:
    assert window({"gpt-5.4": 1}, "gpt-5.4") == 1


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_overrides_are_read_or_refused(value: dict[str, Any]) -> None:
    try:
        parsed = parse_overrides(value)
    except InvalidOption:
        return
    assert parsed.keys() == {key.lower() for key in value}
    assert all(window(value, key, provider="nobody") == number for key, number in value.items())


@given(st.dates(dt.date(2000, 1, 1), dt.date(2099, 12, 31)), st.sampled_from(["-%Y%m%d", "@%Y%m%d", "-%Y-%m-%d"]))
def test_every_date_is_one(date: dt.date, form: str) -> None:
    assert DATED.fullmatch(date.strftime(form))
    assert undated("model-1" + date.strftime(form)) == "model-1"


# catalogs of one's own


class Own:
    """Knows one model."""

    def find(self, provider: str, model: str) -> ModelInfo | None:
        return ModelInfo(context_tokens=5) if (provider, model) == ("acme", "one") else None


class OwnDefault(Own):
    default_context_tokens = 77


@pytest.mark.parametrize(
    ("catalog", "model", "expected"),
    [
        pytest.param(CATALOG, None, 200_000, id="opt-02 absent model"),
        pytest.param(CATALOG, "unheard-of", 200_000, id="opt-02 unknown model"),
        pytest.param(Own(), "one", 5, id="opt-07 a catalog of one's own"),
        pytest.param(Own(), "two", 200_000, id="opt-07 without a default"),
        pytest.param(OwnDefault(), "two", 77, id="opt-07 with a default"),
        pytest.param(OwnDefault(), None, 77, id="opt-07 with a default, absent model"),
        pytest.param(Overridden(OwnDefault(), parse_overrides({"one": 9})), "one", 9, id="opt-07 overrides beat it"),
        pytest.param(
            Overridden(OwnDefault(), parse_overrides({"one": 9})), "two", 77, id="opt-07 default below overrides"
        ),
        pytest.param(Overridden(Own(), parse_overrides({"one": 9})), "two", 200_000, id="opt-07 none below overrides"),
    ],
)
def test_a_window_is_the_catalogs_or_its_default(catalog: Catalog, model: str | None, expected: int) -> None:
    assert context_window(catalog, "acme", model) == expected


def test_a_default_that_is_no_number_of_tokens_is_refused() -> None:
    catalog = OwnDefault()
    catalog.default_context_tokens = 0
    with pytest.raises(InvalidOption, match="default_context_tokens=0"):
        context_window(catalog, "acme", "two")


def test_opt_07_a_thing_that_is_no_catalog_is_refused() -> None:
    own = Own()
    assert as_catalog(own) is own
    assert as_catalog(None) is builtin_catalog()
    for thing in ("text", Own, 5, {"find": 1}):
        with pytest.raises(InvalidOption, match=r"find\(provider, model\)"):
            as_catalog(thing)


@pytest.mark.parametrize("name", ["context_tokens", "max_output_tokens"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5"])
def test_a_number_of_tokens_is_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=name):
        ModelInfo(**{name: value})
