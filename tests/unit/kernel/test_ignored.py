"""Events that do not fit are ignored with the right reason, and nothing changes: the state is compared byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagalog.engine.kernel.effects import Effect
from sagalog.schemas.events import (
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    FailureKind,
    Outcome,
    Owned,
    Quarantined,
    StepCompleted,
    StepFailed,
    Timer,
    TimerFired,
)
from sagalog.schemas.ids import Direction

from .driver import WORKFLOW, Driver, chain, ignored, saga, shown, step

EXECUTE, COMPENSATE = Direction.EXECUTE, Direction.COMPENSATE
Happens = Callable[[Driver], list[Effect]]

SCENES: dict[str, Callable[[Driver], object]] = {
    "running": lambda d: None,
    "backing_off": lambda d: d.fail("a"),
    "second_attempt": lambda d: (d.fail("a"), d.wait(30_000)),
    "b_running": lambda d: d.done("a"),
    "draining": lambda d: d.cancel(),
    "undoing": lambda d: (d.done("a"), d.fail("b", FailureKind.TERMINAL)),
    "undo_backing_off": lambda d: (d.done("a"), d.fail("b", FailureKind.TERMINAL), d.fail("a", undo=True)),
    "finished": lambda d: (d.done("a"), d.done("b")),
    "stopped": lambda d: d.stop(),
}

CASES: list[tuple[str, str, Happens]] = [
    # answers that come twice
    ("backing_off", "not_waited_for", lambda d: d.fail("a")),
    ("backing_off", "not_waited_for", lambda d: d.done("a")),
    ("backing_off", "not_waited_for", lambda d: d.lose("a")),
    ("b_running", "not_waited_for", lambda d: d.done("a", "other")),
    ("b_running", "not_waited_for", lambda d: d.fail("a")),
    ("undo_backing_off", "not_waited_for", lambda d: d.fail("a", undo=True)),
    ("undo_backing_off", "not_waited_for", lambda d: d.done("a", undo=True)),
    # answers to another attempt than the one that is out
    ("second_attempt", "stale_attempt", lambda d: d.done("a")),
    ("second_attempt", "stale_attempt", lambda d: d.fail("a")),
    ("second_attempt", "stale_attempt", lambda d: d.lose("a")),
    ("second_attempt", "stale_attempt", lambda d: d.refuse("a", "bank")),
    ("running", "stale_attempt", lambda d: d.done("a", attempt=2)),
    ("running", "stale_attempt", lambda d: d.done("a", attempt=0)),
    ("running", "stale_attempt", lambda d: d.done("b")),
    ("running", "not_waited_for", lambda d: d.done("b", attempt=0)),
    ("running", "stale_attempt", lambda d: d.done("a", undo=True)),
    ("draining", "stale_attempt", lambda d: d.done("a", undo=True)),
    ("undoing", "not_waited_for", lambda d: d.done("a")),
    ("undoing", "stale_attempt", lambda d: d.done("a", attempt=2, undo=True)),
    ("undoing", "stale_attempt", lambda d: d.done("b", undo=True)),
    # answers to questions that nobody asked
    ("running", "stale_attempt", lambda d: d.say("a", Outcome.HAPPENED)),
    ("running", "not_waited_for", lambda d: d.say("a", Outcome.HAPPENED, question=0)),
    ("running", "stale_attempt", lambda d: d.lose_question("a")),
    ("backing_off", "stale_attempt", lambda d: d.say("a", Outcome.DID_NOT_HAPPEN)),
    ("backing_off", "not_waited_for", lambda d: d.fire(Timer.QUESTION, "a", 0)),
    # forged answers
    ("running", "wrong_token", lambda d: d.append(StepCompleted("a", 1, EXECUTE, "", "forged"))),
    ("running", "wrong_token", lambda d: d.append(StepCompleted("a", 1, EXECUTE, d.token("b", 1, EXECUTE), "forged"))),
    ("running", "wrong_token", lambda d: d.append(StepCompleted("a", 1, EXECUTE, d.token("a", 1, COMPENSATE)))),
    ("second_attempt", "wrong_token", lambda d: d.append(StepCompleted("a", 2, EXECUTE, d.token("a", 1, EXECUTE)))),
    ("running", "wrong_token", lambda d: d.append(StepCompleted("a", 1, EXECUTE, d.token("a", 1, EXECUTE, "wf-2")))),
    ("running", "wrong_token", lambda d: d.append(StepFailed("a", 1, EXECUTE, "x", FailureKind.TERMINAL, "forged"))),
    ("undoing", "wrong_token", lambda d: d.append(StepCompleted("a", 1, COMPENSATE, d.token("a", 1, EXECUTE)))),
    # steps that are none
    ("running", "unknown_step", lambda d: d.done("z")),
    ("running", "unknown_step", lambda d: d.fail("z")),
    ("running", "unknown_step", lambda d: d.lose("z")),
    ("running", "unknown_step", lambda d: d.refuse("z", "bank")),
    # timers that are not set
    ("running", "not_waited_for", lambda d: d.fire(Timer.RETRY, "a", 1)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.RETRY, "z", 1)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.RETRY)),
    ("backing_off", "not_waited_for", lambda d: d.fire(Timer.RETRY, "a", 2)),
    ("backing_off", "not_waited_for", lambda d: d.fire(Timer.UNDO_RETRY, "a", 1)),
    ("undo_backing_off", "not_waited_for", lambda d: d.fire(Timer.UNDO_RETRY, "a", 2)),
    ("undo_backing_off", "not_waited_for", lambda d: d.fire(Timer.RETRY, "a", 1)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.DEADLINE)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.DEFINITION)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.FORGET)),
    ("running", "not_waited_for", lambda d: d.fire(Timer.CIRCUIT)),
    ("finished", "not_waited_for", lambda d: d.fire(Timer.RETRY, "a", 1)),
    ("finished", "not_waited_for", lambda d: d.fire(Timer.DEADLINE)),
    ("finished", "not_waited_for", lambda d: d.fire(Timer.FORGET)),
    # The timer's own offset is not the one of the workflow's end.
    ("finished", "not_waited_for", lambda d: d.fire(Timer.FORGET, attempt=len(d.log))),
    # what the engine decided under an older owner
    ("running", "old_epoch", lambda d: d.lose("a", epoch=0)),
    ("running", "old_epoch", lambda d: d.refuse("a", "bank", epoch=0)),
    ("running", "old_epoch", lambda d: d.lose("a", epoch=2)),
    ("backing_off", "old_epoch", lambda d: d.fire(Timer.RETRY, "a", 1, epoch=0)),
    ("finished", "old_epoch", lambda d: d.fire(Timer.FORGET, epoch=0)),
    ("running", "old_epoch", lambda d: d.stop(epoch=0)),
    # a workflow that is over or stopped
    ("finished", "already_finished", lambda d: d.done("b")),
    ("finished", "already_finished", lambda d: d.fail("b")),
    ("finished", "already_finished", lambda d: d.lose("b")),
    ("finished", "already_finished", lambda d: d.refuse("b", "bank")),
    ("finished", "already_finished", lambda d: d.cancel()),
    ("finished", "already_finished", lambda d: d.stop()),
    ("stopped", "stopped", lambda d: d.done("a")),
    ("stopped", "stopped", lambda d: d.fail("a")),
    ("stopped", "stopped", lambda d: d.lose("a")),
    ("stopped", "stopped", lambda d: d.cancel()),
    ("stopped", "stopped", lambda d: d.stop()),
    ("stopped", "stopped", lambda d: d.fire(Timer.DEADLINE)),
    # starts that come twice
    *((scene, "duplicate_start", lambda d: d.start("saga", "other")) for scene in SCENES),
    ("running", "known_definition", lambda d: d.register(chain("a", "b"))),
]


@pytest.mark.parametrize(("scene", "reason", "happens"), CASES)
def test_an_event_that_does_not_fit_changes_nothing(scene: str, reason: str, happens: Happens) -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga", "in")
    SCENES[scene](driver)
    before = driver.everything()
    # An ignored event must not even move the workflow's clock.
    driver.now_ms += 5_000

    assert ignored(happens(driver)) == reason
    assert driver.everything() == before


@pytest.mark.parametrize(
    "event",
    [
        StepCompleted("a", 1, EXECUTE, "t"),
        StepFailed("a", 1, EXECUTE, "t", FailureKind.RETRYABLE, "no"),
        AttemptLost(1, "a", 1, EXECUTE, "gone"),
        AttemptRefused(1, "a", 1, "bank"),
        CancelRequested("why", "who"),
        TimerFired(1, Timer.FORGET),
        Quarantined(1, "o", "r"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_of_an_unknown_workflow_changes_nothing(event: StepCompleted) -> None:
    driver = Driver(chain("a"))
    before = driver.everything()

    assert ignored(driver.append(event)) == "unknown_workflow"
    assert driver.everything() == before


@pytest.mark.parametrize(
    "happens", [lambda d: d.done("a"), lambda d: d.fail("a"), lambda d: d.lose("a"), lambda d: d.refuse("a", "s")]
)
def test_a_workflow_that_waits_for_its_definition_waits_for_no_answer(happens: Happens) -> None:
    driver = Driver()
    driver.start("saga")
    before = driver.everything()

    assert ignored(happens(driver)) == "not_waited_for"
    assert driver.everything() == before


def test_a_claim_to_an_epoch_that_is_taken_is_lost() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    before = driver.everything()

    assert shown(driver.append(Owned(1, "late"), key=b"@owner")) == ["claim lost 1 late"]
    assert shown(driver.append(Owned(0, "older"), key=b"@owner")) == ["claim lost 0 older"]
    assert driver.everything() == before


def test_after_a_take_over_only_the_new_owners_decisions_count() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    driver.fail("a")
    state = driver.dumps()[WORKFLOW]

    driver.now_ms += 60_000
    taken = driver.append(Owned(2, "next"), key=b"@owner")
    zombie = driver.fire(Timer.RETRY, "a", 1, epoch=1)
    before_mine = driver.dumps()[WORKFLOW]
    mine = driver.fire(Timer.RETRY, "a", 1, epoch=2)

    assert shown(taken) == ["owner 2 next"]
    assert (driver.partition.epoch, driver.partition.member) == (2, "next")
    assert ignored(zombie) == "old_epoch"
    assert before_mine == state
    assert shown(mine) == ["a backing_off -> running by dispatched", "send a/2/execute"]


def test_an_epoch_may_be_skipped_but_never_taken_back() -> None:
    driver = Driver()

    assert shown(driver.append(Owned(9, "m"), key=b"@owner")) == ["owner 9 m"]
    assert shown(driver.append(Owned(8, "n"), key=b"@owner")) == ["claim lost 8 n"]
    assert driver.partition.member == "m"


def test_an_answer_of_an_agent_counts_under_every_owner() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    driver.append(Owned(2, "next"), key=b"@owner")

    assert shown(driver.done("a"))[-1] == "finished completed"


def test_an_ignored_event_does_not_move_the_clock_and_one_that_counts_never_moves_it_back() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.now_ms += 1_000
    driver.done("a")
    newest_ms = driver.state.now_ms

    driver.now_ms -= 5_000
    driver.fail("b")

    assert driver.state.now_ms == newest_ms
    assert driver.state.steps[1].failures[0]["at_ms"] == newest_ms
