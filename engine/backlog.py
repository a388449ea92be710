"""How far the engine is behind, as a client knows it, and the gate before starts: what could not be worked on soon is refused here.

Rules:
- Known from the log alone: where each partition of `events` ends, and the offset that the engine's group commits with each
  snapshot. Asked at most once per second, and beside the starts: only the first start, or one after a pause, waits for an answer.
- What is not known refuses nothing. A broker that does not answer, or does not let this client ask, makes no start fail.
- A refusal is counted before it is raised, and nothing of what is refused has been sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sagalog.infra.clock import Clock
from sagalog.schemas.errors import SagalogError
from sagalog.topics.log import Log, LogError, TopicPartition
from sagalog.topics.specs import Topics

logger = logging.getLogger(__name__)

START_LAG_RECORDS_MAX: Final = 50_000
"""By how many records a partition may be behind before starts are refused: some seconds of work."""
ASK_MS: Final = 1_000
"""How often a client asks at most."""
STALE_MS: Final = 5_000
"""An answer that is older says nothing any more."""
WAIT_S: Final = 2.0
"""How long a start waits for an answer when there is none that counts."""
ASK_TIMEOUT_S: Final = 10.0
RETRY_AFTER_MS: Final = (1_000, 30_000)
"""The shortest and the longest time after which to try again."""
RETRY_AFTER_UNKNOWN_MS: Final = 5_000
"""When it is not known yet how fast the engine is."""

Ends = Callable[[Iterable[TopicPartition]], Awaitable[dict[TopicPartition, int]]]


class Overloaded(SagalogError):
    """Starts are refused: the engine is too far behind on a partition. Nothing was sent; the same may be tried again later."""

    def __init__(self, partition: int, lag_records: int, limit_records: int, retry_after_ms: int) -> None:
        self.partition = partition
        self.lag_records = lag_records
        self.limit_records = limit_records
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"starts are refused: the engine is {lag_records:,} records behind on partition {partition} of events, more than "
            f"{limit_records:,}; nothing was sent, try again in {retry_after_ms / 1000:g} s, or start more engines"
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What was answered. Offsets by partition of `events`; `at_ms` is monotonic."""

    at_ms: int
    applied: Mapping[int, int]
    """The offset that is folded next, as of the last snapshot."""
    ends: Mapping[int, int]

    def lag(self, partition: int) -> int:
        return max(0, self.ends.get(partition, 0) - self.applied.get(partition, 0))


def retry_after_ms(now: Figures, before: Figures | None, partition: int, excess_records: int) -> int:
    """When the engine, as fast as between the two answers, has worked off the excess."""
    shortest, longest = RETRY_AFTER_MS
    if before is None or now.at_ms <= before.at_ms:
        return RETRY_AFTER_UNKNOWN_MS
    done = now.applied.get(partition, 0) - before.applied.get(partition, 0)
    if done <= 0:
        return longest
    return min(longest, max(shortest, excess_records * (now.at_ms - before.at_ms) // done))


class Backlog:
    """One client's. `limit_records` 0 refuses nothing, and asks nothing."""

    def __init__(self, log: Log, topics: Topics, partitions: int, ends: Ends, clock: Clock, limit_records: int) -> None:
        self._log = log
        self._group = topics.engine_group
        self._partitions = [TopicPartition(topics.events, number) for number in range(partitions)]
        self._ends = ends
        self._clock = clock
        self._limit = limit_records
        self._figures: Figures | None = None
        self._before: Figures | None = None
        self._sent: dict[int, int] = {}
        """Starts that were let through since the broker was asked last."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_ms: int | None = None
        self._told = False
        self.refused = 0
        """Starts."""

    async def admit(self, starts: Mapping[int, int]) -> None:
        """Lets starts through, counted by partition: all of them, or none. Raises Overloaded."""
        if self._limit <= 0 or not starts:
            return
        await self._keep_fresh()
        figures = self._known()
        if figures is not None:
            lags = {partition: figures.lag(partition) + self._sent.get(partition, 0) for partition in starts}
            worst = max(lags, key=lambda partition: (lags[partition], -partition))
            excess = lags[worst] - self._limit
            if excess > 0:
                self.refused += sum(starts.values())
                wait_ms = retry_after_ms(figures, self._before, worst, excess)
                raise Overloaded(worst, lags[worst], self._limit, wait_ms)
        for partition, count in starts.items():
            self._sent[partition] = self._sent.get(partition, 0) + count

    def _known(self) -> Figures | None:
        """The newest answer, if it still counts."""
        figures = self._figures
        return figures if figures is not None and self._clock.monotonic_ms() - figures.at_ms <= STALE_MS else None

    async def _keep_fresh(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._asking is None and (self._asked_ms is None or now_ms - self._asked_ms >= ASK_MS):
            self._asked_ms = now_ms
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None and self._asked_ms is not None and self._known() is None:
            # Of an answer that is late already, no more than the rest of the time is waited for.
            left_s = WAIT_S - (now_ms - self._asked_ms) / 1000
            if left_s > 0:
                await asyncio.wait({self._asking}, timeout=left_s)

    async def _ask(self) -> None:
        sent = dict(self._sent)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                applied = await self._log.committed(self._group, self._partitions)
                ends = await self._ends(self._partitions)
        except (LogError, TimeoutError) as error:
            if not self._told:
                logger.warning("how far the engine is behind is not known, so no start is refused: %s", error)
            self._told = True
            return
        finally:
            self._asking = None
        self._told = False
        self._before = self._figures
        self._figures = Figures(
            self._clock.monotonic_ms(),
            {partition.partition: offset for partition, (offset, _) in applied.items()},
            {partition.partition: offset for partition, offset in ends.items()},
        )
        # What was sent before the question is in the answer.
        for partition, count in sent.items():
            self._sent[partition] -= count

    async def close(self) -> None:
        asking = self._asking
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
