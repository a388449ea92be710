"""Events by which people and the engine steer a workflow as a whole: cancel, pause, resume, terminate, quarantine."""

from __future__ import annotations

from typing import assert_never

from sagalog.schemas.events import Action, ActionRequested, CancelRequested, FailureKind, ParentEnded, UndoRequested
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, PRIORITY_MAX, TEXT_CHARS_MAX
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import children, items, reconcile, rewind
from .closing import close_stop, finish, move_workflow, review
from .effects import Answered, Dispatch, Effect, Emit, Ignored, Prioritized, Reason
from .plan import Plan
from .progress import (
    attempt,
    close_reviews,
    dispatch,
    dispatch_undo,
    past_pivot,
    proceed,
    stop,
    undo_attempt,
    undo_next,
)
from .state import NEVER, Trigger, WorkflowState


def cancel(state: WorkflowState, plan: Plan | None, event: CancelRequested, effects: list[Effect]) -> None:
    """Stops a workflow and undoes what it did. A compensation that runs already cannot be interrupted."""
    if not try_cancel(state, plan, f"cancelled by {event.who}: {event.reason}", effects):
        effects.append(Ignored(Reason.CANNOT_BE_CANCELLED, "CancelRequested"))


def try_cancel(state: WorkflowState, plan: Plan | None, message: str, effects: list[Effect]) -> bool:
    """Cancels the workflow, for the reason in `message`. False when its state does not allow it: nothing changed then."""
    match state.status:
        case WorkflowStatus.RUNNING | WorkflowStatus.REWINDING if plan is not None and not past_pivot(state, plan):
            stop(state, plan, Trigger.CANCELLED, _cause(state, message), effects)
            return True
        case WorkflowStatus.WAITING:
            state.failure = _cause(state, message)
            finish(state, None, Trigger.CANCELLED, effects)
            return True
        case _:
            return False


def undo(state: WorkflowState, plan: Plan | None, event: UndoRequested, effects: list[Effect]) -> None:
    """The workflow's parent undoes the step that this one did."""
    reason = children.asked_to_undo(state, event)
    if reason is not None:
        effects.append(Ignored(reason, "UndoRequested"))
    elif not state.steps:
        children.tell(state, effects)  # it is undone, or there was nothing to undo, or it cannot be
    elif plan is None or past_pivot(state, plan):
        children.cannot_be_undone(state, effects)
    else:
        move_workflow(state, Trigger.UNDO_REQUESTED, effects)
        state.finished_ms = 0
        state.unsettled = []
        state.failure = _cause(state, event.reason)
        undo_next(state, plan, effects)


def parent_ended(state: WorkflowState, plan: Plan | None, event: ParentEnded, effects: list[Effect]) -> None:
    """Nothing will be asked of this workflow any more. With a parent that was terminated it ends, too."""
    reason = children.parent_ended(state, event)
    if reason is not None:
        effects.append(Ignored(reason, "ParentEnded"))
    elif event.terminate and not state.terminal:
        by = ActionRequested(Action.TERMINATE, "its parent was terminated", "its parent")
        _terminate(state, plan, by, effects)


def act(state: WorkflowState, plan: Plan | None, event: ActionRequested, effects: list[Effect]) -> None:
    """A person pauses, resumes or terminates the workflow. What its state does not allow is ignored."""
    match event.action:
        case Action.PAUSE:
            done = _pause(state, event)
        case Action.RESUME:
            done = _resume(state, plan, event, effects)
        case Action.TERMINATE:
            _terminate(state, plan, event, effects)
            done = True
        case Action.PRIORITIZE:
            done = _prioritize(state, event, effects)
        case _:
            assert_never(event.action)
    if not done:
        effects.append(Ignored(Reason.NOT_POSSIBLE, "ActionRequested"))


def quarantine(state: WorkflowState, reason: str, effects: list[Effect]) -> None:
    """Stops a workflow one of whose records could not be read or folded. A finished one is not touched."""
    match state.status:
        case WorkflowStatus.WAITING | WorkflowStatus.RUNNING | WorkflowStatus.REWINDING | WorkflowStatus.COMPENSATING:
            move_workflow(state, Trigger.RECORD_QUARANTINED, effects)
            state.stopped = reason[:FAILURE_MESSAGE_CHARS_MAX]
            review(state, "quarantined", state.stopped, None, effects)
        case _:
            effects.append(Ignored(Reason.ALREADY_FINISHED if state.terminal else Reason.STOPPED, "Quarantined"))


def _pause(state: WorkflowState, event: ActionRequested) -> bool:
    at_work = (WorkflowStatus.RUNNING, WorkflowStatus.REWINDING, WorkflowStatus.COMPENSATING)
    if state.status not in at_work or state.paused is not None:
        return False
    state.paused = {
        "who": event.who[:TEXT_CHARS_MAX],
        "reason": event.reason[:TEXT_CHARS_MAX],
        "at_ms": state.now_ms,
    }
    return True


def _resume(state: WorkflowState, plan: Plan | None, event: ActionRequested, effects: list[Effect]) -> bool:
    if state.status is WorkflowStatus.QUARANTINED:
        if plan is None or not state.steps:
            return False  # it stopped before it began: cancelling is not possible either, terminating is
        forward = Trigger.RESUMED_REWINDING if state.rewinding else Trigger.RESUMED
        move_workflow(state, forward if state.failure is None else Trigger.RESUMED_UNDOING, effects)
        state.stopped = None
        close_stop(state, event.action, event.who[:TEXT_CHARS_MAX], event.reason[:TEXT_CHARS_MAX], effects)
        _send_again(state, plan, effects)
    elif state.paused is None:
        return False
    assert plan is not None
    state.paused = None
    _go_on(state, plan, effects)
    return True


def _send_again(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """What was out when the workflow stopped: its answers were ignored since. The same ids, so nothing is done twice."""
    for step in state.leaves():
        if step.status is StepStatus.RUNNING:
            _again(attempt(state, plan, step), effects)
        if step.question is not None and step.question.out:
            _again(reconcile.question_dispatch(state, plan, step), effects)
        if step.undo is not None and step.undo.status is UndoStatus.RUNNING:
            _again(undo_attempt(state, plan, step), effects)


def _again(sent: Dispatch | Emit, effects: list[Effect]) -> None:
    # Whoever still counts the first sending stops counting it.
    if isinstance(sent, Dispatch):
        effects.append(Answered(sent.command.command_id))
    effects.append(sent)


def _go_on(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """What came due while nothing was to begin, and whatever can begin now."""
    for step in list(state.leaves()):
        if step.status is StepStatus.BACKING_OFF and step.retry_at_ms == NEVER:
            dispatch(state, plan, step, effects)
        reconcile.ask_held(state, plan, step, effects)
        undo = step.undo
        if undo is not None and undo.status is UndoStatus.BACKING_OFF and undo.retry_at_ms == NEVER:
            dispatch_undo(state, plan, step, effects)
    if state.status is WorkflowStatus.COMPENSATING:
        undo_next(state, plan, effects)
    else:
        for step in state.steps:
            if step.items and step.status is StepStatus.RUNNING:
                items.fill(state, plan, step, effects)
        if state.status is WorkflowStatus.REWINDING:
            rewind.go_on(state, plan, effects)
        proceed(state, plan, range(len(plan.steps)), effects)


def _terminate(state: WorkflowState, plan: Plan | None, event: ActionRequested, effects: list[Effect]) -> None:
    """Ends the workflow as it stands. What is out is not waited for, nothing is undone: the result shows what was done."""
    state.failure = _cause(state, f"terminated by {event.who}: {event.reason}")
    if state.status is WorkflowStatus.QUARANTINED:
        close_stop(state, event.action, event.who[:TEXT_CHARS_MAX], event.reason[:TEXT_CHARS_MAX], effects)
    if plan is not None:
        for step in state.leaves():
            name = plan.steps[step.index].name_of(step)
            effects += [Answered(state.command_id(name, attempt, direction)) for attempt, direction in step.out()]
        close_reviews(state, plan, "the workflow was terminated", effects)
    finish(state, plan, Trigger.TERMINATED, effects)


def _prioritize(state: WorkflowState, event: ActionRequested, effects: list[Effect]) -> bool:
    """What is sent from here on has the new priority. What agents have already keeps its own."""
    if event.priority is None or not 0 <= event.priority <= PRIORITY_MAX or event.priority == state.priority:
        return False
    state.priority = event.priority
    effects.append(Prioritized(state.workflow_id, state.priority))
    return True


def _cause(state: WorkflowState, message: str) -> FailureRecord:
    return {
        "kind": FailureKind.CANCELLED,
        "message": message[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
    }
