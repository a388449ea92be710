"""Step latency, as the agent sees it: from the start of one step's work to the start of the next step's of that workflow.

That is one full turn (the agent's answer, the broker, the engine, the broker, the agent), stamped at the same place in the
floor and in the real system, on one clock and to the microsecond (the log's own times are whole milliseconds).
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.settings import STEPS

Key = bytes | str


class Latency:
    """Stamps while `recording`; otherwise the caller skips it."""

    def __init__(self) -> None:
        self.recording = False
        self._started_ns: dict[Key, int] = {}
        self._turns_ns: list[int] = []

    def begin(self) -> None:
        self._started_ns.clear()
        self._turns_ns.clear()
        self.recording = True

    def note(self, workflow: Key, step: int) -> None:
        """The agent starts on step 0, 1, ... of a workflow."""
        now_ns = time.perf_counter_ns()
        before_ns = self._started_ns.pop(workflow, None)
        if before_ns is not None:
            self._turns_ns.append(now_ns - before_ns)
        if step < STEPS - 1:
            self._started_ns[workflow] = now_ns

    def end(self) -> dict[str, Any]:
        self.recording = False
        found = sorted(self._turns_ns)
        if not found:
            return {"count": 0}
        return {"count": len(found), "p50_ms": _at(found, 0.50), "p99_ms": _at(found, 0.99)}


def _at(ordered_ns: list[int], share: float) -> float:
    return ordered_ns[min(len(ordered_ns) - 1, int(share * len(ordered_ns)))] / 1e6
