"""The machine of one partition asks whether an attempt happened: losses, circuits and take-overs of questions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.engine.runtime.gate import CircuitView
from sagalog.engine.runtime.limits import LOSS_GRACE_MS, LOSS_TICK_MS
from sagalog.schemas.definitions import Definition, Reconcile
from sagalog.schemas.events import AttemptLost, CancelRequested, Outcome, Owned, StepCompleted
from sagalog.schemas.ids import Direction
from sagalog.schemas.statuses import CircuitStatus

from .test_runtime_workflows import START_MS, Record, World, definition, started

LOST_MS = LOSS_GRACE_MS + LOSS_TICK_MS + 1
RECONCILE = Direction.RECONCILE
OPEN = CircuitView(CircuitStatus.OPEN, START_MS)
CLOSED = CircuitView(CircuitStatus.CLOSED, START_MS + 1)


def asking(**more: Any) -> Definition:
    return definition(reconcile=Reconcile(timeout_ms=3_000), start_timeout_ms=5_000, timeout_ms=1_000, **more)


def asked(world: World, saga: Definition) -> list[tuple[str, Any]]:
    """Its only attempt is lost. What the machine appends then."""
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.fold(*started(world, saga))
    return world.fold(world.record(AttemptLost(1, "a", 1, Direction.EXECUTE, "no answer"), ce_id="lost"))


def taken_over(world: World) -> World:
    cut = world.machine.cut()
    assert cut is not None
    cut.finish()
    after = World(member="next", offset=world.offset, now_ms=world.now_ms)
    for found in cut.records:
        message: Any = Record(0, world.now_ms, found.key or b"", found.value or b"", found.headers, "t.checkpoints")
        after.machine.load(message)
    assert after.machine.loaded(after.now_ms) is not None
    after.fold(after.record(Owned(2, "next"), "@owner"))
    return after


def lost(appended: list[tuple[str, Any]]) -> list[tuple[str, int, str]]:
    return [
        (document["step"], document["attempt"], document["direction"])
        for topic, document in appended
        if topic == "t.events" and "direction" in document
    ]


def test_the_question_goes_to_the_agent_as_a_command_of_its_own_type() -> None:
    world = World()
    ((topic, question),) = asked(world, asking())

    assert (topic, question["direction"], question["about"]) == ("t.commands.worker", "reconcile", 1)
    assert dict(world.sent[0][1].headers)["ce_type"] == b"sagalog.reconcile.v1"


@pytest.mark.parametrize("take_over", [False, True])
def test_a_question_that_nobody_answers_is_lost(take_over: bool) -> None:
    world = World()
    asked(world, asking())
    if take_over:
        world = taken_over(world)

    assert lost(world.tick(7_999)) == []
    assert lost(world.tick(LOST_MS)) == [("a", 1, "reconcile")]


@pytest.mark.parametrize("take_over", [False, True])
def test_a_question_whose_agent_gives_a_sign_of_life_is_not_lost(take_over: bool) -> None:
    world = World()
    asked(world, asking(heartbeat_timeout_ms=9_000))
    if take_over:
        world = taken_over(world)
    world.tick(5_000)
    world.machine.heard("w1/a/1/reconcile", "w1", "a", 1, RECONCILE)

    assert lost(world.tick(8_999)) == []
    assert lost(world.tick(LOST_MS)) == [("a", 1, "reconcile")]


def test_a_sign_of_life_of_another_question_keeps_nothing_alive_after_a_take_over() -> None:
    world = World()
    asked(world, asking(heartbeat_timeout_ms=60_000))
    world = taken_over(world)
    world.machine.heard("w1/a/2/reconcile", "w1", "a", 2, RECONCILE)

    assert lost(world.tick(8_000 + LOST_MS)) == [("a", 1, "reconcile")]


def test_an_answered_question_is_not_lost() -> None:
    world = World()
    ((_, question),) = asked(world, asking())
    answer = StepCompleted("a", 1, RECONCILE, world.token(question), "out", outcome=Outcome.HAPPENED)
    assert [topic for topic, _ in world.fold(world.record(answer, ce_id="answer"))] == ["t.results"]

    assert lost(world.tick(60_000)) == []


def test_a_parked_question_is_still_parked_after_a_take_over_and_goes_out_when_the_circuit_closes() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.fold(*started(world, asking(service="bank")))
    world.machine.circuit("bank", OPEN)
    assert world.fold(world.record(AttemptLost(1, "a", 1, Direction.EXECUTE, "no answer"), ce_id="lost")) == []
    assert world.machine.gate.held == 1
    world.tick(2_000)

    after = taken_over(world)
    after.machine.circuit("bank", OPEN)
    assert after.machine.gate.held == 1
    assert lost(after.tick(60_000)) == [], "it waits for the circuit, not for its agent"
    after.machine.circuit("bank", CLOSED)
    ((topic, question),) = after.tick(1_000)

    assert (topic, question["command_id"], question["about"]) == ("t.commands.worker", "w1/a/1/reconcile", 1)
    assert question["withheld"]["reason"] == "circuit_open"


def test_a_workflow_that_stops_keeps_its_parked_question() -> None:
    """Other than a parked attempt, which is not made any more."""
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.fold(*started(world, asking(service="bank")))
    world.machine.circuit("bank", OPEN)
    world.fold(world.record(AttemptLost(1, "a", 1, Direction.EXECUTE, "no answer"), ce_id="lost"))

    assert world.fold(world.record(CancelRequested("wanted", "tester"), ce_id="cancel")) == []
    assert world.machine.gate.held == 1


def test_a_checkpoint_says_what_is_asked() -> None:
    world = World()
    asked(world, asking())
    cut = world.machine.cut()
    assert cut is not None
    cut.finish()
    document = next(orjson.loads(found.value or b"") for found in cut.records if found.key == b"w1")

    assert document["steps"][0]["status"] == "reconciling"
    assert document["steps"][0]["question"] == {"since_ms": START_MS, "out": True}
