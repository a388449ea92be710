"""The ports to time and chance. Everything that needs one of them gets it handed in, so that a simulator can take their place.

Waiting is not in here: it goes through asyncio, whose loop a simulator replaces as a whole.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time, in milliseconds since the epoch, and a steady one for durations."""

    def now_ms(self) -> int: ...

    def monotonic_ms(self) -> int: ...


class Rng(Protocol):
    """Chance, for ids and for spreading retries; never for what the fold decides."""

    def hex(self, digits: int) -> str: ...

    def uniform(self, low: float, high: float) -> float: ...


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


class SystemRng:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def hex(self, digits: int) -> str:
        return f"{self._random.getrandbits(4 * digits):0{digits}x}"

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def utc(ms: int) -> str:
    """A wall-clock time as logs say it."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def wait_for_stop(stop: asyncio.Event, seconds: float) -> None:
    """Until `stop` is set, at most so long: a back-off that an end cuts short."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
