"""Numbers and dates in the formats of many locales: one reading where there is one, two where a person must decide."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.agents.invoices.dates import find_dates, resolve
from sagalog.agents.invoices.drawing import LOCALES, money
from sagalog.agents.invoices.figures import decimal_mark, find_figures, read_figure
from sagalog.agents.invoices.labels import find_labels


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.234,56", "1234.56"),
        ("1,234.56", "1234.56"),
        ("1 234,56", "1234.56"),
        ("1\u202f234,56", "1234.56"),
        ("1'234.56", "1234.56"),
        ("1’234.56", "1234.56"),
        ("1,23,456.00", "123456.00"),
        ("1.234.567", "1234567"),
        ("1,23,456", "123456"),
        ("119,00", "119.00"),
        ("0.5", "0.5"),
        ("1939", "1939"),
        ("1.234.56", "1234.56"),  # OCR took the comma for a point
    ],
)
def test_a_clear_figure_has_one_reading(text: str, value: str) -> None:
    assert read_figure(text) == (Decimal(value),)


@pytest.mark.parametrize("text", ["1.234", "12,340"])
def test_three_digits_after_one_separator_have_two_readings(text: str) -> None:
    assert len(read_figure(text)) == 2


def test_the_documents_style_settles_three_digits() -> None:
    assert read_figure("1.234", mark=",") == (Decimal(1234),)
    assert read_figure("1.234", mark=".") == (Decimal("1.234"),)
    assert read_figure("12,340", whole_only=True) == (Decimal(12340),)


@pytest.mark.parametrize("text", ["12.34,56.78", "1,2,3", "1'23.00", "1 23,00"])
def test_senseless_separators_are_no_number(text: str) -> None:
    assert read_figure(text) == ()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Total EUR -119,00", ["-119.00"]),
        ("-€ 119.00", ["-119.00"]),
        ("($ 119.00)", ["-119.00"]),
        ("119.00 CR", ["-119.00"]),
        ("€ -9,32", ["-9.32"]),
        ("29.99 € TTC", ["29.99"]),
        ("EUR34,73", ["34.73"]),
        ("EUR16 828,47", ["16828.47"]),
        ("FO10479674", []),
        ("INV-2024-0815", []),
        ("NL810433941B01", []),
        ("42/1 & 43/2", []),
        ("Rs 1939", ["1939"]),
    ],
)
def test_signs_and_codes_around_figures(text: str, values: list[str]) -> None:
    assert [str(figure.value) for figure in find_figures(text)] == values


def test_the_decimal_mark_needs_a_clear_majority() -> None:
    assert decimal_mark(["1.234,56", "5,00"]) == ","
    assert decimal_mark(["12.50", "3.00"]) == "."
    assert decimal_mark(["12.50", "3,00"]) is None
    assert decimal_mark(["1939"]) is None


@given(
    st.sampled_from(sorted(LOCALES)),
    st.decimals(min_value=Decimal("0.01"), max_value=Decimal("99999999.99"), places=2, allow_nan=False),
)
def test_every_amount_of_every_locale_is_read_as_it_was_written(name: str, value: Decimal) -> None:
    locale = LOCALES[name]
    (figure,) = find_figures(money(value, locale, 2, indian=name == "en-IN"), locale.decimal)
    assert figure.value == value


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("August 3 , 2014", (2014, 8, 3)),
        ("7. Mai 2014", (2014, 5, 7)),
        ("02 Juillet 2015", (2015, 7, 2)),
        ("19 april 2014", (2014, 4, 19)),
        ("5 de marzo de 2021", (2021, 3, 5)),
        ("3rd March 2020", (2020, 3, 3)),
        ("2024-08-09", (2024, 8, 9)),
        ("31/12/2017", (2017, 12, 31)),
        ("03/20/2023", (2023, 3, 20)),
        ("04.07.2014", (2014, 7, 4)),
        ("21.05.14", (2014, 5, 21)),
        ("Facturen°562044387du02Juillet2015", (2015, 7, 2)),
        ("2024年8月9日", (2024, 8, 9)),
    ],
)
def test_a_clear_date_has_one_option(text: str, date: tuple[int, int, int]) -> None:
    (found,) = find_dates(text)
    assert found.options == (dt.date(*date),)


def test_day_and_month_are_not_guessed() -> None:
    (found,) = find_dates("04/07/2014")
    assert resolve(found, None) is None
    assert resolve(found, "dmy") == dt.date(2014, 7, 4)
    assert resolve(found, "mdy") == dt.date(2014, 4, 7)


@pytest.mark.parametrize("text", ["INV/2023/03/0008", "31/02/2020", "99/99/2020", "01/02/03", "1.2.3.4", "10.0.0.1"])
def test_what_is_no_date(text: str) -> None:
    assert find_dates(text) == []


def test_the_longest_phrase_wins_and_words_do_not_match_inside_words() -> None:
    assert {label.label for label in find_labels("Total excl. VAT")} == {"net"}
    assert {label.label for label in find_labels("Rechnungsnummer")} == {"number"}
    assert find_labels("internet") == []
    assert {label.label for label in find_labels("TOTALAMOUNTDUEONAugust3,2014")} == {"due"}
