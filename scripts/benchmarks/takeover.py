"""`bench takeover`: two engines that stand by for each other; one is killed, one is restarted, among many open workflows.

A run: kill -9 of one engine; how long each take-over by the standby took from the moment the group gave it the partition, and how
long until the other partitions' new workflows moved again. Then a new engine joins, and then the old one is restarted in order
(SIGTERM), while a workflow is started every few milliseconds: the longest that any of them waited for its first command, and how
many commands were sent twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from benchmarks import system
from benchmarks.children import Child, running
from benchmarks.recovery import open_idle
from benchmarks.report import Figure, Report
from benchmarks.settings import RECOVER_SECONDS_MAX, BenchError, RecoverySettings
from benchmarks.topics import make_topics
from sagalog.engine.client import Client
from sagalog.schemas.commands import parse_command
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.events import StepCompleted, WorkflowStarted
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Consumer, Out, Producer, TopicPartition
from sagalog.topics.specs import Topics, all_specs

TOPICS: Final = Topics("bench-takeover")
PROBE: Final = "probe"
DAY_MS: Final = 24 * 3600 * 1000
START_CHUNK: Final = 2_000
PROBE_SECONDS: Final = 0.005
"""Between two probes; they go to the partitions in turn."""
POLL_MS: Final = 20
QUIET_SECONDS: Final = 1.0
"""Of probes before and after what is measured."""

FIGURES: Final = {
    "takeover_ms": "ms",
    "seconds_to_first_command_with_standby": "s",
    "wait_ms_while_joining": "ms",
    "wait_ms_while_restarting": "ms",
    "p99_ms_while_restarting": "ms",
    "sent_twice_while_restarting": "",
}


async def takeover(
    bootstrap: str,
    settings: RecoverySettings,
    environment: Mapping[str, Any],
    logs: Path,
    progress: Callable[[str], None],
) -> Report:
    """Raises BenchError when the engines do not come to stand by for each other, or a probe is never answered."""
    log = KafkaLog(bootstrap)
    opened = settings.workflows[0]
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    try:
        await make_topics(log, TOPICS, all_specs([PROBE]), settings.partitions)
        async with AsyncExitStack() as entered:
            engines = _Engines(bootstrap, settings, logs, entered)
            await engines.start()
            await open_idle(log, TOPICS, range(opened), settings)
            progress(f"{opened:,} workflows are open")
            await engines.start()
            await engines.settled()
            probes = await entered.enter_async_context(Probes(log, settings.partitions))
            for number in range(settings.runs):
                for name, values in (await _run(engines, probes)).items():
                    figures[name] += values
                progress(
                    f"takeover {number + 1}/{settings.runs}: "
                    + ", ".join(f"{name} {max(found):,.1f}" for name, found in figures.items())
                )
    finally:
        await log.close()
    return Report(
        "takeover",
        {
            **environment,
            "partitions": settings.partitions,
            "open_workflows": opened,
            "session_timeout_ms": settings.session_timeout_ms,
        },
        settings.runs,
        {name: Figure(FIGURES[name], values) for name, values in figures.items()},
        notes=(
            "takeover_ms: of each partition of the killed engine, from the group's word to live. "
            "seconds_to_first_command_with_standby: from the kill, the slowest partition. wait_ms_*: the longest that a workflow "
            "waited for its first command while an engine joined, or was restarted in order.",
        ),
    )


async def _run(engines: _Engines, probes: Probes) -> dict[str, list[float]]:
    killed_at, taken_over = await engines.kill_one()
    last_first = await probes.first_in_each_partition(killed_at)
    async with probes.steady() as joining:
        await engines.start()
        await engines.settled()
    async with probes.steady() as restarting:
        await engines.restart_one()
        await engines.settled()
    waits = sorted(restarting.waits_ms)
    return {
        "takeover_ms": taken_over,
        "seconds_to_first_command_with_standby": [last_first],
        "wait_ms_while_joining": [max(joining.waits_ms)],
        "wait_ms_while_restarting": [waits[-1]],
        "p99_ms_while_restarting": [waits[int(len(waits) * 0.99)]],
        "sent_twice_while_restarting": [float(restarting.sent_twice)],
    }


def is_settled(phases: Mapping[str, Any], partitions: int) -> bool:
    """Whether one of two engines has its half, and stands by for the other's.

    Partitions move one by one: what is still to move would be taken for taken over when the other is killed.
    """
    live, standby = phases.get("live", 0), phases.get("standby", 0)
    return bool(live and standby and live + standby == partitions and abs(live - standby) <= 1)


class _Engines:
    """Two of them, the older first."""

    def __init__(self, bootstrap: str, settings: RecoverySettings, logs: Path, entered: AsyncExitStack) -> None:
        self._arguments = {
            "bootstrap": bootstrap,
            "prefix": TOPICS.prefix,
            "partitions": settings.partitions,
            "session_timeout_ms": settings.session_timeout_ms,
            "phases": True,
        }
        self._partitions = settings.partitions
        self._logs = logs
        self._entered = entered
        self._running: list[Child] = []
        self._phases: dict[Child, dict[str, Any]] = {}

    async def start(self) -> None:
        self._running.append(await self._entered.enter_async_context(running("engine", self._arguments, self._logs)))

    async def settled(self) -> None:
        """Both own, and each stands by for what the other owns."""
        try:
            async with asyncio.timeout(RECOVER_SECONDS_MAX):
                for child in self._running:
                    while not is_settled(self._phases.get(child, {}), self._partitions):
                        self._phases[child] = await child.next("phases", RECOVER_SECONDS_MAX)
        except TimeoutError:
            raise BenchError(f"the engines do not stand by for each other: {list(self._phases.values())}") from None

    async def kill_one(self) -> tuple[float, list[float]]:
        """When it was killed, and the milliseconds of each of the other's take-overs."""
        victim = self._running.pop(0)
        (heir,) = self._running
        before = self._phases.pop(victim)["live"]
        killed_at = await victim.kill()
        taken_over = [float((await heir.next("live", RECOVER_SECONDS_MAX))["took_ms"]) for _ in range(before)]
        self._phases.pop(heir)
        return killed_at, taken_over

    async def restart_one(self) -> None:
        old = self._running.pop(0)
        self._phases.clear()
        await old.stop()
        await self.start()


@dataclass(slots=True)
class Waits:
    """What probes met with."""

    waits_ms: list[float] = field(default_factory=list)
    sent_twice: int = 0


class Probes:
    """Workflows of one step that are started to see how soon their command goes out; each is answered at once."""

    def __init__(self, log: KafkaLog, partitions: int) -> None:
        self._log = log
        self._partitions = partitions
        self._number = 0
        self._started: dict[str, float] = {}
        self._seen: Counter[str] = Counter()
        self._waits = Waits()
        self._definition = Definition(name=PROBE, steps=(Step(name="only", agent=PROBE, start_timeout_ms=DAY_MS),))
        self._commands: Consumer
        self._producer: Producer
        self._watching: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        async with Client(self._log, TOPICS, start_lag_records_max=0) as client:
            await client.register(self._definition)
        commands = [TopicPartition(TOPICS.commands(PROBE), number) for number in range(self._partitions)]
        self._commands = await self._log.read(dict.fromkeys(commands, 0), committed=False)
        self._producer = await self._log.producer("bench-probes")
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._commands.close()
        await self._producer.close()

    async def first_in_each_partition(self, since: float) -> float:
        """Seconds from `since` until one new workflow in each partition has its command."""
        names = [self._start(partition) for partition in range(self._partitions)]
        await self._until_sent(names)
        return time.monotonic() - since

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[Waits]:
        """One probe after the other, as long as the block takes and a moment before and after."""
        self._waits = waits = Waits()
        self._seen.clear()
        stop = asyncio.Event()
        starting = asyncio.create_task(self._start_steadily(stop))
        try:
            await asyncio.sleep(QUIET_SECONDS)
            yield waits
            await asyncio.sleep(QUIET_SECONDS)
        finally:
            stop.set()
            await starting
        await self._until_sent(list(self._started))
        waits.sent_twice = sum(count - 1 for count in self._seen.values())

    async def _start_steadily(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._start(self._number % self._partitions)
            await asyncio.sleep(PROBE_SECONDS)

    def _start(self, partition: int) -> str:
        """Written straight into a partition: the key need not hash to it, as nothing else is done with this workflow."""
        self._number += 1
        name = f"probe-{self._number}"
        event = WorkflowStarted(f"{PROBE}@{self._definition.hash}", None)
        self._started[name] = time.monotonic()
        self._append(partition, [system.record(event, name, name)])
        return name

    def _append(self, partition: int, records: Sequence[Out]) -> None:
        self._producer.append(TOPICS.events, partition, records).add_done_callback(system.must_succeed)

    async def _until_sent(self, names: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(RECOVER_SECONDS_MAX):
                while any(name in self._started for name in names):
                    if self._watching.done():
                        self._watching.result()
                    await asyncio.sleep(POLL_MS / 1000)
        except TimeoutError:
            left = sum(name in self._started for name in names)
            raise BenchError(f"{left} workflows got no command within {RECOVER_SECONDS_MAX:g} s") from None

    async def _watch(self) -> None:
        while True:
            for partition, messages in (await self._commands.poll(POLL_MS, START_CHUNK)).items():
                now = time.monotonic()
                answers = []
                for message in messages:
                    command = parse_command(message.value)
                    self._seen[command.command_id] += 1
                    started = self._started.pop(command.workflow_id, None)
                    if started is not None:
                        self._waits.waits_ms.append((now - started) * 1000)
                    done = StepCompleted(
                        command.step, command.attempt, command.direction, command.token, None, PROBE, 1
                    )
                    answers.append(system.record(done, command.workflow_id, f"{command.command_id}/result"))
                self._append(partition.partition, answers)
