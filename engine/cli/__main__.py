"""`python -m sagalog.engine.cli` is `sagalog`."""

from . import main

main()
