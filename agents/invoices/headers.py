"""Finds what stands around the amounts: invoice number, date, order reference, supplier, kind and language.

Rule: a value is taken beside or below its label; two different values for the same label are a doubt, not a choice.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sagalog.agents.invoices.currency import country_named
from sagalog.agents.invoices.dates import FoundDate, Order, find_dates, resolve
from sagalog.agents.invoices.figures import find_figures
from sagalog.agents.invoices.labels import LANGUAGES_DAY_FIRST, FoundLabel
from sagalog.agents.invoices.layout import Cell, Layout
from sagalog.agents.invoices.models import Kind

T = TypeVar("T")

# An identifier: starts and ends with a letter or digit, holds a digit, and has no odd length.
_IDENTIFIER = re.compile(r"#?\s?[A-Za-z0-9](?:[A-Za-z0-9/_.\-]*[A-Za-z0-9])?")
IDENTIFIER_MAX = 32
# Titles stand in the upper part of the first page.
TITLE_SHARE = 0.45
# OCR lost the spaces of "562044387 du 02 Juillet 2015".
_GLUED_DATE = re.compile(r"(?<=\d)(?:du|vom|van|del|of|dated?|am)(?=\d|$)")
_STOP = re.compile(
    r"\s(?:du|vom|van|of|from|date|dated|datum|del|de|seite|page|pagina|le|am|op|on|issued|fecha|data|/\s|\|).*$",
    re.IGNORECASE,
)
_COMPANY = re.compile(
    r"\b(?:GmbH|AG|Ltd|Limited|Inc|LLC|LLP|PLC|B\.?V|N\.?V|S\.?A\.?R\.?L|SAS|S\.?A|S\.?L|S\.?r\.?l|S\.?p\.?A|Pvt|"
    r"Corp|Co|KG|OHG|e\.?K|UG|AB|ApS|AS|A/S|Oy|SE|K\.?K|GbR|Lda|Sàrl|SRL|SASU|EURL)\b\.?(?!\w)"
)


@dataclass(frozen=True, slots=True)
class Value(Generic[T]):
    """A field's value with where it came from, or None with a doubt."""

    value: T | None
    evidence: str = ""
    confidence: float = 0.0
    doubt: str | None = None


def find_number(layout: Layout, kind: Kind) -> Value[str]:
    """The invoice's number, by a full label ("Rechnungsnr."), else by a title ("Invoice INV/2023/8")."""
    steps: list[tuple[str, float]] = [("number", 1.0), ("weak_number", 0.93)]
    if kind == "receipt":
        steps.append(("receipt_number", 0.93))
    for label, weight in steps:
        found = [(value, cell, c * weight) for value, cell, c in _identifiers(layout, label)]
        if not found:
            continue
        values = {value for value, _, _ in found}
        if len(values) > 1:
            # The same number printed with and without its prefix is one number.
            longest = max(values, key=len)
            if not all(value in longest for value in values) or label != "number":
                if label == "weak_number":
                    counts = Counter(value for value, _, _ in found)
                    (best, most), *_ = counts.most_common()
                    if most == 1 or list(counts.values()).count(most) > 1:
                        listed = ", ".join(sorted(values))
                        return Value(None, doubt=f"several numbers could be the invoice number: {listed}")
                    found = [one for one in found if one[0] == best]
                else:
                    listed = ", ".join(sorted(values))
                    return Value(None, doubt=f"several different invoice numbers are printed: {listed}")
        value, cell, confidence = max(found, key=lambda f: (f[2], len(f[0])))
        return Value(value, cell.text, confidence)
    return Value(None, doubt="no invoice number was found: no number stands beside a word for it")


def find_order(layout: Layout) -> Value[str]:
    """The buyer's order reference, where one is printed. Its absence is no doubt."""
    found = list(_identifiers(layout, "order"))
    if not found:
        return Value(None)
    value, cell, confidence = max(found, key=lambda f: f[2])
    return Value(value, cell.text, confidence)


def _identifiers(layout: Layout, label: str) -> Iterator[tuple[str, Cell, float]]:
    for cell in layout.cells:
        if cell.prose:
            continue
        for found in cell.labels:
            if _meaning(cell, found) != label or _shadowed(cell, found):
                continue
            # A date in the same run ends the number, even where OCR lost the space between them.
            dates = [date.start for date in cell.dates if date.start > found.end]
            rest = cell.text[found.end : min(dates, default=len(cell.text))]
            rest = _GLUED_DATE.split(rest)[0]
            here = _identifier(_until_label(cell, found, rest), found, label)
            if here:
                yield here, cell, cell.confidence
                continue
            if re.sub(r"[\s:.#°ºNnrRoO]", "", rest) and label == "weak_number":
                continue
            if re.search(r"[A-Za-z]{3}", rest):
                continue
            beside = layout.right_of(cell)
            if beside and (value := _identifier(beside[0].text, found, label)) and not _is_label(beside[0]):
                yield value, beside[0], 0.99 * beside[0].confidence
                continue
            if label == "weak_number":
                continue
            for under in layout.below(cell)[:1]:
                if not _is_label(under) and (value := _identifier(under.text, found, label)):
                    yield value, under, 0.97 * under.confidence


def _meaning(cell: Cell, found: FoundLabel) -> str:
    """The label's meaning; a title with a number sign ("Invoice #") is a label for the number."""
    if found.label == "weak_number" and re.match(r"\s*(?:#|n[°ºr]\.?|no\b)", cell.text[found.end :], re.IGNORECASE):
        return "number"
    return found.label


def _shadowed(cell: Cell, found: FoundLabel) -> bool:
    """A label that is the start of another one's meaning at the same place ("invoice" in a due-date phrase)."""
    return any(
        other is not found and other.start < found.start < other.end and other.label != found.label
        for other in cell.labels
    )


def _is_label(cell: Cell) -> bool:
    return any(found.start <= 1 and found.label not in ("column", "title_invoice") for found in cell.labels)


def _until_label(cell: Cell, found: FoundLabel, rest: str) -> str:
    following = [other.start for other in cell.labels if other.start >= found.end and other.label != "column"]
    return rest[: min(following) - found.end] if following else rest


def _identifier(text: str, found: FoundLabel, label: str) -> str | None:
    # What belongs to the label: "No.", "Nr", "n°", a colon. A "#" after a complete label belongs to the number.
    trimmed = re.sub(
        r"^\s*(?:[.:°º\-–]|(?:no|nr|n|num|number|id)\b\.?(?=[\s:.°º#]))*\s*[:.°º]*\s*", "", text, flags=re.IGNORECASE
    )
    if label == "weak_number" or not re.search(r"(?:no|nr|number|nummer|id|num)$", found.phrase):
        trimmed = trimmed.lstrip("#: ")
    trimmed = _STOP.sub("", trimmed)
    match = _IDENTIFIER.match(trimmed)
    if match is None:
        return None
    value = match.group().replace(" ", "")
    rest = trimmed[match.end() :]
    if value.isalpha() and len(value) <= 5 and value.isupper():
        # "INV 2024-001": a prefix of capitals and then the digits.
        more = re.match(r"\s+([0-9][A-Za-z0-9/_.\-]*[A-Za-z0-9])", rest)
        if more is None:
            return None
        value, rest = f"{value} {more.group(1)}", rest[more.end() :]
    digits = sum(c.isdigit() for c in value)
    if not digits or len(value) > IDENTIFIER_MAX or len(value) < 2:
        return None
    # Typefaces without serifs: OCR reads a capital I as a small l. Among capitals only the capital makes sense.
    others = [c for c in value if c.isalpha() and c != "l"]
    if others and all(c.isupper() for c in others):
        value = value.replace("l", "I")
    if re.match(r"\s*[,.]\d|\s*%", rest) or re.search(r"^\s*(?:€|EUR|USD|\$)", rest):
        return None
    figures = find_figures(value)
    if figures and figures[0].text == value and figures[0].decimals == 2:
        return None  # an amount
    if _looks_like_date(value):
        return None
    if label == "weak_number" and digits < 3:
        return None
    return value


def _looks_like_date(value: str) -> bool:
    dates = find_dates(value)
    return bool(dates) and dates[0].start == 0 and dates[0].end == len(value)


# --- date ----------------------------------------------------------------------------------------------------------


def find_date(layout: Layout, language: str | None, currency: str | None) -> Value[dt.date]:
    """The invoice's date: beside or below its label, else the only date of the document."""
    order, why = date_order(layout, language, currency)
    labelled: list[tuple[FoundDate, Cell, float]] = []
    for cell in layout.cells:
        for found in cell.labels:
            if found.label == "date" and not cell.prose:
                labelled.extend(_dates_at(layout, cell, found))
            elif found.label in ("number", "weak_number") and not cell.prose:
                # "Facture n°562044387 du 02 Juillet 2015": the number's own line carries the date.
                labelled.extend(
                    (date, cell, 0.97 * cell.confidence)
                    for date in cell.dates[:1]
                    if date.start >= found.end and not _other_date(cell, date)
                )
    if labelled:
        return _settle(labelled, order, why)
    loose = [
        (date, cell, 0.9 * cell.confidence)
        for cell in layout.cells
        if not cell.prose
        for date in cell.dates
        if not _other_date(cell, date) and not _labelled_elsewhere(layout, cell)
    ]
    if len({date.options for date, _, _ in loose}) == 1:
        return _settle(loose, order, why)
    if loose:
        return Value(None, doubt="several dates are printed and none is marked as the date of the invoice")
    return Value(None, doubt="no invoice date was found")


def _dates_at(layout: Layout, cell: Cell, found: FoundLabel) -> Iterator[tuple[FoundDate, Cell, float]]:
    after = [date for date in cell.dates if date.start >= found.end]
    if after:
        if not _other_date(cell, after[0]):
            yield after[0], cell, cell.confidence
        return
    if any(label.start >= found.end and label.label in ("due_date", "other_date") for label in cell.labels):
        return
    beside = layout.right_of(cell)
    if beside and beside[0].dates and not _is_label(beside[0]):
        yield beside[0].dates[0], beside[0], 0.99 * beside[0].confidence
        return
    for under in layout.below(cell)[:1]:
        if under.dates and not _is_label(under):
            yield under.dates[0], under, 0.97 * under.confidence


def _other_date(cell: Cell, date: FoundDate) -> bool:
    """Whether the nearest date label before the date says that it is another date."""
    before = [
        label
        for label in cell.labels
        if label.end <= date.start and label.label in ("date", "due_date", "other_date", "number", "weak_number", "due")
    ]
    if not before:
        return False
    last = max(label.end for label in before)
    kinds = {label.label for label in before if label.end == last}
    return not kinds & {"date", "number", "weak_number"}


def _labelled_elsewhere(layout: Layout, cell: Cell) -> bool:
    """Whether the cell to the left or above names this date as another one (due, delivery, period)."""
    left = [other for other in layout.rows[cell.row].cells if other.box.x1 <= cell.box.x0 + 1]
    if left and left[-1].has("due_date", "other_date"):
        return True
    return any(
        other.has("due_date", "other_date") and cell in layout.below(other)
        for row in layout.rows[max(0, cell.row - 3) : cell.row]
        for other in row.cells
    )


def _settle(found: list[tuple[FoundDate, Cell, float]], order: Order | None, why: str) -> Value[dt.date]:
    values = {resolve(date, order) for date, _, _ in found}
    date, cell, confidence = max(found, key=lambda f: f[2])
    if None in values:
        first, second = date.options if len(date.options) == 2 else (None, None)
        return Value(
            None,
            cell.text,
            doubt=f'the date "{date.text}" may be {first} or {second}: '
            f"nothing on the document settles the order of day and month ({why})",
        )
    if len(values) > 1:
        listed = ", ".join(sorted(str(value) for value in values))
        return Value(None, cell.text, doubt=f"several different invoice dates are printed: {listed}")
    return Value(values.pop(), cell.text, confidence)


def date_order(layout: Layout, language: str | None, currency: str | None) -> tuple[Order | None, str]:
    """Day or month first, with the evidence: another date of the document, the language, the currency."""
    proofs = {date.proves for cell in layout.cells for date in cell.dates if date.proves is not None}
    if len(proofs) == 1:
        return proofs.pop(), "another date of the document proves it"
    if len(proofs) == 2:
        return None, "the dates of the document contradict each other"
    if language in LANGUAGES_DAY_FIRST:
        return "dmy", f"the document's language is {language}"
    if currency in ("EUR", "GBP", "INR", "CHF", "AUD", "NZD", "SEK", "NOK", "DKK"):
        return "dmy", f"the currency is {currency}"
    if currency == "USD" and country_named("US", layout.text):
        return "mdy", "the document is from the United States"
    return None, "neither another date nor the language nor the currency tells"


# --- kind, language, supplier --------------------------------------------------------------------------------------


def find_kind(layout: Layout) -> tuple[Kind, str]:
    """What the document calls itself, by the first title on its first page."""
    titles: dict[str, str] = {}
    first = [cell for cell in layout.cells if cell.page == 1]
    bottom = max((cell.box.y1 for cell in first), default=0.0)
    for cell in first:
        if cell.box.y0 > TITLE_SHARE * bottom or cell.prose:
            continue
        for found in cell.labels:
            if not found.label.startswith("title_") or _has_before(cell, found):
                continue
            tail = cell.text[found.end :].strip(" .:!")
            # "Order confirmation no. 5" is a title, "Purchase order: 4711" on an invoice is a reference.
            if found.label == "title_other" and (tail or (layout.right_of(cell) and cell.text.rstrip().endswith(":"))):
                continue
            titles.setdefault(found.label, cell.text)
    for label, kind in (("title_credit", "credit_note"), ("title_other", "other")):
        if label in titles and not (kind == "other" and "title_invoice" in titles):
            return ("credit_note" if label == "title_credit" else "other"), titles[label]
    if "title_receipt" in titles and "title_invoice" not in titles:
        return "receipt", titles["title_receipt"]
    return "invoice", titles.get("title_invoice", "")


def _has_before(cell: Cell, found: FoundLabel) -> bool:
    """Whether other words stand before the label: then it is no title ("This is not a VAT invoice")."""
    words = re.findall(r"[^\W\d_]{2,}", cell.text[: found.start])
    return len(words) > 2


def find_language(layout: Layout) -> str | None:
    """The language most labels are in; phrases shared by several languages count less."""
    votes: Counter[str] = Counter()
    for cell in layout.cells:
        for found in cell.labels:
            for language in found.languages:
                votes[language] += len(found.phrase) * 12 // len(found.languages) ** 2
    return votes.most_common(1)[0][0] if votes else None


def find_supplier(layout: Layout) -> Value[str]:
    """The issuer's name: a company in the upper part that is not the recipient, else the mail or web domain's owner."""
    cells = [cell for cell in layout.cells if cell.page == 1 and not cell.prose]
    avoid = {id(under) for cell in cells if cell.has("recipient") for under in layout.below(cell)}
    for cell in cells:
        if id(cell) in avoid or cell.has("recipient"):
            continue
        match = _COMPANY.search(cell.text)
        if match:
            name = re.split(r"\s+[-–|]\s+|\s{2,}|:\s*", cell.text[: match.end()])[-1].strip(" ,")
            if len(name) > 3:
                return Value(name, cell.text, 0.7 * cell.confidence)
    for cell in cells[:3]:
        letters = sum(c.isalpha() for c in cell.text)
        if letters >= 3 and not cell.labels and not cell.figures:
            return Value(cell.text.strip(" .,"), cell.text, 0.4 * cell.confidence)
    return Value(None)
