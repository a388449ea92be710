"""Producers of the simulated cluster, with the habits of the real client.

- An idempotent producer has one request on its way at a time, with one batch per partition; it repeats what passes without end,
  in order, and breaks for good at what does not.
- A transaction sends everything, awaits it, then ends; whatever goes wrong, the producer is not used again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors as kafka_errors

from sagalog.topics.kafka import CLOSE_TIMEOUT_S, TRANSACTION_TIMEOUT_MS, check_size
from sagalog.topics.log import Fenced, LogError, Out, ProducerBroken, RecordTooLarge, TopicPartition

from .broker import Batch
from .calls import RETRY_BACKOFF_S, is_passing, retried, wait_for_topic
from .faults import Request
from .network import Connection, answered
from .transactions import ProducerId

if TYPE_CHECKING:
    from .broker import SimulatedKafka

logger = logging.getLogger(__name__)

BATCH_RECORDS_MAX: Final = 500
"""The real limit is in bytes (256 KiB); what matters is that a large append becomes several batches."""
CONCURRENT_BACKOFF_S: Final = 0.02
"""Between the end of a transaction and its markers, when the next one begins."""


@dataclass(slots=True)
class _Queued:
    records: Sequence[Out]
    done: asyncio.Future[None]
    next: int = 0
    """The first record that is not in a batch yet."""


@dataclass(slots=True)
class _Sending:
    """A batch on its way, and the appends that end with it."""

    batch: Batch
    ended: list[_Queued]


class SimulatedProducer:
    """An idempotent producer. It works by callbacks: a task per append would cost more than all the rest."""

    def __init__(self, kafka: SimulatedKafka) -> None:
        self._kafka = kafka
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._connection = Connection(kafka.network)
        self._who = ProducerId(0, 0)
        self._queues: dict[TopicPartition, deque[_Queued]] = {}
        self._sequences: dict[TopicPartition, int] = {}
        self._sending: list[_Sending] = []
        self._in_flight = False
        self._known: set[str] = set()
        self._looking_for: dict[str, asyncio.Task[None]] = {}
        self._pending = 0
        self._broken: Exception | None = None
        self._progress: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    async def start(self) -> None:
        await answered(self._connection.call(Request.METADATA, self._kafka.connect))
        self._who = await retried(
            lambda: self._connection.call(Request.TRANSACTION, self._kafka.transactions.init, None, 0.0)
        )

    @property
    def pending(self) -> int:
        return self._pending

    async def below(self, pending: int) -> None:
        while self._pending > pending and self._broken is None:
            self._progress = self._loop.create_future()
            await self._progress

    def append(self, topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        if self._broken is not None:
            done.set_exception(ProducerBroken(f"an earlier send failed ({self._broken}); make a new producer"))
            return done
        try:
            for record in records:
                check_size(topic, record)
        except RecordTooLarge as error:
            done.set_exception(error)
            return done
        if not records:
            done.set_result(None)
            return done
        self._pending += len(records)
        key = TopicPartition(topic, partition)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(_Queued(records, done))
        if not self._in_flight:
            self._in_flight = True
            # Not at once: what is appended in one go shares a request.
            self._loop.call_soon(self._send, context=self._context)
        return done

    # --- sending

    def _send(self) -> None:
        """The next request: what is to be repeated, or one batch of every partition that has something."""
        if not self._sending:
            now_ms = self._kafka.clock.now_ms()
            for key in list(self._queues):
                if key.topic in self._known:
                    self._sending.append(self._fill(key, now_ms))
                else:
                    self._look_for(key.topic)
        if not self._sending:
            self._in_flight = False
            if self._idle is not None and not self._idle.done() and not self._queues:
                self._idle.set_result(None)
            return
        self._in_flight = True
        batches = [sending.batch for sending in self._sending]
        future = self._connection.call(Request.PRODUCE, self._kafka.produce, self._who, None, batches)
        future.add_done_callback(self._answered, context=self._context)

    def _fill(self, key: TopicPartition, now_ms: int) -> _Sending:
        queue = self._queues[key]
        records: list[Out] = []
        ended: list[_Queued] = []
        while queue and len(records) < BATCH_RECORDS_MAX:
            queued = queue[0]
            part = queued.records[queued.next : queued.next + BATCH_RECORDS_MAX - len(records)]
            records += part
            queued.next += len(part)
            if queued.next == len(queued.records):
                ended.append(queue.popleft())
        if not queue:
            del self._queues[key]
        sequence = self._sequences.get(key, 0)
        self._sequences[key] = sequence + 1
        return _Sending(Batch(key, sequence, records, now_ms), ended)

    def _answered(self, future: asyncio.Future[Any]) -> None:
        result = future.result()
        sending, self._sending = self._sending, []
        results: Sequence[Exception | None] = [result] * len(sending) if isinstance(result, Exception) else result
        for sent, error in zip(sending, results, strict=True):
            if error is None:
                self._end(sent)
            elif is_passing(error):
                self._sending.append(sent)
            else:
                self._break(error, sent.ended)
        self._progressed()
        if self._sending:
            self._loop.call_later(RETRY_BACKOFF_S, self._send, context=self._context)
        else:
            self._send()

    def _end(self, sent: _Sending) -> None:
        if self._broken is None:
            self._pending -= len(sent.batch.records)
        for queued in sent.ended:
            if not queued.done.done():
                queued.done.set_result(None)

    def _progressed(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    def _look_for(self, topic: str) -> None:
        if topic not in self._looking_for:
            self._looking_for[topic] = self._loop.create_task(self._find(topic))

    async def _find(self, topic: str) -> None:
        try:
            await wait_for_topic(self._kafka, self._connection, topic)
        except kafka_errors.KafkaError as error:
            self._break(error, [])
            return
        finally:
            del self._looking_for[topic]
        self._known.add(topic)
        if not self._in_flight:
            self._send()

    # --- the end

    def _break(self, error: Exception, on_their_way: Sequence[_Queued]) -> None:
        """Nobody waits for ever for what is queued. What is on its way to other partitions may still arrive."""
        self._broken = error
        failure = ProducerBroken(f"sending failed: {type(error).__name__}: {error}; make a new producer")
        waiting = [*on_their_way, *(queued for queue in self._queues.values() for queued in queue)]
        self._queues.clear()
        for queued in waiting:
            if not queued.done.done():
                queued.done.set_exception(failure)
        self._pending = 0
        self._progressed()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self) -> None:
        if self._broken is None and (self._in_flight or self._queues):
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=CLOSE_TIMEOUT_S)
        for looking in list(self._looking_for.values()):
            looking.cancel()
        self._break(kafka_errors.ProducerClosed(), [queued for sent in self._sending for queued in sent.ended])


_FENCED = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.DuplicateSequenceNumber,
)


class SimulatedTransactionalProducer:
    """A transactional producer."""

    def __init__(self, kafka: SimulatedKafka, transactional_id: str) -> None:
        self._kafka = kafka
        self._id = transactional_id
        self._transactions = kafka.transactions
        self._connection = Connection(kafka.network)
        self._coordinator = Connection(kafka.network)
        self._who = ProducerId(0, 0)
        self._sequences: dict[TopicPartition, int] = {}
        self._known: set[str] = set()
        self._writing: asyncio.Future[Any] | None = None
        self._open = False
        """Whether there is something for an abort to end."""
        self._usable = True

    async def start(self) -> None:
        await answered(self._connection.call(Request.METADATA, self._kafka.connect))
        timeout_s = TRANSACTION_TIMEOUT_MS / 1000
        self._who = await self._repeated(self._transactions.init, self._id, timeout_s, concurrent_s=RETRY_BACKOFF_S)

    async def transact(
        self,
        writes: Mapping[TopicPartition, Sequence[Out]],
        group: str | None = None,
        offsets: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        if not self._usable:
            raise ProducerBroken(f"an earlier transaction of {self._id} failed; make a new producer")
        for partition, records in writes.items():
            for record in records:
                check_size(partition.topic, record)
        self._usable = False
        try:
            await self._write(writes)
            if group is not None and offsets:
                await self._commit_offsets(group, offsets)
            if self._open:
                await self._end(committed=True)
        except _FENCED as error:
            raise Fenced(f"{self._id} belongs to another process now ({type(error).__name__})") from error
        except Exception as error:
            await self._abort()
            raise LogError(f"a transaction of {self._id} failed: {type(error).__name__}: {error}") from error
        except asyncio.CancelledError:
            await self._abort()
            raise
        self._usable = True

    async def _write(self, writes: Mapping[TopicPartition, Sequence[Out]]) -> None:
        """In order: what comes before a topic that has to be looked for is written meanwhile."""
        ready: dict[TopicPartition, list[Out]] = {}
        for partition, records in writes.items():
            if not records:
                continue
            if partition.topic not in self._known:
                await self._send_all(ready)
                ready = {}
                await wait_for_topic(self._kafka, self._connection, partition.topic)
                self._known.add(partition.topic)
            ready[TopicPartition(*partition)] = list(records)
        await self._send_all(ready)

    async def _send_all(self, queues: dict[TopicPartition, list[Out]]) -> None:
        if not queues:
            return
        self._open = True
        await self._repeated(self._transactions.add_partitions, self._id, self._who, list(queues))
        while queues:
            batches = [self._batch(partition, records) for partition, records in queues.items()]
            queues = {partition: records for partition, records in queues.items() if records}
            while batches:
                batches = await self._send(batches)

    def _batch(self, partition: TopicPartition, records: list[Out]) -> Batch:
        sequence = self._sequences.get(partition, 0)
        self._sequences[partition] = sequence + 1
        part = records[:BATCH_RECORDS_MAX]
        del records[:BATCH_RECORDS_MAX]
        return Batch(partition, sequence, part, self._kafka.clock.now_ms())

    async def _send(self, batches: list[Batch]) -> list[Batch]:
        """Sends batches and returns those that are to be sent again. Raises what does not pass."""
        self._writing = self._connection.call(Request.PRODUCE, self._kafka.produce, self._who, self._id, batches)
        result = await asyncio.shield(self._writing)
        results: Sequence[Exception | None] = [result] * len(batches) if isinstance(result, Exception) else result
        again: list[Batch] = []
        for batch, error in zip(batches, results, strict=True):
            if error is not None and not is_passing(error):
                raise error
            if error is not None:
                again.append(batch)
        if again:
            await asyncio.sleep(RETRY_BACKOFF_S)
        return again

    async def _commit_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        self._open = True
        await self._repeated(self._transactions.add_offsets, self._id, self._who, group)
        positions = {TopicPartition(*partition): (offset, "") for partition, offset in offsets.items()}
        await self._repeated(self._transactions.commit_offsets, self._id, self._who, group, positions)

    async def _end(self, *, committed: bool) -> None:
        self._open = False  # from here on it is the broker's to decide; an abort would be refused
        await self._repeated(self._transactions.end, self._id, self._who, committed, kind=Request.END_TRANSACTION)

    async def _repeated(
        self,
        handle: Any,
        *args: Any,
        kind: Request = Request.TRANSACTION,
        concurrent_s: float = CONCURRENT_BACKOFF_S,
    ) -> Any:
        """Asks the coordinator until it answers with a result. Raises an error that does not pass."""
        while True:
            result = await self._coordinator.call(kind, handle, *args)
            if isinstance(result, kafka_errors.ConcurrentTransactions):
                await asyncio.sleep(concurrent_s)
            elif not isinstance(result, Exception):
                return result
            elif is_passing(result):
                await asyncio.sleep(RETRY_BACKOFF_S)
            else:
                raise result

    async def _abort(self) -> None:
        """Best effort, as on the real client; what is on its way arrives first."""
        if not self._open:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._writing is not None:
                    await self._writing
                await self._end(committed=False)
        except (kafka_errors.KafkaError, TimeoutError) as error:
            logger.warning("the transaction of %s could not be aborted: %s", self._id, error)

    async def close(self) -> None:
        self._usable = False
