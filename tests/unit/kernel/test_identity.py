"""Whose a workflow is, how urgent, and by what it is found: kept, carried on, and refused with the field named."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.effects import Dispatch
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import encode_command
from sagalog.schemas.events import Action, ActionRequested, FailureKind, OnDuplicate, WorkflowStarted, encode_event
from sagalog.schemas.limits import (
    ATTRIBUTE_CHARS_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    ENVELOPE_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    TENANT_CHARS_MAX,
)

from .driver import WORKFLOW, Driver, chain, command, ignored, result, saga, shown, step

ATTRIBUTES = {"customer": 4711, "region": "north", "vip": True, "share": 0.5}


def identity(driver: Driver) -> tuple[str | None, int, Any]:
    return driver.state.tenant, driver.state.priority, driver.state.attributes


@pytest.mark.parametrize("round_trip", [False, True])
def test_what_a_start_says_of_its_workflow_is_kept_and_stands_in_the_result(round_trip: bool) -> None:
    driver = Driver(chain("a", "b"), round_trip=round_trip)
    driver.start("saga", tenant="acme", priority=8, attributes=ATTRIBUTES)

    assert identity(driver) == ("acme", 8, ATTRIBUTES)
    assert command(driver.done("a")).priority == 8
    record = result(driver.done("b"))
    assert (record["tenant"], record["priority"], record["attributes"]) == ("acme", 8, ATTRIBUTES)
    # A stub says how it ended and nothing else.
    assert identity(driver) == (None, 5, None)
    assert b"acme" not in driver.dumps()[WORKFLOW]


def test_a_start_that_says_nothing_writes_nothing() -> None:
    driver = Driver(saga(step("a")))

    sent = command(driver.start("saga"))

    assert identity(driver) == (None, 5, None)
    assert sent.priority == 5
    for written in (encode_command(sent), driver.dumps()[WORKFLOW], encode(result(driver.done("a")))):
        for name in (b"tenant", b"priority", b"attributes", b'"run"', b"next", b"starts"):
            assert name not in written
    assert encode_event(WorkflowStarted("saga")) == b'{"definition":"saga"}'


def test_a_start_that_waits_for_its_definition_keeps_what_it_says() -> None:
    driver = Driver(round_trip=True)
    driver.start("saga", tenant="acme", priority=9, attributes={"x": "y"})

    assert command(driver.register(saga(step("a")))).priority == 9
    assert identity(driver) == ("acme", 9, {"x": "y"})


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("tenant", {"tenant": ""}),
    ("tenant", {"tenant": "x" * (TENANT_CHARS_MAX + 1)}),
    ("tenant", {"tenant": "a\nb"}),
    ("priority", {"priority": -1}),
    ("priority", {"priority": 10}),
    ("attributes", {"attributes": "text"}),
    ("attributes", {"attributes": []}),
    ("attributes", {"attributes": {f"n{n}": n for n in range(ATTRIBUTES_MAX + 1)}}),
    ("attributes", {"attributes": {"Customer": 1}}),
    ("attributes", {"attributes": {"": 1}}),
    ("attributes.a", {"attributes": {"a": None}}),
    ("attributes.a", {"attributes": {"a": []}}),
    ("attributes.a", {"attributes": {"a": {}}}),
    ("attributes.a", {"attributes": {"a": "x" * (ATTRIBUTE_CHARS_MAX + 1)}}),
    ("attributes.a", {"attributes": {"a": "\x00"}}),
    ("attributes", {"attributes": {f"n{n}": '"' * ATTRIBUTE_CHARS_MAX for n in range(ATTRIBUTES_MAX)}}),
]


@pytest.mark.parametrize(("field", "said"), REFUSED)
def test_a_start_with_a_value_that_no_workflow_may_have_is_rejected(field: str, said: dict[str, Any]) -> None:
    driver = Driver(saga(step("a")))

    effects = driver.start("saga", **said)

    assert shown(effects) == ["workflow None -> rejected by refused", "finished rejected"]
    record = result(effects)
    assert record["failure"]["kind"] == FailureKind.INVALID_INPUT
    assert record["failure"]["message"].startswith(f"{field}: ")
    # What nobody may say is not repeated.
    assert not record.keys() & {"tenant", "priority", "attributes"}
    assert len(encode(record)) < 2_000


@pytest.mark.parametrize(
    "said",
    [
        {"tenant": "x" * TENANT_CHARS_MAX},
        {"tenant": "Ärzte & Söhne (Kiel)"},
        {"priority": 0},
        {"priority": 9},
        {"attributes": {}},
        {"attributes": {f"n{n}": n for n in range(ATTRIBUTES_MAX)}},
        {"attributes": {"a": "", "b": -(2**63), "c": 2**63 - 1, "d": 1e300, "e": False}},
    ],
)
def test_the_bounds_are_accepted(said: dict[str, Any]) -> None:
    assert shown(Driver(saga(step("a"))).start("saga", **said))[-1] == "send a/1/execute"


def test_search_attributes_come_on_top_of_the_payload_and_its_envelope() -> None:
    driver = Driver(saga(step("a")))
    attributes = {f"name-{n}": "x" * 180 for n in range(ATTRIBUTES_MAX)}
    assert ENVELOPE_BYTES_MAX < len(encode(attributes)) < ATTRIBUTES_BYTES_MAX

    assert shown(driver.start("saga", "x" * (PAYLOAD_BYTES_MAX - 2), attributes=attributes))[-1] == "send a/1/execute"


# --- change of priority


@pytest.mark.parametrize("round_trip", [False, True])
def test_a_change_of_priority_holds_for_what_is_sent_from_there_on(round_trip: bool) -> None:
    driver = Driver(chain("a", "b"), round_trip=round_trip)
    first = command(driver.start("saga"))

    assert shown(driver.act(Action.PRIORITIZE, 9)) == ["priority 9"]
    second = driver.done("a")

    assert (first.priority, command(second).priority) == (5, 9)
    assert result(driver.fail("b", FailureKind.TERMINAL) + driver.done("a", undo=True))["priority"] == 9


def test_undoing_has_the_workflows_priority_too() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga", priority=1)
    driver.done("a")

    assert command(driver.fail("b", FailureKind.TERMINAL)).priority == 1


@pytest.mark.parametrize("priority", [None, -1, 10, 5])
def test_a_priority_that_is_none_or_the_same_changes_nothing(priority: int | None) -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    before = driver.everything()

    assert ignored(driver.act(Action.PRIORITIZE, priority)) == "not_possible"
    assert driver.everything() == before


def test_a_change_of_priority_counts_once() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    urgent, relaxed = (ActionRequested(Action.PRIORITIZE, "why", "ann", priority) for priority in (9, 1))
    driver.append(urgent, ce_id="urgent")
    driver.append(relaxed, ce_id="relaxed")

    assert ignored(driver.append(urgent, ce_id="urgent")) == "duplicate"
    assert driver.state.priority == 1


def test_a_workflow_that_is_stopped_or_waits_may_change_its_priority() -> None:
    stopped, early = Driver(saga(step("a"))), Driver()
    for driver in (stopped, early):
        driver.start("saga")
    stopped.stop()

    for driver in (stopped, early):
        assert shown(driver.act(Action.PRIORITIZE, 7)) == ["priority 7"]
    (again,) = (effect.command for effect in stopped.act(Action.RESUME) if isinstance(effect, Dispatch))
    assert (again.priority, command(early.register(saga(step("a")))).priority) == (7, 7)


def test_a_finished_workflow_has_no_priority_to_change() -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga")
    driver.done("a")

    assert ignored(driver.act(Action.PRIORITIZE, 7)) == "already_finished"


def test_a_start_that_waits_for_the_end_of_a_run_is_no_part_of_a_change_of_its_priority() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.append(WorkflowStarted("saga", priority=1, on_duplicate=OnDuplicate.REPLACE), ce_id="two")
    driver.act(Action.PRIORITIZE, 9)

    assert command(driver.fail("a", FailureKind.TERMINAL)).priority == 1
