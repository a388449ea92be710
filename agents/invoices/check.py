"""Reads invoices and says what would happen to them: `python -m sagalog.agents.invoices.check FILE... [--json]`.

Exit codes: 0 every invoice would go straight through; 1 at least one asks for a review; 2 at least one file could not
be read at all, or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sagalog.agents.invoices.amounts import check_amounts
from sagalog.agents.invoices.errors import InvoiceError
from sagalog.agents.invoices.fields import extract
from sagalog.agents.invoices.models import Invoice, Verdict
from sagalog.agents.invoices.reading import read_document

EXIT_ACCEPTED = 0
EXIT_REVIEW = 1
EXIT_UNREADABLE = 2


@dataclass(frozen=True)
class Checked:
    """One file's outcome: either an invoice with its verdict, or the error that kept it from being read."""

    path: Path
    seconds: float
    invoice: Invoice | None = None
    verdict: Verdict | None = None
    error: str | None = None


def check_file(path: Path) -> Checked:
    """Read, extract and check one file. Never raises for what the file holds."""
    started = time.monotonic()
    try:
        invoice = extract(read_document(path))
    except InvoiceError as error:
        return Checked(path, time.monotonic() - started, error=str(error))
    return Checked(path, time.monotonic() - started, invoice, check_amounts(invoice))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sagalog.agents.invoices.check",
        description="Read invoices (PDF or image) and show their fields, the verdict and its reasons.",
        epilog="Exit codes: 0 all accepted, 1 some need a review, 2 some could not be read.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of a table")
    options = parser.parse_args(arguments)
    outcomes = []
    for path in options.files:
        outcome = check_file(path)
        outcomes.append(outcome)
        if options.json:
            sys.stdout.write(json.dumps(_as_json(outcome), ensure_ascii=False) + "\n")
    if not options.json:
        _print_table(outcomes)
    if any(outcome.error for outcome in outcomes):
        return EXIT_UNREADABLE
    return EXIT_ACCEPTED if all(o.verdict and o.verdict.accepted for o in outcomes) else EXIT_REVIEW


def _as_json(outcome: Checked) -> dict[str, object]:
    return {
        "file": str(outcome.path),
        "seconds": round(outcome.seconds, 3),
        "error": outcome.error,
        "verdict": outcome.verdict.model_dump(mode="json") if outcome.verdict else None,
        "invoice": outcome.invoice.model_dump(mode="json") if outcome.invoice else None,
    }


def _print_table(outcomes: list[Checked]) -> None:
    table = Table(show_lines=True)
    for name in ("file", "number", "date", "total", "verdict", "because"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        invoice, verdict = outcome.invoice, outcome.verdict
        if invoice is None or verdict is None:
            table.add_row(outcome.path.name, "", "", "", "unreadable", outcome.error or "")
            continue
        total = f"{invoice.currency or '?'} {invoice.amount if invoice.amount is not None else '?'}"
        because = verdict.reasons or verdict.confirmations
        table.add_row(
            f"{outcome.path.name}\n{invoice.method}, {outcome.seconds:.2f} s",
            invoice.invoice_number or "?",
            str(invoice.date or "?"),
            total,
            verdict.decision,
            "\n".join(f"- {reason}" for reason in because),
        )
    # Wide enough for the reasons when the output is a pipe.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
