"""
Fuzz one target with atheris: `python tests/fuzz/run.py sse --minutes 2`, and `--seeds FOLDER` for more to begin with.

Inputs that found something new are kept in `--corpus FOLDER`, and one that fails in `--findings FOLDER`; a file there is tried
again by `--input FILE`. Without atheris nothing here works; the targets themselves are plain functions, which test_fuzz_targets
calls too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
LONGEST = 4096  # bytes of an input


def main() -> None:
    """Do as the command line says."""
    options = arguments()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    with atheris.instrument_imports(include=["alloy_trio"]):
        target = importlib.import_module(f"target_{options.target}")
    if options.input is not None:
        target.check(options.input.read_bytes())
        return
    for folder in (options.corpus, options.findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.SEEDS:
        (options.corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    limits = [
        f"-max_total_time={round(60 * options.minutes)}",
        f"-max_len={LONGEST}",
        "-rss_limit_mb=2048",
        "-timeout=30",
    ]
    place = [f"-artifact_prefix={options.findings}/{options.target}-"]
    atheris.Setup([sys.argv[0], *limits, *place, str(options.corpus), *map(str, options.seeds)], target.check)
    atheris.Fuzz()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--seeds", type=Path, action="append", default=[])
    parser.add_argument("--input", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
