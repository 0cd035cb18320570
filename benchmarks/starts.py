"""Processes that start. Imports are CPU time of the process that does them; the way to a prompt is what a person waits."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .place import ALL

if TYPE_CHECKING:
    from .place import Figures, Place

_TIMES = 15
_PROMPT = re.compile(rb"\x1b\[[?>]?[\d;]*\w")
_PLAIN_TERMINAL = "import trio, prompt_toolkit; print('> ', end='', flush=True); input()"

_LOOKS = """
from alloy_trio._catalog import builtin_catalog
begin = time.process_time()
assert builtin_catalog().find("openai", "gpt-6-astra")
"""
_READS = """
import json, pathlib, importlib.util
where = pathlib.Path(importlib.util.find_spec("alloy_trio").origin).with_name("_catalog.json")
begin = time.process_time()
assert json.loads(where.read_bytes())
"""


def imports(place: Place) -> Figures:
    """Import the package, which loads nothing until it is used, and what a first run needs; the yardstick imports Trio and httpx."""
    if place.side == "bare":
        return {ALL: _fresh(place, "import trio, httpx")}
    return {
        "the import, ms": _fresh(place, "import alloy_trio"),
        "and what a run needs, ms": _fresh(
            place, "from alloy_trio import run, tool\nfrom alloy_trio.providers import OpenAICompat"
        ),
    }


def catalog(place: Place) -> Figures:
    """Find the first model in the catalog; the yardstick reads the file as JSON."""
    code = _LOOKS if place.side == "ours" else _READS
    return {ALL if place.side == "bare" else "the first look, ms": _fresh(place, code)}


def prompt(place: Place) -> Figures:
    """Start the program on a terminal and wait for its prompt; the yardstick imports Trio and prompt_toolkit, and prints one."""
    with tempfile.TemporaryDirectory() as home:
        program = ["-m", "alloy_trio"] if place.side == "ours" else ["-c", _PLAIN_TERMINAL]
        took = [_prompted([sys.executable, *program], home) for _ in range(place.count(_TIMES))]
    return {ALL if place.side == "bare" else "from start to prompt, ms": 1000 * statistics.median(took)}


def _fresh(place: Place, code: str) -> float:
    """Return the milliseconds of CPU that a fresh interpreter takes for it, from its line `begin =` on if there is one."""
    program = f"import time\nbegin = time.process_time()\n{code}\nprint((time.process_time() - begin) * 1e3)"
    times = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(place.count(5) + 1)]
    return statistics.median(times[1:])  # the first one may have written the bytecode


def _prompted(command: list[str], home: str) -> float:
    import pty  # noqa: PLC0415 - not on Windows

    ours, theirs = pty.openpty()
    start = time.perf_counter()
    with _started(command, theirs, home) as process:
        os.close(theirs)
        seen = b""
        while b">" not in _PROMPT.sub(b"", seen):
            seen += os.read(ours, 1 << 16)
        took = time.perf_counter() - start
        process.kill()
    os.close(ours)
    return took


def _started(command: list[str], terminal: int, home: str) -> subprocess.Popen[bytes]:
    own = {f"XDG_{kind}_HOME": str(Path(home)) for kind in ("CONFIG", "DATA", "STATE")}
    return subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**os.environ, **own, "TERM": "xterm", "NO_COLOR": "1"},
    )
