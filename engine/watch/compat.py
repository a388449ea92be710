"""Where faust-streaming 0.15.3 (on aiokafka 0.14, against Kafka 4) needs help to run inside of another program. All of it is here.

Faust reads, assigns, commits and sends correctly with these versions. What does not fit is:
- It spreads the partitions of a topic over the members of its group. An agent's calls lie in several partitions, so each
  of two watches would see a part, and both would write the agent's health. `WholeGroupAssignor` gives everything to one member;
  the others wait. (The setting for the assignor is Faust's own, `PartitionAssignor`.)
- It starts at committed offsets. The window begins at a point in time instead: `WatchTransport`'s consumer asks
  its app for positions after it has found the committed ones.
- It logs every service that starts and stops, and each setting of its producer, at INFO: `quieten`.
- `App.stop` waits without bound, for example for a broker that is gone; `stopped` bounds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import faust
from aiokafka import TopicPartition as KafkaTopicPartition
from faust.assignor.client_assignment import ClientAssignment
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.drivers import aiokafka as driver

from sagalog.topics.log import TopicPartition

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 10.0

_QUIET: Final = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    # A loop under load is late; the timers' warnings say no more than that.
    "mode.timers": logging.ERROR,
    # Faust's classes take their logger from the module of the subclass: what they say under our name is theirs.
    __name__: logging.WARNING,
}

Positions = Callable[["WatchConsumer"], Awaitable[None]]


class WholeGroupAssignor(PartitionAssignor):
    """All partitions of all topics to one member: to the one that has them, else to the first by member id."""

    @property
    def name(self) -> str:
        return "sagalog-whole-group"

    def _perform_assignment(self, cluster: Any, member_metadata: Mapping[str, Any]) -> Any:
        had = {
            member: bool(self._get_client_metadata(found).assignment.actives)
            for member, found in member_metadata.items()
        }
        owner = min(member_metadata, key=lambda member: (not had[member], member))
        assignment = dict(super()._perform_assignment(cluster, {owner: member_metadata[owner]}))
        self._update_member_urls(
            {member: self._get_client_metadata(found) for member, found in member_metadata.items()}
        )
        waiting = {member: ClientAssignment(actives={}, standbys={}) for member in member_metadata if member != owner}
        return {**assignment, **self._protocol_assignments(waiting, {}, {}, {})}


class WatchConsumer(driver.Consumer):
    """Faust's consumer, which asks its app where to start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seeking = asyncio.Lock()

    async def perform_seek(self) -> None:
        # After an assignment both the recovery and a fetcher that was caught by it come here, at the same time.
        async with self._seeking:
            await super().perform_seek()
            assert isinstance(self.app, WatchApp)
            await self.app.positions(self)

    async def offsets_from(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The first offset at or after a time, per partition; the end where nothing is that new."""
        wanted = {KafkaTopicPartition(*partition): at_ms for partition, at_ms in times_ms.items()}
        thread = self._thread
        # The ends first: a record that is written between the two questions lies after them, and must be read.
        ends = await self.ends(times_ms)
        found = await thread.call_thread(thread._ensure_consumer().offsets_for_times, wanted)
        return {
            partition: ends[partition] if found[partition] is None else found[partition].offset
            for partition in times_ms
        }

    async def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        found: Any = await self.highwaters(*(KafkaTopicPartition(*partition) for partition in partitions))
        return {TopicPartition(*partition): offset for partition, offset in found.items()}

    async def start_at(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self.seek_wait({KafkaTopicPartition(*partition): offset for partition, offset in offsets.items()})


class WatchTransport(driver.Transport):
    Consumer = WatchConsumer


class WatchApp(faust.App):
    """A Faust app that starts where `positions` says."""

    positions: Positions

    def _new_transport(self) -> WatchTransport:
        return WatchTransport(self.conf.broker_consumer, self)


def quieten() -> None:
    """Faust's services say what they do at INFO, dozens of lines a start: shown when they are asked for (DEBUG), else not."""
    if logging.getLogger().getEffectiveLevel() <= logging.DEBUG:
        return
    for name, level in _QUIET.items():
        library = logging.getLogger(name)
        if library.level == logging.NOTSET:
            library.setLevel(level)


async def stopped(app: faust.App) -> None:
    """Stops the app, within STOP_TIMEOUT_S."""
    try:
        await asyncio.wait_for(app.stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        logger.warning("watch: its consumer did not stop within %.0f s and is left behind", STOP_TIMEOUT_S)
