"""What people do to a workflow as a whole: pause, resume, terminate; and how one leaves quarantine."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.events import Action, Decision

from .driver import Driver, chain, command, commands, ignored, result, saga, shown, step, waiting

ONCE = {"attempts": 1}


def test_while_it_is_paused_nothing_new_begins_and_what_ends_is_noted() -> None:
    driver = Driver(chain("a", "b"), round_trip=True)
    driver.start("saga")

    assert driver.act(Action.PAUSE) == []
    ended = driver.done("a", "out")

    assert shown(ended) == ["answered a/1/execute", "called a ok", "a running -> done by completed"]
    assert driver.state.paused == {"who": "tester", "reason": "wanted", "at_ms": driver.now_ms}
    assert commands(driver.act(Action.RESUME)) == ["b/1/execute"]
    assert driver.state.paused is None


def test_a_retry_that_comes_due_in_a_pause_goes_out_when_it_is_resumed() -> None:
    driver = Driver(chain("a"), round_trip=True)
    driver.start("saga")
    driver.fail("a")
    driver.act(Action.PAUSE)

    assert driver.wait(60_000) == []
    assert driver.wait(60_000) == [], "and fires once"
    assert commands(driver.act(Action.RESUME)) == ["a/2/execute"]


def test_a_retry_that_is_not_due_when_the_pause_ends_waits_for_its_time() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    driver.fail("a")
    driver.act(Action.PAUSE)

    assert commands(driver.act(Action.RESUME)) == []
    assert commands(driver.wait(60_000)) == ["a/2/execute"]


def test_an_undoing_waits_for_the_end_of_a_pause() -> None:
    driver = Driver(chain("a", "b", retry=ONCE), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.fail("b")
    driver.act(Action.PAUSE)

    driver.fail("a", undo=True)
    assert driver.wait(60_000) == []
    assert commands(driver.act(Action.RESUME)) == ["a/2/compensate"]


def test_a_pause_between_two_undoings() -> None:
    driver = Driver(chain("a", "b", "c", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.done("b")
    driver.fail("c")
    driver.act(Action.PAUSE)

    assert commands(driver.done("b", undo=True)) == []
    assert ignored(driver.decide("b", Decision.RETRY, undo=True)) == "not_waited_for"
    assert commands(driver.act(Action.RESUME)) == ["a/1/compensate"]


def test_a_held_undoing_cannot_be_tried_in_a_pause() -> None:
    driver = Driver(saga(step("a", compensate={"retry": ONCE, "when_failed": "review"}), step("b", "a", retry=ONCE)))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")
    driver.fail("a", undo=True)
    driver.act(Action.PAUSE)

    assert ignored(driver.decide("a", Decision.RETRY, undo=True)) == "not_possible"


def test_a_workflow_whose_last_step_ends_in_a_pause_is_over() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    driver.act(Action.PAUSE)

    assert result(driver.done("a"))["status"] == "completed"


def test_a_cancel_ends_a_pause() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.done("a")
    driver.act(Action.PAUSE)
    driver.cancel()

    assert driver.state.paused is None
    assert commands(driver.done("b")) == ["b/1/compensate"]


def test_a_signal_in_a_pause_is_taken_and_what_follows_waits() -> None:
    driver = Driver(saga(waiting("w", wait_for={"signal": "go", "timeout_ms": 1_000}), step("b", "w")))
    driver.start("saga")
    driver.act(Action.PAUSE)

    assert shown(driver.signal("go")) == ["w awaiting -> done by signalled"]
    assert commands(driver.act(Action.RESUME)) == ["b/1/execute"]


@pytest.mark.parametrize("action", [Action.RESUME])
def test_what_is_not_paused_cannot_be_resumed(action: Action) -> None:
    driver = Driver(chain("a"))
    driver.start("saga")

    assert ignored(driver.act(action)) == "not_possible"


def test_what_is_paused_cannot_be_paused() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    driver.act(Action.PAUSE)

    assert ignored(driver.act(Action.PAUSE)) == "not_possible"


# --- terminate


def test_a_terminated_workflow_ends_at_once_and_undoes_nothing() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.done("a", "out")

    ended = driver.act(Action.TERMINATE)

    assert shown(ended) == [
        "answered b/1/execute",
        "workflow running -> terminated by terminated",
        "finished terminated",
    ]
    record = result(ended)
    assert record["failure"]["message"] == "terminated by tester: wanted"
    assert [found["status"] for found in record["steps"]] == ["done", "running"]
    assert ignored(driver.done("b")) == "already_finished"


def test_a_compensation_can_be_terminated() -> None:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")

    assert shown(driver.act(Action.TERMINATE))[0] == "answered a/1/compensate"


def test_a_terminated_workflow_closes_its_reviews() -> None:
    undo = {"retry": ONCE, "when_failed": "review"}
    driver = Driver(saga(step("a", compensate=undo), step("b", "a", compensate=undo), step("c", "b", retry=ONCE)))
    driver.start("saga")
    driver.done("a")
    driver.done("b")
    driver.fail("c")
    driver.fail("b", undo=True)

    assert "review b/undo_failed closed: moot" in shown(driver.act(Action.TERMINATE))


def test_a_start_that_waits_for_its_definition_can_be_terminated() -> None:
    driver = Driver()
    driver.start("saga")

    assert result(driver.act(Action.TERMINATE))["status"] == "terminated"


def test_nothing_can_be_done_to_a_finished_workflow() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    driver.done("a")

    for action in Action:
        assert ignored(driver.act(action)) == "already_finished"


# --- out of quarantine


def test_a_resumed_quarantined_workflow_sends_again_what_was_out() -> None:
    driver = Driver(saga(step("a"), step("b"), step("c", "a", "b")), round_trip=True)
    driver.start("saga")
    driver.done("a")
    driver.stop()
    assert ignored(driver.done("b")) == "stopped"

    resumed = driver.act(Action.RESUME)

    assert shown(resumed) == [
        "workflow quarantined -> running by resumed",
        "review -/quarantined closed: resume",
        "answered b/1/execute",
        "send b/1/execute",
    ]
    assert driver.state.stopped is None
    assert commands(driver.done("b")) == ["c/1/execute"]


def test_a_workflow_that_was_being_undone_goes_on_undoing() -> None:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")
    driver.stop()

    assert shown(driver.act(Action.RESUME)) == [
        "workflow quarantined -> compensating by resumed_undoing",
        "review -/quarantined closed: resume",
        "answered a/1/compensate",
        "send a/1/compensate",
    ]


def test_a_start_that_stopped_before_it_began_can_only_be_terminated() -> None:
    driver = Driver()
    driver.start("saga")
    driver.stop()

    assert ignored(driver.act(Action.RESUME)) == "not_possible"
    assert ignored(driver.act(Action.PAUSE)) == "not_possible"
    assert result(driver.act(Action.TERMINATE))["status"] == "terminated"


def test_a_quarantined_workflow_can_be_terminated_with_what_it_did() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.done("a", "out")
    driver.stop()

    terminated = driver.act(Action.TERMINATE)

    assert shown(terminated)[0] == "review -/quarantined closed: terminate"
    ended: Any = result(terminated)

    assert ended["status"] == "terminated" and ended["steps"][0]["output"] == "out"


def test_while_it_is_paused_no_fallback_agent_is_asked() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 1}, fallback={"agent": "other"})), round_trip=True)
    driver.start("saga")
    driver.act(Action.PAUSE)

    assert commands(driver.fail("a")) == []
    assert driver.wait(60_000) == []
    resumed = driver.act(Action.RESUME)

    assert [(sent.step, sent.agent, sent.attempt) for sent in [command(resumed)]] == [("a", "other", 2)]
    assert result(driver.done("a", attempt=2))["status"] == "degraded"
