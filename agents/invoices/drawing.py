"""Draws invoices: the samples that ship with this package, and any number of unseen variants for tests.

Rules: everything follows from a seed, so that the samples are redrawn byte for byte by the same Pillow; only Pillow's
built-in font is used, since users have no common fonts (it holds ASCII, so texts avoid accents and currencies stand as
codes, or as "$"); a fault is part of the drawing and known to the expectation beside it.

`python -m sagalog.agents.invoices.drawing [--out DIR]` redraws the samples; `--random N --seed S` draws variants.
Exit codes: 0 drawn, 2 wrong command line.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFilter, ImageFont

Fault = Literal["total-wrong", "lines-wrong", "amount-smudged", "no-number", "no-date"]
Layout = Literal["classic", "boxed", "sidebar", "plain"]
LAYOUTS: tuple[Layout, ...] = ("classic", "boxed", "sidebar", "plain")
FAULTS: dict[Fault, str] = {
    "total-wrong": "the total does not equal net plus tax",
    "lines-wrong": "the lines do not add up to the net amount",
    "amount-smudged": "the total is smudged and cannot be read",
    "no-number": "no invoice number is printed",
    "no-date": "no invoice date is printed",
}

WIDTH_PX, HEIGHT_PX = 1100, 1556
SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Locale:
    """A language with its number and date formats and its words."""

    language: str
    decimal: str
    group: str
    date: str
    words: dict[str, str]


_EN = {
    "title": "INVOICE", "number": "Invoice number", "date": "Invoice date", "due": "Due date", "order": "Your order",
    "customer": "Customer no.", "to": "Bill to", "item": "Description", "qty": "Qty", "unit": "Unit price",
    "line": "Amount", "net": "Net amount", "tax": "VAT", "total": "Total due", "thanks": "Thank you for your business.",
}  # fmt: skip
LOCALES: dict[str, Locale] = {
    "en-GB": Locale("en", ".", ",", "%d/%m/%Y", _EN),
    "en-US": Locale(
        "en", ".", ",", "%B %d, %Y",
        {**_EN, "net": "Subtotal", "tax": "Sales tax", "total": "Grand total", "number": "Invoice #",
         "order": "PO number", "date": "Date"},
    ),
    "en-IN": Locale(
        "en", ".", ",", "%d-%m-%Y",
        {**_EN, "title": "TAX INVOICE", "number": "Invoice No", "tax": "IGST", "net": "Taxable value",
         "total": "Invoice total", "order": "PO No"},
    ),
    "en-JP": Locale("en", ".", ",", "%Y-%m-%d", {**_EN, "tax": "Consumption tax", "net": "Subtotal", "total": "Total"}),
    "de-DE": Locale(
        "de", ",", ".", "%d.%m.%Y",
        {"title": "RECHNUNG", "number": "Rechnungsnummer", "date": "Rechnungsdatum", "due": "Zahlbar bis",
         "order": "Ihre Bestellung", "customer": "Kundennr.", "to": "Rechnung an", "item": "Beschreibung",
         "qty": "Menge", "unit": "Einzelpreis", "line": "Betrag", "net": "Nettobetrag", "tax": "MwSt.",
         "total": "Gesamtbetrag", "thanks": "Vielen Dank fuer Ihren Auftrag."},
    ),
    "de-CH": Locale(
        "de", ".", "'", "%d.%m.%Y",
        {"title": "RECHNUNG", "number": "Rechnung Nr.", "date": "Datum", "due": "Zahlbar bis",
         "order": "Ihre Bestellung", "customer": "Kundennr.", "to": "Rechnung an", "item": "Bezeichnung",
         "qty": "Anzahl", "unit": "Preis", "line": "Betrag", "net": "Total exkl. MwSt.", "tax": "MwSt.",
         "total": "Total inkl. MwSt.", "thanks": "Besten Dank."},
    ),
    "fr-FR": Locale(
        "fr", ",", " ", "%d/%m/%Y",
        {"title": "FACTURE", "number": "Facture No", "date": "Date de facture", "due": "Date limite de paiement",
         "order": "Votre commande", "customer": "Code client", "to": "Facturer a", "item": "Designation",
         "qty": "Quantite", "unit": "Prix unitaire", "line": "Montant", "net": "Total HT", "tax": "TVA",
         "total": "Total TTC", "thanks": "Merci de votre confiance."},
    ),
    "nl-NL": Locale(
        "nl", ",", ".", "%d-%m-%Y",
        {"title": "FACTUUR", "number": "Factuurnummer", "date": "Factuurdatum", "due": "Vervaldatum",
         "order": "Ordernummer", "customer": "Klantnummer", "to": "Factuuradres", "item": "Omschrijving",
         "qty": "Aantal", "unit": "Prijs", "line": "Bedrag", "net": "Totaal excl. BTW", "tax": "BTW",
         "total": "Te betalen", "thanks": "Bedankt voor uw bestelling."},
    ),
    "es-ES": Locale(
        "es", ",", ".", "%d/%m/%Y",
        {"title": "FACTURA", "number": "Factura no.", "date": "Fecha de factura", "due": "Vencimiento",
         "order": "Su pedido", "customer": "Cliente no.", "to": "Facturar a", "item": "Concepto", "qty": "Cantidad",
         "unit": "Precio", "line": "Importe", "net": "Base imponible", "tax": "IVA", "total": "Total a pagar",
         "thanks": "Gracias por su confianza."},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """All that a drawing depends on. `fault` is drawn on purpose; `tilt` in degrees; `noise` is grey levels."""

    name: str
    locale: str
    layout: Layout
    currency: str
    supplier: tuple[str, ...]
    customer: tuple[str, ...]
    number: str
    date: dt.date
    order: str
    lines: tuple[tuple[str, int, Decimal], ...]
    rate: Decimal
    sign: str = ""  # drawn instead of the currency's code, e.g. "$"
    fault: Fault | None = None
    tilt: float = 0.0
    noise: int = 0
    seed: int = 0
    extras: tuple[str, ...] = field(default=())

    @property
    def exponent(self) -> int:
        return 0 if self.currency == "JPY" else 2

    @property
    def net(self) -> Decimal:
        return sum((self._round(price * quantity) for _, quantity, price in self.lines), Decimal(0))

    @property
    def tax(self) -> Decimal:
        return self._round(self.net * self.rate / 100)

    @property
    def total(self) -> Decimal:
        return self.net + self.tax

    def _round(self, value: Decimal) -> Decimal:
        return value.quantize(Decimal(1).scaleb(-self.exponent), ROUND_HALF_UP)


def expectation(spec: Spec) -> dict[str, Any]:
    """What a reader must find, as in `expected.json`; of a faulty drawing, what it was meant to say."""
    return {
        "invoice_number": None if spec.fault == "no-number" else spec.number,
        "date": None if spec.fault == "no-date" else spec.date.isoformat(),
        "currency": spec.currency,
        "amount": str(spec.total),
        "faulty": FAULTS[spec.fault] if spec.fault else None,
    }


def draw(spec: Spec) -> Image.Image:
    """The invoice as a grey image of about 130 dpi."""
    page = Image.new("L", (WIDTH_PX, HEIGHT_PX), 255)
    _Pen(spec, page).invoice()
    if spec.tilt:
        page = page.rotate(spec.tilt, Image.Resampling.BICUBIC, fillcolor=255)
    return _worn(page, spec)


def save(spec: Spec, folder: Path) -> Path:
    """Draw into `folder` as PNG. 16 grey levels: a scan's look at a third of the bytes."""
    path = folder / f"{spec.name}.png"
    palette = draw(spec).point([round(level / 17) * 17 for level in range(256)])
    palette.quantize(16, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def money(value: Decimal, locale: Locale, exponent: int, indian: bool = False) -> str:
    """The amount in the locale's format; Indian amounts group by lakh."""
    text = f"{abs(value):.{exponent}f}"
    whole, _, cents = text.partition(".")
    groups = [whole[-3:]]
    rest = whole[:-3]
    step = 2 if indian else 3
    while rest:
        groups.insert(0, rest[-step:])
        rest = rest[:-step]
    out = locale.group.join(groups) + (locale.decimal + cents if cents else "")
    return f"-{out}" if value < 0 else out


class _Pen:
    """Draws one invoice onto a page; the layouts differ in where things stand and in how labels and values meet."""

    def __init__(self, spec: Spec, page: Image.Image) -> None:
        self.spec = spec
        self.locale = LOCALES[spec.locale]
        self.words = self.locale.words
        self.page = page
        self.canvas = ImageDraw.Draw(page)
        self.random = random.Random(spec.seed)  # noqa: S311 - a drawing, not a secret

    def text(self, x: float, y: float, text: str, size: int = 20, right: bool = False, grey: int = 20) -> float:
        font = ImageFont.load_default(size)
        width = self.canvas.textlength(text, font=font)
        self.canvas.text((x - width if right else x, y), text, font=font, fill=grey)
        return width

    def amount(self, value: Decimal, coded: bool = True) -> str:
        text = money(value, self.locale, self.spec.exponent, indian=self.spec.locale == "en-IN")
        if not coded:
            return text
        if self.spec.sign:
            return f"{self.spec.sign}{text}"
        return f"{self.spec.currency} {text}" if self.random.random() < 0.7 else f"{text} {self.spec.currency}"

    def invoice(self) -> None:
        layouts: dict[Layout, Callable[[], None]] = {
            "classic": self.classic, "boxed": self.boxed, "sidebar": self.sidebar, "plain": self.plain,
        }  # fmt: skip
        layouts[self.spec.layout]()

    def fields(self) -> list[tuple[str, str]]:
        spec = self.spec
        date = spec.date.strftime(self.locale.date)
        due = (spec.date + dt.timedelta(days=30)).strftime(self.locale.date)
        all_fields = [
            (self.words["number"], "" if spec.fault == "no-number" else spec.number),
            (self.words["date"], "" if spec.fault == "no-date" else date),
            (self.words["due"], "" if spec.fault == "no-date" else due),
            (self.words["order"], spec.order),
        ]
        return [(label, value) for label, value in all_fields if value]

    def classic(self) -> None:
        """Sender on top, title, labels left of values, a ruled table, sums at the right."""
        self.block(90, 80, self.spec.supplier, 20, head=28)
        self.block(90, 270, (self.words["to"] + ":", *self.spec.customer), 19)
        self.text(640, 80, self.words["title"], 40)
        for index, (label, value) in enumerate(self.fields()):
            self.text(640, 160 + 34 * index, f"{label}:", 19)
            self.text(1010, 160 + 34 * index, value, 19, right=True)
        y = self.table(470, 90, 1010, ruled=True)
        self.sums(y + 30, 640, 1010)
        self.text(90, 1440, self.words["thanks"], 17)

    def boxed(self) -> None:
        """Title first, a box with labels above values, the sums in a frame."""
        self.text(90, 70, self.words["title"], 44)
        self.block(700, 70, self.spec.supplier, 18, head=24)
        self.canvas.rectangle((90, 250, 1010, 330), outline=90, width=2)
        fields = self.fields()
        for index, (label, value) in enumerate(fields):
            x = 105 + index * (905 / len(fields))
            self.text(x, 260, label, 16, grey=70)
            self.text(x, 290, value, 20)
        self.block(90, 370, (self.words["to"], *self.spec.customer), 19)
        y = self.table(560, 90, 1010, ruled=False)
        self.canvas.rectangle((560, y + 20, 1025, y + 190), outline=60, width=2)
        self.sums(y + 40, 580, 1010)

    def sidebar(self) -> None:
        """Fields in a column at the left, everything else at the right of it."""
        self.canvas.rectangle((0, 0, 330, HEIGHT_PX), fill=232)
        self.block(50, 90, self.spec.supplier, 18, head=22)
        for index, (label, value) in enumerate(self.fields()):
            self.text(50, 380 + 90 * index, label, 16, grey=60)
            self.text(50, 406 + 90 * index, value, 21)
        self.text(380, 90, self.words["title"], 42)
        self.block(380, 190, (self.words["to"], *self.spec.customer), 19)
        y = self.table(420, 380, 1040, ruled=True)
        self.sums(y + 30, 640, 1040)

    def plain(self) -> None:
        """Like a letter: one column, labels and values in running lines."""
        self.block(90, 80, self.spec.supplier, 20, head=24)
        self.block(90, 260, self.spec.customer, 20)
        y = 430.0
        number = "" if self.spec.fault == "no-number" else self.spec.number
        self.text(90, y, f"{self.words['title'].capitalize()} {number}".strip(), 30)
        for label, value in self.fields()[0 if number else 1 :]:
            y += 40
            self.text(90, y + 14, f"{label}: {value}", 20)
        y = self.table(y + 90, 90, 900, ruled=False)
        self.sums(y + 30, 480, 900)
        self.text(90, 1400, self.words["thanks"], 18)

    def block(self, x: float, y: float, lines: Sequence[str], size: int, head: int | None = None) -> None:
        for index, line in enumerate(lines):
            self.text(x, y, line, head if head and index == 0 else size)
            y += (head if head and index == 0 else size) * 1.5

    def table(self, y: float, left: float, right: float, ruled: bool) -> float:
        columns = (right - 400, right - 210, right)
        self.text(left, y, self.words["item"], 18)
        for x, word in zip(columns, ("qty", "unit", "line"), strict=True):
            self.text(x, y, self.words[word], 18, right=True)
        y += 34
        if ruled:
            self.canvas.line((left, y - 5, right, y - 5), fill=60, width=2)
        # The fault is in the second line: one digit of its amount is another.
        for index, (name, quantity, price) in enumerate(self.spec.lines):
            value = price * quantity
            if self.spec.fault == "lines-wrong" and index == 1:
                quantity, value = quantity + 3, price * (quantity + 3)
            self.text(left, y, name, 19)
            self.text(columns[0], y, str(quantity), 19, right=True)
            self.text(columns[1], y, self.amount(price, coded=False), 19, right=True)
            self.text(columns[2], y, self.amount(value, coded=False), 19, right=True)
            y += 38
        if ruled:
            self.canvas.line((left, y, right, y), fill=60, width=1)
        return y

    def sums(self, y: float, left: float, right: float) -> None:
        spec = self.spec
        total = spec.total
        if spec.fault == "total-wrong":
            total += Decimal(10) ** (len(str(int(total))) - 1)
        rate = f"{spec.rate.normalize():f}".replace(".", self.locale.decimal)
        rows = [
            (self.words["net"], self.amount(spec.net), 20),
            (f"{self.words['tax']} {rate}%", self.amount(spec.tax), 20),
            (self.words["total"], self.amount(total), 26),
        ]
        for index, (label, value, size) in enumerate(rows):
            self.text(left, y, label, size)
            width = self.text(right, y, value, size, right=True)
            if spec.fault == "amount-smudged" and index == 2:
                self.smudge(right - width, y, right, y + size * 1.25)
            y += size * 1.9

    def smudge(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """A wet thumb over the figure: blurred, then streaked."""
        box = (round(x0) - 6, round(y0) - 4, round(x1) + 6, round(y1) + 4)
        self.page.paste(self.page.crop(box).filter(ImageFilter.GaussianBlur(7)), box)
        for _ in range(14):
            start = self.random.uniform(x0 - 10, x1 - 20)
            height = self.random.uniform(y0, y1)
            self.canvas.line(
                (start, height, start + self.random.uniform(30, 90), height + self.random.uniform(-6, 6)),
                fill=self.random.randint(70, 150),
                width=self.random.randint(3, 7),
            )


def _worn(page: Image.Image, spec: Spec) -> Image.Image:
    """Specks and a slight blur, as from a scanner. Drawn sparsely, since noise in every pixel does not compress."""
    if not spec.noise:
        return page
    dice = random.Random(spec.seed + 1)  # noqa: S311 - a drawing, not a secret
    page = page.filter(ImageFilter.GaussianBlur(0.5))
    pixels = page.load()
    assert pixels is not None
    for _ in range(150 * spec.noise):
        x, y = dice.randrange(page.width), dice.randrange(page.height)
        pixels[x, y] = max(0, min(255, int(dice.gauss(190, 40))))
    return page


# --- the samples ---------------------------------------------------------------------------------------------------


def _d(value: str) -> Decimal:
    return Decimal(value)


_FALCON = ("Falcon Office Supplies Ltd", "14 Harbour Street", "Leeds LS1 4DY", "United Kingdom")
_LINDE = ("Lindental Werkzeuge GmbH", "Am Alten Hafen 7", "28195 Bremen", "Deutschland")
_PINE = ("Pinewood Software Inc.", "88 Cedar Avenue", "Portland, OR 97205", "United States")
_LAURIER = ("Papeterie du Laurier SARL", "12 rue des Tanneurs", "69002 Lyon", "France")
_MOLEN = ("Molenaar Verpakking B.V.", "Kade 31", "3011 AB Rotterdam", "Nederland")
_OLIVO = ("Suministros Olivo S.L.", "Calle Mayor 9", "28013 Madrid", "Espana")
_BERG = ("Bergblick Treuhand AG", "Seestrasse 40", "8002 Zuerich", "Schweiz")
_SAFFRON = ("Saffron Textiles Pvt. Ltd.", "21 MG Road", "Bengaluru 560001, India", "GSTIN 29ABCDE1234F1Z5")
_SAKURA = ("Sakura Instruments K.K.", "3-1 Chuo", "Osaka 540-0008", "Japan")
_BUYER = ("Northwind Trading", "Dock Road 5", "Hamburg")

SAMPLE_SPECS: tuple[Spec, ...] = (
    Spec("falcon-office", "en-GB", "classic", "GBP", _FALCON, _BUYER, "FO-20817", dt.date(2024, 3, 18), "PO-1001",
         (("Copy paper A4, box", 12, _d("21.50")), ("Toner cartridge black", 3, _d("64.90")),
          ("Desk lamp", 2, _d("38.25"))), _d("20"), seed=11),
    Spec("lindental-tools", "de-DE", "boxed", "EUR", _LINDE, _BUYER, "2024-00457", dt.date(2024, 4, 5), "PO-1002",
         (("Drehmomentschluessel", 2, _d("189.00")), ("Bohrersatz HSS 25tlg", 5, _d("74.95")),
          ("Werkbank 200 cm", 1, _d("649.00"))), _d("19"), tilt=0.6, noise=2, seed=12),
    Spec("pinewood-licences", "en-US", "sidebar", "USD", _PINE, _BUYER, "INV-30944", dt.date(2024, 7, 4), "PO-1003",
         (("Team licence, 12 months", 25, _d("96.00")), ("Onboarding workshop", 1, _d("1450.00"))), _d("8.25"),
         sign="$", seed=13),
    Spec("laurier-papier", "fr-FR", "plain", "EUR", _LAURIER, _BUYER, "F2024-118", dt.date(2024, 5, 27), "PO-1004",
         (("Enveloppes C5, carton", 10, _d("32.40")), ("Classeurs, lot de 20", 4, _d("58.75")),
          ("Papier recycle", 30, _d("24.90"))), _d("20"), tilt=-0.5, noise=2, seed=14),
    Spec("molenaar-dozen", "nl-NL", "classic", "EUR", _MOLEN, _BUYER, "240613", dt.date(2024, 6, 13), "PO-1005",
         (("Verhuisdozen, per 50", 6, _d("87.50")), ("Tape transparant", 48, _d("1.95"))), _d("21"),
         noise=3, seed=15),
    Spec("olivo-suministros", "es-ES", "boxed", "EUR", _OLIVO, _BUYER, "A-7713", dt.date(2024, 9, 23), "PO-1006",
         (("Guantes de trabajo", 120, _d("3.15")), ("Casco de seguridad", 15, _d("18.60"))), _d("21"),
         tilt=0.9, seed=16),
    Spec("bergblick-treuhand", "de-CH", "sidebar", "CHF", _BERG, _BUYER, "R-5520", dt.date(2024, 1, 31), "PO-1007",
         (("Jahresabschluss 2023", 1, _d("3850.00")), ("Beratung, Stunden", 6, _d("195.00"))), _d("8.1"), seed=17),
    Spec("saffron-textiles", "en-IN", "classic", "INR", _SAFFRON, _BUYER, "ST/2024/0388", dt.date(2024, 2, 19),
         "PO-1008", (("Cotton shirting, metres", 400, _d("312.00")), ("Silk saree fabric", 60, _d("1475.50"))),
         _d("5"), noise=2, seed=18),
    Spec("sakura-instruments", "en-JP", "plain", "JPY", _SAKURA, _BUYER, "SI-99012", dt.date(2024, 8, 9), "PO-1009",
         (("Digital caliper", 8, _d("12800")), ("Calibration", 8, _d("3500"))), _d("10"), seed=19),
    Spec("falcon-chairs", "en-GB", "sidebar", "GBP", _FALCON, _BUYER, "FO-20933", dt.date(2024, 10, 29), "PO-1010",
         (("Office chair", 16, _d("142.00")), ("Assembly", 16, _d("12.50"))), _d("20"), tilt=-1.1, noise=3, seed=20),
    Spec("lindental-total-wrong", "de-DE", "classic", "EUR", _LINDE, _BUYER, "2024-00502", dt.date(2024, 5, 14),
         "PO-1011", (("Akkuschrauber", 4, _d("129.00")), ("Ladegeraet", 4, _d("39.90"))), _d("19"),
         fault="total-wrong", seed=21),
    Spec("laurier-smudged", "fr-FR", "boxed", "EUR", _LAURIER, _BUYER, "F2024-131", dt.date(2024, 6, 20), "PO-1012",
         (("Stylos, boite de 50", 8, _d("19.90")), ("Agendas", 40, _d("11.25"))), _d("20"), fault="amount-smudged",
         noise=2, seed=22),
    Spec("pinewood-no-number", "en-US", "classic", "USD", _PINE, _BUYER, "INV-31002", dt.date(2024, 8, 21), "PO-1013",
         (("Support plan", 3, _d("420.00")), ("Extra storage", 10, _d("15.00"))), _d("8.25"), sign="$",
         fault="no-number", seed=23),
    Spec("molenaar-no-date", "nl-NL", "plain", "EUR", _MOLEN, _BUYER, "240702", dt.date(2024, 7, 2), "PO-1014",
         (("Pallets", 20, _d("14.80")), ("Stretchfolie", 36, _d("6.45"))), _d("21"), fault="no-date", seed=24),
    Spec("olivo-lines-wrong", "es-ES", "sidebar", "EUR", _OLIVO, _BUYER, "A-7790", dt.date(2024, 11, 15), "PO-1015",
         (("Botas de seguridad", 10, _d("46.90")), ("Chaleco reflectante", 25, _d("7.20")),
          ("Gafas", 30, _d("4.35"))), _d("21"), fault="lines-wrong", seed=25),
)  # fmt: skip


def redraw_samples(folder: Path) -> None:
    """Draw all samples with their `expected.json` and `orders.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {save(spec, folder).name: expectation(spec) for spec in SAMPLE_SPECS}
    _write_json(folder / "expected.json", expected)
    orders = [
        # The net amount: orders are written without tax.
        {"reference": s.order, "supplier": s.supplier[0], "currency": s.currency, "amount": str(s.net)}
        for s in SAMPLE_SPECS
    ]
    _write_json(folder / "orders.json", orders)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- unseen variants -----------------------------------------------------------------------------------------------

_NAMES = (
    "Alder",
    "Birch",
    "Cobalt",
    "Dune",
    "Ember",
    "Fjord",
    "Grove",
    "Heron",
    "Ivory",
    "Juniper",
    "Kestrel",
    "Larch",
)
_TRADES = ("Logistics", "Catering", "Print", "Electric", "Garden", "Media", "Glass", "Foods", "Travel", "Design")
_GOODS = ("Service A", "Module 7", "Widget large", "Repair", "Delivery crate", "Panel 60x40", "Filter set", "Cable 5 m")
_FORMS: dict[str, tuple[str, str, str]] = {
    "en-GB": ("Ltd", "York YO1 7HH", "United Kingdom"),
    "en-US": ("Inc.", "Austin, TX 78701", "United States"),
    "en-IN": ("Pvt. Ltd.", "Mumbai 400001, India", "GSTIN 27ABCDE1234F1Z5"),
    "en-JP": ("K.K.", "Tokyo 100-0005", "Japan"),
    "de-DE": ("GmbH", "50667 Koeln", "Deutschland"),
    "de-CH": ("AG", "3011 Bern", "Schweiz"),
    "fr-FR": ("SARL", "33000 Bordeaux", "France"),
    "nl-NL": ("B.V.", "3511 LX Utrecht", "Nederland"),
    "es-ES": ("S.L.", "41001 Sevilla", "Espana"),
}
_CURRENCIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "en-GB": ("GBP", "", ("20", "5", "0")),
    "en-US": ("USD", "$", ("8.25", "6", "0")),
    "en-IN": ("INR", "", ("5", "12", "18")),
    "en-JP": ("JPY", "", ("10", "8")),
    "de-DE": ("EUR", "", ("19", "7")),
    "de-CH": ("CHF", "", ("8.1", "2.6")),
    "fr-FR": ("EUR", "", ("20", "5.5")),
    "nl-NL": ("EUR", "", ("21", "9")),
    "es-ES": ("EUR", "", ("21", "10")),
}


def random_spec(seed: int, faulty_share: float = 0.25) -> Spec:
    """An unseen invoice: everything about it follows from the seed. Tilt up to 2 degrees, noise up to 6."""
    dice = random.Random(seed)  # noqa: S311 - a drawing, not a secret
    locale = dice.choice(sorted(LOCALES))
    currency, sign, rates = _CURRENCIES[locale]
    form, town, country = _FORMS[locale]
    scale = {"JPY": 40000, "INR": 9000}.get(currency, 900)
    step = Decimal(1) if currency == "JPY" else Decimal("0.01")
    lines = tuple(
        (
            dice.choice(_GOODS),
            dice.choice((1, 1, 2, 3, 5, 8, 12, 40)),
            (Decimal(str(dice.uniform(1, scale)))).quantize(step, ROUND_HALF_UP),
        )
        for _ in range(dice.randint(1, 7))
    )
    number = dice.choice(("{p}-{n}", "{n}", "{p}{n}", "{y}/{n}", "{p}/{y}/{n}")).format(
        p=dice.choice(("INV", "RE", "F", "AB")), n=dice.randint(1000, 999999), y=dice.randint(2019, 2025)
    )
    spec = Spec(
        name=f"random-{seed}",
        locale=locale,
        layout=dice.choice(LAYOUTS),
        currency=currency,
        supplier=(
            f"{dice.choice(_NAMES)} {dice.choice(_TRADES)} {form}",
            f"Main Road {dice.randint(1, 99)}",
            town,
            country,
        ),
        customer=_BUYER,
        number=number,
        date=dt.date(2019, 1, 1) + dt.timedelta(days=dice.randrange(2400)),
        order=f"PO-{dice.randint(2000, 9999)}",
        lines=lines,
        rate=Decimal(dice.choice(rates)),
        sign=sign if dice.random() < 0.7 else "",
        tilt=round(dice.uniform(-2, 2), 2) if dice.random() < 0.7 else 0.0,
        noise=dice.randint(0, 6),
        seed=seed,
    )
    if dice.random() < faulty_share:
        fault = dice.choice(sorted(FAULTS))
        if fault == "lines-wrong" and len(spec.lines) < 2:
            fault = "total-wrong"
        spec = replace(spec, fault=fault)
    return spec


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sagalog.agents.invoices.drawing", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=SAMPLES, help="folder to draw into (default: the package's samples)"
    )
    parser.add_argument("--random", type=int, metavar="N", help="draw N unseen variants instead of the samples")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first variant")
    options = parser.parse_args(arguments)
    if options.random is None:
        redraw_samples(options.out)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        specs = [random_spec(options.seed + index) for index in range(options.random)]
        _write_json(options.out / "expected.json", {save(s, options.out).name: expectation(s) for s in specs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
