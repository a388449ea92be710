"""The event that one of a workflow's own deadlines is due."""

from __future__ import annotations

from sagalog.schemas.definitions import Sleep, Task, WaitFor
from sagalog.schemas.events import FailureKind, Timer, TimerFired
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import reconcile
from .closing import close_review, note_failure
from .effects import Effect, Ignored, Reason
from .plan import Plan
from .progress import dispatch, dispatch_undo, end_step, give_up, past_pivot, stop
from .starts import definition_missing
from .state import NEVER, StepState, Trigger, WorkflowState
from .waits import ask


def fired(state: WorkflowState, plan: Plan | None, event: TimerFired, changed_at: int, effects: list[Effect]) -> bool:
    """True when the workflow's id is to be forgotten. A timer that is not set (any more) is ignored.

    So is one that comes too early by the broker's clock: the owner's may be ahead. It sets the timer again by how much.
    `changed_at` is the offset of the last event that changed the workflow; `state.at_offset` is this event's already.
    """
    match event.timer:
        case Timer.RETRY:
            step = _step(state, plan, event)
            if step is not None and step.status is StepStatus.BACKING_OFF and step.attempt == event.attempt:
                assert plan is not None
                if step.retry_at_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                if state.paused is not None:
                    step.retry_at_ms = NEVER  # it goes out once the workflow is resumed
                else:
                    dispatch(state, plan, step, effects)
                return False
        case Timer.QUESTION:
            step = _step(state, plan, event)
            # Not the one that a pause has held back, nor the one that is out: those have no time.
            if (
                step is not None
                and step.question is not None
                and step.questions == event.attempt
                and step.retry_at_ms != NEVER
            ):
                assert plan is not None
                if step.retry_at_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                if state.paused is not None:
                    step.retry_at_ms = NEVER
                else:
                    reconcile.ask(state, plan, step, effects)
                return False
        case Timer.UNDO_RETRY:
            step = _step(state, plan, event)
            undo = step.undo if step is not None else None
            if undo is not None and undo.status is UndoStatus.BACKING_OFF and undo.attempt == event.attempt:
                assert plan is not None and step is not None
                if undo.retry_at_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                if state.paused is not None:
                    undo.retry_at_ms = NEVER
                else:
                    dispatch_undo(state, plan, step, effects)
                return False
        case Timer.WAKE:
            step = _step(state, plan, event)
            if step is not None and step.status is StepStatus.AWAITING and step.attempt == event.attempt:
                assert plan is not None
                if step.until_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                _woke(state, plan, step, effects)
                return False
        case Timer.DEADLINE:
            forward = state.status is WorkflowStatus.RUNNING or state.status is WorkflowStatus.REWINDING
            if forward and state.deadline_ms != NEVER:
                assert plan is not None
                if state.deadline_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                if past_pivot(state, plan):
                    state.deadline_ms = NEVER  # too late to go back
                    return False
                _deadline_passed(state, plan, effects)
                return False
        case Timer.DEFINITION:
            if state.status is WorkflowStatus.WAITING:
                if state.deadline_ms > state.now_ms:
                    return _ignored(Reason.NOT_DUE, effects)
                definition_missing(state, effects)
                return False
        case Timer.FORGET:
            # The offset of its end tells this run from a later one under the same id.
            if state.terminal and event.attempt == changed_at:
                return state.deadline_ms <= state.now_ms or _ignored(Reason.NOT_DUE, effects)
    return _ignored(Reason.NOT_WAITED_FOR, effects)


def _ignored(reason: Reason, effects: list[Effect]) -> bool:
    effects.append(Ignored(reason, "TimerFired"))
    return False


def due_timers(state: WorkflowState, plan: Plan | None, now_ms: int) -> list[tuple[Timer, str | None, int | None]]:
    """The timers due at `now_ms`, as (timer, step, attempt): what the runtime writes into TimerFired events."""
    match state.status:
        case WorkflowStatus.WAITING:
            return [(Timer.DEFINITION, None, None)] if state.deadline_ms <= now_ms else []
        case WorkflowStatus.RUNNING | WorkflowStatus.REWINDING:
            assert plan is not None
            # Beside the deadline, not instead: to an owner whose clock is ahead it may look due long before it is.
            deadline: list[tuple[Timer, str | None, int | None]] = (
                [(Timer.DEADLINE, None, None)] if state.deadline_ms <= now_ms else []
            )
            return (
                deadline
                + [
                    _of_step(step, plan, now_ms)
                    for step in state.leaves()
                    if step.retry_at_ms <= now_ms or step.until_ms <= now_ms
                ]
                + (_undo_retries(state, plan, now_ms) if state.rewinding else [])
            )
        case WorkflowStatus.COMPENSATING:
            assert plan is not None
            questions = [_of_step(step, plan, now_ms) for step in state.leaves() if step.retry_at_ms <= now_ms]
            return questions + _undo_retries(state, plan, now_ms)
        case WorkflowStatus.QUARANTINED:
            return []
        case _:
            return [(Timer.FORGET, None, state.at_offset)] if state.deadline_ms <= now_ms else []


def _undo_retries(state: WorkflowState, plan: Plan, now_ms: int) -> list[tuple[Timer, str | None, int | None]]:
    return [
        (Timer.UNDO_RETRY, plan.steps[step.index].name_of(step), step.undo.attempt)
        for step in state.leaves()
        if step.undo is not None and step.undo.retry_at_ms <= now_ms
    ]


def _of_step(step: StepState, plan: Plan, now_ms: int) -> tuple[Timer, str | None, int | None]:
    name = plan.steps[step.index].name_of(step)
    if step.question is not None:
        return Timer.QUESTION, name, step.questions
    return Timer.RETRY if step.retry_at_ms <= now_ms else Timer.WAKE, name, step.attempt


def _woke(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """A step's time has come: a sleep is over, a signal or a person did not come."""
    spec = plan.steps[step.index]
    match spec.awaits:
        case Sleep():
            end_step(state, plan, step, StepStatus.DONE, "woke", effects)
            return
        case WaitFor(signal=name, timeout_ms=timeout_ms):
            message = f"no signal {name!r} came within {timeout_ms:,} ms"
        case Task(escalate_to=str() as to) as task if not step.escalated:
            step.escalated = True
            step.attempt += 1  # so that a copy of this very event does not count as the end of the second wait
            step.until_ms = state.now_ms + task.timeout_ms
            ask(state, step, spec, task, to, effects)
            return
        case Task(timeout_ms=timeout_ms):
            close_review(state, spec.name, step.status, "timeout", "sagalog", "nobody decided in time", effects)
            message = (
                f"nobody decided within {timeout_ms:,} ms{', nor once it was escalated' if step.escalated else ''}"
            )
        case None:
            raise AssertionError("a step with an agent awaits nothing")
    failure: FailureRecord = {
        "kind": FailureKind.TIMEOUT,
        "message": message,
        "at_ms": state.now_ms,
        "attempt": step.attempt,
    }
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    give_up(state, plan, step, failure, effects)


def _deadline_passed(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    unfinished = [plan.steps[step.index].name for step in state.steps if not step.finished_ms]
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
    return plan.find(state, event.step)
