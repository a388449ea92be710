"""Suggests the purchase orders that an invoice may belong to.

Rule: a suggestion is only ever a suggestion; where nothing fits well enough the answer is an empty list, which is the
neutral default of the saga's optional step. Pure: the caller brings the orders.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from importlib import resources

from pydantic import TypeAdapter

from sagalog.agents.invoices.labels import squash
from sagalog.agents.invoices.models import Invoice, Model

# What each sign of agreement is worth; they add up to 1.
REFERENCE_WEIGHT = 0.55
AMOUNT_WEIGHT = 0.25
SUPPLIER_WEIGHT = 0.20
# Below this no order is suggested: one weak sign (the same amount, a similar name) is worth nothing alone.
SCORE_MIN = 0.40
# Names less alike than this are different names.
NAME_SIMILARITY_MIN = 0.75
# An order's amount within this share of the invoice's is near: freight and rounding are often not on the order.
NEAR_SHARE = Decimal("0.02")
SUGGESTIONS_MAX = 5

_COMPANY_FORMS = re.compile(
    r"\b(?:gmbh|ag|ltd|limited|inc|llc|plc|b\.?v|n\.?v|sarl|sas|s\.?a|s\.?l|srl|spa|pvt|private|corp|co|kg|ohg|kk)\b\.?",
    re.IGNORECASE,
)


class Order(Model):
    """A purchase order that may be invoiced. `amount` is its total, with or without tax."""

    reference: str
    supplier: str
    currency: str
    amount: Decimal


class Match(Model):
    """A suggested order: `score` between 0 and 1, and what it rests on, in words."""

    reference: str
    score: float
    reasons: tuple[str, ...]


def suggest_orders(invoice: Invoice, orders: Iterable[Order]) -> list[Match]:
    """The best matches, best first, at most five; empty when nothing fits."""
    matches = [_match(invoice, order) for order in orders]
    good = [match for match in matches if match.score >= SCORE_MIN]
    return sorted(good, key=lambda match: (-match.score, match.reference))[:SUGGESTIONS_MAX]


def sample_orders() -> list[Order]:
    """The orders shipped with the sample invoices."""
    text = resources.files("sagalog.agents.invoices").joinpath("samples", "orders.json").read_text("utf-8")
    return TypeAdapter(list[Order]).validate_python(json.loads(text))


def _match(invoice: Invoice, order: Order) -> Match:
    score = 0.0
    reasons = []
    if invoice.order_reference and squash(invoice.order_reference)[0] == squash(order.reference)[0]:
        score += REFERENCE_WEIGHT
        reasons.append(f"the invoice names the order {order.reference}")
    if invoice.supplier:
        alike = _similarity(invoice.supplier, order.supplier)
        if alike >= NAME_SIMILARITY_MIN:
            score += SUPPLIER_WEIGHT * alike
            reasons.append(f'the supplier "{invoice.supplier}" is {alike:.0%} like "{order.supplier}"')
    if invoice.currency == order.currency:
        for name, value in (("total", invoice.amount), ("net amount", invoice.amount_untaxed)):
            if value is None:
                continue
            if value == order.amount:
                score += AMOUNT_WEIGHT
                reasons.append(f"the {name} {value} {order.currency} equals the order's")
                break
            if abs(value - order.amount) <= NEAR_SHARE * abs(order.amount):
                score += AMOUNT_WEIGHT / 2
                reasons.append(f"the {name} {value} {order.currency} is near the order's {order.amount}")
                break
    return Match(reference=order.reference, score=round(score, 3), reasons=tuple(reasons))


def _similarity(one: str, other: str) -> float:
    left, right = (squash(_COMPANY_FORMS.sub("", name))[0] for name in (one, other))
    if not left or not right:
        return 0.0
    return difflib.SequenceMatcher(None, left, right).ratio()
