"""Decides whether an invoice's amount may be posted without a person looking at it.

The rule above all: a wrong amount is never accepted in silence. Acceptance needs a total that was read with
confidence, is confirmed by something else on the document, and is contradicted by nothing. Everything else is a
review, with reasons in plain sentences.
"""

from __future__ import annotations

from decimal import Decimal

from sagalog.agents.invoices import arithmetic
from sagalog.agents.invoices.currency import EXPONENTS
from sagalog.agents.invoices.models import AmountPlace, Invoice, Verdict

# Below these, OCR misread characters often enough on the drawn and the real invoices to matter. A sum that comes out
# to the cent confirms each of its parts, so its parts need less than a total that stands alone.
SUMMED_CONFIDENCE_MIN = 0.80
REPEATED_CONFIDENCE_MIN = 0.90
FIELD_CONFIDENCE_MIN = 0.85
# Larger totals, in minor units, are for a person whatever the document says: ten million euros, or a billion yen.
AMOUNT_MINOR_MAX = 10**9


def check_amounts(invoice: Invoice) -> Verdict:
    """Accept the invoice, or say in plain sentences why a person must look at it. Pure; never raises."""
    reasons = [doubt.reason for doubt in invoice.doubts]
    confirmations: list[str] = []
    reasons += _missing(invoice)
    reasons += _kind(invoice)
    if invoice.amount is not None:
        confirmations, against = _amount(invoice, invoice.amount)
        reasons += against
    unique = tuple(dict.fromkeys(reasons))
    return Verdict(
        decision="review" if unique else "accept", reasons=unique, confirmations=tuple(dict.fromkeys(confirmations))
    )


def _missing(invoice: Invoice) -> list[str]:
    reasons = []
    doubted = {doubt.field for doubt in invoice.doubts}
    for field, name in (
        ("invoice_number", "invoice number"),
        ("date", "invoice date"),
        ("currency", "currency"),
        ("amount", "total"),
    ):
        if getattr(invoice, field) is None:
            if field not in doubted:
                reasons.append(f"the {name} could not be read")
        elif field != "amount" and (sure := invoice.confidence.get(field, 0.0)) < FIELD_CONFIDENCE_MIN:
            reasons.append(f"the {name} was read with confidence {sure:.2f}, below {FIELD_CONFIDENCE_MIN:.2f}")
    return reasons


def _kind(invoice: Invoice) -> list[str]:
    if invoice.kind == "other":
        return [f'the document is titled "{invoice.evidence.get("kind", "")}", so it may not be an invoice']
    if invoice.kind == "credit_note" and (invoice.amount or Decimal(0)) > 0:
        return ["the document is a credit note but its total is printed without a minus: the sign must be confirmed"]
    if invoice.kind != "credit_note" and invoice.amount is not None and invoice.amount < 0:
        return [f"the total {invoice.amount} is negative but the document is not titled a credit note"]
    return []


def _amount(invoice: Invoice, total: Decimal) -> tuple[list[str], list[str]]:
    reasons = []
    if total == 0:
        reasons.append("the total is zero: there is nothing to post")
    exponent = EXPONENTS.get(invoice.currency or "", 2)
    if abs(total.scaleb(exponent)) > AMOUNT_MINOR_MAX:
        most = Decimal(AMOUNT_MINOR_MAX).scaleb(-exponent)
        reasons.append(f"the total {total} is above {most:f}: large amounts are always confirmed by a person")
    if total != round(total, exponent):
        reasons.append(f"the total {total} has more decimals than {invoice.currency} allows ({exponent})")
    sure = [place for place in invoice.places if place.sure]
    found = arithmetic.find_sum(total, invoice.places)
    tax = arithmetic.tax_on_lines(total, sum(invoice.line_amounts, Decimal(0)), invoice.places)
    at_total = [p for p in sure if p.role in ("gross", "due", "total") and p.value == total]
    best = max((p.confidence for p in at_total), default=0.0)
    confirmations = []
    needed = REPEATED_CONFIDENCE_MIN
    if found is not None and not found.inclusive:
        confirmations.append(_describe(found, total))
        needed = SUMMED_CONFIDENCE_MIN
    elif found is None and tax is None:
        reasons += _unexplained(total, sure)
    if invoice.line_amounts:
        described = _describe_lines(invoice, total, found, tax)
        confirmations.append(described)
        if described and len(invoice.line_amounts) > 1:
            needed = SUMMED_CONFIDENCE_MIN
    places = {(p.page, p.line, p.label) for p in at_total if p.confidence >= REPEATED_CONFIDENCE_MIN}
    if len(places) >= 2:
        labels = ", ".join(dict.fromkeys(f'"{p.label}"' for p in at_total))
        confirmations.append(f"the total {total} is printed in {len(places)} places ({labels})")
    paid = [p for p in sure if p.role == "paid" and p.value == total]
    if paid:
        confirmations.append(f'the total {total} is confirmed by "{paid[0].label}"')
    confirmations = [one for one in confirmations if one]
    if best < needed:
        reasons.append(f"the total was read with confidence {best:.2f}, below {needed:.2f}")
    if not confirmations:
        reasons.append(
            f"the total {total} stands alone: no net and tax, no lines and no second place on the document confirm it"
        )
    return confirmations, reasons


def _unexplained(total: Decimal, sure: list[AmountPlace]) -> list[str]:
    """A printed net or tax that does not lead to the total."""
    nets = [p for p in sure if p.role == "net"] or [p for p in sure if p.role == "subtotal"]
    taxes = [p for p in sure if p.role == "tax" and p.value]
    if nets and taxes:
        net, tax = nets[-1], taxes[-1]
        return [f"total {total} differs from net {net.value} + tax {tax.value} = {net.value + tax.value}"]
    if taxes:
        return [f"a tax of {taxes[-1].value} is printed, but nothing shows how it leads to the total {total}"]
    others = [p for p in sure if p.role == "net" and p.value != total]
    if others:
        return [f"total {total} differs from the net amount {others[-1].value}, and no tax explains it"]
    return []


def _describe(found: arithmetic.Sum, total: Decimal) -> str:
    extras = f" + extras {found.extras}" if found.extras else ""
    tax = f" + tax {found.tax}" if found.taxed else ""
    return f"net {found.net}{tax}{extras} = total {total}"


def _describe_lines(invoice: Invoice, total: Decimal, found: arithmetic.Sum | None, tax: Decimal | None) -> str:
    lines = sum(invoice.line_amounts, Decimal(0))
    count = len(invoice.line_amounts)
    if lines == total:
        return f"{count} line(s) add up to the total {total}"
    if found is not None and lines == found.net:
        return f"{count} line(s) add up to the net amount {lines}"
    if tax is not None:
        return f"{count} line(s) of {lines} + tax {tax} = total {total}"
    return ""
