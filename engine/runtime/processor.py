"""One owned partition, from take-over to release. The only writer of its workflows.

Phases: LOADING (fence, then read the checkpoints to their end) -> CATCHING_UP (fold from the marker on; effects gather in the
outbox) -> LIVE (from the offset of its own `owned` event on) -> STOPPED.

Rules:
- The position comes from the marker, never from the group's offsets: a zombie may still commit those.
- A snapshot is cut at an offset and committed only after everything caused up to it is durable.
- Whatever goes wrong, the producer *and* the state are thrown away, and the partition is taken over anew from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from sagalog.infra.clock import Clock
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.events import Owned
from sagalog.schemas.records import OWNER_KEY, MarkerRecord
from sagalog.topics.log import (
    Consumer,
    Fenced,
    Log,
    LogError,
    Message,
    Out,
    Producer,
    TopicPartition,
    TransactionalProducer,
)

from . import outputs
from .digest import CheckpointsDamaged
from .limits import ACK_TIMEOUT_S, CLAIMS_MAX, POLL_RECORDS_MAX
from .machine import Append, Cut, Machine
from .metrics import EngineMetrics

logger = logging.getLogger(__name__)


class Phase(StrEnum):
    LOADING = "loading"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    STOPPED = "stopped"


class OwnershipLost(SagalogError):
    """Another member owns the partition by the log."""


class Processor:
    """Runs one machine. `position` and `feed` belong to the engine's loop; snapshots run beside it."""

    def __init__(
        self,
        make_machine: Callable[[Append], Machine],
        log: Log,
        producer: Producer,
        transactional_id: str,
        group: str,
        member: str,
        clock: Clock,
        metrics: EngineMetrics,
    ) -> None:
        self.machine = make_machine(self._append)
        self.phase = Phase.LOADING
        self._log = log
        self._producer = producer
        self._transactional_id = transactional_id
        self._transactions: TransactionalProducer | None = None
        self._group = group
        self._member = member
        self._clock = clock
        self._metrics = metrics
        self._marker: MarkerRecord | None = None
        self._claim = 0
        self._claims = 0
        self._unacked: set[asyncio.Future[None]] = set()
        self._failure: BaseException | None = None
        self._started_ms = clock.monotonic_ms()
        self._snapshotting = asyncio.Lock()
        self._live_since_ms: int | None = None
        self.live = asyncio.Event()

    @property
    def input(self) -> TopicPartition:
        return self.machine.input

    @property
    def position(self) -> int:
        """The offset to read next."""
        return self.machine.offset + 1

    @property
    def live_ms(self) -> int:
        """For how long it has been live; 0 when it is not yet."""
        return self._clock.monotonic_ms() - self._live_since_ms if self._live_since_ms is not None else 0

    @property
    def failure(self) -> BaseException | None:
        """Why this processor cannot go on; the engine then takes the partition over anew."""
        return self._failure

    # --- take-over

    async def load(self) -> None:
        """Fences the owner before, reads the checkpoints, and claims the partition. Raises LogError, CheckpointsDamaged."""
        self._set_time()
        self._transactions = await self._log.transactional(self._transactional_id)
        await self._read_checkpoints()
        marker = self._marker
        checkpoints = "no" if marker is None else marker["workflows"]
        logger.info("%s/%d: %s checkpoints loaded, position %d", *self.input, checkpoints, self.position)
        self._claim_next()
        self.phase = Phase.CATCHING_UP

    async def _require_log(self, reader: Consumer) -> None:
        """The log must reach back to where folding has to go on."""
        begin = (await reader.beginning_offsets([self.input]))[self.input]
        if begin > self.position:
            raise CheckpointsDamaged(
                f"{self.input.topic}/{self.input.partition} begins at offset {begin}, but the checkpoints end at "
                f"{self.position - 1}: retention deleted events that were never folded; restore them, and keep events "
                "longer (retention.ms)"
            )

    async def _read_checkpoints(self) -> None:
        partition = self.machine.checkpoints
        reader = await self._log.read({partition: None}, committed=True, client_id=f"{self._transactional_id}-loader")
        try:
            # Fenced, nothing moves any more: the end that is there now is the end.
            end = (await reader.end_offsets([partition]))[partition]
            while await reader.position(partition) < end:
                for messages in (await reader.poll(1_000, POLL_RECORDS_MAX)).values():
                    for message in messages:
                        self.machine.load(message)
            self._marker = self.machine.loaded(self._clock.now_ms())
            await self._require_log(reader)
        finally:
            await reader.close()

    def _claim_next(self) -> None:
        if self._claims >= CLAIMS_MAX:
            raise OwnershipLost(
                f"{self.input.topic}/{self.input.partition}: {CLAIMS_MAX} claims were lost to other members; are two engines "
                "with the same prefix but different consumer groups running?"
            )
        self._claims += 1
        self._claim = self.machine.epoch + 1
        claim = outputs.event(OWNER_KEY, Owned(self._claim, self._member), f"@owner/{self._member}/{self._claim}")
        self._append(*self.input, [claim])

    # --- Ownership, as the fold sees it in the log

    def owner_changed(self, epoch: int, member: str) -> None:
        if member == self._member and epoch == self._claim:
            self.phase = Phase.LIVE
            self.machine.go_live(self._clock.now_ms())
            self._live_since_ms = self._clock.monotonic_ms()
            self.live.set()
            took_ms = self._clock.monotonic_ms() - self._started_ms
            self._metrics.takeover_seconds.observe(took_ms / 1000)
            logger.info("%s/%d: live, epoch %d, after %d ms", *self.input, epoch, took_ms)
        elif self.phase is Phase.LIVE:
            self.machine.stop()
            self._fail(OwnershipLost(f"{self.input.topic}/{self.input.partition}: {member} owns it now, epoch {epoch}"))

    def claim_lost(self, epoch: int, member: str) -> None:
        if member == self._member and epoch == self._claim and self.phase is Phase.CATCHING_UP:
            self._claim_next()

    # --- the engine's loop

    def feed(self, messages: Sequence[Message]) -> None:
        """Folds records; whatever they cause is queued for sending. Never blocks, never raises."""
        if self._failure is None:
            self._set_time()
            self._guarded(lambda: self.machine.fold(messages, self))

    def tick(self, now_ms: int, monotonic_ms: int) -> None:
        if self.phase is Phase.LIVE and self._failure is None:
            self._guarded(lambda: self.machine.tick(now_ms, monotonic_ms))

    def _set_time(self) -> None:
        self.machine.tick(self._clock.now_ms(), self._clock.monotonic_ms())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            # A bug in the runtime must cost its partition a rebuild, not the process; the log has everything.
            logger.exception("%s/%d failed", *self.input)
            self._fail(error)

    # --- sending

    def _append(self, topic: str, partition: int, records: Sequence[Out]) -> None:
        future = self._producer.append(topic, partition, records)
        if not future.done() or future.exception() is not None:
            self._unacked.add(future)
            future.add_done_callback(self._acked)

    def _acked(self, future: asyncio.Future[None]) -> None:
        self._unacked.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error

    # --- snapshots

    async def snapshot(self) -> bool:
        """One transaction: the checkpoints changed since the last, the marker, the group's offset. True when one was made."""
        async with self._snapshotting:
            if self.phase is not Phase.LIVE or self._failure is not None:
                return False
            self.machine.flush(self._clock.now_ms())
            cut = self.machine.cut()
            if cut is None:
                return False
            started_ms = self._clock.monotonic_ms()
            try:
                await self._commit(cut)
            except (LogError, TimeoutError) as error:
                self._metrics.snapshots.labels("fenced" if isinstance(error, Fenced) else "failed").inc()
                self._fail(error)
                return False
            except asyncio.CancelledError:
                self._fail(OwnershipLost("cancelled in a snapshot"))
                raise
            self._metrics.snapshots.labels("committed").inc()
            self._metrics.snapshot_records.inc(len(cut.records))
            self._metrics.snapshot_seconds.observe((self._clock.monotonic_ms() - started_ms) / 1000)
            return True

    async def _commit(self, cut: Cut) -> None:
        covered = list(self._unacked)
        if covered:
            done, pending = await asyncio.wait(covered, timeout=ACK_TIMEOUT_S)
            if pending:
                raise TimeoutError(f"{len(pending)} sends were not acknowledged within {ACK_TIMEOUT_S} s")
            for future in done:
                future.result()
        if self._failure is not None:
            raise LogError(f"sending failed before the snapshot: {self._failure}")
        assert self._transactions is not None
        await self._transactions.transact(
            {self.machine.checkpoints: cut.records}, self._group, {self.input: cut.offset + 1}
        )

    # --- the end

    async def close(self) -> None:
        """Gives the partition up; what is not in a snapshot is folded again by the next owner."""
        self.phase = Phase.STOPPED
        async with self._snapshotting:
            if self._transactions is not None:
                await self._transactions.close()
                self._transactions = None

    def stats(self) -> Mapping[str, float]:
        return self.machine.stats()
