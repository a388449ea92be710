"""`bench timers`: many workflows that sleep, some of which wake every second; how late their timers count.

Late is from when a timer is due to the broker's timestamp of its event: by one clock, as the broker runs on this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.children import running
from benchmarks.recovery import snapshot_taken
from benchmarks.report import Figure, Report
from benchmarks.settings import RECOVER_SECONDS_MAX, BenchError, TimerSettings
from benchmarks.topics import delete_topics, make_topics
from sagalog.engine.client import Client
from sagalog.schemas.definitions import Definition, Sleep, Step, from_input
from sagalog.schemas.events import TYPE_OF, TimerFired
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import TopicPartition, header
from sagalog.topics.specs import Topics, all_specs

START_CHUNK: Final = 2_000
STARTS_PER_SECOND_MIN: Final = 1_500
"""What is started at least; so long before the first is due all are started."""
DAY_MS: Final = 24 * 3600 * 1000
POLL_RECORDS: Final = 5_000
FIGURES: Final = {"p50_late_ms": "ms", "p99_late_ms": "ms", "max_late_ms": "ms", "fired_per_second": "1/s"}


async def timers(
    bootstrap: str,
    settings: TimerSettings,
    environment: Mapping[str, Any],
    logs: Path,
    progress: Callable[[str], None],
) -> Report:
    """Raises BenchError when a timer does not fire."""
    topics = Topics("bench-timers")
    log = KafkaLog(bootstrap)
    arguments = {"bootstrap": bootstrap, "prefix": topics.prefix, "partitions": settings.partitions}
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    try:
        await make_topics(log, topics, all_specs([]), settings.partitions)
        async with (
            running("engine", arguments, logs) as engine,
            Client(log, topics, start_lag_records_max=0) as client,
        ):
            await engine.ready()
            await client.register(_sleeper())
            await _start(
                client, "pending", dict.fromkeys(range(settings.pending), int(time.time() * 1000) + 30 * DAY_MS)
            )
            await snapshot_taken(log, topics, settings.partitions)
            progress(f"{settings.pending:,} timers are pending")
            for number in range(settings.runs):
                for name, value in (await _run(log, topics, client, settings, number)).items():
                    figures[name].append(value)
                progress(
                    f"timers {number + 1}/{settings.runs}: "
                    + ", ".join(f"{name} {values[-1]:,.1f}" for name, values in figures.items())
                )
    finally:
        await log.close()
        await delete_topics(bootstrap, [topics.name(spec) for spec in all_specs([])])
    return Report(
        "timers",
        {
            **environment,
            "partitions": settings.partitions,
            "pending": settings.pending,
            "due_per_second": settings.due_per_second,
        },
        settings.runs,
        {name: Figure(FIGURES[name], values) for name, values in figures.items()},
        notes=("late: from when a timer is due to its event's timestamp.",),
    )


def _sleeper() -> Definition:
    return Definition(name="sleeper", steps=(Step(name="sleep", sleep=Sleep(until=from_input("at"))),))


async def _start(client: Client, prefix: str, due_ms: Mapping[int, int]) -> None:
    numbers = list(due_ms)
    for at in range(0, len(numbers), START_CHUNK):
        chunk = {f"{prefix}-{number}": {"at": due_ms[number]} for number in numbers[at : at + START_CHUNK]}
        await client.start_many("sleeper", chunk)


async def _run(log: KafkaLog, topics: Topics, client: Client, settings: TimerSettings, run: int) -> dict[str, float]:
    count = settings.due_per_second * settings.seconds
    first_ms = int(time.time() * 1000) + 1_000 * (2 + count // STARTS_PER_SECOND_MIN)
    due = {number: first_ms + number * 1_000 // settings.due_per_second for number in range(count)}
    partitions = [TopicPartition(topics.events, number) for number in range(settings.partitions)]
    reader = await log.read(dict.fromkeys(partitions, 0), committed=False)
    try:
        ends = await reader.end_offsets(partitions)
        reader.assign(ends)
        prefix = f"due-{run}"
        await _start(client, prefix, due)
        if time.time() * 1000 > first_ms:
            raise BenchError(f"{count:,} workflows were not started before the first was due; lower --due-per-second")
        fired: list[tuple[int, int]] = []
        async with asyncio.timeout(RECOVER_SECONDS_MAX):
            while len(fired) < count:
                for messages in (await reader.poll(200, POLL_RECORDS)).values():
                    for message in messages:
                        key = (message.key or b"").decode()
                        if header(message.headers, "ce_type") != TYPE_OF[TimerFired].encode() or not key.startswith(
                            prefix
                        ):
                            continue
                        fired.append((due[int(key.rpartition("-")[2])], message.timestamp))
    except TimeoutError:
        raise BenchError(f"{len(fired):,} of {count:,} timers fired within {RECOVER_SECONDS_MAX:g} s") from None
    finally:
        await reader.close()
    late = sorted(at_ms - due_ms for due_ms, at_ms in fired)
    took_s = (max(at_ms for _, at_ms in fired) - min(at_ms for _, at_ms in fired)) / 1000
    return {
        "p50_late_ms": float(late[len(late) // 2]),
        "p99_late_ms": float(late[int(len(late) * 0.99)]),
        "max_late_ms": float(late[-1]),
        "fired_per_second": len(fired) / max(took_s, 0.001),
    }
