"""Two clocks: the owner's says when a timer fires, the broker's whether it was due. The owner's may be ahead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagalog.schemas.events import Timer
from sagalog.schemas.limits import DEFINITION_WAIT_MS

from .driver import CircuitDriver, Driver, chain, commands, ignored, saga, shown, step, waiting

ONCE = {"attempts": 1}


def backing_off() -> Driver:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    driver.fail("a", retry_after_ms=400)
    return driver


def undo_backing_off() -> Driver:
    driver = Driver(chain("a", "b", retry=ONCE))
    driver.start("saga")
    driver.done("a")
    driver.fail("b")
    driver.fail("a", undo=True, retry_after_ms=400)
    return driver


def asking_again() -> Driver:
    driver = Driver(saga(step("a", reconcile={})))
    driver.start("saga")
    driver.lose("a")
    driver.say_nothing("a", retry_after_ms=400)
    return driver


def asleep() -> Driver:
    driver = Driver(saga(waiting("a", sleep={"ms": 500})))
    driver.start("saga")
    return driver


def with_deadline() -> Driver:
    driver = Driver(saga(step("a"), deadline_ms=500))
    driver.start("saga")
    return driver


def without_definition() -> Driver:
    driver = Driver()
    driver.start("saga")
    return driver


CASES: dict[str, tuple[Callable[[], Driver], Timer, str | None, int | None]] = {
    "retry": (backing_off, Timer.RETRY, "a", 1),
    "undo_retry": (undo_backing_off, Timer.UNDO_RETRY, "a", 1),
    "question": (asking_again, Timer.QUESTION, "a", 1),
    "wake": (asleep, Timer.WAKE, "a", 1),
    "deadline": (with_deadline, Timer.DEADLINE, None, None),
    "definition": (without_definition, Timer.DEFINITION, None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_timer_that_is_not_due_by_the_broker_s_clock_is_ignored_until_it_is(case: str) -> None:
    make, timer, name, attempt = CASES[case]
    driver = make()
    before = driver.everything()
    due_ms = driver.state.due_ms()

    driver.now_ms = due_ms - 1
    assert ignored(driver.fire(timer, name, attempt)) == "not_due"
    assert driver.everything() == before

    driver.now_ms = due_ms
    assert shown(driver.fire(timer, name, attempt))[0] != "ignored not_due"


def test_a_start_waits_as_long_as_the_broker_says() -> None:
    driver = without_definition()
    driver.now_ms += DEFINITION_WAIT_MS

    assert "finished rejected" in shown(driver.fire(Timer.DEFINITION))


def test_a_circuit_s_timer_that_is_not_due_takes_no_probe_back() -> None:
    driver = CircuitDriver(round_trip=True)
    driver.outcome(*((offset, 0, 0) for offset in range(5)), parked=3)
    circuit = driver.partition.circuits["bank"]
    before = driver.dump()
    due_ms = circuit.due_ms()

    status, turn = circuit.timer()
    driver.now_ms = due_ms - 1
    assert ignored(driver.fire_as_it_is(status, turn)) == "not_due"
    assert driver.dump() == before

    driver.now_ms = due_ms
    driver.fire_as_it_is(status, turn)
    assert driver.dump()["status"] == "half_open"


def test_a_retry_that_came_early_goes_out_once_it_is_due() -> None:
    driver = backing_off()
    driver.fire(Timer.RETRY, "a", 1)

    assert commands(driver.wait(60_000)) == ["a/2/execute"]
