"""Steps that another workflow does: its start, its end, its cancel and its undoing, as events between the two.

Rules:
- A child is to its parent what an attempt of an agent is: it has a number and a token, and ends with one report that returns them.
- Every event between the two may be written twice (by an owner and its successor): its id and its content follow from the log.
- A child keeps its report, and what it did for as long as it may have to be undone, until it hears that its parent is over. What it
  reports after that is answered by the same word again.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from sagalog.schemas import ids
from sagalog.schemas.codec import check_json
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import (
    CancelRequested,
    ChildEnded,
    FailureKind,
    Parent,
    ParentEnded,
    UndoRequested,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, PAYLOAD_BYTES_MAX, PRIORITY_DEFAULT, REMEMBER_MS
from sagalog.schemas.records import SCHEDULE_KEY, ParentRecord, ReportRecord
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

from . import budgets
from .effects import Effect, Emit, Reason
from .plan import Plan, PlanStep
from .state import StepState, WorkflowState

ENDED_WELL: Final = (WorkflowStatus.COMPLETED, WorkflowStatus.DEGRADED)
UNDONE: Final = (
    WorkflowStatus.FAILED,
    WorkflowStatus.COMPENSATED,
    WorkflowStatus.CANCELLED,
    WorkflowStatus.REVIEW,
    WorkflowStatus.REJECTED,
)
"""Of a child that ended so nothing is left to undo."""


# --- what a parent sends


def problem(state: WorkflowState, plan: Plan, step: StepState) -> str | None:
    """Why the step's child cannot be started; None when it can."""
    spec = plan.steps[step.index]
    if not by_child(spec, step):
        return None
    try:
        # A binding may have put payloads deeper, or repeated them.
        check_json(spec.resolve_input(state, step.item), "input", PAYLOAD_BYTES_MAX)
    except InvalidRecord as error:
        return str(error)
    return None


def start(state: WorkflowState, plan: Plan, step: StepState) -> Emit:
    """Starts the child of the step's present attempt."""
    spec = plan.steps[step.index]
    assert spec.child is not None
    tokens, cost = budgets.allowance(state, plan, step)
    command = state.command_id(spec.name_of(step), step.attempt, Direction.EXECUTE)
    step.token = ids.token(state.seed, command)
    parent = Parent(
        workflow_id=state.workflow_id,
        root=state.parent["root"] if state.parent is not None else state.workflow_id,
        depth=state.parent["depth"] + 1 if state.parent is not None else 1,
        step=spec.name_of(step),
        attempt=step.attempt,
        token=step.token,
        tokens=tokens,
        cost=cost,
    )
    event = WorkflowStarted(
        spec.child.definition,
        spec.resolve_input(state, step.item),
        spec.child.timeout_ms,
        state.correlation_id,
        tenant=state.tenant,
        priority=state.priority if state.priority != PRIORITY_DEFAULT else None,
        parent=parent,
    )
    # The event's id becomes the child's seed: as hard to guess as the parent's.
    return Emit(child_of(state, spec, step), event, ids.token(state.seed, f"{command}/child"), state.trace, command)


def undo(state: WorkflowState, plan: Plan, step: StepState) -> Emit:
    """Has the step's child undone."""
    assert step.undo is not None
    spec = plan.steps[step.index]
    name = spec.name_of(step)
    command = state.command_id(name, step.undo.attempt, Direction.COMPENSATE)
    event = UndoRequested(
        _token(state, spec, step), step.undo.attempt, ids.token(state.seed, command), f"undone by {state.workflow_id}"
    )
    return Emit(child_of(state, spec, step), event, command, state.trace, command)


def cancel_running(
    state: WorkflowState, plan: Plan, effects: list[Effect], places: Container[int] | None = None
) -> None:  # fmt: skip
    """The workflow stops: so do its children. They report when they have undone what they did, and are waited for."""
    if not plan.has_children:
        return
    for step in state.leaves():
        spec = plan.steps[step.index]
        if places is not None and step.index not in places:
            continue
        if step.status is StepStatus.RUNNING and by_child(spec, step):
            child = child_of(state, spec, step)
            event = CancelRequested("its parent stopped", f"workflow {state.workflow_id}")
            effects.append(Emit(child, event, f"{child}/cancel"))


def let_go(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """The workflow is over: no child of its will be asked anything any more."""
    if not plan.has_children:
        return
    for step in state.leaves():
        if plan.steps[step.index].child is not None and step.started_ms:
            leave(state, plan, step, effects)


def leave(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """No child of the step, or of the item, will be asked anything any more."""
    terminate = state.status is WorkflowStatus.TERMINATED
    name = plan.steps[step.index].name_of(step)
    for attempt in range(step.first + 1, step.attempt + 1):
        child = ids.child_id(state.workflow_id, name, attempt, state.run)
        command = state.command_id(name, attempt, Direction.EXECUTE)
        effects.append(Emit(child, ParentEnded(ids.token(state.seed, command), terminate), f"{child}/parent-ended"))


def by_child(spec: PlanStep, step: StepState) -> bool:
    """Whether the step's present attempt is a workflow's; a fallback may be an agent's."""
    return spec.child is not None and step.agent is None


def child_of(state: WorkflowState, spec: PlanStep, step: StepState) -> str:
    """The id of the workflow that does the step's present attempt, or did its last one."""
    return ids.child_id(state.workflow_id, spec.name_of(step), _child_attempt(spec, step), state.run)


def _child_attempt(spec: PlanStep, step: StepState) -> int:
    # After a fallback to an agent the attempts of that one have numbers, too.
    return step.attempt if step.agent is None else step.fell_back_after


def _token(state: WorkflowState, spec: PlanStep, step: StepState) -> str:
    attempt = _child_attempt(spec, step)
    return ids.token(state.seed, state.command_id(spec.name_of(step), attempt, Direction.EXECUTE))


# --- what a child reports


def remember_parent(parent: Parent) -> ParentRecord:
    """What the child's state keeps of who started it."""
    record: ParentRecord = {
        "workflow_id": parent.workflow_id,
        "root": parent.root,
        "depth": parent.depth,
        "step": parent.step,
        "attempt": parent.attempt,
        "token": parent.token,
    }
    if parent.tokens is not None:
        record["tokens"] = parent.tokens
    if parent.cost is not None:
        record["cost"] = parent.cost
    return record


def report(state: WorkflowState, output: Any, missing: list[str], effects: list[Effect]) -> None:
    """The workflow has ended, well or not, or is undone: its parent is told. Call before the state becomes a stub."""
    parent = state.parent
    assert state.status is not None
    if parent is None or parent.get("over", False):
        return
    asked = parent.get("undo")
    spent = budgets.used(state.everything())
    found: ReportRecord = {"status": state.status, "tokens": spent["tokens"], "cost": spent["cost"]}
    if asked is None and state.status in ENDED_WELL:
        try:
            check_json(output, "output", PAYLOAD_BYTES_MAX)
        except InvalidRecord as error:
            found["kind"], found["message"] = FailureKind.INVALID_OUTPUT, str(error)[:FAILURE_MESSAGE_CHARS_MAX]
        else:
            found["output"] = output
            if missing:
                found["message"] = "; ".join(missing)[:FAILURE_MESSAGE_CHARS_MAX]
    elif state.failure is not None:
        found["kind"], found["message"] = state.failure["kind"], state.failure["message"]
    by_schedule = of_schedule(parent)
    if by_schedule:
        found.pop("output", None)  # it has no use for that
    state.report = found
    tell(state, effects)
    if by_schedule:
        state.report = None


def tell(state: WorkflowState, effects: list[Effect]) -> None:
    """Sends the report, or sends it again."""
    parent, found = state.parent, state.report
    assert parent is not None and found is not None
    asked = parent.get("undo")
    kind = found.get("kind")
    answer = ChildEnded(
        parent["step"],
        asked["attempt"] if asked is not None else parent["attempt"],
        Direction.COMPENSATE if asked is not None else Direction.EXECUTE,
        asked["token"] if asked is not None else parent["token"],
        state.workflow_id,
        WorkflowStatus(found["status"]),
        output=found.get("output") if asked is None else None,
        kind=FailureKind(kind) if kind is not None else None,
        message=found.get("message"),
        tokens=found["tokens"],
        cost=found["cost"],
    )
    ce_id = f"{state.workflow_id}/undone/{asked['attempt']}" if asked is not None else f"{state.workflow_id}/ended"
    effects.append(Emit(parent["workflow_id"], answer, ce_id))


def taken(workflow_id: str, parent: Parent, effects: list[Effect]) -> None:
    """The id of a child is another workflow's already."""
    message = f"workflow_id: {workflow_id!r} is taken by another workflow"[:FAILURE_MESSAGE_CHARS_MAX]
    answer = ChildEnded(
        parent.step,
        parent.attempt,
        Direction.EXECUTE,
        parent.token,
        workflow_id,
        WorkflowStatus.REJECTED,
        kind=FailureKind.TERMINAL,
        message=message,
    )
    effects.append(Emit(parent.workflow_id, answer, f"{workflow_id}/taken/{parent.token}"))


def started_again(state: WorkflowState, parent: Parent, effects: list[Effect]) -> None:
    """A second start of a child: its parent may have missed the report (it was in quarantine)."""
    if state.parent is None or state.parent["token"] != parent.token:
        taken(state.workflow_id, parent, effects)
    elif state.terminal and state.report is not None and "undo" not in state.parent:
        tell(state, effects)


def parent_ended(state: WorkflowState, event: ParentEnded) -> Reason | None:
    """Nothing will be asked of this workflow any more. Returns why that changes nothing, if so."""
    parent = state.parent
    if parent is None or parent["token"] != event.parent_token:
        return Reason.WRONG_TOKEN
    if parent.get("over", False):
        return Reason.DUPLICATE
    parent["over"] = True
    state.report = None
    if state.terminal:
        state.steps, state.bytes, state.input = [], 0, None
        state.deadline_ms = state.now_ms + REMEMBER_MS
    return None


def told_again(event: ChildEnded, effects: list[Effect]) -> None:
    """A child reports to a parent that is over, which it may never have heard: it would be kept for ever.

    Its start may come after that word, when an owner sent it whose partition another one has taken over.
    """
    if event.direction is Direction.EXECUTE:
        effects.append(Emit(event.child, ParentEnded(event.token), f"{event.child}/parent-ended/again"))


def awaited(state: WorkflowState) -> bool:
    """Whether the workflow does a step of another one, which may still ask something of it."""
    parent = state.parent
    return parent is not None and not parent.get("over", False) and not of_schedule(parent)


def of_schedule(parent: ParentRecord) -> bool:
    """Whether a schedule started the workflow: it only wants to hear of the end, and nothing is kept for it."""
    return parent["workflow_id"].startswith(SCHEDULE_KEY)


def may_be_undone(state: WorkflowState, plan: Plan | None) -> bool:
    """Whether what the child did is to be kept after its good end, as its parent may have it undone."""
    return awaited(state) and state.status in ENDED_WELL and plan is not None and plan.undoable


def asked_to_undo(state: WorkflowState, event: UndoRequested) -> Reason | None:
    """Notes who asks for the undoing; why it changes nothing, if so."""
    parent = state.parent
    if parent is None or parent["token"] != event.parent_token:
        return Reason.WRONG_TOKEN
    if not state.terminal or state.report is None:
        return Reason.NOT_POSSIBLE  # it is at it, or was let go
    parent["undo"] = {"attempt": event.attempt, "token": event.token}
    return None


def cannot_be_undone(state: WorkflowState, effects: list[Effect]) -> None:
    """The child is past a pivot: it says so."""
    assert state.report is not None
    state.report = {
        "status": state.report["status"],
        "tokens": state.report["tokens"],
        "cost": state.report["cost"],
        "kind": FailureKind.TERMINAL,
        "message": "it is past a pivot, so that nothing of it can be undone",
    }
    tell(state, effects)


def undo_succeeded(event: ChildEnded) -> bool:
    """Whether what the child did is undone, or was nothing."""
    return event.kind is not FailureKind.TERMINAL and (event.status in UNDONE or event.status in ENDED_WELL)


def failure_of(event: ChildEnded) -> tuple[FailureKind, str]:
    """What a child's bad end is to its parent's step. Its outcome is known: it undid what it did, or says that it could not."""
    match event.status, event.kind:
        case WorkflowStatus.REVIEW, _:
            kind = FailureKind.REVIEW_NEEDED
        case _, FailureKind.DEADLINE:
            kind = FailureKind.RETRYABLE
        case _, FailureKind.OVER_BUDGET | FailureKind.INVALID_OUTPUT | FailureKind.INVALID_INPUT as same:
            kind = same
        case _, _:
            kind = FailureKind.TERMINAL
    message = f"workflow {event.child!r} ended {event.status}"
    return kind, (f"{message}: {event.message}" if event.message else message)[:FAILURE_MESSAGE_CHARS_MAX]
