"""What follows from a change: the next steps, the compensation in reverse order, the end.

Rules:
- A workflow that stops first drains: attempts that are out are waited for (or lost), and what they did is undone with the
  rest. So nothing can land behind a compensation that does not know of it.
- One undoing runs at a time, in exact reverse order of completion.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Retry, WhenOpen
from sagalog.schemas.events import FailureKind
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import FAILURES_KEPT_MAX, REMEMBER_MS, STATE_BYTES_MAX
from sagalog.schemas.records import DeadLetterRecord, FailureRecord, MissingRecord, ResultRecord, ReviewRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .effects import DeadLettered, Dispatch, Effect, Finished, Moved, ReviewNeeded
from .plan import Plan, PlanStep
from .state import NEVER, StepState, Trigger, WorkflowState, dump_steps, move_step, move_undo

ENDED_WELL = (StepStatus.DONE, StepStatus.DEGRADED)


# --- forward


def begin(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """The workflow runs from here: its first steps go out."""
    state.steps = [StepState(place) for place in range(len(plan.steps))]
    state.open_steps = len(plan.steps)
    for place in plan.roots:
        dispatch(state, plan, place, effects)


def dispatch(state: WorkflowState, plan: Plan, place: int, effects: list[Effect]) -> None:
    """Sends the next attempt of a step."""
    step = state.steps[place]
    _move_step(state, step, plan.steps[place], StepStatus.RUNNING, "dispatched", effects)
    step.attempt += 1
    if not step.started_ms:
        step.started_ms = state.now_ms
    effects.append(execute_dispatch(state, plan, step))


def execute_dispatch(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch:
    """The effect that sends the step's current attempt; the same each time it is made."""
    spec = plan.steps[step.index]
    service = spec.service if step.agent is None else None
    command = _command(state, spec, Direction.EXECUTE, step.attempt, step.agent or spec.agent, service)
    command.input = spec.resolve_input(state)
    step.token = command.token
    return Dispatch(command, spec.when_open, spec.patience_ms, plan.policy(service) if service else None, state.trace)


def end_step(
    state: WorkflowState, plan: Plan, step: StepState, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    """A step has ended, well or not; whatever waited for it can go on."""
    spec = plan.steps[step.index]
    _move_step(state, step, spec, after, trigger, effects)
    step.finished_ms = state.now_ms
    state.open_steps -= 1
    state.ended_steps += 1
    step.order = state.ended_steps
    if state.status is WorkflowStatus.COMPENSATING:
        undo_next(state, plan, effects)
        return
    if after is StepStatus.FAILED:
        return
    for place in spec.dependents:
        waiting = state.steps[place]
        if waiting.status is StepStatus.WAITING and all(
            state.steps[need].status in ENDED_WELL for need in plan.steps[place].needs
        ):
            dispatch(state, plan, place, effects)
    if state.open_steps == 0:
        gaps = any(s.status is StepStatus.DEGRADED for s in state.steps)
        finish(state, plan, Trigger.ENDED_WITH_GAPS if gaps else Trigger.ALL_STEPS_ENDED, effects)


# --- backward


def stop(state: WorkflowState, plan: Plan, trigger: Trigger, cause: FailureRecord, effects: list[Effect]) -> None:
    """The workflow goes no further: what is not out is cancelled, what is out is waited for, what was done is undone."""
    move_workflow(state, trigger, effects)
    state.failure = cause
    for step in state.steps:
        if step.status is StepStatus.WAITING or step.status is StepStatus.BACKING_OFF:
            cancel_step(state, plan, step, effects)
    undo_next(state, plan, effects)


def cancel_step(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """The step is not tried (again). With an unknown outcome it takes part in the compensation."""
    _move_step(state, step, plan.steps[step.index], StepStatus.CANCELLED, "stopped", effects)
    state.open_steps -= 1
    if step.unknown:
        state.ended_steps += 1
        step.order = state.ended_steps
        step.finished_ms = state.now_ms


def undo_next(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """Once nothing is out any more: undoes the step that ended last, or ends the workflow when all are undone."""
    if any(step.status is StepStatus.RUNNING for step in state.steps):
        return
    newest: StepState | None = None
    for step in state.steps:
        if step.undo is None:
            move_undo(step, UndoStatus.PENDING if _to_undo(step, plan) else UndoStatus.NOT_NEEDED)
        assert step.undo is not None
        if step.undo.status is UndoStatus.RUNNING or step.undo.status is UndoStatus.BACKING_OFF:
            return
        if step.undo.status is UndoStatus.PENDING and (newest is None or step.order > newest.order):
            newest = step
    if newest is not None:
        dispatch_undo(state, plan, newest, effects)
    else:
        finish(state, plan, _how_it_ended(state), effects)


def dispatch_undo(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Sends the next attempt at undoing a step."""
    spec = plan.steps[step.index]
    assert spec.compensate is not None and step.undo is not None
    before = step.undo.status
    undo = move_undo(step, UndoStatus.RUNNING)
    undo.attempt += 1
    if undo.order == 0:
        state.undone_steps += 1
        undo.order = state.undone_steps
        undo.started_ms = state.now_ms
    effects.append(_moved_undo(state, spec, before, undo.status, "dispatched", undo.attempt))
    effects.append(undo_dispatch(state, plan, step))


def undo_dispatch(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch:
    """The effect that sends the current attempt at undoing a step; the same each time it is made."""
    spec = plan.steps[step.index]
    assert spec.compensate is not None and step.undo is not None
    agent = undo_agent(step, spec)
    service = spec.service if agent == spec.agent else None
    command = _command(state, spec, Direction.COMPENSATE, step.undo.attempt, agent, service)
    command.input = spec.resolve_undo_input(state)
    command.timeout_ms = spec.compensate.timeout_ms
    policy = plan.policy(service) if service else None
    return Dispatch(command, WhenOpen.PARK, spec.undo_patience_ms, policy, state.trace)


def undo_agent(step: StepState, spec: PlanStep) -> str:
    """Who undoes a step: the agent that the definition names for it, else the one that did it (which may be the fallback)."""
    assert spec.compensate is not None
    return spec.compensate.agent or step.agent or spec.agent


def end_undo(
    state: WorkflowState, plan: Plan, step: StepState, after: UndoStatus, trigger: str, effects: list[Effect]
) -> None:
    """An undoing has ended, well or not; the next one follows."""
    assert step.undo is not None
    before = step.undo.status
    undo = move_undo(step, after)
    undo.finished_ms = state.now_ms
    effects.append(_moved_undo(state, plan.steps[step.index], before, after, trigger, undo.attempt))
    undo_next(state, plan, effects)


def _to_undo(step: StepState, plan: Plan) -> bool:
    if plan.steps[step.index].compensate is None:
        return False
    # A step whose outcome is unknown may have had its effect: it is undone like one that is known to have had it. What a
    # fallback agent did in its place has to be undone, too; a default or a constant did nothing.
    by_fallback = step.stand_in is not None and step.stand_in.startswith("fallback:")
    return step.status is StepStatus.DONE or step.unknown or by_fallback


def _how_it_ended(state: WorkflowState) -> Trigger:
    ledger = {step.undo.status for step in state.steps if step.undo is not None}
    if UndoStatus.FAILED in ledger:
        return Trigger.NOT_ALL_UNDONE
    assert state.failure is not None
    match FailureKind(state.failure["kind"]):
        case FailureKind.CANCELLED:
            return Trigger.UNDONE_AFTER_CANCEL
        case FailureKind.REVIEW_NEEDED:
            return Trigger.UNDONE_FOR_REVIEW
        case _:
            return Trigger.UNDONE if UndoStatus.DONE in ledger else Trigger.NOTHING_TO_UNDO


# --- the end


def finish(state: WorkflowState, plan: Plan | None, trigger: Trigger, effects: list[Effect]) -> None:
    """The workflow is over. Its result goes out; of its state a stub stays for as long as the id is remembered."""
    move_workflow(state, trigger, effects)
    missing = manifest(state, plan) if plan is not None else []
    result: ResultRecord = {
        "workflow_id": state.workflow_id,
        "definition": state.definition,
        "name": state.name,
        "status": state.status,  # type: ignore[typeddict-item]
        "started_ms": state.started_ms,
        "finished_ms": state.now_ms,
        "at_offset": state.at_offset,
        "input": state.input,
        "completeness": _completeness(state),
        "missing": missing,
        "steps": dump_steps(state, plan) if plan is not None else [],
    }
    if state.status is WorkflowStatus.COMPLETED or state.status is WorkflowStatus.DEGRADED:
        assert plan is not None
        result["output"] = _output(state, plan)
    if state.failure is not None:
        result["failure"] = state.failure
    if state.correlation_id is not None:
        result["correlation_id"] = state.correlation_id
    effects.append(Finished(result, state.trace))
    state.finished_ms = state.now_ms
    state.deadline_ms = state.now_ms + REMEMBER_MS
    state.input = state.start = state.failure = None
    state.steps = []
    state.bytes = 0


def manifest(state: WorkflowState, plan: Plan) -> list[MissingRecord]:
    """What is missing from the result, why, and what stands in: one line per degraded step, in the definition's order."""
    missing: list[MissingRecord] = []
    for step in state.steps:
        if step.status is StepStatus.DEGRADED:
            last = step.failures[-1]
            missing.append(
                {
                    "step": plan.steps[step.index].name,
                    "why": last["message"],
                    "kind": last["kind"],
                    "stand_in": step.stand_in or "default",
                }
            )
    return missing


def _completeness(state: WorkflowState) -> float:
    if not state.steps:
        return 0.0
    return round(sum(step.status is StepStatus.DONE for step in state.steps) / len(state.steps), 4)


def _output(state: WorkflowState, plan: Plan) -> Any:
    if plan.resolve_output is not None:
        return plan.resolve_output(state)
    return {plan.steps[place].name: state.steps[place].output for place in plan.leaves}


# --- helpers that several families share


def move_workflow(state: WorkflowState, trigger: Trigger, effects: list[Effect]) -> None:
    before, after = state.move(trigger)
    effects.append(Moved(state.workflow_id, before, after, trigger))


def backoff_ms(retry: Retry, state: WorkflowState, command: str, attempt: int, retry_after_ms: int | None) -> int:
    """How long to wait after the failed attempt `attempt`: full jitter under an exponential cap, at least what the agent asked."""
    # The exponent is bounded by the cap, so that no attempt count overflows the float.
    ceiling = min(float(retry.cap_ms), retry.base_ms * retry.factor ** min(attempt - 1, 64))
    delay = int(ceiling * ids.fraction(state.seed, command))
    return max(1, delay, min(retry_after_ms or 0, retry.cap_ms))


def note_failure(state: WorkflowState, kept: list[FailureRecord], failure: FailureRecord) -> None:
    """Keeps the newest failures of a step or an undoing; of a state that is full, only the newest, without its details."""
    full = state.bytes + _failure_bytes(failure) > STATE_BYTES_MAX
    if full:
        # A copy: whoever sends the failure on (a review) still needs its details.
        failure = failure.copy()
        failure.pop("details", None)
    kept.append(failure)
    state.bytes += _failure_bytes(failure)
    while len(kept) > (1 if full else FAILURES_KEPT_MAX):
        state.bytes -= _failure_bytes(kept.pop(0))


def _failure_bytes(failure: FailureRecord) -> int:
    # As the checkpoint will have it: one character of a text may be six bytes of JSON.
    return len(encode(failure))


def dead_letter(
    state: WorkflowState, spec: PlanStep, step: StepState, direction: Direction, effects: list[Effect]
) -> None:
    """The command failed for good: it goes to the dead letters with every attempt that the state has kept."""
    undo = step.undo if direction is Direction.COMPENSATE else None
    record: DeadLetterRecord = {
        "id": ids.command_id(state.workflow_id, spec.name, undo.attempt if undo else step.attempt, direction),
        "workflow_id": state.workflow_id,
        "definition": state.definition,
        "name": state.name,
        "step": spec.name,
        "agent": undo_agent(step, spec) if undo else step.agent or spec.agent,
        "direction": direction,
        "at_ms": state.now_ms,
        "at_offset": state.at_offset,
        "input": spec.resolve_undo_input(state) if undo else spec.resolve_input(state),
        "failures": list(undo.failures if undo else step.failures),
        "failed_attempts": undo.failed_attempts if undo else step.failed_attempts,
    }
    effects.append(DeadLettered(record))


def review(
    state: WorkflowState, kind: str, reason: str, step: str | None, effects: list[Effect], details: Any = None
) -> None:
    """A person has to look at the workflow."""
    record: ReviewRecord = {
        "id": f"{state.workflow_id}/{step or '-'}/{kind}",
        "workflow_id": state.workflow_id,
        "definition": state.definition,
        "name": state.name,
        "kind": kind,
        "reason": reason,
        "input": state.input,
        "at_ms": state.now_ms,
        "at_offset": state.at_offset,
    }
    if step is not None:
        record["step"] = step
    if details is not None:
        record["details"] = details
    effects.append(ReviewNeeded(record))


def _move_step(
    state: WorkflowState, step: StepState, spec: PlanStep, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    before = step.status
    move_step(step, after)
    attempt = step.attempt + 1 if after is StepStatus.RUNNING else step.attempt
    effects.append(Moved(state.workflow_id, before, after, trigger, spec.name, False, attempt))


def back_off(state: WorkflowState, spec: PlanStep, step: StepState, delay_ms: int, effects: list[Effect]) -> None:
    """The step waits for its next attempt."""
    _move_step(state, step, spec, StepStatus.BACKING_OFF, "failed", effects)
    step.retry_at_ms = state.now_ms + delay_ms


def back_off_undo(state: WorkflowState, spec: PlanStep, step: StepState, delay_ms: int, effects: list[Effect]) -> None:
    """The undoing waits for its next attempt."""
    assert step.undo is not None
    before = step.undo.status
    undo = move_undo(step, UndoStatus.BACKING_OFF)
    undo.retry_at_ms = state.now_ms + delay_ms
    effects.append(_moved_undo(state, spec, before, undo.status, "failed", undo.attempt))


def _moved_undo(
    state: WorkflowState, spec: PlanStep, before: UndoStatus, after: UndoStatus, trigger: str, attempt: int
) -> Moved:
    return Moved(state.workflow_id, before, after, trigger, spec.name, True, attempt)


def _command(
    state: WorkflowState, spec: PlanStep, direction: Direction, attempt: int, agent: str, service: str | None
) -> Command:
    command_id = ids.command_id(state.workflow_id, spec.name, attempt, direction)
    return Command(
        command_id=command_id,
        workflow_id=state.workflow_id,
        definition=state.definition,
        step=spec.name,
        agent=agent,
        attempt=attempt,
        direction=direction,
        token=ids.token(state.seed, command_id),
        idempotency_key=ids.idempotency_key(state.workflow_id, spec.name),
        input=None,
        timeout_ms=spec.timeout_ms,
        heartbeat_timeout_ms=spec.heartbeat_timeout_ms,
        deadline_ms=state.deadline_ms if state.deadline_ms != NEVER and direction is Direction.EXECUTE else None,
        service=service,
    )
