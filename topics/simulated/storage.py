"""A topic's partitions as the simulated broker keeps them: records, open transactions, and what each kind of reader sees.

Rules:
- A transaction's marker takes an offset, and no reader ever sees it.
- Readers of committed records see what lies below the first record of the oldest open transaction, without the aborted.
- Per-record work is one object and no branch: batches cross this module, and the committed view is kept, not computed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from aiokafka import errors as kafka_errors

from sagalog.schemas.limits import RECORD_BYTES_MAX
from sagalog.topics.kafka import record_bytes
from sagalog.topics.log import Headers, Out

BATCH_OVERHEAD_BYTES: Final = 61
DEFAULT_CONFIG: Final[Mapping[str, str]] = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
}

_offset = attrgetter("offset")


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of a transactional id; the records written in it refer to it."""

    committed: bool | None = None
    """None while nobody has decided."""


@dataclass(slots=True, eq=False)
class Record:
    """A record in a partition; a `Message` of the port."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    transaction: Transaction | None = None


class Partition:
    """One partition. `end` is the next offset, `stable_end` the end of what readers of committed records may see."""

    __slots__ = (
        "_considered",
        "_limit_bytes",
        "_stamped_by_broker",
        "_waiting",
        "end",
        "number",
        "open",
        "records",
        "sequences",
        "stable",
        "start",
        "topic",
        "unavailable_until_s",
    )

    def __init__(self, topic: str, number: int, config: Mapping[str, str]) -> None:
        self.topic = topic
        self.number = number
        self.records: list[Record] = []
        """All records, of aborted transactions too."""
        self.stable: list[Record] = []
        """What a reader of committed records sees."""
        self._considered = 0
        """How many of `records` are below `stable_end`."""
        self.start = 0
        self.end = 0
        self.open: dict[Transaction, int] = {}
        """Open transactions and the offsets of their first records here; the oldest is the first."""
        self.sequences: dict[tuple[int, int], int] = {}
        """Per producer and epoch the last batch written."""
        self.unavailable_until_s = 0.0
        self._waiting: dict[Callable[[], None], None] = {}
        limit = int(config["max.message.bytes"])
        # What the client lets through always fits a larger limit: adding up sizes would cost more than the append.
        self._limit_bytes = limit if limit < RECORD_BYTES_MAX + BATCH_OVERHEAD_BYTES else None
        self._stamped_by_broker = config["message.timestamp.type"] == "LogAppendTime"

    @property
    def stable_end(self) -> int:
        for first in self.open.values():
            return first
        return self.end

    # --- writing

    def append(
        self,
        outs: Sequence[Out],
        producer: tuple[int, int],
        sequence: int,
        now_ms: int,
        created_ms: int,
        transaction: Transaction | None,
    ) -> None:
        """Writes a batch, once. Raises MessageSizeTooLargeError, OutOfOrderSequenceNumber."""
        last = self.sequences.get(producer)
        if last is not None and sequence <= last:
            return
        if last is not None and sequence > last + 1:
            raise kafka_errors.OutOfOrderSequenceNumber
        if self._limit_bytes is not None:
            size = BATCH_OVERHEAD_BYTES + sum(record_bytes(out) for out in outs)
            if size > self._limit_bytes:
                raise kafka_errors.MessageSizeTooLargeError
        self.sequences[producer] = sequence
        topic, number, base = self.topic, self.number, self.end
        stamp = now_ms if self._stamped_by_broker else created_ms
        records = [
            Record(topic, number, offset, stamp, key, value, tuple(headers) if headers else (), transaction)
            for offset, (key, value, headers) in enumerate(outs, base)
        ]
        self.records += records
        self.end = base + len(records)
        if transaction is not None:
            self.open.setdefault(transaction, base)
        elif not self.open:
            self.stable += records
            self._considered = len(self.records)
        self._wake()

    def end_transaction(self, transaction: Transaction) -> None:
        """Writes the marker, which says what became of the transaction."""
        self.end += 1
        self.open.pop(transaction, None)
        self._stabilise()
        self._wake()

    def _stabilise(self) -> None:
        end = self.stable_end
        while self._considered < len(self.records):
            record = self.records[self._considered]
            if record.offset >= end:
                break
            if record.transaction is None or record.transaction.committed:
                self.stable.append(record)
            self._considered += 1

    # --- reading

    def read(self, position: int, records_max: int, *, committed: bool) -> tuple[Sequence[Record], int] | None:
        """Records from a position on, and where to read next; None when there is nothing yet. Raises OffsetOutOfRangeError."""
        if position < self.start or position > self.end:
            raise kafka_errors.OffsetOutOfRangeError
        source, end = (self.stable, self.stable_end) if committed else (self.records, self.end)
        if position >= end:
            return None
        first = bisect_left(source, position, key=_offset)
        found = source[first : first + records_max]
        # Behind the last record there may be markers, aborted or compacted records: a position passes over them.
        return found, (end if len(found) < records_max else found[-1].offset + 1)

    def wait(self, wake: Callable[[], None]) -> None:
        """Calls `wake` at every change, until it is forgotten."""
        self._waiting[wake] = None

    def forget(self, wake: Callable[[], None]) -> None:
        self._waiting.pop(wake, None)

    def _wake(self) -> None:
        if self._waiting:
            for wake in list(self._waiting):
                wake()

    # --- cleanup

    def vanish(self) -> None:
        """Its topic is deleted: whoever waits looks again."""
        self._wake()

    def delete_records(self, before_offset: int) -> None:
        self.start = max(self.start, min(before_offset, self.end))
        self._keep([record for record in self.records if record.offset >= self.start])

    def compact(self) -> None:
        """Keeps the newest record of each key below the stable end; tombstones and aborted records go."""
        end = self.stable_end
        newest = {record.key: record.offset for record in self.stable}
        self._keep([record for record in self.records if record.offset >= end or _is_kept(record, newest)])

    def _keep(self, records: list[Record]) -> None:
        self.records = records
        self.stable = []
        self._considered = 0
        self._stabilise()


def _is_kept(record: Record, newest: Mapping[bytes | None, int]) -> bool:
    if record.transaction is not None and not record.transaction.committed:
        return False
    return record.value is not None and newest.get(record.key) == record.offset


@dataclass(slots=True)
class Topic:
    """A topic; `config` has the broker's defaults in it."""

    name: str
    replication: int
    config: dict[str, str]
    partitions: list[Partition] = field(default_factory=list)

    @staticmethod
    def of(name: str, partitions: int, replication: int, config: Mapping[str, str]) -> Topic:
        topic = Topic(name, replication, {**DEFAULT_CONFIG, **config})
        topic.partitions = [Partition(name, number, topic.config) for number in range(partitions)]
        return topic

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.partitions)
