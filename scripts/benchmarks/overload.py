"""`bench overload`: what happens at ten times the load that the engine can sustain, through the client that refuses starts.

A run, on topics of its own with one engine and one host: the most the engine does (closed loop); a sustainable share of that in an
open loop, whose latency is what the rest is compared with; ten times as much, evenly spaced, where what is refused is counted and
not tried again; the sustainable load again, until a second is as before; and then nothing, until all that was admitted has ended.

Rules: starts go through the product's own `Client.start`, so admission, refusals and their count are the product's. Latency is from
the call of `start` to the result's arrival at a reader, by one clock; a workflow counts for the part in which it was started.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import system
from benchmarks.children import Child, running
from benchmarks.load import Load
from benchmarks.report import Figure, Report
from benchmarks.results import Results
from benchmarks.settings import AGENT, BenchError, OverloadSettings
from benchmarks.size import PERFORMANCE
from benchmarks.topics import delete_topics, make_topics
from sagalog.engine.backlog import Overloaded
from sagalog.engine.client import Client
from sagalog.infra.tuning import tune_garbage_collector
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics, all_specs

IN_FLIGHT: Final = 1_000
"""Workflows in flight while the most that the engine does is measured: enough to keep it busy, through in seconds."""
WARM_UP_SECONDS: Final = 12.0
SATURATED_SECONDS: Final = 10.0
SUSTAINABLE_SHARE: Final = 0.7
"""Of the most that the engine does: at all of it a queue only grows, and a shared machine is not always as fast as it just was."""
SETTLE_SECONDS: Final = 10.0
SUSTAINED_SECONDS: Final = 15.0
AFTER_SECONDS: Final = 10.0
NORMAL_SECONDS_MAX: Final = 90.0
"""How long a return to normal is waited for; 30 s are wanted."""
NORMAL_RATIO: Final = 1.5
DRAIN_SECONDS_MAX: Final = 900.0
TICK_SECONDS: Final = 0.002
OUTSTANDING_MAX: Final = 50_000
"""Starts that are not acknowledged yet; past it the bench, or the broker, is the limit and not the engine."""
MEMORY_SECONDS: Final = 1.0
MIB: Final = 2**20
Progress = Callable[[str], None]

FIGURES: Final = {
    "sustainable_workflows_per_second": "1/s",
    "offered_per_second": "1/s",
    "offered_vs_sustainable": "x",
    "admitted_per_second": "1/s",
    "finished_per_second": "1/s",
    "refused_share": "",
    "p50_ms_before": "ms",
    "p99_ms_before": "ms",
    "p50_ms_overloaded": "ms",
    "p99_ms_overloaded": "ms",
    "p50_ms_after": "ms",
    "p99_ms_after": "ms",
    "refused_share_before": "",
    "seconds_to_normal": "s",
    "engine_mib_before": "MiB",
    "engine_mib_most": "MiB",
    "engine_mib_after": "MiB",
    "engine_mib_beyond_stubs": "MiB",
    "workflows": "",
    "lost": "",
    "refused_but_run": "",
}
RATIOS: Final = {
    "p50_overloaded_vs_sustained": ("p50_ms_overloaded", "p50_ms_before"),
    "p99_overloaded_vs_sustained": ("p99_ms_overloaded", "p99_ms_before"),
    "p50_overloaded_vs_after": ("p50_ms_overloaded", "p50_ms_after"),
    "p99_overloaded_vs_after": ("p99_ms_overloaded", "p99_ms_after"),
}
"""Where those of before and of after differ much, the machine was not as fast all the time, and the run says little."""


async def overload(
    bootstrap: str, settings: OverloadSettings, environment: Mapping[str, Any], logs: Path, progress: Progress
) -> Report:
    """Raises BenchError when the engine does nothing, or starts are not acknowledged. What is lost is a figure."""
    tune_garbage_collector()  # as every process that the command line starts: the load comes from this one
    runs: list[dict[str, float]] = []
    for number in range(settings.runs):
        runs.append(await _run(f"bench-overload-{number}", bootstrap, settings, logs, progress))
        progress(f"overload {number + 1}/{settings.runs}: " + ", ".join(f"{k} {v:,.4g}" for k, v in runs[-1].items()))
    return Report(
        "overload",
        {
            **environment,
            "partitions": settings.partitions,
            "steps_per_workflow": settings.steps,
            "payload_bytes": settings.payload_bytes,
            "seconds": settings.seconds,
            "start_lag_records_max": settings.start_lag_records_max,
            "start_wait_ms_max": settings.start_wait_ms_max,
        },
        settings.runs,
        {name: Figure(unit, [run[name] for run in runs]) for name, unit in FIGURES.items()},
        {name: statistics.median(run[over] / run[under] for run in runs) for name, (over, under) in RATIOS.items()},
        NOTES,
    )


NOTES: Final = (
    f"sustainable: {SUSTAINABLE_SHARE:.0%} of the most. offered: attempts really made. Wanted: ratios at most 3, "
    f"seconds_to_normal at most 30 (p50 of a second within {NORMAL_RATIO:g} of before and nothing refused in it; "
    f"{NORMAL_SECONDS_MAX:g}: not within that), lost and refused_but_run 0. engine_mib_beyond_stubs: its growth, "
    f"less the {PERFORMANCE.memory_bytes_per_stub:,.0f} B by which it remembers each finished workflow.",
)


async def _run(
    prefix: str, bootstrap: str, settings: OverloadSettings, logs: Path, progress: Progress
) -> dict[str, float]:
    topics = Topics(prefix)
    log = KafkaLog(bootstrap)
    try:
        await make_topics(log, topics, all_specs([AGENT]), settings.partitions)
        value, ce_type = await system.register(log, topics, settings.payload_bytes, settings.steps)
        async with AsyncExitStack() as entered:
            engine = await _started(entered, bootstrap, topics, settings, logs)
            async with Load(bootstrap, topics, settings.partitions, value, ce_type) as load:
                sustainable = await _sustainable(load, settings.steps)
            progress(f"sustainable are {sustainable:,.0f} workflows/s")
            client = await entered.enter_async_context(
                Client(
                    log,
                    topics,
                    start_lag_records_max=settings.start_lag_records_max,
                    start_wait_ms_max=settings.start_wait_ms_max,
                )
            )
            results = await entered.enter_async_context(
                Results(log, topics, settings.partitions, lambda result: result["status"])
            )
            return await _measure(
                settings, sustainable, Starts(client, settings.payload_bytes), results, engine, progress
            )
    finally:
        await log.close()
        await delete_topics(bootstrap, [topics.name(spec) for spec in all_specs([AGENT])])


async def _started(
    entered: AsyncExitStack, bootstrap: str, topics: Topics, settings: OverloadSettings, logs: Path
) -> Child:
    """The engine; its host runs beside it."""
    arguments = {
        "bootstrap": bootstrap,
        "prefix": topics.prefix,
        "partitions": settings.partitions,
        "payload_bytes": settings.payload_bytes,
    }
    engine, host = [
        await entered.enter_async_context(running(role, arguments, logs)) for role in ("engine", "agent-host")
    ]
    await engine.ready()
    await host.ready()
    return engine


async def _sustainable(load: Load, steps: int) -> float:
    """Workflows a second: of the steps a second at saturation, so that it does not matter which workflows end in the window."""
    await load.keep(IN_FLIGHT, WARM_UP_SECONDS)
    before = await load.sample()
    after = await load.keep(IN_FLIGHT, SATURATED_SECONDS)
    await load.drain()
    found = (after.steps - before.steps) / (after.at - before.at) / steps * SUSTAINABLE_SHARE
    if found < 1:
        raise BenchError(f"the engine does {found:.2f} workflows per second; lower the number of steps")
    return found


async def _measure(
    settings: OverloadSettings, sustainable: float, starts: Starts, results: Results, engine: Child, progress: Progress
) -> dict[str, float]:
    await starts.pace(sustainable, SETTLE_SECONDS)
    before = await starts.pace(sustainable, SUSTAINED_SECONDS)
    async with _memory(engine) as memory:
        over = await starts.pace(sustainable * settings.times, settings.seconds)
        progress(f"{over.attempts:,} attempts in {over.seconds:.0f} s, {over.refused:,} refused")
        p50_before, _ = percentiles(latencies_ms(starts.begun, results, before))
        normal = await _back_to_normal(starts, results, sustainable, over.until, NORMAL_RATIO * p50_before)
        after = await starts.pace(sustainable, AFTER_SECONDS)
        await _drained(starts, results)
    starts.check_counted()
    found = {
        "sustainable_workflows_per_second": sustainable,
        "refused_share_before": before.refused / before.attempts,
        "seconds_to_normal": normal,
        "workflows": float(len(starts.begun)),
        "lost": float(sum(results.by_workflow.get(key) != "completed" for key in starts.begun)),
        "refused_but_run": float(sum(key not in starts.begun for key in results.by_workflow)),
        **_overloaded(over, results, sustainable),
        **_memory_figures(memory, engine.resident_bytes(), len(results.times) - ended_until(results, before.until)),
    }
    for name, part in (("before", before), ("overloaded", over), ("after", after)):
        found[f"p50_ms_{name}"], found[f"p99_ms_{name}"] = percentiles(latencies_ms(starts.begun, results, part))
    return found


def _overloaded(over: Part, results: Results, sustainable: float) -> dict[str, float]:
    finished = ended_until(results, over.until) - ended_until(results, over.since)
    return {
        "offered_per_second": over.attempts / over.seconds,
        "offered_vs_sustainable": over.attempts / over.seconds / sustainable,
        "admitted_per_second": (over.attempts - over.refused) / over.seconds,
        "finished_per_second": finished / over.seconds,
        "refused_share": over.refused / over.attempts,
    }


def _memory_figures(samples: Sequence[int], after: int, finished: int) -> dict[str, float]:
    """`samples`: resident bytes, the first of before; `finished`: workflows that ended since then."""
    return {
        "engine_mib_before": samples[0] / MIB,
        "engine_mib_most": max(samples) / MIB,
        "engine_mib_after": after / MIB,
        "engine_mib_beyond_stubs": beyond_stubs(samples[0], after, finished) / MIB,
    }


@dataclass(slots=True)
class Part:
    """What was attempted between two times of the monotonic clock."""

    since: float
    until: float = 0.0
    attempts: int = 0
    refused_at: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.until - self.since

    @property
    def refused(self) -> int:
        return len(self.refused_at)


class Starts:
    """The load: attempts through one client, evenly spaced, whether the ones before have been answered or not."""

    def __init__(self, client: Client, payload_bytes: int) -> None:
        self._client = client
        self._value = system.payload(payload_bytes)
        self._definition = system.definition().name
        self._number = 0
        self._outstanding = 0
        self._refused = 0
        self.begun: dict[bytes, float] = {}
        """When the start of a workflow was called that was not refused."""

    def check_counted(self) -> None:
        """Raises BenchError unless the client has counted what it refused."""
        if self._client.starts_refused != self._refused:
            raise BenchError(f"the client counted {self._client.starts_refused:,} refusals of {self._refused:,}")

    async def pace(self, per_second: float, seconds: float) -> Part:
        """Attempts so many a second; what could not be attempted in its time is attempted as soon as it can.

        Raises BenchError when a start fails otherwise than by being refused.
        """
        part = Part(time.monotonic())
        try:
            async with asyncio.TaskGroup() as attempts:
                while (now := time.monotonic()) < part.since + seconds:
                    for _ in range(int((now - part.since) * per_second) - part.attempts):
                        self._attempt(attempts, part)
                    await asyncio.sleep(TICK_SECONDS)
                part.until = time.monotonic()
        except ExceptionGroup as failed:
            raise BenchError(f"a start failed: {failed.exceptions[0]}") from failed
        return part

    def _attempt(self, attempts: asyncio.TaskGroup, part: Part) -> None:
        if self._outstanding >= OUTSTANDING_MAX:
            raise BenchError(f"{self._outstanding:,} starts are not acknowledged; offer less")
        part.attempts += 1
        self._number += 1
        self._outstanding += 1
        attempts.create_task(self._start(f"o-{self._number}", part))

    async def _start(self, workflow_id: str, part: Part) -> None:
        key = workflow_id.encode()
        self.begun[key] = time.monotonic()
        try:
            await self._client.start(self._definition, self._value, workflow_id=workflow_id)
        except Overloaded:
            part.refused_at.append(self.begun.pop(key))
            self._refused += 1
        finally:
            self._outstanding -= 1


async def _back_to_normal(starts: Starts, results: Results, sustainable: float, since: float, limit_ms: float) -> float:
    """Offers the sustainable load until a second is normal; the seconds from the overload's end to the end of that one."""
    refused_at: list[float] = []
    first = bisect_left(results.times, since)
    while time.monotonic() < since + NORMAL_SECONDS_MAX:
        refused_at += (await starts.pace(sustainable, 1.0)).refused_at
        came = [
            (at, (at - starts.begun[key]) * 1000)
            for at, key in zip(results.times[first:], results.workflows[first:], strict=True)
            if key in starts.begun
        ]
        normal = seconds_to_normal(came, refused_at, since, time.monotonic(), limit_ms)
        if normal is not None:
            return normal
    return NORMAL_SECONDS_MAX


def seconds_to_normal(
    came: Sequence[tuple[float, float]], refused_at: Sequence[float], since: float, now: float, limit_ms: float
) -> float | None:
    """Seconds from `since` to the end of the first whole second that was normal; None when there is none yet.

    Normal: results came, with a p50 of at most `limit_ms`, and no start was refused.
    `came`: when each result came, and its latency in milliseconds.
    """
    for second in range(int(now - since)):
        begin, end = since + second, since + second + 1
        found = [latency_ms for at, latency_ms in came if begin <= at < end]
        refused = any(begin <= at < end for at in refused_at)
        if found and not refused and statistics.median(found) <= limit_ms:
            return second + 1.0
    return None


def ended_until(results: Results, at: float) -> int:
    """How many workflows had ended by then, on the monotonic clock."""
    return bisect_left(results.times, at)


def latencies_ms(begun: Mapping[bytes, float], results: Results, part: Part) -> list[float]:
    """Of the workflows that were started in that part and have ended, in order."""
    return sorted(
        (at - begun[key]) * 1000
        for key, at in zip(results.workflows, results.times, strict=True)
        if part.since <= begun.get(key, 0.0) < part.until
    )


def percentiles(ordered: Sequence[float]) -> tuple[float, float]:
    """p50 and p99. Raises BenchError when there is nothing."""
    if not ordered:
        raise BenchError("of the workflows that were started in a part of the run none was admitted, or none has ended")
    return statistics.median(ordered), ordered[int(0.99 * len(ordered))]


def beyond_stubs(before_bytes: int, after_bytes: int, finished: int) -> float:
    """By how many bytes the engine grew, less what it has to remember of that many workflows."""
    return after_bytes - before_bytes - finished * PERFORMANCE.memory_bytes_per_stub


@asynccontextmanager
async def _memory(engine: Child) -> AsyncIterator[list[int]]:
    """The engine's resident bytes, first now, then every MEMORY_SECONDS until the block ends."""
    found = [engine.resident_bytes()]

    async def sample() -> None:
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            found.append(engine.resident_bytes())

    sampling = asyncio.create_task(sample())
    try:
        yield found
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def _drained(starts: Starts, results: Results) -> None:
    """Waits until as many have ended as were admitted; which, and whether any is missing, is looked at afterwards."""
    try:
        await results.until(len(starts.begun), DRAIN_SECONDS_MAX)
    except BenchError:
        return
