"""One partition, from standby to release. Its owner is the only writer of its workflows.

Phases: LOADING (reads the checkpoints) -> STANDBY (has read them to their end, and reads on as they are written) -> CATCHING_UP
(has claimed the partition; folds from the newest marker on; effects gather in the outbox) -> LIVE (has read its own `owned`
event) -> STOPPED. Only who is promoted goes further than STANDBY.

Rules:
- The position comes from the marker, never from the group's offsets: a zombie may still commit those.
- The owner before is fenced when the new one is live, before its first snapshot. What that one still writes meanwhile does no
  harm: it is the same fold of the same log, and all that it changes has changed here since the marker, and so is written anew.
- Who is live may itself be long outdated, having slept over the claims of others. So it asks where the log ends, and fences nobody
  before it has folded that far; and as somebody may claim just then, it asks again after fencing, and commits nothing until it
  has folded that far, too: an earlier claim than its fence is known by then, and whoever claims later fences it.
- Of an owner that is alive and hands over, the new one awaits the last marker before it sends again what was caused before its
  claim. What comes after the claim goes out at once.
- A snapshot is cut at an offset and committed only after everything caused up to it is durable.
- Whatever goes wrong, the producer *and* the state are thrown away, and the partition is taken over anew from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from sagalog.infra.clock import Clock
from sagalog.schemas.codec import decode, decode_object
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.events import Owned
from sagalog.schemas.records import MARKER_KEY, OWNER_KEY
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
    header,
)

from . import outputs
from .digest import CheckpointsDamaged
from .limits import (
    ACK_TIMEOUT_S,
    CLAIMS_MAX,
    CUT_PAUSE_S,
    CUT_WORKFLOWS,
    FOLLOW_POLL_MS,
    LOAD_POLL_MS,
    POLL_RECORDS_MAX,
    SUCCESSION_TIMEOUT_S,
)
from .machine import Append, Cut, LastWord, Machine
from .metrics import EngineMetrics
from .progress import Progress

logger = logging.getLogger(__name__)


class Phase(StrEnum):
    LOADING = "loading"
    STANDBY = "standby"
    CATCHING_UP = "catching_up"
    LIVE = "live"
    STOPPED = "stopped"


class OwnershipLost(SagalogError):
    """Another member owns the partition by the log."""


class Processor:
    """Runs one machine. `position` and `feed` belong to the engine's loop; `follow` and the snapshots run beside it."""

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
        self._fenced_at: int | None = None
        """Where the log ended when the owner before had been fenced."""
        self._passed = 0
        """Up to there it has read. Behind its last record there may be markers of others' transactions, records to nobody."""
        self._group = group
        self._member = member
        self._clock = clock
        self._metrics = metrics
        self._claim = 0
        self._claims = 0
        self._owned_at = -1
        """The offset of the claim that won; -1 before."""
        self._promoted = asyncio.Event()
        self._succession = False
        """The owner before is alive, and hands over."""
        self._leaving = False
        self._word: dict[str, set[str]] = {}
        """By what the owner before has written since its marker."""
        self._unacked: set[asyncio.Future[None]] = set()
        self._failure: BaseException | None = None
        self._started_ms = clock.monotonic_ms()
        self._snapshotting = asyncio.Lock()
        self._end: int | None = None
        """Where the log ended before anybody was fenced."""
        self._at_the_end_or_failed = asyncio.Event()
        self._may_commit_or_failed = asyncio.Event()
        self._live_since_ms: int | None = None
        self.loaded = 0
        """Records of checkpoints that it has read."""
        self.saved = False
        """It has committed a snapshot."""
        self.took_ms = 0
        """From its promotion until it was live."""
        self.live = asyncio.Event()
        self.stopped = asyncio.Event()

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

    # --- standing by, and taking over

    async def follow(self, reading: Callable[[], None]) -> None:
        """Reads the checkpoints; once promoted, claims the partition, and ends when it is live and the owner before is fenced.

        `reading` is called when events are to be fed from `position` on. Raises LogError, CheckpointsDamaged, OwnershipLost.
        """
        self._set_time()
        partition = self.machine.checkpoints
        reader = await self._log.read({partition: None}, committed=True, client_id=f"{self._transactional_id}-loader")
        try:
            await self._load_to_end(reader)
            # Of no use yet, but so the client knows where the partition is when it is asked again: that takes it 0.1 s.
            await reader.beginning_offsets([self.input])
            self.phase = Phase.STANDBY
            while not self._promoted.is_set():
                await self._load_more(reader)
            await self._load_to_end(reader)
            self._set_time()
            marker = self.machine.loaded(self._clock.now_ms())
            await self._require_log(reader)
            checkpoints = "no" if marker is None else marker["workflows"]
            logger.info("%s/%d: %s checkpoints loaded, position %d", *self.input, checkpoints, self.position)
            self._succession = self._succession or (marker is not None and marker.get("leaving", False))
            self._claim_next()
            self.phase = Phase.CATCHING_UP
            reading()
            await self.live.wait()
            if self._succession:
                word = await self._last_word(reader)
                self._guarded(lambda: self.machine.succeed(word))
            if await self._read_to_the_end(reader):
                self._transactions = await self._log.transactional(self._transactional_id)
                self._fenced_at = (await reader.end_offsets([self.input]))[self.input]
                self._look_how_far_it_is()
        finally:
            await reader.close()

    def promote(self, *, succession: bool) -> None:
        """This member is to own the partition; with `succession` its owner is alive and hands over."""
        if not self._promoted.is_set():
            self._started_ms = self._clock.monotonic_ms()
            self._succession = succession
            self._promoted.set()

    @property
    def reads(self) -> bool:
        """Whether events are to be fed to it."""
        return self.phase in (Phase.CATCHING_UP, Phase.LIVE)

    @property
    def promoted(self) -> bool:
        return self._promoted.is_set()

    async def _load_to_end(self, reader: Consumer) -> None:
        """All transactions that have ended. One that is open is read when it ends, or is none of ours."""
        partition = self.machine.checkpoints
        end = (await reader.end_offsets([partition]))[partition]
        progress = None
        while (position := await reader.position(partition)) < end:
            if progress is None:
                progress = Progress(position, end, self._clock.monotonic_ms())
            elif (said := progress.at(position, self._clock.monotonic_ms())) is not None:
                logger.info("%s/%d: loading checkpoints, %s", *self.input, said)
            self._load((await reader.poll(LOAD_POLL_MS, POLL_RECORDS_MAX)).values())

    async def _load_more(self, reader: Consumer) -> None:
        """What comes until somebody promotes this processor."""
        loop = asyncio.get_running_loop()
        poll = loop.create_task(reader.poll(FOLLOW_POLL_MS, POLL_RECORDS_MAX))
        promoted = loop.create_task(self._promoted.wait())
        try:
            await asyncio.wait([poll, promoted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            promoted.cancel()
            poll.cancel()  # it has taken nothing then: it returns records in the step in which it takes them
            await asyncio.wait([poll, promoted])
        if not poll.cancelled():
            self._load(poll.result().values())

    def _load(self, batches: Iterable[Sequence[Message]]) -> None:
        for messages in batches:
            self.loaded += len(messages)
            for message in messages:
                self.machine.load(message)

    async def _last_word(self, reader: Consumer) -> LastWord | None:
        """What the owner before has not sent, once it says that all else before the claim is. None when it does not in time."""
        try:
            async with asyncio.timeout(SUCCESSION_TIMEOUT_S):
                while True:
                    for messages in (await reader.poll(FOLLOW_POLL_MS, POLL_RECORDS_MAX)).values():
                        if any(self._is_last_marker(message) for message in messages):
                            return self._word
        except TimeoutError:
            logger.warning("%s/%d: the owner before says nothing; what it may have sent is sent again", *self.input)
            return None

    def _is_last_marker(self, message: Message) -> bool:
        if message.key == MARKER_KEY.encode() and message.value is not None:
            # One just before the claim is not the last: until that owner has read the claim, its gate lets commands go.
            return int(decode_object(message.value)["at_offset"]) >= self._owned_at
        key = (message.key or b"").decode(errors="replace")
        waiting = header(message.headers, outputs.WITHHELD)
        self._word[key] = (
            {f"{key}/{name}" for name in decode(waiting, outputs.WITHHELD)} if waiting is not None else set()
        )
        return False

    async def _require_log(self, reader: Consumer) -> None:
        """The log must reach back to where folding has to go on, and up to it."""
        begins, ends = await asyncio.gather(reader.beginning_offsets([self.input]), reader.end_offsets([self.input]))
        begin, end = begins[self.input], ends[self.input]
        if end < self.position:
            raise CheckpointsDamaged(
                f"{self.input.topic}/{self.input.partition} ends at offset {end}, but the checkpoints are at {self.position - 1}: "
                "the topic was made anew or has lost records; restore it, or, to begin without what it held, delete the topic "
                f"{self.machine.checkpoints.topic} too and make it with: sagalog topics create"
            )
        if begin > self.position:
            raise CheckpointsDamaged(
                f"{self.input.topic}/{self.input.partition} begins at offset {begin}, but the checkpoints end at "
                f"{self.position - 1}: retention deleted events that were never folded; restore them, and keep events "
                "longer (retention.ms)"
            )

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
            self._owned_at = self.machine.offset
            self._go_live()
        elif self.phase is Phase.LIVE:
            self.machine.stop()
            self._fail(OwnershipLost(f"{self.input.topic}/{self.input.partition}: {member} owns it now, epoch {epoch}"))

    def _go_live(self) -> None:
        self.phase = Phase.LIVE
        self.machine.go_live(self._clock.now_ms(), succession=self._succession)
        self._live_since_ms = self._clock.monotonic_ms()
        self.live.set()
        self.took_ms = self._clock.monotonic_ms() - self._started_ms
        self._metrics.takeover_seconds.observe(self.took_ms / 1000)
        logger.info("%s/%d: live, epoch %d, after %d ms", *self.input, self._claim, self.took_ms)

    def claim_lost(self, epoch: int, member: str) -> None:
        if member == self._member and epoch == self._claim and self.phase is Phase.CATCHING_UP:
            self._claim_next()

    # --- the engine's loop

    def feed(self, messages: Sequence[Message]) -> None:
        """Folds records; whatever they cause is queued for sending. Never blocks, never raises."""
        self._set_time()
        self._guarded(lambda: self.machine.fold(messages, self))
        self._look_how_far_it_is()

    def has_passed(self, offset: int) -> None:
        """It has been fed all records before `offset`."""
        self._passed = offset
        self._look_how_far_it_is()

    def tick(self, now_ms: int, monotonic_ms: int) -> None:
        if self.phase is Phase.LIVE:
            self._guarded(lambda: self.machine.tick(now_ms, monotonic_ms))

    def _set_time(self) -> None:
        self.machine.tick(self._clock.now_ms(), self._clock.monotonic_ms())

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            return
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
        # Who has lost the partition may still hand over, but not if something that it sent before failed.
        if self._failure is None or isinstance(self._failure, OwnershipLost):
            self._failure = error
            self._look_how_far_it_is()

    # --- snapshots

    async def snapshot(self, *, always: bool = False) -> bool:
        """One transaction: the checkpoints changed since the last, the marker, the group's offset. True when one was made."""
        async with self._snapshotting:
            if self._failure is not None or not self._may_commit:
                return False
            return await self._snapshot(always=always)

    @property
    def _may_commit(self) -> bool:
        """Whether it is known that nobody claimed the partition between its own claim and its fence."""
        return self.phase is Phase.LIVE and self._fenced_at is not None and self._has_read_to(self._fenced_at)

    def _has_read_to(self, offset: int) -> bool:
        return max(self.position, self._passed) >= offset

    def _look_how_far_it_is(self) -> None:
        failed = self._failure is not None
        if failed or (self._end is not None and self._has_read_to(self._end)):
            self._at_the_end_or_failed.set()
        if failed or self._may_commit:
            self._may_commit_or_failed.set()

    async def _read_to_the_end(self, reader: Consumer) -> bool:
        """Whether nobody has claimed the partition since, as far as the log goes now."""
        self._end = (await reader.end_offsets([self.input]))[self.input]
        self._look_how_far_it_is()
        await self._at_the_end_or_failed.wait()
        return self._failure is None

    async def may_commit(self) -> None:
        """Returns once it may, or has failed."""
        await self._may_commit_or_failed.wait()

    async def leave(self) -> None:
        """From now on every marker says that this owner is about to hand over. Returns when one does, or when it has failed."""
        self._leaving = True
        await self.may_commit()
        await self.snapshot(always=True)

    async def stop(self) -> None:
        """A last snapshot; after one that said that this owner is leaving, one of which no successor need await more."""
        left, self._leaving = self._leaving, False
        await self.snapshot(always=left)

    async def hand_over(self) -> None:
        """Another member has claimed the partition: a last snapshot tells it that all up to its claim is sent."""
        async with self._snapshotting:
            if self._may_commit and isinstance(self._failure, OwnershipLost):
                self._failure = None
                self._leaving = False
                if not await self._snapshot(always=True):
                    logger.info("%s/%d: not handed over: %s", *self.input, self._failure)

    async def _snapshot(self, *, always: bool) -> bool:
        self.machine.flush(self._clock.now_ms())
        cut = self.machine.cut(leaving=self._leaving, always=always)
        if cut is None:
            return False
        started_ms = self._clock.monotonic_ms()
        try:
            while not cut.advance(CUT_WORKFLOWS):  # noqa: ASYNC110 - nothing is waited for: folding gets its turn
                await asyncio.sleep(CUT_PAUSE_S)
            await self._commit(cut)
        except (Exception, asyncio.CancelledError) as error:
            # What was cut for it is in none, so another must not follow.
            self._fail(error if isinstance(error, Exception) else LogError("cancelled in a snapshot"))
            if not isinstance(error, (LogError, TimeoutError)):
                raise
            self._metrics.snapshots.labels("fenced" if isinstance(error, Fenced) else "failed").inc()
            return False
        self.saved = True
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
        # A claim of another member is behind the cut: up to there all is as it was.
        if self._failure is not None and not isinstance(self._failure, OwnershipLost):
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
        self.stopped.set()

    def stats(self) -> Mapping[str, float]:
        return self.machine.stats()
