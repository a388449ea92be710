"""Processes are killed at random moments while workflows run. Nothing may be lost, done twice or left half undone.

The order of faults is a function of the seed: SAGALOG's own settings apart, `CHAOS_SEED=7 pytest tests/chaos` repeats run 7.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sagalog.engine.audit import verify
from sagalog.engine.client import Client
from sagalog.engine.projection.verification import open_rows
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from ..conftest import SESSION_TIMEOUT_MS, Stack
from ..processes import Process, Processes, environment_of
from . import agents

pytestmark = pytest.mark.chaos

WORKFLOWS = 1_000
KILLS = 14
SEED = int(os.environ.get("CHAOS_SEED", "1"))
END_TIMEOUT_S = 300


async def test_nothing_is_lost_whatever_is_killed(
    stack: Stack, log: KafkaLog, provisioned: Topics, tmp_path: Path
) -> None:
    effects = tmp_path / "effects.sqlite"
    agents.make_effects(str(effects))
    rng = random.Random(SEED)
    with Processes(tmp_path, _environment(stack, provisioned, effects)) as processes:
        async with Client(log, provisioned) as client:
            await client.register(agents.definition)
            engines = [processes.make(f"engine-{n}", "engine") for n in (1, 2)]
            hosts = [processes.make(f"agents-{n}", "agent", "tests.chaos.agents:agents") for n in (1, 2)]
            projector = processes.make("projector", "project")
            ids = [f"chaos-{SEED}-{number}" for number in range(WORKFLOWS)]
            starting = asyncio.create_task(_start_slowly(client, ids))
            await _break_things(stack, rng, engines, hosts, projector)
            await starting
            results = await client.wait_all(ids, timeout_s=END_TIMEOUT_S)
        _check_results(results)
        _check_effects(effects, results)
        await _check_views(log, provisioned, stack)


def _environment(stack: Stack, topics: Topics, effects: Path) -> dict[str, str]:
    more = {"SAGALOG_POSTGRES": stack.postgres, agents.EFFECTS_VARIABLE: str(effects)}
    return environment_of(stack.bootstrap, topics, **more)


async def _start_slowly(client: Client, ids: list[str]) -> None:
    """In portions, so that workflows are young, in the middle and old at every fault."""
    for start in range(0, len(ids), 50):
        await client.start_many("chaos", {workflow_id: {"amount": 1} for workflow_id in ids[start : start + 50]})
        await asyncio.sleep(1.0)


async def _break_things(
    stack: Stack, rng: random.Random, engines: list[Process], hosts: list[Process], projector: Process
) -> None:
    faults = [rng.choice(["engine", "host", "projector", "zombie"]) for _ in range(KILLS)]
    # These once each, for certain, at random places.
    for certain in ("engine", "host", "projector", "postgres", "broker", "zombie"):
        faults.insert(rng.randrange(len(faults)), certain)
    for fault in faults:
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        match fault:
            case "engine":
                _restart(rng.choice(engines))
            case "host":
                _restart(rng.choice(hosts))
            case "projector":
                _restart(projector)
            case "zombie":
                # Silent for longer than its session: the other engine takes over, and this one wakes up believing it owns.
                engine = rng.choice(engines)
                engine.pause()
                await asyncio.sleep(SESSION_TIMEOUT_MS / 1000 + 2.0)
                engine.resume()
            case "postgres":
                await asyncio.to_thread(stack.postgres_server.kill)
                await asyncio.sleep(rng.uniform(0.5, 2.0))
                await asyncio.to_thread(stack.postgres_server.start)
            case "broker":
                await asyncio.to_thread(stack.kafka.kill)
                await asyncio.to_thread(stack.kafka.start)


def _restart(process: Process) -> None:
    process.kill()
    process.start()


def _check_results(results: dict[str, Any]) -> None:
    wrong = {
        workflow_id: (result["status"], agents.expected_status(workflow_id), result.get("failure"))
        for workflow_id, result in results.items()
        if result["status"] != agents.expected_status(workflow_id)
    }
    # A service that is away for long may make a workflow fail that would have ended well; it must then be undone.
    excused = {w for w, (status, _, _) in wrong.items() if status == "compensated"}
    assert not wrong.keys() - excused, dict(list(wrong.items())[:5])
    assert len(excused) <= WORKFLOWS // 20, dict(list(wrong.items())[:5])
    for workflow_id, result in results.items():
        done = [step["name"] for step in sorted(result["steps"], key=lambda s: s.get("order", 0)) if step.get("order")]
        undone = sorted(
            (step["undo"]["order"], step["name"])
            for step in result["steps"]
            if step.get("undo", {}).get("status") == "done"
        )
        names = [name for _, name in undone]
        assert names == [name for name in reversed(done) if name in names], workflow_id


def _check_effects(effects: Path, results: dict[str, Any]) -> None:
    with sqlite3.connect(effects) as connection:
        rows = connection.execute("SELECT workflow, step, applied, reversed, done, undone FROM effect").fetchall()
    connection.close()
    by_workflow: dict[str, list[Any]] = {}
    for row in rows:
        by_workflow.setdefault(row[0], []).append(row)
    for workflow_id, result in results.items():
        found = by_workflow.get(workflow_id, [])
        standing = {step for _, step, applied, reversed_, _, _ in found if applied and not reversed_}
        if result["status"] == "compensated":
            assert not standing, f"{workflow_id} is compensated, but {standing} still stand"
            undone = [step for _, step, applied, _, _, undone in sorted(found, key=lambda row: row[5]) if applied]
            done = [step for _, step, applied, _, done, _ in sorted(found, key=lambda row: row[4]) if applied]
            assert undone == done[::-1], f"{workflow_id}: done {done}, undone {undone}"
        else:
            assert standing == {"reserve", "charge", "ship"}, f"{workflow_id}: {result['status']}, but {standing} stand"


async def _check_views(log: KafkaLog, topics: Topics, stack: Stack) -> None:
    """PostgreSQL's rows = checkpoints = results = the log folded again."""
    rows = await open_rows(stack.postgres, topics.prefix)
    try:
        deadline = time.monotonic() + 60
        while True:
            reports = await verify(log, topics, rows=rows)
            differences = [line for report in reports for line in report.differences]
            behind = sum(report.rows_behind for report in reports)
            settled = sum(report.rows for report in reports) == WORKFLOWS and not behind
            if (settled and not differences) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
    finally:
        await rows.close()
    assert not differences
    assert behind == 0
    assert Counter(rows=sum(report.rows for report in reports)) == Counter(rows=WORKFLOWS)
