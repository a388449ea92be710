"""The two kinds of consumers of the simulated cluster: of fixed partitions, and of what a group gives out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiokafka import errors as kafka_errors

from sagalog.topics.log import Message, NotAssigned, OnAssigned, OnRevoked, Sharing, TopicPartition

from .calls import bounded
from .fetcher import BaseConsumer
from .member import Member

if TYPE_CHECKING:
    from .broker import Fetched, SimulatedKafka


class FixedConsumer(BaseConsumer):
    """Reads fixed partitions."""

    def __init__(self, kafka: SimulatedKafka, committed: bool) -> None:
        super().__init__(kafka, committed, start_at_end=False)

    async def start(self) -> None:
        await self._connect()

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        states = self._assign(TopicPartition(*partition) for partition in positions).states
        for partition, state in states.items():
            state.set(positions[partition])
        self._pump()

    async def assign_first(self, positions: Mapping[TopicPartition, int | None]) -> None:
        states = self._assign(TopicPartition(*partition) for partition in positions).states
        waiting: list[asyncio.Future[None]] = []
        for partition, state in states.items():
            offset = positions[partition]
            if offset is not None:
                state.set(offset)
            else:
                state.reset(to_end=False)
                waiting.append(self._loop.create_future())
                state.positioned.append(waiting[-1])
        self._pump()
        if waiting:
            await asyncio.wait(waiting, timeout=self._kafka.network.request_timeout_s)

    async def close(self) -> None:
        self._shut()


class GroupConsumer(BaseConsumer):
    """A member of a consumer group."""

    def __init__(
        self,
        kafka: SimulatedKafka,
        group: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        start_at_end: bool,
        committed: bool,
        sharing: Sharing,
    ) -> None:
        super().__init__(kafka, committed, start_at_end)
        self._group = group
        self._member = Member(kafka, group, topics, on_assigned, on_revoked, self, sharing)

    async def start(self) -> None:
        await self._connect()
        await self._member.start(self._connection)

    async def _settled(self) -> None:
        await self._member.settled()

    async def _committed_offsets(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, tuple[int, str]]:
        found: Mapping[TopicPartition, tuple[int, str]] = await self._member.committed(partitions)
        return found

    def _missing(self, found: Fetched) -> None:
        if isinstance(found.error, kafka_errors.UnknownTopicOrPartitionError):
            self._member.topics_changed()

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Message]]:
        with self._member.polling():
            return await super().poll(timeout_ms, max_records)

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        assigned = self.assignment()
        for partition in offsets:
            if partition not in assigned:
                raise NotAssigned(f"the group has moved on: Partition {partition} is not assigned")
        if offsets:
            await self._member.commit({TopicPartition(*found): at for found, at in offsets.items()})

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """For the member: a new generation's partitions."""
        self._assign(partitions)
        self._pump()

    async def close(self) -> None:
        await bounded(self._close(), "consumer")

    async def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._member.leave()
        finally:
            self._shut()
