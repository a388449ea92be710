"""A client's membership in a group: join, heartbeats, callbacks, commits. The real client's coordination, step by step.

Rules, all of the real client:
- `on_revoked` is told everything that was assigned (nothing, before the first join), while the old assignment is still in place and
  can be committed; then all join; then the new assignment is in place, and `on_assigned` is told.
- There are no heartbeats during a join and during `on_assigned`. A callback that raises is logged.
- Leaving calls nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors as kafka_errors

from sagalog.topics.log import Joining, NotAssigned, OnAssigned, OnRevoked, Share, Sharing, TopicPartition

from .calls import RETRY_BACKOFF_S, failed, is_passing, retried, wait_for_topic
from .faults import Request
from .groups import NO_GENERATION, Joined
from .network import Connection, answered

if TYPE_CHECKING:
    from .broker import SimulatedKafka
    from .consumer import GroupConsumer

logger = logging.getLogger(__name__)

POLL_INTERVAL_S_MAX: Final = 300.0
METADATA_AGE_S_MAX: Final = 300.0

_MOVED_ON = (
    kafka_errors.UnknownMemberIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
)


class InTurn:
    """The real client's default: all partitions in order, to the members in the order of their ids, in turn."""

    name = "roundrobin"

    def says(self) -> bytes:
        return b""

    def share(self, members: Mapping[str, Joining], partitions: Sequence[TopicPartition]) -> dict[str, Share]:
        shares: dict[str, list[TopicPartition]] = {member: [] for member in sorted(members)}
        turns = itertools.cycle(shares)
        for partition in partitions:
            member = next(turns)
            while partition.topic not in members[member].topics:
                member = next(turns)
            shares[member].append(partition)
        return {member: Share(found) for member, found in shares.items()}

    def told(self, note: bytes) -> None:
        """It says nothing."""


class Member:
    """One membership. It has a connection of its own, as the coordinator's requests have in the real client."""

    def __init__(
        self,
        kafka: SimulatedKafka,
        group: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        consumer: GroupConsumer,
        sharing: Sharing,
    ) -> None:
        self._kafka = kafka
        self._group = group
        self._topics = sorted(set(topics))
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._consumer = consumer
        self._sharing = sharing
        self._connection = Connection(kafka.network)
        self._session_s = kafka.session_timeout_ms / 1000
        self._heartbeat_s = max(100, kafka.session_timeout_ms // 4) / 1000
        self._id = ""
        self._generation = NO_GENERATION
        self._assigned = False
        self._told = False
        """on_revoked has been called for the assignment that is to be replaced."""
        self._rebalancing = True
        self._settled: list[asyncio.Future[None]] = []
        self._changed = asyncio.Event()
        self._rejoin = True
        self._closing = False
        self._coordination: asyncio.Task[None] | None = None
        self._heartbeats: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        self._counts: Mapping[str, int] | None = None
        """Only of a leader: the partitions of the topics as assigned."""
        self._counted_s = 0.0
        self._polling = 0
        self._polled_s = asyncio.get_running_loop().time()

    async def start(self, connection: Connection) -> None:
        """Returns when the first assignment is in place. Raises KafkaError."""
        for topic in self._topics:
            await wait_for_topic(self._kafka, connection, topic)
        self._coordination = asyncio.get_running_loop().create_task(self._coordinate())
        await self.settled()

    async def leave(self) -> None:
        self._closing = True
        self._changed.set()
        if self._coordination is not None:
            await self._coordination
        await self._stop_heartbeats()
        await self._leave()

    async def settled(self) -> None:
        while self._rebalancing:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settled.append(waiting)
            await waiting

    @contextmanager
    def polling(self) -> Iterator[None]:
        self._polling += 1
        try:
            yield
        finally:
            self._polling -= 1
            self._polled_s = asyncio.get_running_loop().time()

    def _idle_s(self) -> float:
        return 0.0 if self._polling else asyncio.get_running_loop().time() - self._polled_s

    # --- coordination

    def _request_rejoin(self) -> None:
        self._rejoin = True
        self._changed.set()

    def _reset_generation(self) -> None:
        self._id = ""
        self._generation = NO_GENERATION
        self._request_rejoin()

    async def _coordinate(self) -> None:
        while not self._closing:
            if self._rejoin or not self._assigned:
                await self._join_again()
                continue
            self._changed.clear()
            await self._changed.wait()

    async def _join_again(self) -> None:
        if not self._told:
            self._rebalancing = True
            self._counts = None
            await self._tell(self._on_revoked, "on_revoked")
            self._told = True
        await self._stop_heartbeats()
        if self._assigned and self._idle_s() >= POLL_INTERVAL_S_MAX:
            await asyncio.sleep(RETRY_BACKOFF_S)  # nobody reads: no use in taking partitions
            return
        share = await self._join_and_sync()
        if share is None:
            await asyncio.sleep(RETRY_BACKOFF_S)
            return
        self._consumer.assign(share.partitions)
        self._sharing.told(share.note)
        self._assigned = True
        self._rebalancing = False
        for waiting in self._settled:
            if not waiting.done():
                waiting.set_result(None)
        self._settled.clear()
        await self._tell(self._on_assigned, "on_assigned")
        self._told = False
        self._heartbeats = asyncio.get_running_loop().create_task(self._beat())

    async def _tell(self, callback: OnAssigned, name: str) -> None:
        try:
            await callback(self._consumer.assignment())
        except Exception:
            # The real client goes on after its user's mistakes; so must this one, or tests would hide them differently.
            logger.exception("%s of a member of group %s failed", name, self._group)

    async def _join_and_sync(self) -> Share | None:
        """The new share; None when it has to be tried again."""
        try:
            joined = await self._join()
        except kafka_errors.UnknownMemberIdError:
            self._reset_generation()
            return None
        except kafka_errors.KafkaError as error:
            logger.debug("joining group %s failed: %r", self._group, error)
            return None
        self._id, self._generation = joined.member_id, joined.generation
        assignment = self._share_out(joined.members) if joined.members is not None else None
        self._rejoin = False
        try:
            found: Share = await self._call(
                self._kafka.groups.sync, self._group, self._generation, self._id, assignment
            )
        except (kafka_errors.UnknownMemberIdError, kafka_errors.IllegalGenerationError):
            self._reset_generation()
            return None
        except kafka_errors.KafkaError as error:
            logger.debug("group %s rebalances again: %r", self._group, error)
            self._request_rejoin()
            return None
        return found

    async def _join(self) -> Joined:
        joining = Joining(tuple(self._topics), self._sharing.says())
        if not self._id:
            self._id = await self._call(self._kafka.groups.join, self._group, "", self._session_s, joining)
        found: Joined = await self._call(self._kafka.groups.join, self._group, self._id, self._session_s, joining)
        return found

    def _share_out(self, members: Mapping[str, Joining]) -> Mapping[str, Share]:
        topics = sorted({topic for found in members.values() for topic in found.topics})
        self._count(topics)
        assert self._counts is not None
        partitions = [TopicPartition(topic, number) for topic in topics for number in range(self._counts[topic])]
        return self._sharing.share(members, partitions)

    def _count(self, topics: Sequence[str]) -> None:
        self._counted_s = asyncio.get_running_loop().time()
        self._counts = self._now(topics)

    def _now(self, topics: Sequence[str]) -> dict[str, int]:
        counts: dict[str, int] = {}
        self._kafka.partition_counts(counts.update, topics)
        return {topic: counts.get(topic, 0) for topic in topics}

    def topics_changed(self) -> None:
        """A leader whose topics are not as it has shared them out has all join anew."""
        if self._counts is not None and self._now(list(self._counts)) != self._counts:
            self._counts = None
            self._request_rejoin()

    # --- heartbeats

    async def _stop_heartbeats(self) -> None:
        task, self._heartbeats = self._heartbeats, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _beat(self) -> None:
        pause_s = self._heartbeat_s
        loop = asyncio.get_running_loop()
        while self._id:
            await asyncio.sleep(pause_s)
            pause_s = self._heartbeat_s if await self._heartbeat() else RETRY_BACKOFF_S
            idle_s = self._idle_s()
            if idle_s >= POLL_INTERVAL_S_MAX:
                await self._leave()
            else:
                pause_s = min(pause_s, POLL_INTERVAL_S_MAX - idle_s)
            if loop.time() - self._counted_s > METADATA_AGE_S_MAX:
                self._counted_s = loop.time()
                self.topics_changed()

    async def _heartbeat(self) -> bool:
        try:
            await self._call(
                self._kafka.groups.heartbeat, self._group, self._generation, self._id, kind=Request.HEARTBEAT
            )
        except kafka_errors.RebalanceInProgressError:
            self._request_rejoin()
        except (kafka_errors.IllegalGenerationError, kafka_errors.UnknownMemberIdError):
            self._reset_generation()
            return False
        except kafka_errors.KafkaError as error:
            logger.debug("a heartbeat of group %s failed: %r", self._group, error)
            return False
        return True

    async def _leave(self) -> None:
        """One try, as in the real client."""
        if self._generation > 0:
            try:
                await self._call(self._kafka.groups.leave, self._group, self._id)
            except kafka_errors.KafkaError as error:
                logger.debug("leaving group %s failed: %r", self._group, error)
        self._reset_generation()

    # --- offsets

    async def committed(self, partitions: Sequence[TopicPartition]) -> Any:
        return await retried(
            lambda: self._connection.call(Request.METADATA, self._kafka.groups.committed, self._group, partitions)
        )

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        while True:
            async with self._committing:
                result = await self._connection.call(
                    Request.COMMIT, self._kafka.groups.commit, self._group, self._generation, self._id, offsets
                )
            if isinstance(result, kafka_errors.RebalanceInProgressError):
                self._request_rejoin()
            elif isinstance(result, (kafka_errors.UnknownMemberIdError, kafka_errors.IllegalGenerationError)):
                self._reset_generation()
            if isinstance(result, _MOVED_ON):
                raise NotAssigned(
                    "the group has moved on: Commit cannot be completed since the group has already rebalanced and may have "
                    f"assigned the partitions to another member ({type(result).__name__})"
                )
            if result is None:
                return
            if not is_passing(result):
                raise failed("committing offsets", result)
            await asyncio.sleep(RETRY_BACKOFF_S)

    async def _call(self, handle: Any, *args: Any, kind: Request = Request.GROUP) -> Any:
        return await answered(self._connection.call(kind, handle, *args))
