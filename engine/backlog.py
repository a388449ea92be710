"""How far the engine is behind, as a client knows it, and the gate before starts: what could not be worked on soon is refused here.

Rules:
- Known from the log alone: where each partition of `events` ends, the offset that the engine's group commits with each snapshot,
  and the newest result, which says sooner than a snapshot how far the engine is. Asked at most once per second (ten times where a
  wait is limited and not far off), and beside the starts: only the first start, or one after a pause, waits for an answer.
- What is not known refuses nothing. A broker that does not answer, or does not let this client ask, makes no start fail.
- A refusal is counted before it is raised, and nothing of what is refused has been sent.

A wait is limited as so many records: as many as the engine, as fast as it was, works off in it. A single answer does not tell how
far it is behind, because the last snapshot and the last result are up to some hundred milliseconds old: so the mean of the last
answers counts. The least of them would refuse less when nothing is wrong, but overlooks a part of what waits: measured, its latency
under overload was more than twice as high (docs/performance.md). Starts of this client count at once: no burst between two answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from sagalog.infra.clock import Clock
from sagalog.schemas.errors import SagalogError
from sagalog.topics.log import Log, LogError, TopicPartition
from sagalog.topics.specs import Topics

logger = logging.getLogger(__name__)

START_LAG_RECORDS_MAX: Final = 50_000
"""By how many records a partition may be behind before starts are refused: some seconds of work."""
START_WAIT_MS_MAX: Final = 0
"""How long a record may wait for the engine before starts are refused; 0: this refuses none."""
WAIT_RECORDS_MIN: Final = 50
"""A partition may always be behind by so many before a wait counts, however slow it is: an idle engine seems slow, too."""
STANDING_ANSWERS: Final = 5
"""Of so many answers the mean counts: half a second of them, in which there are two snapshots."""
STANDING_ANSWERS_MIN: Final = 3
STANDING_MS: Final = 1_000
"""So much older than the newest an answer no longer counts for the mean."""
RATE_MS: Final = 2_000
"""How fast the engine is, is measured over so long at least."""
ASK_MS: Final = 1_000
"""How often a client asks at most."""
ASK_SOON_MS: Final = 100
"""The same where a wait is limited, and half of what is allowed is reached."""
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
Seen = Callable[[], Mapping[int, int]]
"""By partition of `events`, the offset after the last event that a result is known to have come of."""


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
    """The offset that is folded next, as of the last snapshot, or of the last result where that is newer."""
    ends: Mapping[int, int]
    sent: Mapping[int, int] = field(default_factory=dict)
    """How many starts this client had ever let through before it asked."""

    def lag(self, partition: int) -> int:
        return max(0, self.ends.get(partition, 0) - self.applied.get(partition, 0))


def retry_after_ms(now: Figures, before: Figures | None, partition: int, excess_records: int) -> int:
    """When the engine, as fast as between the two answers, has worked off the excess."""
    shortest, longest = RETRY_AFTER_MS
    if before is None or now.at_ms <= before.at_ms:
        return RETRY_AFTER_UNKNOWN_MS
    done = now.applied.get(partition, 0) - before.applied.get(partition, 0)
    if done <= 0:
        # One that had nothing to do is not slow.
        return longest if before.lag(partition) else RETRY_AFTER_UNKNOWN_MS
    return min(longest, max(shortest, excess_records * (now.at_ms - before.at_ms) // done))


def records_in(wait_ms: int, now: Figures, before: Figures | None, partition: int) -> int:
    """How many records the engine, as fast as between the two answers, works off in that time; WAIT_RECORDS_MIN at least."""
    if before is None or now.at_ms <= before.at_ms:
        return WAIT_RECORDS_MIN
    done = now.applied.get(partition, 0) - before.applied.get(partition, 0)
    return max(WAIT_RECORDS_MIN, wait_ms * done // (now.at_ms - before.at_ms))


class Backlog:
    """One client's. With `limit_records` and `limit_wait_ms` 0 it refuses nothing, and asks nothing."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        partitions: int,
        ends: Ends,
        clock: Clock,
        limit_records: int,
        limit_wait_ms: int = 0,
        seen: Seen = dict,
    ) -> None:
        self._log = log
        self._group = topics.engine_group
        self._partitions = [TopicPartition(topics.events, number) for number in range(partitions)]
        self._ends = ends
        self._clock = clock
        self._limit = limit_records
        self._limit_wait_ms = limit_wait_ms
        self._seen = seen
        self._answers: deque[Figures] = deque()
        """The newest last; as many as the standing backlog is told from, and back to RATE_MS before the newest."""
        self._sent: Counter[int] = Counter()
        """Starts that were ever let through."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_ms: int | None = None
        self._told = False
        self.refused = 0
        """Starts."""

    async def admit(self, starts: Mapping[int, int]) -> None:
        """Lets starts through, counted by partition: all of them, or none. Raises Overloaded."""
        if (self._limit <= 0 and self._limit_wait_ms <= 0) or not starts:
            return
        await self._keep_fresh(starts)
        figures = self._known()
        if figures is not None:
            excess, partition, lag = max(self._behind(starts, figures))
            if excess > 0:
                self.refused += sum(starts.values())
                wait_ms = retry_after_ms(figures, self._before(), -partition, excess)
                raise Overloaded(-partition, lag, lag - excess, wait_ms)
        self._sent.update(starts)

    def _behind(self, starts: Iterable[int], figures: Figures) -> Iterator[tuple[int, int, int]]:
        """By how many records more than allowed, for each partition and limit; the partition (negative), how far it is behind."""
        for partition in starts:
            if self._limit > 0:
                lag = self._lag(figures, partition)
                yield lag - self._limit, -partition, lag
            if self._limit_wait_ms > 0:
                standing = self._standing(figures, partition)
                yield standing - self._allowed(figures, partition), -partition, standing

    def _lag(self, figures: Figures, partition: int) -> int:
        """As it was answered, and what this client has let through since it asked."""
        return figures.lag(partition) + self._sent[partition] - figures.sent.get(partition, 0)

    def _standing(self, figures: Figures, partition: int) -> int:
        """The mean of the last answers. The less of two where they are few, because starts are or the broker is slow.

        Of a single one, no more than what this client has let through since.
        """
        newest = list(islice(reversed(self._answers), STANDING_ANSWERS))
        lags = [self._lag(found, partition) for found in newest if found.at_ms > figures.at_ms - STANDING_MS]
        if len(lags) >= STANDING_ANSWERS_MIN:
            return sum(lags) // len(lags)
        if len(newest) > 1:
            return min(self._lag(found, partition) for found in newest[:2])
        return lags[0] - figures.lag(partition)

    def _allowed(self, figures: Figures, partition: int) -> int:
        return records_in(self._limit_wait_ms, figures, self._before(), partition)

    def _before(self) -> Figures | None:
        """An answer to measure progress from."""
        return self._answers[0] if len(self._answers) > 1 else None

    def _known(self) -> Figures | None:
        """The newest answer, if it still counts."""
        figures = self._answers[-1] if self._answers else None
        return figures if figures is not None and self._clock.monotonic_ms() - figures.at_ms <= STALE_MS else None

    def _ask_ms(self, starts: Iterable[int]) -> int:
        """How long after the last question the next may come."""
        figures = self._answers[-1] if self._answers else None
        if self._limit_wait_ms <= 0 or figures is None:
            return ASK_MS
        near = any(self._lag(figures, at) * 2 > self._allowed(figures, at) for at in starts)
        return ASK_SOON_MS if near else ASK_MS

    async def _keep_fresh(self, starts: Iterable[int]) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._asking is None and (self._asked_ms is None or now_ms - self._asked_ms >= self._ask_ms(starts)):
            self._asked_ms = now_ms
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None and self._asked_ms is not None and self._known() is None:
            # Of an answer that is late already, no more than the rest of the time is waited for.
            left_s = WAIT_S - (now_ms - self._asked_ms) / 1000
            if left_s > 0:
                await asyncio.wait({self._asking}, timeout=left_s)

    async def _ask(self) -> None:
        # What was sent before the question is in the answer.
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
        found = {partition.partition: offset for partition, (offset, _) in applied.items()}
        for partition, offset in self._seen().items():
            found[partition] = max(offset, found.get(partition, 0))
        now_ms = self._clock.monotonic_ms()
        self._answers.append(
            Figures(now_ms, found, {partition.partition: offset for partition, offset in ends.items()}, sent)
        )
        while len(self._answers) > STANDING_ANSWERS and self._answers[1].at_ms <= now_ms - RATE_MS:
            self._answers.popleft()

    async def close(self) -> None:
        asking = self._asking
        if asking is not None:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
