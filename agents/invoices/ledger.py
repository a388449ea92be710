"""A small real ledger: double-entry postings of invoices that can be done again, and undone, without doubling.

Rules: money is integer minor units per currency; every posting and every reversal balances to zero; one key is posted
at most once and reversed at most once, whatever order the calls arrive in. A reversal that arrives before its posting
(the saga compensates a step whose answer was lost) leaves a tombstone, and the late posting is refused.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Literal, Protocol

from sagalog.agents.invoices.currency import CODES, EXPONENTS
from sagalog.agents.invoices.errors import PostingConflict, PostingReversed, UnpostableInvoice
from sagalog.agents.invoices.models import Invoice, Model

Account = Literal["expenses", "input-tax", "payables"]

# How long a call waits for another process's transaction; each holds the lock for well under a millisecond.
BUSY_SECONDS_MAX = 10.0
# SQLite integers have 64 bits; an invoice of this many minor units is a mistake long before that.
MINOR_MAX = 10**15
KEY_LENGTH_MAX = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS postings (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
-- A row without a posting of the same key is a tombstone: the key can never be posted again.
CREATE TABLE IF NOT EXISTS reversals (
    key TEXT PRIMARY KEY,
    body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('posting', 'reversal')),
    account TEXT NOT NULL,
    currency TEXT NOT NULL,
    minor INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entries_by_key ON entries (key);
"""


class Entry(Model):
    """One side of a posting or reversal. Positive `minor` is a debit, negative a credit, in minor units."""

    key: str
    kind: Literal["posting", "reversal"]
    account: Account
    currency: str
    minor: int


class Posting(Model):
    """An invoice in the books. Its entries add up to zero."""

    key: str
    invoice_number: str
    currency: str
    amount_minor: int
    entries: tuple[Entry, ...]


class Reversal(Model):
    """The undoing of a key. `posted` is False for a tombstone: there was nothing to undo, and now never will be."""

    key: str
    posted: bool
    entries: tuple[Entry, ...] = ()


class Ledger(Protocol):
    """What the posting agent needs of a ledger."""

    def post(self, key: str, invoice: Invoice) -> Posting:
        """Post once; the same key returns the same posting.

        Raises `PostingReversed` after a reversal of the key, `PostingConflict` when the key has another invoice,
        `UnpostableInvoice` when number, currency or amount are missing or do not fit.
        """

    def reverse(self, key: str) -> Reversal:
        """Undo once; the same key returns the same reversal, also when it was never posted."""

    def balance(self) -> dict[str, dict[str, int]]:
        """currency -> account -> minor units. The accounts of each currency add up to zero."""

    def entries(self) -> tuple[Entry, ...]:
        """All entries in the order in which they were written."""


class SqliteLedger:
    """A `Ledger` in one SQLite file, safe for several threads and processes: every call is one write transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as connection:
            # WAL lets readers go on during a write; it stays set in the file.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)

    def post(self, key: str, invoice: Invoice) -> Posting:
        """See `Ledger.post`."""
        posting = _posting(key, invoice)
        digest = _digest(posting, invoice)
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM reversals WHERE key = ?", (key,)).fetchone():
                raise PostingReversed(
                    f"posting {key!r} is refused: it was reversed before; post a corrected invoice under a new key"
                )
            known = connection.execute("SELECT digest, body FROM postings WHERE key = ?", (key,)).fetchone()
            if known is not None:
                if known[0] != digest:
                    raise PostingConflict(
                        f"posting {key!r} is refused: the key already holds another invoice "
                        f"({Posting.model_validate_json(known[1]).invoice_number}); use one key per invoice"
                    )
                return Posting.model_validate_json(known[1])
            connection.execute("INSERT INTO postings VALUES (?, ?, ?)", (key, digest, posting.model_dump_json()))
            _write(connection, posting.entries)
        return posting

    def reverse(self, key: str) -> Reversal:
        """See `Ledger.reverse`."""
        _check_key(key)
        with self._writing() as connection:
            known = connection.execute("SELECT body FROM reversals WHERE key = ?", (key,)).fetchone()
            if known is not None:
                return Reversal.model_validate_json(known[0])
            row = connection.execute("SELECT body FROM postings WHERE key = ?", (key,)).fetchone()
            posted = Posting.model_validate_json(row[0]).entries if row is not None else ()
            entries = tuple(e.model_copy(update={"kind": "reversal", "minor": -e.minor}) for e in posted)
            reversal = Reversal(key=key, posted=row is not None, entries=entries)
            connection.execute("INSERT INTO reversals VALUES (?, ?)", (key, reversal.model_dump_json()))
            _write(connection, entries)
        return reversal

    def balance(self) -> dict[str, dict[str, int]]:
        """See `Ledger.balance`."""
        with closing(self._connect()) as connection:
            rows = connection.execute(
                "SELECT currency, account, SUM(minor) FROM entries GROUP BY currency, account ORDER BY currency, account"
            ).fetchall()
        balance: dict[str, dict[str, int]] = {}
        for currency, account, minor in rows:
            balance.setdefault(currency, {})[account] = minor
        for currency, accounts in balance.items():
            assert sum(accounts.values()) == 0, f"the books of {currency} do not balance: {accounts}"
        return balance

    def entries(self) -> tuple[Entry, ...]:
        """See `Ledger.entries`."""
        with closing(self._connect()) as connection:
            rows = connection.execute("SELECT key, kind, account, currency, minor FROM entries ORDER BY id").fetchall()
        names = ("key", "kind", "account", "currency", "minor")
        return tuple(Entry.model_validate(dict(zip(names, row, strict=True))) for row in rows)

    def _connect(self) -> sqlite3.Connection:
        # A connection per call: SQLite connections belong to one thread, and opening one costs little.
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
        # In WAL mode a commit must reach the disk before the caller tells the saga that it happened.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            # IMMEDIATE takes the write lock before the first read, so that no other process posts in between.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def to_minor(amount: Decimal, currency: str) -> int:
    """The amount in minor units of the currency. Raises `UnpostableInvoice` when it has more decimals than that."""
    if currency not in CODES:
        raise UnpostableInvoice(
            f"the currency {currency!r} is unknown to the ledger; known are {', '.join(sorted(CODES))}"
        )
    minor = amount.scaleb(EXPONENTS.get(currency, 2))
    if minor != minor.to_integral_value():
        raise UnpostableInvoice(f"{amount} has more decimals than {currency} has; correct the amount")
    if abs(minor) > MINOR_MAX:
        raise UnpostableInvoice(f"{amount} {currency} is more than the ledger holds; correct the amount")
    return int(minor)


def _posting(key: str, invoice: Invoice) -> Posting:
    _check_key(key)
    if invoice.amount is None or invoice.currency is None or invoice.invoice_number is None:
        missing = [n for n in ("invoice_number", "currency", "amount") if getattr(invoice, n) is None]
        raise UnpostableInvoice(f"an invoice without {', '.join(missing)} cannot be posted; have it reviewed first")
    total = to_minor(invoice.amount, invoice.currency)
    tax = 0
    if invoice.amount_tax is not None and invoice.amount_untaxed is not None:
        # Only where both parts are known to give the total is the tax booked apart.
        parts = to_minor(invoice.amount_untaxed, invoice.currency) + to_minor(invoice.amount_tax, invoice.currency)
        tax = to_minor(invoice.amount_tax, invoice.currency) if parts == total else 0
    sides: list[tuple[Account, int]] = [("expenses", total - tax), ("input-tax", tax), ("payables", -total)]
    entries = tuple(
        Entry(key=key, kind="posting", account=account, currency=invoice.currency, minor=minor)
        for account, minor in sides
        if minor
    )
    assert sum(entry.minor for entry in entries) == 0
    return Posting(
        key=key,
        invoice_number=invoice.invoice_number,
        currency=invoice.currency,
        amount_minor=total,
        entries=entries,
    )


def _digest(posting: Posting, invoice: Invoice) -> str:
    """What makes two invoices the same to the books; reading one again with another confidence changes nothing."""
    parts = [posting.model_dump_json(), str(invoice.date), invoice.supplier or ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise UnpostableInvoice(f"a posting's key has 1 to {KEY_LENGTH_MAX} characters, not {len(key)}")


def _write(connection: sqlite3.Connection, entries: tuple[Entry, ...]) -> None:
    connection.executemany(
        "INSERT INTO entries (key, kind, account, currency, minor) VALUES (?, ?, ?, ?, ?)",
        [(e.key, e.kind, e.account, e.currency, e.minor) for e in entries],
    )
