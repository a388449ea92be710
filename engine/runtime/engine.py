"""One engine process: a member of the consumer group, its processors, and what they share.

One loop reads, folds and fires timers; everything else (standing by, take-over, snapshots, following circuits and heartbeats,
checking topics) runs beside it. An engine whose broker is gone keeps trying, with back-off, and says so; nothing is lost meanwhile.

Rules:
- The group only says who is to own a partition; who owns it is in the log. So reading does not depend on the group: a rebalance
  interrupts nothing, and an owner whose partition was given to another member goes on until it reads that one's claim.
- An engine that stops leaves the group first, goes on until others have claimed what it owns, and hands over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from enum import StrEnum
from typing import Any, Final

from sagalog.infra.clock import Clock, Rng, utc, wait_for_stop
from sagalog.schemas.codec import decode_object
from sagalog.schemas.commands import parse_heartbeat
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.schemas.records import LEASE_KEY, MARKER_KEY, LeaseRecord
from sagalog.schemas.statuses import CircuitStatus
from sagalog.topics.log import Consumer, Log, LogError, Message, Producer, ProducerBroken, Reader, TopicPartition
from sagalog.topics.specs import DEFINITIONS, EVENTS, FIXED, HEALTH, Topics

from .circuits import CircuitMachine
from .gate import CircuitView
from .health import Change, Health, Seen
from .limits import (
    END_ASK_MS,
    END_TIMEOUT_S,
    HEALTH_LOOK_MS,
    LEAVE_TIMEOUT_S,
    LINGER_MS,
    LIVE_MS_TO_FORGIVE,
    MEMBER_POLL_MS,
    PENDING_RECORDS_MAX,
    POLL_MS_MAX,
    POLL_RECORDS_MAX,
    SESSION_BACKOFF_MS,
    TAKEOVER_BACKOFF_MS,
    TOPIC_CHECK_MS,
)
from .machine import Append, Machine
from .metrics import EngineMetrics
from .processor import OwnershipLost, Phase, Processor
from .sharing import EngineSharing, Says
from .workflows import WorkflowMachine

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """What the group wants of this member for a partition."""

    OWNER = "owner"
    STANDBY = "standby"


_ANEW = {Role.OWNER: "taken over", Role.STANDBY: "followed"}
_CIRCUIT_GAUGE = {CircuitStatus.CLOSED: 0, CircuitStatus.HALF_OPEN: 1, CircuitStatus.OPEN: 2}


REQUIRED: Final = tuple(spec for spec in FIXED if spec not in (EVENTS, HEALTH, DEFINITIONS))
"""Fixed topics that an engine reads or writes besides `events`."""


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
        standbys: int = 1,
        rack: str | None = None,
        tenant_weights: Mapping[str, int] | None = None,
    ) -> None:
        self.log = log
        self.topics = topics
        self.clock = clock
        self.rng = rng
        self.metrics = metrics or EngineMetrics()
        self.member = member or f"{socket.gethostname()}-{os.getpid()}-{rng.hex(6)}"
        self._snapshot_interval_s = snapshot_interval_ms / 1000
        self.standbys = standbys
        self.rack = rack
        self.tenant_weights = dict(tenant_weights or {})
        self.session: Session | None = None
        self._failures = 0
        """Sessions in a row that did not last."""
        self._failing_since_ms = 0
        self._wait_s = 0.0
        """Before the next session."""
        self.health = Health(clock)
        """Whether its partitions move on; it may be asked from any thread."""
        self.metrics.health = self.health

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. After an error everything is taken over anew, with back-off."""
        looking = asyncio.get_running_loop().create_task(self._look_on())
        try:
            await self._sessions(stop)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _sessions(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.session = Session(self, self._snapshot_interval_s)
            self.metrics.sessions.inc()
            try:
                await self.session.run(stop)
            except Exception:  # noqa: BLE001 - it is said
                # A bug must not take away the partitions that work: all of them are taken over anew, from the log.
                await wait_for_stop(stop, self._wait_s)
            finally:
                self.session = None

    def failed(self, session: Session, error: Exception) -> None:
        """For the session: says so, before anything is closed. One that fails soon after it went live must not spin."""
        if session.live_ms >= LIVE_MS_TO_FORGIVE:
            self._failures = 0
        if not self._failures:
            self._failing_since_ms = self.clock.now_ms()
        self._wait_s = _backoff_s(SESSION_BACKOFF_MS, self._failures, self.rng)
        self._failures += 1
        logger.error(
            "engine %s: %s (failure %d since %s); trying again in %.1f s",
            self.member, error, self._failures, utc(self._failing_since_ms), self._wait_s,
            exc_info=None if isinstance(error, LogError) else error,
        )  # fmt: skip
        self.health.disconnected(str(error) if isinstance(error, LogError) else f"{type(error).__name__}: {error}")

    async def _look_on(self) -> None:
        """Beside the sessions, so that one that does not come about is seen, too."""
        while True:
            try:
                for change in self.health.look(self.session.seen() if self.session is not None else None):
                    _tell(change)
            except Exception:
                # Whoever only looks must not stop the work, nor fall silent: then the process would be taken for hung.
                logger.exception("engine %s: looking at the partitions failed", self.member)
            await asyncio.sleep(HEALTH_LOOK_MS / 1000)


class Session:
    """From one connection to the broker to its loss."""

    def __init__(self, engine: Engine, snapshot_interval_s: float) -> None:
        self._engine = engine
        self._log = engine.log
        self._topics = engine.topics
        self._clock = engine.clock
        self._metrics = engine.metrics
        self._health = engine.health
        self._snapshot_interval_s = snapshot_interval_s
        self._sharing = EngineSharing(self._says)
        self._member: Consumer | None = None
        """The membership in the group. It reads nothing."""
        self._membership: asyncio.Task[None] | None = None
        self._reader: Reader | None = None
        self._producer: Producer | None = None
        self._partitions = 1
        self._outcome_partitions = 1
        self.processors: dict[TopicPartition, Processor] = {}
        """Of the partitions that this member owns, is to own, stands by for, or still owns although they are another's to be."""
        self._roles: dict[TopicPartition, Role] = {}
        """As the group has shared out last."""
        self._assigned = False
        """The group has shared out, since this session began."""
        self._leaving = False
        """It takes nothing more over."""
        self._lingering: dict[TopicPartition, int] = {}
        """Until when (monotonic) an owner goes on whose partition is another's to be."""
        self._serving: dict[TopicPartition, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._circuits: dict[str, CircuitView] = {}
        self._leases: dict[str, LeaseRecord] = {}
        """By bucket."""
        self._failures: dict[TopicPartition, int] = {}
        self._live_since_ms: int | None = None

    @property
    def was_live(self) -> bool:
        """Whether a partition has been live."""
        return self._live_since_ms is not None

    @property
    def live_ms(self) -> int:
        """Since its first partition was live."""
        return self._clock.monotonic_ms() - self._live_since_ms if self._live_since_ms is not None else 0

    async def run(self, stop: asyncio.Event) -> None:
        try:
            await self._run(stop)
        except Exception as error:
            # Before anything is closed: without a broker that takes long.
            self._assigned = False
            self._engine.failed(self, error)
            raise
        finally:
            await self._close()

    async def _run(self, stop: asyncio.Event) -> None:
        partitions = self._partitions = await self._require(self._topics.events)
        self._outcome_partitions = await self._require(self._topics.outcomes)
        circuit_partitions = await self._require(self._topics.circuits)
        await self._require_rest()
        self._producer = await self._log.producer(f"engine-{self._engine.member}")
        self._spawn(self._follow_circuits(circuit_partitions))
        self._spawn(self._follow_heartbeats(partitions))
        self._spawn(self._check_topics(partitions))
        self._spawn(self._snapshots())
        self._spawn(self._ask_ends())
        self._reader = await self._log.read({}, committed=False, client_id=f"engine-{self._engine.member}")
        self._member = await self._log.join(
            self._topics.engine_group,
            [self._topics.events, self._topics.outcomes],
            self._on_assigned,
            self._on_revoked,
            sharing=self._sharing,
        )
        self._member.pause(*self._member.assignment())
        self._membership = self._spawn(self._keep_membership(self._member))
        leaving = self._spawn(self._leave(stop))
        await self._loop(leaving)
        await self._last_snapshots()

    # --- the loop

    async def _loop(self, leaving: asyncio.Task[None]) -> None:
        assert self._reader is not None and self._producer is not None
        reader, producer = self._reader, self._producer
        while not leaving.done():
            batches = await reader.poll(self._poll_ms(), POLL_RECORDS_MAX)
            if self._broken.done():
                self._broken.result()
            for partition, messages in batches.items():
                processor = self.processors.get(TopicPartition(*partition))
                if processor is not None and processor.reads:
                    processor.feed(messages)
            now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            for partition, processor in list(self.processors.items()):
                processor.tick(now_ms, monotonic_ms)
                if processor.failure is not None:
                    self._start_over(processor)
                elif self._lingering.get(partition, monotonic_ms) < monotonic_ms:
                    logger.warning("%s/%d: nobody has claimed it; it is given up", *partition)
                    self._replace(processor)
            if producer.pending > PENDING_RECORDS_MAX:
                # The broker takes less than the fold makes: nothing more is read until it has caught up.
                await producer.below(PENDING_RECORDS_MAX // 2)

    def _read(self) -> None:
        """What is folded here is read from here on, each partition from where its fold is."""
        assert self._reader is not None
        self._reader.assign({p.input: p.position for p in self.processors.values() if p.reads})

    def _poll_ms(self) -> int:
        now_ms = self._clock.now_ms()
        due_ms = min(
            (p.machine.next_due_ms() for p in self.processors.values() if p.phase is Phase.LIVE),
            default=now_ms + POLL_MS_MAX,
        )
        return max(1, min(POLL_MS_MAX, due_ms - now_ms))

    # --- the group

    def _says(self) -> Says:
        """To whoever shares out: what this member owns, and for what it stands by."""
        phases = {partition: processor.phase for partition, processor in self.processors.items()}
        return Says(
            self._engine.rack,
            frozenset(partition for partition, phase in phases.items() if phase is Phase.LIVE),
            frozenset(partition for partition, phase in phases.items() if phase is Phase.STANDBY),
            self._engine.standbys,
        )

    async def _keep_membership(self, member: Consumer) -> None:
        """A member that does not poll for long is taken for dead."""
        while True:
            await member.poll(MEMBER_POLL_MS, 1)

    async def _on_revoked(self, revoked: set[TopicPartition]) -> None:
        """Says nothing about who owns: that follows with the next assignment, or is read in the log."""

    async def _on_assigned(self, assigned: set[TopicPartition]) -> None:
        if self._member is not None:
            self._member.pause(*assigned)
        if self._leaving:
            return
        note = self._sharing.note
        self._roles = dict.fromkeys(note.standbys, Role.STANDBY) | dict.fromkeys(assigned, Role.OWNER)
        for partition in self._roles:
            if partition not in self.processors:
                self._begin(partition, 0.0)
            elif self._roles[partition] is Role.OWNER:
                self._promote(self.processors[partition])
        for partition, processor in list(self.processors.items()):
            if self._roles.get(partition) is Role.OWNER:
                self._lingering.pop(partition, None)
            elif processor.reads:
                # Until it reads the claim of whoever is to own it.
                self._lingering.setdefault(partition, self._clock.monotonic_ms() + LINGER_MS)
            elif partition not in self._roles or processor.promoted:
                self._replace(processor)
        self._count_phases()
        self._assigned = True

    def _begin(self, partition: TopicPartition, wait_s: float) -> None:
        """By the partition's role as it is then: stands by, or takes over."""
        processor = self._make(partition)
        self.processors[partition] = processor
        if self._roles.get(partition) is Role.OWNER:
            self._promote(processor)
        task = self._spawn(self._serve(processor, wait_s))
        self._serving[partition] = task
        task.add_done_callback(lambda done: self._served(partition, done))

    def _promote(self, processor: Processor) -> None:
        processor.promote(succession=processor.input in self._sharing.note.handed_over)

    def _served(self, partition: TopicPartition, task: asyncio.Task[None]) -> None:
        if self._serving.get(partition) is task:
            del self._serving[partition]

    async def _serve(self, processor: Processor, wait_s: float) -> None:
        if wait_s:
            await asyncio.sleep(wait_s)
        noting = self._spawn(self._note_live(processor))
        try:
            await processor.follow(self._read)
        except (LogError, SagalogError) as error:
            if self.processors.get(processor.input) is processor:
                self._start_over(processor, error)
        finally:
            noting.cancel()  # or it would keep one that never goes live, with all its checkpoints

    def _drop(self, processor: Processor) -> None:
        """Is done with a processor; one whose partition another member has claimed hands over first."""
        partition = processor.input
        task = self._serving.pop(partition, None)
        if task is not None:
            task.cancel()
        self._lingering.pop(partition, None)
        if self.processors.get(partition) is processor:
            del self.processors[partition]
        self._spawn(_retire(processor))
        if self._reader is not None and processor.reads:
            self._read()

    def _replace(self, processor: Processor, wait_s: float = 0.0) -> None:
        """By one of the role that the group wants now, if any."""
        self._drop(processor)
        if processor.input in self._roles:
            self._begin(processor.input, wait_s)

    def _start_over(self, processor: Processor, error: BaseException | None = None) -> None:
        """Throws a failed processor's state away, and begins anew with what is this member's to own or to stand by for.

        Raises ProducerBroken: the producer is shared, and a broken one never sends again, so the whole session starts over.
        """
        cause = error or processor.failure
        if isinstance(cause, ProducerBroken):
            raise cause
        partition = processor.input
        role = self._roles.get(partition)
        if not isinstance(cause, OwnershipLost):
            self._health.failed(partition, str(cause) or type(cause).__name__)
        if role is None or (isinstance(cause, OwnershipLost) and role is Role.STANDBY):
            logger.info("%s/%d: %s: %s", *partition, "stands by" if role else "given up", cause)
            self._replace(processor)
            return
        # One that fails again soon after it went live must not spin.
        failures = 0 if processor.live_ms >= LIVE_MS_TO_FORGIVE else self._failures.get(partition, 0) + 1
        self._failures[partition] = failures
        wait_s = _backoff_s(TAKEOVER_BACKOFF_MS, failures, self._engine.rng)
        logger.warning("%s/%d: %s anew in %.1f s: %s", *partition, _ANEW[role], wait_s, cause)
        self._replace(processor, wait_s)

    async def _leave(self, stop: asyncio.Event) -> None:
        """Once it is to stop: leaves the group, and goes on with what it owns until others have claimed it."""
        await stop.wait()
        assert self._member is not None
        self._leaving, self._roles = True, {}
        for processor in [p for p in self.processors.values() if not p.reads]:
            self._drop(processor)  # or it would still claim the partition
        # What is claimed and not live yet will be, and is handed over like the rest.
        owned = [p for p in self.processors.values() if p.failure is None]
        if not owned:
            return
        alone = self._sharing.note.members <= 1
        # Not cut short: what a snapshot would have said, the next owner would not know.
        saying = [self._spawn(p.may_commit() if alone else p.leave()) for p in owned]
        _, unsaid = await asyncio.wait(saying, timeout=LEAVE_TIMEOUT_S)
        if unsaid:
            logger.warning("%d partitions are left without a word to their next owners: it takes too long", len(unsaid))
        if alone:
            return
        if self._membership is not None:
            self._membership.cancel()
        await self._member.close()
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await asyncio.gather(*(processor.stopped.wait() for processor in owned))
        except TimeoutError:
            left = ", ".join(f"{p.input.topic}/{p.input.partition}" for p in owned if p.phase is Phase.LIVE)
            logger.warning("nobody has claimed %s within %g s; whoever does later takes over", left, LEAVE_TIMEOUT_S)

    def _make(self, partition: TopicPartition) -> Processor:
        assert self._producer is not None
        number = partition.partition
        if partition.topic == self._topics.events:

            def make(append: Append) -> Machine:
                machine = WorkflowMachine(
                    self._topics,
                    number,
                    self._partitions,
                    self._outcome_partitions,
                    append,
                    self._metrics,
                    leases=self._leases,
                    weights=self._engine.tenant_weights,
                )
                for service, view in self._circuits.items():
                    machine.circuit(service, view)
                return machine

            transactional_id = self._topics.engine_transactional_id(number)
        else:

            def make(append: Append) -> Machine:
                return CircuitMachine(self._topics, number, append, self._metrics)

            transactional_id = self._topics.circuits_transactional_id(number)
        return Processor(
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

    async def _note_live(self, processor: Processor) -> None:
        await processor.live.wait()
        if self._live_since_ms is None:
            self._live_since_ms = self._clock.monotonic_ms()
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
        await asyncio.gather(*(processor.stop() for processor in live))

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
                if isinstance(processor.machine, WorkflowMachine):
                    for reason, count in processor.machine.gate.reasons().items():
                        self._metrics.withheld_by_reason.labels(str(partition), reason).set(count)
                self._metrics.attempts_out.labels(str(partition)).set(stats["attempts_out"])
        self._count_phases()

    def _count_phases(self) -> None:
        for phase in Phase:
            count = sum(p.phase is phase for p in self.processors.values())
            self._metrics.partitions.labels(phase.value).set(count)

    # --- health

    def seen(self) -> Mapping[TopicPartition, Seen] | None:
        """The partitions that this member is to own, or still owns; None before the group has shared out."""
        if not self._assigned:
            return None
        return {
            partition: Seen(p.phase.value, p.position, p.loaded, p.saved)
            for partition, p in self.processors.items()
            if p.reads or self._roles.get(partition) is Role.OWNER
        }

    async def _ask_ends(self) -> None:
        """Where the log ends. What the broker does not say is no reason to start over: the health tells of it."""
        while True:
            await asyncio.sleep(END_ASK_MS / 1000)
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._ask_ends_once()
            except (LogError, TimeoutError) as error:
                self._health.unanswered(str(error) or f"no answer within {END_TIMEOUT_S:g} s")

    async def _ask_ends_once(self) -> None:
        reader = self._reader
        seen = self.seen()
        if reader is None or seen is None:
            return
        partitions = list(seen)
        ends = await reader.end_offsets(partitions) if partitions else {}
        passed: dict[TopicPartition, int] = {}
        for partition, end in ends.items():
            processor = self.processors.get(partition)
            # Transaction markers of other writers are never applied: of what looks behind, ask how far it has been read.
            if processor is not None and processor.reads and processor.position < end:
                passed[partition] = await reader.position(partition)
                processor.has_passed(passed[partition])
        self._health.ended_at(ends, passed)

    # --- what all processors share

    async def _follow_circuits(self, partitions: int) -> None:
        topic = self._topics.circuits
        reader = await self._log.read(
            {TopicPartition(topic, number): None for number in range(partitions)}, committed=True, client_id="circuits"
        )
        try:
            await self._read_on(reader, self._on_circuit)
        finally:
            await reader.close()

    def _on_circuit(self, message: Message) -> None:
        key = (message.key or b"").decode(errors="replace")
        if key.startswith(LEASE_KEY):
            self._on_lease(key.removeprefix(LEASE_KEY), message.value)
            return
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
        for processor in self.processors.values():
            if isinstance(processor.machine, WorkflowMachine):
                processor.machine.circuit(key, view)

    def _on_lease(self, bucket: str, value: bytes | None) -> None:
        if value is None:
            self._leases.pop(bucket, None)
        else:
            self._leases[bucket] = decode_object(value)  # type: ignore[assignment]
        for processor in self.processors.values():
            if isinstance(processor.machine, WorkflowMachine):
                processor.machine.leased(bucket)

    async def _follow_heartbeats(self, partitions: int) -> None:
        topic = self._topics.heartbeats
        numbers = [TopicPartition(topic, number) for number in range(await self._require(topic))]
        reader = await self._log.read(dict.fromkeys(numbers, 0), committed=False, client_id="heartbeats")
        try:
            for partition, offset in (await reader.end_offsets(numbers)).items():
                reader.seek(partition, offset)
            await self._read_on(reader, self._on_heartbeat)
        finally:
            await reader.close()

    def _on_heartbeat(self, message: Message) -> None:
        processor = self.processors.get(TopicPartition(self._topics.events, message.partition))
        if processor is not None and processor.reads and isinstance(processor.machine, WorkflowMachine):
            beat = parse_heartbeat(message.value)
            beating = (message.key or b"").decode(errors="replace")
            processor.machine.heard(beating, beat.workflow_id, beat.step, beat.attempt, beat.direction)

    async def _read_on(self, reader: Consumer, handle: Callable[[Message], None]) -> None:
        while True:
            for messages in (await reader.poll(1_000, POLL_RECORDS_MAX)).values():
                for message in messages:
                    try:
                        handle(message)
                    except (InvalidRecord, KeyError, ValueError) as error:
                        origin = f"{message.topic}/{message.partition}/{message.offset}"
                        self._metrics.quarantined.labels("decode").inc()
                        logger.warning("%s cannot be read and is passed over: %s", origin, error)

    async def _check_topics(self, partitions: int) -> None:
        """A deleted topic gives empty polls, and sends that never end, for ever: ask, and say so."""
        while True:
            await asyncio.sleep(TOPIC_CHECK_MS / 1000)
            found = await self._require(self._topics.events)
            if found != partitions:
                raise TopicGone(
                    f"topic {self._topics.events} has {found} partitions where it had {partitions}: workflows would change "
                    "their partition; make it as it was"
                )
            await self._require_rest()

    async def _require_rest(self) -> None:
        """The other topics without which nothing can go on."""
        for spec in REQUIRED:
            await self._require(self._topics.name(spec))

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
        for consumer in (self._member, self._reader):
            if consumer is not None:
                await consumer.close()
        await asyncio.gather(*(processor.close() for processor in self.processors.values()), return_exceptions=True)
        if self._producer is not None:
            await self._producer.close()


def _tell(change: Change) -> None:
    health = change.health
    if change.stuck:
        logger.warning("%s is stuck, for %.1f s now: %s", health.name, change.still_ms / 1000, health.why())
    else:
        logger.info("%s moves again: %s, applied offset %d", health.name, health.phase, health.applied_offset)


async def _retire(processor: Processor) -> None:
    await processor.hand_over()
    await processor.close()


def _backoff_s(limits_ms: tuple[int, int], failures: int, rng: Rng) -> float:
    first, longest = limits_ms
    wait_ms: int = min(longest, first << min(failures, 16))
    return rng.uniform(0.5, 1.0) * wait_ms / 1000
