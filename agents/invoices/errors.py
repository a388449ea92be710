"""What can go wrong with an invoice, as a small hierarchy.

Rule: a message says what was wrong, with which value, and what to do about it, because a person reads it in a review.
A *doubtful* invoice is not an error: it becomes a `Verdict` that asks for a review (see `amounts`).
"""

from __future__ import annotations


class InvoiceError(Exception):
    """Base of all errors of this package."""


class UnreadableDocument(InvoiceError):
    """The file cannot be opened as a PDF or an image; trying again cannot help."""


class UnsupportedDocument(UnreadableDocument):
    """The file is neither a PDF nor an image of a known format."""


class EncryptedDocument(UnreadableDocument):
    """The PDF asks for a password."""


class DocumentTooLarge(InvoiceError):
    """The file exceeds a limit on bytes, pages, pixels or characters."""


class ReadingTimeout(InvoiceError):
    """Reading took longer than allowed. It may succeed on a less busy machine, so a retry is reasonable."""


class LedgerError(InvoiceError):
    """Base of the ledger's refusals."""


class PostingReversed(LedgerError):
    """The key was reversed, possibly before it was ever posted; it can never be posted again."""


class PostingConflict(LedgerError):
    """The key was already posted with another invoice."""


class UnpostableInvoice(LedgerError):
    """The invoice lacks what a posting needs, or its amount does not fit the currency."""
