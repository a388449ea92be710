"""Suggestions of purchase orders: the named one first, nothing when nothing fits."""

from __future__ import annotations

from decimal import Decimal

from sagalog.agents.invoices.models import Invoice
from sagalog.agents.invoices.orders import Order, sample_orders, suggest_orders

ORDERS = [
    Order(reference="PO-1", supplier="Falcon Office Supplies Ltd", currency="GBP", amount=Decimal("100.00")),
    Order(reference="PO-2", supplier="Lindental Werkzeuge GmbH", currency="EUR", amount=Decimal("250.00")),
]


def test_the_named_order_comes_first_with_its_reasons() -> None:
    invoice = Invoice(
        supplier="FALCON OFFICE SUPPLIES LIMITED",
        order_reference="po 1",
        currency="GBP",
        amount=Decimal("120.00"),
        amount_untaxed=Decimal("100.00"),
    )
    (match,) = suggest_orders(invoice, ORDERS)
    assert (match.reference, match.score) == ("PO-1", 1.0)
    assert len(match.reasons) == 3


def test_supplier_and_amount_are_enough_without_a_reference() -> None:
    invoice = Invoice(supplier="Lindental Werkzeuge", currency="EUR", amount=Decimal("250.00"))
    assert [m.reference for m in suggest_orders(invoice, ORDERS)] == ["PO-2"]


def test_one_weak_sign_suggests_nothing() -> None:
    assert suggest_orders(Invoice(currency="EUR", amount=Decimal("250.00")), ORDERS) == []
    assert suggest_orders(Invoice(supplier="Falcon Office Supplies"), ORDERS) == []
    assert suggest_orders(Invoice(), ORDERS) == []
    assert suggest_orders(Invoice(), []) == []


def test_the_same_figure_in_another_currency_is_no_agreement() -> None:
    invoice = Invoice(supplier="Lindental Werkzeuge", currency="USD", amount=Decimal("250.00"))
    assert suggest_orders(invoice, ORDERS) == []


def test_the_shipped_orders_load() -> None:
    orders = sample_orders()
    assert len({order.reference for order in orders}) == len(orders) >= 14
