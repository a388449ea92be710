"""Testing agents without a broker: one call through the whole validation (`ask`), and a log in memory (`MemoryLog`).

    answer = await ask(post, {"number": "R-1", "total": "12.50"})
    assert answer.output == {"posting": 7}

`MemoryLog` keeps the port's promises for one event loop: order per partition, futures that end when a record can be read,
groups whose members share partitions and lose them with their membership, producers that break for good. It has no
transactions: agents use none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sagalog.infra.clock import SystemClock
from sagalog.schemas.commands import Command, Question, encode_command
from sagalog.schemas.events import Event, StepCompleted, StepFailed, parse_event
from sagalog.schemas.ids import Direction, command_id, idempotency_key
from sagalog.topics.log import (
    Consumer,
    Headers,
    LogError,
    LogUnavailable,
    NotAssigned,
    OnAssigned,
    OnRevoked,
    Out,
    Producer,
    ProducerBroken,
    TopicDescription,
    TopicPartition,
    TransactionalProducer,
    header,
)

from .agent import AnyAgent
from .job import Job
from .metrics import AgentMetrics
from .runner import Runner


def command(
    agent: str,
    input: Any = None,
    *,
    workflow_id: str = "w-1",
    step: str | None = None,
    attempt: int = 1,
    direction: Direction = Direction.EXECUTE,
    timeout_ms: int = 30_000,
    heartbeat_timeout_ms: int | None = None,
    about: int = 1,
) -> Command:
    """A command as the engine would send it; the step is called as the agent unless it is named.

    With the direction `reconcile` it is a question about the attempt `about`.
    """
    step = step or agent
    kind = partial(Question, about=about) if direction is Direction.RECONCILE else Command
    return kind(
        command_id=command_id(workflow_id, step, attempt, direction),
        workflow_id=workflow_id,
        definition="0000000000000000",
        step=step,
        agent=agent,
        attempt=attempt,
        direction=direction,
        token="token",  # noqa: S106 - not a secret
        idempotency_key=idempotency_key(workflow_id, step),
        input=input,
        timeout_ms=timeout_ms,
        heartbeat_timeout_ms=heartbeat_timeout_ms,
    )


async def ask(agent: AnyAgent, input: Any = None, **options: Any) -> StepCompleted | StepFailed:
    """What the agent answers to an input, as the engine would read it. The options are those of `command`."""
    answered: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
    runner = Runner(
        agent,
        SystemClock(),
        AgentMetrics.of(agent.name),
        answered=lambda _, out: answered.set_result(out),
        freed=lambda: None,
        beat=lambda _: None,
    )
    runner.start(Job(command(agent.name, input, **options), 0, None, 0, []))
    out = await answered
    await runner.stop(0, 1_000)
    event = parse_event(header(out.headers, "ce_type"), out.value)
    assert isinstance(event, StepCompleted | StepFailed)
    return event


@dataclass(slots=True)
class Record:
    """A record in memory."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def event(self) -> Event:
        return parse_event(header(self.headers, "ce_type"), self.value)


@dataclass(slots=True)
class _Group:
    members: list[_MemoryConsumer] = field(default_factory=list)
    committed: dict[TopicPartition, tuple[int, str]] = field(default_factory=dict)


class MemoryLog:
    """A log in memory. `down` makes everything that would talk to a broker fail."""

    def __init__(self) -> None:
        self.topics: dict[str, list[list[Record]]] = {}
        self.down = False
        self._configs: dict[str, dict[str, str]] = {}
        self._groups: dict[str, _Group] = {}
        self._producers: list[_MemoryProducer] = []
        self._clock = SystemClock()
        self._grown = asyncio.Event()

    # --- for tests

    def put(self, topic: str, partition: int, value: bytes | None, key: bytes | None, headers: Headers = ()) -> int:
        """Appends a record and returns its offset."""
        records = self._existing(topic)[partition]
        records.append(Record(topic, partition, len(records), self._clock.now_ms(), key, value, headers))
        self._grown.set()
        return len(records) - 1

    def send(self, topic: str, partition: int, sent: Command) -> int:
        """Appends a command."""
        return self.put(topic, partition, encode_command(sent), sent.workflow_id.encode())

    def records(self, topic: str) -> list[Record]:
        """All records of a topic, partition by partition."""
        return [record for partition in self._existing(topic) for record in partition]

    def break_producers(self) -> None:
        """Breaks the producers that there are; what they had not made durable is lost."""
        for producer in self._producers:
            producer.broken = True
        self._producers.clear()

    async def grown(self) -> None:
        """Waits for the next record."""
        self._grown.clear()
        await self._grown.wait()

    # --- the port

    async def join(
        self,
        group: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        *,
        start_at_end: bool = False,
    ) -> Consumer:
        self._check_up()
        members = self._groups.setdefault(group, _Group()).members
        consumer = _MemoryConsumer(self, group, topics, on_assigned, on_revoked, start_at_end)
        members.append(consumer)
        await self._rebalance(group)
        return consumer

    async def read(
        self, positions: Mapping[TopicPartition, int | None], *, committed: bool, client_id: str = "reader"
    ) -> Consumer:
        self._check_up()
        consumer = _MemoryConsumer(self, None, (), _nothing, _nothing, False)
        consumer.positions = {partition: offset or 0 for partition, offset in positions.items()}
        return consumer

    async def producer(self, client_id: str) -> Producer:
        self._check_up()
        producer = _MemoryProducer(self)
        self._producers.append(producer)
        return producer

    async def transactional(self, transactional_id: str) -> TransactionalProducer:
        raise LogError("the log in memory has no transactions; test what needs them on a real broker")

    async def committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, str]]:
        self._check_up()
        found = self._groups.setdefault(group, _Group()).committed
        return {partition: found[partition] for partition in partitions if partition in found}

    async def partitions(self, topic: str) -> int | None:
        self._check_up()
        return len(self.topics[topic]) if topic in self.topics else None

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicDescription]:
        self._check_up()
        return {
            name: TopicDescription(name, len(self.topics[name]), 1, self._configs[name])
            for name in topics
            if name in self.topics
        }

    async def create(self, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        self._check_up()
        for name, (partitions, _, config) in topics.items():
            if name not in self.topics:
                self.topics[name] = [[] for _ in range(partitions)]
                self._configs[name] = dict(config)

    async def close(self) -> None:
        self._producers.clear()

    # --- inner

    def _check_up(self) -> None:
        if self.down:
            raise LogUnavailable("the log in memory is down")

    def _existing(self, topic: str) -> list[list[Record]]:
        found = self.topics.get(topic)
        if found is None:
            raise LogError(f"there is no topic {topic}")
        return found

    async def _rebalance(self, group: str) -> None:
        members = self._groups[group].members
        for member in members:
            if member.positions:
                await member.on_revoked(set(member.positions))
                member.positions = {}
        topics = sorted({topic for member in members for topic in member.topics})
        everything = [TopicPartition(topic, number) for topic in topics for number in range(len(self.topics[topic]))]
        for place, member in enumerate(members):
            given = everything[place :: len(members)]
            member.paused.clear()
            member.positions = {partition: self._position(group, partition, member) for partition in given}
            await member.on_assigned(set(given))
        self._grown.set()

    def _position(self, group: str, partition: TopicPartition, member: _MemoryConsumer) -> int:
        committed = self._groups[group].committed.get(partition)
        if committed is not None:
            return committed[0]
        return len(self.topics[partition.topic][partition.partition]) if member.start_at_end else 0


async def _nothing(_: set[TopicPartition]) -> None:
    """No group, no callbacks."""


class _MemoryConsumer:
    def __init__(
        self,
        log: MemoryLog,
        group: str | None,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        start_at_end: bool,
    ) -> None:
        self._log = log
        self._group = group
        self.topics = topics
        self.on_assigned = on_assigned
        self.on_revoked = on_revoked
        self.start_at_end = start_at_end
        self.positions: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Record]]:
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while not (found := self._fetch(max_records)):
                    await self._log.grown()
        except TimeoutError:
            return {}
        return found

    def _fetch(self, max_records: int) -> dict[TopicPartition, Sequence[Record]]:
        if self._log.down:
            return {}
        found: dict[TopicPartition, Sequence[Record]] = {}
        for partition, position in self.positions.items():
            if partition in self.paused or max_records <= 0:
                continue
            records = self._log.topics[partition.topic][partition.partition][position : position + max_records]
            if records:
                found[partition] = records
                self.positions[partition] = records[-1].offset + 1
                max_records -= len(records)
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused.difference_update(partitions)
        self._log._grown.set()

    def assignment(self) -> set[TopicPartition]:
        return set(self.positions)

    async def position(self, partition: TopicPartition) -> int:
        return self.positions[partition]

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        self._log._check_up()
        missing = set(offsets) - set(self.positions)
        if self._group is None or missing:
            raise NotAssigned(f"the group has moved on: {missing}")
        self._log._groups[self._group].committed.update(offsets)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {partition: len(self._log.topics[partition.topic][partition.partition]) for partition in partitions}

    async def close(self) -> None:
        """Leaves the group: the others get its partitions."""
        if self._group is not None:
            members = self._log._groups[self._group].members
            if self in members:
                members.remove(self)
                self.positions = {}
                await self._log._rebalance(self._group)


class _MemoryProducer:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._queue: list[tuple[str, int, Sequence[Out], asyncio.Future[None]]] = []
        self.broken = False

    @property
    def pending(self) -> int:
        return sum(len(records) for _, _, records, _ in self._queue)

    async def below(self, pending: int) -> None:
        while self.pending > pending and not self.broken:
            await self._log.grown()

    def append(self, topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        if self.broken:
            done.set_exception(ProducerBroken("an earlier send failed; make a new producer"))
            return done
        if not self._queue:
            loop.call_soon(self._write)
        self._queue.append((topic, partition, records, done))
        return done

    def _write(self) -> None:
        queue, self._queue = self._queue, []
        for topic, partition, records, done in queue:
            if self.broken or self._log.down:
                self.broken = True
                done.set_exception(ProducerBroken("sending failed; make a new producer"))
                continue
            for record in records:
                self._log.put(topic, partition, record.value, record.key, record.headers)
            done.set_result(None)

    async def close(self) -> None:
        if self._queue:
            self._write()
        self.broken = True
