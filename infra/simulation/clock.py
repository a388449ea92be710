"""The ports to time and chance, simulated: a process's own clock, which may be off and run too fast, and its own seeded chance."""

from __future__ import annotations

import random
from typing import Final

from .loop import SimulationLoop

EPOCH_MS: Final = 1_767_225_600_000
"""Simulated time 0 as a date: 2026-01-01."""


class SimulatedClock:
    """`step_ms` moves the wall clock at once (as an administrator or NTP does); `drift` is how much faster than true it runs.

    The steady clock drifts, too, but never steps. Waiting (asyncio) goes by the loop's true time.
    """

    def __init__(self, loop: SimulationLoop, *, offset_ms: int = 0, drift: float = 0.0) -> None:
        self._loop = loop
        self._offset_ms = offset_ms
        self._drift = drift
        self._base_s = 0.0
        self._base_ms = 0.0

    def now_ms(self) -> int:
        return EPOCH_MS + self._offset_ms + int(self._elapsed_ms())

    def monotonic_ms(self) -> int:
        return int(self._elapsed_ms())

    def step_ms(self, by_ms: int) -> None:
        self._offset_ms += by_ms

    def set_drift(self, drift: float) -> None:
        """From now on; what has passed stays as it was measured. More than -1, or the steady clock would not be one."""
        assert drift > -1.0
        self._base_ms = self._elapsed_ms()
        self._base_s = self._loop.time()
        self._drift = drift

    def _elapsed_ms(self) -> float:
        return self._base_ms + (self._loop.time() - self._base_s) * 1000 * (1.0 + self._drift)


class SimulatedRng:
    """Seeded chance behind the `Rng` port."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a simulation must repeat itself

    def hex(self, digits: int) -> str:
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)
