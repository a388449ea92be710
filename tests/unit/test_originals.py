"""Forks and redrives from end to end, on the simulated log: what is kept, what is refused and why, what starts nothing new."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.agents import Terminal, Undo, agent
from sagalog.engine.originals import CannotFork, CannotRedrive, UnknownOriginal, fork_id, workflow_of
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import Definition, Step, from_item, from_step
from sagalog.schemas.errors import InvalidRecord

ONCE = {"attempts": 1}


def order(undo: dict[str, Any] | None = None, **more: Any) -> Definition:
    """Three steps: one without an undoing, one with, and one that may fail."""
    return Definition(
        name="order",
        steps=(
            Step(name="price", agent="pricing", retry=ONCE),
            Step(
                name="reserve",
                agent="stock",
                needs=("price",),
                input=from_step("price"),
                compensate=undo or {},
                retry=ONCE,
            ),
            Step(name="ship", agent="carrier", needs=("reserve",), input=from_step("reserve"), retry=ONCE, **more),
        ),
    )


@agent("stock")
async def stock(value: dict[str, Any]) -> dict[str, Any]:
    return {"reserved": value}


@stock.compensation
async def release(undo: Undo[dict[str, Any], dict[str, Any]]) -> None:
    pass


def kit(*definitions: Definition) -> SagaTest:
    test = SagaTest(definitions, [stock])
    test.stub("pricing", lambda value: {"price": value["sku"]})
    test.stub("carrier", lambda value: {"shipped": value})
    return test


def fork(t: SagaTest, workflow_id: str, **more: Any) -> str:
    return t.do(t.client.fork(workflow_id, **more))


def redrive(t: SagaTest, dead_letter: str) -> Any:
    return t.do(t.client.redrive(dead_letter, who="ana", reason="it works again"))


# --- forks


def test_a_fork_keeps_what_came_before_and_does_the_rest_again() -> None:
    with kit(order()) as t:
        started = t.start("order", {"sku": "tea"}, correlation_id="c-1")
        t.wait(started)
        forked = fork(t, started, before="ship", who="ana", reason="the other carrier")
        record = t.wait(forked).record

        assert forked.startswith("order-") and forked != started
        assert [(s["name"], s.get("stand_in"), s["attempt"]) for s in record["steps"]] == [
            ("price", "fork", 0),
            ("reserve", "fork", 0),
            ("ship", None, 1),
        ]
        assert record["output"] == {"ship": {"shipped": {"reserved": {"price": "tea"}}}}
        assert record["correlation_id"] == "c-1"
        lineage = record["forked_from"]
        assert (lineage["workflow_id"], lineage["who"], lineage["reason"]) == (started, "ana", "the other carrier")


def test_a_fork_may_have_another_input_and_another_version() -> None:
    other = order(timeout_ms=5_000)
    with kit(order(), other) as t:
        started = t.start(f"order@{order().hash}", {"sku": "tea"})
        t.wait(started)
        forked = fork(t, started, before="reserve", input={"sku": "milk"}, definition="order", new_id="order-2")

        assert forked == "order-2"
        record = t.wait(forked).record
        assert (record["definition"], record["input"]) == (other.hash, {"sku": "milk"})
        assert record["output"] == {"ship": {"shipped": {"reserved": {"price": "tea"}}}}


def test_a_fork_at_an_offset_keeps_what_had_ended_by_then() -> None:
    with kit(order()) as t:
        started = t.start("order", {"sku": "tea"})
        t.wait(started)
        first = next(e for e in t.do(t.client.history(started)) if e["data"].get("step") == "price")
        record = t.wait(fork(t, started, at_offset=first["offset"])).record

        assert [s.get("stand_in") for s in record["steps"]] == ["fork", None, None]
        with pytest.raises(CannotFork, match="had not started at offset 0"):
            fork(t, started, at_offset=0)


def test_nothing_is_built_on_what_was_undone() -> None:
    with kit(order()) as t:
        t.fail("carrier", Terminal("no truck"))
        started = t.start("order", {"sku": "tea"})
        assert t.wait(started).status == "compensated"

        with pytest.raises(
            CannotFork, match=r"step 'reserve' of workflow .* was undone.*fork before it instead: before=reserve"
        ):
            fork(t, started, before="ship")
        record = t.wait(fork(t, started, before="reserve")).record
        assert (record["status"], [s.get("stand_in") for s in record["steps"]]) == ("completed", ["fork", None, None])


def test_nothing_is_built_on_what_a_rewinding_took_back() -> None:
    with kit(order(when_failed="review")) as t:
        t.fail("carrier", Terminal("no truck"))
        started = t.start("order", {"sku": "tea"})
        t.settle()
        at = t.do(t.client.history(started))[-1]["offset"]
        t.rewind(started, "reserve")
        t.wait(started)

        with pytest.raises(CannotFork, match=r"step 'reserve' .* was taken back by a rewinding since"):
            fork(t, started, at_offset=at)


def test_a_running_workflow_can_be_forked_too() -> None:
    with kit(order(when_failed="review")) as t:
        t.fail("carrier", Terminal("no truck"))
        started = t.start("order", {"sku": "tea"})
        t.settle()
        assert t.statuses(started)["ship"] == "held"

        assert t.wait(fork(t, started, before="ship")).status == "completed"
        assert t.statuses(started)["ship"] == "held"


def test_the_outputs_of_a_map_are_kept_and_what_was_degraded_stays_so() -> None:
    each = Step(
        name="each",
        agent="pricing",
        map={"over": {"value": [{"sku": 1}, {"sku": 2}]}, "tolerate": 1},
        input=from_item(),
        retry=ONCE,
    )
    definition = Definition(name="order", steps=(each, Step(name="ship", agent="carrier", needs=("each",))))
    with kit(definition) as t:
        t.fail("pricing", Terminal("no"))
        started = t.start("order", {"sku": "tea"})
        original = t.wait(started).record
        record = t.wait(fork(t, started, before="ship")).record

        assert record["steps"][0]["output"] == original["steps"][0].get(
            "output", [i.get("output") for i in original["steps"][0]["items"]]
        )
        assert record["missing"] == [{**original["missing"][0], "stand_in": "fork"}]


def test_a_workflow_whose_id_is_forgotten_is_forked_from_the_log_all_the_same() -> None:
    with kit(order()) as t:
        started = t.start("order", {"sku": "tea"})
        t.wait(started)
        t.advance(seconds=8 * 24 * 3600)
        assert t.wait(fork(t, started, before="ship")).record["output"]["ship"] == {
            "shipped": {"reserved": {"price": "tea"}}
        }


def test_what_is_asked_wrongly_is_said() -> None:
    with kit(order()) as t:
        started = t.start("order", {"sku": "tea"})
        t.wait(started)
        with pytest.raises(InvalidRecord, match="either the step before which to fork, or an offset"):
            fork(t, started)
        with pytest.raises(CannotFork, match="'nope' is no step of 'order'"):
            fork(t, started, before="nope")
        with pytest.raises(UnknownOriginal, match="the log holds no start of it"):
            fork(t, "nope", before="ship")


# --- dead letters


def test_a_dead_letter_of_a_workflow_that_is_over_is_tried_again_in_a_fork_once() -> None:
    with kit(order()) as t:
        t.fail("carrier", Terminal("no truck"))
        started = t.start("order", {"sku": "tea"})
        t.wait(started)
        letter = f"{started}/ship/1/execute"

        how = redrive(t, letter)
        assert (how.workflow_id, how.step) == (fork_id(letter, started), "ship")
        record = t.wait(how.workflow_id).record
        # What was undone is done anew; what could not be undone, and was done, is kept.
        assert [(s["name"], s.get("stand_in")) for s in record["steps"]] == [
            ("price", "fork"),
            ("reserve", None),
            ("ship", None),
        ]
        assert record["forked_from"]["dead_letter"] == letter
        again = redrive(t, letter)
        t.settle()
        assert again.workflow_id == how.workflow_id
        starts = [e for e in t.do(t.client.history(how.workflow_id)) if e["ce_type"] == "sagalog.workflow-started.v1"]
        assert len(starts) == 2 and t.wait(how.workflow_id).record == record
        # By its workflow's id, the newest dead letter is meant.
        assert redrive(t, started).dead_letter == letter


def test_what_needs_something_that_was_undone_is_not_kept_either() -> None:
    definition = Definition(
        name="order",
        steps=(
            *order().steps[:2],
            Step(name="label", agent="pricing", needs=("reserve",), input={"value": {"sku": 1}}),
            Step(name="ship", agent="carrier", needs=("label",), retry=ONCE),
        ),
    )
    with kit(definition) as t:
        t.fail("carrier", Terminal("no truck"))
        started = t.start("order", {"sku": "tea"})
        assert t.wait(started).status == "compensated"

        record = t.wait(redrive(t, started).workflow_id).record
        assert [s.get("stand_in") for s in record["steps"]] == ["fork", None, None, None]


def test_a_degraded_step_of_a_running_workflow_is_tried_again_in_place_once() -> None:
    definition = Definition(
        name="order",
        steps=(
            Step(name="price", agent="pricing", critical=False, default={"price": 0}, retry=ONCE),
            Step(name="nap", needs=("price",), wait_for={"signal": "go", "timeout_ms": 60_000}),
        ),
    )
    with kit(definition) as t:
        t.fail("pricing", Terminal("no"))
        started = t.start("order", {"sku": "tea"})
        t.settle()
        assert t.statuses(started) == {"price": "degraded", "nap": "awaiting"}

        how = redrive(t, f"{started}/price/1/execute")
        assert (how.workflow_id, how.forked) == (started, None)
        t.settle()
        assert t.statuses(started) == {"price": "done", "nap": "awaiting"}
        with pytest.raises(CannotRedrive, match="step 'price' is done by now, so there is nothing to try again"):
            redrive(t, f"{started}/price/1/execute")
        t.signal(started, "go")
        assert t.wait(started).record["rewinds"][0]["dead_letter"] == f"{started}/price/1/execute"


def test_what_cannot_go_back_without_undoing_is_said() -> None:
    each = Step(
        name="each",
        agent="stock",
        map={"over": {"value": [1]}, "tolerate": 1},
        compensate={},
        critical=False,
        retry=ONCE,
    )
    nap = Step(name="nap", needs=("each",), wait_for={"signal": "go", "timeout_ms": 60_000})
    with kit(Definition(name="order", steps=(each, nap))) as t:
        t.fail("stock", Terminal("no"))
        started = t.start("order")
        t.settle()
        with pytest.raises(CannotRedrive, match="is running and cannot go back to 'each' without undoing"):
            redrive(t, f"{started}/each[0]/1/execute")


def test_an_undoing_that_failed_for_good_cannot_be_tried_again_and_the_remedy_is_named() -> None:
    with kit(order({"retry": ONCE})) as t:
        t.fail("carrier", Terminal("no truck"))
        t.fail("stock", Terminal("no"), undo=True)
        started = t.start("order", {"sku": "tea"})
        assert t.wait(started).status == "compensation_failed"

        with pytest.raises(CannotRedrive, match=r"it is an undoing.*when_failed: review"):
            redrive(t, f"{started}/reserve/1/compensate")
        # What it could not undo may stand in part: nothing is built on it.
        how = redrive(t, f"{started}/ship/1/execute")
        assert [s.get("stand_in") for s in t.wait(how.workflow_id).record["steps"]] == ["fork", None, None]
        # By its workflow's id, what was not done comes before what was not undone.
        assert redrive(t, started).dead_letter == how.dead_letter
        with pytest.raises(UnknownOriginal, match="the log holds no dead letter"):
            redrive(t, f"{started}/ship/7/execute")


def test_the_id_of_a_dead_letter_is_told_from_that_of_a_workflow() -> None:
    assert workflow_of("a/b/ship/1/execute") == "a/b"
    assert workflow_of("order-1") is None
    assert workflow_of("a/ship/x/execute") is None
    assert workflow_of("a/ship/1/dance") is None
    assert len(fork_id("x/ship/1/execute", "ü" * 127).encode()) <= 255
