"""Did it happen? On the real broker: the SDK's host answers, one engine asks and the next one hears it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagalog.agents import AgentHost, Context, DidNotHappen, Happened, agent
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.definitions import Definition, Reconcile, Retry, Step
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from .system import System, eventually

pytestmark = pytest.mark.stack

ORDER = Definition(
    name="order",
    steps=(
        Step(
            name="charge",
            agent="bank",
            timeout_ms=300,
            retry=Retry(attempts=2, base_ms=10),
            reconcile=Reconcile(timeout_ms=30_000),
            compensate={},
        ),
    ),
)


async def test_the_answer_to_a_question_decides_between_two_owners(log: KafkaLog, provisioned: Topics) -> None:
    booked: dict[str, int] = {}
    asked: list[tuple[str, int | None]] = []
    gate = asyncio.Event()

    @agent("bank", concurrency=4)
    async def charge(when: str, ctx: Context) -> int:
        if ctx.attempt > 1 or when == "after":
            booked[ctx.idempotency_key] = booked.get(ctx.idempotency_key, 0) + 1
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return booked[ctx.idempotency_key]

    @charge.reconcile
    async def look_up(when: str, ctx: Context) -> Happened[int] | DidNotHappen:
        asked.append((ctx.command_id, ctx.about))
        await gate.wait()
        found = booked.get(ctx.idempotency_key)
        return DidNotHappen() if found is None else Happened(found)

    async with System(log, provisioned) as system:
        await system.client.register(ORDER)
        async with AgentHost([charge], log, provisioned, clock=SystemClock(), rng=SystemRng()):
            async with System(log, provisioned) as first:
                await first.engine()
                for when in ("after", "before"):
                    await system.client.start("order", when, workflow_id=when)
                await eventually(lambda: len(asked) == 2, 30, "nobody was asked")
            gate.set()
            await system.engine()
            results: dict[str, Any] = {
                when: await system.client.wait(when, timeout_s=30) for when in ("after", "before")
            }

    assert sorted(asked) == [("after/charge/1/reconcile", 1), ("before/charge/1/reconcile", 1)]
    steps = {when: result["steps"][0] for when, result in results.items()}
    assert [(steps[when]["status"], steps[when]["output"], steps[when]["attempt"]) for when in ("after", "before")] == [
        ("done", 1, 1),
        ("done", 1, 2),
    ]
    assert booked == {"after/charge": 1, "before/charge": 1}, "nothing was done twice"
