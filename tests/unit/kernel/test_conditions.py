"""A step's condition: what it sees, what a false one leads to, and what one that cannot be evaluated leads to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.schemas.conditions import Condition, ConditionFailed
from sagalog.schemas.definitions import from_step
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import FailureKind

from .driver import Driver, commands, result, saga, shown, step

ONCE = {"attempts": 1}


def test_a_step_whose_condition_holds_runs() -> None:
    driver = Driver(saga(step("a"), step("b", "a", when="steps.a.amount > 100 && input.kind == 'large'")))
    driver.start("saga", {"kind": "large"})

    assert commands(driver.done("a", {"amount": 101})) == ["b/1/execute"]


def test_a_step_whose_condition_does_not_hold_is_skipped_and_what_needs_it_goes_on_with_null() -> None:
    driver = Driver(saga(step("a", when="input.wanted"), step("b", "a", input={"fields": {"of_a": {"step": "a"}}})))

    started = driver.start("saga", {"wanted": False})
    ended = result(driver.done("b", "out"))

    assert shown(started) == [
        "workflow None -> running by started",
        "a waiting -> skipped by not_needed",
        "b waiting -> running by dispatched",
        "send b/1/execute",
    ]
    assert ended["status"] == "completed"
    assert ended["completeness"] == 1.0, "what was not needed is not missing"
    assert [found["status"] for found in ended["steps"]] == ["skipped", "done"]


def test_a_workflow_whose_every_step_is_skipped_is_completed_at_once() -> None:
    names = [f"s{n}" for n in range(100)]
    steps = [step(name, *names[max(0, place - 1) : place], when="false") for place, name in enumerate(names)]
    driver = Driver(saga(*steps))

    ended = result(driver.start("saga"))

    assert ended["status"] == "completed" and ended["completeness"] == 1.0


def test_a_skipped_step_is_not_undone() -> None:
    driver = Driver(saga(step("a", when="false", compensate={}), step("b", "a", retry=ONCE)))
    driver.start("saga")

    ended = result(driver.fail("b"))

    assert ended["status"] == "failed"
    assert ended["steps"][0]["undo"] == {"status": "not_needed", "attempt": 0}


def test_a_condition_that_cannot_be_evaluated_fails_a_critical_step() -> None:
    driver = Driver(saga(step("a", when="input.missing > 1")))

    ended = result(driver.start("saga", {}))

    assert ended["status"] == "failed"
    assert ended["failure"]["kind"] == FailureKind.TERMINAL
    assert "'input.missing > 1' cannot be evaluated: KeyError: 'missing'" in ended["failure"]["message"]


def test_a_condition_that_cannot_be_evaluated_degrades_an_optional_step() -> None:
    driver = Driver(saga(step("a", when="input.n", critical=False, default="neutral")))

    ended = result(driver.start("saga", {"n": 1}))

    assert ended["status"] == "degraded"
    assert ended["output"] == {"a": "neutral"}
    assert "is int, neither true nor false" in ended["missing"][0]["why"]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("1 +", "is no CEL expression"),
        ("amount > 1", "names 'amount', which is unknown; there are input and steps"),
        ("steps.b.x", "takes the output of 'b', which need not have ended by then; add it to needs"),
        ("steps['b'].x", "takes the output of 'b'"),
        ("size(steps) > 1", "uses `steps` without naming one"),
        ("input.l.all(x, x > y)", "names 'y'"),
        ("input.l.all(x, x.all(y, y.all(z, z > 1)))", "has more than 2 loops"),
        ("true || " * 200 + "true", "characters, more than 1,000"),
    ],
)
def test_what_is_no_condition_is_refused_when_the_definition_is_built(when: str, said: str) -> None:
    with pytest.raises(InvalidDefinition, match=r"steps\.a\.when") as raised:
        saga(step("a", when=when), step("b"))

    assert said in str(raised.value)


def test_a_string_and_a_field_may_be_called_like_a_variable() -> None:
    assert Condition("input.steps == 'steps.b'", "when", set()).holds({"steps": "steps.b"}, {})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
_EXPRESSIONS = [
    "input.a > 1",
    "input[0] == input[1]",
    "input.all(x, x > 1)",
    "input.a + input.b == 3",
    "input.a.matches(input.b)",
    "has(input.a) && input.a in input.b",
    "size(input) > 0",
    "int(input) == 1",
    "timestamp(input) > timestamp('2020-01-01T00:00:00Z')",
    "input",
    "-input < 0",
    "input / input == 1",
    "input.startsWith('a')",
    "string(input) == 'x'",
]


@given(st.sampled_from(_EXPRESSIONS), _JSON | st.dictionaries(st.sampled_from(["a", "b"]), _JSON))
def test_evaluating_gives_true_false_or_one_error_whatever_the_input(expression: str, value: Any) -> None:
    condition = Condition(expression, "when", set())
    try:
        first: bool | str = condition.holds(value, {})
    except ConditionFailed as error:
        first = str(error)
    try:
        second: bool | str = condition.holds(value, {})
    except ConditionFailed as error:
        second = str(error)

    assert first == second


def test_a_binding_to_a_skipped_step_gives_null() -> None:
    driver = Driver(saga(step("a", when="false"), step("b", "a", input=from_step("a", "x.y"))))

    driver.start("saga")

    assert driver.state.steps[1].status == "running"
