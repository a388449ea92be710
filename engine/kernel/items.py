"""A step that maps: one state for each item of a list, several at work at a time, and what becomes of the step.

Rules:
- The step runs as long as one of its items does. What its own items did is undone item by item, in reverse order of completion.
- Once more items have failed than the step tolerates it fails: what has not begun is not begun, what is out is waited for.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas.definitions import Map
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, ITEMS_MAX
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

from . import progress
from .closing import close_step, move_step_to, note_failure
from .effects import Effect
from .plan import Plan, PlanStep
from .state import StepState, WorkflowState

_OPEN = (StepStatus.WAITING, StepStatus.RUNNING, StepStatus.BACKING_OFF)
_AT_WORK = (StepStatus.RUNNING, StepStatus.BACKING_OFF)


class CannotMap(Exception):
    """What the step is to map over is no list that it takes; the message says why."""


def enter(state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, map_: Map, effects: list[Effect]) -> bool:
    """The step begins with its first items; True when there are none. Raises CannotMap, before anything has changed."""
    assert spec.resolve_items is not None
    values: Any = spec.resolve_items(state, -1)
    if type(values) is not list:
        raise CannotMap(f"it maps over {type(values).__name__}, which is no list")
    if len(values) > map_.items_max:
        raise CannotMap(f"it maps over {len(values):,} items, more than {map_.items_max:,}")
    others = sum(len(other.items) for other in state.steps if other is not step)
    if others + len(values) > ITEMS_MAX:
        raise CannotMap(f"with its {len(values):,} items the workflow would have more than {ITEMS_MAX:,}")
    move_step_to(state, step, spec, StepStatus.RUNNING, "dispatched", effects)
    step.attempt += 1
    if not step.started_ms:
        step.started_ms = state.now_ms
    if not values:
        step.output = []
        close_step(state, step, spec, StepStatus.DONE, "completed", effects)
        return True
    if step.items:
        _anew(state, step, spec, effects)
    else:
        step.items = [StepState(step.index, number) for number in range(len(values))]
    fill(state, plan, step, effects)
    return False


def fill(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Begins as many items as may be at work; ends the step after its last.

    An item may end in the very attempt to begin it (a budget is used up): `ended` then leaves the rest to this loop, so that a
    thousand of them are no recursion.
    """
    spec = plan.steps[step.index]
    assert spec.map is not None
    step.filling = True
    failed, tolerated = _failed(step), _tolerated(step, spec.map)
    room = spec.map.concurrency - sum(item.status in _AT_WORK for item in step.items)
    for item in step.items:
        if room <= 0 or failed > tolerated or state.paused is not None:
            break
        if item.status is StepStatus.WAITING:
            progress.dispatch(state, plan, item, effects)
            room -= _has(item, *_AT_WORK)
            failed += _has(item, StepStatus.FAILED)
    step.filling = False
    if not any(item.status in _OPEN for item in step.items):
        _finish(state, plan, step, spec, spec.map, effects)


def ended(
    state: WorkflowState, plan: Plan, item: StepState, after: StepStatus, trigger: str, effects: list[Effect]
) -> None:
    """An item has ended, well or not."""
    spec = plan.steps[item.index]
    step = state.steps[item.index]
    assert spec.map is not None
    close_step(state, item, spec, after, trigger, effects)
    if state.status is WorkflowStatus.COMPENSATING:
        _settle(state, plan, step, effects)
        progress.undo_next(state, plan, effects)
        return
    if _failed(step) > _tolerated(step, spec.map):
        for other in step.items:
            if other.status is StepStatus.WAITING or other.status is StepStatus.BACKING_OFF:
                progress.cancel_step(state, plan, other, effects)
    if not step.filling:
        fill(state, plan, step, effects)


def cancelled(state: WorkflowState, plan: Plan, item: StepState, effects: list[Effect]) -> None:
    """An attempt of an item ended badly while the workflow was stopping: it is not tried again."""
    progress.cancel_step(state, plan, item, effects)
    _settle(state, plan, state.steps[item.index], effects)


def stop(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """The workflow stops: what has not begun is not begun. The step is over once nothing of it is out."""
    for item in step.items:
        if item.status is StepStatus.WAITING or item.status is StepStatus.BACKING_OFF:
            progress.cancel_step(state, plan, item, effects)
    _settle(state, plan, step, effects)


def _settle(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    if step.status is StepStatus.RUNNING and not any(item.status is StepStatus.RUNNING for item in step.items):
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


def _finish(
    state: WorkflowState, plan: Plan, step: StepState, spec: PlanStep, map_: Map, effects: list[Effect]
) -> None:  # fmt: skip
    failed = _failed(step)
    gaps = [item for item in step.items if item.status is not StepStatus.DONE]
    if gaps:
        # A copy: an item's failure stays the item's.
        first = next(item for item in gaps if item.failures)
        failure: FailureRecord = first.failures[-1].copy()
        said = f"{len(gaps)} of {len(step.items)} items did not deliver; {spec.name_of(first)}: {failure['message']}"
        failure["message"] = said[:FAILURE_MESSAGE_CHARS_MAX]
        failure.pop("details", None)
        note_failure(state, step.failures, failure)
        step.failed_attempts += 1
        if failed > _tolerated(step, map_):
            progress.give_up(state, plan, step, failure, effects)
            return
        step.stand_in = "items"
    # The items' outputs are in the state already; the list holds the same objects.
    step.output = [item.output for item in step.items]
    progress.end_step(state, plan, step, StepStatus.DEGRADED if gaps else StepStatus.DONE, "completed", effects)


def _has(item: StepState, *statuses: StepStatus) -> bool:
    # A call, because the type checker takes it that `dispatch` left the status as it was.
    return item.status in statuses


def _failed(step: StepState) -> int:
    return sum(item.status is StepStatus.FAILED for item in step.items)


def _tolerated(step: StepState, map_: Map) -> int:
    return max(map_.tolerate, int(len(step.items) * map_.tolerate_percent / 100))
