"""One of three brokers is killed while workflows run: nothing is lost, and the service is back within seconds.

The cluster is the real one, three nodes on this machine: three replicas, of which two must have a record before it counts as
written. Only the embedded stack can make one, so this test runs there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from benchmarks.results import Results, longest_gap_ms

from sagalog.engine.audit import verify
from sagalog.engine.client import Client
from sagalog.infra.embedded import EmbeddedStack
from sagalog.infra.embedded.cluster import led, wait_in_sync
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import LogError
from sagalog.topics.specs import Topics

from ..conftest import SESSION_TIMEOUT_MS
from ..integration.system import eventually
from ..processes import Processes, environment_of
from . import agents

pytestmark = pytest.mark.chaos

TOPICS: Final = Topics("cluster")
PARTITIONS: Final = 6
WORKFLOWS: Final = 3_000
PORTION: Final = 50
PORTION_EVERY_S: Final = 0.25
KILL_AFTER: Final = WORKFLOWS // 4
"""Results that are there before the broker is killed."""
DOWN_RESULTS: Final = WORKFLOWS // 4
"""Results that come while it is away."""
GAP_MS_MAX: Final = 20_000
END_TIMEOUT_S: Final = 90
SYNC_TIMEOUT_MS: Final = 30_000


@pytest.fixture
def cluster() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(postgres=False, brokers=3) as stack:
        wait_in_sync(stack.brokers, SYNC_TIMEOUT_MS)
        yield stack


async def test_nothing_is_lost_when_one_of_three_brokers_is_killed(
    cluster: EmbeddedStack, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    agents.make_effects(str(tmp_path / "effects.sqlite"))
    log = KafkaLog(cluster.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    try:
        with Processes(tmp_path, _environment(cluster, tmp_path)) as processes:
            processes.make("engine", "engine")
            await _events_are_safe(log)
            async with Client(log, TOPICS) as client:
                await client.register(agents.definition)
            processes.make("agents", "agent", "tests.chaos.agents:agents")
            async with Results(log, TOPICS, PARTITIONS) as results:
                starting = asyncio.create_task(_start(log))
                await results.until(KILL_AFTER, END_TIMEOUT_S)
                killed_at = await _kill_and_restart(cluster, results)
                started = await starting
                await results.until(len(started), END_TIMEOUT_S)
            gap_ms = longest_gap_ms(results.times, killed_at, results.times[-1])
            print(f"longest time without a result: {gap_ms:.0f} ms; results published again: {results.again}")
            record_property("service_gap_ms", round(gap_ms))
            statuses = {workflow.decode(): found["status"] for workflow, found in results.by_workflow.items()}
            assert started - statuses.keys() == set()
            assert [w for w in started if statuses[w] != agents.expected_status(w)] == []
            assert gap_ms < GAP_MS_MAX
            await asyncio.to_thread(wait_in_sync, cluster.brokers, SYNC_TIMEOUT_MS)
            await _verified(log)
    finally:
        await log.close()


def _environment(cluster: EmbeddedStack, directory: Path) -> dict[str, str]:
    more = {
        "SAGALOG_REPLICATION": "3",
        "SAGALOG_MIN_INSYNC_REPLICAS": "2",
        agents.EFFECTS_VARIABLE: str(directory / "effects.sqlite"),
    }
    return environment_of(cluster.bootstrap, TOPICS, PARTITIONS, **more)


async def _events_are_safe(log: KafkaLog) -> None:
    """The engine has made the topics, as the settings say."""
    wanted = {TOPICS.events, TOPICS.checkpoints, TOPICS.results, TOPICS.definitions}

    async def made() -> bool:
        return (await log.describe(sorted(wanted))).keys() == wanted

    await eventually(made, 30, "the engine has not made its topics")
    for topic in (await log.describe(sorted(wanted))).values():
        assert (topic.replication, topic.config["min.insync.replicas"]) == (3, "2"), topic.name


async def _start(log: KafkaLog) -> set[str]:
    """Starts them in portions, and returns those whose start was acknowledged: all, or it was asked again."""
    started: set[str] = set()
    ids = [f"cluster-{number}" for number in range(WORKFLOWS)]
    while len(started) < len(ids):
        async with Client(log, TOPICS) as client:
            try:
                for at in range(len(started), len(ids), PORTION):
                    portion = ids[at : at + PORTION]
                    await client.start_many("chaos", {workflow_id: {"amount": 1} for workflow_id in portion})
                    started |= set(portion)
                    await asyncio.sleep(PORTION_EVERY_S)
            except LogError as error:
                print(f"not acknowledged, so started again: {error}")
    return started


async def _kill_and_restart(cluster: EmbeddedStack, results: Results) -> float:
    """Kills the node that leads most partitions of events; starts it again once the others have done without it for a while."""
    leaders = led(cluster.brokers, TOPICS.events)
    node, partitions = leaders.most_common(1)[0]
    victim = cluster.brokers[node - 1]
    killed_at = time.monotonic()
    await asyncio.to_thread(victim.kill)
    print(f"killed node {node}, which led {partitions} of {PARTITIONS} partitions of events")
    await results.until(len(results.by_workflow) + DOWN_RESULTS, END_TIMEOUT_S)
    assert node not in led(cluster.brokers, TOPICS.events)
    await asyncio.to_thread(victim.start)
    return killed_at


async def _verified(log: KafkaLog) -> None:
    """What `sagalog verify` checks: checkpoints and results are what the log folds to. Snapshots may lag by an interval."""

    async def fits() -> bool:
        reports = await verify(log, TOPICS)
        found = [line for report in reports for line in report.differences]
        return not found and sum(report.events for report in reports) > 8 * WORKFLOWS // 2

    await eventually(fits, 30, "the checkpoints and results are not what the log folds to")
