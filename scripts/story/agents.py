"""The saga's other agents behind the demo's faults, and two of the demo's own: a budget and a bank.

The budget is there so that more than one step has to be undone, the bank so that a step fails for good. The budget is real:
reservations are rows of a SQLite file, which the scene looks into afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Final

from sagalog.agents import AnyAgent, Context, Terminal, Undo, agent
from sagalog.agents.invoices import agents as invoices
from sagalog.agents.invoices.ledger import Posting
from sagalog.agents.invoices.models import Invoice, Model, Verdict
from story.faults import directory, fail_if_told

BUDGET_FILE: Final = "budget.sqlite"
BUSY_SECONDS_MAX: Final = 10.0


@agent(invoices.validate.name)
def validator(invoice: Invoice, file: str, ctx: Context) -> Verdict:
    fail_if_told(invoices.validate.name, ctx)
    return invoices.validate(invoice, file)


@agent(invoices.match.name)
def orders(invoice: Invoice, ctx: Context) -> invoices.Suggestions:
    fail_if_told(invoices.match.name, ctx)
    return invoices.match(invoice)


@agent(invoices.post.name)
def ledger(invoice: Invoice, ctx: Context) -> Posting:
    fail_if_told(invoices.post.name, ctx)
    return invoices.post(invoice, ctx)


@ledger.compensation
def reverse(undo: Undo[Invoice, Posting], ctx: Context) -> None:
    invoices.reverse(undo, ctx)


@agent(invoices.notify.name)
def notifier(
    posting: Posting, suggestions: invoices.Suggestions, ctx: Context, supplier: str | None = None
) -> invoices.Notice:
    fail_if_told(invoices.notify.name, ctx)
    return invoices.notify(posting, suggestions, ctx, supplier)


class Reservation(Model):
    """Money that is set aside for one invoice."""

    key: str
    currency: str
    amount: Decimal


@agent("budget")
def budget(invoice: Invoice, ctx: Context) -> Reservation:
    """Sets the amount aside, once per workflow."""
    if invoice.currency is None or invoice.amount is None:
        raise Terminal("an invoice without amount and currency has no budget")
    found = Reservation(key=ctx.idempotency_key, currency=invoice.currency, amount=invoice.amount)
    with _budget(directory() / BUDGET_FILE) as connection:
        connection.execute("INSERT OR IGNORE INTO reservation VALUES (?, ?, 0)", (found.key, str(found.amount)))
    return found


@budget.compensation
def release(undo: Undo[Invoice, Reservation], ctx: Context) -> None:
    with _budget(directory() / BUDGET_FILE) as connection:
        connection.execute("UPDATE reservation SET released = 1 WHERE key = ?", (ctx.idempotency_key,))


@agent("bank")
def bank(posting: Posting) -> None:
    """This bank pays nobody: it is there to be a step that fails for good."""
    raise Terminal(f"the bank refuses invoice {posting.invoice_number}: the supplier's account is closed")


def reservations(where: Path) -> list[tuple[str, bool]]:
    """(key, released) of every reservation in the demo's directory."""
    with _budget(where / BUDGET_FILE) as connection:
        rows = connection.execute("SELECT key, released FROM reservation ORDER BY key").fetchall()
    return [(key, bool(released)) for key, released in rows]


@contextmanager
def _budget(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS_MAX)) as connection, connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS reservation (key TEXT PRIMARY KEY, amount TEXT NOT NULL, released INTEGER NOT NULL)"
        )
        yield connection


agents: tuple[AnyAgent, ...] = (validator, orders, ledger, notifier, budget, bank)
