"""People and signals on the real broker: what they send before, during and after a take-over counts once."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Definition, Sleep, Step, Task, WaitFor, WhenFailed, from_step
from sagalog.schemas.events import Action, Decision, FailureKind
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from .system import Failure, System, eventually

pytestmark = pytest.mark.stack

ORDER = Definition(
    name="order",
    steps=(
        Step(name="reserve", agent="stock", compensate={}, retry={"attempts": 1}),
        Step(name="nap", needs=("reserve",), sleep=Sleep(ms=300)),
        Step(name="payment", needs=("nap",), wait_for=WaitFor(signal="paid", timeout_ms=60_000)),
        Step(name="gift", needs=("payment",), agent="stock", when="steps.payment.amount > 1000"),
        Step(
            name="approve",
            needs=("gift",),
            input=from_step("payment"),
            task=Task(title="Ship it?", timeout_ms=60_000, form={"type": "object", "required": ["amount"]}),
        ),
        Step(
            name="ship",
            needs=("approve",),
            agent="carrier",
            input=from_step("approve"),
            retry={"attempts": 1},
            when_failed=WhenFailed.REVIEW,
        ),
    ),
)


async def test_a_saga_of_signals_and_people_goes_on_through_a_take_over(log: KafkaLog, provisioned: Topics) -> None:
    answers = iter([Failure(FailureKind.TERMINAL, "no truck"), "shipped"])

    async with System(log, provisioned) as system:
        await system.client.register(ORDER)
        await system.agent("stock", lambda command: "reserved")
        await system.agent("carrier", lambda command: next(answers))
        async with System(log, provisioned) as first:
            await first.engine()
            await system.client.start("order", {"sku": "tea"}, workflow_id="o1")
            # Sent twice, and before the step waits for it: kept, and counted once.
            for _ in range(2):
                await system.client.signal("o1", "paid", {"amount": 7}, who="bank", signal_id="payment-1")
            await eventually(lambda: reviews(system, "task"), 30, "nobody was asked")

        await system.engine()
        await system.client.act("o1", Action.PAUSE, reason="a call", who="ana")
        await system.client.decide("o1", "approve", Decision.APPROVE, who="ana", output={"sum": 7})
        await system.client.decide("o1", "approve", Decision.APPROVE, who="ana", output={"amount": 8})
        await eventually(lambda: closed(system, "task"), 30, "the decision was not taken")
        assert [command.step for command in system.commands] == ["reserve"], "paused: nothing new begins"

        await system.client.act("o1", Action.RESUME, reason="settled", who="ana")
        await eventually(lambda: reviews(system, "step_failed"), 30, "the failed step was not held")
        await system.client.decide("o1", "ship", Decision.RETRY, who="bo")
        result = await system.client.wait("o1", timeout_s=30)

    assert result["status"] == "completed" and result["completeness"] == 1.0
    assert [(step["name"], step["status"], step.get("output")) for step in result["steps"]] == [
        ("reserve", "done", "reserved"),
        ("nap", "done", None),
        ("payment", "done", {"amount": 7}),
        ("gift", "skipped", None),
        ("approve", "done", {"amount": 8}),
        ("ship", "done", "shipped"),
    ]
    assert [
        (command.step, command.attempt, command.input) for command in system.commands if command.step == "ship"
    ] == [
        ("ship", 1, {"amount": 8}),
        ("ship", 2, {"amount": 8}),
    ]


async def test_a_quarantined_workflow_is_resumed_and_what_was_out_is_sent_again(
    log: KafkaLog, provisioned: Topics
) -> None:
    calls: list[Command] = []

    def answer(command: Command) -> Any:
        calls.append(command)
        return "done"

    async with System(log, provisioned) as system:
        await system.client.register(Definition(name="one", steps=(Step(name="a", agent="stock"),)))
        await system.engine()
        await system.client.start("one", {}, workflow_id="w1")
        await system.write(b"w1", b"{", b"sagalog.step-completed.v1", partition=partition_of(b"w1", PARTITIONS))
        await eventually(lambda: reviews(system, "quarantined"), 30, "it was not stopped")
        await system.agent("stock", answer)
        await eventually(lambda: calls, 30, "the command that was out did not come")

        await system.client.act("w1", Action.RESUME, reason="the record was rubbish", who="ana")
        result = await system.client.wait("w1", timeout_s=30)

    assert result["status"] == "completed"
    assert {command.command_id for command in calls} == {"w1/a/1/execute"} and len(calls) == 2


async def reviews(system: System, kind: str) -> bool:
    return await _found(system, kind, decided=False)


async def closed(system: System, kind: str) -> bool:
    return await _found(system, kind, decided=True)


async def _found(system: System, kind: str, *, decided: bool) -> bool:
    records = [orjson.loads(message.value) for message in await system.read(system.topics.reviews, PARTITIONS)]
    return any(record["kind"] == kind and ("decided" in record) == decided for record in records)
