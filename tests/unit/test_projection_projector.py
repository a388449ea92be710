"""The projector's conduct when things fail, with stand-ins for the log and the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sagalog.engine.projection.metrics import ProjectionMetrics
from sagalog.engine.projection.projector import Projector, ProjectorLimits
from sagalog.engine.projection.sql import MigrationError, SqlConflict, SqlUnavailable
from sagalog.infra.clock import SystemClock
from sagalog.topics.log import LogUnavailable, TopicPartition
from sagalog.topics.specs import Topics

TOPICS = Topics("unit")


class HighRng:
    """Always the longest wait; notes which were possible."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def uniform(self, low: float, high: float) -> float:
        self.asked.append((low, high))
        return high

    def hex(self, digits: int) -> str:
        return "0" * digits


@dataclass
class DownSql:
    """A database that fails at once."""

    error: Exception
    patience: int = 1
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was opened `patience` times."""
    opened: int = 0
    closed: int = 0

    async def open(self) -> None:
        self.opened += 1
        if self.opened >= self.patience:
            self.tried.set()
        raise self.error

    async def migrate(self) -> None:
        raise AssertionError("not open")

    def transaction(self, *, snapshot: bool = False) -> Any:
        raise AssertionError("not open")

    async def close(self) -> None:
        self.closed += 1


def projector(sql: Any, log: Any = None, **limits: int) -> tuple[Projector, HighRng, ProjectionMetrics]:
    rng, metrics = HighRng(), ProjectionMetrics()
    made = Projector(log, sql, TOPICS, clock=SystemClock(), rng=rng, metrics=metrics, limits=ProjectorLimits(**limits))
    return made, rng, metrics


@pytest.mark.parametrize("error", [SqlUnavailable("down"), SqlConflict("deadlock"), LogUnavailable("down")])
async def test_the_wait_between_sessions_grows_with_jitter_up_to_the_cap(error: Exception) -> None:
    sql = DownSql(error, patience=7)
    found, rng, metrics = projector(sql, backoff_base_ms=2, backoff_cap_ms=20)
    stop = asyncio.Event()
    running = asyncio.create_task(found.run(stop))
    await asyncio.wait_for(sql.tried.wait(), 5)
    stop.set()
    await asyncio.wait_for(running, 5)
    assert rng.asked[:6] == [(1.0, 2), (1.0, 4), (1.0, 8), (1.0, 16), (1.0, 20), (1.0, 20)]
    assert sql.closed == sql.opened
    what = "kafka" if isinstance(error, LogUnavailable) else "postgres"
    assert metrics.reconnects.labels(what)._value.get() == sql.opened


async def test_stopping_does_not_wait_for_the_back_off() -> None:
    sql = DownSql(SqlUnavailable("down"))
    found, _, _ = projector(sql, backoff_base_ms=3_600_000, backoff_cap_ms=3_600_000)
    stop = asyncio.Event()
    running = asyncio.create_task(found.run(stop))
    await asyncio.wait_for(sql.tried.wait(), 5)
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_what_no_waiting_repairs_ends_the_run() -> None:
    sql = DownSql(MigrationError("a person has to decide"))
    found, rng, _ = projector(sql)
    with pytest.raises(MigrationError):
        await asyncio.wait_for(found.run(asyncio.Event()), 5)
    assert rng.asked == [] and sql.closed == 1


class SilentLog:
    """A cluster that takes the call and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def partitions(self, topic: str) -> int | None:
        self.asked.set()
        await asyncio.Event().wait()
        return None


class UpSql(DownSql):
    async def open(self) -> None:
        self.opened += 1

    async def migrate(self) -> None:
        return


@pytest.mark.parametrize("how", ["stop", "cancel"])
async def test_a_broker_that_never_answers_does_not_hold_up_the_end(how: str) -> None:
    sql, log = UpSql(AssertionError()), SilentLog()
    found, _, _ = projector(sql, log, stop_ms=20)
    stop = asyncio.Event()
    running = asyncio.create_task(found.run(stop))
    await asyncio.wait_for(log.asked.wait(), 5)
    if how == "stop":
        stop.set()
        await asyncio.wait_for(running, 5)
    else:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
    assert sql.closed == sql.opened == 1


# --- batches


@dataclass
class Read:
    offset: int
    value: bytes | None
    topic: str = TOPICS.reviews
    partition: int = 0
    key: bytes | None = b"w"
    timestamp: int = 0
    headers: Sequence[tuple[str, bytes]] = field(default_factory=list)


def test_transactions_are_bounded_by_records_and_bytes_and_keep_the_order() -> None:
    found, _, _ = projector(None, batch_records_max=3, batch_bytes_max=100)
    partition = TopicPartition(TOPICS.reviews, 0)
    found._positions = {partition: 10}
    sizes = [5, 5, 10, 10, 10, 10, 60, 60, 500, 1, None]
    polled: Any = {
        partition: [Read(8 + n, None if size is None else b"x" * size) for n, size in enumerate(sizes)],
        TopicPartition(TOPICS.reviews, 1): [Read(0, b"of a partition that is not ours")],
    }
    chunks = [[message.offset for message in chunk] for chunk in found._chunks(polled)]
    # 8 and 9 are below the position. A record larger than the limit goes alone.
    assert chunks == [[10, 11, 12], [13, 14], [15], [16], [17, 18]]


@dataclass
class CountingSql:
    """Takes everything; says how many positions moved."""

    moved: int
    queries: list[str] = field(default_factory=list)
    committed: int = 0

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[CountingSql]:
        yield self
        self.committed += 1

    async def execute(self, query: str, params: Any = None) -> int:
        self.queries.append(query)
        return self.moved

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        self.queries.append(table)


async def test_positions_are_moved_before_anything_else_and_a_refusal_commits_nothing() -> None:
    from sagalog.engine.projection.batch import Batch
    from sagalog.engine.projection.projector import PositionMoved

    for moved, committed in ((1, 1), (0, 0)):
        sql = CountingSql(moved)
        found, _, metrics = projector(sql)
        found._positions = {TopicPartition(TOPICS.checkpoints, 0): 0}
        batch = Batch(TOPICS)
        batch.add(Read(0, None, topic=TOPICS.checkpoints))  # type: ignore[arg-type]
        try:
            await found._commit(batch, None)  # type: ignore[arg-type]
        except PositionMoved:
            assert not committed
        assert sql.queries == ["positions_advance"]
        assert sql.committed == committed
        assert metrics.records._value.get() == committed
        assert found._positions == {TopicPartition(TOPICS.checkpoints, 0): committed}


class FakeConsumer:
    """Has one record of `reviews`, at the beginning, however often it is asked."""

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.seeks: list[int] = []

    async def poll(self, timeout_ms: int, max_records: int) -> Any:
        return {self.partition: [Read(0, None)]}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.seeks.append(offset)

    def assignment(self) -> set[TopicPartition]:
        return {self.partition}

    async def position(self, partition: TopicPartition) -> int:
        return 50

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {self.partition: 7}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {self.partition: 50}


@dataclass
class PositionedSql(CountingSql):
    """Has a position for every partition."""

    stored: int = 0

    async def fetch(self, query: str, params: Any) -> list[dict[str, Any]]:
        return [
            {"topic": topic, "partition": partition, "next_offset": self.stored}
            for topic, partition in zip(params["topics"], params["partitions"], strict=True)
        ]


@pytest.mark.parametrize(("stored", "sought"), [(20, 20), (3, 7)])
async def test_after_every_assignment_it_reads_on_where_the_database_says(stored: int, sought: int) -> None:
    """And what was read before it got there is thrown away. Below the log's beginning there is nothing to read."""
    partition = TopicPartition(TOPICS.reviews, 0)
    consumer, sql = FakeConsumer(partition), PositionedSql(1, stored=stored)
    found, _, metrics = projector(sql)
    for assignments in (1, 2, 3):
        await found._on_assigned({partition})
        await found._turn(consumer, None)  # type: ignore[arg-type]
        assert consumer.seeks == [sought] * assignments
        assert found._positions == {partition: stored}
        assert metrics.records._value.get() == 0
        await found._turn(consumer, None)  # type: ignore[arg-type]
        assert len(consumer.seeks) == assignments
        assert found._positions == {partition: 50}


async def test_it_says_why_it_does_not_project() -> None:
    found, _, _ = projector(sql := DownSql(SqlUnavailable("the database is down"), patience=2), backoff_base_ms=2)
    assert found.unready() == "it has not connected yet"
    stop = asyncio.Event()
    running = asyncio.create_task(found.run(stop))
    await asyncio.wait_for(sql.tried.wait(), 5)
    assert found.unready() == "the database is down"
    stop.set()
    await asyncio.wait_for(running, 5)
