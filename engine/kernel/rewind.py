"""Back to a step, and forward again from there: the step and all that needs it are done anew.

Rules:
- Only what is affected stops: it drains as a workflow that stops does, and is not tried again. Whatever else has begun goes on
  as it would; nothing else begins until the workflow is rewound.
- Until everything affected is drained and undone, nothing is taken away: a cancel, a deadline or a failure finds the ledger
  as it is, and the compensation goes on from there. So nothing is lost, and nothing is undone twice.
- Undone, a step begins a new round, with a new idempotency key. Not undone, it is one more attempt at the same thing: the key
  stays, and whoever did it before is among those who are asked to undo it, should it come to that.
- Numbers of attempts go on, of items too: an id is given out once.
"""

from __future__ import annotations

from sagalog.schemas.codec import encode
from sagalog.schemas.events import FailureKind, RewindRequested
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, LETTER_ID_CHARS_MAX, REWINDS_MAX, TEXT_CHARS_MAX
from sagalog.schemas.records import FailureRecord, RewindRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import children, items, progress, reconcile
from .closing import failure_bytes, move_step_to, move_workflow
from .effects import Effect, Reason
from .plan import Plan
from .state import OUT, StepState, Trigger, WorkflowState, did_it, move_undo

_BEGUN = (StepStatus.BACKING_OFF, StepStatus.AWAITING, StepStatus.HELD)


def requested(state: WorkflowState, plan: Plan, event: RewindRequested, effects: list[Effect]) -> Reason | None:
    """The workflow goes back to a step; the reason when it cannot."""
    place = plan.index.get(event.step)
    if place is None:
        return Reason.UNKNOWN_STEP
    if not possible(state, plan, place, undo=event.undo):
        return Reason.NOT_POSSIBLE
    entry: RewindRecord = {
        "step": event.step,
        "undo": event.undo,
        "who": event.who[:TEXT_CHARS_MAX],
        "reason": event.reason[:TEXT_CHARS_MAX],
        "at_ms": state.now_ms,
    }
    if event.dead_letter is not None:
        entry["dead_letter"] = event.dead_letter[:LETTER_ID_CHARS_MAX]
    state.rewinds.append(entry)
    state.rewinding = True
    move_workflow(state, Trigger.REWIND_REQUESTED, effects)
    for step in _affected(state, plan):
        if step.items and step.status is StepStatus.RUNNING:
            items.stop(state, plan, step, effects)
        elif step.status in _BEGUN or (step.status is StepStatus.WAITING and step.unknown):
            progress.cancel_step(state, plan, step, effects, why="the workflow is rewound")
        if state.paused is None:
            for one in step.items or (step,):
                reconcile.ask_held(state, plan, one, effects)
    children.cancel_running(state, plan, effects, _places(state, plan))
    go_on(state, plan, effects)
    return None


def concerns(state: WorkflowState, plan: Plan, step: StepState) -> bool:
    """Whether the workflow is being rewound, and the step, or the item, with it: it is not tried again."""
    return state.status is WorkflowStatus.REWINDING and step.index in _places(state, plan)


def go_on(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """Once nothing affected is out any more: undoes what is to be undone, and has everything affected begin anew."""
    affected = _affected(state, plan)
    if state.paused is not None or any(step.status in OUT for step in affected):
        return
    if state.rewinds[-1]["undo"] and not _undone(state, plan, affected, effects):
        return
    for step in affected:
        _anew(state, plan, step, effects, undone=state.rewinds[-1]["undo"])
    everything = [one for step in state.steps for one in (step, *step.items)]
    # As a checkpoint has them: the counts are the largest numbers that are left.
    state.ended_steps = max(one.order for one in everything)
    state.undone_steps = max(one.undo.order if one.undo is not None else 0 for one in everything)
    state.open_steps = sum(not s.finished_ms and s.status is not StepStatus.CANCELLED for s in state.steps)
    state.rewinding = False
    move_workflow(state, Trigger.REWOUND, effects)
    progress.proceed(state, plan, range(len(plan.steps)), effects)


# --- what is affected


def affected_places(plan: Plan, place: int) -> frozenset[int]:
    """A step and everything that needs it, however far."""
    return plan.steps[place].followers | {place}


def needed_places(plan: Plan, place: int) -> set[int]:
    """Everything that a step needs, however far."""
    return {spec.index for spec in plan.steps if place in spec.followers}


def _places(state: WorkflowState, plan: Plan) -> frozenset[int]:
    return affected_places(plan, plan.index[state.rewinds[-1]["step"]])


def _affected(state: WorkflowState, plan: Plan) -> list[StepState]:
    """In the definition's order."""
    return [state.steps[place] for place in sorted(_places(state, plan))]


def possible(state: WorkflowState, plan: Plan, place: int, *, undo: bool) -> bool:
    """Whether the workflow can go back to the step."""
    if state.status is not WorkflowStatus.RUNNING or len(state.rewinds) >= REWINDS_MAX:
        return False
    if state.steps[place].status is StepStatus.WAITING:
        return False  # it has not begun, or another rewinding has just brought it here
    for found in affected_places(plan, place):
        step, spec = state.steps[found], plan.steps[found]
        if undo and spec.pivot and (state.pivoted or step.status in (*progress.ENDED_WELL, *OUT)):
            return False
        if not undo and spec.child is not None and step.status is not StepStatus.WAITING:
            return False  # the next child would do it once more, and only that one would be known
        # What an item did is undone by its name and its place in a list that may be another one next time.
        if not undo and step.items and spec.compensate is not None:
            return False
    return True


# --- undoing


def _undone(state: WorkflowState, plan: Plan, affected: list[StepState], effects: list[Effect]) -> bool:
    """Whether everything affected is undone; else the next undoing goes out, or what went wrong stops the workflow."""
    place_left_behind(state, plan)
    ledger = [leaf for step in affected for leaf in (step.items or [step])]
    for leaf in ledger:
        if leaf.undo is None:
            move_undo(leaf, UndoStatus.PENDING if progress.to_undo(leaf, plan) else UndoStatus.NOT_NEEDED)
    undoings = [(leaf, leaf.undo.status) for leaf in ledger if leaf.undo is not None]
    if any(status is UndoStatus.RUNNING or status is UndoStatus.BACKING_OFF for _, status in undoings):
        return False
    pending = [leaf for leaf, status in undoings if status is UndoStatus.PENDING]
    if pending:
        progress.dispatch_undo(state, plan, max(pending, key=lambda leaf: leaf.order), effects)
        return False
    if any(status is UndoStatus.HELD for _, status in undoings):
        return False
    failed = next((leaf for leaf, status in undoings if status is UndoStatus.FAILED), None)
    if failed is None:
        return True
    name = plan.steps[failed.index].name_of(failed)
    message = f"the workflow cannot be rewound: step {name!r} could not be undone"
    cause: FailureRecord = {
        "kind": FailureKind.TERMINAL,
        "message": message[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
        "step": name,
    }
    progress.stop(state, plan, Trigger.STEP_FAILED, cause, effects)
    return False


def place_left_behind(state: WorkflowState, plan: Plan) -> None:
    """Numbers what an earlier rewinding left with an unknown outcome: behind all that has ended, each behind its needs.

    Such a step did its work before those that it needs were done anew: by the time of its end it would be undone after them.
    """
    left = [s for s in state.steps if s.unknown and s.status is StepStatus.CANCELLED and not s.order]
    while left:
        places = {step.index for step in left}
        ready = [step for step in left if not places & needed_places(plan, step.index)]
        for step in ready:
            state.ended_steps += 1
            step.order, step.finished_ms = state.ended_steps, state.now_ms
        left = [step for step in left if not step.order]


# --- anew


def _anew(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect], *, undone: bool) -> None:
    """The step is as if it had never begun, but for what its next attempts must not repeat."""
    spec = plan.steps[step.index]
    if spec.pivot and step.status in progress.ENDED_WELL:
        state.pivoted = True
    if undone:
        step.unknown, step.suspects = False, []
    elif progress.to_undo(step, plan):
        # It stands: should the step fail now, or be done by another agent, this one is asked to undo it as well.
        step.unknown = True
        agent = spec.agent_of(step)
        if agent and did_it(step, spec) and agent not in step.suspects:
            step.suspects.append(agent)
    if undone or step.items:
        step.round += 1
    for leaf in step.items or [step]:
        if spec.child is not None:
            children.leave(state, plan, leaf, effects)
        _forget_payloads(state, leaf)
        if leaf.undo is not None:
            step.undone_before = max(step.undone_before, leaf.undo.attempt)
    if step.items:
        _drop_items(state, step)
    step.undo = None
    step.agent, step.fell_back, step.fell_back_after = None, 0, step.attempt
    step.stand_in = step.output = None
    step.started_ms = step.finished_ms = step.since_ms = step.order = 0
    step.escalated = False
    step.token = ""
    if step.status is not StepStatus.WAITING:
        move_step_to(state, step, spec, StepStatus.WAITING, "rewound", effects)


def _drop_items(state: WorkflowState, step: StepState) -> None:
    # Their numbers go on in the items that are made next; what they used is the step's from now on.
    step.dropped += sum(item.attempt - item.first for item in step.items)
    step.tokens += sum(item.tokens for item in step.items)
    step.cost += sum(item.cost for item in step.items)
    step.spent_ms += sum(item.spent_ms for item in step.items)
    step.first = max(step.first, *(item.attempt for item in step.items))
    step.questions = max(step.questions, *(item.questions for item in step.items))
    step.items = []
    _forget_failures(state, step)


def _forget_payloads(state: WorkflowState, leaf: StepState) -> None:
    """What the step held no longer counts; a constant, and what a fork brought along, was never counted by itself."""
    by_agent = leaf.stand_in is None or leaf.stand_in == "operator" or leaf.stand_in.startswith("fallback:")
    if by_agent and leaf.output is not None:
        state.bytes -= len(encode(leaf.output))
    if leaf.undo is not None:
        state.bytes -= sum(failure_bytes(failure) for failure in leaf.undo.failures)
    _forget_failures(state, leaf)


def _forget_failures(state: WorkflowState, step: StepState) -> None:
    state.bytes -= sum(failure_bytes(failure) for failure in step.failures)
    step.failures, step.failed_attempts = [], 0
