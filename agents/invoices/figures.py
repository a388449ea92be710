"""Numbers as invoices print them, in any locale: 1.234,56 - 1,234.56 - 1 234,56 - 1'234.56 - 1,23,456.00 - 12,340.

Rule: a figure whose separators allow two readings keeps both, and it is for the caller to refuse it. The style of the
whole document (which separator stands before two digits) may settle it; a single figure never settles itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

# Digits with separators; a space separates thousands only when exactly three digits follow.
FIGURE = re.compile(
    r"(?<![\d.,'’])"
    r"\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d{1,2})?(?![\d.,]*\d)"
    r"|(?<!\d)\d(?:[\d.,'’´`]*\d)?"
)
GROUP_MARKS = "'’´` \u00a0\u202f"
MINUS = "-−–‐"
DIGITS_MAX = 15


@dataclass(frozen=True, slots=True)
class Figure:
    """A number found in a text at [start, end). `readings` has one value, or two when the separators are ambiguous."""

    start: int
    end: int
    text: str
    readings: tuple[Decimal, ...]
    decimals: int
    negative: bool = False
    percent: bool = False

    @property
    def value(self) -> Decimal | None:
        return self.readings[0] if len(self.readings) == 1 else None


def decimal_mark(texts: Iterable[str]) -> str | None:
    """The document's decimal separator, "." or ",", or None when it does not tell.

    Only figures that end in a separator and exactly two digits count; one side must win clearly.
    """
    votes: Counter[str] = Counter()
    for text in texts:
        for match in FIGURE.finditer(text):
            figure = match.group()
            tail = re.search(r"([.,])\d{2}$", figure)
            if tail and not re.search(r"\d[.,]\d{2}[.,]\d{2}$|^\d{1,2}\.\d{2}\.", figure):
                votes[tail.group(1)] += 1
    if not votes:
        return None
    (first, most), *rest = votes.most_common()
    others = rest[0][1] if rest else 0
    return first if most > 3 * others or (most >= 1 and others == 0) else None


def read_figure(text: str, mark: str | None = None, whole_only: bool = False) -> tuple[Decimal, ...]:
    """The possible values of a figure. `mark` is the document's decimal separator, `whole_only` a currency without
    decimals. Empty when the separators make no sense as a number."""
    compact = text
    for sign in GROUP_MARKS:
        grouped = compact.split(sign)
        if len(grouped) > 1:
            tail = re.split(r"[.,]", grouped[-1])[0]
            if not all(len(part) == 3 for part in [*grouped[1:-1], tail]) or not 1 <= len(grouped[0]) <= 3:
                return ()
            compact = "".join(grouped)
    if sum(c.isdigit() for c in compact) > DIGITS_MAX:
        return ()
    marks = [c for c in compact if c in ".,"]
    if not marks:
        return (Decimal(compact),)
    parts = re.split(r"[.,]", compact)
    last, tail = marks[-1], parts[-1]
    if len(set(marks)) == 2:
        # Both separators: the last one is the decimal mark, and all before it must be the other.
        if marks.count(last) > 1 or not _grouped(parts[:-1], marks[0]):
            return ()
        return (Decimal("".join(parts[:-1]) + "." + tail),)
    if len(marks) > 1:
        if _grouped(parts, last):
            return (Decimal("".join(parts)),)
        # "1.234.56": the OCR took a comma for a point. No other reading makes sense of two digits at the end.
        if len(tail) == 2 and _grouped(parts[:-1], last):
            return (Decimal("".join(parts[:-1]) + "." + tail),)
        return ()
    if len(tail) != 3 or not 1 <= len(parts[0]) <= 3 or parts[0] == "0":
        return (Decimal(parts[0] + "." + tail),)
    as_group, as_decimal = Decimal(parts[0] + tail), Decimal(parts[0] + "." + tail)
    if whole_only or (mark is not None and mark != last):
        return (as_group,)
    if mark == last:
        return (as_decimal,)
    return (as_group, as_decimal)


def _grouped(parts: list[str], mark: str) -> bool:
    """Whether the parts are thousands (3,3,3) or, with commas, Indian lakhs (2,2,3)."""
    if not 1 <= len(parts[0]) <= 3:
        return False
    if all(len(part) == 3 for part in parts[1:]):
        return True
    return mark == "," and len(parts) > 2 and len(parts[-1]) == 3 and all(len(p) == 2 for p in parts[1:-1])


def find_figures(text: str, mark: str | None = None, whole_only: bool = False) -> list[Figure]:
    """All figures of a text that stand alone, i.e. are not part of a word, a code or a date."""
    found = []
    for match in FIGURE.finditer(text):
        start, end = match.span()
        before, after = text[:start].rstrip(), text[end:]
        if start and (text[start - 1].isdigit() or text[start - 1] in "/_#:*"):
            continue
        if start and text[start - 1].isalpha() and not _currency_tail(text[:start]):
            continue
        following = after[:1]
        if following and (following.isdigit() or following in "/_:*" or (following in MINUS and after[1:2].isalnum())):
            continue
        if after[:1].isalpha() and not _currency_head(after):
            continue
        readings = read_figure(match.group(), mark, whole_only)
        if not readings:
            continue
        negative = _negative(text, before, after)
        if before and before[-1] in MINUS and not negative:
            continue  # a hyphen inside a code or a range, e.g. 2014-0815
        percent = after.lstrip()[:1] == "%"
        tail = re.search(r"[.,](\d+)$", match.group())
        decimals = len(tail.group(1)) if tail and readings[0] != readings[0].to_integral() else 0
        if tail and len(tail.group(1)) == 2:
            decimals = 2
        values = tuple(-value for value in readings) if negative else readings
        found.append(Figure(start, end, match.group(), values, decimals, negative, percent))
    return found


_CURRENCY_WORD = r"(?:EUR|USD|GBP|CHF|INR|JPY|CAD|AUD|SEK|NOK|DKK|PLN|CZK|US\$|Rs\.?|Fr\.?|kr\.?|Euros?)"
_CURRENCY_SIGN = "€£$¥₹￥円元"


def _currency_tail(before: str) -> bool:
    return before[-1:] in _CURRENCY_SIGN or bool(re.search(_CURRENCY_WORD + r"$", before, re.IGNORECASE))


def _currency_head(after: str) -> bool:
    return (
        after[:1] in _CURRENCY_SIGN
        or bool(re.match(_CURRENCY_WORD + r"(?![a-z])", after, re.IGNORECASE))
        or bool(re.match(r"(?:TTC|HT|CR|kr|zł)(?![a-z])", after))
    )


def _negative(text: str, before: str, after: str) -> bool:
    """A minus before (also before the currency), a minus behind, "CR" behind, or brackets around."""
    bare = re.sub(rf"(?:{_CURRENCY_WORD}|[{_CURRENCY_SIGN}])\s*$", "", before, flags=re.IGNORECASE).rstrip()
    for head in (before, bare):
        if head[-1:] and head[-1] in MINUS and (len(head) == 1 or not head[-2].isalnum()):
            return True
    behind = re.sub(rf"^\s*(?:{_CURRENCY_WORD}|[{_CURRENCY_SIGN}])", "", after, flags=re.IGNORECASE)
    if after[:1] and after[0] in MINUS and not after[1:2].isalnum() and after[1:2] not in MINUS:
        # "12.50-" is negative; "12.-" and "12,--" (no cents) never reach here with their decimal mark.
        return True
    if re.match(r"\s*CR\b", behind):
        return True
    return bare[-1:] == "(" and behind.lstrip()[:1] == ")" and len(bare.strip()) == 1
