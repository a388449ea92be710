"""`bench recovery`: kill -9 on an engine with many open workflows; how long until commands go out again.

A run: thousands of workflows whose agents never answer, a part of them in back-off, and beyond AGENTS_MAX agents' worth of them
others that wait for a signal; all in a snapshot. Then a few more starts, SIGKILL at once, a new engine at once, and one workflow
per partition started while none was there. The first command of such a workflow can only come from the new engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import system
from benchmarks.children import Child, running
from benchmarks.report import Figure, Report
from benchmarks.settings import PREPARE_SECONDS_MAX, RECOVER_SECONDS_MAX, BenchError, RecoverySettings
from benchmarks.topics import delete_topics, make_topics
from sagalog.engine.client import Client
from sagalog.schemas.commands import parse_command
from sagalog.schemas.definitions import Definition, Retry, Step, WaitFor
from sagalog.schemas.events import FailureKind, StepFailed
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Consumer, Producer, TopicPartition
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics, all_specs

PER_AGENT_AND_PARTITION_MAX: Final = 600
"""Below the engine's limit of commands out per agent and partition, so that every workflow's command is out."""
AGENTS_MAX: Final = 25
"""Each has a topic of its own. As many as 100,000 workflows need in eight partitions."""
BACKING_OFF_EVERY: Final = 10
"""One workflow of an agent in so many has failed once and waits for its retry."""
LATE_STARTS: Final = 200
"""Workflows started right before the kill, in no snapshot."""
START_CHUNK: Final = 2_000
DAY_MS: Final = 24 * 3600 * 1000
POLL_MS: Final = 20
SETTLE_SECONDS: Final = 0.1

FIGURES: Final = (
    "seconds_to_first_command",
    "seconds_to_all_partitions",
    "seconds_to_process_up",
    "seconds_to_assignment",
    "seconds_loading",
    "seconds_catching_up",
    "seconds_recovering",
)


async def recovery(
    bootstrap: str,
    settings: RecoverySettings,
    environment: Mapping[str, Any],
    logs: Path,
    progress: Callable[[str], None],
) -> Report:
    """Kills and measures, as often as asked for, with each number of open workflows that is asked for."""
    first, *further = sizes = list(dict.fromkeys(settings.workflows))
    figures: dict[str, Figure] = {}
    for workflows in sizes:
        runs = [
            await _measured(f"bench-recovery-{workflows}-{number}", bootstrap, settings, workflows, logs, progress)
            for number in range(settings.runs)
        ]
        figures |= {
            name if workflows == first else f"{name}_{workflows}_open": Figure("s", [run[name] for run in runs])
            for name in FIGURES
        }
    return Report(
        "recovery",
        {
            **environment,
            "partitions": settings.partitions,
            "payload_bytes": settings.payload_bytes,
            "open_workflows": first,
            "further_open_workflows": further,
            "backing_off": of_agents(first, settings.partitions) // BACKING_OFF_EVERY,
            "session_timeout_ms": settings.session_timeout_ms,
        },
        settings.runs,
        figures,
        notes=(
            "All from the kill, but the last three, which are parts of it: to_assignment (the broker holds the partitions for the "
            "dead member until session_timeout_ms is over; the new process comes up meanwhile), then loading (until all "
            "partitions have read their checkpoints), then catching_up (until all are live); recovering is both.",
        ),
    )


async def _measured(
    prefix: str, bootstrap: str, settings: RecoverySettings, workflows: int, logs: Path, progress: Callable[[str], None]
) -> Mapping[str, float]:
    found = await _run(Topics(prefix), bootstrap, settings, workflows, logs, progress)
    progress(f"recovery, {workflows:,} open: " + ", ".join(f"{name} {found[name]:.2f}" for name in FIGURES))
    return found


def of_agents(workflows: int, partitions: int) -> int:
    """How many of them wait for an agent; the rest waits for a signal."""
    return min(workflows, AGENTS_MAX * PER_AGENT_AND_PARTITION_MAX * partitions)


async def _run(
    topics: Topics,
    bootstrap: str,
    settings: RecoverySettings,
    workflows: int,
    logs: Path,
    progress: Callable[[str], None],
) -> Mapping[str, float]:
    log = KafkaLog(bootstrap)
    asked = of_agents(workflows, settings.partitions)
    agents = [f"silent-{number}" for number in range(-(-asked // (settings.partitions * PER_AGENT_AND_PARTITION_MAX)))]
    specs = all_specs(agents)
    arguments = {
        "bootstrap": bootstrap,
        "prefix": topics.prefix,
        "partitions": settings.partitions,
        "session_timeout_ms": settings.session_timeout_ms,
    }
    try:
        await make_topics(log, topics, specs, settings.partitions)
        async with Client(log, topics, start_lag_records_max=0) as client:
            for agent in agents:
                await client.register(_definition(agent))
            commands = await log.read(
                {TopicPartition(topics.commands(a), n): None for a in agents for n in range(settings.partitions)},
                committed=False,
            )
            try:
                async with running("engine", arguments, logs) as first:
                    await first.ready()
                    await _open_workflows(log, topics, client, commands, agents, range(asked), settings)
                    await open_idle(log, topics, range(asked, workflows), settings)
                    progress(f"{workflows:,} workflows are open")
                    await client.start_many(agents[0], _inputs("late", range(LATE_STARTS), settings))
                    killed_at = await first.kill()
                async with running("engine", arguments, logs) as second:
                    return await _recover(client, commands, second, agents[0], killed_at, settings)
            finally:
                await commands.close()
    finally:
        await log.close()
        await delete_topics(bootstrap, [topics.name(spec) for spec in specs])


def _definition(agent: str) -> Definition:
    retry = Retry(attempts=5, base_ms=DAY_MS, cap_ms=DAY_MS)
    return Definition(
        name=agent,
        steps=(
            Step(name="one", agent=agent, retry=retry, start_timeout_ms=DAY_MS),
            Step(name="two", agent=agent, needs=("one",)),
        ),
    )


def _inputs(name: str, numbers: range, settings: RecoverySettings) -> dict[str, Any]:
    value = system.payload(settings.payload_bytes)
    return {f"{name}-{number}": value for number in numbers}


async def _open_workflows(
    log: KafkaLog,
    topics: Topics,
    client: Client,
    commands: Consumer,
    agents: list[str],
    numbers: range,
    settings: RecoverySettings,
) -> None:
    """Starts them, waits until each has its command out, and fails some once."""
    for number, agent in enumerate(agents):
        mine = numbers[number :: len(agents)]
        for at in range(0, len(mine), START_CHUNK):
            await client.start_many(agent, _inputs("w", mine[at : at + START_CHUNK], settings))
    producer = await log.producer("bench-failures")
    try:
        out = 0
        async with asyncio.timeout(PREPARE_SECONDS_MAX):
            while out < len(numbers):
                for partition, messages in (await commands.poll(500, START_CHUNK)).items():
                    failing = [m.value for n, m in enumerate(messages, out) if n % BACKING_OFF_EVERY == 0]
                    out += len(messages)
                    await _fail(producer, TopicPartition(topics.events, partition.partition), failing)
    except TimeoutError:
        raise BenchError(f"{out:,} of {len(numbers):,} commands went out within {PREPARE_SECONDS_MAX:g} s") from None
    finally:
        await producer.close()


async def open_idle(log: KafkaLog, topics: Topics, numbers: range, settings: RecoverySettings) -> None:
    """Starts workflows that wait for a signal that nobody sends, and waits until all are in a snapshot."""
    idle = Definition(name="idle", steps=(Step(name="wait", wait_for=WaitFor(signal="never", timeout_ms=30 * DAY_MS)),))
    async with Client(log, topics, start_lag_records_max=0) as client:
        await client.register(idle)
        for at in range(0, len(numbers), START_CHUNK):
            await client.start_many("idle", _inputs("idle", numbers[at : at + START_CHUNK], settings))
    await snapshot_taken(log, topics, settings.partitions)


async def _fail(producer: Producer, events: TopicPartition, values: list[bytes | None]) -> None:
    failures = []
    for value in values:
        command = parse_command(value)
        failed = StepFailed(
            command.step, command.attempt, command.direction, command.token, FailureKind.RETRYABLE, "not today"
        )
        failures.append(system.record(failed, command.workflow_id, command.command_id))
    await producer.append(*events, failures)


async def snapshot_taken(log: KafkaLog, topics: Topics, partitions: int) -> None:
    """Waits until the engine's snapshots cover everything: a snapshot's transaction carries the group's offset."""
    events = [TopicPartition(topics.events, number) for number in range(partitions)]
    reader = await log.read(dict.fromkeys(events, 0), committed=False)
    try:
        async with asyncio.timeout(PREPARE_SECONDS_MAX):
            while True:
                ends = await reader.end_offsets(events)
                covered = await log.committed(topics.engine_group, events)
                if all(covered.get(partition, (-1, ""))[0] == end for partition, end in ends.items()):
                    return
                await asyncio.sleep(SETTLE_SECONDS)
    except TimeoutError:
        raise BenchError(f"the engine's snapshots did not reach the end within {PREPARE_SECONDS_MAX:g} s") from None
    finally:
        await reader.close()


async def _recover(
    client: Client, commands: Consumer, engine: Child, definition: str, killed_at: float, settings: RecoverySettings
) -> Mapping[str, float]:
    probes = _probes(settings.partitions)
    await client.start_many(definition, dict.fromkeys(probes, system.payload(settings.payload_bytes)))
    seen = asyncio.create_task(_first_commands(commands, set(probes)))
    try:
        up = await engine.next("up", RECOVER_SECONDS_MAX)
        assigned = await engine.next("assigned", RECOVER_SECONDS_MAX)
        loaded = await engine.next("loaded", RECOVER_SECONDS_MAX)
        live = await engine.next("ready", RECOVER_SECONDS_MAX)
        first, last = await seen
    finally:
        seen.cancel()
        await asyncio.gather(seen, return_exceptions=True)
    return {
        "seconds_to_first_command": first - killed_at,
        "seconds_to_all_partitions": last - killed_at,
        "seconds_to_process_up": up["at"] - killed_at,
        "seconds_to_assignment": assigned["at"] - killed_at,
        "seconds_loading": loaded["at"] - assigned["at"],
        "seconds_catching_up": live["at"] - loaded["at"],
        "seconds_recovering": live["at"] - assigned["at"],
    }


def _probes(partitions: int) -> list[str]:
    """One workflow id for each partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < partitions:
        found.setdefault(partition_of(f"probe-{number}".encode(), partitions), f"probe-{number}")
        number += 1
    return list(found.values())


async def _first_commands(commands: Consumer, probes: set[str]) -> tuple[float, float]:
    """When the first and the last of the probes' commands was there."""
    first: float | None = None
    waiting = {probe.encode() for probe in probes}
    try:
        async with asyncio.timeout(RECOVER_SECONDS_MAX):
            while True:
                for messages in (await commands.poll(POLL_MS, START_CHUNK)).values():
                    now = time.monotonic()
                    found = {message.key for message in messages if message.key in waiting}
                    if found and first is None:
                        first = now
                    waiting -= found
                if first is not None and not waiting:
                    return first, time.monotonic()
    except TimeoutError:
        raise BenchError(f"{len(waiting)} partitions sent no command within {RECOVER_SECONDS_MAX:g} s") from None
