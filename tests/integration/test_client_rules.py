"""What the Kafka client does that one would not expect, and that our adapter and runtime stand it. On the real broker.

The numbers are those of the design's list of rules.
"""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.kafka import TRANSACTION_TIMEOUT_MS, KafkaLog
from sagalog.topics.log import Fenced, LogError, Out, ProducerBroken, RecordTooLarge, TopicPartition
from sagalog.topics.specs import Topics

from .system import System, eventually

ONE = Definition(name="one", steps=(Step(name="only", agent="worker"),))


async def _topic(log: KafkaLog, topics: Topics, name: str, **config: str) -> TopicPartition:
    topic = f"{topics.prefix}.{name}"
    await log.create({topic: (1, 1, {key.replace("_", "."): value for key, value in config.items()})})
    return TopicPartition(topic, 0)


async def _read(log: KafkaLog, partition: TopicPartition, *, committed: bool = True) -> list[bytes | None]:
    reader = await log.read({partition: None}, committed=committed)
    try:
        end = (await reader.end_offsets([partition]))[partition]
        found: list[bytes | None] = []
        while await reader.position(partition) < end:
            for messages in (await reader.poll(200, 100)).values():
                found += [message.value for message in messages]
        return found
    finally:
        await reader.close()


async def _reads(log: KafkaLog, partition: TopicPartition, wanted: list[bytes | None]) -> bool:
    return await _read(log, partition) == wanted


async def test_1_a_failed_send_in_a_transaction_commits_nothing(log: KafkaLog, topics: Topics) -> None:
    good = await _topic(log, topics, "good")
    small = await _topic(log, topics, "small", max_message_bytes="1000")
    producer = await log.transactional(f"{topics.prefix}-tx")
    with pytest.raises(LogError, match="failed"):
        await producer.transact({good: [Out(b"k", b"v")], small: [Out(b"k", b"x" * 5_000)]})
    assert await _read(log, good) == []
    await producer.close()


async def test_2_after_a_failure_the_producer_is_useless_and_a_new_one_goes_on(log: KafkaLog, topics: Topics) -> None:
    good = await _topic(log, topics, "good")
    small = await _topic(log, topics, "small", max_message_bytes="1000")
    producer = await log.transactional(f"{topics.prefix}-tx")
    with pytest.raises(LogError):
        await producer.transact({small: [Out(b"k", b"x" * 5_000)]})
    with pytest.raises(ProducerBroken, match="make a new producer"):
        await producer.transact({good: [Out(b"k", b"lost")]})
    await producer.close()
    again = await log.transactional(f"{topics.prefix}-tx")
    await again.transact({good: [Out(b"k", b"kept")]})
    await again.close()
    assert await _read(log, good) == [b"kept"]


async def test_2_whoever_takes_the_id_fences_the_owner_before(log: KafkaLog, topics: Topics) -> None:
    good = await _topic(log, topics, "good")
    old = await log.transactional(f"{topics.prefix}-tx")
    await old.transact({good: [Out(b"k", b"old")]})
    new = await log.transactional(f"{topics.prefix}-tx")
    with pytest.raises(Fenced, match="belongs to another process"):
        await old.transact({good: [Out(b"k", b"zombie")]})
    await new.transact({good: [Out(b"k", b"new")]})
    assert await _read(log, good) == [b"old", b"new"]
    await old.close()
    await new.close()


async def test_3_an_oversized_record_is_refused_before_it_is_sent(log: KafkaLog, topics: Topics) -> None:
    good = await _topic(log, topics, "good")
    producer = await log.producer("p")
    with pytest.raises(RecordTooLarge, match=r"1,500,\d+ bytes, more than 1,000,000"):
        await producer.append(*good, [Out(b"k", b"x" * 1_500_000)])
    await producer.append(*good, [Out(b"k", b"fits")])
    await producer.close()
    assert await _read(log, good) == [b"fits"]


async def test_3_a_record_that_the_broker_refuses_breaks_the_producer_and_says_so(
    log: KafkaLog, topics: Topics
) -> None:
    small = await _topic(log, topics, "small", max_message_bytes="1000")
    producer = await log.producer("p")
    with pytest.raises(ProducerBroken, match="MessageSizeTooLarge"):
        await producer.append(*small, [Out(b"k", b"x" * 5_000)])
    with pytest.raises(ProducerBroken, match="make a new producer"):
        await producer.append(*small, [Out(b"k", b"fits")])
    await producer.close()


async def test_4_a_cancelled_transaction_does_not_hold_up_readers(log: KafkaLog, topics: Topics) -> None:
    good = await _topic(log, topics, "good")
    producer = await log.transactional(f"{topics.prefix}-tx")
    records = [Out(b"k", b"x" * 900) for _ in range(3_000)]
    task = asyncio.create_task(producer.transact({good: records}))
    reader = await log.read({good: None}, committed=False)
    while not await reader.poll(50, 1):
        assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reader.close()
    await producer.close()
    after = await log.producer("after")
    await after.append(*good, [Out(b"k", b"after")])
    await after.close()
    await eventually(lambda: _reads(log, good, [b"after"]), TRANSACTION_TIMEOUT_MS / 1000 / 2, "readers still wait")


async def test_5_a_poison_record_is_quarantined_and_the_partition_goes_on(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(ONE)
        await system.engine()
        await system.agent("worker", lambda command: {"ok": True})
        for partition in range(4):
            await system.write(b"some", b"\xff\xfe not json", b"sagalog.workflow-started.v1", partition)
        result = await system.client.wait(await system.client.start("one", {}), timeout_s=20)
        assert result["status"] == "completed"
        await eventually(lambda: _count(system, 4), 10, "four records are not in quarantine")


async def _count(system: System, wanted: int) -> bool:
    return len(await system.read(system.topics.quarantine)) == wanted


async def test_6_a_deleted_topic_is_said_so(
    log: KafkaLog, provisioned: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    async with System(log, provisioned) as system:
        await system.engine()
        admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
        await admin.start()
        with caplog.at_level(logging.ERROR):
            await admin.delete_topics([provisioned.events])
            await admin.close()
            await eventually(
                lambda: f"topic {provisioned.events} does not exist; make it with" in caplog.text,
                20,
                "the engine did not say that its topic is gone",
            )


async def test_8_positions_come_from_the_marker_not_from_the_groups_offsets(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(ONE)
        started = [await system.client.start("one", {}) for _ in range(8)]
        await _zombie_commits_the_end(log, provisioned)
        await system.engine()
        await system.agent("worker", lambda command: {"ok": True})
        results = await system.client.wait_all(started, timeout_s=20)
        assert {result["status"] for result in results.values()} == {"completed"}


async def _zombie_commits_the_end(log: KafkaLog, topics: Topics) -> None:
    """A member of the engine's group that is no engine commits offsets that it never processed."""
    assigned: set[TopicPartition] = set()

    async def on_assigned(partitions: set[TopicPartition]) -> None:
        assigned.update(partitions)

    async def on_revoked(partitions: set[TopicPartition]) -> None:
        return None

    zombie = await log.join(topics.engine_group, [topics.events], on_assigned, on_revoked)
    await eventually(lambda: assigned, 10, "no assignment")
    ends = await zombie.end_offsets(assigned)
    assert sum(ends.values()) > 8
    await zombie.commit({partition: (end, "") for partition, end in ends.items()})
    await zombie.close()
