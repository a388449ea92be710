"""The projection on a real Kafka and a real PostgreSQL: what arrives, what must not, and what survives which trouble.

The tests write what the engine would write, by the log's producers; what they wait for is always a state of the database, with
a limit.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import orjson
import psycopg
import pytest
from aiokafka import AIOKafkaProducer

from sagalog.engine.projection import queries
from sagalog.engine.projection.batch import Batch
from sagalog.engine.projection.compare import differences, expected_rows, fetch_rows
from sagalog.engine.projection.metrics import ProjectionMetrics
from sagalog.engine.projection.migrations import load_migrations, migrate
from sagalog.engine.projection.postgres import PostgresSql
from sagalog.engine.projection.projector import PositionLost, PositionMoved, Projector, ProjectorLimits, projected
from sagalog.engine.projection.sql import MigrationError, SqlError, SqlRefused, SqlUnavailable
from sagalog.engine.projection.verification import ProjectedRows
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.definitions import Definition, Sleep, Step, Task, WaitFor, from_input
from sagalog.schemas.limits import ITEMS_MAX, TIME_MS_MAX
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Out, TopicPartition
from sagalog.topics.specs import Topics

from ..unit.kernel.driver import WORKFLOW, Driver, saga, step
from ..unit.kernel.driver import result as result_of
from ..unit.test_projection_people import review

pytestmark = pytest.mark.stack

PARTITIONS = 4
WAIT_S_MAX = 90.0
T0 = 1_760_000_000_000
LIMITS = ProjectorLimits(batch_records_max=200, poll_ms=50, lag_interval_ms=100, backoff_base_ms=50, backoff_cap_ms=400)


# --- records


def partition_of(key: str) -> int:
    return zlib.crc32(key.encode()) % PARTITIONS


def checkpoint(at_offset: int, done: int = 0, **more: Any) -> dict[str, Any]:
    """A workflow of four steps, of which `done` are."""
    steps: list[dict[str, Any]] = []
    for place, name in enumerate(("reserve", "charge", "ship", "notify")):
        step: dict[str, Any] = {"name": name, "status": "waiting", "attempt": 0}
        if place < done:
            step = {
                "name": name, "status": "done", "attempt": 1, "started_ms": T0 + place, "finished_ms": T0 + place + 1,
                "order": place + 1, "output": {"ref": place, "ratio": 1.0},
            }  # fmt: skip
        elif place == done:
            step = {"name": name, "status": "running", "attempt": 1, "started_ms": T0 + place}
        steps.append(step)
    return {
        "v": 1, "status": "running", "definition": "d" * 16, "name": "order", "seed": "s", "started_ms": T0,
        "now_ms": T0 + done, "at_offset": at_offset, "input": {"order": at_offset}, "bytes": 12, "steps": steps, **more,
    }  # fmt: skip


def stub(at_offset: int, status: str = "completed") -> dict[str, Any]:
    return {
        "v": 1, "status": status, "definition": "d" * 16, "name": "order", "seed": "s", "started_ms": T0,
        "now_ms": T0 + 50, "at_offset": at_offset, "finished_ms": T0 + 50, "deadline_ms": T0 + 10**9,
    }  # fmt: skip


def result(workflow_id: str, at_offset: int, status: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "workflow_id": workflow_id, "definition": "d" * 16, "name": "order", "status": status, "started_ms": T0,
        "finished_ms": T0 + 50, "at_offset": at_offset, "input": {"order": 1}, "output": {"total": 12.50},
        "completeness": 1.0, "missing": [], "usage": {"attempts": 4, "tokens": 1_200, "cost": 35},
        "steps": checkpoint(at_offset, 4)["steps"], **more,
    }  # fmt: skip


def item(number: int, **more: Any) -> dict[str, Any]:
    """One item of the step `charge`."""
    return {
        "name": f"charge[{number}]", "status": "done", "attempt": 1, "started_ms": T0, "finished_ms": T0 + 1,
        "order": number + 2, "output": number, "tokens": 10, **more,
    }  # fmt: skip


def out(key: str, value: Any) -> Out:
    return Out(key.encode(), value if isinstance(value, bytes | None) else orjson.dumps(value), [])


# --- the surroundings


@dataclass
class Unseen:
    """A record that only a zombie has read."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    timestamp: int = T0
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class World:
    """A stack with topics of its own, and a reader of the database."""

    log: KafkaLog
    topics: Topics
    conninfo: str
    sql: PostgresSql

    async def commit(self, topic: str, records: Iterable[tuple[str, Any]]) -> None:
        """Writes records of workflow-keyed topics in one transaction."""
        writes: dict[TopicPartition, list[Out]] = {}
        for key, value in records:
            writes.setdefault(TopicPartition(topic, partition_of(key)), []).append(out(key, value))
        producer = await self.log.transactional(f"{self.topics.prefix}-test")
        try:
            await producer.transact(writes)
        finally:
            await producer.close()

    async def append(self, topic: str, partition: int, *records: Out) -> None:
        producer = await self.log.producer("test")
        try:
            await producer.append(topic, partition, records)
        finally:
            await producer.close()

    async def query(self, text: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.conninfo, autocommit=True) as connection:
            await connection.execute(f'SET search_path = "{self.sql.schema}"')  # type: ignore[arg-type]
            cursor = await connection.execute(text)  # type: ignore[arg-type]
            return await cursor.fetchall() if cursor.description else []

    async def caught_up(self) -> None:
        """Until every record that was written so far is applied."""
        followed = [
            TopicPartition(topic, partition)
            for topic in projected(self.topics)
            for partition in range(await self.log.partitions(topic) or 0)
        ]
        reader = await self.log.read(dict.fromkeys(followed, None), committed=True)
        ends = await reader.end_offsets(followed)
        await reader.close()

        async def applied() -> bool:
            rows = await self.query("SELECT topic, partition, next_offset FROM position")
            found = {TopicPartition(topic, partition): next_ for topic, partition, next_ in rows}
            return all(found.get(partition, -1) >= end for partition, end in ends.items())

        await until(applied, "the projection to catch up")

    def projector(self, **more: Any) -> tuple[Projector, ProjectionMetrics]:
        metrics = ProjectionMetrics()
        sql = more.pop("sql", None) or PostgresSql(self.conninfo, prefix=self.topics.prefix)
        limits = replace(LIMITS, **more)
        return (
            Projector(self.log, sql, self.topics, clock=SystemClock(), rng=SystemRng(), metrics=metrics, limits=limits),
            metrics,
        )

    @asynccontextmanager
    async def projecting(self, **more: Any) -> AsyncIterator[ProjectionMetrics]:
        projector, metrics = self.projector(**more)
        stop = asyncio.Event()
        running = asyncio.create_task(projector.run(stop))
        try:
            yield metrics
        finally:
            stop.set()
            await asyncio.wait_for(running, WAIT_S_MAX)

    async def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that must be the same after a rebuild."""
        tables = ("workflow", "step", "compensation", "circuit", "review", "dead_letter", "agent_health", "marker")
        return {table: await self.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Polls a condition of another system, which has no way to call back."""

    async def poll() -> None:
        while True:
            try:
                if await condition():
                    return
            except (psycopg.Error, SqlError):
                pass  # the database is down or not migrated yet: that is not the condition
            await asyncio.sleep(0.05)

    try:
        await asyncio.wait_for(poll(), WAIT_S_MAX)
    except TimeoutError:
        pytest.fail(f"waited {WAIT_S_MAX} s for {what}")


def value_of(metric: Any, **labels: str) -> float:
    return float((metric.labels(**labels) if labels else metric)._value.get())


@pytest.fixture
async def world(stack: Any, log: KafkaLog, provisioned: Topics) -> AsyncIterator[World]:
    sql = PostgresSql(stack.postgres, prefix=provisioned.prefix)
    await sql.open()
    yield World(log, provisioned, stack.postgres, sql)
    await sql.close()


async def write_everything(world: World, count: int = 40) -> None:
    """One record of every kind, and `count` workflows of which some have finished."""
    topics = world.topics
    ids = [f"w{number}" for number in range(count)]
    await world.commit(topics.checkpoints, ((key, checkpoint(10 + n, 1)) for n, key in enumerate(ids)))
    await world.commit(topics.checkpoints, ((key, checkpoint(1000 + n, 2)) for n, key in enumerate(ids)))
    finished = ids[: count // 2]
    for number, key in enumerate(finished):
        await world.append(topics.results, partition_of(key), out(key, result(key, 2000 + number)))
    await world.commit(topics.checkpoints, ((key, stub(2000 + n)) for n, key in enumerate(finished)))
    await world.commit(topics.checkpoints, [(finished[0], None)])
    marker = {"at_offset": 2100, "epoch": 3, "member": "m", "definitions": ["d" * 16], "workflows": 9, "digest": "0f"}
    definition = {
        "name": "order",
        "steps": [{"name": "reserve", "agent": "stock"}, {"name": "charge", "agent": "bank"}],
    }
    writes = {
        TopicPartition(topics.checkpoints, 0): [out("@marker", marker), out("@definition/" + "d" * 16, definition)],
        TopicPartition(topics.circuits, 0): [
            out("bank", circuit(7)), out("@marker", {**marker, "definitions": []}),
        ],
    }  # fmt: skip
    producer = await world.log.transactional(f"{topics.prefix}-test")
    await producer.transact(writes)
    await producer.close()
    failure = {"kind": "terminal", "message": "no", "at_ms": T0}
    await world.append(
        topics.reviews,
        partition_of("w1"),
        out("w1", {"id": "w1/charge/review_needed", "workflow_id": "w1", "definition": "d" * 16, "name": "order",
                   "step": "charge", "kind": "review_needed", "reason": "amounts differ", "details": {"by": 3},
                   "input": None, "at_ms": T0 + 3, "at_offset": 20}),
    )  # fmt: skip
    await world.append(
        topics.dead_letters,
        partition_of("w1"),
        out("w1", {"id": "w1/charge/3/execute", "workflow_id": "w1", "definition": "d" * 16, "name": "order",
                   "step": "charge", "agent": "bank", "direction": "execute", "at_ms": T0 + 4, "at_offset": 21,
                   "input": {"amount": 3}, "failures": [failure], "failed_attempts": 3}),
    )  # fmt: skip
    await world.append(
        topics.health,
        0,
        out("bank", {"agent": "bank", "at_ms": T0, "window_ms": 60_000, "ok": 1, "failed": 3, "error_rate": 0.75,
                     "alert": True, "since_ms": T0}),
    )  # fmt: skip
    await world.append(topics.definitions, 0, out("e" * 16, definition | {"name": "other"}))


def circuit(at_offset: int, **more: Any) -> dict[str, Any]:
    return {
        "v": 1, "service": "bank", "status": "half_open", "since_ms": T0, "now_ms": T0 + 1, "at_offset": at_offset,
        "opened": 2, "reason": "the probe failed", "half_open_at_ms": T0 + 5, "probe": 1, "probe_until_ms": T0 + 9,
        "candidates": [1, 2], "window": [[T0, 1], [T0, 0]], "seen": {"1": 4}, "policy": {"calls_min": 5}, **more,
    }  # fmt: skip


# --- what arrives


async def test_every_kind_of_record_is_found_by_the_queries(world: World) -> None:
    await write_everything(world)
    withheld = [{"step": "ship", "attempt": 1, "direction": "execute", "reason": "circuit_open", "since_ms": T0}]
    undo = checkpoint(3000, 2, status="compensating", failure={"kind": "terminal", "message": "no", "at_ms": T0})
    undo["steps"][1]["undo"] = {"status": "done", "attempt": 1, "order": 1, "started_ms": T0, "finished_ms": T0 + 1}
    undo["steps"][0]["undo"] = {"status": "running", "attempt": 2, "order": 2, "started_ms": T0 + 1}
    await world.commit(world.topics.checkpoints, [("w30", checkpoint(3000, 2, withheld=withheld)), ("w31", undo)])
    async with world.projecting() as metrics:
        await world.caught_up()
    sql = world.sql
    assert await queries.counts_by_status(sql) == {"completed": 20, "running": 19, "compensating": 1}
    details = await queries.show_workflow(sql, "w1")
    assert details is not None
    assert (details.workflow.status, details.workflow.output, details.workflow.completeness) == (
        "completed", {"total": 12.5}, 1.0,
    )  # fmt: skip
    assert details.workflow.finished_at is not None and details.workflow.finished_at.timestamp() == (T0 + 50) / 1000
    assert [(step.step, step.status, step.agent) for step in details.steps] == [
        ("reserve", "done", "stock"), ("charge", "done", "bank"), ("ship", "done", None), ("notify", "done", None),
    ]  # fmt: skip
    assert [review.reason for review in details.reviews] == ["amounts differ"]
    assert [(letter.agent, letter.failed_attempts) for letter in details.dead_letters] == [("bank", 3)]
    held = await queries.show_workflow(sql, "w30")
    assert held is not None and held.workflow.withheld == withheld
    undone = await queries.show_workflow(sql, "w31")
    assert undone is not None
    assert [(entry.step, entry.status, entry.undone_order) for entry in undone.compensations] == [
        ("charge", "done", 1), ("reserve", "running", 2),
    ]  # fmt: skip
    (found,) = await queries.circuits(sql)
    assert (found.service, found.status, found.probe, found.calls, found.faults) == ("bank", "half_open", 1, 2, 1)
    assert [(health.agent, health.alert) for health in await queries.health(sql)] == [("bank", True)]
    assert len(await queries.reviews(sql)) == len(await queries.dead_letters(sql)) == 1
    assert await world.query("SELECT count(*), max(at_offset) FROM markers") == [(2, 2100)]
    assert await world.query("SELECT hash, name FROM definitions ORDER BY hash") == [
        ("d" * 16, "order"), ("e" * 16, "other"),
    ]  # fmt: skip
    lags = await queries.lag(sql)
    # Markers of transactions lie behind the last records, and do not count as lag.
    assert {lag.lag_records for lag in lags} == {0} and len(lags) == 4 * PARTITIONS + 2 + 2
    assert value_of(metrics.quarantined, topic=world.topics.checkpoints) == 0


async def test_lists_come_in_pages_that_neither_repeat_nor_skip(world: World) -> None:
    ids = [f"w{number:02}" for number in range(25)]
    await world.commit(world.topics.checkpoints, ((key, checkpoint(n + 1)) for n, key in enumerate(ids)))
    async with world.projecting():
        await world.caught_up()
    seen: list[str] = []
    after = None
    while True:
        page = await queries.list_workflows(world.sql, status="running", name="order", limit=10, after=after)
        seen += [workflow.workflow_id for workflow in page.workflows]
        if page.next is None:
            break
        after = page.next
    assert seen == sorted(ids, reverse=True)
    assert (await queries.list_workflows(world.sql, name="nobody")).workflows == []
    with pytest.raises(queries.InvalidQuery):
        await queries.list_workflows(world.sql, status="sleeping")
    with pytest.raises(queries.InvalidQuery):
        await queries.list_workflows(world.sql, after="yesterday")


async def test_rows_compare_equal_to_the_records_they_came_from(world: World) -> None:
    odd = checkpoint(5, 3, input={"big": 1e300, "whole": 2.0, "zero": -0.0, "long": 2**60, "text": "a\0b", "é": None})
    await world.commit(world.topics.checkpoints, [("w1", odd), ("w2", checkpoint(6, 1))])
    async with world.projecting():
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert set(found) == {"w1", "w2"}
    assert differences(expected_rows("w1", odd, partition_of("w1")), found["w1"]) == []
    assert differences(expected_rows("w2", checkpoint(6, 2), partition_of("w2")), found["w2"]) != []
    assert set(await fetch_rows(world.sql, ["w2", "nobody"])) == {"w2"}


# --- people and waits


async def test_a_review_opens_closes_and_opens_again(world: World) -> None:
    opened, closed, again = review(5), review(7, "retry"), review(9)
    partition, sql = partition_of("w"), world.sql

    async def project(*records: dict[str, Any]) -> queries.Review:
        await world.append(world.topics.reviews, partition, *(out("w", record) for record in records))
        await world.caught_up()
        (found,) = await queries.reviews(sql)
        open_ = await queries.reviews(sql, open_only=True)
        assert open_ == ([found] if found.decided_at is None else [])
        assert await world.query("SELECT open FROM reviews") == [(found.decided_at is None,)]
        return found

    async with world.projecting():
        first = await project(opened)
        assert (first.reason, first.details, first.decision) == ("asked at 5", {"at": 5}, None)
        decided = await project(closed)
        assert (decided.reason, decided.details, decided.input) == ("asked at 5", {"at": 5}, {"at": 5})
        assert decided.created_at == first.created_at
        assert (decided.at_offset, decided.decision, decided.decided_by, decided.decided_reason) == (
            7, "retry", "ann", "checked",
        )  # fmt: skip
        assert decided.decided_at is not None and decided.decided_at.timestamp() == (T0 + 7) / 1000
        assert await project(opened) == decided
        assert await project(closed, opened, closed) == decided
        asked = await project(again)
        assert (asked.reason, asked.details, asked.at_offset) == ("asked at 9", {"at": 9}, 9)
        assert asked.created_at.timestamp() == (T0 + 9) / 1000
        assert (asked.decided_at, asked.decision, asked.decided_by, asked.decided_reason) == (None, None, None, None)
        assert await project(closed) == asked
        assert await project(opened, closed, again) == asked
        ended = await project(review(11, "approve"))
        assert (ended.reason, ended.decision, ended.created_at) == ("asked at 9", "approve", asked.created_at)
        assert await project(opened, closed, again) == ended


async def test_the_row_of_a_review_does_not_depend_on_the_order_of_its_records(world: World) -> None:
    """Each record in a batch of its own, in every order; among them two of one offset, as one event may write them."""
    histories = {
        "open": [review(5), review(7, "retry"), review(7)],
        "moot": [review(5), review(7), review(7, "moot")],
        "late": [review(5), review(7, "retry"), review(7), review(9, "moot")],
    }
    orders = [(name, order) for name, records in histories.items() for order in permutations(records)]
    async with world.projecting():
        for turn in range(4):
            for number, (name, order) in enumerate(orders):
                if turn < len(order):
                    record = order[turn] | {"id": f"{name}-{number}"}
                    await world.append(world.topics.reviews, 0, out("w", record))
            await world.caught_up()
    found = await queries.reviews(world.sql)
    assert len(found) == len(orders)
    assert {row.created_at.timestamp() for row in found} == {(T0 + 7) / 1000}
    for name, wanted in (("open", (None, None, 7)), ("moot", ("moot", "ann", 7)), ("late", ("moot", "ann", 9))):
        same = [row for row in found if row.id.startswith(name)]
        assert {(row.reason, row.details["at"]) for row in same} == {("asked at 7", 7)}
        assert {(row.decision, row.decided_by, row.at_offset) for row in same} == {wanted}


async def test_a_review_whose_closing_comes_first_takes_what_that_has_until_the_opening_comes(world: World) -> None:
    async with world.projecting():
        await world.append(world.topics.reviews, 0, out("w", review(7, "approve")))
        await world.caught_up()
        (found,) = await queries.reviews(world.sql)
        assert (found.reason, found.details, found.input) == ("it was waiting for a decision", None, {"at": 7})
        await world.append(world.topics.reviews, 0, out("w", review(5)))
        await world.caught_up()
    (found,) = await queries.reviews(world.sql)
    assert (found.reason, found.details, found.decision, found.at_offset) == ("asked at 5", {"at": 5}, "approve", 7)


async def test_a_paused_workflow_shows_who_paused_it_and_which_signals_it_keeps(world: World) -> None:
    paused = {"who": "ann", "reason": "month's end", "at_ms": T0 + 3}
    signal = {"id": "s-1", "name": "paid", "at_ms": T0 + 4, "bytes": 90, "payload": {"amount": 3.0, "text": "a\0"}}
    partition = partition_of("w")

    async def project(topic: str, record: dict[str, Any]) -> queries.Workflow:
        await world.append(topic, partition, out("w", record))
        await world.caught_up()
        if "completeness" in record or "finished_ms" not in record:
            found = await fetch_rows(world.sql)
            assert differences(expected_rows("w", record, partition), found["w"]) == []
        details = await queries.show_workflow(world.sql, "w")
        assert details is not None
        return details.workflow

    checkpoints = world.topics.checkpoints
    async with world.projecting():
        found = await project(checkpoints, checkpoint(5, 1, paused=paused, signals=[signal, signal | {"id": "s-2"}]))
        assert found.paused == paused
        assert found.signals is not None and [kept["id"] for kept in found.signals] == ["s-1", "s-2"]
        assert found.signals[0]["payload"] == {"amount": 3, "text": "a\ufffd"}
        found = await project(checkpoints, checkpoint(6, 1, signals=[signal]))
        assert found.paused is None and found.signals is not None and len(found.signals) == 1
        await project(checkpoints, checkpoint(7, 1, paused=paused, signals=[signal]))
        # The stub says that it is over: nothing is paused any more, and nobody waits for a signal.
        found = await project(checkpoints, stub(9, "terminated"))
        assert (found.status, found.terminal, found.paused, found.signals) == ("terminated", True, None, None)
        found = await project(world.topics.results, result("w", 9, "terminated"))
        assert (found.paused, found.signals) == (None, None)


async def test_steps_that_await_say_until_when_and_have_no_agent(world: World) -> None:
    definition = Definition(
        name="order",
        steps=(
            Step(name="reserve", agent="stock"),
            Step(name="nap", needs=("reserve",), sleep=Sleep(ms=100)),
            Step(name="payment", needs=("nap",), wait_for=WaitFor(signal="paid", timeout_ms=1_000)),
            Step(name="approve", needs=("payment",), task=Task(title="Approve", timeout_ms=1_000)),
        ),
    )
    record = checkpoint(5, definition=definition.hash)
    # Far away, and no whole second: what a double holds of it is 8 microseconds too early.
    far_ms = 95_617_584_000_000 + 357
    record["steps"] = [
        {"name": "reserve", "status": "done", "attempt": 1},
        {"name": "nap", "status": "awaiting", "attempt": 1, "started_ms": T0, "until_ms": far_ms},
        {"name": "payment", "status": "awaiting", "attempt": 1, "started_ms": T0, "until_ms": TIME_MS_MAX},
        {"name": "approve", "status": "awaiting", "attempt": 1, "until_ms": T0 + 1_000, "escalated": True},
    ]
    partition = partition_of("w")
    async with world.projecting() as metrics:
        await world.append(world.topics.definitions, 0, Out(definition.hash.encode(), definition.encoded, []))
        await world.append(world.topics.checkpoints, partition, out("w", record))
        await world.caught_up()
        assert value_of(metrics.quarantined, topic=world.topics.definitions) == 0
    rows = await fetch_rows(world.sql)
    assert differences(expected_rows("w", record, partition), rows["w"]) == []
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert [(step.step, step.status, step.agent, step.escalated) for step in found.steps] == [
        ("reserve", "done", "stock", False),
        ("nap", "awaiting", None, False),
        ("payment", "awaiting", None, False),
        ("approve", "awaiting", None, True),
    ]
    until = [step.until_at for step in found.steps]
    assert until[0] is None and until[1] is not None and until[1].year == 5000
    assert until[2] is not None and until[2].year == 9999
    assert until[3] is not None and until[3].timestamp() == (T0 + 1_000) / 1000


# --- maps and budgets


async def test_the_items_of_a_map_are_shown_from_their_first_attempt_to_their_undoing(world: World) -> None:
    """Three items, of which one fails, which is tolerated; the step after them fails, and what they did is undone."""
    definition = saga(
        step("each", map={"over": from_input(), "tolerate": 1}, retry={"attempts": 1}, compensate={}, agent="reader"),
        step("last", "each", retry={"attempts": 1}, agent="writer"),
    )
    driver = Driver(definition)
    partition = partition_of(WORKFLOW)

    async def project() -> queries.WorkflowDetails:
        record = orjson.loads(driver.dumps()[WORKFLOW])
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, record))
        await world.caught_up()
        found = await fetch_rows(world.sql)
        assert differences(expected_rows(WORKFLOW, record, partition), found[WORKFLOW]) == []
        details = await queries.show_workflow(world.sql, WORKFLOW)
        assert details is not None
        return details

    await world.append(world.topics.definitions, 0, Out(definition.hash.encode(), definition.encoded, []))
    async with world.projecting():
        driver.start("saga", ["a", "b", "c"])
        details = await project()
        assert [(row.step, row.place, row.item, row.status, row.agent) for row in details.steps] == [
            ("each", 0, None, "running", "reader"),
            ("each[0]", 0, 0, "running", "reader"),
            ("each[1]", 0, 1, "running", "reader"),
            ("each[2]", 0, 2, "running", "reader"),
            ("last", 1, None, "waiting", "writer"),
        ]
        driver.done("each[2]", {"read": "C"}, tokens=700, cost=20)
        driver.fail("each[1]", message="bad file")
        details = await project()
        assert [row.status for row in details.steps] == ["running", "running", "failed", "done", "waiting"]
        assert details.steps[0].output is None
        driver.done("each[0]", {"read": "A"}, tokens=500)
        details = await project()
        each, first, second, third, last = details.steps
        assert (each.status, each.stand_in, each.output) == ("degraded", "items", [{"read": "A"}, None, {"read": "C"}])
        assert second.failures is not None and second.failures[-1]["message"] == "bad file"
        assert [(row.tokens, row.cost) for row in (each, first, second, third)] == [(0, 0), (500, 0), (0, 0), (700, 20)]
        assert (last.status, details.compensations, details.workflow.usage) == ("running", [], None)
        driver.fail("last")
        await project()
        driver.done("each[0]", undo=True)
        details = await project()
        assert [(row.step, row.place, row.item, row.status, row.undone_order) for row in details.compensations] == [
            ("each[0]", 0, 0, "done", 1),
            ("each[2]", 0, 2, "running", 2),
            ("each[1]", 0, 1, "not_needed", None),
            ("last", 1, None, "not_needed", None),
        ]
        ended = result_of(driver.done("each[2]", undo=True))
        await world.append(world.topics.results, partition, out(WORKFLOW, ended))
        # The stub, which says nothing of items.
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, orjson.loads(driver.dumps()[WORKFLOW])))
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert differences(expected_rows(WORKFLOW, ended, partition), found[WORKFLOW]) == []
    shown = await queries.show_workflow(world.sql, WORKFLOW)
    assert shown is not None
    assert (shown.workflow.status, shown.workflow.usage) == (
        "compensated",
        {"attempts": 4, "tokens": 1_200, "cost": 20},
    )
    assert [row.status for row in shown.compensations] == ["done", "done", "not_needed", "not_needed"]
    assert len(shown.steps) == 5


async def test_a_thousand_items_come_in_their_order_and_the_next_checkpoint_changes_one(world: World) -> None:
    partition = partition_of("w")
    record = checkpoint(5, 1)
    record["steps"][1]["items"] = [item(number) for number in range(ITEMS_MAX)]
    later = checkpoint(6, 1)
    later["steps"][1]["items"] = [
        item(number, **({"tokens": 11} if number == 7 else {})) for number in range(ITEMS_MAX)
    ]
    async with world.projecting() as metrics:
        await world.append(world.topics.checkpoints, partition, out("w", record))
        await world.caught_up()
        written = value_of(metrics.rows, table="step")
        await world.append(world.topics.checkpoints, partition, out("w", later))
        await world.caught_up()
        assert (written, value_of(metrics.rows, table="step")) == (ITEMS_MAX + 4, ITEMS_MAX + 5)
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert [row.item for row in found.steps] == [None, None, *range(ITEMS_MAX), None, None]
    assert found.steps[2 + 7].tokens == 11
    assert differences(expected_rows("w", later, partition), (await fetch_rows(world.sql))["w"]) == []


# --- what must not arrive, and in which order


async def test_records_of_an_aborted_transaction_do_not_exist(world: World) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.log.bootstrap, transactional_id=f"{world.topics.prefix}-aborts")
    await producer.start()
    try:
        await producer.begin_transaction()
        for number in range(5):
            key = f"ghost{number}"
            await producer.send_and_wait(
                world.topics.checkpoints, orjson.dumps(checkpoint(7)), key.encode(), partition_of(key)
            )
        async with world.projecting():
            await world.append(world.topics.results, 0, out("seen", result("seen", 1)))
            await world.caught_up()
            assert await world.query("SELECT workflow_id FROM workflows") == [("seen",)]
            await producer.abort_transaction()
            await world.commit(world.topics.checkpoints, [(f"w{n}", checkpoint(9)) for n in range(8)])
            await world.caught_up()
    finally:
        await producer.stop()
    assert await queries.counts_by_status(world.sql) == {"running": 8, "completed": 1}
    assert await world.query("SELECT count(*) FROM workflows WHERE workflow_id LIKE 'ghost%'") == [(0,)]


@pytest.mark.parametrize("first", ["result", "stub", "checkpoint"])
async def test_a_finished_workflow_stays_finished_in_whatever_order_its_records_come(world: World, first: str) -> None:
    partition = partition_of("w")
    records = {
        "result": (world.topics.results, out("w", result("w", 9))),
        "stub": (world.topics.checkpoints, out("w", stub(9))),
        "checkpoint": (world.topics.checkpoints, out("w", checkpoint(5, 2))),
    }
    async with world.projecting():
        for name in (first, *(name for name in records if name != first)):
            topic, record = records[name]
            await world.append(topic, partition, record)
            await world.caught_up()  # each in a batch of its own
        await world.append(world.topics.checkpoints, partition, records["checkpoint"][1], out("w", None))
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert differences(expected_rows("w", result("w", 9), partition), found["w"]) == []


async def test_a_stub_brings_the_end_and_takes_nothing_away(world: World) -> None:
    partition = partition_of("w")
    async with world.projecting():
        for record in (checkpoint(5, 2), stub(9, "degraded")):
            await world.append(world.topics.checkpoints, partition, out("w", record))
            await world.caught_up()
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert (found.workflow.status, found.workflow.at_offset, found.workflow.input) == ("degraded", 9, {"order": 5})
    assert [step.status for step in found.steps] == ["done", "done", "running", "waiting"]


async def test_a_stub_of_a_later_offset_leaves_what_only_the_result_had(world: World) -> None:
    partition = partition_of("w")
    async with world.projecting():
        await world.append(world.topics.results, partition, out("w", result("w", 9)))
        await world.caught_up()
        await world.append(world.topics.checkpoints, partition, out("w", stub(11)))
        await world.caught_up()
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    shown = found.workflow
    assert (shown.at_offset, shown.output, shown.completeness) == (11, {"total": 12.5}, 1.0)
    assert shown.usage == {"attempts": 4, "tokens": 1_200, "cost": 35}


CHANGES: list[dict[str, Any]] = [
    {"status": "backing_off"},
    {"attempt": 7},
    {"agent": "other"},
    {"started_ms": T0 + 77},
    {"finished_ms": T0 + 77},
    {"order": 7},
    {"retry_at_ms": T0 + 77},
    {"failed_attempts": 7},
    {"failures": [{"kind": "transient", "message": "no", "at_ms": T0}]},
]
STEP_CHANGES = [
    *CHANGES,
    {"unknown": True},
    {"stand_in": "default"},
    {"output": {"ref": 7}},
    {"until_ms": T0 + 77},
    {"escalated": True},
    {"tokens": 7},
    {"cost": 10**14},
]


async def test_every_single_change_of_a_step_or_of_the_ledger_arrives(world: World) -> None:
    undo = {"status": "running", "attempt": 1, "order": 1, "started_ms": T0}

    def before(at_offset: int) -> dict[str, Any]:
        record = checkpoint(at_offset, 1, status="compensating")
        record["steps"][1]["undo"] = dict(undo)
        record["steps"][2]["name"] = "charge-all"
        record["steps"][2]["items"] = [{**item(0), "name": "charge-all[0]", "undo": dict(undo)}]
        return record

    changed: dict[str, dict[str, Any]] = {}
    for change in STEP_CHANGES:
        changed[f"step-{next(iter(change))}"] = record = before(6)
        record["steps"][1] |= change
        changed[f"item-{next(iter(change))}"] = record = before(6)
        record["steps"][2]["items"][0] |= change
    for change in CHANGES:
        changed[f"item-undo-{next(iter(change))}"] = record = before(6)
        record["steps"][2]["items"][0]["undo"] |= change
        changed[f"undo-{next(iter(change))}"] = record = before(6)
        record["steps"][1]["undo"] |= change
    changed["place"] = record = before(6)
    record["steps"].reverse()
    async with world.projecting():
        await world.commit(world.topics.checkpoints, ((key, before(5)) for key in changed))
        await world.caught_up()
        await world.commit(world.topics.checkpoints, changed.items())
        await world.caught_up()
    found = await fetch_rows(world.sql)
    for key, record in changed.items():
        assert differences(expected_rows(key, record, partition_of(key)), found[key]) == [], key


async def test_an_id_that_is_used_again_keeps_nothing_of_its_earlier_run(world: World) -> None:
    partition = partition_of("w")
    again = checkpoint(50, 0, started_ms=T0 + 10**6, now_ms=T0 + 10**6)
    again["steps"] = again["steps"][:1]
    earlier = result("w", 9)
    earlier["steps"][0]["undo"] = {"status": "not_needed", "attempt": 0}
    undone = {"status": "done", "attempt": 1, "order": 1}
    earlier["steps"][1]["items"] = [item(number, undo=undone) for number in range(3)]
    async with world.projecting():
        await world.append(world.topics.results, partition, out("w", earlier))
        await world.caught_up()
        assert await world.query("SELECT count(item), count(*) FROM steps") == [(3, 7)]
        assert await world.query("SELECT count(item), count(*) FROM compensations") == [(3, 4)]
        await world.append(world.topics.checkpoints, partition, out("w", again))
        await world.caught_up()
        found = await fetch_rows(world.sql)
        assert differences(expected_rows("w", again, partition), found["w"]) == []
        # What is older stays without effect: the earlier run's result, read once more.
        await world.append(world.topics.results, partition, out("w", earlier))
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert differences(expected_rows("w", again, partition), found["w"]) == []


async def test_bad_records_go_to_quarantine_and_stop_nothing(world: World) -> None:
    long_name = "".join(f"{zlib.crc32(bytes([n % 256, n // 256])):08x}" for n in range(1_500))
    bad = [
        Out(b"w1", b"not json", []),
        Out(b"w2", b'{"n": NaN}', []),
        Out(b"w3", b'{"n": 1e400}', []),
        Out(b"\xff\xfe", orjson.dumps(checkpoint(1)), []),
        out("w4", {**checkpoint(1), "status": "dreaming"}),
        # Fits every check, but is too long for PostgreSQL's index: found by halving.
        out("w5", {**checkpoint(1), "name": long_name}),
    ]
    good = [out(f"good{number}", checkpoint(number + 1)) for number in range(40)]
    records = [*good[:20], *bad, *good[20:]]
    await world.append(world.topics.checkpoints, 2, *records)
    async with world.projecting() as metrics:
        await world.caught_up()
    assert await queries.counts_by_status(world.sql) == {"running": 40}
    assert value_of(metrics.quarantined, topic=world.topics.checkpoints) == len(bad)
    reader = await world.log.read({TopicPartition(world.topics.quarantine, 0): None}, committed=True)
    found: dict[str, Any] = {}
    while len(found) < len(bad):
        polled = await reader.poll(5_000, 100)
        assert polled, f"only {sorted(found)} are in quarantine"
        for messages in polled.values():
            for message in messages:
                found[(message.key or b"").decode()] = orjson.loads(message.value or b"")
    await reader.close()
    assert set(found) == {f"{world.topics.checkpoints}/2/{offset}" for offset in range(20, 26)}
    assert found[f"{world.topics.checkpoints}/2/20"]["reason"].startswith("value: is not JSON")
    assert "index" in found[f"{world.topics.checkpoints}/2/25"]["reason"]


async def test_nul_is_stored_as_the_replacement_character(world: World) -> None:
    record = checkpoint(5, 1, input={"a\0": "x\0y"}, correlation_id="c\0")
    record["steps"][0]["output"] = ["\0"]
    await world.append(world.topics.checkpoints, 0, out("w", record))
    async with world.projecting() as metrics:
        await world.caught_up()
    details = await queries.show_workflow(world.sql, "w")
    assert details is not None
    assert (details.workflow.input, details.workflow.correlation_id) == ({"a\ufffd": "x\ufffdy"}, "c\ufffd")
    assert details.steps[0].output == ["\ufffd"]
    assert value_of(metrics.altered, topic=world.topics.checkpoints) == 1


# --- trouble


async def test_records_that_are_read_twice_change_nothing(world: World) -> None:
    await write_everything(world)
    async with world.projecting():
        await world.caught_up()
    before = await world.dump()
    await world.query("UPDATE position SET next_offset = 0")
    async with world.projecting() as metrics:
        await world.caught_up()
        assert value_of(metrics.records) > 100
    assert await world.dump() == before


async def test_a_dropped_schema_is_made_and_filled_again_by_a_running_projector(world: World) -> None:
    await write_everything(world)
    async with world.projecting() as metrics:
        await world.caught_up()
        before = await world.dump()
        assert before["workflow"] and before["step"]
        await world.query(f'DROP SCHEMA "{world.sql.schema}" CASCADE')
        await world.caught_up()
        assert value_of(metrics.reconnects, what="postgres") >= 1
    assert await world.dump() == before


async def test_killing_postgresql_in_mid_flow_loses_nothing(world: World, stack: Any) -> None:
    ids = [f"w{number:04}" for number in range(3_000)]
    async with world.projecting(batch_records_max=100) as metrics:
        for version in (1, 2):
            records = ((key, checkpoint(version * 10_000 + n, version)) for n, key in enumerate(ids))
            await world.commit(world.topics.checkpoints, records)

            async def begun(at_least: int = 3_000 * version - 2_500) -> bool:
                return value_of(metrics.records) >= at_least

            await until(begun, "the projector to be in the middle")
            await asyncio.to_thread(stack.postgres_server.kill)
            assert value_of(metrics.records) < 3_000 * version, "killed too late to prove anything"
            await until(_connected(metrics, 0), "the projector to notice")
            await asyncio.to_thread(stack.postgres_server.start)
        await world.caught_up()
        assert value_of(metrics.reconnects, what="postgres") >= 2
    await world.sql.open()
    found = await fetch_rows(world.sql)
    assert len(found) == len(ids)
    for number, key in enumerate(ids):
        wanted = expected_rows(key, checkpoint(20_000 + number, 2), partition_of(key))
        assert differences(wanted, found[key]) == []


def _connected(metrics: ProjectionMetrics, value: int) -> Callable[[], Awaitable[bool]]:
    async def connected() -> bool:
        return value_of(metrics.connected) == value

    return connected


async def test_killing_kafka_loses_nothing(world: World, stack: Any) -> None:
    async with world.projecting():
        await world.commit(world.topics.checkpoints, [("w1", checkpoint(5))])
        await world.caught_up()
        await asyncio.to_thread(stack.kafka.kill)
        await asyncio.to_thread(stack.kafka.start)
        await world.commit(world.topics.checkpoints, [("w1", checkpoint(8, 2)), ("w2", checkpoint(9))])
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert differences(expected_rows("w1", checkpoint(8, 2), partition_of("w1")), found["w1"]) == []
    assert len(found) == 2


async def test_two_projectors_share_the_work_and_one_takes_over_from_the_other(world: World) -> None:
    ids = [f"w{number:03}" for number in range(400)]

    async def write(version: int) -> None:
        records = ((key, checkpoint(version * 1_000 + n, version)) for n, key in enumerate(ids))
        await world.commit(world.topics.checkpoints, records)

    async with world.projecting() as one:
        await write(1)
        await world.caught_up()
        async with world.projecting() as two:
            await until(_connected(two, 1), "the second to join")
            for _ in range(20):
                await write(2)
                await world.caught_up()
                if value_of(two.records):
                    break
            assert value_of(two.records) > 0, "the second got nothing to do"
        before = value_of(one.records)
        await write(3)
        await world.caught_up()
        assert value_of(one.records) - before >= len(ids)
    found = await fetch_rows(world.sql)
    for number, key in enumerate(ids):
        assert differences(expected_rows(key, checkpoint(3_000 + number, 3), partition_of(key)), found[key]) == []


async def test_a_zombie_changes_neither_rows_nor_positions(world: World) -> None:
    """A projector believes to be at offset 0 of a partition in which another one has moved on."""
    zombie_sql = PostgresSql(world.conninfo, prefix=world.topics.prefix)
    zombie, _ = world.projector(sql=zombie_sql)
    partition = TopicPartition(world.topics.checkpoints, 1)
    await world.append(*partition, out("w", checkpoint(5)))
    async with world.projecting():
        await world.caught_up()
    later = Batch(world.topics)
    later.add(Unseen(*partition, 0, b"ghost", orjson.dumps(checkpoint(6))))
    await zombie_sql.open()
    await zombie_sql.migrate()
    zombie._positions = {partition: 0}
    before = await world.query("SELECT * FROM position ORDER BY 1, 2"), await world.dump()
    with pytest.raises(PositionMoved):
        await zombie._commit(later, None)  # type: ignore[arg-type] # nothing is rejected, so nothing is produced
    assert (await world.query("SELECT * FROM position ORDER BY 1, 2"), await world.dump()) == before
    # From the right place the same batch goes through: it was the position that held it back.
    zombie._positions = {partition: 1}
    later.next[partition] = 2
    await zombie._commit(later, None)  # type: ignore[arg-type]
    assert await world.query("SELECT workflow_id FROM workflows ORDER BY 1") == [("ghost",), ("w",)]
    await zombie_sql.close()


async def test_a_projector_whose_position_somebody_moved_reads_positions_again(world: World) -> None:
    partition = partition_of("w")
    async with world.projecting() as metrics:
        await world.append(world.topics.checkpoints, partition, *(out(f"w{n}", checkpoint(n + 1)) for n in range(10)))
        await world.caught_up()
        await world.query("UPDATE position SET next_offset = 0; DELETE FROM workflow; DELETE FROM step")
        await world.append(world.topics.checkpoints, partition, out("w", checkpoint(99)))
        await world.caught_up()
        assert value_of(metrics.stale) >= 1
        assert value_of(metrics.reconnects, what="postgres") == 0
    assert await queries.counts_by_status(world.sql) == {"running": 11}


async def test_a_database_ahead_of_the_log_needs_a_person(world: World) -> None:
    async with world.projecting():
        await world.caught_up()
    await world.query(
        f"UPDATE position SET next_offset = 1000 WHERE topic = '{world.topics.results}' AND partition = 0"
    )
    projector, _ = world.projector()
    with pytest.raises(PositionLost, match=f"{world.topics.results}/0 ends at offset 0, but the projection is at 1000"):
        await asyncio.wait_for(projector.run(asyncio.Event()), WAIT_S_MAX)


async def test_a_cancelled_projector_leaves_its_group_and_its_connection(world: World) -> None:
    projector, metrics = world.projector()
    running = asyncio.create_task(projector.run(asyncio.Event()))
    await until(_connected(metrics, 1), "the projector to connect")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    name = f"sagalog {world.topics.prefix}"

    async def gone() -> bool:
        text = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
        return await world.query(text) == [(1,)]  # the test's own

    await until(gone, "the connection to be gone")


# --- migrations


async def test_many_migrate_at_once_and_one_does_it(world: World) -> None:
    many = [PostgresSql(world.conninfo, prefix=world.topics.prefix) for _ in range(5)]
    for sql in many:
        await sql.open()
    await asyncio.gather(*(sql.migrate() for sql in many))
    await asyncio.gather(*(sql.close() for sql in many))
    assert await world.query("SELECT version, name FROM schema_migrations ORDER BY 1") == [
        (1, "tables"), (2, "views"), (3, "people"), (4, "items"), (5, "identity"), (6, "migrated"), (7, "rewind"),
        (8, "schedules"), (9, "children"),
    ]  # fmt: skip


async def test_a_changed_migration_is_an_error_and_changes_nothing(world: World) -> None:
    await world.sql.migrate()
    first, *rest = load_migrations()
    for migrations, problem in (
        ([replace(first, text=first.text + "\n"), *rest], "001_tables is not what was applied"),
        ([first], "is at migration 002, which this version of sagalog does not know"),
    ):
        with pytest.raises(MigrationError, match=problem):
            async with world.sql.transaction() as transaction:
                await migrate(transaction, world.sql.schema, world.topics.prefix, migrations)
    more = replace(first, version=len(rest) + 2, name="broken", text="CREATE TABLE extra (a integer); SELECT nonsense")
    with pytest.raises(SqlError, match="nonsense"):
        async with world.sql.transaction() as transaction:
            await migrate(transaction, world.sql.schema, world.topics.prefix, [first, *rest, more])
    assert await world.query("SELECT to_regclass('extra'), count(*) FROM schema_migrations") == [(None, len(rest) + 1)]


async def test_a_database_of_version_2_keeps_its_rows_and_what_was_built_on_its_views(world: World) -> None:
    async with world.sql.transaction() as transaction:
        await migrate(transaction, world.sql.schema, world.topics.prefix, load_migrations()[:2])
    at = f"to_timestamp({T0 // 1000})"
    await world.query(
        "INSERT INTO workflow (workflow_id, name, definition, status, terminal, partition, at_offset, rank, started_at, updated_at)"
        f" VALUES ('w', 'order', 'd', 'running', false, {partition_of('w')}, 3, 2, {at}, {at});"
        "INSERT INTO step (workflow_id, step, place, status, attempt, unknown, failed_attempts)"
        " VALUES ('w', 'pay', 0, 'running', 1, false, 0);"
        "INSERT INTO review (id, workflow_id, definition, name, step, kind, reason, details, input, partition, at_offset,"
        f" created_at) VALUES ('w/pay/task', 'w', 'd', 'order', 'pay', 'task', 'asked', '7', '8', {partition_of('w')}, 5, {at});"
        "CREATE VIEW built AS SELECT r.id, s.status FROM reviews r JOIN steps s USING (workflow_id)"
    )
    await world.sql.migrate()
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert (found.workflow.paused, found.workflow.signals) == (None, None)
    assert [(step.until_at, step.escalated) for step in found.steps] == [(None, False)]
    assert [review.id for review in await queries.reviews(world.sql, open_only=True)] == ["w/pay/task"]
    async with world.projecting():
        # Closed now, the row of before keeps what was asked.
        await world.append(world.topics.reviews, partition_of("w"), out("w", review(9, "approve")))
        await world.caught_up()
    (row,) = await queries.reviews(world.sql)
    assert (row.reason, row.details, row.input, row.decision, row.at_offset) == ("asked", 7, 8, "approve", 9)
    assert row.created_at.timestamp() == T0 / 1000
    assert await queries.reviews(world.sql, open_only=True) == []
    assert await world.query("SELECT * FROM built") == [("w/pay/task", "running")]


async def test_a_database_of_version_3_keeps_its_rows_and_gains_the_items_with_the_next_record(world: World) -> None:
    async with world.sql.transaction() as transaction:
        await migrate(transaction, world.sql.schema, world.topics.prefix, load_migrations()[:3])
    at, partition = f"to_timestamp({T0 // 1000})", partition_of("w")
    await world.query(
        "INSERT INTO workflow (workflow_id, name, definition, status, terminal, partition, at_offset, rank, started_at, updated_at)"
        f" VALUES ('w', 'order', 'd', 'compensating', false, {partition}, 3, 2, {at}, {at});"
        "INSERT INTO step (workflow_id, step, place, status, attempt, unknown, failed_attempts)"
        " VALUES ('w', 'reserve', 0, 'done', 1, false, 0), ('w', 'charge', 1, 'running', 1, false, 0);"
        "INSERT INTO compensation (workflow_id, step, place, status, attempt, failed_attempts)"
        " VALUES ('w', 'reserve', 0, 'pending', 0, 0);"
        "CREATE VIEW built AS SELECT w.status, s.step, c.status AS undone FROM workflows w JOIN steps s USING (workflow_id)"
        " LEFT JOIN compensations c USING (workflow_id, step)"
    )
    await world.sql.migrate()
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None and found.workflow.usage is None
    assert [(row.step, row.item, row.tokens, row.cost) for row in found.steps] == [
        ("reserve", None, 0, 0), ("charge", None, 0, 0),
    ]  # fmt: skip
    assert [(row.step, row.item) for row in found.compensations] == [("reserve", None)]
    record = checkpoint(9, 1, status="compensating")
    record["steps"][1]["items"] = [item(0), item(1, undo={"status": "running", "attempt": 1, "order": 1})]
    async with world.projecting():
        await world.append(world.topics.checkpoints, partition, out("w", record))
        await world.caught_up()
    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert [(row.step, row.tokens) for row in found.steps][:4] == [
        ("reserve", 0), ("charge", 0), ("charge[0]", 10), ("charge[1]", 10),
    ]  # fmt: skip
    assert await world.query("SELECT step, undone FROM built WHERE undone IS NOT NULL ORDER BY step") == [
        ("charge[1]", "running"), ("reserve", "pending"),
    ]  # fmt: skip


async def test_a_schema_belongs_to_one_prefix_and_two_prefixes_to_two_schemas(world: World) -> None:
    await world.sql.migrate()
    other = PostgresSql(world.conninfo, prefix=f"{world.topics.prefix}.other")
    assert other.schema != world.sql.schema
    await other.open()
    await other.migrate()
    await other.close()
    thief = PostgresSql(world.conninfo, prefix="thief", schema=world.sql.schema)
    await thief.open()
    with pytest.raises(MigrationError, match=f"holds the projection of the prefix '{world.topics.prefix}'"):
        await thief.migrate()
    await thief.close()


async def test_errors_say_what_to_do(world: World) -> None:
    nowhere = PostgresSql("postgresql://x:y@127.0.0.1:1/z", prefix="x")
    with pytest.raises(SqlUnavailable, match="start PostgreSQL, or correct SAGALOG_POSTGRES"):
        await nowhere.open()
    with pytest.raises(SqlUnavailable, match="open one first"):
        async with nowhere.transaction():
            pass
    with pytest.raises(SqlError, match="start a projector, which makes it"):
        await queries.counts_by_status(world.sql)
    await world.sql.migrate()
    with pytest.raises(SqlRefused):
        async with world.sql.transaction() as transaction:
            await transaction.copy("staging_definition", ("hash",), [("\0",)])
    assert await queries.counts_by_status(world.sql) == {}


async def test_a_schedule_is_a_row_that_verify_compares_and_that_goes_when_it_is_forgotten(world: World) -> None:
    key = "@schedule/daily"
    record: dict[str, Any] = {
        "v": 1, "name": "daily", "status": "active", "definition": "order", "cron": "0 9 * * *", "zone": "Europe/Berlin",
        "overlap": "skip", "catch_up_ms": 60_000, "seed": "s", "set_by": "ann", "set_ms": T0, "now_ms": T0 + 5, "at_offset": 7,
        "input": {"n": 1.0}, "next_ms": T0 + 1_000, "started": 2, "skipped": {"overlap": 1}, "heard": ["e"],
        "runs": [{"id": "daily/1", "due_ms": T0, "started_ms": T0, "status": "running", "token": "secret"}],
        "skips": [{"due_ms": T0, "why": "overlap"}],
    }  # fmt: skip
    rows = ProjectedRows(world.sql)
    async with world.projecting():
        await world.commit(world.topics.checkpoints, [(key, record), (key, {**record, "at_offset": 9, "started": 3})])
        await world.caught_up()
        (found,) = await queries.schedules(world.sql, name="daily")
        assert (found.started, found.running, found.skipped, found.input) == (3, 1, {"overlap": 1}, {"n": 1})
        assert found.runs == [{"id": "daily/1", "due_ms": T0, "started_ms": T0, "status": "running"}]
        assert found.next_at is not None and found.next_at.timestamp() * 1000 == T0 + 1_000

        expected = {key: {**record, "at_offset": 9, "started": 3}}
        assert (await rows.differences(expected, partition_of(key))).compared == 1
        wrong = await rows.differences({key: {**expected[key], "cron": "* * * * *"}}, partition_of(key))
        assert wrong.differences and "schedule.cron" in wrong.differences[0]
        assert (await rows.differences({key: {**record, "at_offset": 10}}, 0)).behind == 1
        assert (await rows.differences({key: record}, 0)).newer == 1
        assert (await rows.differences({"@schedule/other": {**record, "name": "other"}}, 0)).behind == 1

        await world.commit(world.topics.checkpoints, [(key, None)])
        await world.caught_up()
        assert await queries.schedules(world.sql) == []
