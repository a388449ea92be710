"""What the real client's fetcher does, and those of the port's methods that do not depend on where the assignment comes from.

Rules, all of the real client:
- Fetches run ahead of `poll`, one at a time; what was fetched before a seek, a pause or a new assignment is not returned after it.
- A position moves when records are returned by `poll`, and over markers and aborted records in the poll that finds nothing else.
- A poll that meets a rebalance waits for its end, longer than its time-out if it must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors as kafka_errors

from sagalog.topics.log import LogError, Message, NotAssigned, TopicPartition

from .calls import RETRY_BACKOFF_S, failed, retried
from .faults import Request
from .network import Connection, answered

if TYPE_CHECKING:
    from .broker import Fetched, SimulatedKafka

PREFETCH_BACKOFF_S: Final = 0.1
"""How long records that nobody polls hold up the fetches of other partitions."""


@dataclass(slots=True)
class Buffer:
    """Records that were fetched and not returned yet, and where to read after them."""

    records: Sequence[Message]
    next: int
    held_until_s: float
    returned: int = 0


@dataclass(slots=True)
class PartitionState:
    """An assigned partition. `position` is None until it is known."""

    position: int | None = None
    reset_to_end: bool | None = None
    """Where to start anew; None: at the group's committed offset."""
    paused: bool = False
    retry_s: float = 0.0
    positioned: list[asyncio.Future[None]] = field(default_factory=list)

    def set(self, position: int) -> None:
        self.position = position
        self.reset_to_end = None
        for waiting in self.positioned:
            if not waiting.done():
                waiting.set_result(None)
        self.positioned.clear()

    def reset(self, *, to_end: bool) -> None:
        self.position = None
        self.reset_to_end = to_end


@dataclass(slots=True, eq=False)
class Assignment:
    """The partitions of one generation. `ended` when another follows."""

    states: dict[TopicPartition, PartitionState]
    ended: asyncio.Future[None]


class BaseConsumer:
    """The fetcher, and the port's methods that do not depend on the kind of assignment."""

    def __init__(self, kafka: SimulatedKafka, committed: bool, start_at_end: bool) -> None:
        self._kafka = kafka
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._connection = Connection(kafka.network)
        self._committed = committed
        self._start_at_end = start_at_end
        self._assignment: Assignment | None = None
        self._buffers: dict[TopicPartition, Buffer] = {}
        self._busy = False
        """A fetch or a search for positions is on its way."""
        self._timer: asyncio.TimerHandle | None = None
        self._resetting: asyncio.Task[None] | None = None
        self._polls: dict[asyncio.Future[None], None] = {}
        self._closed = False

    async def _connect(self) -> None:
        await answered(self._connection.call(Request.METADATA, self._kafka.connect))

    # --- assignment

    def _assign(self, partitions: Iterable[TopicPartition]) -> Assignment:
        self._unassign()
        states = {partition: PartitionState() for partition in sorted(partitions)}
        self._assignment = Assignment(states, self._loop.create_future())
        return self._assignment

    def _unassign(self) -> None:
        if self._assignment is not None and not self._assignment.ended.done():
            self._assignment.ended.set_result(None)
        self._buffers.clear()
        if self._resetting is not None:
            self._resetting.cancel()
            self._resetting = None
            self._busy = False

    def _state(self, partition: TopicPartition) -> PartitionState:
        state = self._assignment.states.get(partition) if self._assignment is not None else None
        if state is None:
            raise NotAssigned(f"the group has moved on: No current assignment for partition {partition}")
        return state

    def assignment(self) -> set[TopicPartition]:
        return set(self._assignment.states) if self._assignment is not None else set()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise ValueError("an offset is not negative")
        self._state(partition).set(offset)
        self._buffers.pop(partition, None)
        self._pump()

    def pause(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self._state(partition).paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self._state(partition).paused = False
        self._pump()

    async def position(self, partition: TopicPartition) -> int:
        while True:
            assignment = self._assignment
            state = assignment.states.get(partition) if assignment is not None else None
            if assignment is None or state is None:
                error = kafka_errors.IllegalStateError(f"Partition {partition} is not assigned")
                raise failed("reading a position", error) from error
            if state.position is not None:
                return state.position
            positioned: asyncio.Future[None] = self._loop.create_future()
            state.positioned.append(positioned)
            await asyncio.wait([positioned, assignment.ended], return_when=asyncio.FIRST_COMPLETED)

    # --- fetching

    def _pump(self) -> None:
        """Starts what is to be done next, if nothing is on its way: finding positions, then fetching."""
        assignment = self._assignment
        if self._busy or self._closed or assignment is None:
            return
        now_s = self._loop.time()
        again_s: float | None = None
        held = False
        unknown: list[TopicPartition] = []
        wanted: list[tuple[TopicPartition, int]] = []
        for partition, state in assignment.states.items():
            buffer = self._buffers.get(partition)
            if buffer is not None:
                if buffer.held_until_s > now_s:
                    held = True
                    again_s = buffer.held_until_s if again_s is None else min(again_s, buffer.held_until_s)
            elif state.retry_s > now_s:
                again_s = state.retry_s if again_s is None else min(again_s, state.retry_s)
            elif state.position is None:
                unknown.append(partition)
            elif not state.paused:
                wanted.append((partition, state.position))
        if unknown:
            self._busy = True
            self._resetting = self._loop.create_task(self._find_positions(assignment, unknown), context=self._context)
        elif wanted and not held:
            self._fetch(assignment, wanted)
        elif again_s is not None:
            self._pump_at(again_s)

    def _pump_at(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when_s, self._pump, context=self._context)

    def _fetch(self, assignment: Assignment, wanted: list[tuple[TopicPartition, int]]) -> None:
        self._busy = True
        if len(wanted) > 1:
            self._kafka.network.random.shuffle(wanted)
        future = self._connection.call(Request.FETCH, self._kafka.fetch, wanted, self._committed)
        future.add_done_callback(lambda done: self._fetched(assignment, done), context=self._context)

    def _fetched(self, assignment: Assignment, future: asyncio.Future[Any]) -> None:
        result = future.result()
        if isinstance(result, Exception):
            self._loop.call_later(RETRY_BACKOFF_S, self._free, context=self._context)
            return
        if assignment is self._assignment:
            now_s = self._loop.time()
            new = [self._take(assignment.states[found.partition], found, now_s) for found in result]
            if any(new):
                self._wake()
        self._free()

    def _free(self) -> None:
        self._busy = False
        self._pump()

    def _take(self, state: PartitionState, found: Fetched, now_s: float) -> bool:
        if state.position != found.position:
            return False
        if found.error is None:
            self._buffers[found.partition] = Buffer(found.records, found.next, now_s + PREFETCH_BACKOFF_S)
            return True
        if isinstance(found.error, kafka_errors.OffsetOutOfRangeError):
            state.reset(to_end=self._start_at_end)
        else:
            state.retry_s = now_s + RETRY_BACKOFF_S
            self._missing(found)
        return False

    def _missing(self, found: Fetched) -> None:
        """A partition that is not there, or has no leader."""

    def _wake(self) -> None:
        for waiting in self._polls:
            if not waiting.done():
                waiting.set_result(None)
        self._polls.clear()

    async def _find_positions(self, assignment: Assignment, partitions: Sequence[TopicPartition]) -> None:
        """Positions from the group's commits, else the beginning or the end."""
        states = assignment.states
        try:
            fresh = [found for found in partitions if states[found].reset_to_end is None]
            if fresh:
                committed = await self._committed_offsets(fresh)
                for partition in fresh:
                    state = states[partition]
                    if state.position is None and state.reset_to_end is None:
                        if partition in committed:
                            state.set(committed[partition][0])
                        else:
                            state.reset(to_end=self._start_at_end)
            for to_end in (False, True):
                lost = [found for found in partitions if states[found].reset_to_end is to_end]
                if lost:
                    await self._reset(states, lost, to_end=to_end)
        except kafka_errors.KafkaError:
            await asyncio.sleep(RETRY_BACKOFF_S)
        finally:
            if self._assignment is assignment:
                self._resetting = None
                self._loop.call_soon(self._free, context=self._context)

    async def _reset(
        self, states: Mapping[TopicPartition, PartitionState], partitions: Sequence[TopicPartition], *, to_end: bool
    ) -> None:
        found = await self._list_offsets(partitions, latest=to_end)
        for partition in partitions:
            if states[partition].reset_to_end is to_end:
                states[partition].set(found[partition])

    async def _committed_offsets(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, tuple[int, str]]:
        return {}

    # --- reading

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Message]]:
        if max_records < 1:
            raise ValueError("a poll takes at least one record")
        await asyncio.sleep(0)  # as the port promises
        left_s = timeout_ms / 1000
        while True:
            if self._closed:
                raise LogError("reading failed: the consumer is closed")
            await self._settled()
            started_s = self._loop.time()
            found = self._drain(max_records)
            if found or left_s <= 0:
                return found
            waiting: asyncio.Future[None] = self._loop.create_future()
            self._polls[waiting] = None
            done, _ = await asyncio.wait([waiting], timeout=left_s)
            self._polls.pop(waiting, None)
            if not done or self._closed:
                return {}
            left_s -= self._loop.time() - started_s

    async def _settled(self) -> None:
        """Waits while a rebalance is under way."""

    def _drain(self, max_records: int) -> dict[TopicPartition, Sequence[Message]]:
        found: dict[TopicPartition, Sequence[Message]] = {}
        assignment = self._assignment
        if assignment is None:
            return found
        emptied = False
        for partition in list(self._buffers):
            buffer = self._buffers[partition]
            state = assignment.states[partition]
            if state.paused:
                del self._buffers[partition]  # fetched again when it is resumed
                continue
            records = buffer.records
            if buffer.returned or len(records) - buffer.returned >= max_records:
                records = records[buffer.returned : buffer.returned + max_records]
            if len(records) < max_records:
                state.position = buffer.next
                del self._buffers[partition]
                emptied = True
            else:
                # Even if nothing is left: the real client, too, finds out in the next poll.
                buffer.returned += len(records)
                state.position = records[-1].offset + 1
            if records:
                found[partition] = records
                max_records -= len(records)
                if max_records == 0:
                    break
        if emptied:
            self._pump()
        return found

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        raise LogError("committing offsets failed: this consumer reads fixed partitions, it has no group")

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(partitions, latest=False)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(partitions, latest=True)

    async def _offsets(self, partitions: Iterable[TopicPartition], *, latest: bool) -> dict[TopicPartition, int]:
        wanted = [TopicPartition(*partition) for partition in partitions]
        if not wanted:
            return {}
        timeout_s = self._kafka.network.request_timeout_s
        try:
            found: dict[TopicPartition, int] = await retried(lambda: self._ask_offsets(wanted, latest), timeout_s)
        except kafka_errors.KafkaError as error:
            raise failed("reading offsets", error) from error
        return found

    async def _list_offsets(self, partitions: Sequence[TopicPartition], *, latest: bool) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = await answered(self._ask_offsets(partitions, latest))
        return found

    def _ask_offsets(self, partitions: Sequence[TopicPartition], latest: bool) -> asyncio.Future[Any]:
        return self._connection.call(Request.METADATA, self._kafka.list_offsets, partitions, latest, self._committed)

    def _shut(self) -> None:
        self._closed = True
        self._unassign()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()
