"""The port to the log. Engine, agents, projector and clients know Kafka only through these protocols.

Rules for adapters (the conformance suite holds every adapter to them):
- `Producer.append` keeps the order of one topic-partition, never blocks, and says through its future when all it was given is
  durable. After one failure the producer is broken: every later append fails, and its owner starts over with a new one.
- Sizes are checked before anything is sent: an oversized record would kill an idempotent producer for its partition.
- Keys, values and headers are bytes; nothing is deserialised in here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sagalog.schemas.errors import SagalogError

Headers = Sequence[tuple[str, bytes]]


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Message(Protocol):
    """A record as read. `timestamp` is milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Out(NamedTuple):
    """A record to write."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class LogError(SagalogError):
    """The log did not do what was asked."""


class LogUnavailable(LogError):
    """No broker answers."""


class Fenced(LogError):
    """Another owner has taken over; this one must stop and throw its state away."""


class RecordTooLarge(LogError):
    """A record exceeds the limit. Raised before anything is sent."""


class ProducerBroken(LogError):
    """An earlier send failed; the producer cannot be used any more."""


class NotAssigned(LogError):
    """The consumer does not own the partition any more."""


class Share(NamedTuple):
    """What one member of a group gets."""

    partitions: Sequence[TopicPartition]
    note: bytes = b""
    """What whoever shared out says beside it."""


class Joining(NamedTuple):
    """What a member joins its group with."""

    topics: tuple[str, ...]
    says: bytes
    """What it lets whoever shares out know."""


class Sharing(Protocol):
    """How a group shares its partitions out. Every member brings one of the same name; that of one member, the leader, decides."""

    name: str

    def says(self) -> bytes:
        """What this member lets the leader know; asked for at every rebalance."""

    def share(self, members: Mapping[str, Joining], partitions: Sequence[TopicPartition]) -> Mapping[str, Share]:
        """All partitions, to the members, by their ids. Pure: it must not matter who the leader is."""

    def told(self, note: bytes) -> None:
        """The leader's note for this member, before `on_assigned` is called with the partitions."""


OnAssigned = Callable[[set[TopicPartition]], Awaitable[None]]
OnRevoked = Callable[[set[TopicPartition]], Awaitable[None]]


class Consumer(Protocol):
    """Reads partitions: those of a group's assignment, or a fixed set."""

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Message]]:
        """What is there, per partition in the order of offsets; empty after `timeout_ms`. Others get a turn of the loop before."""

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def pause(self, *partitions: TopicPartition) -> None: ...

    def resume(self, *partitions: TopicPartition) -> None: ...

    def assignment(self) -> set[TopicPartition]: ...

    async def position(self, partition: TopicPartition) -> int:
        """The offset that is read next; it passes over transaction markers and aborted records."""

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Commits (next offset, metadata). Raises NotAssigned when the group has moved on."""

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last readable record: the high watermark, or the last stable offset for `committed` readers."""

    async def close(self) -> None: ...


class Reader(Consumer, Protocol):
    """Reads fixed partitions, which may be exchanged for others."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Reads these partitions from these offsets from now on, and no others, also in a `poll` under way. Never blocks."""


class Producer(Protocol):
    """Appends records, idempotently."""

    def append(self, topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
        """Queues the records, in order. The future ends when all are durable; it must be awaited or looked at."""

    @property
    def pending(self) -> int:
        """Records that were appended and are not durable yet."""

    async def below(self, pending: int) -> None:
        """Waits until at most so many records are pending, or the producer is broken."""

    async def close(self) -> None: ...


class TransactionalProducer(Protocol):
    """Writes transactions under a transactional id, which fences whoever used it before."""

    async def transact(
        self,
        writes: Mapping[TopicPartition, Sequence[Out]],
        group: str | None = None,
        offsets: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """All of it or nothing. Raises Fenced, or LogError: then this producer and the state behind it are to be thrown away."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TopicDescription:
    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class Log(Protocol):
    """A Kafka cluster, or what stands in for one."""

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
        """A member of a consumer group. Positions start at the committed offset, else at the beginning (or the end).

        `committed` hides the records of open and aborted transactions. `sharing` is how the group shares out; by default in turn.
        """

    async def read(
        self, positions: Mapping[TopicPartition, int | None], *, committed: bool, client_id: str = "reader"
    ) -> Reader:
        """A reader of fixed partitions from the given offsets (None: the beginning). `committed` hides open transactions."""

    async def producer(self, client_id: str) -> Producer: ...

    async def transactional(self, transactional_id: str) -> TransactionalProducer:
        """Fences the previous user of the id before it returns."""

    async def committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, str]]:
        """Committed (next offset, metadata) of a group; partitions without one are left out."""

    async def partitions(self, topic: str) -> int | None:
        """How many partitions the topic has, asked anew; None when there is no such topic."""

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicDescription]:
        """The topics that exist among those named."""

    async def create(self, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        """Makes topics: name to (partitions, replication, config). One that exists already is left alone."""

    async def close(self) -> None: ...


def header(headers: Headers, name: str) -> bytes | None:
    """The first header of that name."""
    for key, value in headers:
        if key == name:
            return value
    return None
