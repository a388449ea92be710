"""Events by which people and the engine steer a workflow from outside: cancel, quarantine."""

from __future__ import annotations

from sagalog.schemas.events import CancelRequested, FailureKind
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX
from sagalog.schemas.statuses import WorkflowStatus

from .effects import Effect, Ignored, Reason
from .plan import Plan
from .progress import finish, move_workflow, review, stop
from .state import Trigger, WorkflowState


def cancel(state: WorkflowState, plan: Plan | None, event: CancelRequested, effects: list[Effect]) -> None:
    """Stops a workflow and undoes what it did. A compensation that runs already cannot be interrupted."""
    message = f"cancelled by {event.who}: {event.reason}"[:FAILURE_MESSAGE_CHARS_MAX]
    match state.status:
        case WorkflowStatus.RUNNING:
            assert plan is not None
            cause = {"kind": FailureKind.CANCELLED, "message": message, "at_ms": state.now_ms}
            stop(state, plan, Trigger.CANCELLED, cause, effects)  # type: ignore[arg-type]
        case WorkflowStatus.WAITING:
            state.failure = {"kind": FailureKind.CANCELLED, "message": message, "at_ms": state.now_ms}
            finish(state, None, Trigger.CANCELLED, effects)
        case _:
            effects.append(Ignored(Reason.CANNOT_BE_CANCELLED, "CancelRequested"))


def quarantine(state: WorkflowState, reason: str, effects: list[Effect]) -> None:
    """Stops a workflow one of whose records could not be read or folded. A finished one is not touched."""
    match state.status:
        case WorkflowStatus.WAITING | WorkflowStatus.RUNNING | WorkflowStatus.COMPENSATING:
            move_workflow(state, Trigger.RECORD_QUARANTINED, effects)
            state.stopped = reason[:FAILURE_MESSAGE_CHARS_MAX]
            review(state, "quarantined", state.stopped, None, effects)
        case _:
            effects.append(Ignored(Reason.ALREADY_FINISHED if state.terminal else Reason.STOPPED, "Quarantined"))
