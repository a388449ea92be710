"""Follows topics while a scene runs: the events of a workflow as sentences, the states of a circuit.

Rule: it reads only what is written after it was opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from sagalog.schemas.codec import decode_object
from sagalog.schemas.events import Event, StepCompleted, StepFailed, Timer, TimerFired, parse_event
from sagalog.schemas.ids import Direction
from sagalog.topics.log import Consumer, Log, Message, TopicPartition, header
from sagalog.topics.specs import Topics
from story.settings import CIRCUIT_S_MAX, RESULT_S_MAX, StoryError

POLL_MS: Final = 200
POLL_RECORDS_MAX: Final = 500


class Tail:
    """The events of one workflow, told as they come. `until` waits for an offset of the workflow's partition."""

    def __init__(self, reader: Consumer, workflow_id: str, say: Callable[[str], None]) -> None:
        self._reader = reader
        self._key = workflow_id.encode()
        self._say = say
        self._failed_ms: dict[str, int] = {}
        self._seen: dict[int, int] = {}
        self._grown = asyncio.Event()

    async def follow(self) -> None:
        while True:
            for messages in (await self._reader.poll(POLL_MS, POLL_RECORDS_MAX)).values():
                for message in messages:
                    self._take(message)

    async def until(self, offset: int) -> None:
        """Returns once the workflow's own events up to there have been told."""
        try:
            async with asyncio.timeout(RESULT_S_MAX):
                while not any(seen >= offset for seen in self._seen.values()):
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            raise StoryError(f"the events of {self._key.decode()} cannot be read up to offset {offset}") from None

    def _take(self, message: Message) -> None:
        if message.key != self._key:
            return
        said = self._sentence(parse_event(header(message.headers, "ce_type"), message.value), message.timestamp)
        if said is not None:
            self._say(said)
        self._seen[message.partition] = message.offset
        self._grown.set()

    def _sentence(self, event: Event, at_ms: int) -> str | None:
        match event:
            case StepCompleted(direction=Direction.COMPENSATE):
                return f"{event.step:<10}undone"
            case StepCompleted():
                nth = f" at attempt {event.attempt}" if event.attempt > 1 else ""
                return f"{event.step:<10}done{nth}, in {event.duration_ms or 0} ms"
            case StepFailed():
                self._failed_ms[event.step] = at_ms
                return f"{event.step:<10}attempt {event.attempt} failed: {event.message}"
            case TimerFired(timer=Timer.RETRY, step=str(step)):
                waited_ms = at_ms - self._failed_ms.get(step, at_ms)
                return f"{step:<10}waited {waited_ms} ms, tries again"
            case _:
                return None


@asynccontextmanager
async def told(
    log: Log, topics: Topics, partitions: int, workflow_id: str, say: Callable[[str], None]
) -> AsyncIterator[Tail]:
    """Tells the events of a workflow for as long as the block lasts."""
    reader = await _from_now(
        log, [TopicPartition(topics.events, number) for number in range(partitions)], committed=False
    )
    tail = Tail(reader, workflow_id, say)
    task = asyncio.create_task(tail.follow())
    try:
        yield tail
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await reader.close()


class CircuitTail:
    """The states of one service's circuit."""

    def __init__(self, reader: Consumer, service: str) -> None:
        self._reader = reader
        self._key = service.encode()
        self.statuses: list[str] = []
        """Each state that it went through, in order."""

    async def until(self, status: str) -> None:
        """Returns once the circuit is in that state. Raises StoryError."""
        try:
            async with asyncio.timeout(CIRCUIT_S_MAX):
                while not self.statuses or self.statuses[-1] != status:
                    await self._poll(status)
        except TimeoutError:
            raise StoryError(
                f"the circuit of {self._key.decode()} was not {status} within {CIRCUIT_S_MAX:g} s; it went {self.statuses}"
            ) from None

    async def _poll(self, status: str) -> None:
        for messages in (await self._reader.poll(POLL_MS, 1)).values():
            for message in messages:
                if message.key == self._key and message.value is not None:
                    found = decode_object(message.value)["status"]
                    if not self.statuses or self.statuses[-1] != found:
                        self.statuses.append(found)


@asynccontextmanager
async def circuit(log: Log, topics: Topics, service: str) -> AsyncIterator[CircuitTail]:
    """Follows the circuit of a service for as long as the block lasts."""
    count = await log.partitions(topics.circuits)
    if count is None:
        raise StoryError(f"topic {topics.circuits} does not exist")
    numbers = [TopicPartition(topics.circuits, number) for number in range(count)]
    reader = await _from_now(log, numbers, committed=True)
    try:
        yield CircuitTail(reader, service)
    finally:
        await reader.close()


async def _from_now(log: Log, numbers: Iterable[TopicPartition], *, committed: bool) -> Consumer:
    found = list(numbers)
    reader = await log.read(dict.fromkeys(found, 0), committed=committed, client_id="demo")
    for partition, offset in (await reader.end_offsets(found)).items():
        reader.seek(partition, offset)
    return reader
