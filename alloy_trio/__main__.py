"""`python -m alloy_trio`."""

from __future__ import annotations

import sys

from .repl._cli import main

if __name__ == "__main__":
    sys.exit(main())
