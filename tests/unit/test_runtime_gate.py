"""The gate by priority: what waits goes by its workflow's priority, then by age, and a change of it counts at once."""

from __future__ import annotations

from sagalog.engine.kernel.effects import Dispatch
from sagalog.engine.runtime.gate import CircuitView, Gate
from sagalog.engine.runtime.limits import RAMP_FIRST, RAMP_MS
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import WhenOpen
from sagalog.schemas.ids import Direction, command_id
from sagalog.schemas.statuses import CircuitStatus

OPEN, CLOSED = CircuitView(CircuitStatus.OPEN, 0), CircuitView(CircuitStatus.CLOSED, 1)


def dispatch(workflow_id: str, priority: int, *, service: str | None = None, run: int = 1) -> Dispatch:
    name = command_id(workflow_id, "a", 1, Direction.EXECUTE, run)
    sent = Command(
        name, workflow_id, "hash", "a", "agent", 1, Direction.EXECUTE, "t", f"{workflow_id}/a", None, 1_000,
        service=service, priority=priority,
    )  # fmt: skip
    return Dispatch(sent, WhenOpen.PARK, 10_000, None)


def released(gate: Gate, now_ms: int) -> list[str]:
    return [effect.command.workflow_id for effect in gate.release(now_ms)]


def test_parked_commands_go_out_by_priority_and_then_by_age() -> None:
    gate = Gate(0)
    gate.circuit("bank", OPEN)
    for workflow_id, priority in (("low", 1), ("mid", 5), ("high", 9), ("mid-2", 5), ("high-2", 9), ("low-2", 1)):
        assert gate.admit(dispatch(workflow_id, priority, service="bank"), 0) is False
    gate.circuit("bank", CLOSED)

    assert released(gate, 1_000) == ["high", "high-2", "mid", "mid-2"][:RAMP_FIRST]
    gate.time(RAMP_MS)
    assert released(gate, 60_000) == ["low", "low-2"]


def test_a_ramp_goes_step_by_step_whatever_the_wall_clock_does_and_however_late_its_owner_is() -> None:
    gate = Gate(0)
    gate.circuit("bank", OPEN)
    for number in range(4 * RAMP_FIRST):
        gate.admit(dispatch(f"w{number}", 5, service="bank"), 0)
    gate.circuit("bank", CLOSED)

    gate.time(10 * RAMP_MS)  # it was held up since the circuit closed
    assert len(released(gate, 0)) == RAMP_FIRST
    assert released(gate, 60_000) == []  # the wall clock was put forward
    gate.time(20 * RAMP_MS)
    assert len(released(gate, -60_000)) == 2 * RAMP_FIRST
    gate.time(21 * RAMP_MS)
    assert len(released(gate, -60_000)) == RAMP_FIRST


def test_commands_that_wait_for_a_place_among_their_agents_go_by_priority() -> None:
    gate = Gate(0, in_flight_max=1)
    assert gate.admit(dispatch("first", 0), 0) is True
    for workflow_id, priority in (("low", 1), ("high", 9)):
        assert gate.admit(dispatch(workflow_id, priority), 0) is False

    gate.answered("first/a/1/execute")
    assert released(gate, 10) == ["high"]
    gate.answered("high/a/1/execute")
    assert released(gate, 20) == ["low"]


def test_a_change_of_priority_counts_for_what_waits_already() -> None:
    gate = Gate(0, in_flight_max=1)
    gate.admit(dispatch("first", 5), 0)
    for workflow_id in ("a", "b", "c"):
        gate.admit(dispatch(workflow_id, 5), 0)
    gate.prioritize("c", 8)
    gate.prioritize("nobody", 8)

    gate.answered("first/a/1/execute")
    (out,) = gate.release(10)
    assert (out.command.workflow_id, out.command.priority) == ("c", 8)
    assert out.command.withheld is not None


def test_what_was_answered_while_it_waited_takes_nobodys_turn() -> None:
    gate = Gate(0, in_flight_max=1)
    gate.admit(dispatch("first", 5), 0)
    for workflow_id in ("gone", "stays"):
        gate.admit(dispatch(workflow_id, 5), 0)
    gate.answered("gone/a/1/execute")
    gate.answered("first/a/1/execute")

    assert released(gate, 10) == ["stays"]
    assert gate.held == 0


def test_a_command_of_a_later_run_is_known_as_its_workflows() -> None:
    gate = Gate(0)
    gate.circuit("bank", OPEN)
    gate.admit(dispatch("w/1", 5, service="bank", run=17), 0)
    gate.changed.clear()
    gate.answered("w/1/a/1@17/execute")

    assert gate.changed == {"w/1"}
    assert gate.held_workflows() == []
