"""What the fold writes is what `schemas.records` declares: no field more, none less, none of another type."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from sagalog.schemas import records
from sagalog.schemas.codec import decode, encode
from sagalog.schemas.events import FailureKind

from .driver import WORKFLOW, CircuitDriver, Driver, chain, dead_letters, result, reviews, saga, step

CHECKPOINT = TypeAdapter(records.CheckpointRecord)
RESULT = TypeAdapter(records.ResultRecord)
DEAD_LETTER = TypeAdapter(records.DeadLetterRecord)
REVIEW = TypeAdapter(records.ReviewRecord)
CIRCUIT = TypeAdapter(records.CircuitRecord)
ONCE = {"attempts": 1}


def as_declared(adapter: TypeAdapter[Any], record: Any) -> Any:
    """The record, if it has every field that its type demands and none that it does not name."""
    return adapter.validate_python(decode(encode(record)), extra="forbid")


def checkpoint(driver: Driver) -> Any:
    return as_declared(CHECKPOINT, decode(driver.dumps()[WORKFLOW]))


def worst() -> tuple[Driver, list[Any]]:
    """A workflow in which as much as possible happened; p's undoing is out, a's comes next."""
    driver = Driver(
        saga(
            step("a", compensate={"retry": {"attempts": 2}}, retry={"attempts": 2}),
            step("o", "a", critical=False, default=0, retry=ONCE, fallback={"agent": "other"}),
            step("p", "a", compensate={"retry": ONCE}),
            step("z", "o", "p", retry=ONCE),
        )
    )
    driver.start("saga", {"n": 1}, deadline_ms=10**6, correlation_id="c")
    driver.lose("a")
    driver.wait(30_000)
    driver.done("a", {"x": 1}, attempt=2)
    driver.fail("o", error_type="E", details={"d": 1}, agent="host")
    driver.fail("o", attempt=2)
    driver.done("p")
    return driver, driver.fail("z")


def test_every_checkpoint_of_a_workflow_that_runs_is_as_declared() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga", 1, deadline_ms=100, correlation_id="c")
    checkpoint(driver)
    driver.lose("a")
    checkpoint(driver)
    driver.stop()

    assert checkpoint(driver)["stopped"] == "not JSON"


def test_the_checkpoint_of_a_workflow_in_which_much_happened_is_as_declared() -> None:
    driver, _ = worst()

    found = checkpoint(driver)

    assert found["steps"][0]["unknown"]
    assert found["steps"][1]["stand_in"] == "default"


def test_the_checkpoint_of_an_undoing_that_failed_is_as_declared() -> None:
    driver, _ = worst()
    driver.fail("p", undo=True)

    checkpoint(driver)


def test_the_checkpoint_of_a_waiting_start_is_as_declared() -> None:
    driver = Driver()
    driver.start("saga", 1)

    checkpoint(driver)


def test_a_stub_is_as_declared() -> None:
    driver = Driver(chain("a"))
    driver.start("saga", 1)
    driver.done("a")

    assert "steps" not in checkpoint(driver)


def test_results_dead_letters_and_reviews_are_as_declared() -> None:
    driver, effects = worst()
    effects += driver.fail("p", undo=True)

    for letter in dead_letters(effects):
        as_declared(DEAD_LETTER, letter)
    for case in reviews(effects):
        as_declared(REVIEW, case)
    assert (len(dead_letters(effects)), len(reviews(effects))) == (2, 1)
    done = Driver(chain("a"))
    done.start("saga")
    as_declared(RESULT, result(done.done("a")))


def test_the_result_of_a_workflow_that_could_not_be_undone_is_as_declared() -> None:
    driver, _ = worst()
    driver.fail("p", undo=True)

    as_declared(RESULT, result(driver.done("a", undo=True)))


def test_a_review_that_a_step_asked_for_is_as_declared() -> None:
    driver = Driver(chain("a"))
    driver.start("saga")

    (case,) = reviews(driver.fail("a", FailureKind.REVIEW_NEEDED, "who?", details=[1]))

    assert as_declared(REVIEW, case)["details"] == [1]


def test_a_circuit_is_as_declared() -> None:
    driver = CircuitDriver()
    driver.outcome(*((n, 0, 0) for n in range(9)), parked=1)
    as_declared(CIRCUIT, driver.dump())
    driver.fire_due()

    assert as_declared(CIRCUIT, driver.dump())["probe"] == 0
