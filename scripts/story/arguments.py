"""The arguments and exit codes of `scripts/demo`. It imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

EXIT_EXPECTATION: Final = 1
EXIT_USAGE: Final = 2
EXIT_STOPPED: Final = 3
EXIT_INTERRUPTED: Final = 130

DESCRIPTION: Final = """\
Shows sagalog at work on invoices, with an embedded Kafka and PostgreSQL that are gone afterwards:
healthy runs, retries, compensation, a degraded result, an open circuit, kill -9 of the engine, the rows, verify.
"""
EPILOG: Final = """\
examples:
  scripts/demo                                      all of it, in about a minute
  scripts/demo --keep                               the same, and then it goes on running, to be explored
  scripts/demo --invoices a.pdf "scan 2.png"        your own documents instead, without the faults
  scripts/demo --invoices *.pdf --json | jq .invoice

With --json, standard output holds one JSON object per workflow and nothing else:
  file (as given), workflow_id, status, invoice {invoice_number, date, currency, amount}, missing, steps
A field of the invoice that is in doubt is null; why stands in the `reasons` of the step that asked for a person.

exit codes: 0 every expectation held; 1 one did not; 2 wrong arguments; 3 something could not be started or ended by
itself; 130 interrupted (with --keep, Ctrl-C after the end is the way to stop, and the code is that of the end).
With --invoices it is expected that every document ends posted (completed, degraded) or with a person (review); a file
that cannot be opened ends there, too, with the reason.
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with 2 on arguments that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per workflow on standard output")
    parser.add_argument(
        "--invoices", nargs="+", metavar="PATH", help="your own PDF or image files instead of the shipped ones"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running until Ctrl-C, and print its addresses"
    )
    return parser.parse_args(arguments)
