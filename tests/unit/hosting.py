"""The simulated Kafka, in real time by default, for tests of an agent host: what lies in it, and what breaks it."""

from __future__ import annotations

import random
from typing import Any, Final

from sagalog.infra.clock import Clock, SystemClock
from sagalog.schemas.commands import Command, encode_command
from sagalog.schemas.events import Event, parse_event
from sagalog.topics.log import Consumer, Headers, Message, Out, Producer, ProducerBroken, TopicPartition, header
from sagalog.topics.simulated import SimulatedKafka

FOR_EVER_MS: Final = 3_600_000


class HostedLog:
    """A `Log`. Nothing else takes its processor's time, so its time-outs are short."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.kafka = SimulatedKafka(
            clock or SystemClock(), random.Random(1), latency_ms=(0, 0), session_timeout_ms=300, request_timeout_ms=200
        )
        self.consumers: list[Any] = []
        """Of groups, those that have left too."""
        self.producers: list[Any] = []
        self._log: Any = self.kafka.log("host")
        self._puts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def join(self, *args: Any, **options: Any) -> Consumer:
        consumer: Consumer = await self._log.join(*args, **options)
        self.consumers.append(consumer)
        return consumer

    async def producer(self, client_id: str) -> Producer:
        producer: Producer = await self._log.producer(client_id)
        self.producers.append(producer)
        return producer

    def put(
        self, topic: str, partition: int, value: bytes | None, key: bytes | None, headers: Headers | None = None
    ) -> int:
        """Appends a record and returns its offset."""
        log = self.kafka.partition(TopicPartition(topic, partition))
        assert log is not None
        self._puts += 1
        now_ms = self.kafka.clock.now_ms()
        log.append([Out(key, value, headers)], (-self._puts, 0), 0, now_ms, now_ms, None)
        return log.end - 1

    def send(self, topic: str, partition: int, sent: Command) -> int:
        """Appends a command."""
        return self.put(topic, partition, encode_command(sent), sent.workflow_id.encode())

    def records(self, topic: str) -> list[Message]:
        """All records of a topic, partition by partition."""
        found: list[Message] = []
        number = 0
        while self.kafka.partition(TopicPartition(topic, number)) is not None:
            found += self.kafka.records(topic, number)
            number += 1
        return found

    def events(self, topic: str) -> list[Event]:
        return [event_of(record) for record in self.records(topic)]

    def committed_by(self, group: str, partition: TopicPartition) -> tuple[int, str] | None:
        return self.kafka.groups.group(group).offsets.get(partition)

    def break_producers(self) -> None:
        """Breaks the producers that there are; what they had not made durable is lost."""
        for producer in self.producers:
            producer._break(ProducerBroken("a send failed"), [])
        self.producers.clear()

    @property
    def down(self) -> bool:
        return self.kafka.network.down

    @down.setter
    def down(self, down: bool) -> None:
        """While it is nobody reaches the broker."""
        if down:
            self.kafka.outage(FOR_EVER_MS)
        else:
            self.kafka.network._down_until_s = 0.0


def event_of(record: Message) -> Event:
    return parse_event(header(record.headers, "ce_type"), record.value)
