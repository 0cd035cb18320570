"""Settings for all tests."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from redis_server import _rest_of_coredis, fleet, shared_redis  # noqa: F401 - fixtures

from alloy_trio.tools import _linkfree

if TYPE_CHECKING:
    from collections.abc import Generator

# No deadline: how long one example takes says more about the machine than about the code.
settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(  # of `nox -s fuzz`: other examples each time, and many of them
    "deep",
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> Generator[None, Any, Any]:
    """Let no cancel leave a test unseen: the runner would take it for a success."""
    items = yield
    for item in items if isinstance(items, list) else []:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _without_stray_cancel(item.obj)
    return items


def _without_stray_cancel(test: Any) -> Any:
    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            assert not isinstance(sys.exception(), trio.Cancelled), "a cancel has leaked out of the test"

    return checked


@pytest.fixture(params=["kernel", "walk", "walk-by-lists"])
def way(request: pytest.FixtureRequest) -> Generator[str]:
    """Every way in which the file tools open a directory: by `openat2`, and by walking, on Linux and elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "kernel":
            patch.setattr(_linkfree, "_openat2", lambda: None)
        if request.param == "walk-by-lists":  # no O_PATH, as on macOS
            patch.setattr(_linkfree, "_DIRECTORY", os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_CLOEXEC)
        yield request.param
