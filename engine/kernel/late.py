"""Results that come after all: of an attempt that was given up because nobody could say what became of it.

Rules:
- While the workflow is being undone, or a part of it by a rewinding, a step that was undone already is undone once more: what came
  late may have been done later.
- After the end there is nothing left to undo it with: a review says what was done, and a person looks.
- Each counts once. A copy of a result that was in time, or of an attempt whose step was done after all, is no late one.
"""

from __future__ import annotations

from typing import assert_never

from sagalog.schemas import ids
from sagalog.schemas.events import StepCompleted
from sagalog.schemas.ids import Direction
from sagalog.schemas.statuses import UndoStatus, WorkflowStatus

from . import progress, rewind
from .closing import given_up, mark_landed, review
from .effects import Effect
from .plan import Plan
from .record import Record
from .state import StepState, WorkflowState


def landed(state: WorkflowState, plan: Plan, step: StepState, event: StepCompleted, effects: list[Effect]) -> bool:
    """Whether the event is a late result of a workflow that is being undone; a step that is undone is undone once more."""
    undoing = state.status is WorkflowStatus.COMPENSATING or (
        rewind.concerns(state, plan, step) and state.rewinds[-1]["undo"]
    )
    if not undoing or event.attempt not in given_up(step):
        return False
    if step.question is not None and event.attempt == step.attempt:
        return False  # it answers what is being asked about it
    spec = plan.steps[step.index]
    if event.token != ids.token(state.seed, _command(state, spec.name_of(step), event)):
        return False
    mark_landed(state, step.failures, event.attempt)
    undo = step.undo
    if undo is None:
        return True  # it will be undone with the rest
    match undo.status:
        case UndoStatus.DONE:
            undo.late += 1
            progress.undo_again(state, plan, step, effects)
        case UndoStatus.RUNNING | UndoStatus.BACKING_OFF:
            undo.late += 1
            undo.again = True
        case UndoStatus.PENDING | UndoStatus.HELD | UndoStatus.SKIPPED | UndoStatus.FAILED | UndoStatus.NOT_NEEDED:
            pass  # it is still to be undone, or a person knows that it may not be
        case _:
            assert_never(undo.status)
    return True


def landed_after_the_end(
    state: WorkflowState, event: StepCompleted, record: Record, effects: list[Effect]
) -> bool:  # fmt: skip
    """Whether the event is a late result of a workflow that is over; if so, a review says so."""
    attempt = f"{event.step}/{event.attempt}"
    if event.direction is not Direction.EXECUTE or attempt not in state.unsettled:
        return False
    if event.token != ids.token(state.seed, _command(state, event.step, event)):
        return False
    ended_at, state.at_offset = state.at_offset, record.offset
    state.now_ms = max(state.now_ms, record.time_ms)
    state.unsettled = [other for other in state.unsettled if other != attempt]
    details = {"attempt": event.attempt, "agent": event.agent, "output": event.output}
    message = f"step {event.step!r} was done after all, after the workflow had ended {state.status}: nothing undoes it"
    review(state, "late_result", message, event.step, effects, details)
    state.at_offset = ended_at  # a stub is of its end: the result of that offset must still count
    return True


def _command(state: WorkflowState, step: str, event: StepCompleted) -> str:
    return state.command_id(step, event.attempt, Direction.EXECUTE)
