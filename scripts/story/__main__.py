"""`python -m story`, as `scripts/demo` runs it."""

import sys

from story.arguments import parse

if __name__ == "__main__":
    options = parse()
    # Behind the arguments, which are wrong at times: what follows takes a second to load.
    from story.cli import run

    sys.exit(run(options))
