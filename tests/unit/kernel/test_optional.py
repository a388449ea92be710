"""Steps that may fail: defaults, fallbacks, circuit policies, and the manifest that says what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.definitions import from_step
from sagalog.schemas.events import FailureKind

from .driver import Driver, command, dead_letters, dispatched, result, saga, shown, step

ONCE = {"attempts": 1}


def test_an_optional_step_that_fails_gives_its_default_and_the_rest_goes_on() -> None:
    driver = Driver(
        saga(
            step("score", critical=False, default={"score": 0}, retry=ONCE),
            step("decide", "score", input=from_step("score", "score")),
        )
    )
    driver.start("saga")

    failed = driver.fail("score", message="no model")
    ended = driver.done("decide", "yes")

    assert shown(failed) == [
        "answered score/1/execute",
        "called score failed",
        "dead letter score/1/execute",
        "score running -> degraded by given_up",
        "decide waiting -> running by dispatched",
        "send decide/1/execute",
    ]
    assert command(failed).input == 0
    assert shown(ended)[2:] == [
        "decide running -> done by completed",
        "workflow running -> degraded by ended_with_gaps",
        "finished degraded",
    ]
    record = result(ended)
    assert record["missing"] == [{"step": "score", "why": "no model", "kind": "retryable", "stand_in": "default"}]
    assert (record["completeness"], record["output"]) == (0.5, {"decide": "yes"})
    assert "failure" not in record


def test_an_optional_step_is_retried_first() -> None:
    driver = Driver(saga(step("a", critical=False, retry={"attempts": 2})))
    driver.start("saga")

    assert "a running -> backing_off by failed" in shown(driver.fail("a"))
    driver.wait(30_000)
    assert shown(driver.fail("a", attempt=2))[-1] == "finished degraded"


def test_the_manifest_has_one_line_per_degraded_step_in_the_definitions_order() -> None:
    driver = Driver(saga(*(step(name, critical=False, retry=ONCE) for name in "abc"), step("d")))
    driver.start("saga")
    driver.fail("c", message="third")
    driver.done("d")
    driver.done("b")

    record = result(driver.fail("a", FailureKind.TERMINAL, "first"))

    assert [(m["step"], m["why"], m["kind"]) for m in record["missing"]] == [
        ("a", "first", "terminal"),
        ("c", "third", "retryable"),
    ]
    assert record["completeness"] == 0.5


def test_completeness_is_rounded_to_four_places() -> None:
    driver = Driver(saga(step("a", critical=False, retry=ONCE), step("b"), step("c")))
    driver.start("saga")
    driver.fail("a")
    driver.done("b")

    assert result(driver.done("c"))["completeness"] == 0.6667


@pytest.mark.parametrize("kind", [FailureKind.REVIEW_NEEDED, FailureKind.INVALID_INPUT, FailureKind.TERMINAL])
def test_an_optional_step_never_stops_the_workflow(kind: FailureKind) -> None:
    driver = Driver(saga(step("a", critical=False, default=7)))
    driver.start("saga")

    effects = driver.fail("a", kind, "why")

    assert shown(effects)[-2:] == ["workflow running -> degraded by ended_with_gaps", "finished degraded"]
    assert result(effects)["missing"][0]["kind"] == kind


def test_a_fallback_value_stands_in_for_a_critical_step() -> None:
    driver = Driver(
        saga(step("rate", retry=ONCE, fallback={"value": 1.1}), step("sum", "rate", input=from_step("rate")))
    )
    driver.start("saga")

    failed = driver.fail("rate", message="down")
    record = result(driver.done("sum"))

    assert shown(failed) == [
        "answered rate/1/execute",
        "called rate failed",
        "dead letter rate/1/execute",
        "rate running -> degraded by fell_back",
        "sum waiting -> running by dispatched",
        "send sum/1/execute",
    ]
    assert command(failed).input == 1.1
    assert record["missing"] == [{"step": "rate", "why": "down", "kind": "retryable", "stand_in": "fallback"}]


def test_a_fallback_agent_is_asked_at_once_when_the_steps_own_failed_for_good() -> None:
    driver = Driver(saga(step("ocr", retry=ONCE, fallback={"agent": "ocr2"}, service="vision")))
    driver.start("saga", "page")

    failed = driver.fail("ocr", message="blind")
    ended = driver.done("ocr", "text", attempt=2)

    assert shown(failed) == [
        "answered ocr/1/execute",
        "called ocr failed (vision: fault)",
        "ocr running -> running by dispatched",
        "send ocr/2/execute to ocr2",
    ]
    # Another agent calls another service: the step's circuit must not hold it.
    dispatch = dispatched(failed)
    assert (dispatch.command.input, dispatch.command.service, dispatch.policy) == ("page", None, None)
    assert shown(ended) == [
        "answered ocr/2/execute",
        "called ocr2 ok",
        "ocr running -> degraded by completed",
        "workflow running -> degraded by ended_with_gaps",
        "finished degraded",
    ]
    record = result(ended)
    assert record["output"] == {"ocr": "text"}
    assert record["missing"] == [{"step": "ocr", "why": "blind", "kind": "retryable", "stand_in": "fallback:ocr2"}]


def test_a_fallback_agent_has_as_many_attempts_as_the_steps_own() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 2, "base_ms": 1}, fallback={"agent": "b"})))
    driver.start("saga")
    sent = []
    for attempt in (1, 2, 3, 4):
        effects = driver.fail("a", attempt=attempt) + driver.wait(30_000)
        sent += [line for line in shown(effects) if line.startswith(("send", "dead", "finished"))]
        if "finished failed" in sent:
            break

    assert sent == [
        "send a/2/execute",
        "send a/3/execute to b",
        "send a/4/execute to b",
        "dead letter a/4/execute",
        "finished failed",
    ]


def test_a_fallback_agent_has_no_more_attempts_when_the_steps_own_failed_early() -> None:
    driver = Driver(saga(step("a", retry={"attempts": 3, "base_ms": 1}, fallback={"agent": "b"})))
    driver.start("saga")
    driver.fail("a", FailureKind.TERMINAL)
    for attempt in (2, 3):
        driver.fail("a", attempt=attempt)
        driver.wait(30_000)

    assert shown(driver.fail("a", attempt=4))[-1] == "finished failed"


def test_an_optional_step_whose_fallback_agent_fails_too_gives_its_default() -> None:
    driver = Driver(saga(step("a", critical=False, default="none", retry=ONCE, fallback={"agent": "b"})))
    driver.start("saga")
    driver.fail("a", message="own")

    effects = driver.fail("a", attempt=2, message="fallback")

    assert shown(effects)[:4] == [
        "answered a/2/execute",
        "called b failed",
        "dead letter a/2/execute",
        "a running -> degraded by given_up",
    ]
    assert result(effects)["missing"] == [{"step": "a", "why": "fallback", "kind": "retryable", "stand_in": "default"}]
    assert result(effects)["output"] == {"a": "none"}
    (letter,) = dead_letters(effects)
    assert (letter["agent"], letter["failed_attempts"]) == ("b", 2)


def test_a_fallback_agent_must_keep_the_steps_output_schema() -> None:
    driver = Driver(saga(step("a", retry=ONCE, fallback={"agent": "b"}, output_schema={"type": "string"})))
    driver.start("saga")
    driver.fail("a", FailureKind.TERMINAL)

    effects = driver.done("a", 5, attempt=2)

    assert shown(effects)[:4] == [
        "answered a/2/execute",
        "called b failed",
        "dead letter a/2/execute",
        "a running -> failed by given_up",
    ]


def test_a_step_that_asks_for_a_person_does_not_fall_back() -> None:
    driver = Driver(saga(step("a", fallback={"value": 1})))
    driver.start("saga")

    assert shown(driver.fail("a", FailureKind.REVIEW_NEEDED))[-1] == "finished review"


def guarded(when_open: str, **more: Any) -> Driver:
    driver = Driver(saga(step("a", service="bank", when_open=when_open, **more)))
    driver.start("saga")
    return driver


def test_an_open_circuit_fails_a_step_that_does_not_wait() -> None:
    effects = guarded("fail").refuse("a", "bank")

    # Nothing was called: the circuit must not count its own refusals.
    assert shown(effects) == [
        "answered a/1/execute",
        "dead letter a/1/execute",
        "a running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]
    assert result(effects)["failure"]["kind"] == "circuit_open"
    assert result(effects)["failure"]["message"] == "the circuit of service 'bank' is open"


def test_an_open_circuit_degrades_an_optional_step_that_does_not_wait() -> None:
    effects = guarded("fail", critical=False, default=0).refuse("a", "bank")

    assert result(effects)["missing"][0] == {
        "step": "a",
        "why": "the circuit of service 'bank' is open",
        "kind": "circuit_open",
        "stand_in": "default",
    }


def test_an_open_circuit_sends_a_step_to_its_fallback_agent() -> None:
    effects = guarded("fall_back", fallback={"agent": "b"}).refuse("a", "bank")

    assert shown(effects) == ["answered a/1/execute", "a running -> running by dispatched", "send a/2/execute to b"]


def test_an_open_circuit_gives_a_step_its_fallback_value() -> None:
    effects = guarded("fall_back", fallback={"value": 3}).refuse("a", "bank")

    assert shown(effects) == [
        "answered a/1/execute",
        "dead letter a/1/execute",
        "a running -> degraded by fell_back",
        "workflow running -> degraded by ended_with_gaps",
        "finished degraded",
    ]
    assert result(effects)["output"] == {"a": 3}
    assert result(effects)["missing"][0]["stand_in"] == "fallback"


def test_a_refusal_while_the_workflow_stops_cancels_the_step() -> None:
    driver = guarded("fall_back", fallback={"value": 3})
    driver.cancel()

    assert shown(driver.refuse("a", "bank")) == [
        "answered a/1/execute",
        "a running -> cancelled by stopped",
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
    ]


def test_the_command_says_what_to_do_when_the_circuit_is_open() -> None:
    definition = saga(step("a", service="bank", when_open="fail"))

    dispatch = dispatched(Driver(definition).start("saga"))

    assert dispatch.when_open == "fail"
    assert dispatch.policy == definition.circuit_policy("bank")
