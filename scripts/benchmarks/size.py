"""`bench size`: how large a system for so many workflows a day has to be, from the costs that were measured (see `sizing`).

Three ways: print a plan (no broker is started); `--measure` the costs on this machine and keep them in a file; `--check` what the
costs predict for a run against the run itself.

A measuring run: a fixed number of workflows through the real engine and the real host, from the first start until the last
snapshot. Processor time is that of the processes, bytes are the sizes of the topics' segments.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks import system
from benchmarks.children import running
from benchmarks.fold import idle_checkpoint, resident_bytes
from benchmarks.load import Load
from benchmarks.recovery import snapshot_taken
from benchmarks.settings import AGENT, SAMPLE_SECONDS, STEPS, BenchError
from benchmarks.sizing import LOGS, REMEMBERED_DAYS, Costs, Demand, Linear, Plan, bytes_per_workflow, plan
from benchmarks.topics import delete_topics, make_topics
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import TopicPartition
from sagalog.topics.specs import Topics, all_specs

COSTS_FILE: Final = Path(".sagalog/costs.json")
PARTITIONS: Final = 8
IN_FLIGHT: Final = 4_000
SMALL_BYTES: Final = 500
LARGE_BYTES: Final = 2_000
WARM_UP_WORKFLOWS: Final = 4_000
MEASURED_WORKFLOWS: Final = 10_000
CHECKED_WORKFLOWS: Final = 20_000
RUN_SECONDS_MAX: Final = 300.0
RECORD_FRAME_BYTES: Final = 10
"""Lengths, attributes, offset and time of a record in a batch, about."""
SHOWN_MIN: Final = 0.001
WEIGHED: Final = 200_000
"""Checkpoints held in memory at once to weigh one."""

PERFORMANCE: Final = Costs(
    source="docs/performance.md, 'What a step costs, for sizing' and (loading) 'Recovery'",
    engine_us_per_step=Linear(64.5, 0.011),
    agent_us_per_step=Linear(32.0, 0.007),
    broker_us_per_step=Linear(57.3, 0.011),
    bytes_per_event=Linear(266.0, 1.0),
    command_bytes_per_step=Linear(440.0, 1.0),
    checkpoint_bytes_per_step=Linear(215.0, 1.14),
    result_bytes_per_workflow=Linear(879.0, 6.0),
    stub_bytes=408.0,
    memory_bytes_per_idle_workflow=1_749.0,
    memory_bytes_per_stub=605.0,
    load_us_per_workflow=15.5,
)
"""What a plan is made from where nothing was measured; tests/unit/test_benchmarks_sizing.py holds each to the page."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Seconds are processor time of the whole run; bytes those of one replica."""

    workflows: int
    payload_bytes: int
    engine_seconds: float
    agent_seconds: float
    broker_seconds: float
    bytes_by_topic: Mapping[str, int]
    stub: bytes
    """The checkpoint that a finished workflow leaves."""
    stub_bytes: float
    """What it takes in the log."""

    @property
    def steps(self) -> int:
        return self.workflows * STEPS


def read_costs(file: Path) -> Costs:
    """The costs measured last, else those of the docs. Raises BenchError when the file is not one of costs."""
    if not file.exists():
        return PERFORMANCE
    try:
        return Costs.parse(json.loads(file.read_text()))
    except ValueError as error:
        raise BenchError(f"{file}: {error}") from None


def write_costs(costs: Costs, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(costs.document(), indent=2) + "\n")


async def measure(stack: EmbeddedStack, environment: Mapping[str, Any], logs: Path, progress: Progress) -> Costs:
    """The costs on this machine, from one run with small and one with large payloads."""
    checkpoint = idle_checkpoint()
    idle = resident_bytes(checkpoint, WEIGHED)
    await run(stack, "warm-up", WARM_UP_WORKFLOWS, SMALL_BYTES, logs)
    progress("the broker is warm")
    small, large = [
        await _told(stack, f"payload-{size}", MEASURED_WORKFLOWS, size, logs, progress)
        for size in (SMALL_BYTES, LARGE_BYTES)
    ]

    def line(cost: Callable[[Measured], float]) -> Linear:
        return Linear.through((SMALL_BYTES, cost(small)), (LARGE_BYTES, cost(large)))

    return Costs(
        source=f"scripts/bench size --measure: {MEASURED_WORKFLOWS:,} workflows of {SMALL_BYTES} and of {LARGE_BYTES} bytes, "
        + ", ".join(f"{key} {value}" for key, value in environment.items()),
        engine_us_per_step=line(lambda m: m.engine_seconds / m.steps * 1e6),
        agent_us_per_step=line(lambda m: m.agent_seconds / m.steps * 1e6),
        broker_us_per_step=line(lambda m: m.broker_seconds / m.steps * 1e6),
        bytes_per_event=line(lambda m: m.bytes_by_topic["events"] / (m.workflows + m.steps)),
        command_bytes_per_step=line(lambda m: m.bytes_by_topic["commands"] / m.steps),
        checkpoint_bytes_per_step=line(lambda m: m.bytes_by_topic["checkpoints"] / m.steps),
        result_bytes_per_workflow=line(lambda m: m.bytes_by_topic["results"] / m.workflows),
        stub_bytes=small.stub_bytes,
        memory_bytes_per_idle_workflow=idle,
        # Weighed as the idle one was, it would find that one's memory free and so weigh too little.
        memory_bytes_per_stub=len(small.stub) + idle - len(checkpoint),
        load_us_per_workflow=PERFORMANCE.load_us_per_workflow,
    )


async def check(
    stack: EmbeddedStack, costs: Costs, workflows: int, payload_bytes: int, logs: Path, progress: Progress
) -> list[dict[str, Any]]:
    """What the costs predict for a run beside what it measured; `ratio` is measured over predicted."""
    await run(stack, "warm-up", WARM_UP_WORKFLOWS, SMALL_BYTES, logs)
    found = await _told(stack, "check", workflows, payload_bytes, logs, progress)
    steps = found.steps
    sizes = bytes_per_workflow(STEPS, payload_bytes, costs)
    pairs = {
        "engine_processor_seconds": (costs.engine_us_per_step.at(payload_bytes) * steps / 1e6, found.engine_seconds),
        "agent_processor_seconds": (costs.agent_us_per_step.at(payload_bytes) * steps / 1e6, found.agent_seconds),
        "broker_processor_seconds": (costs.broker_us_per_step.at(payload_bytes) * steps / 1e6, found.broker_seconds),
        **{f"{topic}_mib": (sizes[topic] * workflows / 2**20, found.bytes_by_topic[topic] / 2**20) for topic in LOGS},
        "stub_bytes": (costs.stub_bytes, found.stub_bytes),
    }
    return [
        {"figure": name, "predicted": predicted, "measured": measured, "ratio": measured / predicted}
        for name, (predicted, measured) in pairs.items()
    ]


async def _told(
    stack: EmbeddedStack, name: str, workflows: int, payload_bytes: int, logs: Path, progress: Progress
) -> Measured:
    found = await run(stack, name, workflows, payload_bytes, logs)
    progress(
        f"{name}: engine {found.engine_seconds:.1f} s, agent {found.agent_seconds:.1f} s, "
        f"broker {found.broker_seconds:.1f} s of processor time"
    )
    return found


async def run(stack: EmbeddedStack, name: str, workflows: int, payload_bytes: int, logs: Path) -> Measured:
    """So many workflows from the first start to the last snapshot, on topics of their own."""
    topics = Topics(f"bench-size-{name}")
    log = KafkaLog(stack.bootstrap)
    arguments = {
        "bootstrap": stack.bootstrap,
        "prefix": topics.prefix,
        "partitions": PARTITIONS,
        "payload_bytes": payload_bytes,
    }
    specs = all_specs([AGENT])
    try:
        await make_topics(log, topics, specs, PARTITIONS)
        value, ce_type = await system.register(log, topics, payload_bytes)
        async with AsyncExitStack() as entered:
            engine, agent = [
                await entered.enter_async_context(running(role, arguments, logs)) for role in ("engine", "agent-host")
            ]
            await engine.ready()
            await agent.ready()
            load = await entered.enter_async_context(Load(stack.bootstrap, topics, PARTITIONS, value, ce_type))
            before = [await engine.cpu_seconds(), await agent.cpu_seconds(), _processor_seconds(stack.kafka.pid)]
            await _start_all(load, workflows)
            await snapshot_taken(log, topics, PARTITIONS)
            after = [await engine.cpu_seconds(), await agent.cpu_seconds(), _processor_seconds(stack.kafka.pid)]
        engine_s, agent_s, broker_s = (late - early for early, late in zip(before, after, strict=True))
        stub, stub_bytes = await _stub(log, topics)
        names = {topic: topics.commands(AGENT) if topic == "commands" else f"{topics.prefix}.{topic}" for topic in LOGS}
        return Measured(
            workflows,
            payload_bytes,
            engine_s,
            agent_s,
            broker_s,
            {topic: _segment_bytes(stack.kafka.data, full_name) for topic, full_name in names.items()},
            stub,
            stub_bytes,
        )
    finally:
        await log.close()
        await delete_topics(stack.bootstrap, [topics.name(spec) for spec in specs])


async def _start_all(load: Load, workflows: int) -> None:
    """Keeps IN_FLIGHT going until all were started, and waits until all have ended."""
    try:
        async with asyncio.timeout(RUN_SECONDS_MAX):
            while load.started < workflows:
                ended = (await load.sample()).workflows
                await load.start(min(IN_FLIGHT - (load.started - ended), workflows - load.started))
                await asyncio.sleep(SAMPLE_SECONDS)
            await load.drain()
    except TimeoutError:
        raise BenchError(f"{workflows:,} workflows did not end within {RUN_SECONDS_MAX:g} s") from None


async def _stub(log: KafkaLog, topics: Topics) -> tuple[bytes, float]:
    """The newest checkpoint of the first partition that is of a workflow, and what it takes in the log with key and headers."""
    partition = TopicPartition(topics.checkpoints, 0)
    reader = await log.read({partition: None}, committed=True)
    stub, size = b"", 0.0
    try:
        end = (await reader.end_offsets([partition]))[partition]
        while await reader.position(partition) < end:
            for messages in (await reader.poll(500, 2_000)).values():
                for message in messages:
                    if message.key is not None and message.key.startswith(b"w-") and message.value is not None:
                        stub = message.value
                        headers = sum(len(name) + len(value) + 2 for name, value in message.headers)
                        size = float(len(message.key) + len(stub) + headers + RECORD_FRAME_BYTES)
    finally:
        await reader.close()
    if not stub:
        raise BenchError(f"{topics.checkpoints} holds no checkpoint of a finished workflow")
    return stub, size


def _processor_seconds(pid: int | None) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _segment_bytes(data: Path, topic: str) -> int:
    return sum(
        file.stat().st_size for number in range(PARTITIONS) for file in (data / f"{topic}-{number}").glob("*.log")
    )


# --- what is printed


def print_plan(demand: Demand, costs: Costs, *, as_json: bool) -> None:
    found = plan(demand, costs)
    if as_json:
        document = {"bench": "size", "demand": asdict(demand), "plan": asdict(found), "costs": costs.document()}
        print(json.dumps(document, indent=2), flush=True)
        return
    console = Console()
    table = Table(
        title=f"{demand.workflows_per_day:,} workflows a day, {demand.steps} steps of {demand.payload_bytes} bytes, peak "
        f"{demand.peak:g} times the average, {demand.replication} replicas",
        title_justify="left",
    )
    table.add_column("needed")
    table.add_column("", justify="right")
    table.add_column("because")
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    console.print(f"costs: {costs.source}", style="dim")


def _rows(found: Plan) -> list[tuple[str, str, str]]:
    loads = f"a take-over loads for {found.load_seconds_per_partition:.1f} s"
    if found.partitions < found.partitions_wanted:
        loads += f"; {found.partitions_wanted:,} are wanted: use several prefixes"
    engines = f"{_short(found.engine_cores)} cores busy; limited by {found.engines_limited_by}"
    rows = {
        "steps per second at the peak": (_short(found.peak_steps_per_second), ""),
        "partitions, fixed once made": (f"{found.partitions:,}", loads),
        "engine processes": (f"{found.engines:,}", engines),
        "memory of all engines, GiB": (
            _short(found.engine_memory_gib),
            f"{REMEMBERED_DAYS:g} days of ids of finished ones",
        ),
        "host processes": (f"{found.hosts:,}", f"{_short(found.agent_cores)} cores busy, handlers not counted"),
        "broker cores": (_short(found.broker_cores), "busy, of all brokers together"),
        "written per day, GiB": (_short(found.written_gib_per_day_in_all), _parts(found.written_gib_per_day)),
        "kept at the default retention, GiB": (_short(found.kept_gib_in_all), _parts(found.kept_gib)),
    }
    return [(name, *row) for name, row in rows.items()]


def _parts(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{topic} {_short(size)}" for topic, size in parts.items())


def _short(value: float) -> str:
    if value < SHOWN_MIN:
        return f"< {SHOWN_MIN}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_check(rows: list[dict[str, Any]], costs: Costs, environment: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        document = {"bench": "size", "environment": dict(environment), "check": rows, "costs": costs.document()}
        print(json.dumps(document, indent=2), flush=True)
        return
    table = Table(title="predicted and measured", title_justify="left")
    table.add_column("figure")
    for name in ("predicted", "measured", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["figure"], _short(row["predicted"]), _short(row["measured"]), f"{row['ratio']:.2f}")
    console = Console()
    console.print(table)
    console.print(f"costs: {costs.source}", style="dim")
