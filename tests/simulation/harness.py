"""One run: build the cluster of a plan, break it for a while, heal it, wait for the end, check.

Rule: the garbage collector sleeps during a run. What it finalises, and when, is no function of the seed.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from sagalog.engine.audit import verify
from sagalog.engine.projection.projector import projected
from sagalog.engine.projection.verification import ProjectedRows
from sagalog.engine.runtime import processor
from sagalog.infra.simulation import SimulatedClock, SimulationLoop
from sagalog.schemas.codec import decode_object
from sagalog.topics.log import TopicPartition
from sagalog.topics.simulated import SimulatedKafka

from .checkers import Evidence, check
from .cluster import PROBE, TOPICS, Cluster, ended_ids
from .database import Network, SqlFaults
from .definitions import ALL_AGENTS
from .known import KNOWN
from .patch import Patch
from .plan import Plan, plan_of
from .planted_projection import BUGS
from .postgres import TABLES, Database, database
from .timetables import is_run
from .trace import Trace
from .world import World

END_S: Final = 600.0
"""Simulated time after the last fault within which all has to be over: the suspects of a killed host are tried one at a time."""
STILL_S: Final = 200.0
"""... and within which something ends at least: a clock that is a minute behind and an outage may come together."""
STOP_S: Final = 120.0
PROJECT_S: Final = 120.0
"""After the last record: an orphaned transaction holds its locks for a minute."""
STEP_S: Final = 0.5


@dataclass(slots=True)
class Outcome:
    """How a run went."""

    seed: int
    problems: list[tuple[str, str]]
    """(checker, what it found)"""
    workflows: int
    statuses: Counter[str]
    steps: int
    simulated_s: float
    wall_s: float
    fingerprint: str
    """Of all that is in the log and all that was traced: the same seed has the same."""
    trace: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.problems)


def run(seed: int, *, plant: str | None = None, as_is: bool = False, **which: bool | None) -> Outcome:
    """Runs the plan of a seed (`which`: see `plan_of`); `plant` names a bug to plant, `as_is` leaves known bugs unmended."""
    return run_plan(plan_of(seed, **which), plant=plant, as_is=as_is)


def run_plan(plan: Plan, *, plant: str | None = None, as_is: bool = False) -> Outcome:
    started_s = time.perf_counter()
    rows = database(TOPICS.prefix) if plan.projectors else None
    with _no_collector(), Patch() as patch:
        for mend in () if as_is else KNOWN:
            mend(patch)
        for name, value in zip(("CUT_WORKFLOWS", "CUT_PAUSE_S"), plan.cut, strict=True):
            patch.set(processor, name, value)
        if plant is not None:
            BUGS[plant].plant(patch)
        rng = random.Random(f"run/{plan.seed}")
        loop = SimulationLoop(random.Random(rng.random()) if plan.shuffled else None)
        network = None
        if rows is not None:
            network = Network(rows, TOPICS.prefix, loop, random.Random(f"database/{plan.seed}"))
        asyncio.set_event_loop(loop)
        try:
            with Trace(loop) as trace:
                outcome = _simulate(plan, loop, trace, rng, network)
        finally:
            if network is not None:
                network.close()
            asyncio.set_event_loop(None)
            loop.close()
        del loop
    outcome.wall_s = time.perf_counter() - started_s
    return outcome


def _simulate(plan: Plan, loop: SimulationLoop, trace: Trace, rng: random.Random, network: Network | None) -> Outcome:
    problems: list[tuple[str, str]]
    statuses: Counter[str] = Counter()
    kafka = SimulatedKafka(SimulatedClock(loop), random.Random(rng.random()))
    try:
        evidence = loop.run_until_complete(_run(plan, loop, kafka, trace, rng, network))
        trace.note("CHECK")
        problems = check(evidence)
        statuses.update(result["status"] for result in evidence.results.values())
    except RuntimeError as error:
        # The loop's own verdicts: a deadlock, a spin, or time without end.
        problems = [("loop", f"{type(error).__name__}: {error}")]
    return Outcome(
        seed=plan.seed,
        problems=problems,
        workflows=statuses.total(),
        statuses=statuses,
        steps=loop.steps,
        simulated_s=loop.time(),
        wall_s=0.0,
        fingerprint=_fingerprint(kafka, trace),
        trace=list(trace.lines),
    )


async def _run(
    plan: Plan,
    loop: SimulationLoop,
    kafka: SimulatedKafka,
    trace: Trace,
    rng: random.Random,
    network: Network | None,
) -> Evidence:
    definitions = {definition.hash: definition for definition in (*plan.definitions, *plan.changes, PROBE)}
    world = World(plan, loop, definitions, random.Random(rng.random()))
    cluster = Cluster(plan, loop, kafka, world, trace, random.Random(rng.random()), network)
    await cluster.build()
    for name, value in plan.log_faults.items():
        # A copy: a plan is run more than once, and healing clears the faults.
        setattr(kafka.faults, name, dict(value) if isinstance(value, dict) else value)
    if network is not None:
        network.faults = SqlFaults(**plan.sql_faults)
    await cluster.break_things()
    await asyncio.sleep(max(0.0, plan.chaos_ms / 1000 - loop.time()))
    cluster.heal()
    await cluster.rolled()
    await _end(plan, loop, kafka, cluster)
    await cluster.stop(STOP_S, "engine", "extra", "operator")
    # The last engine may have taken over what the first gave up, and sent again what was open.
    await _end_commands(plan, loop, kafka, cluster)
    await cluster.stop(STOP_S, "host")
    tables = None
    if network is None:
        reports = await verify(kafka.log("auditor"), TOPICS)
    else:
        await _end_projection(plan, loop, kafka, cluster, network.database)
        await cluster.stop(STOP_S, "projector")
        sql = network.sql()
        await sql.open()
        reports = await verify(kafka.log("auditor"), TOPICS, rows=ProjectedRows(sql))
        await sql.close()
        tables = {table: network.database.rows(table) for table in (*TABLES, "stepped_back")}
    return Evidence(
        plan=plan,
        kafka=kafka,
        topics=TOPICS,
        world=world,
        definitions=definitions,
        acked=list(cluster.acked),
        sent=cluster.sent,
        reports=reports,
        skipped=cluster.skipped,
        tables=tables,
        said=cluster.problems,
        bugs=[*trace.bugs, *loop.failures],
    )


async def _end(plan: Plan, loop: SimulationLoop, kafka: SimulatedKafka, cluster: Cluster) -> None:
    """Until all workflows are over, all partitions served, all commands committed; or the time is up."""
    until_s = loop.time() + END_S
    ended, ended_s = -1, loop.time()
    probing = loop.create_task(cluster.probe())
    while True:
        left = _unfinished(plan, kafka, cluster, probing)
        if not left:
            break
        found = _ended(plan, kafka)
        if found != ended:
            ended, ended_s = found, loop.time()
        if loop.time() > min(until_s, ended_s + STILL_S):
            cluster.problems.append(f"at {loop.time():.0f} s: {left}; nothing has ended since {ended_s:.0f} s")
            probing.cancel()
            break
        await asyncio.sleep(STEP_S)
    await asyncio.gather(probing, return_exceptions=True)
    if not probing.cancelled() and (error := probing.exception()) is not None:
        cluster.problems.append(f"the probe failed: {type(error).__name__}: {error}")


def _ended(plan: Plan, kafka: Any) -> int:
    """How much has ended: workflows and commands."""
    groups = [kafka.groups.group(TOPICS.agent_group(agent)) for agent in ALL_AGENTS]
    committed = sum(offset for group in groups for offset, _ in group.offsets.values())
    return committed + sum(len(kafka.records(TOPICS.results, partition)) for partition in range(plan.partitions))


def _unfinished(plan: Plan, kafka: Any, cluster: Cluster, probing: asyncio.Task[None]) -> str:
    """What is still to come, in words; empty when nothing is."""
    if not cluster.started.is_set():
        return "the client has not started all workflows"
    if not probing.done():
        return f"the probes {', '.join(cluster.probes)} have not ended"
    ended = ended_ids(plan, kafka)
    open_ = [workflow_id for workflow_id in cluster.acked if workflow_id not in ended]
    if open_:
        return f"{len(open_)} workflows have not ended: {', '.join(open_[:5])}"
    if commands := _uncommitted(plan, kafka):
        return commands
    if runs := _runs_going(plan, kafka, ended):
        return f"{len(runs)} runs of schedules have not ended: {', '.join(runs[:5])}"
    for inputs, checkpoints, partitions in (
        (TOPICS.events, TOPICS.checkpoints, plan.partitions),
        (TOPICS.outcomes, TOPICS.circuits, min(2, plan.partitions)),
    ):
        for partition in range(partitions):
            events = kafka.records(inputs, partition)
            markers = [m for m in kafka.records(checkpoints, partition) if m.key == b"@marker"]
            applied = decode_object(markers[-1].value)["at_offset"] if markers else -1
            if not events or applied < events[-1].offset:
                return f"{inputs}/{partition} is applied up to {applied}, its end is {len(events)}"
    return _replacing(plan, kafka)


def _replacing(plan: Plan, kafka: Any) -> str:
    """The first workflow of whose runs one is still on, of those that may have several; by the checkpoints, which are new."""
    several = {start.workflow_id.encode() for start in plan.starts if start.several}
    latest: dict[bytes, Any] = {}
    for partition in range(plan.partitions if several else 0):
        latest |= {m.key: m.value for m in kafka.records(TOPICS.checkpoints, partition) if m.key in several}
    for key, value in sorted(latest.items()):
        if value is not None and "finished_ms" not in decode_object(value):
            return f"a run of {key.decode()} has not ended"
    return ""


def _runs_going(plan: Plan, kafka: Any, ended: set[str]) -> list[str]:
    """What schedules have started, as far as it is in the log."""
    if not plan.timetables:
        return []
    keys = {
        m.key.decode(errors="replace") for p in range(plan.partitions) for m in kafka.records(TOPICS.events, p) if m.key
    }
    return sorted(key for key in keys - ended if is_run(key))


def _uncommitted(plan: Plan, kafka: Any) -> str:
    """The first partition of commands that its agent's group has not committed to the end."""
    for agent in ALL_AGENTS:
        topic = TOPICS.commands(agent)
        offsets = kafka.groups.group(TOPICS.agent_group(agent)).offsets
        for partition in range(plan.partitions):
            records = kafka.records(topic, partition)
            committed, _ = offsets.get(TopicPartition(topic, partition), (0, ""))
            if records and committed <= records[-1].offset:
                return f"{topic}/{partition} is committed up to {committed} of {records[-1].offset + 1}"
    return ""


async def _end_commands(plan: Plan, loop: SimulationLoop, kafka: Any, cluster: Cluster) -> None:
    until_s = loop.time() + STOP_S
    while left := _uncommitted(plan, kafka):
        if loop.time() > until_s:
            cluster.problems.append(f"{STOP_S:g} s after the engines ended: {left}")
            return
        await asyncio.sleep(STEP_S)


async def _end_projection(plan: Plan, loop: SimulationLoop, kafka: Any, cluster: Cluster, rows: Database) -> None:
    """Until every record is in the database, or the time is up."""
    until_s = loop.time() + PROJECT_S
    while left := _unprojected(plan, kafka, rows):
        if loop.time() > until_s:
            cluster.problems.append(f"{PROJECT_S:g} s after the last record: {left}")
            return
        await asyncio.sleep(STEP_S)


def _unprojected(plan: Plan, kafka: Any, rows: Database) -> str:
    positions = {(row["topic"], row["partition"]): row["next_offset"] for row in rows.rows("position")}
    for topic in projected(TOPICS):
        partition = 0
        while kafka.partition(TopicPartition(topic, partition)) is not None:
            records = kafka.records(topic, partition)
            position = positions.get((topic, partition), 0)
            if records and position <= records[-1].offset:
                return f"{topic}/{partition} is projected up to {position} of {records[-1].offset + 1}"
            partition += 1
    return ""


def _fingerprint(kafka: SimulatedKafka, trace: Trace) -> str:
    found = blake2b(trace.hash().encode(), digest_size=8)
    for topic in sorted(kafka.topics()):
        partition = 0
        while kafka.partition(TopicPartition(topic, partition)) is not None:
            for message in kafka.records(topic, partition):
                found.update(b"%d %d " % (message.offset, message.timestamp))
                found.update((message.key or b"") + b"\0" + (message.value or b""))
            partition += 1
    return found.hexdigest()


@contextmanager
def _no_collector() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            # Killed processes have made coroutines that nobody awaits, when their `finally` blocks were run at last.
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
        if was:
            gc.enable()
