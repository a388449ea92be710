"""`bench cluster`: one of three brokers is killed, again and again, under a steady load; how long nobody gets a result.

One cluster, one engine, one agent host for all kills. A kill takes the broker that leads most partitions of events; it is started
again once the others have done without it for a while, and the next kill comes when all replicas are in sync. Every workflow
that was started has to end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import system
from benchmarks.children import running
from benchmarks.load import Load
from benchmarks.report import Figure, Report
from benchmarks.results import Results, longest_gap_ms
from benchmarks.settings import AGENT, RECOVER_SECONDS_MAX, BenchError, ClusterSettings
from benchmarks.topics import make_topics
from sagalog.infra.embedded.cluster import led, wait_in_sync
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics, all_specs

BROKERS: Final = 3
TOPICS: Final = Topics("bench-cluster")
WARM_UP_SECONDS: Final = 5
AWAY_SECONDS: Final = 3
"""Results of so many seconds' starts come before the broker is started again, and as many before the next kill."""
SYNC_MS_MAX: Final = 60_000

FIGURES: Final = {"service_gap_ms": "ms", "gap_at_return_ms": "ms", "seconds_to_in_sync": "s"}


async def cluster(
    stack: EmbeddedStack,
    settings: ClusterSettings,
    environment: Mapping[str, Any],
    logs: Path,
    progress: Callable[[str], None],
) -> Report:
    """Kills and measures, as often as asked for. Raises BenchError when a workflow is lost, or the service does not come back."""
    # The client says ten times a second that a broker which was killed on purpose does not answer.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    await asyncio.to_thread(wait_in_sync, stack.brokers, SYNC_MS_MAX)
    log = KafkaLog(stack.bootstrap)
    arguments = {
        "bootstrap": stack.bootstrap,
        "prefix": TOPICS.prefix,
        "partitions": settings.partitions,
        "payload_bytes": settings.payload_bytes,
        "session_timeout_ms": settings.session_timeout_ms,
    }
    runs: list[Mapping[str, float]] = []
    try:
        await make_topics(log, TOPICS, all_specs([AGENT]), settings.partitions, replication=BROKERS)
        value, ce_type = await system.register(log, TOPICS, settings.payload_bytes)
        async with AsyncExitStack() as entered:
            for role in ("engine", "agent-host"):
                await (await entered.enter_async_context(running(role, arguments, logs))).ready()
            results = await entered.enter_async_context(Results(log, TOPICS, settings.partitions))
            load = await entered.enter_async_context(Load(stack.bootstrap, TOPICS, settings.partitions, value, ce_type))
            stop = asyncio.Event()
            starting = asyncio.create_task(_start(load, settings.workflows_per_second, stop))
            try:
                await _more(results, settings.workflows_per_second * WARM_UP_SECONDS)
                for number in range(settings.runs):
                    runs.append(await _kill(stack, results, settings.workflows_per_second * AWAY_SECONDS))
                    progress(
                        f"cluster {number + 1}/{settings.runs}: "
                        + ", ".join(f"{name} {runs[-1][name]:,.1f}" for name in FIGURES)
                    )
            finally:
                stop.set()
                await starting
            await results.until(load.started, RECOVER_SECONDS_MAX)
    finally:
        await log.close()
    failed = sum(result["status"] != "completed" for result in results.by_workflow.values())
    if failed:
        raise BenchError(f"{failed:,} of {load.started:,} workflows did not complete")
    return Report(
        "cluster",
        {
            **environment,
            "brokers": BROKERS,
            "partitions": settings.partitions,
            "payload_bytes": settings.payload_bytes,
            "workflows_per_second": settings.workflows_per_second,
            "workflows": load.started,
        },
        settings.runs,
        {name: Figure(unit, [run[name] for run in runs]) for name, unit in FIGURES.items()},
        notes=(
            "service_gap_ms: the longest time without any result from the kill until the broker is started again; "
            "gap_at_return_ms: from then until all replicas are in sync (seconds_to_in_sync). Every workflow completed.",
        ),
    )


async def _start(load: Load, per_second: int, stop: asyncio.Event) -> None:
    """Starts workflows evenly spaced until told to stop; what the cluster was not there for is started as soon as it is."""
    begun = time.monotonic()
    number = 0
    while not stop.is_set():
        due = int((time.monotonic() - begun) * per_second) - number
        await load.start(due)
        number += max(0, due)
        await asyncio.sleep(1 / per_second)


async def _kill(stack: EmbeddedStack, results: Results, count: int) -> Mapping[str, float]:
    (node, _), *_ = led(stack.brokers, TOPICS.events).most_common(1)
    victim = stack.brokers[node - 1]
    killed_at = time.monotonic()
    await asyncio.to_thread(victim.kill)
    await _more(results, count)
    started_at = time.monotonic()
    await asyncio.to_thread(victim.start)
    await asyncio.to_thread(wait_in_sync, stack.brokers, SYNC_MS_MAX)
    in_sync_at = time.monotonic()
    await _more(results, count)
    return {
        "service_gap_ms": longest_gap_ms(results.times, killed_at, started_at),
        "gap_at_return_ms": longest_gap_ms(results.times, started_at, in_sync_at),
        "seconds_to_in_sync": in_sync_at - started_at,
    }


async def _more(results: Results, count: int) -> None:
    await results.until(len(results.by_workflow) + count, RECOVER_SECONDS_MAX)
