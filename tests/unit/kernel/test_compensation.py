"""Backward: a workflow that stops drains, then undoes what was done in exact reverse order of completion, one at a time."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.state import NEVER
from sagalog.schemas.definitions import fields, from_input, from_step
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import Action, Decision, FailureKind, Timer
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import FAILURE_DETAILS_BYTES_MAX

from .driver import (
    WORKFLOW,
    Driver,
    chain,
    command,
    commands,
    dead_letters,
    dispatched,
    ignored,
    result,
    reviews,
    saga,
    shown,
    step,
)

ONCE = {"attempts": 1}


def undo_all(driver: Driver, effects: list[Any]) -> list[str]:
    """Answers every undoing; the steps in the order in which they were undone."""
    order = []
    while undo := [c for c in commands(effects) if c.endswith("/compensate")]:
        (one,) = undo
        order.append(one.split("/")[0])
        effects = driver.done(order[-1], undo=True)
    return order


def test_a_failed_critical_step_undoes_what_was_done_newest_first() -> None:
    driver = Driver(chain("a", "b", "c", retry=ONCE))
    driver.start("saga", "in")
    driver.done("a", "out-a")
    driver.done("b", "out-b")

    failed = driver.fail("c", message="no c")
    first = driver.done("b", undo=True)
    second = driver.done("a", undo=True)

    assert shown(failed) == [
        "answered c/1/execute",
        "called c failed",
        "dead letter c/1/execute",
        "c running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "undo b pending -> running by dispatched",
        "send b/1/compensate",
    ]
    assert command(failed).input == {"input": "out-a", "output": "out-b"}
    assert shown(first) == [
        "answered b/1/compensate",
        "called b ok",
        "undo b running -> done by completed",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    assert command(first).input == {"input": "in", "output": "out-a"}
    assert shown(second) == [
        "answered a/1/compensate",
        "called a ok",
        "undo a running -> done by completed",
        "workflow compensating -> compensated by undone",
        "finished compensated",
    ]
    record = result(second)
    assert record["failure"]["step"] == "c"
    assert record["failure"]["message"] == "no c"
    assert [(s["name"], s["undo"]["status"], s["undo"].get("order")) for s in record["steps"]] == [
        ("a", "done", 2),
        ("b", "done", 1),
        ("c", "not_needed", None),
    ]


def test_parallel_branches_are_undone_in_reverse_order_of_completion_not_of_definition() -> None:
    names = ("a", "b", "c", "d")
    driver = Driver(saga(*(step(name, compensate={}) for name in names), step("end", *names, retry=ONCE)))
    driver.start("saga")
    for name in ("c", "a", "d", "b"):
        driver.done(name)

    assert undo_all(driver, driver.fail("end")) == ["b", "d", "a", "c"]


def test_steps_without_a_compensation_are_passed_over() -> None:
    driver = Driver(
        saga(step("a", compensate={}), step("b", "a"), step("c", "b", compensate={}), step("d", "c", retry=ONCE))
    )
    driver.start("saga")
    for name in "abc":
        driver.done(name)

    assert undo_all(driver, driver.fail("d")) == ["c", "a"]


def test_a_failure_with_nothing_to_undo_ends_as_failed() -> None:
    driver = Driver(saga(step("a"), step("b", "a", retry=ONCE)))
    driver.start("saga")
    driver.done("a")

    effects = driver.fail("b")

    assert shown(effects)[-2:] == ["workflow compensating -> failed by nothing_to_undo", "finished failed"]


def test_another_agent_undoes_with_the_input_that_the_compensation_binds() -> None:
    undo = {
        "agent": "refund",
        "timeout_ms": 700,
        "input": fields(sum=from_input("sum"), receipt=from_step("pay", "id")).model_dump(),
    }
    definition = saga(step("pay", compensate=undo, service="bank", start_timeout_ms=100), step("b", "pay", retry=ONCE))
    driver = Driver(definition)
    driver.start("saga", {"sum": 5}, deadline_ms=50_000)
    driver.done("pay", {"id": "r1"})

    effects = driver.fail("b")

    sent = command(effects)
    assert shown(effects)[-1] == "send pay/1/compensate to refund"
    assert (sent.agent, sent.direction, sent.input) == ("refund", Direction.COMPENSATE, {"sum": 5, "receipt": "r1"})
    # The circuit guards the step's own agent, and no deadline cuts a compensation short.
    assert (sent.service, sent.deadline_ms, sent.timeout_ms) == (None, None, 700)
    assert sent.idempotency_key == f"{WORKFLOW}/pay"
    assert shown(driver.done("pay", undo=True))[1] == "called refund ok"


def test_the_steps_own_agent_undoes_behind_its_circuit() -> None:
    driver = Driver(saga(step("pay", compensate={}, service="bank", when_open="fail"), step("b", "pay", retry=ONCE)))
    driver.start("saga")
    driver.done("pay")

    dispatch = dispatched(driver.fail("b"))

    # A compensation always waits: it must happen.
    assert (dispatch.command.service, dispatch.when_open) == ("bank", "park")


# --- draining


def draining(**more: Any) -> tuple[Driver, list[Any]]:
    """`slow` is still out when `bad` fails; `first` is done."""
    driver = Driver(
        saga(
            step("first", compensate={}),
            step("slow", compensate={}, **more),
            step("bad", retry=ONCE),
            step("never", "slow"),
        )
    )
    driver.start("saga")
    driver.done("first")
    return driver, driver.fail("bad")


def test_a_workflow_that_stops_waits_for_what_is_out_and_sends_nothing() -> None:
    _, effects = draining()

    assert shown(effects) == [
        "answered bad/1/execute",
        "called bad failed",
        "dead letter bad/1/execute",
        "bad running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "never waiting -> cancelled by stopped",
    ]


def test_a_late_success_while_draining_is_undone_too_and_first() -> None:
    driver, _ = draining()

    effects = driver.done("slow", "late")

    assert shown(effects) == [
        "answered slow/1/execute",
        "called slow ok",
        "slow running -> done by completed",
        "undo slow pending -> running by dispatched",
        "send slow/1/compensate",
    ]
    assert command(effects).input["output"] == "late"
    assert undo_all(driver, effects) == ["slow", "first"]


def test_a_failure_while_draining_is_not_retried_nor_undone() -> None:
    driver, _ = draining()

    effects = driver.fail("slow")

    assert shown(effects) == [
        "answered slow/1/execute",
        "called slow failed",
        "slow running -> cancelled by stopped",
        "undo first pending -> running by dispatched",
        "send first/1/compensate",
    ]


def test_a_failure_while_draining_does_not_fall_back() -> None:
    driver, _ = draining(fallback={"agent": "other"}, retry=ONCE)

    assert "slow running -> cancelled by stopped" in shown(driver.fail("slow"))


@pytest.mark.parametrize("how", ["lost", "timeout", "invalid_output", "an_output_against_the_schema"])
def test_an_unknown_outcome_while_draining_is_undone(how: str) -> None:
    driver, _ = draining(output_schema={"type": "string"})

    if how == "lost":
        effects = driver.lose("slow")
    elif how == "an_output_against_the_schema":
        effects = driver.done("slow", 5)
    else:
        effects = driver.fail("slow", FailureKind(how))

    assert shown(effects)[2:] == [
        "slow running -> cancelled by stopped",
        "undo slow pending -> running by dispatched",
        "send slow/1/compensate",
    ]
    assert undo_all(driver, effects) == ["slow", "first"]


def test_draining_waits_for_every_branch() -> None:
    driver = Driver(saga(step("a", compensate={}), step("b", compensate={}), step("bad", retry=ONCE)))
    driver.start("saga")
    driver.fail("bad")

    first = driver.done("a")
    second = driver.done("b")

    assert shown(first)[2:] == ["a running -> done by completed"]
    assert commands(second) == ["b/1/compensate"]


def test_a_step_that_backs_off_when_the_workflow_stops_is_cancelled() -> None:
    driver = Driver(saga(step("a", compensate={}), step("bad", retry=ONCE)))
    driver.start("saga")
    driver.fail("a")

    assert shown(driver.fail("bad"))[4:] == [
        "workflow running -> compensating by step_failed",
        "a backing_off -> cancelled by stopped",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]


def test_a_step_that_backs_off_after_an_unknown_outcome_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={}), step("bad", retry=ONCE)))
    driver.start("saga")
    driver.lose("a")

    effects = driver.fail("bad")

    assert undo_all(driver, effects) == ["a"]


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.LOST, FailureKind.INVALID_OUTPUT])
def test_a_failed_step_with_an_unknown_outcome_is_undone_before_all_others(kind: FailureKind) -> None:
    driver = Driver(chain("a", "b", retry={"attempts": 2}))
    driver.start("saga")
    driver.done("a")
    driver.fail("b", kind)
    driver.wait(30_000)

    # The second attempt's outcome is known, the first one's never will be.
    effects = driver.fail("b", FailureKind.TERMINAL, attempt=2)

    assert undo_all(driver, effects) == ["b", "a"]


def test_a_step_whose_failures_are_all_known_is_not_undone() -> None:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")

    assert undo_all(driver, driver.fail("b")) == ["a"]


def test_an_optional_step_with_an_unknown_outcome_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={}, critical=False, retry=ONCE), step("b", "a", retry=ONCE)))
    driver.start("saga")
    driver.lose("a")

    assert undo_all(driver, driver.fail("b")) == ["a"]


def test_a_default_is_nothing_that_was_done() -> None:
    driver = Driver(saga(step("a", compensate={}, critical=False, retry=ONCE), step("b", "a", retry=ONCE)))
    driver.start("saga")
    driver.fail("a")

    assert shown(driver.fail("b"))[-1] == "finished failed"


def test_what_a_fallback_agent_did_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={}, retry=ONCE, fallback={"agent": "b"}), step("c", "a", retry=ONCE)))
    driver.start("saga")
    driver.fail("a")
    driver.done("a", "booked elsewhere", attempt=2)

    effects = driver.fail("c")
    undone = driver.done("a", undo=True)

    # Who did it can undo it: the step's own agent knows nothing of the booking.
    assert shown(effects)[-2:] == ["undo a pending -> running by dispatched", "send a/1/compensate to b"]
    assert command(effects).input == {"input": None, "output": "booked elsewhere"}
    assert shown(undone) == [
        "answered a/1/compensate",
        "called b ok",
        "undo a running -> done by completed",
        "workflow compensating -> compensated by undone",
        "finished compensated",
    ]


def test_what_a_fallback_agent_did_is_undone_by_the_agent_that_the_compensation_names() -> None:
    driver = Driver(
        saga(
            step("a", compensate={"agent": "undoer"}, retry=ONCE, fallback={"agent": "b"}, service="bank"),
            step("c", "a", retry=ONCE),
        )
    )
    driver.start("saga")
    driver.fail("a")
    driver.done("a", "booked elsewhere", attempt=2)

    effects = driver.fail("c")

    assert shown(effects)[-1] == "send a/1/compensate to undoer"
    # The circuit guards the step's own agent only.
    assert (command(effects).service, dispatched(effects).policy) == (None, None)


def test_a_fallback_agents_failure_to_undo_is_laid_at_its_door() -> None:
    driver = Driver(
        saga(
            step("a", compensate={"retry": ONCE}, retry=ONCE, fallback={"agent": "b"}, service="bank"),
            step("c", "a", retry=ONCE),
        )
    )
    driver.start("saga")
    driver.fail("a")
    driver.done("a", "booked elsewhere", attempt=2)
    driver.fail("c")

    effects = driver.fail("a", undo=True)

    assert shown(effects)[1] == "called b failed"
    assert [letter["agent"] for letter in dead_letters(effects)] == ["b"]


def test_a_fallback_constant_is_nothing_that_was_done() -> None:
    driver = Driver(saga(step("a", compensate={}, retry=ONCE, fallback={"value": 1}), step("c", "a", retry=ONCE)))
    driver.start("saga")
    driver.fail("a")

    assert shown(driver.fail("c"))[-1] == "finished failed"


def test_a_late_success_of_a_fallback_agent_while_draining_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={}, retry=ONCE, fallback={"agent": "b"}), step("bad", retry=ONCE)))
    driver.start("saga")
    driver.fail("a")
    driver.fail("bad")

    assert undo_all(driver, driver.done("a", "booked elsewhere", attempt=2)) == ["a"]


def test_a_step_that_answered_with_an_invalid_output_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={}, retry=ONCE, output_schema={"type": "string"})))
    driver.start("saga")

    assert undo_all(driver, driver.done("a", 5)) == ["a"]


# --- compensations that fail


def undoing(retry: dict[str, Any] | None = None) -> Driver:
    """b's undoing is out; a's comes next."""
    retry = retry or {"attempts": 2, "base_ms": 1_000, "cap_ms": 1_000}
    driver = Driver(chain("a", "b", "c", retry=ONCE, compensate={"retry": retry}))
    driver.start("saga", "in")
    driver.done("a", 1)
    driver.done("b", 2)
    driver.fail("c")
    return driver


def test_a_failed_compensation_is_tried_again_after_its_back_off() -> None:
    driver = undoing()

    failed = driver.fail("b", undo=True)
    undo = driver.state.steps[1].undo
    assert undo is not None
    delay_ms = undo.retry_at_ms - driver.state.now_ms
    again = driver.wait(1_000)

    assert shown(failed) == [
        "answered b/1/compensate",
        "called b failed",
        "undo b running -> backing_off by failed",
    ]
    assert 1 <= delay_ms <= 1_000
    assert shown(again) == ["undo b backing_off -> running by dispatched", "send b/2/compensate"]
    assert ignored(driver.done("b", attempt=1, undo=True)) == "stale_attempt"
    assert commands(driver.done("b", attempt=2, undo=True)) == ["a/1/compensate"]


@pytest.mark.parametrize("how", ["lost", "timeout", "retryable"])
def test_a_compensation_without_an_answer_is_tried_again(how: str) -> None:
    driver = undoing()

    effects = driver.lose("b", undo=True) if how == "lost" else driver.fail("b", FailureKind(how), undo=True)

    assert shown(effects)[-1] == "undo b running -> backing_off by failed"


def test_the_wait_that_a_compensations_agent_asks_for_is_kept() -> None:
    driver = undoing({"attempts": 2, "base_ms": 1, "cap_ms": 5_000})
    driver.fail("b", undo=True, retry_after_ms=4_000)

    assert driver.wait(3_999) == []
    assert commands(driver.wait(1)) == ["b/2/compensate"]


@pytest.mark.parametrize(
    ("kind", "error_type"),
    [(FailureKind.TERMINAL, None), (FailureKind.REVIEW_NEEDED, None), (FailureKind.RETRYABLE, "Gone")],
)
def test_a_compensation_that_fails_for_good_goes_to_a_person_and_the_rest_is_undone(
    kind: FailureKind, error_type: str | None
) -> None:
    driver = undoing({"attempts": 3, "terminal": ["Gone"]})

    failed = driver.fail("b", kind, "cannot", undo=True, error_type=error_type)
    ended = driver.done("a", undo=True)

    assert shown(failed) == [
        "answered b/1/compensate",
        "called b failed" if kind is not FailureKind.REVIEW_NEEDED else "called b ok",
        "dead letter b/1/compensate",
        "review b/compensation_failed",
        "undo b running -> failed by given_up",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    (letter,) = dead_letters(failed)
    assert (letter["direction"], letter["agent"], letter["failed_attempts"]) == ("compensate", "b", 1)
    assert letter["input"] == {"input": 1, "output": 2}
    (case,) = reviews(failed)
    assert (case["kind"], case["step"]) == ("compensation_failed", "b")
    assert case["reason"] == "step 'b' could not be undone: cannot"
    assert case["details"] == {"input": {"input": 1, "output": 2}, "failures": letter["failures"]}
    assert shown(ended)[-2:] == [
        "workflow compensating -> compensation_failed by not_all_undone",
        "finished compensation_failed",
    ]
    # The cause stays the cause.
    assert result(ended)["failure"]["step"] == "c"
    assert [s["undo"]["status"] for s in result(ended)["steps"]] == ["done", "failed", "not_needed"]


def test_a_compensation_gives_up_with_its_last_attempt() -> None:
    driver = undoing()
    driver.fail("b", undo=True)
    driver.wait(1_000)

    effects = driver.fail("b", attempt=2, undo=True)

    assert "dead letter b/2/compensate" in shown(effects)
    assert dead_letters(effects)[0]["failed_attempts"] == 2


def test_the_last_compensation_that_fails_ends_the_workflow() -> None:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")

    effects = driver.fail("a", FailureKind.TERMINAL, undo=True)

    assert shown(effects)[-1] == "finished compensation_failed"


# --- a person is needed


def test_a_step_that_asks_for_a_person_stops_undoes_and_ends_in_review() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga", "in")
    driver.done("a")

    failed = driver.fail("b", FailureKind.REVIEW_NEEDED, "which account?", details={"candidates": [1, 2]})
    ended = driver.done("a", undo=True)

    assert shown(failed) == [
        "answered b/1/execute",
        "called b ok",
        "review b/review_needed",
        "b running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    (case,) = reviews(failed)
    assert (case["id"], case["kind"], case["step"]) == (f"{WORKFLOW}/b/review_needed", "review_needed", "b")
    assert (case["reason"], case["details"], case["input"]) == ("which account?", {"candidates": [1, 2]}, "in")
    assert shown(ended)[-2:] == ["workflow compensating -> review by undone_for_review", "finished review"]


def test_a_person_gets_the_details_even_when_the_state_is_full() -> None:
    driver = Driver(saga(step("fill"), step("more"), step("a")))
    driver.start("saga", "x" * 250_000)
    driver.done("fill", "x" * 249_000)
    driver.done("more", "x" * 95_000)

    effects = driver.fail("a", FailureKind.REVIEW_NEEDED, "who?", details="y" * 16_000)

    (case,) = reviews(effects)
    assert case["details"] == "y" * 16_000
    # The state had no room for them.
    (kept,) = result(effects)["steps"][2]["failures"]
    assert (kept["message"], "details" in kept) == ("who?", False)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (FAILURE_DETAILS_BYTES_MAX, "y" * (FAILURE_DETAILS_BYTES_MAX - 2)),
        (FAILURE_DETAILS_BYTES_MAX + 1, {"dropped": f"{FAILURE_DETAILS_BYTES_MAX + 1:,} bytes of details"}),
    ],
)
def test_details_beyond_their_limit_are_replaced_by_their_size_in_the_review_too(size: int, expected: Any) -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")

    effects = driver.fail("a", FailureKind.REVIEW_NEEDED, "who?", details="y" * (size - 2))

    (case,) = reviews(effects)
    assert case["details"] == expected
    assert result(effects)["steps"][0]["failures"][0]["details"] == expected


# --- cancel


def test_a_cancel_stops_and_undoes() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.done("a")

    cancelled = driver.cancel()
    drained = driver.fail("b")
    ended = driver.done("a", undo=True)

    assert shown(cancelled) == ["workflow running -> compensating by cancelled"]
    assert shown(drained)[2:] == [
        "b running -> cancelled by stopped",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    assert shown(ended)[-2:] == ["workflow compensating -> cancelled by undone_after_cancel", "finished cancelled"]
    failure = result(ended)["failure"]
    assert (failure["kind"], failure["message"]) == ("cancelled", "cancelled by tester: wanted")


def test_a_cancel_while_everything_backs_off_ends_at_once() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    driver.fail("a")

    assert shown(driver.cancel()) == [
        "workflow running -> compensating by cancelled",
        "a backing_off -> cancelled by stopped",
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
    ]


def test_a_cancel_of_a_waiting_start_ends_it() -> None:
    driver = Driver()
    driver.start("saga")

    effects = driver.cancel()

    assert shown(effects) == ["workflow waiting -> cancelled by cancelled", "finished cancelled"]
    assert shown(driver.register(chain("a"))) == ["definition known"]


@pytest.mark.parametrize("stage", ["draining", "compensating", "finished"])
def test_a_cancel_that_comes_too_late_changes_nothing(stage: str) -> None:
    driver, _ = draining()
    if stage != "draining":
        driver.fail("slow")
    if stage == "finished":
        driver.done("first", undo=True)
    before = driver.everything()

    reason = ignored(driver.cancel())

    assert reason == ("already_finished" if stage == "finished" else "cannot_be_cancelled")
    assert driver.everything() == before


def test_an_agent_cannot_make_a_failure_look_like_a_cancel() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")

    assert shown(driver.fail("a", FailureKind.CANCELLED))[-1] == "finished failed"


# --- deadline


def test_the_deadline_stops_drains_and_undoes() -> None:
    driver = Driver(saga(*chain("a", "b", "c").steps, deadline_ms=5_000))
    driver.start("saga")
    driver.done("a")

    assert driver.wait(4_999) == []
    passed = driver.wait(1)
    late = driver.done("b", "late")

    assert shown(passed) == ["workflow running -> compensating by deadline_passed", "c waiting -> cancelled by stopped"]
    assert driver.state.failure == {
        "kind": "deadline",
        "message": "the deadline passed 5,000 ms after the start; unfinished: b, c",
        "at_ms": driver.now_ms,
    }
    assert undo_all(driver, late) == ["b", "a"]
    assert driver.state.status == "compensated"


def test_the_starts_own_deadline_wins_over_the_definitions() -> None:
    driver = Driver(saga(step("a"), deadline_ms=5_000))
    driver.start("saga", deadline_ms=100)

    assert shown(driver.wait(100)) == ["workflow running -> compensating by deadline_passed"]


def test_the_deadline_has_no_effect_on_a_compensation() -> None:
    driver = Driver(saga(*chain("a", "b", retry=ONCE).steps, deadline_ms=5_000))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")
    before = driver.everything()

    assert driver.wait(10_000) == []
    assert shown(driver.fire(Timer.DEADLINE)) == ["ignored not_waited_for"]
    assert driver.everything() == before
    assert driver.state.due_ms() == NEVER
    assert shown(driver.done("a", undo=True))[-1] == "finished compensated"


def test_a_deadline_timer_of_a_workflow_without_a_deadline_is_ignored() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")

    assert shown(driver.fire(Timer.DEADLINE)) == ["ignored not_waited_for"]


def test_a_refused_attempt_that_an_owner_before_may_have_sent_is_undone() -> None:
    driver = Driver(saga(step("a", service="bank", when_open="fail", compensate={})))
    driver.start("saga")

    refused = driver.refuse("a", "bank", maybe_sent=True)

    assert commands(refused) == ["a/1/compensate"]


def test_a_parked_attempt_that_an_owner_before_may_have_sent_is_undone_when_the_workflow_stops() -> None:
    driver = Driver(saga(step("a", service="bank", compensate={})), round_trip=True)
    driver.start("saga")
    driver.cancel()

    assert commands(driver.refuse("a", "bank", maybe_sent=True)) == ["a/1/compensate"]


# --- where there is no way back


def past_pivot(**more: Any) -> Driver:
    driver = Driver(
        saga(
            step("reserve", compensate={}),
            step("pay", "reserve", pivot=True, compensate={}),
            step("ship", "pay", retry=ONCE),
            **more,
        ),
        round_trip=True,
    )
    driver.start("saga")
    driver.done("reserve")
    return driver


def test_before_its_pivot_a_workflow_is_undone() -> None:
    driver = past_pivot()

    assert commands(driver.fail("pay", FailureKind.TERMINAL)) == ["reserve/1/compensate"]


def test_after_its_pivot_a_failed_step_is_held_and_nothing_is_undone() -> None:
    driver = past_pivot()
    driver.done("pay")

    held = driver.fail("ship")

    assert commands(held) == [] and [case["kind"] for case in reviews(held)] == ["step_failed"]
    assert ignored(driver.decide("ship", Decision.FAIL)) == "not_possible"
    assert ignored(driver.cancel()) == "cannot_be_cancelled"
    assert commands(driver.decide("ship", Decision.RETRY)) == ["ship/2/execute"]
    assert result(driver.done("ship", attempt=2))["status"] == "completed"


def test_after_its_pivot_a_deadline_passes_without_effect_once() -> None:
    driver = past_pivot(deadline_ms=1_000)
    driver.done("pay")

    assert driver.wait(1_000) == []
    assert driver.wait(10_000) == []
    assert result(driver.done("ship"))["status"] == "completed"


def test_a_required_step_that_is_degraded_fails_the_workflow() -> None:
    driver = Driver(
        saga(
            step("a", compensate={}),
            step("b", "a", critical=False, retry=ONCE, default=0),
            step("c", "b"),
            required=("b",),
        )
    )
    driver.start("saga")
    driver.done("a")

    stopped = driver.fail("b", message="down")

    assert "b running -> degraded by given_up" in shown(stopped)
    assert commands(stopped) == ["a/1/compensate"]
    ended = result(driver.done("a", undo=True))
    assert ended["status"] == "compensated"
    assert ended["failure"]["message"] == "'b' is degraded, and it is required: down"


def test_a_required_step_that_delivers_is_no_matter() -> None:
    driver = Driver(saga(step("b", critical=False), required=("b",)))
    driver.start("saga")

    assert result(driver.done("b"))["status"] == "completed"


def test_what_is_required_must_be_a_step() -> None:
    with pytest.raises(InvalidDefinition, match="required: names 'x', which is no step"):
        saga(step("a"), required=("x",))


def test_what_kept_killing_its_host_is_not_tried_again_and_is_undone() -> None:
    driver = Driver(saga(step("a", compensate={})))
    driver.start("saga")

    assert commands(driver.fail("a", FailureKind.UNKNOWN)) == ["a/1/compensate"]


# --- an agent of which nobody knows, and the fallback that stood in for it


def doubted(**more: Any) -> Driver:
    """`a` timed out at its own agent, its fallback did it, and then the workflow stopped."""
    driver = Driver(
        saga(
            step("a", retry=ONCE, fallback={"agent": "other"}, compensate={"retry": ONCE, **more}),
            step("b", "a", retry=ONCE),
        ),
        round_trip=True,
    )
    driver.start("saga")
    driver.fail("a", FailureKind.TIMEOUT)
    driver.done("a", "by other", attempt=2)
    return driver


def test_both_are_asked_to_undo_it_the_fallback_first() -> None:
    driver = doubted()

    first = driver.fail("b")
    second = driver.done("a", undo=True)
    ended = driver.done("a", attempt=2, undo=True)

    assert "send a/1/compensate to other" in shown(first)
    assert "undo a running -> running by dispatched" in shown(second) and "send a/2/compensate" in shown(second)
    assert result(ended)["status"] == "compensated"


def test_what_one_of_them_cannot_undo_is_said_and_the_other_is_asked_all_the_same() -> None:
    driver = doubted()
    driver.fail("b")

    failed = driver.fail("a", undo=True)

    assert commands(failed) == ["a/2/compensate"] and len(dead_letters(failed)) == 1
    ended = result(driver.done("a", attempt=2, undo=True))
    assert ended["status"] == "compensation_failed"
    assert ended["steps"][0]["undo"]["status"] == "failed"


def test_an_agent_that_the_definition_names_undoes_for_both() -> None:
    driver = doubted(agent="undoer")

    assert "send a/1/compensate to undoer" in shown(driver.fail("b"))
    assert result(driver.done("a", undo=True))["status"] == "compensated"


def test_in_a_pause_the_second_one_waits() -> None:
    driver = doubted()
    driver.fail("b")
    driver.act(Action.PAUSE)

    assert commands(driver.done("a", undo=True)) == []
    assert driver.wait(60_000) == []
    assert commands(driver.act(Action.RESUME)) == ["a/2/compensate"]


def test_a_held_undoing_of_the_first_leads_to_the_second() -> None:
    driver = doubted(when_failed="review")
    driver.fail("b")
    driver.fail("a", undo=True)
    driver.act(Action.PAUSE)
    assert ignored(driver.decide("a", Decision.SKIP, undo=True)) == "not_possible"
    driver.act(Action.RESUME)

    assert commands(driver.decide("a", Decision.SKIP, undo=True)) == ["a/2/compensate"]
    assert result(driver.done("a", attempt=2, undo=True))["status"] == "compensated"


def test_after_a_constant_stood_in_the_agent_of_which_nobody_knows_is_asked() -> None:
    driver = Driver(
        saga(step("a", retry=ONCE, fallback={"value": 0}, compensate={}), step("b", "a", retry=ONCE)), round_trip=True
    )
    driver.start("saga")
    driver.lose("a")

    assert "send a/1/compensate" in shown(driver.fail("b"))
