"""The log port on the simulated cluster: what the client library and our adapter to it do on the real one."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import errors as kafka_errors

from sagalog.topics.log import (
    Consumer,
    OnAssigned,
    OnRevoked,
    Producer,
    Reader,
    Sharing,
    TopicDescription,
    TopicPartition,
    TransactionalProducer,
)

from .calls import failed, unavailable
from .consumer import FixedConsumer, GroupConsumer
from .faults import Request
from .member import InTurn
from .network import Connection, Handler, answered
from .producers import SimulatedProducer, SimulatedTransactionalProducer

if TYPE_CHECKING:
    from .broker import SimulatedKafka


class SimulatedLog:
    """One client process's log."""

    def __init__(self, kafka: SimulatedKafka, client: str) -> None:
        self.kafka = kafka
        self.client = client
        self._admin: Connection | None = None

    # --- readers

    async def join(
        self,
        group: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        *,
        start_at_end: bool = False,
        committed: bool = False,
        sharing: Sharing | None = None,
    ) -> Consumer:
        consumer = GroupConsumer(
            self.kafka, group, topics, on_assigned, on_revoked, start_at_end, committed, sharing or InTurn()
        )
        try:
            await self._connected(consumer.start())
        except BaseException:
            await consumer.close()
            raise
        return consumer

    async def read(
        self, positions: Mapping[TopicPartition, int | None], *, committed: bool, client_id: str = "reader"
    ) -> Reader:
        consumer = FixedConsumer(self.kafka, committed)
        await self._connected(consumer.start())
        await consumer.assign_first(positions)
        return consumer

    # --- writers

    async def producer(self, client_id: str) -> Producer:
        producer = SimulatedProducer(self.kafka)
        await self._connected(producer.start())
        return producer

    async def transactional(self, transactional_id: str) -> TransactionalProducer:
        producer = SimulatedTransactionalProducer(self.kafka, transactional_id)
        await self._connected(producer.start())
        return producer

    async def _connected(self, starting: Awaitable[None]) -> None:
        try:
            await starting
        except kafka_errors.KafkaError as error:
            unavailable(error)

    # --- the cluster

    async def committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, str]]:
        wanted = [TopicPartition(*partition) for partition in partitions]
        found: dict[TopicPartition, tuple[int, str]] = await self._ask(
            "reading group offsets", self.kafka.groups.committed, group, wanted
        )
        return found

    async def partitions(self, topic: str) -> int | None:
        found = (await self.describe([topic])).get(topic)
        return found.partitions if found is not None else None

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicDescription]:
        found: dict[str, TopicDescription] = await self._ask(
            "reading the cluster's metadata", self.kafka.describe, list(topics)
        )
        return found

    async def create(self, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        await self._ask("making topics", self.kafka.create, dict(topics))

    async def close(self) -> None:
        self._admin = None

    async def _ask(self, doing: str, handle: Handler, *args: Any) -> Any:
        if self._admin is None:
            connection = Connection(self.kafka.network)
            try:
                await answered(connection.call(Request.METADATA, self.kafka.connect))
            except kafka_errors.KafkaError as error:
                unavailable(error)
            self._admin = connection
        try:
            return await answered(self._admin.call(Request.METADATA, handle, *args))
        except kafka_errors.KafkaError as error:
            raise failed(doing, error) from error
