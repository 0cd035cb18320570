"""`"provider:model"` strings: which names there are, and what each stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import InvalidOption
from ._secret import discreet
from ._vendors import VENDORS

if TYPE_CHECKING:
    from ._base import Provider

_OWN_WIRE = ("anthropic", "openai")


def names() -> tuple[str, ...]:
    """Return the names of all providers that `resolve` knows."""
    return ("demo", *_OWN_WIRE, *VENDORS)


def resolve(provider: Provider | str) -> Provider:
    """
    Return a provider as it is, or the one that a `"provider:model"` string names, with its key from the environment.

    Raises:
        InvalidOption: It is neither, the name is unknown, the model is missing, or there is no key.
    """
    if isinstance(provider, str):
        name, _, model = provider.partition(":")
        return make(name.strip().lower(), model.strip() or None)
    if isinstance(provider, type):
        raise InvalidOption(f"provider={provider.__name__} is a class: give an instance of it, {provider.__name__}(…)")
    if not callable(getattr(provider, "complete", None)):
        raise InvalidOption(f"provider={provider!r} is no provider: it needs an async method complete(request)")
    return provider


@discreet
def make(name: str, model: str | None = None, *, base_url: str | None = None, api_key: str | None = None) -> Provider:
    """Make the provider of a name; `model`, `base_url` and `api_key` as its class takes them. Raises `InvalidOption`."""
    if name == "demo":
        from ._demo import Demo  # noqa: PLC0415 - each provider is loaded by those who use it

        return Demo() if model is None else Demo(model=model)
    if name not in names():
        advice = "the providers are" if model else 'say "PROVIDER:MODEL"; the providers are'
        raise InvalidOption(f"unknown provider {name!r}: {advice} {', '.join(names())}")
    if model is None:
        raise InvalidOption(f'provider {name!r} needs a model: say "{name}:MODEL"')
    given: dict[str, Any] = {
        key: value for key, value in (("base_url", base_url), ("api_key", api_key)) if value is not None
    }
    if name == "anthropic":
        from ._anthropic import Anthropic  # noqa: PLC0415 - as above

        return Anthropic(model=model, **given)
    if name == "openai":
        from ._openai import OpenAI  # noqa: PLC0415 - as above

        return OpenAI(model=model, **given)
    from ._openai_compat import OpenAICompat  # noqa: PLC0415 - as above

    return OpenAICompat.of(name, model, **given)
