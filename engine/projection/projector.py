"""The projector: follows the engine's outputs and keeps PostgreSQL's rows as they say.

Rules:
- The position of each partition is in PostgreSQL, written in the transaction of the rows; the group only hands out partitions.
  So there is no record that is half applied, and a lost database starts at the beginning by itself.
- A position moves only from where its projector believes it to be. A projector that lost a partition without knowing it (a
  zombie) changes no row any more: its transaction is rolled back.
- One way out of every trouble: whatever fails ends the session, both connections are thrown away, and after a bounded wait a
  new session starts from what the database says. Only what a person has to decide ends `run`.
- A record that cannot be projected goes to the quarantine topic before the position moves past it. It stops nothing.
- Read committed: checkpoints, circuits and markers of an aborted snapshot do not exist.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from sagalog.engine.runtime.outputs import quarantine
from sagalog.infra.clock import Clock, Rng, utc, wait_for_stop
from sagalog.schemas.errors import SagalogError
from sagalog.topics.log import Consumer, Log, LogError, Message, Producer, TopicPartition
from sagalog.topics.specs import Topics

from .batch import Batch, Rejected
from .metrics import ProjectionMetrics
from .sql import MigrationError, Sql, SqlError, SqlRefused, Transaction

logger = logging.getLogger(__name__)

STAGE: Final = "project"
"""In the quarantine: where the record failed."""
POSITION_TRIES_MAX: Final = 100
"""Rebalances in a row while positions are looked up, before the session is given up."""


class PositionLost(SagalogError):
    """The database is ahead of the log: they do not belong together. A person has to decide."""


class PositionMoved(Exception):
    """Another projector has moved the position."""


@dataclass(frozen=True, slots=True)
class ProjectorLimits:
    """Bounds of the projector's work. Times are milliseconds."""

    batch_records_max: int = 2_000
    batch_bytes_max: int = 8 * 2**20
    """Values of one transaction; a single larger record goes alone."""
    poll_ms: int = 200
    lag_interval_ms: int = 1_000
    stop_ms: int = 5_000
    """How long a batch on its way may take to be finished, once asked to stop."""
    backoff_base_ms: int = 200
    backoff_cap_ms: int = 10_000
    unready_ms: int = 10_000
    """How long it may not have looked at its lag before it is not ready."""


class Projector:
    """One member of the projector group; any number may run at once. Use it for one `run`."""

    def __init__(
        self,
        log: Log,
        sql: Sql,
        topics: Topics,
        *,
        clock: Clock,
        rng: Rng,
        metrics: ProjectionMetrics | None = None,
        limits: ProjectorLimits | None = None,
    ) -> None:
        self._log = log
        self._sql = sql
        self._topics = topics
        self._clock = clock
        self._rng = rng
        self._metrics = metrics or ProjectionMetrics()
        self._limits = limits or ProjectorLimits()
        self._followed = projected(topics)
        self._assigned: set[TopicPartition] = set()
        self._assignments = 0
        """How often the group has handed out partitions."""
        self._positioned = -1
        """The count of assignments for which positions are set."""
        self._positions: dict[TopicPartition, int] = {}
        self._lag_due_ms = 0
        self._looked_ms: int | None = None
        """When it has looked at its lag last (monotonic)."""
        self._trouble = "it has not connected yet"
        """What has ended the last session, or kept it from coming about."""
        self._failures = 0
        """Sessions in a row that ended without having applied anything."""
        self._failing_since_ms = 0

    def unready(self) -> str | None:
        """Why it does not project now; None when it does. From any thread."""
        looked_ms, limit_ms = self._looked_ms, self._limits.unready_ms
        if looked_ms is None:
            return self._trouble
        still_ms = self._clock.monotonic_ms() - looked_ms
        return None if still_ms < limit_ms else f"it has not looked at its lag for {still_ms / 1000:.0f} s"

    async def run(self, stop: asyncio.Event) -> None:
        """Projects until `stop` is set. Raises MigrationError or PositionLost, which no waiting repairs."""
        while not stop.is_set():
            try:
                await self._until_stopped(stop)
            except (MigrationError, PositionLost):
                raise
            except (SqlError, LogError) as error:
                what = "postgres" if isinstance(error, SqlError) else "kafka"
                self._metrics.reconnects.labels(what).inc()
                if not self._failures:
                    self._failing_since_ms = self._clock.now_ms()
                delay_ms = self._backoff_ms()
                self._looked_ms, self._trouble = None, str(error)
                logger.warning(
                    "projecting stopped (failure %d since %s), trying again in %d ms: %s",
                    self._failures, utc(self._failing_since_ms), delay_ms, error,
                )  # fmt: skip
                await wait_for_stop(stop, delay_ms / 1000)
            finally:
                self._metrics.connected.set(0)

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        """A session that ends soon after `stop`, also when it waits for a group or a broker that does not answer."""
        # Not a TaskGroup: it would wrap the session's error into a group.
        session = asyncio.create_task(self._session(stop))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((session, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not session.done():
                await asyncio.wait((session,), timeout=self._limits.stop_ms / 1000)
        finally:
            stopping.cancel()
            session.cancel()
            await asyncio.gather(session, stopping, return_exceptions=True)
        if not session.cancelled():
            session.result()

    def _backoff_ms(self) -> int:
        """Full jitter under an exponential cap, and never nothing."""
        limits = self._limits
        ceiling = min(limits.backoff_cap_ms, limits.backoff_base_ms << min(self._failures, 16))
        self._failures += 1
        return int(self._rng.uniform(limits.backoff_base_ms / 2, ceiling))

    # --- a session: from connecting to the first failure

    async def _session(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as exits:
            exits.push_async_callback(self._sql.close)
            await self._sql.open()
            await self._sql.migrate()
            await self._require_topics()
            producer = await self._log.producer(f"{self._topics.projector_group}-quarantine")
            exits.push_async_callback(producer.close)
            consumer = await self._log.join(
                self._topics.projector_group, self._followed, self._on_assigned, self._on_revoked, committed=True
            )
            exits.push_async_callback(consumer.close)
            self._positioned = -1
            self._metrics.connected.set(1)
            while not stop.is_set():
                await self._turn(consumer, producer)

    async def _turn(self, consumer: Consumer, producer: Producer) -> None:
        """Reads once and applies what came."""
        polled = await consumer.poll(self._limits.poll_ms, self._limits.batch_records_max)
        if self._positioned != self._assignments:
            # What was read comes from where the group thinks we are: thrown away, and read again from the right place.
            await self._position(consumer)
            return
        try:
            for messages in self._chunks(polled):
                await self._apply(messages, producer)
            if self._clock.monotonic_ms() >= self._lag_due_ms:
                await self._look_at_lag(consumer)
        except PositionMoved:
            self._metrics.stale.inc()
            logger.warning("another projector has moved on; reading positions again")
            self._positioned = -1

    async def _require_topics(self) -> None:
        for topic in (*self._followed, self._topics.quarantine):
            if await self._log.partitions(topic) is None:
                raise LogError(
                    f"topic {topic} does not exist; make it with: sagalog topics create, or correct SAGALOG_PREFIX"
                )

    async def _on_assigned(self, partitions: set[TopicPartition]) -> None:
        self._assigned = partitions
        self._assignments += 1

    async def _on_revoked(self, partitions: set[TopicPartition]) -> None:
        """Nothing to hand over: a batch on its way commits, or is refused because the new owner was faster."""

    # --- positions

    async def _position(self, consumer: Consumer) -> None:
        """Goes to where the database says, for the partitions that are assigned now."""
        for _ in range(POSITION_TRIES_MAX):
            assignments, assigned = self._assignments, sorted(self._assigned)
            stored = await self._stored_positions(assigned)
            beginnings = await consumer.beginning_offsets(assigned)
            ends = await consumer.end_offsets(assigned)
            for partition, offset in stored.items():
                if offset > ends[partition]:
                    raise PositionLost(
                        f"{partition.topic}/{partition.partition} ends at offset {ends[partition]}, but the projection is at "
                        f"{offset}: the topic was made anew or has lost records; drop the projection's schema to have it "
                        "filled again, or connect to the Kafka it belongs to"
                    )
            # No await from here on, so that what is compared stays true.
            if assignments == self._assignments and consumer.assignment() >= set(assigned):
                for partition, offset in stored.items():
                    consumer.seek(partition, max(offset, beginnings[partition]))
                self._positions = stored
                self._positioned = assignments
                self._lag_due_ms = 0
                return
        raise LogError(f"the group {self._topics.projector_group} was rebalanced {POSITION_TRIES_MAX} times in a row")

    async def _stored_positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        params = {"topics": [p.topic for p in partitions], "partitions": [p.partition for p in partitions]}
        async with self._sql.transaction() as transaction:
            await transaction.execute("positions_make", params)
            found = await transaction.fetch("positions_read", params)
        return {TopicPartition(row["topic"], row["partition"]): row["next_offset"] for row in found}

    async def _look_at_lag(self, consumer: Consumer) -> None:
        """Writes how far behind the projection is, and passes over transaction markers, which are records to nobody."""
        # Positions first: an end that is older than a position would hide records.
        assignments = self._assignments
        next_: dict[TopicPartition, int] = {}
        for partition in self._positions:
            if partition in consumer.assignment():
                next_[partition] = max(await consumer.position(partition), self._positions[partition])
        ends = await consumer.end_offsets(next_)
        if assignments != self._assignments:
            return
        async with self._sql.transaction() as transaction:
            await self._advance(transaction, next_, ends)
        self._positions.update(next_)
        self._metrics.lag({partition: max(0, ends[partition] - offset) for partition, offset in next_.items()})
        self._looked_ms = self._clock.monotonic_ms()
        self._lag_due_ms = self._looked_ms + self._limits.lag_interval_ms

    async def _advance(
        self,
        transaction: Transaction,
        next_: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Moves positions. Raises PositionMoved, which rolls back, when one is not where it is believed to be."""
        partitions = sorted(next_)
        moved = await transaction.execute(
            "positions_advance",
            {
                "topics": [partition.topic for partition in partitions],
                "partitions": [partition.partition for partition in partitions],
                "expected": [self._positions[partition] for partition in partitions],
                "next": [next_[partition] for partition in partitions],
                "ends": [ends[partition] if ends is not None else -1 for partition in partitions],
            },
        )
        if moved != len(partitions):
            raise PositionMoved

    # --- batches

    def _chunks(self, polled: Mapping[TopicPartition, Sequence[Message]]) -> Iterator[list[Message]]:
        """The records in the order of their partitions, cut where one transaction would become too large."""
        chunk: list[Message] = []
        size = 0
        for partition, messages in polled.items():
            position = self._positions.get(TopicPartition(*partition))
            if position is None:
                continue
            for message in messages:
                if message.offset < position:
                    continue
                value_bytes = len(message.value or b"")
                if chunk and (
                    size + value_bytes > self._limits.batch_bytes_max or len(chunk) >= self._limits.batch_records_max
                ):
                    yield chunk
                    chunk, size = [], 0
                chunk.append(message)
                size += value_bytes
        if chunk:
            yield chunk

    async def _apply(self, messages: Sequence[Message], producer: Producer) -> None:
        """Applies records in one transaction. Data that PostgreSQL refuses is narrowed down to the record that brings it."""
        batch = Batch(self._topics)
        for message in messages:
            batch.add(message)
        try:
            await self._commit(batch, producer)
        except SqlRefused as error:
            if len(messages) == 1:
                refused = Batch(self._topics)
                refused.skip(messages[0], str(error))
                await self._commit(refused, producer)
                return
            logger.warning("a batch of %d records was refused, applying it in halves: %s", len(messages), error)
            middle = len(messages) // 2
            await self._apply(messages[:middle], producer)
            await self._apply(messages[middle:], producer)

    async def _commit(self, batch: Batch, producer: Producer) -> None:
        started_ms = self._clock.monotonic_ms()
        await self._quarantine(batch.rejected, producer)
        written: dict[str, int] = {}
        async with self._sql.transaction() as transaction:
            # First, so that a zombie is turned away before it waits for locks of rows.
            await self._advance(transaction, batch.next)
            await _merge(transaction, batch, written)
        self._positions.update(batch.next)
        self._failures = 0
        self._count(batch, written, self._clock.monotonic_ms() - started_ms)

    async def _quarantine(self, rejected: Sequence[Rejected], producer: Producer) -> None:
        if not rejected:
            return
        now_ms = self._clock.now_ms()
        # Repeated when the transaction fails: the same key, and the same record to whoever reads it.
        await producer.append(
            self._topics.quarantine,
            0,
            [quarantine(found.message, found.reason, STAGE, None, now_ms) for found in rejected],
        )

    def _count(self, batch: Batch, written: Mapping[str, int], duration_ms: int) -> None:
        metrics = self._metrics
        metrics.records.inc(batch.records)
        metrics.batch_seconds.observe(duration_ms / 1000)
        for table, count in written.items():
            metrics.rows.labels(table).inc(count)
        for found in batch.rejected:
            message = found.message
            metrics.quarantined.labels(message.topic).inc()
            logger.error(
                "%s/%d/%d is in quarantine: %s", message.topic, message.partition, message.offset, found.reason
            )
        for message in batch.altered:
            metrics.altered.labels(message.topic).inc()
            logger.warning(
                "%s/%d/%d holds NUL, which PostgreSQL cannot store: it is U+FFFD in the projection",
                message.topic,
                message.partition,
                message.offset,
            )


async def _merge(transaction: Transaction, batch: Batch, written: dict[str, int]) -> None:
    staged = list(batch.staged())
    for table, rows in staged:
        await transaction.copy(f"staging_{table.name}", table.columns, rows)
    if batch.forgotten_circuits:
        await transaction.execute("circuit_forget", {"keys": sorted(batch.forgotten_circuits)})
    if batch.forgotten_health:
        await transaction.execute("agent_health_forget", {"keys": sorted(batch.forgotten_health)})
    if batch.forgotten_schedules:
        await transaction.execute("schedule_forget", {"keys": sorted(batch.forgotten_schedules)})
    for table, rows in staged:
        touched = 0
        for query in table.merges:
            touched = await transaction.execute(query)
        # The merge of workflows ends by deleting from staging what was refused.
        written[table.name] = len(rows) - touched if table.name == "workflow" else touched


def projected(topics: Topics) -> tuple[str, ...]:
    """The topics whose records become rows."""
    return (
        topics.checkpoints,
        topics.circuits,
        topics.results,
        topics.dead_letters,
        topics.reviews,
        topics.health,
        topics.definitions,
    )
