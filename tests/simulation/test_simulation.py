"""The simulation itself: the same seed is the same run, some seeds pass, planted bugs are found, a failure can be shrunk."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from .harness import run, run_plan
from .patch import Patch
from .plan import Fault, Kind, plan_of
from .planted import BUGS
from .shrink import shrink

ROOT = Path(__file__).parents[2]
SEEDS = 30


def test_some_seeds_pass() -> None:
    """As the command line runs them: under the hash seed that makes a seed mean the same run everywhere."""
    command = [sys.executable, "-m", "tests.simulation", "simulate", "--seeds", str(SEEDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.endswith(f"{SEEDS} seeds, 0 failed\n"), done.stdout[-8_000:] + done.stderr[-2_000:]


def test_the_same_seed_is_the_same_run() -> None:
    first, other, again = run(4), run(5), run(4)
    assert (first.fingerprint, first.steps, first.simulated_s) == (again.fingerprint, again.steps, again.simulated_s)
    assert first.fingerprint != other.fingerprint


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "replay", "3", "--lines", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    runs = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
        for _ in range(2)
    ]
    prints = [line for done in runs for line in done.stdout.splitlines() if line.startswith("fingerprint ")]
    assert len(prints) == 2 and prints[0] == prints[1], runs[0].stderr


def test_a_planted_bug_is_found_and_shrunk() -> None:
    """The failure names its checker, and what it does not need is left out."""
    name = "compensation-in-forward-order"
    for seed in range(1, 20):
        outcome = run(seed, plant=name)
        if outcome.failed:
            break
    assert "compensation_is_in_reverse" in {checker for checker, _ in outcome.problems}
    assert outcome.trace
    plan = plan_of(outcome.seed)
    smaller, found = shrink(plan, outcome, lambda plan: run_plan(plan, plant=name), runs_max=8)
    assert found.failed and len(smaller.starts) < len(plan.starts)


def test_a_plan_without_faults_ends_as_its_agents_say() -> None:
    plans = (plan_of(seed) for seed in range(2, 20))
    childless = next(p for p in plans if not p.timetables and not any(one.children for one in p.definitions))
    once = tuple(start for start in childless.starts if not start.several)
    plan = replace(childless, starts=once, faults=(), log_faults={})
    outcome = run_plan(plan)
    assert not outcome.problems
    assert outcome.workflows == len(plan.starts) + plan.partitions


def test_ten_minutes_without_a_broker_lose_nothing_and_are_no_flood_of_lines() -> None:
    away = Fault(4_000, Kind.OUTAGE, for_ms=600_000)
    plan = replace(plan_of(2, projected=False), chaos_ms=610_000, log_faults={}, faults=(away,))
    outcome = run_plan(plan)
    assert not outcome.problems
    said = [line for line in outcome.trace if "engine-0" in line and 4 < float(line.split()[0]) < 604]
    assert 100 < len(said) < 250
    assert "since 2026-01-01T00:00:0" in said[-1] and "no broker answers" in said[-1]


def test_a_lost_partition_is_noticed() -> None:
    """A run whose only engine is killed for good fails, and says what is missing."""
    plan = replace(plan_of(2), engines=1, log_faults={}, faults=(Fault(2_000, Kind.KILL, "engine-0", 10_000_000),))
    with Patch() as patch:
        from . import cluster, harness

        patch.set(harness, "END_S", 20.0)
        patch.set(harness, "STOP_S", 1.0)
        patch.set(cluster.Cluster, "heal", lambda self: None)
        outcome = run_plan(plan)
    assert {"harness_is_content", "nothing_is_lost"} <= {checker for checker, _ in outcome.problems}


def test_planting_leaves_nothing_behind() -> None:
    before = run(6).fingerprint
    for bug in BUGS.values():
        with Patch() as patch:
            bug.plant(patch)
    assert run(6).fingerprint == before
