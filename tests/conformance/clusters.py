"""The two clusters that the conformance suite holds to the same facts: the simulated one and a real Kafka.

Every test makes topics, groups and ids with names of its own through `Bench`, so that one real cluster serves them all.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from sagalog.infra.clock import SystemClock
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import (
    Consumer,
    Log,
    Message,
    Out,
    Producer,
    Reader,
    Sharing,
    TopicPartition,
    TransactionalProducer,
)
from sagalog.topics.simulated import SimulatedKafka

PATIENCE_S = 8.0
"""Shorter than a transaction's time-out: what a client must abort itself must not be aborted by the broker meanwhile."""


class Cluster(Protocol):
    """A cluster, the time-outs of its clients, and what only its operator can do."""

    session_timeout_ms: int
    request_timeout_ms: int

    def log(self) -> Log:
        """The log as one more client process has it."""

    async def delete_topic(self, topic: str) -> None: ...

    async def delete_records(self, partition: TopicPartition, before_offset: int) -> None: ...


class RealCluster:
    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self.session_timeout_ms = 1_500
        self.request_timeout_ms = 2_000

    def log(self) -> Log:
        return KafkaLog(
            self._bootstrap,
            session_timeout_ms=self.session_timeout_ms,
            request_timeout_ms=self.request_timeout_ms,
        )

    async def delete_topic(self, topic: str) -> None:
        async with self._admin() as admin:
            await admin.delete_topics([topic])

    async def delete_records(self, partition: TopicPartition, before_offset: int) -> None:
        async with self._admin() as admin:
            await admin.delete_records({KafkaTopicPartition(*partition): RecordsToDelete(before_offset)})

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


class Simulated:
    """Nothing else takes its processor's time: its time-outs can be short."""

    def __init__(self) -> None:
        self.session_timeout_ms = 800
        self.request_timeout_ms = 500
        self.kafka = SimulatedKafka(
            SystemClock(),
            random.Random(1),
            latency_ms=(0, 2),
            session_timeout_ms=self.session_timeout_ms,
            request_timeout_ms=self.request_timeout_ms,
        )

    def log(self) -> Log:
        self.kafka.network.request_timeout_s = self.request_timeout_ms / 1000
        return self.kafka.log()

    async def delete_topic(self, topic: str) -> None:
        self.kafka.delete_topic(topic)

    async def delete_records(self, partition: TopicPartition, before_offset: int) -> None:
        self.kafka.delete_records(*partition, before_offset)


@dataclass
class Trace:
    """What a member's callbacks were told, in order."""

    calls: list[tuple[str, str, set[int]]] = field(default_factory=list)
    """Who, what, which partitions."""


@dataclass
class Member:
    """A member of a group, under test."""

    name: str
    trace: Trace
    during_revoke: Callable[[], object] | None = None
    during_assign: Callable[[], object] | None = None
    assigned: set[TopicPartition] = field(default_factory=set)
    generations: int = 0
    _consumer: Consumer | None = None

    @property
    def consumer(self) -> Consumer:
        assert self._consumer is not None
        return self._consumer

    async def on_assigned(self, partitions: set[TopicPartition]) -> None:
        self.trace.calls.append((self.name, "assigned", {found.partition for found in partitions}))
        self.assigned = partitions
        self.generations += 1
        await _run(self.during_assign)

    async def on_revoked(self, partitions: set[TopicPartition]) -> None:
        self.trace.calls.append((self.name, "revoked", {found.partition for found in partitions}))
        await _run(self.during_revoke)


async def _run(callback: Callable[[], object] | None) -> None:
    if callback is not None:
        found = callback()
        if asyncio.iscoroutine(found):
            await found


class Bench:
    """One test's place on a cluster. Everything made through it is closed at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.prefix = f"c{uuid.uuid4().hex[:10]}"
        self.log = cluster.log()
        self.trace = Trace()
        self.group = f"{self.prefix}-group"
        self._logs = [self.log]
        self._open: list[Consumer | Producer | TransactionalProducer] = []
        self._topics: list[str] = []

    async def close(self) -> None:
        for thing in reversed(self._open):
            await thing.close()
        for topic in self._topics:
            if await self.log.partitions(topic) is not None:
                await self.cluster.delete_topic(topic)  # a broker with thousands of partitions is slow
        for log in self._logs:
            await log.close()

    def other_log(self) -> Log:
        log = self.cluster.log()
        self._logs.append(log)
        return log

    # --- making

    async def topic(self, name: str = "topic", partitions: int = 1, **config: str) -> TopicPartition:
        """A topic's first partition."""
        topic = f"{self.prefix}.{name}"
        await self.log.create({topic: (partitions, 1, {key.replace("_", "."): value for key, value in config.items()})})
        self._topics.append(topic)
        return TopicPartition(topic, 0)

    async def producer(self) -> Producer:
        producer = await self.log.producer("p")
        self._open.append(producer)
        return producer

    async def transactional(self, name: str = "tx") -> TransactionalProducer:
        producer = await self.log.transactional(f"{self.prefix}-{name}")
        self._open.append(producer)
        return producer

    async def reader(self, *partitions: TopicPartition, committed: bool = False, offset: int | None = None) -> Reader:
        reader = await self.log.read(dict.fromkeys(partitions, offset), committed=committed)
        self._open.append(reader)
        return reader

    async def join(
        self,
        *topics: str,
        name: str = "a",
        start_at_end: bool = False,
        committed: bool = False,
        during_revoke: Callable[[], object] | None = None,
        during_assign: Callable[[], object] | None = None,
        sharing: Sharing | None = None,
    ) -> Member:
        member = Member(name, self.trace, during_revoke, during_assign)
        member._consumer = await self.log.join(
            self.group,
            topics,
            member.on_assigned,
            member.on_revoked,
            start_at_end=start_at_end,
            committed=committed,
            sharing=sharing,
        )
        self._open.append(member.consumer)
        return member

    # --- doing

    async def append(self, partition: TopicPartition, *values: bytes) -> None:
        producer = await self.log.producer("p")
        try:
            await producer.append(*partition, outs(*values))
        finally:
            await producer.close()

    async def values(self, partition: TopicPartition, *, committed: bool = False) -> list[bytes | None]:
        """Everything that is there now."""
        reader = await self.reader(partition, committed=committed)
        return [message.value for message in await read_to_end(reader, partition)]

    @asynccontextmanager
    async def open_transaction(
        self, partition: TopicPartition, *values: bytes, name: str = "open"
    ) -> AsyncIterator[asyncio.Task[None]]:
        """A transaction that has written its records and is still open, for as long as the request time-out.

        It writes to a topic that does not exist, too: the client looks for it, gives up, and aborts. Its end is awaited.
        """
        missing = TopicPartition(f"{self.prefix}.missing", 0)
        producer = await self.transactional(name)
        before = (await (await self.reader(partition)).end_offsets([partition]))[partition]
        writing = asyncio.create_task(producer.transact({partition: outs(*values), missing: outs(b"never")}))
        reader = await self.reader(partition)

        async def written() -> bool:
            return (await reader.end_offsets([partition]))[partition] == before + len(values)

        try:
            await eventually(written)
            yield writing
        finally:
            await asyncio.wait([writing])
            writing.exception()


def outs(*values: bytes) -> list[Out]:
    return [Out(b"key", value) for value in values]


async def read_to_end(reader: Consumer, partition: TopicPartition) -> list[Message]:
    end = (await reader.end_offsets([partition]))[partition]
    found: list[Message] = []
    while await reader.position(partition) < end:
        for messages in (await reader.poll(200, 500)).values():
            found += messages
    return found


async def read_some(reader: Consumer, count: int) -> list[Message]:
    """At least so many records, of whatever partition."""
    found: list[Message] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            for messages in (await reader.poll(200, 500)).values():
                found += messages
    return found


def values_of(messages: Iterable[Message]) -> list[bytes | None]:
    return [message.value for message in messages]


def offsets_of(messages: Sequence[Message]) -> list[int]:
    return [message.offset for message in messages]


async def eventually(condition: Callable[[], object]) -> None:
    """Waits for something that nobody tells of."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)
