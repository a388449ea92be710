"""The deadlines of many keys, the earliest first. Entries are dropped lazily, so setting and clearing are cheap."""

from __future__ import annotations

import heapq

from sagalog.engine.kernel.state import NEVER


class Timers:
    """Per key at most one deadline. Milliseconds since the epoch."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._due: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: str, due_ms: int) -> None:
        """Sets, moves or (with NEVER) clears a key's deadline."""
        if due_ms == NEVER:
            self._due.pop(key, None)
        elif self._due.get(key) != due_ms:
            self._due[key] = due_ms
            heapq.heappush(self._heap, (due_ms, key))
            self._compact()

    def next_ms(self) -> int:
        """When the earliest is due; NEVER without one."""
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else NEVER

    def pop_due(self, now_ms: int, limit: int) -> list[str]:
        """Takes out at most `limit` keys that are due, the earliest first."""
        due: list[str] = []
        while len(due) < limit and self.next_ms() <= now_ms:
            _, key = heapq.heappop(self._heap)
            del self._due[key]
            due.append(key)
        return due

    def _compact(self) -> None:
        # Entries that were moved stay in the heap: rebuild it when they are most of it.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._due):
            self._heap = [(due_ms, key) for key, due_ms in self._due.items()]
            heapq.heapify(self._heap)
