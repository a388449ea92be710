"""The transaction coordinator: transactional ids, their epochs, and the markers that end a transaction.

Rules:
- Whoever initialises an id next gets a higher epoch; the one before is fenced at its next request, and its open transaction is
  aborted first. An id whose transaction was aborted for being too old is fenced the same way.
- The end of a transaction is decided at one moment and seen later: each partition gets its marker in its own time, and the
  client has its answer before. Until all are written, the id takes no new transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, NamedTuple

from aiokafka import errors as kafka_errors

from sagalog.topics.log import TopicPartition

from .groups import Groups
from .network import Network, Reply
from .storage import Partition, Transaction

TIMEOUT_CHECK_MS: Final = 1_000
"""How late the broker may notice that a transaction is too old: it looks once per such a time."""
MARKER_RETRY_S: Final = 0.1


class State(Enum):
    EMPTY = auto()
    ONGOING = auto()
    ENDING = auto()
    """Decided; markers are on their way."""
    ENDED = auto()


class ProducerId(NamedTuple):
    """Who writes: an id and, for a transactional producer, its epoch."""

    id: int
    epoch: int


@dataclass(slots=True, eq=False)
class TransactionalId:
    """One transactional id and its transaction."""

    producer_id: int
    epoch: int = 0
    state: State = State.EMPTY
    transaction: Transaction = field(default_factory=Transaction)
    partitions: dict[Partition, None] = field(default_factory=dict)
    groups: dict[str, dict[TopicPartition, tuple[int, str]]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    timeout_s: float = 0.0
    markers: int = 0
    """Those that are not written yet."""


class Transactions:
    """The coordinator of all transactional ids. Requests take a `Reply` first."""

    def __init__(
        self, network: Network, groups: Groups, partition: Callable[[TopicPartition], Partition | None]
    ) -> None:
        self._network = network
        self._groups = groups
        self._partition = partition
        self._ids: dict[str, TransactionalId] = {}
        self._producers = 0

    def new_producer_id(self) -> int:
        self._producers += 1
        return self._producers

    # --- requests

    def init(self, reply: Reply, name: str | None, timeout_s: float) -> None:
        """An id and an epoch for a producer; fences whoever used the transactional id before."""
        if name is None:
            reply(ProducerId(self.new_producer_id(), 0))
            return
        found = self._ids.get(name)
        if found is None:
            found = self._ids[name] = TransactionalId(self.new_producer_id(), timeout_s=timeout_s)
        elif found.state is State.ENDING:
            reply(kafka_errors.ConcurrentTransactions())
            return
        elif found.state is State.ONGOING:
            found.epoch += 1
            self._end(found, committed=False)
            reply(kafka_errors.ConcurrentTransactions())
            return
        else:
            found.epoch += 1
        found.timeout_s = timeout_s
        found.state = State.EMPTY
        reply(ProducerId(found.producer_id, found.epoch))

    def add_partitions(self, reply: Reply, name: str, who: ProducerId, partitions: Sequence[TopicPartition]) -> None:
        found = self._ids[name]
        missing = [partition for partition in partitions if self._partition(partition) is None]
        if found.epoch != who.epoch:
            reply(kafka_errors.InvalidProducerEpoch())
        elif found.state is State.ENDING:
            reply(kafka_errors.ConcurrentTransactions())
        elif missing:
            reply(kafka_errors.UnknownTopicOrPartitionError())
        else:
            self._begin(found)
            for partition in partitions:
                log = self._partition(partition)
                assert log is not None
                found.partitions[log] = None
            reply(None)

    def add_offsets(self, reply: Reply, name: str, who: ProducerId, group: str) -> None:
        found = self._ids[name]
        if found.epoch != who.epoch:
            reply(kafka_errors.InvalidProducerEpoch())
        elif found.state is State.ENDING:
            reply(kafka_errors.ConcurrentTransactions())
        else:
            self._begin(found)
            found.groups.setdefault(group, {})
            reply(None)

    def commit_offsets(
        self,
        reply: Reply,
        name: str,
        who: ProducerId,
        group: str,
        offsets: Mapping[TopicPartition, tuple[int, str]],
    ) -> None:
        """Offsets as a part of the transaction. It names no generation: who has lost its partitions may still do it."""
        found = self._ids[name]
        if found.epoch != who.epoch:
            reply(kafka_errors.InvalidProducerEpoch())
        elif found.state is not State.ONGOING or group not in found.groups:
            reply(kafka_errors.InvalidTxnState())
        else:
            found.groups[group].update(offsets)
            reply(None)

    def end(self, reply: Reply, name: str, who: ProducerId, committed: bool) -> None:
        found = self._ids[name]
        if found.epoch != who.epoch:
            reply(kafka_errors.InvalidProducerEpoch())
        elif found.state is State.ONGOING:
            self._end(found, committed)
            reply(None)
        elif found.state is State.EMPTY or found.transaction.committed is not committed:
            reply(kafka_errors.InvalidTxnState())
        else:
            # A repetition of what has been decided.
            reply(kafka_errors.ConcurrentTransactions() if found.state is State.ENDING else None)

    def check(self, name: str, who: ProducerId, partition: Partition) -> Transaction:
        """The transaction in which a batch may be written. Raises InvalidProducerEpoch, InvalidTxnState."""
        found = self._ids[name]
        if found.epoch != who.epoch:
            raise kafka_errors.InvalidProducerEpoch
        if found.state is not State.ONGOING or partition not in found.partitions:
            raise kafka_errors.InvalidTxnState
        return found.transaction

    # --- the life of a transaction

    def _begin(self, found: TransactionalId) -> None:
        if found.state is not State.ONGOING:
            found.state = State.ONGOING
            found.transaction = Transaction()
            late_s = self._network.random.random() * TIMEOUT_CHECK_MS / 1000
            found.timer = self._network.later(found.timeout_s + late_s, self._too_old, found, found.transaction)

    def _too_old(self, found: TransactionalId, transaction: Transaction) -> None:
        if found.state is State.ONGOING and found.transaction is transaction:
            found.epoch += 1
            self._end(found, committed=False)

    def _end(self, found: TransactionalId, committed: bool) -> None:
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        found.state = State.ENDING
        found.transaction.committed = committed
        found.markers = len(found.partitions) + len(found.groups)
        for partition in found.partitions:
            self._network.later(self._network.delay_s(), self._mark, found, partition)
        for group, offsets in found.groups.items():
            self._network.later(self._network.delay_s(), self._mark_group, found, group, offsets)

    def _mark(self, found: TransactionalId, partition: Partition) -> None:
        if partition.unavailable_until_s > asyncio.get_running_loop().time():
            self._network.later(MARKER_RETRY_S, self._mark, found, partition)
            return
        partition.end_transaction(found.transaction)
        self._marked(found)

    def _mark_group(
        self, found: TransactionalId, group: str, offsets: Mapping[TopicPartition, tuple[int, str]]
    ) -> None:
        if found.transaction.committed:
            self._groups.store(self._groups.group(group), offsets)
        self._marked(found)

    def _marked(self, found: TransactionalId) -> None:
        found.markers -= 1
        if found.markers == 0:
            found.state = State.ENDED
            found.partitions = {}
            found.groups = {}
