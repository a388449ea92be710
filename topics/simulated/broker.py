"""The simulated cluster: topics, fetches and produces. What a client sees of it is in `client`; how it gets there, in `network`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aiokafka import errors as kafka_errors

from sagalog.infra.clock import Clock
from sagalog.topics.log import Log, Message, Out, TopicDescription, TopicPartition

from .faults import Faults
from .groups import Groups
from .network import Network, Reply
from .storage import Partition, Record, Topic
from .transactions import ProducerId, Transactions

FETCH_RECORDS_MAX: Final = 2_000
"""Per partition and fetch. The real limit is in bytes (4 MiB); what matters is that there is one."""
FETCH_WAIT_S: Final = 0.1


class Batch(NamedTuple):
    """What a producer writes to one partition at once."""

    partition: TopicPartition
    sequence: int
    records: Sequence[Out]
    created_ms: int


class Fetched(NamedTuple):
    """What a fetch found in one partition: records and where to read next, or an error."""

    partition: TopicPartition
    position: int
    records: Sequence[Record]
    next: int
    error: Exception | None = None


class SimulatedKafka:
    """A cluster of one broker in memory. Same seed, same calls: same run.

    `clock` stamps records; everything that waits, waits for the event loop's time. `session_timeout_ms` and
    `request_timeout_ms` are those of its clients, as for `KafkaLog`. `faults` may be changed at any time.
    """

    def __init__(
        self,
        clock: Clock,
        random: random.Random,
        *,
        faults: Faults | None = None,
        latency_ms: tuple[int, int] = (1, 5),
        session_timeout_ms: int = 10_000,
        request_timeout_ms: int = 30_000,
    ) -> None:
        self.clock = clock
        self.faults = faults if faults is not None else Faults()
        self.session_timeout_ms = session_timeout_ms
        self.network = Network(random, self.faults, latency_ms, request_timeout_ms)
        self.groups = Groups(self.network, lambda partition: self.partition(partition) is not None)
        self.transactions = Transactions(self.network, self.groups, self.partition)
        self._topics: dict[str, Topic] = {}

    def log(self, client: str = "client") -> Log:
        """The log as one client process has it; call it in that process's context."""
        from .client import SimulatedLog  # it knows this module

        return SimulatedLog(self, client)

    # --- for harnesses and checkers

    def topics(self) -> list[str]:
        return list(self._topics)

    def records(self, topic: str, partition: int) -> Sequence[Message]:
        """What a reader of committed records sees, all of it. Not a copy: do not change it."""
        return self._topics[topic].partitions[partition].stable

    def partition(self, partition: TopicPartition) -> Partition | None:
        topic = self._topics.get(partition.topic)
        if topic is None or not 0 <= partition.partition < len(topic.partitions):
            return None
        return topic.partitions[partition.partition]

    def delete_topic(self, name: str) -> None:
        topic = self._topics.pop(name)
        self.groups.forget_topic(name)
        for partition in topic:
            partition.vanish()

    def delete_records(self, topic: str, partition: int, before_offset: int) -> None:
        """What retention does."""
        self._topics[topic].partitions[partition].delete_records(before_offset)

    def compact(self, topic: str) -> None:
        """What the cleaner does, at its most thorough: it leaves no old segment and keeps no tombstone."""
        for partition in self._topics[topic]:
            partition.compact()

    def outage(self, duration_ms: int) -> None:
        """No client reaches the broker for a while. The broker goes on: sessions and transactions time out."""
        self.network.cut(duration_ms)

    def move_leader(self, topic: str, partition: int, duration_ms: int) -> None:
        """The partition has no leader for a while."""
        until_s = asyncio.get_running_loop().time() + duration_ms / 1000
        log = self._topics[topic].partitions[partition]
        log.unavailable_until_s = max(log.unavailable_until_s, until_s)

    def rebalance(self, group: str) -> None:
        """The members of a group are told to join anew."""
        self.groups.rebalance(group)

    def expire(self, group: str) -> None:
        """The sessions of all members of a group end, as if the broker had not heard of them."""
        self.groups.expire(group)

    # --- requests: topics

    def connect(self, reply: Reply) -> None:
        reply(None)

    def create(self, reply: Reply, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        for name, (partitions, replication, config) in topics.items():
            if name not in self._topics:
                self._topics[name] = Topic.of(name, partitions, replication, config)
        reply(None)

    def describe(self, reply: Reply, names: Sequence[str]) -> None:
        reply(
            {
                name: TopicDescription(name, len(topic.partitions), topic.replication, dict(topic.config))
                for name in names
                if (topic := self._topics.get(name)) is not None
            }
        )

    def partition_counts(self, reply: Reply, names: Sequence[str]) -> None:
        """The metadata that clients ask for: the partitions of those topics that exist."""
        reply({name: len(self._topics[name].partitions) for name in names if name in self._topics})

    def list_offsets(self, reply: Reply, partitions: Sequence[TopicPartition], latest: bool, committed: bool) -> None:
        found: dict[TopicPartition, int] = {}
        for wanted in partitions:
            log = self.partition(wanted)
            if log is None:
                reply(kafka_errors.StaleMetadata())
                return
            if self._unavailable(log):
                reply(kafka_errors.NotLeaderForPartitionError())
                return
            end = log.stable_end if committed else log.end
            found[wanted] = end if latest else log.start
        reply(found)

    # --- requests: records

    def produce(self, reply: Reply, who: ProducerId, transactional_id: str | None, batches: Sequence[Batch]) -> None:
        """Answers with one result per batch, None or an error."""
        now_ms = self.clock.now_ms()
        reply([self._write(batch, who, transactional_id, now_ms) for batch in batches])

    def _write(self, batch: Batch, who: ProducerId, transactional_id: str | None, now_ms: int) -> Exception | None:
        log = self.partition(batch.partition)
        if log is None:
            return kafka_errors.UnknownTopicOrPartitionError()  # type: ignore[no-any-return]
        if self.faults.leader_change and self.network.happens(self.faults.leader_change):
            duration_ms = self.network.random.uniform(*self.faults.leader_change_ms)
            log.unavailable_until_s = asyncio.get_running_loop().time() + duration_ms / 1000
        if self._unavailable(log):
            return kafka_errors.NotLeaderForPartitionError()  # type: ignore[no-any-return]
        try:
            transaction = None if transactional_id is None else self.transactions.check(transactional_id, who, log)
            log.append(batch.records, who, batch.sequence, now_ms, batch.created_ms, transaction)
        except kafka_errors.KafkaError as error:
            return error  # type: ignore[no-any-return]
        return None

    def fetch(self, reply: Reply, wanted: Sequence[tuple[TopicPartition, int]], committed: bool) -> None:
        """Answers as soon as there is anything, or an error, in one of the partitions; with nothing after FETCH_WAIT_S."""
        fetch = _Fetch(self, reply, wanted, committed)
        if not fetch.look():
            fetch.wait()

    def read(self, wanted: Sequence[tuple[TopicPartition, int]], committed: bool) -> list[Fetched]:
        found: list[Fetched] = []
        for partition, position in wanted:
            log = self.partition(partition)
            try:
                if log is None:
                    raise kafka_errors.UnknownTopicOrPartitionError
                if self._unavailable(log):
                    raise kafka_errors.NotLeaderForPartitionError
                read = log.read(position, FETCH_RECORDS_MAX, committed=committed)
            except kafka_errors.KafkaError as error:
                found.append(Fetched(partition, position, (), position, error))
            else:
                if read is not None:
                    found.append(Fetched(partition, position, *read))
        return found

    def _unavailable(self, log: Partition) -> bool:
        return log.unavailable_until_s > 0 and log.unavailable_until_s > asyncio.get_running_loop().time()


class _Fetch:
    """A fetch that waits for records."""

    __slots__ = ("_broker", "_committed", "_reply", "_timer", "_wanted")

    def __init__(
        self, broker: SimulatedKafka, reply: Reply, wanted: Sequence[tuple[TopicPartition, int]], committed: bool
    ) -> None:
        self._broker = broker
        self._reply = reply
        self._wanted = wanted
        self._committed = committed
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> bool:
        found = self._broker.read(self._wanted, self._committed)
        if found:
            self._answer(found)
        return bool(found)

    def wait(self) -> None:
        self._timer = self._broker.network.later(FETCH_WAIT_S, self._answer, [])
        for partition, _ in self._wanted:
            log = self._broker.partition(partition)
            if log is not None:
                log.wait(self)

    def __call__(self) -> None:
        self.look()

    def _answer(self, found: list[Fetched]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            for partition, _ in self._wanted:
                log = self._broker.partition(partition)
                if log is not None:
                    log.forget(self)
        self._reply(found)
