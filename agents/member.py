"""One agent's place in its consumer group: which partitions it has, what is read from them, what is committed.

Rules:
- What the log is asked for on behalf of a partition that was taken over is asked in the reading task, not in the client's
  rebalance callback, which swallows errors.
- A commit that fails costs nothing but repeated work; it never stops the host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sagalog.infra.clock import Rng
from sagalog.topics.log import Consumer, Log, LogError, Message, NotAssigned, TopicPartition

from .limits import (
    BACKOFF_BASE_MS,
    BACKOFF_CAP_MS,
    COMMIT_TIMEOUT_MS,
    POLL_RECORDS_MAX,
    POLL_TIMEOUT_MS,
    SPAN_RECORDS_MAX,
    TRIAL_RECORDS_MIN,
)
from .offsets import Offsets

logger = logging.getLogger(__name__)

Batches = list[tuple[Offsets, Sequence[Message]]]


class Member:
    """`revoked` is called when partitions went to somebody else; what is open for them is `lost` by then."""

    def __init__(
        self, log: Log, group: str, topic: str, rng: Rng, *, trial_records: int, revoked: Callable[[], None]
    ) -> None:
        self._log = log
        self._group = group
        self._topic = topic
        self._rng = rng
        self._trial_records = max(trial_records, TRIAL_RECORDS_MIN)
        self._revoked = revoked
        self._consumer: Consumer | None = None
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._committed: dict[TopicPartition, tuple[int, str]] = {}
        self._generation = 0
        self._paused: set[TopicPartition] = set()
        self._commit_turn = asyncio.Lock()
        self.joined = asyncio.Event()
        """Set once the group has given out its partitions for the first time."""

    async def join(self) -> None:
        self._consumer = await self._log.join(self._group, [self._topic], self._on_assigned, self._on_revoked)

    async def _on_assigned(self, partitions: set[TopicPartition]) -> None:
        self._generation += 1
        self._paused.clear()
        self.joined.set()
        logger.info("%s has partitions %s", self._group, sorted(found.partition for found in partitions))

    async def _on_revoked(self, partitions: set[TopicPartition]) -> None:
        self._generation += 1
        owned = [found for found in partitions if found in self._offsets]
        try:
            await self._commit(owned, clean=True)
        except (LogError, TimeoutError) as error:
            logger.warning("the last commit of %s failed; work is repeated elsewhere: %s", self._group, error)
        for partition in owned:
            self._offsets.pop(partition).lost = True
            self._committed.pop(partition, None)
        if owned:
            self._revoked()

    # --- reading

    async def poll(self, room: int) -> Batches:
        """What there is to work on, at most `room` records. Raises LogError."""
        assert self._consumer is not None
        self._balance()
        batches = await self._consumer.poll(POLL_TIMEOUT_MS, min(room, POLL_RECORDS_MAX))
        if not batches:
            return []
        unknown = [partition for partition in batches if partition not in self._offsets]
        if unknown and not await self._adopt({partition: batches[partition][0].offset for partition in unknown}):
            return []
        return [(self._offsets[partition], messages) for partition, messages in batches.items()]

    async def poll_paused(self) -> None:
        """Keeps the membership alive while nothing can be taken."""
        assert self._consumer is not None
        assigned = self._consumer.assignment()
        fresh = assigned - self._paused
        if fresh:
            self._consumer.pause(*fresh)
            self._paused |= fresh
        # Paused partitions give nothing; had one been assigned this instant, its records come again from the commit.
        for partition, messages in (await self._consumer.poll(0, 1)).items():
            if partition in self._consumer.assignment():
                self._consumer.seek(partition, messages[0].offset)

    def _balance(self) -> None:
        """Pauses the partitions whose work has run too far ahead of their head, and no others."""
        held = {partition for partition, offsets in self._offsets.items() if offsets.span > SPAN_RECORDS_MAX}
        if held == self._paused:
            return
        assert self._consumer is not None
        assigned = self._consumer.assignment()
        self._consumer.resume(*((self._paused - held) & assigned))
        for partition in (held - self._paused) & assigned:
            logger.warning(
                "%s: offset %d holds up partition %d", self._group, self._offsets[partition].head, partition[1]
            )
            self._consumer.pause(partition)
        self._paused = held

    async def _adopt(self, first: Mapping[TopicPartition, int]) -> bool:
        """Reads how far the owners before were. False when the group has moved on meanwhile; then all is read again."""
        assert self._consumer is not None
        generation = self._generation
        delay_ms = BACKOFF_BASE_MS
        while generation == self._generation:
            try:
                committed = await self._log.committed(self._group, first)
                ends = await self._consumer.end_offsets(first)
                break
            except LogError as error:
                logger.warning("%s cannot read its commits, trying again: %s", self._group, error)
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                delay_ms = min(2 * delay_ms, BACKOFF_CAP_MS)
        if generation != self._generation:
            return False
        for partition, offset in first.items():
            base, metadata = committed.get(partition, (offset, ""))
            offsets = Offsets.resume(base, metadata) if base <= offset else Offsets(offset)
            if offsets.suspicious:
                # What came after the owner before was gone cannot have killed it.
                offsets.trial_end = min(offsets.head + self._trial_records, ends.get(partition, offset + 1))
            self._offsets[partition] = offsets
        return True

    # --- committing

    async def commit(self) -> None:
        """Commits what has changed. Raises LogError."""
        await self._commit(list(self._offsets))

    async def declare(self, offsets: Collection[Offsets]) -> bool:
        """Commits the progress of partitions whose head is about to be started; tries until it is done, or all are lost.

        False when they are lost.
        """
        delay_ms = BACKOFF_BASE_MS
        while not all(found.lost for found in offsets):
            try:
                await self._commit([partition for partition, found in self._offsets.items() if found in offsets])
            except (LogError, TimeoutError) as error:
                logger.warning("%s cannot commit, trying again: %s", self._group, error)
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                delay_ms = min(2 * delay_ms, BACKOFF_CAP_MS)
            else:
                for found in offsets:
                    found.declared = True
                return not all(found.lost for found in offsets)
        return False

    async def _commit(self, partitions: Iterable[TopicPartition], *, clean: bool = False) -> None:
        if self._consumer is None:
            return  # the first join revokes nothing, before there is a consumer
        async with asyncio.timeout(COMMIT_TIMEOUT_MS / 1000), self._commit_turn:
            changed: dict[TopicPartition, tuple[int, str]] = {}
            for partition in partitions:
                offsets = self._offsets.get(partition)
                if offsets is None:
                    continue
                position = (offsets.head, offsets.encode(clean=clean))
                if self._committed.get(partition) != position:
                    changed[partition] = position
            if not changed:
                return
            try:
                await self._consumer.commit(changed)
            except NotAssigned as error:
                # Normal while the group is being rearranged: the next owner repeats what was not committed.
                logger.info("%s: %s", self._group, error)
                return
            self._committed.update((found, at) for found, at in changed.items() if found in self._offsets)

    async def leave(self) -> None:
        """Commits with nothing amiss and gives the partitions back."""
        if self._consumer is None:
            return
        try:
            await self._commit(list(self._offsets), clean=True)
        except (LogError, TimeoutError) as error:
            logger.warning("the last commit of %s failed; work is repeated by the next host: %s", self._group, error)
        await self._consumer.close()

    async def topic_exists(self) -> bool:
        return await self._log.partitions(self._topic) is not None
