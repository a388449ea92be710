"""Turns a reading into an `Invoice`: generic methods only, for invoices nobody has seen.

Rule: no templates, no vendors' names, no file names. Each field is found by labels, geometry and arithmetic; whatever
stays open becomes a `Doubt` with a reason, never a guess.
"""

from __future__ import annotations

from decimal import Decimal

from sagalog.agents.invoices import headers
from sagalog.agents.invoices.currency import EXPONENTS, find_currency, quantize
from sagalog.agents.invoices.document import Reading
from sagalog.agents.invoices.layout import lay_out
from sagalog.agents.invoices.models import Doubt, Invoice
from sagalog.agents.invoices.totals import find_totals


def extract(reading: Reading) -> Invoice:
    """Extract the fields of one invoice. Never raises on content: what is missing or doubtful is said in `doubts`."""
    layout = lay_out(reading)
    totals = find_totals(layout)
    currency = find_currency(layout, totals.amount_cell)
    if currency.code in EXPONENTS and EXPONENTS[currency.code] == 0:
        # "12,340" is ambiguous in general, and thousands in a currency without decimals.
        layout = lay_out(reading, whole_only=True)
        totals = find_totals(layout)
    kind, title = headers.find_kind(layout)
    language = headers.find_language(layout)
    number = headers.find_number(layout, kind)
    date = headers.find_date(layout, language, currency.code)
    order = headers.find_order(layout)
    supplier = headers.find_supplier(layout)

    doubts = list(totals.doubts)
    for field, doubt in (("invoice_number", number.doubt), ("date", date.doubt), ("currency", currency.doubt)):
        if doubt is not None:
            doubts.append(Doubt(field=field, reason=doubt))
    confidence: dict[str, float] = {}
    evidence: dict[str, str] = {"kind": title} if title else {}
    for name, value, sure, text in (
        ("invoice_number", number.value, number.confidence, number.evidence),
        ("date", date.value, date.confidence, date.evidence),
        ("currency", currency.code, currency.confidence, currency.evidence),
        ("supplier", supplier.value, supplier.confidence, supplier.evidence),
        ("order_reference", order.value, order.confidence, order.evidence),
    ):
        if value is not None:
            confidence[name] = round(min(1.0, sure), 4)
            evidence[name] = text
    amount: Decimal | None = None
    if totals.amount is not None:
        amount = quantize(totals.amount.value, currency.code)
        confidence["amount"] = totals.amount.confidence
        evidence["amount"] = f"{totals.amount.label}: {totals.amount.text}"
    return Invoice(
        kind=kind,
        invoice_number=number.value,
        date=date.value,
        currency=currency.code,
        amount=amount,
        amount_untaxed=totals.net,
        amount_tax=totals.tax,
        supplier=supplier.value,
        order_reference=order.value,
        language=language,
        line_amounts=totals.lines,
        places=totals.places,
        doubts=tuple(doubts),
        confidence=confidence,
        evidence=evidence,
        method=reading.method,
        sha256=reading.sha256,
    )
