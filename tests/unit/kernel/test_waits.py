"""Steps without an agent: sleeping, waiting for a signal, and what becomes of signals that nobody waits for yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagalog.schemas.definitions import Step, from_input
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import FailureKind, Timer
from sagalog.schemas.limits import SIGNAL_KEEP_MS, SIGNALS_KEPT_MAX

from .driver import START_MS, Driver, commands, ignored, result, saga, shown, step, waiting

PAID = {"signal": "paid", "timeout_ms": 60_000}


# --- sleep


def test_a_sleep_ends_when_its_time_is_over_and_not_before() -> None:
    driver = Driver(saga(waiting("nap", sleep={"ms": 5_000}), step("after", "nap")))

    started = driver.start("saga")
    early = driver.wait(4_999)
    woken = driver.wait(1)

    assert shown(started) == ["workflow None -> running by started", "nap waiting -> awaiting by awaited"]
    assert early == []
    assert shown(woken) == [
        "nap awaiting -> done by woke",
        "after waiting -> running by dispatched",
        "send after/1/execute",
    ]


@pytest.mark.parametrize(
    "until",
    [START_MS + 7_000, (datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(seconds=7)).isoformat()],
)
def test_a_sleep_until_a_time_in_the_input(until: int | str) -> None:
    driver = Driver(saga(waiting("nap", sleep={"until": from_input("at")})))

    driver.start("saga", {"at": until})

    assert driver.wait(6_999) == []
    assert result(driver.wait(1))["status"] == "completed"


def test_a_time_that_is_past_ends_the_sleep_at_once() -> None:
    driver = Driver(saga(waiting("nap", sleep={"until": from_input()})))

    assert result(driver.start("saga", 5))["status"] == "completed"


@pytest.mark.parametrize("until", ["tomorrow", "2026-01-01T00:00:00", None, 1.5, True, {}, 2**62])
def test_a_time_that_is_none_fails_the_step(until: Any) -> None:
    driver = Driver(saga(waiting("nap", sleep={"until": from_input()})))

    ended = result(driver.start("saga", until))

    assert ended["failure"]["kind"] == FailureKind.TERMINAL
    assert "it is to sleep until" in ended["failure"]["message"]


def test_a_wake_of_an_earlier_sleep_is_ignored() -> None:
    driver = Driver(saga(waiting("nap", sleep={"ms": 50})))
    driver.start("saga")

    assert ignored(driver.fire(Timer.WAKE, "nap", 2)) == "not_waited_for"


def test_a_cancel_ends_a_sleep() -> None:
    driver = Driver(saga(waiting("nap", sleep={"ms": 50})))
    driver.start("saga")

    cancelled = driver.cancel()

    assert "nap awaiting -> cancelled by stopped" in shown(cancelled)
    assert result(cancelled)["status"] == "cancelled"


# --- signals


def test_a_signal_ends_the_step_that_waits_for_it_with_its_payload() -> None:
    driver = Driver(saga(waiting("payment", wait_for=PAID), step("ship", "payment", input={"step": "payment"})))
    driver.start("saga")

    signalled = driver.signal("paid", {"amount": 7})

    assert shown(signalled) == [
        "payment awaiting -> done by signalled",
        "ship waiting -> running by dispatched",
        "send ship/1/execute",
    ]
    assert result(driver.done("ship"))["steps"][0]["output"] == {"amount": 7}


def test_a_signal_that_comes_early_is_kept_and_taken_in_order() -> None:
    driver = Driver(
        saga(step("a"), waiting("one", "a", wait_for=PAID), waiting("two", "one", wait_for=PAID)), round_trip=True
    )
    driver.start("saga")

    assert driver.signal("paid", 1, ce_id="s1") == []
    assert driver.signal("paid", 2, ce_id="s2") == []
    assert [signal["payload"] for signal in driver.state.signals] == [1, 2]
    ended = result(driver.done("a"))

    assert [found.get("output") for found in ended["steps"]] == [None, 1, 2]


def test_a_signal_that_comes_twice_is_taken_once() -> None:
    driver = Driver(saga(waiting("one", wait_for=PAID), waiting("two", "one", wait_for=PAID)))
    driver.start("saga")
    driver.signal("paid", 1, ce_id="s1")

    assert ignored(driver.signal("paid", 1, ce_id="s1")) == "duplicate"
    assert driver.state.steps[1].status == "awaiting"


def test_a_signal_that_no_step_ever_waits_for_is_ignored() -> None:
    driver = Driver(saga(waiting("payment", wait_for=PAID)))
    driver.start("saga")

    assert ignored(driver.signal("payed")) == "unknown_signal"


def test_a_payload_that_does_not_fit_is_ignored_and_a_later_one_is_taken() -> None:
    schema = {"type": "object", "required": ["amount"]}
    driver = Driver(saga(waiting("payment", wait_for={**PAID, "payload_schema": schema})))
    driver.start("saga")

    assert ignored(driver.signal("paid", {}, ce_id="s1")) == "invalid_payload"
    assert result(driver.signal("paid", {"amount": 1}, ce_id="s2"))["status"] == "completed"


def test_only_so_many_signals_are_kept_and_old_ones_make_room() -> None:
    driver = Driver(saga(step("a"), waiting("payment", "a", wait_for=PAID)))
    driver.start("saga")
    for number in range(SIGNALS_KEPT_MAX):
        assert driver.signal("paid", number, ce_id=f"s{number}") == []
    before = driver.state.bytes

    assert ignored(driver.signal("paid", "x", ce_id="one-more")) == "signals_full"
    driver.now_ms += SIGNAL_KEEP_MS
    assert driver.signal("paid", "new", ce_id="later") == []

    assert [signal["payload"] for signal in driver.state.signals] == ["new"]
    assert driver.state.bytes < before


def test_a_signal_that_does_not_come_in_time_fails_the_step() -> None:
    driver = Driver(saga(waiting("payment", wait_for=PAID)))
    driver.start("saga")

    ended = result(driver.wait(60_000))

    assert ended["status"] == "failed"
    assert ended["failure"]["kind"] == FailureKind.TIMEOUT
    assert ended["failure"]["message"] == "no signal 'paid' came within 60,000 ms"


def test_an_optional_wait_that_times_out_degrades() -> None:
    driver = Driver(saga(waiting("payment", wait_for=PAID, critical=False, default="unpaid")))
    driver.start("saga")

    ended = result(driver.wait(60_000))

    assert ended["status"] == "degraded" and ended["output"] == {"payment": "unpaid"}


def test_what_a_signal_led_to_is_undone_by_the_agent_that_the_definition_names() -> None:
    driver = Driver(
        saga(
            waiting("payment", wait_for=PAID, compensate={"agent": "refund"}),
            step("ship", "payment", retry={"attempts": 1}),
        )
    )
    driver.start("saga")
    driver.signal("paid", 5)

    assert commands(driver.fail("ship")) == ["payment/1/compensate"]


def test_signals_are_ignored_while_the_workflow_is_being_undone() -> None:
    driver = Driver(saga(step("a", compensate={}), waiting("payment", "a", wait_for=PAID)))
    driver.start("saga")
    driver.done("a")
    driver.cancel()

    assert ignored(driver.signal("paid")) == "not_possible"


# --- what is refused


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({}, "steps.s", "needs exactly one of agent, workflow, sleep, wait_for, task; it has none"),
        ({"agent": "a", "sleep": {"ms": 50}}, "steps.s", "it has agent and sleep"),
        ({"sleep": {}}, "steps.s.sleep", "needs exactly one of ms, until"),
        ({"sleep": {"ms": 50, "until": {"value": 1}}}, "steps.s.sleep", "needs exactly one of ms, until"),
        ({"sleep": {"until": {"step": "t"}}}, "steps.s.sleep.until", "add it to needs"),
        ({"sleep": {"ms": 50}, "retry": {"attempts": 9}}, "steps.s.retry", "is of agents' attempts"),
        ({"sleep": {"ms": 50}, "service": "x"}, "steps.s.service", "this step has sleep; drop it"),
        ({"sleep": {"ms": 50}, "compensate": {}}, "steps.s.compensate.agent", "is missing"),
        ({"wait_for": {"signal": "x", "timeout_ms": 50, "payload_schema": {"type": 1}}}, "payload_schema", "JSON Sch"),
        ({"task": {"title": "x", "timeout_ms": 50, "form": {"type": 1}}}, "steps.s.task.form", "JSON Schema"),
        ({"agent": "a", "critical": False, "when_failed": "review"}, "steps.s.when_failed", "is for critical steps"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        saga(Step(name="s", **more), step("t"))

    assert field in raised.value.field and said in str(raised.value)
