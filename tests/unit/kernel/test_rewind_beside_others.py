"""A rewinding next to other features: late results, starts that replace, migrations, budgets of time."""

from __future__ import annotations

from sagalog.engine.kernel.budgets import used
from sagalog.schemas.definitions import Budget, from_input, from_item
from sagalog.schemas.events import FailureKind, OnDuplicate, WorkflowStarted
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

from .driver import Driver, chain, commands, ignored, saga, shown, step

ONCE = {"attempts": 1}
UNDO = {"retry": ONCE}


def test_a_late_result_that_comes_during_the_rewinding_has_the_step_undone_once_more() -> None:
    driver = Driver(chain("a", "b", retry=ONCE, compensate=UNDO), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.rewind("a", undo=True)
    driver.fail("b", FailureKind.TIMEOUT)
    assert commands(driver.done("b", undo=True)) == ["a/1/compensate"]

    assert shown(driver.done("b", "late")) == ["undo b done -> running by dispatched", "send b/2/compensate"]
    assert ignored(driver.done("b", "late")) == "not_waited_for"
    driver.done("a", undo=True)
    assert driver.state.status is WorkflowStatus.REWINDING
    assert commands(driver.done("b", attempt=2, undo=True)) == ["a/2/execute"]


def test_a_start_that_replaces_has_a_workflow_cancelled_that_is_being_rewound() -> None:
    driver = Driver(chain("a", "b", retry=ONCE, compensate=UNDO), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.rewind("a", undo=True)

    effects = driver.append(WorkflowStarted("saga", "again", on_duplicate=OnDuplicate.REPLACE), ce_id="another")
    assert shown(effects)[0] == "workflow rewinding -> compensating by cancelled"


def test_a_workflow_that_was_rewound_can_be_moved_before_it_has_come_as_far_again() -> None:
    before, after = (saga(step("a", retry=ONCE), step("b", "a", retry={"attempts": n})) for n in (1, 3))
    driver = Driver(before, round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.rewind("a", undo=False)
    driver.done("b")
    assert driver.state.steps[1].status is StepStatus.WAITING
    driver.register(after)

    driver.migrate(after)
    assert driver.state.definition == after.hash


def test_the_time_that_dropped_items_took_stays_used() -> None:
    mapped = step("m", map={"over": from_input("x")}, input=from_item(), retry=ONCE, compensate=UNDO)
    driver = Driver(saga(mapped.model_copy(update={"budget": Budget(ms=10_000)}), step("z", "m")), round_trip=True)
    driver.start("saga", {"x": [1]})
    driver.now_ms += 700
    driver.done("m[0]", 1)
    driver.rewind("m", undo=True)
    driver.done("z")
    driver.done("m[0]", undo=True)

    assert used(driver.state.everything())["ms"] == 700
