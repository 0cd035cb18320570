"""What CI installs is what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PINS = ROOT / ".ci" / "constraints.txt"


def wanted() -> Iterator[Requirement]:
    """All that pyproject.toml names, in the core, in extras and in groups."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lists = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    for each in [*lists, *project["dependency-groups"].values()]:
        yield from (Requirement(entry) for entry in each if isinstance(entry, str))


def pinned() -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in PINS.read_text("utf-8").splitlines():
        pin = Requirement(line)
        pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.skipif(not PINS.exists(), reason="the pins of CI are not in an sdist")
@pytest.mark.parametrize("requirement", sorted(wanted(), key=str), ids=str)
def test_each_requirement_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    pins = pinned().get(canonicalize_name(requirement.name), [])
    assert pins, "not pinned: run `nox -s pins`"
    for pin in pins:
        (version,) = pin.specifier
        assert version.operator == "=="
        assert version.version in requirement.specifier, "pinned too low: run `nox -s pins`"


def test_every_requirement_has_a_lower_bound() -> None:
    assert [str(each) for each in wanted() if not any(bound.operator == ">=" for bound in each.specifier)] == []
