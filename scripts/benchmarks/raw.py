"""The floor: a bare aiokafka loop that does what engine and agent do on the wire, and nothing else.

Events in, commands out, agent back; idempotent producers, hand-made batches, uvloop, no JSON, no state, no headers. A value's
first byte says how many steps are done, so that a record can be answered by passing its bytes on.

Rule: this must be as fast as we know how to make it. Whoever finds a faster loop replaces it; the ratio is worth no more than
the floor is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.latency import Latency
from benchmarks.settings import AGENT, STEPS
from sagalog.topics.specs import Topics

POLL_MS: Final = 200
POLL_RECORDS_MAX: Final = 2_000
BATCH_BYTES_MAX: Final = 262_144
REQUEST_BYTES_MAX: Final = 1_048_576
FETCH_PARTITION_BYTES_MAX: Final = 4 * 1_048_576
ZERO: Final = ord("0")

Records = list[tuple[bytes, bytes]]


def payload(done: int, size: int) -> bytes:
    """The value of a workflow of which `done` steps are done."""
    return str(done).encode() + b"x" * (size - 1)


async def engine(arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]) -> None:
    """Every event becomes the next command, that of the last step a result."""
    topics = Topics(arguments["prefix"])
    commands, results = topics.commands(AGENT), topics.results
    last = ZERO + STEPS

    def answer(messages: Sequence[Any]) -> Mapping[str, Records]:
        sent: Records = []
        ended: Records = []
        for message in messages:
            value = message.value
            (sent if value[0] < last else ended).append((message.key, value))
        return {commands: sent, results: ended}

    await _loop(arguments["bootstrap"], topics.engine_group, topics.events, answer, stop, say)


async def agent(arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]) -> None:
    """Every command becomes the event that its step is done."""
    topics = Topics(arguments["prefix"])
    events = topics.events
    completed = {ZERO + done: payload(done + 1, arguments["payload_bytes"]) for done in range(STEPS)}

    def answer(messages: Sequence[Any]) -> Mapping[str, Records]:
        if latency.recording:
            for message in messages:
                latency.note(message.key, message.value[0] - ZERO)
        return {events: [(message.key, completed[message.value[0]]) for message in messages]}

    await _loop(arguments["bootstrap"], topics.agent_group(AGENT), topics.commands(AGENT), answer, stop, say)


async def _loop(
    bootstrap: str,
    group: str,
    topic: str,
    answer: Callable[[Sequence[Any]], Mapping[str, Records]],
    stop: asyncio.Event,
    say: Callable[..., None],
) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        max_batch_size=BATCH_BYTES_MAX,
        max_request_size=REQUEST_BYTES_MAX,
    )
    await producer.start()
    await consumer.start()
    out = _Out(producer)
    try:
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=POLL_MS)
        say("ready")
        while not stop.is_set():
            batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS_MAX)
            for partition, messages in batches.items():
                for to, records in answer(messages).items():
                    if records:
                        out.put(TopicPartition(to, partition.partition), records)
            await out.check()
    finally:
        await consumer.stop()
        await out.close()
        await producer.stop()


class _Out:
    """Per partition, gathers records while the batch before them is on its way."""

    PENDING_MAX: Final = 20_000

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._waiting: dict[TopicPartition, Records] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._pending = 0

    def put(self, to: TopicPartition, records: Records) -> None:
        self._pending += len(records)
        waiting = self._waiting.get(to)
        if waiting is not None:
            waiting += records
        else:
            self._waiting[to] = records
        if to not in self._tasks:
            self._tasks[to] = asyncio.create_task(self._send(to))

    async def _send(self, to: TopicPartition) -> None:
        while records := self._waiting.pop(to, None):
            sent = 0
            while sent < len(records):
                batch = self._producer.create_batch()
                append = batch.append
                before = sent
                for key, value in records[sent:]:
                    if append(timestamp=None, key=key, value=value) is None:
                        break
                    sent += 1
                await (await self._producer.send_batch(batch, to.topic, partition=to.partition))
                self._pending -= sent - before
        del self._tasks[to]

    async def check(self) -> None:
        """Waits while too much is on its way, and raises what went wrong."""
        while self._pending > self.PENDING_MAX:
            await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks.values():
            if task.done():
                task.result()

    async def close(self) -> None:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
