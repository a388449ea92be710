"""Agents whose effects can be counted: every effect is a row in one SQLite file, by idempotency key.

Which step of which workflow fails how is a function of the workflow's id, so that a seed decides it all.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagalog.agents import Context, Retryable, Terminal, Undo, agent
from sagalog.schemas.definitions import (
    CircuitPolicy,
    Compensation,
    Definition,
    Retry,
    Step,
    WhenOpen,
    fields,
    from_input,
    from_step,
)

EFFECTS_VARIABLE = "CHAOS_EFFECTS"


@contextmanager
def effects() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(os.environ[EFFECTS_VARIABLE], timeout=30, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        yield connection
    finally:
        connection.close()


def make_effects(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE effect (key TEXT PRIMARY KEY, workflow TEXT, step TEXT, done INTEGER, undone INTEGER, "
            "applied INTEGER DEFAULT 0, reversed INTEGER DEFAULT 0, at INTEGER)"
        )
        connection.execute("CREATE TABLE clock (n INTEGER)")
        connection.execute("INSERT INTO clock VALUES (0)")
    connection.close()


def chance(workflow_id: str, what: str) -> int:
    """0 to 99, by id."""
    return zlib.crc32(f"{workflow_id}/{what}".encode()) % 100


def _apply(ctx: Context) -> dict[str, Any]:
    with effects() as connection:
        connection.execute("BEGIN IMMEDIATE")
        (tick,) = connection.execute("UPDATE clock SET n = n + 1 RETURNING n").fetchone()
        row = connection.execute("SELECT undone FROM effect WHERE key = ?", (ctx.idempotency_key,)).fetchone()
        if row is not None and row[0]:
            connection.execute("COMMIT")
            raise Terminal("it was undone already")
        connection.execute(
            "INSERT INTO effect (key, workflow, step, done, undone, applied) VALUES (?, ?, ?, ?, 0, 1) "
            "ON CONFLICT (key) DO NOTHING",
            (ctx.idempotency_key, ctx.workflow_id, ctx.step, tick),
        )
        connection.execute("COMMIT")
    return {"step": ctx.step, "tick": tick}


def _reverse(ctx: Context) -> None:
    with effects() as connection:
        connection.execute("BEGIN IMMEDIATE")
        (tick,) = connection.execute("UPDATE clock SET n = n + 1 RETURNING n").fetchone()
        # What was never done is marked, so that a late execute is refused.
        connection.execute(
            "INSERT INTO effect (key, workflow, step, done, undone, reversed) VALUES (?, ?, ?, 0, ?, 0) "
            "ON CONFLICT (key) DO UPDATE SET undone = CASE WHEN undone = 0 THEN excluded.undone ELSE undone END, "
            "reversed = CASE WHEN undone = 0 THEN 1 ELSE reversed END",
            (ctx.idempotency_key, ctx.workflow_id, ctx.step, tick),
        )
        connection.execute("COMMIT")


@agent("reserve", concurrency=16)
async def reserve(amount: int, ctx: Context) -> dict[str, Any]:
    if ctx.attempt == 1 and chance(ctx.workflow_id, "reserve") < 10:
        raise Retryable("busy")
    return _apply(ctx)


@reserve.compensation
async def release(undo: Undo[Any, Any], ctx: Context) -> None:
    if ctx.attempt == 1 and chance(ctx.workflow_id, "release") < 20:
        raise Retryable("busy")
    _reverse(ctx)


@agent("charge", concurrency=16)
async def charge(amount: int, ctx: Context) -> dict[str, Any]:
    if ctx.attempt <= 2 and chance(ctx.workflow_id, "charge") < 10:
        raise Retryable("busy")
    return _apply(ctx)


@charge.compensation
async def refund(undo: Undo[Any, Any], ctx: Context) -> None:
    _reverse(ctx)


@agent("enrich", concurrency=16)
async def enrich(amount: int, ctx: Context) -> dict[str, Any]:
    if chance(ctx.workflow_id, "enrich") < 10:
        raise Terminal("nothing known")
    return {"known": True}


@agent("ship", concurrency=16)
async def ship(amount: int, ctx: Context) -> dict[str, Any]:
    if chance(ctx.workflow_id, "ship") < 20:
        raise Terminal("out of stock")
    return _apply(ctx)


@ship.compensation
async def recall(undo: Undo[Any, Any], ctx: Context) -> None:
    _reverse(ctx)


agents = [reserve, charge, enrich, ship]

_RETRY = Retry(attempts=8, base_ms=100, cap_ms=2_000)
_UNDO = Compensation(retry=Retry(attempts=20, base_ms=100, cap_ms=2_000))

definition = Definition(
    name="chaos",
    steps=(
        Step(
            name="reserve",
            agent="reserve",
            input=from_input("amount"),
            retry=_RETRY,
            compensate=_UNDO,
            start_timeout_ms=60_000,
        ),
        Step(
            name="charge",
            agent="charge",
            needs=("reserve",),
            input=from_input("amount"),
            retry=_RETRY,
            compensate=_UNDO,
            service="bank",
            when_open=WhenOpen.PARK,
            start_timeout_ms=60_000,
        ),
        Step(
            name="enrich",
            agent="enrich",
            needs=("reserve",),
            input=from_input("amount"),
            critical=False,
            default={"known": False},
        ),
        Step(
            name="ship",
            agent="ship",
            needs=("charge", "enrich"),
            input=from_input("amount"),
            retry=_RETRY,
            compensate=_UNDO,
            start_timeout_ms=60_000,
        ),
    ),
    output=fields(reserve=from_step("reserve"), ship=from_step("ship")),
    services={"bank": CircuitPolicy(failure_ratio=0.9, calls_min=50, recovery_ms=1_000)},
)


def expected_status(workflow_id: str) -> str:
    """How the workflow has to end, whatever is killed meanwhile."""
    if chance(workflow_id, "ship") < 20:
        return "compensated"
    return "degraded" if chance(workflow_id, "enrich") < 10 else "completed"
