"""Rewind, fork and redrive on the real broker: across a take-over, and as the rows show them."""

from __future__ import annotations

import pytest

from sagalog.schemas.definitions import Definition, Step, from_step
from sagalog.schemas.events import FailureKind
from sagalog.schemas.ids import Direction
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from .system import Failure, System, eventually

pytestmark = pytest.mark.stack

ONCE = {"attempts": 1}
ORDER = Definition(
    name="order",
    steps=(
        Step(name="price", agent="stock", retry=ONCE),
        Step(name="reserve", agent="stock", needs=("price",), input=from_step("price"), compensate={}, retry=ONCE),
        Step(name="ship", agent="carrier", needs=("reserve",), input=from_step("reserve"), retry=ONCE),
    ),
)


async def test_a_rewinding_goes_on_through_a_take_over_and_a_dead_letter_is_tried_again(
    log: KafkaLog, provisioned: Topics
) -> None:
    answers = iter(["late", Failure(FailureKind.TERMINAL, "no truck"), "shipped"])
    async with System(log, provisioned) as system:
        await system.client.register(ORDER)
        await system.agent("stock", lambda command: f"{command.step} {command.idempotency_key}")
        async with System(log, provisioned) as first:
            await first.engine()
            await system.client.start("order", {}, workflow_id="o1")
            await eventually(lambda: sent(system, "carrier"), 30, "the last step did not begin")
            # `ship` is out, and nobody answers yet: the rewinding drains.
            await system.client.rewind("o1", "reserve", undo=True, reason="wrong shelf", who="ana")

        await system.engine()
        await system.agent("carrier", lambda command: next(answers))
        result = await system.client.wait("o1", timeout_s=60)
        assert (result["status"], result["rewinds"][0]["step"]) == ("compensated", "reserve")
        keys = [
            (command.direction, command.attempt, command.idempotency_key)
            for command in system.commands
            if command.step == "reserve"
        ]
        assert keys == [
            (Direction.EXECUTE, 1, "o1/reserve"),
            (Direction.COMPENSATE, 1, "o1/reserve"),
            (Direction.EXECUTE, 2, "o1/reserve#1"),
            (Direction.COMPENSATE, 2, "o1/reserve#1"),
        ]

        how = await system.client.redrive("o1", who="ana", reason="a truck came")
        again = await system.client.redrive(how.dead_letter, who="bo", reason="twice")
        assert (how.dead_letter, again.workflow_id) == ("o1/ship/2/execute", how.workflow_id)
        forked = await system.client.wait(how.workflow_id, timeout_s=60)
        assert (forked["status"], forked["forked_from"]["who"]) == ("completed", "ana")
        assert [step.get("stand_in") for step in forked["steps"]] == ["fork", None, None]


async def sent(system: System, agent: str) -> bool:
    return bool(await system.read(system.topics.commands(agent), PARTITIONS))
