"""The options of one run, checked, with every default filled in, and what is made of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs

from . import _checks
from ._catalog import Catalog, ModelInfo, as_catalog, builtin_catalog, context_window, look_up
from ._compaction import Compaction
from ._emitter import OnEvent
from ._errors import InvalidOption
from ._middleware import OnCompaction, checked
from ._options import ELSEWHERE, RunOptions
from ._output import ANSWER_TOOL, Output
from ._overrides import Overridden, parse_overrides
from ._price import Price
from ._session import Session
from ._util import Discreet, new_id
from .providers._base import Provider, provider_model, provider_name, takes_schema
from .providers._metered import Metered
from .providers._names import resolve
from .providers._retry import Fallback, Retrying, Streaming
from .providers._secret import discreet
from .tools._tool import Tool

_LONGEST_WAIT = 60.0  # seconds that a provider may ask us to wait where another one stands ready


@attrs.frozen(kw_only=True)
class Config:
    """The options of one run, checked, with every default filled in; `RunOptions` says what they mean."""

    provider: Provider
    tools: Mapping[str, Tool] = attrs.field(default=(), converter=_checks.tools_by_name)
    system_prompt: str | None = attrs.field(default=None, validator=_checks.optional_text)
    session: Session
    max_turns: int = attrs.field(default=25, validator=_checks.whole_number)
    context_tokens: int = attrs.field(validator=_checks.whole_number)
    max_output_tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_checks.whole_number))
    max_budget_cents: Decimal | None = attrs.field(default=None, converter=_checks.cents)
    max_retries: int = attrs.field(default=3, validator=_checks.whole_number_or_0)
    retry_backoff: float = attrs.field(default=1.0, validator=_checks.finite_duration)
    fallback_providers: tuple[Provider, ...] = ()
    timeout: float | None = attrs.field(default=None, validator=attrs.validators.optional(_checks.duration))
    tool_timeout: float = attrs.field(default=120.0, validator=_checks.duration)
    cancel_grace: float = attrs.field(default=5.0, validator=_checks.duration)
    working_directory: Path = attrs.field(default=Path(), converter=_checks.path)
    allowed_paths: tuple[Path, ...] | None = attrs.field(default=None, converter=_checks.paths)
    # The user's own values.
    context: Mapping[str, Any] = attrs.field(factory=dict, validator=_checks.mapping, repr=False)
    deps: Any = attrs.field(default=None, repr=False)
    until_tool: str | None = attrs.field(default=None, validator=_checks.optional_text)
    output_type: Output | None = None  # made of the type
    middleware: tuple[object, ...] = ()
    compaction: Compaction | None = attrs.field(default=None, converter=_checks.compaction)
    on_compaction: OnCompaction | None = attrs.field(default=None, validator=_checks.callback)
    on_event: OnEvent | None = attrs.field(default=None, validator=_checks.callback)
    model_metadata_overrides: Mapping[str, Any] | None = None
    catalog: Catalog
    provider_state: Mapping[str, Any] | None = attrs.field(
        default=None, validator=attrs.validators.optional(_checks.mapping)
    )
    code_execution: bool = attrs.field(default=False, validator=_checks.flag)

    def __attrs_post_init__(self) -> None:
        if self.until_tool is not None and self.until_tool not in self.tools:
            known = ", ".join(self.tools) or "there are none"
            raise InvalidOption(f"until_tool={self.until_tool!r} is none of the tools: {known}")

    @property
    def correlation_id(self) -> str:
        """The context's `request_id`, else its `correlation_id`, else a random one that starts with the session's id."""
        given = self.context.get("request_id") or self.context.get("correlation_id")
        return str(given) if given else new_id(f"{self.session.id}-")

    @property
    def hooked(self) -> tuple[object, ...]:
        """All middlewares in the order of their hooks: compaction before the user's, unless the user has placed it."""
        if self.compaction is None or any(isinstance(each, Compaction) for each in self.middleware):
            return self.middleware
        return (self.compaction, *self.middleware)

    def metered(self, *, streaming: bool) -> tuple[Metered, ...]:
        """Return the providers of a run, in the order in which they are asked, each with what the catalog knows of it."""
        return tuple(
            Metered(each, self._info(each), streaming=streaming) for each in (self.provider, *self.fallback_providers)
        )

    def chain(self, metered: Sequence[Metered]) -> Streaming:
        """Return what a run asks: each provider with its retries, and the next one after it."""
        waits = [_LONGEST_WAIT] * (len(metered) - 1) + [math.inf]
        retrying = [
            Retrying(each, self.max_retries, self.retry_backoff, longest_wait=wait)
            for each, wait in zip(metered, waits, strict=True)
        ]
        return Fallback(retrying) if len(retrying) > 1 else retrying[0]

    def _info(self, provider: Provider) -> ModelInfo | None:
        """Return what is known of a provider's model; at another address than the vendor's own, not what the vendor asks for it."""
        name, model = provider_name(provider), provider_model(provider)
        info = look_up(self.catalog, name, model)
        if info is None or getattr(provider, "is_at_vendor", True):
            return info
        listed = look_up(builtin_catalog(), name, model)
        is_listed = listed is not None and listed.price == info.price
        return attrs.evolve(info, price=None) if is_listed else info


_make = discreet(Config)


def configure(options: Mapping[str, Any]) -> Config:
    """
    Check the options of a run and fill in the defaults.

    Raises:
        InvalidOption: One is unknown, has an impossible value, or contradicts another; the message says what to do.
    """
    rest = Discreet(options)
    for name in options:
        if name not in RunOptions.__annotations__:
            raise InvalidOption(f"unknown option {name!r}: {ELSEWHERE.get(name) or _nearest(name)}")
    if rest.get("provider") is None:
        raise InvalidOption(
            'a provider is needed: provider="anthropic:claude-sonnet-5-5", or "demo" to try without a key'
        )
    if "middleware" in rest:
        rest["middleware"] = checked(rest["middleware"])
    _check_compaction(rest)
    provider = resolve(rest.pop("provider"))
    fallbacks = _checks.fallbacks(rest.pop("fallback_providers", ()))
    for each in (provider, *fallbacks):
        _check_price(each)
    if rest.get("code_execution") is True:
        if _running_code(provider) is provider:
            name = provider_name(provider)
            raise InvalidOption(f"code_execution=True: provider {name} has no sandbox to run code in")
        provider, fallbacks = _running_code(provider), tuple(map(_running_code, fallbacks))
    catalog = as_catalog(rest.pop("catalog", None))
    if overrides := parse_overrides(rest.get("model_metadata_overrides")):
        catalog = Overridden(catalog, overrides)
    if rest.get("context_tokens") is None:
        rest["context_tokens"] = context_window(catalog, provider_name(provider), provider_model(provider))
    rest["output_type"] = _output(rest, (provider, *fallbacks))
    session = _session(rest)
    return _make(**rest, provider=provider, fallback_providers=fallbacks, catalog=catalog, session=session)


def _nearest(name: str) -> str:
    valid = sorted(RunOptions.__annotations__)
    near = difflib.get_close_matches(name, valid, 1)
    return f"{f'is it {near[0]}? ' if near else ''}The options are {', '.join(valid)}"


def _check_compaction(options: Mapping[str, Any]) -> None:
    placed = sum(isinstance(each, Compaction) for each in options.get("middleware", ()))
    if placed and options.get("compaction") is not None:
        raise InvalidOption("compaction= is given, and middleware has a Compaction too: leave one of them out")
    if placed > 1:
        raise InvalidOption("middleware has more than one Compaction: leave all but one out")
    if options.get("on_compaction") is not None and options.get("compaction") is False:
        raise InvalidOption("on_compaction= is given, and compaction=False: nothing would ever call it")


def _check_price(provider: Provider) -> None:
    price = getattr(provider, "price", None)
    if not isinstance(price, Price | None):
        raise InvalidOption(
            f'provider {provider_name(provider)} has price={price!r:.100}: it has to be a Price, like Price("3", "15")'
        )


def _running_code(provider: Provider) -> Provider:
    """Let a provider run code in its sandbox, if it has one."""
    if not (attrs.has(type(provider)) and hasattr(provider, "code_execution")):
        return provider
    return attrs.evolve(provider, code_execution=True)  # type: ignore[misc] # an attrs class of ours


def _output(options: dict[str, Any], chain: Sequence[Provider]) -> Output | None:
    """Make what `output_type` asks for; where no schema can be sent, it adds a tool to the options."""
    if (kind := options.get("output_type")) is None:
        return None
    if options.get("until_tool") is not None:
        raise InvalidOption("until_tool= and output_type= are both given: the answer of a type ends the run by itself")
    output = Output.of(kind, lambda schema: all(takes_schema(each, schema) for each in chain))
    if not output.native:
        tools = _checks.tools_by_name(options.get("tools", ()))
        options["tools"] = [*tools.values(), output.tool()]
        options["until_tool"] = ANSWER_TOOL
    return output


def _session(options: dict[str, Any]) -> Session:
    """Take the session, or the messages for one, out of the options."""
    given, session = options.pop("messages", None), options.pop("session", None)
    messages = _checks.messages(() if given is None else given)
    if not isinstance(session, Session | None):
        raise InvalidOption(f"session={session!r:.100} is no Session: make one by Session(), or Session.from_json(…)")
    if messages and session is not None:
        raise InvalidOption("messages= and session= are both given: a session brings its own messages")
    if session is not None:
        return session
    context = options.get("context")
    named = context.get("session_id") if isinstance(context, Mapping) else None
    return Session(id=str(named) if named else new_id(), messages=messages)
