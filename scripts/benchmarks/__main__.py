"""`python -m benchmarks`, as `scripts/bench` runs it."""

import sys

from benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
