"""What holds of every state after every event, whatever the events were.

Rule: this is for tests, the simulation and `verify`, which look after each record; the hot path has no time for it. The first of
the invariants is the one that matters most: whatever is not over has something that will move it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .plan import Plan
from .state import NEVER, OUT, StepState, WorkflowState

_MOVES: Final = (
    StepStatus.RUNNING,
    StepStatus.BACKING_OFF,
    StepStatus.AWAITING,
    StepStatus.HELD,
    StepStatus.RECONCILING,
)
_UNDO_MOVES: Final = (UndoStatus.RUNNING, UndoStatus.BACKING_OFF, UndoStatus.HELD)
_ENDED: Final = (StepStatus.DONE, StepStatus.DEGRADED, StepStatus.SKIPPED, StepStatus.FAILED)


def problems(state: WorkflowState, plan: Plan | None) -> list[str]:
    """What does not hold of the state between two events; empty when all does."""
    return [f"{state.workflow_id} ({state.status}): {line}" for line in _problems(state, plan)]


def _problems(state: WorkflowState, plan: Plan | None) -> Iterator[str]:
    if state.agenda is not None:
        yield "steps are still to be begun"
    if state.bytes < 0:
        yield f"holds {state.bytes} bytes of payloads"
    match state.status:
        case None:
            yield "has no status"
        case WorkflowStatus.WAITING:
            if state.start is None or state.steps or state.deadline_ms == NEVER:
                yield "waits for its definition, and not only for that"
        case WorkflowStatus.QUARANTINED:
            if state.stopped is None:
                yield "is stopped, and nobody can say why"
        case WorkflowStatus.RUNNING:
            yield from _running(state)
        case WorkflowStatus.REWINDING:
            yield from _rewinding(state)
        case WorkflowStatus.COMPENSATING:
            yield from _compensating(state)
        case _ if state.terminal:
            yield from _ended(state)
    if state.status in (WorkflowStatus.RUNNING, WorkflowStatus.REWINDING, WorkflowStatus.COMPENSATING):
        if plan is None or len(state.steps) != len(plan.steps):
            yield "its steps are not those of its definition"
            return
        yield from _steps(state, plan)


def _running(state: WorkflowState) -> Iterator[str]:
    if state.failure is not None:
        yield "runs, and has failed"
    moving = any(step.status in _MOVES for step in state.steps)
    if not moving and state.paused is None:
        yield "nothing will move it"
    if any(step.undo is not None for step in state.leaves()):
        yield "something is undone while it runs"


def _rewinding(state: WorkflowState) -> Iterator[str]:
    if not state.rewinds or not state.rewinding:
        yield "is rewound, and nobody can say where to"
    out = any(step.status in OUT for step in state.steps)
    undoing = any(step.undo is not None and step.undo.status in _UNDO_MOVES for step in state.leaves())
    if not out and not undoing and state.paused is None:
        yield "nothing will move it"


def _compensating(state: WorkflowState) -> Iterator[str]:
    if state.failure is None:
        yield "is undone, and nobody can say why"
    out = any(step.status in OUT for step in state.steps)
    undoing = any(step.undo is not None and step.undo.status in _UNDO_MOVES for step in state.leaves())
    if not out and not undoing and state.paused is None:
        yield "nothing will move it"
    # What a rewinding was undoing goes on; steps that it did not concern may be out.
    if out and undoing and not state.rewinds:
        yield "something is undone while attempts are out"
    for step in state.steps:
        if step.status in (StepStatus.WAITING, StepStatus.BACKING_OFF, StepStatus.AWAITING, StepStatus.HELD):
            yield f"step {step.index} is {step.status}"


def _ended(state: WorkflowState) -> Iterator[str]:
    if not state.finished_ms:
        yield "has ended, and nobody knows when"
    if state.steps and state.report is None:
        yield "has ended, and keeps its steps for nobody"
    if state.report is not None and state.parent is None:
        yield "keeps a report for nobody"
    if state.paused is not None or state.signals:
        yield "has ended, and something is kept that is of what runs"


def _steps(state: WorkflowState, plan: Plan) -> Iterator[str]:
    orders: set[int] = set()
    for step in state.steps:
        spec = plan.steps[step.index]
        if step.items and spec.resolve_items is None:
            yield f"{spec.name} has items, and neither maps nor repeats"
        if step.items and step.status is StepStatus.RUNNING and not _items_move(state, step):
            yield f"{spec.name}: none of its items will move it"
        for one in (step, *step.items):
            name = spec.name_of(one)
            if one.filling:
                yield f"{name}: its items are still to be begun"
            if (one.question is not None) != (one.status is StepStatus.RECONCILING):
                yield f"{name} is {one.status}, and a question about it is {'open' if one.question else 'not open'}"
            if one.until_ms != NEVER and one.status is not StepStatus.AWAITING:
                yield f"{name} is {one.status}, and awaits a time"
            if one.status in _ENDED and not one.finished_ms:
                yield f"{name} is {one.status}, and has not ended"
            if one.order:
                if one.order in orders:
                    yield f"{name} ended as number {one.order}, as another one did"
                orders.add(one.order)
            if one.order > state.ended_steps:
                yield f"{name} ended as number {one.order} of {state.ended_steps}"


def _items_move(state: WorkflowState, step: StepState) -> bool:
    if state.paused is not None:
        return True
    return any(item.status in _MOVES for item in step.items)
