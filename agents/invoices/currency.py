"""Which currency an invoice is in: by code, by sign, by words, and by country where a sign has several meanings.

Rule: a sign that several currencies share ($, Rs, kr, ¥) decides nothing without evidence of the country on the page.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal

from sagalog.agents.invoices.layout import Cell, Layout

_CODES = """
AED AUD BGN BRL CAD CHF CNY CZK DKK EUR GBP HKD HUF ILS INR JPY KRW MXN NOK NZD PLN RON SEK SGD THB TRY USD ZAR
"""
CODES = frozenset(_CODES.split())
# Minor units: digits after the decimal mark (ISO 4217); two unless listed.
EXPONENTS = {"JPY": 0, "KRW": 0}


def quantize(amount: Decimal, currency: str | None) -> Decimal:
    """The amount with as many decimals as the currency has, where that loses nothing; else as it is."""
    step = Decimal(1).scaleb(-EXPONENTS.get(currency or "", 2))
    exact = amount.quantize(step)
    return exact if exact == amount else amount


_CODE = re.compile(r"(?<![A-Za-z])(" + "|".join(sorted(CODES)) + r")(?![A-Za-z])")
_SIGNS: tuple[tuple[str, str], ...] = (
    # (pattern, meaning); a meaning of one character class is resolved by country below.
    (r"US\s?\$|\$\s?US", "USD"),
    (r"(?:CA|C)\s?\$", "CAD"),
    (r"(?:AU|A)\s?\$", "AUD"),
    (r"NZ\s?\$", "NZD"),
    (r"HK\s?\$", "HKD"),
    (r"R\$", "BRL"),
    (r"\$", "$"),
    (r"€", "EUR"),
    (r"(?<![A-Za-z])[Ee]uros?(?![A-Za-z])", "EUR"),
    (r"£", "GBP"),
    (r"₹", "INR"),
    (r"[¥￥]", "¥"),
    (r"円", "JPY"),
    (r"(?<![A-Za-z])Rs\.?(?![A-Za-z])", "Rs"),
    (r"(?<![A-Za-z])S?[Ff]r\.(?![A-Za-z])", "Fr"),
    (r"(?<![A-Za-z])kr\.?(?![A-Za-z])", "kr"),
    (r"zł", "PLN"),
    (r"Kč", "CZK"),
    (r"₺", "TRY"),
    (r"₩", "KRW"),
    (r"₪", "ILS"),
)
_WORDS: tuple[tuple[str, str], ...] = (
    (r"US\s?dollars?", "USD"),
    (r"pounds? sterling", "GBP"),
    (r"indian rupees?", "INR"),
    (r"(?:swiss francs?|schweizer franken)", "CHF"),
    (r"canadian dollars?", "CAD"),
    (r"australian dollars?", "AUD"),
    (r"japanese yen", "JPY"),
    (r"\beuros?\b", "EUR"),
)
# Evidence of a country, for the signs that need it. Places and terms only, never a vendor. Codes are upper case; words
# are not case-sensitive: "de 75008" is not Delaware.
_STATES = (
    "A[KLRZ]|C[AOT]|DE|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT|V[AT]|W[AIVY]"
)
_COUNTRIES: dict[str, str] = {
    "US": rf"\bU\.?S\.?A\b|(?i:united\s?states)|\b(?:{_STATES}),?\s?\d{{5}}(?:-\d{{4}})?\b|\bEIN\b",
    "CA": r"(?i:\bcanada\b)|\bGST/HST\b|\bHST\b|\bQST\b|\b[A-CEGHJ-NPR-TVXY]\d[A-Z]\s?\d[A-Z]\d\b",
    "AU": r"(?i:\baustralia\b)|\bABN\b",
    "NZ": r"(?i:new\s?zealand\b)|\bNZBN\b",
    "HK": r"(?i:\bhong\s?kong\b)",
    "SG": r"(?i:\bsingapore\b)",
    "MX": r"(?i:\bm[eé]xico\b)|\bRFC\b",
    "IN": r"(?i:\bindia\b|\bnew\s?delhi\b|\bmumbai\b|\bbangalore\b|\bbengaluru\b|\bchennai\b)"
    r"|\bGSTIN|\bIFSC|\bCIN\s?:?\s?[UL]\d{5}|\b[CSI]GST\b|\b\d{2}[A-Z]{5}\d{4}[A-Z]\d[A-Z\d]{2}\b",
    "PK": r"(?i:\bpakistan\b|\bkarachi\b|\blahore\b)",
    "LK": r"(?i:\bsri\s?lanka\b|\bcolombo\b)",
    "NP": r"(?i:\bnepal\b)",
    "JP": r"(?i:\bjapan\b|\btokyo\b|\bosaka\b|consumption\s?tax)|日本|東京|株式会社",
    "CN": r"(?i:\bchina\b|\bbeijing\b|\bshanghai\b)|中国|有限公司",
    "CH": r"(?i:\bschweiz\b|\bswitzerland\b|\bsuisse\b|\bsvizzera\b|\bz[uü]rich\b)|\bCHE-?\d{3}",
    "SE": r"(?i:\bsverige\b|\bsweden\b|\bstockholm\b|\bbankgiro\b)",
    "NO": r"(?i:\bnorge\b|\bnorway\b|\boslo\b)",
    "DK": r"(?i:\bdanmark\b|\bdenmark\b)|\bCVR\b",
}
_SHARED: dict[str, dict[str, str]] = {
    "$": {"US": "USD", "CA": "CAD", "AU": "AUD", "NZ": "NZD", "HK": "HKD", "SG": "SGD", "MX": "MXN"},
    "Rs": {"IN": "INR", "PK": "PKR", "LK": "LKR", "NP": "NPR"},
    "¥": {"JP": "JPY", "CN": "CNY"},
    "kr": {"SE": "SEK", "NO": "NOK", "DK": "DKK"},
    "Fr": {"CH": "CHF"},
}


@dataclass(frozen=True, slots=True)
class Found:
    """The currency, or None with the reason why it stays open."""

    code: str | None
    evidence: str
    confidence: float
    doubt: str | None = None


def find_currency(layout: Layout, near: Cell | None) -> Found:
    """The document's currency. `near` is the cell of the total, whose own sign or code counts before all others."""
    text = layout.text
    if near is not None:
        beside = [near.text, *(c.text for c in _beside(layout, near))]
        own = signs_in(" ".join(beside))
        if own:
            return _resolve(own, text, layout, f'beside the total: "{" ".join(beside).strip()}"', near.confidence)
    votes: Counter[str] = Counter()
    for cell in layout.cells:
        if cell.figures and not cell.prose:
            votes.update(signs_in(cell.text))
    if votes:
        return _resolve(set(votes), text, layout, "beside the amounts", 0.95)
    loose = {match.group(1) for match in _CODE.finditer(text)} or signs_in(text)
    if loose:
        return _resolve(loose, text, layout, "on the page", 0.9)
    words = {code for pattern, code in _WORDS if re.search(pattern, text, re.IGNORECASE)}
    if words:
        return _resolve(words, text, layout, "in words on the page", 0.9)
    hint = " (the OCR models in use cannot read the signs of euro and pound)" if layout.method == "ocr" else ""
    return Found(None, "", 0.0, f"no currency could be read: no code, sign or word for one was recognised{hint}")


def country_named(country: str, text: str) -> bool:
    """Whether the text holds evidence of the country (a two-letter code of those that matter for a shared sign)."""
    return re.search(_COUNTRIES[country], text) is not None


def _beside(layout: Layout, cell: Cell) -> list[Cell]:
    """Cells of the same row that hold nothing but a currency."""
    return [
        other
        for other in layout.rows[cell.row].cells
        if other is not cell and len(other.text) <= 5 and not other.figures and signs_in(other.text)
    ]


def signs_in(text: str) -> set[str]:
    """The codes of all currencies named in the text; a sign that several share stands for itself."""
    found = {match.group(1) for match in _CODE.finditer(text)}
    rest = text
    for pattern, meaning in _SIGNS:
        rest, count = re.subn(pattern, " ", rest)
        if count:
            found.add(meaning)
    return found


def _resolve(found: set[str], text: str, layout: Layout, where: str, confidence: float) -> Found:
    codes = {code for code in found if code not in _SHARED}
    shared = found - codes
    if len(codes) == 1:
        # "$ 12.00 USD": the code settles the sign, if the sign can mean it at all.
        (code,) = codes
        if all(code in _SHARED[sign].values() for sign in shared):
            return Found(code, where, confidence)
        return Found(None, where, 0.0, f"two currencies stand {where}: {', '.join(sorted(found))}")
    if len(codes) > 1 or len(shared) > 1:
        return Found(None, where, 0.0, f"several currencies stand {where}: {', '.join(sorted(found))}")
    (sign,) = shared
    named = {match.group(1) for match in _CODE.finditer(text)} & set(_SHARED[sign].values())
    named |= {code for pattern, code in _WORDS if re.search(pattern, text, re.IGNORECASE)} & set(_SHARED[sign].values())
    if len(named) == 1:
        return Found(named.pop(), f'"{sign}" {where}, and the code or name on the page', confidence)
    countries = {country for country in _SHARED[sign] if country_named(country, text)}
    if len(countries) == 1:
        country = countries.pop()
        return Found(_SHARED[sign][country], f'"{sign}" {where}, and a mark of {country} on the page', confidence)
    if sign == "Fr":
        return Found("CHF", f'"Fr." {where}', confidence)
    if countries:
        return Found(
            None, where, 0.0, f'"{sign}" may mean several currencies, and the page names {", ".join(sorted(countries))}'
        )
    return Found(None, where, 0.0, f'"{sign}" may mean several currencies, and nothing on the page says which')
