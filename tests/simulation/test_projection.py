"""The database of the simulation: what is lost and what is not, who waits for whom, and that bugs of the projector are found."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagalog.engine.projection.postgres import IDLE_TRANSACTION_MS_MAX, PostgresSql
from sagalog.engine.projection.sql import SqlConflict, SqlUnavailable
from sagalog.infra.simulation import SimulationLoop

from .database import DEADLOCK_S, Network, SqlFaults
from .harness import TOPICS, run, run_plan
from .plan import PROJECTED_EVERY, Kind, plan_of
from .postgres import database
from .shrink import _smaller

ROOT = Path(__file__).parents[2]
SEED = PROJECTED_EVERY
START_S_MAX = 60.0


class Simulated:
    """A database and a loop, without projectors."""

    def __init__(self) -> None:
        self.loop = SimulationLoop()
        self.network = Network(database(TOPICS.prefix), TOPICS.prefix, self.loop, random.Random(1))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def open(self) -> PostgresSql:
        sql = self.network.sql()
        await sql.open()
        return sql

    def topics(self) -> list[str]:
        """Of the positions that were committed."""
        return sorted(row["topic"] for row in self.network.database.rows("position"))


@pytest.fixture
def simulated() -> Iterator[Simulated]:
    found = Simulated()
    asyncio.set_event_loop(found.loop)
    yield found
    found.network.close()
    asyncio.set_event_loop(None)
    found.loop.close()


async def make(sql: PostgresSql, *topics: str, hold_s: float = 0.0) -> None:
    """A position for each topic, in one transaction."""
    async with sql.transaction() as transaction:
        for topic in topics:
            await transaction.execute("positions_make", {"topics": [topic], "partitions": [0]})
            await asyncio.sleep(hold_s)


def test_an_exchange_takes_simulated_time_and_the_rows_are_real(simulated: Simulated) -> None:
    async def go() -> None:
        sql = await simulated.open()
        await make(sql, "a", "b")
        assert 0.01 < simulated.loop.time() < 0.2

    simulated.run(go())
    assert simulated.topics() == ["a", "b"]


@pytest.mark.parametrize(("fault", "there"), [("commit_lost", []), ("commit_answer_lost", ["a"])])
def test_a_connection_is_lost_before_or_after_the_commit(simulated: Simulated, fault: str, there: list[str]) -> None:
    """The client sees the same; the database does not."""

    async def go() -> None:
        sql = await simulated.open()
        simulated.network.faults = SqlFaults(**{fault: 1.0})
        with pytest.raises(SqlUnavailable):
            await make(sql, "a")
        with pytest.raises(SqlUnavailable):
            await make(sql, "b")

    simulated.run(go())
    assert simulated.topics() == there


def test_a_statement_waits_for_another_transaction_in_simulated_time(simulated: Simulated) -> None:
    async def go() -> None:
        first, second = await simulated.open(), await simulated.open()
        holder = asyncio.ensure_future(make(first, "a", hold_s=7.0))
        await asyncio.sleep(0.5)
        began_s = simulated.loop.time()
        await make(second, "a", "b")
        assert holder.done() or simulated.loop.time() - began_s > 6.0
        assert simulated.loop.time() - began_s < 8.0
        await holder

    simulated.run(go())
    assert simulated.topics() == ["a", "b"]


def test_two_that_wait_for_each_other_are_a_deadlock(simulated: Simulated) -> None:
    async def go() -> None:
        first, second = await simulated.open(), await simulated.open()
        found = await asyncio.gather(
            make(first, "a", "b", hold_s=0.5), make(second, "b", "a", hold_s=0.5), return_exceptions=True
        )
        assert [type(error) for error in found if error is not None] == [SqlConflict]
        assert simulated.loop.time() < 5 * DEADLOCK_S

    simulated.run(go())
    assert simulated.topics() == ["a", "b"]


def test_a_transaction_that_nobody_ends_is_ended_by_the_server(simulated: Simulated) -> None:
    """Its client has lost it and the server does not know: it keeps its locks for as long as it may idle."""

    async def go() -> None:
        first, second = await simulated.open(), await simulated.open()
        simulated.network.faults = SqlFaults(commit_lost=1.0, left_open=1.0)
        with pytest.raises(SqlUnavailable):
            await make(first, "a", "b")
        simulated.network.calm()
        began_s = simulated.loop.time()
        await make(second, "a")
        assert abs(simulated.loop.time() - began_s - IDLE_TRANSACTION_MS_MAX / 1000) < 3.0

    simulated.run(go())
    assert simulated.topics() == ["a"]


@pytest.mark.parametrize(
    "harm",
    [lambda network: network.shut(1_000), lambda network: network.silence(20_000), lambda network: network.died("one")],
    ids=["down", "silent", "died"],
)
def test_what_was_not_committed_is_gone(simulated: Simulated, harm: Callable[[Network], None]) -> None:
    async def go() -> None:
        sql = await simulated.open()
        await make(sql, "a")
        simulated.loop.call_later(0.5, harm, simulated.network)
        with pytest.raises(SqlUnavailable):
            await make(sql, "b", "c", hold_s=1.0)

    process = simulated.loop.process("one")
    simulated.run(process.spawn(go()))
    simulated.network.close()
    assert simulated.topics() == ["a"]


def test_an_emptied_database_is_filled_again() -> None:
    plan = plan_of(SEED, projected=True)
    emptied = replace(plan.faults[0], kind=Kind.DATABASE_EMPTIED, at_ms=plan.chaos_ms // 2, for_ms=500)
    outcome = run_plan(replace(plan, faults=(emptied,), log_faults={}, sql_faults={}))
    assert not outcome.problems and outcome.workflows > 0


def test_the_same_seed_is_the_same_run_whatever_the_database_held_before() -> None:
    first, other, again = run(SEED), run(2 * SEED), run(SEED)
    assert not first.problems + other.problems
    assert (first.fingerprint, first.steps, first.simulated_s) == (again.fingerprint, again.steps, again.simulated_s)


def test_projectors_change_nothing_else_in_a_plan() -> None:
    with_, without = plan_of(SEED, projected=True), plan_of(SEED, projected=False)
    assert with_.projectors and with_.starts == without.starts and with_.log_faults == without.log_faults
    assert [fault for fault in with_.faults if fault in without.faults] == list(without.faults)


def test_the_shrinker_leaves_out_faults_of_the_database() -> None:
    plan = replace(plan_of(SEED, projected=True), sql_faults={"lost": 0.1, "slow": 0.2})
    found = [candidate.sql_faults for candidate in _smaller(plan) if candidate.sql_faults != plan.sql_faults]
    assert found == [{}, {"slow": 0.2}, {"lost": 0.1}]


def test_a_planted_bug_of_the_projector_is_found() -> None:
    """Both by the rows in the end and on the way there."""
    checkers: set[str] = set()
    for seed in range(1, 20):
        outcome = run(seed, plant="older-record-wins-when-it-comes-later", projected=True)
        checkers |= {checker for checker, _ in outcome.problems}
        if {"refold_is_what_stands_there", "no_row_steps_back"} <= checkers:
            return
    pytest.fail(f"only {checkers} complained")


@pytest.mark.parametrize(
    "started", [(), ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")], ids=["", "as a background job"]
)
def test_an_interrupted_run_leaves_no_server_behind(started: tuple[str, ...]) -> None:
    command = [*started, sys.executable, "-m", "tests.simulation", "simulate", "--seeds", "100000", "--jobs", "1"]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        servers = _until(lambda: _postgres_below(running.pid), "a server to start")
        os.killpg(running.pid, signal.SIGINT)
        running.wait(START_S_MAX)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers), "the server to end")


def _until(condition: Callable[[], Any], what: str) -> Any:
    """Polls another process, which has no way to call back."""
    until_s = time.monotonic() + START_S_MAX
    while not (found := condition()):
        if time.monotonic() > until_s:
            pytest.fail(f"waited {START_S_MAX:g} s for {what}")
        time.sleep(0.1)
    return found


def _postgres_below(pid: int) -> list[int]:
    """The servers among the descendants of a process."""
    found: list[int] = []
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []
    for child in map(int, children):
        try:
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue  # it has ended since
        if arguments[0].endswith(b"/bin/postgres") and b"-D" in arguments:
            found.append(child)
        found += _postgres_below(child)
    return found
