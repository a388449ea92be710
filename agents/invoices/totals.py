"""Finds the labelled amounts of a document and chooses the grand total among them.

Rules: an amount is only taken where a label says what it is. When labels disagree and the printed figures do not
explain why (tax, a payment, a discount), the total stays doubtful: it is never the largest, the last or the likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import cast, get_args

from sagalog.agents.invoices import arithmetic
from sagalog.agents.invoices.currency import signs_in
from sagalog.agents.invoices.figures import Figure
from sagalog.agents.invoices.labels import FoundLabel
from sagalog.agents.invoices.layout import Cell, Layout, Row
from sagalog.agents.invoices.models import AmountPlace, Doubt, Role

ROLES: tuple[str, ...] = get_args(Role)
# Right edges this close (page units) belong to one column of amounts.
COLUMN_TOLERANCE = 9.0
LINES_MAX = 200
# A label's cell with more characters than this behind the label is a sentence.
LABEL_TAIL_MAX = 8
# Which meaning counts when a phrase has several.
_PREFERENCE: tuple[str, ...] = (
    *("gross", "due", "net", "tax", "paid", "previous", "discount", "extra", "balance", "subtotal", "total"),
)


@dataclass(frozen=True)
class Spot:
    """A figure in its cell."""

    figure: Figure
    cell: Cell

    @property
    def right(self) -> float:
        return self.cell.x_of(self.figure.end)

    @property
    def left(self) -> float:
        return self.cell.x_of(self.figure.start)


@dataclass(frozen=True)
class Totals:
    """What was found: all places, the chosen total and its parts, the lines, and the doubts."""

    places: tuple[AmountPlace, ...]
    amount: AmountPlace | None
    amount_cell: Cell | None
    net: Decimal | None
    tax: Decimal | None
    lines: tuple[Decimal, ...]
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True)
class _Chain:
    """Labels that follow each other without a figure between them, read as one role."""

    role: Role
    text: str
    cell: Cell
    end: int


def find_totals(layout: Layout) -> Totals:
    """Find and choose. Never raises: what cannot be settled becomes a doubt."""
    found: list[tuple[AmountPlace, Cell]] = []
    used: set[tuple[int, float, int]] = set()
    doubts: list[Doubt] = []
    in_table = heading = False
    for row in layout.rows:
        if row.table_header:
            in_table = heading = True
            continue
        # A header may have several rows ("Amount" / "excl. VAT"): until its first amounts, labels name columns.
        heading = heading and not any(f.decimals for cell in row.cells for f in cell.figures if not f.percent)
        places = list(_places(layout, row, in_table, heading, doubts))
        if any(place.role in ("net", "subtotal", "total", "gross", "due") for place, _ in places):
            in_table = False
        for place, spot in places:
            found.append((place, spot.cell))
            used.add(_key(spot))
    places_only = [place for place, _ in found]
    amount, more = _choose(places_only)
    doubts.extend(more)
    loose = [spot for spot in _money(layout) if _key(spot) not in used]
    cell = next((c for p, c in found if p is amount), None)
    lines: tuple[Decimal, ...] = ()
    net = tax = None
    if amount is not None:
        total = arithmetic.find_sum(amount.value, places_only)
        if total is not None:
            net, tax = total.net, total.tax if total.taxed else None
        targets = [amount.value, *([net] if net is not None else [])]
        targets += [p.value for p in places_only if p.role in ("net", "subtotal") and p.sure]
        lines = _lines(loose, targets, amount.value, places_only)
        doubts.extend(_larger(loose, amount, total is not None))
        if not lines:
            doubts.extend(_broken_lines(layout, loose, targets))
    if net is None:
        nets = {p.value for p in places_only if p.role == "net" and p.sure}
        net = nets.pop() if len(nets) == 1 else None
    if tax is None:
        taxes = {p.value for p in places_only if p.role == "tax" and p.sure}
        tax = taxes.pop() if len(taxes) == 1 else None
    return Totals(tuple(places_only), amount, cell, net, tax, lines, tuple(doubts))


def _key(spot: Spot) -> tuple[int, float, int]:
    return spot.cell.row, spot.cell.box.x0, spot.figure.start


def _places(
    layout: Layout, row: Row, in_table: bool, heading: bool, doubts: list[Doubt]
) -> Iterator[tuple[AmountPlace, Spot]]:
    chains = _chains(row)
    for index, chain in enumerate(chains):
        following = chains[index + 1] if index + 1 < len(chains) else None
        spots = _between(row, chain, following)
        rate = next((s.figure.readings[0] for s in spots if s.figure.percent), None) or _rate_inside(chain)
        money = _prefer_money([s for s in spots if not s.figure.percent])
        if not money:
            money = [] if heading else _under(layout, row, chain)
            if not money and not heading and layout.method == "ocr":
                doubts.extend(_unread(row, chain))
        elif in_table and chain.role in ("tax", "extra", "discount", "paid", "balance") and len(money) > 1:
            continue  # a line of the table whose description happens to hold the word ("Tax advice  2  50.00  100.00")
        yield from _label(chain, money, rate, doubts)


def _unread(row: Row, chain: _Chain) -> list[Doubt]:
    """A word for the grand total without an amount: OCR may have lost the very figure that matters."""
    alone = len(row.cells) == 1 and len(chain.cell.text) <= len(chain.text) + LABEL_TAIL_MAX
    if chain.role not in ("gross", "due") or not alone or any(cell.figures for cell in row.cells):
        return []
    return [Doubt(field="amount", reason=f'no amount could be read beside "{chain.cell.text.strip()}"')]


def _label(
    chain: _Chain, money: list[Spot], rate: Decimal | None, doubts: list[Doubt]
) -> Iterator[tuple[AmountPlace, Spot]]:
    if not money:
        return
    for spot in money:
        if spot.figure.value is None and chain.role in ("gross", "due", "total", "net"):
            one, other = spot.figure.readings
            doubts.append(
                Doubt(
                    field="amount",
                    reason=f'"{spot.figure.text}" after "{chain.text}" may mean {one} or {other}: '
                    "nothing on the page says which separator is the decimal one",
                )
            )
    clear = [spot for spot in money if spot.figure.value is not None]
    values = [cast(Decimal, spot.figure.value) for spot in clear]
    if not clear:
        return
    if chain.role in ("total", "gross", "subtotal") and len(clear) >= 3:
        # A row of sums: "Total  24.99  5.00  29.99" is net, tax and total when it adds up.
        net, tax, total = values[-3:]
        if net + tax == total:
            roles: tuple[Role, Role, Role] = ("net", "tax", "total" if chain.role != "gross" else "gross")
            for role, spot in zip(roles, clear[-3:], strict=True):
                yield _place(role, chain, spot, None), spot
            return
    if len(set(values)) == 1:
        for spot in clear:
            yield _place(chain.role, chain, spot, rate), spot
        return
    if chain.role == "tax":
        # "Tax 15% on 112.90   16.94": the base comes first, the tax last.
        for spot in clear[:-1]:
            yield _place("tax", chain, spot, rate, sure=False), spot
        yield _place("tax", chain, clear[-1], rate), clear[-1]
        return
    for spot in clear:
        yield _place(chain.role, chain, spot, rate, sure=False), spot


def _place(role: Role, chain: _Chain, spot: Spot, rate: Decimal | None, sure: bool = True) -> AmountPlace:
    value = spot.figure.readings[0]
    return AmountPlace(
        role=role,
        value=value,
        label=chain.text,
        text=spot.cell.text,
        page=spot.cell.page,
        line=spot.cell.row,
        confidence=round(min(spot.cell.confidence, 1.0), 4),
        sure=sure,
        rate=rate,
    )


def _chains(row: Row) -> list[_Chain]:
    """The row's amount labels from left to right, those without a figure between them joined."""
    chains: list[_Chain] = []
    for cell in row.cells:
        if cell.prose:
            continue
        for start, labels in _by_start(cell):
            roles = [label.label for label in labels if label.label in ROLES]
            if not roles:
                continue
            role = cast(Role, min(roles, key=_PREFERENCE.index))
            end = labels[0].end
            text = cell.text[start:end]
            last = chains[-1] if chains else None
            if last is not None and not _figures_between(row, last, cell, start):
                chains[-1] = _Chain(_joined(last.role, role, text), f"{last.text} {text}", cell, end)
            else:
                chains.append(_Chain(role, text, cell, end))
    return chains


def _by_start(cell: Cell) -> list[tuple[int, list[FoundLabel]]]:
    starts: dict[int, list[FoundLabel]] = {}
    for label in cell.labels:
        starts.setdefault(label.start, []).append(label)
    return sorted(starts.items())


def _joined(first: Role, second: Role, text: str) -> Role:
    """Two labels in a row: "Total ... incl. VAT" is gross, "Total discount" a discount, "Amount due ... total" due."""
    if second == "tax" and first in ("total", "subtotal", "gross", "due"):
        inclusive = text.casefold().lstrip().startswith(("incl", "inkl", "inc"))
        return ("gross" if first in ("total", "subtotal") else first) if inclusive else "tax"
    if second == "net" and first in ("total", "subtotal"):
        return "net"
    if second == "total":
        return first
    if first == "total":
        return second
    if first == "tax" and second == "net":
        return "tax"  # "VAT on net amount"
    return second


def _figures_between(row: Row, chain: _Chain, cell: Cell, start: int) -> bool:
    left = (chain.cell.box.x0, chain.end)
    right = (cell.box.x0, start)
    return any(
        left <= (c.box.x0, f.start) < right and not f.percent for c in row.cells if not c.prose for f in c.figures
    )


def _between(row: Row, chain: _Chain, following: _Chain | None) -> list[Spot]:
    spots = []
    for cell in row.cells:
        if cell.prose:
            continue
        for figure in cell.figures:
            at = (cell.box.x0, figure.start)
            if at < (chain.cell.box.x0, chain.end):
                continue
            if following is not None:
                head = following.text.split(" ", 1)[0]
                limit = (following.cell.box.x0, max(0, following.end - len(following.text)) if head else 0)
                if at >= limit:
                    continue
            spots.append(Spot(figure, cell))
    return spots


def _rate_inside(chain: _Chain) -> Decimal | None:
    """A rate that stands before the label in its cell: "20% VAT"."""
    rates = [f.readings[0] for f in chain.cell.figures if f.percent]
    return rates[0] if len(rates) == 1 else None


def _prefer_money(spots: list[Spot]) -> list[Spot]:
    """Without the bare integers (quantities, page numbers) where something with decimals or a currency stands too."""
    strong = [spot for spot in spots if is_money(spot)]
    return strong or [spot for spot in spots if "," not in spot.figure.text or spot.figure.value is not None]


def is_money(spot: Spot) -> bool:
    """Whether the figure looks like money by itself: two decimals, or a currency beside it."""
    if spot.figure.percent:
        return False
    return spot.figure.decimals == 2 or has_currency(spot.cell.text, spot.figure)


def has_currency(text: str, figure: Figure) -> bool:
    before = text[max(0, figure.start - 5) : figure.start]
    after = text[figure.end : figure.end + 5]
    return bool(
        signs_in(before.split()[-1] if before.split() else "") or signs_in(after.split()[0] if after.split() else "")
    )


def _under(layout: Layout, row: Row, chain: _Chain) -> list[Spot]:
    """The amount below its label, as in a box of sums or a header box."""
    below = layout.below(chain.cell)
    if not below or len(below) > 1:
        return []
    value = below[0]
    letters = [c for c in layout.rows[value.row].cells if not c.figures and any(ch.isalpha() for ch in c.text)]
    labelled = [c for c in row.cells if any(label.label in ROLES for label in c.labels)]
    if len(labelled) >= 2 and any(c.box.x0 < value.box.x0 and len(c.text) > 3 for c in letters):
        return []  # a table of lines: its first line is not the sum
    if value.labels or value.dates or sum(ch.isalpha() for ch in value.text) > 4:
        return []
    return _prefer_money([Spot(f, value) for f in value.figures if not f.percent])[:1]


# --- choosing ------------------------------------------------------------------------------------------------------


def _choose(places: list[AmountPlace]) -> tuple[AmountPlace | None, list[Doubt]]:
    sure = [place for place in places if place.sure]
    chosen, doubts = _candidate(sure)
    if chosen is None:
        return None, [
            *doubts,
            Doubt(field="amount", reason="no total was found: no amount stands beside a word for it"),
        ]
    promoted = _promote(chosen, sure)
    return promoted, [*doubts, *_reconcile(promoted, sure)]


def _candidate(sure: list[AmountPlace]) -> tuple[AmountPlace | None, list[Doubt]]:
    for roles in (("gross",), ("total",), ("due",), ("balance",)):
        group = [p for p in sure if p.role in roles]
        if not group:
            continue
        if roles == ("balance",):
            return None, []
        values = {p.value for p in group}
        best = max(group, key=lambda p: (p.value, p.confidence))
        if len(values) == 1 or roles == ("total",):
            # Of several bare totals the largest is the candidate, as net and section totals are smaller; `_reconcile`
            # then refuses it unless the figures agree.
            return best, []
        listed = ", ".join(f'{p.value} ("{p.label}")' for p in group)
        return best, [Doubt(field="amount", reason=f"several different totals are printed: {listed}")]
    return None, []


def _promote(chosen: AmountPlace, sure: list[AmountPlace]) -> AmountPlace:
    """A bare "total" plus tax that gives the amount due was the net: the amount due is the total."""
    if chosen.role != "total":
        return chosen
    for due in arithmetic.of(sure, "due"):
        for tax in arithmetic.of(sure, "tax"):
            if tax.value and chosen.value + tax.value == due.value:
                return due
    return chosen


def _reconcile(chosen: AmountPlace, sure: list[AmountPlace]) -> list[Doubt]:
    doubts = []
    total = chosen.value
    paid = [p.value for p in sure if p.role == "paid"]
    payments = {*paid, sum(paid, Decimal(0)), *(abs(p) for p in paid)}
    discounts = {abs(p.value) for p in sure if p.role == "discount"}
    previous = {p.value for p in sure if p.role == "previous" and p.value}
    for place in sure:
        if place.role in ("due", "balance") and place.value != total:
            if any(total - payment == place.value for payment in payments if payment):
                continue
            if previous:
                doubts.append(
                    Doubt(
                        field="amount",
                        reason=f'the amount to pay is {place.value} ("{place.label}"), the total {total}: an earlier '
                        f"balance ({', '.join(map(str, sorted(previous)))}) is part of it",
                    )
                )
            else:
                doubts.append(
                    Doubt(
                        field="amount",
                        reason=f'the total is {total} ("{chosen.label}") but "{place.label}" is {place.value}, '
                        "and no payment on the document explains the difference",
                    )
                )
        elif place.role in ("total", "gross") and abs(place.value) > abs(total):
            if any(place.value - less == total for less in discounts | {abs(p) for p in payments}):
                continue
            doubts.append(
                Doubt(field="amount", reason=f'"{place.label}" is {place.value}, larger than the total {total}')
            )
        elif place.role == "previous" and place.value and place.value not in payments:
            doubts.append(
                Doubt(
                    field="amount",
                    reason=f'an earlier balance of {place.value} is printed ("{place.label}"): '
                    f"whether it belongs to the total {total} is for a person to decide",
                )
            )
    return doubts


# --- lines ---------------------------------------------------------------------------------------------------------


def _money(layout: Layout) -> list[Spot]:
    spots: list[Spot] = []
    for cell in layout.cells:
        if cell.prose:
            continue
        spots.extend(Spot(figure, cell) for figure in cell.figures)
    return [spot for spot in spots if is_money(spot) and spot.figure.value is not None]


def _lines(loose: list[Spot], targets: list[Decimal], total: Decimal, places: list[AmountPlace]) -> tuple[Decimal, ...]:
    """The amounts of a column without labels that add up to the total or the net amount, or to the total less tax."""
    for column in [*_columns(loose), *_columns(loose, left=True)]:
        values = tuple(cast(Decimal, spot.figure.value) for spot in column)
        added = sum(values, Decimal(0))
        if not 1 <= len(values) <= LINES_MAX or not any(values):
            continue
        if added in targets or arithmetic.tax_on_lines(total, added, places) is not None:
            return values
    return ()


def _columns(spots: list[Spot], left: bool = False) -> list[list[Spot]]:
    """Figures whose right edges (or left ones) stand under each other, the rightmost column first."""

    def edge(spot: Spot) -> float:
        return spot.left if left else spot.right

    columns: list[list[Spot]] = []
    for spot in sorted(spots, key=lambda s: (-edge(s), s.cell.row)):
        if columns and abs(edge(columns[-1][0]) - edge(spot)) <= COLUMN_TOLERANCE:
            columns[-1].append(spot)
        else:
            columns.append([spot])
    return [sorted(column, key=lambda s: s.cell.row) for column in columns]


def _broken_lines(layout: Layout, loose: list[Spot], targets: list[Decimal]) -> list[Doubt]:
    """Lines that prove themselves (quantity x price = amount) but do not add up to any printed sum."""
    for column in _columns(loose):
        if len(column) < 2 or not all(_proved(layout, spot) for spot in column):
            continue
        total = sum((cast(Decimal, spot.figure.value) for spot in column), Decimal(0))
        if total not in targets:
            listed = " or ".join(str(value) for value in dict.fromkeys(targets))
            return [Doubt(field="amount", reason=f"the {len(column)} lines add up to {total}, not to {listed}")]
    return []


def _proved(layout: Layout, spot: Spot) -> bool:
    values = [
        f.value
        for cell in layout.rows[spot.cell.row].cells
        for f in cell.figures
        if f.value is not None and not f.percent and (cell, f) != (spot.cell, spot.figure)
    ]
    amount = spot.figure.value
    return any(a * b == amount for i, a in enumerate(values) for b in values[i + 1 :] if a and b and amount is not None)


def _larger(loose: list[Spot], amount: AmountPlace, summed: bool) -> list[Doubt]:
    """Unlabelled amounts larger than the total: below it always suspicious, above it unless the sums are in order."""
    for spot in loose:
        value = cast(Decimal, spot.figure.value)
        if abs(value) > abs(amount.value) and (spot.cell.row > amount.line or not summed):
            return [
                Doubt(
                    field="amount",
                    reason=f'the document shows {value} ("{spot.cell.text.strip()}"), larger than the total '
                    f"{amount.value}, and no label explains it",
                )
            ]
    return []
