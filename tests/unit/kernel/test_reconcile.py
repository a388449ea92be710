"""Before a step whose attempt has an unknown outcome is tried again or undone, its agent is asked whether it happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagalog.engine.kernel.effects import Effect
from sagalog.engine.kernel.state import NEVER
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Question
from sagalog.schemas.definitions import Definition, WhenOpen
from sagalog.schemas.events import Action, Decision, FailureKind, Outcome, StepCompleted, StepDecided, Timer
from sagalog.schemas.ids import Direction

from .driver import Driver, command, commands, dead_letters, dispatched, ignored, result, saga, shown, step

HAPPENED, DID_NOT_HAPPEN = Outcome.HAPPENED, Outcome.DID_NOT_HAPPEN
ONCE = {"attempts": 1}
TWICE = {"attempts": 2, "base_ms": 100, "cap_ms": 1_000}


def asked(*, a: dict[str, object] | None = None, **more: object) -> Driver:
    """`a` was lost, and its agent is being asked; `b` needs it."""
    driver = begun(a=a, **more)
    driver.lose("a")
    return driver


def begun(*, a: dict[str, object] | None = None, **more: object) -> Driver:
    first = step("a", **{"reconcile": {"retry": TWICE}, "retry": TWICE, "compensate": {}, **(a or {})})
    driver = Driver(saga(first, step("b", "a", retry=ONCE), **more), round_trip=True)
    driver.start("saga", {"x": 1})
    return driver


# --- when it is asked


@pytest.mark.parametrize(
    ("ends", "called"),
    [
        (lambda d: d.lose("a"), "called a failed"),
        (lambda d: d.fail("a", FailureKind.TIMEOUT), "called a failed"),
        (lambda d: d.fail("a", FailureKind.UNKNOWN), "called a failed"),
    ],
)
def test_an_attempt_with_an_unknown_outcome_is_asked_about(ends: Callable[[Driver], list[Effect]], called: str) -> None:
    driver = begun()
    effects = ends(driver)

    assert shown(effects) == [
        "answered a/1/execute",
        called,
        "a running -> reconciling by outcome_unknown",
        "send a/1/reconcile",
    ]


@pytest.mark.parametrize(
    "kind", sorted(set(FailureKind) - {FailureKind.LOST, FailureKind.TIMEOUT, FailureKind.UNKNOWN})
)
def test_any_other_failure_asks_nothing(kind: FailureKind) -> None:
    driver = begun()

    assert not [line for line in shown(driver.fail("a", kind)) if "reconcil" in line]


def test_without_reconcile_nothing_is_asked() -> None:
    driver = Driver(saga(step("a", retry=TWICE)))
    driver.start("saga")

    assert "a running -> backing_off by failed" in shown(driver.lose("a"))


def test_what_is_asked() -> None:
    times = {"heartbeat_timeout_ms": 700, "start_timeout_ms": 5_000, "reconcile": {"timeout_ms": 400}}
    driver = begun(a={"service": "bank", **times}, deadline_ms=60_000)
    effect = dispatched(driver.lose("a"))

    assert effect.command == Question(
        command_id="wf-1/a/1/reconcile",
        workflow_id="wf-1",
        definition=driver.state.definition,
        step="a",
        agent="a",
        attempt=1,
        direction=Direction.RECONCILE,
        token=driver.token("a", 1, Direction.RECONCILE),
        idempotency_key="wf-1/a",
        input={"x": 1},
        timeout_ms=400,
        heartbeat_timeout_ms=700,
        service="bank",
        about=1,
    )
    assert (effect.when_open, effect.patience_ms) == (WhenOpen.PARK, 5_400)
    assert driver.state.watch_ms(driver.partition.plans[driver.state.definition]) == 5_400


def test_questions_are_counted_over_all_attempts() -> None:
    driver = asked()
    driver.say_nothing("a")
    driver.wait(1_000)
    driver.say("a", DID_NOT_HAPPEN, question=2)
    driver.wait(1_000)

    question = command(driver.lose("a", 2))

    assert isinstance(question, Question)
    assert (question.command_id, question.attempt, question.about) == ("wf-1/a/3/reconcile", 3, 2)


# --- the answers


def test_it_happened() -> None:
    driver = asked()
    effects = driver.say("a", HAPPENED, {"y": 2})

    assert shown(effects) == [
        "answered a/1/reconcile",
        "called a ok",
        "a reconciling -> done by completed",
        "b waiting -> running by dispatched",
        "send b/1/execute",
    ]
    found = result(driver.done("b"))["steps"][0]
    assert (found["output"], found["attempt"], found["questions"]) == ({"y": 2}, 1, 1)
    assert (found["failed_attempts"], found["failures"][0]["outcome"]) == (0, "happened")
    assert "unknown" not in found and "question" not in found


def test_it_did_not_happen_and_is_tried_again() -> None:
    driver = asked()
    effects = driver.say("a", DID_NOT_HAPPEN)

    assert shown(effects) == ["answered a/1/reconcile", "called a ok", "a reconciling -> backing_off by failed"]
    assert commands(driver.wait(1_000)) == ["a/2/execute"]
    assert driver.state.steps[0].failures[0]["outcome"] == "did_not_happen"


def test_what_did_not_happen_is_not_undone() -> None:
    driver = asked(a={"retry": ONCE})
    effects = driver.say("a", DID_NOT_HAPPEN)

    assert shown(effects)[2:] == [
        "dead letter a/1/execute",
        "a reconciling -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "b waiting -> cancelled by stopped",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]


def test_a_command_that_kills_its_host_is_not_tried_again_even_if_it_did_not_happen() -> None:
    driver = begun()
    driver.fail("a", FailureKind.UNKNOWN)

    assert "a reconciling -> failed by given_up" in shown(driver.say("a", DID_NOT_HAPPEN))


def test_the_answer_of_a_fallback_agent_is_a_stand_in() -> None:
    driver = begun(a={"retry": ONCE, "fallback": {"agent": "other"}, "service": "bank"})
    driver.fail("a", FailureKind.TERMINAL)
    question = command(driver.lose("a", 2))

    assert (question.agent, question.service) == ("other", None)
    assert "a reconciling -> degraded by completed" in shown(driver.say("a", HAPPENED, 1))
    assert driver.state.steps[0].stand_in == "fallback:other"


def test_what_did_not_happen_goes_to_the_fallback_agent_which_alone_undoes() -> None:
    driver = begun(a={"retry": ONCE, "fallback": {"agent": "other"}})
    driver.lose("a")

    assert shown(driver.say("a", DID_NOT_HAPPEN))[2:] == [
        "a reconciling -> running by dispatched",
        "send a/2/execute to other",
    ]
    driver.done("a", attempt=2)
    assert shown(driver.fail("b"))[-1] == "send a/1/compensate to other"
    assert "finished compensated" in shown(driver.done("a", undo=True))


def test_an_output_that_breaks_the_contract_is_an_invalid_output() -> None:
    driver = asked(a={"output_schema": {"type": "integer"}})
    driver.say_nothing("a")
    driver.wait(100)
    effects = driver.say("a", HAPPENED, "text", question=2)

    assert shown(effects) == ["answered a/2/reconcile", "called a ok", "a reconciling -> backing_off by failed"]
    found = driver.state.steps[0]
    assert [(failure["kind"], failure["attempt"]) for failure in found.failures] == [("lost", 1), ("invalid_output", 1)]
    assert (found.unknown, found.suspects, found.failed_attempts) == (True, ["a"], 1)


def test_an_optional_step_whose_attempt_did_not_happen_is_degraded() -> None:
    driver = asked(a={"retry": ONCE, "critical": False, "default": 0})

    assert "a reconciling -> degraded by given_up" in shown(driver.say("a", DID_NOT_HAPPEN))


def test_a_step_is_held_once_it_is_clear_that_it_did_not_happen() -> None:
    driver = asked(a={"retry": ONCE, "when_failed": "review"})

    assert "a reconciling -> held by held" in shown(driver.say("a", DID_NOT_HAPPEN))
    assert commands(driver.decide("a", Decision.RETRY)) == ["a/2/execute"]


def test_an_answer_that_does_not_say_counts_as_none() -> None:
    driver = asked()

    assert shown(driver.say("a", None, "out")) == ["answered a/1/reconcile", "called a failed"]
    assert commands(driver.wait(1_000)) == ["a/2/reconcile"]


# --- no answer


@pytest.mark.parametrize(
    "fails",
    [
        lambda d, n: d.say_nothing("a", question=n),
        lambda d, n: d.say_nothing("a", FailureKind.TIMEOUT, question=n),
        lambda d, n: d.lose_question("a", n),
    ],
)
def test_a_question_that_fails_is_asked_again_and_in_the_end_the_outcome_stays_unknown(
    fails: Callable[[Driver, int], list[Effect]],
) -> None:
    driver = asked(a={"retry": ONCE})

    assert shown(fails(driver, 1)) == ["answered a/1/reconcile", "called a failed"]
    assert driver.state.due_ms() <= driver.now_ms + 100
    assert shown(driver.wait(100)) == ["send a/2/reconcile"]
    assert shown(fails(driver, 2)) == [
        "answered a/2/reconcile",
        "called a failed",
        "dead letter a/2/reconcile",
        "dead letter a/1/execute",
        "a reconciling -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "b waiting -> cancelled by stopped",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]


def test_the_dead_letter_of_a_question_has_its_failures() -> None:
    driver = asked(a={"reconcile": {"retry": ONCE}})
    (letter,) = dead_letters(driver.say_nothing("a", error_type="Deaf"))

    assert (letter["direction"], letter["agent"], letter["input"], letter["failed_attempts"]) == (
        "reconcile", "a", {"x": 1}, 1,
    )  # fmt: skip
    assert [(found["kind"], found["error_type"]) for found in letter["failures"]] == [("retryable", "Deaf")]
    assert driver.state.steps[0].suspects == ["a"]


@pytest.mark.parametrize("kind", [FailureKind.TERMINAL, FailureKind.UNKNOWN, FailureKind.INVALID_INPUT])
def test_a_question_that_makes_no_sense_to_ask_again_is_given_up_at_once(kind: FailureKind) -> None:
    driver = asked()

    assert "dead letter a/1/reconcile" in shown(driver.say_nothing("a", kind))
    assert driver.state.steps[0].unknown


def test_a_question_of_a_terminal_error_type_is_given_up_at_once() -> None:
    driver = asked(a={"reconcile": {"retry": {"attempts": 5, "terminal": ["Deaf"]}}})

    assert "dead letter a/1/reconcile" in shown(driver.say_nothing("a", error_type="Deaf"))


def test_a_question_that_could_not_be_sent_counts_against_nobody() -> None:
    driver = asked()

    assert shown(driver.lose_question("a", kind=FailureKind.INVALID_INPUT)) == [
        "answered a/1/reconcile",
        "dead letter a/1/reconcile",
        "a reconciling -> backing_off by failed",
    ]


def test_no_question_begins_later_than_total_ms_after_the_failure() -> None:
    driver = asked(a={"reconcile": {"retry": {"attempts": 9, "base_ms": 400, "factor": 1, "total_ms": 500}}})
    driver.say_nothing("a", retry_after_ms=400)
    driver.wait(400)

    assert "dead letter a/2/reconcile" in shown(driver.say_nothing("a", question=2, retry_after_ms=400))


def test_the_agent_s_retry_after_holds_once_it_is_clear_that_it_did_not_happen() -> None:
    driver = begun()
    driver.fail("a", FailureKind.TIMEOUT, retry_after_ms=900)
    driver.say("a", DID_NOT_HAPPEN)

    assert driver.state.due_ms() == driver.now_ms + 900


def test_what_is_marked_as_asked_about_is_counted_in_the_state() -> None:
    driver = asked()
    driver.say("a", DID_NOT_HAPPEN)

    (failure,) = driver.state.steps[0].failures
    assert driver.state.bytes == driver.log[2].size + len(encode(failure))


def test_each_attempt_has_all_its_questions() -> None:
    driver = asked()
    driver.say_nothing("a")
    driver.wait(100)
    driver.say("a", DID_NOT_HAPPEN, question=2)
    driver.wait(1_000)
    driver.lose("a", 2)

    assert shown(driver.say_nothing("a", question=3)) == ["answered a/3/reconcile", "called a failed"]
    assert commands(driver.wait(100)) == ["a/4/reconcile"]


def test_failures_of_questions_leave_nothing_in_the_state() -> None:
    driver = asked()
    before = driver.state.bytes
    driver.say_nothing("a")
    assert driver.state.bytes > before
    driver.wait(100)
    driver.say_nothing("a", question=2)

    assert driver.state.bytes == before


def test_a_timer_of_a_question_counts_once_and_only_for_its_question() -> None:
    driver = asked()
    assert ignored(driver.fire(Timer.QUESTION, "a", 1)) == "not_waited_for"
    driver.say_nothing("a", retry_after_ms=300)
    assert ignored(driver.fire(Timer.QUESTION, "a", 1)) == "not_due"
    driver.now_ms += 300

    assert ignored(driver.fire(Timer.RETRY, "a", 1)) == "not_waited_for"
    assert ignored(driver.fire(Timer.QUESTION, "a", 2)) == "not_waited_for"
    assert commands(driver.fire(Timer.QUESTION, "a", 1)) == ["a/2/reconcile"]
    assert ignored(driver.fire(Timer.QUESTION, "a", 1)) == "not_waited_for"
    assert driver.state.due_ms() == NEVER


def test_an_answer_to_a_question_that_was_given_up_is_not_waited_for() -> None:
    driver = asked()
    driver.lose_question("a")

    assert ignored(driver.say("a", HAPPENED)) == "not_waited_for"


# --- a late answer of the attempt itself


def test_a_late_result_ends_the_question() -> None:
    driver = asked()

    assert shown(driver.done("a", "late")) == [
        "answered a/1/execute",
        "answered a/1/reconcile",
        "a reconciling -> done by completed",
        "b waiting -> running by dispatched",
        "send b/1/execute",
    ]
    found = driver.state.steps[0]
    assert (found.failed_attempts, found.failures[0]["outcome"]) == (0, "happened")
    assert ignored(driver.say("a", HAPPENED, "late")) == "not_waited_for"


def test_a_late_failure_that_says_more_ends_the_question() -> None:
    driver = asked(a={"retry": ONCE})

    assert shown(driver.fail("a", FailureKind.RETRYABLE))[:4] == [
        "answered a/1/execute",
        "answered a/1/reconcile",
        "dead letter a/1/execute",
        "a reconciling -> failed by given_up",
    ]


def test_a_late_invalid_output_surely_ran() -> None:
    driver = asked()
    driver.fail("a", FailureKind.INVALID_OUTPUT)

    found = driver.state.steps[0]
    assert [failure.get("outcome") for failure in found.failures] == ["happened", None]
    assert (found.suspects, found.failed_attempts) == (["a"], 1)


@pytest.mark.parametrize(
    "kind", [FailureKind.TIMEOUT, FailureKind.UNKNOWN, FailureKind.CANCELLED, FailureKind.DEADLINE]
)
def test_a_late_failure_that_knows_no_more_is_ignored(kind: FailureKind) -> None:
    driver = asked()

    assert ignored(driver.fail("a", kind)) == "not_waited_for"


def test_that_it_was_lost_is_not_an_answer() -> None:
    driver = asked()

    assert ignored(driver.lose("a")) == "not_waited_for"
    assert ignored(driver.refuse("a", "bank")) == "not_waited_for"


def test_a_late_result_between_two_questions() -> None:
    driver = asked()
    driver.say_nothing("a")

    assert shown(driver.done("a"))[:2] == ["answered a/1/execute", "a reconciling -> done by completed"]
    assert driver.wait(60_000) == []


@pytest.mark.parametrize("token", ["", "forged"])
def test_a_forged_answer_ends_no_question(token: str) -> None:
    driver = asked()
    for direction in (Direction.EXECUTE, Direction.RECONCILE):
        event = StepCompleted("a", 1, direction, token, "forged", outcome=HAPPENED)
        assert ignored(driver.append(event)) == "wrong_token"


def test_what_a_late_answer_says_of_its_use_counts_instead_of_the_reserve() -> None:
    driver = asked(a={"reserve": {"tokens": 10, "cost": 4}, "budget": {"tokens": 100}})
    assert (driver.state.steps[0].tokens, driver.state.steps[0].cost) == (10, 4)

    driver.done("a", tokens=3, cost=1)

    assert (driver.state.steps[0].tokens, driver.state.steps[0].cost) == (3, 1)


def test_what_did_not_happen_counts_as_it_was_charged_and_answering_is_free() -> None:
    driver = asked(a={"reserve": {"tokens": 10}, "budget": {"tokens": 15}, "retry": TWICE})
    driver.say("a", DID_NOT_HAPPEN)

    assert driver.state.steps[0].tokens == 10, "the model may have been asked all the same"
    assert "a backing_off -> failed by given_up" in shown(driver.wait(1_000))


# --- a workflow that stops


def test_a_workflow_that_stops_waits_for_the_answer_and_undoes_what_happened() -> None:
    driver = asked()

    assert shown(driver.cancel()) == [
        "workflow running -> compensating by cancelled",
        "b waiting -> cancelled by stopped",
    ]
    assert shown(driver.say("a", HAPPENED, "out")) == [
        "answered a/1/reconcile",
        "called a ok",
        "a reconciling -> done by completed",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]


def test_a_workflow_that_stops_undoes_nothing_that_did_not_happen() -> None:
    driver = asked()
    driver.cancel()

    assert shown(driver.say("a", DID_NOT_HAPPEN)) == [
        "answered a/1/reconcile",
        "called a ok",
        "a reconciling -> cancelled by stopped",
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
    ]


def test_what_is_lost_while_the_workflow_stops_is_asked_about_and_asked_again() -> None:
    driver = begun(a={"reconcile": {"retry": {"attempts": 3, "base_ms": 100, "factor": 1}}})
    driver.cancel()

    assert commands(driver.lose("a")) == ["a/1/reconcile"]
    assert commands(driver.lose_question("a")) == []
    assert driver.state.due_ms() <= driver.now_ms + 100
    assert commands(driver.wait(100)) == ["a/2/reconcile"]
    driver.lose_question("a", 2)
    driver.wait(100)
    assert shown(driver.lose_question("a", 3))[-3:] == [
        "a reconciling -> cancelled by stopped",
        "undo a pending -> running by dispatched",
        "send a/1/compensate",
    ]


def test_a_question_that_waits_for_its_time_is_asked_while_the_workflow_stops() -> None:
    driver = asked()
    driver.say_nothing("a")
    driver.cancel()

    assert commands(driver.wait(100)) == ["a/2/reconcile"]


def test_a_deadline_waits_for_the_answer() -> None:
    driver = asked(deadline_ms=1_000)

    assert commands(driver.wait(1_000)) == []
    assert shown(driver.say("a", HAPPENED))[-1] == "send a/1/compensate"
    driver.done("a", undo=True)


# --- paused, quarantined, terminated


def test_a_question_begins_something_so_it_waits_for_the_end_of_a_pause() -> None:
    driver = begun()
    driver.act(Action.PAUSE)

    assert shown(driver.lose("a"))[-1] == "a running -> reconciling by outcome_unknown"
    assert driver.wait(60_000) == []
    assert commands(driver.act(Action.RESUME)) == ["a/1/reconcile"]


def test_a_question_that_comes_due_in_a_pause_is_asked_when_it_is_resumed() -> None:
    driver = asked()
    driver.act(Action.PAUSE)
    driver.say_nothing("a")

    assert driver.wait(60_000) == []
    assert driver.wait(60_000) == [], "and fires once"
    assert commands(driver.act(Action.RESUME)) == ["a/2/reconcile"]


def test_an_answer_that_comes_in_a_pause_is_noted() -> None:
    driver = asked()
    driver.act(Action.PAUSE)

    assert shown(driver.say("a", HAPPENED))[-1] == "a reconciling -> done by completed"
    assert commands(driver.act(Action.RESUME)) == ["b/1/execute"]


def test_a_paused_workflow_that_is_cancelled_asks_what_it_held_back() -> None:
    driver = begun()
    driver.act(Action.PAUSE)
    driver.lose("a")

    assert commands(driver.cancel()) == ["a/1/reconcile"]


def test_a_late_result_in_a_pause_ends_a_question_that_was_never_asked() -> None:
    driver = begun()
    driver.act(Action.PAUSE)
    driver.lose("a")

    assert shown(driver.done("a")) == ["answered a/1/execute", "a reconciling -> done by completed"]
    assert commands(driver.act(Action.RESUME)) == ["b/1/execute"]


def test_a_resumed_quarantined_workflow_asks_again_with_the_same_id() -> None:
    driver = asked()
    driver.stop()

    assert shown(driver.act(Action.RESUME)) == [
        "workflow quarantined -> running by resumed",
        "review -/quarantined closed: resume",
        "answered a/1/reconcile",
        "send a/1/reconcile",
    ]


def test_a_terminated_workflow_takes_its_question_back() -> None:
    driver = asked()

    assert shown(driver.act(Action.TERMINATE)) == [
        "answered a/1/reconcile",
        "workflow running -> terminated by terminated",
        "finished terminated",
    ]


def test_nobody_decides_about_a_question() -> None:
    driver = asked(a={"retry": ONCE, "when_failed": "review"})
    decided = StepDecided("a", Decision.RETRY, "tester", direction=Direction.RECONCILE)
    assert ignored(driver.append(decided, ce_id="decision-1")) == "not_possible"
    assert ignored(driver.decide("a", Decision.COMPLETE, 1)) == "not_waited_for"

    driver.say("a", DID_NOT_HAPPEN)
    assert ignored(driver.append(decided, ce_id="decision-2")) == "not_possible"


# --- items, rounds, circuits


def mapped(**more: object) -> Definition:
    return saga(
        step("a", map={"over": {"value": [1, 2]}}, reconcile={"retry": ONCE}, retry=ONCE, compensate={}, **more)
    )


def test_an_item_is_asked_about() -> None:
    driver = Driver(mapped(), round_trip=True)
    driver.start("saga")
    driver.done("a[0]", "zero")
    question = command(driver.lose("a[1]"))

    assert (question.command_id, question.input) == ("wf-1/a[1]/1/reconcile", 2)
    assert driver.state.steps[0].status == "running"
    assert result(driver.say("a[1]", HAPPENED, "one"))["output"] == {"a": ["zero", "one"]}


def test_a_workflow_that_stops_waits_for_the_answer_about_an_item() -> None:
    driver = Driver(mapped(), round_trip=True)
    driver.start("saga")
    driver.lose("a[1]")
    driver.cancel()

    assert commands(driver.fail("a[0]")) == []
    assert shown(driver.say("a[1]", HAPPENED, "one")) == [
        "answered a[1]/1/reconcile",
        "called a ok",
        "a[1] reconciling -> done by completed",
        "a running -> cancelled by stopped",
        "undo a[1] pending -> running by dispatched",
        "send a[1]/1/compensate to a",
    ]


def test_an_item_whose_outcome_stays_unknown_is_undone() -> None:
    driver = Driver(mapped(), round_trip=True)
    driver.start("saga")
    driver.done("a[0]")
    driver.lose("a[1]")

    assert commands(driver.lose_question("a[1]")) == ["a[1]/1/compensate"]


def test_an_item_at_work_counts_while_it_is_asked_about() -> None:
    driver = Driver(
        saga(step("a", map={"over": {"value": [1, 2]}, "concurrency": 1}, reconcile={}, retry=ONCE)), round_trip=True
    )
    driver.start("saga")

    assert commands(driver.lose("a[0]")) == ["a[0]/1/reconcile"]
    assert commands(driver.say("a[0]", HAPPENED)) == ["a[1]/1/execute"]


def test_a_round_is_asked_about() -> None:
    repeat = {"until": "steps.a > 1", "rounds_max": 3}
    driver = Driver(saga(step("a", repeat=repeat, reconcile={})), round_trip=True)
    driver.start("saga")
    driver.lose("a[0]")

    assert commands(driver.say("a[0]", HAPPENED, 1)) == ["a[1]/1/execute"]


def test_an_attempt_that_an_owner_before_may_have_sent_is_asked_about_when_its_circuit_refuses_it() -> None:
    driver = begun(a={"service": "bank", "when_open": "fall_back", "fallback": {"agent": "other"}})

    assert commands(driver.refuse("a", "bank", maybe_sent=True)) == ["a/1/reconcile"]
    assert shown(driver.say("a", DID_NOT_HAPPEN))[-1] == "send a/2/execute to other"


def test_a_refused_attempt_that_did_not_happen_fails_the_step() -> None:
    driver = begun(a={"service": "bank", "when_open": "fail", "fallback": {"agent": "other"}})
    driver.refuse("a", "bank", maybe_sent=True)

    assert "a reconciling -> failed by given_up" in shown(driver.say("a", DID_NOT_HAPPEN))


def test_an_attempt_that_was_surely_not_sent_is_not_asked_about() -> None:
    driver = begun(a={"service": "bank", "when_open": "fail"})

    assert "a/1/reconcile" not in commands(driver.refuse("a", "bank"))


def test_answers_count_for_the_circuit() -> None:
    driver = asked(a={"service": "bank"})

    assert "called a failed (bank: fault)" in shown(driver.lose_question("a"))
    driver.wait(1_000)
    assert "called a ok (bank)" in shown(driver.say("a", DID_NOT_HAPPEN, question=2))
