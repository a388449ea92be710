"""Retries: what is tried again, how long the wait is, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.state import NEVER
from sagalog.schemas.events import FailureKind, Timer
from sagalog.schemas.limits import ERROR_TYPE_CHARS_MAX, FAILURE_MESSAGE_CHARS_MAX, RECORD_BYTES_MAX, STATE_BYTES_MAX

from .driver import START_MS, WORKFLOW, Driver, command, dead_letters, result, saga, shown, step

RETRY = {"attempts": 3, "base_ms": 1_000, "factor": 2.0, "cap_ms": 3_000}


def started(**more: Any) -> Driver:
    driver = Driver(saga(step("a", retry=RETRY, **more)))
    driver.start("saga", {"n": 1})
    return driver


def wait_ms(driver: Driver) -> int:
    """How long the only step waits for its next attempt."""
    return driver.state.steps[0].retry_at_ms - driver.state.now_ms


def test_a_retryable_failure_backs_off_and_sends_the_next_attempt() -> None:
    driver = started()

    failed = driver.fail("a")
    again = driver.wait(3_000)

    assert shown(failed) == ["answered a/1/execute", "called a failed", "a running -> backing_off by failed"]
    assert shown(again) == ["a backing_off -> running by dispatched", "send a/2/execute"]
    assert command(again).input == {"n": 1}
    assert driver.state.steps[0].retry_at_ms == NEVER


def test_nothing_is_sent_before_the_wait_is_over() -> None:
    driver = started()
    driver.fail("a", retry_after_ms=3_000)

    assert driver.wait(2_999) == []
    assert shown(driver.wait(1)) == ["a backing_off -> running by dispatched", "send a/2/execute"]


@pytest.mark.parametrize(
    ("lost", "call"),
    [
        (lambda driver: driver.fail("a", FailureKind.TIMEOUT), "called a failed (bank: fault)"),
        (lambda driver: driver.lose("a"), "called a failed (bank: fault)"),
        (lambda driver: driver.fail("a", FailureKind.RETRYABLE), "called a failed (bank: fault)"),
        (lambda driver: driver.fail("a", FailureKind.INVALID_OUTPUT), "called a failed (bank)"),
        (lambda driver: driver.done("a", {"n": "text"}), "called a failed (bank)"),
    ],
    ids=["timeout", "lost", "retryable", "invalid_output", "output_against_the_schema"],
)
def test_what_may_succeed_next_time_is_retried(lost: Any, call: str) -> None:
    driver = started(service="bank", output_schema={"properties": {"n": {"type": "integer"}}})

    assert shown(lost(driver)) == ["answered a/1/execute", call, "a running -> backing_off by failed"]


def test_an_output_against_the_schema_fails_with_its_path() -> None:
    driver = started(output_schema={"properties": {"n": {"type": "integer"}}})

    driver.done("a", {"n": "text"})

    (failure,) = driver.state.steps[0].failures
    assert (failure["kind"], failure["message"]) == ("invalid_output", 'output.n: "text" is not of type "integer"')
    assert driver.state.steps[0].output is None


def test_an_output_that_fits_the_schema_ends_the_step() -> None:
    driver = started(output_schema={"properties": {"n": {"type": "integer"}}})

    assert shown(driver.done("a", {"n": 1}))[-1] == "finished completed"


@pytest.mark.parametrize(
    "kind",
    [FailureKind.TERMINAL, FailureKind.INVALID_INPUT, FailureKind.CIRCUIT_OPEN, FailureKind.CANCELLED],
)
def test_a_terminal_kind_is_not_retried(kind: FailureKind) -> None:
    driver = started()

    effects = driver.fail("a", kind)

    assert shown(effects)[:5] == [
        "answered a/1/execute",
        "called a failed",
        "dead letter a/1/execute",
        "a running -> failed by given_up",
        "workflow running -> compensating by step_failed",
    ]
    assert len(effects) == 7  # the workflow's end, and nothing else


def test_an_error_type_named_terminal_is_not_retried_and_others_are() -> None:
    definition = saga(step("a", retry={**RETRY, "terminal": ["CardDeclined"]}))
    declined, busy = Driver(definition), Driver(definition)
    declined.start("saga")
    busy.start("saga")

    assert "a running -> failed by given_up" in shown(declined.fail("a", error_type="CardDeclined"))
    assert "a running -> backing_off by failed" in shown(busy.fail("a", error_type="Busy"))


def test_the_last_attempt_gives_up_with_a_dead_letter_that_has_every_failure() -> None:
    driver = started()
    for attempt in (1, 2):
        driver.fail("a", message=f"no {attempt}", attempt=attempt, error_type="Busy", details={"n": attempt}, agent="h")
        driver.wait(3_000)

    effects = driver.fail("a", message="no 3", attempt=3)

    assert shown(effects) == [
        "answered a/3/execute",
        "called a failed",
        "dead letter a/3/execute",
        "a running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]
    (letter,) = dead_letters(effects)
    assert letter["id"] == f"{WORKFLOW}/a/3/execute"
    assert (letter["step"], letter["agent"], letter["direction"], letter["input"]) == ("a", "a", "execute", {"n": 1})
    assert letter["failed_attempts"] == 3
    assert [(f["attempt"], f["message"], f["kind"]) for f in letter["failures"]] == [
        (1, "no 1", "retryable"),
        (2, "no 2", "retryable"),
        (3, "no 3", "retryable"),
    ]
    assert letter["failures"][0] == {
        "kind": "retryable",
        "message": "no 1",
        "at_ms": START_MS,
        "attempt": 1,
        "agent": "h",
        "error_type": "Busy",
        "details": {"n": 1},
    }
    record = result(effects)
    assert "output" not in record
    assert (record["failure"]["step"], record["failure"]["message"], record["completeness"]) == ("a", "no 3", 0.0)


def test_one_attempt_means_no_retry() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 1})))
    driver.start("saga")

    assert shown(driver.fail("a"))[-1] == "finished failed"


def test_only_the_newest_twenty_failures_are_kept_and_all_are_counted() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 25, "base_ms": 1, "cap_ms": 1})))
    driver.start("saga")
    for attempt in range(1, 25):
        driver.fail("a", attempt=attempt, message=str(attempt))
        driver.wait(1)

    (letter,) = dead_letters(driver.fail("a", attempt=25, message="25"))

    assert [failure["message"] for failure in letter["failures"]] == [str(n) for n in range(6, 26)]
    assert letter["failed_attempts"] == 25


def test_a_message_is_cut_at_its_limit() -> None:
    driver = started()
    driver.fail("a", message="x" * 5_000)

    assert driver.state.steps[0].failures[0]["message"] == "x" * FAILURE_MESSAGE_CHARS_MAX


def waits_of(workflow: str, retry: dict[str, Any], attempts: int) -> list[int]:
    driver = Driver(saga(step("a", retry=retry)))
    driver.start("saga")
    # Another seed stands for another workflow: the jitter is a hash of it and the command.
    driver.state.seed = workflow
    waits = []
    for _ in range(attempts):
        driver.lose("a", driver.state.steps[0].attempt)
        waits.append(wait_ms(driver))
        driver.wait(waits[-1])
    return waits


def test_the_wait_is_a_random_part_of_the_exponential_up_to_its_cap() -> None:
    retry = {"attempts": 8, "base_ms": 100, "factor": 3.0, "cap_ms": 2_000}
    ceilings = [100, 300, 900, 2_000, 2_000]
    waits = [waits_of(f"seed-{n}", retry, 5) for n in range(60)]

    for place, ceiling in enumerate(ceilings):
        column = [row[place] for row in waits]
        assert min(column) >= 1
        assert max(column) <= ceiling
        # Full jitter: it reaches down to nothing and up to the ceiling, and two workflows do not wait in step.
        assert min(column) < 0.2 * ceiling
        assert max(column) > 0.8 * ceiling
        assert len(set(column)) > 20


def test_the_wait_is_the_same_on_a_second_folding() -> None:
    retry = {"attempts": 8, "base_ms": 100, "factor": 3.0, "cap_ms": 2_000}

    assert waits_of("seed", retry, 5) == waits_of("seed", retry, 5)


def test_the_largest_policy_does_not_overflow() -> None:
    day_ms = 24 * 3600 * 1000
    waits = waits_of("seed", {"attempts": 100, "base_ms": day_ms, "factor": 100.0, "cap_ms": day_ms}, 99)

    assert all(1 <= wait <= day_ms for wait in waits)


@pytest.mark.parametrize(
    ("asked_ms", "least_ms", "most_ms"),
    [
        (2_500, 2_500, 2_500),
        (3_000, 3_000, 3_000),
        (900_000, 3_000, 3_000),
        (0, 1, 1_000),
        (-5, 1, 1_000),
        (None, 1, 1_000),
    ],
)
def test_what_the_agent_asks_for_is_waited_up_to_the_cap(asked_ms: int | None, least_ms: int, most_ms: int) -> None:
    driver = started()

    driver.fail("a", retry_after_ms=asked_ms)

    assert least_ms <= wait_ms(driver) <= most_ms


def test_a_second_retry_timer_is_ignored() -> None:
    driver = started()
    driver.fail("a")
    driver.wait(60_000)

    assert shown(driver.fire(Timer.RETRY, "a", 1)) == ["ignored not_waited_for"]


def test_an_output_beyond_the_workflows_payload_limit_is_invalid() -> None:
    fit = STATE_BYTES_MAX // 250_000
    driver = Driver(saga(*(step(f"s{n}", retry={"attempts": 1}) for n in range(fit + 2))))
    driver.start("saga")
    for n in range(fit):
        assert f"s{n} running -> done by completed" in shown(driver.done(f"s{n}", "x" * 249_000))

    effects = driver.done(f"s{fit}", "x" * 249_000)

    assert f"s{fit} running -> failed by given_up" in shown(effects)
    assert driver.state.failure is not None
    assert driver.state.failure["kind"] == "invalid_output"
    assert f"would exceed {STATE_BYTES_MAX:,}" in driver.state.failure["message"]


def test_failures_never_fill_the_state_beyond_what_a_checkpoint_can_hold() -> None:
    driver = Driver(saga(step("fill"), step("a", retry={"attempts": 50, "base_ms": 1, "cap_ms": 1})))
    driver.start("saga", "x" * 200_000)
    driver.done("fill", "x" * 199_000)
    kept = []
    for attempt in range(1, 20):
        driver.fail("a", attempt=attempt, message=str(attempt), details="x" * 15_000)
        driver.wait(1)
        kept.append(driver.state.steps[1].failures[-1])
        assert len(driver.dumps()[WORKFLOW]) <= RECORD_BYTES_MAX

    # The newest is always there; the one that finds the state full comes without its details.
    assert [failure["message"] for failure in kept] == [str(attempt) for attempt in range(1, 20)]
    assert 0 < sum("details" not in failure for failure in kept) < 19
    assert driver.state.steps[1].failed_attempts == 19


def test_a_failure_with_a_huge_error_type_does_not_fill_the_state() -> None:
    driver = Driver(saga(step("a"), step("b")))
    driver.start("saga")
    driver.fail("a", error_type="x" * 900_000)
    driver.fail("b", error_type="x" * 900_000)

    assert len(driver.dumps()[WORKFLOW]) <= RECORD_BYTES_MAX


def test_a_failures_text_counts_as_it_is_written() -> None:
    # Each of these characters is six bytes of JSON; counted as one they would make a checkpoint of 3.3 MB.
    driver = Driver(saga(*(step(f"s{n}", retry={"attempts": 50, "base_ms": 1, "cap_ms": 1}) for n in range(60))))
    driver.start("saga")
    for attempt in range(1, 20):
        for n in range(60):
            driver.fail(f"s{n}", attempt=attempt, message="\x01" * 500, error_type="\x01" * 100)
        driver.wait(1)

    assert len(driver.dumps()[WORKFLOW]) <= RECORD_BYTES_MAX


def test_an_error_type_is_cut_at_its_limit() -> None:
    driver = started()
    driver.fail("a", error_type="x" * 5_000)

    assert driver.state.steps[0].failures[0]["error_type"] == "x" * ERROR_TYPE_CHARS_MAX


def test_a_command_that_could_not_be_sent_is_not_tried_again_and_has_no_effect_to_undo() -> None:
    driver = started(compensate={}, service="bank")

    effects = driver.lose("a", kind=FailureKind.INVALID_INPUT)

    assert shown(effects) == [
        "answered a/1/execute",
        # nobody was called: nothing counts for or against the service
        "dead letter a/1/execute",
        "a running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]
    assert result(effects)["failure"]["kind"] == "invalid_input"


def test_an_output_beyond_its_own_limit_is_invalid() -> None:
    driver = started()

    assert "a running -> backing_off by failed" in shown(driver.done("a", "x" * 300_000))


def test_details_beyond_their_limit_are_not_kept() -> None:
    driver = started()

    driver.fail("a", details="x" * 100_000)

    assert driver.state.steps[0].failures[0]["details"] == {"dropped": "100,002 bytes of details"}
