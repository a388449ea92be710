"""A start under an id that is in use, or was: ignored, answered, or the next run, which nothing of the run before can touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sagalog.engine.kernel.effects import Dispatch, Effect, Finished, StartAnswered
from sagalog.engine.kernel.state import WorkflowState
from sagalog.schemas import ids
from sagalog.schemas.definitions import Definition
from sagalog.schemas.events import (
    Action,
    ActionRequested,
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    Decision,
    FailureKind,
    OnDuplicate,
    Quarantined,
    StepCompleted,
    Timer,
    TimerFired,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import (
    DEFINITION_WAIT_MS,
    HEARD_KEPT_MAX,
    PAYLOAD_BYTES_MAX,
    REMEMBER_MS,
    STARTS_KEPT_MAX,
    STATE_BYTES_MAX,
)

from .driver import START_MS, WORKFLOW, Driver, chain, commands, ignored, result, saga, shown, step, waiting

REJECT, REPLACE = OnDuplicate.REJECT, OnDuplicate.REPLACE
ONE = saga(step("a"))
UNDONE = chain("a", "b")


def start(driver: Driver, policy: OnDuplicate | None = None, ce_id: str = "start", **more: Any) -> list[Effect]:
    return driver.append(WorkflowStarted(more.pop("definition", "saga"), on_duplicate=policy, **more), ce_id=ce_id)


def answers(effects: list[Effect]) -> list[tuple[str, bool]]:
    return [
        (effect.record["start_id"], effect.record["accepted"])
        for effect in effects
        if isinstance(effect, StartAnswered)
    ]


def both(test: Callable[[bool], None]) -> Any:
    """Also with every state put through its checkpoint after each event."""
    return pytest.mark.parametrize("round_trip", [False, True])(test)


# --- reject


def test_a_start_that_must_know_is_told_that_it_counted() -> None:
    driver = Driver(ONE)

    effects = start(driver, REJECT, "one")

    assert shown(effects) == [
        "workflow None -> running by started",
        "a waiting -> running by dispatched",
        "send a/1/execute",
        "start accepted",
    ]
    (answer,) = (effect.record for effect in effects if isinstance(effect, StartAnswered))
    assert answer == {
        "workflow_id": WORKFLOW,
        "start_id": ids.start_id("one"),
        "accepted": True,
        "at_ms": START_MS,
        "at_offset": 2,
    }


@pytest.mark.parametrize("ended", [False, True])
def test_a_second_start_that_must_know_is_told_that_it_did_not_count_and_why(ended: bool) -> None:
    driver = Driver(ONE)
    start(driver)
    if ended:
        driver.done("a")
    before = driver.everything()

    effects = start(driver, REJECT, "two")

    status = "completed" if ended else "running"
    assert shown(effects) == ["ignored duplicate_start", f"start refused: the workflow is {status}"]
    (answer,) = (effect.record for effect in effects if isinstance(effect, StartAnswered))
    assert (answer["start_id"], answer["status"]) == (ids.start_id("two"), status)
    assert driver.everything() == before


def test_a_copy_of_a_start_that_counted_is_not_answered_again() -> None:
    driver = Driver(ONE)
    start(driver, REJECT, "one")

    assert ignored(start(driver, REJECT, "one")) == "duplicate_start"


def test_an_answer_says_nothing_of_the_seed() -> None:
    driver = Driver(ONE)
    effects = start(driver, REJECT, "a-secret-seed") + start(driver, REPLACE, "another-secret")

    for effect in effects:
        if isinstance(effect, StartAnswered | Finished):
            assert "secret" not in repr(effect)


def test_a_start_that_is_rejected_for_its_values_took_the_id_all_the_same() -> None:
    driver = Driver(ONE)

    effects = start(driver, REJECT, "one", priority=10)

    assert shown(effects) == ["workflow None -> rejected by refused", "finished rejected", "start accepted"]


def test_a_start_under_an_id_that_is_none_is_told_so() -> None:
    driver = Driver(ONE)

    effects = driver.append(WorkflowStarted("saga", on_duplicate=REJECT), key=b"@x")

    assert shown(effects)[-1].startswith("start refused: workflow_id: '@x' starts with '@'")


# --- replace


@both
def test_a_finished_run_is_followed_by_a_new_one_at_once(round_trip: bool) -> None:
    driver = Driver(ONE, round_trip=round_trip)
    start(driver)
    driver.done("a", "first")
    driver.now_ms += 5_000

    effects = start(driver, REPLACE, "two", input="in")

    assert shown(effects) == [
        "start accepted",
        "workflow None -> running by started",
        "a waiting -> running by dispatched",
        "send a/1@6/execute",
    ]
    (sent,) = (effect.command for effect in effects if isinstance(effect, Dispatch))
    assert (sent.command_id, sent.idempotency_key) == (f"{WORKFLOW}/a/1@6/execute", f"{WORKFLOW}/a@6")
    assert (sent.attempt, sent.step, sent.input) == (1, "a", "in")
    assert driver.state.started_ms == START_MS + 5_000
    ended = result(driver.done("a", "second"))
    assert (ended["status"], ended["output"]) == ("completed", {"a": "second"})
    assert (ended["run"], ended["start_id"]) == (6, ids.start_id("two"))


@both
def test_a_run_is_cancelled_and_undone_before_the_one_that_replaces_it_begins(round_trip: bool) -> None:
    driver = Driver(UNDONE, round_trip=round_trip)
    start(driver)
    driver.done("a", 1)

    asked = start(driver, REPLACE, "two")
    assert shown(asked) == ["workflow running -> compensating by cancelled"]
    assert driver.state.due_ms() > driver.now_ms
    drained = driver.done("b", 2)
    assert commands(drained) == ["b/1/compensate"]
    assert commands(driver.done("b", undo=True)) == ["a/1/compensate"]
    effects = driver.done("a", undo=True)

    assert shown(effects)[2:] == [
        "undo a running -> done by completed",
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
        "start accepted",
        "workflow None -> running by started",
        "a waiting -> running by dispatched",
        f"send a/1@{driver.state.run}/execute",
    ]
    first = result(effects)
    assert first["failure"]["message"] == "replaced by a newer start"
    assert "run" not in first


def test_a_run_with_nothing_out_is_replaced_within_one_event_and_the_next_begins_later() -> None:
    driver = Driver(saga(waiting("nap", sleep={"ms": 1_000})))
    start(driver)

    effects = start(driver, REPLACE, "two")

    assert shown(effects) == [
        "workflow running -> compensating by cancelled",
        "nap awaiting -> cancelled by stopped",
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
        "start accepted",
        "workflow None -> running by started",
        "nap waiting -> awaiting by awaited",
    ]
    # Rows tell the runs of one id by when they started.
    assert driver.state.started_ms == START_MS + 1


def test_a_start_that_waits_for_its_definition_is_replaced() -> None:
    driver = Driver()
    start(driver)

    effects = start(driver, REPLACE, "two")

    assert shown(effects) == [
        "workflow waiting -> cancelled by cancelled",
        "finished cancelled",
        "start accepted",
        "workflow None -> waiting by awaited",
    ]
    assert driver.partition.waiting == {WORKFLOW}
    assert shown(driver.register(ONE))[-1] == f"send a/1@{driver.state.run}/execute"


def test_a_run_past_its_pivot_is_waited_for() -> None:
    driver = Driver(saga(step("a", pivot=True), step("b", "a")))
    start(driver)
    driver.done("a")

    assert shown(start(driver, REPLACE, "two")) == []
    effects = driver.done("b")

    assert "finished completed" in shown(effects)
    assert shown(effects)[-1] == f"send a/1@{driver.state.run}/execute"


def test_a_run_that_is_being_undone_is_waited_for() -> None:
    driver = Driver(UNDONE)
    start(driver)
    driver.done("a")
    driver.fail("b", FailureKind.TERMINAL)

    assert shown(start(driver, REPLACE, "two")) == []
    assert shown(driver.done("a", undo=True))[-1] == f"send a/1@{driver.state.run}/execute"


def test_a_run_that_is_terminated_makes_way() -> None:
    driver = Driver(UNDONE)
    start(driver)
    driver.done("a")
    start(driver, REPLACE, "two")

    effects = driver.act(Action.TERMINATE)

    assert shown(effects)[:4] == [
        "answered b/1/execute",
        "workflow compensating -> terminated by terminated",
        "finished terminated",
        "start accepted",
    ]
    assert driver.state.status == "running"


def test_a_workflow_that_is_stopped_by_a_quarantined_record_is_not_replaced() -> None:
    driver = Driver(ONE)
    start(driver)
    driver.stop()
    before = driver.everything()

    effects = start(driver, REPLACE, "two")

    assert shown(effects) == ["ignored stopped", "start refused: the workflow is stopped: not JSON"]
    assert driver.everything() == before


@both
def test_of_two_starts_that_wait_the_newer_runs_and_the_other_is_told(round_trip: bool) -> None:
    driver = Driver(UNDONE, round_trip=round_trip)
    start(driver)
    start(driver, REPLACE, "two", input=2)

    assert shown(start(driver, REPLACE, "three", input=3)) == [
        "start refused: a newer start replaced it before it began"
    ]
    effects = driver.fail("a", FailureKind.TERMINAL)

    assert answers(effects) == [(ids.start_id("three"), True)]
    assert (driver.state.input, driver.state.seed) == (3, "three")
    # Neither of them counts a second time.
    for known in ("two", "three"):
        assert ignored(start(driver, REPLACE, known)) == "duplicate_start"


def test_a_cancel_while_a_start_waits_is_the_end_of_that_start() -> None:
    driver = Driver(UNDONE)
    start(driver)
    start(driver, REPLACE, "two")
    bytes_held = driver.state.bytes

    effects = driver.append(CancelRequested("enough", "ann"), ce_id="cancel")

    assert shown(effects) == ["start refused: cancelled by ann: enough"]
    assert driver.state.next is None
    assert driver.state.bytes < bytes_held
    assert shown(driver.fail("a", FailureKind.TERMINAL))[-1] == "finished cancelled"
    # A copy of it does not touch the run that follows.
    start(driver, REPLACE, "three")
    assert ignored(driver.append(CancelRequested("enough", "ann"), ce_id="cancel")) == "duplicate"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"priority": -1}, "priority"),
        ({"deadline_ms": 1}, "deadline_ms"),
        ({"input": "text"}, "input"),
        ({"definition": "No Name"}, "definition"),
    ],
)
def test_a_start_that_could_not_run_replaces_nothing(more: dict[str, Any], field: str) -> None:
    driver = Driver(saga(step("a"), input_schema={"type": "object"}))
    start(driver, input={})
    before = driver.everything()

    effects = start(driver, REPLACE, "two", **{"input": {}, **more})

    assert shown(effects)[0] == "ignored invalid_start"
    assert shown(effects)[1].startswith(f"start refused: {field}: ")
    assert driver.everything() == before


def test_a_definition_that_comes_while_the_start_waits_is_held_against_its_input() -> None:
    driver = Driver(UNDONE)
    start(driver)
    start(driver, REPLACE, "two", definition="late", input="text")
    driver.register(Definition(name="late", steps=(step("l"),), input_schema={"type": "object"}))

    effects = driver.fail("a", FailureKind.TERMINAL)

    assert shown(effects)[-2:] == ["workflow None -> rejected by refused", "finished rejected"]
    assert driver.state.status == "rejected"


def test_a_start_for_which_there_is_no_room_does_not_wait() -> None:
    driver = Driver(UNDONE)
    start(driver, input="x" * 200_000)
    driver.done("a", "y" * 200_000)
    before = driver.everything()

    effects = start(driver, REPLACE, "two", input="z" * 150_000)

    assert shown(effects)[0] == "ignored no_room"
    assert driver.everything() == before
    # Once the run has ended there is.
    driver.cancel()
    driver.fail("b", FailureKind.TERMINAL)
    driver.done("a", undo=True)
    assert shown(start(driver, REPLACE, "three", input="z" * 150_000))[0] == "start accepted"


def test_a_start_that_waits_counts_among_what_the_state_holds() -> None:
    driver = Driver(UNDONE)
    start(driver)
    start(driver, REPLACE, "two", input="z" * (PAYLOAD_BYTES_MAX - 1_000))

    alone = len("z") * (PAYLOAD_BYTES_MAX - 1_000)
    assert alone < driver.state.bytes < STATE_BYTES_MAX
    driver.fail("a", FailureKind.TERMINAL)
    assert alone < driver.state.bytes < alone + 1_000


def test_a_start_that_replaces_nothing_has_a_run_of_its_own_too() -> None:
    """An id may be forgotten: agents must not take the commands of a later run for those of the first."""
    driver = Driver(ONE)
    first = start(driver, REPLACE, "one")
    driver.done("a")
    driver.wait(REMEMBER_MS)
    assert driver.dumps() == {}

    second = start(driver, REPLACE, "two")

    assert commands(first) == ["a/1@4/execute"]
    assert commands(second) == [f"a/1@{len(driver.log) + 1}/execute"]


def test_a_start_that_waited_takes_what_it_said_with_it() -> None:
    driver = Driver(UNDONE)
    start(driver)
    start(
        driver,
        REPLACE,
        "two",
        tenant="acme",
        priority=8,
        attributes={"customer": 7},
        correlation_id="c",
        deadline_ms=60_000,
    )
    driver.now_ms += 500
    driver.fail("a", FailureKind.TERMINAL)

    state = driver.state
    assert (state.tenant, state.priority, state.attributes) == ("acme", 8, {"customer": 7})
    assert (state.correlation_id, state.deadline_ms) == ("c", START_MS + 500 + 60_000)


# --- nothing of the run before touches the next


EXECUTE = Direction.EXECUTE
STALE: list[tuple[str, Callable[[Driver, WorkflowState], list[Effect]]]] = [
    ("earlier_run", lambda d, s: d.append(AttemptLost(1, "a", 1, EXECUTE, "no answer", run=s.run_mark))),
    ("earlier_run", lambda d, s: d.append(AttemptRefused(1, "a", 1, "bank", run=s.run_mark))),
    ("earlier_run", lambda d, s: d.append(TimerFired(1, Timer.DEADLINE, run=s.run_mark))),
    ("earlier_run", lambda d, s: d.append(TimerFired(1, Timer.FORGET, None, s.at_offset, s.run_mark))),
    ("earlier_run", lambda d, s: d.append(Quarantined(1, "sagalog.events/0/3", "not JSON", s.run_mark))),
]


@pytest.mark.parametrize("first", [None, REPLACE])
@pytest.mark.parametrize(("reason", "event"), STALE)
def test_an_event_about_the_run_before_is_ignored(
    first: OnDuplicate | None, reason: str, event: Callable[[Driver, WorkflowState], list[Effect]]
) -> None:
    driver = Driver(ONE)
    start(driver, first, "one")
    earlier = driver.state
    driver.act(Action.TERMINATE)
    start(driver, REPLACE, "two")
    before = driver.everything()

    assert ignored(event(driver, earlier)) == reason
    assert driver.everything() == before


def test_an_answer_to_the_run_before_is_not_believed() -> None:
    driver = Driver(ONE)
    start(driver, None, "one")
    driver.act(Action.TERMINATE)
    old = driver.token("a", 1, EXECUTE)
    start(driver, REPLACE, "two")

    assert ignored(driver.append(StepCompleted("a", 1, EXECUTE, old, "late"))) == "wrong_token"


@both
def test_what_people_asked_of_one_run_is_not_asked_of_the_next_by_a_copy(round_trip: bool) -> None:
    driver = Driver(UNDONE, round_trip=round_trip)
    start(driver, REPLACE, "one")
    cancel = CancelRequested("no", "ann")
    driver.append(cancel, ce_id="cancel")
    driver.fail("a", FailureKind.TERMINAL)
    assert driver.state.status == "cancelled"
    start(driver, REPLACE, "two")
    terminate = ActionRequested(Action.TERMINATE, "no", "ann")
    driver.append(terminate, ce_id="terminate")
    assert driver.state.status == "terminated"
    start(driver, REPLACE, "three")

    for event, ce_id in ((cancel, "cancel"), (terminate, "terminate")):
        assert ignored(driver.append(event, ce_id=ce_id)) == "duplicate"
    assert shown(driver.append(cancel, ce_id="another"))[0] == "workflow running -> compensating by cancelled"


def test_the_timer_of_an_end_does_not_forget_the_run_that_followed() -> None:
    driver = Driver(ONE)
    start(driver)
    driver.done("a")
    start(driver, REPLACE, "two")
    driver.done("a")

    assert driver.wait(REMEMBER_MS) == []
    assert driver.dumps() != {}
    driver.wait(1)  # it began a millisecond later
    assert driver.dumps() == {}


def test_what_is_remembered_of_earlier_starts_and_events_is_bounded() -> None:
    driver = Driver(ONE)
    for number in range(STARTS_KEPT_MAX + 5):
        start(driver, REPLACE, f"start-{number}")
        driver.append(ActionRequested(Action.TERMINATE, "x", "y"), ce_id=f"a-{number}")
        driver.append(ActionRequested(Action.TERMINATE, "x", "y"), ce_id=f"b-{number}")

    assert len(driver.state.starts) == STARTS_KEPT_MAX
    assert len(driver.state.heard) <= HEARD_KEPT_MAX
    assert len(driver.dumps()[WORKFLOW]) < 4_000


def test_a_definition_that_never_comes_ends_the_run_that_replaced_another() -> None:
    driver = Driver(ONE)
    start(driver)
    driver.done("a")
    start(driver, REPLACE, "two", definition="nope")

    effects = driver.wait(DEFINITION_WAIT_MS + 1)

    assert shown(effects) == ["workflow waiting -> rejected by refused", "finished rejected"]
    assert result(effects)["run"] == driver.state.run


def test_held_work_of_the_next_run_has_a_review_of_its_own() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 1}, when_failed="review")))
    start(driver)
    driver.fail("a")
    driver.decide("a", Decision.SKIP)
    start(driver, REPLACE, "two")

    assert shown(driver.fail("a"))[-1] == f"review {ids.of_run('a', driver.state.run)}/step_failed"
