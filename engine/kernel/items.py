"""A step that maps, or repeats: one state for each item of a list, or for each round, and what becomes of the step.

Rules:
- The step runs as long as one of its items does. What its own items did is undone item by item, in reverse order of completion.
- Once more items have failed than the step tolerates it fails: what has not begun is not begun, what is out is waited for.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas.conditions import ConditionFailed
from sagalog.schemas.definitions import Repeat
from sagalog.schemas.events import FailureKind
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, ITEMS_MAX
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

from . import progress, rewind
from .closing import close_step, move_step_to, note_failure
from .effects import Effect
from .plan import Plan, PlanStep
from .state import OUT, StepState, WorkflowState

_AT_WORK = (*OUT, StepStatus.BACKING_OFF)
_OPEN = (StepStatus.WAITING, *_AT_WORK)


class CannotMap(Exception):
    """What the step is to map over is no list that it takes; the message says why."""


def enter(state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, effects: list[Effect]) -> bool:
    """The step begins with its first items; True when there are none. Raises CannotMap, before anything has changed."""
    count = _count(state, step, spec)
    move_step_to(state, step, spec, StepStatus.RUNNING, "dispatched", effects)
    step.attempt += 1
    if not step.started_ms:
        step.started_ms = state.now_ms
    if not count:
        step.output = []
        close_step(state, step, spec, StepStatus.DONE, "completed", effects)
        return True
    if step.items:
        _anew(state, step, spec, effects)
    else:
        step.items = [_item(step, number) for number in range(count)]
    fill(state, plan, step, effects)
    return False


def _item(step: StepState, number: int) -> StepState:
    """A new item. After a rewinding its numbers go on where those of the item before it in its place ended."""
    item = StepState(step.index, number)
    item.attempt = item.first = item.fell_back_after = step.first
    item.undone_before, item.round, item.questions = step.undone_before, step.round, step.questions
    return item


def _count(state: WorkflowState, step: StepState, spec: PlanStep) -> int:
    """How many items the step begins with. Raises CannotMap."""
    if spec.map is None:
        _check_total(state, step, 1)
        return 1
    assert spec.resolve_items is not None
    values: Any = spec.resolve_items(state, -1)
    if type(values) is not list:
        raise CannotMap(f"it maps over {type(values).__name__}, which is no list")
    if len(values) > spec.map.items_max:
        raise CannotMap(f"it maps over {len(values):,} items, more than {spec.map.items_max:,}")
    _check_total(state, step, len(values))
    return len(values)


def _check_total(state: WorkflowState, step: StepState, count: int) -> None:
    others = sum(len(other.items) for other in state.steps if other is not step)
    if others + count > ITEMS_MAX:
        raise CannotMap(f"with its {count:,} items the workflow would have more than {ITEMS_MAX:,}")


def fill(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Begins as many items as may be at work; ends the step after its last.

    An item may end in the very attempt to begin it (a budget is used up): `ended` then leaves the rest to this loop, so that a
    thousand of them are no recursion.
    """
    spec = plan.steps[step.index]
    step.filling = True
    failed, tolerated = _failed(step), _tolerated(step, spec)
    room = (spec.map.concurrency if spec.map is not None else 1) - sum(item.status in _AT_WORK for item in step.items)
    for item in step.items:
        if room <= 0 or failed > tolerated or state.paused is not None:
            break
        if item.status is StepStatus.WAITING:
            progress.dispatch(state, plan, item, effects)
            room -= _has(item, *_AT_WORK)
            failed += _has(item, StepStatus.FAILED)
    step.filling = False
    if not any(item.status in _OPEN for item in step.items):
        _finish(state, plan, step, spec, effects)


def fill_anew(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """A migration may have changed how many items may be at work, and how many may fail."""
    if fails(step, plan.steps[step.index]):
        _cancel_rest(state, plan, step, effects)
    fill(state, plan, step, effects)


def fails(step: StepState, spec: PlanStep) -> bool:
    """Whether more of its items have failed than this plan of it tolerates."""
    return _failed(step) > _tolerated(step, spec)


def ended(
    state: WorkflowState, plan: Plan, item: StepState, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    """An item has ended, well or not."""
    spec = plan.steps[item.index]
    step = state.steps[item.index]
    close_step(state, item, spec, after, trigger, effects)
    if state.status is WorkflowStatus.COMPENSATING or rewind.concerns(state, plan, step):
        _settle(state, plan, step, effects)
        progress.undo_next(state, plan, effects)
        return
    if fails(step, spec):
        _cancel_rest(state, plan, step, effects)
    if not step.filling:
        fill(state, plan, step, effects)


def _cancel_rest(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    for item in step.items:
        if item.status is StepStatus.WAITING or item.status is StepStatus.BACKING_OFF:
            progress.cancel_step(state, plan, item, effects)


def cancelled(state: WorkflowState, plan: Plan, item: StepState, effects: list[Effect]) -> None:
    """An attempt of an item ended badly while the workflow was stopping: it is not tried again."""
    progress.cancel_step(state, plan, item, effects)
    _settle(state, plan, state.steps[item.index], effects)


def stop(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """The workflow stops: what has not begun is not begun. The step is over once nothing of it is out."""
    _cancel_rest(state, plan, step, effects)
    _settle(state, plan, step, effects)


def _settle(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    if step.status is StepStatus.RUNNING and not any(item.status in OUT for item in step.items):
        progress.cancel_step(state, plan, step, effects)


def _anew(state: WorkflowState, step: StepState, spec: PlanStep, effects: list[Effect]) -> None:
    """An operator has the step tried anew: those of its items that did not end well."""
    for item in step.items:
        if item.status is StepStatus.FAILED or item.status is StepStatus.CANCELLED:
            item.agent, item.fell_back = None, 0
            item.fell_back_after = item.attempt
            item.finished_ms = item.order = 0
            move_step_to(state, item, spec, StepStatus.WAITING, "retried", effects)
    # As a checkpoint has it: the count of what has ended is the largest order that is left.
    state.ended_steps = max(one.order for other in state.steps for one in (other, *other.items))


def _finish(state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, effects: list[Effect]) -> None:
    gaps = [item for item in step.items if item.status is not StepStatus.DONE]
    if gaps:
        # A copy: an item's failure stays the item's.
        first = next(item for item in gaps if item.failures)
        failure: FailureRecord = first.failures[-1].copy()
        said = f"{len(gaps)} of {len(step.items)} items did not deliver; {spec.name_of(first)}: {failure['message']}"
        failure.pop("details", None)
        _note(state, step, failure, said)
        if _failed(step) > _tolerated(step, spec):
            progress.give_up(state, plan, step, failure, effects)
            return
    if spec.repeat is not None and not _last_round(state, plan, step, spec, spec.repeat, effects):
        return
    if gaps:
        step.stand_in = "items"
    # The items' outputs are in the state already: these are the same objects.
    step.output = [item.output for item in step.items] if spec.map is not None else step.items[-1].output
    progress.end_step(state, plan, step, StepStatus.DEGRADED if gaps else StepStatus.DONE, "completed", effects)


def _last_round(
    state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, repeat: Repeat, effects: list[Effect]
) -> bool:
    """Whether the round that ended was the last; else the next one begins, now or later, or the step has failed."""
    assert spec.until is not None
    outputs = {name: state.steps[place].output for name, place in spec.until_steps}
    outputs[spec.name] = step.items[-1].output
    problem = None
    try:
        if spec.until.holds(state.input, outputs):
            return True
        _check_total(state, step, len(step.items) + 1)
    except (ConditionFailed, CannotMap) as error:
        problem = str(error)
    if problem is None and len(step.items) >= repeat.rounds_max:
        problem = f"{spec.until.source!r} does not hold after {len(step.items):,} rounds"
    if problem is not None:
        failure: FailureRecord = {"kind": FailureKind.TERMINAL, "message": "", "at_ms": state.now_ms}
        _note(state, step, failure, problem)
        progress.give_up(state, plan, step, failure, effects)
        return False
    following = _item(step, len(step.items))
    step.items.append(following)
    if repeat.delay_ms:
        move_step_to(state, following, spec, StepStatus.BACKING_OFF, "delayed", effects)
        following.retry_at_ms = state.now_ms + repeat.delay_ms
    else:
        fill(state, plan, step, effects)
    return False


def _note(state: WorkflowState, step: StepState, failure: FailureRecord, message: str) -> None:
    failure["message"] = message[:FAILURE_MESSAGE_CHARS_MAX]
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1


def _has(item: StepState, *statuses: StepStatus) -> bool:
    # A call, because the type checker takes it that `dispatch` left the status as it was.
    return item.status in statuses


def _failed(step: StepState) -> int:
    return sum(item.status is StepStatus.FAILED for item in step.items)


def _tolerated(step: StepState, spec: PlanStep) -> int:
    if spec.map is None:
        return 0
    return max(spec.map.tolerate, int(len(step.items) * spec.map.tolerate_percent / 100))
