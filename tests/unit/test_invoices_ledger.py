"""The ledger under repetition, reordering and several processes: every key once, and the books always balance."""

from __future__ import annotations

import datetime as dt
import multiprocessing
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagalog.agents.invoices.errors import PostingConflict, PostingReversed, UnpostableInvoice
from sagalog.agents.invoices.ledger import SqliteLedger
from sagalog.agents.invoices.models import Invoice

INVOICE = Invoice(
    invoice_number="A-1",
    date=dt.date(2024, 5, 17),
    currency="EUR",
    amount=Decimal("119.00"),
    amount_untaxed=Decimal("100.00"),
    amount_tax=Decimal("19.00"),
)


@pytest.fixture
def ledger(tmp_path: Path) -> SqliteLedger:
    return SqliteLedger(tmp_path / "ledger.db")


def test_a_posting_is_double_entry_in_minor_units(ledger: SqliteLedger) -> None:
    posting = ledger.post("k", INVOICE)
    assert [(e.account, e.currency, e.minor) for e in posting.entries] == [
        ("expenses", "EUR", 10000),
        ("input-tax", "EUR", 1900),
        ("payables", "EUR", -11900),
    ]
    assert ledger.entries() == posting.entries
    assert ledger.balance() == {"EUR": {"expenses": 10000, "input-tax": 1900, "payables": -11900}}


def test_the_same_key_posts_once(ledger: SqliteLedger) -> None:
    first = ledger.post("k", INVOICE)
    again = ledger.post("k", INVOICE.model_copy(update={"confidence": {"amount": 0.9}}))
    assert again == first
    assert len(ledger.entries()) == 3


def test_another_invoice_under_the_same_key_is_refused(ledger: SqliteLedger) -> None:
    ledger.post("k", INVOICE)
    with pytest.raises(PostingConflict, match="A-1"):
        ledger.post("k", INVOICE.model_copy(update={"amount": Decimal("120.00")}))
    assert len(ledger.entries()) == 3


def test_a_reversal_takes_everything_back_once(ledger: SqliteLedger) -> None:
    ledger.post("k", INVOICE)
    first = ledger.reverse("k")
    assert first.posted
    assert [e.minor for e in first.entries] == [-10000, -1900, 11900]
    assert ledger.reverse("k") == first
    assert ledger.balance() == {"EUR": {"expenses": 0, "input-tax": 0, "payables": 0}}
    with pytest.raises(PostingReversed):
        ledger.post("k", INVOICE)


def test_a_reversal_before_the_posting_leaves_a_tombstone(ledger: SqliteLedger) -> None:
    tombstone = ledger.reverse("k")
    assert (tombstone.posted, tombstone.entries) == (False, ())
    with pytest.raises(PostingReversed, match="'k'"):
        ledger.post("k", INVOICE)
    assert ledger.reverse("k") == tombstone
    assert ledger.entries() == ()


def test_a_ledger_outlives_its_process(tmp_path: Path) -> None:
    posting = SqliteLedger(tmp_path / "l.db").post("k", INVOICE)
    assert SqliteLedger(tmp_path / "l.db").post("k", INVOICE) == posting


def test_a_credit_note_posts_the_other_way_round(ledger: SqliteLedger) -> None:
    credit = {"amount": Decimal("-119.00"), "amount_untaxed": Decimal("-100.00"), "amount_tax": Decimal("-19.00")}
    ledger.post("k", INVOICE.model_copy(update=credit))
    assert ledger.balance()["EUR"]["payables"] == 11900


def test_yen_have_no_minor_units(ledger: SqliteLedger) -> None:
    yen = {"currency": "JPY", "amount": Decimal("13574"), "amount_untaxed": None, "amount_tax": None}
    assert ledger.post("k", INVOICE.model_copy(update=yen)).amount_minor == 13574


def test_tax_that_does_not_fit_the_total_is_not_booked_apart(ledger: SqliteLedger) -> None:
    posting = ledger.post("k", INVOICE.model_copy(update={"amount_tax": Decimal("18.00")}))
    assert [e.account for e in posting.entries] == ["expenses", "payables"]


@pytest.mark.parametrize(
    "change",
    [
        {"amount": None},
        {"currency": None},
        {"invoice_number": None},
        {"currency": "XXX"},
        {"amount": Decimal("1.005")},
        {"currency": "JPY", "amount": Decimal("1.50")},
        {"amount": Decimal(10) ** 14},
    ],
)
def test_what_cannot_be_posted_says_why(ledger: SqliteLedger, change: dict[str, object]) -> None:
    with pytest.raises(UnpostableInvoice):
        ledger.post("k", INVOICE.model_copy(update=change))
    assert ledger.entries() == ()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["post", "reverse"]), st.sampled_from("abc")), max_size=12))
def test_any_order_of_calls_keeps_the_books_right(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[str, str]]
) -> None:
    ledger = SqliteLedger(tmp_path_factory.mktemp("ledger") / "l.db")
    posted: set[str] = set()
    reversed_: set[str] = set()
    for call, key in calls:
        if call == "reverse":
            assert ledger.reverse(key).posted is (key in posted)
            reversed_.add(key)
        elif key in reversed_:
            with pytest.raises(PostingReversed):
                ledger.post(key, INVOICE)
        else:
            ledger.post(key, INVOICE)
            posted.add(key)
    alive = len(posted - reversed_)
    assert ledger.balance().get("EUR", {}).get("payables", 0) == -11900 * alive


def test_several_processes_post_each_key_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    keys = [f"k{i}" for i in range(10)]
    ledger = SqliteLedger(path)
    for key in keys:
        ledger.post(key, INVOICE)
    spawn = multiprocessing.get_context("spawn")
    # All processes repeat the same reversals, and none may count twice.
    processes = [spawn.Process(target=_reverse, args=(path, keys[::2])) for _ in range(3)]
    processes += [spawn.Process(target=_post, args=(path, [f"n{i}" for i in range(10)])) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert ledger.balance()["EUR"]["payables"] == -11900 * 15
    assert len(ledger.entries()) == 3 * (10 + 5 + 10)


def _reverse(path: Path, keys: list[str]) -> None:
    ledger = SqliteLedger(path)
    for key in keys:
        ledger.reverse(key)


def _post(path: Path, keys: list[str]) -> None:
    ledger = SqliteLedger(path)
    for key in keys:
        ledger.post(key, INVOICE)
