"""What whoever supervises a process asks it: is it alive, is it ready. Answered by a thread of its own while the loop works.

Rule: an answer is made from what was noted last and the clock, so that a loop that hangs is found out, not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from .clock import Clock

BEAT_MS: Final = 1_000
LOOP_STILL_MS: Final = 30_000
"""How long a process's loop may not turn before the process is taken for hung."""


class Answer(NamedTuple):
    """`body` is what JSON can say."""

    ok: bool
    body: dict[str, Any]


class Probes(Protocol):
    """May be called from any thread."""

    def live(self) -> Answer:
        """Not ok: a restart may help."""

    def ready(self) -> Answer:
        """Not ok: it does not do all of its work now, and the body says why."""


class Pulse:
    """That the process's loop turns: `beat` is called by it every BEAT_MS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beat_ms = clock.monotonic_ms()

    def beat(self) -> None:
        self._beat_ms = self._clock.monotonic_ms()

    def problem(self) -> dict[str, Any] | None:
        """None while the loop turns."""
        still_ms = self._clock.monotonic_ms() - self._beat_ms
        if still_ms < LOOP_STILL_MS:
            return None
        return {"since_s": still_ms / 1000, "why": "the process's loop does not turn"}


class LoopProbes:
    """Of a process that has no partitions to tell of: its loop turns, and `unready` says what it lacks, or None.

    `unready` is called from other threads.
    """

    def __init__(self, clock: Clock, unready: Callable[[], str | None]) -> None:
        self._pulse = Pulse(clock)
        self._unready = unready

    async def beat_on(self) -> None:
        """Until it is cancelled."""
        while True:
            self._pulse.beat()
            await asyncio.sleep(BEAT_MS / 1000)

    def live(self) -> Answer:
        problem = self._pulse.problem()
        return Answer(problem is None, {"problems": [problem] if problem is not None else []})

    def ready(self) -> Answer:
        alive = self.live()
        why = self._unready()
        problems = [*alive.body["problems"], *([{"why": why}] if why is not None else [])]
        return Answer(not problems, {"problems": problems})
