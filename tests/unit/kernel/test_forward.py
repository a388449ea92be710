"""Forward: steps go out as soon as all they need has ended, with the input that their bindings name."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.definitions import Binding, Definition, Fields, Value, fields, from_input, from_step
from sagalog.schemas.ids import Direction

from .driver import SEED, START_MS, WORKFLOW, Driver, chain, command, dispatched, result, saga, shown, step

DIAMOND = saga(
    step("left"),
    step("right"),
    step("join", "left", "right", input=fields(l=from_step("left"), r=from_step("right"))),
    step("after", "join", input=from_step("join")),
)


def test_a_start_sends_every_root_and_nothing_else() -> None:
    driver = Driver(DIAMOND)

    effects = driver.start("saga", {"n": 1})

    assert shown(effects) == [
        "workflow None -> running by started",
        "left waiting -> running by dispatched",
        "send left/1/execute",
        "right waiting -> running by dispatched",
        "send right/1/execute",
    ]


def test_a_join_goes_out_with_the_last_branch_and_not_before() -> None:
    driver = Driver(DIAMOND)
    driver.start("saga")

    first = driver.done("right", 2)
    second = driver.done("left", 1)

    assert shown(first) == ["answered right/1/execute", "called right ok", "right running -> done by completed"]
    assert shown(second) == [
        "answered left/1/execute",
        "called left ok",
        "left running -> done by completed",
        "join waiting -> running by dispatched",
        "send join/1/execute",
    ]
    assert command(second).input == {"l": 1, "r": 2}


def test_one_step_fans_out_to_all_that_need_only_it() -> None:
    driver = Driver(saga(step("a"), step("b", "a"), step("c", "a"), step("d", "a", "b")))
    driver.start("saga")

    effects = driver.done("a")

    assert shown(effects)[3:] == [
        "b waiting -> running by dispatched",
        "send b/1/execute",
        "c waiting -> running by dispatched",
        "send c/1/execute",
    ]


def test_a_step_that_names_a_need_twice_goes_out_once() -> None:
    driver = Driver(saga(step("a"), step("b", "a", "a")))
    driver.start("saga")

    assert shown(driver.done("a"))[3:] == ["b waiting -> running by dispatched", "send b/1/execute"]


def test_the_last_step_ends_the_workflow_with_its_result() -> None:
    driver = Driver(DIAMOND)
    driver.start("saga", {"n": 1}, correlation_id="c-7")
    driver.done("left", 1)
    driver.done("right", 2)
    driver.done("join", 3)
    driver.now_ms += 250

    effects = driver.done("after", 4)

    assert shown(effects) == [
        "answered after/1/execute",
        "called after ok",
        "after running -> done by completed",
        "workflow running -> completed by all_steps_ended",
        "finished completed",
    ]
    record = result(effects)
    steps = record.pop("steps")
    assert record == {
        "workflow_id": WORKFLOW,
        "definition": DIAMOND.hash,
        "name": "saga",
        "status": "completed",
        "started_ms": START_MS,
        "finished_ms": START_MS + 250,
        "at_offset": 6,
        "input": {"n": 1},
        "completeness": 1.0,
        "missing": [],
        "output": {"after": 4},
        "correlation_id": "c-7",
    }
    assert [(s["name"], s["status"], s["attempt"], s["order"], s["output"]) for s in steps] == [
        ("left", "done", 1, 1, 1),
        ("right", "done", 1, 2, 2),
        ("join", "done", 1, 3, 3),
        ("after", "done", 1, 4, 4),
    ]


def test_a_command_carries_all_that_its_agent_needs() -> None:
    definition = saga(
        step("pay", agent="bank", service="visa", timeout_ms=1_000, start_timeout_ms=2_000, heartbeat_timeout_ms=500),
        services={"visa": {"calls_min": 7}},
    )
    driver = Driver(definition)

    dispatch = dispatched(driver.start("saga", {"sum": 5}, deadline_ms=60_000))

    sent = dispatch.command
    assert (sent.command_id, sent.workflow_id, sent.definition) == (
        f"{WORKFLOW}/pay/1/execute",
        WORKFLOW,
        definition.hash,
    )
    assert (sent.step, sent.agent, sent.attempt, sent.direction) == ("pay", "bank", 1, Direction.EXECUTE)
    assert (sent.idempotency_key, sent.input, sent.service) == (f"{WORKFLOW}/pay", {"sum": 5}, "visa")
    assert (sent.timeout_ms, sent.heartbeat_timeout_ms) == (1_000, 500)
    assert (sent.deadline_ms, sent.token) == (START_MS + 60_000, driver.token("pay", 1, Direction.EXECUTE))
    assert dispatch.patience_ms == 3_000
    assert dispatch.policy is not None and dispatch.policy.calls_min == 7


BINDINGS: list[tuple[Binding, Any]] = [
    (from_input(), {"a": {"b": [10, {"c": 11}]}, "none": None}),
    (from_input("a.b"), [10, {"c": 11}]),
    (from_input("a.b.0"), 10),
    (from_input("a.b.1.c"), 11),
    (from_input("a.b.2"), None),
    (from_input("a.b.-1"), None),
    (from_input("a.b.x"), None),
    (from_input("a.b.0.deeper"), None),
    (from_input("missing"), None),
    (from_input("none.deeper"), None),
    (from_step("first"), {"out": [{"x": 1}]}),
    (from_step("first", "out.0.x"), 1),
    (from_step("first", "out.1.x"), None),
    (from_step("first", "nothing"), None),
    (Value(value={"k": [1, None]}), {"k": [1, None]}),
    (Value(value=None), None),
    (fields(), {}),
    (
        fields(i=from_input("a.b.0"), s=from_step("first", "out.0"), c=7, deep=fields(gone=from_input("no"), v="v")),
        {"i": 10, "s": {"x": 1}, "c": 7, "deep": {"gone": None, "v": "v"}},
    ),
    (Fields(fields={"a.b": Value(value=1)}), {"a.b": 1}),
]


@pytest.mark.parametrize(("binding", "expected"), BINDINGS)
def test_a_binding_gives_the_value_it_names_or_none(binding: Binding, expected: Any) -> None:
    driver = Driver(saga(step("first"), step("second", "first", input=binding)))
    driver.start("saga", {"a": {"b": [10, {"c": 11}]}, "none": None})

    assert command(driver.done("first", {"out": [{"x": 1}]})).input == expected


@pytest.mark.parametrize(("binding", "expected"), BINDINGS)
def test_the_output_binding_gives_the_workflows_output(binding: Binding, expected: Any) -> None:
    driver = Driver(saga(step("first"), step("second"), output=binding))
    driver.start("saga", {"a": {"b": [10, {"c": 11}]}, "none": None})
    driver.done("second", "not asked for")

    assert result(driver.done("first", {"out": [{"x": 1}]}))["output"] == expected


def test_the_default_output_holds_the_steps_that_nobody_needs() -> None:
    driver = Driver(saga(step("a"), step("b", "a"), step("c")))
    driver.start("saga")
    driver.done("a", "inner")
    driver.done("c")

    assert result(driver.done("b", "outer"))["output"] == {"b": "outer", "c": None}


def test_workflows_of_one_partition_do_not_touch_each_other() -> None:
    other = Definition(name="other", steps=(step("a"), step("z", "a")))
    driver = Driver(chain("a", "b"), other)
    driver.start("saga", 1)
    driver.start("other", 2, workflow_id="wf-2")
    before = driver.dumps()["wf-2"]

    mine = driver.done("a", "one")
    after = driver.dumps()["wf-2"]
    theirs = driver.done("a", "two", workflow_id="wf-2")

    assert after == before
    assert shown(mine)[-1] == "send b/1/execute"
    assert command(mine).input == "one"
    assert shown(theirs)[-1] == "send wf-2/z/1/execute"
    assert command(theirs).input == 2
    assert driver.dumps()[WORKFLOW] != driver.dumps()["wf-2"]


def test_a_result_of_one_workflow_is_not_believed_for_another() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.start("saga", workflow_id="wf-2")

    assert driver.token("a", 1, Direction.EXECUTE) != driver.token("a", 1, Direction.EXECUTE, "wf-2")


def test_folding_the_log_again_gives_the_same_effects() -> None:
    first, again = Driver(DIAMOND), Driver(DIAMOND)

    effects = [driver.start("saga", 1, deadline_ms=99) + driver.done("left", 5) for driver in (first, again)]

    assert effects[0] == effects[1]
    assert first.dumps() == again.dumps()
    assert SEED in first.dumps()[WORKFLOW].decode()
