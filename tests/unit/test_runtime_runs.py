"""The machine of a partition and several runs of one id: its own events name the run, answers go out, priorities count."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.runtime.gate import CircuitView
from sagalog.engine.runtime.limits import LOSS_GRACE_MS
from sagalog.schemas.definitions import Definition, Sleep, Step, WhenOpen
from sagalog.schemas.events import (
    Action,
    ActionRequested,
    DefinitionRegistered,
    OnDuplicate,
    Owned,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction, start_id
from sagalog.schemas.statuses import CircuitStatus

from .test_runtime_workflows import Record, World, definition

REPLACE, REJECT = OnDuplicate.REPLACE, OnDuplicate.REJECT
EXECUTE = Direction.EXECUTE


def world_of(saga: Definition, *, own: bool = True) -> World:
    world = World()
    world.fold(world.record(DefinitionRegistered(saga.model_dump(mode="json")), "@definition/x"))
    if own:
        world.fold(world.record(Owned(1, "me"), "@owner"))
    return world


def start(world: World, ce_id: str, policy: OnDuplicate = REPLACE, **more: Any) -> list[tuple[str, Any]]:
    return world.fold(world.record(WorkflowStarted("saga", on_duplicate=policy, **more), ce_id=ce_id))


def replaced(world: World) -> int:
    """The second run of w1 is on; its number."""
    start(world, "one")
    world.fold(world.record(ActionRequested(Action.TERMINATE, "x", "y"), ce_id="end"))
    start(world, "two")
    state = world.machine.fold_state.get("w1")
    assert state is not None and state.status == "running"
    return state.run


def events(appended: list[tuple[str, Any]]) -> list[Any]:
    return [document for topic, document in appended if topic == "t.events"]


def test_the_loss_of_an_attempt_names_its_run() -> None:
    world = world_of(definition())
    run = replaced(world)

    (lost,) = events(world.tick(700_000))

    assert (lost["step"], lost["attempt"], lost["run"]) == ("a", 1, run)


def test_a_timer_names_its_run() -> None:
    world = world_of(Definition(name="saga", steps=(Step(name="nap", sleep=Sleep(ms=1_000)),)))
    run = replaced(world)

    (fired,) = events(world.tick(2_000))

    assert (fired["timer"], fired["run"]) == ("wake", run)


def test_a_refusal_names_its_run() -> None:
    world = world_of(definition(service="bank", when_open=WhenOpen.FAIL))
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, world.now_ms))
    start(world, "one")
    world.fold(world.record(ActionRequested(Action.TERMINATE, "x", "y"), ce_id="end"))

    (refused,) = events(start(world, "two"))

    state = world.machine.fold_state.get("w1")
    assert state is not None
    assert refused["run"] == state.run


def test_a_record_in_quarantine_stops_the_run_that_was_on_when_it_came() -> None:
    world = world_of(definition())
    run = replaced(world)
    broken = world.record(WorkflowStarted("saga"))
    broken.value = b"{"

    (stopped,) = events(world.fold(broken))

    assert stopped["run"] == run


def test_the_first_run_is_not_named() -> None:
    world = world_of(definition())
    world.fold(world.record(WorkflowStarted("saga")))

    (lost,) = events(world.tick(700_000))

    assert "run" not in lost


def test_what_is_out_at_a_take_over_is_lost_by_its_run() -> None:
    world = world_of(definition(), own=False)
    replaced(world)
    run = replaced_run(world)
    world.fold(world.record(Owned(1, "me"), "@owner"))

    (lost,) = events(world.tick(700_000))

    assert lost["run"] == run


def test_what_a_checkpoint_says_is_out_is_lost_by_its_run() -> None:
    before = world_of(definition())
    run = replaced(before)
    cut = before.machine.cut()
    assert cut is not None
    cut.finish()
    world = World()
    for number, record in enumerate(cut.records):
        assert record.key is not None and record.value is not None
        world.machine.load(Record(number, world.now_ms, record.key, record.value, record.headers))
    world.machine.loaded(world.now_ms)
    world.offset = before.offset
    world.fold(world.record(Owned(2, "me"), "@owner"))

    (lost,) = events(world.tick(700_000))

    assert (lost["step"], lost["run"]) == ("a", run)


def replaced_run(world: World) -> int:
    state = world.machine.fold_state.get("w1")
    assert state is not None
    return state.run


@pytest.mark.parametrize(("beating_run", "lives"), [("this", True), ("before", False)])
def test_only_a_heartbeat_of_this_run_keeps_its_attempt(beating_run: str, lives: bool) -> None:
    world = world_of(definition(start_timeout_ms=1_000, timeout_ms=10_000, heartbeat_timeout_ms=20_000))
    run = replaced(world)
    late_ms = 11_000 + LOSS_GRACE_MS
    world.tick(late_ms - 1_000)
    beating = f"w1/a/1@{run}/execute" if beating_run == "this" else f"w1/a/1@{run - 1}/execute"
    world.machine.heard(beating, "w1", "a", 1, EXECUTE)

    assert bool(events(world.tick(3_000))) is not lives


def test_the_answer_to_a_start_lies_among_the_results_under_its_own_type() -> None:
    world = world_of(definition())
    start(world, "one", REJECT)
    (first,) = (record for topic, record in world.sent if topic == "t.results")
    start(world, "two", REJECT)
    (second,) = (record for topic, record in world.sent if topic == "t.results")

    for record, ce_id in ((first, "one"), (second, "two")):
        headers = dict(record.headers)
        assert record.key == b"w1"
        assert headers["ce_type"] == b"sagalog.start-answered.v1"
        assert headers["ce_id"] == f"w1/start/{start_id(ce_id)}".encode()
    assert [b'"accepted":true' in (record.value or b"") for record in (first, second)] == [True, False]


def test_the_results_of_two_runs_have_two_ids() -> None:
    world = world_of(definition())
    world.fold(world.record(WorkflowStarted("saga")))
    ids = []
    for number in range(2):
        world.fold(world.record(ActionRequested(Action.TERMINATE, "x", "y"), ce_id=f"end-{number}"))
        ids += [
            dict(record.headers)["ce_id"]
            for topic, record in world.sent
            if topic == "t.results" and dict(record.headers)["ce_type"] == b"sagalog.result.v1"
        ]
        start(world, f"again-{number}")

    # Between two starts lies one record, so the run before is two less.
    assert ids == [b"w1/result", f"w1/result@{replaced_run(world) - 2}".encode()]


def test_a_change_of_priority_counts_for_what_waits_at_the_gate() -> None:
    world = world_of(definition(service="bank"))
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, world.now_ms))
    for workflow_id in ("w1", "w2"):
        world.fold(world.record(WorkflowStarted("saga"), workflow_id, workflow_id))
    world.fold(world.record(ActionRequested(Action.PRIORITIZE, "x", "y", 9), "w2", "urgent"))
    world.machine.circuit("bank", CircuitView(CircuitStatus.CLOSED, world.now_ms + 1))

    sent = [document for topic, document in world.tick(10) if topic == "t.commands.worker"]

    assert [(command["workflow_id"], command.get("priority")) for command in sent] == [("w2", 9), ("w1", None)]


def test_a_change_of_priority_counts_for_what_a_take_over_is_to_send() -> None:
    world = world_of(definition(), own=False)
    world.fold(world.record(WorkflowStarted("saga")))
    world.fold(world.record(ActionRequested(Action.PRIORITIZE, "x", "y", 9), ce_id="urgent"))

    sent = world.fold(world.record(Owned(1, "me"), "@owner"))

    (command,) = (document for topic, document in sent if topic == "t.commands.worker")
    assert command["priority"] == 9
