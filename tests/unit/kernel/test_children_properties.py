"""Workflows within workflows under any sequence of events: both always end, and nothing of a child is left behind.

Rule: what the two have for each other is delivered in the order in which it was written, late, and sometimes twice.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.kernel import Partition
from sagalog.engine.kernel.effects import Effect, Emit, Finished, Quarantine
from sagalog.engine.kernel.state import WorkflowState, undone_by_child
from sagalog.engine.kernel.timers import due_timers
from sagalog.schemas import ids
from sagalog.schemas.definitions import Child, Definition, Map, Step, from_item
from sagalog.schemas.events import (
    Action,
    ActionRequested,
    CancelRequested,
    FailureKind,
    Quarantined,
    StepCompleted,
    StepFailed,
    TimerFired,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import ResultRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .driver import WORKFLOW, Driver
from .driver import step as a_step

FAILURES = [FailureKind.TERMINAL, FailureKind.RETRYABLE, FailureKind.TIMEOUT, FailureKind.REVIEW_NEEDED]
MOVES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=5, max_size=50)


@st.composite
def families(draw: st.DrawFn) -> tuple[Definition, Definition]:
    """A child with steps by agents, and a parent some of whose steps it does."""
    retry = {"attempts": 2, "base_ms": 50, "cap_ms": 100}
    inner = []
    for number in range(draw(st.integers(1, 3))):
        needs = (f"c{number - 1}",) if number else ()
        critical = draw(st.integers(0, 3)) > 0
        undo = draw(st.sampled_from([None, {"retry": retry}]))
        inner.append(a_step(f"c{number}", *needs, retry=retry, critical=critical, compensate=undo))
    child = Definition(name="child", steps=tuple(inner))
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 4))):
        needs = tuple(draw(st.lists(st.sampled_from([s.name for s in steps]), unique=True))) if steps else ()
        name = f"p{number}"
        if draw(st.booleans()):
            more: dict[str, Any] = (
                {"map": Map(over={"value": [1, 2]}), "input": from_item()} if draw(st.booleans()) else {}
            )
            by = Child(definition="child", timeout_ms=draw(st.sampled_from([1_000, 100_000])))
            steps.append(
                Step(
                    name=name,
                    needs=needs,
                    workflow=by,
                    retry=retry,  # type: ignore[arg-type]
                    fallback=draw(st.sampled_from([None, {"agent": "other"}])),
                    critical=draw(st.integers(0, 3)) > 0,
                    **more,
                )
            )
        else:
            steps.append(a_step(name, *needs, retry=retry, compensate={"retry": retry}))
    return child, Definition(name="parent", steps=tuple(steps))


def out(driver: Driver) -> list[tuple[WorkflowState, str, int, bool]]:
    """The attempts of agents that are out, in any workflow."""
    found = []
    for workflow_id in sorted(driver.partition.ids()):
        state = driver.partition.get(workflow_id)
        assert state is not None
        plan = driver.partition.plan_of(state)
        if plan is None or state.status not in (WorkflowStatus.RUNNING, WorkflowStatus.COMPENSATING):
            continue
        for step in state.leaves():
            spec = plan.steps[step.index]
            if step.status is StepStatus.RUNNING and (spec.child is None or step.agent is not None):
                found.append((state, spec.name_of(step), step.attempt, False))
            elif step.undo is not None and step.undo.status is UndoStatus.RUNNING and not undone_by_child(step, spec):
                found.append((state, spec.name_of(step), step.undo.attempt, True))
    return found


def answer(driver: Driver, number: int, kind: FailureKind | None) -> None:
    attempts = out(driver)
    if not attempts:
        return
    state, name, attempt, undo = attempts[number % len(attempts)]
    direction = Direction.COMPENSATE if undo else Direction.EXECUTE
    token = ids.token(state.seed, ids.command_id(state.workflow_id, name, attempt, direction))
    event: StepCompleted | StepFailed = StepCompleted(name, attempt, direction, token, number)
    if kind is not None:
        event = StepFailed(name, attempt, direction, token, kind, "no")
    driver.append(event, key=state.workflow_id.encode())


def pass_time(driver: Driver, ms: int) -> None:
    driver.now_ms += ms
    for workflow_id in sorted(driver.partition.ids()):
        state = driver.partition.get(workflow_id)
        assert state is not None
        if state.terminal:
            continue
        for timer, step, attempt in due_timers(state, driver.partition.plan_of(state), driver.now_ms):
            driver.append(TimerFired(1, timer, step, attempt), key=workflow_id.encode())


def happen(driver: Driver, what: int, number: int, written: list[Emit]) -> None:
    workflows = sorted(driver.partition.ids())
    key = workflows[number % len(workflows)].encode()
    driver.now_ms += number
    if what < 35:
        if driver.emitted:
            sent = driver.emitted.popleft()
            written.append(sent)
            driver.append(sent.event, key=sent.workflow_id.encode(), ce_id=sent.ce_id)
    elif what < 42:
        if written:
            sent = written[number % len(written)]
            driver.append(sent.event, key=sent.workflow_id.encode(), ce_id=sent.ce_id)
    elif what < 70:
        answer(driver, number, None)
    elif what < 80:
        answer(driver, number, FAILURES[number % len(FAILURES)])
    elif what < 88:
        pass_time(driver, number * 30)
    elif what < 92:
        driver.append(CancelRequested("wanted", "tester"), key=key)
    elif what < 94:
        driver.append(Quarantined(1, f"origin/{len(driver.log)}", "not JSON"), key=key)
    elif what < 98:
        action = [Action.PAUSE, Action.RESUME, Action.RESUME][number % 3]
        driver.append(ActionRequested(action, "wanted", "tester"), key=key, ce_id=f"action-{len(driver.log)}")
    elif number > 50:
        driver.append(ActionRequested(Action.TERMINATE, "wanted", "tester"), key=key, ce_id=f"end-{len(driver.log)}")


def settle(driver: Driver) -> None:
    """Faults stop: everything is delivered, answered and resumed."""
    for _ in range(300):
        states = [driver.partition.get(workflow_id) for workflow_id in sorted(driver.partition.ids())]
        going = [state for state in states if state is not None and not state.terminal]
        if not going and not driver.emitted:
            return
        for state in going:
            if state.paused is not None or state.status is WorkflowStatus.QUARANTINED:
                resume = ActionRequested(Action.RESUME, "wanted", "tester")
                driver.append(resume, key=state.workflow_id.encode(), ce_id=f"resume-{len(driver.log)}")
        driver.deliver()
        for _ in range(len(out(driver))):
            answer(driver, 0, None)
        driver.deliver()
        pass_time(driver, 5_000)
    raise AssertionError("somebody still waits although everything was answered")


class _Watched(Driver):
    """A driver that keeps all effects."""

    def __init__(self, *definitions: Definition, round_trip: bool) -> None:
        self.effects: list[Effect] = []
        super().__init__(*definitions, round_trip=round_trip)

    def apply(self, record: Any) -> list[Effect]:
        effects = super().apply(record)
        self.effects += effects
        return effects


@given(families(), MOVES, st.booleans())
def test_both_always_end_and_nothing_of_a_child_is_left_behind(
    family: tuple[Definition, Definition], moves: list[tuple[int, int]], round_trip: bool
) -> None:
    driver = _Watched(*family, round_trip=round_trip)
    driver.start("parent")
    written: list[Emit] = []
    for what, number in moves:
        happen(driver, what, number, written)
    settle(driver)

    assert not [effect for effect in driver.effects if isinstance(effect, Quarantine)]
    results = {effect.result["workflow_id"]: effect.result for effect in driver.effects if isinstance(effect, Finished)}
    for workflow_id in driver.partition.ids():
        state = driver.partition.get(workflow_id)
        assert state is not None and state.terminal
        assert not state.steps and state.report is None, "it was let go"
    check_undone(family[0], results)

    again = Driver(round_trip=not round_trip)
    again.partition = Partition()
    for record in driver.log:
        again.apply(record)
    assert again.dumps() == driver.dumps()


def check_undone(child: Definition, results: dict[str, ResultRecord]) -> None:
    """Of a family that was undone, every step of a child that can be undone and was done is; whatever was terminated aside."""
    if any(found["status"] in ("terminated", "compensation_failed") for found in results.values()):
        return
    if results[WORKFLOW]["status"] in ("completed", "degraded"):
        return
    compensated = {step.name for step in child.steps if step.compensate is not None}
    for found in results.values():
        done = {step["name"] for step in found["steps"] if step["status"] == "done"}
        assert found["status"] not in ("completed", "degraded") or not done & compensated, found["workflow_id"]
