"""What people decide: tasks, steps that failed for good and are held, undoings that are held."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.events import Decision, FailureKind

from .driver import Driver, commands, dead_letters, ignored, result, reviews, saga, shown, step, waiting

TASK = {"title": "Approve the invoice", "timeout_ms": 60_000}
ONCE = {"attempts": 1}


def closed(effects: list[Any]) -> list[dict[str, Any]]:
    """The decisions in the records that close reviews."""
    return [effect.record["decided"] for effect in effects if type(effect).__name__ == "ReviewClosed"]


# --- tasks


def task(**more: Any) -> Driver:
    return Driver(saga(waiting("approve", task={**TASK, **more}), step("post", "approve")), round_trip=True)


def test_a_task_asks_a_person_with_what_they_need() -> None:
    driver = task(form={"type": "object"}, assignee="ana", group="accounting")

    (asked,) = reviews(driver.start("saga", {"amount": 5}))

    assert asked["kind"] == "task"
    assert asked["reason"] == "Approve the invoice"
    assert asked["details"] == {
        "input": {"amount": 5},
        "until_ms": driver.now_ms + 60_000,
        "form": {"type": "object"},
        "assignee": "ana",
        "group": "accounting",
    }
    assert "decided" not in asked


def test_an_approved_task_is_done_with_the_step_s_input() -> None:
    driver = task()
    driver.start("saga", {"amount": 5})

    approved = driver.decide("approve", Decision.APPROVE)

    assert shown(approved) == [
        "review approve/task closed: approve",
        "approve awaiting -> done by approved",
        "post waiting -> running by dispatched",
        "send post/1/execute",
    ]
    assert closed(approved) == [{"decision": "approve", "who": "tester", "reason": "because", "at_ms": driver.now_ms}]
    assert result(driver.done("post"))["steps"][0]["output"] == {"amount": 5}


def test_an_edited_output_must_fit_the_form() -> None:
    driver = task(form={"type": "object", "required": ["amount"]})
    driver.start("saga", "x")

    assert ignored(driver.decide("approve", Decision.APPROVE)) == "invalid_payload"
    assert ignored(driver.decide("approve", Decision.APPROVE, {"sum": 1})) == "invalid_payload"
    assert commands(driver.decide("approve", Decision.APPROVE, {"amount": 6})) == ["post/1/execute"]
    assert driver.state.steps[0].output == {"amount": 6}


def test_a_rejected_task_stops_the_workflow() -> None:
    driver = task()
    driver.start("saga")

    ended = result(driver.decide("approve", Decision.REJECT))

    assert ended["status"] == "failed"
    assert ended["failure"]["kind"] == FailureKind.REJECTED
    assert ended["failure"]["message"] == "tester rejected it: because"


def test_a_task_that_nobody_takes_is_escalated_once_and_then_fails() -> None:
    driver = task(assignee="ana", escalate_to="the boss")
    driver.start("saga")

    (escalated,) = reviews(driver.wait(60_000))
    last = driver.wait(60_000)

    assert escalated["details"]["assignee"] == "the boss" and escalated["details"]["escalated"] is True
    assert [decision["decision"] for decision in closed(last)] == ["timeout"]
    assert result(last)["failure"]["message"] == "nobody decided within 60,000 ms, nor once it was escalated"


def test_a_cancelled_workflow_closes_its_task() -> None:
    driver = task()
    driver.start("saga")

    assert [decision["decision"] for decision in closed(driver.cancel())] == ["moot"]


@pytest.mark.parametrize("decision", [Decision.RETRY, Decision.SKIP, Decision.COMPLETE, Decision.FAIL])
def test_a_task_knows_only_yes_and_no(decision: Decision) -> None:
    driver = task()
    driver.start("saga")

    assert ignored(driver.decide("approve", decision)) == "not_possible"


def test_a_decision_that_comes_twice_counts_once() -> None:
    driver = task()
    driver.start("saga")
    driver.decide("approve", Decision.APPROVE)

    assert ignored(driver.decide("approve", Decision.REJECT)) == "not_waited_for"


def test_a_decision_about_a_step_that_is_none() -> None:
    driver = task()
    driver.start("saga")

    assert ignored(driver.decide("nope", Decision.APPROVE)) == "unknown_step"


# --- a step that failed for good and is held


def held(**more: Any) -> Driver:
    driver = Driver(
        saga(
            step("a", compensate={}),
            step("b", "a", retry=ONCE, when_failed="review", **more),
            step("c", "b"),
        ),
        round_trip=True,
    )
    driver.start("saga", "in")
    driver.done("a")
    return driver


def test_a_held_step_asks_an_operator_and_undoes_nothing() -> None:
    driver = held()

    failed = driver.fail("b", FailureKind.TERMINAL, "the ledger is closed")

    assert shown(failed) == [
        "answered b/1/execute",
        "called b failed",
        "b running -> held by held",
        "review b/step_failed",
    ]
    (asked,) = reviews(failed)
    assert asked["reason"] == "step 'b' failed for good: the ledger is closed"
    assert asked["details"]["failures"][0]["message"] == "the ledger is closed"
    assert driver.state.status == "running"


def test_a_held_step_is_tried_anew_with_all_its_attempts() -> None:
    driver = held(fallback={"agent": "other"})
    driver.fail("b")
    driver.fail("b", attempt=2)

    again = driver.decide("b", Decision.RETRY)

    assert shown(again) == [
        "review b/step_failed closed: retry",
        "b held -> waiting by retried",
        "b waiting -> running by dispatched",
        "send b/3/execute",
    ]
    assert commands(driver.fail("b", attempt=3)) == ["b/4/execute"], "its fallback agent, again"
    assert "b running -> held by held" in shown(driver.fail("b", attempt=4))
    driver.decide("b", Decision.RETRY)
    assert commands(driver.done("b", "at last", attempt=5)) == ["c/1/execute"]


def test_a_skipped_step_is_degraded_with_its_default() -> None:
    driver = held(default="neutral")
    driver.fail("b")

    assert commands(driver.decide("b", Decision.SKIP)) == ["c/1/execute"]
    ended = result(driver.done("c"))

    assert ended["status"] == "degraded"
    assert ended["missing"] == [{"step": "b", "why": "no", "kind": "retryable", "stand_in": "default"}]


def test_a_step_completed_by_hand_is_done_with_the_given_output_and_can_be_undone() -> None:
    driver = held(compensate={}, output_schema={"type": "string"})
    driver.fail("b")

    assert ignored(driver.decide("b", Decision.COMPLETE, 5)) == "invalid_payload"
    assert commands(driver.decide("b", Decision.COMPLETE, "by hand")) == ["c/1/execute"]

    assert driver.state.steps[1].stand_in == "operator"
    assert commands(driver.cancel()) == []
    assert commands(driver.fail("c")) == ["b/1/compensate"]


def test_a_held_step_that_is_given_up_stops_the_workflow() -> None:
    driver = held()
    driver.fail("b")

    given_up = driver.decide("b", Decision.FAIL)

    assert commands(given_up) == ["a/1/compensate"]
    assert [letter["step"] for letter in dead_letters(given_up)] == ["b"]
    assert result(driver.done("a", undo=True))["status"] == "compensated"


def test_a_cancel_closes_the_review_of_a_held_step() -> None:
    driver = held()
    driver.fail("b")

    cancelled = driver.cancel()

    assert [decision["decision"] for decision in closed(cancelled)] == ["moot"]
    assert commands(cancelled) == ["a/1/compensate"]


@pytest.mark.parametrize("decision", [Decision.APPROVE, Decision.REJECT])
def test_a_held_step_is_no_task(decision: Decision) -> None:
    driver = held()
    driver.fail("b")

    assert ignored(driver.decide("b", decision)) == "not_possible"


def test_a_condition_that_fails_is_held_too_and_may_be_evaluated_again() -> None:
    driver = Driver(saga(step("a", when="input.x", when_failed="review")))

    started = driver.start("saga", {})

    assert "a waiting -> held by held" in shown(started)
    assert "a waiting -> held by held" in shown(driver.decide("a", Decision.RETRY))
    assert result(driver.decide("a", Decision.COMPLETE, 1))["status"] == "completed"


def test_a_wait_that_timed_out_may_be_held_and_waited_for_again() -> None:
    driver = Driver(
        saga(waiting("w", wait_for={"signal": "go", "timeout_ms": 1_000}, when_failed="review")), round_trip=True
    )
    driver.start("saga")

    assert "w awaiting -> held by held" in shown(driver.wait(1_000))
    driver.decide("w", Decision.RETRY)
    assert result(driver.signal("go", 1))["status"] == "completed"


# --- an undoing that failed for good and is held


def undo_held() -> Driver:
    once = {"retry": ONCE, "when_failed": "review"}
    driver = Driver(
        saga(step("a", compensate={}), step("b", "a", compensate=once), step("c", "b", retry=ONCE)), round_trip=True
    )
    driver.start("saga")
    driver.done("a")
    driver.done("b")
    driver.fail("c")
    return driver


def test_a_held_undoing_asks_an_operator_while_the_rest_is_undone() -> None:
    driver = undo_held()

    failed = driver.fail("b", undo=True)

    assert shown(failed) == [
        "answered b/1/compensate",
        "called b failed",
        "review b/undo_failed",
        "undo b running -> held by held",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    assert driver.done("a", undo=True)[-1:] and driver.state.status == "compensating"


def test_a_held_undoing_is_tried_anew_with_all_its_attempts() -> None:
    driver = undo_held()
    driver.fail("b", undo=True)
    driver.done("a", undo=True)

    assert commands(driver.decide("b", Decision.RETRY, undo=True)) == ["b/2/compensate"]
    assert "undo b running -> held by held" in shown(driver.fail("b", attempt=2, undo=True))
    driver.decide("b", Decision.RETRY, undo=True)
    assert result(driver.done("b", attempt=3, undo=True))["status"] == "compensated"


@pytest.mark.parametrize(
    ("decision", "status", "undo"),
    [
        (Decision.SKIP, "compensated", "skipped"),
        (Decision.COMPLETE, "compensated", "done"),
        (Decision.FAIL, "compensation_failed", "failed"),
    ],
)
def test_an_operator_decides_how_a_held_undoing_ends(decision: Decision, status: str, undo: str) -> None:
    driver = undo_held()
    driver.fail("b", undo=True)
    driver.done("a", undo=True)

    ended = result(driver.decide("b", decision, undo=True))

    assert ended["status"] == status
    assert ended["steps"][1]["undo"]["status"] == undo


def test_a_decision_while_others_are_being_undone_waits_for_them() -> None:
    driver = undo_held()
    driver.fail("b", undo=True)

    assert "undo b held -> skipped by skipped" in shown(driver.decide("b", Decision.SKIP, undo=True))
    assert result(driver.done("a", undo=True))["status"] == "compensated"


@pytest.mark.parametrize("decision", [Decision.APPROVE, Decision.REJECT])
def test_a_held_undoing_is_no_task(decision: Decision) -> None:
    driver = undo_held()
    driver.fail("b", undo=True)

    assert ignored(driver.decide("b", decision, undo=True)) == "not_possible"


def test_a_decision_about_an_undoing_that_is_not_held_is_ignored() -> None:
    driver = undo_held()

    assert ignored(driver.decide("b", Decision.SKIP, undo=True)) == "not_waited_for"
