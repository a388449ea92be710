"""One engine process: a member of the consumer group, its processors, and what they share.

One loop reads, folds and fires timers; everything else (take-over, snapshots, following circuits and heartbeats, checking
topics) runs beside it. An engine whose broker is gone keeps trying, with back-off, and says so; nothing is lost meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sagalog.infra.clock import Clock, Rng, wait_for_stop
from sagalog.schemas.codec import decode_object
from sagalog.schemas.commands import parse_heartbeat
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.schemas.records import MARKER_KEY
from sagalog.schemas.statuses import CircuitStatus
from sagalog.topics.log import Consumer, Log, LogError, Message, Producer, ProducerBroken, TopicPartition
from sagalog.topics.specs import Topics

from .circuits import CircuitMachine
from .gate import CircuitView
from .limits import (
    LIVE_MS_TO_FORGIVE,
    PENDING_RECORDS_MAX,
    POLL_MS_MAX,
    POLL_RECORDS_MAX,
    SESSION_BACKOFF_MS,
    TAKEOVER_BACKOFF_MS,
    TOPIC_CHECK_MS,
)
from .machine import Append, Machine
from .metrics import EngineMetrics
from .processor import Phase, Processor
from .workflows import WorkflowMachine

logger = logging.getLogger(__name__)

_CIRCUIT_GAUGE = {CircuitStatus.CLOSED: 0, CircuitStatus.HALF_OPEN: 1, CircuitStatus.OPEN: 2}


class TopicGone(LogError):
    """A topic that the engine reads does not exist (any more)."""


class Engine:
    """Run it with `await engine.run(stop)`; several processes share the partitions."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        clock: Clock,
        rng: Rng,
        snapshot_interval_ms: int = 200,
        metrics: EngineMetrics | None = None,
        member: str | None = None,
    ) -> None:
        self.log = log
        self.topics = topics
        self.clock = clock
        self.rng = rng
        self.metrics = metrics or EngineMetrics()
        self.member = member or f"{socket.gethostname()}-{os.getpid()}-{rng.hex(6)}"
        self._snapshot_interval_s = snapshot_interval_ms / 1000
        self.session: Session | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. After an error everything is taken over anew, with back-off."""
        failures = 0
        while not stop.is_set():
            self.session = Session(self, self._snapshot_interval_s)
            self.metrics.sessions.inc()
            try:
                await self.session.run(stop)
            except LogError as error:
                failures = 0 if self.session.was_live else failures + 1
                wait_s = _backoff_s(SESSION_BACKOFF_MS, failures, self.rng)
                logger.error("engine %s: %s; trying again in %.1f s", self.member, error, wait_s)
                await wait_for_stop(stop, wait_s)
            except Exception:
                # A bug must not take away the partitions that work: all of them are taken over anew, from the log.
                failures += 1
                wait_s = _backoff_s(SESSION_BACKOFF_MS, failures, self.rng)
                logger.exception("engine %s failed; trying again in %.1f s", self.member, wait_s)
                await wait_for_stop(stop, wait_s)
            finally:
                self.session = None

    def health(self) -> dict[str, Any]:
        """Per partition: phase, applied offset, why it is not live."""
        session = self.session
        if session is None:
            return {"live": False, "partitions": {}, "reason": "not connected"}
        partitions = {
            f"{processor.input.topic}/{processor.input.partition}": {
                "phase": processor.phase.value,
                "applied_offset": processor.machine.offset,
                **processor.stats(),
            }
            for processor in session.processors.values()
        }
        return {"live": session.was_live, "member": self.member, "partitions": partitions}


class Session:
    """From one connection to the broker to its loss."""

    def __init__(self, engine: Engine, snapshot_interval_s: float) -> None:
        self._engine = engine
        self._log = engine.log
        self._topics = engine.topics
        self._clock = engine.clock
        self._metrics = engine.metrics
        self._snapshot_interval_s = snapshot_interval_s
        self._consumer: Consumer | None = None
        self._producer: Producer | None = None
        self._partitions = 1
        self._outcome_partitions = 1
        self.processors: dict[TopicPartition, Processor] = {}
        self._suspended: dict[TopicPartition, Processor] = {}
        """Revoked in a rebalance that has not ended; most come back."""
        self._taking_over: dict[TopicPartition, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._circuits: dict[str, CircuitView] = {}
        self._failures: dict[TopicPartition, int] = {}
        self._joined = asyncio.Event()
        self._polls = 0
        self._feed_from: dict[TopicPartition, int] = {}
        """Per partition the first poll that began after its position was set: what earlier polls bring is from elsewhere."""
        self.was_live = False

    async def run(self, stop: asyncio.Event) -> None:
        self._outcome_partitions = await self._require(self._topics.outcomes)
        partitions = self._partitions = await self._require(self._topics.events)
        circuit_partitions = await self._require(self._topics.circuits)
        self._producer = await self._log.producer(f"engine-{self._engine.member}")
        try:
            self._spawn(self._follow_circuits(circuit_partitions))
            self._spawn(self._follow_heartbeats(partitions))
            self._spawn(self._check_topics(partitions))
            self._spawn(self._snapshots())
            self._consumer = await self._log.join(
                self._topics.engine_group,
                [self._topics.events, self._topics.outcomes],
                self._on_assigned,
                self._on_revoked,
            )
            self._joined.set()
            await self._loop(stop)
            await self._last_snapshots()
        finally:
            await self._close()

    # --- the loop

    async def _loop(self, stop: asyncio.Event) -> None:
        assert self._consumer is not None and self._producer is not None
        consumer, producer = self._consumer, self._producer
        while not stop.is_set():
            self._polls += 1
            batches = await consumer.poll(self._poll_ms(), POLL_RECORDS_MAX)
            if self._broken.done():
                self._broken.result()
            for partition, messages in batches.items():
                processor = self.processors.get(TopicPartition(*partition))
                if processor is not None and processor.phase is not Phase.LOADING:
                    self._feed(processor, messages)
            now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            for processor in list(self.processors.values()):
                processor.tick(now_ms, monotonic_ms)
                if processor.failure is not None:
                    self._start_over(processor)
            if producer.pending > PENDING_RECORDS_MAX:
                # The broker takes less than the fold makes: nothing more is read until it has caught up.
                await producer.below(PENDING_RECORDS_MAX // 2)

    def _feed(self, processor: Processor, messages: Sequence[Message]) -> None:
        """Feeds what follows on the last applied offset, and nothing else.

        A poll that was under way when the position was set may bring records from where the group's offset pointed. One that
        began later brings what is next in the log, even where offsets are missing (transaction markers of other writers).
        """
        if messages[0].offset == processor.position or self._polls >= self._feed_from[processor.input]:
            processor.feed(messages)
        else:
            self._resume(processor)

    def _poll_ms(self) -> int:
        now_ms = self._clock.now_ms()
        due_ms = min(
            (p.machine.next_due_ms() for p in self.processors.values() if p.phase is Phase.LIVE),
            default=now_ms + POLL_MS_MAX,
        )
        return max(1, min(POLL_MS_MAX, due_ms - now_ms))

    # --- partitions come and go

    async def _on_assigned(self, assigned: set[TopicPartition]) -> None:
        assert self._consumer is not None or not self.processors
        for partition in assigned:
            kept = self._suspended.pop(partition, None)
            # One whose loading was cut short by the rebalance begins anew.
            if kept is not None and kept.failure is None and kept.phase is not Phase.LOADING:
                self.processors[partition] = kept
                self._resume(kept)
            else:
                if kept is not None:
                    self._spawn(kept.close())
                self._take_over(partition, 0.0)
        for gone in self._suspended.values():
            logger.info("%s/%d: given up", *gone.input)
            self._spawn(gone.close())
        self._suspended.clear()
        self._count_phases()

    async def _on_revoked(self, revoked: set[TopicPartition]) -> None:
        # O(1): whether a partition comes back is known at the next assignment; ownership is decided by the log anyway.
        for partition in revoked:
            task = self._taking_over.pop(partition, None)
            if task is not None:
                task.cancel()
            processor = self.processors.pop(partition, None)
            if processor is not None:
                self._suspended[partition] = processor

    def _take_over(self, partition: TopicPartition, wait_s: float) -> None:
        processor = self._make(partition)
        self.processors[partition] = processor
        task = self._spawn(self._load(processor, wait_s))
        self._taking_over[partition] = task
        task.add_done_callback(lambda done: self._taken_over(partition, done))

    def _taken_over(self, partition: TopicPartition, task: asyncio.Task[None]) -> None:
        if self._taking_over.get(partition) is task:
            del self._taking_over[partition]

    async def _load(self, processor: Processor, wait_s: float) -> None:
        # The first assignment comes before `join` has returned the consumer.
        await self._joined.wait()
        consumer = self._consumer
        assert consumer is not None
        partition = processor.input
        if self.processors.get(partition) is not processor:
            return
        consumer.pause(partition)
        if wait_s:
            await asyncio.sleep(wait_s)
        try:
            await processor.load()
        except (LogError, SagalogError) as error:
            if self.processors.get(partition) is processor:
                self._start_over(processor, error)
            return
        if self.processors.get(partition) is processor:
            self._resume(processor)

    def _resume(self, processor: Processor) -> None:
        if processor.phase is Phase.LOADING:
            return
        assert self._consumer is not None
        self._feed_from[processor.input] = self._polls + 1
        self._consumer.seek(processor.input, processor.position)
        self._consumer.resume(processor.input)

    def _start_over(self, processor: Processor, error: BaseException | None = None) -> None:
        """Throws a failed processor's state away and takes its partition over anew.

        Raises ProducerBroken: the producer is shared, and a broken one never sends again, so the whole session starts over.
        """
        cause = error or processor.failure
        if isinstance(cause, ProducerBroken):
            raise cause
        partition = processor.input
        # One that fails again soon after it went live must not spin.
        failures = 0 if processor.live_ms >= LIVE_MS_TO_FORGIVE else self._failures.get(partition, 0) + 1
        self._failures[partition] = failures
        wait_s = _backoff_s(TAKEOVER_BACKOFF_MS, failures, self._engine.rng)
        logger.warning("%s/%d: taken over anew in %.1f s: %s", *partition, wait_s, cause)
        self._spawn(processor.close())
        if partition in self._taking_over:
            del self._taking_over[partition]
        if self._consumer is not None:
            self._consumer.pause(partition)
        self._take_over(partition, wait_s)

    def _make(self, partition: TopicPartition) -> Processor:
        assert self._producer is not None
        number = partition.partition
        if partition.topic == self._topics.events:

            def make(append: Append) -> Machine:
                machine = WorkflowMachine(
                    self._topics, number, self._partitions, self._outcome_partitions, append, self._metrics
                )
                for service, view in self._circuits.items():
                    machine.circuit(service, view)
                return machine

            transactional_id = self._topics.engine_transactional_id(number)
        else:

            def make(append: Append) -> Machine:
                return CircuitMachine(self._topics, number, append, self._metrics)

            transactional_id = self._topics.circuits_transactional_id(number)
        processor = Processor(
            make,
            self._log,
            self._producer,
            transactional_id,
            self._topics.engine_group,
            # A name for each take-over: a claim of this engine that the log still holds from before must not pass for the new one.
            f"{self._engine.member}/{self._engine.rng.hex(8)}",
            self._clock,
            self._metrics,
        )
        self._spawn(self._note_live(processor))
        return processor

    async def _note_live(self, processor: Processor) -> None:
        await processor.live.wait()
        self.was_live = True
        self._count_phases()

    # --- snapshots

    async def _snapshots(self) -> None:
        """All live processors, every interval. One after the other would add up their commits' latencies: side by side."""
        while True:
            await asyncio.sleep(self._snapshot_interval_s)
            live = [p for p in self.processors.values() if p.phase is Phase.LIVE and p.failure is None]
            if live:
                await asyncio.gather(*(processor.snapshot() for processor in live))
            self._gauges()

    async def _last_snapshots(self) -> None:
        """Before a clean stop, so that the next owner has nothing to fold again."""
        live = [p for p in self.processors.values() if p.phase is Phase.LIVE and p.failure is None]
        await asyncio.gather(*(processor.snapshot() for processor in live))

    def _gauges(self) -> None:
        assert self._producer is not None
        self._metrics.pending.set(self._producer.pending)
        for processor in self.processors.values():
            topic, partition = processor.input
            self._metrics.applied.labels(topic, str(partition)).set(processor.machine.offset)
            stats = processor.stats()
            if topic == self._topics.events:
                self._metrics.open.labels(str(partition)).set(stats["workflows"])
                self._metrics.withheld.labels(str(partition)).set(stats["withheld"])
                self._metrics.attempts_out.labels(str(partition)).set(stats["attempts_out"])
        self._count_phases()

    def _count_phases(self) -> None:
        for phase in Phase:
            count = sum(p.phase is phase for p in self.processors.values())
            self._metrics.partitions.labels(phase.value).set(count)

    # --- what all processors share

    async def _follow_circuits(self, partitions: int) -> None:
        topic = self._topics.circuits
        reader = await self._log.read(
            {TopicPartition(topic, number): None for number in range(partitions)}, committed=True, client_id="circuits"
        )
        await self._follow(reader, self._on_circuit)

    def _on_circuit(self, message: Message) -> None:
        key = (message.key or b"").decode(errors="replace")
        if key == MARKER_KEY or message.value is None:
            return
        record = decode_object(message.value)
        view = CircuitView(
            CircuitStatus(record["status"]),
            record["since_ms"],
            record.get("probe"),
            record.get("probe_until_ms", 0),
        )
        if self._circuits.get(key) == view:
            return
        self._circuits[key] = view
        self._metrics.circuit.labels(key).set(_CIRCUIT_GAUGE[view.status])
        for processor in [*self.processors.values(), *self._suspended.values()]:
            if isinstance(processor.machine, WorkflowMachine):
                processor.machine.circuit(key, view)

    async def _follow_heartbeats(self, partitions: int) -> None:
        topic = self._topics.heartbeats
        numbers = [TopicPartition(topic, number) for number in range(await self._require(topic))]
        reader = await self._log.read(dict.fromkeys(numbers, 0), committed=False, client_id="heartbeats")
        for partition, offset in (await reader.end_offsets(numbers)).items():
            reader.seek(partition, offset)
        await self._follow(reader, self._on_heartbeat)

    def _on_heartbeat(self, message: Message) -> None:
        processor = self.processors.get(TopicPartition(self._topics.events, message.partition))
        if processor is not None and isinstance(processor.machine, WorkflowMachine):
            beat = parse_heartbeat(message.value)
            beating = (message.key or b"").decode(errors="replace")
            processor.machine.heard(beating, beat.workflow_id, beat.step, beat.attempt, beat.direction)

    async def _follow(self, reader: Consumer, handle: Callable[[Message], None]) -> None:
        try:
            while True:
                for messages in (await reader.poll(1_000, POLL_RECORDS_MAX)).values():
                    for message in messages:
                        try:
                            handle(message)
                        except (InvalidRecord, KeyError, ValueError) as error:
                            origin = f"{message.topic}/{message.partition}/{message.offset}"
                            self._metrics.quarantined.labels("decode").inc()
                            logger.warning("%s cannot be read and is passed over: %s", origin, error)
        finally:
            await reader.close()

    async def _check_topics(self, partitions: int) -> None:
        """A deleted topic gives empty polls for ever: ask, and say so."""
        while True:
            await asyncio.sleep(TOPIC_CHECK_MS / 1000)
            found = await self._require(self._topics.events)
            if found != partitions:
                raise TopicGone(
                    f"topic {self._topics.events} has {found} partitions where it had {partitions}: workflows would change "
                    "their partition; make it as it was"
                )

    async def _require(self, topic: str) -> int:
        found = await self._log.partitions(topic)
        if found is None:
            raise TopicGone(f"topic {topic} does not exist; make it with: sagalog topics create")
        return found

    # --- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _close(self) -> None:
        self._broken.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*list(self._tasks), return_exceptions=True)
        owned: Sequence[Processor] = [*self.processors.values(), *self._suspended.values()]
        if self._consumer is not None:
            await self._consumer.close()
        await asyncio.gather(*(processor.close() for processor in owned), return_exceptions=True)
        if self._producer is not None:
            await self._producer.close()


def _backoff_s(limits_ms: tuple[int, int], failures: int, rng: Rng) -> float:
    first, longest = limits_ms
    wait_ms: int = min(longest, first << min(failures, 16))
    return rng.uniform(0.5, 1.0) * wait_ms / 1000
