"""What is written down when something ends: a step, a failure kept, a dead letter, a review, the workflow's result.

Rule: nothing in here decides how a workflow goes on.
"""

from __future__ import annotations

from typing import Any, Final

from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.events import FailureKind, Outcome
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import (
    FAILURES_KEPT_MAX,
    PRIORITY_DEFAULT,
    REMEMBER_MS,
    STATE_BYTES_MAX,
    UNSETTLED_KEPT_MAX,
)
from sagalog.schemas.records import DeadLetterRecord, FailureRecord, MissingRecord, ResultRecord, ReviewRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import children
from .budgets import used
from .effects import DeadLettered, Effect, Finished, Moved, ReviewClosed, ReviewNeeded
from .plan import Plan, PlanStep
from .state import NEVER, StepState, Trigger, WorkflowState, dump_steps, move_step, undo_agent

NOBODY_KNOWS: Final = (FailureKind.TIMEOUT, FailureKind.LOST, FailureKind.UNKNOWN)

# --- statuses


def move_workflow(state: WorkflowState, trigger: Trigger, effects: list[Effect]) -> None:
    before, after = state.move(trigger)
    effects.append(Moved(state.workflow_id, before, after, trigger))


def move_step_to(
    state: WorkflowState, step: StepState, spec: PlanStep, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    before = step.status
    move_step(step, after)
    attempt = step.attempt + 1 if after is StepStatus.RUNNING or after is StepStatus.AWAITING else step.attempt
    effects.append(Moved(state.workflow_id, before, after, trigger, spec.name_of(step), False, attempt))


def close_step(
    state: WorkflowState, step: StepState, spec: PlanStep, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    """A step has ended, well or not."""
    move_step_to(state, step, spec, after, trigger, effects)
    step.finished_ms = state.now_ms
    if step.item < 0:
        state.open_steps -= 1
    state.ended_steps += 1
    step.order = state.ended_steps


# --- failures


def note_failure(state: WorkflowState, kept: list[FailureRecord], failure: FailureRecord) -> None:
    """Keeps the newest failures of a step or an undoing; of a state that is full, only the newest, without its details."""
    full = state.bytes + failure_bytes(failure) > STATE_BYTES_MAX
    if full:
        # A copy: whoever sends the failure on (a review) still needs its details.
        failure = failure.copy()
        failure.pop("details", None)
    kept.append(failure)
    state.bytes += failure_bytes(failure)
    while len(kept) > (1 if full else FAILURES_KEPT_MAX):
        state.bytes -= failure_bytes(kept.pop(0))


def forget_failures(state: WorkflowState, kept: list[FailureRecord]) -> None:
    """Of something that is over and leaves no trace in the state."""
    state.bytes -= sum(failure_bytes(failure) for failure in kept)


def mark_landed(state: WorkflowState, kept: list[FailureRecord], attempt: int) -> None:
    """The result of an attempt that was given up has come after all."""
    for place, failure in enumerate(kept):
        if failure.get("attempt") == attempt:
            # A copy: an effect may hold the failure as it was.
            kept[place] = {**failure, "landed": True}
            state.bytes += failure_bytes(kept[place]) - failure_bytes(failure)


def mark_outcome(state: WorkflowState, kept: list[FailureRecord], outcome: Outcome) -> None:
    """Somebody knows now what became of the attempt that failed last."""
    before = failure_bytes(kept[-1])
    # A copy: an effect may hold the failure as it was.
    kept[-1] = kept[-1].copy()
    kept[-1]["outcome"] = outcome
    state.bytes += failure_bytes(kept[-1]) - before


def failure_bytes(failure: FailureRecord) -> int:
    """What a failure counts for in the state's payloads."""
    # As the checkpoint will have it: one character of a text may be six bytes of JSON.
    return len(encode(failure))


def dead_letter(
    state: WorkflowState, spec: PlanStep, step: StepState, direction: Direction, effects: list[Effect]
) -> None:
    """The command failed for good: it goes to the dead letters with every attempt that the state has kept."""
    undo = step.undo if direction is Direction.COMPENSATE else None
    question = step.question if direction is Direction.RECONCILE else None
    attempt = step.questions if question else undo.attempt if undo else step.attempt
    failed = question or undo or step
    name = spec.name_of(step)
    record: DeadLetterRecord = {
        "id": state.command_id(name, attempt, direction),
        "workflow_id": state.workflow_id,
        "definition": state.definition,
        "name": state.name,
        "step": name,
        "agent": undo_agent(step, spec) if undo else spec.agent_of(step),
        "direction": direction,
        "at_ms": state.now_ms,
        "at_offset": state.at_offset,
        "input": spec.resolve_undo_input(state, step.item) if undo else spec.input_of(state, step),
        "failures": list(failed.failures),
        "failed_attempts": failed.failed_attempts,
    }
    effects.append(DeadLettered(record))


def review(
    state: WorkflowState, kind: str, reason: str, step: str | None, effects: list[Effect], details: Any = None
) -> None:
    """A person has to look at the workflow."""
    effects.append(ReviewNeeded(_review(state, kind, reason, step, details)))


def close_review(
    state: WorkflowState, step: str, status: StepStatus | UndoStatus, decision: str, who: str, why: str,
    effects: list[Effect],
) -> None:  # fmt: skip
    """The review of a step that waited for a person is decided, or moot. `status` is what the step was in."""
    kind = "undo_failed" if isinstance(status, UndoStatus) else _REVIEW_OF[status]
    record = _review(state, kind, f"step {step!r} was waiting for a decision", step, None)
    record["decided"] = {"decision": decision, "who": who, "reason": why, "at_ms": state.now_ms}
    effects.append(ReviewClosed(record))


def close_stop(state: WorkflowState, decision: str, who: str, why: str, effects: list[Effect]) -> None:
    """The review of a workflow that was stopped by a record in quarantine is decided."""
    record = _review(state, "quarantined", "the workflow was stopped", None, None)
    record["decided"] = {"decision": decision, "who": who, "reason": why, "at_ms": state.now_ms}
    effects.append(ReviewClosed(record))


_REVIEW_OF = {StepStatus.AWAITING: "task", StepStatus.HELD: "step_failed"}


def _review(state: WorkflowState, kind: str, reason: str, step: str | None, details: Any) -> ReviewRecord:
    record: ReviewRecord = {
        "id": f"{state.workflow_id}/{ids.of_run(step or '-', state.run)}/{kind}",
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
    return record


# --- what may still come


def given_up(step: StepState) -> list[int]:
    """Attempts of which nobody knows what became of them, and whose result has not come since."""
    return [
        failure["attempt"]
        for failure in step.failures
        if failure["kind"] in NOBODY_KNOWS
        and "attempt" in failure
        and "landed" not in failure
        and "outcome" not in failure
    ]


def _unsettled(state: WorkflowState, plan: Plan) -> list[str]:
    """Attempts, as `step/attempt`, whose late result a person has to see after the end of the workflow."""
    found = []
    for step in state.leaves():
        spec = plan.steps[step.index]
        if spec.compensate is None or not step.unknown or (step.status is StepStatus.DONE and step.undo is None):
            continue  # nothing would have to be undone, or a later attempt did the same under the same key
        found += [f"{spec.name_of(step)}/{attempt}" for attempt in given_up(step)]
    return found[-UNSETTLED_KEPT_MAX:]


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
    if state.tenant is not None:
        result["tenant"] = state.tenant
    if state.priority != PRIORITY_DEFAULT:
        result["priority"] = state.priority
    if state.attributes:
        result["attributes"] = state.attributes
    if state.run != ids.FIRST_RUN:
        result["run"] = state.run
        result["start_id"] = ids.start_id(state.seed)
    if state.rewinds:
        result["rewinds"] = list(state.rewinds)
    if state.forked is not None:
        result["forked_from"] = state.forked
    spent = used(state.everything())
    if spent["tokens"] or spent["cost"] or "ms" in spent:
        result["usage"] = spent
    if state.parent is not None:
        whose = state.parent
        result["parent"] = {"workflow_id": whose["workflow_id"], "root": whose["root"], "step": whose["step"]}
    if state.migrated:
        result["migrated"] = state.migrated
    effects.append(Finished(result, state.trace))
    gaps = [f"{gap['step']}: {gap['why']}" for gap in missing]
    if plan is not None:
        state.unsettled = _unsettled(state, plan)
    children.report(state, result.get("output"), gaps, effects)
    if plan is not None:
        children.let_go(state, plan, effects)
    state.finished_ms = state.now_ms
    state.deadline_ms = NEVER if children.awaited(state) else state.now_ms + REMEMBER_MS
    state.start = state.failure = state.paused = None
    state.signals = []
    if not state.of_several:
        state.heard = []
    state.tenant, state.priority, state.attributes = None, PRIORITY_DEFAULT, None
    if not children.may_be_undone(state, plan):
        state.steps, state.input, state.bytes = [], None, 0
        state.migrated, state.own_deadline = [], False
        state.rewinds, state.rewinding, state.pivoted, state.forked = [], False, False, None


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
    # What was not needed is not missing.
    needed = [step for step in state.steps if step.status is not StepStatus.SKIPPED]
    if not needed:
        return 1.0 if state.steps else 0.0
    return round(sum(step.status is StepStatus.DONE for step in needed) / len(needed), 4)


def _output(state: WorkflowState, plan: Plan) -> Any:
    if plan.resolve_output is not None:
        return plan.resolve_output(state, -1)
    return {plan.steps[place].name: state.steps[place].output for place in plan.leaves}
