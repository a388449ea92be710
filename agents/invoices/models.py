"""What the invoice agents hand to each other, as frozen pydantic models that serialise to plain JSON.

Rule: a field that could not be read with confidence is None and has a doubt that says why; nothing is filled in.
Amounts are `Decimal` (in JSON: strings), so that no float ever touches money.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["invoice", "credit_note", "receipt", "other"]
Role = Literal[
    "gross",  # the grand total by name: "grand total", "Gesamtbetrag", "total TTC"
    "due",  # what is to be paid: "amount due", "à payer", "te betalen"
    "total",  # a bare "total": grand total, or net, or the total of a section
    "net",
    "tax",
    "subtotal",
    "paid",
    "previous",
    "balance",
    "discount",
    "extra",  # shipping, handling, rounding: on top of net
]


class Model(BaseModel):
    """Frozen, and strict about unknown keys: these models are inputs and outputs of agents."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AmountPlace(Model):
    """One place on the document where a labelled amount stands. `line` counts from the top of the document."""

    role: Role
    value: Decimal
    label: str
    text: str
    page: int
    line: int
    confidence: float
    # False when the line holds several amounts and the label does not say which one it means.
    sure: bool = True
    # The rate printed beside a tax amount, in percent.
    rate: Decimal | None = None


class Doubt(Model):
    """Why a field may not be trusted, in a sentence for the person who reviews it."""

    field: str
    reason: str


class Invoice(Model):
    """The fields of an invoice, each with its confidence (0 to 1) and the text it was taken from."""

    kind: Kind = "invoice"
    invoice_number: str | None = None
    date: dt.date | None = None
    currency: str | None = None
    amount: Decimal | None = None
    amount_untaxed: Decimal | None = None
    amount_tax: Decimal | None = None
    supplier: str | None = None
    order_reference: str | None = None
    language: str | None = None
    # Amounts of the lines, when a column of them was found that adds up to the total or to the net amount.
    line_amounts: tuple[Decimal, ...] = ()
    places: tuple[AmountPlace, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    confidence: dict[str, float] = Field(default_factory=dict)
    evidence: dict[str, str] = Field(default_factory=dict)
    method: Literal["text-layer", "ocr"] = "text-layer"
    sha256: str = ""


class Verdict(Model):
    """The outcome of the checks. `reasons` say why a person must look; `confirmations` say what was found in order."""

    decision: Literal["accept", "review"]
    reasons: tuple[str, ...] = ()
    confirmations: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.decision == "accept"
