"""Budgets: what is reserved before an attempt, what its result settles, and what a breach leads to."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import Decision, FailureKind
from sagalog.schemas.limits import USAGE_MAX

from .driver import Driver, commands, dead_letters, result, reviews, saga, shown, step

MANY = {"attempts": 10}


def test_an_attempt_that_would_exceed_the_step_s_budget_is_not_made() -> None:
    driver = Driver(saga(step("a", retry=MANY, budget={"tokens": 100}, reserve={"tokens": 40})), round_trip=True)
    driver.start("saga")
    driver.fail("a", tokens=70)

    ended = driver.wait(60_000)

    assert "a backing_off -> failed by given_up" in shown(ended)
    record = result(ended)
    assert record["failure"]["kind"] == FailureKind.OVER_BUDGET
    assert record["failure"]["message"] == (
        "the step's budget of 100 tokens does not suffice: 70 used or reserved, 40 more"
    )
    assert record["usage"] == {"attempts": 1, "tokens": 70, "cost": 0}


def test_what_attempts_use_beyond_their_reserve_counts() -> None:
    driver = Driver(saga(step("a"), step("b", "a"), budget={"cost": 10}))
    driver.start("saga")

    ended = result(driver.done("a", cost=10))

    assert (
        ended["failure"]["message"] == "the workflow's budget of 10 cost does not suffice: 10 used or reserved, 0 more"
    )


def test_what_is_out_counts_with_its_reserve() -> None:
    driver = Driver(
        saga(step("a", reserve={"cost": 6}), step("b", reserve={"cost": 6}, critical=False), budget={"cost": 10})
    )

    started = driver.start("saga")

    assert commands(started) == ["a/1/execute"]
    assert "b waiting -> degraded by given_up" in shown(started)


def test_the_time_that_attempts_are_out_is_a_budget_too() -> None:
    driver = Driver(saga(step("a", retry=MANY, budget={"ms": 1_000}), step("b", "a")), round_trip=True)
    driver.start("saga")
    driver.now_ms += 600
    driver.fail("a")
    assert commands(driver.wait(60_000)) == ["a/2/execute"]  # what it waits between two attempts does not count
    driver.now_ms += 500
    driver.fail("a", attempt=2)

    ended = result(driver.wait(60_000))

    assert ended["failure"]["message"] == (
        "the step's budget of 1,000 ms does not suffice: 1,100 used or reserved, 0 more"
    )
    assert ended["usage"] == {"attempts": 2, "tokens": 0, "cost": 0, "ms": 1_100}


def test_the_time_of_what_is_out_counts_as_it_passes() -> None:
    driver = Driver(
        saga(step("a"), step("b"), step("c", "b", reserve={"ms": 500}), budget={"ms": 1_000}), round_trip=True
    )
    driver.start("saga")
    driver.now_ms += 300
    # b took 300, a is out for as long, and 500 more do not fit.
    effects = driver.done("b")
    assert "c waiting -> failed by given_up" in shown(effects)
    assert driver.state.failure is not None
    assert driver.state.failure["message"].endswith("does not suffice: 600 used or reserved, 500 more")


def test_without_a_budget_of_time_none_is_kept() -> None:
    driver = Driver(saga(step("a", budget={"tokens": 5})), round_trip=True)
    driver.start("saga")
    assert driver.state.steps[0].sent_ms == 0
    assert b"sent_ms" not in driver.dumps()[driver.state.workflow_id]


def test_the_number_of_attempts_is_a_budget_too() -> None:
    driver = Driver(saga(step("a", retry=MANY), budget={"attempts": 2}))
    driver.start("saga")
    driver.fail("a")
    assert commands(driver.wait(60_000)) == ["a/2/execute"]
    driver.fail("a", attempt=2)

    assert result(driver.wait(60_000))["failure"]["kind"] == FailureKind.OVER_BUDGET


@pytest.mark.parametrize("kind", [FailureKind.TIMEOUT, FailureKind.LOST])
def test_of_an_attempt_of_which_nobody_can_say_the_reserve_counts_as_used(kind: FailureKind) -> None:
    driver = Driver(saga(step("a", retry=MANY, budget={"tokens": 1_000}, reserve={"tokens": 40})), round_trip=True)
    driver.start("saga")
    if kind is FailureKind.LOST:
        driver.lose("a")
    else:
        driver.fail("a", kind)

    assert driver.state.steps[0].tokens == 40


@pytest.mark.parametrize(("said", "counted"), [(-5, 0), (10**30, USAGE_MAX), (None, 0)])
def test_nonsense_in_a_result_s_usage_is_cut(said: int | None, counted: int) -> None:
    driver = Driver(saga(step("a"), step("b", "a"), budget={"cost": 10**14}))
    driver.start("saga")
    if said is not None and said > 2**63:
        said = 2**63 - 1
    driver.done("a", cost=said)

    assert driver.state.steps[0].cost == counted


def test_a_breach_takes_the_cheaper_fallback() -> None:
    cheap = {"agent": "small-model", "on": ["over_budget"], "reserve": {"tokens": 5}}
    driver = Driver(saga(step("a", fallbacks=[cheap], reserve={"tokens": 50}), step("z"), budget={"tokens": 54}))

    assert commands(driver.start("saga")) == ["a/1/execute", "z/1/execute"]

    again = Driver(
        saga(step("z"), step("a", "z", fallbacks=[cheap], reserve={"tokens": 50}), budget={"tokens": 54}),
        round_trip=True,
    )
    again.start("saga")
    sent = again.done("z", tokens=40)
    assert "send a/1/execute to small-model" in shown(sent)
    assert result(again.done("a", "cheap", tokens=5))["status"] == "degraded"


def test_a_breach_may_ask_a_person() -> None:
    driver = Driver(saga(step("z"), step("a", "z", when_failed="review"), budget={"tokens": 10}))
    driver.start("saga")

    held = driver.done("z", tokens=10)

    assert [case["kind"] for case in reviews(held)] == ["step_failed"]
    assert "a waiting -> held by held" in shown(driver.decide("a", Decision.RETRY)), "there is still nothing left"
    assert result(driver.decide("a", Decision.COMPLETE, 1))["status"] == "completed"


@pytest.mark.parametrize(
    ("more", "after"),
    [({"critical": False}, "degraded"), ({"when_failed": "review"}, "held"), ({}, "failed")],
)
def test_a_retry_that_the_budget_does_not_allow(more: dict[str, Any], after: str) -> None:
    driver = Driver(saga(step("a", retry=MANY, budget={"attempts": 1}, **more)))
    driver.start("saga")
    driver.fail("a")

    assert any(line.startswith(f"a backing_off -> {after} by") for line in shown(driver.wait(60_000)))


def test_undoing_is_not_held_up_by_a_budget() -> None:
    driver = Driver(saga(step("a", compensate={}), step("b", "a", retry={"attempts": 1}), budget={"attempts": 2}))
    driver.start("saga")
    driver.done("a")

    assert commands(driver.fail("b")) == ["a/1/compensate"]


def test_items_share_the_step_s_budget() -> None:
    each = {"map": {"over": {"input": ""}, "concurrency": 1, "tolerate": 9}}
    driver = Driver(saga(step("a", **each, budget={"attempts": 2})))
    driver.start("saga", [1, 2, 3])
    driver.done("a[0]")

    ended = result(driver.done("a[1]"))

    assert ended["status"] == "degraded"
    assert [item["status"] for item in ended["steps"][0]["items"]] == ["done", "done", "failed"]


# --- chains of fallbacks


CHAIN = [
    {"agent": "other-model", "on": ["refusal", "invalid_output"]},
    {"agent": "third-model"},
    {"value": "none", "on": ["error", "refusal"]},
]


def chained(**more: Any) -> Driver:
    driver = Driver(saga(step("a", retry={"attempts": 1}, fallbacks=CHAIN, **more)), round_trip=True)
    driver.start("saga")
    return driver


def test_the_first_fallback_for_the_kind_of_failure_has_its_turn() -> None:
    refused, failed = chained(), chained()

    assert "send a/2/execute to other-model" in shown(refused.fail("a", FailureKind.REFUSAL))
    assert "send a/2/execute to third-model" in shown(failed.fail("a", FailureKind.TERMINAL))


def test_each_fallback_has_one_turn_and_the_last_is_a_constant() -> None:
    driver = chained()
    driver.fail("a", FailureKind.REFUSAL)
    driver.fail("a", FailureKind.INVALID_OUTPUT, attempt=2)

    ended = driver.fail("a", FailureKind.REFUSAL, attempt=3)

    assert result(ended)["status"] == "degraded"
    assert result(ended)["output"] == {"a": "none"}
    assert len(dead_letters(ended)) == 1


def test_a_failure_that_no_fallback_is_meant_for_is_final() -> None:
    driver = chained()
    driver.fail("a", FailureKind.REFUSAL)
    driver.fail("a", FailureKind.INVALID_OUTPUT, attempt=2)

    assert result(driver.fail("a", FailureKind.TIMEOUT, attempt=3))["status"] == "failed"


def test_a_refusal_is_not_retried() -> None:
    driver = Driver(saga(step("a", retry=MANY)))
    driver.start("saga")

    assert result(driver.fail("a", FailureKind.REFUSAL))["failure"]["kind"] == "refusal"


def test_no_attempt_begins_after_the_total_time() -> None:
    retry = {"attempts": 100, "base_ms": 1, "cap_ms": 1_000, "total_ms": 5_000}
    driver = Driver(saga(step("a", retry=retry, fallback={"agent": "b"})), round_trip=True)
    driver.start("saga")
    driver.now_ms += 4_000
    driver.fail("a", retry_after_ms=1_000)
    assert commands(driver.wait(1_000)) == ["a/2/execute"], "at the last moment"

    assert "send a/3/execute to b" in shown(driver.fail("a", attempt=2)), "which has as long of its own"
    driver.now_ms += 4_000
    driver.fail("a", attempt=3, retry_after_ms=1_000)
    assert commands(driver.wait(1_000)) == ["a/4/execute"]
    assert result(driver.fail("a", attempt=4))["status"] == "failed"


def test_a_thousand_items_that_end_in_the_attempt_to_begin_are_no_recursion() -> None:
    each = {"map": {"over": {"input": ""}, "items_max": 1_000, "concurrency": 1, "tolerate": 1_000}}
    driver = Driver(saga(step("z"), step("a", "z", **each), budget={"tokens": 5}))
    driver.start("saga", [0] * 1_000)

    ended = result(driver.done("z", tokens=5))

    assert ended["status"] == "degraded" and ended["missing"][0]["why"].startswith("1000 of 1000 items did not deliver")


def test_a_hundred_steps_that_fail_at_once_are_no_recursion() -> None:
    names = [f"s{n}" for n in range(100)]
    steps = [
        step(name, *names[max(0, place - 1) : place], when="input.nope", critical=False)
        for place, name in enumerate(names)
    ]

    assert result(Driver(saga(*steps)).start("saga", {}))["status"] == "degraded"


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ({"fallback": {}, "fallbacks": [{}]}, "steps.a.fallback", "stands beside fallbacks"),
        ({"fallbacks": [{"value": 1}, {"agent": "b"}]}, "steps.a.fallbacks.0", "those behind it are never tried"),
        ({"fallback": {"on": ["circuit_open"]}}, "steps.a.fallback.0.on", "set when_open to fall_back"),
        (
            {"service": "s", "when_open": "fall_back", "fallback": {"on": ["refusal"]}},
            "steps.a.when_open",
            "no fallback for that",
        ),
        ({"budget": {"cost": 5}, "reserve": {"cost": 6}}, "steps.a.reserve.cost", "it could never run"),
    ],
)
def test_what_can_never_be_used_is_refused(more: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        saga(step("a", **more))

    assert raised.value.field == field and said in str(raised.value)
