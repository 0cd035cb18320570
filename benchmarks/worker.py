"""One scenario, one side, in a process of its own: prints its figures as JSON. `python -m benchmarks` starts it."""

from __future__ import annotations

import json
import os
import sys

import attrs

from .place import Place
from .scenarios import SCENARIOS


def command(name: str, place: Place) -> list[str]:
    """Return the command that runs it."""
    return [sys.executable, "-m", "benchmarks.worker", name, json.dumps(attrs.asdict(place))]


def main() -> None:
    """Run it, and end without the hooks of any library."""
    name, place = sys.argv[1:]
    print(json.dumps(SCENARIOS[name].run(Place(**json.loads(place)))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
