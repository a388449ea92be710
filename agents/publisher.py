"""The host's one producer, replaced when it breaks.

Rule: what was handed in is kept until it is durable. A new producer gets all that is left, in the order it came; what the
broken one wrote all the same is then in the log twice, which harms nobody (an answer has the id of its command).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sagalog.infra.clock import Rng
from sagalog.topics.log import Log, LogError, Out, Producer, RecordTooLarge

from .limits import BACKOFF_BASE_MS, BACKOFF_CAP_MS

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Batch:
    topic: str
    partition: int
    records: Sequence[Out]
    durable: Callable[[], None]


class Publisher:
    """Appends to any topic. How much it may hold is bounded by those who hand in: each has a limit of open commands."""

    def __init__(self, log: Log, client_id: str, rng: Rng) -> None:
        self._log = log
        self._client_id = client_id
        self._rng = rng
        self._producer: Producer | None = None
        self._open: dict[_Batch, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._broken = asyncio.Event()
        self._closed = False
        self.rebuilt = 0
        """How often the producer was replaced."""

    async def start(self) -> None:
        self._producer = await self._log.producer(self._client_id)

    @property
    def healthy(self) -> bool:
        return self._producer is not None and not self._broken.is_set()

    def publish(self, topic: str, partition: int, records: Sequence[Out], durable: Callable[[], None]) -> None:
        """Appends the records; `durable` is called once all of them are."""
        batch = _Batch(topic, partition, records, durable)
        self._open[batch] = None
        self._empty.clear()
        if self.healthy:
            self._append(batch)

    def publish_if_healthy(self, topic: str, partition: int, records: Sequence[Out]) -> bool:
        """For what is worth nothing later (heartbeats): dropped while there is no producer."""
        if not self.healthy or self._closed:
            return False
        assert self._producer is not None
        self._producer.append(topic, partition, records).add_done_callback(self._unimportant_ended)
        return True

    async def flush(self, timeout_ms: int) -> bool:
        """Waits until all is durable; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self._closed = True
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.close()

    def _append(self, batch: _Batch) -> None:
        assert self._producer is not None
        future = self._producer.append(batch.topic, batch.partition, batch.records)
        future.add_done_callback(lambda done: self._ended(batch, done))

    def _ended(self, batch: _Batch, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if batch not in self._open:
            return
        if done.cancelled() or (error is not None and not isinstance(error, RecordTooLarge)):
            self._replace(error)
            return
        if error is not None:
            # The producer is as good as before. Answers are kept below the limit, so this says that a limit is wrong.
            logger.error("an answer cannot be written and is dropped: %s", error)
        del self._open[batch]
        if not self._open:
            self._empty.set()
        batch.durable()

    def _unimportant_ended(self, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, RecordTooLarge):
            self._replace(error)

    def _replace(self, cause: BaseException | None) -> None:
        if not self._broken.is_set() and not self._closed:
            logger.warning("the producer of %s is broken and is replaced: %s", self._client_id, cause)
            self._broken.set()

    async def mend(self) -> None:
        """Replaces the producer whenever it breaks; runs beside those who publish."""
        while True:
            await self._broken.wait()
            producer = await self._another()
            self._producer = producer
            self._broken.clear()
            self.rebuilt += 1
            for batch in list(self._open):
                self._append(batch)

    async def _another(self) -> Producer:
        delay_ms, tries = BACKOFF_BASE_MS, 0
        while True:
            tries += 1
            try:
                if self._producer is not None:
                    broken, self._producer = self._producer, None
                    await broken.close()
                return await self._log.producer(self._client_id)
            except LogError as error:
                logger.warning(
                    "no producer for %s after %d tries, next in about %d ms: %s",
                    self._client_id,
                    tries,
                    delay_ms,
                    error,
                )
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                delay_ms = min(2 * delay_ms, BACKOFF_CAP_MS)
