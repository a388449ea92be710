"""Did it happen? The real engine and the real host on the simulated log: questions through crashes, pauses and circuits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagalog.agents import Context, DidNotHappen, Happened, Retryable, Terminal, agent
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import (
    CircuitPolicy,
    Compensation,
    Definition,
    Map,
    Reconcile,
    Retry,
    Step,
    from_input,
)

charged: list[str] = []
QUESTIONS = Retry(attempts=3, base_ms=100)


@agent("bank")
async def bank(value: Any, ctx: Context) -> str:
    charged.append(ctx.idempotency_key)
    return f"receipt {charged.count(ctx.idempotency_key)}"


@bank.compensation
async def refund(value: Any, ctx: Context) -> None:
    charged.remove(ctx.idempotency_key)


@bank.reconcile
async def look_up(value: Any, ctx: Context) -> Happened[str] | DidNotHappen:
    count = charged.count(ctx.idempotency_key)
    return Happened(f"receipt {count}") if count else DidNotHappen()


def order(**more: Any) -> Definition:
    charge = {
        "agent": "bank",
        "timeout_ms": 1_000,
        "start_timeout_ms": 2_000,
        "reconcile": Reconcile(timeout_ms=1_000, retry=QUESTIONS),
        "compensate": Compensation(),
        **more,
    }
    ship = Step(name="ship", agent="stock", needs=("charge",))
    return Definition(name="order", steps=(Step(name="charge", **charge), ship))


def setup_function() -> None:
    charged.clear()


def kit(definition: Definition) -> SagaTest:
    kit = SagaTest([definition], [bank])
    kit.stub("stock", "shipped")
    return kit


def test_what_happened_is_not_done_again() -> None:
    with kit(order()) as t:
        t.hang("bank", late=True)
        ended = t.run("order")
        history = t.history(ended.record["workflow_id"])

    assert ended.status == "completed"
    assert (ended.steps["charge"]["output"], ended.steps["charge"]["attempt"]) == ("receipt 1", 1)
    assert "charge: running -> reconciling" in history and "charge: reconciling -> done" in history
    assert len(charged) == 1


def test_what_did_not_happen_is_done_again() -> None:
    with kit(order()) as t:
        t.hang("bank")
        ended = t.run("order")

    assert (ended.status, ended.steps["charge"]["attempt"], len(charged)) == ("completed", 2, 1)


def test_what_did_not_happen_is_not_undone() -> None:
    with kit(order(retry=Retry(attempts=1))) as t:
        t.hang("bank")
        ended = t.run("order")

    assert (ended.status, ended.ledger["charge"]) == ("failed", "not_needed")


def test_what_happened_is_undone_with_the_rest() -> None:
    with kit(order()) as t:
        t.hang("bank", late=True)
        t.fail("stock", Terminal("none left"))
        ended = t.run("order")

    assert (ended.status, ended.undone, charged) == ("compensated", ["charge"], [])


def test_without_an_answer_the_outcome_stays_unknown_and_is_undone() -> None:
    with kit(order(retry=Retry(attempts=1))) as t:
        t.hang("bank", late=True)
        t.fail("bank", times=2, question=True)
        t.hang("bank", question=True)
        ended = t.run("order")

    assert ended.status == "compensated"
    assert (ended.steps["charge"]["suspects"], ended.steps["charge"]["questions"]) == (["bank"], 3)
    assert charged == []


def test_an_agent_that_cannot_say_leaves_it_unknown_at_once() -> None:
    @agent("bank")
    async def mute(value: Any, ctx: Context) -> str:
        return "receipt"

    kit = SagaTest([order(retry=Retry(attempts=2, base_ms=100))], [mute])
    kit.stub("stock", "shipped")
    with kit as t:
        t.hang("bank")
        ended = t.run("order")

    assert (ended.status, ended.steps["charge"]["attempt"], ended.steps["charge"]["questions"]) == ("completed", 2, 1)


@pytest.mark.parametrize("crash", ["engine", "host", "both"])
@pytest.mark.parametrize("late", [True, False])
def test_a_question_outlives_a_crash(crash: str, late: bool) -> None:
    with kit(order()) as t:
        t.hang("bank", late=late)
        t.hang("bank", question=True)
        workflow_id = t.start("order")
        t.do(asyncio.sleep(1.5))  # simulated: the attempt has timed out, its question is out
        assert t.statuses(workflow_id)["charge"] == "reconciling"
        if crash in ("engine", "both"):
            t.crash_engine()
        if crash in ("host", "both"):
            t.crash_host()
        ended = t.wait(workflow_id)

    assert (ended.status, len(charged)) == ("completed", 1)
    assert ended.steps["charge"]["attempt"] == (1 if late else 2)


def test_a_paused_workflow_asks_nothing() -> None:
    with kit(order()) as t:
        t.hang("bank", late=True)
        workflow_id = t.start("order")
        t.act(workflow_id, "pause")
        t.advance(seconds=60)
        assert t.statuses(workflow_id)["charge"] == "reconciling"
        assert "questions" not in t.state(workflow_id)["steps"][0]
        t.act(workflow_id, "resume")
        ended = t.wait(workflow_id)

    assert (ended.status, ended.steps["charge"]["questions"]) == ("completed", 1)


def test_items_of_a_map_are_asked_about_one_by_one() -> None:
    with kit(order(map=Map(over=from_input("items")))) as t:
        t.hang("bank", late=True)
        t.hang("bank")
        ended = t.run("order", {"items": [1, 2, 3]})

    items = [ended.steps[f"charge[{number}]"] for number in range(3)]
    assert [(item["output"], item["attempt"]) for item in items] == [("receipt 1", n) for n in (1, 2, 1)]


def test_a_question_waits_for_an_open_circuit() -> None:
    """The attempt and the first question open it; the second question is the probe that closes it again."""
    definition = order(service="cards", retry=Retry(attempts=1), timeout_ms=300)
    policy = CircuitPolicy(calls_min=1, failure_ratio=0.1, recovery_ms=5_000)
    with kit(definition.model_copy(update={"services": {"cards": policy}})) as t:
        t.hang("bank", late=True)
        t.fail("bank", Retryable("busy", retry_after_ms=2_000), question=True)
        ended = t.run("order")
        took_ms = ended.record["finished_ms"] - ended.record["started_ms"]

    assert (ended.status, len(charged)) == ("completed", 1)
    assert took_ms >= 5_000
