"""Queues of what waits by priority, in which nothing waits for ever.

The higher priority goes first, and of one priority what waits longest. Of every FAIR_EVERY that are taken, one is the one that
waits longest whatever its priority: so a stream of urgent work slows the rest down by a known factor, and stops nothing.

Rule: an item is in the queue once; what is taken out of the middle costs nothing until its turn would have come.

A `FairQueue` is one such queue per tenant. They take turns: each that has something waiting gives as many in a row as its weight
(deficit round robin with items of cost 1: Shreedhar and Varghese, 1996), so that none of them has to wait for another's backlog.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

FAIR_EVERY: Final = 8

T = TypeVar("T", bound=Hashable)


class PriorityQueue(Generic[T]):
    """Not safe for use by several threads at once."""

    def __init__(self, fair_every: int = FAIR_EVERY) -> None:
        self._fair_every = fair_every
        self._taken = 0
        self._number = 0
        self._places: dict[T, tuple[int, int]] = {}
        """Item to (priority, number): the lower number came first."""
        self._levels: dict[int, list[tuple[int, T]]] = {}
        """Priority to a heap of (number, item), in which what was taken out or moved away may still stand."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: T) -> bool:
        return item in self._places

    def __iter__(self) -> Iterator[T]:
        """What waits, the longest first."""
        return iter(sorted(self._places, key=lambda item: self._places[item][1]))

    def push(self, item: T, priority: int, number: int | None = None) -> None:
        """Puts an item at the end of its priority, or where its `number` belongs: the lower came first.

        One that is there already stays where it is.
        """
        if item not in self._places:
            self._number = max(self._number + 1, number or 0)
            self._place(item, priority, self._number if number is None else number)

    def move(self, item: T, priority: int) -> None:
        """Changes an item's priority; it keeps its age. One that is not there is passed over."""
        place = self._places.get(item)
        if place is not None and place[0] != priority:
            self._place(item, priority, place[1])

    def discard(self, item: T) -> None:
        """Takes an item out, wherever it is."""
        self._places.pop(item, None)

    def pop(self) -> T:
        """Takes the next one out. Raises IndexError when there is none."""
        self._taken += 1
        heads = [(priority, level[0]) for priority in list(self._levels) if (level := self._live(priority))]
        if not heads:
            raise IndexError("pop from an empty queue")
        if self._taken % self._fair_every == 0:
            priority, (_, item) = min(heads, key=lambda head: head[1][0])
        else:
            priority, (_, item) = max(heads, key=lambda head: head[0])
        heappop(self._levels[priority])
        del self._places[item]
        return item

    def clear(self) -> None:
        self._places.clear()
        self._levels.clear()

    def _place(self, item: T, priority: int, number: int) -> None:
        self._places[item] = (priority, number)
        heappush(self._levels.setdefault(priority, []), (number, item))

    def _live(self, priority: int) -> list[tuple[int, T]]:
        """A level whose head is still there; what is not is dropped, and so is a level without anything."""
        level = self._levels[priority]
        while level and self._places.get(level[0][1]) != (priority, level[0][0]):
            heappop(level)
        if not level:
            del self._levels[priority]
        return level


class FairQueue(Generic[T]):
    """Not safe for use by several threads at once."""

    def __init__(self, weights: Mapping[str, int] | None = None, fair_every: int = FAIR_EVERY) -> None:
        self._weights = weights or {}
        self._fair_every = fair_every
        self._tenants: dict[T, str] = {}
        """Item to tenant."""
        self._queues: dict[str, PriorityQueue[T]] = {}
        """Of tenants with something waiting, in the order of their turns; the first has the turn."""
        self._left = 0
        """How many more it gives in this turn; 0 before it has begun."""

    def __len__(self) -> int:
        return len(self._tenants)

    def __contains__(self, item: T) -> bool:
        return item in self._tenants

    def push(self, item: T, priority: int, tenant: str = "", number: int | None = None) -> None:
        """Puts an item at the end of its tenant's and priority's, or where its `number` belongs: the lower came first.

        One that is there already stays where it is.
        """
        if item in self._tenants:
            return
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = PriorityQueue(self._fair_every)
        self._tenants[item] = tenant
        queue.push(item, priority, number)

    def move(self, item: T, priority: int) -> None:
        """Changes an item's priority; it keeps its age. One that is not there is passed over."""
        tenant = self._tenants.get(item)
        if tenant is not None:
            self._queues[tenant].move(item, priority)

    def discard(self, item: T) -> None:
        """Takes an item out, wherever it is."""
        tenant = self._tenants.pop(item, None)
        if tenant is not None:
            self._queues[tenant].discard(item)
            if not self._queues[tenant]:
                self._drop(tenant)

    def pop(self) -> T:
        """Takes the next one out. Raises IndexError when there is none."""
        if not self._queues:
            raise IndexError("pop from an empty queue")
        tenant = next(iter(self._queues))
        queue = self._queues[tenant]
        if self._left <= 0:
            self._left = max(1, self._weights.get(tenant, 1))
        item = queue.pop()
        del self._tenants[item]
        self._left -= 1
        if not queue:
            self._drop(tenant)
        elif self._left == 0:
            self._queues[tenant] = self._queues.pop(tenant)
        return item

    def _drop(self, tenant: str) -> None:
        if next(iter(self._queues)) == tenant:
            self._left = 0
        del self._queues[tenant]
