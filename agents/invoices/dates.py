"""Dates as invoices print them, in the languages of `labels`, with the ambiguity of 04/07/2014 kept visible.

Rule: day and month of a numeric date are never guessed. Points mean day first everywhere; a date with the year first
is ISO; slashes and dashes need evidence from elsewhere (`order_of`), or the date stays ambiguous.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Order = Literal["dmy", "mdy"]

YEAR_MIN, YEAR_MAX = 1990, 2100

_MONTHS = [
    "january jan januar jaenner janner janvier janv januari enero ene gennaio gen janeiro",
    "february feb februar fevrier fevr fev februari febrero febbraio fevereiro",
    "march mar marz maerz mrz mars maart mrt marzo marco",
    "april apr avril avr abril abr aprile",
    "may mai mei mayo maggio mag maio",
    "june jun juni juin junio giugno giu junho",
    "july jul juli juillet juil julio luglio lug julho",
    "august aug aout augustus agosto ago agst",
    "september sep sept septembre septiembre settembre set setembro",
    "october oct oktober okt octobre octubre ottobre ott outubro out",
    "november nov novembre noviembre novembro",
    "december dec dezember dez decembre diciembre dic dicembre dezembro",
]
MONTHS = {name: number for number, names in enumerate(_MONTHS, 1) for name in names.split()}
_WORD = r"[^\W\d_]{3,10}"
_NUMERIC = re.compile(r"(?<![\w/.,-])(\d{1,4})\s?([./-])\s?(\d{1,2})\s?\2\s?(\d{1,4})(?![\w/]|[.,-]\d)")
# A small letter may stand right before the day ("du02Juillet2015", spaces lost by OCR), a capital may not (a code).
_DAY_FIRST = re.compile(
    rf"(?<![\dA-Z_/.,])(\d{{1,2}})(?i:st|nd|rd|th|er|º|°)?[\s.,-]*(?i:de\s*|of\s*|di\s*)?({_WORD})[\s.,’'-]*(?i:del?\s*)?"
    r"(\d{4}(?!\d)|\d{2}(?!\w))"
)
_MONTH_FIRST = re.compile(
    rf"(?<![^\W\d_])({_WORD})\.?\s*(\d{{1,2}})(?:st|nd|rd|th)?\s*,?\s*(\d{{4}})(?!\d)", re.IGNORECASE
)
_KANJI = re.compile(r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日")


@dataclass(frozen=True, slots=True)
class FoundDate:
    """A date in a text at [start, end). `options` has one date, or two (day first, then month first)."""

    start: int
    end: int
    text: str
    options: tuple[dt.date, ...]
    # What the date itself proves about the document's order, when numeric: 31/12 proves day first.
    proves: Order | None = None


def find_dates(text: str) -> list[FoundDate]:
    """All dates of a text, in order, without overlaps."""
    found: list[FoundDate] = []
    for match in _NUMERIC.finditer(text):
        one = _numeric(match)
        if one is not None:
            found.append(one)
    for pattern, groups in ((_DAY_FIRST, (1, 2, 3)), (_MONTH_FIRST, (2, 1, 3)), (_KANJI, (3, 2, 1))):
        for match in pattern.finditer(text):
            day, month, year = (match.group(i) for i in groups)
            number = int(month) if month.isdigit() else MONTHS.get(_plain(month))
            date = _date(year, number, int(day)) if number is not None else None
            start = match.start()
            if date is None or any(f.start < match.end() and start < f.end for f in found):
                continue
            found.append(FoundDate(start, match.end(), match.group(), (date,)))
    return sorted(found, key=lambda f: f.start)


def resolve(found: FoundDate, order: Order | None) -> dt.date | None:
    """The one date meant, or None when it stays ambiguous."""
    if len(found.options) == 1:
        return found.options[0]
    if order is None:
        return None
    return found.options[0] if order == "dmy" else found.options[1]


def _numeric(match: re.Match[str]) -> FoundDate | None:
    first, mark, second, third = match.groups()
    if len(first) == 4:
        date = _date(first, int(second), int(third)) if len(third) <= 2 else None
        return FoundDate(match.start(), match.end(), match.group(), (date,)) if date else None
    if len(first) > 2 or len(third) not in (2, 4):
        return None
    # Two digits of year only where the style is safe: points. 01/02/03 could be anything.
    if len(third) == 2 and mark != "." and not (int(first) > 12 or int(second) > 12):
        return None
    day_first = _date(third, int(second), int(first))
    month_first = _date(third, int(first), int(second)) if mark != "." else None
    options = tuple(date for date in (day_first, month_first) if date is not None)
    if not options:
        return None
    if len(options) == 2 and options[0] == options[1]:
        options = options[:1]
    proves: Order | None = None
    if mark != "." and len(options) == 1 and first != second and int(first) != int(second):
        proves = "dmy" if day_first is not None else "mdy"
    return FoundDate(match.start(), match.end(), match.group(), options, proves)


def _date(year: str, month: int | None, day: int) -> dt.date | None:
    number = int(year) + (2000 if len(year) == 2 else 0)
    if month is None or not YEAR_MIN <= number <= YEAR_MAX or not 1 <= month <= 12:
        return None
    try:
        return dt.date(number, month, day)
    except ValueError:
        return None


def _plain(word: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if c.isalpha() and c.isascii())
