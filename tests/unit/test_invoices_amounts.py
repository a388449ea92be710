"""From lines of text to a verdict: what goes straight through, and in how many ways it must not."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from sagalog.agents.invoices.amounts import check_amounts
from sagalog.agents.invoices.document import Box, Page, Reading, Word, lines_of
from sagalog.agents.invoices.fields import extract
from sagalog.agents.invoices.models import Invoice, Verdict


def read(text: str, confidence: dict[str, float] | None = None) -> Reading:
    """A reading laid out as the text is: two spaces or more separate cells, ten units a character, 24 a line."""
    words = [
        Word(
            match.group(),
            Box(10.0 * match.start(), 24.0 * row, 10.0 * match.end(), 24.0 * row + 16),
            (confidence or {}).get(match.group(), 1.0),
        )
        for row, line in enumerate(text.splitlines())
        for match in re.finditer(r"\S+(?: \S+)*", line)
    ]
    return Reading(sha256="0" * 64, method="ocr", pages=(Page(1, 1400.0, lines_of(words), "ocr"),))


def judge(text: str, confidence: dict[str, float] | None = None) -> tuple[Invoice, Verdict]:
    invoice = extract(read(text, confidence))
    return invoice, check_amounts(invoice)


HEAD = "INVOICE\nInvoice number: A-1001\nInvoice date: 17 May 2024\n\n"
SUMS = "Net amount        EUR 100.00\nVAT 19%           EUR 19.00\nTotal due         EUR 119.00\n"


def test_net_and_tax_confirm_the_total() -> None:
    invoice, verdict = judge(HEAD + SUMS)
    assert (invoice.invoice_number, str(invoice.date), invoice.currency) == ("A-1001", "2024-05-17", "EUR")
    assert (invoice.amount, invoice.amount_untaxed, invoice.amount_tax) == (Decimal(119), Decimal(100), Decimal(19))
    assert verdict == Verdict(decision="accept", confirmations=("net 100.00 + tax 19.00 = total 119.00",))


@pytest.mark.parametrize(
    ("body", "amount"),
    [
        ("Nettobetrag   1.034,50 EUR\nMwSt. 19%   196,56 EUR\nGesamtbetrag   1.231,06 EUR", "1231.06"),
        ("Total HT   1 034,50 EUR\nTVA 20%   206,90 EUR\nTotal TTC   1 241,40 EUR", "1241.40"),
        ("Total exkl. MwSt.   CHF 1'034.50\nMwSt. 8.1%   CHF 83.79\nTotal inkl. MwSt.   CHF 1'118.29", "1118.29"),
        ("Taxable value   INR 1,23,456.00\nIGST 18%   INR 22,222.08\nInvoice total   INR 1,45,678.08", "145678.08"),
        ("Subtotal   JPY 12,340\nConsumption tax 10%   JPY 1,234\nTotal   JPY 13,574", "13574"),
        ("Totaal excl. BTW   € 50,00\nBTW 21%   € 10,50\nTe betalen   € 60,50", "60.50"),
        ("Base imponible   50,00 €\nIVA 21%   10,50 €\nTotal a pagar   60,50 €", "60.50"),
        ("Imponibile   50,00 €\nIVA 22%   11,00 €\nTotale fattura   61,00 €", "61.00"),
        ("Net   Tax   Total   \n", None),
    ],
)
def test_amounts_of_many_locales(body: str, amount: str | None) -> None:
    invoice, verdict = judge(HEAD + body)
    assert invoice.amount == (Decimal(amount) if amount else None)
    assert verdict.accepted is (amount is not None), verdict


def test_lines_confirm_a_total_without_tax() -> None:
    invoice, verdict = judge(
        HEAD
        + "Description              Amount\nRepair                    40.00\nParts                     35.50\n"
        + "Total EUR                 75.50\n"
    )
    assert (invoice.amount, invoice.line_amounts) == (Decimal("75.50"), (Decimal("40.00"), Decimal("35.50")))
    assert verdict.accepted, verdict


def test_a_row_of_sums_is_net_tax_and_total() -> None:
    invoice, verdict = judge(HEAD + "Total       24.99     5.00     29.99\nAmount due                      29.99 EUR\n")
    assert (invoice.amount_untaxed, invoice.amount_tax) == (Decimal("24.99"), Decimal("5.00"))
    assert verdict.accepted, verdict


def test_tax_inside_the_price_is_explained_by_its_rate_but_confirms_nothing() -> None:
    text = HEAD + "Total          EUR 717.97\nincl. VAT 21%  EUR 124.61\n"
    _, verdict = judge(text)
    assert len(verdict.reasons) == 1 and "stands alone" in verdict.reasons[0], verdict
    invoice, verdict = judge(text + "Amount due     EUR 717.97\n")
    assert (invoice.amount, invoice.amount_untaxed) == (Decimal("717.97"), Decimal("593.36"))
    assert verdict.accepted, verdict


def test_paid_in_full_keeps_the_total_and_not_the_zero() -> None:
    invoice, verdict = judge(
        HEAD + SUMS.replace("Total due ", "Total     ") + "Amount paid   EUR 119.00\nBalance due   EUR 0.00"
    )
    assert invoice.amount == Decimal(119)
    assert verdict.accepted, verdict


def test_a_bare_total_before_tax_is_the_net() -> None:
    invoice, verdict = judge(HEAD + "Total       EUR 100.00\nVAT 19%     EUR 19.00\nAmount due  EUR 119.00")
    assert invoice.amount == Decimal(119)
    assert verdict.accepted, verdict


def test_a_credit_note_with_a_minus_is_accepted_as_negative() -> None:
    body = SUMS.replace("EUR ", "EUR -")
    invoice, verdict = judge((HEAD + body).replace("INVOICE", "CREDIT NOTE"))
    assert (invoice.kind, invoice.amount) == ("credit_note", Decimal(-119))
    assert verdict.accepted, verdict


REFUSED = {
    "sums do not agree": (
        HEAD + SUMS.replace("119.00", "118.00"),
        r"total 118.00 differs from net 100.00 \+ tax 19.00",
    ),
    "total alone": (HEAD + "Total due   EUR 119.00", "stands alone"),
    "no total": (HEAD + "EUR 119.00", "no total was found"),
    "earlier balance": (
        HEAD + SUMS.replace("Total due", "Total    ") + "Previous balance   EUR 50.00\nAmount due   EUR 169.00",
        "an earlier balance",
    ),
    "due differs": (HEAD + SUMS.replace("Total due", "Total    ") + "Amount due   EUR 99.00", "no payment"),
    "zero due without payment": (
        HEAD + SUMS.replace("Total due", "Total    ") + "Balance due   EUR 0.00",
        "no payment",
    ),
    "net does not fit, though two places and the rate agree": (
        HEAD + SUMS.replace("100.00", "101.00") + "Grand total   EUR 119.00",
        "differs from net 101.00",
    ),
    "two grand totals": (
        HEAD + SUMS + "Grand total   EUR 119.00\nInvoice total   EUR 129.00",
        "several different totals",
    ),
    "larger amount below": (
        HEAD + "Work   EUR 60.00\nParts   EUR 40.00\nTotal   EUR 100.00\n\nxxxx   EUR 119.00",
        "larger than the total",
    ),
    "tax leads nowhere": (
        HEAD + "Work   EUR 60.00\nParts   EUR 40.00\nTotal   EUR 100.00\nVAT   EUR 19.00",
        "nothing shows how it leads to the total",
    ),
    "lines do not add up": (
        HEAD
        + "Description      Qty    Price    Amount\nWork              2    30.00     60.00\n"
        + "Parts             4    20.00     80.00\n"
        + "Net amount           EUR 100.00\nVAT 19%              EUR 19.00\nTotal due            EUR 119.00",
        "the 2 lines add up to 140.00",
    ),
    "credit note without minus": ((HEAD + SUMS).replace("INVOICE", "CREDIT NOTE"), "credit note"),
    "negative invoice": (HEAD + SUMS.replace("EUR ", "EUR -"), "not titled a credit note"),
    "quotation": ((HEAD + SUMS).replace("INVOICE", "QUOTATION"), "may not be an invoice"),
    "zero": (HEAD + "Net amount   EUR 0.00\nVAT 19%   EUR 0.00\nTotal due   EUR 0.00", "nothing to post"),
    "ambiguous separator": (HEAD + "Net amount   EUR 1.100\nVAT   EUR 0\nTotal due   EUR 1.100", "may mean"),
    "no number": ((HEAD + SUMS).replace("Invoice number: A-1001", ""), "no invoice number"),
    "no date": ((HEAD + SUMS).replace("Invoice date: 17 May 2024", ""), "no invoice date"),
    "two numbers": (HEAD + "Invoice number: B-77\n" + SUMS, "several different invoice numbers"),
    "no currency": (HEAD + SUMS.replace("EUR ", ""), "no currency"),
    "two currencies": (HEAD + SUMS.replace("EUR 119.00", "EUR 119.00 USD"), "two currencies|several currencies"),
    "dollars of nowhere": (HEAD + SUMS.replace("EUR ", "$"), "may mean several currencies"),
    "ambiguous date": ((HEAD + SUMS).replace("17 May 2024", "04/07/2024").replace("EUR", "USD"), "may be 2024-07-04"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_with_the_reason(case: str) -> None:
    text, reason = REFUSED[case]
    _, verdict = judge(text)
    assert verdict.decision == "review"
    assert re.search(reason, " | ".join(verdict.reasons)), verdict.reasons


def test_a_total_read_without_confidence_is_refused() -> None:
    _, verdict = judge(HEAD + SUMS, {"EUR 119.00": 0.61})
    assert verdict.decision == "review"
    assert "the total was read with confidence 0.61, below 0.80" in verdict.reasons


def test_a_number_read_without_confidence_is_refused() -> None:
    _, verdict = judge(HEAD + SUMS, {"Invoice number: A-1001": 0.7})
    assert verdict.reasons == ("the invoice number was read with confidence 0.70, below 0.85",)


def test_another_date_of_the_document_settles_the_order() -> None:
    text = (HEAD + SUMS).replace("17 May 2024", "04/07/2024\nDue date: 08/25/2024").replace("EUR", "USD")
    invoice, verdict = judge(text)
    assert str(invoice.date) == "2024-04-07"
    assert verdict.accepted, verdict


def test_dollars_of_a_named_country_are_accepted() -> None:
    invoice, verdict = judge("Acme Inc.\nPortland, OR 97205\n" + HEAD + SUMS.replace("EUR ", "$"))
    assert invoice.currency == "USD"
    assert verdict.accepted, verdict


BODIES = {
    "sums": SUMS,
    "lines": "Description    Amount\nRepair          40.00\nParts           35.50\nTotal EUR       75.50\n",
    "row of sums": "Total     24.99    5.00    29.99\nAmount due              29.99 EUR\n",
    "two places": "Total           EUR 80.25\nAmount due      EUR 80.25\n",
    "paid": SUMS.replace("Total due", "Total    ") + "Amount paid   EUR 119.00\nBalance due   EUR 0.00\n",
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_no_misread_digit_is_accepted_as_the_total(name: str) -> None:
    """Every digit of every figure is misread in turn, and each time dropped: no other total may be accepted."""
    body = BODIES[name]
    right, verdict = judge(HEAD + body)
    assert verdict.accepted, verdict
    figures = list(re.finditer(r"\d+\.\d\d", body))
    misread = 0
    for at in (index for figure in figures for index in range(*figure.span()) if body[index].isdigit()):
        for instead in ("", str((int(body[at]) + 1) % 10), str((int(body[at]) + 7) % 10)):
            invoice, verdict = judge(HEAD + body[:at] + instead + body[at + 1 :])
            assert not verdict.accepted or invoice.amount == right.amount, (body[at], instead, at, verdict)
            misread += 1
    assert misread >= 20


def test_models_survive_json() -> None:
    invoice, verdict = judge(HEAD + SUMS)
    assert Invoice.model_validate_json(invoice.model_dump_json()) == invoice
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    assert invoice.model_dump(mode="json")["amount"] == "119.00"
