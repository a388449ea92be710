"""The event that one of a workflow's own deadlines is due."""

from __future__ import annotations

from sagalog.schemas.events import FailureKind, Timer, TimerFired
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .effects import Effect, Ignored, Reason
from .plan import Plan
from .progress import dispatch, dispatch_undo, stop
from .starts import definition_missing
from .state import NEVER, StepState, Trigger, WorkflowState


def fired(state: WorkflowState, plan: Plan | None, event: TimerFired, changed_at: int, effects: list[Effect]) -> bool:
    """True when the workflow's id is to be forgotten. A timer that is not set (any more) is ignored.

    `changed_at` is the offset of the last event that changed the workflow; `state.at_offset` is this event's already.
    """
    match event.timer:
        case Timer.RETRY:
            step = _step(state, plan, event)
            if step is not None and step.status is StepStatus.BACKING_OFF and step.attempt == event.attempt:
                assert plan is not None
                dispatch(state, plan, step.index, effects)
                return False
        case Timer.UNDO_RETRY:
            step = _step(state, plan, event)
            undo = step.undo if step is not None else None
            if undo is not None and undo.status is UndoStatus.BACKING_OFF and undo.attempt == event.attempt:
                assert plan is not None and step is not None
                dispatch_undo(state, plan, step, effects)
                return False
        case Timer.DEADLINE:
            if state.status is WorkflowStatus.RUNNING and state.deadline_ms != NEVER:
                assert plan is not None
                _deadline_passed(state, plan, effects)
                return False
        case Timer.DEFINITION:
            if state.status is WorkflowStatus.WAITING:
                definition_missing(state, effects)
                return False
        case Timer.FORGET:
            # The offset of its end tells this run from a later one under the same id.
            if state.terminal and event.attempt == changed_at:
                return True
    effects.append(Ignored(Reason.NOT_WAITED_FOR, "TimerFired"))
    return False


def due_timers(state: WorkflowState, plan: Plan | None, now_ms: int) -> list[tuple[Timer, str | None, int | None]]:
    """The timers due at `now_ms`, as (timer, step, attempt): what the runtime writes into TimerFired events."""
    match state.status:
        case WorkflowStatus.WAITING:
            return [(Timer.DEFINITION, None, None)] if state.deadline_ms <= now_ms else []
        case WorkflowStatus.RUNNING:
            assert plan is not None
            if state.deadline_ms <= now_ms:
                return [(Timer.DEADLINE, None, None)]
            return [
                (Timer.RETRY, plan.steps[step.index].name, step.attempt)
                for step in state.steps
                if step.retry_at_ms <= now_ms
            ]
        case WorkflowStatus.COMPENSATING:
            assert plan is not None
            return [
                (Timer.UNDO_RETRY, plan.steps[step.index].name, step.undo.attempt)
                for step in state.steps
                if step.undo is not None and step.undo.retry_at_ms <= now_ms
            ]
        case WorkflowStatus.QUARANTINED:
            return []
        case _:
            return [(Timer.FORGET, None, state.at_offset)] if state.deadline_ms <= now_ms else []


def _deadline_passed(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    unfinished = [
        plan.steps[step.index].name
        for step in state.steps
        if step.status in (StepStatus.WAITING, StepStatus.RUNNING, StepStatus.BACKING_OFF)
    ]
    message = f"the deadline passed {state.now_ms - state.started_ms:,} ms after the start; unfinished: {', '.join(unfinished)}"
    stop(
        state,
        plan,
        Trigger.DEADLINE_PASSED,
        {"kind": FailureKind.DEADLINE, "message": message, "at_ms": state.now_ms},
        effects,
    )


def _step(state: WorkflowState, plan: Plan | None, event: TimerFired) -> StepState | None:
    if plan is None or event.step is None or not state.steps:
        return None
    place = plan.index.get(event.step)
    return state.steps[place] if place is not None else None
