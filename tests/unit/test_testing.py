"""The test kit itself: what a user's tests look like, and that what they say is so."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.agents import Context, Terminal, Undo, agent
from sagalog.engine.client import UnknownDefinition
from sagalog.engine.testing import NothingMoves, SagaTest
from sagalog.schemas.definitions import (
    Child,
    Compensation,
    Definition,
    Map,
    Retry,
    Sleep,
    Step,
    Task,
    WaitFor,
    WhenFailed,
    from_input,
    from_step,
)
from sagalog.schemas.errors import InvalidRecord, SagalogError

DAY_MS = 86_400_000
reserved: list[str] = []


@agent("stock")
async def stock(sku: str, amount: int) -> str:
    reserved.append(sku)
    return f"{amount} of {sku}"


@stock.compensation
async def put_back(undo: Undo[dict[str, Any], str], ctx: Context) -> None:
    reserved.remove(undo.input["sku"])


@agent("bank")
def bank(value: Any) -> dict[str, Any]:
    return {"charged": value}


ORDER = Definition(
    name="order",
    steps=(
        Step(name="reserve", agent="stock", compensate=Compensation()),
        Step(name="charge", agent="bank", needs=("reserve",), input=from_input("amount"), timeout_ms=5_000),
    ),
)


def setup_function() -> None:
    reserved.clear()


def test_a_saga_runs_on_the_real_engine_and_the_real_host() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        ended = t.run("order", {"sku": "tea", "amount": 5})

        assert t.history(ended.record["workflow_id"])[0] == "workflow: new -> running"

    assert ended.status == "completed"
    assert ended.output == {"charge": {"charged": 5}}
    assert reserved == ["tea"]


def test_a_workflow_does_a_step_of_another_and_is_undone_with_it() -> None:
    parent = Definition(
        name="shop",
        steps=(
            Step(name="order", workflow=Child(definition="order", timeout_ms=60_000)),
            Step(name="thank", agent="mail", needs=("order",), input=from_step("order", "charge")),
        ),
    )

    @agent("mail")
    def mail(value: Any) -> None:
        raise Terminal("no such address")

    with SagaTest([ORDER, parent], [stock, bank, mail]) as t:
        ended = t.run("shop", {"sku": "tea", "amount": 5})
        child = t.history(f"{ended.record['workflow_id']}/order.1")

    assert ended.status == "compensated"
    assert [line for line in child if line.startswith("workflow")] == [
        "workflow: new -> running",
        "workflow: running -> completed",
        "workflow: completed -> compensating",
        "workflow: compensating -> cancelled",
    ]
    assert reserved == []


def test_a_failing_agent_is_retried() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        t.fail("bank", times=2)
        ended = t.run("order", {"sku": "tea", "amount": 5})

    assert ended.status == "completed"
    assert ended.steps["charge"]["attempt"] == 3


def test_what_was_done_is_undone() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        t.fail("bank", Terminal("declined"))
        ended = t.run("order", {"sku": "tea", "amount": 5})

    assert ended.status == "compensated"
    assert ended.failure is not None and ended.failure["message"] == "declined"
    assert ended.undone == ["reserve"] and ended.ledger == {"reserve": "done", "charge": "not_needed"}
    assert reserved == []


def test_a_hanging_agent_runs_into_its_timeout() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        t.hang("bank")
        ended = t.run("order", {"sku": "tea", "amount": 5})

    assert ended.status == "completed"
    assert [failure["kind"] for failure in ended.steps["charge"]["failures"]] == ["timeout"]


def test_a_failing_compensation_is_retried() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        t.fail("bank", Terminal("declined"))
        t.fail("stock", undo=True, times=3)
        ended = t.run("order", {"sku": "tea", "amount": 5})

    assert ended.status == "compensated"
    assert ended.steps["reserve"]["undo"]["attempt"] == 4


def test_thirty_days_pass_at_once() -> None:
    definition = Definition(
        name="reminder",
        steps=(
            Step(name="wait", sleep=Sleep(ms=30 * DAY_MS)),
            Step(name="charge", agent="bank", needs=("wait",), input=from_input()),
        ),
    )

    with SagaTest([definition], [bank]) as t:
        started = t.start("reminder", 7)
        t.settle()
        assert t.statuses(started) == {"wait": "awaiting", "charge": "waiting"}
        t.advance(seconds=29 * 86_400)
        assert t.statuses(started)["wait"] == "awaiting"
        ended = t.wait(started)

    passed_ms = ended.record["finished_ms"] - ended.record["started_ms"]
    assert 30 * DAY_MS <= passed_ms < 30 * DAY_MS + 60_000


def test_signals_and_people() -> None:
    definition = Definition(
        name="order",
        steps=(
            Step(name="payment", wait_for=WaitFor(signal="paid", timeout_ms=DAY_MS)),
            Step(
                name="approve", needs=("payment",), input=from_step("payment"), task=Task(title="?", timeout_ms=DAY_MS)
            ),
            Step(
                name="charge",
                agent="bank",
                needs=("approve",),
                input=from_step("approve"),
                retry=Retry(attempts=1),
                when_failed=WhenFailed.REVIEW,
            ),
        ),
    )

    with SagaTest([definition], [bank]) as t:
        started = t.start("order")
        t.signal(started, "paid", 7)
        assert t.statuses(started)["approve"] == "awaiting"
        t.act(started, "pause")
        t.decide(started, "approve", "approve")
        assert t.statuses(started) == {"payment": "done", "approve": "done", "charge": "waiting"}
        t.fail("bank")
        t.act(started, "resume")
        assert t.statuses(started)["charge"] == "held"
        t.decide(started, "charge", "retry")
        ended = t.wait(started)

    assert ended.output == {"charge": {"charged": 7}}


def test_a_wait_that_nobody_answers_times_out_at_once() -> None:
    definition = Definition(
        name="order", steps=(Step(name="payment", wait_for=WaitFor(signal="paid", timeout_ms=DAY_MS)),)
    )

    with SagaTest([definition]) as t:
        assert t.run("order").status == "failed"


def test_what_will_never_go_on_is_said() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        t.hang("bank")
        started = t.start("order", {"sku": "tea", "amount": 5})
        t.act(started, "pause")

        with pytest.raises(NothingMoves, match="it is paused"):
            t.wait(started)


def test_a_crashed_engine_loses_nothing() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        ids = [t.start("order", {"sku": f"tea-{n}", "amount": n}) for n in range(20)]
        t.crash_engine()
        t.crash_host()

        assert {t.wait(workflow_id).status for workflow_id in ids} == {"completed"}
        assert len(set(reserved)) == 20


def test_an_outage_delays_and_no_more() -> None:
    with SagaTest([ORDER], [stock, bank]) as t:
        started = t.start("order", {"sku": "tea", "amount": 5})
        t.outage(seconds=3)

        assert t.wait(started).status == "completed"


def test_items_have_names() -> None:
    definition = Definition(
        name="many",
        steps=(Step(name="each", agent="bank", map=Map(over=from_input(), tolerate=1), retry=Retry(attempts=1)),),
    )

    with SagaTest([definition], [bank]) as t:
        t.fail("bank")
        ended = t.run("many", [1, 2, 3])

    assert ended.status == "degraded" and ended.missing[0]["step"] == "each"
    assert sorted(ended.steps) == ["each", "each[0]", "each[1]", "each[2]"]


def test_stubs_stand_in_for_agents() -> None:
    t = SagaTest([ORDER])
    t.stub("stock", "reserved")
    t.stub("bank", lambda value: value * 2)
    with t:
        assert t.run("order", {"sku": "tea", "amount": 5}).output == {"charge": 10}


def test_an_agent_that_nobody_is_is_named() -> None:
    with pytest.raises(SagalogError, match=r"nobody does the work of bank, stock: pass the agents, or stub them"):
        SagaTest([ORDER]).__enter__()


def test_a_fault_of_an_agent_that_is_none_is_refused() -> None:
    with SagaTest([ORDER], [stock, bank]) as t, pytest.raises(SagalogError, match="there is no agent 'banc'"):
        t.fail("banc")


def test_a_changed_definition_is_compared_on_the_same_events() -> None:
    gentler = ORDER.model_copy(
        update={"steps": (ORDER.steps[0], ORDER.steps[1].model_copy(update={"critical": False, "default": "unpaid"}))}
    )

    with SagaTest([ORDER], [stock, bank]) as t:
        t.fail("bank", Terminal("declined"))
        ended = t.run("order", {"sku": "tea", "amount": 5})
        workflow_id = ended.record["workflow_id"]

        assert t.replay(workflow_id, ORDER) == []
        changed = t.replay(workflow_id, gentler)

    assert "-charge: running -> failed" in changed and "+charge: running -> degraded" in changed
    assert "-workflow: compensating -> compensated" in changed and "+workflow: running -> degraded" in changed
    assert "+ignored: already_finished" in changed, "nobody would have been asked to undo anything"


def test_two_runs_are_alike() -> None:
    def told() -> list[Any]:
        reserved.clear()
        with SagaTest([ORDER], [stock, bank], partitions=2, seed=7) as t:
            t.fail("bank", times=2)
            ids = [t.start("order", {"sku": f"tea-{n}", "amount": n}) for n in range(5)]
            return [t.wait(workflow_id).record for workflow_id in ids]

    assert told() == told()


# --- schedules


def test_a_schedule_runs_through_the_days_and_a_crash() -> None:
    report = Definition(name="report", steps=(Step(name="write", agent="bank"),))
    with SagaTest([report], [bank]) as t:
        first = t.schedule("daily", "report", "0 9 * * *", zone="Europe/Berlin", input={"n": 1})
        t.advance(days=2)
        t.crash_engine()
        t.advance(days=1)
        state = t.schedule_state("daily")

        assert (first.hour, first.minute) in ((7, 0), (8, 0)), "nine in Berlin"
        assert [run["status"] for run in state["runs"]] == ["completed"] * 3
        assert (state["started"], state.get("skips", [])) == (3, [])
        ended = t.wait(state["runs"][0]["id"])
        assert ended.output == {"write": {"charged": {"n": 1}}}
        with pytest.raises(SagalogError, match="no schedule 'nightly'"):
            t.schedule_state("nightly")


def test_a_run_that_goes_on_is_skipped_over_and_a_pause_holds() -> None:
    slow = Definition(name="slow", steps=(Step(name="nap", sleep=Sleep(ms=90 * 60_000)),))
    with SagaTest([slow]) as t:
        t.schedule("hourly", "slow", "0 * * * *")
        t.advance(seconds=4 * 3_600)
        state = t.schedule_state("hourly")
        assert (state["started"], state["skipped"]) == (2, {"overlap": 2})

        t.do(t.client.pause_schedule("hourly", reason="enough", who="test"))
        t.advance(days=1)
        assert t.schedule_state("hourly")["started"] == 2
        t.do(t.client.trigger_schedule("hourly", reason="once more", who="test"))
        t.do(t.client.resume_schedule("hourly", reason="go on", who="test"))
        t.settle()
        state = t.schedule_state("hourly")
        assert state["skipped"]["paused"] == 24
        t.do(t.client.remove_schedule("hourly", reason="over", who="test"))
        t.advance(days=8)
        with pytest.raises(SagalogError, match="no schedule"):
            t.schedule_state("hourly")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("cron", {"cron": "0 9 * *"}),
        ("zone", {"zone": "Berlin"}),
        ("schedule", {"name": "No Name"}),
        ("catch_up_ms", {"catch_up_ms": 0}),
        ("jitter_ms", {"jitter_ms": -1}),
        ("overlap", {"overlap": "both"}),
        ("who", {"who": "x" * 501}),
        ("input", {"input": 7}),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_with_the_field(field: str, options: dict[str, Any]) -> None:
    typed = Definition(name="typed", steps=(Step(name="a", agent="bank"),), input_schema={"type": "object"})
    given = {"name": "daily", "definition": "typed", "cron": "0 9 * * *", "input": {}, "who": "test"} | options
    with SagaTest([typed], [bank]) as t:
        name = given.pop("name")
        with pytest.raises(InvalidRecord) as refused:
            t.do(t.client.set_schedule(name, **given))
        assert refused.value.field == field


def test_a_schedule_of_a_definition_that_nobody_registered_is_refused() -> None:
    with SagaTest([ORDER], [stock, bank]) as t, pytest.raises(UnknownDefinition):
        t.schedule("daily", "nope", "0 9 * * *")
