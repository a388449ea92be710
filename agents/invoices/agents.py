"""The agents of the invoice saga: read, validate, match, post, notify. Each is a thin shell around a pure function.

Rules:
- What OCR cannot read with confidence, and what does not add up, raises NeedsReview with the reasons: a wrong amount is
  never accepted in silence. `known_fields` says what of such an invoice may still be shown as read.
- What cannot get better by trying again (a damaged file) asks for a person at once; what can (no time left) is retried.
- Every effect on the world is keyed by `Context.idempotency_key`, so that doing it again changes nothing.

They are ordinary functions, because OCR and SQLite block: the host runs them in threads. Their settings are the
environment's variables below, without SAGALOG_ before them: the agents' settings are not the engine's.
"""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from sagalog.agents.agent import AnyAgent, Undo, agent
from sagalog.agents.context import Context
from sagalog.agents.errors import AgentError, NeedsReview, Retryable, Terminal
from sagalog.agents.invoices.amounts import FIELD_CONFIDENCE_MIN, check_amounts
from sagalog.agents.invoices.errors import InvoiceError, LedgerError, ReadingTimeout, UnpostableInvoice
from sagalog.agents.invoices.fields import extract
from sagalog.agents.invoices.ledger import Posting, SqliteLedger
from sagalog.agents.invoices.models import Invoice, Model, Verdict
from sagalog.agents.invoices.orders import Match, Order, sample_orders, suggest_orders
from sagalog.agents.invoices.reading import read_document

LEDGER_VARIABLE: Final = "INVOICES_LEDGER"
LEDGER_DEFAULT: Final = Path(".sagalog", "invoices-ledger.sqlite")
"""The SQLite file of the ledger: beside the data of `sagalog dev`, so that it works without any setting."""
OUTBOX_VARIABLE: Final = "INVOICES_OUTBOX"
OUTBOX_DEFAULT: Final = Path(".sagalog", "invoices-outbox.sqlite")
"""The SQLite file of messages to send; whatever sends mail empties it."""
ORDERS_VARIABLE: Final = "INVOICES_ORDERS"
"""A JSON file with the open purchase orders (see `orders.Order`); not set: the orders shipped with the samples."""

READERS: Final = 2
"""One document in the OCR engine, which takes one at a time, and one that is opened or taken apart meanwhile."""
ORDERS_BYTES_MAX: Final = 16 * 2**20
BUSY_SECONDS_MAX: Final = 10.0
PATH_CHARS_MAX: Final = 4_096


class Document(Model):
    """The saga's input. `file` is a path on the machine of the agent that reads it."""

    file: Annotated[str, Field(min_length=1, max_length=PATH_CHARS_MAX)]


class KnownFields(Model):
    """What is known of an invoice: a field that is in doubt is None."""

    invoice_number: str | None = None
    date: dt.date | None = None
    currency: str | None = None
    amount: Decimal | None = None


class Suggestions(Model):
    """The purchase orders that may belong to an invoice, best first. None is the neutral answer."""

    matches: tuple[Match, ...] = ()


class Notice(Model):
    """A message that lies in the outbox."""

    key: str
    text: str


def known_fields(invoice: Invoice) -> KnownFields:
    """The fields that were read with confidence, and the amount only when nothing at all is to be said against it.

    Number, date and currency each stand for themselves. The amount is judged as if they were all known, so that a
    missing date does not hide a total that adds up.
    """
    sure = {
        name: value for name in ("invoice_number", "date", "currency") if (value := _sure(invoice, name)) is not None
    }
    filled = invoice.model_copy(
        update={
            "invoice_number": invoice.invoice_number or "-",
            "date": invoice.date or dt.date.min,
            "currency": invoice.currency,
            "confidence": invoice.confidence | {"invoice_number": 1.0, "date": 1.0},
            "doubts": tuple(doubt for doubt in invoice.doubts if doubt.field not in ("invoice_number", "date")),
        }
    )
    amount = invoice.amount if check_amounts(filled).accepted else None
    return KnownFields.model_validate({**sure, "amount": amount})


def _sure(invoice: Invoice, name: str) -> object:
    doubted = any(doubt.field == name for doubt in invoice.doubts)
    confident = invoice.confidence.get(name, 0.0) >= FIELD_CONFIDENCE_MIN
    return getattr(invoice, name) if confident and not doubted else None


# --- read


@agent("ocr", concurrency=READERS)
def read(document: Document) -> Invoice:
    """Reads the document (text layer or OCR) and finds the invoice's fields in it."""
    try:
        return extract(read_document(Path(document.file)))
    except ReadingTimeout as error:
        raise Retryable(str(error)) from error
    except InvoiceError as error:
        nothing = KnownFields().model_dump(mode="json")
        raise NeedsReview(str(error), {"file": document.file, "reasons": [str(error)], "invoice": nothing}) from error


# --- validate


@agent("validator")
def validate(invoice: Invoice, file: str) -> Verdict:
    """Accepts the invoice's amount, or asks for a person with every reason and with what is known all the same."""
    verdict = check_amounts(invoice)
    if not verdict.accepted:
        details = {
            "file": file,
            "reasons": verdict.reasons,
            "confirmations": verdict.confirmations,
            "invoice": known_fields(invoice).model_dump(mode="json"),
            "evidence": invoice.evidence,
        }
        raise NeedsReview("; ".join(verdict.reasons), details)
    return verdict


# --- match


@agent("orders")
def match(invoice: Invoice) -> Suggestions:
    """Suggests purchase orders; it decides nothing."""
    return Suggestions(matches=tuple(suggest_orders(invoice, open_orders())))


def open_orders() -> list[Order]:
    """The orders of the file that the environment names, or those of the samples. Raises AgentError."""
    named = os.environ.get(ORDERS_VARIABLE)
    if not named:
        return sample_orders()
    try:
        with Path(named).open("rb") as file:
            raw = file.read(ORDERS_BYTES_MAX + 1)
        if len(raw) > ORDERS_BYTES_MAX:
            raise AgentError(f"{ORDERS_VARIABLE}: {named} has more than {ORDERS_BYTES_MAX:,} bytes; name a smaller one")
        return TypeAdapter(list[Order]).validate_json(raw)
    except OSError as error:
        raise AgentError(
            f"{ORDERS_VARIABLE}: {named} cannot be read ({error.strerror}); correct the variable"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AgentError(f"{ORDERS_VARIABLE}: {named} holds no list of orders ({where}: {first['msg']})") from error


# --- post


@agent("ledger")
def post(invoice: Invoice, ctx: Context) -> Posting:
    """Posts the invoice, once per workflow."""
    try:
        return ledger().post(ctx.idempotency_key, invoice)
    except UnpostableInvoice as error:
        raise NeedsReview(str(error), {"reasons": [str(error)]}) from error
    except LedgerError as error:
        raise Terminal(str(error)) from error


@post.compensation
def reverse(undo: Undo[Invoice, Posting], ctx: Context) -> None:
    """Reverses the posting, or makes sure that it can never come when nobody knows whether it did."""
    ledger().reverse(ctx.idempotency_key)


def ledger() -> SqliteLedger:
    """The ledger that the environment names."""
    return SqliteLedger(_file(LEDGER_VARIABLE, LEDGER_DEFAULT))


# --- notify


@agent("notifier")
def notify(posting: Posting, suggestions: Suggestions, ctx: Context, supplier: str | None = None) -> Notice:
    """Puts a message about the posting into the outbox, once per workflow."""
    text = f"Invoice {posting.invoice_number} of {supplier or 'an unknown supplier'} is in the books"
    if suggestions.matches:
        text += f"; it may belong to order {suggestions.matches[0].reference}"
    notice = Notice(key=ctx.idempotency_key, text=f"{text}.")
    with closing(sqlite3.connect(_file(OUTBOX_VARIABLE, OUTBOX_DEFAULT), timeout=BUSY_SECONDS_MAX)) as outbox, outbox:
        outbox.execute("CREATE TABLE IF NOT EXISTS messages (key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT")
        # The same key again is the same message: it keeps the first text.
        outbox.execute("INSERT OR IGNORE INTO messages VALUES (?, ?)", (notice.key, notice.text))
    return notice


def _file(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable) or default)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


agents: tuple[AnyAgent, ...] = (read, validate, match, post, notify)
