"""Events that somebody outside sends: a signal, a decision about a task or about what failed for good, an action.

Rule: each counts once. Its id is remembered, because a client that lost its connection sends again what it is not sure of.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import Task, WaitFor
from sagalog.schemas.events import (
    ActionRequested,
    CancelRequested,
    Decision,
    FailureKind,
    MigrationRequested,
    Quarantined,
    RewindRequested,
    SignalReceived,
    StepDecided,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import (
    ENVELOPE_BYTES_MAX,
    FAILURE_MESSAGE_CHARS_MAX,
    HEARD_KEPT_MAX,
    PAYLOAD_BYTES_MAX,
    SEED_BYTES_MAX,
    SIGNALS_KEPT_MAX,
    STATE_BYTES_MAX,
    TEXT_CHARS_MAX,
)
from sagalog.schemas.records import FailureRecord, SignalRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import control, migration, rewind, runs, waits
from .closing import close_review, dead_letter, move_step_to, note_failure
from .effects import Effect, Ignored, Reason
from .plan import Plan, PlanStep
from .progress import dispatch_undo, end_step, end_undo, fail_step, give_up, past_pivot, proceed
from .record import Record
from .state import StepState, WorkflowState, undo_agents

FromOutside = ActionRequested | SignalReceived | StepDecided | MigrationRequested | RewindRequested


def heard(
    state: WorkflowState,
    plan: Plan | None,
    event: FromOutside,
    record: Record,
    effects: list[Effect],
    target: Plan | None = None,
) -> None:
    """Somebody outside sent something. What does not fit the state is ignored with the reason. `target`: of a migration."""
    event_id = _event_id(record)
    if event_id in state.heard:
        _ignore(Reason.DUPLICATE, event, effects)
        return
    effects_before = len(effects)
    if isinstance(event, ActionRequested):
        control.act(state, plan, event, effects)
    elif isinstance(event, MigrationRequested):
        migration.migrate(state, plan, target, event, effects)
    elif plan is None or not state.steps:
        _ignore(Reason.NOT_WAITED_FOR, event, effects)
    elif isinstance(event, SignalReceived):
        _signalled(state, plan, event, event_id, record.size, effects)
    elif isinstance(event, RewindRequested):
        reason = rewind.requested(state, plan, event, effects)
        if reason is not None:
            _ignore(reason, event, effects)
    else:
        _decided(state, plan, event, record.size, effects)
    ignored = len(effects) == effects_before + 1 and isinstance(effects[-1], Ignored)
    if not ignored and (not state.terminal or state.of_several):
        _remember(state, event_id)


def cancelled(
    state: WorkflowState, plan: Plan | None, event: CancelRequested, record: Record, effects: list[Effect]
) -> None:  # fmt: skip
    """A cancel. Of a start that waits for this run's end it is the end; the run itself could not be cancelled, or it was."""
    if not state.of_several:
        control.cancel(state, plan, event, effects)
        return
    event_id = _event_id(record)
    if event_id in state.heard:
        effects.append(Ignored(Reason.DUPLICATE, "CancelRequested"))
        return
    effects_before = len(effects)
    if state.next is not None:
        runs.drop_next(state, f"cancelled by {event.who}: {event.reason}", effects)
    else:
        control.cancel(state, plan, event, effects)
    if len(effects) != effects_before + 1 or not isinstance(effects[-1], Ignored):
        _remember(state, event_id)


def stopped(state: WorkflowState, event: Quarantined, effects: list[Effect]) -> None:
    """A record of the workflow is in quarantine. Said again after a take-over, it must not stop it again once it was resumed."""
    origin = f"@{event.origin}"[:SEED_BYTES_MAX]
    if origin in state.heard:
        effects.append(Ignored(Reason.DUPLICATE, "Quarantined"))
        return
    control.quarantine(state, event.reason, effects)
    if state.status is WorkflowStatus.QUARANTINED:
        _remember(state, origin)


def _event_id(record: Record) -> str:
    return record.ce_id[:SEED_BYTES_MAX].decode(errors="replace") if record.ce_id else f"@{record.offset}"


def _remember(state: WorkflowState, event_id: str) -> None:
    state.heard.append(event_id)
    if len(state.heard) > HEARD_KEPT_MAX:
        del state.heard[0]


# --- signals


def _signalled(
    state: WorkflowState, plan: Plan, event: SignalReceived, signal_id: str, size: int, effects: list[Effect]
) -> None:
    """A step that waits for the signal ends; else the signal is kept until one does."""
    if state.status not in (WorkflowStatus.RUNNING, WorkflowStatus.REWINDING):
        _ignore(Reason.NOT_POSSIBLE, event, effects)
        return
    step = _waiting_for(state, plan, event.name)
    reason = _signal_problem(state, plan, event, size, kept=step is None)
    if reason is not None:
        _ignore(reason, event, effects)
        return
    waits.drop_expired(state)
    if step is None:
        kept: SignalRecord = {"id": signal_id, "name": event.name, "at_ms": state.now_ms, "bytes": size}
        if event.payload is not None:
            kept["payload"] = event.payload
        waits.keep(state, kept)
        return
    waits.accept(state, step, event.payload, size)
    end_step(state, plan, step, StepStatus.DONE, "signalled", effects)


def _waiting_for(state: WorkflowState, plan: Plan, name: str) -> StepState | None:
    """The first step, in the definition's order, that waits for this signal."""
    for step in state.steps:
        awaited = plan.steps[step.index].awaits
        if step.status is StepStatus.AWAITING and isinstance(awaited, WaitFor) and awaited.signal == name:
            return step
    return None


def _signal_problem(state: WorkflowState, plan: Plan, event: SignalReceived, size: int, *, kept: bool) -> Reason | None:
    if event.name not in plan.signals:
        return Reason.UNKNOWN_SIGNAL
    if size > PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX or not _fits(plan, event):
        return Reason.INVALID_PAYLOAD
    count, freed = waits.expired(state)
    full = kept and len(state.signals) - count >= SIGNALS_KEPT_MAX
    if full or state.bytes - freed + size > STATE_BYTES_MAX:
        return Reason.SIGNALS_FULL
    return None


def _fits(plan: Plan, event: SignalReceived) -> bool:
    # Several steps may wait for one signal, each with its schema: a payload has to fit them all, as it may end in any.
    validators = (
        spec.payload_validator
        for spec in plan.steps
        if isinstance(spec.awaits, WaitFor) and spec.awaits.signal == event.name
    )
    return all(validator is None or validator.problem(event.payload) is None for validator in validators)


# --- decisions


def _decided(state: WorkflowState, plan: Plan, event: StepDecided, size: int, effects: list[Effect]) -> None:
    """Somebody decided about a task, a held step or a held undoing. What does not fit is ignored with the reason."""
    step = plan.find(state, event.step)
    if step is None:
        _ignore(Reason.UNKNOWN_STEP, event, effects)
        return
    spec = plan.steps[step.index]
    if event.direction is Direction.COMPENSATE:
        reason = _decide_undo(state, plan, step, spec, event, effects)
    elif event.direction is Direction.RECONCILE:
        reason = Reason.NOT_POSSIBLE  # only the agent that was asked can say
    elif isinstance(spec.awaits, Task) and step.status is StepStatus.AWAITING:
        reason = _decide_task(state, plan, step, spec, event, size, effects)
    elif step.status is StepStatus.HELD and state.status in (WorkflowStatus.RUNNING, WorkflowStatus.REWINDING):
        reason = _decide_held(state, plan, step, spec, event, size, effects)
    else:
        reason = Reason.NOT_WAITED_FOR
    if reason is not None:
        _ignore(reason, event, effects)


def _decide_task(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    spec: PlanStep,
    event: StepDecided,
    size: int,
    effects: list[Effect],
) -> Reason | None:
    match event.decision:
        case Decision.APPROVE:
            output = event.output
            if output is None:
                output = spec.resolve_input(state, -1)
                size = len(encode(output))
            if _output_problem(state, spec, output, size):
                return Reason.INVALID_PAYLOAD
            _close(state, step, spec, event, effects)
            waits.accept(state, step, output, size)
            end_step(state, plan, step, StepStatus.DONE, "approved", effects)
        case Decision.REJECT:
            _close(state, step, spec, event, effects)
            failure = _said(state, step, FailureKind.REJECTED, f"{event.who} rejected it: {event.reason}")
            note_failure(state, step.failures, failure)
            step.failed_attempts += 1
            give_up(state, plan, step, failure, effects)
        case _:
            return Reason.NOT_POSSIBLE
    return None


def _decide_held(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    spec: PlanStep,
    event: StepDecided,
    size: int,
    effects: list[Effect],
) -> Reason | None:
    match event.decision:
        case Decision.RETRY:
            _close(state, step, spec, event, effects)
            step.agent, step.fell_back = None, 0
            step.fell_back_after = step.attempt
            move_step_to(state, step, spec, StepStatus.WAITING, "retried", effects)
            proceed(state, plan, [step.index], effects)
        case Decision.SKIP:
            _close(state, step, spec, event, effects)
            step.output, step.stand_in = spec.default, "default"
            end_step(state, plan, step, StepStatus.DEGRADED, "skipped", effects)
        case Decision.COMPLETE:
            if _output_problem(state, spec, event.output, size):
                return Reason.INVALID_PAYLOAD
            _close(state, step, spec, event, effects)
            waits.accept(state, step, event.output, size)
            step.stand_in = "operator"
            end_step(state, plan, step, StepStatus.DONE, "completed_by_hand", effects)
        case Decision.FAIL if not past_pivot(state, plan):
            _close(state, step, spec, event, effects)
            failure = step.failures[-1]
            if not step.items:
                dead_letter(state, spec, step, Direction.EXECUTE, effects)
            fail_step(state, plan, step, failure, effects)
        case _:
            return Reason.NOT_POSSIBLE
    return None


def _decide_undo(
    state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, event: StepDecided, effects: list[Effect]
) -> Reason | None:
    undo = step.undo
    undoing = state.status in (WorkflowStatus.COMPENSATING, WorkflowStatus.REWINDING)
    if undo is None or undo.status is not UndoStatus.HELD or not undoing:
        return Reason.NOT_WAITED_FOR
    if state.paused is not None and (event.decision is Decision.RETRY or undo.turn + 1 < len(undo_agents(step, spec))):
        return Reason.NOT_POSSIBLE  # it would begin something
    match event.decision:
        case Decision.RETRY:
            _close_undo(state, spec.name_of(step), event, effects)
            undo.tried_before = undo.attempt
            dispatch_undo(state, plan, step, effects)
        case Decision.SKIP:
            _close_undo(state, spec.name_of(step), event, effects)
            end_undo(state, plan, step, UndoStatus.SKIPPED, "skipped", effects)
        case Decision.COMPLETE:
            _close_undo(state, spec.name_of(step), event, effects)
            end_undo(state, plan, step, UndoStatus.DONE, "completed_by_hand", effects)
        case Decision.FAIL if state.status is WorkflowStatus.COMPENSATING or not past_pivot(state, plan):
            _close_undo(state, spec.name_of(step), event, effects)
            dead_letter(state, spec, step, Direction.COMPENSATE, effects)
            end_undo(state, plan, step, UndoStatus.FAILED, "given_up", effects)
        case _:
            return Reason.NOT_POSSIBLE
    return None


# --- helpers


def _close(state: WorkflowState, step: StepState, spec: PlanStep, event: StepDecided, effects: list[Effect]) -> None:
    who, why = event.who[:TEXT_CHARS_MAX], event.reason[:TEXT_CHARS_MAX]
    close_review(state, spec.name, step.status, event.decision, who, why, effects)


def _close_undo(state: WorkflowState, name: str, event: StepDecided, effects: list[Effect]) -> None:
    who, why = event.who[:TEXT_CHARS_MAX], event.reason[:TEXT_CHARS_MAX]
    close_review(state, name, UndoStatus.HELD, event.decision, who, why, effects)


def _output_problem(state: WorkflowState, spec: PlanStep, output: Any, size: int) -> bool:
    """Whether what a person gave as the step's output breaks its contract or the limits."""
    if size > PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX or state.bytes + size > STATE_BYTES_MAX:
        return True
    validators = (spec.payload_validator, spec.output_validator)
    return any(validator is not None and validator.problem(output) is not None for validator in validators)


def _said(state: WorkflowState, step: StepState, kind: FailureKind, message: str) -> FailureRecord:
    return {
        "kind": kind,
        "message": message[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
        "attempt": step.attempt,
    }


def _ignore(reason: Reason, event: FromOutside, effects: list[Effect]) -> None:
    effects.append(Ignored(reason, type(event).__name__))
