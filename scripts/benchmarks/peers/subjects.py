"""What is measured, seen from the bench: kept busy, counted, and started at a low rate. The same turns for all.

Two ways to drive one: `Driven` asks processes of the peer (its client library runs in the peer's own environment); `OnKafka`
starts workflows by appending records and reads their results, for whatever is driven by topics.

A workflow's latency is that of its client: from before it asks for the start until it holds the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.children import Child
from benchmarks.load import Load
from benchmarks.peers.settings import PACE_WARM_UP_SECONDS, PeersSettings
from benchmarks.settings import ANSWER_SECONDS_MAX, DRAIN_SECONDS_MAX, STEPS, BenchError

READ_MS: Final = 500
CHECK_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True)
class Count:
    """Steps done so far, at a time of the monotonic clock."""

    at: float
    steps: int


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    steps_per_second: float
    p50_ms: float
    p99_ms: float


class Subject(Protocol):
    """One system that runs the saga. Raises BenchError when it does not do its work."""

    async def keep(self, in_flight: int, seconds: float) -> Count:
        """Keeps that many workflows in flight for so long; returns the count at the end."""
        ...

    async def drain(self) -> None:
        """Starts no more, and waits until all have ended."""
        ...

    async def pace(self, per_second: float, seconds: float) -> Sequence[float]:
        """Starts workflows evenly spaced, whether those before have ended or not; their latencies, in milliseconds."""
        ...


async def measure(subject: Subject, settings: PeersSettings) -> Run:
    """Warm-up, a window at saturation, drain, then the low load."""
    before = await subject.keep(settings.in_flight, settings.warm_up_seconds)
    after = await subject.keep(settings.in_flight, settings.seconds)
    await subject.drain()
    await subject.pace(settings.workflows_per_second, PACE_WARM_UP_SECONDS)
    latencies = sorted(await subject.pace(settings.workflows_per_second, settings.latency_seconds))
    if after.steps <= before.steps or not latencies:
        raise BenchError(f"no step was done in {settings.seconds:g} s")
    return Run(
        steps_per_second=(after.steps - before.steps) / (after.at - before.at),
        p50_ms=at_share(latencies, 0.50),
        p99_ms=at_share(latencies, 0.99),
    )


def at_share(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the others does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Driven:
    """A peer whose own client starts the workflows: `clients` do that, `workers` count the steps they do."""

    def __init__(self, clients: Sequence[Child], workers: Sequence[Child]) -> None:
        self._clients = clients
        self._workers = workers
        self._busy = False

    async def keep(self, in_flight: int, seconds: float) -> Count:
        if not self._busy:
            self._busy = True
            shares = spread(in_flight, len(self._clients))
            await asyncio.gather(
                *(child.ask(f"load {share}") for child, share in zip(self._clients, shares, strict=True))
            )
        await asyncio.sleep(seconds)
        return await counted(self._workers)

    async def drain(self) -> None:
        self._busy = False
        await asyncio.gather(*(child.ask("drain", DRAIN_SECONDS_MAX) for child in self._clients))

    async def pace(self, per_second: float, seconds: float) -> Sequence[float]:
        said = await self._clients[0].ask(f"pace {per_second} {seconds}", seconds + DRAIN_SECONDS_MAX)
        return [float(latency) for latency in said["latencies_ms"]]


async def counted(workers: Sequence[Child]) -> Count:
    """The steps that these processes have done."""
    said = await asyncio.gather(*(child.ask("steps", ANSWER_SECONDS_MAX) for child in workers))
    return Count(time.monotonic(), sum(int(one["steps"]) for one in said))


def spread(total: int, parts: int) -> list[int]:
    """That many, over so many, as evenly as whole numbers allow."""
    return [total // parts + (number < total % parts) for number in range(parts)]


class OnKafka:
    """A system that takes starts from one topic and puts results into another. Use `async with`.

    `load` starts the workflows and is entered already; `workers` count steps, and without them the load generator does.
    """

    def __init__(
        self, bootstrap: str, load: Load, results: Sequence[TopicPartition], workers: Sequence[Child] = ()
    ) -> None:
        self._load = load
        self._results = results
        self._workers = workers
        # One fetch waits in the broker for at most this long, so an answer is never late by a poll.
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
        self._arrived: dict[bytes, float] = {}
        self._busy = False
        self._ended = 0

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(list(self._results))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._consumer.stop()

    async def keep(self, in_flight: int, seconds: float) -> Count:
        if not self._busy:
            self._busy = True
            self._ended = self._load.started
            await self._to_end()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            # As a client does that waits for its workflows: for each that has ended, the next is started at once.
            await self._load.start(in_flight - (self._load.started - self._ended))
            batches = await self._consumer.getmany(timeout_ms=min(READ_MS, int(left * 1_000) + 1))
            self._ended += sum(len(messages) for messages in batches.values())
        if self._workers:
            return await counted(self._workers)
        sample = await self._load.sample()
        return Count(sample.at, sample.steps)

    async def drain(self) -> None:
        self._busy = False
        await self._load.drain()

    async def pace(self, per_second: float, seconds: float) -> Sequence[float]:
        await self._to_end()
        self._arrived.clear()
        reader = asyncio.create_task(self._read())
        try:
            started = await self._start_all(per_second, seconds)
            await self._all_arrived(len(started), reader)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        return [1_000 * (self._arrived[key] - at) for key, at in started.items()]

    async def _to_end(self) -> None:
        """Passes over all results that there are."""
        await self._consumer.seek_to_end(*self._results)
        # The end is asked for only now: without this, results that are still to come could be passed over.
        for partition in self._results:
            await self._consumer.position(partition)

    async def _start_all(self, per_second: float, seconds: float) -> Mapping[bytes, float]:
        begun = time.monotonic()
        started: dict[bytes, float] = {}
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            started[self._load.key(self._load.started)] = time.monotonic()
            await self._load.start(1)
        return started

    async def _read(self) -> None:
        while True:
            batches = await self._consumer.getmany(timeout_ms=READ_MS)
            now = time.monotonic()
            for messages in batches.values():
                for message in messages:
                    self._arrived.setdefault(message.key, now)

    async def _all_arrived(self, count: int, reader: asyncio.Task[None]) -> None:
        until = time.monotonic() + DRAIN_SECONDS_MAX
        while len(self._arrived) < count:
            if reader.done():
                reader.result()
            if time.monotonic() > until:
                raise BenchError(
                    f"{count - len(self._arrived)} of {count} results were not read in {DRAIN_SECONDS_MAX:g} s"
                )
            await asyncio.sleep(CHECK_SECONDS)


Progress = Callable[[str], None]
Arguments = dict[str, Any]
assert STEPS == 4, "the peers' sagas are written out with four steps"
