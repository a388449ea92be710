"""A running workflow goes back to a step: what is affected, what is undone, what goes on, and what stops it in the middle."""

from __future__ import annotations

from typing import Any

from sagalog.schemas.definitions import Child, Definition, Step, from_input, from_item
from sagalog.schemas.events import Action, Decision, FailureKind, Outcome, Timer
from sagalog.schemas.limits import REWINDS_MAX
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

from .driver import WORKFLOW, Driver, chain, command, commands, ignored, result, saga, shown, step, waiting

ONCE = {"attempts": 1}
UNDO = {"retry": ONCE}


def to_the_middle(**more: Any) -> Driver:
    """Three steps one after the other, of which the first two are done."""
    driver = Driver(chain("a", "b", "c", retry=ONCE, **more), round_trip=True)
    driver.start("saga", "in")
    driver.done("a", "out-a")
    driver.done("b", "out-b")
    return driver


# --- with undoing


def test_what_is_affected_is_drained_undone_in_reverse_order_and_done_anew() -> None:
    driver = to_the_middle()

    assert shown(driver.rewind("b", undo=True)) == ["workflow running -> rewinding by rewind_requested"]
    assert shown(driver.done("c", "out-c")) == [
        "answered c/1/execute",
        "called c ok",
        "c running -> done by completed",
        "undo c pending -> running by dispatched",
        "send c/1/compensate",
    ]
    assert shown(driver.done("c", undo=True))[2:] == [
        "undo c running -> done by completed",
        "undo b pending -> running by dispatched",
        "send b/1/compensate",
    ]
    assert shown(driver.done("b", undo=True)) == [
        "answered b/1/compensate",
        "called b ok",
        "undo b running -> done by completed",
        "b done -> waiting by rewound",
        "c done -> waiting by rewound",
        "workflow rewinding -> running by rewound",
        "b waiting -> running by dispatched",
        "send b/2/execute",
    ]
    assert driver.state.steps[0].output == "out-a"
    assert driver.state.rewinds == [
        {"step": "b", "undo": True, "who": "tester", "reason": "because", "at_ms": driver.now_ms}
    ]


def test_undone_a_step_is_done_anew_under_a_new_key_and_undone_again_under_that() -> None:
    driver = to_the_middle()
    driver.rewind("c", undo=True)
    assert command(driver.done("c", "out-c")).idempotency_key == "wf-1/c"

    sent = command(driver.done("c", undo=True))
    assert (sent.command_id, sent.idempotency_key) == ("wf-1/c/2/execute", "wf-1/c#1")
    sent = command(driver.fail("c", FailureKind.TIMEOUT, attempt=2))
    assert (sent.command_id, sent.idempotency_key) == ("wf-1/c/2/compensate", "wf-1/c#1")


def test_attempts_and_fallbacks_begin_anew() -> None:
    driver = Driver(saga(step("a", retry=ONCE, fallback={"agent": "other"}, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.fail("a")
    driver.rewind("a", undo=True)
    assert shown(driver.done("a", "by other", attempt=2))[-1] == "send a/1/compensate to other"
    assert shown(driver.done("a", undo=True))[-2:] == ["a waiting -> running by dispatched", "send a/3/execute"]

    assert shown(driver.fail("a", attempt=3))[-1] == "send a/4/execute to other"
    record = result(driver.done("a", "by other again", attempt=4))
    assert (record["status"], record["steps"][0]["attempt"], record["rewinds"][0]["step"]) == ("degraded", 4, "a")


def test_a_step_that_did_nothing_has_nothing_undone() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 3}, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.fail("a")

    assert shown(driver.rewind("a", undo=True)) == [
        "workflow running -> rewinding by rewind_requested",
        "a backing_off -> cancelled by stopped",
        "a cancelled -> waiting by rewound",
        "workflow rewinding -> running by rewound",
        "a waiting -> running by dispatched",
        "send a/2/execute",
    ]
    assert driver.state.steps[0].failures == []


def test_a_failed_attempt_is_not_tried_again_while_the_workflow_is_rewound() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 3}, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.rewind("a", undo=True)

    assert shown(driver.fail("a", FailureKind.TIMEOUT))[2:] == [
        "a running -> cancelled by stopped",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]


def test_what_was_undone_once_is_not_undone_again() -> None:
    driver = Driver(saga(step("a", retry=ONCE, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.rewind("a", undo=True)
    driver.fail("a", FailureKind.TIMEOUT)
    assert commands(driver.done("a", undo=True)) == ["a/2/execute"]

    assert result(driver.fail("a", FailureKind.TERMINAL, attempt=2))["status"] == "failed"


def test_after_a_rewinding_the_ledger_counts_from_one_again() -> None:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.rewind("a", undo=True)
    driver.done("b")
    driver.done("b", undo=True)
    driver.done("a", undo=True)
    driver.done("a", attempt=2)
    driver.fail("b", attempt=2)

    record = result(driver.done("a", attempt=2, undo=True))
    assert [(s.get("order"), s["undo"].get("order")) for s in record["steps"]] == [(1, 1), (2, None)]


def test_a_refused_attempt_is_not_tried_again_either() -> None:
    definition = saga(step("a", service="bank", when_open="fail", retry=ONCE), services={"bank": {}})
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    driver.rewind("a")

    assert shown(driver.refuse("a", "bank"))[1:] == [
        "a running -> cancelled by stopped",
        "a cancelled -> waiting by rewound",
        "workflow rewinding -> running by rewound",
        "a waiting -> running by dispatched",
        "send a/2/execute",
    ]


def test_a_skipped_step_is_asked_again_whether_it_is_needed() -> None:
    driver = Driver(saga(step("a"), step("b", "a", when="steps.a.n > 1"), step("c", "b")), round_trip=True)
    driver.start("saga")
    driver.done("a", {"n": 1})
    driver.rewind("a")
    driver.done("c")

    assert shown(driver.done("a", {"n": 2}, attempt=2))[3:] == [
        "b waiting -> running by dispatched",
        "send b/1/execute",
    ]


# --- without undoing


def test_not_undone_a_step_keeps_its_key_and_what_it_did_is_undone_once() -> None:
    driver = to_the_middle()
    driver.rewind("b")
    sent = command(driver.done("c", "out-c"))
    assert (sent.command_id, sent.idempotency_key) == ("wf-1/b/2/execute", "wf-1/b")

    # `c` did not come to its second run: what it did in its first is undone all the same, before what it needs.
    sent = command(driver.fail("b", FailureKind.TERMINAL, attempt=2))
    assert (sent.command_id, sent.idempotency_key) == ("wf-1/c/1/compensate", "wf-1/c")
    assert commands(driver.done("c", undo=True)) == ["b/1/compensate"]
    assert commands(driver.done("b", undo=True)) == ["a/1/compensate"]
    assert result(driver.done("a", undo=True))["status"] == "compensated"


def test_whoever_did_it_before_is_asked_to_undo_it_too() -> None:
    first = step("a", retry=ONCE, fallback={"agent": "other"}, compensate=UNDO)
    driver = Driver(saga(first, step("b", "a", retry=ONCE), step("c", "b")), round_trip=True)
    driver.start("saga")
    driver.fail("a")
    driver.done("a", attempt=2)
    driver.rewind("a")
    assert commands(driver.done("b")) == ["a/3/execute"]
    driver.done("a", attempt=3)

    assert shown(driver.fail("b", attempt=2))[-1] == "send a/1/compensate"
    assert shown(driver.done("a", undo=True))[-1] == "send a/2/compensate to other"
    assert result(driver.done("a", attempt=2, undo=True))["status"] == "compensated"


def test_what_was_left_behind_is_undone_before_what_it_needs_also_when_that_is_still_out() -> None:
    driver = to_the_middle()
    driver.rewind("b")
    driver.done("c")
    assert shown(driver.cancel())[-1] == "c waiting -> cancelled by stopped"
    assert commands(driver.done("b", attempt=2)) == ["c/1/compensate"]

    driver = to_the_middle()
    driver.rewind("b")
    driver.done("c")
    driver.rewind("b", undo=True)
    assert commands(driver.done("b", attempt=2)) == ["c/1/compensate"]
    assert commands(driver.done("c", undo=True)) == ["b/1/compensate"]
    assert commands(driver.done("b", undo=True)) == ["b/3/execute"]


def test_a_degraded_step_gets_another_chance() -> None:
    driver = Driver(saga(step("a", critical=False, retry=ONCE), step("b", "a")), round_trip=True)
    driver.start("saga")
    driver.fail("a")
    driver.rewind("a", dead_letter="wf-1/a/1/execute")
    driver.done("b")
    driver.done("a", "better", attempt=2)

    record = result(driver.done("b", attempt=2))
    assert (record["status"], record["missing"], record["completeness"]) == ("completed", [], 1.0)
    assert record["rewinds"][0]["dead_letter"] == "wf-1/a/1/execute"


# --- what is not affected


def test_what_is_not_affected_goes_on_and_nothing_new_begins_meanwhile() -> None:
    x = step("x", retry={"attempts": 2, "base_ms": 100})
    driver = Driver(saga(step("a", retry=ONCE), step("b", "a"), x, step("y", "x")), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.rewind("a")
    driver.fail("x")
    assert commands(driver.wait(1_000)) == ["x/2/execute"]
    assert commands(driver.done("x", attempt=2)) == []

    assert commands(driver.done("b")) == ["a/2/execute", "y/1/execute"]


def test_a_step_that_is_not_affected_and_fails_stops_the_workflow() -> None:
    driver = Driver(saga(step("a", compensate=UNDO), step("b", "a"), step("x", retry=ONCE)), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.rewind("a", undo=True)

    assert "workflow rewinding -> compensating by step_failed" in shown(driver.fail("x"))
    assert commands(driver.done("b")) == ["a/1/compensate"]
    assert result(driver.done("a", undo=True))["status"] == "compensated"


def test_signals_and_decisions_of_what_is_not_affected_count() -> None:
    definition = saga(
        step("a"),
        step("b", "a"),
        waiting("go", wait_for={"signal": "go", "timeout_ms": 9_000}),
        step("h", retry=ONCE, when_failed="review"),
    )
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.fail("h")
    driver.rewind("a")

    assert shown(driver.signal("go")) == ["go awaiting -> done by signalled"]
    assert shown(driver.decide("h", Decision.RETRY))[1:] == ["h held -> waiting by retried"]
    assert commands(driver.done("b")) == ["a/2/execute", "h/2/execute"]


# --- waits, held steps, items


def test_a_held_step_a_sleep_and_a_task_are_taken_back_and_their_reviews_closed() -> None:
    definition = saga(
        step("a"),
        step("b", "a", retry=ONCE, when_failed="review"),
        waiting("nap", "a", sleep={"ms": 500}),
        waiting("look", "a", task={"title": "look", "timeout_ms": 9_000}),
    )
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.fail("b")

    assert shown(driver.rewind("a"))[1:] == [
        "review b/step_failed closed: moot",
        "b held -> cancelled by stopped",
        "nap awaiting -> cancelled by stopped",
        "review look/task closed: moot",
        "look awaiting -> cancelled by stopped",
        "a done -> waiting by rewound",
        "b cancelled -> waiting by rewound",
        "nap cancelled -> waiting by rewound",
        "look cancelled -> waiting by rewound",
        "workflow rewinding -> running by rewound",
        "a waiting -> running by dispatched",
        "send a/2/execute",
    ]
    driver.done("a", attempt=2)
    assert ignored(driver.fire(Timer.WAKE, "nap", 1)) == "not_waited_for"
    assert [(s.status, s.attempt) for s in driver.state.steps[2:]] == [
        (StepStatus.AWAITING, 2),
        (StepStatus.AWAITING, 2),
    ]


def test_items_are_drained_undone_and_made_anew_with_numbers_that_go_on() -> None:
    each = {"over": from_input("l"), "concurrency": 2}
    mapped = step("each", map=each, input=from_item("n"), retry={"attempts": 2, "base_ms": 100}, compensate=UNDO)
    driver = Driver(saga(mapped, budget={"attempts": 9}), round_trip=True)
    driver.start("saga", {"l": [{"n": 1}, {"n": 2}, {"n": 3}]})
    driver.fail("each[0]", tokens=5)
    assert shown(driver.rewind("each", undo=True))[1:] == [
        "each[0] backing_off -> cancelled by stopped",
        "each[2] waiting -> cancelled by stopped",
    ]
    assert shown(driver.done("each[1]", 2, tokens=7))[-3:] == [
        "each running -> cancelled by stopped",
        "undo each[1] pending -> running by dispatched",
        "send each[1]/1/compensate to each",
    ]
    effects = driver.done("each[1]", undo=True)
    assert commands(effects) == ["each[0]/2/execute", "each[1]/2/execute"]
    keys = [effect.command.idempotency_key for effect in effects if hasattr(effect, "command")]
    assert keys == ["wf-1/each[0]#1", "wf-1/each[1]#1"]

    driver.done("each[0]", 1, attempt=2, tokens=1)
    driver.done("each[1]", 2, attempt=2, tokens=1)
    record = result(driver.done("each[2]", 3, attempt=2, tokens=1))
    assert record["output"] == {"each": [1, 2, 3]}
    assert record["usage"] == {"attempts": 5, "tokens": 15, "cost": 0}


def test_rounds_are_made_anew() -> None:
    repeat = {"until": "steps.poll.ready", "rounds_max": 3, "delay_ms": 500}
    driver = Driver(saga(step("poll", repeat=repeat, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.done("poll[0]", {"ready": False})
    assert commands(driver.rewind("poll", undo=True)) == ["poll[0]/1/compensate"]
    assert commands(driver.done("poll[0]", undo=True)) == ["poll[0]/2/execute"]
    driver.done("poll[0]", {"ready": False}, attempt=2)
    driver.now_ms += 500
    assert ignored(driver.fire(Timer.RETRY, "poll[1]", 0)) == "not_waited_for"
    assert commands(driver.wait(0)) == ["poll[1]/2/execute"]


def test_a_budget_counts_what_was_used_before() -> None:
    definition = saga(step("a", budget={"attempts": 2}, retry=ONCE, critical=False), step("b", "a"))
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    driver.done("a", 1)
    driver.rewind("a")
    driver.done("b")
    driver.done("a", 2, attempt=2)
    driver.rewind("a")

    assert "a waiting -> degraded by given_up" in shown(driver.done("b", attempt=2))


def test_payloads_that_are_dropped_make_room() -> None:
    driver = to_the_middle()
    before = driver.state.bytes
    driver.rewind("b")
    driver.done("c", "c" * 10_000)

    assert before - 100 < driver.state.bytes < before + 300


# --- what cannot be


def test_what_cannot_be_rewound_is_said_and_changes_nothing() -> None:
    definition = saga(
        step("a"),
        step("p", "a", pivot=True, compensate=UNDO),
        step("m", map={"over": {"value": [1]}}, compensate=UNDO),
        step("z", "p"),
        step("later", "z"),
    )
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    assert ignored(driver.rewind("nope")) == "unknown_step"
    assert ignored(driver.rewind("later")) == "not_possible"  # it has not begun
    assert ignored(driver.rewind("m")) == "not_possible"  # its items can only be undone
    driver.done("a")
    assert ignored(driver.rewind("a", undo=True)) == "not_possible"  # the pivot is out: it may end well
    driver.done("p")
    before = driver.everything()
    assert ignored(driver.rewind("a", undo=True)) == "not_possible"
    assert driver.everything() == before
    driver.rewind("p")
    assert ignored(driver.rewind("m", undo=True)) == "not_possible"  # one at a time


def test_only_so_often() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 3})), round_trip=True)
    driver.start("saga")
    for number in range(REWINDS_MAX):
        driver.fail("a", attempt=number + 1)
        driver.rewind("a")
    driver.fail("a", attempt=REWINDS_MAX + 1)

    assert ignored(driver.rewind("a")) == "not_possible"


def test_past_a_pivot_that_was_taken_back_the_workflow_still_only_goes_forward() -> None:
    driver = Driver(saga(step("p", pivot=True, compensate=UNDO, retry=ONCE), step("z", "p")), round_trip=True)
    driver.start("saga")
    driver.done("p")
    driver.rewind("p")
    driver.done("z")

    assert ignored(driver.cancel()) == "cannot_be_cancelled"
    assert shown(driver.fail("p", attempt=2))[-2:] == ["p running -> held by held", "review p/step_failed"]
    assert ignored(driver.rewind("p", undo=True)) == "not_possible"


# --- in the middle of it


def test_cancelled_in_the_middle_the_compensation_goes_on_where_the_rewinding_was() -> None:
    driver = to_the_middle()
    driver.rewind("b", undo=True)
    driver.done("c")
    assert shown(driver.cancel()) == ["workflow rewinding -> compensating by cancelled"]
    assert not driver.state.rewinding
    assert commands(driver.done("c", undo=True)) == ["b/1/compensate"]
    assert commands(driver.done("b", undo=True)) == ["a/1/compensate"]

    record = result(driver.done("a", undo=True))
    assert record["status"] == "cancelled"
    assert [s["undo"]["order"] for s in record["steps"]] == [3, 2, 1]


def test_the_deadline_counts_in_the_middle_too() -> None:
    driver = Driver(saga(step("a", compensate=UNDO), deadline_ms=5_000), round_trip=True)
    driver.start("saga")
    driver.rewind("a")

    assert "workflow rewinding -> compensating by deadline_passed" in shown(driver.wait(5_000))


def test_paused_in_the_middle_nothing_begins() -> None:
    driver = to_the_middle()
    driver.rewind("b", undo=True)
    driver.act(Action.PAUSE)
    assert shown(driver.done("c"))[2:] == ["c running -> done by completed"]
    assert commands(driver.act(Action.RESUME)) == ["c/1/compensate"]
    driver.act(Action.PAUSE)
    assert commands(driver.done("c", undo=True)) == []
    assert commands(driver.act(Action.RESUME)) == ["b/1/compensate"]


def test_rewound_while_it_is_paused_it_goes_back_once_it_is_resumed() -> None:
    driver = to_the_middle()
    driver.act(Action.PAUSE)
    assert shown(driver.rewind("b")) == ["workflow running -> rewinding by rewind_requested"]
    assert commands(driver.done("c")) == []
    assert commands(driver.act(Action.RESUME)) == ["b/2/execute"]


def test_quarantined_in_the_middle_it_goes_on_once_it_is_resumed() -> None:
    driver = to_the_middle()
    driver.rewind("b", undo=True)
    driver.done("c")
    driver.stop()
    assert driver.state.status is WorkflowStatus.QUARANTINED
    assert shown(driver.act(Action.RESUME)) == [
        "workflow quarantined -> rewinding by resumed_rewinding",
        "review -/quarantined closed: resume",
        "answered c/1/compensate",
        "send c/1/compensate",
    ]
    driver.done("c", undo=True)
    assert commands(driver.done("b", undo=True)) == ["b/2/execute"]


def test_terminated_in_the_middle() -> None:
    driver = to_the_middle()
    driver.rewind("b", undo=True)

    assert result(driver.act(Action.TERMINATE))["status"] == "terminated"


def test_asked_twice_it_goes_back_once() -> None:
    driver = to_the_middle()
    driver.rewind("b")
    driver.done("c")
    record = driver.log[-2]

    assert ignored(driver.append_raw(record.key, record.value, record.ce_type, record.ce_id)) == "duplicate"


# --- an undoing that fails


def test_an_undoing_that_fails_stops_the_workflow_once_the_rest_is_undone() -> None:
    driver = Driver(
        saga(*(step(n, *needs, compensate=UNDO) for n, *needs in ("a", ("b", "a"), ("c", "b")))), round_trip=True
    )
    driver.start("saga")
    driver.done("a")
    driver.done("b")
    driver.rewind("b", undo=True)
    driver.done("c")
    assert shown(driver.fail("c", FailureKind.TERMINAL, undo=True))[2:] == [
        "dead letter c/1/compensate",
        "review c/compensation_failed",
        "undo c running -> failed by given_up",
        "undo b pending -> running by dispatched",
        "send b/1/compensate",
    ]
    assert shown(driver.done("b", undo=True))[3:] == [
        "workflow rewinding -> compensating by step_failed",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]
    record = result(driver.done("a", undo=True))
    assert (record["status"], record["failure"]["message"]) == (
        "compensation_failed",
        "the workflow cannot be rewound: step 'c' could not be undone",
    )


def test_an_undoing_is_tried_again_and_held_for_an_operator() -> None:
    undo = {"retry": {"attempts": 2, "base_ms": 100}, "when_failed": "review"}
    driver = Driver(saga(step("a", compensate=undo)), round_trip=True)
    driver.start("saga")
    driver.rewind("a", undo=True)
    driver.done("a")
    driver.fail("a", undo=True)
    assert driver.now_ms < driver.state.due_ms() <= driver.now_ms + 100
    assert commands(driver.wait(1_000)) == ["a/2/compensate"]
    assert shown(driver.fail("a", attempt=2, undo=True))[2:] == [
        "review a/undo_failed",
        "undo a running -> held by held",
    ]
    assert commands(driver.decide("a", Decision.COMPLETE, undo=True)) == ["a/2/execute"]

    # The numbers of its undoings go on as well.
    assert commands(driver.rewind("a", undo=True)) == []
    assert commands(driver.done("a", attempt=2)) == ["a/3/compensate"]


def test_past_a_pivot_an_undoing_that_fails_is_held_in_any_case() -> None:
    definition = saga(step("p", pivot=True), step("a", "p", compensate=UNDO), step("b", "a"))
    driver = Driver(definition, round_trip=True)
    driver.start("saga")
    driver.done("p")
    driver.done("a")
    driver.rewind("a", undo=True)
    driver.done("b")
    assert shown(driver.fail("a", FailureKind.TERMINAL, undo=True))[-1] == "undo a running -> held by held"

    assert ignored(driver.decide("a", Decision.FAIL, undo=True)) == "not_possible"
    assert commands(driver.decide("a", Decision.SKIP, undo=True)) == ["a/2/execute"]


# --- with what else a step may be done by


SHIP = saga(step("pick", compensate={}), name="ship")


def with_child() -> Driver:
    """A workflow whose first step a child has done, and whose second is out."""
    child = Child(definition="ship", timeout_ms=60_000)
    driver = Driver(
        SHIP,
        Definition(name="order", steps=(Step(name="sent", workflow=child), step("thank", "sent"))),
        round_trip=True,
    )
    driver.start("order")
    driver.deliver()
    driver.answer(f"{WORKFLOW}/sent.1", "pick")
    driver.deliver()
    return driver


def test_a_child_of_an_affected_step_is_undone_let_go_and_followed_by_another_one() -> None:
    driver = with_child()
    driver.rewind("sent", undo=True)
    driver.done("thank")
    assert shown(driver.deliver())[0] == "workflow completed -> compensating by undo_requested"
    driver.answer(f"{WORKFLOW}/sent.1", "pick", undo=True)
    driver.deliver()

    first, second = (driver.partition.get(f"{WORKFLOW}/sent.{number}") for number in (1, 2))
    assert first is not None and (first.status, first.report, first.steps) == ("cancelled", None, [])
    assert second is not None and second.status == "running"
    assert driver.state.status == "running"


def test_a_child_that_runs_is_cancelled() -> None:
    child = Child(definition="ship", timeout_ms=60_000)
    driver = Driver(SHIP, Definition(name="order", steps=(Step(name="sent", workflow=child),)), round_trip=True)
    driver.start("order")
    driver.deliver()
    assert f"emit CancelRequested to {WORKFLOW}/sent.1" in shown(driver.rewind("sent", undo=True))


def test_without_undoing_a_step_that_a_child_has_begun_stays() -> None:
    assert ignored(with_child().rewind("sent")) == "not_possible"


def test_a_rewinding_waits_for_the_answer_whether_an_attempt_happened() -> None:
    driver = Driver(saga(step("a", reconcile={}, compensate={}), step("b", "a")), round_trip=True)
    driver.start("saga")
    driver.lose("a")
    driver.rewind("a", undo=True)
    assert driver.state.status == "rewinding"

    assert commands(driver.say("a", Outcome.HAPPENED, "out")) == ["a/1/compensate"]
    again = command(driver.done("a", undo=True))
    assert (again.command_id, again.idempotency_key) == (f"{WORKFLOW}/a/2/execute", f"{WORKFLOW}/a#1")


def test_questions_about_items_that_are_made_anew_have_numbers_of_their_own() -> None:
    each = step("each", map={"over": from_input("l")}, input=from_item(), reconcile={}, compensate={})
    driver = Driver(saga(each, step("end", "each")), round_trip=True)
    driver.start("saga", {"l": [1]})
    driver.lose("each[0]")
    driver.rewind("each", undo=True)
    driver.say("each[0]", Outcome.DID_NOT_HAPPEN)

    assert commands(driver.lose("each[0]", 2)) == ["each[0]/2/reconcile"]


def test_a_paused_rewinding_asks_nothing_until_it_is_resumed() -> None:
    driver = Driver(saga(step("a", reconcile={}, compensate={})), round_trip=True)
    driver.start("saga")
    driver.act(Action.PAUSE)
    driver.lose("a")

    assert commands(driver.rewind("a", undo=True)) == []
    assert commands(driver.act(Action.RESUME)) == ["a/1/reconcile"]
