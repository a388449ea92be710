"""What follows from a change: the next steps, the compensation in reverse order, the end.

Rules:
- A workflow that stops first drains: attempts that are out are waited for (or lost), and what they did is undone with the
  rest. So nothing can land behind a compensation that does not know of it.
- One undoing runs at a time, in exact reverse order of completion; or, if the definition says so, as many as no step that needs
  them holds up.
- While a workflow is paused nothing begins, forward or backward; what ends meanwhile is taken note of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from sagalog.schemas import ids
from sagalog.schemas.commands import Command
from sagalog.schemas.conditions import Condition, ConditionFailed
from sagalog.schemas.definitions import Retry, Task, UndoOrder, WhenFailed, WhenOpen
from sagalog.schemas.events import FailureKind, Forked
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import budgets, children, fallbacks, forks, items, reconcile, rewind, waits
from .closing import (
    close_review,
    close_step,
    dead_letter,
    finish,
    move_step_to,
    move_workflow,
    note_failure,
    review,
)
from .effects import Dispatch, Effect, Emit, Moved
from .plan import Plan, PlanStep
from .state import (
    NEVER,
    OUT,
    StepState,
    Trigger,
    WorkflowState,
    did_it,
    move_undo,
    undo_agent,
    undo_agents,
    undone_by_child,
)

ENDED_WELL = (StepStatus.DONE, StepStatus.DEGRADED, StepStatus.SKIPPED)
_BEING_UNDONE = (UndoStatus.RUNNING, UndoStatus.BACKING_OFF)
_STOPPABLE = (StepStatus.WAITING, StepStatus.BACKING_OFF, StepStatus.AWAITING, StepStatus.HELD)


# --- forward


def begin(state: WorkflowState, plan: Plan, forked: Forked | None, effects: list[Effect]) -> None:
    """The workflow runs from here: its first steps go out, or those that follow what a fork keeps."""
    state.steps = [StepState(place) for place in range(len(plan.steps))]
    state.open_steps = len(plan.steps)
    if forked is None:
        proceed(state, plan, plan.roots, effects)
        return
    forks.begin(state, plan, forked, effects)
    proceed(state, plan, range(len(plan.steps)), effects)


def proceed(state: WorkflowState, plan: Plan, places: Iterable[int], effects: list[Effect]) -> None:
    """Begins what can begin among these steps, and what follows from those that end at once; ends the workflow after its last.

    A queue, not a recursion: a chain of a hundred steps that are all skipped, or fail at once, is one event's work.
    """
    if state.agenda is not None:
        state.agenda.extend(places)
        return
    agenda = state.agenda = deque(places)
    while agenda and state.status is WorkflowStatus.RUNNING and state.paused is None:
        step = state.steps[agenda.popleft()]
        spec = plan.steps[step.index]
        if step.status is not StepStatus.WAITING or not _needs_met(state, spec):
            continue
        if enter(state, plan, step, spec, effects):
            agenda.extend(spec.dependents)
    state.agenda = None
    if state.status is WorkflowStatus.RUNNING and state.open_steps == 0:
        gaps = any(s.status is StepStatus.DEGRADED for s in state.steps)
        finish(state, plan, Trigger.ENDED_WITH_GAPS if gaps else Trigger.ALL_STEPS_ENDED, effects)


def _needs_met(state: WorkflowState, spec: PlanStep) -> bool:
    return all(state.steps[need].status in ENDED_WELL for need in spec.needs)


def enter(state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, effects: list[Effect]) -> bool:
    """Begins a step; True when that is also its good end."""
    try:
        if spec.when is not None and not _needed(state, spec.when, spec):
            close_step(state, step, spec, StepStatus.SKIPPED, "not_needed", effects)
            return True
        if spec.awaits is not None:
            return waits.enter(state, step, spec, effects)
        if spec.resolve_items is not None:
            return items.enter(state, plan, step, spec, effects)
    except (ConditionFailed, waits.CannotWait, items.CannotMap) as error:
        _cannot_begin(state, plan, step, str(error), effects)
        return False
    dispatch(state, plan, step, effects)
    return False


def _needed(state: WorkflowState, when: Condition, spec: PlanStep) -> bool:
    return when.holds(state.input, {name: state.steps[place].output for name, place in spec.when_steps})


def dispatch(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Sends the next attempt of a step, or of an item, if the budgets allow it."""
    problem = budgets.breach(state, plan, step, budgets.reserve(plan.steps[step.index], step))
    if problem is not None:
        fallbacks.fall_back(state, plan, step, fallbacks.over_budget(state, step, problem), effects)
    elif (problem := children.problem(state, plan, step)) is not None:
        _cannot_begin(state, plan, step, problem, effects)
    else:
        send(state, plan, step, effects)


def send(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Sends the next attempt of a step, or of an item."""
    if step.attempt == step.fell_back_after:
        step.since_ms = state.now_ms
    move_step_to(state, step, plan.steps[step.index], StepStatus.RUNNING, "dispatched", effects)
    step.attempt += 1
    if plan.timed:
        step.sent_ms = state.now_ms
    step.asked = None
    if not step.started_ms:
        step.started_ms = state.now_ms
    effects.append(attempt(state, plan, step))


def attempt(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch | Emit:
    """The effect that sends the step's current attempt to whoever does it; the same each time it is made."""
    if children.by_child(plan.steps[step.index], step):
        return children.start(state, plan, step)
    return execute_dispatch(state, plan, step)


def undo_attempt(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch | Emit:
    """The effect that sends the current attempt at undoing a step; the same each time it is made."""
    if undone_by_child(step, plan.steps[step.index]):
        return children.undo(state, plan, step)
    return undo_dispatch(state, plan, step)


def execute_dispatch(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch:
    """The command of the step's current attempt."""
    spec = plan.steps[step.index]
    service = spec.service if step.agent is None and step.asked is None else None
    command = _command(state, spec, step, Direction.EXECUTE, step.attempt, spec.agent_of(step), service)
    command.input = spec.resolve_input(state, step.item)
    step.token = command.token
    return Dispatch(command, spec.when_open, spec.patience_ms, plan.policy(service) if service else None, state.trace)


def end_step(
    state: WorkflowState, plan: Plan, step: StepState, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    """A step has ended, well or not; whatever waited for it can go on."""
    if step.item >= 0:
        items.ended(state, plan, step, after, trigger, effects)
        return
    spec = plan.steps[step.index]
    close_step(state, step, spec, after, trigger, effects)
    if state.status is WorkflowStatus.COMPENSATING or rewind.concerns(state, plan, step):
        undo_next(state, plan, effects)
    elif after is StepStatus.DEGRADED and spec.required and not past_pivot(state, plan):
        last = step.failures[-1]
        message = f"{spec.name!r} is degraded, and it is required: {last['message']}"[:FAILURE_MESSAGE_CHARS_MAX]
        cause: FailureRecord = {"kind": last["kind"], "message": message, "at_ms": state.now_ms, "step": spec.name}
        stop(state, plan, Trigger.STEP_FAILED, cause, effects)
    elif after is not StepStatus.FAILED:
        proceed(state, plan, spec.dependents, effects)


def past_pivot(state: WorkflowState, plan: Plan) -> bool:
    """Whether a pivot has ended well: from there on the workflow only goes forward."""
    return plan.pivots and (
        state.pivoted or any(plan.steps[step.index].pivot and step.status in ENDED_WELL for step in state.steps)
    )


# --- a step that failed for good


def _cannot_begin(state: WorkflowState, plan: Plan, step: StepState, message: str, effects: list[Effect]) -> None:
    # Nobody was asked, and trying again would change nothing.
    failure: FailureRecord = {
        "kind": FailureKind.TERMINAL,
        "message": message[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
    }
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    give_up(state, plan, step, failure, effects)


def give_up(state: WorkflowState, plan: Plan, step: StepState, failure: FailureRecord, effects: list[Effect]) -> None:
    """No attempt is left, or none makes sense: a default stands in, an operator decides, or the workflow stops."""
    spec = plan.steps[step.index]
    if step.item >= 0:
        dead_letter(state, spec, step, Direction.EXECUTE, effects)
        end_step(state, plan, step, StepStatus.FAILED, "given_up", effects)
        return
    if not spec.critical:
        if not step.items:
            dead_letter(state, spec, step, Direction.EXECUTE, effects)
        step.output = spec.default
        step.stand_in = "default"
        end_step(state, plan, step, StepStatus.DEGRADED, "given_up", effects)
    elif spec.when_failed is WhenFailed.REVIEW or past_pivot(state, plan):
        move_step_to(state, step, spec, StepStatus.HELD, "held", effects)
        details = {"input": spec.input_of(state, step), "failures": list(step.failures)}
        reason = f"step {spec.name!r} failed for good: {failure['message']}"
        review(state, "step_failed", reason[:FAILURE_MESSAGE_CHARS_MAX], spec.name, effects, details)
    else:
        if failure["kind"] == FailureKind.REVIEW_NEEDED:
            review(state, "review_needed", failure["message"], spec.name, effects, failure.get("details"))
        elif not step.items:
            dead_letter(state, spec, step, Direction.EXECUTE, effects)
        fail_step(state, plan, step, failure, effects)


def fail_step(state: WorkflowState, plan: Plan, step: StepState, failure: FailureRecord, effects: list[Effect]) -> None:
    """A critical step failed: the workflow stops."""
    end_step(state, plan, step, StepStatus.FAILED, "given_up", effects)
    stop(state, plan, Trigger.STEP_FAILED, {**failure, "step": plan.steps[step.index].name}, effects)


# --- backward


def stop(state: WorkflowState, plan: Plan, trigger: Trigger, cause: FailureRecord, effects: list[Effect]) -> None:
    """The workflow goes no further: what is not out is cancelled, what is out is waited for, what was done is undone."""
    move_workflow(state, trigger, effects)
    state.failure = cause
    state.paused = None
    state.rewinding = False
    for step in state.steps:
        if step.items and step.status is StepStatus.RUNNING:
            items.stop(state, plan, step, effects)
        elif step.status in _STOPPABLE:
            cancel_step(state, plan, step, effects)
    children.cancel_running(state, plan, effects)
    for step in state.leaves():
        reconcile.ask_held(state, plan, step, effects)  # a pause may have; what is to be undone depends on the answer
    undo_next(state, plan, effects)


def cancel_step(
    state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect], why: str = "the workflow stopped"
) -> None:
    """The step is not tried (again). With an unknown outcome it takes part in the compensation."""
    spec = plan.steps[step.index]
    _close_review(state, step, spec, why, effects)
    move_step_to(state, step, spec, StepStatus.CANCELLED, "stopped", effects)
    if step.item < 0:
        state.open_steps -= 1
    # What a rewinding left with an unknown outcome, and has not begun since, gets its place once all else has ended.
    if step.unknown and step.started_ms:
        state.ended_steps += 1
        step.order = state.ended_steps
        step.finished_ms = state.now_ms


def drop_step(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """An attempt ended badly while the workflow was stopping: it is not tried again, and the undoing may go on."""
    if step.item >= 0:
        items.cancelled(state, plan, step, effects)
    else:
        cancel_step(state, plan, step, effects)
    undo_next(state, plan, effects)


def close_reviews(state: WorkflowState, plan: Plan, why: str, effects: list[Effect]) -> None:
    """Whatever waits for a person in this workflow is moot."""
    for step in state.steps:
        _close_review(state, step, plan.steps[step.index], why, effects)
    for step in state.leaves():
        if step.undo is not None and step.undo.status is UndoStatus.HELD:
            close_review(state, plan.steps[step.index].name_of(step), step.undo.status, "moot", "sagalog", why, effects)


def _close_review(state: WorkflowState, step: StepState, spec: PlanStep, why: str, effects: list[Effect]) -> None:
    if step.status is StepStatus.HELD or (step.status is StepStatus.AWAITING and isinstance(spec.awaits, Task)):
        close_review(state, spec.name, step.status, "moot", "sagalog", why, effects)


def undo_next(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """Once nothing is out any more: undoes what can be undone next, or ends the workflow when all is undone."""
    if state.status is WorkflowStatus.REWINDING:
        rewind.go_on(state, plan, effects)
        return
    if state.paused is not None or any(step.status in OUT for step in state.steps):
        return
    if state.rewinds:
        rewind.place_left_behind(state, plan)
    held = at_work = False
    pending: list[StepState] = []
    for step in state.leaves():
        if step.undo is None:
            move_undo(step, UndoStatus.PENDING if to_undo(step, plan) else UndoStatus.NOT_NEEDED)
        assert step.undo is not None
        at_work = at_work or step.undo.status in _BEING_UNDONE
        held = held or step.undo.status is UndoStatus.HELD
        if step.undo.status is UndoStatus.PENDING:
            pending.append(step)
    if plan.definition.undo_order is UndoOrder.BY_NEEDS:
        for step in _undoable(state, plan, pending):
            dispatch_undo(state, plan, step, effects)
    elif pending and not at_work:
        dispatch_undo(state, plan, max(pending, key=lambda step: step.order), effects)
    if not pending and not at_work and not held:
        finish(state, plan, _how_it_ended(state), effects)


def _undoable(state: WorkflowState, plan: Plan, pending: list[StepState]) -> list[StepState]:
    """Which of these no step that needs them, and no later round or full map of their own step, holds up; the newest first."""
    open_steps = {step.index for step in pending}
    at_work: dict[int, int] = {}
    for step in state.leaves():
        if step.undo is not None and step.undo.status in _BEING_UNDONE:
            at_work[step.index] = at_work.get(step.index, 0) + 1
    open_steps |= at_work.keys()
    found = []
    for step in sorted(pending, key=lambda step: -step.order):
        spec = plan.steps[step.index]
        at_a_time = spec.map.concurrency if spec.map is not None else 1
        if at_work.get(step.index, 0) < at_a_time and not spec.followers & open_steps:
            found.append(step)
            at_work[step.index] = at_work.get(step.index, 0) + 1
    return found


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
    effects.append(_moved_undo(state, spec.name_of(step), before, undo.status, "dispatched", undo.attempt))
    effects.append(undo_attempt(state, plan, step))


def undo_dispatch(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch:
    """The command of the current attempt at undoing a step."""
    spec = plan.steps[step.index]
    assert spec.compensate is not None and step.undo is not None
    agent = undo_agent(step, spec)
    service = spec.service if agent == spec.agent else None
    command = _command(state, spec, step, Direction.COMPENSATE, step.undo.attempt, agent, service)
    command.input = spec.resolve_undo_input(state, step.item)
    command.timeout_ms = spec.compensate.timeout_ms
    policy = plan.policy(service) if service else None
    return Dispatch(command, WhenOpen.PARK, spec.undo_patience_ms, policy, state.trace)


def end_undo(
    state: WorkflowState, plan: Plan, step: StepState, after: UndoStatus, trigger: str, effects: list[Effect]
) -> None:
    """An agent's undoing has ended, well or not: the next agent that may have done the step follows, or the next step."""
    undo = step.undo
    spec = plan.steps[step.index]
    assert undo is not None
    if undo.again or undo.turn + 1 < len(undo_agents(step, spec)):
        undo.failed = undo.failed or after is UndoStatus.FAILED
        undo.turn = 0 if undo.again else undo.turn + 1
        undo.again = False
        undo.tried_before = undo.attempt
        if state.paused is None:
            dispatch_undo(state, plan, step, effects)
        else:
            back_off_undo(state, spec, step, NEVER - state.now_ms, effects)
        return
    before, after = undo.status, UndoStatus.FAILED if undo.failed else after
    move_undo(step, after)
    undo.finished_ms = state.now_ms
    effects.append(_moved_undo(state, spec.name_of(step), before, after, trigger, undo.attempt))
    undo_next(state, plan, effects)


def undo_again(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """What was undone may have been done since: it is undone once more."""
    assert step.undo is not None
    step.undo.turn = 0
    step.undo.tried_before = step.undo.attempt
    step.undo.finished_ms = 0
    if state.paused is None:
        dispatch_undo(state, plan, step, effects)
    else:
        back_off_undo(state, plan.steps[step.index], step, NEVER - state.now_ms, effects)


def hold_undo(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """An undoing failed for good, and an operator decides; the others go on."""
    assert step.undo is not None
    before = step.undo.status
    undo = move_undo(step, UndoStatus.HELD)
    effects.append(_moved_undo(state, plan.steps[step.index].name_of(step), before, undo.status, "held", undo.attempt))
    undo_next(state, plan, effects)


def to_undo(step: StepState, plan: Plan) -> bool:
    """Whether the step had an effect, or may have had one, that its compensation can undo."""
    spec = plan.steps[step.index]
    if spec.compensate is None or (spec.resolve_items is not None and step.item < 0):
        return False  # what a step that maps or repeats did, its items did
    if step.stand_in == "fork":
        return False  # its effect is the original's
    # A step whose outcome is unknown may have had its effect: it is undone like one that is known to have had it. What a
    # fallback agent did in its place has to be undone, too (`undo_agents`); a default or a constant did nothing.
    by_hand = step.status is StepStatus.DONE and spec.compensate.agent is not None
    return did_it(step, spec) or by_hand or step.unknown


def _how_it_ended(state: WorkflowState) -> Trigger:
    ledger = {step.undo.status for step in state.leaves() if step.undo is not None}
    if UndoStatus.FAILED in ledger:
        return Trigger.NOT_ALL_UNDONE
    assert state.failure is not None
    match FailureKind(state.failure["kind"]):
        case FailureKind.CANCELLED:
            return Trigger.UNDONE_AFTER_CANCEL
        case FailureKind.REVIEW_NEEDED:
            return Trigger.UNDONE_FOR_REVIEW
        case _:
            return Trigger.UNDONE if ledger & {UndoStatus.DONE, UndoStatus.SKIPPED} else Trigger.NOTHING_TO_UNDO


# --- helpers


def backoff_ms(retry: Retry, state: WorkflowState, command: str, attempt: int, retry_after_ms: int | None) -> int:
    """How long to wait after the failed attempt `attempt`: full jitter under an exponential cap, at least what the agent asked."""
    # The exponent is bounded by the cap, so that no attempt count overflows the float.
    ceiling = min(float(retry.cap_ms), retry.base_ms * retry.factor ** min(attempt - 1, 64))
    delay = int(ceiling * ids.fraction(state.seed, command))
    return max(1, delay, min(retry_after_ms or 0, retry.cap_ms))


def back_off(state: WorkflowState, spec: PlanStep, step: StepState, delay_ms: int, effects: list[Effect]) -> None:
    """The step waits for its next attempt."""
    move_step_to(state, step, spec, StepStatus.BACKING_OFF, "failed", effects)
    step.retry_at_ms = state.now_ms + delay_ms


def back_off_undo(state: WorkflowState, spec: PlanStep, step: StepState, delay_ms: int, effects: list[Effect]) -> None:
    """The undoing waits for its next attempt."""
    assert step.undo is not None
    before = step.undo.status
    undo = move_undo(step, UndoStatus.BACKING_OFF)
    undo.retry_at_ms = state.now_ms + delay_ms
    effects.append(_moved_undo(state, spec.name_of(step), before, undo.status, "failed", undo.attempt))


def _moved_undo(
    state: WorkflowState, name: str, before: UndoStatus, after: UndoStatus, trigger: str, attempt: int
) -> Moved:
    return Moved(state.workflow_id, before, after, trigger, name, True, attempt)


def _command(
    state: WorkflowState,
    spec: PlanStep,
    step: StepState,
    direction: Direction,
    attempt: int,
    agent: str,
    service: str | None,
) -> Command:
    name = spec.name_of(step)
    command_id = state.command_id(name, attempt, direction)
    return Command(
        command_id=command_id,
        workflow_id=state.workflow_id,
        definition=state.definition,
        step=name,
        agent=agent,
        attempt=attempt,
        direction=direction,
        token=ids.token(state.seed, command_id),
        idempotency_key=ids.idempotency_key(state.workflow_id, name, state.run, step.round),
        input=None,
        timeout_ms=spec.timeout_ms,
        heartbeat_timeout_ms=spec.heartbeat_timeout_ms,
        deadline_ms=state.deadline_ms if state.deadline_ms != NEVER and direction is Direction.EXECUTE else None,
        service=service,
        priority=state.priority,
    )
