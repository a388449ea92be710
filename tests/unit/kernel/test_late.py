"""Results that come after all: undone once more while the workflow is being undone, a person's matter after its end."""

from __future__ import annotations

from sagalog.schemas.definitions import Fallback
from sagalog.schemas.events import Action, FailureKind
from sagalog.schemas.limits import UNSETTLED_KEPT_MAX

from .driver import Driver, commands, ignored, result, reviews, saga, shown, step

ONCE = {"attempts": 1}
UNDO = {"retry": {"attempts": 2, "base_ms": 50, "cap_ms": 50}}


def timed_out() -> Driver:
    """a is done, b timed out, and its undoing is out."""
    driver = Driver(saga(step("a", compensate=UNDO), step("b", "a", retry=ONCE, compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.done("a")
    assert commands(driver.fail("b", FailureKind.TIMEOUT)) == ["b/1/compensate"]
    return driver


def test_a_step_that_is_undone_is_undone_once_more() -> None:
    driver = timed_out()
    driver.done("b", undo=True)

    assert shown(driver.done("b", "late")) == ["undo b done -> running by dispatched", "send b/2/compensate"]
    assert ignored(driver.done("b", "late")) == "not_waited_for"
    driver.done("a", undo=True)
    assert not driver.state.terminal
    ended = result(driver.done("b", attempt=2, undo=True))
    assert ended["status"] == "compensated"
    assert (ended["steps"][1]["undo"]["late"], ended["steps"][1]["undo"]["attempt"]) == (1, 2)


def test_one_that_comes_while_the_step_is_being_undone_has_it_undone_once_more_afterwards() -> None:
    driver = timed_out()

    assert shown(driver.done("b", "late")) == []
    assert shown(driver.done("b", undo=True))[-2:] == ["undo b running -> running by dispatched", "send b/2/compensate"]
    driver.done("b", attempt=2, undo=True)
    assert result(driver.done("a", undo=True))["status"] == "compensated"


def test_one_that_comes_before_the_step_is_undone_changes_nothing_but_that_it_is_known() -> None:
    driver = Driver(
        saga(step("a", retry=ONCE, compensate=UNDO, critical=False), step("b", compensate=UNDO), step("c", "a", "b")),
        round_trip=True,
    )
    driver.start("saga")
    driver.fail("a", FailureKind.TIMEOUT)
    driver.done("b")
    driver.fail("c", FailureKind.TERMINAL)

    assert driver.done("a", "late") == []
    driver.done("b", undo=True)
    ended = result(driver.done("a", undo=True))
    assert ended["status"] == "compensated"
    assert driver.state.unsettled == []


def test_while_it_is_paused_nothing_is_undone_once_more() -> None:
    driver = timed_out()
    driver.done("b", undo=True)
    driver.act(Action.PAUSE)

    assert shown(driver.done("b", "late")) == ["undo b done -> backing_off by failed"]
    assert commands(driver.act(Action.RESUME)) == ["b/2/compensate"]


def test_a_forged_one_is_none() -> None:
    driver = timed_out()
    driver.done("b", undo=True)
    late = driver.log[-1]
    forged = driver.done("b", "late", attempt=2)

    assert late is driver.log[-2]
    assert ignored(forged) == "stale_attempt"


def test_after_the_end_a_person_has_to_see_it_once() -> None:
    driver = timed_out()
    driver.done("b", undo=True)
    driver.done("a", undo=True)
    assert driver.state.unsettled == ["b/1"]

    (found,) = reviews(driver.done("b", "late", agent="worker"))
    assert (found["kind"], found["step"]) == ("late_result", "b")
    assert found["details"] == {"attempt": 1, "agent": "worker", "output": "late"}
    assert found["reason"] == "step 'b' was done after all, after the workflow had ended compensated: nothing undoes it"
    assert ignored(driver.done("b", "late")) == "already_finished"
    assert ignored(driver.done("a")) == "already_finished"


def test_after_the_end_the_one_that_a_fallback_replaced_is_seen() -> None:
    driver = Driver(saga(step("a", retry=ONCE, compensate=UNDO, fallback=Fallback(agent="other"))), round_trip=True)
    driver.start("saga")
    driver.fail("a", FailureKind.TIMEOUT)
    driver.done("a", "by the other", attempt=2)
    assert driver.state.status == "degraded"

    assert [found["kind"] for found in reviews(driver.done("a", "late"))] == ["late_result"]


def test_a_copy_of_an_earlier_attempt_of_a_step_that_was_done_is_nobody_s_matter() -> None:
    driver = Driver(saga(step("a", compensate=UNDO)), round_trip=True)
    driver.start("saga")
    driver.fail("a", FailureKind.TIMEOUT)
    driver.wait(60_000)
    driver.done("a", attempt=2)

    assert driver.state.status == "completed" and driver.state.unsettled == []
    assert ignored(driver.done("a", "late")) == "already_finished"


def test_only_so_many_are_remembered() -> None:
    many = [step(f"s{n}", retry=ONCE, compensate=UNDO, critical=False) for n in range(UNSETTLED_KEPT_MAX + 5)]
    driver = Driver(saga(*many), round_trip=True)
    driver.start("saga")
    for number in range(len(many)):
        driver.fail(f"s{number}", FailureKind.TIMEOUT)
    assert len(driver.state.unsettled) == UNSETTLED_KEPT_MAX
