"""Follows the results of workflows and notes when each came: which are missing, and how long nobody got any.

A result counts once, however often it is published: an engine that took over may publish it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, Self

import orjson

from benchmarks.settings import BenchError
from sagalog.topics.log import Log, TopicPartition
from sagalog.topics.specs import Topics

POLL_MS: Final = 100
POLL_RECORDS_MAX: Final = 2_000


def longest_gap_ms(times: Sequence[float], after: float, before: float) -> float:
    """The longest time between two successive results that ended after `after` and began before `before`; 0 for none.

    All are seconds of the monotonic clock; `times` is in order.
    """
    return max(
        (1_000 * (late - early) for early, late in pairwise(times) if late > after and early < before), default=0.0
    )


class Results:
    """Use `async with`. It follows what is published from then on. `keep`: what to keep of a result."""

    def __init__(
        self, log: Log, topics: Topics, partitions: int, keep: Callable[[Any], Any] = lambda result: result
    ) -> None:
        self._log = log
        self._keep = keep
        self._numbers = [TopicPartition(topics.results, number) for number in range(partitions)]
        self.by_workflow: dict[bytes, Any] = {}
        """What each ended with, by the workflow's id."""
        self.times: list[float] = []
        """When new results came, in order."""
        self.workflows: list[bytes] = []
        """Whose they were, in the same order."""
        self.again = 0
        """Results that had been there before."""
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader = await self._log.read({}, committed=False, client_id="bench-results")
        self._reader.assign(await self._reader.end_offsets(self._numbers))
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()

    async def _follow(self) -> None:
        while True:
            batches = await self._reader.poll(POLL_MS, POLL_RECORDS_MAX)
            now = time.monotonic()
            for messages in batches.values():
                for message in messages:
                    self._take(message.key, message.value, now)
            self._news.set()

    def _take(self, key: bytes | None, value: bytes | None, now: float) -> None:
        if key is None or value is None:
            return
        if key in self.by_workflow:
            self.again += 1
        else:
            self.times.append(now)
            self.workflows.append(key)
        self.by_workflow[key] = self._keep(orjson.loads(value))

    async def until(self, count: int, seconds: float) -> None:
        """Waits until that many workflows have ended. Raises BenchError when that takes longer, and what ended the following."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.by_workflow) < count:
                    self._news.clear()
                    news = asyncio.create_task(self._news.wait())
                    await asyncio.wait({news, self._task}, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    if self._task.done():
                        self._task.result()
        except TimeoutError:
            raise BenchError(
                f"{count - len(self.by_workflow):,} of {count:,} workflows did not end in {seconds:g} s"
            ) from None
