"""`bench floor` and `bench engine`: steps a second at saturation, and the latency of a step under a light load.

A run: topics of its own, the two measured processes, warm-up, a window with a fixed number of workflows in flight (closed
loop), drain, then a light load, drain. The topics are deleted afterwards: the
broker would otherwise compact one run's checkpoints during the next.

The light load is an open loop (a slow answer delays no start, so none is left out of the percentiles) at one rate for both: a
fifth of what the engine can do. For the floor that is next to nothing, so that it is at its best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import raw, system
from benchmarks.children import running
from benchmarks.load import Load
from benchmarks.report import Figure, Report
from benchmarks.settings import (
    AGENT,
    LATENCY_RATE_MIN,
    LATENCY_SECONDS,
    LATENCY_SHARE,
    LATENCY_WARM_UP_SECONDS,
    STEPS,
    WARM_BROKER_SECONDS,
    BenchError,
    PipelineSettings,
)
from benchmarks.topics import delete_topics, make_topics
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics, all_specs

FLOOR: Final = "floor"
ROLES: Final = {
    FLOOR: ("floor-engine", "floor-agent"),
    "raw": ("engine", "agent-raw"),
    "host": ("engine", "agent-host"),
    "projected": ("engine", "agent-host", "projector"),
}
"""The processes of a run. The first is in the engine's place, the second in the agent's."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of either measured."""

    steps_per_second: float
    workflows: int
    """All that ended, in the window and around it."""
    p50_ms: float
    p99_ms: float
    engine_cpu_us: float
    """CPU time of the process in the engine's place, per step; that of the agent's below."""
    agent_cpu_us: float


async def floor(
    bootstrap: str, settings: PipelineSettings, environment: Mapping[str, Any], logs: Path, progress: Progress
) -> Report:
    """The floor alone."""
    settings = await _warmed_up(FLOOR, bootstrap, settings, logs, progress)
    runs = []
    for number in range(settings.runs):
        runs.append(await _run(FLOOR, f"floor-{number}", bootstrap, settings, logs))
        progress(f"floor {number + 1}/{settings.runs}: {_line(runs[-1])}")
    return Report("floor", {**environment, **_settings(settings)}, settings.runs, _figures(FLOOR, runs), notes=NOTES)


async def engine(
    bootstrap: str,
    postgres: str | None,
    settings: PipelineSettings,
    environment: Mapping[str, Any],
    logs: Path,
    progress: Progress,
) -> Report:
    """Floor and engine, run in turn, the engine once with each of the agents asked for; the ratios are those of a turn."""
    settings = await _warmed_up(settings.agents[0], bootstrap, settings, logs, progress, postgres)
    floors: list[Run] = []
    engines: dict[str, list[Run]] = {agent: [] for agent in settings.agents}
    for number in range(settings.runs):
        floors.append(await _run(FLOOR, f"floor-{number}", bootstrap, settings, logs))
        progress(f"floor  {number + 1}/{settings.runs}: {_line(floors[-1])}")
        for agent, runs in engines.items():
            runs.append(await _run(agent, f"engine-{agent}-{number}", bootstrap, settings, logs, postgres))
            progress(f"engine {number + 1}/{settings.runs}, {agent}: {_line(runs[-1])}")
    figures, ratios = _figures(FLOOR, floors), {}
    for agent, runs in engines.items():
        suffix = "" if agent == "host" else f"_{agent}"
        figures |= _figures(f"engine{suffix}", runs)
        pairs = list(zip(floors, runs, strict=True))
        ratios[f"throughput_vs_floor{suffix}"] = statistics.median(
            e.steps_per_second / f.steps_per_second for f, e in pairs
        )
        ratios[f"p50_vs_floor{suffix}"] = statistics.median(e.p50_ms / f.p50_ms for f, e in pairs)
    return Report(
        "engine",
        {**environment, **_settings(settings), "agents": ", ".join(settings.agents)},
        settings.runs,
        figures,
        ratios,
        NOTES,
    )


NOTES: Final = (
    "steps_per_second: at saturation, warm-up excluded. step_p50/p99: from the start of a step's work to the start of the "
    "next step's, under a light load of latency_steps_per_second. Ratios: median of the ratios of neighbouring runs.",
)


def _settings(settings: PipelineSettings) -> dict[str, Any]:
    return {
        "partitions": settings.partitions,
        "payload_bytes": settings.payload_bytes,
        "steps_per_workflow": STEPS,
        "in_flight": settings.in_flight,
        "seconds": settings.seconds,
        "latency_steps_per_second": settings.latency_steps_per_second,
    }


def _figures(kind: str, runs: list[Run]) -> dict[str, Figure]:
    return {
        f"{kind}_steps_per_second": Figure("steps/s", [run.steps_per_second for run in runs]),
        f"{kind}_step_p50": Figure("ms", [run.p50_ms for run in runs]),
        f"{kind}_step_p99": Figure("ms", [run.p99_ms for run in runs]),
        f"{kind}_engine_cpu_per_step": Figure("us", [run.engine_cpu_us for run in runs]),
        f"{kind}_agent_cpu_per_step": Figure("us", [run.agent_cpu_us for run in runs]),
        f"{kind}_workflows": Figure("workflows", [run.workflows for run in runs]),
    }


def _line(run: Run) -> str:
    return f"{run.steps_per_second:,.0f} steps/s, p50 {run.p50_ms:.2f} ms, p99 {run.p99_ms:.2f} ms"


async def _warmed_up(
    kind: str,
    bootstrap: str,
    settings: PipelineSettings,
    logs: Path,
    progress: Progress,
    postgres: str | None = None,
) -> PipelineSettings:
    """A run that does not count: a fresh broker is slow until its code is compiled. Sets the rate for the latencies."""
    short = replace(settings, seconds=WARM_BROKER_SECONDS, latency_steps_per_second=LATENCY_RATE_MIN)
    found = (await _run(kind, "warm-up", bootstrap, short, logs, postgres)).steps_per_second
    rate = settings.latency_steps_per_second or max(LATENCY_RATE_MIN, round(found * LATENCY_SHARE))
    progress(f"the broker is warm; latency will be measured at {rate:,} steps/s")
    return replace(settings, latency_steps_per_second=rate)


async def _run(
    kind: str, prefix: str, bootstrap: str, settings: PipelineSettings, logs: Path, postgres: str | None = None
) -> Run:
    """Of the floor, or of the engine with that agent."""
    topics = Topics(f"bench-{prefix}")
    log = KafkaLog(bootstrap)
    names = [topics.name(spec) for spec in all_specs([AGENT])]
    try:
        await make_topics(log, topics, all_specs([AGENT]), settings.partitions)
        value, ce_type = await _start_record(kind, log, topics, settings)
        arguments = {
            "bootstrap": bootstrap,
            "prefix": topics.prefix,
            "partitions": settings.partitions,
            "payload_bytes": settings.payload_bytes,
            "postgres": postgres,
        }
        async with AsyncExitStack() as stack:
            children = [await stack.enter_async_context(running(role, arguments, logs)) for role in ROLES[kind]]
            for child in children:
                await child.ready()
            in_engine, in_agent = children[:2]
            load = await stack.enter_async_context(Load(bootstrap, topics, settings.partitions, value, ce_type))

            await load.keep(settings.in_flight, settings.warm_up_seconds)
            cpu = [await in_engine.cpu_seconds(), await in_agent.cpu_seconds()]
            before = await load.sample()
            after = await load.keep(settings.in_flight, settings.seconds)
            cpu = [await in_engine.cpu_seconds() - cpu[0], await in_agent.cpu_seconds() - cpu[1]]
            await load.drain()

            assert settings.latency_steps_per_second is not None
            per_second = settings.latency_steps_per_second / STEPS
            await load.pace(per_second, LATENCY_WARM_UP_SECONDS)
            await in_agent.ask("latency-begin")
            await load.pace(per_second, LATENCY_SECONDS)
            latency = await in_agent.ask("latency-end")
            ended = await load.drain()
            if kind != FLOOR:
                check_results(await load.last_results())
        steps = after.steps - before.steps
        if not steps or not latency["count"]:
            raise BenchError(f"the {kind} did no step in {settings.seconds:g} s")
        return Run(
            steps_per_second=steps / (after.at - before.at),
            workflows=ended.workflows,
            p50_ms=latency["p50_ms"],
            p99_ms=latency["p99_ms"],
            engine_cpu_us=cpu[0] / steps * 1e6,
            agent_cpu_us=cpu[1] / steps * 1e6,
        )
    finally:
        await log.close()
        await delete_topics(bootstrap, names)


async def _start_record(
    kind: str, log: KafkaLog, topics: Topics, settings: PipelineSettings
) -> tuple[bytes, str | None]:
    """The value of a start, and its type where the reader wants one."""
    if kind == FLOOR:
        return raw.payload(0, settings.payload_bytes), None
    return await system.register(log, topics, settings.payload_bytes)


def check_results(values: list[bytes]) -> None:
    """Raises BenchError unless all of these workflows completed."""
    failed = [result for value in values if (result := orjson.loads(value))["status"] != "completed"]
    if failed:
        last = {key: found for key, found in failed[-1].items() if key not in ("input", "output", "steps")}
        raise BenchError(f"{len(failed)} of {len(values)} workflows looked at did not complete; the last: {last}")
