"""The machine of one partition while a workflow is rewound: of what is parked, only what is affected is refused."""

from __future__ import annotations

from typing import Any

from sagalog.engine.runtime.gate import CircuitView
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.events import Owned, RewindRequested, StepCompleted
from sagalog.schemas.ids import Direction
from sagalog.schemas.statuses import CircuitStatus

from .test_runtime_workflows import START_MS, World, started

SAGA = Definition(
    name="saga",
    steps=(
        Step(name="a", agent="worker"),
        Step(name="b", agent="worker", needs=("a",), service="bank"),
        Step(name="x", agent="worker", service="bank"),
    ),
)


def parked() -> World:
    """`a` is done, `b` and `x` wait for the circuit."""
    world = World()
    owned = world.record(Owned(1, "me"), "@owner")
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    ((_, command), *_) = world.fold(owned, *started(world, SAGA))
    world.fold(world.record(StepCompleted("a", 1, Direction.EXECUTE, world.token(command))))
    assert world.machine.gate.held == 2
    return world


def rewind(world: World, step: str) -> list[Any]:
    event = RewindRequested(step, "tester", "because")
    return [document for topic, document in world.fold(world.record(event, ce_id="r")) if topic == "t.events"]


def test_what_is_affected_and_parked_is_refused_and_the_rest_stays_parked() -> None:
    world = parked()

    assert rewind(world, "a") == [{"epoch": 1, "step": "b", "attempt": 1, "service": "bank"}]
    assert world.machine.gate.held == 1
    assert world.machine.stats()["withheld"] == 1


def test_rewound_within_one_event_nothing_is_refused() -> None:
    definition = Definition(name="saga", steps=(Step(name="a", agent="worker", retry={"attempts": 3}), SAGA.steps[2]))
    world = World()
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    sent = world.fold(world.record(Owned(1, "me"), "@owner"), *started(world, definition))
    assert [document["step"] for _, document in sent] == ["a"]
    world.fold(world.record(StepCompleted("a", 1, Direction.EXECUTE, world.token(sent[0][1]))))

    appended = world.fold(world.record(RewindRequested("a", "tester", "because"), ce_id="r"))

    assert [(topic, document["attempt"]) for topic, document in appended] == [("t.commands.worker", 2)]
    assert world.machine.gate.held == 1


def test_after_a_take_over_too() -> None:
    world = World()
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    sent = world.fold(world.record(Owned(1, "me"), "@owner"), *started(world, SAGA))
    records = [
        world.record(StepCompleted("a", 1, Direction.EXECUTE, world.token(sent[0][1]))),
        world.record(RewindRequested("a", "tester", "because"), ce_id="r"),
    ]
    later = World()
    later.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    before = started(later, SAGA)
    later.offset = world.offset
    for place, record in enumerate(records):
        record.offset = len(before) + 1 + place

    appended = later.fold(*before, *records, later.record(Owned(1, "me"), "@owner"))

    refused = [document for topic, document in appended if topic == "t.events"]
    assert refused == [{"epoch": 1, "step": "b", "attempt": 1, "service": "bank", "maybe_sent": True}]
