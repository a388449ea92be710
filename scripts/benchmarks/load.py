"""The load generator: starts workflows and watches how far they are, the same for floor and engine.

It sees the work from outside, by the ends of two topics: what is appended to `events` and not by itself is a step's end, what
is in `results` is a workflow's. Asking for offsets costs next to nothing, so that the machine is left to what is measured.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.settings import DRAIN_SECONDS_MAX, RESULTS_CHECKED, SAMPLE_SECONDS, BenchError
from sagalog.topics.specs import Topics

BATCH_RECORDS_MAX: Final = 200
BATCH_BYTES_MAX: Final = 262_144
RECORD_OVERHEAD_BYTES: Final = 200
"""Key and headers, generously."""
Headers = list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Sample:
    """How far the work is, at a time of the monotonic clock."""

    at: float
    steps: int
    workflows: int


class Load:
    """Starts workflows by appending `value` under ever new keys, spread evenly over the partitions.

    The keys are not hashed: engine and agents take a record's partition as it is, and hashing would cost more than starting.
    """

    def __init__(self, bootstrap: str, topics: Topics, partitions: int, value: bytes, ce_type: str | None) -> None:
        self._events = [TopicPartition(topics.events, number) for number in range(partitions)]
        self._results = [TopicPartition(topics.results, number) for number in range(partitions)]
        self._value = value
        self._ce_type = ce_type
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, enable_auto_commit=False, max_partition_fetch_bytes=1_048_576
        )
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=BATCH_BYTES_MAX
        )
        self._batch_records = max(1, min(BATCH_RECORDS_MAX, BATCH_BYTES_MAX // (len(value) + RECORD_OVERHEAD_BYTES)))
        self._foreign = 0
        self.started = 0

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        # What is there already: definitions, claims of ownership.
        self._foreign = sum((await self._consumer.end_offsets(self._events)).values())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._consumer.stop()
        await self._producer.stop()

    async def sample(self) -> Sample:
        ends = await self._consumer.end_offsets([*self._events, *self._results])
        at = time.monotonic()
        workflows = sum(ends[partition] for partition in self._results)
        steps = sum(ends[partition] for partition in self._events) - self._foreign - self.started
        return Sample(at, steps, workflows)

    async def keep(self, in_flight: int, seconds: float) -> Sample:
        """Keeps that many workflows in flight for so long; returns the last sample."""
        until = time.monotonic() + seconds
        while True:
            sample = await self.sample()
            if sample.at >= until:
                return sample
            await self.start(in_flight - (self.started - sample.workflows))
            await asyncio.sleep(max(0.0, sample.at + SAMPLE_SECONDS - time.monotonic()))

    async def pace(self, per_second: float, seconds: float) -> None:
        """Starts workflows evenly spaced, whether the ones before have ended or not: a slow answer delays no start."""
        begun = time.monotonic()
        for number in range(int(per_second * seconds)):
            wait = begun + number / per_second - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            await self.start(1)

    async def drain(self) -> Sample:
        """Waits until every workflow has ended."""
        until = time.monotonic() + DRAIN_SECONDS_MAX
        while (sample := await self.sample()).workflows < self.started:
            if sample.at > until:
                raise BenchError(
                    f"{self.started - sample.workflows:,} of {self.started:,} workflows have not ended "
                    f"{DRAIN_SECONDS_MAX:g} s after the last was started"
                )
            await asyncio.sleep(SAMPLE_SECONDS)
        if sample.workflows > self.started:
            raise BenchError(f"{sample.workflows:,} results of {self.started:,} workflows: some ended twice")
        return sample

    @staticmethod
    def key(number: int) -> bytes:
        """The id of the workflow that is started as the number-th, counted from 0."""
        return b"w-%012d" % number

    async def start(self, count: int) -> None:
        if count <= 0:
            return
        first, self.started = self.started, self.started + count
        sent = []
        partitions = len(self._events)
        for offset in range(min(partitions, count)):
            numbers = range(first + offset, first + count, partitions)
            for at in range(0, len(numbers), self._batch_records):
                batch = self._producer.create_batch()
                for number in numbers[at : at + self._batch_records]:
                    key = self.key(number)
                    added = batch.append(timestamp=None, key=key, value=self._value, headers=self._headers(key))
                    assert added is not None, "a batch of starts holds that many records"
                to = self._events[numbers[at] % partitions]
                sent.append(await self._producer.send_batch(batch, to.topic, partition=to.partition))
        await asyncio.gather(*sent)

    def _headers(self, key: bytes) -> Headers:
        return [("ce_type", self._ce_type.encode()), ("ce_id", b"start/" + key)] if self._ce_type else []

    async def last_results(self) -> list[bytes]:
        """The values of the newest results of each partition."""
        ends = await self._consumer.end_offsets(self._results)
        self._consumer.assign(self._results)
        for partition, end in ends.items():
            self._consumer.seek(partition, max(0, end - RESULTS_CHECKED))
        found: list[bytes] = []
        expected = sum(min(RESULTS_CHECKED, end) for end in ends.values())
        async with asyncio.timeout(DRAIN_SECONDS_MAX):
            while len(found) < expected:
                for messages in (await self._consumer.getmany(timeout_ms=500)).values():
                    found += [message.value for message in messages]
        return found
