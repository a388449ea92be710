"""How the amounts of an invoice hang together: pure sums over labelled places, used to choose a total and to check it.

Rule: every relation names the places it rests on, so that a person can follow it, and uses exact decimals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import combinations

from sagalog.agents.invoices.models import AmountPlace

CENT = Decimal("0.01")
# A tax inside the price is often rounded line by line; more than this is not rounding.
INCLUSIVE_TOLERANCE = Decimal("0.05")
# Extras and discounts considered in one sum; more would let sums match by accident.
EXTRAS_MAX = 3


@dataclass(frozen=True, slots=True)
class Sum:
    """net + tax (+ extras) = total, with the places of its parts."""

    net: Decimal
    tax: Decimal
    extras: Decimal
    places: tuple[AmountPlace, ...]
    inclusive: bool = False
    # Whether a tax was printed at all (it may be zero); a sum without one only says that net and total agree.
    taxed: bool = True


def of(places: Sequence[AmountPlace], *roles: str) -> list[AmountPlace]:
    return [place for place in places if place.role in roles]


def find_sum(total: Decimal, places: Sequence[AmountPlace]) -> Sum | None:
    """The way in which the printed net, tax and extras give the total, or None."""
    nets = [p for p in of(places, "net", "subtotal", "total") if p.sure]
    extras = _distinct([p for p in of(places, "extra", "discount") if p.value])
    taxes = list(_tax_sets(of(places, "tax")))
    for net in sorted(nets, key=lambda p: ("net", "subtotal", "total").index(p.role)):
        if net.role == "total" and net.value == total:
            continue
        for tax_places in taxes:
            tax = sum((p.value for p in tax_places), Decimal(0))
            for chosen in _subsets(extras):
                extra = sum((_signed(p) for p in chosen), Decimal(0))
                if net.value + tax + extra == total:
                    return Sum(net.value, tax, extra, (net, *tax_places, *chosen))
    if taxes:
        return None if of(nets, "net") else find_inclusive(total, places)
    for net in nets:
        for chosen in _subsets(extras):
            extra = sum((_signed(p) for p in chosen), Decimal(0))
            if chosen and net.role != "total" and net.value + extra == total:
                return Sum(net.value, Decimal(0), extra, (net, *chosen), taxed=False)
    return None


def find_inclusive(total: Decimal, places: Sequence[AmountPlace]) -> Sum | None:
    """A tax inside the total, explained by its printed rate: tax = total x rate / (100 + rate).

    It explains the tax but does not confirm the total: rounding leaves room for several totals.
    """
    for place in of(places, "tax"):
        if place.rate and place.value:
            inside = (total * place.rate / (100 + place.rate)).quantize(CENT, ROUND_HALF_UP)
            if abs(inside - place.value) <= INCLUSIVE_TOLERANCE:
                return Sum(total - place.value, place.value, Decimal(0), (place,), inclusive=True)
    return None


def tax_on_lines(total: Decimal, lines: Decimal, places: Sequence[AmountPlace]) -> Decimal | None:
    """The printed tax that, added to the sum of the lines, gives the total; only where no net amount is printed."""
    if of(places, "net", "subtotal"):
        return None
    for chosen in _tax_sets(of(places, "tax")):
        tax = sum((p.value for p in chosen), Decimal(0))
        if tax and lines + tax == total:
            return tax
    return None


def _tax_sets(taxes: list[AmountPlace]) -> Iterator[tuple[AmountPlace, ...]]:
    """Each tax alone, then all together (several rates), then all different ones (one printed twice)."""
    sets: list[tuple[AmountPlace, ...]] = [(place,) for place in taxes]
    sets.append(tuple(taxes))
    sets.append(tuple(_distinct(taxes)))
    seen: set[tuple[int, ...]] = set()
    for chosen in sets:
        key = tuple(id(place) for place in chosen)
        if chosen and key not in seen:
            seen.add(key)
            yield chosen


def _distinct(places: list[AmountPlace]) -> list[AmountPlace]:
    seen: dict[tuple[str, Decimal], AmountPlace] = {}
    for place in places:
        seen.setdefault((place.role, place.value), place)
    return list(seen.values())


def _subsets(places: list[AmountPlace]) -> Iterator[tuple[AmountPlace, ...]]:
    for size in range(min(EXTRAS_MAX, len(places)) + 1):
        yield from combinations(places, size)


def _signed(place: AmountPlace) -> Decimal:
    """A discount lowers the total, whether it is printed with a minus or without."""
    return -abs(place.value) if place.role == "discount" else place.value
