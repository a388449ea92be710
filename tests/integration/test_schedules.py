"""A schedule on the real broker: it fires by the second, goes on through a take-over, hears of the ends, and can be proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sagalog.engine.audit import verify
from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.workflows import WorkflowMachine
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from .system import System, eventually

pytestmark = pytest.mark.stack

REPORT = Definition(name="report", steps=(Step(name="write", agent="writer"),))


async def test_a_schedule_fires_and_goes_on_through_a_take_over(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(REPORT)
        await system.agent("writer", lambda command: command.input)
        async with System(log, provisioned) as first:
            engine = await first.engine()
            await system.client.set_schedule(
                "often", definition="report", cron="* * * * * *", input={"n": 1}, who="ana", catch_up_ms=600_000
            )
            await eventually(ended(engine, 2), 30, "the first owner started nothing")

        engine = await system.engine()
        before = state(engine)["started"]
        await eventually(ended(engine, before + 2), 30, "the second owner started nothing")
        await system.client.pause_schedule("often", reason="enough", who="ana")
        await eventually(lambda: state(engine)["status"] == "paused", 30, "it was not paused")
        await system.client.trigger_schedule("often", reason="once more", who="bo")
        await eventually(lambda: triggered(engine) == ["completed"], 30, "the triggered run did not end")
        found = state(engine)
        results = [await system.client.wait(run["id"], timeout_s=30) for run in found["runs"]]

    assert {result["status"] for result in results} == {"completed"}
    assert all(result["output"] == {"write": {"n": 1}} for result in results)
    due = [run["due_ms"] for run in found["runs"] if "triggered_by" not in run]
    assert due == sorted(set(due)) and all(at % 1_000 == 0 for at in due)
    reports = await verify(log, provisioned)
    assert [report.differences for report in reports if not report.ok] == []


def state(engine: Engine) -> dict[str, Any]:
    """The schedule as the engine's fold has it."""
    assert engine.session is not None
    for processor in engine.session.processors.values():
        machine = processor.machine
        if isinstance(machine, WorkflowMachine):
            for schedule in machine.fold_state.schedules.values():
                return dict(dump_schedule(schedule))
    return {"status": None, "runs": [], "started": 0}


def ended(engine: Engine, count: int) -> Callable[[], bool]:
    def holds() -> bool:
        found = state(engine)
        done = [run for run in found.get("runs", []) if run["status"] == "completed"]
        return found["started"] >= count and len(done) >= min(count, 2)

    return holds


def triggered(engine: Engine) -> list[str]:
    return [run["status"] for run in state(engine)["runs"] if run.get("triggered_by") == "bo"]
