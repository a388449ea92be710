"""Starts and the definitions they name: accepted, waiting, rejected with the field named, and forgotten in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from sagalog.engine.kernel import Partition
from sagalog.engine.kernel.effects import Dispatch, Effect
from sagalog.engine.kernel.state import NEVER
from sagalog.engine.kernel.timers import due_timers
from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import Definition
from sagalog.schemas.events import TYPE_OF, FailureKind, Timer, WorkflowStarted, encode_event
from sagalog.schemas.limits import (
    CORRELATION_ID_CHARS_MAX,
    DEADLINE_MS_MAX,
    DEFINITION_WAIT_MS,
    ENVELOPE_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    REMEMBER_MS,
)

from .driver import START_MS, WORKFLOW, Driver, chain, command, ignored, result, saga, shown, step

OLD = saga(step("old"))
NEW = saga(step("new"))


def test_a_name_means_the_newest_definition_and_a_hash_means_exactly_that() -> None:
    driver = Driver(OLD, NEW)

    assert command(driver.start("saga")).step == "new"
    assert command(driver.start(f"saga@{OLD.hash}", workflow_id="wf-2")).step == "old"
    assert command(driver.start(f"saga@{NEW.hash}", workflow_id="wf-3")).step == "new"


def test_an_old_definition_registered_again_is_the_newest_again() -> None:
    driver = Driver(OLD, NEW)

    assert shown(driver.register(OLD)) == ["definition known"]
    assert command(driver.start("saga")).step == "old"


def test_a_running_workflow_stays_on_its_definition() -> None:
    driver = Driver(saga(step("a"), step("b", "a")))
    driver.start("saga")
    driver.register(saga(step("a"), step("other", "a")))

    assert command(driver.done("a")).step == "b"


def test_a_start_waits_for_its_definition_and_runs_when_it_arrives() -> None:
    driver = Driver()

    waiting = driver.start("saga", "in", deadline_ms=60_000)
    state = driver.state
    assert (state.due_ms(), driver.partition.waiting) == (START_MS + DEFINITION_WAIT_MS, {WORKFLOW})
    driver.now_ms += 500
    arrived = driver.register(chain("a", "b"))

    assert shown(waiting) == ["workflow None -> waiting by awaited"]
    assert shown(arrived) == [
        "definition known",
        "workflow waiting -> running by definition_arrived",
        "a waiting -> running by dispatched",
        "send a/1/execute",
    ]
    assert command(arrived).input == "in"
    # Its deadline counts from the start, not from the arrival.
    assert (driver.state.deadline_ms, driver.state.start) == (START_MS + 60_000, None)
    assert driver.partition.waiting == set()


def test_waiting_starts_run_in_the_order_of_their_ids() -> None:
    driver = Driver()
    for workflow_id in ("c", "a", "b"):
        driver.start("saga", workflow_id=workflow_id)

    effects = driver.register(saga(step("s")))

    assert [line for line in shown(effects) if line.startswith("send")] == [f"send {i}/s/1/execute" for i in "abc"]


def test_a_start_that_names_a_hash_does_not_run_on_another_version() -> None:
    driver = Driver()
    driver.start(f"saga@{NEW.hash}")

    other = driver.register(OLD)
    right = driver.register(NEW)

    assert shown(other) == ["definition known"]
    assert shown(right)[1] == "workflow waiting -> running by definition_arrived"
    assert command(right).step == "new"


def test_a_start_waits_on_while_other_definitions_arrive() -> None:
    driver = Driver()
    driver.start("saga")

    assert shown(driver.register(Definition(name="other", steps=(step("a"),)))) == ["definition known"]
    assert driver.state.status == "waiting"


def test_a_start_whose_definition_never_comes_is_rejected() -> None:
    driver = Driver()
    driver.start("saga@0123456789abcdef")

    assert driver.wait(DEFINITION_WAIT_MS - 1) == []
    effects = driver.wait(1)

    assert shown(effects) == ["workflow waiting -> rejected by refused", "finished rejected"]
    failure = result(effects)["failure"]
    assert failure["kind"] == "terminal"
    assert failure["message"].startswith("definition: 'saga@0123456789abcdef' is not registered; register it")
    assert driver.partition.waiting == set()
    assert shown(driver.register(OLD)) == ["definition known"]


def test_the_definition_timer_of_a_workflow_that_runs_is_ignored() -> None:
    driver = Driver()
    driver.start("saga")
    driver.register(OLD)

    assert ignored(driver.fire(Timer.DEFINITION)) == "not_waited_for"


def test_a_hash_of_another_name_is_not_taken_for_the_name() -> None:
    refund = Definition(name="refund", steps=(step("refund"),))
    driver = Driver(OLD, refund)

    assert shown(driver.start(f"saga@{refund.hash}")) == ["workflow None -> waiting by awaited"]


# --- rejected at once


REJECTED: list[tuple[str, Any]] = [
    ("input.n", {"value": {"n": "text"}}),
    ("input", {"value": {}}),
    ("input", {"value": {"n": 1, "more": "x" * (PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX)}}),
    ("deadline_ms", {"value": {"n": 1}, "deadline_ms": 9}),
    ("deadline_ms", {"value": {"n": 1}, "deadline_ms": -1}),
    ("deadline_ms", {"value": {"n": 1}, "deadline_ms": DEADLINE_MS_MAX + 1}),
    ("correlation_id", {"value": {"n": 1}, "correlation_id": "c" * (CORRELATION_ID_CHARS_MAX + 1)}),
]


@pytest.mark.parametrize(("field", "arguments"), REJECTED)
def test_a_start_that_cannot_run_is_rejected_with_the_field_named(field: str, arguments: dict[str, Any]) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    driver = Driver(saga(step("a"), input_schema=schema))

    effects = driver.start("saga", **arguments)

    assert shown(effects) == ["workflow None -> rejected by refused", "finished rejected"]
    record = result(effects)
    assert record["failure"]["kind"] == FailureKind.INVALID_INPUT
    assert record["failure"]["message"].startswith(f"{field}: ")
    assert (record["steps"], record["missing"], record["completeness"]) == ([], [], 0.0)
    # The id is remembered, so that a second start is recognised.
    assert ignored(driver.start("saga", {"n": 1})) == "duplicate_start"


@pytest.mark.parametrize("bytes_more", [0, 1])
def test_a_start_may_be_as_large_as_a_payload_and_its_envelope(bytes_more: int) -> None:
    driver = Driver(saga(step("a")))
    around = len(encode_event(WorkflowStarted("saga", "")))

    effects = driver.start("saga", "x" * (PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX - around + bytes_more))

    assert shown(effects)[-1] == ("finished rejected" if bytes_more else "send a/1/execute")


@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ("", "definition: '' is no name"),
        ("Saga", "definition: 'Saga' is no name"),
        ("@0123456789abcdef", "definition: '' is no name"),
        ("x" * 5_000, "definition: 'xxx"),
        ("saga@" + "0" * 5_000, "definition: the hash is 5000 characters long"),
    ],
)
def test_a_start_whose_definition_can_never_exist_is_rejected_at_once(definition: str, problem: str) -> None:
    driver = Driver(saga(step("a")))

    effects = driver.start(definition)

    assert shown(effects) == ["workflow None -> rejected by refused", "finished rejected"]
    failure = result(effects)["failure"]
    assert failure["kind"] == FailureKind.INVALID_INPUT
    assert failure["message"].startswith(problem)
    assert len(encode(result(effects))) < 2_000


@pytest.mark.parametrize("deadline_ms", [10, DEADLINE_MS_MAX])
def test_the_bounds_of_the_deadline_are_accepted(deadline_ms: int) -> None:
    driver = Driver(saga(step("a")))
    driver.start("saga", deadline_ms=deadline_ms)

    assert driver.state.deadline_ms == START_MS + deadline_ms


def test_an_input_that_breaks_the_schema_of_an_arriving_definition_is_rejected_then() -> None:
    driver = Driver()
    driver.start("saga", {"n": "text"})

    effects = driver.register(saga(step("a"), input_schema={"properties": {"n": {"type": "integer"}}}))

    assert shown(effects) == ["definition known", "workflow waiting -> rejected by refused", "finished rejected"]
    assert result(effects)["failure"]["message"].startswith("input.n: ")


BAD_IDS = {
    "empty": "",
    "too_long": "x" * 256,
    "too_long_in_bytes": "ü" * 128,
    "control": "a\nb",
    "nul": "a\x00",
    "delete": "a\x7f",
    "reserved": "@owner",
}


@pytest.mark.parametrize("workflow_id", BAD_IDS.values(), ids=BAD_IDS)
def test_an_id_that_is_none_is_rejected_and_leaves_no_state(workflow_id: str) -> None:
    driver = Driver(OLD)
    before = driver.everything()

    effects = driver.start("saga", workflow_id=workflow_id)

    assert [line.split(" by ")[-1] for line in shown(effects)] == ["refused", "finished rejected"]
    assert result(effects)["workflow_id"] == workflow_id
    assert result(effects)["failure"]["message"].startswith("workflow_id: ")
    assert driver.everything() == before


@pytest.mark.parametrize("workflow_id", ["x", "x" * 255, "ü" * 127, "a/b@c d", "订单-7"])
def test_any_other_text_is_an_id(workflow_id: str) -> None:
    driver = Driver(OLD)

    assert shown(driver.start("saga", workflow_id=workflow_id))[-1].startswith("send ")


def test_a_start_without_an_event_id_gets_its_own_seed() -> None:
    driver = Driver(OLD)
    ce_type = TYPE_OF[WorkflowStarted].encode()
    for workflow_id in (b"w1", b"w2"):
        driver.append_raw(workflow_id, encode({"definition": "saga"}), ce_type, None)

    first, second = driver.partition.get("w1"), driver.partition.get("w2")

    assert first is not None
    assert second is not None
    assert first.seed != second.seed


# --- forgotten


def test_a_finished_workflow_is_remembered_for_a_week_and_then_forgotten() -> None:
    driver = Driver(OLD)
    driver.start("saga", "in")
    driver.done("old", "out")
    stub = driver.state
    assert (stub.input, stub.steps, stub.due_ms()) == (None, [], START_MS + REMEMBER_MS)

    assert driver.wait(REMEMBER_MS - 1) == []
    assert ignored(driver.start("saga")) == "duplicate_start"
    driver.partition.touched.clear()
    forgotten = driver.wait(1)

    assert forgotten == []
    assert driver.dumps() == {}
    # The change is to be cut: a tombstone.
    assert list(driver.partition.touched) == [WORKFLOW]
    assert shown(driver.start("saga"))[-1] == "send old/1/execute"


def test_a_copy_of_the_timer_that_forgot_an_id_does_not_forget_the_next_workflow_of_that_id() -> None:
    driver = Driver(OLD)
    driver.start("saga")
    driver.done("old")
    driver.wait(REMEMBER_MS)
    forgot = driver.log[-1]
    assert driver.dumps() == {}
    driver.start("saga")
    driver.done("old")
    before = driver.everything()

    assert ignored(driver.append_raw(forgot.key, forgot.value, forgot.ce_type)) == "not_waited_for"
    assert driver.everything() == before


def test_the_timer_that_forgets_names_the_offset_of_the_end() -> None:
    driver = Driver(OLD)
    driver.start("saga")
    driver.done("old")
    ended_at = len(driver.log) - 1

    assert due_timers(driver.state, None, START_MS + REMEMBER_MS - 1) == []
    assert due_timers(driver.state, None, START_MS + REMEMBER_MS) == [(Timer.FORGET, None, ended_at)]
    assert ignored(driver.fire(Timer.FORGET, attempt=ended_at - 1)) == "not_waited_for"
    assert ignored(driver.fire(Timer.FORGET, attempt=ended_at + 2)) == "not_waited_for"
    assert ignored(driver.fire(Timer.FORGET, attempt=ended_at)) == "not_due"
    driver.now_ms = START_MS + REMEMBER_MS
    assert driver.fire(Timer.FORGET, attempt=ended_at) == []
    assert driver.dumps() == {}


def test_a_huge_event_id_does_not_fill_the_checkpoint() -> None:
    driver = Driver(OLD)
    driver.append(WorkflowStarted("saga"), ce_id="x" * 900_000)

    assert len(driver.dumps()[WORKFLOW]) < 100_000


def test_a_stub_says_how_and_when_it_ended_and_nothing_else() -> None:
    driver = Driver(OLD)
    driver.start("saga", {"secret": 1}, correlation_id="c")
    driver.done("old", {"secret": 2})

    assert b"secret" not in driver.dumps()[WORKFLOW]
    assert len(driver.dumps()[WORKFLOW]) < 300


# --- loading


def test_a_partition_that_is_loaded_from_checkpoints_folds_on_like_the_one_that_wrote_them() -> None:
    driver = Driver(OLD, NEW)
    driver.start("saga")
    driver.start("missing", workflow_id="wf-2")
    driver.start("saga", workflow_id="wf-3")
    driver.done("new", workflow_id="wf-3")
    loaded = Driver()
    partition = loaded.partition = Partition()
    partition.epoch, partition.member = driver.partition.epoch, driver.partition.member
    for plan in driver.partition.plans.values():
        partition.load_definition(plan.definition.encoded)
    for workflow_id, raw in driver.dumps().items():
        partition.load_checkpoint(workflow_id, raw, waiting=workflow_id in driver.partition.waiting)
    loaded.log = list(driver.log)

    missing = Definition(name="missing", steps=(step("m"),))
    events: list[Callable[[Driver], list[Effect]]] = [
        lambda d: d.done("new", 1),
        lambda d: d.register(missing),
        lambda d: d.start("saga", workflow_id="wf-4"),
    ]
    for event in events:
        assert event(loaded) == event(driver)

    assert loaded.dumps() == driver.dumps()
    assert partition.newest == driver.partition.newest


def test_a_look_at_a_resting_workflow_changes_nothing() -> None:
    driver = Driver(chain("a", "b"), round_trip=True)
    driver.start("saga")
    raw = dict(driver.partition.cold)

    assert driver.state.status == "running"
    driver.partition.rest_unchanged()

    assert (driver.partition.hot, driver.partition.cold) == ({}, raw)


def test_what_is_due_is_known_without_a_timer_too() -> None:
    driver = Driver(OLD)
    driver.start("saga")

    assert driver.state.due_ms() == NEVER
    assert driver.state.watch_ms(driver.partition.plans[OLD.hash]) == 630_000


def test_a_definition_from_the_log_and_one_from_the_checkpoints_give_the_same_bytes() -> None:
    unsorted = {"z": 1, "a": 2}
    definition = saga(
        step("a", critical=False, default=unsorted, retry={"attempts": 1}),
        step("b", "a", input={"fields": {"z": {"step": "a"}, "a": {"value": unsorted}}}),
        output={"fields": {"z": {"step": "b"}, "a": {"value": 1}}},
    )
    from_log = Driver(definition)
    from_checkpoints = Driver()
    from_checkpoints.partition.load_definition(definition.encoded)

    told = []
    for driver in (from_log, from_checkpoints):
        driver.start("saga", "in")
        effects = driver.fail("a") + driver.done("b", "out")
        told.append(encode([effect.command for effect in effects if isinstance(effect, Dispatch)] + [result(effects)]))

    first, second = (orjson.loads(one) for one in told)
    assert first[-1].pop("at_offset") == second[-1].pop("at_offset") + 1
    assert encode(first) == encode(second)
