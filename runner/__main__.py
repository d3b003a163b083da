"""`python -m runner`."""

from __future__ import annotations

import sys

from runner.cli import heed_signals, main

if __name__ == "__main__":
    heed_signals()
    sys.exit(main(sys.argv[1:]))
