"""The watch on a real Kafka: rates, alerts, repeated and unreadable records, restarts, take-over, and a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from sagalog.engine.watch.app import run_watch
from sagalog.engine.watch.compat import STOP_TIMEOUT_S
from sagalog.engine.watch.metrics import WatchMetrics
from sagalog.schemas import records
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.records import HealthRecord
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Consumer, Out, Producer, TopicPartition, header
from sagalog.topics.specs import Topics, all_specs

from ..conftest import Stack

pytestmark = pytest.mark.stack

WINDOW_MS = 6_000
PUBLISH_MS = 100
START_S = 30.0
"""A take-over waits for the session of a member that is gone."""
SEEN_S = 10.0
STOP_S = STOP_TIMEOUT_S + 5.0  # what the watch allows Faust, and its own end


def outcome(at_offset: int, *, service: str = "ocr", partition: int = 0, **agents: list[int]) -> Out:
    record: records.OutcomeRecord = {
        "service": service,
        "partition": partition,
        "at_offset": at_offset,
        "calls": [],
        "agents": agents,
    }
    return Out(service.encode(), encode(record), [("ce_type", records.TYPE_OUTCOME.encode())])


def result(name: str, status: str) -> Out:
    value = encode({"workflow_id": "w", "name": name, "status": status})
    return Out(b"w", value, [("ce_type", records.TYPE_RESULT.encode())])


class Watching:
    """A watch that runs."""

    def __init__(self, bootstrap: str, topics: Topics, window_ms: int = WINDOW_MS) -> None:
        self.metrics = WatchMetrics()
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(
            run_watch(
                bootstrap, topics.prefix, self.stop, window_ms=window_ms, publish_ms=PUBLISH_MS, metrics=self.metrics
            )
        )

    def value(self, name: str, /, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"sagalog_watch_{name}", labels) or 0.0

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                assert not self.task.done(), f"the watch ended; {what}: {self.task!r}"
                await asyncio.sleep(0.02)

    async def is_watching(self) -> None:
        await self.until(lambda: self.value("watching") == 1, START_S, "it does not watch")

    async def close(self) -> None:
        self.stop.set()
        async with asyncio.timeout(STOP_S):
            await self.task


@contextlib.asynccontextmanager
async def watching(stack: Stack, topics: Topics, window_ms: int = WINDOW_MS) -> AsyncIterator[Watching]:
    watch = Watching(stack.bootstrap, topics, window_ms)
    try:
        await watch.is_watching()
        yield watch
    finally:
        await watch.close()


class Health:
    """Reads `health` as anybody would."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.all: list[HealthRecord] = []
        self.messages: list[Any] = []

    async def until(self, condition: Callable[[HealthRecord], bool], seconds: float = SEEN_S) -> HealthRecord:
        """The first record from here on of which the condition is true."""
        async with asyncio.timeout(seconds):
            while True:
                for messages in (await self._consumer.poll(50, 100)).values():
                    for message in messages:
                        record: HealthRecord = decode_object(message.value)  # type: ignore[assignment]
                        self.all.append(record)
                        self.messages.append(message)
                        if condition(record):
                            return record


@pytest.fixture
async def health(log: KafkaLog, provisioned: Topics) -> AsyncIterator[Health]:
    consumer = await log.read({TopicPartition(provisioned.health, 0): None}, committed=False)
    yield Health(consumer)
    await consumer.close()


@pytest.fixture
async def producer(log: KafkaLog) -> AsyncIterator[Producer]:
    producer = await log.producer("test")
    yield producer
    await producer.close()


def alerts(caplog: pytest.LogCaptureFixture, what: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if f"alert {what}" in record.getMessage()]


def of(agent: str, ok: int, failed: int) -> Callable[[HealthRecord], bool]:
    return lambda record: (record["agent"], record["ok"], record["failed"]) == (agent, ok, failed)


async def test_rates_are_kept_and_an_alert_is_raised_and_cleared(
    stack: Stack, provisioned: Topics, producer: Producer, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with watching(stack, provisioned) as watch:
        await producer.append(provisioned.outcomes, 0, [outcome(1, reader=[18, 1], ledger=[2, 1])])
        # The same agent's calls in another partition: one watch sees both.
        await producer.append(provisioned.outcomes, 1, [outcome(1, service="other", reader=[0, 1])])
        record = await health.until(of("reader", 18, 2))
        assert record["error_rate"] == 0.1
        assert record["alert"] is True
        assert record["window_ms"] == WINDOW_MS
        assert record["since_ms"] == record["at_ms"]
        assert watch.value("alert", agent="reader") == 1
        assert watch.value("error_rate", agent="reader") == 0.1
        assert watch.value("alert", agent="ledger") == 0, "one failure of three calls proves nothing"

        message = health.messages[-1]
        assert message.key == b"reader"
        assert header(message.headers, "ce_type") == records.TYPE_HEALTH.encode()
        assert header(message.headers, "ce_specversion") == b"1.0"
        assert header(message.headers, "content-type") == b"application/json"

        cleared = await health.until(lambda record: record["agent"] == "reader" and not record["alert"], 15)
        assert (cleared["ok"], cleared["failed"], cleared["error_rate"]) == (0, 0, 0.0)
        assert cleared["since_ms"] == cleared["at_ms"] > record["at_ms"]
        # The calls are in the window for 5.5 to 6 s, then the rate must be low for 1 s.
        assert 6_000 <= cleared["since_ms"] - record["since_ms"] <= 8_500
        await watch.until(lambda: watch.value("alert", agent="reader") == 0, 2, "the gauge shows the alert")

    raised, ended = alerts(caplog, "raised"), alerts(caplog, "cleared")
    assert [record.levelno for record in raised] == [logging.WARNING]
    assert "agent reader: error rate 10.0 % (2 of 20 calls failed in the last 6 s" in raised[0].getMessage()
    assert [record.levelno for record in ended] == [logging.INFO]


async def test_an_alert_is_cleared_when_calls_succeed_again(
    stack: Stack, provisioned: Topics, producer: Producer, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with watching(stack, provisioned):
        await producer.append(provisioned.outcomes, 0, [outcome(1, reader=[10, 10])])
        await health.until(lambda record: record["alert"])
        await producer.append(provisioned.outcomes, 0, [outcome(2, reader=[990, 0])])
        cleared = await health.until(lambda record: not record["alert"], 4)
        assert (cleared["ok"], cleared["failed"]) == (1_000, 10), "the calls are still in the window"
    assert len(alerts(caplog, "raised")) == len(alerts(caplog, "cleared")) == 1


async def test_records_that_cannot_be_read_are_passed_over_and_repeated_ones_count_once(
    stack: Stack, provisioned: Topics, producer: Producer, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    ours = [("ce_type", records.TYPE_OUTCOME.encode())]
    sent: Sequence[Out] = [
        Out(b"ocr", b"{nonsense", ours),
        Out(b"ocr", None, ours),
        Out(None, b"\xff\xfe\x00", []),
        Out(b"ocr", encode({"service": "ocr", "partition": 0, "at_offset": 1, "agents": {"reader": "many"}}), ours),
        Out(b"ocr", b'{"not":"ours"}', [("ce_type", b"sagalog.timer-fired.v1")]),
        outcome(7, reader=[2, 1]),
        outcome(7, reader=[2, 1]),
        outcome(5, reader=[9, 9]),
        outcome(8, reader=[1, 0]),
    ]
    async with watching(stack, provisioned) as watch:
        await producer.append(provisioned.outcomes, 0, sent)
        await health.until(of("reader", 3, 1))
        counted = {
            what: watch.value("records_total", topic="outcomes", result=what)
            for what in ("unreadable", "other", "counted", "repeated")
        }
        assert counted == {"unreadable": 4, "other": 1, "counted": 2, "repeated": 2}
    complaints = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(complaints) == 1, "one line, whatever the number"
    assert f"{provisioned.outcomes}/0/0 cannot be read and is passed over" in complaints[0]


async def test_a_restart_keeps_the_window_and_the_alert(
    stack: Stack, provisioned: Topics, producer: Producer, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(stack, provisioned, 60_000):
        await producer.append(provisioned.outcomes, 0, [outcome(10, reader=[30, 10])])
        before = await health.until(lambda record: record["alert"])
    # While nobody watches: new calls, and some of the old ones sent again.
    await producer.append(provisioned.outcomes, 0, [outcome(10, reader=[30, 10]), outcome(11, reader=[2, 0])])
    async with watching(stack, provisioned, 60_000):
        after = await health.until(of("reader", 32, 10))
        assert after["alert"] and after["since_ms"] == before["since_ms"]
    assert len(alerts(caplog, "raised")) == 1
    # Nothing was written from a window that was only half read.
    assert [(record["ok"], record["failed"]) for record in health.all] == [(30, 10), (32, 10)]


async def test_one_of_two_watches_and_the_other_takes_over(
    stack: Stack, provisioned: Topics, producer: Producer, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(stack, provisioned, 60_000) as first:
        second = Watching(stack.bootstrap, provisioned, 60_000)
        try:
            # The group has taken the second in when the first was given everything anew.
            await producer.append(provisioned.outcomes, 0, [outcome(1, reader=[30, 10])])
            await health.until(of("reader", 30, 10), START_S)
            await asyncio.sleep(5)
            assert (first.value("watching"), second.value("watching")) == (1, 0)
            await producer.append(provisioned.outcomes, 1, [outcome(1, service="other", reader=[1, 0])])
            record = await health.until(of("reader", 31, 10), START_S)
            assert second.value("calls", agent="reader", result="ok") == 0
            await first.close()
            assert first.value("calls", agent="reader", result="ok") == 0, "two must not show the same agent"
            await second.is_watching()
            await producer.append(provisioned.outcomes, 1, [outcome(2, service="other", reader=[0, 100])])
            after = await health.until(lambda record: record["failed"] >= 100, START_S)
            assert after["since_ms"] == record["since_ms"]
        finally:
            await second.close()
    assert len(alerts(caplog, "raised")) == 1


async def test_finished_workflows_are_counted_once_over_restarts(
    stack: Stack, provisioned: Topics, producer: Producer
) -> None:
    labels = {"name": "invoice", "status": "completed"}
    async with watching(stack, provisioned) as watch:
        await producer.append(provisioned.results, 3, [result("invoice", "completed"), Out(b"w", b"?", [])])
        await producer.append(provisioned.results, 0, [result("invoice", "failed"), result("any-name", "rejected")])
        await watch.until(lambda: watch.value("workflows_finished_total", **labels) == 1, SEEN_S, "not counted")
        await watch.until(
            lambda: watch.value("workflows_finished_total", name="-", status="rejected") == 1, SEEN_S, "not counted"
        )
        assert watch.value("records_total", topic="results", result="unreadable") == 1
    await producer.append(provisioned.results, 3, [result("invoice", "completed")] * 2)
    async with watching(stack, provisioned) as watch:
        await watch.until(lambda: watch.value("workflows_finished_total", **labels) == 2, SEEN_S, "not counted")


async def test_a_stop_leaves_nothing_behind(
    stack: Stack, log: KafkaLog, provisioned: Topics, producer: Producer
) -> None:
    await producer.append(provisioned.outcomes, 0, [outcome(1, reader=[1, 0])])
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = (logging.getLogger().level, list(logging.getLogger().handlers))
    watch = Watching(stack.bootstrap, provisioned, 60_000)
    await watch.is_watching()
    await watch.until(lambda: watch.value("health_records_total", result="ok") == 1, SEEN_S, "nothing is written")
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == root
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    await watch.close()
    assert asyncio.all_tasks() - tasks <= {watch.task}
    assert set(threading.enumerate()) <= threads

    admin = await log._administrator()
    ours = {name for name in await admin.list_topics() if name.startswith(provisioned.prefix)}
    assert ours == set(await log.describe_names([provisioned.name(spec) for spec in all_specs()])), "Faust made topics"
    partitions = [TopicPartition(provisioned.outcomes, number) for number in range(2)]
    assert await log.committed(f"{provisioned.prefix}-watch", partitions) == {}


async def test_a_stop_while_starting_ends_it(stack: Stack, provisioned: Topics) -> None:
    for wait_s in (0.0, 0.2, 0.6, 1.2):
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        watch = Watching(stack.bootstrap, provisioned)
        await asyncio.sleep(wait_s)
        await watch.close()
        assert asyncio.all_tasks() - tasks <= {watch.task}
        assert set(threading.enumerate()) <= threads


async def test_missing_topics_are_waited_for_and_named(
    stack: Stack, topics: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watching(stack.bootstrap, topics)
    await watch.until(lambda: "topics are missing" in caplog.text, SEEN_S, "it does not say so")
    assert topics.outcomes in caplog.text
    await watch.close()


async def test_a_broker_that_comes_back_is_watched_again(
    stack: Stack, provisioned: Topics, producer: Producer, log: KafkaLog, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(stack, provisioned) as watch:
        await producer.append(provisioned.outcomes, 0, [outcome(1, reader=[1, 0])])
        await watch.until(lambda: watch.value("calls", agent="reader", result="ok") == 1, SEEN_S, "not counted")
        await asyncio.to_thread(stack.kafka.kill)
        await asyncio.sleep(2)
        await asyncio.to_thread(stack.kafka.start)
        again = await log.producer("again")
        try:
            await again.append(provisioned.outcomes, 0, [outcome(2, reader=[50, 0])])
            await watch.until(lambda: watch.value("calls", agent="reader", result="ok") >= 50, 60, "not counted")
        finally:
            await again.close()
